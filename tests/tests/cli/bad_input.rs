//! What bad input gets: sources that change, archives that are damaged, busy or full.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use voltar_tests::command::words;
use voltar_tests::data::{assert_same, disk};
use voltar_tests::{Mount, Rng, Scratch, Voltar, is_root, skip};

fn voltar(scratch: &Scratch, line: &str) -> Voltar {
    Voltar::new(scratch).args(words(line))
}

/// Waits until the file has grown by `bytes`: until the backup is in its middle.
fn grows(path: &Path, by: u64) -> impl Fn() -> bool {
    let len = |path: &Path| fs::metadata(path).map(|metadata| metadata.len()).unwrap_or(0);
    let path = path.to_path_buf();
    let before = len(&path);
    move || len(&path) >= before + by
}

#[test]
fn a_source_that_shrinks_or_grows_is_named_and_nothing_is_committed() {
    for (name, new_len) in [("shrinks", 1u64 << 20), ("grows", 40 << 20)] {
        let scratch = Scratch::new();
        scratch.write("disk", &Rng::new(1).bytes(500_000));
        voltar(&scratch, "backup small=disk a.voltar").ok();
        let committed = scratch.read("a.voltar");
        scratch.write("disk", &Rng::new(2).bytes(24 << 20));
        let archive = scratch.path("a.voltar");
        let line = "backup disk a.voltar --limit 16M --compression store";
        let mut running = voltar(&scratch, line).start();
        assert!(running.until(grows(&archive, 1 << 20)), "{name}: it ended before its middle");
        File::options().write(true).open(scratch.path("disk")).unwrap().set_len(new_len).unwrap();
        let ran = running.wait().expect(1);
        assert!(ran.stderr.contains("disk"), "{name}: {}", ran.stderr);
        assert!(ran.stderr.contains("nothing was committed"), "{name}: {}", ran.stderr);
        let list = voltar(&scratch, "list a.voltar").json();
        assert_eq!(list["snapshots"].as_array().unwrap().len(), 1, "{name}");
        let after = scratch.read("a.voltar");
        assert_same(&after[..committed.len()], &committed, "what was committed");
        voltar(&scratch, "verify a.voltar").ok();
        voltar(&scratch, "backup disk a.voltar").ok();
        voltar(&scratch, "restore a.voltar out").ok();
        assert_same(&scratch.read("out"), &scratch.read("disk"), name);
    }
}

#[test]
fn an_unreadable_source_is_named() {
    let scratch = Scratch::new();
    let secret = scratch.write("secret", b"x");
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o000)).unwrap();
    if File::open(&secret).is_ok() {
        // Root reads everything; a user without rights is somebody else.
        return as_nobody(&scratch);
    }
    let ran = voltar(&scratch, "backup secret a.voltar").run().expect(1);
    assert!(ran.stderr.contains("secret"), "{}", ran.stderr);
    assert!(!scratch.path("a.voltar").exists());
}

/// The same, as the user `nobody`.
fn as_nobody(scratch: &Scratch) {
    let open = fs::Permissions::from_mode(0o777);
    fs::set_permissions(scratch.dir(), open.clone()).unwrap();
    // The program may lie where nobody may look.
    let copy = scratch.path("voltar");
    fs::copy(voltar_tests::program(), &copy).unwrap();
    fs::set_permissions(&copy, open).unwrap();
    let mut command = std::process::Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(&copy);
    command.args(["backup", "secret", "a.voltar"]).current_dir(scratch.dir());
    let Ok(output) = command.output() else {
        return skip("an_unreadable_source_is_named", "`setpriv` is not installed");
    };
    let stderr = String::from_utf8_lossy(&output.stderr);
    if stderr.starts_with("setpriv") {
        return skip("an_unreadable_source_is_named", &stderr);
    }
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("secret") && stderr.contains("hint: "), "{stderr}");
    assert!(!scratch.path("a.voltar").exists());
}

#[test]
fn standard_output_is_never_a_source() {
    let scratch = Scratch::new();
    let bytes = disk(2, 1 << 20);
    let path = scratch.write("disk", &bytes);
    let out = fs::File::options().read(true).write(true).open(&path).unwrap();
    let ran = voltar(&scratch, "backup disk -").stdout(out).run().expect(1);
    assert!(ran.stderr.contains("the archive is the source itself"), "{}", ran.stderr);
    assert_same(&fs::read(&path).unwrap(), &bytes, "the source");
}

