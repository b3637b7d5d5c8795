//! Reading from a stream of changes that brings their bytes along: nothing is read twice.
//!
//! A stream speaks of ranges, the archive of chunks. Chunks of which the stream brings only a part
//! are completed from the device, which holds the same instant.

use std::ops::Range;
use std::sync::OnceLock;

use super::plan::{Action, Step, with_read};
use super::read::{Item, READ_LEN, Reader, Room, Source};
use crate::error::{Error, ErrorKind, Result};
use crate::pipeline::Feeder;
use crate::source::changed::ChangeList;
use crate::source::{Change, ChangeStream, ChangedExtent, Degraded, Piece};

/// A stream and how it is to be understood.
pub struct Streamed<'a> {
    /// The stream.
    pub stream: Box<dyn ChangeStream>,
    /// What it does not mention: as in the parent, or zero.
    pub gaps: Change,
    /// Byte ranges that are read all the same if it does not mention them.
    pub unknown: &'a [Range<u64>],
    /// What it said in the end.
    pub said: &'a OnceLock<Vec<ChangedExtent>>,
    /// Why it is not to be believed, if so.
    pub lost: &'a OnceLock<String>,
}

/// Reads the whole volume from a stream.
///
/// # Errors
/// As [`super::read::produce`]; if the stream breaks, `lost` says why.
pub fn produce(
    source: Source<'_>,
    streamed: Streamed<'_>,
    feeder: &Feeder<'_, Item>,
) -> Result<()> {
    let Streamed { mut stream, gaps, unknown, said, lost } = streamed;
    let reader = Reader::new(source, feeder)?;
    let size = reader.shape().size();
    let mut gatherer =
        Gatherer { reader, gaps, unknown, list: ChangeList::new(gaps), next: 0, run: None };
    let broken = |Degraded(why)| {
        let error = Error::new(ErrorKind::SourceUnusable, "the stream of changes broke");
        // Only the first reason counts.
        let _ = lost.set(why.clone());
        error.because(why)
    };
    let mut bytes = Vec::new();
    while let Some(piece) = stream.next(&mut bytes).map_err(broken)? {
        let range = match &piece {
            Piece::Data { offset } => *offset..offset.saturating_add(bytes.len() as u64),
            Piece::Zero(range) => range.clone(),
        };
        if range.end > size {
            let Range { start, end } = range;
            return Err(broken(Degraded(format!("it goes on to {start:#x}..{end:#x}"))));
        }
        let change = if matches!(piece, Piece::Zero(_)) { Change::Zero } else { Change::Changed };
        gatherer.list.push(range.clone(), change).map_err(broken)?;
        match piece {
            Piece::Data { .. } => gatherer.take(range.start, Bytes::These(&bytes))?,
            Piece::Zero(_) => gatherer.take_zero(range)?,
        }
    }
    let list = gatherer.finish()?;
    // Set once: a volume has one stream at a time.
    let _ = said.set(list.finish(size));
    Ok(())
}

/// Bytes of a piece.
#[derive(Clone, Copy)]
enum Bytes<'a> {
    These(&'a [u8]),
    Zeroes(u64),
}

impl<'a> Bytes<'a> {
    fn len(self) -> u64 {
        match self {
            Bytes::These(bytes) => bytes.len() as u64,
            Bytes::Zeroes(len) => len,
        }
    }

    fn split(self, at: u64) -> (Bytes<'a>, Bytes<'a>) {
        match self {
            Bytes::These(bytes) => {
                let (left, right) = bytes.split_at(at as usize);
                (Bytes::These(left), Bytes::These(right))
            }
            Bytes::Zeroes(len) => (Bytes::Zeroes(at), Bytes::Zeroes(len - at)),
        }
    }
}

/// Makes runs of whole chunks of pieces.
struct Gatherer<'s, 'f, 'u> {
    reader: Reader<'s, 'f>,
    gaps: Change,
    unknown: &'u [Range<u64>],
    list: ChangeList,
    /// The first chunk that was neither sent nor begun.
    next: u64,
    run: Option<Run>,
}

/// Chunks one after the other, of which the last may have come only in part.
struct Run {
    first: u64,
    room: Room,
    /// Where in the volume it starts, and where what is filled in ends.
    start: u64,
    end: u64,
    /// Whether the device could not give what the stream left out: then it is asked for all.
    is_spoilt: bool,
}

