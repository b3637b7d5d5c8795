//! Data segments: a bounded run of frames with a sealed table at its end.
//!
//! ```text
//! | RecordHead 128 | frame, padded to 64 | frame | … | table | zeroes | footer 128 |
//! 0                128                                                     multiple of 4096
//! ```

use crate::checksum::{body_hash, crc32c};
use crate::error::{FormatError, Result, Structure};
use crate::frame::{ChunkEntry, Codec, Frame, FrameHead, decode_entries, head_len};
use crate::limits::{
    BLOCK_LEN, FRAME_ALIGN, FRAME_CHUNKS_MAX, FRAME_RAW_LEN_MAX, SEGMENT_CHUNKS_MAX,
    SEGMENT_LEN_MAX,
};
use crate::record::{RecordHead, RecordKind};
use crate::units::{ArchiveId, Id, LogOffset};
use crate::wire::{Reserved, Wire, is_zero, on_disk, round_up, slice};

/// First bytes of every table.
pub const TABLE_MAGIC: [u8; 4] = *b"VTAB";
/// First bytes of every footer.
pub const FOOTER_MAGIC: [u8; 8] = *b"VOLTEND\x01";

on_disk! {
    /// A table's first 64 bytes; frame entries, then chunk entries follow.
    pub struct TableHead[64] {
        /// [`TABLE_MAGIC`]: tells the table from another frame.
        0 magic: [u8; 4],
        /// Zero.
        4 reserved_a: Reserved<4>,
        /// Frames in the segment.
        8 frame_count: u32,
        /// Items in all its frames.
        12 chunk_count: u32,
        /// CRC-32C of all entries.
        16 entries_crc: u32,
        /// Zero.
        20 reserved_b: Reserved<40>,
        /// CRC-32C of the 60 bytes before.
        60 crc: u32,
    }
}

on_disk! {
    /// One frame in a table: enough to read it, decode it and find damage without its head.
    pub struct FrameEntry[32] {
        /// Bytes from the segment's start; a multiple of 64.
        0 offset: u32,
        /// As in the frame's head.
        4 stored_len: u32,
        /// As in the frame's head.
        8 payload_len: u32,
        /// As in the frame's head.
        12 raw_len: u32,
        /// As in the frame's head.
        16 payload_crc: u32,
        /// As in the frame's head.
        20 head_crc: u32,
        /// As in the frame's head.
        24 chunk_count: u16,
        /// As in the frame's head.
        26 codec: u8,
        /// Zero.
        27 reserved: Reserved<5>,
    }
}

on_disk! {
    /// The last 128 bytes of a data segment or an index run: what lies before, without reading it.
    pub struct Footer[128] {
        /// [`FOOTER_MAGIC`].
        0 magic: [u8; 8],
        /// A [`RecordKind`]: data or index.
        8 kind: u8,
        /// Zero.
        9 reserved_a: Reserved<7>,
        /// As in the record's head.
        16 archive_id: ArchiveId,
        /// Where the record starts: guards against misdirected writes.
        32 start: LogOffset,
        /// Bytes from there to the footer's end; a multiple of 4096.
        40 len: u64,
        /// As in the record's head.
        48 sequence: u64,
        /// Where the table starts, in bytes from the record's start (index: 0).
        56 table_offset: u32,
        /// Bytes of the table, without padding (index: 0).
        60 table_len: u32,
        /// BLAKE3 over the table (index: over its pages): what the commit's log hash covers.
        64 body_hash: Id,
        /// Frames in the segment (index: 0).
        96 frame_count: u32,
        /// Items in the segment (index: 0).
        100 chunk_count: u32,
        /// Zero.
        104 reserved_b: Reserved<20>,
        /// CRC-32C of the 124 bytes before.
        124 crc: u32,
    }
}

impl Footer {
    /// The footer's bytes with its checksum filled in.
    pub fn seal(mut self) -> [u8; Footer::LEN] {
        self.crc = 0;
        self.crc = crc32c(self.encode().split_at(124).0);
        self.encode()
    }

