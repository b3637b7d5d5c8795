//! Salvage against plain byte vectors: whatever is destroyed, each byte that is not named missing
//! is right, and the new archive is whole.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use voltar_engine::archive::index::{Fresh, Index};
use voltar_engine::archive::open::Archive;
use voltar_engine::archive::resume::adopt;
use voltar_engine::archive::session::Session;
use voltar_engine::archive::spans::spans;
use voltar_engine::archive::store::Store;
use voltar_engine::backup::plan::{Target, open_home};
use voltar_engine::device::Device;
use voltar_engine::device::hostile::{Fault, FaultPlan, HostileDevice};
use voltar_engine::device::memory::MemoryDevice;
use voltar_engine::inspect;
use voltar_engine::options::{BackupRequest, Compression, IoEngine, OnReadError};
use voltar_engine::report::{SalvageReport, SalvagedSnapshot};
use voltar_engine::salvage;
use voltar_format::checksum::{chunk_id, crc32c, node_id};
use voltar_format::frame::{ChunkEntry, ItemKind, node_index};
use voltar_format::manifest::{Manifest, Note, NoteVolume, Volume};
use voltar_format::map::{Entry, Node, Shape, span_of_node};
use voltar_format::record::RecordKind;
use voltar_format::segment::Table;
use voltar_format::walk::{Cursor, NodeSource};
use voltar_format::{Id, LogOffset};

use super::rig::{
    back_up_as, blank, context, disk, disk_like, for_seeds, holding, noise, open, read_volume,
    request, snapshots, verify, view_of, within,
};

const CHUNK: usize = 4096;

/// An archive, and what its snapshots held, oldest first.
#[derive(Clone)]
struct Case {
    bytes: Vec<u8>,
    disks: Vec<Vec<u8>>,
    /// When they were made.
    times: Vec<i64>,
}

