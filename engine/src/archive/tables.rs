//! What the segments of a log hold according to themselves, for when the index cannot say: by
//! their tables and, where a table is lost, by their frames.

use std::ops::Range;

use voltar_format::frame::{ChunkEntry, FRAME_MAGIC, Frame};
use voltar_format::index::IndexEntry;
use voltar_format::limits::{BLOCK_LEN, FRAME_ALIGN, FRAME_STORED_LEN_MAX};
use voltar_format::record::{RecordHead, RecordKind};
use voltar_format::segment::{Footer, Table, TableHead};
use voltar_format::wire::Reserved;
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
    let at = footer.start.checked_add(footer.table_offset.into())?;
    let head = read_exact(home, at, TableHead::LEN).ok()?;
    let len = Table::encoded_len(&head).ok().filter(|len| *len == footer.table_len as usize)?;
    Table::decode(&read_exact(home, at, len).ok()?).ok()
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
    let mut at = range.start.saturating_add(RecordHead::LEN as u64);
    while at < range.end {
        at = match frame_at(home, at, range.end) {
            Ok((len, entries)) => {
                each_of_frame(LogOffset(at), len, &entries, visit);
                at.saturating_add(len.into()).next_multiple_of(ALIGN)
            }
            Err(_) => match next_structure(home, at, range.end) {
                (_, true) => return,
                // What does not decode and starts like a frame is not found twice.
                (next, false) => next.max(at + ALIGN),
            },
        };
    }
}

/// Stored bytes and items of the frame at `at`, if its head and entries are whole.
///
/// # Errors
/// Names what is wrong with it.
pub fn frame_at(home: &dyn Home, at: u64, end: u64) -> Result<(u32, Vec<ChunkEntry>), FormatError> {
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

/// Where the next frame or the table begins behind something damaged at `at`, and whether it is
/// the table; `end` if neither does.
pub fn next_structure(home: &dyn Home, at: u64, end: u64) -> (u64, bool) {
    let mut from = at;
    while from < end {
        let to = from.saturating_add(WINDOW_LEN).min(end);
        // What cannot be read holds no frame.
        let window = read_what_is_there(home, from, to);
        for (number, piece) in window.chunks(FRAME_ALIGN).enumerate() {
            let place = from + number as u64 * ALIGN;
            let is_frame = || piece.starts_with(&FRAME_MAGIC) && place > at;
            if is_frame() && frame_at(home, place, end).is_ok() {
                return (place, false);
            }
            if Table::is_candidate(piece) && Table::encoded_len(piece).is_ok() {
                return (place, true);
            }
        }
        from = to;
    }
    (end, false)
}
