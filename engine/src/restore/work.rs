//! Work: frames to checked pieces of the volume, and zeroing.

use std::collections::HashMap;
use std::ops::Range;

use voltar_format::frame::{ChunkEntry, Frame, ItemKind};
use voltar_format::limits::FRAME_RAW_LEN_MAX;
use voltar_format::{ChunkIndex, FormatError, Id, Structure};

use super::job::{Job, Tally, Target};
use super::lookup::{Item, Wanted};
use super::read::{Read, Task};
use crate::archive::blocks::pieces;
use crate::archive::format_error;
use crate::archive::store::{Store, check_id};
use crate::codec::Decoder;
use crate::device::ZeroMethod;
use crate::error::{Error, Result};
use crate::io::buffer::{Buffer, BufferPool};
use crate::limit::Limit;
use crate::options::Context;

/// Most bytes zeroed at once: where a device has to write them, this is what a stop waits for.
const ZERO_LEN_MAX: u64 = 32 << 20;

/// Bytes of a buffer that holds any decoded frame.
pub const PIECE_BUFFER_LEN: usize = FRAME_RAW_LEN_MAX as usize;

/// Bytes of a buffer that belong somewhere on the target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Where in the buffer they start.
    pub from: usize,
    /// How many.
    pub len: usize,
    /// Where on the target they go.
    pub offset: u64,
}

/// What is to be written: nothing, or pieces of one buffer.
pub type Done = Option<(Buffer, Vec<Piece>)>;

/// What all workers share.
pub struct Shop<'a> {
    /// The volume.
    pub job: &'a Job,
    /// The target.
    pub target: &'a dyn Target,
    /// Whether the target reads as zeroes already because it was just created.
    pub blank: bool,
    /// Buffers for decoded frames.
    pub pool: &'a BufferPool,
    /// Counts.
    pub tally: &'a Tally,
    /// What bounds the rate of the target.
    pub limit: &'a Limit,
    /// Who watches.
    pub context: &'a Context,
}

impl Shop<'_> {
    /// Does one task.
    ///
    /// # Errors
    /// Of zeroing; damage, unless it is borne.
    pub fn work(&self, decoder: &mut Decoder, task: Task) -> Result<Done> {
        match task {
            Task::Zero(range) => self.zero(&range).map(|()| None),
            Task::Frame(wanted, read) => self.frame(decoder, &wanted, read),
        }
    }

    fn zero(&self, range: &Range<u64>) -> Result<()> {
        if self.blank {
            let len = range.end - range.start;
            self.tally.zeroed(len, None);
            self.context.observer.advance(len);
            return Ok(());
        }
        self.tally.touch();
        pieces(range.clone(), ZERO_LEN_MAX).try_for_each(|piece| self.zero_piece(piece))
    }

    fn zero_piece(&self, range: Range<u64>) -> Result<()> {
        self.context.cancel.check()?;
        let len = range.end - range.start;
        let method = self.target.zero(range.clone()).map_err(|error| {
            Error::io("cannot zero a range of the target", self.target.label(), error).at(range)
        })?;
        if method != ZeroMethod::PunchHole {
            // The device may have been written to, zero by zero.
            self.limit.pass(len, &self.context.cancel)?;
        }
        self.tally.zeroed(len, Some(method));
        self.context.observer.advance(len);
        Ok(())
    }

    fn frame(&self, decoder: &mut Decoder, wanted: &Wanted, read: Read) -> Result<Done> {
        let mut out = self.pool.take();
        out.set_len(PIECE_BUFFER_LEN);
        let mut contents = match self.decode(decoder, wanted, read, &mut out) {
            Ok(contents) => contents,
            Err(error) => {
                let pieces = self.elsewhere(&wanted.items, &mut out, error)?;
                return Ok((!pieces.is_empty()).then_some((out, pieces)));
            }
        };
        let mut pieces = Vec::new();
        for item in &wanted.items {
            let checked = contents.piece(self.job, item, &out);
            match checked {
                Ok(piece) => append(&mut pieces, piece),
                Err(error) => {
                    let error = self.in_words(error, wanted);
                    let room = contents.room(item, &mut out);
                    let found = self.elsewhere(&[*item], room.1, error)?;
                    let moved = found.into_iter().map(|it| Piece { from: it.from + room.0, ..it });
                    moved.for_each(|piece| append(&mut pieces, piece));
                }
            }
        }
        Ok((!pieces.is_empty()).then_some((out, pieces)))
    }

    fn decode(
        &self,
        decoder: &mut Decoder,
        wanted: &Wanted,
        read: Read,
        out: &mut [u8],
    ) -> Result<Contents> {
        let place = wanted.frame.0..wanted.frame.0.saturating_add(wanted.frame_len.into());
        let bytes = read.bytes.map_err(|error| {
            Error::io("cannot read the archive", self.job.archive.label(), error).at(place)
        })?;
        let bytes = bytes.get(read.skip..).unwrap_or(&[]);
        let entries = Frame::decode(bytes).and_then(|frame| {
            frame.check_payload()?;
            decoder.decode(&frame, out)?;
            Ok(frame.entries)
        });
        entries.map(Contents::new).map_err(|error| self.in_words(error, wanted))
    }

    fn in_words(&self, error: FormatError, wanted: &Wanted) -> Error {
        format_error(self.job.archive.label(), error.at(wanted.frame))
    }

    /// Fetches chunks that cannot be had in one place from any other, into `room`; what is
    /// nowhere is lost, for the reason of the first place.
    fn elsewhere(&self, items: &[Item], room: &mut [u8], error: Error) -> Result<Vec<Piece>> {
        let mut pieces = Vec::new();
        let mut lost = Vec::new();
        if !error.is_damage() {
            return self.lose(items, error).map(|()| pieces);
        }
        let mut store = Store::new(self.job.archive.home.clone(), self.job.index.clone())?;
        let mut held: HashMap<Id, Range<usize>> = HashMap::new();
        let mut next = 0;
        for item in items {
            self.context.cancel.check()?;
            let target = self.job.shape.chunk_range(ChunkIndex(item.chunk));
            let len = (target.end - target.start) as usize;
            if !held.contains_key(&item.id)
                && let Ok(bytes) = store.item(&item.id, ItemKind::Chunk)
                && let Some(place) = room.get_mut(next..next + bytes.len())
            {
                place.copy_from_slice(&bytes);
                held.insert(item.id, next..next + bytes.len());
                next += bytes.len();
            }
            match held.get(&item.id).filter(|range| range.len() == len) {
                Some(range) => {
                    append(&mut pieces, Piece { from: range.start, len, offset: target.start });
                }
                None => lost.push(*item),
            }
        }
        match lost.is_empty() {
            true => Ok(pieces),
            false => self.lose(&lost, error).map(|()| pieces),
        }
    }

    /// The archive cannot give these chunks: zeroes them if that is borne, or fails.
    fn lose(&self, items: &[Item], error: Error) -> Result<()> {
        let bytes = |item: &Item| self.job.shape.chunk_range(ChunkIndex(item.chunk));
        if !self.job.bears(&error) {
            let first = items.first().map_or(0..0, bytes);
            let last = items.last().map_or(0..0, bytes);
            return Err(self.job.lost(&(first.start..last.end), error));
        }
        for item in items {
            self.tally.lost.add(item.chunk..item.chunk + 1);
            self.zero(&bytes(item))?;
        }
        Ok(())
    }
}

