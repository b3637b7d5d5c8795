//! Connecting to a socket of this machine without waiting for ever.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, UnixAddr, connect as connect_fd, socket,
};

/// How often a listener that is busy is tried again.
const RETRY: Duration = Duration::from_millis(20);

/// Connects to the listener at `path`, which may have as many as it takes waiting already: that is
/// `TimedOut` after `patience`.
///
/// # Errors
/// Of the system.
pub fn connect(path: &Path, patience: Duration) -> io::Result<UnixStream> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd: OwnedFd = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    let address = UnixAddr::new(path)?;
    let end = Instant::now() + patience;
    loop {
        match connect_fd(fd.as_raw_fd(), &address) {
            Ok(()) => break,
            // A full backlog, of a socket that does not wait (`connect(2)`).
            Err(Errno::EAGAIN | Errno::EINTR) if Instant::now() < end => thread::sleep(RETRY),
            Err(Errno::EAGAIN) => return Err(io::ErrorKind::TimedOut.into()),
            Err(errno) => return Err(errno.into()),
        }
    }
    let stream = UnixStream::from(fd);
    stream.set_nonblocking(false)?;
    Ok(stream)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn a_listener_that_takes_nobody_is_not_waited_for_for_ever() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let patience = Duration::from_millis(100);
        assert_eq!(connect(&path, patience).unwrap_err().kind(), io::ErrorKind::NotFound);
        let listener = UnixListener::bind(&path).unwrap();
        let mut waiting = Vec::new();
        let error = loop {
            match connect(&path, patience) {
                Ok(stream) => waiting.push(stream),
                Err(error) => break error,
            }
            assert!(waiting.len() < 100_000, "the backlog has an end");
        };
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        drop(listener);
    }
}
