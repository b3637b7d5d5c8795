//! Restores against plain bytes: memory devices, hostile twins, files, loop devices.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tempfile::TempDir;
use voltar_engine::archive::Home;
use voltar_engine::archive::open::Archive;
use voltar_engine::backup;
use voltar_engine::cancel::Cancel;
use voltar_engine::device::hostile::{Fault, FaultPlan, HostileDevice, Which};
use voltar_engine::device::memory::{LoggedOp, MemoryDevice};
use voltar_engine::device::{Device, Extents};
use voltar_engine::error::{Error, ErrorKind};
use voltar_engine::observe::{Observer, Phase};
use voltar_engine::options::{
    ArchiveHome, BackupRequest, Changes, Compression, Context, Dedup, Delta, IoEngine, OnDamage,
    OnReadError, ParentChoice, RestoreRequest, Selector, SourceRequest, TargetRequest, Targets,
};
use voltar_engine::report::{ByteRange, VolumeRestore};
use voltar_engine::restore::job::{Job, Target};
use voltar_engine::restore::volume::{How, Restore};
use voltar_engine::source::View;

const EIO: i32 = 5;

fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; len];
    StdRng::seed_from_u64(seed).fill(&mut bytes[..]);
    bytes
}

/// Stretches of noise, text, zeroes, and copies of what came before, in chunks and parts of them.
fn volume(len: usize, chunk_len: usize, seed: u64) -> Vec<u8> {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut bytes = Vec::with_capacity(len);
    while bytes.len() < len {
        let count = rng.random_range(1..4) * chunk_len;
        let count = if rng.random_bool(0.2) { rng.random_range(1..=count) } else { count };
        match rng.random_range(0..4) {
            0 => bytes.resize(bytes.len() + count, 0),
            1 => bytes.extend(noise(count, rng.random())),
            2 => bytes.extend(b"all work and no play ".iter().cycle().take(count)),
            _ => {
                let from = rng.random_range(0..=bytes.len()) / chunk_len * chunk_len;
                let copy = bytes[from..bytes.len().min(from + count)].to_vec();
                bytes.extend(copy);
                let whole = bytes.len().next_multiple_of(chunk_len);
                bytes.resize(whole, 7);
            }
        }
    }
    bytes.truncate(len);
    bytes
}

fn context() -> Context {
    Context {
        memory_bytes: 64 << 20,
        threads: std::num::NonZeroUsize::new(2),
        ..Context::default()
    }
}

fn backup_request(chunk_len: u32) -> BackupRequest {
    BackupRequest {
        sources: Vec::new(),
        archive: ArchiveHome::Stdout,
        parent: ParentChoice::Auto,
        changes: Changes::Full,
        audit_share: 0.0,
        compression: Compression::Auto,
        chunk_len: Some(chunk_len),
        attach: Vec::new(),
        tags: std::collections::BTreeMap::new(),
        dedup: Dedup::On,
        on_read_error: OnReadError::Record,
        holding: Default::default(),
        dry_run: false,
    }
}

/// Backs `source` up as volume `vm` into `home`.
fn back_up(home: &MemoryDevice, source: Arc<dyn Extents>, chunk_len: u32) {
    let view = View {
        name: "vm".into(),
        description: "test".into(),
        size: source.len().unwrap(),
        device: source,
        change_source: None,
        degraded: None,
    };
    let home: Arc<dyn Home> = Arc::new(home.clone());
    backup::run_in(&backup_request(chunk_len), &[view], home, &context()).unwrap();
}

/// An archive with one snapshot of `bytes`.
fn archive_of(bytes: &[u8], chunk_len: u32) -> MemoryDevice {
    let home = MemoryDevice::new(0).growing().with_label("archive");
    back_up(&home, Arc::new(MemoryDevice::from_bytes(bytes)), chunk_len);
    home
}

fn job_in(home: Arc<dyn Home>, on_damage: OnDamage) -> Job {
    let archive = Archive::open(home).unwrap();
    let snapshot = archive.select(&Selector::Latest(0)).unwrap();
    let volume = snapshot.manifest.volume("vm").unwrap().clone();
    Job::new(&archive, &snapshot, &volume, on_damage).unwrap()
}

fn job(home: &MemoryDevice) -> Job {
    job_in(Arc::new(home.clone()), OnDamage::Fail)
}

fn how(delta: Delta) -> How {
    How { delta, ..How::default() }
}

/// Restores and proves.
fn restore_with(
    job: &Job,
    target: &dyn Target,
    how: How,
    context: &Context,
) -> Result<VolumeRestore, Error> {
    let restore = Restore::new(job, target, how, context, IoEngine::Blocking);
    restore.write().map_err(|error| restore.explain(error))?;
    restore.prove().map_err(|error| restore.explain(error))?;
    let report = restore.report(true);
    let sum = report.written_bytes + report.zeroed_bytes + report.kept_bytes;
    assert_eq!(sum, report.size, "{report:?}");
    Ok(report)
}

fn restore(job: &Job, target: &dyn Target, how: How) -> Result<VolumeRestore, Error> {
    restore_with(job, target, how, &context())
}

