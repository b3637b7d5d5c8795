//! Sparing those who use the source while it is read: fewer reads at a time, and pauses between them,
//! once reads take long, or the writes of a guest do.
//!
//! What takes long with many reads at a time may only wait for the others, so their number is halved
//! first, down to one; pauses come after that. Both are taken back as soon as all is quick again. A
//! backup is never slowed down without end: somebody else may be why a disk is slow.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::report::LatencyReport;

/// How long is looked before something is changed.
const WINDOW: Duration = Duration::from_millis(200);
/// Fewer reads than this say nothing.
const READS_MIN: u32 = 4;
/// Longest pause before a read: with reads of 1 MiB, 20 MiB/s are left.
const PAUSE_MAX: Duration = Duration::from_millis(50);
/// Shortest pause that is made.
const PAUSE_MIN: Duration = Duration::from_millis(2);

/// What a reader is to do before its next read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// Read.
    Go,
    /// Wait until one of the reads in flight is done.
    Wait,
    /// Rest for so long, and then read.
    Rest(Duration),
}

/// Watches latencies and holds readers back.
#[derive(Debug)]
pub struct LatencyGuard {
    bound: Duration,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Reads that may be in flight; `None`: any number.
    depth: Option<u32>,
    /// Most reads that were in flight, which is how many need not be held back.
    depth_seen: u32,
    pause: Duration,
    since: Instant,
    reads: u32,
    total: Duration,
    /// The guest's writes, as of late.
    writes: Option<Duration>,
    told: Told,
}

/// What was seen and done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// The longest read.
    pub read_max: Duration,
    /// The longest that a guest's writes took, on average of a second.
    pub write_max: Duration,
    /// How long readers were held back.
    pub slowed: Duration,
}

impl LatencyGuard {
    /// One that acts on what takes longer than `bound`, on average.
    pub fn new(bound: Duration) -> LatencyGuard {
        let state = State {
            depth: None,
            depth_seen: 1,
            pause: Duration::ZERO,
            since: Instant::now(),
            reads: 0,
            total: Duration::ZERO,
            writes: None,
            told: Told::default(),
        };
        LatencyGuard { bound, state: Mutex::new(state) }
    }

    /// Takes note of a read that took `latency`.
    pub fn read(&self, latency: Duration) {
        let mut state = self.lock();
        state.reads += 1;
        state.total += latency;
        state.told.read_max = state.told.read_max.max(latency);
        state.settle(self.bound, Instant::now());
    }

    /// Takes note of how long a guest's writes take.
    pub fn writes(&self, latency: Duration) {
        let mut state = self.lock();
        state.writes = Some(latency);
        state.told.write_max = state.told.write_max.max(latency);
    }

    /// What a reader with so many reads in flight is to do.
    pub fn turn(&self, in_flight: usize) -> Turn {
        let mut state = self.lock();
        let in_flight = u32::try_from(in_flight).unwrap_or(u32::MAX);
        state.depth_seen = state.depth_seen.max(in_flight + 1);
        match (state.depth, state.pause) {
            (Some(depth), _) if in_flight >= depth => Turn::Wait,
            (_, pause) if !pause.is_zero() => Turn::Rest(pause),
            _ => Turn::Go,
        }
    }

    /// Takes note that a reader was held back for so long.
    pub fn slowed(&self, time: Duration) {
        self.lock().told.slowed += time;
    }

    /// What was seen and done until now.
    pub fn told(&self) -> Told {
        self.lock().told
    }

    /// The same, for a report.
    pub fn report(&self) -> LatencyReport {
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        let (told, has_guest) = (self.told(), self.lock().writes.is_some());
        LatencyReport {
            bound_ms: ms(self.bound),
            read_max_ms: ms(told.read_max),
            guest_write_max_ms: has_guest.then(|| ms(told.write_max)),
            slowed_s: told.slowed.as_secs_f64(),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// At a window's end, decides how the next one is to be.
    fn settle(&mut self, bound: Duration, now: Instant) {
        if self.reads < READS_MIN || now.duration_since(self.since) < WINDOW {
            return;
        }
        let latency = (self.total / self.reads).max(self.writes.unwrap_or_default());
        (self.since, self.reads, self.total) = (now, 0, Duration::ZERO);
        if latency > bound {
            self.slow_down();
        } else if latency < bound / 2 {
            self.speed_up();
        }
    }

    fn slow_down(&mut self) {
        match self.depth.unwrap_or(self.depth_seen) {
            0 | 1 => {
                self.depth = Some(1);
                self.pause = (self.pause * 2).clamp(PAUSE_MIN, PAUSE_MAX);
            }
            depth => self.depth = Some(depth / 2),
        }
    }

    fn speed_up(&mut self) {
        if self.pause > PAUSE_MIN {
            self.pause /= 2;
        } else if !self.pause.is_zero() {
            self.pause = Duration::ZERO;
        } else if let Some(depth) = self.depth {
            let more = depth + (depth / 2).max(1);
            self.depth = Some(more).filter(|more| *more < self.depth_seen);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUND: Duration = Duration::from_millis(50);

    /// Lets a window pass in which reads, and a guest's writes, take so long.
    fn window(guard: &LatencyGuard, read: Duration, writes: Duration) {
        guard.writes(writes);
        for _ in 0..READS_MIN {
            guard.read(read);
        }
        let mut state = guard.lock();
        state.reads = READS_MIN;
        state.total = read * READS_MIN;
        let later = state.since + WINDOW;
        state.settle(BOUND, later);
    }

    #[test]
    fn slow_reads_become_fewer_and_then_rarer_and_quick_ones_go_free() {
        let guard = LatencyGuard::new(BOUND);
        assert_eq!(guard.turn(15), Turn::Go);
        let (slow, quick) = (Duration::from_millis(51), Duration::from_millis(10));
        for depth in [8, 4, 2, 1] {
            window(&guard, slow, Duration::ZERO);
            assert_eq!(guard.turn(depth), Turn::Wait, "{depth}");
            assert_eq!(guard.turn(depth - 1), Turn::Go, "{depth}");
        }
        for _ in 0..20 {
            window(&guard, slow, Duration::ZERO);
        }
        assert_eq!(guard.turn(0), Turn::Rest(PAUSE_MAX), "and no longer than that");
        // Neither quick nor slow: as it is.
        window(&guard, Duration::from_millis(30), Duration::ZERO);
        assert_eq!(guard.turn(0), Turn::Rest(PAUSE_MAX));
        for _ in 0..20 {
            window(&guard, quick, Duration::ZERO);
        }
        assert_eq!(guard.turn(100), Turn::Go);
        assert_eq!(guard.told().read_max, slow);
    }

    #[test]
    fn a_guest_that_waits_for_its_writes_counts_as_much() {
        let guard = LatencyGuard::new(BOUND);
        assert_eq!(guard.turn(3), Turn::Go);
        window(&guard, Duration::from_millis(1), Duration::from_millis(400));
        assert_eq!(guard.turn(3), Turn::Wait);
        assert_eq!(guard.told().write_max, Duration::from_millis(400));
    }

    #[test]
    fn a_few_reads_say_nothing() {
        let guard = LatencyGuard::new(BOUND);
        assert_eq!(guard.turn(7), Turn::Go);
        guard.read(Duration::from_secs(9));
        assert_eq!(guard.turn(7), Turn::Go);
    }
}
