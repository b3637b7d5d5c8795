//! What a dirty bitmap of QEMU's tells of an export, whoever had it exported.

use std::ops::Range;

use super::changed::ChangeList;
use super::{Change, ChangedExtent, Degraded};
use crate::nbd::NbdDevice;
use crate::nbd::protocol::{CONTEXT_ALLOCATION, STATE_ZERO};

/// The flag of a dirty extent in `qemu:dirty-bitmap:` (`docs/interop/nbd.txt` of QEMU).
const STATE_DIRTY: u64 = 1;
/// Bytes that a bit of a bitmap tells of, at most: what voltar asks for, and the most that QEMU gives who asks
/// for nothing, as libvirt does (`bdrv_get_default_bitmap_granularity`, `block/dirty-bitmap.c`).
const UNIT_MAX: u64 = 64 << 10;
/// Bytes of a disk whose state is asked for at a time.
const WINDOW_LEN: u64 = 16 << 30;

/// How long a disk is, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// When the bitmap was begun.
    pub base: u64,
    /// Now.
    pub now: u64,
    /// Whether it is known that the disk was no shorter in between: of what was cut off a bitmap forgets what
    /// it knew.
    pub never_less: bool,
}

impl Sizes {
    /// Where the unit begins in which the shorter of the two ends. Nobody gives a bitmap larger units.
    fn last_unit(self) -> u64 {
        self.base.min(self.now).saturating_sub(1) / UNIT_MAX * UNIT_MAX
    }
}

/// What an export with a bitmap tells: what is dirty is changed, and if the disk may have been shorter
/// meanwhile, what reads as zeroes is zero whatever the bitmap says of it. Changed is, too, the unit in which
/// the shorter of the two sizes ends: a bitmap that was shrunk by a part of a unit still has it as it was.
///
/// # Errors
/// In words: of the export, or if it is not of `size` bytes any more.
pub fn told(device: &NbdDevice, context: &str, sizes: Sizes) -> Result<Vec<ChangedExtent>, String> {
    if device.export().size != sizes.now {
        return Err("the disk was resized meanwhile".into());
    }
    combined(device, sizes, |window| status(device, context, window))
}

/// The same of a bitmap that was read elsewhere: `dirty` are the changes that it tells, from 0 to the end
/// without gaps.
///
/// # Errors
/// As [`told`].
pub fn told_by(
    dirty: &[ChangedExtent],
    device: &NbdDevice,
    sizes: Sizes,
) -> Result<Vec<ChangedExtent>, String> {
    combined(device, sizes, |window| {
        let first = dirty.partition_point(|extent| extent.range.end <= window.start);
        let within = dirty[first..].iter().take_while(|extent| extent.range.start < window.end);
        let flags = |change| if change == Change::Unchanged { 0 } else { STATE_DIRTY };
        Ok(within.map(|extent| (extent.range.clone(), flags(extent.change))).collect())
    })
}

fn status(
    device: &NbdDevice,
    context: &str,
    window: Range<u64>,
) -> Result<Vec<(Range<u64>, u64)>, String> {
    device.status(context, window).map_err(|error| format!("{context}: {error}"))
}

fn combined(
    device: &NbdDevice,
    sizes: Sizes,
    dirty: impl Fn(Range<u64>) -> Result<Vec<(Range<u64>, u64)>, String>,
) -> Result<Vec<ChangedExtent>, String> {
    let mut list = ChangeList::new(Change::Unchanged);
    let last_unit = sizes.last_unit();
    for window in windows(sizes.now) {
        let allocated = match device.tells_holes() {
            true => status(device, CONTEXT_ALLOCATION, window.clone())?,
            false => vec![(window.clone(), 0)],
        };
        for (range, dirty, state) in both(&dirty(window)?, &allocated) {
            let is_zero = state & STATE_ZERO != 0;
            let change = match dirty & STATE_DIRTY != 0 {
                true if is_zero => Change::Zero,
                true => Change::Changed,
                false if is_zero && !sizes.never_less => Change::Zero,
                false => Change::Unchanged,
            };
            let mut push = |range, change| list.push(range, change).map_err(|Degraded(why)| why);
            if change == Change::Unchanged && range.end > last_unit {
                let start = range.start.max(last_unit);
                push(range.start..start, change)?;
                push(start..range.end, Change::Changed)?;
            } else {
                push(range, change)?;
            }
        }
    }
    Ok(list.finish(sizes.now))
}

/// Extents with their flags.
type Flags = [(Range<u64>, u64)];

/// Where two lists of extents of the same range meet, with the flags of both.
fn both<'a>(one: &'a Flags, other: &'a Flags) -> impl Iterator<Item = (Range<u64>, u64, u64)> + 'a {
    let (mut i, mut j) = (0, 0);
    std::iter::from_fn(move || {
        let ((a, of_a), (b, of_b)) = (one.get(i)?, other.get(j)?);
        let range = a.start.max(b.start)..a.end.min(b.end);
        i += usize::from(a.end <= b.end);
        j += usize::from(b.end <= a.end);
        Some((range, *of_a, *of_b))
    })
}

/// `size` bytes in windows.
fn windows(size: u64) -> impl Iterator<Item = Range<u64>> {
    (0..size.div_ceil(WINDOW_LEN)).map(move |number| {
        let start = number * WINDOW_LEN;
        start..(start + WINDOW_LEN).min(size)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_unit_that_a_disk_ends_in_is_not_to_be_told() {
        let last_unit = |base, now| Sizes { base, now, never_less: true }.last_unit();
        assert_eq!(last_unit(UNIT_MAX, UNIT_MAX), 0);
        assert_eq!(last_unit(3 * UNIT_MAX, 2 * UNIT_MAX + 1), 2 * UNIT_MAX);
        assert_eq!(last_unit(0, UNIT_MAX), 0);
    }

    #[test]
    fn two_lists_are_read_side_by_side() {
        let one = [(0..10, 1), (10..30, 0)];
        let other = [(0..4, 3), (4..10, 0), (10..20, 3), (20..30, 0)];
        let both: Vec<_> = both(&one, &other).collect();
        assert_eq!(both, [(0..4, 1, 3), (4..10, 1, 0), (10..20, 0, 3), (20..30, 0, 0)]);
    }
}
