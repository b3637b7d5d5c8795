//! The main flow: back up, change, back up, compare, restore; and the options on the way.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;

use serde_json::{Value, json};
use voltar_tests::command::words;
use voltar_tests::data::{assert_same, disk};
use voltar_tests::{Rng, Scratch, Voltar, skip};

fn voltar(scratch: &Scratch, line: &str) -> Voltar {
    Voltar::new(scratch).args(words(line))
}

const CHUNK: u64 = 64 << 10;

/// Changes some chunks of `bytes`; which ones, merged, as `diff` names them.
fn change(rng: &mut Rng, bytes: &mut [u8]) -> Vec<Value> {
    let len = bytes.len() as u64;
    let chunks = len.div_ceil(CHUNK);
    let mut changed = std::collections::BTreeMap::new();
    for _ in 0..4 {
        let chunk = rng.below(chunks);
        let range = chunk * CHUNK..((chunk + 1) * CHUNK).min(len);
        let at = range.start + rng.below(range.end - range.start);
        bytes[at as usize] ^= 0x55;
        changed.insert(chunk, range);
    }
    // A chunk that becomes zero, if it was not.
    let chunk = rng.below(chunks);
    let range = chunk * CHUNK..((chunk + 1) * CHUNK).min(len);
    bytes[range.start as usize..range.end as usize].fill(0);
    changed.insert(chunk, range);
    changed.into_values().map(|range| json!([range.start, range.end])).collect()
}

/// Extents of chunks as they must come: sorted, and merged where kind and place allow.
fn merged(new: &[u8], chunks: &[Value]) -> Vec<Value> {
    let mut extents: Vec<(u64, u64, &str)> = Vec::new();
    for range in chunks {
        let (start, end) = (range[0].as_u64().unwrap(), range[1].as_u64().unwrap());
        let is_zero = new[start as usize..end as usize].iter().all(|byte| *byte == 0);
        let kind = if is_zero { "zero" } else { "data" };
        match extents.last_mut() {
            Some(last) if last.0 + last.1 == start && last.2 == kind => last.1 += end - start,
            _ => extents.push((start, end - start, kind)),
        }
    }
    let extent = |(offset, length, kind)| json!({"offset": offset, "length": length, "kind": kind});
    extents.into_iter().map(extent).collect()
}

#[test]
fn twice_with_a_change_in_between() {
    let mut rng = Rng::fresh("twice_with_a_change_in_between");
    for len in [1, 511, 512, 4096, 65_536, 65_537, 1_000_003, 5_000_000] {
        let scratch = Scratch::new();
        let old = disk(rng.next_u64(), len);
        scratch.write("disk.raw", &old);
        let first = voltar(&scratch, "backup disk.raw a.voltar").json();
        assert_eq!(first["parent"], Value::Null);
        assert_eq!(first["volumes"][0]["size"], len);

        let mut new = old.clone();
        let touched = change(&mut rng, &mut new);
        // A change that is undone by a later one is none.
        let touched: Vec<Value> = touched
            .into_iter()
            .filter(|range| {
                let range =
                    range[0].as_u64().unwrap() as usize..range[1].as_u64().unwrap() as usize;
                old[range.clone()] != new[range]
            })
            .collect();
        scratch.write("disk.raw", &new);
        let second = voltar(&scratch, "backup disk.raw a.voltar").json();
        assert_eq!(second["parent"], first["snapshot"]);
        let volume = &second["volumes"][0];
        let lengths = |range: &Value| range[1].as_u64().unwrap() - range[0].as_u64().unwrap();
        let changed: u64 = touched.iter().map(lengths).sum();
        assert_eq!(volume["changed_bytes"], changed, "size {len}");
        let stored = second["stored_bytes"].as_u64().unwrap();
        assert!(stored <= changed + (64 << 10), "size {len}: {stored} stored, {changed} changed");

        let diff = voltar(&scratch, "diff a.voltar latest~1 latest").json();
        assert_eq!(diff["volume"], "disk.raw");
        assert_eq!(diff["chunk_size"], CHUNK);
        assert_eq!(diff["extents"], json!(merged(&new, &touched)), "size {len}");

        voltar(&scratch, "restore a.voltar@latest~1 old.raw").ok();
        voltar(&scratch, "restore a.voltar@latest new.raw --read-back").ok();
        assert_same(&scratch.read("old.raw"), &old, "the older snapshot");
        assert_same(&scratch.read("new.raw"), &new, "the newer snapshot");
        let verify = voltar(&scratch, "verify a.voltar").json();
        assert_eq!((&verify["ok"], &verify["snapshots"]), (&json!(true), &json!(2)));
    }
}

