//! Sees that a VM runs on, whatever becomes of voltar.
//!
//! A VM that was stopped, or whose file systems were frozen, must not stay so. Before either is done, a
//! guard is started: a shell in a process group of its own that minds no signals. It holds the very
//! connections on which voltar talks to QEMU and to the guest agent, and so needs none of its own, which
//! QEMU would not serve. It waits for a word of voltar's; without one it has the VM run on.

use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::error::{Error, ErrorKind, Result};

/// What the guard does.
const SCRIPT: &str = include_str!("guard.sh");
/// How long a VM may stand still; a guard that has waited so long acts.
const LONGEST: Duration = Duration::from_secs(120);
/// Has the VM run on, and takes away what says that we had stopped it. The last answer bears the id.
const RESUME: &str = r#"{"execute":"cont"}
{"execute":"blockdev-del","arguments":{"node-name":"voltar-stopped"},"id":"voltar-rescue"}"#;
/// Has the guest thaw.
const THAW: &str = r#"{"execute":"guest-fsfreeze-thaw","id":"voltar-rescue"}"#;

/// What must not last.
#[derive(Debug, Default)]
pub struct Watched {
    /// The monitor's connection, if the VM is to be stopped.
    pub monitor: Option<OwnedFd>,
    /// The agent's, if file systems are to be frozen.
    pub agent: Option<OwnedFd>,
}

/// A guard that watches. Dropped without a word, it acts.
#[derive(Debug)]
pub struct Guard {
    child: Child,
}

impl Guard {
    /// Starts one.
    ///
    /// # Errors
    /// `Io` if the shell cannot be run.
    pub fn start(watched: Watched) -> Result<Guard> {
        let line = |fd: &Option<OwnedFd>, line: &'static str| match fd {
            Some(_) => line,
            None => "",
        };
        let (resume, thaw) = (line(&watched.monitor, RESUME), line(&watched.agent, THAW));
        let stdio = |fd: Option<OwnedFd>| fd.map_or_else(Stdio::null, Stdio::from);
        let mut command = Command::new("/bin/sh");
        command.args(["-c", SCRIPT, "voltar-guard"]);
        command.arg(LONGEST.as_secs().to_string()).args([resume, thaw]);
        command.stdin(Stdio::piped()).stdout(stdio(watched.monitor)).stderr(stdio(watched.agent));
        let child = command.process_group(0).spawn();
        let child = child.map_err(|error| Error::io("cannot run", "/bin/sh", error))?;
        Ok(Guard { child })
    }

    /// Says that all is well: the VM runs, and nothing is frozen.
    ///
    /// # Errors
    /// If the guard had acted before, or was killed: the instant is not to be trusted then.
    pub fn dismiss(mut self) -> Result<()> {
        let said = self.child.stdin.take().map(|mut stdin| stdin.write_all(b"well\n"));
        match (said, self.child.wait()) {
            (Some(Ok(())), Ok(status)) if status.success() => Ok(()),
            _ => Err(Error::new(ErrorKind::Io, "the guard of the VM was killed, or lost patience")
                .meaning("the disks may not be of one instant, and were not used")
                .hint("run this again")),
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        // Dismissed already, or else it acts now.
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}
