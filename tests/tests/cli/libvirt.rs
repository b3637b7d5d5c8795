//! Running VMs under a real libvirt: held still, told apart, left as they were.

use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;
use voltar_tests::Scratch;
use voltar_tests::command::words;
use voltar_tests::data::{Rng, assert_same};
use voltar_tests::device::system;
use voltar_tests::libvirt::Libvirt;

const MIB: u64 = 1 << 20;
/// Sizes of the two disks of the tests' VM.
const SIZES: [u64; 2] = [24 * MIB, 16 * MIB];
/// Bytes that a bitmap's bit tells of.
const GRAIN: u64 = 64 << 10;

/// A VM with two disks of qcow2, and what is in them by the test's own account.
struct Vm {
    libvirt: Libvirt,
    scratch: Scratch,
    bytes: [Vec<u8>; 2],
}

impl Vm {
    fn start(test: &str) -> Option<Vm> {
        let scratch = Scratch::new();
        let mut libvirt = Libvirt::start(test, &scratch)?;
        for (name, size) in ["a.qcow2", "b.qcow2"].into_iter().zip(SIZES) {
            let path = scratch.path(name);
            let path = path.to_str().unwrap();
            system("qemu-img", &["create", "-q", "-f", "qcow2", path, &size.to_string()]).unwrap();
        }
        libvirt.run("vm", &[("vda", "qcow2", "a.qcow2"), ("vdb", "qcow2", "b.qcow2")]);
        let mut vm = Vm { libvirt, scratch, bytes: SIZES.map(|size| vec![0; size as usize]) };
        for disk in 0..2 {
            vm.write(disk, 0, 4 * MIB, 0x10 + disk as u8);
        }
        Some(vm)
    }

    /// Has QEMU write as the guest would.
    fn write(&mut self, disk: usize, offset: u64, len: u64, byte: u8) {
        self.libvirt.io("vm", disk, &format!("write -P {byte} {offset} {len}"));
        self.bytes[disk][offset as usize..(offset + len) as usize].fill(byte);
    }

    fn back_up(&self, line: &str) -> Value {
        self.libvirt.voltar(&self.scratch).arg("backup").args(words(line)).json()
    }

    /// Restores both disks of a snapshot and compares them.
    #[track_caller]
    fn assert_restores(&self, snapshot: &str, bytes: &[Vec<u8>; 2]) {
        let line = format!("restore a.voltar@{snapshot} vm-vda=a.out vm-vdb=b.out --overwrite");
        self.libvirt.voltar(&self.scratch).args(words(&line)).ok();
        for (file, bytes) in ["a.out", "b.out"].into_iter().zip(bytes) {
            assert_same(&self.scratch.read(file), bytes, &format!("{snapshot} {file}"));
        }
    }

