//! What the segments of a log hold according to themselves, for when the index cannot say: by
//! their tables and, where a table is lost, by their frames.

use std::ops::Range;

use voltar_format::frame::{ChunkEntry, FRAME_MAGIC, Frame};
use voltar_format::index::IndexEntry;
use voltar_format::limits::{BLOCK_LEN, FRAME_ALIGN, FRAME_STORED_LEN_MAX};
use voltar_format::record::{RecordHead, RecordKind};
use voltar_format::segment::{Footer, Table, TableHead};
use voltar_format::wire::{Reserved, is_zero};
use voltar_format::{ArchiveId, FormatError, LogOffset, Structure};

use super::blocks::read_what_is_there;
use super::spans::{borders, footer_before};
use super::{Home, read_exact};

const ALIGN: u64 = FRAME_ALIGN as u64;

/// Bytes looked at in one read while searching for the next frame.
const WINDOW_LEN: u64 = 1 << 20;

/// Calls `visit` for every item of the segments before `end`, in the order of the log. What is
/// damaged is passed over: whoever misses an item says so.
pub fn each_item(
    home: &dyn Home,
    id: ArchiveId,
    end: LogOffset,
    visit: &mut dyn FnMut(IndexEntry),
) {
    for range in borders(home, id, LogOffset(BLOCK_LEN as u64), end) {
        match footer_before(home, id, range.end) {
            Ok(Ok((footer, RecordKind::Data))) if footer.start.0 == range.start => {
                match table_of(home, &footer) {
                    Some(table) => each_in_table(&table, range.start, visit),
                    None => each_by_frames(home, &range, visit),
                }
            }
            Ok(Ok((footer, _))) if footer.start.0 == range.start => {}
            _ if is_no_segment(home, id, range.start) => {}
            _ => each_by_frames(home, &range, visit),
        }
    }
}

fn table_of(home: &dyn Home, footer: &Footer) -> Option<Table> {
    let at = footer.start.checked_add(footer.table_offset.into())?.0;
    let end = table_end(home, at).filter(|end| *end - at == u64::from(footer.table_len))?;
    read_table(home, at, end).ok()
}

fn each_in_table(table: &Table, start: u64, visit: &mut dyn FnMut(IndexEntry)) {
    for (frame, chunks) in table.iter() {
        let at = LogOffset(start.saturating_add(frame.offset.into()));
        each_of_frame(at, frame.stored_len, chunks, visit);
    }
}

fn each_of_frame(
    frame: LogOffset,
    frame_len: u32,
    chunks: &[ChunkEntry],
    visit: &mut dyn FnMut(IndexEntry),
) {
    for (slot, chunk) in (0u16..).zip(chunks) {
        let (id, kind) = (chunk.id, chunk.kind);
        visit(IndexEntry { id, frame, frame_len, slot, kind, reserved: Reserved });
    }
}

/// Whether the record that starts here is, by its head, a commit or an index run.
fn is_no_segment(home: &dyn Home, id: ArchiveId, start: u64) -> bool {
    let head = read_exact(home, LogOffset(start), RecordHead::LEN).ok();
    let kind = head.and_then(|head| RecordHead::decode_at(&head, LogOffset(start), Some(id)).ok());
    kind.is_some_and(|(_, kind)| kind != RecordKind::Data)
}

fn each_by_frames(home: &dyn Home, range: &Range<u64>, visit: &mut dyn FnMut(IndexEntry)) {
    let inside = range.start.saturating_add(RecordHead::LEN as u64)..range.end;
    for (place, part) in parts(home, inside) {
        if let Part::Frame { len, entries } = part {
            each_of_frame(LogOffset(place.start), len, &entries, visit);
        }
    }
}

/// A part of a stretch of the log in which no footer says what lies where.
pub enum Part {
    /// A frame with its padding, whose head and entries are whole.
    Frame {
        /// Its stored bytes.
        len: u32,
        /// Its items.
        entries: Vec<ChunkEntry>,
    },
    /// A table whose head is whole, and the zeroes behind it; or what is wrong with its entries.
    Table(Result<Table, FormatError>),
    /// What lies between a table and the next frame: where one record ends and another begins.
    Border,
    /// None of these; what is wrong with it as a frame.
    Gap(FormatError),
}

/// All of `range`, which begins where a record's frames do, in order and without gaps. Where borders
/// between records are lost, it holds more than one: a table is not its end.
pub fn parts(home: &dyn Home, range: Range<u64>) -> impl Iterator<Item = (Range<u64>, Part)> + '_ {
    Parts { home, at: range.start, end: range.end, is_border: false }
}

