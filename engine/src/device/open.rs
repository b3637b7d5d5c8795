//! Opening what the user named, with failures in the user's words.

use std::fs::{File, FileType, Metadata, OpenOptions, TryLockError};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use nix::unistd::{AccessFlags, eaccess};

use super::file::{Access, FileDevice};
use super::{Device, Resize};
use crate::error::{Error, ErrorKind, Result};

/// How long files and devices may stay in use behind a killed process: io_uring lets go of them
/// only when the requests in flight are through, some milliseconds after the process is gone.
pub(crate) const RELEASE_GRACE: Duration = Duration::from_millis(500);

const CANNOT_CREATE: &str = "cannot create the target";

/// Permissions of a new file that is as open as the process's mask leaves it (`umask(2)`).
pub const AS_MASKED: u32 = 0o666;
/// Permissions of a new file that is its owner's alone.
pub const OWNER_ALONE: u32 = 0o600;

/// Opens a volume to be read: a regular file or a block device that is not empty.
///
/// # Errors
/// Says what is in the way: nothing there, no permission, not a volume, empty.
pub fn open_source(path: &Path) -> Result<FileDevice> {
    let metadata = look(path, "cannot open the source")?;
    check_kind(path, &metadata, "cannot be backed up", ErrorKind::InvalidRequest)?;
    let device = FileDevice::open(path, Access::Read)
        .map_err(|error| in_words("cannot open the source", path, error))?;
    let len = device.len().map_err(|error| in_words("cannot ask the size of", path, error))?;
    if len == 0 {
        return Err(Error::new(ErrorKind::SourceUnusable, "the source is empty")
            .on(path.display().to_string())
            .hint("a volume has at least one byte; is a medium in the drive, is the path right?"));
    }
    Ok(device)
}

/// Sees whether [`create_target_file`] could, as far as that is known without trying.
///
/// # Errors
/// As of creating it: what is in the way.
pub fn check_creatable(path: &Path) -> Result<()> {
    refuse_new_in_dev(path, CANNOT_CREATE)?;
    let words = |errno: Errno| in_words(CANNOT_CREATE, path, errno.into());
    // A link that leads nowhere is there all the same.
    if path.is_symlink() {
        return Err(words(Errno::EEXIST));
    }
    // The dot tells a directory from a file.
    let directory = directory_of(path).join(".");
    eaccess(&directory, AccessFlags::W_OK | AccessFlags::X_OK).map_err(words)
}

/// Creates a regular file of `len` zero bytes that must not exist yet, and claims it. Who may open it
/// is told by `permissions`, less those that the process's mask takes.
///
/// # Errors
/// Says what is in the way; nothing is left behind. `TargetRefused` if another program came between
/// and locked the file, which is its own then.
pub fn create_target_file(path: &Path, len: u64, permissions: u32) -> Result<FileDevice> {
    refuse_new_in_dev(path, CANNOT_CREATE)?;
    let words = |error| in_words(CANNOT_CREATE, path, error);
    let mut options = OpenOptions::new();
    options.read(true).write(true).create_new(true).mode(permissions);
    take_over(path, options.open(path).map_err(words)?, len)
}

/// Makes a target of `len` bytes of the file that was created at `path` a moment ago.
fn take_over(path: &Path, file: File, len: u64) -> Result<FileDevice> {
    claim(path, &file)?;
    let device = FileDevice::from_file(path, file, Access::Write);
    let sized = device.and_then(|device| device.set_len(len).map(|()| device));
    sized.map_err(|error| {
        // Whoever locks it is who may remove it.
        let _ = std::fs::remove_file(path);
        in_words(CANNOT_CREATE, path, error)
    })
}

/// Claims a regular file that is a target, as `O_EXCL` claims a block device: of two restores that
/// were started at once only one goes on.
///
/// # Errors
/// `TargetRefused` if another program holds its lock.
pub(super) fn claim(target: &Path, file: &File) -> Result<()> {
    match try_lock(file) {
        Ok(true) => Ok(()),
        Ok(false) => {
            let hint = "wait until it is done, or choose another target";
            Err(refusal(target, "another program holds its lock", hint))
        }
        Err(error) => Err(in_words("cannot lock the target", target, error)),
    }
}

