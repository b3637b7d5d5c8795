//! Disks of one VM, at one instant.

use std::collections::BTreeSet;
use std::fs::{DirBuilder, File, OpenOptions};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::fcntl::OFlag;
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use serde_json::{Value, json};

use super::agent::Agent;
use super::area::{Area, CLUSTER_LEN};
use super::guard::{Guard, Watched};
use super::monitor::{Monitor, Refusal, Version};
use super::names;
use super::sweep::{self, sweep};
use super::vm::{self, Disk, LeftOut, Writes};
use crate::cancel::Cancel;
use crate::device::Device;
use crate::error::{Error, ErrorKind, Result};
use crate::host::lock::Lock;
use crate::io::IoEngine;
use crate::nbd::uri::Endpoint;
use crate::nbd::{NbdDevice, Uri};
use crate::observe::Observer;
use crate::words::with_causes;

/// The first QEMU whose copy-before-write can spare the guest (`on-cbw-error`).
const OLDEST: Version = Version { major: 7, minor: 1, micro: 0 };
/// The first QEMU that survives the end of an NBD connection to a disk that a thread of its own serves:
/// before it `nbd_blockdev_client_closed` asserts that it runs in the main loop.
const OLDEST_WITH_THREADS: Version = Version { major: 9, minor: 0, micro: 0 };
/// The first QEMU that was seen to read a snapshot rightly wherever a read begins and ends: 7.2 gives what
/// the guest wrote after the instant, where a read begins in what it overwrote and goes on behind that
/// (`hbitmap_status` tells the wrong side), and calls zero what it zeroed.
const OLDEST_WITH_LONG_READS: Version = Version { major: 10, minor: 0, micro: 0 };
/// How long a guest's write waits for the area before the snapshot is given up.
const PATIENCE_S: u64 = 15;
/// Bytes that a bit of our bitmaps tells of: a chunk, as long as nobody wants another length.
pub const GRANULARITY: u64 = 64 << 10;
/// How long another run may be at work on the same VM.
const LOCK_PATIENCE: Duration = Duration::from_secs(1);
/// What QEMU says of its NBD server when somebody has started it (`nbd_server_start`, blockdev-nbd.c).
const TAKEN: &str = "already running";
/// Where sockets are made: a path that is short enough for one (`unix(7)`).
const SOCKETS: &str = "/tmp";
/// Most bitmaps of ours on a disk: each costs the guest's writes a little, and memory.
const BITMAPS_MAX: usize = 16;
/// Least bytes of a write.
const SECTOR_LEN: u64 = 512;
/// Bytes of a read that shows whether a snapshot still can be read.
const PROBE_LEN: usize = 512;

/// What is to be held still, and how.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The monitor's socket.
    pub monitor: PathBuf,
    /// The disks by name; `None`: all that the guest can write to.
    pub disks: Option<Vec<String>>,
    /// Where areas are made.
    pub area_dir: PathBuf,
    /// Most bytes of each.
    pub area_bytes: Option<u64>,
    /// Whether the guest agent is asked to freeze file systems.
    pub freeze: bool,
    /// The agent's socket, if QEMU does not tell.
    pub agent: Option<PathBuf>,
    /// Where locks are kept.
    pub state_dir: Option<PathBuf>,
    /// The bitmaps of these backups.
    pub bitmaps: Bitmaps,
}

/// Which bitmaps belong to the same series of backups, and whether there is to be one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bitmaps {
    /// What all their names begin with.
    pub prefix: String,
    /// Whether one is made for the next backup.
    pub wanted: bool,
}

impl Bitmaps {
    /// Those of backups into what is called `series`.
    pub fn of(series: &[u8], wanted: bool) -> Bitmaps {
        let digest = blake3::hash(series).to_hex();
        Bitmaps { prefix: format!("{}{}-", super::PREFIX, &digest.as_str()[..16]), wanted }
    }

    /// A name that no bitmap had before.
    pub fn draw(&self) -> String {
        format!("{}{:032x}", self.prefix, rand::random::<u128>())
    }
}

/// What became of the backup that the disks were held for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is durable, and the base of the next one.
    Base,
    /// There is none, or none that a next one could build on.
    Nothing,
}

/// A disk and what was made for it.
#[derive(Debug)]
struct Held {
    disk: Disk,
    area: Area,
    /// The bitmap that records what changes from this instant on.
    bitmap: Option<String>,
    /// What the guest had written when that was asked last.
    writes: Option<Writes>,
}

