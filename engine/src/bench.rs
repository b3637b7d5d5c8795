//! Measures what this machine can do: each part of a backup by itself, all workers together, and
//! the speed of a source; and says what `--compression auto` would make of it.

use std::fs::OpenOptions;
use std::hint::black_box;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde::Serialize;
use voltar_format::checksum::{chunk_id, crc32c};
use voltar_format::wire::is_zero;

use crate::codec::{Encoder, Level};
use crate::device::file::{Access, FileDevice};
use crate::device::open::open_source;
use crate::device::{Completion, Device, Op, OpKind, Queue};
use crate::error::{Error, Result};
use crate::io::buffer::BufferPool;
use crate::io_engine;
use crate::options::{Context, IoEngine};
use crate::threads;

/// What this machine can do.
#[derive(Clone, Debug, Serialize)]
pub struct BenchReport {
    /// One row per part measured.
    pub rows: Vec<BenchRow>,
    /// How I/O is done: `io_uring ...` or `blocking` with the reason.
    pub io: String,
    /// Worker threads.
    pub threads: usize,
    /// What `--compression auto` would settle on for this source and these processors, in words.
    pub auto: String,
}

/// One part's speed.
#[derive(Clone, Debug, Serialize)]
pub struct BenchRow {
    /// `read`, `hash`, `checksum`, `zero test`, `compress zstd:1` ...
    pub part: String,
    /// Bytes of input per second, all workers together (read: the device).
    pub bytes_per_s: u64,
    /// Input bytes per output byte, for compression rows.
    pub ratio: Option<f64>,
}

/// Bytes of a read and of a piece of sample data.
const PIECE_LEN: usize = 1 << 20;
/// Pieces of sample data.
const PIECES: usize = 16;
/// Bytes a chunk is hashed in.
const CHUNK_LEN: usize = 64 << 10;
/// How long a part is measured.
const PART_TIME: Duration = Duration::from_millis(250);
/// How long reading is measured at most.
const READ_TIME: Duration = Duration::from_secs(3);
/// Reads in flight.
const DEPTH: u32 = 16;
/// Bytes of the file written into a directory.
const FILE_LEN: u64 = 512 << 20;
/// The levels measured, fastest first: those `auto` moves on.
const LEVELS: [i32; 9] = [-50, -24, -14, -9, -6, -4, -2, 1, 3];

/// Measures the parts; with a path (file, device or directory), reads it (a directory: writes a
/// temporary file there) too.
///
/// # Errors
/// If the path cannot be read or written; `Interrupted`; if the wanted I/O engine is unavailable.
pub fn run(path: Option<&Path>, context: &Context) -> Result<BenchReport> {
    let engine = io_engine::choose(context)?;
    let mut rows = Vec::new();
    let mut io = match engine {
        IoEngine::Blocking => "blocking".to_owned(),
        IoEngine::Uring | IoEngine::Auto => "io_uring".to_owned(),
    };
    let mut sample = generated();
    let mut read_speed = None;
    if let Some(path) = path {
        let measured = measure_path(path, engine, context)?;
        io = measured.io;
        read_speed = measured.rows.iter().find(|row| row.part == "read").map(|row| row.bytes_per_s);
        rows.extend(measured.rows);
        if !measured.sample.is_empty() {
            sample = measured.sample;
        }
    }
    let threads = context.worker_count();
    rows.extend(parts(&sample, threads, context)?);
    let auto = auto_words(&rows, read_speed);
    Ok(BenchReport { rows, io, threads, auto })
}

/// What reading (and writing) a path gave.
struct Measured {
    rows: Vec<BenchRow>,
    io: String,
    sample: Vec<Vec<u8>>,
}

fn measure_path(path: &Path, engine: IoEngine, context: &Context) -> Result<Measured> {
    if !path.is_dir() {
        return measure_read(&open_source(path)?, engine, context);
    }
    let file = Temporary::create(path)?;
    let written = file.fill(context)?;
    let device = FileDevice::open(&file.path, Access::Read)
        .map_err(|error| Error::io("cannot read back", file.path.display().to_string(), error))?;
    let mut measured = measure_read(&device, engine, context)?;
    measured.rows.insert(0, row("write", written, None));
    // What was read is what was generated.
    measured.sample.clear();
    Ok(measured)
}

/// A file that is removed when dropped.
struct Temporary {
    path: PathBuf,
    file: std::fs::File,
}

