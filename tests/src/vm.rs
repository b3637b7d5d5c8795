//! Virtual machines that run while their disks are backed up: QEMU's software emulation, without an
//! operating system. They end with the test.
//!
//! A machine has two monitors: one is voltar's, by the other the test looks on. What a guest would
//! write is written through the very device that the guest sees (`qemu-io -d`), so that whatever is
//! put between device and disk meanwhile gets it; or there is a guest that writes
//! ([`crate::writer`]), which stands still when the machine does.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::data::Scratch;
use crate::device::system;
use crate::qmp::Qmp;
use crate::skip::skip;
use crate::writer::{Progress, Writer, progress, progress_line};

/// Longest that a machine may take to end, or its guest to write.
const PATIENCE: Duration = Duration::from_secs(30);

/// What everything that voltar puts into a machine is called by.
pub const MARK: &str = "voltar-";

/// A directory for `test`, if QEMU is here.
pub fn scratch(test: &str) -> Option<Scratch> {
    for program in ["qemu-system-x86_64", "qemu-img", "setpriv", "stdbuf", "as", "ld"] {
        if let Err(why) = system(program, &["--version"]) {
            skip(test, &format!("QEMU cannot run here: {why}"));
            return None;
        }
    }
    Some(Scratch::new())
}

/// What a disk is, and how the machine sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A raw file, a virtio disk.
    Raw,
    /// A qcow2 image, a virtio disk.
    Qcow2,
    /// The same below a filter that limits its rate.
    Throttled,
    /// The same the old way, by `-drive`: its nodes have no names of the user's.
    Legacy,
    /// A qcow2 image, a SCSI disk.
    Scsi,
    /// A qcow2 image, a virtio disk with a thread of its own.
    IoThread,
}

impl Kind {
    /// All there are.
    pub const ALL: [Kind; 6] =
        [Kind::Raw, Kind::Qcow2, Kind::Throttled, Kind::Legacy, Kind::Scsi, Kind::IoThread];

    fn format(self) -> &'static str {
        if self == Kind::Raw { "raw" } else { "qcow2" }
    }
}

/// A disk of a machine.
#[derive(Clone, Debug)]
pub struct Disk {
    /// The device's name.
    pub id: String,
    /// What it is.
    pub kind: Kind,
    /// Its image.
    pub file: PathBuf,
}

/// Makes the images of disks `vd0`, `vd1` and so on, which hold these bytes.
pub fn disks(scratch: &Scratch, kinds: &[Kind], contents: &[&[u8]]) -> Vec<Disk> {
    assert_eq!(kinds.len(), contents.len());
    let made = kinds.iter().zip(contents).enumerate();
    made.map(|(number, (kind, bytes))| disk(scratch, &format!("vd{number}"), *kind, bytes))
        .collect()
}

fn disk(scratch: &Scratch, id: &str, kind: Kind, bytes: &[u8]) -> Disk {
    let raw = scratch.write(&format!("{id}.raw"), bytes);
    let disk = |file| Disk { id: id.into(), kind, file };
    if kind == Kind::Raw {
        return disk(raw);
    }
    let image = scratch.path(&format!("{id}.qcow2"));
    let [from, to] = [&raw, &image].map(|path| path.to_str().unwrap());
    system("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", from, to]).unwrap();
    fs::remove_file(raw).unwrap();
    disk(image)
}

/// A dirty bitmap, as QEMU tells of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bitmap {
    /// Its name.
    pub name: String,
    /// Bytes of which each bit tells.
    pub granularity: u64,
    /// Whether it takes note of writes.
    pub is_recording: bool,
    /// Whether it outlives the machine.
    pub is_persistent: bool,
    /// Whether it was not saved, and is worth nothing.
    pub is_inconsistent: bool,
}

/// A machine that runs; killed when dropped.
#[derive(Debug)]
pub struct Vm {
    child: Child,
    socket: PathBuf,
    complaints: PathBuf,
    printed: PathBuf,
    monitor: Mutex<Qmp>,
    disks: Vec<Disk>,
    /// The node that each device had at the beginning.
    roots: BTreeMap<String, String>,
    writer: Option<Writer>,
}

