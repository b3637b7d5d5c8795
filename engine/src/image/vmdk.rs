//! What a VMDK image names: the files of a text descriptor, and parents.
//!
//! Where QEMU's driver (`block/vmdk.c`) passes over a line, or searches the whole text for a word,
//! this is at least as strict: what could mean a file to it is understood here, or refused. QEMU
//! takes the names of extents from the text alone, so it is given another text, written here.

use std::io;

use super::bytes::{ImageBytes, le64_at, read_up_to};

const SPARSE_MAGIC: &[u8] = b"KDMV";
const TEXT_MAGIC: &[u8] = b"# Disk DescriptorFile";
/// QEMU reads no more of a text.
const TEXT_LEN_MAX: u64 = (1 << 20) - 1;
/// Where QEMU looks for a parent's name in a sparse image.
const EMBEDDED: (u64, usize) = (512, 20 * 512);
const PARENT_HINT: &str = "parentFileNameHint";
const PARENT_CID: &str = "parentCID=";
const NO_PARENT: &str = "ffffffff";
/// Longest name of an extent.
const NAME_LEN_MAX: usize = 511;
/// Most files of a descriptor: 2 GiB each make 8 TiB.
const EXTENTS_MAX: usize = 4096;

/// A file that holds a part of the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Its name as it stands there.
    pub name: String,
    /// Its length in sectors.
    pub sectors: u64,
    /// How it holds them.
    pub kind: ExtentKind,
}

/// How an extent holds its part of the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExtentKind {
    /// As the bytes are.
    Flat {
        /// The first of its sectors in the file.
        offset: u64,
    },
    /// In a sparse file of its own, to be passed to [`check_sparse`].
    Sparse,
}

