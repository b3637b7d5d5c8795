//! A device in memory: the twin of files and block devices in every test.
//!
//! Bytes live in 4 KiB pages that exist once something was written to them, so a device of 16 TiB
//! costs what was written. Absent pages are holes. An operation log tells a test exactly what was
//! written and zeroed, in which order.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Device, Extent, ExtentKind, Extents, Geometry, Resize, Zero, ZeroMethod};
use crate::io::buffer::BufferPool;
use crate::io::op::{Completion, Driver, Op};
use crate::options::IoEngine;

const PAGE_LEN: u64 = 4096;

/// Bytes in memory behind the device traits. Cloning shares them.
#[derive(Clone)]
pub struct MemoryDevice {
    label: String,
    geometry: Geometry,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    len: u64,
    pages: BTreeMap<u64, Box<[u8]>>,
    log: Option<Vec<LoggedOp>>,
    /// Whether a write behind the end moves the end, as in a file.
    grows: bool,
}

/// One operation on the device, as it was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LoggedOp {
    /// These bytes were read.
    Read(Range<u64>),
    /// These bytes were written.
    Write(Range<u64>),
    /// These bytes were zeroed, not written.
    Zero(Range<u64>),
    /// The length was set.
    SetLen(u64),
    /// What was written was made durable.
    Sync,
}

impl MemoryDevice {
    /// A device of `len` bytes, all of them zero and none of them stored; 4 KiB blocks.
    pub fn new(len: u64) -> Self {
        MemoryDevice {
            label: "memory".to_owned(),
            geometry: Geometry { block_len: PAGE_LEN as u32, direct: false },
            state: Arc::new(Mutex::new(State { len, ..State::default() })),
        }
    }

    /// A device that holds `bytes`.
    pub fn from_bytes(bytes: &[u8]) -> Self {
        let device = MemoryDevice::new(bytes.len() as u64);
        device.lock().write(bytes, 0);
        device
    }

    /// The same device under another name.
    pub fn with_label(mut self, label: impl Into<String>) -> Self {
        self.label = label.into();
        self
    }

    /// The same device with blocks of `block_len` bytes, a power of two.
    pub fn with_block_len(mut self, block_len: u32) -> Self {
        debug_assert!(block_len.is_power_of_two());
        self.geometry.block_len = block_len;
        self
    }

    /// The same device, which from now on grows when written behind its end, like a file; without
    /// this it refuses, like a block device.
    pub fn growing(self) -> Self {
        self.lock().grows = true;
        self
    }

    /// The same device, which from now on logs what is done to it.
    pub fn with_log(self) -> Self {
        self.lock().log = Some(Vec::new());
        self
    }

    /// What was done since the log was switched on or last taken; empty without a log.
    pub fn ops(&self) -> Vec<LoggedOp> {
        self.lock().log.clone().unwrap_or_default()
    }

