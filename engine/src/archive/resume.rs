//! What an interrupted session left behind the last commit, and how much of it is worth keeping.
//!
//! Sealed segments are adopted if every byte of them passes its checks: after a power cut a
//! footer may have reached the disk before the frames it speaks of. The first record that is not
//! whole ends the adoption; the log goes on there.

use std::sync::Arc;

use voltar_format::checksum::{BodyHasher, LogHasher};
use voltar_format::commit::{Commit, RunEntry};
use voltar_format::frame::{Frame, FrameHead};
use voltar_format::index::{
    Filters, OrderCheck, PAGE_MAGIC, Page, RunHead, check_foot_block, check_head_block,
    slot_of_page,
};
use voltar_format::limits::{BLOCK_LEN, FRAME_ALIGN, SEGMENT_LEN_MAX};
use voltar_format::record::{RecordHead, RecordKind};
use voltar_format::segment::{Footer, Table, TableHead, check_tail};
use voltar_format::wire::{Reserved, is_zero};
use voltar_format::{FormatError, LogOffset, Structure};

use super::index::{Fresh, Index, Place};
use super::open::{Archive, length};
use super::session::Beginning;
use super::store::place_of;
use super::{Home, format_error, read_exact};
use crate::error::{Error, ErrorKind, Result};
use crate::options::Context;

/// A record behind the last commit that is whole.
pub enum Whole {
    /// A data segment.
    Data {
        /// Its table.
        table: Table,
        /// Its footer.
        footer: Footer,
    },
    /// An index run.
    Index {
        /// The run, as a commit would name it.
        run: RunEntry,
        /// Its footer.
        footer: Footer,
    },
}

impl Whole {
    fn footer(&self) -> &Footer {
        match self {
            Whole::Data { footer, .. } | Whole::Index { footer, .. } => footer,
        }
    }
}

/// Makes sure that what is read of the last commit and behind it is what the medium holds. If an
/// earlier session's sync failed, the page cache may show bytes that were never written and that no
/// later sync will write (W-16). To be called before the archive is opened to be written.
///
/// # Errors
/// Of syncing.
pub fn settle(home: &Arc<dyn Home>) -> Result<()> {
    // If it cannot be opened, whoever opens it next says why.
    let Ok(archive) = Archive::open(Arc::clone(home)) else { return Ok(()) };
    // What a commit seals was durable before the commit was written.
    let start = archive.last.as_ref().map_or(0, |commit| commit.offset.0);
    let settled = home.sync().and_then(|()| home.forget(start..home.len()?));
    settled.map_err(|error| Error::io("cannot make durable what is in", home.label(), error))
}

/// Adopts what is sealed behind the last commit: its items become part of `fresh` and `index`.
///
/// # Errors
/// Of reading; damage is no error here, it ends the adoption.
pub fn adopt(
    archive: &Archive,
    index: &Index,
    fresh: &Fresh,
    context: &Context,
) -> Result<Beginning> {
    let last = archive.last.as_ref();
    let mut beginning = Beginning {
        log_hash: LogHasher::new(),
        segment_count: 0,
        position: archive.end(),
        previous_record: last.map_or(LogOffset(0), |commit| commit.offset),
        sequence: last.map_or(1, |commit| commit.sequence + 1),
    };
    let end = length(&*archive.home)?;
    while let Some(whole) = whole_record(archive, &beginning, end)? {
        context.cancel.check()?;
        context.observer.advance(whole.footer().len);
        take_in(&whole, index, fresh)?;
        let footer = whole.footer();
        beginning.log_hash.add(&footer.body_hash);
        beginning.segment_count += 1;
        beginning.previous_record = footer.start;
        beginning.sequence += 1;
        beginning.position = LogOffset(footer.start.0 + footer.len);
    }
    Ok(beginning)
}

/// Sees that the last commit is one that a writer made behind what it seals. A writer builds
/// on nothing else: bytes of a guest that happen to be, or were made to be, a commit inside a
/// segment that was never sealed must not become the archive's end.
///
/// # Errors
/// `Damaged`; `Io`.
pub fn check_foundation(archive: &Archive) -> Result<()> {
    let unsound = |error: Error| {
        error
            .meaning("nothing was changed; what the archive holds may still be restored")
            .hint("run `voltar verify` on it, and back up into a new archive")
    };
    if let Some((_, lost)) = archive.lost_commit() {
        return Err(unsound(format_error(archive.label(), lost)));
    }
    let Some(commit) = &archive.last else { return Ok(()) };
    archive.previous(commit).and_then(|_| check_sealed(archive, commit)).map_err(unsound)
}

