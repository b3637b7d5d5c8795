//! The verbs, one a file. Each asks the engine for one thing and says how it went; none prints.

mod backup;
mod bench;
mod diff;
mod inspect;
mod list;
mod restore;
mod show;
mod sources;
mod verify;

use std::path::Path;
use std::sync::Arc;

use serde::Serialize;
use voltar_engine::cancel::Cancel;
use voltar_engine::options::Context;
use voltar_engine::report::Losses;
use voltar_engine::words::shell_word;

use crate::error::{Act, CommandError, Scene};
use crate::outcome::Partial;
use crate::render::{Console, Finished, Human, Progress};
use crate::resolve::{Job, Task};
use crate::signal;

/// What a command comes to: something to report (with or without a failure beside it), or a
/// failure alone.
pub type Outcome = Result<Finished, CommandError>;

/// Runs a job under the console's eyes. Ctrl-C asks it to stop.
pub fn run(job: &Job, console: &Console) -> Outcome {
    let progress = console.progress();
    let cancel = Cancel::new();
    stop_on_signal(&cancel, &progress)?;
    let mut context = Context { observer: progress.clone(), cancel, ..Context::default() };
    job.resources.apply(&mut context);
    let outcome = dispatch(&job.task, &context);
    progress.finish();
    outcome
}

fn dispatch(task: &Task, context: &Context) -> Outcome {
    match task {
        Task::Backup(request) => backup::run(request, context),
        Task::Restore(request) => restore::run(request, context),
        Task::Verify(request) => verify::run(request, context),
        Task::List(archive) => list::run(archive, context),
        Task::Show(task) => show::run(task, context),
        Task::Diff(task) => diff::run(task, context),
        Task::Inspect(archive) => inspect::run(archive, context),
        Task::Salvage(task) => inspect::salvage(task, context),
        Task::Sources => sources::run(context),
        Task::Bench(path) => bench::run(path.as_deref(), context),
    }
}

fn stop_on_signal(cancel: &Cancel, progress: &Arc<Progress>) -> Result<(), CommandError> {
    let (cancel, progress) = (cancel.clone(), Arc::clone(progress));
    signal::watch(move || {
        cancel.raise();
        progress.note("stopping at the next safe point; interrupt again to quit at once");
    })
    .map_err(|error| CommandError::io("cannot watch for signals", &error))
}

/// A command that was stopped by `failure`, with what it had done if there is anything.
fn stopped<R>(failure: CommandError, report: Option<R>) -> Outcome
where
    Partial<R>: Serialize + Human + 'static,
{
    match report {
        Some(report) => Ok(Finished::summary(Partial(report), Some(failure))),
        None => Err(failure),
    }
}

/// The scene of a command that only reads `archive`.
fn looking_at(archive: &Path) -> Scene {
    Scene { act: Act::Look, dry_run: false, archive: Some(archive.display().to_string()) }
}

/// What was lost together with commits, and what can be done about it.
fn lost(losses: &Losses, archive: &str) -> Option<(String, String)> {
    let commits: u64 = losses.lost_commits.iter().map(|lost| lost.commits.unwrap_or(1)).sum();
    let meaning = match commits {
        0 if losses.unread.is_none() => return None,
        0 => "newer snapshots may be hidden in what cannot be read".to_string(),
        1 => "a commit is lost, and with it the snapshot that it made".to_string(),
        _ => format!("{commits} commits are lost, and with them the snapshots that they made"),
    };
    let hint = format!(
        "`voltar inspect {} --salvage NEW` brings back what can still be read of it",
        shell_word(archive)
    );
    Some((meaning, hint))
}

/// `3 structures are damaged`, with the archive's name.
fn are_damaged(count: usize, noun: &str, archive: &str) -> String {
    match count {
        1 => format!("one {noun} is damaged: {archive}"),
        _ => format!("{count} {noun}s are damaged: {archive}"),
    }
}
