//! Progress and notes on standard error while the engine works.
//!
//! The engine's threads only add to a counter; one thread of ours looks at it now and then and
//! draws: a bar on a terminal, a line every ten seconds elsewhere.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use voltar_engine::observe::{Observer, Phase};

use super::text;
use crate::size;

const BAR_INTERVAL: Duration = Duration::from_millis(200);
const LINE_INTERVAL: Duration = Duration::from_secs(10);

/// Where progress shows.
pub enum Surface {
    /// Nowhere.
    Mute,
    /// A line now and then.
    Lines,
    /// A bar on a terminal.
    Bar(ProgressBar),
}

impl Surface {
    /// A bar on standard error; nothing shows until it is first drawn.
    pub fn bar() -> Self {
        Surface::Bar(ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr()))
    }
}

/// Watches an operation and shows how far it is.
pub struct Progress {
    state: Arc<State>,
    ticker: Mutex<Option<Ticker>>,
}

struct State {
    surface: Surface,
    verbose: bool,
    /// Bytes done of the current phase.
    done: AtomicU64,
    current: Mutex<Current>,
    /// What was said, so that it is said once.
    said: Mutex<Vec<String>>,
}

/// The phase an operation is in.
#[derive(Clone, Copy)]
struct Current {
    /// Counts phases, so that the drawing thread sees one end and the next start.
    serial: u64,
    name: &'static str,
    total: Option<u64>,
    started: Instant,
}

struct Ticker {
    stop: Sender<()>,
    thread: JoinHandle<()>,
}

impl Progress {
    /// Starts to show progress on `surface`.
    pub fn start(surface: Surface, verbose: bool) -> Self {
        let current = Current { serial: 0, name: "starting", total: None, started: Instant::now() };
        let state = Arc::new(State {
            surface,
            verbose,
            done: AtomicU64::new(0),
            current: Mutex::new(current),
            said: Mutex::default(),
        });
        let ticker = Mutex::new(Ticker::start(&state));
        Progress { state, ticker }
    }

    /// Says something once, without tearing the bar.
    pub fn note(&self, text: &str) {
        let mut said = lock(&self.state.said);
        if !said.iter().any(|earlier| earlier == text) {
            said.push(text.to_string());
            self.state.say(&format!("note: {}\n", text::clean(text)));
        }
    }

    /// Stops drawing and takes the bar away. Notes can still be said.
    pub fn finish(&self) {
        let Some(Ticker { stop, thread }) = lock(&self.ticker).take() else {
            return;
        };
        drop(stop);
        // A panic there has already been printed; the work is done all the same.
        drop(thread.join());
        if let Surface::Bar(bar) = &self.state.surface {
            bar.finish_and_clear();
        }
    }
}

impl Observer for Progress {
    fn phase(&self, phase: Phase, total: Option<u64>) {
        let name = phase_name(phase);
        let mut current = lock(&self.state.current);
        self.state.done.store(0, Ordering::Relaxed);
        let serial = current.serial + 1;
        *current = Current { serial, name, total, started: Instant::now() };
        drop(current);
        if self.state.verbose {
            let total = total.map(|bytes| format!(", {}", size::human(bytes))).unwrap_or_default();
            self.state.say(&format!("phase: {name}{total}\n"));
        }
    }

    fn advance(&self, bytes: u64) {
        self.state.done.fetch_add(bytes, Ordering::Relaxed);
    }

    fn notice(&self, text: &str) {
        self.note(text);
    }
}

impl State {
    fn say(&self, text: &str) {
        match &self.surface {
            Surface::Mute => {}
            Surface::Lines => super::stderr(text),
            Surface::Bar(bar) => bar.suspend(|| super::stderr(text)),
        }
    }

    fn snapshot(&self) -> (Current, u64) {
        let current = lock(&self.current);
        let done = self.done.load(Ordering::Relaxed);
        // Estimated totals may be passed; a bar beyond its end helps nobody.
        (*current, current.total.map_or(done, |total| done.min(total)))
    }
}

impl Ticker {
    fn start(state: &Arc<State>) -> Option<Ticker> {
        let interval = match state.surface {
            Surface::Mute => return None,
            Surface::Lines => LINE_INTERVAL,
            Surface::Bar(_) => BAR_INTERVAL,
        };
        let (stop, stopped) = mpsc::channel();
        let state = Arc::clone(state);
        let draw = move || {
            let mut pen = Pen::default();
            while stopped.recv_timeout(interval) == Err(RecvTimeoutError::Timeout) {
                pen.draw(&state);
            }
        };
        // Without the thread there is no progress to see, but the work goes on.
        let thread = std::thread::Builder::new().name("progress".to_string()).spawn(draw).ok()?;
        Some(Ticker { stop, thread })
    }
}

/// What the drawing thread remembers from one time to the next.
#[derive(Default)]
struct Pen {
    serial: Option<u64>,
    last: Option<(Instant, u64)>,
}

