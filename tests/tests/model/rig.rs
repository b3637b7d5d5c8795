//! What all tests of this binary share: archives in memory, volumes read back by their map alone,
//! seeds that are printed, and a clock that ends what hangs.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use voltar_engine::archive::Home;
use voltar_engine::archive::index::Index;
use voltar_engine::archive::open::Archive;
use voltar_engine::archive::snapshots::Snapshot;
use voltar_engine::archive::store::Store;
use voltar_engine::backup;
use voltar_engine::device::Extents;
use voltar_engine::device::memory::MemoryDevice;
use voltar_engine::error::Result;
use voltar_engine::options::{
    ArchiveHome, BackupRequest, Changes, Compression, Context, Dedup, OnReadError, ParentChoice,
    VerifyRequest,
};
use voltar_engine::report::{BackupReport, VerifyReport};
use voltar_engine::source::View;
use voltar_engine::verify;
use voltar_format::ChunkIndex;
use voltar_format::frame::ItemKind;
use voltar_format::manifest::Volume;
use voltar_format::map::Entry;
use voltar_format::walk::Cursor;

/// A backup of small chunks, packed by zstd.
pub fn request() -> BackupRequest {
    BackupRequest {
        sources: Vec::new(),
        archive: ArchiveHome::File("memory".into()),
        parent: ParentChoice::Auto,
        changes: Changes::Auto,
        audit_share: 0.01,
        compression: Compression::Zstd(1),
        chunk_len: Some(4096),
        attach: Vec::new(),
        tags: BTreeMap::new(),
        dedup: Dedup::On,
        on_read_error: OnReadError::Fail,
        holding: Default::default(),
        dry_run: false,
    }
}

/// Two threads and little memory: these volumes are small.
pub fn context() -> Context {
    Context { threads: NonZeroUsize::new(2), memory_bytes: 64 << 20, ..Context::default() }
}

/// An empty place for an archive.
pub fn blank() -> MemoryDevice {
    MemoryDevice::new(0).growing()
}

/// A place that holds these bytes and can grow.
pub fn holding(bytes: &[u8]) -> MemoryDevice {
    MemoryDevice::from_bytes(bytes).growing()
}

/// The volume `name` on `device`.
pub fn view_of(name: &str, device: Arc<dyn Extents>) -> View {
    let size = device.len().unwrap();
    View {
        name: name.into(),
        description: "memory".into(),
        device,
        size,
        change_source: None,
        degraded: None,
    }
}

/// The volume `disk` with these bytes.
pub fn disk(bytes: &[u8]) -> View {
    view_of("disk", Arc::new(MemoryDevice::from_bytes(bytes)))
}

