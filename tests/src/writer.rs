//! A guest that writes without an operating system (`writer.s`), and what it wrote by any instant.
//!
//! It counts steps. Step `n` writes the same one to eight sectors, at a place that follows from
//! `n`, to its first disk and then to its second; each word of them is `n` and the disk's number. A
//! write begins when the one before it is done. (`sectors steps` does the same on Linux.) So at any instant the two disks hold a beginning of
//! one sequence of writes, and two disks that were not held at one instant do not.

use std::path::PathBuf;

use crate::data::Scratch;
use crate::device::system;
use crate::sectors::SECTOR_LEN;

/// Where the BIOS puts the guest.
const ADDRESS: u32 = 0x7c00;
/// Where its settings and its progress are in it.
const STATE_AT: usize = 480;
/// Sectors of the longest write.
const SECTORS_MAX: u64 = 8;
/// What the BIOS calls the first of the two disks.
const FIRST_DISK: u32 = 0x81;
/// Steps have so many bits of a word.
const STEP_BITS: u32 = 24;

/// Steps between two ticks of the guest's clock, of which a second has 18.
pub type Pace = u16;

/// How far the guest came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// The last step that each disk has for certain.
    pub done: [u32; 2],
    /// Writes that the disks failed.
    pub errors: u32,
}

/// What the guest does to two disks: enough to work out what they hold.
#[derive(Clone, Debug)]
pub struct Writer {
    /// What the disks held before it.
    pub before: [Vec<u8>; 2],
    pace: Pace,
}

impl Writer {
    /// For two disks that hold this.
    pub fn new(before: [Vec<u8>; 2], pace: Pace) -> Writer {
        Writer { before, pace }
    }

    fn lens(&self) -> [u64; 2] {
        [0, 1].map(|disk| self.before[disk].len() as u64)
    }

    /// Makes the disk that the guest starts from, in `scratch`; it goes on with step `first`.
    pub fn boot_disk(&self, scratch: &Scratch, first: u32) -> PathBuf {
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/src/writer.s");
        let [object, image] = ["writer.o", "writer.boot"].map(|name| scratch.path(name));
        let [object_arg, image_arg] = [&object, &image].map(|path| path.to_str().unwrap());
        system("as", &["--32", "-o", object_arg, source]).unwrap();
        let address = format!("{ADDRESS:#x}");
        let link = ["-m", "elf_i386", "-Ttext", &address, "--oformat", "binary"];
        system("ld", &[&link[..], &["-o", image_arg, object_arg]].concat()).unwrap();
        let mut sector = scratch.read("writer.boot");
        assert_eq!(sector.len(), SECTOR_LEN);
        let span = u32::try_from(span(self.lens())).unwrap();
        sector[STATE_AT..][..4].copy_from_slice(&first.to_le_bytes());
        sector[STATE_AT + 16..][..4].copy_from_slice(&span.to_le_bytes());
        sector[STATE_AT + 20..][..2].copy_from_slice(&self.pace.to_le_bytes());
        sector.resize(1 << 20, 0);
        scratch.write("writer.boot", &sector)
    }

    /// What disk `disk` (0 or 1) holds when all steps up to `step` are done.
    pub fn disk_at(&self, disk: usize, step: u32) -> Vec<u8> {
        let mut bytes = self.before[disk].clone();
        for step in 1..=step {
            let (at, written) = write(self.lens(), disk, step);
            bytes[at as usize..][..written.len()].copy_from_slice(&written);
        }
        bytes
    }

    /// The steps that two disks hold, which must be what they held at one instant.
    ///
    /// # Errors
    /// Why they cannot have held that.
    pub fn instant(&self, disks: [&[u8]; 2]) -> Result<[u32; 2], String> {
        let steps = [0, 1].map(|disk| last_step(disk, disks[disk]));
        if steps[0] != steps[1] && steps[0] != steps[1] + 1 {
            return Err(format!("the disks hold steps {steps:?}: never at one instant"));
        }
        for disk in [0, 1] {
            let want = self.disk_at(disk, steps[disk]);
            if disks[disk].len() != want.len() {
                return Err(format!(
                    "disk {disk}: {} bytes, not {}",
                    disks[disk].len(),
                    want.len()
                ));
            }
            let pairs = disks[disk].chunks(SECTOR_LEN).zip(want.chunks(SECTOR_LEN));
            if let Some(sector) = pairs.into_iter().position(|(got, want)| got != want) {
                let step = steps[disk];
                return Err(format!("disk {disk}, sector {sector}: not as of step {step}"));
            }
        }
        Ok(steps)
    }
}

