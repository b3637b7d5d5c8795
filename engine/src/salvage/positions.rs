//! Where the items of a session without a commit say they belonged: one stream a level, in the
//! order of the volume, which is the order in which a backup writes them.

use std::sync::Arc;

use voltar_format::Id;
use voltar_format::LogOffset;
use voltar_format::frame::{ChunkEntry, ItemKind};
use voltar_format::map::{Shape, span_of_node};
use voltar_format::record::RecordKind;
use voltar_format::segment::Table;
use voltar_format::units::ChunkIndex;

use super::copy::Orphan;
use crate::archive::open::Archive;
use crate::archive::spans::spans;
use crate::archive::{format_error, read_exact};
use crate::error::Result;

/// Bits of a node's `index` that are its number; the level is above them.
const NUMBER_BITS: u32 = 56;

/// An item at its place in a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Item {
    /// The chunk there.
    Chunk(Id),
    /// The node that begins there.
    Node {
        /// Its id.
        id: Id,
        /// Its level.
        level: u8,
        /// Its number on that level.
        number: u64,
    },
}

/// A table in the new archive.
#[derive(Clone, Copy, Debug)]
struct Spot {
    at: LogOffset,
    len: u32,
}

/// The tables of what a session left.
pub(super) fn tables(archive: &Archive, orphan: &Orphan) -> Result<Tables> {
    let mut spots = Vec::new();
    for range in &orphan.copies {
        let (start, end) = (LogOffset(range.start), LogOffset(range.end));
        for span in spans(&*archive.home, archive.id, start, end)? {
            let (footer, kind) =
                span.footer.map_err(|error| format_error(archive.label(), error))?;
            if kind == RecordKind::Data {
                let at = LogOffset(footer.start.0 + u64::from(footer.table_offset));
                spots.push(Spot { at, len: footer.table_len });
            }
        }
    }
    Ok(Tables { archive: archive.clone(), spots: spots.into() })
}

/// The tables of a session's segments in the new archive.
#[derive(Clone)]
pub(super) struct Tables {
    archive: Archive,
    spots: Arc<[Spot]>,
}

/// What a session says of one volume.
pub(super) struct Positions {
    /// Chunks, then the nodes of each level from 0 on.
    streams: Vec<Stream>,
}

impl Positions {
    /// Of volume `volume` of the session's note.
    pub fn new(tables: &Tables, volume: u16, shape: Shape) -> Positions {
        let chunks = Stream::new(tables, volume, shape, None);
        let nodes =
            (0..=shape.root_level()).map(|level| Stream::new(tables, volume, shape, Some(level)));
        Positions { streams: [chunks].into_iter().chain(nodes).collect() }
    }

    /// What begins at `chunk` and covers most: a chunk, or a node at a level below `levels`.
    ///
    /// # Errors
    /// Of reading tables.
    pub fn at(&mut self, chunk: u64, levels: u8) -> Result<Option<Item>> {
        for stream in self.below(levels).rev() {
            if let Some((_, item)) = stream.from(chunk)?.filter(|(start, _)| *start == chunk) {
                return Ok(Some(item));
            }
        }
        Ok(None)
    }

    /// Where the next such item behind `chunk` begins.
    ///
    /// # Errors
    /// As [`at`](Self::at).
    pub fn next(&mut self, chunk: u64, levels: u8) -> Result<Option<u64>> {
        let mut next: Option<u64> = None;
        for stream in self.below(levels) {
            if let Some((start, _)) = stream.from(chunk.saturating_add(1))? {
                next = Some(next.map_or(start, |next| next.min(start)));
            }
        }
        Ok(next)
    }

    fn below(&mut self, levels: u8) -> impl DoubleEndedIterator<Item = &mut Stream> {
        self.streams.iter_mut().take(usize::from(levels) + 1)
    }
}

/// The chunks of a volume, or its nodes of one level.
struct Stream {
    tables: Tables,
    next_table: usize,
    volume: u16,
    shape: Shape,
    level: Option<u8>,
    entries: std::vec::IntoIter<ChunkEntry>,
    head: Option<(u64, Item)>,
}

impl Stream {
    fn new(tables: &Tables, volume: u16, shape: Shape, level: Option<u8>) -> Stream {
        let entries = Vec::new().into_iter();
        let tables = tables.clone();
        Stream { tables, next_table: 0, volume, shape, level, entries, head: None }
    }

    /// The first item at or behind `chunk`. What the session wrote out of order is passed over.
    fn from(&mut self, chunk: u64) -> Result<Option<(u64, Item)>> {
        while self.head.is_none_or(|(start, _)| start < chunk) {
            self.head = match self.entries.next() {
                Some(entry) => self.place_of(&entry),
                None if self.load_table()? => None,
                None => return Ok(None),
            };
        }
        Ok(self.head)
    }

    fn load_table(&mut self) -> Result<bool> {
        let archive = &self.tables.archive;
        let Some(spot) = self.tables.spots.get(self.next_table) else { return Ok(false) };
        self.next_table += 1;
        let bytes = read_exact(&*archive.home, spot.at, spot.len as usize)?;
        let table = Table::decode(&bytes)
            .map_err(|error| format_error(archive.label(), error.at(spot.at)))?;
        let ours = |entry: &ChunkEntry| entry.volume == self.volume;
        self.entries = table.chunks.into_iter().filter(ours).collect::<Vec<_>>().into_iter();
        Ok(true)
    }

    /// Where an item begins, if it is of this stream and can be of this volume.
    fn place_of(&self, entry: &ChunkEntry) -> Option<(u64, Item)> {
        match (entry.item_kind()?, self.level) {
            (ItemKind::Chunk, None) => {
                let fits = entry.index < self.shape.chunk_count()
                    && entry.raw_len == self.shape.chunk_bytes(ChunkIndex(entry.index));
                fits.then_some((entry.index, Item::Chunk(entry.id)))
            }
            (ItemKind::Node, Some(level)) => {
                let number = entry.index & ((1 << NUMBER_BITS) - 1);
                let start = number.saturating_mul(span_of_node(level));
                let fits = entry.index >> NUMBER_BITS == u64::from(level)
                    && start < self.shape.chunk_count();
                fits.then_some((start, Item::Node { id: entry.id, level, number }))
            }
            _ => None,
        }
    }
}
