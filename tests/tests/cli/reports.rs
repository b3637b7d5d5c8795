//! What reports and failures must not keep quiet, and what they must not say.

use std::os::unix::fs::PermissionsExt;
use std::{fs, path::Path};

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use voltar_tests::command::words;
use voltar_tests::data::{assert_same, disk};
use voltar_tests::{Rng, Scratch, Voltar, is_root, skip};

fn voltar(scratch: &Scratch, line: &str) -> Voltar {
    Voltar::new(scratch).args(words(line))
}

/// An archive of as many snapshots of one volume.
fn snapshots(count: u64) -> Scratch {
    let scratch = Scratch::new();
    for seed in 0..count {
        scratch.write("disk", &disk(seed, 300_000));
        voltar(&scratch, "backup disk a.voltar").ok();
    }
    scratch
}

fn records(scratch: &Scratch, kind: &str) -> Vec<(u64, u64)> {
    let inspect = voltar(scratch, "inspect a.voltar").json();
    let records = inspect["records"].as_array().unwrap().iter();
    let place =
        |record: &Value| (record["offset"].as_u64().unwrap(), record["length"].as_u64().unwrap());
    records.filter(|record| record["kind"] == kind).map(place).collect()
}

/// Spoils both copies of a commit.
fn lose(scratch: &Scratch, commit: (u64, u64)) {
    for copy in [0, commit.1 / 2] {
        scratch.flip("a.voltar", commit.0 + copy + 200, 0);
    }
}

#[test]
fn a_lost_commit_in_the_middle_is_a_lost_snapshot() {
    let scratch = snapshots(3);
    let list = voltar(&scratch, "list a.voltar").json();
    let id = |at: usize| list["snapshots"][at]["id"].clone();
    assert_eq!((&list["complete"], &list["lost_commits"]), (&json!(true), &json!([])));
    let commit = records(&scratch, "commit")[1];
    lose(&scratch, commit);
    let lost = json!([{
        "offset": commit.0, "length": commit.1, "commits": 1, "after": id(0), "before": id(2),
    }]);
    for line in ["list a.voltar", "verify a.voltar", "verify a.voltar --stored"] {
        let ran = voltar(&scratch, &format!("{line} --json")).run().expect(3);
        let object = ran.json();
        assert_eq!(object["lost_commits"], lost, "{line}");
        assert_eq!(object["lost_snapshots"], json!([id(1)]), "{line}");
        let ran = voltar(&scratch, line).run().expect(3);
        assert!(ran.text().contains("1 commit lost at "), "{line}: {}", ran.text());
        let name = format!("lost snapshot {}\n", &id(1).as_str().unwrap()[..12]);
        assert!(ran.text().contains(&name), "{line}: {}", ran.text());
        assert!(ran.stderr.contains("the snapshot that it made"), "{line}: {}", ran.stderr);
        assert!(ran.stderr.contains("--salvage"), "{line}: {}", ran.stderr);
    }
    let left = voltar(&scratch, "list a.voltar --json").run().json();
    assert_eq!(left["snapshots"].as_array().unwrap().len(), 2);
}

#[test]
fn the_newest_commit_is_missed_where_something_follows_it() {
    let scratch = snapshots(2);
    scratch.write("disk", &Rng::new(9).bytes(3 << 20));
    // Fails when everything else is stored, and leaves that behind the last commit.
    voltar(&scratch, "backup disk a.voltar --attach endless=/dev/zero").run().expect(1);
    lose(&scratch, records(&scratch, "commit")[1]);
    let object = voltar(&scratch, "list a.voltar --json").run().expect(3).json();
    let lost = &object["lost_commits"][0];
    assert_eq!((&lost["commits"], &lost["before"]), (&Value::Null, &Value::Null), "{object}");
    assert_eq!(lost["after"], object["snapshots"][0]["id"]);
    assert_eq!(object["snapshots"].as_array().unwrap().len(), 1);
}

