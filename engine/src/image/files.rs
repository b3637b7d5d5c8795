//! The files of an image: the one that the user names, and those that it names itself.
//!
//! A name in an image was perhaps written by whoever ran in the virtual machine. It is taken the
//! way QEMU takes it, but never as anything other than a path; where the path leads must lie in a
//! folder that is allowed; and the file is opened from that folder without following a link, so
//! that nothing can be put in its place between the two.

use std::fs::{File, FileType, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};

use crate::error::{Error, ErrorKind, Result};

/// Where device nodes and their links are, which nobody but the system makes.
const DEVICES: &str = "/dev";

/// Where files may lie that an image names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Allowed {
    /// In the folder of the image that the user names, and below.
    #[default]
    ImageFolder,
    /// There, and in these folders and below.
    Folders(Vec<PathBuf>),
    /// Wherever.
    Anywhere,
}

/// Which file it is, whatever its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Identity {
    /// A regular file.
    File {
        /// The file system's device number.
        dev: u64,
        /// The inode's number.
        ino: u64,
    },
    /// A block device.
    Device {
        /// Its number.
        rdev: u64,
    },
}

/// A file of an image, open to be read.
#[derive(Debug)]
pub struct ImageFile {
    /// Its name, as given or as written in the image, from that image's folder.
    pub path: PathBuf,
    /// Which file it is.
    pub identity: Identity,
    file: File,
}

impl ImageFile {
    /// Opens the image that the user names.
    ///
    /// # Errors
    /// Says what is in the way.
    pub fn open(path: &Path) -> Result<ImageFile> {
        let words = |error| Error::io("cannot open the image", path.display().to_string(), error);
        let path = std::path::absolute(path).map_err(words)?;
        let real = std::fs::canonicalize(&path).map_err(words)?;
        check_kind(&path, "image", &std::fs::metadata(&real).map_err(words)?)?;
        let file = open_plain(&real).map_err(words)?;
        ImageFile::of(path, file, "image")
    }

    fn of(path: PathBuf, file: File, what: &str) -> Result<ImageFile> {
        let metadata = file.metadata();
        let metadata = metadata.map_err(|error| {
            Error::io("cannot look at the file", path.display().to_string(), error)
        })?;
        check_kind(&path, what, &metadata)?;
        let identity = match metadata.file_type().is_block_device() {
            true => Identity::Device { rdev: metadata.rdev() },
            false => Identity::File { dev: metadata.dev(), ino: metadata.ino() },
        };
        Ok(ImageFile { path, identity, file })
    }

    /// Whether it is a block device.
    pub fn is_block_device(&self) -> bool {
        matches!(self.identity, Identity::Device { .. })
    }

    /// The open file.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Its name, for messages.
    pub(super) fn label(&self) -> String {
        self.path.display().to_string()
    }
}

/// The folders that files may be opened from.
#[derive(Debug)]
pub(super) struct Folders {
    /// Without links; `None` for all there are.
    roots: Option<Vec<PathBuf>>,
}

impl Folders {
    /// Those of the image that the user names.
    pub(super) fn of(image: &ImageFile, allowed: &Allowed) -> Result<Folders> {
        let more: &[PathBuf] = match allowed {
            Allowed::Anywhere => return Ok(Folders { roots: None }),
            Allowed::ImageFolder => &[],
            Allowed::Folders(folders) => folders,
        };
        let own = folder_of(&image.path);
        let real = |folder: &Path| {
            std::fs::canonicalize(folder).map_err(|error| {
                Error::io("cannot open the folder", folder.display().to_string(), error)
            })
        };
        let folders = std::iter::once(own).chain(more.iter().map(PathBuf::as_path));
        Ok(Folders { roots: Some(folders.map(real).collect::<Result<_>>()?) })
    }

    /// Opens the file that `image` calls its `what`, by `name`.
    ///
    /// # Errors
    /// If it is no path, lies where it may not, or cannot be opened.
    pub(super) fn open_named(
        &self,
        image: &ImageFile,
        what: &str,
        name: &str,
    ) -> Result<ImageFile> {
        let path = path_of(image, name).ok_or_else(|| no_path(image, what, name))?;
        let failed = |error| {
            Error::io(format!("cannot open the {what} {name:?} of the image"), image.label(), error)
                .meaning("without it the disk's content is not known")
                .hint("bring it back to where it was, or correct its name in the image")
        };
        let real = std::fs::canonicalize(&path).map_err(failed)?;
        let metadata = std::fs::metadata(&real).map_err(failed)?;
        let root = self.root_of(&path, &real, metadata.file_type());
        let root = root.ok_or_else(|| outside(image, what, name, &real))?;
        check_kind(&path, what, &metadata)?;
        let file = match root {
            Root::Any => open_plain(&real),
            Root::Folder(root) => open_beneath(root, &real),
        };
        ImageFile::of(path, file.map_err(failed)?, what)
    }

