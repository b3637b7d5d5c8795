//! Monitors that refuse, lie, fall silent or go, others that use them, and what others have in the
//! machine: a named error or a right backup, and an unharmed machine.

use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use voltar_tests::data::disk;
use voltar_tests::qmp::Qmp;
use voltar_tests::vm::{self, Kind, Vm};
use voltar_tests::writer::Writer;
use voltar_tests::{Ran, Rng, Scratch};

use crate::backups::{MIB, RECOVERY, assert_told, back_up, backup, instant, volumes};
use crate::proxy::{Act, Moment, Proxy};

/// Two disks, a guest that writes to them, and a first backup.
fn machine(scratch: &Scratch) -> (Vm, Writer) {
    let before = [disk(51, 4 * MIB), disk(52, 5 * MIB)];
    let writer = Writer::new(before.clone(), 8);
    let disks = vm::disks(scratch, &[Kind::Qcow2, Kind::Raw], &[&before[0], &before[1]]);
    let vm = Vm::writing(scratch, &disks, &writer, 1);
    back_up(scratch, &vm, "a.voltar");
    (vm, writer)
}

/// The guest runs, and the next backup is right and leaves nothing.
#[track_caller]
fn assert_recovers(scratch: &Scratch, vm: &Vm, writer: &Writer) {
    let from = vm.progress().done;
    let made = back_up(scratch, vm, "a.voltar");
    let steps = instant(scratch, "a.voltar", &made, writer);
    assert!(steps[1] >= from[1], "{steps:?} is before {from:?}");
    vm.assert_unharmed(1);
}

fn snapshots(scratch: &Scratch) -> usize {
    let list = voltar_tests::Voltar::new(scratch).args(["list", "a.voltar"]).json();
    list["snapshots"].as_array().unwrap().len()
}

/// A run through a proxy: it committed what is right, or nothing and says so.
#[track_caller]
fn assert_sound(scratch: &Scratch, ran: &Ran, before: usize, writer: &Writer, what: &str) -> bool {
    let after = snapshots(scratch);
    match ran.code() {
        Some(0) => {
            assert_eq!(after, before + 1, "{what}");
            instant(scratch, "a.voltar", &volumes(&ran.json()), writer);
        }
        Some(1) => {
            assert_eq!(after, before, "{what}: something was committed");
            assert!(
                ran.stderr.starts_with("voltar: ") || ran.stderr.contains("error"),
                "{}",
                ran.stderr
            );
        }
        code => panic!("{what}: {code:?} {}", ran.stderr),
    }
    ran.code() == Some(0)
}

/// Every command of the conversation fails once: refused, refused although it was done, answered by
/// no answer, or the connection is lost.
#[test]
fn whatever_command_fails_the_machine_is_unharmed() {
    let test = "whatever_command_fails_the_machine_is_unharmed";
    let Some(scratch) = vm::scratch(test) else { return };
    let (vm, writer) = machine(&scratch);
    let faults = [
        (Moment::Before, Act::Refuse),
        (Moment::After, Act::Refuse),
        (Moment::After, Act::Garble),
        (Moment::Before, Act::Close),
        (Moment::After, Act::Close),
    ];
    let mut rng = Rng::fresh(test);
    let (mut failed, mut at) = (0, 0);
    loop {
        let (moment, act) = faults[rng.below(faults.len() as u64) as usize].clone();
        let before = snapshots(&scratch);
        let shown = format!("{act:?} {moment:?} {at}");
        let proxy = Proxy::start(&scratch, &vm, move |now, index, _| {
            if (now, index) == (moment, at) { act.clone() } else { Act::Pass }
        });
        let ran = backup(&scratch, &proxy.source(), "a.voltar").arg("--json").run();
        let conversation = proxy.end();
        if conversation.len() <= at {
            assert_eq!(ran.code(), Some(0), "{}", ran.stderr);
            break;
        }
        let what = format!("{shown}, {}", conversation[at]);
        let is_done = assert_sound(&scratch, &ran, before, &writer, &what);
        failed += u32::from(!is_done);
        eprintln!("{what}: {}", ran.stderr);
        assert!(vm.steps_within(RECOVERY, 2), "{what}: the guest stands still\n{}", ran.stderr);
        assert_recovers(&scratch, &vm, &writer);
        at += 1;
    }
    eprintln!("figure: {at} commands of a conversation failed, {failed} runs with them");
    assert!(failed as usize * 3 > at, "only {failed} of {at} runs failed");
}

