//! Targets by path: guarded or created, made ready, finished, or left as they were.

use std::fs::FileType;
use std::ops::Range;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use super::compare::Sample;
use super::create::{self, Found, NewVolume};
use super::folder;
use super::job::{Job, Tally, Target};
use super::plan;
use super::state::Note;
use super::volume::How;
use crate::cancel::Cancel;
use crate::device::file::{FileDevice, FileIdentity};
use crate::device::guard::{GuardRequest, guard, holding_data, holds_data};
use crate::device::open::{
    AS_MASKED, OWNER_ALONE, check_creatable, create_target_file, directory_of, refusal,
    sync_directory,
};
use crate::device::{Device, Resize};
use crate::error::{Error, ErrorKind, Result};
use crate::image::create::NewImage;
use crate::image::recognise;
use crate::io::ioctl;
use crate::nbd::{NbdDevice, Uri};
use crate::options::{Context, Delta, Place, RestoreRequest, Targets};
use crate::source::hold::device_path;

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
    /// An export that may be written.
    Export {
        /// The export.
        device: NbdDevice,
        /// Whether something is on it.
        holds_data: bool,
        /// Whether what is on it is this restore's own unfinished work.
        resumes: bool,
    },
    /// A path where an image is to be made.
    Image(PathBuf),
}

/// A target that is open and has its note.
pub struct Ready {
    site: Site,
    /// How to write it.
    pub how: How,
    note: Option<Note>,
    /// Whether the note was stored by this run.
    noted: bool,
    notes: Option<PathBuf>,
}

