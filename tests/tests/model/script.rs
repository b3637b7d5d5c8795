//! Random scripts of writes, backups, comparisons and restores against plain byte vectors.
//!
//! A case is one seed: it decides sizes (multiples of nothing), chunk lengths, the medium (memory,
//! or real files on a tmpfs or a disk with one of the two I/O engines) and every step. Backups are
//! interrupted and lose some of what they left, change sources lie, and at the end every snapshot
//! that was ever made must restore exactly. Most volumes consist of sectors that say who they are
//! (`voltar_tests::sectors`), so that a wrong one says where it came from.

use std::collections::BTreeMap;
use std::ops::{AddAssign, Range};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use voltar_engine::archive::Home;
use voltar_engine::archive::open::Archive;
use voltar_engine::backup;
use voltar_engine::cancel::Cancel;
use voltar_engine::device::memory::MemoryDevice;
use voltar_engine::device::open::{open_archive_reader, open_archive_writer};
use voltar_engine::diff::diff_archive;
use voltar_engine::error::{ErrorKind, Result};
use voltar_engine::inspect;
use voltar_engine::io::probe;
use voltar_engine::observe::Observer;
use voltar_engine::options::{
    ArchiveHome, BackupRequest, Changes, Compression, Context, Delta, IoEngine, OnDamage,
    ParentChoice, Place, RestoreRequest, Selector, SourceRequest, TargetRequest, Targets,
};
use voltar_engine::report::{BackupReport, VolumeBackup, VolumeRestore};
use voltar_engine::restore::job::Job;
use voltar_engine::restore::volume::{How, Restore};
use voltar_engine::source::memory::MemoryChanges;
use voltar_engine::source::{Change, ChangeSource, ChangedExtent, Degraded, Proof, View};
use voltar_engine::{restore, verify};
use voltar_tests::sectors::{SECTOR_LEN, compare, stamped};

use crate::rig::{
    blank, context, disk_like, for_seeds, noise, read_volume, request, snapshots, verify as prove,
};

/// Steps of a long script, at most.
const LONG_STEPS: u64 = 200;

const CHUNK_LENS: [u32; 9] =
    [4096, 8192, 16384, 32768, 65536, 131_072, 262_144, 524_288, 1_048_576];

#[test]
fn scripts_on_memory() {
    let mut tally = Tally::default();
    let cases = for_seeds("scripts_on_memory", cases(60), |seed| {
        tally += run(seed, Medium::Memory(blank()));
    });
    tally.print(cases);
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
    let mut tally = Tally::default();
    let cases = for_seeds(name, cases(60).div_ceil(5), |seed| {
        let directory = tempfile::tempdir_in(directory).unwrap();
        tally += run(seed ^ 0x5eed, Medium::Files { directory: directory.path().into(), io });
    });
    tally.print(cases);
}

/// What was done; `make soak` adds up the lines that begin with `figure:`.
#[derive(Default)]
struct Tally {
    steps: u64,
    sectors: u64,
    interrupted: u64,
    resumed: u64,
    lies: u64,
    caught: u64,
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Tally) {
        self.steps += other.steps;
        self.sectors += other.sectors;
        self.interrupted += other.interrupted;
        self.resumed += other.resumed;
        self.lies += other.lies;
        self.caught += other.caught;
    }
}

impl Tally {
    fn print(&self, histories: u64) {
        println!("figure: {histories} histories");
        println!("figure: {} operations", self.steps);
        println!("figure: {} sectors checked", self.sectors);
        println!("figure: {} backups interrupted", self.interrupted);
        println!("figure: {} backups that took over work", self.resumed);
        println!("figure: {} lies told by change sources", self.lies);
        println!("figure: {} lies caught", self.caught);
    }
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
    /// Its number, if its sectors say who they are.
    stamp: Option<u64>,
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
    /// What change sources say now.
    lie: Option<Lie>,
    tally: Tally,
}

/// What a change source says instead of the truth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lie {
    /// What changed is called unchanged.
    Hides,
    /// All is called changed: coarse, and no reason to disbelieve.
    Exaggerates,
    /// The list begins late.
    Gap,
    /// The list ends behind the volume.
    Longer,
}

const LIES: [Lie; 4] = [Lie::Hides, Lie::Exaggerates, Lie::Gap, Lie::Longer];

/// A change source that knows the truth and says something else.
struct Liar(Arc<MemoryChanges>, Lie);

