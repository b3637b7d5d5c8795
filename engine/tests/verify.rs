//! Archives proven whole, looked at and compared, in memory.
#![allow(clippy::unwrap_used, reason = "tests assert; their inputs are their own")]

mod verify_rig;

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use verify_rig::{Shelf, pattern};
use voltar_engine::archive::open::Archive;
use voltar_engine::device::Device;
use voltar_engine::device::memory::MemoryDevice;
use voltar_engine::diff::diff_archive;
use voltar_engine::error::{ErrorKind, Result};
use voltar_engine::inspect::{attached_in_archive, list_archive, log_archive, show_archive};
use voltar_engine::options::{Context, IoEngine, OnDamage, Selector, VerifyRequest};
use voltar_engine::report::{Damage, VerifyReport};
use voltar_engine::restore::job::Job;
use voltar_engine::restore::volume::{How, Restore};
use voltar_engine::verify::verify_archive;
use voltar_format::LogOffset;
use voltar_format::segment::Footer;

/// Three snapshots: the second changes a chunk and zeroes one, the third grows.
fn three_snapshots() -> (Shelf, Vec<Vec<u8>>) {
    let mut shelf = Shelf::new();
    let first = pattern(40_000, 1);
    let mut second = first.clone();
    second[5000..5100].fill(7);
    second[8192..12288].fill(0);
    let mut third = second.clone();
    third.extend_from_slice(&pattern(3000, 2));
    let other = pattern(10_000, 3);
    shelf.snapshot(&[("disk", 4096, &first), ("other", 4096, &other)], &[("vm.xml", b"<vm/>")]);
    shelf.snapshot(&[("disk", 4096, &second)], &[]);
    shelf.snapshot(&[("disk", 4096, &third)], &[]);
    (shelf, vec![first, second, third])
}

#[test]
fn what_an_archive_holds_is_listed_and_shown() {
    let (shelf, volumes) = three_snapshots();
    let (archive, context) = (shelf.archive(), Context::default());
    let report = list_archive(&archive, &context).unwrap();
    assert_eq!(report.snapshots.len(), 3);
    let sizes: Vec<u64> = report.snapshots.iter().map(|one| one.volumes[0].size).collect();
    assert_eq!(sizes, volumes.iter().map(|bytes| bytes.len() as u64).collect::<Vec<_>>());
    assert!(report.snapshots[0].time < report.snapshots[1].time);

    let shown = show_archive(&archive, &Selector::Latest(2)).unwrap();
    assert_eq!(shown.attached[0].name, "vm.xml");
    assert_eq!(shown.details[1].name, "other");
    let mut out = Vec::new();
    attached_in_archive(&archive, &Selector::Latest(2), "vm.xml", &mut out, &context).unwrap();
    assert_eq!(out, b"<vm/>");

    let log = log_archive(&archive, &context).unwrap();
    let mut end = 0;
    for record in &log.records {
        assert_eq!(record.offset, end, "{record:?}");
        assert_eq!(record.error, None);
        end += record.length;
    }
    assert_eq!(end, log.file_len);
    assert_eq!(log.records.iter().filter(|record| record.kind == "commit").count(), 3);
}

#[test]
fn differences_are_named_in_bytes() {
    let (shelf, _) = three_snapshots();
    let (archive, context) = (shelf.archive(), Context::default());
    let (first, second, third) = (Selector::Latest(2), Selector::Latest(1), Selector::Latest(0));
    let report = diff_archive(&archive, &first, &second, None, &context).unwrap();
    let extents: Vec<_> = report.volumes[0]
        .extents
        .iter()
        .map(|extent| (extent.offset, extent.length, extent.kind))
        .collect();
    assert_eq!(extents, [(4096, 4096, "data"), (8192, 4096, "zero")]);
    let report = diff_archive(&archive, &second, &third, Some("disk"), &context).unwrap();
    let extents: Vec<_> = report.volumes[0]
        .extents
        .iter()
        .map(|extent| (extent.offset, extent.length, extent.kind))
        .collect();
    assert_eq!(extents, [(36_864, 43_000 - 36_864, "data")]);
    assert!(diff_archive(&archive, &first, &second, Some("other"), &context).is_err());
    assert!(
        diff_archive(&archive, &third, &third, None, &context).unwrap().volumes[0]
            .extents
            .is_empty()
    );
}