impl Case {
    /// An archive with a snapshot of each of these, and a file attached to the first.
    fn of(disks: Vec<Vec<u8>>) -> Case {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), noise(77, 5000)).unwrap();
        let home = blank();
        for (number, bytes) in disks.iter().enumerate() {
            let mut request = request();
            request.tags.insert("number".into(), number.to_string());
            if number == 0 {
                request.attach = vec![("file".into(), file.path().into())];
            }
            back_up_as(&home, &[disk(bytes)], &request).unwrap();
        }
        let all = snapshots(&open(&home).unwrap()).unwrap();
        let times = all.iter().map(|snapshot| snapshot.manifest.time_ns).collect();
        Case { bytes: home.bytes(), disks, times }
    }

    /// Two snapshots of a disk with maps of two levels, few of its chunks changed.
    fn small() -> Case {
        let first = noise(1, 700 * CHUNK + 100);
        let mut second = first.clone();
        second[300 * CHUNK..310 * CHUNK].copy_from_slice(&noise(2, 10 * CHUNK));
        second[500 * CHUNK..520 * CHUNK].fill(0);
        Case::of(vec![first, second])
    }

    fn archive(&self) -> Archive {
        open(&holding(&self.bytes)).unwrap()
    }

    fn zero(&mut self, range: std::ops::Range<u64>) {
        self.bytes[range.start as usize..range.end as usize].fill(0);
    }

    /// The records of a kind.
    fn records(&self, kind: &str) -> Vec<std::ops::Range<u64>> {
        let log = inspect::log_archive(&self.archive(), &context()).unwrap();
        let records = log.records.iter().filter(|record| record.kind == kind);
        records.map(|record| record.offset..record.offset + record.length).collect()
    }

    /// All frames, by the tables: where they are, and what they hold.
    fn all_frames(&self) -> Vec<(std::ops::Range<usize>, Vec<ChunkEntry>)> {
        let archive = self.archive();
        let (start, end) = (LogOffset(4096), archive.end());
        let mut found = Vec::new();
        for span in spans(&*archive.home, archive.id, start, end).unwrap() {
            let Ok((footer, RecordKind::Data)) = span.footer else { continue };
            let at = (span.range.start + u64::from(footer.table_offset)) as usize;
            let table = Table::decode(&self.bytes[at..at + footer.table_len as usize]).unwrap();
            for (frame, items) in table.iter() {
                let start = span.range.start as usize + frame.offset as usize;
                found.push((start..start + frame.stored_len as usize, items.to_vec()));
            }
        }
        found
    }

    /// Frames that hold an item of a kind whose index in the volume is this.
    fn frames(&self, kind: ItemKind, index: u64) -> Vec<std::ops::Range<u64>> {
        let is_it = |item: &ChunkEntry| item.item_kind() == Some(kind) && item.index == index;
        let frames = self.all_frames().into_iter().filter(|(_, items)| items.iter().any(is_it));
        frames.map(|(range, _)| range.start as u64..range.end as u64).collect()
    }

    /// The items that only those frames hold that are not in `damaged` as they are here.
    fn lost_in(&self, damaged: &[u8]) -> BTreeSet<Id> {
        let frames = self.all_frames();
        let (kept, spoilt): (Vec<_>, Vec<_>) = frames
            .iter()
            .partition(|(range, _)| damaged.get(range.clone()) == Some(&self.bytes[range.clone()]));
        let ids = |frames: Vec<&(_, Vec<ChunkEntry>)>| -> BTreeSet<Id> {
            frames.iter().flat_map(|(_, items)| items.iter().map(|item| item.id)).collect()
        };
        &ids(spoilt) - &ids(kept)
    }

    /// Salvages, and holds the result against what was backed up.
    fn salvage(&self) -> SalvageReport {
        let (report, new) = self.salvaged();
        self.hold(&report, &new);
        report
    }

    /// Salvages into an archive that verifies.
    fn salvaged(&self) -> (SalvageReport, Archive) {
        let new = blank();
        let old: Arc<MemoryDevice> = Arc::new(holding(&self.bytes));
        let archive = salvage::open(Arc::clone(&old) as _, &context()).unwrap();
        let report = salvage::salvage_archive(&archive, Arc::new(new.clone()), &context()).unwrap();
        assert_eq!(old.bytes(), self.bytes, "the old archive was written");
        let new = open(&new).unwrap();
        let verdict = verify(&new).unwrap();
        assert!(verdict.ok, "{:#?}", verdict.damaged);
        (report, new)
    }

    /// What the report does not name missing is as it was.
    fn hold(&self, report: &SalvageReport, new: &Archive) {
        let all = snapshots(new).unwrap();
        let ids: Vec<_> = all.iter().map(|snapshot| snapshot.id.to_hex()).collect();
        let named: Vec<_> = report.snapshots.iter().filter_map(|s| s.id.clone()).collect();
        assert_eq!(ids, named, "the report names what the archive holds, in its order");
        for (snapshot, made) in all.iter().zip(report.snapshots.iter().filter(|s| s.id.is_some())) {
            let volume = &snapshot.manifest.volumes[0];
            let missing = &made.volumes[0].missing;
            let mut got = read_volume(new, volume).unwrap();
            let mut want = self.wanted(made, volume.size);
            for range in missing {
                let range = range.offset as usize..(range.offset + range.length) as usize;
                got[range.clone()].fill(0);
                want[range].fill(0);
            }
            assert!(got == want, "a wrong byte outside of {missing:?}");
            let is_same = made.committed && missing.is_empty() && made.missing_files.is_empty();
            assert_eq!(is_same, made.id == made.original);
            assert_eq!(is_same, !snapshot.manifest.tags.contains_key("salvaged"));
        }
    }

    /// What a snapshot was of, told by its time, which its note has, too.
    fn wanted(&self, made: &SalvagedSnapshot, size: u64) -> Vec<u8> {
        let number = self.times.iter().position(|time| *time == made.time_ns).unwrap();
        assert_eq!(self.disks[number].len() as u64, size);
        self.disks[number].clone()
    }
}

