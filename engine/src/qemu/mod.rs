//! A running QEMU, by its monitor (QMP): its disks at one instant, for others to read.
//!
//! ```text
//!  guest -> voltar-cbw-N -> the disk as it was before          reads and writes as ever
//!              |  \
//!              |   voltar-area-N   what the guest overwrites, as it was: an unlinked file of ours
//!           voltar-snap-N -> QEMU's NBD server -> us           the instant
//! ```
//!
//! The filter is told to break the snapshot, and never the guest's write, when the area is full or too
//! slow (`on-cbw-error`, QEMU 7.1). Everything made in QEMU bears a name of ours and is found and taken
//! away by that name, after a run that ended well as by the first one after a run that was killed.
//!
//! What changed between two backups is known by dirty bitmaps, each named at random and kept from the
//! snapshot whose archive names it. It is made before that snapshot's instant and recording all the time;
//! the one before goes when the new snapshot is durable. So at every moment each bitmap tells at least
//! what changed since its snapshot, whoever dies.

mod agent;
mod area;
mod guard;
pub mod monitor;
mod shot;
mod sweep;
pub mod vm;

pub(crate) use area::empty_image;
pub(crate) use shot::end_of;
pub use shot::{Bitmaps, GRANULARITY, Outcome, Plan, Shot};

/// Whether this is the name of something of ours.
pub(crate) fn is_named(name: &str) -> bool {
    name.starts_with(PREFIX)
}

/// What all that is made in QEMU is called by.
const PREFIX: &str = "voltar-";

/// What things in QEMU are called; those of a disk have its number behind. A node's name has 31 bytes.
mod names {
    /// Reads as the disk was.
    pub const SNAPSHOT: &str = "voltar-snap-";
    /// Copies before it writes.
    pub const FILTER: &str = "voltar-cbw-";
    /// The image that it copies to, the room that this has, and the file that it is in.
    pub const AREA: &str = "voltar-area-";
    pub const ROOM: &str = "voltar-room-";
    pub const FILE: &str = "voltar-file-";
    /// A node that tells that the NBD server is ours; there from before it is started.
    pub const SERVER: &str = "voltar-server";
    /// A node that tells that the VM was stopped by us; there from before it is.
    pub const STOPPED: &str = "voltar-stopped";
    /// A node that holds nothing, in which the end of a disk is marked.
    pub const END: &str = "voltar-end";
    /// Exports of snapshots, and of a snapshot with a bitmap.
    pub const EXPORT: &str = "voltar-export-";
    pub const DIRTY: &str = "voltar-dirty-";
    /// Bitmaps that no later run needs.
    pub const TEMPORARY: &str = "voltar-tmp-";
    /// Descriptors that are handed over.
    pub const DESCRIPTOR: &str = "voltar-fd";
}
