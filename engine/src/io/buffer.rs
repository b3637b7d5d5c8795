//! Buffers for I/O: one mapping on huge pages, cut into slots that are lent out.
//!
//! The number of slots is the memory bound and the back-pressure of whoever uses them: who wants
//! a buffer waits until one comes back. A [`Buffer`] owns its slot alone, so the borrow checker
//! proves for slots what it proves for boxes; the slot goes back when the buffer is dropped.
//!
//! Why one mapping: `O_DIRECT` pins pages, and pinning 4 KiB pages costs 24 to 30 ms of CPU per
//! GB where huge pages cost 4 to 6 (measured on Linux 6.18).

use std::fmt;
use std::io;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender};
use memmap2::{Advice, MmapMut};
use nix::libc;

/// Buffer lengths are multiples of this, and buffers start at multiples of it in memory: the
/// page length, and the most that direct I/O asks for.
pub const BUFFER_ALIGN: usize = 4096;

/// Longest buffer: what one registered io_uring buffer may hold (`io_uring_register(2)`).
pub const BUFFER_LEN_MAX: usize = 1 << 30;

/// The length of a huge page on x86-64 and on arm64 with 4 KiB pages.
const HUGE_PAGE_LEN: usize = 2 << 20;

/// A fixed number of equal buffers. Cloning shares them.
#[derive(Clone)]
pub struct BufferPool(Arc<Region>);

struct Region {
    /// Start of slot 0, inside `_map`.
    base: NonNull<u8>,
    buffer_len: usize,
    count: u32,
    give: Sender<u32>,
    free: Receiver<u32>,
    /// Keeps the memory mapped; touched only through `base`.
    _map: MmapMut,
}

// SAFETY: `base` points into `_map`, which lives as long as the region and may be used from any
// thread. Nobody reaches memory through the region itself, only through a `Buffer`, and the free
// channel holds each slot number at most once, so that no two buffers have the same slot.
unsafe impl Send for Region {}
// SAFETY: as for Send; the shared fields are channels and constants.
unsafe impl Sync for Region {}

impl BufferPool {
    /// `count` buffers (at least 1) of `buffer_len` bytes each: a multiple of 4096,
    /// 4096..=2^30. All memory is allocated here and now.
    ///
    /// # Errors
    /// `InvalidInput` for sizes out of range; the system's error if it has no memory.
    pub fn new(count: usize, buffer_len: usize) -> io::Result<Self> {
        let count = checked_count(count, buffer_len)?;
        let len = count as usize * buffer_len;
        let mut map = MmapMut::map_anon(len + HUGE_PAGE_LEN)?;
        let skip = map.as_ptr().align_offset(HUGE_PAGE_LEN);
        advise(&map, skip, len);
        let base = NonNull::new(map[skip..].as_mut_ptr())
            .ok_or_else(|| io::Error::other("mapping at address zero"))?;
        let (give, free) = crossbeam_channel::bounded(count as usize);
        for slot in 0..count {
            // Cannot fail: the channel has room for every slot and both ends are here.
            let _ = give.try_send(slot);
        }
        Ok(BufferPool(Arc::new(Region { base, buffer_len, count, give, free, _map: map })))
    }

    /// Waits for a free buffer; it comes with length 0 and whatever bytes its last user left.
    /// Waits for ever if nobody gives one back: a thread that also holds operations in flight
    /// uses [`try_take`](Self::try_take) and waits for a completion instead.
    pub fn take(&self) -> Buffer {
        match self.0.free.recv() {
            Ok(slot) => self.lend(slot),
            // The sender lives in the region that `self` keeps alive.
            Err(_) => unreachable!("the pool owns the sending end of its own channel"),
        }
    }

    /// A free buffer, if there is one now.
    pub fn try_take(&self) -> Option<Buffer> {
        self.0.free.try_recv().ok().map(|slot| self.lend(slot))
    }

    /// Waits for a free buffer, at most for `patience`.
    pub fn take_timeout(&self, patience: Duration) -> Option<Buffer> {
        self.0.free.recv_timeout(patience).ok().map(|slot| self.lend(slot))
    }

    /// Bytes each buffer can hold.
    pub fn buffer_len(&self) -> usize {
        self.0.buffer_len
    }

    /// How many buffers there are, lent or not.
    pub fn count(&self) -> usize {
        self.0.count as usize
    }

    /// How many are free at this moment.
    pub fn available(&self) -> usize {
        self.0.free.len()
    }

