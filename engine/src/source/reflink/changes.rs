//! What changed between two reflink copies, by where their extents lie.
//!
//! Two copies of one file system that nobody writes to. Where they share an extent they are the same;
//! the rest is changed. What could make that untrue, and what is done about it:
//!
//! * The base was written to since, or replaced: its identity has the time of its last change in it,
//!   which is compared before and after.
//! * The map is older than the bytes: FIEMAP is asked to write back first, and nobody writes to a copy.
//! * btrfs has compressed extents, parts of which FIEMAP tells from another not: there the extent items
//!   are read.
//! * btrfs takes a file's items away before it puts new ones in (a defragmentation that is being written
//!   back), and between the two the items show a hole where there is none. `SEEK_DATA` waits for that,
//!   so it is asked what every hole has; what nobody writes to and was a hole once is one.
//! * Something moves extents meanwhile (balance, defragmentation, `xfs_fsr`), so that what lay at an
//!   address in one copy lies there in the other a moment later: both maps are walked again until two
//!   walks in a row saw the same.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;

use super::copy::{Copy, FileSystem};
use crate::io::{filesystem, ioctl};
use crate::source::changed::ChangeList;
use crate::source::extent_map::{Fingerprint, Page, Pages, Walk, diff};
use crate::source::{Change, ChangedExtent, Degraded, btrfs_items, fiemap};

/// Bytes of extents per call to the kernel.
const ANSWER_LEN: usize = 64 << 10;
/// How often maps are walked before it is said that they do not keep still.
const WALKS_MAX: usize = 4;

/// What became of the bytes of `now`, which has `size` bytes, since `base`, which has `base_size`.
///
/// # Errors
/// `Degraded` if extents cannot be read, or do not keep still.
pub fn changes(
    (base, base_size): (&Copy, u64),
    (now, size): (&Copy, u64),
) -> Result<Vec<ChangedExtent>, Degraded> {
    let mut seen: Option<Fingerprint> = None;
    for _ in 0..WALKS_MAX {
        let mut told = ChangeList::new(Change::Changed);
        let (mut old, mut new) = (pages_of(base)?, pages_of(now)?);
        let (old, new) = (Walk::new(&mut *old, base_size), Walk::new(&mut *new, size));
        let fingerprint = diff(old, new, &mut told)?;
        if seen.replace(fingerprint) == Some(fingerprint) {
            return Ok(told.finish(size));
        }
    }
    Err(Degraded(
        "something moves the file's extents (a balance, a defragmentation, xfs_fsr)".into(),
    ))
}

/// Who gives the extents of `copy`.
fn pages_of(copy: &Copy) -> Result<Box<dyn Pages + '_>, Degraded> {
    let (file, answer) = (copy.file(), vec![0; ANSWER_LEN]);
    Ok(match copy.file_system() {
        FileSystem::Xfs => Box::new(Fiemap { file, answer }),
        FileSystem::Btrfs => {
            let inode = file.metadata().map_err(|error| cannot(&error))?.ino();
            Box::new(Items { file, inode, answer })
        }
    })
}

/// Extents as XFS tells them.
struct Fiemap<'a> {
    file: &'a File,
    answer: Vec<u8>,
}

impl Pages for Fiemap<'_> {
    fn page(&mut self, from: u64) -> Result<Page, Degraded> {
        filesystem::fiemap(self.file, from, &mut self.answer).map_err(|error| cannot(&error))?;
        fiemap::parse(&self.answer, from)
    }
}

/// Extents as btrfs keeps them.
struct Items<'a> {
    file: &'a File,
    inode: u64,
    answer: Vec<u8>,
}

impl Pages for Items<'_> {
    fn page(&mut self, from: u64) -> Result<Page, Degraded> {
        let kind = btrfs_items::EXTENT_DATA;
        filesystem::btrfs_items(self.file, self.inode, kind, from, &mut self.answer)
            .map_err(|error| cannot(&error))?;
        btrfs_items::parse(&self.answer, self.inode, from)
    }

    fn data_from(&mut self, at: u64) -> Result<u64, Degraded> {
        let data = ioctl::seek_data(self.file, at).map_err(|error| cannot(&error))?;
        Ok(data.unwrap_or(u64::MAX))
    }
}

fn cannot(error: &io::Error) -> Degraded {
    Degraded(match error.kind() {
        io::ErrorKind::PermissionDenied => "reading extents takes root's rights".into(),
        _ => format!("extents cannot be read: {error}"),
    })
}
