//! Random scripts of writes, backups, comparisons and restores against plain byte vectors.
//!
//! A case is one seed: it decides sizes (multiples of nothing), chunk lengths, the medium (memory,
//! or real files on a tmpfs or a disk with one of the two I/O engines) and every step. At the end
//! every snapshot that was ever made must restore exactly.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use voltar_engine::archive::open::Archive;
use voltar_engine::backup;
use voltar_engine::device::memory::MemoryDevice;
use voltar_engine::device::open::open_archive_reader;
use voltar_engine::diff::diff_archive;
use voltar_engine::inspect;
use voltar_engine::io::probe;
use voltar_engine::options::{
    ArchiveHome, BackupRequest, Changes, Compression, Context, Delta, IoEngine, OnDamage,
    ParentChoice, RestoreRequest, Selector, SourceRequest, TargetRequest,
};
use voltar_engine::report::{BackupReport, VolumeRestore};
use voltar_engine::restore::job::Job;
use voltar_engine::restore::volume::{How, Restore};
use voltar_engine::source::View;
use voltar_engine::source::memory::MemoryChanges;
use voltar_engine::{restore, verify};

use crate::rig::{
    blank, context, disk_like, for_seeds, noise, read_volume, request, snapshots, verify as prove,
};

const CHUNK_LENS: [u32; 9] =
    [4096, 8192, 16384, 32768, 65536, 131_072, 262_144, 524_288, 1_048_576];

#[test]
fn scripts_on_memory() {
    let mut steps = 0;
    let cases = for_seeds("scripts_on_memory", cases(60), |seed| {
        steps += run(seed, Medium::Memory(blank()));
    });
    println!("{cases} scripts, {steps} steps");
}

#[test]
fn scripts_on_a_disk_with_blocking_io() {
    let directory = tempfile::tempdir().unwrap();
    on_files("scripts_on_a_disk_with_blocking_io", directory.path(), IoEngine::Blocking);
}

#[test]
fn scripts_on_a_disk_with_uring() {
    let name = "scripts_on_a_disk_with_uring";
    if let Err(error) = probe::choose(IoEngine::Uring) {
        return voltar_tests::skip(name, &format!("io_uring is not available: {error}"));
    }
    // The temporary directory may be a tmpfs; the build's own is on a disk wherever one builds.
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    on_files(name, directory.path(), IoEngine::Uring);
}

#[test]
fn scripts_on_a_tmpfs() {
    let name = "scripts_on_a_tmpfs";
    let Ok(directory) = tempfile::tempdir_in("/dev/shm") else {
        return voltar_tests::skip(name, "/dev/shm cannot be written");
    };
    on_files(name, directory.path(), IoEngine::Auto);
}

fn cases(default: u64) -> u64 {
    let set = std::env::var("PROPTEST_CASES").ok();
    set.and_then(|text| text.parse().ok()).unwrap_or(default)
}

fn on_files(name: &'static str, directory: &Path, io: IoEngine) {
    let mut steps = 0;
    let cases = for_seeds(name, cases(60).div_ceil(5), |seed| {
        let directory = tempfile::tempdir_in(directory).unwrap();
        steps += run(seed ^ 0x5eed, Medium::Files { directory: directory.path().into(), io });
    });
    println!("{cases} scripts, {steps} steps");
}

/// Where archive, sources and targets live.
enum Medium {
    Memory(MemoryDevice),
    Files { directory: PathBuf, io: IoEngine },
}

/// A volume as it is now.
struct Live {
    bytes: Vec<u8>,
    chunk_len: u32,
    /// Who knows its changes, on memory; anew after each resize.
    changes: Option<Arc<MemoryChanges>>,
}

/// A volume as it was.
#[derive(Clone)]
struct Taken {
    bytes: Vec<u8>,
    chunk_len: u32,
}

struct World {
    medium: Medium,
    rng: StdRng,
    live: BTreeMap<String, Live>,
    /// Ids and contents of all snapshots, oldest first.
    taken: Vec<(String, BTreeMap<String, Taken>)>,
    generation: u64,
}