/// Of snapshots whose commits are whole no more is missing than what hangs on items in `lost`.
/// Returns how many chunks are.
fn bound(report: &SalvageReport, whole: &Case, lost: &BTreeSet<Id>) -> usize {
    let archive = whole.archive();
    let mut missing = 0;
    for snapshot in snapshots(&archive).unwrap() {
        let id = Some(snapshot.id.to_hex());
        let Some(made) = report.snapshots.iter().find(|made| made.original == id) else { continue };
        let volume = &snapshot.manifest.volumes[0];
        let shape = volume.shape().unwrap();
        let mut store = Store::new(Arc::clone(&archive.home), Index::of(&archive)).unwrap();
        let mut may = vec![false; shape.chunk_count() as usize];
        mark_lost(&mut store, &shape, lost, (volume.root, shape.root_level(), 0), &mut may);
        for range in &made.volumes[0].missing {
            let end = (range.offset + range.length).div_ceil(CHUNK as u64);
            let chunks = &may[range.offset as usize / CHUNK..end as usize];
            assert!(!chunks.contains(&false), "not all of {range:?} was lost: {chunks:?}");
            missing += chunks.len();
        }
        let pieces = snapshot.manifest.attached.iter().flat_map(|file| &file.pieces);
        let has_lost = pieces.into_iter().any(|piece| lost.contains(piece));
        assert!(made.missing_files.is_empty() || has_lost, "{:?}", made.missing_files);
    }
    missing
}

/// Marks the chunks below a node (id, level, number) that are lost or below a lost node.
fn mark_lost(
    store: &mut Store,
    shape: &Shape,
    lost: &BTreeSet<Id>,
    (id, level, number): (Id, u8, u64),
    marks: &mut [bool],
) {
    if lost.contains(&id) {
        let from = (number * span_of_node(level)) as usize;
        let below = marks[from..].iter_mut().take(span_of_node(level) as usize);
        return below.for_each(|mark| *mark = true);
    }
    let node = store.node(&id, shape, level, number).unwrap();
    for (number, entry) in (number * 256..).zip(node.entries) {
        match entry {
            Entry::Data(id) if level > 0 => {
                mark_lost(store, shape, lost, (id, level - 1, number), marks);
            }
            Entry::Data(id) | Entry::Partial(id) if lost.contains(&id) => {
                marks[number as usize] = true;
            }
            _ => {}
        }
    }
}

/// Bytes missing of each snapshot.
fn missing(report: &SalvageReport) -> Vec<u64> {
    let volumes = report.snapshots.iter().map(|snapshot| &snapshot.volumes[0]);
    volumes.map(|volume| volume.missing.iter().map(|range| range.length).sum()).collect()
}

#[test]
fn of_a_whole_archive_everything_is_the_same() {
    let case = Case::small();
    let report = case.salvage();
    assert!(report.complete);
    assert_eq!(missing(&report), [0, 0]);
}

#[test]
fn without_an_index_nothing_is_missing() {
    let mut case = Case::small();
    case.records("index").into_iter().for_each(|run| case.zero(run));
    assert!(case.salvage().complete);
}

#[test]
fn without_a_header_nothing_is_missing() {
    let mut case = Case::small();
    case.zero(0..4096);
    assert!(case.salvage().complete);
}

#[test]
fn without_header_and_first_record_the_rest_is_there() {
    let mut case = Case::small();
    case.zero(0..8192);
    let report = case.salvage();
    assert_eq!(report.snapshots.len(), 2);
}

#[test]
fn without_its_commit_a_snapshot_comes_back_by_its_root() {
    let mut case = Case::small();
    let commits = case.records("commit");
    case.zero(commits.last().unwrap().clone());
    let report = case.salvage();
    assert!(!report.complete);
    assert_eq!(missing(&report), [0, 0]);
    let made: Vec<bool> = report.snapshots.iter().map(|snapshot| snapshot.committed).collect();
    assert_eq!(made, [true, false]);
}

