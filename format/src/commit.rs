//! Commits: the records that make snapshots exist. Each is written twice in a row.

use crate::checksum::{commit_hash, crc32c, snapshot_id};
use crate::error::{FormatError, Result, Structure};
use crate::features::check_incompatible;
use crate::index::BuiltRun;
use crate::limits::{BLOCK_LEN, COMMIT_LEN_MAX, MANIFEST_LEN_MAX, RUNS_MAX};
use crate::record::{FLAG_SECOND_COPY, RecordHead, RecordKind};
use crate::units::{ArchiveId, Id, LogOffset, SessionId, SnapshotId};
use crate::wire::{Reserved, is_zero, on_disk, round_up, slice};

on_disk! {
    /// The 192 bytes behind a commit's record head; runs and manifest follow.
    pub struct CommitHead[192] {
        /// BLAKE3 of everything from behind this field to the end of the manifest.
        0 content_hash: Id,
        /// Features in use, as in the header, which may be lost.
        32 incompatible: u64,
        /// Features in use.
        40 compatible: u64,
        /// Number of this commit, from 1.
        48 number: u64,
        /// The commit before (its first copy); 0 for the first.
        56 previous: LogOffset,
        /// Bytes of one copy of the commit before; 0 for the first.
        64 previous_len: u64,
        /// `content_hash` of the commit before: the chain. Zero for the first.
        72 previous_hash: Id,
        /// Where the records that this commit seals begin: the end of the commit before, or 4096.
        104 log_start: LogOffset,
        /// BLAKE3 over the body hashes of the segments and index runs from there, in order.
        112 log_hash: Id,
        /// How many segments and index runs these are.
        144 segment_count: u32,
        /// Index runs that follow, newest last: together they hold every item of the log.
        148 run_count: u32,
        /// Bytes of the manifest behind the runs; 0 for a commit without a snapshot.
        152 manifest_len: u32,
        /// Zero.
        156 reserved: Reserved<36>,
    }
}

on_disk! {
    /// Where an index run is and how it is laid out.
    pub struct RunEntry[80] {
        /// Where its record starts.
        0 offset: LogOffset,
        /// Bytes of its record.
        8 len: u64,
        /// Items in it.
        16 entry_count: u64,
        /// Buckets that ids are spread over.
        24 buckets: u64,
        /// Pages of the run: one per slot, and a filter page before every 63 slots.
        32 page_count: u64,
        /// Zero.
        40 reserved: Reserved<8>,
        /// As in the run's footer.
        48 body_hash: Id,
    }
}

/// What a commit says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Commit {
    /// The fixed part.
    pub head: CommitHead,
    /// The index runs.
    pub runs: Vec<RunEntry>,
    /// The manifest's bytes; empty for a commit without a snapshot.
    pub manifest: Vec<u8>,
    /// Where its first copy starts.
    pub offset: LogOffset,
    /// Bytes of one copy.
    pub len: u64,
    /// Its record's number.
    pub sequence: u64,
    /// The session that wrote it.
    pub session: SessionId,
}

/// What a writer knows when it commits.
#[derive(Clone, Debug)]
pub struct NewCommit<'a> {
    /// The archive.
    pub archive_id: ArchiveId,
    /// The session.
    pub session: SessionId,
    /// Where the first copy will start.
    pub offset: LogOffset,
    /// The record's number.
    pub sequence: u64,
    /// The record before.
    pub previous_record: LogOffset,
    /// Features in use: at least the header's and the commit before's.
    pub incompatible: u64,
    /// As `incompatible`.
    pub compatible: u64,
    /// The commit before, if there is one.
    pub previous: Option<&'a Commit>,
    /// Hash over the segments since then.
    pub log_hash: Id,
    /// How many they are.
    pub segment_count: u32,
    /// The index runs, at most [`RUNS_MAX`].
    pub runs: &'a [RunEntry],
    /// The manifest, at most [`MANIFEST_LEN_MAX`] bytes.
    pub manifest: &'a [u8],
}

