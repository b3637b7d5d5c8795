//! The hot path: one io_uring per device and thread.
//!
//! An operation is a value that owns its buffer. Submission moves it into the table of what is in
//! flight; its place there is the kernel's user data; completion takes it out again. Operations
//! are *staged* first and shown to the kernel in one system call by the next wait, so that what
//! was never shown can simply be dropped.
//!
//! Dropping the driver asks the kernel to cancel what is in flight and waits for it, for
//! [`DRAIN_MAX`] at most. What the kernel still has after that keeps its buffer for ever: memory
//! is leaked rather than given to a new owner while a device may write to it.

use std::collections::VecDeque;
use std::io;
use std::marker::PhantomData;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use io_uring::types::{CancelBuilder, Fd, SubmitArgs, Timespec};
use io_uring::{IoUring, opcode, squeue};
use nix::errno::Errno;

use super::buffer::BufferPool;
use super::op::{Completion, Driver, Op, OpKind};
use super::probe::{self, Setup};
use super::route::{Files, Route};

/// How long a drop waits for the kernel before it leaks the buffers.
pub const DRAIN_MAX: Duration = Duration::from_secs(10);

/// Most operations in flight on one ring; the kernel's own bound is 32768 entries.
pub const DEPTH_MAX: u32 = 4096;

/// How often a busy kernel is asked again, a millisecond apart, before it counts as broken.
const BUSY_MAX: u32 = 5000;

/// User data of a cancellation; never a place in the table.
const CANCEL: u64 = u64::MAX;

/// Places of the descriptors among the ring's registered files.
const BUFFERED_INDEX: i32 = 0;
const DIRECT_INDEX: i32 = 1;

/// A [`Driver`] on io_uring. Lives on the thread that made it.
pub struct RingDriver {
    // Field order is drop order: the ring goes first, and with it whatever the kernel knows of
    // the buffers and files below.
    ring: IoUring,
    /// What is in flight or staged, by place.
    table: Vec<Option<Op>>,
    /// Free places.
    free: Vec<u32>,
    /// Places whose operations the kernel has not been shown.
    staged: VecDeque<u32>,
    files: Files,
    files_registered: bool,
    /// The pool whose memory is registered with the ring, if any.
    registered: Option<BufferPool>,
    setup: Setup,
    /// SINGLE_ISSUER binds the ring to its thread.
    _not_send: PhantomData<*const ()>,
}

impl RingDriver {
    /// A ring for `files` with up to `depth` (1..=4096) operations in flight. Buffers of `pool`
    /// take the fast way; buffers of other pools work too. Call it on the thread that will use
    /// the driver.
    ///
    /// # Errors
    /// What the kernel answered, as [`probe::Unavailable`] in words.
    pub fn new(files: Files, pool: &BufferPool, depth: u32) -> io::Result<Self> {
        let depth = depth.clamp(1, DEPTH_MAX);
        let entries = depth.next_power_of_two().max(8);
        let (ring, setup) = probe::set_up(entries).map_err(probe::explain)?;
        let files_registered = register_files(&ring, &files);
        let registered = register_buffers(&ring, pool).then(|| pool.clone());
        Ok(RingDriver {
            ring,
            table: (0..depth).map(|_| None).collect(),
            free: (0..depth).rev().collect(),
            staged: VecDeque::with_capacity(depth as usize),
            files,
            files_registered,
            registered,
            setup,
            _not_send: PhantomData,
        })
    }

    /// Moves staged operations into the submission queue for as long as it has room.
    fn show_staged(&mut self) {
        while let Some(&place) = self.staged.front() {
            let Some(op) = &self.table[place as usize] else {
                debug_assert!(false, "place {place} is staged but empty");
                self.staged.pop_front();
                continue;
            };
            let entry = self.entry(op).user_data(u64::from(place));
            // SAFETY: the entry's memory belongs to the operation's buffer, `fits` was checked on
            // submission, and the table owns the operation until its completion is reaped (drop
            // leaks it otherwise). The descriptors are kept open by `files`.
            if unsafe { self.ring.submission().push(&entry) }.is_err() {
                return;
            }
            self.staged.pop_front();
        }
    }

