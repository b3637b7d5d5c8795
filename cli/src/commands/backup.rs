//! `voltar backup`

use voltar_engine::backup;
use voltar_engine::error::Failed;
use voltar_engine::options::{ArchiveHome, BackupRequest, Context};
use voltar_engine::report::{BackupReport, VolumeBackup};

use super::{Outcome, stopped};
use crate::error::{Act, CommandError, Scene};
use crate::exit::Exit;
use crate::outcome::Backup;
use crate::render::Finished;
use crate::size;

/// Makes one snapshot.
pub fn run(request: &BackupRequest, context: &Context) -> Outcome {
    let shape = |report| Backup { report, dry_run: request.dry_run };
    match backup::run(request, context) {
        Ok(report) => {
            let failure = unreadable(&report, request.dry_run);
            Ok(Finished::summary(shape(report), failure))
        }
        Err(Failed { error, report }) => {
            let failure = CommandError::engine(&error, &scene(request));
            stopped(failure, report.map(|report| shape(*report)))
        }
    }
}

fn scene(request: &BackupRequest) -> Scene {
    let (act, archive) = match &request.archive {
        ArchiveHome::File(path) => (Act::Backup, Some(path.display().to_string())),
        ArchiveHome::Stdout => (Act::Stream, None),
    };
    Scene { act, dry_run: request.dry_run, archive }
}

/// A snapshot with holes is a snapshot, but nobody shall take it for a whole one.
fn unreadable(report: &BackupReport, dry_run: bool) -> Option<CommandError> {
    let bytes: u64 = report.volumes.iter().map(unreadable_bytes).sum();
    let names: Vec<&str> = report
        .volumes
        .iter()
        .filter(|volume| !volume.unreadable.is_empty())
        .map(|volume| volume.name.as_str())
        .collect();
    if names.is_empty() {
        return None;
    }
    let headline = format!("{} could not be read: {}", size::human(bytes), names.join(", "));
    let meaning = match dry_run {
        true => "nothing was written; a backup would record these ranges",
        false => "the snapshot is committed; these ranges are recorded in it as unreadable",
    };
    Some(
        CommandError::new(Exit::SourceIncomplete, "source-incomplete", headline)
            .meaning(meaning)
            .hint("suspect the source's device; older snapshots may still hold these ranges"),
    )
}

fn unreadable_bytes(volume: &VolumeBackup) -> u64 {
    volume.unreadable.iter().map(|range| range.length).sum()
}
