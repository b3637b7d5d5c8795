//! What is mounted, and from where (`proc_pid_mountinfo(5)`).

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::node::Node;
use super::sysfs::{self, DeviceNumber};

/// A line of the mount table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mount {
    /// The file system's number: that of its device, or one of its own (btrfs).
    pub number: DeviceNumber,
    /// Where it is mounted.
    pub at: PathBuf,
    /// What it is mounted from, as it was called then.
    pub source: PathBuf,
}

impl Mount {
    /// Whether it is mounted from one of `nodes`: by number, or by name where it has a number of its own.
    pub(super) fn is_from(&self, nodes: &[Node]) -> bool {
        nodes.contains(&Node::Block(self.number))
            || block_device(&self.source).is_some_and(|source| nodes.contains(&source))
    }
}

fn block_device(path: &Path) -> Option<Node> {
    if !path.is_absolute() {
        return None;
    }
    Some(Node::of(&fs::metadata(path).ok()?)).filter(|node| node.block_number().is_some())
}

/// The mounts in a mount table; lines that make no sense are passed over.
pub(super) fn parse(table: &str) -> impl Iterator<Item = Mount> {
    table.lines().filter_map(|line| {
        let (left, right) = line.split_once(" - ")?;
        let mut fields = left.split(' ');
        let number = sysfs::parse_number(fields.nth(2)?)?;
        let at = sysfs::unescape(fields.nth(1)?).into();
        let source = sysfs::unescape(right.split(' ').nth(1)?).into();
        Some(Mount { number, at, source })
    })
}

/// Where a file system can be frozen, and why others are not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Freezable {
    /// Where they are mounted, each once.
    pub mounts: Vec<PathBuf>,
    /// Where others are mounted, and what they hold.
    pub spared: Vec<(PathBuf, PathBuf)>,
}

/// Where file systems are mounted that lie on these block devices or on what stands on them, but for those
/// that hold one of `needed`: whoever waits for a frozen file system cannot thaw it.
///
/// # Errors
/// Of reading the mount table.
pub(crate) fn freezable(devices: &[DeviceNumber], needed: &[PathBuf]) -> io::Result<Freezable> {
    let mounts: Vec<Mount> = parse(&fs::read_to_string("/proc/self/mountinfo")?).collect();
    let nodes: Vec<Node> =
        devices.iter().flat_map(|device| sysfs::standing_on(*device)).map(Node::Block).collect();
    let needed: Vec<_> = needed
        .iter()
        .filter_map(|path| Some((path, holding(&mounts, &existing(path)?)?.number)))
        .collect();
    let mut seen = Vec::new();
    let mut found = Freezable::default();
    for mount in mounts.iter().filter(|mount| mount.is_from(&nodes)) {
        // Another one may be mounted over it, and would be frozen instead.
        let is_reached = holding(&mounts, &mount.at).is_some_and(|it| it.number == mount.number);
        if !is_reached || seen.contains(&mount.number) {
            continue;
        }
        seen.push(mount.number);
        match needed.iter().find(|(_, number)| *number == mount.number) {
            Some((path, _)) => found.spared.push((mount.at.clone(), path.to_path_buf())),
            None => found.mounts.push(mount.at.clone()),
        }
    }
    Ok(found)
}

/// The mount that `path`, which has no links in it, is reached through.
fn holding<'a>(mounts: &'a [Mount], path: &Path) -> Option<&'a Mount> {
    let above = mounts.iter().filter(|mount| path.starts_with(&mount.at));
    // Of several at one place, the last.
    above.max_by_key(|mount| mount.at.as_os_str().len())
}

/// `path` without links, or of what is not there yet, the folder that is to hold it.
fn existing(path: &Path) -> Option<PathBuf> {
    path.ancestors().find_map(|path| match path.as_os_str().is_empty() {
        true => fs::canonicalize(".").ok(),
        false => fs::canonicalize(path).ok(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "\
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
30 22 0:26 / /mnt/with\\040space rw - btrfs /dev/does-not-exist rw
31 22 7:3 / /mnt/loop rw,relatime - ext4 /dev/loop3 rw
32 31 7:4 / /mnt/loop rw,relatime - ext4 /dev/loop4 rw
 - 
1 2 3 - 4
";

    #[test]
    fn mounts_are_found_by_number() {
        let of = |node| parse(TABLE).find(|mount| mount.is_from(&[node])).map(|mount| mount.at);
        let block = |words| Node::Block(sysfs::parse_number(words).unwrap());
        assert_eq!(of(block("7:3")), Some("/mnt/loop".into()));
        assert_eq!(of(block("0:26")), Some("/mnt/with space".into()));
        assert_eq!(of(Node::Block(1)), None);
    }

    #[test]
    fn a_path_is_reached_through_the_last_and_longest_mount() {
        let mounts: Vec<_> = parse(TABLE).collect();
        let number =
            |path: &str| sysfs::number_words(holding(&mounts, Path::new(path)).unwrap().number);
        assert_eq!(number("/mnt/loop/a"), "7:4");
        assert_eq!(number("/mnt/looped"), "254:0");
        assert_eq!(number("/mnt/with space"), "0:26");
    }

    #[test]
    fn what_is_not_there_yet_is_looked_for_in_its_folder() {
        let folder = tempfile::tempdir().unwrap();
        let here = fs::canonicalize(folder.path()).unwrap();
        assert_eq!(existing(&folder.path().join("no/such/archive")), Some(here));
        assert_eq!(existing(Path::new("no-such-archive")), fs::canonicalize(".").ok());
    }
}