/// Why an image is refused.
#[derive(Debug, thiserror::Error)]
pub enum VmdkError {
    /// It could not be read.
    #[error("the image cannot be read")]
    Unreadable(#[source] io::Error),
    /// It begins with something else.
    #[error("it does not begin as a VMDK image does")]
    Magic,
    /// A sparse file that would make QEMU look for a descriptor inside, which may name any file.
    #[error("it is a sparse file of no size, which leads to a descriptor of its own")]
    NoCapacity,
    /// It is a difference from another image.
    #[error("it is made upon another image (a snapshot or a linked clone)")]
    Parent,
    /// A text that is none.
    #[error("its descriptor is longer than {TEXT_LEN_MAX} bytes, or is not plain text")]
    Text,
    /// A line that is not understood.
    #[error("line {number} of its descriptor is not understood: {line:?}")]
    Line {
        /// Which, from 1.
        number: usize,
        /// What it says.
        line: String,
    },
    /// None, or too many.
    #[error("its descriptor names {0} files, not from 1 to {EXTENTS_MAX}")]
    Extents(usize),
}

/// The files that the image is made of beside itself: none, for a sparse one.
///
/// # Errors
/// For a parent, for kinds of extents that QEMU passes over, and for what is not understood.
pub fn extents(image: &(impl ImageBytes + ?Sized)) -> Result<Vec<Extent>, VmdkError> {
    let first = read_up_to(image, 0, TEXT_MAGIC.len()).map_err(VmdkError::Unreadable)?;
    match first == TEXT_MAGIC {
        true => descriptor(image),
        false => check_sparse(image).map(|()| Vec::new()),
    }
}

/// Checks that a sparse image names no other file.
///
/// # Errors
/// If it does, or is none.
pub fn check_sparse(image: &(impl ImageBytes + ?Sized)) -> Result<(), VmdkError> {
    let header = read_up_to(image, 0, 20).map_err(VmdkError::Unreadable)?;
    if header.len() < 20 || !header.starts_with(SPARSE_MAGIC) {
        return Err(VmdkError::Magic);
    }
    if le64_at(&header, 12) == 0 {
        return Err(VmdkError::NoCapacity);
    }
    let (offset, len) = EMBEDDED;
    let embedded = read_up_to(image, offset, len).map_err(VmdkError::Unreadable)?;
    match has_parent(&String::from_utf8_lossy(&embedded)) {
        true => Err(VmdkError::Parent),
        false => Ok(()),
    }
}

fn has_parent(text: &str) -> bool {
    let mut cids = text.match_indices(PARENT_CID).map(|(at, word)| &text[at + word.len()..]);
    text.contains(PARENT_HINT) || cids.any(|cid| !cid.starts_with(NO_PARENT))
}

fn descriptor(image: &(impl ImageBytes + ?Sized)) -> Result<Vec<Extent>, VmdkError> {
    let size = image.size().map_err(VmdkError::Unreadable)?;
    if size > TEXT_LEN_MAX {
        return Err(VmdkError::Text);
    }
    let bytes = read_up_to(image, 0, size as usize).map_err(VmdkError::Unreadable)?;
    let text = std::str::from_utf8(&bytes).map_err(|_| VmdkError::Text)?;
    // QEMU fills up the sector when it writes one, and reads up to the first NUL.
    let text = text.trim_end_matches('\0');
    if text.chars().any(|character| character.is_control() && !"\n\r\t".contains(character)) {
        return Err(VmdkError::Text);
    }
    if has_parent(text) {
        return Err(VmdkError::Parent);
    }
    let mut extents = Vec::new();
    for (number, line) in (1..).zip(text.split('\n')) {
        let access = line.split_ascii_whitespace().next();
        if access.is_some_and(|word| ["RW", "RDONLY", "NOACCESS"].contains(&word)) {
            let misread = || VmdkError::Line { number, line: line.trim().to_owned() };
            extents.push(extent(line).ok_or_else(misread)?);
        }
    }
    match extents.len() {
        1..=EXTENTS_MAX => Ok(extents),
        count => Err(VmdkError::Extents(count)),
    }
}

/// `RW SECTORS FLAT "NAME" OFFSET`, `VMFS` with or without an offset, or `SPARSE` without.
fn extent(line: &str) -> Option<Extent> {
    let mut parts = line.splitn(3, '"');
    let (head, name, tail) = (parts.next()?, parts.next()?, parts.next()?.trim_ascii());
    let words: Vec<&str> = head.split_ascii_whitespace().collect();
    let ["RW", sectors, kind] = words[..] else { return None };
    let kind = match (kind, tail) {
        ("SPARSE", "") => ExtentKind::Sparse,
        ("VMFS", "") => ExtentKind::Flat { offset: 0 },
        ("FLAT" | "VMFS", offset) => ExtentKind::Flat { offset: number(offset)? },
        _ => return None,
    };
    let sectors = number(sectors).filter(|sectors| *sectors > 0)?;
    let is_named = !name.is_empty() && name.len() <= NAME_LEN_MAX && !name.contains('\r');
    is_named.then(|| Extent { name: name.to_owned(), sectors, kind })
}

/// Digits alone, that QEMU's numbers have room for.
fn number(word: &str) -> Option<u64> {
    let is_number = word.bytes().all(|byte| byte.is_ascii_digit());
    word.parse().ok().filter(|number| is_number && *number <= i64::MAX as u64)
}

/// A descriptor of these extents, in files of other names, and of nothing else.
pub fn descriptor_of<'a>(extents: impl Iterator<Item = (&'a Extent, String)>) -> String {
    // Any type of image whose descriptor is a file of its own.
    let mut text = String::from(
        "# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\n\
         createType=\"twoGbMaxExtentSparse\"\n",
    );
    for (Extent { sectors, kind, .. }, name) in extents {
        let line = match kind {
            ExtentKind::Flat { offset } => format!("RW {sectors} FLAT \"{name}\" {offset}\n"),
            ExtentKind::Sparse => format!("RW {sectors} SPARSE \"{name}\"\n"),
        };
        text.push_str(&line);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(lines: &str) -> Result<Vec<Extent>, VmdkError> {
        extents(format!("# Disk DescriptorFile\nparentCID=ffffffff\n{lines}\n").as_bytes())
    }

    fn sparse(capacity: u64, embedded: &str) -> Vec<u8> {
        let mut bytes = vec![0; 65536];
        bytes[..4].copy_from_slice(SPARSE_MAGIC);
        bytes[12..20].copy_from_slice(&capacity.to_le_bytes());
        bytes[512..512 + embedded.len()].copy_from_slice(embedded.as_bytes());
        bytes
    }

    #[test]
    fn extents_come_in_their_order() {
        let lines =
            "RW 4 FLAT \"a b.vmdk\" 0\r\n\tRW 2 SPARSE \"c\"\nRW 1 VMFS \"d\"\nddb.x = \"RW\"";
        let names = of(lines).unwrap();
        let extent = |name: &str, sectors, kind| Extent { name: name.into(), sectors, kind };
        let flat = ExtentKind::Flat { offset: 0 };
        let expected =
            [extent("a b.vmdk", 4, flat), extent("c", 2, ExtentKind::Sparse), extent("d", 1, flat)];
        assert_eq!(names, expected);
        let text = descriptor_of(names.iter().map(|extent| (extent, extent.name.clone())));
        assert_eq!(extents(text.as_bytes()).unwrap(), expected);
        assert_eq!(extents(format!("{text}\0\0\0").as_bytes()).unwrap(), expected);
    }

    #[test]
    fn what_qemu_would_pass_over_or_take_otherwise_is_refused() {
        for line in [
            "RW 4 FLAT \"a\"",
            "RW 4 FLAT \"a\" -1",
            "RW 4 SPARSE \"a\" 0",
            "RW 0 FLAT \"a\" 0",
            "RW x FLAT \"a\" 0",
            "RW 99999999999999999999 FLAT \"a\" 0",
            "RW 4 ZERO",
            "RW 4 SESPARSE \"a\"",
            "RW 4 FLAT a 0",
            "RW 4 FLAT \"\" 0",
            "RW",
            "RDONLY 4 FLAT \"a\" 0",
            "NOACCESS 4 FLAT \"a\" 0",
        ] {
            let error = of(&format!("RW 1 FLAT \"x\" 0\n{line}")).unwrap_err();
            assert!(matches!(error, VmdkError::Line { number: 4, .. }), "{line}: {error}");
        }
        assert!(matches!(of("version=1"), Err(VmdkError::Extents(0))));
        for text in ["RW\x0b4 FLAT \"a\" 0", "\0"] {
            assert!(matches!(of(text), Err(VmdkError::Text)), "{text:?}");
        }
        let long = "#".repeat(1 << 20);
        assert!(matches!(of(&long), Err(VmdkError::Text)));
        let many = "RW 1 FLAT \"x\" 0\n".repeat(EXTENTS_MAX + 1);
        assert!(matches!(of(&many), Err(VmdkError::Extents(_))));
    }

    #[test]
    fn parents_are_refused_wherever_they_stand() {
        for line in ["parentFileNameHint=\"/etc/shadow\"", "parentCID=12345678"] {
            let text = format!("RW 1 FLAT \"x\" 0\n{line}");
            assert!(matches!(of(&text), Err(VmdkError::Parent)), "{line}");
            assert!(matches!(extents(&sparse(8, line)[..]), Err(VmdkError::Parent)), "{line}");
        }
    }

    #[test]
    fn a_sparse_file_stands_alone() {
        assert_eq!(extents(&sparse(8, "parentCID=ffffffff\n")[..]).unwrap(), []);
        assert!(matches!(extents(&sparse(0, "")[..]), Err(VmdkError::NoCapacity)));
        for bytes in [&b""[..], b"KDMV", &[0; 4096]] {
            assert!(matches!(extents(bytes), Err(VmdkError::Magic)));
        }
    }
}