    /// Takes the log, which then starts anew.
    pub fn take_ops(&self) -> Vec<LoggedOp> {
        self.lock().log.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// All its bytes.
    ///
    /// # Panics
    /// If the length exceeds what memory can address; for tests with small devices.
    pub fn bytes(&self) -> Vec<u8> {
        let state = self.lock();
        let len = usize::try_from(state.len).expect("a device of a test fits in memory");
        let mut bytes = vec![0; len];
        state.read(&mut bytes, 0);
        bytes
    }

    /// Bytes that are really stored: pages times 4096.
    pub fn stored_len(&self) -> u64 {
        self.lock().pages.len() as u64 * PAGE_LEN
    }

    /// A device of its own with the same bytes, name and geometry, without a log.
    pub fn deep_clone(&self) -> Self {
        let state = self.lock();
        let pages = state.pages.clone();
        let copy = State { len: state.len, pages, log: None, grows: state.grows };
        MemoryDevice {
            label: self.label.clone(),
            geometry: self.geometry,
            state: Arc::new(Mutex::new(copy)),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A test that panicked with the lock held left plain bytes behind, which stay usable.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for MemoryDevice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let state = self.lock();
        write!(f, "MemoryDevice({}, {} bytes, {} pages)", self.label, state.len, state.pages.len())
    }
}

impl State {
    fn note(&mut self, op: LoggedOp) {
        if let Some(log) = &mut self.log {
            log.push(op);
        }
    }

    fn read(&self, bytes: &mut [u8], offset: u64) -> usize {
        let count = clip(self.len, offset, bytes.len());
        let bytes = &mut bytes[..count];
        bytes.fill(0);
        let end = offset + count as u64;
        for (&page, data) in self.pages.range(offset / PAGE_LEN..end.div_ceil(PAGE_LEN)) {
            let start = (page * PAGE_LEN).max(offset);
            let stop = ((page + 1) * PAGE_LEN).min(end);
            let into_page = (start % PAGE_LEN) as usize;
            let part = &data[into_page..into_page + (stop - start) as usize];
            bytes[(start - offset) as usize..(stop - offset) as usize].copy_from_slice(part);
        }
        count
    }

    fn write(&mut self, bytes: &[u8], offset: u64) {
        let mut at = offset;
        let mut rest = bytes;
        while !rest.is_empty() {
            let into_page = (at % PAGE_LEN) as usize;
            let count = rest.len().min(PAGE_LEN as usize - into_page);
            let page = self.pages.entry(at / PAGE_LEN).or_insert_with(empty_page);
            page[into_page..into_page + count].copy_from_slice(&rest[..count]);
            rest = &rest[count..];
            at += count as u64;
        }
    }

    fn zero(&mut self, range: &Range<u64>) {
        let first_whole = range.start.div_ceil(PAGE_LEN);
        let end_whole = range.end / PAGE_LEN;
        if first_whole < end_whole {
            let mut behind = self.pages.split_off(&first_whole);
            self.pages.append(&mut behind.split_off(&end_whole));
        }
        self.zero_within_page(range.start..range.end.min(first_whole * PAGE_LEN));
        self.zero_within_page(range.start.max(end_whole * PAGE_LEN)..range.end);
    }

    fn zero_within_page(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        if let Some(page) = self.pages.get_mut(&(range.start / PAGE_LEN)) {
            let start = (range.start % PAGE_LEN) as usize;
            page[start..start + (range.end - range.start) as usize].fill(0);
        }
    }
}

fn empty_page() -> Box<[u8]> {
    vec![0; PAGE_LEN as usize].into_boxed_slice()
}

/// How many of `wanted` bytes from `offset` a device of `len` bytes has.
fn clip(len: u64, offset: u64, wanted: usize) -> usize {
    usize::try_from(len.saturating_sub(offset)).unwrap_or(usize::MAX).min(wanted)
}

impl Device for MemoryDevice {
    fn label(&self) -> &str {
        &self.label
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.lock().len)
    }

    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut state = self.lock();
        let count = state.read(bytes, offset);
        state.note(LoggedOp::Read(offset..offset + count as u64));
        Ok(count)
    }

    /// Writes inside the device; behind its end only if it is [`growing`](Self::growing).
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let mut state = self.lock();
        let count = clip(state.len, offset, bytes.len());
        if count < bytes.len() && !state.grows {
            return Err(io::Error::from(nix::errno::Errno::ENOSPC));
        }
        let end = offset + bytes.len() as u64;
        state.len = state.len.max(end);
        state.write(bytes, offset);
        state.note(LoggedOp::Write(offset..end));
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.lock().note(LoggedOp::Sync);
        Ok(())
    }

    fn driver(
        &self,
        _engine: IoEngine,
        _pool: &BufferPool,
        depth: u32,
    ) -> io::Result<Box<dyn Driver>> {
        Ok(Box::new(MemoryDriver::new(self.clone(), depth)))
    }
}

impl Extents for MemoryDevice {
    fn extent_at(&self, offset: u64) -> io::Result<Extent> {
        let state = self.lock();
        let page = offset / PAGE_LEN;
        let (kind, end_page) = match state.pages.contains_key(&page) {
            true => (ExtentKind::Data, first_absent(&state.pages, page)),
            false => (ExtentKind::Hole, state.pages.range(page..).next().map(|(next, _)| *next)),
        };
        let end = end_page.map_or(state.len, |page| (page * PAGE_LEN).min(state.len));
        Ok(Extent { range: offset..end, kind })
    }
}

fn first_absent(pages: &BTreeMap<u64, Box<[u8]>>, from: u64) -> Option<u64> {
    let run = pages.range(from..).zip(from..).take_while(|((page, _), wanted)| **page == *wanted);
    Some(from + run.count() as u64)
}

impl Zero for MemoryDevice {
    fn zero(&self, range: Range<u64>) -> io::Result<ZeroMethod> {
        let mut state = self.lock();
        if range.end > state.len || range.start > range.end {
            return Err(io::Error::from(io::ErrorKind::InvalidInput));
        }
        state.zero(&range);
        state.note(LoggedOp::Zero(range));
        Ok(ZeroMethod::PunchHole)
    }
}

impl Resize for MemoryDevice {
    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut state = self.lock();
        if len < state.len {
            let gone = len..state.len;
            state.zero(&gone);
        }
        state.len = len;
        state.note(LoggedOp::SetLen(len));
        Ok(())
    }
}

/// Completes whole and in the order of submission.
struct MemoryDriver {
    device: MemoryDevice,
    queued: VecDeque<Op>,
    depth: usize,
}

impl MemoryDriver {
    fn new(device: MemoryDevice, depth: u32) -> Self {
        MemoryDriver { device, queued: VecDeque::new(), depth: depth.max(1) as usize }
    }
}

