//! Several programs at one archive: writers take turns, readers always see a whole snapshot.

use std::ffi::OsStr;
use std::fs;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use nix::sys::signal::Signal;
use voltar_tests::command::words;
use voltar_tests::sectors::{Found, SECTOR_LEN, compare, stamped};
use voltar_tests::skip::skip;
use voltar_tests::{Scratch, Voltar};

const LEN: usize = 4 << 20;
/// At this rate a backup takes 2 seconds: longer than a second writer waits for the kernel to
/// release the lock of one that was killed.
const SLOWLY: &str = "--limit 2M";

fn voltar(scratch: &Scratch, line: &str) -> Voltar {
    Voltar::new(scratch).args(words(line))
}

#[test]
fn two_writers_take_turns() {
    let scratch = Scratch::new();
    scratch.write("first", &stamped(1, 0, 1, LEN));
    scratch.write("second", &stamped(2, 0, 1, LEN));
    voltar(&scratch, "backup first a.voltar").ok();
    let (mut done, mut busy) = (1, 0);
    for round in 0..3 {
        // Both have something to store.
        scratch.write("first", &stamped(1, 0, round + 2, LEN));
        scratch.write("second", &stamped(2, 0, round + 2, LEN));
        let runs = ["first", "second"]
            .map(|name| voltar(&scratch, &format!("backup {name} a.voltar {SLOWLY}")).start());
        for ran in runs.map(|running| running.wait()) {
            match ran.code() {
                Some(0) => done += 1,
                Some(7) => busy += 1,
                code => panic!("{code:?} {}", ran.stderr),
            }
        }
        let list = voltar(&scratch, "list a.voltar").json();
        assert_eq!(list["snapshots"].as_array().unwrap().len(), done);
    }
    assert!(busy > 0, "they never met");
    assert!(done >= 4, "a round in which nobody wrote: {done}");
    let verify = voltar(&scratch, "verify a.voltar").json();
    assert_eq!(verify["snapshots"], done);
}

#[test]
fn nobody_writes_to_an_archive_that_is_being_salvaged() {
    let scratch = Scratch::new();
    // Enough for several writes of the new archive.
    let bytes = stamped(1, 0, 1, 8 * LEN);
    scratch.write("disk", &bytes);
    voltar(&scratch, "backup disk a.voltar --compression store").ok();
    let mut salvage = voltar(&scratch, "inspect a.voltar --salvage new.voltar").start();
    let len = || fs::metadata(scratch.path("new.voltar")).map_or(0, |metadata| metadata.len());
    assert!(salvage.until(|| len() > 0), "there was no new archive");
    // Wherever it stands now, it stays there.
    salvage.signal(Signal::SIGSTOP);
    let before = len();
    let refused = voltar(&scratch, "backup disk new.voltar").run().expect(7);
    assert!(refused.stderr.contains("another writer holds the archive"), "{}", refused.stderr);
    assert_eq!(len(), before);
    assert!(!salvage.is_over(), "the backup came too late");
    salvage.signal(Signal::SIGCONT);
    salvage.wait().expect(0);
    voltar(&scratch, "backup disk new.voltar").ok();
    let verify = voltar(&scratch, "verify new.voltar").json();
    assert_eq!(verify["snapshots"], 2);
    voltar(&scratch, "restore new.voltar@latest~1 out").ok();
    compare(&scratch.read("out"), &bytes).unwrap();
}