/// Follows the footers before `commit` back to where its records begin, or past
/// [`SEGMENT_LEN_MAX`] bytes: further than any segment reaches.
fn check_sealed(archive: &Archive, commit: &Commit) -> Result<()> {
    let bad = |at: LogOffset, problem: &str| {
        let error = FormatError::new(Structure::Commit, "R-17", problem);
        Err(format_error(archive.label(), error.at(at)))
    };
    let mut hashes = Vec::new();
    let mut at = commit.offset;
    let mut sequence = commit.sequence;
    while at > commit.head.log_start && commit.offset.0 - at.0 <= SEGMENT_LEN_MAX {
        let (footer, kind) = record_before(archive, at)?;
        sequence = sequence.saturating_sub(1);
        if footer.start < commit.head.log_start || footer.sequence != sequence {
            return bad(commit.offset, "the records before it are not those that it seals");
        }
        if kind != RecordKind::Other {
            hashes.push(footer.body_hash);
        }
        at = footer.start;
    }
    let count = commit.head.segment_count as usize;
    if at > commit.head.log_start {
        return match hashes.len() <= count {
            true => Ok(()),
            false => bad(commit.offset, "there are more records before it than it seals"),
        };
    }
    let mut log_hash = LogHasher::new();
    hashes.iter().rev().for_each(|hash| log_hash.add(hash));
    match hashes.len() == count && log_hash.finish() == commit.head.log_hash {
        true => Ok(()),
        false => bad(commit.offset, "its number of records, or its hash over them, is wrong"),
    }
}

/// The footer of the record that ends at `end`, which agrees with the record's head. A head that is
/// damaged says nothing: the footer stands for the record.
fn record_before(archive: &Archive, end: LogOffset) -> Result<(Footer, RecordKind)> {
    let bad = |error: FormatError| format_error(archive.label(), error);
    let from = LogOffset(end.0.saturating_sub(Footer::LEN as u64));
    let bytes = read_exact(&*archive.home, from, Footer::LEN)?;
    let (footer, kind) = Footer::decode_at(&bytes, end, Some(archive.id)).map_err(bad)?;
    let bytes = read_exact(&*archive.home, footer.start, RecordHead::LEN)?;
    match RecordHead::decode_at(&bytes, footer.start, Some(archive.id)) {
        Ok((head, head_kind)) if head_kind != kind || head.sequence != footer.sequence => {
            let problem = "it contradicts its record's head";
            Err(bad(FormatError::new(Structure::Footer, "F-033", problem).at(from)))
        }
        Err(error) if error.unsupported => Err(bad(error)),
        _ => Ok((footer, kind)),
    }
}

/// Writes the copy of the last commit that a crash or damage took, from the one that is whole.
/// Nothing committed is overwritten: these bytes were to be exactly what is written now.
///
/// # Errors
/// Of reading and writing.
pub fn mend_last_commit(archive: &Archive) -> Result<bool> {
    let Some(commit) = &archive.last else { return Ok(false) };
    let len = length(&*archive.home)?;
    let whole = [commit.offset, LogOffset(commit.offset.0 + commit.len)].map(|at| {
        let fits = at.0 + commit.len <= len;
        let copy =
            if fits { read_exact(&*archive.home, at, commit.len as usize).ok() } else { None };
        copy.filter(|copy| Commit::decode_at(copy, at, Some(archive.id)).is_ok())
    });
    let twin = match &whole {
        [Some(_), Some(_)] | [None, None] => return Ok(false),
        [Some(copy), None] | [None, Some(copy)] => Commit::twin(copy),
    };
    let Some((at, bytes)) = twin else { return Ok(false) };
    let failed = |error| Error::io("cannot mend the last commit of", archive.label(), error);
    if len < at.0 + bytes.len() as u64 {
        archive.home.set_len(at.0 + bytes.len() as u64).map_err(failed)?;
    }
    archive.home.write_at(&bytes, at.0).map_err(failed)?;
    archive.home.sync().map_err(failed)?;
    Ok(true)
}

fn take_in(whole: &Whole, index: &Index, fresh: &Fresh) -> Result<()> {
    match whole {
        Whole::Data { table, footer } => {
            for (frame, chunks) in table.iter() {
                let start = LogOffset(footer.start.0 + u64::from(frame.offset));
                for (slot, chunk) in (0u16..).zip(chunks) {
                    let frame_len = frame.stored_len;
                    fresh.place(
                        &chunk.id,
                        Place { frame: start, frame_len, slot, kind: chunk.kind },
                    );
                }
            }
        }
        Whole::Index { run, .. } => {
            let mut runs = index.runs().to_vec();
            runs.push(run.clone());
            index.set_runs(runs);
            // The run should hold what was spilled before it: everything in the table by now.
            // What it does not hold must come into another one (W-13).
            for entry in fresh.drain_placed() {
                if index.find(&entry.id)?.is_none() {
                    fresh.place(&entry.id, place_of(&entry));
                }
            }
        }
    }
    Ok(())
}

