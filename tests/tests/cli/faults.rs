//! File systems that are full or turn read-only, and devices that fail, under real
//! runs. Needs root.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use nix::errno::Errno;
use nix::libc::SYS_fsync;
use serde_json::Value;
use voltar_tests::command::words;
use voltar_tests::device::system;
use voltar_tests::filter::Refusal;
use voltar_tests::sectors::{compare, stamped};
use voltar_tests::{Loop, Mount, Ran, Running, Scratch, Voltar, is_root, skip};

const MIB: usize = 1 << 20;

fn voltar(scratch: &Scratch, line: &str) -> Voltar {
    Voltar::new(scratch).args(words(line))
}

/// `made`, or a skip of `test`.
fn or_skip<T>(test: &str, made: impl FnOnce() -> Result<T, String>) -> Option<T> {
    if !is_root() {
        skip(test, "loop devices and mounts need root");
        return None;
    }
    made().map_err(|why| skip(test, &why)).ok()
}

/// An ext4 on a loop device. Unmounted before it is detached.
struct Ext4 {
    mount: Mount,
    device: Loop,
}

impl Ext4 {
    /// Of `len` bytes, mounted at `name`; with more arguments for `mkfs.ext4` and for `mount -o`.
    fn new(scratch: &Scratch, name: &str, len: usize, mkfs: &str, o: &str) -> Result<Ext4, String> {
        let image = scratch.write(&format!("{name}.img"), &[]);
        resize(&image, len);
        let device = Loop::new(&image, 512)?;
        let args = format!("-q {mkfs} {}", device.arg());
        system("mkfs.ext4", &args.split_whitespace().collect::<Vec<_>>())?;
        let mount = Mount::with(device.arg(), &scratch.path(name), o)?;
        Ok(Ext4 { mount, device })
    }

    /// Makes the kernel believe that it found an error in it.
    fn spoil(&self) -> Result<(), String> {
        let name = self.device.path().file_name().unwrap().to_str().unwrap();
        let trigger = format!("/sys/fs/ext4/{name}/trigger_fs_error");
        fs::write(&trigger, "1").map_err(|error| format!("{trigger}: {error}"))
    }
}

fn resize(file: &Path, len: usize) {
    File::options().write(true).open(file).unwrap().set_len(len as u64).unwrap();
}

fn len(file: &Path) -> usize {
    fs::metadata(file).map_or(0, |metadata| metadata.len() as usize)
}

fn number(object: &Value, name: &str) -> usize {
    object[name].as_u64().unwrap_or_else(|| panic!("{name} in {object}")) as usize
}

#[track_caller]
fn assert_sectors(got: &[u8], want: &[u8], what: &str) {
    if let Err(wrong) = compare(got, want) {
        panic!("{what}: {wrong}");
    }
}

/// A run that failed as it should: nothing was committed, and it says so.
#[track_caller]
fn assert_not_committed(ran: Ran, kind: &str) {
    let ran = ran.expect(1);
    assert_eq!(ran.json()["error"]["kind"], kind, "{}", ran.stderr);
    assert!(ran.stderr.contains("nothing was committed"), "{}", ran.stderr);
}

/// The archive holds the one snapshot `bytes`, and is whole.
#[track_caller]
fn assert_holds(scratch: &Scratch, archive: &str, bytes: &[u8]) {
    let verify = voltar(scratch, &format!("verify {archive}")).json();
    assert_eq!((&verify["ok"], &verify["snapshots"]), (&true.into(), &1.into()), "{verify}");
    assert_restores(scratch, archive, bytes, 0);
}

/// A restore of the newest snapshot ends with this exit code and gives these bytes.
#[track_caller]
fn assert_restores(scratch: &Scratch, archive: &str, bytes: &[u8], code: i32) {
    voltar(scratch, &format!("restore {archive} out")).run().expect(code);
    assert_sectors(&scratch.read("out"), bytes, archive);
    fs::remove_file(scratch.path("out")).unwrap();
}