/// One backup of `views` into `home`.
pub fn back_up(home: &(impl Home + Clone + 'static), views: &[View]) -> Result<BackupReport> {
    back_up_as(home, views, &request())
}

/// As [`back_up`], the way `request` wants it.
pub fn back_up_as(
    home: &(impl Home + Clone + 'static),
    views: &[View],
    request: &BackupRequest,
) -> Result<BackupReport> {
    Ok(backup::run_in(request, views, Arc::new(home.clone()), &context())?)
}

/// The archive in `home`.
pub fn open(home: &(impl Home + Clone + 'static)) -> Result<Archive> {
    Archive::open(Arc::new(home.clone()))
}

/// Everything verified, end to end.
pub fn verify(archive: &Archive) -> Result<VerifyReport> {
    verify_as(archive, false)
}

/// Everything verified, end to end or as it is stored.
pub fn verify_as(archive: &Archive, stored: bool) -> Result<VerifyReport> {
    let request = VerifyRequest {
        archive: "memory".into(),
        snapshot: None,
        stored,
        sample_percent: None,
        resume: None,
    };
    Ok(verify::verify_archive(archive, &request, &context())?)
}

/// The snapshots of an archive, oldest first.
pub fn snapshots(archive: &Archive) -> Result<Vec<Snapshot>> {
    let mut all = archive.snapshots().collect::<Result<Vec<_>>>()?;
    all.reverse();
    Ok(all)
}

/// A volume's bytes by its map alone, from the newest index: no pipeline, nothing in common with
/// what restores.
pub fn read_volume(archive: &Archive, volume: &Volume) -> Result<Vec<u8>> {
    let runs = archive.last.as_ref().map(|commit| commit.runs.clone()).unwrap_or_default();
    let index = Index::new(Arc::clone(&archive.home), runs);
    let mut store = Store::new(Arc::clone(&archive.home), index)?;
    let shape = volume.shape().expect("a decoded manifest has shapes");
    let mut cursor = Cursor::new(shape, volume.root);
    let mut bytes = Vec::new();
    while let Some(run) = cursor.next_run(&mut store)? {
        match run.entry {
            Entry::Data(id) | Entry::Partial(id) => {
                bytes.extend(store.item(&id, ItemKind::Chunk)?);
            }
            Entry::Zero | Entry::Unreadable => {
                let end = shape.chunk_range(ChunkIndex(run.chunks.end - 1)).end;
                bytes.resize(end as usize, 0);
            }
        }
    }
    Ok(bytes)
}

/// Bytes that look like a disk: zeroes, text-like runs, noise, repeated blocks.
pub fn disk_like(rng: &mut StdRng, len: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(len);
    while bytes.len() < len {
        let piece = rng.random_range(1..=len.div_ceil(4).max(2));
        match rng.random_range(0..4) {
            0 => bytes.resize(bytes.len() + piece, 0),
            1 => bytes.extend((0..piece).map(|at| (at / 13) as u8 ^ 0x5a)),
            2 => bytes.extend((0..piece).map(|_| rng.random::<u8>())),
            _ => bytes.resize(bytes.len() + piece, rng.random()),
        }
    }
    bytes.truncate(len);
    bytes
}

/// Noise: every chunk is new, none shrinks.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut bytes = vec![0; len];
    rand::Rng::fill_bytes(&mut rng, &mut bytes);
    bytes
}

/// Runs `body`, which must come back within `seconds`.
pub fn within<T: Send + 'static>(
    seconds: u64,
    what: &str,
    body: impl FnOnce() -> T + Send + 'static,
) -> T {
    let (sender, receiver) = mpsc::channel();
    let thread = std::thread::spawn(move || {
        // Whoever waits may have given up.
        let _ = sender.send(body());
    });
    match receiver.recv_timeout(Duration::from_secs(seconds)) {
        Ok(value) => {
            thread.join().unwrap();
            value
        }
        Err(mpsc::RecvTimeoutError::Timeout) => panic!("{what}: no answer within {seconds} s"),
        Err(mpsc::RecvTimeoutError::Disconnected) => match thread.join() {
            Err(panic) => std::panic::resume_unwind(panic),
            Ok(()) => unreachable!("the thread sent nothing and did not panic"),
        },
    }
}

/// Prints the seed if the test that holds it panics.
pub struct Seed {
    /// What the test calls its case.
    pub name: &'static str,
    /// The seed.
    pub value: u64,
}

impl Drop for Seed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}: failed with VOLTAR_SEED={}", self.name, self.value);
        }
    }
}

/// Runs `case` with `count` seeds: those from 0 on, or only `VOLTAR_SEED` if that is set, or
/// seeds of the moment for `VOLTAR_SOAK` seconds if that is set. Returns how many ran.
pub fn for_seeds(name: &'static str, count: u64, mut case: impl FnMut(u64)) -> u64 {
    let number = |key| std::env::var(key).ok().and_then(|text: String| text.parse::<u64>().ok());
    let mut run = |value| {
        let _seed = Seed { name, value };
        case(value);
    };
    if let Some(seed) = number("VOLTAR_SEED") {
        run(seed);
        return 1;
    }
    (0..count).for_each(&mut run);
    let Some(soak) = number("VOLTAR_SOAK") else { return count };
    let end = Instant::now() + Duration::from_secs(soak);
    let mut ran = count;
    while Instant::now() < end {
        run(rand::random());
        ran += 1;
    }
    println!("{name}: {ran} cases");
    ran
}
