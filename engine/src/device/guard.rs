//! The one gate before every destructive act.
//!
//! [`guard`] looks at a target, refuses it with a reason, or hands over the opened device. What
//! it hands over is open exclusively (block devices) and was compared with what was looked at, so
//! that nothing slips between the check and the use. A refusal writes nothing: the checks only
//! look, and the one descriptor that could write is closed unused.
//!
//! What it cannot see: openers in processes it may not look into (anything of other users unless
//! it runs as root), hosts that share the disk, and data on a device that lies outside the places
//! it samples.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Instant;

use nix::errno::Errno;

use super::file::{Access, FileDevice, FileIdentity};
use super::in_use::{self, Use};
use super::open::{RELEASE_GRACE, check_kind, claim, look, refusal};
use super::{ExtentKind, Extents, loops};
use crate::error::{Error, ErrorKind, Result};
use crate::io::ioctl;

/// How much of the start and of the end is read to see whether a target holds data: what holds
/// partition tables, boot sectors and the signatures of every common file system.
const EDGE_LEN: u64 = 1 << 20;

/// How many places between the edges are looked at, and how long each is.
const SAMPLE_COUNT: u64 = 256;
const SAMPLE_LEN: u64 = 4096;

/// What is going to happen to the target.
#[derive(Clone, Debug, Default)]
pub struct GuardRequest {
    /// Bytes the target must have room for.
    pub need_len: u64,
    /// Whether data on it may be overwritten.
    pub overwrite: bool,
    /// Files and devices that are read meanwhile (sources, archives): none of them, nothing they
    /// stand on and nothing that stands on them is a target.
    pub not_these: Vec<PathBuf>,
    /// Whether the caller can prove that what is on it is its own unfinished work; then data is
    /// no reason to refuse.
    pub resume_allowed: bool,
    /// Whether a regular file that is too short will do, because the caller makes it longer.
    pub may_grow: bool,
}

/// A target that passed. Whoever has it may write.
#[derive(Debug)]
pub struct Cleared {
    device: FileDevice,
    holds_data: bool,
}

impl Cleared {
    /// The opened target.
    pub fn device(&self) -> &FileDevice {
        &self.device
    }

    /// The opened target, to keep.
    pub fn into_device(self) -> FileDevice {
        self.device
    }

    /// What it is.
    pub fn identity(&self) -> &FileIdentity {
        self.device.identity()
    }

    /// Whether something was found on it (that the request allowed to be overwritten).
    pub fn holds_data(&self) -> bool {
        self.holds_data
    }
}

/// Looks at `target` and opens it for writing, or refuses it.
///
/// # Errors
/// [`ErrorKind::TargetRefused`] with the reason and what to do about it; [`ErrorKind::NotFound`]
/// if nothing is there; [`ErrorKind::Io`] if it cannot be looked at. The target's bytes are as
/// they were.
pub fn guard(target: &Path, request: &GuardRequest) -> Result<Cleared> {
    let metadata = look(target, "cannot look at the target")?;
    check_kind(target, &metadata, "cannot be written to", ErrorKind::TargetRefused)?;
    let seen = identify(target)?;
    refuse_the_read(target, &seen, &request.not_these)?;
    refuse_used(target, in_use::from_outside(&seen))?;
    let device = open(target, &seen)?;
    refuse_replaced(target, &seen, device.identity())?;
    if !device.identity().is_block {
        claim(target, device.file())?;
    }
    refuse_read_only(target, &device)?;
    refuse_used(target, in_use::by_qemu(device.file()))?;
    refuse_small(target, &device, request)?;
    device.forget_cached();
    let holds_data = holds_data(&device).map_err(|error| {
        Error::io("cannot read the target", target.display().to_string(), error)
    })?;
    if holds_data && !request.overwrite && !request.resume_allowed {
        return Err(holding_data(target));
    }
    Ok(Cleared { device, holds_data })
}

/// The refusal of a target that holds data.
pub(crate) fn holding_data(target: &Path) -> Error {
    refusal(
        target,
        "it holds data",
        "allow it to be overwritten (`--overwrite`) if that data may be lost",
    )
}

