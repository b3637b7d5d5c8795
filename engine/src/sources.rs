//! The volumes of this host that can be held still for a backup, and what is kept of them here.

use crate::error::{ErrorKind, Result};
use crate::host::zfs::Dataset;
use crate::host::{lvm, zfs};
use crate::options::Context;
use crate::report::{KeptSummary, SourceSummary, SourcesReport, StraySummary};
use crate::source::{thin, zvol};
use crate::words::with_causes;

/// What a manager of volumes has.
type Found = (Vec<SourceSummary>, Vec<StraySummary>);

/// Asks the managers of volumes on this host. One that cannot be asked is a warning; one that is
/// not installed has no volumes.
///
/// # Errors
/// `Interrupted`.
pub fn list(context: &Context) -> Result<SourcesReport> {
    let mut report = SourcesReport::default();
    for (manager, asked) in [("LVM", lvm as fn() -> Result<Found>), ("ZFS", zfs)] {
        context.cancel.check()?;
        match asked() {
            Ok((sources, strays)) => {
                report.sources.extend(sources);
                report.strays.extend(strays);
            }
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

fn lvm() -> Result<Found> {
    let volumes = lvm::volumes(None)?;
    let (ours, users): (Vec<_>, Vec<_>) = volumes
        .iter()
        .filter(|volume| volume.kind != lvm::Kind::Internal)
        .partition(|volume| volume.is_ours());
    let summary = |volume: &&lvm::Volume| SourceSummary {
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
        kept: ours
            .iter()
            .filter(|kept| kept.is_ours_of(volume))
            .map(|kept| KeptSummary { name: kept.full_name(), kind: "snapshot".into() })
            .collect(),
    };
    let is_stray = |kept: &&&lvm::Volume| users.iter().all(|volume| !kept.is_ours_of(volume));
    let stray = |kept: &&lvm::Volume| StraySummary {
        name: kept.full_name(),
        kind: "snapshot".into(),
        remove: format!("lvremove {}", kept.full_name()),
    };
    Ok((users.iter().map(summary).collect(), ours.iter().filter(is_stray).map(stray).collect()))
}

fn zfs() -> Result<Found> {
    let datasets = zfs::all()?;
    // A clone that a run reads from is no volume of the user's.
    let (ours, users): (Vec<_>, Vec<_>) =
        datasets.iter().partition(|dataset| zvol::made_of(dataset).is_some());
    let volumes = users.into_iter().filter(|dataset| dataset.kind == zfs::Kind::Volume);
    let volumes: Vec<&Dataset> = volumes.collect();
    let summary = |volume: &&Dataset| SourceSummary {
        source: format!("zfs:{}", volume.name),
        kind: "zvol".into(),
        size: volume.size.unwrap_or_default(),
        change_source: zvol::KIND.into(),
        trouble: volume.is_locked.then(|| "its key is not loaded".to_owned()),
        kept: ours
            .iter()
            .filter(|kept| is_kept_of(kept, volume))
            .map(|kept| KeptSummary { name: kept.name.clone(), kind: kind_of(kept).into() })
            .collect(),
    };
    // What came here with a copy, or went with a promotion, is in use there for all we know.
    let is_stray = |kept: &&&Dataset| {
        let guid = zvol::made_of(kept);
        volumes.iter().all(|volume| guid != Some(format!("{:016x}", volume.guid)))
    };
    let stray = |kept: &&Dataset| StraySummary {
        name: kept.name.clone(),
        kind: kind_of(kept).into(),
        remove: format!("zfs destroy '{}'", kept.name),
    };
    Ok((volumes.iter().map(summary).collect(), ours.iter().filter(is_stray).map(stray).collect()))
}

fn kind_of(kept: &Dataset) -> &'static str {
    match kept.kind {
        zfs::Kind::Snapshot => "snapshot",
        zfs::Kind::Bookmark => "bookmark",
        zfs::Kind::Volume | zfs::Kind::Filesystem => "clone",
    }
}

/// Whether voltar made it of this very volume, and not of one that it came here with a copy of.
fn is_kept_of(kept: &Dataset, volume: &Dataset) -> bool {
    let is_in =
        |sign| kept.name.strip_prefix(&volume.name).is_some_and(|tag| tag.starts_with(sign));
    match kept.kind {
        zfs::Kind::Snapshot => is_in('@') && zvol::is_ours(kept, volume.guid),
        zfs::Kind::Bookmark => is_in('#') && zvol::is_ours(kept, volume.guid),
        _ => zvol::is_clone_of(kept, volume),
    }
}
