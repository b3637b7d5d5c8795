//! Writing: pieces to the target, many at once, each buffer given back after its last piece.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::vec::IntoIter;

use super::job::{Tally, Target};
use super::work::Piece;
use crate::device::{Completion, Op, OpKind, Queue};
use crate::error::{Error, ErrorKind, Result};
use crate::io::buffer::{Buffer, BufferPool};
use crate::io_engine;
use crate::limit::Limit;
use crate::options::{Context, IoEngine};

/// Writes to one target. Lives on the thread that made it.
pub struct Writer<'a> {
    target: &'a dyn Target,
    tally: &'a Tally,
    context: &'a Context,
    limit: &'a Limit,
    queue: Queue,
    depth: usize,
    /// By token: the piece on its way, and those that follow from the same buffer.
    chains: HashMap<u64, (Piece, IntoIter<Piece>)>,
    token: u64,
    done: Vec<Completion>,
}

impl<'a> Writer<'a> {
    /// Writes buffers of `pool`, at most `depth` at once.
    ///
    /// # Errors
    /// If the I/O engine cannot be set up.
    pub fn new(
        target: &'a dyn Target,
        pool: &BufferPool,
        depth: usize,
        engine: IoEngine,
        tally: &'a Tally,
        limit: &'a Limit,
        context: &'a Context,
    ) -> Result<Writer<'a>> {
        let driver = target
            .driver(engine, pool, depth as u32)
            .map_err(|error| Error::io("cannot set up I/O on", target.label(), error))?;
        io_engine::tell(&*driver, &*context.observer);
        Ok(Writer {
            target,
            tally,
            context,
            limit,
            queue: Queue::new(driver, target.geometry(), depth as u32),
            depth,
            chains: HashMap::new(),
            token: 0,
            done: Vec::new(),
        })
    }

    /// Starts to write the pieces of `buffer`; waits while as many buffers as may be are on
    /// their way.
    ///
    /// # Errors
    /// `Interrupted`; of this write or an earlier one.
    pub fn write(&mut self, buffer: Buffer, pieces: Vec<Piece>) -> Result<()> {
        self.context.cancel.check()?;
        let bytes = pieces.iter().map(|piece| piece.len as u64).sum();
        self.limit.pass(bytes, &self.context.cancel)?;
        while self.chains.len() >= self.depth {
            self.wait()?;
        }
        self.tally.touch();
        self.start(buffer, pieces.into_iter())?;
        self.poll()
    }

    /// Waits until everything is written.
    ///
    /// # Errors
    /// `Interrupted`; of a write.
    pub fn finish(&mut self) -> Result<()> {
        while !self.chains.is_empty() {
            self.context.cancel.check()?;
            self.wait()?;
        }
        Ok(())
    }

    /// Writes the next piece of the chain.
    fn start(&mut self, buffer: Buffer, mut rest: IntoIter<Piece>) -> Result<()> {
        let Some(piece) = rest.next() else {
            return Ok(());
        };
        self.token += 1;
        let kind = OpKind::Write { buffer, from: piece.from, len: piece.len };
        let op = Op { token: self.token, kind, offset: piece.offset };
        self.chains.insert(self.token, (piece, rest));
        // The queue has room for every chain, and a chain has one write on its way.
        self.queue
            .submit(op)
            .map_err(|_| Error::new(ErrorKind::Internal, "the write queue is full"))
    }

    fn poll(&mut self) -> Result<()> {
        let mut done = std::mem::take(&mut self.done);
        let polled = self.queue.poll(&mut done);
        self.take_in(done, polled)
    }

    fn wait(&mut self) -> Result<()> {
        let mut done = std::mem::take(&mut self.done);
        let waited = self.queue.wait(&mut done);
        self.take_in(done, waited)
    }

    fn take_in(&mut self, mut done: Vec<Completion>, machinery: std::io::Result<()>) -> Result<()> {
        let mut outcome = machinery
            .map_err(|error| Error::io("cannot write the target", self.target.label(), error));
        for completion in done.drain(..) {
            let settled = self.settle(completion);
            outcome = outcome.and(settled);
        }
        self.done = done;
        outcome
    }

    fn settle(&mut self, completion: Completion) -> Result<()> {
        let Some((piece, rest)) = self.chains.remove(&completion.token) else {
            return Err(Error::new(ErrorKind::Internal, "a write completed twice"));
        };
        let range = piece.offset..piece.offset + piece.len as u64;
        completion.result.map_err(|error| {
            Error::io("cannot write the target", self.target.label(), error).at(range)
        })?;
        self.tally.written.fetch_add(piece.len as u64, Ordering::Relaxed);
        self.context.observer.advance(piece.len as u64);
        self.start(completion.buffer, rest)
    }
}
