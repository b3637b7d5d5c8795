//! The producer: reads the source with many reads in flight and sends what workers need.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use voltar_format::limits::FRAME_RAW_LEN_MAX;
use voltar_format::map::{Entry, Shape};
use voltar_format::walk::Cursor;

use super::plan::{Action, Step, VolumePlan};
use crate::archive::store::Store;
use crate::cancel::Cancel;
use crate::device::{Completion, ExtentKind, Extents, Op, OpKind, Queue};
use crate::error::{Error, ErrorKind, Result};
use crate::io::buffer::{Buffer, BufferPool};
use crate::io_engine;
use crate::latency::{LatencyGuard, Turn};
use crate::limit::Limit;
use crate::observe::Observer;
use crate::options::OnReadError;
use crate::pipeline::{Feeder, Permit, Stopped};

/// Bytes per read, and raw bytes per frame.
pub const READ_LEN: u64 = FRAME_RAW_LEN_MAX as u64;

/// What flows to the workers.
pub enum Item {
    /// Chunks that were read.
    Data(Data),
    /// Chunks that are zero without being read; how many of them differ from the parent.
    Zero {
        /// The chunks.
        chunks: Range<u64>,
        /// Of these, bytes that were not zero in the parent.
        changed_bytes: u64,
    },
    /// Chunks that are as in the parent.
    Keep(Range<u64>),
}

/// Chunks that were read.
pub struct Data {
    /// The chunks.
    pub chunks: Range<u64>,
    /// Their bytes; the buffer's length is theirs.
    pub buffer: Buffer,
    /// What the parent has there, one entry a chunk; empty without a parent.
    pub expected: Vec<Entry>,
    /// Byte ranges of the volume that could not be read; zero in the buffer.
    pub unreadable: Vec<Range<u64>>,
}

/// What the reader works with.
pub struct Source<'a> {
    /// The volume.
    pub device: &'a dyn Extents,
    /// How it is to be read.
    pub plan: &'a VolumePlan,
    /// Buffers of [`READ_LEN`].
    pub pool: &'a BufferPool,
    /// Reads in flight.
    pub depth: u32,
    /// The I/O engine.
    pub engine: crate::options::IoEngine,
    /// For the parent's map.
    pub store: Option<Store>,
    /// Where to say that the parent's map is damaged, and to go on without it; `None`: fail.
    pub parent_lost: Option<&'a OnceLock<String>>,
    /// What to do about sectors that fail.
    pub on_read_error: OnReadError,
    /// Bytes per second.
    pub limit_bytes_per_s: Option<u64>,
    /// Who spares those who use the source, if there may be any.
    pub latency: Option<&'a LatencyGuard>,
    /// Who watches.
    pub observer: &'a dyn Observer,
    /// Whether to stop.
    pub cancel: Cancel,
}

/// Reads the whole volume according to its plan.
///
/// # Errors
/// `SourceUnreadable` naming the range, `SourceUnusable` if it shrank, of the parent's map.
pub fn produce(source: Source<'_>, feeder: &Feeder<'_, Item>) -> Result<()> {
    let whole = [Step { chunks: 0..source.plan.shape.chunk_count(), action: Action::Read }];
    let steps = source.plan.steps.as_deref().unwrap_or(&whole);
    let mut reader = Reader::new(source, feeder)?;
    for step in steps {
        reader.step(step)?;
    }
    reader.drain()
}

/// Sends what it reads to the workers, in order.
pub struct Reader<'s, 'f> {
    source: Source<'s>,
    shape: Shape,
    feeder: &'f Feeder<'f, Item>,
    queue: Queue,
    cursor: Option<Cursor>,
    /// Reads in flight by sequence number.
    pending: HashMap<u64, Pending>,
    sequence: u64,
    done: Vec<Completion>,
    limit: Limit,
    /// When completions were last left lying, which makes reads look slow that were begun before.
    rested: Instant,
}

struct Pending {
    begun: Instant,
    chunks: Range<u64>,
    expected: Vec<Entry>,
    permit: Permit,
}

/// Room for chunks that somebody else fills: a buffer of [`READ_LEN`].
pub struct Room {
    /// The buffer.
    pub buffer: Buffer,
    permit: Permit,
}

impl<'s, 'f> Reader<'s, 'f> {
    /// Of a volume, before its first step.
    ///
    /// # Errors
    /// Of setting up I/O; of the parent's map.
    pub fn new(source: Source<'s>, feeder: &'f Feeder<'f, Item>) -> Result<Reader<'s, 'f>> {
        let set_up = |error| Error::io("cannot set up I/O on", source.device.label(), error);
        let driver =
            source.device.driver(source.engine, source.pool, source.depth).map_err(set_up)?;
        io_engine::tell(&*driver, source.observer);
        let queue = Queue::new(driver, source.device.geometry(), source.depth);
        let cursor = match (&source.plan.parent, &source.store) {
            (Some(parent), Some(_)) => Some(parent.cursor()?),
            _ => None,
        };
        Ok(Reader {
            shape: source.plan.shape,
            feeder,
            queue,
            cursor,
            pending: HashMap::new(),
            sequence: 0,
            done: Vec::new(),
            limit: Limit::new(source.limit_bytes_per_s),
            rested: Instant::now(),
            source,
        })
    }

