//! Where the bytes of a file lie, and what differs between two files that share extents.
//!
//! A reflink copy and its original share extents until one of them is written to. Two ranges that
//! lie at the same place of the same extent therefore read the same, without being read. What is
//! not known to lie at a place counts as changed.

use std::collections::VecDeque;
use std::ops::Range;

use super::changed::ChangeList;
use super::{Change, Degraded};

/// What is known of where bytes lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Nowhere: they read as zeroes.
    Zero,
    /// In an extent. Bytes with both numbers equal are the same bytes.
    Stored {
        /// The extent's address in its file system; 0 where all addresses are of one device.
        extent: u64,
        /// Offset in the extent less offset in the file, modulo 2^64.
        shift: u64,
    },
    /// Not to be told: not written yet, encoded, stored beside the metadata.
    Unknown,
}

/// A range of a file that lies in one place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Bytes of the file.
    pub range: Range<u64>,
    /// Where they lie.
    pub place: Place,
}

/// Some of a file's extents in a row, as one call to the kernel gives them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// Ascending, not overlapping; what lies between reads as zeroes.
    pub extents: Vec<Extent>,
    /// Where the next page begins; `None` behind the last extent.
    pub next: Option<u64>,
}

/// Who gives a file's extents.
pub trait Pages {
    /// The extents at or behind `from`, or the first of them.
    ///
    /// # Errors
    /// `Degraded` if they cannot be had, or make no sense.
    fn page(&mut self, from: u64) -> Result<Page, Degraded>;

    /// The first byte at or behind `at` that may be other than zero; `u64::MAX` if there is none. Asked of what
    /// the extents call zero, where they may be caught in the middle of a change; whoever gives them as of one
    /// instant has nothing to add.
    ///
    /// # Errors
    /// `Degraded` if it cannot be had.
    fn data_from(&mut self, at: u64) -> Result<u64, Degraded> {
        let _ = at;
        Ok(u64::MAX)
    }
}

/// What [`diff`] saw of two files, to tell whether another look saw the same.
pub type Fingerprint = [u8; 32];

/// Adds to `changes`, from the start of `now` to its end, what became of its bytes since `base`.
/// Bytes behind the base's end are never unchanged.
///
/// # Errors
/// `Degraded` if either's extents cannot be had, or make no sense.
pub fn diff(
    mut base: Walk<'_>,
    mut now: Walk<'_>,
    changes: &mut ChangeList,
) -> Result<Fingerprint, Degraded> {
    let mut at = 0;
    while let Some(new) = now.piece(at)? {
        let old = base.piece(at)?;
        let end = old.as_ref().map_or(new.range.end, |old| old.range.end.min(new.range.end));
        changes.push(at..end, verdict(old.map(|old| old.place), new.place))?;
        at = end;
    }
    Ok(fingerprint(&base, &now))
}

fn verdict(old: Option<Place>, new: Place) -> Change {
    match (old, new) {
        (Some(Place::Zero), Place::Zero) => Change::Unchanged,
        (Some(old @ Place::Stored { .. }), new) if old == new => Change::Unchanged,
        (_, Place::Zero) => Change::Zero,
        _ => Change::Changed,
    }
}

fn fingerprint(base: &Walk<'_>, now: &Walk<'_>) -> Fingerprint {
    let mut both = blake3::Hasher::new();
    both.update(base.seen.finalize().as_bytes());
    both.update(now.seen.finalize().as_bytes());
    both.finalize().into()
}

/// A way through a file from its start to its end, gaps included.
pub struct Walk<'a> {
    pages: &'a mut dyn Pages,
    size: u64,
    /// Extents that were asked for and not passed yet.
    ahead: VecDeque<Extent>,
    /// End of the last extent that was asked for.
    end: u64,
    /// Where the next page begins.
    next: Option<u64>,
    /// Bytes that are proven to be zero: where they end.
    zero_until: u64,
    /// All extents that were asked for.
    seen: blake3::Hasher,
}

