//! Targets by path: guarded or created, made ready, finished, or left as they were.

use std::fs::FileType;
use std::ops::Range;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use super::compare::Sample;
use super::create::{self, Found, NewVolume};
use super::job::{Job, Tally};
use super::plan;
use super::state::Note;
use super::volume::How;
use crate::cancel::Cancel;
use crate::device::file::{FileDevice, FileIdentity};
use crate::device::guard::{GuardRequest, guard};
use crate::device::open::{check_creatable, create_target_file, directory_of, sync_directory};
use crate::device::{Device, Resize};
use crate::error::{Error, ErrorKind, Result};
use crate::io::ioctl;
use crate::options::{Delta, Place, RestoreRequest};

/// A target that passed the guard, or a path where nothing is yet.
pub enum Cleared {
    /// Nothing is there.
    Absent(PathBuf),
    /// There is no such volume yet.
    New(NewVolume),
    /// It may be written.
    Present {
        /// The opened target.
        device: FileDevice,
        /// Whether something is on it.
        holds_data: bool,
        /// Whether what is on it is this restore's own unfinished work.
        resumes: bool,
    },
}

/// A target that is open and has its note.
pub struct Ready {
    /// The opened target.
    pub device: FileDevice,
    /// How to write it.
    pub how: How,
    /// What to undo if not a byte was written.
    undo: Undo,
    note: Note,
    /// Whether the note was stored by this run.
    noted: bool,
    notes: Option<PathBuf>,
}

/// What was done to a target before its first byte was written.
enum Undo {
    Nothing,
    /// It was created.
    Remove,
    /// The volume was created.
    Destroy(NewVolume),
    /// Its length was this.
    SetLen(u64),
}

/// Guards the target at `place`, or finds that nothing is there. Nothing is changed.
///
/// # Errors
/// `TargetRefused`, and those of looking.
pub fn clear(
    place: &Place,
    job: &Job,
    snapshot: &str,
    others: &[PathBuf],
    request: &RestoreRequest,
    cancel: &Cancel,
) -> Result<Cleared> {
    let path = match place {
        Place::Path(path) => path.clone(),
        _ => match create::find(place, job, &request.new_volumes)? {
            Found::Absent(new) => return Ok(Cleared::New(new)),
            Found::Present(path) if !path.exists() => {
                return Err(Error::new(ErrorKind::TargetRefused, "the volume has no device")
                    .on(place.to_string())
                    .hint("activate it (`lvchange -ay`, `zfs set volmode=dev`)"));
            }
            Found::Present(path) => path,
        },
    };
    let is_managed = !matches!(place, Place::Path(_));
    if is_managed && !request.overwrite && !is_noted(&path, job, snapshot, request) {
        return Err(Error::new(
            ErrorKind::TargetRefused,
            "refusing to write to the target, it exists",
        )
        .on(place.to_string())
        .hint("choose another name, or allow it to be overwritten (`--overwrite`)"));
    }
    clear_path(&path, job, snapshot, others, request, cancel)
}

fn clear_path(
    path: &Path,
    job: &Job,
    snapshot: &str,
    others: &[PathBuf],
    request: &RestoreRequest,
    cancel: &Cancel,
) -> Result<Cleared> {
    if !path.try_exists().unwrap_or(true) {
        check_creatable(path)?;
        return match others.iter().any(|other| is_same_place(other, path)) {
            true => Err(plan::named_twice(path)),
            false => Ok(Cleared::Absent(path.to_path_buf())),
        };
    }
    let resume_allowed = is_noted(path, job, snapshot, request);
    let mut not_these = vec![request.archive.clone()];
    not_these.extend_from_slice(others);
    let cleared = guard(
        path,
        &GuardRequest {
            need_len: job.shape.size(),
            overwrite: request.overwrite,
            not_these,
            resume_allowed,
            may_grow: true,
        },
    )?;
    let holds_data = cleared.holds_data();
    let device = cleared.into_device();
    let resumes = is_stored(&note_of(&device, job, snapshot), request);
    if holds_data && !resumes && !request.overwrite {
        let message = "refusing to write to the target, it was replaced while it was being checked";
        return Err(Error::new(ErrorKind::TargetRefused, message)
            .on(device.label())
            .hint("see what is being attached, and try again"));
    }
    if holds_data && !request.overwrite && !Sample::of(job, &device, cancel)?.is_unfinished() {
        let message = "refusing to write to the target, it holds other data than the restore that \
                       stopped here left";
        return Err(Error::new(ErrorKind::TargetRefused, message)
            .on(device.label())
            .hint("see what was put there since; --overwrite replaces it"));
    }
    Ok(Cleared::Present { device, holds_data, resumes })
}

