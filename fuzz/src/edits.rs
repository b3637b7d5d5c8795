//! A script of small changes to an archive, at places that mean something: the fields of its
//! structures.

use arbitrary::{Result, Unstructured};
use voltar_format::commit::{CommitHead, RunEntry};
use voltar_format::frame::{ChunkEntry, FRAME_MAGIC, FrameHead};
use voltar_format::header::HeaderFields;
use voltar_format::index::{IndexEntry, PAGE_MAGIC, PageHead, RunHead};
use voltar_format::limits::BLOCK_LEN;
use voltar_format::map::{NODE_MAGIC, NodeHead};
use voltar_format::record::{RECORD_MAGIC, RecordHead, RecordKind};
use voltar_format::segment::{FOOTER_MAGIC, Footer, FrameEntry, TABLE_MAGIC, TableHead};
use voltar_format::wire::StructLayout;

use crate::wire::{put, u16_at, u32_at};

/// A field of a structure of an archive: its place and its length.
#[derive(Clone, Copy, Debug)]
pub struct Field {
    at: usize,
    len: usize,
}

/// The fields of every structure that can be told by its first bytes, from `from` on.
pub fn fields(bytes: &[u8], from: usize) -> Vec<Field> {
    let mut found = Vec::new();
    let mut add = |at: usize, layout: &StructLayout| {
        found.extend(layout.fields.iter().map(|f| Field { at: at + f.offset, len: f.len }));
    };
    for at in from..bytes.len() {
        // All but the header start with this letter; the test spares the comparisons.
        if at > 0 && bytes[at] != b'V' {
            continue;
        }
        let rest = &bytes[at..];
        if at == 0 {
            add(at, &HeaderFields::LAYOUT);
        } else if rest.starts_with(&RECORD_MAGIC) {
            add(at, &RecordHead::LAYOUT);
            match RecordKind::from_number(bytes[at + 8]) {
                Some(RecordKind::Commit) => {
                    let head = at + RecordHead::LEN;
                    add(head, &CommitHead::LAYOUT);
                    let runs = u32_at(bytes, head + 148).min(8) as usize;
                    for run in 0..runs {
                        add(head + CommitHead::LEN + run * RunEntry::LEN, &RunEntry::LAYOUT);
                    }
                }
                Some(RecordKind::Index) => add(at + RecordHead::LEN, &RunHead::LAYOUT),
                _ => {}
            }
        } else if rest.starts_with(&FRAME_MAGIC) {
            add(at, &FrameHead::LAYOUT);
            for item in 0..usize::from(u16_at(bytes, at + 6).min(8)) {
                add(at + FrameHead::LEN + item * ChunkEntry::LEN, &ChunkEntry::LAYOUT);
            }
        } else if rest.starts_with(&TABLE_MAGIC) {
            add(at, &TableHead::LAYOUT);
            let frames = u32_at(bytes, at + 8).min(8) as usize;
            let items = u32_at(bytes, at + 12).min(16) as usize;
            let first = at + TableHead::LEN;
            (0..frames).for_each(|n| add(first + n * FrameEntry::LEN, &FrameEntry::LAYOUT));
            let first = first + frames * FrameEntry::LEN;
            (0..items).for_each(|n| add(first + n * ChunkEntry::LEN, &ChunkEntry::LAYOUT));
        } else if rest.starts_with(&PAGE_MAGIC) {
            add(at, &PageHead::LAYOUT);
            for entry in 0..usize::from(u16_at(bytes, at + 12).min(8)) {
                add(at + PageHead::LEN + entry * IndexEntry::LEN, &IndexEntry::LAYOUT);
            }
        } else if rest.starts_with(&FOOTER_MAGIC) {
            add(at, &Footer::LAYOUT);
        } else if rest.starts_with(&NODE_MAGIC) {
            add(at, &NodeHead::LAYOUT);
        }
    }
    found.retain(|field| field.at + field.len <= bytes.len());
    found
}

/// Applies up to `most` edits at or behind `from`.
pub fn apply(
    bytes: &mut Vec<u8>,
    from: usize,
    most: usize,
    u: &mut Unstructured<'_>,
) -> Result<()> {
    let fields = fields(bytes, from);
    if fields.is_empty() {
        return Ok(());
    }
    for _ in 0..u.int_in_range(1..=most)? {
        if u.is_empty() {
            break;
        }
        edit(bytes, from, &fields, u)?;
    }
    Ok(())
}

fn edit(
    bytes: &mut Vec<u8>,
    from: usize,
    fields: &[Field],
    u: &mut Unstructured<'_>,
) -> Result<()> {
    let field = *u.choose(fields)?;
    let block = field.at / BLOCK_LEN * BLOCK_LEN;
    match u.int_in_range(0..=15u8)? {
        0..=3 => {
            let value: u64 = interesting(bytes.len() as u64, u)?;
            put(bytes, field.at, &value.to_le_bytes()[..field.len.min(8)]);
        }
        4..=6 => {
            let by: i8 = u.arbitrary()?;
            let mut value = [0; 8];
            let width = field.len.min(8);
            let old = bytes.get(field.at..field.at + width).unwrap_or_default().to_vec();
            put(&mut value, 0, &old);
            let sum = u64::from_le_bytes(value).wrapping_add_signed(i64::from(by));
            put(bytes, field.at, &sum.to_le_bytes()[..width]);
        }
        7 | 8 => {
            let value: [u8; 8] = u.arbitrary()?;
            put(bytes, field.at, &value[..field.len.min(8)]);
        }
        9 | 10 => {
            let other = *u.choose(fields)?;
            let value = bytes.get(other.at..other.at + other.len.min(field.len));
            let value = value.unwrap_or_default().to_vec();
            put(bytes, field.at, &value);
        }
        11 => {
            let other = u.choose(fields)?.at / BLOCK_LEN * BLOCK_LEN;
            let copy = bytes.get(other..other + BLOCK_LEN).unwrap_or_default().to_vec();
            if block >= from {
                put(bytes, block, &copy);
            }
        }
        12 => {
            let at = u.int_in_range(from.min(bytes.len())..=bytes.len())?;
            let bit: u8 = u.int_in_range(0..=7)?;
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= 1 << bit;
            }
        }
        13 => {
            let odd = if u.ratio(1, 4)? { u.int_in_range(0..=BLOCK_LEN)? } else { 0 };
            bytes.truncate((block + odd).max(from));
        }
        14 => {
            let more = u.int_in_range(1..=3 * BLOCK_LEN)?;
            bytes.resize(bytes.len() + more, 0);
        }
        _ => {
            let copy = bytes.get(block..block + BLOCK_LEN).unwrap_or_default().to_vec();
            if (from..bytes.len()).contains(&block) && bytes.len() < 1 << 20 {
                bytes.splice(block..block, copy);
            }
        }
    }
    Ok(())
}

fn interesting(len: u64, u: &mut Unstructured<'_>) -> Result<u64> {
    let values = [
        0,
        1,
        2,
        3,
        63,
        64,
        255,
        256,
        4095,
        4096,
        8192,
        0xffff,
        1 << 20,
        (1 << 26) + 4096,
        u64::from(u32::MAX),
        u64::from(u32::MAX) << 32,
        1 << 36,
        1 << 60,
        i64::MAX as u64,
        u64::MAX - 4095,
        u64::MAX,
        len,
        len.next_multiple_of(4096),
    ];
    u.choose(&values).copied()
}
