//! Every system call that the program makes on files, devices and rings fails once, whichever thread
//! makes it: on the real engines, by strace. The outcome is a documented exit code and a message,
//! soon; nothing that was committed is lost; the same command succeeds afterwards.
//!
//! All cases run with `VOLTAR_SOAK`; else some, other ones each time.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use serde_json::Value;
use voltar_tests::command::words;
use voltar_tests::sectors::stamped;
use voltar_tests::{Ran, Rng, Scratch, Voltar, skip};

/// Cases of a test that are tried without `VOLTAR_SOAK`, or a few more.
const SAMPLE: usize = 40;

/// Bytes of the volume.
const LEN: usize = 3 << 20;

/// System calls and how they may fail.
const CALLS: [(&str, &[&str]); 26] = [
    ("openat", &["EIO", "EMFILE"]),
    ("statx", &["EIO"]),
    ("newfstatat", &["EIO"]),
    ("fstatfs", &["EIO"]),
    ("lseek", &["EIO"]),
    ("read", &["EIO", "EINTR"]),
    ("pread64", &["EIO", "EINTR", "EAGAIN"]),
    ("preadv", &["EIO", "EINTR", "EAGAIN"]),
    ("write", &["EIO", "EINTR"]),
    ("pwrite64", &["EIO", "ENOSPC", "EINTR"]),
    ("pwritev", &["EIO", "ENOSPC", "EINTR"]),
    ("fsync", &["EIO"]),
    ("fdatasync", &["EIO", "ENOSPC"]),
    ("ftruncate", &["EIO", "ENOSPC"]),
    ("fallocate", &["EIO", "EOPNOTSUPP"]),
    ("flock", &["EINTR", "ENOLCK"]),
    ("ioctl", &["EIO", "ENOTTY"]),
    ("rename", &["EIO"]),
    ("unlink", &["EIO"]),
    ("mkdir", &["ENOSPC"]),
    ("getdents64", &["EIO"]),
    ("fadvise64", &["EIO"]),
    ("clone3", &["EAGAIN"]),
    ("io_uring_setup", &["ENOMEM", "EPERM"]),
    ("io_uring_register", &["ENOMEM"]),
    ("io_uring_enter", &["EINTR", "EAGAIN", "EBUSY", "EIO"]),
];

/// The `nth` call of each thread fails.
struct Case {
    call: &'static str,
    nth: usize,
    errno: &'static str,
}

/// What runs, in the directory of a test.
fn voltar(scratch: &Scratch, line: &str) -> Voltar {
    Voltar::new(scratch).args(words(line))
}

/// The cases of a command: its calls are counted in a run in which none fails.
fn cases(scratch: &Scratch, line: &str) -> Vec<Case> {
    let names = CALLS.map(|(name, _)| name).join(",");
    let strace = ["strace", "-f", "-qq", "-o", "calls", "-e", &format!("trace={names}")];
    Voltar::through(scratch, &strace.map(str::as_ref)).args(words(line)).ok();
    let log = fs::read_to_string(scratch.path("calls")).unwrap();
    let mut most: BTreeMap<&str, usize> = BTreeMap::new();
    let mut counts: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    for line in log.lines().filter(|line| !line.contains(" resumed>")) {
        let Some((thread, call)) = line.split_once(' ') else { continue };
        let Some((name, _)) = call.trim_start().split_once('(') else { continue };
        let count = counts.entry((thread, name)).or_default();
        *count += 1;
        let most = most.entry(name).or_default();
        *most = (*most).max(*count);
    }
    let mut cases = Vec::new();
    for (call, errnos) in CALLS {
        for nth in 1..=most.get(call).copied().unwrap_or(0) {
            cases.extend(errnos.iter().map(|errno| Case { call, nth, errno }));
        }
    }
    cases
}

