//! Maps: a Merkle tree from chunk number to chunk id.
//!
//! A node at level 0 names up to 256 chunks, a node at level n up to 256 nodes of level n - 1.
//! States that need no id (zero, unreadable) stand in the node at the highest level they fill, so
//! a volume of zeroes is one node and the root is a function of the content alone.

use crate::error::{FormatError, Result, Structure};
use crate::limits::{CHUNK_LEN_MAX, CHUNK_LEN_MIN, MAP_FANOUT, MAP_LEVEL_MAX, VOLUME_LEN_MAX};
use crate::units::{ChunkIndex, Id};
use crate::wire::{Reserved, Wire, is_zero, on_disk, round_up};

/// First bytes of every node.
pub const NODE_MAGIC: [u8; 4] = *b"VMAP";

/// Longest node, in bytes.
pub const NODE_LEN_MAX: usize = 16 + MAP_FANOUT + 32 * MAP_FANOUT;

on_disk! {
    /// A node's first 16 bytes; tags (padded to 8) and ids follow.
    pub struct NodeHead[16] {
        /// [`NODE_MAGIC`].
        0 magic: [u8; 4],
        /// Level, 0..=6.
        4 level: u8,
        /// Zero.
        5 reserved_a: Reserved<1>,
        /// Children, 1..=256: as many as the volume's shape demands.
        6 count: u16,
        /// Children with an id.
        8 id_count: u16,
        /// Zero.
        10 reserved_b: Reserved<6>,
    }
}

/// The state of a chunk, or of a whole subtree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Entry {
    /// A chunk's or a node's id.
    Data(Id),
    /// All zero.
    Zero,
    /// The source could not be read.
    Unreadable,
    /// A chunk of which some sectors could not be read; they are zero in the stored bytes and
    /// listed in the manifest. Level 0 only.
    Partial(Id),
}

const TAG_DATA: u8 = 1;
const TAG_ZERO: u8 = 2;
const TAG_UNREADABLE: u8 = 3;
const TAG_PARTIAL: u8 = 4;

impl Entry {
    fn tag(&self) -> u8 {
        match self {
            Entry::Data(_) => TAG_DATA,
            Entry::Zero => TAG_ZERO,
            Entry::Unreadable => TAG_UNREADABLE,
            Entry::Partial(_) => TAG_PARTIAL,
        }
    }

    /// The id, if the state has one.
    pub fn id(&self) -> Option<&Id> {
        match self {
            Entry::Data(id) | Entry::Partial(id) => Some(id),
            Entry::Zero | Entry::Unreadable => None,
        }
    }
}

/// The shape of a volume's map: it follows from size and chunk length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    size: u64,
    chunk_len: u32,
}

impl Shape {
    /// The shape for a volume of `size` bytes, 1..=2^60, in chunks of `chunk_len` bytes, a power
    /// of two in 4 KiB..=1 MiB. `None` outside these ranges.
    pub fn new(size: u64, chunk_len: u32) -> Option<Shape> {
        let permitted = (1..=VOLUME_LEN_MAX).contains(&size)
            && (CHUNK_LEN_MIN..=CHUNK_LEN_MAX).contains(&chunk_len)
            && chunk_len.is_power_of_two();
        permitted.then_some(Shape { size, chunk_len })
    }

    /// The volume's size in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The chunk length in bytes.
    pub fn chunk_len(&self) -> u32 {
        self.chunk_len
    }

    /// Chunks in the volume, the short last one included.
    pub fn chunk_count(&self) -> u64 {
        self.size.div_ceil(u64::from(self.chunk_len))
    }

    /// The byte range of a chunk.
    pub fn chunk_range(&self, index: ChunkIndex) -> std::ops::Range<u64> {
        let start = index.0.saturating_mul(self.chunk_len.into()).min(self.size);
        start..start.saturating_add(self.chunk_len.into()).min(self.size)
    }

    /// Bytes of a chunk.
    pub fn chunk_bytes(&self, index: ChunkIndex) -> u32 {
        let range = self.chunk_range(index);
        range.end.saturating_sub(range.start) as u32
    }

    /// The root's level.
    pub fn root_level(&self) -> u8 {
        let count = self.chunk_count();
        (0..MAP_LEVEL_MAX).find(|level| span_of_node(*level) >= count).unwrap_or(MAP_LEVEL_MAX)
    }

