//! Devices on their worst days: every operation fails once, transfers are short, late and out of
//! order, bits flip, writes go astray, devices shrink and vanish. The outcome is an error of the
//! right kind or success with the right content, within seconds, and never a panic.

use std::sync::Arc;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use voltar_engine::archive::Home;
use voltar_engine::device::hostile::{Fault, FaultPlan, HostileDevice, Which};
use voltar_engine::device::memory::MemoryDevice;
use voltar_engine::error::{ErrorKind, Result};
use voltar_engine::options::{
    BackupRequest, Delta, IoEngine, OnDamage, OnReadError, ParentChoice, Selector,
};
use voltar_engine::report::VolumeRestore;
use voltar_engine::restore::job::Job;
use voltar_engine::restore::volume::{How, Restore};

use crate::rig::{
    back_up, back_up_as, blank, context, disk, disk_like, for_seeds, holding, noise, open,
    read_volume, request, snapshots, verify, view_of, within,
};

/// What no operation may take longer than.
const SECONDS: u64 = 20;

const EIO: i32 = nix::errno::Errno::EIO as i32;
const ENOSPC: i32 = nix::errno::Errno::ENOSPC as i32;
const EINTR: i32 = nix::errno::Errno::EINTR as i32;
const EAGAIN: i32 = nix::errno::Errno::EAGAIN as i32;

fn content(seed: u64) -> Vec<u8> {
    disk_like(&mut StdRng::seed_from_u64(seed), 60_013)
}

/// An archive with one snapshot of `content(1)`.
fn with_one() -> MemoryDevice {
    let home = blank();
    back_up(&home, &[disk(&content(1))]).unwrap();
    home
}

fn plan(faults: Vec<Fault>) -> FaultPlan {
    FaultPlan { faults, ..FaultPlan::default() }
}

/// Everything in `home` is whole, and its snapshots are these.
fn check_whole(home: &MemoryDevice, expected: &[&[u8]], what: &str) {
    let archive = open(home).unwrap_or_else(|error| panic!("{what}: {error:?}"));
    let all = snapshots(&archive).unwrap_or_else(|error| panic!("{what}: {error:?}"));
    assert_eq!(all.len(), expected.len(), "{what}");
    for (snapshot, bytes) in all.iter().zip(expected) {
        let read = read_volume(&archive, &snapshot.manifest.volumes[0]);
        let read = read.unwrap_or_else(|error| panic!("{what}: {error:?}"));
        assert!(read == *bytes, "{what}: snapshot {} reads back wrong", snapshot.id);
    }
    let report = verify(&archive).unwrap();
    assert!(report.ok, "{what}: {:?}", report.damaged);
}

/// After a failed or succeeded backup onto `archive`: what the first one stored is whole before
/// and after a loss of power, the new one exists exactly if that was reported, and the next backup
/// succeeds.
fn check_after(archive: &HostileDevice, reported: bool, what: &str) {
    let (one, two) = (content(1), content(2));
    for dark in [archive.written().deep_clone(), archive.power_loss(), archive.durable()] {
        let count = snapshots(&open(&dark).unwrap()).unwrap().len();
        assert!(count >= if reported { 2 } else { 1 }, "{what}: a reported snapshot is gone");
        assert!(count <= 2, "{what}");
        back_up(&dark, &[disk(&two)]).unwrap_or_else(|error| panic!("{what}, next: {error:?}"));
        let all: [&[u8]; 3] = [&one, &two, &two];
        check_whole(&dark, &all[..count + 1], what);
    }
}

