//! `voltar show`

use voltar_engine::inspect;
use voltar_engine::options::Context;

use super::{Outcome, looking_at};
use crate::error::CommandError;
use crate::render::{Finished, Pipe, StandardOutput};
use crate::resolve::ShowTask;

/// Shows one snapshot, or writes the bytes of one of its attached files.
pub fn run(task: &ShowTask, context: &Context) -> Outcome {
    if let Some(name) = &task.attached {
        return attached(task, name, context);
    }
    let report = inspect::show(&task.archive, &task.snapshot, context)
        .map_err(|error| CommandError::engine(&error, &looking_at(&task.archive)))?;
    Ok(Finished::product(report))
}

fn attached(task: &ShowTask, name: &str, context: &Context) -> Outcome {
    let mut out = StandardOutput::new();
    let outcome = inspect::attached(&task.archive, &task.snapshot, name, &mut out, context);
    match (outcome, out.finish()) {
        // Whoever closed the pipe has read what they wanted.
        (_, Ok(Pipe::Closed)) => Ok(Finished::silent()),
        (Err(error), _) => Err(CommandError::engine(&error, &looking_at(&task.archive))),
        (Ok(()), Err(lost)) => Err(lost),
        (Ok(()), Ok(Pipe::Open)) => Ok(Finished::silent()),
    }
}
