//! Backups into memory: what is stored, what is stored again, and what the map says.
#![allow(clippy::unwrap_used, reason = "tests assert")]

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use voltar_engine::archive::Home;
use voltar_engine::archive::index::Index;
use voltar_engine::archive::open::Archive;
use voltar_engine::archive::store::Store;
use voltar_engine::backup;
use voltar_engine::device::hostile::{Fault, FaultPlan, HostileDevice};
use voltar_engine::device::memory::MemoryDevice;
use voltar_engine::device::{Device, Driver, Extent, ExtentKind, Extents, Geometry};
use voltar_engine::error::ErrorKind;
use voltar_engine::io::BufferPool;
use voltar_engine::observe::Observer;
use voltar_engine::options::{
    ArchiveHome, BackupRequest, Changes, Compression, Context, Dedup, IoEngine, OnReadError,
    ParentChoice, Selector,
};
use voltar_engine::report::BackupReport;
use voltar_engine::source::memory::MemoryChanges;
use voltar_engine::source::{
    ChangeSource, ChangeStream, ChangedExtent, Degraded, Piece, Proof, View,
};
use voltar_format::frame::ItemKind;
use voltar_format::map::Entry;
use voltar_format::walk::Cursor;

fn request() -> BackupRequest {
    BackupRequest {
        sources: Vec::new(),
        archive: ArchiveHome::File("memory".into()),
        parent: ParentChoice::Auto,
        changes: Changes::Auto,
        audit_share: 0.01,
        compression: Compression::Zstd(1),
        chunk_len: Some(4096),
        attach: Vec::new(),
        tags: BTreeMap::new(),
        dedup: Dedup::On,
        on_read_error: OnReadError::Fail,
        holding: Default::default(),
        dry_run: false,
    }
}

fn home() -> Arc<MemoryDevice> {
    Arc::new(MemoryDevice::new(0).growing())
}

fn view(bytes: &[u8], changes: Option<Arc<dyn ChangeSource>>) -> View {
    View {
        name: "disk".into(),
        description: "memory".into(),
        device: Arc::new(MemoryDevice::from_bytes(bytes)),
        size: bytes.len() as u64,
        change_source: changes,
        degraded: None,
    }
}

fn back_up(home: &Arc<MemoryDevice>, view: View, request: &BackupRequest) -> BackupReport {
    let home: Arc<dyn Home> = Arc::clone(home) as _;
    backup::run_in(request, &[view], home, &Context::default()).unwrap()
}

/// The volume's bytes, from its map alone.
fn read_back(home: &Arc<MemoryDevice>, back: u64) -> Vec<u8> {
    let archive = Archive::open(Arc::clone(home) as _).unwrap();
    let snapshot = archive.select(&Selector::Latest(back)).unwrap();
    let volume = &snapshot.manifest.volumes[0];
    let runs = archive.last.as_ref().unwrap().runs.clone();
    let index = Index::new(Arc::clone(&archive.home), runs);
    let mut store = Store::new(Arc::clone(&archive.home), index).unwrap();
    let shape = volume.shape().unwrap();
    let mut cursor = Cursor::new(shape, volume.root);
    let mut bytes = Vec::new();
    while let Some(run) = cursor.next_run(&mut store).unwrap() {
        match run.entry {
            Entry::Data(id) | Entry::Partial(id) => {
                bytes.extend(store.item(&id, ItemKind::Chunk).unwrap());
            }
            Entry::Zero | Entry::Unreadable => {
                let len = shape.chunk_range(voltar_format::ChunkIndex(run.chunks.end - 1)).end;
                bytes.resize(len as usize, 0);
            }
        }
    }
    bytes
}

/// Compressible, but no two chunks alike.
fn content(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|at| ((at / 7) as u8).wrapping_mul(31) ^ (at / 4096) as u8 ^ seed).collect()
}

#[test]
fn what_goes_in_comes_out() {
    for len in [1, 511, 4096, 4097, 1_000_003, 5 << 20] {
        let home = home();
        let bytes = content(len, 1);
        let report = back_up(&home, view(&bytes, None), &request());
        assert_eq!(report.volumes[0].size, len as u64);
        assert_eq!(read_back(&home, 0), bytes, "{len} bytes");
    }
}