/// Before a byte of the volume is read.
#[test]
fn a_file_too_large_to_be_attached_is_refused_first() {
    let scratch = Scratch::new();
    scratch.write("disk", &disk(1, 300_000));
    let large = File::create(scratch.path("large")).unwrap();
    large.set_len((64 << 20) + 1).unwrap();
    let ran = voltar(&scratch, "backup disk a.voltar --attach large").run().expect(1);
    assert!(ran.stderr.contains("the file to attach is too large"), "{}", ran.stderr);
    assert!(!scratch.path("a.voltar").exists());
    large.set_len(64 << 20).unwrap();
    voltar(&scratch, "backup disk a.voltar --attach large").ok();
}

/// Behind other bytes nobody would find the archive, and behind another archive's last commit the
/// next backup would cut it off.
#[test]
fn an_archive_is_not_written_behind_what_a_file_holds() {
    let scratch = Scratch::new();
    scratch.write("disk", &disk(1, 300_000));
    voltar(&scratch, "backup disk a.voltar").ok();
    scratch.write("text", b"not empty");
    for name in ["a.voltar", "text"] {
        let before = scratch.read(name);
        let out = File::options().append(true).open(scratch.path(name)).unwrap();
        let ran = voltar(&scratch, "backup disk -").stdout(out).run().expect(1);
        assert!(ran.stderr.contains("the file holds something already"), "{}", ran.stderr);
        assert_same(&scratch.read(name), &before, name);
    }
    let out = File::create(scratch.path("b.voltar")).unwrap();
    voltar(&scratch, "backup disk -").stdout(out).run().expect(0);
    voltar(&scratch, "verify b.voltar").ok();
}

#[test]
fn the_second_writer_is_sent_away_at_once() {
    let scratch = Scratch::new();
    scratch.write("disk", &disk(1, 300_000));
    voltar(&scratch, "backup disk a.voltar").ok();
    let before = scratch.read("a.voltar");
    let lock = File::options().write(true).open(scratch.path("a.voltar")).unwrap();
    lock.try_lock().unwrap();
    let ran = voltar(&scratch, "backup disk a.voltar --json").run().expect(7);
    assert_eq!(ran.json()["error"]["code"], 7);
    assert!(ran.stderr.contains("a.voltar"), "{}", ran.stderr);
    assert_same(&scratch.read("a.voltar"), &before, "the busy archive");
    // Reading needs no lock.
    voltar(&scratch, "verify a.voltar").ok();
    lock.unlock().unwrap();
    voltar(&scratch, "backup disk a.voltar").ok();
}

#[test]
fn readers_see_the_last_commit_while_another_appends() {
    let scratch = Scratch::new();
    let old = disk(1, 2_000_000);
    scratch.write("disk", &old);
    voltar(&scratch, "backup disk a.voltar").ok();
    scratch.write("disk", &Rng::new(3).bytes(64 << 20));
    let archive = scratch.path("a.voltar");
    let line = "backup disk a.voltar --limit 24M --compression store";
    let mut running = voltar(&scratch, line).start();
    assert!(running.until(grows(&archive, 1 << 20)));
    for round in 0..3 {
        let list = voltar(&scratch, "list a.voltar").json();
        assert_eq!(list["snapshots"].as_array().unwrap().len(), 1);
        let verify = voltar(&scratch, "verify a.voltar").json();
        assert_eq!((&verify["ok"], &verify["snapshots"]), (&true.into(), &1.into()));
        voltar(&scratch, "verify a.voltar --stored").ok();
        voltar(&scratch, "show a.voltar").ok();
        voltar(&scratch, "inspect a.voltar").ok();
        voltar(&scratch, &format!("restore a.voltar out-{round}")).ok();
        assert_same(&scratch.read(&format!("out-{round}")), &old, "while another appends");
    }
    voltar(&scratch, "backup disk a.voltar").run().expect(7);
    assert!(!running.is_over(), "the backup ended before the readers did");
    running.signal(nix::sys::signal::Signal::SIGINT);
    running.wait().expect(130);
}

