//! Restoring: plan, read, work, write. No stale byte stays on a target: every range is written,
//! zeroed, or proven equal.
//!
//! ```text
//!           plan ─ which volumes, where        target ─ guard, create, finish    state ─ notes
//!             │
//!  volume: compare ─▶ lookup ─▶ read ─▶ work ─▶ write ─▶ compare
//!          (delta)    (map,     (log    (decode, (target   (read-back)
//!                      index)    order)  check)   order)
//! ```

mod ahead;
mod compare;
mod create;
pub mod job;
mod lookup;
mod lost;
mod marks;
mod neighbours;
mod plan;
mod read;
mod state;
mod target;
pub mod volume;
mod work;
mod write;

use std::sync::Arc;
use std::time::Instant;

use crate::archive::open::{Archive, length};
use crate::archive::snapshots::Snapshot;
use crate::device::memory::MemoryDevice;
use crate::device::open::open_archive_reader;
use crate::error::{Failed, Result};
use crate::io_engine;
use crate::observe::Phase;
use crate::options::{Context, IoEngine, RestoreRequest};
use crate::report::RestoreReport;
use crate::words::with_causes;

use plan::Assignment;
use target::{Cleared, Ready};
use volume::{Changed, How, Restore, explain};

/// Brings volumes of a snapshot back.
///
/// All targets pass the guard before the first byte of any is written; then one is written after
/// the other. With [`OnDamage::Fail`](crate::options::OnDamage) damage is found when its frame is
/// read, so that the target may be partly written by then; a dry run finds what is missing from
/// the index, `verify` finds all damage.
///
/// # Errors
/// `TargetRefused`: not a byte was written. `TargetPartial` and `Interrupted`: the same request
/// again finishes the work. `Damaged`: the archive cannot give a range. `Mismatch`: read-back
/// found the target different from what was written. The error's meaning says whether the target
/// was changed; the report beside it has the volumes that were begun.
pub fn run(
    request: &RestoreRequest,
    context: &Context,
) -> Result<RestoreReport, Failed<RestoreReport>> {
    run_unexplained(request, context).map_err(|failed| match request.dry_run {
        true => failed,
        // Whatever changed a target has said so.
        false => Failed { error: explain(failed.error, Changed::Nothing), ..failed },
    })
}

fn run_unexplained(
    request: &RestoreRequest,
    context: &Context,
) -> Result<RestoreReport, Failed<RestoreReport>> {
    let started = Instant::now();
    plan::check(request)?;
    context.observer.phase(Phase::Open, None);
    let engine = io_engine::choose(context)?;
    let archive = Archive::open(Arc::new(open_archive_reader(&request.archive)?))?;
    let snapshot = archive.select(&request.snapshot)?;
    let assignments = plan::assign(request, &archive, &snapshot)?;
    let mut report = RestoreReport {
        snapshot: snapshot.id.to_hex(),
        volumes: Vec::new(),
        read_back: false,
        elapsed_s: 0.0,
        warnings: Vec::new(),
    };
    behind_the_last_commit(&archive)?.into_iter().for_each(|text| warn(&mut report, context, text));
    let outcome = bring_back(&assignments, &snapshot, request, context, engine, &mut report);
    report.elapsed_s = started.elapsed().as_secs_f64();
    Failed::unless(outcome, report)
}

/// Guards all targets, then writes one after the other, or rehearses that. What is done goes into
/// the report at once.
fn bring_back(
    assignments: &[Assignment],
    snapshot: &Snapshot,
    request: &RestoreRequest,
    context: &Context,
    engine: IoEngine,
    report: &mut RestoreReport,
) -> Result<()> {
    let cleared = clear_all(assignments, snapshot, request, context, report)?;
    if request.dry_run {
        return rehearse_all(assignments, context, engine, report);
    }
    let ready = ready_all(assignments, cleared, snapshot, request, context, report)?;
    write_all(assignments, ready, request, context, engine, report)?;
    report.read_back = request.read_back;
    Ok(())
}

/// Tells the user something at once, for who knows whether there will be a report.
fn warn(report: &mut RestoreReport, context: &Context, text: String) {
    if !report.warnings.contains(&text) {
        context.observer.notice(&text);
        report.warnings.push(text);
    }
}

/// What the user should know about bytes that no commit covers.
fn behind_the_last_commit(archive: &Archive) -> Result<Option<String>> {
    let count = length(&*archive.home)?.saturating_sub(archive.end().0);
    Ok((count > 0).then(|| {
        format!(
            "{count} bytes behind the archive's last snapshot belong to a backup that was \
             interrupted, or to a snapshot that is lost"
        )
    }))
}

