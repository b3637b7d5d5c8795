//! Index runs: sorted tables from id to place, each searched with two small reads.
//!
//! ```text
//! | head block | group | group | … | last block: zeroes, footer |
//! group: | filter page | 63 slots, a page each |
//! ```
//!
//! Ids are spread over `buckets` by their first eight bytes, so that entries in ascending order
//! fill the slots in order: a run is built in one pass and merged in one pass. A slot's page holds
//! 85 entries; the writer aims at 64. What does not fit goes on in the next slot, and the page
//! says so. Each bucket has one 512-bit block in its group's filter page, so that an id the run
//! does not hold costs one read, almost always.

use std::collections::BTreeMap;
use std::convert::Infallible;

use crate::checksum::{BodyHasher, crc32c, crc32c_of};
use crate::error::{FormatError, Result, Structure};
use crate::frame::{ItemKind, head_len};
use crate::limits::{
    BLOCK_LEN, FRAME_ALIGN, FRAME_CHUNKS_MAX, FRAME_STORED_LEN_MAX, RUN_ENTRIES_MAX,
};
use crate::record::{RecordHead, RecordKind};
use crate::segment::{FOOTER_MAGIC, Footer};
use crate::units::{ArchiveId, Id, LogOffset};
use crate::wire::{Reserved, is_zero, on_disk, slice};

/// First bytes of every page of an index run.
pub const PAGE_MAGIC: [u8; 4] = *b"VIDX";
/// Entries in a page.
pub const PAGE_ENTRIES: usize = 85;
/// Entries per bucket that a writer aims at.
pub const BUCKET_FILL: u64 = 64;
/// Slots in a group, and filter blocks in a filter page.
pub const GROUP_SLOTS: u64 = 63;
/// Bytes of a filter block.
pub const FILTER_BLOCK_LEN: usize = 64;
/// Bits set per id in its filter block.
pub const FILTER_PROBES: u32 = 5;

const FLAG_OVERFLOW: u16 = 1 << 0;
const FLAG_FILTER: u16 = 1 << 1;

on_disk! {
    /// The 64 bytes behind an index run's record head: what a commit says of it, for salvage.
    pub struct RunHead[64] {
        /// Items that the writer counted on: the run holds at most as many, fewer where a merge
        /// dropped repeated ids.
        0 entry_count: u64,
        /// Buckets that ids are spread over.
        8 buckets: u64,
        /// Zero (the page count follows from the record's length).
        16 reserved: Reserved<48>,
    }
}

on_disk! {
    /// The first 16 bytes of a page.
    pub struct PageHead[16] {
        /// [`PAGE_MAGIC`].
        0 magic: [u8; 4],
        /// CRC-32C of the page with this field zero.
        4 crc: u32,
        /// Number of the page in its run, from 0 (low 32 bits): guards against misplaced pages.
        8 number: u32,
        /// Entries in the page; a filter page has none.
        12 count: u16,
        /// Bit 0: the next slot goes on with this one's entries. Bit 1: a filter page.
        14 flags: u16,
    }
}

on_disk! {
    /// Where an item is.
    pub struct IndexEntry[48] {
        /// The item's id.
        0 id: Id,
        /// Where its frame starts.
        32 frame: LogOffset,
        /// Bytes of the frame, so that one read fetches it.
        40 frame_len: u32,
        /// The item's number in the frame.
        44 slot: u16,
        /// An [`ItemKind`].
        46 kind: u8,
        /// Zero.
        47 reserved: Reserved<1>,
    }
}

impl IndexEntry {
    /// Whether the frame ends before the run at `run`, which speaks of it.
    ///
    /// # Errors
    /// F-068.
    pub fn check_before(&self, run: LogOffset) -> Result<()> {
        match self.frame.checked_add(self.frame_len.into()).is_some_and(|end| end <= run) {
            true => Ok(()),
            false => {
                let problem = format!("the frame of {} does not lie before the run", self.id);
                Err(FormatError::new(Structure::Index, "F-068", problem))
            }
        }
    }

    fn is_sane(&self) -> bool {
        let shortest = head_len(1).saturating_add(1) as u32;
        let first = BLOCK_LEN.saturating_add(RecordHead::LEN) as u64;
        (shortest..=FRAME_STORED_LEN_MAX).contains(&self.frame_len)
            && self.frame.0 >= first
            && self.frame.0.is_multiple_of(FRAME_ALIGN as u64)
            && self.frame.checked_add(self.frame_len.into()).is_some()
            && self.slot < FRAME_CHUNKS_MAX
            && ItemKind::from_number(self.kind).is_some()
    }
}

/// Buckets for this many entries.
pub fn buckets_for(entry_count: u64) -> u64 {
    entry_count.div_ceil(BUCKET_FILL).max(1)
}

/// Pages of a run with this many slots.
fn pages_for(slots: u64) -> u64 {
    slots.saturating_add(slots.div_ceil(GROUP_SLOTS))
}

/// Whether a run may have these numbers.
pub(crate) fn is_plausible(entry_count: u64, buckets: u64, page_count: u64) -> bool {
    let spare = entry_count.checked_div(PAGE_ENTRIES as u64).unwrap_or(0).saturating_add(1);
    (1..=RUN_ENTRIES_MAX).contains(&entry_count)
        && (1..=RUN_ENTRIES_MAX).contains(&buckets)
        && page_count >= pages_for(buckets)
        && page_count <= pages_for(buckets.saturating_add(spare))
}