#[test]
fn every_operation_on_the_archive_fails_once() {
    let calm = HostileDevice::new(with_one(), FaultPlan::default());
    back_up(&calm, &[disk(&content(2))]).unwrap();
    let count = calm.op_count();
    assert!(count > 10, "{count} operations");
    let (mut failed, mut survived) = (0, 0);
    for nth in 0..count {
        for errno in [EIO, ENOSPC, EINTR, EAGAIN] {
            let what = format!("operation {nth} fails with {errno}");
            let fault = Fault::Fail { which: Which::Any, nth, errno };
            let archive = HostileDevice::new(with_one(), plan(vec![fault]));
            let shared = archive.clone();
            let outcome = within(SECONDS, &what, move || back_up(&shared, &[disk(&content(2))]));
            match &outcome {
                Ok(_) => survived += 1,
                Err(error) => {
                    failed += 1;
                    let kind = error.kind();
                    let right = match errno {
                        ENOSPC => kind == ErrorKind::NoSpace,
                        _ => kind == ErrorKind::Io,
                    };
                    assert!(right, "{what}: {error:?}");
                    assert!(error.subject().is_some(), "{what}: {error:?}");
                }
            }
            check_after(&archive, outcome.is_ok(), &what);
        }
    }
    println!("{failed} failed, {survived} survived");
    assert!(failed > 0 && survived > 0);
}

#[test]
fn the_archive_vanishes_at_every_operation() {
    let calm = HostileDevice::new(with_one(), FaultPlan::default());
    back_up(&calm, &[disk(&content(2))]).unwrap();
    for nth in 0..calm.op_count() {
        let what = format!("the archive vanishes at operation {nth}");
        let archive = HostileDevice::new(with_one(), plan(vec![Fault::Vanish { nth }]));
        let shared = archive.clone();
        let outcome = within(SECONDS, &what, move || back_up(&shared, &[disk(&content(2))]));
        assert_eq!(outcome.unwrap_err().kind(), ErrorKind::Io, "{what}");
        check_after(&archive, false, &what);
    }
}

#[test]
fn what_a_failed_sync_lost_is_not_adopted() {
    let calm = HostileDevice::new(with_one(), FaultPlan::default());
    back_up(&calm, &[disk(&content(2))]).unwrap();
    let (_, _, syncs) = calm.counts();
    for nth in 0..syncs {
        let what = format!("sync {nth} fails");
        let fault = Fault::Fail { which: Which::Syncs, nth, errno: EIO };
        let archive = HostileDevice::new(with_one(), plan(vec![fault]));
        assert_eq!(back_up(&archive, &[disk(&content(2))]).unwrap_err().kind(), ErrorKind::Io);
        // The same machine, the same cache: what was not written shows as though it were.
        back_up(&archive, &[disk(&content(3))]).unwrap();
        let home = archive.durable();
        let count = snapshots(&open(&home).unwrap()).unwrap().len();
        let all = [content(1), content(2), content(3)];
        let expected: Vec<&[u8]> = match count {
            2 => vec![&all[0], &all[2]],
            _ => all.iter().map(Vec::as_slice).collect(),
        };
        check_whole(&home, &expected, &what);
    }
}

#[test]
fn the_archive_is_full_after_every_number_of_kilobytes() {
    let mut full = 0;
    for space in (0..120_000).step_by(1531) {
        let what = format!("{space} bytes are left");
        let full_plan = FaultPlan { space: Some(space), ..FaultPlan::default() };
        let archive = HostileDevice::new(with_one(), full_plan);
        let shared = archive.clone();
        let outcome = within(SECONDS, &what, move || back_up(&shared, &[disk(&noise(5, 60_013))]));
        if let Err(error) = &outcome {
            assert_eq!(error.kind(), ErrorKind::NoSpace, "{what}: {error:?}");
            full += 1;
            // Every earlier snapshot still verifies, and with room again the work goes on.
            check_whole_prefix(archive.written(), &what);
            let next = archive.written().deep_clone();
            back_up(&next, &[disk(&noise(5, 60_013))]).unwrap();
            check_whole(&next, &[&content(1), &noise(5, 60_013)], &what);
        }
    }
    assert!((10..78).contains(&full), "{full} were full");
}

fn check_whole_prefix(home: &MemoryDevice, what: &str) {
    check_whole(home, &[&content(1)], what);
}