impl Vm {
    /// A machine with these disks and nothing that writes to them.
    pub fn idle(scratch: &Scratch, disks: &[Disk]) -> Vm {
        Vm::boot(scratch, disks, None)
    }

    /// A machine whose guest writes to its first two disks, from step `first` on.
    pub fn writing(scratch: &Scratch, disks: &[Disk], writer: &Writer, first: u32) -> Vm {
        let vm = Vm::boot(scratch, disks, Some((writer, first)));
        vm.until_step(first);
        vm
    }

    fn boot(scratch: &Scratch, disks: &[Disk], guest: Option<(&Writer, u32)>) -> Vm {
        let [socket, look] = ["voltar.qmp", "test.qmp"].map(|name| scratch.path(name));
        let [complaints, printed] =
            ["stderr", "stdout"].map(|name| scratch.path(&format!("qemu.{name}")));
        let mut command = Command::new("setpriv");
        // What `qemu-io` prints goes to standard output, where it must not wait for company.
        command.args(["--pdeathsig", "KILL", "stdbuf", "--output=L", "qemu-system-x86_64"]);
        command.args(["-accel", "tcg", "-m", "64M", "-nodefaults", "-no-user-config"]);
        command.args(["-display", "none", "-boot", "strict=on"]);
        for socket in [&socket, &look] {
            // What is left of a machine before this one is not its socket.
            drop(fs::remove_file(socket));
            command.arg("-qmp").arg(format!("unix:{},server=on,wait=off", socket.display()));
        }
        if let Some((writer, first)) = guest {
            command.args(boot_disk(&writer.boot_disk(scratch, first)));
        }
        let shared = ["throttle-group,id=limits,x-iops-total=100000", "iothread,id=thread"];
        command.args(shared.iter().flat_map(|object| ["-object", object]));
        command.args(["-device", "virtio-scsi-pci,id=scsi"]);
        for (at, disk) in disks.iter().enumerate() {
            command.args(attached(disk, at + 1));
        }
        let child = command
            .stdin(Stdio::null())
            .stdout(File::create(&printed).unwrap())
            .stderr(File::create(&complaints).unwrap())
            .spawn()
            .unwrap();
        let monitor = Mutex::new(Qmp::connect(&look));
        let writer = guest.map(|(writer, _)| writer.clone());
        let disks = disks.to_vec();
        let roots = BTreeMap::new();
        let mut vm = Vm { child, socket, complaints, printed, monitor, disks, roots, writer };
        vm.roots = vm.roots_now();
        vm
    }

    /// The monitor that is voltar's.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The source that is this machine, or a disk of it.
    pub fn source(&self, device: Option<&str>) -> String {
        source(&self.socket, device)
    }

    /// The test's monitor.
    pub fn monitor(&self) -> MutexGuard<'_, Qmp> {
        self.monitor.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a command returns. It must succeed.
    #[track_caller]
    pub fn execute(&self, command: &str, arguments: Value) -> Value {
        self.monitor().execute(command, arguments)
    }

    /// What QEMU complained about.
    pub fn complaints(&self) -> String {
        fs::read_to_string(&self.complaints).unwrap_or_default()
    }

    /// QEMU's process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The disks it was started with.
    pub fn disks(&self) -> &[Disk] {
        &self.disks
    }

    /// Whether the guest runs.
    pub fn is_running(&self) -> bool {
        self.execute("query-status", json!({}))["running"] == true
    }

    /// Writes `len` bytes `pattern` at `offset` through a device. The guest must see it succeed.
    #[track_caller]
    pub fn write(&self, device: &str, pattern: u8, offset: u64, len: u64) {
        let printed = self.io(device, &format!("write -P {pattern} {offset} {len}"));
        assert!(printed.starts_with(&format!("wrote {len}/{len} bytes")), "{printed}");
    }

