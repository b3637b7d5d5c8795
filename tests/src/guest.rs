//! Runs scripts in the test guest (`tests/guest`): a virtual machine with device mapper, LVM and
//! ZFS, made of Debian packages, with the voltar of this tree in it.

use std::io::{BufRead, BufReader, Read, Write};
use std::num::NonZeroUsize;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::command::{program, root};
use crate::data::Scratch;
use crate::skip::skip;

/// Seconds that a script may take; ten times what it takes on an idle machine.
const SECONDS_MAX: u32 = 900;

/// The status by which `run.sh` says that no guest can be had here.
const NO_GUEST: i32 = 77;

/// How many guests run at once. A script keeps one processor busy, and a guest takes 1 GiB.
static RUNNING: Mutex<usize> = Mutex::new(0);
static ENDED: Condvar = Condvar::new();
const RUNNING_MAX: usize = 4;

/// Leave to run a guest, given back when dropped.
#[derive(Debug)]
pub(crate) struct Turn;

impl Turn {
    pub(crate) fn wait() -> Turn {
        let count = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        let running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
        let is_full = |running: &mut usize| *running >= count.min(RUNNING_MAX);
        *ENDED.wait_while(running, is_full).unwrap_or_else(PoisonError::into_inner) += 1;
        Turn
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        *RUNNING.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        ENDED.notify_one();
    }
}

