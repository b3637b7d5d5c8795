//! Thick volumes of LVM: what changed since a snapshot that was kept, by the snapshot's own table.
//!
//! The kernel writes an exception to the table before it lets the write to the origin go, so that
//! the table of the kept snapshot, read after the new one was taken, knows of everything that was
//! written between the two. What was written since only makes it longer.

use std::cell::RefCell;
use std::io;

use super::changed::ChangeList;
use super::cow_table::{CowStore, CowTable};
use super::thin_slot::degraded;
use super::{Change, ChangeSource, ChangedExtent, Degraded, Proof};
use crate::device::Device;
use crate::device::file::{Access, FileDevice};
use crate::device::medium::MediumReader;
use crate::host::dm::{self, SnapshotStatus};
use crate::host::lvm::{self, Kind, Volume};

/// What its changes are called.
pub const KIND: &str = "lvm-cow";

/// Keys of the proof.
const VOLUME: &str = "volume";
const SNAPSHOT: &str = "snapshot";
const LAYOUT: &str = "layout";

/// A snapshot of a thick volume that is to be kept as a base.
#[derive(Debug)]
pub struct ThickSnapshot {
    snapshot: Volume,
    origin_uuid: String,
    /// A digest of where the origin lies.
    layout: String,
    size: u64,
}

impl ThickSnapshot {
    /// The snapshot `snapshot` of the volume `origin`; its `size` in bytes.
    ///
    /// # Errors
    /// `Degraded` if LVM does not say where the volume lies.
    pub fn new(snapshot: &Volume, origin: &Volume, size: u64) -> Result<Self, Degraded> {
        let layout = lvm::layout(&origin.group, &origin.name)
            .map_err(|error| degraded("LVM does not say where the volume lies", &error))?;
        let (snapshot, origin_uuid) = (snapshot.clone(), origin.uuid.clone());
        Ok(ThickSnapshot { snapshot, origin_uuid, layout, size })
    }

    /// The snapshot that the last backup read, if it is still there and stands still.
    fn base(&self, base: &Proof) -> Result<Volume, Degraded> {
        if base.is_empty() {
            return Err(Degraded("the last backup recorded no snapshot".into()));
        }
        if base.get(VOLUME) != Some(&self.origin_uuid) {
            return Err(Degraded("the last backup was of another volume".into()));
        }
        // What a volume gains by growing back was never written through it.
        if base.get(LAYOUT) != Some(&self.layout) {
            return Err(Degraded("the volume was moved or resized since the last backup".into()));
        }
        let volumes = lvm::volumes(Some(&self.snapshot.group))
            .map_err(|error| degraded("LVM does not say which snapshots there are", &error))?;
        let found = volumes.into_iter().find(|volume| Some(&volume.uuid) == base.get(SNAPSHOT));
        match found {
            None => Err(Degraded("the snapshot of the last backup is gone".into())),
            Some(found) if found.is_merging => {
                Err(Degraded("the snapshot of the last backup is being merged".into()))
            }
            Some(found)
                if found.kind != Kind::ThickSnapshot || found.origin_uuid != self.origin_uuid =>
            {
                Err(Degraded("the snapshot of the last backup is no longer the volume's".into()))
            }
            Some(found) => Ok(found),
        }
    }
}

impl ChangeSource for ThickSnapshot {
    fn kind(&self) -> &'static str {
        KIND
    }

    fn proof(&self) -> Proof {
        [(VOLUME, &self.origin_uuid), (SNAPSHOT, &self.snapshot.uuid), (LAYOUT, &self.layout)]
            .map(|(key, value)| (key.to_owned(), value.clone()))
            .into()
    }

    fn changes(&self, base: &Proof, base_size: u64) -> Result<Vec<ChangedExtent>, Degraded> {
        let base = self.base(base)?;
        if base_size != self.size {
            return Err(Degraded("the volume's size changed since the last backup".into()));
        }
        check_valid(&base)?;
        let table = read_table(&base, base_size)?;
        check_valid(&base)?;
        let mut list = ChangeList::new(Change::Unchanged);
        for range in table.ranges() {
            list.push(range, Change::Changed)?;
        }
        Ok(list.finish(self.size))
    }
}

fn check_valid(base: &Volume) -> Result<(), Degraded> {
    match status(base).map_err(|error| degraded("the kept snapshot cannot be asked for", &error))? {
        SnapshotStatus::Valid { .. } => Ok(()),
        SnapshotStatus::Worthless(why) => {
            Err(Degraded(format!("the snapshot of the last backup is of no use: {why}")))
        }
    }
}

/// What the kernel says of an active thick snapshot.
///
/// # Errors
/// Of the tool; if it is not active, or being merged.
pub fn status(snapshot: &Volume) -> crate::error::Result<SnapshotStatus> {
    dm::status(&snapshot.dm_name()).and_then(|target| SnapshotStatus::of(&target))
}

fn read_table(base: &Volume, size: u64) -> Result<CowTable, Degraded> {
    let path = dm::path_of(&format!("{}-cow", base.dm_name()));
    let open = || {
        let device = FileDevice::open(&path, Access::Read)?;
        let reader = RefCell::new(MediumReader::new(&device)?);
        io::Result::Ok(Store { reader, size: device.len()? })
    };
    let store = open().map_err(|error| degraded("the kept snapshot cannot be read", &error))?;
    CowTable::read(&store, size)
        .map_err(|error| degraded("the snapshot of the last backup is of no use", &error))
}

/// The store of a thick snapshot, past the page cache.
struct Store {
    reader: RefCell<MediumReader>,
    size: u64,
}

impl CowStore for Store {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        self.reader.borrow_mut().read_at(offset, bytes)
    }
}
