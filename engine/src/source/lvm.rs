//! Logical volumes: a read-only snapshot is taken, read, and kept as the base of the next backup
//! where that is wanted. LVM has no transaction over several volumes: their snapshots are taken
//! right after one another.

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::file;
use super::hold::{Capture, Held, Hold, Wanted, tell};
use super::thick::{self, ThickSnapshot};
use super::thin::ThinSnapshot;
use super::{ChangeSource, Degraded, View};
use crate::cancel::Cancel;
use crate::device::file::FileIdentity;
use crate::error::{Error, ErrorKind, Result};
use crate::host::dm::SnapshotStatus;
use crate::host::lock::Lock;
use crate::host::lvm::{self, Kind, NewSnapshot, TAG, TAG_TEMPORARY, Volume};
use crate::observe::Observer;
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
    /// The tag of what this run makes.
    run: String,
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

/// Who knows what changes in a volume.
type Known = std::result::Result<Arc<dyn ChangeSource>, Degraded>;

/// Whether a place is a logical volume that can be held still; a thick snapshot stands still.
///
/// # Errors
/// For parts of volumes; if LVM does not know it.
pub fn is_volume(place: &Place) -> Result<bool> {
    let origin = match place {
        Place::Lvm { .. } => find(place)?,
        Place::Path(path) if lvm::uuid_of_device(path).is_some() => find(place)?,
        Place::Path(path) if lvm::is_part(path) => return Err(no_volume(place)),
        _ => return Ok(false),
    };
    if origin.is_ours() {
        return Err(Error::new(
            ErrorKind::InvalidRequest,
            "this is a snapshot that voltar keeps, which goes when it has a newer one",
        )
        .on(place.to_string())
        .hint(format!(
            "back up the volume that it is of, or make it yours: lvchange --deltag {TAG} {}",
            origin.full_name()
        )));
    }
    match origin.kind {
        Kind::Internal => Err(no_volume(place)),
        Kind::ThickSnapshot => Ok(false),
        Kind::Thin { .. } | Kind::Thick => Ok(true),
    }
}

fn no_volume(place: &Place) -> Error {
    let message = "this is a part of other logical volumes, not one with data of its own";
    Error::new(ErrorKind::InvalidRequest, message)
        .on(place.to_string())
        .hint("back up the volume that it is a part of")
}

fn find(place: &Place) -> Result<Volume> {
    match place {
        Place::Lvm { group, volume } => lvm::volume(group, volume),
        Place::Path(path) => {
            let uuid = lvm::uuid_of_device(path).unwrap_or_default();
            lvm::volume_of_device(path, &uuid)
        }
        Place::Zfs(_)
        | Place::Nbd(_)
        | Place::Image { .. }
        | Place::Qemu { .. }
        | Place::Libvirt { .. } => {
            Err(Error::new(ErrorKind::Internal, "another kind of volume is taken for LVM's"))
        }
    }
}

/// Gets ready to hold these volumes still.
///
/// # Errors
/// `Busy` if another run is at work on one; of LVM.
pub fn prepare(
    wishes: Vec<Wanted>,
    holding: &Holding,
    observer: &dyn Observer,
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
        let volumes = lvm::volumes(Some(&origin.group))?;
        remove_temporary(&origin, &volumes, observer);
        let name = lvm::snapshot_name(&origin.name, &volumes);
        items.push(Item { wanted, origin, name, is_made: false, lock: Some(lock) });
    }
    let Holding { keep, cow_bytes, .. } = *holding;
    let run = run_tag();
    Ok(Box::new(LvmCapture { items, keep, cow_bytes, run, state, cancel: cancel.clone() }))
}

/// The tag of what this run makes. Another one whose locks are elsewhere may choose the same names.
fn run_tag() -> String {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    format!("{TAG}.run.{}.{}", now.as_millis(), std::process::id())
}

/// Removes what killed runs left and no later one has a use for. We have the volume's lock. What
/// cannot go is in nobody's way.
fn remove_temporary(origin: &Volume, volumes: &[Volume], observer: &dyn Observer) {
    let left = volumes.iter().filter(|volume| volume.is_ours_of(origin));
    left.filter(|volume| volume.has_tag(TAG_TEMPORARY))
        .for_each(|volume| tell(observer, lvm::remove(volume)));
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

    fn thin_source(&self, snapshot: &Volume, origin: &Volume, size: u64) -> Known {
        let state = self.state.clone();
        Ok(Arc::new(ThinSnapshot::new(snapshot, &origin.uuid, size, state, &self.cancel)?))
    }

    fn hold(&self, item: &Item) -> Result<(View, LvmHold)> {
        let Item { wanted, origin, name, .. } = item;
        let snapshot = lvm::volume(&origin.group, name)?;
        let is_thin = matches!(origin.kind, Kind::Thin { .. });
        if is_thin {
            lvm::activate(&snapshot)?;
        }
        let (mut view, _) = file::view(&wanted.name, &snapshot.path())?;
        view.description = wanted.place.to_string();
        let is_kept = self.is_kept(origin);
        let source = match (is_thin, is_kept) {
            (true, _) => Some(self.thin_source(&snapshot, origin, view.size)),
            (false, true) => Some(thick_source(&snapshot, origin, view.size)),
            (false, false) => None,
        };
        // Who was interrupted says nothing of the volume.
        self.cancel.check()?;
        match source {
            Some(Ok(source)) => view.change_source = Some(source),
            Some(Err(why)) => view.degraded = Some(why.0),
            None => {}
        }
        // What nothing can be told since is a base for nobody, and kept only for who wants it.
        let is_kept = is_kept && (view.change_source.is_some() || self.keep == Keep::Snapshot);
        let hold = LvmHold { origin: origin.clone(), snapshot, is_kept, lock: None };
        Ok((view, hold))
    }
}

fn thick_source(snapshot: &Volume, origin: &Volume, size: u64) -> Known {
    Ok(Arc::new(ThickSnapshot::new(snapshot, origin, size)?))
}

impl Capture for LvmCapture {
    fn take(&mut self) -> Result<()> {
        for index in 0..self.items.len() {
            let item = &self.items[index];
            let cow_bytes = self.cow_bytes_of(&item.origin);
            let is_temporary = !self.is_kept(&item.origin);
            let Item { origin, name, .. } = item;
            let snapshot = NewSnapshot { origin, name, cow_bytes, is_temporary, run: &self.run };
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
                let mut made = volumes
                    .iter()
                    .filter(|volume| volume.has_tag(&self.run) && volume.is_ours_of(&item.origin));
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
        for other in volumes.iter().filter(|volume| volume.is_ours_of(&self.origin)) {
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