fn clear_all(
    assignments: &[Assignment],
    snapshot: &Snapshot,
    request: &RestoreRequest,
    context: &Context,
    report: &mut RestoreReport,
) -> Result<Vec<Cleared>> {
    let id = snapshot.id.to_hex();
    let mut cleared = Vec::new();
    let mut others = Vec::new();
    for assignment in assignments {
        let (place, path, job) = (&assignment.place, assignment.path(), &assignment.job);
        let one = target::clear(place, job, &id, &others, request, context)?;
        target::remark(&one, job).into_iter().for_each(|text| warn(report, context, text));
        cleared.push(one);
        others.push(path);
    }
    Ok(cleared)
}

fn rehearse_all(
    assignments: &[Assignment],
    context: &Context,
    engine: IoEngine,
    report: &mut RestoreReport,
) -> Result<()> {
    for assignment in assignments {
        // A stand-in with the target's name; nobody writes to it.
        let size = assignment.job.shape.size();
        let target = MemoryDevice::new(size).with_label(assignment.path().display().to_string());
        let restore = Restore::new(&assignment.job, &target, How::default(), context, engine);
        let outcome = restore.rehearse();
        report.volumes.push(restore.report(outcome.is_ok()));
        outcome?;
    }
    Ok(())
}

/// Makes all targets ready; if one fails, those before it are left as they were.
fn ready_all(
    assignments: &[Assignment],
    cleared: Vec<Cleared>,
    snapshot: &Snapshot,
    request: &RestoreRequest,
    context: &Context,
    report: &mut RestoreReport,
) -> Result<Vec<Ready>> {
    let id = snapshot.id.to_hex();
    let mut tell = |text| warn(report, context, text);
    let mut all = Vec::new();
    for (assignment, one) in assignments.iter().zip(cleared) {
        match Ready::new(one, &assignment.job, &id, request, context, &mut tell) {
            Ok(ready) => all.push(ready),
            Err(error) => {
                all.into_iter().for_each(|ready: Ready| {
                    ready.leave(false);
                });
                return Err(error);
            }
        }
    }
    Ok(all)
}

/// Writes one target after the other; if one fails, those not begun are left as they were. Those
/// that are complete keep their notes until all are, for the same command to go on with.
fn write_all(
    assignments: &[Assignment],
    ready: Vec<Ready>,
    request: &RestoreRequest,
    context: &Context,
    engine: IoEngine,
    report: &mut RestoreReport,
) -> Result<()> {
    let mut complete = Vec::new();
    let mut waiting = ready.into_iter();
    for assignment in assignments {
        let Some(ready) = waiting.next() else { break };
        let is_first = complete.is_empty();
        match write_one(assignment, ready, is_first, request, context, engine, report) {
            Ok(ready) => complete.push(ready),
            Err(error) => {
                keep_complete(complete, &mut |text| warn(report, context, text));
                waiting.for_each(|ready| {
                    ready.leave(false);
                });
                return Err(error);
            }
        }
    }
    let outcomes: Vec<Result<()>> = complete.into_iter().map(Ready::done).collect();
    outcomes.into_iter().collect::<Result<()>>().map_err(|error| explain(error, Changed::This))
}

/// Another target failed: what is complete stays. Files and devices keep their notes, for the same
/// command to go on; an image has none, and is to be left out then.
fn keep_complete(complete: Vec<Ready>, tell: &mut dyn FnMut(String)) {
    for ready in complete.into_iter().filter(Ready::is_image) {
        let label = ready.device().label().to_owned();
        tell(match ready.done() {
            Ok(()) => format!("{label} is complete: leave it out when this is run again"),
            Err(error) => format!("{label} could not be finished: {}", with_causes(&error)),
        });
    }
}

fn write_one(
    assignment: &Assignment,
    ready: Ready,
    is_first: bool,
    request: &RestoreRequest,
    context: &Context,
    engine: IoEngine,
    report: &mut RestoreReport,
) -> Result<Ready> {
    let restore = Restore::new(&assignment.job, ready.device(), ready.how, context, engine);
    let mut tell = |text| warn(report, context, text);
    let outcome = write_steps(&restore, &ready, request, &mut tell);
    report.volumes.push(restore.report(outcome.is_ok()));
    match outcome {
        Ok(()) => Ok(ready),
        Err(error) => {
            let touched = restore.tally().is_touched();
            let touched = ready.leave(touched);
            Err(explain(
                error,
                match (touched, is_first) {
                    (true, _) => Changed::This,
                    (false, true) => Changed::Nothing,
                    (false, false) => Changed::Earlier,
                },
            ))
        }
    }
}

fn write_steps(
    restore: &Restore<'_>,
    ready: &Ready,
    request: &RestoreRequest,
    tell: &mut dyn FnMut(String),
) -> Result<()> {
    let size = restore.size();
    if request.discard && !ready.how.blank && !ready.how.resumes {
        // What is on the target is gone then: not before all maps are read and all chunks found.
        restore.look_ahead()?;
        restore.tally().touch();
        if let Err(error) = ready.discard(0..size) {
            tell(format!("unused space was not released: {error}"));
        }
    }
    restore.write()?;
    ready.finish(size, restore.tally())?;
    match request.read_back {
        true => restore.prove(),
        false => Ok(()),
    }
}