#[test]
fn without_any_commit_both_snapshots_come_back() {
    let mut case = Case::small();
    case.records("commit").into_iter().for_each(|commit| case.zero(commit));
    let report = case.salvage();
    assert!(!report.complete);
    assert_eq!(missing(&report), [0, 0]);
    assert!(report.snapshots.iter().all(|snapshot| !snapshot.committed && snapshot.id.is_some()));
}

#[test]
fn an_older_commit_that_is_lost_is_named() {
    let mut case = Case::small();
    let commits = case.records("commit");
    case.zero(commits[0].clone());
    let report = case.salvage();
    assert_eq!(report.lost_commits.len(), 1);
    assert_eq!(report.lost_commits[0].offset, commits[0].start);
    assert_eq!(missing(&report), [0, 0]);
    assert!(!report.snapshots[0].committed && report.snapshots[1].committed);
}

#[test]
fn the_newest_commit_is_named_lost_whatever_else_is() {
    let mut case = Case::small();
    let third = noise(4, case.disks[1].len());
    case = Case::of([case.disks, vec![third]].concat());
    let commits = case.records("commit");
    // A third backup that was interrupted: the segment it sealed names the second's commit.
    case.bytes.truncate(case.records("data").pop().unwrap().end as usize);
    case.zero(commits[1].clone());
    for without in [0..0, 0..4096, 0..8192] {
        case.zero(without.clone());
        let report = case.salvage();
        let lost: Vec<u64> = report.lost_commits.iter().map(|range| range.offset).collect();
        assert_eq!(lost, [commits[1].start], "without {without:?}");
        assert!(!report.complete, "without {without:?}");
        assert_eq!(report.snapshots.len(), 3, "without {without:?}");
    }
}

#[test]
fn what_cannot_be_read_may_have_been_a_commit() {
    let case = Case::small();
    let bad = case.records("commit")[0].end..case.bytes.len() as u64;
    let faults = vec![Fault::BadRange { range: bad.clone(), errno: 5 }];
    let plan = FaultPlan { faults, ..FaultPlan::default() };
    let home = HostileDevice::new(holding(&case.bytes), plan);
    let archive = salvage::open(Arc::new(home), &context()).unwrap();
    let report = salvage::salvage_archive(&archive, Arc::new(blank()), &context()).unwrap();
    assert!(!report.complete);
    assert_eq!(missing(&report), [0]);
    let lost: Vec<u64> = report.lost_commits.iter().map(|range| range.offset).collect();
    assert_eq!(lost, [bad.end - 4096]);
}

#[test]
fn without_commit_and_root_chunks_go_where_they_say_they_belong() {
    let mut case = Case::small();
    // The second snapshot's nodes are in one frame: what it shares is not known to be its.
    let root = case.frames(ItemKind::Node, 1 << 56).pop().unwrap();
    let commits = case.records("commit");
    case.zero(commits.last().unwrap().clone());
    case.zero(root);
    let report = case.salvage();
    let volume = &report.snapshots[1].volumes[0];
    let ranges: Vec<_> = volume.missing.iter().map(|range| (range.offset, range.length)).collect();
    let (from, to) = (300 * CHUNK as u64, 310 * CHUNK as u64);
    assert_eq!(ranges, [(0, from), (to, volume.size - to)]);
}

#[test]
fn lost_leaves_cost_what_they_cover() {
    let leaf = 256 * CHUNK;
    let mut case = Case::of(vec![noise(3, 9 * leaf + 100)]);
    // Eight nodes to a frame: the last two leaves and the root are in another one.
    let frame = case.frames(ItemKind::Node, 0).remove(0);
    case.zero(frame);
    let report = case.salvage();
    let missing = &report.snapshots[0].volumes[0].missing;
    assert_eq!((missing.len(), missing[0].offset, missing[0].length), (1, 0, 8 * leaf as u64));
}

