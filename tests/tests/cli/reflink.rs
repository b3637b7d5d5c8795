//! Changes between reflink copies on real file systems, and what could make them lie.
//!
//! The judge is the bytes: what is said to be unchanged must be equal, what is said to be zero must be
//! zero, and not much more than was touched may be said to have changed.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use voltar_engine::source::reflink::changes::changes;
use voltar_engine::source::reflink::copy::{Copy, Original};
use voltar_engine::source::{Change, Degraded, check_coverage};
use voltar_tests::device::system;
use voltar_tests::{FileSystem, Raise, Rng, Scratch, is_root, skip};

const SIZE: u64 = 24 << 20;
const MIB: u64 = 1 << 20;

/// The file systems to test on; says so where one is not to be had.
fn each(test: &str, run: impl Fn(&FileSystem)) {
    if !is_root() {
        return skip(test, "mounting file systems needs root");
    }
    for options in [None, Some("rw"), Some("compress-force=zstd")] {
        let scratch = Scratch::new();
        let made = match options {
            None => FileSystem::xfs(&scratch),
            Some(options) => FileSystem::btrfs(&scratch, options),
        };
        match made {
            Ok(file_system) => run(&file_system),
            Err(why) => skip(test, &why),
        }
    }
}

fn btrfs(test: &str, options: &str, run: impl Fn(&FileSystem)) {
    if !is_root() {
        return skip(test, "mounting file systems needs root");
    }
    let scratch = Scratch::new();
    match FileSystem::btrfs(&scratch, options) {
        Ok(file_system) => run(&file_system),
        Err(why) => skip(test, &why),
    }
}

/// A disk image on a file system.
struct Image {
    path: PathBuf,
    file: File,
}

impl Image {
    fn new(file_system: &FileSystem, rng: &mut Rng) -> Image {
        let path = file_system.path("disk.img");
        let options = File::options().read(true).write(true).create(true).clone();
        let file = options.open(&path).unwrap();
        for at in (0..SIZE).step_by(MIB as usize) {
            // A third is never written.
            match rng.below(3) {
                0 => {}
                1 => file.write_all_at(&rng.bytes(MIB as usize), at).unwrap(),
                _ => file.write_all_at(&b"all work and no play".repeat(52_000), at).unwrap(),
            }
        }
        file.set_len(SIZE).unwrap();
        Image { path, file }
    }

    fn copy(&self) -> Copy {
        self.original().copy().unwrap()
    }

    fn original(&self) -> Original {
        Original::open(&self.path).expect("it is on a file system with reflink")
    }

    /// One change of any kind; how many bytes it can have touched.
    fn edit(&self, rng: &mut Rng) -> u64 {
        let size = self.file.metadata().unwrap().len();
        let at = rng.below(size);
        let len = (rng.below(200_000) + 1).min(size - at);
        let range = format!("{at} {len}");
        match rng.below(8) {
            0..4 => self.file.write_all_at(&rng.bytes(len as usize), at).unwrap(),
            4 => self.run(&format!("fpunch {range}")),
            5 => self.run(&format!("fzero {range}")),
            6 => {
                let shorter = size - rng.below(100_000);
                self.file.set_len(shorter).unwrap();
                self.file.set_len(size).unwrap();
                return size - shorter + 8192;
            }
            _ => {
                let longer = size + rng.below(300_000);
                self.file.set_len(longer).unwrap();
                return longer - size + 8192;
            }
        }
        len + 8192
    }

    fn run(&self, command: &str) {
        system("xfs_io", &["-c", command, self.path.to_str().unwrap()]).unwrap();
    }
}

fn bytes(copy: &Copy) -> Vec<u8> {
    fs::read(copy.path()).unwrap()
}

/// What is said of `now` since `base`, judged by the bytes; how many are said to have changed.
#[track_caller]
fn judged(base: &Copy, now: &Copy) -> Result<u64, Degraded> {
    judged_by((base, &bytes(base)), (now, &bytes(now)))
}

#[track_caller]
fn judged_by((base, old): (&Copy, &[u8]), (now, new): (&Copy, &[u8])) -> Result<u64, Degraded> {
    let told = changes((base, old.len() as u64), (now, new.len() as u64))?;
    check_coverage(&told, new.len() as u64).unwrap();
    let mut changed = 0;
    for extent in told {
        let range = extent.range.start as usize..extent.range.end as usize;
        let place = format!("{range:?} is said to be {:?}", extent.change);
        match extent.change {
            Change::Changed => changed += range.len() as u64,
            Change::Unchanged => assert!(old.get(range.clone()) == Some(&new[range]), "{place}"),
            Change::Zero => assert!(new[range].iter().all(|byte| *byte == 0), "{place}"),
        }
    }
    Ok(changed)
}

