//! Backups of files on btrfs and XFS: held still by a reflink copy, changes from its extents, and
//! nothing left behind but the base.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;
use voltar_tests::data::assert_same;
use voltar_tests::device::system;
use voltar_tests::{FileSystem, Raise, Ran, Rng, Scratch, Voltar, is_root, skip};

const SIZE: u64 = 32 << 20;
const CHUNK: u64 = 64 << 10;

/// What the change source is called, and the file system to try it on.
const KINDS: [(&str, &str); 3] =
    [("xfs-reflink", ""), ("btrfs-reflink", "rw"), ("btrfs-reflink", "compress=zstd")];

/// An image on a file system, and an archive of it.
struct Rig {
    // Unmounted before the folder goes.
    file_system: FileSystem,
    scratch: Scratch,
    kind: &'static str,
    image: PathBuf,
}

/// Runs a test on each kind; says so where one is not to be had.
fn each(test: &str, run: impl Fn(&Rig)) {
    if !is_root() {
        return skip(test, "mounting file systems needs root");
    }
    for (kind, options) in KINDS {
        let scratch = Scratch::new();
        let made = match kind {
            "xfs-reflink" => FileSystem::xfs(&scratch),
            _ => FileSystem::btrfs(&scratch, options),
        };
        let file_system = match made {
            Ok(file_system) => file_system,
            Err(why) => return skip(test, &why),
        };
        let image = file_system.path("disk.img");
        let mut bytes = Rng::new(9).bytes(SIZE as usize);
        bytes[SIZE as usize / 4..SIZE as usize / 2].fill(b'x');
        fs::write(&image, bytes).unwrap();
        system("fallocate", &["--dig-holes", image.to_str().unwrap()]).unwrap();
        run(&Rig { file_system, scratch, kind, image });
    }
}

impl Rig {
    fn backup(&self, options: &[&str]) -> Voltar {
        let source = format!("disk={}", self.image.display());
        Voltar::new(&self.scratch).arg("backup").args(options).args([&source, "a.voltar"])
    }

    /// Makes a backup; what it says of the volume.
    #[track_caller]
    fn back_up(&self, options: &[&str]) -> Value {
        self.backup(options).json()["volumes"][0].clone()
    }

    fn bytes(&self) -> Vec<u8> {
        fs::read(&self.image).unwrap()
    }

    /// The snapshot before so many others must be these bytes.
    #[track_caller]
    fn assert_restores(&self, back: usize, want: &[u8]) {
        let from = format!("a.voltar@latest~{back}");
        let target = self.scratch.path("restored.img");
        Voltar::new(&self.scratch).args(["restore", "--overwrite", &from]).arg(&target).ok();
        assert_same(&fs::read(&target).unwrap(), want, &from);
        fs::remove_file(target).unwrap();
    }

    /// Copies that are there.
    fn copies(&self) -> Vec<String> {
        let hidden = self.file_system.hidden();
        assert!(hidden.iter().all(|name| name.starts_with(".disk.img.voltar-")), "{hidden:?}");
        hidden
    }

    fn write(&self, bytes: &[u8], at: u64) {
        File::options().write(true).open(&self.image).unwrap().write_all_at(bytes, at).unwrap();
    }

    /// Changes the image in one place; most bytes of chunks that this can have touched.
    fn edit(&self, rng: &mut Rng) -> u64 {
        let file = File::options().write(true).open(&self.image).unwrap();
        let size = file.metadata().unwrap().len();
        let at = rng.below(size);
        let len = (rng.below(300_000) + 1).min(size - at);
        let punch = |mode: &str| {
            let (at, len) = (at.to_string(), len.to_string());
            let image = self.image.to_str().unwrap();
            system("fallocate", &[mode, "--offset", &at, "--length", &len, image]).unwrap();
        };
        let touched = match rng.below(8) {
            0..4 => {
                self.write(&rng.bytes(len as usize), at);
                len
            }
            4 => {
                punch("--punch-hole");
                len
            }
            5 => {
                punch("--zero-range");
                len
            }
            6 => {
                let cut = rng.below(100_000);
                file.set_len(size - cut).unwrap();
                file.set_len(size).unwrap();
                cut
            }
            _ => {
                let more = rng.below(300_000);
                file.set_len(size + more).unwrap();
                more
            }
        };
        touched + 2 * CHUNK
    }
}