fn refuse_used(target: &Path, found: Option<Use>) -> Result<()> {
    match found {
        Some(found) => Err(refusal(target, found.words, found.hint)),
        None => Ok(()),
    }
}

/// What is at `target`, by a descriptor that cannot write.
fn identify(target: &Path) -> Result<FileIdentity> {
    File::open(target).and_then(|file| FileIdentity::of(&file)).map_err(|error| {
        match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::ENOMEDIUM | Errno::ENXIO) => {
                refusal(target, "no medium is in it", "insert or attach one")
            }
            _ => super::open::in_words("cannot look at the target", target, error),
        }
    })
}

/// Refuses the sources and archives themselves, by whatever name and through whatever loop device
/// or partition.
fn refuse_the_read(target: &Path, seen: &FileIdentity, not_these: &[PathBuf]) -> Result<()> {
    let hint = "choose a target that is neither read from nor the archive";
    for path in not_these {
        // One that does not exist cannot be overwritten.
        let Ok(other) = File::open(path).and_then(|file| FileIdentity::of(&file)) else {
            continue;
        };
        if seen.is_same(&other) {
            return Err(refusal(target, format!("it is {} itself", path.display()), hint));
        }
        if loops::share_bytes(seen, &other) {
            let why = format!("it shares its bytes with {}", path.display());
            return Err(refusal(target, why, hint));
        }
    }
    Ok(())
}

/// Opens it. What a killed process held is waited for as long as the kernel may take to let go.
fn open(target: &Path, seen: &FileIdentity) -> Result<FileDevice> {
    let is_busy = |error: &io::Error| error.kind() == io::ErrorKind::ResourceBusy;
    let started = Instant::now();
    let mut outcome = FileDevice::open(target, Access::Write);
    while outcome.as_ref().is_err_and(is_busy) && started.elapsed() < RELEASE_GRACE {
        std::thread::sleep(RELEASE_GRACE / 50);
        outcome = FileDevice::open(target, Access::Write);
    }
    outcome.map_err(|error| {
        match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::EBUSY) => {
                // Somebody claimed it since the look, or from another mount name space.
                let hint = "find the user (`lsblk`, `fuser`), or choose another target";
                refusal(target, "something else uses it exclusively", hint)
            }
            Some(Errno::EROFS | Errno::ETXTBSY) => read_only(target),
            Some(Errno::EACCES | Errno::EPERM) if seen.is_block && is_read_only(target) => {
                read_only(target)
            }
            _ => super::open::in_words("cannot open the target", target, error),
        }
    })
}

fn is_read_only(target: &Path) -> bool {
    File::open(target).and_then(|file| ioctl::is_read_only(&file)).unwrap_or(false)
}

fn read_only(target: &Path) -> Error {
    refusal(target, "it is read-only", "make it writable, or choose another target")
}

/// The number, the length and the sequence number must be those that were looked at.
fn refuse_replaced(target: &Path, seen: &FileIdentity, opened: &FileIdentity) -> Result<()> {
    let same = seen.is_same(opened)
        && seen.is_block == opened.is_block
        && seen.size == opened.size
        && seen.diskseq == opened.diskseq;
    match same {
        true => Ok(()),
        false => Err(refusal(
            target,
            "it became another device or changed its size while it was being checked",
            "see what is being attached or resized, and try again",
        )),
    }
}

fn refuse_read_only(target: &Path, device: &FileDevice) -> Result<()> {
    let flagged = match device.identity().is_block {
        true => ioctl::is_read_only(device.file()).unwrap_or(false),
        false => fs::metadata(target).is_ok_and(|metadata| metadata.permissions().readonly()),
    };
    match flagged {
        true => Err(read_only(target)),
        false => Ok(()),
    }
}

fn refuse_small(target: &Path, device: &FileDevice, request: &GuardRequest) -> Result<()> {
    let has = device.identity().size;
    let may_grow = request.may_grow && !device.identity().is_block;
    if has >= request.need_len || may_grow {
        return Ok(());
    }
    let why = format!("it has {has} bytes and {} are needed", request.need_len);
    Err(refusal(target, why, "choose a larger target"))
}

