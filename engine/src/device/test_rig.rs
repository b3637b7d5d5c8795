//! Things the device tests share: real files and loop devices, and the queues over them.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use tempfile::TempDir;

use super::{Device, Queue};
use crate::io::buffer::BufferPool;
use crate::io::op::{Completion, Op, OpKind};
use crate::options::IoEngine;

/// Both ways to run a data plane.
pub(crate) const ENGINES: [IoEngine; 2] = [IoEngine::Uring, IoEngine::Blocking];

/// Whether `engine` can run here; says so if not.
pub(crate) fn can_run(engine: IoEngine) -> bool {
    let can = crate::io::probe::choose(engine).is_ok();
    if !can {
        eprintln!("skipped: {engine:?} is not to be had here");
    }
    can
}

/// Bytes that differ from place to place.
pub(crate) fn pattern(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..len).map(|_| next()).collect()
}

/// A folder on a file system that lives in memory, and one that does not.
pub(crate) fn folders() -> Vec<TempDir> {
    let on_disk = tempfile::tempdir_in(std::env::temp_dir()).unwrap();
    let mut folders = vec![on_disk];
    folders.extend(tempfile::tempdir_in("/dev/shm"));
    folders
}

/// A file that holds `bytes`.
pub(crate) fn file_with(folder: &Path, name: &str, bytes: &[u8]) -> PathBuf {
    let path = folder.join(name);
    let file = File::create(&path).unwrap();
    file.write_all_at(bytes, 0).unwrap();
    path
}

/// A loop device, detached when dropped. One at a time on this machine: `losetup --find` opens
/// the devices of others for a moment, which the guard would notice.
pub(crate) struct Loop {
    pub(crate) path: PathBuf,
    turn: Arc<File>,
}

impl Loop {
    /// Sets one up on `backing`; `None` (and says so) where that is refused.
    pub(crate) fn set_up(backing: &Path, options: &[&str]) -> Option<Loop> {
        let turn = File::create(std::env::temp_dir().join("voltar-loop-test.lock")).ok()?;
        turn.lock().ok()?;
        Loop::find(backing, options, Arc::new(turn))
    }

    /// Sets another one up in the same turn.
    pub(crate) fn beside(&self, backing: &Path, options: &[&str]) -> Option<Loop> {
        Loop::find(backing, options, Arc::clone(&self.turn))
    }

    fn find(backing: &Path, options: &[&str], turn: Arc<File>) -> Option<Loop> {
        let output = Command::new("losetup")
            .args(["--find", "--show"])
            .args(options)
            .arg(backing)
            .output()
            .ok()?;
        if !output.status.success() {
            eprintln!("skipped: no loop devices: {}", String::from_utf8_lossy(&output.stderr));
            return None;
        }
        let path = PathBuf::from(String::from_utf8(output.stdout).unwrap().trim());
        Some(Loop { path, turn })
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("--detach").arg(&self.path).status();
    }
}

/// A queue with a pool of its own.
pub(crate) fn queue(device: &dyn Device, engine: IoEngine, depth: u32) -> (Queue, BufferPool) {
    let pool = BufferPool::new(depth as usize, 1 << 16).unwrap();
    let driver = device.driver(engine, &pool, depth).unwrap();
    (Queue::new(driver, device.geometry(), depth), pool)
}

/// Reads `len` bytes at `offset` through `queue`.
pub(crate) fn read_one(
    queue: &mut Queue,
    pool: &BufferPool,
    offset: u64,
    len: usize,
) -> Completion {
    let kind = OpKind::Read { buffer: pool.take(), len };
    one(queue, Op { token: 1, kind, offset })
}

/// Writes `bytes` at `offset` through `queue`.
pub(crate) fn write_one(
    queue: &mut Queue,
    pool: &BufferPool,
    offset: u64,
    bytes: &[u8],
) -> Completion {
    let mut buffer = pool.take();
    buffer.fill_from(bytes);
    one(queue, Op { token: 1, kind: OpKind::Write { buffer, from: 0, len: bytes.len() }, offset })
}

fn one(queue: &mut Queue, op: Op) -> Completion {
    queue.submit(op).unwrap();
    let mut done = Vec::new();
    queue.wait(&mut done).unwrap();
    assert_eq!(done.len(), 1);
    done.remove(0)
}

/// Reads all of `device` through a queue, many reads at once.
pub(crate) fn read_all(device: &dyn Device, engine: IoEngine) -> Vec<u8> {
    let (mut queue, pool) = queue(device, engine, 8);
    let mut bytes = vec![0; device.len().unwrap() as usize];
    let mut done = Vec::new();
    let mut next = 0;
    while next < bytes.len() || queue.in_flight() > 0 {
        while next < bytes.len() && !queue.is_full() {
            let Some(buffer) = pool.try_take() else { break };
            let len = (bytes.len() - next).min(pool.buffer_len());
            let op =
                Op { token: next as u64, kind: OpKind::Read { buffer, len }, offset: next as u64 };
            queue.submit(op).unwrap();
            next += len;
        }
        queue.wait(&mut done).unwrap();
        for completion in done.drain(..) {
            let count = completion.result.unwrap();
            assert_eq!(count, completion.buffer.len());
            let start = completion.offset as usize;
            bytes[start..start + count].copy_from_slice(&completion.buffer);
        }
    }
    bytes
}

/// Writes `bytes` to the start of `device` through a queue, many writes at once.
pub(crate) fn write_all(device: &dyn Device, engine: IoEngine, bytes: &[u8]) {
    let (mut queue, pool) = queue(device, engine, 8);
    let mut done = Vec::new();
    let mut next = 0;
    while next < bytes.len() || queue.in_flight() > 0 {
        while next < bytes.len() && !queue.is_full() {
            let Some(mut buffer) = pool.try_take() else {
                break;
            };
            let len = (bytes.len() - next).min(pool.buffer_len());
            buffer.fill_from(&bytes[next..next + len]);
            let kind = OpKind::Write { buffer, from: 0, len };
            queue.submit(Op { token: next as u64, kind, offset: next as u64 }).unwrap();
            next += len;
        }
        queue.wait(&mut done).unwrap();
        for completion in done.drain(..) {
            completion.result.unwrap();
        }
    }
}
