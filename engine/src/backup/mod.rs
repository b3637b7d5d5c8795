//! Backing up: plan, audit, read, work, write.

mod audit;
pub mod plan;
mod read;
mod work;
pub(crate) mod write;

use std::time::Instant;

use crate::error::Failed;
use crate::io_engine;
use crate::options::{BackupRequest, Context};
use crate::report::BackupReport;
use crate::source::View;

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
    let sources = plan::open_sources(request)?;
    let views = sources.views();
    run_views(request, views, &sources.identities(), context, started)
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
    run_views(request, views, &[], context, Instant::now())
}

fn run_views(
    request: &BackupRequest,
    views: &[View],
    identities: &[crate::device::file::FileIdentity],
    context: &Context,
    started: Instant,
) -> Result<BackupReport, Failed<BackupReport>> {
    let chosen = io_engine::choose(context)?;
    let target = plan::open_target(request, identities, context)?;
    write::run(request, views, &target, chosen, context, started)
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
    let target = plan::open_home(home, request.dry_run, || Ok(()))?;
    write::run(request, views, &target, chosen, context, started)
}