#[test]
fn the_second_backup_stores_what_changed() {
    let home = home();
    let mut bytes = content(8 << 20, 1);
    bytes[3 << 20..5 << 20].fill(0);
    let first = back_up(&home, view(&bytes, None), &request());
    assert_eq!(first.volumes[0].zero_bytes, 2 << 20);
    let old = bytes.clone();
    bytes[100] ^= 1;
    bytes[4 << 20] = 9;
    bytes[6 << 20..(6 << 20) + 4096].fill(0);
    let second = back_up(&home, view(&bytes, None), &request());
    assert_eq!(second.parent, first.snapshot);
    assert_eq!(second.volumes[0].changed_bytes, 3 * 4096);
    assert_eq!(second.volumes[0].new_bytes, 2 * 4096);
    assert!(second.stored_bytes < 100_000, "{} bytes stored", second.stored_bytes);
    assert_eq!(read_back(&home, 0), bytes);
    assert_eq!(read_back(&home, 1), old);
    let third = back_up(&home, view(&bytes, None), &request());
    assert_eq!(third.volumes[0].changed_bytes, 0);
    assert_eq!(third.volumes[0].root, second.volumes[0].root);
}

#[test]
fn a_change_source_spares_reading() {
    let home = home();
    let mut bytes = content(8 << 20, 1);
    let changes = Arc::new(MemoryChanges::new("disk-1", bytes.len() as u64));
    changes.snapshot();
    back_up(&home, view(&bytes, Some(changes.clone())), &request());
    bytes[5_000_000] ^= 1;
    changes.wrote(5_000_000..5_000_001);
    changes.snapshot();
    let report = back_up(&home, view(&bytes, Some(changes)), &request());
    let volume = &report.volumes[0];
    assert_eq!((volume.change_source.as_str(), &volume.degraded), ("memory", &None));
    assert_eq!((volume.read_bytes, volume.changed_bytes), (4096, 4096));
    assert!(volume.audited_bytes >= 4096);
    assert_eq!(read_back(&home, 0), bytes);
}

#[test]
fn another_identity_degrades_to_reading_everything() {
    let home = home();
    let bytes = content(1 << 20, 1);
    let one = Arc::new(MemoryChanges::new("disk-1", bytes.len() as u64));
    back_up(&home, view(&bytes, Some(one)), &request());
    let other = Arc::new(MemoryChanges::new("disk-2", bytes.len() as u64));
    let report = back_up(&home, view(&bytes, Some(other)), &request());
    let volume = &report.volumes[0];
    assert_eq!(volume.change_source, "none");
    assert!(volume.degraded.as_ref().unwrap().contains("another volume"));
    assert_eq!(volume.read_bytes, 1 << 20);
    // Who insists on the change source gets an error instead.
    let request = BackupRequest { changes: Changes::Kind("memory".into()), ..request() };
    let third = Arc::new(MemoryChanges::new("disk-3", bytes.len() as u64));
    let home: Arc<dyn Home> = home;
    let outcome = backup::run_in(&request, &[view(&bytes, Some(third))], home, &Context::default());
    assert_eq!(outcome.unwrap_err().kind(), ErrorKind::Unsupported);
}

/// Says that nothing changed, whatever happened.
struct Liar;

impl ChangeSource for Liar {
    fn kind(&self) -> &'static str {
        "liar"
    }
    fn proof(&self) -> Proof {
        Proof::new()
    }
    fn changes(&self, _: &Proof, base_size: u64) -> Result<Vec<ChangedExtent>, Degraded> {
        let change = voltar_engine::source::Change::Unchanged;
        Ok(vec![ChangedExtent { range: 0..base_size, change }])
    }
}

