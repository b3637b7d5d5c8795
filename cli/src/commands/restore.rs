//! `voltar restore`

use voltar_engine::error::Failed;
use voltar_engine::options::{Context, RestoreRequest};
use voltar_engine::report::{RestoreReport, VolumeRestore};
use voltar_engine::restore;

use super::{Outcome, stopped};
use crate::error::{Act, CommandError, Scene};
use crate::exit::Exit;
use crate::outcome::Restore;
use crate::render::Finished;
use crate::size;

/// Writes volumes of a snapshot to their targets.
pub fn run(request: &RestoreRequest, context: &Context) -> Outcome {
    let shape = |report| Restore { report, dry_run: request.dry_run };
    match restore::run(request, context) {
        Ok(report) => {
            let failure = shortfall(&report);
            Ok(Finished::summary(shape(report), failure))
        }
        Err(Failed { error, report }) => {
            let failure = CommandError::engine(&error, &scene(request));
            stopped(failure, report.map(|report| shape(*report)))
        }
    }
}

fn scene(request: &RestoreRequest) -> Scene {
    Scene {
        act: Act::Restore,
        dry_run: request.dry_run,
        archive: Some(request.archive.display().to_string()),
    }
}

/// What the target lacks, the worse first.
fn shortfall(report: &RestoreReport) -> Option<CommandError> {
    damaged(report).or_else(|| lost_files(report)).or_else(|| unreadable(report))
}

/// Attached files that the archive lost.
fn lost_files(report: &RestoreReport) -> Option<CommandError> {
    let lost = report.attached.iter().filter(|file| !file.complete);
    let names: Vec<&str> = lost.map(|file| file.name.as_str()).collect();
    (!names.is_empty()).then(|| {
        let headline = format!("the archive could not give attached files: {}", names.join(", "));
        CommandError::new(Exit::Damaged, "damaged", headline)
            .meaning("all else is restored; these files are not")
            .hint("another snapshot may still hold them: `voltar verify` tells which are whole")
    })
}

/// Ranges the archive lost: the target holds zeroes that the volume did not.
fn damaged(report: &RestoreReport) -> Option<CommandError> {
    let (bytes, names) = missing(report, |volume| volume.damaged_bytes)?;
    Some(
        CommandError::new(
            Exit::Damaged,
            "damaged",
            format!("the archive could not give {bytes}: {names}"),
        )
        .meaning("these ranges are zero on the target, which they were not on the volume")
        .hint("another snapshot may still hold them: `voltar verify` tells which are whole"),
    )
}

/// Ranges the source could not give when the backup was made.
fn unreadable(report: &RestoreReport) -> Option<CommandError> {
    let unreadable = |volume: &VolumeRestore| volume.unreadable.iter().map(|r| r.length).sum();
    let (bytes, names) = missing(report, unreadable)?;
    Some(
        CommandError::new(
            Exit::SourceIncomplete,
            "source-incomplete",
            format!("{bytes} were unreadable when the backup was made: {names}"),
        )
        .meaning("all else is restored; these ranges are zero on the target")
        .hint("an older snapshot may hold them"),
    )
}

/// How many bytes are missing, and of which volumes.
fn missing(
    report: &RestoreReport,
    bytes: impl Fn(&VolumeRestore) -> u64,
) -> Option<(String, String)> {
    let volumes: Vec<_> = report.volumes.iter().filter(|volume| bytes(volume) > 0).collect();
    if volumes.is_empty() {
        return None;
    }
    let names: Vec<&str> = volumes.iter().map(|volume| volume.name.as_str()).collect();
    let bytes = volumes.iter().map(|volume| bytes(volume)).sum();
    Some((size::human(bytes), names.join(", ")))
}

#[cfg(test)]
mod tests {
    use voltar_engine::report::{AttachedRestore, ByteRange};

    use super::*;

    fn report(damaged: &[ByteRange], unreadable: &[ByteRange]) -> RestoreReport {
        let volume = VolumeRestore {
            name: "vm".into(),
            target: "t".into(),
            size: 8192,
            complete: true,
            written_bytes: 0,
            zeroed_bytes: 0,
            kept_bytes: 0,
            root: String::new(),
            zero_method: String::new(),
            unreadable: unreadable.to_vec(),
            damaged: damaged.to_vec(),
            damaged_unlisted: 0,
            damaged_bytes: damaged.iter().map(|range| range.length).sum(),
        };
        RestoreReport {
            snapshot: "a".into(),
            volumes: vec![volume],
            directory: None,
            attached: Vec::new(),
            start: Vec::new(),
            read_back: false,
            elapsed_s: 0.0,
            warnings: Vec::new(),
        }
    }

    #[test]
    fn damage_outweighs_what_was_never_read() {
        let range = [ByteRange { offset: 0, length: 4096 }];
        let code = |report: &RestoreReport| shortfall(report).map(|error| error.exit.code());
        assert_eq!(code(&report(&[], &[])), None);
        assert_eq!(code(&report(&[], &range)), Some(4));
        assert_eq!(code(&report(&range, &range)), Some(3));
        let mut without = report(&[], &range);
        let (name, path) = ("vm.xml".into(), "d/vm.xml".into());
        without.attached = vec![AttachedRestore { name, path, bytes: 1, complete: false }];
        assert_eq!(code(&without), Some(3));
        let headline = "the archive could not give 4 KiB: vm";
        assert_eq!(shortfall(&report(&range, &[])).unwrap().headline, headline);
    }
}
