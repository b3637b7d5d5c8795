//! The same contract on plain positional reads and writes, a few threads deep.
//!
//! For kernels and sandboxes that refuse io_uring. With `O_DIRECT` it reaches the same throughput
//! for about 25 ms of CPU per GB more (measured on Linux 6.18).

use std::io;
use std::os::unix::fs::FileExt;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};

use super::op::{Completion, Driver, Op};
use super::probe;
use super::route::Files;

/// Most threads of one driver: four already saturate a device at 1 MiB per transfer.
const THREADS_MAX: u32 = 8;

/// How long a drop waits for transfers that have begun.
const DRAIN_MAX: Duration = Duration::from_secs(10);

/// A [`Driver`] on `pread` and `pwrite`.
pub struct BlockingDriver {
    /// `None` once dropping.
    requests: Option<Sender<Op>>,
    /// A copy of the threads' end, to take back what no thread has begun.
    unbegun: Receiver<Op>,
    completions: Receiver<Completion>,
    threads: Vec<JoinHandle<()>>,
    in_flight: usize,
    depth: usize,
    notice: Option<String>,
}

impl BlockingDriver {
    /// Threads for `files`, for up to `depth` (at least 1) operations in flight.
    ///
    /// # Errors
    /// If the system refuses a thread.
    pub fn new(files: &Files, depth: u32) -> io::Result<Self> {
        let depth = depth.max(1);
        let (requests, unbegun) = crossbeam_channel::bounded(depth as usize);
        let (finish, completions) = crossbeam_channel::bounded(depth as usize);
        let threads = (0..depth.min(THREADS_MAX))
            .map(|_| spawn(files.clone(), unbegun.clone(), finish.clone()))
            .collect::<io::Result<Vec<_>>>()?;
        let requests = Some(requests);
        Ok(BlockingDriver {
            requests,
            unbegun,
            completions,
            threads,
            in_flight: 0,
            depth: depth as usize,
            notice: None,
        })
    }

    /// The same, because there is no ring.
    pub fn for_want_of_a_ring(mut self, why: &io::Error) -> Self {
        self.notice = Some(probe::falling_back(why));
        self
    }

    fn reap_ready(&mut self, done: &mut Vec<Completion>) {
        while let Ok(completion) = self.completions.try_recv() {
            self.in_flight -= 1;
            done.push(completion);
        }
    }
}

impl Driver for BlockingDriver {
    fn submit(&mut self, op: Op) -> Result<(), Op> {
        assert!(op.fits(), "an operation of {} bytes does not fit its buffer", op.len());
        if self.in_flight == self.depth {
            return Err(op);
        }
        match &self.requests {
            // Never blocks: the channel has room for `depth` operations.
            Some(requests) => requests.send(op).map_err(|refused| refused.into_inner())?,
            None => return Err(op),
        }
        self.in_flight += 1;
        Ok(())
    }

    fn wait(&mut self, done: &mut Vec<Completion>) -> io::Result<()> {
        if self.in_flight == 0 {
            return Ok(());
        }
        let first = self
            .completions
            .recv()
            .map_err(|_| io::Error::other("the threads of the blocking I/O engine are gone"))?;
        self.in_flight -= 1;
        done.push(first);
        self.reap_ready(done);
        Ok(())
    }

    fn poll(&mut self, done: &mut Vec<Completion>) -> io::Result<()> {
        self.reap_ready(done);
        Ok(())
    }

    fn in_flight(&self) -> usize {
        self.in_flight
    }

    fn notice(&self) -> Option<&str> {
        self.notice.as_deref()
    }

    fn describe(&self) -> String {
        format!("blocking ({} threads)", self.threads.len())
    }
}

impl Drop for BlockingDriver {
    /// What no thread has begun is not begun; what has begun is waited for, with a bound. A
    /// thread that hangs in the kernel keeps its operation and with it the buffer.
    fn drop(&mut self) {
        self.requests = None;
        self.in_flight -= self.unbegun.try_iter().count();
        let deadline = Instant::now() + DRAIN_MAX;
        while self.in_flight > 0 && self.completions.recv_deadline(deadline).is_ok() {
            self.in_flight -= 1;
        }
        if self.in_flight == 0 {
            for thread in self.threads.drain(..) {
                let _ = thread.join();
            }
        }
    }
}

fn spawn(
    files: Files,
    requests: Receiver<Op>,
    finish: Sender<Completion>,
) -> io::Result<JoinHandle<()>> {
    std::thread::Builder::new().name("voltar-io".to_owned()).spawn(move || {
        for op in requests {
            if finish.send(transfer(&files, op)).is_err() {
                return;
            }
        }
    })
}

/// One system call; the queue above completes what it leaves short.
fn transfer(files: &Files, op: Op) -> Completion {
    let file = files.file(files.route(&op));
    op.perform(|bytes, at| file.read_at(bytes, at), |bytes, at| file.write_at(bytes, at))
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::sync::Arc;

    use super::*;
    use crate::io::buffer::BufferPool;
    use crate::io::op::OpKind;

    fn files() -> Files {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&[7; 8192], 0).unwrap();
        Files { buffered: Arc::new(file), direct: None, block_len: 4096 }
    }

    fn read(pool: &BufferPool, token: u64) -> Op {
        Op { token, kind: OpKind::Read { buffer: pool.take(), len: 4096 }, offset: 4096 }
    }

    #[test]
    fn over_full_driver_gives_the_operation_back() {
        let pool = BufferPool::new(3, 4096).unwrap();
        let mut driver = BlockingDriver::new(&files(), 2).unwrap();
        driver.submit(read(&pool, 1)).unwrap();
        driver.submit(read(&pool, 2)).unwrap();
        assert_eq!(driver.submit(read(&pool, 3)).unwrap_err().token, 3);
        let mut done = Vec::new();
        while driver.in_flight() > 0 {
            driver.wait(&mut done).unwrap();
        }
        assert_eq!(done.len(), 2);
        assert!(done.iter().all(|completion| *completion.buffer == [7; 4096]));
    }

    #[test]
    fn drop_with_io_in_flight_gives_every_buffer_back() {
        let pool = BufferPool::new(20, 4096).unwrap();
        let mut driver = BlockingDriver::new(&files(), 20).unwrap();
        for token in 0..20 {
            driver.submit(read(&pool, token)).unwrap();
        }
        drop(driver);
        assert_eq!(pool.available(), 20);
    }

    #[test]
    fn a_failed_transfer_is_the_operations() {
        let pool = BufferPool::new(1, 4096).unwrap();
        let folder = Arc::new(File::open("/").unwrap());
        let files = Files { buffered: folder, direct: None, block_len: 4096 };
        let mut driver = BlockingDriver::new(&files, 1).unwrap();
        driver.submit(read(&pool, 4)).unwrap();
        let mut done = Vec::new();
        driver.wait(&mut done).unwrap();
        assert!(done[0].result.is_err());
        assert_eq!((done[0].token, done[0].buffer.len()), (4, 0));
    }
}
