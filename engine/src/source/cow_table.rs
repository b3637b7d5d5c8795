//! The table of exceptions of a thick LVM snapshot: which chunks of the origin were written since
//! the snapshot was taken.
//!
//! Layout (little endian): Linux, `drivers/md/dm-snap-persistent.c`. Chunk 0 is a header. Then come
//! areas of one chunk each, an area being followed by as many chunks of data as it has room for
//! exceptions. An exception is the number of a chunk of the origin and that of the chunk that holds
//! what it was; the first that names chunk 0 ends the table. The kernel clears an area before it
//! fills the one in front of it, so there is always an end.
//!
//! There are no checksums. What can be checked is: every number lies where one can be, and behind
//! the end there is nothing. Whether the snapshot is valid at all, before and after, is to be asked
//! of the kernel.

use std::io;
use std::ops::Range;

use super::thin_metadata::{u32_at, u64_at};

const MAGIC: u32 = 0x7041_6e53;
const VERSION: u32 = 1;
const SECTOR_LEN: u64 = 512;
const HEADER_LEN: usize = 16;
const EXCEPTION_LEN: usize = 16;
/// Sectors of a chunk: what LVM makes.
const CHUNK_SECTORS: (u32, u32) = (8, 1024);
/// Most bits that are kept of an origin; one of more chunks keeps a bit for several.
const BITS_MAX: u64 = 1 << 27;

/// Where the table is read from: the snapshot's own store.
pub trait CowStore {
    /// Its size in bytes.
    fn size(&self) -> u64;

    /// Fills `bytes` from `offset`.
    ///
    /// # Errors
    /// The medium's; `UnexpectedEof` at its end.
    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()>;
}

/// Why a table of exceptions cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CowError {
    /// It could not be read.
    #[error("the snapshot's table cannot be read at {offset:#x}")]
    Unreadable {
        /// Where, in bytes.
        offset: u64,
        /// Why.
        source: io::Error,
    },
    /// There is none.
    #[error("the snapshot's store has the magic number {0:#x}, not that of a snapshot")]
    Magic(u32),
    /// The kernel gave it up, as it does when the store is full.
    #[error("the snapshot is marked as invalid: it was full, or an I/O error befell it")]
    Invalid,
    /// A newer kernel's, or none that LVM makes.
    #[error("the snapshot's table has version {version} and chunks of {sectors} sectors")]
    Unsupported {
        /// Its version.
        version: u32,
        /// Sectors of a chunk.
        sectors: u32,
    },
    /// A number that cannot be.
    #[error("the snapshot's table is damaged at {offset:#x}: {fault}")]
    Damaged {
        /// Where, in bytes.
        offset: u64,
        /// What is wrong there.
        fault: Fault,
    },
}

/// What is wrong with a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// An exception for a chunk behind the origin's end.
    #[error("it names chunk {0} of the origin, which has fewer")]
    Origin(u64),
    /// Data where there is none.
    #[error("it names chunk {0} of the snapshot, which holds no data")]
    Data(u64),
    /// Something behind the end.
    #[error("it goes on behind its end")]
    Rest,
    /// The store ends first.
    #[error("it has no end")]
    Endless,
}

/// Which parts of an origin were written since the snapshot.
#[derive(Debug)]
pub struct CowTable {
    origin_size: u64,
    /// Bytes that a bit stands for: a chunk, or several.
    unit: u64,
    bits: Vec<u64>,
}

impl CowTable {
    /// Reads all of it. `origin_size` is the size in bytes that the origin had at the snapshot.
    ///
    /// # Errors
    /// For everything that is not as the kernel writes it.
    pub fn read(store: &dyn CowStore, origin_size: u64) -> Result<CowTable, CowError> {
        let chunk_len = chunk_len(store)?;
        let mut table = CowTable::empty(origin_size, chunk_len);
        let mut area = vec![0; chunk_len as usize];
        // An area and its data.
        let stride = chunk_len / EXCEPTION_LEN as u64 + 1;
        for number in 0.. {
            let offset = (1 + number * stride).saturating_mul(chunk_len);
            let is_inside = offset.checked_add(chunk_len).is_some_and(|end| end <= store.size());
            if !is_inside {
                return Err(CowError::Damaged { offset, fault: Fault::Endless });
            }
            read(store, offset, &mut area)?;
            if table.add_area(&area, offset, store.size() / chunk_len)? {
                break;
            }
        }
        Ok(table)
    }

