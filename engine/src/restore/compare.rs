//! Comparing: what the target holds against the volume's map, chunk by chunk.
//!
//! Before a write it finds what need not be written; after it, it proves that everything was.

use std::ops::Range;

use voltar_format::checksum::chunk_id;
use voltar_format::map::Entry;
use voltar_format::walk::{Cursor, Run};
use voltar_format::wire::is_zero;

use super::ahead::{Ahead, Bytes};
use super::job::{Job, Nodes, Target};
use super::lost::Lost;
use super::marks::Marks;
use crate::cancel::Cancel;
use crate::device::{Extent, ExtentKind};
use crate::error::{Error, Result};
use crate::io::buffer::BufferPool;
use crate::limit::Limit;
use crate::options::{Context, IoEngine};
use crate::pipeline::{self, Feeder, Plan};

/// Bytes per read: a whole number of chunks of any permitted length.
const READ_LEN: u64 = 1 << 20;

/// What is compared with what.
pub struct Comparison<'a> {
    /// The volume.
    pub job: &'a Job,
    /// The target.
    pub target: &'a dyn Target,
    /// Chunks that may be zero on the target whatever the map says.
    pub lost: Option<&'a Lost>,
    /// Whether a range of the target that cannot be read counts as different; if not, it is an
    /// error.
    pub bears_errors: bool,
    /// Resources, who watches, how to stop it.
    pub context: &'a Context,
    /// The I/O engine.
    pub engine: IoEngine,
}

/// A read of the target and what is expected there.
struct Probe {
    chunks: Range<u64>,
    expected: Vec<Entry>,
    bytes: Bytes,
}

/// Chunks by their expected state, front to back.
struct Expected<'a> {
    cursor: Cursor,
    nodes: Nodes<'a>,
    run: Option<Run>,
}

impl Comparison<'_> {
    /// Marks every chunk that differs, with up to `reads` reads of 1 MiB in flight.
    ///
    /// # Errors
    /// Of the machinery, `Interrupted`; of reading the map or, unless they are borne, the target.
    pub fn run(&self, marks: &Marks, reads: usize) -> Result<()> {
        let failed = |error| Error::io("cannot set up I/O on", self.target.label(), error);
        let pool = BufferPool::new(reads, READ_LEN as usize).map_err(failed)?;
        pipeline::run(
            Plan { workers: self.context.worker_count(), items: reads },
            |feeder| self.produce(marks, &pool, feeder),
            || Ok(()),
            |(), _, probe: Probe| self.judge(marks, &probe),
            |_, bytes| {
                self.context.observer.advance(bytes);
                Ok(())
            },
        )
    }

    fn produce(&self, marks: &Marks, pool: &BufferPool, feeder: &Feeder<'_, Probe>) -> Result<()> {
        // Damaged nodes are told by the pass that writes; here they are as good as zero.
        let mut expected =
            Expected { cursor: self.job.cursor(), nodes: self.job.nodes(None)?, run: None };
        let limit = Limit::new(self.context.limit_bytes_per_s);
        let mut ahead =
            Ahead::new(self.target, self.engine, pool, feeder, |(chunks, expected), bytes| {
                Probe { chunks, expected, bytes }
            })?;
        let count = self.job.shape.chunk_count();
        let mut extent = Extent { range: 0..0, kind: ExtentKind::Data };
        let mut chunk = 0;
        while chunk < count {
            self.context.cancel.check()?;
            extent = self.extent(extent, chunk)?;
            let next = self.chunks_of(&extent, chunk);
            if extent.kind == ExtentKind::Hole && !next.is_empty() {
                self.judge_hole(marks, &next, &mut expected)?;
                chunk = next.end;
                continue;
            }
            let chunks = chunk..self.read_end(&extent, chunk);
            let range = self.job.bytes_of(&chunks);
            limit.pass(range.end - range.start, &self.context.cancel)?;
            chunk = chunks.end;
            let entries = expected.entries(&chunks)?;
            ahead.read(&range, (chunks, entries))?;
        }
        ahead.settle()
    }

    /// The extent that holds the chunk's first byte: `last`, or the one behind it.
    fn extent(&self, last: Extent, chunk: u64) -> Result<Extent> {
        let at = self.job.bytes_of(&(chunk..chunk + 1)).start;
        if last.range.contains(&at) {
            return Ok(last);
        }
        let failed = |error| Error::io("cannot look for holes in", self.target.label(), error);
        match at < self.target.len().map_err(failed)? {
            true => self.target.extent_at(at).map_err(failed),
            // Reading will tell that the target ends before.
            false => Ok(Extent { range: at..self.job.shape.size(), kind: ExtentKind::Data }),
        }
    }

    /// The chunks from `chunk` on that lie in the extent as a whole.
    fn chunks_of(&self, extent: &Extent, chunk: u64) -> Range<u64> {
        let end = match extent.range.end >= self.job.shape.size() {
            true => self.job.shape.chunk_count(),
            false => extent.range.end / u64::from(self.job.shape.chunk_len()),
        };
        chunk..end.max(chunk)
    }

    /// Up to where the read that starts at `chunk` goes: to a multiple of its length, and not
    /// beyond the chunk in which data ends.
    fn read_end(&self, extent: &Extent, chunk: u64) -> u64 {
        let chunk_len = u64::from(self.job.shape.chunk_len());
        let per_read = READ_LEN / chunk_len;
        let boundary = (chunk / per_read + 1) * per_read;
        let data_end = match extent.kind {
            ExtentKind::Data => extent.range.end.div_ceil(chunk_len).max(chunk + 1),
            ExtentKind::Hole => chunk + 1,
        };
        boundary.min(data_end).min(self.job.shape.chunk_count())
    }

    /// Compares chunks that are known to be zero on the target.
    fn judge_hole(
        &self,
        marks: &Marks,
        chunks: &Range<u64>,
        expected: &mut Expected<'_>,
    ) -> Result<()> {
        let mut rest = chunks.clone();
        while !rest.is_empty() {
            self.context.cancel.check()?;
            let (span, entry) = expected.run(&rest)?;
            let bytes = self.job.bytes_of(&span);
            if entry.id().is_some() && !self.is_lost(span.start) {
                marks.mark(span.clone());
            }
            self.context.observer.advance(bytes.end - bytes.start);
            rest.start = span.end;
        }
        Ok(())
    }

    fn judge(&self, marks: &Marks, probe: &Probe) -> Result<u64> {
        let range = self.job.bytes_of(&probe.chunks);
        let bytes = match &probe.bytes {
            Ok(bytes) => &bytes[..],
            Err(_) if self.bears_errors => &[],
            Err(error) => {
                let error = std::io::Error::new(error.kind(), error.to_string());
                return Err(
                    Error::io("cannot read the target", self.target.label(), error).at(range)
                );
            }
        };
        for (chunk, entry) in probe.chunks.clone().zip(&probe.expected) {
            let place = self.job.bytes_of(&(chunk..chunk + 1));
            let (from, to) =
                ((place.start - range.start) as usize, (place.end - range.start) as usize);
            let is_equal = bytes.get(from..to).is_some_and(|bytes| self.is(bytes, entry, chunk));
            if !is_equal {
                marks.mark(chunk..chunk + 1);
            }
        }
        Ok(range.end - range.start)
    }

    /// Whether these bytes of the target are what the map says, or stand for what is lost.
    fn is(&self, bytes: &[u8], entry: &Entry, chunk: u64) -> bool {
        match entry.id() {
            // A whole chunk may count as lost with its neighbours.
            Some(id) => chunk_id(bytes) == *id || self.is_lost(chunk) && is_zero(bytes),
            None => is_zero(bytes),
        }
    }

    fn is_lost(&self, chunk: u64) -> bool {
        self.lost.is_some_and(|lost| lost.holds(chunk))
    }
}