/// A bitmap that was begun.
struct Recording {
    /// Whether the image keeps it when QEMU ends.
    is_persistent: bool,
}

/// Disks of one VM on their way to being held still, or held still.
#[derive(Debug)]
pub struct Shot {
    plan: Plan,
    monitor: Monitor,
    disks: Vec<Held>,
    command_line: Vec<String>,
    /// The NBD server's socket, which has no name any more.
    socket: Option<File>,
    /// Whether anything of ours is in QEMU.
    is_dirty: bool,
    /// Bitmaps that were asked, of whatever series.
    asked: Vec<String>,
    _lock: Option<Lock>,
}

impl Shot {
    /// Looks for the disks, clears away what a killed run left, and makes all that can be made
    /// without touching the guest.
    ///
    /// # Errors
    /// Says what is in the way; nothing is left in QEMU, or the error says so.
    pub fn prepare(plan: Plan, observer: &dyn Observer, cancel: &Cancel) -> Result<Shot> {
        let mut monitor = Monitor::connect(&plan.monitor)?;
        check_version(&monitor)?;
        let peer = getsockopt(monitor.stream(), PeerCredentials).map_or(0, |peer| peer.pid());
        let lock = match &plan.state_dir {
            Some(state) => {
                let name = format!("qemu {peer} {}", if peer > 0 { "" } else { monitor.label() });
                Some(Lock::take(state, name.trim_end(), LOCK_PATIENCE, cancel)?)
            }
            None => None,
        };
        sweep(&mut monitor).map_err(|error| {
            Error::new(error.kind(), "what a killed run left in QEMU cannot be taken away")
                .on(monitor.label())
                .because(error)
                .meaning("the VM runs on; nothing was backed up")
        })?;
        vm::check_stays(&mut monitor)?;
        let (disks, left_out) = vm::disks(&mut monitor)?;
        let disks = chosen(disks, plan.disks.as_deref(), monitor.label())?;
        for disk in &disks {
            check_thread(&mut monitor, disk)?;
            vm::check_idle(&mut monitor, disk)?;
        }
        for LeftOut { name, why } in left_out.iter().filter(|_| plan.disks.is_none()) {
            observer.notice(&format!("{name} of {} is not backed up: {why}", monitor.label()));
        }
        let mut shot = Shot {
            command_line: command_line(peer),
            plan,
            monitor,
            disks: Vec::new(),
            socket: None,
            is_dirty: true,
            asked: Vec::new(),
            _lock: lock,
        };
        let made = disks.into_iter().try_for_each(|disk| {
            cancel.check()?;
            shot.make(disk, observer)
        });
        match made {
            Ok(()) => Ok(shot),
            Err(error) => {
                if let Err(left) = shot.clear(Outcome::Nothing) {
                    let left = with_causes(&left);
                    observer.notice(&format!(
                        "something is left in QEMU, and goes with the VM's next backup: {left}"
                    ));
                }
                Err(error)
            }
        }
    }

    /// The disks, in QEMU's order.
    pub fn disks(&self) -> impl Iterator<Item = &Disk> {
        self.disks.iter().map(|held| &held.disk)
    }

    /// The monitor's socket, for messages.
    pub fn label(&self) -> &str {
        self.monitor.label()
    }

    /// What the VM is; `volumes` are names for the disks.
    pub fn definition(&mut self, volumes: &[String]) -> Value {
        let disks = self.disks.iter().map(|held| held.disk.clone());
        let volumes: Vec<_> = volumes.iter().cloned().zip(disks).collect();
        vm::definition(&mut self.monitor, &self.command_line, &volumes)
    }

    /// Makes what stands beside a disk: its area, its filter, its bitmap.
    fn make(&mut self, disk: Disk, observer: &dyn Observer) -> Result<()> {
        let number = self.disks.len();
        let area = Area::create(&self.plan.area_dir, disk.size, self.plan.area_bytes)?;
        self.add_area(number, &area)?;
        self.add_node(json!({
            "driver": "copy-before-write",
            "node-name": named(names::FILTER, number),
            "file": disk.root,
            "target": named(names::AREA, number),
            // Otherwise what the guest discards would stay.
            "discard": "unmap",
            "on-cbw-error": "break-snapshot",
            "cbw-timeout": PATIENCE_S,
        }))?;
        let bitmap = match self.plan.bitmaps.wanted {
            true => self.add_bitmap(&disk, observer)?,
            false => None,
        };
        self.disks.push(Held { disk, area, bitmap, writes: None });
        Ok(())
    }

