//! The blocks of a stretch of the log, one after another, from either end: what every search for
//! a structure goes through. A bad sector costs the block it is in and no other.

use std::ops::Range;

use voltar_format::LogOffset;
use voltar_format::limits::BLOCK_LEN;

use super::{Home, read_exact};
use crate::error::Result;

/// Bytes read at once.
pub const WINDOW_LEN: u64 = 1 << 20;

/// The blocks of `range`, which starts at a multiple of 4096; the last one is short if the range
/// ends inside it. A window that cannot be read at once is read block by block.
pub fn blocks(
    home: &dyn Home,
    range: Range<u64>,
) -> impl DoubleEndedIterator<Item = (LogOffset, Result<Vec<u8>>)> + '_ {
    pieces(range, WINDOW_LEN).flat_map(move |window| {
        let bytes = read(home, &window).ok();
        pieces(window.clone(), BLOCK_LEN as u64).map(move |block| {
            let found = bytes.as_ref().and_then(|bytes| {
                let from = (block.start - window.start) as usize;
                bytes.get(from..from + (block.end - block.start) as usize)
            });
            (LogOffset(block.start), found.map_or_else(|| read(home, &block), |b| Ok(b.to_vec())))
        })
    })
}

/// The bytes from `start` to `end`, with zeroes for blocks that cannot be read.
pub fn read_what_is_there(home: &dyn Home, start: u64, end: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity((end - start) as usize);
    for (at, block) in blocks(home, start..end) {
        match block {
            Ok(block) => bytes.extend(block),
            Err(_) => bytes.resize((at.0 + BLOCK_LEN as u64).min(end) as usize - start as usize, 0),
        }
    }
    bytes
}

fn read(home: &dyn Home, range: &Range<u64>) -> Result<Vec<u8>> {
    read_exact(home, LogOffset(range.start), (range.end - range.start) as usize)
}

/// `range` in pieces of `len` bytes; the last one may be shorter.
pub(crate) fn pieces(range: Range<u64>, len: u64) -> impl DoubleEndedIterator<Item = Range<u64>> {
    let count = range.end.saturating_sub(range.start).div_ceil(len);
    (0..count).map(move |number| {
        let start = range.start + number * len;
        start..range.end.min(start + len)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::hostile::{Fault, FaultPlan, HostileDevice};
    use crate::device::memory::MemoryDevice;
    use crate::device::test_rig::pattern;

    #[test]
    fn blocks_come_from_both_ends_and_a_bad_sector_costs_one() {
        let bytes = pattern(2 * WINDOW_LEN as usize + 3 * BLOCK_LEN + 5, 1);
        let range = WINDOW_LEN - 100..WINDOW_LEN - 99;
        let faults = vec![Fault::BadRange { range, errno: nix::errno::Errno::EIO as i32 }];
        let plan = FaultPlan { faults, ..FaultPlan::default() };
        let home = HostileDevice::new(MemoryDevice::from_bytes(&bytes), plan);
        let forward: Vec<_> = blocks(&home, 4096..bytes.len() as u64).collect();
        let mut back: Vec<_> = blocks(&home, 4096..bytes.len() as u64).rev().collect();
        back.reverse();
        assert_eq!(forward.len(), 2 * 256 + 3);
        for ((at, block), (same, again)) in forward.iter().zip(&back) {
            assert_eq!(at, same);
            let end = bytes.len().min(at.0 as usize + BLOCK_LEN);
            let is_bad = at.0 == WINDOW_LEN - BLOCK_LEN as u64;
            for block in [block, again] {
                assert_eq!(block.is_err(), is_bad, "{at}");
                assert!(block.as_ref().is_ok_and(|b| *b == bytes[at.0 as usize..end]) != is_bad);
            }
        }
    }
}