/// The bucket of an id among `buckets`.
pub fn bucket_of(id: &Id, buckets: u64) -> u64 {
    let product = u128::from(id.prefix()).wrapping_mul(u128::from(buckets));
    product.wrapping_shr(64) as u64
}

/// The group of a slot, or of a bucket.
fn group_of(slot: u64) -> u64 {
    slot.checked_div(GROUP_SLOTS).unwrap_or(0)
}

/// The page of a slot.
pub fn page_of_slot(slot: u64) -> u64 {
    let group = group_of(slot);
    slot.saturating_add(group).saturating_add(1)
}

/// The slot of page `number`, which is not a filter page.
pub fn slot_of_page(number: u64) -> u64 {
    let group = number.checked_div(GROUP_SLOTS.saturating_add(1)).unwrap_or(0);
    number.saturating_sub(group).saturating_sub(1)
}

/// The filter page of a bucket.
pub fn filter_page_of(bucket: u64) -> u64 {
    group_of(bucket).saturating_mul(GROUP_SLOTS.saturating_add(1))
}

/// Whether page `number` is a filter page: the first of each group.
pub fn is_filter_slot(number: u64) -> bool {
    number.is_multiple_of(GROUP_SLOTS.saturating_add(1))
}

/// The bits of an id in its filter block, as byte and mask.
fn filter_bits(id: &Id) -> impl Iterator<Item = (usize, u8)> {
    let bytes = id.0.iter().skip(16).take(8);
    let bits = bytes.fold(0u64, |value, byte| (value << 8) | u64::from(*byte));
    (0..FILTER_PROBES).map(move |probe| {
        let bit = bits.wrapping_shr(probe.wrapping_mul(9)) & 511;
        ((bit >> 3) as usize, 1u8 << (bit & 7))
    })
}

/// A page that passed its checks.
#[derive(Clone, Debug)]
pub struct Page<'a> {
    head: PageHead,
    body: &'a [u8],
}

/// What a page says of an id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// Here it is.
    Here(IndexEntry),
    /// The run does not hold it.
    Absent,
    /// Look in the next slot.
    Next,
}

