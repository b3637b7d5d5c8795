//! Real block devices: loop devices with sectors of 512 and 4096 bytes. Needs root.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;
use voltar_tests::command::words;
use voltar_tests::data::{assert_same, disk};
use voltar_tests::device::system;
use voltar_tests::{Loop, Mount, Rng, Scratch, Voltar, is_root, skip};

const LEN: usize = 24 << 20;

fn voltar(scratch: &Scratch, line: &str) -> Voltar {
    Voltar::new(scratch).args(words(line))
}

/// A loop device over a new file with these bytes, or a skip.
fn device(test: &str, scratch: &Scratch, name: &str, bytes: &[u8], sector: u32) -> Option<Loop> {
    if !is_root() {
        skip(test, "loop devices need root");
        return None;
    }
    let file = scratch.write(name, bytes);
    Loop::new(&file, sector).map_err(|why| skip(test, &why)).ok()
}

fn read(device: &Loop) -> Vec<u8> {
    let mut bytes = Vec::new();
    File::open(device.path()).unwrap().read_to_end(&mut bytes).unwrap();
    bytes
}

fn number(object: &Value, name: &str) -> u64 {
    object[name].as_u64().unwrap_or_else(|| panic!("{name} in {object}"))
}

fn there_and_back(test: &str, sector: u32) {
    let scratch = Scratch::new();
    let mut bytes = disk(u64::from(sector), LEN);
    // A long stretch of zeroes, and zeroes at the end.
    bytes[4 << 20..9 << 20].fill(0);
    bytes[LEN - 70_000..].fill(0);
    let Some(source) = device(test, &scratch, "source", &bytes, sector) else { return };
    let line = format!("backup disk={} a.voltar", source.arg());
    let made = voltar(&scratch, &line).json();
    assert_eq!(made["volumes"][0]["size"], LEN);
    assert!(number(&made["volumes"][0], "zero_bytes") >= 5 << 20, "{made}");

    let junk = Rng::new(7).bytes(LEN);
    let Some(target) = device(test, &scratch, "target", &junk, sector) else { return };
    let restore =
        |flags: &str| voltar(&scratch, &format!("restore a.voltar {} {flags}", target.arg()));
    let refused = restore("").run().expect(5);
    assert!(refused.stderr.contains(target.arg()), "{}", refused.stderr);
    assert!(refused.stderr.contains("holds data"), "{}", refused.stderr);
    assert_same(&read(&target), &junk, "a refusal changed the target");
    for delta in ["off", "on", "auto"] {
        fill(&target, &junk);
        let made = restore(&format!("--overwrite --delta {delta}")).json();
        assert_same(&read(&target), &bytes, &format!("--delta {delta} over random bytes"));
        let volume = &made["volumes"][0];
        let sum = ["written_bytes", "zeroed_bytes", "kept_bytes"].map(|n| number(volume, n));
        assert_eq!(sum.iter().sum::<u64>(), LEN as u64, "--delta {delta}: {volume}");
    }
    // An older copy: two chunks differ, one of them because it is zero now.
    let mut older = bytes.clone();
    older[1 << 20..(1 << 20) + 512].fill(0xaa);
    older[5 << 20..(5 << 20) + 512].fill(0xbb);
    for io in ["auto", "blocking"] {
        fill(&target, &older);
        let made = restore(&format!("--overwrite --delta on --read-back --io {io}")).json();
        assert_same(&read(&target), &bytes, "--delta over an older copy");
        let volume = &made["volumes"][0];
        let touched = number(volume, "written_bytes") + number(volume, "zeroed_bytes");
        assert!((1024..=256 << 10).contains(&touched), "{volume}");
        assert_eq!(made["read_back"], true);
    }
    // Nothing differs: nothing is written.
    let made = restore("--overwrite --delta on").json();
    assert_eq!(number(&made["volumes"][0], "kept_bytes"), LEN as u64, "{made}");
}

fn fill(target: &Loop, bytes: &[u8]) {
    let device = File::options().write(true).open(target.path()).unwrap();
    device.write_all_at(bytes, 0).unwrap();
    device.sync_all().unwrap();
}

#[test]
fn sectors_of_512_bytes_there_and_back() {
    there_and_back("sectors_of_512_bytes_there_and_back", 512);
}

#[test]
fn sectors_of_4096_bytes_there_and_back() {
    there_and_back("sectors_of_4096_bytes_there_and_back", 4096);
}

