//! Disks of VMs that run under libvirt, held still by its backup job; what changed, by its checkpoints.
//!
//! ```text
//! guest -> the disk                     libvirt copies what is about to be overwritten
//!             |  `-> area/vda.qcow2 --.
//!             `-----------------------+-> NBD server of the VM's QEMU -> us
//! ```
//!
//! Bitmaps stay libvirt's: a checkpoint is made at the instant of each backup, and those before it go when the
//! snapshot is durable. A checkpoint is proven by its name, which is drawn at random; libvirt itself refuses
//! one whose bitmaps it cannot vouch for. Others' checkpoints and jobs are never touched.

mod area;
mod names;
mod shot;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::backing::Backing;
use super::dirty_bitmap::{Sizes, told};
use super::hold::{Capture, Held, Hold, Wanted};
use super::{ChangeSource, ChangedExtent, Degraded, Proof, View, vm_disks};
use crate::error::Result;
use crate::nbd::NbdDevice;
use crate::options::{Context, Holding, Place};
use crate::qemu::Outcome;
use names::Series;
use shot::{Read, Shot, context};

/// What its changes are called.
pub const KIND: &str = "libvirt-checkpoint";

/// Keys of the proof.
const CHECKPOINT: &str = "checkpoint";
const DOMAIN: &str = "domain";
const DISK: &str = "disk";

/// Gets ready to hold the disks of these domains still. `series` tells backups into one archive from those
/// into others.
///
/// # Errors
/// Says what is in the way; nothing is left of what was made, or the error says so.
pub fn prepare(
    wanted: Vec<Wanted>,
    holding: &Holding,
    series: &[u8],
    context: &Context,
) -> Result<Vec<Box<dyn Capture>>> {
    let domain = |place: &Place| match place {
        Place::Libvirt { domain, .. } => Some(domain.clone()),
        _ => None,
    };
    vm_disks::prepare_each(wanted, domain, &*context.observer, |domain, wishes| {
        Ok(Box::new(Vm::prepare(&domain, wishes, holding, series, context)?))
    })
}

/// One domain of a request.
struct Vm {
    shot: Arc<Mutex<Shot>>,
    wishes: Vec<Wanted>,
    context: Context,
}

impl Vm {
    fn prepare(
        domain: &str,
        wishes: Vec<Wanted>,
        holding: &Holding,
        series: &[u8],
        context: &Context,
    ) -> Result<Vm> {
        let disks: Option<Vec<String>> =
            wishes.iter().map(|wish| wish.place.disk().map(str::to_owned)).collect();
        let (observer, cancel) = (&*context.observer, &context.cancel);
        let series = Series::of(series);
        let shot = Shot::prepare(domain, disks.as_deref(), series, holding, observer, cancel)?;
        Ok(Vm { shot: Arc::new(Mutex::new(shot)), wishes, context: context.clone() })
    }

    /// A disk, held still.
    fn view(&self, shot: &Shot, read: &Read, name: String, device: NbdDevice) -> View {
        let device = Arc::new(device);
        let size = device.export().size;
        let source = shot.recorded(read).map(|checkpoint| -> Arc<dyn ChangeSource> {
            let proof = [
                (CHECKPOINT, checkpoint),
                (DOMAIN, &shot.domain().uuid),
                (DISK, &read.disk.target),
            ];
            let mut proof: Proof =
                proof.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
            let backing = Backing::named(read.disk.below.iter().map(String::as_str));
            backing.prove(&mut proof);
            let (shot, device) = (Arc::clone(&self.shot), Arc::clone(&device));
            Arc::new(Changes { shot, device, backing, proof, size })
        });
        View {
            name,
            description: shot.label(read),
            device,
            size,
            degraded: source.is_none().then(|| shot.degraded(read)).flatten(),
            change_source: source,
        }
    }
}

impl Capture for Vm {
    fn take(&mut self) -> Result<()> {
        lock(&self.shot).take(&*self.context.observer, &self.context.cancel)
    }

    fn open(&mut self) -> Result<Vec<(usize, Held)>> {
        let shot = lock(&self.shot);
        let devices = shot.open(self.context.io, &self.context.cancel)?;
        let disks: Vec<String> = shot.reads().iter().map(|read| read.disk.target.clone()).collect();
        let names = vm_disks::names(&self.wishes, &disks);
        // What is of the whole domain goes with its first disk.
        let vm = self.wishes.first().map_or("", |wish| &wish.name);
        let files = shot.definition(vm, &*self.context.observer);
        let hold = VmHold { shot: Arc::clone(&self.shot), files };
        let mut hold: Option<Box<dyn Hold>> = Some(Box::new(hold));
        let disks = devices.into_iter().zip(shot.reads()).zip(names);
        let held = disks.map(|((device, read), (wish, name))| {
            let view = self.view(&shot, read, name, device);
            (wish, Held { view, identities: Vec::new(), hold: hold.take() })
        });
        Ok(held.collect())
    }

    fn abandon(&mut self) -> Result<()> {
        lock(&self.shot).clear(Outcome::Nothing)
    }
}

/// A domain whose disks are read.
struct VmHold {
    shot: Arc<Mutex<Shot>>,
    files: Vec<(String, Vec<u8>)>,
}

impl Hold for VmHold {
    fn is_watched(&self) -> bool {
        true
    }

    fn check(&mut self) -> Result<()> {
        lock(&self.shot).check()
    }

    fn attached(&self) -> Vec<(String, Vec<u8>)> {
        self.files.clone()
    }

    fn keep(&mut self) -> Result<()> {
        lock(&self.shot).clear(Outcome::Base)
    }

    fn release(&mut self) -> Result<()> {
        lock(&self.shot).clear(Outcome::Nothing)
    }
}

/// What a disk's checkpoints tell.
struct Changes {
    shot: Arc<Mutex<Shot>>,
    device: Arc<NbdDevice>,
    backing: Backing,
    proof: Proof,
    size: u64,
}

impl ChangeSource for Changes {
    fn kind(&self) -> &'static str {
        KIND
    }

    fn proof(&self) -> Proof {
        self.proof.clone()
    }

    fn changes(&self, base: &Proof, base_size: u64) -> Result<Vec<ChangedExtent>, Degraded> {
        let of = |proof: &Proof, key: &str| {
            let none = || Degraded("the last backup left no checkpoint".into());
            proof.get(key).cloned().ok_or_else(none)
        };
        for (key, what) in [(DOMAIN, "domain"), (DISK, "disk")] {
            if of(base, key)? != of(&self.proof, key)? {
                return Err(Degraded(format!("the last backup was of another {what}")));
            }
        }
        let (disk, checkpoint) = (of(base, DISK)?, of(base, CHECKPOINT)?);
        lock(&self.shot).check_base(&disk, &checkpoint).map_err(Degraded)?;
        self.backing.check(base)?;
        let sizes = Sizes { base: base_size, now: self.size, never_less: false };
        told(&self.device, &context(), sizes).map_err(Degraded)
    }
}

fn lock(shot: &Mutex<Shot>) -> MutexGuard<'_, Shot> {
    shot.lock().unwrap_or_else(PoisonError::into_inner)
}