#[test]
fn an_unchanged_backup_stores_nothing_but_itself() {
    let scratch = Scratch::new();
    scratch.write("disk", &disk(9, 3_000_000));
    voltar(&scratch, "backup disk a.voltar").ok();
    let before = scratch.len("a.voltar");
    let again = voltar(&scratch, "backup disk a.voltar").json();
    assert_eq!(again["volumes"][0]["changed_bytes"], 0);
    assert_eq!(again["volumes"][0]["new_bytes"], 0);
    let grown = scratch.len("a.voltar") - before;
    assert_eq!(again["stored_bytes"], grown);
    assert!(grown <= 32 << 10, "{grown} bytes for nothing");
    let diff = voltar(&scratch, "diff a.voltar latest~1 latest").json();
    assert_eq!(diff["extents"], json!([]));
}

#[test]
fn several_volumes_with_attached_files_and_tags() {
    let scratch = Scratch::new();
    let (root, data) = (disk(21, 700_001), disk(22, 2_000_000));
    scratch.write("vm-root", &root);
    scratch.write("vm-data", &data);
    scratch.write("vm.xml", b"<domain/>\n");
    let made = voltar(&scratch, "backup root=vm-root data=vm-data a.voltar --attach vm.xml")
        .args(words("--attach other=vm-root --tag host=a --tag plan=daily=2"))
        .json();
    let names: Vec<_> = made["volumes"].as_array().unwrap().iter().map(|v| &v["name"]).collect();
    assert_eq!(names, ["root", "data"]);

    let show = voltar(&scratch, "show a.voltar").json();
    assert_eq!(show["tags"], json!({"host": "a", "plan": "daily=2"}));
    assert_eq!(
        show["attached"],
        json!([{"name": "vm.xml", "size": 10}, {"name": "other", "size": root.len()}])
    );
    let attached = voltar(&scratch, "show a.voltar --attached vm.xml").ok();
    assert_eq!(attached.stdout, b"<domain/>\n");
    let attached = voltar(&scratch, "show a.voltar --attached other").ok();
    assert_same(&attached.stdout, &root, "the attached file");

    let restored = voltar(&scratch, "restore a.voltar data=d.img root=r.img").json();
    assert_eq!(restored["volumes"].as_array().unwrap().len(), 2);
    assert_same(&scratch.read("r.img"), &root, "root");
    assert_same(&scratch.read("d.img"), &data, "data");
    voltar(&scratch, "restore a.voltar only.img --volume data").ok();
    assert_same(&scratch.read("only.img"), &data, "data alone");

    // One of the two changes: both are compared with their own parents.
    scratch.patch("vm-data", 100, b"!");
    voltar(&scratch, "backup root=vm-root data=vm-data a.voltar").ok();
    let diff = voltar(&scratch, "diff a.voltar latest~1 latest").json();
    let volumes = diff["volumes"].as_array().unwrap();
    assert_eq!(volumes.len(), 2);
    for volume in volumes {
        let want = if volume["volume"] == "data" { 1 } else { 0 };
        assert_eq!(volume["extents"].as_array().unwrap().len(), want, "{volume}");
    }
    let one = voltar(&scratch, "diff a.voltar latest~1 latest --volume root").json();
    assert_eq!((&one["volume"], &one["extents"]), (&json!("root"), &json!([])));
}