#[test]
fn a_diff_tells_sizes_and_volumes_that_differ() {
    let scratch = Scratch::new();
    let bytes = disk(3, 500_000);
    scratch.write("disk", &bytes);
    scratch.write("gone", &bytes[..100_000]);
    voltar(&scratch, "backup disk gone a.voltar").ok();
    scratch.write("disk", &bytes[..131_072]);
    scratch.write("new", &bytes[..100_000]);
    voltar(&scratch, "backup disk new a.voltar").ok();
    let object = voltar(&scratch, "diff a.voltar latest~1 latest").json();
    assert_eq!((&object["old_size"], &object["new_size"]), (&json!(500_000), &json!(131_072)));
    let names = |which: &str| object[which][0]["name"].clone();
    assert_eq!((names("only_old"), names("only_new")), (json!("gone"), json!("new")));
    let text = voltar(&scratch, "diff a.voltar latest~1 latest").ok().text();
    for line in [
        "shrank from 500000 to 131072 bytes\n",
        "only in the older snapshot: volume gone, 97.7 KiB\n",
        "only in the newer snapshot: volume new, 97.7 KiB\n",
    ] {
        assert!(text.contains(line), "{line:?} in {text}");
    }
    assert!(!text.contains("nothing changed"), "{text}");
    let text = voltar(&scratch, "diff a.voltar latest latest~1").ok().text();
    assert!(text.contains("grew from 131072 to 500000 bytes\n"), "{text}");
    let one = voltar(&scratch, "diff a.voltar latest~1 latest --volume disk").json();
    assert_eq!((&one["only_old"], &one["only_new"]), (&json!([]), &json!([])));
}

#[test]
fn a_sample_looks_at_something_and_says_at_what() {
    let scratch = snapshots(4);
    let whole = voltar(&scratch, "verify a.voltar").json();
    assert!(whole["sample"].is_null());
    for (percent, segments) in [("0.01", 1), ("30", 2), ("100", 4)] {
        let line = format!("verify a.voltar --sample {percent}");
        let object = voltar(&scratch, &line).json();
        let sample = &object["sample"];
        assert_eq!((&sample["segments"], &sample["of"]), (&json!(segments), &json!(4)), "{line}");
        assert!(object["frames"].as_u64().unwrap() > 0, "{object}");
        let text = voltar(&scratch, &line).ok().text();
        let words = format!("a sample of {percent} %: {segments} of 4 data segments read");
        assert!(text.contains(&words), "{text}");
    }
}

#[test]
fn what_goes_by_the_log_is_not_for_one_snapshot() {
    let scratch = snapshots(1);
    for line in ["verify a.voltar@latest --resume", "verify a.voltar@latest --sample 10"] {
        let ran = voltar(&scratch, line).run().expect(2);
        assert!(ran.stderr.contains("is for whole archives"), "{}", ran.stderr);
    }
    assert!(!scratch.path("state").exists(), "it left a note");
}

