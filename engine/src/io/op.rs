//! What is asked of a device, and what comes back.

use std::io;

use super::buffer::Buffer;

/// One operation. It owns its buffer from submission to completion.
#[derive(Debug)]
pub struct Op {
    /// Chosen by the caller, unique among its operations in flight; returned on completion.
    pub token: u64,
    /// What to do.
    pub kind: OpKind,
    /// First byte on the device.
    pub offset: u64,
}

/// What to do.
#[derive(Debug)]
pub enum OpKind {
    /// Fill `buffer[..len]` from the device. A completion with fewer bytes means that the device
    /// ends there.
    Read {
        /// Receives the bytes; its capacity is at least `len`.
        buffer: Buffer,
        /// How many bytes.
        len: usize,
    },
    /// Write `buffer[from..from + len]` to the device, all of it.
    Write {
        /// Holds the bytes.
        buffer: Buffer,
        /// Where in the buffer they start.
        from: usize,
        /// How many bytes.
        len: usize,
    },
}

/// A finished operation.
#[derive(Debug)]
pub struct Completion {
    /// The operation's token.
    pub token: u64,
    /// First byte on the device, as submitted.
    pub offset: u64,
    /// The operation's buffer, back with its owner. After a read its length is what was read.
    pub buffer: Buffer,
    /// Bytes read or written, or why not.
    pub result: io::Result<usize>,
}

impl Op {
    /// How many bytes it moves.
    pub fn len(&self) -> usize {
        match &self.kind {
            OpKind::Read { len, .. } | OpKind::Write { len, .. } => *len,
        }
    }

    /// The same operation on `count` bytes.
    pub fn with_len(mut self, count: usize) -> Self {
        match &mut self.kind {
            OpKind::Read { len, .. } | OpKind::Write { len, .. } => *len = count,
        }
        self
    }

    /// Whether it moves no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Where in its buffer its bytes start; 0 for a read.
    pub fn from(&self) -> usize {
        match &self.kind {
            OpKind::Read { .. } => 0,
            OpKind::Write { from, .. } => *from,
        }
    }

    /// Its buffer.
    pub fn buffer(&self) -> &Buffer {
        match &self.kind {
            OpKind::Read { buffer, .. } | OpKind::Write { buffer, .. } => buffer,
        }
    }

    /// Whether its bytes lie inside its buffer. A driver refuses to start one whose do not.
    pub fn fits(&self) -> bool {
        self.from().checked_add(self.len()).is_some_and(|end| end <= self.buffer().capacity())
    }

    /// Does it: `read` fills the bytes it is given, `write` takes them from the buffer, both at
    /// this offset and saying how many they were.
    pub fn perform(
        mut self,
        read: impl FnOnce(&mut [u8], u64) -> io::Result<usize>,
        write: impl FnOnce(&[u8], u64) -> io::Result<usize>,
    ) -> Completion {
        let offset = self.offset;
        let result = match &mut self.kind {
            OpKind::Read { buffer, len } => {
                buffer.set_len(*len);
                read(buffer, offset)
            }
            OpKind::Write { buffer, from, len } => {
                // The caller's length may be less than what is written from; show the bytes alone.
                let shown = buffer.len();
                buffer.set_len(*from + *len);
                let result = write(&buffer[*from..], offset);
                buffer.set_len(shown);
                result
            }
        };
        self.complete(result)
    }

    /// The completion of this operation with `result`. After a read the buffer's length is what
    /// was read, 0 after an error.
    pub fn complete(self, result: io::Result<usize>) -> Completion {
        let (token, offset) = (self.token, self.offset);
        let buffer = match self.kind {
            OpKind::Read { mut buffer, .. } => {
                buffer.set_len(result.as_ref().map_or(0, |count| *count));
                buffer
            }
            OpKind::Write { buffer, .. } => buffer,
        };
        Completion { token, offset, buffer, result }
    }
}

/// The data plane of one device on one thread. Operations may complete in any order, in part, or
/// with an error; `device::Queue` deals with that.
pub trait Driver {
    /// Takes an operation, or gives it back: when `depth` operations are in flight already, or as much as the
    /// device is to have at once. With none in flight, any is taken. The kernel may not hear of it before the
    /// next [`wait`](Driver::wait) or [`poll`](Driver::poll): whoever goes to sleep on something else calls
    /// `poll` first.
    fn submit(&mut self, op: Op) -> Result<(), Op>;

    /// Waits until at least one operation is complete (returns at once if none is in flight) and
    /// appends all that are complete to `done`. An error here is one of the machinery, not of an
    /// operation; the driver is then unusable.
    fn wait(&mut self, done: &mut Vec<Completion>) -> io::Result<()>;

    /// Starts what was submitted and appends what is already complete to `done`, without waiting.
    /// Errors are as in [`wait`](Driver::wait).
    fn poll(&mut self, done: &mut Vec<Completion>) -> io::Result<()>;

    /// Operations in flight.
    fn in_flight(&self) -> usize;

    /// Why it is not the one that was to be expected, in words for the user.
    fn notice(&self) -> Option<&str> {
        None
    }

    /// How it works, for reports: `io_uring` with its flags, or `blocking`.
    fn describe(&self) -> String;
}