#[test]
fn snapshots_are_found_by_date_and_id() {
    let scratch = Scratch::new();
    scratch.write("disk", b"one");
    voltar(&scratch, "backup disk a.voltar").ok();
    scratch.write("disk", b"two!");
    voltar(&scratch, "backup disk a.voltar").ok();
    let list = voltar(&scratch, "list a.voltar").json();
    let snapshots = list["snapshots"].as_array().unwrap();
    let time = snapshots[1]["time"].as_str().unwrap();
    let id = snapshots[0]["id"].as_str().unwrap();
    let shown = |selector: &str| {
        voltar(&scratch, &format!("show a.voltar@{selector}")).json()["id"].clone()
    };
    // A month, a day, the time to its last digit; in UTC, which is this run's zone.
    for selector in [&time[..7], &time[..10], &time[..13], time] {
        assert_eq!(shown(selector), snapshots[1]["id"], "{selector}");
    }
    assert_eq!(shown("latest~1"), snapshots[0]["id"]);
    assert_eq!(shown("latest"), snapshots[1]["id"]);
    assert_eq!(shown(id), snapshots[0]["id"]);
    assert_eq!(shown(&id[..20]), snapshots[0]["id"]);
    assert_eq!(shown(&id.to_uppercase()), snapshots[0]["id"]);
    let gone = voltar(&scratch, "show a.voltar@1999-12").run().expect(1);
    assert!(gone.stderr.contains("hint: "), "{}", gone.stderr);
    // In another zone the same words mean another hour.
    let hour = &time[..13];
    let far = voltar(&scratch, &format!("show a.voltar@{hour}")).env("TZ", "Asia/Tokyo").run();
    assert_eq!(far.code(), Some(1), "{}", far.text());
}

#[test]
fn an_archive_through_a_pipe() {
    let scratch = Scratch::new();
    let bytes = disk(31, 4_000_001);
    scratch.write("disk", &bytes);
    let (mut reader, writer) = std::io::pipe().unwrap();
    let running = voltar(&scratch, "backup disk - --json").stdout(writer).start();
    let mut through = File::create(scratch.path("b.voltar")).unwrap();
    std::io::copy(&mut reader, &mut through).unwrap();
    through.flush().unwrap();
    let ran = running.wait().expect(0);
    let report = voltar_tests::command::object(&ran.stderr).unwrap();
    assert_eq!(report["archive"], "-");
    // All but the header, which belongs to no snapshot.
    assert_eq!(report["stored_bytes"], scratch.len("b.voltar") - 4096);
    assert_eq!(voltar(&scratch, "verify b.voltar").json()["ok"], true);
    voltar(&scratch, "restore b.voltar out").ok();
    assert_same(&scratch.read("out"), &bytes, "through a pipe");
    // It is an archive like any other: the next backup goes on in it.
    let next = voltar(&scratch, "backup disk b.voltar").json();
    assert_eq!(
        (&next["parent"], &next["volumes"][0]["new_bytes"]),
        (&report["snapshot"], &json!(0))
    );
}

#[test]
fn a_reader_that_leaves_early_fails_the_stream() {
    let scratch = Scratch::new();
    scratch.write("disk", &Rng::new(5).bytes(8 << 20));
    let (mut reader, writer) = std::io::pipe().unwrap();
    let running = voltar(&scratch, "backup disk -").stdout(writer).start();
    reader.read_exact(&mut [0; 4096]).unwrap();
    drop(reader);
    let ran = running.wait().expect(1);
    assert!(ran.stderr.contains("error: "), "{}", ran.stderr);
    assert!(ran.stderr.contains("not a complete archive"), "{}", ran.stderr);
}

#[test]
fn parents_may_be_chosen() {
    let scratch = Scratch::new();
    let bytes = disk(41, 1_000_000);
    scratch.write("disk", &bytes);
    let first = voltar(&scratch, "backup disk a.voltar").json();
    scratch.patch("disk", 0, b"changed");
    voltar(&scratch, "backup disk a.voltar").ok();
    let third = voltar(&scratch, "backup disk a.voltar --parent latest~1").json();
    assert_eq!(third["parent"], first["snapshot"]);
    assert_eq!(third["volumes"][0]["changed_bytes"], CHUNK);
    assert_eq!(third["volumes"][0]["new_bytes"], 0, "the archive holds that chunk");
    let fourth = voltar(&scratch, "backup disk a.voltar --parent none").json();
    assert_eq!(fourth["parent"], Value::Null);
    assert_eq!(fourth["volumes"][0]["new_bytes"], 0, "deduplicated all the same");
    // By another name it has no parent, and is deduplicated.
    let named = voltar(&scratch, "backup other=disk a.voltar").json();
    assert_eq!(named["parent"], Value::Null);
    assert_eq!(named["volumes"][0]["new_bytes"], 0);
    assert_eq!(voltar(&scratch, "verify a.voltar").json()["snapshots"], 5);
}