/// The record that goes on where the log stands, if it is sealed and every byte of it passes its
/// checks.
fn whole_record(archive: &Archive, so_far: &Beginning, end: u64) -> Result<Option<Whole>> {
    let start = so_far.position;
    if start.0 + BLOCK_LEN as u64 > end {
        return Ok(None);
    }
    let head = read_exact(&*archive.home, start, RecordHead::LEN)?;
    let (head, kind) = match RecordHead::decode_at(&head, start, Some(archive.id)) {
        Ok(decoded) => decoded,
        // W-06: what a newer version wrote is not cut off as though it were damaged.
        Err(error) if error.unsupported => return Err(format_error(archive.label(), error)),
        Err(_) => return Ok(None),
    };
    let last = archive.last.as_ref().map_or(LogOffset(0), |commit| commit.offset);
    let is_next = head.sequence == so_far.sequence
        && head.previous == so_far.previous_record
        && head.last_commit == last;
    if !is_next {
        return Ok(None);
    }
    let whole = match kind {
        RecordKind::Data => check_segment(archive, start, end),
        RecordKind::Index => check_run(archive, start, end),
        RecordKind::Commit | RecordKind::Other => return Ok(None),
    };
    match whole {
        Ok(whole) => Ok(Some(whole).filter(|whole| whole.footer().sequence == head.sequence)),
        Err(error) if error.kind() == ErrorKind::Damaged => Ok(None),
        Err(error) => Err(error),
    }
}

/// Checks every byte of the data segment at `start`, frame after frame.
///
/// # Errors
/// `Damaged` naming the first thing that is wrong; `Io`.
pub fn check_segment(archive: &Archive, start: LogOffset, end: u64) -> Result<Whole> {
    let bad = |error: FormatError| format_error(archive.label(), error);
    let mut table = Table::default();
    let mut at = RecordHead::LEN as u64;
    loop {
        if at > SEGMENT_LEN_MAX {
            return Err(bad(misfit("it is longer than a segment may be").at(start)));
        }
        let head = read_bounded(archive, start.0 + at, FrameHead::LEN as u64, end)?;
        if Table::is_candidate(&head) {
            break;
        }
        at = check_frame(archive, start, at, &head, end, &mut table)?;
    }
    check_segment_tail(archive, start, at, end, table)
}

/// Checks the frame `at` bytes into the segment, adds it to `table`, returns where the next is.
fn check_frame(
    archive: &Archive,
    start: LogOffset,
    at: u64,
    head: &[u8],
    end: u64,
    table: &mut Table,
) -> Result<u64> {
    let position = LogOffset(start.0 + at);
    let bad = |error: FormatError| format_error(archive.label(), error.at(position));
    let head = Frame::decode_head(head).map_err(bad)?;
    let padded = u64::from(head.stored_len).next_multiple_of(FRAME_ALIGN as u64);
    let bytes = read_bounded(archive, position.0, padded, end)?;
    let frame = Frame::decode(&bytes).map_err(bad)?;
    frame.check_payload().map_err(bad)?;
    if !is_zero(&bytes[head.stored_len as usize..]) {
        return Err(bad(misfit("the padding behind it is not zero")));
    }
    table.push(u32::try_from(at).unwrap_or(u32::MAX), &frame);
    Ok(at + padded)
}

fn check_segment_tail(
    archive: &Archive,
    start: LogOffset,
    at: u64,
    end: u64,
    table: Table,
) -> Result<Whole> {
    let position = LogOffset(start.0 + at);
    let bad = |error: FormatError| format_error(archive.label(), error.at(position));
    let head = read_bounded(archive, position.0, TableHead::LEN as u64, end)?;
    let table_len = Table::encoded_len(&head).map_err(bad)? as u64;
    let segment_len = (at + table_len + Footer::LEN as u64).next_multiple_of(BLOCK_LEN as u64);
    let tail = read_bounded(archive, position.0, segment_len - at, end)?;
    let stored = Table::decode(&tail).map_err(bad)?;
    if stored != table {
        return Err(bad(misfit("the table speaks of other frames")));
    }
    let after = LogOffset(start.0 + segment_len);
    let block = &tail[tail.len() - Footer::LEN.min(tail.len())..];
    let (footer, kind) = Footer::decode_at(block, after, Some(archive.id)).map_err(bad)?;
    if kind != RecordKind::Data || footer.start != start {
        return Err(bad(misfit("the footer belongs to another record")));
    }
    check_tail(&tail, &footer, &table).map_err(bad)?;
    Ok(Whole::Data { table, footer })
}

