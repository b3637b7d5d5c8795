//! Interrupted and killed: the archive is as it was, the work done is kept.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;
use voltar_tests::command::words;
use voltar_tests::data::assert_same;
use voltar_tests::{Mount, Rng, Scratch, Voltar, is_root};

fn voltar(scratch: &Scratch, line: &str) -> Voltar {
    Voltar::new(scratch).args(words(line))
}

fn number(object: &Value, name: &str) -> u64 {
    object[name].as_u64().unwrap_or_else(|| panic!("{name} in {object}"))
}

fn len(path: &Path) -> u64 {
    fs::metadata(path).map(|metadata| metadata.len()).unwrap_or(0)
}

#[test]
fn an_interrupted_backup_leaves_the_archive_and_keeps_the_work() {
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let scratch = Scratch::new();
        let old = Rng::new(1).bytes(300_000);
        scratch.write("disk", &old);
        voltar(&scratch, "backup disk a.voltar").ok();
        let committed = scratch.read("a.voltar");
        let new = Rng::new(2).bytes(48 << 20);
        scratch.write("disk", &new);
        let archive = scratch.path("a.voltar");
        let mut running = voltar(&scratch, "backup disk a.voltar --limit 60M --json").start();
        // Far enough for one segment to be sealed.
        let far = committed.len() as u64 + (38 << 20);
        assert!(running.until(|| len(&archive) >= far), "it ended too early");
        running.signal(signal);
        let ran = running.wait().expect(130);
        assert_eq!(ran.json()["error"]["code"], 130);
        assert!(ran.stderr.contains("the archive is as it was"), "{}", ran.stderr);
        let after = scratch.read("a.voltar");
        assert_same(&after[..committed.len()], &committed, "what was committed");
        let list = voltar(&scratch, "list a.voltar").json();
        assert_eq!(list["snapshots"].as_array().unwrap().len(), 1);
        voltar(&scratch, "verify a.voltar").ok();
        let warned = voltar(&scratch, "restore a.voltar before").ok();
        assert!(warned.stderr.contains("behind the archive's last snapshot"), "{}", warned.stderr);
        assert_same(&scratch.read("before"), &old, "the snapshot before");

        let made = voltar(&scratch, "backup disk a.voltar").json();
        assert!(number(&made, "resumed_bytes") >= 30 << 20, "{made}");
        assert!(number(&made, "stored_bytes") < 20 << 20, "{made}");
        voltar(&scratch, "restore a.voltar out").ok();
        assert_same(&scratch.read("out"), &new, "after the interruption");
        voltar(&scratch, "verify a.voltar").ok();
    }
}

#[test]
fn an_interrupted_first_backup_leaves_nothing_that_misleads() {
    let scratch = Scratch::new();
    scratch.write("disk", &Rng::new(2).bytes(8 << 20));
    let archive = scratch.path("a.voltar");
    let mut running = voltar(&scratch, "backup disk a.voltar --limit 2M").start();
    assert!(running.until(|| len(&archive) >= 1 << 20));
    running.signal(Signal::SIGINT);
    running.wait().expect(130);
    assert_eq!(voltar(&scratch, "list a.voltar").json()["snapshots"], serde_json::json!([]));
    voltar(&scratch, "restore a.voltar out").run().expect(1);
    voltar(&scratch, "backup disk a.voltar").ok();
    voltar(&scratch, "restore a.voltar out").ok();
    assert_same(&scratch.read("out"), &scratch.read("disk"), "after the interruption");
}

#[test]
fn the_second_signal_leaves_at_once() {
    let scratch = Scratch::new();
    scratch.write("disk", &Rng::new(2).bytes(64 << 20));
    let archive = scratch.path("a.voltar");
    let mut running = voltar(&scratch, "backup disk a.voltar --limit 1M").start();
    assert!(running.until(|| len(&archive) >= 1 << 19));
    running.signal(Signal::SIGINT);
    running.signal(Signal::SIGTERM);
    let sent = Instant::now();
    running.wait().expect(130);
    // All of it would take a minute.
    assert!(sent.elapsed() < Duration::from_secs(30), "{:?}", sent.elapsed());
    voltar(&scratch, "backup disk a.voltar").ok();
    voltar(&scratch, "verify a.voltar").ok();
}

