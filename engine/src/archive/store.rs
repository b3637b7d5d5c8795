//! Items by id: index, frame, decode, check.

use std::collections::VecDeque;
use std::sync::Arc;

use voltar_format::checksum::{chunk_id, node_id};
use voltar_format::frame::{ChunkEntry, Frame, ItemKind};
use voltar_format::index::IndexEntry;
use voltar_format::limits::{FRAME_RAW_LEN_MAX, FRAME_STORED_LEN_MAX};
use voltar_format::map::{Node, Shape};
use voltar_format::walk::NodeSource;
use voltar_format::{FormatError, Id, LogOffset, Structure};

use super::index::{Fresh, Index, Place, missing};
use super::{Home, format_error, read_exact};
use crate::codec::Decoder;
use crate::error::Result;

/// Decoded frames a store keeps: map nodes of one region lie in few frames.
const CACHED_FRAMES: usize = 12;

/// Reads single items; for map nodes, attached files and other small things. The bulk of chunks
/// goes through the restore pipeline instead.
pub struct Store {
    home: Arc<dyn Home>,
    index: Index,
    fresh: Option<Arc<Fresh>>,
    decoder: Decoder,
    frames: VecDeque<Decoded>,
}

struct Decoded {
    offset: LogOffset,
    entries: Vec<ChunkEntry>,
    raw: Vec<u8>,
}

impl Store {
    /// Over the archive in `home` with this index.
    ///
    /// # Errors
    /// Out of memory.
    pub fn new(home: Arc<dyn Home>, index: Index) -> Result<Store> {
        let decoder = Decoder::new()?;
        Ok(Store { home, index, fresh: None, decoder, frames: VecDeque::new() })
    }

    /// Also sees what the session adds that `fresh` belongs to.
    pub fn with_fresh(mut self, fresh: Arc<Fresh>) -> Store {
        self.fresh = Some(fresh);
        self
    }

    /// The index it looks ids up in.
    pub fn index(&self) -> &Index {
        &self.index
    }

    /// The item's bytes, checked against its id. If they are damaged in one place, the others
    /// are tried.
    ///
    /// # Errors
    /// `Damaged` if it is missing, unreadable or not what its id says.
    pub fn item(&mut self, id: &Id, kind: ItemKind) -> Result<Vec<u8>> {
        let mut first = None;
        let mut tried = Vec::new();
        loop {
            let place = match self.find(id, &tried) {
                Ok(Some(place)) => place,
                Ok(None) => return Err(first.unwrap_or_else(|| missing(self.home.label(), id))),
                Err(error) => return Err(first.unwrap_or(error)),
            };
            match self.item_at(&place, id, kind) {
                Ok(bytes) => return Ok(bytes),
                Err(error) => first = first.or(Some(error)),
            }
            tried.push(place.frame);
        }
    }

    fn find(&self, id: &Id, tried: &[LogOffset]) -> Result<Option<Place>> {
        let fresh = self.fresh.as_ref().and_then(|fresh| fresh.find(id));
        if let Some(place) = fresh.filter(|place| !tried.contains(&place.frame)) {
            return Ok(Some(place));
        }
        Ok(self.index.find_other(id, tried)?.as_ref().map(place_of))
    }

    fn item_at(&mut self, place: &Place, id: &Id, kind: ItemKind) -> Result<Vec<u8>> {
        let found = self.in_frame(place, id);
        let bytes =
            found.map_err(|error| format_error(self.home.label(), error.at(place.frame)))??;
        check_id(&bytes, id, kind)
            .map_err(|error| format_error(self.home.label(), error.at(place.frame)))?;
        Ok(bytes)
    }

    fn in_frame(&mut self, place: &Place, id: &Id) -> Result<Result<Vec<u8>>, FormatError> {
        let at = self.frames.iter().position(|frame| frame.offset == place.frame);
        if at.is_none() {
            match self.load(place)? {
                Ok(()) => {}
                Err(error) => return Ok(Err(error)),
            }
        }
        let frame = at.map_or_else(|| self.frames.back(), |at| self.frames.get(at));
        let not_there =
            || FormatError::new(Structure::Frame, "F-068", format!("it does not hold {id}"));
        let frame = frame.ok_or_else(not_there)?;
        Ok(Ok(piece(&frame.entries, &frame.raw, place.slot, id).ok_or_else(not_there)?.to_vec()))
    }

    fn load(&mut self, place: &Place) -> Result<Result<()>, FormatError> {
        let len = place.frame_len.min(FRAME_STORED_LEN_MAX) as usize;
        let bytes = match read_exact(&*self.home, place.frame, len) {
            Ok(bytes) => bytes,
            Err(error) => return Ok(Err(error)),
        };
        let frame = Frame::decode(&bytes)?;
        frame.check_payload()?;
        let mut raw = vec![0; frame.head.raw_len.min(FRAME_RAW_LEN_MAX) as usize];
        self.decoder.decode(&frame, &mut raw)?;
        if self.frames.len() >= CACHED_FRAMES {
            self.frames.pop_front();
        }
        self.frames.push_back(Decoded { offset: place.frame, entries: frame.entries, raw });
        Ok(Ok(()))
    }
}

/// The bytes of item `slot` in a decoded frame, if its entry has this id.
pub fn piece<'r>(entries: &[ChunkEntry], raw: &'r [u8], slot: u16, id: &Id) -> Option<&'r [u8]> {
    let slot = usize::from(slot);
    let entry = entries.get(slot).filter(|entry| entry.id == *id)?;
    // Decoding checked that the lengths add up to the payload's.
    let from: usize = entries[..slot].iter().map(|entry| entry.raw_len as usize).sum();
    raw.get(from..from + entry.raw_len as usize)
}

/// Checks an item's bytes against its id.
///
/// # Errors
/// F-029.
pub fn check_id(bytes: &[u8], id: &Id, kind: ItemKind) -> Result<(), FormatError> {
    let (actual, structure) = match kind {
        ItemKind::Node => (node_id(bytes), Structure::Map),
        ItemKind::Chunk | ItemKind::Attached | ItemKind::Note => {
            (chunk_id(bytes), Structure::Chunk)
        }
    };
    match actual == *id {
        true => Ok(()),
        false => {
            let problem = format!("its bytes hash to {actual}, its id is {id}");
            Err(FormatError::new(structure, "F-029", problem))
        }
    }
}

/// Where an index entry says the item is.
pub fn place_of(entry: &IndexEntry) -> Place {
    Place { frame: entry.frame, frame_len: entry.frame_len, slot: entry.slot, kind: entry.kind }
}

impl NodeSource for Store {
    type Error = crate::error::Error;

    fn node(&mut self, id: &Id, shape: &Shape, level: u8, number: u64) -> Result<Node> {
        let bytes = self.item(id, ItemKind::Node)?;
        Node::decode(&bytes, shape, level, number)
            .map_err(|error| format_error(self.home.label(), error))
    }
}
