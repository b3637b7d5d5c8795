//! Bringing file systems and applications to rest while snapshots are made, and never longer.
//!
//! What is frozen must be thawed whatever becomes of voltar. So a guard is started first, a shell in a
//! process group of its own that minds no signals: it freezes, waits for the end of a pipe that only
//! voltar holds, and thaws. A voltar that is killed closes the pipe with its last breath. The guard waits
//! for a bounded time only; and should somebody kill the guard, voltar thaws.

use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::thread::Scope;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, unbounded};

use super::command::Tool;
use crate::cancel::Cancel;
use crate::device::mounts;
use crate::error::{Error, ErrorKind, Result};
use crate::observe::Observer;
use crate::threads;

/// What the guard does.
const SCRIPT: &str = include_str!("freeze.sh");
/// How often is looked whether the user wants to stop.
const NAP: Duration = Duration::from_millis(20);

/// What is to rest.
#[derive(Clone, Debug, Default)]
pub struct Freeze {
    /// A command that brings applications to rest; run by `/bin/sh -c`, before file systems are frozen.
    pub command: Option<String>,
    /// A command that lets them go on, after file systems are thawed; it runs on every path.
    pub thaw: Option<String>,
    /// Numbers of block devices (`st_rdev`): the file systems that this host has mounted from them, or
    /// from what stands on them, are frozen.
    pub devices: Vec<u64>,
    /// Files and folders, there or to come, that are written to or looked for meanwhile: the file systems
    /// that hold them are not frozen, nor are those that hold this host's own.
    pub needed: Vec<PathBuf>,
    /// How long each command may take, and how long file systems may stay frozen.
    pub longest: Duration,
}

/// What tools need that make snapshots and thaw: a file system that holds one of these is not frozen.
const NEEDED: [&str; 7] =
    ["/", "/run", "/usr", "/etc/lvm", "/var/lib", "/proc/self/fd/1", "/proc/self/fd/2"];

impl Freeze {
    /// Where the file systems are mounted that are to be frozen; says of which it spares.
    fn mounts(&self, observer: &dyn Observer) -> Result<Vec<PathBuf>> {
        if self.devices.is_empty() {
            return Ok(Vec::new());
        }
        let needed: Vec<PathBuf> =
            NEEDED.iter().map(PathBuf::from).chain(self.needed.iter().cloned()).collect();
        let found = mounts::freezable(&self.devices, &needed)
            .map_err(|error| Error::io("cannot find out what is mounted", "/proc", error))?;
        for (at, path) in found.spared {
            let (at, path) = (at.display(), path.display());
            observer.notice(&format!("the file system at {at} is not frozen: it holds {path}"));
        }
        Ok(found.mounts)
    }
}

/// Runs `take` while everything rests. When this returns, all of it goes on.
///
/// # Errors
/// What failed, of `take` first. What `take` made is not to be used then: it may be of no single instant.
pub fn during<T>(
    freeze: &Freeze,
    observer: &dyn Observer,
    cancel: &Cancel,
    take: impl FnOnce() -> Result<T>,
) -> Result<T> {
    let mounts = freeze.mounts(observer)?;
    if freeze.command.is_none() && freeze.thaw.is_none() && mounts.is_empty() {
        return take();
    }
    std::thread::scope(|scope| {
        let mut guard = Guard::start(freeze, &mounts, scope)?;
        let taken = guard.wait_frozen(cancel).and_then(|()| take());
        match (taken, guard.thaw()) {
            (Ok(taken), Ok(())) => Ok(taken),
            (Ok(_), Err(error)) => Err(error),
            (Err(error), thawed) => {
                if let Err(left) = thawed {
                    observer.notice(&left.to_string());
                }
                Err(error)
            }
        }
    })
}

/// A guard that was started. Whoever drops it lets it thaw.
struct Guard<'a> {
    freeze: &'a Freeze,
    mounts: &'a [PathBuf],
    child: Child,
    answers: Receiver<String>,
    /// The first thing that went wrong.
    trouble: Option<Error>,
}

