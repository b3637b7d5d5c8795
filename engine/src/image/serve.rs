//! `qemu-nbd` on a socket of its own, for one image and one run.
//!
//! It is started behind a shell that ends it, and takes its socket away, once voltar has ended,
//! however that came about.

use std::ffi::OsString;
use std::fs::DirBuilder;
use std::io::Read;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::cancel::Cancel;
use crate::error::{Error, ErrorKind, Result};
use crate::host::command::Tool;
use crate::io::IoEngine;
use crate::nbd::uri::Endpoint;
use crate::nbd::{NbdDevice, Uri};

/// What the shell does.
const SCRIPT: &str = include_str!("serve.sh");
/// Where sockets are made: a path that is short enough for one (`unix(7)`).
const SOCKETS: &str = "/tmp";
/// How long the server may take to listen: an image on a sleeping disk.
const START: Duration = Duration::from_secs(60);
/// How long it may take to end: it writes what it has of an image's metadata.
const END: Duration = Duration::from_secs(120);
/// How long is waited for an end that comes by itself.
const FAREWELL: Duration = Duration::from_secs(2);
const NAP: Duration = Duration::from_millis(5);
/// Most bytes of its complaints that are repeated.
const COMPLAINTS_LEN_MAX: u64 = 4096;

/// Whether an image is served to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// To be read.
    Read,
    /// To be written.
    Write,
}

/// A server that runs. Dropping it ends it.
#[derive(Debug)]
pub struct Service {
    /// The shell, and its input: the end of that is the end of the server.
    shell: Child,
    input: Option<ChildStdin>,
    complaints: Option<JoinHandle<String>>,
    socket: PathBuf,
    /// The image, for messages.
    label: String,
    mode: Mode,
}

impl Service {
    /// Serves `image`, words of `qemu-nbd` that say what to open and how. `label` is what messages
    /// call it.
    ///
    /// # Errors
    /// `Unsupported` if there is no `qemu-nbd`; if it cannot open the image, with its own words.
    pub fn start(image: &[OsString], mode: Mode, label: &str, cancel: &Cancel) -> Result<Service> {
        let folder = make_folder()?;
        let socket = folder.join("nbd");
        let mut command = Command::new("/bin/sh");
        command.args(["-c", SCRIPT, "voltar-serve"]).arg(&folder).arg("qemu-nbd");
        command.args(["--persistent", "--shared=8", "--socket"]).arg(&socket);
        if mode == Mode::Read {
            command.arg("--read-only");
        }
        let tool = Tool::new("/bin/sh").into_command();
        command.envs(tool.get_envs().filter_map(|(name, value)| Some((name, value?))));
        command.args(image).process_group(0);
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut shell = command.spawn().map_err(|error| {
            // It is empty, and nobody else's.
            let _ = std::fs::remove_dir(&folder);
            Error::io("cannot run", "/bin/sh", error)
        })?;
        let (input, stderr) = (shell.stdin.take(), shell.stderr.take());
        let read = move || {
            let mut text = Vec::new();
            if let Some(mut stderr) = stderr {
                // What was read until an error is what there is to say.
                let _ = stderr.by_ref().take(COMPLAINTS_LEN_MAX).read_to_end(&mut text);
                let _ = std::io::copy(&mut stderr, &mut std::io::sink());
            }
            String::from_utf8_lossy(&text).trim().replace('\n', "; ")
        };
        let complaints = std::thread::Builder::new().name("qemu-nbd".to_owned()).spawn(read);
        let complaints = complaints
            .map_err(|error| Error::io("cannot start a thread for", "qemu-nbd", error))?;
        let label = label.to_owned();
        let complaints = Some(complaints);
        let mut service = Service { shell, input, complaints, socket, label, mode };
        service.wait_for_socket(cancel)?;
        Ok(service)
    }

