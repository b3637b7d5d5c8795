//! Ways through a map: in order, and where two maps differ. Nodes come from a [`NodeSource`].

use std::ops::Range;

use crate::map::{Entry, Node, Shape, span_of_entry, span_of_node};
use crate::units::Id;

/// Where nodes come from.
pub trait NodeSource {
    /// Why a node could not be had.
    type Error;

    /// Node `number` at `level` of a map of `shape`, whose id is `id`, checked.
    fn node(&mut self, id: &Id, shape: &Shape, level: u8, number: u64)
    -> Result<Node, Self::Error>;
}

/// Chunks of one state: one chunk if it has an id, otherwise as many as share it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// The chunks.
    pub chunks: Range<u64>,
    /// Their state.
    pub entry: Entry,
}

/// A position in a map. Holds one node per level.
#[derive(Debug)]
pub struct Cursor {
    shape: Shape,
    root: Id,
    next: u64,
    /// The last node read at each level, with its number and id.
    path: Vec<Option<(u64, Id, Node)>>,
}

/// An entry somewhere in a map, and the level where it stands: a state that fills a subtree
/// stands above the level asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// The entry.
    pub entry: Entry,
    /// The level of the node it stands in.
    pub level: u8,
}

impl Cursor {
    /// At the start of the map of `shape` whose root is `root`.
    pub fn new(shape: Shape, root: Id) -> Cursor {
        let levels = usize::from(shape.root_level()).saturating_add(1);
        Cursor { shape, root, next: 0, path: vec![None; levels] }
    }

    /// The map's shape.
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// Goes to a chunk.
    pub fn seek(&mut self, chunk: u64) {
        self.next = chunk;
    }

    /// The next chunks, or `None` at the end.
    pub fn next_run<S: NodeSource>(&mut self, source: &mut S) -> Result<Option<Run>, S::Error> {
        if self.next >= self.shape.chunk_count() {
            return Ok(None);
        }
        let start = self.next;
        let standing = self.entry_at(source, 0, start)?;
        let span = span_of_entry(standing.level);
        let begin = start & !span.wrapping_sub(1);
        let end = begin.saturating_add(span).min(self.shape.chunk_count());
        self.next = end;
        Ok(Some(Run { chunks: start..end, entry: standing.entry }))
    }

    /// The entry that covers `chunk` at `level` or, if its subtree is of one state, above.
    pub fn entry_at<S: NodeSource>(
        &mut self,
        source: &mut S,
        level: u8,
        chunk: u64,
    ) -> Result<Standing, S::Error> {
        let mut at = self.shape.root_level();
        let mut id = self.root;
        loop {
            let entry = self.child(source, &id, at, chunk)?;
            match entry {
                Entry::Data(child) if at > level => {
                    id = child;
                    at = at.saturating_sub(1);
                }
                entry => return Ok(Standing { entry, level: at }),
            }
        }
    }

    fn child<S: NodeSource>(
        &mut self,
        source: &mut S,
        id: &Id,
        level: u8,
        chunk: u64,
    ) -> Result<Entry, S::Error> {
        let number = chunk.checked_div(span_of_node(level)).unwrap_or(0);
        let slot = self.path.get_mut(usize::from(level));
        let known = slot.as_ref().and_then(|slot| slot.as_ref());
        let is_known = known.is_some_and(|(n, i, _)| *n == number && i == id);
        if !is_known {
            let node = source.node(id, &self.shape, level, number)?;
            if let Some(slot) = slot {
                *slot = Some((number, *id, node));
            }
        }
        let place = chunk.checked_div(span_of_entry(level)).unwrap_or(0) & 255;
        let node = self.path.get(usize::from(level)).and_then(|slot| slot.as_ref());
        let entry = node.and_then(|(_, _, node)| node.entries.get(place as usize));
        // A decoded node has as many children as the shape demands, so a chunk inside the volume
        // always has one; outside it there is nothing but zeroes.
        Ok(entry.copied().unwrap_or(Entry::Zero))
    }
}