#[test]
fn a_chain_of_backups_reads_what_changed_and_restores() {
    let test = "a_chain_of_backups_reads_what_changed_and_restores";
    let seed = Rng::fresh(test).next_u64();
    each(test, |rig| {
        let mut rng = Rng::new(seed);
        let first = rig.back_up(&[]);
        assert_eq!(first["change_source"], "none", "there is nothing to compare with yet");
        assert_eq!(first["degraded"], Value::Null);
        let mut history = vec![rig.bytes()];
        for round in 0..11 {
            // Once nothing changes.
            let edits = if round == 5 { 0 } else { 1 + rng.below(5) };
            let touched: u64 = (0..edits).map(|_| rig.edit(&mut rng)).sum();
            let base = rig.copies();
            let told = rig.back_up(&["--audit", "2%"]);
            assert_eq!(told["change_source"], rig.kind, "{told}");
            let read = told["read_bytes"].as_u64().unwrap();
            // Where btrfs compresses, a write takes its neighbours in the extent along.
            let most = touched + edits * (256 << 10);
            assert!(read <= most, "round {round}: {read} read, {touched} touched: {told}");
            let copies = rig.copies();
            assert_eq!(copies.len(), 1, "one base is kept");
            assert_ne!(copies, base, "the base is that of the last backup");
            history.push(rig.bytes());
        }
        for (back, want) in history.iter().rev().enumerate() {
            rig.assert_restores(back, want);
        }
        Voltar::new(&rig.scratch).args(["verify", "a.voltar"]).ok();
    });
}

#[test]
fn the_copy_is_of_one_instant() {
    each("the_copy_is_of_one_instant", |rig| {
        let done = AtomicBool::new(false);
        // The end follows the start: never ahead of it, never behind by more than one.
        let places = [0, SIZE - 4096];
        let write = |count: u64| {
            for at in places {
                rig.write(&count.to_le_bytes().repeat(512), at);
            }
        };
        write(0);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut count = 0u64;
                while !done.load(Ordering::Relaxed) {
                    count += 1;
                    write(count);
                }
                assert!(count > 100, "it wrote but {count} times");
            });
            let _stop = Raise(&done);
            for _ in 0..5 {
                rig.back_up(&[]);
            }
        });
        for back in 0..5 {
            let target = rig.scratch.path("restored.img");
            let from = format!("a.voltar@latest~{back}");
            Voltar::new(&rig.scratch).args(["restore", &from]).arg(&target).ok();
            let bytes = fs::read(&target).unwrap();
            let [first, last] = places.map(|at| {
                let block = &bytes[at as usize..at as usize + 4096];
                assert!(block.chunks(8).all(|word| *word == block[..8]), "a torn block");
                u64::from_le_bytes(block[..8].try_into().unwrap())
            });
            assert!(first == last || first == last + 1, "{from}: {first} and {last}");
            fs::remove_file(target).unwrap();
        }
    });
}

