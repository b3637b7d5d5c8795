//! A flag that asks a running operation to stop at the next chunk boundary.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::{Error, ErrorKind, Result};

/// A shared request to stop. Cloning shares the flag; raising it twice is the same as once.
#[derive(Clone, Debug, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// A flag that nobody has raised.
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks the operation to stop. Safe to call from any thread; not from a signal handler that
    /// may interrupt an allocation (this never allocates, so it is safe there too).
    pub fn raise(&self) {
        self.0.store(true, Ordering::Release);
    }

    /// Whether somebody asked.
    pub fn is_raised(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }

    /// `Err` of kind [`ErrorKind::Interrupted`] once somebody asked.
    pub fn check(&self) -> Result<()> {
        match self.is_raised() {
            true => Err(Error::new(ErrorKind::Interrupted, "interrupted")),
            false => Ok(()),
        }
    }
}