/// Two restores onto one file: never both, and what is there is one of them.
#[test]
fn two_restores_onto_one_file_are_not_mixed() {
    let scratch = Scratch::new();
    let contents = [1, 2].map(|generation| stamped(1, 0, generation, LEN));
    for bytes in &contents {
        scratch.write("disk", bytes);
        voltar(&scratch, "backup disk a.voltar").ok();
    }
    let mut refused = 0;
    for _ in 0..3 {
        scratch.write("target", &vec![7; LEN]);
        let runs = ["latest~1", "latest"].map(|snapshot| {
            voltar(&scratch, &format!("restore a.voltar@{snapshot} target --overwrite {SLOWLY}"))
                .start()
        });
        let codes = runs.map(|running| running.wait()).map(|ran| ran.code());
        let restored = scratch.read("target");
        match codes {
            [Some(0), Some(5)] => assert!(restored == contents[0], "the first was written over"),
            [Some(5), Some(0)] => assert!(restored == contents[1], "the second was written over"),
            // One after the other.
            [Some(0), Some(0)] => assert!(contents.contains(&restored), "they were mixed"),
            codes => panic!("{codes:?}"),
        }
        refused += u32::from(codes != [Some(0); 2]);
    }
    assert!(refused > 0, "they never met");
}

/// As above, where the first one makes the file, and the second cannot see the first's process.
#[test]
fn a_file_that_a_restore_makes_is_no_target_for_another() {
    let test = "a_file_that_a_restore_makes_is_no_target_for_another";
    let elsewhere = ["unshare", "--pid", "--fork", "--mount-proc"].map(OsStr::new);
    let probe = Command::new(elsewhere[0]).args(&elsewhere[1..]).arg("true").output();
    if !probe.is_ok_and(|ran| ran.status.success()) {
        skip(test, "no process name spaces here");
        return;
    }
    let scratch = Scratch::new();
    let contents = [1, 2].map(|generation| stamped(1, 0, generation, LEN));
    for bytes in &contents {
        scratch.write("disk", bytes);
        voltar(&scratch, "backup disk a.voltar").ok();
    }
    let first = format!("restore a.voltar@latest~1 target {SLOWLY}");
    let mut running = voltar(&scratch, &first).start();
    assert!(running.until(|| scratch.path("target").exists()), "it made no target");
    let second = Voltar::through(&scratch, &elsewhere)
        .args(words("restore a.voltar target --overwrite"))
        .run()
        .expect(5);
    assert!(second.stderr.contains("another program holds its lock"), "{}", second.stderr);
    running.wait().expect(0);
    assert!(scratch.read("target") == contents[0], "they were mixed");
}

/// Tells a loop to end, even if the test fails.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn readers_see_whole_snapshots_while_a_writer_appends() {
    const BACKUPS: u64 = 12;
    let scratch = Scratch::new();
    scratch.write("disk", &stamped(1, 0, 1, LEN));
    voltar(&scratch, "backup disk a.voltar").ok();
    let (over, newest, read) = (AtomicBool::new(false), AtomicU64::new(1), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let reader = |name: &'static str| {
            let (scratch, over, newest, read) = (&scratch, &over, &newest, &read);
            move || {
                while !over.load(Ordering::Relaxed) {
                    let least = newest.load(Ordering::Relaxed);
                    voltar(scratch, "list a.voltar").ok();
                    voltar(scratch, "verify a.voltar").ok();
                    voltar(scratch, &format!("restore a.voltar {name}")).ok();
                    let got = scratch.read(name);
                    let Found::Whole(stamp) = Found::of(&got[..SECTOR_LEN]) else {
                        panic!("the first sector holds {}", Found::of(&got[..SECTOR_LEN]));
                    };
                    assert!(stamp.generation >= least, "{stamp} is older than {least}");
                    compare(&got, &stamped(1, 0, stamp.generation, LEN)).unwrap();
                    fs::remove_file(scratch.path(name)).unwrap();
                    read.fetch_add(1, Ordering::Relaxed);
                }
            }
        };
        scope.spawn(reader("one"));
        scope.spawn(reader("two"));
        let _ends = Ends(&over);
        for generation in 2..2 + BACKUPS {
            scratch.write("disk", &stamped(1, 0, generation, LEN));
            voltar(&scratch, "backup disk a.voltar --limit 20M").ok();
            newest.store(generation, Ordering::Relaxed);
        }
    });
    let read = read.into_inner();
    assert!(read >= 2, "the readers came to nothing");
    let verify = voltar(&scratch, "verify a.voltar").json();
    assert_eq!(verify["snapshots"], BACKUPS + 1);
}
