//! From id to place: look-ups in the index runs, and the table of what this session added.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use voltar_format::commit::{Commit, RunEntry};
use voltar_format::index::{
    Found, IndexEntry, Page, bucket_of, filter_page_of, is_filter_slot, page_of_slot,
};
use voltar_format::limits::BLOCK_LEN;
use voltar_format::{FormatError, Id, LogOffset, Structure};

use super::blocks::read_what_is_there;
use super::open::Archive;
use super::recover::{Gaps, Recovery};
use super::{Home, format_error, read_into};
use crate::error::{Error, Result};

/// The index runs of an archive, newest last. Look-ups read pages of 4 KiB with plain reads: the
/// page cache keeps the hot ones, and an I/O error is an error, not a signal.
///
/// A damaged page is no end: the other runs are asked, and then the tables of the segments.
#[derive(Clone)]
pub struct Index {
    home: Arc<dyn Home>,
    runs: Arc<RwLock<Arc<Vec<RunEntry>>>>,
    /// What damaged runs held; `None` if there are no tables to ask.
    recovery: Option<Arc<Mutex<Recovery>>>,
}

/// Where the last item of many was found.
#[derive(Clone, Copy, Debug, Default)]
pub struct Hint {
    /// Where the run starts.
    run: Option<LogOffset>,
}

impl Index {
    /// Over these runs alone.
    pub fn new(home: Arc<dyn Home>, runs: Vec<RunEntry>) -> Index {
        Index { home, runs: Arc::new(RwLock::new(Arc::new(runs))), recovery: None }
    }

    /// Of all that `archive` holds.
    pub fn of(archive: &Archive) -> Index {
        let runs = archive.last.as_ref().map(|commit| commit.runs.clone()).unwrap_or_default();
        let recovery = Recovery::new(Arc::clone(&archive.home), archive.id, archive.end());
        let recovery = Some(Arc::new(Mutex::new(recovery)));
        Index { recovery, ..Index::new(Arc::clone(&archive.home), runs) }
    }

    /// As [`Index::of`], for reading what `commit` sealed: its own runs know it, too. The newest
    /// ones are asked first, for they lead to what was stored again after it had been damaged.
    pub fn of_commit(archive: &Archive, commit: &Commit) -> Index {
        let index = Index::of(archive);
        let newest = index.runs();
        let own = commit.runs.iter().filter(|run| !newest.contains(run));
        let runs = own.chain(newest.iter()).cloned().collect();
        index.set_runs(runs);
        index
    }