#[test]
fn a_full_file_system_keeps_what_was_committed() {
    let name = "a_full_file_system_keeps_what_was_committed";
    if !is_root() {
        return skip(name, "mounting a small file system needs root");
    }
    let scratch = Scratch::new();
    let mount = match Mount::tmpfs(&scratch.path("small"), "80m") {
        Ok(mount) => mount,
        Err(why) => return skip(name, &why),
    };
    let old = disk(1, 1_000_000);
    scratch.write("disk", &old);
    voltar(&scratch, "backup disk small/a.voltar").ok();
    fs::write(mount.path().join("ballast"), vec![1; 24 << 20]).unwrap();
    let new = Rng::new(2).bytes(66 << 20);
    scratch.write("disk", &new);
    let ran = voltar(&scratch, "backup disk small/a.voltar --json").run().expect(1);
    assert_eq!(ran.json()["error"]["kind"], "no-space", "{}", ran.stderr);
    assert!(ran.stderr.contains("nothing was committed"), "{}", ran.stderr);
    assert!(ran.stderr.contains("hint: free some space"), "{}", ran.stderr);
    let list = voltar(&scratch, "list small/a.voltar").json();
    assert_eq!(list["snapshots"].as_array().unwrap().len(), 1);
    voltar(&scratch, "verify small/a.voltar").ok();
    voltar(&scratch, "restore small/a.voltar out").ok();
    assert_same(&scratch.read("out"), &old, "the snapshot before");
    fs::remove_file(mount.path().join("ballast")).unwrap();
    let made = voltar(&scratch, "backup disk small/a.voltar").json();
    let resumed = made["resumed_bytes"].as_u64().unwrap();
    assert!(resumed >= 30 << 20, "{resumed} bytes taken over: {made}");
    let stored = made["stored_bytes"].as_u64().unwrap();
    assert!(stored < 38 << 20, "{stored} bytes stored beside {resumed}");
    voltar(&scratch, "verify small/a.voltar").ok();
    voltar(&scratch, "restore small/a.voltar out2").ok();
    assert_same(&scratch.read("out2"), &new, "the snapshot after");
}

/// Two snapshots that share nothing, and the first's data segment.
fn two_snapshots(scratch: &Scratch) -> (Vec<u8>, Vec<u8>, std::ops::Range<u64>) {
    let (old, new) = (Rng::new(11).bytes(1_500_000), Rng::new(12).bytes(1_200_001));
    scratch.write("disk", &old);
    voltar(scratch, "backup disk a.voltar").ok();
    let end = scratch.len("a.voltar");
    scratch.write("disk", &new);
    voltar(scratch, "backup disk a.voltar").ok();
    (old, new, 4096..end)
}

#[test]
fn a_flipped_bit_is_found_and_costs_what_it_must() {
    let mut rng = Rng::fresh("a_flipped_bit_is_found_and_costs_what_it_must");
    let scratch = Scratch::new();
    let (old, new, first) = two_snapshots(&scratch);
    // In the middle of the first snapshot's chunks.
    let at = first.start + 100_000 + rng.below(1_200_000);
    scratch.flip("a.voltar", at, rng.below(8) as u8);
    let list = voltar(&scratch, "list a.voltar").json();
    let (older, newer) = (&list["snapshots"][0]["id"], &list["snapshots"][1]["id"]);
    for mode in ["", " --stored"] {
        let ran = voltar(&scratch, &format!("verify a.voltar --json{mode}")).run().expect(3);
        let affects: Vec<_> = ran.json()["damaged"]
            .as_array()
            .unwrap()
            .iter()
            .flat_map(|damage| damage["affects"].as_array().unwrap().clone())
            .collect();
        assert!(affects.iter().any(|affected| affected["snapshot"] == *older), "{}", ran.text());
        assert!(affects.iter().all(|affected| affected["snapshot"] != *newer), "{}", ran.text());
    }
    voltar(&scratch, "verify a.voltar@latest").ok();
    voltar(&scratch, "restore a.voltar@latest whole").ok();
    assert_same(&scratch.read("whole"), &new, "the snapshot that is whole");

    let ran = voltar(&scratch, "restore a.voltar@latest~1 part").run().expect(3);
    assert!(ran.stderr.contains("hint: ") && ran.stderr.contains("0x"), "{}", ran.stderr);
    let ran = voltar(&scratch, "restore a.voltar@latest~1 rest --on-damage zero --json");
    let ran = ran.run().expect(3);
    let object = ran.json();
    let mut want = old;
    let damaged = object["volumes"][0]["damaged"].as_array().unwrap().clone();
    assert!(!damaged.is_empty(), "{object}");
    for range in &damaged {
        let start = range["offset"].as_u64().unwrap() as usize;
        let end = (start + range["length"].as_u64().unwrap() as usize).min(want.len());
        want[start..end].fill(0);
    }
    let lost: u64 = damaged.iter().map(|range| range["length"].as_u64().unwrap()).sum();
    assert!(lost <= 1 << 20, "{lost} bytes lost to one bit");
    assert_same(&scratch.read("rest"), &want, "all but the damaged ranges");
}

