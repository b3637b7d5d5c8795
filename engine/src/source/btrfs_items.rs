//! The extent items of a btrfs file, as `BTRFS_IOC_TREE_SEARCH_V2` answers them
//! (`include/uapi/linux/btrfs.h` and `btrfs_tree.h`), read as hostile bytes. The answer's own numbers
//! are in the machine's order, taken here for little-endian; those of items are little-endian.
//!
//! Why not `btrfs send --no-data`: it compares whole subvolumes, takes read-only snapshots of them,
//! and its stream changes with the kernel. The items of two files that share extents say exactly
//! which ranges they share, compressed ones too (an item has its extent's address and, apart from
//! that, the offset in it), and all it takes is a reflink copy.

use voltar_format::wire::{Wire, slice};

use super::Degraded;
use super::extent_map::{Extent, Page, Place};

/// Length of the search key and of the length of the room behind it, before the items.
pub const HEAD_LEN: usize = 112;
/// The kind of item that tells where bytes of a file lie (`BTRFS_EXTENT_DATA_KEY`).
pub const EXTENT_DATA: u32 = 108;

/// In the search key: how many items follow.
const ITEMS_AT: usize = 64;
/// Before each item: transaction, object, offset, kind, length.
const ITEM_HEAD_LEN: usize = 32;

/// Bytes lie in the item itself.
const INLINE: u8 = 0;
/// Bytes lie in an extent.
const REGULAR: u8 = 1;
/// An extent is set aside and was never written: reads as zeroes.
const PREALLOCATED: u8 = 2;

/// The extents in `answer`, which was asked for those of the file `inode` whose offset is `from` or
/// more.
///
/// # Errors
/// `Degraded` if it is cut short, of something else, or an item makes no sense.
pub fn parse(answer: &[u8], inode: u64, from: u64) -> Result<Page, Degraded> {
    let count = u32_at(answer, ITEMS_AT)?;
    let mut page = Page::default();
    let mut at = HEAD_LEN;
    for _ in 0..count {
        let head = slice(answer, at, ITEM_HEAD_LEN).ok_or_else(cut_short)?;
        let (object, offset) = (u64_at(head, 8)?, u64_at(head, 16)?);
        let (kind, len) = (u32_at(head, 24)?, u32_at(head, 28)? as usize);
        if (object, kind) != (inode, EXTENT_DATA) || page.next.unwrap_or(from) > offset {
            return Err(nonsense(offset));
        }
        at += ITEM_HEAD_LEN;
        let item = slice(answer, at, len).ok_or_else(cut_short)?;
        at += len;
        page.extents.push(extent(offset, item)?);
        // The next item's offset is higher than this one's, whatever this one's length.
        page.next = Some(offset.checked_add(1).ok_or_else(|| nonsense(offset))?);
    }
    Ok(page)
}

/// What an item says about the file's bytes at `offset`.
fn extent(offset: u64, item: &[u8]) -> Result<Extent, Degraded> {
    let plain_len = u64_at(item, 8)?;
    let [compression, encryption] = array_at(item, 16)?;
    let [encoding_low, encoding_high, kind] = array_at(item, 18)?;
    if kind == INLINE {
        return Ok(Extent { range: range(offset, plain_len)?, place: Place::Unknown });
    }
    let (address, in_extent, len) = (u64_at(item, 21)?, u64_at(item, 37)?, u64_at(item, 45)?);
    // Compression stands: it is the whole extent's, so the same for all who have it.
    let is_plain = encryption == 0 && encoding_low == 0 && encoding_high == 0;
    let place = match kind {
        REGULAR if address == 0 => Place::Zero,
        PREALLOCATED if compression == 0 && is_plain => Place::Zero,
        REGULAR if is_plain => {
            Place::Stored { extent: address, shift: in_extent.wrapping_sub(offset) }
        }
        _ => Place::Unknown,
    };
    Ok(Extent { range: range(offset, len)?, place })
}

fn range(offset: u64, len: u64) -> Result<std::ops::Range<u64>, Degraded> {
    let end = offset.checked_add(len).filter(|end| *end > offset);
    Ok(offset..end.ok_or_else(|| nonsense(offset))?)
}

fn nonsense(at: u64) -> Degraded {
    Degraded(format!("btrfs told of an extent at {at:#x} that makes no sense"))
}

