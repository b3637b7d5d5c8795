//! Dirty bitmaps in images of VMs that do not run: what they tell, and when they are not believed. Images are
//! written to by QEMU's own tools.

use serde_json::Value;
use voltar_tests::command::is_root;
use voltar_tests::data::{Rng, assert_same, disk};
use voltar_tests::device::Loop;
use voltar_tests::skip::skip;
use voltar_tests::{Scratch, nbd};

use crate::images::{assert_restores, back_up, bytes_of, qemu, voltar};

const MIB: u64 = 1 << 20;
/// Bytes that a bit tells of.
const UNIT: u64 = 64 << 10;
const KIND: &str = "qemu-bitmap";
/// Where the image's header has the features that a program clears that does not know them.
const AUTOCLEAR_AT: u64 = 88;

/// The names of the image's bitmaps.
fn bitmaps(scratch: &Scratch, image: &str) -> Vec<String> {
    let info = qemu(scratch, &format!("qemu-img info --output=json {image}"));
    let info: Value = serde_json::from_str(&info).unwrap();
    let bitmaps = info["format-specific"]["data"]["bitmaps"].as_array();
    let names = bitmaps.into_iter().flatten().map(|it| it["name"].as_str().unwrap().to_owned());
    names.collect()
}

/// Backs the image up, and proves that what comes back is what QEMU says it holds.
#[track_caller]
fn proven(scratch: &Scratch, line: &str) -> Value {
    let made = back_up(scratch, line);
    let bytes = bytes_of(scratch, "qcow2", line.split(' ').next().unwrap());
    assert_restores(scratch, line.split(' ').nth(1).unwrap(), &bytes);
    made
}

/// Has QEMU do this to the image.
fn io(scratch: &Scratch, image: &str, command: &str) {
    qemu(scratch, &format!("qemu-io -f qcow2 -c '{command}' {image}"));
}

/// A disk of 32 MiB with something in it.
fn image(scratch: &Scratch, options: &str) {
    scratch.write("disk.raw", &disk(7, 32 << 20));
    qemu(scratch, &format!("qemu-img convert -f raw -O qcow2 {options} disk.raw vm.qcow2"));
    std::fs::remove_file(scratch.path("disk.raw")).unwrap();
}

#[test]
fn each_of_several_incrementals_is_the_image_and_reads_what_changed() {
    let test = "each_of_several_incrementals_is_the_image_and_reads_what_changed";
    let Some(scratch) = nbd::scratch(test) else { return };
    let mut rng = Rng::fresh(test);
    for options in ["", "-o cluster_size=4K", "-o extended_l2=on,cluster_size=128K"] {
        image(&scratch, options);
        qemu(&scratch, "qemu-img bitmap --add vm.qcow2 mine");
        let first = proven(&scratch, "vm.qcow2 a.voltar --keep-bitmap");
        assert!(first["degraded"].is_null(), "{first}");
        for round in 0..4 {
            let (mut touched, mut done) = (0, Vec::new());
            for _ in 0..rng.below(4) {
                let (at, len) = ((rng.below(60) * 512) << 10, (rng.below(300) + 1) * 512);
                let what = [format!("write -P {round} "), "write -z ".into(), "discard ".into()];
                let what = &what[rng.below(3) as usize];
                done.push(format!("{what}{at} {len}"));
                io(&scratch, "vm.qcow2", &done[done.len() - 1]);
                touched += len + 2 * UNIT;
            }
            let made = proven(&scratch, "vm.qcow2 a.voltar");
            assert_eq!(made["change_source"], KIND, "{made}");
            // What it audits and the unit that the disk ends in are read besides.
            let read = made["read_bytes"].as_u64().unwrap();
            assert!(read <= touched + MIB, "{options} {round}: {read} bytes for {done:?}: {made}");
        }
        let names = bitmaps(&scratch, "vm.qcow2");
        assert_eq!(names.len(), 3, "ours, its mate and the user's: {names:?}");
        assert!(names.contains(&"mine".to_owned()), "{names:?}");
        qemu(&scratch, "qemu-img check -q vm.qcow2");
        for file in ["vm.qcow2", "a.voltar"] {
            std::fs::remove_file(scratch.path(file)).unwrap();
        }
    }
}

/// A program that knows of no bitmaps writes to the image.
fn write_as_a_stranger(scratch: &Scratch) {
    let map = qemu(scratch, "qemu-img map --output=json vm.qcow2");
    let map: Value = serde_json::from_str(&map).unwrap();
    let data = map.as_array().unwrap().iter().find_map(|extent| extent["offset"].as_u64());
    scratch.patch("vm.qcow2", data.unwrap(), b"what no bitmap knows of");
    scratch.patch("vm.qcow2", AUTOCLEAR_AT, &[0; 8]);
}

