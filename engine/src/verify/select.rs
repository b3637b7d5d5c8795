//! What one snapshot needs: the frames its maps lead to, collected window by window and checked
//! in the order they lie in.

use std::collections::{BTreeMap, HashSet};

use voltar_format::limits::{FRAME_ALIGN, FRAME_STORED_LEN_MAX};
use voltar_format::map::{Entry, Shape};
use voltar_format::walk::NodeSource;
use voltar_format::{Id, LogOffset};

use super::findings::{Finding, Loss, Losses};
use super::plan::{BLOCK, Frames, Job, PlannedFrame, Scout, Send, send_frames};
use super::reach::frame_range;
use super::read;
use super::tally::Tally;
use crate::archive::index::Place;
use crate::archive::open::Archive;
use crate::archive::snapshots::Snapshot;
use crate::archive::store::{Store, place_of};
use crate::error::{Error, ErrorKind, Result};
use crate::inspect::newest_store;
use crate::options::{Context, VerifyRequest};

/// Frames in a window: a few MB.
const WINDOW_FRAMES: usize = 64 << 10;

/// Subtrees remembered as collected.
const COLLECTED_MAX: usize = 1 << 20;

/// Checks the commits, and every frame that `snapshot` needs. What is lost in one place and stored
/// in another as well is looked up there, until nothing more is found.
///
/// # Errors
/// As [`read::pass`].
pub(super) fn pass(
    archive: &Archive,
    request: &VerifyRequest,
    context: &Context,
    tally: &mut Tally<'_>,
    snapshot: &Snapshot,
) -> Result<()> {
    let mut needed = Needed::new(archive, None)?;
    read::pass(archive, request, context, tally, |send| {
        Scout::new(archive, request, 0).run_commits(send)?;
        needed.snapshot(snapshot, send)
    })?;
    let mut known = 0;
    while tally.findings.losses().added() > known {
        known = tally.findings.losses().added();
        tally.findings.end_pass();
        let mut needed = Needed::new(archive, Some(tally.findings.losses().clone()))?;
        read::pass(archive, request, context, tally, |send| needed.snapshot(snapshot, send))?;
    }
    Ok(())
}

/// The frames needed so far and not yet handed on.
struct Needed<'a> {
    archive: &'a Archive,
    store: Store,
    /// In a later pass, what is known to be lost: only what it hides is needed then.
    lost: Option<Losses>,
    /// Stored bytes by place.
    frames: BTreeMap<u64, u32>,
    /// Full subtrees of which all frames were handed on.
    collected: HashSet<(Id, u8)>,
}

impl<'a> Needed<'a> {
    fn new(archive: &'a Archive, lost: Option<Losses>) -> Result<Needed<'a>> {
        let store = newest_store(archive)?;
        Ok(Needed { archive, store, lost, frames: BTreeMap::new(), collected: HashSet::new() })
    }

    fn snapshot(&mut self, snapshot: &Snapshot, send: Send<'_>) -> Result<()> {
        for volume in &snapshot.manifest.volumes {
            if let Ok(shape) = volume.shape() {
                self.node(&shape, &volume.root, shape.root_level(), 0, send)?;
            }
        }
        for piece in snapshot.manifest.attached.iter().flat_map(|file| &file.pieces) {
            self.item(piece, send)?;
        }
        self.hand_on(send)
    }

    /// Collects what is below a node. What is damaged or missing the walk will name; what could not
    /// be read now, and so is not looked at, may be readable then, and is named here.
    fn node(
        &mut self,
        shape: &Shape,
        id: &Id,
        level: u8,
        number: u64,
        send: Send<'_>,
    ) -> Result<()> {
        if self.collected.contains(&(*id, level)) {
            return Ok(());
        }
        self.item(id, send)?;
        let node = match self.store.node(id, shape, level, number) {
            Ok(node) => node,
            Err(error) => return self.unread("map", id, &error, send),
        };
        for (place, entry) in (0u64..).zip(&node.entries) {
            let child = number.saturating_mul(256).saturating_add(place);
            match (entry, level) {
                (Entry::Zero | Entry::Unreadable, _) => {}
                (Entry::Data(id) | Entry::Partial(id), 0) => self.item(id, send)?,
                (Entry::Data(id) | Entry::Partial(id), _) => {
                    self.node(shape, id, level - 1, child, send)?;
                }
            }
        }
        if self.collected.len() < COLLECTED_MAX {
            self.collected.insert((*id, level));
        }
        Ok(())
    }

    fn item(&mut self, id: &Id, send: Send<'_>) -> Result<()> {
        let place = match self.place(id) {
            Ok(place) => place,
            Err(error) => return self.unread("index", id, &error, send),
        };
        if let Some(place) = place {
            let is_inside = place
                .frame
                .checked_add(place.frame_len.into())
                .is_some_and(|end| end <= self.archive.end());
            if is_inside {
                self.frames.insert(place.frame.0, place.frame_len.min(FRAME_STORED_LEN_MAX));
            }
        }
        match self.frames.len() >= WINDOW_FRAMES {
            true => self.hand_on(send),
            false => Ok(()),
        }
    }

    /// Where the item is to be looked for in this pass, if anywhere.
    fn place(&self, id: &Id) -> Result<Option<Place>> {
        let find = |tried: &[LogOffset]| {
            let entry = self.store.index().find_other(id, tried)?;
            Ok::<_, Error>(entry.as_ref().map(place_of))
        };
        let Some(lost) = &self.lost else { return find(&[]) };
        let mut tried = Vec::new();
        while let Some(place) = find(&tried)? {
            if lost.at(&frame_range(&place), place.slot).is_none() {
                // The first place of all was looked at in the first pass.
                return Ok(Some(place).filter(|_| !tried.is_empty()));
            }
            tried.push(place.frame);
        }
        Ok(None)
    }

    /// Says that the item, or where it is, could not be read.
    fn unread(&self, structure: &str, id: &Id, error: &Error, send: Send<'_>) -> Result<()> {
        if error.kind() != ErrorKind::Io {
            return Ok(());
        }
        let place = self.place(id).ok().flatten();
        let range = place.map_or(0..0, |place| frame_range(&place));
        let start = error.range().map_or(range.start, |range| range.start);
        let range = if range.is_empty() { start..start + BLOCK } else { range };
        send(Job::Found(Finding::unread(structure, range, error, Loss::Nothing)))
    }

    fn hand_on(&mut self, send: Send<'_>) -> Result<()> {
        let frames = std::mem::take(&mut self.frames).into_iter();
        let frames = frames.map(|(start, len)| {
            let end = (start + u64::from(len)).next_multiple_of(FRAME_ALIGN as u64);
            PlannedFrame { start, end, entry: None, items: 0..0 }
        });
        send_frames(Frames { frames: frames.collect(), items: Vec::new() }, send)
    }
}
