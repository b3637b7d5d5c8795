//! The byte stream of the log: appended front to back, to a file or to a pipe.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::sync::Arc;

use voltar_format::LogOffset;

use super::Home;
use crate::device::{Completion, Op, OpKind, Queue};
use crate::error::{Error, Result};
use crate::io::buffer::{Buffer, BufferPool};
use crate::options::IoEngine;

/// Bytes per write.
pub const WRITE_LEN: usize = 1 << 20;

/// Shorter buffers are copied: a write of their own would cost more.
const WHOLE_LEN_MIN: usize = 256 << 10;

/// Where the stream goes.
enum Sink {
    Home(Box<HomeSink>),
    Stream(BufWriter<File>),
    Nowhere,
}

struct HomeSink {
    home: Arc<dyn Home>,
    queue: Queue,
    pool: BufferPool,
    /// Being filled; its first byte belongs at `buffer_start`.
    buffer: Option<Buffer>,
    buffer_start: u64,
    done: Vec<Completion>,
    token: u64,
}

/// Appends to the log. Lives on the thread that made it.
pub struct LogWriter {
    position: u64,
    sink: Sink,
}

impl LogWriter {
    /// Appends to `home` from `position`, a multiple of 4096, with up to `depth` writes of 1 MiB
    /// in flight.
    ///
    /// # Errors
    /// If the I/O engine cannot be set up.
    pub fn to_home(
        home: Arc<dyn Home>,
        position: LogOffset,
        engine: IoEngine,
        depth: u32,
    ) -> Result<LogWriter> {
        let set_up = |error| Error::io("cannot set up I/O on", home.label(), error);
        // One more than the depth: a buffer is filled while all others are on their way.
        let pool = BufferPool::new(depth as usize + 1, WRITE_LEN).map_err(set_up)?;
        let driver = home.driver(engine, &pool, depth).map_err(set_up)?;
        let queue = Queue::new(driver, home.geometry(), depth);
        let sink = HomeSink {
            home,
            queue,
            pool,
            buffer: None,
            buffer_start: position.0,
            done: Vec::new(),
            token: 0,
        };
        Ok(LogWriter { position: position.0, sink: Sink::Home(Box::new(sink)) })
    }

    /// Writes to a pipe or an empty file, from the archive's first byte.
    pub fn to_stream(stream: File) -> LogWriter {
        LogWriter { position: 0, sink: Sink::Stream(BufWriter::with_capacity(WRITE_LEN, stream)) }
    }

    /// Counts and throws away: for a dry run.
    pub fn to_nowhere(position: LogOffset) -> LogWriter {
        LogWriter { position: position.0, sink: Sink::Nowhere }
    }

    /// Where the next byte goes.
    pub fn position(&self) -> LogOffset {
        LogOffset(self.position)
    }

    /// Appends bytes.
    ///
    /// # Errors
    /// Of writing: this write's or an earlier one's.
    pub fn append(&mut self, bytes: &[u8]) -> Result<()> {
        match &mut self.sink {
            Sink::Home(sink) => sink.append(self.position, bytes)?,
            Sink::Stream(stream) => stream.write_all(bytes).map_err(pipe_error)?,
            Sink::Nowhere => {}
        }
        self.position += bytes.len() as u64;
        Ok(())
    }

    /// Appends the first `len` bytes of a buffer. Where the home takes writes of any length and
    /// place as they come (it is not written directly), the buffer itself is written and no byte
    /// is copied.
    ///
    /// # Errors
    /// As [`append`](Self::append).
    pub fn append_buffer(&mut self, buffer: Buffer, len: usize) -> Result<()> {
        match &mut self.sink {
            Sink::Home(sink) if !sink.home.geometry().direct && len >= WHOLE_LEN_MIN => {
                sink.submit()?;
                sink.send(buffer, len)?;
                self.position += len as u64;
                Ok(())
            }
            _ => self.append(&buffer[..len]),
        }
    }

    /// Waits until everything appended can be read back.
    ///
    /// # Errors
    /// Of writing.
    pub fn flush(&mut self) -> Result<()> {
        match &mut self.sink {
            Sink::Home(sink) => sink.flush(),
            Sink::Stream(stream) => stream.flush().map_err(pipe_error),
            Sink::Nowhere => Ok(()),
        }
    }