#[test]
fn random_edits_are_told_and_little_more() {
    let test = "random_edits_are_told_and_little_more";
    let mut rng = Rng::fresh(test);
    let seed = rng.next_u64();
    each(test, |file_system| {
        let mut rng = Rng::new(seed);
        let image = Image::new(file_system, &mut rng);
        let mut base = image.copy();
        for round in 0..10 {
            let touched: u64 = (0..rng.below(6)).map(|_| image.edit(&mut rng)).sum();
            let now = image.copy();
            let changed = judged(&base, &now).unwrap();
            // Compressed extents of 128 KiB are rewritten from their start.
            let at_most = touched + (6 * 2) * (128 << 10);
            assert!(changed <= at_most, "round {round}: {changed} changed, {touched} touched");
            assert!(touched > 0 || changed == 0, "round {round}: nothing was touched");
            base.remove().unwrap();
            base = now;
        }
        base.remove().unwrap();
        assert_eq!(file_system.hidden(), [""; 0]);
    });
}

#[test]
fn a_write_that_is_not_on_the_medium_yet_is_told() {
    each("a_write_that_is_not_on_the_medium_yet_is_told", |file_system| {
        let mut rng = Rng::new(1);
        let image = Image::new(file_system, &mut rng);
        image.file.write_all_at(&rng.bytes(1 << 16), 0).unwrap();
        let base = image.copy();
        image.file.write_all_at(&rng.bytes(4096), 8192).unwrap();
        let now = image.copy();
        assert!(judged(&base, &now).unwrap() >= 4096);
    });
}

/// The physical address that FIEMAP gives of a file's byte.
fn address(path: &Path, offset: u64) -> String {
    let map = system("xfs_io", &["-r", "-c", "fiemap -v", path.to_str().unwrap()]).unwrap();
    let blocks = offset / 512;
    let mut lines = map.lines().filter_map(|line| {
        let mut words = line.split_whitespace().skip(1);
        let range = words.next()?.trim_matches(['[', ']', ':']).to_owned();
        let (start, end) = range.split_once("..")?;
        let holds = start.parse::<u64>().ok()? <= blocks && blocks <= end.parse::<u64>().ok()?;
        holds.then(|| words.next()?.split_once("..").map(|(start, _)| start.to_owned()))?
    });
    lines.next_back().unwrap_or_else(|| panic!("{offset} is in no extent:\n{map}"))
}

#[test]
fn parts_of_one_compressed_extent_are_told_apart() {
    let test = "parts_of_one_compressed_extent_are_told_apart";
    btrfs(test, "compress-force=zstd", |file_system| {
        let path = file_system.path("disk.img");
        // One compressed extent whose parts differ.
        let text: Vec<u8> = (0..128 << 10).map(|at: u32| b'a' + (at >> 14) as u8).collect();
        fs::write(&path, &text).unwrap();
        File::open(&path).unwrap().sync_all().unwrap();
        let image = Image { file: File::options().write(true).open(&path).unwrap(), path };
        let base = image.copy();
        // The first half becomes the second, by sharing: no data is written anywhere.
        let source = base.path().to_str().unwrap();
        image.run(&format!("reflink {source} 65536 0 65536"));
        let now = image.copy();
        let at = |copy: &Copy| address(copy.path(), 0);
        assert_eq!(at(&base), at(&now), "this is no trap: FIEMAP tells them apart");
        assert_eq!(judged(&base, &now).unwrap(), 65536);
    });
}

#[test]
fn a_base_that_was_touched_is_none() {
    each("a_base_that_was_touched_is_none", |file_system| {
        let image = Image::new(file_system, &mut Rng::new(2));
        let original = image.original();
        let base = image.copy();
        let identity = base.identity().unwrap();
        assert!(original.find(&identity).unwrap().is_some());

        let touches: [&dyn Fn(&Path); 4] = [
            &|path| fs::write(path, b"other").unwrap(),
            &|path| File::options().write(true).open(path).unwrap().set_len(SIZE + 1).unwrap(),
            // The time of the last write can be set back, that of the last change cannot.
            &|path| {
                let file = File::options().write(true).open(path).unwrap();
                let before = file.metadata().unwrap().modified().unwrap();
                file.write_all_at(b"other", 0).unwrap();
                file.set_modified(before).unwrap();
            },
            &|path| {
                let image = image.path.to_str().unwrap();
                system("cp", &["--reflink=always", image, path.to_str().unwrap()])
                    .map(drop)
                    .unwrap();
            },
        ];
        for touch in touches {
            let copy = image.copy();
            let identity = copy.identity().unwrap();
            touch(copy.path());
            assert!(original.find(&identity).unwrap().is_none());
            copy.remove().unwrap();
        }
        assert!(original.find(&identity).unwrap().is_some());
        fs::remove_file(base.path()).unwrap();
        assert!(original.find(&identity).unwrap().is_none());
    });
}