fn request(stored: bool) -> VerifyRequest {
    VerifyRequest {
        archive: "memory".into(),
        snapshot: None,
        stored,
        sample_percent: None,
        resume: None,
    }
}

fn context() -> Context {
    Context {
        io: IoEngine::Blocking,
        threads: std::num::NonZeroUsize::new(1),
        ..Context::default()
    }
}

fn verify(device: &MemoryDevice, request: &VerifyRequest) -> Result<VerifyReport> {
    let archive = Archive::open(std::sync::Arc::new(device.clone()))?;
    Ok(verify_archive(&archive, request, &context())?)
}

#[test]
fn a_whole_archive_is_whole() {
    let (mut shelf, _) = three_snapshots();
    for stored in [false, true] {
        let report = verify(&shelf.device, &request(stored)).unwrap();
        assert!(report.ok, "{:?}", report.damaged);
        assert_eq!((report.snapshots, report.uncommitted_bytes), (3, 0));
        assert_eq!(report.bytes, shelf.device.len().unwrap());
    }
    shelf.interrupted(&[("disk", 4096, &pattern(20_000, 9))]);
    let report = verify(&shelf.device, &request(false)).unwrap();
    assert!(report.ok && report.uncommitted_bytes > 0);
    shelf.snapshot(&[("disk", 4096, &pattern(21_000, 9))], &[]);
    let report = verify(&shelf.device, &request(false)).unwrap();
    assert!(report.ok, "{:?}", report.damaged);
    for latest in 0..4 {
        let one = VerifyRequest { snapshot: Some(Selector::Latest(latest)), ..request(false) };
        let report = verify(&shelf.device, &one).unwrap();
        assert!(report.ok && report.frames > 0, "{:?}", report.damaged);
    }
}

/// Flips bits and says of each whether verification names the place.
fn flip(device: &MemoryDevice, bits: &[u64], stored: bool) {
    let next = AtomicU64::new(0);
    let workers = std::thread::available_parallelism().map_or(2, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                let device = device.deep_clone();
                while let Some(bit) = bits.get(next.fetch_add(1, Ordering::Relaxed) as usize) {
                    flip_one(&device, *bit, stored);
                }
            });
        }
    });
}

fn flip_one(device: &MemoryDevice, bit: u64, stored: bool) {
    let (at, mask) = (bit / 8, 1u8 << (bit % 8));
    let mut byte = [0];
    device.read_at(&mut byte, at).unwrap();
    device.write_at(&[byte[0] ^ mask], at).unwrap();
    let report = verify(device, &request(stored)).unwrap();
    let is_named = report
        .damaged
        .iter()
        .any(|damage| (damage.offset..damage.offset + damage.length).contains(&at));
    assert!(!report.ok && is_named, "byte {at:#x} mask {mask:#04x}: {:#?}", report.damaged);
    device.write_at(&byte, at).unwrap();
}

/// An archive with all structures, as small as can be: two snapshots and a third that merges runs.
fn small_archive() -> MemoryDevice {
    let mut shelf = Shelf::new();
    let first = pattern(9000, 1);
    let mut second = first.clone();
    second[4096..8192].fill(0);
    second[0] ^= 1;
    shelf.snapshot(&[("disk", 4096, &first)], &[("vm.xml", b"<vm/>")]);
    shelf.snapshot(&[("disk", 4096, &second), ("other", 4096, &first)], &[]);
    shelf.device
}

/// Every sixty-first bit, so that every bit of a byte has its turn; all of them, and an eighth end
/// to end, if `VOLTAR_ALL_BITS` is set.
#[test]
fn any_flipped_bit_is_found_and_named() {
    let device = small_archive();
    let len = device.len().unwrap();
    let all = std::env::var_os("VOLTAR_ALL_BITS").is_some();
    let step = if all { 1 } else { 61 };
    let bits: Vec<u64> = (0..len * 8).step_by(step).collect();
    flip(&device, &bits, true);
    let some: Vec<u64> = bits.iter().copied().step_by(if all { 8 } else { 7 }).collect();
    flip(&device, &some, false);
    println!("{} bits of {len} bytes stored, {} end to end", bits.len(), some.len());
}

