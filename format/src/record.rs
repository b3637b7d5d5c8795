//! The head that every record of the log starts with.

use crate::checksum::crc32c;
use crate::error::{FormatError, Result, Structure};
use crate::limits::BLOCK_LEN;
use crate::units::{ArchiveId, LogOffset, SessionId};
use crate::wire::{Reserved, Wire, on_disk};

/// First bytes of every record.
pub const RECORD_MAGIC: [u8; 8] = *b"VOLTREC\x01";

/// Flag: a reader that does not know the kind may pass over the record; like every record but a
/// commit it ends with a footer. No version-1 kind sets it; parity will.
pub const FLAG_IGNORABLE: u8 = 1 << 0;
/// Flag: the second copy of a commit.
pub const FLAG_SECOND_COPY: u8 = 1 << 1;

/// What a record is. Zero is never valid, so that blank memory is no record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum RecordKind {
    /// A segment of frames with a table at its end.
    Data = 1,
    /// An index run.
    Index = 2,
    /// A commit, one of its two copies.
    Commit = 3,
    /// A kind this version does not know and may pass over: its head says
    /// [`FLAG_IGNORABLE`], its footer says where it begins.
    Other = 255,
}

impl RecordKind {
    /// The kind of this number.
    pub fn from_number(number: u8) -> Option<RecordKind> {
        match number {
            1 => Some(RecordKind::Data),
            2 => Some(RecordKind::Index),
            3 => Some(RecordKind::Commit),
            _ => None,
        }
    }

    /// The kind's name.
    pub fn name(self) -> &'static str {
        match self {
            RecordKind::Data => "data",
            RecordKind::Index => "index",
            RecordKind::Commit => "commit",
            RecordKind::Other => "other",
        }
    }
}

on_disk! {
    /// The first 128 bytes of every record; records start at multiples of 4096.
    pub struct RecordHead[128] {
        /// [`RECORD_MAGIC`]: where a scan finds records.
        0 magic: [u8; 8],
        /// A [`RecordKind`].
        8 kind: u8,
        /// [`FLAG_IGNORABLE`], [`FLAG_SECOND_COPY`]; other bits reserved.
        9 flags: u8,
        /// Zero.
        10 reserved_a: Reserved<6>,
        /// Guards against records of another archive (spliced files, reused disks, an archive
        /// stored inside an archive).
        16 archive_id: ArchiveId,
        /// Where this record starts: guards against misdirected and replayed writes.
        32 offset: LogOffset,
        /// Number of this record in the log, from 1; the two copies of a commit share it.
        40 sequence: u64,
        /// The session that wrote it.
        48 session: SessionId,
        /// The last commit before this record (its first copy); 0 if there is none. A reader that
        /// finds this record finds the commit in one step.
        64 last_commit: LogOffset,
        /// The record before this one; 0 for the first.
        72 previous: LogOffset,
        /// Commit: its bytes that mean something, from the record's start. 0 for data and index
        /// records, whose length is not known in advance (their footers say).
        80 body_len: u64,
        /// Commit: CRC-32C of its bytes from 128 to `body_len`. Index: CRC-32C of its first block
        /// from 128 to 4096. Data: 0.
        88 body_crc: u32,
        /// Zero.
        92 reserved_b: Reserved<32>,
        /// CRC-32C of the 124 bytes before.
        124 crc: u32,
    }
}

impl RecordHead {
    /// The head of the record that starts at `offset`, the first of its log.
    pub fn new(
        kind: RecordKind,
        archive_id: ArchiveId,
        session: SessionId,
        offset: LogOffset,
        sequence: u64,
    ) -> RecordHead {
        RecordHead {
            magic: RECORD_MAGIC,
            kind: kind as u8,
            flags: 0,
            reserved_a: Reserved,
            archive_id,
            offset,
            sequence,
            session,
            last_commit: LogOffset(0),
            previous: LogOffset(0),
            body_len: 0,
            body_crc: 0,
            reserved_b: Reserved,
            crc: 0,
        }
    }

    /// The head's bytes with its checksum filled in.
    pub fn seal(mut self) -> [u8; RecordHead::LEN] {
        self.crc = 0;
        self.crc = crc32c(self.encode().split_at(124).0);
        self.encode()
    }

    /// Whether `bytes` start like a record.
    pub fn is_candidate(bytes: &[u8]) -> bool {
        bytes.starts_with(&RECORD_MAGIC)
    }

