//! A writing session: appends segments and index runs, and ends with a commit or not at all.

use std::sync::Arc;

use voltar_format::checksum::LogHasher;
use voltar_format::commit::{Commit, NewCommit, RunEntry};
use voltar_format::frame::Frame;
use voltar_format::header::Header;
use voltar_format::index::{IndexEntry, RunBuilder, RunHead, buckets_for, foot_block, head_block};
use voltar_format::limits::{
    BLOCK_LEN, FRAME_ALIGN, RUNS_MAX, SEGMENT_CHUNKS_MAX, SEGMENT_LEN_TARGET,
};
use voltar_format::manifest::Manifest;
use voltar_format::record::{RecordHead, RecordKind};
use voltar_format::segment::Table;
use voltar_format::wire::Reserved;
use voltar_format::{ArchiveId, Id, LogOffset, SessionId};

use super::index::{Fresh, Index, Merge, Place};
use super::log::LogWriter;
use super::open::Archive;
use super::{Home, format_error};
use crate::error::{Error, ErrorKind, Result};
use crate::io::buffer::Buffer;
use crate::options::IoEngine;

/// Items in the session's table at which they are written out as an index run. Each costs about
/// 100 bytes of memory at worst.
const SPILL_ITEMS: usize = 384 << 10;

/// Runs of one size class that become one.
const MERGE_RUNS: usize = 8;

/// Pages that the index being written may hold back in memory: 32 MiB. Ids are hashes, of which
/// it holds back a group or two, some hundred pages.
const HELD_PAGES_MAX: usize = 8 << 10;

/// Writes in flight.
pub const WRITE_DEPTH: u32 = 8;

/// What a session appends to.
pub struct Session {
    archive_id: ArchiveId,
    session: SessionId,
    label: String,
    log: LogWriter,
    home: Option<Arc<dyn Home>>,
    index: Option<Index>,
    fresh: Arc<Fresh>,
    runs: Vec<RunEntry>,
    last_commit: Option<Commit>,
    previous_record: LogOffset,
    sequence: u64,
    log_hash: LogHasher,
    segment_count: u32,
    segment: Option<Segment>,
    start: LogOffset,
    /// Incompatible and compatible features in use.
    features: (u64, u64),
}

/// The data segment being filled.
struct Segment {
    start: LogOffset,
    table: Table,
}

/// Where a session begins: behind what is committed and what was adopted.
pub struct Beginning {
    /// The records since the last commit that were adopted: their body hashes, in order.
    pub log_hash: LogHasher,
    /// How many they are.
    pub segment_count: u32,
    /// Where the log goes on.
    pub position: LogOffset,
    /// The last record before.
    pub previous_record: LogOffset,
    /// The next record's number.
    pub sequence: u64,
}

impl Session {
    /// Appends to an archive in a file, behind `beginning`. The file ends there or is cut there.
    ///
    /// # Errors
    /// If the I/O engine cannot be set up.
    pub fn in_home(
        archive: &Archive,
        index: Index,
        fresh: Arc<Fresh>,
        beginning: Beginning,
        engine: IoEngine,
        depth: u32,
        dry_run: bool,
    ) -> Result<Session> {
        let home = Arc::clone(&archive.home);
        let log = match dry_run {
            true => LogWriter::to_nowhere(beginning.position),
            false => LogWriter::to_home(Arc::clone(&home), beginning.position, engine, depth)?,
        };
        Ok(Session {
            archive_id: archive.id,
            session: SessionId(random_bytes()),
            label: archive.label().to_owned(),
            log,
            home: (!dry_run).then_some(home),
            runs: index.runs().to_vec(),
            index: Some(index),
            fresh,
            last_commit: archive.last.clone(),
            previous_record: beginning.previous_record,
            sequence: beginning.sequence,
            log_hash: beginning.log_hash,
            segment_count: beginning.segment_count,
            segment: None,
            start: beginning.position,
            features: features_of(archive),
        })
    }