    /// The volume's shape.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// Waits for room for chunks that come from elsewhere than the device.
    ///
    /// # Errors
    /// `Interrupted`; of the reads under way.
    pub fn room(&mut self) -> Result<Room> {
        self.source.cancel.check()?;
        let permit = self.permit()?;
        Ok(Room { buffer: self.buffer()?, permit })
    }

    /// Fills `bytes` with what the device has at `offset`; whether it could be read.
    pub fn read_now(&self, bytes: &mut [u8], offset: u64) -> bool {
        matches!(self.source.device.read_at(bytes, offset), Ok(count) if count == bytes.len())
    }

    /// Sends chunks that were filled in.
    ///
    /// # Errors
    /// `Interrupted`; of the parent's map.
    pub fn send_filled(&mut self, chunks: Range<u64>, room: Room) -> Result<()> {
        let Room { mut buffer, permit } = room;
        let len = self.start_of(chunks.end) - self.start_of(chunks.start);
        buffer.set_len(len as usize);
        let expected = self.expected(&chunks)?;
        self.limit.pass(len, &self.source.cancel)?;
        let sequence = self.next_sequence();
        let data = Data { chunks, buffer, expected, unreadable: Vec::new() };
        Ok(self.feeder.send(sequence, Item::Data(data), permit)?)
    }

    /// Does one step.
    ///
    /// # Errors
    /// See [`produce`].
    pub fn step(&mut self, step: &Step) -> Result<()> {
        match step.action {
            Action::Keep => self.send_now(Item::Keep(step.chunks.clone())),
            Action::Zero => self.zero(step.chunks.clone()),
            Action::Read if self.source.plan.trusts_holes => {
                self.read_around_holes(step.chunks.clone())
            }
            Action::Read => self.read(step.chunks.clone()),
        }
    }

    /// Reads what holds data; chunks that lie in holes altogether are not read.
    fn read_around_holes(&mut self, chunks: Range<u64>) -> Result<()> {
        let mut next = chunks.start;
        while next < chunks.end {
            let start = self.start_of(next);
            let extent = self.source.device.extent_at(start).map_err(|error| {
                Error::io("cannot ask for holes of", self.source.device.label(), error)
                    .at(start..start)
            })?;
            let end = self.chunk_behind(&extent).clamp(next + 1, chunks.end);
            match extent.kind {
                ExtentKind::Hole if self.start_of(end) <= extent.range.end => {
                    self.zero(next..end)?;
                }
                _ => self.read(next..end)?,
            }
            next = end;
        }
        Ok(())
    }

    /// The first chunk that an extent does not rule: of a hole, the chunk it covers only in part.
    fn chunk_behind(&self, extent: &crate::device::Extent) -> u64 {
        let len = u64::from(self.shape.chunk_len());
        match extent.kind {
            ExtentKind::Data => extent.range.end.div_ceil(len),
            ExtentKind::Hole if extent.range.end >= self.shape.size() => self.shape.chunk_count(),
            ExtentKind::Hole => extent.range.end / len,
        }
    }

    /// The volume's byte at which a chunk starts; of the one behind the last, where the volume ends.
    pub fn start_of(&self, chunk: u64) -> u64 {
        chunk.saturating_mul(self.shape.chunk_len().into()).min(self.shape.size())
    }

    /// Reads chunks in pieces that end at multiples of [`READ_LEN`].
    fn read(&mut self, chunks: Range<u64>) -> Result<()> {
        let per_read = READ_LEN / u64::from(self.shape.chunk_len());
        let mut next = chunks.start;
        while next < chunks.end {
            let end = ((next / per_read + 1) * per_read).min(chunks.end);
            self.read_piece(next..end)?;
            next = end;
        }
        Ok(())
    }

    fn read_piece(&mut self, chunks: Range<u64>) -> Result<()> {
        self.source.cancel.check()?;
        let permit = self.permit()?;
        let buffer = self.buffer()?;
        let expected = self.expected(&chunks)?;
        let offset = self.start_of(chunks.start);
        let len = (self.start_of(chunks.end) - offset) as usize;
        self.wait_for_turn()?;
        if self.source.limit_bytes_per_s.is_some() {
            self.limit.pass(len as u64, &self.source.cancel)?;
            self.rested = Instant::now();
        }
        let sequence = self.next_sequence();
        let begun = Instant::now();
        self.pending.insert(sequence, Pending { begun, chunks, expected, permit });
        let mut op = Op { token: sequence, kind: OpKind::Read { buffer, len }, offset };
        while let Err(full) = self.queue.submit(op) {
            op = full;
            self.reap()?;
        }
        let mut done = std::mem::take(&mut self.done);
        let polled = self.queue.poll(&mut done);
        self.done = done;
        polled.map_err(|error| self.machinery(error))?;
        self.deliver()
    }