#[test]
fn the_audit_finds_a_liar_and_reads_everything() {
    let home = home();
    let bytes = content(2 << 20, 1);
    back_up(&home, view(&bytes, Some(Arc::new(Liar))), &request());
    let changed = content(2 << 20, 2);
    let report = back_up(&home, view(&changed, Some(Arc::new(Liar))), &request());
    let volume = &report.volumes[0];
    assert_eq!(volume.change_source, "none");
    assert!(volume.degraded.as_ref().unwrap().contains("liar"), "{volume:?}");
    assert_eq!(report.warnings.len(), 1);
    assert_eq!(read_back(&home, 0), changed);
}

/// A change source that brings the bytes along: in pieces of `grain` bytes, those in which two
/// generations of a volume differ, or those that are not zero.
struct Streaming {
    old: Vec<u8>,
    new: Vec<u8>,
    grain: usize,
    /// Fails after so many pieces.
    breaks_after: usize,
    /// Does not mention this byte's piece.
    omits: Option<usize>,
    /// Knows only how to tell everything.
    forgot: bool,
}

impl Streaming {
    fn new(old: &[u8], new: &[u8], grain: usize) -> Streaming {
        let (old, new) = (old.to_vec(), new.to_vec());
        Streaming { old, new, grain, breaks_after: usize::MAX, omits: None, forgot: false }
    }
}

impl ChangeSource for Streaming {
    fn kind(&self) -> &'static str {
        "streaming"
    }
    fn proof(&self) -> Proof {
        Proof::new()
    }
    fn changes(&self, _: &Proof, _: u64) -> Result<Vec<ChangedExtent>, Degraded> {
        unreachable!("it streams")
    }
    fn streams(&self) -> bool {
        true
    }
    fn stream(&self, base: Option<(&Proof, u64)>) -> Result<Box<dyn ChangeStream>, Degraded> {
        if base.is_some() && self.forgot {
            return Err(Degraded("the base is gone".into()));
        }
        let old = |at: usize| match base {
            Some(_) => self.old.get(at).copied(),
            None => Some(0),
        };
        let mut pieces = Vec::new();
        for start in (0..self.new.len()).step_by(self.grain) {
            let end = (start + self.grain).min(self.new.len());
            let omitted = self.omits.is_some_and(|at| (start..end).contains(&at));
            if omitted || (start..end).all(|at| old(at) == Some(self.new[at])) {
                continue;
            }
            let bytes = self.new[start..end].to_vec();
            let piece = match bytes.iter().all(|byte| *byte == 0) {
                true => Piece::Zero(start as u64..end as u64),
                false => Piece::Data { offset: start as u64 },
            };
            pieces.push((piece, bytes));
        }
        Ok(Box::new(Pieces { pieces: pieces.into_iter(), left: self.breaks_after }))
    }
}

struct Pieces {
    pieces: std::vec::IntoIter<(Piece, Vec<u8>)>,
    left: usize,
}

impl ChangeStream for Pieces {
    fn next(&mut self, bytes: &mut Vec<u8>) -> Result<Option<Piece>, Degraded> {
        self.left = self.left.checked_sub(1).ok_or(Degraded("it was cut off".into()))?;
        Ok(self.pieces.next().map(|(piece, data)| {
            *bytes = data;
            piece
        }))
    }
}

fn streamed(home: &Arc<MemoryDevice>, source: Streaming) -> BackupReport {
    let bytes = source.new.clone();
    let all = BackupRequest { audit_share: 1.0, chunk_len: Some(16 << 10), ..request() };
    let report = back_up(home, view(&bytes, Some(Arc::new(source))), &all);
    assert!(read_back(home, 0) == bytes, "{report:?}");
    report
}

