//! Writes archives byte for byte the same each time, and lets a test spoil one structure before
//! its checksums are made, so that exactly one rule is broken and all that covers it agrees.
//!
//! It shares the layouts and the checksums with the `format` crate and nothing with the engine.

use std::collections::BTreeSet;

use voltar_format::checksum::{
    body_hash, chunk_id, commit_hash, crc32c, crc32c_of, log_hash, node_id, snapshot_id,
};
use voltar_format::commit::{CommitHead, RunEntry};
use voltar_format::frame::{ChunkEntry, FrameHead, ItemKind, head_len};
use voltar_format::header::Header;
use voltar_format::index::{BuiltRun, IndexEntry, RunHead, buckets_for, build_run, foot_block};
use voltar_format::manifest::{Attached, Manifest, Note, NoteVolume, Volume};
use voltar_format::map::{Entry, MapBuilder, Shape};
use voltar_format::record::{FLAG_SECOND_COPY, RecordHead, RecordKind};
use voltar_format::segment::{FrameEntry, TableHead};
use voltar_format::wire::Reserved;
use voltar_format::{ArchiveId, Id, LogOffset, SessionId, SnapshotId};

const BLOCK: usize = 4096;

/// Whom all forged archives belong to.
pub const ARCHIVE: ArchiveId = ArchiveId(*b"voltar golden 01");
const SESSION: SessionId = SessionId(*b"voltar session 1");
const TIME_NS: i64 = 1_795_219_200_000_000_000;

/// A structure that can be spoilt. Checksums over it are made after that, unless it says *raw*.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spot {
    /// The first 508 bytes of the header.
    Header,
    /// The first block, raw.
    HeaderBlock,
    /// The first 124 bytes of a record of this kind (both copies of a commit).
    RecordHead(RecordKind),
    /// A record head with its checksum, raw.
    RecordHeadRaw(RecordKind),
    /// The first 60 bytes of a frame.
    FrameHead,
    /// The entries of a frame.
    FrameEntries,
    /// The payload of a frame as it is stored.
    Payload,
    /// A frame and its padding, raw; the table speaks of it as it was.
    FrameRaw,
    /// The entries of a table.
    TableEntries,
    /// The first 60 bytes of a table.
    TableHead,
    /// A table, raw.
    TableRaw,
    /// The zeroes behind a table.
    TablePadding,
    /// The first 124 bytes of a footer.
    Footer(RecordKind),
    /// A footer, raw.
    FooterRaw(RecordKind),
    /// The first block of a run behind the record head.
    RunHead,
    /// A page; its checksum is made after that.
    Page,
    /// A page, raw.
    PageRaw,
    /// The zeroes before a run's footer.
    RunPadding,
    /// A commit's head from behind the content hash.
    CommitHead,
    /// The run entries of a commit.
    RunEntries,
    /// A manifest.
    Manifest,
    /// A whole copy of a commit, raw.
    CommitRaw,
    /// A map node; its id is made after that.
    Node,
}

/// What spoils: the structure, its number among those of its kind from 0, its bytes.
pub type Spoil<'s> = dyn FnMut(Spot, usize, &mut Vec<u8>) + 's;

/// A chunk of a volume.
#[derive(Clone, Debug)]
pub enum State {
    /// These bytes.
    Data(Vec<u8>),
    /// Zeroes.
    Zero,
    /// It could not be read.
    Unreadable,
    /// Zero where it could not be read.
    Partial(Vec<u8>),
}

/// A volume to be stored.
#[derive(Clone, Debug)]
pub struct Disk {
    /// Its name.
    pub name: &'static str,
    /// Its size.
    pub size: u64,
    /// Its chunk length.
    pub chunk_len: u32,
    /// Its chunks.
    pub chunks: Vec<State>,
    /// What its manifest lists.
    pub unreadable: Vec<(u64, u64)>,
}

