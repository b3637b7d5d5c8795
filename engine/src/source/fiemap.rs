//! What `FS_IOC_FIEMAP` answers (`include/uapi/linux/fiemap.h`), read as hostile bytes. Its numbers
//! are in the machine's own order, taken here for little-endian.
//!
//! Good for XFS. On btrfs it is not: of a compressed extent it gives the same physical address for
//! every part, so that files which differ look alike.

use voltar_format::wire::{Wire, slice};

use super::Degraded;
use super::extent_map::{Extent, Page, Place};

/// Length of the head, which the caller fills in.
pub const HEAD_LEN: usize = 32;
/// Length of one extent.
pub const EXTENT_LEN: usize = 56;

/// In the head: how many extents follow.
const MAPPED_AT: usize = 20;

/// This is the file's last extent.
const LAST: u32 = 0x1;
/// Allocated, and never written: reads as zeroes.
const UNWRITTEN: u32 = 0x800;
/// Several extents that the file system merged.
const MERGED: u32 = 0x1000;
/// Another file has it as well.
const SHARED: u32 = 0x2000;

/// The extents in `answer`, which was asked for from `from` on.
///
/// # Errors
/// `Degraded` if it is cut short or an extent makes no sense.
pub fn parse(answer: &[u8], from: u64) -> Result<Page, Degraded> {
    let mapped = u32_at(answer, MAPPED_AT)? as usize;
    let records = answer.get(HEAD_LEN..).unwrap_or_default().as_chunks::<EXTENT_LEN>().0;
    let records = records.get(..mapped).ok_or_else(|| {
        Degraded(format!("the file system told of {mapped} extents and gave {}", records.len()))
    })?;
    let mut page = Page::default();
    for record in records {
        let (extent, is_last) = extent(record)?;
        if extent.range.end <= from {
            return Err(nonsense(extent.range.start));
        }
        page.next = (!is_last).then_some(extent.range.end);
        page.extents.push(extent);
    }
    // The first may reach back to what an earlier page ended with.
    if let Some(first) = page.extents.first_mut() {
        first.range.start = first.range.start.max(from);
    }
    Ok(page)
}

/// An extent, and whether it is the file's last.
fn extent(record: &[u8]) -> Result<(Extent, bool), Degraded> {
    let (logical, physical) = (u64_at(record, 0)?, u64_at(record, 8)?);
    let (len, flags) = (u64_at(record, 16)?, u32_at(record, 40)?);
    let end = logical.checked_add(len).filter(|end| *end > logical);
    let range = logical..end.ok_or_else(|| nonsense(logical))?;
    let place = match flags {
        // Delayed, encoded, inline, unaligned, and whatever else may come.
        flags if flags & !(LAST | UNWRITTEN | MERGED | SHARED) != 0 => Place::Unknown,
        flags if flags & UNWRITTEN != 0 => Place::Zero,
        _ => Place::Stored { extent: 0, shift: physical.wrapping_sub(logical) },
    };
    Ok((Extent { range, place }, flags & LAST != 0))
}

fn nonsense(at: u64) -> Degraded {
    Degraded(format!("the file system told of an extent at {at:#x} that makes no sense"))
}

fn u32_at(bytes: &[u8], at: usize) -> Result<u32, Degraded> {
    slice(bytes, at, u32::LEN).and_then(u32::get).ok_or_else(cut_short)
}

fn u64_at(bytes: &[u8], at: usize) -> Result<u64, Degraded> {
    slice(bytes, at, u64::LEN).and_then(u64::get).ok_or_else(cut_short)
}

fn cut_short() -> Degraded {
    Degraded("the file system's answer is cut short".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An answer of these extents: logical, physical, length, flags.
    fn answer(extents: &[(u64, u64, u64, u32)]) -> Vec<u8> {
        let mut bytes = vec![0; HEAD_LEN];
        bytes[MAPPED_AT..][..4].copy_from_slice(&(extents.len() as u32).to_le_bytes());
        for (logical, physical, len, flags) in extents {
            let mut record = [0; EXTENT_LEN];
            record[..8].copy_from_slice(&logical.to_le_bytes());
            record[8..16].copy_from_slice(&physical.to_le_bytes());
            record[16..24].copy_from_slice(&len.to_le_bytes());
            record[40..44].copy_from_slice(&flags.to_le_bytes());
            bytes.extend(record);
        }
        bytes
    }

    fn places(extents: &[(u64, u64, u64, u32)]) -> Vec<Place> {
        let page = parse(&answer(extents), 0).unwrap();
        page.extents.into_iter().map(|extent| extent.place).collect()
    }

    #[test]
    fn only_what_lies_still_has_a_place() {
        let stored = |shift| Place::Stored { extent: 0, shift };
        let extents = [(0, 4096, 512, 0), (512, 8192, 512, SHARED | MERGED | LAST)];
        assert_eq!(places(&extents), [stored(4096), stored(7680)]);
        assert_eq!(places(&[(0, 4096, 512, UNWRITTEN | SHARED)]), [Place::Zero]);
        // Unknown, delayed, encoded, encrypted, unaligned, inline, a tail, and bits of the future.
        for flag in [0x2, 0x4, 0x8, 0x80, 0x100, 0x200, 0x400, 0x4000, 1 << 31] {
            assert_eq!(places(&[(0, 4096, 512, flag | UNWRITTEN)]), [Place::Unknown]);
        }
    }

    #[test]
    fn pages_end_with_the_last_extent() {
        let page = |extents: &[_], from| parse(&answer(extents), from).unwrap();
        assert_eq!(page(&[], 0), Page::default());
        assert_eq!(page(&[(0, 4096, 512, LAST)], 0).next, None);
        let reaching_back = page(&[(0, 4096, 512, 0)], 100);
        assert_eq!(reaching_back.next, Some(512));
        assert_eq!(reaching_back.extents[0].range, 100..512);
    }

    #[test]
    fn nonsense_is_refused() {
        let good = answer(&[(0, 4096, 512, 0), (512, 4096, 512, 0)]);
        for len in 0..good.len() {
            assert!(parse(&good[..len], 0).is_err(), "{len} bytes were enough");
        }
        assert!(parse(&good, 512).is_err(), "it lies before what was asked for");
        assert!(parse(&answer(&[(5, 4096, 0, 0)]), 0).is_err(), "it is empty");
        assert!(parse(&answer(&[(5, 4096, u64::MAX, 0)]), 0).is_err(), "it has no end");
    }
}