/// Whether two paths of which nothing is there yet would be one file.
fn is_same_place(one: &Path, other: &Path) -> bool {
    let directory = |path| directory_of(path).canonicalize().ok();
    one.file_name() == other.file_name() && directory(one) == directory(other)
}

fn is_noted(path: &Path, job: &Job, snapshot: &str, request: &RestoreRequest) -> bool {
    // Opening anything else may wait, or do something; the guard refuses it unopened.
    let is_target = |kind: FileType| kind.is_file() || kind.is_block_device();
    if !path.metadata().is_ok_and(|data| is_target(data.file_type())) {
        return false;
    }
    std::fs::File::open(path).is_ok_and(|file| {
        FileIdentity::of(&file)
            .is_ok_and(|identity| is_stored(&Note::new(job, snapshot, &identity, &file), request))
    })
}

fn is_stored(note: &Note, request: &RestoreRequest) -> bool {
    request.state_dir.as_ref().is_some_and(|notes| note.is_stored_in(notes))
}

fn note_of(device: &FileDevice, job: &Job, snapshot: &str) -> Note {
    Note::new(job, snapshot, device.identity(), device.file())
}

/// What the user should know about a target before it is written.
pub fn remark(cleared: &Cleared, job: &Job) -> Option<String> {
    let Cleared::Present { device, .. } = cleared else {
        return None;
    };
    let (has, needs) = (device.identity().size, job.shape.size());
    (device.identity().is_block && has > needs).then(|| {
        let (rest, label) = (has - needs, device.label());
        format!("{label} is larger than the volume: its last {rest} bytes were left as they were")
    })
}

/// Opens or creates the target, and says how it is to be written and what is to be undone.
fn open(cleared: Cleared, job: &Job, request: &RestoreRequest) -> Result<(FileDevice, How, Undo)> {
    let needs = job.shape.size();
    match cleared {
        Cleared::Absent(path) => {
            let device = create_target_file(&path, needs)?;
            Ok((device, How { blank: true, ..How::default() }, Undo::Remove))
        }
        Cleared::New(new) => {
            new.create()?;
            match open_new(&new, job, request) {
                Ok(device) => {
                    let how = How { blank: new.is_blank(), ..How::default() };
                    Ok((device, how, Undo::Destroy(new)))
                }
                Err(error) => {
                    // Nothing better can be done: the failure that led here is reported.
                    let _ = new.destroy();
                    Err(error)
                }
            }
        }
        Cleared::Present { device, holds_data, resumes } => {
            let has = device.identity().size;
            let delta = match request.delta {
                Delta::Auto if !holds_data || request.discard => Delta::Off,
                delta => delta,
            };
            // What an empty file gains by becoming longer reads as zeroes.
            let how = How { blank: has == 0, resumes, delta };
            let undo = if has < needs { Undo::SetLen(has) } else { Undo::Nothing };
            Ok((device, how, undo))
        }
    }
}

/// Opens a volume that was created a moment ago, past the guard as any other.
fn open_new(new: &NewVolume, job: &Job, request: &RestoreRequest) -> Result<FileDevice> {
    let guarded = guard(
        &new.path(),
        &GuardRequest {
            need_len: job.shape.size(),
            // A thick volume holds what lay there before.
            overwrite: true,
            not_these: vec![request.archive.clone()],
            resume_allowed: false,
            may_grow: false,
        },
    )?;
    match guarded.holds_data() && new.is_blank() {
        false => Ok(guarded.into_device()),
        true => Err(Error::new(ErrorKind::TargetRefused, "the new volume is not blank")
            .on(new.path().display().to_string())
            .hint("see who writes to new volumes on this host, and try again")),
    }
}

