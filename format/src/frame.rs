//! Frames: a few new chunks stored together, self-describing.

use crate::checksum::{crc32c, crc32c_of};
use crate::error::{FormatError, Result, Structure};
use crate::limits::{FRAME_CHUNKS_MAX, FRAME_RAW_LEN_MAX};
use crate::units::Id;
use crate::wire::{Reserved, on_disk};

/// First bytes of every frame.
pub const FRAME_MAGIC: [u8; 4] = *b"VFRM";

/// How a frame's payload is coded. Zero is never valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Codec {
    /// As it is.
    Store = 1,
    /// One zstd frame (RFC 8878), with its content size in its header and no dictionary.
    Zstd = 2,
}

impl Codec {
    /// The codec of this number.
    pub fn from_number(number: u8) -> Option<Codec> {
        match number {
            1 => Some(Codec::Store),
            2 => Some(Codec::Zstd),
            _ => None,
        }
    }
}

/// What a stored item is. Zero is never valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum ItemKind {
    /// A chunk of a volume.
    Chunk = 1,
    /// A map node.
    Node = 2,
    /// A piece of an attached file.
    Attached = 3,
    /// A session's note: which volumes its chunk entries speak of.
    Note = 4,
}

impl ItemKind {
    /// The kind of this number.
    pub fn from_number(number: u8) -> Option<ItemKind> {
        match number {
            1 => Some(ItemKind::Chunk),
            2 => Some(ItemKind::Node),
            3 => Some(ItemKind::Attached),
            4 => Some(ItemKind::Note),
            _ => None,
        }
    }
}

on_disk! {
    /// A frame's first 64 bytes.
    pub struct FrameHead[64] {
        /// [`FRAME_MAGIC`]: where a scan finds frames.
        0 magic: [u8; 4],
        /// A [`Codec`].
        4 codec: u8,
        /// Reserved bits: zero.
        5 flags: Reserved<1>,
        /// Items in the frame, 1..=256.
        6 chunk_count: u16,
        /// Bytes of the frame: head, entries and payload, without the padding behind.
        8 stored_len: u32,
        /// Bytes of the payload; never more than `raw_len`.
        12 payload_len: u32,
        /// Bytes of the decoded payload: the sum of its items' lengths, 1..=1 MiB.
        16 raw_len: u32,
        /// CRC-32C of the payload.
        20 payload_crc: u32,
        /// Kept for the nonce of an encrypted payload: zero.
        24 nonce: Reserved<24>,
        /// Zero.
        48 reserved: Reserved<12>,
        /// CRC-32C of the 60 bytes before and of all chunk entries.
        60 head_crc: u32,
    }
}

on_disk! {
    /// One item of a frame: what it is and where it belonged when it was first stored. The same
    /// entry stands in the segment's table.
    pub struct ChunkEntry[48] {
        /// The item's id.
        0 id: Id,
        /// Chunk: its number in the volume. Node: level in the top byte, number on its level
        /// below. Attached: byte offset in the file. Note: 0.
        32 index: u64,
        /// Bytes of the item in the decoded payload; items follow one another in order.
        40 raw_len: u32,
        /// Number of the volume (or attached file) in the session's note.
        44 volume: u16,
        /// An [`ItemKind`].
        46 kind: u8,
        /// Zero.
        47 reserved: Reserved<1>,
    }
}

/// A frame whose head and entries passed their checks.
#[derive(Clone, Debug)]
pub struct Frame<'a> {
    /// The head.
    pub head: FrameHead,
    /// The codec.
    pub codec: Codec,
    /// The items in payload order.
    pub entries: Vec<ChunkEntry>,
    /// The payload as stored; not checked by [`Frame::decode`], see [`Frame::check_payload`].
    pub payload: &'a [u8],
}

/// Bytes of a frame's head and entries.
pub fn head_len(chunk_count: u16) -> usize {
    FrameHead::LEN.saturating_add(ChunkEntry::LEN.saturating_mul(usize::from(chunk_count)))
}

/// A frame: its head, its entries and its payload.
///
/// # Panics
/// As [`encode_head`].
pub fn encode(codec: Codec, entries: &[ChunkEntry], payload: &[u8]) -> Vec<u8> {
    let mut frame = head_of(codec, entries, payload);
    frame.extend_from_slice(payload);
    frame
}