#[test]
fn a_stream_of_any_grain_gives_the_volume() {
    for grain in [512, 1000, 4096, 16 << 10, 24 << 10, 128 << 10, 3 << 20] {
        let mut old = content(3_000_001, 1);
        old[500_000..1_700_000].fill(0);
        let home = home();
        let report = streamed(&home, Streaming::new(&[], &old, grain));
        assert_eq!(report.volumes[0].degraded, None);
        let mut new = old.clone();
        for at in [0, 400_000, 1_000_000, 1_000_600, 3_000_000] {
            new[at] ^= 77;
        }
        new[2_000_000..2_300_000].fill(0);
        let report = streamed(&home, Streaming::new(&old, &new, grain));
        let volume = &report.volumes[0];
        assert_eq!((&*volume.change_source, &volume.degraded), ("streaming", &None), "{grain}");
        let zeroed = 300_000 / (16 << 10) + 1;
        let chunks = volume.changed_bytes.div_ceil(16 << 10);
        assert!(chunks <= zeroed + 6, "{grain}: {volume:?}");
        let read = volume.changed_bytes + 8 * (grain as u64 + (32 << 10));
        assert!(volume.read_bytes <= read, "{grain}: {volume:?}");
        // A longer and a shorter one.
        let mut longer = new.clone();
        longer.extend(content(700_000, 5));
        let report = streamed(&home, Streaming::new(&new, &longer, grain));
        assert_eq!(report.volumes[0].change_source, "streaming");
        let report = streamed(&home, Streaming::new(&longer, &longer[..1_234_567], grain));
        assert_eq!(report.volumes[0].change_source, "streaming");
        assert!(report.volumes[0].read_bytes <= 16 << 10, "{report:?}");
    }
}

#[test]
fn a_stream_that_breaks_or_lies_is_not_believed() {
    let home = home();
    let old = content(1 << 20, 1);
    streamed(&home, Streaming::new(&[], &old, 8192));
    let mut new = old.clone();
    new.iter_mut().step_by(50_000).for_each(|byte| *byte ^= 1);
    for (number, spoilt) in [
        Streaming { breaks_after: 0, ..Streaming::new(&old, &new, 8192) },
        Streaming { breaks_after: 7, ..Streaming::new(&old, &new, 8192) },
        Streaming { omits: Some(100_000), ..Streaming::new(&old, &new, 32 << 10) },
    ]
    .into_iter()
    .enumerate()
    {
        let report = streamed(&home, spoilt);
        let volume = &report.volumes[0];
        assert_eq!(volume.change_source, "none");
        assert_eq!((volume.read_bytes, report.warnings.len()), (1 << 20, 1), "{report:?}");
        let expected = if number == 2 { "unchanged, but it differs" } else { "it was cut off" };
        assert!(volume.degraded.as_ref().unwrap().contains(expected), "{volume:?}");
        streamed(&home, Streaming { forgot: true, ..Streaming::new(&[], &old, 8192) });
    }
}

#[test]
fn what_a_broken_stream_brought_last_is_stored_when_it_is_read_again() {
    // New to the archive, and more than the pipeline holds at once.
    let bytes = noise(24 << 20);
    for breaks_after in [100, 150, 160, 170, 180, 190] {
        let home = home();
        let broken = Streaming { breaks_after, ..Streaming::new(&[], &bytes, 128 << 10) };
        let report = streamed(&home, broken);
        assert_eq!((report.volumes[0].read_bytes, report.warnings.len()), (24 << 20, 1));
    }
}

/// No two chunks alike, and nothing to compress.
fn noise(len: usize) -> Vec<u8> {
    let mut state = 88_172_645_463_325_252u64;
    std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    })
    .take(len)
    .collect()
}

#[test]
fn without_a_base_a_stream_tells_everything() {
    let home = home();
    let mut old = content(1 << 20, 1);
    old[100_000..900_000].fill(0);
    streamed(&home, Streaming::new(&[], &old, 8192));
    let source = Streaming { forgot: true, ..Streaming::new(&[], &old, 8192) };
    let report = streamed(&home, source);
    let volume = &report.volumes[0];
    assert_eq!(volume.degraded.as_deref(), Some("streaming: the base is gone"));
    assert_eq!((&*volume.change_source, volume.changed_bytes), ("none", 0));
    assert!(volume.read_bytes < 300_000, "{volume:?}");
    // What it calls a hole by leaving it out is looked at as well.
    // Pieces of whole chunks: of a part, the rest would be read from the device.
    let whole = Streaming::new(&[], &old, 32 << 10);
    let lie = Streaming { forgot: true, omits: Some(50_000), ..whole };
    let report = streamed(&home, lie);
    assert!(report.warnings[0].contains("zero, but it differs"), "{report:?}");
}

