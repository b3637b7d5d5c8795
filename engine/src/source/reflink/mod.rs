//! Regular files on btrfs and XFS, held still by a reflink copy.
//!
//! The copy shares all extents with the file and is made in one step, in which nobody can write to the
//! file; it is what is read. Once the backup is durable it stays as the base of the next one, beside the
//! file as `.NAME.voltar-TIME`: where the next copy still shares an extent with it, nothing changed. One
//! base is kept for each file.
//!
//! A file that cannot be copied is read as it is, and the report says why.

pub mod changes;
pub mod copy;

use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use self::copy::{Copy, Original};
use super::hold::{Capture, Held, Hold, Wanted};
use super::{ChangeSource, ChangedExtent, Degraded, Proof, View, file};
use crate::device::file::{Access, FileDevice, FileIdentity};
use crate::error::{Error, ErrorKind, Result};
use crate::options::{Holding, Keep, Place};

/// Whether `path` leads to a regular file on a file system that makes reflink copies.
pub fn recognises(path: &Path) -> bool {
    Original::open(path).is_some()
}

/// Takes care of files that are [recognised](recognises).
pub fn prepare(wanted: Vec<Wanted>, holding: &Holding) -> Box<dyn Capture> {
    let files = wanted.into_iter().map(|wanted| Captured { wanted, stage: Stage::Waiting });
    Box::new(Files { files: files.collect(), keep: holding.keep })
}

/// The files of a request.
struct Files {
    files: Vec<Captured>,
    keep: Keep,
}

struct Captured {
    wanted: Wanted,
    stage: Stage,
}

/// How far a file has come.
enum Stage {
    /// Nothing is made yet.
    Waiting,
    /// It is to be read as it is; with the reason.
    Plain(Option<String>),
    /// There is a copy.
    Copied(Arc<Original>, Arc<Copy>),
}

impl Capture for Files {
    fn take(&mut self) -> Result<()> {
        for file in &mut self.files {
            file.stage = copied(path_of(&file.wanted)?);
        }
        Ok(())
    }

    fn open(&mut self) -> Result<Vec<(usize, Held)>> {
        let keep = self.keep;
        let opened =
            self.files.iter_mut().map(|file| file.open(keep)).collect::<Result<Vec<_>>>()?;
        // What is handed out is no longer to be abandoned.
        self.files.clear();
        Ok(opened)
    }

    fn abandon(&mut self) -> Result<()> {
        let mut outcome = Ok(());
        for file in self.files.drain(..) {
            if let Stage::Copied(_, copy) = file.stage {
                outcome = outcome.and(removed(&copy));
            }
        }
        outcome
    }
}

/// A copy of the file at `path`, or the reason why there is none.
fn copied(path: &Path) -> Stage {
    // It was recognised a moment ago.
    let Some(original) = Original::open(path) else { return Stage::Plain(None) };
    match original.copy() {
        Ok(copy) => Stage::Copied(Arc::new(original), Arc::new(copy)),
        Err(Degraded(why)) => Stage::Plain(Some(in_kind(&original, &why))),
    }
}

/// As degradations are told.
fn in_kind(original: &Original, why: &str) -> String {
    format!("{}: {why}", original.file_system().kind())
}

impl Captured {
    fn open(&mut self, keep: Keep) -> Result<(usize, Held)> {
        let reason = match &self.stage {
            Stage::Waiting => None,
            Stage::Plain(reason) => reason.clone(),
            Stage::Copied(original, copy) => match self.held(original, copy, keep) {
                Ok(held) => return Ok((self.wanted.number, held)),
                Err(error) => Some(in_kind(original, &format!("its copy cannot be read: {error}"))),
            },
        };
        if let Stage::Copied(_, copy) = std::mem::replace(&mut self.stage, Stage::Plain(None)) {
            removed(&copy)?;
        }
        let (view, device) = file::view(&self.wanted.name, path_of(&self.wanted)?)?;
        let view = View { degraded: reason, ..view };
        let identities = vec![device.identity().clone()];
        Ok((self.wanted.number, Held { view, identities, hold: None }))
    }

