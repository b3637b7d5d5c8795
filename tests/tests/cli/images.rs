//! Images of VMs as sources and as targets, made and checked by QEMU's own tools.

use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;
use voltar_tests::command::words;
use voltar_tests::data::{assert_same, disk};
use voltar_tests::device::system;
use voltar_tests::{Scratch, Voltar, nbd};

const MIB: usize = 1 << 20;

pub fn voltar(scratch: &Scratch, line: &str) -> Voltar {
    Voltar::new(scratch).args(words(line))
}

/// Runs one of QEMU's tools in the scratch folder; paths are its files' names.
#[track_caller]
pub fn qemu(scratch: &Scratch, line: &str) -> String {
    let (program, line) = line.split_once(' ').unwrap();
    let script = format!("cd {} && exec {program} {line}", scratch.dir().display());
    system("sh", &["-c", &script]).unwrap()
}

/// What the image holds, by QEMU's word.
pub fn bytes_of(scratch: &Scratch, format: &str, image: &str) -> Vec<u8> {
    qemu(scratch, &format!("qemu-img convert -f {format} -O raw {image} bytes.raw"));
    let bytes = scratch.read("bytes.raw");
    std::fs::remove_file(scratch.path("bytes.raw")).unwrap();
    bytes
}

#[track_caller]
pub fn back_up(scratch: &Scratch, line: &str) -> Value {
    voltar(scratch, &format!("backup {line}")).json()["volumes"][0].clone()
}

#[track_caller]
pub fn assert_restores(scratch: &Scratch, archive: &str, bytes: &[u8]) {
    voltar(scratch, &format!("restore {archive} out")).ok();
    assert_same(&scratch.read("out")[..bytes.len()], bytes, archive);
    std::fs::remove_file(scratch.path("out")).unwrap();
}

/// Processes of `qemu-nbd` that serve something in this folder, or a socket of this process.
fn servers(needle: &str) -> usize {
    let commands = std::fs::read_dir("/proc").unwrap().flatten();
    let lines = commands.filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok());
    lines
        .map(|line| String::from_utf8_lossy(&line).into_owned())
        .filter(|line| line.starts_with("qemu-nbd") && line.contains(needle))
        .count()
}

