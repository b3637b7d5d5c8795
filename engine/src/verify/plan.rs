//! The scout: goes ahead of the data pass, from commit to commit and record to record, checks what
//! is small, and says what is to be read.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use voltar_format::checksum::LogHasher;
use voltar_format::commit::{Commit, RunEntry};
use voltar_format::frame::ChunkEntry;
use voltar_format::index::RunHead;
use voltar_format::limits::BLOCK_LEN;
use voltar_format::manifest::Manifest;
use voltar_format::record::{FLAG_SECOND_COPY, RecordHead, RecordKind};
use voltar_format::segment::{FrameEntry, Table};
use voltar_format::{FormatError, Id, LogOffset, Structure};

use super::findings::{Finding, Loss};
use super::read::READ_LEN;
use super::record::{Record, misfit};
use crate::archive::chain::{Link, links};
use crate::archive::open::Archive;
use crate::archive::read_exact;
use crate::archive::spans::{Span, borders, spans};
use crate::error::{ErrorKind, Result};
use crate::options::VerifyRequest;

pub(super) const BLOCK: u64 = BLOCK_LEN as u64;

/// One frame to check.
#[derive(Clone, Debug)]
pub(super) struct PlannedFrame {
    /// Where it starts.
    pub start: u64,
    /// Where its padding ends.
    pub end: u64,
    /// What its segment's table says of it.
    pub entry: Option<FrameEntry>,
    /// Its items in the table.
    pub items: Range<usize>,
}

/// Frames that belong together.
#[derive(Debug, Default)]
pub(super) struct Frames {
    /// The frames, ascending.
    pub frames: Vec<PlannedFrame>,
    /// The items of all frames according to the table.
    pub items: Vec<ChunkEntry>,
}

/// An index run to check.
#[derive(Clone, Debug)]
pub(super) struct PlannedRun {
    /// Its record.
    pub range: Range<u64>,
    /// Its numbers, if they can be had.
    pub head: Option<RunHead>,
    /// What the commit that seals it says of it, if that commit still lists it.
    pub listed: Option<RunEntry>,
    /// The hash over its pages according to its footer.
    pub body_hash: Option<Id>,
}

impl PlannedRun {
    /// Pages between its first and its last block.
    pub fn pages(&self) -> u64 {
        ((self.range.end - self.range.start) / BLOCK).saturating_sub(2)
    }

    /// Where a page lies.
    pub fn page_at(&self, number: u64) -> Range<u64> {
        let start = self.range.start + (number + 1) * BLOCK;
        start..start + BLOCK
    }
}

/// Where a table is; for looking items up later.
#[derive(Clone, Copy, Debug)]
pub(super) struct Spot {
    /// Where the segment starts.
    pub start: u64,
    /// Where its table starts, from there; 0 if the table is known to be damaged.
    pub table_offset: u32,
    /// Bytes of the table.
    pub table_len: u32,
}

/// What the scout says, in log order.
pub(super) enum Job {
    /// Frames to read and check.
    Frames {
        /// All of their segment.
        of: Arc<Frames>,
        /// Which of them.
        which: Range<usize>,
        /// What to read for them.
        read: Range<u64>,
    },
    /// Pages of an index run to read and check.
    Pages {
        /// The first one's number.
        first: u64,
        /// What to read.
        read: Range<u64>,
    },
    /// From here on pages are this run's.
    RunStarts(Box<PlannedRun>),
    /// All pages of the run came.
    RunEnds,
    /// Something is wrong.
    Found(Finding),
    /// A data segment or index run ends.
    RecordEnds {
        /// Its bytes.
        range: Range<u64>,
        /// What it is.
        kind: RecordKind,
        /// Whether it was looked at as a whole (and not passed over for a sample or a resumed
        /// run).
        checked: bool,
        /// Where its table is, if it is a data segment.
        spot: Option<Spot>,
    },
    /// A commit.
    Commit {
        /// Its bytes.
        range: Range<u64>,
        /// Its runs, if one of its copies is whole.
        runs: Option<Vec<RunEntry>>,
        /// Whether it made a snapshot.
        has_snapshot: bool,
    },
}

/// Takes what the scout says.
pub(super) type Send<'s> = &'s mut dyn FnMut(Job) -> Result<()>;

/// What the next record must say of the one before.
struct Expected {
    /// Its sequence number, if that is known.
    sequence: Option<u64>,
    /// The record before, if that is known.
    previous: Option<u64>,
    /// The last commit.
    last_commit: Option<u64>,
}

/// The scout of the data pass.
pub(super) struct Scout<'a> {
    archive: &'a Archive,
    sample_percent: Option<f64>,
    picker: Option<Picker>,
    begin: u64,
    expected: Expected,
    before: Option<Commit>,
}

