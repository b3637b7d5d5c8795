//! Backing up: plan, audit, read, work, write.

mod audit;
pub mod plan;
mod read;
mod stream;
mod work;
pub(crate) mod write;

use std::path::PathBuf;
use std::thread;
use std::time::Instant;

use crate::cancel::Cancel;
use crate::device::file::FileIdentity;
use crate::error::{ErrorKind, Failed, Result};
use crate::io_engine;
use crate::latency::LatencyGuard;
use crate::options::{ArchiveHome, BackupRequest, Context, Place};
use crate::report::BackupReport;
use crate::source::View;
use crate::source::hold::{self, HeldVolumes, hold};
use crate::threads;

/// Makes one snapshot of the request's sources.
///
/// # Errors
/// See [`crate::error::ErrorKind`]; nothing is committed then, and the archive's snapshots are as
/// they were. What had been sealed is found by the next run. The report beside the error has the
/// volumes that were read to their end.
pub fn run(
    request: &BackupRequest,
    context: &Context,
) -> Result<BackupReport, Failed<BackupReport>> {
    let started = Instant::now();
    plan::check_request(request)?;
    let held = hold(&request.sources, &request.holding, &written(request), context)?;
    let outcome = run_held(request, &held, context, started);
    let outcome = outcome.map_err(|failed| in_its_words(failed, &held, context));
    let is_committed = matches!(&outcome, Ok(report) if report.snapshot.is_some());
    // A base serves the next backup into the same archive: a pipe's is elsewhere.
    let is_kept = is_committed && request.archive != ArchiveHome::Stdout;
    let mut warnings = held.remarks();
    let left = if is_kept { held.keep() } else { held.release() };
    warnings.extend(left.iter().map(hold::left));
    warnings.iter().for_each(|warning| context.observer.notice(warning));
    match outcome {
        Ok(mut report) => {
            report.warnings.extend(warnings);
            Ok(report)
        }
        Err(mut failed) => {
            failed.report.iter_mut().for_each(|report| report.warnings.extend(warnings.clone()));
            Err(failed)
        }
    }
}

/// What failed, in the words of whoever holds the volumes, if it is they: a snapshot that breaks shows
/// first as a read that fails.
fn in_its_words(
    failed: Failed<BackupReport>,
    held: &HeldVolumes,
    context: &Context,
) -> Failed<BackupReport> {
    match (failed.kind(), context.cancel.is_raised()) {
        (ErrorKind::SourceUnreadable | ErrorKind::Io, false) => match held.check() {
            Err(error) => Failed { error, ..failed },
            Ok(()) => failed,
        },
        _ => failed,
    }
}

/// Raises a flag when dropped.
struct Raise<'a>(&'a Cancel);

impl Drop for Raise<'_> {
    fn drop(&mut self) {
        self.0.raise();
    }
}

/// Where the backup writes to while its volumes are held still: what is made there would wait for
/// ever on a file system that is frozen. A copy of a file is made beside it.
fn written(request: &BackupRequest) -> Vec<PathBuf> {
    let sources = request.sources.iter().filter_map(|source| match &source.place {
        Place::Path(path) | Place::Image { path, .. } => Some(path.clone()),
        Place::Lvm { .. }
        | Place::Zfs(_)
        | Place::Nbd(_)
        | Place::Qemu { .. }
        | Place::Libvirt { .. } => None,
    });
    let archive = match &request.archive {
        ArchiveHome::File(path) => Some(path.clone()),
        ArchiveHome::Stdout => None,
    };
    sources.chain(archive).collect()
}

/// Runs it while somebody watches what can become worthless.
fn run_held(
    request: &BackupRequest,
    held: &HeldVolumes,
    context: &Context,
    started: Instant,
) -> Result<BackupReport, Failed<BackupReport>> {
    let done = Cancel::new();
    thread::scope(|scope| {
        // A panic is to reach the user, not to wait for a watcher that waits for it.
        let _ends = Raise(&done);
        let watcher = held.watch(scope, &done, &context.cancel)?;
        let outcome = run_views(request, &held.views, &held.identities, held, context, started);
        done.raise();
        let watched = watcher.map_or(Ok(()), |watcher| threads::join("watch", watcher));
        // What it found is why the run was stopped.
        match (outcome, watched) {
            (Err(failed), Err(error)) => Err(Failed { error, ..failed }),
            (outcome, _) => outcome,
        }
    })
}

/// As [`run`], for views that are open already (in tests: of memory devices).
///
/// # Errors
/// As [`run`].
pub fn run_on(
    request: &BackupRequest,
    views: &[View],
    context: &Context,
) -> Result<BackupReport, Failed<BackupReport>> {
    run_views(request, views, &[], &NobodyHolds, context, Instant::now())
}

/// Who holds the volumes still while they are read.
pub(crate) trait Keeper {
    /// Whether what was read can still be trusted; asked before anything of it is committed.
    ///
    /// # Errors
    /// Once it cannot.
    fn check(&self) -> Result<()>;

    /// Small files that belong to the volumes, with their names.
    fn attached(&self) -> Vec<(String, Vec<u8>)>;

    /// Who spares those who use the volumes meanwhile.
    fn latency(&self) -> Option<&LatencyGuard>;
}

impl Keeper for HeldVolumes {
    fn check(&self) -> Result<()> {
        HeldVolumes::check(self)
    }

    fn attached(&self) -> Vec<(String, Vec<u8>)> {
        HeldVolumes::attached(self)
    }

    fn latency(&self) -> Option<&LatencyGuard> {
        self.latency.as_ref()
    }
}

/// Views that nobody holds have nothing that could become worthless.
struct NobodyHolds;

impl Keeper for NobodyHolds {
    fn check(&self) -> Result<()> {
        Ok(())
    }

    fn attached(&self) -> Vec<(String, Vec<u8>)> {
        Vec::new()
    }

    fn latency(&self) -> Option<&LatencyGuard> {
        None
    }
}

fn run_views(
    request: &BackupRequest,
    views: &[View],
    identities: &[FileIdentity],
    keeper: &dyn Keeper,
    context: &Context,
    started: Instant,
) -> Result<BackupReport, Failed<BackupReport>> {
    let chosen = io_engine::choose(context)?;
    plan::check_kinds(request, views)?;
    let target = plan::open_target(request, identities, context)?;
    write::run(request, views, keeper, &target, chosen, context, started)
}

/// As [`run_on`], into an archive on any home.
///
/// # Errors
/// As [`run`].
pub fn run_in(
    request: &BackupRequest,
    views: &[View],
    home: std::sync::Arc<dyn crate::archive::Home>,
    context: &Context,
) -> Result<BackupReport, Failed<BackupReport>> {
    let started = Instant::now();
    let chosen = io_engine::choose(context)?;
    plan::check_kinds(request, views)?;
    let target = plan::open_home(home, request.dry_run, || Ok(()))?;
    write::run(request, views, &NobodyHolds, &target, chosen, context, started)
}