    /// Holds back, if those who use the source are to be spared.
    fn wait_for_turn(&mut self) -> Result<()> {
        let Some(guard) = self.source.latency else { return Ok(()) };
        loop {
            let held = Instant::now();
            match guard.turn(self.queue.in_flight()) {
                Turn::Go => return Ok(()),
                Turn::Wait => self.reap()?,
                Turn::Rest(pause) => {
                    std::thread::sleep(pause);
                    self.rested = Instant::now();
                    guard.slowed(held.elapsed());
                    return self.source.cancel.check();
                }
            }
            guard.slowed(held.elapsed());
        }
    }

    fn next_sequence(&mut self) -> u64 {
        self.sequence += 1;
        self.sequence - 1
    }

    /// A permit; while there is none, completions are delivered.
    fn permit(&mut self) -> Result<Permit> {
        loop {
            if let Some(permit) = self.feeder.try_permit()? {
                return Ok(permit);
            }
            match self.queue.in_flight() {
                0 => return Ok(self.feeder.permit()?),
                _ => self.reap()?,
            }
        }
    }

    fn buffer(&mut self) -> Result<Buffer> {
        loop {
            if let Some(buffer) = self.source.pool.try_take() {
                return Ok(buffer);
            }
            if self.queue.in_flight() > 0 {
                self.reap()?;
            } else if let Some(buffer) = self.source.pool.take_timeout(Duration::from_millis(50)) {
                return Ok(buffer);
            } else if self.feeder.is_stopped() {
                return Err(Stopped.into());
            }
        }
    }

    /// What the parent has at these chunks.
    fn expected(&mut self, chunks: &Range<u64>) -> Result<Vec<Entry>> {
        let mut expected = Vec::new();
        let (Some(cursor), Some(store)) = (&mut self.cursor, &mut self.source.store) else {
            return Ok(expected);
        };
        cursor.seek(chunks.start);
        while (expected.len() as u64) < chunks.end - chunks.start {
            let run = match cursor.next_run(store) {
                Ok(run) => run,
                Err(error) => return self.lose_parent(error).map(|()| Vec::new()),
            };
            // Behind the parent's end there is nothing to compare with.
            let Some(run) = run else { break };
            let count = run.chunks.end.min(chunks.end) - run.chunks.start;
            expected.extend(std::iter::repeat_n(run.entry, count as usize));
        }
        Ok(expected)
    }

    fn zero(&mut self, chunks: Range<u64>) -> Result<()> {
        let changed_bytes = self.not_zero_in_parent(&chunks)?;
        self.send_now(Item::Zero { chunks, changed_bytes })
    }

    fn not_zero_in_parent(&mut self, chunks: &Range<u64>) -> Result<u64> {
        let whole = self.start_of(chunks.end) - self.start_of(chunks.start);
        let (Some(cursor), Some(store)) = (&mut self.cursor, &mut self.source.store) else {
            return Ok(whole);
        };
        cursor.seek(chunks.start);
        let mut same = 0;
        loop {
            let run = match cursor.next_run(store) {
                Ok(Some(run)) => run,
                Ok(None) => break,
                Err(error) => return self.lose_parent(error).map(|()| whole),
            };
            let end = run.chunks.end.min(chunks.end);
            if run.chunks.start >= chunks.end {
                break;
            }
            if run.entry == Entry::Zero {
                let start = run.chunks.start.saturating_mul(self.shape.chunk_len().into());
                let end = end.saturating_mul(self.shape.chunk_len().into());
                same += end.min(self.shape.size()) - start.min(self.shape.size());
            }
            self.source.cancel.check()?;
            if end >= chunks.end {
                break;
            }
        }
        Ok(whole - same)
    }

    /// From here on there is no parent to compare with, if that is borne.
    fn lose_parent(&mut self, error: Error) -> Result<()> {
        match self.source.parent_lost {
            Some(lost) if error.is_damage() => {
                self.cursor = None;
                // Only the first reason counts.
                let _ = lost.set(why_lost(&error));
                Ok(())
            }
            _ => Err(error),
        }
    }

    fn send_now(&mut self, item: Item) -> Result<()> {
        self.source.cancel.check()?;
        let permit = self.permit()?;
        let sequence = self.next_sequence();
        Ok(self.feeder.send(sequence, item, permit)?)
    }