    /// Writes a fresh archive to a pipe, or, for a dry run, nowhere.
    ///
    /// # Errors
    /// Of writing the header.
    pub fn in_stream(
        log: LogWriter,
        label: &str,
        created_ns: i64,
        fresh: Arc<Fresh>,
    ) -> Result<Session> {
        let mut log = log;
        let header = new_header(created_ns);
        log.append(&header.encode())?;
        Ok(Session {
            archive_id: header.archive_id,
            session: SessionId(random_bytes()),
            label: label.to_owned(),
            start: log.position(),
            log,
            home: None,
            index: None,
            fresh,
            runs: Vec::new(),
            last_commit: None,
            previous_record: LogOffset(0),
            sequence: 1,
            log_hash: LogHasher::new(),
            segment_count: 0,
            segment: None,
            features: (0, 0),
        })
    }

    /// Bytes appended so far.
    pub fn appended(&self) -> u64 {
        self.log.position().0 - self.start.0
    }

    /// Appends a frame that consists of these pieces (head with entries, payload) and remembers
    /// where its items are.
    ///
    /// # Errors
    /// Of writing. A frame that does not decode is a defect of ours and an error, never stored.
    pub fn append_frame(&mut self, head: &[u8], payload: &[u8]) -> Result<()> {
        self.begin_frame(head, payload)?;
        self.log.append(payload)?;
        self.pad_to(FRAME_ALIGN as u64)
    }

    /// As [`append_frame`](Self::append_frame), for a payload that fills the first `len` bytes of
    /// a buffer nobody needs any more.
    ///
    /// # Errors
    /// As [`append_frame`](Self::append_frame).
    pub fn append_frame_of(&mut self, head: &[u8], payload: Buffer, len: usize) -> Result<()> {
        self.begin_frame(head, &payload[..len])?;
        self.log.append_buffer(payload, len)?;
        self.pad_to(FRAME_ALIGN as u64)
    }

    /// Makes room, remembers the frame, and appends its head.
    fn begin_frame(&mut self, head: &[u8], payload: &[u8]) -> Result<()> {
        self.make_room(head, payload)?;
        let position = self.log.position();
        let segment = self.segment.as_ref().map(|segment| segment.start);
        let start = segment.ok_or_else(|| internal("no segment is open"))?;
        self.remember(head, payload, position, start)?;
        self.log.append(head)
    }

    /// Opens a segment if there is none, seals the one that is full.
    fn make_room(&mut self, head: &[u8], payload: &[u8]) -> Result<()> {
        let frame_len = (head.len() + payload.len()) as u64;
        let is_full = self.segment.as_ref().is_some_and(|segment| {
            let len = self.log.position().0 - segment.start.0;
            len + frame_len > SEGMENT_LEN_TARGET
                || segment.table.chunks.len() >= SEGMENT_CHUNKS_MAX as usize
        });
        if is_full {
            self.seal_segment()?;
            if self.fresh.len() >= SPILL_ITEMS {
                self.spill()?;
            }
        }
        if self.segment.is_none() {
            let start = self.log.position();
            let head = self.record_head(RecordKind::Data).seal();
            self.log.append(&head)?;
            self.segment = Some(Segment { start, table: Table::default() });
        }
        Ok(())
    }

    fn remember(
        &mut self,
        head: &[u8],
        payload: &[u8],
        position: LogOffset,
        start: LogOffset,
    ) -> Result<()> {
        let frame =
            Frame::decode_parts(head, payload).map_err(|error| format_error(&self.label, error))?;
        for (slot, entry) in (0u16..).zip(&frame.entries) {
            let place =
                Place { frame: position, frame_len: frame.head.stored_len, slot, kind: entry.kind };
            self.fresh.place(&entry.id, place);
        }
        let offset =
            u32::try_from(position.0 - start.0).map_err(|_| internal("segment too long"))?;
        if let Some(segment) = &mut self.segment {
            segment.table.push(offset, &frame);
        }
        Ok(())
    }

    fn pad_to(&mut self, align: u64) -> Result<()> {
        const ZEROES: [u8; BLOCK_LEN] = [0; BLOCK_LEN];
        let short = self.log.position().0.next_multiple_of(align) - self.log.position().0;
        self.log.append(&ZEROES[..short as usize])
    }

