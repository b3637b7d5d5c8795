//! A reflink copy of a file: made beside it, marked as voltar's, found again.
//!
//! A copy is nameless until it is whole and marked: of a run that is killed before, nothing stays. Its
//! name is `.NAME.voltar-TIME`, where `NAME` is the file's; an attribute says which file it was made from,
//! so that it is known as voltar's by more than its name.

use std::ffi::{CStr, OsStr, OsString};
use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags};
use nix::libc;
use nix::sys::statfs::{BTRFS_SUPER_MAGIC, XFS_SUPER_MAGIC, fstatfs};
use nix::unistd::linkat;

use crate::archive::manifest::now_ns;
use crate::device::open::{directory_of, try_lock};
use crate::io::filesystem::{self, FLAG_NO_COW, Uuid};
use crate::source::{Degraded, Proof};

/// The attribute that marks a copy; its value tells the file that it was made from.
const MARK: &CStr = c"user.voltar.copy-of";
/// In a copy's name, between the file's and the time.
const INFIX: &str = ".voltar-";
/// Longest file name in bytes.
const NAME_LEN_MAX: usize = 255;
/// Longest time in a copy's name.
const TIME_LEN_MAX: usize = 20;

/// File systems that make reflink copies and tell where extents lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileSystem {
    /// btrfs.
    Btrfs,
    /// XFS.
    Xfs,
}

impl FileSystem {
    /// The one that `file` is on, if it is one of these.
    pub fn of(file: &File) -> Option<FileSystem> {
        match fstatfs(file).ok()?.filesystem_type() {
            BTRFS_SUPER_MAGIC => Some(FileSystem::Btrfs),
            XFS_SUPER_MAGIC => Some(FileSystem::Xfs),
            _ => None,
        }
    }

    /// What reports and `--changes` call changes found on it.
    pub fn kind(self) -> &'static str {
        match self {
            FileSystem::Btrfs => "btrfs-reflink",
            FileSystem::Xfs => "xfs-reflink",
        }
    }

    fn uuid(self, file: &File) -> io::Result<Uuid> {
        match self {
            FileSystem::Btrfs => filesystem::btrfs_uuid(file),
            FileSystem::Xfs => filesystem::xfs_uuid(file),
        }
    }
}

/// A regular file on a file system that makes reflink copies.
#[derive(Debug)]
pub struct Original {
    file: File,
    path: PathBuf,
    file_system: FileSystem,
}

impl Original {
    /// The file at `path`; `None` if it is none, or empty, or on another file system.
    pub fn open(path: &Path) -> Option<Original> {
        // What cannot be opened is for those to say who are going to read it.
        let path = fs::canonicalize(path).ok()?;
        fs::metadata(&path).ok().filter(|metadata| metadata.is_file() && metadata.len() > 0)?;
        let file = File::open(&path).ok()?;
        let file_system = FileSystem::of(&file)?;
        Some(Original { file, path, file_system })
    }

    /// The file system it is on.
    pub fn file_system(&self) -> FileSystem {
        self.file_system
    }

    /// Its path, without links.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Copies it beside itself, in one step. Everything that was written until now is in the copy.
    ///
    /// # Errors
    /// `Degraded` with what is in the way; nothing is left behind.
    pub fn copy(&self) -> Result<Copy, Degraded> {
        let copied = match self.obstacle() {
            Some(obstacle) => Err(obstacle.to_owned()),
            None => self.try_copy().map_err(|error| why_not(&error)),
        };
        copied.map_err(|why| Degraded(format!("it cannot be copied: {why}")))
    }

