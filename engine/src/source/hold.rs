//! Holding volumes still while they are read, and what becomes of that afterwards.
//!
//! ```text
//! prepare -> take (at one instant, or nearly) -> open     -> backup -> keep      the commit is durable
//!                                                          |  |-> release     there is none
//!                                                          `-- check          once a second
//! ```
//!
//! A kind of volume that has snapshots implements [`Capture`] for all its volumes in a request and
//! [`Hold`] for each. Identities decide what a base is, not names: the manifest records which
//! snapshot was read, and the next backup looks for exactly that one. So a crash between the commit
//! and [`Hold::keep`] loses nothing: the snapshot that still lies there is the base.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::thread::Scope;
use std::time::Duration;

use voltar_format::manifest::is_name;

use super::{View, file, image, libvirt, lvm, nbd, qemu, reflink, zvol};
use crate::cancel::Cancel;
use crate::device::file::FileIdentity;
use crate::error::{Error, ErrorKind, Result};
use crate::host::freeze::{self, Freeze};
use crate::host::priority::step_back;
use crate::image::recognise::{self, Found};
use crate::latency::LatencyGuard;
use crate::observe::Observer;
use crate::options::{Context, Holding, Place, SnapshotUse, SourceRequest};
use crate::threads;
use crate::words::with_causes;

/// How often what can become worthless is looked at.
const WATCH: Duration = Duration::from_secs(1);
/// How long applications and file systems may be at rest: snapshots take moments.
const FROZEN_MAX: Duration = Duration::from_secs(60);
/// How often the watcher looks whether it may go.
const NAP: Duration = Duration::from_millis(20);

/// A volume of a request that a kind takes care of.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// Its number in the request.
    pub number: usize,
    /// Its name in the archive.
    pub name: String,
    /// What the user called it.
    pub place: Place,
}

/// All volumes of one kind in a request, on their way to being held still. Made by the kind's
/// `prepare`, which takes its locks and refuses what cannot work.
pub trait Capture: Send {
    /// Numbers (`st_rdev`) of block devices whose file systems, as far as they are mounted, are frozen
    /// while the snapshots are made; none where the kind freezes them by itself.
    fn freezes(&self) -> Vec<u64> {
        Vec::new()
    }

    /// Makes the snapshots, in one transaction where the kind has those.
    ///
    /// # Errors
    /// What was made is left to [`abandon`](Capture::abandon).
    fn take(&mut self) -> Result<()>;

    /// Opens what [`take`](Capture::take) made, with the numbers of the volumes.
    ///
    /// # Errors
    /// What was made is left to [`abandon`](Capture::abandon).
    fn open(&mut self) -> Result<Vec<(usize, Held)>>;

    /// Takes away all that was made and not handed out, at any stage.
    ///
    /// # Errors
    /// Names what is left.
    fn abandon(&mut self) -> Result<()>;
}

/// What was made on the host to hold one volume still, and what is to remain of it.
pub trait Hold: Send {
    /// Whether it can become worthless while it is read.
    fn is_watched(&self) -> bool {
        false
    }

    /// Looks whether what is read can still be trusted.
    ///
    /// # Errors
    /// Once it cannot.
    fn check(&mut self) -> Result<()> {
        Ok(())
    }

    /// Whether somebody may use the volume while it is read.
    fn is_live(&self) -> bool {
        true
    }

    /// How long the writes of a guest took since this was asked last, on average; `None` if there were
    /// none, or nobody tells.
    fn write_latency(&mut self) -> Option<Duration> {
        None
    }

    /// Small files that belong to it, with their names: what the volume's owner is.
    fn attached(&self) -> Vec<(String, Vec<u8>)> {
        Vec::new()
    }

    /// What the user should know of how it was read, once it was.
    fn remark(&self) -> Option<String> {
        None
    }

    /// The snapshot that holds it is durable: what was made becomes the base of the next backup, as
    /// far as the request wants one, and all else is taken away, the old base last.
    ///
    /// # Errors
    /// Names what is left.
    fn keep(&mut self) -> Result<()>;

    /// There is no snapshot of it: what was made is taken away, the old base stays.
    ///
    /// # Errors
    /// Names what is left.
    fn release(&mut self) -> Result<()>;
}

/// A volume held still.
pub struct Held {
    /// Its bytes.
    pub view: View,
    /// Which files and devices an archive must not be.
    pub identities: Vec<FileIdentity>,
    /// What becomes of it.
    pub hold: Option<Box<dyn Hold>>,
}