    /// The footer in the last 128 bytes of `block`, which ends at `end` in the log.
    ///
    /// # Errors
    /// F-033, naming what is wrong.
    pub fn decode_at(
        block: &[u8],
        end: LogOffset,
        archive_id: Option<ArchiveId>,
    ) -> Result<(Footer, RecordKind)> {
        let fail = |problem: String| {
            let at = LogOffset(end.0.saturating_sub(Footer::LEN as u64));
            FormatError::new(Structure::Footer, "F-033", problem).at(at)
        };
        let from = block.len().saturating_sub(Footer::LEN);
        let bytes = slice(block, from, Footer::LEN).ok_or_else(|| fail("cut short".into()))?;
        if !bytes.starts_with(&FOOTER_MAGIC) {
            return Err(fail("the magic bytes are missing".into()));
        }
        let stored = bytes.get(124..).and_then(u32::get).unwrap_or(0);
        let crc = crc32c(bytes.split_at(124).0);
        if crc != stored {
            return Err(fail(format!("checksum {crc:#010x}, stored {stored:#010x}")));
        }
        let footer =
            Footer::decode(bytes).map_err(|field| fail(format!("field {field} is not zero")))?;
        let kind = match RecordKind::from_number(footer.kind) {
            None if footer.kind != 0 => RecordKind::Other,
            Some(kind @ (RecordKind::Data | RecordKind::Index)) => kind,
            _ => return Err(fail(format!("record kind {}", footer.kind))),
        };
        if footer.start.checked_add(footer.len) != Some(end)
            || !footer.len.is_multiple_of(BLOCK_LEN as u64)
            || !footer.is_plausible(kind)
        {
            return Err(fail(format!("it claims {} bytes from {}", footer.len, footer.start)));
        }
        if archive_id.is_some_and(|id| id != footer.archive_id) {
            return Err(fail(format!("it belongs to archive {}", footer.archive_id)));
        }
        Ok((footer, kind))
    }
}

impl Footer {
    /// Whether its numbers are possible for a record of this kind.
    fn is_plausible(&self, kind: RecordKind) -> bool {
        let block = BLOCK_LEN as u64;
        let table_end = u64::from(self.table_offset).saturating_add(self.table_len.into());
        let data_len = round_up(table_end.saturating_add(Footer::LEN as u64), block);
        let no_table = self.table_offset == 0 && self.table_len == 0;
        let no_items = self.frame_count == 0 && self.chunk_count == 0;
        self.start.0 >= block
            && self.len >= block
            && match kind {
                RecordKind::Data => self.len == data_len && self.len <= SEGMENT_LEN_MAX,
                RecordKind::Index => no_table && no_items,
                RecordKind::Commit | RecordKind::Other => true,
            }
    }
}

impl FrameEntry {
    /// The entry of the frame with this head that starts `offset` bytes into its segment.
    fn new(offset: u32, head: &FrameHead) -> FrameEntry {
        FrameEntry {
            offset,
            stored_len: head.stored_len,
            payload_len: head.payload_len,
            raw_len: head.raw_len,
            payload_crc: head.payload_crc,
            head_crc: head.head_crc,
            chunk_count: head.chunk_count,
            codec: head.codec,
            reserved: Reserved,
        }
    }
}

/// What a data segment holds: its frames, and their items in the same order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    /// The frames.
    pub frames: Vec<FrameEntry>,
    /// The items of all frames, one frame after another.
    pub chunks: Vec<ChunkEntry>,
}

impl Table {
    /// Adds a frame that starts `offset` bytes into the segment; `bytes` is the frame.
    ///
    /// # Errors
    /// The frame's own, if it does not decode.
    pub fn push(&mut self, offset: u32, frame: &Frame<'_>) {
        self.frames.push(FrameEntry::new(offset, &frame.head));
        self.chunks.extend_from_slice(&frame.entries);
    }

    /// The frames with their items.
    pub fn iter(&self) -> impl Iterator<Item = (&FrameEntry, &[ChunkEntry])> {
        let mut rest = self.chunks.as_slice();
        self.frames.iter().map(move |frame| {
            let count = usize::from(frame.chunk_count).min(rest.len());
            let (chunks, tail) = rest.split_at(count);
            rest = tail;
            (frame, chunks)
        })
    }