/// Waits until `path` is `len` bytes long.
#[track_caller]
fn until_long(running: &mut Running, path: &Path, bytes: usize) {
    assert!(running.until(|| len(path) >= bytes), "it ended too early");
}

#[test]
fn an_archive_on_a_full_ext4_goes_on_when_there_is_room() {
    let test = "an_archive_on_a_full_ext4_goes_on_when_there_is_room";
    let scratch = Scratch::new();
    let small = || Ext4::new(&scratch, "home", 128 * MIB, "", "rw");
    let Some(home) = or_skip(test, small) else { return };
    let old = stamped(1, 0, 1, 2 * MIB);
    scratch.write("disk", &old);
    voltar(&scratch, "backup disk home/a.voltar").ok();
    fs::write(home.mount.path().join("ballast"), vec![1; 50 * MIB]).unwrap();
    let new = stamped(1, 0, 2, 80 * MIB);
    scratch.write("disk", &new);
    assert_not_committed(voltar(&scratch, "backup disk home/a.voltar --json").run(), "no-space");
    assert_holds(&scratch, "home/a.voltar", &old);
    fs::remove_file(home.mount.path().join("ballast")).unwrap();
    let made = voltar(&scratch, "backup disk home/a.voltar").json();
    assert!(number(&made, "resumed_bytes") >= 30 * MIB, "{made}");
    voltar(&scratch, "verify home/a.voltar").ok();
    assert_restores(&scratch, "home/a.voltar", &new, 0);
}

#[test]
fn an_archive_whose_file_system_turns_read_only_keeps_what_was_committed() {
    let test = "an_archive_whose_file_system_turns_read_only_keeps_what_was_committed";
    let scratch = Scratch::new();
    let home = || Ext4::new(&scratch, "home", 128 * MIB, "", "errors=remount-ro");
    let Some(mut home) = or_skip(test, home) else { return };
    let old = stamped(1, 0, 1, 2 * MIB);
    scratch.write("disk", &old);
    voltar(&scratch, "backup disk home/a.voltar").ok();
    system("sync", &["-f", home.mount.path().to_str().unwrap()]).unwrap();
    let new = stamped(1, 0, 2, 24 * MIB);
    scratch.write("disk", &new);
    let archive = scratch.path("home/a.voltar");
    let committed = len(&archive);
    let line = "backup disk home/a.voltar --limit 12M --compression store --json";
    let mut running = voltar(&scratch, line).start();
    until_long(&mut running, &archive, committed + 4 * MIB);
    let Some(()) = or_skip(test, || home.spoil()) else { return };
    assert_not_committed(running.wait(), "io");
    assert_holds(&scratch, "home/a.voltar", &old);
    home = remounted(home, &scratch);
    assert_holds(&scratch, "home/a.voltar", &old);
    voltar(&scratch, "backup disk home/a.voltar").ok();
    assert_restores(&scratch, "home/a.voltar", &new, 0);
    drop(home);
}

/// Checked and mounted again.
fn remounted(home: Ext4, scratch: &Scratch) -> Ext4 {
    let Ext4 { mount, device } = home;
    drop(mount);
    // It says with 1 that it corrected something.
    drop(system("fsck.ext4", &["-y", "-f", device.arg()]));
    let mount = Mount::with(device.arg(), &scratch.path("home"), "rw").unwrap();
    Ext4 { mount, device }
}