    /// From where a file may be opened, if it may.
    fn root_of(&self, path: &Path, real: &Path, kind: FileType) -> Option<Root<'_>> {
        let Some(roots) = &self.roots else { return Some(Root::Any) };
        let root_over = |path: &Path| roots.iter().find(|root| path.starts_with(root));
        if let Some(root) = root_over(real) {
            return Some(Root::Folder(root));
        }
        // The name of a logical volume is a link to a node elsewhere among the devices.
        let folder = std::fs::canonicalize(folder_of(path)).ok()?;
        let is_device = kind.is_block_device() && real.starts_with(DEVICES);
        let is_link = folder.starts_with(DEVICES) && root_over(&folder).is_some();
        (is_device && is_link).then_some(Root::Folder(Path::new(DEVICES)))
    }
}

/// From where a file may be opened.
enum Root<'a> {
    Any,
    Folder(&'a Path),
}

/// The path that a name in an image means, if it means one. What has a colon before any slash is a
/// protocol to QEMU.
fn path_of(image: &ImageFile, name: &str) -> Option<PathBuf> {
    let (name, is_from_image) = match name.strip_prefix("file:") {
        Some(rest) => (rest, false),
        None => (name, true),
    };
    let has_protocol = name.find([':', '/']).is_some_and(|at| name[at..].starts_with(':'));
    // QEMU takes `file:NAME` from wherever it was started.
    let is_path = name.starts_with('/') || is_from_image && !name.is_empty() && !has_protocol;
    is_path.then(|| folder_of(&image.path).join(name))
}

fn folder_of(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new("/"))
}

fn open_plain(path: &Path) -> io::Result<File> {
    // Not to wait for another end, should it have become a pipe.
    let flags = (OFlag::O_NONBLOCK | OFlag::O_NOCTTY).bits();
    OpenOptions::new().read(true).custom_flags(flags).open(path)
}

/// Opens what lies at `real`, which has no links, beneath `root`.
fn open_beneath(root: &Path, real: &Path) -> io::Result<File> {
    let rest = real.strip_prefix(root).map_err(io::Error::other)?;
    let folder = File::open(root)?;
    let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    let resolve = ResolveFlag::RESOLVE_BENEATH
        | ResolveFlag::RESOLVE_NO_SYMLINKS
        | ResolveFlag::RESOLVE_NO_MAGICLINKS;
    let opened = openat2(&folder, rest, OpenHow::new().flags(flags).resolve(resolve))?;
    Ok(File::from(opened))
}

fn check_kind(path: &Path, what: &str, metadata: &Metadata) -> Result<()> {
    let kind = metadata.file_type();
    if kind.is_file() || kind.is_block_device() {
        return Ok(());
    }
    let message = format!("the {what} is neither a regular file nor a block device");
    Err(Error::new(ErrorKind::InvalidRequest, message)
        .on(path.display().to_string())
        .hint("name the file that holds the disk"))
}

fn no_path(image: &ImageFile, what: &str, name: &str) -> Error {
    let message =
        format!("the image names as its {what} {name:?}, which is not the path of a file");
    Error::new(ErrorKind::SourceUnusable, message)
        .on(image.label())
        .meaning("nothing was opened; such names make QEMU reach for other hosts and files")
        .hint(
            "do not open this image unless you know who wrote that; to back up such a disk, \
               export it with qemu-nbd yourself and name the export",
        )
}

fn outside(image: &ImageFile, what: &str, name: &str, real: &Path) -> Error {
    let folder = folder_of(real).display();
    let message = format!("the image's {what} {name:?} lies outside its folder, in {folder}");
    Error::new(ErrorKind::InvalidRequest, message)
        .on(image.label())
        .meaning("it was not opened: whoever ran in the VM may have written that name")
        .hint(format!("if it belongs there, allow the folder: --allow-backing {folder}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image() -> ImageFile {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk");
        std::fs::write(&path, "x").unwrap();
        let mut image = ImageFile::open(&path).unwrap();
        image.path = "/vm/disk".into();
        image
    }

    #[test]
    fn names_are_taken_as_qemu_takes_them_or_refused() {
        let image = image();
        let path = |name: &str| path_of(&image, name);
        for (name, expected) in [
            ("base", "/vm/base"),
            ("sub/base", "/vm/sub/base"),
            ("../base", "/vm/../base"),
            ("./a:b", "/vm/./a:b"),
            ("/x/base", "/x/base"),
            ("file:/x/base", "/x/base"),
            ("file:///x", "///x"),
        ] {
            assert_eq!(path(name), Some(PathBuf::from(expected)), "{name}");
        }
        for name in [
            "",
            "json:{\"driver\":\"file\",\"filename\":\"/etc/shadow\"}",
            "nbd://host/x",
            "nbd+unix:///?socket=x",
            "ssh://host/x",
            "fat:/etc",
            "host_device:/dev/sda",
            "a:b",
            ":",
            "file:",
            "file:base",
            "file:nbd://x",
            "file:file:/x",
        ] {
            assert_eq!(path(name), None, "{name}");
        }
    }
}
