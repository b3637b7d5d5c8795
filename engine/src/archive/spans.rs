//! Where the records of a committed stretch of the log begin and end, damaged ones included.
//!
//! Footers lead back from the end, one small read per record. Where one is damaged, the search
//! goes back block by block to the nearest thing that says where a record begins or ends, and the
//! footers lead on from there: what a damage costs is a segment's length of reading, not the rest
//! of the log.

use std::ops::Range;

use voltar_format::limits::BLOCK_LEN;
use voltar_format::record::{RecordHead, RecordKind};
use voltar_format::segment::Footer;
use voltar_format::{ArchiveId, FormatError, LogOffset};

use super::blocks::blocks;
use super::{Home, read_exact};
use crate::error::Result;

const BLOCK: u64 = BLOCK_LEN as u64;

/// One record, as far as its borders tell.
#[derive(Clone, Debug)]
pub struct Span {
    /// Its bytes.
    pub range: Range<u64>,
    /// Its footer, or what is wrong with it.
    pub footer: Result<(Footer, RecordKind), FormatError>,
}

/// The records between `start` and `end`, in order and without gaps.
///
/// # Errors
/// Of reading. Damage is in the spans.
pub fn spans(
    home: &dyn Home,
    id: ArchiveId,
    start: LogOffset,
    end: LogOffset,
) -> Result<Vec<Span>> {
    borders(home, id, start, end)
        .into_iter()
        .map(|range| {
            let footer = footer_before(home, id, range.end)?;
            let footer = footer.and_then(|found| reject_foreign(found, range.start));
            Ok(Span { range, footer })
        })
        .collect()
}

/// The byte ranges of the records between `start` and `end`, in order and without gaps; both are
/// multiples of 4096. What cannot be read is taken for damaged.
pub fn borders(
    home: &dyn Home,
    id: ArchiveId,
    start: LogOffset,
    end: LogOffset,
) -> Vec<Range<u64>> {
    let mut ranges = Vec::new();
    let mut at = end.0;
    while at > start.0 {
        let begin = match footer_before(home, id, at) {
            Ok(Ok((footer, _))) if footer.start >= start => footer.start.0,
            _ => search_back(home, id, start.0, at),
        };
        ranges.push(begin..at);
        at = begin;
    }
    ranges.reverse();
    ranges
}

/// The footer of the record that ends at `end`, or what is wrong with it.
///
/// # Errors
/// Of reading.
pub(super) fn footer_before(
    home: &dyn Home,
    id: ArchiveId,
    end: u64,
) -> Result<Result<(Footer, RecordKind), FormatError>> {
    let from = end.saturating_sub(Footer::LEN as u64);
    let bytes = read_exact(home, LogOffset(from), Footer::LEN)?;
    Ok(Footer::decode_at(&bytes, LogOffset(end), Some(id)))
}

/// Where the record that ends at `end` begins: at the nearest head before, behind the nearest
/// footer before, or at `start`. What cannot be read tells nothing.
fn search_back(home: &dyn Home, id: ArchiveId, start: u64, end: u64) -> u64 {
    for (at, block) in blocks(home, start..end).rev() {
        let Ok(block) = block else { continue };
        let next = LogOffset(at.0 + BLOCK);
        if next.0 < end && Footer::decode_at(&block, next, Some(id)).is_ok() {
            return next.0;
        }
        if RecordHead::decode_at(&block, at, Some(id)).is_ok() {
            return at.0;
        }
    }
    start
}

/// A footer that belongs to a record that began elsewhere is not this record's.
fn reject_foreign(
    found: (Footer, RecordKind),
    start: u64,
) -> Result<(Footer, RecordKind), FormatError> {
    match found.0.start.0 == start {
        true => Ok(found),
        false => Err(FormatError::new(
            voltar_format::Structure::Footer,
            "F-033",
            "it belongs to another record",
        )),
    }
}