    /// The highest level at which one entry from the first of `chunks` on fits into them, or
    /// reaches the volume's end exactly.
    pub fn aligned_level(&self, chunks: std::ops::Range<u64>) -> u8 {
        let whole = self.chunk_count();
        (0..=self.root_level())
            .rev()
            .find(|level| {
                let span = span_of_entry(*level);
                let reach = chunks.start.saturating_add(span).min(whole);
                chunks.start.is_multiple_of(span) && reach <= chunks.end
            })
            .unwrap_or(0)
    }

    /// Children of node `number` at `level`; 0 if there is no such node.
    pub fn child_count(&self, level: u8, number: u64) -> usize {
        let span = span_of_entry(level);
        let entries = self.chunk_count().div_ceil(span);
        let first = number.saturating_mul(MAP_FANOUT as u64);
        entries.saturating_sub(first).min(MAP_FANOUT as u64) as usize
    }
}

/// Chunks that one entry of a node at `level` covers when it is full.
pub const fn span_of_entry(level: u8) -> u64 {
    1u64.wrapping_shl((level as u32).saturating_mul(8))
}

/// Chunks that a full node at `level` covers.
pub const fn span_of_node(level: u8) -> u64 {
    span_of_entry(level.saturating_add(1))
}

/// A node that passed its checks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Its level.
    pub level: u8,
    /// Its children in order.
    pub entries: Vec<Entry>,
}

impl Node {
    /// The node's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let ids = self.entries.iter().filter_map(Entry::id);
        let head = NodeHead {
            magic: NODE_MAGIC,
            level: self.level,
            reserved_a: Reserved,
            count: self.entries.len() as u16,
            id_count: ids.clone().count() as u16,
            reserved_b: Reserved,
        };
        let mut bytes = Vec::with_capacity(NODE_LEN_MAX);
        bytes.extend_from_slice(&head.encode());
        bytes.extend(self.entries.iter().map(Entry::tag));
        bytes.resize(round_up(bytes.len() as u64, 8) as usize, 0);
        ids.for_each(|id| bytes.extend_from_slice(&id.0));
        bytes
    }

    /// Node `number` at `level` of a map of `shape`, in `bytes`.
    ///
    /// # Errors
    /// F-070 (start), F-071 (level), F-072 (child count), F-073 (tags), F-074 (length, padding),
    /// F-075 (not canonical: a subtree's state repeated below the level where it belongs).
    pub fn decode(bytes: &[u8], shape: &Shape, level: u8, number: u64) -> Result<Node> {
        let node = Node::decode_any(bytes)?;
        if node.level != level {
            return Err(fail("F-071", format!("level {}, expected {level}", node.level)));
        }
        let expected = shape.child_count(level, number);
        if node.entries.len() != expected {
            let problem = format!("{} children, expected {expected}", node.entries.len());
            return Err(fail("F-072", problem));
        }
        let uniform = node.entries.iter().all(|entry| *entry == Entry::Zero)
            || node.entries.iter().all(|entry| *entry == Entry::Unreadable);
        if uniform && level < shape.root_level() {
            return Err(fail("F-075", "its state belongs into its parent".into()));
        }
        Ok(node)
    }

    /// The node in `bytes`, whatever map it belongs to: for salvage and fuzzing.
    ///
    /// # Errors
    /// As [`Node::decode`], but for the volume's shape.
    pub fn decode_any(bytes: &[u8]) -> Result<Node> {
        if !bytes.starts_with(&NODE_MAGIC) {
            return Err(fail("F-070", "the magic bytes are missing".into()));
        }
        let head = NodeHead::decode(bytes)
            .map_err(|field| fail("F-070", format!("field {field} is cut short or not zero")))?;
        if head.level > MAP_LEVEL_MAX {
            return Err(fail("F-071", format!("level {}", head.level)));
        }
        let count = usize::from(head.count);
        if !(1..=MAP_FANOUT).contains(&count) || head.id_count > head.count {
            return Err(fail("F-072", format!("{count} children, {} ids", head.id_count)));
        }
        let tags_len = round_up(u64::from(head.count), 8) as usize;
        let rest = bytes.get(NodeHead::LEN..).unwrap_or(&[]);
        let (tags, ids) = rest
            .split_at_checked(tags_len)
            .filter(|(_, ids)| ids.len() == usize::from(head.id_count).saturating_mul(32))
            .ok_or_else(|| fail("F-074", format!("{} bytes are not its length", bytes.len())))?;
        let (tags, padding) = tags.split_at_checked(count).unwrap_or((tags, &[]));
        if !is_zero(padding) {
            return Err(fail("F-074", "its padding is not zero".into()));
        }
        let mut ids = ids.chunks_exact(32).filter_map(Id::get);
        let entries = tags
            .iter()
            .map(|tag| Node::entry(*tag, head.level, &mut ids))
            .collect::<Option<Vec<_>>>()
            .ok_or_else(|| fail("F-073", "a child's tag is not permitted".into()))?;
        match ids.next() {
            None => Ok(Node { level: head.level, entries }),
            Some(_) => Err(fail("F-074", "it holds more ids than children that need one".into())),
        }
    }

    fn entry(tag: u8, level: u8, ids: &mut impl Iterator<Item = Id>) -> Option<Entry> {
        match tag {
            TAG_DATA => ids.next().map(Entry::Data),
            TAG_ZERO => Some(Entry::Zero),
            TAG_UNREADABLE => Some(Entry::Unreadable),
            TAG_PARTIAL if level == 0 => ids.next().map(Entry::Partial),
            _ => None,
        }
    }

    /// The state of the whole node, if it is one that needs no node.
    fn uniform(&self) -> Option<Entry> {
        let first = *self.entries.first()?;
        let uniform = matches!(first, Entry::Zero | Entry::Unreadable)
            && self.entries.iter().all(|entry| *entry == first);
        uniform.then_some(first)
    }
}