/// The driver's faults pass: nothing of them may be seen.
#[test]
fn short_late_and_interrupted_transfers_are_not_noticed() {
    for_seeds("short_late_and_interrupted", 40, |seed| {
        let mut rng = StdRng::seed_from_u64(seed);
        let storm = FaultPlan {
            seed,
            faults: Vec::new(),
            short_one_in: rng.random_range(1..4) * 2,
            transient_one_in: rng.random_range(2..6),
            reorder: true,
            ..FaultPlan::default()
        };
        let len = rng.random_range(1..3_000_000);
        let bytes = disk_like(&mut rng, len);
        let source = HostileDevice::new(MemoryDevice::from_bytes(&bytes), storm.clone());
        let archive = HostileDevice::new(blank(), storm.clone());
        let (shared, view) = (archive.clone(), view_of("disk", Arc::new(source)));
        within(SECONDS, "a storm", move || back_up(&shared, &[view])).unwrap();
        check_whole(archive.written(), &[&bytes], "a storm");
        let stale = noise(seed, bytes.len() + 777);
        let target = HostileDevice::new(MemoryDevice::from_bytes(&stale), storm);
        let home = archive.written().clone();
        let shared = target.clone();
        within(SECONDS, "a restore in a storm", move || {
            restore(&home, &shared, Delta::Off, OnDamage::Fail)
        })
        .unwrap();
        let restored = target.written().bytes();
        assert!(restored[..bytes.len()] == bytes, "the target is wrong");
        assert!(restored[bytes.len()..] == stale[bytes.len()..], "bytes behind the volume changed");
    });
}

