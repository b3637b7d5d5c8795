//! Bitmaps that are gone, spoiled or not what they were, and disks that were resized: everything is
//! read then, the report says why, and the backup is right.

use std::os::unix::fs::FileExt;

use serde_json::json;
use voltar_tests::device::system;
use voltar_tests::vm::{self, Disk, Kind, Vm};
use voltar_tests::{Rng, Scratch, Voltar};

use crate::backups::{
    Content, END_LEN, MIB, assert_read_as_a_whole, assert_restores, assert_told, back_up, backup,
    volumes,
};

/// A disk of each of two kinds, backed up once and changed since.
struct Rig {
    scratch: Scratch,
    vm: Option<Vm>,
    disks: Vec<Disk>,
    contents: Vec<Content>,
    rng: Rng,
}

impl Rig {
    fn new(test: &str, kinds: [Kind; 2]) -> Option<Rig> {
        let scratch = vm::scratch(test)?;
        let rng = Rng::fresh(test);
        let contents: Vec<Content> = (0..2).map(|number| Content::new(number, 4 * MIB)).collect();
        let disks = vm::disks(&scratch, &kinds, &[&contents[0].bytes[..], &contents[1].bytes[..]]);
        let vm = Some(Vm::idle(&scratch, &disks));
        let mut rig = Rig { scratch, vm, disks, contents, rng };
        back_up(&rig.scratch, rig.vm(), "a.voltar");
        rig.change();
        Some(rig)
    }

    fn vm(&self) -> &Vm {
        self.vm.as_ref().expect("the machine runs")
    }

    fn change(&mut self) {
        let vm = self.vm.as_ref().expect("the machine runs");
        let (scratch, rng) = (&self.scratch, &mut self.rng);
        self.contents.iter_mut().for_each(|content| content.change(vm, scratch, rng));
    }

    /// The node that has the bitmap of a device, and the bitmap's name.
    fn bitmap(&self, device: &str) -> (String, String) {
        let bitmaps = self.vm().bitmaps(device);
        assert_eq!(bitmaps.len(), 1, "{bitmaps:?}");
        (self.vm().root(device).to_string(), bitmaps[0].name.clone())
    }

    fn restart(&mut self) {
        self.vm = Some(Vm::idle(&self.scratch, &self.disks));
    }

    /// The next backup reads everything, for this reason; the one after it is told again.
    #[track_caller]
    fn assert_degrades(&mut self, why: &str) {
        let made = back_up(&self.scratch, self.vm(), "a.voltar");
        assert_read_as_a_whole(&made, why);
        self.assert_right(&made);
        self.change();
        let made = back_up(&self.scratch, self.vm(), "a.voltar");
        assert_told(&made);
        self.assert_right(&made);
    }

    #[track_caller]
    fn assert_right(&self, made: &[serde_json::Value]) {
        assert_restores(&self.scratch, "a.voltar", made, &self.contents);
        self.vm().assert_unharmed(1);
    }
}

const DEVICES: [&str; 2] = ["vd0", "vd1"];
const KINDS: [Kind; 2] = [Kind::Raw, Kind::Qcow2];

/// Does something to the bitmap of each disk.
fn each_bitmap(rig: &Rig, command: &str) {
    for device in DEVICES {
        let (node, name) = rig.bitmap(device);
        rig.vm().execute(command, json!({ "node": node, "name": name }));
    }
}

#[test]
fn a_bitmap_that_somebody_removed_is_missed() {
    let Some(mut rig) = Rig::new("a_bitmap_that_somebody_removed_is_missed", KINDS) else { return };
    each_bitmap(&rig, "block-dirty-bitmap-remove");
    rig.assert_degrades("gone");
}

#[test]
fn a_bitmap_that_somebody_disabled_tells_nothing() {
    let test = "a_bitmap_that_somebody_disabled_tells_nothing";
    let Some(mut rig) = Rig::new(test, KINDS) else { return };
    each_bitmap(&rig, "block-dirty-bitmap-disable");
    rig.change();
    rig.assert_degrades("disabled");
}

