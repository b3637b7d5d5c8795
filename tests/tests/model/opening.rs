//! Opening an archive, to read or to write: what a bad sector, a forged end or a lost commit costs,
//! and what a writer builds on.

use std::sync::Arc;

use voltar_engine::device::hostile::{Fault, FaultPlan, HostileDevice};
use voltar_engine::device::memory::{LoggedOp, MemoryDevice};
use voltar_engine::error::ErrorKind;
use voltar_engine::options::Selector;
use voltar_engine::report::BackupReport;
use voltar_format::limits::COMMIT_LEN_MAX;
use voltar_format::record::{RecordHead, RecordKind};
use voltar_format::{LogOffset, SessionId};

use crate::forge::{ARCHIVE, Disk, Forge, Spot};
use crate::rig::{back_up, disk, holding, noise, open, snapshots, verify};

const BLOCK: u64 = 4096;
const EIO: i32 = nix::errno::Errno::EIO as i32;

fn two_in(mut forge: Forge<'_>) -> Forge<'_> {
    for seed in 1..3 {
        forge.snapshot(&[Disk::of("disk", &noise(seed, 9000))], &[]);
    }
    forge
}

/// Two snapshots.
fn two() -> Vec<u8> {
    two_in(Forge::sound()).bytes
}

/// Two snapshots, and behind them what an interrupted run left: a sealed segment, and a part of
/// one that is not.
fn two_and_a_tail() -> Vec<u8> {
    let mut forge = two_in(Forge::sound());
    for seed in 3..5 {
        let (frames, _) = forge.prepare(&[Disk::of("disk", &noise(seed, 30_000))], &[]);
        forge.segment(&frames);
    }
    forge.bytes.truncate(forge.bytes.len() - BLOCK as usize);
    forge.bytes
}

fn with_bad(bytes: &[u8], bad: std::ops::Range<u64>) -> HostileDevice {
    let faults = vec![Fault::BadRange { range: bad, errno: EIO }];
    HostileDevice::new(holding(bytes), FaultPlan { faults, ..FaultPlan::default() })
}

#[test]
fn a_bad_sector_hides_no_snapshot() {
    for bytes in [two(), two_and_a_tail()] {
        for at in (0..bytes.len() as u64).step_by(BLOCK as usize) {
            let home = with_bad(&bytes, at + 100..at + 101);
            let archive = open(&home).unwrap_or_else(|error| panic!("{at:#x}: {error:?}"));
            assert_eq!(snapshots(&archive).unwrap().len(), 2, "block at {at:#x}");
            assert_eq!(archive.header.is_err(), at == 0);
        }
    }
}

#[test]
fn one_whole_copy_of_the_last_commit_suffices() {
    // All of a copy is spoilt, or what follows its record head.
    let parts = [0..BLOCK as usize, RecordHead::LEN..RecordHead::LEN + 8];
    for (number, part) in (0..2).flat_map(|number| parts.clone().map(|part| (number, part))) {
        let change = |bytes: &mut Vec<u8>| bytes[part.clone()].fill(0xff);
        let mut forge = forge_with(Spot::CommitRaw, number, change);
        forge.snapshot(&[Disk::of("disk", &noise(1, 30_000))], &[]);
        let alone = forge.bytes.clone();
        let (frames, _) = forge.prepare(&[Disk::of("disk", &noise(2, 30_000))], &[]);
        forge.segment(&frames);
        for (bytes, has_tail) in [(alone, false), (forge.bytes, true)] {
            let what = format!("copy {number}, {part:?}, with a segment behind it: {has_tail}");
            let archive = open(&holding(&bytes)).unwrap();
            assert_eq!(archive.lost_commit(), None, "{what}");
            assert_eq!(snapshots(&archive).unwrap().len(), 1, "{what}");
            // A writer mends the copy and goes on behind the segment.
            assert_eq!(adopted(&bytes) > 30_000, has_tail, "{what}");
        }
    }
}

#[test]
fn a_lost_commit_hides_no_older_one() {
    let mut forge = Forge::new(Box::new(|spot, number, bytes| {
        if spot == Spot::CommitRaw && (2..4).contains(&number) {
            bytes.fill(0);
        }
    }));
    forge.snapshot(&[Disk::of("disk", &noise(1, 9000))], &[]);
    forge.snapshot(&[Disk::of("disk", &noise(2, 9000))], &[]);
    let lost = forge.bytes.len() as u64 - 2 * BLOCK;
    let (frames, _) = forge.prepare(&[Disk::of("disk", &noise(3, 30_000))], &[]);
    forge.segment(&frames);
    let home = holding(&forge.bytes);
    let archive = open(&home).unwrap();
    assert_eq!(archive.lost, Some(LogOffset(lost)));
    assert_eq!(snapshots(&archive).unwrap().len(), 1);
    let error = back_up(&home, &[disk(&noise(9, 5000))]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Damaged, "{error:?}");
    assert!(home.bytes() == forge.bytes);
}

/// A crash may keep the header's sector and lose the zeroes behind it.
#[test]
fn an_archive_of_the_headers_sector_alone_is_one_without_snapshots() {
    let header = Forge::sound().bytes;
    for len in [512, 513, 4095] {
        let home = holding(&header[..len]);
        let archive = open(&home).unwrap();
        assert_eq!((archive.header.is_ok(), archive.last), (true, None), "{len} bytes");
        back_up(&home, &[disk(&noise(1, 9000))]).unwrap();
        assert_eq!(snapshots(&open(&home).unwrap()).unwrap().len(), 1, "{len} bytes");
    }
    // Less of it is no header: it was not written by one sector.
    let error = open(&holding(&header[..511])).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Damaged, "{error:?}");
}

