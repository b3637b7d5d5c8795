//! The only room with `unsafe` in it: buffers, rings, system calls.
//!
//! It knows operations and file descriptors; it knows nothing of devices, archives or volumes.
//! What leaves it is safe to call. Every `unsafe` block names the invariant it rests on and who
//! upholds it.
#![expect(unsafe_code, reason = "this module is where the engine's unsafe code lives")]

pub mod blocking;
pub mod buffer;
pub mod filesystem;
pub mod ioctl;
pub mod op;
pub mod probe;
pub mod ring;
pub mod route;
pub mod sockets;

pub use buffer::{Buffer, BufferPool};
pub use op::{Completion, Driver, Op, OpKind};
pub use route::Files;

/// Which I/O engine to run on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IoEngine {
    /// io_uring where the kernel grants it, plain reads and writes elsewhere (said once).
    #[default]
    Auto,
    /// io_uring, or fail saying why it is unavailable.
    Uring,
    /// Plain positional reads and writes on a small pool of threads.
    Blocking,
}
