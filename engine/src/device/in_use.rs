//! Who else uses a file or block device: mounts, swap, holders, loop devices, QEMU, open files.
//!
//! None of these suffices alone. `O_EXCL` finds mounts and claims in every mount name space but
//! neither a running QEMU nor a plain opener; `/proc/*/fd` finds those, but only of processes the
//! caller may look into (all, as root).

use std::fs::{self, File};
use std::path::Path;
use std::thread;
use std::time::Duration;

use nix::libc;

use super::file::FileIdentity;
use super::loops::{self, Loop};
use super::node::Node;
use super::{mounts, sysfs};
use crate::io::ioctl;

/// QEMU's lock bytes (`block/file-posix.c`): permissions held, at 100 plus the permission's bit.
const QEMU_HELD: std::ops::Range<u64> = 100..164;
/// QEMU's lock bytes: permissions it denies to others, at 200 plus the bit.
const QEMU_DENIED: std::ops::Range<u64> = 200..264;
/// The byte a QEMU locks that writes (`BLK_PERM_WRITE` is bit 1).
const QEMU_WRITES: std::ops::Range<u64> = 101..102;

/// What says who uses what; a bare chroot lacks them.
const SOURCES: [&str; 3] = ["/proc/self/mountinfo", "/proc", "/sys/block"];

/// How long a passing opener is given to close again.
const MOMENT: Duration = Duration::from_millis(200);

/// One use by somebody else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Use {
    /// `it is mounted at /home`.
    pub words: String,
    /// What to do about it.
    pub hint: &'static str,
}

impl Use {
    fn new(words: impl Into<String>, hint: &'static str) -> Self {
        Use { words: words.into(), hint }
    }

    /// The same use, of something other than the target.
    fn of(self, subject: &str) -> Self {
        Use { words: format!("{subject}, is in use: {}", self.words), ..self }
    }
}

/// The uses that can be seen without opening the target: of itself, and of what it stands on.
pub(super) fn from_outside(target: &FileIdentity) -> Option<Use> {
    let family = target.node().family();
    let loops = loops::all();
    used(&family, &loops)
        .or_else(|| {
            let (standing, _) = loops::below(&family, &loops);
            standing.into_iter().find_map(|device| used_below(device, &loops))
        })
        .or_else(|| SOURCES.iter().find_map(|path| cannot_tell(Path::new(path))))
}

/// A use that nobody can rule out, where one of [`SOURCES`] cannot be read.
fn cannot_tell(source: &Path) -> Option<Use> {
    let looked = match source.is_dir() {
        true => fs::read_dir(source).map(drop),
        false => fs::read(source).map(drop),
    };
    let why = looked.err()?;
    Some(Use::new(
        format!("because nobody can tell whether it is in use: {}: {why}", source.display()),
        "mount /proc and /sys where voltar runs, as for a rescue system in a chroot",
    ))
}

/// The uses of these nodes themselves.
fn used(nodes: &[Node], loops: &[Loop]) -> Option<Use> {
    mounted(nodes)
        .or_else(|| swapped(nodes))
        .or_else(|| held(nodes))
        .or_else(|| behind_loop(nodes, loops))
        .or_else(|| opened_for_long(nodes))
}

/// The uses of what `device` stands on, other than by `device`: whoever writes to the backing
/// file, or to another loop device on the same bytes of it, does not know of `device`.
fn used_below(device: &Loop, loops: &[Loop]) -> Option<Use> {
    let backing = device.backing.family();
    let path = &device.path;
    let file = File::open(path)
        .ok()
        .filter(|file| file.metadata().is_ok_and(|metadata| Node::of(&metadata) == device.backing));
    let by_name = || file.as_ref().and_then(by_qemu);
    if let Some(found) = used(&backing, &[]).or_else(by_name) {
        return Some(found.of(&format!("{}, which it stands on", path.display())));
    }
    let others = loops.iter().filter(|other| device.overlaps(other));
    others.into_iter().find_map(|other| {
        let found = used(&Node::Block(other.number).family(), loops)?;
        Some(found.of(&format!("{}, which has the same bytes", other.node.display())))
    })
}

/// A QEMU's locks on `file`. Takes none.
pub(super) fn by_qemu(file: &File) -> Option<Use> {
    const HINT: &str = "shut the virtual machine down, or choose another target";
    let locked = |range| ioctl::probe_lock(file, &range).ok().flatten().is_some();
    if locked(QEMU_WRITES) {
        return Some(Use::new("a running QEMU writes to it (byte 101 is locked)", HINT));
    }
    (locked(QEMU_HELD) || locked(QEMU_DENIED))
        .then(|| Use::new("a running QEMU uses it (its lock bytes are taken)", HINT))
}