    /// The nodes of an area: QEMU gets the file itself, and neither its name nor a right to its folder.
    fn add_area(&mut self, number: usize, area: &Area) -> Result<()> {
        let added = self
            .monitor
            .call_with_fd("add-fd", json!({"opaque": names::DESCRIPTOR}), area.file().as_fd())
            .map_err(|refusal| self.monitor.failed(refusal))?;
        let set = &added["fdset-id"];
        self.add_node(json!({
            "driver": "file",
            "node-name": named(names::FILE, number),
            "filename": format!("/dev/fdset/{set}"),
            "locking": "off",
            // What is in it is worth nothing after a crash.
            "cache": {"no-flush": true},
        }))?;
        self.monitor.tell("remove-fd", json!({"fdset-id": set}))?;
        // A raw node of a fixed size has no more room than that for what is in it.
        self.add_node(json!({
            "driver": "raw",
            "node-name": named(names::ROOM, number),
            "size": area.len(),
            "file": named(names::FILE, number),
        }))?;
        self.add_node(json!({
            "driver": "qcow2",
            "node-name": named(names::AREA, number),
            "file": named(names::ROOM, number),
            "backing": null,
        }))
    }

    fn add_node(&mut self, node: Value) -> Result<()> {
        self.monitor.tell("blockdev-add", node)
    }

    /// Begins to record what changes: before the instant, so that nothing is missed behind it.
    fn add_bitmap(&mut self, disk: &Disk, observer: &dyn Observer) -> Result<Option<String>> {
        let name = self.plan.bitmaps.draw();
        let Some(recording) = self.add_recording(disk, &name, observer)? else { return Ok(None) };
        self.add_end(disk, &name, recording.is_persistent)?;
        Ok(Some(name))
    }

    /// Marks the disk's end in a bitmap that stands still. QEMU clears the bits behind the new end of a disk
    /// that is made shorter, in this one as in the others, and makes it longer again without a trace.
    fn add_end(&mut self, disk: &Disk, name: &str, is_persistent: bool) -> Result<()> {
        let sector = disk.size.saturating_sub(1) / SECTOR_LEN * SECTOR_LEN;
        // Only a write sets a bit: to a disk of the same size that holds nothing.
        let node = json!({"driver": "null-co", "node-name": names::END, "size": disk.size});
        self.add_node(node)?;
        let marked = self.mark_end(disk, name, is_persistent, sector);
        marked.and(sweep::delete(&mut self.monitor, names::END))
    }

    fn mark_end(&mut self, disk: &Disk, name: &str, is_persistent: bool, at: u64) -> Result<()> {
        let mark = json!({
            "node": names::END, "name": names::TEMPORARY, "granularity": GRANULARITY,
        });
        self.monitor.tell("block-dirty-bitmap-add", mark)?;
        let line = format!("qemu-io {} \"write -q {at} {SECTOR_LEN}\"", names::END);
        self.monitor.tell("human-monitor-command", json!({"command-line": line}))?;
        let end = json!({
            "node": disk.node, "name": end_of(name), "granularity": GRANULARITY,
            "persistent": is_persistent, "disabled": true,
        });
        self.monitor.tell("block-dirty-bitmap-add", end)?;
        let from = json!([{"node": names::END, "name": names::TEMPORARY}]);
        let merge = json!({"node": disk.node, "target": end_of(name), "bitmaps": from});
        self.monitor.tell("block-dirty-bitmap-merge", merge)
    }

    fn add_recording(
        &mut self,
        disk: &Disk,
        name: &str,
        observer: &dyn Observer,
    ) -> Result<Option<Recording>> {
        let mut bitmap = json!({"node": disk.node, "name": name, "granularity": GRANULARITY});
        // Nobody would notice who writes to a file with its data while QEMU does not run.
        if disk.format == "qcow2" && !disk.has_data_file {
            bitmap["persistent"] = true.into();
            match self.monitor.call("block-dirty-bitmap-add", bitmap.clone()) {
                Ok(_) => return Ok(Some(Recording { is_persistent: true })),
                // An image of version 2 cannot keep one; QEMU can, as long as it runs.
                Err(Refusal::Refused { .. }) => bitmap["persistent"] = false.into(),
                Err(lost) => return Err(self.monitor.failed(lost)),
            }
        }
        match self.monitor.call("block-dirty-bitmap-add", bitmap) {
            Ok(_) => Ok(Some(Recording { is_persistent: false })),
            Err(Refusal::Refused { why, .. }) => {
                let disk = &disk.name;
                observer.notice(&format!("what changes in {disk} cannot be recorded: {why}"));
                Ok(None)
            }
            Err(lost) => Err(self.monitor.failed(lost)),
        }
    }