#[test]
fn a_lost_inner_node_costs_what_it_covers() {
    let (leaf, inner) = (256 * CHUNK as u64, 65_536 * CHUNK as u64);
    let device = MemoryDevice::new(inner + 5 * leaf);
    // Seven leaves and the node above them fill a frame.
    for number in (0..7).chain([256, 258]) {
        device.write_at(&noise(number, CHUNK), number * leaf).unwrap();
    }
    let home = blank();
    back_up_as(&home, &[view_of("disk", Arc::new(device))], &request()).unwrap();
    let mut case = Case { bytes: home.bytes(), disks: Vec::new(), times: Vec::new() };
    let frame = case.frames(ItemKind::Node, 1 << 56).remove(0);
    case.zero(frame);
    let (report, _) = case.salvaged();
    let missing = &report.snapshots[0].volumes[0].missing;
    assert_eq!((missing.len(), missing[0].offset, missing[0].length), (1, 0, inner));
}

#[test]
fn a_lost_frame_costs_its_chunks_in_every_snapshot() {
    let mut case = Case::small();
    let frame = case.frames(ItemKind::Chunk, 600).remove(0);
    case.zero(frame.start + 8192..frame.start + 8193);
    case.bytes[frame.start as usize + 9000] ^= 1;
    let report = case.salvage();
    assert!(!report.complete);
    for lost in missing(&report) {
        assert!(lost > 0 && lost <= 256 * CHUNK as u64, "{lost}");
    }
}

#[test]
fn a_second_copy_of_a_chunk_serves() {
    let mut case = Case::of(vec![noise(5, 40 * CHUNK)]);
    let frame = case.frames(ItemKind::Chunk, 7).remove(0);
    let copy = case.bytes[frame.start as usize..frame.end as usize].to_vec();
    case.bytes[frame.end as usize - 1] ^= 1;
    // Behind the log, where an interrupted run might have stored it again.
    let end = case.bytes.len();
    let head = case.records("data")[0].start as usize;
    let head = case.bytes[head..head + 128].to_vec();
    case.bytes.extend(moved(&head, end as u64));
    case.bytes.extend(copy);
    let len = case.bytes.len().next_multiple_of(4096) + 4096;
    case.bytes.resize(len, 0);
    let report = case.salvage();
    assert_eq!(missing(&report)[0], 0, "{report:#?}");
}

/// A record head at another place.
fn moved(head: &[u8], at: u64) -> Vec<u8> {
    let mut head = head.to_vec();
    head[32..40].copy_from_slice(&at.to_le_bytes());
    let crc = crc32c(&head[..124]);
    head[124..].copy_from_slice(&crc.to_le_bytes());
    head
}

#[test]
fn a_missing_piece_of_a_file_is_named() {
    let mut case = Case::small();
    let piece = case.frames(ItemKind::Attached, 0).remove(0);
    case.zero(piece);
    let report = case.salvage();
    assert_eq!(report.snapshots[0].missing_files, ["file"]);
    assert!(!report.complete);
}

#[test]
fn what_an_interrupted_backup_left_is_no_snapshot_that_was() {
    let mut case = Case::small();
    let data = case.records("data").pop().unwrap();
    // Cut in the last session's only segment, behind its first frame of chunks.
    case.bytes.truncate(data.start as usize + 8 * CHUNK);
    let report = case.salvage();
    // Its note says that it was; of its data, a frame that is cut, nothing is there.
    assert!(report.snapshots[0].id.is_some() && report.snapshots[1].id.is_none());
    case = Case::small();
    case.bytes.truncate(data.end as usize - CHUNK);
    let report = case.salvage();
    let made: Vec<bool> = report.snapshots.iter().map(|snapshot| snapshot.committed).collect();
    assert_eq!(made, [true, false]);
    assert!(report.complete, "of what was committed nothing is missing");
}