/// Starts and ends.
type Spans = Vec<(u64, u64)>;

/// What was written or zeroed, ascending and merged; zeroing and writing apart.
fn effects(device: &MemoryDevice) -> (Spans, Spans) {
    let (mut writes, mut zeroes) = (Vec::new(), Vec::new());
    for op in device.take_ops() {
        match op {
            LoggedOp::Write(range) => writes.push((range.start, range.end)),
            LoggedOp::Zero(range) => zeroes.push((range.start, range.end)),
            _ => {}
        }
    }
    for ranges in [&mut writes, &mut zeroes] {
        ranges.sort_unstable();
        ranges.dedup_by(|next, last| {
            assert!(next.0 >= last.1, "{next:?} and {last:?} overlap");
            let touches = next.0 == last.1;
            if touches {
                last.1 = next.1;
            }
            touches
        });
    }
    (writes, zeroes)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn what_is_restored_equals_the_source(
        len in 1usize..3_000_000,
        chunk_shift in 12u32..=20,
        seed in any::<u64>(),
        delta in prop::sample::select(vec![Delta::Off, Delta::On, Delta::Auto]),
        more in prop::sample::select(vec![0usize, 1, 511, 70_000]),
    ) {
        let chunk_len = 1usize << chunk_shift;
        let len = if chunk_shift < 14 { len / 4 + 1 } else { len };
        let bytes = volume(len, chunk_len, seed);
        let job = job(&archive_of(&bytes, chunk_len as u32));
        let before = noise(len + more, seed ^ 1);
        let target = MemoryDevice::from_bytes(&before);
        restore(&job, &target, how(delta)).unwrap();
        let after = target.bytes();
        prop_assert!(after[..len] == bytes[..]);
        prop_assert!(after[len..] == before[len..], "bytes behind the volume changed");
    }

    #[test]
    fn a_delta_writes_only_what_differs(
        len in 1usize..2_000_000,
        chunk_shift in 12u32..=18,
        seed in any::<u64>(),
        edits in prop::collection::vec(any::<prop::sample::Index>(), 0..8),
    ) {
        let chunk_len = 1usize << chunk_shift;
        let bytes = volume(len, chunk_len, seed);
        let job = job(&archive_of(&bytes, chunk_len as u32));
        let mut old = bytes.clone();
        let mut changed = std::collections::BTreeSet::new();
        for edit in edits {
            let at = edit.index(len);
            old[at] ^= 0x55;
            changed.insert(at / chunk_len);
        }
        changed.retain(|chunk| {
            let range = chunk * chunk_len..((chunk + 1) * chunk_len).min(len);
            old[range.clone()] != bytes[range]
        });
        let target = MemoryDevice::from_bytes(&old).with_log();
        let report = restore(&job, &target, how(Delta::On)).unwrap();
        prop_assert!(target.bytes() == bytes);
        let size_of = |chunk: &usize| (chunk_len.min(len - chunk * chunk_len)) as u64;
        let expected: u64 = changed.iter().map(size_of).sum();
        prop_assert_eq!(report.written_bytes + report.zeroed_bytes, expected);
        let (writes, zeroes) = effects(&target);
        let done: u64 = writes.iter().chain(&zeroes).map(|(start, end)| end - start).sum();
        prop_assert_eq!(done, expected);
    }

    #[test]
    fn an_interrupted_restore_goes_on(
        seed in any::<u64>(),
        stop_at in 0u64..6_000_000,
    ) {
        let bytes = volume(2_000_003, 16 << 10, seed);
        let job = job(&archive_of(&bytes, 16 << 10));
        let target = MemoryDevice::from_bytes(&noise(bytes.len(), seed ^ 1));
        let cancel = Cancel::new();
        let observer = StopAt { left: AtomicU64::new(stop_at), cancel: cancel.clone() };
        let stopping = Context { cancel, observer: Arc::new(observer), ..context() };
        match restore_with(&job, &target, how(Delta::On), &stopping) {
            Ok(_) => {}
            Err(error) => {
                prop_assert_eq!(error.kind(), ErrorKind::Interrupted);
                prop_assert!(error.data_meaning().is_some());
                let again = How { resumes: true, ..How::default() };
                restore(&job, &target, again).unwrap();
            }
        }
        prop_assert!(target.bytes() == bytes);
    }
}

/// Asks to stop after so many bytes of progress.
struct StopAt {
    left: AtomicU64,
    cancel: Cancel,
}

impl Observer for StopAt {
    fn advance(&self, bytes: u64) {
        let left = self.left.load(Ordering::Relaxed).saturating_sub(bytes);
        self.left.store(left, Ordering::Relaxed);
        if left == 0 {
            self.cancel.raise();
        }
    }
}

const CHUNK: usize = 4096;

