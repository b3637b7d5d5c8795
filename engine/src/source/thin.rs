//! Thin volumes of LVM: what changed between two snapshots, and what is mapped at all, by the
//! pool's metadata.
//!
//! Both snapshots are read-only: a block that is not shared is written in place and leaves no trace
//! in the metadata, so nothing is said of a base that could have been written to.

use std::ops::Range;
use std::path::PathBuf;

use super::changed::ChangeList;
use super::thin_metadata::{Difference, Metadata, ThinDevice};
use super::thin_slot::{Pool, degraded, unreadable};
use super::{Change, ChangeSource, ChangedExtent, Degraded, Proof};
use crate::cancel::Cancel;
use crate::host::dm;
use crate::host::lvm::{self, Kind, Volume};

/// What its changes are called.
pub const KIND: &str = "dm-thin";

/// Keys of the proof.
const VOLUME: &str = "volume";
const SNAPSHOT: &str = "snapshot";
/// For who creates a volume like it.
pub const POOL: &str = "pool";
const POOL_UUID: &str = "pool_uuid";
const THIN_ID: &str = "thin_id";
const CREATION_TIME: &str = "creation_time";
const TRANSACTION_ID: &str = "transaction_id";
/// A repair puts the metadata elsewhere, and what it lost it may have lost of base and volume alike.
const METADATA_LAYOUT: &str = "metadata_layout";

/// A read-only snapshot of a thin volume, and its pool.
#[derive(Debug)]
pub struct ThinSnapshot {
    pool: Pool,
    snapshot: Volume,
    origin_uuid: String,
    id: u32,
    size: u64,
    state: PathBuf,
    cancel: Cancel,
    creation_time: u32,
    transaction_id: u64,
    metadata_layout: String,
}

impl ThinSnapshot {
    /// The active snapshot `snapshot` of the volume `origin_uuid`; its `size` in bytes.
    ///
    /// # Errors
    /// `Degraded` if the pool's metadata is not to be had, or says less than everything.
    pub fn new(
        snapshot: &Volume,
        origin_uuid: &str,
        size: u64,
        state: PathBuf,
        cancel: &Cancel,
    ) -> Result<Self, Degraded> {
        let Kind::Thin { pool, pool_uuid, id } = &snapshot.kind else {
            return Err(Degraded("the snapshot is not one of a thin pool".into()));
        };
        let (id, group) = (*id, snapshot.group.clone());
        check_table(snapshot, id)?;
        let pool = Pool { group, name: pool.clone(), uuid: pool_uuid.clone() };
        let device = pool.read(&state, cancel, |metadata| device(metadata, id))?;
        Ok(ThinSnapshot {
            metadata_layout: pool.metadata_layout()?,
            pool,
            snapshot: snapshot.clone(),
            origin_uuid: origin_uuid.to_owned(),
            id,
            size,
            state,
            cancel: cancel.clone(),
            creation_time: device.creation_time,
            transaction_id: device.transaction_id,
        })
    }

    /// The snapshot that `base` is the proof of, with its device in `metadata`.
    fn base_in(&self, metadata: &Metadata<'_>, base: &Proof) -> Result<ThinDevice, Degraded> {
        let device = device(metadata, number(base, THIN_ID)?)?;
        let was = (number(base, CREATION_TIME)?, number(base, TRANSACTION_ID)?);
        match was == (device.creation_time, device.transaction_id) {
            true => Ok(device),
            false => Err(Degraded("the base's id in the pool is another device's by now".into())),
        }
    }