/// Says that everything is zero, whatever it is.
struct ZeroLiar;

impl ChangeSource for ZeroLiar {
    fn kind(&self) -> &'static str {
        "zero liar"
    }
    fn proof(&self) -> Proof {
        Proof::new()
    }
    fn changes(&self, _: &Proof, base_size: u64) -> Result<Vec<ChangedExtent>, Degraded> {
        let change = voltar_engine::source::Change::Zero;
        Ok(vec![ChangedExtent { range: 0..base_size, change }])
    }
}

#[test]
fn the_audit_finds_what_is_called_zero_and_is_not() {
    let home = home();
    let bytes = content(2 << 20, 1);
    back_up(&home, view(&bytes, Some(Arc::new(ZeroLiar))), &request());
    let report = back_up(&home, view(&bytes, Some(Arc::new(ZeroLiar))), &request());
    let why = report.volumes[0].degraded.as_ref().unwrap();
    assert!(why.contains("zero liar") && why.contains("zero, but it differs"), "{why}");
    assert_eq!(read_back(&home, 0), bytes);
}

/// Knows no base, but what holds data at all.
struct Mapped(Vec<ChangedExtent>);

impl ChangeSource for Mapped {
    fn kind(&self) -> &'static str {
        "mapped"
    }
    fn proof(&self) -> Proof {
        Proof::new()
    }
    fn changes(&self, _: &Proof, _: u64) -> Result<Vec<ChangedExtent>, Degraded> {
        Err(Degraded("the base is gone".into()))
    }
    fn mapped(&self) -> Result<Option<Vec<ChangedExtent>>, Degraded> {
        Ok(Some(self.0.clone()))
    }
}

#[test]
fn what_holds_no_data_is_not_read_but_audited() {
    use voltar_engine::source::Change::{Changed, Zero};
    let home = home();
    let mut bytes = content(2 << 20, 1);
    bytes[1 << 20..].fill(0);
    let extent = |range, change| ChangedExtent { range, change };
    let truth = || vec![extent(0..1 << 20, Changed), extent(1 << 20..2 << 20, Zero)];
    let all = BackupRequest { audit_share: 1.0, ..request() };
    let some = BackupRequest { audit_share: 0.0, ..request() };
    for (parents, request) in [(0, &some), (1, &some), (2, &all)] {
        let source = Arc::new(Mapped(truth()));
        let report = back_up(&home, view(&bytes, Some(source)), request);
        let volume = &report.volumes[0];
        let audited = if request.audit_share > 0.0 { 1 << 20 } else { 0 };
        assert_eq!((volume.read_bytes, volume.audited_bytes), (1 << 20, audited), "{volume:?}");
        assert_eq!((&*volume.change_source, report.warnings.len()), ("none", 0));
        assert_eq!(volume.degraded.is_some(), parents > 0, "{volume:?}");
        assert_eq!(read_back(&home, 0), bytes);
    }
    // Data where there is said to be none, and a list that leaves something out.
    for (said, why) in [
        (vec![extent(0..1 << 19, Changed), extent(1 << 19..2 << 20, Zero)], "but it differs"),
        (vec![extent(0..1 << 20, Changed)], "covers 1048576 of 2097152 bytes"),
    ] {
        let alone = BackupRequest { parent: ParentChoice::None, ..all.clone() };
        let report = back_up(&home, view(&bytes, Some(Arc::new(Mapped(said)))), &alone);
        let volume = &report.volumes[0];
        assert_eq!(volume.read_bytes, 2 << 20, "{volume:?}");
        assert!(volume.degraded.as_ref().unwrap().contains(why), "{volume:?}");
        assert_eq!(read_back(&home, 0), bytes);
    }
}

