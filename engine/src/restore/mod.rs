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
pub mod job;
mod lookup;
mod marks;
mod neighbours;
mod plan;
mod ranges;
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
use crate::error::{Error, Result};
use crate::io_engine;
use crate::observe::Phase;
use crate::options::{Context, IoEngine, RestoreRequest};
use crate::report::{RestoreReport, VolumeRestore};

use plan::Assignment;
use target::{Cleared, Ready};
use volume::{How, Restore, explain};

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
/// was changed.
pub fn run(request: &RestoreRequest, context: &Context) -> Result<RestoreReport> {
    let started = Instant::now();
    plan::check(request)?;
    context.observer.phase(Phase::Open, None);
    let engine = io_engine::choose(context)?;
    let archive = Archive::open(Arc::new(open_archive_reader(&request.archive)?))?;
    let snapshot = archive.select(&request.snapshot)?;
    let assignments = plan::assign(request, &archive, &snapshot)?;
    let mut warnings = Vec::from_iter(behind_the_last_commit(&archive)?);
    let cleared = clear_all(&assignments, &snapshot, request, context, &mut warnings)?;
    let volumes = match request.dry_run {
        true => rehearse_all(&assignments, context, engine)?,
        false => {
            let ready = ready_all(&assignments, cleared, &snapshot, request, &mut warnings)?;
            write_all(&assignments, ready, request, context, engine, &mut warnings)?
        }
    };
    Ok(RestoreReport {
        snapshot: snapshot.id.to_hex(),
        volumes,
        read_back: request.read_back && !request.dry_run,
        elapsed_s: started.elapsed().as_secs_f64(),
        warnings,
    })
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
    warnings: &mut Vec<String>,
) -> Result<Vec<Cleared>> {
    let id = snapshot.id.to_hex();
    let mut cleared = Vec::new();
    let mut others = Vec::new();
    for assignment in assignments {
        let (path, job) = (&assignment.path, &assignment.job);
        let one = target::clear(path, job, &id, &others, request, &context.cancel)?;
        warnings.extend(target::remark(&one, job));
        cleared.push(one);
        others.push(path.clone());
    }
    Ok(cleared)
}

fn rehearse_all(
    assignments: &[Assignment],
    context: &Context,
    engine: IoEngine,
) -> Result<Vec<VolumeRestore>> {
    let rehearse = |assignment: &Assignment| {
        // A stand-in with the target's name; nobody writes to it.
        let size = assignment.job.shape.size();
        let target = MemoryDevice::new(size).with_label(assignment.path.display().to_string());
        let restore = Restore::new(&assignment.job, &target, How::default(), context, engine);
        restore.rehearse().map_err(|error| restore.explain(error))?;
        Ok(restore.report())
    };
    assignments.iter().map(rehearse).collect()
}

/// Makes all targets ready; if one fails, those before it are left as they were.
fn ready_all(
    assignments: &[Assignment],
    cleared: Vec<Cleared>,
    snapshot: &Snapshot,
    request: &RestoreRequest,
    warnings: &mut Vec<String>,
) -> Result<Vec<Ready>> {
    let id = snapshot.id.to_hex();
    let mut all = Vec::new();
    for (assignment, one) in assignments.iter().zip(cleared) {
        match Ready::new(one, &assignment.job, &id, request, warnings) {
            Ok(ready) => all.push(ready),
            Err(error) => {
                all.into_iter().for_each(|ready: Ready| ready.leave(false));
                return Err(explain(error, false));
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
    warnings: &mut Vec<String>,
) -> Result<Vec<VolumeRestore>> {
    let (mut reports, mut complete) = (Vec::new(), Vec::new());
    let mut waiting = ready.into_iter();
    for assignment in assignments {
        let Some(ready) = waiting.next() else { break };
        let is_first = complete.is_empty();
        match write_one(assignment, ready, is_first, request, context, engine, warnings) {
            Ok((report, ready)) => {
                reports.push(report);
                complete.push(ready);
            }
            Err(error) => {
                waiting.for_each(|ready| ready.leave(false));
                return Err(error);
            }
        }
    }
    complete.into_iter().for_each(Ready::done);
    Ok(reports)
}

fn write_one(
    assignment: &Assignment,
    ready: Ready,
    is_first: bool,
    request: &RestoreRequest,
    context: &Context,
    engine: IoEngine,
    warnings: &mut Vec<String>,
) -> Result<(VolumeRestore, Ready)> {
    let restore = Restore::new(&assignment.job, &ready.device, ready.how, context, engine);
    match write_steps(&restore, &ready, request, warnings) {
        Ok(()) => {
            let report = restore.report();
            Ok((report, ready))
        }
        Err(error) => {
            let touched = restore.tally().is_touched();
            ready.leave(touched);
            // What is said of the request includes the targets before this one.
            Err(explain(error, touched || !is_first))
        }
    }
}

fn write_steps(
    restore: &Restore<'_>,
    ready: &Ready,
    request: &RestoreRequest,
    warnings: &mut Vec<String>,
) -> Result<(), Error> {
    let size = restore.size();
    if request.discard && !ready.how.blank && !ready.how.resumes {
        restore.tally().touch();
        if let Err(error) = ready.discard(0..size) {
            warnings.push(format!("unused space was not released: {error}"));
        }
    }
    restore.write()?;
    ready.finish(size, restore.tally())?;
    match request.read_back {
        true => restore.prove(),
        false => Ok(()),
    }
}
