//! The volumes of this host that can be held still for a backup, and what is kept of them here.

use crate::error::{ErrorKind, Result};
use crate::host::{lvm, zfs};
use crate::options::Context;
use crate::report::{KeptSummary, SourceSummary, SourcesReport};
use crate::source::{thin, zvol};
use crate::words::with_causes;

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
                let why = with_causes(&error);
                report.warnings.push(format!("{manager} cannot be asked: {why}"));
            }
        }
    }
    report.sources.sort_by(|one, other| one.source.cmp(&other.source));
    Ok(report)
}

fn lvm() -> Result<Vec<SourceSummary>> {
    let volumes = lvm::volumes(None)?;
    let is_users =
        |volume: &&lvm::Volume| volume.kind != lvm::Kind::Internal && !volume.has_tag(lvm::TAG);
    let summary = |volume: &lvm::Volume| SourceSummary {
        source: volume.label(),
        kind: match volume.kind {
            lvm::Kind::Thin { .. } => "thin",
            _ => "thick",
        }
        .into(),
        size: volume.size,
        change_source: match volume.kind {
            lvm::Kind::Thin { .. } => thin::KIND,
            _ => "none",
        }
        .into(),
        trouble: (!volume.is_active).then(|| "not active".to_owned()),
        kept: volumes
            .iter()
            .filter(|other| other.is_ours_of(&volume.uuid))
            .map(|kept| KeptSummary { name: kept.full_name(), kind: "snapshot".into() })
            .collect(),
    };
    Ok(volumes.iter().filter(is_users).map(summary).collect())
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