impl NewCommit<'_> {
    /// The bytes of both copies, and what they say.
    pub fn encode(&self) -> (Vec<u8>, Commit) {
        let head = self.head();
        let mut content = head.encode().to_vec();
        self.runs.iter().for_each(|run| content.extend_from_slice(&run.encode()));
        content.extend_from_slice(self.manifest);
        let (hash_bytes, hashed) = content.split_at_mut(32);
        hash_bytes.copy_from_slice(&commit_hash(hashed).0);
        let content_hash = commit_hash(hashed);
        let body_len = RecordHead::LEN.saturating_add(content.len());
        let copy_len = round_up(body_len as u64, BLOCK_LEN as u64) as usize;

        let mut bytes = Vec::with_capacity(copy_len.saturating_mul(2));
        for second in [false, true] {
            let start = bytes.len() as u64;
            bytes.extend_from_slice(&self.record_head(second, start, &content));
            bytes.extend_from_slice(&content);
            bytes.resize((start as usize).saturating_add(copy_len), 0);
        }
        let commit = Commit {
            head: CommitHead { content_hash, ..head },
            runs: self.runs.to_vec(),
            manifest: self.manifest.to_vec(),
            offset: self.offset,
            len: copy_len as u64,
            sequence: self.sequence,
            session: self.session,
        };
        (bytes, commit)
    }

    fn head(&self) -> CommitHead {
        let previous = self.previous;
        CommitHead {
            content_hash: Id::default(),
            incompatible: self.incompatible,
            compatible: self.compatible,
            number: previous.map_or(1, |commit| commit.head.number.saturating_add(1)),
            previous: previous.map_or(LogOffset(0), |commit| commit.offset),
            previous_len: previous.map_or(0, |commit| commit.len),
            previous_hash: previous.map_or(Id::default(), |commit| commit.head.content_hash),
            log_start: previous.map_or(LogOffset(BLOCK_LEN as u64), Commit::end),
            log_hash: self.log_hash,
            segment_count: self.segment_count,
            run_count: self.runs.len() as u32,
            manifest_len: self.manifest.len() as u32,
            reserved: Reserved,
        }
    }

    fn record_head(&self, second: bool, start: u64, content: &[u8]) -> [u8; RecordHead::LEN] {
        let (kind, offset) = (RecordKind::Commit, self.offset.0.saturating_add(start));
        let (archive, sequence) = (self.archive_id, self.sequence);
        RecordHead {
            flags: if second { FLAG_SECOND_COPY } else { 0 },
            last_commit: self.previous.map_or(LogOffset(0), |commit| commit.offset),
            previous: self.previous_record,
            body_len: (RecordHead::LEN as u64).saturating_add(content.len() as u64),
            body_crc: crc32c(content),
            ..RecordHead::new(kind, archive, self.session, LogOffset(offset), sequence)
        }
        .seal()
    }
}

impl Commit {
    /// Where the second copy ends: the next record's place.
    pub fn end(&self) -> LogOffset {
        LogOffset(self.offset.0.saturating_add(self.len).saturating_add(self.len))
    }

    /// The snapshot's id, if the commit has one.
    pub fn snapshot_id(&self) -> Option<SnapshotId> {
        (!self.manifest.is_empty()).then(|| snapshot_id(&self.manifest))
    }

    /// The other copy of a whole copy: what a writer puts where one copy was lost.
    pub fn twin(copy: &[u8]) -> Option<(LogOffset, Vec<u8>)> {
        let head = RecordHead::decode(copy).ok()?;
        let len = copy.len() as u64;
        let second = head.flags & FLAG_SECOND_COPY != 0;
        let offset = match second {
            true => LogOffset(head.offset.0.checked_sub(len)?),
            false => head.offset.checked_add(len)?,
        };
        let flags = head.flags ^ FLAG_SECOND_COPY;
        let mut bytes = RecordHead { flags, offset, ..head }.seal().to_vec();
        bytes.extend_from_slice(copy.get(RecordHead::LEN..)?);
        Some((offset, bytes))
    }

