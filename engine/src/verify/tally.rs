//! The end of the data pass: everything in log order, counted, and where order matters checked.

use std::collections::BTreeMap;
use std::ops::Range;

use voltar_format::commit::RunEntry;
use voltar_format::limits::BLOCK_LEN;
use voltar_format::record::RecordKind;
use voltar_format::{FormatError, LogOffset, Structure};

use super::findings::{Finding, Findings, Loss};
use super::note::{NoteFile, Progress};
use super::plan::{Job, Spot};
use super::run::{Facts, RunCheck};
use super::work::{Checked, Pages};
use crate::error::Result;
use crate::options::Context;

/// Data segments between two notes: about 2 GiB.
const SEGMENTS_PER_NOTE: u32 = 64;

/// What the data pass found.
pub(super) struct Tally<'a> {
    /// What is damaged.
    pub findings: Findings,
    /// Snapshots whose commits are whole.
    pub snapshots: u64,
    /// Segments and index runs looked at.
    pub segments: u64,
    /// Frames looked at.
    pub frames: u64,
    /// Bytes looked at.
    pub bytes: u64,
    /// Data segments that this run came past, and how many of them it looked at.
    pub data_segments: (u64, u64),
    /// Where tables are, ascending.
    pub spots: Vec<Spot>,
    begin: u64,
    /// Bytes of the record under way that were counted with its frames.
    counted: u64,
    run: Option<RunCheck>,
    /// The runs of this interval, by where they start.
    runs: BTreeMap<u64, Option<Facts>>,
    /// The runs that the commit before lists; `None` if it is lost.
    listed_before: Option<Vec<RunEntry>>,
    note: Option<NoteFile>,
    since_note: u32,
    context: &'a Context,
}