    /// The head in the first bytes of `bytes`, which were read at `offset` of archive
    /// `archive_id` (`None` accepts any archive: for salvage, when the header is lost).
    ///
    /// # Errors
    /// Names the broken requirement: magic, checksum, place, archive, kind or reserved bytes.
    pub fn decode_at(
        bytes: &[u8],
        offset: LogOffset,
        archive_id: Option<ArchiveId>,
    ) -> Result<(RecordHead, RecordKind)> {
        let fail = |requirement, problem: String| {
            FormatError::new(Structure::Record, requirement, problem).at(offset)
        };
        if !RecordHead::is_candidate(bytes) {
            return Err(fail("F-010", "the magic bytes are missing".into()));
        }
        let head = bytes.get(..RecordHead::LEN).ok_or_else(|| fail("F-010", "cut short".into()))?;
        let stored = head.get(124..).and_then(u32::get).unwrap_or(0);
        let crc = crc32c(head.split_at(124).0);
        if crc != stored {
            return Err(fail("F-011", format!("checksum {crc:#010x}, stored {stored:#010x}")));
        }
        let head = RecordHead::decode(head)
            .map_err(|field| fail("F-012", format!("field {field} is not zero")))?;
        if head.offset != offset || !offset.0.is_multiple_of(BLOCK_LEN as u64) {
            return Err(fail("F-013", format!("it says it belongs at {}", head.offset)));
        }
        if archive_id.is_some_and(|id| id != head.archive_id) {
            let problem = format!("it belongs to archive {}", head.archive_id);
            return Err(fail("F-014", problem));
        }
        if head.flags & !(FLAG_IGNORABLE | FLAG_SECOND_COPY) != 0 {
            return Err(fail("F-012", format!("flags {:#04x}", head.flags)));
        }
        let kind = head.known_kind().map_err(|error| error.at(offset))?;
        match head.is_consistent(kind) {
            true => Ok((head, kind)),
            false => Err(fail("F-012", format!("flags or lengths do not fit a {}", kind.name()))),
        }
    }

    fn known_kind(&self) -> Result<RecordKind> {
        match RecordKind::from_number(self.kind) {
            Some(kind) => Ok(kind),
            None if self.kind != 0 && self.flags & FLAG_IGNORABLE != 0 => Ok(RecordKind::Other),
            None => {
                let problem = format!("record kind {} is not known to this version", self.kind);
                Err(FormatError::unsupported(Structure::Record, "F-015", problem))
            }
        }
    }

    fn is_consistent(&self, kind: RecordKind) -> bool {
        match kind {
            RecordKind::Data => self.flags == 0 && self.body_len == 0 && self.body_crc == 0,
            RecordKind::Index => self.flags == 0 && self.body_len == 0,
            RecordKind::Commit => self.flags & FLAG_IGNORABLE == 0,
            RecordKind::Other => self.flags == FLAG_IGNORABLE,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head() -> RecordHead {
        let (archive, session) = (ArchiveId([1; 16]), SessionId([2; 16]));
        RecordHead {
            last_commit: LogOffset(4096),
            previous: LogOffset(4096),
            ..RecordHead::new(RecordKind::Data, archive, session, LogOffset(8192), 2)
        }
    }

    fn decode(bytes: &[u8]) -> Result<(RecordHead, RecordKind)> {
        RecordHead::decode_at(bytes, LogOffset(8192), Some(ArchiveId([1; 16])))
    }

    #[test]
    fn f_010_f_011_every_bit_is_covered() {
        let good = head().seal();
        decode(&good).unwrap();
        for bit in 0..good.len() * 8 {
            let mut bad = good;
            bad[bit / 8] ^= 1 << (bit % 8);
            decode(&bad).expect_err("a flipped bit passed");
        }
        assert_eq!(decode(&good[..100]).unwrap_err().requirement, "F-010");
        let other = RecordHead { magic: *b"VOLTREC\x02", ..head() }.seal();
        assert_eq!(decode(&other).unwrap_err().requirement, "F-010");
    }

    #[test]
    fn f_012_reserved_bytes_and_flags_are_checked() {
        let mut bytes = head().seal();
        bytes[100] = 1;
        let crc = crc32c(&bytes[..124]).to_le_bytes();
        bytes[124..].copy_from_slice(&crc);
        assert_eq!(decode(&bytes).unwrap_err().requirement, "F-012");
        let flags = RecordHead { flags: 4, ..head() }.seal();
        assert_eq!(decode(&flags).unwrap_err().requirement, "F-012");
    }

    #[test]
    fn f_013_misplaced_record_is_refused() {
        let moved = RecordHead::decode_at(&head().seal(), LogOffset(4096), None);
        assert_eq!(moved.unwrap_err().requirement, "F-013");
    }

    #[test]
    fn f_014_foreign_record_is_refused() {
        let foreign = RecordHead { archive_id: ArchiveId([9; 16]), ..head() }.seal();
        assert_eq!(decode(&foreign).unwrap_err().requirement, "F-014");
    }

    #[test]
    fn f_012_fields_that_a_kind_does_not_use_are_zero() {
        let wrong = [
            RecordHead { flags: FLAG_SECOND_COPY, ..head() },
            RecordHead { flags: FLAG_IGNORABLE, ..head() },
            RecordHead { body_len: 1, ..head() },
            RecordHead { body_crc: 1, ..head() },
            RecordHead { kind: RecordKind::Index as u8, body_len: 1, ..head() },
        ];
        for wrong in wrong {
            assert_eq!(decode(&wrong.seal()).unwrap_err().requirement, "F-012");
        }
    }

    #[test]
    fn f_015_an_ignorable_record_of_unknown_kind_is_passed_over() {
        let parity = RecordHead { kind: 4, flags: FLAG_IGNORABLE, ..head() };
        assert_eq!(decode(&parity.seal()).unwrap().1, RecordKind::Other);
    }

    #[test]
    fn f_015_unknown_kind_is_unsupported_not_damage() {
        let unknown = RecordHead { kind: 9, ..head() }.seal();
        let error = decode(&unknown).unwrap_err();
        assert!(error.unsupported && error.requirement == "F-015");
    }
}