#[test]
fn a_bitmap_of_another_granularity_is_another_one() {
    let test = "a_bitmap_of_another_granularity_is_another_one";
    let Some(mut rig) = Rig::new(test, KINDS) else { return };
    for device in DEVICES {
        let (node, name) = rig.bitmap(device);
        rig.vm().execute("block-dirty-bitmap-remove", json!({ "node": node, "name": name }));
        let bitmap = json!({ "node": node, "name": name, "granularity": 4096 });
        rig.vm().execute("block-dirty-bitmap-add", bitmap);
    }
    rig.assert_degrades("granularity");
}

#[test]
fn a_bitmap_of_a_machine_that_was_killed_tells_nothing() {
    let test = "a_bitmap_of_a_machine_that_was_killed_tells_nothing";
    // Without a journal of its own, what QEMU has written is in the file all the same.
    let Some(mut rig) = Rig::new(test, [Kind::Qcow2, Kind::Scsi]) else { return };
    // Once saved and loaded again, so that it is in the image.
    rig.vm.take().expect("the machine runs").shut_down();
    rig.restart();
    rig.change();
    for device in DEVICES {
        rig.vm().io(device, "flush");
    }
    rig.vm.take().expect("the machine runs").kill();
    rig.restart();
    for device in DEVICES {
        let bitmaps = rig.vm().bitmaps(device);
        assert!(bitmaps.iter().all(|bitmap| bitmap.is_inconsistent), "{bitmaps:?}");
        assert!(!bitmaps.is_empty(), "there is nothing to be found inconsistent");
    }
    rig.change();
    rig.assert_degrades("inconsistent");
}

/// An older copy of an image, with the bitmap that it had then.
#[test]
fn an_image_that_was_put_back_is_not_taken_for_the_newer_one() {
    let test = "an_image_that_was_put_back_is_not_taken_for_the_newer_one";
    let Some(mut rig) = Rig::new(test, [Kind::Qcow2, Kind::Scsi]) else { return };
    rig.vm.take().expect("the machine runs").shut_down();
    let older = rig.contents.clone();
    for disk in &rig.disks {
        std::fs::copy(&disk.file, disk.file.with_extension("older")).unwrap();
    }
    rig.restart();
    rig.change();
    let made = back_up(&rig.scratch, rig.vm(), "a.voltar");
    assert_told(&made);
    rig.assert_right(&made);
    rig.vm.take().expect("the machine runs").shut_down();
    for disk in &rig.disks {
        std::fs::rename(disk.file.with_extension("older"), &disk.file).unwrap();
    }
    rig.contents = older;
    rig.restart();
    rig.assert_degrades("gone");
}

/// What an image is made upon is no business of its bitmap's.
#[test]
fn an_image_upon_another_one_is_told_as_long_as_that_stays() {
    let test = "an_image_upon_another_one_is_told_as_long_as_that_stays";
    let Some(mut rig) = Rig::new(test, [Kind::Qcow2, Kind::Scsi]) else { return };
    rig.vm.take().expect("the machine runs").shut_down();
    let tops: Vec<String> = rig.disks.iter().map(|disk| disk.file.display().to_string()).collect();
    let image = |words: &[&str]| system("qemu-img", words).unwrap();
    for top in &tops {
        let (lower, other) = (format!("{top}.lower"), format!("{top}.other"));
        // Without the bitmaps that are in it.
        image(&["convert", "-f", "qcow2", "-O", "qcow2", top, &lower]);
        std::fs::remove_file(top).unwrap();
        std::fs::copy(&lower, &other).unwrap();
        image(&["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", &lower, top]);
        system("qemu-io", &["-f", "qcow2", "-c", "write -P 9 1M 1M", &other]).unwrap();
    }
    rig.restart();
    back_up(&rig.scratch, rig.vm(), "a.voltar");
    rig.change();
    let made = back_up(&rig.scratch, rig.vm(), "a.voltar");
    assert_told(&made);
    rig.assert_right(&made);
    rig.vm.take().expect("the machine runs").shut_down();
    for (top, content) in tops.iter().zip(&mut rig.contents) {
        let raw = format!("{top}.raw");
        image(&["rebase", "-u", "-f", "qcow2", "-F", "qcow2", "-b", &format!("{top}.other"), top]);
        image(&["convert", "-f", "qcow2", "-O", "raw", top, &raw]);
        content.bytes = std::fs::read(raw).unwrap();
    }
    rig.restart();
    rig.assert_degrades("made upon");
}