/// Picks a share of the data segments at random as they come, at least one, each as likely as any
/// other.
struct Picker {
    /// Segments to come.
    left: u64,
    /// How many of them are to be picked.
    wanted: u64,
}

impl Picker {
    fn new(count: u64, percent: f64) -> Picker {
        let wanted = (count as f64 * percent / 100.0).ceil() as u64;
        Picker { left: count, wanted: wanted.clamp(1, count.max(1)) }
    }

    fn pick(&mut self) -> bool {
        use rand::RngExt;
        let is_picked = self.wanted > 0
            && (self.left <= self.wanted || rand::rng().random_range(0..self.left) < self.wanted);
        self.left = self.left.saturating_sub(1);
        self.wanted -= u64::from(is_picked);
        is_picked
    }
}

/// The records that one commit seals, and what they add up to.
struct Interval {
    hash: LogHasher,
    count: u32,
    /// Whether every footer was whole.
    whole: bool,
    /// The runs that the commit lists.
    runs: Vec<RunEntry>,
}

impl Interval {
    fn count(&mut self, record: &Record) {
        match &record.footer {
            // Kinds that a reader passes over are no evidence.
            Some((_, RecordKind::Other)) => {}
            Some((footer, _)) => {
                self.count = self.count.saturating_add(1);
                self.hash.add(&footer.body_hash);
            }
            None => self.whole = false,
        }
    }
}

impl<'a> Scout<'a> {
    /// For a pass whose data before `begin` was checked by an earlier run.
    pub fn new(archive: &'a Archive, request: &VerifyRequest, begin: u64) -> Scout<'a> {
        let expected = Expected { sequence: Some(1), previous: Some(0), last_commit: Some(0) };
        // All of them need no picking.
        let sample_percent = request.sample_percent.filter(|percent| *percent < 100.0);
        Scout { archive, sample_percent, picker: None, begin, expected, before: None }
    }

    /// Goes through the log.
    ///
    /// # Errors
    /// Of whoever takes the jobs; `UnsupportedFormat`. Damage is in the jobs.
    pub fn run(mut self, send: Send<'_>) -> Result<()> {
        self.header(send)?;
        let links = links(self.archive)?;
        self.picker =
            self.sample_percent.map(|percent| Picker::new(self.segments(&links), percent));
        for link in links {
            self.interval(link, send)?;
        }
        Ok(())
    }

    /// Data segments that are to be checked, as far as footers tell.
    fn segments(&self, links: &[Link]) -> u64 {
        let (home, id) = (&*self.archive.home, self.archive.id);
        let records = links.iter().flat_map(|link| {
            let (start, end) = (LogOffset(link.log_start), LogOffset(link.range.start));
            // What cannot be read is met again, and named then.
            spans(home, id, start, end).unwrap_or_default()
        });
        let is_data = |span: &Span| matches!(span.footer, Ok((_, RecordKind::Data)));
        records.filter(|span| span.range.end > self.begin && is_data(span)).count() as u64
    }

    /// Goes through the commits alone.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn run_commits(mut self, send: Send<'_>) -> Result<()> {
        self.header(send)?;
        for link in links(self.archive)? {
            self.expected = Expected { sequence: None, previous: None, last_commit: None };
            self.commit(link, None, send)?;
        }
        Ok(())
    }

    fn header(&self, send: Send<'_>) -> Result<()> {
        if let Err(error) = &self.archive.header {
            send(Job::Found(Finding::of(error, 0..BLOCK, Loss::Nothing)))?;
        }
        match self.archive.lost_commit() {
            Some((at, error)) => {
                send(Job::Found(Finding::of(&error, at.0..at.0 + BLOCK, Loss::Nothing)))
            }
            None => Ok(()),
        }
    }

    fn interval(&mut self, link: Link, send: Send<'_>) -> Result<()> {
        let (start, end) = (LogOffset(link.log_start), LogOffset(link.range.start));
        let runs = link.read(self.archive).map(|commit| commit.runs).unwrap_or_default();
        let mut interval = Interval { hash: LogHasher::new(), count: 0, whole: true, runs };
        for range in borders(&*self.archive.home, self.archive.id, start, end) {
            self.record(range, &mut interval, send)?;
        }
        self.commit(link, Some(&interval), send)
    }

    fn record(&mut self, range: Range<u64>, interval: &mut Interval, send: Send<'_>) -> Result<()> {
        let record = Record::look(self.archive, range.clone(), send)?;
        self.check_place(&record, send)?;
        interval.count(&record);
        let is_new = range.end > self.begin;
        let checked = is_new && (record.kind() != RecordKind::Data || self.is_picked());
        let spot = match record.kind() {
            // What a later version stored here, and this one may pass over.
            RecordKind::Other => None,
            RecordKind::Commit => {
                let error = misfit(Structure::Commit, "F-043", "no later commit names it");
                send(Job::Found(Finding::of(&error, range.clone(), Loss::Nothing)))?;
                None
            }
            RecordKind::Index => {
                if checked {
                    let listed = interval.runs.iter().find(|run| run.offset.0 == range.start);
                    record.index_run(listed.cloned(), send)?;
                }
                None
            }
            RecordKind::Data => Some(record.segment(self.archive, checked, send)?),
        };
        let kind = record.kind();
        send(Job::RecordEnds { range, kind, checked, spot })
    }