fn fail(requirement: &'static str, problem: String) -> FormatError {
    FormatError::new(Structure::Map, requirement, problem)
}

/// A node that a builder finished.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BuiltNode {
    /// Its id.
    pub id: Id,
    /// Its level.
    pub level: u8,
    /// Its number on that level.
    pub number: u64,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

/// Builds a map front to back, holding one unfinished node per level.
#[derive(Debug)]
pub struct MapBuilder {
    shape: Shape,
    /// Next chunk.
    position: u64,
    /// Unfinished children per level.
    levels: Vec<Vec<Entry>>,
}

impl MapBuilder {
    /// A builder for a map of `shape`.
    pub fn new(shape: Shape) -> MapBuilder {
        let levels = usize::from(shape.root_level()).saturating_add(1);
        MapBuilder { shape, position: 0, levels: vec![Vec::new(); levels] }
    }

    /// The next chunk's number.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Adds the next chunk; finished nodes are appended to `out`.
    pub fn push(&mut self, entry: Entry, out: &mut Vec<BuiltNode>) {
        self.push_at(0, entry, out);
    }

    /// Adds `count` chunks of one state that needs no id, in time logarithmic in `count`.
    pub fn push_run(&mut self, entry: Entry, count: u64, out: &mut Vec<BuiltNode>) {
        debug_assert!(entry.id().is_none());
        let end = self.position.saturating_add(count).min(self.shape.chunk_count());
        while self.position < end {
            let level = self.aligned_level(end);
            self.push_at(level, entry, out);
        }
    }

    fn aligned_level(&self, end: u64) -> u8 {
        self.shape.aligned_level(self.position..end)
    }

    /// Adds an entry of a node at `level`: a subtree that exists already, or a state that fills
    /// it. The position must be a multiple of the entry's span.
    pub fn push_at(&mut self, level: u8, entry: Entry, out: &mut Vec<BuiltNode>) {
        debug_assert!(level <= self.shape.root_level());
        debug_assert!(self.position.is_multiple_of(span_of_entry(level)));
        debug_assert!(self.position < self.shape.chunk_count());
        let span = span_of_entry(level);
        self.position = self.position.saturating_add(span).min(self.shape.chunk_count());
        self.append(level, entry, out);
    }

    fn append(&mut self, level: u8, entry: Entry, out: &mut Vec<BuiltNode>) {
        let Some(entries) = self.levels.get_mut(usize::from(level)) else {
            return;
        };
        entries.push(entry);
        if entries.len() == MAP_FANOUT && level < self.shape.root_level() {
            self.close(level, out);
        }
    }

    fn close(&mut self, level: u8, out: &mut Vec<BuiltNode>) {
        let Some(entries) = self.levels.get_mut(usize::from(level)) else {
            return;
        };
        let node = Node { level, entries: std::mem::take(entries) };
        let entry = match node.uniform() {
            Some(state) => state,
            None => Entry::Data(self.emit(&node, out)),
        };
        self.append(level.saturating_add(1), entry, out);
    }