/// Those that are tried, of one of so many command lines: of each system call as many.
fn chosen(mut cases: Vec<Case>, rng: &mut Rng, lines: usize) -> Vec<Case> {
    if std::env::var("VOLTAR_SOAK").is_ok() {
        return cases;
    }
    let mut chosen = Vec::new();
    while chosen.len() < SAMPLE.div_ceil(lines) && !cases.is_empty() {
        let calls: BTreeSet<&str> = cases.iter().map(|case| case.call).collect();
        for call in calls {
            let of_call: Vec<usize> = (0..cases.len()).filter(|&n| cases[n].call == call).collect();
            let pick = of_call[rng.below(of_call.len() as u64) as usize];
            chosen.push(cases.swap_remove(pick));
        }
    }
    chosen
}

/// Runs the command with a failing call. It ends in a documented way.
fn failing(scratch: &Scratch, case: &Case, line: &str) -> Ran {
    let Case { call, nth, errno } = case;
    let (trace, inject) =
        (format!("trace={call}"), format!("inject={call}:error={errno}:when={nth}"));
    eprintln!("{line}: {inject}");
    let strace =
        ["strace", "-f", "-qq", "--seccomp-bpf", "-o", "/dev/null", "-e", &trace, "-e", &inject];
    let ran = Voltar::through(scratch, &strace.map(str::as_ref)).args(words(line)).run();
    let is_loaders = ran.code() == Some(127) && ran.stderr.contains("shared librar");
    let is_documented = matches!(ran.code(), Some(0..=6));
    assert!(is_loaders || is_documented, "{:?} {}", (ran.code(), ran.signal()), ran.stderr);
    assert!(!ran.stderr.contains("panicked"), "{}", ran.stderr);
    assert!(ran.code() == Some(0) || ran.stderr.contains("error"), "no message: {}", ran.stderr);
    ran
}

/// Whether strace may trace here.
fn may_trace(test: &str) -> bool {
    let traced = std::process::Command::new("strace")
        .args(["-f", "-qq", "--seccomp-bpf", "-o", "/dev/null", "-e", "trace=openat", "true"])
        .status();
    let may = traced.is_ok_and(|status| status.success());
    if !may {
        skip(test, "strace is missing or may not trace");
    }
    may
}

/// The snapshots of an archive, oldest first.
fn snapshots(scratch: &Scratch, archive: &str) -> Vec<String> {
    let list = voltar(scratch, &format!("list {archive}")).json();
    let snapshots = list["snapshots"].as_array().unwrap();
    snapshots.iter().map(|snapshot| snapshot["id"].as_str().unwrap().to_owned()).collect()
}

fn assert_restores(scratch: &Scratch, what: &str, bytes: &[u8]) {
    voltar(scratch, &format!("restore {what} copy")).ok();
    assert!(scratch.read("copy") == bytes, "{what} restores to something else");
    fs::remove_file(scratch.path("copy")).unwrap();
}

#[test]
fn a_backup_of_which_a_system_call_fails_costs_nothing() {
    let test = "a_backup_of_which_a_system_call_fails_costs_nothing";
    if !may_trace(test) {
        return;
    }
    let mut rng = Rng::fresh(test);
    let scratch = Scratch::new();
    let (old, new) = (stamped(1, 0, 1, LEN), stamped(1, 0, 2, LEN));
    scratch.write("disk", &old);
    voltar(&scratch, "backup disk base.voltar").ok();
    scratch.write("disk", &new);
    let fresh = || fs::copy(scratch.path("base.voltar"), scratch.path("a.voltar")).unwrap();
    let first = snapshots(&scratch, "base.voltar").remove(0);
    let (mut committed, mut failed, mut overcome) = (0, 0, 0);
    for engine in ["uring", "blocking"] {
        let line = format!("backup disk a.voltar --io {engine} --json");
        fresh();
        for case in chosen(cases(&scratch, &line), &mut rng, 2) {
            fresh();
            let succeeded = failing(&scratch, &case, &line).code() == Some(0);
            let ids = snapshots(&scratch, "a.voltar");
            assert!(ids[0] == first && ids.len() <= 2, "{ids:?}");
            assert!(!succeeded || ids.len() == 2, "it is not there");
            match (succeeded, ids.len()) {
                (true, _) => overcome += 1,
                (false, 2) => committed += 1,
                (false, _) => failed += 1,
            }
            voltar(&scratch, "verify a.voltar").ok();
            assert_restores(&scratch, &format!("a.voltar@{first}"), &old);
            voltar(&scratch, "backup disk a.voltar").ok();
            assert_restores(&scratch, "a.voltar", &new);
        }
    }
    println!("{failed} failed, {committed} of them committed all the same, {overcome} overcome");
    println!("figure: {} system calls of backups failed", failed + committed + overcome);
    assert!(failed > 0 && overcome > 0);
}