    /// Everything of the segment from the table on: table, zeroes, footer. `table_offset` is
    /// where the frames end, a multiple of 64.
    pub fn seal(
        &self,
        archive_id: ArchiveId,
        start: LogOffset,
        sequence: u64,
        table_offset: u32,
    ) -> Vec<u8> {
        let mut bytes = self.encode();
        let table_len = bytes.len();
        let used = u64::from(table_offset).saturating_add(table_len as u64);
        let len = round_up(used.saturating_add(Footer::LEN as u64), BLOCK_LEN as u64);
        let footer = Footer {
            magic: FOOTER_MAGIC,
            kind: RecordKind::Data as u8,
            reserved_a: Reserved,
            archive_id,
            start,
            len,
            sequence,
            table_offset,
            table_len: u32::try_from(table_len).unwrap_or(u32::MAX),
            body_hash: body_hash(&[&bytes]),
            frame_count: self.frames.len() as u32,
            chunk_count: self.chunks.len() as u32,
            reserved_b: Reserved,
            crc: 0,
        };
        let padded = len.saturating_sub(u64::from(table_offset)) as usize;
        bytes.resize(padded.saturating_sub(Footer::LEN), 0);
        bytes.extend_from_slice(&footer.seal());
        bytes
    }

    fn encode(&self) -> Vec<u8> {
        let frames = self.frames.len().saturating_mul(FrameEntry::LEN);
        let chunks = self.chunks.len().saturating_mul(ChunkEntry::LEN);
        let capacity = TableHead::LEN.saturating_add(frames).saturating_add(chunks);
        let mut entries = Vec::with_capacity(capacity);
        self.frames.iter().for_each(|frame| entries.extend_from_slice(&frame.encode()));
        self.chunks.iter().for_each(|chunk| entries.extend_from_slice(&chunk.encode()));
        let mut head = TableHead {
            magic: TABLE_MAGIC,
            reserved_a: Reserved,
            frame_count: self.frames.len() as u32,
            chunk_count: self.chunks.len() as u32,
            entries_crc: crc32c(&entries),
            reserved_b: Reserved,
            crc: 0,
        };
        head.crc = crc32c(head.encode().split_at(60).0);
        entries.splice(0..0, head.encode());
        entries
    }

    /// Whether `bytes` start like a table.
    pub fn is_candidate(bytes: &[u8]) -> bool {
        bytes.starts_with(&TABLE_MAGIC)
    }

    /// Bytes of the whole table whose head starts `bytes`.
    ///
    /// # Errors
    /// F-030 if the head is damaged or breaks a limit.
    pub fn encoded_len(bytes: &[u8]) -> Result<usize> {
        Table::decode_head(bytes).map(|(_, len)| len)
    }

    fn decode_head(bytes: &[u8]) -> Result<(TableHead, usize)> {
        let fail = |problem: String| FormatError::new(Structure::Table, "F-030", problem);
        if !Table::is_candidate(bytes) {
            return Err(fail("the magic bytes are missing".into()));
        }
        let head = TableHead::decode(bytes)
            .map_err(|field| fail(format!("field {field} is cut short or not zero")))?;
        let crc = crc32c(bytes.split_at(60).0);
        if crc != head.crc {
            return Err(fail(format!("checksum {crc:#010x}, stored {:#010x}", head.crc)));
        }
        if head.chunk_count > SEGMENT_CHUNKS_MAX.saturating_add(FRAME_CHUNKS_MAX.into())
            || head.frame_count > head.chunk_count
        {
            return Err(fail(format!("{} frames, {} items", head.frame_count, head.chunk_count)));
        }
        let frames = (head.frame_count as usize).saturating_mul(FrameEntry::LEN);
        let chunks = (head.chunk_count as usize).saturating_mul(ChunkEntry::LEN);
        Ok((head, TableHead::LEN.saturating_add(frames).saturating_add(chunks)))
    }

