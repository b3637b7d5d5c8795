//! One record between two commits: its ends, and what it says of what lies between them.

use std::ops::Range;

use voltar_format::commit::RunEntry;
use voltar_format::index::{RunHead, check_foot_block, check_head_block};
use voltar_format::limits::{BLOCK_LEN, SEGMENT_LEN_MAX};
use voltar_format::record::{RecordHead, RecordKind};
use voltar_format::segment::{Footer, Table, check_tail};
use voltar_format::{FormatError, LogOffset, Structure};

use super::findings::{Finding, Loss};
use super::plan::{BLOCK, Frames, Job, PlannedRun, Send, Spot, send_frames};
use super::read::READ_LEN;
use super::salvage::salvage;
use crate::archive::open::Archive;
use crate::archive::read_exact;
use crate::error::Result;

/// Most bytes from a segment's table to its end: more cannot be of a table within the limits.
const TAIL_LEN_MAX: u64 = 4 << 20;

/// A record between two commits: its first and last block.
pub(super) struct Record {
    /// Its bytes.
    pub(super) range: Range<u64>,
    /// Its head, if that is whole.
    pub(super) head: Option<RecordHead>,
    head_kind: Option<RecordKind>,
    first: Vec<u8>,
    last: Vec<u8>,
    /// Its footer, if that is whole.
    pub(super) footer: Option<(Footer, RecordKind)>,
}

impl Record {
    /// Reads and checks both ends.
    pub(super) fn look(archive: &Archive, range: Range<u64>, send: Send<'_>) -> Result<Record> {
        let (start, end) = (range.start, range.end);
        let head_at = start..start + RecordHead::LEN as u64;
        let foot_at = end - Footer::LEN as u64..end;
        let (first, head) = block(archive, start, |block| {
            RecordHead::decode_at(block, LogOffset(start), Some(archive.id))
        });
        let (last, footer) = block(archive, end - BLOCK, |block| {
            let found = Footer::decode_at(block, LogOffset(end), Some(archive.id))?;
            match found.0.start.0 == start {
                true => Ok(found),
                false => Err(misfit(Structure::Footer, "F-033", "it belongs to another record")),
            }
        });
        let head = told(head, "record", &head_at, send)?;
        let footer = told(footer, "footer", &foot_at, send)?;
        let head_kind = head.as_ref().map(|(_, kind)| *kind);
        let record =
            Record { range, head: head.map(|(head, _)| head), head_kind, first, last, footer };
        record.check_agreement(&head_at, send)?;
        Ok(record)
    }

    /// Head and footer speak of the same record.
    fn check_agreement(&self, head_at: &Range<u64>, send: Send<'_>) -> Result<()> {
        let (Some(head), Some((footer, kind))) = (&self.head, &self.footer) else {
            return Ok(());
        };
        if head.sequence == footer.sequence && self.head_kind == Some(*kind) {
            return Ok(());
        }
        let error = misfit(Structure::Footer, "F-033", "it contradicts its record's head");
        let range = head_at.start..self.range.end;
        send(Job::Found(Finding::of(&error, range, Loss::Nothing)))
    }

    /// Whether one of its ends is.
    pub(super) fn is_damaged(&self) -> bool {
        self.head.is_none() || self.footer.is_none()
    }

    /// Its number in the log, from whichever end is whole.
    pub(super) fn sequence(&self) -> Option<u64> {
        let footer = self.footer.as_ref().map(|(footer, _)| footer.sequence);
        footer.or(self.head.as_ref().map(|head| head.sequence))
    }

    /// Its kind; a record of which both ends are damaged counts as data, so that its frames are
    /// looked for.
    pub(super) fn kind(&self) -> RecordKind {
        let footer = self.footer.as_ref().map(|(_, kind)| *kind);
        footer.or(self.head_kind).unwrap_or(RecordKind::Data)
    }

    /// Checks the ends of an index run and has its pages read.
    pub(super) fn index_run(&self, listed: Option<RunEntry>, send: Send<'_>) -> Result<()> {
        let (start, end) = (self.range.start, self.range.end);
        let head = match self.run_head() {
            Ok(head) => head,
            Err(error) => {
                send(Job::Found(Finding::of(&error, start..start + BLOCK, Loss::Nothing)))?;
                None
            }
        };
        if let Err(error) = check_foot_block(&self.last) {
            let error = error.at(LogOffset(end - BLOCK));
            send(Job::Found(Finding::of(&error, end - BLOCK..end, Loss::Nothing)))?;
        }
        let body_hash = self.footer.as_ref().map(|(footer, _)| footer.body_hash);
        let run = PlannedRun { range: self.range.clone(), head, listed, body_hash };
        let pages = run.pages();
        send(Job::RunStarts(Box::new(run)))?;
        let step = READ_LEN / BLOCK;
        for first in (0..pages).step_by(step as usize) {
            let from = start + (first + 1) * BLOCK;
            let read = from..from + step.min(pages - first) * BLOCK;
            send(Job::Pages { first, read })?;
        }
        send(Job::RunEnds)
    }

