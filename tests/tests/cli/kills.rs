//! Signals at random moments of backups and restores: nothing is lost, the same command finishes.
//!
//! `VOLTAR_KILLS` says how many rounds each test makes. What is in the volumes says where it came
//! from, see `voltar_tests::sectors`.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use voltar_tests::command::words;
use voltar_tests::sectors::{SECTOR_LEN, compare, stamped};
use voltar_tests::{Loop, Mount, Ran, Rng, Scratch, Voltar, is_root, skip};

/// Bytes of the volumes.
const LEN: usize = 16 << 20;
/// Rounds for which one archive is used, so that it does not fill the machine.
const ROUNDS_AN_ARCHIVE: u64 = 25;

fn voltar(scratch: &Scratch, line: &str) -> Voltar {
    Voltar::new(scratch).args(words(line))
}

fn rounds() -> u64 {
    let set = std::env::var("VOLTAR_KILLS").ok();
    set.map_or(12, |text| text.parse().expect("VOLTAR_KILLS is a number"))
}

/// In memory where we may: this many backups are a lot for a disk shared with others.
fn quick_folder(scratch: &Scratch) -> Option<Mount> {
    let mount = is_root().then(|| Mount::tmpfs(&scratch.path("w"), "1g").ok()).flatten();
    fs::create_dir_all(scratch.path("w")).unwrap();
    mount
}

/// Runs `line` and sends it one of the three signals within `longest`. Whether it was in time.
fn struck(scratch: &Scratch, rng: &mut Rng, line: &str, longest: Duration) -> bool {
    let signal = [Signal::SIGKILL, Signal::SIGINT, Signal::SIGTERM][rng.below(3) as usize];
    let running = voltar(scratch, line).start();
    std::thread::sleep(Duration::from_micros(rng.below(longest.as_micros() as u64)));
    running.signal(signal);
    let ran: Ran = running.wait();
    // A signal that comes before its handler is there ends the program by itself.
    let in_time = ran.signal() == Some(signal as i32) || ran.code() == Some(130);
    let out_of_time = ran.code() == Some(0);
    assert!(in_time || out_of_time, "{line}, {signal}: {:?} {}", ran.code(), ran.stderr);
    in_time
}

/// Writes a new generation over some of a volume.
fn rewrite(rng: &mut Rng, bytes: &mut [u8], generation: u64) {
    let sectors = bytes.len() / SECTOR_LEN;
    for _ in 0..8 {
        let first = rng.below(sectors as u64) as usize;
        let count = rng.below(4096).min((sectors - first) as u64) as usize;
        let range = first * SECTOR_LEN..(first + count) * SECTOR_LEN;
        match rng.below(5) {
            0 => bytes[range].fill(0),
            _ => {
                let new = stamped(1, first as u64, generation, range.len());
                bytes[range].copy_from_slice(&new);
            }
        }
    }
}

#[track_caller]
fn assert_sectors(got: &[u8], want: &[u8], what: &str) -> u64 {
    compare(got, want).unwrap_or_else(|wrong| panic!("{what}: {wrong}"))
}

fn snapshots(scratch: &Scratch) -> usize {
    let list = voltar(scratch, "list w/a.voltar").json();
    list["snapshots"].as_array().unwrap().len()
}