    /// The table at the start of `bytes`.
    ///
    /// # Errors
    /// F-030 for its head, F-031 for its entries, F-032 where they contradict one another.
    pub fn decode(bytes: &[u8]) -> Result<Table> {
        let fail = |id, problem: String| FormatError::new(Structure::Table, id, problem);
        let (head, len) = Table::decode_head(bytes)?;
        let entries = bytes
            .get(TableHead::LEN..len)
            .ok_or_else(|| fail("F-031", "its entries are cut short".into()))?;
        let crc = crc32c(entries);
        if crc != head.entries_crc {
            let problem =
                format!("entries checksum {crc:#010x}, stored {:#010x}", head.entries_crc);
            return Err(fail("F-031", problem));
        }
        let frames_len = (head.frame_count as usize).saturating_mul(FrameEntry::LEN);
        let (frames, chunks) = entries.split_at_checked(frames_len).unwrap_or((entries, &[]));
        let frames = frames
            .chunks_exact(FrameEntry::LEN)
            .map(FrameEntry::decode)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|field| fail("F-032", format!("frame entry field {field}")))?;
        let chunks = decode_entries(chunks).map_err(|problem| fail("F-032", problem))?;
        let table = Table { frames, chunks };
        table.check()?;
        Ok(table)
    }

    /// Frames must follow one another without overlap, each within the limits, and their items
    /// must add up.
    fn check(&self) -> Result<()> {
        let fail = |problem: &str, frame: &FrameEntry| {
            let problem = format!("frame entry at {:#x}: {problem}", frame.offset);
            FormatError::new(Structure::Table, "F-032", problem)
        };
        let mut position = RecordHead::LEN as u64;
        let mut items = 0usize;
        for (frame, chunks) in self.iter() {
            if u64::from(frame.offset) != position {
                return Err(fail("it does not follow the frame before", frame));
            }
            let stored =
                (head_len(frame.chunk_count) as u64).saturating_add(frame.payload_len.into());
            let fits = (1..=FRAME_CHUNKS_MAX).contains(&frame.chunk_count)
                && u64::from(frame.stored_len) == stored
                && frame.payload_len <= frame.raw_len
                && (1..=FRAME_RAW_LEN_MAX).contains(&frame.raw_len)
                && Codec::from_number(frame.codec).is_some()
                && (frame.codec != Codec::Store as u8 || frame.payload_len == frame.raw_len)
                && chunks.iter().all(|chunk| chunk.raw_len > 0)
                && chunks.len() == usize::from(frame.chunk_count);
            let raw = chunks.iter().try_fold(0u32, |sum, chunk| sum.checked_add(chunk.raw_len));
            if !fits || raw != Some(frame.raw_len) {
                return Err(fail("its lengths contradict its items", frame));
            }
            items = items.saturating_add(chunks.len());
            let end = position.saturating_add(frame.stored_len.into());
            position = round_up(end, FRAME_ALIGN as u64);
        }
        if items != self.chunks.len() || position > SEGMENT_LEN_MAX {
            let problem = format!("{items} of {} items belong to a frame", self.chunks.len());
            return Err(FormatError::new(Structure::Table, "F-032", problem));
        }
        Ok(())
    }

    /// Where the frames end and the table starts, in bytes from the segment's start.
    pub fn offset_in_segment(&self) -> u64 {
        self.frames.last().map_or(RecordHead::LEN as u64, |frame| {
            let end = u64::from(frame.offset).saturating_add(frame.stored_len.into());
            round_up(end, FRAME_ALIGN as u64)
        })
    }
}

/// Checks that a frame is the one its table speaks of.
///
/// # Errors
/// F-032.
pub fn check_frame_entry(entry: &FrameEntry, frame: &Frame<'_>) -> Result<()> {
    match *entry == FrameEntry::new(entry.offset, &frame.head) {
        true => Ok(()),
        false => Err(FormatError::new(
            Structure::Frame,
            "F-032",
            "it is whole, but not the frame its segment's table speaks of",
        )),
    }
}

