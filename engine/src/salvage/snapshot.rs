//! Snapshots anew: those with a commit, and what sessions without one left.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use voltar_format::Id;
use voltar_format::checksum::chunk_id;
use voltar_format::frame::ItemKind;
use voltar_format::manifest::{Attached, Manifest, Note, NoteVolume, Volume, is_name};
use voltar_format::map::Shape;

use super::copy::Orphan;
use super::maps::{Maps, Rebuild, Rebuilt};
use super::positions::{Positions, Tables, tables};
use super::target::Target;
use crate::archive::manifest::{host, merged, now_ns, program};
use crate::archive::session::Session;
use crate::archive::snapshots::Snapshot;
use crate::archive::store::Store;
use crate::error::{Error, ErrorKind, Result};
use crate::inspect::rfc3339;
use crate::report::{ByteRange, SalvagedSnapshot, SalvagedVolume};

/// The tag that marks what is not the snapshot that was made.
const TAG: &str = "salvaged";
/// The tag that names the snapshot as it was.
const TAG_FROM: &str = "salvaged-from";

/// Makes snapshots in the new archive.
pub(super) struct Snapshots {
    maps: Maps,
    store: Store,
}

impl Snapshots {
    /// From what was copied.
    ///
    /// # Errors
    /// Out of memory.
    pub fn new(target: &Target<'_>) -> Result<Snapshots> {
        Ok(Snapshots { maps: Maps::new(target)?, store: target.store()? })
    }

    /// Makes a snapshot whose commit can be read: the same one if all of it is there.
    ///
    /// # Errors
    /// Of reading and writing the new archive; `Interrupted`.
    pub fn committed(
        &mut self,
        target: &mut Target<'_>,
        snapshot: &Snapshot,
    ) -> Result<SalvagedSnapshot> {
        let mut manifest = snapshot.manifest.clone();
        let missing_files = drop_missing(target, &mut manifest.attached)?;
        let mut session = target.session()?;
        let missing = match self.is_whole(target, &manifest)? {
            true => {
                let sizes = manifest.volumes.iter().map(|volume| volume.size);
                target.context.observer.advance(sizes.fold(0, u64::saturating_add));
                vec![Vec::new(); manifest.volumes.len()]
            }
            false => self.rebuild(target, &mut session, &mut manifest, None)?,
        };
        let is_same = missing_files.is_empty() && missing.iter().all(Vec::is_empty);
        let bytes = match is_same {
            true => snapshot.commit.manifest.clone(),
            false => {
                manifest.tags.insert(TAG.into(), "incomplete".into());
                manifest.tags.insert(TAG_FROM.into(), snapshot.id.to_hex());
                encode(manifest.clone())?
            }
        };
        target.commit(session, &bytes)?;
        let original = Some(snapshot.id.to_hex());
        Ok(report(last_id(target), original, &manifest, missing, missing_files))
    }

    /// Builds the maps of all volumes anew, from their roots or from what a session left; returns
    /// what is missing of each.
    fn rebuild(
        &mut self,
        target: &Target<'_>,
        session: &mut Session,
        manifest: &mut Manifest,
        tables: Option<&Tables>,
    ) -> Result<Vec<Vec<Range<u64>>>> {
        write_note(session, manifest)?;
        let mut missing = Vec::new();
        for (number, volume) in (0u16..).zip(&mut manifest.volumes) {
            let shape = shape_of(volume.size, volume.chunk_size)?;
            let positions = tables.map(|tables| Positions::new(tables, number, shape));
            let root = tables.is_none().then_some(volume.root);
            let (maps, session) = (&mut self.maps, &mut *session);
            let rebuild = Rebuild { maps, target, session, volume: number, shape, positions };
            let Rebuilt { root, missing: lost } = rebuild.run(root)?;
            take_root(volume, root, &lost);
            missing.push(lost);
        }
        Ok(missing)
    }

