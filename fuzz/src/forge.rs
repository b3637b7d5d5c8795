//! Writes archives with the format's own encoders and without a writer's scruples: ids that lie,
//! maps of any shape, indexes that point elsewhere. Deterministic: the same calls, the same bytes.

use voltar_format::checksum::{LogHasher, chunk_id, node_id};
use voltar_format::commit::{Commit, NewCommit, RunEntry};
use voltar_format::frame::{self, ChunkEntry, Codec, Frame, ItemKind, node_index};
use voltar_format::header::Header;
use voltar_format::index::{IndexEntry, RunHead, buckets_for, build_run, foot_block, head_block};
use voltar_format::limits::{BLOCK_LEN, FRAME_ALIGN};
use voltar_format::manifest::{Manifest, Note, NoteVolume, Volume};
use voltar_format::map::{BuiltNode, Entry, MapBuilder, Shape};
use voltar_format::record::{RecordHead, RecordKind};
use voltar_format::segment::{Footer, Table};
use voltar_format::wire::Reserved;
use voltar_format::{ArchiveId, Id, LogOffset, SessionId};

use voltar_engine::codec::{Encoder, Level};

/// The id of every forged archive.
pub const ARCHIVE: ArchiveId = ArchiveId([0x5a; 16]);
const SESSION: SessionId = SessionId([0xa5; 16]);
const TIME_NS: i64 = 1_700_000_000_000_000_000;

/// An item and what a frame says of it.
#[derive(Clone, Debug)]
pub struct Item {
    /// What the frame says.
    pub entry: ChunkEntry,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

impl Item {
    /// A chunk with its true id.
    pub fn chunk(bytes: Vec<u8>, index: u64) -> Item {
        Item::new(chunk_id(&bytes), ItemKind::Chunk, bytes, index)
    }

    /// A node with its true id.
    pub fn node(bytes: Vec<u8>, level: u8, number: u64) -> Item {
        Item::new(node_id(&bytes), ItemKind::Node, bytes, node_index(level, number))
    }

    fn new(id: Id, kind: ItemKind, bytes: Vec<u8>, index: u64) -> Item {
        Item { entry: ChunkEntry::new(kind, id, index, bytes.len()), bytes }
    }
}

/// An archive being written.
pub struct Forge {
    bytes: Vec<u8>,
    segment: Option<(LogOffset, Table)>,
    sequence: u64,
    last: Option<Commit>,
    previous: LogOffset,
    log_hash: LogHasher,
    segment_count: u32,
    runs: Vec<RunEntry>,
    /// Where items are that no run holds yet.
    pub entries: Vec<IndexEntry>,
}

impl Default for Forge {
    fn default() -> Forge {
        Forge {
            bytes: Header::new(ARCHIVE, TIME_NS).encode().to_vec(),
            segment: None,
            sequence: 1,
            last: None,
            previous: LogOffset(0),
            log_hash: LogHasher::new(),
            segment_count: 0,
            runs: Vec::new(),
            entries: Vec::new(),
        }
    }
}

impl Forge {
    fn position(&self) -> LogOffset {
        LogOffset(self.bytes.len() as u64)
    }

    /// Appends a frame of these items, at most 1 MiB and 256 of them.
    pub fn frame(&mut self, items: &[Item], level: Level) {
        if items.is_empty() {
            return;
        }
        if self.segment.is_none() {
            self.segment = Some((self.position(), Table::default()));
            let head = self.head(RecordKind::Data).seal();
            self.bytes.extend_from_slice(&head);
        }
        let raw: Vec<u8> = items.iter().flat_map(|item| item.bytes.iter().copied()).collect();
        let mut packed = vec![0; raw.len()];
        let encoded = Encoder::new().and_then(|mut e| e.encode(&raw, level, &mut packed));
        let (codec, payload) = match encoded.ok().flatten() {
            Some(len) => (Codec::Zstd, &packed[..len]),
            None => (Codec::Store, &raw[..]),
        };
        let entries: Vec<ChunkEntry> = items.iter().map(|item| item.entry.clone()).collect();
        let frame = frame::encode(codec, &entries, payload);
        let at = self.position();
        for (slot, entry) in (0..).zip(&entries) {
            self.entries.push(IndexEntry {
                id: entry.id,
                frame: at,
                frame_len: frame.len() as u32,
                slot,
                kind: entry.kind,
                reserved: Reserved,
            });
        }
        if let (Some((start, table)), Ok(frame)) = (&mut self.segment, Frame::decode(&frame)) {
            table.push((at.0 - start.0) as u32, &frame);
        }
        self.bytes.extend_from_slice(&frame);
        self.bytes.resize(self.bytes.len().next_multiple_of(FRAME_ALIGN), 0);
    }

    /// Seals the open segment.
    pub fn seal(&mut self) {
        let Some((start, table)) = self.segment.take() else { return };
        let offset = (self.position().0 - start.0) as u32;
        let tail = table.seal(ARCHIVE, start, self.sequence, offset);
        self.bytes.extend_from_slice(&tail);
        let footer = Footer::decode_at(&tail, self.position(), None);
        let hash = footer.map_or(Id::default(), |(footer, _)| footer.body_hash);
        self.record_done(start, &hash);
    }

