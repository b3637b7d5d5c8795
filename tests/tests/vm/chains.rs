//! Chains of backups: each one an instant, told by bitmaps, and restored.

use voltar_tests::data::disk;
use voltar_tests::vm::{self, Kind, Vm};
use voltar_tests::writer::Writer;
use voltar_tests::{Rng, Scratch};

use crate::backups::{
    Content, MIB, assert_read_as_a_whole, assert_restores, assert_told, back_up, backup, instant,
    number, restored, volumes,
};

/// Incremental backups of a chain.
const INCREMENTALS: usize = 10;

/// Ten incrementals of two disks that a guest writes to all the while: each restore holds what the
/// guest had written by one instant during its backup, and ten of them were told by bitmaps.
fn two_disks_while_the_guest_writes(test: &str, kinds: [Kind; 2]) {
    let Some(scratch) = vm::scratch(test) else { return };
    let before = [disk(21, 16 * MIB), disk(22, 12 * MIB)];
    let writer = Writer::new(before.clone(), 1);
    let disks = vm::disks(&scratch, &kinds, &[&before[0], &before[1]]);
    let vm = Vm::writing(&scratch, &disks, &writer, 1);
    let mut chain = Vec::new();
    for round in 0..=INCREMENTALS {
        let from = vm.progress().done;
        let made = back_up(&scratch, &vm, "a.voltar");
        let to = vm.progress().done;
        assert_eq!(made.len(), 2, "{made:?}");
        if round > 0 {
            assert_told(&made);
            for volume in &made {
                assert!(number(volume, "read_bytes") < 6 * MIB as u64, "{volume}");
            }
        }
        let steps = instant(&scratch, "a.voltar", &made, &writer);
        // A step that is under way counts for the disk that has it.
        let is_during = (0..2).all(|disk| (from[disk]..=to[disk] + 1).contains(&steps[disk]));
        assert!(is_during, "round {round}: {steps:?}, not from {from:?} to {to:?}");
        vm.assert_unharmed(1);
        chain.push((steps, made));
        vm.until_steps_more(10);
    }
    let backwards = chain.iter().rev().enumerate();
    for (back, (steps, made)) in backwards {
        let snapshot = format!("a.voltar@latest~{back}");
        assert_eq!(instant(&scratch, &snapshot, made, &writer), *steps, "{snapshot}");
    }
    let (first, last) = (chain[0].0, chain[INCREMENTALS].0);
    assert!(last[1] >= first[1] + 10 * INCREMENTALS as u32, "the guest hardly wrote");
    eprintln!(
        "figure: {} steps of the guest between the first backup and the last",
        last[1] - first[1]
    );
}

#[test]
fn ten_incrementals_of_raw_and_qcow2_while_the_guest_writes() {
    let test = "ten_incrementals_of_raw_and_qcow2_while_the_guest_writes";
    two_disks_while_the_guest_writes(test, [Kind::Raw, Kind::Qcow2]);
}

#[test]
fn ten_incrementals_of_scsi_and_legacy_disks_while_the_guest_writes() {
    let test = "ten_incrementals_of_scsi_and_legacy_disks_while_the_guest_writes";
    two_disks_while_the_guest_writes(test, [Kind::Scsi, Kind::Legacy]);
}

/// Disks of each kind but those in threads, with contents that the test writes.
const KINDS: [Kind; 5] = [Kind::Raw, Kind::Qcow2, Kind::Throttled, Kind::Legacy, Kind::Scsi];

fn contents(len: usize) -> Vec<Content> {
    (0..KINDS.len()).map(|number| Content::new(number, len + number * 512)).collect()
}

fn machine(scratch: &Scratch, contents: &[Content]) -> Vm {
    let bytes: Vec<&[u8]> = contents.iter().map(|content| &content.bytes[..]).collect();
    Vm::idle(scratch, &vm::disks(scratch, &KINDS, &bytes))
}

