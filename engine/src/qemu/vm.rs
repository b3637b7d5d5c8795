//! What a QEMU says of its VM: disks, the nodes beneath them, bitmaps, and what the machine is.
//!
//! The answers are checked here: a QEMU whose guest broke out of it is as hostile as a disk.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use serde::Deserialize;
use serde_json::{Value, json};

use super::monitor::Monitor;
use crate::error::{Error, ErrorKind, Result};

/// Drivers that pass everything on to their child and keep no bitmaps of their own on disk.
const FILTERS: [&str; 4] = ["throttle", "copy-on-read", "compress", "preallocate"];
/// What the file with its data is to an image.
const DATA_FILE: &str = "data-file";
/// Drivers that stand between a device and its disk for as long as a block job runs.
const JOB_FILTERS: [&str; 4] = ["mirror_top", "commit_top", "backup-top", "copy-before-write"];
/// Most nodes that are gone down from a disk, and most parts of a path.
const DEPTH_MAX: usize = 32;
/// Longest property that is believed, in bytes.
const WORD_LEN_MAX: usize = 4096;
/// Longest name of a device or a node that is believed, in bytes.
const NAME_LEN_MAX: usize = 255;
/// Where QEMU keeps devices: those with a name of their user's, and the others.
const PERIPHERALS: [&str; 2] = ["/machine/peripheral", "/machine/peripheral-anon"];

/// A disk that the guest can write to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk {
    /// What the user calls the device, or else the drive.
    pub name: String,
    /// The device as `query-block` calls it: its id, or its path in QEMU's object model.
    pub device: String,
    /// The node that the device uses.
    pub root: String,
    /// The node that has the format, where bitmaps are kept.
    pub node: String,
    /// That node's driver, which is the image's format.
    pub format: String,
    /// The image as QEMU names it.
    pub file: String,
    /// What that is made upon, from the nearest down, as QEMU names it.
    pub below: Vec<String>,
    /// Whether its data is in a file of its own.
    pub has_data_file: bool,
    /// Its size in bytes.
    pub size: u64,
}

/// A disk that the guest can write to and that is not backed up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeftOut {
    /// What the user calls it.
    pub name: String,
    /// Why.
    pub why: &'static str,
}

/// A dirty bitmap (`BlockDirtyInfo` in `qapi/block-core.json`).
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub struct Bitmap {
    /// Its name; QEMU's own have none.
    #[serde(default)]
    pub name: String,
    /// Bytes that a bit tells of.
    pub granularity: u64,
    /// Bytes that are dirty.
    #[serde(default)]
    pub count: u64,
    /// Whether writes are recorded.
    pub recording: bool,
    /// Whether somebody uses it.
    #[serde(default)]
    pub busy: bool,
    /// Whether it was not saved as it should have been: it tells nothing.
    #[serde(default)]
    pub inconsistent: bool,
    /// Whether it is kept in the image.
    #[serde(default)]
    pub persistent: bool,
}

/// A node (`BlockDeviceInfo`).
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Node {
    /// Its name.
    #[serde(rename = "node-name", default)]
    pub name: String,
    /// Its driver.
    pub drv: String,
    /// What it reads, as QEMU names it.
    #[serde(default)]
    file: String,
    /// Whether it is read-only.
    #[serde(default)]
    ro: bool,
    image: Option<Image>,
    /// Its bitmaps.
    #[serde(default)]
    pub dirty_bitmaps: Vec<Bitmap>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Image {
    virtual_size: u64,
}

#[derive(Debug, Deserialize)]
struct Block {
    #[serde(default)]
    device: String,
    qdev: Option<String>,
    #[serde(default)]
    removable: bool,
    inserted: Option<Node>,
}

/// The edges of QEMU's block graph, by names.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Graph {
    /// Of each node, its children and what they are to it.
    children: BTreeMap<String, Vec<(String, String)>>,
}

#[derive(Debug, Deserialize)]
struct GraphAnswer {
    nodes: Vec<GraphNode>,
    edges: Vec<GraphEdge>,
}

#[derive(Debug, Deserialize)]
struct GraphNode {
    id: u64,
    name: String,
}

#[derive(Debug, Deserialize)]
struct GraphEdge {
    parent: u64,
    child: u64,
    name: String,
}

impl Graph {
    /// Asks for it.
    ///
    /// # Errors
    /// The monitor's.
    pub fn ask(monitor: &mut Monitor) -> Result<Graph> {
        let answer = monitor.ask("x-debug-query-block-graph", json!({}))?;
        Graph::read(answer).map_err(|why| nonsense(monitor.label(), &why))
    }

