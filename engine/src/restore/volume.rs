//! One volume onto one target that is open and may be written: compare, write, prove.

use std::ops::Range;
use std::sync::atomic::Ordering;

use super::compare::{Comparison, Sample};
use super::job::{Job, Tally, Target};
use super::lookup::Lookup;
use super::lost::{LISTED_MAX, Lost};
use super::marks::Marks;
use super::read::{frame_buffer_len, produce};
use super::work::{PIECE_BUFFER_LEN, Shop};
use super::write::Writer;
use crate::codec::Decoder;
use crate::error::{Error, ErrorKind, Result};
use crate::io::buffer::BufferPool;
use crate::limit::Limit;
use crate::observe::Phase;
use crate::options::{Context, Delta, IoEngine};
use crate::pipeline::{self, Plan};
use crate::report::{ByteRange, VolumeRestore};

/// Ranges named in an error; more are counted.
const NAMED_MAX: usize = 8;

/// How a volume is to be written.
#[derive(Clone, Copy, Debug, Default)]
pub struct How {
    /// The target was created a moment ago and reads as zeroes.
    pub blank: bool,
    /// What is on it may be this very restore's unfinished work.
    pub resumes: bool,
    /// Whether to compare first.
    pub delta: Delta,
}

/// Buffers and depths that fit the memory bound.
struct Sizes {
    /// Frames read at once, and items in the pipeline.
    reads: usize,
    /// Buffers being written at once.
    writes: usize,
    /// Reads of the target at once, when comparing.
    compares: usize,
    /// Bytes of marks.
    marks: u64,
}

impl Sizes {
    fn new(context: &Context) -> Sizes {
        let roomy = context.memory_bytes >= 128 << 20;
        let (reads, writes, compares) = if roomy { (16, 16, 32) } else { (8, 8, 16) };
        Sizes { reads, writes, compares, marks: context.memory_bytes / 8 }
    }
}

/// One volume's restore, and what it has done so far.
pub struct Restore<'a> {
    job: &'a Job,
    target: &'a dyn Target,
    how: How,
    tally: Tally,
    context: &'a Context,
    engine: IoEngine,
    sizes: Sizes,
}

