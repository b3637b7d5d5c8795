//! Logical volumes: a read-only snapshot is taken, read, and kept as the base of the next backup
//! where that is wanted. LVM has no transaction over several volumes: their snapshots are taken
//! right after one another.

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::View;
use super::file;
use super::hold::{Capture, Held, Hold, Wanted};
use super::thick::{self, ThickSnapshot};
use super::thin::{MappedDevice, ThinSnapshot};
use crate::cancel::Cancel;
use crate::device::file::FileIdentity;
use crate::error::{Error, ErrorKind, Result};
use crate::host::dm::SnapshotStatus;
use crate::host::lock::Lock;
use crate::host::lvm::{self, Kind, NewSnapshot, TAG_TEMPORARY, Volume};
use crate::options::{Holding, Keep, Place};

/// For what changes in a thick volume while it is read: this part of it, and no less than so much.
const COW_SHARE: u64 = 5;
const COW_BYTES_MIN: u64 = 32 << 20;

/// A thick snapshot that is as full as this (percent) is about to become worthless.
const FULL_PERCENT: u64 = 95;

/// The logical volumes of a request.
struct LvmCapture {
    items: Vec<Item>,
    keep: Keep,
    cow_bytes: Option<u64>,
    state: PathBuf,
    cancel: Cancel,
}

/// One of them.
struct Item {
    wanted: Wanted,
    origin: Volume,
    /// What its snapshot is called.
    name: String,
    /// Whether that may be there.
    is_made: bool,
    /// Taken over by the hold.
    lock: Option<Lock>,
}

/// Whether a place is a logical volume that can be held still; a thick snapshot stands still.
///
/// # Errors
/// For parts of volumes; if LVM does not know it.
pub fn is_volume(place: &Place) -> Result<bool> {
    let origin = match place {
        Place::Lvm { .. } => find(place)?,
        Place::Path(path) if lvm::uuid_of_device(path).is_some() => find(place)?,
        Place::Path(_) | Place::Zfs(_) => return Ok(false),
    };
    match origin.kind {
        Kind::Internal => Err(Error::new(
            ErrorKind::InvalidRequest,
            "this is a part of other logical volumes, not one with data of its own",
        )
        .on(place.to_string())
        .hint("back up the volume that it is a part of")),
        Kind::ThickSnapshot => Ok(false),
        Kind::Thin { .. } | Kind::Thick => Ok(true),
    }
}

fn find(place: &Place) -> Result<Volume> {
    match place {
        Place::Lvm { group, volume } => lvm::volume(group, volume),
        Place::Path(path) => {
            let uuid = lvm::uuid_of_device(path).unwrap_or_default();
            lvm::volume_of_device(path, &uuid)
        }
        Place::Zfs(_) => Err(Error::new(ErrorKind::Internal, "a zvol is taken for LVM's")),
    }
}

/// Gets ready to hold these volumes still.
///
/// # Errors
/// `Busy` if another run is at work on one; of LVM.
pub fn prepare(
    wishes: Vec<Wanted>,
    holding: &Holding,
    cancel: &Cancel,
) -> Result<Box<dyn Capture>> {
    let Some(state) = holding.state_dir.clone() else {
        return Err(Error::new(
            ErrorKind::InvalidRequest,
            "there is no directory for notes on what is made on this host",
        )
        .hint("set HOME or XDG_STATE_HOME, or read volumes as they are with --snapshot off"));
    };
    let mut items = Vec::new();
    for wanted in wishes {
        let origin = find(&wanted.place)?;
        if items.iter().any(|item: &Item| item.origin.identity() == origin.identity()) {
            return Err(Error::new(ErrorKind::InvalidRequest, "a volume is named twice")
                .on(wanted.place.to_string())
                .hint("name each volume once"));
        }
        let lock =
            Lock::take(&state, &format!("lvm {}", origin.identity()), Duration::ZERO, cancel)
                .map_err(|error| error.on(origin.label()))?;
        remove_temporary(&origin)?;
        let name = lvm::snapshot_name(&origin.name, &lvm::volumes(Some(&origin.group))?);
        items.push(Item { wanted, origin, name, is_made: false, lock: Some(lock) });
    }
    let Holding { keep, cow_bytes, .. } = *holding;
    Ok(Box::new(LvmCapture { items, keep, cow_bytes, state, cancel: cancel.clone() }))
}

/// Removes what killed runs left and no later one has a use for. We have the volume's lock.
fn remove_temporary(origin: &Volume) -> Result<()> {
    let volumes = lvm::volumes(Some(&origin.group))?;
    let left = volumes.iter().filter(|volume| volume.is_ours_of(&origin.uuid));
    left.filter(|volume| volume.has_tag(TAG_TEMPORARY)).try_for_each(lvm::remove)
}

impl LvmCapture {
    /// Whether the snapshot of `origin` is to be the base of the next backup.
    fn is_kept(&self, origin: &Volume) -> bool {
        match (self.keep, &origin.kind) {
            (Keep::Snapshot, _) | (Keep::Auto, Kind::Thin { .. }) => true,
            (Keep::Auto | Keep::Nothing, _) => false,
        }
    }

    fn cow_bytes_of(&self, origin: &Volume) -> Option<u64> {
        match origin.kind {
            Kind::Thin { .. } => None,
            _ => Some(self.cow_bytes.unwrap_or((origin.size / COW_SHARE).max(COW_BYTES_MIN))),
        }
    }

