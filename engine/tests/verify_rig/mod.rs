//! Small archives in memory, written with the archive module alone.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use voltar_engine::archive::index::{Fresh, Index};
use voltar_engine::archive::open::Archive;
use voltar_engine::archive::resume::adopt;
use voltar_engine::archive::session::{Session, new_header};
use voltar_engine::archive::spans::{Span, spans};
use voltar_engine::codec::{Encoder, Level};
use voltar_engine::device::Device;
use voltar_engine::device::memory::MemoryDevice;
use voltar_engine::options::{Context, IoEngine};
use voltar_format::checksum::chunk_id;
use voltar_format::frame::{ChunkEntry, Codec, ItemKind, head_of, node_index};
use voltar_format::manifest::{Attached, Manifest, Volume};
use voltar_format::map::{BuiltNode, Entry, MapBuilder, Shape};
use voltar_format::record::RecordKind;
use voltar_format::units::ChunkIndex;
use voltar_format::{Id, SnapshotId};

/// An archive in memory and how to add to it.
pub struct Shelf {
    pub device: MemoryDevice,
    /// Whether chunk 1 of every volume is stored with other bytes than its id says.
    pub lies: bool,
    time_ns: i64,
}

/// A session being written.
struct Writer {
    session: Session,
    index: Index,
    fresh: Arc<Fresh>,
    items: Vec<(ChunkEntry, Vec<u8>)>,
    encoder: Encoder,
    frames: usize,
    lies: bool,
}

impl Shelf {
    pub fn new() -> Shelf {
        let device = MemoryDevice::new(0).growing();
        device.write_at(&new_header(1_700_000_000_000_000_000).encode(), 0).unwrap();
        Shelf { device, lies: false, time_ns: 1_700_000_000_000_000_000 }
    }

    pub fn archive(&self) -> Archive {
        Archive::open(Arc::new(self.device.clone())).unwrap()
    }

    /// Adds a snapshot of these volumes (name, chunk length, bytes) and attached files.
    pub fn snapshot(
        &mut self,
        volumes: &[(&str, u32, &[u8])],
        attached: &[(&str, &[u8])],
    ) -> SnapshotId {
        let mut writer = self.writer();
        let manifest = self.manifest(&mut writer, volumes, attached);
        writer.flush_frame();
        writer.session.commit(&manifest.encode().unwrap()).unwrap();
        self.archive().last.unwrap().snapshot_id().unwrap()
    }

    /// Leaves work behind the last commit, as an interrupted backup does.
    pub fn interrupted(&mut self, volumes: &[(&str, u32, &[u8])]) {
        let mut writer = self.writer();
        let _ = self.manifest(&mut writer, volumes, &[]);
        writer.flush_frame();
        writer.session.abandon();
    }

    /// A snapshot of one volume whose first `early` bytes an interrupted backup had sealed: two
    /// segments before one commit. Where they lie.
    pub fn two_segments(&mut self, bytes: &[u8], early: usize) -> [Range<u64>; 2] {
        self.interrupted(&[("disk", 4096, &bytes[..early])]);
        self.snapshot(&[("disk", 4096, bytes)], &[]);
        let archive = self.archive();
        let commit = archive.last.as_ref().unwrap();
        let (start, end) = (commit.head.log_start, commit.offset);
        let spans = spans(&*archive.home, archive.id, start, end).unwrap();
        let is_data = |span: &Span| matches!(span.footer, Ok((_, RecordKind::Data)));
        let segments = spans.into_iter().filter(is_data).map(|span| span.range);
        segments.collect::<Vec<_>>().try_into().unwrap()
    }

    /// Damages what divides two segments, and where the second one ends.
    pub fn lose_borders(&self, [first, second]: &[Range<u64>; 2]) {
        self.device.write_at(&[0xaa; 256], first.end - 128).unwrap();
        self.device.write_at(&[0xaa; 128], second.end - 128).unwrap();
    }

    fn writer(&self) -> Writer {
        let archive = self.archive();
        let runs = archive.last.as_ref().map(|commit| commit.runs.clone()).unwrap_or_default();
        let index = Index::new(Arc::clone(&archive.home), runs);
        let fresh = Arc::new(Fresh::default());
        let beginning = adopt(&archive, &index, &fresh, &Context::default()).unwrap();
        let session = Session::in_home(
            &archive,
            index.clone(),
            Arc::clone(&fresh),
            beginning,
            IoEngine::Blocking,
            4,
            false,
        )
        .unwrap();
        let encoder = Encoder::new().unwrap();
        Writer { session, index, fresh, items: Vec::new(), encoder, frames: 0, lies: self.lies }
    }

