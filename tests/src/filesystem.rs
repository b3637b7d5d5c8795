//! File systems of a test's own, on loop devices.

use std::path::{Path, PathBuf};

use crate::data::Scratch;
use crate::device::{Loop, Mount, system};

/// A file system that is gone when the test is.
#[derive(Debug)]
pub struct FileSystem {
    // Unmounted before its device is detached.
    mount: Mount,
    device: Loop,
}

impl FileSystem {
    /// Made by `mkfs.KIND` with these arguments, of `len` bytes, mounted with these options.
    pub fn new(
        scratch: &Scratch,
        kind: &str,
        arguments: &[&str],
        len: u64,
        options: &str,
    ) -> Result<FileSystem, String> {
        let image = scratch.write(&format!("{kind}.image"), &[]);
        let sized = std::fs::File::options().write(true).open(&image);
        sized.and_then(|file| file.set_len(len)).map_err(|error| error.to_string())?;
        let device = Loop::new(&image, 512)?;
        let mut words = arguments.to_vec();
        words.extend(["-q", device.arg()]);
        system(&format!("mkfs.{kind}"), &words)?;
        let mount = Mount::with(device.arg(), &scratch.path(kind), options)?;
        Ok(FileSystem { mount, device })
    }

    /// XFS with reflink.
    pub fn xfs(scratch: &Scratch) -> Result<FileSystem, String> {
        FileSystem::new(scratch, "xfs", &["-f", "-m", "reflink=1"], 512 << 20, "rw")
    }

    /// btrfs, compressing or not.
    pub fn btrfs(scratch: &Scratch, options: &str) -> Result<FileSystem, String> {
        FileSystem::new(scratch, "btrfs", &["-f"], 512 << 20, options)
    }

    /// Where it is mounted.
    pub fn dir(&self) -> &Path {
        self.mount.path()
    }

    /// What it is on.
    pub fn device(&self) -> &Path {
        self.device.path()
    }

    /// The path of `name` in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir().join(name)
    }

    /// The names in its root that start with a dot.
    pub fn hidden(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.dir()).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut hidden: Vec<String> = names.filter(|name| name.starts_with('.')).collect();
        hidden.sort();
        hidden
    }
}