#[test]
fn every_bit_of_heads_and_commits_is_found_and_named() {
    let device = small_archive();
    let bytes = device.bytes();
    let is_head = |block: &[u8]| block.starts_with(b"VOLTREC") || block.starts_with(b"\x89VOLTAR");
    let heads = bytes.chunks(4096).enumerate().filter(|(_, block)| is_head(block));
    let bits: Vec<u64> = heads
        .flat_map(|(number, _)| (0..400 * 8).map(move |bit| number as u64 * 32768 + bit))
        .collect();
    flip(&device, &bits, true);
}

/// Where the frame with chunk `number` of the disk in the newest snapshot is.
fn frame_of(archive: &Archive, volume: &[u8], number: usize) -> Range<u64> {
    let runs = archive.last.as_ref().unwrap().runs.clone();
    let index = voltar_engine::archive::index::Index::new(archive.home.clone(), runs);
    let end = volume.len().min(number * 4096 + 4096);
    let id = voltar_format::checksum::chunk_id(&volume[number * 4096..end]);
    let entry = index.find(&id).unwrap().unwrap();
    entry.frame.0..entry.frame.0 + u64::from(entry.frame_len)
}

#[test]
fn damage_names_the_volumes_it_costs() {
    let (shelf, volumes) = three_snapshots();
    // The second snapshot's own chunk: in the second and the third, not in the first.
    let frame = frame_of(&shelf.archive(), &volumes[1], 1);
    let mut byte = [0];
    shelf.device.read_at(&mut byte, frame.end - 1).unwrap();
    shelf.device.write_at(&[byte[0] ^ 1], frame.end - 1).unwrap();
    let report = verify(&shelf.device, &request(true)).unwrap();
    assert_eq!(report.damaged.len(), 1, "{:#?}", report.damaged);
    let damage = &report.damaged[0];
    assert_eq!((damage.structure.as_str(), damage.offset), ("frame", frame.start));
    let list = list_archive(&shelf.archive(), &context()).unwrap();
    let ids: Vec<&str> = list.snapshots.iter().map(|one| one.id.as_str()).collect();
    assert!(damage.affects.iter().all(|one| one.snapshot != ids[0] && one.volume == "disk"));
    for id in &ids[1..] {
        let mut hits = damage.affects.iter().filter(|one| one.snapshot == **id);
        assert!(hits.any(|one| one.offset <= 4096 && one.offset + one.length >= 8192));
    }
}

#[test]
fn bytes_that_are_not_their_ids_are_found_end_to_end_only() {
    let mut shelf = Shelf::new();
    shelf.lies = true;
    shelf.snapshot(&[("disk", 4096, &pattern(20_000, 4))], &[]);
    assert!(verify(&shelf.device, &request(true)).unwrap().ok);
    let report = verify(&shelf.device, &request(false)).unwrap();
    assert_eq!(report.damaged.len(), 1, "{:#?}", report.damaged);
    assert_eq!(report.damaged[0].structure, "chunk");
    let affected: Vec<_> =
        report.damaged[0].affects.iter().map(|one| (one.offset, one.length)).collect();
    assert_eq!(affected, [(4096, 4096)]);
    let one = VerifyRequest { snapshot: Some(Selector::Latest(0)), ..request(false) };
    assert_eq!(verify(&shelf.device, &one).unwrap().damaged.len(), 1);
    // A restore believes them no more: it writes none of them, or zeroes where that was asked for.
    let archive = shelf.archive();
    let snapshot = archive.select(&Selector::Latest(0)).unwrap();
    let restore = |on_damage| {
        let job = Job::new(&archive, &snapshot, &snapshot.manifest.volumes[0], on_damage).unwrap();
        let target = MemoryDevice::new(20_000);
        let (how, context) = (How { blank: true, ..How::default() }, context());
        let restore = Restore::new(&job, &target, how, &context, IoEngine::Blocking);
        restore.write().map(|()| target.bytes())
    };
    assert_eq!(restore(OnDamage::Fail).unwrap_err().kind(), ErrorKind::Damaged);
    let mut zeroed = pattern(20_000, 4);
    zeroed[4096..8192].fill(0);
    assert!(restore(OnDamage::Zero).unwrap() == zeroed);
}

