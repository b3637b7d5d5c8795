//! What checkpoints of ours are called: `voltar-SERIES-SEQUENCE`, sixteen hexadecimal digits of the series and
//! 32 of the sequence, of which the first eight count and the others are random.
//!
//! A name is made once: it proves that a checkpoint is the one that a snapshot was made with. Counting tells
//! which of two was made first; clocks go back.

use crate::error::Result;
use crate::host::libvirt::Libvirt;
use crate::host::libvirt::xml::Checkpoint;
use crate::qemu::Bitmaps;

/// What all names begin with.
const PREFIX: &str = "voltar-";
/// Digits of a series, and of what follows it.
const SERIES_LEN: usize = 16;
const SEQUENCE_LEN: usize = 32;
/// Digits that count.
const COUNT_LEN: usize = 8;

/// The checkpoints of backups into one archive.
#[derive(Clone, Debug)]
pub struct Series {
    prefix: String,
}

impl Series {
    /// Those of backups into what is called `series`.
    pub fn of(series: &[u8]) -> Series {
        // Other than those of bitmaps that voltar makes in QEMU by itself, and takes away there.
        Series { prefix: Bitmaps::of(&[b"libvirt\0", series].concat(), true).prefix }
    }

    /// Whether a checkpoint's name is of this series.
    pub fn has(&self, name: &str) -> bool {
        name.starts_with(&self.prefix) && sequence(name).is_some()
    }

    /// Whether an export is one of a backup of whatever series.
    pub fn is_of_any(export: &str) -> bool {
        export.split_once('/').is_some_and(|(name, _)| sequence(name).is_some())
    }

    /// The checkpoints of this series that a domain has, oldest first.
    ///
    /// # Errors
    /// Of the tool.
    pub fn checkpoints(&self, libvirt: &Libvirt, uuid: &str) -> Result<Vec<Checkpoint>> {
        let mut names = libvirt.checkpoints(uuid)?;
        names.retain(|name| self.has(name));
        names.sort_by_key(|name| sequence(name));
        names.iter().map(|name| libvirt.checkpoint(uuid, name)).collect()
    }

    /// A name for the checkpoint behind these.
    pub fn next(&self, earlier: &[Checkpoint]) -> String {
        let last = earlier.iter().filter_map(|checkpoint| sequence(&checkpoint.name)).max();
        let count = last.map_or(0, |count| count.wrapping_add(1));
        let random = rand::random::<u128>() >> (4 * COUNT_LEN);
        let rest = SEQUENCE_LEN - COUNT_LEN;
        format!("{}{count:08x}{random:0rest$x}", self.prefix)
    }
}

/// Which one of its series a checkpoint is; `None` if it is none of ours.
pub fn sequence(name: &str) -> Option<u32> {
    let (series, rest) = name.strip_prefix(PREFIX)?.split_once('-')?;
    let is_hex = |digits: &str, len: usize| {
        digits.len() == len && digits.bytes().all(|b| b.is_ascii_hexdigit())
    };
    let is_ours = is_hex(series, SERIES_LEN) && is_hex(rest, SEQUENCE_LEN);
    is_ours.then(|| u32::from_str_radix(rest.get(..COUNT_LEN)?, 16).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(name: String) -> Checkpoint {
        Checkpoint { name, disks: Vec::new(), told: Vec::new() }
    }

    #[test]
    fn names_count_and_are_told_from_others() {
        let series = Series::of(b"/a.voltar");
        let first = series.next(&[]);
        let second = series.next(&[named(first.clone())]);
        assert_eq!((sequence(&first), sequence(&second)), (Some(0), Some(1)));
        assert_eq!(second.len(), "voltar-".len() + 16 + 1 + 32);
        assert!(series.has(&first) && !Series::of(b"/b.voltar").has(&first));
        assert!(Series::is_of_any(&format!("{first}/vda")) && !Series::is_of_any("vda"));
        for name in ["voltar-1", "virtnbdbackup.0", "voltar-0123456789abcdef-", &first[..54]] {
            assert_eq!(sequence(name), None, "{name}");
        }
        assert_ne!(series.prefix, Bitmaps::of(b"/a.voltar", true).prefix);
    }
}