/// The items of a decoded frame, and which of them have been checked.
struct Contents {
    entries: Vec<ChunkEntry>,
    /// Where each starts in the decoded payload.
    starts: Vec<usize>,
    checked: Vec<bool>,
}

impl Contents {
    fn new(entries: Vec<ChunkEntry>) -> Contents {
        let starts = entries
            .iter()
            .scan(0, |next, entry| {
                let start = *next;
                // Decoding checked that the lengths add up to the payload's.
                *next += entry.raw_len as usize;
                Some(start)
            })
            .collect();
        let checked = vec![false; entries.len()];
        Contents { entries, starts, checked }
    }

    /// The bytes of the decoded payload `raw` that nobody needs if the item is not proven: those
    /// of its slot, and where they start. An index may lie about slots: that of another id is the
    /// other's.
    fn room<'r>(&self, item: &Item, raw: &'r mut [u8]) -> (usize, &'r mut [u8]) {
        let slot = usize::from(item.slot);
        let entry = self.entries.get(slot).filter(|entry| entry.id == item.id);
        let range = self.starts.get(slot).zip(entry);
        let range = range.map_or(0..0, |(from, entry)| *from..from + entry.raw_len as usize);
        // Not an item that was proven and is another's.
        let is_free = self.checked.get(slot) == Some(&false);
        (range.start, if is_free { raw.get_mut(range) } else { None }.unwrap_or_default())
    }

    /// Where the item lies in the payload `raw` and where it goes, once it is proven to be what
    /// the map says.
    fn piece(&mut self, job: &Job, item: &Item, raw: &[u8]) -> Result<Piece, FormatError> {
        let fail = |problem| FormatError::new(Structure::Frame, "F-068", problem);
        let slot = usize::from(item.slot);
        let entry = self.entries.get(slot).filter(|entry| entry.id == item.id);
        let entry = entry.ok_or_else(|| fail(format!("it does not hold {}", item.id)))?;
        let target = job.shape.chunk_range(ChunkIndex(item.chunk));
        let len = entry.raw_len as usize;
        if len as u64 != target.end - target.start {
            return Err(fail(format!("{} is not as long as its chunk", item.id)));
        }
        let from = self.starts.get(slot).copied().unwrap_or(usize::MAX);
        let bytes = from.checked_add(len).and_then(|end| raw.get(from..end));
        let bytes = bytes.ok_or_else(|| fail(format!("{} lies outside it", item.id)))?;
        if self.checked.get(slot) != Some(&true) {
            check_id(bytes, &item.id, ItemKind::Chunk)?;
            self.checked.get_mut(slot).into_iter().for_each(|checked| *checked = true);
        }
        Ok(Piece { from, len, offset: target.start })
    }
}

/// Adds a piece; one that goes on where the last ended, here and there, becomes part of it.
fn append(pieces: &mut Vec<Piece>, piece: Piece) {
    let last = pieces.last_mut().filter(|last| {
        last.from + last.len == piece.from && last.offset + last.len as u64 == piece.offset
    });
    match last {
        Some(last) => last.len += piece.len,
        None => pieces.push(piece),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_here_and_there_become_one_piece() {
        let piece = |from, len, offset| Piece { from, len, offset };
        let mut pieces = Vec::new();
        for new in [piece(0, 10, 100), piece(10, 5, 110), piece(15, 5, 200), piece(0, 5, 205)] {
            append(&mut pieces, new);
        }
        assert_eq!(pieces, [piece(0, 15, 100), piece(15, 5, 200), piece(0, 5, 205)]);
    }
}