/// 40 chunks: data in 3..5 and 20..21 (the same), text in 30..40, zeroes elsewhere; 100 bytes
/// more.
fn sparse() -> Vec<u8> {
    let mut bytes = vec![0; 40 * CHUNK + 100];
    bytes[3 * CHUNK..5 * CHUNK].copy_from_slice(&noise(2 * CHUNK, 1));
    bytes.copy_within(3 * CHUNK..4 * CHUNK, 20 * CHUNK);
    bytes[30 * CHUNK..].copy_from_slice(&noise(10 * CHUNK + 100, 2));
    bytes
}

fn chunks(ranges: &[(usize, usize)]) -> Spans {
    let end = |end: usize| (end * CHUNK).min(40 * CHUNK + 100) as u64;
    ranges.iter().map(|(from, to)| ((from * CHUNK) as u64, end(*to))).collect()
}

#[test]
fn every_range_is_written_or_zeroed_and_none_twice() {
    let bytes = sparse();
    let job = job(&archive_of(&bytes, CHUNK as u32));
    let target = MemoryDevice::from_bytes(&noise(bytes.len(), 3)).with_log();
    let report = restore(&job, &target, how(Delta::Off)).unwrap();
    assert!(target.bytes() == bytes);
    let (writes, zeroes) = effects(&target);
    assert_eq!(writes, chunks(&[(3, 5), (20, 21), (30, 41)]));
    assert_eq!(zeroes, chunks(&[(0, 3), (5, 20), (21, 30)]));
    assert_eq!(report.zero_method, "punch-hole");
}

#[test]
fn a_target_just_created_is_written_only_where_there_is_data() {
    let bytes = sparse();
    let job = job(&archive_of(&bytes, CHUNK as u32));
    let target = MemoryDevice::new(bytes.len() as u64).with_log();
    let report = restore(&job, &target, How { blank: true, ..How::default() }).unwrap();
    assert!(target.bytes() == bytes);
    let (writes, zeroes) = effects(&target);
    assert_eq!((writes, zeroes), (chunks(&[(3, 5), (20, 21), (30, 41)]), vec![]));
    assert_eq!(report.zero_method, "hole");
}

#[test]
fn a_delta_keeps_holes_without_reading_them() {
    let bytes = sparse();
    let job = job(&archive_of(&bytes, CHUNK as u32));
    let target = MemoryDevice::new(bytes.len() as u64);
    target.write_at(&bytes[30 * CHUNK..35 * CHUNK], 30 * CHUNK as u64).unwrap();
    target.write_at(&[1; 10], 25 * CHUNK as u64).unwrap();
    let target = target.with_log();
    let compare =
        Restore::new(&job, &target, how(Delta::On), &context(), IoEngine::Blocking).write();
    compare.unwrap();
    let ops = target.take_ops();
    let reads: Vec<_> = ops.iter().filter(|op| matches!(op, LoggedOp::Read(_))).collect();
    let chunk = CHUNK as u64;
    assert_eq!(
        reads,
        [&LoggedOp::Read(25 * chunk..26 * chunk), &LoggedOp::Read(30 * chunk..35 * chunk)]
    );
    assert!(ops.contains(&LoggedOp::Zero(25 * chunk..26 * chunk)));
    assert!(target.bytes() == bytes);
}

#[test]
fn a_volume_of_zeroes_costs_nothing_to_speak_of() {
    let home = MemoryDevice::new(0).growing();
    let size = 16 << 40;
    back_up(&home, Arc::new(MemoryDevice::new(size)), 64 << 10);
    let target = MemoryDevice::new(size).with_log();
    let report = restore(&job(&home), &target, how(Delta::Off)).unwrap();
    assert_eq!(report.zeroed_bytes, size);
    assert_eq!(effects(&target), (vec![], vec![(0, size)]));
    let report = restore(&job(&home), &target, how(Delta::On)).unwrap();
    assert_eq!((report.kept_bytes, target.ops().len()), (size, 2), "only syncs");
}

#[test]
fn auto_compares_with_an_older_copy_and_not_with_noise() {
    let mut bytes = noise(4 << 20, 1);
    let job = job(&archive_of(&bytes, 64 << 10));
    bytes[100] ^= 1;
    let older = MemoryDevice::from_bytes(&bytes);
    let report = restore(&job, &older, how(Delta::Auto)).unwrap();
    assert_eq!((report.written_bytes, report.kept_bytes), (64 << 10, (4 << 20) - (64 << 10)));
    let other = MemoryDevice::from_bytes(&noise(4 << 20, 2));
    assert_eq!(restore(&job, &other, how(Delta::Auto)).unwrap().kept_bytes, 0);
}

#[test]
fn a_write_error_leaves_a_target_that_the_same_command_finishes() {
    let bytes = volume(3_000_001, 64 << 10, 5);
    let job = job(&archive_of(&bytes, 64 << 10));
    for nth in [0, 1, 5, 20] {
        let fault = Fault::Fail { which: Which::Writes, nth, errno: EIO };
        let plan = FaultPlan { seed: nth, faults: vec![fault], ..FaultPlan::default() };
        let target = HostileDevice::new(MemoryDevice::from_bytes(&noise(bytes.len(), 6)), plan);
        match restore(&job, &target, how(Delta::Off)) {
            Ok(_) => assert!(target.counts().1 <= nth, "{target:?}"),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::TargetPartial, "{error:?}");
                assert!(error.range().is_some() && error.data_meaning().is_some(), "{error:?}");
                restore(&job, &target, How { resumes: true, ..How::default() }).unwrap();
            }
        }
        assert!(target.written().bytes() == bytes, "{target:?}");
    }
}

