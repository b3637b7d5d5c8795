//! The data pass: the scout's jobs become reads, many in flight; what they bring goes to the
//! workers and, in log order, to the tally.

use std::collections::HashMap;
use std::ops::Range;

use crossbeam_channel::{Receiver, TryRecvError, bounded};
use voltar_format::limits::FRAME_STORED_LEN_MAX;

use super::plan::{BLOCK, Job};
use super::tally::Tally;
use super::work::{Checked, Worker};
use crate::archive::open::Archive;
use crate::cancel::Cancel;
use crate::device::{Completion, Op, OpKind, Queue};
use crate::error::{Error, ErrorKind, Result};
use crate::io::buffer::{Buffer, BufferPool};
use crate::io_engine;
use crate::limit::Limit;
use crate::options::{Context, IoEngine, VerifyRequest};
use crate::pipeline::{self, Feeder, Permit, Plan};
use crate::threads;

/// Bytes per read; a single frame may need a little more.
pub(super) const READ_LEN: u64 = 1 << 20;

/// The longest read: one frame and the rest of the blocks it begins and ends in.
const READ_LEN_MAX: u64 = (FRAME_STORED_LEN_MAX as u64 + 2 * BLOCK).next_multiple_of(BLOCK);

/// Reads in flight.
const DEPTH: u32 = 16;

/// Jobs that the scout may be ahead.
const AHEAD: usize = 16;

/// A job with what was read for it.
pub(super) struct Loaded {
    /// The job.
    pub job: Job,
    /// What was read, if anything was to be.
    pub bytes: Option<Result<Buffer, std::io::Error>>,
}

/// Reads, checks and counts everything that `scout` names.
///
/// # Errors
/// `Interrupted`; if I/O cannot be set up; the scout's. Damage goes to the tally.
pub(super) fn pass(
    archive: &Archive,
    request: &VerifyRequest,
    context: &Context,
    tally: &mut Tally<'_>,
    scout: impl FnOnce(&mut dyn FnMut(Job) -> Result<()>) -> Result<()> + Send,
) -> Result<()> {
    let engine = io_engine::choose(context)?;
    let plan = plan(archive, context);
    let pool = BufferPool::new(plan.items, buffer_len(archive))
        .map_err(|error| Error::io("no memory to read", archive.label(), error))?;
    let reader = Reader { archive, pool, engine, context };
    let full = !request.stored;
    pipeline::run(
        plan,
        |feeder| reader.run(feeder, scout),
        || Worker::new(archive, full),
        |worker, _, loaded: Loaded| Ok(worker.check(loaded)),
        |_, checked: Checked| tally.take(checked),
    )
}

fn plan(archive: &Archive, context: &Context) -> Plan {
    let workers = context.worker_count();
    let wanted = DEPTH as u64 + 4 * workers as u64;
    let affordable = context.memory_bytes / 4 / READ_LEN_MAX;
    // A small archive has few reads.
    let useful = archive.end().0 / READ_LEN * 2 + 4;
    let items = wanted.min(affordable).min(useful).max(2) as usize;
    Plan { workers, items }
}

fn buffer_len(archive: &Archive) -> usize {
    archive.end().0.next_multiple_of(BLOCK).clamp(BLOCK, READ_LEN_MAX) as usize
}

struct Reader<'a> {
    archive: &'a Archive,
    pool: BufferPool,
    engine: IoEngine,
    context: &'a Context,
}