impl Ready {
    /// Creates what is absent, stores the note, and gives a file room for the volume.
    ///
    /// # Errors
    /// Of creating and resizing; what was done is undone.
    pub fn new(
        cleared: Cleared,
        job: &Job,
        snapshot: &str,
        request: &RestoreRequest,
        tell: &mut dyn FnMut(String),
    ) -> Result<Ready> {
        let notes = request.state_dir.clone();
        let (device, how, undo) = open(cleared, job, request)?;
        let note = note_of(&device, job, snapshot);
        let mut ready = Ready { device, how, undo, note, noted: false, notes };
        ready.store_note(tell);
        match ready.grow(job.shape.size()) {
            Ok(()) => Ok(ready),
            Err(error) => {
                ready.leave(false);
                Err(error)
            }
        }
    }

    fn store_note(&mut self, tell: &mut dyn FnMut(String)) {
        if self.how.resumes {
            return;
        }
        let why = match &self.notes {
            None => "there is no directory to keep a note in (XDG_STATE_HOME is where)".to_owned(),
            Some(notes) => match self.note.store(notes) {
                Ok(()) => {
                    self.noted = true;
                    return;
                }
                Err(error) => format!("cannot keep a note in {}: {error}", notes.display()),
            },
        };
        tell(format!(
            "{why}; if this restore is interrupted, it must be started again with --overwrite"
        ));
    }

    fn remove_note(&self) {
        if let Some(notes) = &self.notes {
            self.note.remove(notes);
        }
    }

    fn grow(&self, len: u64) -> Result<()> {
        let Undo::SetLen(_) = self.undo else {
            return Ok(());
        };
        self.device
            .set_len(len)
            .map_err(|error| Error::io("cannot make the target longer", self.device.label(), error))
    }

    /// Releases the volume's range. Proves nothing about what it reads as.
    ///
    /// # Errors
    /// The system's.
    pub fn discard(&self, range: Range<u64>) -> std::io::Result<()> {
        self.device.discard(range)
    }

    /// Ends a file where the volume ends, and makes the next reader read the medium.
    ///
    /// # Errors
    /// Of resizing and syncing.
    pub fn finish(&self, size: u64, tally: &Tally) -> Result<()> {
        let failed = |error| Error::io("cannot finish the target", self.device.label(), error);
        let file = self.device.file();
        if self.device.identity().is_block {
            // Best effort: the data is durable already.
            let _ = ioctl::flush_block_cache(file);
        } else if self.device.len().map_err(failed)? > size {
            tally.touch();
            self.device.set_len(size).map_err(failed)?;
            self.device.sync().map_err(failed)?;
        }
        let _ = ioctl::forget_cached(file, &(0..size));
        match self.undo {
            // Its name is as new as its bytes.
            Undo::Remove => sync_directory(self.device.path()),
            Undo::Nothing | Undo::SetLen(_) | Undo::Destroy(_) => Ok(()),
        }
    }

    /// The restore is complete and proven as far as was asked.
    pub fn done(self) {
        self.remove_note();
    }

    /// The restore failed. A target without a changed byte is left as it was found.
    pub fn leave(self, touched: bool) {
        if touched {
            return;
        }
        if self.noted {
            self.remove_note();
        }
        // Nothing better can be done if these fail; the failure that led here is reported.
        match self.undo {
            Undo::Nothing => {}
            Undo::Remove => drop(std::fs::remove_file(self.device.path())),
            Undo::SetLen(len) => drop(self.device.set_len(len)),
            Undo::Destroy(new) => {
                // What is open cannot be taken away.
                drop(self.device);
                let _ = new.destroy();
            }
        }
    }
}