#[test]
fn a_target_that_is_full_or_fails_to_sync_is_partly_written() {
    let bytes = noise(3_000_001, 5);
    let job = job(&archive_of(&bytes, 64 << 10));
    let sync = vec![Fault::Fail { which: Which::Syncs, nth: 0, errno: EIO }];
    for plan in [
        FaultPlan { space: Some(1 << 20), ..FaultPlan::default() },
        FaultPlan { faults: sync, ..FaultPlan::default() },
    ] {
        let target = HostileDevice::new(MemoryDevice::new(bytes.len() as u64), plan);
        let error = restore(&job, &target, how(Delta::Off)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TargetPartial, "{error:?}");
    }
}

#[test]
fn short_late_and_passing_troubles_are_not_noticed() {
    let bytes = volume(3_000_001, 16 << 10, 7);
    let home = archive_of(&bytes, 16 << 10);
    for seed in 0..8 {
        let plan = FaultPlan {
            seed,
            short_one_in: 3,
            transient_one_in: 5,
            reorder: true,
            ..FaultPlan::default()
        };
        let job =
            job_in(Arc::new(HostileDevice::new(home.deep_clone(), plan.clone())), OnDamage::Fail);
        let target = HostileDevice::new(MemoryDevice::from_bytes(&noise(bytes.len(), seed)), plan);
        restore(&job, &target, how(Delta::On)).unwrap();
        assert!(target.written().bytes() == bytes, "{target:?}");
        assert!(target.durable().bytes() == bytes, "{target:?}");
    }
}

#[test]
fn read_back_catches_a_target_that_flips_a_bit() {
    let bytes = noise(2_000_001, 8);
    let job = job(&archive_of(&bytes, 64 << 10));
    let plain = context();
    for offset in [0, 777_777, 2_000_000] {
        let faults = vec![Fault::FlipOnRead { offset, mask: 4 }];
        let plan = FaultPlan { faults, ..FaultPlan::default() };
        let target = HostileDevice::new(MemoryDevice::new(bytes.len() as u64), plan);
        let restore = Restore::new(&job, &target, how(Delta::Off), &plain, IoEngine::Blocking);
        restore.write().unwrap();
        let error = restore.prove().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Mismatch);
        assert!(error.range().unwrap().contains(&offset), "{error:?}");
    }
}

#[test]
fn read_back_catches_a_write_that_went_astray() {
    let bytes = noise(2_000_001, 9);
    let job = job(&archive_of(&bytes, 64 << 10));
    let faults = vec![Fault::Misdirect { nth: 1, offset: 100 }];
    let plan = FaultPlan { faults, ..FaultPlan::default() };
    let target =
        HostileDevice::new(MemoryDevice::from_bytes(&noise(bytes.len() + (2 << 20), 3)), plan);
    let error = restore(&job, &target, how(Delta::Off)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Mismatch);
}

/// Offsets of frames in an archive.
fn frames(home: &MemoryDevice) -> Vec<usize> {
    let bytes = home.bytes();
    (0..bytes.len()).step_by(64).filter(|at| bytes[*at..].starts_with(b"VFRM")).collect()
}

#[test]
fn damage_fails_naming_volume_and_archive_or_is_zeroed_and_told() {
    let bytes = noise(5 << 20, 10);
    let home = archive_of(&bytes, 64 << 10);
    let data_frames = frames(&home);
    assert!(data_frames.len() >= 5);
    let middle = data_frames[2] + 70_000;
    let flip = vec![Fault::FlipOnRead { offset: middle as u64, mask: 1 }];
    let bad = vec![Fault::BadRange { range: middle as u64..middle as u64 + 1, errno: EIO }];
    for (faults, kind) in [(flip, ErrorKind::Damaged), (bad, ErrorKind::TargetPartial)] {
        let plan = FaultPlan { faults, ..FaultPlan::default() };
        let hostile = || Arc::new(HostileDevice::new(home.deep_clone(), plan.clone()));
        let target = MemoryDevice::from_bytes(&noise(bytes.len(), 11));
        let error =
            restore(&job_in(hostile(), OnDamage::Fail), &target, how(Delta::Off)).unwrap_err();
        assert!([kind, ErrorKind::Io].contains(&error.kind()), "{error:?}");
        assert!(error.message().contains("of volume \"vm\""), "{error:?}");
        assert!(error.range().unwrap().start == data_frames[2] as u64, "{error:?}");
        assert!(error.data_meaning().is_some() && error.subject() == Some("archive"));

        let report = restore(&job_in(hostile(), OnDamage::Zero), &target, how(Delta::Off)).unwrap();
        let [ByteRange { offset, length }] = report.damaged[..] else { panic!("{report:?}") };
        assert!(length > 0 && length <= 1 << 20);
        let lost = offset as usize..(offset + length) as usize;
        let mut expected = bytes.clone();
        expected[lost].fill(0);
        assert!(target.bytes() == expected);
    }
}