/// Whether anything but zeroes is found at the edges, in the samples, or at the start of one of
/// the first data extents of a file.
pub(crate) fn holds_data(device: &dyn Extents) -> io::Result<bool> {
    let len = device.len()?;
    let mut bytes = vec![0; EDGE_LEN as usize];
    let mut found = |offset: u64, want: u64| -> io::Result<bool> {
        let part = &mut bytes[..want.min(len.saturating_sub(offset)) as usize];
        let count = device.read_at(part, offset)?;
        Ok(part[..count].iter().any(|byte| *byte != 0))
    };
    if found(0, EDGE_LEN)? || found(len.saturating_sub(EDGE_LEN), EDGE_LEN)? {
        return Ok(true);
    }
    for offset in sample_offsets(len).chain(extent_starts(device, len)) {
        if found(offset, SAMPLE_LEN)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Evenly spaced, each moved within its stride by a fixed hash so that a regular layout does not
/// hide between them.
fn sample_offsets(len: u64) -> impl Iterator<Item = u64> {
    let stride = len / SAMPLE_COUNT;
    (0..SAMPLE_COUNT).filter(move |_| stride >= SAMPLE_LEN).map(move |index| {
        let jitter = index.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 16;
        (index * stride + jitter % stride) / SAMPLE_LEN * SAMPLE_LEN
    })
}

fn extent_starts(device: &dyn Extents, len: u64) -> impl Iterator<Item = u64> {
    let mut at = 0;
    std::iter::from_fn(move || {
        while at < len {
            let extent = device.extent_at(at).ok()?;
            at = extent.range.end.max(at + 1);
            if extent.kind == ExtentKind::Data {
                return Some(extent.range.start);
            }
        }
        None
    })
    .take(SAMPLE_COUNT as usize)
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Write};
    use std::process::{Child, Command, Stdio};

    use super::*;
    use crate::device::Device;
    use crate::device::test_rig::{Loop, file_with, pattern};

    const LEN: usize = 4 << 20;

    fn request() -> GuardRequest {
        GuardRequest { need_len: LEN as u64, ..GuardRequest::default() }
    }

    fn overwrite() -> GuardRequest {
        GuardRequest { overwrite: true, ..request() }
    }

    /// Refuses, says `words`, and leaves the bytes alone.
    #[track_caller]
    fn assert_refused(target: &Path, request: &GuardRequest, words: &str) {
        let before = fs::read(target).ok();
        let error = guard(target, request).map(|_| ()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TargetRefused, "{error:?}");
        assert!(error.to_string().contains(words), "{error}");
        assert!(error.remedy().is_some());
        assert!(fs::read(target).ok() == before, "the target changed");
    }

    fn run(program: &str, args: &[&str]) -> bool {
        let output = Command::new(program).args(args).output();
        let fine = output.as_ref().is_ok_and(|output| output.status.success());
        if !fine {
            eprintln!("skipped: {program} {args:?}: {output:?}");
        }
        fine
    }

    /// What a command ends, however the test does.
    struct Until<'a> {
        program: &'a str,
        arguments: Vec<&'a str>,
    }

    impl Drop for Until<'_> {
        fn drop(&mut self) {
            let ended = run(self.program, &self.arguments);
            assert!(ended || std::thread::panicking(), "it is still there");
        }
    }

    /// A new file system on `device`, mounted at `place`.
    fn mounted<'a>(device: &Path, place: &'a Path) -> Option<Until<'a>> {
        let (device, place) = (device.to_str().unwrap(), place.to_str().unwrap());
        let made = run("mkfs.ext4", &["-q", "-F", device]) && run("mount", &[device, place]);
        made.then(|| Until { program: "umount", arguments: vec![place] })
    }

    /// A process that says when it is ready and waits for its input to end.
    struct Helper(Child);

    impl Helper {
        fn start(script: &str, argument: &Path) -> Option<Helper> {
            let child = Command::new("python3")
                .args(["-c", script])
                .arg(argument)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn();
            let Ok(mut child) = child else {
                eprintln!("skipped: no python3");
                return None;
            };
            let mut line = String::new();
            BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
            assert_eq!(line.trim(), "ready");
            Some(Helper(child))
        }
    }

    impl Drop for Helper {
        fn drop(&mut self) {
            drop(self.0.stdin.take());
            let _ = self.0.wait();
        }
    }

    #[test]
    fn an_empty_file_of_the_right_size_is_cleared() {
        let folder = tempfile::tempdir().unwrap();
        let target = file_with(folder.path(), "target", &vec![0; LEN]);
        let cleared = guard(&target, &request()).unwrap();
        assert!(!cleared.holds_data());
        cleared.device().write_at(b"written", 0).unwrap();
    }

    #[test]
    fn what_holds_data_needs_leave() {
        let folder = tempfile::tempdir().unwrap();
        for place in [0, 511, LEN - 1, LEN / 2] {
            let target = folder.path().join("target");
            let file = File::create(&target).unwrap();
            file.set_len(LEN as u64).unwrap();
            std::os::unix::fs::FileExt::write_all_at(&file, &[1], place as u64).unwrap();
            drop(file);
            assert_refused(&target, &request(), "it holds data");
            assert!(guard(&target, &overwrite()).unwrap().holds_data());
            let resume = GuardRequest { resume_allowed: true, ..request() };
            assert!(guard(&target, &resume).is_ok());
        }
    }

    #[test]
    fn every_stretch_of_a_device_is_sampled() {
        let smallest = SAMPLE_COUNT * SAMPLE_LEN;
        assert_eq!(sample_offsets(smallest - 1).count(), 0, "its edges are all of it");
        for len in [smallest, LEN as u64, (1 << 40) + 12_345, u64::MAX / 2] {
            let stride = len / SAMPLE_COUNT;
            let offsets: Vec<u64> = sample_offsets(len).collect();
            assert_eq!(offsets.len() as u64, SAMPLE_COUNT, "{len:#x}");
            for (number, offset) in (0..).zip(&offsets) {
                let stretch = number * stride / SAMPLE_LEN * SAMPLE_LEN..(number + 1) * stride;
                assert!(stretch.contains(offset), "{offset:#x} for {stretch:#x?} of {len:#x}");
                assert!(offset.is_multiple_of(SAMPLE_LEN), "{offset:#x} of {len:#x}");
            }
            let is_regular = offsets.windows(2).all(|pair| pair[1] - pair[0] == stride);
            assert!(!is_regular || stride == SAMPLE_LEN, "{len:#x}");
        }
    }

    #[test]
    fn data_between_the_edges_of_a_device_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let (edge, middle) = (vec![0; EDGE_LEN as usize], pattern(LEN, 5));
        let backing = file_with(folder.path(), "backing", &[&edge[..], &middle, &edge].concat());
        let Some(device) = Loop::set_up(&backing, &[]) else { return };
        assert_refused(&device.path, &request(), "it holds data");
    }

    #[test]
    fn a_little_data_between_the_samples_of_a_file_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("target");
        let file = File::create(&target).unwrap();
        let (len, step) = (64 << 20, 64 << 10);
        file.set_len(len).unwrap();
        drop(guard(&target, &request()).unwrap());
        let is_sampled = |at: &u64| sample_offsets(len).any(|sample| sample.abs_diff(*at) < step);
        let mut places = (EDGE_LEN..len - EDGE_LEN).step_by(step as usize);
        let at = places.find(|at| !is_sampled(at)).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, &[1], at).unwrap();
        drop(file);
        assert_refused(&target, &request(), "it holds data");
    }

    /// Another opener keeps pages of a device in the cache while its bytes change below.
    #[test]
    fn data_is_looked_for_on_the_medium() {
        let folder = tempfile::tempdir().unwrap();
        let backing = file_with(folder.path(), "backing", &vec![0; LEN]);
        let Some(device) = Loop::set_up(&backing, &[]) else { return };
        let reader = File::open(&device.path).unwrap();
        let mut bytes = vec![1; LEN];
        std::os::unix::fs::FileExt::read_exact_at(&reader, &mut bytes, 0).unwrap();
        assert!(bytes.iter().all(|byte| *byte == 0));
        let below = fs::OpenOptions::new().write(true).open(&backing).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&below, &pattern(LEN, 3), 0).unwrap();
        below.sync_all().unwrap();
        drop(below);
        let error = guard(&device.path, &request()).map(|_| ()).unwrap_err();
        assert!(error.to_string().contains("it holds data"), "{error}");
        drop(reader);
    }

    #[test]
    fn of_two_that_want_one_file_one_has_it() {
        let folder = tempfile::tempdir().unwrap();
        let target = file_with(folder.path(), "target", &vec![0; LEN]);
        let first = guard(&target, &request()).unwrap();
        assert_refused(&target, &request(), "another program holds its lock");
        drop(first);
        assert!(guard(&target, &request()).is_ok());
    }

    #[test]
    fn the_source_and_the_archive_are_refused_by_any_name() {
        let folder = tempfile::tempdir().unwrap();
        let source = file_with(folder.path(), "source", &pattern(LEN, 1));
        let link = folder.path().join("link");
        let soft = folder.path().join("soft");
        fs::hard_link(&source, &link).unwrap();
        std::os::unix::fs::symlink(&source, &soft).unwrap();
        let missing = folder.path().join("missing");
        let request = GuardRequest { not_these: vec![missing, source.clone()], ..overwrite() };
        for target in [&source, &link, &soft] {
            assert_refused(target, &request, "itself");
        }
    }

    #[test]
    fn what_is_too_small_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let target = file_with(folder.path(), "target", &vec![0; LEN - 1]);
        assert_refused(&target, &overwrite(), "4194303 bytes and 4194304 are needed");
        let growing = GuardRequest { may_grow: true, ..request() };
        assert!(guard(&target, &growing).is_ok());
    }

    #[test]
    fn directories_and_character_devices_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        for target in [folder.path(), Path::new("/dev/null")] {
            let error = guard(target, &request()).map(|_| ()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::TargetRefused);
        }
        let missing = guard(&folder.path().join("missing"), &request()).map(|_| ()).unwrap_err();
        assert_eq!(missing.kind(), ErrorKind::NotFound);
    }

    #[test]
    fn a_read_only_file_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let target = file_with(folder.path(), "target", &vec![0; LEN]);
        let mut permissions = fs::metadata(&target).unwrap().permissions();
        permissions.set_readonly(true);
        fs::set_permissions(&target, permissions).unwrap();
        let error = guard(&target, &request()).map(|_| ()).unwrap_err();
        // Without root's powers the open already fails.
        assert!(matches!(error.kind(), ErrorKind::TargetRefused | ErrorKind::Io), "{error:?}");
    }

    /// Locks like QEMU 10 (`raw_apply_lock_bytes` in `block/file-posix.c`), but opens for reading
    /// only, so that the locks alone give it away.
    const LOCK_LIKE_QEMU: &str = "