    /// Ends the open segment, if there is one, with its table and footer.
    ///
    /// # Errors
    /// Of writing.
    pub fn seal_segment(&mut self) -> Result<()> {
        let Some(segment) = self.segment.take() else { return Ok(()) };
        let table_offset = (self.log.position().0 - segment.start.0) as u32;
        debug_assert_eq!(u64::from(table_offset), segment.table.offset_in_segment());
        let tail = segment.table.seal(self.archive_id, segment.start, self.sequence, table_offset);
        self.log.append(&tail)?;
        let block = &tail[tail.len().saturating_sub(BLOCK_LEN)..];
        let (footer, _) = voltar_format::segment::Footer::decode_at(
            block,
            self.log.position(),
            Some(self.archive_id),
        )
        .map_err(|error| format_error(&self.label, error))?;
        self.record_done(segment.start, &footer.body_hash);
        Ok(())
    }

    fn record_done(&mut self, start: LogOffset, body_hash: &voltar_format::Id) {
        self.log_hash.add(body_hash);
        self.segment_count += 1;
        self.previous_record = start;
        self.sequence += 1;
    }

    fn record_head(&self, kind: RecordKind) -> RecordHead {
        let (archive, position) = (self.archive_id, self.log.position());
        RecordHead {
            last_commit: self.last_commit.as_ref().map_or(LogOffset(0), |commit| commit.offset),
            previous: self.previous_record,
            ..RecordHead::new(kind, archive, self.session, position, self.sequence)
        }
    }

    /// Writes the session's table out as an index run, and merges runs where that pays.
    fn spill(&mut self) -> Result<()> {
        self.seal_segment()?;
        let entries = self.fresh.drain_placed();
        if entries.is_empty() {
            return Ok(());
        }
        let mut entries = entries.into_iter();
        let count = entries.len() as u64;
        let run = self.write_run(count, || Ok(entries.next()))?;
        self.runs.push(run);
        self.merge_runs()?;
        // From here on look-ups find these items in the runs, so the runs must be readable. Those
        // of a dry run are nowhere: what it spilled counts as new when it comes again.
        self.log.flush()?;
        if let (Some(index), Some(_)) = (&self.index, &self.home) {
            index.set_runs(self.runs.clone());
        }
        Ok(())
    }

    /// Keeps the number of runs logarithmic. Needs to read what it wrote, which a pipe cannot.
    fn merge_runs(&mut self) -> Result<()> {
        if let (Some(_), Some(index)) = (&self.home, self.index.clone()) {
            // A merged run may be the one that makes a merge of its own class due. A damaged run
            // is not kept: with all behind it, it is merged into a whole one.
            loop {
                let from = merge_from(&self.runs).min(index.first_damaged(&self.runs));
                if from + 1 >= self.runs.len() {
                    break;
                }
                self.log.flush()?;
                let merged: Vec<RunEntry> = self.runs.split_off(from);
                let mut merge = Merge::new(&index, &merged)?;
                let run = self.write_run(merge.count_max(), || merge.next_entry())?;
                self.runs.push(run);
            }
        }
        self.check_run_count()
    }

    fn check_run_count(&self) -> Result<()> {
        match self.runs.len() < RUNS_MAX as usize {
            true => Ok(()),
            false => {
                Err(Error::new(ErrorKind::InvalidRequest, "too much for one archive in a pipe")
                    .hint("write to a file: there the index is merged as it grows"))
            }
        }
    }

    /// Appends an index run of at most `count` entries in ascending order.
    fn write_run(
        &mut self,
        count: u64,
        mut next: impl FnMut() -> Result<Option<IndexEntry>>,
    ) -> Result<RunEntry> {
        let start = self.log.position();
        let mut builder = RunBuilder::new(count);
        let buckets = buckets_for(count);
        let head = self.record_head(RecordKind::Index);
        let numbers = RunHead { entry_count: count, buckets, reserved: Reserved };
        self.log.append(&head_block(&head, &numbers))?;
        let log = &mut self.log;
        let mut append = |page: &[u8]| log.append(page);
        while let Some(entry) = next()? {
            builder.push(&entry, &mut append)?;
            if builder.pages_held() > HELD_PAGES_MAX {
                return Err(crowded(&self.label, &entry.id));
            }
        }
        let built = builder.finish(&mut append)?;
        self.log.append(&foot_block(self.archive_id, start, self.sequence, &built))?;
        self.record_done(start, &built.body_hash);
        Ok(RunEntry::new(start, &built))
    }