#[test]
fn a_lost_index_or_map_loses_what_it_named_and_nothing_hangs() {
    let bytes = noise(5 << 20, 12);
    let home = archive_of(&bytes, 64 << 10);
    let clean = home.bytes();
    for seed in 0..60 {
        let mut rng = StdRng::seed_from_u64(seed);
        let damaged = home.deep_clone();
        for _ in 0..3 {
            let at = rng.random_range(clean.len() - (64 << 10)..clean.len());
            damaged.write_at(&[clean[at] ^ 1], at as u64).unwrap();
        }
        let archive = Archive::open(Arc::new(damaged.clone())).and_then(|archive| {
            let snapshot = archive.select(&Selector::Latest(0))?;
            Ok((archive, snapshot))
        });
        let Ok((archive, snapshot)) = archive else {
            continue;
        };
        let volume = snapshot.manifest.volumes[0].clone();
        let job = Job::new(&archive, &snapshot, &volume, OnDamage::Zero).unwrap();
        let target = MemoryDevice::from_bytes(&noise(bytes.len(), seed));
        let report = restore(&job, &target, how(Delta::Off)).unwrap();
        let mut expected = bytes.clone();
        for lost in &report.damaged {
            expected[lost.offset as usize..(lost.offset + lost.length) as usize].fill(0);
        }
        assert!(target.bytes() == expected, "seed {seed}");
        // A delta over it agrees, and finds nothing to do.
        let again = restore(&job, &target, how(Delta::On)).unwrap();
        assert_eq!(again.damaged, report.damaged, "seed {seed}");
        assert!(target.bytes() == expected, "seed {seed}");
    }
}

/// An archive of one small frame can lose chunks in any number of places.
#[test]
fn what_is_lost_in_many_places_is_counted_and_not_all_listed() {
    const CHUNK: usize = 4096;
    const LOST: usize = 10_000;
    let chunk = noise(CHUNK, 31);
    let bytes: Vec<u8> = (0..LOST).flat_map(|_| [&chunk[..], &[0; CHUNK]].concat()).collect();
    let home = archive_of(&bytes, CHUNK as u32);
    let at = frames(&home)[0] as u64 + 1000;
    let faults = vec![Fault::FlipOnRead { offset: at, mask: 1 }];
    let plan = FaultPlan { faults, ..FaultPlan::default() };
    let job = job_in(Arc::new(HostileDevice::new(home, plan)), OnDamage::Zero);
    let target = MemoryDevice::from_bytes(&vec![7; bytes.len()]);
    let context = context();
    let restore = Restore::new(&job, &target, how(Delta::Off), &context, IoEngine::Blocking);
    restore.write().unwrap();
    restore.prove().unwrap();
    let report = restore.report(true);
    assert_eq!(report.damaged.len(), 4096);
    let alternate = (0..4096).map(|n| ByteRange { offset: n * 8192, length: 4096 });
    assert!(report.damaged.iter().copied().eq(alternate), "{:?}", &report.damaged[..3]);
    assert_eq!(report.damaged_unlisted as usize, LOST - 4096);
    assert_eq!(report.damaged_bytes as usize, LOST * CHUNK);
    assert!(target.bytes().iter().all(|byte| *byte == 0));
    // What is not listed is known all the same: something else in its place is found.
    target.write_at(&[1], (2 * CHUNK * (LOST - 1)) as u64).unwrap();
    assert_eq!(restore.prove().unwrap_err().kind(), ErrorKind::Mismatch);
}

#[test]
fn what_the_source_could_not_give_is_zero_and_told() {
    let bytes = noise(1_000_003, 13);
    let home = MemoryDevice::new(0).growing();
    let bad = vec![
        Fault::BadRange { range: 5000..5001, errno: EIO },
        Fault::BadRange { range: 200_000..400_000, errno: EIO },
    ];
    let plan = FaultPlan { faults: bad, ..FaultPlan::default() };
    back_up(&home, Arc::new(HostileDevice::new(MemoryDevice::from_bytes(&bytes), plan)), 64 << 10);
    let target = MemoryDevice::from_bytes(&noise(bytes.len(), 14));
    let report = restore(&job(&home), &target, how(Delta::Off)).unwrap();
    let mut expected = bytes;
    for range in &report.unreadable {
        expected[range.offset as usize..(range.offset + range.length) as usize].fill(0);
    }
    assert!(!report.unreadable.is_empty() && target.bytes() == expected);
    let again = restore(&job(&home), &target, how(Delta::On)).unwrap();
    assert_eq!(again.kept_bytes, again.size);
}

#[test]
fn a_chunk_repeated_a_thousand_times_is_written_a_thousand_times() {
    let chunk = noise(64 << 10, 15);
    let bytes: Vec<u8> = chunk.iter().copied().cycle().take(1000 * (64 << 10)).collect();
    let job = job(&archive_of(&bytes, 64 << 10));
    let target = MemoryDevice::new(bytes.len() as u64);
    restore(&job, &target, how(Delta::Off)).unwrap();
    assert!(target.bytes() == bytes);
}

