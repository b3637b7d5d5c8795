//! What was found damaged, what it costs, and bounds on how much of that is kept.

use std::collections::BTreeMap;
use std::ops::Range;

use serde::{Deserialize, Serialize};
use voltar_format::FormatError;

use crate::error::Error;
use crate::report::{Affected, Damage};
use crate::words::counted;

/// Places that are told apart; what follows is counted to the last.
const PLACES_MAX: usize = 10_000;
/// Affected ranges listed per place.
const AFFECTED_PER_PLACE_MAX: usize = 10_000;
/// Affected ranges listed at all: about 40 MB of names and numbers.
const AFFECTED_MAX: usize = 200_000;

/// What can no longer be had because of a damage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Loss {
    /// Nothing by itself: what is damaged is written twice, or is not needed to restore.
    Nothing,
    /// Every item stored in the range.
    Range,
    /// The item in this slot of the frame that fills the range.
    Item(u16),
}

/// One damaged place.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Finding {
    /// The structure's name.
    pub structure: String,
    /// Its bytes.
    pub range: Range<u64>,
    /// What is wrong.
    pub error: String,
    /// What is lost with it.
    pub loss: Loss,
}

impl Finding {
    /// A broken requirement of the format in `range`.
    pub fn of(error: &FormatError, range: Range<u64>, loss: Loss) -> Finding {
        let error = match error.offset {
            Some(_) => error.to_string(),
            None => error.clone().at(voltar_format::LogOffset(range.start)).to_string(),
        };
        Finding { structure: structure_of(&error), range, error, loss }
    }

    /// A damage in words.
    pub fn new(
        structure: &str,
        range: Range<u64>,
        error: impl Into<String>,
        loss: Loss,
    ) -> Finding {
        Finding { structure: structure.to_owned(), range, error: error.into(), loss }
    }

    /// Bytes that could not be read.
    pub fn unread(structure: &str, range: Range<u64>, error: &Error, loss: Loss) -> Finding {
        Finding::new(structure, range, crate::inspect::chain_words(error), loss)
    }
}

/// A format error's text starts with the structure's name.
fn structure_of(error: &str) -> String {
    error.split([' ', ':']).next().unwrap_or_default().to_owned()
}

/// All that was found.
#[derive(Default)]
pub(super) struct Findings {
    places: Vec<Place>,
    affected: usize,
    losses: Losses,
    /// All places, by structure and start.
    by_start: BTreeMap<(String, u64), usize>,
    /// Findings before this offset may be there already, from an earlier run or pass.
    known_before: u64,
}

/// What can no longer be had, and the number of the place that is to blame.
#[derive(Clone, Default)]
pub(super) struct Losses {
    /// Ranges, by their start: end and number.
    ranges: BTreeMap<u64, (u64, usize)>,
    /// Items, by frame and slot.
    items: BTreeMap<(u64, u16), usize>,
    added: u64,
}

impl Losses {
    /// How often something was added that was not lost before.
    pub fn added(&self) -> u64 {
        self.added
    }

    /// The damage that costs the item in `slot` of the frame in `range`.
    pub fn at(&self, range: &Range<u64>, slot: u16) -> Option<usize> {
        let before = self.ranges.range(..range.end.max(range.start + 1)).next_back();
        let hit = before.filter(|(_, (end, _))| *end > range.start).map(|(_, (_, number))| *number);
        hit.or_else(|| self.items.get(&(range.start, slot)).copied())
    }

    /// Whether all of this is lost already.
    fn has(&self, range: &Range<u64>, loss: Loss) -> bool {
        let before = self.ranges.range(..=range.start).next_back();
        let covers = before.is_some_and(|(_, (end, _))| *end >= range.end);
        match loss {
            Loss::Nothing => true,
            Loss::Range => covers,
            Loss::Item(slot) => covers || self.items.contains_key(&(range.start, slot)),
        }
    }

    fn add(&mut self, range: &Range<u64>, loss: Loss, number: usize) {
        if self.has(range, loss) {
            return;
        }
        self.added += 1;
        match loss {
            Loss::Nothing => {}
            Loss::Range => drop(self.ranges.insert(range.start, (range.end, number))),
            Loss::Item(slot) => drop(self.items.insert((range.start, slot), number)),
        }
    }
}