    /// The range of a device holds nothing but `pattern`.
    #[track_caller]
    pub fn assert_holds(&self, device: &str, pattern: u8, offset: u64, len: u64) {
        let printed = self.io(device, &format!("read -P {pattern} {offset} {len}"));
        let is_read = printed.starts_with(&format!("read {len}/{len} bytes"));
        assert!(is_read && !printed.contains("failed"), "{device}, {offset}: {printed}");
    }

    /// Has a command of `qemu-io` done through a device; what it printed.
    pub fn io(&self, device: &str, command: &str) -> String {
        let path = self.device(device)["qdev"].as_str().unwrap().to_string();
        let mut monitor = self.monitor();
        let before = fs::read(&self.printed).unwrap().len();
        let complaint = monitor.human(&format!("qemu-io -d {path} \"{command}\""));
        let printed =
            String::from_utf8_lossy(&fs::read(&self.printed).unwrap()[before..]).into_owned();
        printed + &complaint
    }

    /// What `query-block` tells of a device.
    #[track_caller]
    pub fn device(&self, device: &str) -> Value {
        let blocks = self.execute("query-block", json!({}));
        let found = blocks.as_array().unwrap().iter().find(|block| id_of(block) == Some(device));
        found.unwrap_or_else(|| panic!("no device {device}: {blocks}")).clone()
    }

    /// The path by which `qom-set` knows a device.
    pub fn qom_path(&self, device: &str) -> String {
        match self.device(device)["qdev"].as_str() {
            Some(path) if path.starts_with('/') => path.into(),
            _ => format!("/machine/peripheral/{device}"),
        }
    }

    /// The node that a device had at the beginning.
    pub fn root(&self, device: &str) -> &str {
        &self.roots[device]
    }

    fn roots_now(&self) -> BTreeMap<String, String> {
        let node = |disk: &Disk| {
            let device = self.device(&disk.id);
            let node = device["inserted"]["node-name"].as_str().unwrap_or_default();
            (disk.id.clone(), node.to_string())
        };
        self.disks.iter().map(node).collect()
    }

    /// The bitmaps of voltar's on a device that record what changes.
    pub fn bitmaps(&self, device: &str) -> Vec<Bitmap> {
        let mut found: Vec<Bitmap> = Vec::new();
        let nodes = self.execute("query-named-block-nodes", json!({ "flat": true }));
        let below = self.nodes_below(self.root(device));
        for node in nodes.as_array().unwrap() {
            if !below.iter().any(|name| node["node-name"] == name.as_str()) {
                continue;
            }
            let bitmaps = node["dirty-bitmaps"].as_array().into_iter().flatten().map(bitmap);
            // Each has one beside it that marks where the disk ended.
            let records = |it: &Bitmap| it.name.starts_with(MARK) && !it.name.ends_with("-end");
            found.extend(bitmaps.filter(records));
        }
        found
    }

    /// A node and all that it consists of, by their names.
    fn nodes_below(&self, node: &str) -> Vec<String> {
        let graph = self.graph();
        let name = |id: &Value| {
            let nodes = graph["nodes"].as_array().unwrap();
            let found =
                nodes.iter().find(|node| node["id"] == *id && node["type"] == "block-driver");
            Some(found?["name"].as_str()?.to_string())
        };
        let edges: Vec<(String, String)> = graph["edges"]
            .as_array()
            .unwrap()
            .iter()
            .filter_map(|edge| Some((name(&edge["parent"])?, name(&edge["child"])?)))
            .collect();
        let mut below = vec![node.to_string()];
        let mut at = 0;
        while at < below.len() {
            let children = edges.iter().filter(|(parent, _)| *parent == below[at]);
            let children: Vec<String> = children.map(|(_, child)| child.clone()).collect();
            below.extend(
                children.into_iter().filter(|child| !below.contains(child)).collect::<Vec<_>>(),
            );
            at += 1;
        }
        below
    }

    /// The graph of block nodes.
    pub fn graph(&self) -> Value {
        self.execute("x-debug-query-block-graph", json!({}))
    }

