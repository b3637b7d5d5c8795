//! What the archive could not give of a volume: gathered from several threads, in bounded memory.

use std::ops::Range;
use std::sync::OnceLock;

use super::marks::Marks;

/// Ranges that are listed; more are counted.
pub const LISTED_MAX: usize = 4096;

/// Chunks that the archive could not give and that are zero on the target instead. Where
/// [`Marks`] has to be coarse for want of memory, so is this: whole chunks beside lost ones then
/// count as lost, too.
#[derive(Debug)]
pub struct Lost {
    chunk_count: u64,
    memory_bytes: u64,
    /// Made when the first chunk is lost, which hardly ever happens.
    marks: OnceLock<Marks>,
}

impl Lost {
    /// Nothing yet, of `chunk_count` chunks, in at most `memory_bytes`.
    pub fn new(chunk_count: u64, memory_bytes: u64) -> Lost {
        Lost { chunk_count, memory_bytes, marks: OnceLock::new() }
    }

    /// Adds these chunks.
    pub fn add(&self, chunks: Range<u64>) {
        self.marks.get_or_init(|| Marks::new(self.chunk_count, self.memory_bytes)).mark(chunks);
    }

    /// Whether the chunk was lost.
    pub fn holds(&self, chunk: u64) -> bool {
        self.marks.get().is_some_and(|marks| marks.is_marked(chunk))
    }

    /// The ranges of lost chunks, ascending and merged.
    pub fn ranges(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        self.marks.get().into_iter().flat_map(Marks::marked)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_lost_is_held_and_merged() {
        let lost = Lost::new(100_000, 1 << 20);
        assert!(!lost.holds(0) && lost.ranges().next().is_none());
        (0..5000).rev().for_each(|chunk| lost.add(chunk..chunk + 1));
        lost.add(60_000..60_002);
        lost.add(60_001..60_003);
        assert_eq!(lost.ranges().collect::<Vec<_>>(), [0..5000, 60_000..60_003]);
        assert!(lost.holds(4999) && !lost.holds(5000) && lost.holds(60_002));
    }

    #[test]
    fn the_largest_volume_costs_no_more_memory_than_it_may() {
        let lost = Lost::new(1 << 48, 1 << 10);
        (0..1 << 20).for_each(|n| lost.add(n << 28..(n << 28) + 1));
        assert!(lost.ranges().count() <= 8 << 10);
        assert!((0..1 << 20).all(|n| lost.holds(n << 28)));
    }
}