/// What is written to a file with an image's data while QEMU does not run is in no bitmap.
#[test]
fn bitmaps_of_images_whose_data_is_elsewhere_end_with_the_machine() {
    let test = "bitmaps_of_images_whose_data_is_elsewhere_end_with_the_machine";
    let Some(mut rig) = Rig::new(test, [Kind::Qcow2, Kind::Scsi]) else { return };
    rig.vm.take().expect("the machine runs").shut_down();
    let tops: Vec<String> = rig.disks.iter().map(|disk| disk.file.display().to_string()).collect();
    let data = |top: &str| format!("{top}.data");
    for top in &tops {
        let (old, options) = (format!("{top}.old"), format!("data_file={}", data(top)));
        std::fs::rename(top, &old).unwrap();
        let words = ["convert", "-f", "qcow2", "-O", "qcow2", "-o"];
        system("qemu-img", &[&words[..], &[&options, &old, top]].concat()).unwrap();
    }
    rig.restart();
    back_up(&rig.scratch, rig.vm(), "a.voltar");
    rig.change();
    let made = back_up(&rig.scratch, rig.vm(), "a.voltar");
    assert_told(&made);
    rig.assert_right(&made);
    rig.vm.take().expect("the machine runs").shut_down();
    for (top, content) in tops.iter().zip(&mut rig.contents) {
        let file = std::fs::File::options().write(true).open(data(top)).unwrap();
        file.write_all_at(&[7; MIB], 0).unwrap();
        let raw = format!("{top}.raw");
        system("qemu-img", &["convert", "-f", "qcow2", "-O", "raw", top, &raw]).unwrap();
        content.bytes = std::fs::read(raw).unwrap();
    }
    rig.restart();
    rig.assert_degrades("gone");
}

/// Whether the machine runs or not, the next backup knows what changed since the last.
#[test]
fn a_machine_and_its_images_go_on_from_each_other() {
    let test = "a_machine_and_its_images_go_on_from_each_other";
    let Some(mut rig) = Rig::new(test, [Kind::Qcow2, Kind::Scsi]) else { return };
    for _ in 0..2 {
        rig.change();
        let made = back_up(&rig.scratch, rig.vm(), "a.voltar");
        assert_told(&made);
        rig.assert_right(&made);
        let sources: Vec<String> = made
            .iter()
            .zip(&rig.disks)
            .map(|(volume, disk)| (volume["name"].as_str().unwrap(), disk.file.display()))
            .map(|(name, file)| format!("{name}=qcow2:{file}"))
            .collect();
        rig.change();
        rig.vm.take().expect("the machine runs").shut_down();
        for _ in 0..2 {
            let images = Voltar::new(&rig.scratch).arg("backup").args(&sources).arg("a.voltar");
            let made = volumes(&images.json());
            assert_told(&made);
            assert_restores(&rig.scratch, "a.voltar", &made, &rig.contents);
        }
        rig.restart();
    }
}

/// Bitmaps of others are none of voltar's business.
#[test]
fn bitmaps_of_others_stay() {
    let Some(mut rig) = Rig::new("bitmaps_of_others_stay", KINDS) else { return };
    for device in DEVICES {
        let node = rig.vm().root(device);
        let bitmap = json!({ "node": node, "name": "libvirt-1", "granularity": 4096 });
        rig.vm().execute("block-dirty-bitmap-add", bitmap);
    }
    rig.change();
    let made = back_up(&rig.scratch, rig.vm(), "a.voltar");
    assert_told(&made);
    rig.assert_right(&made);
    // And it goes on recording.
    each_of_others(&rig, "libvirt-1");
}