/// All volumes of a request, held still.
pub struct HeldVolumes {
    /// The volumes in the request's order.
    pub views: Vec<View>,
    /// Which files and devices an archive must not be.
    pub identities: Vec<FileIdentity>,
    /// Who spares those who use them, if there may be any.
    pub latency: Option<LatencyGuard>,
    holds: Mutex<Vec<Box<dyn Hold>>>,
}

/// Which kind takes care of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    /// Nobody: it is read as it is.
    Plain,
    /// Snapshots and streams of ZFS.
    Zfs,
    /// A file that a reflink copy is made of.
    Reflink,
    /// LVM.
    Lvm,
    /// An export of an NBD server, which holds it still or does not.
    Nbd,
    /// A running QEMU.
    Qemu,
    /// A domain of libvirt.
    Libvirt,
}

/// Finds out what the sources are and holds them still, all at one instant as far as their kinds
/// can. `needed` are paths that are written to meanwhile: their file systems are not frozen.
///
/// # Errors
/// Names the volume and what is in the way; nothing is left of what was made, or the error says so.
pub fn hold(
    sources: &[SourceRequest],
    holding: &Holding,
    needed: &[PathBuf],
    context: &Context,
) -> Result<HeldVolumes> {
    let (observer, cancel) = (&*context.observer, &context.cancel);
    let mut captures: Vec<Box<dyn Capture>> = Vec::new();
    let mut held = Vec::new();
    let outcome = prepare(sources, holding, needed, context, &mut captures, &mut held)
        .and_then(|()| take(&mut captures, holding, needed, observer, cancel))
        .and_then(|()| open(&mut captures, cancel, &mut held));
    if let Err(error) = outcome {
        return Err(give_up(held, captures, error, observer));
    }
    held.sort_by_key(|(number, _)| *number);
    if let Err(error) = check_names(&held) {
        return Err(give_up(held, captures, error, observer));
    }
    let mut is_live = false;
    let mut volumes = HeldVolumes {
        views: Vec::new(),
        identities: Vec::new(),
        latency: None,
        holds: Mutex::default(),
    };
    for (_, Held { view, identities, hold }) in held {
        volumes.views.push(view);
        volumes.identities.extend(identities);
        is_live |= hold.as_ref().is_some_and(|hold| hold.is_live());
        volumes.holds.get_mut().unwrap_or_else(PoisonError::into_inner).extend(hold);
    }
    volumes.latency = holding.latency_bound.filter(|_| is_live).map(LatencyGuard::new);
    if volumes.latency.is_some() {
        step_back();
    }
    Ok(volumes)
}

/// Takes away what was made, and returns why.
fn give_up(
    held: Vec<(usize, Held)>,
    captures: Vec<Box<dyn Capture>>,
    why: Error,
    observer: &dyn Observer,
) -> Error {
    for (_, Held { view, hold, .. }) in held {
        // What is open cannot be taken away.
        drop(view);
        tell(observer, hold.map_or(Ok(()), |mut hold| hold.release()));
    }
    for mut capture in captures {
        tell(observer, capture.abandon());
    }
    why
}

/// Refuses two volumes of one name: a VM's disks have their names from it.
fn check_names(held: &[(usize, Held)]) -> Result<()> {
    let (mut seen, mut files) = (BTreeSet::new(), BTreeSet::new());
    for (_, Held { view, hold, .. }) in held {
        let attached = hold.as_ref().map(|hold| hold.attached()).unwrap_or_default();
        if let Some((name, _)) = attached.into_iter().find(|(name, _)| !files.insert(name.clone()))
        {
            let message = format!("two VMs have a file {name:?} to attach");
            return Err(Error::new(ErrorKind::InvalidRequest, message)
                .on(&view.description)
                .hint("name them: NAME=qemu:SOCKET"));
        }
        if !is_name(&view.name) || !seen.insert(&view.name) {
            let message = format!("volume name {:?} is too long, or given twice", view.name);
            return Err(Error::new(ErrorKind::InvalidRequest, message)
                .on(&view.description)
                .hint("give it a name: NAME=SOURCE"));
        }
    }
    Ok(())
}

/// What tells backups into this archive from those into others: its path.
fn series(needed: &[PathBuf]) -> Vec<u8> {
    // The archive's path comes last; a pipe has none, and no backup builds on it.
    let path = needed.last().map(|path| std::path::absolute(path).unwrap_or_else(|_| path.clone()));
    path.map(|path| path.into_os_string().into_encoded_bytes()).unwrap_or_default()
}