    fn empty(origin_size: u64, chunk_len: u64) -> CowTable {
        let unit = chunk_len.max(origin_size.div_ceil(BITS_MAX).next_power_of_two());
        let bits = vec![0; origin_size.div_ceil(unit).div_ceil(64) as usize];
        CowTable { origin_size, unit, bits }
    }

    /// Takes over an area's exceptions; whether the table ends in it.
    fn add_area(&mut self, area: &[u8], offset: u64, chunks: u64) -> Result<bool, CowError> {
        let chunk_len = area.len() as u64;
        for (at, exception) in (offset..).step_by(EXCEPTION_LEN).zip(area.chunks(EXCEPTION_LEN)) {
            let damaged = |fault| Err(CowError::Damaged { offset: at, fault });
            let (origin, data) = (u64_at(exception, 0), u64_at(exception, 8));
            if data == 0 {
                let rest = &area[(at - offset) as usize..];
                return match rest.iter().all(|byte| *byte == 0) {
                    true => Ok(true),
                    false => damaged(Fault::Rest),
                };
            }
            let is_area = (data - 1).is_multiple_of(chunk_len / EXCEPTION_LEN as u64 + 1);
            if data >= chunks || is_area {
                return damaged(Fault::Data(data));
            }
            if origin >= self.origin_size.div_ceil(chunk_len) {
                return damaged(Fault::Origin(origin));
            }
            self.mark(origin * chunk_len / self.unit);
        }
        Ok(false)
    }

    fn mark(&mut self, bit: u64) {
        self.bits[(bit / 64) as usize] |= 1 << (bit % 64);
    }

    /// The bytes of the origin that may differ from the snapshot's: ascending ranges, none touching
    /// another.
    pub fn ranges(&self) -> impl Iterator<Item = Range<u64>> {
        let mut at = 0;
        std::iter::from_fn(move || {
            let start = self.next_bit(at, true)?;
            at = self.next_bit(start, false).unwrap_or(64 * self.bits.len() as u64);
            Some(start * self.unit..(at * self.unit).min(self.origin_size))
        })
    }

    /// The first bit from `from` on that is set, or not.
    fn next_bit(&self, from: u64, set: bool) -> Option<u64> {
        let mut word = (from / 64) as usize;
        let mut mask = u64::MAX << (from % 64);
        loop {
            let bits = self.bits.get(word)?;
            let found = mask & if set { *bits } else { !*bits };
            if found != 0 {
                return Some(64 * word as u64 + u64::from(found.trailing_zeros()));
            }
            word += 1;
            mask = u64::MAX;
        }
    }
}

/// Checks the header; bytes of a chunk.
fn chunk_len(store: &dyn CowStore) -> Result<u64, CowError> {
    // A whole sector: the store may be read past the page cache.
    let mut header = [0; SECTOR_LEN as usize];
    read(store, 0, &mut header)?;
    let number = |index: usize| u32_at(&header[..HEADER_LEN], 4 * index);
    let (magic, valid, version, sectors) = (number(0), number(1), number(2), number(3));
    if magic != MAGIC {
        return Err(CowError::Magic(magic));
    }
    if valid != 1 {
        return Err(CowError::Invalid);
    }
    let (min, max) = CHUNK_SECTORS;
    if version != VERSION || !sectors.is_power_of_two() || !(min..=max).contains(&sectors) {
        return Err(CowError::Unsupported { version, sectors });
    }
    Ok(u64::from(sectors) * SECTOR_LEN)
}

