//! The walk: from every snapshot down its maps to the places that hold its chunks.
//!
//! Proves that each id is in the index, that its place is a whole frame which holds it, and that
//! it is as long as its place in the volume demands; and names what each damage costs. A subtree
//! that was proven once is not walked again, in whatever snapshot it stands: the cost is that of
//! what is distinct, and 18 bytes of memory per 16 MiB (of 64 KiB chunks).

use std::collections::{HashMap, HashSet, VecDeque};
use std::ops::Range;

use voltar_format::Id;
use voltar_format::frame::{ChunkEntry, Frame, FrameHead, ItemKind};
use voltar_format::limits::FRAME_STORED_LEN_MAX;
use voltar_format::manifest::{Attached, Volume};
use voltar_format::map::{Entry, Shape, span_of_entry, span_of_node};
use voltar_format::segment::{FrameEntry, Table};
use voltar_format::units::ChunkIndex;
use voltar_format::walk::NodeSource;

use super::findings::{Finding, Loss};
use super::plan::{BLOCK, Spot};
use super::record::read_table;
use super::tally::Tally;
use crate::archive::chain::links;
use crate::archive::index::{Hint, Index, Place};
use crate::archive::open::Archive;
use crate::archive::read_exact;
use crate::archive::snapshots::Snapshot;
use crate::archive::store::{Store, place_of};
use crate::error::{ErrorKind, Result};
use crate::observe::Phase;
use crate::options::Context;
use crate::report::Affected;

/// Proven subtrees that are remembered; beyond that the memory starts anew, which costs time.
const PROVEN_MAX: usize = 2 << 20;
/// Damaged subtrees that are remembered.
const DAMAGED_MAX: usize = 256 << 10;
/// Damaged subtrees walked again, so that each snapshot's ranges are named exactly; a map made to
/// repeat a damaged subtree without end gets the subtree's whole range instead.
const REPEATS_MAX: u64 = 1 << 20;
/// Tables kept.
const TABLES_MAX: usize = 8;

/// Walks all snapshots, oldest to newest, or only one.
///
/// # Errors
/// `Interrupted`; out of memory. Damage goes to the tally.
pub(super) fn walk(
    archive: &Archive,
    context: &Context,
    tally: &mut Tally<'_>,
    only: Option<&Snapshot>,
) -> Result<()> {
    if archive.last.is_none() {
        return Ok(());
    }
    let index = Index::of(archive);
    let store = Store::new(std::sync::Arc::clone(&archive.home), index.clone())?;
    let mut reach = Reach {
        archive,
        context,
        tally,
        index,
        hint: Hint::default(),
        store,
        tables: VecDeque::new(),
        proven: HashSet::new(),
        damaged: HashMap::new(),
        repeats: 0,
    };
    match only {
        Some(snapshot) => {
            context.observer.phase(Phase::Walk, Some(volume_bytes(snapshot)));
            reach.snapshot(snapshot)
        }
        None => {
            context.observer.phase(Phase::Walk, None);
            for link in links(archive)? {
                // A lost commit was told; what its snapshot was nobody knows any more.
                let Ok(Ok(Some(snapshot))) = link.read(archive).map(|it| archive.snapshot_of(it))
                else {
                    continue;
                };
                reach.snapshot(&snapshot)?;
            }
            Ok(())
        }
    }
}

fn volume_bytes(snapshot: &Snapshot) -> u64 {
    let sizes = snapshot.manifest.volumes.iter().map(|volume| volume.size);
    sizes.fold(0, u64::saturating_add)
}

/// What tells proven subtrees apart: the same node proves another thing under another shape.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    id: [u8; 16],
    level: u8,
    chunk_bits: u8,
}

struct Reach<'a, 't> {
    archive: &'a Archive,
    context: &'a Context,
    tally: &'a mut Tally<'t>,
    index: Index,
    hint: Hint,
    store: Store,
    tables: VecDeque<Held>,
    proven: HashSet<Key>,
    /// Damaged subtrees and a damage that is below.
    damaged: HashMap<Key, usize>,
    repeats: u64,
}

/// What is kept of a segment: its table, if that is whole.
struct Held {
    start: u64,
    table: Option<HeldTable>,
}

/// A table with each frame's first item.
struct HeldTable {
    table: Table,
    first: Vec<usize>,
}

/// The volume being walked.
struct Walked<'s> {
    snapshot: String,
    commit: Range<u64>,
    volume: &'s str,
    shape: Shape,
}

/// One node's place in a map.
#[derive(Clone, Copy)]
struct At {
    id: Id,
    level: u8,
    number: u64,
}

/// The number of the damage that something ran into.
type Hit = usize;