impl ChangeSource for Liar {
    fn kind(&self) -> &'static str {
        self.0.kind()
    }

    fn proof(&self) -> Proof {
        self.0.proof()
    }

    fn changes(
        &self,
        base: &Proof,
        base_size: u64,
    ) -> std::result::Result<Vec<ChangedExtent>, Degraded> {
        let mut extents = self.0.changes(base, base_size)?;
        let mut call_all = |change| extents.iter_mut().for_each(|extent| extent.change = change);
        match self.1 {
            Lie::Hides => call_all(Change::Unchanged),
            Lie::Exaggerates => call_all(Change::Changed),
            Lie::Gap => drop(extents.remove(0)),
            Lie::Longer => extents.last_mut().expect("a volume is not empty").range.end += 1,
        }
        Ok(extents)
    }
}

/// Interrupts an operation when it has done so many bytes.
struct StopAfter {
    cancel: Cancel,
    bytes: u64,
    done: AtomicU64,
}

impl Observer for StopAfter {
    fn advance(&self, bytes: u64) {
        if self.done.fetch_add(bytes, Ordering::Relaxed) + bytes >= self.bytes {
            self.cancel.raise();
        }
    }
}

fn run(seed: u64, medium: Medium) -> Tally {
    let mut world = World {
        medium,
        rng: StdRng::seed_from_u64(seed),
        live: BTreeMap::new(),
        taken: Vec::new(),
        generation: 0,
        lie: None,
        tally: Tally::default(),
    };
    for number in 0..world.rng.random_range(1..=3) {
        world.add_volume(number);
    }
    world.back_up(None);
    // Most are short, for there are many; some live long enough for indexes to merge again and
    // again.
    let longest = if seed % 16 == 7 { LONG_STEPS } else { 25 };
    let steps = world.rng.random_range(8..longest);
    for _ in 0..steps {
        world.step();
    }
    world.check_everything();
    world.tally.steps = steps;
    world.tally
}

impl World {
    fn add_volume(&mut self, number: usize) {
        let rng = &mut self.rng;
        // Few large chunks, many small ones: a case stays quick.
        let chunk_len = CHUNK_LENS[rng.random_range(0..CHUNK_LENS.len())];
        let longest = (chunk_len as usize * 8).clamp(40_000, 2_500_000);
        let len = rng.random_range(1..longest);
        let stamp = rng.random_bool(0.7).then_some(number as u64);
        let bytes = match stamp {
            Some(volume) => stamped(volume, 0, 0, len),
            None => disk_like(rng, len),
        };
        let knows = rng.random_bool(0.5) && matches!(self.medium, Medium::Memory(_));
        let name = format!("volume {number}");
        let changes = knows.then(|| Arc::new(MemoryChanges::new(&name, len as u64)));
        self.live.insert(name, Live { bytes, chunk_len, stamp, changes });
    }

