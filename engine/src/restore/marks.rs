//! Which chunks of a volume are to be written: one bit per unit of chunks.
//!
//! A unit is one chunk unless the bits would take more memory than they may; then it is the
//! smallest power of two of chunks that fits. A unit with one marked chunk is written whole.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

const WORD_BITS: u64 = u64::BITS as u64;

/// Marks on the chunks of one volume. Set from any thread, never cleared.
#[derive(Debug)]
pub struct Marks {
    words: Vec<AtomicU64>,
    chunk_count: u64,
    unit_shift: u32,
}

impl Marks {
    /// No marks on `chunk_count` chunks, in at most `memory_bytes` (at least 8).
    pub fn new(chunk_count: u64, memory_bytes: u64) -> Marks {
        let bits_max = memory_bytes.max(8).saturating_mul(8);
        let unit_shift = (0..u64::BITS)
            .find(|shift| chunk_count.div_ceil(1 << shift) <= bits_max)
            .unwrap_or(u64::BITS - 1);
        let units = chunk_count.div_ceil(1 << unit_shift);
        let words = (0..units.div_ceil(WORD_BITS)).map(|_| AtomicU64::new(0)).collect();
        Marks { words, chunk_count, unit_shift }
    }

    /// Marks these chunks, and with them their units.
    pub fn mark(&self, chunks: Range<u64>) {
        let chunks = chunks.start..chunks.end.min(self.chunk_count);
        if chunks.is_empty() {
            return;
        }
        let (mut unit, last) =
            (chunks.start >> self.unit_shift, (chunks.end - 1) >> self.unit_shift);
        while unit <= last {
            let (word, bit) = (unit / WORD_BITS, unit % WORD_BITS);
            let count = (WORD_BITS - bit).min(last - unit + 1);
            let bits = (u64::MAX >> (WORD_BITS - count)) << bit;
            if let Some(word) = self.words.get(word as usize) {
                word.fetch_or(bits, Ordering::Relaxed);
            }
            unit += count;
        }
    }

    /// Whether the chunk is marked.
    pub fn is_marked(&self, chunk: u64) -> bool {
        self.bit(chunk >> self.unit_shift)
    }

    /// The start of `chunks`, as long as all are marked or all are not, and which of the two.
    /// `chunks` is not empty.
    pub fn span(&self, chunks: Range<u64>) -> (Range<u64>, bool) {
        let first = chunks.start >> self.unit_shift;
        let marked = self.bit(first);
        let last = (chunks.end - 1) >> self.unit_shift;
        let mut unit = first + 1;
        while unit <= last {
            let same = self.same_from(unit, marked);
            unit += same;
            if same == 0 || !unit.is_multiple_of(WORD_BITS) {
                break;
            }
        }
        let end = unit.min(last + 1) << self.unit_shift;
        (chunks.start..end.min(chunks.end), marked)
    }

    /// All marked ranges of chunks, ascending and merged.
    pub fn marked(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        let mut at = 0;
        std::iter::from_fn(move || {
            while at < self.chunk_count {
                let (span, marked) = self.span(at..self.chunk_count);
                at = span.end;
                if marked {
                    return Some(span);
                }
            }
            None
        })
    }

    fn bit(&self, unit: u64) -> bool {
        self.word(unit / WORD_BITS) >> (unit % WORD_BITS) & 1 == 1
    }

    fn word(&self, number: u64) -> u64 {
        self.words.get(number as usize).map_or(0, |word| word.load(Ordering::Relaxed))
    }

    /// How many units from `unit` to the end of its word are `marked`, before the first that is
    /// not.
    fn same_from(&self, unit: u64, marked: bool) -> u64 {
        let word = self.word(unit / WORD_BITS);
        let others = if marked { !word } else { word } >> (unit % WORD_BITS);
        u64::from(others.trailing_zeros()).min(WORD_BITS - unit % WORD_BITS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn spans_are_what_was_marked(
            count in 1u64..1000,
            ranges in prop::collection::vec((0u64..1000, 0u64..200), 0..6),
        ) {
            let marks = Marks::new(count, 1 << 20);
            let mut plain = vec![false; count as usize];
            for (start, len) in ranges {
                marks.mark(start..start + len);
                plain.iter_mut().skip(start as usize).take(len as usize).for_each(|m| *m = true);
            }
            let mut at = 0;
            while at < count {
                let (span, marked) = marks.span(at..count);
                prop_assert!(span.start == at && span.end > at && span.end <= count);
                prop_assert!(plain[at as usize..span.end as usize].iter().all(|m| *m == marked));
                prop_assert!(span.end == count || plain[span.end as usize] != marked);
                at = span.end;
            }
            let marked: u64 = marks.marked().map(|range| range.end - range.start).sum();
            prop_assert_eq!(marked, plain.iter().filter(|m| **m).count() as u64);
        }
    }

    #[test]
    fn units_grow_where_memory_is_short() {
        let marks = Marks::new(1 << 30, 1 << 10);
        assert!(marks.words.len() <= 128);
        let unit = 1 << marks.unit_shift;
        marks.mark(unit + 5..unit + 6);
        assert_eq!(marks.marked().next(), Some(unit..2 * unit));
        assert_eq!(marks.marked().count(), 1);
        assert_eq!(marks.span(unit + 7..4 * unit), (unit + 7..2 * unit, true));
        assert_eq!(marks.span(0..unit), (0..unit, false));
    }
}
