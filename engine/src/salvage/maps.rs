//! The second pass: maps of what was found, the rest unreadable.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::sync::Arc;

use voltar_format::Id;
use voltar_format::frame::ItemKind;
use voltar_format::limits::UNREADABLE_MAX;
use voltar_format::map::{BuiltNode, Entry, MapBuilder, Node, Shape, span_of_entry, span_of_node};
use voltar_format::units::ChunkIndex;
use voltar_format::walk::NodeSource;

use super::positions::{Item, Positions};
use super::target::Target;
use crate::archive::items::NODES_PER_FRAME;
use crate::archive::manifest::merged;
use crate::archive::session::Session;
use crate::archive::store::Store;
use crate::error::{ErrorKind, Result};

/// Whole subtrees that are remembered, 24 bytes each and what a hash table takes on top; beyond
/// that the memory starts anew, which costs time.
const WHOLE_MAX: usize = 1 << 20;
/// Other subtrees that are known to be broken.
const BROKEN_MAX: usize = 256 << 10;
/// Broken subtrees of which it is remembered what became of them, 80 bytes each and what a hash
/// table takes on top, and the ranges that are missing of them, 16 bytes each.
const MENDED_MAX: usize = 128 << 10;
const MENDED_RANGES_MAX: usize = 512 << 10;
/// Nodes read for one map, over and above as many as the archive holds items. No map that was made
/// of a volume needs them, but for one larger than what is remembered that repeats itself; of one
/// made to repeat itself without end the rest is given up.
const REPEATS_MAX: u64 = 1 << 20;

/// What a full subtree is known by.
type Key = ([u8; 16], u8, u32);

/// A node's place in a map.
#[derive(Clone, Copy, Debug)]
struct At {
    id: Id,
    level: u8,
    number: u64,
}

/// What is known of the maps in the new archive.
pub(super) struct Maps {
    store: Store,
    /// Full subtrees of which everything is there.
    whole: HashSet<Key>,
    /// Full subtrees of which something is not.
    broken: HashSet<Key>,
    /// What became of the latter.
    mended: HashMap<Key, Mended>,
    /// Ranges in `mended`.
    mended_ranges: usize,
}

/// What became of a broken subtree.
#[derive(Clone)]
struct Mended {
    /// The node in its place; none if nothing of it is left.
    node: Option<Id>,
    /// What is missing, in bytes from where it begins.
    missing: Arc<[Range<u64>]>,
}

impl Maps {
    /// Of what was copied.
    ///
    /// # Errors
    /// Out of memory.
    pub fn new(target: &Target<'_>) -> Result<Maps> {
        let (whole, broken, mended) = Default::default();
        Ok(Maps { store: target.store()?, whole, broken, mended, mended_ranges: 0 })
    }

    /// Whether all of a map is there, and nothing in it is unreadable.
    ///
    /// # Errors
    /// Of reading the new archive; `Interrupted`.
    pub fn is_whole(&mut self, target: &Target<'_>, shape: &Shape, root: Id) -> Result<bool> {
        self.is_whole_at(target, shape, At { id: root, level: shape.root_level(), number: 0 })
    }

    fn is_whole_at(&mut self, target: &Target<'_>, shape: &Shape, at: At) -> Result<bool> {
        target.context.cancel.check()?;
        let key = key(shape, at);
        if key.is_some_and(|key| self.whole.contains(&key)) {
            return Ok(true);
        }
        if key.is_some_and(|key| self.broken.contains(&key)) {
            return Ok(false);
        }
        let is_whole = self.has_all(target, shape, at)?;
        let (known, most) = match is_whole {
            true => (&mut self.whole, WHOLE_MAX),
            false => (&mut self.broken, BROKEN_MAX),
        };
        if known.len() >= most {
            known.clear();
        }
        known.extend(key);
        Ok(is_whole)
    }

