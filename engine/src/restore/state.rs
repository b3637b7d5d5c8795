//! Notes that make a restore resumable: which snapshot is being written to which target.
//!
//! A note is stored before the target's first byte changes and removed when the restore is
//! complete. With a look at what is there now, it allows the same command to go on with a target
//! that was blank before; what is there is still compared, never trusted. The note names the target
//! by identity, not by path: another disk at the same path has no note. An export of a server has
//! nothing but its URI and its size.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::job::Job;
use crate::device::file::FileIdentity;

/// Longest note that is read.
const NOTE_LEN_MAX: u64 = 64 << 10;

/// Where the kernel names the boot (`random(4)`).
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// What is being written where.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    /// The target.
    target: NotedTarget,
    /// The archive's id.
    archive: String,
    /// The snapshot's id.
    snapshot: String,
    /// The volume's name.
    volume: String,
    /// When the restore began, seconds since 1970-01-01 UTC; for people.
    started: u64,
}

/// Which file or device a target is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct NotedTarget {
    is_block: bool,
    /// File system and inode of a file; 0 for a block device, whose node may be made anew.
    dev: u64,
    ino: u64,
    rdev: u64,
    /// Tells a device number's new tenant, where the kernel can; counts from each boot anew.
    diskseq: Option<u64>,
    /// For a block device, which boot its numbers belong to.
    boot: Option<String>,
    /// Of a block device, in bytes. A file's changes in the course of a restore.
    size: Option<u64>,
    /// Tells an inode number's new tenant: when it was created, in nanoseconds.
    created_ns: Option<u64>,
    /// Where an export is. What it is today is for the look at its bytes to say.
    uri: Option<String>,
}

impl NotedTarget {
    fn new(identity: &FileIdentity, file: &File) -> NotedTarget {
        let is_block = identity.is_block;
        let created = (!is_block).then(|| file.metadata().and_then(|data| data.created()));
        NotedTarget {
            is_block,
            dev: if is_block { 0 } else { identity.dev },
            ino: if is_block { 0 } else { identity.ino },
            rdev: identity.rdev,
            diskseq: identity.diskseq,
            boot: is_block.then(|| fs::read_to_string(BOOT_ID).unwrap_or_default()),
            size: is_block.then_some(identity.size),
            created_ns: created.and_then(Result::ok).and_then(|time| {
                u64::try_from(time.duration_since(UNIX_EPOCH).ok()?.as_nanos()).ok()
            }),
            uri: None,
        }
    }

    fn export(uri: &str, size: u64) -> NotedTarget {
        NotedTarget {
            is_block: false,
            dev: 0,
            ino: 0,
            rdev: 0,
            diskseq: None,
            boot: None,
            size: Some(size),
            created_ns: None,
            uri: Some(uri.to_owned()),
        }
    }

    fn file_name(&self) -> String {
        match (&self.uri, self.is_block) {
            (Some(uri), _) => {
                let hash = blake3::hash(uri.as_bytes()).to_hex();
                format!("restore-export-{}.json", &hash[..32])
            }
            (None, true) => format!("restore-device-{:x}.json", self.rdev),
            (None, false) => format!("restore-file-{:x}-{:x}.json", self.dev, self.ino),
        }
    }
}

impl Note {
    /// That `job` of the snapshot is about to be written to the target open as `file`.
    pub fn new(job: &Job, snapshot: &str, identity: &FileIdentity, file: &File) -> Note {
        Note::of(job, snapshot, NotedTarget::new(identity, file))
    }

    /// That `job` of the snapshot is about to be written to the export at `uri` of `size` bytes.
    pub fn for_export(job: &Job, snapshot: &str, uri: &str, size: u64) -> Note {
        Note::of(job, snapshot, NotedTarget::export(uri, size))
    }