    /// The runs, newest last.
    pub fn runs(&self) -> Arc<Vec<RunEntry>> {
        Arc::clone(&self.runs.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Replaces the runs; look-ups under way finish with the old ones.
    pub fn set_runs(&self, runs: Vec<RunEntry>) {
        *self.runs.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(runs);
    }

    /// Where the item is; `None` if the archive does not hold it. Of several places the newest.
    ///
    /// # Errors
    /// `Io`, or `Damaged` naming the page, if a damaged page may have held it and nothing else
    /// knows it.
    pub fn find(&self, id: &Id) -> Result<Option<IndexEntry>> {
        self.find_other(id, &[])
    }

    /// As [`find`](Self::find), passing over the frames that were tried.
    ///
    /// # Errors
    /// As [`find`](Self::find).
    pub fn find_other(&self, id: &Id, tried: &[LogOffset]) -> Result<Option<IndexEntry>> {
        Ok(self.search(id, tried)?.map(|(_, entry)| entry))
    }

    /// As [`find`](Self::find), for one of many items that were stored one after the other: they
    /// are in the same run mostly, which is asked first and without its filter. Of several places
    /// any.
    ///
    /// # Errors
    /// As [`find`](Self::find).
    pub fn find_near(&self, id: &Id, hint: &mut Hint) -> Result<Option<IndexEntry>> {
        let runs = self.runs();
        let near = hint.run.and_then(|offset| runs.iter().find(|run| run.offset == offset));
        if let Some(Ok(Some(entry))) = near.map(|run| self.find_in_slots(run, id)) {
            return Ok(Some(entry));
        }
        let (run, entry) = self.search(id, &[])?.unzip();
        hint.run = run.flatten().or(hint.run);
        Ok(entry)
    }

    /// The item and the run that holds it; no run if a damaged one does.
    fn search(
        &self,
        id: &Id,
        tried: &[LogOffset],
    ) -> Result<Option<(Option<LogOffset>, IndexEntry)>> {
        let mut damage = None;
        for run in self.runs().iter().rev() {
            match self.find_in(run, id) {
                Ok(Some(entry)) if !tried.contains(&entry.frame) => {
                    return Ok(Some((Some(run.offset), entry)));
                }
                Ok(_) => {}
                Err(error) => damage = damage.or(Some(error)),
            }
        }
        let Some(error) = damage else { return Ok(None) };
        let recovered = self.recovery().and_then(|mut recovery| recovery.find(id));
        match recovered.filter(|entry| !tried.contains(&entry.frame)) {
            Some(entry) => Ok(Some((None, entry))),
            None => Err(error),
        }
    }

    fn find_in(&self, run: &RunEntry, id: &Id) -> Result<Option<IndexEntry>> {
        let mut bytes = [0; BLOCK_LEN];
        let bucket = bucket_of(id, run.buckets);
        let filter = self.page(run, filter_page_of(bucket), &mut bytes);
        // Without its filter a run can still be asked.
        match filter.is_ok_and(|filter| !filter.may_hold(id, bucket)) {
            true => Ok(None),
            false => self.find_in_slots(run, id),
        }
    }

    fn find_in_slots(&self, run: &RunEntry, id: &Id) -> Result<Option<IndexEntry>> {
        let mut bytes = [0; BLOCK_LEN];
        let mut slot = bucket_of(id, run.buckets);
        while page_of_slot(slot) < run.page_count {
            let number = page_of_slot(slot);
            let found = self.page(run, number, &mut bytes)?.find(id);
            match found.map_err(|error| self.error(run, number, error))? {
                Found::Here(entry) => {
                    let checked = entry.check_before(run.offset).map(|()| Some(entry));
                    return checked.map_err(|error| self.error(run, number, error));
                }
                Found::Absent => return Ok(None),
                Found::Next => slot += 1,
            }
        }
        Ok(None)
    }

    fn page<'b>(
        &self,
        run: &RunEntry,
        number: u64,
        bytes: &'b mut [u8; BLOCK_LEN],
    ) -> Result<Page<'b>> {
        let at = page_offset(run, number);
        let page = read_into(&*self.home, at, bytes).and_then(|()| {
            Page::decode(bytes, number).map_err(|error| self.error(run, number, error))
        });
        let is_news = || self.recovery().is_some_and(|recovery| !recovery.has(run));
        if page.is_err() && is_news() {
            self.examine(run);
        }
        page
    }

    fn error(&self, run: &RunEntry, number: u64, error: FormatError) -> Error {
        format_error(self.home.label(), error.at(page_offset(run, number)))
    }