#[test]
fn a_volume_from_a_file_fits_a_larger_device() {
    let test = "a_volume_from_a_file_fits_a_larger_device";
    let scratch = Scratch::new();
    let bytes = disk(3, 1_000_003);
    scratch.write("disk", &bytes);
    voltar(&scratch, "backup disk a.voltar").ok();
    for sector in [512, 4096] {
        let junk = Rng::new(9).bytes(2 << 20);
        let Some(target) = device(test, &scratch, "target", &junk, sector) else { return };
        voltar(&scratch, &format!("restore a.voltar {} --overwrite", target.arg())).ok();
        let got = read(&target);
        assert_same(&got[..bytes.len()], &bytes, "the volume");
        // Up to the end of the last sector zeroes may follow; behind it nothing was touched.
        let behind = bytes.len().next_multiple_of(4096);
        assert_same(&got[behind..], &junk[behind..], "what lies behind the volume");
    }
}

/// Runs a restore that must be refused with exit code 5, `words` and an unchanged target.
fn refused(scratch: &Scratch, target: &Path, flags: &str, words: &str) {
    let hash = |path: &Path| fs::read(path).ok();
    let before = hash(target);
    let line = format!("restore a.voltar {} {flags} --json", target.display());
    let ran = voltar(scratch, &line).run().expect(5);
    assert_eq!(ran.json()["error"]["kind"], "target-refused");
    assert!(ran.stderr.contains(words), "{words}: {}", ran.stderr);
    assert!(ran.stderr.contains("hint: "), "{}", ran.stderr);
    assert!(hash(target) == before, "{words}: the target changed");
}

fn archive_of(scratch: &Scratch, len: usize) {
    scratch.write("disk", &disk(5, len));
    voltar(scratch, "backup disk a.voltar").ok();
}

#[test]
fn an_archive_goes_to_no_device_and_to_nothing_below_its_source() {
    let test = "an_archive_goes_to_no_device_and_to_nothing_below_its_source";
    let scratch = Scratch::new();
    let bytes = disk(6, 2 << 20);
    let Some(source) = device(test, &scratch, "source", &bytes, 512) else { return };
    let other = File::options().write(true).open(source.path()).unwrap();
    let ran = voltar(&scratch, &format!("backup d={} -", source.arg())).stdout(other).run();
    assert!(ran.expect(1).stderr.contains("not written to a block device"));
    let below = File::options().write(true).open(scratch.path("source")).unwrap();
    let ran = voltar(&scratch, &format!("backup d={} -", source.arg())).stdout(below).run();
    assert!(ran.expect(1).stderr.contains("the archive is the source itself"));
    assert_same(&read(&source), &bytes, "the source");
}

#[test]
fn a_device_that_is_too_small_is_refused() {
    let scratch = Scratch::new();
    archive_of(&scratch, 2 << 20);
    let test = "a_device_that_is_too_small_is_refused";
    let Some(target) = device(test, &scratch, "small", &[0; 1 << 20], 512) else { return };
    refused(&scratch, target.path(), "--overwrite", "1048576 bytes");
}

#[test]
fn a_read_only_device_is_refused() {
    let test = "a_read_only_device_is_refused";
    if !is_root() {
        return skip(test, "loop devices need root");
    }
    let scratch = Scratch::new();
    archive_of(&scratch, 2 << 20);
    let target = match Loop::read_only(&scratch.write("ro", &Rng::new(1).bytes(4 << 20))) {
        Ok(target) => target,
        Err(why) => return skip(test, &why),
    };
    refused(&scratch, target.path(), "--overwrite", "read-only");
}

#[test]
fn a_mounted_device_is_refused() {
    let test = "a_mounted_device_is_refused";
    let scratch = Scratch::new();
    archive_of(&scratch, 2 << 20);
    let Some(target) = device(test, &scratch, "fs", &vec![0; 16 << 20], 512) else { return };
    let made = system("mkfs.ext4", &["-q", target.arg()]);
    let mount = made.and_then(|_| Mount::device(target.arg(), &scratch.path("mnt")));
    let mount = match mount {
        Ok(mount) => mount,
        Err(why) => return skip(test, &why),
    };
    fs::write(mount.path().join("precious"), b"data").unwrap();
    system("sync", &["-f", mount.path().to_str().unwrap()]).unwrap();
    refused(&scratch, target.path(), "--overwrite", "mounted");
    assert_eq!(fs::read(mount.path().join("precious")).unwrap(), b"data");
    // The file under it holds the same bytes.
    refused(&scratch, &scratch.path("fs"), "--overwrite", "loop");
    drop(mount);
    // Released, it is only data.
    refused(&scratch, target.path(), "", "holds data");
    voltar(&scratch, &format!("restore a.voltar {} --overwrite", target.arg())).ok();
}