#[test]
fn a_writer_does_not_cut_off_what_it_cannot_read() {
    let bytes = two();
    let copies = [bytes.len() as u64 - 2 * BLOCK, bytes.len() as u64 - BLOCK];
    // The last commit, both copies of one block each: readers see the snapshot before.
    let home = with_bad(&bytes, copies[0]..bytes.len() as u64);
    assert_eq!(snapshots(&open(&home).unwrap()).unwrap().len(), 1);
    let error = back_up(&home, &[disk(&noise(9, 5000))]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Damaged, "{error:?}");
    assert!(home.written().bytes() == bytes);
    // Nothing can be read: not an archive without snapshots, and not one to begin anew.
    let home = with_bad(&bytes, BLOCK..bytes.len() as u64);
    assert_eq!(open(&home).err().unwrap().kind(), ErrorKind::Io);
    let home = with_bad(&bytes[..BLOCK as usize], 0..BLOCK);
    assert_eq!(back_up(&home, &[disk(&noise(9, 5000))]).unwrap_err().kind(), ErrorKind::Io);
    assert!(home.written().bytes() == bytes[..BLOCK as usize]);
}

/// An archive of one snapshot and behind it `count` blocks, each with a record head as `change`
/// makes it.
fn with_heads(count: u64, change: impl Fn(&mut RecordHead)) -> Vec<u8> {
    let mut forge = Forge::sound();
    forge.snapshot(&[Disk::of("disk", &noise(1, 9000))], &[]);
    let mut bytes = forge.bytes;
    for _ in 0..count {
        let offset = LogOffset(bytes.len() as u64);
        let session = SessionId([1; 16]);
        let mut head = RecordHead::new(RecordKind::Data, ARCHIVE, session, offset, 9);
        change(&mut head);
        bytes.extend_from_slice(&head.seal());
        bytes.resize((offset.0 + BLOCK) as usize, 0);
    }
    bytes
}

/// Opens the archive, whatever comes of it, and says how many bytes that read.
fn read_by_opening(bytes: &[u8]) -> u64 {
    let device = MemoryDevice::from_bytes(bytes).with_log();
    drop(voltar_engine::archive::open::Archive::open(Arc::new(device.clone())));
    let ops = device.take_ops();
    ops.iter().map(|op| if let LoggedOp::Read(read) = op { read.end - read.start } else { 0 }).sum()
}

#[test]
fn opening_reads_a_bounded_number_of_bytes() {
    const COUNT: u64 = 4600;
    let len = COUNT * BLOCK;
    // Each block names the same lost commit.
    let same = with_heads(COUNT, |head| head.last_commit = LogOffset(16 * BLOCK));
    let read = read_by_opening(&same);
    assert!(read < 2 * len, "{read} bytes for one lost commit");
    let archive = open(&holding(&same)).unwrap();
    assert_eq!(archive.lost, Some(LogOffset(16 * BLOCK)));
    // Each names another one; and every second is one, of some length, that is not whole.
    let before = |head: &mut RecordHead| head.last_commit.0 = head.offset.0.saturating_sub(BLOCK);
    let others = with_heads(COUNT, before);
    let begun = with_heads(COUNT, |head| {
        before(head);
        if (head.offset.0 / BLOCK).is_multiple_of(2) {
            head.kind = RecordKind::Commit as u8;
            head.body_len = COMMIT_LEN_MAX / 2;
        }
    });
    for bytes in [others, begun] {
        let read = read_by_opening(&bytes);
        assert!(read < 3 * len + 40 * COMMIT_LEN_MAX, "{read} bytes for many lost commits");
        let error = open(&holding(&bytes)).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::Damaged, "{error:?}");
    }
}