#[test]
fn an_interrupted_verification_goes_on() {
    let scratch = Scratch::new();
    scratch.write("disk", &Rng::new(2).bytes(96 << 20));
    voltar(&scratch, "backup disk a.voltar").ok();
    let running = voltar(&scratch, "verify a.voltar --resume --threads 1").start();
    std::thread::sleep(Duration::from_millis(40));
    running.signal(Signal::SIGINT);
    let ran = running.wait();
    assert!(matches!(ran.code(), Some(0 | 130)), "{:?} {}", ran.code(), ran.stderr);
    voltar(&scratch, "verify a.voltar --resume").ok();
}

/// Bytes of random data in the backup that is killed: two sealed segments and an open one.
const KILLED_LEN: usize = 80 << 20;
/// What an index run, a commit and their padding may take on top.
const SLACK: u64 = 1 << 20;

#[test]
fn fifty_kills_lose_nothing_and_store_nothing_twice() {
    let mut rng = Rng::fresh("fifty_kills_lose_nothing_and_store_nothing_twice");
    let scratch = Scratch::new();
    // In memory where we may: fifty backups are a lot for a disk shared with others.
    let _mount = is_root().then(|| Mount::tmpfs(&scratch.path("w"), "1g").ok()).flatten();
    fs::create_dir_all(scratch.path("w")).unwrap();
    let old = rng.bytes(400_000);
    scratch.write("w/old", &old);
    voltar(&scratch, "backup disk=w/old w/base.voltar").ok();
    let disk = rng.bytes(KILLED_LEN);
    scratch.write("w/disk", &disk);
    let copy = |to: &str| fs::copy(scratch.path("w/base.voltar"), scratch.path(to)).unwrap();
    let base = copy("w/whole.voltar");
    let whole = voltar(&scratch, "backup disk=w/disk w/whole.voltar").json();
    let (stored, full) = (number(&whole, "stored_bytes"), scratch.len("w/whole.voltar"));
    fs::remove_file(scratch.path("w/whole.voltar")).unwrap();

    let (mut resumed_rounds, mut sealed_rounds, mut killed) = (0, 0, 0);
    for round in 0..50 {
        copy("w/a.voltar");
        let mut running = voltar(&scratch, "backup disk=w/disk w/a.voltar --limit 300M").start();
        // By how far it came, not by how long it took: this machine may be busy.
        let at = base + rng.below(KILLED_LEN as u64);
        running.until(|| scratch.len("w/a.voltar") >= at);
        std::thread::sleep(Duration::from_micros(rng.below(3000)));
        running.signal(Signal::SIGKILL);
        let ran = running.wait();
        killed += u32::from(ran.signal() == Some(9));
        let sealed = sealed_bytes(&scratch);

        let verify = voltar(&scratch, "verify w/a.voltar").json();
        let snapshots = number(&verify, "snapshots");
        assert!((1..=2).contains(&snapshots), "round {round}: {verify}");
        let made = voltar(&scratch, "backup disk=w/disk w/a.voltar").json();
        let (again, resumed) = (number(&made, "stored_bytes"), number(&made, "resumed_bytes"));
        if snapshots == 1 {
            assert!(resumed >= sealed, "round {round}: {sealed} bytes were sealed: {made}");
            assert!(again + resumed <= stored + SLACK, "round {round}: {made}, whole {stored}");
            let len = scratch.len("w/a.voltar");
            assert!(len <= full + SLACK, "round {round}: {len} bytes, {full} in one go");
            assert!(len >= base + KILLED_LEN as u64, "round {round}: {len} bytes");
            resumed_rounds += u32::from(resumed > 0);
            sealed_rounds += u32::from(sealed > 0);
        } else {
            assert!(again < SLACK, "round {round}: {made}");
        }
        if round % 10 == 0 {
            voltar(&scratch, "verify w/a.voltar").ok();
            voltar(&scratch, "restore w/a.voltar w/out").ok();
            assert_same(&scratch.read("w/out"), &disk, "the backup after the kill");
            voltar(&scratch, "restore w/a.voltar@latest~1 w/before --overwrite").ok();
            fs::remove_file(scratch.path("w/out")).unwrap();
            fs::remove_file(scratch.path("w/before")).unwrap();
        }
    }
    eprintln!("{killed} of 50 killed, {resumed_rounds} took work over");
    assert!(killed >= 30, "only {killed} of 50 were killed in time");
    assert!(sealed_rounds >= 1, "no round had a segment that must have been sealed");
    assert!(resumed_rounds >= 3, "only {resumed_rounds} rounds had anything sealed");
}