    fn of(job: &Job, snapshot: &str, target: NotedTarget) -> Note {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        Note {
            target,
            archive: job.archive.id.to_hex(),
            snapshot: snapshot.to_owned(),
            volume: job.volume.name.clone(),
            started: now.map_or(0, |now| now.as_secs()),
        }
    }

    /// Whether `directory` has a note of the same restore to the same target.
    pub fn is_stored_in(&self, directory: &Path) -> bool {
        load(&self.path(directory))
            .is_ok_and(|stored| Note { started: self.started, ..stored } == *self)
    }

    /// Stores it in `directory`, which is created if need be; durable on return.
    ///
    /// # Errors
    /// The system's.
    pub fn store(&self, directory: &Path) -> io::Result<()> {
        fs::create_dir_all(directory)?;
        let path = self.path(directory);
        let fresh = path.with_extension("new");
        let mut file = File::create(&fresh)?;
        file.write_all(&serde_json::to_vec_pretty(self).map_err(io::Error::other)?)?;
        file.sync_all()?;
        fs::rename(&fresh, &path)?;
        // The rename lasts once the directory is durable.
        File::open(directory)?.sync_all()
    }

    /// Removes it: the restore is complete, or never began.
    pub fn remove(&self, directory: &Path) {
        // A note that stays does no harm: it allows nothing but the same restore once more.
        let _ = fs::remove_file(self.path(directory));
    }

    fn path(&self, directory: &Path) -> PathBuf {
        directory.join(self.target.file_name())
    }
}

fn load(path: &Path) -> io::Result<Note> {
    let file = File::open(path)?;
    if file.metadata()?.len() > NOTE_LEN_MAX {
        return Err(io::Error::from(io::ErrorKind::InvalidData));
    }
    let mut text = String::new();
    io::Read::read_to_string(&mut io::Read::take(file, NOTE_LEN_MAX), &mut text)?;
    serde_json::from_str(&text).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(file: &File) -> Note {
        let identity = FileIdentity::of(file).unwrap();
        Note {
            target: NotedTarget::new(&identity, file),
            archive: "a".into(),
            snapshot: "s".into(),
            volume: "v".into(),
            started: 1,
        }
    }

    #[test]
    fn a_note_is_found_by_the_same_restore_only() {
        let folder = tempfile::tempdir().unwrap();
        let notes = folder.path().join("a/b");
        let (one, other) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        let stored = note(&one);
        assert!(!stored.is_stored_in(&notes));
        stored.store(&notes).unwrap();
        assert!(Note { started: 99, ..note(&one) }.is_stored_in(&notes));
        for another in [
            note(&other),
            Note { target: NotedTarget::export("nbd://host/a", 1), ..stored.clone() },
            Note { snapshot: "t".into(), ..stored.clone() },
            Note { archive: "b".into(), ..stored.clone() },
            Note { volume: "w".into(), ..stored.clone() },
        ] {
            assert!(!another.is_stored_in(&notes), "{another:?}");
        }
        stored.remove(&notes);
        assert!(!stored.is_stored_in(&notes));
    }

    #[test]
    fn an_export_is_known_by_its_uri_and_its_size() {
        let folder = tempfile::tempdir().unwrap();
        let of = |uri, size| Note {
            target: NotedTarget::export(uri, size),
            ..note(&tempfile::tempfile().unwrap())
        };
        of("nbd://host/a", 7).store(folder.path()).unwrap();
        assert!(of("nbd://host/a", 7).is_stored_in(folder.path()));
        for another in [of("nbd://host/b", 7), of("nbd://host/a", 8)] {
            assert!(!another.is_stored_in(folder.path()), "{another:?}");
        }
    }

    #[test]
    fn a_spoiled_note_allows_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let file = tempfile::tempfile().unwrap();
        let stored = note(&file);
        for text in [&b"{}"[..], b"", b"\xff", &[b'['; 70_000]] {
            fs::write(stored.path(folder.path()), text).unwrap();
            assert!(!stored.is_stored_in(folder.path()));
        }
    }
}
