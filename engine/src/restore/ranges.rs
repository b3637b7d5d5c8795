//! Byte ranges gathered from several threads: sorted, merged and asked for.

use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::report::ByteRange;

/// Ranges gathered so far. Merged now and then, so that many neighbours stay few.
#[derive(Debug, Default)]
pub struct Ranges(Mutex<Gathered>);

#[derive(Debug, Default)]
struct Gathered {
    ranges: Vec<Range<u64>>,
    merged_len: usize,
}

impl Ranges {
    /// Adds one.
    pub fn add(&self, range: Range<u64>) {
        let mut gathered = self.lock();
        gathered.ranges.push(range);
        if gathered.ranges.len() > 2 * gathered.merged_len + 1024 {
            gathered.merge();
        }
    }

    /// All of them, ascending, overlapping and touching ones merged.
    pub fn merged(&self) -> Vec<Range<u64>> {
        let mut gathered = self.lock();
        gathered.merge();
        gathered.ranges.clone()
    }

    fn lock(&self) -> MutexGuard<'_, Gathered> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Gathered {
    fn merge(&mut self) {
        self.ranges.sort_unstable_by_key(|range| range.start);
        self.ranges.dedup_by(|next, last| {
            let touches = next.start <= last.end;
            if touches {
                last.end = last.end.max(next.end);
            }
            touches
        });
        self.merged_len = self.ranges.len();
    }
}

/// Whether one of `merged` holds `offset`.
pub fn holds(merged: &[Range<u64>], offset: u64) -> bool {
    let behind = merged.partition_point(|range| range.end <= offset);
    merged.get(behind).is_some_and(|range| range.contains(&offset))
}

/// As a report shows it.
pub fn reported(range: &Range<u64>) -> ByteRange {
    ByteRange { offset: range.start, length: range.end - range.start }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_become_one() {
        let ranges = Ranges::default();
        for start in (0..5000).rev() {
            ranges.add(start * 10..start * 10 + 10);
        }
        ranges.add(60_000..60_001);
        ranges.add(60_000..60_001);
        let merged = ranges.merged();
        assert_eq!(merged, [0..50_000, 60_000..60_001]);
        assert!(holds(&merged, 49_999) && !holds(&merged, 50_000) && holds(&merged, 60_000));
    }
}
