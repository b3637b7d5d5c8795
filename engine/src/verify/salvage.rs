//! Frames where no footer leads to a table: found by their own heads, with what lies between them
//! named damaged.

use std::ops::Range;

use voltar_format::limits::SEGMENT_CHUNKS_MAX;
use voltar_format::record::RecordHead;
use voltar_format::segment::Table;

use super::findings::{Finding, Loss};
use super::plan::{Frames, Job, PlannedFrame, Send, send_frames};
use crate::archive::open::Archive;
use crate::archive::tables::{Part, parts};
use crate::error::Result;

/// Frames kept until it shows whether a table speaks of them: no table speaks of more.
const FRAMES_MAX: usize = SEGMENT_CHUNKS_MAX as usize;

/// Has all frames in `range` read, which begins where a record's frames do. Borders of records may
/// be lost in it: the frames of every record in it are found. What is neither frame, table nor
/// padding is damaged.
///
/// # Errors
/// Of whoever takes the jobs.
pub(super) fn salvage(archive: &Archive, range: Range<u64>, send: Send<'_>) -> Result<()> {
    let mut loose = Loose::new(range.start);
    for (place, part) in parts(&*archive.home, range) {
        match part {
            Part::Frame { .. } => {
                loose.push(&place);
                if loose.frames.len() > FRAMES_MAX {
                    loose.take(place.end).send(send)?;
                }
            }
            Part::Table(Ok(table)) => loose.take(place.end).send_by(table, send)?,
            // What was found before is told before, so that all comes in order.
            Part::Table(Err(error)) => {
                loose.take(place.end).send(send)?;
                send(Job::Found(Finding::of(&error, place, Loss::Nothing)))?;
            }
            Part::Border => {
                loose = Loose::new(place.end);
                send(Job::Found(lost_border(place)))?;
            }
            Part::Gap(error) => {
                loose.take(place.end).send(send)?;
                send(Job::Found(Finding::of(&error, place, Loss::Range)))?;
            }
        }
    }
    loose.send(send)
}

fn lost_border(range: Range<u64>) -> Finding {
    let error = "record: what ends one and begins the next is damaged (F-033, F-010)";
    Finding::new("record", range, error, Loss::Range)
}

/// Frames that lie one behind the other.
struct Loose {
    /// Where the first one lies, or would.
    start: u64,
    frames: Vec<PlannedFrame>,
}

impl Loose {
    fn new(start: u64) -> Loose {
        Loose { start, frames: Vec::new() }
    }

    fn push(&mut self, place: &Range<u64>) {
        let Range { start, end } = *place;
        self.frames.push(PlannedFrame { start, end, entry: None, items: 0..0 });
    }

    /// What there is so far; others go on at `next`.
    fn take(&mut self, next: u64) -> Loose {
        std::mem::replace(self, Loose::new(next))
    }

    /// Has them read as what the table behind them says they are, if it speaks of just them.
    fn send_by(self, table: Table, send: Send<'_>) -> Result<()> {
        let segment = self.start - RecordHead::LEN as u64;
        let end = self.frames.last().map_or(self.start, |last| last.end);
        match segment + table.offset_in_segment() == end {
            true => send_frames(Frames::of(segment, table), send),
            false => self.send(send),
        }
    }

    fn send(self, send: Send<'_>) -> Result<()> {
        send_frames(Frames { frames: self.frames, items: Vec::new() }, send)
    }
}
