//! Regular files and block devices.
//!
//! Each is open twice: a buffered descriptor for everything that is not whole blocks, and a
//! direct one where the file system grants `O_DIRECT`. Pitfalls this file knows:
//!
//! * tmpfs accepts `O_DIRECT` since 6.6 but has nothing to bypass; it counts as buffered here.
//! * Both ways on the same page at the same time lose data (a stale page written back late
//!   overwrites what was written beside it), so the block of a device is at least a page.
//! * `O_DIRECT` across the end of a device whose length is not whole blocks is `EINVAL`; the
//!   tail goes the buffered way, and only the tail (`queue` cuts there): what the page cache holds
//!   of a block device is what some opener read last, not what the device holds now.
//! * A hole punched in a loop device on tmpfs works until a `ZERO_RANGE` failed there, after
//!   which it never works again; so holes are tried first.

use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, OnceLock};

use nix::errno::Errno;
use nix::libc;
use nix::sys::statfs::{TMPFS_MAGIC, fstatfs};

use super::node::Node;
use super::{Device, Extent, ExtentKind, Extents, Geometry, Resize, Zero, ZeroMethod, sysfs};
use crate::io::blocking::BlockingDriver;
use crate::io::buffer::BufferPool;
use crate::io::ioctl;
use crate::io::op::Driver;
use crate::io::ring::RingDriver;
use crate::io::route::Files;
use crate::options::IoEngine;

/// Least block length in bytes: a page, see the module's head.
fn block_len_min() -> u32 {
    // Every kernel answers; 64 KiB is the largest page of any.
    ioctl::page_len().unwrap_or(1 << 16)
}

/// Most bytes of zeroes per write where a device can only be zeroed by writing.
const ZERO_WRITE_LEN: usize = 1 << 20;

/// Bits of [`FileDevice::lacks`]: means of zeroing that the device turned out not to have.
const LACKS_PUNCH: u8 = 1;
const LACKS_ZERO_RANGE: u8 = 2;

/// What a file is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Read only.
    Read,
    /// Read and write; a block device exclusively (`O_EXCL`: nobody has mounted or claimed it,
    /// and nobody can while it is open).
    Write,
}

/// Which file or device it is, for comparing and for showing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileIdentity {
    /// Device number of the file system that holds the node.
    pub dev: u64,
    /// Inode number there.
    pub ino: u64,
    /// Device number of the block device; 0 for a regular file.
    pub rdev: u64,
    /// Whether it is a block device.
    pub is_block: bool,
    /// Length in bytes when it was opened.
    pub size: u64,
    /// Disk sequence number, where the kernel has one (5.15): tells a device number's new tenant.
    pub diskseq: Option<u64>,
    /// Model and serial number, or a device mapper's name, as `/sys` has it.
    pub model: Option<String>,
}

impl FileIdentity {
    /// What `file` is.
    ///
    /// # Errors
    /// The system's, if it cannot be asked.
    pub fn of(file: &File) -> io::Result<Self> {
        let metadata = file.metadata()?;
        let is_block = metadata.file_type().is_block_device();
        let rdev = if is_block { metadata.rdev() } else { 0 };
        Ok(FileIdentity {
            dev: metadata.dev(),
            ino: metadata.ino(),
            rdev,
            is_block,
            size: length(file, &metadata)?,
            diskseq: is_block.then(|| ioctl::disk_sequence(file).ok()).flatten(),
            model: is_block.then(|| sysfs::model(rdev)).flatten(),
        })
    }

    /// Whether both names lead to the same bytes.
    pub fn is_same(&self, other: &FileIdentity) -> bool {
        self.node() == other.node()
    }

    pub(super) fn node(&self) -> Node {
        match self.is_block {
            true => Node::Block(self.rdev),
            false => Node::File(self.dev, self.ino),
        }
    }
}

/// A regular file or a block device behind the device traits.
#[derive(Debug)]
pub struct FileDevice {
    label: String,
    path: PathBuf,
    files: Files,
    identity: FileIdentity,
    /// Means of zeroing that failed with "not supported".
    lacks: AtomicU8,
    /// One buffer of zeroes, made when first needed.
    zeroes: OnceLock<BufferPool>,
}