fn run(seed: u64, medium: Medium) -> u64 {
    let mut world = World {
        medium,
        rng: StdRng::seed_from_u64(seed),
        live: BTreeMap::new(),
        taken: Vec::new(),
        generation: 0,
    };
    for number in 0..world.rng.random_range(1..=3) {
        world.add_volume(number);
    }
    world.back_up();
    let steps = world.rng.random_range(8..25);
    for _ in 0..steps {
        world.step();
    }
    world.check_everything();
    steps
}

impl World {
    fn add_volume(&mut self, number: usize) {
        let rng = &mut self.rng;
        // Few large chunks, many small ones: a case stays quick.
        let chunk_len = CHUNK_LENS[rng.random_range(0..CHUNK_LENS.len())];
        let longest = (chunk_len as usize * 8).clamp(40_000, 2_500_000);
        let len = rng.random_range(1..longest);
        let bytes = disk_like(rng, len);
        let knows = rng.random_bool(0.5) && matches!(self.medium, Medium::Memory(_));
        let name = format!("volume {number}");
        let changes = knows.then(|| Arc::new(MemoryChanges::new(&name, len as u64)));
        self.live.insert(name, Live { bytes, chunk_len, changes });
    }

    fn step(&mut self) {
        match self.rng.random_range(0..16) {
            0..=3 => self.write(),
            4 => self.zero(),
            5 => self.resize(),
            6..=8 => self.back_up(),
            9 => self.verify(),
            10..=11 => self.diff(),
            12 => self.list(),
            _ => self.restore_any(),
        }
    }

    fn any_volume(&mut self) -> String {
        let number = self.rng.random_range(0..self.live.len());
        self.live.keys().nth(number).unwrap().clone()
    }

    fn any_range(&mut self, name: &str) -> Range<usize> {
        let len = self.live[name].bytes.len();
        let start = self.rng.random_range(0..len);
        let most = if self.rng.random_bool(0.5) { 700 } else { len };
        start..(start + self.rng.random_range(1..=most)).min(len)
    }

    fn write(&mut self) {
        let name = self.any_volume();
        let range = self.any_range(&name);
        let piece = disk_like(&mut self.rng, range.len());
        let live = self.live.get_mut(&name).unwrap();
        live.bytes[range.clone()].copy_from_slice(&piece);
        live.note(range);
    }

    fn zero(&mut self) {
        let name = self.any_volume();
        let range = self.any_range(&name);
        let live = self.live.get_mut(&name).unwrap();
        live.bytes[range.clone()].fill(0);
        live.note(range);
    }

    fn resize(&mut self) {
        let name = self.any_volume();
        let live = self.live.get_mut(&name).unwrap();
        let len = (live.bytes.len() * self.rng.random_range(1..=16) / 10).max(1);
        let grown = noise(self.generation, 1 + len / 3);
        live.bytes.resize(len.min(3_000_000), grown[grown.len() - 1]);
        self.generation += 1;
        // A volume that was resized is another one to its change source.
        let identity = format!("{name} {}", self.generation);
        if live.changes.is_some() {
            let size = live.bytes.len() as u64;
            live.changes = Some(Arc::new(MemoryChanges::new(&identity, size)));
        }
    }

    /// A snapshot of some of the volumes.
    fn back_up(&mut self) {
        let all: Vec<String> = self.live.keys().cloned().collect();
        let mut names: Vec<String> =
            all.iter().filter(|_| self.rng.random_bool(0.7)).cloned().collect();
        if names.is_empty() {
            names.push(all[0].clone());
        }
        let same =
            names.iter().all(|name| self.live[name].chunk_len == self.live[&names[0]].chunk_len);
        if !same {
            names.truncate(1);
        }
        let chunk_len = self.live[&names[0]].chunk_len;
        let request = BackupRequest {
            parent: self.any_parent(&names),
            changes: if self.rng.random_bool(0.2) { Changes::Full } else { Changes::Auto },
            audit_share: [0.0, 0.01, 1.0][self.rng.random_range(0..3)],
            compression: [
                Compression::Auto,
                Compression::Store,
                Compression::Zstd(1),
                Compression::Zstd(-5),
            ][self.rng.random_range(0..4)],
            chunk_len: Some(chunk_len),
            ..request()
        };
        let report = self.run_backup(&names, request);
        let contents = names
            .iter()
            .map(|name| {
                let live = &self.live[name];
                (name.clone(), Taken { bytes: live.bytes.clone(), chunk_len: live.chunk_len })
            })
            .collect::<BTreeMap<_, _>>();
        assert_eq!(report.volumes.len(), names.len());
        for volume in &report.volumes {
            let bytes = &contents[&volume.name].bytes;
            assert_eq!((volume.size, volume.chunk_size), (bytes.len() as u64, chunk_len));
            assert!(volume.unreadable.is_empty());
            let zero: usize = bytes
                .chunks(chunk_len as usize)
                .filter(|chunk| chunk.iter().all(|byte| *byte == 0))
                .map(<[u8]>::len)
                .sum();
            if volume.change_source == "none" {
                assert_eq!(volume.zero_bytes, zero as u64, "{volume:?}");
            } else {
                assert!(volume.degraded.is_none(), "{volume:?}");
            }
        }
        assert!(report.warnings.is_empty(), "{:?}", report.warnings);
        self.taken.push((report.snapshot.unwrap(), contents));
    }