    fn is_whole(&mut self, target: &Target<'_>, manifest: &Manifest) -> Result<bool> {
        for volume in &manifest.volumes {
            let shape = shape_of(volume.size, volume.chunk_size)?;
            if !self.maps.is_whole(target, &shape, volume.root)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Makes a snapshot of what a session without a commit left; nothing if its note is lost.
    ///
    /// # Errors
    /// As [`committed`](Self::committed).
    pub fn orphan(
        &mut self,
        target: &mut Target<'_>,
        orphan: &Orphan,
    ) -> Result<Option<SalvagedSnapshot>> {
        let note = orphan.note.map(|id| self.store.item(&id, ItemKind::Note)).transpose()?;
        let note = note.and_then(|bytes| serde_json::from_slice::<Note>(&bytes).ok());
        let Some(note) = note.filter(is_usable) else { return Ok(None) };
        let tables = tables(&target.archive, orphan)?;
        let mut manifest = manifest_of(&note);
        let mut session = target.session()?;
        let missing = self.rebuild(target, &mut session, &mut manifest, Some(&tables))?;
        self.maps.look_anew();
        let sizes = manifest.volumes.iter().map(|volume| 0..volume.size);
        let is_empty = missing.iter().zip(sizes).all(|(lost, all)| *lost == [all]);
        let id = match is_empty {
            // Nothing of any volume was found: its nodes are as good as nothing.
            true => {
                target.commit(session, &[])?;
                None
            }
            false => {
                target.commit(session, &encode(manifest.clone())?)?;
                last_id(target)
            }
        };
        Ok(Some(report(id, None, &manifest, missing, Vec::new())))
    }
}

/// Says in the log what the volumes of this session are.
fn write_note(session: &mut Session, manifest: &Manifest) -> Result<()> {
    let volumes = manifest.volumes.iter().map(|volume| NoteVolume {
        name: volume.name.clone(),
        size: volume.size,
        chunk_size: volume.chunk_size,
    });
    let (time_ns, host, program) = (now_ns(), host(), program());
    let note = Note { time_ns, host, program, volumes: volumes.collect() };
    let bytes = serde_json::to_vec(&note)
        .map_err(|error| Error::new(ErrorKind::Internal, "cannot encode a note").because(error))?;
    session.append_item(chunk_id(&bytes), &bytes, ItemKind::Note, 0, 0)
}

/// Takes out the files of which a piece is missing; returns their names.
fn drop_missing(target: &Target<'_>, attached: &mut Vec<Attached>) -> Result<Vec<String>> {
    let mut missing = BTreeSet::new();
    for file in attached.iter() {
        let mut size = Some(0u64);
        for piece in &file.pieces {
            let len = target.len_of(piece, ItemKind::Attached)?;
            size = size.zip(len).map(|(size, len)| size.saturating_add(len.into()));
        }
        if size != Some(file.size) {
            missing.insert(file.name.clone());
        }
    }
    attached.retain(|file| !missing.contains(&file.name));
    Ok(missing.into_iter().collect())
}

/// Gives a volume its new map. With a part of it missing it proves nothing to a change source.
fn take_root(volume: &mut Volume, root: Id, missing: &[Range<u64>]) {
    volume.root = root;
    if missing.is_empty() {
        return;
    }
    let known = volume.unreadable.iter().map(|&(offset, len)| offset..offset.saturating_add(len));
    let all = merged(known.chain(missing.iter().cloned()).collect());
    volume.unreadable = all.iter().map(|range| (range.start, range.end - range.start)).collect();
    volume.proof.clear();
}

/// Whether a manifest can be made of a note.
fn is_usable(note: &Note) -> bool {
    let names: BTreeSet<&String> = note.volumes.iter().map(|volume| &volume.name).collect();
    let has_shape = |volume: &NoteVolume| Shape::new(volume.size, volume.chunk_size).is_some();
    names.len() == note.volumes.len()
        && names.iter().all(|name| is_name(name))
        && note.volumes.iter().all(has_shape)
        && manifest_of(note).encode().is_ok()
}

fn manifest_of(note: &Note) -> Manifest {
    let volumes = note.volumes.iter().map(|volume| Volume {
        name: volume.name.clone(),
        size: volume.size,
        chunk_size: volume.chunk_size,
        root: Id::default(),
        source: "not known: the commit is lost".into(),
        change_source: "none".into(),
        proof: BTreeMap::new(),
        degraded: None,
        unreadable: Vec::new(),
        new_bytes: 0,
    });
    Manifest {
        time_ns: note.time_ns,
        host: note.host.clone(),
        program: note.program.clone(),
        parent: None,
        tags: BTreeMap::from([(TAG.into(), "no-commit".into())]),
        volumes: volumes.collect(),
        attached: Vec::new(),
    }
}

fn shape_of(size: u64, chunk_size: u32) -> Result<Shape> {
    // Manifests that decoded and notes that are usable have shapes.
    Shape::new(size, chunk_size).ok_or_else(|| {
        Error::new(ErrorKind::Internal, format!("no shape for {size} bytes by {chunk_size}"))
    })
}

/// The manifest's bytes; if its lists of unreadable ranges are too long for it, with one range a
/// volume instead.
fn encode(mut manifest: Manifest) -> Result<Vec<u8>> {
    if let Ok(bytes) = manifest.encode() {
        return Ok(bytes);
    }
    for volume in &mut manifest.volumes {
        if let (Some(&(start, _)), Some(&(last, len))) =
            (volume.unreadable.first(), volume.unreadable.last())
        {
            volume.unreadable = vec![(start, last.saturating_add(len) - start)];
        }
    }
    manifest.encode().map_err(|error| {
        Error::new(ErrorKind::Internal, "a salvaged snapshot's description is too large")
            .because(error)
    })
}

fn last_id(target: &Target<'_>) -> Option<String> {
    let last = target.archive.last.as_ref();
    last.and_then(|commit| commit.snapshot_id()).map(|id| id.to_hex())
}

fn report(
    id: Option<String>,
    original: Option<String>,
    manifest: &Manifest,
    missing: Vec<Vec<Range<u64>>>,
    missing_files: Vec<String>,
) -> SalvagedSnapshot {
    let listed = |ranges: Vec<Range<u64>>| {
        let range =
            |range: Range<u64>| ByteRange { offset: range.start, length: range.end - range.start };
        ranges.into_iter().map(range).collect()
    };
    let volumes = manifest.volumes.iter().zip(missing).map(|(volume, missing)| SalvagedVolume {
        name: volume.name.clone(),
        size: volume.size,
        missing: listed(missing),
    });
    SalvagedSnapshot {
        committed: original.is_some(),
        id,
        original,
        time: rfc3339(manifest.time_ns),
        time_ns: manifest.time_ns,
        volumes: volumes.collect(),
        missing_files,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_many_ranges_for_a_manifest_become_one_a_volume() {
        let volume = |number: usize| NoteVolume {
            name: format!("disk{number}"),
            size: 1 << 60,
            chunk_size: 4096,
        };
        let volumes = (0..60).map(volume).collect();
        let note = Note { time_ns: 0, host: "h".into(), program: "p".into(), volumes };
        let mut manifest = manifest_of(&note);
        let ranges: Vec<(u64, u64)> = (0..4096).map(|n| ((1 << 50) + n * 8192, 4096)).collect();
        manifest.volumes.iter_mut().for_each(|volume| volume.unreadable = ranges.clone());
        assert!(manifest.encode().is_err());
        let short = Manifest::decode(&encode(manifest).unwrap()).unwrap();
        assert_eq!(short.volumes[59].unreadable, [(1 << 50, 4095 * 8192 + 4096)]);
    }
}