    fn hold(&self, item: &Item) -> Result<(View, LvmHold)> {
        let Item { wanted, origin, name, .. } = item;
        let snapshot = lvm::volume(&origin.group, name)?;
        let is_thin = matches!(origin.kind, Kind::Thin { .. });
        if is_thin {
            lvm::activate(&snapshot)?;
        }
        let (mut view, device) = file::view(&wanted.name, &snapshot.path())?;
        view.description = wanted.place.to_string();
        let is_kept = self.is_kept(origin);
        if is_thin {
            let known = ThinSnapshot::new(
                &snapshot,
                &origin.uuid,
                view.size,
                self.state.clone(),
                &self.cancel,
            );
            match known.map(Arc::new) {
                Ok(snapshot) => {
                    view.device =
                        Arc::new(MappedDevice { device, snapshot: Arc::clone(&snapshot) });
                    view.change_source = Some(snapshot);
                }
                Err(why) => view.degraded = Some(why.0),
            }
        } else if is_kept {
            match ThickSnapshot::new(&snapshot, origin, view.size) {
                Ok(known) => view.change_source = Some(Arc::new(known)),
                Err(why) => view.degraded = Some(why.0),
            }
        }
        let hold = LvmHold { origin: origin.clone(), snapshot, is_kept, lock: None };
        Ok((view, hold))
    }
}

impl Capture for LvmCapture {
    fn take(&mut self) -> Result<()> {
        for index in 0..self.items.len() {
            let item = &self.items[index];
            let cow_bytes = self.cow_bytes_of(&item.origin);
            let is_temporary = !self.is_kept(&item.origin);
            let Item { origin, name, .. } = item;
            let snapshot = NewSnapshot { origin, name, cow_bytes, is_temporary };
            let made = snapshot.create();
            // What a tool that failed has made is looked for as well.
            self.items[index].is_made = true;
            made?;
        }
        Ok(())
    }

    fn open(&mut self) -> Result<Vec<(usize, Held)>> {
        let mut opened = Vec::new();
        for item in &self.items {
            self.cancel.check()?;
            opened.push(self.hold(item)?);
        }
        let held = self.items.iter_mut().zip(opened).map(|(item, (view, mut hold))| {
            hold.lock = item.lock.take();
            item.is_made = false;
            let held =
                Held { identities: identities(item, &hold), view, hold: Some(Box::new(hold)) };
            (item.wanted.number, held)
        });
        Ok(held.collect())
    }

    fn abandon(&mut self) -> Result<()> {
        let mut outcome = Ok(());
        for item in self.items.iter_mut().filter(|item| item.is_made) {
            item.is_made = false;
            let volumes = lvm::volumes(Some(&item.origin.group));
            let removed = volumes.and_then(|volumes| {
                let mut made = volumes.iter().filter(|volume| {
                    volume.name == item.name && volume.is_ours_of(&item.origin.uuid)
                });
                made.try_for_each(lvm::remove)
            });
            outcome = outcome.and(removed);
        }
        outcome
    }
}

/// What an archive must not be: the snapshot, and the volume itself.
fn identities(item: &Item, hold: &LvmHold) -> Vec<FileIdentity> {
    [item.origin.path(), hold.snapshot.path()]
        .iter()
        .filter_map(|path| FileIdentity::of(&File::open(path).ok()?).ok())
        .collect()
}

/// One volume, held still by a snapshot.
struct LvmHold {
    origin: Volume,
    snapshot: Volume,
    is_kept: bool,
    /// Nobody else of ours is at work on the volume.
    lock: Option<Lock>,
}

impl LvmHold {
    fn is_thick(&self) -> bool {
        self.snapshot.kind == Kind::ThickSnapshot
    }

    /// Removes all snapshots of ours but this one.
    fn remove_others(&self) -> Result<()> {
        let volumes = lvm::volumes(Some(&self.origin.group))?;
        let mut outcome = Ok(());
        for other in volumes.iter().filter(|volume| volume.is_ours_of(&self.origin.uuid)) {
            if other.uuid != self.snapshot.uuid {
                outcome = outcome.and(lvm::remove(other));
            }
        }
        outcome
    }
}

impl Hold for LvmHold {
    fn is_watched(&self) -> bool {
        self.is_thick()
    }

    fn check(&mut self) -> Result<()> {
        if !self.is_thick() {
            return Ok(());
        }
        let failed = |what: String| {
            Err(Error::new(ErrorKind::SourceUnusable, what)
                .on(self.origin.label())
                .meaning("what was read since cannot be trusted, and no snapshot was stored")
                .hint("give it more room with --cow-size SIZE, or back up when less is written"))
        };
        match thick::status(&self.snapshot)? {
            SnapshotStatus::Worthless(why) => {
                failed(format!("the volume's snapshot became worthless while it was read: {why}"))
            }
            SnapshotStatus::Valid { used, total }
                if used.saturating_mul(100) >= total.saturating_mul(FULL_PERCENT) =>
            {
                failed(format!(
                    "the volume's snapshot is nearly full: {used} of {total} sectors hold what \
                     was overwritten"
                ))
            }
            SnapshotStatus::Valid { .. } => Ok(()),
        }
    }

    fn keep(&mut self) -> Result<()> {
        let settled = match (self.is_kept, self.is_thick()) {
            (false, _) => lvm::remove(&self.snapshot),
            (true, false) => lvm::deactivate(&self.snapshot),
            // It has to follow its origin.
            (true, true) => Ok(()),
        };
        settled.and(self.remove_others())
    }

    fn release(&mut self) -> Result<()> {
        lvm::remove(&self.snapshot)
    }
}
