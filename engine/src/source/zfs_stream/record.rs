//! The records of a ZFS stream: framing, checksums and the identity that each carries. What they
//! do to a volume is for the module above.
//!
//! A record has 312 bytes, in the byte order of the machine that sent it; some have a payload
//! behind them. All but the first end with the checksum of everything before that place.

use std::io::{BufReader, ErrorKind, Read};

use super::fletcher::Fletcher4;

/// Bytes of a record without its payload.
const LEN: usize = 312;
/// Where the checksum is in all records but the first.
const SUM_AT: usize = LEN - Fletcher4::LEN;

/// The first record's mark, and what it reads as where the byte order is the other.
const MAGIC: u64 = 0x2_F5BA_CBAC;
const MAGIC_SWAPPED: u64 = MAGIC.swap_bytes();

/// The longest block there is.
const BLOCK_LEN_MAX: u64 = 16 << 20;
/// The shortest, and the unit of all lengths.
const SECTOR_LEN: u64 = 512;
/// The longest bonus buffer: that of a dnode of the greatest size.
const BONUS_LEN_MAX: u64 = 16 << 10;

/// Bytes read ahead: a pipe of the greatest size that everybody may have.
const READ_AHEAD: usize = 1 << 20;

/// Why a stream is not believed, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Bytes of the stream before the record or payload that is refused.
    pub at: u64,
    /// What is wrong with it.
    pub why: String,
}

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the ZFS stream is refused at byte {}: {}", self.at, self.why)
    }
}

impl std::error::Error for Refused {}

/// The first record.
#[derive(Clone, Copy, Debug)]
pub(super) struct Begin {
    pub(super) payload_len: u32,
    pub(super) wrapping: u64,
    pub(super) features: u64,
    pub(super) content: u32,
    pub(super) flags: u32,
    pub(super) to_guid: u64,
    pub(super) from_guid: u64,
}

/// A record that may follow it.
#[derive(Clone, Copy, Debug)]
pub(super) enum Record {
    Object {
        object: u64,
        kind: u32,
    },
    FreeObjects {
        first: u64,
        count: u64,
    },
    /// `len` bytes of payload follow.
    Write {
        object: u64,
        kind: u32,
        offset: u64,
        len: u64,
    },
    Free {
        object: u64,
        offset: u64,
        len: u64,
    },
    End,
}

/// Reads records and checks each as far as that can be done without knowing the others.
#[derive(Debug)]
pub(super) struct Records<R> {
    input: BufReader<R>,
    sum: Fletcher4,
    /// Where the last record or payload began.
    at: u64,
    /// Where it ended.
    end: u64,
    to_guid: u64,
}

impl<R: Read> Records<R> {
    pub(super) fn new(input: R) -> Records<R> {
        let input = BufReader::with_capacity(READ_AHEAD, input);
        Records { input, sum: Fletcher4::default(), at: 0, end: 0, to_guid: 0 }
    }

    /// What is said of the last record or payload.
    pub(super) fn refused(&self, why: impl Into<String>) -> Refused {
        Refused { at: self.at, why: why.into() }
    }

    fn check(&self, holds: bool, why: impl FnOnce() -> String) -> Result<(), Refused> {
        if holds { Ok(()) } else { Err(self.refused(why())) }
    }

    /// The first record.
    pub(super) fn begin(&mut self) -> Result<Begin, Refused> {
        let record = self.record()?;
        let magic = u64_at(&record, 8);
        self.check(magic != MAGIC_SWAPPED, || {
            "it comes from a machine of the other byte order".into()
        })?;
        self.check(u32_at(&record, 0) == 0 && magic == MAGIC, || {
            format!("it does not begin like one (magic {magic:#x})")
        })?;
        self.sum.update(&record);
        self.to_guid = u64_at(&record, 40);
        let version = u64_at(&record, 16);
        Ok(Begin {
            payload_len: u32_at(&record, 4),
            wrapping: version & 3,
            features: version >> 2,
            content: u32_at(&record, 32),
            flags: u32_at(&record, 36),
            to_guid: self.to_guid,
            from_guid: u64_at(&record, 48),
        })
    }

    /// The next record.
    pub(super) fn next(&mut self) -> Result<Record, Refused> {
        let record = self.record()?;
        let before = self.sum;
        self.sum.update(&record[..SUM_AT]);
        let stored = Fletcher4::at(&record[SUM_AT..]);
        self.check(stored == self.sum, || "its checksum is wrong".into())?;
        self.sum.update(&record[SUM_AT..]);
        match u32_at(&record, 0) {
            1 => self.object(&record),
            2 => self.free_objects(&record),
            3 => self.write(&record),
            4 => self.free(&record),
            5 => self.end(&record, before),
            6 => Err(self.refused("WRITE_BYREF, a record of deduplicated streams, is not known")),
            7 => Err(self.refused("SPILL, a record of file systems, is not known")),
            8 => Err(self.refused("WRITE_EMBEDDED, a record of `zfs send -e`, is not known")),
            9 => Err(self.refused("OBJECT_RANGE, a record of raw streams, is not known")),
            10 => Err(self.refused("REDACT, a record of redacted streams, is not known")),
            kind => Err(self.refused(format!("records of type {kind} are not known"))),
        }
    }