#[test]
fn every_chunk_size_and_compression() {
    let scratch = Scratch::new();
    let bytes = disk(51, 2_100_001);
    scratch.write("disk", &bytes);
    let compressions = ["auto", "store", "zstd:-7", "zstd:1", "zstd:3", "zstd:19"];
    let sizes = ["4K", "8K", "16K", "64K", "256K", "1M"];
    for (at, size) in sizes.iter().enumerate() {
        let compression = compressions[at];
        let archive = format!("{size}.voltar");
        let line = format!("backup disk {archive} --chunk-size {size} --compression {compression}");
        let made = voltar(&scratch, &line).json();
        let len = size.trim_end_matches(['K', 'M']).parse::<u64>().unwrap();
        let unit = if size.ends_with('K') { 1 << 10 } else { 1 << 20 };
        assert_eq!(made["volumes"][0]["chunk_size"], len * unit);
        // The next one goes on with the parent's chunks.
        let next = voltar(&scratch, &format!("backup disk {archive}")).json();
        assert_eq!(next["volumes"][0]["chunk_size"], len * unit);
        assert_eq!(next["volumes"][0]["changed_bytes"], 0);
        voltar(&scratch, &format!("verify {archive}")).ok();
        voltar(&scratch, &format!("verify {archive} --stored")).ok();
        voltar(&scratch, &format!("restore {archive} out-{size}")).ok();
        assert_same(&scratch.read(&format!("out-{size}")), &bytes, &archive);
    }
    let stored = |name: &str| scratch.len(name);
    assert!(stored("256K.voltar") < stored("8K.voltar"), "zstd:3 against store");
}

#[test]
fn both_engines_make_the_same_map() {
    let scratch = Scratch::new();
    scratch.write("disk", &disk(61, 3_000_000));
    let root = |io: &str, threads: u32| {
        let line = format!("backup disk {io}{threads}.voltar --io {io} --threads {threads}");
        voltar(&scratch, &line).json()["volumes"][0]["root"].clone()
    };
    let want = root("blocking", 1);
    assert_eq!(root("blocking", 3), want);
    assert_eq!(root("auto", 1), want);
    assert_eq!(root("auto", 3), want);
}

#[test]
fn a_dry_run_changes_nothing() {
    let scratch = Scratch::new();
    let bytes = disk(71, 400_000);
    scratch.write("disk", &bytes);
    let before = scratch.contents();
    let made = voltar(&scratch, "backup disk a.voltar --dry-run").json();
    assert_eq!((&made["snapshot"], &made["dry_run"]), (&Value::Null, &json!(true)));
    assert!(scratch.contents() == before, "a dry run made something");
    voltar(&scratch, "backup disk a.voltar").ok();
    scratch.write("old.img", &[1; 400_000]);
    let before = scratch.contents();
    voltar(&scratch, "restore a.voltar new.img --dry-run").ok();
    voltar(&scratch, "restore a.voltar old.img --overwrite --dry-run").ok();
    voltar(&scratch, "restore a.voltar old.img --dry-run").run().expect(5);
    voltar(&scratch, "backup disk a.voltar --dry-run").ok();
    assert!(scratch.contents() == before, "a dry run changed something");
}

#[test]
fn restores_in_place_write_only_what_differs() {
    let scratch = Scratch::new();
    let mut bytes = disk(81, 6_000_000);
    scratch.write("disk", &bytes);
    voltar(&scratch, "backup disk a.voltar").ok();
    scratch.write("copy", &bytes);
    bytes[3_000_000..3_000_100].fill(7);
    scratch.write("disk", &bytes);
    voltar(&scratch, "backup disk a.voltar").ok();
    let made = voltar(&scratch, "restore a.voltar copy --overwrite --delta on --read-back").json();
    assert_same(&scratch.read("copy"), &bytes, "restored in place");
    let volume = &made["volumes"][0];
    let number = |name: &str| volume[name].as_u64().unwrap();
    assert!((1..=CHUNK).contains(&number("written_bytes")), "{volume}");
    let sum = number("written_bytes") + number("zeroed_bytes") + number("kept_bytes");
    assert_eq!(sum, bytes.len() as u64, "{volume}");
    assert_eq!(made["read_back"], true);
    // Without it, everything is written.
    let made = voltar(&scratch, "restore a.voltar copy --overwrite --delta off").json();
    assert_eq!(made["volumes"][0]["kept_bytes"], 0);
    assert_same(&scratch.read("copy"), &bytes, "restored whole");
    // A target that is longer than the volume keeps no stale byte within it.
    scratch.write("junk", &Rng::new(8).bytes(6_000_000));
    voltar(&scratch, "restore a.voltar junk --overwrite").ok();
    assert_same(&scratch.read("junk"), &bytes, "over random bytes");
}