    /// The devices between which and their disks something was put.
    pub fn held(&self) -> Vec<String> {
        let now = self.roots_now().into_iter();
        now.filter(|(device, root)| *root != self.roots[device]).map(|(device, _)| device).collect()
    }

    /// Everything in the machine that is voltar's, and what it changed, but for bitmaps. Not to
    /// be asked during a run, which it would be in the way of: there is one NBD server.
    pub fn strays(&self) -> Vec<String> {
        let mut strays = Vec::new();
        let lists = [
            ("query-named-block-nodes", "node-name"),
            ("query-block-exports", "id"),
            ("query-jobs", "id"),
            ("query-block-jobs", "device"),
            ("query-fdsets", "fdset-id"),
        ];
        for (command, name) in lists {
            let all = self.execute(command, json!({}));
            let names = all.as_array().unwrap().iter().map(|item| &item[name]);
            // Nodes are the user's as well; there is nothing else that a test has.
            let is_node = command == "query-named-block-nodes";
            let is_ours = |name: &&Value| !is_node || name.as_str().unwrap().starts_with(MARK);
            strays.extend(names.filter(is_ours).map(|name| format!("{command}: {name}")));
        }
        strays.extend(self.held().into_iter().map(|device| format!("{device} is not on its disk")));
        strays.extend(self.nbd_server().map(|why| format!("an NBD server: {why}")));
        strays.extend(self.deleted_files().map(|file| format!("an open file: {file}")));
        strays
    }

    /// Why QEMU starts no NBD server, if it does not.
    fn nbd_server(&self) -> Option<String> {
        let path = self.socket.with_file_name("stray.nbd");
        let address = json!({ "type": "unix", "data": { "path": path } });
        let mut monitor = self.monitor();
        let started = monitor.attempt("nbd-server-start", json!({ "addr": address }));
        if started.is_ok() {
            monitor.execute("nbd-server-stop", json!({}));
            drop(fs::remove_file(path));
        }
        started.err()
    }

    /// Files without a name that QEMU holds open, as fleecing files are.
    fn deleted_files(&self) -> impl Iterator<Item = String> {
        let entries = fs::read_dir(format!("/proc/{}/fd", self.pid())).unwrap();
        let targets = entries.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
        let names = targets.map(|target| target.to_string_lossy().into_owned());
        names.filter(|name| name.ends_with(" (deleted)") && !name.starts_with("/memfd:"))
    }

    /// The guest runs, its devices are as they were, and there is nothing of voltar's but `bitmaps`
    /// bitmaps on each disk.
    #[track_caller]
    pub fn assert_unharmed(&self, bitmaps: usize) {
        assert!(self.is_running(), "the guest does not run");
        let strays = self.strays();
        assert!(strays.is_empty(), "left in the machine: {strays:#?}");
        for disk in &self.disks {
            let found = self.bitmaps(&disk.id);
            assert_eq!(found.len(), bitmaps, "bitmaps of {}: {found:#?}", disk.id);
        }
        if let Some(progress) = self.writer.as_ref().map(|_| self.progress()) {
            assert_eq!(progress.errors, 0, "a write of the guest failed");
        }
    }

    /// How far the guest came.
    #[track_caller]
    pub fn progress(&self) -> Progress {
        let printed = self.monitor().human(&progress_line());
        progress(&printed).unwrap_or_else(|| panic!("{printed}"))
    }

    /// Waits until both disks have step `step`: the guest runs.
    #[track_caller]
    pub fn until_step(&self, step: u32) {
        let is_there = self.comes_to(step, PATIENCE);
        assert!(is_there, "the guest stands still: {:?}", self.progress());
    }

    /// Waits until the guest has made so many steps more than it has now.
    #[track_caller]
    pub fn until_steps_more(&self, steps: u32) {
        self.until_step(self.progress().done[1] + steps);
    }