/// A disk of the guest.
#[derive(Clone, Copy, Debug)]
pub enum Disk<'a> {
    /// A blank one of so many MiB, gone when the guest is.
    Blank(u32),
    /// A raw file; what the guest writes stays in it.
    Kept(&'a Path),
    /// A qcow2 image, likewise.
    Image(&'a Path),
    /// A qcow2 image that the guest starts from, likewise; not counted with the others.
    Root(&'a Path),
}

/// Runs `tests/guest/scripts/NAME.sh` in a fresh guest with these disks, `$D0`, `$D1` and so on
/// there; `tool` is a program of ours that it gets beside voltar, and the README. Returns what it printed, or
/// `None` if `test` was skipped because there can be no guest here.
///
/// # Panics
/// If the script fails, or ends without having checked anything.
pub fn run(test: &str, name: &str, disks: &[Disk<'_>], tool: &str) -> Option<String> {
    let _turn = Turn::wait();
    let mut command = command(disks, tool);
    let output = command.arg(format!("bash scripts/{name}.sh")).output().expect("run.sh starts");
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    let complaints = String::from_utf8_lossy(&output.stderr);
    judged(test, name, output.status, printed, &complaints)
}

/// The line that starts a guest, without what it is to do.
fn command(disks: &[Disk<'_>], tool: &str) -> Command {
    let folder = root().join("tests/guest");
    let mut command = Command::new(folder.join("run.sh"));
    command.args(["-t", &SECONDS_MAX.to_string(), "-b", tool, "-p"]).arg(folder.join("scripts"));
    command.arg("-p").arg(root().join("README.md"));
    for disk in disks {
        match disk {
            Disk::Blank(mib) => command.args(["-d", &format!("{mib}M")]),
            Disk::Kept(file) => command.arg("-D").arg(file),
            Disk::Image(file) => command.arg("-Q").arg(file),
            Disk::Root(file) => command.arg("-r").arg(file),
        };
    }
    command.env("VOLTAR_BIN", program()).stdin(Stdio::null());
    command
}

/// What a script of `tests/guest` printed, which must succeed; `None` if it says that there can be
/// no guest here, and `test` is skipped.
pub(crate) fn printed_by(test: &str, script: &mut Command) -> Option<String> {
    let output = script
        .env("VOLTAR_BIN", program())
        .stdin(Stdio::null())
        .output()
        .expect("the script starts");
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    let complaints = String::from_utf8_lossy(&output.stderr);
    succeeded(test, &format!("{script:?}"), output.status, printed, &complaints)
}

/// What was printed, if there was a guest.
fn succeeded(
    test: &str,
    what: &str,
    status: ExitStatus,
    printed: String,
    complaints: &str,
) -> Option<String> {
    if status.code() == Some(NO_GUEST) {
        skip(test, complaints.trim().lines().last().unwrap_or("no guest"));
        return None;
    }
    assert!(status.success(), "{what}: {status}\n{printed}{complaints}");
    Some(printed)
}

/// The same of a script that counts what it checked.
fn judged(
    test: &str,
    name: &str,
    status: ExitStatus,
    printed: String,
    complaints: &str,
) -> Option<String> {
    let printed = succeeded(test, &format!("{name}.sh"), status, printed, complaints)?;
    let checks = checks(&printed);
    assert!(checks.is_some_and(|checks| checks > 0), "{name}.sh checked nothing:\n{printed}");
    // Past the test runner, which shows only what failing tests print: what was done in the guest
    // belongs into every log.
    let shown = format!("{name}.sh:\n{printed}");
    std::io::stderr().write_all(shown.as_bytes()).expect("standard error can be written to");
    Some(printed)
}

/// The directory of the guest: `vmlinux`, `initrd` and `root.img`, a file system. `None` if `test` was
/// skipped because there can be no guest here.
pub fn folder(test: &str) -> Option<PathBuf> {
    let built = Command::new(root().join("tests/guest/build.sh")).output().expect("it starts");
    let complaints = String::from_utf8_lossy(&built.stderr);
    match built.status.code() {
        Some(0) => Some(String::from_utf8_lossy(&built.stdout).trim().into()),
        Some(NO_GUEST) => {
            skip(test, complaints.trim().lines().last().unwrap_or("no guest"));
            None
        }
        _ => panic!("build.sh: {}\n{complaints}", built.status),
    }
}

/// A guest that runs a script while the host does something with it; ended when dropped.
#[derive(Debug)]
pub struct Live {
    child: Child,
    lines: Arc<Mutex<Vec<String>>>,
    readers: [JoinHandle<String>; 2],
    scratch: PathBuf,
    name: String,
    _turn: Turn,
}

/// Longest that a guest may take to print what is awaited.
const LINE_PATIENCE: Duration = Duration::from_secs(300);

impl Live {
    /// Starts `tests/guest/scripts/NAME.sh` as [`run`] does. The monitor of the machine listens in
    /// `scratch`, and so does the channel of an agent if the guest is to have one. `None` if `test`
    /// was skipped because there can be no guest here.
    pub fn start(
        test: &str,
        name: &str,
        disks: &[Disk<'_>],
        tool: &str,
        scratch: &Scratch,
        has_agent: bool,
    ) -> Option<Live> {
        let turn = Turn::wait();
        let mut command = command(disks, tool);
        let sockets = ["guest.qmp", "guest.control", "guest.agent"].map(|name| scratch.path(name));
        for socket in &sockets {
            drop(std::fs::remove_file(socket));
        }
        command.arg("-q").arg(&sockets[0]).arg("-c").arg(&sockets[1]);
        if has_agent {
            command.arg("-a").arg(&sockets[2]);
        }
        command.arg(format!("bash scripts/{name}.sh"));
        let mut child =
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("run.sh starts");
        let lines = Arc::new(Mutex::new(Vec::new()));
        let readers = [
            read_lines(child.stdout.take().expect("it is a pipe"), Arc::clone(&lines)),
            read_lines(child.stderr.take().expect("it is a pipe"), Arc::default()),
        ];
        let scratch = scratch.dir().to_path_buf();
        let mut live = Live { child, lines, readers, scratch, name: name.into(), _turn: turn };
        let is_there = live.until(|lines| !lines.is_empty());
        if !is_there {
            live.end(test);
            return None;
        }
        Some(live)
    }

    /// The monitor's socket.
    pub fn monitor(&self) -> PathBuf {
        self.scratch.join("guest.qmp")
    }

    /// What the script printed so far.
    pub fn lines(&self) -> Vec<String> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until what was printed is enough; `false` if the guest ended before.
    pub fn until(&mut self, is_enough: impl Fn(&[String]) -> bool) -> bool {
        let started = Instant::now();
        while !is_enough(&self.lines()) {
            if self.child.try_wait().expect("it is ours").is_some() {
                return false;
            }
            let is_late = started.elapsed() > LINE_PATIENCE;
            assert!(!is_late, "{}.sh: no end of waiting: {:?}", self.name, self.lines());
            std::thread::sleep(Duration::from_millis(20));
        }
        true
    }

    /// Says a line to the script.
    pub fn say(&self, line: &str) {
        let control = UnixStream::connect(self.scratch.join("guest.control"));
        writeln!(control.expect("the guest listens"), "{line}").expect("the guest listens");
    }

    /// Waits for the script's end, and judges as [`run`] does.
    pub fn end(mut self, test: &str) -> Option<String> {
        let status = self.child.wait().expect("it is ours");
        let empty = || std::thread::spawn(String::new);
        let readers = std::mem::replace(&mut self.readers, [empty(), empty()]);
        let [printed, complaints] = readers.map(|reader| reader.join().expect("it only reads"));
        judged(test, &self.name, status, printed, &complaints)
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            // run.sh ends its machine, and removes what it made.
            let _ = kill(Pid::from_raw(self.child.id() as i32), Signal::SIGTERM);
            let _ = self.child.wait();
        }
    }
}

fn read_lines(
    from: impl Read + Send + 'static,
    lines: Arc<Mutex<Vec<String>>>,
) -> JoinHandle<String> {
    std::thread::spawn(move || {
        let mut all = String::new();
        for line in BufReader::new(from).lines().map_while(Result::ok) {
            all.push_str(&line);
            all.push('\n');
            lines.lock().unwrap_or_else(PoisonError::into_inner).push(line);
        }
        all
    })
}

/// The number in the last line, `N checks passed`.
fn checks(printed: &str) -> Option<u64> {
    printed.lines().last()?.strip_suffix(" checks passed")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_must_say_that_it_came_to_its_end() {
        assert_eq!(checks("[3] step\n17 checks passed\n"), Some(17));
        assert_eq!(checks("17 checks passed\nand then nothing\n"), None);
        assert_eq!(checks(""), None);
    }
}