#[test]
fn what_the_source_could_not_give_is_not_missing() {
    let bytes = noise(9, 300 * CHUNK);
    let mut known = bytes.clone();
    let bad = [5 * CHUNK + 512..5 * CHUNK + 1024, 280 * CHUNK..290 * CHUNK];
    bad.iter().for_each(|range| known[range.clone()].fill(0));
    let faults = bad
        .iter()
        .map(|range| Fault::BadRange { range: range.start as u64..range.end as u64, errno: 5 });
    let plan = FaultPlan { faults: faults.collect(), ..FaultPlan::default() };
    let memory = MemoryDevice::from_bytes(&bytes).with_block_len(512);
    let view = view_of("disk", Arc::new(HostileDevice::new(memory, plan)));
    let home = blank();
    let request = BackupRequest { on_read_error: OnReadError::Record, ..request() };
    back_up_as(&home, &[view], &request).unwrap();
    let times = vec![snapshots(&open(&home).unwrap()).unwrap()[0].manifest.time_ns];
    let mut case = Case { bytes: home.bytes(), disks: vec![known], times };
    assert!(case.salvage().complete);

    // With the commit it is lost what of a chunk could be read.
    let commits = case.records("commit");
    case.zero(commits[0].clone());
    let report = case.salvage();
    let ranges = report.snapshots[0].volumes[0].missing.iter();
    let ranges: Vec<_> = ranges.map(|range| (range.offset, range.length)).collect();
    let chunk = CHUNK as u64;
    assert_eq!(ranges, [(5 * chunk, chunk), (280 * chunk, 10 * chunk)]);
}

#[test]
fn an_archive_inside_an_archive_says_nothing_of_the_outer_one() {
    let chunk = 64 << 10;
    let request = BackupRequest {
        chunk_len: Some(chunk as u32),
        compression: Compression::Store,
        ..request()
    };
    let stored = |bytes: &[u8]| {
        let home = blank();
        back_up_as(&home, &[disk(bytes)], &request).unwrap();
        home
    };
    // Three chunks in each MiB: several of its frames fit into one of the outer archive, whose 16
    // items let them start where frames may.
    let mut inner = vec![0; 128 * chunk];
    for at in (0..128).step_by(16) {
        inner[at * chunk..(at + 3) * chunk].copy_from_slice(&noise(at as u64, 3 * chunk));
    }
    let outer = stored(&inner).bytes();
    let home = stored(&outer);
    let times = vec![snapshots(&open(&home).unwrap()).unwrap()[0].manifest.time_ns];
    let mut case = Case { bytes: home.bytes(), disks: vec![outer], times };
    let frame = case.frames(ItemKind::Chunk, 0).remove(0);
    let segment = case.records("data").remove(0);
    let index = case.records("index").remove(0);
    // Neither commit nor map nor table: only frames are left, and the first is without its head.
    case.zero(index.start..case.bytes.len() as u64);
    let nodes = case.bytes.len().min(segment.end as usize) as u64 - 2 * 4096;
    case.zero(nodes..segment.end);
    case.zero(frame.start..frame.start + 64);
    let report = case.salvage();
    assert!(!report.complete);
}

#[test]
fn whatever_is_destroyed_no_byte_is_wrong() {
    let (mut salvaged, mut bounded) = (0, 0);
    let seeds = for_seeds("salvage", 60, |seed| {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut disks = vec![disk_like(&mut rng, 300 * CHUNK + 17)];
        for _ in 0..rng.random_range(0..3) {
            let mut next = disks.last().unwrap().clone();
            for _ in 0..rng.random_range(0..6) {
                let from = rng.random_range(0..next.len());
                let len = rng.random_range(1..40 * CHUNK).min(next.len() - from);
                next[from..from + len].copy_from_slice(&disk_like(&mut rng, len));
            }
            disks.push(next);
        }
        let whole = Case::of(disks);
        let mut case = whole.clone();
        let blocks = case.bytes.len() / 4096;
        for _ in 0..rng.random_range(0..8) {
            let at = rng.random_range(0..blocks) as u64 * 4096;
            case.zero(at..at + 4096);
        }
        let archive = salvage::open(Arc::new(holding(&case.bytes)), &context());
        if archive.is_ok() {
            let report = case.salvage();
            bounded += bound(&report, &whole, &whole.lost_in(&case.bytes));
            salvaged += report.snapshots.len();
        }
    });
    assert!(salvaged > 0);
    // One seed alone may have lost nothing.
    assert!(bounded > 0 || seeds == 1);
}