    fn any_parent(&mut self, names: &[String]) -> ParentChoice {
        let fitting: Vec<&String> = self
            .taken
            .iter()
            .filter(|(_, volumes)| names.iter().all(|name| volumes.contains_key(name)))
            .map(|(id, _)| id)
            .collect();
        match self.rng.random_range(0..4) {
            0 => ParentChoice::None,
            1 if !fitting.is_empty() => {
                let id = fitting[self.rng.random_range(0..fitting.len())].clone();
                ParentChoice::Snapshot(Selector::IdPrefix(id))
            }
            _ => ParentChoice::Auto,
        }
    }

    fn run_backup(&mut self, names: &[String], mut request: BackupRequest) -> BackupReport {
        match &self.medium {
            Medium::Memory(home) => {
                let views: Vec<View> =
                    names.iter().map(|name| self.live[name].view(name)).collect();
                let home = Arc::new(home.clone());
                backup::run_in(&request, &views, home, &context()).unwrap()
            }
            Medium::Files { directory, io } => {
                for (number, name) in names.iter().enumerate() {
                    let path = directory.join(format!("source {number}"));
                    write_sparse(&path, &self.live[name].bytes);
                    request.sources.push(SourceRequest { name: name.clone(), path });
                }
                request.archive = ArchiveHome::File(directory.join("archive.voltar"));
                backup::run(&request, &Context { io: *io, ..context() }).unwrap()
            }
        }
    }

    /// The archive, opened anew.
    fn open(&self) -> Archive {
        match &self.medium {
            Medium::Memory(home) => Archive::open(Arc::new(home.clone())).unwrap(),
            Medium::Files { directory, .. } => {
                let device = open_archive_reader(&directory.join("archive.voltar")).unwrap();
                Archive::open(Arc::new(device)).unwrap()
            }
        }
    }

    fn verify(&mut self) {
        let archive = self.open();
        let report = match &self.medium {
            Medium::Memory(_) => prove(&archive),
            Medium::Files { directory, io } => {
                let request = voltar_engine::options::VerifyRequest {
                    archive: directory.join("archive.voltar"),
                    snapshot: None,
                    stored: self.rng.random_bool(0.5),
                    sample_percent: None,
                    resume: None,
                };
                verify::run(&request, &Context { io: *io, ..context() })
            }
        };
        let report = report.unwrap();
        assert!(report.ok, "{:?}", report.damaged);
        assert_eq!(report.snapshots, self.taken.len() as u64);
        assert_eq!(report.bytes, archive.end().0, "every byte is looked at");
    }

    fn list(&mut self) {
        let report = inspect::list_archive(&self.open(), &context()).unwrap();
        assert_eq!(report.snapshots.len(), self.taken.len());
        for (listed, (id, volumes)) in report.snapshots.iter().zip(&self.taken) {
            assert_eq!(listed.id, *id);
            assert_eq!(listed.volumes.len(), volumes.len());
            for volume in &listed.volumes {
                assert_eq!(volume.size, volumes[&volume.name].bytes.len() as u64);
            }
        }
    }