impl Disk {
    /// A volume of these bytes in chunks of 4 KiB.
    pub fn of(name: &'static str, bytes: &[u8]) -> Disk {
        let chunks = bytes.chunks(4096).map(|chunk| match chunk.iter().all(|byte| *byte == 0) {
            true => State::Zero,
            false => State::Data(chunk.to_vec()),
        });
        let chunks = chunks.collect();
        Disk { name, size: bytes.len() as u64, chunk_len: 4096, chunks, unreadable: Vec::new() }
    }

    /// What a restore yields.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for state in &self.chunks {
            match state {
                State::Data(chunk) | State::Partial(chunk) => bytes.extend_from_slice(chunk),
                State::Zero | State::Unreadable => {
                    let end = (bytes.len() as u64 + u64::from(self.chunk_len)).min(self.size);
                    bytes.resize(end as usize, 0);
                }
            }
        }
        bytes
    }
}

/// An item to be stored.
#[derive(Clone, Debug)]
pub struct Item {
    kind: ItemKind,
    id: Id,
    volume: u16,
    index: u64,
    bytes: Vec<u8>,
}

/// An archive being written.
pub struct Forge<'s> {
    /// Its bytes so far.
    pub bytes: Vec<u8>,
    /// Whether payloads are packed.
    pub packs: bool,
    spoil: Box<Spoil<'s>>,
    counts: Vec<Spot>,
    sequence: u64,
    last_commit: Option<Last>,
    previous_record: u64,
    body_hashes: Vec<Id>,
    /// The runs that the next commit lists.
    pub runs: Vec<RunEntry>,
    /// Items that no run holds yet.
    placed: Vec<IndexEntry>,
    /// All entries ever made.
    all: Vec<IndexEntry>,
    known: BTreeSet<Id>,
}

#[derive(Clone)]
struct Last {
    offset: u64,
    len: u64,
    hash: Id,
    number: u64,
}

impl<'s> Forge<'s> {
    /// An archive that begins with its header.
    pub fn new(spoil: Box<Spoil<'s>>) -> Forge<'s> {
        let mut forge = Forge {
            bytes: Vec::new(),
            packs: false,
            spoil,
            counts: Vec::new(),
            sequence: 1,
            last_commit: None,
            previous_record: 0,
            body_hashes: Vec::new(),
            runs: Vec::new(),
            placed: Vec::new(),
            all: Vec::new(),
            known: BTreeSet::new(),
        };
        let block = Header::new(ARCHIVE, TIME_NS).encode();
        let mut sector = forge.spoiled(Spot::Header, block[..508].to_vec());
        sector.extend_from_slice(&crc32c(&sector).to_le_bytes());
        sector.resize(BLOCK, 0);
        let block = forge.spoiled(Spot::HeaderBlock, sector);
        forge.bytes.extend_from_slice(&block);
        forge
    }

    /// As it should be.
    pub fn sound() -> Forge<'static> {
        Forge::new(Box::new(|_, _, _| {}))
    }

    fn spoiled(&mut self, spot: Spot, mut bytes: Vec<u8>) -> Vec<u8> {
        let number = self.counts.iter().filter(|seen| **seen == spot).count();
        self.counts.push(spot);
        (self.spoil)(spot, number, &mut bytes);
        bytes
    }