/// Checks the footer of a data segment against its table and the zeroes between.
///
/// `tail` is the segment from the table to the end.
///
/// # Errors
/// F-033 (footer contradicts the table), F-034 (padding not zero), F-035 (body hash).
pub fn check_tail(tail: &[u8], footer: &Footer, table: &Table) -> Result<()> {
    let fail = |id, problem: &str| FormatError::new(Structure::Footer, id, problem);
    let table_len = footer.table_len as usize;
    if u64::from(footer.table_offset) != table.offset_in_segment()
        || footer.frame_count as usize != table.frames.len()
        || footer.chunk_count as usize != table.chunks.len()
        || Table::encoded_len(tail) != Ok(table_len)
    {
        return Err(fail("F-033", "it contradicts its table"));
    }
    let padding = tail.len().saturating_sub(Footer::LEN).saturating_sub(table_len);
    if !slice(tail, table_len, padding).is_some_and(is_zero) {
        return Err(fail("F-034", "the padding before it is not zero"));
    }
    if body_hash(&[tail.get(..table_len).unwrap_or(&[])]) != footer.body_hash {
        return Err(fail("F-035", "its hash of the table does not match"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checksum::chunk_id;
    use crate::frame::{self, ItemKind};

    const ARCHIVE: ArchiveId = ArchiveId([3; 16]);

    fn frame_bytes(item: &[u8], index: u64) -> Vec<u8> {
        let entry = ChunkEntry::new(ItemKind::Chunk, chunk_id(item), index, item.len());
        frame::encode(Codec::Store, &[entry], item)
    }

    fn table() -> Table {
        let mut table = Table::default();
        let mut offset = 128;
        for (index, item) in [b"first".as_slice(), b"second item"].iter().enumerate() {
            let bytes = frame_bytes(item, index as u64);
            table.push(offset, &Frame::decode(&bytes).unwrap());
            offset = round_up(u64::from(offset) + bytes.len() as u64, 64) as u32;
        }
        table
    }

    fn sealed() -> (Table, Vec<u8>, LogOffset) {
        let table = table();
        let at = table.offset_in_segment();
        let tail = table.seal(ARCHIVE, LogOffset(8192), 5, at as u32);
        (table, tail.clone(), LogOffset(8192 + at + tail.len() as u64))
    }

    #[test]
    fn round_trip() {
        let (table, tail, end) = sealed();
        assert_eq!(Table::decode(&tail).unwrap(), table);
        let (footer, kind) = Footer::decode_at(&tail, end, Some(ARCHIVE)).unwrap();
        assert_eq!((kind, footer.sequence), (RecordKind::Data, 5));
        assert!(end.0.is_multiple_of(4096));
        check_tail(&tail, &footer, &table).unwrap();
    }

    #[test]
    fn f_030_to_f_035_every_bit_of_the_tail_is_covered() {
        let (_, good, end) = sealed();
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            let outcome = Footer::decode_at(&bad, end, Some(ARCHIVE))
                .and_then(|(footer, _)| check_tail(&bad, &footer, &Table::decode(&bad)?));
            outcome.expect_err("a flipped bit passed");
        }
    }

    #[test]
    fn f_030_counts_are_bounded_before_anything_is_allocated() {
        let (_, mut tail, _) = sealed();
        tail[12..16].copy_from_slice(&u32::MAX.to_le_bytes());
        let crc = crc32c(&tail[..60]).to_le_bytes();
        tail[60..64].copy_from_slice(&crc);
        assert_eq!(Table::decode(&tail).unwrap_err().requirement, "F-030");
    }

    #[test]
    fn f_030_a_table_head_says_how_long_the_table_is() {
        let len = |magic, frame_count, chunk_count| {
            let mut head = TableHead {
                magic,
                reserved_a: Reserved,
                frame_count,
                chunk_count,
                entries_crc: 0,
                reserved_b: Reserved,
                crc: 0,
            };
            head.crc = crc32c(&head.encode()[..60]);
            Table::encoded_len(&head.encode()).map_err(|error| error.requirement)
        };
        let most = SEGMENT_CHUNKS_MAX + u32::from(FRAME_CHUNKS_MAX);
        assert_eq!(len(TABLE_MAGIC, 2, 5), Ok(64 + 2 * 32 + 5 * 48));
        assert_eq!(len(TABLE_MAGIC, most, most), Ok(64 + most as usize * 80));
        assert_eq!(len(TABLE_MAGIC, 2, most + 1), Err("F-030"));
        assert_eq!(len(TABLE_MAGIC, 3, 2), Err("F-030"));
        assert_eq!(len(*b"VTAC", 2, 5), Err("F-030"));
    }

    #[test]
    fn f_032_overlapping_frames_are_refused() {
        let mut table = table();
        table.frames[1].offset = 128;
        let tail = table.seal(ARCHIVE, LogOffset(8192), 5, 512);
        assert_eq!(Table::decode(&tail).unwrap_err().requirement, "F-032");
    }

    #[test]
    fn f_032_frame_entries_keep_the_rules_of_frames() {
        let wrong: [fn(&mut Table); 5] = [
            |table| table.frames[0].payload_len = u32::MAX,
            |table| table.frames[0].stored_len = 0,
            |table| table.frames[0].codec = 0,
            |table| table.frames[1].raw_len = 0,
            |table| table.chunks[0].raw_len = 0,
        ];
        for change in wrong {
            let mut table = table();
            let at = table.offset_in_segment() as u32;
            change(&mut table);
            let tail = table.seal(ARCHIVE, LogOffset(8192), 5, at);
            assert_eq!(Table::decode(&tail).unwrap_err().requirement, "F-032");
        }
    }

    /// A table of frames with the lengths of these items, coded so that a frame of several items
    /// takes one byte less than they do.
    fn table_of(frames: &[&[u32]]) -> Table {
        let mut table = Table::default();
        for items in frames {
            let entries = items.iter().map(|len| ChunkEntry {
                raw_len: *len,
                ..ChunkEntry::new(ItemKind::Chunk, Id::default(), 0, 0)
            });
            table.chunks.extend(entries);
            let raw_len = items.iter().sum();
            let (codec, payload_len) = match items {
                [_] => (Codec::Store, raw_len),
                _ => (Codec::Zstd, raw_len - 1),
            };
            table.frames.push(FrameEntry {
                offset: table.offset_in_segment() as u32,
                stored_len: head_len(items.len() as u16) as u32 + payload_len,
                payload_len,
                raw_len,
                payload_crc: 0,
                head_crc: 0,
                chunk_count: items.len() as u16,
                codec: codec as u8,
                reserved: Reserved,
            });
        }
        table
    }

    fn outcome(table: &Table) -> Result<(), &'static str> {
        let decoded = Table::decode(&table.encode()).map_err(|error| error.requirement)?;
        assert_eq!(decoded, *table);
        Ok(())
    }

    #[test]
    fn f_032_each_rule_of_a_frame_counts_by_itself() {
        let full = [1; FRAME_CHUNKS_MAX as usize];
        let good = table_of(&[&[7], &full, &[2, 5], &[FRAME_RAW_LEN_MAX]]);
        assert_eq!(outcome(&good), Ok(()));
        let crowded = [1; FRAME_CHUNKS_MAX as usize + 1];
        for frame in [&[2, 0, 5][..], &[FRAME_RAW_LEN_MAX + 1], &crowded] {
            assert_eq!(outcome(&table_of(&[frame])), Err("F-032"), "{frame:?}");
        }
        let wrong: [fn(&mut FrameEntry); 4] = [
            |frame| frame.stored_len += 1,
            |frame| frame.codec = Codec::Store as u8,
            |frame| {
                frame.payload_len += 2;
                frame.stored_len += 2;
            },
            |frame| frame.codec = 3,
        ];
        for change in wrong {
            let mut table = table_of(&[&[2, 5]]);
            change(&mut table.frames[0]);
            assert_eq!(outcome(&table), Err("F-032"), "{:?}", table.frames[0]);
        }
    }

    #[test]
    fn f_032_items_belong_to_frames_within_a_segment() {
        let mut table = table_of(&[&[2, 5], &[7]]);
        table.chunks.push(table.chunks[0].clone());
        assert_eq!(outcome(&table), Err("F-032"));
        let longest = [FRAME_RAW_LEN_MAX];
        let rest = SEGMENT_LEN_MAX - table_of(&[&longest[..]; 63]).offset_in_segment();
        let last = [rest as u32 - head_len(1) as u32];
        let mut frames = vec![&longest[..]; 63];
        frames.push(&last);
        assert_eq!(table_of(&frames).offset_in_segment(), SEGMENT_LEN_MAX);
        assert_eq!(outcome(&table_of(&frames)), Ok(()));
        let longer = [last[0] + 1];
        frames[63] = &longer;
        assert_eq!(outcome(&table_of(&frames)), Err("F-032"));
    }

    #[test]
    fn f_033_a_footer_fits_its_kind_and_its_place() {
        let (_, tail, end) = sealed();
        let (data, _) = Footer::decode_at(&tail, end, None).unwrap();
        let bare = Footer { table_offset: 0, table_len: 0, frame_count: 0, chunk_count: 0, ..data };
        let of_kind = |kind| Footer { kind, ..bare.clone() };
        let (index, unknown) = (of_kind(RecordKind::Index as u8), of_kind(77));
        let kind = |footer: &Footer| {
            let end = footer.start.checked_add(footer.len).unwrap();
            let decoded = Footer::decode_at(&footer.clone().seal(), end, None);
            decoded.map(|(_, kind)| kind).map_err(|error| error.requirement)
        };
        assert_eq!(kind(&index), Ok(RecordKind::Index));
        assert_eq!(kind(&unknown), Ok(RecordKind::Other));
        let table_offset = SEGMENT_LEN_MAX as u32 - 4096;
        let of_data = |len| Footer {
            table_offset: table_offset + (len - SEGMENT_LEN_MAX) as u32,
            table_len: 64,
            len,
            ..of_kind(RecordKind::Data as u8)
        };
        assert_eq!(kind(&of_data(SEGMENT_LEN_MAX)), Ok(RecordKind::Data));
        let wrong = [
            of_data(SEGMENT_LEN_MAX + 4096),
            Footer { table_offset: 1, ..index.clone() },
            Footer { table_len: 1, ..index.clone() },
            Footer { frame_count: 1, ..index.clone() },
            Footer { chunk_count: 1, ..index.clone() },
            Footer { start: LogOffset(0), ..index.clone() },
            Footer { len: 0, ..index },
        ];
        for wrong in wrong {
            assert_eq!(kind(&wrong), Err("F-033"), "{wrong:?}");
        }
    }

    #[test]
    fn f_033_footer_numbers_are_possible() {
        let (_, tail, end) = sealed();
        let (footer, _) = Footer::decode_at(&tail, end, None).unwrap();
        let wrong = [
            Footer { len: footer.len + 4096, start: LogOffset(4096), ..footer.clone() },
            Footer { start: LogOffset(0), len: end.0, ..footer.clone() },
            Footer { table_len: 0x4000_0000, ..footer.clone() },
            Footer { kind: RecordKind::Index as u8, ..footer.clone() },
            Footer { kind: RecordKind::Commit as u8, ..footer.clone() },
            Footer { kind: 0, ..footer },
        ];
        for wrong in wrong {
            let error = Footer::decode_at(&wrong.clone().seal(), end, None).unwrap_err();
            assert_eq!(error.requirement, "F-033", "{wrong:?}");
        }
    }

    #[test]
    fn f_032_a_whole_frame_in_the_wrong_place_is_noticed() {
        let table = table();
        let own = frame_bytes(b"first", 0);
        check_frame_entry(&table.frames[0], &Frame::decode(&own).unwrap()).unwrap();
        let other = frame_bytes(b"other", 0);
        let error = check_frame_entry(&table.frames[0], &Frame::decode(&other).unwrap());
        assert_eq!(error.unwrap_err().requirement, "F-032");
    }

    #[test]
    fn f_033_each_number_of_a_footer_fits_its_table() {
        let (table, tail, end) = sealed();
        let (footer, _) = Footer::decode_at(&tail, end, None).unwrap();
        let wrong = [
            Footer { table_offset: footer.table_offset + 64, ..footer.clone() },
            Footer { table_len: footer.table_len + 48, ..footer.clone() },
            Footer { frame_count: 1, ..footer.clone() },
            Footer { chunk_count: 1, ..footer },
        ];
        for wrong in wrong {
            let error = check_tail(&tail, &wrong, &table).unwrap_err();
            assert_eq!(error.requirement, "F-033", "{wrong:?}");
        }
    }

    #[test]
    fn f_033_footer_of_another_archive_or_place() {
        let (_, tail, end) = sealed();
        Footer::decode_at(&tail, LogOffset(end.0 + 4096), Some(ARCHIVE)).unwrap_err();
        Footer::decode_at(&tail, end, Some(ArchiveId([9; 16]))).unwrap_err();
    }

    #[test]
    fn empty_table_seals() {
        let table = Table::default();
        let tail = table.seal(ARCHIVE, LogOffset(4096), 1, 128);
        assert_eq!(Table::decode(&tail).unwrap(), table);
        assert_eq!((128 + tail.len()) % 4096, 0);
    }
}
