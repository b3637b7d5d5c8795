//! Who else uses a file or block device: mounts, swap, holders, loop devices, QEMU, open files.
//!
//! None of these suffices alone. `O_EXCL` finds mounts and claims in every mount name space but
//! neither a running QEMU nor a plain opener; `/proc/*/fd` finds those, but only of processes the
//! caller may look into (all, as root).

use std::fs::{self, File};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use nix::libc;

use super::file::FileIdentity;
use super::sysfs::{self, DeviceNumber};
use crate::io::ioctl;

/// QEMU's lock bytes (`block/file-posix.c`): permissions held, at 100 plus the permission's bit.
const QEMU_HELD: std::ops::Range<u64> = 100..164;
/// QEMU's lock bytes: permissions it denies to others, at 200 plus the bit.
const QEMU_DENIED: std::ops::Range<u64> = 200..264;
/// The byte a QEMU locks that writes (`BLK_PERM_WRITE` is bit 1).
const QEMU_WRITES: std::ops::Range<u64> = 101..102;

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
}

/// The uses that can be seen without opening the target.
pub(super) fn from_outside(target: &FileIdentity) -> Option<Use> {
    let family = match target.is_block {
        true => sysfs::family(target.rdev),
        false => Vec::new(),
    };
    mounted(&family)
        .or_else(|| swapped(target, &family))
        .or_else(|| held(&family))
        .or_else(|| behind_loop(target))
        .or_else(|| opened_for_long(target, &family))
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

fn mounted(family: &[DeviceNumber]) -> Option<Use> {
    let table = fs::read_to_string("/proc/self/mountinfo").ok()?;
    let place = mount_of(&table, family)?;
    Some(Use::new(
        format!("it is mounted at {place}"),
        "unmount it (`umount`), or choose another target",
    ))
}

/// Where one of `family` is mounted, by `mountinfo` (`proc_pid_mountinfo(5)`): by device number,
/// and by source path for file systems that have a number of their own, such as btrfs.
fn mount_of(table: &str, family: &[DeviceNumber]) -> Option<String> {
    table.lines().find_map(|line| {
        let (left, right) = line.split_once(" - ")?;
        let mut fields = left.split(' ');
        let number = sysfs::parse_number(fields.nth(2)?)?;
        let place = fields.nth(1)?;
        let source = right.split(' ').nth(1)?;
        let matches = family.contains(&number)
            || block_number(Path::new(&sysfs::unescape(source)))
                .is_some_and(|source| family.contains(&source));
        matches.then(|| sysfs::unescape(place))
    })
}

fn swapped(target: &FileIdentity, family: &[DeviceNumber]) -> Option<Use> {
    let table = fs::read_to_string("/proc/swaps").ok()?;
    let on = |line: &str| {
        let path = sysfs::unescape(line.split_whitespace().next()?);
        let metadata = fs::metadata(&path).ok()?;
        match metadata.file_type().is_block_device() {
            true => family.contains(&metadata.rdev()),
            false => is_same_file(target, &metadata),
        }
        .then_some(())
    };
    table.lines().skip(1).find_map(on)?;
    Some(Use::new("the system swaps to it", "switch it off (`swapoff`), or choose another target"))
}

fn held(family: &[DeviceNumber]) -> Option<Use> {
    let holders: Vec<_> = family.iter().flat_map(|number| sysfs::holders(*number)).collect();
    (!holders.is_empty()).then(|| {
        Use::new(
            format!("it is part of {}", holders.join(", ")),
            "stop what stands on it (`lsblk` shows it), or choose another target",
        )
    })
}

fn behind_loop(target: &FileIdentity) -> Option<Use> {
    let (_, name, _) = sysfs::loops().into_iter().find(|(_, _, backing)| {
        fs::metadata(backing).is_ok_and(|metadata| match target.is_block {
            true => metadata.file_type().is_block_device() && metadata.rdev() == target.rdev,
            false => is_same_file(target, &metadata),
        })
    })?;
    Some(Use::new(
        format!("it is what /dev/{name} stands on"),
        "detach the loop device (`losetup --detach`), or restore to the loop device itself",
    ))
}

/// As [`opened`], but passes over those that come and go: whoever sets up or probes devices
/// (`losetup`, `udev`) opens all of them for a moment.
fn opened_for_long(target: &FileIdentity, family: &[DeviceNumber]) -> Option<Use> {
    opened(target, family)?;
    thread::sleep(MOMENT);
    opened(target, family)
}

/// A process other than this one that has it open for writing.
fn opened(target: &FileIdentity, family: &[DeviceNumber]) -> Option<Use> {
    let own = std::process::id();
    let processes = fs::read_dir("/proc").ok()?.flatten();
    let numbers = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let pid = numbers.filter(|pid| *pid != own).find(|pid| writes(*pid, target, family))?;
    let command = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    Some(Use::new(
        format!("process {pid} ({}) has it open for writing", command.trim()),
        "stop that process, or choose another target",
    ))
}

fn writes(pid: u32, target: &FileIdentity, family: &[DeviceNumber]) -> bool {
    let Ok(descriptors) = fs::read_dir(format!("/proc/{pid}/fd")) else {
        return false;
    };
    descriptors.flatten().any(|entry| {
        let path = entry.path();
        // Sockets, pipes and the like have names without a slash; asking no more of them keeps
        // the scan short.
        let named = fs::read_link(&path).is_ok_and(|name| name.is_absolute());
        named && leads_to(&path, target, family) && is_writable(pid, &path)
    })
}

fn leads_to(descriptor: &Path, target: &FileIdentity, family: &[DeviceNumber]) -> bool {
    fs::metadata(descriptor).is_ok_and(|metadata| {
        match target.is_block && metadata.file_type().is_block_device() {
            true => family.contains(&metadata.rdev()),
            false => !target.is_block && is_same_file(target, &metadata),
        }
    })
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

/// The files behind `device` if it is a loop device, or a device that stands on one.
pub(super) fn backing_files(device: &FileIdentity) -> Vec<PathBuf> {
    let family = match device.is_block {
        true => sysfs::family(device.rdev),
        false => return Vec::new(),
    };
    let loops = sysfs::loops().into_iter();
    loops.filter(|(number, _, _)| family.contains(number)).map(|(_, _, path)| path).collect()
}

fn is_same_file(target: &FileIdentity, metadata: &fs::Metadata) -> bool {
    (target.dev, target.ino) == (metadata.dev(), metadata.ino())
}

fn block_number(path: &Path) -> Option<DeviceNumber> {
    if !path.is_absolute() {
        return None;
    }
    let metadata = fs::metadata(path).ok()?;
    metadata.file_type().is_block_device().then(|| metadata.rdev())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "\
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
30 22 0:26 / /mnt/with\\040space rw - btrfs /dev/does-not-exist rw
31 22 7:3 / /mnt/loop rw,relatime - ext4 /dev/loop3 rw
";

    #[test]
    fn mounts_are_found_by_number() {
        let loop3 = sysfs::parse_number("7:3").unwrap();
        assert_eq!(mount_of(TABLE, &[1, loop3]).as_deref(), Some("/mnt/loop"));
        assert_eq!(mount_of(TABLE, &[1]), None);
        let anonymous = sysfs::parse_number("0:26").unwrap();
        assert_eq!(mount_of(TABLE, &[anonymous]).as_deref(), Some("/mnt/with space"));
    }

    #[test]
    fn nonsense_in_the_mount_table_is_passed_over() {
        assert_eq!(mount_of("\n - \n1 2 3 - 4\n", &[1]), None);
    }
}
