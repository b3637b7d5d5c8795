//! A bound on bytes per second.

use std::time::{Duration, Instant};

use crate::cancel::Cancel;
use crate::error::Result;

/// Longest sleep between two looks at the cancel flag.
const NAP: Duration = Duration::from_millis(50);

/// How much time may be made up for after a pause.
const BURST: Duration = Duration::from_millis(200);

/// Lets bytes pass at a bounded rate; for one thread.
#[derive(Debug)]
pub struct Limit {
    bytes_per_s: Option<u64>,
    /// When the next byte may pass.
    next: Instant,
}

impl Limit {
    /// At most `bytes_per_s`; any number without one, or with 0.
    pub fn new(bytes_per_s: Option<u64>) -> Limit {
        Limit { bytes_per_s: bytes_per_s.filter(|rate| *rate > 0), next: Instant::now() }
    }

    /// Waits until `bytes` may pass.
    ///
    /// # Errors
    /// `Interrupted`.
    pub fn pass(&mut self, bytes: u64, cancel: &Cancel) -> Result<()> {
        let Some(rate) = self.bytes_per_s else {
            return Ok(());
        };
        loop {
            cancel.check()?;
            let now = Instant::now();
            let wait = self.next.saturating_duration_since(now);
            if wait.is_zero() {
                let earliest = now.checked_sub(BURST).unwrap_or(now);
                let cost = Duration::from_secs_f64(bytes as f64 / rate as f64);
                self.next = self.next.max(earliest) + cost;
                return Ok(());
            }
            std::thread::sleep(wait.min(NAP));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    #[test]
    fn bytes_pass_at_the_rate() {
        let start = Instant::now();
        let mut limit = Limit::new(Some(10 << 20));
        for _ in 0..8 {
            limit.pass(1 << 20, &Cancel::new()).unwrap();
        }
        // Eight tenths of a second, less the burst and what passes before the first wait.
        assert!(start.elapsed() >= Duration::from_millis(400), "{:?}", start.elapsed());
    }

    #[test]
    fn waiting_ends_when_asked_to() {
        let cancel = Cancel::new();
        let mut limit = Limit::new(Some(1));
        limit.pass(1 << 20, &cancel).unwrap();
        cancel.raise();
        assert_eq!(limit.pass(1, &cancel).unwrap_err().kind(), ErrorKind::Interrupted);
    }
}