    /// Seals what is open, makes everything durable, and makes the snapshot exist.
    ///
    /// # Errors
    /// Of writing or syncing; `Internal` if no reader would understand the commit, or something that
    /// was to be stored was not. The snapshot then does not exist.
    pub fn commit(mut self, manifest: &[u8]) -> Result<(Commit, u64)> {
        self.spill()?;
        if !self.fresh.is_empty() {
            // Somebody referred to it because somebody else had claimed to store it.
            let what = "an item that the snapshot needs was claimed and never stored";
            return Err(internal(what).on(&self.label));
        }
        self.seal_segment()?;
        self.log.sync()?;
        let (bytes, commit) = NewCommit {
            archive_id: self.archive_id,
            session: self.session,
            offset: self.log.position(),
            sequence: self.sequence,
            previous_record: self.previous_record,
            incompatible: self.features.0,
            compatible: self.features.1,
            previous: self.last_commit.as_ref(),
            log_hash: self.log_hash.finish(),
            segment_count: self.segment_count,
            runs: &self.runs,
            manifest,
        }
        .encode();
        self.check_readable(&bytes, &commit)?;
        self.log.append(&bytes)?;
        self.log.sync()?;
        let appended = self.appended();
        Ok((commit, appended))
    }

    /// Reads both copies of a commit the way a reader will (W-19): one that nobody could read would
    /// be taken for torn, and cut off by the next session.
    fn check_readable(&self, bytes: &[u8], commit: &Commit) -> Result<()> {
        let refused =
            |error| internal("the commit would not be readable").on(&self.label).because(error);
        for (copy, start) in bytes.chunks(commit.len as usize).zip([0, commit.len]) {
            let at = LogOffset(commit.offset.0 + start);
            let read = Commit::decode_at(copy, at, Some(self.archive_id)).map_err(refused)?;
            if read != *commit {
                return Err(internal("the commit would read as another one").on(&self.label));
            }
        }
        match commit.manifest.is_empty() {
            true => Ok(()),
            false => Manifest::decode(&commit.manifest).map(drop).map_err(refused),
        }
    }

    /// Gives up without a commit; what was sealed is made durable as far as that goes, so that
    /// the next session finds it. Returns how many bytes there are to be found.
    pub fn abandon(mut self) -> u64 {
        // Errors here change nothing: the session has failed already, and what is not found
        // sealed is stored again.
        let (sealed, flushed) = (self.seal_segment(), self.log.flush());
        sealed.and(flushed).map_or(0, |()| self.appended())
    }
}

/// The features an archive uses already: what its header or its last commit says.
fn features_of(archive: &Archive) -> (u64, u64) {
    let header = archive.header.as_ref().map_or((0, 0), |h| (h.incompatible, h.compatible));
    let last = archive.last.as_ref().map(|c| (c.head.incompatible, c.head.compatible));
    let last = last.unwrap_or((0, 0));
    (header.0 | last.0, header.1 | last.1)
}

/// From which run on a merge is due: the newest runs whose size class is no higher than the very
/// newest one's, once there are [`MERGE_RUNS`] of them.
///
/// Each entry is rewritten at most once per class, so a log grows by few dead copies of its index,
/// and there are fewer than `MERGE_RUNS` runs of each class.
fn merge_from(runs: &[RunEntry]) -> usize {
    let Some(newest) = runs.last() else { return 0 };
    let class = size_class(newest);
    let tail = runs.iter().rev().take_while(|run| size_class(run) <= class).count();
    match tail >= MERGE_RUNS {
        true => runs.len() - tail,
        false => runs.len(),
    }
}

/// The size class of a run: how often its entries can be divided by [`MERGE_RUNS`].
fn size_class(run: &RunEntry) -> u32 {
    run.entry_count.max(1).ilog(MERGE_RUNS as u64)
}

