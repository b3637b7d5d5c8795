//! Which I/O engine an operation runs on, and what its user is told about it.

use crate::error::{Error, ErrorKind, Result};
use crate::io::op::Driver;
use crate::io::probe;
use crate::observe::Observer;
use crate::options::{Context, IoEngine};

/// Settles what the context leaves open: plain reads and writes, with a notice, where io_uring is
/// refused. `Auto` stays where it is granted, for a device's own ring may still fail; see [`tell`].
///
/// # Errors
/// `Unsupported` if io_uring was insisted on and is not to be had.
pub fn choose(context: &Context) -> Result<IoEngine> {
    let chosen = probe::choose(context.io).map_err(|error| {
        Error::new(ErrorKind::Unsupported, "io_uring is not available")
            .because(error)
            .hint("`--io auto` or `--io blocking` works without it")
    })?;
    if let Some(notice) = &chosen.notice {
        context.observer.notice(notice);
    }
    Ok(chosen.engine)
}

/// Says if `driver` is not the one that was to be expected.
pub fn tell(driver: &dyn Driver, observer: &dyn Observer) {
    if let Some(notice) = driver.notice() {
        observer.notice(notice);
    }
}