    fn entry(&self, op: &Op) -> squeue::Entry {
        let route = self.files.route(op);
        let area = self.registered.as_ref().and_then(|pool| pool.area_of(op.buffer()));
        let (fd, flags) = self.descriptor(route);
        let memory = op.buffer().pointer().wrapping_add(op.from());
        // Buffers are at most 1 GiB long and the operation fits its buffer.
        let len = op.len() as u32;
        let entry = match (&op.kind, area) {
            (OpKind::Read { .. }, Some(area)) => {
                opcode::ReadFixed::new(fd, memory, len, area).offset(op.offset).build()
            }
            (OpKind::Read { .. }, None) => {
                opcode::Read::new(fd, memory, len).offset(op.offset).build()
            }
            (OpKind::Write { .. }, Some(area)) => {
                opcode::WriteFixed::new(fd, memory, len, area).offset(op.offset).build()
            }
            (OpKind::Write { .. }, None) => {
                opcode::Write::new(fd, memory, len).offset(op.offset).build()
            }
        };
        entry.flags(flags)
    }

    fn descriptor(&self, route: Route) -> (Fd, squeue::Flags) {
        match (self.files_registered, route) {
            (true, Route::Buffered) => (Fd(BUFFERED_INDEX), squeue::Flags::FIXED_FILE),
            (true, Route::Direct) => (Fd(DIRECT_INDEX), squeue::Flags::FIXED_FILE),
            (false, route) => (Fd(self.files.file(route).as_raw_fd()), squeue::Flags::empty()),
        }
    }

    /// Takes what is complete out of the table.
    fn reap(&mut self, done: &mut Vec<Completion>) {
        for cqe in self.ring.completion() {
            if cqe.user_data() == CANCEL {
                continue;
            }
            let place = cqe.user_data() as usize;
            let Some(op) = self.table.get_mut(place).and_then(Option::take) else {
                debug_assert!(false, "completion for the empty place {place}");
                continue;
            };
            self.free.push(place as u32);
            let result = usize::try_from(cqe.result())
                .map_err(|_| io::Error::from_raw_os_error(-cqe.result()));
            done.push(op.complete(result));
        }
    }

    /// One system call: shows the kernel what is queued and waits for `want` completions.
    fn enter(&mut self, want: usize, busy: &mut u32) -> io::Result<()> {
        match self.ring.submit_and_wait(want) {
            Ok(_) => Ok(()),
            Err(error) => match error.raw_os_error().map(Errno::from_raw) {
                Some(Errno::EINTR) => Ok(()),
                // Out of memory for requests, or completions unreaped: both pass.
                Some(Errno::EAGAIN | Errno::EBUSY) if *busy < BUSY_MAX => {
                    *busy += 1;
                    std::thread::sleep(Duration::from_millis(1));
                    Ok(())
                }
                _ => Err(error),
            },
        }
    }

    fn is_all_shown(&mut self) -> bool {
        self.staged.is_empty() && self.ring.submission().is_empty()
    }

    /// Gives back what the kernel never saw.
    fn drop_staged(&mut self) {
        for place in std::mem::take(&mut self.staged) {
            self.table[place as usize] = None;
            self.free.push(place);
        }
    }

    /// Cancels and waits, until nothing is in flight or `patience` ends.
    fn drain(&mut self, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        let cancel = opcode::AsyncCancel2::new(CancelBuilder::any()).build().user_data(CANCEL);
        // SAFETY: a cancellation refers to no memory.
        // A full queue only means that nothing is cancelled; the wait below still holds.
        let _ = unsafe { self.ring.submission().push(&cancel) };
        let mut done = Vec::new();
        while self.in_flight() > 0 {
            if Instant::now() >= deadline {
                return false;
            }
            self.enter_briefly();
            self.reap(&mut done);
            done.clear();
        }
        true
    }

    /// Closing a ring lets go of its files and pages some time later, from a kernel worker: a block
    /// device would still be claimed (`EBUSY` for the next exclusive opener) after everything here
    /// is dropped. Asking lets go at once.
    fn unregister(&mut self) {
        let submitter = self.ring.submitter();
        let _ = submitter.unregister_files();
        let _ = submitter.unregister_buffers();
    }