/// A session that writes to `home` behind what is there.
fn session(home: &MemoryDevice) -> Session {
    let Target::Archive(archive) = open_home(Arc::new(home.clone()), false, || Ok(())).unwrap()
    else {
        panic!("an archive")
    };
    let index = Index::of(&archive);
    let fresh = Arc::new(Fresh::default());
    let beginning = adopt(&archive, &index, &fresh, &context()).unwrap();
    let engine = IoEngine::Blocking;
    Session::in_home(&archive, index, fresh, beginning, engine, 2, false).unwrap()
}

/// Stores a node; its id.
fn store_node(session: &mut Session, level: u8, entries: Vec<Entry>) -> Id {
    let bytes = Node { level, entries }.encode();
    let id = node_id(&bytes);
    session.append_item(id, &bytes, ItemKind::Node, 0, node_index(level, 0)).unwrap();
    id
}

/// As [`store_node`], a full node: `first`, and zeroes behind.
fn store_first(session: &mut Session, level: u8, mut first: Vec<Entry>) -> Id {
    first.resize(256, Entry::Zero);
    store_node(session, level, first)
}

/// Stores full nodes of 256 times the same child from `levels.start` on; the id of the last.
fn store_repeating(session: &mut Session, levels: std::ops::Range<u8>, child: Id) -> Id {
    levels.fold(child, |id, level| store_node(session, level, vec![Entry::Data(id); 256]))
}

/// Stores what a session says of a volume of this shape.
fn store_note(session: &mut Session, shape: &Shape) {
    let (size, chunk_size) = (shape.size(), shape.chunk_len());
    let volumes = vec![NoteVolume { name: "disk".into(), size, chunk_size }];
    let note = Note { time_ns: 0, host: String::new(), program: String::new(), volumes };
    let bytes = serde_json::to_vec(&note).unwrap();
    session.append_item(chunk_id(&bytes), &bytes, ItemKind::Note, 0, 0).unwrap();
}

/// What a commit says of the volume with this map.
fn manifest(shape: &Shape, root: Id, time_ns: i64) -> Vec<u8> {
    let volume = Volume {
        name: "disk".into(),
        size: shape.size(),
        chunk_size: shape.chunk_len(),
        root,
        source: String::new(),
        change_source: "none".into(),
        proof: BTreeMap::new(),
        degraded: None,
        unreadable: Vec::new(),
        new_bytes: 0,
    };
    let manifest = Manifest {
        time_ns,
        host: String::new(),
        program: String::new(),
        parent: None,
        tags: BTreeMap::new(),
        volumes: vec![volume],
        attached: Vec::new(),
    };
    manifest.encode().unwrap()
}

/// What is in no archive here.
const NOWHERE: Id = Id([1; 32]);

#[test]
fn however_many_snapshots_share_a_damage_each_lacks_no_more_than_it() {
    const SNAPSHOTS: usize = 260;
    const LEAVES: u64 = 4096;
    let chunk = CHUNK as u64;
    let shape = Shape::new(LEAVES * 256 * chunk, CHUNK as u32).unwrap();
    let home = blank();
    let mut first = session(&home);
    let good = noise(1, CHUNK);
    let good_id = chunk_id(&good);
    first.append_item(good_id, &good, ItemKind::Chunk, 0, 1).unwrap();
    // A chunk in each leaf is lost, and one is there.
    let leaf = store_first(&mut first, 0, vec![Entry::Data(NOWHERE), Entry::Data(good_id)]);
    let inner = store_repeating(&mut first, 1..2, leaf);
    let root = store_node(&mut first, 2, vec![Entry::Data(inner); 16]);
    first.commit(&manifest(&shape, root, 0)).unwrap();
    for time in 1..SNAPSHOTS as i64 {
        session(&home).commit(&manifest(&shape, root, time)).unwrap();
    }
    let case = Case { bytes: home.bytes(), disks: Vec::new(), times: Vec::new() };
    let (report, new) = case.salvaged();
    assert_eq!(missing(&report), [LEAVES * chunk; SNAPSHOTS]);
    let made = snapshots(&new).unwrap();
    let volume = &made[0].manifest.volumes[0];
    assert!(made.iter().all(|snapshot| snapshot.manifest.volumes[0].root == volume.root));
    let mut store = Store::new(Arc::clone(&new.home), Index::of(&new)).unwrap();
    let mut cursor = Cursor::new(shape, volume.root);
    for leaf in 0..LEAVES {
        for (number, want) in [(0, Entry::Unreadable), (1, Entry::Data(good_id)), (2, Entry::Zero)]
        {
            let at = cursor.entry_at(&mut store, 0, leaf * 256 + number).unwrap();
            assert_eq!(at.entry, want, "chunk {number} of leaf {leaf}");
        }
    }
}

