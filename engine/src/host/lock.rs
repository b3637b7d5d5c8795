//! Locks and notes in the state directory, for what only one run may do on this host at a time.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use crate::cancel::Cancel;
use crate::error::{Error, ErrorKind, Result};

/// Longest note that is read, in bytes.
const NOTE_LEN_MAX: u64 = 4 << 10;
/// How often a lock that somebody else holds is tried again.
const RETRY: Duration = Duration::from_millis(50);

/// A lock on a name, free again when dropped or when the process is gone. Its file can carry a
/// note that outlives both, for the next holder.
#[derive(Debug)]
pub struct Lock {
    file: File,
    path: PathBuf,
}

impl Lock {
    /// Locks `name` in the directory `state`, waiting up to `patience` for another holder.
    ///
    /// # Errors
    /// `Busy` if another run holds it longer; of creating the file; `Interrupted`.
    pub fn take(state: &Path, name: &str, patience: Duration, cancel: &Cancel) -> Result<Lock> {
        let path = state.join(format!("{}.lock", file_name(name)));
        let failed = |error| Error::io("cannot make a lock", path.display().to_string(), error);
        fs::create_dir_all(state).map_err(failed)?;
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        let file = options.open(&path).map_err(failed)?;
        let end = Instant::now() + patience;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Lock { file, path }),
                Err(TryLockError::Error(error)) => return Err(failed(error)),
                Err(TryLockError::WouldBlock) if Instant::now() >= end => {
                    return Err(Error::new(ErrorKind::Busy, "another run is at work on it")
                        .on(name)
                        .hint("wait until it is done"));
                }
                Err(TryLockError::WouldBlock) => {
                    cancel.check()?;
                    thread::sleep(RETRY);
                }
            }
        }
    }

    /// The note that the last holder left, if it did.
    ///
    /// # Errors
    /// Of reading it.
    pub fn note(&self) -> Result<Option<String>> {
        let mut text = String::new();
        let read = File::open(&self.path)
            .and_then(|file| file.take(NOTE_LEN_MAX).read_to_string(&mut text));
        read.map_err(|error| self.failed("cannot read a note", error))?;
        Ok(Some(text).filter(|text| !text.is_empty()))
    }

    /// Leaves a note, durably, instead of the last one; an empty one is none.
    ///
    /// # Errors
    /// Of writing it.
    pub fn leave(&mut self, note: &str) -> Result<()> {
        // In place: the lock is on this very file. Whoever reads a note compares the whole, so a
        // torn one is taken for none.
        let written = self
            .file
            .set_len(0)
            .and_then(|()| self.file.write_all_at(note.as_bytes(), 0))
            .and_then(|()| self.file.sync_all());
        written.map_err(|error| self.failed("cannot write a note", error))
    }

    fn failed(&self, message: &str, error: std::io::Error) -> Error {
        Error::io(message, self.path.display().to_string(), error)
    }
}

/// A name as a file's: what a file name cannot hold is written in hexadecimal.
fn file_name(name: &str) -> String {
    name.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' | b'-' | b'+' => {
                char::from(byte).to_string()
            }
            _ => format!("%{byte:02x}"),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(state: &Path, name: &str) -> Result<Lock> {
        Lock::take(state, name, Duration::from_millis(100), &Cancel::new())
    }

    #[test]
    fn one_holder_at_a_time_and_the_note_stays() {
        let state = tempfile::tempdir().unwrap();
        let mut lock = take(state.path(), "lvm vg/pool").unwrap();
        assert_eq!(lock.note().unwrap(), None);
        lock.leave("held 17").unwrap();
        lock.leave("held 5").unwrap();
        assert_eq!(take(state.path(), "lvm vg/pool").unwrap_err().kind(), ErrorKind::Busy);
        take(state.path(), "lvm vg_pool").unwrap();
        drop(lock);
        let mut lock = take(state.path(), "lvm vg/pool").unwrap();
        assert_eq!(lock.note().unwrap().as_deref(), Some("held 5"));
        lock.leave("").unwrap();
        assert_eq!(lock.note().unwrap(), None);
    }
}