    /// Bytes of one copy of the commit whose record head is `head`, checked against the limit.
    ///
    /// # Errors
    /// F-042.
    pub fn copy_len(head: &RecordHead) -> Result<u64> {
        let least = RecordHead::LEN.saturating_add(CommitHead::LEN) as u64;
        match (least..=COMMIT_LEN_MAX).contains(&head.body_len) {
            true => Ok(round_up(head.body_len, BLOCK_LEN as u64)),
            false => {
                let problem = format!("its length {} is out of range", head.body_len);
                Err(FormatError::new(Structure::Commit, "F-042", problem).at(head.offset))
            }
        }
    }

    /// The commit in `bytes`: one copy, read at `offset` (either copy), padding included.
    ///
    /// # Errors
    /// Names the broken requirement; `unsupported` for unknown incompatible features.
    pub fn decode_at(
        bytes: &[u8],
        offset: LogOffset,
        archive_id: Option<ArchiveId>,
    ) -> Result<Commit> {
        let fail =
            |id, problem: String| FormatError::new(Structure::Commit, id, problem).at(offset);
        let (record, kind) = RecordHead::decode_at(bytes, offset, archive_id)?;
        if kind != RecordKind::Commit {
            return Err(fail("F-042", format!("it is a {} record", kind.name())));
        }
        let len = Commit::copy_len(&record)?;
        let copy = bytes.get(..len as usize).ok_or_else(|| fail("F-042", "cut short".into()))?;
        let body_len = record.body_len as usize;
        let body = copy.get(RecordHead::LEN..body_len).unwrap_or(&[]);
        let crc = crc32c(body);
        if crc != record.body_crc {
            let stored = record.body_crc;
            return Err(fail("F-041", format!("checksum {crc:#010x}, stored {stored:#010x}")));
        }
        if !copy.get(body_len..).is_some_and(is_zero) {
            return Err(fail("F-047", "its padding is not zero".into()));
        }
        let head = CommitHead::decode(body)
            .map_err(|field| fail("F-042", format!("field {field} is cut short or not zero")))?;
        if body.get(32..).map(commit_hash) != Some(head.content_hash) {
            return Err(fail("F-040", "its content does not match its hash".into()));
        }
        check_incompatible(Structure::Commit, head.incompatible)?;
        let first_copy = match record.flags & FLAG_SECOND_COPY {
            0 => Some(offset),
            _ => offset.0.checked_sub(len).map(LogOffset),
        };
        let first_copy = first_copy.ok_or_else(|| fail("F-045", "no room before it".into()))?;
        Commit::decode_content(body, head, first_copy, len, &record)
            .map_err(|error| error.at(offset))
    }

    fn decode_content(
        body: &[u8],
        head: CommitHead,
        offset: LogOffset,
        len: u64,
        record: &RecordHead,
    ) -> Result<Commit> {
        let fail = |id, problem: &str| FormatError::new(Structure::Commit, id, problem);
        if head.run_count > RUNS_MAX || head.manifest_len > MANIFEST_LEN_MAX {
            return Err(fail("F-042", "too many runs or too long a manifest"));
        }
        let runs_len = (head.run_count as usize).saturating_mul(RunEntry::LEN);
        let runs = slice(body, CommitHead::LEN, runs_len);
        let rest = body.get(CommitHead::LEN.saturating_add(runs_len)..);
        let (Some(runs), Some(manifest)) = (runs, rest) else {
            return Err(fail("F-042", "its runs are cut short"));
        };
        if manifest.len() != head.manifest_len as usize {
            return Err(fail("F-042", "its manifest has another length than it says"));
        }
        if head.log_start > offset || !head.is_chained() {
            return Err(fail("F-043", "its place in the chain is impossible"));
        }
        let runs = runs
            .chunks_exact(RunEntry::LEN)
            .map(|bytes| RunEntry::decode(bytes).map_err(|_| fail("F-046", "a run's field")))
            .collect::<Result<Vec<_>>>()?;
        if !runs.iter().all(|run| run.is_sane(offset)) {
            return Err(fail("F-046", "an index run's numbers contradict one another"));
        }
        if !runs.iter().zip(runs.iter().skip(1)).all(|(one, next)| one.end() <= Some(next.offset)) {
            return Err(fail("F-046", "its index runs do not follow one another"));
        }
        Ok(Commit {
            head,
            runs,
            manifest: manifest.to_vec(),
            offset,
            len,
            sequence: record.sequence,
            session: record.session,
        })
    }
}

