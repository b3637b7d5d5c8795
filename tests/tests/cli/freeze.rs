//! Freezing file systems while snapshots are made: thawed on every path, and never for long.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use voltar_tests::device::system;
use voltar_tests::{FileSystem, Scratch, is_root, skip};

const FREEZER: &str = env!("CARGO_BIN_EXE_freezer");
/// Longer than anything here takes, shorter than anybody waits.
const PATIENCE: Duration = Duration::from_secs(20);
/// A writer that is not done by then is blocked.
const MOMENT: Duration = Duration::from_millis(300);

struct Rig {
    // Unmounted before the folder goes.
    file_system: FileSystem,
    scratch: Scratch,
}

impl Rig {
    fn new(test: &str) -> Option<Rig> {
        if !is_root() {
            skip(test, "mounting file systems needs root");
            return None;
        }
        let scratch = Scratch::new();
        match FileSystem::new(&scratch, "ext4", &["-F"], 64 << 20, "rw") {
            Ok(file_system) => Some(Rig { file_system, scratch }),
            Err(why) => {
                skip(test, &why);
                None
            }
        }
    }

    /// Commands that note that they ran.
    fn note(&self, word: &str) -> String {
        format!("echo {word} >>{}", self.scratch.path("notes").display())
    }

    fn notes(&self) -> String {
        fs::read_to_string(self.scratch.path("notes")).unwrap_or_default()
    }

    fn freezer(&self, seconds: u64, freeze: &str, thaw: &str) -> Freezer {
        let seconds = seconds.to_string();
        self.run(&[&seconds, freeze, thaw])
    }

    fn run(&self, arguments: &[&str]) -> Freezer {
        let mut child = Command::new(FREEZER)
            .arg(self.file_system.device())
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        Freezer { child, stdout }
    }

    /// Starts to write a file; the end of it is announced.
    fn writer(&self, name: &str) -> Receiver<()> {
        let path: PathBuf = self.file_system.path(name);
        let (sender, receiver) = channel();
        std::thread::spawn(move || {
            let mut file = File::create(path).unwrap();
            file.write_all(b"bytes").unwrap();
            file.sync_all().unwrap();
            // The test may have given up.
            let _ = sender.send(());
        });
        receiver
    }

    #[track_caller]
    fn assert_thawed(&self) {
        let written = self.writer("afterwards").recv_timeout(PATIENCE);
        assert!(written.is_ok(), "it is still frozen");
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        // Should a test have failed: nothing unmounts what is frozen.
        drop(system("fsfreeze", &["--unfreeze", self.file_system.dir().to_str().unwrap()]));
    }
}

/// A program that freezes; killed if the test gives it up.
struct Freezer {
    child: Child,
    stdout: BufReader<ChildStdout>,
}

