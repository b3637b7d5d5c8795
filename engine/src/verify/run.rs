//! Index runs: every page in order, against the run's own numbers, filters and hash.

use std::ops::Range;

use voltar_format::checksum::BodyHasher;
use voltar_format::commit::RunEntry;
use voltar_format::index::{Filters, OrderCheck, PAGE_ENTRIES, Page, is_filter_slot, slot_of_page};
use voltar_format::limits::BLOCK_LEN;
use voltar_format::wire::Reserved;
use voltar_format::{FormatError, LogOffset, Structure};

use super::findings::{Finding, Loss};
use super::plan::{BLOCK, PlannedRun};

/// One run being checked, page after page.
pub(super) struct RunCheck {
    run: PlannedRun,
    buckets: Option<u64>,
    hasher: BodyHasher,
    entries: u64,
    order: Option<OrderCheck>,
    filters: Filters,
    overflows: bool,
    is_damaged: bool,
}

/// What is known of a run that was checked.
pub(super) struct Facts {
    /// As a commit would name it.
    pub entry: RunEntry,
    /// Whether it is whole, so that the entry can be compared.
    pub is_whole: bool,
}

impl RunCheck {
    /// Begins with `run`.
    pub fn new(run: PlannedRun) -> RunCheck {
        let listed = run.listed.as_ref().map(|entry| entry.buckets);
        let buckets = listed.or(run.head.as_ref().map(|head| head.buckets)).filter(|n| *n > 0);
        RunCheck {
            buckets,
            hasher: BodyHasher::new(),
            entries: 0,
            order: buckets.map(OrderCheck::new),
            filters: Filters::default(),
            overflows: false,
            is_damaged: run.head.is_none() || run.body_hash.is_none(),
            run,
        }
    }

    /// Takes the next page; `checked` is what its own check said.
    pub fn page(
        &mut self,
        number: u64,
        bytes: &[u8],
        checked: Result<(), FormatError>,
        found: &mut Vec<Finding>,
    ) {
        let at = self.run.page_at(number);
        self.hasher.add(bytes);
        let page = checked.and_then(|()| Page::decode(bytes, number));
        let result = match (&page, is_filter_slot(number)) {
            (Ok(_), true) => {
                self.filters.keep(Some((number, bytes)));
                Ok(())
            }
            (Ok(page), false) => self.slot(number, page),
            (Err(error), is_filter) => {
                if is_filter {
                    self.filters.keep(None);
                } else {
                    self.order = None;
                    self.overflows = true;
                }
                Err(error.clone())
            }
        };
        if let Err(error) = result {
            self.is_damaged = true;
            // Entries that lie wrong for the number of buckets: the page, or the number, unless
            // the commit vouches for it.
            let is_doubtful = error.requirement == "F-063" && self.run.listed.is_none();
            let start = if is_doubtful { self.run.range.start } else { at.start };
            let error = error.at(LogOffset(at.start));
            found.push(Finding::of(&error, start..at.end, Loss::Nothing));
        }
    }

    fn slot(&mut self, number: u64, page: &Page<'_>) -> Result<(), FormatError> {
        let overflowed = std::mem::replace(&mut self.overflows, page.overflows());
        let slot = slot_of_page(number);
        let entries = match (&mut self.order, self.buckets) {
            (Some(order), _) => order.page(slot, page)?,
            (None, Some(buckets)) => {
                // Behind a damaged page nobody can say which entries may go on here; behind the
                // first page that is full of its own, all is as before.
                let entries = page.entries()?;
                if !page.overflows() && !overflowed {
                    self.order = Some(OrderCheck::new(buckets));
                }
                entries
            }
            (None, None) => page.entries()?,
        };
        self.entries = self.entries.saturating_add(entries.len() as u64);
        if page.overflows() && (entries.len() != PAGE_ENTRIES || number + 1 == self.run.pages()) {
            let problem = format!("page {number}: it overflows, and is not full or is the last");
            return Err(FormatError::new(Structure::Index, "F-064", problem));
        }
        let Some(buckets) = self.buckets else { return Ok(()) };
        entries.iter().try_for_each(|entry| self.filters.check(&entry.id, buckets))
    }

    /// Ends the run: its numbers and its hash.
    pub fn finish(mut self, found: &mut Vec<Finding>) -> Facts {
        let head_at = self.run.range.start..self.run.range.start + BLOCK;
        let foot_at = self.run.range.end - BLOCK..self.run.range.end;
        if let Some(problem) = self.head_problem() {
            self.problem("F-064", problem, head_at, found);
        }
        let hash = self.hasher.finish();
        if self.run.body_hash.is_some_and(|stored| stored != hash) && !self.is_damaged {
            self.problem("F-035", "its hash over the pages does not match", foot_at, found);
        }
        let entry = RunEntry {
            offset: LogOffset(self.run.range.start),
            len: self.run.range.end - self.run.range.start,
            entry_count: self.entries,
            buckets: self.buckets.unwrap_or(0),
            page_count: self.run.pages(),
            reserved: Reserved,
            body_hash: hash,
        };
        Facts { entry, is_whole: !self.is_damaged }
    }

    /// What the run's head says that is not so.
    fn head_problem(&self) -> Option<&'static str> {
        let head = self.run.head.as_ref()?;
        let listed = self.run.listed.as_ref();
        if listed.is_some_and(|entry| entry.buckets != head.buckets) || head.buckets == 0 {
            return Some("its number of buckets is not what the commit says");
        }
        // A page that cannot be read may hold any number.
        let counted =
            listed.map(|entry| entry.entry_count).or((!self.is_damaged).then_some(self.entries));
        match counted {
            Some(counted) if counted > head.entry_count => {
                Some("it holds more entries than it says")
            }
            _ => None,
        }
    }

    fn problem(
        &mut self,
        id: &'static str,
        problem: &str,
        at: Range<u64>,
        found: &mut Vec<Finding>,
    ) {
        let error = FormatError::new(Structure::Index, id, problem).at(LogOffset(at.start));
        found.push(Finding::of(&error, at, Loss::Nothing));
    }
}

/// Checks pages by themselves: what workers do, so that only their order is left.
pub(super) fn check_pages(first: u64, bytes: &[u8]) -> Vec<(u64, FormatError)> {
    let pages = (first..).zip(bytes.chunks_exact(BLOCK_LEN));
    pages.filter_map(|(number, bytes)| Some((number, Page::decode(bytes, number).err()?))).collect()
}
