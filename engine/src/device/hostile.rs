//! The world's bad days, in memory and from a seed.
//!
//! A [`HostileDevice`] keeps what was *written* and what is *durable* apart and does to the
//! engine what devices do. The contract it holds the engine to:
//!
//! | fault | the engine must |
//! |---|---|
//! | [`Fault::Fail`]: the nth operation fails | stop with that error, or record the range; never hang, never panic |
//! | [`FaultPlan::short_one_in`], [`FaultPlan::transient_one_in`] | not notice: the queue completes the rest |
//! | [`FaultPlan::reorder`]: late, out of order | not notice |
//! | [`Fault::FlipOnRead`]: a byte reads wrong | notice by checksum, name the place, deliver no wrong byte |
//! | [`Fault::Misdirect`]: a write lands elsewhere | notice on the next verification, as above |
//! | [`FaultPlan::space`]: `ENOSPC` after n bytes | stop with that error; the last commit stays readable |
//! | [`Fault::Shrink`]: the device gets shorter | stop with an error that says so |
//! | [`Fault::Vanish`]: everything fails from the nth operation on | stop with an error; after [`HostileDevice::power_loss`] the last commit is whole |
//! | [`FaultPlan::cached`]: what was read once is there though the device is gone | not take the cache for the device |
//! | a sync fails: what it should have written shows, and is lost | look behind the cache before it believes what an earlier run left |
//! | [`HostileDevice::power_loss`]: unsynced sectors survive or not, each by itself | find every commit whose sync returned, and nothing half |
//!
//! It assumes of media what the engine assumes: a 512-byte sector is written whole or not at all,
//! and what a sync covered stays.
//!
//! The same seed and the same operations give the same faults; `Debug` prints the seed.

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::memory::MemoryDevice;
use super::{Device, Extent, Extents, Geometry, Resize, Zero, ZeroMethod};
use crate::io::buffer::BufferPool;
use crate::io::op::{Completion, Driver, Op, OpKind};
use crate::options::IoEngine;

/// What is written whole or not at all.
const SECTOR_LEN: u64 = 512;

/// What the page cache keeps or forgets as a whole.
const CACHE_BLOCK_LEN: u64 = 4096;

/// Which operations a fault counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// Reads.
    Reads,
    /// Writes and zeroes.
    Writes,
    /// Syncs.
    Syncs,
    /// All of them.
    Any,
}

/// One thing that goes wrong. Operations count from 0, each kind by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The nth operation of a kind fails with an error number, without effect.
    Fail {
        /// Which operations count.
        which: Which,
        /// The nth of them.
        nth: u64,
        /// `errno(3)`.
        errno: i32,
    },
    /// Reads of this range fail, always: a bad sector.
    BadRange {
        /// The bytes.
        range: Range<u64>,
        /// `errno(3)`.
        errno: i32,
    },
    /// The byte at `offset` reads with the bits of `mask` flipped, always.
    FlipOnRead {
        /// Where.
        offset: u64,
        /// Which bits.
        mask: u8,
    },
    /// The nth write lands at `offset` instead, and reports success.
    Misdirect {
        /// The nth write.
        nth: u64,
        /// Where it lands.
        offset: u64,
    },
    /// Before the nth operation of any kind the device shrinks to `len` bytes.
    Shrink {
        /// The nth operation.
        nth: u64,
        /// The new length.
        len: u64,
    },
    /// From the nth operation of any kind on everything fails with `ENODEV`.
    Vanish {
        /// The nth operation.
        nth: u64,
    },
}

/// What goes wrong, and the seed of what is left to chance.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FaultPlan {
    /// Seeds every choice.
    pub seed: u64,
    /// What goes wrong for certain.
    pub faults: Vec<Fault>,
    /// One in so many transfers of a driver is short; 0 is none.
    pub short_one_in: u32,
    /// One in so many transfers of a driver fails with `EINTR`, `EAGAIN` or `ECANCELED`; 0 is none.
    pub transient_one_in: u32,
    /// Whether a driver completes late and out of order.
    pub reorder: bool,
    /// Bytes that can be written, in all, before `ENOSPC`.
    pub space: Option<u64>,
    /// Whether it lies below a page cache: what `read_at` brought it brings again without the
    /// device, until it is forgotten. A driver goes past the cache.
    pub cached: bool,
}