fn prepare(
    sources: &[SourceRequest],
    holding: &Holding,
    needed: &[PathBuf],
    context: &Context,
    captures: &mut Vec<Box<dyn Capture>>,
    held: &mut Vec<(usize, Held)>,
) -> Result<()> {
    let (observer, cancel) = (&*context.observer, &context.cancel);
    let mut wanted: Vec<(Kind, Vec<Wanted>)> = Vec::new();
    for (number, source) in sources.iter().enumerate() {
        let SourceRequest { name, place } = source.clone();
        let found = match place.path() {
            Some((path, format)) => recognise::source(path, format)?,
            None => Found::Plain,
        };
        match found {
            Found::Plain => {}
            Found::LooksLike(remark) => observer.notice(&remark),
            Found::Image(format, path) => {
                let wish = Wanted { number, name, place };
                held.push(image::open(wish, (format, &path), holding, &series(needed), context)?);
                continue;
            }
        }
        let place = match place {
            Place::Image { path, .. } => Place::Path(path),
            place => place,
        };
        let kind = kind_of(&place, holding.snapshot)?;
        let wish = Wanted { number, name, place };
        match wanted.iter_mut().find(|(other, _)| *other == kind) {
            Some((_, wishes)) => wishes.push(wish),
            None => wanted.push((kind, vec![wish])),
        }
    }
    for (kind, wishes) in wanted {
        match kind {
            Kind::Plain => held.extend(plain(wishes)?),
            Kind::Nbd => held.extend(nbd::open(wishes, context)?),
            Kind::Zfs => captures.push(zvol::prepare(wishes, holding, observer, cancel)?),
            Kind::Reflink => captures.push(reflink::prepare(wishes, holding)),
            Kind::Lvm => captures.push(lvm::prepare(wishes, holding, observer, cancel)?),
            Kind::Qemu => {
                captures.extend(qemu::prepare(wishes, holding, &series(needed), context)?);
            }
            Kind::Libvirt => {
                captures.extend(libvirt::prepare(wishes, holding, &series(needed), context)?);
            }
        }
    }
    Ok(())
}

/// Makes all snapshots, while everything rests.
fn take(
    captures: &mut [Box<dyn Capture>],
    holding: &Holding,
    needed: &[PathBuf],
    observer: &dyn Observer,
    cancel: &Cancel,
) -> Result<()> {
    let has_commands = holding.freeze.is_some() || holding.thaw.is_some();
    if captures.is_empty() && has_commands {
        let message = "there is nothing to freeze for: no volume is held still by a snapshot";
        return Err(Error::new(ErrorKind::InvalidRequest, message)
            .hint("leave --freeze and --thaw out, and stop what writes while it is read"));
    }
    let devices = captures.iter().flat_map(|capture| capture.freezes()).collect();
    let freeze = Freeze {
        command: holding.freeze.clone(),
        thaw: holding.thaw.clone(),
        devices: if holding.freeze_mounted { devices } else { Vec::new() },
        needed: holding.state_dir.iter().chain(needed).cloned().collect(),
        longest: FROZEN_MAX,
    };
    freeze::during(&freeze, observer, cancel, || {
        captures.iter_mut().try_for_each(|capture| {
            cancel.check()?;
            capture.take()
        })
    })
}

fn open(
    captures: &mut [Box<dyn Capture>],
    cancel: &Cancel,
    held: &mut Vec<(usize, Held)>,
) -> Result<()> {
    for capture in captures {
        cancel.check()?;
        held.extend(capture.open()?);
    }
    Ok(())
}

/// Which kind a place is of, looking at what it leads to.
fn kind_of(place: &Place, snapshot: SnapshotUse) -> Result<Kind> {
    match place {
        Place::Nbd(_) => Ok(Kind::Nbd),
        Place::Qemu { .. } | Place::Libvirt { .. } if snapshot == SnapshotUse::Off => {
            Err(Error::new(
                ErrorKind::InvalidRequest,
                "the disk of a running VM can only be read while it is held still",
            )
            .on(place.to_string())
            .hint("leave --snapshot off out"))
        }
        Place::Qemu { .. } => Ok(Kind::Qemu),
        Place::Libvirt { .. } => Ok(Kind::Libvirt),
        _ if snapshot == SnapshotUse::Off => Ok(Kind::Plain),
        Place::Zfs(_) => Ok(Kind::Zfs),
        Place::Path(path) if zvol::volume_at(path).is_some() => Ok(Kind::Zfs),
        Place::Path(path) if reflink::recognises(path) => Ok(Kind::Reflink),
        Place::Path(_) | Place::Image { .. } | Place::Lvm { .. } => match lvm::is_volume(place)? {
            true => Ok(Kind::Lvm),
            false => Ok(Kind::Plain),
        },
    }
}