impl<'a> Guard<'a> {
    fn start<'scope>(
        freeze: &'a Freeze,
        mounts: &'a [PathBuf],
        scope: &'scope Scope<'scope, '_>,
    ) -> Result<Guard<'a>> {
        let failed = |error| Error::io("cannot run", "/bin/sh", error);
        let mut command = Command::new("/bin/sh");
        command.args(["-c", SCRIPT, "voltar-freeze"]);
        command.arg(freeze.longest.as_secs().max(1).to_string());
        for words in [&freeze.command, &freeze.thaw] {
            command.arg(words.as_deref().unwrap_or_default());
        }
        command.args(mounts);
        // A Ctrl-C is meant for us.
        command.process_group(0).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().map_err(failed)?;
        let (sender, answers) = unbounded();
        let stdout = child.stdout.take();
        // Should there be no thread, the guard goes, and with it the end of its pipe: it thaws.
        let guard = Guard { freeze, mounts, child, answers, trouble: None };
        threads::start(scope, "guard", move || read(stdout, &sender))?;
        Ok(guard)
    }

    /// Waits until everything rests.
    fn wait_frozen(&mut self, cancel: &Cancel) -> Result<()> {
        loop {
            match self.answers.recv_timeout(NAP) {
                Ok(answer) if answer == "frozen" => return Ok(()),
                Ok(answer) => match self.trouble_of(&answer) {
                    Some(trouble) => return Err(trouble),
                    None => continue,
                },
                Err(RecvTimeoutError::Timeout) => cancel.check()?,
                Err(RecvTimeoutError::Disconnected) => return Err(killed()),
            }
        }
    }

    /// Has the guard thaw, and waits for it.
    fn thaw(&mut self) -> Result<()> {
        // The end of the pipe is what it waits for.
        drop(self.child.stdin.take());
        let mut is_done = false;
        while let Ok(answer) = self.answers.recv() {
            is_done |= answer == "done";
            let trouble = self.trouble_of(&answer);
            self.trouble = self.trouble.take().or(trouble);
        }
        // It closed its end: it is over.
        let _ = self.child.wait();
        match is_done {
            true => self.trouble.take().map_or(Ok(()), Err),
            false => {
                self.thaw_without_it();
                Err(killed())
            }
        }
    }

    /// Does what the guard can no longer do. What was never frozen complains, which is no matter.
    fn thaw_without_it(&self) {
        for mount in self.mounts {
            let _ = Tool::new("fsfreeze").arg("--unfreeze").arg(mount).run();
        }
        if let Some(thaw) = &self.freeze.thaw {
            let _ = Tool::new("/bin/sh").args(["-c", thaw]).run();
        }
    }

    /// What an answer of the guard says went wrong.
    fn trouble_of(&self, answer: &str) -> Option<Error> {
        let (what, rest) = answer.split_once(' ').unwrap_or((answer, ""));
        let command = |words: &Option<String>| words.clone().unwrap_or_default();
        let mount = |number: &str| {
            let mount = number.parse().ok().and_then(|number: usize| self.mounts.get(number));
            mount.map(|mount| mount.display().to_string()).unwrap_or_default()
        };
        let trouble = |message: String| Error::new(ErrorKind::Io, message);
        let seconds = self.freeze.longest.as_secs();
        match (what, rest.split_once(' ')) {
            ("failed", Some(("command", status))) => Some(
                trouble(format!("the command that freezes failed ({})", ended(status, seconds)))
                    .on(command(&self.freeze.command))
                    .meaning("no snapshot was made"),
            ),
            ("failed", Some(("mount", number))) => Some(
                trouble("the file system cannot be frozen".into())
                    .on(mount(number))
                    .meaning("no snapshot was made")
                    .hint("see what is said above; without freezing, use --fs-freeze off"),
            ),
            ("late", _) => Some(
                trouble(format!("the snapshots took longer than {seconds} s, and all was thawed"))
                    .meaning("the snapshots are not of one instant, and were not used")
                    .hint("run this again when less is going on; or use --fs-freeze off"),
            ),
            ("left", _) => Some(
                trouble("the file system could not be thawed".into())
                    .on(mount(rest))
                    .hint("run `fsfreeze --unfreeze` on it"),
            ),
            ("thaw", _) => Some(
                trouble(format!("the command that thaws failed ({})", ended(rest, seconds)))
                    .on(command(&self.freeze.thaw))
                    .hint("see that your applications go on"),
            ),
            _ => None,
        }
    }
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        // Over already, but after a panic.
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

/// How a command ended, by its status as a shell has it.
fn ended(status: &str, seconds: u64) -> String {
    match status {
        // What `timeout` says.
        "124" | "137" => format!("not over after {seconds} s"),
        status => format!("exit status {status}"),
    }
}

fn killed() -> Error {
    Error::new(ErrorKind::Io, "the guard that thaws was killed, and voltar thawed in its place")
        .meaning("the snapshots may not be of one instant, and were not used")
        .hint("run this again")
}

/// Hands on what the guard says, line by line, until it says no more.
fn read(stdout: Option<ChildStdout>, answers: &Sender<String>) {
    let lines = stdout.into_iter().flat_map(|stdout| BufReader::new(stdout).lines());
    for line in lines.map_while(std::io::Result::ok) {
        if answers.send(line).is_err() {
            return;
        }
    }
}