impl CommitHead {
    /// Whether what it says of the commit before is possible: the log it seals begins where that
    /// one's second copy ends, so that the chain always leads back.
    fn is_chained(&self) -> bool {
        let block = BLOCK_LEN as u64;
        let twice = self.previous_len.checked_add(self.previous_len);
        let end = twice.and_then(|len| self.previous.checked_add(len));
        match self.previous {
            LogOffset(0) => {
                self.previous_len == 0
                    && self.previous_hash == Id::default()
                    && self.number == 1
                    && self.log_start == LogOffset(block)
            }
            LogOffset(previous) => {
                previous.is_multiple_of(block)
                    && (block..=COMMIT_LEN_MAX).contains(&self.previous_len)
                    && end == Some(self.log_start)
                    && self.number >= 2
            }
        }
    }
}

impl RunEntry {
    /// The entry of a run whose record starts at `offset`.
    pub fn new(offset: LogOffset, run: &BuiltRun) -> RunEntry {
        RunEntry {
            offset,
            len: run.record_len(),
            entry_count: run.entry_count,
            buckets: run.buckets,
            page_count: run.page_count,
            reserved: Reserved,
            body_hash: run.body_hash,
        }
    }

    fn end(&self) -> Option<LogOffset> {
        self.offset.checked_add(self.len)
    }