#[test]
fn a_base_is_found_when_the_file_has_another_name_or_is_another_file() {
    each("a_base_is_found_when_the_file_has_another_name", |file_system| {
        let mut image = Image::new(file_system, &mut Rng::new(3));
        let base = image.copy();
        let identity = base.identity().unwrap();
        let renamed = file_system.path("renamed.img");
        fs::rename(&image.path, &renamed).unwrap();
        fs::write(&image.path, b"a new file with the old name").unwrap();
        let found = image.original().find(&identity).unwrap().unwrap();
        assert_eq!(found.path(), base.path());
        image.path = renamed;
        let found = image.original().find(&identity).unwrap().unwrap();
        assert_eq!(found.path(), base.path());
        // A file of the user's that is named alike is left alone.
        let other = file_system.path(".renamed.img.voltar-1");
        fs::write(&other, b"mine").unwrap();
        image.original().remove_copies(None).unwrap();
        assert_eq!(file_system.hidden(), [&name(&base), ".renamed.img.voltar-1"]);
        // The one who made it holds its lock.
        drop((base, found));
        image.original().remove_copies(None).unwrap();
        assert_eq!(file_system.hidden(), [".renamed.img.voltar-1"]);
    });
}

fn name(copy: &Copy) -> String {
    copy.path().file_name().unwrap().to_str().unwrap().to_owned()
}

#[test]
fn extents_that_were_moved_between_backups_are_told_or_equal() {
    each("extents_that_were_moved_between_backups_are_told_or_equal", |file_system| {
        let mut rng = Rng::new(4);
        let image = Image::new(file_system, &mut rng);
        let base = image.copy();
        for _ in 0..4 {
            image.edit(&mut rng);
        }
        move_extents(file_system, &image.path);
        let now = image.copy();
        move_extents(file_system, base.path());
        judged(&base, &now).unwrap();
    });
}

/// Has the file system put a file's bytes elsewhere.
fn move_extents(file_system: &FileSystem, path: &Path) {
    let (path, dir) = (path.to_str().unwrap(), file_system.dir().to_str().unwrap());
    let moved = match Original::open(Path::new(path)).unwrap().file_system().kind() {
        "xfs-reflink" => system("xfs_fsr", &["-v", path]),
        _ => system("btrfs", &["filesystem", "defragment", "-f", path])
            .and_then(|_| system("btrfs", &["balance", "start", "--full-balance", dir])),
    };
    moved.unwrap();
}

#[test]
fn extents_that_move_meanwhile_are_never_taken_for_unchanged() {
    each("extents_that_move_meanwhile_are_never_taken_for_unchanged", |file_system| {
        let mut rng = Rng::new(5);
        let image = Image::new(file_system, &mut rng);
        let base = image.copy();
        // Many extents, so that a walk takes its time.
        for _ in 0..3000 {
            image.file.write_all_at(&rng.bytes(4096), rng.below(SIZE / 4096) * 4096).unwrap();
        }
        let now = image.copy();
        let (old, new) = (bytes(&base), bytes(&now));
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    move_extents(file_system, now.path());
                    move_extents(file_system, base.path());
                }
            });
            let _stop = Raise(&done);
            let (started, mut tries, mut told) = (Instant::now(), 0, 0);
            while started.elapsed() < Duration::from_secs(3) {
                tries += 1;
                told += u32::from(judged_by((&base, &old), (&now, &new)).is_ok());
            }
            let kind = now.file_system().kind();
            eprintln!("{kind}: of {tries} tries, {told} found what keeps still");
        });
        judged(&base, &now).expect("nothing moves any more");
    });
}

#[test]
fn what_cannot_be_copied_says_why() {
    let why = |path: &Path| Original::open(path).unwrap().copy().unwrap_err().0;
    btrfs("what_cannot_be_copied_says_why", "rw", |file_system| {
        let path = file_system.path("nocow");
        fs::write(&path, b"").unwrap();
        system("chattr", &["+C", path.to_str().unwrap()]).unwrap();
        fs::write(&path, b"in place").unwrap();
        assert!(why(&path).contains("copy on write is off"), "{}", why(&path));
        assert_eq!(file_system.hidden(), [""; 0]);
    });
    let test = "what_cannot_be_copied_says_why";
    if !is_root() {
        return skip(test, "mounting file systems needs root");
    }
    let scratch = Scratch::new();
    let old = FileSystem::new(&scratch, "xfs", &["-f", "-m", "reflink=0"], 512 << 20, "rw");
    let old = match old {
        Ok(old) => old,
        Err(error) => return skip(test, &error),
    };
    let path = old.path("disk.img");
    fs::write(&path, b"bytes").unwrap();
    assert!(why(&path).contains("without reflink"), "{}", why(&path));
    assert_eq!(old.hidden(), [""; 0]);
    // Other file systems are none of ours.
    assert!(Original::open(&scratch.write("disk.img", b"bytes")).is_none());
}
