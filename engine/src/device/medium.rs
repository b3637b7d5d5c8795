//! Asking the medium below a device, rather than what was read of it before.

use std::collections::VecDeque;
use std::io;

use super::{Device, Op, OpKind, Queue};
use crate::io::buffer::{Buffer, BufferPool};
use crate::options::IoEngine;

/// Least bytes that are read at once.
const WINDOW_LEN: usize = 32 << 10;
/// How many stretches are remembered: two walks through a tree, a few levels each.
const WINDOWS: usize = 16;

/// Reads the block of `device` that holds `offset`, past the page cache, which would answer for a
/// device that is gone.
///
/// # Errors
/// The device's; `UnexpectedEof` if it ends before.
pub fn read_block(device: &dyn Device, offset: u64) -> io::Result<()> {
    let len = device.geometry().block_len as usize;
    // Where there is no direct way, this is all that can be done.
    let start = offset / len as u64 * len as u64;
    device.forget(start..start.saturating_add(len as u64))?;
    MediumReader::with_windows(device, len, 1)?.read_at(offset, &mut [0])
}

/// Reads little pieces of a device past the page cache, a window at a time. What was read once may
/// be answered from memory: nobody may change it meanwhile.
pub struct MediumReader {
    queue: Queue,
    pool: BufferPool,
    window_len: usize,
    /// The oldest first.
    windows: VecDeque<(u64, Buffer)>,
}

impl MediumReader {
    /// Of `device`.
    ///
    /// # Errors
    /// The system's, if it has no memory.
    pub fn new(device: &dyn Device) -> io::Result<Self> {
        let window_len = WINDOW_LEN.max(device.geometry().block_len as usize);
        Self::with_windows(device, window_len, WINDOWS)
    }

    fn with_windows(device: &dyn Device, window_len: usize, count: usize) -> io::Result<Self> {
        let pool = BufferPool::new(count, window_len)?;
        let driver = device.driver(IoEngine::Blocking, &pool, 1)?;
        let queue = Queue::new(driver, device.geometry(), 1);
        Ok(MediumReader { queue, pool, window_len, windows: VecDeque::new() })
    }

    /// Fills `bytes` from `offset`.
    ///
    /// # Errors
    /// The device's; `UnexpectedEof` if it ends before.
    pub fn read_at(&mut self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        let mut done = 0;
        while done < bytes.len() {
            // No file reaches where the kernel cannot count: some file systems call that invalid.
            let at = offset.checked_add(done as u64).filter(|at| i64::try_from(*at).is_ok());
            let at = at.ok_or(io::ErrorKind::UnexpectedEof)?;
            let start = at / self.window_len as u64 * self.window_len as u64;
            let window = self.window(start)?;
            let from = window.get((at - start) as usize..).unwrap_or_default();
            let count = from.len().min(bytes.len() - done);
            if count == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            bytes[done..done + count].copy_from_slice(&from[..count]);
            done += count;
        }
        Ok(())
    }

    /// The window that starts at `start`; short at the device's end.
    fn window(&mut self, start: u64) -> io::Result<&[u8]> {
        let known = self.windows.iter().position(|(other, _)| *other == start);
        let index = match known {
            Some(index) => index,
            None => {
                let window = self.read_window(start)?;
                self.windows.push_back((start, window));
                self.windows.len() - 1
            }
        };
        Ok(&self.windows[index].1)
    }

    fn read_window(&mut self, start: u64) -> io::Result<Buffer> {
        if self.windows.len() == self.pool.count() {
            self.windows.pop_front();
        }
        let kind = OpKind::Read { buffer: self.pool.take(), len: self.window_len };
        self.queue
            .submit(Op { token: 0, kind, offset: start })
            .map_err(|_| io::Error::other("an empty queue is full"))?;
        let mut done = Vec::new();
        while done.is_empty() {
            self.queue.wait(&mut done)?;
        }
        let read = done.pop().ok_or(io::ErrorKind::UnexpectedEof)?;
        read.result.map(|_| read.buffer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::file::{Access, FileDevice};
    use crate::device::hostile::{Fault, FaultPlan, HostileDevice};
    use crate::device::memory::MemoryDevice;
    use crate::device::test_rig::{file_with, folders, pattern};

    #[test]
    fn a_cache_does_not_answer_for_a_device_that_is_gone() {
        let faults = vec![Fault::Vanish { nth: 2 }];
        let plan = FaultPlan { faults, cached: true, ..FaultPlan::default() };
        let device = HostileDevice::new(MemoryDevice::from_bytes(&pattern(10_000, 1)), plan);
        let mut bytes = [0; 100];
        device.read_at(&mut bytes, 5000).unwrap();
        read_block(&device, 5000).unwrap();
        assert!(read_block(&device, 5000).is_err());
        assert!(device.read_at(&mut bytes, 5000).is_err(), "it was not forgotten");
    }

    #[test]
    fn pieces_come_from_windows_and_end_with_the_device() {
        for folder in folders() {
            let bytes = pattern(40 * WINDOW_LEN + 5000, 3);
            let path = file_with(folder.path(), "file", &bytes);
            let device = FileDevice::open(&path, Access::Read).unwrap();
            let mut reader = MediumReader::new(&device).unwrap();
            for number in 0..200 {
                let at = number * 7919 * 31 % (bytes.len() - 9000);
                let mut piece = [0; 9000];
                reader.read_at(at as u64, &mut piece).unwrap();
                assert_eq!(piece, bytes[at..at + 9000]);
            }
            let mut last = [0; 2];
            let end = bytes.len() as u64;
            reader.read_at(end - 2, &mut last).unwrap();
            assert_eq!(last, bytes[bytes.len() - 2..]);
            for behind in [end - 1, end, u64::MAX] {
                let error = reader.read_at(behind, &mut last).unwrap_err();
                assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "{behind}");
            }
        }
    }

    #[test]
    fn a_block_at_the_end_may_be_short_and_behind_it_is_none() {
        for folder in folders() {
            let path = file_with(folder.path(), "file", &pattern(10_000, 2));
            let device = FileDevice::open(&path, Access::Read).unwrap();
            for offset in [0, 4095, 8192, 9999] {
                read_block(&device, offset).unwrap();
            }
            let behind = read_block(&device, 1 << 20).unwrap_err();
            assert_eq!(behind.kind(), io::ErrorKind::UnexpectedEof);
        }
    }
}