    /// Whether the guest makes so many steps more within `patience`.
    pub fn steps_within(&self, patience: Duration, steps: u32) -> bool {
        self.comes_to(self.progress().done[1] + steps, patience)
    }

    fn comes_to(&self, step: u32, patience: Duration) -> bool {
        let started = Instant::now();
        while self.progress().done[1] < step {
            if started.elapsed() > patience {
                return false;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        true
    }

    /// Ends the machine as its user does: its disks are closed. The last step that was done.
    pub fn shut_down(mut self) -> u32 {
        self.execute("stop", json!({}));
        let last = self.writer.is_some().then(|| self.progress().done[0]);
        self.execute("quit", json!({}));
        let started = Instant::now();
        while self.child.try_wait().unwrap().is_none() {
            assert!(started.elapsed() < PATIENCE, "QEMU does not end: {}", self.complaints());
            std::thread::sleep(Duration::from_millis(5));
        }
        last.unwrap_or(0)
    }

    /// Ends it with `kill -9`.
    pub fn kill(self) {}
}

impl Drop for Vm {
    fn drop(&mut self) {
        let ended = self.child.try_wait().ok().flatten();
        if let Some(status) = ended.filter(|_| std::thread::panicking()) {
            eprintln!("QEMU had ended by itself, {status}: {}", self.complaints());
        }
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// The source that is a machine, by its monitor, or a disk of it. The volumes' names are the same whatever
/// leads to the machine.
pub fn source(socket: &Path, device: Option<&str>) -> String {
    let socket = socket.display();
    match device {
        None => format!("vm=qemu:{socket}"),
        Some(device) => format!("vm-{device}=qemu:{socket}/{device}"),
    }
}

fn boot_disk(file: &Path) -> Vec<String> {
    let node = json!({
        "driver": "raw", "node-name": "boot", "read-only": true,
        "file": { "driver": "file", "filename": file, "read-only": true },
    });
    let device = "virtio-blk-pci,id=boot,drive=boot,bootindex=0";
    ["-blockdev", &node.to_string(), "-device", device].map(String::from).into()
}

/// The options of a disk, the `order`th of those that the BIOS finds.
fn attached(disk: &Disk, order: usize) -> Vec<String> {
    let Disk { id, kind, file } = disk;
    let format = kind.format();
    let node = json!({
        "driver": format, "node-name": format!("{id}-image"), "discard": "unmap",
        "file": { "driver": "file", "filename": file, "discard": "unmap" },
    });
    let (backend, name) = match kind {
        Kind::Legacy => {
            let file = file.display();
            let drive = format!("if=none,id={id}-drive,format={format},discard=unmap,file={file}");
            (["-drive".into(), drive], format!("{id}-drive"))
        }
        Kind::Throttled => {
            let filter = json!({
                "driver": "throttle", "node-name": format!("{id}-limited"),
                "throttle-group": "limits", "discard": "unmap", "file": node,
            });
            (["-blockdev".into(), filter.to_string()], format!("{id}-limited"))
        }
        _ => (["-blockdev".into(), node.to_string()], format!("{id}-image")),
    };
    let model = match kind {
        Kind::Scsi => "scsi-hd,bus=scsi.0",
        Kind::IoThread => "virtio-blk-pci,iothread=thread",
        _ => "virtio-blk-pci",
    };
    let device = format!("{model},id={id},drive={name},bootindex={order}");
    backend.into_iter().chain(["-device".into(), device]).collect()
}

/// The name of the device of which `query-block` tells.
fn id_of(block: &Value) -> Option<&str> {
    let path = block["qdev"].as_str()?;
    match path.strip_prefix("/machine/peripheral/") {
        Some(rest) => rest.split('/').next(),
        None => Some(path),
    }
}

fn bitmap(value: &Value) -> Bitmap {
    Bitmap {
        name: value["name"].as_str().unwrap().into(),
        granularity: value["granularity"].as_u64().unwrap(),
        is_recording: value["recording"] == true,
        is_persistent: value["persistent"] == true,
        is_inconsistent: value["inconsistent"] == true,
    }
}
