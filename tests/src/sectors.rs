//! Volumes whose sectors say who they are, so that one that is misplaced, stale or mixed in a
//! restore names itself.
//!
//! A sector is 512 bytes: volume, number and generation (8 bytes each, little-endian), a filler
//! that follows from them, and a sum over all of it. A third of the generations have a filler that
//! compresses. A sector of zeroes is trimmed space.

use std::fmt;

use crate::data::Rng;

/// Bytes of a sector.
pub const SECTOR_LEN: usize = 512;
const SUM_AT: usize = SECTOR_LEN - 8;

/// Who a sector says it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// Its volume.
    pub volume: u64,
    /// Which sector of the volume.
    pub number: u64,
    /// Which write made it.
    pub generation: u64,
}

impl fmt::Display for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Stamp { volume, number, generation } = self;
        write!(f, "sector {number} of volume {volume}, generation {generation}")
    }
}

impl Stamp {
    /// The sector's bytes.
    pub fn sector(&self) -> [u8; SECTOR_LEN] {
        let mut sector = [0; SECTOR_LEN];
        let words = [self.volume, self.number, self.generation];
        for (place, word) in sector.chunks_mut(8).zip(words) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        let seed = words.iter().fold(1, |seed, word| Rng::new(seed ^ word).next_u64());
        match self.generation % 3 {
            0 => sector[24..SUM_AT].fill(seed as u8),
            _ => Rng::new(seed).fill(&mut sector[24..SUM_AT]),
        }
        let sum = sum(&sector[..SUM_AT]);
        sector[SUM_AT..].copy_from_slice(&sum.to_le_bytes());
        sector
    }
}

fn sum(bytes: &[u8]) -> u64 {
    bytes.chunks(8).fold(1, |sum, word| {
        let word = word.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte));
        Rng::new(sum ^ word).next_u64()
    })
}

/// What a sector turns out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// Whole, and this one.
    Whole(Stamp),
    /// All zero.
    Zero,
    /// It says it is this one, and its sum says otherwise.
    Mixed(Stamp),
    /// The end of a volume that is no multiple of a sector long.
    Short(Stamp),
}

impl Found {
    /// Reads a sector.
    pub fn of(sector: &[u8]) -> Found {
        if sector.iter().all(|byte| *byte == 0) {
            return Found::Zero;
        }
        let word = |at: usize| {
            let bytes = sector.iter().skip(at).take(8).rev();
            bytes.fold(0, |word, byte| word << 8 | u64::from(*byte))
        };
        let stamp = Stamp { volume: word(0), number: word(8), generation: word(16) };
        match sector.len() {
            SECTOR_LEN if sum(&sector[..SUM_AT]) == word(SUM_AT) => Found::Whole(stamp),
            SECTOR_LEN => Found::Mixed(stamp),
            _ => Found::Short(stamp),
        }
    }
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Found::Whole(stamp) => write!(f, "{stamp}"),
            Found::Zero => write!(f, "zeroes"),
            Found::Mixed(stamp) => write!(f, "a mixture that begins as {stamp}"),
            Found::Short(stamp) => write!(f, "the beginning of {stamp}"),
        }
    }
}

/// `len` bytes of `volume` from sector `first` on, all of one generation.
pub fn stamped(volume: u64, first: u64, generation: u64, len: usize) -> Vec<u8> {
    let sectors = first..first + len.div_ceil(SECTOR_LEN) as u64;
    let mut bytes: Vec<u8> =
        sectors.flat_map(|number| Stamp { volume, number, generation }.sector()).collect();
    bytes.truncate(len);
    bytes
}

/// Compares a volume with what it must be, sector by sector; how many sectors it has.
///
/// # Errors
/// What the first wrong sector holds, what it must hold, and how many are wrong.
pub fn compare(got: &[u8], want: &[u8]) -> Result<u64, String> {
    if got.len() != want.len() {
        return Err(format!("{} bytes, not {}", got.len(), want.len()));
    }
    let pairs = || got.chunks(SECTOR_LEN).zip(want.chunks(SECTOR_LEN)).enumerate();
    let Some((number, (found, wanted))) = pairs().find(|(_, (found, wanted))| found != wanted)
    else {
        return Ok(want.len().div_ceil(SECTOR_LEN) as u64);
    };
    let wrong = pairs().filter(|(_, (found, wanted))| found != wanted).count();
    let (found, wanted) = (Found::of(found), Found::of(wanted));
    Err(format!("sector {number} holds {found}; it must hold {wanted} ({wrong} sectors are wrong)"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_sector_says_who_it_is() {
        for generation in 0..6 {
            let bytes = stamped(7, 40, generation, 3 * SECTOR_LEN);
            for (sector, number) in bytes.chunks(SECTOR_LEN).zip(40..) {
                let stamp = Stamp { volume: 7, number, generation };
                assert_eq!(Found::of(sector), Found::Whole(stamp));
            }
        }
    }

    #[test]
    fn what_is_wrong_names_itself() {
        let want = stamped(1, 0, 4, 20 * SECTOR_LEN + 100);
        assert_eq!(compare(&want, &want), Ok(21));
        let wrong = |number: usize, sector: &[u8]| {
            let mut got = want.clone();
            got[number * SECTOR_LEN..][..sector.len()].copy_from_slice(sector);
            compare(&got, &want).unwrap_err()
        };
        let misplaced = wrong(17, &want[12 * SECTOR_LEN..13 * SECTOR_LEN]);
        assert_eq!(
            misplaced,
            "sector 17 holds sector 12 of volume 1, generation 4; it must hold sector 17 of \
             volume 1, generation 4 (1 sectors are wrong)"
        );
        let stale = wrong(3, &stamped(1, 3, 3, SECTOR_LEN));
        assert!(stale.starts_with("sector 3 holds sector 3 of volume 1, generation 3;"), "{stale}");
        assert!(wrong(5, &[0; SECTOR_LEN]).starts_with("sector 5 holds zeroes;"));
        let torn = wrong(9, &stamped(1, 9, 5, SECTOR_LEN)[..256]);
        assert!(torn.contains("a mixture that begins as sector 9 of volume 1, generation 5"));
        let mut flipped = want[..SECTOR_LEN].to_vec();
        flipped[300] ^= 1;
        assert!(wrong(0, &flipped).starts_with("sector 0 holds a mixture"));
        let short = wrong(20, &stamped(2, 20, 4, 100));
        assert!(short.starts_with("sector 20 holds the beginning of sector 20 of volume 2"));
        assert_eq!(compare(&want[1..], &want), Err("10339 bytes, not 10340".into()));
    }
}
