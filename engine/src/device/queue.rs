//! Operations that complete whole or fail: a driver with the retry rules.
//!
//! A driver may complete an operation in part, or with an error that passes. The queue issues it
//! in pieces where that is of use, and re-issues the rest:
//!
//! * `EINTR`, `EAGAIN` and `ECANCELED` (the kernel's, not the device's): the same again;
//! * a short transfer: the rest, from the last block boundary, so that it stays on the direct
//!   way; if that ends at the same byte again, the exact rest, which goes the buffered way and
//!   tells a device's end (0 bytes) from a sector that fails (an error);
//! * a transfer that starts at a block boundary and does not end at one, on a device with a direct
//!   way: its whole blocks, and then the rest, so that only that goes the buffered way;
//! * a read of 0 bytes: the device ends here, the operation is short;
//! * a write of 0 bytes: an error of kind `WriteZero`.
//!
//! Sixteen attempts without progress end an operation with what the last one said.

use std::collections::VecDeque;
use std::io;
use std::thread;
use std::time::Duration;

use nix::errno::Errno;

use super::Geometry;
use crate::io::buffer::Buffer;
use crate::io::op::{Completion, Driver, Op, OpKind};

/// Attempts without progress before an operation fails.
pub const ATTEMPTS_MAX: u32 = 16;

/// Keeps up to `depth` operations in flight on one device, on the thread that made it.
pub struct Queue {
    driver: Box<dyn Driver>,
    block_len: u64,
    /// Whether whole blocks go another way than the rest.
    direct: bool,
    /// What is in flight, by place; the place is the driver's token.
    pending: Vec<Option<Pending>>,
    free: Vec<usize>,
    /// Rests that the driver had no room for; shown to it on the next wait.
    again: VecDeque<Op>,
    /// Reused between waits.
    reaped: Vec<Completion>,
}

/// One operation as the caller knows it, and how far it is.
struct Pending {
    token: u64,
    offset: u64,
    action: Action,
    len: usize,
    /// Bytes known to be transferred, from the start.
    done: usize,
    /// Where the transfer in flight starts.
    issued: usize,
    attempts: u32,
    /// What a write's buffer said its length was; restored on completion.
    shown: usize,
}

#[derive(Clone, Copy)]
enum Action {
    Read,
    Write { from: usize },
}

/// What is to happen with a transfer that came back.
enum Verdict {
    Finish(io::Result<usize>),
    Again { from: usize },
}

impl Queue {
    /// A queue on `driver` for up to `depth` operations, no more than the driver was made for.
    pub fn new(driver: Box<dyn Driver>, geometry: Geometry, depth: u32) -> Self {
        let depth = depth.max(1) as usize;
        Queue {
            driver,
            block_len: u64::from(geometry.block_len.max(1)),
            direct: geometry.direct,
            pending: (0..depth).map(|_| None).collect(),
            free: (0..depth).rev().collect(),
            again: VecDeque::new(),
            reaped: Vec::with_capacity(depth),
        }
    }

    /// Takes an operation, or gives it back when the queue is full. Its token is unique among
    /// those in flight. See [`Driver::submit`] for when the device hears of it.
    pub fn submit(&mut self, op: Op) -> Result<(), Op> {
        debug_assert!(
            self.pending.iter().flatten().all(|pending| pending.token != op.token),
            "token {} is in flight already",
            op.token
        );
        let Some(place) = self.free.pop() else {
            return Err(op);
        };
        let pending = Pending::new(&op);
        match self.driver.submit(self.cut(Op { token: place as u64, ..op })) {
            Ok(()) => {
                self.pending[place] = Some(pending);
                Ok(())
            }
            Err(op) => {
                self.free.push(place);
                Err(Op { token: pending.token, ..op.with_len(pending.len) })
            }
        }
    }

    /// Waits until at least one operation is whole or has failed (returns at once if none is in
    /// flight) and appends all such to `done`.
    ///
    /// # Errors
    /// Of the machinery, not of an operation; the queue is then unusable.
    pub fn wait(&mut self, done: &mut Vec<Completion>) -> io::Result<()> {
        let before = done.len();
        while self.in_flight() > 0 && done.len() == before {
            self.show_again();
            let mut reaped = std::mem::take(&mut self.reaped);
            let waited = self.driver.wait(&mut reaped);
            self.settle(&mut reaped, done);
            self.reaped = reaped;
            waited?;
        }
        // Rests that were just re-issued start now, not when the caller comes back.
        self.start_again(done)
    }