    fn recovery(&self) -> Option<MutexGuard<'_, Recovery>> {
        let recovery = self.recovery.as_ref()?;
        Some(recovery.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Reads the run to the end and remembers it if it is damaged; says where.
    fn examine(&self, run: &RunEntry) -> Gaps {
        let mut recovery = self.recovery();
        if let Some(gaps) = recovery.as_ref().and_then(|recovery| recovery.gaps_of(run)) {
            return gaps.clone();
        }
        let mut pages = RunPages::new(Arc::clone(&self.home), run.clone(), READ_PAGES);
        let mut gaps = Gaps::default();
        while let Some((number, page)) = pages.next_page() {
            match page {
                Ok(entries) => gaps.whole(&entries),
                Err(_) if is_filter_slot(number) => gaps.damaged_filter(),
                Err(_) => gaps.damaged_slot(),
            }
        }
        let gaps = gaps.finish();
        if let Some(recovery) = recovery.as_mut().filter(|_| gaps.pages() > 0) {
            recovery.add(run, gaps.clone());
        }
        gaps
    }

    /// How many runs were found to be damaged.
    pub fn damaged_runs(&self) -> usize {
        self.recovery().map_or(0, |recovery| recovery.damaged_runs())
    }

    /// The position in `runs` of the oldest that was found to be damaged; their number if none
    /// was.
    pub fn first_damaged(&self, runs: &[RunEntry]) -> usize {
        let damaged =
            self.recovery().and_then(|recovery| runs.iter().position(|run| recovery.has(run)));
        damaged.unwrap_or(runs.len())
    }
}

fn page_offset(run: &RunEntry, number: u64) -> LogOffset {
    LogOffset(run.offset.0 + (number + 1) * BLOCK_LEN as u64)
}

/// Pages read at once of a run that is read from end to end.
const READ_PAGES: u64 = 64;

/// Pages read at once of all runs of a merge: 16 MiB, a page of each of as many as there may be.
const MERGE_PAGES: u64 = 4096;

/// Reads the pages of a run in order.
struct RunPages {
    home: Arc<dyn Home>,
    run: RunEntry,
    next_page: u64,
    read_pages: u64,
    window: Vec<u8>,
    window_start: u64,
}

impl RunPages {
    fn new(home: Arc<dyn Home>, run: RunEntry, read_pages: u64) -> RunPages {
        RunPages { home, run, next_page: 0, read_pages, window: Vec::new(), window_start: 0 }
    }

    /// The next page's number and entries (a filter has none), or what is wrong with it.
    fn next_page(&mut self) -> Option<(u64, Result<Vec<IndexEntry>, FormatError>)> {
        let (number, block) = (self.next_page, BLOCK_LEN as u64);
        if number >= self.run.page_count {
            return None;
        }
        if number >= self.window_start + self.window.len() as u64 / block {
            let end = self.run.page_count.min(number + self.read_pages);
            let (from, to) = (page_offset(&self.run, number), page_offset(&self.run, end));
            self.window = read_what_is_there(&*self.home, from.0, to.0);
            self.window_start = number;
        }
        self.next_page += 1;
        let from = ((number - self.window_start) * block) as usize;
        let page = Page::decode(&self.window[from..from + BLOCK_LEN], number);
        let entries = page.and_then(|page| page.entries());
        Some((number, entries.map_err(|error| error.at(page_offset(&self.run, number)))))
    }
}

/// Reads the entries of a run in order.
struct RunReader {
    pages: RunPages,
    /// Damaged pages that are made up for.
    may_skip: u64,
    entries: std::vec::IntoIter<IndexEntry>,
}

impl RunReader {
    fn next_entry(&mut self) -> Result<Option<IndexEntry>> {
        loop {
            if let Some(entry) = self.entries.next() {
                return Ok(Some(entry));
            }
            match self.pages.next_page() {
                None => return Ok(None),
                Some((_, Ok(entries))) => self.entries = entries.into_iter(),
                Some((_, Err(_))) if self.may_skip > 0 => self.may_skip -= 1,
                Some((_, Err(error))) => return Err(format_error(self.pages.home.label(), error)),
            }
        }
    }
}

/// Merges runs in id order; of equal ids the newest run's entry comes first. What damaged pages
/// held comes from the tables.
pub struct Merge {
    readers: Vec<RunReader>,
    recovery: Option<Recovery>,
    count_max: u64,
    last: Option<Id>,
    heads: std::collections::BinaryHeap<std::cmp::Reverse<(Id, std::cmp::Reverse<usize>, Held)>>,
}

/// An entry that takes no part in the heap's order.
struct Held(IndexEntry);

impl PartialEq for Held {
    fn eq(&self, _: &Held) -> bool {
        true
    }
}
impl Eq for Held {}
impl PartialOrd for Held {
    fn partial_cmp(&self, other: &Held) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Held {
    fn cmp(&self, _: &Held) -> std::cmp::Ordering {
        std::cmp::Ordering::Equal
    }
}

impl Merge {
    /// Of these `runs` of `index`, oldest first. Reads them once before it begins: the log has one
    /// direction, so that a merged run must not break off at a damaged page.
    ///
    /// # Errors
    /// Those of reading the first pages.
    pub fn new(index: &Index, runs: &[RunEntry]) -> Result<Merge> {
        let read_pages = (MERGE_PAGES / runs.len().max(1) as u64).clamp(1, READ_PAGES);
        let mut recovery = index.recovery().map(|recovery| recovery.anew());
        let mut readers = Vec::with_capacity(runs.len());
        // What the pages hold, whatever the commit says: room is made for as many.
        let mut count_max = 0;
        for run in runs {
            let gaps = index.examine(run);
            count_max += gaps.entries();
            let mut may_skip = 0;
            if let Some(recovery) = recovery.as_mut().filter(|_| gaps.pages() > 0) {
                may_skip = gaps.pages();
                recovery.add(run, gaps);
            }
            let pages = RunPages::new(Arc::clone(&index.home), run.clone(), read_pages);
            readers.push(RunReader { pages, may_skip, entries: Vec::new().into_iter() });
        }
        count_max += recovery.as_mut().map_or(0, Recovery::count_max);
        let heads = std::collections::BinaryHeap::new();
        let mut merge = Merge { readers, recovery, count_max, last: None, heads };
        for number in 0..merge.readers.len() {
            merge.refill(number)?;
        }
        Ok(merge)
    }