#[test]
fn an_unreadable_sample_is_read_like_any_other_bad_block() {
    let home = home();
    let mut bytes = content(64 << 10, 1);
    let changes = Arc::new(MemoryChanges::new("disk-1", bytes.len() as u64));
    changes.snapshot();
    back_up(&home, view(&bytes, Some(changes.clone())), &request());
    let bad = Fault::BadRange { range: 0x5000..0x5001, errno: EIO };
    let hostile = |bytes: &[u8]| View {
        change_source: Some(changes.clone()),
        ..hostile_view(bytes, vec![bad.clone()]).0
    };
    let all = BackupRequest { audit_share: 1.0, ..request() };
    let to: Arc<dyn Home> = Arc::clone(&home) as _;
    let failed = backup::run_in(&all, &[hostile(&bytes)], to, &Context::default()).unwrap_err();
    assert_eq!(failed.kind(), ErrorKind::SourceUnreadable);
    assert_eq!(failed.range(), Some(0x5000..0x6000));
    let record = BackupRequest { on_read_error: OnReadError::Record, ..all };
    let report = back_up(&home, hostile(&bytes), &record);
    let volume = &report.volumes[0];
    assert_eq!((volume.change_source.as_str(), volume.unreadable.len()), ("memory", 1));
    bytes[0x5000..0x6000].fill(0);
    assert_eq!(read_back(&home, 0), bytes);
}

#[test]
fn a_changed_list_with_a_gap_is_not_believed() {
    struct Gap;
    impl ChangeSource for Gap {
        fn kind(&self) -> &'static str {
            "gap"
        }
        fn proof(&self) -> Proof {
            Proof::new()
        }
        fn changes(&self, _: &Proof, size: u64) -> Result<Vec<ChangedExtent>, Degraded> {
            let change = voltar_engine::source::Change::Unchanged;
            Ok(vec![ChangedExtent { range: 4096..size, change }])
        }
    }
    let home = home();
    let bytes = content(1 << 20, 1);
    back_up(&home, view(&bytes, Some(Arc::new(Gap))), &request());
    let report = back_up(&home, view(&bytes, Some(Arc::new(Gap))), &request());
    assert!(report.volumes[0].degraded.as_ref().unwrap().contains("gap"));
}

#[test]
fn a_resized_volume_keeps_what_it_shares() {
    let home = home();
    let bytes = content((4 << 20) + 100, 1);
    back_up(&home, view(&bytes, None), &request());
    let grown = content((6 << 20) + 7, 1);
    let report = back_up(&home, view(&grown, None), &request());
    assert_eq!(read_back(&home, 0), grown);
    assert!(report.volumes[0].changed_bytes <= (2 << 20) + 4096 + 7);
    let shrunk = &bytes[..1_000_001];
    back_up(&home, view(shrunk, None), &request());
    assert_eq!(read_back(&home, 0), shrunk);
    assert_eq!(read_back(&home, 2), bytes);
}

/// Sizes in chunks, around the ends of nodes: what a kept subtree covers differs in both.
#[test]
fn a_resized_volume_with_a_change_source_keeps_whole_subtrees_only() {
    let sizes = [255, 256, 257, 511, 600, 768, 1000];
    for (old, new) in sizes.iter().flat_map(|old| sizes.map(|new| (*old, new))) {
        for tail in [0, 100] {
            let home = home();
            let before = content(old * 4096 - tail, 1);
            let changes = MemoryChanges::new("disk-1", before.len() as u64);
            back_up(&home, view(&before, Some(Arc::new(changes))), &request());
            let after = content(new * 4096 - tail, 1);
            let changes = MemoryChanges::new("disk-1", after.len() as u64);
            let report = back_up(&home, view(&after, Some(Arc::new(changes))), &request());
            assert_eq!(report.volumes[0].change_source, "memory");
            assert_eq!(read_back(&home, 0), after, "{old} to {new} chunks less {tail} bytes");
            let alone = self::home();
            let whole = back_up(&alone, view(&after, None), &request());
            assert_eq!(report.volumes[0].root, whole.volumes[0].root, "{old} to {new} chunks");
        }
    }
}

#[test]
fn a_sixteen_tebibyte_hole_costs_nothing() {
    let device = MemoryDevice::new(16 << 40);
    device.write_at(b"far out", (9 << 40) + 12345).unwrap();
    let home = home();
    let view = View {
        name: "disk".into(),
        description: "memory".into(),
        device: Arc::new(device),
        size: 16 << 40,
        change_source: None,
        degraded: None,
    };
    let request = BackupRequest { chunk_len: None, ..request() };
    let report = back_up(&home, view, &request);
    assert!(report.volumes[0].read_bytes <= 1 << 20);
    assert!(report.stored_bytes < 200_000);
}