    /// Whether `buffer` is one of this pool's.
    pub fn owns(&self, buffer: &Buffer) -> bool {
        Arc::ptr_eq(&self.0, &buffer.region)
    }

    /// The pool's memory as the fewest areas that io_uring registers, each a whole number of
    /// slots and at most 1 GiB.
    pub(super) fn areas(&self) -> Vec<libc::iovec> {
        let region = &self.0;
        let total = region.count as usize * region.buffer_len;
        let stride = self.area_len();
        (0..total)
            .step_by(stride)
            .map(|start| libc::iovec {
                iov_base: region.at(start).cast(),
                iov_len: stride.min(total - start),
            })
            .collect()
    }

    /// Which of [`areas`](Self::areas) holds `buffer`, if it is this pool's.
    pub(super) fn area_of(&self, buffer: &Buffer) -> Option<u16> {
        if !self.owns(buffer) {
            return None;
        }
        let start = buffer.slot as usize * self.0.buffer_len;
        u16::try_from(start / self.area_len()).ok()
    }

    fn area_len(&self) -> usize {
        BUFFER_LEN_MAX / self.0.buffer_len * self.0.buffer_len
    }

    fn lend(&self, slot: u32) -> Buffer {
        Buffer { region: Arc::clone(&self.0), slot, start: 0, len: 0 }
    }
}

impl fmt::Debug for BufferPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BufferPool")
            .field("count", &self.0.count)
            .field("buffer_len", &self.0.buffer_len)
            .field("available", &self.available())
            .finish()
    }
}

impl Region {
    /// The address `offset` bytes behind the start of slot 0.
    fn at(&self, offset: usize) -> *mut u8 {
        assert!(offset < self.count as usize * self.buffer_len);
        // SAFETY: the assertion above keeps the sum inside the mapping, which is that long
        // behind `base`.
        unsafe { self.base.as_ptr().add(offset) }
    }
}

fn checked_count(count: usize, buffer_len: usize) -> io::Result<u32> {
    let invalid = |why: &str| io::Error::new(io::ErrorKind::InvalidInput, why.to_owned());
    if buffer_len == 0 || buffer_len > BUFFER_LEN_MAX || !buffer_len.is_multiple_of(BUFFER_ALIGN) {
        return Err(invalid("a buffer's length is a multiple of 4096, up to 1 GiB"));
    }
    let fits = count.checked_mul(buffer_len).is_some_and(|len| len <= isize::MAX as usize / 2);
    match u32::try_from(count) {
        Ok(count) if count > 0 && fits => Ok(count),
        _ => Err(invalid("a pool has at least one buffer, and fewer than fit in memory")),
    }
}

/// Asks for huge pages and for all pages now. Both are wishes: a kernel without them still gives
/// memory, only slower.
fn advise(map: &MmapMut, start: usize, len: usize) {
    if len >= HUGE_PAGE_LEN && !cfg!(fuzzing) {
        // The last huge page may be cut by the pool's end; the mapping goes on behind it.
        let huge = len.next_multiple_of(HUGE_PAGE_LEN).min(map.len() - start);
        let _ = map.advise_range(Advice::HugePage, start, huge);
    }
    // A fuzzer makes thousands of pools a minute and touches little of each.
    if !cfg!(fuzzing) {
        let _ = map.advise_range(Advice::PopulateWrite, start, len);
    }
}

/// One slot of a pool, owned alone. Derefs to its first `len` bytes.
///
/// A buffer may be a *window* of its slot (crate-private): the queue narrows it to re-issue the
/// rest of a short transfer and widens it again before anybody else sees it.
pub struct Buffer {
    region: Arc<Region>,
    slot: u32,
    start: usize,
    len: usize,
}

impl Buffer {
    /// Bytes it can hold.
    pub fn capacity(&self) -> usize {
        self.region.buffer_len - self.start
    }

    /// Sets how many of its bytes count, 0..=[`capacity`](Self::capacity). Bytes that appear are
    /// what the slot's last user left there.
    ///
    /// # Panics
    /// If `len` exceeds the capacity.
    pub fn set_len(&mut self, len: usize) {
        assert!(len <= self.capacity(), "{len} bytes in a buffer of {}", self.capacity());
        self.len = len;
    }

    /// Its number in its pool, 0..count.
    pub fn slot(&self) -> u32 {
        self.slot
    }

    /// Replaces its contents by `bytes`.
    ///
    /// # Panics
    /// If they are longer than the capacity.
    pub fn fill_from(&mut self, bytes: &[u8]) {
        self.set_len(bytes.len());
        self.copy_from_slice(bytes);
    }

