//! Opening an archive, to read or to write: what a bad sector, a forged end or a lost commit costs,
//! and what a writer builds on.

use std::sync::Arc;

use voltar_engine::device::hostile::{Fault, FaultPlan, HostileDevice};
use voltar_engine::device::memory::{LoggedOp, MemoryDevice};
use voltar_engine::error::ErrorKind;
use voltar_format::limits::COMMIT_LEN_MAX;
use voltar_format::record::{RECORD_MAGIC, RecordHead, RecordKind};
use voltar_format::wire::Reserved;
use voltar_format::{LogOffset, SessionId};

use crate::forge::{ARCHIVE, Disk, Forge};
use crate::rig::{back_up, disk, holding, noise, open, snapshots};

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
        let mut head = RecordHead {
            magic: RECORD_MAGIC,
            kind: RecordKind::Data as u8,
            flags: 0,
            reserved_a: Reserved,
            archive_id: ARCHIVE,
            offset,
            sequence: 9,
            session: SessionId([1; 16]),
            last_commit: LogOffset(0),
            previous: LogOffset(0),
            body_len: 0,
            body_crc: 0,
            reserved_b: Reserved,
            crc: 0,
        };
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