#[test]
fn a_dry_run_writes_nothing() {
    let home = home();
    let bytes = content(1 << 20, 1);
    let dry = BackupRequest { dry_run: true, ..request() };
    let report = back_up(&home, view(&bytes, None), &dry);
    assert_eq!((report.snapshot, home.len().unwrap()), (None, 0));
    back_up(&home, view(&bytes, None), &request());
    let len = home.len().unwrap();
    let report = back_up(&home, view(&content(1 << 20, 2), None), &dry);
    assert_eq!((report.volumes[0].new_bytes, home.len().unwrap()), (1 << 20, len));
}

#[test]
fn too_much_for_a_manifest_is_refused_before_anything_is_read() {
    let views: Vec<View> = (0..1025)
        .map(|number| View { name: format!("disk-{number}"), ..view(&[1], None) })
        .collect();
    let tags = BTreeMap::from([("long".to_owned(), "x".repeat(4 << 20))]);
    let long = BackupRequest { tags, ..request() };
    for (request, views) in [(&request(), &views[..]), (&long, &views[..1])] {
        let device = home();
        let home: Arc<dyn Home> = device.clone();
        let outcome = backup::run_in(request, views, home, &Context::default());
        assert_eq!(outcome.unwrap_err().kind(), ErrorKind::InvalidRequest);
        assert_eq!(device.len().unwrap(), 4096);
    }
}

#[test]
fn an_interrupted_run_leaves_the_archive_as_it_was() {
    let home = home();
    let bytes = content(1 << 20, 1);
    back_up(&home, view(&bytes, None), &request());
    let context = Context::default();
    context.cancel.raise();
    let other: Arc<dyn Home> = Arc::clone(&home) as _;
    let outcome = backup::run_in(&request(), &[view(&content(1 << 20, 2), None)], other, &context);
    assert_eq!(outcome.unwrap_err().kind(), ErrorKind::Interrupted);
    assert_eq!(read_back(&home, 0), bytes);
    back_up(&home, view(&content(1 << 20, 2), None), &request());
    assert_eq!(read_back(&home, 0), content(1 << 20, 2));
    assert_eq!(read_back(&home, 1), bytes);
}

/// A view of `bytes` on a bad day.
fn hostile_view(bytes: &[u8], faults: Vec<Fault>) -> (View, HostileDevice) {
    let plan = FaultPlan { faults, ..FaultPlan::default() };
    let device = HostileDevice::new(MemoryDevice::from_bytes(bytes), plan);
    (View { device: Arc::new(device.clone()), ..view(bytes, None) }, device)
}

const EIO: i32 = 5;

#[test]
fn the_first_bad_block_is_named_and_ends_the_reading() {
    let bytes = content(1 << 20, 1);
    let bad = Fault::BadRange { range: 0x5000..0x8000, errno: EIO };
    let (view, device) = hostile_view(&bytes, vec![bad]);
    let outcome = backup::run_in(&request(), &[view], home(), &Context::default());
    let error = outcome.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::SourceUnreadable);
    assert_eq!(error.range(), Some(0x5000..0x6000));
    // The piece, then its blocks up to the bad one.
    assert_eq!(device.counts().0, 1 + 6);
}

#[test]
fn bad_blocks_are_recorded_and_the_rest_is_kept() {
    let mut bytes = content(1 << 20, 1);
    let bad = Fault::BadRange { range: 0x5000..0x8000, errno: EIO };
    let (view, _) = hostile_view(&bytes, vec![bad]);
    let home = home();
    let request = BackupRequest { on_read_error: OnReadError::Record, ..request() };
    let report = back_up(&home, view, &request);
    let unreadable = &report.volumes[0].unreadable;
    assert_eq!((unreadable[0].offset, unreadable[0].length), (0x5000, 0x3000));
    bytes[0x5000..0x8000].fill(0);
    assert_eq!(read_back(&home, 0), bytes);
}

