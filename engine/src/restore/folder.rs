//! A folder as the target of a whole snapshot: what volumes and attached files are called in it,
//! and the attached files' own restore.
//!
//! Names come from the archive and are believed in nothing: one rule makes file names of them that
//! stay in the folder, and those that would meet are refused before anything is written.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{DirBuilder, File, FileType, Metadata, OpenOptions, Permissions};
use std::io::{ErrorKind as IoErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use voltar_format::limits::ATTACHED_LEN_MAX;
use voltar_format::manifest::Attached;

use super::plan::Assignment;
use super::start::{self, Disk, FACTS_LEN_MAX, LIBVIRT_DOMAIN, QEMU_FACTS, Start};
use crate::archive::attached;
use crate::archive::index::Index;
use crate::archive::open::Archive;
use crate::archive::snapshots::Snapshot;
use crate::archive::store::Store;
use crate::device::file::FileIdentity;
use crate::device::open::{
    OWNER_ALONE, check_creatable, refusal, rename_to_new, sync_directory, try_lock,
};
use crate::error::{Error, ErrorKind, Result};
use crate::image::format::Format;
use crate::io::ioctl;
use crate::options::{Context, FolderRequest, RestoreRequest};
use crate::report::AttachedRestore;
use crate::words::is_harmful;

/// Longest file name, in bytes: what file systems take, less what an image that is being made adds
/// to its name.
const FILE_NAME_LEN_MAX: usize = 255 - ".".len() - ".voltar-unfinished".len();

/// What an attached file is called until it is whole. No name of a snapshot becomes this one, and the
/// folder's lock keeps it from being two restores'.
const UNFINISHED: &str = ".voltar-unfinished";

/// Permissions of a new folder: what comes into it may hold secrets.
const FOLDER_PERMISSIONS: u32 = 0o700;

/// The file name that a name in an archive becomes: a dot at its start, slashes, percent signs and
/// whatever could drive a terminal are percent-encoded, so that no two names become one.
///
/// # Errors
/// `TargetRefused` if it is too long for a file system.
fn file_name(name: &str, suffix: &str) -> Result<String> {
    let mut safe = String::with_capacity(name.len() + suffix.len());
    for (at, c) in name.char_indices() {
        match c {
            '.' if at > 0 => safe.push(c),
            '.' | '/' | '%' => encode(c, &mut safe),
            c if is_harmful(c) => encode(c, &mut safe),
            c => safe.push(c),
        }
    }
    safe.push_str(suffix);
    match safe.len() <= FILE_NAME_LEN_MAX {
        true => Ok(safe),
        false => Err(Error::new(
            ErrorKind::TargetRefused,
            format!("a name in the snapshot is too long for a file: {name:?}"),
        )
        .hint(
            "restore volumes to targets of your own naming (NAME=TARGET); `voltar show --attached` \
             writes an attached file",
        )),
    }
}

fn encode(c: char, safe: &mut String) {
    c.encode_utf8(&mut [0; 4]).bytes().for_each(|byte| safe.push_str(&format!("%{byte:02X}")));
}

/// Where `volume` goes in the folder.
///
/// # Errors
/// As of [`file_name`].
pub fn volume_path(folder: &Path, volume: &str, format: Format) -> Result<PathBuf> {
    Ok(folder.join(file_name(volume, &format!(".{format}"))?))
}

/// A folder and the attached files that go into it.
pub struct Folder<'a> {
    archive: &'a Archive,
    index: Index,
    path: PathBuf,
    /// What its volumes become.
    format: Format,
    /// Whether nothing was there when it was looked at.
    is_new: bool,
    /// Whether this run made it.
    is_made: bool,
    /// Keeps other restores out, once the folder is there.
    lock: Option<File>,
    files: Vec<Item<'a>>,
    /// Whether an attached file was written.
    is_changed: bool,
}

/// An attached file and its place.
struct Item<'a> {
    file: &'a Attached,
    path: PathBuf,
    state: State,
}

/// What is to be done about an attached file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// To be written where nothing is.
    Absent,
    /// To be written in the place of another file.
    Other,
    /// It is there as the snapshot has it.
    Present,
    /// The archive cannot give it, and that is borne.
    Lost,
}