/// Where the bytes go.
enum Site {
    /// To a file or block device of this host, and what to undo if not a byte was written.
    Local(Box<FileDevice>, Undo),
    /// To an NBD server.
    Export(NbdDevice),
    /// To a new image, through a server of its own. One that is not finished is taken away, for
    /// there is nothing in it that was there before.
    Image(NbdDevice, NewImage),
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

/// The target at `place` in a folder that is yet to be made: nothing can be there.
///
/// # Errors
/// `InvalidRequest` for an image of a format that is not written.
pub fn absent(place: &Place) -> Result<Cleared> {
    let path = device_path(place);
    let format = place.path().and_then(|(_, format)| format);
    Ok(match recognise::becomes_image(&path, format)? {
        true => Cleared::Image(path),
        false => Cleared::Absent(path),
    })
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
    context: &Context,
) -> Result<Cleared> {
    let cancel = &context.cancel;
    if let Some((path, format)) = place.path()
        && recognise::becomes_image(path, format)?
    {
        check_creatable(path)?;
        return match others.iter().any(|other| is_same_place(other, path)) {
            true => Err(plan::named_twice(path)),
            false => Ok(Cleared::Image(path.to_path_buf())),
        };
    }
    let path = match place {
        Place::Nbd(uri) => {
            return clear_export(uri, job, snapshot, request, context);
        }
        Place::Path(path) | Place::Image { path, .. } => path.clone(),
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
    let is_managed = !matches!(place, Place::Path(_) | Place::Image { .. });
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
    refuse_other_data(job, &device, holds_data, request, cancel)?;
    Ok(Cleared::Present { device, holds_data, resumes })
}

/// Connects to an export and looks at it, or refuses it. Who else uses it and what its bytes stand
/// for only its server knows.
fn clear_export(
    uri: &Uri,
    job: &Job,
    snapshot: &str,
    request: &RestoreRequest,
    context: &Context,
) -> Result<Cleared> {
    let device = NbdDevice::connect(uri, &[], context.io, &context.cancel)?;
    let target = Path::new(device.label());
    if device.export().flags.is_read_only() {
        let hint = "have the server export it writable, or choose another target";
        return Err(refusal(target, "it is exported read-only", hint));
    }
    let (has, needs) = (device.export().size, job.shape.size());
    if has < needs {
        let why = format!("it has {has} bytes and {needs} are needed");
        return Err(refusal(target, why, "choose a larger target"));
    }
    // Two that write parts of one block at a time would undo each other's work.
    let (block, chunk) = (device.export().block_min, job.shape.chunk_len());
    if block > chunk {
        let why =
            format!("it takes whole blocks of {block} bytes, and the volume's chunks have {chunk}");
        let hint = "have the server export it with smaller blocks, or choose another target";
        return Err(refusal(target, why, hint));
    }
    let holds_data = holds_data(&device)
        .map_err(|error| Error::io("cannot read the target", device.label(), error))?;
    let resumes = is_stored(&note_of_export(&device, job, snapshot), request);
    if holds_data && !resumes && !request.overwrite {
        return Err(holding_data(target));
    }
    refuse_other_data(job, &device, holds_data, request, &context.cancel)?;
    Ok(Cleared::Export { device, holds_data, resumes })
}

/// Refuses a target whose note allows to go on, but that holds more than a restore that stopped.
fn refuse_other_data(
    job: &Job,
    target: &dyn Target,
    holds_data: bool,
    request: &RestoreRequest,
    cancel: &Cancel,
) -> Result<()> {
    if !holds_data || request.overwrite || Sample::of(job, target, cancel)?.is_unfinished() {
        return Ok(());
    }
    let message = "refusing to write to the target, it holds other data than the restore that \
                   stopped here left";
    Err(Error::new(ErrorKind::TargetRefused, message)
        .on(target.label())
        .hint("see what was put there since; --overwrite replaces it"))
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

fn note_of_export(device: &NbdDevice, job: &Job, snapshot: &str) -> Note {
    Note::for_export(job, snapshot, device.label(), device.export().size)
}

/// What the user should know about a target before it is written.
pub fn remark(cleared: &Cleared, job: &Job) -> Option<String> {
    let (label, has) = match cleared {
        Cleared::Present { device, .. } if device.identity().is_block => {
            (device.label(), device.identity().size)
        }
        Cleared::Export { device, .. } => (device.label(), device.export().size),
        _ => return None,
    };
    let rest = has.checked_sub(job.shape.size()).filter(|rest| *rest > 0)?;
    Some(format!("{label} is larger than the volume: its last {rest} bytes were left as they were"))
}

/// Whether to compare first with a target that is there.
fn delta(request: &RestoreRequest, holds_data: bool) -> Delta {
    match request.delta {
        Delta::Auto if !holds_data || request.discard => Delta::Off,
        delta => delta,
    }
}

/// Opens or creates the target, and says how it is to be written and what is to be undone.
fn open(
    cleared: Cleared,
    job: &Job,
    request: &RestoreRequest,
    context: &Context,
) -> Result<(Site, How)> {
    let needs = job.shape.size();
    let in_folder = matches!(request.targets, Targets::Folder(_));
    match cleared {
        Cleared::Absent(path) => {
            let permissions = if in_folder { OWNER_ALONE } else { AS_MASKED };
            let device = create_target_file(&path, needs, permissions)?;
            Ok((Site::Local(Box::new(device), Undo::Remove), How { blank: true, ..How::default() }))
        }
        Cleared::New(new) => {
            new.create()?;
            match open_new(&new, job, request) {
                Ok(device) => {
                    let how = How { blank: new.is_blank(), ..How::default() };
                    Ok((Site::Local(Box::new(device), Undo::Destroy(new)), how))
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
            // What an empty file gains by becoming longer reads as zeroes.
            let how = How { blank: has == 0, resumes, delta: delta(request, holds_data) };
            let undo = if has < needs { Undo::SetLen(has) } else { Undo::Nothing };
            Ok((Site::Local(Box::new(device), undo), how))
        }
        Cleared::Export { device, holds_data, resumes } => {
            let how = How { blank: false, resumes, delta: delta(request, holds_data) };
            Ok((Site::Export(device), how))
        }
        Cleared::Image(path) => {
            let cluster_len = request.new_volumes.cluster_len;
            let (image, device) =
                NewImage::create(&path, needs, cluster_len, context.io, &context.cancel)?;
            if in_folder && let Err(error) = folder::close_new_image(&path) {
                drop(device);
                image.remove();
                return Err(error);
            }
            Ok((Site::Image(device, image), How { blank: true, ..How::default() }))
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
        context: &Context,
        tell: &mut dyn FnMut(String),
    ) -> Result<Ready> {
        let notes = request.state_dir.clone();
        let (site, how) = open(cleared, job, request, context)?;
        let note = match &site {
            Site::Local(device, _) => Some(note_of(device, job, snapshot)),
            Site::Export(device) => Some(note_of_export(device, job, snapshot)),
            Site::Image(..) => None,
        };
        let mut ready = Ready { site, how, note, noted: false, notes };
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
        let Some(note) = self.note.as_ref().filter(|_| !self.how.resumes) else {
            return;
        };
        let why = match &self.notes {
            None => "there is no directory to keep a note in (XDG_STATE_HOME is where)".to_owned(),
            Some(notes) => match note.store(notes) {
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
        if let (Some(note), Some(notes)) = (&self.note, &self.notes) {
            note.remove(notes);
        }
    }

    fn grow(&self, len: u64) -> Result<()> {
        let Site::Local(device, Undo::SetLen(_)) = &self.site else {
            return Ok(());
        };
        device
            .set_len(len)
            .map_err(|error| Error::io("cannot make the target longer", device.label(), error))
    }

    /// The target.
    pub fn device(&self) -> &dyn Target {
        match &self.site {
            Site::Local(device, _) => &**device,
            Site::Export(device) | Site::Image(device, _) => device,
        }
    }

    /// Whether it is a new image.
    pub fn is_image(&self) -> bool {
        matches!(self.site, Site::Image(..))
    }

    /// Releases the volume's range. Proves nothing about what it reads as.
    ///
    /// # Errors
    /// The system's or the server's.
    pub fn discard(&self, range: Range<u64>) -> std::io::Result<()> {
        match &self.site {
            Site::Local(device, _) => device.discard(range),
            Site::Export(device) | Site::Image(device, _) => device.discard(range),
        }
    }

    /// Ends a file where the volume ends, and makes the next reader read the medium.
    ///
    /// # Errors
    /// Of resizing and syncing.
    pub fn finish(&self, size: u64, tally: &Tally) -> Result<()> {
        let Site::Local(device, undo) = &self.site else {
            return Ok(());
        };
        let failed = |error| Error::io("cannot finish the target", device.label(), error);
        if device.identity().is_block {
            // Best effort: the data is durable already.
            let _ = ioctl::flush_block_cache(device.file());
        } else if device.len().map_err(failed)? > size {
            tally.touch();
            device.set_len(size).map_err(failed)?;
            device.sync().map_err(failed)?;
        }
        let _ = ioctl::forget_cached(device.file(), &(0..size));
        match undo {
            // Its name is as new as its bytes.
            Undo::Remove => sync_directory(device.path()),
            Undo::Nothing | Undo::SetLen(_) | Undo::Destroy(_) => Ok(()),
        }
    }

    /// The restore is complete and proven as far as was asked.
    ///
    /// # Errors
    /// Of closing an image: it is not to be used.
    pub fn done(self) -> Result<()> {
        self.remove_note();
        match self.site {
            Site::Local(..) | Site::Export(_) => Ok(()),
            Site::Image(device, image) => {
                drop(device);
                image.finish()
            }
        }
    }

    /// The restore failed. A target without a changed byte is left as it was found, and so is the
    /// place of a new image. Whether anything is left that was changed.
    pub fn leave(self, touched: bool) -> bool {
        if let Site::Image(device, image) = self.site {
            drop(device);
            image.remove();
            return false;
        }
        if touched {
            return true;
        }
        if self.noted {
            self.remove_note();
        }
        // Nothing better can be done if these fail; the failure that led here is reported.
        match self.site {
            Site::Export(_) | Site::Image(..) | Site::Local(_, Undo::Nothing) => {}
            Site::Local(device, Undo::Remove) => drop(std::fs::remove_file(device.path())),
            Site::Local(device, Undo::SetLen(len)) => drop(device.set_len(len)),
            Site::Local(device, Undo::Destroy(new)) => {
                // What is open cannot be taken away.
                drop(device);
                let _ = new.destroy();
            }
        }
        false
    }
}