    /// Makes the instant: file systems at rest if there is an agent, and the VM stopped for as long as
    /// it takes if there is more than one disk.
    ///
    /// # Errors
    /// What was made is left to [`clear`](Shot::clear); the VM runs on as before.
    pub fn take(&mut self, observer: &dyn Observer) -> Result<()> {
        let Some(mut agent) = self.agent(observer) else { return self.insert() };
        let channel = agent.dup().map_err(|error| self.cannot_share(error))?;
        let guard = Guard::start(Watched { monitor: None, agent: Some(channel) })?;
        freeze(&mut agent, observer);
        let taken = self.insert();
        // Even where freezing failed: some may be frozen.
        agent.thaw().map_err(|why| {
            Error::new(ErrorKind::Io, "the guest's file systems could not be thawed by its agent")
                .on(self.monitor.label())
                .because(why)
                .meaning("nothing was committed; the guest may stand still")
                .hint("see that the guest goes on: `fsfreeze --unfreeze` in it")
        })?;
        taken.and_then(|()| guard.dismiss())
    }

    fn cannot_share(&self, error: std::io::Error) -> Error {
        Error::io("cannot share a connection", self.monitor.label(), error)
    }

    /// Puts the filters between the devices and their disks, all at one instant.
    fn insert(&mut self) -> Result<()> {
        if self.disks.len() <= 1 {
            return self.insert_each();
        }
        // Whoever stopped the VM before knows why it is to stand.
        let status = status(&mut self.monitor)?;
        if status != "running" {
            return self.while_it_stands(&status);
        }
        let connection = self.monitor.dup().map_err(|error| self.cannot_share(error))?;
        let guard = Guard::start(Watched { monitor: Some(connection), agent: None })?;
        self.add_node(json!({"driver": "null-co", "node-name": names::STOPPED, "size": 0}))?;
        let before = self.monitor.turns();
        let stopped = self.monitor.tell("stop", json!({}));
        // The event comes before the answer: without one it was somebody else who stopped it meanwhile.
        let is_ours = self.monitor.turns().stopped > before.stopped;
        let made = stopped.and_then(|()| self.while_it_stands("paused"));
        let mut resumed = self.run_on(is_ours);
        if resumed.is_err() && self.monitor.is_gone() {
            // The connection only, as it seems: whoever passed it on went.
            self.monitor = Monitor::connect(&self.plan.monitor)?;
            resumed = self.run_on(is_ours);
        }
        // Without the guard's leave it has the VM run on.
        made.and(resumed.and_then(|()| guard.dismiss()))
    }

    /// Has the VM run on, if it was we who stopped it.
    fn run_on(&mut self, is_ours: bool) -> Result<()> {
        if is_ours {
            self.monitor.tell("cont", json!({}))?;
        }
        sweep::delete(&mut self.monitor, names::STOPPED)
    }

    /// Puts the filters in while the VM stands, and sees that it did.
    fn while_it_stands(&mut self, status_before: &str) -> Result<()> {
        let before = self.monitor.turns();
        self.insert_each()?;
        // An answer brings along the events before it.
        let status = status(&mut self.monitor)?;
        match status == status_before && self.monitor.turns().resumed == before.resumed {
            true => Ok(()),
            false => Err(Error::new(ErrorKind::SourceUnusable, "somebody had the VM run on")
                .on(self.monitor.label())
                .meaning("its disks are not of one instant; nothing was committed")
                .hint("run this again")),
        }
    }

    /// The agent, if there is one and it is wanted.
    fn agent(&mut self, observer: &dyn Observer) -> Option<Agent> {
        if !self.plan.freeze {
            return None;
        }
        let known = self.plan.agent.clone();
        let socket = known.or_else(|| vm::agent_socket(&mut self.monitor))?;
        match Agent::connect(&socket) {
            Ok(agent) => Some(agent),
            Err(why) => {
                let socket = socket.display();
                observer.notice(&format!(
                    "the guest agent at {socket} is not asked to freeze: {why}; the disks are as after \
                     a loss of power"
                ));
                None
            }
        }
    }

