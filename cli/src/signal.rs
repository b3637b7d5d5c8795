//! Ctrl-C: the first asks the engine to stop at a safe point, the second leaves at once.
//!
//! Leaving at once is safe for the archive: a snapshot exists only once its commit is durable,
//! and what lies behind the last commit is as though it had never been written.

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::{flag, iterator::Signals};

use crate::exit::Exit;

/// Calls `on_first` (on a thread of its own) when SIGINT or SIGTERM arrives. Another one after
/// that ends the process inside the handler, whatever the rest of it is stuck in.
pub fn watch(on_first: impl FnOnce() + Send + 'static) -> io::Result<()> {
    let armed = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        // Handlers run in this order: the first signal finds the flag down and raises it.
        let code = i32::from(Exit::Interrupted.code());
        flag::register_conditional_shutdown(signal, code, Arc::clone(&armed))?;
        flag::register(signal, Arc::clone(&armed))?;
    }
    let mut signals = Signals::new([SIGINT, SIGTERM])?;
    std::thread::Builder::new().name("signals".to_string()).spawn(move || {
        if signals.forever().next().is_some() {
            on_first();
        }
    })?;
    Ok(())
}
