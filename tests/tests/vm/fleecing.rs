//! The fleecing area is full, or fails: the backup ends, and the guest has noticed nothing.

use std::path::Path;

use voltar_tests::data::disk;
use voltar_tests::vm::{self, Kind, Vm};
use voltar_tests::writer::Writer;
use voltar_tests::{Mount, Rng, Scratch, Voltar, is_root, skip};

use crate::backups::{Content, MIB, assert_restores, assert_told, back_up, backup, instant};

/// Bytes of the disks; at this rate a backup takes some seconds.
const LEN: usize = 32 * MIB;
const SLOWLY: [&str; 4] = ["--limit", "4M", "--io", "blocking"];
/// The least that an area may have.
const AREA: &str = "4M";

/// A slow first backup of a machine while all of `vd0` is written over: the area must run full.
fn overrun(scratch: &Scratch, vm: &Vm, archive: &str, options: &[&str]) -> String {
    let source = vm.source(Some("vd0"));
    let mut running = backup(scratch, &source, archive).args(SLOWLY).args(options).start();
    assert!(
        running.until(|| !vm.held().is_empty()),
        "it ended before it held the disk: {options:?}"
    );
    for at in (0..LEN).step_by(MIB) {
        vm.write("vd0", 0x5a, at as u64, MIB as u64);
    }
    vm.assert_holds("vd0", 0x5a, 0, LEN as u64);
    assert!(!running.is_over() || vm.is_running());
    let ran = running.wait().expect(1);
    assert_eq!(ran.signal(), None);
    ran.stderr
}

/// After an overrun: what was written is there, the machine is as before, and the next run is right.
fn assert_spared(scratch: &Scratch, vm: &Vm, archive: &str) {
    vm.assert_holds("vd0", 0x5a, 0, LEN as u64);
    let is_paused = vm.monitor().take_events().into_iter().any(|event| event["event"] == "STOP");
    assert!(!is_paused, "the guest was stopped");
    vm.assert_unharmed(0);
    let mut content = Content::new(0, LEN);
    content.bytes.fill(0x5a);
    for round in 0..2 {
        let made = back_up(scratch, vm, archive);
        if round > 0 {
            assert_told(&made);
        }
        assert_restores(scratch, archive, &made, std::slice::from_ref(&content));
        vm.assert_unharmed(1);
    }
}

fn machine(scratch: &Scratch, kind: Kind) -> Vm {
    let content = Content::new(0, LEN);
    Vm::idle(scratch, &vm::disks(scratch, &[kind], &[&content.bytes]))
}

#[test]
fn an_area_at_its_limit_breaks_the_backup_only() {
    let test = "an_area_at_its_limit_breaks_the_backup_only";
    let Some(scratch) = vm::scratch(test) else { return };
    for kind in [Kind::Raw, Kind::Scsi] {
        let vm = machine(&scratch, kind);
        let archive = format!("{kind:?}.voltar");
        let said = overrun(&scratch, &vm, &archive, &["--fleece-limit", AREA]);
        assert!(said.contains("fleecing area") && said.contains("full"), "{said}");
        assert!(said.contains("--fleece-limit"), "what to do: {said}");
        assert_spared(&scratch, &vm, &archive);
    }
}

#[test]
fn a_full_file_system_below_the_area_breaks_the_backup_only() {
    let test = "a_full_file_system_below_the_area_breaks_the_backup_only";
    let Some(scratch) = vm::scratch(test) else { return };
    if !is_root() {
        return skip(test, "mounts need root");
    }
    let small = match Mount::tmpfs(&scratch.path("small"), "6m") {
        Ok(mount) => mount,
        Err(why) => return skip(test, &why),
    };
    let vm = machine(&scratch, Kind::Qcow2);
    let dir = small.path().to_str().unwrap();
    let said = overrun(&scratch, &vm, "a.voltar", &["--fleece", dir]);
    assert!(said.contains("fleecing area") && said.contains(dir), "{said}");
    assert_spared(&scratch, &vm, "a.voltar");
    assert_eq!(std::fs::read_dir(small.path()).unwrap().count(), 0, "a file was left");
}

