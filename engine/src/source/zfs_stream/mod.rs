//! What `zfs send -L` writes of a volume's snapshot, whole or since an earlier one: changes
//! together with their bytes, in one pass.
//!
//! A stream is hostile until its end is proven. Each record is believed only once its checksum
//! covers all that came before, identities bind every record to the snapshot that was asked for,
//! what is not known is refused by name, and nothing after an error is believed. What was handed
//! out before an error stands for nothing: only the `None` after the last record, with the
//! checksum of the whole right and the input at its end, makes the stream true.
//!
//! In a volume's data set, object 1 holds the volume's blocks and object 2 its size. Records come
//! in ascending order of objects and, within one, of offsets, but for one: the first that follows
//! an object frees what lies behind its last block.

mod fletcher;
mod record;

use std::io::Read;

pub use record::Refused;
use record::{Begin, Record, Records};

use super::Piece;

/// A volume's data set, as the first record calls it.
const CONTENT_VOLUME: u32 = 3;
/// A stream that is no bundle of streams.
const WRAPPING_NONE: u64 = 1;
/// All flags of the first record that say nothing about how the rest is to be read.
const FLAGS_KNOWN: u32 = 0xF;

/// The object with the volume's blocks, and what it is called in it.
const DATA: u64 = 1;
const DATA_KIND: u32 = 23;
/// The object with its size.
const PROPERTIES: u64 = 2;
const PROPERTIES_KIND: u32 = 24;
/// The longest block of properties there is any use for: one number has a name.
const PROPERTIES_LEN_MAX: u64 = 128 << 10;

/// The names of the features that change how a stream is to be read, by bit.
const FEATURES: [(u32, &str); 16] = [
    (0, "deduplicated blocks"),
    (1, "deduplicated blocks"),
    (2, "spill blocks"),
    (16, "embedded blocks (`zfs send -e`)"),
    (17, "LZ4"),
    (19, "large blocks"),
    (20, "resumed sends"),
    (21, "redaction"),
    (22, "compressed blocks (`zfs send -c`)"),
    (23, "large dnodes"),
    (24, "raw blocks (`zfs send -w`)"),
    (25, "zstd"),
    (26, "holds"),
    (27, "a switch to large blocks"),
    (28, "long names"),
    (29, "large tables"),
];
/// Those that leave the records of a volume as they are: sizes of blocks and dnodes, file names.
const FEATURES_BORNE: u64 = 1 << 19 | 1 << 23 | 1 << 27 | 1 << 28 | 1 << 29;

/// The stream that was asked for; any other is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expected {
    /// The snapshot's guid.
    pub to_guid: u64,
    /// The guid of the snapshot that it is to be the changes since.
    pub from_guid: Option<u64>,
    /// The volume's size in the snapshot.
    pub size: u64,
}

/// Reads a stream, piece by piece, ascending and without overlap, none beyond the volume's size.
#[derive(Debug)]
pub struct VolumeStream<R> {
    records: Records<R>,
    expected: Expected,
    /// The object that the records are about.
    object: u64,
    /// Everything of the volume before this byte is settled.
    settled: u64,
    /// What lies behind the last block: zero from here on, once all else was said.
    tail: Option<u64>,
    /// The size of the volume according to the stream.
    size: Option<u64>,
    state: State,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    Blank,
    Records,
    Done,
    Failed(Refused),
}

impl<R: Read> VolumeStream<R> {
    /// Reads the stream from `input`.
    pub fn new(input: R, expected: Expected) -> VolumeStream<R> {
        VolumeStream {
            records: Records::new(input),
            expected,
            object: 0,
            settled: 0,
            tail: None,
            size: None,
            state: State::Blank,
        }
    }

    /// The next piece; the bytes of one with data replace what `bytes` held. `None` once the
    /// stream's end is proven.
    ///
    /// # Errors
    /// The stream is not the one that was asked for, is damaged, or cannot be understood.
    pub fn next(&mut self, bytes: &mut Vec<u8>) -> Result<Option<Piece>, Refused> {
        let next = match &self.state {
            State::Blank => self.begin().and_then(|()| self.advance(bytes)),
            State::Records => self.advance(bytes),
            State::Done => Ok(None),
            State::Failed(refused) => Err(refused.clone()),
        };
        if let Err(refused) = &next {
            self.state = State::Failed(refused.clone());
        }
        next
    }