impl<'a> Page<'a> {
    /// Page `number` of a run, in `bytes`.
    ///
    /// # Errors
    /// F-060 (magic, checksum, length), F-061 (another page), F-064 (count, flags, rest not zero).
    pub fn decode(bytes: &'a [u8], number: u64) -> Result<Page<'a>> {
        let fail = |id, problem: String| FormatError::new(Structure::Index, id, problem);
        let (head_bytes, body) = bytes
            .split_at_checked(PageHead::LEN)
            .filter(|(head, _)| bytes.len() == BLOCK_LEN && head.starts_with(&PAGE_MAGIC))
            .ok_or_else(|| fail("F-060", format!("page {number} does not start like a page")))?;
        let head = PageHead::decode(head_bytes)
            .map_err(|_| fail("F-060", format!("page {number} is cut short")))?;
        let blank = PageHead { crc: 0, ..head };
        let crc = crc32c_of(&[&blank.encode(), body]);
        if crc != head.crc {
            let stored = head.crc;
            let problem = format!("page {number}: checksum {crc:#010x}, stored {stored:#010x}");
            return Err(fail("F-060", problem));
        }
        if head.number != (number & 0xffff_ffff) as u32 {
            return Err(fail("F-061", format!("page {number} says it is page {}", head.number)));
        }
        let used = usize::from(head.count).saturating_mul(IndexEntry::LEN);
        let is_filter = head.flags & FLAG_FILTER != 0;
        if is_filter != is_filter_slot(number) {
            return Err(fail("F-061", format!("page {number} is of the wrong kind")));
        }
        let consistent = head.flags & !(FLAG_FILTER | FLAG_OVERFLOW) == 0
            && usize::from(head.count) <= PAGE_ENTRIES
            && (head.flags & FLAG_OVERFLOW == 0 || usize::from(head.count) == PAGE_ENTRIES)
            && match is_filter {
                true => head.count == 0 && body.get(..48).is_some_and(is_zero),
                false => body.get(used..).is_some_and(is_zero),
            };
        match consistent {
            true => Ok(Page { head, body }),
            false => Err(fail("F-064", format!("page {number}: count or flags are wrong"))),
        }
    }

    /// Whether it is a filter page.
    pub fn is_filter(&self) -> bool {
        self.head.flags & FLAG_FILTER != 0
    }

    /// Whether the next slot goes on with this one's entries.
    pub fn overflows(&self) -> bool {
        self.head.flags & FLAG_OVERFLOW != 0
    }

    /// Whether a filter page lets this id of `bucket` through.
    pub fn may_hold(&self, id: &Id, bucket: u64) -> bool {
        let block = bucket.checked_rem(GROUP_SLOTS).unwrap_or(0) as usize;
        let from = block.saturating_mul(FILTER_BLOCK_LEN).saturating_add(48);
        let block = slice(self.body, from, FILTER_BLOCK_LEN).unwrap_or(&[]);
        filter_bits(id).all(|(byte, mask)| block.get(byte).is_some_and(|bits| bits & mask != 0))
    }

    /// The entries.
    ///
    /// # Errors
    /// F-062 if they do not ascend, F-066 if one is out of range.
    pub fn entries(&self) -> Result<Vec<IndexEntry>> {
        let fail = |id, problem: &str| {
            let problem = format!("page {}: {problem}", self.head.number);
            FormatError::new(Structure::Index, id, problem)
        };
        let entries: Vec<IndexEntry> = self
            .entry_bytes()
            .map(|bytes| {
                IndexEntry::decode(bytes)
                    .ok()
                    .filter(IndexEntry::is_sane)
                    .ok_or_else(|| fail("F-066", "an entry is out of range"))
            })
            .collect::<Result<_>>()?;
        let ascending = entries.iter().zip(entries.iter().skip(1)).all(|(a, b)| a.id < b.id);
        match ascending {
            true => Ok(entries),
            false => Err(fail("F-062", "its entries do not ascend")),
        }
    }

    /// What a slot's page says of an id.
    ///
    /// # Errors
    /// F-066 if the entry is out of range.
    pub fn find(&self, id: &Id) -> Result<Found> {
        let hit = self.entry_bytes().find(|bytes| bytes.starts_with(&id.0));
        match hit {
            None if self.overflows() && !self.ends_behind(id) => Ok(Found::Next),
            None => Ok(Found::Absent),
            Some(bytes) => IndexEntry::decode(bytes)
                .ok()
                .filter(IndexEntry::is_sane)
                .map(Found::Here)
                .ok_or_else(|| {
                    let problem = format!("page {}: an entry is out of range", self.head.number);
                    FormatError::new(Structure::Index, "F-066", problem)
                }),
        }
    }

    /// Whether the last entry comes after `id`, so that no later page can hold it.
    fn ends_behind(&self, id: &Id) -> bool {
        let last = self.entry_bytes().last().and_then(|bytes| bytes.get(..id.0.len()));
        last.is_some_and(|last| last > id.0.as_slice())
    }

    fn entry_bytes(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        self.body.chunks_exact(IndexEntry::LEN).take(usize::from(self.head.count))
    }
}

fn encode_page(number: u64, count: u16, flags: u16, body: &[u8]) -> Vec<u8> {
    let mut head =
        PageHead { magic: PAGE_MAGIC, crc: 0, number: (number & 0xffff_ffff) as u32, count, flags };
    let mut padded = body.to_vec();
    padded.resize(BLOCK_LEN.saturating_sub(PageHead::LEN), 0);
    head.crc = crc32c_of(&[&head.encode(), &padded]);
    let mut page = head.encode().to_vec();
    page.extend_from_slice(&padded);
    page
}

/// Builds a run from entries in ascending order, one pass. Holds the pages from the group of the
/// newest entry's bucket to its slot: of hashed ids those of a group or two, of crafted ones as
/// many as the entries fill, so that whoever takes ids from elsewhere bounds
/// [`pages_held`](RunBuilder::pages_held).
#[derive(Debug)]
pub struct RunBuilder {
    entry_count_max: u64,
    buckets: u64,
    pushed: u64,
    last: Option<Id>,
    slot: u64,
    page: Vec<u8>,
    groups: BTreeMap<u64, Group>,
    pages_out: u64,
    hasher: BodyHasher,
}

#[derive(Debug)]
struct Group {
    filter: Vec<u8>,
    slots: Vec<(Vec<u8>, u16)>,
}

impl Group {
    fn new() -> Group {
        Group { filter: vec![0; BLOCK_LEN.saturating_sub(PageHead::LEN)], slots: Vec::new() }
    }
}

/// What a finished run consists of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BuiltRun {
    /// Items in it.
    pub entry_count: u64,
    /// Buckets.
    pub buckets: u64,
    /// Pages.
    pub page_count: u64,
    /// Hash over the pages.
    pub body_hash: Id,
}

impl BuiltRun {
    /// Bytes of the record: the pages, a block before and a block behind.
    pub fn record_len(&self) -> u64 {
        self.page_count.saturating_add(2).saturating_mul(BLOCK_LEN as u64)
    }
}

impl RunBuilder {
    /// A builder with buckets for `entry_count_max` entries, 1..=2^36. A merge that drops
    /// duplicates pushes fewer: the true count is in what [`finish`](RunBuilder::finish) returns.
    pub fn new(entry_count_max: u64) -> RunBuilder {
        RunBuilder {
            entry_count_max,
            buckets: buckets_for(entry_count_max),
            pushed: 0,
            last: None,
            slot: 0,
            page: Vec::with_capacity(BLOCK_LEN),
            groups: BTreeMap::new(),
            pages_out: 0,
            hasher: BodyHasher::new(),
        }
    }