/// Chunks of data looked up on a target to see what it holds.
const SAMPLE_CHUNKS: u64 = 64;

/// What a target holds in the place of some of the volume's chunks of data.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sample {
    /// Chunks that are there.
    same: u64,
    /// Chunks in whose place there is something else; neither these nor zeroes.
    other: u64,
}

impl Sample {
    /// Looks at chunks of data that a fixed hash spreads over the volume.
    ///
    /// # Errors
    /// `Interrupted`; of reading the map.
    pub fn of(job: &Job, target: &dyn Target, cancel: &Cancel) -> Result<Sample> {
        let (mut cursor, mut nodes) = (job.cursor(), job.nodes(None)?);
        let chunks = job.shape.chunk_count();
        let stride = (chunks / SAMPLE_CHUNKS).max(1);
        let mut bytes = vec![0; job.shape.chunk_len() as usize];
        let mut sample = Sample::default();
        for number in 0..SAMPLE_CHUNKS.min(chunks) {
            cancel.check()?;
            let jitter = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 16;
            cursor.seek(number * stride + jitter % stride);
            let Some((chunk, id)) = next_data(&mut cursor, &mut nodes)? else {
                break;
            };
            let place = job.bytes_of(&(chunk..chunk + 1));
            let bytes = &mut bytes[..(place.end - place.start) as usize];
            // What cannot be read is not the volume's, and what a shorter target lacks is zero.
            let count = target.read_at(bytes, place.start).unwrap_or(0);
            bytes[count..].fill(0);
            let is_same = chunk_id(bytes) == id;
            sample.same += u64::from(is_same);
            sample.other += u64::from(!is_same && !is_zero(bytes));
        }
        Ok(sample)
    }

    /// Whether it may be an older copy of the volume.
    pub fn resembles(&self) -> bool {
        self.same > 0
    }

    /// Whether it may be a blank target on which a restore of the volume stopped. A loss of power
    /// may leave parts of chunks, which look like other data: better refused than written over.
    pub fn is_unfinished(&self) -> bool {
        self.other == 0
    }
}

/// The first chunk of data from the cursor on.
fn next_data(
    cursor: &mut Cursor,
    nodes: &mut Nodes<'_>,
) -> Result<Option<(u64, voltar_format::Id)>> {
    while let Some(run) = cursor.next_run(nodes)? {
        if let Some(id) = run.entry.id() {
            return Ok(Some((run.chunks.start, *id)));
        }
    }
    Ok(None)
}

impl Expected<'_> {
    /// The start of `chunks`, as long as it is of one state, and the state.
    fn run(&mut self, chunks: &Range<u64>) -> Result<(Range<u64>, Entry)> {
        let at_hand = self.run.as_ref().filter(|run| run.chunks.contains(&chunks.start));
        let run = match at_hand {
            Some(run) => run.clone(),
            None => {
                self.cursor.seek(chunks.start);
                let run = self.cursor.next_run(&mut self.nodes)?;
                run.unwrap_or(Run { chunks: chunks.clone(), entry: Entry::Zero })
            }
        };
        let span = chunks.start..run.chunks.end.min(chunks.end);
        let entry = run.entry;
        self.run = Some(run);
        Ok((span, entry))
    }

    fn entries(&mut self, chunks: &Range<u64>) -> Result<Vec<Entry>> {
        let mut entries = Vec::with_capacity((chunks.end - chunks.start) as usize);
        let mut rest = chunks.clone();
        while !rest.is_empty() {
            let (span, entry) = self.run(&rest)?;
            entries.resize(entries.len() + (span.end - span.start) as usize, entry);
            rest.start = span.end;
        }
        Ok(entries)
    }
}