/// Calls `visit` for every chunk range where `new` differs from `old`, with its state in `new`,
/// ascending. Both maps have the same chunk length. Subtrees with equal ids are not read. Where
/// sizes differ, the chunk with the old (or new) end and all behind it count as changed.
pub fn changes<S, E>(
    old: &mut Cursor,
    new: &mut Cursor,
    source: &mut S,
    mut visit: impl FnMut(Run) -> Result<(), E>,
) -> Result<(), E>
where
    S: NodeSource,
    E: From<S::Error>,
{
    let common = common_chunks(&old.shape, &new.shape);
    let top = old.shape.root_level().min(new.shape.root_level());
    let mut chunk = 0;
    while chunk < common {
        chunk = step(old, new, source, chunk, common, top, &mut visit)?;
    }
    new.seek(common);
    while let Some(run) = new.next_run(source)? {
        visit(run)?;
    }
    Ok(())
}

/// Chunks that have the same byte range in both shapes.
pub fn common_chunks(old: &Shape, new: &Shape) -> u64 {
    match old.size() == new.size() {
        true => new.chunk_count(),
        false => {
            let size = old.size().min(new.size());
            size.checked_div(u64::from(new.chunk_len())).unwrap_or(0)
        }
    }
}

/// Compares at `chunk` on the highest level possible; returns the next chunk to look at.
fn step<S, E>(
    old: &mut Cursor,
    new: &mut Cursor,
    source: &mut S,
    chunk: u64,
    common: u64,
    top: u8,
    visit: &mut impl FnMut(Run) -> Result<(), E>,
) -> Result<u64, E>
where
    S: NodeSource,
    E: From<S::Error>,
{
    for level in (0..=top).rev() {
        let span = span_of_entry(level);
        if !chunk.is_multiple_of(span) {
            continue;
        }
        let before = old.entry_at(source, level, chunk)?;
        let after = new.entry_at(source, level, chunk)?;
        let end = chunk.saturating_add(span).min(common);
        if before.entry == after.entry {
            return Ok(end);
        }
        let both_uniform = before.entry.id().is_none() && after.entry.id().is_none();
        if level == 0 || both_uniform {
            visit(Run { chunks: chunk..end, entry: after.entry })?;
            return Ok(end);
        }
    }
    Ok(chunk.saturating_add(1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checksum::{chunk_id, node_id};
    use crate::error::FormatError;
    use crate::map::MapBuilder;
    use proptest::prelude::*;
    use std::collections::HashMap;

    #[derive(Default)]
    struct Store {
        nodes: HashMap<Id, Vec<u8>>,
        reads: usize,
    }

    impl NodeSource for Store {
        type Error = FormatError;
        fn node(&mut self, id: &Id, shape: &Shape, level: u8, n: u64) -> Result<Node, FormatError> {
            self.reads += 1;
            Node::decode(&self.nodes[id], shape, level, n)
        }
    }

    impl Store {
        fn build(&mut self, shape: Shape, entries: &[Entry]) -> Cursor {
            let mut builder = MapBuilder::new(shape);
            let mut out = Vec::new();
            entries.iter().for_each(|entry| builder.push(*entry, &mut out));
            let root = builder.finish(&mut out);
            self.nodes.extend(out.into_iter().map(|node| (node.id, node.bytes)));
            Cursor::new(shape, root)
        }
    }

    fn entry(n: u8) -> Entry {
        match n {
            0 => Entry::Zero,
            1 => Entry::Unreadable,
            2 => Entry::Partial(chunk_id(b"p")),
            n => Entry::Data(chunk_id(&[n])),
        }
    }

    fn expand(runs: &[Run]) -> Vec<(u64, Entry)> {
        runs.iter().flat_map(|run| run.chunks.clone().map(|chunk| (chunk, run.entry))).collect()
    }

    fn runs_of(store: &mut Store, cursor: &mut Cursor) -> Vec<Run> {
        let mut runs = Vec::new();
        while let Some(run) = cursor.next_run(store).unwrap() {
            runs.push(run);
        }
        runs
    }

    /// Random states in runs, so that whole subtrees are uniform now and then.
    fn states() -> impl Strategy<Value = Vec<Entry>> {
        prop::collection::vec((0u8..6, 1usize..600), 1..12).prop_map(|runs| {
            runs.into_iter().flat_map(|(n, len)| std::iter::repeat_n(entry(n), len)).collect()
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn a_cursor_gives_back_what_was_built(entries in states(), from in 0usize..3000) {
            let mut store = Store::default();
            let shape = Shape::new(entries.len() as u64 * 4096, 4096).unwrap();
            let mut cursor = store.build(shape, &entries);
            let all = expand(&runs_of(&mut store, &mut cursor));
            let expected: Vec<_> = (0..).zip(entries.iter().copied()).collect();
            prop_assert_eq!(&all, &expected);
            let from = from.min(entries.len());
            cursor.seek(from as u64);
            let tail = expand(&runs_of(&mut store, &mut cursor));
            prop_assert_eq!(&tail[..], &expected[from..]);
        }

        #[test]
        fn changes_are_exactly_the_differences(
            mut entries in states(),
            edits in prop::collection::vec((any::<prop::sample::Index>(), 0u8..6), 0..20),
            new_len in 1usize..4000,
            resize in any::<bool>(),
        ) {
            let mut store = Store::default();
            let old_shape = Shape::new(entries.len() as u64 * 4096 - 7, 4096).unwrap();
            let mut old = store.build(old_shape, &entries);
            let before = entries.clone();
            for (at, n) in edits {
                let at = at.index(entries.len());
                entries[at] = entry(n);
            }
            if resize {
                entries.resize(new_len, entry(3));
            }
            let new_shape = Shape::new(entries.len() as u64 * 4096 - 7, 4096).unwrap();
            let mut new = store.build(new_shape, &entries);
            let mut runs = Vec::new();
            changes::<_, FormatError>(&mut old, &mut new, &mut store, |run| {
                runs.push(run);
                Ok(())
            }).unwrap();
            let common = common_chunks(&old_shape, &new_shape) as usize;
            let expected: Vec<(u64, Entry)> = entries.iter().enumerate()
                .filter(|(at, entry)| *at >= common || before.get(*at) != Some(entry))
                .map(|(at, entry)| (at as u64, *entry))
                .collect();
            prop_assert_eq!(expand(&runs), expected);
        }
    }

    #[test]
    fn f_072_a_node_that_comes_again_is_checked_for_its_new_place() {
        let mut store = Store::default();
        let full = Node { level: 0, entries: vec![Entry::Data(chunk_id(b"x")); 256] };
        let again = Entry::Data(node_id(&full.encode()));
        let root = Node { level: 1, entries: vec![again; 2] };
        for bytes in [full.encode(), root.encode()] {
            store.nodes.insert(node_id(&bytes), bytes);
        }
        let shape = Shape::new(300 * 4096, 4096).unwrap();
        let mut cursor = Cursor::new(shape, node_id(&root.encode()));
        for _ in 0..256 {
            cursor.next_run(&mut store).unwrap().unwrap();
        }
        assert_eq!(cursor.next_run(&mut store).unwrap_err().requirement, "F-072");
    }

    #[test]
    fn equal_subtrees_are_not_read() {
        let mut store = Store::default();
        let chunks = 200_000u64;
        let shape = Shape::new(chunks * 4096, 4096).unwrap();
        let data = |n: u64| Entry::Data(chunk_id(&n.to_le_bytes()));
        let mut entries: Vec<Entry> = (0..chunks).map(data).collect();
        let mut old = store.build(shape, &entries);
        entries[123_456] = Entry::Zero;
        let mut new = store.build(shape, &entries);
        store.reads = 0;
        let mut count = 0;
        changes::<_, FormatError>(&mut old, &mut new, &mut store, |run| {
            count += run.chunks.end - run.chunks.start;
            Ok(())
        })
        .unwrap();
        assert_eq!(count, 1);
        assert!(store.reads <= 2 * 3, "{} nodes read", store.reads);
    }
}