#[test]
fn foreign_text_is_harmless_wherever_it_is_printed() {
    let scratch = Scratch::new();
    let (escape, bidi, c1) = ("\u{1b}[2J", "\u{202e}", "\u{9b}");
    let name = format!("vm{escape}{bidi}{c1}x");
    scratch.write(&name, &disk(1, 100_000));
    let back_up = || Voltar::new(&scratch).arg("backup").arg(&name).arg("a.voltar");
    let tag = format!("k={escape}{c1}");
    let harmful = |text: &str| {
        text.chars().any(|c| c.is_control() && c != '\n') || text.contains(['\u{202e}', '\u{2066}'])
    };
    let mut printed = vec![back_up().arg("--tag").arg(&tag).ok(), back_up().arg("--json").ok()];
    for line in [
        "list a.voltar",
        "show a.voltar",
        "diff a.voltar latest~1 latest",
        "verify a.voltar",
        "inspect a.voltar",
        "restore a.voltar out --dry-run",
    ] {
        printed.push(voltar(&scratch, line).ok());
        printed.push(voltar(&scratch, &format!("{line} --json")).ok());
    }
    // What was typed comes back in errors: of ours, and of the parser's.
    printed.push(Voltar::new(&scratch).arg("list").arg(&name).run().expect(1));
    printed.push(voltar(&scratch, "list a.voltar").arg(format!("--{name}")).run().expect(2));
    let json = voltar(&scratch, "list a.voltar --json").arg(format!("--{name}"));
    printed.push(json.run().expect(2));
    for ran in &printed {
        assert!(!harmful(&ran.text()) && !harmful(&ran.stderr), "{ran:?}");
    }
    // Escaped, not changed.
    let list = voltar(&scratch, "list a.voltar").json();
    assert_eq!(list["snapshots"][0]["volumes"][0]["name"], name);
}

#[test]
fn a_rehearsal_refuses_what_the_run_would_refuse() {
    let scratch = Scratch::new();
    scratch.write("disk", &disk(1, 100_000));
    voltar(&scratch, "backup disk a.voltar").ok();
    voltar(&scratch, "backup one=disk two=disk two.voltar").ok();
    scratch.write("full.img", &[1; 100_000]);
    scratch.write("read-only.img", b"");
    let read_only = fs::Permissions::from_mode(0o444);
    fs::set_permissions(scratch.path("read-only.img"), read_only).unwrap();
    fs::create_dir(scratch.path("dir")).unwrap();
    std::os::unix::fs::symlink("nowhere", scratch.path("link")).unwrap();
    let before = scratch.contents();
    for (code, line) in [
        (5, "restore a.voltar full.img"),
        (5, "restore a.voltar read-only.img"),
        (5, "restore a.voltar disk/"),
        (1, "restore a.voltar link/"),
        (5, "restore a.voltar a.voltar --overwrite"),
        (1, "restore a.voltar nowhere/new.img"),
        (1, "restore a.voltar disk/new.img"),
        (1, "restore a.voltar link"),
        (1, "restore a.voltar /dev/voltar-no-such-device"),
        (1, "restore two.voltar one=new.img two=dir/../new.img"),
    ] {
        let rehearsed = voltar(&scratch, &format!("{line} --dry-run")).run().expect(code);
        let run = voltar(&scratch, line).run().expect(code);
        let first = |text: &str| text.lines().next().unwrap_or_default().to_owned();
        assert_eq!(first(&rehearsed.stderr), first(&run.stderr), "{line}");
        assert!(rehearsed.stderr.starts_with("error: "), "{line}: {}", rehearsed.stderr);
        let said = rehearsed.stderr.matches(" was written").count();
        assert_eq!(said, 1, "{line}: {}", rehearsed.stderr);
        assert_eq!(run.stderr.matches(" was written").count(), 1, "{line}: {}", run.stderr);
    }
    assert!(scratch.contents() == before, "a refusal changed something");
}

#[test]
fn nothing_is_discarded_for_an_archive_whose_maps_are_lost() {
    let scratch = snapshots(1);
    let (offset, length) = records(&scratch, "data")[0];
    // Nodes are the last that a segment holds: what the index leads to is not there.
    scratch.patch("a.voltar", offset + 4096, &vec![0; length as usize - 4096]);
    let old = Rng::new(7).bytes(300_000);
    scratch.write("target", &old);
    let line = "restore a.voltar target --overwrite --discard auto --delta off";
    let ran = voltar(&scratch, line).run().expect(3);
    assert!(ran.stderr.contains("not a byte of the target was written"), "{}", ran.stderr);
    assert_same(&scratch.read("target"), &old, "the target");
}