/// Says no to `target` because `why`.
pub(crate) fn refusal(target: &Path, why: impl std::fmt::Display, hint: &str) -> Error {
    Error::new(ErrorKind::TargetRefused, format!("refusing to write to the target, {why}"))
        .on(target.display().to_string())
        .hint(hint)
}

/// Opens an archive to be read.
///
/// # Errors
/// Says what is in the way.
pub fn open_archive_reader(path: &Path) -> Result<FileDevice> {
    let metadata = look(path, "cannot open the archive")?;
    check_kind(path, &metadata, "cannot hold an archive", ErrorKind::InvalidRequest)?;
    FileDevice::open(path, Access::Read)
        .map_err(|error| in_words("cannot open the archive", path, error))
}

/// Opens an archive to be read and appended to, creating an empty file if there is none. Takes no
/// lock.
///
/// # Errors
/// Says what is in the way. A block device is: to write an archive over one would pass by the
/// guard.
pub fn open_archive_writer(path: &Path) -> Result<FileDevice> {
    let failed = "cannot open the archive for writing";
    let words = |error| in_words(failed, path, error);
    match std::fs::metadata(path) {
        Ok(metadata) if metadata.file_type().is_block_device() => {
            Err(no_archive_on_block_device(&path.display().to_string()))
        }
        Ok(metadata) => {
            check_kind(path, &metadata, "cannot hold an archive", ErrorKind::InvalidRequest)?;
            FileDevice::open(path, Access::Write).map_err(words)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            refuse_new_in_dev(path, failed)?;
            let mut options = OpenOptions::new();
            let file = options.read(true).write(true).create(true).truncate(false).open(path);
            FileDevice::from_file(path, file.map_err(words)?, Access::Write).map_err(words)
        }
        Err(error) => Err(words(error)),
    }
}

/// Takes the lock of a file that is to be written by one program alone (`flock(2)`); `false` if
/// another holds it and does not let go within [`RELEASE_GRACE`].
///
/// # Errors
/// The system's.
pub fn try_lock(file: &File) -> io::Result<bool> {
    let started = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(true),
            Err(TryLockError::WouldBlock) if started.elapsed() < RELEASE_GRACE => {
                std::thread::sleep(RELEASE_GRACE / 50);
            }
            Err(TryLockError::WouldBlock) => return Ok(false),
            Err(TryLockError::Error(error)) => return Err(error),
        }
    }
}

/// Takes the lock of an archive that is open to be written.
///
/// # Errors
/// `Busy` if another writer holds it, or held it and took the file away: what is written to a file
/// without a name is lost with the last process that has it open. `Io` if that cannot be found out.
pub fn lock_archive(archive: &FileDevice) -> Result<()> {
    lock(archive.file(), archive.label())?;
    let identity = archive.identity();
    let has_name = match std::fs::metadata(archive.path()) {
        Ok(named) => (named.dev(), named.ino()) == (identity.dev, identity.ino),
        Err(error) if error.kind() == io::ErrorKind::NotFound => false,
        Err(error) => return Err(in_words("cannot look at the archive", archive.path(), error)),
    };
    match has_name {
        true => Ok(()),
        false => Err(Error::new(ErrorKind::Busy, "another writer has removed the archive")
            .on(archive.label())
            .meaning("nothing was changed")
            .hint("run this again")),
    }
}

/// Takes the lock of a file that an archive is written to, or says that another writer holds it.
///
/// # Errors
/// `Busy`; the system's.
pub fn lock(archive: &File, label: &str) -> Result<()> {
    match try_lock(archive) {
        Ok(true) => Ok(()),
        Ok(false) => Err(Error::new(ErrorKind::Busy, "another writer holds the archive")
            .on(label)
            .meaning("nothing was changed")
            .hint("wait until it is done, and run this again")),
        Err(error) => Err(Error::io("cannot lock the archive", label, error)),
    }
}

/// Renames, unless something has that name.
///
/// # Errors
/// The system's.
pub(crate) fn rename_to_new(from: &Path, to: &Path) -> io::Result<()> {
    match renameat2(AT_FDCWD, from, AT_FDCWD, to, RenameFlags::RENAME_NOREPLACE) {
        // Not all file systems have it.
        Err(Errno::EINVAL | Errno::ENOSYS) => {
            std::fs::hard_link(from, to)?;
            std::fs::remove_file(from)
        }
        outcome => Ok(outcome?),
    }
}