    /// Adds the next entry; `write` gets each page that is finished, in order. An entry whose id
    /// equals the one before is dropped: both places hold the same bytes.
    ///
    /// # Errors
    /// Those of `write`; the builder is of no use afterwards.
    ///
    /// # Panics
    /// In debug builds, if entries do not ascend or there are more than promised.
    pub fn push<E>(
        &mut self,
        entry: &IndexEntry,
        write: &mut impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        if self.last == Some(entry.id) {
            return Ok(());
        }
        debug_assert!(self.last.is_none_or(|last| last < entry.id));
        debug_assert!(self.pushed < self.entry_count_max);
        self.last = Some(entry.id);
        self.pushed = self.pushed.saturating_add(1);
        let bucket = bucket_of(&entry.id, self.buckets);
        while self.slot < bucket {
            self.close_page(false);
            self.write_before(group_of(self.slot), write)?;
        }
        if self.page.len() >= PAGE_ENTRIES.saturating_mul(IndexEntry::LEN) {
            self.close_page(true);
        }
        self.page.extend_from_slice(&entry.encode());
        self.write_before(group_of(bucket), write)?;
        self.set_filter(&entry.id, bucket);
        Ok(())
    }

    /// How many closed pages wait for the filter of their group.
    pub fn pages_held(&self) -> usize {
        self.groups.values().map(|group| group.slots.len()).sum()
    }

    fn close_page(&mut self, overflows: bool) {
        let body = std::mem::replace(&mut self.page, Vec::with_capacity(BLOCK_LEN));
        let flags = if overflows { FLAG_OVERFLOW } else { 0 };
        self.group(group_of(self.slot)).slots.push((body, flags));
        self.slot = self.slot.saturating_add(1);
    }

    fn group(&mut self, number: u64) -> &mut Group {
        self.groups.entry(number).or_insert_with(Group::new)
    }

    fn set_filter(&mut self, id: &Id, bucket: u64) {
        let block = bucket.checked_rem(GROUP_SLOTS).unwrap_or(0) as usize;
        let from = block.saturating_mul(FILTER_BLOCK_LEN).saturating_add(48);
        let filter = &mut self.group(group_of(bucket)).filter;
        for (byte, mask) in filter_bits(id) {
            if let Some(bits) = filter.get_mut(from.saturating_add(byte)) {
                *bits |= mask;
            }
        }
    }

    /// Writes the groups before `number`: no later entry touches their filters or slots.
    fn write_before<E>(
        &mut self,
        number: u64,
        write: &mut impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        while let Some(group) = self.groups.first_entry().filter(|group| *group.key() < number) {
            let group = group.remove();
            self.write_group(&group, write)?;
        }
        Ok(())
    }

    fn write_group<E>(
        &mut self,
        group: &Group,
        write: &mut impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let filter = (group.filter.as_slice(), FLAG_FILTER, 0);
        let slots = group.slots.iter().map(|(body, flags)| {
            let count = body.len().checked_div(IndexEntry::LEN).unwrap_or(0) as u16;
            (body.as_slice(), *flags, count)
        });
        for (body, flags, count) in std::iter::once(filter).chain(slots) {
            let page = encode_page(self.pages_out, count, flags, body);
            self.hasher.add(&page);
            self.pages_out = self.pages_out.saturating_add(1);
            write(&page)?;
        }
        Ok(())
    }

    /// Ends the run: `write` gets the remaining pages.
    ///
    /// # Errors
    /// Those of `write`.
    pub fn finish<E>(
        mut self,
        write: &mut impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<BuiltRun, E> {
        while self.slot < self.buckets || !self.page.is_empty() {
            self.close_page(false);
            self.write_before(group_of(self.slot), write)?;
        }
        self.write_before(u64::MAX, write)?;
        Ok(BuiltRun {
            entry_count: self.pushed,
            buckets: self.buckets,
            page_count: self.pages_out,
            body_hash: self.hasher.finish(),
        })
    }
}

/// A whole run in memory, of entries in ascending order: its pages and its numbers.
pub fn build_run(entries: &[IndexEntry]) -> (Vec<u8>, BuiltRun) {
    let mut pages = Vec::new();
    let mut write = |page: &[u8]| {
        pages.extend_from_slice(page);
        Ok::<(), Infallible>(())
    };
    let mut builder = RunBuilder::new(entries.len() as u64);
    let Ok(()) = entries.iter().try_for_each(|entry| builder.push(entry, &mut write));
    let Ok(built) = builder.finish(&mut write);
    (pages, built)
}

/// The first block of an index run's record. `head` is the record's head, its `body_crc` and
/// `crc` still to be filled in.
pub fn head_block(head: &RecordHead, run: &RunHead) -> Vec<u8> {
    let mut rest = run.encode().to_vec();
    rest.resize(BLOCK_LEN.saturating_sub(RecordHead::LEN), 0);
    let mut block = RecordHead { body_crc: crc32c(&rest), ..head.clone() }.seal().to_vec();
    block.extend_from_slice(&rest);
    block
}

/// Checks the first block of an index run's record, whose head was decoded from it, and returns
/// the run's numbers.
///
/// # Errors
/// F-064.
pub fn check_head_block(block: &[u8], head: &RecordHead) -> Result<RunHead> {
    let fail = |problem: String| FormatError::new(Structure::Index, "F-064", problem);
    let rest = block.get(RecordHead::LEN..BLOCK_LEN).ok_or_else(|| fail("cut short".into()))?;
    let crc = crc32c(rest);
    if crc != head.body_crc {
        let stored = head.body_crc;
        return Err(fail(format!("first block's checksum {crc:#010x}, stored {stored:#010x}")));
    }
    let run = RunHead::decode(rest).map_err(|field| fail(format!("field {field}")))?;
    match rest.get(RunHead::LEN..).is_some_and(is_zero) {
        true => Ok(run),
        false => Err(fail("the rest of its first block is not zero".into())),
    }
}

/// The last block of an index run's record.
pub fn foot_block(
    archive_id: ArchiveId,
    start: LogOffset,
    sequence: u64,
    run: &BuiltRun,
) -> Vec<u8> {
    let footer = Footer {
        magic: FOOTER_MAGIC,
        kind: RecordKind::Index as u8,
        reserved_a: Reserved,
        archive_id,
        start,
        len: run.record_len(),
        sequence,
        table_offset: 0,
        table_len: 0,
        body_hash: run.body_hash,
        frame_count: 0,
        chunk_count: 0,
        reserved_b: Reserved,
        crc: 0,
    };
    let mut block = vec![0; BLOCK_LEN.saturating_sub(Footer::LEN)];
    block.extend_from_slice(&footer.seal());
    block
}

/// Checks that the last block of an index run is zero but for its footer.
///
/// # Errors
/// F-034.
pub fn check_foot_block(block: &[u8]) -> Result<()> {
    let padding = block.len().saturating_sub(Footer::LEN);
    match slice(block, 0, padding).is_some_and(is_zero) {
        true => Ok(()),
        false => {
            let problem = "the padding before its footer is not zero";
            Err(FormatError::new(Structure::Footer, "F-034", problem))
        }
    }
}

/// Checks that ids come in the slots where a look-up would find them.
#[derive(Debug)]
pub struct OrderCheck {
    buckets: u64,
    last: Option<Id>,
    overflowed: bool,
}

impl OrderCheck {
    /// For a run with this many buckets.
    pub fn new(buckets: u64) -> OrderCheck {
        OrderCheck { buckets, last: None, overflowed: false }
    }