#[test]
fn a_disk_with_a_mounted_partition_is_refused() {
    let test = "a_disk_with_a_mounted_partition_is_refused";
    if !is_root() {
        return skip(test, "loop devices need root");
    }
    let scratch = Scratch::new();
    archive_of(&scratch, 2 << 20);
    let mut image = vec![0; PARTITIONED_LEN];
    partition(&mut image);
    let target = match Loop::with(&scratch.write("whole", &image), &["-P"]) {
        Ok(target) => target,
        Err(why) => return skip(test, &why),
    };
    let mount = first_partition(&target, &scratch).and_then(|partition| {
        system("mkfs.ext4", &["-q", &partition])?;
        Mount::device(&partition, &scratch.path("mnt"))
    });
    let _mount = match mount {
        Ok(mount) => mount,
        Err(why) => return skip(test, &why),
    };
    system("sync", &["-f", scratch.path("mnt").to_str().unwrap()]).unwrap();
    refused(&scratch, target.path(), "--overwrite", "mounted");
}

/// Length of the disk with a partition.
const PARTITIONED_LEN: usize = 16 << 20;

/// A node for the first partition, made here: not every machine runs something that makes them.
fn first_partition(disk: &Loop, scratch: &Scratch) -> Result<String, String> {
    let name = disk.path().file_name().unwrap().to_str().unwrap();
    let numbers = format!("/sys/block/{name}/{name}p1/dev");
    if !Path::new(&numbers).exists() {
        // A kernel that does not read this kind of table takes its word from us.
        let sectors = (PARTITIONED_LEN / 512 - 2048).to_string();
        system("addpart", &[disk.arg(), "1", "2048", &sectors])?;
    }
    for _ in 0..50 {
        if let Ok(numbers) = fs::read_to_string(&numbers) {
            let node = scratch.path("p1").to_str().unwrap().to_string();
            let (major, minor) = numbers.trim().split_once(':').unwrap();
            return system("mknod", &[&node, "b", major, minor]).map(|_| node);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Err("the kernel shows no partitions of loop devices".into())
}

/// A partition table with one Linux partition from 1 MiB to the end.
fn partition(image: &mut [u8]) {
    let sectors = (image.len() / 512) as u32;
    image[446 + 4] = 0x83;
    image[446 + 8..446 + 12].copy_from_slice(&2048u32.to_le_bytes());
    image[446 + 12..446 + 16].copy_from_slice(&(sectors - 2048).to_le_bytes());
    image[510..512].copy_from_slice(&[0x55, 0xaa]);
}

/// Swap that is switched off when dropped.
struct Swap(String);

impl Drop for Swap {
    fn drop(&mut self) {
        if let Err(why) = system("swapoff", &[&self.0]) {
            eprintln!("{why}");
        }
    }
}

#[test]
fn swap_is_refused() {
    let test = "swap_is_refused";
    let scratch = Scratch::new();
    archive_of(&scratch, 2 << 20);
    let Some(target) = device(test, &scratch, "swap", &vec![0; 16 << 20], 4096) else { return };
    let on = system("mkswap", &[target.arg()]).and_then(|_| system("swapon", &[target.arg()]));
    let _swap = match on {
        Ok(_) => Swap(target.arg().to_string()),
        Err(why) => return skip(test, &why),
    };
    let ran = voltar(&scratch, &format!("restore a.voltar {} --overwrite", target.arg()));
    let ran = ran.run().expect(5);
    assert!(ran.stderr.contains("swap"), "{}", ran.stderr);
}

#[test]
fn the_source_and_the_archive_are_no_targets() {
    let test = "the_source_and_the_archive_are_no_targets";
    let scratch = Scratch::new();
    archive_of(&scratch, 2 << 20);
    if !is_root() {
        return skip(test, "loop devices need root");
    }
    // A device over the archive's own file.
    let over = match Loop::new(&scratch.path("a.voltar"), 512) {
        Ok(over) => over,
        Err(why) => return skip(test, &why),
    };
    refused(&scratch, over.path(), "--overwrite", "a.voltar");
}

#[test]
fn a_device_held_by_another_is_refused() {
    let test = "a_device_held_by_another_is_refused";
    let scratch = Scratch::new();
    archive_of(&scratch, 2 << 20);
    let junk = Rng::new(2).bytes(4 << 20);
    let Some(target) = device(test, &scratch, "lower", &junk, 512) else { return };
    let upper = match Loop::new(target.path(), 512) {
        Ok(upper) => upper,
        Err(why) => return skip(test, &why),
    };
    refused(&scratch, target.path(), "--overwrite", "loop");
    drop(upper);
    voltar(&scratch, &format!("restore a.voltar {} --overwrite", target.arg())).ok();
}

#[test]
fn an_interrupted_restore_is_finished_by_the_same_command() {
    let test = "an_interrupted_restore_is_finished_by_the_same_command";
    let scratch = Scratch::new();
    let bytes = Rng::new(3).bytes(LEN);
    scratch.write("disk", &bytes);
    voltar(&scratch, "backup disk a.voltar").ok();
    let Some(target) = device(test, &scratch, "target", &vec![0; LEN], 512) else { return };
    let line = format!("restore a.voltar {} --json", target.arg());
    let running = voltar(&scratch, &format!("{line} --limit 8M")).start();
    std::thread::sleep(Duration::from_millis(1200));
    running.signal(Signal::SIGINT);
    let ran = running.wait().expect(130);
    assert_eq!(ran.json()["error"]["code"], 130);
    assert!(ran.stderr.contains("run the same command again"), "{}", ran.stderr);
    assert!(read(&target) != bytes, "it was complete already");
    // Without --overwrite: what is on the target is our own unfinished work.
    let made = voltar(&scratch, &line).ok().json();
    assert_same(&read(&target), &bytes, "restored in two goes");
    let kept = number(&made["volumes"][0], "kept_bytes");
    assert!(kept > 0, "nothing of the first run was kept: {made}");
    // The same to a file.
    let line = "restore a.voltar file.img --json";
    let running = voltar(&scratch, &format!("{line} --limit 8M")).start();
    std::thread::sleep(Duration::from_millis(1200));
    running.signal(Signal::SIGTERM);
    running.wait().expect(130);
    voltar(&scratch, line).ok();
    assert_same(&scratch.read("file.img"), &bytes, "a file restored in two goes");
}

#[test]
fn a_killed_restore_is_finished_by_the_same_command() {
    let test = "a_killed_restore_is_finished_by_the_same_command";
    let scratch = Scratch::new();
    let bytes = Rng::new(4).bytes(LEN);
    scratch.write("disk", &bytes);
    voltar(&scratch, "backup disk a.voltar").ok();
    let junk = Rng::new(5).bytes(LEN);
    let Some(target) = device(test, &scratch, "target", &junk, 4096) else { return };
    let line = format!("restore a.voltar {} --overwrite", target.arg());
    for wait in [300, 900] {
        let running = voltar(&scratch, &format!("{line} --limit 12M")).start();
        std::thread::sleep(Duration::from_millis(wait));
        running.signal(Signal::SIGKILL);
        assert_eq!(running.wait().signal(), Some(9));
    }
    voltar(&scratch, &line).ok();
    assert_same(&read(&target), &bytes, "after two kills");
}

#[test]
fn where_nobody_can_tell_who_uses_a_target_it_is_refused() {
    let test = "where_nobody_can_tell_who_uses_a_target_it_is_refused";
    if !is_root() {
        return skip(test, "name spaces and mounts need root");
    }
    let scratch = Scratch::new();
    scratch.write("disk", &disk(1, 300_000));
    voltar(&scratch, "backup disk a.voltar").ok();
    scratch.write("out", &[7; 300_000]);
    // As in a chroot into which nobody mounted /sys.
    let bare = r#"mount -t tmpfs none /sys && exec "$0" "$@""#;
    let wrapper = ["unshare", "--mount", "sh", "-c", bare].map(OsStr::new);
    let line = words("restore a.voltar out --overwrite");
    let ran = Voltar::through(&scratch, &wrapper).args(line).run().expect(5);
    assert!(ran.stderr.contains("/sys/block"), "{}", ran.stderr);
    assert!(ran.stderr.contains("mount /proc and /sys"), "{}", ran.stderr);
    assert!(scratch.read("out") == [7; 300_000], "it was written to");
}