/// Where a volume's file or device is, or will be; of an export, its URI.
pub fn device_path(place: &Place) -> PathBuf {
    match place {
        Place::Path(path) | Place::Image { path, .. } => path.clone(),
        Place::Lvm { group, volume } => Path::new("/dev").join(group).join(volume),
        Place::Zfs(dataset) => zvol::device_path(dataset),
        Place::Nbd(uri) => PathBuf::from(uri.to_string()),
        Place::Qemu { .. } | Place::Libvirt { .. } => PathBuf::from(place.to_string()),
    }
}

/// Volumes that are read as they are.
fn plain(wishes: Vec<Wanted>) -> Result<Vec<(usize, Held)>> {
    let open = |wish: Wanted| {
        let (view, device) = file::view(&wish.name, &device_path(&wish.place))?;
        let identities = vec![device.identity().clone()];
        Ok((wish.number, Held { view, identities, hold: None }))
    };
    wishes.into_iter().map(open).collect()
}

impl HeldVolumes {
    /// Watches what can become worthless until `done`, and raises `cancel` once it is.
    ///
    /// # Errors
    /// What [`Hold::check`] said, in the thread's result.
    pub fn watch<'scope>(
        &'scope self,
        scope: &'scope Scope<'scope, '_>,
        done: &'scope Cancel,
        cancel: &'scope Cancel,
    ) -> Result<Option<std::thread::ScopedJoinHandle<'scope, Result<()>>>> {
        if !self.lock().iter().any(|hold| hold.is_watched()) {
            return Ok(None);
        }
        let watch = || {
            while !done.is_raised() {
                let checked = self.check();
                self.ask_for_latency();
                if checked.is_err() {
                    cancel.raise();
                    return checked;
                }
                let mut slept = Duration::ZERO;
                while slept < WATCH && !done.is_raised() {
                    std::thread::sleep(NAP);
                    slept += NAP;
                }
            }
            Ok(())
        };
        threads::start(scope, "watch", watch).map(Some)
    }

    /// Tells the guard how the guests fare.
    fn ask_for_latency(&self) {
        let Some(guard) = &self.latency else { return };
        let mut holds = self.lock();
        let slowest = holds.iter_mut().filter_map(|hold| hold.write_latency()).max();
        slowest.into_iter().for_each(|latency| guard.writes(latency));
    }

    /// Looks whether what was read can be trusted: before anything of it is committed.
    ///
    /// # Errors
    /// As [`Hold::check`].
    pub fn check(&self) -> Result<()> {
        self.lock().iter_mut().try_for_each(|hold| hold.check())
    }

    /// Small files that belong to the volumes, with their names.
    pub fn attached(&self) -> Vec<(String, Vec<u8>)> {
        self.lock().iter().flat_map(|hold| hold.attached()).collect()
    }

    /// What the user should know of how the volumes were read.
    pub fn remarks(&self) -> Vec<String> {
        self.lock().iter().filter_map(|hold| hold.remark()).collect()
    }

    /// Keeps what is to remain, and returns what went wrong.
    pub fn keep(self) -> Vec<Error> {
        self.end(|hold| hold.keep())
    }

    /// Takes away what was made, and returns what went wrong.
    pub fn release(self) -> Vec<Error> {
        self.end(|hold| hold.release())
    }

    /// The devices go first: what is open cannot be taken away.
    fn end(self, with: impl Fn(&mut dyn Hold) -> Result<()>) -> Vec<Error> {
        drop(self.views);
        let mut holds = self.holds.into_inner().unwrap_or_else(PoisonError::into_inner);
        holds.iter_mut().filter_map(|hold| with(&mut **hold).err()).collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Box<dyn Hold>>> {
        self.holds.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Says what is left on the host.
pub fn tell(observer: &dyn Observer, outcome: Result<()>) {
    if let Err(error) = outcome {
        observer.notice(&left(&error));
    }
}

/// In words, that something was not taken away.
pub fn left(error: &Error) -> String {
    format!(
        "something is left on this host, and goes with the volume's next backup that ends well: {}",
        with_causes(error)
    )
}