    fn read(answer: Value) -> Result<Graph, String> {
        let GraphAnswer { nodes, edges } = typed(answer)?;
        let names: BTreeMap<u64, String> =
            nodes.into_iter().map(|node| (node.id, node.name)).collect();
        let mut graph = Graph::default();
        for GraphEdge { parent, child, name } in edges {
            let (Some(parent), Some(child)) = (names.get(&parent), names.get(&child)) else {
                return Err("an edge of the block graph leads nowhere".into());
            };
            graph.children.entry(parent.clone()).or_default().push((name, child.clone()));
        }
        Ok(graph)
    }

    /// What is `role` to `node`.
    pub fn child(&self, node: &str, role: &str) -> Option<&str> {
        let children = self.children.get(node)?;
        children.iter().find(|(name, _)| name == role).map(|(_, child)| &**child)
    }
}

/// What uses a node, and which.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Use {
    /// The device, as `qom-set` takes it.
    pub device: String,
    /// Its node.
    pub root: String,
}

/// The devices and their nodes.
///
/// # Errors
/// The monitor's.
pub fn uses(monitor: &mut Monitor) -> Result<Vec<Use>> {
    let blocks = blocks(monitor)?;
    let used = |block: Block| {
        let (device, node) = (block.qdev?, block.inserted?);
        Some(Use { device, root: node.name })
    };
    Ok(blocks.into_iter().filter_map(used).collect())
}

/// All nodes.
///
/// # Errors
/// The monitor's.
pub fn nodes(monitor: &mut Monitor) -> Result<Vec<Node>> {
    let answer = monitor.ask("query-named-block-nodes", json!({"flat": true}))?;
    typed(answer).map_err(|why| nonsense(monitor.label(), &why))
}

/// What a guest wrote to a disk since QEMU was started (`BlockDeviceStats`).
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
pub struct Writes {
    /// Writes that were done.
    #[serde(rename = "wr_operations")]
    pub count: u64,
    /// How long all of them took together, in nanoseconds.
    #[serde(rename = "wr_total_time_ns")]
    pub total_ns: u64,
}

/// What the guest wrote to a device; `None` if QEMU does not say.
pub fn writes(monitor: &mut Monitor, device: &str) -> Option<Writes> {
    let answer = monitor.call("query-blockstats", json!({})).ok()?;
    let stats = answer.as_array()?.iter().find(|stats| stats["qdev"] == device)?;
    serde_json::from_value(stats["stats"].clone()).ok()
}

/// The disks that the guest can write to, in QEMU's order.
///
/// # Errors
/// The monitor's; `Unsupported` if nothing can be said of one.
pub fn disks(monitor: &mut Monitor) -> Result<(Vec<Disk>, Vec<LeftOut>)> {
    let (blocks, nodes, graph) = (blocks(monitor)?, nodes(monitor)?, Graph::ask(monitor)?);
    disks_of(blocks, &nodes, &graph).map_err(|why| nonsense(monitor.label(), &why))
}

/// Refuses a disk on which a block job runs: what stands between the device and its disk then would be
/// passed by, and what it is to see, lost.
///
/// # Errors
/// `Busy`; the monitor's.
pub fn check_idle(monitor: &mut Monitor, disk: &Disk) -> Result<()> {
    let nodes = nodes(monitor)?;
    let driver = nodes.iter().find(|node| node.name == disk.root).map(|node| &*node.drv);
    match driver.is_some_and(|driver| JOB_FILTERS.contains(&driver)) {
        false => Ok(()),
        true => Err(Error::new(ErrorKind::Busy, "a block job runs on the disk")
            .on(format!("qemu:{}/{}", monitor.label(), disk.name))
            .because(format!("its node {} is in the way", disk.root))
            .meaning("the VM was not touched")
            .hint("wait until the disk is moved, merged or backed up by whoever does that")),
    }
}

/// Refuses a VM that is on its way to another host.
///
/// # Errors
/// `Busy`; the monitor's.
pub fn check_stays(monitor: &mut Monitor) -> Result<()> {
    let answer = monitor.ask("query-migrate", json!({}))?;
    match answer["status"].as_str() {
        None | Some("none" | "completed" | "failed" | "cancelled") => Ok(()),
        Some(_) => Err(Error::new(ErrorKind::Busy, "the VM is being migrated")
            .on(monitor.label())
            .meaning("the VM was not touched")
            .hint("back it up where it arrives")),
    }
}

fn blocks(monitor: &mut Monitor) -> Result<Vec<Block>> {
    let answer = monitor.ask("query-block", json!({}))?;
    typed(answer).map_err(|why| nonsense(monitor.label(), &why))
}

