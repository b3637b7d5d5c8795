//! Which file or block device a name leads to, whatever the name.

use std::fs::Metadata;
use std::os::unix::fs::{FileTypeExt, MetadataExt};

use super::sysfs::{self, DeviceNumber};

/// What holds the bytes. Two names with equal nodes lead to the same bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Node {
    /// A block device.
    Block(DeviceNumber),
    /// Anything else: device number of its file system and inode number there.
    File(u64, u64),
}

impl Node {
    /// What `metadata` is of.
    pub(super) fn of(metadata: &Metadata) -> Node {
        match metadata.file_type().is_block_device() {
            true => Node::Block(metadata.rdev()),
            false => Node::File(metadata.dev(), metadata.ino()),
        }
    }

    /// The number of a block device.
    pub(super) fn block_number(self) -> Option<DeviceNumber> {
        match self {
            Node::Block(number) => Some(number),
            Node::File(..) => None,
        }
    }

    /// What a block device is mapped onto (dm, md, bcache).
    pub(super) fn mapped_onto(self) -> Vec<Node> {
        let slaves = self.block_number().map(sysfs::slaves).unwrap_or_default();
        slaves.into_iter().map(Node::Block).collect()
    }

    /// Itself and, of a block device, its partitions and the disk it is a partition of.
    pub(super) fn family(self) -> Vec<Node> {
        match self {
            Node::Block(number) => sysfs::family(number).into_iter().map(Node::Block).collect(),
            Node::File(..) => vec![self],
        }
    }
}
