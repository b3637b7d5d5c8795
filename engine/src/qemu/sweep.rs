//! Taking away what was made in QEMU: after a backup, and after one that was killed.
//!
//! One way for both, by names alone, and in an order that works from every state that the making can
//! have been left in.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::json;

use super::monitor::{Monitor, Refusal};
use super::vm::{self, Graph};
use super::{PREFIX, names};
use crate::error::{Error, ErrorKind, Result};

/// How long an export may take to go: requests that are in flight end first.
const EXPORT_END: Duration = Duration::from_secs(30);
/// What QEMU says when there is no NBD server to stop (`qmp_nbd_server_stop`, blockdev-nbd.c).
const NO_SERVER: &str = "not running";
const NAP: Duration = Duration::from_millis(10);

#[derive(Debug, Deserialize)]
struct Export {
    id: String,
}

/// Takes away all that bears a name of ours, but the bitmaps that are kept between backups.
///
/// # Errors
/// The first of what could not be taken away; the rest was tried all the same.
pub fn sweep(monitor: &mut Monitor) -> Result<()> {
    let nodes: BTreeSet<String> = vm::nodes(monitor)?.into_iter().map(|node| node.name).collect();
    let mut first = resume(monitor, &nodes);
    let mut and = |outcome: Result<()>| {
        if first.is_ok() {
            first = outcome;
        }
    };
    and(end_exports(monitor, &nodes));
    let ours = |prefix: &str| {
        let ours = nodes.iter().filter(|name| name.starts_with(prefix));
        ours.cloned().collect::<Vec<_>>()
    };
    for snapshot in ours(names::SNAPSHOT) {
        and(delete(monitor, &snapshot));
    }
    for filter in ours(names::FILTER) {
        and(take_out(monitor, &filter).and_then(|()| delete(monitor, &filter)));
    }
    for prefix in [names::AREA, names::ROOM, names::FILE] {
        for node in ours(prefix) {
            and(delete(monitor, &node));
        }
    }
    and(remove_temporary(monitor));
    for node in ours(names::END) {
        and(delete(monitor, &node));
    }
    and(remove_fds(monitor));
    first
}

/// Has a VM run on that a killed run left standing, should its guard have been killed as well.
fn resume(monitor: &mut Monitor, nodes: &BTreeSet<String>) -> Result<()> {
    if !nodes.contains(names::STOPPED) {
        return Ok(());
    }
    let status = monitor.ask("query-status", json!({}))?;
    if status["status"] == "paused" {
        monitor.tell("cont", json!({}))?;
    }
    delete(monitor, names::STOPPED)
}

/// Ends our exports, and the server if it is ours and serves nobody else.
fn end_exports(monitor: &mut Monitor, nodes: &BTreeSet<String>) -> Result<()> {
    let is_ours = |id: &String| id.starts_with(PREFIX);
    for id in exports(monitor)?.into_iter().filter(is_ours) {
        end_export(monitor, &id)?;
    }
    if nodes.contains(names::SERVER) {
        if exports(monitor)?.is_empty() {
            match monitor.call("nbd-server-stop", json!({})) {
                Ok(_) => {}
                // It was not started yet, or had ended.
                Err(Refusal::Refused { why, .. }) if why.contains(NO_SERVER) => {}
                // What tells that it is ours stays for the next run.
                Err(refusal) => return Err(monitor.failed(refusal)),
            }
        }
        delete(monitor, names::SERVER)?;
    }
    Ok(())
}

/// Ends an export and waits until it is gone.
///
/// # Errors
/// The monitor's; `Io` if it stays.
pub fn end_export(monitor: &mut Monitor, id: &str) -> Result<()> {
    monitor.tell("block-export-del", json!({"id": id, "mode": "hard"}))?;
    let end = Instant::now() + EXPORT_END;
    while exports(monitor)?.iter().any(|export| export == id) {
        if Instant::now() > end {
            return Err(Error::new(ErrorKind::Io, "QEMU does not end an export").on(id));
        }
        std::thread::sleep(NAP);
    }
    Ok(())
}

fn exports(monitor: &mut Monitor) -> Result<Vec<String>> {
    let answer = monitor.ask("query-block-exports", json!({}))?;
    let exports: Vec<Export> = serde_json::from_value(answer).map_err(|error| {
        Error::new(ErrorKind::Unsupported, "QEMU's answer is not understood")
            .on(monitor.label())
            .because(error)
    })?;
    Ok(exports.into_iter().map(|export| export.id).collect())
}

/// Gives the devices that use a filter what is below it.
fn take_out(monitor: &mut Monitor, filter: &str) -> Result<()> {
    let graph = Graph::ask(monitor)?;
    let Some(below) = graph.child(filter, "file").map(str::to_owned) else {
        return Err(Error::new(ErrorKind::Unsupported, "QEMU's answer is not understood")
            .on(filter)
            .because("nothing is below it".to_owned()));
    };
    for used in vm::uses(monitor)?.into_iter().filter(|used| used.root == filter) {
        insert(monitor, &used.device, &below)?;
    }
    Ok(())
}

/// Has a device use `node`.
///
/// # Errors
/// The monitor's.
pub fn insert(monitor: &mut Monitor, device: &str, node: &str) -> Result<()> {
    monitor
        .tell("qom-set", json!({"path": vm::path_of(device), "property": "drive", "value": node}))
}

/// Removes the bitmaps of all nodes that only one run needs.
fn remove_temporary(monitor: &mut Monitor) -> Result<()> {
    for node in vm::nodes(monitor)? {
        let is_ours = |bitmap: &&vm::Bitmap| bitmap.name.starts_with(names::TEMPORARY);
        for bitmap in node.dirty_bitmaps.iter().filter(is_ours) {
            remove_bitmap(monitor, &node.name, &bitmap.name)?;
        }
    }
    Ok(())
}

/// Removes one bitmap.
///
/// # Errors
/// The monitor's.
pub fn remove_bitmap(monitor: &mut Monitor, node: &str, name: &str) -> Result<()> {
    monitor.tell("block-dirty-bitmap-remove", json!({"node": node, "name": name}))
}

/// Removes descriptors of ours that a killed run had handed over and not yet used.
fn remove_fds(monitor: &mut Monitor) -> Result<()> {
    let answer = monitor.ask("query-fdsets", json!({}))?;
    for set in answer.as_array().into_iter().flatten() {
        let fds = set["fds"].as_array().into_iter().flatten();
        if fds.into_iter().any(|fd| fd["opaque"] == names::DESCRIPTOR) {
            let id = set["fdset-id"].clone();
            match monitor.call("remove-fd", json!({"fdset-id": id})) {
                // It went with its last user.
                Ok(_) | Err(Refusal::Refused { .. }) => {}
                Err(lost) => return Err(monitor.failed(lost)),
            }
        }
    }
    Ok(())
}

/// Removes a node.
///
/// # Errors
/// The monitor's.
pub fn delete(monitor: &mut Monitor, node: &str) -> Result<()> {
    monitor.tell("blockdev-del", json!({"node-name": node}))
}
