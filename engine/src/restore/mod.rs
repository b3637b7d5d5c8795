//! Restoring: plan, read, work, write. No stale byte stays on a target: every range is written,
//! zeroed, or proven equal.
//!
//! ```text
//!           plan ─ which volumes, where        target ─ guard, create, finish    state ─ notes
//!             │                                folder ─ attached files, names    start ─ commands
//!  volume: compare ─▶ lookup ─▶ read ─▶ work ─▶ write ─▶ compare
//!          (delta)    (map,     (log    (decode, (target   (read-back)
//!                      index)    order)  check)   order)
//! ```

mod ahead;
mod compare;
mod create;
mod folder;
pub mod job;
mod lookup;
mod lost;
mod marks;
mod neighbours;
mod plan;
mod read;
mod start;
mod state;
mod target;
pub mod volume;
mod work;
mod write;

use std::sync::Arc;
use std::time::Instant;

use crate::archive::open::{Archive, length};
use crate::device::memory::MemoryDevice;
use crate::device::open::open_archive_reader;
use crate::error::{Failed, Result};
use crate::io_engine;
use crate::observe::Phase;
use crate::options::{Context, IoEngine, RestoreRequest, Targets};
use crate::report::RestoreReport;
use crate::words::with_causes;

use folder::Folder;
use plan::Assignment;
use target::{Cleared, Ready};
use volume::{Changed, How, Restore, explain};

/// Brings volumes of a snapshot back.
///
/// All targets pass the guard before the first byte of any is written; then attached files are
/// written, if a folder takes them, and one target after the other. With [`OnDamage::Fail`](crate::options::OnDamage) damage is found when its frame is
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
    let mut folder = match &request.targets {
        Targets::Each(_) => None,
        Targets::Folder(to) => Some(Folder::new(to, &assignments, &archive, &snapshot)?),
    };
    let mut report = RestoreReport {
        snapshot: snapshot.id.to_hex(),
        volumes: Vec::new(),
        directory: folder.as_ref().map(Folder::label),
        attached: Vec::new(),
        start: Vec::new(),
        read_back: false,
        elapsed_s: 0.0,
        warnings: Vec::new(),
    };
    behind_the_last_commit(&archive)?.into_iter().for_each(|text| warn(&mut report, context, text));
    let errand =
        Errand { assignments: &assignments, id: snapshot.id.to_hex(), request, context, engine };
    let outcome = errand.run(folder.as_mut(), &mut report);
    report.elapsed_s = started.elapsed().as_secs_f64();
    Failed::unless(outcome, report)
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

/// What was asked for, with what is needed to do it.
struct Errand<'a> {
    assignments: &'a [Assignment],
    /// The snapshot's.
    id: String,
    request: &'a RestoreRequest,
    context: &'a Context,
    engine: IoEngine,
}