#[test]
fn a_target_whose_file_system_turns_read_only_is_finished_later() {
    let test = "a_target_whose_file_system_turns_read_only_is_finished_later";
    let scratch = Scratch::new();
    let home = || Ext4::new(&scratch, "home", 64 * MIB, "", "errors=remount-ro");
    let Some(mut home) = or_skip(test, home) else { return };
    let bytes = stamped(1, 0, 1, 24 * MIB);
    scratch.write("disk", &bytes);
    voltar(&scratch, "backup disk a.voltar").ok();
    let line = "restore a.voltar home/target --json";
    // The note is stored when the target is; what the target holds tells how far it came.
    let target = scratch.path("home/target");
    let mut running = voltar(&scratch, &format!("{line} --limit 8M")).start();
    let written = || File::open(&target).is_ok_and(|file| holds_at(&file, &bytes, 4 * MIB));
    assert!(running.until(written), "it ended too early");
    let Some(()) = or_skip(test, || home.spoil()) else { return };
    let ran = running.wait().expect(6);
    assert_eq!(ran.json()["error"]["kind"], "target-partial", "{}", ran.stderr);
    assert!(ran.stderr.contains("home/target"), "{}", ran.stderr);
    assert!(ran.stderr.contains("run the same command again"), "{}", ran.stderr);
    home = remounted(home, &scratch);
    voltar(&scratch, &format!("{line} --overwrite")).ok();
    assert_sectors(&scratch.read("home/target"), &bytes, "after the second run");
    drop(home);
}

fn holds_at(file: &File, bytes: &[u8], at: usize) -> bool {
    let mut sector = [0; 512];
    file.read_exact_at(&mut sector, at as u64).is_ok() && sector == bytes[at..at + 512]
}

#[test]
fn a_target_on_a_full_file_system_is_finished_when_there_is_room() {
    let test = "a_target_on_a_full_file_system_is_finished_when_there_is_room";
    let scratch = Scratch::new();
    let small = || Mount::tmpfs(&scratch.path("small"), "12m");
    let Some(small) = or_skip(test, small) else { return };
    let bytes = stamped(1, 0, 1, 24 * MIB);
    scratch.write("disk", &bytes);
    voltar(&scratch, "backup disk a.voltar").ok();
    // A device that promises more than there is.
    let backing = scratch.write("small/backing", &[]);
    resize(&backing, bytes.len());
    let Some(target) = or_skip(test, || Loop::new(&backing, 512)) else { return };
    let line = format!("restore a.voltar {} --json", target.arg());
    let ran = voltar(&scratch, &line).run().expect(6);
    let error = &ran.json()["error"];
    assert_eq!(error["kind"], "target-partial", "{error}");
    assert!(ran.stderr.contains(target.arg()), "{}", ran.stderr);
    assert!(ran.stderr.contains("0x"), "no place is named: {}", ran.stderr);
    assert!(ran.stderr.contains("run the same command again"), "{}", ran.stderr);
    let at = small.path().to_str().unwrap();
    system("mount", &["-o", "remount,size=40m", at]).unwrap();
    let made = voltar(&scratch, &line).ok().json();
    assert_sectors(&fs::read(target.path()).unwrap(), &bytes, "after the second run");
    assert!(number(&made["volumes"][0], "kept_bytes") > 0, "nothing was kept: {made}");
}

#[test]
fn a_new_file_on_a_full_file_system_is_finished_when_there_is_room() {
    let test = "a_new_file_on_a_full_file_system_is_finished_when_there_is_room";
    let scratch = Scratch::new();
    let small = || Mount::tmpfs(&scratch.path("small"), "12m");
    let Some(small) = or_skip(test, small) else { return };
    let bytes = stamped(1, 0, 1, 24 * MIB);
    scratch.write("disk", &bytes);
    voltar(&scratch, "backup disk a.voltar").ok();
    let line = "restore a.voltar small/target --json";
    let ran = voltar(&scratch, line).run();
    assert!(matches!(ran.code(), Some(1 | 6)), "{:?} {}", ran.code(), ran.stderr);
    assert!(ran.stderr.contains("small/target"), "{}", ran.stderr);
    let left = scratch.path("small/target").exists();
    assert_eq!(left, ran.code() == Some(6), "what is left fits the exit code: {}", ran.stderr);
    let at = small.path().to_str().unwrap();
    system("mount", &["-o", "remount,size=40m", at]).unwrap();
    voltar(&scratch, line).ok();
    assert_sectors(&scratch.read("small/target"), &bytes, "after the second run");
}

