//! Bitmaps that QEMU keeps, against the writes that it was asked for.
#![allow(clippy::single_range_in_vec_init, reason = "lists of ranges, of one at times")]

use std::fs::File;
use std::ops::Range;

use voltar_engine::image::qcow2::header::Header;
use voltar_tests::{Rng, Scratch};

use crate::qemu::{folder, run, write};

/// Sizes and granularities; the sizes are no multiples of anything.
const SHAPES: [(u64, u64, u32); 4] = [
    ((48 << 20) + 512, 512, 9),
    ((48 << 20) + 512, 65536, 16),
    ((300 << 20) + 1536, 4096, 12),
    ((9 << 30) + 512, 1 << 20, 20),
];

fn dirty(folder: &Scratch, name: &str) -> Vec<Range<u64>> {
    let image = File::open(folder.path("disk.qcow2")).unwrap();
    let header = Header::read(&image).unwrap();
    let bitmaps = header.bitmaps(&image).unwrap();
    let bitmap = bitmaps.iter().find(|bitmap| bitmap.name == name).unwrap();
    let mut ranges = Vec::new();
    bitmap.visit_dirty(&header, &image, |range| ranges.push(range)).unwrap();
    ranges
}

/// What a bitmap says of writes: whole granules, joined, within the disk.
fn expected(writes: &[Range<u64>], granularity: u64, size: u64) -> Vec<Range<u64>> {
    let mut granules: Vec<Range<u64>> = writes
        .iter()
        .map(|write| write.start / granularity..write.end.div_ceil(granularity))
        .collect();
    granules.sort_by_key(|range| range.start);
    let mut joined: Vec<Range<u64>> = Vec::new();
    for range in granules {
        match joined.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => joined.push(range),
        }
    }
    let bytes = |range: Range<u64>| range.start * granularity..(range.end * granularity).min(size);
    joined.into_iter().map(bytes).collect()
}

#[test]
fn bitmaps_tell_what_was_written() {
    let Some(folder) = folder("bitmaps_tell_what_was_written") else { return };
    let mut rng = Rng::fresh("bitmaps_tell_what_was_written");
    for (size, granularity, bits) in SHAPES {
        let cluster_bits = 12 + rng.below(8);
        let cluster_size = 1u64 << cluster_bits;
        let options = format!("cluster_size={cluster_size}");
        run(&folder, &format!("qemu-img create -q -f qcow2 -o {options} disk.qcow2 {size}"));
        let add = format!("qemu-img bitmap --add -g {granularity} disk.qcow2");
        run(&folder, &format!("{add} day1"));
        assert_eq!(dirty(&folder, "day1"), []);
        run(&folder, &format!("{add} day2"));
        run(&folder, "qemu-img bitmap --disable disk.qcow2 day2");
        // The last bytes, a long stretch, and some at random.
        let mut writes = vec![size - 512..size, 0..(8 << 20) + 512];
        for _ in 0..12 {
            let start = rng.below(size / 512 - 300) * 512;
            writes.push(start..start + 512 * (1 + rng.below(256)));
        }
        for range in &writes {
            write(&folder, "disk.qcow2", 1, range.start, range.end - range.start);
        }
        let shape = format!("{size} bytes, {granularity}, clusters of {cluster_size}");
        assert_eq!(dirty(&folder, "day1"), expected(&writes, granularity, size), "{shape}");
        assert_eq!(dirty(&folder, "day2"), [], "{shape}");
        let image = File::open(folder.path("disk.qcow2")).unwrap();
        let bitmaps = Header::read(&image).unwrap().bitmaps(&image).unwrap();
        let facts: Vec<_> = bitmaps
            .iter()
            .map(|bitmap| {
                (bitmap.name.as_str(), bitmap.granularity_bits, bitmap.auto, bitmap.in_use)
            })
            .collect();
        assert_eq!(facts, [("day1", bits, true, false), ("day2", bits, false, false)]);
    }
}

#[test]
fn a_disk_written_all_over_is_dirty_all_over() {
    let Some(folder) = folder("a_disk_written_all_over_is_dirty_all_over") else { return };
    let size = 64u64 << 20;
    run(&folder, &format!("qemu-img create -q -f qcow2 -o cluster_size=4k disk.qcow2 {size}"));
    run(&folder, "qemu-img bitmap --add -g 512 disk.qcow2 all");
    write(&folder, "disk.qcow2", 3, 0, size);
    assert_eq!(dirty(&folder, "all"), [0..size]);
}

#[test]
fn a_bitmap_that_was_not_saved_says_so() {
    let Some(folder) = folder("a_bitmap_that_was_not_saved_says_so") else { return };
    run(&folder, "qemu-img create -q -f qcow2 disk.qcow2 4M");
    run(&folder, "qemu-img bitmap --add disk.qcow2 day1");
    // `abort` ends QEMU as a crash would.
    let ended = std::process::Command::new("qemu-io")
        .args(["-f", "qcow2", "-c", "write 0 64k", "-c", "abort", "disk.qcow2"])
        .current_dir(folder.dir())
        .output()
        .unwrap();
    assert!(!ended.status.success());
    let image = File::open(folder.path("disk.qcow2")).unwrap();
    let header = Header::read(&image).unwrap();
    let bitmaps = header.bitmaps(&image).unwrap();
    assert!(bitmaps[0].in_use);
    let error = bitmaps[0].visit_dirty(&header, &image, |_| {}).unwrap_err().to_string();
    assert!(error.contains("\"day1\" was not saved"), "{error}");
}