#[test]
fn signals_leave_the_old_base_and_the_next_run_nothing_else() {
    let test = "signals_leave_the_old_base_and_the_next_run_nothing_else";
    let seed = Rng::fresh(test).next_u64();
    each(test, |rig| {
        let mut rng = Rng::new(seed);
        rig.back_up(&[]);
        let mut struck = 0;
        for round in 0..8 {
            rig.edit(&mut rng);
            let base = rig.copies();
            let signal = if round % 2 == 0 { Signal::SIGKILL } else { Signal::SIGINT };
            // Slow enough to be caught.
            let running = rig.backup(&["--changes", "full", "--limit", "100M"]).start();
            std::thread::sleep(Duration::from_millis(rng.below(300)));
            running.signal(signal);
            let ran: Ran = running.wait();
            struck += u32::from(ran.code() != Some(0));
            if ran.code() == Some(130) {
                assert_eq!(rig.copies(), base, "{}", ran.stderr);
            }
            let told = rig.back_up(&[]);
            let is_told = told["change_source"] == rig.kind;
            assert!(is_told || ran.code() == Some(0), "{told}");
            assert_eq!(rig.copies().len(), 1);
            rig.assert_restores(0, &rig.bytes());
        }
        assert!(struck > 0, "no signal came in time");
    });
}

#[test]
fn a_base_that_is_gone_or_touched_is_said_and_all_is_read() {
    each("a_base_that_is_gone_or_touched_is_said_and_all_is_read", |rig| {
        rig.back_up(&[]);
        let damages: [&dyn Fn(PathBuf); 3] = [
            &|base| fs::remove_file(base).unwrap(),
            &|base| File::options().write(true).open(base).unwrap().write_all_at(b"x", 7).unwrap(),
            // Now it is as the image is: nothing would seem to have changed.
            &|base| {
                let (image, base) = (rig.image.to_str().unwrap(), base.to_str().unwrap());
                system("cp", &["--reflink=always", image, base]).map(drop).unwrap();
            },
        ];
        for (number, damage) in damages.iter().enumerate() {
            rig.write(&[number as u8 + 1; 5000], 1 << 20);
            damage(rig.file_system.path(&rig.copies()[0]));
            let told = rig.back_up(&[]);
            assert_eq!(told["change_source"], "none");
            let why = told["degraded"].as_str().unwrap_or_default();
            assert!(why.starts_with(rig.kind) && why.contains("gone"), "{told}");
            rig.assert_restores(0, &rig.bytes());
            assert_eq!(rig.copies().len(), 1);
        }
    });
}

#[test]
fn what_is_kept_is_as_asked() {
    each("what_is_kept_is_as_asked", |rig| {
        rig.back_up(&["--snapshot", "off"]);
        assert_eq!(rig.copies().len(), 0, "no snapshot was asked for");
        rig.backup(&["--dry-run"]).ok();
        assert_eq!(rig.copies().len(), 0, "a rehearsal leaves nothing");
        rig.back_up(&["--keep", "none"]);
        assert_eq!(rig.copies().len(), 0, "nothing was to be kept");
        rig.back_up(&[]);
        assert_eq!(rig.copies().len(), 1);
        let told = rig.back_up(&["--changes", rig.kind]);
        assert_eq!(told["change_source"], rig.kind);
        rig.backup(&["--changes", "dm-thin"]).run().expect(1);
        assert_eq!(rig.copies().len(), 1, "a backup that failed leaves the base");
        rig.back_up(&["--keep", "none"]);
        assert_eq!(rig.copies().len(), 0, "the old base goes as well");
    });
}

#[test]
fn a_file_that_cannot_be_copied_is_read_as_it_is() {
    let test = "a_file_that_cannot_be_copied_is_read_as_it_is";
    each(test, |rig| {
        let dir = rig.file_system.dir().to_str().unwrap();
        let remount = |how: &str| {
            system("mount", &["-o", &format!("remount,{how}"), dir]).unwrap();
        };
        remount("ro");
        let told = rig.back_up(&[]);
        remount("rw");
        let why = told["degraded"].as_str().unwrap_or_default();
        assert!(why.starts_with(rig.kind) && why.contains("read-only"), "{told}");
        assert_eq!(told["change_source"], "none");
        rig.assert_restores(0, &rig.bytes());
        assert_eq!(rig.copies().len(), 0);
    });
}
