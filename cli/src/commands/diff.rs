//! `voltar diff`

use voltar_engine::diff;
use voltar_engine::options::Context;
use voltar_engine::report::DiffReport;

use super::{Outcome, looking_at};
use crate::error::CommandError;
use crate::outcome::Diff;
use crate::render::Finished;
use crate::resolve::DiffTask;

/// Compares two snapshots.
pub fn run(task: &DiffTask, context: &Context) -> Outcome {
    let (old, new) = (&task.old, &task.new);
    let volumes = diff::run(&task.archive, &old.1, &new.1, task.volume.as_deref(), context)
        .map_err(|error| CommandError::engine(&error, &looking_at(&task.archive)))?;
    Ok(Finished::product(shape(volumes, task)))
}

fn shape(mut volumes: Vec<DiffReport>, task: &DiffTask) -> Diff {
    match volumes.pop() {
        Some(volume) if volumes.is_empty() => Diff::One(volume),
        last => {
            volumes.extend(last);
            Diff::Many {
                archive: task.archive.display().to_string(),
                old: task.old.0.clone(),
                new: task.new.0.clone(),
                volumes,
            }
        }
    }
}