impl<'a> Walk<'a> {
    /// Through a file of `size` bytes.
    pub fn new(pages: &'a mut dyn Pages, size: u64) -> Walk<'a> {
        let seen = blake3::Hasher::new();
        Walk { pages, size, ahead: VecDeque::new(), end: 0, next: Some(0), zero_until: 0, seen }
    }

    /// What begins at `at`, which never goes back; `None` at the end.
    fn piece(&mut self, at: u64) -> Result<Option<Extent>, Degraded> {
        if at >= self.size {
            return Ok(None);
        }
        self.pass(at)?;
        let (end, place) = match self.ahead.front() {
            Some(extent) if extent.range.start <= at => (extent.range.end, extent.place),
            Some(extent) => (extent.range.start, Place::Zero),
            None => (self.size, Place::Zero),
        };
        let end = end.min(self.size);
        if place != Place::Zero {
            return Ok(Some(Extent { range: at..end, place }));
        }
        if self.zero_until <= at {
            self.zero_until = self.pages.data_from(at)?;
        }
        let (end, place) = match self.zero_until {
            until if until <= at => (end, Place::Unknown),
            until => (end.min(until), Place::Zero),
        };
        Ok(Some(Extent { range: at..end, place }))
    }

    /// Drops what ends before `at`, and sees that the next extent is known.
    fn pass(&mut self, at: u64) -> Result<(), Degraded> {
        loop {
            while self.ahead.front().is_some_and(|extent| extent.range.end <= at) {
                self.ahead.pop_front();
            }
            match self.next.filter(|next| *next < self.size) {
                Some(from) if self.ahead.is_empty() => self.fetch(from)?,
                _ => return Ok(()),
            }
        }
    }

    fn fetch(&mut self, from: u64) -> Result<(), Degraded> {
        let page = self.pages.page(from)?;
        for extent in page.extents {
            if extent.range.start < self.end || extent.range.is_empty() {
                let at = extent.range.start;
                return Err(Degraded(format!("extents overlap or are empty at {at:#x}")));
            }
            self.end = extent.range.end;
            self.see(&extent);
            self.ahead.push_back(extent);
        }
        if page.next.is_some_and(|next| next <= from) {
            return Err(Degraded(format!("the extents behind {from:#x} cannot be told")));
        }
        self.next = page.next;
        Ok(())
    }

    fn see(&mut self, extent: &Extent) {
        let (kind, address, shift) = match extent.place {
            Place::Zero => (0, 0, 0),
            Place::Stored { extent, shift } => (1, extent, shift),
            Place::Unknown => (2, 0, 0),
        };
        for number in [extent.range.start, extent.range.end, kind, address, shift] {
            self.seen.update(&number.to_le_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::{ChangedExtent, check_coverage};
    use proptest::prelude::*;

    /// Extents in memory, so many a page.
    struct Listed<'a>(&'a [Extent], usize);

    impl Pages for Listed<'_> {
        fn page(&mut self, from: u64) -> Result<Page, Degraded> {
            let rest = self.0.iter().filter(|extent| extent.range.start >= from);
            let extents: Vec<_> = rest.take(self.1).cloned().collect();
            let next = extents.last().map(|extent| extent.range.end);
            Ok(Page { extents, next })
        }
    }

    fn told(
        mut base: impl Pages,
        base_size: u64,
        mut now: impl Pages,
        size: u64,
    ) -> Result<Vec<ChangedExtent>, Degraded> {
        let mut changes = ChangeList::new(Change::Unchanged);
        let (base, now) = (Walk::new(&mut base, base_size), Walk::new(&mut now, size));
        diff(base, now, &mut changes).map(|_| changes.finish(size))
    }

    fn stored(range: Range<u64>, extent: u64, from: u64) -> Extent {
        let shift = from.wrapping_sub(range.start);
        Extent { range, place: Place::Stored { extent, shift } }
    }

    fn run(range: Range<u64>, change: Change) -> ChangedExtent {
        ChangedExtent { range, change }
    }

    #[test]
    fn a_split_extent_is_still_the_same_one() {
        let base = [stored(0..40, 7, 100)];
        let now = [stored(0..10, 7, 100), stored(10..20, 8, 0), stored(20..40, 7, 120)];
        let told = told(Listed(&base, 9), 40, Listed(&now, 1), 40).unwrap();
        let (same, changed) = (Change::Unchanged, Change::Changed);
        assert_eq!(told, [run(0..10, same), run(10..20, changed), run(20..40, same)]);
    }

    #[test]
    fn parts_of_one_extent_differ() {
        // What compressed extents of btrfs look like, where one address holds all of them.
        let (base, now) = ([stored(0..10, 7, 0)], [stored(0..10, 7, 10)]);
        let told = told(Listed(&base, 9), 10, Listed(&now, 9), 10).unwrap();
        assert_eq!(told, [run(0..10, Change::Changed)]);
    }

    #[test]
    fn unknown_is_changed_even_where_both_are() {
        let both = [Extent { range: 0..10, place: Place::Unknown }];
        let told = told(Listed(&both, 9), 10, Listed(&both, 9), 10).unwrap();
        assert_eq!(told, [run(0..10, Change::Changed)]);
    }

    #[test]
    fn behind_the_base_nothing_is_unchanged() {
        let both = [stored(0..16, 7, 0)];
        let told = told(Listed(&both, 9), 10, Listed(&both, 9), 30).unwrap();
        let (changed, zero) = (Change::Changed, Change::Zero);
        assert_eq!(told, [run(0..10, Change::Unchanged), run(10..16, changed), run(16..30, zero)]);
    }

    #[test]
    fn a_moved_extent_shows_in_the_fingerprint_alone() {
        let print = |extent: u64| {
            let both = [stored(0..10, extent, 0)];
            let (mut base, mut now) = (Listed(&both, 9), Listed(&both, 9));
            let mut changes = ChangeList::new(Change::Unchanged);
            diff(Walk::new(&mut base, 10), Walk::new(&mut now, 10), &mut changes).unwrap()
        };
        assert_eq!(print(1), print(1));
        assert_ne!(print(1), print(2));
    }

    #[test]
    fn a_gap_that_may_have_data_is_no_hole() {
        /// Extents of which some are left out, and where the data they had begins.
        struct Torn<'a>(Listed<'a>, u64);
        impl Pages for Torn<'_> {
            fn page(&mut self, from: u64) -> Result<Page, Degraded> {
                self.0.page(from)
            }
            fn data_from(&mut self, at: u64) -> Result<u64, Degraded> {
                Ok(self.1.max(at))
            }
        }
        let extents = [stored(0..10, 7, 0)];
        let whole = || Listed(&extents, 9);
        let (same, changed, zero) = (Change::Unchanged, Change::Changed, Change::Zero);
        let now = told(Listed(&[stored(0..30, 7, 0)], 9), 30, Torn(whole(), 20), 30).unwrap();
        assert_eq!(now, [run(0..10, same), run(10..20, zero), run(20..30, changed)]);
        let base = told(Torn(whole(), 20), 30, whole(), 30).unwrap();
        assert_eq!(base, [run(0..20, same), run(20..30, zero)]);
        let both = told(Torn(whole(), 20), 30, Torn(whole(), 20), 30).unwrap();
        assert_eq!(both, [run(0..20, same), run(20..30, changed)]);
    }