    /// Makes the buffer start `start` bytes into its slot; its length becomes 0.
    ///
    /// # Panics
    /// If `start` exceeds the slot.
    pub(crate) fn set_window(&mut self, start: usize) {
        assert!(start <= self.region.buffer_len);
        self.start = start;
        self.len = 0;
    }

    /// The address of its first byte, as a number.
    pub(crate) fn address(&self) -> usize {
        self.pointer() as usize
    }

    /// The address of its first byte. Valid for [`capacity`](Self::capacity) bytes for as long
    /// as this buffer is neither dropped nor borrowed.
    pub(super) fn pointer(&self) -> *mut u8 {
        let slot = self.region.at(self.slot as usize * self.region.buffer_len);
        slot.wrapping_add(self.start)
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `pointer()` is valid for `capacity()` bytes and `set_len` keeps `len` within
        // it. The mapping is zero-filled by the kernel, so every byte is initialised. This buffer
        // alone has the slot, and an operation in flight owns the buffer, so that the kernel
        // writes nothing while anybody can borrow it.
        unsafe { std::slice::from_raw_parts(self.pointer(), self.len) }
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`; `&mut self` makes the borrow exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.pointer(), self.len) }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // Cannot fail: the channel has room for every slot and its other end is in the region.
        let _ = self.region.give.try_send(self.slot);
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffer(slot {}, {} of {} bytes)", self.slot, self.len, self.capacity())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pool_exhaustion_and_return() {
        let pool = BufferPool::new(2, 8192).unwrap();
        let first = pool.try_take().unwrap();
        let second = pool.try_take().unwrap();
        assert!(pool.try_take().is_none());
        assert_ne!(first.slot(), second.slot());
        let slot = first.slot();
        drop(first);
        assert_eq!(pool.try_take().unwrap().slot(), slot);
    }

    #[test]
    fn take_waits_for_a_return_from_another_thread() {
        let pool = BufferPool::new(1, 4096).unwrap();
        let held = pool.take();
        let waiter = std::thread::spawn({
            let pool = pool.clone();
            move || pool.take().slot()
        });
        std::thread::sleep(Duration::from_millis(20));
        drop(held);
        assert_eq!(waiter.join().unwrap(), 0);
        assert_eq!(pool.available(), 1);
    }

    #[test]
    fn buffers_are_aligned_apart_and_zero_at_first() {
        let pool = BufferPool::new(3, 12288).unwrap();
        let mut buffers: Vec<_> = (0..3).map(|_| pool.take()).collect();
        for (index, buffer) in buffers.iter_mut().enumerate() {
            buffer.set_len(12288);
            assert!(buffer.iter().all(|byte| *byte == 0));
            assert!(buffer.address().is_multiple_of(BUFFER_ALIGN));
            buffer.fill(index as u8 + 1);
        }
        for (index, buffer) in buffers.iter().enumerate() {
            assert!(buffer.iter().all(|byte| *byte == index as u8 + 1));
        }
    }

    #[test]
    fn a_window_narrows_and_widens() {
        let pool = BufferPool::new(1, 8192).unwrap();
        let mut buffer = pool.take();
        buffer.set_len(8192);
        buffer[4096] = 7;
        buffer.set_window(4096);
        assert_eq!((buffer.capacity(), buffer.len()), (4096, 0));
        buffer.set_len(1);
        assert_eq!(buffer[0], 7);
        buffer.set_window(0);
        buffer.set_len(8192);
        assert_eq!(buffer[4096], 7);
    }

    #[test]
    #[should_panic(expected = "in a buffer of")]
    fn length_beyond_capacity_is_refused() {
        BufferPool::new(1, 4096).unwrap().take().set_len(4097);
    }

    #[test]
    fn sizes_out_of_range_are_errors() {
        for (count, len) in [(0, 4096), (1, 0), (1, 4095), (1, BUFFER_LEN_MAX + 4096)] {
            assert!(BufferPool::new(count, len).is_err(), "{count} x {len}");
        }
        assert!(BufferPool::new(usize::MAX, 4096).is_err());
    }

    #[test]
    fn areas_cover_the_pool() {
        let pool = BufferPool::new(5, 4096).unwrap();
        let areas = pool.areas();
        assert_eq!(areas.iter().map(|area| area.iov_len).sum::<usize>(), 5 * 4096);
        assert_eq!(pool.area_of(&pool.take()), Some(0));
        let other = BufferPool::new(1, 4096).unwrap();
        assert_eq!(pool.area_of(&other.take()), None);
    }
}