    fn insert_each(&mut self) -> Result<()> {
        for (number, held) in self.disks.iter().enumerate() {
            sweep::insert(&mut self.monitor, &held.disk.device, &named(names::FILTER, number))?;
        }
        Ok(())
    }

    /// Opens the disks as they were at the instant, in order.
    ///
    /// # Errors
    /// What was made is left to [`clear`](Shot::clear).
    pub fn open(&mut self, io: IoEngine, cancel: &Cancel) -> Result<Vec<NbdDevice>> {
        self.serve()?;
        let mut devices = Vec::new();
        for number in 0..self.disks.len() {
            cancel.check()?;
            let snapshot = named(names::SNAPSHOT, number);
            self.add_node(json!({
                "driver": "snapshot-access",
                "node-name": snapshot,
                "file": named(names::FILTER, number),
            }))?;
            let name = named(names::EXPORT, number);
            self.export(&name, &snapshot, &json!([]))?;
            let device = self.connect(&name, &[], io, cancel)?;
            devices.push(device.with_label(&self.label_of(number)));
        }
        Ok(devices)
    }

    /// Connects to an export, believing as much of what QEMU says of it as can be.
    fn connect(
        &self,
        export: &str,
        contexts: &[String],
        io: IoEngine,
        cancel: &Cancel,
    ) -> Result<NbdDevice> {
        let uri = self.uri(export)?;
        match self.monitor.version() >= OLDEST_WITH_LONG_READS {
            true => NbdDevice::connect(&uri, contexts, io, cancel),
            false => NbdDevice::connect_by_clusters(&uri, contexts, CLUSTER_LEN, io, cancel),
        }
    }

    /// What messages call a disk.
    pub fn label_of(&self, number: usize) -> String {
        let name = self.disks.get(number).map_or("", |held| &held.disk.name);
        format!("qemu:{}/{name}", self.label())
    }

    /// Starts QEMU's NBD server on a socket of ours.
    fn serve(&mut self) -> Result<()> {
        let folder = Path::new(SOCKETS).join(format!("voltar-{:016x}", rand::random::<u64>()));
        let shown = folder.display().to_string();
        let failed = |error| Error::io("cannot make a socket", &*shown, error);
        DirBuilder::new().mode(0o700).create(&folder).map_err(failed)?;
        let path = folder.join("nbd");
        let made = UnixListener::bind(&path).and_then(|listener| {
            let mut options = OpenOptions::new();
            // The socket's inode: enough to connect to it once it has no name any more.
            let socket = options.read(true).custom_flags(OFlag::O_PATH.bits()).open(&path)?;
            std::fs::remove_file(&path)?;
            Ok((listener, socket))
        });
        let removed = std::fs::remove_dir(&folder);
        let (listener, socket) = made.map_err(failed)?;
        removed.map_err(failed)?;
        self.add_node(json!({"driver": "null-co", "node-name": names::SERVER, "size": 0}))?;
        let name = json!({"fdname": names::DESCRIPTOR});
        let passed = self.monitor.call_with_fd("getfd", name.clone(), listener.as_fd());
        passed.map_err(|refusal| self.monitor.failed(refusal))?;
        let address = json!({"addr": {"type": "fd", "data": {"str": names::DESCRIPTOR}}});
        if let Err(refusal) = self.monitor.call("nbd-server-start", address) {
            let is_taken = matches!(&refusal, Refusal::Refused { why, .. } if why.contains(TAKEN));
            if !is_taken {
                return Err(self.monitor.failed(refusal));
            }
            // It is somebody else's, so this tells nothing.
            let told = sweep::delete(&mut self.monitor, names::SERVER);
            let _ = self.monitor.call("closefd", name);
            told?;
            return Err(Error::new(ErrorKind::Busy, "QEMU's NBD server is taken")
                .on(self.label())
                .because(refusal)
                .meaning("the VM runs on; nothing was backed up")
                .hint("it has one only: wait until whoever uses it is done (another backup, a migration)"));
        }
        self.socket = Some(socket);
        Ok(())
    }

    fn export(&mut self, name: &str, node: &str, bitmaps: &Value) -> Result<()> {
        let export = json!({
            "type": "nbd", "id": name, "node-name": node, "name": name, "bitmaps": bitmaps,
        });
        self.monitor.tell("block-export-add", export)
    }