impl Driver for MemoryDriver {
    fn submit(&mut self, op: Op) -> Result<(), Op> {
        assert!(op.fits(), "an operation of {} bytes does not fit its buffer", op.len());
        if self.queued.len() == self.depth {
            return Err(op);
        }
        self.queued.push_back(op);
        Ok(())
    }

    fn wait(&mut self, done: &mut Vec<Completion>) -> io::Result<()> {
        self.poll(done)
    }

    fn poll(&mut self, done: &mut Vec<Completion>) -> io::Result<()> {
        done.extend(self.queued.drain(..).map(|op| run(&self.device, op)));
        Ok(())
    }

    fn in_flight(&self) -> usize {
        self.queued.len()
    }

    fn describe(&self) -> String {
        "memory".to_owned()
    }
}

/// Does `op` on `device` through its positional calls.
pub(super) fn run(device: &dyn Device, op: Op) -> Completion {
    op.perform(
        |bytes, at| device.read_at(bytes, at),
        |bytes, at| device.write_at(bytes, at).map(|()| bytes.len()),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::test_rig::*;

    #[test]
    fn a_huge_device_costs_what_was_written() {
        let device = MemoryDevice::new(16 << 40);
        device.write_at(&[5; 10], (15 << 40) - 5).unwrap();
        assert_eq!(device.stored_len(), 8192);
        let mut bytes = [0; 12];
        assert_eq!(device.read_at(&mut bytes, (15 << 40) - 6).unwrap(), 12);
        assert_eq!(bytes, [0, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 0]);
        let hole = device.extent_at(0).unwrap();
        assert_eq!(hole, Extent { range: 0..(15 << 40) - 4096, kind: ExtentKind::Hole });
        let data = device.extent_at(hole.range.end).unwrap();
        assert_eq!(data.range, (15 << 40) - 4096..(15 << 40) + 4096);
        assert_eq!(data.kind, ExtentKind::Data);
        let rest = device.extent_at(data.range.end).unwrap();
        assert_eq!(rest, Extent { range: data.range.end..16 << 40, kind: ExtentKind::Hole });
    }

    #[test]
    fn zero_and_resize_agree_with_a_plain_vector() {
        let before = pattern(40_000, 3);
        for range in [0..40_000, 0..1, 4095..4097, 100..200, 4096..8192, 5000..39_999, 7..7] {
            let device = MemoryDevice::from_bytes(&before);
            device.zero(range.start as u64..range.end as u64).unwrap();
            let mut expected = before.clone();
            expected[range].fill(0);
            assert!(device.bytes() == expected);
        }
        let device = MemoryDevice::from_bytes(&before);
        device.set_len(5000).unwrap();
        device.set_len(10_000).unwrap();
        assert!(device.bytes()[..5000] == before[..5000]);
        assert!(device.bytes()[5000..].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn the_log_says_what_was_done() {
        let device = MemoryDevice::new(8192).with_log();
        device.write_at(&[1; 3], 5).unwrap();
        device.zero(0..4096).unwrap();
        device.sync().unwrap();
        device.set_len(4096).unwrap();
        let expected = [
            LoggedOp::Write(5..8),
            LoggedOp::Zero(0..4096),
            LoggedOp::Sync,
            LoggedOp::SetLen(4096),
        ];
        assert_eq!(device.ops(), expected);
        assert_eq!(device.take_ops(), expected);
        assert!(device.ops().is_empty());
    }

    #[test]
    fn it_does_not_grow_by_being_written() {
        let device = MemoryDevice::new(10);
        assert_eq!(device.write_at(&[1; 11], 0).unwrap_err().kind(), io::ErrorKind::StorageFull);
        assert_eq!(device.bytes(), [0; 10]);
        let mut bytes = [7; 4];
        assert_eq!(device.read_at(&mut bytes, 8).unwrap(), 2);
        assert_eq!(device.read_at(&mut bytes, 80).unwrap(), 0);
    }

    #[test]
    fn a_growing_device_grows_like_a_file() {
        let device = MemoryDevice::new(0).growing();
        device.write_at(&[1; 3], 5000).unwrap();
        assert_eq!(device.len().unwrap(), 5003);
        assert_eq!(device.bytes()[4999..], [0, 1, 1, 1]);
        assert_eq!(device.deep_clone().write_at(&[1], 6000).ok(), Some(()));
    }

    #[test]
    fn its_driver_moves_bytes_both_ways() {
        let device = MemoryDevice::new(1 << 20 | 77);
        let bytes = pattern(1 << 20 | 77, 21);
        write_all(&device, IoEngine::Auto, &bytes);
        assert!(read_all(&device, IoEngine::Auto) == bytes);
    }
}