    /// Starts what was submitted and appends what is already whole or failed, without waiting.
    ///
    /// # Errors
    /// As [`wait`](Self::wait).
    pub fn poll(&mut self, done: &mut Vec<Completion>) -> io::Result<()> {
        self.show_again();
        let mut reaped = std::mem::take(&mut self.reaped);
        let polled = self.driver.poll(&mut reaped);
        self.settle(&mut reaped, done);
        self.reaped = reaped;
        polled
    }

    /// Operations in flight.
    pub fn in_flight(&self) -> usize {
        self.pending.len() - self.free.len()
    }

    /// Whether [`submit`](Self::submit) would give any operation back. A driver may give back what is too much
    /// for its device when this is false.
    pub fn is_full(&self) -> bool {
        self.free.is_empty()
    }

    /// How the driver works, for reports.
    pub fn describe(&self) -> String {
        self.driver.describe()
    }

    /// The whole blocks that `op` begins with, if it has any and more than those.
    fn cut(&self, op: Op) -> Op {
        let whole = op.len() as u64 / self.block_len * self.block_len;
        match self.direct && whole > 0 && op.offset.is_multiple_of(self.block_len) {
            true => op.with_len(whole as usize),
            false => op,
        }
    }

    fn start_again(&mut self, done: &mut Vec<Completion>) -> io::Result<()> {
        match self.again.is_empty() {
            true => Ok(()),
            false => self.poll(done),
        }
    }

    fn show_again(&mut self) {
        while let Some(op) = self.again.pop_front() {
            if let Err(op) = self.driver.submit(op) {
                self.again.push_front(op);
                return;
            }
        }
    }

    fn settle(&mut self, reaped: &mut Vec<Completion>, done: &mut Vec<Completion>) {
        for completion in reaped.drain(..) {
            let place = completion.token as usize;
            let Some(pending) = self.pending.get_mut(place).and_then(Option::take) else {
                debug_assert!(false, "the driver completed {place}, which is not in flight");
                continue;
            };
            match pending.judge(&completion.result, self.block_len) {
                (_, Verdict::Finish(result)) => {
                    self.free.push(place);
                    done.push(pending.finish(completion.buffer, result));
                }
                (done_now, Verdict::Again { from }) => {
                    let progress = done_now > pending.done;
                    let pending = pending.moved_on(done_now, from, progress);
                    pending.be_patient();
                    let rest = self.cut(pending.rest(place as u64, completion.buffer));
                    self.again.push_back(rest);
                    self.pending[place] = Some(pending);
                }
            }
        }
    }
}

impl Pending {
    fn new(op: &Op) -> Self {
        let action = match &op.kind {
            OpKind::Read { .. } => Action::Read,
            OpKind::Write { from, .. } => Action::Write { from: *from },
        };
        Pending {
            token: op.token,
            offset: op.offset,
            action,
            len: op.len(),
            done: 0,
            issued: 0,
            attempts: 0,
            shown: op.buffer().len(),
        }
    }

    /// How far the operation is now, and what follows.
    fn judge(&self, result: &io::Result<usize>, block_len: u64) -> (usize, Verdict) {
        let moved = match result {
            Ok(moved) => *moved,
            Err(error) => return (self.done, self.judge_error(error)),
        };
        let end = (self.issued + moved).min(self.len);
        let done = end.max(self.done);
        if done == self.len {
            return (done, Verdict::Finish(Ok(done)));
        }
        // Only a transfer that starts at the first missing byte can say that none follow.
        if moved == 0 && self.issued == self.done {
            return (done, Verdict::Finish(self.ended()));
        }
        if done == self.done && self.attempts + 1 >= ATTEMPTS_MAX {
            return (done, Verdict::Finish(Err(stuck())));
        }
        let boundary = self.boundary(done, block_len);
        let from = if done > self.done && boundary > self.issued { boundary } else { done };
        (done, Verdict::Again { from })
    }

