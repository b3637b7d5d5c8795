//! Stopping another thread of a test, however the test ends.

use std::sync::atomic::{AtomicBool, Ordering};

/// Raises a flag when dropped: a scope waits for its threads, after a failed assertion as well.
#[derive(Debug)]
pub struct Raise<'a>(pub &'a AtomicBool);

impl Drop for Raise<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