    fn record_done(&mut self, start: LogOffset, hash: &Id) {
        self.log_hash.add(hash);
        self.segment_count += 1;
        self.previous = start;
        self.sequence += 1;
    }

    fn head(&self, kind: RecordKind) -> RecordHead {
        RecordHead {
            last_commit: self.last.as_ref().map_or(LogOffset(0), |commit| commit.offset),
            previous: self.previous,
            ..RecordHead::new(kind, ARCHIVE, SESSION, self.position(), self.sequence)
        }
    }

    /// Appends an index run of what no run holds yet.
    pub fn index(&mut self) {
        self.seal();
        let mut entries = std::mem::take(&mut self.entries);
        entries.sort_by_key(|entry| entry.id);
        entries.dedup_by_key(|entry| entry.id);
        if entries.is_empty() {
            return;
        }
        let start = self.position();
        let entry_count = entries.len() as u64;
        let buckets = buckets_for(entry_count);
        let run = RunHead { entry_count, buckets, reserved: Reserved };
        self.bytes.extend(head_block(&self.head(RecordKind::Index), &run));
        let (pages, built) = build_run(&entries);
        self.bytes.extend(pages);
        self.bytes.extend(foot_block(ARCHIVE, start, self.sequence, &built));
        self.record_done(start, &built.body_hash);
        self.runs.push(RunEntry::new(start, &built));
    }

    /// Appends a commit with this manifest.
    pub fn commit(&mut self, manifest: &[u8]) {
        self.index();
        let (bytes, commit) = NewCommit {
            archive_id: ARCHIVE,
            session: SESSION,
            offset: self.position(),
            sequence: self.sequence,
            previous_record: self.previous,
            incompatible: 0,
            compatible: 0,
            previous: self.last.as_ref(),
            log_hash: self.log_hash.finish(),
            segment_count: self.segment_count,
            runs: &self.runs,
            manifest,
        }
        .encode();
        self.bytes.extend(bytes);
        self.previous = commit.offset;
        self.sequence += 1;
        self.log_hash = LogHasher::new();
        self.segment_count = 0;
        self.last = Some(commit);
    }

    /// Where the last commit ends.
    pub fn committed(&self) -> usize {
        self.last.as_ref().map_or(BLOCK_LEN, |commit| commit.end().0 as usize)
    }

    /// The archive.
    pub fn finish(self) -> Vec<u8> {
        self.bytes
    }
}

/// A volume as a manifest names it.
pub fn volume(name: &str, size: u64, chunk_size: u32, root: Id) -> Volume {
    Volume {
        name: name.into(),
        size,
        chunk_size,
        root,
        source: "forge".into(),
        change_source: "none".into(),
        proof: Default::default(),
        degraded: None,
        unreadable: Vec::new(),
        new_bytes: 0,
    }
}

/// A manifest of these volumes, whatever they are.
pub fn manifest(volumes: Vec<Volume>, number: i64) -> Vec<u8> {
    let manifest = Manifest {
        time_ns: TIME_NS.wrapping_add(number),
        host: "host".into(),
        program: "forge".into(),
        parent: None,
        tags: Default::default(),
        volumes,
        attached: Vec::new(),
    };
    serde_json::to_vec(&manifest).expect("a manifest is JSON")
}

/// Appends a volume as a writer would, in one segment, and returns its root.
pub fn write_volume(forge: &mut Forge, bytes: &[u8], chunk_len: u32) -> Id {
    let note = Note {
        time_ns: TIME_NS,
        host: "host".into(),
        program: "forge".into(),
        volumes: vec![NoteVolume {
            name: "disk".into(),
            size: bytes.len() as u64,
            chunk_size: chunk_len,
        }],
    };
    let note = serde_json::to_vec(&note).expect("a note is JSON");
    forge.frame(&[Item::new(chunk_id(&note), ItemKind::Note, note, 0)], Level::Store);
    let shape = Shape::new(bytes.len() as u64, chunk_len).expect("a test's volume has a shape");
    let mut builder = MapBuilder::new(shape);
    let mut nodes: Vec<BuiltNode> = Vec::new();
    let mut items = Vec::new();
    for (index, chunk) in (0..).zip(bytes.chunks(chunk_len as usize)) {
        let entry = match chunk.iter().all(|byte| *byte == 0) {
            true => Entry::Zero,
            false => {
                items.push(Item::chunk(chunk.to_vec(), index));
                Entry::Data(chunk_id(chunk))
            }
        };
        builder.push(entry, &mut nodes);
    }
    let root = builder.finish(&mut nodes);
    items.chunks(4).enumerate().for_each(|(number, items)| {
        forge.frame(items, if number % 2 == 0 { Level::Store } else { Level::Zstd(1) });
    });
    let nodes: Vec<Item> =
        nodes.into_iter().map(|node| Item::node(node.bytes, node.level, node.number)).collect();
    forge.frame(&nodes, Level::Store);
    forge.seal();
    root
}