impl Reach<'_, '_> {
    fn snapshot(&mut self, snapshot: &Snapshot) -> Result<()> {
        for volume in &snapshot.manifest.volumes {
            self.volume(snapshot, volume)?;
        }
        let attached = &snapshot.manifest.attached;
        attached.iter().try_for_each(|file| self.attached(snapshot, file))
    }

    fn volume(&mut self, snapshot: &Snapshot, volume: &Volume) -> Result<()> {
        // A manifest that decoded has shapes.
        let Ok(shape) = volume.shape() else { return Ok(()) };
        let walked = Walked {
            snapshot: snapshot.id.to_hex(),
            commit: commit_range(snapshot),
            volume: &volume.name,
            shape,
        };
        let root = At { id: volume.root, level: shape.root_level(), number: 0 };
        self.node(&walked, root).map(drop)
    }

    /// Walks a subtree; says which damage it ran into, if any.
    fn node(&mut self, walked: &Walked<'_>, at: At) -> Result<Option<Hit>> {
        self.context.cancel.check()?;
        let chunks = chunks_of(&walked.shape, at);
        let key = key(&walked.shape, at, &chunks);
        if key.is_some_and(|key| self.proven.contains(&key)) {
            self.advance(walked, &chunks);
            return Ok(None);
        }
        if let Some(hit) = self.repeated(key) {
            self.affect(walked, hit, chunks);
            return Ok(Some(hit));
        }
        let node = match self.locate(walked, &at.id, ItemKind::Node, None)? {
            Ok(place) => self.read_node(walked, at, &place)?,
            Err(hit) => Err(hit),
        };
        let hit = match node {
            Ok(entries) => self.children(walked, at, &entries)?,
            Err(hit) => {
                self.affect(walked, hit, chunks.clone());
                Some(hit)
            }
        };
        self.remember(key, hit);
        if at.level == 0 {
            self.advance(walked, &chunks);
        }
        Ok(hit)
    }

    fn children(&mut self, walked: &Walked<'_>, at: At, entries: &[Entry]) -> Result<Option<Hit>> {
        let mut first = None;
        for (place, entry) in entries.iter().enumerate() {
            let number = at.number.saturating_mul(256).saturating_add(place as u64);
            let hit = match (entry, at.level) {
                (Entry::Zero | Entry::Unreadable, level) => {
                    if level > 0 {
                        self.advance(walked, &span(&walked.shape, level, number));
                    }
                    None
                }
                (Entry::Data(id) | Entry::Partial(id), 0) => self.chunk(walked, id, number)?,
                (Entry::Data(id) | Entry::Partial(id), level) => {
                    self.node(walked, At { id: *id, level: level - 1, number })?
                }
            };
            first = first.or(hit);
        }
        Ok(first)
    }

    fn chunk(&mut self, walked: &Walked<'_>, id: &Id, number: u64) -> Result<Option<Hit>> {
        let len = walked.shape.chunk_bytes(ChunkIndex(number));
        Ok(match self.locate(walked, id, ItemKind::Chunk, Some(len))? {
            Ok(_) => None,
            Err(hit) => {
                self.affect(walked, hit, number..number + 1);
                Some(hit)
            }
        })
    }

    fn read_node(
        &mut self,
        walked: &Walked<'_>,
        at: At,
        place: &Place,
    ) -> Result<Result<Vec<Entry>, Hit>> {
        match self.store.node(&at.id, &walked.shape, at.level, at.number) {
            Ok(node) => Ok(Ok(node.entries)),
            Err(error) if error.kind() == ErrorKind::Interrupted => Err(error),
            Err(error) => {
                let range = frame_range(place);
                Ok(Err(self.hit(Finding::unread("map", range, &error, Loss::Nothing))))
            }
        }
    }

    /// The pieces of an attached file.
    fn attached(&mut self, snapshot: &Snapshot, file: &Attached) -> Result<()> {
        let name = format!("attached {}", file.name);
        // Pieces may have any length; only their sum counts.
        let Some(shape) = Shape::new(1, 4096) else { return Ok(()) };
        let id = snapshot.id.to_hex();
        let commit = commit_range(snapshot);
        let walked = Walked { snapshot: id.clone(), commit: commit.clone(), volume: &name, shape };
        let mut offset = 0u64;
        let affected = |reach: &mut Self, hit, offset, length| {
            let (snapshot, volume) = (id.clone(), name.clone());
            reach.tally.findings.affect(hit, Affected { snapshot, volume, offset, length });
        };
        for piece in &file.pieces {
            self.context.cancel.check()?;
            match self.locate(&walked, piece, ItemKind::Attached, None)? {
                Ok(place) => {
                    let entry = self.entry_at(&place);
                    offset = offset.saturating_add(entry.map_or(0, |entry| entry.raw_len.into()));
                }
                Err(hit) => {
                    affected(self, hit, offset, file.size.saturating_sub(offset));
                    return Ok(());
                }
            }
        }
        if offset != file.size {
            let error = format!("attached file {:?}: its pieces do not add up", file.name);
            let hit = self.hit(Finding::new("manifest", commit, error, Loss::Nothing));
            affected(self, hit, 0, file.size);
        }
        Ok(())
    }

