//! A folder as the target: every volume and every attached file of a snapshot, whatever they are
//! called.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use voltar_engine::backup;
use voltar_engine::options::{
    ArchiveHome, BackupRequest, Changes, Compression, Context, Dedup, OnReadError, ParentChoice,
    Place, SourceRequest,
};
use voltar_tests::command::words;
use voltar_tests::data::{assert_same, disk};
use voltar_tests::device::system;
use voltar_tests::{Ran, Scratch, Voltar, nbd};

const MIB: usize = 1 << 20;

fn voltar(scratch: &Scratch, line: &str) -> Voltar {
    Voltar::new(scratch).args(words(line))
}

/// A refused restore, which must have left everything as it was.
#[track_caller]
fn refused(scratch: &Scratch, line: &str) -> Ran {
    let before = scratch.contents();
    let ran = voltar(scratch, line).run().expect(5);
    assert!(scratch.contents() == before, "{line}: something was written");
    ran
}

/// An archive of two volumes with a machine's facts and a secret.
fn machine(scratch: &Scratch) -> (Vec<u8>, Vec<u8>) {
    let (root, data) = (disk(31, 3 * MIB + 77), disk(32, 2 * MIB));
    scratch.write("root.img", &root);
    scratch.write("data.img", &data);
    scratch.write("secret", b"correct horse");
    let facts = json!({
        "version": 1, "program": "qemu-system-x86_64", "machine": "pc-q35-7.2", "name": "web",
        "memory_bytes": 1 << 30, "cpus": 2, "disks": [
            {"volume": "vd1", "driver": "scsi-hd"},
            {"volume": "vd0", "driver": "virtio-blk-pci"},
        ],
    });
    scratch.write("qemu.json", facts.to_string().as_bytes());
    let line = "backup vd0=root.img vd1=data.img a.voltar --attach qemu.json --attach secret";
    voltar(scratch, line).ok();
    (root, data)
}

/// An archive of volumes and attached files with names that no command line takes.
fn forge(scratch: &Scratch, volumes: &[&str], attached: &[&str]) -> Vec<u8> {
    let bytes = disk(33, MIB);
    let path = scratch.write("disk.img", &bytes);
    let file = scratch.write("note", b"a note");
    let source =
        |name: &&str| SourceRequest { name: (*name).into(), place: Place::Path(path.clone()) };
    let request = BackupRequest {
        sources: volumes.iter().map(source).collect(),
        archive: ArchiveHome::File(scratch.path("a.voltar")),
        parent: ParentChoice::None,
        changes: Changes::Full,
        audit_share: 0.0,
        compression: Compression::Store,
        chunk_len: None,
        attach: attached.iter().map(|name| ((*name).into(), file.clone())).collect(),
        tags: Default::default(),
        dedup: Dedup::On,
        on_read_error: OnReadError::Fail,
        holding: Default::default(),
        dry_run: false,
    };
    backup::run(&request, &Context::default()).unwrap();
    bytes
}

