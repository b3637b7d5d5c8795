//! Transfers over stream sockets into and out of memory that belongs to the caller: on a ring, or
//! on `poll(2)` where there is none.
//!
//! A transfer owns its memory from start to finish, as an operation on a device does. Each socket
//! has at most one transfer in each direction, so that bytes keep their order.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use io_uring::types::{Fd, SubmitArgs, Timespec};
use io_uring::{IoUring, opcode, squeue};
use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::IoEngine;
use super::buffer::Buffer;
use super::probe;

/// How long a drop waits for the kernel before it leaks the memory.
const DRAIN_MAX: Duration = Duration::from_secs(10);

/// Entries of the ring: two transfers for each of up to 31 sockets, and the waker.
const ENTRIES: u32 = 64;

/// Most sockets at a time.
pub const SOCKETS_MAX: usize = 31;

/// User data of the poll for wake-ups; never a place in the table.
const WAKE: u64 = u64::MAX;

/// A connected stream.
#[derive(Debug)]
pub enum Stream {
    /// TCP.
    Tcp(TcpStream),
    /// A Unix domain socket.
    Unix(UnixStream),
}

impl Stream {
    /// Bounds how long one read and one write may block; `None`: for ever.
    ///
    /// # Errors
    /// The system's.
    pub fn set_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        match self {
            Stream::Tcp(stream) => {
                stream.set_read_timeout(timeout)?;
                stream.set_write_timeout(timeout)
            }
            Stream::Unix(stream) => {
                stream.set_read_timeout(timeout)?;
                stream.set_write_timeout(timeout)
            }
        }
    }

    fn set_nonblocking(&self, nonblocking: bool) -> io::Result<()> {
        match self {
            Stream::Tcp(stream) => stream.set_nonblocking(nonblocking),
            Stream::Unix(stream) => stream.set_nonblocking(nonblocking),
        }
    }

    /// Ends the connection: what is in flight on it finishes at once.
    fn shut_down(&self) {
        // Fails if the other side was faster.
        let _ = match self {
            Stream::Tcp(stream) => stream.shutdown(Shutdown::Both),
            Stream::Unix(stream) => stream.shutdown(Shutdown::Both),
        };
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Stream::Tcp(stream) => stream.as_fd(),
            Stream::Unix(stream) => stream.as_fd(),
        }
    }
}

impl Read for &Stream {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        match self {
            Stream::Tcp(stream) => (&*stream).read(bytes),
            Stream::Unix(stream) => (&*stream).read(bytes),
        }
    }
}

impl Write for &Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Stream::Tcp(stream) => (&*stream).write(bytes),
            Stream::Unix(stream) => (&*stream).write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Read for Stream {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        (&*self).read(bytes)
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        (&*self).write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Memory of a transfer. What counts are the bytes that it derefs to.
#[derive(Debug)]
pub enum Memory {
    /// On the heap.
    Bytes(Vec<u8>),
    /// Of a pool.
    Pool(Buffer),
}

impl Memory {
    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        match self {
            Memory::Bytes(bytes) => bytes,
            Memory::Pool(buffer) => buffer,
        }
    }

    /// The bytes, to be filled.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        match self {
            Memory::Bytes(bytes) => bytes,
            Memory::Pool(buffer) => buffer,
        }
    }
}

/// Which of the sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SocketId(u32);

/// Which way bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the socket into the memory.
    Receive,
    /// From the memory into the socket.
    Send,
}

/// Bytes on their way.
#[derive(Debug)]
pub struct Transfer {
    /// Over which socket.
    pub socket: SocketId,
    /// Which way.
    pub direction: Direction,
    /// Their memory.
    pub memory: Memory,
    /// Which of the memory's bytes; not empty.
    pub range: Range<usize>,
}

/// A transfer that came back.
#[derive(Debug)]
pub struct Finished {
    /// The transfer, with its memory.
    pub transfer: Transfer,
    /// How many bytes went, which may be fewer; 0 of a receive: the other side ended the stream.
    pub result: io::Result<usize>,
}

/// Transfers over some sockets. Lives on the thread that made it.
pub trait Sockets {
    /// Takes a socket in.
    ///
    /// # Errors
    /// If there are too many, and the system's.
    fn add(&mut self, stream: Stream) -> io::Result<SocketId>;

    /// Ends a socket's connection. What is in flight on it finishes soon, with whatever result.
    fn close(&mut self, socket: SocketId);

    /// Starts a transfer. A socket has one in each direction at most.
    ///
    /// # Panics
    /// If the range does not lie within the memory.
    fn start(&mut self, transfer: Transfer);