#[test]
fn backups_survive_signals_at_any_moment() {
    let mut rng = Rng::fresh("backups_survive_signals_at_any_moment");
    let scratch = Scratch::new();
    let _mount = quick_folder(&scratch);
    let mut bytes = stamped(1, 0, 0, LEN);
    let (mut hits, mut sectors) = (0, 0);
    let mut longest = Duration::ZERO;
    for round in 0..rounds() {
        if round % ROUNDS_AN_ARCHIVE == 0 {
            drop(fs::remove_file(scratch.path("w/a.voltar")));
            scratch.write("w/disk", &bytes);
            let started = Instant::now();
            voltar(&scratch, "backup w/disk w/a.voltar").ok();
            longest = started.elapsed();
        }
        let old = bytes.clone();
        rewrite(&mut rng, &mut bytes, round + 1);
        scratch.write("w/disk", &bytes);
        let before = snapshots(&scratch);
        let hit = struck(&scratch, &mut rng, "backup w/disk w/a.voltar --limit 200M", longest);
        hits += u64::from(hit);
        let after = snapshots(&scratch);
        // One that was struck after its commit exists all the same.
        assert!(after == before + 1 || (hit && after == before), "round {round}");
        voltar(&scratch, "verify w/a.voltar").ok();
        if after == before {
            voltar(&scratch, "restore w/a.voltar w/out").ok();
            sectors += assert_sectors(&scratch.read("w/out"), &old, "the snapshot before");
            fs::remove_file(scratch.path("w/out")).unwrap();
            voltar(&scratch, "backup w/disk w/a.voltar").ok();
        }
        voltar(&scratch, "restore w/a.voltar w/out").ok();
        sectors += assert_sectors(&scratch.read("w/out"), &bytes, "the snapshot after");
        fs::remove_file(scratch.path("w/out")).unwrap();
    }
    voltar(&scratch, "verify w/a.voltar").ok();
    report(hits, sectors);
}

#[test]
fn restores_survive_signals_at_any_moment() {
    let mut rng = Rng::fresh("restores_survive_signals_at_any_moment");
    let scratch = Scratch::new();
    let _mount = quick_folder(&scratch);
    let mut states = vec![stamped(1, 0, 0, LEN)];
    for generation in 1..4 {
        let mut next = states[generation - 1].clone();
        rewrite(&mut rng, &mut next, generation as u64);
        states.push(next);
    }
    for state in &states {
        scratch.write("w/disk", state);
        voltar(&scratch, "backup w/disk w/a.voltar").ok();
    }
    // The target is longer than the volume; what lies behind is none of the program's business.
    let behind = stamped(2, 0, 9, 1 << 20);
    let file = scratch.write("w/target", &[&states[0][..], &behind].concat());
    let device = match is_root() {
        true => Loop::new(&file, 512),
        false => Err("loop devices need root; a file is the target".into()),
    };
    if let Err(why) = &device {
        skip("restores_survive_signals_at_any_moment", why);
    }
    let target = device.as_ref().map_or(file.as_path(), Loop::path);
    let is_device = device.is_ok();
    let (mut hits, mut sectors) = (0, 0);
    for round in 0..rounds() {
        let age = rng.below(states.len() as u64) as usize;
        let want = &states[states.len() - 1 - age];
        fill(target, &state_before(&mut rng, &states), &behind);
        let line = format!("restore w/a.voltar@latest~{age} {} --overwrite", target.display());
        // A slow one is struck in its middle, a quick one near its beginning and its end.
        let limit = ["", " --limit 40M", " --delta off --limit 80M"][rng.below(3) as usize];
        for _ in 0..=rng.below(3) {
            let line = format!("{line}{limit}");
            hits += u64::from(struck(&scratch, &mut rng, &line, Duration::from_millis(300)));
        }
        voltar(&scratch, &line).ok();
        let got = fs::read(target).unwrap();
        let what = format!("round {round}, {line}");
        sectors += assert_sectors(&got[..LEN], want, &what);
        if is_device {
            sectors += assert_sectors(&got[LEN..], &behind, "what lies behind the volume");
        }
    }
    report(hits, sectors);
}

/// What is on the target before: another state, noise, or nothing.
fn state_before(rng: &mut Rng, states: &[Vec<u8>]) -> Vec<u8> {
    match rng.below(4) {
        0 => rng.bytes(LEN),
        1 => vec![0; LEN],
        _ => states[rng.below(states.len() as u64) as usize].clone(),
    }
}

fn fill(target: &Path, bytes: &[u8], behind: &[u8]) {
    let device = File::options().write(true).open(target).unwrap();
    device.write_all_at(bytes, 0).unwrap();
    device.write_all_at(behind, bytes.len() as u64).unwrap();
    device.sync_all().unwrap();
}

fn report(hits: u64, sectors: u64) {
    println!("figure: {hits} signals survived");
    println!("figure: {sectors} sectors checked");
    // Even a machine that is busy elsewhere strikes a fair share of them.
    assert!(hits * 5 >= rounds(), "only {hits} of {} rounds were struck in time", rounds());
}
