//! Ten million mappings: what changed between two devices of a thin pool, told by us and by
//! `thin_delta`, of metadata that `thin_restore` made. Takes a directory for three files of a
//! gigabyte together, and prints seconds, and the memory of a process that does nothing but read.
#![expect(clippy::unwrap_used, reason = "a benchmark fails by panicking")]

use std::fs::File;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use voltar_engine::source::thin_metadata::Metadata;
use voltar_tests::thin_pool::{Differences, Map, MetadataFile, delta, push, restore};

/// Mappings of each of the two devices.
const MAPPINGS: u64 = 5_000_000;
/// One in so many changes.
const CHANGED: u64 = 100;
/// Blocks of metadata: room for twice what they take.
const METADATA_BLOCKS: u64 = 1 << 18;

/// Makes this program the reader alone.
const READ: &str = "--read";

fn main() {
    let mut arguments = std::env::args().skip(1);
    let folder = arguments.next().expect("usage: big-pool DIRECTORY");
    if folder == READ {
        let found = tell(Path::new(&arguments.next().expect("a file"))).len();
        println!("memory      {} at most, for {found} ranges", peak());
        return;
    }
    let (path, xml) = (Path::new(&folder).join("metadata"), Path::new(&folder).join("xml"));
    restore(&devices(), &path, METADATA_BLOCKS, &xml);
    let (ours, seconds) = timed(|| tell(&path));
    println!("voltar      {seconds:6.2} s for {} ranges of {} mappings", ours.len(), 2 * MAPPINGS);
    let (theirs, seconds) = timed(|| delta(&path, 1, 2));
    println!("thin_delta  {seconds:6.2} s");
    assert!(ours == theirs, "they do not tell the same");
    let reader = Command::new(std::env::current_exe().unwrap()).arg(READ).arg(&path).status();
    assert!(reader.unwrap().success());
}

/// A device of runs of eight blocks, and the same with one block in a hundred moved.
fn devices() -> [Map; 2] {
    // Runs lie apart on both sides, so that each is a range of its own.
    let old: Map = (0..MAPPINGS).map(|n| (n + n / 8, n + 3 * (n / 8))).collect();
    let fresh = 4 * MAPPINGS;
    let moved = |(n, (thin, data)): (u64, (&u64, &u64))| match n % CHANGED {
        0 => (*thin, fresh + n),
        _ => (*thin, *data),
    };
    let new = (0..).zip(&old).map(moved).collect();
    [old, new]
}

fn tell(path: &Path) -> Differences {
    let file = MetadataFile(File::open(path).unwrap());
    let metadata = Metadata::open(&file, 0).unwrap();
    let device = |id| metadata.device(id).unwrap().unwrap();
    let mut differences = Vec::new();
    let take = |range, difference| push(&mut differences, range, difference);
    metadata.diff(&device(1), &device(2), take).unwrap();
    differences
}

fn timed<T>(work: impl FnOnce() -> T) -> (T, f64) {
    let started = Instant::now();
    let result = work();
    (result, started.elapsed().as_secs_f64())
}

/// The most memory that this process had at once, in the kernel's words.
fn peak() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.unwrap_or_default().trim().to_owned()
}
