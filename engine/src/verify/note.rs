//! The resume file: how far a verification came, so that the next one goes on from there.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use voltar_format::ArchiveId;

use super::findings::{Finding, Findings};
use crate::archive::open::Archive;
use crate::error::{Error, Result};
use crate::options::VerifyRequest;

/// Longest note that is read: beyond that it is none of ours.
const NOTE_LEN_MAX: u64 = 64 << 20;

/// What the file says.
#[derive(Serialize, Deserialize)]
struct Note {
    archive_id: ArchiveId,
    mode: String,
    /// Everything before is done.
    offset: u64,
    segments: u64,
    frames: u64,
    bytes: u64,
    damaged: Vec<Finding>,
}

/// The numbers that go on from run to run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Progress {
    /// Everything before is done.
    pub offset: u64,
    /// Segments so far.
    pub segments: u64,
    /// Frames so far.
    pub frames: u64,
    /// Bytes so far.
    pub bytes: u64,
}

/// A resume file of one archive and one way to verify it.
pub(super) struct NoteFile {
    path: PathBuf,
    archive_id: ArchiveId,
    mode: String,
    earlier: Option<Note>,
}

impl NoteFile {
    /// Looks at the file; one that speaks of another archive or another mode is ignored, and in
    /// time replaced.
    ///
    /// # Errors
    /// If the file is there and cannot be read.
    pub fn open(path: PathBuf, archive: &Archive, request: &VerifyRequest) -> Result<NoteFile> {
        let mode = mode(request);
        let end = archive.end().0;
        let bytes = read(&path).map_err(|error| failed("cannot read", &path, error))?;
        let earlier = bytes
            .and_then(|bytes| serde_json::from_slice::<Note>(&bytes).ok())
            .filter(|note| note.archive_id == archive.id && note.mode == mode)
            .filter(|note| note.offset <= end);
        Ok(NoteFile { path, archive_id: archive.id, mode, earlier })
    }

    /// Where the earlier run ended, and what it had found.
    pub fn take_earlier(&mut self) -> Option<(Progress, Vec<Finding>)> {
        let Note { offset, segments, frames, bytes, damaged, .. } = self.earlier.take()?;
        Some((Progress { offset, segments, frames, bytes }, damaged))
    }

    /// Writes how far this run is: whole or not at all.
    ///
    /// # Errors
    /// Of writing.
    pub fn write(&self, progress: Progress, findings: &Findings) -> Result<()> {
        #[derive(Serialize)]
        struct Borrowed<'a> {
            archive_id: ArchiveId,
            mode: &'a str,
            offset: u64,
            segments: u64,
            frames: u64,
            bytes: u64,
            damaged: Vec<&'a Finding>,
        }
        let Progress { offset, segments, frames, bytes } = progress;
        let note = Borrowed {
            archive_id: self.archive_id,
            mode: &self.mode,
            offset,
            segments,
            frames,
            bytes,
            damaged: findings.known(),
        };
        let text = serde_json::to_vec(&note).map_err(io::Error::from);
        text.and_then(|text| replace(&self.path, &text))
            .map_err(|error| failed("cannot write", &self.path, error))
    }

    /// Removes the file: there is nothing to go on from.
    ///
    /// # Errors
    /// Of removing it.
    pub fn remove(self) -> Result<()> {
        match std::fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(failed("cannot remove", &self.path, error))
            }
            _ => Ok(()),
        }
    }
}

fn mode(request: &VerifyRequest) -> String {
    let base = if request.stored { "stored" } else { "full" };
    match request.sample_percent {
        Some(percent) => format!("{base}, {percent} percent"),
        None => base.to_owned(),
    }
}

fn read(path: &Path) -> io::Result<Option<Vec<u8>>> {
    match std::fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
        Ok(metadata) if metadata.len() > NOTE_LEN_MAX => Ok(None),
        Ok(_) => std::fs::read(path).map(Some),
    }
}

/// Replaces the file's contents by way of a file beside it.
fn replace(path: &Path, text: &[u8]) -> io::Result<()> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".part");
    let written = File::create(&beside).and_then(|mut file| {
        file.write_all(text)?;
        file.sync_all()
    });
    written.and_then(|()| std::fs::rename(&beside, path)).inspect_err(|_| {
        // What could not be put in place is of no use; the error says more than this one would.
        let _ = std::fs::remove_file(&beside);
    })
}

fn failed(what: &str, path: &Path, error: io::Error) -> Error {
    Error::io(format!("{what} the resume file"), path.display().to_string(), error)
        .hint("name another file, or verify without one")
}
