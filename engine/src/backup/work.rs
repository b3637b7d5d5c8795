//! The workers: zero test, hash, look-up, compression and checksum of one read, in one go, while
//! it lies in the cache.

use std::ops::Range;

use crossbeam_channel::{Receiver, Sender};
use voltar_format::checksum::chunk_id;
use voltar_format::frame::{ChunkEntry, Codec, ItemKind, head_of};
use voltar_format::limits::FRAME_RAW_LEN_MAX;
use voltar_format::map::Entry;
use voltar_format::wire::is_zero;

use super::read::{Data, Item};
use crate::archive::index::Known;
use crate::codec::{Encoder, Level, Pace};
use crate::error::Result;
use crate::io::buffer::Buffer;
use crate::pipeline::Gauge;

/// What a worker made of an item.
pub struct Work {
    /// The map's entries for the chunks.
    pub result: Outcome,
    /// The frame with the chunks the archive did not hold.
    pub frame: Option<NewFrame>,
    /// What was found.
    pub counts: Counts,
    /// Byte ranges of the volume that could not be read.
    pub unreadable: Vec<Range<u64>>,
}

/// The states of an item's chunks.
pub enum Outcome {
    /// One entry a chunk.
    Entries(Vec<Entry>),
    /// All zero: so many chunks.
    Zero(u64),
    /// As in the parent.
    Keep(Range<u64>),
}

/// Bytes by what was found about them.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    /// Read from the source.
    pub read: u64,
    /// Different from the parent.
    pub changed: u64,
    /// Zero.
    pub zero: u64,
    /// New to the archive.
    pub new: u64,
    /// Held by the archive already.
    pub reused: u64,
}

/// A frame ready to be appended.
pub struct NewFrame {
    /// Head and entries.
    pub head: Vec<u8>,
    /// The payload.
    pub payload: Payload,
}

/// A frame's payload.
pub enum Payload {
    /// Compressed: so many bytes of a vector that goes back to its pool.
    Encoded(Vec<u8>, usize),
    /// As read: so many bytes of the read buffer.
    Raw(Buffer, usize),
}

impl NewFrame {
    /// The payload's bytes.
    pub fn payload(&self) -> &[u8] {
        match &self.payload {
            Payload::Encoded(bytes, len) => &bytes[..*len],
            Payload::Raw(buffer, len) => &buffer[..*len],
        }
    }
}

/// Output vectors, passed back and forth so that none is allocated per frame.
#[derive(Clone)]
pub struct Vectors {
    give: Sender<Vec<u8>>,
    take: Receiver<Vec<u8>>,
}

impl Vectors {
    /// Keeps up to `count` vectors.
    pub fn new(count: usize) -> Vectors {
        let (give, take) = crossbeam_channel::bounded(count);
        Vectors { give, take }
    }

    fn take(&self) -> Vec<u8> {
        self.take.try_recv().unwrap_or_else(|_| vec![0; FRAME_RAW_LEN_MAX as usize])
    }

    /// Takes a vector back.
    pub fn give(&self, vector: Vec<u8>) {
        // A full channel means there are enough; this one is freed.
        let _ = self.give.try_send(vector);
    }
}

/// What all workers of a volume share.
pub struct Shared {
    /// What need not be stored.
    pub known: Known,
    /// The level.
    pub pace: Pace,
    /// Output vectors.
    pub vectors: Vectors,
    /// The volume's number in the session's note.
    pub volume: u16,
    /// The volume's chunk length.
    pub chunk_len: usize,
}

/// Works on one item.
///
/// # Errors
/// Of looking up and compressing.
pub fn work(shared: &Shared, encoder: &mut Encoder, gauge: &Gauge, item: Item) -> Result<Work> {
    match item {
        Item::Data(data) => work_data(shared, encoder, gauge, data),
        Item::Zero { chunks, changed_bytes } => {
            let result = Outcome::Zero(chunks.end - chunks.start);
            let counts = Counts { changed: changed_bytes, ..Counts::default() };
            Ok(Work { result, frame: None, counts, unreadable: Vec::new() })
        }
        Item::Keep(chunks) => Ok(Work {
            result: Outcome::Keep(chunks),
            frame: None,
            counts: Counts::default(),
            unreadable: Vec::new(),
        }),
    }
}