/// A frame's head and entries, for this payload.
///
/// # Panics
/// As [`encode_head`].
pub fn head_of(codec: Codec, entries: &[ChunkEntry], payload: &[u8]) -> Vec<u8> {
    let count = u16::try_from(entries.len()).unwrap_or(u16::MAX);
    let mut head = vec![0; head_len(count)];
    let payload_len = u32::try_from(payload.len()).unwrap_or(u32::MAX);
    encode_head(codec, entries, payload_len, crc32c(payload), &mut head);
    head
}

/// Writes a frame's head and entries, for a payload with these lengths and checksum, to `out`,
/// which is [`head_len`] long.
///
/// # Panics
/// In debug builds, if the caller breaks a limit; the decoder would refuse the frame.
pub fn encode_head(
    codec: Codec,
    entries: &[ChunkEntry],
    payload_len: u32,
    payload_crc: u32,
    out: &mut [u8],
) {
    let raw_len = entries.iter().fold(0u32, |sum, entry| sum.saturating_add(entry.raw_len));
    let count = u16::try_from(entries.len()).unwrap_or(u16::MAX);
    debug_assert!((1..=FRAME_CHUNKS_MAX).contains(&count));
    debug_assert!((1..=FRAME_RAW_LEN_MAX).contains(&raw_len) && payload_len <= raw_len);
    debug_assert_eq!(out.len(), head_len(count));
    let (head_bytes, entry_bytes) = out.split_at_mut(FrameHead::LEN);
    for (to, entry) in entry_bytes.chunks_exact_mut(ChunkEntry::LEN).zip(entries) {
        to.copy_from_slice(&entry.encode());
    }
    let mut head = FrameHead {
        magic: FRAME_MAGIC,
        codec: codec as u8,
        flags: Reserved,
        chunk_count: count,
        stored_len: u32::try_from(head_len(count)).unwrap_or(u32::MAX).saturating_add(payload_len),
        payload_len,
        raw_len,
        payload_crc,
        nonce: Reserved,
        reserved: Reserved,
        head_crc: 0,
    };
    head.head_crc = crc32c_of(&[head.encode().split_at(60).0, entry_bytes]);
    head_bytes.copy_from_slice(&head.encode());
}