fn mounted(nodes: &[Node]) -> Option<Use> {
    let table = fs::read_to_string("/proc/self/mountinfo").ok()?;
    let mount = mounts::parse(&table).find(|mount| mount.is_from(nodes))?;
    Some(Use::new(
        format!("it is mounted at {}", mount.at.display()),
        "unmount it (`umount`), or choose another target",
    ))
}

fn swapped(nodes: &[Node]) -> Option<Use> {
    let table = fs::read_to_string("/proc/swaps").ok()?;
    let on = |line: &str| {
        let path = sysfs::unescape(line.split_whitespace().next()?);
        nodes.contains(&Node::of(&fs::metadata(&path).ok()?)).then_some(())
    };
    table.lines().skip(1).find_map(on)?;
    Some(Use::new("the system swaps to it", "switch it off (`swapoff`), or choose another target"))
}

fn held(nodes: &[Node]) -> Option<Use> {
    let numbers = nodes.iter().filter_map(|node| node.block_number());
    let holders: Vec<_> = numbers.flat_map(sysfs::holders).collect();
    (!holders.is_empty()).then(|| {
        Use::new(
            format!("it is part of {}", holders.join(", ")),
            "stop what stands on it (`lsblk` shows it), or choose another target",
        )
    })
}

fn behind_loop(nodes: &[Node], loops: &[Loop]) -> Option<Use> {
    let device = loops.iter().find(|device| nodes.contains(&device.backing))?;
    Some(Use::new(
        format!("it is what {} stands on", device.node.display()),
        "detach the loop device (`losetup --detach`), or restore to the loop device itself",
    ))
}

/// As [`opened`], but passes over those that come and go: whoever sets up or probes devices
/// (`losetup`, `udev`) opens all of them for a moment.
fn opened_for_long(nodes: &[Node]) -> Option<Use> {
    opened(nodes)?;
    thread::sleep(MOMENT);
    opened(nodes)
}

/// A process other than this one that has one of them open for writing.
fn opened(nodes: &[Node]) -> Option<Use> {
    let own = std::process::id();
    let processes = fs::read_dir("/proc").ok()?.flatten();
    let numbers = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let pid = numbers.filter(|pid| *pid != own).find(|pid| writes(*pid, nodes))?;
    let command = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    Some(Use::new(
        format!("process {pid} ({}) has it open for writing", command.trim()),
        "stop that process, or choose another target",
    ))
}

fn writes(pid: u32, nodes: &[Node]) -> bool {
    let Ok(descriptors) = fs::read_dir(format!("/proc/{pid}/fd")) else {
        return false;
    };
    descriptors.flatten().any(|entry| {
        let path = entry.path();
        // Sockets, pipes and the like have names without a slash; asking no more of them keeps
        // the scan short.
        let named = fs::read_link(&path).is_ok_and(|name| name.is_absolute());
        named && leads_to(&path, nodes) && is_writable(pid, &path)
    })
}

fn leads_to(descriptor: &Path, nodes: &[Node]) -> bool {
    fs::metadata(descriptor).is_ok_and(|metadata| nodes.contains(&Node::of(&metadata)))
}

/// Whether the open mode allows writing: the `flags` line of `fdinfo`, in octal.
fn is_writable(pid: u32, descriptor: &Path) -> bool {
    let number = descriptor.file_name().unwrap_or_default().to_string_lossy();
    let info = fs::read_to_string(format!("/proc/{pid}/fdinfo/{number}")).unwrap_or_default();
    let flags = info
        .lines()
        .find_map(|line| line.strip_prefix("flags:"))
        .and_then(|flags| libc::c_int::from_str_radix(flags.trim(), 8).ok());
    // Unknown is in use, never free.
    flags.is_none_or(|flags| flags & libc::O_ACCMODE != libc::O_RDONLY)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_looked_at_may_be_in_use() {
        for source in SOURCES {
            assert_eq!(cannot_tell(Path::new(source)), None);
        }
        let blind = cannot_tell(Path::new("/proc/self/no-such-table")).unwrap();
        assert!(blind.words.contains("/proc/self/no-such-table: No such file"), "{}", blind.words);
    }
}