/// The newest snapshot's first volume onto a target.
fn restore(
    home: &(impl Home + Clone + 'static),
    target: &HostileDevice,
    delta: Delta,
    on_damage: OnDamage,
) -> Result<VolumeRestore> {
    let archive = open(home)?;
    let snapshot = archive.select(&Selector::Latest(0))?;
    let job = Job::new(&archive, &snapshot, &snapshot.manifest.volumes[0], on_damage)?;
    let how = How { delta, ..How::default() };
    let context = context();
    let restore = Restore::new(&job, target, how, &context, IoEngine::Blocking);
    restore.write().map_err(|error| restore.explain(error))?;
    Ok(restore.report(true))
}

#[test]
fn every_operation_on_the_source_fails_once() {
    let bytes = noise(3, 2_500_000);
    let run = |faults: Vec<Fault>| {
        let source = HostileDevice::new(MemoryDevice::from_bytes(&bytes), plan(faults));
        let archive = with_one();
        let (home, view) = (archive.clone(), view_of("disk", Arc::new(source.clone())));
        let outcome = within(SECONDS, "a backup", move || back_up(&home, &[view]));
        (source.op_count(), archive, outcome)
    };
    let (count, _, outcome) = run(Vec::new());
    outcome.unwrap();
    let mut failed = 0;
    for nth in 0..count {
        for (fault, kinds) in [
            (Fault::Fail { which: Which::Any, nth, errno: EIO }, [ErrorKind::SourceUnreadable; 2]),
            (Fault::Vanish { nth }, [ErrorKind::SourceUnreadable, ErrorKind::Io]),
            (Fault::Shrink { nth, len: 1_000_000 }, [ErrorKind::SourceUnusable; 2]),
        ] {
            let what = format!("{fault:?}");
            let (_, archive, outcome) = run(vec![fault]);
            match outcome {
                Ok(_) => check_whole(&archive, &[&content(1), &bytes], &what),
                Err(error) => {
                    failed += 1;
                    assert!(kinds.contains(&error.kind()), "{what}: {error:?}");
                    check_whole(&archive, &[&content(1)], &what);
                }
            }
        }
    }
    println!("{count} operations, {failed} failed");
    assert!(failed as u64 >= count);
}

/// Sectors that cannot be read: the backup fails and names them, or records them exactly.
#[test]
fn unreadable_sectors_are_recorded_and_restored_as_zeroes() {
    for_seeds("unreadable_sectors", 30, |seed| {
        let mut rng = StdRng::seed_from_u64(seed);
        let len: usize = rng.random_range(20_000..700_000);
        let bytes = noise(seed, len);
        let mut bad: Vec<std::ops::Range<u64>> = Vec::new();
        let mut at = 0;
        for _ in 0..rng.random_range(1..5) {
            let start = at + 512 * rng.random_range(0..100u64);
            let end = start + 512 * rng.random_range(1..30u64);
            if end < len as u64 {
                bad.push(start..end);
            }
            at = end + 4096;
        }
        if bad.is_empty() {
            return;
        }
        let device = || {
            let faults = bad
                .iter()
                .map(|range| Fault::BadRange { range: range.clone(), errno: EIO })
                .collect();
            let memory = MemoryDevice::from_bytes(&bytes).with_block_len(512);
            Arc::new(HostileDevice::new(memory, plan(faults)))
        };
        let archive = with_one();
        let (home, view) = (archive.clone(), view_of("disk", device()));
        let error = within(SECONDS, "a backup", move || back_up(&home, &[view])).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::SourceUnreadable, "{error:?}");
        let named = error.range().expect("it names the range");
        assert!(bad.iter().any(|bad| bad.start < named.end && named.start < bad.end), "{error:?}");
        check_whole(&archive, &[&content(1)], "after the failure");

        let record = BackupRequest { on_read_error: OnReadError::Record, ..request() };
        let (home, view) = (archive.clone(), view_of("disk", device()));
        let report = within(SECONDS, "a backup", move || back_up_as(&home, &[view], &record));
        let report = report.unwrap();
        let mut expected = bytes.clone();
        for range in &bad {
            expected[range.start as usize..range.end as usize].fill(0);
        }
        let covered = |at: u64| {
            let found = &report.volumes[0].unreadable;
            found.iter().any(|range| (range.offset..range.offset + range.length).contains(&at))
        };
        let recorded: u64 = report.volumes[0].unreadable.iter().map(|range| range.length).sum();
        let lost: u64 = bad.iter().map(|range| range.end - range.start).sum();
        assert_eq!(recorded, lost, "{:?} for {bad:?}", report.volumes[0].unreadable);
        assert!(bad.iter().all(|range| covered(range.start) && covered(range.end - 1)));
        check_whole(&archive, &[&content(1), &expected], "with unreadable sectors");
        let target = HostileDevice::new(MemoryDevice::from_bytes(&noise(9, len)), plan(vec![]));
        let restored = restore(&archive, &target, Delta::Off, OnDamage::Fail).unwrap();
        assert!(target.written().bytes() == expected, "the target is wrong");
        let named: u64 = restored.unreadable.iter().map(|range| range.length).sum();
        assert_eq!(named, lost, "{:?} for {bad:?}", restored.unreadable);

        // With the sectors back, the next backup reads them whatever a parent says.
        back_up(&archive, &[disk(&bytes)]).unwrap();
        check_whole(&archive, &[&content(1), &expected, &bytes], "after the repair");
    });
}