fn disks_of(
    blocks: Vec<Block>,
    nodes: &[Node],
    graph: &Graph,
) -> Result<(Vec<Disk>, Vec<LeftOut>), String> {
    let mut disks: Vec<Disk> = Vec::new();
    let mut left_out = Vec::new();
    let mut names = BTreeSet::new();
    for Block { device: drive, qdev, removable, inserted } in blocks {
        let (Some(device), Some(inserted)) = (qdev, inserted) else { continue };
        if inserted.ro {
            continue;
        }
        let name = checked(name_of(&device, &drive, &inserted.name))?;
        if is_firmware(&device) {
            let why = "it holds variables of the firmware: attach its file";
            left_out.push(LeftOut { name, why });
            continue;
        }
        if removable {
            left_out.push(LeftOut { name, why: "it is a removable medium" });
            continue;
        }
        // What QEMU calls the device's node may be below a filter that it does not show.
        let backend = if drive.is_empty() { &device } else { &drive };
        let root = graph.child(backend, "root").unwrap_or(&inserted.name).to_owned();
        let node = below_filters(&root, nodes, graph)?;
        let size = node.image.as_ref().map_or(0, |image| image.virtual_size);
        if !names.insert(name.clone()) {
            return Err(format!("two disks are called {name:?}"));
        }
        disks.push(Disk {
            name,
            device: checked(device)?,
            root: checked(root)?,
            node: checked(node.name.clone())?,
            format: checked(node.drv.clone())?,
            file: node.file.clone(),
            below: below(&node.name, nodes, graph)?,
            has_data_file: graph.child(&node.name, DATA_FILE).is_some(),
            size,
        });
    }
    Ok((disks, left_out))
}

/// Whether the device is a flash chip of the board: firmware and its variables.
fn is_firmware(device: &str) -> bool {
    device.starts_with("/machine/system.flash")
        || device.split('/').any(|part| part.starts_with("pflash"))
}

/// What the user calls a disk: the device's id, or else the drive's, or else the node's.
fn name_of(device: &str, drive: &str, node: &str) -> String {
    let id = match device.strip_prefix("/machine/peripheral/") {
        Some(path) => path.split('/').next().unwrap_or_default(),
        None if device.contains('/') => "",
        None => device,
    };
    [id, drive, node].into_iter().find(|name| !name.is_empty()).unwrap_or_default().to_owned()
}

/// A name that can stand in a message, a path and a list.
fn checked(name: String) -> Result<String, String> {
    let is_sane = !name.is_empty()
        && name.len() <= NAME_LEN_MAX
        && name.chars().all(|c| !c.is_control() && !c.is_whitespace());
    match is_sane {
        true => Ok(name),
        false => Err(format!("no name: {name:?}")),
    }
}

/// The files that a node is made upon, from the nearest down.
fn below(node: &str, nodes: &[Node], graph: &Graph) -> Result<Vec<String>, String> {
    let (mut files, mut name) = (Vec::new(), node);
    for _ in 0..DEPTH_MAX {
        let Some(backing) = graph.child(name, "backing") else { return Ok(files) };
        let node = below_filters(backing, nodes, graph)?;
        files.push(node.file.clone());
        if let Some(data) = graph.child(&node.name, DATA_FILE) {
            let data = nodes.iter().find(|node| node.name == data);
            files.push(data.map(|data| data.file.clone()).unwrap_or_default());
        }
        name = &node.name;
    }
    // There is more, and no file has this name.
    files.push(String::new());
    Ok(files)
}

/// The first node from `root` down that is no filter.
fn below_filters<'n>(root: &str, nodes: &'n [Node], graph: &Graph) -> Result<&'n Node, String> {
    let mut name = root;
    for _ in 0..DEPTH_MAX {
        let node = nodes.iter().find(|node| node.name == name);
        let node = node.ok_or_else(|| format!("there is no node {name:?}"))?;
        let is_filter = FILTERS.contains(&&*node.drv) || JOB_FILTERS.contains(&&*node.drv);
        if !is_filter {
            return Ok(node);
        }
        let below = graph.child(name, "file").or_else(|| graph.child(name, "backing"));
        name = below.ok_or_else(|| format!("nothing is below {name:?}"))?;
    }
    Err(format!("too much is below {root:?}"))
}

/// The thread object that serves a device, if it is not QEMU's main loop: of the device itself, or of
/// the controller that it is attached to.
pub fn iothread(monitor: &mut Monitor, device: &str) -> Option<String> {
    let path = path_of(device);
    let bus = property(monitor, &path, "parent_bus");
    let paths = std::iter::once(path).chain(bus);
    let ancestors: Vec<String> = paths.flat_map(|path| ancestors(&path)).collect();
    ancestors.iter().find_map(|path| property(monitor, path, "iothread"))
}

