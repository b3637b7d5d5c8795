//! Frames without a table: found by their own heads, with what lies between them named damaged.

use std::ops::Range;

use voltar_format::limits::FRAME_ALIGN;

use super::findings::{Finding, Loss};
use super::plan::{Frames, Job, PlannedFrame, Send, send_frames};
use crate::archive::open::Archive;
use crate::archive::tables::{frame_at, next_structure};
use crate::error::Result;

const ALIGN: u64 = FRAME_ALIGN as u64;

/// Frames handed on at once.
const FRAMES_MAX: usize = 1024;

/// Has the frames in `range` read, whose segment has no usable table. What is neither a frame nor
/// a damaged table is damaged. Returns where it ended: at a table, or at the end of `range`.
///
/// # Errors
/// Of whoever takes the jobs.
pub(super) fn salvage(archive: &Archive, range: Range<u64>, send: Send<'_>) -> Result<u64> {
    let home = &*archive.home;
    let mut frames = Frames::default();
    let mut at = range.start;
    while at < range.end {
        let end = match frame_at(home, at, range.end) {
            Ok((len, _)) => {
                let end = (at + u64::from(len)).next_multiple_of(ALIGN).min(range.end);
                frames.frames.push(PlannedFrame { start: at, end, entry: None, items: 0..0 });
                end
            }
            Err(error) => {
                let finding = Finding::of(&error, at..at, Loss::Range);
                // What was found before is told before, so that all comes in order.
                send_frames(std::mem::take(&mut frames), send)?;
                let (end, is_table) = next_structure(home, at, range.end);
                if at < end {
                    send(Job::Found(Finding { range: at..end, ..finding }))?;
                }
                if is_table {
                    return Ok(end);
                }
                end
            }
        };
        at = end;
        if frames.frames.len() >= FRAMES_MAX {
            send_frames(std::mem::take(&mut frames), send)?;
        }
    }
    send_frames(frames, send)?;
    Ok(range.end)
}
