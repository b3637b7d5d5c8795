//! Loop devices: what stands on what.
//!
//! `/sys` names the file behind a loop device by a path, which may have been unlinked, renamed or
//! hidden by a mount since; the kernel's answer to `LOOP_GET_STATUS64` is the file itself.

use std::fs::{self, File};
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::file::FileIdentity;
use super::node::Node;
use super::sysfs::{self, DeviceNumber};
use crate::io::ioctl;

/// A loop device that is set up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Loop {
    /// Its number.
    pub number: DeviceNumber,
    /// Its node in `/dev`.
    pub node: PathBuf,
    /// What the file behind it was called when it was set up.
    pub path: PathBuf,
    /// The file or block device behind it.
    pub backing: Node,
    /// Which bytes of it, perhaps more than there are.
    pub range: Range<u64>,
}

impl Loop {
    /// Whether `self` and `other` are two devices with bytes in common.
    pub(super) fn overlaps(&self, other: &Loop) -> bool {
        if self.number == other.number {
            return false;
        }
        match self.backing == other.backing {
            true => self.range.start < other.range.end && other.range.start < self.range.end,
            // A disk and its partition count from different places.
            false => self.backing.family().contains(&other.backing),
        }
    }
}

/// All loop devices whose backing file is known.
pub(super) fn all() -> Vec<Loop> {
    sysfs::loops().iter().filter_map(|directory| describe(directory)).collect()
}

/// What `family` stands on, by loop devices of `loops` and by mappings (dm, md), all the way down:
/// the loop devices, and what they and the mappings lead to.
pub(super) fn below<'a>(family: &[Node], loops: &'a [Loop]) -> (Vec<&'a Loop>, Vec<Node>) {
    let (mut standing, mut below) = (Vec::new(), Vec::new());
    let mut nodes = family.to_vec();
    let mut seen = nodes.clone();
    while let Some(node) = nodes.pop() {
        let device = loops.iter().find(|device| Node::Block(device.number) == node);
        standing.extend(device);
        let backing = device.map(|device| device.backing.family()).unwrap_or_default();
        // Of a disk only the mapped partition: its others are not what this one stands on.
        for next in backing.into_iter().chain(node.mapped_onto()) {
            if !seen.contains(&next) {
                seen.push(next);
                nodes.push(next);
            }
            below.push(next);
        }
    }
    (standing, below)
}

/// Whether writing to one changes bytes of the other: they are the same, a disk and its partition,
/// one stands on the other, or both on the same bytes of something else.
pub(crate) fn share_bytes(one: &FileIdentity, other: &FileIdentity) -> bool {
    let loops = all();
    let (one, other) = (one.node().family(), other.node().family());
    let (loops_one, below_one) = below(&one, &loops);
    let (loops_other, below_other) = below(&other, &loops);
    let meet = |these: &[Node], those: &[Node]| these.iter().any(|node| those.contains(node));
    meet(&one, &other)
        || meet(&below_one, &other)
        || meet(&below_other, &one)
        || loops_one.iter().any(|device| loops_other.iter().any(|other| device.overlaps(other)))
}

fn describe(directory: &Path) -> Option<Loop> {
    let path = PathBuf::from(sysfs::attribute(directory, "loop/backing_file")?);
    let number = sysfs::number_of(directory)?;
    let node = Path::new("/dev").join(directory.file_name()?);
    let backing = asked(&node, number).or_else(|| Some(Node::of(&fs::metadata(&path).ok()?)))?;
    let bytes = |name| sysfs::attribute(directory, name).and_then(|text| text.parse().ok());
    let start: u64 = bytes("loop/offset").unwrap_or(0);
    // 0 is no limit; what is not known is taken for none.
    let limit = bytes("loop/sizelimit").filter(|limit| *limit != 0);
    let end = limit.map_or(u64::MAX, |limit: u64| start.saturating_add(limit));
    Some(Loop { number, node, path, backing, range: start..end })
}

/// What the kernel says is behind the loop device `number`, if it may be asked.
fn asked(node: &Path, number: DeviceNumber) -> Option<Node> {
    let file = File::open(node).ok()?;
    let is_it = file.metadata().is_ok_and(|metadata| Node::of(&metadata) == Node::Block(number));
    let backing = is_it.then(|| ioctl::loop_backing(&file).ok())??;
    // For a regular file, older kernels answer the file system's number here, newer ones 0.
    Some(match backing.rdev == 0 || backing.rdev == backing.dev {
        true => Node::File(backing.dev, backing.ino),
        false => Node::Block(backing.rdev),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(number: u64, backing: Node, range: Range<u64>) -> Loop {
        Loop { number, node: PathBuf::new(), path: PathBuf::new(), backing, range }
    }

    #[test]
    fn overlaps_are_of_one_file_and_of_common_bytes() {
        let file = Node::File(1, 2);
        let first = device(1, file, 0..100);
        assert!(first.overlaps(&device(2, file, 99..u64::MAX)));
        assert!(!first.overlaps(&device(2, file, 100..200)));
        assert!(!first.overlaps(&device(2, Node::File(1, 3), 0..100)));
        assert!(!first.overlaps(&first));
    }

    #[test]
    fn loops_on_loops_are_followed_down_and_never_round() {
        // Numbers that no device has, so that each is its own family.
        let (upper, lower) = (u64::MAX, u64::MAX - 1);
        let loops =
            [device(upper, Node::Block(lower), 0..1), device(lower, Node::File(1, 2), 0..1)];
        assert_eq!(below(&[Node::Block(upper)], &loops).0.len(), 2);
        assert_eq!(below(&[Node::File(1, 2)], &loops).0.len(), 0);
        let ring =
            [device(upper, Node::Block(lower), 0..1), device(lower, Node::Block(upper), 0..1)];
        assert_eq!(below(&[Node::Block(upper)], &ring).0.len(), 2);
    }
}
