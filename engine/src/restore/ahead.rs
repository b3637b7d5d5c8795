//! Reads many pieces of one device at once and hands them to a pipeline as they arrive.
//!
//! A read has a permit of the pipeline and a buffer of its own from submission until the
//! pipeline has consumed what became of it. There are as many buffers as permits, so a buffer is
//! always to be had for a permit, and the permits alone are the back-pressure.

use std::collections::HashMap;
use std::io;
use std::ops::Range;

use crate::device::{Completion, Device, Op, OpKind, Queue};
use crate::error::{Error, ErrorKind, Result};
use crate::io::buffer::{Buffer, BufferPool};
use crate::options::IoEngine;
use crate::pipeline::{Feeder, Permit};

/// What a read brought: a buffer whose length is what the device had.
pub type Bytes = io::Result<Buffer>;

/// Keeps reads in flight for the pipeline behind `feeder`. Lives on the thread that made it.
pub struct Ahead<'a, T, I> {
    feeder: &'a Feeder<'a, I>,
    queue: Queue,
    pool: BufferPool,
    label: String,
    /// Makes a pipeline item of a read's tag and bytes.
    wrap: fn(T, Bytes) -> I,
    waiting: HashMap<u64, (T, Permit)>,
    token: u64,
    sequence: u64,
    done: Vec<Completion>,
}

impl<'a, T, I> Ahead<'a, T, I> {
    /// Reads `device` with buffers of `pool`, one per permit of the pipeline.
    ///
    /// # Errors
    /// If the I/O engine cannot be set up.
    pub fn new(
        device: &dyn Device,
        engine: IoEngine,
        pool: &BufferPool,
        feeder: &'a Feeder<'a, I>,
        wrap: fn(T, Bytes) -> I,
    ) -> Result<Self> {
        let depth = pool.count() as u32;
        let driver = device
            .driver(engine, pool, depth)
            .map_err(|error| Error::io("cannot set up I/O on", device.label(), error))?;
        Ok(Ahead {
            feeder,
            queue: Queue::new(driver, device.geometry(), depth),
            pool: pool.clone(),
            label: device.label().to_owned(),
            wrap,
            waiting: HashMap::new(),
            token: 0,
            sequence: 0,
            done: Vec::new(),
        })
    }

    /// Starts to read `range`, which fits a buffer.
    ///
    /// # Errors
    /// If the pipeline stopped, or of the machinery; a read's own error goes down the pipeline.
    pub fn read(&mut self, range: &Range<u64>, tag: T) -> Result<()> {
        let permit = self.permit()?;
        let buffer = self.pool.take();
        let len = ((range.end - range.start) as usize).min(buffer.capacity());
        self.token += 1;
        self.waiting.insert(self.token, (tag, permit));
        let mut op =
            Op { token: self.token, kind: OpKind::Read { buffer, len }, offset: range.start };
        while let Err(full) = self.queue.submit(op) {
            op = full;
            self.reap()?;
        }
        Ok(())
    }

    /// Sends an item that needs no reading.
    ///
    /// # Errors
    /// If the pipeline stopped, or of the machinery.
    pub fn send(&mut self, item: I) -> Result<()> {
        let permit = self.permit()?;
        self.pass(item, permit)
    }

    /// Waits until all that was started has been handed on.
    ///
    /// # Errors
    /// As [`send`](Self::send).
    pub fn settle(&mut self) -> Result<()> {
        while self.queue.in_flight() > 0 {
            self.reap()?;
        }
        Ok(())
    }

    fn permit(&mut self) -> Result<Permit> {
        loop {
            if let Some(permit) = self.feeder.try_permit()? {
                return Ok(permit);
            }
            // What is in flight holds permits, and gives them back only when it is handed on.
            match self.queue.in_flight() {
                0 => return Ok(self.feeder.permit()?),
                _ => self.reap()?,
            }
        }
    }

    fn reap(&mut self) -> Result<()> {
        let mut done = std::mem::take(&mut self.done);
        let waited = self.queue.wait(&mut done);
        let passed = done.drain(..).try_for_each(|completion| self.hand_on(completion));
        self.done = done;
        waited.map_err(|error| Error::io("cannot read", self.label.clone(), error))?;
        passed
    }

    fn hand_on(&mut self, completion: Completion) -> Result<()> {
        let Some((tag, permit)) = self.waiting.remove(&completion.token) else {
            return Err(Error::new(ErrorKind::Internal, "a read completed twice"));
        };
        let Completion { buffer, result, .. } = completion;
        self.pass((self.wrap)(tag, result.map(|_| buffer)), permit)
    }

    fn pass(&mut self, item: I, permit: Permit) -> Result<()> {
        self.feeder.send(self.sequence, item, permit)?;
        self.sequence += 1;
        Ok(())
    }
}