    /// No fewer than the entries that will come.
    pub fn count_max(&self) -> u64 {
        self.count_max
    }

    fn refill(&mut self, number: usize) -> Result<()> {
        if let Some(entry) = self.readers[number].next_entry()? {
            let key = (entry.id, std::cmp::Reverse(number), Held(entry));
            self.heads.push(std::cmp::Reverse(key));
        }
        Ok(())
    }

    /// The next entry; `None` at the end.
    ///
    /// # Errors
    /// Those of reading.
    pub fn next_entry(&mut self) -> Result<Option<IndexEntry>> {
        let head = self.heads.peek().map(|std::cmp::Reverse((id, _, _))| *id);
        let last = self.last;
        let recovered = self.recovery.as_mut().and_then(|recovery| recovery.next_behind(last));
        if let Some(entry) = recovered.filter(|entry| head.is_none_or(|head| entry.id <= head)) {
            self.last = Some(entry.id);
            return Ok(Some(entry));
        }
        let Some(std::cmp::Reverse((_, std::cmp::Reverse(number), Held(entry)))) = self.heads.pop()
        else {
            return Ok(None);
        };
        self.refill(number)?;
        self.last = Some(entry.id);
        Ok(Some(entry))
    }
}

/// A place in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Where the frame starts.
    pub frame: LogOffset,
    /// Bytes of the frame.
    pub frame_len: u32,
    /// The item's number in it.
    pub slot: u16,
    /// The item's kind.
    pub kind: u8,
}

const SHARDS: usize = 64;

/// What this session added: ids that are claimed, and their places once written.
///
/// A worker that finds an id neither here nor in the index claims it and stores the item; all
/// others refer to it. Sharded, because all workers ask for every changed chunk.
pub struct Fresh {
    shards: Vec<Mutex<HashMap<Id, Option<Place>>>>,
}

impl Default for Fresh {
    fn default() -> Self {
        Fresh { shards: (0..SHARDS).map(|_| Mutex::default()).collect() }
    }
}

impl Fresh {
    fn shard(&self, id: &Id) -> MutexGuard<'_, HashMap<Id, Option<Place>>> {
        let number = usize::from(id.0[31]) % SHARDS;
        self.shards[number].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether somebody claimed or stored it in this session.
    pub fn holds(&self, id: &Id) -> bool {
        self.shard(id).contains_key(id)
    }