fn read(store: &dyn CowStore, offset: u64, bytes: &mut [u8]) -> Result<(), CowError> {
    store.read_at(offset, bytes).map_err(|source| CowError::Unreadable { offset, source })
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHUNK: usize = 4096;
    /// Exceptions of an area.
    const ROOM: usize = 256;

    struct Store(Vec<u8>);

    impl CowStore for Store {
        fn size(&self) -> u64 {
            self.0.len() as u64
        }

        fn read_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
            let from = self.0.get(offset as usize..).unwrap_or(&[]);
            let from = from.get(..bytes.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
            bytes.copy_from_slice(from);
            Ok(())
        }
    }

    impl Store {
        /// With an exception for each of these chunks of the origin.
        fn of(chunks: &[u64]) -> Store {
            let areas = chunks.len() / ROOM + 1;
            let mut bytes = vec![0; (1 + areas * (ROOM + 1)) * CHUNK];
            for (index, value) in [MAGIC, 1, VERSION, 8].into_iter().enumerate() {
                bytes[4 * index..4 * index + 4].copy_from_slice(&value.to_le_bytes());
            }
            let mut store = Store(bytes);
            for (number, chunk) in chunks.iter().enumerate() {
                let area = 1 + number / ROOM * (ROOM + 1);
                store.put(number, *chunk, (area + 1 + number % ROOM) as u64);
            }
            store
        }

        fn put(&mut self, number: usize, origin: u64, data: u64) {
            let area = 1 + number / ROOM * (ROOM + 1);
            let at = area * CHUNK + number % ROOM * EXCEPTION_LEN;
            self.0[at..at + 8].copy_from_slice(&origin.to_le_bytes());
            self.0[at + 8..at + 16].copy_from_slice(&data.to_le_bytes());
        }

        fn ranges(&self, origin_size: u64) -> Result<Vec<Range<u64>>, CowError> {
            Ok(CowTable::read(self, origin_size)?.ranges().collect())
        }

        fn refused(&self, origin_size: u64) -> String {
            self.ranges(origin_size).unwrap_err().to_string()
        }
    }

    #[test]
    fn exceptions_come_back_in_order_and_joined() {
        let size = 1000 * 4096;
        assert_eq!(Store::of(&[]).ranges(size).unwrap(), []);
        let ranges = Store::of(&[7, 999, 5, 6, 0, 63, 64]).ranges(size - 100).unwrap();
        let chunks = [0..1, 5..8, 63..65, 999..1000_u64];
        let bytes = chunks.map(|run| run.start * 4096..(run.end * 4096).min(size - 100));
        assert_eq!(ranges, bytes);
    }

    #[test]
    fn areas_follow_one_another_and_a_full_one_is_not_the_end() {
        for count in [255, 256, 257, 512, 700] {
            let chunks: Vec<u64> = (0..count).map(|number| 3 * number).collect();
            let ranges = Store::of(&chunks).ranges(1 << 30).unwrap();
            let expected: Vec<_> =
                chunks.iter().map(|chunk| chunk * 4096..(chunk + 1) * 4096).collect();
            assert_eq!(ranges, expected);
        }
    }

    #[test]
    fn a_huge_origin_is_kept_in_larger_units() {
        let size = 1 << 44;
        let ranges = Store::of(&[1, (size >> 12) - 1]).ranges(size).unwrap();
        assert_eq!(ranges, [0..1 << 17, size - (1 << 17)..size]);
    }

    #[test]
    fn what_the_kernel_would_not_write_is_refused() {
        let size = 1000 * 4096;
        let says = |error: String, words: &str| assert!(error.contains(words), "{error}");
        let with = |at: usize, byte: u8| {
            let mut store = Store::of(&[1, 2, 3]);
            store.0[at] = byte;
            store.refused(size)
        };
        says(with(0, 0), "magic number");
        says(with(4, 0), "marked as invalid");
        says(with(8, 2), "version 2");
        for sectors in [0, 4, 9] {
            says(with(12, sectors), &format!("chunks of {sectors} sectors"));
        }
        says(with(14, 1), "sectors");
        let exception = |origin, data| {
            let mut store = Store::of(&[1, 2, 3]);
            store.put(1, origin, data);
            store.refused(size)
        };
        says(exception(1000, 3), "at 0x1010: it names chunk 1000 of the origin");
        for data in [1, 258, 10_000, u64::MAX] {
            says(exception(2, data), &format!("it names chunk {data} of the snapshot"));
        }
        // A hole would make the list shorter.
        says(exception(0, 0), "behind its end");
        let mut endless = Store::of(&[9; ROOM]);
        endless.0.truncate((1 + ROOM + 1) * CHUNK);
        says(endless.refused(size), "it has no end");
        endless.0.truncate(100);
        says(endless.refused(size), "cannot be read at 0x0");
    }
}