/// The least that must have been sealed, going by how much lies behind the last commit: segments
/// are sealed before the frame that would make them longer than 32 MiB, so they hold at least
/// 30 MiB, and writes that were in flight may leave holes near the end.
fn sealed_bytes(scratch: &Scratch) -> u64 {
    const IN_FLIGHT: u64 = 16 << 20;
    let inspect = voltar(scratch, "inspect w/a.voltar").json();
    let tail = number(&inspect, "uncommitted_bytes");
    tail.saturating_sub(IN_FLIGHT) / (33 << 20) * (30 << 20)
}

#[test]
fn an_interrupted_restore_of_several_volumes_goes_on() {
    let scratch = Scratch::new();
    scratch.write("root", &Rng::new(2).bytes(3 << 20));
    scratch.write("data", &Rng::new(3).bytes(6 << 20));
    voltar(&scratch, "backup root data a.voltar").ok();
    let restore = || voltar(&scratch, "restore a.voltar root=t1 data=t2");
    let mut running = restore().args(["--limit", "2M"]).start();
    assert!(running.until(|| blocks(&scratch.path("t2")) >= 1 << 20));
    running.signal(Signal::SIGINT);
    running.wait().expect(130);
    // The first is complete, the second is not; both are this command's.
    restore().ok();
    assert_same(&scratch.read("t1"), &scratch.read("root"), "root");
    assert_same(&scratch.read("t2"), &scratch.read("data"), "data");
    // Once all is done, nothing may be written over any more.
    restore().run().expect(5);
}

#[test]
fn a_note_about_unfinished_work_allows_nothing_to_other_data() {
    let scratch = Scratch::new();
    scratch.write("disk", &Rng::new(2).bytes(8 << 20));
    voltar(&scratch, "backup disk a.voltar").ok();
    // Longer than the volume: it is cut at the end, and known again all the same.
    std::fs::File::create(scratch.path("out")).unwrap().set_len(12 << 20).unwrap();
    let mut running = voltar(&scratch, "restore a.voltar out --limit 2M").start();
    assert!(running.until(|| blocks(&scratch.path("out")) >= 2 << 20));
    running.signal(Signal::SIGINT);
    running.wait().expect(130);
    let begun = scratch.read("out");
    // The same file, other bytes.
    let other = Rng::new(9).bytes(8 << 20);
    let fill = |bytes: &[u8]| {
        let mut file = std::fs::File::options().write(true).open(scratch.path("out")).unwrap();
        std::io::Write::write_all(&mut file, bytes).unwrap();
    };
    fill(&other);
    let refused = voltar(&scratch, "restore a.voltar out").run().expect(5);
    assert!(refused.stderr.contains("other data"), "{}", refused.stderr);
    assert_same(&scratch.read("out")[..8 << 20], &other, "what was put there since");
    fill(&begun);
    voltar(&scratch, "restore a.voltar out").ok();
    assert_same(&scratch.read("out"), &scratch.read("disk"), "after the interruption");
}

/// Bytes that a file has on its medium.
fn blocks(path: &std::path::Path) -> u64 {
    std::fs::metadata(path).map_or(0, |data| std::os::unix::fs::MetadataExt::blocks(&data) * 512)
}
