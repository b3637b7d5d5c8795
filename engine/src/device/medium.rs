//! Asking the medium below a device, rather than what was read of it before.

use std::io;

use super::{Device, Op, OpKind, Queue};
use crate::io::buffer::BufferPool;
use crate::options::IoEngine;

/// Reads the block of `device` that holds `offset`, past the page cache, which would answer for a
/// device that is gone.
///
/// # Errors
/// The device's; `UnexpectedEof` if it ends before.
pub fn read_block(device: &dyn Device, offset: u64) -> io::Result<()> {
    let geometry = device.geometry();
    let len = u64::from(geometry.block_len);
    let offset = offset / len * len;
    // Where there is no direct way, this is all that can be done.
    device.forget(offset..offset.saturating_add(len))?;
    let pool = BufferPool::new(1, len as usize)?;
    let mut queue = Queue::new(device.driver(IoEngine::Blocking, &pool, 1)?, geometry, 1);
    let kind = OpKind::Read { buffer: pool.take(), len: len as usize };
    queue
        .submit(Op { token: 0, kind, offset })
        .map_err(|_| io::Error::other("an empty queue is full"))?;
    let mut done = Vec::new();
    while done.is_empty() {
        queue.wait(&mut done)?;
    }
    let count = done.into_iter().try_fold(0, |sum, read| read.result.map(|count| sum + count))?;
    match count {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        _ => Ok(()),
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