/// Something that happens to an image, and what is said of its bitmap then.
type Harm = (&'static str, fn(&Scratch));

const HARMS: [Harm; 7] = [
    ("is gone", |scratch| {
        let ours = bitmaps(scratch, "vm.qcow2").into_iter().find(|name| !name.ends_with("-end"));
        qemu(scratch, &format!("qemu-img bitmap --remove vm.qcow2 {}", ours.unwrap()));
    }),
    ("disabled", |scratch| {
        let ours = bitmaps(scratch, "vm.qcow2").into_iter().find(|name| !name.ends_with("-end"));
        qemu(scratch, &format!("qemu-img bitmap --disable vm.qcow2 {}", ours.unwrap()));
        io(scratch, "vm.qcow2", "write -P 1 1M 64K");
    }),
    ("is gone", write_as_a_stranger),
    ("tell nothing", |scratch| {
        // It dies with the image open, and so does what it knew of its writes.
        let killed = "qemu-io -f qcow2 -c 'write -P 1 1M 64K' -c flush -c abort vm.qcow2; true";
        qemu(scratch, &format!("sh -c \"{killed}\" 2>said"));
    }),
    ("made shorter", |scratch| {
        qemu(scratch, "qemu-img resize -q --shrink vm.qcow2 16M");
        qemu(scratch, "qemu-img resize -q --preallocation=full vm.qcow2 32M");
    }),
    ("made upon", |scratch| {
        qemu(scratch, "qemu-img create -q -f qcow2 -b vm.qcow2 -F qcow2 top.qcow2");
        std::fs::rename(scratch.path("vm.qcow2"), scratch.path("base.qcow2")).unwrap();
        qemu(scratch, "qemu-img rebase -u -f qcow2 -b base.qcow2 -F qcow2 top.qcow2");
        std::fs::rename(scratch.path("top.qcow2"), scratch.path("vm.qcow2")).unwrap();
        proven(scratch, "vm.qcow2 a.voltar --keep-bitmap");
        assert_eq!(proven(scratch, "vm.qcow2 a.voltar")["change_source"], KIND);
        io(scratch, "base.qcow2", "write -P 1 1M 64K");
    }),
    ("the last backup left no bitmap", |scratch| {
        back_up(scratch, "vm.qcow2 a.voltar --keep none");
        io(scratch, "vm.qcow2", "write -P 1 1M 64K");
    }),
];

#[test]
fn a_bitmap_that_is_not_to_be_trusted_is_told_and_all_is_read() {
    let test = "a_bitmap_that_is_not_to_be_trusted_is_told_and_all_is_read";
    let Some(scratch) = nbd::scratch(test) else { return };
    for (number, (why, harm)) in HARMS.into_iter().enumerate() {
        image(&scratch, "");
        proven(&scratch, "vm.qcow2 a.voltar --keep-bitmap");
        harm(&scratch);
        let made = proven(&scratch, "vm.qcow2 a.voltar --keep-bitmap");
        let told = made["degraded"].as_str().unwrap_or_default();
        assert!(told.contains(why), "{number}, {why}: {made}");
        assert_eq!(made["change_source"], "none", "{number}, {why}: {made}");
        // The new bitmap serves the next one.
        io(&scratch, "vm.qcow2", "write -P 2 2M 64K");
        let made = proven(&scratch, "vm.qcow2 a.voltar");
        assert_eq!(made["change_source"], KIND, "{number}, {why}: {made}");
        for file in ["vm.qcow2", "a.voltar"] {
            std::fs::remove_file(scratch.path(file)).unwrap();
        }
    }
}

#[test]
fn nobody_knows_when_a_block_device_below_was_written_to() {
    let test = "nobody_knows_when_a_block_device_below_was_written_to";
    let Some(scratch) = nbd::scratch(test) else { return };
    if !is_root() {
        return skip(test, "loop devices need root");
    }
    let file = scratch.write("below.raw", &disk(7, 32 << 20));
    let below = match Loop::new(&file, 512) {
        Ok(below) => below,
        Err(why) => return skip(test, &why),
    };
    qemu(&scratch, &format!("qemu-img create -q -f qcow2 -F raw -b {} vm.qcow2", below.arg()));
    let line = "vm.qcow2 a.voltar --keep-bitmap --allow-backing /dev";
    proven(&scratch, line);
    scratch.patch("below.raw", 5 << 20, &[9; 4096]);
    let made = proven(&scratch, line);
    let told = made["degraded"].as_str().unwrap_or_default();
    assert!(told.contains("a block device does not tell"), "{made}");
}

#[test]
fn bitmaps_that_nobody_wants_any_more_go() {
    let test = "bitmaps_that_nobody_wants_any_more_go";
    let Some(scratch) = nbd::scratch(test) else { return };
    image(&scratch, "");
    qemu(&scratch, "qemu-img bitmap --add vm.qcow2 mine");
    proven(&scratch, "vm.qcow2 a.voltar --keep-bitmap");
    let made = proven(&scratch, "vm.qcow2 a.voltar --keep none");
    assert_eq!(made["change_source"], KIND, "{made}");
    assert_eq!(bitmaps(&scratch, "vm.qcow2"), ["mine"]);
    // What cannot be read is told, though nobody asked for a new one.
    proven(&scratch, "vm.qcow2 a.voltar --keep-bitmap");
    write_as_a_stranger(&scratch);
    let made = proven(&scratch, "vm.qcow2 a.voltar");
    assert!(made["degraded"].as_str().unwrap_or_default().contains("tell nothing"), "{made}");
}

#[test]
fn a_disk_that_lost_a_part_of_its_last_unit_is_as_it_is() {
    let test = "a_disk_that_lost_a_part_of_its_last_unit_is_as_it_is";
    let Some(scratch) = nbd::scratch(test) else { return };
    image(&scratch, "-o cluster_size=4K");
    io(&scratch, "vm.qcow2", "write -P 3 31M 1M");
    proven(&scratch, "vm.qcow2 a.voltar --keep-bitmap");
    qemu(&scratch, "qemu-img resize -q --shrink vm.qcow2 -- -8K");
    qemu(&scratch, "qemu-img resize -q vm.qcow2 +8K");
    let made = proven(&scratch, "vm.qcow2 a.voltar");
    assert_eq!(made["change_source"], KIND, "{made}");
}

#[test]
fn images_that_keep_no_bitmap_say_so() {
    let test = "images_that_keep_no_bitmap_say_so";
    let Some(scratch) = nbd::scratch(test) else { return };
    for (options, why) in
        [("-o compat=0.10", "version 2"), ("-o data_file=data.raw", "in a file of its own")]
    {
        image(&scratch, options);
        let made = proven(&scratch, "vm.qcow2 a.voltar --keep-bitmap");
        let told = made["degraded"].as_str().unwrap_or_default();
        assert!(told.contains(why), "{options}: {made}");
        std::fs::remove_file(scratch.path("vm.qcow2")).unwrap();
    }
    scratch.write("disk.raw", &disk(8, MIB as usize));
    qemu(&scratch, "qemu-img convert -f raw -O vdi disk.raw vm.vdi");
    let made = back_up(&scratch, "vm.vdi b.voltar --keep-bitmap");
    assert!(made["degraded"].as_str().unwrap_or_default().contains("only qcow2"), "{made}");
}

#[test]
fn runs_that_commit_nothing_leave_the_bitmaps_as_they_were() {
    let test = "runs_that_commit_nothing_leave_the_bitmaps_as_they_were";
    let Some(scratch) = nbd::scratch(test) else { return };
    image(&scratch, "");
    voltar(&scratch, "backup vm.qcow2 a.voltar --keep-bitmap --dry-run").ok();
    assert_eq!(bitmaps(&scratch, "vm.qcow2"), [""; 0]);
    proven(&scratch, "vm.qcow2 a.voltar --keep-bitmap");
    proven(&scratch, "vm.qcow2 b.voltar --keep-bitmap");
    let before = bitmaps(&scratch, "vm.qcow2");
    assert_eq!(before.len(), 4, "two for each archive: {before:?}");
    io(&scratch, "vm.qcow2", "write -P 1 1M 64K");
    voltar(&scratch, "backup vm.qcow2 a.voltar --dry-run").ok();
    // Its archive cannot be made.
    std::fs::create_dir(scratch.path("c.voltar")).unwrap();
    voltar(&scratch, "backup vm.qcow2 c.voltar --keep-bitmap").run().expect(1);
    assert_eq!(bitmaps(&scratch, "vm.qcow2"), before);
    for archive in ["a.voltar", "b.voltar"] {
        let made = proven(&scratch, &format!("vm.qcow2 {archive}"));
        assert_eq!(made["change_source"], KIND, "{made}");
    }
    assert_eq!(bitmaps(&scratch, "vm.qcow2").len(), 4);
    let bytes = bytes_of(&scratch, "qcow2", "vm.qcow2");
    voltar(&scratch, "restore a.voltar again.qcow2").ok();
    assert_same(&bytes_of(&scratch, "qcow2", "again.qcow2"), &bytes, "a new image");
}