    /// What differs between two snapshots, compared with what differs between two vectors.
    fn diff(&mut self) {
        let archive = self.open();
        let (old, new) = (self.any_taken(), self.any_taken());
        let (old_id, old) = &self.taken[old];
        let (new_id, new) = &self.taken[new];
        let (old_id, new_id) =
            (Selector::IdPrefix(old_id.clone()), Selector::IdPrefix(new_id.clone()));
        for (name, newer) in new {
            let Some(older) = old.get(name) else { continue };
            assert_eq!(older.chunk_len, newer.chunk_len);
            let found = diff_archive(&archive, &old_id, &new_id, Some(name), &context()).unwrap();
            let [found] = &found[..] else { panic!("{} reports", found.len()) };
            let extents: Vec<(Range<u64>, &str)> = found
                .extents
                .iter()
                .map(|extent| (extent.offset..extent.offset + extent.length, extent.kind))
                .collect();
            assert_eq!(extents, changed(older, newer), "{name}");
        }
    }

    fn any_taken(&mut self) -> usize {
        self.rng.random_range(0..self.taken.len())
    }

    fn restore_any(&mut self) {
        let number = self.any_taken();
        let (id, volumes) = self.taken[number].clone();
        let pick = self.rng.random_range(0..volumes.len());
        let (name, taken) = volumes.iter().nth(pick).unwrap();
        // Fresh, full of noise, or an older copy of the same volume.
        let older = self.taken.iter().find_map(|(_, volumes)| volumes.get(name)).unwrap();
        let before = match self.rng.random_range(0..3) {
            0 => None,
            1 => Some(noise(self.generation, taken.bytes.len())),
            _ => Some(older.bytes.clone()),
        };
        let delta = [Delta::Auto, Delta::On, Delta::Off][self.rng.random_range(0..3)];
        self.generation += 1;
        match &self.medium {
            Medium::Memory(_) => self.restore_memory(&id, name, taken, before, delta),
            Medium::Files { directory, io } => {
                let (directory, io) = (directory.clone(), *io);
                let discard = delta == Delta::Off && before.is_some() && self.rng.random_bool(0.5);
                restore_file(&directory, io, &id, name, taken, before, delta, discard);
            }
        }
    }

    fn restore_memory(
        &self,
        id: &str,
        name: &str,
        taken: &Taken,
        before: Option<Vec<u8>>,
        delta: Delta,
    ) {
        let archive = self.open();
        let snapshot = archive.select(&Selector::IdPrefix(id.into())).unwrap();
        let volume = snapshot.manifest.volume(name).unwrap();
        let job = Job::new(&archive, &snapshot, volume, OnDamage::Fail).unwrap();
        let blank = before.is_none();
        // A target may be longer: what lies behind the volume is not touched.
        let mut bytes = before.unwrap_or_else(|| vec![0; taken.bytes.len()]);
        bytes.resize(bytes.len().max(taken.bytes.len()), 0x77);
        let behind = bytes[taken.bytes.len()..].to_vec();
        let target = match blank {
            true => MemoryDevice::new(bytes.len() as u64),
            false => MemoryDevice::from_bytes(&bytes),
        };
        let how = How { blank, delta, ..How::default() };
        let context = context();
        let restore = Restore::new(&job, &target, how, &context, IoEngine::Blocking);
        restore.write().unwrap();
        restore.prove().unwrap();
        let restored = target.bytes();
        assert!(restored[..taken.bytes.len()] == taken.bytes, "{name} restores wrong");
        assert!(restored[taken.bytes.len()..] == behind, "bytes behind {name} changed");
        check_report(&restore.report(), taken);
        if delta == Delta::On && bytes[..taken.bytes.len()] == taken.bytes {
            assert_eq!(restore.report().written_bytes, 0, "equal bytes were written");
        }
    }

    /// Every snapshot ever made, by its map and by a restore.
    fn check_everything(&mut self) {
        self.verify();
        self.list();
        let archive = self.open();
        let all = snapshots(&archive).unwrap();
        assert_eq!(all.len(), self.taken.len());
        for (snapshot, (id, volumes)) in all.iter().zip(&self.taken) {
            assert_eq!(snapshot.id.to_hex(), *id);
            for volume in &snapshot.manifest.volumes {
                let bytes = read_volume(&archive, volume).unwrap();
                assert!(bytes == volumes[&volume.name].bytes, "{} of {id}", volume.name);
            }
        }
        for (id, volumes) in &self.taken {
            for (name, taken) in volumes {
                match &self.medium {
                    Medium::Memory(_) => self.restore_memory(id, name, taken, None, Delta::Off),
                    Medium::Files { directory, io } => {
                        restore_file(directory, *io, id, name, taken, None, Delta::Auto, false);
                    }
                }
            }
        }
    }
}

