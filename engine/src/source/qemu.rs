//! Disks of VMs that run in QEMU, held still by it; what changed, by its dirty bitmaps.
//!
//! A bitmap is proven by its name, which is drawn at random for each backup: a disk that has it is the
//! disk that was read then, or a copy that was made with its bitmap since. QEMU itself drops bitmaps that
//! it cannot vouch for (an image that was written to by others, a process that was killed), and refuses to
//! go back to an internal snapshot as long as there are any.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::backing::Backing;
use super::dirty_bitmap::{Sizes, told};
use super::hold::{Capture, Held, Hold, Wanted};
use super::{ChangeSource, ChangedExtent, Degraded, Proof, View, vm_disks};
use crate::cancel::Cancel;
use crate::error::Result;
use crate::io::IoEngine;
use crate::nbd::NbdDevice;
use crate::options::{Context, Holding, Keep, Place};
use crate::qemu::{Bitmaps, Outcome, Plan, Shot};

/// What its changes are called.
pub const KIND: &str = "qemu-bitmap";
/// Behind a VM's name: what it is.
const DEFINITION: &str = "qemu.json";

/// In a proof: the bitmap's name.
pub const BITMAP: &str = "bitmap";
/// In a proof: the bytes that a bit of it tells of.
pub const GRANULARITY: &str = "granularity";
const DISK: &str = "disk";
const IMAGE: &str = "image";

/// Gets ready to hold the disks of these VMs still. `series` tells backups into one archive from those
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
    let monitor = |place: &Place| match place {
        Place::Qemu { monitor, .. } => Some(monitor.clone()),
        _ => None,
    };
    vm_disks::prepare_each(wanted, monitor, &*context.observer, |monitor, wishes| {
        Ok(Box::new(Vm::prepare(monitor, wishes, holding, series, context)?))
    })
}

/// One VM of a request.
struct Vm {
    shot: Arc<Mutex<Shot>>,
    wishes: Vec<Wanted>,
    context: Context,
}

impl Vm {
    fn prepare(
        monitor: PathBuf,
        wishes: Vec<Wanted>,
        holding: &Holding,
        series: &[u8],
        context: &Context,
    ) -> Result<Vm> {
        let plan = Plan {
            monitor,
            disks: wishes.iter().map(|wish| wish.place.disk().map(str::to_owned)).collect(),
            area_dir: holding.fleece_dir.clone(),
            area_bytes: holding.fleece_bytes,
            freeze: holding.freeze_guest,
            agent: holding.agent.clone(),
            state_dir: holding.state_dir.clone(),
            bitmaps: Bitmaps::of(series, holding.keep != Keep::Nothing),
        };
        let shot = Shot::prepare(plan, &*context.observer, &context.cancel)?;
        Ok(Vm { shot: Arc::new(Mutex::new(shot)), wishes, context: context.clone() })
    }
}

impl Capture for Vm {
    fn take(&mut self) -> Result<()> {
        lock(&self.shot).take(&*self.context.observer)
    }