    /// Waits until a transfer finishes, somebody wakes it, or `patience` ends; appends what is
    /// finished.
    ///
    /// # Errors
    /// Of the machinery, not of a transfer.
    fn wait(&mut self, patience: Duration, finished: &mut Vec<Finished>) -> io::Result<()>;

    /// How it works, for reports.
    fn describe(&self) -> String;

    /// Why it is not what was to be expected, in words for the user.
    fn notice(&self) -> Option<&str> {
        None
    }
}

/// Ends a wait from another thread.
#[derive(Clone, Debug)]
pub struct Waker(Arc<EventFd>);

impl Waker {
    /// A new one.
    ///
    /// # Errors
    /// The system's.
    pub fn new() -> io::Result<Waker> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        Ok(Waker(Arc::new(EventFd::from_flags(flags)?)))
    }

    /// Ends the wait that is on, or the next one.
    pub fn wake(&self) {
        // Fails only if 2^64 wake-ups wait already.
        let _ = self.0.write(1);
    }

    fn clear(&self) {
        // Fails if nobody woke.
        let _ = self.0.read();
    }
}

/// Sockets on `engine`, which `waker` wakes.
///
/// # Errors
/// If `engine` is io_uring and the kernel refuses it.
pub fn sockets(engine: IoEngine, waker: &Waker) -> io::Result<Box<dyn Sockets>> {
    match engine {
        IoEngine::Blocking => Ok(Box::new(PolledSockets::new(waker, None))),
        IoEngine::Uring => Ok(Box::new(RingSockets::new(waker)?)),
        IoEngine::Auto => Ok(match RingSockets::new(waker) {
            Ok(ring) => Box::new(ring),
            Err(why) => Box::new(PolledSockets::new(waker, Some(probe::falling_back(&why)))),
        }),
    }
}

/// The sockets that are open.
#[derive(Default)]
struct Open {
    streams: HashMap<SocketId, Arc<Stream>>,
    next: u32,
}

impl Open {
    fn add(&mut self, stream: Stream) -> io::Result<SocketId> {
        if self.streams.len() >= SOCKETS_MAX {
            return Err(io::Error::other("too many connections"));
        }
        let id = SocketId(self.next);
        self.next += 1;
        self.streams.insert(id, Arc::new(stream));
        Ok(id)
    }

    fn close(&mut self, id: SocketId) {
        if let Some(stream) = self.streams.remove(&id) {
            stream.shut_down();
        }
    }

    /// The socket of a transfer that may start.
    fn of(&self, transfer: &Transfer) -> Option<Arc<Stream>> {
        let (range, room) = (&transfer.range, transfer.memory.bytes().len());
        let fits = range.start < range.end && range.end <= room;
        assert!(fits, "a transfer of {range:?} does not fit {room} bytes");
        self.streams.get(&transfer.socket).cloned()
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.streams.values().for_each(|stream| stream.shut_down());
    }
}

/// The end of a transfer over a socket that was closed before it started.
fn refused(transfer: Transfer) -> Finished {
    Finished { transfer, result: Err(io::ErrorKind::NotConnected.into()) }
}

/// [`Sockets`] on io_uring.
struct RingSockets {
    // Field order is drop order: the ring goes first, and with it whatever the kernel knows of
    // the memory and sockets below.
    ring: IoUring,
    /// What the kernel has, by place, with the socket that it goes over.
    table: Vec<Option<(Transfer, Arc<Stream>)>>,
    /// What finished before it started.
    refused: Vec<Finished>,
    open: Open,
    waker: Waker,
    /// Whether the kernel watches for wake-ups.
    is_armed: bool,
}

impl RingSockets {
    fn new(waker: &Waker) -> io::Result<RingSockets> {
        let (ring, _) = probe::set_up(ENTRIES).map_err(probe::explain)?;
        if !ring.params().is_feature_ext_arg() {
            let why = "its waits have no time limit (Linux 5.11 has those)";
            return Err(io::Error::new(io::ErrorKind::Unsupported, why));
        }
        Ok(RingSockets {
            ring,
            table: Vec::new(),
            refused: Vec::new(),
            open: Open::default(),
            waker: waker.clone(),
            is_armed: false,
        })
    }