    /// Whether the snapshot that the last backup read is still there as it was.
    fn check_base(&self, base: &Proof) -> Result<(), Degraded> {
        if base.is_empty() {
            return Err(Degraded("the last backup recorded no snapshot".into()));
        }
        for (key, now, what) in [
            (VOLUME, &self.origin_uuid, "the last backup was of another volume"),
            (POOL_UUID, &self.pool.uuid, "the volume is in another pool than at the last backup"),
            (
                METADATA_LAYOUT,
                &self.metadata_layout,
                "the pool's metadata was repaired, moved or resized since the last backup",
            ),
        ] {
            match base.get(key) {
                Some(then) if then == now => {}
                Some(_) => return Err(Degraded(what.into())),
                None => return Err(Degraded(format!("the last backup's proof has no {key}"))),
            }
        }
        let volumes = lvm::volumes(Some(&self.pool.group))
            .map_err(|error| degraded("LVM does not say which snapshots there are", &error))?;
        let found = volumes.iter().find(|volume| Some(&volume.uuid) == base.get(SNAPSHOT));
        let Some(found) = found else {
            return Err(Degraded("the snapshot of the last backup is gone".into()));
        };
        let id: u32 = number(base, THIN_ID)?;
        match &found.kind {
            _ if found.is_writable => {
                Err(Degraded("the snapshot of the last backup was made writable".into()))
            }
            Kind::Thin { pool_uuid, id: now, .. } if *pool_uuid == self.pool.uuid && *now == id => {
                Ok(())
            }
            _ => Err(Degraded("the snapshot of the last backup is in another pool".into())),
        }
    }

    fn this_in(&self, metadata: &Metadata<'_>) -> Result<ThinDevice, Degraded> {
        let this = device(metadata, self.id)?;
        match (this.creation_time, this.transaction_id) == (self.creation_time, self.transaction_id)
        {
            true => Ok(this),
            false => Err(Degraded("the snapshot was replaced while it was read".into())),
        }
    }
}

impl ChangeSource for ThinSnapshot {
    fn kind(&self) -> &'static str {
        KIND
    }

    fn proof(&self) -> Proof {
        [
            (VOLUME, self.origin_uuid.clone()),
            (SNAPSHOT, self.snapshot.uuid.clone()),
            (POOL, self.pool.name.clone()),
            (POOL_UUID, self.pool.uuid.clone()),
            (THIN_ID, self.id.to_string()),
            (CREATION_TIME, self.creation_time.to_string()),
            (TRANSACTION_ID, self.transaction_id.to_string()),
            (METADATA_LAYOUT, self.metadata_layout.clone()),
        ]
        .map(|(key, value)| (key.to_owned(), value))
        .into()
    }

    fn changes(&self, base: &Proof, base_size: u64) -> Result<Vec<ChangedExtent>, Degraded> {
        self.check_base(base)?;
        self.pool.read(&self.state, &self.cancel, |metadata| {
            let (old, new) = (self.base_in(metadata, base)?, self.this_in(metadata)?);
            told(metadata, &old, &new, base_size, self.size)
        })
    }

    fn mapped(&self) -> Result<Option<Vec<ChangedExtent>>, Degraded> {
        self.pool.read(&self.state, &self.cancel, |metadata| {
            let mut said = Said::new(metadata.superblock().data_block_len);
            said.push_mapped(metadata, &self.this_in(metadata)?, 0)?;
            said.finish(self.size).map(Some)
        })
    }
}

/// What became of a volume of `size` bytes since `old`, which had `base_size`.
fn told(
    metadata: &Metadata<'_>,
    old: &ThinDevice,
    new: &ThinDevice,
    base_size: u64,
    size: u64,
) -> Result<Vec<ChangedExtent>, Degraded> {
    let block_len = metadata.superblock().data_block_len;
    let has_grown = base_size < size;
    let mut said = Said::new(block_len);
    // What the base had mapped behind its end, it did not hold.
    let end = if has_grown { base_size / block_len } else { said.end() };
    metadata
        .diff(old, new, |blocks, difference| {
            let change = match difference {
                Difference::Remapped | Difference::Mapped => Change::Changed,
                Difference::Unmapped => Change::Zero,
            };
            said.push(blocks.start.min(end)..blocks.end.min(end), change);
        })
        .map_err(unreadable)?;
    if has_grown {
        said.push_mapped(metadata, new, end)?;
    }
    said.finish(size)
}

/// A number of a proof.
fn number<T: std::str::FromStr>(proof: &Proof, key: &str) -> Result<T, Degraded> {
    let number = proof.get(key).and_then(|text| text.parse().ok());
    number.ok_or_else(|| Degraded(format!("the last backup's proof has no {key}")))
}

