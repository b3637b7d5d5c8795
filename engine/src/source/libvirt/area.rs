//! The folder in which libvirt makes what it needs for a backup: the files that take what the guest overwrites,
//! and the socket.
//!
//! ```text
//! DIR/voltar-UUID/            ours; QEMU may pass through
//!     backup.xml checkpoint.xml
//!     qemu/                   QEMU's own
//!         nbd  vda  vdb ...
//! ```

use std::fs::{DirBuilder, Permissions};
use std::io::ErrorKind::NotFound;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use nix::sys::statvfs::statvfs;

use crate::error::{Error, ErrorKind, Result};

/// Least room that is left for other than guests' bytes: a backup ends before a guest's write fails.
const RESERVE_BYTES: u64 = 512 << 20;
/// Share of a disk that metadata of a full file may take on top, as its reciprocal.
const METADATA_SHARE: u64 = 256;
/// The same for a file that is empty, in bytes.
const METADATA_MIN: u64 = 1 << 20;
/// Longest path of a socket, in bytes (`unix(7)`).
const SOCKET_LEN_MAX: usize = 107;

/// A folder for one backup of one domain.
#[derive(Debug)]
pub struct Area {
    folder: PathBuf,
    /// Bytes that the files may grow to, all together.
    whole: u64,
    /// Most bytes that each may.
    limit: Option<u64>,
    disks: Vec<String>,
}

impl Area {
    /// A folder in `dir` for disks of these sizes of the domain `uuid`, whose QEMU runs as `owner`. What a
    /// killed run left there goes.
    ///
    /// # Errors
    /// Of the folder; `NoSpace` if there is too little room.
    pub fn create(
        dir: &Path,
        uuid: &str,
        owner: Option<(u32, u32)>,
        disks: &[(String, u64)],
        limit: Option<u64>,
    ) -> Result<Area> {
        let failed = |error| {
            Error::io("cannot make the fleecing area", dir.display().to_string(), error)
                .hint("name a folder for it on a file system of this host: --fleece DIR")
        };
        let dir = dir.canonicalize().map_err(failed)?;
        let room = |bytes: u64| bytes + bytes / METADATA_SHARE + METADATA_MIN;
        let area = Area {
            folder: dir.join(format!("voltar-{uuid}")),
            whole: disks.iter().map(|(_, size)| room(*size)).sum(),
            limit,
            disks: disks.iter().map(|(target, _)| target.clone()).collect(),
        };
        if area.socket().as_os_str().len() > SOCKET_LEN_MAX {
            return Err(Error::new(
                ErrorKind::InvalidRequest,
                "this path is too long for a socket",
            )
            .on(area.socket().display().to_string())
            .hint("name a folder with a shorter path: --fleece DIR"));
        }
        area.remove()?;
        let made = area.make(owner).map_err(failed);
        if let Err(error) = made.and_then(|()| area.check_room()) {
            // The first error says more.
            let _ = area.remove();
            return Err(error);
        }
        Ok(area)
    }

    fn make(&self, owner: Option<(u32, u32)>) -> std::io::Result<()> {
        DirBuilder::new().mode(0o700).create(&self.folder)?;
        // Whatever the mask is: QEMU must get through.
        std::fs::set_permissions(&self.folder, Permissions::from_mode(0o711))?;
        DirBuilder::new().mode(0o700).create(self.inner())?;
        let ours = std::fs::metadata(&self.folder)?;
        match owner {
            Some((user, group)) if user != ours.uid() => {
                chown(self.inner(), Some(user), Some(group))
            }
            _ => Ok(()),
        }
    }

    fn inner(&self) -> PathBuf {
        self.folder.join("qemu")
    }

    /// The socket that QEMU serves on.
    pub fn socket(&self) -> PathBuf {
        self.inner().join("nbd")
    }

    /// The file for what is overwritten of a disk.
    pub fn scratch(&self, target: &str) -> PathBuf {
        self.inner().join(format!("{target}.qcow2"))
    }

    /// Writes a file for libvirt to read.
    ///
    /// # Errors
    /// Of the file.
    pub fn write(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.folder.join(name);
        std::fs::write(&path, text)
            .map_err(|error| Error::io("cannot write", path.display().to_string(), error))?;
        Ok(path)
    }