    /// Whether the run lies before `commit` and its numbers fit one another (F-046).
    pub fn is_sane(&self, commit: LogOffset) -> bool {
        let block = BLOCK_LEN as u64;
        let len = self.page_count.checked_add(2).and_then(|pages| pages.checked_mul(block));
        self.offset.0.is_multiple_of(block)
            && self.offset.0 >= block
            && len == Some(self.len)
            && self.end().is_some_and(|end| end <= commit)
            && crate::index::is_plausible(self.entry_count, self.buckets, self.page_count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ARCHIVE: ArchiveId = ArchiveId([3; 16]);

    fn run() -> RunEntry {
        RunEntry {
            offset: LogOffset(4096),
            len: 4 * 4096,
            entry_count: 9,
            buckets: 1,
            page_count: 2,
            reserved: Reserved,
            body_hash: Id([8; 32]),
        }
    }

    fn first<'a>(manifest: &'a [u8], runs: &'a [RunEntry]) -> NewCommit<'a> {
        NewCommit {
            archive_id: ARCHIVE,
            session: SessionId([4; 16]),
            offset: LogOffset(65536),
            sequence: 7,
            previous_record: LogOffset(4096),
            incompatible: 0,
            compatible: 0,
            previous: None,
            log_hash: Id([5; 32]),
            segment_count: 2,
            runs,
            manifest,
        }
    }

    fn encode(manifest: &[u8], runs: &[RunEntry]) -> (Vec<u8>, Commit) {
        first(manifest, runs).encode()
    }

    #[test]
    fn both_copies_decode_to_the_same() {
        let (bytes, commit) = encode(b"{\"x\":1}", &[run()]);
        let len = commit.len as usize;
        assert_eq!(bytes.len(), 2 * len);
        let first = Commit::decode_at(&bytes[..len], LogOffset(65536), Some(ARCHIVE)).unwrap();
        let second = LogOffset(65536 + commit.len);
        let second = Commit::decode_at(&bytes[len..], second, Some(ARCHIVE)).unwrap();
        assert_eq!(first, commit);
        assert_eq!(second, commit);
        assert_eq!(commit.end(), LogOffset(65536 + 2 * 4096));
        let (at, twin) = Commit::twin(&bytes[..len]).unwrap();
        assert_eq!((at.0, &twin[..]), (65536 + commit.len, &bytes[len..]));
        let (at, twin) = Commit::twin(&bytes[len..]).unwrap();
        assert_eq!((at.0, &twin[..]), (65536, &bytes[..len]));
    }

    #[test]
    fn a_commit_follows_the_one_before_it() {
        let (_, one) = NewCommit { offset: LogOffset(4096), ..first(b"", &[]) }.encode();
        let (bytes, two) = NewCommit {
            offset: one.end(),
            sequence: 8,
            previous_record: LogOffset(8192),
            previous: Some(&one),
            ..first(b"", &[])
        }
        .encode();
        assert_eq!(Commit::decode_at(&bytes, one.end(), Some(ARCHIVE)).unwrap(), two);
        assert_eq!((two.head.number, two.head.log_start), (2, one.end()));
        assert_eq!((two.head.previous, two.head.previous_len), (one.offset, one.len));
        assert_eq!(two.head.previous_hash, one.head.content_hash);
        for copy in bytes.chunks(two.len as usize) {
            let head = RecordHead::decode(copy).unwrap();
            assert_eq!((head.last_commit, head.previous), (one.offset, LogOffset(8192)));
        }
    }

    #[test]
    fn a_commit_without_a_manifest_has_no_snapshot() {
        assert_eq!(encode(b"", &[run()]).1.snapshot_id(), None);
        assert_eq!(encode(b"{}", &[run()]).1.snapshot_id(), Some(snapshot_id(b"{}")));
    }

    #[test]
    fn f_040_f_041_f_047_every_bit_is_covered() {
        let (bytes, commit) = encode(b"{\"x\":1}", &[run()]);
        for bit in 0..commit.len as usize * 8 {
            let mut bad = bytes[..commit.len as usize].to_vec();
            bad[bit / 8] ^= 1 << (bit % 8);
            let outcome = Commit::decode_at(&bad, LogOffset(65536), Some(ARCHIVE));
            outcome.expect_err("a flipped bit passed");
        }
        for len in 0..commit.len as usize {
            Commit::decode_at(&bytes[..len], LogOffset(65536), Some(ARCHIVE)).unwrap_err();
        }
    }

    /// Recomputes the hash and checksums after `change`, so that only the change is wrong.
    fn forged(change: impl FnOnce(&mut Vec<u8>)) -> &'static str {
        let (bytes, commit) = encode(b"{\"x\":1}", &[run()]);
        let record = RecordHead::decode(&bytes).unwrap();
        let mut content = bytes[128..record.body_len as usize].to_vec();
        change(&mut content);
        let hash = commit_hash(&content[32..]);
        content[..32].copy_from_slice(&hash.0);
        let record = RecordHead { body_crc: crc32c(&content), ..record };
        let mut forged = record.seal().to_vec();
        forged.extend(content);
        forged.resize(commit.len as usize, 0);
        Commit::decode_at(&forged, LogOffset(65536), Some(ARCHIVE)).unwrap_err().requirement
    }

    #[test]
    fn f_042_lengths_are_checked() {
        assert_eq!(forged(|content| content[152] = 1), "F-042");
        assert_eq!(forged(|content| content[148] = 2), "F-042");
        assert_eq!(forged(|content| content[148..152].fill(0xff)), "F-042");
        assert_eq!(forged(|content| content[160] = 1), "F-042");
    }

    #[test]
    fn f_042_runs_and_manifests_have_limits() {
        let decoded = |manifest: &[u8], runs: &[RunEntry]| {
            let offset = runs.last().and_then(RunEntry::end).unwrap_or(LogOffset(4096));
            let (bytes, _) = NewCommit { offset, ..first(manifest, runs) }.encode();
            Commit::decode_at(&bytes, offset, Some(ARCHIVE)).map_err(|error| error.requirement)
        };
        let following =
            |n: u32| RunEntry { offset: LogOffset(4096 + u64::from(n) * run().len), ..run() };
        let runs: Vec<RunEntry> = (0..=RUNS_MAX).map(following).collect();
        let (_, most) = runs.split_last().unwrap();
        assert_eq!(decoded(b"", most).unwrap().runs, most);
        assert_eq!(decoded(b"", &runs), Err("F-042"));
        let manifest = vec![b' '; MANIFEST_LEN_MAX as usize + 1];
        let (_, longest) = manifest.split_last().unwrap();
        assert_eq!(decoded(longest, &[]).unwrap().manifest, longest);
        assert_eq!(decoded(&manifest, &[]), Err("F-042"));
    }

    #[test]
    fn f_043_pointers_lead_back() {
        assert_eq!(forged(|content| content[104..112].fill(0x70)), "F-043");
        assert_eq!(forged(|content| content[56..64].fill(0x70)), "F-043");
        assert_eq!(forged(|content| content[48] = 0), "F-043");
        assert_eq!(forged(|content| content[48] = 2), "F-043");
        assert_eq!(forged(|content| content[72] = 1), "F-043");
        let follows = |number: u8, previous: u64, len: u64| {
            forged(|content| {
                content[48] = number;
                content[56..64].copy_from_slice(&previous.to_le_bytes());
                content[64..72].copy_from_slice(&len.to_le_bytes());
                content[104..112].copy_from_slice(&(previous + 2 * len).to_le_bytes());
            })
        };
        assert_eq!(follows(1, 8192, 4096), "F-043");
        assert_eq!(follows(2, 8193, 4096), "F-043");
        assert_eq!(follows(2, 8192, 0), "F-043");
        // A commit that names itself would be listed for ever.
        let own = 65536u64.to_le_bytes();
        assert_eq!(
            forged(|content| {
                content[48] = 2;
                content[56..64].copy_from_slice(&own);
                content[104..112].copy_from_slice(&own);
            }),
            "F-043"
        );
    }

    #[test]
    fn f_045_second_copy_needs_a_first() {
        let (bytes, _) = encode(b"{}", &[]);
        let record = RecordHead::decode(&bytes).unwrap();
        let head = RecordHead { offset: LogOffset(0), flags: FLAG_SECOND_COPY, ..record };
        let mut forged = head.seal().to_vec();
        forged.extend(&bytes[128..4096]);
        let error = Commit::decode_at(&forged, LogOffset(0), Some(ARCHIVE)).unwrap_err();
        assert_eq!(error.requirement, "F-045");
    }

    #[test]
    fn f_046_runs_are_sane() {
        assert_eq!(forged(|content| content[192 + 8] = 1), "F-046");
        assert_eq!(forged(|content| content[192..200].fill(0xf0)), "F-046");
        assert_eq!(forged(|content| content[192] = 1), "F-046");
        assert_eq!(forged(|content| content[192..200].fill(0)), "F-046");
        assert_eq!(forged(|content| content[192 + 40] = 0xff), "F-046");
    }

    #[test]
    fn f_046_runs_follow_one_another() {
        let next = RunEntry { offset: LogOffset(5 * 4096), ..run() };
        let outcome = |runs: &[RunEntry]| {
            let (bytes, _) = encode(b"", runs);
            Commit::decode_at(&bytes, LogOffset(65536), Some(ARCHIVE)).map(|commit| commit.runs)
        };
        assert_eq!(outcome(&[run(), next.clone()]).unwrap().len(), 2);
        let overlapping = RunEntry { offset: LogOffset(4 * 4096), ..run() };
        for wrong in [[next, run()], [run(), run()], [run(), overlapping]] {
            assert_eq!(outcome(&wrong).unwrap_err().requirement, "F-046");
        }
    }

    #[test]
    fn f_004_unknown_feature_in_a_commit() {
        assert_eq!(forged(|content| content[32] = 1), "F-004");
    }
}
