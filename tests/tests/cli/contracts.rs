//! One golden case per command and misuse: arguments, exit code, standard error, word for word.
//!
//! All cases run in one directory, and none may change a byte of it. A case's file in
//! `tests/cases` is compared; `VOLTAR_UPDATE_CASES=1` writes it anew, to be read before it is
//! committed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use voltar_format::ArchiveId;
use voltar_format::header::Header;
use voltar_tests::command::{object, words};
use voltar_tests::data::disk;
use voltar_tests::{Ran, Scratch, Voltar, root};

/// Name of the case, exit code, arguments. `PREFIX` stands for an id prefix that two snapshots
/// of `many.voltar` share.
const CASES: &[(&str, i32, &str)] = &[
    ("no-arguments", 2, ""),
    ("unknown-command", 2, "frobnicate disk a.voltar"),
    ("planned-command", 2, "prune a.voltar"),
    ("quiet-and-verbose", 2, "list a.voltar --quiet --verbose"),
    // backup
    ("backup-unknown-flag", 2, "backup disk new.voltar --frobnicate"),
    ("backup-one-argument", 2, "backup disk"),
    ("backup-missing-source", 1, "backup nothing new.voltar"),
    ("backup-missing-source-existing-archive", 1, "backup nothing a.voltar"),
    ("backup-empty-source", 1, "backup empty new.voltar"),
    ("backup-directory-as-source", 1, "backup dir new.voltar"),
    ("backup-character-device", 1, "backup /dev/null new.voltar"),
    ("backup-archive-is-source", 1, "backup a.voltar a.voltar"),
    ("backup-archive-is-source-by-link", 1, "backup x=a-link.voltar a.voltar"),
    ("backup-same-name-twice", 2, "backup disk dir/disk new.voltar"),
    ("backup-same-given-name-twice", 2, "backup x=disk x=other new.voltar"),
    ("backup-tag-twice", 2, "backup disk new.voltar --tag a=1 --tag a=2"),
    ("backup-bad-tag", 2, "backup disk new.voltar --tag nothing"),
    ("backup-attach-missing", 1, "backup disk new.voltar --attach nothing.xml"),
    ("backup-attach-twice", 2, "backup disk new.voltar --attach notes.txt --attach dir/notes.txt"),
    ("backup-attach-directory", 1, "backup disk new.voltar --attach dir"),
    ("backup-chunk-size-odd", 2, "backup disk new.voltar --chunk-size 5K"),
    ("backup-chunk-size-small", 2, "backup disk new.voltar --chunk-size 2K"),
    ("backup-chunk-size-large", 2, "backup disk new.voltar --chunk-size 2M"),
    ("backup-chunk-size-word", 2, "backup disk new.voltar --chunk-size lots"),
    ("backup-memory-small", 2, "backup disk new.voltar --memory 1M"),
    ("backup-memory-overflow", 2, "backup disk new.voltar --memory 99999999999T"),
    ("backup-threads-zero", 2, "backup disk new.voltar --threads 0"),
    ("backup-limit-zero", 2, "backup disk new.voltar --limit 0"),
    ("backup-compression-word", 2, "backup disk new.voltar --compression gzip"),
    ("backup-compression-level", 2, "backup disk new.voltar --compression zstd:99"),
    ("backup-audit-too-much", 2, "backup disk new.voltar --audit 101"),
    ("backup-changes-word", 2, "backup disk new.voltar --changes DM!"),
    ("backup-changes-kind", 1, "backup disk new.voltar --changes dm-thin"),
    ("backup-io-word", 2, "backup disk new.voltar --io fast"),
    ("backup-lvm-uri", 2, "backup lvm:vg new.voltar"),
    ("backup-zfs-uri", 2, "backup zfs:tank new.voltar"),
    ("backup-rbd-uri", 2, "backup rbd://pool/image new.voltar"),
    ("backup-qemu-uri", 1, "backup qemu:vm.qmp new.voltar"),
    ("backup-to-bucket", 2, "backup disk s3://bucket/new.voltar"),
    ("backup-onto-other-file", 1, "backup disk notes.txt"),
    ("backup-onto-directory", 1, "backup disk dir"),
    ("backup-in-missing-directory", 1, "backup disk nowhere/new.voltar"),
    ("backup-parent-unknown", 1, "backup disk a.voltar --parent 0123456789abcdef"),
    ("backup-parent-too-old", 1, "backup disk a.voltar --parent latest~7"),
    ("backup-parent-bad", 2, "backup disk a.voltar --parent yesterday"),
    ("backup-parent-lacks-volume", 1, "backup other a.voltar --parent latest"),
    ("backup-parent-of-stream", 2, "backup disk - --parent latest"),
    ("backup-onto-newer-version", 1, "backup disk newer.voltar"),
    ("backup-onto-unknown-feature", 1, "backup disk feature.voltar"),
    ("backup-onto-broken-header", 3, "backup disk header.voltar"),
    // restore
    ("restore-unknown-flag", 2, "restore a.voltar new.img --frobnicate"),
    ("restore-one-argument", 2, "restore a.voltar"),
    ("restore-missing-archive", 1, "restore nothing.voltar new.img"),
    ("restore-not-an-archive", 1, "restore notes.txt new.img"),
    ("restore-empty-archive", 1, "restore empty new.img"),
    ("restore-directory-as-archive", 1, "restore dir new.img"),
    ("restore-newer-version", 1, "restore newer.voltar new.img"),
    ("restore-unknown-feature", 1, "restore feature.voltar new.img"),
    ("restore-bad-selector", 2, "restore a.voltar@yesterday new.img"),
    ("restore-empty-selector", 2, "restore a.voltar@ new.img"),
    ("restore-unknown-id", 1, "restore a.voltar@0123456789abcdef new.img"),
    ("restore-too-old", 1, "restore a.voltar@latest~7 new.img"),
    ("restore-no-such-date", 1, "restore a.voltar@1999-12-31 new.img"),
    ("restore-ambiguous-id", 1, "restore many.voltar@PREFIX new.img"),
    ("restore-unknown-volume", 1, "restore a.voltar new.img --volume swap"),
    ("restore-unknown-name", 1, "restore a.voltar swap=new.img"),
    ("restore-volume-and-several", 2, "restore multi.voltar new.img b.img --volume root"),
    ("restore-volume-and-name", 2, "restore multi.voltar root=new.img --volume root"),
    ("restore-several-unnamed", 2, "restore multi.voltar root=new.img b.img"),
    ("restore-name-twice", 2, "restore multi.voltar root=new.img root=b.img"),
    ("restore-which-volume", 1, "restore multi.voltar new.img"),
    ("restore-one-target-for-two", 1, "restore multi.voltar root=new.img data=new.img"),
    ("restore-target-holds-data", 5, "restore a.voltar other"),
    ("restore-target-is-archive", 5, "restore a.voltar a.voltar --overwrite"),
    ("restore-target-is-archive-by-link", 5, "restore a.voltar a-link.voltar --overwrite"),
    ("restore-target-read-only", 5, "restore a.voltar read-only.img --overwrite"),
    ("restore-folder-is-file", 5, "restore a.voltar other/ --overwrite"),
    ("restore-folder-in-missing-directory", 1, "restore a.voltar nowhere/new/"),
    ("restore-folder-and-target", 2, "restore multi.voltar root=new/ data=b.img"),
    ("restore-folder-of-unknown-volume", 1, "restore multi.voltar new/ --volume swap"),
    ("restore-format-without-folder", 2, "restore a.voltar new.img --format qcow2"),
    ("restore-format-word", 2, "restore a.voltar new/ --format vmdk"),
    ("restore-target-character-device", 5, "restore a.voltar /dev/null --overwrite"),
    ("restore-in-missing-directory", 1, "restore a.voltar nowhere/new.img"),
    ("restore-rehearsed-in-missing-directory", 1, "restore a.voltar nowhere/new.img --dry-run"),
    ("restore-rehearsed-onto-data", 5, "restore a.voltar other --dry-run"),
    ("restore-uri", 2, "restore a.voltar rbd://pool/image"),
    ("restore-lvm-uri", 2, "restore a.voltar lvm:vg/a/b"),
    ("restore-volblocksize-odd", 2, "restore a.voltar new.img --volblocksize 5000"),
    ("sources-unknown-flag", 2, "sources --frobnicate"),
    ("restore-delta-word", 2, "restore a.voltar new.img --delta maybe"),
    ("restore-limit-word", 2, "restore a.voltar new.img --limit fast"),
    // verify
    ("verify-no-argument", 2, "verify"),
    ("verify-unknown-flag", 2, "verify a.voltar --frobnicate"),
    ("verify-missing-archive", 1, "verify nothing.voltar"),
    ("verify-not-an-archive", 1, "verify notes.txt"),
    ("verify-empty-archive", 1, "verify empty"),
    ("verify-newer-version", 1, "verify newer.voltar"),
    ("verify-unknown-feature", 1, "verify feature.voltar"),
    ("verify-sample-nothing", 2, "verify a.voltar --sample 0"),
    ("verify-sample-too-much", 2, "verify a.voltar --sample 101%"),
    ("verify-resume-of-one-snapshot", 2, "verify a.voltar@latest --resume"),
    ("verify-sample-of-one-snapshot", 2, "verify a.voltar@latest --sample 10"),
    ("verify-bad-selector", 2, "verify a.voltar@yesterday"),
    ("verify-unknown-id", 1, "verify a.voltar@0123456789abcdef"),
    ("verify-broken-header", 3, "verify header.voltar"),
    // list
    ("list-no-argument", 2, "list"),
    ("list-unknown-flag", 2, "list a.voltar --frobnicate"),
    ("list-missing-archive", 1, "list nothing.voltar"),
    ("list-not-an-archive", 1, "list notes.txt"),
    ("list-empty-archive", 1, "list empty"),
    ("list-directory", 1, "list dir"),
    ("list-newer-version", 1, "list newer.voltar"),
    ("list-unknown-feature", 1, "list feature.voltar"),
    // show
    ("show-no-argument", 2, "show"),
    ("show-unknown-flag", 2, "show a.voltar --frobnicate"),
    ("show-missing-archive", 1, "show nothing.voltar"),
    ("show-not-an-archive", 1, "show notes.txt"),
    ("show-empty-archive", 1, "show empty"),
    ("show-unknown-id", 1, "show a.voltar@0123456789abcdef"),
    ("show-ambiguous-id", 1, "show many.voltar@PREFIX"),
    ("show-bad-selector", 2, "show a.voltar@latest~x"),
    ("show-unknown-attached", 1, "show a.voltar --attached nothing.xml"),
    ("show-attached-json", 2, "show a.voltar --attached notes.txt --json"),
    ("show-newer-version", 1, "show newer.voltar"),
    // diff
    ("diff-no-argument", 2, "diff"),
    ("diff-one-snapshot", 2, "diff a.voltar latest"),
    ("diff-unknown-flag", 2, "diff a.voltar latest~1 latest --frobnicate"),
    ("diff-missing-archive", 1, "diff nothing.voltar latest~1 latest"),
    ("diff-not-an-archive", 1, "diff notes.txt latest~1 latest"),
    ("diff-unknown-id", 1, "diff a.voltar 0123456789abcdef latest"),
    ("diff-bad-selector", 2, "diff a.voltar latest~1 newest"),
    ("diff-unknown-volume", 1, "diff a.voltar latest~1 latest --volume swap"),
    ("diff-newer-version", 1, "diff newer.voltar latest~1 latest"),
    // inspect
    ("inspect-no-argument", 2, "inspect"),
    ("inspect-unknown-flag", 2, "inspect a.voltar --frobnicate"),
    ("inspect-missing-archive", 1, "inspect nothing.voltar"),
    ("inspect-not-an-archive", 1, "inspect notes.txt"),
    ("inspect-empty-archive", 1, "inspect empty"),
    ("inspect-newer-version", 1, "inspect newer.voltar"),
    ("inspect-unknown-feature", 1, "inspect feature.voltar"),
    ("inspect-salvage-no-path", 2, "inspect a.voltar --salvage"),
    ("inspect-salvage-into-itself", 1, "inspect a.voltar --salvage a.voltar"),
    ("inspect-salvage-not-an-archive", 1, "inspect notes.txt --salvage new.voltar"),
    // bench
    ("bench-unknown-flag", 2, "bench --frobnicate"),
    ("bench-missing-path", 1, "bench nothing"),
    ("bench-threads-word", 2, "bench --threads many"),
];