    fn manifest(
        &mut self,
        writer: &mut Writer,
        volumes: &[(&str, u32, &[u8])],
        attached: &[(&str, &[u8])],
    ) -> Manifest {
        self.time_ns += 3_600_000_000_000;
        let volumes = volumes
            .iter()
            .enumerate()
            .map(|(number, (name, chunk_len, bytes))| Volume {
                name: (*name).to_owned(),
                size: bytes.len() as u64,
                chunk_size: *chunk_len,
                root: writer.volume(number as u16, *chunk_len, bytes),
                source: "/dev/null".to_owned(),
                change_source: "none".to_owned(),
                proof: BTreeMap::new(),
                degraded: None,
                unreadable: Vec::new(),
                new_bytes: 0,
            })
            .collect();
        let attached = attached
            .iter()
            .map(|(name, bytes)| Attached {
                name: (*name).to_owned(),
                size: bytes.len() as u64,
                pieces: bytes.chunks(8192).map(|piece| writer.attach(piece)).collect(),
            })
            .collect();
        Manifest {
            time_ns: self.time_ns,
            host: "host".to_owned(),
            program: "test".to_owned(),
            parent: None,
            tags: BTreeMap::from([("kind".to_owned(), "test".to_owned())]),
            volumes,
            attached,
        }
    }
}

impl Writer {
    fn volume(&mut self, number: u16, chunk_len: u32, bytes: &[u8]) -> Id {
        let shape = Shape::new(bytes.len() as u64, chunk_len).unwrap();
        let mut builder = MapBuilder::new(shape);
        let mut nodes = Vec::new();
        for index in 0..shape.chunk_count() {
            let range = shape.chunk_range(ChunkIndex(index));
            let chunk = &bytes[range.start as usize..range.end as usize];
            let entry = match chunk.iter().all(|byte| *byte == 0) {
                true => Entry::Zero,
                false => {
                    Entry::Data(self.put(ItemKind::Chunk, index, number, chunk_id(chunk), chunk))
                }
            };
            builder.push(entry, &mut nodes);
        }
        let root = builder.finish(&mut nodes);
        for BuiltNode { id, level, number: node, bytes } in nodes {
            self.put(ItemKind::Node, node_index(level, node), number, id, &bytes);
        }
        root
    }

    fn attach(&mut self, piece: &[u8]) -> Id {
        self.put(ItemKind::Attached, 0, 0, chunk_id(piece), piece)
    }

    fn put(&mut self, kind: ItemKind, index: u64, volume: u16, id: Id, bytes: &[u8]) -> Id {
        let known = self.fresh.holds(&id) || self.index.find(&id).unwrap().is_some();
        if known || !self.fresh.claim(&id) {
            return id;
        }
        let entry = ChunkEntry { volume, ..ChunkEntry::new(kind, id, index, bytes.len()) };
        let held: usize = self.items.iter().map(|(_, bytes)| bytes.len()).sum();
        if held + bytes.len() > 64 << 10 {
            self.flush_frame();
        }
        let mut bytes = bytes.to_vec();
        if self.lies && kind == ItemKind::Chunk && index == 1 {
            bytes[0] ^= 1;
        }
        self.items.push((entry, bytes));
        id
    }

    fn flush_frame(&mut self) {
        let items = std::mem::take(&mut self.items);
        if items.is_empty() {
            return;
        }
        let raw: Vec<u8> = items.iter().flat_map(|(_, bytes)| bytes.clone()).collect();
        let entries: Vec<ChunkEntry> = items.into_iter().map(|(entry, _)| entry).collect();
        let mut out = vec![0; raw.len()];
        self.frames += 1;
        let level = if self.frames.is_multiple_of(4) { Level::Store } else { Level::Zstd(1) };
        let packed = self.encoder.encode(&raw, level, &mut out).unwrap();
        let (codec, payload) = match packed {
            Some(len) => (Codec::Zstd, &out[..len]),
            None => (Codec::Store, &raw[..]),
        };
        let head = head_of(codec, &entries, payload);
        self.session.append_frame(&head, payload).unwrap();
    }
}

/// Bytes that differ from place to place and compress to about half.
pub fn pattern(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state & 15) as u8 + b'a'
    };
    (0..len).map(|_| next()).collect()
}