impl<'a> Frame<'a> {
    /// The frame at the start of `bytes`, which may go on behind it.
    ///
    /// # Errors
    /// Names the broken requirement. Every length is checked before it is used.
    pub fn decode(bytes: &'a [u8]) -> Result<Frame<'a>> {
        let head = Frame::decode_head(bytes)?;
        let (head_bytes, payload) = bytes
            .split_at_checked(head_len(head.chunk_count))
            .ok_or_else(|| fail("F-021", "its entries are cut short".into()))?;
        Frame::assemble(head, head_bytes, payload)
    }

    /// As [`Frame::decode`], for a writer that holds head (with entries) and payload apart.
    ///
    /// # Errors
    /// As [`Frame::decode`].
    pub fn decode_parts(head_bytes: &[u8], payload: &'a [u8]) -> Result<Frame<'a>> {
        let head = Frame::decode_head(head_bytes)?;
        match head_bytes.len() == head_len(head.chunk_count) {
            true => Frame::assemble(head, head_bytes, payload),
            false => Err(fail("F-021", "its entries are cut short".into())),
        }
    }

    fn assemble(head: FrameHead, head_bytes: &[u8], payload: &'a [u8]) -> Result<Frame<'a>> {
        let codec = Codec::from_number(head.codec)
            .ok_or_else(|| fail("F-024", format!("codec {}", head.codec)))?;
        let (fixed, entry_bytes) =
            head_bytes.split_at_checked(FrameHead::LEN).unwrap_or((head_bytes, &[]));
        let crc =
            crc32c_of(&[fixed.split_at_checked(60).map_or(fixed, |(fixed, _)| fixed), entry_bytes]);
        if crc != head.head_crc {
            let problem = format!("head checksum {crc:#010x}, stored {:#010x}", head.head_crc);
            return Err(fail("F-022", problem));
        }
        let payload = payload
            .get(..head.payload_len as usize)
            .ok_or_else(|| fail("F-021", "its payload is cut short".into()))?;
        let entries = decode_entries(entry_bytes).map_err(|error| fail("F-026", error))?;
        check_entries(&entries, head.raw_len)?;
        Ok(Frame { head, codec, entries, payload })
    }

    /// The head at the start of `bytes` with its lengths checked against the limits and one
    /// another, but not yet its checksum (which covers the entries behind it).
    ///
    /// # Errors
    /// Names the broken requirement.
    pub fn decode_head(bytes: &[u8]) -> Result<FrameHead> {
        if !bytes.starts_with(&FRAME_MAGIC) {
            return Err(fail("F-020", "the magic bytes are missing".into()));
        }
        let head = FrameHead::decode(bytes)
            .map_err(|field| fail("F-021", format!("field {field} is cut short or not zero")))?;
        let expected = (head_len(head.chunk_count) as u64).saturating_add(head.payload_len.into());
        let lengths_fit = (1..=FRAME_CHUNKS_MAX).contains(&head.chunk_count)
            && (1..=FRAME_RAW_LEN_MAX).contains(&head.raw_len)
            && head.payload_len <= head.raw_len
            && u64::from(head.stored_len) == expected
            && (head.codec != Codec::Store as u8 || head.payload_len == head.raw_len);
        match lengths_fit {
            true => Ok(head),
            false => Err(fail("F-021", "its lengths contradict one another".into())),
        }
    }

    /// Checks the payload's CRC-32C.
    ///
    /// # Errors
    /// F-023 with both values.
    pub fn check_payload(&self) -> Result<()> {
        let crc = crc32c(self.payload);
        match crc == self.head.payload_crc {
            true => Ok(()),
            false => {
                let stored = self.head.payload_crc;
                Err(fail("F-023", format!("payload checksum {crc:#010x}, stored {stored:#010x}")))
            }
        }
    }
}

/// The entries in `bytes`, whose length is a multiple of [`ChunkEntry::LEN`].
pub(crate) fn decode_entries(bytes: &[u8]) -> Result<Vec<ChunkEntry>, String> {
    bytes
        .chunks_exact(ChunkEntry::LEN)
        .map(|bytes| {
            let entry =
                ChunkEntry::decode(bytes).map_err(|field| format!("entry field {field}"))?;
            match ItemKind::from_number(entry.kind) {
                Some(_) => Ok(entry),
                None => Err(format!("item kind {}", entry.kind)),
            }
        })
        .collect()
}

fn check_entries(entries: &[ChunkEntry], raw_len: u32) -> Result<()> {
    let sum = entries
        .iter()
        .try_fold(0u32, |sum, entry| sum.checked_add(entry.raw_len).filter(|_| entry.raw_len > 0));
    match sum == Some(raw_len) {
        true => Ok(()),
        false => Err(fail("F-025", "its items do not add up to its decoded length".into())),
    }
}

fn fail(requirement: &'static str, problem: String) -> FormatError {
    FormatError::new(Structure::Frame, requirement, problem)
}

impl ChunkEntry {
    /// The entry of an item of `raw_len` bytes, of volume 0.
    pub fn new(kind: ItemKind, id: Id, index: u64, raw_len: usize) -> ChunkEntry {
        let raw_len = u32::try_from(raw_len).unwrap_or(u32::MAX);
        ChunkEntry { id, index, raw_len, volume: 0, kind: kind as u8, reserved: Reserved }
    }

    /// The item's kind; entries that were decoded have one.
    pub fn item_kind(&self) -> Option<ItemKind> {
        ItemKind::from_number(self.kind)
    }
}

/// The `index` of a map node's entry: its level and its number on that level.
pub fn node_index(level: u8, number: u64) -> u64 {
    (u64::from(level) << 56) | (number & 0x00ff_ffff_ffff_ffff)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checksum::chunk_id;

    pub(crate) fn stored_frame(items: &[&[u8]]) -> Vec<u8> {
        let entries: Vec<ChunkEntry> = items
            .iter()
            .zip(0..)
            .map(|(item, index)| {
                ChunkEntry::new(ItemKind::Chunk, chunk_id(item), index, item.len())
            })
            .collect();
        encode(Codec::Store, &entries, &items.concat())
    }

    #[test]
    fn round_trip() {
        let bytes = stored_frame(&[b"first", b"second one"]);
        let frame = Frame::decode(&bytes).unwrap();
        frame.check_payload().unwrap();
        assert_eq!(frame.payload, b"firstsecond one");
        assert_eq!(frame.entries[1].id, chunk_id(b"second one"));
        assert_eq!(frame.head.stored_len as usize, bytes.len());
    }

    #[test]
    fn frames_hold_items_of_all_kinds_compressed_or_not() {
        for kind in [ItemKind::Chunk, ItemKind::Node, ItemKind::Attached, ItemKind::Note] {
            for (codec, payload) in [(Codec::Store, &b"123456"[..]), (Codec::Zstd, b"123")] {
                let entry = ChunkEntry::new(kind, chunk_id(b"123456"), 9, 6);
                let bytes = encode(codec, std::slice::from_ref(&entry), payload);
                let frame = Frame::decode(&bytes).unwrap();
                assert_eq!((frame.codec, frame.payload), (codec, payload));
                assert_eq!(frame.entries, [entry]);
                assert_eq!(frame.entries[0].item_kind(), Some(kind));
            }
        }
    }

    #[test]
    fn a_frame_in_two_parts_is_the_same_frame() {
        let bytes = stored_frame(&[b"first", b"second one"]);
        let (head, payload) = bytes.split_at(head_len(2));
        let frame = Frame::decode_parts(head, payload).unwrap();
        frame.check_payload().unwrap();
        assert_eq!(frame.entries, Frame::decode(&bytes).unwrap().entries);
        for wrong in [head.len() - 1, head.len() + 1] {
            let error = Frame::decode_parts(&bytes[..wrong], payload).unwrap_err();
            assert_eq!(error.requirement, "F-021");
        }
    }

    #[test]
    fn the_index_of_a_node_is_its_level_and_number() {
        assert_eq!(node_index(0, 0xabcdef), 0xabcdef);
        assert_eq!(node_index(6, 0x0012_3456_789a_bcde), 0x0612_3456_789a_bcde);
        assert_eq!(node_index(1, 0xff00_0000_0000_0002), 0x0100_0000_0000_0002);
    }

    #[test]
    fn f_020_to_f_026_every_bit_is_covered() {
        let good = stored_frame(&[b"first", b"second one"]);
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            let outcome = Frame::decode(&bad).and_then(|frame| frame.check_payload());
            outcome.expect_err("a flipped bit passed");
        }
        for len in 0..good.len() {
            Frame::decode(&good[..len]).expect_err("a truncated frame passed");
        }
    }

    fn with_head(change: impl FnOnce(&mut FrameHead, &mut [u8])) -> &'static str {
        let mut bytes = stored_frame(&[b"first", b"second one"]);
        let mut head = FrameHead::decode(&bytes).unwrap();
        let (head_bytes, rest) = bytes.split_at_mut(64);
        change(&mut head, &mut rest[..96]);
        head.head_crc = crc32c_of(&[&head.encode()[..60], &rest[..96]]);
        head_bytes.copy_from_slice(&head.encode());
        Frame::decode(&bytes).unwrap_err().requirement
    }

    #[test]
    fn f_021_lengths_must_agree() {
        assert_eq!(with_head(|head, _| head.stored_len += 1), "F-021");
        assert_eq!(with_head(|head, _| head.raw_len = u32::MAX), "F-021");
        let no_items = |head: &mut FrameHead, _: &mut [u8]| {
            (head.chunk_count, head.stored_len) = (0, 64 + head.payload_len);
        };
        assert_eq!(with_head(no_items), "F-021");
        let longer_when_stored = |head: &mut FrameHead, _: &mut [u8]| {
            (head.codec, head.payload_len) = (Codec::Zstd as u8, head.raw_len + 1);
            head.stored_len += 1;
        };
        assert_eq!(with_head(longer_when_stored), "F-021");
        assert_eq!(with_head(|head, _| head.payload_len = u32::MAX), "F-021");
        let shorter = |head: &mut FrameHead, _: &mut [u8]| {
            head.payload_len -= 1;
            head.stored_len -= 1;
        };
        assert_eq!(with_head(shorter), "F-021", "what is stored as it is has its decoded length");
    }

    #[test]
    fn f_024_unknown_codec() {
        assert_eq!(with_head(|head, _| head.codec = 9), "F-024");
        assert_eq!(with_head(|head, _| head.codec = 0), "F-024");
    }

    #[test]
    fn f_025_items_must_add_up() {
        assert_eq!(with_head(|_, entries| entries[40] += 1), "F-025");
        let empty_but_adding_up = |_: &mut FrameHead, entries: &mut [u8]| {
            (entries[40], entries[48 + 40]) = (0, 15);
        };
        assert_eq!(with_head(empty_but_adding_up), "F-025");
    }

    #[test]
    fn f_026_unknown_item_kind() {
        assert_eq!(with_head(|_, entries| entries[46] = 0), "F-026");
        assert_eq!(with_head(|_, entries| entries[47] = 1), "F-026");
    }
}