struct Place {
    finding: Finding,
    /// How many neighbours were counted to it.
    neighbours: u64,
    affects: Vec<Affected>,
    /// Whether more is affected than is listed.
    more: bool,
}

impl Findings {
    /// Takes over what an earlier run found before `offset`.
    pub fn restore(&mut self, findings: Vec<Finding>, offset: u64) {
        findings.into_iter().for_each(|finding| self.add(finding));
        self.known_before = offset;
    }

    /// A pass ends: whatever the next one finds may be there already.
    pub fn end_pass(&mut self) {
        self.known_before = u64::MAX;
    }

    /// Whether nothing was found.
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// What was found, without what it affects: for the note of an unfinished run.
    pub fn known(&self) -> Vec<&Finding> {
        self.places.iter().map(|place| &place.finding).collect()
    }

    /// Adds a finding of the data pass; they come in log order, nearly.
    pub fn add(&mut self, finding: Finding) {
        if !self.is_known(&finding) && !self.extend_last(&finding) {
            self.push(finding);
        }
    }

    /// Whether this was found before. What costs something goes by what it costs: a frame with
    /// several bad items is several places, and one that is looked at twice is none twice.
    fn is_known(&self, finding: &Finding) -> bool {
        let range = &finding.range;
        match finding.loss {
            Loss::Nothing => {
                range.start < self.known_before
                    && self.position(&finding.structure, range.start).is_some()
            }
            loss => self.losses.has(range, loss),
        }
    }

    /// Counts `finding` to the last place if it is its neighbour, or if there are too many.
    fn extend_last(&mut self, finding: &Finding) -> bool {
        let is_full = self.places.len() >= PLACES_MAX;
        let number = self.places.len().wrapping_sub(1);
        let Some(last) = self.places.last_mut() else { return false };
        let is_neighbour = last.finding.range.end == finding.range.start
            && last.finding.structure == finding.structure
            && last.finding.loss == finding.loss
            && !matches!(finding.loss, Loss::Item(_));
        if !is_full && !is_neighbour {
            return false;
        }
        last.neighbours += 1;
        let range = &mut last.finding.range;
        *range = range.start.min(finding.range.start)..range.end.max(finding.range.end);
        if finding.loss != Loss::Nothing {
            // A place that took in too much to tell it apart counts as lost as a whole.
            last.finding.loss = Loss::Range;
            self.losses.add(range, Loss::Range, number);
        }
        let key = (last.finding.structure.clone(), last.finding.range.start);
        self.by_start.insert(key, number);
        true
    }

    fn push(&mut self, finding: Finding) -> usize {
        let number = self.places.len();
        let range = finding.range.clone();
        self.losses.add(&range, finding.loss, number);
        self.by_start.insert((finding.structure.clone(), range.start), number);
        self.places.push(Place { finding, neighbours: 0, affects: Vec::new(), more: false });
        number
    }

    /// The place of this structure that holds `offset`.
    pub fn position(&self, structure: &str, offset: u64) -> Option<usize> {
        let key = (structure.to_owned(), offset);
        let ((name, _), number) = self.by_start.range(..=key).next_back()?;
        let holds = self.places.get(*number)?.finding.range.contains(&offset);
        (name == structure && holds).then_some(*number)
    }

    /// The place for a finding of the walk: one that is there, or a new one.
    pub fn place_for(&mut self, finding: Finding) -> usize {
        if let Some(number) = self.position(&finding.structure, finding.range.start) {
            return number;
        }
        match self.places.len() < PLACES_MAX {
            true => self.push(finding),
            false => {
                self.extend_last(&finding);
                self.places.len().saturating_sub(1)
            }
        }
    }

    /// What can no longer be had.
    pub fn losses(&self) -> &Losses {
        &self.losses
    }

    /// Says that a place costs this.
    pub fn affect(&mut self, number: usize, affected: Affected) {
        let Some(place) = self.places.get_mut(number) else { return };
        if let Some(last) = place.affects.last_mut()
            && last.snapshot == affected.snapshot
            && last.volume == affected.volume
            && last.offset <= affected.offset
            && affected.offset <= last.offset.saturating_add(last.length)
        {
            let end = affected.offset.saturating_add(affected.length);
            last.length = last.length.max(end.saturating_sub(last.offset));
            return;
        }
        if place.affects.len() < AFFECTED_PER_PLACE_MAX && self.affected < AFFECTED_MAX {
            place.affects.push(affected);
            self.affected += 1;
        } else {
            place.more = true;
        }
    }

