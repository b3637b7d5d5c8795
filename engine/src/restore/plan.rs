//! Planning: which snapshot, which volumes, onto which targets.

use std::path::{Path, PathBuf};

use voltar_format::manifest::Volume;

use super::folder;
use super::job::Job;
use crate::archive::open::Archive;
use crate::archive::snapshots::Snapshot;
use crate::error::{Error, ErrorKind, Result};
use crate::options::{Delta, FolderRequest, Place, RestoreRequest, TargetRequest, Targets};
use crate::source::hold::device_path;

/// A volume and where it goes.
pub struct Assignment {
    /// The volume.
    pub job: Job,
    /// The target.
    pub place: Place,
}

impl Assignment {
    /// Where the target's file or device is, or will be.
    pub fn path(&self) -> PathBuf {
        device_path(&self.place)
    }
}

/// Refuses what contradicts itself.
///
/// # Errors
/// `InvalidRequest`.
pub fn check(request: &RestoreRequest) -> Result<()> {
    let invalid = |message: &str, hint: &str| {
        Err(Error::new(ErrorKind::InvalidRequest, message).hint(hint.to_owned()))
    };
    if request.discard && request.delta == Delta::On {
        return invalid(
            "to discard the target and to compare with what it holds exclude each other",
            "leave out one of `--discard` and `--delta`",
        );
    }
    let Targets::Each(targets) = &request.targets else { return Ok(()) };
    if targets.is_empty() {
        return invalid("no target was named", "name a block device or a file");
    }
    let mut paths: Vec<_> = targets.iter().map(|target| device_path(&target.place)).collect();
    paths.sort();
    let twice = paths.windows(2).find_map(|pair| match pair {
        [one, other] if one == other => Some(one),
        _ => None,
    });
    match twice {
        None => Ok(()),
        Some(path) => Err(named_twice(path)),
    }
}

/// Refuses a target for the second volume that would go there.
pub fn named_twice(path: &Path) -> Error {
    Error::new(ErrorKind::InvalidRequest, "a target is named twice")
        .on(path.display().to_string())
        .hint("each volume needs its own")
}

/// Which volume of `snapshot` goes where.
///
/// # Errors
/// `NotFound` naming the volumes there are, `InvalidRequest` for one asked for twice, `Ambiguous`
/// for none named where there are several.
pub fn assign(
    request: &RestoreRequest,
    archive: &Archive,
    snapshot: &Snapshot,
) -> Result<Vec<Assignment>> {
    match &request.targets {
        Targets::Each(targets) => assign_each(targets, request, archive, snapshot),
        Targets::Folder(folder) => assign_all(folder, request, archive, snapshot),
    }
}

fn assign_each(
    targets: &[TargetRequest],
    request: &RestoreRequest,
    archive: &Archive,
    snapshot: &Snapshot,
) -> Result<Vec<Assignment>> {
    let mut assignments: Vec<Assignment> = Vec::new();
    for target in targets {
        let name = volume_name(target, archive, snapshot)?;
        let volume = volume_called(&name, archive, snapshot)?;
        if assignments.iter().any(|other| other.job.volume.name == name) {
            let message = format!("volume {name:?} is asked for twice");
            return Err(Error::new(ErrorKind::InvalidRequest, message)
                .hint("restore it to the second target with a command of its own"));
        }
        let job = Job::new(archive, snapshot, volume, request.on_damage)?;
        assignments.push(Assignment { job, place: target.place.clone() });
    }
    Ok(assignments)
}

/// Each volume, or the one that is wanted, to a file of its name.
fn assign_all(
    folder: &FolderRequest,
    request: &RestoreRequest,
    archive: &Archive,
    snapshot: &Snapshot,
) -> Result<Vec<Assignment>> {
    let volumes = match &folder.volume {
        Some(name) => std::slice::from_ref(volume_called(name, archive, snapshot)?),
        None => &snapshot.manifest.volumes[..],
    };
    let assign = |volume: &Volume| {
        let (format, path) = (folder.format, &folder.path);
        let path = folder::volume_path(path, &volume.name, format)?;
        let job = Job::new(archive, snapshot, volume, request.on_damage)?;
        Ok(Assignment { job, place: Place::Image { format, path } })
    };
    volumes.iter().map(assign).collect()
}

fn volume_called<'s>(name: &str, archive: &Archive, snapshot: &'s Snapshot) -> Result<&'s Volume> {
    snapshot.manifest.volume(name).ok_or_else(|| {
        let message = format!("the snapshot holds no volume {name:?}");
        Error::new(ErrorKind::NotFound, message).on(archive.label()).hint(names(snapshot))
    })
}

fn volume_name(target: &TargetRequest, archive: &Archive, snapshot: &Snapshot) -> Result<String> {
    match (&target.name, &snapshot.manifest.volumes[..]) {
        (Some(name), _) => Ok(name.clone()),
        (None, [only]) => Ok(only.name.clone()),
        (None, _) => {
            let message = "the snapshot holds several volumes and none was named";
            Err(Error::new(ErrorKind::Ambiguous, message).on(archive.label()).hint(names(snapshot)))
        }
    }
}

fn names(snapshot: &Snapshot) -> String {
    let names: Vec<&str> =
        snapshot.manifest.volumes.iter().map(|volume| volume.name.as_str()).collect();
    format!("it holds: {}", names.join(", "))
}