impl<'a> Folder<'a> {
    /// The folder that was asked for, which gets `assignments` and what is attached to `snapshot`. One
    /// that is there is locked before anything in it is looked at, for a dry run, too. Nothing is
    /// changed.
    ///
    /// # Errors
    /// `TargetRefused` for names that meet or are too long, for what is no folder, and for one that
    /// another restore writes into; of looking.
    pub fn new(
        request: &FolderRequest,
        assignments: &[Assignment],
        archive: &'a Archive,
        snapshot: &'a Snapshot,
    ) -> Result<Folder<'a>> {
        let mut files = Vec::new();
        for file in &snapshot.manifest.attached {
            let path = request.path.join(file_name(&file.name, "")?);
            files.push(Item { file, path, state: State::Absent });
        }
        refuse_meeting(assignments, &files)?;
        let index = Index::of_commit(archive, &snapshot.commit);
        let (path, format) = (request.path.clone(), request.format);
        let is_new = is_new(&path)?;
        let lock = if is_new { None } else { lock(&path)? };
        let (is_made, is_changed) = (false, false);
        Ok(Folder { archive, index, path, format, is_new, is_made, lock, files, is_changed })
    }

    /// Whether nothing can be in it, because it is not there yet.
    pub fn is_new(&self) -> bool {
        self.is_new
    }

    /// Whether something was put into it.
    pub fn is_changed(&self) -> bool {
        self.is_changed
    }

    /// Its path, to be shown.
    pub fn label(&self) -> String {
        self.path.display().to_string()
    }

    /// Proves that the archive has the attached files, and looks at what is in their places. Nothing
    /// is changed.
    ///
    /// # Errors
    /// `TargetRefused` for what may not be overwritten; damage, unless it is borne.
    pub fn clear(
        &mut self,
        assignments: &[Assignment],
        request: &RestoreRequest,
        context: &Context,
    ) -> Result<()> {
        let bears = |error: &Error| assignments.first().is_some_and(|it| it.job.bears(error));
        let look = |item: &Item<'_>| {
            let there = replaceable(&item.path, &request.archive)?;
            // What cannot be read is another file.
            let is_as_long = there.as_ref().is_some_and(|there| there.len() == item.file.size);
            let opened = is_as_long.then(|| open(&item.path).ok()).flatten();
            match self.holds(item.file, opened, context) {
                Ok(true) => Ok(State::Present),
                Ok(false) => self.to_be_written(&item.path, there.is_some(), request),
                Err(error) if bears(&error) => Ok(State::Lost),
                Err(error) => Err(self.lost(item.file, error)),
            }
        };
        let states = self.files.iter().map(look).collect::<Result<Vec<_>>>()?;
        self.files.iter_mut().zip(states).for_each(|(item, state)| item.state = state);
        Ok(())
    }

    /// How an attached file comes to its path, where another one may be.
    fn to_be_written(
        &self,
        path: &Path,
        is_taken: bool,
        request: &RestoreRequest,
    ) -> Result<State> {
        if is_taken && !request.overwrite {
            return Err(other_file(path));
        }
        if !self.is_new {
            check_creatable(path)?;
        }
        Ok(if is_taken { State::Other } else { State::Absent })
    }

    /// Reads an attached file from the archive, which proves it, and compares it with what is
    /// `there`.
    fn holds(&self, file: &Attached, mut there: Option<File>, context: &Context) -> Result<bool> {
        let (mut found, mut is_same) = (Vec::new(), there.is_some());
        self.read(file, context, &mut |bytes| {
            found.resize(bytes.len(), 0);
            if let Some(there) = there.as_mut().filter(|_| is_same) {
                is_same = there.read_exact(&mut found).is_ok() && found == bytes;
            }
            Ok(())
        })?;
        Ok(is_same)
    }

    fn read(
        &self,
        file: &Attached,
        context: &Context,
        take: &mut dyn FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        let mut store = Store::new(self.archive.home.clone(), self.index.clone())?;
        attached::read(self.archive, &mut store, file, &context.cancel, take)
    }

    /// `error`, which is why the archive cannot give an attached file.
    fn lost(&self, file: &Attached, error: Error) -> Error {
        if !error.is_damage() {
            return error;
        }
        let message = format!("the archive cannot give the attached file {:?}", file.name);
        Error::new(error.kind(), message)
            .on(self.archive.label())
            .because(error)
            .hint("`--on-damage zero` restores the rest")
    }

    /// What the user should know of attached files.
    pub fn remarks(&self) -> impl Iterator<Item = String> {
        let lost = self.files.iter().filter(|item| item.state == State::Lost);
        lost.map(|item| {
            let name = &item.file.name;
            format!("the archive cannot give the attached file {name:?}: it is not restored")
        })
    }

    /// What is to be said of each attached file.
    pub fn report(&self) -> Vec<AttachedRestore> {
        let entry = |item: &Item<'_>| AttachedRestore {
            name: item.file.name.clone(),
            path: item.path.display().to_string(),
            bytes: item.file.size,
            complete: item.state != State::Lost,
        };
        self.files.iter().map(entry).collect()
    }

    /// Makes the folder, if it is not there, for its owner alone, and locks it.
    ///
    /// # Errors
    /// `TargetRefused` if something came there since it was looked at; the system's.
    pub fn create(&mut self) -> Result<()> {
        if !self.is_new {
            return Ok(());
        }
        match DirBuilder::new().mode(FOLDER_PERMISSIONS).create(&self.path) {
            Ok(()) => {}
            Err(error) if error.kind() == IoErrorKind::AlreadyExists => {
                return Err(refusal(
                    &self.path,
                    "something came there while the snapshot was looked at",
                    "see whether another restore writes into it, and run this again",
                ));
            }
            Err(error) => {
                return Err(Error::io("cannot create the folder", self.label(), error));
            }
        }
        // Another restore may have found it before it was locked; it is not taken away from that one.
        self.lock = lock(&self.path)?;
        self.is_made = true;
        sync_directory(&self.path)
    }

    /// The restore failed: takes a folder that it made away again, if nothing is in it.
    pub fn leave(&self) {
        if self.is_made {
            // What has something in it stays; nothing better can be done if this fails otherwise.
            let _ = std::fs::remove_dir(&self.path);
        }
    }

    /// Writes the attached files that are not there yet, and proves them if that is wanted.
    ///
    /// # Errors
    /// Of reading and writing.
    pub fn write(&mut self, request: &RestoreRequest, context: &Context) -> Result<()> {
        for item in self.files.iter().filter(|item| item.state != State::Lost) {
            if item.state != State::Present {
                self.put(item, context)?;
                self.is_changed = true;
            }
            if request.read_back {
                self.prove(item, context)?;
            }
        }
        Ok(())
    }

    /// Writes an attached file under another name and gives it its own when it is durable: it is
    /// there as a whole or not at all. It may hold secrets, and is its owner's alone.
    fn put(&self, item: &Item<'_>, context: &Context) -> Result<()> {
        let unfinished = self.path.join(UNFINISHED);
        let failed = |error| {
            Error::io("cannot write the attached file", item.path.display().to_string(), error)
        };
        let outcome =
            self.fill(&unfinished, item.file, context, &failed).and_then(|()| match item.state {
                State::Other => std::fs::rename(&unfinished, &item.path).map_err(failed),
                _ => rename_to_new(&unfinished, &item.path).map_err(failed),
            });
        if outcome.is_err() {
            // Nothing better can be done: the failure that led here is reported.
            let _ = std::fs::remove_file(&unfinished);
        }
        outcome?;
        sync_directory(&item.path)
    }

    fn fill(
        &self,
        unfinished: &Path,
        file: &Attached,
        context: &Context,
        failed: &dyn Fn(std::io::Error) -> Error,
    ) -> Result<()> {
        // What a killed run left.
        match std::fs::remove_file(unfinished) {
            Err(error) if error.kind() != IoErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        let mut out = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(OWNER_ALONE)
            .open(unfinished)
            .map_err(failed)?;
        self.read(file, context, &mut |bytes| out.write_all(bytes).map_err(failed))?;
        out.sync_all().map_err(failed)
    }

    fn prove(&self, item: &Item<'_>, context: &Context) -> Result<()> {
        let label = item.path.display().to_string();
        let file = open(&item.path)
            .map_err(|error| Error::io("cannot read the attached file", &*label, error))?;
        let _ = ioctl::forget_cached(&file, &(0..item.file.size));
        match self.holds(item.file, Some(file), context)? {
            true => Ok(()),
            false => Err(Error::new(
                ErrorKind::Mismatch,
                "the attached file does not hold what was written to it",
            )
            .on(label)
            .meaning("this file is not what the snapshot holds")
            .hint("the device or its cabling loses data: look at the kernel's log")),
        }
    }

    /// How the machine is started whose disks these are.
    ///
    /// # Errors
    /// Of reading the archive.
    pub fn start(&self, assignments: &[Assignment], context: &Context) -> Result<Vec<Start>> {
        let paths: Vec<PathBuf> = assignments.iter().map(Assignment::path).collect();
        let disks: Vec<Disk<'_>> = assignments
            .iter()
            .zip(&paths)
            .map(|(assignment, path)| Disk {
                volume: &assignment.job.volume.name,
                path,
                format: self.format,
            })
            .collect();
        let mut starts = Vec::new();
        for item in self.called(QEMU_FACTS) {
            let facts = self.facts(item.file, context)?;
            starts.push(start::qemu(&item.path, facts.as_deref(), &disks));
        }
        for item in self.called(LIBVIRT_DOMAIN) {
            let definition = self.facts(item.file, context)?;
            starts.push(start::libvirt(&item.path, definition.as_deref(), &disks));
        }
        Ok(starts)
    }

    /// An attached file, from the archive, unless it is too long to be looked into.
    fn facts(&self, file: &Attached, context: &Context) -> Result<Option<Vec<u8>>> {
        if file.size > FACTS_LEN_MAX {
            return Ok(None);
        }
        let mut facts = Vec::new();
        self.read(file, context, &mut |bytes| {
            facts.extend_from_slice(bytes);
            Ok(())
        })?;
        Ok(Some(facts))
    }

    /// The attached files of this name, with or without a VM's before it.
    fn called<'i>(&'i self, name: &'i str) -> impl Iterator<Item = &'i Item<'a>> {
        self.files.iter().filter(move |item| {
            let before = item.file.name.strip_suffix(name);
            item.state != State::Lost && before.is_some_and(|vm| vm.is_empty() || vm.ends_with('.'))
        })
    }
}