#[test]
fn a_lost_commit_hides_no_other() {
    let (shelf, volumes) = three_snapshots();
    let archive = shelf.archive();
    let commits: Vec<_> = archive.commits().map(Result::unwrap).collect();
    let second = &commits[1];
    shelf.device.write_at(&vec![0xaa; (second.len * 2) as usize], second.offset.0).unwrap();
    // And a frame of the first snapshot.
    let frame = frame_of(&archive, &volumes[0], 3);
    shelf.device.write_at(&[0xff; 8], frame.end - 20).unwrap();
    let report = verify(&shelf.device, &request(false)).unwrap();
    let names: Vec<&str> = report.damaged.iter().map(|damage| damage.structure.as_str()).collect();
    assert!(names.contains(&"commit") && names.contains(&"frame"), "{:#?}", report.damaged);
    assert_eq!(report.snapshots, 2);
    let list = list_archive(&shelf.archive(), &context()).unwrap();
    assert_eq!(list.snapshots.len(), 2);
    let log = log_archive(&shelf.archive(), &context()).unwrap();
    assert_eq!(log.records.iter().filter(|record| record.error.is_some()).count(), 1);
}

#[test]
fn what_is_cut_off_is_never_taken_for_whole() {
    let device = small_archive();
    let whole = device.len().unwrap();
    for len in (0..whole).step_by(512) {
        let cut = MemoryDevice::from_bytes(&device.bytes()[..len as usize]);
        let Ok(archive) = Archive::open(std::sync::Arc::new(cut)) else { continue };
        let report = verify_archive(&archive, &request(false), &context()).unwrap();
        // Before the first commit there is nothing to lose.
        let is_inside = archive.last.is_some() && archive.end().0 > len;
        assert_eq!(report.ok, !is_inside, "{len}: {:#?}", report.damaged);
        assert_eq!(report.uncommitted_bytes, len.saturating_sub(archive.end().0));
    }
}

#[test]
fn swapped_and_foreign_blocks_are_found() {
    let device = small_archive();
    let bytes = device.bytes();
    let mut other = Shelf::new();
    other.snapshot(&[("disk", 4096, &pattern(9000, 1))], &[("vm.xml", b"<vm/>")]);
    other.snapshot(&[("disk", 4096, &pattern(9000, 8))], &[]);
    let foreign = other.device.bytes();
    let blocks = bytes.len() / 4096;
    for number in 1..blocks {
        let range = number * 4096..number * 4096 + 4096;
        for with in
            [&bytes[range.start - 4096..range.start], foreign.get(range.clone()).unwrap_or(&[])]
        {
            if with == &bytes[range.clone()] || with.is_empty() {
                continue;
            }
            let mut changed = bytes.clone();
            changed[range.clone()].copy_from_slice(with);
            let report = verify(&MemoryDevice::from_bytes(&changed), &request(true)).unwrap();
            assert!(!report.ok, "block {number}");
        }
    }
}

#[test]
fn garbage_never_panics() {
    let device = small_archive();
    let bytes = device.bytes();
    for seed in 0..300u64 {
        let mut changed = bytes.clone();
        let noise = pattern(4096, seed);
        for place in 0..3 {
            let at = (seed * 7919 + place * 104_729 * (seed + 1)) as usize % (bytes.len() - 600);
            let len = 1 + (seed as usize * 31 + place as usize) % 600;
            changed[at..at + len].copy_from_slice(&noise[..len]);
        }
        let changed = MemoryDevice::from_bytes(&changed);
        if let Ok(report) = verify(&changed, &request(seed % 2 == 0)) {
            // Both copies of the last commit may be hit: then it was never written.
            assert!(!report.ok || report.uncommitted_bytes > 0, "seed {seed}");
        }
    }
}