    /// Checks the page of `slot`; pages come in order. `filter` is its group's filter page.
    ///
    /// # Errors
    /// F-062 (order), F-063 (an entry where no look-up would find it), F-065 (filter), F-066.
    pub fn page(&mut self, slot: u64, page: &Page<'_>) -> Result<Vec<IndexEntry>> {
        let fail = |id, problem: &str| {
            FormatError::new(Structure::Index, id, format!("slot {slot}: {problem}"))
        };
        let entries = page.entries()?;
        for entry in &entries {
            if self.last.is_some_and(|last| last >= entry.id) {
                return Err(fail("F-062", "it does not follow the slot before"));
            }
            let bucket = bucket_of(&entry.id, self.buckets);
            if bucket > slot || (bucket < slot && !self.overflowed) {
                return Err(fail("F-063", "an entry lies where no look-up would find it"));
            }
            self.last = Some(entry.id);
        }
        self.overflowed = page.overflows();
        Ok(entries)
    }

    /// Checks the end of the run: the last slot has nothing to go on with.
    ///
    /// # Errors
    /// F-064.
    pub fn finish(&self) -> Result<()> {
        match self.overflowed {
            false => Ok(()),
            true => {
                let problem = "the last page says that another follows";
                Err(FormatError::new(Structure::Index, "F-064", problem))
            }
        }
    }
}

/// The filter pages that the entries of a run walked in order may need: the last one, and the one
/// before it, whose buckets may go on behind the last.
#[derive(Debug, Default)]
pub struct Filters([Option<(u64, Box<[u8]>)>; 2]);

impl Filters {
    /// Takes the next filter page and its number in the run; `None` if it is damaged.
    pub fn keep(&mut self, page: Option<(u64, &[u8])>) {
        let [before, last] = &mut self.0;
        *before = std::mem::replace(last, page.map(|(number, bytes)| (number, Box::from(bytes))));
    }