/// Waits until no server of the process `pid` is left.
#[track_caller]
fn assert_none_left(pid: u32) {
    let needle = format!("voltar-{pid}-");
    let started = Instant::now();
    let folder = || {
        let all = std::fs::read_dir("/tmp").unwrap().flatten();
        all.map(|entry| entry.file_name()).any(|name| name.to_string_lossy().starts_with(&needle))
    };
    while servers(&needle) > 0 || folder() {
        assert!(started.elapsed() < Duration::from_secs(20), "a server or its socket is left");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn images_of_all_kinds_are_backed_up_as_disks() {
    let test = "images_of_all_kinds_are_backed_up_as_disks";
    let Some(scratch) = nbd::scratch(test) else { return };
    let bytes = disk(21, 24 * MIB);
    scratch.write("disk.raw", &bytes);
    let kinds = [
        ("qcow2", ""),
        ("qcow2", "-c -o compression_type=zstd"),
        ("qcow2", "-o compat=0.10"),
        ("qcow2", "-o cluster_size=4K,extended_l2=off"),
        ("qcow2", "-o extended_l2=on,cluster_size=128K"),
        ("qcow2", "-o data_file=data.raw"),
        ("vmdk", ""),
        ("vmdk", "-o subformat=monolithicFlat"),
        ("vhdx", ""),
        ("vdi", ""),
    ];
    for (format, options) in kinds {
        let image = format!("disk.{format}");
        qemu(&scratch, &format!("qemu-img convert -f raw -O {format} {options} disk.raw {image}"));
        // A text that names other files is taken for an image only if the user says so.
        let prefix = if options.contains("monolithicFlat") { "vmdk:" } else { "" };
        let made = back_up(&scratch, &format!("disk={prefix}{image} a.voltar"));
        assert!(made["size"].as_u64().unwrap() as usize >= bytes.len(), "{options}: {made}");
        assert_restores(&scratch, "a.voltar", &bytes);
        for file in [&*image, "data.raw"] {
            let _ = std::fs::remove_file(scratch.path(file));
        }
    }
    // All were the same disk.
    let list = voltar(&scratch, "list a.voltar").json();
    let stored: Vec<u64> = list["snapshots"]
        .as_array()
        .unwrap()
        .iter()
        .map(|snapshot| snapshot["stored_bytes"].as_u64().unwrap())
        .collect();
    assert_eq!(stored.len(), kinds.len());
    assert!(stored[1..].iter().all(|bytes| *bytes < MIB as u64), "{stored:?}");
}

#[test]
fn a_chain_of_images_is_one_disk() {
    let test = "a_chain_of_images_is_one_disk";
    let Some(scratch) = nbd::scratch(test) else { return };
    qemu(&scratch, "qemu-img create -q -f qcow2 base.qcow2 32M");
    qemu(&scratch, "qemu-io -f qcow2 -c 'write -P 1 0 8M' -c 'write -P 2 20M 2M' base.qcow2");
    qemu(&scratch, "qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 top.qcow2");
    qemu(&scratch, "qemu-io -f qcow2 -c 'write -P 3 1M 1M' -c 'write -z 20M 1M' top.qcow2");
    let made = back_up(&scratch, "top.qcow2 a.voltar");
    let bytes = bytes_of(&scratch, "qcow2", "top.qcow2");
    assert!(made["read_bytes"].as_u64().unwrap() <= 10 * MIB as u64, "holes were read: {made}");
    assert_restores(&scratch, "a.voltar", &bytes);
    // Another run reads what is there and stores what is new.
    qemu(&scratch, "qemu-io -f qcow2 -c 'write -P 4 30M 64K' top.qcow2");
    let made = back_up(&scratch, "top.qcow2 a.voltar");
    assert_eq!(made["changed_bytes"], 64 << 10, "{made}");
    // Elsewhere, a file that an image names is opened if the user says so.
    std::fs::create_dir(scratch.path("sub")).unwrap();
    let base = scratch.path("base.qcow2").display().to_string();
    qemu(&scratch, &format!("qemu-img create -q -f qcow2 -b {base} -F qcow2 sub/far.qcow2"));
    let refused = voltar(&scratch, "backup sub/far.qcow2 b.voltar").run().expect(1);
    assert!(refused.stderr.contains("--allow-backing"), "{}", refused.stderr);
    assert!(!scratch.path("b.voltar").exists());
    back_up(&scratch, "sub/far.qcow2 b.voltar --allow-backing .");
    assert_restores(&scratch, "b.voltar", &bytes_of(&scratch, "qcow2", "sub/far.qcow2"));
}

#[test]
fn what_only_looks_like_an_image_is_the_bytes_that_it_is() {
    let test = "what_only_looks_like_an_image_is_the_bytes_that_it_is";
    let Some(scratch) = nbd::scratch(test) else { return };
    qemu(&scratch, "qemu-img create -q -f qcow2 vm.img 8M");
    // As a guest could have made it: an image's header that names a file of the host.
    qemu(&scratch, "qemu-img rebase -u -F raw -b /etc/hostname -f qcow2 vm.img");
    let ran = voltar(&scratch, "backup vm.img a.voltar").ok();
    assert!(ran.stderr.contains("begins like a qcow2 image"), "{}", ran.stderr);
    assert_restores(&scratch, "a.voltar", &scratch.read("vm.img"));
    std::fs::rename(scratch.path("vm.img"), scratch.path("vm.qcow2")).unwrap();
    let refused = voltar(&scratch, "backup vm.qcow2 b.voltar").run().expect(1);
    assert!(refused.stderr.contains("/etc"), "{}", refused.stderr);
    back_up(&scratch, "raw:vm.qcow2 b.voltar");
    assert_restores(&scratch, "b.voltar", &scratch.read("vm.qcow2"));
    scratch.write("no.qcow2", b"neither header nor anything else");
    let refused = voltar(&scratch, "backup qcow2:no.qcow2 c.voltar").run().expect(1);
    assert!(refused.stderr.contains("not of the format qcow2"), "{}", refused.stderr);
    let missing = voltar(&scratch, "backup qcow2:missing c.voltar").run().expect(1);
    assert!(missing.stderr.contains("cannot open the image: missing"), "{}", missing.stderr);
    assert!(!scratch.path("c.voltar").exists());
}

#[test]
fn a_new_image_is_restored_to() {
    let test = "a_new_image_is_restored_to";
    let Some(scratch) = nbd::scratch(test) else { return };
    let mut bytes = disk(22, 4 * MIB);
    bytes.resize(64 * MIB, 0);
    scratch.write("disk.raw", &bytes);
    back_up(&scratch, "disk=disk.raw a.voltar");
    let made =
        voltar(&scratch, "restore a.voltar new.qcow2 --read-back --cluster-size 128K").json();
    assert_eq!(made["read_back"], true, "{made}");
    assert_same(&bytes_of(&scratch, "qcow2", "new.qcow2"), &bytes, "new.qcow2");
    assert!(scratch.len("new.qcow2") < 6 * MIB as u64, "it is not sparse");
    let info: Value =
        serde_json::from_str(&qemu(&scratch, "qemu-img info --output=json new.qcow2")).unwrap();
    assert_eq!(info["cluster-size"], 128 << 10, "{info}");
    qemu(&scratch, "qemu-img check -q -f qcow2 new.qcow2");
    for more in ["", " --overwrite"] {
        let refused =
            voltar(&scratch, &format!("restore a.voltar new.qcow2{more}")).run().expect(5);
        assert!(refused.stderr.contains("an image is there"), "{}", refused.stderr);
    }
    assert_same(&bytes_of(&scratch, "qcow2", "new.qcow2"), &bytes, "the refused target");
    voltar(&scratch, "restore a.voltar qcow2:image").ok();
    assert_same(&bytes_of(&scratch, "qcow2", "image"), &bytes, "image");
    voltar(&scratch, "restore a.voltar raw:raw.qcow2").ok();
    assert_same(&scratch.read("raw.qcow2"), &bytes, "raw.qcow2");
    let refused = voltar(&scratch, "restore a.voltar new.vdi").run();
    assert_eq!(refused.code(), Some(1), "{}", refused.stderr);
    assert!(!scratch.path("new.vdi").exists());
    let rehearsed = voltar(&scratch, "restore a.voltar other.qcow2 --dry-run").ok();
    assert!(!scratch.path("other.qcow2").exists(), "{}", rehearsed.stderr);
}

#[test]
fn whatever_becomes_of_a_run_its_server_goes() {
    let test = "whatever_becomes_of_a_run_its_server_goes";
    let Some(scratch) = nbd::scratch(test) else { return };
    scratch.write("disk.raw", &disk(23, 64 * MIB));
    qemu(&scratch, "qemu-img convert -f raw -O qcow2 disk.raw disk.qcow2");
    back_up(&scratch, "disk=disk.raw a.voltar");
    for signal in [Signal::SIGKILL, Signal::SIGINT] {
        let lines = ["backup disk.qcow2 b.voltar", "restore a.voltar new.qcow2"];
        for line in lines {
            let mut run = voltar(&scratch, &format!("{line} --limit 8M")).start();
            let pid = run.pid();
            let needle = format!("voltar-{pid}-");
            assert!(run.until(|| servers(&needle) > 0), "{line}: no server was seen");
            run.signal(signal);
            let ran = run.wait();
            match signal {
                Signal::SIGINT => assert_eq!(ran.code(), Some(130), "{}", ran.stderr),
                _ => assert_eq!(ran.signal(), Some(signal as i32)),
            }
            assert_none_left(pid);
            assert!(!scratch.path("new.qcow2").exists(), "an unfinished image has the name");
            let is_left = scratch.path(".new.qcow2.voltar-unfinished").exists();
            assert!(!is_left || signal == Signal::SIGKILL, "an unfinished image is left");
            let _ = std::fs::remove_file(scratch.path(".new.qcow2.voltar-unfinished"));
        }
    }
    back_up(&scratch, "disk.qcow2 b.voltar");
    let bytes = scratch.read("disk.raw");
    assert_restores(&scratch, "b.voltar", &bytes);
    // What the killed restore left goes with the next one.
    scratch.write(".new.qcow2.voltar-unfinished", b"left");
    voltar(&scratch, "restore a.voltar new.qcow2").ok();
    assert_same(&bytes_of(&scratch, "qcow2", "new.qcow2"), &bytes, "new.qcow2");
    assert!(!scratch.path(".new.qcow2.voltar-unfinished").exists());
}

#[test]
fn an_image_that_a_machine_has_open_is_refused_by_qemu() {
    let test = "an_image_that_a_machine_has_open_is_refused_by_qemu";
    let Some(scratch) = nbd::scratch(test) else { return };
    qemu(&scratch, "qemu-img create -q -f qcow2 vm.qcow2 8M");
    let image = scratch.path("vm.qcow2");
    let mut user = std::process::Command::new("qemu-io")
        .args(["-f", "qcow2"])
        .arg(&image)
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let is_open = |pid: u32| {
        let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten();
        descriptors.flatten().filter_map(|fd| fd.path().read_link().ok()).any(|at| at == *image)
    };
    let started = Instant::now();
    while !is_open(user.id()) && started.elapsed() < Duration::from_secs(20) {
        std::thread::sleep(Duration::from_millis(5));
    }
    let refused = voltar(&scratch, "backup vm.qcow2 a.voltar").run();
    drop(user.stdin.take());
    user.wait().unwrap();
    let refused = refused.expect(1);
    assert!(refused.stderr.contains("lock"), "{}", refused.stderr);
    assert!(refused.stderr.contains("a running VM has it open"), "{}", refused.stderr);
    assert!(!Path::new(&scratch.path("a.voltar")).exists());
}