/// Raises the flag once so many bytes were looked at.
struct StopsAt(voltar_engine::cancel::Cancel, AtomicU64, u64);

impl voltar_engine::observe::Observer for StopsAt {
    fn advance(&self, bytes: u64) {
        if self.1.fetch_add(bytes, Ordering::Relaxed) + bytes >= self.2 {
            self.0.raise();
        }
    }
}

#[test]
fn an_interrupted_verification_goes_on_where_it_was() {
    let (shelf, volumes) = three_snapshots();
    let frame = frame_of(&shelf.archive(), &volumes[0], 3);
    shelf.device.write_at(&[0xff; 8], frame.end - 20).unwrap();
    let whole = verify(&shelf.device, &request(true)).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let note = folder.path().join("note");
    let request = VerifyRequest { resume: Some(note.clone()), ..request(true) };
    let archive = shelf.archive();
    let stop = shelf.device.len().unwrap() / 2;
    let cancel = voltar_engine::cancel::Cancel::new();
    let observer = std::sync::Arc::new(StopsAt(cancel.clone(), AtomicU64::new(0), stop));
    let interrupted = Context { cancel, observer, ..context() };
    let failed = verify_archive(&archive, &request, &interrupted).unwrap_err();
    let part = failed.report.unwrap();
    assert!(!part.ok && (1..whole.bytes).contains(&part.bytes), "{part:?}");
    assert_eq!(part.damaged.len(), 1, "{part:?}");
    assert!(note.exists());
    let resumed = verify_archive(&archive, &request, &context()).unwrap();
    assert!(!note.exists());
    assert_eq!((resumed.bytes, resumed.frames), (whole.bytes, whole.frames));
    assert_eq!(format!("{:?}", resumed.damaged), format!("{:?}", whole.damaged));
}

#[test]
fn a_sample_reads_less() {
    let (shelf, _) = three_snapshots();
    let whole = verify(&shelf.device, &request(false)).unwrap();
    assert_eq!(whole.sample, None);
    for (percent, picked) in [(0.1, 1), (34.0, 2), (100.0, 3)] {
        let some = VerifyRequest { sample_percent: Some(percent), ..request(false) };
        let report = verify(&shelf.device, &some).unwrap();
        let sample = report.sample.unwrap();
        assert_eq!((sample.percent, sample.segments, sample.of), (percent, picked, 3));
        assert!(report.ok && report.frames > 0, "{:#?}", report.damaged);
        assert_eq!(report.frames < whole.frames, picked < 3);
    }
    let of_one = VerifyRequest {
        snapshot: Some(Selector::Latest(0)),
        sample_percent: Some(10.0),
        ..request(false)
    };
    assert!(verify(&shelf.device, &of_one).is_err());
    let wrong = VerifyRequest { sample_percent: Some(101.0), ..request(false) };
    assert!(verify(&shelf.device, &wrong).is_err());
}

/// Flips a bit at `at`.
fn flip_at(device: &MemoryDevice, at: u64) {
    let mut byte = [0];
    device.read_at(&mut byte, at).unwrap();
    device.write_at(&[byte[0] ^ 1], at).unwrap();
}

/// The footer of the record in `range`.
fn footer_of(device: &MemoryDevice, range: &Range<u64>) -> Footer {
    let mut block = vec![0; Footer::LEN];
    device.read_at(&mut block, range.end - Footer::LEN as u64).unwrap();
    Footer::decode_at(&block, LogOffset(range.end), None).unwrap().0
}

/// The data segments, in log order.
fn segments_of(archive: &Archive) -> Vec<Range<u64>> {
    let log = log_archive(archive, &context()).unwrap();
    let segments = log.records.iter().filter(|record| record.kind == "data");
    segments.map(|record| record.offset..record.offset + record.length).collect()
}

/// What was found: structure, place, and how much it costs.
fn damages(report: &VerifyReport) -> Vec<(&str, u64, u64)> {
    let lost = |damage: &Damage| damage.affects.iter().map(|one| one.length).sum();
    let damaged = report.damaged.iter();
    damaged.map(|damage| (damage.structure.as_str(), damage.offset, lost(damage))).collect()
}