#[test]
fn sparse_files_stay_sparse() {
    let scratch = Scratch::new();
    let len = 1u64 << 30;
    let file = File::create(scratch.path("sparse")).unwrap();
    file.set_len(len).unwrap();
    let data = Rng::new(4).bytes(300_000);
    file.write_all_at(&data, 77_777_777).unwrap();
    file.write_all_at(b"end", len - 3).unwrap();
    drop(file);
    let made = voltar(&scratch, "backup sparse a.voltar").json();
    let read = made["volumes"][0]["read_bytes"].as_u64().unwrap();
    assert!(read < 4 << 20, "{read} bytes read of holes");
    let made = voltar(&scratch, "restore a.voltar out").json();
    let written = made["volumes"][0]["written_bytes"].as_u64().unwrap();
    assert!(written < 4 << 20, "{written} bytes written");
    assert_eq!(scratch.len("out"), len);
    let taken = scratch.allocated("out");
    assert!((300_000..4 << 20).contains(&taken), "{taken} bytes allocated");
    let out = File::open(scratch.path("out")).unwrap();
    let mut got = vec![0; data.len()];
    out.read_exact_at(&mut got, 77_777_777).unwrap();
    assert_same(&got, &data, "the data in the middle");
    let mut end = [0; 4];
    out.read_exact_at(&mut end, len - 4).unwrap();
    assert_eq!(&end, b"\0end");
}

#[test]
fn sixteen_tebibytes_of_hole() {
    let name = "sixteen_tebibytes_of_hole";
    let scratch = Scratch::new();
    let file = File::create(scratch.path("huge")).unwrap();
    // ext4 ends one block below 16 TiB; where that is too much, half of it.
    let len = [(16u64 << 40) - 4096, 8 << 40].into_iter().find(|len| file.set_len(*len).is_ok());
    let Some(len) = len else {
        return skip(name, "this file system has no files of 8 TiB");
    };
    file.write_all_at(b"far out", len - 4096 - 7).unwrap();
    drop(file);
    let made = voltar(&scratch, "backup huge a.voltar").json();
    assert_eq!(made["volumes"][0]["size"], len);
    assert!(scratch.len("a.voltar") < 1 << 20, "{}", scratch.len("a.voltar"));
    assert_eq!(voltar(&scratch, "verify a.voltar").json()["ok"], true);
    let again = voltar(&scratch, "backup huge a.voltar").json();
    assert_eq!(again["volumes"][0]["changed_bytes"], 0);
    voltar(&scratch, "restore a.voltar back").ok();
    assert_eq!(scratch.len("back"), len);
    assert!(scratch.allocated("back") < 4 << 20);
    let mut got = [0; 7];
    File::open(scratch.path("back")).unwrap().read_exact_at(&mut got, len - 4096 - 7).unwrap();
    assert_eq!(&got, b"far out");
    fs::remove_file(scratch.path("back")).unwrap();
}

#[test]
fn archives_grow_only_at_their_end() {
    let scratch = Scratch::new();
    let mut bytes = disk(91, 900_000);
    scratch.write("disk", &bytes);
    voltar(&scratch, "backup disk a.voltar").ok();
    for round in 0..5 {
        let before = scratch.read("a.voltar");
        bytes[round * 150_000] ^= 1;
        scratch.write("disk", &bytes);
        voltar(&scratch, "backup disk a.voltar").ok();
        let after = scratch.read("a.voltar");
        assert!(after.len() > before.len());
        assert_same(&after[..before.len()], &before, "what was committed");
    }
}
