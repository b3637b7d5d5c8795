//! Backups of machines, and what they must be.

use std::time::Duration;

use serde_json::Value;
use voltar_tests::sectors::{SECTOR_LEN, compare, stamped};
use voltar_tests::vm::Vm;
use voltar_tests::writer::Writer;
use voltar_tests::{Rng, Scratch, Voltar};

/// What its changes are called.
pub const KIND: &str = "qemu-bitmap";
pub const MIB: usize = 1 << 20;
/// How soon after a run, or its death, the guest must write: a guard has the machine run on.
pub const RECOVERY: Duration = Duration::from_secs(5);
/// Bytes that a bit of a bitmap tells of.
const GRANULARITY: u64 = 64 << 10;
/// Bytes that are written to the end of a disk.
pub const END_LEN: usize = 16 << 10;

/// A backup to come, of a whole machine or of one disk of it.
pub fn backup(scratch: &Scratch, source: &str, archive: &str) -> Voltar {
    Voltar::new(scratch).args(["backup", source, archive])
}

/// What a backup told of each volume, in the order of the disks' names; QEMU's may be another.
#[track_caller]
pub fn volumes(made: &Value) -> Vec<Value> {
    let volumes = made["volumes"].as_array().unwrap_or_else(|| panic!("no volumes: {made}"));
    let mut volumes = volumes.clone();
    volumes.sort_by_key(|volume| volume["name"].as_str().map(str::to_string));
    volumes
}

/// Backs up all disks of a machine; what was told of each.
#[track_caller]
pub fn back_up(scratch: &Scratch, vm: &Vm, archive: &str) -> Vec<Value> {
    volumes(&backup(scratch, &vm.source(None), archive).json())
}

/// Each volume must have been backed up by what its bitmap told.
#[track_caller]
pub fn assert_told(volumes: &[Value]) {
    for volume in volumes {
        assert_eq!(volume["change_source"], KIND, "{volume}");
        assert!(volume["degraded"].is_null(), "{volume}");
    }
}

/// No volume was backed up by what a bitmap told, and the report says why.
#[track_caller]
pub fn assert_read_as_a_whole(volumes: &[Value], why: &str) {
    for volume in volumes {
        assert_ne!(volume["change_source"], KIND, "{volume}");
        let said = volume["degraded"].as_str().unwrap_or_default();
        assert!(said.contains(why), "not {why:?}: {volume}");
    }
}

pub fn number(object: &Value, name: &str) -> u64 {
    object[name].as_u64().unwrap_or_else(|| panic!("{name} in {object}"))
}

/// What a snapshot holds of volumes, by the names that a backup told.
#[track_caller]
pub fn restored(scratch: &Scratch, snapshot: &str, volumes: &[Value]) -> Vec<Vec<u8>> {
    let restore = |(number, volume): (usize, &Value)| {
        let name = volume["name"].as_str().unwrap();
        let target = format!("restored{number}");
        let line = ["restore", snapshot, &target, "--volume", name, "--overwrite"];
        Voltar::new(scratch).args(line).ok();
        let bytes = scratch.read(&target);
        std::fs::remove_file(scratch.path(&target)).unwrap();
        bytes
    };
    volumes.iter().enumerate().map(restore).collect()
}

/// The steps of the guest that a snapshot of its two disks holds: one instant.
#[track_caller]
pub fn instant(scratch: &Scratch, snapshot: &str, volumes: &[Value], writer: &Writer) -> [u32; 2] {
    let disks = restored(scratch, snapshot, volumes);
    assert_eq!(disks.len(), 2, "{volumes:?}");
    writer.instant([&disks[0], &disks[1]]).unwrap_or_else(|why| panic!("{snapshot}: {why}"))
}

/// What a test itself writes to a disk, and so knows.
#[derive(Clone, Debug)]
pub struct Content {
    device: String,
    volume: u64,
    generation: u64,
    /// What the disk holds.
    pub bytes: Vec<u8>,
}

impl Content {
    /// Of disk `vdN`, written over all of it.
    pub fn new(number: usize, len: usize) -> Content {
        let volume = number as u64 + 1;
        let bytes = stamped(volume, 0, 0, len);
        Content { device: format!("vd{number}"), volume, generation: 0, bytes }
    }

    /// Makes some changes through the device, here and there: data, zeroes, space given back.
    pub fn change(&mut self, vm: &Vm, scratch: &Scratch, rng: &mut Rng) {
        self.generation += 1;
        for _ in 0..6 {
            match rng.below(6) {
                0 => self.clear(vm, rng, "write -z", SECTOR_LEN as u64),
                1 => self.clear(vm, rng, "write -z -u", SECTOR_LEN as u64),
                // What is less than a cluster stays as it is.
                2 => self.clear(vm, rng, "discard", GRANULARITY),
                _ => self.write(vm, scratch, rng),
            }
        }
    }

    fn write(&mut self, vm: &Vm, scratch: &Scratch, rng: &mut Rng) {
        let (at, len) = self.place(rng, SECTOR_LEN as u64);
        let first = (at / SECTOR_LEN) as u64;
        let new = stamped(self.volume, first, self.generation, len);
        let file = scratch.write("pattern", &new);
        self.asked(vm, &format!("write -s {} {at} {len}", file.display()));
        self.bytes[at..at + len].copy_from_slice(&new);
    }

    fn clear(&mut self, vm: &Vm, rng: &mut Rng, command: &str, unit: u64) {
        let (at, len) = self.place(rng, unit);
        self.asked(vm, &format!("{command} {at} {len}"));
        self.bytes[at..at + len].fill(0);
        vm.assert_holds(&self.device, 0, at as u64, len as u64);
    }

    #[track_caller]
    fn asked(&self, vm: &Vm, command: &str) {
        let printed = vm.io(&self.device, command);
        let is_done = printed.contains(" bytes at offset ") && !printed.contains("failed");
        assert!(is_done, "{}: {command}: {printed}", self.device);
    }

    /// Somewhere, some units long.
    fn place(&self, rng: &mut Rng, unit: u64) -> (usize, usize) {
        let units = self.bytes.len() as u64 / unit;
        let first = rng.below(units);
        let count = (rng.below((256 << 10) / unit) + 1).min(units - first);
        ((first * unit) as usize, (count * unit) as usize)
    }

    /// A disk that was made longer or shorter; what is new reads as zeroes.
    pub fn resize(&mut self, vm: &Vm, len: usize) {
        let node = vm.root(&self.device);
        vm.execute("block_resize", serde_json::json!({ "node-name": node, "size": len }));
        self.bytes.resize(len, 0);
    }

    /// Writes to the last bytes of the disk.
    pub fn write_end(&mut self, vm: &Vm) {
        let (at, len) = (self.bytes.len() - END_LEN, END_LEN);
        self.asked(vm, &format!("write -P 5 {at} {len}"));
        self.bytes[at..].fill(5);
    }

    /// A restored volume must be this.
    #[track_caller]
    pub fn assert_is(&self, got: &[u8], what: &str) {
        if let Err(why) = compare(got, &self.bytes) {
            panic!("{what}: {why}");
        }
    }
}

/// The latest snapshot holds this of each volume.
#[track_caller]
pub fn assert_restores(scratch: &Scratch, snapshot: &str, volumes: &[Value], want: &[Content]) {
    let got = restored(scratch, snapshot, volumes);
    assert_eq!(got.len(), want.len());
    for (got, want) in got.iter().zip(want) {
        want.assert_is(got, &format!("{snapshot}, {}", want.device));
    }
}