    fn push(&mut self, entry: &squeue::Entry) -> io::Result<()> {
        // SAFETY: the entry's memory and socket, if it has any, belong to a transfer in the table,
        // which keeps both until its completion is reaped (drop leaks them otherwise). Memory and
        // range do not change meanwhile: nobody else has them.
        if unsafe { self.ring.submission().push(entry) }.is_err() {
            // Two entries a socket and one for the waker fit; what is there was not shown yet.
            self.ring.submit()?;
            // SAFETY: as above.
            unsafe { self.ring.submission().push(entry) }.map_err(io::Error::other)?;
        }
        Ok(())
    }

    /// Has the kernel watch for wake-ups.
    fn arm(&mut self) -> io::Result<()> {
        if !self.is_armed {
            let fd = Fd(self.waker.0.as_fd().as_raw_fd());
            let watch = opcode::PollAdd::new(fd, libc::POLLIN as u32).build().user_data(WAKE);
            self.push(&watch)?;
            self.is_armed = true;
        }
        Ok(())
    }

    fn try_start(&mut self, transfer: Transfer, stream: Arc<Stream>) -> io::Result<()> {
        let place = match self.table.iter().position(Option::is_none) {
            Some(place) => place,
            None => {
                self.table.push(None);
                self.table.len() - 1
            }
        };
        let (transfer, stream) = self.table[place].insert((transfer, stream));
        let fd = Fd(stream.as_fd().as_raw_fd());
        let bytes = &mut transfer.memory.bytes_mut()[transfer.range.clone()];
        let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        let entry = match transfer.direction {
            Direction::Receive => opcode::Recv::new(fd, bytes.as_mut_ptr(), len).build(),
            Direction::Send => {
                opcode::Send::new(fd, bytes.as_ptr(), len).flags(libc::MSG_NOSIGNAL).build()
            }
        };
        self.push(&entry.user_data(place as u64))
    }

    fn reap(&mut self, finished: &mut Vec<Finished>) {
        for cqe in self.ring.completion() {
            if cqe.user_data() == WAKE {
                self.waker.clear();
                self.is_armed = false;
                continue;
            }
            let place = cqe.user_data() as usize;
            let Some((transfer, _)) = self.table.get_mut(place).and_then(Option::take) else {
                debug_assert!(false, "completion for the empty place {place}");
                continue;
            };
            let result = usize::try_from(cqe.result())
                .map_err(|_| io::Error::from_raw_os_error(-cqe.result()));
            finished.push(Finished { transfer, result });
        }
    }

    fn enter(&mut self, patience: Duration) -> io::Result<()> {
        let limit = Timespec::from(patience);
        match self.ring.submitter().submit_with_args(1, &SubmitArgs::new().timespec(&limit)) {
            Ok(_) => Ok(()),
            Err(error) => match error.raw_os_error().map(Errno::from_raw) {
                Some(Errno::ETIME | Errno::EINTR | Errno::EAGAIN | Errno::EBUSY) => Ok(()),
                _ => Err(error),
            },
        }
    }
}

impl Sockets for RingSockets {
    fn add(&mut self, stream: Stream) -> io::Result<SocketId> {
        self.open.add(stream)
    }

    fn close(&mut self, socket: SocketId) {
        self.open.close(socket);
    }

    fn start(&mut self, transfer: Transfer) {
        let Some(stream) = self.open.of(&transfer) else {
            self.refused.push(refused(transfer));
            return;
        };
        // What the kernel does not take stays in the table; the next wait fails as this did.
        let _ = self.try_start(transfer, stream);
    }

    fn wait(&mut self, patience: Duration, finished: &mut Vec<Finished>) -> io::Result<()> {
        finished.append(&mut self.refused);
        self.arm()?;
        let patience = if finished.is_empty() { patience } else { Duration::ZERO };
        self.enter(patience)?;
        self.reap(finished);
        Ok(())
    }

    fn describe(&self) -> String {
        "io_uring".to_owned()
    }
}

impl Drop for RingSockets {
    fn drop(&mut self) {
        self.open.streams.values().for_each(|stream| stream.shut_down());
        let deadline = Instant::now() + DRAIN_MAX;
        let mut finished = Vec::new();
        while self.table.iter().any(Option::is_some) && Instant::now() < deadline {
            if self.enter(Duration::from_millis(20)).is_err() {
                std::thread::sleep(Duration::from_millis(1));
            }
            self.reap(&mut finished);
            finished.clear();
        }
        for transfer in self.table.drain(..).flatten() {
            std::mem::forget(transfer);
        }
    }
}

/// [`Sockets`] on `poll(2)`.
struct PolledSockets {
    open: Open,
    waker: Waker,
    waiting: Vec<(Transfer, Arc<Stream>)>,
    refused: Vec<Finished>,
    notice: Option<String>,
}