fn device(metadata: &Metadata<'_>, id: u32) -> Result<ThinDevice, Degraded> {
    let device = metadata.device(id).map_err(unreadable)?;
    device.ok_or_else(|| Degraded(format!("the thin pool's metadata has no device {id}")))
}

/// Whether the kernel's mapping is of this id, and of nothing besides.
fn check_table(snapshot: &Volume, id: u32) -> Result<(), Degraded> {
    let table = dm::table(&snapshot.dm_name())
        .map_err(|error| degraded("the snapshot's mapping cannot be asked for", &error))?;
    let words: Vec<&str> = table.words.iter().map(String::as_str).collect();
    match words[..] {
        [_, word] if table.kind == "thin" && word == id.to_string() => Ok(()),
        [_, _, _] if table.kind == "thin" => Err(Degraded(
            "the volume has an external origin, from which it reads what is not mapped".into(),
        )),
        _ => Err(Degraded("the snapshot's mapping is not the one that LVM tells of".into())),
    }
}

/// What was said of thin blocks, in bytes, and what was wrong with it. What nothing was said of is
/// unchanged.
struct Said {
    block_len: u64,
    list: ChangeList,
    outcome: Result<(), Degraded>,
}

impl Said {
    fn new(block_len: u64) -> Said {
        Said { block_len, list: ChangeList::new(Change::Unchanged), outcome: Ok(()) }
    }

    /// Behind the last block there can be.
    fn end(&self) -> u64 {
        u64::MAX / self.block_len
    }

    fn push(&mut self, blocks: Range<u64>, change: Change) {
        if self.outcome.is_ok() && !blocks.is_empty() {
            let bytes = blocks.start * self.block_len..blocks.end * self.block_len;
            self.outcome = self.list.push(bytes, change);
        }
    }

    /// Of all blocks from `start` on, which are mapped and which are zero.
    fn push_mapped(
        &mut self,
        metadata: &Metadata<'_>,
        device: &ThinDevice,
        start: u64,
    ) -> Result<(), Degraded> {
        let mut next = start;
        let mapped = metadata.mappings(device, |mapping| {
            if mapping.thin >= start {
                self.push(next..mapping.thin, Change::Zero);
                self.push(mapping.thin..mapping.thin + 1, Change::Changed);
                next = mapping.thin + 1;
            }
        });
        mapped.map_err(unreadable)?;
        self.push(next..self.end(), Change::Zero);
        Ok(())
    }

    fn finish(self, size: u64) -> Result<Vec<ChangedExtent>, Degraded> {
        self.outcome.map(|()| self.list.finish(size))
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::btree_map;
    use proptest::prelude::*;

    use super::super::thin_metadata::tests::{Cut, Forge};
    use super::*;

    const BLOCK_LEN: u64 = 65536;

    proptest! {
        #[test]
        fn what_is_told_is_so_whatever_the_sizes(
            old in btree_map(0..24_u64, 0..4_u64, 0..24),
            new in btree_map(0..24_u64, 0..4_u64, 0..24),
            base_size in 1..24 * BLOCK_LEN,
            size in 1..24 * BLOCK_LEN,
        ) {
            let forge = Forge::pool(&[(&old, Cut::Count(3)), (&new, Cut::Count(2))]);
            let metadata = Metadata::open(&forge, 0).unwrap();
            let device = |id| metadata.device(id).unwrap().unwrap();
            let told = told(&metadata, &device(1), &device(2), base_size, size).unwrap();
            super::super::check_coverage(&told, size).unwrap();
            for ChangedExtent { range, change } in told {
                for block in range.start / BLOCK_LEN..range.end.div_ceil(BLOCK_LEN) {
                    let (then, now) = (old.get(&block), new.get(&block));
                    let was_there = range.end.min((block + 1) * BLOCK_LEN).min(size) <= base_size;
                    match change {
                        Change::Unchanged => prop_assert!(was_there && then == now),
                        Change::Zero => prop_assert_eq!(now, None),
                        // No more than need be.
                        Change::Changed => {
                            prop_assert!(now.is_some() && (!was_there || then != now));
                        }
                    }
                }
            }
        }
    }
}