/// Makes a file's name durable, which is behind the links in `path`.
///
/// # Errors
/// Of syncing.
pub fn sync_directory(path: &Path) -> Result<()> {
    let open = || File::open(directory_of(&std::fs::canonicalize(path)?));
    let sync = || match open() {
        Ok(directory) => directory.sync_all(),
        // One that may be written to and not read, or not be reached from the root: its whole file
        // system, then.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            Ok(nix::unistd::syncfs(File::open(path)?)?)
        }
        Err(error) => Err(error),
    };
    sync().map_err(|error| {
        Error::io("cannot sync the directory of", path.display().to_string(), error)
    })
}

/// Standard output, for an archive: a pipe or a file.
///
/// # Errors
/// Says what is in the way. A block device is, as in [`open_archive_writer`].
pub fn open_archive_stdout() -> Result<File> {
    let label = "standard output";
    let open = || {
        let file = File::from(io::stdout().as_fd().try_clone_to_owned()?);
        let kind = file.metadata()?.file_type();
        Ok((file, kind))
    };
    let (file, kind) = open().map_err(|error| Error::io("cannot open", label, error))?;
    match kind.is_block_device() {
        true => Err(no_archive_on_block_device(label)),
        false => Ok(file),
    }
}

fn no_archive_on_block_device(label: &str) -> Error {
    Error::new(ErrorKind::InvalidRequest, "an archive is not written to a block device")
        .on(label)
        .hint("name a file, on a file system with room for it")
}

/// Refuses to make a regular file where devices live: a mistyped device name would fill memory.
fn refuse_new_in_dev(path: &Path, failed: &str) -> Result<()> {
    let directory = std::fs::canonicalize(directory_of(&behind_links(path)));
    let among_devices = directory
        .is_ok_and(|directory| directory.starts_with("/dev") && !directory.starts_with("/dev/shm"));
    match among_devices && !path.exists() {
        true => Err(in_words(failed, path, io::Error::from(io::ErrorKind::NotFound))),
        false => Ok(()),
    }
}

/// Where a file would be made that is not there yet: what `path` leads to if it is a link.
fn behind_links(path: &Path) -> PathBuf {
    let mut path = path.to_path_buf();
    // As many as the kernel follows (`path_resolution(7)`).
    for _ in 0..40 {
        let Ok(to) = std::fs::read_link(&path) else { break };
        path = directory_of(&path).join(to);
    }
    path
}

/// The directory that holds what `path` names.
pub(crate) fn directory_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// What is at `path`.
pub(super) fn look(path: &Path, failed: &str) -> Result<Metadata> {
    std::fs::metadata(path).map_err(|error| in_words(failed, path, error))
}

/// Refuses what is neither a regular file nor a block device.
pub(super) fn check_kind(
    path: &Path,
    metadata: &Metadata,
    cannot: &str,
    kind: ErrorKind,
) -> Result<()> {
    let Some((what, hint)) = misfit(metadata.file_type()) else {
        return Ok(());
    };
    Err(Error::new(kind, format!("{what} {cannot}")).on(path.display().to_string()).hint(hint))
}

fn misfit(kind: FileType) -> Option<(&'static str, &'static str)> {
    if kind.is_file() || kind.is_block_device() {
        return None;
    }
    Some(if kind.is_dir() {
        ("a directory", "name a block device or a file; directories are not volumes")
    } else if kind.is_char_device() {
        ("a character device", "name the block device; `lsblk` lists them")
    } else if kind.is_fifo() {
        ("a pipe", "name a block device or a file; a pipe cannot be read at offsets")
    } else {
        ("a socket", "name a block device or a file")
    })
}