/// Spoils structure `number` of its kind.
fn forge_with<'s>(
    spot: Spot,
    number: usize,
    mut change: impl FnMut(&mut Vec<u8>) + 's,
) -> Forge<'s> {
    Forge::new(Box::new(move |at, seen, bytes| {
        if (at, seen) == (spot, number) {
            change(bytes);
        }
    }))
}

/// One snapshot and, behind its commit, all of another but its own.
fn interrupted(mut forge: Forge<'_>) -> Vec<u8> {
    forge.snapshot(&[Disk::of("disk", &noise(1, 30_000))], &[]);
    let (frames, _) = forge.prepare(&[Disk::of("disk", &noise(2, 30_000))], &[]);
    forge.segment(&frames);
    forge.run();
    forge.bytes
}

/// A backup onto `bytes` of the disk that was interrupted there; sees that what it makes is whole.
#[track_caller]
fn resumed(bytes: &[u8]) -> BackupReport {
    let home = holding(bytes);
    let report = back_up(&home, &[disk(&noise(2, 30_000))]).unwrap();
    let archive = open(&home).unwrap();
    assert_eq!(snapshots(&archive).unwrap().len(), 2);
    let verified = verify(&archive).unwrap();
    assert!(verified.ok, "{:?}", verified.damaged);
    report
}

/// Bytes that a backup onto `bytes` adopts.
#[track_caller]
fn adopted(bytes: &[u8]) -> u64 {
    resumed(bytes).resumed_bytes
}

#[test]
fn a_run_that_no_commit_may_list_is_not_adopted() {
    let all = adopted(&interrupted(Forge::sound()));
    let buckets = |bytes: &mut Vec<u8>| bytes[8..16].copy_from_slice(&1000u64.to_le_bytes());
    let count = |bytes: &mut Vec<u8>| bytes[..8].copy_from_slice(&1u64.to_le_bytes());
    let filter = |bytes: &mut Vec<u8>| bytes[64..].fill(0);
    let behind = |bytes: &mut Vec<u8>| bytes[16 + 32..16 + 40].fill(0x40);
    let overflow = |bytes: &mut Vec<u8>| bytes[14] |= 1;
    let run = |spot, number, change: fn(&mut Vec<u8>)| {
        adopted(&interrupted(forge_with(spot, number, change)))
    };
    for resumed in [
        run(Spot::RunHead, 1, buckets),
        run(Spot::RunHead, 1, count),
        run(Spot::Page, 2, filter),
        run(Spot::Page, 3, behind),
        run(Spot::Page, 3, overflow),
    ] {
        assert!(resumed > 0 && resumed < all, "{resumed} of {all} bytes");
    }
}

#[test]
fn items_that_an_adopted_run_lacks_are_indexed_anew() {
    let mut forge = Forge::sound();
    forge.snapshot(&[Disk::of("disk", &noise(1, 30_000))], &[]);
    let (frames, _) = forge.prepare(&[Disk::of("disk", &noise(2, 30_000))], &[]);
    forge.segment(&frames);
    forge.forget_a_chunk();
    forge.run();
    let report = resumed(&forge.bytes);
    assert!(report.resumed_bytes > 30_000);
    assert_eq!(report.volumes[0].new_bytes, 0, "it is not stored again");
}

#[test]
fn a_record_out_of_order_is_not_adopted() {
    for field in [40..48, 72..80] {
        let change = |bytes: &mut Vec<u8>| bytes[field.clone()].fill(1);
        let spoiled = forge_with(Spot::RecordHead(RecordKind::Data), 1, change);
        assert_eq!(adopted(&interrupted(spoiled)), 0, "field at {field:?}");
    }
}