    /// The list for the report, in log order.
    pub fn into_damages(self) -> Vec<Damage> {
        let is_full = self.places.len() >= PLACES_MAX;
        let last = self.places.len().saturating_sub(1);
        let places = self.places.into_iter().enumerate();
        let mut damages: Vec<Damage> =
            places.map(|(number, place)| place.into_damage(is_full && number == last)).collect();
        damages.sort_by_key(|damage| damage.offset);
        damages
    }
}

impl Place {
    fn into_damage(self, is_rest: bool) -> Damage {
        let Finding { structure, range, mut error, .. } = self.finding;
        match (self.neighbours, is_rest) {
            (0, _) => {}
            (1, false) => error.push_str("; so is the one behind it"),
            (more, false) => error.push_str(&format!("; so are the {more} behind it")),
            (more, true) => {
                let more = counted(more, "more place is", "more places are");
                error.push_str(&format!("; {more} damaged, not told apart here"));
            }
        }
        if self.more {
            error.push_str("; it affects more than is listed");
        }
        Damage {
            structure,
            offset: range.start,
            length: range.end.saturating_sub(range.start),
            error,
            affects: self.affects,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(start: u64, end: u64) -> Finding {
        Finding::new("frame", start..end, "checksum", Loss::Range)
    }

    #[test]
    fn neighbours_become_one_place() {
        let mut findings = Findings::default();
        findings.add(frame(128, 256));
        findings.add(frame(256, 512));
        findings.add(frame(1024, 2048));
        assert_eq!(findings.losses().at(&(300..301), 0), Some(0));
        assert_eq!(findings.losses().at(&(600..700), 0), None);
        assert_eq!(findings.losses().at(&(600..1025), 0), Some(1));
        let damages = findings.into_damages();
        assert_eq!(damages.len(), 2);
        assert_eq!((damages[0].offset, damages[0].length), (128, 384));
        assert!(damages[0].error.contains("so is the one behind it"));
    }

    #[test]
    fn lists_are_bounded_and_say_so() {
        let mut findings = Findings::default();
        for number in 0..PLACES_MAX as u64 + 5 {
            findings.add(frame(number * 1000, number * 1000 + 1));
        }
        for number in 0..AFFECTED_PER_PLACE_MAX as u64 + 1 {
            let (snapshot, volume) = ("a".to_owned(), "b".to_owned());
            findings.affect(0, Affected { snapshot, volume, offset: number * 10, length: 1 });
        }
        let last = (PLACES_MAX as u64 + 4) * 1000;
        assert!(findings.losses().at(&(last..last + 1), 0).is_some());
        let damages = findings.into_damages();
        assert_eq!(damages.len(), PLACES_MAX);
        assert_eq!(damages[0].affects.len(), AFFECTED_PER_PLACE_MAX);
        assert!(damages[0].error.contains("more than is listed"));
        assert!(damages[PLACES_MAX - 1].error.contains("5 more places"));
    }

    #[test]
    fn what_an_earlier_run_found_is_not_found_twice() {
        let mut findings = Findings::default();
        findings.restore(vec![frame(128, 256)], 4096);
        findings.add(frame(128, 256));
        findings.add(frame(8192, 8193));
        assert_eq!(findings.into_damages().len(), 2);
    }

    #[test]
    fn what_an_earlier_pass_found_is_not_found_twice() {
        let item = |slot| Finding::new("chunk", 128..256, "its id", Loss::Item(slot));
        let padding = || Finding::new("frame", 500..512, "padding", Loss::Nothing);
        let mut findings = Findings::default();
        let pass = |findings: &mut Findings, last| {
            let found = [item(1), padding(), frame(1024, 2048), item(last)];
            found.into_iter().for_each(|finding| findings.add(finding));
            findings.end_pass();
            findings.losses().added()
        };
        assert_eq!(pass(&mut findings, 3), 3);
        assert_eq!(pass(&mut findings, 3), 3);
        // One more item of a frame of which others are known to be bad.
        assert_eq!(pass(&mut findings, 4), 4);
        assert_eq!(findings.into_damages().len(), 5);
    }
}
