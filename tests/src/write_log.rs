//! Logs of the kernel's `dm-log-writes` target, read and replayed: what a disk held at every
//! moment of its life.
//!
//! The format is that of the kernel's
//! `Documentation/admin-guide/device-mapper/log-writes.rst`: a head of one sector, then entries,
//! each a sector that describes a write and behind it what was written. Writes stand in the log in
//! the order in which they were safe: a flush stands behind all that it made durable, and a write
//! that bypasses the cache where it was complete. So a beginning of the log that ends with one of
//! those is exactly what the disk was bound to hold, and of the writes behind it up to the next
//! one any may be there or not.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// What a log begins with.
const MAGIC: u64 = 0x006a_7366_7773_6872;
const VERSION: u64 = 1;

/// Units in which the log says where a disk was written, at most.
const SECTOR_LEN_MAX: u64 = 64 << 10;
/// Bytes of an entry's own fields.
const FIELDS_LEN: u64 = 32;
/// Longest write that is taken for one; the kernel's are at most a few MiB.
const WRITE_LEN_MAX: u64 = 64 << 20;

const FLUSH: u64 = 1 << 0;
const FUA: u64 = 1 << 1;
const DISCARD: u64 = 1 << 2;
const MARK: u64 = 1 << 3;
const METADATA: u64 = 1 << 4;

/// One entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Bytes of the disk were written, with what lies in the log from `data_at` on; nothing, if
    /// this is only a flush.
    Write {
        /// Which bytes of the disk.
        range: Range<u64>,
        /// Where in the log the data is.
        data_at: u64,
        /// Whether this and everything before it is on the medium now.
        is_durable: bool,
    },
    /// Bytes were given back. What the disk has there is its own affair; here it is zeroes.
    Discard {
        /// Which bytes of the disk.
        range: Range<u64>,
    },
    /// Somebody's word.
    Mark(String),
}

/// A log, checked and ready to be replayed.
#[derive(Debug)]
pub struct WriteLog {
    file: File,
    /// In the order of the log.
    pub events: Vec<Event>,
}

impl WriteLog {
    /// Reads the log in the file or device at `path`, of a disk of `disk_len` bytes.
    ///
    /// # Errors
    /// What is wrong with it, and where.
    pub fn open(path: &Path, disk_len: u64) -> Result<WriteLog, String> {
        let file = File::open(path).map_err(|error| format!("{}: {error}", path.display()))?;
        let log_len = file.metadata().map_err(|error| error.to_string())?.len();
        let [magic, version, count, sector_len] = words(&file, 0)?;
        // The last field is four bytes; what follows in the sector is nobody's.
        let sector_len = sector_len & u64::from(u32::MAX);
        if magic != MAGIC || version != VERSION {
            return Err(format!("no log of version {VERSION}: {magic:#x}, version {version}"));
        }
        if !sector_len.is_power_of_two() || !(512..=SECTOR_LEN_MAX).contains(&sector_len) {
            return Err(format!("sectors of {sector_len} bytes"));
        }
        if count > log_len / sector_len {
            return Err(format!("{count} entries in {log_len} bytes"));
        }
        let mut reader = Reader { file: &file, sector_len, disk_len, log_len, at: sector_len };
        let events = (0..count).map(|_| reader.event()).collect::<Result<_, _>>()?;
        Ok(WriteLog { file, events })
    }

    /// Does to `image` what the event at `index` did to the disk.
    ///
    /// # Errors
    /// Those of reading the log and writing the image.
    pub fn replay(&self, index: usize, image: &File) -> io::Result<()> {
        let (range, data_at) = match &self.events[index] {
            Event::Write { range, data_at, .. } => (range, Some(*data_at)),
            Event::Discard { range } => (range, None),
            Event::Mark(_) => return Ok(()),
        };
        let mut bytes = vec![0; (range.end - range.start) as usize];
        if let Some(at) = data_at {
            self.file.read_exact_at(&mut bytes, at)?;
        }
        image.write_all_at(&bytes, range.start)
    }

    /// Whether everything up to this event is bound to be on the medium once it is over.
    pub fn is_durable(&self, index: usize) -> bool {
        matches!(self.events[index], Event::Write { is_durable: true, .. })
    }
}

/// Goes through the entries.
struct Reader<'a> {
    file: &'a File,
    sector_len: u64,
    disk_len: u64,
    log_len: u64,
    at: u64,
}