/// What a step writes to disk `disk` (0 or 1) of two that are so long: where, and the bytes.
pub fn write(lens: [u64; 2], disk: usize, step: u32) -> (u64, Vec<u8>) {
    // As writer.s does it.
    let scattered = u64::from(step.wrapping_mul(0x9e37_79b1));
    let sectors = u64::from(step) % SECTORS_MAX + 1;
    let bytes = word(disk, step).to_le_bytes().repeat(sectors as usize * SECTOR_LEN / 4);
    (scattered % span(lens) * SECTOR_LEN as u64, bytes)
}

/// Sectors that a write may begin at.
fn span(lens: [u64; 2]) -> u64 {
    lens[0].min(lens[1]) / SECTOR_LEN as u64 - SECTORS_MAX
}

/// What a step's writes consist of.
fn word(disk: usize, step: u32) -> u32 {
    (FIRST_DISK + disk as u32) << STEP_BITS | step
}

/// The last step that left a sector on a disk.
fn last_step(disk: usize, bytes: &[u8]) -> u32 {
    let step = |sector: &[u8]| {
        let first: [u8; 4] = sector.get(..4)?.try_into().ok()?;
        let word = u32::from_le_bytes(first);
        let is_written = sector.chunks(4).all(|other| other == first)
            && word >> STEP_BITS == FIRST_DISK + disk as u32;
        is_written.then_some(word & ((1 << STEP_BITS) - 1))
    };
    bytes.chunks(SECTOR_LEN).filter_map(step).max().unwrap_or(0)
}

/// The line by which the human monitor shows the guest's progress.
pub fn progress_line() -> String {
    format!("xp /4wx {:#x}", ADDRESS as usize + STATE_AT)
}

/// Reads what that line printed: `00007de0: 0x00000026 0x00000025 0x00000025 0x00000000`.
pub fn progress(printed: &str) -> Option<Progress> {
    let number = |word: &str| u32::from_str_radix(word.strip_prefix("0x")?, 16).ok();
    let mut words = printed.split_whitespace().filter_map(number).skip(1);
    Some(Progress { done: [words.next()?, words.next()?], errors: words.next()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn writer() -> Writer {
        Writer::new([vec![7; 64 * SECTOR_LEN], vec![5; 80 * SECTOR_LEN]], 1)
    }

    #[test]
    fn a_beginning_of_the_writes_is_an_instant_and_nothing_else_is() {
        let writer = writer();
        let disks = |first, second| [writer.disk_at(0, first), writer.disk_at(1, second)];
        let instant = |disks: &[Vec<u8>; 2]| writer.instant([&disks[0], &disks[1]]);
        assert_eq!(instant(&disks(0, 0)), Ok([0, 0]));
        assert_eq!(instant(&disks(40, 40)), Ok([40, 40]));
        assert_eq!(instant(&disks(41, 40)), Ok([41, 40]));
        assert!(instant(&disks(40, 41)).is_err(), "the second is ahead");
        assert!(instant(&disks(42, 40)).is_err(), "the first is two ahead");
        // One sector of an older step, one of a later one, a torn one.
        for (from, to) in [(39, 40), (60, 40)] {
            let mut mixed = disks(40, 40);
            let (at, written) = write(writer.lens(), 0, if from < to { to } else { from });
            let range = at as usize..at as usize + written.len();
            mixed[0][range.clone()].copy_from_slice(&writer.disk_at(0, from)[range]);
            assert!(instant(&mixed).is_err(), "step {from} among those of {to}");
        }
        let mut torn = disks(40, 40);
        let (at, _) = write(writer.lens(), 1, 40);
        torn[1][at as usize + 8] ^= 1;
        assert!(instant(&torn).is_err());
    }

    #[test]
    fn progress_is_read_as_the_monitor_prints_it() {
        let printed = "0000000000007de0: 0x00000026 0x00000025 0x00000024 0x00000001\r\n";
        assert_eq!(progress(printed), Some(Progress { done: [0x25, 0x24], errors: 1 }));
        assert_eq!(progress("unknown command\r\n"), None);
    }
}