impl Pen {
    fn draw(&mut self, state: &State) {
        let (current, done) = state.snapshot();
        let is_new = self.serial != Some(current.serial);
        self.serial = Some(current.serial);
        match &state.surface {
            Surface::Mute => {}
            Surface::Bar(bar) => {
                if is_new {
                    start_bar(bar, &current);
                }
                bar.set_position(done);
            }
            Surface::Lines => {
                let since = self.last.filter(|_| !is_new).unwrap_or((current.started, 0));
                let now = Instant::now();
                self.last = Some((now, done));
                super::stderr(&line(&current, done, since, now));
            }
        }
    }
}

fn start_bar(bar: &ProgressBar, current: &Current) {
    let template = match current.total {
        Some(_) => {
            "{msg} [{bar:30}] {binary_bytes} of {binary_total_bytes}, {binary_bytes_per_sec}, \
             {eta} left"
        }
        None => "{msg} {spinner} {binary_bytes}, {binary_bytes_per_sec}, {elapsed}",
    };
    // The templates are ours; a wrong one would cost the looks, not the work.
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style.progress_chars("=> "));
    }
    bar.reset();
    match current.total {
        Some(total) => bar.set_length(total),
        None => bar.unset_length(),
    }
    bar.set_message(current.name);
}

/// `reading: 1.20 GiB of 8 GiB (15 %), 512 MiB/s, 14 s left`; the rate is that since the last
/// line, the time left by the phase's average.
fn line(current: &Current, done: u64, since: (Instant, u64), now: Instant) -> String {
    let mut line = format!("{}: {}", current.name, size::human(done));
    if let Some(total) = current.total.filter(|total| *total > 0) {
        let percent = u128::from(done) * 100 / u128::from(total);
        line.push_str(&format!(" of {} ({percent} %)", size::human(total)));
    }
    let seconds = now.duration_since(since.0).as_secs_f64();
    if let Some(rate) = text::rate(done.saturating_sub(since.1), seconds) {
        line.push_str(&format!(", {rate}"));
    }
    if let Some(left) = time_left(current, done, now) {
        line.push_str(&format!(", {} left", text::duration(left)));
    }
    line.push('\n');
    line
}

fn time_left(current: &Current, done: u64, now: Instant) -> Option<Duration> {
    let left = current.total?.checked_sub(done).filter(|_| done > 0)?;
    let elapsed = now.duration_since(current.started).as_secs_f64();
    Duration::try_from_secs_f64(elapsed * left as f64 / done as f64).ok()
}

fn phase_name(phase: Phase) -> &'static str {
    match phase {
        Phase::Open => "opening",
        Phase::Resume => "checking interrupted work",
        Phase::Read => "reading",
        Phase::Commit => "committing",
        Phase::Compare => "comparing",
        Phase::Write => "writing",
        Phase::ReadBack => "reading back",
        Phase::Verify => "verifying",
        Phase::Walk => "walking maps",
        _ => "working",
    }
}

/// Whoever panicked while holding this left it usable.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn current(total: Option<u64>) -> Current {
        Current { serial: 1, name: "reading", total, started: Instant::now() }
    }

    #[test]
    fn lines_tell_share_rate_and_time_left() {
        let current = current(Some(8 << 30));
        let now = current.started + Duration::from_secs(20);
        let since = (current.started + Duration::from_secs(10), 1 << 30);
        assert_eq!(
            line(&current, 2 << 30, since, now),
            "reading: 2 GiB of 8 GiB (25 %), 102 MiB/s, 1 min 00 s left\n"
        );
    }

    #[test]
    fn lines_without_a_total_claim_nothing() {
        let current = current(None);
        let now = current.started + Duration::from_secs(10);
        let since = (current.started, 0);
        assert_eq!(line(&current, 10 << 20, since, now), "reading: 10 MiB, 1 MiB/s\n");
    }

    #[test]
    fn a_phase_of_nothing_divides_by_nothing() {
        let current = current(Some(0));
        let now = current.started + Duration::from_secs(10);
        assert_eq!(line(&current, 0, (current.started, 0), now), "reading: 0 B, 0 B/s\n");
    }

    #[test]
    fn counts_from_many_threads_and_restarts_per_phase() {
        let progress = Progress::start(Surface::Mute, false);
        progress.phase(Phase::Read, Some(1000));
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..100).for_each(|_| progress.advance(1)));
            }
        });
        assert_eq!(progress.state.snapshot().1, 400);
        progress.advance(10_000);
        assert_eq!(progress.state.snapshot().1, 1000, "never beyond the total");
        progress.phase(Phase::Commit, None);
        assert_eq!(progress.state.snapshot().1, 0);
        progress.finish();
    }

    #[test]
    fn notes_are_said_once() {
        let progress = Progress::start(Surface::Mute, false);
        progress.notice("io_uring is refused");
        progress.note("io_uring is refused");
        assert_eq!(lock(&progress.state.said).len(), 1);
    }
}