impl Reader<'_> {
    fn event(&mut self) -> Result<Event, String> {
        let at = self.at;
        let [sector, sectors, flags, data_len] = words(self.file, at)?;
        let wrong = |why: &str| format!("entry at {at:#x} of the log: {why}");
        if flags & !(FLUSH | FUA | DISCARD | MARK | METADATA) != 0 {
            return Err(wrong(&format!("unknown flags {flags:#x}")));
        }
        self.at += self.sector_len;
        if flags & MARK != 0 {
            if data_len > self.sector_len - FIELDS_LEN || sectors != 0 {
                return Err(wrong("a mark that is too long"));
            }
            let mut name = vec![0; data_len as usize];
            let read = self.file.read_exact_at(&mut name, at + FIELDS_LEN);
            read.map_err(|error| wrong(&error.to_string()))?;
            return String::from_utf8(name)
                .map(Event::Mark)
                .map_err(|_| wrong("a mark in no UTF-8"));
        }
        let bytes = |sectors: u64| sectors.checked_mul(self.sector_len);
        let range = bytes(sector).zip(bytes(sectors)).and_then(|(start, len)| {
            let end = start.checked_add(len).filter(|end| *end <= self.disk_len)?;
            Some(start..end)
        });
        let range = range.ok_or_else(|| wrong("a write behind the end of the disk"))?;
        if flags & DISCARD != 0 {
            return Ok(Event::Discard { range });
        }
        let data_at = self.at;
        let len = range.end - range.start;
        if len > WRITE_LEN_MAX || data_at + len > self.log_len {
            return Err(wrong(&format!("{len} bytes of data")));
        }
        self.at += len;
        Ok(Event::Write { range, data_at, is_durable: flags & (FLUSH | FUA) != 0 })
    }
}

/// Four little-endian words.
fn words(file: &File, at: u64) -> Result<[u64; 4], String> {
    let mut bytes = [0; FIELDS_LEN as usize];
    file.read_exact_at(&mut bytes, at).map_err(|error| format!("log at {at:#x}: {error}"))?;
    let mut words = [0; 4];
    for (word, bytes) in words.iter_mut().zip(bytes.as_chunks().0) {
        *word = u64::from_le_bytes(*bytes);
    }
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Scratch;

    const DISK_LEN: u64 = 1 << 20;

    fn sector(words: [u64; 4], rest: &[u8]) -> Vec<u8> {
        let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        bytes.extend(rest);
        bytes.resize(512, 0);
        bytes
    }

    fn opened(log: &[Vec<u8>]) -> Result<WriteLog, String> {
        let scratch = Scratch::new();
        WriteLog::open(&scratch.write("log", &log.concat()), DISK_LEN)
    }

    fn head(count: u64) -> Vec<u8> {
        sector([MAGIC, VERSION, count, 512], &[])
    }

    #[test]
    fn a_log_is_replayed_up_to_any_moment() {
        let log = opened(&[
            head(5),
            sector([8, 1, 0, 0], &[]),
            vec![1; 512],
            sector([0, 0, FLUSH, 0], &[]),
            sector([0, 0, MARK, 4], b"done"),
            sector([8, 2, FLUSH | FUA, 0], &[]),
            vec![2; 1024],
            sector([9, 1, DISCARD, 0], &[]),
        ])
        .unwrap();
        assert_eq!(log.events[2], Event::Mark("done".into()));
        assert_eq!(
            (0..5).map(|n| log.is_durable(n)).collect::<Vec<_>>(),
            [false, true, false, true, false]
        );
        let scratch = Scratch::new();
        let image = File::create_new(scratch.path("image")).unwrap();
        let mut held = Vec::new();
        for index in 0..5 {
            log.replay(index, &image).unwrap();
            let bytes = scratch.read("image");
            held.push([bytes[4096], bytes.get(4608).copied().unwrap_or(7)]);
        }
        assert_eq!(held, [[1, 7], [1, 7], [1, 7], [2, 2], [2, 0]]);
    }

    #[test]
    fn what_is_no_log_is_refused() {
        let refused = |log: &[Vec<u8>], why: &str| {
            let error = opened(log).err().unwrap_or_else(|| panic!("{why}: it was read"));
            assert!(error.contains(why), "{error}");
        };
        refused(&[], "log at 0x0");
        refused(&[sector([MAGIC ^ 1, VERSION, 0, 512], &[])], "no log of version 1");
        refused(&[sector([MAGIC, 2, 0, 512], &[])], "version 2");
        refused(&[sector([MAGIC, VERSION, 0, 0], &[])], "sectors of 0 bytes");
        refused(&[sector([MAGIC, VERSION, 0, 1 << 31], &[])], "sectors of 2147483648 bytes");
        refused(&[head(u64::MAX)], "entries in 512 bytes");
        refused(&[head(1)], "log at 0x200");
        let one = |words| [head(1), sector(words, &[])];
        refused(&one([0, 0, 1 << 9, 0]), "unknown flags 0x200");
        refused(&one([0, 0, MARK, 481]), "a mark that is too long");
        refused(&one([u64::MAX / 512, 1, 0, 0]), "behind the end");
        refused(&one([1, u64::MAX, DISCARD, 0]), "behind the end");
        refused(&one([2047, 2, DISCARD, 0]), "behind the end");
        refused(&one([0, 1, 0, 0]), "512 bytes of data");
        refused(&[head(1), sector([0, 0, MARK, 2], &[0xff, 0xfe])], "no UTF-8");
    }
}
