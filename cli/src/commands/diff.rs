//! `voltar diff`

use voltar_engine::diff;
use voltar_engine::options::Context;
use voltar_engine::report::DiffReport;

use super::{Outcome, looking_at};
use crate::error::CommandError;
use crate::outcome::{Compared, Diff};
use crate::render::Finished;
use crate::resolve::DiffTask;

/// Compares two snapshots.
pub fn run(task: &DiffTask, context: &Context) -> Outcome {
    let (old, new) = (&task.old, &task.new);
    let report = diff::run(&task.archive, &old.1, &new.1, task.volume.as_deref(), context)
        .map_err(|error| CommandError::engine(&error, &looking_at(&task.archive)))?;
    Ok(Finished::product(shape(report, task)))
}

fn shape(report: DiffReport, task: &DiffTask) -> Diff {
    let DiffReport { mut volumes, only_old, only_new } = report;
    let compared = match volumes.pop() {
        Some(volume) if volumes.is_empty() => Compared::One(volume),
        last => {
            volumes.extend(last);
            Compared::Many {
                archive: task.archive.display().to_string(),
                old: task.old.0.clone(),
                new: task.new.0.clone(),
                volumes,
            }
        }
    };
    Diff { compared, only_old, only_new }
}
