//! QEMU's tools, in a folder of the test's own.

use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use voltar_tests::{Scratch, skip};

/// What `qemu-img` ends with if the clock of its CPU time stood still while it measured how fast it derives keys: on
/// a busy machine, once in a while.
const UNMEASURED: &str = "Unable to get accurate CPU usage";
/// How often it may do so in a row.
const RUNS_MAX: usize = 20;

/// A folder to make images in, if QEMU's tools are here; says so on behalf of the test `name` if not.
pub fn folder(name: &str) -> Option<Scratch> {
    let is_there = |program: &&str| {
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path).any(|folder| folder.join(program).is_file())
    };
    let missing: Vec<&str> = ["qemu-img", "qemu-io", "qemu-nbd"]
        .into_iter()
        .filter(|program| !is_there(program))
        .collect();
    match missing[..] {
        [] => Some(Scratch::new()),
        _ => {
            skip(name, &format!("not installed: {}", missing.join(", ")));
            None
        }
    }
}

/// Runs `line`, words between blanks, in the folder.
pub fn run(folder: &Scratch, line: &str) {
    run_words(folder, &line.split(' ').collect::<Vec<_>>());
}

fn run_words(folder: &Scratch, words: &[&str]) {
    let run_once = || {
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).current_dir(folder.dir()).output().unwrap()
    };
    let said = |ran: &Output| String::from_utf8_lossy(&ran.stderr).into_owned();
    let mut ran = run_once();
    for _ in 0..RUNS_MAX {
        if !said(&ran).contains(UNMEASURED) {
            break;
        }
        ran = run_once();
    }
    let printed = String::from_utf8_lossy(&ran.stdout);
    assert!(ran.status.success(), "{words:?}: {}{printed}", said(&ran));
}

/// Writes `len` bytes `byte` at `offset` of the disk in a qcow2 image.
pub fn write(folder: &Scratch, image: &str, byte: u8, offset: u64, len: u64) {
    let words = format!("write -P {byte} {offset} {len}");
    run_words(folder, &["qemu-io", "-f", "qcow2", "-c", &words, image]);
}

/// The disk as qemu-nbd serves it from these nodes.
pub fn served(folder: &Scratch, nodes: &str) -> Vec<u8> {
    let (socket, pid_file) = (folder.path("nbd.sock"), folder.path("nbd.pid"));
    let started = Command::new("qemu-nbd")
        .args(["--fork", "--read-only", "--socket"])
        .arg(&socket)
        .arg("--pid-file")
        .arg(&pid_file)
        .arg(format!("json:{nodes}"))
        // Not where the image is: relative names must not lead there by chance.
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .status()
        .unwrap();
    assert!(started.success(), "qemu-nbd json:{nodes}");
    let _server = Server(pid_file);
    let uri = format!("nbd+unix:///?socket={}", socket.display());
    run(folder, &format!("qemu-img convert -f raw -O raw {uri} served.raw"));
    std::fs::read(folder.path("served.raw")).unwrap()
}

/// Ends a server that nobody came to; it ends by itself when its client leaves.
struct Server(PathBuf);

impl Drop for Server {
    fn drop(&mut self) {
        let pid = std::fs::read_to_string(&self.0).ok();
        if let Some(pid) = pid.and_then(|pid| pid.trim().parse().ok()) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
    }
}
