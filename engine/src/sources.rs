//! The volumes of this host that can be held still for a backup, and what is kept of them here.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::error::{Error, ErrorKind, Result};
use crate::host::command::Tool;
use crate::options::Context;
use crate::report::{KeptSummary, SourceSummary, SourcesReport};

/// Asks the managers of volumes on this host. One that cannot be asked is a warning; one that is
/// not installed has no volumes.
///
/// # Errors
/// `Interrupted`.
pub fn list(context: &Context) -> Result<SourcesReport> {
    let mut report = SourcesReport::default();
    for (manager, asked) in [("LVM", lvm as fn() -> Result<Vec<SourceSummary>>), ("ZFS", zfs)] {
        context.cancel.check()?;
        match asked() {
            Ok(sources) => report.sources.extend(sources),
            Err(error) if error.kind() == ErrorKind::Unsupported => {}
            Err(error) => {
                let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}"));
                let cause = cause.unwrap_or_default();
                report.warnings.push(format!("{manager} cannot be asked: {error}{cause}"));
            }
        }
    }
    report.sources.sort_by(|one, other| one.source.cmp(&other.source));
    Ok(report)
}

/// What `lvs --reportformat json` prints.
#[derive(Deserialize)]
struct LvsAnswer {
    report: Vec<LvsReport>,
}

#[derive(Deserialize)]
struct LvsReport {
    lv: Vec<LogicalVolume>,
}

#[derive(Deserialize)]
struct LogicalVolume {
    vg_name: String,
    lv_name: String,
    lv_size: String,
    segtype: String,
    origin: String,
    lv_tags: String,
    lv_active: String,
    lv_health_status: String,
}

fn lvm() -> Result<Vec<SourceSummary>> {
    const FIELDS: &str =
        "vg_name,lv_name,lv_size,segtype,origin,lv_tags,lv_active,lv_health_status";
    let tool = Tool::new("lvs").args(["--reportformat", "json", "--units", "b", "--nosuffix"]);
    let answer = tool.args(["-o", FIELDS]).answer()?;
    let answer: LvsAnswer = serde_json::from_str(&answer).map_err(|error| {
        Error::new(ErrorKind::Io, "its answer is not understood").on("lvs").because(error)
    })?;
    let volumes: Vec<LogicalVolume> =
        answer.report.into_iter().flat_map(|report| report.lv).collect();
    let is_ours = |volume: &LogicalVolume| volume.lv_tags.split(',').any(|tag| tag == "voltar");
    let mut kept: BTreeMap<(String, String), Vec<KeptSummary>> = BTreeMap::new();
    for volume in volumes.iter().filter(|volume| is_ours(volume)) {
        let origin = (volume.vg_name.clone(), volume.origin.clone());
        let summary = KeptSummary { name: volume.lv_name.clone(), kind: "snapshot".into() };
        kept.entry(origin).or_default().push(summary);
    }
    let mut sources = Vec::new();
    for volume in volumes.iter().filter(|volume| !is_ours(volume) && volume.segtype != "thin-pool")
    {
        let is_thin = volume.segtype == "thin";
        sources.push(SourceSummary {
            source: format!("lvm:{}/{}", volume.vg_name, volume.lv_name),
            kind: if is_thin { "thin" } else { "thick" }.into(),
            size: volume.lv_size.parse().unwrap_or_default(),
            change_source: if is_thin { "dm-thin" } else { "none" }.into(),
            trouble: trouble(volume),
            kept: kept
                .remove(&(volume.vg_name.clone(), volume.lv_name.clone()))
                .unwrap_or_default(),
        });
    }
    Ok(sources)
}

fn trouble(volume: &LogicalVolume) -> Option<String> {
    match (&*volume.lv_health_status, &*volume.lv_active) {
        ("", "active") => None,
        ("", _) => Some("not active".into()),
        (health, _) => Some(health.into()),
    }
}

fn zfs() -> Result<Vec<SourceSummary>> {
    let columns = ["list", "-H", "-p", "-t", "volume", "-o", "name,volsize,keystatus"];
    let volumes = Tool::new("zfs").args(columns).answer()?;
    let snapshots = ["list", "-H", "-p", "-t", "snapshot,bookmark", "-o", "name"];
    let snapshots = Tool::new("zfs").args(snapshots).answer()?;
    let mut sources = Vec::new();
    for line in volumes.lines() {
        let mut columns = line.split('\t');
        let (Some(name), Some(size)) = (columns.next(), columns.next()) else { continue };
        let is_locked = columns.next() == Some("unavailable");
        sources.push(SourceSummary {
            source: format!("zfs:{name}"),
            kind: "zvol".into(),
            size: size.parse().unwrap_or_default(),
            change_source: "zfs".into(),
            trouble: is_locked.then(|| "its key is not loaded".to_owned()),
            kept: snapshots.lines().filter_map(|line| kept_zfs(line, name)).collect(),
        });
    }
    Ok(sources)
}

/// What a snapshot or bookmark of the volume is, if it is ours.
fn kept_zfs(line: &str, volume: &str) -> Option<KeptSummary> {
    let rest = line.strip_prefix(volume)?;
    let kind = match rest.get(..1)? {
        "@" => "snapshot",
        "#" => "bookmark",
        _ => return None,
    };
    rest[1..].starts_with("voltar-").then(|| KeptSummary { name: line.into(), kind: kind.into() })
}
