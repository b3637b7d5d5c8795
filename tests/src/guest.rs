//! Runs scripts in the test guest (`tests/guest`): a virtual machine with device mapper, LVM and
//! ZFS, made of Debian packages, with the voltar of this tree in it.

use std::io::Write;
use std::num::NonZeroUsize;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{Condvar, Mutex, PoisonError};

use crate::command::{program, root};
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
