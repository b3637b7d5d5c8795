//! The area that takes what the guest overwrites while its disk is read: an empty qcow2 image in a file
//! without a name, so that it goes with its last user.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use nix::fcntl::OFlag;
use nix::sys::statvfs::fstatvfs;

use crate::error::{Error, ErrorKind, Result};

/// Cluster length, in bytes: what copy-before-write copies at a time.
pub const CLUSTER_LEN: u64 = 64 << 10;
/// Bytes that an L1 entry spans: a cluster of eight-byte L2 entries.
const L1_SPAN: u64 = CLUSTER_LEN / 8 * CLUSTER_LEN;
/// Most clusters of the L1 table: what QEMU takes (`QCOW_MAX_L1_SIZE`, 32 MiB).
const L1_CLUSTERS_MAX: u64 = (32 << 20) / CLUSTER_LEN;
/// Header, refcount table, one refcount block.
const FIRST_CLUSTERS: u64 = 3;
/// Share of a disk that metadata of a full area may take on top, as its reciprocal: L2 tables and
/// refcounts come to less than a thousandth.
const METADATA_SHARE: u64 = 256;
/// Least size of an area, in bytes.
const LEN_MIN: u64 = 4 << 20;
/// An area with less room than this left is full, in bytes.
const ROOM_MIN: u64 = 1 << 20;
/// Share of its file system that an area leaves free, as its reciprocal, and the most of it in bytes.
const RESERVE_SHARE: u64 = 20;
const RESERVE_MAX: u64 = 1 << 30;

/// An area in a folder.
#[derive(Debug)]
pub struct Area {
    file: File,
    folder: String,
    /// How long it may grow, in bytes.
    len: u64,
}

impl Area {
    /// An empty area for a disk of `size` bytes, of `limit` bytes at most.
    ///
    /// # Errors
    /// Of the folder; `InvalidRequest` if the limit is too low.
    pub fn create(folder: &Path, size: u64, limit: Option<u64>) -> Result<Area> {
        let name = folder.display().to_string();
        let failed = |error| {
            Error::io("cannot make the fleecing area", &*name, error)
                .hint("name a folder for it on a file system of this host: --fleece DIR")
        };
        let head = empty_image(size).ok_or_else(|| {
            Error::new(
                ErrorKind::Unsupported,
                format!("a disk of {size} bytes is too large to fleece"),
            )
        })?;
        // With as much room left as makes it full: that a whole disk is in it breaks nothing.
        let whole = head.len() as u64 + size + size / METADATA_SHARE + 2 * ROOM_MIN;
        let whole = whole.next_multiple_of(CLUSTER_LEN).max(LEN_MIN);
        let limit = limit.map_or(whole, |limit| limit - limit % CLUSTER_LEN);
        let len = limit.min(whole);
        if len < LEN_MIN {
            let message = format!("{len} bytes are too few for a fleecing area");
            return Err(Error::new(ErrorKind::InvalidRequest, message)
                .hint(format!("give it at least {} MiB", LEN_MIN >> 20)));
        }
        let flags = (OFlag::O_TMPFILE | OFlag::O_CLOEXEC).bits();
        let mut options = OpenOptions::new();
        options.read(true).write(true).mode(0o600).custom_flags(flags);
        let file = options.open(folder).map_err(failed)?;
        file.write_all_at(&head, 0).and_then(|()| file.set_len(len)).map_err(failed)?;
        Ok(Area { file, folder: name, len })
    }

    /// Its file.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Its folder, for messages.
    pub fn folder(&self) -> &str {
        &self.folder
    }

    /// How long it may grow, in bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Bytes that it takes of its file system.
    ///
    /// # Errors
    /// Of the system.
    pub fn used(&self) -> std::io::Result<u64> {
        Ok(self.file.metadata()?.blocks() * 512)
    }

    /// Whether there is no room left in it or under it.
    ///
    /// # Errors
    /// Of the system.
    pub fn is_full(&self) -> std::io::Result<bool> {
        Ok(self.len.saturating_sub(self.used()?) < ROOM_MIN || self.is_scarce()?)
    }