    fn judge_error(&self, error: &io::Error) -> Verdict {
        let errno = error.raw_os_error().map(Errno::from_raw);
        let passes = matches!(errno, Some(Errno::EINTR | Errno::EAGAIN | Errno::ECANCELED));
        match passes && self.attempts + 1 < ATTEMPTS_MAX {
            true => Verdict::Again { from: self.issued },
            false => Verdict::Finish(Err(copy_of(error))),
        }
    }

    /// The last block boundary of the device at or before byte `done` of the operation.
    fn boundary(&self, done: usize, block_len: u64) -> usize {
        let into_block = (self.offset + done as u64) % block_len;
        done.saturating_sub(into_block as usize)
    }

    fn ended(&self) -> io::Result<usize> {
        match self.action {
            Action::Read => Ok(self.done),
            Action::Write { .. } => Err(io::Error::new(
                io::ErrorKind::WriteZero,
                "the device accepted none of the bytes",
            )),
        }
    }

    fn moved_on(mut self, done: usize, issued: usize, progress: bool) -> Self {
        self.done = done;
        self.issued = issued;
        self.attempts = if progress { 0 } else { self.attempts + 1 };
        self
    }

    /// The operation for what is missing.
    fn rest(&self, token: u64, mut buffer: Buffer) -> Op {
        let offset = self.offset + self.issued as u64;
        let len = self.len - self.issued;
        let kind = match self.action {
            Action::Read => {
                buffer.set_window(self.issued);
                OpKind::Read { buffer, len }
            }
            Action::Write { from } => OpKind::Write { buffer, from: from + self.issued, len },
        };
        Op { token, kind, offset }
    }

    fn finish(self, mut buffer: Buffer, result: io::Result<usize>) -> Completion {
        match self.action {
            Action::Read => {
                buffer.set_window(0);
                buffer.set_len(result.as_ref().map_or(0, |count| *count));
            }
            Action::Write { .. } => buffer.set_len(self.shown),
        }
        Completion { token: self.token, offset: self.offset, buffer, result }
    }

    /// Gives a busy kernel time; the first attempts cost nothing.
    fn be_patient(&self) {
        if self.attempts > 4 {
            thread::sleep(Duration::from_millis(u64::from(self.attempts)));
        }
    }
}

fn stuck() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "the device makes no progress on a short transfer")
}