impl<'a> Tally<'a> {
    /// Begins, or goes on from what a note says.
    pub fn new(mut note: Option<NoteFile>, context: &'a Context) -> Tally<'a> {
        let earlier = note.as_mut().and_then(NoteFile::take_earlier);
        let (progress, damaged) = earlier.unwrap_or_default();
        let mut findings = Findings::default();
        findings.restore(damaged, progress.offset);
        let is_new = progress.offset == 0;
        Tally {
            findings,
            snapshots: 0,
            segments: progress.segments,
            frames: progress.frames,
            bytes: if is_new { BLOCK_LEN as u64 } else { progress.bytes },
            data_segments: (0, 0),
            spots: Vec::new(),
            begin: progress.offset,
            counted: 0,
            run: None,
            runs: BTreeMap::new(),
            listed_before: Some(Vec::new()),
            note,
            since_note: 0,
            context,
        }
    }

    /// Where the data pass begins: what is before was checked by an earlier run.
    pub fn begin(&self) -> u64 {
        self.begin
    }

    /// Takes the next thing in log order.
    ///
    /// # Errors
    /// Of writing the note; `Interrupted`.
    pub fn take(&mut self, checked: Checked) -> Result<()> {
        self.context.cancel.check()?;
        match checked {
            Checked::Frames { count, bytes, found } => {
                self.frames += count;
                self.count(bytes);
                found.into_iter().for_each(|finding| self.findings.add(finding));
            }
            Checked::Pages(pages) => self.pages(&pages),
            Checked::Other(job) => self.other(job)?,
        }
        Ok(())
    }

    fn count(&mut self, bytes: u64) {
        self.counted += bytes;
        self.bytes += bytes;
        self.context.observer.advance(bytes);
    }

    fn pages(&mut self, pages: &Pages) {
        self.count(pages.range.end - pages.range.start);
        let Some(run) = &mut self.run else { return };
        let mut found = Vec::new();
        let mut bad = pages.bad.iter().peekable();
        for (number, bytes) in (pages.first..).zip(pages.bytes.chunks_exact(BLOCK_LEN)) {
            let checked = match bad.next_if(|(page, _)| *page == number) {
                Some((_, error)) => Err(error.clone()),
                None => Ok(()),
            };
            run.page(number, bytes, checked, &mut found);
        }
        found.into_iter().for_each(|finding| self.findings.add(finding));
    }

    fn other(&mut self, job: Job) -> Result<()> {
        match job {
            Job::Frames { .. } | Job::Pages { .. } => {}
            Job::Found(finding) => self.findings.add(finding),
            Job::RunStarts(run) => self.run = Some(RunCheck::new(*run)),
            Job::RunEnds => self.end_run(),
            Job::RecordEnds { range, kind, checked, spot } => {
                self.spots.extend(spot);
                if kind == RecordKind::Data && range.end > self.begin {
                    self.data_segments.0 += 1;
                    self.data_segments.1 += u64::from(checked);
                }
                if kind == RecordKind::Index {
                    self.runs.entry(range.start).or_insert(None);
                }
                self.end_record(&range, checked)?;
            }
            Job::Commit { range, runs, has_snapshot } => self.commit(&range, runs, has_snapshot)?,
        }
        Ok(())
    }

    fn end_run(&mut self) {
        let Some(run) = self.run.take() else { return };
        let mut found = Vec::new();
        let facts = run.finish(&mut found);
        found.into_iter().for_each(|finding| self.findings.add(finding));
        self.runs.insert(facts.entry.offset.0, Some(facts));
    }

    fn end_record(&mut self, range: &Range<u64>, checked: bool) -> Result<()> {
        let rest = (range.end - range.start).saturating_sub(self.counted);
        self.counted = 0;
        if range.end > self.begin {
            // Passed over for a sample: no bytes looked at, but so far are we.
            self.context.observer.advance(rest);
        }
        if checked {
            self.segments += 1;
            self.bytes += rest;
        }
        self.since_note += 1;
        match self.since_note >= SEGMENTS_PER_NOTE {
            true => self.write_note(range.end),
            false => Ok(()),
        }
    }

    fn commit(
        &mut self,
        range: &Range<u64>,
        runs: Option<Vec<RunEntry>>,
        has_snapshot: bool,
    ) -> Result<()> {
        self.snapshots += u64::from(has_snapshot);
        if let Some(runs) = &runs {
            self.check_runs(range, runs);
        }
        self.runs.clear();
        self.listed_before = runs;
        if range.end > self.begin {
            let bytes = range.end - range.start;
            self.bytes += bytes;
            self.context.observer.advance(bytes);
        }
        self.write_note(range.end)
    }

    /// Every run a commit lists is one the commit before listed, or one of those between.
    fn check_runs(&mut self, range: &Range<u64>, runs: &[RunEntry]) {
        for run in runs {
            let is_right = match (self.runs.get(&run.offset.0), &self.listed_before) {
                (Some(Some(facts)), _) => !facts.is_whole || facts.entry == *run,
                // Not looked at again in a resumed run.
                (Some(None), _) | (None, None) => true,
                (None, Some(before)) => before.contains(run),
            };
            if !is_right {
                let problem = format!("the index run at {} is not what it says", run.offset);
                let error = FormatError::new(Structure::Commit, "F-046", problem);
                let error = error.at(LogOffset(range.start));
                self.findings.add(Finding::of(&error, range.clone(), Loss::Nothing));
            }
        }
    }

    fn write_note(&mut self, offset: u64) -> Result<()> {
        self.since_note = 0;
        let Some(note) = self.note.as_ref().filter(|_| offset > self.begin) else {
            return Ok(());
        };
        let (segments, frames, bytes) = (self.segments, self.frames, self.bytes);
        note.write(Progress { offset, segments, frames, bytes }, &self.findings)
    }

    /// Everything is done: there is nothing to go on from.
    ///
    /// # Errors
    /// Of removing the file.
    pub fn close_note(&mut self) -> Result<()> {
        self.note.take().map_or(Ok(()), NoteFile::remove)
    }
}