impl FileDevice {
    /// Opens the file or block device at `path`, which must exist. `open` has the functions that
    /// check what it is and put failures into words.
    ///
    /// # Errors
    /// The system's; `InvalidInput` if it is neither a file nor a block device.
    pub fn open(path: &Path, access: Access) -> io::Result<Self> {
        let is_block = std::fs::metadata(path)?.file_type().is_block_device();
        let buffered = options(access, is_block).open(path)?;
        Self::from_file(path, buffered, access)
    }

    /// Takes over `buffered`, which is open on `path` for `access`, and opens the direct way.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn from_file(path: &Path, buffered: File, access: Access) -> io::Result<Self> {
        let kind = buffered.metadata()?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "neither a regular file nor a block device",
            ));
        }
        let identity = FileIdentity::of(&buffered)?;
        let direct = open_direct(path, &buffered, access, &identity)?;
        let block_len = block_len(&buffered, &identity, direct.as_ref());
        let files = Files { buffered: Arc::new(buffered), direct: direct.map(Arc::new), block_len };
        let device = FileDevice {
            label: path.display().to_string(),
            path: path.to_path_buf(),
            files,
            identity,
            lacks: AtomicU8::new(0),
            zeroes: OnceLock::new(),
        };
        device.forget_stale_tail();
        Ok(device)
    }

    /// The path it was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What it was when it was opened.
    pub fn identity(&self) -> &FileIdentity {
        &self.identity
    }

    /// The buffered descriptor, for locks (`File::try_lock` is `flock(2)`) and ioctls.
    pub fn file(&self) -> &File {
        &self.files.buffered
    }

    /// The same file without the direct way: for small reads that the page cache serves best.
    pub fn without_direct(mut self) -> Self {
        self.files.direct = None;
        self
    }

    /// Releases `range` of a block device or file. **Never taken for a zero.**
    ///
    /// # Errors
    /// The system's; `Unsupported` where there is no such thing.
    pub fn discard(&self, range: Range<u64>) -> io::Result<()> {
        match self.identity.is_block {
            true => ioctl::discard_block_range(self.file(), &range),
            false => ioctl::punch_hole(self.file(), &range),
        }
    }

    /// Has the next reads of a block device show what is on it. Another opener may have kept pages
    /// of it in the cache while its bytes changed below: on another host, or by a name of the same
    /// bytes that has a cache of its own. A wish: it takes rights that not everybody has.
    pub fn forget_cached(&self) {
        if self.identity.is_block {
            let _ = ioctl::flush_block_cache(self.file());
            let _ = ioctl::forget_cached(self.file(), &(0..self.identity.size));
        }
    }

    /// The page at a block device's ragged end is read through the page cache; what another
    /// opener left there may be old.
    fn forget_stale_tail(&self) {
        let block = u64::from(self.files.block_len);
        let size = self.identity.size;
        if self.identity.is_block && !size.is_multiple_of(block) {
            // To the end of the page: the kernel keeps a page that the range covers in part.
            let range = size / block * block..size.next_multiple_of(block);
            let _ = ioctl::forget_cached(self.file(), &range);
        }
    }

    fn zero_blocks(&self, range: &Range<u64>) -> io::Result<ZeroMethod> {
        if self.try_zero(LACKS_PUNCH, || ioctl::punch_hole(self.file(), range))? {
            return Ok(ZeroMethod::PunchHole);
        }
        if self.try_zero(LACKS_ZERO_RANGE, || self.zero_in_kernel(range))? {
            return Ok(ZeroMethod::ZeroRange);
        }
        self.write_zeroes(range)?;
        Ok(ZeroMethod::Write)
    }

    /// Whether `means` worked; remembers that the device lacks it.
    fn try_zero(&self, bit: u8, means: impl Fn() -> io::Result<()>) -> io::Result<bool> {
        if self.lacks.load(Ordering::Relaxed) & bit != 0 {
            return Ok(false);
        }
        match means() {
            Ok(()) => Ok(true),
            Err(error) if ioctl::is_unsupported(&error) => {
                self.lacks.fetch_or(bit, Ordering::Relaxed);
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    fn zero_in_kernel(&self, range: &Range<u64>) -> io::Result<()> {
        match self.identity.is_block {
            true => ioctl::zero_block_range(self.file(), range),
            false => ioctl::zero_range(self.file(), range),
        }
    }

    fn write_zeroes(&self, range: &Range<u64>) -> io::Result<()> {
        let pool = self.zero_pool()?;
        let mut zeroes = pool.take();
        zeroes.set_len(ZERO_WRITE_LEN);
        let whole = |at: u64| at.is_multiple_of(u64::from(self.files.block_len));
        let direct =
            self.files.direct.as_deref().filter(|_| whole(range.start) && whole(range.end));
        let file = direct.unwrap_or(self.file());
        let mut at = range.start;
        while at < range.end {
            let count = (range.end - at).min(ZERO_WRITE_LEN as u64);
            file.write_all_at(&zeroes[..count as usize], at)?;
            at += count;
        }
        Ok(())
    }

    fn zero_pool(&self) -> io::Result<&BufferPool> {
        // Nobody writes into these buffers, so the mapping's own zeroes stay.
        match self.zeroes.get() {
            Some(pool) => Ok(pool),
            None => {
                let pool = BufferPool::new(1, ZERO_WRITE_LEN)?;
                Ok(self.zeroes.get_or_init(|| pool))
            }
        }
    }
}

impl Device for FileDevice {
    fn label(&self) -> &str {
        &self.label
    }

    fn len(&self) -> io::Result<u64> {
        length(self.file(), &self.file().metadata()?)
    }

    fn geometry(&self) -> Geometry {
        Geometry { block_len: self.files.block_len, direct: self.files.direct.is_some() }
    }

    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut done = 0;
        while done < bytes.len() {
            match self.file().read_at(&mut bytes[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(count) => done += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.file().write_all_at(bytes, offset)
    }

    fn sync(&self) -> io::Result<()> {
        self.file().sync_data()
    }

    fn forget(&self, range: Range<u64>) -> io::Result<()> {
        ioctl::forget_cached(self.file(), &range)
    }

    fn driver(
        &self,
        engine: IoEngine,
        pool: &BufferPool,
        depth: u32,
    ) -> io::Result<Box<dyn Driver>> {
        let ring = || RingDriver::new(self.files.clone(), pool, depth);
        let blocking = || BlockingDriver::new(&self.files, depth);
        Ok(match engine {
            IoEngine::Uring => Box::new(ring()?),
            IoEngine::Blocking => Box::new(blocking()?),
            IoEngine::Auto => match ring() {
                Ok(driver) => Box::new(driver),
                // Granted when it was asked for, but memory or descriptors may be short by now.
                Err(why) => Box::new(blocking()?.for_want_of_a_ring(&why)),
            },
        })
    }
}

impl Extents for FileDevice {
    fn extent_at(&self, offset: u64) -> io::Result<Extent> {
        let len = self.len()?;
        let data = |range| Extent { range, kind: ExtentKind::Data };
        if self.identity.is_block {
            return Ok(data(offset..len));
        }
        match ioctl::seek_data(self.file(), offset) {
            Err(error) if ioctl::is_unsupported(&error) => Ok(data(offset..len)),
            Err(error) => Err(error),
            Ok(Some(start)) if start <= offset => {
                let end = ioctl::seek_hole(self.file(), offset)?.unwrap_or(len);
                Ok(data(offset..end.clamp(offset, len)))
            }
            Ok(next) => {
                let end = next.unwrap_or(len).min(len);
                Ok(Extent { range: offset..end, kind: ExtentKind::Hole })
            }
        }
    }
}

impl Zero for FileDevice {
    fn zero(&self, range: Range<u64>) -> io::Result<ZeroMethod> {
        if range.start > range.end || range.end > self.len()? {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "the range to zero does not lie inside the device",
            ));
        }
        let block = u64::from(self.files.block_len);
        let start = range.start.next_multiple_of(block).min(range.end);
        let end = (range.end / block * block).max(start);
        self.write_zeroes(&(range.start..start))?;
        self.write_zeroes(&(end..range.end))?;
        match start < end {
            true => self.zero_blocks(&(start..end)),
            false => Ok(ZeroMethod::Write),
        }
    }
}

impl Resize for FileDevice {
    fn set_len(&self, len: u64) -> io::Result<()> {
        match self.identity.is_block {
            true => Err(io::Error::from(io::ErrorKind::Unsupported)),
            false => self.file().set_len(len),
        }
    }
}

fn options(access: Access, is_block: bool) -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(access == Access::Write);
    if access == Access::Write && is_block {
        options.custom_flags(libc::O_EXCL);
    }
    options
}

/// The direct descriptor, or `None` where the file system has no direct I/O.
fn open_direct(
    path: &Path,
    buffered: &File,
    access: Access,
    identity: &FileIdentity,
) -> io::Result<Option<File>> {
    if fstatfs(buffered)?.filesystem_type() == TMPFS_MAGIC && !identity.is_block {
        return Ok(None);
    }
    let align = ioctl::direct_align(buffered).ok().flatten();
    if align.is_some_and(|align| align.offset == 0) {
        return Ok(None);
    }
    // Without O_EXCL: the buffered descriptor already holds the claim, and a second would clash
    // with it.
    let mut options = options(access, false);
    let opened = options.custom_flags(libc::O_DIRECT).open(path);
    match opened {
        Ok(direct) if identity.is_same(&FileIdentity::of(&direct)?) => Ok(Some(direct)),
        Ok(_) => Err(io::Error::other("the path was replaced while it was being opened")),
        Err(error) if error.raw_os_error() == Some(Errno::EINVAL as i32) => Ok(None),
        Err(error) => Err(error),
    }
}

fn block_len(buffered: &File, identity: &FileIdentity, direct: Option<&File>) -> u32 {
    let sector = match identity.is_block {
        true => ioctl::logical_block_len(buffered).unwrap_or(0),
        false => 0,
    };
    let asked = direct
        .and_then(|direct| ioctl::direct_align(direct).ok().flatten())
        .map_or(0, |align| align.offset.max(align.memory));
    sector.max(asked).max(block_len_min()).next_power_of_two()
}

fn length(file: &File, metadata: &Metadata) -> io::Result<u64> {
    match metadata.file_type().is_block_device() {
        true => ioctl::block_device_len(file),
        false => Ok(metadata.len()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::test_rig::*;
    use crate::io::probe;

    const LEN: usize = 3 * (1 << 20) + 4096 + 100;

    fn round_trip(path: &Path, bytes: &[u8]) {
        for engine in ENGINES.into_iter().filter(|engine| can_run(*engine)) {
            let device = FileDevice::open(path, Access::Write).unwrap();
            write_all(&device, engine, bytes);
            device.sync().unwrap();
            assert!(read_all(&device, engine)[..bytes.len()] == *bytes, "{engine:?}");
            drop(device);
            let device = FileDevice::open(path, Access::Read).unwrap();
            let mut plain = vec![0; bytes.len()];
            assert_eq!(device.read_at(&mut plain, 0).unwrap(), bytes.len());
            assert!(plain == bytes, "{engine:?}");
        }
    }

    #[test]
    fn every_driver_on_a_file_in_memory_and_on_disk() {
        for folder in folders() {
            let path = file_with(folder.path(), "volume", &[]);
            round_trip(&path, &pattern(LEN, 7));
        }
    }

    #[test]
    fn every_driver_on_a_loop_device_of_512_and_of_4096() {
        for sector in ["512", "4096"] {
            for folder in folders() {
                // A length of whole sectors but not whole pages, for the 512-byte device.
                let len = if sector == "512" { 2 << 20 | 0x600 } else { 2 << 20 };
                let backing = file_with(folder.path(), "backing", &vec![1; len]);
                let Some(device) = Loop::set_up(&backing, &["--sector-size", sector]) else {
                    return;
                };
                round_trip(&device.path, &pattern(len, 11));
            }
        }
    }

    /// Direct and buffered transfers, positional calls and zeroes in turn on the same pages.
    fn agrees_with_a_plain_vector(path: &Path, engine: IoEngine, seed: u64) {
        use rand::{RngExt, SeedableRng};
        let mut rng = rand::rngs::StdRng::seed_from_u64(seed);
        let device = FileDevice::open(path, Access::Write).unwrap();
        let mut model = std::fs::read(path).unwrap();
        let (mut queue, pool) = queue(&device, engine, 2);
        for turn in 0..300_u64 {
            let grain = [1, 512, 4096, 4096][rng.random_range(0..4)];
            let start = rng.random_range(0..model.len()) / grain * grain;
            let most = (model.len() - start).min(40_000);
            let len = (rng.random_range(0..=most) / grain * grain).max(grain.min(most));
            let (range, offset) = (start..start + len, start as u64);
            match rng.random_range(0..5) {
                0 => assert!(*read_one(&mut queue, &pool, offset, len).buffer == model[range]),
                1 => {
                    let mut bytes = vec![0; len];
                    assert_eq!(device.read_at(&mut bytes, offset).unwrap(), len);
                    assert!(bytes == model[range], "turn {turn}, {engine:?}, seed {seed}");
                }
                2 => {
                    let bytes = pattern(len, turn + 1);
                    write_one(&mut queue, &pool, offset, &bytes).result.unwrap();
                    model[range].copy_from_slice(&bytes);
                }
                3 => {
                    let bytes = pattern(len, turn + 1);
                    device.write_at(&bytes, offset).unwrap();
                    model[range].copy_from_slice(&bytes);
                }
                _ => {
                    device.zero(offset..offset + len as u64).unwrap();
                    model[range].fill(0);
                }
            }
        }
        drop(queue);
        assert!(read_all(&device, engine) == model, "{engine:?}, seed {seed}");
    }

    #[test]
    fn mixed_transfers_agree_with_a_plain_vector() {
        for folder in folders() {
            let path = file_with(folder.path(), "volume", &pattern(300_077, 2));
            let backing = file_with(folder.path(), "backing", &pattern(300_032, 2));
            let node = Loop::set_up(&backing, &["--sector-size", "512"]);
            for engine in ENGINES.into_iter().filter(|engine| can_run(*engine)) {
                for seed in 0..4 {
                    agrees_with_a_plain_vector(&path, engine, seed);
                    if let Some(node) = &node {
                        agrees_with_a_plain_vector(&node.path, engine, seed);
                    }
                }
            }
        }
    }

    #[test]
    fn the_ragged_end_of_a_device_is_read_anew() {
        let folder = tempfile::tempdir().unwrap();
        let len = (2 << 20) + 0x600;
        let backing = file_with(folder.path(), "backing", &vec![1; len]);
        let Some(node) = Loop::set_up(&backing, &["--sector-size", "512"]) else {
            return;
        };
        // Holds the page in the cache, as another opener may.
        let other = FileDevice::open(&node.path, Access::Read).unwrap();
        let mut tail = [0; 0x600];
        other.read_at(&mut tail, 2 << 20).unwrap();
        assert_eq!(tail, [1; 0x600]);
        let file = OpenOptions::new().write(true).open(&backing).unwrap();
        file.write_all_at(&[2; 0x600], 2 << 20).unwrap();
        let device = FileDevice::open(&node.path, Access::Read).unwrap();
        device.read_at(&mut tail, 2 << 20).unwrap();
        assert_eq!(tail, [2; 0x600]);
    }

    #[test]
    fn a_loop_device_says_what_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let backing = file_with(folder.path(), "backing", &[1; 1 << 20]);
        let Some(node) = Loop::set_up(&backing, &["--sector-size", "4096"]) else {
            return;
        };
        let device = FileDevice::open(&node.path, Access::Write).unwrap();
        assert_eq!(device.len().unwrap(), 1 << 20);
        assert_eq!(ioctl::logical_block_len(device.file()).unwrap(), 4096);
        assert!(!ioctl::is_read_only(device.file()).unwrap());
        let identity = device.identity();
        assert!(identity.is_block && identity.rdev != 0 && identity.diskseq.is_some());
        assert!(identity.model.as_ref().is_some_and(|model| model.contains("backing")));
        assert!(device.set_len(5).is_err());
        ioctl::flush_block_cache(device.file()).unwrap();
        let claimed = FileDevice::open(&node.path, Access::Write).unwrap_err();
        assert_eq!(claimed.kind(), io::ErrorKind::ResourceBusy);
    }

    #[test]
    fn a_dropped_driver_lets_go_of_an_exclusive_device_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let backing = file_with(folder.path(), "backing", &[1; 1 << 20]);
        let Some(node) = Loop::set_up(&backing, &[]) else {
            return;
        };
        for engine in [0; 20].iter().flat_map(|_| ENGINES).filter(|engine| can_run(*engine)) {
            let device = FileDevice::open(&node.path, Access::Write).unwrap();
            assert_eq!(read_all(&device, engine).len(), 1 << 20);
        }
    }

    #[test]
    fn a_ring_that_is_not_to_be_had_after_all_is_done_without() {
        let folder = tempfile::tempdir().unwrap();
        let path = file_with(folder.path(), "volume", &pattern(LEN, 23));
        // A filter binds the thread that installs it, and no other.
        let seen = std::thread::spawn(move || {
            let engine = probe::choose(IoEngine::Auto).unwrap().engine;
            if engine != IoEngine::Auto || !probe::tests::forbid_io_uring() {
                eprintln!("skipped: no io_uring, or no seccomp filters here");
                return;
            }
            let device = FileDevice::open(&path, Access::Read).unwrap();
            let pool = BufferPool::new(1, 4096).unwrap();
            let driver = device.driver(engine, &pool, 1).unwrap();
            let notice = driver.notice().unwrap();
            assert!(notice.contains("io_uring is unavailable"), "{notice}");
            assert!(notice.contains("plain reads and writes"), "{notice}");
            assert!(device.driver(IoEngine::Uring, &pool, 1).is_err());
            assert!(read_all(&device, engine) == pattern(LEN, 23));
        });
        seen.join().unwrap();
    }

    #[test]
    fn reads_across_the_end_of_a_file_end_there() {
        for folder in folders() {
            let bytes = pattern(3 * 4096 + 100, 3);
            let path = file_with(folder.path(), "volume", &bytes);
            let device = FileDevice::open(&path, Access::Read).unwrap();
            for engine in ENGINES.into_iter().filter(|engine| can_run(*engine)) {
                let (mut queue, pool) = queue(&device, engine, 2);
                let read = read_one(&mut queue, &pool, 4096, 1 << 16);
                assert_eq!(read.result.unwrap(), bytes.len() - 4096);
                assert!(*read.buffer == bytes[4096..]);
                let past = read_one(&mut queue, &pool, 1 << 20, 4096);
                assert_eq!(past.result.unwrap(), 0);
            }
        }
    }

    #[test]
    fn unaligned_tail_write_leaves_the_rest_alone() {
        for folder in folders() {
            let before = pattern(4 * 4096, 5);
            let path = file_with(folder.path(), "volume", &before);
            for engine in ENGINES.into_iter().filter(|engine| can_run(*engine)) {
                let device = FileDevice::open(&path, Access::Write).unwrap();
                let (mut queue, pool) = queue(&device, engine, 2);
                assert_eq!(write_one(&mut queue, &pool, 8192, &[9; 4196]).result.unwrap(), 4196);
                let mut expected = before.clone();
                expected[8192..8192 + 4196].fill(9);
                assert!(read_all(&device, engine) == expected, "{engine:?}");
            }
        }
    }

    #[test]
    fn holes_are_found() {
        for folder in folders() {
            let path = file_with(folder.path(), "volume", &[]);
            let device = FileDevice::open(&path, Access::Write).unwrap();
            device.set_len(4 << 20).unwrap();
            device.write_at(&[1; 4096], 1 << 20).unwrap();
            let hole = |range| Extent { range, kind: ExtentKind::Hole };
            let (start, end) = (1 << 20, (1 << 20) + 4096);
            assert_eq!(device.extent_at(0).unwrap(), hole(0..start));
            let found = device.extent_at(start).unwrap();
            assert!(found.kind == ExtentKind::Data && found.range.end >= end, "{found:?}");
            assert_eq!(device.extent_at(found.range.end).unwrap(), hole(found.range.end..4 << 20));
            device.zero(0..4 << 20).unwrap();
            assert_eq!(device.extent_at(0).unwrap(), hole(0..4 << 20));
        }
    }

    #[test]
    fn zero_reaches_ragged_ranges_and_nothing_else() {
        for folder in folders() {
            let before = pattern(64 * 1024 + 77, 9);
            for range in [0..before.len(), 100..200, 4000..5000, 4096..12288, 5..65536 + 77] {
                let path = file_with(folder.path(), "volume", &before);
                let device = FileDevice::open(&path, Access::Write).unwrap();
                device.zero(range.start as u64..range.end as u64).unwrap();
                let mut expected = before.clone();
                expected[range].fill(0);
                assert!(std::fs::read(&path).unwrap() == expected);
            }
        }
    }

    #[test]
    fn zero_falls_back_to_what_the_device_has() {
        let folder = tempfile::tempdir().unwrap();
        let before = pattern(1 << 20, 13);
        let path = file_with(folder.path(), "volume", &before);
        let device = FileDevice::open(&path, Access::Write).unwrap();
        assert_eq!(device.zero(0..4096).unwrap(), ZeroMethod::PunchHole);
        device.lacks.store(LACKS_PUNCH, Ordering::Relaxed);
        assert_eq!(device.zero(4096..8192).unwrap(), ZeroMethod::ZeroRange);
        device.lacks.store(LACKS_PUNCH | LACKS_ZERO_RANGE, Ordering::Relaxed);
        assert_eq!(device.zero(8192..1 << 19).unwrap(), ZeroMethod::Write);
        let after = read_all(&device, IoEngine::Blocking);
        assert!(after[..1 << 19].iter().all(|byte| *byte == 0));
        assert!(after[1 << 19..] == before[1 << 19..]);
    }

    #[test]
    fn zero_on_loop_devices_even_where_holes_cannot_be_punched() {
        for folder in folders() {
            let len = 1 << 20;
            let backing = file_with(folder.path(), "backing", &pattern(len, 17));
            let Some(node) = Loop::set_up(&backing, &[]) else {
                return;
            };
            let device = FileDevice::open(&node.path, Access::Write).unwrap();
            // On tmpfs this makes the kernel give up on zeroing in the device for good.
            let _ = ioctl::zero_block_range(device.file(), &(0..4096));
            device.zero(512..len as u64 - 512).unwrap();
            let after = read_all(&device, IoEngine::Blocking);
            assert!(after[4096..len - 512].iter().all(|byte| *byte == 0));
            assert!(after[len - 512..] == pattern(len, 17)[len - 512..]);
        }
    }

    #[test]
    fn zero_beyond_the_end_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = file_with(folder.path(), "volume", &[1; 100]);
        let device = FileDevice::open(&path, Access::Write).unwrap();
        assert_eq!(device.zero(0..101).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        assert_eq!(std::fs::read(&path).unwrap(), [1; 100]);
    }

    #[test]
    fn identity_sees_through_links() {
        let folder = tempfile::tempdir().unwrap();
        let path = file_with(folder.path(), "volume", &[1; 100]);
        let link = folder.path().join("link");
        std::fs::hard_link(&path, &link).unwrap();
        let other = file_with(folder.path(), "other", &[1; 100]);
        let identity = |path: &Path| FileIdentity::of(&File::open(path).unwrap()).unwrap();
        assert!(identity(&path).is_same(&identity(&link)));
        assert!(!identity(&path).is_same(&identity(&other)));
    }

    #[test]
    fn neither_file_nor_device_is_refused() {
        let error = FileDevice::open(Path::new("/dev/null"), Access::Read).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }
}