/// What QEMU says is changed here and there.
#[test]
fn what_a_lying_monitor_says_harms_nothing() {
    let test = "what_a_lying_monitor_says_harms_nothing";
    let Some(scratch) = vm::scratch(test) else { return };
    let (vm, writer) = machine(&scratch);
    let mut rng = Rng::fresh(test);
    let mut failed = 0;
    const LIES: u64 = 30;
    for _ in 0..LIES {
        let (at, seed) = (rng.below(60) as usize, rng.next_u64());
        let before = snapshots(&scratch);
        let proxy = Proxy::start(&scratch, &vm, move |moment, index, answer| {
            if (moment, index) != (Moment::After, at) {
                return Act::Pass;
            }
            let mut lie = answer.clone();
            distort(&mut lie["return"], &mut Rng::new(seed));
            Act::Say(lie)
        });
        let ran = backup(&scratch, &proxy.source(), "a.voltar").arg("--json").run();
        let conversation = proxy.end();
        let command = conversation.get(at).map_or("", String::as_str);
        let what = format!("the answer to {command}, {at}, seed {seed}");
        failed += u64::from(!assert_sound(&scratch, &ran, before, &writer, &what));
        assert!(vm.steps_within(RECOVERY, 2), "{what}: the guest stands still\n{}", ran.stderr);
        assert_recovers(&scratch, &vm, &writer);
    }
    assert!(failed > 0, "no lie was noticed");
}

/// Changes one thing in a value, wherever it is.
fn distort(value: &mut Value, rng: &mut Rng) {
    match value {
        Value::Array(items) if !items.is_empty() && rng.below(8) > 0 => {
            let at = rng.below(items.len() as u64) as usize;
            distort(&mut items[at], rng);
        }
        Value::Object(fields) if !fields.is_empty() && rng.below(8) > 0 => {
            let names: Vec<String> = fields.keys().cloned().collect();
            let name = &names[rng.below(names.len() as u64) as usize];
            distort(&mut fields[name], rng);
        }
        other => *other = another(other, rng),
    }
}

fn another(value: &Value, rng: &mut Rng) -> Value {
    let long = "x".repeat(1 << 16);
    match (rng.below(6), value) {
        (0, _) => Value::Null,
        (1, _) => json!({ "a": [long] }),
        (2, _) => json!(-1),
        (_, Value::Number(number)) => json!(number.as_u64().unwrap_or(0).wrapping_add(512)),
        (_, Value::Bool(it)) => json!(!it),
        (3, _) => json!("\u{1b}[31m/../.. \n"),
        (4, _) => json!(long),
        _ => json!([]),
    }
}

/// A monitor that stops answering in the middle: the run ends, later, and the guest never stood still.
#[test]
fn a_monitor_that_falls_silent_is_given_up() {
    let test = "a_monitor_that_falls_silent_is_given_up";
    let Some(scratch) = vm::scratch(test) else { return };
    let (vm, writer) = machine(&scratch);
    let proxy = Proxy::start(&scratch, &vm, |moment, _, message| {
        let is_it = message["execute"] == "block-export-add" && moment == Moment::Before;
        if is_it { Act::Swallow } else { Act::Pass }
    });
    let voltar = backup(&scratch, &proxy.source(), "a.voltar").patience(Duration::from_secs(200));
    let mut running = voltar.start();
    let mut last = (vm.progress().done[1], Instant::now());
    while !running.is_over() {
        let now = vm.progress().done[1];
        if now > last.0 {
            last = (now, Instant::now());
        }
        assert!(last.1.elapsed() < Duration::from_secs(5), "the guest stands still");
        std::thread::sleep(Duration::from_millis(50));
    }
    let ran = running.wait().expect(1);
    assert!(ran.stderr.contains("does not answer"), "{}", ran.stderr);
    drop(proxy.end());
    assert_recovers(&scratch, &vm, &writer);
}

/// What listens is no monitor, says nothing, or is nobody.
#[test]
fn what_is_no_monitor_is_named() {
    let test = "what_is_no_monitor_is_named";
    let Some(scratch) = vm::scratch(test) else { return };
    let socket = scratch.path("some.sock");
    let source = format!("qemu:{}", socket.display());
    let said = |code: i32, what: &str| {
        let ran = backup(&scratch, &source, "a.voltar").run().expect(code);
        assert!(ran.stderr.contains(what), "{what}: {}", ran.stderr);
        assert!(!scratch.path("a.voltar").exists() || snapshots(&scratch) == 0);
    };
    said(1, "cannot reach QEMU's monitor");
    let listener = UnixListener::bind(&socket).unwrap();
    said(7, "serves somebody else, or hangs");
    // Whoever has waited is still in the queue.
    drop(listener.accept().unwrap());
    for greeting in ["{\"QGA\": {}}\n", "220 mail.example ESMTP\r\n", "", "{\"QMP\": 5}\n"] {
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let (mut client, _) = listener.accept().unwrap();
                std::io::Write::write_all(&mut client, greeting.as_bytes()).unwrap();
            });
            let ran = backup(&scratch, &source, "a.voltar").run().expect(1);
            assert!(ran.stderr.contains("QEMU's monitor"), "{greeting:?}: {}", ran.stderr);
        });
    }
}

