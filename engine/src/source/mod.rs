//! Volumes to be read, and who knows what changed in them.
//!
//! A [`View`] is a volume at one instant. A [`ChangeSource`] says which parts of a view differ
//! from the view of an earlier snapshot; it is a hint with a proof: it is believed only where the
//! identities that the earlier snapshot recorded are found unchanged, and even then a random
//! sample of what it calls unchanged is read and compared.

mod backing;
pub mod btrfs_items;
pub mod changed;
pub mod cow_table;
mod dirty_bitmap;
pub mod extent_map;
pub mod fiemap;
pub mod file;
pub mod hold;
mod image;
pub mod libvirt;
mod lvm;
pub mod memory;
mod nbd;
pub mod qemu;
pub mod reflink;
mod thick;
pub(crate) mod thin;
pub mod thin_metadata;
mod thin_slot;
mod vm_disks;
pub mod zfs_stream;
pub mod zvol;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use crate::device::Extents;

/// The identities that bind a change source's word to one base and one target. Stored in the
/// manifest; compared, never interpreted, by anyone but the change source itself.
pub type Proof = BTreeMap<String, String>;

/// A volume at one instant.
pub struct View {
    /// Its name in the archive.
    pub name: String,
    /// What it is read from, for people.
    pub description: String,
    /// Its bytes.
    pub device: Arc<dyn Extents>,
    /// Its size in bytes at that instant.
    pub size: u64,
    /// Who knows what changed, if anybody.
    pub change_source: Option<Arc<dyn ChangeSource>>,
    /// Why it could not be held or told better, where a volume of its kind could be.
    pub degraded: Option<String>,
}

/// What became of a range since the base.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// It may differ.
    Changed,
    /// It is the same, says the source.
    Unchanged,
    /// It reads as zeroes now.
    Zero,
}

/// A range of a view and what became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChangedExtent {
    /// Bytes of the view.
    pub range: Range<u64>,
    /// What became of them.
    pub change: Change,
}

/// Why a change source is not to be used for this base; said to the user as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Degraded(pub String);

/// Who knows what changed.
pub trait ChangeSource: Send + Sync {
    /// Its kind, as reports and `--changes` call it.
    fn kind(&self) -> &'static str;

    /// The identities of this view, for the next backup to find unchanged.
    fn proof(&self) -> Proof;

    /// What became of the view's bytes since the view whose proof is `base` and whose size was
    /// `base_size`: ascending, from 0 to the view's size without gaps or overlaps.
    ///
    /// # Errors
    /// `Degraded` if the identities do not fit or the source cannot tell.
    fn changes(&self, base: &Proof, base_size: u64) -> Result<Vec<ChangedExtent>, Degraded>;

    /// What holds data at all, for a backup that has no base: [`Change::Zero`] is what reads as
    /// zeroes, [`Change::Changed`] what is to be read; from 0 to the view's size without gaps or
    /// overlaps. `None` if it knows nothing of that.
    ///
    /// # Errors
    /// `Degraded` if it knows, and cannot tell.
    fn mapped(&self) -> Result<Option<Vec<ChangedExtent>>, Degraded> {
        Ok(None)
    }

    /// Whether it is [`stream`](ChangeSource::stream) that is to be asked.
    fn streams(&self) -> bool {
        false
    }

    /// Changes together with their bytes, in one pass: since the view whose proof and size are
    /// given, or since a volume of zeroes.
    ///
    /// # Errors
    /// `Degraded` if the identities do not fit or the source cannot tell.
    fn stream(&self, _base: Option<(&Proof, u64)>) -> Result<Box<dyn ChangeStream>, Degraded> {
        Err(Degraded(format!("{} has no stream", self.kind())))
    }
}

/// Changes with their bytes: ascending, not overlapping, within the view.
pub trait ChangeStream: Send {
    /// The next piece, or `None` once the stream's end is proven. Of a piece of data, `bytes` holds
    /// the bytes afterwards; at most [`STREAM_PIECE_LEN_MAX`].
    ///
    /// # Errors
    /// `Degraded` if it is not what it should be; nothing it said before is to be believed then.
    fn next(&mut self, bytes: &mut Vec<u8>) -> Result<Option<Piece>, Degraded>;
}

/// Longest piece of data in a stream, in bytes: the largest block of ZFS.
pub const STREAM_PIECE_LEN_MAX: usize = 16 << 20;

/// What a stream says of a range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// It holds the bytes that came with it.
    Data {
        /// Where, in bytes of the view.
        offset: u64,
    },
    /// It reads as zeroes.
    Zero(Range<u64>),
}

/// Checks what a change source said: it must cover the view exactly.
///
/// # Errors
/// `Degraded`, naming the place.
pub fn check_coverage(extents: &[ChangedExtent], size: u64) -> Result<(), Degraded> {
    let mut end = 0;
    for extent in extents {
        if extent.range.start != end || extent.range.end <= end {
            return Err(Degraded(format!("the change list has a gap or an overlap at {end:#x}")));
        }
        end = extent.range.end;
    }
    match end == size {
        true => Ok(()),
        false => Err(Degraded(format!("the change list covers {end} of {size} bytes"))),
    }
}