impl PolledSockets {
    fn new(waker: &Waker, notice: Option<String>) -> PolledSockets {
        let (open, waiting, refused) = Default::default();
        PolledSockets { open, waker: waker.clone(), waiting, refused, notice }
    }

    /// Which of what waits can go on, by its place.
    fn ready(&self, patience: Duration) -> io::Result<Vec<bool>> {
        let mut polled = vec![PollFd::new(self.waker.0.as_fd(), PollFlags::POLLIN)];
        polled.extend(self.waiting.iter().map(|(transfer, stream)| {
            let flags = match transfer.direction {
                Direction::Receive => PollFlags::POLLIN,
                Direction::Send => PollFlags::POLLOUT,
            };
            PollFd::new(stream.as_fd(), flags)
        }));
        let patience = PollTimeout::try_from(patience).unwrap_or(PollTimeout::MAX);
        match poll(&mut polled, patience) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        let is_ready = |fd: &PollFd<'_>| fd.revents().is_some_and(|events| !events.is_empty());
        if is_ready(&polled[0]) {
            self.waker.clear();
        }
        Ok(polled[1..].iter().map(is_ready).collect())
    }
}

impl Sockets for PolledSockets {
    fn add(&mut self, stream: Stream) -> io::Result<SocketId> {
        stream.set_nonblocking(true)?;
        self.open.add(stream)
    }

    fn close(&mut self, socket: SocketId) {
        self.open.close(socket);
    }

    fn start(&mut self, transfer: Transfer) {
        match self.open.of(&transfer) {
            Some(stream) => self.waiting.push((transfer, stream)),
            None => self.refused.push(refused(transfer)),
        }
    }

    fn wait(&mut self, patience: Duration, finished: &mut Vec<Finished>) -> io::Result<()> {
        finished.append(&mut self.refused);
        let patience = if finished.is_empty() { patience } else { Duration::ZERO };
        let mut ready = self.ready(patience)?.into_iter();
        for (mut transfer, stream) in std::mem::take(&mut self.waiting) {
            if ready.next() != Some(true) {
                self.waiting.push((transfer, stream));
                continue;
            }
            let bytes = &mut transfer.memory.bytes_mut()[transfer.range.clone()];
            let result = match transfer.direction {
                Direction::Receive => (&*stream).read(bytes),
                Direction::Send => (&*stream).write(bytes),
            };
            match result {
                Err(error) if is_passing(&error) => self.waiting.push((transfer, stream)),
                result => finished.push(Finished { transfer, result }),
            }
        }
        Ok(())
    }

    fn describe(&self) -> String {
        "poll".to_owned()
    }

    fn notice(&self) -> Option<&str> {
        self.notice.as_deref()
    }
}