/// Who may do what with a file or a folder.
fn permissions(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

fn names_in(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_snapshot_goes_into_a_folder() {
    let scratch = Scratch::new();
    let (root, data) = machine(&scratch);
    let report = voltar(&scratch, "restore a.voltar vm/ --read-back").json();
    assert_same(&scratch.read("vm/vd0.raw"), &root, "vd0");
    assert_same(&scratch.read("vm/vd1.raw"), &data, "vd1");
    for name in ["qemu.json", "secret"] {
        assert_eq!(scratch.read(&format!("vm/{name}")), scratch.read(name));
    }
    for name in ["qemu.json", "secret", "vd0.raw", "vd1.raw"] {
        assert_eq!(permissions(&scratch.path("vm").join(name)), 0o600, "{name}");
    }
    assert_eq!(permissions(&scratch.path("vm")), 0o700);
    assert_eq!(names_in(&scratch.path("vm")), ["qemu.json", "secret", "vd0.raw", "vd1.raw"]);
    assert_eq!((&report["directory"], &report["read_back"]), (&json!("vm"), &json!(true)));
    assert_eq!(report["volumes"][0]["target"], "vm/vd0.raw");
    let secret = json!({"name": "secret", "path": "vm/secret", "bytes": 13, "complete": true});
    assert_eq!(report["attached"][1], secret);
    let command = "qemu-system-x86_64 -machine pc-q35-7.2 -accel kvm -accel tcg -m 1024M -smp 2 \
                   -name guest=web -device virtio-scsi-pci \
                   -drive file=./vm/vd1.raw,format=raw,if=none,id=vd1 -device scsi-hd,drive=vd1 \
                   -drive file=./vm/vd0.raw,format=raw,if=none,id=vd0 \
                   -device virtio-blk-pci,drive=vd0";
    assert_eq!(report["start"], json!([command]));

    // Once more: what is there is not overwritten, unless that is allowed; then nothing differs.
    refused(&scratch, "restore a.voltar vm");
    let report = voltar(&scratch, "restore a.voltar vm --overwrite").json();
    assert_eq!(report["volumes"][0]["written_bytes"], 0, "{report}");
    let one = voltar(&scratch, "restore a.voltar one/ --volume vd1").json();
    assert_eq!(one["volumes"].as_array().unwrap().len(), 1);
    assert_eq!(names_in(&scratch.path("one")), ["qemu.json", "secret", "vd1.raw"]);
}

#[test]
fn people_read_how_the_machine_is_started_or_what_its_disks_are() {
    let scratch = Scratch::new();
    machine(&scratch);
    let text = voltar(&scratch, "restore a.voltar vm/").ok().text();
    assert!(text.contains("attached: vm/secret (13 B)\n"), "{text}");
    assert!(text.contains("\nto start it:\n  qemu-system-x86_64 -machine pc-q35-7.2 "), "{text}");
    voltar(&scratch, "backup vda=root.img b.voltar").ok();
    let text = voltar(&scratch, "restore b.voltar plain/").ok().text();
    assert!(text.ends_with("\ndisk: plain/vda.raw, 3.00 MiB\n"), "{text}");
    scratch.write("domain.xml", b"<domain/>");
    voltar(&scratch, "backup vda=root.img c.voltar --attach domain.xml").ok();
    let ran = voltar(&scratch, "restore c.voltar libvirt/").ok();
    assert!(ran.text().ends_with("\nto start it:\n  virsh define ./libvirt/domain.xml\n"));
    assert!(ran.stderr.contains("vda is libvirt/vda.raw (raw)"), "{}", ran.stderr);
    assert!(ran.stderr.contains("decides what runs on this host"), "{}", ran.stderr);
}

#[test]
fn what_a_stranger_attached_is_told_to_be_read_and_not_repeated() {
    let scratch = Scratch::new();
    scratch.write("root.img", &disk(34, MIB));
    let facts = json!({
        "version": 1, "program": "/opt/evil/qemu-system-x86_64", "machine": "q35", "cpus": 0,
        "firmware": "/home/user/.ssh/id_ed25519", "disks": [],
    });
    scratch.write("qemu.json", facts.to_string().as_bytes());
    let domain = "<domain><devices><emulator>/bin/evil</emulator></devices></domain>";
    scratch.write("domain.xml", domain.as_bytes());
    let mut long = facts.to_string().into_bytes();
    long.resize((1 << 20) + 1, b' ');
    scratch.write("long", &long);
    let line = "backup vda=root.img a.voltar --attach qemu.json --attach domain.xml \
                --attach b.qemu.json=long";
    voltar(&scratch, line).ok();
    let ran = voltar(&scratch, "restore a.voltar vm/").ok();
    let (text, notes) = (ran.text(), &ran.stderr);
    assert!(text.contains("\n  qemu-system-x86_64 -machine q35 -accel kvm "), "{text}");
    for note in [
        "what ./vm/qemu.json has as `cpus` does not fit",
        "./vm/qemu.json names firmware that is not among the host's own",
        "./vm/domain.xml decides what runs on this host",
        "which are in it: <emulator>\n",
        "./vm/b.qemu.json is longer than 1048576 bytes",
    ] {
        assert!(notes.contains(note), "{note}: {notes}");
    }
    for lie in ["evil", "id_ed25519"] {
        assert!(!notes.contains(lie) && !text.contains(lie), "{lie}: {notes}{text}");
    }
}

#[test]
fn volumes_do_not_follow_links_out_of_the_folder() {
    let scratch = Scratch::new();
    let (_, data) = machine(&scratch);
    let victim = scratch.write("victim", b"not yours");
    let missing = scratch.path("missing");
    fs::create_dir(scratch.path("vm")).unwrap();
    let put: [&dyn Fn(&Path); 3] = [
        &|path| symlink(&victim, path).unwrap(),
        &|path| symlink(&missing, path).unwrap(),
        &|path| fs::create_dir(path).unwrap(),
    ];
    for format in ["raw", "qcow2"] {
        let place = scratch.path(&format!("vm/vd1.{format}"));
        for put in put {
            put(&place);
            let line = format!("restore a.voltar vm/ --overwrite --format {format}");
            let ran = refused(&scratch, &line);
            assert!(ran.stderr.contains("is there and no file: vm/vd1"), "{}", ran.stderr);
            fs::remove_file(&place).or_else(|_| fs::remove_dir(&place)).unwrap();
        }
    }
    // The folder itself may be behind a link: the user named it.
    symlink("vm", scratch.path("link")).unwrap();
    voltar(&scratch, "restore a.voltar link/").ok();
    assert_same(&scratch.read("vm/vd1.raw"), &data, "vd1");
}

#[test]
fn a_folder_takes_one_restore_at_a_time() {
    let scratch = Scratch::new();
    let (root, _) = machine(&scratch);
    scratch.write("other", b"of another machine");
    voltar(&scratch, "backup other=data.img b.voltar --attach other").ok();
    for is_new in [true, false] {
        let mut first = voltar(&scratch, "restore a.voltar vm/ --overwrite --limit 1M").start();
        let begun = || fs::metadata(scratch.path("vm/vd0.raw")).is_ok_and(|it| it.blocks() > 0);
        assert!(first.until(begun));
        for line in ["restore b.voltar vm/", "restore b.voltar vm/ --dry-run"] {
            let second = voltar(&scratch, line).run().expect(5);
            let why = "another restore writes into this folder: vm";
            assert!(second.stderr.contains(why), "{is_new}: {}", second.stderr);
        }
        assert!(first.wait().expect(0).stderr.is_empty());
        let files = names_in(&scratch.path("vm"));
        assert_eq!(files, ["qemu.json", "secret", "vd0.raw", "vd1.raw"], "{is_new}");
        assert_same(&scratch.read("vm/vd0.raw"), &root, "vd0");
        // For the next round to have something to write.
        scratch.write("vm/vd0.raw", b"");
    }
    voltar(&scratch, "restore b.voltar vm/").ok();
    assert_eq!(scratch.read("vm/other"), b"of another machine");
}

#[test]
fn names_do_not_leave_the_folder() {
    let scratch = Scratch::new();
    let volumes = ["../out", "/etc/passwd", ".", "..", "a\nb", "ok"];
    let attached = ["../../etc/cron.d/x", ".bashrc", "\u{1b}[2J", "..", "100%"];
    let bytes = forge(&scratch, &volumes, &attached);
    fs::create_dir_all(scratch.path("deep/er")).unwrap();
    voltar(&scratch, "restore a.voltar deep/er/vm/").ok();
    let raw =
        ["%2E..raw", "%2E.%2Fout.raw", "%2E.raw", "%2Fetc%2Fpasswd.raw", "a%0Ab.raw", "ok.raw"];
    let notes = ["%1B[2J", "%2E.", "%2E.%2F..%2Fetc%2Fcron.d%2Fx", "%2Ebashrc", "100%25"];
    let mut all: Vec<&str> = raw.into_iter().chain(notes).collect();
    all.sort_unstable();
    assert_eq!(names_in(&scratch.path("deep/er/vm")), all);
    for name in raw {
        assert_same(&scratch.read(&format!("deep/er/vm/{name}")), &bytes, name);
    }
    for name in notes {
        assert_eq!(scratch.read(&format!("deep/er/vm/{name}")), b"a note", "{name}");
    }
    assert_eq!(names_in(&scratch.path("deep")), ["er"]);
    assert_eq!(names_in(&scratch.path("deep/er")), ["vm"]);
}

#[test]
fn names_that_meet_or_are_too_long_are_refused() {
    let long = "n".repeat(255);
    let cases: [(&[&str], &[&str], &str); 3] = [
        (&["vd0"], &["vd0.raw"], "would be one file"),
        (&["vd0"], &[&long], "too long"),
        (&[&long], &[], "too long"),
    ];
    for (volumes, attached, why) in cases {
        let scratch = Scratch::new();
        forge(&scratch, volumes, attached);
        for line in ["restore a.voltar vm/", "restore a.voltar vm/ --dry-run --overwrite"] {
            let ran = refused(&scratch, line);
            assert!(ran.stderr.contains(why), "{}", ran.stderr);
        }
        assert!(!scratch.path("vm").exists());
    }
}

#[test]
fn files_in_the_place_of_attached_ones_are_not_lost() {
    let scratch = Scratch::new();
    machine(&scratch);
    fs::create_dir(scratch.path("vm")).unwrap();
    let secret = scratch.write("vm/secret", b"mine, not yours");
    assert!(refused(&scratch, "restore a.voltar vm/").stderr.contains("another file is there"));
    // What is equal stays what it is.
    scratch.write("vm/secret", b"correct horse");
    let inode = fs::metadata(&secret).unwrap().ino();
    voltar(&scratch, "restore a.voltar vm/").ok();
    assert_eq!(fs::metadata(&secret).unwrap().ino(), inode);
    // As long, and not equal; then links, folders and the archive itself, whatever is allowed.
    scratch.write("vm/secret", b"correct force");
    voltar(&scratch, "restore a.voltar vm/ --overwrite").ok();
    assert_eq!(scratch.read("vm/secret"), b"correct horse");
    let put: [&dyn Fn(&PathBuf); 3] = [
        &|path| symlink(scratch.path("root.img"), path).unwrap(),
        &|path| fs::create_dir(path).unwrap(),
        &|path| fs::hard_link(scratch.path("a.voltar"), path).unwrap(),
    ];
    for (number, put) in put.into_iter().enumerate() {
        fs::remove_file(&secret).or_else(|_| fs::remove_dir(&secret)).unwrap();
        put(&secret);
        let ran = refused(&scratch, "restore a.voltar vm/ --overwrite");
        assert!(ran.stderr.contains("vm/secret"), "{number}: {}", ran.stderr);
    }
}

#[test]
fn a_rehearsal_makes_nothing() {
    let scratch = Scratch::new();
    machine(&scratch);
    let before = scratch.contents();
    let report = voltar(&scratch, "restore a.voltar vm/ --dry-run").json();
    assert!(scratch.contents() == before && !scratch.path("vm").exists());
    assert_eq!(report["volumes"].as_array().unwrap().len(), 2);
    assert_eq!(report["attached"][0]["path"], "vm/qemu.json");
    assert_eq!(report["start"].as_array().unwrap().len(), 1);
}

#[test]
fn what_was_killed_is_finished_by_the_same_command() {
    let scratch = Scratch::new();
    let (root, data) = machine(&scratch);
    let line = "restore a.voltar vm/ --limit 1M";
    let mut running = voltar(&scratch, line).start();
    let second = scratch.path("vm/vd1.raw");
    let begun = || fs::metadata(&second).is_ok_and(|data| data.blocks() > 0);
    let was_begun = running.until(begun);
    running.signal(Signal::SIGKILL);
    assert!(was_begun && running.wait().signal() == Some(Signal::SIGKILL as i32));
    // As one that was killed while it wrote an attached file would leave it.
    scratch.write("vm/.voltar-unfinished", b"half");
    fs::remove_file(scratch.path("vm/secret")).unwrap();
    let report = voltar(&scratch, "restore a.voltar vm/ --read-back").json();
    assert_same(&scratch.read("vm/vd0.raw"), &root, "vd0");
    assert_same(&scratch.read("vm/vd1.raw"), &data, "vd1");
    assert_eq!(report["volumes"][0]["written_bytes"], 0, "it was there: {report}");
    assert_eq!(names_in(&scratch.path("vm")), ["qemu.json", "secret", "vd0.raw", "vd1.raw"]);
    assert!(names_in(&scratch.path("state/voltar")).is_empty());
}

#[test]
fn an_interrupted_restore_to_images_starts_over() {
    let test = "an_interrupted_restore_to_images_starts_over";
    let Some(scratch) = nbd::scratch(test) else { return };
    let (root, _) = machine(&scratch);
    for signal in [Signal::SIGKILL, Signal::SIGINT] {
        let line = "restore a.voltar vm/ --format qcow2 --limit 500K";
        let mut running = voltar(&scratch, line).start();
        let made = running.until(|| scratch.path("vm/.vd1.qcow2.voltar-unfinished").exists());
        std::thread::sleep(Duration::from_millis(300));
        running.signal(signal);
        assert!(made);
        running.wait();
        let report = voltar(&scratch, "restore a.voltar vm/ --format qcow2 --read-back").json();
        let command = report["start"][0].as_str().unwrap();
        assert!(command.contains("file=./vm/vd0.qcow2,format=qcow2,"), "{command}");
        let files = names_in(&scratch.path("vm"));
        assert_eq!(files, ["qemu.json", "secret", "vd0.qcow2", "vd1.qcow2"]);
        assert_eq!(permissions(&scratch.path("vm/vd0.qcow2")), 0o600);
        for (image, source) in [("vd0", "root.img"), ("vd1", "data.img")] {
            let image = scratch.path(&format!("vm/{image}.qcow2")).display().to_string();
            let source = scratch.path(source).display().to_string();
            let args = ["compare", "-f", "qcow2", "-F", "raw", &image, &source];
            system("qemu-img", &args).unwrap();
        }
        // An image that is there is not overwritten.
        refused(&scratch, "restore a.voltar vm/ --format qcow2 --overwrite");
        fs::remove_dir_all(scratch.path("vm")).unwrap();
    }
    assert_same(&scratch.read("root.img"), &root, "the source");
}

#[test]
fn attached_files_that_are_lost_stop_the_restore_or_are_told() {
    let scratch = Scratch::new();
    let (root, _) = machine(&scratch);
    let archive = scratch.read("a.voltar");
    let at = archive.windows(13).position(|bytes| bytes == b"correct horse").unwrap();
    scratch.flip("a.voltar", at as u64, 2);
    let before = scratch.contents();
    let ran = voltar(&scratch, "restore a.voltar vm/").run().expect(3);
    assert!(ran.stderr.contains("cannot give the attached file"), "{}", ran.stderr);
    assert!(scratch.contents() == before);
    let ran = voltar(&scratch, "restore a.voltar vm/ --on-damage zero --json").run().expect(3);
    let report: Value = ran.json();
    let complete: Vec<_> =
        report["attached"].as_array().unwrap().iter().map(|it| &it["complete"]).collect();
    assert!(complete.contains(&&json!(false)), "{report}");
    assert_eq!(report["error"]["code"], 3);
    assert!(!scratch.path("vm/secret").exists());
    assert_same(&scratch.read("vm/vd0.raw"), &root, "vd0");
}