    /// Checks that the filter of an entry's bucket, if it is one of those kept, lets it through.
    /// One that is damaged was told already; to one further back leads only a run of full pages,
    /// which [`OrderCheck`] vouches for.
    ///
    /// # Errors
    /// F-065.
    pub fn check(&self, id: &Id, buckets: u64) -> Result<()> {
        let wanted = filter_page_of(bucket_of(id, buckets));
        match self.0.iter().flatten().find(|(number, _)| *number == wanted) {
            Some((number, bytes)) => check_filter(&Page::decode(bytes, *number)?, id, buckets),
            None => Ok(()),
        }
    }
}

/// Checks that a filter page lets an entry of its group through.
///
/// # Errors
/// F-065.
pub fn check_filter(filter: &Page<'_>, id: &Id, buckets: u64) -> Result<()> {
    match filter.is_filter() && filter.may_hold(id, bucket_of(id, buckets)) {
        true => Ok(()),
        false => {
            let problem = format!("the filter does not let {id} through");
            Err(FormatError::new(Structure::Index, "F-065", problem))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checksum::chunk_id;

    fn entry(n: u64) -> IndexEntry {
        IndexEntry {
            id: chunk_id(&n.to_le_bytes()),
            frame: LogOffset(8192 + n * 64),
            frame_len: 200,
            slot: (n % 256) as u16,
            kind: 1,
            reserved: Reserved,
        }
    }

    fn build(mut entries: Vec<IndexEntry>) -> (Vec<u8>, BuiltRun) {
        entries.sort_by_key(|entry| entry.id);
        build_run(&entries)
    }

    fn page(pages: &[u8], number: u64) -> Page<'_> {
        let at = number as usize * BLOCK_LEN;
        Page::decode(&pages[at..at + BLOCK_LEN], number).unwrap()
    }

    fn look_up(pages: &[u8], run: &BuiltRun, id: &Id) -> Option<IndexEntry> {
        let bucket = bucket_of(id, run.buckets);
        if !page(pages, filter_page_of(bucket)).may_hold(id, bucket) {
            return None;
        }
        for slot in bucket.. {
            match page(pages, page_of_slot(slot)).find(id).unwrap() {
                Found::Here(entry) => return Some(entry),
                Found::Absent => return None,
                Found::Next => {}
            }
        }
        None
    }

    fn check_all(pages: &[u8], run: &BuiltRun) -> Result<u64> {
        let mut order = OrderCheck::new(run.buckets);
        let mut count = 0;
        let mut slot = 0;
        for number in 0..run.page_count {
            let at = number as usize * BLOCK_LEN;
            let page = Page::decode(&pages[at..at + BLOCK_LEN], number)?;
            if !page.is_filter() {
                for entry in order.page(slot, &page)? {
                    let filter = filter_page_of(bucket_of(&entry.id, run.buckets));
                    check_filter(&self::page(pages, filter), &entry.id, run.buckets)?;
                    count += 1;
                }
                slot += 1;
            }
        }
        Ok(count)
    }

    #[test]
    fn finds_all_it_holds_and_little_else() {
        for count in [1, 2, 63, 64, 65, 85, 86, 5000, 40_000u64] {
            let (pages, run) = build((0..count).map(entry).collect());
            assert_eq!(pages.len() as u64, run.page_count * BLOCK_LEN as u64);
            assert!(is_plausible(run.entry_count, run.buckets, run.page_count), "{run:?}");
            for n in 0..count {
                assert_eq!(look_up(&pages, &run, &entry(n).id), Some(entry(n)), "{n} of {count}");
            }
            for n in count..count + 1000 {
                assert_eq!(look_up(&pages, &run, &entry(n).id), None);
            }
            assert_eq!(check_all(&pages, &run).unwrap(), count);
        }
    }

    #[test]
    fn filter_turns_most_strangers_away() {
        let (pages, run) = build((0..20_000).map(entry).collect());
        let through = (20_000..30_000u64)
            .map(|n| entry(n).id)
            .filter(|id| {
                let bucket = bucket_of(id, run.buckets);
                page(&pages, filter_page_of(bucket)).may_hold(id, bucket)
            })
            .count();
        assert!(through < 500, "{through} of 10000 strangers pass");
    }

    #[test]
    fn crowded_buckets_overflow_across_groups() {
        // All ids share one prefix: every entry belongs to one bucket.
        let crowd = |n: u64| {
            let mut e = entry(n);
            e.id.0[..8].fill(0x77);
            e
        };
        let (pages, run) = build((0..20_000).map(crowd).collect());
        for n in (0..20_000).step_by(97) {
            assert_eq!(look_up(&pages, &run, &crowd(n).id), Some(crowd(n)));
        }
        assert_eq!(check_all(&pages, &run).unwrap(), 20_000);
        assert!(is_plausible(run.entry_count, run.buckets, run.page_count), "{run:?}");
    }

    #[test]
    fn pages_of_a_gap_are_written_as_they_are_closed() {
        let at = |prefix| {
            let mut entry = entry(0);
            entry.id.0.fill(prefix);
            entry
        };
        let mut builder = RunBuilder::new(1_000_000);
        builder.push(&at(0), &mut |_| Err("nothing is finished yet")).unwrap();
        builder.push(&at(0xff), &mut |_| Err("full")).unwrap_err();
        assert_eq!(builder.slot, GROUP_SLOTS, "of {} buckets", builder.buckets);
        assert_eq!(builder.pages_held(), 0);
    }

    #[test]
    fn pages_wait_for_the_filter_of_their_group() {
        let mut builder = RunBuilder::new(2 * PAGE_ENTRIES as u64 + 1);
        for n in 0..=2 * PAGE_ENTRIES as u64 {
            let mut entry = IndexEntry { id: Id::default(), ..entry(n) };
            (entry.id.0[30], entry.id.0[31]) = ((n >> 8) as u8, n as u8);
            builder.push(&entry, &mut |_| Err("the first group is not complete")).unwrap();
        }
        assert_eq!(builder.pages_held(), 2, "two are full, the third is being filled");
    }

    #[test]
    fn a_run_has_a_page_for_each_bucket_and_no_more() {
        for (count_max, page_count) in [(1, 2), (64, 2), (65, 3), (63 * 64, 64), (63 * 64 + 1, 66)]
        {
            let mut pages = Vec::new();
            let mut write = |page: &[u8]| {
                pages.extend_from_slice(page);
                Ok::<(), Infallible>(())
            };
            let mut builder = RunBuilder::new(count_max);
            let only = IndexEntry { id: Id::default(), ..entry(0) };
            let Ok(()) = builder.push(&only, &mut write);
            let Ok(run) = builder.finish(&mut write);
            assert_eq!((run.entry_count, run.page_count), (1, page_count));
            assert_eq!(check_all(&pages, &run).unwrap(), 1);
        }
    }

    #[test]
    fn slots_and_their_pages_lead_to_one_another() {
        for slot in 0..5 * GROUP_SLOTS {
            assert!(!is_filter_slot(page_of_slot(slot)));
            assert_eq!(slot_of_page(page_of_slot(slot)), slot);
        }
    }

    #[test]
    fn numbers_of_a_run_fit_one_another() {
        assert!(is_plausible(9, 1, 2) && is_plausible(9, 1, 3));
        let most = RUN_ENTRIES_MAX;
        assert!(is_plausible(most, most, pages_for(most)));
        let wrong = [
            (0, 1, 2),
            (most + 1, 1, 2),
            (9, 0, 2),
            (9, most + 1, pages_for(most + 1)),
            (9, 1, 1),
            (9, 1, 4),
        ];
        for (entries, buckets, pages) in wrong {
            assert!(!is_plausible(entries, buckets, pages), "{entries} {buckets} {pages}");
        }
    }

    #[test]
    fn a_full_page_is_followed_only_by_greater_ids() {
        let mut entries: Vec<IndexEntry> = (0..=PAGE_ENTRIES as u64).map(entry).collect();
        entries.sort_by_key(|entry| entry.id);
        let missing = entries.remove(PAGE_ENTRIES / 2);
        let body: Vec<u8> = entries.iter().flat_map(IndexEntry::encode).collect();
        let bytes = encode_page(1, PAGE_ENTRIES as u16, FLAG_OVERFLOW, &body);
        let page = Page::decode(&bytes, 1).unwrap();
        assert_eq!(page.find(&missing.id).unwrap(), Found::Absent);
        assert_eq!(page.find(&Id([0xff; 32])).unwrap(), Found::Next);
    }

    #[test]
    fn duplicates_are_dropped() {
        let (pages, run) = build((0..100).chain(0..100).map(entry).collect());
        assert_eq!(run.entry_count, 100);
        assert_eq!(check_all(&pages, &run).unwrap(), 100);
    }

    #[test]
    fn f_060_f_061_f_064_every_bit_of_a_page_is_covered() {
        let (pages, _) = build((0..60).map(entry).collect());
        for number in 0..2u64 {
            let at = number as usize * BLOCK_LEN;
            let good = &pages[at..at + BLOCK_LEN];
            for bit in 0..BLOCK_LEN * 8 {
                let mut bad = good.to_vec();
                bad[bit / 8] ^= 1 << (bit % 8);
                Page::decode(&bad, number).expect_err("a flipped bit passed");
            }
        }
        let moved = Page::decode(&pages[..BLOCK_LEN], 5).unwrap_err();
        assert_eq!(moved.requirement, "F-061");
    }

    #[test]
    fn f_060_a_page_is_a_block_that_starts_with_its_magic() {
        let sealed = |mut bytes: Vec<u8>| {
            bytes[4..8].fill(0);
            let crc = crc32c(&bytes).to_le_bytes();
            bytes[4..8].copy_from_slice(&crc);
            Page::decode(&bytes, 1).map(|_| ()).map_err(|error| error.requirement)
        };
        let good = encode_page(1, 0, 0, &[]);
        assert_eq!(sealed(good.clone()), Ok(()));
        assert_eq!(sealed([b"VIDY", &good[4..]].concat()), Err("F-060"));
        assert_eq!(sealed([&good[..], &[0]].concat()), Err("F-060"));
        assert_eq!(sealed(good[..BLOCK_LEN - 1].to_vec()), Err("F-060"));
    }

    fn forged(count: u16, flags: u16, body: &[u8]) -> Result<Vec<IndexEntry>> {
        let bytes = encode_page(1, count, flags, body);
        let page = Page::decode(&bytes, 1)?;
        OrderCheck::new(1).page(0, &page)
    }

    #[test]
    fn f_062_entries_ascend() {
        let mut two = [entry(1), entry(2)];
        two.sort_by_key(|entry| std::cmp::Reverse(entry.id));
        let body = [two[0].encode(), two[1].encode()].concat();
        assert_eq!(forged(2, 0, &body).unwrap_err().requirement, "F-062");
        let twice = encode_page(1, 2, 0, &[entry(1).encode(), entry(1).encode()].concat());
        let page = Page::decode(&twice, 1).unwrap();
        assert_eq!(page.entries().unwrap_err().requirement, "F-062");
    }

    #[test]
    fn f_063_entries_lie_where_look_ups_find_them() {
        let bytes = encode_page(2, 1, 0, &entry(1).encode());
        let page = Page::decode(&bytes, 2).unwrap();
        let error = OrderCheck::new(1).page(1, &page).unwrap_err();
        assert_eq!(error.requirement, "F-063");
    }

    #[test]
    fn f_064_counts_and_flags() {
        assert_eq!(forged(86, 0, &[]).unwrap_err().requirement, "F-064");
        assert_eq!(forged(0, 4, &[]).unwrap_err().requirement, "F-064");
        assert_eq!(forged(0, 0, &[1]).unwrap_err().requirement, "F-064");
        assert_eq!(forged(1, 2, &entry(1).encode()).unwrap_err().requirement, "F-061");
        assert_eq!(forged(1, 1, &entry(1).encode()).unwrap_err().requirement, "F-064");
        for (count, flags) in [(1, 2), (0, 2 | 1), (85, 2 | 1)] {
            let bytes = encode_page(0, count, flags, &[]);
            assert_eq!(Page::decode(&bytes, 0).unwrap_err().requirement, "F-064", "a filter page");
        }
        let order = OrderCheck { buckets: 1, last: None, overflowed: true };
        assert_eq!(order.finish().unwrap_err().requirement, "F-064");
    }

    #[test]
    fn f_065_filter_lets_entries_through() {
        let bytes = encode_page(0, 0, 2, &[]);
        let page = Page::decode(&bytes, 0).unwrap();
        let error = check_filter(&page, &entry(1).id, 1).unwrap_err();
        assert_eq!(error.requirement, "F-065");
    }

    #[test]
    fn f_065_two_filters_are_kept_at_a_time() {
        let (pages, run) = build((0..20_000).map(entry).collect());
        let id = entry(1).id;
        let own = filter_page_of(bucket_of(&id, run.buckets));
        let at = own as usize * BLOCK_LEN;
        let blank = encode_page(own, 0, FLAG_FILTER, &[]);
        let check = |kept: &[Option<(u64, &[u8])>]| {
            let mut filters = Filters::default();
            kept.iter().for_each(|page| filters.keep(*page));
            filters.check(&id, run.buckets).map_err(|error| error.requirement)
        };
        let other = Some((own + 64, &pages[..BLOCK_LEN]));
        assert_eq!(check(&[Some((own, &pages[at..at + BLOCK_LEN])), other]), Ok(()));
        assert_eq!(check(&[Some((own, &blank))]), Err("F-065"));
        assert_eq!(check(&[Some((own, &blank)), other]), Err("F-065"));
        assert_eq!(check(&[Some((own, &blank)), other, None]), Ok(()), "kept longer than needed");
    }

    #[test]
    fn f_066_entries_are_in_range() {
        let wrong = [
            IndexEntry { slot: 256, ..entry(1) },
            IndexEntry { kind: 0, ..entry(1) },
            IndexEntry { frame_len: u32::MAX, ..entry(1) },
            IndexEntry { frame_len: 112, ..entry(1) },
            IndexEntry { frame: LogOffset(8193), ..entry(1) },
            IndexEntry { frame: LogOffset(4096), ..entry(1) },
            IndexEntry { frame: LogOffset(u64::MAX - 63), ..entry(1) },
        ];
        for wrong in wrong {
            let bytes = encode_page(1, 1, 0, &wrong.encode());
            let page = Page::decode(&bytes, 1).unwrap();
            assert_eq!(page.find(&wrong.id).unwrap_err().requirement, "F-066");
            assert_eq!(page.entries().unwrap_err().requirement, "F-066");
        }
    }

    #[test]
    fn f_068_a_run_speaks_of_what_lies_before_it() {
        let entry = entry(1);
        let end = entry.frame.checked_add(entry.frame_len.into()).unwrap();
        entry.check_before(end).unwrap();
        let endless = IndexEntry { frame: LogOffset(u64::MAX), ..entry };
        for (entry, run) in [(entry, LogOffset(end.0 - 1)), (endless, LogOffset(u64::MAX))] {
            assert_eq!(entry.check_before(run).unwrap_err().requirement, "F-068");
        }
    }

    #[test]
    fn f_064_every_bit_of_the_first_block_is_covered() {
        let (archive, session) = (ArchiveId([1; 16]), crate::units::SessionId([1; 16]));
        let head = RecordHead::new(RecordKind::Index, archive, session, LogOffset(4096), 1);
        let run = RunHead { entry_count: 5, buckets: 1, reserved: Reserved };
        let good = head_block(&head, &run);
        let check = |block: &[u8]| {
            let (head, _) = RecordHead::decode_at(block, LogOffset(4096), None)?;
            check_head_block(block, &head)
        };
        assert_eq!(check(&good).unwrap(), run);
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            check(&bad).expect_err("a flipped bit passed");
        }
        assert_eq!(check(&good[..500]).unwrap_err().requirement, "F-064");
    }

    #[test]
    fn blocks_around_the_pages() {
        let (_, run) = build((0..60).map(entry).collect());
        let foot = foot_block(ArchiveId([1; 16]), LogOffset(4096), 3, &run);
        check_foot_block(&foot).unwrap();
        let end = LogOffset(4096 + (run.page_count + 2) * 4096);
        let (footer, kind) = Footer::decode_at(&foot, end, None).unwrap();
        assert_eq!((kind, footer.body_hash), (RecordKind::Index, run.body_hash));
        let mut bad = foot;
        bad[7] = 1;
        assert_eq!(check_foot_block(&bad).unwrap_err().requirement, "F-034");
    }
}