/// A [`MemoryDevice`] on a bad day. Cloning shares it.
#[derive(Clone)]
pub struct HostileDevice {
    written: MemoryDevice,
    plan: Arc<FaultPlan>,
    state: Arc<Mutex<State>>,
}

struct State {
    durable: MemoryDevice,
    unsynced: Vec<Change>,
    rng: StdRng,
    reads: u64,
    writes: u64,
    syncs: u64,
    space: Option<u64>,
    /// Blocks that the page cache holds, by their number.
    cache: BTreeSet<u64>,
}

/// Something done since the last sync.
enum Change {
    Write { offset: u64, bytes: Vec<u8> },
    Zero(Range<u64>),
    SetLen(u64),
}

impl HostileDevice {
    /// `inner` under `plan`. What `inner` holds now is durable.
    pub fn new(inner: MemoryDevice, plan: FaultPlan) -> Self {
        let state = State {
            durable: inner.deep_clone(),
            unsynced: Vec::new(),
            rng: StdRng::seed_from_u64(plan.seed),
            reads: 0,
            writes: 0,
            syncs: 0,
            space: plan.space,
            cache: BTreeSet::new(),
        };
        HostileDevice { written: inner, plan: Arc::new(plan), state: Arc::new(Mutex::new(state)) }
    }

    /// What a reader sees now, without faults.
    pub fn written(&self) -> &MemoryDevice {
        &self.written
    }

    /// What is certain to survive a loss of power.
    pub fn durable(&self) -> MemoryDevice {
        self.lock().durable.deep_clone()
    }

    /// What is there after a loss of power: all that was synced, and of what was not each sector
    /// by the toss of a coin (a torn write). Each call tosses anew.
    pub fn power_loss(&self) -> MemoryDevice {
        self.power_loss_keeping(0.5)
    }

    /// As [`power_loss`](Self::power_loss), where each unsynced sector survives with probability
    /// `share`: 0.0 loses all, 1.0 loses none.
    pub fn power_loss_keeping(&self, share: f64) -> MemoryDevice {
        let state = &mut *self.lock();
        let image = state.durable.deep_clone();
        for change in &state.unsynced {
            survive(&image, change, share, &mut state.rng);
        }
        image
    }

    /// Operations so far: reads, writes (with zeroes), syncs.
    pub fn counts(&self) -> (u64, u64, u64) {
        let state = self.lock();
        (state.reads, state.writes, state.syncs)
    }