/// Damages every table of three snapshots, one segment each: where the tables are.
fn three_lost_tables() -> (Shelf, Vec<u64>) {
    let (shelf, _) = three_snapshots();
    let segments = segments_of(&shelf.archive());
    let table_of = |segment: &Range<u64>| {
        segment.start + u64::from(footer_of(&shelf.device, segment).table_offset)
    };
    let tables: Vec<u64> = segments.iter().map(table_of).collect();
    assert_eq!(tables.len(), 3);
    tables.iter().for_each(|table| flip_at(&shelf.device, table + 100));
    (shelf, tables)
}

#[test]
fn a_damaged_table_in_a_segment_that_was_passed_over_costs_nothing() {
    let (shelf, tables) = three_lost_tables();
    let expected: Vec<_> = tables.iter().map(|table| ("table", *table, 0)).collect();
    let whole = verify(&shelf.device, &request(false)).unwrap();
    assert_eq!(damages(&whole), expected);
    let sample = VerifyRequest { sample_percent: Some(1.0), ..request(false) };
    let sampled = verify(&shelf.device, &sample).unwrap();
    assert_eq!(sampled.sample.as_ref().unwrap().segments, 1);
    assert_eq!(damages(&sampled), expected);
}

#[test]
fn a_damaged_table_before_the_point_of_resumption_costs_nothing() {
    let (shelf, tables) = three_lost_tables();
    let folder = tempfile::tempdir().unwrap();
    let note = folder.path().join("note");
    let request = VerifyRequest { resume: Some(note.clone()), ..request(false) };
    let (archive, cancel) = (shelf.archive(), voltar_engine::cancel::Cancel::new());
    // Behind the second segment begins.
    let stops = StopsAt(cancel.clone(), AtomicU64::new(0), tables[1]);
    let interrupted = Context { cancel, observer: std::sync::Arc::new(stops), ..context() };
    verify_archive(&archive, &request, &interrupted).unwrap_err();
    assert!(note.exists());
    let resumed = verify_archive(&archive, &request, &context()).unwrap();
    let expected: Vec<_> = tables.iter().map(|table| ("table", *table, 0)).collect();
    assert_eq!(damages(&resumed), expected);
}

#[test]
fn what_lies_behind_a_lost_border_is_verified() {
    let mut shelf = Shelf::new();
    let volume = pattern(60 * 4096, 1);
    let segments = shelf.two_segments(&volume, 20 * 4096);
    let frame = frame_of(&shelf.archive(), &volume, 50);
    assert!(segments[1].contains(&frame.start));
    let sound = verify(&shelf.device, &request(false)).unwrap();
    assert!(sound.ok);
    let only_frame = shelf.device.deep_clone();
    flip_at(&only_frame, frame.end - 1);
    let only_frame = verify(&only_frame, &request(false)).unwrap();
    let [lost_frame @ ("frame", _, 1..)] = damages(&only_frame)[..] else {
        panic!("{:#?}", only_frame.damaged)
    };

    let table = segments[0].start + u64::from(footer_of(&shelf.device, &segments[0]).table_offset);
    shelf.lose_borders(&segments);
    let border = ("record", segments[0].end - 128, 0);
    let footer = ("footer", segments[1].end - 128, 0);
    let report = verify(&shelf.device, &request(false)).unwrap();
    assert_eq!(damages(&report), [border, footer]);
    assert_eq!(report.frames, sound.frames);

    flip_at(&shelf.device, frame.end - 1);
    let report = verify(&shelf.device, &request(false)).unwrap();
    assert_eq!(damages(&report), [border, lost_frame, footer]);
    assert_eq!(report.frames, sound.frames);

    // The first segment's table too: its entries, then its head.
    flip_at(&shelf.device, table + 100);
    let report = verify(&shelf.device, &request(false)).unwrap();
    assert_eq!(damages(&report), [("table", table, 0), border, lost_frame, footer]);
    flip_at(&shelf.device, table + 10);
    let report = verify(&shelf.device, &request(false)).unwrap();
    assert_eq!(damages(&report), [("frame", table, 0), lost_frame, footer]);
    assert_eq!(report.frames, sound.frames);
}