    /// Claims the id; `false` if somebody else did before.
    pub fn claim(&self, id: &Id) -> bool {
        match self.shard(id).entry(*id) {
            std::collections::hash_map::Entry::Occupied(_) => false,
            std::collections::hash_map::Entry::Vacant(vacant) => {
                vacant.insert(None);
                true
            }
        }
    }

    /// Says where a claimed item was written.
    pub fn place(&self, id: &Id, place: Place) {
        self.shard(id).insert(*id, Some(place));
    }

    /// Where an item of this session is, once it was written.
    pub fn find(&self, id: &Id) -> Option<Place> {
        self.shard(id).get(id).copied().flatten()
    }

    /// How many ids it holds.
    pub fn len(&self) -> usize {
        self.shards
            .iter()
            .map(|shard| shard.lock().unwrap_or_else(PoisonError::into_inner).len())
            .sum()
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Forgets the claims of those who will not store what they claimed any more: of a pipeline that
    /// failed, once all its threads are gone.
    pub fn forget_claims(&self) {
        for shard in &self.shards {
            let mut shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            shard.retain(|_, place| place.is_some());
        }
    }

    /// Takes out all items that have been written, as index entries in ascending order.
    pub fn drain_placed(&self) -> Vec<IndexEntry> {
        let mut entries = Vec::with_capacity(self.len());
        for shard in &self.shards {
            let mut shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            entries.extend(shard.iter().filter_map(|(id, place)| Some(entry(*id, (*place)?))));
            shard.retain(|_, place| place.is_none());
            shard.shrink_to_fit();
        }
        entries.sort_unstable_by_key(|entry| entry.id);
        entries
    }
}

pub(super) fn entry(id: Id, place: Place) -> IndexEntry {
    IndexEntry {
        id,
        frame: place.frame,
        frame_len: place.frame_len,
        slot: place.slot,
        kind: place.kind,
        reserved: voltar_format::wire::Reserved,
    }
}

/// What need not be stored: what the archive holds and what this session stored.
#[derive(Clone)]
pub struct Known {
    /// What the archive holds and what this session spilled; `None` for a pipe.
    index: Option<Index>,
    fresh: Arc<Fresh>,
    /// What lies before is not taken for held.
    since: LogOffset,
}

impl Known {
    /// By this index and what this session adds.
    pub fn new(index: Option<Index>, fresh: Arc<Fresh>) -> Known {
        Known { index, fresh, since: LogOffset(0) }
    }

    /// The same, but for what the log holds before `since`: it is stored again.
    #[must_use]
    pub fn since(self, since: LogOffset) -> Known {
        Known { since, ..self }
    }

    /// See [`Fresh::forget_claims`].
    pub fn forget_claims(&self) {
        self.fresh.forget_claims();
    }

    /// Whether what was there before is taken for whole.
    pub fn trusts_archive(&self) -> bool {
        self.since == LogOffset(0)
    }

    /// Whether nobody has stored the item yet; then the caller has claimed it and stores it.
    ///
    /// # Errors
    /// Of the look-up. An index that is damaged where the item would be does not hold it: to
    /// store it once more is no harm.
    pub fn is_new(&self, id: &Id) -> Result<bool> {
        Ok(!self.fresh.holds(id) && !self.is_indexed(id)? && self.fresh.claim(id))
    }

    fn is_indexed(&self, id: &Id) -> Result<bool> {
        let Some(index) = &self.index else { return Ok(false) };
        match index.find(id) {
            Ok(found) => Ok(found.is_some_and(|entry| entry.frame >= self.since)),
            Err(error) if error.is_damage() => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// An item that its map or manifest names and that no run holds.
pub fn missing(label: &str, id: &Id) -> Error {
    let problem = format!("no run holds {id}");
    format_error(label, FormatError::new(Structure::Index, "F-067", problem))
}
