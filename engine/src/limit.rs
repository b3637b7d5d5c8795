//! A bound on bytes per second.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::cancel::Cancel;
use crate::error::Result;

/// Longest sleep between two looks at the cancel flag.
const NAP: Duration = Duration::from_millis(50);

/// How much time may be made up for after a pause.
const BURST: Duration = Duration::from_millis(200);

/// Lets bytes pass at a bounded rate, those of all threads together.
#[derive(Debug)]
pub struct Limit {
    bytes_per_s: Option<u64>,
    /// When the next byte may pass.
    next: Mutex<Instant>,
}

impl Limit {
    /// At most `bytes_per_s`; any number without one, or with 0.
    pub fn new(bytes_per_s: Option<u64>) -> Limit {
        let next = Mutex::new(Instant::now());
        Limit { bytes_per_s: bytes_per_s.filter(|rate| *rate > 0), next }
    }

    /// Waits until `bytes` may pass.
    ///
    /// # Errors
    /// `Interrupted`.
    pub fn pass(&self, bytes: u64, cancel: &Cancel) -> Result<()> {
        let Some(rate) = self.bytes_per_s else {
            return Ok(());
        };
        let start = self.reserve(Duration::from_secs_f64(bytes as f64 / rate as f64));
        loop {
            cancel.check()?;
            let wait = start.saturating_duration_since(Instant::now());
            if wait.is_zero() {
                return Ok(());
            }
            std::thread::sleep(wait.min(NAP));
        }
    }

    /// When what takes so long may start; what comes later waits for its end.
    fn reserve(&self, cost: Duration) -> Instant {
        let now = Instant::now();
        let earliest = now.checked_sub(BURST).unwrap_or(now);
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        let start = (*next).max(earliest);
        *next = start + cost;
        start
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    #[test]
    fn bytes_pass_at_the_rate() {
        let start = Instant::now();
        let limit = Limit::new(Some(10 << 20));
        for _ in 0..8 {
            limit.pass(1 << 20, &Cancel::new()).unwrap();
        }
        // Eight tenths of a second, less the burst and what passes before the first wait.
        assert!(start.elapsed() >= Duration::from_millis(400), "{:?}", start.elapsed());
    }

    #[test]
    fn threads_share_the_rate() {
        let start = Instant::now();
        let limit = Limit::new(Some(10 << 20));
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..2).for_each(|_| limit.pass(1 << 20, &Cancel::new()).unwrap()));
            }
        });
        assert!(start.elapsed() >= Duration::from_millis(400), "{:?}", start.elapsed());
    }

    #[test]
    fn waiting_ends_when_asked_to() {
        let cancel = Cancel::new();
        let limit = Limit::new(Some(1));
        limit.pass(1 << 20, &cancel).unwrap();
        cancel.raise();
        assert_eq!(limit.pass(1, &cancel).unwrap_err().kind(), ErrorKind::Interrupted);
    }
}