    fn uri(&self, export: &str) -> Result<Uri> {
        let socket = self.socket.as_ref().ok_or_else(|| {
            Error::new(ErrorKind::Internal, "an export is wanted before there is a server")
        })?;
        let path = format!("/proc/self/fd/{}", socket.as_raw_fd());
        Ok(Uri { endpoint: Endpoint::Unix(path.into()), export: export.into(), tls: None })
    }

    /// The name of the bitmap that records from this instant on, and the bytes that its bits tell of.
    pub fn bitmap(&self, number: usize) -> Option<(&str, u64)> {
        let bitmap = self.disks.get(number)?.bitmap.as_deref()?;
        Some((bitmap, GRANULARITY))
    }

    /// Has `read` read what was written since the bitmap `name` was begun: at least that, up to the
    /// instant and a little longer. It gets an export and the name of its context.
    ///
    /// # Errors
    /// In words, if there is no such bitmap on the disk or it is not to be trusted; `read`'s.
    pub fn dirty<T>(
        &mut self,
        number: usize,
        name: &str,
        granularity: u64,
        io: IoEngine,
        cancel: &Cancel,
        read: impl FnOnce(&NbdDevice, &str) -> Result<T, String>,
    ) -> Result<T, String> {
        let words = |error: Error| with_causes(&error);
        let Some(disk) = self.disks.get(number).map(|held| held.disk.clone()) else {
            return Err("there is no such disk".into());
        };
        let node = &disk.node;
        self.check_bitmap(&disk, name, granularity)?;
        self.asked.push(name.to_owned());
        let copy = named(names::TEMPORARY, number);
        let export = named(names::DIRTY, number);
        let copied = self.copy_bitmap(node, name, &copy).and_then(|()| {
            let bitmaps = json!([{"node": node, "name": copy}]);
            self.export(&export, &named(names::SNAPSHOT, number), &bitmaps)
        });
        let outcome = copied.map_err(words).and_then(|()| {
            let context = format!("qemu:dirty-bitmap:{copy}");
            let device = self.connect(&export, std::slice::from_ref(&context), io, cancel);
            read(&device.map_err(words)?, &context)
        });
        let ended = sweep::end_export(&mut self.monitor, &export);
        let removed = sweep::remove_bitmap(&mut self.monitor, node, &copy);
        let outcome = outcome?;
        ended.and(removed).map_err(words)?;
        // Still there, and still recording: nobody took it away and made another meanwhile.
        self.check_bitmap(&disk, name, granularity)?;
        Ok(outcome)
    }

    fn check_bitmap(&mut self, disk: &Disk, name: &str, granularity: u64) -> Result<(), String> {
        let nodes = vm::nodes(&mut self.monitor).map_err(|error| error.to_string())?;
        let node = nodes.iter().find(|node| node.name == disk.node);
        let bitmaps = node.map(|node| &node.dirty_bitmaps[..]).unwrap_or_default();
        let Some(bitmap) = bitmaps.iter().find(|bitmap| bitmap.name == name) else {
            return Err(
                "the bitmap that was begun with the last backup is gone: QEMU was started \
                        anew, or somebody removed it"
                    .into(),
            );
        };
        match bitmap {
            bitmap if bitmap.inconsistent => {
                Err("the bitmap was not saved when QEMU ended: it is inconsistent".into())
            }
            bitmap if !bitmap.recording => Err("somebody disabled the bitmap".into()),
            bitmap if bitmap.granularity != granularity => {
                Err("the bitmap is another one: its granularity is not what it was".into())
            }
            bitmap if bitmap.busy => Err("somebody else uses the bitmap".into()),
            bitmap if bitmap.persistent && disk.has_data_file => {
                Err("the disk's data is in a file of its own, to which others could write".into())
            }
            _ if !bitmaps.iter().any(|it| it.name == end_of(name) && it.count > 0) => {
                Err("the disk was made shorter since, and the bitmap does not tell what was behind"
                    .into())
            }
            _ => Ok(()),
        }
    }

    /// Copies a bitmap that goes on recording into one that stands still.
    fn copy_bitmap(&mut self, node: &str, name: &str, copy: &str) -> Result<()> {
        let new = json!({
            "node": node, "name": copy, "granularity": GRANULARITY, "disabled": true,
        });
        self.monitor.tell("block-dirty-bitmap-add", new)?;
        let merge = json!({"node": node, "target": copy, "bitmaps": [name]});
        self.monitor.tell("block-dirty-bitmap-merge", merge)
    }

