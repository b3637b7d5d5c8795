//! The volumes of this host that can be held still for a backup, and what is kept of them here.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::error::{Error, ErrorKind, Result};
use crate::host::command::Tool;
use crate::host::zfs;
use crate::options::Context;
use crate::report::{KeptSummary, SourceSummary, SourcesReport};
use crate::source::zvol;

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
    let datasets = zfs::all()?;
    // A clone that a run reads from is no volume of the user's.
    let volumes = datasets.iter().filter(|it| it.kind == zfs::Kind::Volume && it.run.is_none());
    let summary = |volume: &zfs::Dataset| SourceSummary {
        source: format!("zfs:{}", volume.name),
        kind: "zvol".into(),
        size: volume.size.unwrap_or_default(),
        change_source: zvol::KIND.into(),
        trouble: volume.is_locked.then(|| "its key is not loaded".to_owned()),
        kept: datasets.iter().filter_map(|it| kept_zfs(it, volume)).collect(),
    };
    Ok(volumes.map(summary).collect())
}

/// What a snapshot or bookmark of the volume is, if it is ours.
fn kept_zfs(dataset: &zfs::Dataset, volume: &zfs::Dataset) -> Option<KeptSummary> {
    let rest = dataset.name.strip_prefix(&volume.name)?;
    let kind = match rest.chars().next()? {
        '@' => "snapshot",
        '#' => "bookmark",
        _ => return None,
    };
    let summary = || KeptSummary { name: dataset.name.clone(), kind: kind.into() };
    zvol::is_ours(dataset, volume.guid).then(summary)
}