#[test]
fn a_bounded_backup_stops_when_asked_to() {
    let context = Context { limit_bytes_per_s: Some(1 << 20), ..Context::default() };
    let cancel = context.cancel.clone();
    let started = std::time::Instant::now();
    let asker = std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_millis(100));
        cancel.raise();
    });
    let outcome =
        backup::run_in(&request(), &[view(&content(64 << 20, 1), None)], home(), &context);
    assert_eq!(outcome.unwrap_err().kind(), ErrorKind::Interrupted);
    // All of it would take a minute.
    assert!(started.elapsed() < std::time::Duration::from_secs(30), "{:?}", started.elapsed());
    asker.join().unwrap();
}

/// Raises the flag when everything is read and stored, but not committed yet.
struct AtTheEnd(u64, std::sync::atomic::AtomicU64, voltar_engine::cancel::Cancel);

impl Observer for AtTheEnd {
    fn advance(&self, bytes: u64) {
        let before = self.1.fetch_add(bytes, std::sync::atomic::Ordering::Relaxed);
        if before + bytes == self.0 {
            self.2.raise();
        }
    }
}

#[test]
fn work_is_kept_when_interrupted_at_the_very_end() {
    let home = home();
    let bytes = content(1 << 20, 1);
    let context = Context::default();
    let observer = AtTheEnd(bytes.len() as u64, 0.into(), context.cancel.clone());
    let context = Context { observer: Arc::new(observer), ..context };
    let to: Arc<dyn Home> = Arc::clone(&home) as _;
    let outcome = backup::run_in(&request(), &[view(&bytes, None)], to, &context);
    assert_eq!(outcome.unwrap_err().kind(), ErrorKind::Interrupted);
    let report = back_up(&home, view(&bytes, None), &request());
    assert!(report.resumed_bytes > 0);
    assert_eq!(report.volumes[0].new_bytes, 0);
    assert_eq!(read_back(&home, 0), bytes);
}

/// Cannot tell its holes any more from the second MiB on.
struct Forgetful(MemoryDevice);

impl Device for Forgetful {
    fn label(&self) -> &str {
        self.0.label()
    }
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }
    fn geometry(&self) -> Geometry {
        self.0.geometry()
    }
    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
        self.0.read_at(bytes, offset)
    }
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.0.write_at(bytes, offset)
    }
    fn sync(&self) -> io::Result<()> {
        self.0.sync()
    }
    fn driver(
        &self,
        engine: IoEngine,
        pool: &BufferPool,
        depth: u32,
    ) -> io::Result<Box<dyn Driver>> {
        self.0.driver(engine, pool, depth)
    }
}

impl Extents for Forgetful {
    fn extent_at(&self, offset: u64) -> io::Result<Extent> {
        match offset < 1 << 20 {
            true => Ok(Extent { range: offset..1 << 20, kind: ExtentKind::Data }),
            false => Err(io::Error::from_raw_os_error(EIO)),
        }
    }
}

#[test]
fn work_is_kept_when_the_source_fails() {
    let home = home();
    let bytes = content(2 << 20, 1);
    let good = view(&bytes, None);
    let broken = View {
        name: "other".into(),
        device: Arc::new(Forgetful(MemoryDevice::from_bytes(&bytes))),
        ..view(&bytes, None)
    };
    let to: Arc<dyn Home> = Arc::clone(&home) as _;
    let failed = backup::run_in(&request(), &[good, broken], to, &Context::default()).unwrap_err();
    assert_eq!(failed.kind(), ErrorKind::Io);
    let done = failed.report.unwrap();
    assert_eq!((done.snapshot, done.volumes.len()), (None, 1));
    assert_eq!(done.volumes[0].read_bytes, bytes.len() as u64);
    let left = home.len().unwrap();
    assert!((bytes.len() as u64..left).contains(&done.stored_bytes), "{}", done.stored_bytes);
    let report = back_up(&home, view(&bytes, None), &request());
    assert!(report.resumed_bytes > 0);
    assert_eq!(report.volumes[0].new_bytes, 0);
}