    /// Where an item is, proven to be there; or the damage that is in the way.
    fn locate(
        &mut self,
        walked: &Walked<'_>,
        id: &Id,
        kind: ItemKind,
        len: Option<u32>,
    ) -> Result<Result<Place, Hit>> {
        let mut first = None;
        let mut tried = Vec::new();
        loop {
            let found = match tried.is_empty() {
                true => self.index.find_near(id, &mut self.hint),
                false => self.index.find_other(id, &tried),
            };
            let place = match (found, first) {
                (Ok(Some(entry)), _) => place_of(&entry),
                (_, Some(hit)) => return Ok(Err(hit)),
                (Ok(None), None) => {
                    let error = format!("no index run holds {id} (F-067)");
                    let range = walked.commit.clone();
                    return Ok(Err(self.hit(Finding::new("index", range, error, Loss::Nothing))));
                }
                (Err(error), None) => {
                    let start = error.range().map_or(walked.commit.start, |range| range.start);
                    let range = start..start + BLOCK;
                    return Ok(Err(self.hit(Finding::unread(
                        "index",
                        range,
                        &error,
                        Loss::Nothing,
                    ))));
                }
            };
            match self.prove(&place, id, kind, len) {
                Ok(()) => return Ok(Ok(place)),
                Err(hit) => first = first.or(Some(hit)),
            }
            // Any other place is as good.
            tried.push(place.frame);
        }
    }

    /// Whether the item is at this place; or the damage that is in the way.
    fn prove(
        &mut self,
        place: &Place,
        id: &Id,
        kind: ItemKind,
        len: Option<u32>,
    ) -> Result<(), Hit> {
        let range = frame_range(place);
        if let Some(hit) = self.tally.findings.losses().at(&range, place.slot) {
            return Err(hit);
        }
        let entry = self.entry_at(place);
        let is_there = entry.is_some_and(|entry| {
            let is_node = entry.kind == ItemKind::Node as u8;
            entry.id == *id
                && entry.kind == place.kind
                && is_node == (kind == ItemKind::Node)
                && len.is_none_or(|len| len == entry.raw_len)
        });
        match is_there {
            true => Ok(()),
            false => {
                let error =
                    format!("the index looks for {id} here, in slot {} (F-068)", place.slot);
                Err(self.hit(Finding::new("index", range, error, Loss::Nothing)))
            }
        }
    }

    /// What lies at a place, according to the segment's table or the frame itself.
    fn entry_at(&mut self, place: &Place) -> Option<ChunkEntry> {
        let len = place.frame_len.min(FRAME_STORED_LEN_MAX);
        let end = place.frame.checked_add(len.into())?;
        if end > self.archive.end() {
            return None;
        }
        let number = self.tally.spots.partition_point(|spot| spot.start <= place.frame.0);
        let spot = number.checked_sub(1).and_then(|number| self.tally.spots.get(number)).copied();
        match spot.filter(|spot| spot.table_offset > 0 && spot.table_len > 0) {
            Some(spot) => self.entry_in_table(spot, place),
            None => entry_in_frame(self.archive, place),
        }
    }

    fn entry_in_table(&mut self, spot: Spot, place: &Place) -> Option<ChunkEntry> {
        if !self.tables.iter().any(|held| held.start == spot.start) {
            self.hold_table(spot);
        }
        let held = self.tables.iter().find(|held| held.start == spot.start)?;
        match &held.table {
            Some(table) => table.entry_at(spot.start, place),
            None => entry_in_frame(self.archive, place),
        }
    }

    /// Reads a table. Nobody has looked at that of a segment that was passed over: where it is
    /// damaged, this names it, and the frames have to do.
    fn hold_table(&mut self, spot: Spot) {
        let start = spot.start.saturating_add(spot.table_offset.into());
        let end = start.saturating_add(spot.table_len.into());
        let table = match read_table(self.archive, start..end, end) {
            Ok((_, table)) => Some(HeldTable::new(table)),
            Err(finding) => {
                self.hit(finding);
                None
            }
        };
        if self.tables.len() >= TABLES_MAX {
            self.tables.pop_front();
        }
        self.tables.push_back(Held { start: spot.start, table });
    }

    /// The number of the damage that `finding` is, known or new.
    fn hit(&mut self, finding: Finding) -> Hit {
        self.tally.findings.place_for(finding)
    }