/// Writes, zeroes and discards, to disks of all kinds.
#[test]
fn random_histories_of_disks_of_all_kinds_come_back() {
    let test = "random_histories_of_disks_of_all_kinds_come_back";
    let Some(scratch) = vm::scratch(test) else { return };
    let mut rng = Rng::fresh(test);
    let mut contents = contents(4 * MIB);
    let vm = machine(&scratch, &contents);
    for round in 0..6 {
        let made = back_up(&scratch, &vm, "a.voltar");
        if round > 0 {
            assert_told(&made);
        }
        assert_restores(&scratch, "a.voltar", &made, &contents);
        vm.assert_unharmed(1);
        contents.iter_mut().for_each(|content| content.change(&vm, &scratch, &mut rng));
    }
}

/// A machine that was shut down in between: bitmaps in images are still there, others are missed.
#[test]
fn bitmaps_outlive_the_machine_where_the_image_keeps_them() {
    let test = "bitmaps_outlive_the_machine_where_the_image_keeps_them";
    let Some(scratch) = vm::scratch(test) else { return };
    let mut rng = Rng::fresh(test);
    let mut contents = contents(4 * MIB);
    let mut vm = machine(&scratch, &contents);
    for round in 0..4 {
        let made = back_up(&scratch, &vm, "a.voltar");
        if round > 0 {
            assert_read_as_a_whole(&made[..1], "gone");
            assert_told(&made[1..]);
        }
        assert_restores(&scratch, "a.voltar", &made, &contents);
        vm.assert_unharmed(1);
        contents.iter_mut().for_each(|content| content.change(&vm, &scratch, &mut rng));
        let disks = vm.disks().to_vec();
        vm.shut_down();
        vm = Vm::idle(&scratch, &disks);
        contents.iter_mut().for_each(|content| content.change(&vm, &scratch, &mut rng));
    }
}

/// One disk of a machine, and then all of them: each has its own base.
#[test]
fn one_disk_of_a_machine_is_backed_up_alone() {
    let test = "one_disk_of_a_machine_is_backed_up_alone";
    let Some(scratch) = vm::scratch(test) else { return };
    let mut rng = Rng::fresh(test);
    let mut contents = contents(2 * MIB);
    let vm = machine(&scratch, &contents);
    for round in 0..3 {
        let source = vm.source(Some("vd1"));
        let made = volumes(&backup(&scratch, &source, "a.voltar").json());
        assert_eq!(made.len(), 1, "{made:?}");
        if round > 0 {
            assert_told(&made);
        }
        contents[1].assert_is(&restored(&scratch, "a.voltar", &made)[0], "vd1");
        assert_eq!(vm.bitmaps("vd1").len(), 1);
        assert!(vm.bitmaps("vd0").is_empty(), "a disk that was not meant was touched");
        assert!(vm.strays().is_empty(), "{:?}", vm.strays());
        contents.iter_mut().for_each(|content| content.change(&vm, &scratch, &mut rng));
    }
    let unknown = backup(&scratch, &vm.source(Some("vd9")), "a.voltar").run().expect(1);
    assert!(unknown.stderr.contains("vd0"), "it must say which there are: {}", unknown.stderr);
}

/// QEMU 7.2 does not survive the end of an export of such a disk; it must not come to that.
#[test]
fn a_disk_in_a_thread_of_its_own_does_not_cost_the_machine() {
    let test = "a_disk_in_a_thread_of_its_own_does_not_cost_the_machine";
    let Some(scratch) = vm::scratch(test) else { return };
    let content = Content::new(0, 2 * MIB);
    let disks = vm::disks(&scratch, &[Kind::IoThread], &[&content.bytes]);
    let vm = Vm::idle(&scratch, &disks);
    let ran = backup(&scratch, &vm.source(None), "a.voltar").arg("--json").run();
    match ran.code() {
        Some(0) => {
            let made = volumes(&ran.json());
            assert_restores(&scratch, "a.voltar", &made, &[content]);
            vm.assert_unharmed(1);
        }
        _ => {
            let ran = ran.expect(1);
            assert!(ran.stderr.contains("iothread"), "{}", ran.stderr);
            vm.assert_unharmed(0);
        }
    }
}
