//! From id to place: look-ups in the index runs, and the table of what this session added.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use voltar_format::commit::RunEntry;
use voltar_format::index::{Found, IndexEntry, Page, bucket_of, filter_page_of, page_of_slot};
use voltar_format::limits::BLOCK_LEN;
use voltar_format::{FormatError, Id, LogOffset, Structure};

use super::{Home, format_error, read_into};
use crate::error::Result;

/// The index runs of an archive, newest last. Look-ups read pages of 4 KiB with plain reads: the
/// page cache keeps the hot ones, and an I/O error is an error, not a signal.
#[derive(Clone)]
pub struct Index {
    home: Arc<dyn Home>,
    runs: Arc<RwLock<Arc<Vec<RunEntry>>>>,
}

impl Index {
    /// Over these runs.
    pub fn new(home: Arc<dyn Home>, runs: Vec<RunEntry>) -> Index {
        Index { home, runs: Arc::new(RwLock::new(Arc::new(runs))) }
    }

    /// The runs, newest last.
    pub fn runs(&self) -> Arc<Vec<RunEntry>> {
        Arc::clone(&self.runs.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Replaces the runs; look-ups under way finish with the old ones.
    pub fn set_runs(&self, runs: Vec<RunEntry>) {
        *self.runs.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(runs);
    }

    /// Where the item is; `None` if the archive does not hold it.
    ///
    /// # Errors
    /// `Io`, or `Damaged` naming the page.
    pub fn find(&self, id: &Id) -> Result<Option<IndexEntry>> {
        for run in self.runs().iter().rev() {
            if let Some(entry) = self.find_in(run, id)? {
                return Ok(Some(entry));
            }
        }
        Ok(None)
    }

    fn find_in(&self, run: &RunEntry, id: &Id) -> Result<Option<IndexEntry>> {
        let mut bytes = [0; BLOCK_LEN];
        let bucket = bucket_of(id, run.buckets);
        let filter = self.page(run, filter_page_of(bucket), &mut bytes)?;
        if !filter.may_hold(id, bucket) {
            return Ok(None);
        }
        let mut slot = bucket;
        while page_of_slot(slot) < run.page_count {
            let number = page_of_slot(slot);
            let found = self.page(run, number, &mut bytes)?.find(id);
            match found.map_err(|error| self.error(run, number, error))? {
                Found::Here(entry) => return Ok(Some(entry)),
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
        let block = BLOCK_LEN as u64;
        read_into(&*self.home, LogOffset(run.offset.0 + (number + 1) * block), bytes)?;
        Page::decode(bytes, number).map_err(|error| self.error(run, number, error))
    }

    fn error(&self, run: &RunEntry, number: u64, error: FormatError) -> crate::error::Error {
        let at = LogOffset(run.offset.0 + (number + 1) * BLOCK_LEN as u64);
        format_error(self.home.label(), error.at(at))
    }
}

/// Reads all entries of a run in order, a page at a time.
pub struct RunReader {
    home: Arc<dyn Home>,
    run: RunEntry,
    next_page: u64,
    window: Vec<u8>,
    window_start: u64,
    entries: std::vec::IntoIter<IndexEntry>,
}

/// Pages read at once by a [`RunReader`].
const READ_PAGES: u64 = 64;

impl RunReader {
    /// From the run's first entry.
    pub fn new(home: Arc<dyn Home>, run: RunEntry) -> RunReader {
        let entries = Vec::new().into_iter();
        RunReader { home, run, next_page: 0, window: Vec::new(), window_start: 0, entries }
    }

    /// The next entry; `None` at the end.
    ///
    /// # Errors
    /// `Io`, or `Damaged` naming the page.
    pub fn next_entry(&mut self) -> Result<Option<IndexEntry>> {
        loop {
            if let Some(entry) = self.entries.next() {
                return Ok(Some(entry));
            }
            if self.next_page >= self.run.page_count {
                return Ok(None);
            }
            self.load_page()?;
        }
    }

    fn load_page(&mut self) -> Result<()> {
        let number = self.next_page;
        let block = BLOCK_LEN as u64;
        let window_pages = self.window.len() as u64 / block;
        if number >= self.window_start + window_pages {
            let pages = READ_PAGES.min(self.run.page_count - number);
            self.window.resize((pages * block) as usize, 0);
            let at = LogOffset(self.run.offset.0 + (number + 1) * block);
            read_into(&*self.home, at, &mut self.window)?;
            self.window_start = number;
        }
        let from = ((number - self.window_start) * block) as usize;
        let at = LogOffset(self.run.offset.0 + (number + 1) * block);
        let entries = Page::decode(&self.window[from..from + BLOCK_LEN], number)
            .and_then(|page| match page.is_filter() {
                true => Ok(Vec::new()),
                false => page.entries(),
            })
            .map_err(|error| format_error(self.home.label(), error.at(at)))?;
        self.entries = entries.into_iter();
        self.next_page += 1;
        Ok(())
    }
}

/// Merges runs in id order; of equal ids the newest run's entry comes first.
pub struct Merge {
    readers: Vec<RunReader>,
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
    /// Of `runs`, oldest first.
    ///
    /// # Errors
    /// Those of reading the first pages.
    pub fn new(home: &Arc<dyn Home>, runs: &[RunEntry]) -> Result<Merge> {
        let readers: Vec<RunReader> =
            runs.iter().map(|run| RunReader::new(Arc::clone(home), run.clone())).collect();
        let mut merge = Merge { readers, heads: std::collections::BinaryHeap::new() };
        for number in 0..merge.readers.len() {
            merge.refill(number)?;
        }
        Ok(merge)
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
        let Some(std::cmp::Reverse((_, std::cmp::Reverse(number), Held(entry)))) = self.heads.pop()
        else {
            return Ok(None);
        };
        self.refill(number)?;
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

fn entry(id: Id, place: Place) -> IndexEntry {
    IndexEntry {
        id,
        frame: place.frame,
        frame_len: place.frame_len,
        slot: place.slot,
        kind: place.kind,
        reserved: voltar_format::wire::Reserved,
    }
}

/// An item that its map or manifest names and that no run holds.
pub fn missing(label: &str, id: &Id) -> crate::error::Error {
    let problem = format!("no run holds {id}");
    format_error(label, FormatError::new(Structure::Index, "F-067", problem))
}