    fn wait_for_socket(&mut self, cancel: &Cancel) -> Result<()> {
        let started = Instant::now();
        while !listens(&self.socket) {
            cancel.check()?;
            if let Ok(Some(_)) = self.shell.try_wait() {
                return Err(self.failure("qemu-nbd does not open the image"));
            }
            if started.elapsed() > START {
                return Err(self.failure("qemu-nbd does not listen"));
            }
            std::thread::sleep(NAP);
        }
        Ok(())
    }

    /// An error in the server's own words; the server is ended.
    fn failure(&mut self, message: &str) -> Error {
        self.input = None;
        // One that hangs in the kernel says nothing any more.
        let complaints = match self.ends_within(FAREWELL) {
            true => self.complaints.take().and_then(|it| it.join().ok()).unwrap_or_default(),
            false => "it does not end either".to_owned(),
        };
        let kind =
            if complaints.contains("not found") { ErrorKind::Unsupported } else { ErrorKind::Io };
        let hint = match (kind, complaints.contains(" lock")) {
            (ErrorKind::Unsupported, _) => "install it (Debian: qemu-utils)",
            (_, true) => {
                "a running VM has it open: stop the VM, or back it up through its QEMU or libvirt"
            }
            _ => "see whether `qemu-img check` finds the image whole",
        };
        Error::new(kind, message).on(&self.label).because(complaints).hint(hint)
    }

    /// Connects to it.
    ///
    /// # Errors
    /// As [`NbdDevice::connect`]; if the server has ended, in its own words.
    pub fn connect(&mut self, io: IoEngine, cancel: &Cancel) -> Result<NbdDevice> {
        let endpoint = Endpoint::Unix(self.socket.clone());
        let uri = Uri { endpoint, export: String::new(), tls: None };
        NbdDevice::connect_once(&uri, io, cancel)
            .map(|device| device.with_label(&self.label))
            .map_err(|error| match self.ends_within(FAREWELL) {
                // It listens before it opens the image.
                true => self.failure("qemu-nbd does not open the image"),
                false => {
                    Error::new(error.kind(), "cannot reach qemu-nbd").on(&self.label).because(error)
                }
            })
    }

    fn ends_within(&mut self, patience: Duration) -> bool {
        let started = Instant::now();
        while matches!(self.shell.try_wait(), Ok(None)) {
            if started.elapsed() > patience {
                return false;
            }
            std::thread::sleep(NAP);
        }
        true
    }

    /// Ends it, and waits until it has closed the image.
    ///
    /// # Errors
    /// If it does not end, or says that something went wrong.
    pub fn stop(mut self) -> Result<()> {
        self.input = None;
        if !self.ends_within(END) {
            return Err(Error::new(ErrorKind::Io, "qemu-nbd does not end")
                .on(&self.label)
                .hint("see what it waits for, and end it before the image is used"));
        }
        match self.shell.wait() {
            Ok(status) if status.success() || self.mode == Mode::Read => Ok(()),
            _ => Err(self.failure("qemu-nbd did not close the image as it should")),
        }
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // The shell ends the server and goes by itself; only who stops it in order waits for that.
        self.input = None;
        self.ends_within(FAREWELL);
    }
}

/// A folder of our own, which nobody else may enter.
fn make_folder() -> Result<PathBuf> {
    let name = format!("voltar-{}-{:08x}", std::process::id(), rand::random::<u32>());
    let folder = Path::new(SOCKETS).join(name);
    DirBuilder::new().mode(0o700).create(&folder).map_err(|error| {
        Error::io("cannot make a folder for a socket", folder.display().to_string(), error)
    })?;
    Ok(folder)
}
/// Whether somebody listens at `socket`, which is there a moment earlier. What else may be wrong with it, the
/// first connection tells.
fn listens(socket: &Path) -> bool {
    let is_early = |error: std::io::Error| {
        matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::ConnectionRefused)
    };
    !UnixStream::connect(socket).is_err_and(is_early)
}