    /// Operations so far.
    pub fn op_count(&self) -> u64 {
        let (reads, writes, syncs) = self.counts();
        reads + writes + syncs
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // What a panicking test left behind is still consistent enough to look at.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts an operation and fails it if the plan says so. Returns its number in its kind.
    fn begin(&self, which: Which) -> io::Result<u64> {
        let (nth, nth_any) = self.lock().count(which);
        for fault in &self.plan.faults {
            match fault {
                Fault::Vanish { nth } if nth_any >= *nth => return Err(Errno::ENODEV.into()),
                Fault::Shrink { nth, len } if nth_any == *nth => {
                    let shorter = self.written.len()?.min(*len);
                    self.written.set_len(shorter)?;
                    self.lock().unsynced.push(Change::SetLen(shorter));
                }
                Fault::Fail { which: Which::Any, nth, errno } if nth_any == *nth => {
                    return Err(io::Error::from_raw_os_error(*errno));
                }
                Fault::Fail { which: counted, nth: at, errno }
                    if *counted == which && nth == *at =>
                {
                    return Err(io::Error::from_raw_os_error(*errno));
                }
                _ => {}
            }
        }
        Ok(nth)
    }

    /// Reads from the device itself.
    fn read_medium(&self, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
        self.begin(Which::Reads)?;
        self.check_readable(&(offset..offset + bytes.len() as u64))?;
        self.read_written(bytes, offset)
    }

    /// Reads what there is, unless bits flip.
    fn read_written(&self, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
        let count = self.written.read_at(bytes, offset)?;
        self.flip(&mut bytes[..count], offset);
        Ok(count)
    }

    fn check_readable(&self, range: &Range<u64>) -> io::Result<()> {
        let bad = self.plan.faults.iter().find_map(|fault| match fault {
            Fault::BadRange { range: bad, errno }
                if bad.start < range.end && range.start < bad.end =>
            {
                Some(*errno)
            }
            _ => None,
        });
        bad.map_or(Ok(()), |errno| Err(io::Error::from_raw_os_error(errno)))
    }

    fn flip(&self, bytes: &mut [u8], offset: u64) {
        for fault in &self.plan.faults {
            if let Fault::FlipOnRead { offset: at, mask } = fault
                && let Some(index) = at.checked_sub(offset)
                && let Some(byte) = bytes.get_mut(index as usize)
            {
                *byte ^= mask;
            }
        }
    }

    /// Where the nth write lands.
    fn landing(&self, nth: u64, offset: u64) -> u64 {
        let misdirected = self.plan.faults.iter().find_map(|fault| match fault {
            Fault::Misdirect { nth: at, offset } if *at == nth => Some(*offset),
            _ => None,
        });
        misdirected.unwrap_or(offset)
    }
}

impl State {
    /// The number of this operation in its kind, and among all.
    fn count(&mut self, which: Which) -> (u64, u64) {
        let any = self.reads + self.writes + self.syncs;
        let counter = match which {
            Which::Reads => &mut self.reads,
            Which::Syncs => &mut self.syncs,
            Which::Writes | Which::Any => &mut self.writes,
        };
        *counter += 1;
        (*counter - 1, any)
    }

    fn spend(&mut self, len: u64) -> io::Result<()> {
        match &mut self.space {
            Some(left) if *left < len => Err(Errno::ENOSPC.into()),
            Some(left) => {
                *left -= len;
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn one_in(&mut self, count: u32) -> bool {
        count != 0 && self.rng.random_range(0..count) == 0
    }
}

impl fmt::Debug for HostileDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (reads, writes, syncs) = self.counts();
        write!(
            f,
            "HostileDevice(seed {:#x}, {reads} reads, {writes} writes, {syncs} syncs, {:?})",
            self.plan.seed, self.plan
        )
    }
}

impl Device for HostileDevice {
    fn label(&self) -> &str {
        self.written.label()
    }

    fn len(&self) -> io::Result<u64> {
        self.written.len()
    }

    fn geometry(&self) -> Geometry {
        self.written.geometry()
    }

    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
        let blocks = blocks(&(offset..offset + bytes.len() as u64));
        let is_cached = |block| self.lock().cache.contains(&block);
        if self.plan.cached && blocks.clone().all(is_cached) {
            return self.read_written(bytes, offset);
        }
        let count = self.read_medium(bytes, offset)?;
        self.lock().cache.extend(blocks);
        Ok(count)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let nth = self.begin(Which::Writes)?;
        let offset = self.landing(nth, offset);
        self.lock().spend(bytes.len() as u64)?;
        self.written.write_at(bytes, offset)?;
        let change = Change::Write { offset, bytes: bytes.to_vec() };
        self.lock().unsynced.push(change);
        Ok(())
    }

    /// A sync that fails loses what it should have made durable: as on Linux, the cache goes on
    /// showing it, and no later sync writes it.
    fn sync(&self) -> io::Result<()> {
        let begun = self.begin(Which::Syncs);
        let mut state = self.lock();
        let unsynced = std::mem::take(&mut state.unsynced);
        begun?;
        unsynced.iter().for_each(|change| apply(&state.durable, change));
        Ok(())
    }

    /// Shows what is durable, and what no sync was asked for yet.
    fn forget(&self, range: Range<u64>) -> io::Result<()> {
        let mut state = self.lock();
        state.cache.retain(|block| !blocks(&range).contains(block));
        let end = range.end.min(self.written.len()?);
        let mut bytes = vec![0; end.saturating_sub(range.start) as usize];
        state.durable.read_at(&mut bytes, range.start)?;
        self.written.write_at(&bytes, range.start)?;
        state.unsynced.iter().for_each(|change| apply(&self.written, change));
        Ok(())
    }