/// Every bit is covered: a flip anywhere is found, and no reader hands on what it changed.
#[test]
fn any_flipped_bit_is_found() {
    let home = with_one();
    back_up(&home, &[disk(&content(2))]).unwrap();
    let good = home.bytes();
    let expected = [content(1), content(2)];
    let soak = std::env::var("VOLTAR_SOAK").is_ok();
    let step = if soak { 1 } else { 61 };
    let mut rng = StdRng::seed_from_u64(good.len() as u64);
    let mut flips = 0;
    for at in (0..good.len()).step_by(step) {
        let mask = 1u8 << rng.random_range(0..8);
        let what = format!("byte {at:#x} of {:#x}, mask {mask:#04x}", good.len());
        let fault = Fault::FlipOnRead { offset: at as u64, mask };
        let flipped = HostileDevice::new(holding(&good), plan(vec![fault]));
        flips += 1;
        let archive = match open(&flipped) {
            Ok(archive) => archive,
            Err(error) => {
                let kind = error.kind();
                let right = [ErrorKind::Damaged, ErrorKind::NotAnArchive].contains(&kind);
                assert!(right || kind == ErrorKind::UnsupportedFormat, "{what}: {error:?}");
                continue;
            }
        };
        let report = verify(&archive).unwrap_or_else(|error| panic!("{what}: {error:?}"));
        assert!(!report.ok, "{what}: not found");
        for snapshot in archive.snapshots() {
            let Ok(snapshot) = snapshot else { break };
            if let Ok(bytes) = read_volume(&archive, &snapshot.manifest.volumes[0]) {
                assert!(expected.contains(&bytes), "{what}: wrong bytes were handed on");
            }
        }
    }
    println!("{flips} flips");
    assert!(flips > 500 || soak, "{flips} flips");
}

/// A restore from an archive with a flipped bit writes the right bytes, or fails and says so, or
/// with `OnDamage::Zero` zeroes what it names and nothing else.
#[test]
fn a_restore_never_writes_what_a_flipped_bit_made() {
    let home = blank();
    back_up(&home, &[disk(&content(2))]).unwrap();
    let good = home.bytes();
    let expected = content(2);
    let mut rng = StdRng::seed_from_u64(11);
    let (mut whole, mut lost) = (0, 0);
    for _ in 0..150 {
        let at = rng.random_range(4096..good.len());
        let mut bad = good.clone();
        bad[at] ^= 1 << rng.random_range(0..8);
        let what = format!("byte {at:#x}");
        let target =
            || HostileDevice::new(MemoryDevice::from_bytes(&noise(4, 60_013)), plan(vec![]));
        let fresh = target();
        match restore(&holding(&bad), &fresh, Delta::Off, OnDamage::Fail) {
            Ok(_) => {
                whole += 1;
                assert!(fresh.written().bytes() == expected, "{what}: wrong bytes");
                continue;
            }
            Err(error) => {
                let kinds = [ErrorKind::Damaged, ErrorKind::TargetPartial, ErrorKind::NotFound];
                assert!(kinds.contains(&error.kind()), "{what}: {error:?}");
            }
        }
        let bearing = target();
        if let Ok(report) = restore(&holding(&bad), &bearing, Delta::Off, OnDamage::Zero) {
            lost += 1;
            let mut zeroed = expected.clone();
            for range in &report.damaged {
                zeroed[range.offset as usize..(range.offset + range.length) as usize].fill(0);
            }
            assert!(!report.damaged.is_empty(), "{what}: it does not say what is lost");
            assert!(bearing.written().bytes() == zeroed, "{what}: wrong bytes beside the damage");
        }
    }
    println!("{whole} whole, {lost} with damage");
    assert!(whole > 0 && lost > 0);
}

/// An archive that goes away in the middle holds nothing that is lost: whoever bears damage does not
/// bear that, whatever the page cache still holds of it.
#[test]
fn an_archive_that_vanishes_is_no_damage() {
    for cached in [false, true] {
        goes_away(cached, |nth| Fault::Vanish { nth });
        // What is left of a block device that was pulled out.
        goes_away(cached, |nth| Fault::Shrink { nth, len: 0 });
    }
}