/// Where a device is in QEMU's object model. An id alone may mean something else there as well.
pub fn path_of(device: &str) -> String {
    match device.starts_with('/') {
        true => device.to_owned(),
        false => format!("{}/{device}", PERIPHERALS[0]),
    }
}

/// `/a/b/c`, `/a/b` and `/a`.
fn ancestors(path: &str) -> Vec<String> {
    let ends = path.match_indices('/').map(|(at, _)| at).skip(1).take(DEPTH_MAX);
    let ends = ends.chain([path.len()]);
    let mut paths: Vec<String> = ends.map(|end| path[..end].to_owned()).collect();
    paths.reverse();
    paths
}

/// A property that is a word; `None` if the object has none, or an empty one.
pub fn property(monitor: &mut Monitor, path: &str, name: &str) -> Option<String> {
    let answer = monitor.call("qom-get", json!({"path": path, "property": name})).ok()?;
    answer.as_str().filter(|word| (1..=WORD_LEN_MAX).contains(&word.len())).map(str::to_owned)
}

/// The socket of the guest agent's channel, by the name that agents listen on (`qemu-ga(8)`).
pub fn agent_socket(monitor: &mut Monitor) -> Option<PathBuf> {
    let mut ports = Vec::new();
    for folder in PERIPHERALS {
        let answer = monitor.call("qom-list", json!({"path": folder})).unwrap_or_default();
        let children = answer.as_array().into_iter().flatten();
        let is_port = |child: &&Value| child["type"] == "child<virtserialport>";
        let names = children.filter(is_port).filter_map(|child| child["name"].as_str());
        ports.extend(names.map(|name| format!("{folder}/{name}")));
    }
    let port = ports.into_iter().find(|port| {
        property(monitor, port, "name").as_deref() == Some("org.qemu.guest_agent.0")
    })?;
    let label = property(monitor, &port, "chardev")?;
    let devices = monitor.call("query-chardev", json!({})).ok()?;
    let device = devices.as_array()?.iter().find(|device| device["label"] == *label)?;
    socket_of(device["filename"].as_str()?)
}

/// The path in what QEMU calls a socket: `disconnected:unix:PATH,server=on`.
fn socket_of(name: &str) -> Option<PathBuf> {
    let (_, rest) = name.split_once("unix:")?;
    let path = rest.split_once(',').map_or(rest, |(path, _)| path);
    // What follows a connected one: ` <-> ` and the other side.
    let path = path.split(" <-> ").next()?;
    path.starts_with('/').then(|| path.into())
}

/// What the machine is, for who wants to start it again; `volumes` are the disks with their names in
/// the archive.
pub fn definition(
    monitor: &mut Monitor,
    command_line: &[String],
    volumes: &[(String, Disk)],
) -> Value {
    let mut said = |command: &str| monitor.call(command, json!({})).unwrap_or_default();
    let (name, uuid) = (said("query-name"), said("query-uuid"));
    let (memory, cpus) = (said("query-memory-size-summary"), said("query-cpus-fast"));
    let machine = property(monitor, "/machine", "type");
    let disks: Vec<Value> = volumes
        .iter()
        .map(|(volume, disk)| {
            let driver = driver_of(monitor, &disk.device);
            let Disk { name, format, file, size, .. } = disk;
            json!({"volume": volume, "device": name, "driver": driver, "format": format, "file": file,
                "size": size})
        })
        .collect();
    json!({
        "version": 1,
        "qemu": monitor.version().to_string(),
        "program": command_line.first(),
        "name": name["name"],
        "uuid": uuid["UUID"],
        "machine": machine.map(|kind| kind.trim_end_matches("-machine").to_owned()),
        "memory_bytes": memory["base-memory"],
        "cpus": cpus.as_array().map(Vec::len),
        "disks": disks,
        "command_line": command_line,
    })
}

/// The driver of a device, as `-device` takes it.
fn driver_of(monitor: &mut Monitor, device: &str) -> Option<String> {
    let path = path_of(device.strip_suffix("/virtio-backend").unwrap_or(device));
    property(monitor, &path, "type")
}

fn typed<T: serde::de::DeserializeOwned>(answer: Value) -> Result<T, String> {
    serde_json::from_value(answer).map_err(|error| error.to_string())
}