/// What every command must have a case for, whatever else it has.
const DUTIES: [&str; 2] = ["unknown-flag", "missing"];
/// Of these nothing can be missing.
const WITHOUT_ARGUMENTS: [&str; 1] = ["sources"];

#[test]
fn every_misuse_is_answered_in_words_and_changes_nothing() {
    let shelf = Shelf::new();
    let before = shelf.scratch.contents();
    let mut differences = Vec::new();
    for (name, code, line) in CASES {
        let ran = shelf.run(line);
        let got = shelf.record(line, &ran);
        if shelf.scratch.contents() != before {
            panic!("{name} changed, made or removed a file\n{got}");
        }
        if ran.code() != Some(*code) {
            differences.push(format!("{name}: exit {:?}, expected {code}\n{got}", ran.code()));
        }
        // What verify found out is its report.
        let may_report = line.contains("--json") || *name == "verify-broken-header";
        if !ran.stdout.is_empty() && !may_report {
            differences.push(format!("{name}: standard output is not empty"));
        }
        differences.extend(compare(name, &got));
    }
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

#[test]
fn every_misuse_is_one_json_object_with_json() {
    let shelf = Shelf::new();
    let before = shelf.scratch.contents();
    // `--attached` excludes `--json`, which is a case of its own.
    let takes_json = |line: &str| !line.is_empty() && !line.contains("--attached");
    for (name, code, line) in CASES.iter().filter(|(_, _, line)| takes_json(line)) {
        let ran = shelf.run(&format!("{line} --json"));
        assert_eq!(ran.code(), Some(*code), "{name}: {}", ran.stderr);
        // Where standard output is to carry an archive, nothing else goes there.
        let text = match line.contains(" - ") {
            true => ran.stderr.clone(),
            false => ran.text(),
        };
        let object = object(&text).unwrap_or_else(|why| panic!("{name}: {why}"));
        let error = &object["error"];
        assert_eq!(error["code"], *code, "{name}");
        assert!(error["message"].as_str().is_some_and(|m| !m.is_empty()), "{name}: {error}");
        assert!(error.get("hint").is_some(), "{name}: {error}");
    }
    assert!(shelf.scratch.contents() == before, "a case changed, made or removed a file");
}

#[test]
fn every_command_has_its_cases() {
    let shelf = Shelf::new();
    let mut verbs = 0;
    for verb in commands(&shelf.run("--help").text()) {
        let count = if WITHOUT_ARGUMENTS.contains(&&*verb) { 1 } else { DUTIES.len() };
        for duty in &DUTIES[..count] {
            let case = CASES.iter().find(|(name, ..)| name.starts_with(&format!("{verb}-{duty}")));
            assert!(case.is_some(), "`{verb}` has no case {verb}-{duty}...");
        }
        verbs += 1;
    }
    assert!(verbs >= 8, "{verbs} commands found");
}

#[test]
fn case_names_are_unique_and_no_case_file_is_forgotten() {
    let names: BTreeSet<String> = CASES.iter().map(|(name, ..)| format!("{name}.txt")).collect();
    assert_eq!(names.len(), CASES.len());
    let files: BTreeSet<String> = fs::read_dir(cases())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(files, names);
}

/// The commands that `--help` lists.
pub fn commands(help: &str) -> Vec<String> {
    let listed = help.split("Commands:\n").nth(1).expect("the help lists commands");
    listed
        .lines()
        .take_while(|line| !line.is_empty())
        .filter(|line| line.starts_with("  ") && !line.starts_with("   "))
        .filter_map(|line| line.split_whitespace().next())
        .filter(|word| *word != "help")
        .map(str::to_string)
        .collect()
}

/// Compares with the case's file; a difference in words.
fn compare(name: &str, got: &str) -> Option<String> {
    let path = cases().join(format!("{name}.txt"));
    if std::env::var_os("VOLTAR_UPDATE_CASES").is_some() {
        fs::create_dir_all(cases()).unwrap();
        fs::write(&path, got).unwrap();
        return None;
    }
    let want = fs::read_to_string(&path).unwrap_or_default();
    (want != got).then(|| format!("{name}: expected\n{want}got\n{got}"))
}

fn cases() -> PathBuf {
    root().join("tests/cases")
}

/// A directory with something for every misuse.
struct Shelf {
    scratch: Scratch,
    replacements: BTreeMap<String, &'static str>,
    prefix: String,
}

impl Shelf {
    fn new() -> Shelf {
        let scratch = Scratch::new();
        make_files(&scratch);
        let backup = |line: &str| Voltar::new(&scratch).args(words(line)).ok();
        backup("backup disk a.voltar --attach notes.txt");
        backup("backup disk a.voltar --attach notes.txt");
        backup("backup root=disk data=other multi.voltar");
        let prefix = many(&scratch);
        fs::copy(scratch.path("a.voltar"), scratch.path("header.voltar")).unwrap();
        scratch.flip("header.voltar", 20, 0);
        for (name, version, incompatible) in
            [("newer.voltar", 2, 0), ("feature.voltar", 1, 1 | 1 << 40)]
        {
            fs::copy(scratch.path("a.voltar"), scratch.path(name)).unwrap();
            let header = Header::new(ArchiveId([7; 16]), 1_700_000_000_000_000_000);
            scratch.patch(name, 0, &Header { version, incompatible, ..header }.encode());
        }
        let dir = scratch.dir().to_str().unwrap().to_string();
        Shelf { scratch, replacements: [(dir, "$DIR")].into(), prefix }
    }

    fn run(&self, line: &str) -> Ran {
        let line = line.replace("PREFIX", &self.prefix);
        Voltar::new(&self.scratch).args(words(&line)).run()
    }

    /// What is kept of a run: nothing that differs from machine to machine.
    fn record(&self, line: &str, ran: &Ran) -> String {
        let mut stderr = ran.stderr.clone();
        for (from, to) in &self.replacements {
            stderr = stderr.replace(from, to);
        }
        if line.contains("PREFIX") {
            let named = format!("start with {}:", self.prefix);
            stderr = stderr.replace(&named, "start with PREFIX:");
        }
        let code = ran.code().map_or("a signal".to_string(), |code| code.to_string());
        format!("$ voltar {line}\n{}exit {code}\n", without_ids(&stderr))
    }
}

fn make_files(scratch: &Scratch) {
    let disk = disk(1, 300_000);
    scratch.write("disk", &disk);
    scratch.write("other", &disk[..100_000]);
    scratch.write("empty", b"");
    scratch.write("notes.txt", b"Not an archive, and longer than a header's magic bytes.\n");
    fs::create_dir(scratch.path("dir")).unwrap();
    scratch.write("dir/disk", b"x");
    scratch.write("dir/notes.txt", b"x");
    scratch.write("read-only.img", &[0; 400_000]);
    let read_only = fs::Permissions::from_mode(0o444);
    fs::set_permissions(scratch.path("read-only.img"), read_only).unwrap();
    std::os::unix::fs::symlink("a.voltar", scratch.path("a-link.voltar")).unwrap();
}

/// Makes seventeen snapshots: two ids start with the same digit, which is returned.
fn many(scratch: &Scratch) -> String {
    let mut firsts = BTreeSet::new();
    loop {
        let made = Voltar::new(scratch).args(words("backup dir/disk many.voltar")).json();
        let first = made["snapshot"].as_str().unwrap()[..1].to_string();
        if !firsts.insert(first.clone()) {
            return first;
        }
    }
}

/// Ids and checksums, which differ from run to run, as `ID`.
fn without_ids(text: &str) -> String {
    let mut out = String::new();
    let mut word = String::new();
    for c in text.chars().chain(['\0']) {
        match c.is_ascii_alphanumeric() {
            true => word.push(c),
            false => {
                let digits = word.strip_prefix("0x").unwrap_or(&word);
                let is_id = word.len() >= 8
                    && digits.chars().all(|c| c.is_ascii_hexdigit())
                    && word.chars().any(|c| c.is_ascii_digit())
                    && word != "0123456789abcdef";
                out.push_str(if is_id { "ID" } else { &word });
                word.clear();
                out.push(c);
            }
        }
    }
    out.pop();
    out
}