/// Restores from an archive that goes away at each of its reads, and bears damage.
fn goes_away(cached: bool, fault: fn(u64) -> Fault) {
    // More than is read when an archive is opened.
    let bytes = noise(9, 3_000_013);
    let home = blank();
    back_up(&home, &[disk(&bytes)]).unwrap();
    let archive = |faults| {
        let plan = FaultPlan { cached, ..plan(faults) };
        HostileDevice::new(home.deep_clone(), plan)
    };
    let bear = |archive: &HostileDevice, target: &HostileDevice| {
        restore(archive, target, Delta::Off, OnDamage::Zero)
    };
    let stale = noise(4, bytes.len());
    let target = || HostileDevice::new(MemoryDevice::from_bytes(&stale), plan(vec![]));
    let calm = archive(vec![]);
    bear(&calm, &target()).unwrap();
    let (reads, _, _) = calm.counts();
    let (mut failed, mut told) = (0, 0);
    for nth in 0..reads {
        let what = format!("{:?}, cached: {cached}", fault(nth));
        let (archive, target) = (archive(vec![fault(nth)]), target());
        let shared = target.clone();
        let outcome = within(SECONDS, &what, move || bear(&archive, &shared));
        match outcome {
            Ok(report) => {
                assert!(report.damaged.is_empty(), "{what}: {:?}", report.damaged);
                assert!(target.written().bytes() == bytes, "{what}: wrong bytes");
            }
            Err(error) => {
                failed += 1;
                let hint = error.remedy().unwrap_or_default();
                assert!(!hint.contains("--on-damage"), "{what}: it was given: {error:?}, {hint}");
                told += u64::from(hint.contains("attach it again"));
            }
        }
    }
    assert!(failed > 0 && told > 0, "{failed} failed, {told} of these while restoring");
}

/// A write that lands elsewhere is found by the next verification.
#[test]
fn misdirected_writes_are_found() {
    let calm = HostileDevice::new(with_one(), FaultPlan::default());
    back_up(&calm, &[disk(&content(2))]).unwrap();
    let (_, writes, _) = calm.counts();
    let len = calm.written().bytes().len() as u64;
    let one = open(&with_one()).unwrap();
    let commit = one.last.unwrap().offset.0;
    let mut found = 0;
    for nth in 0..writes {
        for offset in (0..len + 8192).step_by(4096) {
            // Over both copies of the last commit: the test below.
            let lands = offset..offset + 8192;
            if lands.contains(&commit) || lands.contains(&(commit + 4096)) {
                continue;
            }
            let what = format!("write {nth} lands at {offset:#x}");
            let fault = Fault::Misdirect { nth, offset };
            let archive = HostileDevice::new(with_one(), plan(vec![fault]));
            let shared = archive.clone();
            let outcome = within(SECONDS, &what, move || back_up(&shared, &[disk(&content(2))]));
            if archive.written().bytes() == calm.written().bytes() {
                continue;
            }
            let Ok(opened) = open(archive.written()) else {
                found += 1;
                continue;
            };
            let report = verify(&opened).unwrap_or_else(|error| panic!("{what}: {error:?}"));
            let all = snapshots(&opened);
            let right = all.is_ok_and(|all| {
                // If the commit itself went astray and hit nothing, the archive is as before.
                let lost = outcome.is_ok() && all.len() == 1 && nth == writes - 1;
                (lost || all.len() == if outcome.is_ok() { 2 } else { 1 })
                    && all.iter().zip([content(1), content(2)]).all(|(snapshot, bytes)| {
                        read_volume(&opened, &snapshot.manifest.volumes[0])
                            .is_ok_and(|read| read == bytes)
                    })
            });
            // The write may have gone where it belongs.
            assert!(!report.ok || right || outcome.is_err(), "{what}: not found");
            found += u64::from(!report.ok);
        }
    }
    println!("{found} found");
    assert!(found > 10, "{found} found");
}