    /// Waits for all reads under way.
    ///
    /// # Errors
    /// See [`produce`].
    pub fn drain(mut self) -> Result<()> {
        while self.queue.in_flight() > 0 {
            self.source.cancel.check()?;
            self.reap()?;
        }
        Ok(())
    }

    fn reap(&mut self) -> Result<()> {
        let mut done = std::mem::take(&mut self.done);
        let waited = self.queue.wait(&mut done);
        self.done = done;
        waited.map_err(|error| self.machinery(error))?;
        self.deliver()
    }

    fn machinery(&self, error: std::io::Error) -> Error {
        Error::io("I/O failed on", self.source.device.label(), error)
    }

    fn deliver(&mut self) -> Result<()> {
        let mut done = std::mem::take(&mut self.done);
        for completion in done.drain(..) {
            self.deliver_one(completion)?;
        }
        self.done = done;
        Ok(())
    }

    fn deliver_one(&mut self, completion: Completion) -> Result<()> {
        let Some(pending) = self.pending.remove(&completion.token) else {
            return Err(Error::new(ErrorKind::Internal, "a read completed that nobody asked for"));
        };
        if let Some(guard) = self.source.latency.filter(|_| pending.begun >= self.rested) {
            guard.read(pending.begun.elapsed());
        }
        let mut buffer = completion.buffer;
        let range = self.start_of(pending.chunks.start)..self.start_of(pending.chunks.end);
        let len = (range.end - range.start) as usize;
        let unreadable = match completion.result {
            Ok(count) if count == len => Vec::new(),
            Ok(count) => return Err(self.shrank(range.start + count as u64)),
            Err(_) => self.salvage(range, &mut buffer)?,
        };
        let Pending { chunks, expected, permit, .. } = pending;
        let data = Data { chunks, buffer, expected, unreadable };
        Ok(self.feeder.send(completion.token, Item::Data(data), permit)?)
    }

    fn shrank(&self, at: u64) -> Error {
        let message =
            format!("the source ended at byte {at}, before its {} bytes", self.shape.size());
        Error::new(ErrorKind::SourceUnusable, message)
            .on(self.source.device.label())
            .at(at..self.shape.size())
            .hint("back up a snapshot of it, or stop what resizes it")
    }

    /// Reads a failed range block by block: fails naming the first bad block, or keeps what can
    /// be read and says what cannot. Nothing is bad if the failure passed.
    fn salvage(&self, range: Range<u64>, buffer: &mut Buffer) -> Result<Vec<Range<u64>>> {
        let block = u64::from(self.source.device.geometry().block_len);
        buffer.set_len((range.end - range.start) as usize);
        // These reads go through the page cache, where another opener may have left older bytes.
        // A wish: what it keeps is said to be readable by the kernel.
        let _ = self.source.device.forget(range.clone());
        let mut bad: Vec<Range<u64>> = Vec::new();
        let mut at = range.start;
        while at < range.end {
            // A block that fails may take the device many seconds.
            self.source.cancel.check()?;
            let end = (at / block + 1).saturating_mul(block).min(range.end);
            let piece = &mut buffer[(at - range.start) as usize..(end - range.start) as usize];
            match self.source.device.read_at(piece, at) {
                Ok(count) if count == piece.len() => {}
                Ok(count) => return Err(self.shrank(at + count as u64)),
                Err(error) if is_gone(&error) => return Err(self.gone(at..end, error)),
                Err(error) if self.source.on_read_error == OnReadError::Fail => {
                    return Err(self.unreadable(at..end, error));
                }
                Err(_) => {
                    piece.fill(0);
                    match bad.last_mut() {
                        Some(last) if last.end == at => last.end = end,
                        _ => bad.push(at..end),
                    }
                }
            }
            at = end;
        }
        Ok(bad)
    }

    fn gone(&self, range: Range<u64>, error: std::io::Error) -> Error {
        Error::io("the source went away", self.source.device.label(), error)
            .at(range)
            .hint("start or attach again what serves it, then run the same command again")
    }

    fn unreadable(&self, range: Range<u64>, error: std::io::Error) -> Error {
        Error::new(ErrorKind::SourceUnreadable, "the source cannot be read")
            .on(self.source.device.label())
            .at(range)
            .because(error)
            .meaning("nothing was committed; the archive's snapshots are as they were")
            .hint("copy the disk while it can still be read, or use --on-read-error record")
    }
}

/// Whether it is whoever serves the source that failed, or the wish to stop, and no sector of it.
fn is_gone(error: &std::io::Error) -> bool {
    use std::io::ErrorKind as K;
    matches!(error.kind(), K::NotConnected | K::ConnectionAborted | K::InvalidData | K::Interrupted)
}

/// Why a volume has no parent from here on, in words.
pub fn why_lost(error: &Error) -> String {
    format!("the parent's map is damaged, what it says is not used: {error}")
}