#[test]
fn without_a_place_for_notes_a_restore_goes_on_and_says_so() {
    let test = "without_a_place_for_notes_a_restore_goes_on_and_says_so";
    let scratch = Scratch::new();
    scratch.write("disk", &disk(1, 300_000));
    voltar(&scratch, "backup disk a.voltar").ok();
    let nobody = homeless(&scratch);
    let Some(nobody) = nobody else {
        return skip(test, "no `setpriv`, and root always has a place");
    };
    let ran = nobody.args(words("restore a.voltar out --json")).ok();
    assert!(ran.stderr.contains("started again with --overwrite"), "{}", ran.stderr);
    let warnings = ran.json()["warnings"].clone();
    assert!(warnings[0].as_str().unwrap().contains("XDG_STATE_HOME"), "{warnings}");
    assert_same(&scratch.read("out"), &scratch.read("disk"), "without notes");
}

/// The program without XDG_STATE_HOME and HOME, as a user who is not root.
fn homeless(scratch: &Scratch) -> Option<Voltar> {
    let bare = |words: &[&str]| {
        let voltar = Voltar::instead(scratch, words);
        voltar.without("XDG_STATE_HOME").without("HOME")
    };
    if !is_root() {
        return Some(bare(&[voltar_tests::program().to_str()?]));
    }
    // The program may lie where nobody may look.
    let copy = scratch.path("program");
    fs::copy(voltar_tests::program(), &copy).unwrap();
    let open = fs::Permissions::from_mode(0o777);
    for path in [&copy, Path::new(scratch.dir()), &scratch.path("a.voltar")] {
        fs::set_permissions(path, open.clone()).unwrap();
    }
    let setpriv = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"];
    let works = std::process::Command::new(setpriv[0]).args(&setpriv[1..]).arg("true").status();
    works
        .is_ok_and(|status| status.success())
        .then(|| bare(&[&setpriv[..], &[copy.to_str().expect("a plain path")]].concat()))
}

#[test]
fn that_there_will_be_no_note_is_said_before_it_matters() {
    let scratch = Scratch::new();
    scratch.write("disk", &Rng::new(1).bytes(16 << 20));
    voltar(&scratch, "backup disk a.voltar").ok();
    let file = scratch.write("file", b"no directory");
    let out = scratch.path("out");
    let mut running = voltar(&scratch, "restore a.voltar out --limit 4M --json")
        .env("XDG_STATE_HOME", &file)
        .start();
    let written = || std::os::unix::fs::MetadataExt::blocks(&out.metadata().unwrap()) > 0;
    assert!(running.until(|| out.exists() && written()), "it ended too early");
    running.signal(Signal::SIGINT);
    let ran = running.wait().expect(130);
    assert!(ran.stderr.contains("cannot keep a note in "), "{}", ran.stderr);
    let object = ran.json();
    assert!(object["warnings"][0].as_str().unwrap().contains("cannot keep a note"), "{object}");
    assert_eq!(object["volumes"][0]["complete"], false);
}

#[test]
fn what_an_interrupted_backup_left_is_no_damage_to_salvage() {
    let scratch = snapshots(1);
    scratch.write("disk", &Rng::new(5).bytes(3 << 20));
    voltar(&scratch, "backup disk a.voltar --attach endless=/dev/zero").run().expect(1);
    let ran = voltar(&scratch, "inspect a.voltar --salvage new.voltar").ok();
    assert!(ran.text().contains("an unfinished backup's"), "{}", ran.text());
    assert!(ran.text().contains("complete  new.voltar: 2 snapshots"), "{}", ran.text());
    assert_eq!(
        voltar(&scratch, "list new.voltar").json()["snapshots"].as_array().unwrap().len(),
        2
    );
    // A finished one whose commit is lost is.
    let scratch = snapshots(2);
    lose(&scratch, records(&scratch, "commit")[1]);
    let line = "inspect a.voltar --salvage new.voltar --json";
    assert_eq!(voltar(&scratch, line).run().expect(3).json()["complete"], false);
}