fn nonsense(label: &str, why: &str) -> Error {
    Error::new(ErrorKind::Unsupported, "QEMU's answer is not understood")
        .on(label)
        .because(why.to_owned())
        .meaning("nothing was backed up of this VM")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_have_the_names_of_devices_and_their_bitmaps_where_the_format_is() {
        let blocks = json!([
            {"device": "drive-scsi0", "qdev": "scsi0", "removable": false,
             "inserted": {"node-name": "#block1", "drv": "raw", "file": "c.img", "ro": false}},
            {"device": "", "qdev": "/machine/peripheral/va/virtio-backend", "removable": false,
             "inserted": {"node-name": "top", "drv": "throttle", "ro": false}},
            {"device": "virtio0", "qdev": "/machine/peripheral-anon/device[1]/virtio-backend",
             "inserted": {"node-name": "#block2", "drv": "qcow2", "file": "e", "ro": false}},
            {"device": "cd", "qdev": "cd0", "removable": true,
             "inserted": {"node-name": "iso", "drv": "raw", "ro": true}},
            {"device": "empty", "qdev": "cd1", "removable": true},
            {"device": "pflash1", "qdev": "/machine/system.flash1",
             "inserted": {"node-name": "vars", "drv": "raw", "ro": false}},
        ]);
        let image = json!({"virtual-size": 4096});
        let bitmap = json!({"name": "b", "granularity": 65536, "recording": true, "count": 0});
        let nodes = json!([
            {"node-name": "#block1", "drv": "raw", "file": "c.img", "image": image},
            {"node-name": "top", "drv": "throttle"},
            {"node-name": "format", "drv": "qcow2", "file": "d.qcow2", "image": image,
             "dirty-bitmaps": [bitmap]},
            {"node-name": "#block2", "drv": "qcow2", "file": "e", "image": image},
        ]);
        let graph = json!({
            "nodes": [{"id": 1, "name": "top"}, {"id": 2, "name": "format"}],
            "edges": [{"parent": 1, "child": 2, "name": "file"}],
        });
        let nodes: Vec<Node> = typed(nodes).unwrap();
        assert_eq!(nodes[2].dirty_bitmaps[0].granularity, 65536);
        let graph = Graph::read(graph).unwrap();
        let (disks, left_out) = disks_of(typed(blocks.clone()).unwrap(), &nodes, &graph).unwrap();
        assert_eq!(left_out.len(), 1, "{left_out:?}");
        // A job's filter that QEMU does not show.
        let mut hidden = Graph::read(json!({
            "nodes": [{"id": 1, "name": "top"}, {"id": 2, "name": "format"},
                {"id": 3, "name": "drive-scsi0"}, {"id": 4, "name": "#mirror"},
                {"id": 5, "name": "#block1"}],
            "edges": [{"parent": 1, "child": 2, "name": "file"},
                {"parent": 3, "child": 4, "name": "root"},
                {"parent": 4, "child": 5, "name": "backing"}],
        }))
        .unwrap();
        let mirror: Node = typed(json!({"node-name": "#mirror", "drv": "mirror_top"})).unwrap();
        let with_mirror: Vec<Node> = nodes.iter().cloned().chain([mirror]).collect();
        let (moved, _) = disks_of(typed(blocks.clone()).unwrap(), &with_mirror, &hidden).unwrap();
        assert_eq!((&*moved[0].root, &*moved[0].node), ("#mirror", "#block1"));
        hidden.children.clear();
        let told: Vec<_> =
            disks.iter().map(|disk| (&*disk.name, &*disk.root, &*disk.node, disk.size)).collect();
        assert_eq!(
            told,
            [
                ("scsi0", "#block1", "#block1", 4096),
                ("va", "top", "format", 4096),
                ("virtio0", "#block2", "#block2", 4096),
            ]
        );
        // A filter that stands on itself.
        let mut loops = Graph::default();
        loops.children.insert("top".into(), vec![("file".into(), "top".into())]);
        assert!(disks_of(typed(blocks).unwrap(), &nodes, &loops).is_err());
        let nowhere = json!({"nodes": [], "edges": [{"parent": 1, "child": 2, "name": "file"}]});
        assert!(Graph::read(nowhere).is_err());
    }

    #[test]
    fn sockets_of_agents_are_found_in_what_qemu_calls_them() {
        let table = [
            ("disconnected:unix:/run/qga.sock,server=on", Some("/run/qga.sock")),
            ("unix:/run/a,server=on <-> /run/a", Some("/run/a")),
            ("unix:relative,server=on", None),
            ("pty:/dev/pts/3", None),
        ];
        for (name, path) in table {
            assert_eq!(socket_of(name), path.map(PathBuf::from), "{name}");
        }
        assert_eq!(ancestors("/a/b/c"), ["/a/b/c", "/a/b", "/a"]);
    }
}