    /// Waits for a completion for some milliseconds; errors are left to the deadline.
    fn enter_briefly(&mut self) {
        let slice = Timespec::new().nsec(20_000_000);
        let result = match self.ring.params().is_feature_ext_arg() {
            true => self.ring.submitter().submit_with_args(1, &SubmitArgs::new().timespec(&slice)),
            false => self.ring.submit(),
        };
        let timed_out = |error: &io::Error| error.raw_os_error() == Some(Errno::ETIME as i32);
        if result.as_ref().err().is_some_and(|error| !timed_out(error))
            || !self.ring.params().is_feature_ext_arg()
        {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Driver for RingDriver {
    fn submit(&mut self, op: Op) -> Result<(), Op> {
        assert!(op.fits(), "an operation of {} bytes does not fit its buffer", op.len());
        let Some(place) = self.free.pop() else {
            return Err(op);
        };
        self.table[place as usize] = Some(op);
        self.staged.push_back(place);
        Ok(())
    }

    fn wait(&mut self, done: &mut Vec<Completion>) -> io::Result<()> {
        let before = done.len();
        let mut busy = 0;
        while self.in_flight() > 0 && (done.len() == before || !self.is_all_shown()) {
            self.show_staged();
            self.enter(usize::from(done.len() == before), &mut busy)?;
            self.reap(done);
        }
        Ok(())
    }

    fn poll(&mut self, done: &mut Vec<Completion>) -> io::Result<()> {
        if self.in_flight() > 0 {
            self.show_staged();
            self.enter(0, &mut 0)?;
            self.reap(done);
        }
        Ok(())
    }

    fn in_flight(&self) -> usize {
        self.table.len() - self.free.len()
    }

    fn describe(&self) -> String {
        let files = if self.files_registered { ", registered files" } else { "" };
        let buffers = if self.registered.is_some() { ", registered buffers" } else { "" };
        format!("io_uring ({}{files}{buffers})", self.setup.words())
    }
}

impl Drop for RingDriver {
    fn drop(&mut self) {
        self.drop_staged();
        if self.drain(DRAIN_MAX) {
            self.unregister();
        } else {
            for op in self.table.drain(..).flatten() {
                std::mem::forget(op);
            }
        }
    }
}

fn register_files(ring: &IoUring, files: &Files) -> bool {
    let direct = files.direct.as_ref().unwrap_or(&files.buffered);
    let fds = [files.buffered.as_raw_fd(), direct.as_raw_fd()];
    ring.submitter().register_files(&fds).is_ok()
}

/// Registers the pool's memory. A refusal (`ENOMEM` under a low `RLIMIT_MEMLOCK`, most likely)
/// costs speed, not function.
fn register_buffers(ring: &IoUring, pool: &BufferPool) -> bool {
    let areas = pool.areas();
    // SAFETY: the areas are the pool's mapping, which outlives the registration: the driver holds
    // a clone of the pool for as long as the ring exists, and after that the kernel holds the
    // pages pinned for as long as it uses them.
    unsafe { ring.submitter().register_buffers(&areas) }.is_ok()
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::OwnedFd;
    use std::sync::Arc;

    use super::*;

    /// A driver over the reading end of a pipe: reads stay in flight until something is written.
    fn on_a_pipe(depth: u32, pool: &BufferPool) -> Option<(RingDriver, OwnedFd)> {
        if probe::probe().is_err() {
            eprintln!("skipped: no io_uring here");
            return None;
        }
        let (read, write) = nix::unistd::pipe().unwrap();
        let files = Files { buffered: Arc::new(File::from(read)), direct: None, block_len: 4096 };
        Some((RingDriver::new(files, pool, depth).unwrap(), write))
    }

    fn read(pool: &BufferPool, token: u64) -> Op {
        // A pipe has no offsets; all ones is "where it stands" (io_uring_prep_read(3)).
        Op { token, kind: OpKind::Read { buffer: pool.take(), len: 4096 }, offset: u64::MAX }
    }

    #[test]
    fn over_full_ring_gives_the_operation_back() {
        let pool = BufferPool::new(3, 4096).unwrap();
        let Some((mut driver, write)) = on_a_pipe(2, &pool) else {
            return;
        };
        driver.submit(read(&pool, 1)).unwrap();
        driver.submit(read(&pool, 2)).unwrap();
        let refused = driver.submit(read(&pool, 3)).unwrap_err();
        assert_eq!((refused.token, driver.in_flight()), (3, 2));
        nix::unistd::write(&write, b"x").unwrap();
        let mut done = Vec::new();
        driver.wait(&mut done).unwrap();
        assert_eq!(done.len(), 1);
        assert_eq!(*done[0].buffer, *b"x");
        driver.submit(refused).unwrap();
    }

    #[test]
    fn drop_with_io_in_flight_gives_every_buffer_back() {
        let pool = BufferPool::new(3, 4096).unwrap();
        let Some((mut driver, _write)) = on_a_pipe(4, &pool) else {
            return;
        };
        driver.submit(read(&pool, 1)).unwrap();
        driver.submit(read(&pool, 2)).unwrap();
        driver.poll(&mut Vec::new()).unwrap();
        // This one the kernel has not been shown.
        driver.submit(read(&pool, 3)).unwrap();
        assert_eq!(pool.available(), 0);
        let start = Instant::now();
        drop(driver);
        assert!(start.elapsed() < DRAIN_MAX / 2);
        assert_eq!(pool.available(), 3);
    }

    #[test]
    fn a_drain_without_patience_leaves_the_operation_with_the_kernel() {
        let pool = BufferPool::new(2, 4096).unwrap();
        let Some((mut driver, write)) = on_a_pipe(2, &pool) else {
            return;
        };
        driver.submit(read(&pool, 1)).unwrap();
        driver.poll(&mut Vec::new()).unwrap();
        // The operation stays the kernel's and the table's; its buffer is nobody else's.
        assert!(!driver.drain(Duration::ZERO));
        assert_eq!((driver.in_flight(), pool.available()), (1, 1));
        drop(write);
        drop(driver);
        assert_eq!(pool.available(), 2);
    }

    #[test]
    fn error_on_submit_is_the_operations() {
        let pool = BufferPool::new(1, 4096).unwrap();
        if probe::probe().is_err() {
            return;
        }
        // A directory cannot be read.
        let folder = Arc::new(File::open("/").unwrap());
        let files = Files { buffered: folder, direct: None, block_len: 4096 };
        let mut driver = RingDriver::new(files, &pool, 1).unwrap();
        driver.submit(Op { offset: 0, ..read(&pool, 5) }).unwrap();
        let mut done = Vec::new();
        driver.wait(&mut done).unwrap();
        let error = done[0].result.as_ref().unwrap_err();
        assert_eq!(error.raw_os_error(), Some(Errno::EISDIR as i32));
        assert_eq!((done[0].token, done[0].buffer.len()), (5, 0));
    }

    #[test]
    fn a_signal_during_a_wait_is_survived() {
        let pool = BufferPool::new(1, 4096).unwrap();
        let Some((mut driver, write)) = on_a_pipe(1, &pool) else {
            return;
        };
        driver.submit(read(&pool, 1)).unwrap();
        // SAFETY: it takes nothing and cannot fail.
        let waiter = unsafe { nix::libc::pthread_self() };
        let interrupter = interrupt_then_write(waiter, write);
        let mut done = Vec::new();
        driver.wait(&mut done).unwrap();
        assert_eq!(*done[0].buffer, *b"after");
        interrupter.join().unwrap();
    }

    fn interrupt_then_write(
        waiter: nix::libc::pthread_t,
        write: OwnedFd,
    ) -> std::thread::JoinHandle<()> {
        use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
        extern "C" fn ignore(_: nix::libc::c_int) {}
        // Without SA_RESTART, so that the system call really returns EINTR.
        let action = SigAction::new(SigHandler::Handler(ignore), SaFlags::empty(), SigSet::empty());
        // SAFETY: the handler does nothing, which is safe at any moment.
        unsafe { sigaction(Signal::SIGUSR2, &action) }.unwrap();
        std::thread::spawn(move || {
            for _ in 0..5 {
                std::thread::sleep(Duration::from_millis(10));
                // SAFETY: the waiter joins this thread, so it still exists.
                let sent = unsafe { nix::libc::pthread_kill(waiter, Signal::SIGUSR2 as i32) };
                assert_eq!(sent, 0);
            }
            nix::unistd::write(&write, b"after").unwrap();
        })
    }

    #[test]
    fn a_foreign_buffer_takes_the_unregistered_way() {
        let pool = BufferPool::new(1, 4096).unwrap();
        let other = BufferPool::new(1, 4096).unwrap();
        let Some((mut driver, write)) = on_a_pipe(2, &pool) else {
            return;
        };
        driver.submit(read(&other, 1)).unwrap();
        nix::unistd::write(&write, b"y").unwrap();
        let mut done = Vec::new();
        driver.wait(&mut done).unwrap();
        assert_eq!(*done[0].buffer, *b"y");
    }

    #[test]
    fn it_says_how_it_works() {
        let pool = BufferPool::new(1, 4096).unwrap();
        let Some((driver, _write)) = on_a_pipe(1, &pool) else {
            return;
        };
        assert!(driver.describe().starts_with("io_uring ("), "{}", driver.describe());
    }
}