    fn emit(&self, node: &Node, out: &mut Vec<BuiltNode>) -> Id {
        let bytes = node.encode();
        let id = crate::checksum::node_id(&bytes);
        let before = self.position.saturating_sub(1);
        let number = before.checked_div(span_of_node(node.level)).unwrap_or(0);
        out.push(BuiltNode { id, level: node.level, number, bytes });
        id
    }

    /// Ends the map and returns the root's id; remaining nodes are appended to `out`.
    ///
    /// # Panics
    /// In debug builds, if chunks are missing.
    pub fn finish(mut self, out: &mut Vec<BuiltNode>) -> Id {
        debug_assert_eq!(self.position, self.shape.chunk_count());
        let root_level = self.shape.root_level();
        for level in 0..root_level {
            if self.levels.get(usize::from(level)).is_some_and(|entries| !entries.is_empty()) {
                self.close(level, out);
            }
        }
        let entries = self.levels.pop().unwrap_or_default();
        self.emit(&Node { level: root_level, entries }, out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checksum::{chunk_id, node_id};

    fn shape(chunks: u64) -> Shape {
        Shape::new(chunks * 4096 - 100, 4096).unwrap()
    }

    fn build(shape: Shape, entries: impl IntoIterator<Item = Entry>) -> (Id, Vec<BuiltNode>) {
        let mut builder = MapBuilder::new(shape);
        let mut out = Vec::new();
        entries.into_iter().for_each(|entry| builder.push(entry, &mut out));
        (builder.finish(&mut out), out)
    }

    #[test]
    fn shapes() {
        assert_eq!(Shape::new(0, 4096), None);
        assert_eq!(Shape::new(1, 2048), None);
        assert_eq!(Shape::new(1, 6000), None);
        assert_eq!(Shape::new((1 << 60) + 1, 4096), None);
        assert_eq!(shape(256).root_level(), 0);
        assert_eq!(shape(257).root_level(), 1);
        assert_eq!(shape(65_537).root_level(), 2);
        assert_eq!(Shape::new(1 << 60, 4096).unwrap().root_level(), 5);
        assert_eq!(shape(257).child_count(0, 1), 1);
        assert_eq!(shape(257).child_count(1, 0), 2);
        assert_eq!(shape(257).child_count(0, 2), 0);
        assert_eq!(shape(2).chunk_range(ChunkIndex(1)), 4096..8092);
        assert_eq!([0, 1].map(|n| shape(2).chunk_bytes(ChunkIndex(n))), [4096, 3996]);
        assert_eq!((shape(2).size(), shape(2).chunk_len()), (8092, 4096));
    }

    #[test]
    fn runs_of_chunks_fill_entries_as_high_as_they_fit() {
        let level = |chunks| shape(70_000).aligned_level(chunks);
        assert_eq!([level(0..255), level(0..256), level(0..65_536)], [0, 1, 2]);
        assert_eq!(level(1..70_000), 0, "it begins between two entries");
        assert_eq!([level(69_888..69_999), level(69_888..70_000)], [0, 1], "the end is an end");
    }

    #[test]
    fn a_builder_knows_which_chunk_comes_next() {
        let mut builder = MapBuilder::new(shape(1000));
        let mut out = Vec::new();
        builder.push(Entry::Data(Id([1; 32])), &mut out);
        builder.push_run(Entry::Zero, 299, &mut out);
        assert_eq!(builder.position(), 300);
        builder.push_run(Entry::Zero, 1000, &mut out);
        assert_eq!(builder.position(), 1000);
    }

    #[test]
    fn a_full_root_is_one_node() {
        let entries = vec![Entry::Data(Id([1; 32])); MAP_FANOUT];
        let (root, nodes) = build(shape(256), entries.clone());
        let [node] = &nodes[..] else { panic!("{} nodes", nodes.len()) };
        assert_eq!(node.id, root);
        assert_eq!(Node::decode(&node.bytes, &shape(256), 0, 0).unwrap().entries, entries);
    }

    #[test]
    fn a_hundred_tebibytes_of_zeroes_are_one_node() {
        let shape = Shape::new(100 << 40, 65536).unwrap();
        let mut builder = MapBuilder::new(shape);
        let mut out = Vec::new();
        builder.push_run(Entry::Zero, shape.chunk_count(), &mut out);
        let root = builder.finish(&mut out);
        assert_eq!(out.len(), 1);
        assert_eq!(out[0].id, root);
        let node = Node::decode(&out[0].bytes, &shape, shape.root_level(), 0).unwrap();
        assert!(node.entries.iter().all(|entry| *entry == Entry::Zero));
    }

    #[test]
    fn runs_and_single_pushes_give_the_same_root() {
        for chunks in [1, 255, 256, 257, 70_000u64] {
            let shape = shape(chunks);
            let (one_by_one, _) = build(shape, (0..chunks).map(|_| Entry::Zero));
            let mut builder = MapBuilder::new(shape);
            let mut out = Vec::new();
            builder.push_run(Entry::Zero, chunks / 3, &mut out);
            builder.push_run(Entry::Zero, chunks, &mut out);
            assert_eq!(builder.finish(&mut out), one_by_one, "{chunks} chunks");
        }
    }

    #[test]
    fn nodes_round_trip_with_their_numbers() {
        let shape = shape(70_000);
        let entries = (0..70_000u64).map(|n| match n % 7 {
            0 => Entry::Zero,
            1 => Entry::Unreadable,
            2 => Entry::Partial(chunk_id(&n.to_le_bytes())),
            _ => Entry::Data(chunk_id(&n.to_le_bytes())),
        });
        let (root, nodes) = build(shape, entries);
        assert_eq!(nodes.last().unwrap().id, root);
        for node in &nodes {
            let decoded = Node::decode(&node.bytes, &shape, node.level, node.number).unwrap();
            assert_eq!(decoded.encode(), node.bytes);
            assert_eq!(node_id(&node.bytes), node.id);
            assert!(node.bytes.len() <= NODE_LEN_MAX);
        }
    }

    fn refused(bytes: &[u8]) -> &'static str {
        Node::decode(bytes, &shape(3), 0, 0).unwrap_err().requirement
    }

    #[test]
    fn f_070_to_f_074_nodes_are_exactly_what_they_should_be() {
        let (_, nodes) = build(shape(3), [Entry::Zero, Entry::Data(Id([1; 32])), Entry::Zero]);
        let good = &nodes[0].bytes;
        let with = |at: usize, value: u8| {
            let mut bad = good.clone();
            bad[at] = value;
            bad
        };
        assert_eq!(refused(&with(0, 0)), "F-070");
        assert_eq!(refused(&with(5, 1)), "F-070");
        assert_eq!(refused(&with(4, 1)), "F-071");
        assert_eq!(refused(&with(4, 9)), "F-071");
        assert_eq!(refused(&with(6, 2)), "F-074");
        assert_eq!(refused(&with(6, 0)), "F-072");
        assert_eq!(refused(&with(8, 4)), "F-072");
        assert_eq!(refused(&with(8, 0)), "F-074");
        assert_eq!(refused(&with(16, 0)), "F-073");
        assert_eq!(refused(&with(16, 9)), "F-073");
        assert_eq!(refused(&with(20, 1)), "F-074");
        assert_eq!(refused(&good[..good.len() - 1]), "F-074");
        assert_eq!(Node::decode(good, &shape(2), 0, 0).unwrap_err().requirement, "F-072");
    }

    #[test]
    fn f_071_levels_are_bounded() {
        let node = |level| Node { level, entries: vec![Entry::Zero] };
        let highest = node(MAP_LEVEL_MAX);
        assert_eq!(Node::decode_any(&highest.encode()).unwrap(), highest);
        let error = Node::decode_any(&node(MAP_LEVEL_MAX + 1).encode()).unwrap_err();
        assert_eq!(error.requirement, "F-071");
    }

    #[test]
    fn f_073_partial_is_for_chunks_only() {
        let node = Node { level: 1, entries: vec![Entry::Partial(Id([1; 32]))] };
        assert_eq!(Node::decode_any(&node.encode()).unwrap_err().requirement, "F-073");
    }

    #[test]
    fn f_075_a_zero_subtree_has_no_node() {
        let node = Node { level: 0, entries: vec![Entry::Zero; 256] };
        let error = Node::decode(&node.encode(), &shape(1000), 0, 0).unwrap_err();
        assert_eq!(error.requirement, "F-075");
    }
}