#[test]
fn a_record_of_a_newer_version_behind_the_commit_is_not_cut_off() {
    let mut forge = two_in(Forge::sound());
    forge.unknown(false, &[7; 5000]);
    let (frames, _) = forge.prepare(&[Disk::of("disk", &noise(3, 30_000))], &[]);
    forge.segment(&frames);
    let home = holding(&forge.bytes);
    let error = back_up(&home, &[disk(&noise(9, 5000))]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::UnsupportedFormat, "{error:?}");
    assert!(home.bytes() == forge.bytes);
}

#[test]
fn a_writer_builds_on_no_commit_that_contradicts_the_log() {
    // What a commit says of the one before, of its records and of their number; in bytes behind
    // its content hash.
    for (field, what) in [(40, "previous_hash"), (80, "log_hash"), (112, "segment_count")] {
        let spoiled = forge_with(Spot::CommitHead, 1, |bytes| bytes[field] ^= 1);
        let bytes = two_in(spoiled).bytes;
        let home = holding(&bytes);
        let error = back_up(&home, &[disk(&noise(9, 5000))]).err();
        assert_eq!(error.map(|error| error.kind()), Some(ErrorKind::Damaged), "{what}");
        assert!(home.bytes() == bytes, "{what}");
    }
}

/// What a guest wrote may be a commit in its own place. A footer behind it leads past it.
#[test]
fn a_commit_in_a_sealed_segment_is_not_taken_for_one() {
    let mut real = two_in(Forge::sound());
    let start = real.bytes.len();
    let (frames, _) = real.prepare(&[Disk::of("disk", &noise(3, 60_000))], &[]);
    real.segment(&frames);
    let mut bytes = real.bytes;
    let at = start + 4 * BLOCK as usize;
    let mut forged = Forge::sound();
    forged.bytes.resize(at, 0);
    forged.commit(None);
    let commit = &forged.bytes[at..];
    bytes[at..at + commit.len()].copy_from_slice(commit);
    let numbers = |bytes: &[u8]| open(&holding(bytes)).unwrap().last.unwrap().head.number;
    assert_eq!(numbers(&bytes), 2);
    // It is one that would be found: without the footer, nothing tells it from a real one.
    assert_eq!(numbers(&bytes[..bytes.len() - BLOCK as usize]), 1);
}

#[test]
fn a_commit_in_a_segment_that_was_never_sealed_is_not_built_on() {
    // What a guest might write: all of a first snapshot with its commit, in its own place.
    let mut real = two_in(Forge::sound());
    let (frames, _) = real.prepare(&[Disk::of("disk", &noise(3, 30_000))], &[]);
    real.segment(&frames);
    let start = real.bytes.len() - 2 * BLOCK as usize;
    let mut forged = Forge::sound();
    forged.bytes.resize(start, 0);
    forged.snapshot(&[Disk::of("disk", &noise(4, 9000))], &[]);
    let bytes = [&real.bytes[..start], &forged.bytes[start..]].concat();
    let home = holding(&bytes);
    let error = back_up(&home, &[disk(&noise(9, 5000))]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Damaged, "{error:?}");
    assert!(home.bytes() == bytes);
}

#[test]
fn a_commit_out_of_order_is_not_built_on() {
    // Both copies of the second commit say another number of their record.
    let bytes = two_in(Forge::new(Box::new(|spot, number, bytes| {
        if spot == Spot::RecordHead(RecordKind::Commit) && (2..4).contains(&number) {
            bytes[40] += 1;
        }
    })))
    .bytes;
    let home = holding(&bytes);
    assert_eq!(snapshots(&open(&home).unwrap()).unwrap().len(), 2);
    let error = back_up(&home, &[disk(&noise(9, 5000))]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Damaged, "{error:?}");
    assert!(home.bytes() == bytes);
}

#[test]
fn a_lost_commit_is_not_counted_past() {
    let mut forge = Forge::new(Box::new(|spot, number, bytes| {
        if spot == Spot::CommitRaw && (4..6).contains(&number) {
            bytes.fill(0);
        }
    }));
    for seed in 1..6 {
        forge.snapshot(&[Disk::of("disk", &noise(seed, 9000))], &[]);
    }
    let archive = open(&holding(&forge.bytes)).unwrap();
    let select = |back| archive.select(&Selector::Latest(back)).map(|found| found.commit);
    assert_eq!(select(1).unwrap().head.number, 4);
    for back in 2..7 {
        assert_eq!(select(back).unwrap_err().kind(), ErrorKind::Damaged, "latest~{back}");
    }
}