impl Errand<'_> {
    /// Guards all targets, then writes one after the other, or rehearses that. What is done goes
    /// into the report at once.
    fn run(&self, mut folder: Option<&mut Folder<'_>>, report: &mut RestoreReport) -> Result<()> {
        let cleared = self.clear_all(folder.as_deref_mut(), report)?;
        match self.request.dry_run {
            true => {
                report.attached = folder.as_ref().map(|it| it.report()).unwrap_or_default();
                self.rehearse_all(report)?;
            }
            false => {
                let outcome = self.write_to(cleared, folder.as_deref_mut(), report);
                if let (Err(_), Some(folder)) = (&outcome, &folder) {
                    folder.leave();
                }
                outcome?;
                report.read_back = self.request.read_back;
            }
        }
        match folder {
            Some(folder) => self.tell_how_to_start(folder, report),
            None => Ok(()),
        }
    }

    fn clear_all(
        &self,
        folder: Option<&mut Folder<'_>>,
        report: &mut RestoreReport,
    ) -> Result<Vec<Cleared>> {
        let is_new = folder.as_ref().is_some_and(|folder| folder.is_new());
        let mut cleared = Vec::new();
        let mut others = Vec::new();
        for assignment in self.assignments {
            let (place, path, job) = (&assignment.place, assignment.path(), &assignment.job);
            let one = match is_new {
                true => target::absent(place)?,
                false => {
                    let in_folder = folder.is_some();
                    if in_folder {
                        folder::refuse_no_file(&path)?;
                    }
                    let one =
                        target::clear(place, job, &self.id, &others, self.request, self.context)?;
                    if in_folder && let Cleared::Present { device, .. } = &one {
                        folder::refuse_elsewhere(&path, device.identity())?;
                    }
                    one
                }
            };
            let remark = target::remark(&one, job);
            remark.into_iter().for_each(|text| warn(report, self.context, text));
            cleared.push(one);
            others.push(path);
        }
        if let Some(folder) = folder {
            folder.clear(self.assignments, self.request, self.context)?;
            folder.remarks().for_each(|text| warn(report, self.context, text));
        }
        Ok(cleared)
    }

    fn rehearse_all(&self, report: &mut RestoreReport) -> Result<()> {
        for assignment in self.assignments {
            // A stand-in with the target's name; nobody writes to it.
            let size = assignment.job.shape.size();
            let label = assignment.path().display().to_string();
            let target = MemoryDevice::new(size).with_label(label);
            let how = How::default();
            let restore = Restore::new(&assignment.job, &target, how, self.context, self.engine);
            let outcome = restore.rehearse();
            report.volumes.push(restore.report(outcome.is_ok()));
            outcome?;
        }
        Ok(())
    }

    fn write_to(
        &self,
        cleared: Vec<Cleared>,
        folder: Option<&mut Folder<'_>>,
        report: &mut RestoreReport,
    ) -> Result<()> {
        let Some(folder) = folder else {
            let ready = self.ready_all(cleared, report)?;
            return self.write_all(ready, None, report);
        };
        folder.create()?;
        let ready = self.ready_all(cleared, report)?;
        match folder.write(self.request, self.context) {
            Ok(()) => report.attached = folder.report(),
            Err(error) => {
                leave_all(ready);
                return Err(explain(error, before(&[], Some(folder))));
            }
        }
        self.write_all(ready, Some(folder), report)
    }

    /// Makes all targets ready; if one fails, those before it are left as they were.
    fn ready_all(&self, cleared: Vec<Cleared>, report: &mut RestoreReport) -> Result<Vec<Ready>> {
        let mut tell = |text| warn(report, self.context, text);
        let mut all = Vec::new();
        for (assignment, one) in self.assignments.iter().zip(cleared) {
            let (job, request) = (&assignment.job, self.request);
            match Ready::new(one, job, &self.id, request, self.context, &mut tell) {
                Ok(ready) => all.push(ready),
                Err(error) => {
                    leave_all(all);
                    return Err(error);
                }
            }
        }
        Ok(all)
    }

    /// Writes one target after the other; if one fails, those not begun are left as they were. Those
    /// that are complete keep their notes until all are, for the same command to go on with.
    fn write_all(
        &self,
        ready: Vec<Ready>,
        folder: Option<&Folder<'_>>,
        report: &mut RestoreReport,
    ) -> Result<()> {
        let mut complete = Vec::new();
        let mut waiting = ready.into_iter();
        for assignment in self.assignments {
            let Some(ready) = waiting.next() else { break };
            let changed = before(&complete, folder);
            match self.write_one(assignment, ready, changed, report) {
                Ok(ready) => complete.push(ready),
                Err(error) => {
                    match folder {
                        Some(_) => give_up_images(complete),
                        None => {
                            keep_complete(complete, &mut |text| warn(report, self.context, text));
                        }
                    }
                    leave_all(waiting);
                    return Err(error);
                }
            }
        }
        let outcomes: Vec<Result<()>> = complete.into_iter().map(Ready::done).collect();
        let outcome = outcomes.into_iter().collect::<Result<()>>();
        outcome.map_err(|error| explain(error, Changed::This))
    }

    /// `changed` is what was before this target.
    fn write_one(
        &self,
        assignment: &Assignment,
        ready: Ready,
        changed: Changed,
        report: &mut RestoreReport,
    ) -> Result<Ready> {
        let (device, how) = (ready.device(), ready.how);
        let restore = Restore::new(&assignment.job, device, how, self.context, self.engine);
        let mut tell = |text| warn(report, self.context, text);
        let outcome = write_steps(&restore, &ready, self.request, &mut tell);
        report.volumes.push(restore.report(outcome.is_ok()));
        match outcome {
            Ok(()) => Ok(ready),
            Err(error) => {
                let touched = restore.tally().is_touched();
                let changed = if ready.leave(touched) { Changed::This } else { changed };
                Err(explain(error, changed))
            }
        }
    }

    fn tell_how_to_start(&self, folder: &Folder<'_>, report: &mut RestoreReport) -> Result<()> {
        for start in folder.start(self.assignments, self.context)? {
            start.remarks.into_iter().for_each(|text| warn(report, self.context, text));
            report.start.extend(start.command);
        }
        Ok(())
    }
}

/// What is changed once these targets are complete and the folder has its files. Images that are
/// given up if another target fails do not count.
fn before(complete: &[Ready], folder: Option<&Folder<'_>>) -> Changed {
    let stays = |ready: &Ready| folder.is_none() || !ready.is_image();
    let is_changed = folder.is_some_and(Folder::is_changed) || complete.iter().any(stays);
    if is_changed { Changed::Earlier } else { Changed::Nothing }
}

fn leave_all(ready: impl IntoIterator<Item = Ready>) {
    ready.into_iter().for_each(|ready| {
        ready.leave(false);
    });
}

/// Another target in the folder failed: the same command makes new images then, for one that is
/// there would be refused.
fn give_up_images(complete: Vec<Ready>) {
    leave_all(complete.into_iter().filter(Ready::is_image));
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