/// A failed system call on `path` with the hint that fits.
pub(super) fn in_words(failed: &str, path: &Path, source: io::Error) -> Error {
    let hint = match source.kind() {
        io::ErrorKind::NotFound => Some("nothing is there; is the path right, is it attached?"),
        io::ErrorKind::PermissionDenied => {
            Some("it needs more rights: run as root, or join the group that owns it")
        }
        io::ErrorKind::ResourceBusy => Some("something else uses it exclusively"),
        io::ErrorKind::AlreadyExists => Some("name a file that does not exist yet"),
        io::ErrorKind::ReadOnlyFilesystem => Some("the file system is mounted read-only"),
        _ => None,
    };
    let error = Error::io(failed, path.display().to_string(), source);
    match hint {
        Some(hint) => error.hint(hint),
        None => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::test_rig::file_with;

    fn refusal(path: &Path) -> Error {
        open_source(path).map(|_| ()).unwrap_err()
    }

    #[test]
    fn what_cannot_be_a_source_says_why() {
        let folder = tempfile::tempdir().unwrap();
        let missing = refusal(&folder.path().join("nothing"));
        assert_eq!(missing.kind(), ErrorKind::NotFound);
        assert!(missing.remedy().is_some());

        let directory = refusal(folder.path());
        assert_eq!(directory.kind(), ErrorKind::InvalidRequest);
        assert!(directory.message().contains("a directory"));

        let null = refusal(Path::new("/dev/null"));
        assert!(null.message().contains("character device"));
        assert!(null.remedy().is_some_and(|hint| hint.contains("lsblk")));

        let pipe = folder.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(refusal(&pipe).message().contains("a pipe"));

        let empty = refusal(&file_with(folder.path(), "empty", &[]));
        assert_eq!(empty.kind(), ErrorKind::SourceUnusable);
    }

    #[test]
    fn a_target_file_is_created_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk");
        let device = create_target_file(&path, 12345, AS_MASKED).unwrap();
        assert_eq!(device.len().unwrap(), 12345);
        assert!(create_target_file(&path, 1, AS_MASKED).is_err());
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 12345);
    }

    #[test]
    fn a_target_file_is_claimed_before_it_has_a_length() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk");
        let device = create_target_file(&path, 4096, AS_MASKED).unwrap();
        assert!(!try_lock(&File::open(&path).unwrap()).unwrap(), "it is not locked");
        drop(device);
        // Another program opened it between its making and its lock.
        let other = File::open(&path).unwrap();
        assert!(try_lock(&other).unwrap());
        let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        let refused = take_over(&path, file, 1).map(|_| ()).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::TargetRefused);
        assert!(refused.to_string().contains("another program holds its lock"), "{refused}");
        assert_eq!(other.metadata().unwrap().len(), 4096);
        assert!(path.exists(), "what another program holds was removed");
    }

    #[test]
    fn an_archive_is_created_or_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("archive");
        open_archive_writer(&path).unwrap().write_at(b"bytes", 0).unwrap();
        assert_eq!(open_archive_writer(&path).unwrap().len().unwrap(), 5);
        assert_eq!(open_archive_reader(&path).unwrap().len().unwrap(), 5);
        assert!(open_archive_writer(folder.path()).is_err());
    }

    #[test]
    fn an_archive_is_locked_by_one_writer_and_under_its_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("archive");
        let open = || open_archive_writer(&path).unwrap();
        let refusal = |device: &FileDevice| {
            let error = lock_archive(device).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Busy);
            error.message().to_owned()
        };
        let (first, second) = (open(), open());
        lock_archive(&first).unwrap();
        assert!(refusal(&second).contains("holds the archive"));
        std::fs::remove_file(&path).unwrap();
        drop(first);
        assert!(refusal(&second).contains("removed the archive"));
        lock_archive(&open()).unwrap();
        assert!(refusal(&second).contains("removed the archive"));
    }

    #[test]
    fn a_mistyped_device_does_not_become_a_file() {
        let path = Path::new("/dev/voltar-no-such-device");
        for refused in [create_target_file(path, 1, AS_MASKED), open_archive_writer(path)] {
            assert_eq!(refused.map(|_| ()).unwrap_err().kind(), ErrorKind::NotFound);
        }
        assert!(!path.exists());
        let folder = tempfile::tempdir().unwrap();
        let (near, far) = (folder.path().join("near"), folder.path().join("far"));
        std::os::unix::fs::symlink(path, &far).unwrap();
        std::os::unix::fs::symlink("far", &near).unwrap();
        let refused = open_archive_writer(&near).map(|_| ()).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::NotFound);
        assert!(!path.exists());
    }
}