#[test]
fn any_single_bit_is_found() {
    let mut rng = Rng::fresh("any_single_bit_is_found");
    let scratch = Scratch::new();
    two_snapshots(&scratch);
    let len = scratch.len("a.voltar");
    let mut places: Vec<u64> = (0..30).map(|_| rng.below(len)).collect();
    // Every structure: header, record heads, tables, pages, commits lie at blocks' edges.
    places.extend((0..30).map(|_| rng.below(len / 4096) * 4096 + rng.below(128)));
    places.extend([0, 9, 511, 512, 4095, 4096, len - 1, len - 4096]);
    for at in places {
        let bit = rng.below(8) as u8;
        scratch.flip("a.voltar", at, bit);
        for mode in ["", " --stored"] {
            let ran = voltar(&scratch, &format!("verify a.voltar --json{mode}")).run();
            // A first byte of another kind is no archive at all.
            let code = ran.code();
            assert_eq!(code, Some(3), "bit {bit} of byte {at}{mode}: {}{}", ran.text(), ran.stderr);
            let object = ran.json();
            if let Some(damaged) = object["damaged"].as_array() {
                assert!(!damaged.is_empty(), "bit {bit} of byte {at}: {object}");
                let near = damaged.iter().any(|damage| {
                    let start = damage["offset"].as_u64().unwrap();
                    (start..=start + damage["length"].as_u64().unwrap()).contains(&at)
                });
                assert!(near, "bit {bit} of byte {at}{mode} is not named: {object}");
            }
        }
        scratch.flip("a.voltar", at, bit);
    }
    voltar(&scratch, "verify a.voltar").ok();
}

#[test]
fn a_truncated_archive_gives_what_is_whole() {
    let scratch = Scratch::new();
    let (old, _, first) = two_snapshots(&scratch);
    let whole = scratch.read("a.voltar");
    // Cut inside the second session: its snapshot never came to be.
    scratch.write("cut.voltar", &whole[..(first.end + 600_000) as usize]);
    let list = voltar(&scratch, "list cut.voltar").json();
    assert_eq!(list["snapshots"].as_array().unwrap().len(), 1);
    voltar(&scratch, "verify cut.voltar").ok();
    voltar(&scratch, "restore cut.voltar out").ok();
    assert_same(&scratch.read("out"), &old, "the snapshot before the cut");
    voltar(&scratch, "backup disk cut.voltar").ok();
    voltar(&scratch, "restore cut.voltar out2").ok();
    assert_same(&scratch.read("out2"), &scratch.read("disk"), "after the cut");
    voltar(&scratch, "verify cut.voltar").ok();
    // Cut inside the only session: an archive without snapshots, and said so.
    scratch.write("none.voltar", &whole[..500_000]);
    let list = voltar(&scratch, "list none.voltar").json();
    assert_eq!(list["snapshots"], serde_json::json!([]));
    let ran = voltar(&scratch, "restore none.voltar out3").run().expect(1);
    assert!(ran.stderr.contains("not a byte of the target was written"), "{}", ran.stderr);
    assert!(!scratch.path("out3").exists());
}

#[test]
fn a_spliced_archive_is_damaged() {
    let scratch = Scratch::new();
    let (_, _, first) = two_snapshots(&scratch);
    fs::rename(scratch.path("a.voltar"), scratch.path("one.voltar")).unwrap();
    two_snapshots(&scratch);
    let mut spliced = scratch.read("one.voltar");
    let other = scratch.read("a.voltar");
    let range = first.start as usize..first.end as usize;
    spliced[range.clone()].copy_from_slice(&other[range]);
    scratch.write("spliced.voltar", &spliced);
    let ran = voltar(&scratch, "verify spliced.voltar --json").run().expect(3);
    assert!(!ran.json()["damaged"].as_array().unwrap().is_empty(), "{}", ran.text());
    voltar(&scratch, "restore spliced.voltar@latest out").ok();
    assert_same(&scratch.read("out"), &scratch.read("disk"), "what is not spliced");
}

#[test]
fn a_pipe_is_no_target_and_nobody_waits_for_its_other_end() {
    let scratch = Scratch::new();
    scratch.write("disk", &Rng::new(1).bytes(100_000));
    voltar(&scratch, "backup disk a.voltar").ok();
    let made = std::process::Command::new("mkfifo").arg(scratch.path("pipe")).status().unwrap();
    assert!(made.success());
    let mut running = voltar(&scratch, "restore a.voltar pipe --overwrite").start();
    let started = Instant::now();
    while !running.is_over() {
        assert!(started.elapsed() < Duration::from_secs(20), "it waits for the other end");
        std::thread::sleep(Duration::from_millis(20));
    }
    running.wait().expect(5);
}
