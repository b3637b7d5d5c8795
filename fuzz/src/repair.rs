//! Recomputes the checksums and hashes of an archive that was edited, front to back, so that a
//! reader gets past them to the checks behind.

use std::collections::BTreeMap;

use voltar_format::Id;
use voltar_format::checksum::{body_hash, commit_hash, crc32c, log_hash};
use voltar_format::commit::{CommitHead, RunEntry};
use voltar_format::frame::{ChunkEntry, FRAME_MAGIC, FrameHead};
use voltar_format::header::HeaderFields;
use voltar_format::index::PAGE_MAGIC;
use voltar_format::limits::{BLOCK_LEN, FRAME_ALIGN};
use voltar_format::record::{FLAG_SECOND_COPY, RECORD_MAGIC, RecordHead, RecordKind};
use voltar_format::segment::{FOOTER_MAGIC, Footer, FrameEntry, TABLE_MAGIC, TableHead};

use crate::wire::{put, u16_at, u32_at, u64_at};

/// What is repaired; what is not stays as the edits left it.
#[derive(Clone, Copy, Debug)]
pub struct Repair(u8);

impl Repair {
    /// Everything.
    pub const ALL: Repair = Repair(0xff);
    const HEADER: u8 = 1;
    const RECORDS: u8 = 2;
    const FRAMES: u8 = 4;
    const TABLES: u8 = 8;
    const FOOTERS: u8 = 16;
    const PAGES: u8 = 32;
    const COMMITS: u8 = 64;
    const CHAIN: u8 = 128;

    /// All but the parts whose bits are set.
    pub fn without(bits: u8) -> Repair {
        Repair(!bits)
    }

    fn has(self, bit: u8) -> bool {
        self.0 & bit != 0
    }
}

/// Repairs `bytes`.
pub fn repair(bytes: &mut [u8], what: Repair) {
    if what.has(Repair::HEADER) {
        seal_crc(bytes, 0, HeaderFields::LEN);
    }
    let mut log = Log::default();
    for at in (BLOCK_LEN..bytes.len()).step_by(BLOCK_LEN) {
        if !bytes[at..].starts_with(&RECORD_MAGIC) || bytes.len() - at < BLOCK_LEN {
            continue;
        }
        match RecordKind::from_number(bytes[at + 8]) {
            Some(RecordKind::Data) => log.sealed(at, segment(bytes, at, what)),
            Some(RecordKind::Index) => log.sealed(at, run(bytes, at, what)),
            Some(RecordKind::Commit) => commit(bytes, at, what, &mut log),
            _ => {}
        }
        if what.has(Repair::RECORDS) {
            seal_crc(bytes, at, RecordHead::LEN);
        }
    }
}

/// What later records say of earlier ones.
#[derive(Default)]
struct Log {
    since_commit: Vec<Id>,
    by_start: BTreeMap<u64, Id>,
    last: Id,
    current: Id,
    after_second: bool,
}

impl Log {
    fn sealed(&mut self, at: usize, hash: Option<Id>) {
        self.rotate();
        if let Some(hash) = hash {
            self.since_commit.push(hash);
            self.by_start.insert(at as u64, hash);
        }
    }

    fn rotate(&mut self) {
        if self.after_second {
            self.last = self.current;
            self.since_commit.clear();
            self.after_second = false;
        }
    }
}

/// CRC-32C of a structure in its own last four bytes.
fn seal_crc(bytes: &mut [u8], at: usize, len: usize) {
    if let Some(covered) = bytes.get(at..at + len - 4) {
        let crc = crc32c(covered);
        put(bytes, at + len - 4, &crc.to_le_bytes());
    }
}

/// A frame's two checksums; `None` if its lengths lead nowhere.
pub fn frame(bytes: &mut [u8], at: usize) -> Option<(u32, u32)> {
    let count = usize::from(u16_at(bytes, at + 6));
    let entries = at + FrameHead::LEN..at + FrameHead::LEN + ChunkEntry::LEN * count;
    let payload_len = u32_at(bytes, at + 12) as usize;
    let payload_crc = crc32c(bytes.get(entries.end..entries.end.checked_add(payload_len)?)?);
    put(bytes, at + 20, &payload_crc.to_le_bytes());
    let covered = [bytes.get(at..at + 60)?, bytes.get(entries)?].concat();
    let head_crc = crc32c(&covered);
    put(bytes, at + 60, &head_crc.to_le_bytes());
    Some((payload_crc, head_crc))
}

/// A table's two checksums; its length, or `None` if it leads nowhere.
pub fn table(bytes: &mut [u8], at: usize) -> Option<usize> {
    let frames = (u32_at(bytes, at + 8) as usize).checked_mul(FrameEntry::LEN)?;
    let items = (u32_at(bytes, at + 12) as usize).checked_mul(ChunkEntry::LEN)?;
    let len = TableHead::LEN.checked_add(frames)?.checked_add(items)?;
    let crc = crc32c(bytes.get(at + TableHead::LEN..at.checked_add(len)?)?);
    put(bytes, at + 16, &crc.to_le_bytes());
    seal_crc(bytes, at, TableHead::LEN);
    Some(len)
}