impl Live {
    fn note(&self, range: Range<usize>) {
        if let Some(changes) = &self.changes {
            changes.wrote(range.start as u64..range.end as u64);
        }
    }

    /// The volume at this instant; its change source begins a new generation.
    fn view(&self, name: &str) -> View {
        if let Some(changes) = &self.changes {
            changes.snapshot();
        }
        View {
            name: name.into(),
            description: "memory".into(),
            device: Arc::new(MemoryDevice::from_bytes(&self.bytes)),
            size: self.bytes.len() as u64,
            change_source: self.changes.clone().map(|changes| changes as _),
        }
    }
}

/// The chunks that differ, merged by what the newer one has there.
fn changed(old: &Taken, new: &Taken) -> Vec<(Range<u64>, &'static str)> {
    let len = new.chunk_len as usize;
    let mut extents: Vec<(Range<u64>, &'static str)> = Vec::new();
    for (number, chunk) in new.bytes.chunks(len).enumerate() {
        let start = number * len;
        let before = old.bytes.get(start..).map(|rest| &rest[..rest.len().min(len)]);
        if before == Some(chunk) {
            continue;
        }
        let is_zero = chunk.iter().all(|byte| *byte == 0);
        let kind = if is_zero { "zero" } else { "data" };
        let range = start as u64..(start + chunk.len()) as u64;
        match extents.last_mut() {
            Some((last, same)) if last.end == range.start && *same == kind => last.end = range.end,
            _ => extents.push((range, kind)),
        }
    }
    extents
}

/// Written, zeroed and kept bytes share out the volume.
fn check_report(report: &VolumeRestore, taken: &Taken) {
    let size = taken.bytes.len() as u64;
    let sum = report.written_bytes + report.zeroed_bytes + report.kept_bytes;
    assert_eq!((report.size, sum), (size, size), "{report:?}");
    assert!(report.unreadable.is_empty() && report.damaged.is_empty(), "{report:?}");
}

#[expect(clippy::too_many_arguments, reason = "a restore has that many choices")]
fn restore_file(
    directory: &Path,
    io: IoEngine,
    id: &str,
    name: &str,
    taken: &Taken,
    before: Option<Vec<u8>>,
    delta: Delta,
    discard: bool,
) {
    let path = directory.join("target");
    let _ = std::fs::remove_file(&path);
    let overwrite = before.is_some();
    let mut behind = Vec::new();
    if let Some(mut bytes) = before {
        bytes.resize(bytes.len().max(taken.bytes.len()), 0x77);
        behind = bytes[taken.bytes.len()..].to_vec();
        std::fs::write(&path, &bytes).unwrap();
    }
    let request = RestoreRequest {
        archive: directory.join("archive.voltar"),
        snapshot: Selector::IdPrefix(id.into()),
        targets: vec![TargetRequest { name: Some(name.into()), path: path.clone() }],
        overwrite,
        delta,
        read_back: true,
        discard,
        on_damage: OnDamage::Fail,
        dry_run: false,
        state_dir: directory.join("state"),
    };
    let report = restore::run(&request, &Context { io, ..context() }).unwrap();
    assert!(report.read_back && report.snapshot == id);
    check_report(&report.volumes[0], taken);
    let restored = std::fs::read(&path).unwrap();
    assert!(restored[..taken.bytes.len()] == taken.bytes, "{name} restores wrong");
    assert!(restored.len() == taken.bytes.len() || restored[taken.bytes.len()..] == behind);
}

/// As a file with holes where there are whole pages of zeroes.
fn write_sparse(path: &Path, bytes: &[u8]) {
    use std::os::unix::fs::FileExt;
    let file = std::fs::File::create(path).unwrap();
    file.set_len(bytes.len() as u64).unwrap();
    for (number, page) in bytes.chunks(4096).enumerate() {
        if page.iter().any(|byte| *byte != 0) {
            file.write_all_at(page, number as u64 * 4096).unwrap();
        }
    }
}