    /// Waits until everything appended is durable.
    ///
    /// # Errors
    /// Of writing or syncing.
    pub fn sync(&mut self) -> Result<()> {
        self.flush()?;
        match &mut self.sink {
            Sink::Home(sink) => sink.home.sync().map_err(|error| {
                Error::io("cannot make the archive durable", sink.home.label(), error)
            }),
            // Of a pipe, whoever reads it makes durable what it was.
            Sink::Stream(stream) => {
                match stream.get_ref().metadata().map_err(pipe_error)?.is_file() {
                    true => stream.get_ref().sync_all().map_err(pipe_error),
                    false => Ok(()),
                }
            }
            Sink::Nowhere => Ok(()),
        }
    }
}

fn pipe_error(error: std::io::Error) -> Error {
    Error::io("cannot write the archive to", "standard output", error)
}

impl HomeSink {
    fn append(&mut self, position: u64, mut bytes: &[u8]) -> Result<()> {
        debug_assert_eq!(position, self.buffer_start + self.filled() as u64);
        while !bytes.is_empty() {
            let start = self.buffer_start;
            let buffer = self.current()?;
            // Writes end at multiples of their length, so that all but the first are aligned.
            let room = WRITE_LEN - (start % WRITE_LEN as u64) as usize - buffer.len();
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            let filled = buffer.len();
            buffer.set_len(filled + now.len());
            buffer[filled..].copy_from_slice(now);
            if now.len() == room {
                self.submit()?;
            }
            bytes = later;
        }
        Ok(())
    }

    fn filled(&self) -> usize {
        self.buffer.as_ref().map_or(0, |buffer| buffer.len())
    }

    fn current(&mut self) -> Result<&mut Buffer> {
        while self.buffer.is_none() {
            self.buffer = self.pool.try_take();
            if let Some(buffer) = &mut self.buffer {
                buffer.set_len(0);
            } else {
                self.reap()?;
            }
        }
        self.buffer.as_mut().ok_or_else(|| {
            Error::new(crate::error::ErrorKind::Internal, "the write buffer vanished")
        })
    }

    /// Sends the buffer being filled on its way.
    fn submit(&mut self) -> Result<()> {
        let Some(buffer) = self.buffer.take().filter(|buffer| !buffer.is_empty()) else {
            return Ok(());
        };
        let len = buffer.len();
        self.send(buffer, len)
    }

    /// Writes the first `len` bytes of `buffer` where the stream stands.
    fn send(&mut self, buffer: Buffer, len: usize) -> Result<()> {
        self.token += 1;
        let kind = OpKind::Write { buffer, from: 0, len };
        let mut op = Op { token: self.token, kind, offset: self.buffer_start };
        self.buffer_start += len as u64;
        while let Err(full) = self.queue.submit(op) {
            op = full;
            self.reap()?;
        }
        let mut done = std::mem::take(&mut self.done);
        let polled = self.queue.poll(&mut done);
        self.done = done;
        polled.map_err(|error| self.error(error))?;
        self.check_done()
    }

    fn reap(&mut self) -> Result<()> {
        let mut done = std::mem::take(&mut self.done);
        let waited = self.queue.wait(&mut done);
        self.done = done;
        waited.map_err(|error| self.error(error))?;
        self.check_done()
    }

    fn check_done(&mut self) -> Result<()> {
        let mut failure = None;
        for completion in self.done.drain(..) {
            if let Err(error) = completion.result {
                let range = completion.offset..completion.offset + completion.buffer.len() as u64;
                failure.get_or_insert((range, error));
            }
        }
        match failure {
            None => Ok(()),
            Some((range, error)) => Err(self.error(error).at(range)),
        }
    }

    fn error(&self, error: std::io::Error) -> Error {
        Error::io("cannot write the archive", self.home.label(), error)
    }

    fn flush(&mut self) -> Result<()> {
        self.submit()?;
        while self.queue.in_flight() > 0 {
            self.reap()?;
        }
        Ok(())
    }
}
