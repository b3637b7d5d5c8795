//! What commands come to where the engine's report alone does not say it. Field names are the
//! JSON contract, like those of the engine's reports.

use serde::Serialize;
use voltar_engine::report::{BackupReport, RestoreReport, VolumeDiff, VolumeSummary};

/// What had been done by a command that was stopped: the failure stands beside it.
#[derive(Debug, Serialize)]
#[serde(transparent)]
pub struct Partial<R>(pub R);

/// What a backup did, and whether it only rehearsed.
#[derive(Debug, Serialize)]
pub struct Backup {
    /// The engine's report.
    #[serde(flatten)]
    pub report: BackupReport,
    /// Whether nothing was written.
    pub dry_run: bool,
}

/// What a restore did, and whether it only rehearsed.
#[derive(Debug, Serialize)]
pub struct Restore {
    /// The engine's report.
    #[serde(flatten)]
    pub report: RestoreReport,
    /// Whether nothing was written.
    pub dry_run: bool,
}

/// What differs between two snapshots.
#[derive(Debug, Serialize)]
pub struct Diff {
    /// What was compared.
    #[serde(flatten)]
    pub compared: Compared,
    /// Volumes that only the older snapshot holds.
    pub only_old: Vec<VolumeSummary>,
    /// Volumes that only the newer snapshot holds.
    pub only_new: Vec<VolumeSummary>,
}

/// One volume's extents, or those of several.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub enum Compared {
    /// One volume was compared.
    One(VolumeDiff),
    /// None or several were.
    Many {
        /// The archive's path.
        archive: String,
        /// The older snapshot, as typed.
        old: String,
        /// The newer snapshot, as typed.
        new: String,
        /// One entry per volume that both hold.
        volumes: Vec<VolumeDiff>,
    },
}

impl Compared {
    /// The volumes compared.
    pub fn volumes(&self) -> &[VolumeDiff] {
        match self {
            Compared::One(volume) => std::slice::from_ref(volume),
            Compared::Many { volumes, .. } => volumes,
        }
    }
}