    fn affect(&mut self, walked: &Walked<'_>, hit: Hit, chunks: Range<u64>) {
        let bytes = bytes_of(&walked.shape, &chunks);
        let affected = Affected {
            snapshot: walked.snapshot.clone(),
            volume: walked.volume.to_owned(),
            offset: bytes.start,
            length: bytes.end - bytes.start,
        };
        self.tally.findings.affect(hit, affected);
    }

    fn advance(&self, walked: &Walked<'_>, chunks: &Range<u64>) {
        let bytes = bytes_of(&walked.shape, chunks);
        self.context.observer.advance(bytes.end - bytes.start);
    }

    fn remember(&mut self, key: Option<Key>, hit: Option<Hit>) {
        let Some(key) = key else { return };
        match hit {
            None => {
                if self.proven.len() >= PROVEN_MAX {
                    self.proven.clear();
                }
                self.proven.insert(key);
            }
            Some(hit) if self.damaged.len() < DAMAGED_MAX => drop(self.damaged.insert(key, hit)),
            Some(_) => {}
        }
    }

    /// The damage below a subtree that was walked too often already.
    fn repeated(&mut self, key: Option<Key>) -> Option<Hit> {
        let hit = self.damaged.get(&key?).copied()?;
        self.repeats += 1;
        (self.repeats > REPEATS_MAX).then_some(hit)
    }
}

/// The entry at a place according to the frame there, whose head and payload are not checked.
pub(crate) fn entry_in_frame(archive: &Archive, place: &Place) -> Option<ChunkEntry> {
    let from = FrameHead::LEN + ChunkEntry::LEN * usize::from(place.slot);
    let len = from + ChunkEntry::LEN;
    if len > place.frame_len as usize {
        return None;
    }
    let bytes = read_exact(&*archive.home, place.frame, len).ok()?;
    let head = Frame::decode_head(&bytes).ok()?;
    let fits = head.stored_len == place.frame_len && place.slot < head.chunk_count;
    let entry = bytes.get(from..).filter(|_| fits)?;
    ChunkEntry::decode(entry).ok()
}

impl HeldTable {
    fn new(table: Table) -> HeldTable {
        let first = table.frames.iter().scan(0, |next, frame| {
            let first = *next;
            *next += usize::from(frame.chunk_count);
            Some(first)
        });
        HeldTable { first: first.collect(), table }
    }

    /// What lies at a place in the segment at `start`.
    fn entry_at(&self, start: u64, place: &Place) -> Option<ChunkEntry> {
        let offset = u32::try_from(place.frame.0.checked_sub(start)?).ok()?;
        let frames: &[FrameEntry] = &self.table.frames;
        let at = frames.binary_search_by_key(&offset, |frame| frame.offset).ok()?;
        let frame = frames.get(at).filter(|frame| frame.stored_len == place.frame_len)?;
        let slot = usize::from(place.slot);
        let first = self.first.get(at).filter(|_| slot < usize::from(frame.chunk_count))?;
        self.table.chunks.get(first + slot).cloned()
    }
}

fn commit_range(snapshot: &Snapshot) -> Range<u64> {
    snapshot.commit.offset.0..snapshot.commit.end().0
}

/// The bytes of the frame that a place names.
pub(super) fn frame_range(place: &Place) -> Range<u64> {
    place.frame.0..place.frame.0.saturating_add(place.frame_len.into())
}

/// The chunks below a node, those of the volume only.
fn chunks_of(shape: &Shape, at: At) -> Range<u64> {
    let span = span_of_node(at.level);
    let start = at.number.saturating_mul(span).min(shape.chunk_count());
    start..start.saturating_add(span).min(shape.chunk_count())
}

/// The chunks below entry `number` of a level.
fn span(shape: &Shape, level: u8, number: u64) -> Range<u64> {
    let span = span_of_entry(level);
    let start = number.saturating_mul(span).min(shape.chunk_count());
    start..start.saturating_add(span).min(shape.chunk_count())
}

fn bytes_of(shape: &Shape, chunks: &Range<u64>) -> Range<u64> {
    let at = |chunk: u64| chunk.saturating_mul(shape.chunk_len().into()).min(shape.size());
    at(chunks.start)..at(chunks.end)
}

/// The key of a subtree that is full: all its chunks are there and none is short, so that what is
/// proven of it does not depend on where in which volume it stands.
fn key(shape: &Shape, at: At, chunks: &Range<u64>) -> Option<Key> {
    let is_full = chunks.end - chunks.start == span_of_node(at.level)
        && chunks.end.saturating_mul(shape.chunk_len().into()) <= shape.size();
    let mut id = [0; 16];
    id.iter_mut().zip(at.id.0).for_each(|(to, from)| *to = from);
    let chunk_bits = shape.chunk_len().trailing_zeros() as u8;
    is_full.then_some(Key { id, level: at.level, chunk_bits })
}