impl Freezer {
    fn line(&mut self) -> String {
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    #[track_caller]
    fn wait_held(&mut self) {
        assert_eq!(self.line(), "held");
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
    }

    /// The guard's process.
    fn guard(&self) -> Pid {
        let children = format!("/proc/{0}/task/{0}/children", self.child.id());
        let children = fs::read_to_string(children).unwrap();
        Pid::from_raw(children.trim().parse().expect("the guard is the only child"))
    }

    /// Lets it go on, and waits for it: its last line, and whether it succeeded.
    fn end(&mut self) -> (String, bool) {
        drop(self.child.stdin.take());
        let line = self.line();
        (line, self.child.wait().unwrap().success())
    }
}

impl Drop for Freezer {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

#[test]
fn what_is_frozen_blocks_writers_until_it_is_thawed() {
    let Some(rig) = Rig::new("what_is_frozen_blocks_writers_until_it_is_thawed") else { return };
    let mut freezer = rig.freezer(20, &rig.note("freeze"), &rig.note("thaw"));
    freezer.wait_held();
    assert_eq!(rig.notes(), "freeze\n");
    let writer = rig.writer("meanwhile");
    assert!(writer.recv_timeout(MOMENT).is_err(), "it is not frozen");
    assert_eq!(freezer.end(), (String::new(), true));
    writer.recv_timeout(PATIENCE).expect("thawed, the writer goes on");
    assert_eq!(rig.notes(), "freeze\nthaw\n");
}

#[test]
fn a_command_that_fails_freezes_nothing_and_the_other_runs() {
    let test = "a_command_that_fails_freezes_nothing_and_the_other_runs";
    let Some(rig) = Rig::new(test) else { return };
    let mut freezer = rig.freezer(20, "exit 7", &rig.note("thaw"));
    let (line, succeeded) = freezer.end();
    assert!(!succeeded && line.contains("exit status 7") && line.contains("exit 7"), "{line}");
    assert_eq!(rig.notes(), "thaw\n");
    rig.assert_thawed();
    // And one that does not end.
    let mut freezer = rig.freezer(1, "sleep 60", &rig.note("thaw"));
    let (line, succeeded) = freezer.end();
    assert!(!succeeded && line.contains("not over after 1 s"), "{line}");
    // What could not be thawed by its command is said.
    let mut freezer = rig.freezer(20, "", "exit 9");
    freezer.wait_held();
    let (line, succeeded) = freezer.end();
    assert!(!succeeded && line.contains("exit status 9"), "{line}");
    rig.assert_thawed();
}

#[test]
fn a_file_system_that_another_froze_is_left_to_it() {
    let Some(rig) = Rig::new("a_file_system_that_another_froze_is_left_to_it") else { return };
    system("fsfreeze", &["--freeze", rig.file_system.dir().to_str().unwrap()]).unwrap();
    let (line, succeeded) = rig.freezer(20, "", "").end();
    assert!(!succeeded && line.contains("cannot be frozen"), "{line}");
    assert!(rig.writer("meanwhile").recv_timeout(MOMENT).is_err(), "it was thawed");
}

#[test]
fn whatever_signal_comes_it_is_thawed() {
    let Some(rig) = Rig::new("whatever_signal_comes_it_is_thawed") else { return };
    // This program has no handlers: each of them ends it where it stands.
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGKILL] {
        fs::write(rig.scratch.path("notes"), "").unwrap();
        let mut freezer = rig.freezer(20, "", &rig.note("thaw"));
        freezer.wait_held();
        let writer = rig.writer("meanwhile");
        assert!(writer.recv_timeout(MOMENT).is_err(), "it is not frozen");
        freezer.signal(signal);
        writer.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("{signal} left it frozen"));
        let started = Instant::now();
        while rig.notes() != "thaw\n" {
            assert!(started.elapsed() < PATIENCE, "the command that thaws did not run");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

#[test]
fn a_kill_while_the_command_freezes_thaws_behind_it() {
    let Some(rig) = Rig::new("a_kill_while_the_command_freezes_thaws_behind_it") else { return };
    let freeze = format!("{}; sleep 1; {}", rig.note("begun"), rig.note("frozen"));
    let freezer = rig.freezer(20, &freeze, &rig.note("thaw"));
    let started = Instant::now();
    let until = |notes: &str| {
        while rig.notes() != notes {
            assert!(started.elapsed() < PATIENCE, "{:?}, not {notes:?}", rig.notes());
            std::thread::sleep(Duration::from_millis(5));
        }
    };
    until("begun\n");
    freezer.signal(Signal::SIGKILL);
    until("begun\nfrozen\nthaw\n");
    rig.assert_thawed();
}

#[test]
fn signals_to_the_guard_are_not_minded_and_its_death_is_made_good() {
    let test = "signals_to_the_guard_are_not_minded_and_its_death_is_made_good";
    let Some(rig) = Rig::new(test) else { return };
    let mut freezer = rig.freezer(20, "", &rig.note("thaw"));
    freezer.wait_held();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        kill(freezer.guard(), signal).unwrap();
    }
    let writer = rig.writer("meanwhile");
    assert!(writer.recv_timeout(MOMENT).is_err(), "it minded a signal");
    kill(freezer.guard(), Signal::SIGKILL).unwrap();
    assert!(writer.recv_timeout(MOMENT).is_err(), "nobody thaws yet");
    let (line, succeeded) = freezer.end();
    assert!(!succeeded && line.contains("guard"), "{line}");
    writer.recv_timeout(PATIENCE).expect("thawed in the guard's place");
    assert_eq!(rig.notes(), "thaw\n");
}

#[test]
fn nothing_stays_frozen_for_long() {
    let Some(rig) = Rig::new("nothing_stays_frozen_for_long") else { return };
    let mut freezer = rig.freezer(1, "", &rig.note("thaw"));
    freezer.wait_held();
    let writer = rig.writer("meanwhile");
    writer.recv_timeout(PATIENCE).expect("thawed, though it is still held");
    let (line, succeeded) = freezer.end();
    assert!(!succeeded && line.contains("longer than 1 s"), "{line}");
    assert_eq!(rig.notes(), "thaw\n");
}

#[test]
fn a_file_system_that_is_needed_is_not_frozen() {
    let Some(rig) = Rig::new("a_file_system_that_is_needed_is_not_frozen") else { return };
    let archive = rig.file_system.path("backups/tonight.voltar");
    let mut freezer = rig.run(&["20", "", "", archive.to_str().unwrap()]);
    let notice = freezer.line();
    assert!(notice.contains("is not frozen: it holds"), "{notice}");
    freezer.wait_held();
    rig.assert_thawed();
    assert!(freezer.end().1);
}