fn each_of_others(rig: &Rig, name: &str) {
    let nodes = rig.vm().execute("query-named-block-nodes", json!({ "flat": true }));
    let bitmaps = |node: &serde_json::Value| node["dirty-bitmaps"].as_array().cloned();
    let all: Vec<_> = nodes.as_array().unwrap().iter().filter_map(bitmaps).flatten().collect();
    let theirs: Vec<_> = all.iter().filter(|bitmap| bitmap["name"] == name).collect();
    assert_eq!(theirs.len(), DEVICES.len(), "{all:?}");
    for bitmap in theirs {
        assert!(bitmap["recording"] == true && bitmap["count"] != 0, "{bitmap}");
    }
}

/// Backups into two archives by turns: each has bitmaps of its own, or says why not.
#[test]
fn two_archives_by_turns_are_both_right() {
    let Some(mut rig) = Rig::new("two_archives_by_turns_are_both_right", KINDS) else { return };
    for round in 0..6 {
        rig.change();
        let archive = ["b.voltar", "a.voltar"][round % 2];
        let made = back_up(&rig.scratch, rig.vm(), archive);
        assert_restores(&rig.scratch, archive, &made, &rig.contents);
        let strays = rig.vm().strays();
        assert!(strays.is_empty(), "{strays:?}");
        for device in DEVICES {
            let count = rig.vm().bitmaps(device).len();
            assert!((1..=2).contains(&count), "{count} bitmaps of {device}");
        }
    }
}

/// Grown, shrunk, shrunk and grown again: QEMU's bitmaps forget what was beyond the end.
#[test]
fn disks_that_were_resized_are_backed_up_as_they_are() {
    let test = "disks_that_were_resized_are_backed_up_as_they_are";
    let Some(mut rig) = Rig::new(test, KINDS) else { return };
    for lens in [&[5 * MIB][..], &[3 * MIB], &[2 * MIB, 3 * MIB], &[MIB, 4 * MIB, 2 * MIB, 6 * MIB]]
    {
        let vm = rig.vm.as_ref().expect("the machine runs");
        for len in lens {
            rig.contents.iter_mut().for_each(|content| content.resize(vm, *len));
        }
        let made = back_up(&rig.scratch, vm, "a.voltar");
        rig.assert_right(&made);
        rig.change();
        let made = back_up(&rig.scratch, rig.vm(), "a.voltar");
        assert_told(&made);
        rig.assert_right(&made);
    }
    // By a part of what a bit tells of. Of a qcow2 image, what was in the rest of a cluster comes back.
    let vm = rig.vm.as_ref().expect("the machine runs");
    let raw = &mut rig.contents[0];
    raw.write_end(vm);
    back_up(&rig.scratch, vm, "a.voltar");
    for len in [6 * MIB - END_LEN / 2, 6 * MIB] {
        raw.resize(vm, len);
    }
    let made = back_up(&rig.scratch, vm, "a.voltar");
    assert_told(&made);
    rig.assert_right(&made);
}

/// A disk that is resized while it is read: the backup fails, or holds what was there.
#[test]
fn a_disk_that_is_resized_meanwhile_fails_the_backup_only() {
    let test = "a_disk_that_is_resized_meanwhile_fails_the_backup_only";
    let Some(mut rig) = Rig::new(test, KINDS) else { return };
    let held = rig.contents.clone();
    let source = rig.vm().source(None);
    let mut running =
        backup(&rig.scratch, &source, "b.voltar").args(["--limit", "2M", "--json"]).start();
    assert!(running.until(|| rig.vm().held().len() == 2), "it was over too soon");
    let resize = json!({ "node-name": rig.vm().root("vd0"), "size": 6 * MIB });
    let resized = rig.vm().monitor().attempt("block_resize", resize);
    let ran = running.wait();
    match ran.code() {
        Some(0) => {
            let made = crate::backups::volumes(&ran.json());
            assert_restores(&rig.scratch, "b.voltar", &made, &held);
        }
        code => assert_eq!(code, Some(1), "{}", ran.stderr),
    }
    let strays = rig.vm().strays();
    assert!(strays.is_empty() && rig.vm().is_running(), "{strays:?}");
    if resized.is_ok() {
        rig.contents[0].bytes.resize(6 * MIB, 0);
    }
    let made = back_up(&rig.scratch, rig.vm(), "a.voltar");
    assert_restores(&rig.scratch, "a.voltar", &made, &rig.contents);
}