#[test]
fn a_bound_on_the_rate_holds() {
    let bytes = noise(4 << 20, 16);
    let job = job(&archive_of(&bytes, 64 << 10));
    let target = MemoryDevice::new(bytes.len() as u64);
    let slow = Context { limit_bytes_per_s: Some(8 << 20), ..context() };
    let start = std::time::Instant::now();
    Restore::new(&job, &target, how(Delta::Off), &slow, IoEngine::Blocking).write().unwrap();
    assert!(start.elapsed().as_millis() >= 250, "{:?}", start.elapsed());
}

#[test]
fn progress_adds_up_in_every_phase() {
    #[derive(Default)]
    struct Sums(std::sync::Mutex<Vec<(Phase, u64, u64)>>);
    impl Observer for Sums {
        fn phase(&self, phase: Phase, total: Option<u64>) {
            self.0.lock().unwrap().push((phase, total.unwrap(), 0));
        }
        fn advance(&self, bytes: u64) {
            self.0.lock().unwrap().last_mut().unwrap().2 += bytes;
        }
    }
    let bytes = volume(2_000_001, 16 << 10, 17);
    let job = job(&archive_of(&bytes, 16 << 10));
    let target = MemoryDevice::from_bytes(&noise(bytes.len(), 18));
    let sums = Arc::new(Sums::default());
    let context = Context { observer: Arc::clone(&sums) as _, ..context() };
    restore_with(&job, &target, how(Delta::On), &context).unwrap();
    let len = bytes.len() as u64;
    let expected = [Phase::Compare, Phase::Write, Phase::ReadBack].map(|phase| (phase, len, len));
    assert_eq!(*sums.0.lock().unwrap(), expected);
}

fn at(path: &Path) -> voltar_engine::options::Place {
    voltar_engine::options::Place::Path(path.to_path_buf())
}

/// A folder with an archive of files in it.
struct Place {
    folder: TempDir,
    archive: PathBuf,
}

