//! Frames without a table: found by their own heads, with what lies between them named damaged.

use std::ops::Range;

use voltar_format::LogOffset;
use voltar_format::frame::{FRAME_MAGIC, Frame};
use voltar_format::limits::{FRAME_ALIGN, FRAME_STORED_LEN_MAX};
use voltar_format::segment::Table;

use super::findings::{Finding, Loss};
use super::plan::{Frames, Job, PlannedFrame, Send, send_frames};
use crate::archive::open::Archive;
use crate::error::Result;

const ALIGN: u64 = FRAME_ALIGN as u64;

/// Bytes looked at in one read while searching for the next frame.
const WINDOW_LEN: u64 = 1 << 20;

/// Frames handed on at once.
const FRAMES_MAX: usize = 1024;

/// Has the frames in `range` read, whose segment has no usable table. What is neither a frame nor
/// a damaged table is damaged.
///
/// # Errors
/// Of whoever takes the jobs.
pub(super) fn salvage(archive: &Archive, range: Range<u64>, send: Send<'_>) -> Result<()> {
    let mut frames = Frames::default();
    let mut at = range.start;
    while at < range.end {
        let end = match frame_at(archive, at, range.end) {
            Ok(len) => {
                let end = (at + u64::from(len)).next_multiple_of(ALIGN).min(range.end);
                frames.frames.push(PlannedFrame { start: at, end, entry: None, items: 0..0 });
                end
            }
            Err(finding) => {
                // What was found before is told before, so that all comes in order.
                send_frames(std::mem::take(&mut frames), send)?;
                let (end, is_table) = next_structure(archive, at, range.end);
                if at < end {
                    send(Job::Found(Finding { range: at..end, ..finding }))?;
                }
                if is_table {
                    return Ok(());
                }
                end
            }
        };
        at = end;
        if frames.frames.len() >= FRAMES_MAX {
            send_frames(std::mem::take(&mut frames), send)?;
        }
    }
    send_frames(frames, send)
}

/// Stored bytes of the frame at `at`, if its head and entries are whole.
fn frame_at(archive: &Archive, at: u64, end: u64) -> Result<u32, Finding> {
    let len = (end - at).min(FRAME_STORED_LEN_MAX.into());
    let mut bytes = vec![0; len as usize];
    let count = archive.home.read_at(&mut bytes, at).unwrap_or(0);
    let bytes = bytes.get(..count).unwrap_or(&[]);
    Frame::decode(bytes)
        .map(|frame| frame.head.stored_len)
        .map_err(|error| Finding::of(&error.at(LogOffset(at)), at..at, Loss::Range))
}

/// Where the next frame or the table begins behind something damaged at `at`, and whether it is
/// the table.
fn next_structure(archive: &Archive, at: u64, end: u64) -> (u64, bool) {
    let mut from = at;
    while from < end {
        let len = (end - from).min(WINDOW_LEN);
        let mut window = vec![0; len as usize];
        // What cannot be read holds no frame.
        let _ = archive.home.read_at(&mut window, from);
        for (number, piece) in window.chunks(FRAME_ALIGN).enumerate() {
            let place = from + number as u64 * ALIGN;
            let is_frame = || piece.starts_with(&FRAME_MAGIC) && place > at;
            if is_frame() && frame_at(archive, place, end).is_ok() {
                return (place, false);
            }
            if Table::is_candidate(piece) && Table::encoded_len(piece).is_ok() {
                return (place, true);
            }
        }
        from += len;
    }
    (end, false)
}