fn work_data(shared: &Shared, encoder: &mut Encoder, gauge: &Gauge, data: Data) -> Result<Work> {
    let Data { chunks, mut buffer, expected, unreadable } = data;
    let base = chunks.start * shared.chunk_len as u64;
    let mut counts = Counts { read: buffer.len() as u64, ..Counts::default() };
    let mut entries = Vec::with_capacity((chunks.end - chunks.start) as usize);
    let mut fresh = Vec::new();
    // New chunks are moved together at the buffer's start, where they make up the payload.
    let mut gathered = 0;
    for (number, at) in (0u64..).zip((0..buffer.len()).step_by(shared.chunk_len)) {
        let end = (at + shared.chunk_len).min(buffer.len());
        let before = expected.get(number as usize);
        let bad = overlap(&unreadable, base + at as u64..base + end as u64);
        let (entry, is_new) = judge(shared, &buffer[at..end], before, bad, &mut counts)?;
        if let (true, Some(id)) = (is_new, entry.id()) {
            if at != gathered {
                buffer.copy_within(at..end, gathered);
            }
            gathered += end - at;
            let index = chunks.start + number;
            let entry = ChunkEntry::new(ItemKind::Chunk, *id, index, end - at);
            fresh.push(ChunkEntry { volume: shared.volume, ..entry });
        }
        entries.push(entry);
    }
    let frame = match fresh.is_empty() {
        true => None,
        false => {
            let level = shared.pace.level(gauge);
            Some(frame(shared, encoder, level, buffer, gathered, &fresh)?)
        }
    };
    Ok(Work { result: Outcome::Entries(entries), frame, counts, unreadable })
}

/// How much of a chunk could not be read.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Bad {
    None,
    Part,
    All,
}

fn overlap(unreadable: &[Range<u64>], chunk: Range<u64>) -> Bad {
    let lost: u64 = unreadable
        .iter()
        .map(|range| range.end.min(chunk.end).saturating_sub(range.start.max(chunk.start)))
        .sum();
    match lost {
        0 => Bad::None,
        lost if lost == chunk.end - chunk.start => Bad::All,
        _ => Bad::Part,
    }
}

/// The chunk's entry, and whether its bytes are new to the archive.
fn judge(
    shared: &Shared,
    bytes: &[u8],
    before: Option<&Entry>,
    bad: Bad,
    counts: &mut Counts,
) -> Result<(Entry, bool)> {
    let len = bytes.len() as u64;
    if bad == Bad::All {
        counts.changed += len;
        return Ok((Entry::Unreadable, false));
    }
    if bad == Bad::None && is_zero(bytes) {
        counts.zero += len;
        counts.changed += if before == Some(&Entry::Zero) { 0 } else { len };
        return Ok((Entry::Zero, false));
    }
    let id = chunk_id(bytes);
    let entry = if bad == Bad::Part { Entry::Partial(id) } else { Entry::Data(id) };
    let is_unchanged = before == Some(&entry);
    counts.changed += if is_unchanged { 0 } else { len };
    let is_held = is_unchanged && shared.known.trusts_archive();
    let is_new = !is_held && shared.known.is_new(&id)?;
    match is_new {
        true => counts.new += len,
        false => counts.reused += len,
    }
    Ok((entry, is_new))
}

/// Compresses and seals the first `len` bytes of `buffer` as a frame of these items.
fn frame(
    shared: &Shared,
    encoder: &mut Encoder,
    level: Level,
    buffer: Buffer,
    len: usize,
    entries: &[ChunkEntry],
) -> Result<NewFrame> {
    let mut out = shared.vectors.take();
    let encoded = encoder.encode(&buffer[..len], level, &mut out)?;
    let (codec, payload) = match encoded {
        Some(count) => (Codec::Zstd, Payload::Encoded(out, count)),
        None => {
            shared.vectors.give(out);
            (Codec::Store, Payload::Raw(buffer, len))
        }
    };
    let mut frame = NewFrame { head: Vec::new(), payload };
    frame.head = head_of(codec, entries, frame.payload());
    Ok(frame)
}