    fn begin(&mut self) -> Result<(), Refused> {
        let begin = self.records.begin()?;
        self.check(begin.wrapping == WRAPPING_NONE, || {
            "it is a bundle of streams (`zfs send -p` or -R)".into()
        })?;
        self.check(begin.content == CONTENT_VOLUME, || {
            format!("it is not of a volume but of a data set of type {}", begin.content)
        })?;
        let unborne = begin.features & !FEATURES_BORNE;
        self.check(unborne == 0, || format!("it needs {}", feature_names(unborne)))?;
        self.check(begin.flags & !FLAGS_KNOWN == 0, || {
            format!("it has flags that are not known ({:#x})", begin.flags)
        })?;
        self.check(begin.payload_len == 0, || {
            format!("its first record has a payload of {} bytes", begin.payload_len)
        })?;
        self.check_identity(&begin)?;
        self.state = State::Records;
        Ok(())
    }

    fn check_identity(&self, begin: &Begin) -> Result<(), Refused> {
        let Expected { to_guid, from_guid, .. } = self.expected;
        self.check(begin.to_guid == to_guid, || {
            format!("it is of the snapshot with guid {}, not {to_guid}", begin.to_guid)
        })?;
        let from_guid = from_guid.unwrap_or(0);
        self.check(begin.from_guid == from_guid, || {
            format!("it holds the changes since guid {}, not {from_guid}", begin.from_guid)
        })
    }

    /// Takes records until one makes a piece.
    fn advance(&mut self, bytes: &mut Vec<u8>) -> Result<Option<Piece>, Refused> {
        loop {
            let piece = match self.records.next()? {
                Record::Object { object, kind } => {
                    self.object(object, kind)?;
                    None
                }
                Record::FreeObjects { first, count } => {
                    self.free_objects(first, count)?;
                    None
                }
                Record::Write { object: DATA, kind, offset, len } => {
                    self.data(kind, offset, len, bytes)?
                }
                Record::Write { object, kind, offset, len } => {
                    self.properties(object, kind, offset, len)?;
                    None
                }
                Record::Free { object: DATA, offset, len } => self.zero(offset, len)?,
                Record::Free { object, offset, .. } => {
                    self.free_properties(object, offset)?;
                    None
                }
                Record::End => return self.end(),
            };
            if piece.is_some() {
                return Ok(piece);
            }
        }
    }

    fn object(&mut self, object: u64, kind: u32) -> Result<(), Refused> {
        self.check(object > self.object, || {
            format!("object {object} comes after object {}", self.object)
        })?;
        let known = matches!((object, kind), (DATA, DATA_KIND) | (PROPERTIES, PROPERTIES_KIND));
        self.check(known, || format!("no volume has an object {object} of type {kind}"))?;
        self.object = object;
        Ok(())
    }

    fn free_objects(&self, first: u64, count: u64) -> Result<(), Refused> {
        let spares = first.saturating_add(count) <= DATA || first > PROPERTIES;
        self.check(spares, || "it frees the objects that a volume consists of".into())
    }

    /// Whether records may be about `object` now.
    fn check_object(&self, object: u64) -> Result<(), Refused> {
        self.check(object == self.object, || {
            format!("a record of object {object} comes among those of object {}", self.object)
        })
    }

    /// A block of the volume.
    fn data(
        &mut self,
        kind: u32,
        offset: u64,
        len: u64,
        bytes: &mut Vec<u8>,
    ) -> Result<Option<Piece>, Refused> {
        self.check_object(DATA)?;
        self.check(kind == DATA_KIND, || format!("a block of the volume is of type {kind}"))?;
        let end = offset.saturating_add(len);
        self.check_order(offset)?;
        self.check(self.tail.is_none_or(|tail| end <= tail), || {
            format!("a block at {offset:#x} lies behind the volume's last one")
        })?;
        self.settled = end;
        self.records.payload(len, bytes)?;
        // The block that straddles the size is there where a volume was made shorter; what lies
        // behind it is not of the volume.
        let within = self.expected.size.saturating_sub(offset).min(len);
        bytes.truncate(usize::try_from(within).unwrap_or(bytes.len()));
        Ok((within > 0).then_some(Piece::Data { offset }))
    }