    fn driver(
        &self,
        _engine: IoEngine,
        _pool: &BufferPool,
        depth: u32,
    ) -> io::Result<Box<dyn Driver>> {
        let depth = depth.max(1) as usize;
        Ok(Box::new(HostileDriver { device: self.clone(), queued: Vec::new(), depth }))
    }
}

impl Extents for HostileDevice {
    fn extent_at(&self, offset: u64) -> io::Result<Extent> {
        self.written.extent_at(offset)
    }
}

impl Zero for HostileDevice {
    fn zero(&self, range: Range<u64>) -> io::Result<ZeroMethod> {
        self.begin(Which::Writes)?;
        let method = self.written.zero(range.clone())?;
        self.lock().unsynced.push(Change::Zero(range));
        Ok(method)
    }
}

impl Resize for HostileDevice {
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.begin(Which::Writes)?;
        self.written.set_len(len)?;
        self.lock().unsynced.push(Change::SetLen(len));
        Ok(())
    }
}

/// Does `change` to `image`. Behind an end that did not survive nothing can be done, and what
/// was there is lost with it.
fn apply(image: &MemoryDevice, change: &Change) {
    let len = image.len().unwrap_or(0);
    let _ = match change {
        Change::Write { offset, bytes } => image.write_at(bytes, *offset),
        Change::Zero(range) => image.zero(range.start.min(len)..range.end.min(len)).map(|_| ()),
        Change::SetLen(len) => image.set_len(*len),
    };
}

/// Does to `image` what is left of `change` when the power fails.
fn survive(image: &MemoryDevice, change: &Change, share: f64, rng: &mut StdRng) {
    let Change::Write { offset, bytes } = change else {
        // As a whole: a zeroed range may be the size of the device.
        if rng.random_bool(share) {
            apply(image, change);
        }
        return;
    };
    for sector in sectors(*offset..*offset + bytes.len() as u64) {
        if rng.random_bool(share) {
            let part = (sector.start - offset) as usize..(sector.end - offset) as usize;
            let bytes = bytes[part].to_vec();
            apply(image, &Change::Write { offset: sector.start, bytes });
        }
    }
}

/// The numbers of the blocks that hold the bytes of `range`.
fn blocks(range: &Range<u64>) -> Range<u64> {
    range.start / CACHE_BLOCK_LEN..range.end.div_ceil(CACHE_BLOCK_LEN)
}

/// `range`, cut at sector boundaries.
fn sectors(range: Range<u64>) -> impl Iterator<Item = Range<u64>> {
    let first = range.start / SECTOR_LEN;
    (first..range.end.div_ceil(SECTOR_LEN)).map(move |sector| {
        let start = (sector * SECTOR_LEN).max(range.start);
        start..((sector + 1) * SECTOR_LEN).min(range.end)
    })
}

/// Completes in part, late, out of order or with errors that pass, as the plan says.
struct HostileDriver {
    device: HostileDevice,
    queued: Vec<Op>,
    depth: usize,
}

impl HostileDriver {
    /// Takes the next operation to complete out of the queue.
    fn next(&mut self) -> Op {
        let index = match self.device.plan.reorder {
            true => self.device.lock().rng.random_range(0..self.queued.len()),
            false => 0,
        };
        self.queued.remove(index)
    }

    fn run(&self, mut op: Op) -> Completion {
        let plan = &self.device.plan;
        let (transient, short) = {
            let mut state = self.device.lock();
            let transient = state.one_in(plan.transient_one_in).then(|| passing(&mut state.rng));
            let short = state.one_in(plan.short_one_in);
            (transient, short.then(|| shortened(op.len(), &mut state.rng)))
        };
        if let Some(errno) = transient {
            return op.complete(Err(errno.into()));
        }
        if let (Some(shorter), OpKind::Read { len, .. } | OpKind::Write { len, .. }) =
            (short, &mut op.kind)
        {
            *len = shorter;
        }
        op.perform(
            |bytes, at| self.device.read_medium(bytes, at),
            |bytes, at| self.device.write_at(bytes, at).map(|()| bytes.len()),
        )
    }
}