    fn step(&mut self) {
        match self.rng.random_range(0..18) {
            0..=3 => self.write(),
            4 => self.zero(),
            5 => self.resize(),
            6..=8 => self.back_up(None),
            16 => self.back_up_and_stop(),
            17 => self.back_up_with_a_lie(),
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
        let end = start + self.rng.random_range(1..=most);
        match self.live[name].stamp {
            // Whole sectors, but for the last.
            Some(_) => start / SECTOR_LEN * SECTOR_LEN..end.next_multiple_of(SECTOR_LEN).min(len),
            None => start..end.min(len),
        }
    }

    /// What is written to a range of a volume next: nothing that was there before.
    fn fresh(&mut self, name: &str, range: &Range<usize>) -> Vec<u8> {
        self.generation += 1;
        match self.live[name].stamp {
            Some(volume) => {
                let first = (range.start / SECTOR_LEN) as u64;
                stamped(volume, first, self.generation, range.len())
            }
            None => disk_like(&mut self.rng, range.len()),
        }
    }

    fn write(&mut self) {
        let name = self.any_volume();
        let range = self.any_range(&name);
        self.write_to(&name, range);
    }

    fn write_to(&mut self, name: &str, range: Range<usize>) {
        let piece = self.fresh(name, &range);
        let live = self.live.get_mut(name).unwrap();
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
        let old = self.live[&name].bytes.len();
        let new = (old * self.rng.random_range(1..=16) / 10).clamp(1, 3_000_000);
        // The last sector is whole before something follows it.
        let start = old.min(new) / SECTOR_LEN * SECTOR_LEN;
        let tail = if new > old { self.fresh(&name, &(start..new)) } else { Vec::new() };
        self.generation += 1;
        let live = self.live.get_mut(&name).unwrap();
        live.bytes.truncate(if new > old { start } else { new });
        live.bytes.extend(tail);
        // A volume that was resized is another one to its change source.
        let identity = format!("{name} {}", self.generation);
        if live.changes.is_some() {
            let size = live.bytes.len() as u64;
            live.changes = Some(Arc::new(MemoryChanges::new(&identity, size)));
        }
    }

    /// A backup that is interrupted somewhere, if it is not done before; what it left behind the
    /// last commit is cut short or overwritten as well, as by a loss of power.
    fn back_up_and_stop(&mut self) {
        // So much that is new that something is stored before the stop.
        for name in self.live.keys().cloned().collect::<Vec<_>>() {
            let len = self.live[&name].bytes.len();
            self.write_to(&name, 0..len);
        }
        let committed = self.open().end().0;
        let all: usize = self.live.values().map(|live| live.bytes.len()).sum();
        let bytes = self.rng.random_range(0..=all as u64);
        let before = self.taken.len();
        self.back_up(Some(bytes));
        if self.taken.len() > before {
            return;
        }
        self.tally.interrupted += 1;
        let device = self.home();
        let len = device.len().unwrap();
        assert!(len >= committed, "committed bytes were cut off");
        if len > committed && self.rng.random_bool(0.6) {
            let from = self.rng.random_range(committed..len);
            match self.rng.random_bool(0.5) {
                true => device.set_len(from).unwrap(),
                false => {
                    let to = self.rng.random_range(from..=len).min(from + 100_000);
                    let junk = noise(self.generation, (to - from) as usize);
                    device.write_at(&junk, from).unwrap();
                }
            }
        }
        assert_eq!(self.open().end().0, committed, "an interrupted backup moved the last commit");
    }

    /// A backup that asks a liar. All it calls unchanged is read again, so that no lie that matters
    /// gets through.
    fn back_up_with_a_lie(&mut self) {
        let lie = LIES[self.rng.random_range(0..LIES.len())];
        self.lie = Some(lie);
        self.back_up(None);
        self.lie = None;
    }

    /// A snapshot of some of the volumes; interrupted after `stop` bytes, if there is such a number
    /// and it is not done before.
    fn back_up(&mut self, stop: Option<u64>) {
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
            audit_share: match self.lie {
                Some(_) => 1.0,
                None => [0.0, 0.01, 1.0][self.rng.random_range(0..3)],
            },
            compression: [
                Compression::Auto,
                Compression::Store,
                Compression::Zstd(1),
                Compression::Zstd(-5),
            ][self.rng.random_range(0..4)],
            chunk_len: Some(chunk_len),
            ..request()
        };
        let report = match self.run_backup(&names, request, stop) {
            Err(error) if stop.is_some() => {
                assert_eq!(error.kind(), ErrorKind::Interrupted, "{error}");
                return;
            }
            report => report.unwrap(),
        };
        self.tally.resumed += u64::from(report.resumed_bytes > 0);
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
                assert!(!matches!(self.lie, Some(Lie::Gap | Lie::Longer)), "{volume:?}");
            }
        }
        self.check_honesty(&report);
        self.taken.push((report.snapshot.unwrap(), contents));
    }

    /// Nobody is called a liar who is none; lies that contradict the bytes are warned of.
    fn check_honesty(&mut self, report: &BackupReport) {
        if matches!(self.lie, None | Some(Lie::Exaggerates)) {
            assert!(report.warnings.is_empty(), "{:?}", report.warnings);
            return;
        }
        let asked = |volume: &&VolumeBackup| self.live[&volume.name].changes.is_some();
        for volume in report.volumes.iter().filter(asked) {
            self.tally.lies += u64::from(report.parent.is_some());
            self.tally.caught += u64::from(volume.degraded.is_some());
        }
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

    fn run_backup(
        &self,
        names: &[String],
        mut request: BackupRequest,
        stop: Option<u64>,
    ) -> Result<BackupReport> {
        let mut context = context();
        if let Some(bytes) = stop {
            let (cancel, done) = (context.cancel.clone(), AtomicU64::new(0));
            context.observer = Arc::new(StopAfter { cancel, bytes, done });
        }
        match &self.medium {
            Medium::Memory(home) => {
                let views: Vec<View> =
                    names.iter().map(|name| self.live[name].view(name, self.lie)).collect();
                Ok(backup::run_in(&request, &views, Arc::new(home.clone()), &context)?)
            }
            Medium::Files { directory, io } => {
                for (number, name) in names.iter().enumerate() {
                    let path = directory.join(format!("source {number}"));
                    write_sparse(&path, &self.live[name].bytes);
                    request
                        .sources
                        .push(SourceRequest { name: name.clone(), place: Place::Path(path) });
                }
                request.archive = ArchiveHome::File(directory.join("archive.voltar"));
                Ok(backup::run(&request, &Context { io: *io, ..context })?)
            }
        }
    }

    /// The archive's bytes, to be spoilt behind its back.
    fn home(&self) -> Box<dyn Home> {
        match &self.medium {
            Medium::Memory(home) => Box::new(home.clone()),
            Medium::Files { directory, .. } => {
                Box::new(open_archive_writer(&directory.join("archive.voltar")).unwrap())
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
            Medium::Memory(_) => prove(&archive).unwrap(),
            Medium::Files { directory, io } => {
                let request = voltar_engine::options::VerifyRequest {
                    archive: directory.join("archive.voltar"),
                    snapshot: None,
                    stored: self.rng.random_bool(0.5),
                    sample_percent: None,
                    resume: None,
                };
                verify::run(&request, &Context { io: *io, ..context() }).unwrap()
            }
        };
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
            let [found] = &found.volumes[..] else { panic!("{} volumes", found.volumes.len()) };
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
        // Fresh, full of noise, or another state of the same volume.
        let states: Vec<&Taken> =
            self.taken.iter().filter_map(|(_, volumes)| volumes.get(name)).collect();
        let other = states[self.rng.random_range(0..states.len())];
        let before = match self.rng.random_range(0..3) {
            0 => None,
            1 => Some(noise(self.generation, taken.bytes.len())),
            _ => Some(other.bytes.clone()),
        };
        let delta = [Delta::Auto, Delta::On, Delta::Off][self.rng.random_range(0..3)];
        self.generation += 1;
        self.tally.sectors += taken.bytes.len().div_ceil(SECTOR_LEN) as u64;
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
        assert_restored(&restored[..taken.bytes.len()], taken, name, id);
        assert!(restored[taken.bytes.len()..] == behind, "bytes behind {name} changed");
        check_report(&restore.report(true), taken);
        if delta == Delta::On && bytes[..taken.bytes.len()] == taken.bytes {
            assert_eq!(restore.report(true).written_bytes, 0, "equal bytes were written");
        }
    }

    /// Every snapshot ever made, by its map and by a restore.
    fn check_everything(&mut self) {
        self.verify();
        self.list();
        let archive = self.open();
        let volumes = self.taken.iter().flat_map(|(_, volumes)| volumes.values());
        let sectors: usize = volumes.map(|taken| taken.bytes.len().div_ceil(SECTOR_LEN)).sum();
        // By the map and by a restore.
        self.tally.sectors += 2 * sectors as u64;
        let all = snapshots(&archive).unwrap();
        assert_eq!(all.len(), self.taken.len());
        for (snapshot, (id, volumes)) in all.iter().zip(&self.taken) {
            assert_eq!(snapshot.id.to_hex(), *id);
            for volume in &snapshot.manifest.volumes {
                let bytes = read_volume(&archive, volume).unwrap();
                assert_restored(&bytes, &volumes[&volume.name], &volume.name, id);
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
    fn view(&self, name: &str, lie: Option<Lie>) -> View {
        let source = self.changes.clone().map(|changes| -> Arc<dyn ChangeSource> {
            changes.snapshot();
            match lie {
                Some(lie) => Arc::new(Liar(changes, lie)),
                None => changes,
            }
        });
        View {
            name: name.into(),
            description: "memory".into(),
            device: Arc::new(MemoryDevice::from_bytes(&self.bytes)),
            size: self.bytes.len() as u64,
            change_source: source,
            degraded: None,
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

/// Whether these are a volume's bytes; if not, what they are.
fn assert_restored(got: &[u8], want: &Taken, name: &str, id: &str) {
    if let Err(what) = compare(got, &want.bytes) {
        panic!("{name} of {id}: {what}");
    }
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
        targets: Targets::Each(vec![TargetRequest {
            name: Some(name.into()),
            place: Place::Path(path.clone()),
        }]),
        overwrite,
        delta,
        read_back: true,
        discard,
        on_damage: OnDamage::Fail,
        dry_run: false,
        new_volumes: Default::default(),
        state_dir: Some(directory.join("state")),
    };
    let report = restore::run(&request, &Context { io, ..context() }).unwrap();
    assert!(report.read_back && report.snapshot == id);
    check_report(&report.volumes[0], taken);
    let restored = std::fs::read(&path).unwrap();
    assert_restored(&restored[..taken.bytes.len()], taken, name, id);
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