#[test]
fn a_map_that_repeats_what_is_lost_comes_to_an_end() {
    within(120, "salvage", || {
        let shape = Shape::new(1 << 60, 1 << 20).unwrap();
        let home = blank();
        let mut session = session(&home);
        store_note(&mut session, &shape);
        // A tree of 256 times the same child on each level; the leaf is nowhere.
        let root = store_repeating(&mut session, 1..shape.root_level() + 1, NOWHERE);
        session.commit(&manifest(&shape, root, 0)).unwrap();
        let mut case = Case { bytes: home.bytes(), disks: Vec::new(), times: Vec::new() };
        assert_eq!(missing(&case.salvaged().0), [1 << 60]);
        let commit = case.records("commit").remove(0);
        case.zero(commit);
        assert_eq!(missing(&case.salvaged().0), [1 << 60]);
    });
}

#[test]
fn a_map_of_more_damages_than_are_remembered_comes_to_an_end() {
    within(120, "salvage", || {
        let shape = Shape::new(1 << 60, CHUNK as u32).unwrap();
        assert_eq!(shape.root_level(), 5);
        let home = blank();
        let mut session = session(&home);
        // Four times 65536 leaves that lack a chunk each, no two the same, and behind them a tree
        // of 256 times the same child on each level, without a leaf.
        let mut lost = (0u64..).map(|number| {
            let mut id = [2; 32];
            id[..8].copy_from_slice(&number.to_le_bytes());
            Entry::Data(Id(id))
        });
        let mut level_2 = Vec::new();
        for _ in 0..4 {
            let mut level_1 = Vec::new();
            for _ in 0..256 {
                let leaves = lost.by_ref().take(256);
                let leaves = leaves.map(|chunk| store_first(&mut session, 0, vec![chunk]));
                let leaves = leaves.map(Entry::Data).collect();
                level_1.push(Entry::Data(store_node(&mut session, 1, leaves)));
            }
            level_2.push(Entry::Data(store_node(&mut session, 2, level_1)));
        }
        let level_3 = store_first(&mut session, 3, level_2);
        let distinct = store_first(&mut session, 4, vec![Entry::Data(level_3)]);
        let repeating = store_repeating(&mut session, 1..5, NOWHERE);
        let both = vec![Entry::Data(distinct), Entry::Data(repeating)];
        let root = store_first(&mut session, 5, both);
        session.commit(&manifest(&shape, root, 0)).unwrap();
        let case = Case { bytes: home.bytes(), disks: Vec::new(), times: Vec::new() };
        let (report, _) = case.salvaged();
        let subtree = 1 << 52;
        let last = report.snapshots[0].volumes[0].missing.last().unwrap();
        assert_eq!(last.offset + last.length, 2 * subtree);
        // Of the distinct leaves so many ranges are missing that they become fewer, wider ones.
        let lost = missing(&report)[0];
        assert!((subtree..subtree + (4 << 36)).contains(&lost), "{lost:#x}");
    });
}