    /// What keeps it from being copied, or copies from being compared, whatever the kernel says.
    fn obstacle(&self) -> Option<&'static str> {
        if cfg!(target_endian = "big") {
            return Some("extents are read on little-endian machines only");
        }
        match self.file_system {
            FileSystem::Btrfs => {
                let flags = filesystem::inode_flags(&self.file).ok()?;
                (flags & FLAG_NO_COW != 0).then_some("copy on write is off for it (chattr +C)")
            }
            // Its addresses mean something else there.
            FileSystem::Xfs => {
                let is_realtime = filesystem::is_realtime(&self.file).ok()?;
                is_realtime.then_some("it lies on the realtime device")
            }
        }
    }

    fn try_copy(&self) -> io::Result<Copy> {
        let folder = directory_of(&self.path);
        let mut options = OpenOptions::new();
        options.read(true).write(true).mode(0o600).custom_flags(libc::O_TMPFILE);
        let file = options.open(folder)?;
        // Whoever cleans up meanwhile leaves alone what is locked.
        file.try_lock()?;
        filesystem::reflink(&self.file, &file)?;
        filesystem::set_attribute(&file, MARK, self.mark()?.as_bytes())?;
        let path = folder.join(self.name_of_copy());
        let nameless = format!("/proc/self/fd/{}", file.as_raw_fd());
        linkat(AT_FDCWD, nameless.as_str(), AT_FDCWD, &path, AtFlags::AT_SYMLINK_FOLLOW)?;
        Ok(Copy { file, path, file_system: self.file_system })
    }

    /// Tells the file from all others of its file system, past and present.
    fn mark(&self) -> io::Result<String> {
        let generation = filesystem::inode_generation(&self.file)?;
        Ok(format!("{}:{generation}", self.file.metadata()?.ino()))
    }

    /// What the names of its copies start with.
    fn prefix(&self) -> OsString {
        let name = self.path.file_name().unwrap_or_default().as_bytes();
        let room = NAME_LEN_MAX - TIME_LEN_MAX - INFIX.len() - 1;
        let name = &name[..name.len().min(room)];
        OsString::from_vec([b".", name, INFIX.as_bytes()].concat())
    }

    fn name_of_copy(&self) -> OsString {
        let mut name = self.prefix();
        name.push(now_ns().to_string());
        name
    }

    /// The copy that has this identity.
    ///
    /// # Errors
    /// Of reading its folder.
    pub fn find(&self, identity: &Proof) -> io::Result<Option<Copy>> {
        self.each_copy(|copy| copy.identity().is_ok_and(|found| found == *identity))
    }

    /// Takes away the copies that nobody is using, but for one with the identity `spared`.
    ///
    /// # Errors
    /// Of reading its folder and of removing.
    pub fn remove_copies(&self, spared: Option<&Proof>) -> io::Result<()> {
        let mut outcome = Ok(());
        self.each_copy(|copy| {
            let is_spared = spared.is_some() && copy.identity().ok().as_ref() == spared;
            if !is_spared && try_lock(&copy.file).is_ok_and(|locked| locked) {
                outcome = std::mem::replace(&mut outcome, Ok(())).and(copy.remove());
            }
            false
        })?;
        outcome
    }

    /// Shows `wanted` the copies of it that voltar made, until it wants one: those that have the file's
    /// name, or were made of it when it was called otherwise.
    fn each_copy(&self, mut wanted: impl FnMut(&Copy) -> bool) -> io::Result<Option<Copy>> {
        let (prefix, mark) = (self.prefix(), self.mark()?);
        for entry in fs::read_dir(directory_of(&self.path))? {
            let entry = entry?;
            let name = entry.file_name();
            let Some(stem) = stem_of_copy(&name) else { continue };
            // Another one's file may be out of reach, or gone by now.
            let Ok(Some((copy, of))) = Copy::open(&entry.path(), self.file_system) else {
                continue;
            };
            if (stem == prefix || of == mark.as_bytes()) && wanted(&copy) {
                return Ok(Some(copy));
            }
        }
        Ok(None)
    }
}

/// The reason in words, of which the kernel's are not always the right ones.
fn why_not(error: &io::Error) -> String {
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EOPNOTSUPP) => "the file system was made without reflink".into(),
        Some(Errno::ETXTBSY) => "it is in use as swap space".into(),
        Some(Errno::EXDEV) => "its folder is on another file system".into(),
        Some(Errno::EROFS) => "the file system is mounted read-only".into(),
        Some(Errno::EACCES | Errno::EPERM) => "its folder may not be written to".into(),
        Some(Errno::ENOSPC | Errno::EDQUOT) => "there is no room for it".into(),
        _ => error.to_string(),
    }
}

/// What a copy's name has before the time, if `name` is one.
fn stem_of_copy(name: &OsStr) -> Option<&OsStr> {
    let bytes = name.as_bytes();
    let digits = bytes.iter().rev().take_while(|byte| byte.is_ascii_digit()).count();
    let stem = &bytes[..bytes.len() - digits];
    let is_one = digits > 0 && stem.starts_with(b".") && stem.ends_with(INFIX.as_bytes());
    is_one.then(|| OsStr::from_bytes(stem))
}

/// A reflink copy, open. As long as it is, the one who made it holds its lock.
#[derive(Debug)]
pub struct Copy {
    file: File,
    path: PathBuf,
    file_system: FileSystem,
}

impl Copy {
    /// The copy at `path` and the mark of what it was made from; `None` if it is none of voltar's.
    fn open(path: &Path, file_system: FileSystem) -> io::Result<Option<(Copy, Vec<u8>)>> {
        let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
        let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
        if !file.metadata()?.is_file() {
            return Ok(None);
        }
        let mark = filesystem::attribute(&file, MARK)?;
        Ok(mark.map(|mark| (Copy { file, path: path.into(), file_system }, mark)))
    }

    /// Its bytes.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Its name.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file system it is on.
    pub fn file_system(&self) -> FileSystem {
        self.file_system
    }

    /// Makes it durable, its name included.
    ///
    /// # Errors
    /// The system's.
    pub fn sync(&self) -> io::Result<()> {
        self.file.sync_all()?;
        File::open(directory_of(&self.path))?.sync_all()
    }

    /// What tells this copy, with these bytes, from everything else. Whoever writes to it changes the time
    /// of its last change, which nobody can set.
    ///
    /// # Errors
    /// Of asking the file system.
    pub fn identity(&self) -> io::Result<Proof> {
        let metadata = self.file.metadata()?;
        let born = metadata.created()?.duration_since(std::time::UNIX_EPOCH);
        let born = born.map_err(io::Error::other)?.as_nanos();
        let changed =
            i128::from(metadata.ctime()) * 1_000_000_000 + i128::from(metadata.ctime_nsec());
        let uuid = self.file_system.uuid(&self.file)?;
        Ok(Proof::from([
            ("file_system".into(), hex(&uuid)),
            ("inode".into(), metadata.ino().to_string()),
            ("generation".into(), filesystem::inode_generation(&self.file)?.to_string()),
            ("born_ns".into(), born.to_string()),
            ("changed_ns".into(), changed.to_string()),
        ]))
    }

    /// Takes it away.
    ///
    /// # Errors
    /// The system's.
    pub fn remove(&self) -> io::Result<()> {
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a string does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}
