//! An ordered pipeline: produce on one thread, work on many, consume on the caller's.
//!
//! It knows nothing of what flows through it. Items carry a sequence number and leave in that
//! order. A permit per item bounds how many exist between production and consumption, which
//! bounds the memory that flows with them and gives back-pressure. The first error wins, stops
//! every stage and leaves the threads as a value; errors that follow from it are dropped.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded};

use crate::error::{Error, ErrorKind, Result};
use crate::threads;

/// Sizes of a pipeline.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Threads that work, at least 1.
    pub workers: usize,
    /// Items between production and consumption, at least 1.
    pub items: usize,
}

/// What the stages tell one another of how busy they are; for whoever adapts to it.
#[derive(Debug, Default)]
pub struct Gauge {
    waiting: AtomicUsize,
    finished: AtomicUsize,
}

impl Gauge {
    /// Items produced that no worker has taken yet.
    pub fn waiting_for_work(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// A gauge that shows these numbers, for tests of who reads it.
    #[cfg(test)]
    pub(crate) fn of(waiting: usize, finished: usize) -> Gauge {
        Gauge { waiting: AtomicUsize::new(waiting), finished: AtomicUsize::new(finished) }
    }

    /// Items worked on that are not yet consumed.
    pub fn waiting_for_consumer(&self) -> usize {
        self.finished.load(Ordering::Relaxed)
    }
}

/// The pipeline stopped because of another stage; the producer returns this as its error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stopped;

impl From<Stopped> for Error {
    fn from(_: Stopped) -> Error {
        Error::new(ErrorKind::Internal, "stopped because another stage failed")
    }
}

/// The right to send one item.
#[derive(Debug)]
pub struct Permit(());

/// The producer's end.
pub struct Feeder<'a, I> {
    items: Sender<(u64, I)>,
    permits: &'a Receiver<()>,
    shared: &'a Shared,
}

struct Shared {
    first_error: Mutex<Option<Error>>,
    stop: AtomicBool,
    gauge: Gauge,
}

impl Shared {
    fn fail(&self, error: Error) {
        let mut first = match self.first_error.lock() {
            Ok(guard) => guard,
            Err(poisoned) => poisoned.into_inner(),
        };
        first.get_or_insert(error);
        self.stop.store(true, Ordering::Release);
    }

    fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }
}

impl<I> Feeder<'_, I> {
    /// Waits for the right to send one more item.
    pub fn permit(&self) -> Result<Permit, Stopped> {
        loop {
            if self.shared.is_stopped() {
                return Err(Stopped);
            }
            match self.permits.recv_timeout(Duration::from_millis(50)) {
                Ok(()) => return Ok(Permit(())),
                Err(crossbeam_channel::RecvTimeoutError::Timeout) => {}
                Err(crossbeam_channel::RecvTimeoutError::Disconnected) => return Err(Stopped),
            }
        }
    }

    /// The right to send one more item, if it is to be had now.
    pub fn try_permit(&self) -> Result<Option<Permit>, Stopped> {
        match self.shared.is_stopped() {
            true => Err(Stopped),
            false => Ok(self.permits.try_recv().ok().map(Permit)),
        }
    }

    /// Sends the item with this sequence number: 0, 1, 2, … in any order, each once.
    pub fn send(&self, sequence: u64, item: I, _permit: Permit) -> Result<(), Stopped> {
        self.shared.gauge.waiting.fetch_add(1, Ordering::Relaxed);
        self.items.send((sequence, item)).map_err(|_| Stopped)
    }

    /// Whether another stage failed; a producer that does not send for long asks now and then.
    pub fn is_stopped(&self) -> bool {
        self.shared.is_stopped()
    }
}

