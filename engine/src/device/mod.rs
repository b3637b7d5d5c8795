//! Devices as capabilities: what can be read, written, zeroed, asked for holes.
//!
//! ```text
//!            Device ── len, geometry, read_at, driver
//!           /   |   \
//!     Extents  Zero  Resize + Sync          (each on its own; a device has those it really has)
//! ```
//!
//! Engine code takes `&dyn` of the capability it needs, so that the in-memory and the hostile
//! twin stand in for files and block devices in every test. A [`Driver`] is the data plane: one
//! per thread, made on the thread that uses it. [`Queue`] wraps it with the retry rules.

pub mod file;
pub mod guard;
pub mod hostile;
mod in_use;
pub(crate) mod loops;
pub(crate) mod medium;
pub mod memory;
pub(crate) mod mounts;
mod node;
pub mod open;
pub mod queue;
mod sysfs;
#[cfg(test)]
pub(crate) mod test_rig;

use std::io;
use std::ops::Range;

use crate::io::buffer::BufferPool;
use crate::options::IoEngine;

pub use crate::io::op::{Completion, Driver, Op, OpKind};
pub use queue::Queue;

/// Sizes and alignments of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Logical block length in bytes: a power of two, 512..=65536. Offsets and lengths that are
    /// multiples of it go the direct way; others take the buffered way and are slower.
    pub block_len: u32,
    /// Whether transfers bypass the page cache.
    pub direct: bool,
}

/// Anything with bytes at offsets.
pub trait Device: Send + Sync {
    /// What messages call it: the path as the user typed it.
    fn label(&self) -> &str;

    /// Its length in bytes, asked anew at each call.
    fn len(&self) -> io::Result<u64>;

    /// Whether it has no bytes.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Its geometry.
    fn geometry(&self) -> Geometry;

    /// Fills as much of `bytes` as the device has from `offset`; any alignment. Retries
    /// interrupted and short reads; returns less than `bytes.len()` only at the device's end.
    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<usize>;

    /// Writes all of `bytes` at `offset`; any alignment.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;

    /// Makes what was written durable (file data and the length that is needed to read it).
    fn sync(&self) -> io::Result<()>;

    /// Drops what a cache holds of `range` and the medium may not: reads that follow show what is
    /// really there. Nothing to do for a device without a cache.
    fn forget(&self, _range: Range<u64>) -> io::Result<()> {
        Ok(())
    }

    /// A data plane for the calling thread, for at most `depth` operations in flight with
    /// buffers of `pool`.
    fn driver(
        &self,
        engine: IoEngine,
        pool: &BufferPool,
        depth: u32,
    ) -> io::Result<Box<dyn Driver>>;
}

/// Whether a range of a device holds data or is known to read as zeroes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExtentKind {
    /// May hold anything.
    Data,
    /// Reads as zeroes, and the device says so.
    Hole,
}

/// A range of one kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extent {
    /// The bytes.
    pub range: Range<u64>,
    /// What they are.
    pub kind: ExtentKind,
}

/// A device that knows its holes.
pub trait Extents: Device {
    /// The extent that holds `offset`, from `offset` on, clipped to the device's length.
    /// `offset` must be less than the length. A device that cannot tell answers `Data` to its end.
    fn extent_at(&self, offset: u64) -> io::Result<Extent>;
}

/// How a range was made to read as zeroes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ZeroMethod {
    /// `fallocate(PUNCH_HOLE | KEEP_SIZE)`: zeroes and releases; fails rather than lie.
    PunchHole,
    /// `fallocate(ZERO_RANGE)` or `BLKZEROOUT`: zeroes, by whatever means the kernel has.
    ZeroRange,
    /// Zeroes were written.
    Write,
}

/// A device whose ranges can be made to read as zeroes.
pub trait Zero: Device {
    /// Makes `range` read as zeroes by the best means the device really has, and says which.
    /// A means that failed once with "not supported" is not tried again. Never discards.
    /// Parts that are not whole blocks are written.
    fn zero(&self, range: Range<u64>) -> io::Result<ZeroMethod>;
}

/// A device whose length can be set.
pub trait Resize: Device {
    /// Sets the length; bytes that appear read as zeroes.
    fn set_len(&self, len: u64) -> io::Result<()>;
}