/// Checks every byte of the index run at `start`.
///
/// # Errors
/// `Damaged` naming the first thing that is wrong; `Io`.
pub fn check_run(archive: &Archive, start: LogOffset, end: u64) -> Result<Whole> {
    let block = BLOCK_LEN as u64;
    let bad = |at: u64, error: FormatError| format_error(archive.label(), error.at(LogOffset(at)));
    let first = read_bounded(archive, start.0, block, end)?;
    let (record, _) = RecordHead::decode_at(&first, start, Some(archive.id))
        .map_err(|error| bad(start.0, error))?;
    let head = check_head_block(&first, &record).map_err(|error| bad(start.0, error))?;
    let mut check = RunCheck::new(start, head.buckets);
    loop {
        let at = start.0 + (check.page_count + 1) * block;
        let bytes = read_bounded(archive, at, block, end)?;
        if !bytes.starts_with(&PAGE_MAGIC) {
            break;
        }
        check.page(&bytes).map_err(|error| bad(at, error))?;
    }
    let at = start.0 + (check.page_count + 1) * block;
    let foot = read_bounded(archive, at, block, end)?;
    check_foot_block(&foot).map_err(|error| bad(at, error))?;
    let decoded = Footer::decode_at(&foot, LogOffset(at + block), Some(archive.id));
    let (footer, kind) = decoded.map_err(|error| bad(at, error))?;
    if kind != RecordKind::Index || footer.start != start {
        return Err(bad(at, misfit("the footer does not fit the pages before it")));
    }
    let run = check.finish(&head, &footer).map_err(|error| bad(start.0, error))?;
    Ok(Whole::Index { run, footer })
}

/// Checks the pages of a run in their order.
struct RunCheck {
    start: LogOffset,
    buckets: u64,
    page_count: u64,
    entry_count: u64,
    order: OrderCheck,
    filters: Filters,
    hasher: BodyHasher,
}

impl RunCheck {
    fn new(start: LogOffset, buckets: u64) -> RunCheck {
        RunCheck {
            start,
            buckets,
            page_count: 0,
            entry_count: 0,
            order: OrderCheck::new(buckets),
            filters: Filters::default(),
            hasher: BodyHasher::new(),
        }
    }

    /// Takes the next page.
    fn page(&mut self, bytes: &[u8]) -> Result<(), FormatError> {
        let number = self.page_count;
        let page = Page::decode(bytes, number)?;
        self.page_count += 1;
        self.hasher.add(bytes);
        if page.is_filter() {
            self.filters.keep(Some((number, bytes)));
            return Ok(());
        }
        let entries = self.order.page(slot_of_page(number), &page)?;
        self.entry_count += entries.len() as u64;
        for entry in &entries {
            entry.check_before(self.start)?;
            self.filters.check(&entry.id, self.buckets)?;
        }
        Ok(())
    }

    /// Ends the run: what a commit may say of it.
    fn finish(self, head: &RunHead, footer: &Footer) -> Result<RunEntry, FormatError> {
        self.order.finish()?;
        let run = RunEntry {
            offset: self.start,
            len: footer.len,
            entry_count: self.entry_count,
            buckets: self.buckets,
            page_count: self.page_count,
            reserved: Reserved,
            body_hash: self.hasher.finish(),
        };
        let refuse = |id, problem| Err(FormatError::new(Structure::Index, id, problem));
        if run.body_hash != footer.body_hash {
            return refuse("F-035", "its hash over the pages does not match");
        }
        if run.entry_count > head.entry_count {
            return refuse("F-064", "it holds more entries than it says");
        }
        let end = LogOffset(self.start.0.saturating_add(footer.len));
        match run.is_sane(end) {
            true => Ok(run),
            false => refuse("F-046", "its numbers contradict one another"),
        }
    }
}

/// Exactly these bytes, or damage if the file ends before.
fn read_bounded(archive: &Archive, start: u64, len: u64, end: u64) -> Result<Vec<u8>> {
    match start.checked_add(len).is_some_and(|last| last <= end) {
        true => read_exact(&*archive.home, LogOffset(start), len as usize),
        false => Err(Error::new(ErrorKind::Damaged, "the record is cut short")
            .on(archive.label())
            .at(start..end)),
    }
}

fn misfit(problem: &str) -> FormatError {
    FormatError::new(Structure::Segment, "F-036", problem)
}