    /// Blocks of the volume that are no more.
    fn zero(&mut self, offset: u64, len: u64) -> Result<Option<Piece>, Refused> {
        self.check_object(DATA)?;
        let end = offset.saturating_add(len);
        if len == u64::MAX && self.tail.is_none() && self.settled == 0 {
            self.tail = Some(offset);
            return Ok(None);
        }
        self.check_order(offset)?;
        self.settled = end;
        // Blocks are freed by the thousand, so that some lie behind the last one as well.
        let end = end.min(self.tail.unwrap_or(u64::MAX)).min(self.expected.size);
        Ok((offset < end).then_some(Piece::Zero(offset..end)))
    }

    fn check_order(&self, offset: u64) -> Result<(), Refused> {
        self.check(offset >= self.settled, || {
            format!("what is at {offset:#x} comes after what ends at {:#x}", self.settled)
        })
    }

    /// The block of properties, of which only the size is of interest.
    fn properties(&mut self, object: u64, kind: u32, offset: u64, len: u64) -> Result<(), Refused> {
        self.check_object(object)?;
        self.check(kind == PROPERTIES_KIND, || format!("properties are of type {kind}"))?;
        self.check(offset == 0 && len <= PROPERTIES_LEN_MAX && self.size.is_none(), || {
            "the properties have more than one block".into()
        })?;
        let mut block = Vec::new();
        self.records.payload(len, &mut block)?;
        let size = size_property(&block).map_err(|why| self.records.refused(why))?;
        let expected = self.expected.size;
        self.check(size == expected, || {
            format!("the volume has {size} bytes in it, and {expected} in its snapshot")
        })?;
        self.size = Some(size);
        Ok(())
    }

    fn free_properties(&self, object: u64, offset: u64) -> Result<(), Refused> {
        self.check_object(object)?;
        self.check(offset > 0, || "it takes the volume's properties away".into())
    }

    /// The end was read and its checksum is right.
    fn end(&mut self) -> Result<Option<Piece>, Refused> {
        self.records.check_end()?;
        self.check(self.size.is_some() || self.expected.from_guid.is_some(), || {
            "it is of a whole volume and does not say how large that is".into()
        })?;
        self.state = State::Done;
        // All that was handed out lies before it.
        let tail = self.tail.map(|tail| tail..self.expected.size);
        Ok(tail.filter(|tail| tail.start < tail.end).map(Piece::Zero))
    }

    fn check(&self, holds: bool, why: impl FnOnce() -> String) -> Result<(), Refused> {
        if holds { Ok(()) } else { Err(self.records.refused(why())) }
    }
}

/// What these feature bits are called.
fn feature_names(bits: u64) -> String {
    let name = |bit: u32| {
        let known = FEATURES.iter().find(|(known, _)| *known == bit);
        known.map_or_else(
            || format!("a feature that is not known (bit {bit})"),
            |(_, name)| (*name).into(),
        )
    };
    let names: Vec<String> = (0..u64::BITS).filter(|bit| bits & 1 << bit != 0).map(name).collect();
    names.join(", ")
}

/// The number called `size` in a table of the smallest kind.
fn size_property(block: &[u8]) -> Result<u64, &'static str> {
    const SMALL_TABLE: u64 = 1 << 63 | 3;
    const NAME_AT: usize = 14;
    let number =
        |entry: &[u8; 64]| entry.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
    match block.as_chunks::<64>().0.split_first() {
        Some((head, entries)) if number(head) == SMALL_TABLE => entries
            .iter()
            .find(|entry| entry[NAME_AT..].starts_with(b"size\0"))
            .map(number)
            .ok_or("the volume's properties do not say its size"),
        _ => Err("the volume's properties are of a kind that is not known"),
    }
}
