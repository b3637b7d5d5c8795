//! Threads that a scope waits for. One that cannot be started or that panics is an error.

use std::thread::{Builder, Scope, ScopedJoinHandle};

use crate::error::{Error, ErrorKind, Result};

/// Starts the thread `name` in `scope`.
///
/// # Errors
/// `Io` if the system grants no more threads.
pub fn start<'scope, T: Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    name: &str,
    work: impl FnOnce() -> T + Send + 'scope,
) -> Result<ScopedJoinHandle<'scope, T>> {
    Builder::new().name(name.to_owned()).spawn_scoped(scope, work).map_err(|error| {
        Error::new(ErrorKind::Io, format!("cannot start the {name} thread"))
            .because(error)
            .hint("allow more processes (`ulimit -u`, the cgroup's pids.max) or use fewer threads")
    })
}

/// What the thread `name` returned.
///
/// # Errors
/// The thread's; `Internal` if it panicked.
pub fn join<T>(name: &str, thread: ScopedJoinHandle<'_, Result<T>>) -> Result<T> {
    thread.join().unwrap_or_else(|_| Err(panicked(name)))
}

/// The error that a panic of the thread `name` is.
pub fn panicked(name: &str) -> Error {
    Error::new(ErrorKind::Internal, format!("the {name} thread panicked"))
        .hint("this is a defect of the program; please report it with the messages above")
}
