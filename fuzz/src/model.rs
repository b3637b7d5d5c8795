//! Scripts of writes, backups, interruptions, restores and diffs against plain bytes.

use arbitrary::{Result, Unstructured};
use voltar_engine::device::Device;
use voltar_engine::diff::diff_archive;
use voltar_engine::error::ErrorKind;
use voltar_engine::inspect::list_archive;
use voltar_engine::options::{Compression, Delta, OnDamage, Selector};
use voltar_format::map::Shape;
use voltar_format::walk::common_chunks;

use crate::checks::{back_up, context, home, open, request, restore, verify};
use crate::whole::content;

const SIZE_MAX: usize = 512 << 10;
const SNAPSHOTS_MAX: usize = 6;
const STEPS: u64 = 100_000;

/// Runs a script.
pub fn run(data: &[u8]) {
    let mut u = Unstructured::new(data);
    let mut model = Model::new(&mut u);
    for _ in 0..24 {
        if u.is_empty() || model.snapshots.len() >= SNAPSHOTS_MAX || model.step(&mut u).is_err() {
            break;
        }
    }
    model.finish();
}

struct Model {
    home: voltar_engine::device::memory::MemoryDevice,
    chunk_len: u32,
    volume: Vec<u8>,
    snapshots: Vec<Vec<u8>>,
}

impl Model {
    fn new(u: &mut Unstructured<'_>) -> Model {
        let chunk_len = u.choose(&[4096, 8192, 65536]).copied().unwrap_or(4096);
        let size = u.int_in_range(1..=SIZE_MAX / 4).unwrap_or(1);
        let seed = u.arbitrary().unwrap_or(0);
        Model { home: home(&[]), chunk_len, volume: content(size, seed), snapshots: Vec::new() }
    }

    fn step(&mut self, u: &mut Unstructured<'_>) -> Result<()> {
        let len = self.volume.len();
        match u.int_in_range(0..=9u8)? {
            0..=2 => {
                let at = u.int_in_range(0..=len - 1)?;
                let count = u.int_in_range(1..=(len - at).min(70_000))?;
                let bytes = content(count, u.arbitrary()?);
                self.volume[at..at + count].copy_from_slice(&bytes);
            }
            3 => {
                let at = u.int_in_range(0..=len - 1)?;
                let count = u.int_in_range(1..=len - at)?;
                self.volume[at..at + count].fill(0);
            }
            4 => {
                let from = u.int_in_range(0..=len - 1)?;
                let to = u.int_in_range(0..=len - 1)?;
                let count = u.int_in_range(0..=len - from.max(to))?;
                self.volume.copy_within(from..from + count, to);
            }
            5 => {
                let size = u.int_in_range(1..=SIZE_MAX)?;
                self.volume.resize(size, u.arbitrary()?);
            }
            6 => self.interrupted(u.int_in_range(0..=40)?, u.arbitrary()?),
            _ => self.backed_up(u.arbitrary()?),
        }
        Ok(())
    }

    fn compression(choice: u8) -> Compression {
        match choice % 3 {
            0 => Compression::Store,
            1 => Compression::Auto,
            _ => Compression::Zstd(i32::from(choice % 4) - 1),
        }
    }

    fn backed_up(&mut self, choice: u8) {
        let request = request(Some(self.chunk_len), Self::compression(choice));
        let volumes: [(&str, &[u8]); 1] = [("disk", &self.volume)];
        let report = back_up(&self.home, &volumes, &request, &context(STEPS)).expect("a backup");
        let volume = &report.volumes[0];
        assert_eq!(volume.size, self.volume.len() as u64);
        if self.snapshots.last() == Some(&self.volume) {
            assert_eq!(volume.changed_bytes, 0, "nothing changed");
        }
        self.snapshots.push(self.volume.clone());
    }

    /// A backup that is stopped after `steps`; or not, if that is enough for it.
    fn interrupted(&mut self, steps: u64, choice: u8) {
        let request = request(Some(self.chunk_len), Self::compression(choice));
        let volumes: [(&str, &[u8]); 1] = [("disk", &self.volume)];
        match back_up(&self.home, &volumes, &request, &context(steps)) {
            Ok(_) => self.snapshots.push(self.volume.clone()),
            Err(error) => assert_eq!(error.kind(), ErrorKind::Interrupted, "{error:?}"),
        }
    }

    fn finish(&self) {
        if self.snapshots.is_empty() {
            return;
        }
        let archive = open(&self.home).expect("our own archive");
        let report = verify(&archive, false).expect("our own archive");
        assert!(report.ok, "{:?}", report.damaged);
        let list = list_archive(&archive, &context(STEPS)).expect("our own archive");
        assert_eq!(list.snapshots.len(), self.snapshots.len());
        let newest_first = self.snapshots.iter().rev();
        for (back, expected) in (0..).zip(newest_first) {
            let snapshot = archive.select(&Selector::Latest(back)).expect("it is there");
            let volume = &snapshot.manifest.volumes[0];
            let delta = if back % 2 == 0 { Delta::Off } else { Delta::On };
            let target = restore(&archive, &snapshot, volume, OnDamage::Fail, delta);
            assert!(target.expect("it restores").bytes() == *expected, "snapshot {back} back");
        }
        for (number, pair) in self.snapshots.windows(2).enumerate() {
            let back = (self.snapshots.len() - 1 - number) as u64;
            let (old, new) = (Selector::Latest(back), Selector::Latest(back - 1));
            let diff = diff_archive(&archive, &old, &new, None, &context(STEPS)).expect("a diff");
            self.compare(&pair[0], &pair[1], &diff.volumes[0]);
        }
        assert!(self.home.len().expect("memory") > 0);
    }

    /// The diff says of each chunk what a comparison of the bytes says.
    fn compare(&self, old: &[u8], new: &[u8], diff: &voltar_engine::report::VolumeDiff) {
        let shape = |bytes: &[u8]| Shape::new(bytes.len() as u64, self.chunk_len).expect("a shape");
        let common = common_chunks(&shape(old), &shape(new));
        let len = self.chunk_len as usize;
        let mut end = 0;
        for extent in &diff.extents {
            assert!(extent.offset >= end && extent.length > 0, "extents ascend: {diff:?}");
            end = extent.offset + extent.length;
        }
        assert!(end <= new.len() as u64);
        for (number, chunk) in (0u64..).zip(new.chunks(len)) {
            let at = number * u64::from(self.chunk_len);
            let changed = number >= common || old[at as usize..][..chunk.len()] != *chunk;
            let said = diff.extents.iter().find(|e| e.offset <= at && at < e.offset + e.length);
            let kind = if chunk.iter().all(|byte| *byte == 0) { "zero" } else { "data" };
            match said {
                Some(extent) => {
                    assert!(changed && extent.kind == kind, "chunk {number}: {extent:?}")
                }
                None => assert!(!changed, "chunk {number} changed, and diff does not say so"),
            }
        }
    }
}