    /// The copy as a volume.
    fn held(&self, original: &Arc<Original>, copy: &Arc<Copy>, keep: Keep) -> io::Result<Held> {
        copy.sync()?;
        let source = ReflinkSource {
            original: Arc::clone(original),
            copy: Arc::clone(copy),
            size: copy.file().metadata()?.len(),
            proof: copy.identity()?,
            written: copy.file().metadata()?.into(),
            keep,
        };
        let device = FileDevice::from_file(copy.path(), copy.file().try_clone()?, Access::Read)?;
        let identities = vec![FileIdentity::of(original.file())?, device.identity().clone()];
        let view = View {
            name: self.wanted.name.clone(),
            description: self.wanted.place.to_string(),
            size: source.size,
            device: Arc::new(device),
            change_source: Some(Arc::new(source.clone())),
            degraded: None,
        };
        Ok(Held { view, identities, hold: Some(Box::new(source)) })
    }
}

fn path_of(wanted: &Wanted) -> Result<&Path> {
    match &wanted.place {
        Place::Path(path) => Ok(path),
        other => Err(Error::new(ErrorKind::Internal, "a volume without a path is read as a file")
            .on(other.to_string())),
    }
}

fn removed(copy: &Copy) -> Result<()> {
    copy.remove().map_err(|error| cannot_remove(copy.path(), error))
}

fn cannot_remove(path: &Path, error: io::Error) -> Error {
    Error::io("cannot take away a reflink copy", path.display().to_string(), error)
}

/// What tells whether bytes were written: everything but a write leaves it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Written {
    size: u64,
    seconds: i64,
    nanoseconds: i64,
}

impl From<Metadata> for Written {
    fn from(metadata: Metadata) -> Written {
        let (seconds, nanoseconds) = (metadata.mtime(), metadata.mtime_nsec());
        Written { size: metadata.len(), seconds, nanoseconds }
    }
}

/// A copy that is read.
#[derive(Clone)]
struct ReflinkSource {
    original: Arc<Original>,
    copy: Arc<Copy>,
    size: u64,
    proof: Proof,
    written: Written,
    keep: Keep,
}

impl ChangeSource for ReflinkSource {
    fn kind(&self) -> &'static str {
        self.original.file_system().kind()
    }

    fn proof(&self) -> Proof {
        self.proof.clone()
    }

    fn changes(&self, base: &Proof, base_size: u64) -> Result<Vec<ChangedExtent>, Degraded> {
        let failed = |error: io::Error| Degraded(format!("the base cannot be looked for: {error}"));
        let gone =
            || Degraded("the copy that the parent was read from is gone, or was touched".into());
        let copy = self.original.find(base).map_err(failed)?.ok_or_else(gone)?;
        // So that no other run takes it away meanwhile; a wish.
        let _ = copy.file().try_lock_shared();
        let size = copy.file().metadata().map_err(failed)?.len();
        if size != base_size {
            return Err(Degraded(format!("the base has {size} bytes, the parent {base_size}")));
        }
        let changes = changes::changes((&copy, base_size), (&self.copy, self.size))?;
        match copy.identity().map_err(failed)? == *base {
            true => Ok(changes),
            false => Err(gone()),
        }
    }
}

impl Hold for ReflinkSource {
    fn check(&mut self) -> Result<()> {
        let words =
            |error| Error::io("cannot look at", self.copy.path().display().to_string(), error);
        match Written::from(self.copy.file().metadata().map_err(words)?) == self.written {
            true => Ok(()),
            false => Err(Error::new(
                ErrorKind::SourceUnusable,
                "somebody wrote to the copy that is read",
            )
            .on(self.copy.path().display().to_string())
            .meaning("what was read is of no single instant; nothing was committed")
            .hint("leave the files named .NAME.voltar-TIME alone, and run this again")),
        }
    }

    fn keep(&mut self) -> Result<()> {
        let kept = match self.keep {
            Keep::Auto | Keep::Snapshot => Some(&self.proof),
            Keep::Nothing => {
                removed(&self.copy)?;
                None
            }
        };
        let outcome = self.original.remove_copies(kept);
        outcome.map_err(|error| cannot_remove(self.original.path(), error))
    }

    fn release(&mut self) -> Result<()> {
        removed(&self.copy)
    }
}