/// A footer's checksum.
pub fn footer(bytes: &mut [u8], at: usize) {
    seal_crc(bytes, at, Footer::LEN);
}

/// A record head's checksum.
pub fn record(bytes: &mut [u8], at: usize) {
    seal_crc(bytes, at, RecordHead::LEN);
}

/// The header's checksum.
pub fn header(bytes: &mut [u8]) {
    seal_crc(bytes, 0, HeaderFields::LEN);
}

/// A page's checksum.
pub fn page(bytes: &mut [u8]) {
    put(bytes, 4, &[0; 4]);
    let crc = crc32c(bytes);
    put(bytes, 4, &crc.to_le_bytes());
}

fn segment(bytes: &mut [u8], start: usize, what: Repair) -> Option<Id> {
    let mut at = start + RecordHead::LEN;
    let mut sums = Vec::new();
    while bytes.get(at..)?.starts_with(&FRAME_MAGIC) {
        if what.has(Repair::FRAMES) {
            sums.push(frame(bytes, at)?);
        }
        let stored_len = u32_at(bytes, at + 8).max(64) as usize;
        at = at.checked_add(stored_len.next_multiple_of(FRAME_ALIGN))?;
    }
    if !bytes.get(at..)?.starts_with(&TABLE_MAGIC) {
        return None;
    }
    if what.has(Repair::TABLES) {
        let frame_count = u32_at(bytes, at + 8) as usize;
        for (number, (payload, head)) in sums.iter().take(frame_count).enumerate() {
            let entry = at + TableHead::LEN + number * FrameEntry::LEN;
            put(bytes, entry + 16, &payload.to_le_bytes());
            put(bytes, entry + 20, &head.to_le_bytes());
        }
    }
    let table_len = match what.has(Repair::TABLES) {
        true => table(bytes, at)?,
        false => return None,
    };
    let end = (at - start + table_len + Footer::LEN).next_multiple_of(BLOCK_LEN) + start;
    let hash = body_hash(&[bytes.get(at..at + table_len)?]);
    seal_footer(bytes, end, hash, what)
}

fn seal_footer(bytes: &mut [u8], end: usize, hash: Id, what: Repair) -> Option<Id> {
    let at = end.checked_sub(Footer::LEN)?;
    if !bytes.get(at..)?.starts_with(&FOOTER_MAGIC) {
        return None;
    }
    if what.has(Repair::FOOTERS) {
        put(bytes, at + 64, &hash.0);
        footer(bytes, at);
    }
    Some(hash)
}

fn run(bytes: &mut [u8], start: usize, what: Repair) -> Option<Id> {
    let crc = crc32c(bytes.get(start + RecordHead::LEN..start + BLOCK_LEN)?);
    if what.has(Repair::RECORDS) {
        put(bytes, start + 88, &crc.to_le_bytes());
    }
    let mut end = start + BLOCK_LEN;
    while bytes.get(end..end + BLOCK_LEN)?.starts_with(&PAGE_MAGIC) {
        if what.has(Repair::PAGES) {
            page(&mut bytes[end..end + BLOCK_LEN]);
        }
        end += BLOCK_LEN;
    }
    let hash = body_hash(&[&bytes[start + BLOCK_LEN..end]]);
    seal_footer(bytes, end + BLOCK_LEN, hash, what)
}

fn commit(bytes: &mut [u8], start: usize, what: Repair, log: &mut Log) {
    let second = bytes[start + 9] & FLAG_SECOND_COPY != 0;
    if !second {
        log.rotate();
    }
    let head = start + RecordHead::LEN;
    let body_len = u64_at(bytes, start + 80);
    let end = usize::try_from(body_len).ok().and_then(|len| start.checked_add(len));
    let Some(end) = end.filter(|end| *end <= bytes.len() && *end >= head + CommitHead::LEN) else {
        return;
    };
    if what.has(Repair::CHAIN) {
        if u64_at(bytes, head + 56) != 0 {
            put(bytes, head + 72, &log.last.0);
        }
        put(bytes, head + 112, &log_hash(&log.since_commit).0);
        for number in 0..u32_at(bytes, head + 148) as usize {
            let entry = head + CommitHead::LEN + number * RunEntry::LEN;
            if entry + RunEntry::LEN > end {
                break;
            }
            if let Some(hash) = log.by_start.get(&u64_at(bytes, entry)) {
                put(bytes, entry + 48, &hash.0);
            }
        }
    }
    let hash = commit_hash(&bytes[head + 32..end]);
    if what.has(Repair::COMMITS) {
        put(bytes, head, &hash.0);
        let crc = crc32c(&bytes[head..end]);
        put(bytes, start + 88, &crc.to_le_bytes());
    }
    log.current = hash;
    log.after_second = second;
}

/// One copy of a commit at the start of `bytes`.
pub fn commit_copy(bytes: &mut [u8]) {
    if bytes.len() >= RecordHead::LEN {
        let what = Repair(Repair::COMMITS);
        commit(bytes, 0, what, &mut Log::default());
        record(bytes, 0);
    }
}