impl<'a> Restore<'a> {
    /// Of `job` onto `target`, which is at least as long as the volume, by an engine that was
    /// chosen (not `Auto`).
    pub fn new(
        job: &'a Job,
        target: &'a dyn Target,
        how: How,
        context: &'a Context,
        engine: IoEngine,
    ) -> Restore<'a> {
        let sizes = Sizes::new(context);
        let tally = Tally::new(Lost::new(job.shape.chunk_count(), sizes.marks));
        Restore { job, target, how, tally, context, engine, sizes }
    }

    /// Bytes of the volume.
    pub fn size(&self) -> u64 {
        self.job.shape.size()
    }

    /// What has been done.
    pub fn tally(&self) -> &Tally {
        &self.tally
    }

    /// Makes every byte of the volume's range on the target what the snapshot says, and durable.
    ///
    /// # Errors
    /// Anything that can go wrong; `self` knows whether bytes were changed before.
    pub fn write(&self) -> Result<()> {
        let marks = self.compare()?;
        self.context.observer.phase(Phase::Write, Some(self.job.shape.size()));
        self.fill(marks.as_ref())?;
        self.target.sync().map_err(|error| {
            Error::io("cannot make the target durable", self.target.label(), error)
        })
    }

    /// Counts what [`write`](Self::write) would do on a target it knows nothing of, and finds
    /// every chunk in the index.
    ///
    /// # Errors
    /// Damage, unless it is borne; `Interrupted`.
    pub fn rehearse(&self) -> Result<()> {
        self.find_all(&self.tally)
    }

    /// Reads the map and finds every chunk in the index, before something is done to the target
    /// that cannot be undone.
    ///
    /// # Errors
    /// As [`rehearse`](Self::rehearse).
    pub fn look_ahead(&self) -> Result<()> {
        self.find_all(&Tally::new(Lost::new(self.job.shape.chunk_count(), self.sizes.marks)))
    }

    fn find_all(&self, tally: &Tally) -> Result<()> {
        self.context.observer.phase(Phase::Walk, Some(self.job.shape.size()));
        let mut lookup = Lookup::new(self.job, None, true, tally, self.context)?;
        while let Some(window) = lookup.next_window()? {
            for item in window.frames.iter().flat_map(|wanted| &wanted.items) {
                let bytes = self.job.bytes_of(&(item.chunk..item.chunk + 1));
                tally.written.fetch_add(bytes.end - bytes.start, Ordering::Relaxed);
                self.context.observer.advance(bytes.end - bytes.start);
            }
        }
        Ok(())
    }

    /// Reads the target again and compares every chunk.
    ///
    /// # Errors
    /// `Mismatch` naming the ranges that differ.
    pub fn prove(&self) -> Result<()> {
        self.context.observer.phase(Phase::ReadBack, Some(self.job.shape.size()));
        let marks = self.marks();
        self.comparison(Some(&self.tally.lost), false).run(&marks, self.sizes.compares)?;
        let mut different = marks.marked().map(|chunks| self.job.bytes_of(&chunks));
        match different.next() {
            None => Ok(()),
            Some(first) => Err(self.mismatch(first, different)),
        }
    }

    /// The report's entry for this volume, complete or not.
    pub fn report(&self, complete: bool) -> VolumeRestore {
        let volume = &self.job.volume;
        let (damaged, damaged_unlisted, damaged_bytes) = self.damaged();
        let count = |number: &std::sync::atomic::AtomicU64| number.load(Ordering::Relaxed);
        VolumeRestore {
            name: volume.name.clone(),
            target: self.target.label().to_owned(),
            size: volume.size,
            complete,
            written_bytes: count(&self.tally.written),
            zeroed_bytes: count(&self.tally.zeroed),
            kept_bytes: count(&self.tally.kept),
            root: volume.root.to_hex(),
            zero_method: self.tally.zero_method(),
            unreadable: volume
                .unreadable
                .iter()
                .map(|(offset, length)| ByteRange { offset: *offset, length: *length })
                .collect(),
            damaged,
            damaged_unlisted,
            damaged_bytes,
        }
    }

    /// What the archive could not give: the first ranges, how many more there are, and the bytes
    /// of all.
    fn damaged(&self) -> (Vec<ByteRange>, u64, u64) {
        let (mut listed, mut unlisted, mut bytes) = (Vec::new(), 0, 0);
        for chunks in self.tally.lost.ranges() {
            let range = self.job.bytes_of(&chunks);
            let length = range.end - range.start;
            bytes += length;
            match listed.len() < LISTED_MAX {
                true => listed.push(ByteRange { offset: range.start, length }),
                false => unlisted += 1,
            }
        }
        (listed, unlisted, bytes)
    }

    /// Marks what differs, if a comparison is wanted and may pay.
    fn compare(&self) -> Result<Option<Marks>> {
        let comparison = self.comparison(None, true);
        let is_wanted = match self.how.delta {
            _ if self.how.blank => false,
            _ if self.how.resumes => true,
            Delta::On => true,
            Delta::Off => false,
            Delta::Auto => Sample::of(self.job, self.target, &self.context.cancel)?.resembles(),
        };
        if !is_wanted {
            return Ok(None);
        }
        self.context.observer.phase(Phase::Compare, Some(self.job.shape.size()));
        self.settle()?;
        let marks = self.marks();
        comparison.run(&marks, self.sizes.compares)?;
        Ok(Some(marks))
    }

    /// Makes sure that what is compared is what the medium holds. If an earlier run's sync failed,
    /// the page cache may show bytes that were never written and that no later sync will write.
    fn settle(&self) -> Result<()> {
        let settled = self.target.sync().and_then(|()| self.target.forget(0..self.size()));
        settled.map_err(|error| {
            Error::io("cannot make durable what is on the target", self.target.label(), error)
        })
    }

    fn marks(&self) -> Marks {
        Marks::new(self.job.shape.chunk_count(), self.sizes.marks)
    }

    fn comparison<'c>(&'c self, lost: Option<&'c Lost>, bears_errors: bool) -> Comparison<'c> {
        Comparison {
            job: self.job,
            target: self.target,
            lost,
            bears_errors,
            context: self.context,
            engine: self.engine,
        }
    }

    /// Writes and zeroes what is marked, or all.
    fn fill(&self, marks: Option<&Marks>) -> Result<()> {
        let home = &*self.job.archive.home;
        let failed = |error| Error::io("cannot set up I/O on", self.target.label(), error);
        let frames = BufferPool::new(self.sizes.reads, frame_buffer_len(home)).map_err(failed)?;
        // One for every item between reading and writing, one for every buffer on its way, so
        // that a worker never waits for what only the next result of a worker would free.
        let count = self.sizes.reads + self.sizes.writes + 1;
        let pieces = BufferPool::new(count, PIECE_BUFFER_LEN).map_err(failed)?;
        let (context, tally, blank) = (self.context, &self.tally, self.how.blank);
        let lookup = Lookup::new(self.job, marks, blank, tally, context)?;
        let limit = &Limit::new(context.limit_bytes_per_s);
        let shop = Shop {
            job: self.job,
            target: self.target,
            blank,
            pool: &pieces,
            tally,
            limit,
            context,
        };
        let depth = self.sizes.writes;
        let mut writer =
            Writer::new(self.target, &pieces, depth, self.engine, tally, limit, context)?;
        pipeline::run(
            Plan { workers: context.worker_count(), items: self.sizes.reads },
            |feeder| produce(self.job, lookup, &frames, context, self.engine, feeder),
            Decoder::new,
            |decoder, _, task| shop.work(decoder, task),
            |_, done| match done {
                Some((buffer, pieces)) => writer.write(buffer, pieces),
                None => context.cancel.check(),
            },
        )?;
        writer.finish()
    }

    fn mismatch(&self, first: Range<u64>, rest: impl Iterator<Item = Range<u64>>) -> Error {
        let mut all = std::iter::once(first.clone()).chain(rest);
        let named: Vec<String> = all
            .by_ref()
            .take(NAMED_MAX)
            .map(|range| format!("{:#x}..{:#x}", range.start, range.end))
            .collect();
        let more = match all.count() {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        let message = format!(
            "the target does not hold what was written to it, in {}{more}",
            named.join(", ")
        );
        Error::new(ErrorKind::Mismatch, message)
            .on(self.target.label())
            .at(first)
            .meaning("these ranges of the target are not what the snapshot holds")
            .hint(
                "the device or its cabling loses data: look at the kernel's log, try another \
                 target",
            )
    }

    /// `error` with what it means for the target.
    pub fn explain(&self, error: Error) -> Error {
        let changed = if self.tally.is_touched() { Changed::This } else { Changed::Nothing };
        explain(error, changed)
    }
}

/// What a restore that failed had changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Changed {
    /// No target.
    Nothing,
    /// Targets before the one that it failed with; these are complete.
    Earlier,
    /// The target that it failed with, too.
    This,
}

/// `error` of a restore with what it means for the targets. What it means is not said twice: the
/// innermost knows best.
pub fn explain(error: Error, changed: Changed) -> Error {
    let error = match error.kind() {
        ErrorKind::Mismatch
        | ErrorKind::Interrupted
        | ErrorKind::Damaged
        | ErrorKind::UnsupportedFormat
        | ErrorKind::Internal => error,
        _ if changed == Changed::Nothing => error,
        // Of the request as a whole: the same command again goes on behind what is complete.
        _ => error.as_kind(ErrorKind::TargetPartial),
    };
    match error.data_meaning() {
        Some(_) => error,
        None => error.meaning(match changed {
            Changed::Nothing => "not a byte of the target was written",
            Changed::Earlier => "this target was not written; those before it are complete",
            Changed::This => "the target is partly written: do not use it yet",
        }),
    }
}