/// The same error again: operating system errors keep their number.
fn copy_of(error: &io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(errno) => io::Error::from_raw_os_error(errno),
        None => io::Error::new(error.kind(), error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::memory::{self, MemoryDevice};
    use crate::device::test_rig::{pattern, read_one, write_one};
    use crate::device::{Device, Geometry};
    use crate::io::buffer::BufferPool;

    /// What the driver does with the next operation.
    enum Act {
        /// Fails with this error number.
        Fail(Errno),
        /// Moves at most so many bytes.
        Short(usize),
    }

    /// Follows a script, then behaves.
    struct Scripted {
        device: MemoryDevice,
        script: VecDeque<Act>,
        queued: VecDeque<Op>,
        depth: usize,
        issued: std::sync::Arc<std::sync::Mutex<Vec<(u64, usize)>>>,
    }

    impl Driver for Scripted {
        fn submit(&mut self, op: Op) -> Result<(), Op> {
            if self.queued.len() == self.depth {
                return Err(op);
            }
            self.issued.lock().unwrap().push((op.offset, op.len()));
            self.queued.push_back(op);
            Ok(())
        }

        fn wait(&mut self, done: &mut Vec<Completion>) -> io::Result<()> {
            let Some(mut op) = self.queued.pop_front() else {
                return Ok(());
            };
            let completion = match self.script.pop_front() {
                Some(Act::Fail(errno)) => op.complete(Err(errno.into())),
                Some(Act::Short(most)) => {
                    match &mut op.kind {
                        OpKind::Read { len, .. } | OpKind::Write { len, .. } => {
                            *len = (*len).min(most);
                        }
                    }
                    memory::run(&self.device, op)
                }
                None => memory::run(&self.device, op),
            };
            done.push(completion);
            Ok(())
        }

        fn poll(&mut self, _done: &mut Vec<Completion>) -> io::Result<()> {
            Ok(())
        }

        fn in_flight(&self) -> usize {
            self.queued.len()
        }

        fn describe(&self) -> String {
            "scripted".to_owned()
        }
    }

    struct Rig {
        queue: Queue,
        pool: BufferPool,
        device: MemoryDevice,
        issued: std::sync::Arc<std::sync::Mutex<Vec<(u64, usize)>>>,
    }

    fn rig(bytes: &[u8], script: Vec<Act>) -> Rig {
        let device = MemoryDevice::from_bytes(bytes);
        let issued = std::sync::Arc::default();
        let driver = Scripted {
            device: device.clone(),
            script: script.into(),
            queued: VecDeque::new(),
            depth: 2,
            issued: std::sync::Arc::clone(&issued),
        };
        let geometry = Geometry { block_len: 4096, direct: true };
        let queue = Queue::new(Box::new(driver), geometry, 2);
        Rig { queue, pool: BufferPool::new(3, 1 << 16).unwrap(), device, issued }
    }

    fn read_op(pool: &BufferPool, token: u64) -> Op {
        Op { token, kind: OpKind::Read { buffer: pool.take(), len: 4096 }, offset: 0 }
    }

    #[test]
    fn short_read_is_completed_from_the_last_block_boundary() {
        let bytes = pattern(5 * 4096, 1);
        let mut rig = rig(&bytes, vec![Act::Short(4096 * 2 + 700), Act::Short(4096)]);
        let read = read_one(&mut rig.queue, &rig.pool, 0, bytes.len());
        assert_eq!(read.result.unwrap(), bytes.len());
        assert!(*read.buffer == bytes[..]);
        let expected = [(0, 5 * 4096), (2 * 4096, 3 * 4096), (3 * 4096, 2 * 4096)];
        assert_eq!(*rig.issued.lock().unwrap(), expected);
    }

    #[test]
    fn a_ragged_end_goes_by_itself() {
        let bytes = pattern(3 * 4096 + 700, 4);
        let mut rig = rig(&bytes, vec![]);
        let read = read_one(&mut rig.queue, &rig.pool, 4096, bytes.len() - 4096);
        assert!(*read.buffer == bytes[4096..]);
        write_one(&mut rig.queue, &rig.pool, 0, &[9; 4096 + 5]).result.unwrap();
        let mut head = [0; 4096 + 6];
        rig.device.read_at(&mut head, 0).unwrap();
        assert!(head[..4096 + 5] == [9; 4096 + 5] && head[4096 + 5] == bytes[4096 + 5]);
        let expected = [(4096, 2 * 4096), (3 * 4096, 700), (0, 4096), (4096, 5)];
        assert_eq!(*rig.issued.lock().unwrap(), expected);
    }

    #[test]
    fn short_read_that_stops_at_the_same_byte_goes_on_from_there() {
        let bytes = pattern(3 * 4096, 2);
        let mut rig = rig(&bytes, vec![Act::Short(5000), Act::Short(5000 - 4096)]);
        let read = read_one(&mut rig.queue, &rig.pool, 0, bytes.len());
        assert_eq!(read.result.unwrap(), bytes.len());
        assert!(*read.buffer == bytes[..]);
        assert_eq!(rig.issued.lock().unwrap()[2], (5000, bytes.len() - 5000));
    }

    #[test]
    fn reads_across_the_end_are_short() {
        let bytes = pattern(4096 + 100, 3);
        let mut rig = rig(&bytes, vec![]);
        let read = read_one(&mut rig.queue, &rig.pool, 0, 1 << 16);
        assert_eq!(read.result.unwrap(), bytes.len());
        assert!(*read.buffer == bytes[..]);
    }

    #[test]
    fn a_bad_sector_behind_a_short_read_is_an_error_not_an_end() {
        let script = vec![Act::Short(5000), Act::Short(5000 - 4096), Act::Fail(Errno::EIO)];
        let mut rig = rig(&pattern(3 * 4096, 4), script);
        let read = read_one(&mut rig.queue, &rig.pool, 0, 3 * 4096);
        assert_eq!(read.result.unwrap_err().raw_os_error(), Some(Errno::EIO as i32));
        assert_eq!((read.offset, read.buffer.len(), read.buffer.capacity()), (0, 0, 1 << 16));
    }

    #[test]
    fn eintr_eagain_and_ecanceled_are_tried_again() {
        let script = [Errno::EINTR, Errno::EAGAIN, Errno::ECANCELED].map(Act::Fail).into();
        let mut rig = rig(&[0; 8192], script);
        let written = write_one(&mut rig.queue, &rig.pool, 0, &[3; 8192]);
        assert_eq!(written.result.unwrap(), 8192);
        assert_eq!(rig.device.bytes(), [3; 8192]);
    }

    #[test]
    fn attempts_are_bounded() {
        let script = (0..100).map(|_| Act::Fail(Errno::EAGAIN)).collect();
        let mut rig = rig(&[0; 4096], script);
        let read = read_one(&mut rig.queue, &rig.pool, 0, 4096);
        assert_eq!(read.result.unwrap_err().raw_os_error(), Some(Errno::EAGAIN as i32));
        assert_eq!(rig.issued.lock().unwrap().len(), ATTEMPTS_MAX as usize);
    }

    #[test]
    fn short_write_is_completed_and_the_buffer_comes_back_as_it_was() {
        let mut rig = rig(&[0; 3 * 4096], vec![Act::Short(4100), Act::Short(1)]);
        let mut buffer = rig.pool.take();
        buffer.fill_from(&pattern(4096 * 4, 5));
        let op =
            Op { token: 9, kind: OpKind::Write { buffer, from: 512, len: 3 * 4096 }, offset: 0 };
        rig.queue.submit(op).unwrap();
        let mut done = Vec::new();
        rig.queue.wait(&mut done).unwrap();
        let written = &done[0];
        assert_eq!((written.token, written.buffer.len()), (9, 4096 * 4));
        assert_eq!(*written.result.as_ref().unwrap(), 3 * 4096);
        assert!(rig.device.bytes() == pattern(4096 * 4, 5)[512..512 + 3 * 4096]);
    }

    #[test]
    fn a_write_of_nothing_is_write_zero() {
        let mut rig = rig(&[0; 4096], vec![Act::Short(0)]);
        let written = write_one(&mut rig.queue, &rig.pool, 0, &[1; 4096]);
        assert_eq!(written.result.unwrap_err().kind(), io::ErrorKind::WriteZero);
    }

    #[test]
    fn error_of_the_device_is_the_operations() {
        let mut rig = rig(&[0; 4096], vec![Act::Fail(Errno::EIO)]);
        let read = read_one(&mut rig.queue, &rig.pool, 0, 4096);
        assert_eq!(read.result.unwrap_err().raw_os_error(), Some(Errno::EIO as i32));
        assert_eq!(rig.queue.in_flight(), 0);
        assert_eq!(read_one(&mut rig.queue, &rig.pool, 0, 4096).result.unwrap(), 4096);
    }

    #[test]
    fn over_full_queue_gives_the_operation_back() {
        let mut rig = rig(&[0; 4096], vec![]);
        rig.queue.submit(read_op(&rig.pool, 1)).unwrap();
        rig.queue.submit(read_op(&rig.pool, 2)).unwrap();
        let refused = rig.queue.submit(read_op(&rig.pool, 3)).unwrap_err();
        assert_eq!(refused.token, 3);
        assert!(rig.queue.is_full());
        let mut done = Vec::new();
        while rig.queue.in_flight() > 0 {
            rig.queue.wait(&mut done).unwrap();
        }
        assert_eq!(done.iter().map(|completion| completion.token).collect::<Vec<_>>(), [1, 2]);
        rig.queue.submit(refused).unwrap();
    }

    #[test]
    #[cfg(debug_assertions)]
    #[should_panic(expected = "token 1 is in flight already")]
    fn duplicate_token_is_a_defect() {
        let mut rig = rig(&[0; 4096], vec![]);
        rig.queue.submit(read_op(&rig.pool, 1)).unwrap();
        let _ = rig.queue.submit(read_op(&rig.pool, 1));
    }

    #[test]
    fn waiting_for_nothing_returns_at_once() {
        let mut rig = rig(&[0; 4096], vec![]);
        let mut done = Vec::new();
        rig.queue.wait(&mut done).unwrap();
        assert!(done.is_empty());
        assert_eq!(rig.device.geometry().block_len, 4096);
    }
}