    fn is_picked(&mut self) -> bool {
        self.picker.as_mut().is_none_or(Picker::pick)
    }

    /// Checks what a record's head says of its neighbours, and goes on from it.
    fn check_place(&mut self, record: &Record, send: Send<'_>) -> Result<()> {
        let expected = &self.expected;
        let sequence = record.sequence().or(expected.sequence);
        if let Some(head) = &record.head {
            let head_at = record.range.start..record.range.start + RecordHead::LEN as u64;
            for problem in misplaced(head, expected) {
                let error = FormatError::new(Structure::Record, "R-12", problem);
                send(Job::Found(Finding::of(&error, head_at.clone(), Loss::Nothing)))?;
            }
        }
        self.expected.sequence = match record.is_damaged() {
            // Two damaged records may look like one: what follows says where the count goes on.
            true => None,
            false => sequence.map(|number| number.saturating_add(1)),
        };
        self.expected.previous = (!record.is_damaged()).then_some(record.range.start);
        Ok(())
    }

    fn commit(&mut self, link: Link, interval: Option<&Interval>, send: Send<'_>) -> Result<()> {
        let range = link.range.clone();
        let read = link.read(self.archive);
        let commit = match (link.lost, read) {
            (None, Ok(commit)) => commit,
            (Some(error), _) if error.kind() == ErrorKind::UnsupportedFormat => return Err(*error),
            (None, Err(error)) if error.kind() == ErrorKind::UnsupportedFormat => {
                return Err(error);
            }
            (Some(error), _) => return self.lost_commit(range, &error, send),
            (None, Err(error)) => return self.lost_commit(range, &error, send),
        };
        for (copy, at) in [("first", commit.offset.0), ("second", commit.offset.0 + commit.len)] {
            let copy_range = at..at + commit.len;
            if let Err(error) = self.check_copy(&commit, copy, at) {
                send(Job::Found(Finding { range: copy_range, ..error }))?;
            }
        }
        let problems = self.chain_problems(&commit, link.log_start, interval);
        for (requirement, problem) in problems {
            let error = FormatError::new(Structure::Commit, requirement, problem).at(commit.offset);
            send(Job::Found(Finding::of(&error, range.clone(), Loss::Nothing)))?;
        }
        let has_snapshot = !commit.manifest.is_empty();
        if has_snapshot && let Err(error) = Manifest::decode(&commit.manifest) {
            let error = error.at(commit.offset);
            send(Job::Found(Finding::of(&error, range.clone(), Loss::Nothing)))?;
        }
        // Without the records between, nothing is known of what the runs should be.
        let runs = interval.map(|_| commit.runs.clone());
        self.expected = Expected {
            sequence: Some(commit.sequence.saturating_add(1)),
            previous: Some(commit.offset.0),
            last_commit: Some(commit.offset.0),
        };
        self.before = Some(commit);
        send(Job::Commit { range, runs, has_snapshot })
    }

    fn lost_commit(
        &mut self,
        range: Range<u64>,
        error: &crate::error::Error,
        send: Send<'_>,
    ) -> Result<()> {
        let words = crate::inspect::chain_words(error);
        let error = format!("{words}; both copies: the snapshot it made is lost");
        send(Job::Found(Finding::new("commit", range.clone(), error, Loss::Nothing)))?;
        self.expected = Expected {
            sequence: None,
            previous: Some(range.start),
            last_commit: Some(range.start),
        };
        self.before = None;
        send(Job::Commit { range, runs: None, has_snapshot: false })
    }

    /// Checks one copy of a commit against the one that was decoded first.
    fn check_copy(&self, commit: &Commit, which: &str, at: u64) -> Result<(), Finding> {
        let fail = |error: FormatError| Finding::of(&error, at..at, Loss::Nothing);
        let home = &*self.archive.home;
        let bytes = read_exact(home, LogOffset(at), commit.len as usize)
            .map_err(|error| Finding::unread("commit", at..at, &error, Loss::Nothing))?;
        let copy = Commit::decode_at(&bytes, LogOffset(at), Some(self.archive.id)).map_err(fail)?;
        let (head, _) =
            RecordHead::decode_at(&bytes, LogOffset(at), Some(self.archive.id)).map_err(fail)?;
        let flags = if which == "second" { FLAG_SECOND_COPY } else { 0 };
        let differ = |problem: &str| {
            let problem = format!("its {which} copy {problem}");
            fail(FormatError::new(Structure::Commit, "F-045", problem).at(LogOffset(at)))
        };
        if copy != *commit {
            return Err(differ("is not the other's equal"));
        }
        if head.flags != flags {
            return Err(differ("is not marked as such"));
        }
        match misplaced(&head, &self.expected).next() {
            Some(problem) => Err(differ(&format!("is out of place: {problem}"))),
            None => Ok(()),
        }
    }

