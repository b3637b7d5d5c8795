//! Compares snapshots: which bytes of a volume differ, found by descending both maps only where
//! their ids differ.

use std::path::Path;

use voltar_format::manifest::Volume;
use voltar_format::map::{Entry, Shape};
use voltar_format::walk::{Cursor, Run, changes};

use crate::archive::format_error;
use crate::archive::open::Archive;
use crate::archive::snapshots::Snapshot;
use crate::archive::store::Store;
use crate::error::{Error, ErrorKind, Result};
use crate::inspect::{newest_store, open, volume_summary};
use crate::observe::Phase;
use crate::options::{Context, Selector};
use crate::report::{DiffExtent, DiffReport, VolumeDiff, VolumeSummary};

/// Extents that all volumes of a report have at most: 128 MiB of them. If none touches another, as
/// many chunks: 256 GiB in chunks of 64 KiB.
const EXTENTS_MAX: usize = 4 << 20;

/// What differs between two snapshots, in the volumes that both hold and in which there are; or in
/// the named volume alone.
///
/// # Errors
/// `NotFound` for a snapshot, or for a named volume that one of them lacks; `InvalidRequest` if a
/// volume's chunk lengths differ, or if there are more than 2^22 extents; `Damaged`.
pub fn run(
    archive: &Path,
    old: &Selector,
    new: &Selector,
    volume: Option<&str>,
    context: &Context,
) -> Result<DiffReport> {
    diff_archive(&open(archive, context)?, old, new, volume, context)
}

/// As [`run`], of an open archive.
///
/// # Errors
/// As [`run`].
pub fn diff_archive(
    archive: &Archive,
    old: &Selector,
    new: &Selector,
    volume: Option<&str>,
    context: &Context,
) -> Result<DiffReport> {
    let (old, new) = (archive.select(old)?, archive.select(new)?);
    let (pairs, only_old, only_new) = match volume {
        Some(name) => {
            let pair = (named(archive, &old, name)?, named(archive, &new, name)?);
            (vec![pair], Vec::new(), Vec::new())
        }
        None => (common(&old, &new), lacking(&old, &new), lacking(&new, &old)),
    };
    context.observer.phase(Phase::Walk, Some(pairs.iter().map(|(_, new)| new.size).sum()));
    let mut store = newest_store(archive)?;
    let mut volumes = Vec::with_capacity(pairs.len());
    let mut room = EXTENTS_MAX;
    for (old, new) in pairs {
        let volume = compare(archive, &mut store, old, new, room, context)?;
        room -= volume.extents.len();
        volumes.push(volume);
    }
    Ok(DiffReport { volumes, only_old, only_new })
}

fn named<'s>(archive: &Archive, snapshot: &'s Snapshot, name: &str) -> Result<&'s Volume> {
    snapshot.manifest.volume(name).ok_or_else(|| {
        let message = format!("snapshot {} holds no volume {name:?}", snapshot.id);
        Error::new(ErrorKind::NotFound, message)
            .on(archive.label())
            .hint("`voltar show` names the volumes a snapshot holds")
    })
}

/// The volumes that both hold, in the newer one's order.
fn common<'s>(old: &'s Snapshot, new: &'s Snapshot) -> Vec<(&'s Volume, &'s Volume)> {
    let volumes = new.manifest.volumes.iter();
    volumes.filter_map(|volume| Some((old.manifest.volume(&volume.name)?, volume))).collect()
}

/// The volumes of one that the other does not hold.
fn lacking(one: &Snapshot, other: &Snapshot) -> Vec<VolumeSummary> {
    let volumes = one.manifest.volumes.iter();
    let alone = volumes.filter(|volume| other.manifest.volume(&volume.name).is_none());
    alone.map(volume_summary).collect()
}

fn compare(
    archive: &Archive,
    store: &mut Store,
    old: &Volume,
    new: &Volume,
    room: usize,
    context: &Context,
) -> Result<VolumeDiff> {
    if old.chunk_size != new.chunk_size {
        let message = format!(
            "volume {:?} has chunks of {} bytes in one snapshot and of {} in the other",
            new.name, old.chunk_size, new.chunk_size
        );
        return Err(Error::new(ErrorKind::InvalidRequest, message)
            .on(archive.label())
            .meaning("their maps cannot be compared")
            .hint("compare snapshots with the same chunk length, or restore both and compare"));
    }
    let bad = |error| format_error(archive.label(), error);
    let shape = new.shape().map_err(bad)?;
    let mut before = Cursor::new(old.shape().map_err(bad)?, old.root);
    let mut after = Cursor::new(shape, new.root);
    let mut extents = Vec::new();
    let mut position = 0;
    changes(&mut before, &mut after, store, |run: Run| -> Result<()> {
        context.cancel.check()?;
        let extent = extent(&shape, &run);
        let end = extent.offset + extent.length;
        context.observer.advance(end - position);
        position = end;
        match push(&mut extents, extent, room) {
            true => Ok(()),
            false => Err(too_many(archive, new)),
        }
    })?;
    context.observer.advance(shape.size() - position);
    Ok(VolumeDiff {
        volume: new.name.clone(),
        old_size: old.size,
        new_size: new.size,
        chunk_size: new.chunk_size,
        extents,
    })
}

/// The bytes of a run and what they are: what could not be read when the snapshot was made is
/// no zero, so it counts as data.
fn extent(shape: &Shape, run: &Run) -> DiffExtent {
    let chunk_len = u64::from(shape.chunk_len());
    let offset = run.chunks.start.saturating_mul(chunk_len).min(shape.size());
    let end = run.chunks.end.saturating_mul(chunk_len).min(shape.size());
    let kind = match run.entry {
        Entry::Zero => "zero",
        Entry::Data(_) | Entry::Partial(_) | Entry::Unreadable => "data",
    };
    DiffExtent { offset, length: end.saturating_sub(offset), kind }
}

fn too_many(archive: &Archive, volume: &Volume) -> Error {
    let name = &volume.name;
    let message = format!("volume {name:?} differs in more extents than can be listed");
    Error::new(ErrorKind::InvalidRequest, message)
        .on(archive.label())
        .meaning(format!("no more than {EXTENTS_MAX} are"))
        .hint("name one volume with `--volume`, or snapshots that are closer to one another")
}

/// Adds an extent behind all others, as part of the last one where they touch; `false` if there is
/// no room.
fn push(extents: &mut Vec<DiffExtent>, extent: DiffExtent, room: usize) -> bool {
    let is_full = extents.len() >= room;
    match extents.last_mut() {
        Some(last) if last.kind == extent.kind && last.offset + last.length == extent.offset => {
            last.length += extent.length;
        }
        _ if extent.length == 0 => {}
        _ if is_full => return false,
        _ => extents.push(extent),
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extents_that_touch_merge_and_the_others_are_bounded() {
        let chunk = |number: u64| DiffExtent { offset: number * 4096, length: 4096, kind: "data" };
        let mut extents = Vec::new();
        for number in [0, 1, 3, 5, 6] {
            assert!(push(&mut extents, chunk(number), 3));
        }
        let zero = DiffExtent { kind: "zero", ..chunk(7) };
        assert!(!push(&mut extents, zero, 3));
        assert!(push(&mut extents, DiffExtent { length: 0, ..zero }, 3));
        assert!(push(&mut extents, chunk(7), 3));
        let places: Vec<_> =
            extents.iter().map(|it| (it.offset / 4096, it.length / 4096)).collect();
        assert_eq!(places, [(0, 2), (3, 1), (5, 3)]);
    }
}