/// A write that lands on both copies of the only commit takes its snapshot away; records behind it
/// still name that commit, so that its loss can be told from an archive without snapshots.
#[test]
fn a_write_over_both_copies_of_the_last_commit_is_found() {
    let home = with_one();
    let archive = open(&home).unwrap();
    let commit = archive.last.unwrap();
    let recorder = crate::recorder::Recorder::new(home.deep_clone());
    back_up(&recorder, &[disk(&content(2))]).unwrap();
    let mut bytes = recorder.bytes();
    let last = open(&holding(&bytes)).unwrap().last.unwrap().offset.0 as usize;
    bytes.truncate(last);
    bytes[commit.offset.0 as usize..commit.end().0 as usize].fill(0xaa);
    let opened = open(&holding(&bytes)).unwrap();
    let report = verify(&opened).unwrap();
    assert!(!report.ok, "a lost snapshot was not noticed");
    assert!(report.damaged.iter().any(|damage| damage.error.contains("F-044")), "{report:#?}");
    // And no writer may throw away what is behind it.
    let damaged = holding(&bytes);
    assert_eq!(back_up(&damaged, &[disk(&content(2))]).unwrap_err().kind(), ErrorKind::Damaged);
    assert!(damaged.bytes() == bytes);
}

#[test]
fn every_operation_on_the_target_fails_once() {
    let home = blank();
    let bytes = disk_like(&mut StdRng::seed_from_u64(8), 900_001);
    back_up(&home, &[disk(&bytes)]).unwrap();
    let stale = noise(6, 900_001);
    for delta in [Delta::Off, Delta::On] {
        let calm = HostileDevice::new(MemoryDevice::from_bytes(&stale), plan(vec![]));
        restore(&home, &calm, delta, OnDamage::Fail).unwrap();
        assert!(calm.written().bytes() == bytes);
        let count = calm.op_count();
        let mut failed = 0;
        for nth in 0..count {
            for fault in [
                Fault::Fail { which: Which::Any, nth, errno: EIO },
                Fault::Fail { which: Which::Any, nth, errno: ENOSPC },
                Fault::Vanish { nth },
            ] {
                let what = format!("{delta:?}, {fault:?}");
                let memory = MemoryDevice::from_bytes(&stale);
                let target = HostileDevice::new(memory, plan(vec![fault.clone()]));
                let (archive, shared) = (home.clone(), target.clone());
                let outcome = within(SECONDS, &what, move || {
                    restore(&archive, &shared, delta, OnDamage::Fail)
                });
                let Err(error) = outcome else {
                    assert!(target.durable().bytes() == bytes, "{what}: wrong bytes");
                    continue;
                };
                failed += 1;
                let touched = target.written().bytes() != stale;
                let right = match error.kind() {
                    ErrorKind::TargetPartial => true,
                    ErrorKind::Io | ErrorKind::NoSpace => !touched,
                    _ => false,
                };
                assert!(right, "{what}: {error:?}, touched: {touched}");
                // The same again finishes the work, on the target as it is now: with a cache that may
                // show what never came to the medium.
                if !matches!(fault, Fault::Vanish { .. }) {
                    finish(&home, &target, &bytes, &format!("{what}, again"));
                }
                // And on what a loss of power leaves of it.
                for share in [0.0, 0.5, 1.0] {
                    let left = HostileDevice::new(target.power_loss_keeping(share), plan(vec![]));
                    finish(&home, &left, &bytes, &format!("{what}, after a loss of power"));
                }
            }
        }
        println!("{delta:?}: {count} operations, {failed} failed");
        assert!(failed > 0);
    }
}

/// Restores once more onto what an earlier run left; what is there then outlives a loss of power.
fn finish(home: &MemoryDevice, target: &HostileDevice, bytes: &[u8], what: &str) {
    restore(home, target, Delta::On, OnDamage::Fail)
        .unwrap_or_else(|error| panic!("{what}: {error:?}"));
    assert!(target.durable().bytes() == bytes, "{what}: the medium holds something else");
}