/// Somebody is at voltar's monitor already; a second monitor is another matter.
#[test]
fn a_monitor_that_serves_somebody_else_is_named() {
    let test = "a_monitor_that_serves_somebody_else_is_named";
    let Some(scratch) = vm::scratch(test) else { return };
    let (vm, writer) = machine(&scratch);
    let other = Qmp::connect(vm.socket());
    let ran = backup(&scratch, &vm.source(None), "a.voltar").run().expect(7);
    assert!(ran.stderr.contains("serves somebody else"), "{}", ran.stderr);
    vm.assert_unharmed(1);
    drop(other);
    assert_recovers(&scratch, &vm, &writer);
}

/// QEMU has one NBD server. One that is somebody else's stays.
#[test]
fn an_nbd_server_of_somebody_else_stays() {
    let test = "an_nbd_server_of_somebody_else_stays";
    let Some(scratch) = vm::scratch(test) else { return };
    let (vm, writer) = machine(&scratch);
    let address = json!({ "type": "unix", "data": { "path": scratch.path("theirs.nbd") } });
    vm.execute("nbd-server-start", json!({ "addr": address }));
    assert_taken(&scratch, &vm, &["an NBD server"]);
    vm.execute("blockdev-add", json!({ "driver": "null-co", "node-name": "theirs", "size": 4096 }));
    let export = json!({ "type": "nbd", "id": "theirs", "node-name": "theirs" });
    vm.execute("block-export-add", export);
    assert_taken(&scratch, &vm, &["query-block-exports: \"theirs\"", "an NBD server"]);
    vm.execute("nbd-server-stop", json!({}));
    let made = back_up(&scratch, &vm, "a.voltar");
    // What was written since the backup before the failed one is told.
    assert_told(&made);
    instant(&scratch, "a.voltar", &made, &writer);
}

/// A backup ends because the NBD server is taken, and these are all that is in the machine afterwards.
#[track_caller]
fn assert_taken(scratch: &Scratch, vm: &Vm, theirs: &[&str]) {
    let ran = backup(scratch, &vm.source(None), "a.voltar").run().expect(7);
    assert!(ran.stderr.contains("NBD server is taken"), "{}", ran.stderr);
    vm.until_steps_more(2);
    let strays = vm.strays();
    let is_theirs = |stray: &String| theirs.iter().any(|known| stray.starts_with(known));
    assert!(strays.len() == theirs.len() && strays.iter().all(is_theirs), "{strays:?}");
}

/// Somebody has the machine stopped: it is backed up, and stays as it is.
#[test]
fn a_machine_that_stands_still_stays_so() {
    let test = "a_machine_that_stands_still_stays_so";
    let Some(scratch) = vm::scratch(test) else { return };
    let (vm, writer) = machine(&scratch);
    vm.execute("stop", json!({}));
    let made = back_up(&scratch, &vm, "a.voltar");
    assert!(!vm.is_running(), "voltar had it run on");
    assert_told(&made);
    instant(&scratch, "a.voltar", &made, &writer);
    vm.execute("cont", json!({}));
    assert_recovers(&scratch, &vm, &writer);
}

/// Two at once, into two archives: they take turns, or one says who is in the way.
#[test]
fn two_backups_of_a_machine_at_once_do_not_meet() {
    let test = "two_backups_of_a_machine_at_once_do_not_meet";
    let Some(scratch) = vm::scratch(test) else { return };
    let (vm, writer) = machine(&scratch);
    let (mut done, mut refused) = (0, 0);
    for _ in 0..4 {
        let runs = ["a.voltar", "b.voltar"].map(|archive| {
            let voltar = backup(&scratch, &vm.source(None), archive).args(["--limit", "8M"]);
            (archive, voltar.arg("--json").start())
        });
        for (archive, running) in runs {
            let ran = running.wait();
            match ran.code() {
                Some(0) => {
                    instant(&scratch, archive, &volumes(&ran.json()), &writer);
                    done += 1;
                }
                Some(1 | 7) => refused += 1,
                code => panic!("{code:?} {}", ran.stderr),
            }
        }
        let strays = vm.strays();
        assert!(strays.is_empty() && vm.is_running(), "{strays:?}");
    }
    assert!(done >= 4, "{done} done, {refused} refused");
    let made = back_up(&scratch, &vm, "a.voltar");
    instant(&scratch, "a.voltar", &made, &writer);
}
