//! Power is lost at every moment at which a disk below a file system, or a target, was bound to
//! hold what it held, and at some between them.
//!
//! The guest logs what reached its disks (`dm_log_writes.sh`). Here every state that they may have
//! been in is made again and looked at.

use std::fs::{self, File};
use std::path::Path;

use voltar_tests::command::words;
use voltar_tests::guest::{Disk, run};
use voltar_tests::sectors::{SECTOR_LEN, compare, stamped};
use voltar_tests::write_log::{Event, WriteLog};
use voltar_tests::{Loop, Mount, Rng, Scratch, Voltar, is_root, skip};

/// MiB of the disks that are logged, and of each log; as blank as they are long.
const HOME_MIB: u32 = 40;
const TARGET_MIB: u32 = 6;
const LOG_MIB: u64 = 512;

/// States tried between two that are certain.
const SUBSETS: usize = 2;

/// Bytes of the volume.
const LEN: usize = 4 << 20;

#[test]
fn every_state_that_power_loss_leaves_is_good() {
    let test = "every_state_that_power_loss_leaves_is_good";
    if !is_root() {
        return skip(test, "loop devices and mounts need root");
    }
    let scratch = Scratch::new();
    let logs = ["home.log", "target.log"].map(|name| scratch.path(name));
    for log in &logs {
        File::create_new(log).unwrap().set_len(LOG_MIB << 20).unwrap();
    }
    let [home, target] = &logs;
    let disks =
        [Disk::Blank(HOME_MIB), Disk::Kept(home), Disk::Blank(TARGET_MIB), Disk::Kept(target)];
    if run(test, "dm_log_writes", &disks, crate::SECTORS).is_none() {
        return;
    }
    let mut rng = Rng::fresh(test);
    let archives = each_state(&scratch, home, HOME_MIB, &mut rng, archive_is_good);
    scratch.write("disk", &volume(3));
    Voltar::new(&scratch).args(words("backup disk whole.voltar")).ok();
    let targets = each_state(&scratch, target, TARGET_MIB, &mut rng, target_is_good);
    assert!(archives >= 40 && targets >= 6, "only {archives} and {targets} states");
    eprintln!("figure: {archives} states of an archive's disk after power loss");
    eprintln!("figure: {targets} states of a target after power loss");
}

/// What the volume held when it was backed up for the `nth` time; the script writes the first three.
fn volume(nth: usize) -> Vec<u8> {
    let mut bytes = stamped(1, 0, 1, LEN);
    let changes = [(2, 2048, 2048), (3, 4096, 3072), (4, 0, 4096)];
    for (generation, first, count) in changes.into_iter().take(nth - 1) {
        let change = stamped(1, first, generation, count * SECTOR_LEN);
        bytes[first as usize * SECTOR_LEN..][..change.len()].copy_from_slice(&change);
    }
    bytes
}

/// Makes each state of the disk from its mark `made` on, as the file `crashed`, and has it looked
/// at, with the marks before it. Returns how many there were; the last one printed is the one that
/// failed.
fn each_state(
    scratch: &Scratch,
    log: &Path,
    mib: u32,
    rng: &mut Rng,
    look: impl Fn(&Scratch, &[&str]),
) -> usize {
    let len = u64::from(mib) << 20;
    let log = WriteLog::open(log, len).unwrap();
    let (certain, crashed) = (scratch.path("certain"), scratch.path("crashed"));
    File::create(&certain).unwrap().set_len(len).unwrap();
    let mut marks: Vec<&str> = Vec::new();
    let (mut states, mut from) = (0, 0);
    let mut look_after = |marks: &[&str], words: &str, some: &mut dyn Iterator<Item = usize>| {
        if marks.contains(&"made") {
            fs::copy(&certain, &crashed).unwrap();
            replay(&log, some, &crashed);
            eprintln!("{words}, behind {marks:?}");
            look(scratch, marks);
            states += 1;
        }
    };
    for (index, event) in log.events.iter().enumerate() {
        if !(matches!(event, Event::Mark(_)) || log.is_durable(index)) {
            continue;
        }
        // Any of them may be on the medium when the power goes before the flush behind them.
        let tries = if from < index { SUBSETS } else { 0 };
        for _ in 0..tries {
            let mut some = (from..index).filter(|_| rng.below(2) == 0);
            look_after(&marks, &format!("some of the writes {from}..{index}"), &mut some);
        }
        replay(&log, from..=index, &certain);
        from = index + 1;
        if let Event::Mark(mark) = event {
            marks.push(mark);
        }
        look_after(&marks, &format!("all up to entry {index}"), &mut std::iter::empty());
    }
    states
}

/// Closes the image again, for it may be a target next.
fn replay(log: &WriteLog, events: impl Iterator<Item = usize>, image: &Path) {
    let image = File::options().write(true).open(image).unwrap();
    events.for_each(|index| log.replay(index, &image).unwrap());
}

/// Every backup that had returned is there and whole, at most the next one besides, and the next
/// backup succeeds.
fn archive_is_good(scratch: &Scratch, marks: &[&str]) {
    let device = Loop::new(&scratch.path("crashed"), 512).unwrap();
    let mount = Mount::device(device.arg(), &scratch.path("home"));
    let mount = mount.unwrap();
    let voltar = |line: &str| Voltar::new(scratch).args(words(line)).arg("--json");
    let returned = marks.iter().filter(|mark| mark.starts_with("backup-")).count();
    let listed = || {
        let made = voltar("list home/a.voltar").run().expect(0).json();
        made["snapshots"].as_array().unwrap().len()
    };
    // Before the first backup is done there may be no archive, or not yet its header.
    let exists = fs::metadata(scratch.path("home/a.voltar")).is_ok_and(|file| file.len() > 0);
    let found = if returned > 0 || exists { listed() } else { 0 };
    assert!((returned..=returned + 1).contains(&found), "{found} snapshots");
    all_are_whole(scratch, found);
    scratch.write("disk", &volume(4));
    voltar("backup disk home/a.voltar").ok();
    assert_eq!(listed(), found + 1);
    all_are_whole(scratch, found);
    restores(scratch, "latest", &volume(4));
    drop(mount);
}

/// The first `count` snapshots hold what the volume held then, and the archive verifies.
fn all_are_whole(scratch: &Scratch, count: usize) {
    let listed = Voltar::new(scratch).args(words("list home/a.voltar")).run();
    if count == 0 && listed.code() != Some(0) {
        return;
    }
    Voltar::new(scratch).args(words("verify home/a.voltar")).ok();
    let listed = Voltar::new(scratch).args(words("list home/a.voltar")).json();
    for nth in 1..=count {
        let id = listed["snapshots"][nth - 1]["id"].as_str().unwrap();
        restores(scratch, id, &volume(nth));
    }
}

fn restores(scratch: &Scratch, snapshot: &str, want: &[u8]) {
    drop(fs::remove_file(scratch.path("copy")));
    Voltar::new(scratch).args(words(&format!("restore home/a.voltar@{snapshot} copy"))).ok();
    compare(&scratch.read("copy"), want).unwrap();
}

/// A restore that had returned is on the medium; any other is finished by the next run.
fn target_is_good(scratch: &Scratch, marks: &[&str]) {
    if !marks.contains(&"restored") {
        let line = "restore whole.voltar crashed --overwrite";
        Voltar::new(scratch).args(words(line)).ok();
    }
    let held = scratch.read("crashed");
    compare(&held[..LEN], &volume(3)).unwrap();
}
