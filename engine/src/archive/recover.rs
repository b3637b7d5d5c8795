//! What damaged index runs held, read back from the tables of the segments.
//!
//! The ids of a run ascend, so a damaged page is a gap between two ids, and what it held is among
//! the items of the log whose ids lie in the gap. One pass over all tables fetches these; of many,
//! as many as may be kept, in the order of ids, and another pass the next ones.

use std::sync::Arc;

use voltar_format::commit::RunEntry;
use voltar_format::index::IndexEntry;
use voltar_format::{ArchiveId, Id, LogOffset};

use super::Home;
use super::tables::each_item;

/// Entries kept of what damaged runs held, at most twice as many during a pass: 56 bytes each.
const KEPT_MAX: usize = 128 << 10;

/// Gaps kept of a run. Beyond that the last one takes in what follows it: a pass then fetches
/// more than was lost, which is right as well.
const GAPS_MAX: usize = 64 << 10;

/// The ids behind the first one, up to and with the second; `None` is the run's end.
type Gap = (Option<Id>, Option<Id>);

/// What reading a run from its first page to its last found: entries, and damaged pages.
#[derive(Clone, Debug, Default)]
pub struct Gaps {
    entries: u64,
    pages: u64,
    gaps: Vec<Gap>,
    last: Option<Id>,
    is_open: bool,
}

impl Gaps {
    /// How many entries the whole pages hold.
    pub fn entries(&self) -> u64 {
        self.entries
    }

    /// How many pages are damaged, filters included.
    pub fn pages(&self) -> u64 {
        self.pages
    }

    /// The next page is a filter and damaged: no id is lost with it.
    pub fn damaged_filter(&mut self) {
        self.pages += 1;
    }

    /// The next page is a slot's and damaged.
    pub fn damaged_slot(&mut self) {
        self.pages += 1;
        self.is_open = true;
    }

    /// The next page is whole and holds these entries, as a filter none. A look-up that comes
    /// through a damaged page may end in this one, so a gap before goes up to its last id.
    pub fn whole(&mut self, entries: &[IndexEntry]) {
        if let Some(last) = entries.last() {
            self.entries += entries.len() as u64;
            self.close(Some(last.id));
            self.last = Some(last.id);
        }
    }

    /// There is no page behind.
    pub fn finish(mut self) -> Gaps {
        self.close(None);
        self
    }

    fn close(&mut self, end: Option<Id>) {
        if !std::mem::take(&mut self.is_open) {
            return;
        }
        let is_full = self.gaps.len() >= GAPS_MAX;
        match self.gaps.last_mut().filter(|_| is_full) {
            Some(widened) => widened.1 = end,
            None => self.gaps.push((self.last, end)),
        }
    }

    fn hold(&self, id: &Id) -> bool {
        // The last gap that begins before the id is the only one it can lie in.
        let at = self.gaps.partition_point(|gap| gap.0.is_none_or(|start| start < *id));
        let gap = at.checked_sub(1).and_then(|at| self.gaps.get(at));
        gap.is_some_and(|gap| gap.1.is_none_or(|end| *id <= end))
    }
}

/// The damaged runs of an index that were met, and what they held as far as it was read back.
pub struct Recovery {
    home: Arc<dyn Home>,
    archive: ArchiveId,
    /// Where the log ends that is searched.
    end: LogOffset,
    /// Damaged runs, by their places.
    runs: Vec<(LogOffset, Gaps)>,
    /// Ascending; of one id the newest place only.
    entries: Vec<IndexEntry>,
    /// From which id to which `entries` are all there are; no end is the greatest.
    known: Option<(Id, Option<Id>)>,
    /// Items in the gaps, repeated ids included.
    count: u64,
}

impl Recovery {
    /// For the log up to `end`; nothing is damaged yet.
    pub fn new(home: Arc<dyn Home>, archive: ArchiveId, end: LogOffset) -> Recovery {
        let (runs, entries) = (Vec::new(), Vec::new());
        Recovery { home, archive, end, runs, entries, known: None, count: 0 }
    }

    /// The same log, and nothing known of it.
    pub fn anew(&self) -> Recovery {
        Recovery::new(Arc::clone(&self.home), self.archive, self.end)
    }