    /// Whether it leaves too little of its file system to others: the images of the guest may lie
    /// there, too.
    ///
    /// # Errors
    /// Of the system.
    pub fn is_scarce(&self) -> std::io::Result<bool> {
        let (system, used) = (fstatvfs(&self.file)?, self.used()?);
        let bytes = |blocks: u64| blocks.saturating_mul(system.fragment_size());
        let reserve = (bytes(system.blocks()) / RESERVE_SHARE).clamp(ROOM_MIN, RESERVE_MAX);
        Ok(bytes(system.blocks_available()) < reserve && used >= ROOM_MIN)
    }
}

/// The first clusters of a qcow2 image (version 3, `docs/interop/qcow2.rst`) of `size` bytes that holds
/// nothing; `None` if no image can be so large.
pub fn empty_image(size: u64) -> Option<Vec<u8>> {
    let l1_entries = size.div_ceil(L1_SPAN);
    let l1_clusters = (l1_entries * 8).div_ceil(CLUSTER_LEN).max(1);
    if l1_clusters > L1_CLUSTERS_MAX {
        return None;
    }
    let clusters = FIRST_CLUSTERS + l1_clusters;
    let mut image = vec![0; (clusters * CLUSTER_LEN) as usize];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"QFI\xfb");
    put(4, &big32(3));
    put(20, &big32(CLUSTER_LEN.trailing_zeros()));
    put(24, &big64(size));
    put(36, &big32(l1_entries as u32));
    put(40, &big64(FIRST_CLUSTERS * CLUSTER_LEN));
    // The refcount table, of one cluster.
    put(48, &big64(CLUSTER_LEN));
    put(56, &big32(1));
    // Refcounts of sixteen bits.
    put(96, &big32(4));
    // The header's length; all of what follows is zero: no extensions, deflate.
    put(100, &big32(112));
    put(CLUSTER_LEN as usize, &big64(2 * CLUSTER_LEN));
    for cluster in 0..clusters as usize {
        put(2 * CLUSTER_LEN as usize + 2 * cluster, &[0, 1]);
    }
    Some(image)
}

#[allow(clippy::big_endian_bytes, reason = "qcow2 is big-endian")]
fn big32(value: u32) -> [u8; 4] {
    value.to_be_bytes()
}

#[allow(clippy::big_endian_bytes, reason = "qcow2 is big-endian")]
fn big64(value: u64) -> [u8; 8] {
    value.to_be_bytes()
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn qemu_finds_nothing_wrong_with_an_empty_image() {
        if Command::new("qemu-img").arg("--version").output().is_err() {
            eprintln!("skipped: qemu-img is missing");
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        for size in [512, 64 << 20, (512 << 20) + 512, (1 << 40) + 4096, 1 << 50] {
            let path = folder.path().join("image");
            std::fs::write(&path, empty_image(size).unwrap()).unwrap();
            let run = |words: &[&str]| {
                let output = Command::new("qemu-img").args(words).arg(&path).output().unwrap();
                assert!(output.status.success(), "{size}: {output:?}");
                String::from_utf8(output.stdout).unwrap()
            };
            run(&["check", "-f", "qcow2"]);
            let info = run(&["info", "-f", "qcow2", "--output=json"]);
            let info: serde_json::Value = serde_json::from_str(&info).unwrap();
            assert_eq!(info["virtual-size"].as_u64(), Some(size));
        }
        assert_eq!(empty_image(1 << 60), None);
    }

    #[test]
    fn an_area_is_bounded_and_tells_when_it_is_full() {
        let folder = tempfile::tempdir().unwrap();
        let area = Area::create(folder.path(), 64 << 20, Some(8 << 20)).unwrap();
        assert_eq!(area.len(), 8 << 20);
        assert!(!area.is_full().unwrap());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "it has no name");
        area.file().write_all_at(&vec![1; (8 << 20) - (1 << 18)], 1 << 18).unwrap();
        assert!(area.is_full().unwrap());
        for (size, limit) in
            [(8_389_120, None), (500_107_862_016, None), (64 << 20, Some(5_000_001))]
        {
            let area = Area::create(folder.path(), size, limit).unwrap();
            assert_eq!(area.len() % CLUSTER_LEN, 0, "{size}");
        }
        let error = Area::create(folder.path(), 64 << 20, Some(1 << 20)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidRequest);
        let error = Area::create(&folder.path().join("none"), 64 << 20, None).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
    }
}