#[test]
fn a_restore_of_which_a_system_call_fails_is_finished_later() {
    let test = "a_restore_of_which_a_system_call_fails_is_finished_later";
    if !may_trace(test) {
        return;
    }
    let mut rng = Rng::fresh(test);
    let scratch = Scratch::new();
    let bytes = stamped(1, 0, 1, LEN);
    scratch.write("disk", &bytes);
    voltar(&scratch, "backup disk a.voltar").ok();
    let gone = || drop(fs::remove_file(scratch.path("out")));
    let (mut failed, mut overcome) = (0, 0);
    for engine in ["uring", "blocking"] {
        let line = format!("restore a.voltar out --read-back --io {engine} --json");
        for case in chosen(cases(&scratch, &line), &mut rng, 2) {
            gone();
            if failing(&scratch, &case, &line).code() == Some(0) {
                overcome += 1;
            } else {
                failed += 1;
                // Without a note of what was begun, the target is somebody's data.
                let again = voltar(&scratch, "restore a.voltar out").run();
                if again.code() != Some(0) {
                    assert!(again.stderr.contains("--overwrite"), "{}", again.stderr);
                    voltar(&scratch, "restore a.voltar out --overwrite").ok();
                }
            }
            assert!(scratch.read("out") == bytes, "the target holds something else");
        }
        gone();
    }
    println!("{failed} failed, {overcome} overcome");
    println!("figure: {} system calls of restores failed", failed + overcome);
    assert!(failed > 0 && overcome > 0);
}

#[test]
fn readers_of_which_a_system_call_fails_say_so_or_the_same() {
    let test = "readers_of_which_a_system_call_fails_say_so_or_the_same";
    if !may_trace(test) {
        return;
    }
    let mut rng = Rng::fresh(test);
    let scratch = Scratch::new();
    for generation in [1, 2] {
        scratch.write("disk", &stamped(1, 0, generation, LEN));
        voltar(&scratch, "backup disk a.voltar").ok();
    }
    let (mut failed, mut overcome) = (0, 0);
    let lines = [
        "list a.voltar",
        "show a.voltar",
        "diff a.voltar latest~1 latest",
        "inspect a.voltar",
        "verify a.voltar --io uring",
        "verify a.voltar --io blocking",
        "verify a.voltar@latest --stored",
    ];
    for line in lines {
        let line = format!("{line} --json");
        let expected = said(&voltar(&scratch, &line).ok());
        for case in chosen(cases(&scratch, &line), &mut rng, lines.len()) {
            let ran = failing(&scratch, &case, &line);
            if ran.code() == Some(0) {
                assert_eq!(said(&ran), expected, "another answer, without a word");
                overcome += 1;
            } else {
                failed += 1;
            }
        }
    }
    println!("{failed} failed, {overcome} overcome");
    println!("figure: {} system calls of readers failed", failed + overcome);
    assert!(failed > 0 && overcome > 0);
}

/// A report without what differs from run to run.
fn said(ran: &Ran) -> Value {
    let mut report = ran.json();
    report.as_object_mut().unwrap().remove("elapsed_s");
    report
}