struct Parts<'h> {
    home: &'h dyn Home,
    at: u64,
    end: u64,
    /// Whether the table before reaches up to here.
    is_border: bool,
}

impl Iterator for Parts<'_> {
    type Item = (Range<u64>, Part);

    fn next(&mut self) -> Option<(Range<u64>, Part)> {
        let start = self.at;
        if start >= self.end {
            return None;
        }
        let (end, part) = match std::mem::take(&mut self.is_border) {
            true => (self.structure_behind(start), Part::Border),
            false => self.part(start),
        };
        self.at = end.min(self.end);
        Some((start..self.at, part))
    }
}

impl Parts<'_> {
    /// What lies at `at`, and where it ends.
    fn part(&mut self, at: u64) -> (u64, Part) {
        let error = match frame_at(self.home, at, self.end) {
            Ok((len, entries)) => {
                let end = at.saturating_add(len.into()).next_multiple_of(ALIGN);
                return (end, Part::Frame { len, entries });
            }
            Err(error) => error,
        };
        match table_end(self.home, at).filter(|end| *end <= self.end) {
            Some(end) => self.table(at, end),
            None => (self.structure_behind(at), Part::Gap(error)),
        }
    }

    /// The table from `at` to `end`. Bytes of a guest may look like the head of one: what begins
    /// inside a damaged table is not passed over with it.
    fn table(&mut self, at: u64, end: u64) -> (u64, Part) {
        let table = read_table(self.home, at, end).map_err(|error| error.at(LogOffset(at)));
        let inner = match table {
            Ok(_) => end,
            Err(_) => next_structure(self.home, at + ALIGN, end),
        };
        self.is_border = inner == end;
        let end = if self.is_border { self.padding_end(end) } else { inner };
        (end, Part::Table(table))
    }

    /// Where the zeroes between a table that ends at `at` and its segment's footer end, if there
    /// are none but zeroes.
    fn padding_end(&self, at: u64) -> u64 {
        let foot_len = Footer::LEN as u64;
        let foot = at.saturating_add(foot_len).next_multiple_of(BLOCK_LEN as u64) - foot_len;
        let end = foot.min(self.end);
        match is_zero(&read_what_is_there(self.home, at, end)) {
            true => end,
            false => at.next_multiple_of(ALIGN),
        }
    }

    fn structure_behind(&self, at: u64) -> u64 {
        next_structure(self.home, at + ALIGN, self.end)
    }
}

/// Where the table ends that begins at `at`, if one does.
fn table_end(home: &dyn Home, at: u64) -> Option<u64> {
    let head = read_exact(home, LogOffset(at), TableHead::LEN).ok()?;
    at.checked_add(Table::encoded_len(&head).ok()? as u64)
}

fn read_table(home: &dyn Home, at: u64, end: u64) -> Result<Table, FormatError> {
    let bytes = read_exact(home, LogOffset(at), (end - at) as usize).map_err(|error| {
        FormatError::new(Structure::Table, "F-031", format!("it cannot be read: {error}"))
    })?;
    Table::decode(&bytes)
}

/// Stored bytes and items of the frame at `at`, if its head and entries are whole.
fn frame_at(home: &dyn Home, at: u64, end: u64) -> Result<(u32, Vec<ChunkEntry>), FormatError> {
    let len = end.saturating_sub(at).min(FRAME_STORED_LEN_MAX.into());
    let mut bytes = vec![0; len as usize];
    let count = home.read_at(&mut bytes, at).map_err(|error| {
        let problem = format!("it cannot be read: {error}");
        FormatError::new(Structure::Frame, "F-020", problem).at(LogOffset(at))
    })?;
    let frame = Frame::decode(bytes.get(..count).unwrap_or(&[]));
    let frame = frame.map_err(|error| error.at(LogOffset(at)))?;
    Ok((frame.head.stored_len, frame.entries))
}

/// Where the first frame or table at or behind `from` begins; `end` if there is none.
fn next_structure(home: &dyn Home, from: u64, end: u64) -> u64 {
    let mut from = from;
    while from < end {
        let to = from.saturating_add(WINDOW_LEN).min(end);
        // What cannot be read holds no frame.
        let window = read_what_is_there(home, from, to);
        for (number, piece) in window.chunks(FRAME_ALIGN).enumerate() {
            let place = from + number as u64 * ALIGN;
            let is_frame = piece.starts_with(&FRAME_MAGIC) && frame_at(home, place, end).is_ok();
            if is_frame || Table::encoded_len(piece).is_ok() {
                return place;
            }
        }
        from = to;
    }
    end
}