impl Run {
    fn put(&mut self, bytes: Bytes<'_>) {
        let at = (self.end - self.start) as usize;
        let room = &mut self.room.buffer[at..at + bytes.len() as usize];
        match bytes {
            Bytes::These(bytes) => room.copy_from_slice(bytes),
            Bytes::Zeroes(_) => room.fill(0),
        }
        self.end += bytes.len();
    }

    /// Fills in what the stream left out, up to `end`.
    fn complete(&mut self, end: u64, reader: &Reader<'_, '_>) {
        let range = (self.end - self.start) as usize..(end - self.start) as usize;
        if !range.is_empty() && !reader.read_now(&mut self.room.buffer[range], self.end) {
            self.is_spoilt = true;
        }
        self.end = end;
    }
}

impl Gatherer<'_, '_, '_> {
    fn chunk_len(&self) -> u64 {
        self.reader.shape().chunk_len().into()
    }

    /// Takes bytes at `offset`, at or behind the end of those before.
    fn take(&mut self, mut offset: u64, mut bytes: Bytes<'_>) -> Result<()> {
        while bytes.len() > 0 {
            let chunk = offset / self.chunk_len();
            let room = self.reader.start_of(chunk + 1) - offset;
            let (piece, rest) = bytes.split(bytes.len().min(room));
            self.take_within(chunk, offset, piece)?;
            offset += piece.len();
            bytes = rest;
        }
        Ok(())
    }

    /// Takes bytes that lie within one chunk.
    fn take_within(&mut self, chunk: u64, offset: u64, bytes: Bytes<'_>) -> Result<()> {
        let fits = |run: &Run| (chunk + 1 - run.first) * self.chunk_len() <= READ_LEN;
        if !(chunk <= self.next && self.run.as_ref().is_some_and(fits)) {
            self.send_run()?;
            self.send_gap(chunk)?;
            let mut room = self.reader.room()?;
            room.buffer.set_len(READ_LEN as usize);
            let start = self.reader.start_of(chunk);
            self.run = Some(Run { first: chunk, room, start, end: start, is_spoilt: false });
        }
        self.next = chunk + 1;
        let Some(run) = &mut self.run else {
            return Err(Error::new(ErrorKind::Internal, "there is no room for a piece"));
        };
        run.complete(offset, &self.reader);
        run.put(bytes);
        Ok(())
    }

    /// Takes zeroes: whole chunks need no buffer.
    fn take_zero(&mut self, range: Range<u64>) -> Result<()> {
        let (len, size) = (self.chunk_len(), self.reader.shape().size());
        let first = range.start.div_ceil(len);
        let end =
            if range.end == size { self.reader.shape().chunk_count() } else { range.end / len };
        if first >= end {
            return self.take(range.start, Bytes::Zeroes(range.end - range.start));
        }
        let (start, rest) = (self.reader.start_of(first), self.reader.start_of(end));
        self.take(range.start, Bytes::Zeroes(start - range.start))?;
        self.send_run()?;
        self.send_gap(first)?;
        self.reader.step(&Step { chunks: first..end, action: Action::Zero })?;
        self.next = end;
        self.take(rest, Bytes::Zeroes(range.end - rest))
    }

    /// Sends what was gathered.
    fn send_run(&mut self) -> Result<()> {
        let Some(mut run) = self.run.take() else { return Ok(()) };
        run.complete(self.reader.start_of(self.next), &self.reader);
        let chunks = run.first..self.next;
        match run.is_spoilt {
            false => self.reader.send_filled(chunks, run.room),
            true => {
                // The read has the means for sectors that fail, and needs the buffer.
                drop(run);
                self.reader.step(&Step { chunks, action: Action::Read })
            }
        }
    }

    /// Sends the chunks up to `end` that the stream passed over.
    fn send_gap(&mut self, end: u64) -> Result<()> {
        let gap = self.reader.start_of(self.next)..self.reader.start_of(end);
        let action = if self.gaps == Change::Zero { Action::Zero } else { Action::Keep };
        let mut steps = match gap.is_empty() {
            true => Vec::new(),
            false => vec![Step { chunks: self.next..end, action }],
        };
        let len = self.chunk_len();
        for range in self.unknown.iter().filter(|it| it.start < gap.end && it.end > gap.start) {
            steps = with_read(steps, &(range.start / len..range.end.div_ceil(len)));
        }
        self.next = end;
        steps.iter().try_for_each(|step| self.reader.step(step))
    }

    /// Ends the volume and returns what was said of it.
    fn finish(mut self) -> Result<ChangeList> {
        self.send_run()?;
        self.send_gap(self.reader.shape().chunk_count())?;
        self.reader.drain()?;
        Ok(self.list)
    }
}