impl Temporary {
    fn create(folder: &Path) -> Result<Temporary> {
        let path = folder.join(format!(".voltar-bench-{}", std::process::id()));
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path);
        let file = file.map_err(|error| {
            Error::io("cannot create a file to measure with", path.display().to_string(), error)
        })?;
        Ok(Temporary { path, file })
    }

    /// Writes the file and waits for the disk; says how fast that was.
    fn fill(&self, context: &Context) -> Result<u64> {
        let words = |error| Error::io("cannot write", self.path.display().to_string(), error);
        let sample = generated();
        let started = Instant::now();
        let mut at = 0;
        for piece in sample.iter().cycle() {
            context.cancel.check()?;
            if at >= FILE_LEN || started.elapsed() > READ_TIME {
                break;
            }
            self.file.write_all_at(piece, at).map_err(words)?;
            at += piece.len() as u64;
        }
        (&self.file).flush().and_then(|()| self.file.sync_data()).map_err(words)?;
        Ok(per_second(at, started.elapsed()))
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // Nobody else knows of it; if it cannot be removed there is nobody to tell here.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Reads from the start, many reads in flight, for a few seconds at most; keeps a sample.
fn measure_read(device: &FileDevice, engine: IoEngine, context: &Context) -> Result<Measured> {
    let words = |error| Error::io("cannot read", device.label(), error);
    let pool = BufferPool::new(DEPTH as usize, PIECE_LEN).map_err(words)?;
    let driver = device.driver(engine, &pool, DEPTH).map_err(words)?;
    io_engine::tell(&*driver, &*context.observer);
    let mut queue = Queue::new(driver, device.geometry(), DEPTH);
    let len = device.len().map_err(words)?;
    let sample_every = (len / PIECES as u64).max(1);
    let mut sample = Vec::new();
    let (mut next, mut read) = (0u64, 0u64);
    let started = Instant::now();
    let mut done: Vec<Completion> = Vec::new();
    loop {
        context.cancel.check()?;
        while next < len && started.elapsed() < READ_TIME && !queue.is_full() {
            let Some(buffer) = pool.try_take() else { break };
            let wanted = (len - next).min(PIECE_LEN as u64) as usize;
            let kind = OpKind::Read { buffer, len: wanted };
            if queue.submit(Op { token: next, kind, offset: next }).is_err() {
                break;
            }
            next += wanted as u64;
        }
        if queue.in_flight() == 0 {
            break;
        }
        queue.wait(&mut done).map_err(words)?;
        for completion in done.drain(..) {
            read += completion.result.map_err(words)? as u64;
            let is_wanted = completion.offset / sample_every >= sample.len() as u64;
            if sample.len() < PIECES && is_wanted && !is_zero(&completion.buffer) {
                sample.push(completion.buffer.to_vec());
            }
        }
    }
    let speed = per_second(read, started.elapsed());
    let direct = if device.geometry().direct { "direct" } else { "through the page cache" };
    let io = format!("{}, {direct}", queue.describe());
    Ok(Measured { rows: vec![row("read", speed, None)], io, sample })
}

/// The parts that workers do, all workers together.
fn parts(sample: &[Vec<u8>], threads: usize, context: &Context) -> Result<Vec<BenchRow>> {
    let zeroes = vec![vec![0u8; PIECE_LEN]];
    let mut rows = Vec::new();
    // A data chunk is told from zeroes by its first bytes; a zero chunk is looked at whole.
    rows.push(row(
        "zero test",
        all_workers(&zeroes, threads, || {
            Ok(|piece: &[u8]| {
                black_box(is_zero(piece));
                Ok(0)
            })
        })?
        .0,
        None,
    ));
    context.cancel.check()?;
    rows.push(row(
        "hash",
        all_workers(sample, threads, || {
            Ok(|piece: &[u8]| {
                piece.chunks(CHUNK_LEN).for_each(|chunk| {
                    black_box(chunk_id(chunk));
                });
                Ok(0)
            })
        })?
        .0,
        None,
    ));
    context.cancel.check()?;
    rows.push(row(
        "checksum",
        all_workers(sample, threads, || {
            Ok(|piece: &[u8]| {
                black_box(crc32c(piece));
                Ok(0)
            })
        })?
        .0,
        None,
    ));
    for level in LEVELS {
        context.cancel.check()?;
        let (speed, ratio) = all_workers(sample, threads, || {
            let mut encoder = Encoder::new()?;
            let mut out = vec![0; PIECE_LEN];
            Ok(move |piece: &[u8]| {
                let len = encoder.encode(piece, Level::Zstd(level), &mut out)?;
                Ok(len.unwrap_or(piece.len()))
            })
        })?;
        rows.push(row(&format!("compress zstd:{level}"), speed, ratio));
    }
    Ok(rows)
}

/// Runs `work` over the sample again and again on all workers: bytes per second, and input bytes
/// per output byte if there was output.
fn all_workers<W>(
    sample: &[Vec<u8>],
    count: usize,
    state: impl Fn() -> Result<W> + Sync,
) -> Result<(u64, Option<f64>)>
where
    W: FnMut(&[u8]) -> Result<usize>,
{
    let (input, output) = (AtomicU64::new(0), AtomicU64::new(0));
    let started = Instant::now();
    let worker = |number: usize| -> Result<()> {
        let mut work = state()?;
        for piece in sample.iter().cycle().skip(number) {
            let out = work(piece)?;
            input.fetch_add(piece.len() as u64, Ordering::Relaxed);
            output.fetch_add(out as u64, Ordering::Relaxed);
            if started.elapsed() >= PART_TIME {
                break;
            }
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let worker = &worker;
        let start = |number| threads::start(scope, "measuring", move || worker(number));
        let started = (0..count.max(1)).map(start).collect::<Result<Vec<_>>>()?;
        started.into_iter().try_for_each(|thread| threads::join("measuring", thread))
    })?;
    let (input, output) = (input.into_inner(), output.into_inner());
    let ratio = (output > 0).then(|| input as f64 / output as f64);
    Ok((per_second(input, started.elapsed()), ratio))
}

/// Which level keeps up with the source, if everything a worker does to a byte is counted.
fn auto_words(rows: &[BenchRow], read: Option<u64>) -> String {
    let Some(read) = read else {
        return "no source was measured; with a path, this says which level keeps up with it"
            .into();
    };
    let speed =
        |part: &str| rows.iter().find(|row| row.part == part).map_or(1, |row| row.bytes_per_s);
    let base = 1.0 / speed("hash") as f64 + 1.0 / speed("checksum") as f64;
    let rate = |level: i32| {
        let compress = 1.0 / speed(&format!("compress zstd:{level}")) as f64;
        1.0 / (base + compress)
    };
    let mib = |rate: f64| rate / f64::from(1 << 20);
    let source = mib(read as f64);
    match LEVELS.iter().rev().find(|level| rate(**level) >= read as f64) {
        Some(level) => format!(
            "zstd:{level}: the strongest level that keeps up with the source ({:.0} MiB/s against \
             {source:.0})",
            mib(rate(*level))
        ),
        None => format!(
            "store: no level keeps up with the source ({source:.0} MiB/s; zstd:{} would do {:.0})",
            LEVELS[0],
            mib(rate(LEVELS[0]))
        ),
    }
}

fn row(part: &str, bytes_per_s: u64, ratio: Option<f64>) -> BenchRow {
    BenchRow { part: part.to_owned(), bytes_per_s, ratio }
}

fn per_second(bytes: u64, time: Duration) -> u64 {
    (bytes as f64 / time.as_secs_f64().max(1e-9)) as u64
}

/// Data as a disk of a virtual machine has it: text, tables of numbers, code-like bytes and what
/// is compressed already, about half of it compressible.
fn generated() -> Vec<Vec<u8>> {
    let mut state = 0x2545_f491_4f6c_dd1du64;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    (0..PIECES).map(|number| generated_piece(number, &mut next)).collect()
}

fn generated_piece(number: usize, next: &mut impl FnMut() -> u64) -> Vec<u8> {
    const WORDS: [&str; 8] = [
        "volume ",
        "kernel: ",
        "0x7ffd ",
        "error ",
        "/usr/lib/",
        "static int ",
        "return;\n",
        "\t\t",
    ];
    let mut piece = Vec::with_capacity(PIECE_LEN + 16);
    while piece.len() < PIECE_LEN {
        let value = next();
        match number % 4 {
            0 => piece.extend_from_slice(WORDS[(value % 8) as usize].as_bytes()),
            1 => piece.extend_from_slice(&((value % 5000) as u32).to_le_bytes()),
            2 => piece.extend_from_slice(&(value & 0x0f0f_00ff_1f0f_003f).to_le_bytes()),
            _ => piece.extend_from_slice(&value.to_le_bytes()),
        }
    }
    piece.truncate(PIECE_LEN);
    piece
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    #[test]
    fn measures_all_parts_and_leaves_no_file() {
        let folder = tempfile::tempdir().unwrap();
        let context = Context { io: IoEngine::Blocking, ..Context::default() };
        let report = run(Some(folder.path()), &context).unwrap();
        let parts: Vec<&str> = report.rows.iter().map(|row| row.part.as_str()).collect();
        assert_eq!(&parts[..5], ["write", "read", "zero test", "hash", "checksum"]);
        assert_eq!(parts.len(), 5 + LEVELS.len());
        assert!(report.rows.iter().all(|row| row.bytes_per_s > 0));
        assert!(report.rows.iter().skip(5).all(|row| row.ratio.is_some_and(|ratio| ratio > 1.0)));
        assert!(report.auto.contains("keeps up"), "{}", report.auto);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn stops_when_asked_and_leaves_no_file() {
        let folder = tempfile::tempdir().unwrap();
        let context = Context::default();
        context.cancel.raise();
        let error = run(Some(folder.path()), &context).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Interrupted);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