impl Place {
    fn new(folder: TempDir, sources: &[(&str, &[u8])]) -> Place {
        let archive = folder.path().join("a.voltar");
        let sources = sources
            .iter()
            .map(|(name, bytes)| {
                let path = folder.path().join(format!("{name}.raw"));
                fs::write(&path, bytes).unwrap();
                SourceRequest { name: (*name).to_owned(), place: at(&path) }
            })
            .collect();
        let request = BackupRequest {
            sources,
            archive: ArchiveHome::File(archive.clone()),
            ..backup_request(64 << 10)
        };
        backup::run(&request, &context()).unwrap();
        Place { folder, archive }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn request(&self, target: &Path) -> RestoreRequest {
        RestoreRequest {
            archive: self.archive.clone(),
            snapshot: Selector::Latest(0),
            targets: Targets::Each(vec![TargetRequest { name: None, place: at(target) }]),
            overwrite: false,
            delta: Delta::Auto,
            read_back: true,
            discard: false,
            on_damage: OnDamage::Fail,
            dry_run: false,
            new_volumes: Default::default(),
            state_dir: Some(self.path("state")),
        }
    }

    fn notes(&self) -> usize {
        fs::read_dir(self.path("state")).map_or(0, |entries| entries.count())
    }
}

fn run(request: &RestoreRequest, io: IoEngine) -> Result<VolumeRestore, Error> {
    let context = Context { io, ..context() };
    Ok(voltar_engine::restore::run(request, &context)?.volumes[0].clone())
}

fn folders() -> Vec<TempDir> {
    [std::env::temp_dir(), "/dev/shm".into()].into_iter().flat_map(tempfile::tempdir_in).collect()
}

fn engines() -> Vec<IoEngine> {
    let both = [IoEngine::Uring, IoEngine::Blocking];
    let can = |engine: &IoEngine| voltar_engine::io::probe::choose(*engine).is_ok();
    both.into_iter().filter(can).collect()
}

/// 9 MiB and a bit: noise, then a hole of 6 MiB, then noise.
fn holed() -> Vec<u8> {
    let mut bytes = vec![0; (9 << 20) + 333];
    bytes[..1 << 20].copy_from_slice(&noise(1 << 20, 20));
    bytes[7 << 20..].copy_from_slice(&noise((2 << 20) + 333, 21));
    bytes
}

#[test]
fn files_are_created_sparse_overwritten_and_resized() {
    for folder in folders() {
        let bytes = holed();
        let place = Place::new(folder, &[("vm", &bytes)]);
        for io in engines() {
            let target = place.path("new");
            let report = run(&place.request(&target), io).unwrap();
            assert!(fs::read(&target).unwrap() == bytes, "{io:?}");
            let stored = fs::metadata(&target).unwrap().blocks() * 512;
            assert!(stored < (4 << 20), "{stored} bytes stored");
            assert_eq!((report.zero_method.as_str(), place.notes()), ("hole", 0));

            for len in [0, 1000, bytes.len(), bytes.len() + 5_000_000] {
                let refusable = noise(len, 22);
                fs::write(&target, &refusable).unwrap();
                let request = place.request(&target);
                if len > 0 {
                    let error = run(&request, io).unwrap_err();
                    assert_eq!(error.kind(), ErrorKind::TargetRefused, "{error:?}");
                    assert!(fs::read(&target).unwrap() == refusable);
                }
                let dry = RestoreRequest { dry_run: true, overwrite: true, ..request.clone() };
                assert_eq!(run(&dry, io).unwrap().written_bytes, (3 << 20) + 333);
                assert!(fs::read(&target).unwrap() == refusable);
                run(&RestoreRequest { overwrite: true, ..request }, io).unwrap();
                assert!(fs::read(&target).unwrap() == bytes, "{len} bytes before, {io:?}");
            }
            let delta =
                RestoreRequest { overwrite: true, delta: Delta::On, ..place.request(&target) };
            assert_eq!(run(&delta, io).unwrap().kept_bytes, bytes.len() as u64);
            fs::remove_file(&target).unwrap();
        }
        assert_eq!(place.notes(), 0);
    }
}

#[test]
fn an_interrupted_restore_to_a_file_needs_no_leave_to_go_on() {
    let bytes = noise((24 << 20) + 77, 23);
    let place = Place::new(tempfile::tempdir().unwrap(), &[("vm", &bytes)]);
    for io in engines() {
        let target = place.path("target");
        let cancel = Cancel::new();
        let left = AtomicU64::new(4 << 20);
        let observer = Arc::new(StopAt { left, cancel: cancel.clone() });
        let stopping = Context { io, cancel, observer, ..context() };
        let request = place.request(&target);
        let error = voltar_engine::restore::run(&request, &stopping).map(|_| ()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Interrupted, "{error:?}");
        assert_eq!(place.notes(), 1);

        // Another file of the same length at the same place is not this restore's work.
        let aside = place.path("aside");
        fs::rename(&target, &aside).unwrap();
        fs::write(&target, noise(bytes.len(), 1)).unwrap();
        assert_eq!(run(&request, io).unwrap_err().kind(), ErrorKind::TargetRefused);
        fs::rename(&aside, &target).unwrap();

        let report = run(&request, io).unwrap();
        assert!(report.kept_bytes > 0, "{report:?}");
        assert!(fs::read(&target).unwrap() == bytes);
        assert_eq!(place.notes(), 0);
        fs::remove_file(&target).unwrap();
    }
}

#[test]
fn what_was_never_written_is_left_as_it_was() {
    let bytes = holed();
    let place = Place::new(tempfile::tempdir().unwrap(), &[("vm", &bytes)]);
    let cancel = Cancel::new();
    cancel.raise();
    let stopped = Context { cancel, ..context() };
    let target = place.path("target");
    for before in [None, Some(&b""[..]), Some(&[0; 5000])] {
        let _ = fs::remove_file(&target);
        before.into_iter().for_each(|bytes| fs::write(&target, bytes).unwrap());
        let error = voltar_engine::restore::run(&place.request(&target), &stopped);
        let error = error.map(|_| ()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Interrupted);
        assert_eq!(error.data_meaning(), Some("not a byte of the target was written"));
        assert_eq!(fs::read(&target).ok().as_deref(), before);
        assert_eq!(place.notes(), 0);
    }
    // A dry run creates nothing.
    let _ = fs::remove_file(&target);
    let dry = RestoreRequest { dry_run: true, ..place.request(&target) };
    assert_eq!(run(&dry, IoEngine::Auto).unwrap().written_bytes, (3 << 20) + 333);
    assert!(!target.exists() && !place.path("state").join("x").exists());
}

#[test]
fn several_volumes_and_what_names_get() {
    let (one, two) = (noise(300_000, 1), noise(200_000, 2));
    let place = Place::new(tempfile::tempdir().unwrap(), &[("one", &one), ("two", &two)]);
    let to = |name: Option<&str>, file: &str| TargetRequest {
        name: name.map(str::to_owned),
        place: at(&place.path(file)),
    };
    let with = |targets| RestoreRequest {
        targets: Targets::Each(targets),
        ..place.request(Path::new(""))
    };
    let outcome = |targets| {
        let outcome = voltar_engine::restore::run(&with(targets), &context());
        outcome.map_err(|error| (error.kind(), error.remedy().unwrap_or_default().to_owned()))
    };
    let names = "it holds: one, two".to_owned();
    let refused = |targets| outcome(targets).map(|_| ()).unwrap_err();
    assert_eq!(refused(vec![to(None, "a")]), (ErrorKind::Ambiguous, names.clone()));
    assert_eq!(refused(vec![to(Some("three"), "a")]), (ErrorKind::NotFound, names));
    let twice = vec![to(Some("one"), "a"), to(Some("one"), "b")];
    assert_eq!(refused(twice).0, ErrorKind::InvalidRequest);
    let same = vec![to(Some("one"), "a"), to(Some("two"), "a")];
    assert_eq!(refused(same).0, ErrorKind::InvalidRequest);
    assert_eq!(refused(vec![]).0, ErrorKind::InvalidRequest);

    // The second target is refused: the first is not touched.
    fs::write(place.path("full"), [1; 300_000]).unwrap();
    let refused = refused(vec![to(Some("one"), "a"), to(Some("two"), "full")]);
    assert_eq!(refused.0, ErrorKind::TargetRefused);
    assert!(!place.path("a").exists());
    assert_eq!(fs::read(place.path("full")).unwrap(), [1; 300_000]);

    let report = outcome(vec![to(Some("two"), "b"), to(Some("one"), "a")]).unwrap();
    assert!(report.read_back && report.volumes.len() == 2);
    assert!(fs::read(place.path("a")).unwrap() == one);
    assert!(fs::read(place.path("b")).unwrap() == two);
}

#[test]
fn the_archive_itself_is_no_target() {
    let place = Place::new(tempfile::tempdir().unwrap(), &[("vm", &noise(300_000, 1))]);
    let before = fs::read(&place.archive).unwrap();
    let request = RestoreRequest { overwrite: true, ..place.request(&place.archive) };
    assert_eq!(run(&request, IoEngine::Auto).unwrap_err().kind(), ErrorKind::TargetRefused);
    assert!(fs::read(&place.archive).unwrap() == before);
}

#[test]
fn a_place_for_notes_that_cannot_be_is_a_warning() {
    let bytes = noise(300_000, 1);
    let place = Place::new(tempfile::tempdir().unwrap(), &[("vm", &bytes)]);
    fs::write(place.path("file"), b"x").unwrap();
    let target = place.path("target");
    let request =
        RestoreRequest { state_dir: Some(place.path("file/notes")), ..place.request(&target) };
    let report = voltar_engine::restore::run(&request, &context()).unwrap();
    assert_eq!(report.warnings.len(), 1, "{:?}", report.warnings);
    assert!(fs::read(&target).unwrap() == bytes);
}

/// A loop device, detached when dropped. One at a time: `losetup --find` opens the devices of
/// others for a moment, which the guard would notice.
struct Loop {
    path: PathBuf,
    _turn: fs::File,
}

impl Loop {
    fn set_up(backing: &Path, sector: &str) -> Option<Loop> {
        let turn = fs::File::create(std::env::temp_dir().join("voltar-loop-test.lock")).ok()?;
        turn.lock().ok()?;
        let output = Command::new("losetup")
            .args(["--find", "--show", "--sector-size", sector])
            .arg(backing)
            .output()
            .ok()?;
        if !output.status.success() {
            eprintln!("skipped: no loop devices: {}", String::from_utf8_lossy(&output.stderr));
            return None;
        }
        let path = PathBuf::from(String::from_utf8(output.stdout).unwrap().trim());
        Some(Loop { path, _turn: turn })
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("--detach").arg(&self.path).status();
    }
}

#[test]
fn loop_devices_full_of_noise_become_the_volume_and_keep_their_rest() {
    for folder in folders() {
        for (sector, more) in [("512", 512 * 3), ("4096", 4096 * 2)] {
            let folder = tempfile::tempdir_in(folder.path()).unwrap();
            let bytes = holed();
            let len = bytes.len().next_multiple_of(4096) + more;
            let place = Place::new(folder, &[("vm", &bytes)]);
            let backing = place.path("backing");
            fs::write(&backing, noise(len, 30)).unwrap();
            let Some(device) = Loop::set_up(&backing, sector) else {
                return;
            };
            let contents = || {
                let file = fs::File::open(&device.path).unwrap();
                let mut bytes = vec![0; len];
                file.read_exact_at(&mut bytes, 0).unwrap();
                bytes
            };
            let before = contents();
            for io in engines() {
                for delta in [Delta::Off, Delta::On, Delta::Auto] {
                    let request = RestoreRequest { delta, ..place.request(&device.path) };
                    let error = run(&request, io).unwrap_err();
                    assert_eq!(error.kind(), ErrorKind::TargetRefused, "{error:?}");
                    assert!(contents() == before);
                    let request = RestoreRequest { overwrite: true, ..request };
                    let report = run(&request, io).unwrap();
                    assert!(contents()[..bytes.len()] == bytes, "{sector} {io:?} {delta:?}");
                    assert!(contents()[bytes.len()..] == before[bytes.len()..], "the rest changed");
                    assert_eq!(report.kept_bytes, 0);
                    let delta = RestoreRequest { delta: Delta::On, ..request.clone() };
                    assert_eq!(run(&delta, io).unwrap().kept_bytes, report.size);
                    let discard = RestoreRequest { discard: true, delta: Delta::Off, ..request };
                    run(&discard, io).unwrap();
                    assert!(contents()[..bytes.len()] == bytes, "discard {sector} {io:?}");
                    let file = fs::File::options().write(true).open(&device.path).unwrap();
                    file.write_all_at(&before, 0).unwrap();
                    file.sync_all().unwrap();
                }
            }
            assert_eq!(place.notes(), 0);
        }
    }
}