/// A header for a new archive.
pub fn new_header(created_ns: i64) -> Header {
    Header::new(ArchiveId(random_bytes()), created_ns)
}

fn random_bytes() -> [u8; 16] {
    use rand::Rng;
    let mut bytes = [0; 16];
    rand::rng().fill_bytes(&mut bytes);
    bytes
}

fn crowded(label: &str, id: &Id) -> Error {
    Error::new(ErrorKind::Damaged, format!("too many ids of the index lie close to {id}"))
        .on(label)
        .hint("its index was not made by voltar; what it holds can be restored, but not added to")
}

fn internal(message: &str) -> Error {
    Error::new(ErrorKind::Internal, message)
}

#[cfg(test)]
mod tests {
    use super::super::index::entry as index_entry;
    use super::*;
    use crate::device::Device;
    use crate::device::memory::MemoryDevice;

    use voltar_format::frame::{ChunkEntry, ItemKind, head_len};
    use voltar_format::index::PAGE_ENTRIES;
    use voltar_format::limits::FRAME_RAW_LEN_MAX;
    use voltar_format::{FormatError, Structure};

    fn run(entry_count: u64) -> RunEntry {
        RunEntry {
            offset: LogOffset(4096),
            len: 0,
            entry_count,
            buckets: 1,
            page_count: 2,
            reserved: Reserved,
            body_hash: Id::default(),
        }
    }

    /// An archive in memory without snapshots.
    fn archive() -> (MemoryDevice, Archive) {
        let device = MemoryDevice::new(0).growing();
        device.write_at(&new_header(0).encode(), 0).unwrap();
        (device.clone(), Archive::open(Arc::new(device)).unwrap())
    }

    fn session(archive: &Archive, index: &Index, dry_run: bool) -> Session {
        session_at(archive.end(), archive, index, dry_run)
    }

    /// One whose first record stands at `position`.
    fn session_at(position: LogOffset, archive: &Archive, index: &Index, dry_run: bool) -> Session {
        let beginning = Beginning {
            log_hash: LogHasher::new(),
            segment_count: 0,
            position,
            previous_record: LogOffset(0),
            sequence: 1,
        };
        let fresh = Arc::new(Fresh::default());
        let engine = IoEngine::Blocking;
        Session::in_home(archive, index.clone(), fresh, beginning, engine, 2, dry_run).unwrap()
    }