    #[test]
    fn extents_that_make_no_sense_are_refused() {
        let overlapping = [stored(0..10, 1, 0), stored(5..15, 1, 5)];
        let empty = [stored(5..5, 1, 0)];
        for extents in [&overlapping[..], &empty] {
            let refused = told(Listed(&[], 9), 20, Listed(extents, 9), 20);
            assert!(refused.unwrap_err().0.contains("overlap"));
        }
        /// Says forever that there is more.
        struct Stuck;
        impl Pages for Stuck {
            fn page(&mut self, from: u64) -> Result<Page, Degraded> {
                Ok(Page { extents: Vec::new(), next: Some(from) })
            }
        }
        assert!(told(Stuck, 20, Stuck, 20).is_err());
    }

    /// A file as one place a byte: 0 is a hole, 1 unknown, others address and offset.
    fn file() -> impl Strategy<Value = Vec<Place>> {
        let place = prop_oneof![
            2 => Just(None),
            1 => Just(Some(Place::Unknown)),
            4 => (0u64..3, 0u64..3).prop_map(|(extent, shift)| Some(Place::Stored { extent, shift })),
        ];
        let run = (place, 1usize..9);
        prop::collection::vec(run, 0..12).prop_map(|runs| {
            let places = runs.into_iter().flat_map(|(place, len)| std::iter::repeat_n(place, len));
            places.map(|place| place.unwrap_or(Place::Zero)).collect()
        })
    }

    /// The extents of `file`; cut at multiples of `cut` as well. Holes are left out, now and then.
    fn extents(file: &[Place], cut: usize) -> Vec<Extent> {
        let mut extents: Vec<Extent> = Vec::new();
        for (at, place) in file.iter().enumerate() {
            let at = at as u64;
            match extents.last_mut() {
                Some(last) if last.place == *place && !at.is_multiple_of(cut as u64) => {
                    last.range.end = at + 1;
                }
                _ => extents.push(Extent { range: at..at + 1, place: *place }),
            }
        }
        extents.retain(|extent| extent.place != Place::Zero || extent.range.start % 2 == 0);
        extents
    }

    proptest! {
        #[test]
        fn byte_by_byte_it_is_the_same(
            base in file(), now in file(), cut in 1usize..20, page in 1usize..4,
            base_size in 0u64..60, size in 0u64..60,
        ) {
            let (old, new) = (extents(&base, cut), extents(&now, 7));
            let told = told(Listed(&old, page), base_size, Listed(&new, 9), size);
            let told = told.unwrap();
            prop_assert!(check_coverage(&told, size).is_ok());
            let place = |file: &[Place], at: u64| *file.get(at as usize).unwrap_or(&Place::Zero);
            for ChangedExtent { range, change } in &told {
                for at in range.clone() {
                    let old = (at < base_size).then(|| place(&base, at));
                    prop_assert_eq!(*change, verdict(old, place(&now, at)));
                }
            }
            for pair in told.windows(2) {
                prop_assert_ne!(pair[0].change, pair[1].change);
            }
        }
    }
}