    fn has_all(&mut self, target: &Target<'_>, shape: &Shape, at: At) -> Result<bool> {
        let Some(node) = self.node(shape, at)? else { return Ok(false) };
        for (number, entry) in children(at, &node) {
            let is_whole = match entry {
                Entry::Zero => true,
                Entry::Unreadable | Entry::Partial(_) => false,
                Entry::Data(id) if at.level == 0 => has_chunk(target, shape, &id, number)?,
                Entry::Data(id) => {
                    self.is_whole_at(target, shape, At { id, level: at.level - 1, number })?
                }
            };
            if !is_whole {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Forgets what is broken: nodes were added that others may lack.
    pub fn look_anew(&mut self) {
        self.broken.clear();
        self.mended.clear();
        self.mended_ranges = 0;
    }

    /// Remembers what became of a subtree.
    fn remember(&mut self, key: Key, mended: Mended) {
        let ranges = self.mended_ranges + mended.missing.len();
        if self.mended.len() >= MENDED_MAX || ranges > MENDED_RANGES_MAX {
            self.mended.clear();
            self.mended_ranges = 0;
        }
        self.mended_ranges += mended.missing.len();
        self.mended.insert(key, mended);
    }

    /// The node, if it is there and fits its place.
    fn node(&mut self, shape: &Shape, at: At) -> Result<Option<Node>> {
        match self.store.node(&at.id, shape, at.level, at.number) {
            Ok(node) => Ok(Some(node)),
            Err(error) if error.kind() == ErrorKind::Damaged => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// The map of one volume that is being built anew.
pub(super) struct Rebuild<'a, 't> {
    /// What is known of maps.
    pub maps: &'a mut Maps,
    /// The new archive.
    pub target: &'a Target<'t>,
    /// Where nodes go.
    pub session: &'a mut Session,
    /// The volume's number in the session's note.
    pub volume: u16,
    /// Its shape.
    pub shape: Shape,
    /// Where items say they belonged, for a volume whose map is not known from a commit. What
    /// the source could not give is then not known either, and counts as missing.
    pub positions: Option<Positions>,
}

/// A map that was built anew.
pub(super) struct Rebuilt {
    /// Its root.
    pub root: Id,
    /// What is missing, in bytes, ascending, at most [`UNREADABLE_MAX`] ranges.
    pub missing: Vec<Range<u64>>,
}

impl Rebuild<'_, '_> {
    /// Builds the map whose root was this, or of what the positions say.
    ///
    /// # Errors
    /// Of reading and writing the new archive; `Interrupted`.
    pub fn run(self, root: Option<Id>) -> Result<Rebuilt> {
        let (builder, level) = (MapBuilder::new(self.shape), self.shape.root_level());
        let chunks = 0..self.shape.chunk_count();
        let runs = self.target.index.runs();
        let items = runs.iter().map(|run| run.entry_count);
        let reads_left = items.fold(REPEATS_MAX, u64::saturating_add);
        let (nodes, finished, missing) = Default::default();
        let mut work = Work { with: self, builder, nodes, finished, missing, reads_left, told: 0 };
        match root {
            Some(id) => work.node(At { id, level, number: 0 })?,
            None => work.fill(chunks, level + 1)?,
        }
        let Work { with, builder, mut nodes, missing, .. } = work;
        let root = builder.finish(&mut nodes);
        with.store(&mut nodes, 1)?;
        Ok(Rebuilt { root, missing: merged(missing) })
    }

    fn store(self, nodes: &mut Vec<BuiltNode>, enough: usize) -> Result<()> {
        let Rebuild { target, session, volume, .. } = self;
        session.append_nodes(nodes, volume, &target.known, enough)
    }
}

/// A map under way.
struct Work<'a, 't> {
    with: Rebuild<'a, 't>,
    builder: MapBuilder,
    nodes: Vec<BuiltNode>,
    /// The nodes that the last entry finished, and a few before.
    finished: Vec<At>,
    missing: Vec<Range<u64>>,
    /// Nodes that may still be read.
    reads_left: u64,
    /// Chunks that the observer was told of.
    told: u64,
}

impl Work<'_, '_> {
    /// Adds a subtree, or what else is known of its place.
    fn node(&mut self, at: At) -> Result<()> {
        let Rebuild { maps, target, shape, positions, .. } = &mut self.with;
        if at.level == shape.root_level() {
            return self.rebuild(at);
        }
        if maps.is_whole_at(target, shape, at)? {
            return self.put(at.level, Some(at.id));
        }
        // What positions say is of one place.
        match key(shape, at).filter(|_| positions.is_none()) {
            Some(key) => self.mend(at, key),
            None => self.rebuild(at),
        }
    }

    /// Adds what becomes of a full, broken subtree: the same wherever it stands.
    fn mend(&mut self, at: At, key: Key) -> Result<()> {
        let shape = &self.with.shape;
        let start = bytes_of(shape, &chunks_of(shape, at)).start;
        let mended = match self.with.maps.mended.get(&key).cloned() {
            Some(mended) => {
                self.put(at.level, mended.node)?;
                mended
            }
            None => self.mend_anew(at, key, start)?,
        };
        let missing = mended.missing.iter();
        missing.for_each(|range| self.name_missing(start + range.start..start + range.end));
        Ok(())
    }

    /// Rebuilds a subtree that begins at byte `start`, and remembers what became of it.
    fn mend_anew(&mut self, at: At, key: Key, start: u64) -> Result<Mended> {
        let before = std::mem::take(&mut self.missing);
        self.rebuild(at)?;
        let missing = std::mem::replace(&mut self.missing, before).into_iter();
        let is_it = |node: &&At| (node.level, node.number) == (at.level, at.number);
        let mended = Mended {
            node: self.finished.iter().find(is_it).map(|node| node.id),
            missing: missing.map(|range| range.start - start..range.end - start).collect(),
        };
        // What was given up here may be there elsewhere.
        if self.reads_left > 0 {
            self.with.maps.remember(key, mended.clone());
        }
        Ok(mended)
    }

    /// Adds the entries of a node, or what else is known of its place.
    fn rebuild(&mut self, at: At) -> Result<()> {
        let Rebuild { maps, shape, .. } = &mut self.with;
        let chunks = chunks_of(shape, at);
        let Some(left) = self.reads_left.checked_sub(1) else { return self.miss(chunks) };
        self.reads_left = left;
        match maps.node(shape, at)? {
            None => self.fill(chunks, at.level),
            Some(node) => {
                children(at, &node).try_for_each(|(number, entry)| self.child(at, number, entry))
            }
        }
    }

    /// Adds a subtree of `level` that is in the new archive, or one of which nothing is left.
    fn put(&mut self, level: u8, node: Option<Id>) -> Result<()> {
        let entry = node.map_or(Entry::Unreadable, Entry::Data);
        self.builder.push_at(level + 1, entry, &mut self.nodes);
        self.flush()
    }

    /// Adds entry `number` of the level of the node at `at`.
    fn child(&mut self, at: At, number: u64, entry: Entry) -> Result<()> {
        let Rebuild { target, shape, positions, .. } = &self.with;
        let chunks = span(shape, at.level, number);
        match entry {
            Entry::Data(id) if at.level > 0 => self.node(At { id, level: at.level - 1, number }),
            Entry::Data(id) | Entry::Partial(id) if !has_chunk(target, shape, &id, number)? => {
                self.miss(chunks)
            }
            Entry::Data(_) | Entry::Zero => self.push(entry, chunks),
            Entry::Unreadable | Entry::Partial(_) => {
                if positions.is_some() {
                    self.name_missing(bytes_of(shape, &chunks));
                }
                self.push(entry, chunks)
            }
        }
    }

    /// Fills these chunks with what chunks, and nodes below `levels`, say of their places.
    fn fill(&mut self, chunks: Range<u64>, levels: u8) -> Result<()> {
        while self.builder.position() < chunks.end {
            self.with.target.context.cancel.check()?;
            let at = self.builder.position();
            let Some(positions) = &mut self.with.positions else { return self.miss(chunks) };
            match positions.at(at, levels)? {
                Some(Item::Chunk(id)) => self.push(Entry::Data(id), at..at + 1)?,
                Some(Item::Node { id, level, number }) => self.node(At { id, level, number })?,
                None => {
                    let next = positions.next(at, levels)?.unwrap_or(chunks.end);
                    self.miss(at..next.min(chunks.end))?;
                }
            }
        }
        Ok(())
    }

    /// Adds chunks that are not there.
    fn miss(&mut self, chunks: Range<u64>) -> Result<()> {
        self.name_missing(bytes_of(&self.with.shape, &chunks));
        self.push(Entry::Unreadable, chunks)
    }

    fn name_missing(&mut self, bytes: Range<u64>) {
        match self.missing.last_mut() {
            Some(last) if last.end == bytes.start => last.end = bytes.end,
            _ => self.missing.push(bytes),
        }
        if self.missing.len() > 2 * UNREADABLE_MAX {
            self.missing = merged(std::mem::take(&mut self.missing));
        }
    }

    /// Adds one chunk, or chunks of a state that needs no id.
    fn push(&mut self, entry: Entry, chunks: Range<u64>) -> Result<()> {
        match entry.id() {
            Some(_) => self.builder.push(entry, &mut self.nodes),
            None => self.builder.push_run(entry, chunks.end - chunks.start, &mut self.nodes),
        }
        self.flush()
    }

    fn flush(&mut self) -> Result<()> {
        let Rebuild { target, session, volume, shape, .. } = &mut self.with;
        let bytes = bytes_of(shape, &(self.told..self.builder.position()));
        target.context.observer.advance(bytes.end - bytes.start);
        self.told = self.builder.position();
        let at = |node: &BuiltNode| At { id: node.id, level: node.level, number: node.number };
        self.finished.clear();
        self.finished.extend(self.nodes.iter().map(at));
        session.append_nodes(&mut self.nodes, *volume, &target.known, NODES_PER_FRAME)
    }
}

/// The children of a node with their numbers on its level.
fn children(at: At, node: &Node) -> impl Iterator<Item = (u64, Entry)> {
    let first = at.number.saturating_mul(256);
    (first..).zip(node.entries.iter().copied())
}

fn has_chunk(target: &Target<'_>, shape: &Shape, id: &Id, number: u64) -> Result<bool> {
    let len = target.len_of(id, ItemKind::Chunk)?;
    Ok(len == Some(shape.chunk_bytes(ChunkIndex(number))))
}

/// The chunks below a node, those of the volume only.
fn chunks_of(shape: &Shape, at: At) -> Range<u64> {
    clamped(shape, at.number, span_of_node(at.level))
}

/// The chunks below entry `number` of a level.
fn span(shape: &Shape, level: u8, number: u64) -> Range<u64> {
    clamped(shape, number, span_of_entry(level))
}

fn clamped(shape: &Shape, number: u64, span: u64) -> Range<u64> {
    let start = number.saturating_mul(span).min(shape.chunk_count());
    start..start.saturating_add(span).min(shape.chunk_count())
}

fn bytes_of(shape: &Shape, chunks: &Range<u64>) -> Range<u64> {
    let at = |chunk: u64| chunk.saturating_mul(shape.chunk_len().into()).min(shape.size());
    at(chunks.start)..at(chunks.end)
}

/// What a full subtree is remembered by: one that ends with its volume proves nothing elsewhere.
fn key(shape: &Shape, at: At) -> Option<Key> {
    let chunks = chunks_of(shape, at);
    let is_full = chunks.end - chunks.start == span_of_node(at.level)
        && chunks.end.saturating_mul(shape.chunk_len().into()) <= shape.size();
    let (id, _) = at.id.0.split_first_chunk::<16>()?;
    is_full.then_some((*id, at.level, shape.chunk_len()))
}