    #[test]
    fn w_19_a_commit_that_no_reader_would_take_is_not_written() {
        let (device, archive) = archive();
        let insane = RunEntry { page_count: 1, ..run(100) };
        let index = Index::new(Arc::clone(&archive.home), vec![insane]);
        let error = session(&archive, &index, false).commit(b"").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Internal);
        let index = Index::new(Arc::clone(&archive.home), Vec::new());
        let error = session(&archive, &index, false).commit(b"no manifest").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Internal);
        assert_eq!(device.len().unwrap(), 4096);
        session(&archive, &index, false).commit(b"").unwrap();
    }

    #[test]
    fn w_17_a_segment_is_sealed_when_it_is_full_and_not_before() {
        let (_, archive) = archive();
        let index = Index::new(Arc::clone(&archive.home), Vec::new());
        let payload = vec![7; FRAME_RAW_LEN_MAX as usize];
        let frame_len = (head_len(1) + payload.len()).next_multiple_of(FRAME_ALIGN) as u64;
        let frames = (SEGMENT_LEN_TARGET - RecordHead::LEN as u64) / frame_len;
        // Wherever in the log it stands: only its own length counts.
        for start in [archive.end(), LogOffset(1 << 40)] {
            let mut session = session_at(start, &archive, &index, true);
            for number in 0..2 * frames + 1 {
                let id = chunk(number).id;
                let entry = ChunkEntry::new(ItemKind::Chunk, id, number, payload.len());
                session.append_stored(&[entry], &payload).unwrap();
                assert_eq!(u64::from(session.segment_count), number / frames, "frame {number}");
            }
        }
    }

    #[test]
    fn w_18_features_of_the_header_and_of_the_last_commit_are_carried_over() {
        let (_, archive) = archive();
        let index = Index::new(Arc::clone(&archive.home), Vec::new());
        let (mut commit, _) = session(&archive, &index, false).commit(b"").unwrap();
        // Each has a bit that the other lacks, and both have one.
        (commit.head.incompatible, commit.head.compatible) = (0b1010, 0b1100);
        let header = Header { incompatible: 0b0011, compatible: 0b0110, ..new_header(0) };
        let lost = || Err(FormatError::new(Structure::Header, "F-002", "lost"));
        for (header, last, features) in [
            (lost(), None, (0, 0)),
            (Ok(header.clone()), None, (0b0011, 0b0110)),
            (lost(), Some(commit.clone()), (0b1010, 0b1100)),
            (Ok(header), Some(commit), (0b1011, 0b1110)),
        ] {
            assert_eq!(features_of(&Archive { header, last, ..archive.clone() }), features);
        }
    }

    #[test]
    fn crowded_ids_of_a_forged_index_are_refused_before_they_fill_memory() {
        let (_, archive) = archive();
        let index = Index::new(Arc::clone(&archive.home), Vec::new());
        let mut session = session(&archive, &index, true);
        let place = Place { frame: LogOffset(4096), frame_len: 200, slot: 0, kind: 1 };
        let (count, mut next) = (1u64 << 20, 0u64);
        let error = session.write_run(count, || {
            next += 1;
            let mut id = Id::default();
            id.0[24..].copy_from_slice(&next.swap_bytes().to_le_bytes());
            Ok((next <= count).then(|| index_entry(id, place)))
        });
        assert_eq!(error.unwrap_err().kind(), ErrorKind::Damaged);
        let held = HELD_PAGES_MAX * PAGE_ENTRIES;
        assert!(next as usize <= held + 2 * PAGE_ENTRIES, "{next} entries");
    }

    #[test]
    fn a_dry_run_looks_nothing_up_in_runs_that_it_never_wrote() {
        let (device, archive) = archive();
        let index = Index::new(Arc::clone(&archive.home), Vec::new());
        let mut session = session(&archive, &index, true);
        let payload = [7; 256];
        let mut number = 0u64;
        while (number as usize) < SPILL_ITEMS + 2 * SEGMENT_CHUNKS_MAX as usize {
            let entries: Vec<ChunkEntry> = (0..256).map(|slot| chunk(number + slot)).collect();
            session.append_stored(&entries, &payload).unwrap();
            number += 256;
        }
        assert!(session.fresh.len() < SPILL_ITEMS, "it has spilled");
        assert!(index.find(&chunk(0).id).unwrap().is_none());
        assert_eq!(device.len().unwrap(), 4096);
    }

    /// A chunk of one byte with an id of its own.
    fn chunk(number: u64) -> ChunkEntry {
        let mut id = [0; 32];
        id[..8].copy_from_slice(&number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
        id[24..].copy_from_slice(&number.to_le_bytes());
        ChunkEntry::new(ItemKind::Chunk, Id(id), number, 1)
    }

    #[test]
    fn merges_keep_the_number_of_runs_logarithmic() {
        let seven = vec![run(100); 7];
        assert_eq!(merge_from(&seven), 7);
        assert_eq!(merge_from(&vec![run(100); 8]), 0);
        let behind_a_large_one = [vec![run(1_000_000)], vec![run(100); 8]].concat();
        assert_eq!(merge_from(&behind_a_large_one), 1);
        let (mut runs, mut written): (Vec<RunEntry>, u64) = (Vec::new(), 0);
        for step in 0..20_000u64 {
            let size = if step % 9 == 0 { 5000 } else { 100 };
            runs.push(run(size));
            loop {
                let from = merge_from(&runs);
                if from + 1 >= runs.len() {
                    break;
                }
                let sum = runs.split_off(from).iter().map(|run| run.entry_count).sum();
                written += sum;
                runs.push(run(sum));
            }
            assert!(runs.len() <= 7 * 6, "{} runs", runs.len());
        }
        let total: u64 = runs.iter().map(|run| run.entry_count).sum();
        assert!(written < total * 7, "{written} entries rewritten for {total}");
    }
}