/// A target that writes elsewhere is caught by reading it again.
#[test]
fn read_back_finds_a_target_that_lies() {
    let home = blank();
    let bytes = noise(12, 1_500_000);
    back_up(&home, &[disk(&bytes)]).unwrap();
    let archive = open(&home).unwrap();
    let snapshot = archive.select(&Selector::Latest(0)).unwrap();
    let volume = &snapshot.manifest.volumes[0];
    let job = Job::new(&archive, &snapshot, volume, OnDamage::Fail).unwrap();
    for fault in
        [Fault::Misdirect { nth: 0, offset: 512 }, Fault::FlipOnRead { offset: 1_234_567, mask: 4 }]
    {
        let what = format!("{fault:?}");
        let memory = MemoryDevice::new(bytes.len() as u64 + (2 << 20));
        let target = HostileDevice::new(memory, plan(vec![fault]));
        let context = context();
        let how = How { delta: Delta::Off, ..How::default() };
        let restore = Restore::new(&job, &target, how, &context, IoEngine::Blocking);
        restore.write().unwrap();
        let error = restore.prove().expect_err(&what);
        assert_eq!(error.kind(), ErrorKind::Mismatch, "{what}: {error:?}");
    }
}

/// Reading the archive fails at any operation: lists, restores and verifications say so.
#[test]
fn every_read_of_the_archive_fails_once() {
    let home = with_one();
    let target = || HostileDevice::new(MemoryDevice::new(60_013), plan(vec![]));
    let run = |archive: &HostileDevice| -> Result<(bool, Vec<u8>)> {
        let opened = open(archive)?;
        let report = verify(&opened)?;
        let snapshot = opened.select(&Selector::Latest(0))?;
        let volume = &snapshot.manifest.volumes[0];
        let job = Job::new(&opened, &snapshot, volume, OnDamage::Fail)?;
        let target = target();
        let context = context();
        let restore = Restore::new(&job, &target, How::default(), &context, IoEngine::Blocking);
        restore.write().map_err(|error| restore.explain(error))?;
        Ok((report.ok, target.written().bytes()))
    };
    let calm = HostileDevice::new(home.deep_clone(), plan(vec![]));
    assert!(run(&calm).unwrap() == (true, content(1)));
    let (reads, _, _) = calm.counts();
    let mut failed = 0;
    for nth in 0..reads {
        for errno in [EIO, EINTR, EAGAIN] {
            let what = format!("read {nth} fails with {errno}");
            let fault = Fault::Fail { which: Which::Reads, nth, errno };
            let archive = HostileDevice::new(home.deep_clone(), plan(vec![fault]));
            match run(&archive) {
                Ok((ok, bytes)) => {
                    assert!(bytes == content(1), "{what}: wrong bytes");
                    failed += u64::from(!ok);
                }
                Err(error) => {
                    failed += 1;
                    let kinds = [ErrorKind::Io, ErrorKind::TargetPartial, ErrorKind::Damaged];
                    assert!(kinds.contains(&error.kind()), "{what}: {error:?}");
                }
            }
        }
    }
    println!("{reads} reads, {failed} failures seen");
    assert!(failed > 0);
}

/// An explicit parent whose map cannot be read: said, never guessed.
#[test]
fn a_parent_that_cannot_be_read_is_no_reason_for_wrong_content() {
    let home = with_one();
    let end = open(&home).unwrap().end().0;
    for at in (4096..end).step_by(512) {
        let fault = Fault::BadRange { range: at..at + 512, errno: EIO };
        let archive = HostileDevice::new(home.deep_clone(), plan(vec![fault]));
        let choice = ParentChoice::Snapshot(Selector::Latest(0));
        let request = BackupRequest { parent: choice, ..request() };
        let shared = archive.clone();
        let what = format!("the archive cannot be read at {at:#x}");
        let outcome =
            within(SECONDS, &what, move || back_up_as(&shared, &[disk(&content(2))], &request));
        match outcome {
            Ok(_) => check_whole(archive.written(), &[&content(1), &content(2)], &what),
            Err(error) => {
                let kinds = [ErrorKind::Io, ErrorKind::Damaged, ErrorKind::NotFound];
                assert!(kinds.contains(&error.kind()), "{what}: {error:?}");
                check_whole_prefix(archive.written(), &what);
            }
        }
    }
}