fn u32_at(bytes: &[u8], at: usize) -> Result<u32, Degraded> {
    array_at(bytes, at).map(u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> Result<u64, Degraded> {
    array_at(bytes, at).map(u64::from_le_bytes)
}

fn array_at<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N], Degraded> {
    slice(bytes, at, N).and_then(Wire::get).ok_or_else(cut_short)
}

fn cut_short() -> Degraded {
    Degraded("btrfs's answer is cut short".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An item of 53 bytes: kind, compression, address, offset in the extent, length.
    fn item(kind: u8, compression: u8, address: u64, in_extent: u64, len: u64) -> Vec<u8> {
        let mut item = vec![0; 53];
        item[8..16].copy_from_slice(&len.to_le_bytes());
        (item[16], item[20]) = (compression, kind);
        item[21..29].copy_from_slice(&address.to_le_bytes());
        item[37..45].copy_from_slice(&in_extent.to_le_bytes());
        item[45..53].copy_from_slice(&len.to_le_bytes());
        item
    }

    /// An answer about inode 257.
    fn answer(items: &[(u64, Vec<u8>)]) -> Vec<u8> {
        let mut bytes = vec![0; HEAD_LEN];
        bytes[ITEMS_AT..][..4].copy_from_slice(&(items.len() as u32).to_le_bytes());
        for (offset, item) in items {
            let mut head = [0; ITEM_HEAD_LEN];
            head[8..16].copy_from_slice(&257u64.to_le_bytes());
            head[16..24].copy_from_slice(&offset.to_le_bytes());
            head[24..28].copy_from_slice(&EXTENT_DATA.to_le_bytes());
            head[28..].copy_from_slice(&(item.len() as u32).to_le_bytes());
            bytes.extend(head);
            bytes.extend(item);
        }
        bytes
    }

    fn place(item: Vec<u8>) -> Place {
        parse(&answer(&[(8192, item)]), 257, 0).unwrap().extents[0].place
    }

    #[test]
    fn places_are_the_address_and_the_offset_in_the_extent() {
        let stored = |extent, shift: u64| Place::Stored { extent, shift };
        assert_eq!(place(item(REGULAR, 0, 1 << 20, 8192, 4096)), stored(1 << 20, 0));
        let compressed = place(item(REGULAR, 3, 1 << 20, 0, 4096));
        assert_eq!(compressed, stored(1 << 20, 0u64.wrapping_sub(8192)));
        assert_ne!(compressed, place(item(REGULAR, 3, 1 << 20, 4096, 4096)));
        assert_eq!(place(item(REGULAR, 0, 0, 0, 4096)), Place::Zero);
        assert_eq!(place(item(PREALLOCATED, 0, 1 << 20, 0, 4096)), Place::Zero);
        assert_eq!(place(item(3, 0, 1 << 20, 0, 4096)), Place::Unknown);
        let mut encrypted = item(REGULAR, 0, 1 << 20, 0, 4096);
        encrypted[17] = 1;
        assert_eq!(place(encrypted), Place::Unknown);
    }

    #[test]
    fn what_lies_in_the_item_has_no_place() {
        let mut inline = item(INLINE, 0, 0, 0, 100);
        inline.truncate(21);
        inline.extend([7; 100]);
        let page = parse(&answer(&[(0, inline)]), 257, 0).unwrap();
        assert_eq!(page.extents, [Extent { range: 0..100, place: Place::Unknown }]);
    }

    #[test]
    fn the_last_page_is_the_empty_one() {
        assert_eq!(parse(&answer(&[]), 257, 5).unwrap(), Page::default());
        let page = parse(&answer(&[(8192, item(REGULAR, 0, 1, 0, 4096))]), 257, 0).unwrap();
        assert_eq!(page.next, Some(8193));
    }

    #[test]
    fn nonsense_is_refused() {
        let items = [(0, item(REGULAR, 0, 1, 0, 4096)), (4096, item(REGULAR, 0, 1, 0, 4096))];
        let good = answer(&items);
        for len in 0..good.len() {
            assert!(parse(&good[..len], 257, 0).is_err(), "{len} bytes were enough");
        }
        assert!(parse(&good, 258, 0).is_err(), "it is another file's");
        assert!(parse(&good, 257, 1).is_err(), "it lies before what was asked for");
        let [first, second] = items;
        assert!(parse(&answer(&[second, first]), 257, 0).is_err(), "it goes back");
        assert!(parse(&answer(&[(5, item(REGULAR, 0, 1, 0, 0))]), 257, 0).is_err(), "it is empty");
        let endless = answer(&[(5, item(REGULAR, 0, 1, 0, u64::MAX))]);
        assert!(parse(&endless, 257, 0).is_err(), "it has no end");
    }
}
