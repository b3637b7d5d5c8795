//! voltar is killed or interrupted at any moment while a guest writes: the machine runs on, the next
//! run finds its way, and what it makes is one instant.
//!
//! `VOLTAR_KILLS` says how many rounds each test makes.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use voltar_tests::data::disk;
use voltar_tests::vm::{self, Kind, Vm};
use voltar_tests::writer::Writer;
use voltar_tests::{Rng, Scratch};

use crate::backups::{MIB, RECOVERY, assert_told, back_up, backup, instant};
use crate::proxy::{Act, Moment, Proxy};

fn rounds() -> u64 {
    let set = std::env::var("VOLTAR_KILLS").ok();
    set.map_or(36, |text| text.parse().expect("VOLTAR_KILLS is a number"))
}

/// Two disks, and a guest that writes to them.
fn machine(scratch: &Scratch) -> (Vm, Writer) {
    let before = [disk(41, 6 * MIB), disk(42, 5 * MIB)];
    let writer = Writer::new(before.clone(), 8);
    let disks = vm::disks(scratch, &[Kind::Qcow2, Kind::Raw], &[&before[0], &before[1]]);
    (Vm::writing(scratch, &disks, &writer, 1), writer)
}

/// The next run is clean and right; how many disks were told by their bitmaps.
fn assert_recovers(scratch: &Scratch, vm: &Vm, writer: &Writer, what: &str) -> usize {
    let from = vm.progress().done;
    let made = back_up(scratch, vm, "a.voltar");
    let steps = instant(scratch, "a.voltar", &made, writer);
    assert!(steps[0] >= from[0] && steps[1] >= from[1], "{what}: {steps:?} is before {from:?}");
    vm.assert_unharmed(1);
    let told = |volume: &&serde_json::Value| volume["change_source"] == crate::backups::KIND;
    for volume in made.iter().filter(|volume| !told(volume)) {
        assert!(volume["degraded"].is_string(), "{what}: silently full: {volume}");
    }
    made.iter().filter(told).count()
}

fn struck_at_random(test: &str, signals: &[Signal]) {
    let Some(scratch) = vm::scratch(test) else { return };
    let mut rng = Rng::fresh(test);
    let (vm, writer) = machine(&scratch);
    let (mut hits, mut told) = (0, 0);
    back_up(&scratch, &vm, "a.voltar");
    for round in 0..rounds() {
        let options: &[&str] = [&[][..], &["--limit", "8M"]][rng.below(2) as usize];
        let started = Instant::now();
        back_up(&scratch, &vm, "a.voltar");
        let longest = started.elapsed();
        let running = backup(&scratch, &vm.source(None), "a.voltar").args(options).start();
        std::thread::sleep(Duration::from_micros(rng.below(longest.as_micros() as u64)));
        let signal = signals[rng.below(signals.len() as u64) as usize];
        running.signal(signal);
        let ran = running.wait();
        let is_hit = ran.signal() == Some(signal as i32) || ran.code() == Some(130);
        assert!(is_hit || ran.code() == Some(0), "{:?}: {}", ran.code(), ran.stderr);
        hits += u64::from(is_hit);
        let what = format!("round {round}, {signal}");
        assert!(vm.steps_within(RECOVERY, 2), "{what}: the guest stands still");
        if ran.code().is_some() {
            let strays = vm.strays();
            assert!(strays.is_empty(), "{what}: it had the time to clear up: {strays:?}");
        }
        told += assert_recovers(&scratch, &vm, &writer, &what);
    }
    eprintln!("figure: {hits} signals survived by a machine");
    assert!(hits * 3 >= rounds(), "only {hits} of {} rounds were struck in time", rounds());
    assert!(told as u64 >= rounds(), "only {told} disks were told by their bitmaps afterwards");
}

#[test]
fn a_machine_survives_that_voltar_is_killed_at_any_moment() {
    let test = "a_machine_survives_that_voltar_is_killed_at_any_moment";
    struck_at_random(test, &[Signal::SIGKILL]);
}

#[test]
fn a_machine_survives_that_voltar_is_interrupted_at_any_moment() {
    let test = "a_machine_survives_that_voltar_is_interrupted_at_any_moment";
    struck_at_random(test, &[Signal::SIGINT, Signal::SIGTERM]);
}

/// Killed at every single step of its conversation with QEMU: before QEMU hears of it, or when it
/// has done it.
#[test]
fn a_machine_survives_a_kill_at_every_command() {
    let test = "a_machine_survives_a_kill_at_every_command";
    let Some(scratch) = vm::scratch(test) else { return };
    let (vm, writer) = machine(&scratch);
    back_up(&scratch, &vm, "a.voltar");
    let (mut told, mut killed, mut commands) = (0, 0, Vec::new());
    for at in 0.. {
        let moment = [Moment::Before, Moment::After][at % 2];
        let proxy = Proxy::start(&scratch, &vm, move |now, index, _| {
            if (now, index) == (moment, at) { Act::Kill } else { Act::Pass }
        });
        let running = backup(&scratch, &proxy.source(), "a.voltar").start();
        proxy.kills(running.pid());
        let ran = running.wait();
        let conversation = proxy.end();
        if ran.code() == Some(0) {
            assert!(conversation.len() <= at, "{conversation:?}");
            break;
        }
        assert_eq!(ran.signal(), Some(Signal::SIGKILL as i32), "{}", ran.stderr);
        killed += 1;
        // What follows is the guard's.
        commands.push(conversation.get(at).or(conversation.last()).cloned().unwrap_or_default());
        let what = format!("killed {moment:?} {at}, {:?}", conversation.last());
        assert!(vm.steps_within(RECOVERY, 2), "{what}: the guest stands still");
        told += assert_recovers(&scratch, &vm, &writer, &what);
    }
    for command in ["stop", "qom-set", "cont", "block-export-add", "block-dirty-bitmap-remove"] {
        assert!(commands.iter().any(|other| other == command), "never at {command}: {commands:?}");
    }
    eprintln!("figure: {killed} commands at which voltar was killed");
    assert!(told >= killed, "only {told} disks were told by their bitmaps after {killed} kills");
    let made = back_up(&scratch, &vm, "a.voltar");
    assert_told(&made);
}