impl Driver for HostileDriver {
    fn submit(&mut self, op: Op) -> Result<(), Op> {
        assert!(op.fits(), "an operation of {} bytes does not fit its buffer", op.len());
        if self.queued.len() == self.depth {
            return Err(op);
        }
        self.queued.push(op);
        Ok(())
    }

    fn wait(&mut self, done: &mut Vec<Completion>) -> io::Result<()> {
        if self.queued.is_empty() {
            return Ok(());
        }
        let count = match self.device.plan.reorder {
            true => self.device.lock().rng.random_range(1..=self.queued.len()),
            false => self.queued.len(),
        };
        for _ in 0..count {
            let op = self.next();
            done.push(self.run(op));
        }
        Ok(())
    }

    fn poll(&mut self, done: &mut Vec<Completion>) -> io::Result<()> {
        // Late means that nothing is ready before somebody waits.
        match self.device.plan.reorder {
            true => Ok(()),
            false => self.wait(done),
        }
    }

    fn in_flight(&self) -> usize {
        self.queued.len()
    }

    fn describe(&self) -> String {
        format!("hostile (seed {:#x})", self.device.plan.seed)
    }
}

fn passing(rng: &mut StdRng) -> Errno {
    [Errno::EINTR, Errno::EAGAIN, Errno::ECANCELED][rng.random_range(0..3)]
}

