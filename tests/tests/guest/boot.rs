//! The golden rule: a machine comes up from its restored disk.

use serde_json::json;
use voltar_tests::boot::{boot, root_image};
use voltar_tests::command::words;
use voltar_tests::device::system;
use voltar_tests::{Rng, Scratch, Voltar};

#[test]
fn a_machine_boots_from_its_restored_disk() {
    let test = "a_machine_boots_from_its_restored_disk";
    let Some(image) = root_image(test) else { return };
    let scratch = Scratch::new();
    let path = |name: &str| scratch.path(name).display().to_string();
    // The guest's root with something in it that no other disk has.
    let mark = format!("{:016x}", Rng::fresh(test).next_u64());
    system("cp", &["--sparse=always", image.to_str().unwrap(), &path("root.img")]).unwrap();
    scratch.write("mark", mark.as_bytes());
    let write = format!("write {} /mark", path("mark"));
    system("debugfs", &["-w", "-R", &write, &path("root.img")]).unwrap();
    let facts = json!({
        "version": 1, "program": "qemu-system-x86_64", "machine": "q35", "memory_bytes": 1 << 30,
        "cpus": 2, "disks": [{"volume": "root", "driver": "virtio-blk-pci"}],
    });
    scratch.write("qemu.json", facts.to_string().as_bytes());
    let voltar = |line: &str| Voltar::new(&scratch).args(words(line)).json();
    voltar("backup root=root.img a.voltar --attach qemu.json");
    let folder = path("vm/");
    let report = voltar(&format!("restore a.voltar {folder} --format qcow2 --read-back"));

    let (restored, source) = (path("vm/root.qcow2"), path("root.img"));
    system("qemu-img", &["compare", "-f", "qcow2", "-F", "raw", &restored, &source]).unwrap();
    system("e2fsck", &["-fn", &source]).unwrap();
    let command = report["start"][0].as_str().unwrap();
    let script = "cat /mark && touch /written && sync && grep ' / ext4 rw' /proc/mounts";
    let Some(printed) = boot(test, command, "root", script) else { return };
    assert!(printed.starts_with(&format!("{mark}/dev/vd")), "{printed}");
    // It ran from the restored disk, not from another: what it wrote is there.
    system("qemu-img", &["convert", "-f", "qcow2", "-O", "raw", &restored, &source]).unwrap();
    let listed = system("debugfs", &["-R", "stat /written", &source]).unwrap();
    assert!(listed.contains("Type: regular"), "{listed}");
}