impl Reader<'_> {
    /// Runs the scout beside the reads.
    fn run(
        &self,
        feeder: &Feeder<'_, Loaded>,
        scout: impl FnOnce(&mut dyn FnMut(Job) -> Result<()>) -> Result<()> + Send,
    ) -> Result<()> {
        let (job_in, job_out) = bounded(AHEAD);
        let cancel = &self.context.cancel;
        std::thread::scope(|scope| {
            let scout = threads::start(scope, "scout", move || {
                scout(&mut |job| {
                    cancel.check()?;
                    job_in.send(job).map_err(|_| pipeline::Stopped.into())
                })
            })?;
            let read = self.read_all(feeder, &job_out);
            drop(job_out);
            let scouted = threads::join("scout", scout);
            // Once reading ended early the scout's error is that nobody listens any more.
            read.and(scouted)
        })
    }

    fn read_all(&self, feeder: &Feeder<'_, Loaded>, jobs: &Receiver<Job>) -> Result<()> {
        let words = |error| Error::io("cannot set up I/O on", self.archive.label(), error);
        let depth = DEPTH.min(self.pool.count() as u32).max(1);
        let home = &self.archive.home;
        let driver = home.driver(self.engine, &self.pool, depth).map_err(words)?;
        io_engine::tell(&*driver, &*self.context.observer);
        let queue = Queue::new(driver, home.geometry(), depth);
        let limit = Limit::new(self.context.limit_bytes_per_s);
        let pool = &self.pool;
        let mut flow = Flow { feeder, queue, pool, limit, waiting: HashMap::new(), sequence: 0 };
        flow.run(jobs, &self.context.cancel).map_err(|error| match error.subject() {
            None => error.on(self.archive.label()),
            Some(_) => error,
        })
    }
}

/// Reads in flight, and the jobs they are for.
struct Flow<'a> {
    feeder: &'a Feeder<'a, Loaded>,
    queue: Queue,
    pool: &'a BufferPool,
    limit: Limit,
    waiting: HashMap<u64, (Job, Permit)>,
    sequence: u64,
}

impl Flow<'_> {
    fn run(&mut self, jobs: &Receiver<Job>, cancel: &Cancel) -> Result<()> {
        let mut permit = None;
        let mut is_over = false;
        while !is_over || self.queue.in_flight() > 0 {
            cancel.check()?;
            while !is_over && !self.queue.is_full() {
                if permit.is_none() {
                    permit = self.permit()?;
                }
                let Some(held) = permit.take() else { break };
                match self.next_job(jobs) {
                    Ok(job) => self.start(job, held, cancel)?,
                    Err(TryRecvError::Empty) => {
                        permit = Some(held);
                        break;
                    }
                    Err(TryRecvError::Disconnected) => is_over = true,
                }
            }
            self.reap()?;
        }
        Ok(())
    }

    /// The right to begin one more; waits for it only if nothing else can go on.
    fn permit(&self) -> Result<Option<Permit>> {
        Ok(match self.queue.in_flight() {
            0 => Some(self.feeder.permit()?),
            _ => self.feeder.try_permit()?,
        })
    }

    fn next_job(&self, jobs: &Receiver<Job>) -> Result<Job, TryRecvError> {
        match self.queue.in_flight() {
            0 => jobs.recv().map_err(|_| TryRecvError::Disconnected),
            _ => jobs.try_recv(),
        }
    }

    fn start(&mut self, job: Job, permit: Permit, cancel: &Cancel) -> Result<()> {
        let token = self.sequence;
        self.sequence += 1;
        let Some(read) = read_of(&job) else {
            return Ok(self.feeder.send(token, Loaded { job, bytes: None }, permit)?);
        };
        // A permit is as good as a buffer: there are as many, and a buffer goes back first.
        let buffer = self.pool.take();
        let len = ((read.end - read.start) as usize).min(buffer.capacity());
        self.limit.pass(len as u64, cancel)?;
        let mut op = Op { token, kind: OpKind::Read { buffer, len }, offset: read.start };
        self.waiting.insert(token, (job, permit));
        while let Err(full) = self.queue.submit(op) {
            op = full;
            self.reap()?;
        }
        Ok(())
    }

    fn reap(&mut self) -> Result<()> {
        let mut done: Vec<Completion> = Vec::new();
        self.queue
            .wait(&mut done)
            .map_err(|error| Error::new(ErrorKind::Io, "cannot read").because(error))?;
        for Completion { token, buffer, result, .. } in done {
            let Some((job, permit)) = self.waiting.remove(&token) else { continue };
            let bytes = Some(result.map(|_| buffer));
            self.feeder.send(token, Loaded { job, bytes }, permit)?;
        }
        Ok(())
    }
}

/// What is to be read for a job.
fn read_of(job: &Job) -> Option<Range<u64>> {
    match job {
        Job::Frames { read, .. } | Job::Pages { read, .. } => Some(read.clone()),
        _ => None,
    }
}