/// At least one byte, at most `len`; whole sectors three times in four.
fn shortened(len: usize, rng: &mut StdRng) -> usize {
    if len < 2 {
        return len;
    }
    let cut = rng.random_range(1..len);
    let whole = cut / SECTOR_LEN as usize * SECTOR_LEN as usize;
    if whole > 0 && rng.random_range(0..4) != 0 { whole } else { cut }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::test_rig::*;

    const LEN: usize = 1 << 20;

    fn hostile(bytes: &[u8], plan: FaultPlan) -> HostileDevice {
        HostileDevice::new(MemoryDevice::from_bytes(bytes), plan)
    }

    fn plan(faults: Vec<Fault>) -> FaultPlan {
        FaultPlan { faults, ..FaultPlan::default() }
    }

    #[test]
    fn short_transient_and_reordered_transfers_go_unnoticed() {
        for seed in 0..20 {
            let plan = FaultPlan {
                seed,
                short_one_in: 2,
                transient_one_in: 5,
                reorder: true,
                ..FaultPlan::default()
            };
            let device = hostile(&vec![0; LEN], plan);
            let bytes = pattern(LEN, seed);
            write_all(&device, IoEngine::Auto, &bytes);
            assert!(device.written().bytes() == bytes, "{device:?}");
            assert!(read_all(&device, IoEngine::Auto) == bytes, "{device:?}");
        }
    }

    #[test]
    fn the_nth_operation_fails() {
        let fail = |which, nth| Fault::Fail { which, nth, errno: Errno::EIO as i32 };
        let device = hostile(&[0; 4096], plan(vec![fail(Which::Writes, 1), fail(Which::Any, 3)]));
        assert!(device.write_at(&[1], 0).is_ok());
        assert_eq!(device.write_at(&[1], 1).unwrap_err().raw_os_error(), Some(5));
        assert!(device.write_at(&[1], 2).is_ok());
        assert_eq!(device.read_at(&mut [0], 0).unwrap_err().raw_os_error(), Some(5));
        assert_eq!(device.written().bytes()[..3], [1, 0, 1]);
        assert_eq!(device.counts(), (1, 3, 0));
    }

    #[test]
    fn bad_ranges_flips_and_misdirected_writes() {
        let device = hostile(
            &vec![0; 8192],
            plan(vec![
                Fault::BadRange { range: 512..1024, errno: Errno::EIO as i32 },
                Fault::FlipOnRead { offset: 2000, mask: 0x10 },
                Fault::Misdirect { nth: 0, offset: 4096 },
            ]),
        );
        assert!(device.read_at(&mut [0; 600], 0).is_err());
        assert!(device.read_at(&mut [0; 512], 0).is_ok());
        let mut bytes = [0; 100];
        device.read_at(&mut bytes, 1950).unwrap();
        assert_eq!(bytes.iter().position(|byte| *byte == 0x10), Some(50));
        device.write_at(&[7], 3000).unwrap();
        assert_eq!((device.written().bytes()[3000], device.written().bytes()[4096]), (0, 7));
    }

    #[test]
    fn it_fills_up_shrinks_and_vanishes() {
        let full = hostile(&[0; 4096], FaultPlan { space: Some(1000), ..FaultPlan::default() });
        full.write_at(&[1; 900], 0).unwrap();
        assert_eq!(full.write_at(&[1; 200], 900).unwrap_err().kind(), io::ErrorKind::StorageFull);

        let shrinking = hostile(&[1; 4096], plan(vec![Fault::Shrink { nth: 1, len: 100 }]));
        assert_eq!(shrinking.read_at(&mut [0; 200], 0).unwrap(), 200);
        assert_eq!(shrinking.read_at(&mut [0; 200], 0).unwrap(), 100);

        let vanishing = hostile(&[1; 4096], plan(vec![Fault::Vanish { nth: 1 }]));
        vanishing.write_at(&[2], 0).unwrap();
        assert!(vanishing.sync().is_err());
        assert!(vanishing.read_at(&mut [0], 0).is_err());
        assert_eq!(vanishing.durable().bytes(), [1; 4096]);
    }

    #[test]
    fn power_loss_keeps_what_was_synced_and_tears_the_rest_by_sector() {
        let device = hostile(&vec![1; LEN], FaultPlan { seed: 5, ..FaultPlan::default() });
        device.write_at(&[2; 4096], 0).unwrap();
        device.sync().unwrap();
        device.write_at(&vec![3; LEN - 4096], 4096).unwrap();
        let image = device.power_loss().bytes();
        assert!(image[..4096].iter().all(|byte| *byte == 2));
        let sectors: Vec<_> = image[4096..].chunks(512).collect();
        assert!(sectors.iter().all(|sector| sector.iter().all(|byte| *byte == sector[0])));
        let kept = sectors.iter().filter(|sector| sector[0] == 3).count();
        assert!((sectors.len() / 4..sectors.len() * 3 / 4).contains(&kept), "{kept}");
        assert_eq!(device.power_loss_keeping(1.0).bytes(), device.written().bytes());
        assert_eq!(device.power_loss_keeping(0.0).bytes(), device.durable().bytes());
    }

    #[test]
    fn an_unsynced_length_may_be_lost_with_what_lies_behind_it() {
        let device = hostile(&[1; 512], FaultPlan::default());
        device.set_len(1024).unwrap();
        device.write_at(&[2; 512], 512).unwrap();
        let lengths: Vec<_> = (0..50).map(|_| device.power_loss().len().unwrap()).collect();
        assert!(lengths.contains(&512) && lengths.contains(&1024));
        device.sync().unwrap();
        assert_eq!(device.power_loss().len().unwrap(), 1024);
    }

    #[test]
    fn a_growing_file_may_end_anywhere_after_a_power_loss() {
        let empty = MemoryDevice::new(0).growing();
        let device = HostileDevice::new(empty, FaultPlan { seed: 3, ..FaultPlan::default() });
        device.write_at(&[1; 1000], 0).unwrap();
        device.sync().unwrap();
        device.write_at(&[2; 4096], 1000).unwrap();
        for _ in 0..50 {
            let image = device.power_loss().bytes();
            assert!((1000..=5096).contains(&image.len()));
            assert!(image[..1000].iter().all(|byte| *byte == 1));
            assert!(image[1000..].iter().all(|byte| [0, 2].contains(byte)));
        }
    }

    #[test]
    fn a_seed_replays() {
        let run = |seed| {
            let plan = FaultPlan { seed, short_one_in: 3, reorder: true, ..FaultPlan::default() };
            let device = hostile(&vec![0; LEN], plan);
            write_all(&device, IoEngine::Auto, &pattern(LEN, 1));
            (device.counts(), device.power_loss().bytes())
        };
        assert!(run(7) == run(7));
        assert!(run(7) != run(8));
        assert!(
            format!("{:?}", hostile(&[], FaultPlan { seed: 0xabc, ..plan(vec![]) }))
                .contains("0xabc")
        );
    }
}