    /// Looks whether what is read of a disk is still the instant.
    ///
    /// # Errors
    /// Once it is not.
    pub fn check(&mut self, number: usize, device: &NbdDevice) -> Result<()> {
        let Some(held) = self.disks.get(number) else { return Ok(()) };
        let filter = named(names::FILTER, number);
        let label = self.label_of(number);
        let uses = vm::uses(&mut self.monitor)?;
        let is_in = uses.iter().any(|used| used.device == held.disk.device && used.root == filter);
        let broken = |why: &str, hint: String| {
            Err(Error::new(ErrorKind::SourceUnusable, why)
                .on(&*label)
                .meaning("the guest was spared and runs on; nothing was committed")
                .hint(hint))
        };
        if !is_in {
            let why = "somebody changed what the VM's device uses while it was read";
            return broken(why, "leave the VM's disks as they are during a backup".into());
        }
        let mut probe = [0; PROBE_LEN];
        let len = probe.len().min(held.disk.size as usize);
        let is_scarce = held.area.is_scarce().unwrap_or(true);
        if !is_scarce && device.read_at(&mut probe[..len], 0).is_ok() {
            return Ok(());
        }
        let is_full = held.area.is_full().unwrap_or(true);
        let (folder, used) = (held.area.folder(), held.area.used().unwrap_or_default() >> 20);
        match is_full {
            true => broken(
                &format!("the fleecing area in {folder} is full: {used} MiB"),
                "name a folder with more room (--fleece DIR), raise --fleece-limit, or back up when the \
                 guest writes less"
                    .into(),
            ),
            false => broken(
                &format!("the snapshot broke: the fleecing area in {folder} failed, or took longer \
                          than {PATIENCE_S} s for a write"),
                "name a folder on a faster disk: --fleece DIR".into(),
            ),
        }
    }

    /// How long the guest's writes to a disk took since this was asked last, on average; `None` if there
    /// were none, or QEMU does not say.
    pub fn write_latency(&mut self, number: usize) -> Option<Duration> {
        let held = self.disks.get_mut(number)?;
        let now = vm::writes(&mut self.monitor, &held.disk.device)?;
        let before = held.writes.replace(now)?;
        let count = now.count.checked_sub(before.count).filter(|count| *count > 0)?;
        let total_ns = now.total_ns.checked_sub(before.total_ns)?;
        Some(Duration::from_nanos(total_ns / count))
    }

    /// Takes away all that was made, at any stage, but the bitmaps that the next backup needs: of a new
    /// base its own, which go on recording, and otherwise those that were there before. Once it was done
    /// there is nothing more to do.
    ///
    /// # Errors
    /// Names what is left.
    pub fn clear(&mut self, outcome: Outcome) -> Result<()> {
        if !std::mem::take(&mut self.is_dirty) {
            return Ok(());
        }
        let swept = sweep(&mut self.monitor);
        if self.monitor.is_gone() {
            // With QEMU went all that was in it.
            return Ok(());
        }
        let new: Vec<String> = self
            .disks
            .iter()
            .filter_map(|held| held.bitmap.clone())
            .flat_map(|name| [end_of(&name), name])
            .collect();
        let is_new = |name: &str| new.iter().any(|it| it == name);
        let nodes: Vec<&str> = self.disks.iter().map(|held| &*held.disk.node).collect();
        let (prefix, asked) = (&self.plan.bitmaps.prefix, &self.asked);
        let was_asked =
            |name: &str| asked.iter().any(|it| it == name.strip_suffix("-end").unwrap_or(name));
        let is_ours = |name: &str| name.starts_with(prefix) || was_asked(name);
        let removed = remove_bitmaps(&mut self.monitor, &nodes, |name, number| match outcome {
            // Of series that ended nobody tells us.
            // Each has another one beside it that marks the disk's end.
            Outcome::Base if number >= 2 * BITMAPS_MAX && !is_new(name) => true,
            Outcome::Base => is_ours(name) && !is_new(name),
            Outcome::Nothing => is_new(name),
        });
        swept.and(removed)
    }
}