    /// The numbers in the first block of an index run; none if its head is damaged, which was
    /// told.
    fn run_head(&self) -> Result<Option<RunHead>, FormatError> {
        self.head.as_ref().map(|head| check_head_block(&self.first, head)).transpose()
    }

    /// Checks the table of a data segment and has its frames read; says where the table is. Of a
    /// segment that is passed over (`checked` is false) the table is not looked at.
    pub(super) fn segment(&self, archive: &Archive, checked: bool, send: Send<'_>) -> Result<Spot> {
        let start = self.range.start;
        let none = Spot { start, table_offset: 0, table_len: 0 };
        let Some((footer, _)) = self.footer.as_ref() else {
            if checked {
                salvage(archive, self.inside(), send)?;
            }
            return Ok(none);
        };
        let spot = Spot { start, table_offset: footer.table_offset, table_len: footer.table_len };
        let table = match checked {
            true => self.tail(archive, footer).map(Some),
            false => self.table_range(footer).map(|_| None),
        };
        match table {
            Ok(Some(table)) => send_frames(Frames::of(start, table), send)?,
            Ok(None) => {}
            Err(finding) => {
                send(Job::Found(finding))?;
                if checked {
                    salvage(archive, self.inside().start..self.frames_end(footer), send)?;
                }
                return Ok(none);
            }
        }
        Ok(spot)
    }

    /// Where the frames end according to the footer, if that can be.
    fn frames_end(&self, footer: &Footer) -> u64 {
        let table = self.range.start + u64::from(footer.table_offset);
        match self.inside().contains(&table) {
            true => table,
            false => self.inside().end,
        }
    }

    /// What lies between its head and its footer, whatever state these are in.
    pub(super) fn inside(&self) -> Range<u64> {
        self.range.start + RecordHead::LEN as u64..self.range.end - Footer::LEN as u64
    }

    /// The table of a data segment, if footer and table are whole.
    pub(super) fn table(&self, archive: &Archive) -> Option<Table> {
        let (footer, _) = self.footer.as_ref()?;
        self.tail(archive, footer).ok()
    }

    /// Where the table of a segment lies according to its footer.
    fn table_range(&self, footer: &Footer) -> Result<Range<u64>, Finding> {
        let (start, end) = (self.range.start, self.range.end);
        let table_at = start.saturating_add(footer.table_offset.into());
        let tail_len = end.saturating_sub(table_at);
        if !self.inside().contains(&table_at)
            || tail_len > TAIL_LEN_MAX
            || end - start > SEGMENT_LEN_MAX
        {
            let error = misfit(Structure::Footer, "F-033", "its lengths are out of range");
            return Err(Finding::of(&error, end - Footer::LEN as u64..end, Loss::Nothing));
        }
        Ok(table_at..table_at.saturating_add(footer.table_len.into()).min(end))
    }

    /// The table of a segment with a whole footer.
    fn tail(&self, archive: &Archive, footer: &Footer) -> Result<Table, Finding> {
        let range = self.table_range(footer)?;
        let tail = range.start..self.range.end;
        let (bytes, table) = read_table(archive, range, tail.end)?;
        check_tail(&bytes, footer, &table)
            .map_err(|error| Finding::of(&error, tail, Loss::Nothing))?;
        Ok(table)
    }
}

/// The table in `range`, and all bytes from its start to `end`.
pub(super) fn read_table(
    archive: &Archive,
    range: Range<u64>,
    end: u64,
) -> Result<(Vec<u8>, Table), Finding> {
    let (start, len) = (LogOffset(range.start), (end - range.start) as usize);
    let bytes = read_exact(&*archive.home, start, len)
        .map_err(|error| Finding::unread("table", range.clone(), &error, Loss::Nothing))?;
    let table = Table::decode(&bytes)
        .map_err(|error| Finding::of(&error.at(start), range, Loss::Nothing))?;
    Ok((bytes, table))
}

/// The value, or nothing once what is wrong with it is told.
fn told<T>(
    found: Result<T, Finding>,
    structure: &str,
    range: &Range<u64>,
    send: Send<'_>,
) -> Result<Option<T>> {
    match found {
        Ok(value) => Ok(Some(value)),
        Err(finding) => {
            let structure = structure.to_owned();
            send(Job::Found(Finding { range: range.clone(), structure, ..finding }))?;
            Ok(None)
        }
    }
}

/// Reads the block at `at` and checks it; a block that cannot be read is zeroes and a finding.
fn block<T>(
    archive: &Archive,
    at: u64,
    check: impl FnOnce(&[u8]) -> Result<T, FormatError>,
) -> (Vec<u8>, Result<T, Finding>) {
    match read_exact(&*archive.home, LogOffset(at), BLOCK_LEN) {
        Ok(block) => {
            let checked = check(&block).map_err(|error| Finding::of(&error, at..at, Loss::Nothing));
            (block, checked)
        }
        Err(error) => (vec![0; BLOCK_LEN], Err(Finding::unread("", at..at, &error, Loss::Nothing))),
    }
}

/// A broken requirement.
pub(super) fn misfit(
    structure: Structure,
    requirement: &'static str,
    problem: &str,
) -> FormatError {
    FormatError::new(structure, requirement, problem)
}
