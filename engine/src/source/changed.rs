//! A list of changes that cannot grow without bound.

use std::ops::Range;

use super::{Change, ChangedExtent, Degraded};

/// Entries that a list holds before it becomes coarser: 32 MiB of them.
const ENTRIES_MAX: usize = 1 << 20;

/// Collects what a change source says, ascending. A list that grows too long becomes coarser:
/// `Changed` takes in its neighbours, which costs reading and never hides a change.
#[derive(Debug)]
pub struct ChangeList {
    /// What the ranges that nobody mentions are.
    gaps: Change,
    entries: Vec<ChangedExtent>,
    entries_max: usize,
    /// Where the last pushed range ends.
    end: u64,
    /// Ranges start and end at multiples of this, outward for `Changed`; grows.
    grain: u64,
}

impl ChangeList {
    /// A list in which everything that is not pushed is `gaps`.
    pub fn new(gaps: Change) -> ChangeList {
        ChangeList::with_entries_max(gaps, ENTRIES_MAX)
    }

    fn with_entries_max(gaps: Change, entries_max: usize) -> ChangeList {
        ChangeList { gaps, entries: Vec::new(), entries_max, end: 0, grain: 1 }
    }

    /// Adds a range behind those that were added before.
    ///
    /// # Errors
    /// `Degraded` if it starts before the last one's end.
    pub fn push(&mut self, range: Range<u64>, change: Change) -> Result<(), Degraded> {
        if range.start < self.end || range.end < range.start {
            let Range { start, end } = range;
            return Err(Degraded(format!("the changes are out of order at {start:#x}..{end:#x}")));
        }
        self.end = range.end;
        self.add(range, change);
        if self.entries.len() > self.entries_max {
            self.coarsen();
        }
        Ok(())
    }

    /// The whole of a view of `size` bytes: clipped to it, without gaps.
    pub fn finish(self, size: u64) -> Vec<ChangedExtent> {
        let mut whole = Vec::with_capacity(2 * self.entries.len() + 1);
        let mut end = 0;
        for ChangedExtent { range, change } in self.entries {
            let range = range.start.min(size)..range.end.min(size);
            extend(&mut whole, end..range.start, self.gaps);
            extend(&mut whole, range.clone(), change);
            end = range.end.max(end);
        }
        extend(&mut whole, end..size, self.gaps);
        whole
    }

    /// Adds a range in the list's grain: what is not `Changed` holds for whole grains only, and
    /// the grains that it has a part in are changed.
    fn add(&mut self, range: Range<u64>, change: Change) {
        let grain = self.grain;
        let down = |at: u64| at - at % grain;
        let up = |at: u64| at.checked_next_multiple_of(grain).unwrap_or(u64::MAX);
        // What an earlier entry took in stays changed.
        let taken = self.entries.last().map_or(0, |last| last.range.end);
        let outer = down(range.start).max(taken)..up(range.end);
        let inner = up(range.start).max(taken)..down(range.end);
        if change == Change::Changed || inner.is_empty() {
            return extend(&mut self.entries, outer, Change::Changed);
        }
        extend(&mut self.entries, outer.start..inner.start, Change::Changed);
        extend(&mut self.entries, inner.clone(), change);
        extend(&mut self.entries, inner.end..outer.end, Change::Changed);
    }

    /// Doubles the grain until the list is half as long as it may be.
    fn coarsen(&mut self) {
        while self.entries.len() > self.entries_max / 2 {
            self.grain = self.grain.saturating_mul(2);
            for ChangedExtent { range, change } in std::mem::take(&mut self.entries) {
                self.add(range, change);
            }
        }
    }
}

/// Appends a range, to the last one if it follows it and is the same.
fn extend(entries: &mut Vec<ChangedExtent>, range: Range<u64>, change: Change) {
    if range.is_empty() {
        return;
    }
    match entries.last_mut() {
        Some(last) if last.change == change && last.range.end == range.start => {
            last.range.end = range.end;
        }
        _ => entries.push(ChangedExtent { range, change }),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::check_coverage;
    use super::*;

    fn list(
        gaps: Change,
        pieces: &[(u64, Change)],
        entries_max: usize,
    ) -> (Vec<ChangedExtent>, u64) {
        let mut list = ChangeList::with_entries_max(gaps, entries_max);
        let mut at = 0;
        for (number, (len, change)) in pieces.iter().enumerate() {
            // Every third piece is a gap.
            if number % 3 != 2 {
                list.push(at..at + len, *change).unwrap();
            }
            at += len;
        }
        (list.finish(at), at)
    }

    fn at(extents: &[ChangedExtent], byte: u64) -> Change {
        extents.iter().find(|extent| extent.range.contains(&byte)).unwrap().change
    }

    fn change() -> impl Strategy<Value = Change> {
        prop_oneof![Just(Change::Changed), Just(Change::Unchanged), Just(Change::Zero)]
    }

    proptest! {
        #[test]
        fn a_coarse_list_says_the_same_or_changed(
            gaps in change(),
            pieces in proptest::collection::vec((1u64..40, change()), 1..60),
        ) {
            let (exact, size) = list(gaps, &pieces, usize::MAX);
            let (coarse, _) = list(gaps, &pieces, 8);
            check_coverage(&exact, size).unwrap();
            check_coverage(&coarse, size).unwrap();
            prop_assert!(coarse.len() <= 2 * 8 + 4);
            for byte in 0..size {
                let said = at(&coarse, byte);
                prop_assert!(said == Change::Changed || said == at(&exact, byte), "{byte}");
            }
        }
    }

    #[test]
    fn ranges_out_of_order_are_refused() {
        let mut list = ChangeList::new(Change::Unchanged);
        list.push(10..20, Change::Changed).unwrap();
        assert!(list.push(19..30, Change::Changed).is_err());
        let backwards = Range { start: 40, end: 30 };
        assert!(list.push(backwards, Change::Changed).is_err());
    }

    #[test]
    fn what_lies_behind_the_end_is_clipped() {
        let mut list = ChangeList::new(Change::Zero);
        list.push(10..200, Change::Changed).unwrap();
        list.push(200..300, Change::Unchanged).unwrap();
        let whole = list.finish(100);
        check_coverage(&whole, 100).unwrap();
        assert_eq!(whole.len(), 2);
    }
}