    /// Where a run is damaged that is known to be.
    pub fn gaps_of(&self, run: &RunEntry) -> Option<&Gaps> {
        self.runs.iter().find(|(offset, _)| *offset == run.offset).map(|(_, gaps)| gaps)
    }

    /// Whether this run is known to be damaged.
    pub fn has(&self, run: &RunEntry) -> bool {
        self.gaps_of(run).is_some()
    }

    /// How many runs are known to be damaged.
    pub fn damaged_runs(&self) -> usize {
        self.runs.len()
    }

    /// Remembers a damaged run.
    pub fn add(&mut self, run: &RunEntry, gaps: Gaps) {
        self.known = None;
        self.runs.push((run.offset, gaps));
    }

    /// Where the item is, if it is one of those that damaged runs held.
    pub fn find(&mut self, id: &Id) -> Option<IndexEntry> {
        if !self.is_lost(id) {
            return None;
        }
        self.know(*id);
        let at = self.entries.binary_search_by_key(id, |entry| entry.id).ok()?;
        self.entries.get(at).cloned()
    }

    /// The first of what damaged runs held behind `last`, in the order of ids.
    pub fn next_behind(&mut self, last: Option<Id>) -> Option<IndexEntry> {
        let mut from = last.unwrap_or_default();
        loop {
            self.know(from);
            let behind = |entry: &IndexEntry| last.is_none_or(|last| entry.id > last);
            let at = self.entries.partition_point(|entry| !behind(entry));
            if let Some(entry) = self.entries.get(at) {
                return Some(entry.clone());
            }
            // Everything up to here is done; what was not kept lies behind it.
            from = successor(&self.known?.1?)?;
        }
    }

    /// No fewer than the items that lie in the gaps.
    pub fn count_max(&mut self) -> u64 {
        if self.runs.is_empty() {
            return 0;
        }
        self.know(Id::default());
        self.count
    }

    fn is_lost(&self, id: &Id) -> bool {
        self.runs.iter().any(|(_, gaps)| gaps.hold(id))
    }

    /// Sees that `entries` holds what there is of `id`.
    fn know(&mut self, id: Id) {
        let is_known = self.known.is_some_and(|(from, through)| {
            from <= id && through.is_none_or(|through| id <= through)
        });
        if !is_known {
            // All of it may fit: the first pass begins with the least id.
            let from = if self.known.is_none() { Id::default() } else { id };
            self.fetch(from);
            if self.known.is_some_and(|(_, through)| through.is_some_and(|last| last < id)) {
                self.fetch(id);
            }
        }
    }

    /// One pass over all tables.
    fn fetch(&mut self, from: Id) {
        let (mut entries, mut through, mut count) = (Vec::new(), None, 0u64);
        each_item(&*self.home, self.archive, self.end, &mut |entry| {
            if !self.is_lost(&entry.id) {
                return;
            }
            count += 1;
            if entry.id >= from && through.is_none_or(|last| entry.id <= last) {
                entries.push(entry);
            }
            if entries.len() >= 2 * KEPT_MAX {
                keep_least(&mut entries, &mut through);
            }
        });
        keep_least(&mut entries, &mut through);
        (self.entries, self.known, self.count) = (entries, Some((from, through)), count);
    }
}

/// Sorts entries, keeps of each id the newest place, and of all ids the least.
fn keep_least(entries: &mut Vec<IndexEntry>, through: &mut Option<Id>) {
    entries.sort_unstable_by_key(|entry| (entry.id, std::cmp::Reverse(entry.frame)));
    entries.dedup_by_key(|entry| entry.id);
    if entries.len() > KEPT_MAX {
        entries.truncate(KEPT_MAX);
        *through = entries.last().map(|entry| entry.id);
    }
}

/// The id that follows; `None` behind the greatest.
fn successor(id: &Id) -> Option<Id> {
    let mut next = *id;
    for byte in next.0.iter_mut().rev() {
        let (value, carries) = byte.overflowing_add(1);
        *byte = value;
        if !carries {
            return Some(next);
        }
    }
    None
}
