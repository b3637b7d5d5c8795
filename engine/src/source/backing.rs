//! What an image is made upon. Its own bitmap tells nothing of that, so the files below are known by what
//! they were when the bitmap was begun.

use std::fs::Metadata;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use super::{Degraded, Proof};

/// In a proof: the files that an image is made upon, and when they were written last.
const BACKING: &str = "backing";

/// The files below an image; a hash of what they are, `None` if there are none, or why they cannot be told
/// from what they may become.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backing(Result<Option<String>, Degraded>);

impl Backing {
    /// Of these files, from the nearest down.
    pub fn of(files: impl IntoIterator<Item = io::Result<Metadata>>) -> Backing {
        let mut told = blake3::Hasher::new();
        let mut count = 0;
        for file in files {
            match file.map_err(|error| error.to_string()).and_then(|file| words(&file)) {
                Ok(words) => told.update(words.as_bytes()),
                Err(why) => {
                    return Backing(Err(Degraded(format!(
                        "what it is made upon is not known: {why}"
                    ))));
                }
            };
            count += 1;
        }
        Backing(Ok((count > 0).then(|| told.finalize().to_hex().to_string())))
    }

    /// Of the files of these names: paths from the root.
    pub fn named<'n>(names: impl IntoIterator<Item = &'n str>) -> Backing {
        Backing::of(names.into_iter().map(|name| match Path::new(name).is_absolute() {
            true => std::fs::metadata(name),
            false => Err(io::Error::other(format!("{name:?} is no path of a file"))),
        }))
    }

    /// Puts it into the proof of a backup.
    pub fn prove(&self, proof: &mut Proof) {
        if let Ok(Some(told)) = &self.0 {
            proof.insert(BACKING.to_owned(), told.clone());
        }
    }

    /// Whether the image is made upon what it was made upon for the backup `base`.
    ///
    /// # Errors
    /// If it is not, or nobody knows.
    pub fn check(&self, base: &Proof) -> Result<(), Degraded> {
        let now = self.0.as_ref().map_err(Clone::clone)?;
        match base.get(BACKING) == now.as_ref() {
            true => Ok(()),
            false => Err(Degraded("what the image is made upon is not what it was".into())),
        }
    }
}

/// A file as it is; whoever writes to it changes that. Not its device's number: that of a btrfs or of a network
/// file system is another one after each mount.
fn words(file: &Metadata) -> Result<String, String> {
    match file.file_type() {
        kind if kind.is_file() => {
            let written = (file.mtime(), file.mtime_nsec());
            Ok(format!("{} {} {written:?}\n", file.ino(), file.len()))
        }
        kind if kind.is_block_device() => {
            Err("a block device does not tell when it was written to".into())
        }
        _ => Err("it is no file".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_was_written_to_is_another_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("base");
        std::fs::write(&path, b"one").unwrap();
        let backing = || Backing::named([path.to_str().unwrap()]);
        let mut proof = Proof::new();
        assert!(backing().check(&proof).is_err(), "it was made upon nothing");
        let before = backing();
        before.prove(&mut proof);
        assert_eq!(backing().check(&proof), Ok(()));
        assert!(Backing::named([]).check(&proof).is_err(), "it is made upon nothing now");
        let file = std::fs::File::options().write(true).open(&path).unwrap();
        file.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
        assert!(backing().check(&proof).is_err(), "it was written to");
    }

    #[test]
    fn what_cannot_be_told_is_never_the_same() {
        for name in ["json:{}", "nbd://host/x", "", "/dev/null", "/nowhere/at/all"] {
            let backing = Backing::named([name]);
            let mut proof = Proof::new();
            backing.prove(&mut proof);
            assert!(backing.check(&proof).is_err(), "{name}");
        }
        assert_eq!(Backing::named([]).check(&Proof::new()), Ok(()));
    }
}