fn is_passing(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(20);

    /// Both ways to do it, or the one there is.
    fn both(test: impl Fn(Box<dyn Sockets>, &Waker)) {
        let waker = Waker::new().unwrap();
        test(sockets(IoEngine::Blocking, &waker).unwrap(), &waker);
        match sockets(IoEngine::Uring, &waker) {
            Ok(ring) => test(ring, &waker),
            Err(why) => eprintln!("skipped: {why}"),
        }
    }

    fn pair(sockets: &mut dyn Sockets) -> (SocketId, UnixStream) {
        let (here, there) = UnixStream::pair().unwrap();
        (sockets.add(Stream::Unix(here)).unwrap(), there)
    }

    fn receive(socket: SocketId, len: usize) -> Transfer {
        let memory = Memory::Bytes(vec![0; len]);
        Transfer { socket, direction: Direction::Receive, memory, range: 0..len }
    }

    fn send(socket: SocketId, bytes: &[u8]) -> Transfer {
        let memory = Memory::Bytes(bytes.to_vec());
        Transfer { socket, direction: Direction::Send, memory, range: 0..bytes.len() }
    }

    /// The next transfer that finishes.
    fn next(sockets: &mut dyn Sockets) -> Finished {
        let mut finished = Vec::new();
        let deadline = Instant::now() + LONG;
        while finished.is_empty() && Instant::now() < deadline {
            sockets.wait(LONG, &mut finished).unwrap();
        }
        assert_eq!(finished.len(), 1);
        finished.remove(0)
    }

    #[test]
    fn bytes_go_both_ways_at_once() {
        both(|mut sockets, _| {
            let (socket, mut there) = pair(&mut *sockets);
            sockets.start(receive(socket, 8));
            sockets.start(send(socket, b"question"));
            let sent = next(&mut *sockets);
            assert_eq!((sent.transfer.direction, sent.result.unwrap()), (Direction::Send, 8));
            let mut heard = [0; 8];
            there.read_exact(&mut heard).unwrap();
            assert_eq!(&heard, b"question");
            there.write_all(b"answer").unwrap();
            let received = next(&mut *sockets);
            assert_eq!(received.result.unwrap(), 6);
            assert_eq!(received.transfer.memory.bytes(), b"answer\0\0");
        });
    }

    #[test]
    fn a_part_of_a_pools_buffer_is_filled() {
        both(|mut sockets, _| {
            let (socket, mut there) = pair(&mut *sockets);
            let pool = super::super::BufferPool::new(1, 4096).unwrap();
            let mut buffer = pool.take();
            buffer.fill_from(&[7; 10]);
            sockets.start(Transfer {
                memory: Memory::Pool(buffer),
                range: 4..6,
                ..receive(socket, 1)
            });
            there.write_all(b"abc").unwrap();
            let received = next(&mut *sockets);
            assert_eq!(received.result.unwrap(), 2);
            assert_eq!(received.transfer.memory.bytes(), b"\x07\x07\x07\x07ab\x07\x07\x07\x07");
        });
    }

    #[test]
    fn a_wake_up_ends_the_wait_once() {
        both(|mut sockets, waker| {
            let mut finished = Vec::new();
            // The first wait may only arm what later ones are woken by.
            sockets.wait(Duration::ZERO, &mut finished).unwrap();
            let other = waker.clone();
            let thread = std::thread::spawn(move || {
                std::thread::sleep(Duration::from_millis(50));
                other.wake();
            });
            let started = Instant::now();
            sockets.wait(LONG, &mut finished).unwrap();
            assert!(started.elapsed() < LONG);
            thread.join().unwrap();
            let started = Instant::now();
            sockets.wait(Duration::from_millis(30), &mut finished).unwrap();
            assert!(started.elapsed() >= Duration::from_millis(20));
            assert!(finished.is_empty());
        });
    }

    #[test]
    fn a_closed_socket_gives_its_memory_back() {
        both(|mut sockets, _| {
            let (socket, _there) = pair(&mut *sockets);
            sockets.start(receive(socket, 8));
            sockets.wait(Duration::ZERO, &mut Vec::new()).unwrap();
            sockets.close(socket);
            let ended = next(&mut *sockets);
            assert!(matches!(ended.result, Ok(0) | Err(_)), "{:?}", ended.result);
            sockets.start(send(socket, b"late"));
            let refused = next(&mut *sockets);
            assert_eq!(refused.result.unwrap_err().kind(), io::ErrorKind::NotConnected);
            assert_eq!(refused.transfer.memory.bytes(), b"late");
        });
    }

    #[test]
    fn a_send_to_nobody_is_an_error_and_no_signal() {
        both(|mut sockets, _| {
            let (socket, there) = pair(&mut *sockets);
            drop(there);
            sockets.start(send(socket, b"hello"));
            let kind = next(&mut *sockets).result.unwrap_err().kind();
            assert_eq!(kind, io::ErrorKind::BrokenPipe);
        });
    }

    #[test]
    fn a_drop_with_transfers_in_flight_gives_every_buffer_back() {
        both(|mut sockets, _| {
            let (socket, _there) = pair(&mut *sockets);
            let pool = super::super::BufferPool::new(1, 4096).unwrap();
            let mut buffer = pool.take();
            buffer.set_len(100);
            let memory = Memory::Pool(buffer);
            sockets.start(Transfer { memory, ..receive(socket, 100) });
            sockets.wait(Duration::ZERO, &mut Vec::new()).unwrap();
            assert_eq!(pool.available(), 0);
            drop(sockets);
            assert_eq!(pool.available(), 1);
        });
    }

    #[test]
    fn there_are_no_more_sockets_than_the_ring_has_room_for() {
        both(|mut sockets, _| {
            let others: Vec<_> = (0..SOCKETS_MAX).map(|_| pair(&mut *sockets)).collect();
            let (here, _there) = UnixStream::pair().unwrap();
            assert!(sockets.add(Stream::Unix(here)).is_err());
            sockets.close(others[0].0);
            pair(&mut *sockets);
        });
    }

    #[test]
    #[should_panic(expected = "does not fit")]
    fn a_transfer_outside_of_its_memory_is_refused() {
        let mut sockets = sockets(IoEngine::Blocking, &Waker::new().unwrap()).unwrap();
        let (socket, _there) = pair(&mut *sockets);
        sockets.start(Transfer { range: 4..9, ..receive(socket, 8) });
    }
}