    fn open(&mut self) -> Result<Vec<(usize, Held)>> {
        let mut shot = lock(&self.shot);
        let (io, cancel) = (self.context.io, self.context.cancel.clone());
        let devices = shot.open(io, &cancel)?;
        let disks: Vec<String> = shot.disks().map(|disk| disk.name.clone()).collect();
        let names = vm_disks::names(&self.wishes, &disks);
        let volumes: Vec<String> = names.iter().map(|(_, name)| name.clone()).collect();
        let mut definition = Some(shot.definition(&volumes));
        let mut held = Vec::new();
        for (number, (device, (wish, name))) in devices.into_iter().zip(names).enumerate() {
            let device = Arc::new(device);
            let size = device.export().size;
            let source =
                shot.bitmap(number).map(|(bitmap, granularity)| -> Arc<dyn ChangeSource> {
                    let disk = shot.disks().nth(number);
                    let image = disk.map_or("", |disk| &disk.file);
                    let proof = [
                        (BITMAP, bitmap.to_owned()),
                        (GRANULARITY, granularity.to_string()),
                        (DISK, disks[number].clone()),
                        (IMAGE, image.to_owned()),
                    ];
                    let mut proof: Proof = proof.map(|(key, value)| (key.to_owned(), value)).into();
                    let below = disk.map(|disk| &disk.below[..]).unwrap_or_default();
                    let backing = Backing::named(below.iter().map(String::as_str));
                    backing.prove(&mut proof);
                    let (shot, cancel) = (Arc::clone(&self.shot), cancel.clone());
                    Arc::new(Bitmap { shot, number, backing, proof, size, io, cancel })
                });
            let why = || format!("{KIND}: what changes is not recorded");
            let view = View {
                name,
                description: shot.label_of(number),
                device: Arc::clone(&device) as Arc<_>,
                size,
                degraded: source.is_none().then(why),
                change_source: source,
            };
            let definition = definition.take().map(|definition| {
                let vm = self.wishes.first().map_or("", |wish| &wish.name);
                (format!("{vm}.{DEFINITION}"), format!("{definition:#}\n").into_bytes())
            });
            let shot = Arc::clone(&self.shot);
            let hold = DiskHold { shot, number, device, definition };
            held.push((wish, Held { view, identities: Vec::new(), hold: Some(Box::new(hold)) }));
        }
        Ok(held)
    }

    fn abandon(&mut self) -> Result<()> {
        lock(&self.shot).clear(Outcome::Nothing)
    }
}

/// A disk that is read.
struct DiskHold {
    shot: Arc<Mutex<Shot>>,
    number: usize,
    device: Arc<NbdDevice>,
    definition: Option<(String, Vec<u8>)>,
}

impl Hold for DiskHold {
    fn is_watched(&self) -> bool {
        true
    }

    fn check(&mut self) -> Result<()> {
        lock(&self.shot).check(self.number, &self.device)
    }

    fn write_latency(&mut self) -> Option<Duration> {
        lock(&self.shot).write_latency(self.number)
    }

    fn attached(&self) -> Vec<(String, Vec<u8>)> {
        self.definition.iter().cloned().collect()
    }

    fn keep(&mut self) -> Result<()> {
        lock(&self.shot).clear(Outcome::Base)
    }

    fn release(&mut self) -> Result<()> {
        lock(&self.shot).clear(Outcome::Nothing)
    }
}

/// What a disk's bitmaps tell.
struct Bitmap {
    shot: Arc<Mutex<Shot>>,
    number: usize,
    backing: Backing,
    proof: Proof,
    size: u64,
    io: IoEngine,
    cancel: Cancel,
}

impl ChangeSource for Bitmap {
    fn kind(&self) -> &'static str {
        KIND
    }

    fn proof(&self) -> Proof {
        self.proof.clone()
    }

    fn changes(&self, base: &Proof, base_size: u64) -> Result<Vec<ChangedExtent>, Degraded> {
        let of = |key: &str| {
            let value = base.get(key).map(String::as_str);
            value.ok_or_else(|| Degraded("the last backup left no bitmap".into()))
        };
        let (bitmap, granularity) = (of(BITMAP)?, of(GRANULARITY)?);
        let granularity = granularity
            .parse()
            .map_err(|_| Degraded("the last backup's proof is damaged".into()))?;
        for (key, what) in [(DISK, "device"), (IMAGE, "image")] {
            // Of an image that was read while nobody used it there is no device.
            if base.get(key).is_some_and(|value| Some(value) != self.proof.get(key)) {
                return Err(Degraded(format!("the disk has another {what} than it had")));
            }
        }
        self.backing.check(base)?;
        let sizes = Sizes { base: base_size, now: self.size, never_less: true };
        let mut shot = lock(&self.shot);
        let read = |device: &NbdDevice, context: &str| told(device, context, sizes);
        let told = shot.dirty(self.number, bitmap, granularity, self.io, &self.cancel, read);
        told.map_err(Degraded)
    }
}

fn lock(shot: &Mutex<Shot>) -> MutexGuard<'_, Shot> {
    shot.lock().unwrap_or_else(PoisonError::into_inner)
}
