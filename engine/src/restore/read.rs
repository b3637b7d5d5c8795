//! Reading: frames from the archive in the order of the log, many at once, while the next window
//! is looked up.

use std::ops::Range;
use std::thread;

use crossbeam_channel::{Receiver, Sender, TryRecvError, bounded};
use voltar_format::limits::FRAME_STORED_LEN_MAX;

use super::ahead::{Ahead, Bytes};
use super::job::Job;
use super::lookup::{Lookup, Wanted, Window};
use crate::archive::blocks::pieces;
use crate::device::Device;
use crate::error::Result;
use crate::io::buffer::BUFFER_ALIGN;
use crate::io::buffer::BufferPool;
use crate::options::{Context, IoEngine};
use crate::pipeline::Feeder;
use crate::threads;

/// Most bytes of zeroes that are one worker's.
const ZERO_TASK_LEN_MAX: u64 = 1 << 30;

/// What is to be done about a part of the volume.
pub enum Task {
    /// Decode what was read and write the pieces.
    Frame(Wanted, Read),
    /// Zero these bytes.
    Zero(Range<u64>),
}

/// A frame as it was read: its bytes begin `skip` bytes into the buffer.
pub struct Read {
    /// The buffer, or why there is none.
    pub bytes: Bytes,
    /// Bytes before the frame, read so that whole blocks were.
    pub skip: usize,
}

/// Bytes a buffer needs to hold any frame of an archive on `home` in whole blocks.
pub fn frame_buffer_len(home: &dyn Device) -> usize {
    let block = home.geometry().block_len as usize;
    (FRAME_STORED_LEN_MAX as usize + 2 * block).next_multiple_of(BUFFER_ALIGN)
}

/// Sends everything that is to be done into the pipeline.
///
/// # Errors
/// Of looking up, of the machinery, or that the pipeline stopped. A frame that cannot be read is
/// sent with its error.
pub fn produce(
    job: &Job,
    lookup: Lookup<'_>,
    pool: &BufferPool,
    context: &Context,
    engine: IoEngine,
    feeder: &Feeder<'_, Task>,
) -> Result<()> {
    let home = &*job.archive.home;
    let mut ahead = Ahead::new(home, engine, pool, feeder, |(wanted, skip), bytes| {
        Task::Frame(wanted, Read { bytes, skip })
    })?;
    thread::scope(|scope| {
        let (give, take) = bounded(1);
        let planner = threads::start(scope, "planner", move || look_ahead(lookup, &give))?;
        let read = read_windows(&take, &mut ahead, home, context);
        // Lets a planner that waits to be heard see that nobody listens.
        drop(take);
        read.and(threads::join("planner", planner))
    })
}

fn look_ahead(mut lookup: Lookup<'_>, windows: &Sender<Window>) -> Result<()> {
    while let Some(window) = lookup.next_window()? {
        if windows.send(window).is_err() {
            break;
        }
    }
    Ok(())
}

type Frames<'a> = Ahead<'a, (Wanted, usize), Task>;

fn read_windows(
    windows: &Receiver<Window>,
    ahead: &mut Frames<'_>,
    home: &dyn Device,
    context: &Context,
) -> Result<()> {
    while let Some(window) = next(windows, ahead)? {
        for range in window.zeroes {
            for piece in pieces(range, ZERO_TASK_LEN_MAX) {
                context.cancel.check()?;
                ahead.send(Task::Zero(piece))?;
            }
        }
        for wanted in window.frames {
            context.cancel.check()?;
            let (range, skip) = in_blocks(&wanted, home);
            ahead.read(&range, (wanted, skip))?;
        }
    }
    ahead.settle()
}

/// The next window. If there is none yet, what was read meanwhile does not wait for it.
fn next(windows: &Receiver<Window>, ahead: &mut Frames<'_>) -> Result<Option<Window>> {
    match windows.try_recv() {
        Ok(window) => Ok(Some(window)),
        Err(TryRecvError::Disconnected) => Ok(None),
        Err(TryRecvError::Empty) => {
            ahead.settle()?;
            Ok(windows.recv().ok())
        }
    }
}

/// The whole blocks that hold the frame, and how many bytes of them come before it.
fn in_blocks(wanted: &Wanted, home: &dyn Device) -> (Range<u64>, usize) {
    let block = u64::from(home.geometry().block_len);
    let start = wanted.frame.0 / block * block;
    let len = u64::from(wanted.frame_len.min(FRAME_STORED_LEN_MAX));
    let end = wanted.frame.0.saturating_add(len);
    let end = end.checked_next_multiple_of(block).unwrap_or(end);
    (start..end, (wanted.frame.0 - start) as usize)
}
