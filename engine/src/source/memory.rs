//! A change source in memory: generations of a volume that knows its own history. It stands for
//! the real ones under test, lies included.

use std::sync::Mutex;
use std::sync::PoisonError;

use super::{Change, ChangeSource, ChangedExtent, Degraded, Proof};

/// Remembers which ranges were written in which generation.
#[derive(Debug)]
pub struct MemoryChanges {
    identity: String,
    size: u64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    generation: u64,
    /// Range and the generation it was written in.
    writes: Vec<(std::ops::Range<u64>, u64)>,
}

impl MemoryChanges {
    /// For a volume with this identity and size, in generation 0.
    pub fn new(identity: &str, size: u64) -> MemoryChanges {
        MemoryChanges { identity: identity.to_owned(), size, state: Mutex::default() }
    }

    /// Notes a write.
    pub fn wrote(&self, range: std::ops::Range<u64>) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let generation = state.generation;
        state.writes.push((range, generation));
    }

    /// Ends a generation: the next view's changes count from here.
    pub fn snapshot(&self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).generation += 1;
    }
}

impl ChangeSource for MemoryChanges {
    fn kind(&self) -> &'static str {
        "memory"
    }

    fn proof(&self) -> Proof {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        Proof::from([
            ("identity".to_owned(), self.identity.clone()),
            ("generation".to_owned(), state.generation.to_string()),
        ])
    }

    fn changes(&self, base: &Proof, base_size: u64) -> Result<Vec<ChangedExtent>, Degraded> {
        if base.get("identity") != Some(&self.identity) {
            return Err(Degraded("the base is another volume".into()));
        }
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let since = base
            .get("generation")
            .and_then(|text| text.parse::<u64>().ok())
            .filter(|since| *since <= state.generation)
            .ok_or_else(|| Degraded("the base's generation is unknown".into()))?;
        let mut dirty: Vec<_> = state
            .writes
            .iter()
            .filter(|(_, generation)| *generation >= since)
            .map(|(range, _)| range.clone())
            .collect();
        dirty.push(base_size.min(self.size)..self.size);
        Ok(cover(dirty, self.size))
    }
}

/// Turns dirty ranges into a gapless list.
fn cover(mut dirty: Vec<std::ops::Range<u64>>, size: u64) -> Vec<ChangedExtent> {
    dirty.sort_by_key(|range| range.start);
    let mut extents: Vec<ChangedExtent> = Vec::new();
    let mut end = 0;
    for range in dirty.into_iter().filter(|range| !range.is_empty()) {
        if range.start > end {
            extents.push(ChangedExtent { range: end..range.start, change: Change::Unchanged });
        }
        let start = range.start.max(end);
        if start < range.end {
            extents.push(ChangedExtent { range: start..range.end, change: Change::Changed });
            end = range.end;
        }
    }
    if end < size {
        extents.push(ChangedExtent { range: end..size, change: Change::Unchanged });
    }
    extents
}
