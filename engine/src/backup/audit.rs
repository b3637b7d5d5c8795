//! The audit: a random sample of what a change source spares us to read is read all the same.

use std::ops::Range;

use rand::RngExt;
use voltar_format::ChunkIndex;
use voltar_format::checksum::chunk_id;
use voltar_format::map::{Entry, Shape};
use voltar_format::walk::Cursor;
use voltar_format::wire::is_zero;

use super::plan::{Action, Parent, Step};
use crate::archive::store::Store;
use crate::cancel::Cancel;
use crate::error::Result;
use crate::source::View;

/// More chunks of a sample than this that cannot be read, and the volume is read as a whole.
const UNREADABLE_SAMPLES_MAX: usize = 256;

/// What the sample says of a change source.
#[derive(Debug, Default)]
pub struct Findings {
    /// Bytes that were read.
    pub bytes: u64,
    /// The byte offset of the first chunk that is not what it was called, and what it was called.
    pub lie: Option<(u64, &'static str)>,
    /// Chunks that cannot be read and so prove nothing.
    pub unreadable: Vec<Range<u64>>,
}

impl Findings {
    /// Whether so much cannot be read that the sample is worth nothing.
    pub fn are_too_few(&self) -> bool {
        self.unreadable.len() > UNREADABLE_SAMPLES_MAX
    }
}

/// Compares chunks that are said to be unchanged with the parent's map, and chunks that are said
/// to be zero with zeroes.
pub struct Audit<'a> {
    view: &'a View,
    shape: Shape,
    parent: Option<(Cursor, Store)>,
    bytes: Vec<u8>,
}

impl<'a> Audit<'a> {
    /// Of `view`; its parent's map, if it has one, is read through a store.
    ///
    /// # Errors
    /// `Damaged` if the parent's volume has no shape.
    pub fn new(
        shape: Shape,
        parent: Option<(&Parent, Store)>,
        view: &'a View,
    ) -> Result<Audit<'a>> {
        let bytes = vec![0; shape.chunk_len() as usize];
        let parent = match parent {
            Some((parent, store)) => Some((parent.cursor()?, store)),
            None => None,
        };
        Ok(Audit { view, shape, parent, bytes })
    }

    /// Looks at a random `share` of the chunks that `steps` do not read, at least one, up to the
    /// first lie.
    ///
    /// # Errors
    /// `Interrupted`, and those of reading the parent's map.
    pub fn run(mut self, steps: &[Step], share: f64, cancel: &Cancel) -> Result<Findings> {
        let mut findings = Findings::default();
        for (chunk, action) in sample(steps, share) {
            cancel.check()?;
            let range = self.shape.chunk_range(ChunkIndex(chunk));
            let bytes = &mut self.bytes[..(range.end - range.start) as usize];
            let Ok(count) = self.view.device.read_at(bytes, range.start) else {
                findings.unreadable.push(chunk..chunk + 1);
                if findings.are_too_few() {
                    break;
                }
                continue;
            };
            findings.bytes += count as u64;
            let is_true = count == bytes.len()
                && match (action, &mut self.parent) {
                    (Action::Zero, _) => is_zero(bytes),
                    (_, Some((cursor, store))) => {
                        is_entry(cursor.entry_at(store, 0, chunk)?.entry, bytes)
                    }
                    (_, None) => false,
                };
            if !is_true {
                let called = if action == Action::Zero { "zero" } else { "unchanged" };
                findings.lie = Some((range.start, called));
                break;
            }
        }
        Ok(findings)
    }
}

fn is_entry(entry: Entry, bytes: &[u8]) -> bool {
    match entry {
        Entry::Zero => is_zero(bytes),
        Entry::Data(id) => chunk_id(bytes) == id,
        Entry::Unreadable | Entry::Partial(_) => false,
    }
}

/// A `share` of the chunks that are not read, at least one if there is any, ascending and with
/// what is to be done with them: one at random from each of as many equal strata, so that a lie
/// about a contiguous range has no good place to hide.
fn sample(steps: &[Step], share: f64) -> impl Iterator<Item = (u64, Action)> {
    let mut spared = steps.iter().filter(|step| step.action != Action::Read);
    let count: u64 = spared.clone().map(len).sum();
    let sample = match share > 0.0 {
        true => ((count as f64 * share).ceil() as u64).clamp(count.min(1), count),
        false => 0,
    };
    let bound = move |n: u64| (u128::from(count) * u128::from(n) / u128::from(sample)) as u64;
    let mut random = rand::rng();
    let mut current = spared.next();
    let mut skipped = 0;
    (0..sample).filter_map(move |stratum| {
        let pick = random.random_range(bound(stratum)..bound(stratum + 1));
        while let Some(step) = current {
            if pick < skipped + len(step) {
                return Some((step.chunks.start + (pick - skipped), step.action));
            }
            skipped += len(step);
            current = spared.next();
        }
        None
    })
}

fn len(step: &Step) -> u64 {
    step.chunks.end - step.chunks.start
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_distinct_and_of_what_is_not_read() {
        let steps = [
            Step { chunks: 0..3, action: Action::Read },
            Step { chunks: 3..10, action: Action::Keep },
            Step { chunks: 10..20, action: Action::Read },
            Step { chunks: 20..21, action: Action::Zero },
            Step { chunks: 100..200, action: Action::Keep },
        ];
        for wanted in [1, 7, 50, 108] {
            let picks: Vec<_> = sample(&steps, f64::from(wanted) / 108.0).collect();
            assert_eq!(picks.len() as u32, wanted);
            assert!(picks.is_sorted_by(|a, b| a.0 < b.0));
            let is_spared = |(chunk, action): &(u64, Action)| {
                let step = steps.iter().find(|step| step.chunks.contains(chunk)).unwrap();
                step.action == *action && *action != Action::Read
            };
            assert!(picks.iter().all(is_spared));
        }
        assert_eq!(sample(&steps, 0.0).count(), 0);
        assert_eq!(sample(&steps[..1], 1.0).count(), 0);
        // Even the smallest share is one chunk.
        assert_eq!(sample(&steps, 1e-9).count(), 1);
    }
}