/// A guest of its own accord, and both disks: neither its writes nor its pace tell of the failure.
#[test]
fn a_guest_does_not_notice_that_its_area_is_full() {
    let test = "a_guest_does_not_notice_that_its_area_is_full";
    let Some(scratch) = vm::scratch(test) else { return };
    let before = [disk(31, LEN), disk(32, LEN)];
    let writer = Writer::new(before.clone(), 40);
    let disks = vm::disks(&scratch, &[Kind::Qcow2, Kind::Raw], &[&before[0], &before[1]]);
    let vm = Vm::writing(&scratch, &disks, &writer, 1);
    let options = ["--fleece-limit", AREA, "--limit", "2M"];
    let ran = backup(&scratch, &vm.source(None), "a.voltar").args(options).run().expect(1);
    assert!(ran.stderr.contains("fleecing area"), "{}", ran.stderr);
    vm.until_steps_more(20);
    vm.assert_unharmed(0);
    let made = back_up(&scratch, &vm, "a.voltar");
    instant(&scratch, "a.voltar", &made, &writer);
    vm.assert_unharmed(1);
}

/// Folders that cannot take an area are refused before the machine is touched.
#[test]
fn an_area_that_cannot_be_made_is_refused() {
    let test = "an_area_that_cannot_be_made_is_refused";
    let Some(scratch) = vm::scratch(test) else { return };
    let vm = machine(&scratch, Kind::Raw);
    let missing = scratch.path("missing");
    let file = scratch.write("file", b"no folder");
    let refused = |option: &str, value: &Path| {
        let voltar: Voltar = backup(&scratch, &vm.source(None), "a.voltar");
        let ran = voltar.arg(option).arg(value).run().expect(1);
        vm.assert_unharmed(0);
        ran.stderr
    };
    for folder in [missing, file] {
        let said = refused("--fleece", &folder);
        assert!(said.contains("fleecing area"), "{said}");
    }
    let said = refused("--fleece-limit", Path::new("64K"));
    assert!(said.contains("4 MiB"), "{said}");
}

/// Writes to all that was not read yet, again and again: what is restored is the instant.
#[test]
fn what_is_written_while_it_is_read_is_not_in_the_backup() {
    let test = "what_is_written_while_it_is_read_is_not_in_the_backup";
    let Some(scratch) = vm::scratch(test) else { return };
    let mut rng = Rng::fresh(test);
    let kinds = [Kind::Throttled, Kind::Raw];
    let mut contents: Vec<Content> = (0..2).map(|number| Content::new(number, 8 * MIB)).collect();
    let bytes = [&contents[0].bytes[..], &contents[1].bytes[..]];
    let vm = Vm::idle(&scratch, &vm::disks(&scratch, &kinds, &bytes));
    for round in 0..3 {
        let held = contents.clone();
        let source = vm.source(None);
        let mut running =
            backup(&scratch, &source, "a.voltar").args(["--limit", "8M", "--json"]).start();
        // Both: one that writes between them would be no single instant.
        assert!(running.until(|| vm.held().len() == 2), "round {round}: it was over too soon");
        let mut writes = 0;
        while !running.is_over() {
            contents.iter_mut().for_each(|content| content.change(&vm, &scratch, &mut rng));
            writes += 1;
        }
        let made = running.wait().expect(0).json();
        assert!(writes > 0);
        let made = crate::backups::volumes(&made);
        assert_restores(&scratch, "a.voltar", &made, &held);
        vm.assert_unharmed(1);
    }
    let made = back_up(&scratch, &vm, "a.voltar");
    assert_told(&made);
    assert_restores(&scratch, "a.voltar", &made, &contents);
}