/// Removes bitmaps of ours, from these nodes: those that are `unwanted`, by name and by how many are newer.
fn remove_bitmaps(
    monitor: &mut Monitor,
    nodes: &[&str],
    unwanted: impl Fn(&str, usize) -> bool,
) -> Result<()> {
    for node in vm::nodes(monitor)?.iter().filter(|node| nodes.contains(&&*node.name)) {
        // QEMU tells the newest first.
        let ours =
            node.dirty_bitmaps.iter().filter(|bitmap| bitmap.name.starts_with(super::PREFIX));
        for (number, bitmap) in ours.enumerate() {
            if unwanted(&bitmap.name, number) {
                sweep::remove_bitmap(monitor, &node.name, &bitmap.name)?;
            }
        }
    }
    Ok(())
}

/// What the bitmap is called that marks where the disk ended when `name` was begun.
pub fn end_of(name: &str) -> String {
    format!("{name}-end")
}

fn named(prefix: &str, number: usize) -> String {
    format!("{prefix}{number}")
}

fn status(monitor: &mut Monitor) -> Result<String> {
    let status = monitor.ask("query-status", json!({}))?;
    Ok(status["status"].as_str().unwrap_or_default().to_owned())
}

/// Freezes the guest's file systems. A guest that cannot is told of, and the backup goes on.
fn freeze(agent: &mut Agent, observer: &dyn Observer) {
    let told = match agent.freeze() {
        Ok(count) => format!("{count} file systems of the guest rested at the instant"),
        Err(why) => {
            format!("the guest agent cannot freeze: {why}; the disks are as after a loss of power")
        }
    };
    observer.notice(&told);
}

fn check_version(monitor: &Monitor) -> Result<()> {
    let version = monitor.version();
    match version >= OLDEST {
        true => Ok(()),
        false => Err(Error::new(
            ErrorKind::Unsupported,
            format!("QEMU {version} cannot hold a disk still without danger to its guest"),
        )
        .on(monitor.label())
        .meaning("the VM was not touched")
        .hint("QEMU 7.1 and later can")),
    }
}

/// Refuses disks that QEMU would not survive to export.
fn check_thread(monitor: &mut Monitor, disk: &Disk) -> Result<()> {
    let version = monitor.version();
    if version >= OLDEST_WITH_THREADS {
        return Ok(());
    }
    let Some(thread) = vm::iothread(monitor, &disk.device) else { return Ok(()) };
    let thread = thread.rsplit('/').next().unwrap_or_default().to_owned();
    let message =
        format!("QEMU {version} may crash when a disk in a thread of its own is exported");
    Err(Error::new(ErrorKind::Unsupported, message)
        .on(format!("qemu:{}/{}", monitor.label(), disk.name))
        .because(format!("its device has iothread={thread}"))
        .meaning("the VM was not touched")
        .hint("QEMU 9.0 and later can; or start the VM without iothread for this disk"))
}

/// The disks that are wanted.
fn chosen(disks: Vec<Disk>, wanted: Option<&[String]>, label: &str) -> Result<Vec<Disk>> {
    let list = |disks: &[Disk]| {
        let names: Vec<&str> = disks.iter().map(|disk| &*disk.name).collect();
        match names.is_empty() {
            true => "it has none that its guest can write to".to_owned(),
            false => format!("it has {}", names.join(", ")),
        }
    };
    let Some(wanted) = wanted else {
        return match disks.is_empty() {
            false => Ok(disks),
            true => Err(Error::new(ErrorKind::SourceUnusable, "the VM has no disk to back up")
                .on(label)
                .hint(list(&disks))),
        };
    };
    let missing = wanted.iter().find(|name| !disks.iter().any(|disk| disk.name == **name));
    if let Some(missing) = missing {
        return Err(Error::new(ErrorKind::NotFound, "the VM has no such disk")
            .on(format!("qemu:{label}/{missing}"))
            .hint(list(&disks)));
    }
    if wanted.iter().collect::<BTreeSet<_>>().len() < wanted.len() {
        return Err(Error::new(ErrorKind::InvalidRequest, "a disk of the VM is named twice")
            .on(format!("qemu:{label}")));
    }
    Ok(disks.into_iter().filter(|disk| wanted.contains(&disk.name)).collect())
}

/// The words that QEMU was started with; none if the system does not say.
fn command_line(pid: i32) -> Vec<String> {
    let bytes = match pid > 0 {
        true => std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default(),
        false => Vec::new(),
    };
    let words = bytes.split(|byte| *byte == 0).filter(|word| !word.is_empty());
    words.map(|word| String::from_utf8_lossy(word).into_owned()).collect()
}