    fn at(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn pad(&mut self, align: usize) {
        let len = self.bytes.len().next_multiple_of(align);
        self.bytes.resize(len, 0);
    }

    fn record_head(&mut self, kind: RecordKind, change: impl FnOnce(&mut RecordHead)) -> Vec<u8> {
        let mut head = RecordHead {
            last_commit: LogOffset(self.last_commit.as_ref().map_or(0, |last| last.offset)),
            previous: LogOffset(self.previous_record),
            ..RecordHead::new(kind, ARCHIVE, SESSION, LogOffset(self.at()), self.sequence)
        };
        change(&mut head);
        let mut bytes = self.spoiled(Spot::RecordHead(kind), head.encode()[..124].to_vec());
        bytes.extend_from_slice(&crc32c(&bytes).to_le_bytes());
        self.spoiled(Spot::RecordHeadRaw(kind), bytes)
    }

    fn footer(&mut self, kind: RecordKind, footer: &[u8], extra: impl FnOnce(&mut Vec<u8>)) {
        let mut bytes = footer[..124].to_vec();
        extra(&mut bytes);
        let mut bytes = self.spoiled(Spot::Footer(kind), bytes);
        bytes.extend_from_slice(&crc32c(&bytes).to_le_bytes());
        let bytes = self.spoiled(Spot::FooterRaw(kind), bytes);
        self.bytes.extend_from_slice(&bytes);
    }

    fn record_done(&mut self, start: u64, body: Id) {
        self.previous_record = start;
        self.sequence += 1;
        self.body_hashes.push(body);
    }

    /// A data segment of these frames.
    pub fn segment(&mut self, frames: &[Vec<Item>]) {
        let start = self.at();
        let head = self.record_head(RecordKind::Data, |_| {});
        self.bytes.extend_from_slice(&head);
        let (mut frame_entries, mut chunk_entries) = (Vec::new(), Vec::new());
        for items in frames.iter().filter(|items| !items.is_empty()) {
            let (frame, chunks) = self.frame(items, start);
            frame_entries.extend_from_slice(&frame);
            chunk_entries.extend_from_slice(&chunks);
        }
        let frame_count = (frame_entries.len() / FrameEntry::LEN) as u32;
        let chunk_count = (chunk_entries.len() / ChunkEntry::LEN) as u32;
        frame_entries.extend_from_slice(&chunk_entries);
        let entries = self.spoiled(Spot::TableEntries, frame_entries);
        let head = TableHead {
            magic: voltar_format::segment::TABLE_MAGIC,
            reserved_a: Reserved,
            frame_count,
            chunk_count,
            entries_crc: crc32c(&entries),
            reserved_b: Reserved,
            crc: 0,
        };
        let mut table = self.spoiled(Spot::TableHead, head.encode()[..60].to_vec());
        table.extend_from_slice(&crc32c(&table).to_le_bytes());
        table.extend_from_slice(&entries);
        let hash = body_hash(&[&table]);
        let table_offset = (self.at() - start) as u32;
        let used = u64::from(table_offset) + table.len() as u64 + 128;
        let len = used.next_multiple_of(BLOCK as u64);
        let table_len = table.len();
        let table = self.spoiled(Spot::TableRaw, table);
        self.bytes.extend_from_slice(&table);
        let padding = self.spoiled(Spot::TablePadding, vec![0; (len - used) as usize]);
        self.bytes.extend_from_slice(&padding);
        let footer = voltar_format::segment::Footer {
            magic: voltar_format::segment::FOOTER_MAGIC,
            kind: RecordKind::Data as u8,
            reserved_a: Reserved,
            archive_id: ARCHIVE,
            start: LogOffset(start),
            len,
            sequence: self.sequence,
            table_offset,
            table_len: table_len as u32,
            body_hash: hash,
            frame_count,
            chunk_count,
            reserved_b: Reserved,
            crc: 0,
        };
        self.footer(RecordKind::Data, &footer.encode(), |_| {});
        self.record_done(start, hash);
    }

    /// A frame; returns its entry for the table, and those of its items.
    fn frame(&mut self, items: &[Item], start: u64) -> (Vec<u8>, Vec<u8>) {
        let raw: Vec<u8> = items.iter().flat_map(|item| item.bytes.clone()).collect();
        let packed = if self.packs { pack(&raw) } else { raw.clone() };
        let (codec, payload) = match packed.len() < raw.len() {
            true => (2, packed),
            false => (1, raw.clone()),
        };
        let payload = self.spoiled(Spot::Payload, payload);
        let entries: Vec<u8> = items.iter().flat_map(|item| entry_of(item).encode()).collect();
        let entries = self.spoiled(Spot::FrameEntries, entries);
        let stored_len = (head_len(items.len() as u16) + payload.len()) as u32;
        let head = FrameHead {
            magic: voltar_format::frame::FRAME_MAGIC,
            codec,
            flags: Reserved,
            chunk_count: items.len() as u16,
            stored_len,
            payload_len: payload.len() as u32,
            raw_len: raw.len() as u32,
            payload_crc: crc32c(&payload),
            nonce: Reserved,
            reserved: Reserved,
            head_crc: 0,
        };
        let mut head = self.spoiled(Spot::FrameHead, head.encode()[..60].to_vec());
        head.extend_from_slice(&crc32c_of(&[&head, &entries]).to_le_bytes());
        let at = self.at();
        let mut frame = head.clone();
        frame.extend_from_slice(&entries);
        frame.extend_from_slice(&payload);
        frame.resize(frame.len().next_multiple_of(64), 0);
        let frame = self.spoiled(Spot::FrameRaw, frame);
        self.bytes.extend_from_slice(&frame);
        for (slot, item) in (0u16..).zip(items) {
            let entry = IndexEntry {
                id: item.id,
                frame: LogOffset(at),
                frame_len: stored_len,
                slot,
                kind: item.kind as u8,
                reserved: Reserved,
            };
            self.placed.push(entry.clone());
            self.all.push(entry);
            self.known.insert(item.id);
        }
        let mut table = Vec::new();
        table.extend_from_slice(&((at - start) as u32).to_le_bytes());
        table.extend_from_slice(&head[8..24]);
        table.extend_from_slice(&head[60..64]);
        table.extend_from_slice(&head[6..8]);
        table.push(head[4]);
        table.resize(FrameEntry::LEN, 0);
        (table, entries)
    }

    /// An index run of all that no run holds.
    pub fn run(&mut self) {
        let entries = std::mem::take(&mut self.placed);
        self.run_of(entries);
    }

    /// Keeps one chunk from being indexed.
    pub fn forget_a_chunk(&mut self) {
        let at = self.placed.iter().position(|entry| entry.kind == ItemKind::Chunk as u8);
        self.placed.remove(at.unwrap());
    }

    /// One run of all items there are, in place of the runs before it.
    pub fn merged_run(&mut self) {
        self.placed.clear();
        self.runs.clear();
        let entries = self.all.clone();
        self.run_of(entries);
    }

    fn run_of(&mut self, mut entries: Vec<IndexEntry>) {
        let start = self.at();
        entries.sort_by_key(|entry| entry.id);
        entries.dedup_by_key(|entry| entry.id);
        let count = entries.len() as u64;
        let (pages, built) = build_run(&entries);
        let numbers =
            RunHead { entry_count: count, buckets: buckets_for(count), reserved: Reserved };
        let mut rest = numbers.encode().to_vec();
        rest.resize(BLOCK - RecordHead::LEN, 0);
        let rest = self.spoiled(Spot::RunHead, rest);
        let head = self.record_head(RecordKind::Index, |head| head.body_crc = crc32c(&rest));
        self.bytes.extend_from_slice(&head);
        self.bytes.extend_from_slice(&rest);
        let mut sealed = Vec::new();
        for page in pages.chunks(BLOCK) {
            let mut page = self.spoiled(Spot::Page, page.to_vec());
            page[4..8].fill(0);
            let crc = crc32c(&page);
            page[4..8].copy_from_slice(&crc.to_le_bytes());
            sealed.extend_from_slice(&page);
            let page = self.spoiled(Spot::PageRaw, page);
            self.bytes.extend_from_slice(&page);
        }
        let built = BuiltRun { body_hash: body_hash(&[&sealed]), ..built };
        let foot = foot_block(ARCHIVE, LogOffset(start), self.sequence, &built);
        let (padding, footer) = foot.split_at(BLOCK - 128);
        let padding = self.spoiled(Spot::RunPadding, padding.to_vec());
        self.bytes.extend_from_slice(&padding);
        self.footer(RecordKind::Index, footer, |_| {});
        self.record_done(start, built.body_hash);
        self.runs.push(RunEntry::new(LogOffset(start), &built));
    }

    /// A record of an unknown kind that readers pass over.
    pub fn unknown(&mut self, ignorable: bool, body: &[u8]) {
        let start = self.at();
        let body_len = (RecordHead::LEN + body.len()) as u64;
        let head = self.record_head(RecordKind::Other, |head| {
            head.kind = 77;
            head.flags = u8::from(ignorable);
            head.body_len = body_len;
        });
        self.bytes.extend_from_slice(&head);
        self.bytes.extend_from_slice(body);
        self.pad(BLOCK);
        self.previous_record = start;
        self.sequence += 1;
    }

    /// Both copies of a commit; returns the snapshot's id.
    pub fn commit(&mut self, manifest: Option<&Manifest>) -> SnapshotId {
        let manifest = manifest.map_or(Vec::new(), |manifest| manifest.encode().unwrap());
        let manifest = self.spoiled(Spot::Manifest, manifest);
        let last = self.last_commit.clone();
        let start = self.at();
        let zero = Last { offset: 0, len: 0, hash: Id::default(), number: 0 };
        let before = last.unwrap_or(zero);
        let head = CommitHead {
            content_hash: Id::default(),
            incompatible: 0,
            compatible: 0,
            number: before.number + 1,
            previous: LogOffset(before.offset),
            previous_len: before.len,
            previous_hash: before.hash,
            log_start: LogOffset((before.offset + 2 * before.len).max(BLOCK as u64)),
            log_hash: log_hash(&self.body_hashes),
            segment_count: self.body_hashes.len() as u32,
            run_count: self.runs.len() as u32,
            manifest_len: manifest.len() as u32,
            reserved: Reserved,
        };
        let mut hashed = self.spoiled(Spot::CommitHead, head.encode()[32..].to_vec());
        let runs: Vec<u8> = self.runs.iter().flat_map(|run| run.encode()).collect();
        hashed.extend_from_slice(&self.spoiled(Spot::RunEntries, runs));
        hashed.extend_from_slice(&manifest);
        let hash = commit_hash(&hashed);
        let mut content = hash.0.to_vec();
        content.extend_from_slice(&hashed);
        let body_len = (RecordHead::LEN + content.len()) as u64;
        for flags in [0, FLAG_SECOND_COPY] {
            let mut copy = self.record_head(RecordKind::Commit, |head| {
                head.flags = flags;
                head.body_len = body_len;
                head.body_crc = crc32c(&content);
            });
            copy.extend_from_slice(&content);
            copy.resize(copy.len().next_multiple_of(BLOCK), 0);
            let copy = self.spoiled(Spot::CommitRaw, copy);
            self.bytes.extend_from_slice(&copy);
        }
        let len = body_len.next_multiple_of(BLOCK as u64);
        self.last_commit = Some(Last { offset: start, len, hash, number: before.number + 1 });
        self.previous_record = start;
        self.sequence += 1;
        self.body_hashes.clear();
        snapshot_id(&manifest)
    }

    /// The frames of a snapshot of these volumes and files, and its manifest.
    pub fn prepare(
        &mut self,
        disks: &[Disk],
        files: &[(&str, &[u8])],
    ) -> (Vec<Vec<Item>>, Manifest) {
        let number = self.last_commit.as_ref().map_or(0, |last| last.number as i64);
        let time_ns = TIME_NS + number * 1_000_000_000;
        let volumes = disks.iter().map(|disk| NoteVolume {
            name: disk.name.into(),
            size: disk.size,
            chunk_size: disk.chunk_len,
        });
        let (host, program) = ("golden".to_owned(), "voltar-tests".to_owned());
        let note = Note {
            time_ns,
            host: host.clone(),
            program: program.clone(),
            volumes: volumes.collect(),
        };
        let note = serde_json::to_vec(&note).unwrap();
        let mut frames = vec![vec![self.item(ItemKind::Note, 0, 0, note)]];
        let mut volumes = Vec::new();
        for (number, disk) in (0u16..).zip(disks) {
            volumes.push(self.prepare_volume(number, disk, &mut frames));
        }
        let mut attached = Vec::new();
        for (number, (name, bytes)) in (0u16..).zip(files) {
            let item = self.item(ItemKind::Attached, number, 0, bytes.to_vec());
            attached.push(Attached {
                name: (*name).into(),
                size: bytes.len() as u64,
                pieces: vec![item.id],
            });
            frames.push(self.new_only(vec![item]));
        }
        let parent = None;
        let tags = Default::default();
        (frames, Manifest { time_ns, host, program, parent, tags, volumes, attached })
    }

    fn prepare_volume(&mut self, number: u16, disk: &Disk, frames: &mut Vec<Vec<Item>>) -> Volume {
        let shape = Shape::new(disk.size, disk.chunk_len).unwrap();
        let (mut builder, mut nodes) = (MapBuilder::new(shape), Vec::new());
        let mut chunks = Vec::new();
        for (index, state) in (0u64..).zip(&disk.chunks) {
            let entry = match state {
                State::Data(bytes) => Entry::Data(chunk_id(bytes)),
                State::Partial(bytes) => Entry::Partial(chunk_id(bytes)),
                State::Zero => Entry::Zero,
                State::Unreadable => Entry::Unreadable,
            };
            builder.push(entry, &mut nodes);
            if let State::Data(bytes) | State::Partial(bytes) = state {
                chunks.push(self.item(ItemKind::Chunk, number, index, bytes.clone()));
            }
        }
        let mut root = builder.finish(&mut nodes);
        for few in self.new_only(chunks).chunks(4) {
            frames.push(few.to_vec());
        }
        let mut items = Vec::new();
        for node in nodes {
            let bytes = self.spoiled(Spot::Node, node.bytes);
            let index = u64::from(node.level) << 56 | node.number;
            let item = self.item(ItemKind::Node, number, index, bytes);
            if node.id == root {
                root = item.id;
            }
            items.push(item);
        }
        frames.push(self.new_only(items));
        Volume {
            name: disk.name.into(),
            size: disk.size,
            chunk_size: disk.chunk_len,
            root,
            source: "forged".into(),
            change_source: "none".into(),
            proof: Default::default(),
            degraded: None,
            unreadable: disk.unreadable.clone(),
            new_bytes: 0,
        }
    }

    /// An item by its right name.
    pub fn item(&self, kind: ItemKind, volume: u16, index: u64, bytes: Vec<u8>) -> Item {
        let id = match kind {
            ItemKind::Node => node_id(&bytes),
            _ => chunk_id(&bytes),
        };
        Item { kind, id, volume, index, bytes }
    }

    /// Those that are not in the archive, each once.
    fn new_only(&self, items: Vec<Item>) -> Vec<Item> {
        let mut seen = self.known.clone();
        items.into_iter().filter(|item| seen.insert(item.id)).collect()
    }

    /// A snapshot: a segment, a run, a commit.
    pub fn snapshot(&mut self, disks: &[Disk], files: &[(&str, &[u8])]) -> SnapshotId {
        let (frames, manifest) = self.prepare(disks, files);
        self.segment(&frames);
        self.run();
        self.commit(Some(&manifest))
    }
}

fn entry_of(item: &Item) -> ChunkEntry {
    let entry = ChunkEntry::new(item.kind, item.id, item.index, item.bytes.len());
    ChunkEntry { volume: item.volume, ..entry }
}

/// One zstd frame with its content size.
pub fn pack(raw: &[u8]) -> Vec<u8> {
    let mut packed = Vec::with_capacity(zstd_safe::compress_bound(raw.len()));
    zstd_safe::compress(&mut packed, raw, 3).unwrap();
    packed
}

/// The frames with a root whose first child is the node before it as that is now named.
pub fn renamed(forge: &Forge<'_>, mut frames: Vec<Vec<Item>>, root: &Item) -> (Vec<Vec<Item>>, Id) {
    let nodes = frames.last_mut().unwrap();
    let mut bytes = root.bytes.clone();
    let ids = bytes.len() - 32;
    bytes[ids..].copy_from_slice(&nodes[0].id.0);
    let root = forge.item(ItemKind::Node, root.volume, root.index, bytes);
    let id = root.id;
    *nodes.last_mut().unwrap() = root;
    (frames, id)
}
