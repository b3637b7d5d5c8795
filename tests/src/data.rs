//! Bytes that replay from a seed, and a directory that goes away.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use tempfile::TempDir;

/// SplitMix64: small, fast, the same everywhere.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// A generator that replays from `seed`.
    pub fn new(seed: u64) -> Rng {
        Rng(seed)
    }

    /// A fresh seed, or the one in `VOLTAR_SEED`; printed, so that a failure can be replayed.
    pub fn fresh(test: &str) -> Rng {
        let seed = match std::env::var("VOLTAR_SEED") {
            Ok(seed) => seed.parse().expect("VOLTAR_SEED is a number"),
            Err(_) => SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64,
        };
        eprintln!("{test}: VOLTAR_SEED={seed} replays it");
        Rng(seed)
    }

    /// The next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.next_u64() % end
    }

    /// Fills `bytes`.
    pub fn fill(&mut self, bytes: &mut [u8]) {
        for piece in bytes.chunks_mut(8) {
            let word = self.next_u64().to_le_bytes();
            piece.copy_from_slice(&word[..piece.len()]);
        }
    }

    /// `len` bytes that do not compress.
    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.fill(&mut bytes);
        bytes
    }
}

/// A disk of `len` bytes: random, compressible and zero stretches in turn, random first and last.
pub fn disk(seed: u64, len: usize) -> Vec<u8> {
    let mut rng = Rng::new(seed);
    let mut bytes = Vec::with_capacity(len);
    while bytes.len() < len {
        let piece = (rng.below(200_000) + 1) as usize;
        let piece = piece.min(len - bytes.len());
        match if bytes.is_empty() { 0 } else { rng.below(3) } {
            0 => bytes.extend(rng.bytes(piece)),
            1 => bytes.extend((0..piece).map(|at| b"all work and no play "[at % 21])),
            _ => bytes.resize(bytes.len() + piece, 0),
        }
    }
    if let Some(last) = bytes.last_mut() {
        *last |= 1;
    }
    bytes
}

/// A directory of a test's own, removed when dropped.
#[derive(Debug)]
pub struct Scratch(TempDir);

impl Default for Scratch {
    fn default() -> Self {
        Scratch::new()
    }
}

impl Scratch {
    /// Below the directory for temporary files.
    pub fn new() -> Scratch {
        Scratch(TempDir::with_prefix("voltar-").expect("a temporary directory can be made"))
    }

    /// Where it is.
    pub fn dir(&self) -> &Path {
        self.0.path()
    }

    /// The path of `name` in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir().join(name)
    }

    /// Writes a file.
    pub fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, bytes).unwrap();
        path
    }

    /// Overwrites a part of a file.
    pub fn patch(&self, name: &str, offset: u64, bytes: &[u8]) {
        let file = File::options().write(true).open(self.path(name)).unwrap();
        file.write_all_at(bytes, offset).unwrap();
    }

    /// Flips one bit of a file.
    pub fn flip(&self, name: &str, offset: u64, bit: u8) {
        let file = File::options().read(true).write(true).open(self.path(name)).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, offset).unwrap();
        file.write_all_at(&[byte[0] ^ (1 << bit)], offset).unwrap();
    }

    /// Reads a file.
    pub fn read(&self, name: &str) -> Vec<u8> {
        let path = self.path(name);
        fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }

    /// Length of a file.
    pub fn len(&self, name: &str) -> u64 {
        fs::metadata(self.path(name)).unwrap().len()
    }

    /// Bytes that a file takes on the medium.
    pub fn allocated(&self, name: &str) -> u64 {
        fs::metadata(self.path(name)).unwrap().blocks() * 512
    }

    /// Every file with its bytes, to see afterwards that nothing changed.
    pub fn contents(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let mut found = BTreeMap::new();
        gather(self.dir(), &mut found);
        found
    }
}

fn gather(dir: &Path, found: &mut BTreeMap<PathBuf, Vec<u8>>) {
    for entry in fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        let kind = entry.file_type().unwrap();
        match (kind.is_dir(), kind.is_file()) {
            (true, _) => gather(&entry.path(), found),
            (_, true) => drop(found.insert(entry.path(), fs::read(entry.path()).unwrap())),
            _ => drop(found.insert(entry.path(), Vec::new())),
        }
    }
}

/// Fails naming the first difference, instead of printing megabytes.
#[track_caller]
pub fn assert_same(got: &[u8], want: &[u8], what: &str) {
    if got == want {
        return;
    }
    let first = got.iter().zip(want).position(|(got, want)| got != want);
    panic!("{what}: {} and {} bytes, first difference at {first:?}", got.len(), want.len());
}
