//! What `/sys` and `/proc` say of block devices.
//!
//! Every function answers with what it finds: a missing file is an absent fact, not an error,
//! because containers hide parts of both trees.

use std::fs;
use std::path::{Path, PathBuf};

use nix::libc;

/// A block device's number, as in `st_rdev`.
pub(super) type DeviceNumber = u64;

/// `major:minor` as the kernel writes it.
pub(super) fn number_words(number: DeviceNumber) -> String {
    format!("{}:{}", libc::major(number), libc::minor(number))
}

/// The device number from `major:minor`.
pub(super) fn parse_number(words: &str) -> Option<DeviceNumber> {
    let (major, minor) = words.trim().split_once(':')?;
    Some(libc::makedev(major.parse().ok()?, minor.parse().ok()?))
}

/// The device's directory under `/sys/devices`.
pub(super) fn directory(number: DeviceNumber) -> Option<PathBuf> {
    fs::canonicalize(format!("/sys/dev/block/{}", number_words(number))).ok()
}

/// One line of a file in the device's directory.
pub(super) fn attribute(directory: &Path, name: &str) -> Option<String> {
    let text = fs::read_to_string(directory.join(name)).ok()?;
    Some(text.trim().to_owned()).filter(|text| !text.is_empty())
}

/// The device, its partitions and, if it is one itself, the whole disk.
pub(super) fn family(number: DeviceNumber) -> Vec<DeviceNumber> {
    let mut family = vec![number];
    let Some(directory) = directory(number) else {
        return family;
    };
    if directory.join("partition").exists() {
        family.extend(directory.parent().and_then(number_of));
    } else {
        family.extend(partitions(&directory));
    }
    family
}

/// Names of the devices (dm, md, bcache) that stand on this one.
pub(super) fn holders(number: DeviceNumber) -> Vec<String> {
    let Some(directory) = directory(number) else {
        return Vec::new();
    };
    entries(&directory.join("holders")).map(|path| device_words(&path)).collect()
}

/// The device, its partitions, and whatever stands on them (dm, md, bcache), all the way up.
pub(super) fn standing_on(number: DeviceNumber) -> Vec<DeviceNumber> {
    let mut standing = vec![number];
    let mut next = 0;
    while let Some(number) = standing.get(next).copied() {
        next += 1;
        let Some(directory) = directory(number) else { continue };
        let holders = entries(&directory.join("holders")).filter_map(|path| number_of(&path));
        for above in partitions(&directory).chain(holders) {
            if !standing.contains(&above) {
                standing.push(above);
            }
        }
    }
    standing
}

/// The devices that this one (dm, md, bcache) stands on.
pub(super) fn slaves(number: DeviceNumber) -> Vec<DeviceNumber> {
    let directory = directory(number);
    let slaves = directory.map(|directory| directory.join("slaves"));
    slaves.iter().flat_map(|slaves| entries(slaves)).filter_map(|path| number_of(&path)).collect()
}

/// Directories of the loop devices that are set up.
pub(super) fn loops() -> Vec<PathBuf> {
    entries(Path::new("/sys/block"))
        .filter(|path| path.join("loop/backing_file").exists())
        .collect()
}

/// Maker and serial number, or the name a device mapper or loop device goes by.
pub(super) fn model(number: DeviceNumber) -> Option<String> {
    let directory = directory(number)?;
    let disk = match directory.join("partition").exists() {
        true => directory.parent()?.to_path_buf(),
        false => directory,
    };
    let facts = ["device/model", "device/serial", "serial", "dm/name", "loop/backing_file"];
    let words: Vec<_> = facts.iter().filter_map(|fact| attribute(&disk, fact)).collect();
    (!words.is_empty()).then(|| words.join(" "))
}

/// Undoes the octal escapes (`\040` for a space) of `/proc/mounts` and its kin.
pub(super) fn unescape(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        match octal(rest) {
            Some(byte) => {
                bytes.push(byte);
                rest = &rest[4..];
            }
            None => {
                bytes.push(first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn octal(bytes: &[u8]) -> Option<u8> {
    let digits = bytes.get(..4)?.strip_prefix(b"\\")?;
    u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok()
}

/// The number of the device with this directory.
pub(super) fn number_of(directory: &Path) -> Option<DeviceNumber> {
    parse_number(&attribute(directory, "dev")?)
}

fn partitions(directory: &Path) -> impl Iterator<Item = DeviceNumber> {
    entries(directory)
        .filter(|path| path.join("partition").exists())
        .filter_map(|path| number_of(&path))
}

fn device_words(directory: &Path) -> String {
    let name = directory.file_name().unwrap_or_default().to_string_lossy().into_owned();
    match attribute(directory, "dm/name") {
        Some(mapped) => format!("{name} ({mapped})"),
        None => name,
    }
}

fn entries(directory: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn octal_escapes_are_undone() {
        assert_eq!(unescape(r"/mnt/a\040b\011c"), "/mnt/a b\tc");
        assert_eq!(unescape(r"plain\04"), r"plain\04");
    }

    #[test]
    fn numbers_round_trip() {
        assert_eq!(number_words(parse_number("259:65537").unwrap()), "259:65537");
        assert_eq!(parse_number("8"), None);
    }
}