    /// What a commit says that is not so of the commit before and of the records between.
    fn chain_problems(
        &self,
        commit: &Commit,
        log_start: u64,
        interval: Option<&Interval>,
    ) -> Vec<(&'static str, String)> {
        let head = &commit.head;
        let mut problems = Vec::new();
        let mut demand = |holds: bool, requirement, problem: &str| {
            if !holds {
                problems.push((requirement, problem.to_owned()));
            }
        };
        match &self.before {
            Some(before) => {
                let is_next = head.previous == before.offset
                    && head.previous_len == before.len
                    && head.previous_hash == before.head.content_hash;
                demand(is_next, "F-043", "it does not follow the commit before");
                let number = before.head.number.saturating_add(1);
                demand(head.number == number, "F-043", "its number does not follow");
            }
            None if log_start == BLOCK => {
                let is_first = head.previous == LogOffset(0)
                    && head.previous_len == 0
                    && head.previous_hash == Id::default()
                    && head.number == 1;
                demand(is_first, "F-043", "it is the first there is, and names one before");
            }
            None => {}
        }
        demand(head.log_start.0 == log_start, "F-043", "its records begin elsewhere");
        if let Some(interval) = interval.filter(|interval| interval.whole) {
            demand(head.segment_count == interval.count, "R-12", "its number of records is wrong");
            let hash = interval.hash.finish();
            demand(head.log_hash == hash, "R-12", "its hash over its records does not match");
        }
        problems
    }
}

/// What a head says of its neighbours that is not so.
fn misplaced(head: &RecordHead, expected: &Expected) -> impl Iterator<Item = String> + use<> {
    let wrong = |name: &str, says: u64, is: Option<u64>| {
        let is = is.filter(|is| *is != says)?;
        Some(format!("{name} is {says:#x}, expected {is:#x}"))
    };
    [
        wrong("its number", head.sequence, expected.sequence),
        wrong("the record before", head.previous.0, expected.previous),
        wrong("the last commit", head.last_commit.0, expected.last_commit),
    ]
    .into_iter()
    .flatten()
}

impl Frames {
    /// The frames of the segment at `start` that `table` speaks of.
    pub(super) fn of(start: u64, table: Table) -> Frames {
        let table_at = start + table.offset_in_segment();
        let mut ends: VecDeque<u64> =
            table.frames.iter().skip(1).map(|frame| start + u64::from(frame.offset)).collect();
        ends.push_back(table_at);
        let mut item = 0;
        let frames = table.frames.iter().zip(ends).map(|(entry, end)| {
            let items = item..item + usize::from(entry.chunk_count);
            item = items.end;
            let start = start + u64::from(entry.offset);
            PlannedFrame { start, end, entry: Some(entry.clone()), items }
        });
        Frames { frames: frames.collect(), items: table.chunks }
    }
}

/// Has frames read, as many at once as one read holds.
pub(super) fn send_frames(frames: Frames, send: Send<'_>) -> Result<()> {
    let of = Arc::new(frames);
    let mut from = 0;
    while let Some(first) = of.frames.get(from) {
        let begin = first.start / BLOCK * BLOCK;
        let fits = |frame: &PlannedFrame| frame.end.next_multiple_of(BLOCK) - begin <= READ_LEN;
        let more = of.frames.iter().skip(from + 1).take_while(|frame| fits(frame)).count();
        let which = from..from + 1 + more;
        from = which.end;
        let end = of.frames.get(from - 1).map_or(first.end, |last| last.end);
        let read = begin..end.next_multiple_of(BLOCK);
        send(Job::Frames { of: Arc::clone(&of), which, read })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_are_picked_as_were_wanted_and_never_none() {
        for (count, percent, wanted) in
            [(1, 0.1, 1), (7, 1.0, 1), (10, 30.0, 3), (10, 31.0, 4), (1000, 99.9, 999)]
        {
            let mut picker = Picker::new(count, percent);
            let picked = (0..count).filter(|_| picker.pick()).count();
            assert_eq!(picked, wanted, "{percent} % of {count}");
        }
        // One more than was counted: its footer is damaged.
        let mut picker = Picker::new(0, 10.0);
        assert!(picker.pick() && !picker.pick());
    }
}