    /// Bytes that a disk's file takes; none while it is not there.
    fn used(&self, target: &str) -> u64 {
        std::fs::metadata(self.scratch(target)).map_or(0, |file| file.blocks() * 512)
    }

    /// What may still be written to the files, and what is free for it.
    fn room(&self) -> Result<(u64, u64)> {
        let system = statvfs(&self.folder).map_err(|errno| {
            let folder = self.folder.display().to_string();
            Error::io("cannot look at the fleecing area", folder, errno.into())
        })?;
        let used: u64 = self.disks.iter().map(|target| self.used(target)).sum();
        let free = system.blocks_available() * system.fragment_size();
        Ok((self.whole.saturating_sub(used), free))
    }

    /// That not all that the guest may overwrite has room.
    ///
    /// # Errors
    /// Of the system.
    pub fn warning(&self) -> Result<Option<String>> {
        let (missing, free) = self.room()?;
        let folder = self.folder.display();
        Ok((free < missing).then(|| {
            format!(
                "the fleecing area in {folder} has {} MiB free, and the guest may overwrite {} MiB: a write of \
                 the guest's would fail if it got full, so the backup ends before, with {} MiB left",
                free >> 20,
                missing >> 20,
                RESERVE_BYTES >> 20
            )
        }))
    }

    /// Looks whether there is room for what the guest overwrites in a while.
    ///
    /// # Errors
    /// `NoSpace` once there is not.
    pub fn check_room(&self) -> Result<()> {
        let folder = self.folder.display().to_string();
        let (missing, free) = self.room()?;
        let reserve = missing.min(RESERVE_BYTES);
        if free < reserve {
            let message = format!(
                "the fleecing area has {} MiB left, and has to have {} MiB",
                free >> 20,
                reserve >> 20
            );
            return Err(Error::new(ErrorKind::NoSpace, message)
                .on(folder)
                .meaning("the guest was spared; nothing was committed")
                .hint("name a folder with more room: --fleece DIR"));
        }
        let limit = self.limit.unwrap_or(u64::MAX);
        match self.disks.iter().find(|target| self.used(target) > limit) {
            None => Ok(()),
            Some(target) => Err(Error::new(
                ErrorKind::NoSpace,
                format!("the guest overwrote more of {target} than the fleecing area may hold"),
            )
            .on(folder)
            .meaning("the guest was spared; nothing was committed")
            .hint("raise --fleece-limit, or back up when the guest writes less")),
        }
    }

    /// Takes it away, with all that is in it.
    ///
    /// # Errors
    /// Names what is left.
    pub fn remove(&self) -> Result<()> {
        // Follows no link, whoever made it.
        match std::fs::remove_dir_all(&self.folder) {
            Err(error) if error.kind() != NotFound => {
                Err(Error::io("cannot take away", self.folder.display().to_string(), error))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UUID: &str = "75ee902e-3b77-40ce-b561-7af490a33d58";

    fn area(dir: &Path, size: u64, limit: Option<u64>) -> Result<Area> {
        Area::create(dir, UUID, None, &[("vda".into(), size)], limit)
    }

    #[test]
    fn what_a_killed_run_left_goes() {
        let dir = tempfile::tempdir().unwrap();
        let first = area(dir.path(), 1 << 20, None).unwrap();
        std::fs::write(first.scratch("vda"), "x").unwrap();
        let second = area(dir.path(), 1 << 20, None).unwrap();
        assert!(!second.scratch("vda").exists());
        second.remove().unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn an_area_says_when_it_has_no_room() {
        let dir = tempfile::tempdir().unwrap();
        let small = area(dir.path(), 1 << 20, Some(64 << 10)).unwrap();
        assert_eq!(small.warning().unwrap(), None);
        std::fs::write(small.scratch("vda"), vec![1; 128 << 10]).unwrap();
        let error = small.check_room().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NoSpace);
        assert!(error.message().contains("vda"), "{error}");
        let huge = area(dir.path(), 1 << 60, None).unwrap();
        assert!(huge.warning().unwrap().is_some());
    }

    #[test]
    fn a_path_that_no_socket_has_is_refused_and_nothing_is_made() {
        let dir = tempfile::tempdir().unwrap();
        let long = dir.path().join("d".repeat(60));
        std::fs::create_dir(&long).unwrap();
        let error = area(&long, 1 << 20, None).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidRequest);
        assert_eq!(std::fs::read_dir(&long).unwrap().count(), 0);
    }
}