    /// The payload of the last record, in place of what `bytes` held. Nothing is allocated that
    /// was not read.
    pub(super) fn payload(&mut self, len: u64, bytes: &mut Vec<u8>) -> Result<(), Refused> {
        self.at = self.end;
        bytes.clear();
        let read = (&mut self.input).take(len).read_to_end(bytes);
        read.map_err(|error| self.refused(unreadable(&error)))?;
        self.check(bytes.len() as u64 == len, || ends_early().into())?;
        self.sum.update(bytes);
        self.end += len;
        Ok(())
    }

    /// Nothing must follow.
    pub(super) fn check_end(&mut self) -> Result<(), Refused> {
        self.at = self.end;
        let mut byte = [0];
        match self.input.read_exact(&mut byte) {
            Ok(()) => Err(self.refused("something follows its end")),
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => Ok(()),
            Err(error) => Err(self.refused(unreadable(&error))),
        }
    }

    fn record(&mut self) -> Result<[u8; LEN], Refused> {
        self.at = self.end;
        let mut record = [0; LEN];
        self.input.read_exact(&mut record).map_err(|error| {
            self.refused(match error.kind() {
                ErrorKind::UnexpectedEof => ends_early().into(),
                _ => unreadable(&error),
            })
        })?;
        self.end += LEN as u64;
        Ok(record)
    }

    fn object(&mut self, record: &[u8; LEN]) -> Result<Record, Refused> {
        self.check_guid(record, 40)?;
        self.check_block_len(u64::from(u32_at(record, 24)))?;
        let raw_bonus_len = u32_at(record, 36);
        self.check(raw_bonus_len == 0, || "its objects are raw".into())?;
        let bonus_len = u64::from(u32_at(record, 28)).next_multiple_of(8);
        self.check(bonus_len <= BONUS_LEN_MAX, || {
            format!("an object has a bonus buffer of {bonus_len} bytes")
        })?;
        // A volume keeps nothing there.
        self.payload(bonus_len, &mut Vec::new())?;
        Ok(Record::Object { object: u64_at(record, 8), kind: u32_at(record, 16) })
    }

    fn free_objects(&self, record: &[u8; LEN]) -> Result<Record, Refused> {
        self.check_guid(record, 24)?;
        Ok(Record::FreeObjects { first: u64_at(record, 8), count: u64_at(record, 16) })
    }

    fn write(&self, record: &[u8; LEN]) -> Result<Record, Refused> {
        self.check_guid(record, 40)?;
        let [flags, compression] = [record[49], record[50]];
        self.check(compression == 0, || format!("a block is compressed (kind {compression})"))?;
        self.check(flags & !1 == 0, || {
            format!("a block has flags that are not known ({flags:#x})")
        })?;
        let len = u64_at(record, 32);
        self.check_block_len(len)?;
        Ok(Record::Write {
            object: u64_at(record, 8),
            kind: u32_at(record, 16),
            offset: self.sectors(u64_at(record, 24))?,
            len,
        })
    }

    fn free(&self, record: &[u8; LEN]) -> Result<Record, Refused> {
        self.check_guid(record, 32)?;
        let [offset, len] = [u64_at(record, 16), u64_at(record, 24)];
        let len = if len == u64::MAX { len } else { self.sectors(len)? };
        Ok(Record::Free { object: u64_at(record, 8), offset: self.sectors(offset)?, len })
    }

    /// `before` is the checksum of all that comes before this record.
    fn end(&self, record: &[u8; LEN], before: Fletcher4) -> Result<Record, Refused> {
        self.check_guid(record, 40)?;
        let stored = Fletcher4::at(&record[8..]);
        self.check(stored == before, || "the checksum of the whole is wrong".into())?;
        Ok(Record::End)
    }

    fn check_guid(&self, record: &[u8; LEN], at: usize) -> Result<(), Refused> {
        let guid = u64_at(record, at);
        self.check(guid == self.to_guid, || {
            format!("a record belongs to the snapshot with guid {guid}, not {}", self.to_guid)
        })
    }

    fn check_block_len(&self, len: u64) -> Result<(), Refused> {
        let fits = (SECTOR_LEN..=BLOCK_LEN_MAX).contains(&len) && len.is_multiple_of(SECTOR_LEN);
        self.check(fits, || format!("a block has {len} bytes"))
    }

    fn sectors(&self, bytes: u64) -> Result<u64, Refused> {
        self.check(bytes.is_multiple_of(SECTOR_LEN), || {
            format!("{bytes} bytes are no whole number of sectors")
        })?;
        Ok(bytes)
    }
}

fn ends_early() -> &'static str {
    "it ends before its end"
}

fn unreadable(error: &std::io::Error) -> String {
    format!("it cannot be read: {error}")
}

/// The number at `at` of a record, or 0 behind its end.
fn u64_at(record: &[u8], at: usize) -> u64 {
    let bytes = record.get(at..at + 8).and_then(|bytes| bytes.try_into().ok());
    bytes.map_or(0, u64::from_le_bytes)
}

fn u32_at(record: &[u8], at: usize) -> u32 {
    let bytes = record.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
    bytes.map_or(0, u32::from_le_bytes)
}
