//! The formats of images that are known here, by name and by magic number.

use std::fmt;
use std::str::FromStr;

/// Bytes at an image's start that tell its format.
pub const MAGIC_LEN: usize = 68;

/// A format of images, by QEMU's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// The disk's bytes as they are. It has no magic number: whoever ran on the disk could have
    /// written one.
    Raw,
    /// QEMU's own, version 2 and 3.
    Qcow2,
    /// VMware's: a sparse file, or a text that names files.
    Vmdk,
    /// Hyper-V's second.
    Vhdx,
    /// VirtualBox's.
    Vdi,
}

/// Their names, in the order of the messages.
const NAMES: [(Format, &str); 5] = [
    (Format::Raw, "raw"),
    (Format::Qcow2, "qcow2"),
    (Format::Vmdk, "vmdk"),
    (Format::Vhdx, "vhdx"),
    (Format::Vdi, "vdi"),
];

/// Magic numbers, and where they are.
const MAGICS: [(Format, usize, &[u8]); 5] = [
    (Format::Qcow2, 0, b"QFI\xfb"),
    (Format::Vmdk, 0, b"KDMV"),
    (Format::Vmdk, 0, b"# Disk DescriptorFile"),
    (Format::Vhdx, 0, b"vhdxfile"),
    (Format::Vdi, 64, &[0x7f, 0x10, 0xda, 0xbe]),
];

impl Format {
    /// What the first [`MAGIC_LEN`] bytes say. It is for the image that the user names, and only
    /// if the user vouches that it is no raw disk; of backing files the format must be written.
    pub fn of_header(first: &[u8]) -> Option<Format> {
        let has =
            |at: usize, magic: &[u8]| first.get(at..).is_some_and(|bytes| bytes.starts_with(magic));
        MAGICS.iter().find(|(_, at, magic)| has(*at, magic)).map(|(format, ..)| *format)
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        NAMES.iter().find(|(format, _)| *format == self).map_or("raw", |(_, name)| name)
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A name that is none of a format.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a format that voltar reads; write raw, qcow2, vmdk, vhdx or vdi")]
pub struct UnknownFormat(pub String);

impl FromStr for Format {
    type Err = UnknownFormat;

    fn from_str(name: &str) -> Result<Format, UnknownFormat> {
        let known = NAMES.iter().find(|(_, known)| *known == name);
        known.map(|(format, _)| *format).ok_or_else(|| UnknownFormat(name.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_back() {
        for (format, name) in NAMES {
            assert_eq!((name.parse(), format.to_string()), (Ok(format), name.to_owned()));
        }
        let unknown = "qcow".parse::<Format>().unwrap_err().to_string();
        assert!(unknown.contains("\"qcow\"") && unknown.contains("qcow2"), "{unknown}");
    }

    #[test]
    fn magic_numbers_tell_the_format_and_nothing_else_does() {
        for (format, at, magic) in MAGICS {
            let mut first = [0; MAGIC_LEN];
            first[at..(at + magic.len()).min(MAGIC_LEN)].copy_from_slice(magic);
            assert_eq!(Format::of_header(&first), Some(format));
            assert_eq!(Format::of_header(&first[..at + magic.len()]), Some(format));
            assert_eq!(Format::of_header(&first[..at + magic.len() - 1]), None);
            first[at] ^= 1;
            assert_eq!(Format::of_header(&first), None);
        }
        assert_eq!(Format::of_header(&[]), None);
        assert_eq!(Format::of_header(b"conectix"), None);
    }
}