    /// The VM runs, has no job, and nothing lies in the folder for what it overwrites.
    #[track_caller]
    fn assert_clean(&self) {
        assert_eq!(self.libvirt.virsh(&["domstate", "vm"]), "running");
        assert!(self.libvirt.try_virsh(&["backup-dumpxml", "vm"]).is_err(), "a job is left");
        let folder = std::fs::read_dir(self.scratch.dir()).unwrap().flatten();
        let left = folder.map(|entry| entry.file_name().into_string().unwrap());
        let left: Vec<_> = left.filter(|name| name.starts_with("voltar-")).collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

fn volumes(report: &Value) -> &[Value] {
    report["volumes"].as_array().unwrap()
}

#[test]
fn each_of_five_incrementals_is_its_instant_and_reads_what_changed() {
    let test = "each_of_five_incrementals_is_its_instant_and_reads_what_changed";
    let Some(mut vm) = Vm::start(test) else { return };
    let mut rng = Rng::fresh(test);
    let other = "<domaincheckpoint><name>other.0</name></domaincheckpoint>";
    let other = vm.scratch.write("other.xml", other.as_bytes());
    vm.libvirt.virsh(&["checkpoint-create", "vm", other.to_str().unwrap()]);
    vm.back_up("libvirt:vm a.voltar");
    vm.assert_clean();
    let mut instants = vec![vm.bytes.clone()];
    for round in 1..=5 {
        let mut grains = [std::collections::BTreeSet::new(), std::collections::BTreeSet::new()];
        for _ in 0..4 {
            let disk = rng.below(2) as usize;
            let grain = rng.below(SIZES[disk] / GRAIN);
            vm.write(disk, grain * GRAIN, GRAIN, 0x80 + round);
            grains[disk].insert(grain);
        }
        let report = vm.back_up("libvirt:vm a.voltar --audit 0");
        for (volume, grains) in volumes(&report).iter().zip(&grains) {
            assert_eq!(volume["change_source"], "libvirt-checkpoint", "{volume:#}");
            assert!(volume["degraded"].is_null(), "{volume:#}");
            let read = volume["read_bytes"].as_u64().unwrap();
            // And the one that the disk ends in.
            assert!(read <= (grains.len() as u64 + 1) * GRAIN, "{volume:#}");
        }
        vm.assert_clean();
        let checkpoints = vm.libvirt.checkpoints("vm");
        let ours = checkpoints.iter().filter(|name| name.starts_with("voltar-")).count();
        assert_eq!((checkpoints.len(), ours), (2, 1), "{checkpoints:?}");
        instants.push(vm.bytes.clone());
    }
    assert!(vm.libvirt.checkpoints("vm").contains(&"other.0".to_owned()));
    for (age, bytes) in instants.iter().rev().enumerate() {
        vm.assert_restores(&format!("latest~{age}"), bytes);
    }
    let shown = vm.libvirt.voltar(&vm.scratch).args(words("show a.voltar")).json().to_string();
    for file in ["vm.domain.xml", "vm.checkpoints.xml"] {
        assert!(shown.contains(file), "{shown}");
    }
}

#[test]
fn what_is_written_meanwhile_is_not_in_the_snapshot_but_in_the_next() {
    let test = "what_is_written_meanwhile_is_not_in_the_snapshot_but_in_the_next";
    let Some(mut vm) = Vm::start(test) else { return };
    for disk in 0..2 {
        vm.write(disk, 0, 12 * MIB, 0x33);
    }
    let instant = vm.bytes.clone();
    let slow = vm.libvirt.voltar(&vm.scratch).args(words("backup libvirt:vm a.voltar --limit 6M"));
    let mut slow = slow.start();
    assert!(slow.until(|| vm.libvirt.try_virsh(&["backup-dumpxml", "vm"]).is_ok()));
    for disk in 0..2 {
        vm.write(disk, 2 * MIB, 9 * MIB, 0x44);
    }
    assert!(!slow.is_over(), "it was too fast to tell anything");
    slow.wait().expect(0);
    vm.assert_clean();
    vm.assert_restores("latest", &instant);
    let report = vm.back_up("libvirt:vm a.voltar");
    assert_eq!(volumes(&report)[0]["change_source"], "libvirt-checkpoint", "{report:#}");
    vm.assert_restores("latest", &vm.bytes);
}

#[test]
fn after_a_kill_the_next_run_is_clean_and_incremental() {
    let test = "after_a_kill_the_next_run_is_clean_and_incremental";
    let Some(mut vm) = Vm::start(test) else { return };
    vm.back_up("libvirt:vm a.voltar");
    vm.write(0, 8 * MIB, 8 * MIB, 0x55);
    let slow = "backup libvirt:vm a.voltar --limit 2M";
    let mut slow = vm.libvirt.voltar(&vm.scratch).args(words(slow)).start();
    assert!(slow.until(|| vm.libvirt.try_virsh(&["backup-dumpxml", "vm"]).is_ok()));
    std::thread::sleep(Duration::from_millis(500));
    slow.signal(Signal::SIGKILL);
    assert_eq!(slow.wait().signal(), Some(Signal::SIGKILL as i32));
    assert!(vm.libvirt.try_virsh(&["backup-dumpxml", "vm"]).is_ok(), "it was killed too late");
    // Between the bitmap of the run that was killed and the next instant.
    vm.write(0, 20 * MIB, GRAIN, 0x66);
    let report = vm.back_up("libvirt:vm a.voltar");
    for volume in volumes(&report) {
        assert_eq!(volume["change_source"], "libvirt-checkpoint", "{volume:#}");
    }
    vm.assert_clean();
    assert_eq!(vm.libvirt.checkpoints("vm").len(), 1);
    vm.assert_restores("latest", &vm.bytes);
}

#[test]
fn an_interrupted_run_leaves_nothing_and_the_base() {
    let test = "an_interrupted_run_leaves_nothing_and_the_base";
    let Some(mut vm) = Vm::start(test) else { return };
    vm.back_up("libvirt:vm a.voltar");
    let base = vm.libvirt.checkpoints("vm");
    vm.write(0, 8 * MIB, 8 * MIB, 0x55);
    let slow = "backup libvirt:vm a.voltar --limit 2M";
    let mut slow = vm.libvirt.voltar(&vm.scratch).args(words(slow)).start();
    assert!(slow.until(|| vm.libvirt.try_virsh(&["backup-dumpxml", "vm"]).is_ok()));
    slow.signal(Signal::SIGINT);
    slow.wait().expect(130);
    vm.assert_clean();
    assert_eq!(vm.libvirt.checkpoints("vm"), base);
}

#[test]
fn a_full_area_ends_the_backup_and_not_the_guest() {
    let test = "a_full_area_ends_the_backup_and_not_the_guest";
    let Some(mut vm) = Vm::start(test) else { return };
    vm.write(0, 0, 16 * MIB, 0x55);
    let slow = "backup libvirt:vm a.voltar --limit 1M --fleece-limit 2M";
    let mut slow = vm.libvirt.voltar(&vm.scratch).args(words(slow)).start();
    assert!(slow.until(|| vm.libvirt.try_virsh(&["backup-dumpxml", "vm"]).is_ok()));
    vm.write(0, 4 * MIB, 8 * MIB, 0x77);
    let ran = slow.wait().expect(1);
    assert!(ran.stderr.contains("the guest overwrote more of vda"), "{}", ran.stderr);
    vm.assert_clean();
    assert!(vm.libvirt.checkpoints("vm").is_empty());
    vm.back_up("libvirt:vm a.voltar");
    vm.assert_restores("latest", &vm.bytes);
}

#[test]
fn a_checkpoint_without_its_bitmap_is_told_and_read_in_full() {
    let test = "a_checkpoint_without_its_bitmap_is_told_and_read_in_full";
    let Some(mut vm) = Vm::start(test) else { return };
    vm.back_up("libvirt:vm a.voltar");
    let [checkpoint] = &vm.libvirt.checkpoints("vm")[..] else { panic!("one checkpoint") };
    let nodes = r#"{"execute":"query-named-block-nodes","arguments":{"flat":true}}"#;
    let nodes = vm.libvirt.virsh(&["qemu-monitor-command", "vm", nodes]);
    let nodes: Value = serde_json::from_str(&nodes).unwrap();
    let is_first = |node: &&Value| {
        node["drv"] == "qcow2" && node["file"].as_str().unwrap().ends_with("a.qcow2")
    };
    let node = nodes["return"].as_array().unwrap().iter().find(is_first).unwrap();
    let name = node["node-name"].as_str().unwrap();
    let remove = format!(
        r#"{{"execute":"block-dirty-bitmap-remove","arguments":{{"node":"{name}","name":"{checkpoint}"}}}}"#
    );
    vm.libvirt.virsh(&["qemu-monitor-command", "vm", &remove]);
    vm.write(0, 20 * MIB, GRAIN, 0x66);
    let report = vm.back_up("libvirt:vm a.voltar");
    let why = volumes(&report)[0]["degraded"].as_str().unwrap();
    assert!(why.contains("bitmap"), "{why}");
    vm.assert_clean();
    vm.assert_restores("latest", &vm.bytes);
    assert_eq!(vm.libvirt.checkpoints("vm").len(), 1);
    let report = vm.back_up("libvirt:vm a.voltar");
    assert!(volumes(&report)[0]["degraded"].is_null(), "{report:#}");
}

/// An image as it was between two checkpoints has the bitmap of the older one, which tells nothing of what the
/// younger snapshot holds.
#[test]
fn an_image_that_was_put_back_is_not_taken_for_the_newer_one() {
    let test = "an_image_that_was_put_back_is_not_taken_for_the_newer_one";
    let Some(mut vm) = Vm::start(test) else { return };
    let [image, saved] = ["a.qcow2", "saved.qcow2"].map(|name| vm.scratch.path(name));
    // Its checkpoint is that of both disks, and stays when one of them has a younger one.
    vm.back_up("libvirt:vm a.voltar");
    vm.libvirt.virsh(&["destroy", "vm", "--graceful"]);
    std::fs::copy(&image, &saved).unwrap();
    let older = vm.bytes.clone();
    vm.libvirt.virsh(&["start", "vm"]);
    vm.write(0, 9 * MIB, GRAIN, 0x77);
    vm.back_up("libvirt:vm/vda a.voltar");
    vm.libvirt.virsh(&["destroy", "vm", "--graceful"]);
    std::fs::copy(&saved, &image).unwrap();
    vm.libvirt.virsh(&["start", "vm"]);
    let report = vm.back_up("libvirt:vm/vda a.voltar --audit 0");
    let why = volumes(&report)[0]["degraded"].as_str().unwrap_or_default();
    assert!(why.contains("bitmap"), "{report:#}");
    vm.libvirt.voltar(&vm.scratch).args(words("restore a.voltar a.out --overwrite")).ok();
    assert_same(&vm.scratch.read("a.out"), &older[0], "the image that was put back");
    assert_eq!(vm.libvirt.checkpoints("vm").len(), 2, "both disks', and the new one");
    vm.assert_clean();
}

#[test]
fn an_image_upon_another_one_is_told_as_long_as_that_stays() {
    let test = "an_image_upon_another_one_is_told_as_long_as_that_stays";
    let Some(mut vm) = Vm::start(test) else { return };
    vm.libvirt.virsh(&["destroy", "vm", "--graceful"]);
    let path = |name: &str| vm.scratch.path(name).to_str().unwrap().to_owned();
    let (top, lower, other) = (path("a.qcow2"), path("lower.qcow2"), path("other.qcow2"));
    std::fs::rename(&top, &lower).unwrap();
    std::fs::copy(&lower, &other).unwrap();
    let create = ["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b"];
    system("qemu-img", &[&create[..], &[&lower, &top]].concat()).unwrap();
    system("qemu-io", &["-f", "qcow2", "-c", "write -P 9 1M 64K", &other]).unwrap();
    vm.libvirt.virsh(&["start", "vm"]);
    vm.back_up("libvirt:vm a.voltar");
    vm.write(0, 9 * MIB, GRAIN, 0x77);
    let report = vm.back_up("libvirt:vm a.voltar");
    assert_eq!(volumes(&report)[0]["change_source"], "libvirt-checkpoint", "{report:#}");
    vm.assert_restores("latest", &vm.bytes);
    vm.libvirt.virsh(&["destroy", "vm", "--graceful"]);
    let rebase = ["rebase", "-u", "-f", "qcow2", "-F", "qcow2", "-b", &other, &top];
    system("qemu-img", &rebase).unwrap();
    vm.bytes[0][MIB as usize..(MIB + GRAIN) as usize].fill(9);
    vm.libvirt.virsh(&["start", "vm"]);
    let report = vm.back_up("libvirt:vm a.voltar --audit 0");
    let why = volumes(&report)[0]["degraded"].as_str().unwrap_or_default();
    assert!(why.contains("made upon"), "{report:#}");
    vm.assert_restores("latest", &vm.bytes);
}

#[test]
fn what_cannot_be_backed_up_is_named_and_left_alone() {
    let test = "what_cannot_be_backed_up_is_named_and_left_alone";
    let Some(vm) = Vm::start(test) else { return };
    let refused = |line: &str, words_of_it: &[&str]| {
        let ran = vm.libvirt.voltar(&vm.scratch).arg("backup").args(words(line)).run();
        assert!(ran.code().is_some_and(|code| code != 0), "{line}: {}", ran.stderr);
        for word in words_of_it {
            assert!(ran.stderr.contains(word), "{line}: {word}: {}", ran.stderr);
        }
        assert!(!vm.scratch.path("x.voltar").exists(), "{line}");
    };
    refused("libvirt:none x.voltar", &["no such domain", "libvirt:none"]);
    refused("libvirt:1 x.voltar", &["no such domain", "libvirt:1"]);
    refused("libvirt:vm/vdz x.voltar", &["no such disk", "it has vda, vdb"]);
    refused("libvirt:vm x.voltar --libvirt-uri test:///default", &["not QEMU on this host"]);
    refused("libvirt:vm x.voltar --fleece none", &["fleecing area", "--fleece DIR"]);
    let socket = vm.scratch.path("other.sock");
    let other = format!(
        "<domainbackup mode='pull'><server transport='unix' socket='{}'/></domainbackup>",
        socket.display()
    );
    let other = vm.scratch.write("other.xml", other.as_bytes());
    vm.libvirt.virsh(&["backup-begin", "vm", other.to_str().unwrap()]);
    refused("libvirt:vm x.voltar", &["a job that is not voltar's", "Backup"]);
    assert!(vm.libvirt.try_virsh(&["backup-dumpxml", "vm"]).is_ok(), "its job is gone");
    vm.libvirt.virsh(&["domjobabort", "vm"]);
    vm.libvirt.virsh(&["destroy", "vm"]);
    refused("libvirt:vm x.voltar", &["does not run", "vm-vda=qcow2:", "a.qcow2"]);
}

#[test]
fn a_disk_without_checkpoints_is_read_in_full_beside_one_that_has_them() {
    let test = "a_disk_without_checkpoints_is_read_in_full_beside_one_that_has_them";
    let scratch = Scratch::new();
    let Some(mut libvirt) = Libvirt::start(test, &scratch) else { return };
    let image = scratch.path("a.qcow2");
    system("qemu-img", &["create", "-q", "-f", "qcow2", image.to_str().unwrap(), "8M"]).unwrap();
    let raw = Rng::fresh(test).bytes(4 * MIB as usize);
    scratch.write("b.raw", &raw);
    libvirt.run("mixed", &[("vda", "qcow2", "a.qcow2"), ("vdb", "raw", "b.raw")]);
    let back_up = || libvirt.voltar(&scratch).args(words("backup libvirt:mixed a.voltar")).json();
    back_up();
    let report = back_up();
    let [first, second] = volumes(&report) else { panic!("{report:#}") };
    assert_eq!(first["change_source"], "libvirt-checkpoint", "{first:#}");
    assert!(second["degraded"].as_str().unwrap().contains("raw"), "{second:#}");
    libvirt.voltar(&scratch).args(words("restore a.voltar mixed-vdb=out")).ok();
    assert_same(&scratch.read("out"), &raw, "the raw disk");
}
