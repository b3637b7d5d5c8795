//! From the map to the log: which frames hold what the target lacks, a window at a time.
//!
//! A window's chunks are looked up in the index and grouped by frame, and its frames are put in
//! the order of the log, so that each is read once and in the order the storage likes.

use std::collections::HashMap;
use std::ops::Range;

use voltar_format::map::Entry;
use voltar_format::walk::{Cursor, Run};
use voltar_format::{Id, LogOffset};

use super::job::{Job, Nodes, Tally};
use super::marks::Marks;
use super::neighbours::Neighbours;
use crate::archive::index::{Place, missing};
use crate::archive::store::place_of;
use crate::error::{Error, Result};
use crate::options::Context;

/// Bytes of data in a window. Frames that lie in two windows are read twice, so it is many times
/// a frame.
const WINDOW_BYTES: u64 = 256 << 20;
/// Most chunks in a window: 48 bytes each, a few windows at a time.
const WINDOW_CHUNKS: usize = 32 << 10;

/// Most breaks in the run of chunks that one reading of a frame serves. Pieces between breaks are
/// written one after another from one buffer; a chunk that a volume repeats a thousand times is
/// rather read a few times more.
const BREAKS_MAX: usize = 32;

/// A chunk of the volume that a frame holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Item {
    /// Its number in the volume.
    pub chunk: u64,
    /// Its place in the frame.
    pub slot: u16,
    /// Its id.
    pub id: Id,
}

/// A frame and what is wanted of it.
#[derive(Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Where it starts.
    pub frame: LogOffset,
    /// How long the index says it is.
    pub frame_len: u32,
    /// The chunks, ascending.
    pub items: Vec<Item>,
}

/// A stretch of the volume, ready to be read.
#[derive(Debug, Default)]
pub struct Window {
    /// Bytes of the volume to be zeroed, ascending; of any length.
    pub zeroes: Vec<Range<u64>>,
    /// Frames in the order of the log.
    pub frames: Vec<Wanted>,
}

/// Goes through the map and finds what is to be done.
pub struct Lookup<'a> {
    job: &'a Job,
    /// What is to be written; `None` is everything.
    marks: Option<&'a Marks>,
    /// Whether the target reads as zeroes already because it was just created.
    blank: bool,
    tally: &'a Tally,
    context: &'a Context,
    cursor: Cursor,
    nodes: Nodes<'a>,
    neighbours: Neighbours,
}

/// A window being filled.
#[derive(Default)]
struct Filling {
    zeroes: Vec<Range<u64>>,
    frames: HashMap<(LogOffset, u32), Vec<Item>>,
    chunks: usize,
    bytes: u64,
}