/// Runs a pipeline to its end.
///
/// `produce` runs on a thread of its own; `work` on `plan.workers` threads, each with a state
/// made by `state`; `consume` here, in sequence order.
///
/// # Errors
/// The first of any stage. A panic in a stage is an error of kind `Internal`.
pub fn run<I, O, S>(
    plan: Plan,
    produce: impl FnOnce(&Feeder<'_, I>) -> Result<()> + Send,
    state: impl Fn() -> Result<S> + Sync,
    work: impl Fn(&mut S, &Gauge, I) -> Result<O> + Sync,
    mut consume: impl FnMut(&Gauge, O) -> Result<()>,
) -> Result<()>
where
    I: Send,
    O: Send,
{
    let shared = Shared {
        first_error: Mutex::new(None),
        stop: AtomicBool::new(false),
        gauge: Gauge::default(),
    };
    let (permit_in, permit_out) = bounded(plan.items.max(1));
    for _ in 0..plan.items.max(1) {
        // The channel was made with room for exactly these.
        let _ = permit_in.try_send(());
    }
    // Room for every permit: a send never blocks, the permits do.
    let (item_in, item_out) = bounded::<(u64, I)>(plan.items.max(1));
    let (done_in, done_out) = bounded::<(u64, O)>(plan.items.max(1));

    std::thread::scope(|scope| {
        let shared = &shared;
        let permits = &permit_out;
        let started = threads::start(scope, "producer", move || {
            let feeder = Feeder { items: item_in, permits, shared };
            guarded(shared, "producer", || produce(&feeder));
        });
        let workers = (0..plan.workers.max(1)).map(|_| {
            let (items, done) = (item_out.clone(), done_in.clone());
            let (state, work) = (&state, &work);
            threads::start(scope, "worker", move || {
                guarded(shared, "worker", || worker(shared, state, work, &items, &done));
            })
        });
        if let Err(error) = [started].into_iter().chain(workers).try_for_each(|it| it.map(drop)) {
            shared.fail(error);
        }
        drop((item_out, done_in));
        guarded(shared, "consumer", || {
            consume_in_order(shared, &done_out, &permit_in, &mut consume)
        });
        // Lets threads that wait for the consumer see that it is gone.
        drop((done_out, permit_in));
    });
    match shared.first_error.into_inner() {
        Ok(None) => Ok(()),
        Ok(Some(error)) => Err(error),
        Err(poisoned) => {
            Err(poisoned.into_inner().unwrap_or_else(|| threads::panicked("pipeline")))
        }
    }
}

/// Runs a stage; its error or panic becomes the pipeline's unless there is one already.
fn guarded(shared: &Shared, name: &str, stage: impl FnOnce() -> Result<()>) {
    match std::panic::catch_unwind(std::panic::AssertUnwindSafe(stage)) {
        Ok(Ok(())) => {}
        Ok(Err(error)) => shared.fail(error),
        Err(_) => shared.fail(threads::panicked(name)),
    }
}

fn worker<I, O, S>(
    shared: &Shared,
    state: &impl Fn() -> Result<S>,
    work: &impl Fn(&mut S, &Gauge, I) -> Result<O>,
    items: &Receiver<(u64, I)>,
    done: &Sender<(u64, O)>,
) -> Result<()> {
    let mut state = state()?;
    while let Ok((sequence, item)) = items.recv() {
        shared.gauge.waiting.fetch_sub(1, Ordering::Relaxed);
        if shared.is_stopped() {
            continue; // Drain: dropping items gives their buffers back to whoever waits.
        }
        let output = work(&mut state, &shared.gauge, item)?;
        shared.gauge.finished.fetch_add(1, Ordering::Relaxed);
        if done.send((sequence, output)).is_err() {
            return Ok(());
        }
    }
    Ok(())
}

fn consume_in_order<O>(
    shared: &Shared,
    done: &Receiver<(u64, O)>,
    permits: &Sender<()>,
    consume: &mut impl FnMut(&Gauge, O) -> Result<()>,
) -> Result<()> {
    let mut early = BTreeMap::new();
    let mut next = 0u64;
    while let Ok((sequence, output)) = done.recv() {
        if shared.is_stopped() {
            early.clear();
            continue;
        }
        let fresh = early.insert(sequence, output).is_none();
        debug_assert!(fresh && sequence >= next, "sequence numbers are used once");
        while let Some(output) = early.remove(&next) {
            next += 1;
            shared.gauge.finished.fetch_sub(1, Ordering::Relaxed);
            consume(&shared.gauge, output)?;
            // Fails only when the producer is done.
            let _ = permits.try_send(());
        }
    }
    match early.is_empty() || shared.is_stopped() {
        true => Ok(()),
        false => Err(Error::new(ErrorKind::Internal, format!("item {next} was never produced"))),
    }
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::seq::SliceRandom;
    use rand::{RngExt, SeedableRng};

    use super::*;

    fn plan() -> Plan {
        Plan { workers: 3, items: 8 }
    }

    fn count_to(n: u64) -> impl FnOnce(&Feeder<'_, u64>) -> Result<()> + Send {
        move |feeder| {
            for sequence in 0..n {
                let permit = feeder.permit()?;
                feeder.send(sequence, sequence, permit)?;
            }
            Ok(())
        }
    }

    #[test]
    fn items_leave_in_order() {
        let mut seen = Vec::new();
        run(
            plan(),
            count_to(500),
            || Ok(()),
            |(), _, n| {
                if n % 7 == 0 {
                    std::thread::sleep(Duration::from_micros(300));
                }
                Ok(n * 2)
            },
            |_, n| {
                seen.push(n);
                Ok(())
            },
        )
        .unwrap();
        assert_eq!(seen, (0..500).map(|n| n * 2).collect::<Vec<_>>());
    }

    #[test]
    fn producer_may_send_out_of_order_within_its_permits() {
        let mut seen = Vec::new();
        run(
            plan(),
            |feeder| {
                for base in (0..400).step_by(4) {
                    let permits =
                        [feeder.permit()?, feeder.permit()?, feeder.permit()?, feeder.permit()?];
                    for (n, permit) in [3, 1, 0, 2].into_iter().zip(permits) {
                        feeder.send(base + n, base + n, permit)?;
                    }
                }
                Ok(())
            },
            || Ok(()),
            |(), _, n| Ok(n),
            |_, n: u64| {
                seen.push(n);
                Ok(())
            },
        )
        .unwrap();
        assert!(seen.is_sorted() && seen.len() == 400);
    }

    #[test]
    fn first_error_of_each_stage_wins_and_stops_all() {
        let boom = |what: &str| Error::new(ErrorKind::NoSpace, what.to_owned());
        let in_work = run(
            plan(),
            count_to(1_000_000),
            || Ok(()),
            |(), _, n| {
                if n == 100 { Err(boom("work")) } else { Ok(n) }
            },
            |_, _| Ok(()),
        );
        assert_eq!(in_work.unwrap_err().message(), "work");
        let in_consume = run(
            plan(),
            count_to(1_000_000),
            || Ok(()),
            |(), _, n| Ok(n),
            |_, n| {
                if n == 100 { Err(boom("consume")) } else { Ok(()) }
            },
        );
        assert_eq!(in_consume.unwrap_err().message(), "consume");
        let in_produce = run(
            plan(),
            |_: &Feeder<'_, u64>| Err(boom("produce")),
            || Ok(()),
            |(), _, n| Ok(n),
            |_, _| Ok(()),
        );
        assert_eq!(in_produce.unwrap_err().message(), "produce");
        let in_state = run(
            plan(),
            count_to(1_000_000),
            || Err::<(), _>(boom("state")),
            |(), _, n| Ok(n),
            |_, _| Ok(()),
        );
        assert_eq!(in_state.unwrap_err().message(), "state");
    }

    #[test]
    fn a_panic_becomes_an_error() {
        let outcome = run(
            plan(),
            count_to(10),
            || Ok(()),
            |(), _, n| {
                assert!(n != 5, "on purpose");
                Ok(n)
            },
            |_, _| Ok(()),
        );
        assert_eq!(outcome.unwrap_err().kind(), ErrorKind::Internal);
    }

    /// Where a run of the storm fails, if it does.
    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Failing {
        Nowhere,
        Producer,
        Worker,
        Panic,
        Consumer,
    }

    /// An item that is counted as long as it is anywhere.
    struct Counted<'a>(u64, &'a AtomicUsize);

    impl<'a> Counted<'a> {
        fn new(number: u64, alive: &'a AtomicUsize) -> Counted<'a> {
            alive.fetch_add(1, Ordering::Relaxed);
            Counted(number, alive)
        }
    }

    impl Drop for Counted<'_> {
        fn drop(&mut self) {
            self.1.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Gives way, or dawdles, as `rng` says.
    fn delay(rng: &mut StdRng) {
        match rng.random_range(0..20) {
            0 if !cfg!(miri) => std::thread::sleep(Duration::from_micros(200)),
            0..6 => std::thread::yield_now(),
            _ => {}
        }
    }

    /// One run of random sizes and delays, which sends out of order within its permits, and fails
    /// somewhere or not.
    fn storm(seed: u64) {
        let mut rng = StdRng::seed_from_u64(seed);
        let plan = Plan { workers: rng.random_range(1..5), items: rng.random_range(1..9) };
        let count: u64 = rng.random_range(0..if cfg!(miri) { 12 } else { 120 });
        let stages = [Failing::Producer, Failing::Worker, Failing::Panic, Failing::Consumer];
        let failing = match rng.random_bool(0.4) || count == 0 {
            true => Failing::Nowhere,
            false => stages[rng.random_range(0..stages.len())],
        };
        let fatal = rng.random_range(0..count.max(1));
        let boom = || Error::new(ErrorKind::NoSpace, format!("{failing:?}"));
        let alive = AtomicUsize::new(0);
        let workers = AtomicUsize::new(0);
        let mut seen = Vec::new();
        let outcome = run(
            plan,
            |feeder| {
                let mut rng = StdRng::seed_from_u64(seed ^ 1);
                let mut next = 0;
                while next < count {
                    let mut permits = vec![feeder.permit()?];
                    while (next + permits.len() as u64) < count && rng.random_bool(0.5) {
                        let Some(permit) = feeder.try_permit()? else { break };
                        permits.push(permit);
                    }
                    let mut numbers: Vec<u64> = (next..next + permits.len() as u64).collect();
                    next += permits.len() as u64;
                    numbers.shuffle(&mut rng);
                    for (number, permit) in numbers.into_iter().zip(permits) {
                        if failing == Failing::Producer && number == fatal {
                            return Err(boom());
                        }
                        delay(&mut rng);
                        feeder.send(number, Counted::new(number, &alive), permit)?;
                    }
                }
                Ok(())
            },
            || {
                let number = workers.fetch_add(1, Ordering::Relaxed) as u64;
                Ok(StdRng::seed_from_u64(seed.wrapping_add(number << 32)))
            },
            |rng, _, item| {
                delay(rng);
                assert!(failing != Failing::Panic || item.0 != fatal, "on purpose");
                if failing == Failing::Worker && item.0 == fatal { Err(boom()) } else { Ok(item) }
            },
            |_, item| {
                assert!(alive.load(Ordering::Relaxed) <= plan.items + plan.workers, "too many");
                if failing == Failing::Consumer && item.0 == fatal {
                    return Err(boom());
                }
                seen.push(item.0);
                Ok(())
            },
        );
        let what = format!("VOLTAR_SEED={seed}: {plan:?}, {count} items, {failing:?} at {fatal}");
        match (failing, outcome) {
            (Failing::Nowhere, outcome) => {
                outcome.unwrap_or_else(|error| panic!("{what}: {error:?}"));
                assert!(seen.iter().copied().eq(0..count), "{what}: {seen:?}");
            }
            (Failing::Panic, outcome) => {
                let error = outcome.expect_err(&what);
                assert_eq!(error.kind(), ErrorKind::Internal, "{what}: {error:?}");
            }
            (_, outcome) => assert_eq!(outcome.expect_err(&what).message(), format!("{failing:?}")),
        }
        assert!(seen.iter().copied().eq(0..seen.len() as u64), "{what}: {seen:?}");
        assert_eq!(alive.load(Ordering::Relaxed), 0, "{what}: items were left behind");
    }

    /// Small enough for Miri, which tries other interleavings and weaker memory.
    #[test]
    fn a_storm_of_delays_and_failures_leaves_nothing_behind() {
        let seed = std::env::var("VOLTAR_SEED").ok().and_then(|seed| seed.parse().ok());
        let count = if cfg!(miri) { 4 } else { 100 };
        match seed {
            Some(seed) => storm(seed),
            None => (0..count).for_each(storm),
        }
    }

    #[test]
    fn a_missing_item_is_noticed() {
        let outcome = run(
            plan(),
            |feeder| {
                let permit = feeder.permit()?;
                Ok(feeder.send(1, 1u64, permit)?)
            },
            || Ok(()),
            |(), _, n| Ok(n),
            |_, _| Ok(()),
        );
        assert_eq!(outcome.unwrap_err().kind(), ErrorKind::Internal);
    }
}