/// Refuses names of which two would be one file.
fn refuse_meeting(assignments: &[Assignment], files: &[Item<'_>]) -> Result<()> {
    let volumes =
        assignments.iter().map(|it| (it.path(), format!("volume {:?}", it.job.volume.name)));
    let files =
        files.iter().map(|it| (it.path.clone(), format!("attached file {:?}", it.file.name)));
    let mut taken: BTreeMap<PathBuf, String> = BTreeMap::new();
    for (path, what) in volumes.chain(files) {
        if let Some(other) = taken.get(&path) {
            let message = format!("{other} and {what} of the snapshot would be one file");
            return Err(Error::new(ErrorKind::TargetRefused, message)
                .on(path.display().to_string())
                .hint(
                    "restore volumes to targets of your own naming (NAME=TARGET); `voltar show \
                     --attached` writes an attached file",
                ));
        }
        taken.insert(path, what);
    }
    Ok(())
}

fn is_new(path: &Path) -> Result<bool> {
    match std::fs::metadata(path) {
        Ok(metadata) if metadata.is_dir() => Ok(false),
        Ok(_) => Err(refusal(path, "it is no folder", "name a folder, or one to be made")),
        Err(error) if error.kind() == IoErrorKind::NotFound => check_creatable(path).map(|()| true),
        Err(error) => {
            Err(Error::io("cannot look at the target", path.display().to_string(), error))
        }
    }
}

/// Takes the folder's lock (`flock(2)`), which ends with the process if not before. `None` where there
/// is none to be had.
fn lock(path: &Path) -> Result<Option<File>> {
    let failed = |error| Error::io("cannot lock the folder", path.display().to_string(), error);
    let hint = "wait until it is done, or name another folder";
    let folder = match File::open(path) {
        Ok(folder) => folder,
        // One that may be written to and not read.
        Err(error) if error.kind() == IoErrorKind::PermissionDenied => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    match try_lock(&folder) {
        Ok(true) => {}
        Ok(false) => return Err(refusal(path, "another restore writes into this folder", hint)),
        // On NFS, for one, this lock needs a descriptor that can write, which no directory has. To
        // refuse all such folders would be worse than to go on: volumes' files are locked each by
        // itself, so that only attached files of two restores at once could be exchanged.
        Err(error) if is_lockless(&error) => return Ok(None),
        Err(error) => return Err(failed(error)),
    }
    // Another restore that failed may have taken it away before it let go of its lock.
    let (locked, named) = (folder.metadata().map_err(failed)?, std::fs::metadata(path));
    match named.is_ok_and(|named| is_same(&named, &locked)) {
        true => Ok(Some(folder)),
        false => Err(refusal(
            path,
            "the folder was taken away while it was being checked",
            "see whether another restore writes there, and run this again",
        )),
    }
}

/// Whether a lock failed because the file system has none for directories.
fn is_lockless(error: &std::io::Error) -> bool {
    let errno = error.raw_os_error().map(Errno::from_raw);
    matches!(
        errno,
        Some(
            Errno::EBADF
                | Errno::EINVAL
                | Errno::EISDIR
                | Errno::ENOLCK
                | Errno::ENOSYS
                | Errno::EOPNOTSUPP
        )
    )
}

fn is_same(one: &Metadata, other: &Metadata) -> bool {
    (one.dev(), one.ino()) == (other.dev(), other.ino())
}

/// What is at `path` in the folder, itself and not what it leads to.
fn look(path: &Path) -> Result<Option<Metadata>> {
    match std::fs::symlink_metadata(path) {
        Ok(there) => Ok(Some(there)),
        Err(error) if error.kind() == IoErrorKind::NotFound => Ok(None),
        Err(error) => {
            Err(Error::io("cannot look at the target", path.display().to_string(), error))
        }
    }
}

/// Refuses the place of a volume where something is that is no regular file: nobody named it, and a
/// link leads out of the folder.
///
/// # Errors
/// `TargetRefused`; of looking.
pub fn refuse_no_file(path: &Path) -> Result<()> {
    match look(path)?.map(|there| there.file_type()) {
        Some(kind) if !kind.is_file() => Err(refusal(
            path,
            format!("{} is there and no file", what_is(kind)),
            "take it away, or name another folder; NAME=TARGET restores a volume to a device",
        )),
        _ => Ok(()),
    }
}

/// Refuses a file that was `opened` for a volume if it is not the one at `path` itself. The guard
/// follows links, so that one which came since [`refuse_no_file`] looked would lead it elsewhere;
/// what it opened is not written to before this is asked, and not opened again after it.
///
/// # Errors
/// `TargetRefused`; of looking.
pub fn refuse_elsewhere(path: &Path, opened: &FileIdentity) -> Result<()> {
    let is_it =
        |there: Metadata| there.is_file() && (there.dev(), there.ino()) == (opened.dev, opened.ino);
    match look(path)?.is_some_and(is_it) {
        true => Ok(()),
        false => Err(refusal(
            path,
            "it was replaced while it was being checked",
            "see who writes to the folder, and try again",
        )),
    }
}

fn what_is(kind: FileType) -> &'static str {
    if kind.is_symlink() {
        "a symbolic link"
    } else if kind.is_dir() {
        "a directory"
    } else if kind.is_block_device() {
        "a block device"
    } else if kind.is_char_device() {
        "a character device"
    } else if kind.is_fifo() {
        "a pipe"
    } else {
        "a socket"
    }
}

/// Makes an image that is being made for `path` its owner's alone. Not a byte of the volume is in it
/// yet; who opened it since it was made (a moment, in a folder that others may look into) keeps it
/// open, though.
///
/// # Errors
/// The system's.
pub fn close_new_image(path: &Path) -> Result<()> {
    let mut name = OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(UNFINISHED);
    let permissions = Permissions::from_mode(OWNER_ALONE);
    let close = || match open(&path.with_file_name(name))?.set_permissions(permissions) {
        // A file system without permissions, where a new raw file has none either.
        Err(error)
            if matches!(error.kind(), IoErrorKind::PermissionDenied | IoErrorKind::Unsupported) =>
        {
            Ok(())
        }
        outcome => outcome,
    };
    close().map_err(|error: std::io::Error| {
        Error::io("cannot make the image its owner's alone", path.display().to_string(), error)
    })
}

/// What is at the place of an attached file: a file that may become another one, or nothing.
fn replaceable(path: &Path, archive: &Path) -> Result<Option<Metadata>> {
    let Some(there) = look(path)? else { return Ok(None) };
    let is_archive = std::fs::metadata(archive).is_ok_and(|archive| is_same(&archive, &there));
    let why = if !there.is_file() {
        "something that is no file is there"
    } else if is_archive {
        "it is the archive itself"
    } else if there.len() > ATTACHED_LEN_MAX {
        "what is there is too large to be an attached file"
    } else {
        return Ok(Some(there));
    };
    Err(refusal(path, why, "take it away, or name another folder"))
}

/// Opens a regular file, which was looked at; whatever came in its place is not waited for.
fn open(path: &Path) -> std::io::Result<File> {
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
    OpenOptions::new().read(true).custom_flags(flags.bits()).open(path)
}

fn other_file(path: &Path) -> Error {
    refusal(
        path,
        "another file is there than the one that was attached",
        "allow it to be overwritten (`--overwrite`) if that file may be lost, or name another folder",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(name: &str) -> String {
        file_name(name, ".raw").unwrap()
    }

    #[test]
    fn names_stay_in_the_folder() {
        for (name, file) in [
            ("vd0", "vd0.raw"),
            ("máquina 1.img", "máquina 1.img.raw"),
            ("..", "%2E..raw"),
            (".", "%2E.raw"),
            (".ssh", "%2Essh.raw"),
            ("../../etc/passwd", "%2E.%2F..%2Fetc%2Fpasswd.raw"),
            ("/etc/passwd", "%2Fetc%2Fpasswd.raw"),
            ("100%", "100%25.raw"),
            ("a\0b\n\u{1b}[2J", "a%00b%0A%1B[2J.raw"),
            ("a\u{9b}b\u{202e}c", "a%C2%9Bb%E2%80%AEc.raw"),
        ] {
            assert_eq!(named(name), file);
        }
        assert_eq!(file_name(".voltar-unfinished", "").unwrap(), "%2Evoltar-unfinished");
    }

    #[test]
    fn no_two_names_become_one() {
        let names = ["a/b", "a%2Fb", "a%252Fb", ".a", "%2Ea", "%a", "a\n", "a%0A", "..", "%2E."];
        let files: std::collections::BTreeSet<String> =
            names.iter().map(|name| named(name)).collect();
        assert_eq!(files.len(), names.len());
    }

    #[test]
    fn a_folder_has_one_restore_at_a_time() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("vm");
        std::fs::create_dir(&path).unwrap();
        let first = lock(&path).unwrap();
        assert!(first.is_some());
        let error = lock(&path).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TargetRefused);
        assert!(error.to_string().contains("another restore writes into this folder"), "{error}");
        drop(first);
        assert!(lock(&path).unwrap().is_some());
    }

    #[test]
    fn a_folder_that_was_taken_away_is_not_locked() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("vm");
        std::fs::create_dir(&path).unwrap();
        let first = lock(&path).unwrap();
        let second = std::thread::scope(|scope| {
            let second = scope.spawn(|| lock(&path));
            // It opens the folder and waits for the lock meanwhile, or finds the new one unlocked.
            std::thread::sleep(std::time::Duration::from_millis(100));
            std::fs::remove_dir(&path).unwrap();
            std::fs::create_dir(&path).unwrap();
            drop(first);
            second.join().unwrap()
        });
        if let Err(error) = second {
            assert!(error.to_string().contains("was taken away"), "{error}");
        } else {
            assert!(lock(&path).is_err(), "a folder without a name was locked");
        }
    }

    #[test]
    fn file_systems_without_the_lock_are_told_from_failures() {
        let is_lockless = |errno: Errno| is_lockless(&errno.into());
        assert!(is_lockless(Errno::EBADF) && is_lockless(Errno::EOPNOTSUPP));
        assert!(!is_lockless(Errno::EIO) && !is_lockless(Errno::EWOULDBLOCK));
    }

    #[test]
    fn a_volume_goes_to_no_other_file_than_the_one_at_its_place() {
        let scratch = tempfile::tempdir().unwrap();
        let at = |name: &str| scratch.path().join(name);
        let identity = |name: &str| FileIdentity::of(&File::open(at(name)).unwrap()).unwrap();
        std::fs::write(at("file"), "x").unwrap();
        std::fs::write(at("other"), "x").unwrap();
        std::os::unix::fs::symlink("other", at("link")).unwrap();
        refuse_elsewhere(&at("file"), &identity("file")).unwrap();
        for (place, opened) in [("file", "other"), ("link", "link"), ("nothing", "file")] {
            let error = refuse_elsewhere(&at(place), &identity(opened)).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::TargetRefused, "{place}");
        }
        std::fs::create_dir(at("folder")).unwrap();
        nix::unistd::mkfifo(&at("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        for (place, what) in
            [("link", "a symbolic link"), ("folder", "a directory"), ("pipe", "a pipe")]
        {
            let error = refuse_no_file(&at(place)).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::TargetRefused, "{place}");
            assert!(error.to_string().contains(what), "{error}");
        }
        refuse_no_file(&at("file")).unwrap();
        refuse_no_file(&at("nothing")).unwrap();
    }

    #[test]
    fn what_no_file_system_takes_is_refused() {
        let longest = FILE_NAME_LEN_MAX - ".raw".len();
        assert_eq!(named(&"n".repeat(longest)).len(), FILE_NAME_LEN_MAX);
        for name in ["n".repeat(longest + 1), "/".repeat(longest / 2)] {
            let error = file_name(&name, ".raw").unwrap_err();
            assert_eq!(error.kind(), ErrorKind::TargetRefused);
        }
    }
}