impl<'a> Lookup<'a> {
    /// From the start of the volume.
    ///
    /// # Errors
    /// Out of memory.
    pub fn new(
        job: &'a Job,
        marks: Option<&'a Marks>,
        blank: bool,
        tally: &'a Tally,
        context: &'a Context,
    ) -> Result<Lookup<'a>> {
        let (cursor, nodes) = (job.cursor(), job.nodes(Some(&tally.lost))?);
        Ok(Lookup {
            job,
            marks,
            blank,
            tally,
            context,
            cursor,
            nodes,
            neighbours: Neighbours::new(job.shape.chunk_len()),
        })
    }

    /// The next window; `None` at the volume's end.
    ///
    /// # Errors
    /// `Interrupted`; damage, unless it is borne.
    pub fn next_window(&mut self) -> Result<Option<Window>> {
        let mut filling = Filling::default();
        let mut ended = false;
        while !filling.is_full() && !ended {
            self.context.cancel.check()?;
            match self.cursor.next_run(&mut self.nodes)? {
                Some(run) => self.take(&run, &mut filling)?,
                None => ended = true,
            }
        }
        let is_empty = filling.zeroes.is_empty() && filling.frames.is_empty();
        Ok((!ended || !is_empty).then(|| filling.finish()))
    }

    /// Sorts the run into what is kept and what is to be done.
    fn take(&mut self, run: &Run, filling: &mut Filling) -> Result<()> {
        let mut rest = run.chunks.clone();
        while !rest.is_empty() {
            let (span, wanted) = match self.marks {
                Some(marks) => marks.span(rest.clone()),
                None => (rest.clone(), true),
            };
            rest.start = span.end;
            match (wanted, run.entry) {
                (false, _) => self.keep(&span),
                (true, Entry::Zero | Entry::Unreadable) => self.zero(&span, filling),
                (true, Entry::Data(id) | Entry::Partial(id)) => {
                    self.find(span.start, id, filling)?;
                }
            }
        }
        Ok(())
    }

    fn keep(&self, chunks: &Range<u64>) {
        let bytes = self.job.bytes_of(chunks);
        let len = bytes.end - bytes.start;
        self.tally.kept.fetch_add(len, std::sync::atomic::Ordering::Relaxed);
        self.context.observer.advance(len);
    }

    fn zero(&self, chunks: &Range<u64>, filling: &mut Filling) {
        let bytes = self.job.bytes_of(chunks);
        match self.blank {
            true => {
                self.tally.zeroed(bytes.end - bytes.start, None);
                self.context.observer.advance(bytes.end - bytes.start);
            }
            false => filling.zero(bytes),
        }
    }

    fn find(&mut self, chunk: u64, id: Id, filling: &mut Filling) -> Result<()> {
        let chunks = chunk..chunk + 1;
        let bytes = self.job.bytes_of(&chunks);
        match self.place(&id) {
            Ok(place) => {
                filling.want(&place, Item { chunk, slot: place.slot, id }, bytes.end - bytes.start);
                Ok(())
            }
            Err(error) if self.job.bears(&error) => {
                self.tally.lost.add(chunks.clone());
                self.zero(&chunks, filling);
                Ok(())
            }
            Err(error) if error.is_damage() => Err(self.job.lost(&bytes, error)),
            Err(error) => Err(error),
        }
    }

    fn place(&mut self, id: &Id) -> Result<Place, Error> {
        if let Some(place) = self.neighbours.find(id) {
            return Ok(place);
        }
        let entry = self.job.index.find(id)?;
        let entry = entry.ok_or_else(|| missing(self.job.archive.label(), id))?;
        let place = place_of(&entry);
        self.neighbours.learn(&*self.job.archive.home, &place);
        Ok(place)
    }
}

impl Filling {
    fn is_full(&self) -> bool {
        self.bytes >= WINDOW_BYTES || self.chunks + self.zeroes.len() >= WINDOW_CHUNKS
    }

    fn zero(&mut self, bytes: Range<u64>) {
        match self.zeroes.last_mut() {
            Some(last) if last.end == bytes.start => last.end = bytes.end,
            _ => self.zeroes.push(bytes),
        }
    }

    fn want(&mut self, place: &Place, item: Item, bytes: u64) {
        self.frames.entry((place.frame, place.frame_len)).or_default().push(item);
        self.chunks += 1;
        self.bytes += bytes;
    }

    fn finish(self) -> Window {
        let mut frames: Vec<_> = self.frames.into_iter().collect();
        frames.sort_unstable_by_key(|(place, _)| *place);
        let frames = frames
            .into_iter()
            .flat_map(|((frame, frame_len), items)| {
                let wanted = move |items| Wanted { frame, frame_len, items };
                split_at_breaks(items).into_iter().map(wanted)
            })
            .collect();
        Window { zeroes: self.zeroes, frames }
    }
}

/// Cuts `items` so that no part has more than [`BREAKS_MAX`] breaks.
fn split_at_breaks(items: Vec<Item>) -> Vec<Vec<Item>> {
    let mut parts = vec![Vec::new()];
    let mut breaks = 0;
    let mut last: Option<Item> = None;
    for item in items {
        let follows = last.is_some_and(|last| {
            item.chunk == last.chunk + 1 && u32::from(item.slot) == u32::from(last.slot) + 1
        });
        breaks += usize::from(!follows);
        if breaks > BREAKS_MAX {
            breaks = 1;
            parts.push(Vec::new());
        }
        if let Some(part) = parts.last_mut() {
            part.push(item);
        }
        last = Some(item);
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(chunk: u64, slot: u16) -> Item {
        Item { chunk, slot, id: Id::default() }
    }

    #[test]
    fn a_repeated_chunk_is_cut_and_a_run_is_not() {
        let repeated: Vec<Item> = (0..100).map(|chunk| item(chunk, 3)).collect();
        let parts = split_at_breaks(repeated.clone());
        assert_eq!(parts.iter().map(Vec::len).collect::<Vec<_>>(), [32, 32, 32, 4]);
        assert_eq!(parts.concat(), repeated);
        let run: Vec<Item> = (0..100).map(|n| item(50 + n, n as u16)).collect();
        assert_eq!(split_at_breaks(run.clone()), [run]);
    }
}
