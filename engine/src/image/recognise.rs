//! Which files are images.
//!
//! A raw disk may begin with anything: whoever ran on it could have written the header of an image
//! that names files of the host. So a header counts only where the file's name agrees with it, or
//! where the user says what the file is.

use std::fs::File;
use std::path::{Path, PathBuf};

use super::bytes::read_up_to;
use super::format::{Format, MAGIC_LEN};
use crate::error::{Error, ErrorKind, Result};

/// What a source is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// No image, or one that is not to be looked into.
    Plain,
    /// An image: the user says so, or a regular file's name and header agree.
    Image(Format, PathBuf),
    /// A file that begins like one; what the user should know of it.
    LooksLike(String),
}

/// What the file at `path` is; `format` is what the user says, if anything.
///
/// # Errors
/// Of reading the file.
pub fn source(path: &Path, format: Option<Format>) -> Result<Found> {
    match format {
        Some(Format::Raw) => Ok(Found::Plain),
        Some(format) => Ok(Found::Image(format, path.to_path_buf())),
        None => of_path(path),
    }
}

fn of_path(path: &Path) -> Result<Found> {
    // Whoever opens it to read it says what is in the way.
    if !path.metadata().is_ok_and(|metadata| metadata.is_file()) {
        return Ok(Found::Plain);
    }
    let Ok(file) = File::open(path) else { return Ok(Found::Plain) };
    let first = read_up_to(&file, 0, MAGIC_LEN)
        .map_err(|error| Error::io("cannot read", path.display().to_string(), error))?;
    let Some(format) = Format::of_header(&first) else { return Ok(Found::Plain) };
    // A text that names other files could be a guest's: raw parts of VMDK images have such names.
    let is_text = format == Format::Vmdk && first.starts_with(b"#");
    if by_name(path) == Some(format) && !is_text {
        return Ok(Found::Image(format, path.to_path_buf()));
    }
    let path = path.display();
    Ok(Found::LooksLike(format!(
        "{path} begins like a {format} image, but whoever ran on the disk could have written that: it \
         is backed up as it lies; write {format}:{path} if it is one"
    )))
}

/// The format that a file's name tells. What VMware calls `NAME-flat.vmdk` is a raw disk.
fn by_name(path: &Path) -> Option<Format> {
    let stem = path.file_stem()?.to_str()?;
    if ["-flat", "-rdm", "-rdmp"].iter().any(|raw| stem.ends_with(raw)) {
        return None;
    }
    path.extension()?.to_str()?.to_ascii_lowercase().parse().ok()
}

/// Whether the file at `path` is to become an image; `format` is what the user says, if anything. If
/// not, the name of a file that is not there yet tells.
///
/// # Errors
/// `InvalidRequest` for a format that is not written; `TargetRefused` for an image that is there.
pub fn becomes_image(path: &Path, format: Option<Format>) -> Result<bool> {
    let by_name = || by_name(path).filter(|_| !path.exists() || is_image(path) || is_empty(path));
    let shown = path.display();
    match format.or_else(by_name) {
        None | Some(Format::Raw) => Ok(false),
        Some(Format::Qcow2) if !path.exists() => Ok(true),
        Some(Format::Qcow2) => {
            let what = if is_empty(path) { "an empty file" } else { "an image" };
            let message = format!("refusing to write to the target, {what} is there");
            Err(Error::new(ErrorKind::TargetRefused, message).on(shown.to_string()).hint(
                "remove it or name a new file, or serve the image with qemu-nbd and restore to that \
                 export",
            ))
        }
        Some(format) => {
            let message = format!("images of the format {format} are read, not written");
            Err(Error::new(ErrorKind::InvalidRequest, message).on(shown.to_string()).hint(format!(
                "write a qcow2 image, or raw:{shown} for the disk's bytes as they are"
            )))
        }
    }
}

fn is_empty(path: &Path) -> bool {
    path.metadata().is_ok_and(|metadata| metadata.is_file() && metadata.len() == 0)
}

fn is_image(path: &Path) -> bool {
    matches!(of_path(path), Ok(Found::Image(..)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_counts_where_the_name_agrees() {
        let folder = tempfile::tempdir().unwrap();
        let put = |name: &str, bytes: &[u8]| {
            let path = folder.path().join(name);
            std::fs::write(&path, bytes).unwrap();
            path
        };
        let qcow2 = b"QFI\xfb\0\0\0\x03";
        let found = |path: &Path| source(path, None).unwrap();
        assert!(matches!(found(&put("a.qcow2", qcow2)), Found::Image(Format::Qcow2, _)));
        assert!(matches!(found(&put("A.VHDX", b"vhdxfile")), Found::Image(Format::Vhdx, _)));
        for name in ["a.raw", "a.img", "a", "a.vmdk"] {
            let Found::LooksLike(remark) = found(&put(name, qcow2)) else { panic!("{name}") };
            assert!(remark.contains("begins like a qcow2 image"), "{remark}");
        }
        // A guest's work: raw parts of VMDK images, and texts that name other files.
        for (name, header) in [("a-flat.vmdk", &b"KDMV"[..]), ("b.vmdk", b"# Disk DescriptorFile")]
        {
            assert!(matches!(found(&put(name, header)), Found::LooksLike(_)), "{name}");
        }
        assert_eq!(found(&put("b.qcow2", b"no header")), Found::Plain);
        assert_eq!(found(Path::new("/nonexistent.qcow2")), Found::Plain);
        let path = put("c.raw", qcow2);
        assert_eq!(source(&path, Some(Format::Raw)).unwrap(), Found::Plain);
        let said = source(&path, Some(Format::Vdi)).unwrap();
        assert_eq!(said, Found::Image(Format::Vdi, path));
    }

    #[test]
    fn a_new_qcow2_is_made_and_nothing_is_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let becomes = |name: &str, format| becomes_image(&folder.path().join(name), format);
        let kind = |name: &str, format| becomes(name, format).unwrap_err().kind();
        assert!(becomes("new.qcow2", None).unwrap());
        assert!(becomes("disk", Some(Format::Qcow2)).unwrap());
        assert!(!becomes("new.raw", None).unwrap());
        assert!(!becomes("new", None).unwrap());
        assert!(!becomes("new.qcow2", Some(Format::Raw)).unwrap());
        assert_eq!(kind("new.vdi", None), ErrorKind::InvalidRequest);
        assert_eq!(kind("x", Some(Format::Vmdk)), ErrorKind::InvalidRequest);
        std::fs::write(folder.path().join("old.qcow2"), b"QFI\xfb").unwrap();
        assert_eq!(kind("old.qcow2", None), ErrorKind::TargetRefused);
        assert_eq!(kind("old.qcow2", Some(Format::Qcow2)), ErrorKind::TargetRefused);
        std::fs::write(folder.path().join("empty.qcow2"), b"").unwrap();
        assert_eq!(kind("empty.qcow2", None), ErrorKind::TargetRefused);
        // A raw disk with such a name was there before: it is the guard's.
        std::fs::write(folder.path().join("raw.qcow2"), b"bytes").unwrap();
        assert!(!becomes("raw.qcow2", None).unwrap());
    }
}