import fcntl, os, struct, sys
fd = os.open(sys.argv[1], os.O_RDONLY)
for byte in (100, 203) if len(sys.argv) < 3 else ():
    fcntl.fcntl(fd, 37, struct.pack('hhqqi4x', fcntl.F_RDLCK, 0, byte, 1, 0))
print('ready', flush=True)
sys.stdin.read()
";

    const OPEN_FOR_WRITING: &str = "
import os, sys
fd = os.open(sys.argv[1], os.O_RDWR)
print('ready', flush=True)
sys.stdin.read()
";

    #[test]
    fn what_a_qemu_locks_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let target = file_with(folder.path(), "target", &vec![0; LEN]);
        let Some(helper) = Helper::start(LOCK_LIKE_QEMU, &target) else {
            return;
        };
        assert_refused(&target, &overwrite(), "QEMU");
        drop(helper);
        assert!(guard(&target, &overwrite()).is_ok());
    }

    #[test]
    fn what_a_real_qemu_writes_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let target = file_with(folder.path(), "target", &vec![0; LEN]);
        let child = Command::new("qemu-io")
            .args(["-f", "raw"])
            .arg(&target)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn();
        let Ok(mut child) = child else {
            eprintln!("skipped: no qemu-io");
            return;
        };
        // It answers once it has the image open.
        child.stdin.as_mut().unwrap().write_all(b"length\n").unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        let file = File::open(&target).unwrap();
        assert!(in_use::by_qemu(&file).unwrap().words.contains("writes to it"));
        assert_refused(&target, &overwrite(), "");
        drop(Helper(child));
        assert!(guard(&target, &overwrite()).is_ok());
    }

    #[test]
    fn what_another_process_writes_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let target = file_with(folder.path(), "target", &vec![0; LEN]);
        let Some(helper) = Helper::start(OPEN_FOR_WRITING, &target) else {
            return;
        };
        assert_refused(&target, &overwrite(), "has it open for writing");
        drop(helper);
        assert!(guard(&target, &overwrite()).is_ok());
    }

    #[test]
    fn loop_devices_are_refused_while_they_are_in_use() {
        let folder = tempfile::tempdir().unwrap();
        let backing = file_with(folder.path(), "backing", &vec![0; 4 * LEN]);
        let Some(device) = Loop::set_up(&backing, &[]) else {
            return;
        };
        let target = device.path.clone();
        assert_refused(&backing, &overwrite(), "it is what /dev/loop");
        for other in [&backing, &target] {
            let request = GuardRequest { not_these: vec![other.clone()], ..overwrite() };
            assert_refused(&target, &request, &other.display().to_string());
        }
        drop(guard(&target, &request()).unwrap());
        refused_while_mounted(folder.path(), &target);
        refused_while_swapped(&target);
        let Some(helper) = Helper::start(OPEN_FOR_WRITING, &target) else {
            return;
        };
        assert_refused(&target, &overwrite(), "has it open for writing");
        drop(helper);
        // mkfs or mkswap left something behind; the tests above never did.
        drop(guard(&target, &overwrite()).unwrap());
    }

    #[test]
    fn a_loop_device_is_refused_while_its_backing_file_is_in_use() {
        let folder = tempfile::tempdir().unwrap();
        let backing = file_with(folder.path(), "backing", &vec![0; 4 * LEN]);
        let Some(device) = Loop::set_up(&backing, &[]) else {
            return;
        };
        let target = device.path.clone();
        for (script, words) in
            [(OPEN_FOR_WRITING, "has it open for writing"), (LOCK_LIKE_QEMU, "QEMU")]
        {
            let Some(helper) = Helper::start(script, &backing) else {
                return;
            };
            assert_refused(&target, &overwrite(), &backing.display().to_string());
            assert_refused(&target, &overwrite(), words);
            drop(helper);
        }
        drop(guard(&target, &overwrite()).unwrap());
    }

    #[test]
    fn a_loop_device_is_refused_while_another_on_the_same_bytes_is_in_use() {
        let folder = tempfile::tempdir().unwrap();
        let backing = file_with(folder.path(), "backing", &vec![0; 8 * LEN]);
        let half = (4 * LEN).to_string();
        let Some(device) = Loop::set_up(&backing, &["--offset", &half]) else {
            return;
        };
        let same = device.beside(&backing, &[]).unwrap();
        let before = device.beside(&backing, &["--sizelimit", &half]).unwrap();
        let target = device.path.clone();
        // Not in use, the others do not matter; but what is read from one is never overwritten
        // through another.
        drop(guard(&target, &overwrite()).unwrap());
        for (read, shared) in [(&same, true), (&before, false)] {
            let request = GuardRequest { not_these: vec![read.path.clone()], ..overwrite() };
            match shared {
                true => assert_refused(&target, &request, "shares its bytes"),
                false => drop(guard(&target, &request).unwrap()),
            }
        }
        let place = folder.path().join("place");
        fs::create_dir(&place).unwrap();
        let words = format!("mounted at {}", place.display());
        for (other, refused) in [(&same, true), (&before, false)] {
            let Some(_mount) = mounted(&other.path, &place) else { return };
            match refused {
                true => assert_refused(&target, &overwrite(), &words),
                false => drop(guard(&target, &overwrite()).unwrap()),
            }
        }
    }

    #[test]
    fn what_a_loop_device_stands_on_is_known_by_any_name() {
        let folder = tempfile::tempdir().unwrap();
        let first = file_with(folder.path(), "first", &vec![0; LEN]);
        let second = folder.path().join("second");
        fs::hard_link(&first, &second).unwrap();
        let Some(device) = Loop::set_up(&first, &[]) else {
            return;
        };
        fs::remove_file(&first).unwrap();
        assert_refused(&second, &overwrite(), "it is what /dev/loop");
        let request = GuardRequest { not_these: vec![second], ..overwrite() };
        assert_refused(&device.path, &request, "shares its bytes");
        // Another file by the old name is none of its business.
        let other = file_with(folder.path(), "first", &vec![0; LEN]);
        drop(guard(&other, &overwrite()).unwrap());
    }

    fn refused_while_mounted(folder: &Path, target: &Path) {
        let place = folder.join("place");
        fs::create_dir(&place).unwrap();
        let Some(mount) = mounted(target, &place) else { return };
        assert_refused(target, &overwrite(), &format!("it is mounted at {}", place.display()));
        // The claim alone, as it looks from another mount name space.
        let seen = identify(target).unwrap();
        let error = open(target, &seen).map(|_| ()).unwrap_err();
        assert!(error.to_string().contains("exclusively"), "{error}");
        drop(mount);
        assert_refused(target, &request(), "it holds data");
    }

    fn refused_while_swapped(target: &Path) {
        let device = target.to_str().unwrap();
        if run("mkswap", &[device]) && run("swapon", &[device]) {
            let _swap = Until { program: "swapoff", arguments: vec![device] };
            assert_refused(target, &overwrite(), "the system swaps to it");
        }
    }

    #[test]
    fn a_read_only_loop_device_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let backing = file_with(folder.path(), "backing", &vec![0; LEN]);
        let Some(device) = Loop::set_up(&backing, &["--read-only"]) else {
            return;
        };
        assert_refused(&device.path, &overwrite(), "it is read-only");
    }

    #[test]
    fn a_partition_is_refused_while_its_disk_is_read_and_the_other_way_round() {
        let folder = tempfile::tempdir().unwrap();
        let backing = file_with(folder.path(), "backing", &vec![0; 8 * LEN]);
        let Some(device) = Loop::set_up(&backing, &["--partscan"]) else {
            return;
        };
        // By hand: the kernel may know no partition table.
        let disk = device.path.to_str().unwrap();
        if !run("addpart", &[disk, "1", "2048", "16384"]) {
            return;
        }
        let _partition = Until { program: "delpart", arguments: vec![disk, "1"] };
        let partition = PathBuf::from(format!("{disk}p1"));
        for (target, read) in [(&partition, &device.path), (&device.path, &partition)] {
            let request = GuardRequest { not_these: vec![read.clone()], ..overwrite() };
            assert_refused(target, &request, "shares its bytes");
        }
        let place = folder.path().join("place");
        fs::create_dir(&place).unwrap();
        let Some(_mount) = mounted(&partition, &place) else { return };
        let words = format!("it is mounted at {}", place.display());
        assert_refused(&device.path, &overwrite(), &words);
    }

    #[test]
    fn a_device_that_became_another_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let target = file_with(folder.path(), "target", &vec![0; LEN]);
        let seen = identify(&target).unwrap();
        for other in [
            FileIdentity { size: 1, ..seen.clone() },
            FileIdentity { ino: seen.ino + 1, ..seen.clone() },
            FileIdentity { diskseq: Some(7), ..seen.clone() },
        ] {
            assert!(refuse_replaced(&target, &seen, &other).is_err());
        }
        assert!(refuse_replaced(&target, &seen, &seen).is_ok());
    }
}