#[test]
fn a_source_device_that_fails_is_named_and_nothing_is_committed() {
    let test = "a_source_device_that_fails_is_named_and_nothing_is_committed";
    let scratch = Scratch::new();
    let old = stamped(1, 0, 1, 2 * MIB);
    scratch.write("disk", &old);
    let backed = scratch.write("backing", &stamped(2, 0, 1, 24 * MIB));
    let Some(source) = or_skip(test, || Loop::new(&backed, 512)) else { return };
    for io in ["auto", "blocking"] {
        voltar(&scratch, &format!("backup disk {io}.voltar")).ok();
        let archive = scratch.path(&format!("{io}.voltar"));
        let committed = len(&archive);
        let line = format!("backup disk={} {io}.voltar --io {io} --json", source.arg());
        let slowly = format!("{line} --limit 12M --compression store");
        let mut running = voltar(&scratch, &slowly).start();
        until_long(&mut running, &archive, committed + 4 * MIB);
        // What the device had behind this place is gone: the loop driver answers with errors.
        resize(&backed, 16 * MIB);
        let ran = running.wait();
        let message = ran.stderr.clone();
        assert_not_committed(ran, "source-unreadable");
        assert!(message.contains(source.arg()) && message.contains("0x1000000"), "{message}");
        assert_holds(&scratch, &format!("{io}.voltar"), &old);
        // The rest can be had all the same, and what cannot is on record.
        let recorded = voltar(&scratch, &format!("{line} --on-read-error record")).run().expect(4);
        let lost = &recorded.json()["volumes"][0]["unreadable"][0];
        assert_eq!(number(lost, "offset"), 16 * MIB, "{lost}");
        assert_eq!(number(lost, "length"), 8 * MIB, "{lost}");
        let mut want = stamped(2, 0, 1, 16 * MIB);
        want.resize(24 * MIB, 0);
        assert_restores(&scratch, &format!("{io}.voltar"), &want, 4);
        // Back again, it is read whole.
        let whole = stamped(2, 0, 1, 24 * MIB);
        File::options().write(true).open(&backed).unwrap().write_all_at(&whole, 0).unwrap();
        voltar(&scratch, &line).ok();
        assert_restores(&scratch, &format!("{io}.voltar"), &whole, 0);
    }
}

#[test]
fn a_source_device_that_is_detached_meanwhile_is_read_to_its_end() {
    let test = "a_source_device_that_is_detached_meanwhile_is_read_to_its_end";
    let scratch = Scratch::new();
    let bytes = stamped(1, 0, 1, 16 * MIB);
    let backing = scratch.write("backing", &bytes);
    let Some(source) = or_skip(test, || Loop::new(&backing, 512)) else { return };
    let line = format!("backup disk={} a.voltar --limit 12M --compression store", source.arg());
    let mut running = voltar(&scratch, &line).start();
    until_long(&mut running, &scratch.path("a.voltar"), 4 * MIB);
    // The kernel lets go of it when the last who has it open does.
    source.detach().unwrap();
    running.wait().expect(0);
    assert_holds(&scratch, "a.voltar", &bytes);
}

#[test]
fn an_archive_whose_name_cannot_be_made_durable_is_not_begun() {
    let test = "an_archive_whose_name_cannot_be_made_durable_is_not_begun";
    // Files are made durable by fdatasync; fsync is for directories.
    let Some(refusal) = Refusal::new(test, SYS_fsync, Errno::EIO) else { return };
    let scratch = Scratch::new();
    scratch.write("disk", &stamped(1, 0, 1, MIB));
    voltar(&scratch, "backup disk a.voltar").ok();
    let refused = |line: &str| {
        let ran = refusal.voltar(&scratch).args(words(line)).run().expect(1);
        assert!(ran.stderr.contains("cannot sync the directory"), "{line}: {}", ran.stderr);
    };
    refused("backup disk new.voltar");
    assert_eq!(scratch.read("new.voltar"), b"", "a header was written");
    fs::remove_file(scratch.path("new.voltar")).unwrap();
    refused("inspect a.voltar --salvage new.voltar");
    assert!(!scratch.path("new.voltar").exists(), "a file of no use was left");
    // An archive that is there has its name.
    refusal.voltar(&scratch).args(words("backup disk a.voltar")).ok();
}
