//! What a dirty bitmap of QEMU's tells of an export, whoever had it exported.

use std::ops::Range;

use super::changed::ChangeList;
use super::{Change, ChangedExtent, Degraded};
use crate::nbd::NbdDevice;
use crate::nbd::protocol::{CONTEXT_ALLOCATION, STATE_ZERO};

/// The flag of a dirty extent in `qemu:dirty-bitmap:` (`docs/interop/nbd.txt` of QEMU).
const STATE_DIRTY: u64 = 1;
/// Bytes of a disk whose state is asked for at a time.
const WINDOW_LEN: u64 = 16 << 30;

/// What an export with a bitmap tells: what reads as zeroes is zero whatever the bitmap says of it (one
/// that was shrunk and grew again has forgotten), and of the rest, what is dirty is changed.
///
/// # Errors
/// In words: of the export, or if it is not of `size` bytes any more.
pub fn told(device: &NbdDevice, context: &str, size: u64) -> Result<Vec<ChangedExtent>, String> {
    if device.export().size != size {
        return Err("the disk was resized meanwhile".into());
    }
    combined(device, size, |window| status(device, context, window))
}

/// The same of a bitmap that was read elsewhere: `dirty` are the changes that it tells, from 0 to `size`
/// without gaps.
///
/// # Errors
/// As [`told`].
pub fn told_by(
    dirty: &[ChangedExtent],
    device: &NbdDevice,
    size: u64,
) -> Result<Vec<ChangedExtent>, String> {
    combined(device, size, |window| {
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
    size: u64,
    dirty: impl Fn(Range<u64>) -> Result<Vec<(Range<u64>, u64)>, String>,
) -> Result<Vec<ChangedExtent>, String> {
    let mut list = ChangeList::new(Change::Unchanged);
    for window in windows(size) {
        let allocated = match device.tells_holes() {
            true => status(device, CONTEXT_ALLOCATION, window.clone())?,
            false => vec![(window.clone(), 0)],
        };
        for (range, dirty, state) in both(&dirty(window)?, &allocated) {
            let change = match (state & STATE_ZERO != 0, dirty & STATE_DIRTY != 0) {
                (true, _) => Change::Zero,
                (false, true) => Change::Changed,
                (false, false) => Change::Unchanged,
            };
            list.push(range, change).map_err(|Degraded(why)| why)?;
        }
    }
    Ok(list.finish(size))
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
    fn two_lists_are_read_side_by_side() {
        let one = [(0..10, 1), (10..30, 0)];
        let other = [(0..4, 3), (4..10, 0), (10..20, 3), (20..30, 0)];
        let both: Vec<_> = both(&one, &other).collect();
        assert_eq!(both, [(0..4, 1, 3), (4..10, 1, 0), (10..20, 0, 3), (20..30, 0, 0)]);
    }
}
