//! A monitor between voltar and QEMU that passes on what it likes: it refuses, lies, falls silent,
//! goes, or has voltar killed at a given command.

use std::io::{BufRead, BufReader, IoSlice, IoSliceMut, Write};
use std::net::Shutdown;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::cmsg_space;
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use nix::unistd::Pid;
use serde_json::{Value, json};
use voltar_tests::Scratch;
use voltar_tests::vm::{Vm, source};

/// When a command is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// Before QEMU gets it.
    Before,
    /// When QEMU has done it, before voltar gets to know.
    After,
}

/// What becomes of a command, or of what QEMU says to it.
#[derive(Clone, Debug)]
pub enum Act {
    /// It is passed on.
    Pass,
    /// An error goes back instead.
    Refuse,
    /// This goes back instead.
    Say(Value),
    /// A line that is no JSON goes back instead.
    Garble,
    /// Nothing goes back, ever.
    Swallow,
    /// The connection ends, on both sides.
    Close,
    /// voltar is killed, and then it is passed on: what was written is written.
    Kill,
}

/// Chooses, by the command's number in the conversation, and the answer if there is one.
type Script = dyn Fn(Moment, usize, &Value) -> Act + Send + Sync;

/// What both directions know.
struct Shared {
    script: Box<Script>,
    client: UnixStream,
    qemu: UnixStream,
    /// The commands so far, with their ids.
    commands: Mutex<Vec<(Value, String)>>,
    victim: Arc<(Mutex<Option<u32>>, Condvar)>,
}

/// A proxy. What the script says is about the first connection; later ones are passed on as they are.
pub struct Proxy {
    socket: PathBuf,
    is_over: Arc<AtomicBool>,
    victim: Arc<(Mutex<Option<u32>>, Condvar)>,
    worker: Option<JoinHandle<Vec<String>>>,
}

impl Proxy {
    /// A proxy of a machine's monitor.
    pub fn start(
        scratch: &Scratch,
        vm: &Vm,
        script: impl Fn(Moment, usize, &Value) -> Act + Send + Sync + 'static,
    ) -> Proxy {
        let socket = scratch.path("proxy.qmp");
        drop(std::fs::remove_file(&socket));
        let listener = UnixListener::bind(&socket).unwrap();
        let victim = Arc::new((Mutex::new(None), Condvar::new()));
        let is_over = Arc::new(AtomicBool::new(false));
        let (theirs, over) = (Arc::clone(&victim), Arc::clone(&is_over));
        let qemu = vm.socket().to_path_buf();
        listener.set_nonblocking(true).unwrap();
        let script: Box<Script> = Box::new(script);
        let worker = std::thread::spawn(move || {
            let mut script = script;
            let mut commands = None;
            loop {
                let Some(client) = accepted(&listener, &over) else {
                    return commands.unwrap_or_default();
                };
                let qemu = UnixStream::connect(&qemu).unwrap();
                let victim = Arc::clone(&theirs);
                let script: Box<Script> =
                    std::mem::replace(&mut script, Box::new(|_, _, _| Act::Pass));
                let shared = Shared { script, client, qemu, commands: Mutex::default(), victim };
                let said = converse(shared);
                commands.get_or_insert(said);
            }
        });
        Proxy { socket, is_over, victim, worker: Some(worker) }
    }

    /// The machine behind it.
    pub fn source(&self) -> String {
        source(&self.socket, None)
    }

    /// Whom [`Act::Kill`] kills.
    pub fn kills(&self, pid: u32) {
        *self.victim.0.lock().unwrap() = Some(pid);
        self.victim.1.notify_all();
    }

    /// Waits until the conversation is over; the commands of its first connection.
    pub fn end(mut self) -> Vec<String> {
        self.is_over.store(true, Ordering::Relaxed);
        self.worker.take().unwrap().join().unwrap()
    }
}

/// The next to connect, until all is over.
fn accepted(listener: &UnixListener, is_over: &AtomicBool) -> Option<UnixStream> {
    loop {
        match listener.accept() {
            Ok((client, _)) => {
                client.set_nonblocking(false).unwrap();
                return Some(client);
            }
            Err(_) if is_over.load(Ordering::Relaxed) => return None,
            Err(_) => std::thread::sleep(Duration::from_millis(2)),
        }
    }
}

/// Passes both ways until either side ends; the commands.
fn converse(shared: Shared) -> Vec<String> {
    std::thread::scope(|scope| {
        scope.spawn(|| {
            downwards(&shared);
            shared.close();
        });
        upwards(&shared);
        shared.close();
    });
    let commands = shared.commands.into_inner().unwrap();
    commands.into_iter().map(|(_, command)| command).collect()
}

/// From voltar, or its guard, to QEMU: lines, with the descriptors that come along.
fn upwards(shared: &Shared) {
    let (mut unread, mut fds): (Vec<u8>, Vec<RawFd>) = (Vec::new(), Vec::new());
    loop {
        while let Some(end) = unread.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = unread.drain(..=end).collect();
            let goes_on = shared.command(&line, &fds);
            fds.drain(..).for_each(|fd| nix::unistd::close(fd).unwrap());
            if !goes_on {
                return;
            }
        }
        let mut bytes = [0; 4096];
        let mut parts = [IoSliceMut::new(&mut bytes)];
        let mut space = cmsg_space!([RawFd; 4]);
        let from = shared.client.as_raw_fd();
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let Ok(got) = recvmsg::<()>(from, &mut parts, Some(&mut space), flags) else { return };
        for message in got.cmsgs().unwrap() {
            if let ControlMessageOwned::ScmRights(more) = message {
                fds.extend(more);
            }
        }
        let count = got.bytes;
        if count == 0 {
            return;
        }
        unread.extend_from_slice(&bytes[..count]);
    }
}

/// From QEMU to voltar.
fn downwards(shared: &Shared) {
    let mut lines = BufReader::new(&shared.qemu);
    loop {
        let mut line = Vec::new();
        match lines.read_until(b'\n', &mut line) {
            Ok(count) if count > 0 => {}
            _ => return,
        }
        let message: Value = serde_json::from_slice(&line).unwrap_or_default();
        let commands = shared.commands.lock().unwrap();
        let index = commands.iter().position(|(id, _)| !id.is_null() && *id == message["id"]);
        drop(commands);
        let goes_on = match index {
            Some(index) => {
                let act = (shared.script)(Moment::After, index, &message);
                shared.act(act, &message["id"], || shared.answer(&line))
            }
            None => shared.answer(&line),
        };
        if !goes_on {
            return;
        }
    }
}

impl Shared {
    /// Passes a command on, or not; whether the conversation goes on.
    fn command(&self, line: &[u8], fds: &[RawFd]) -> bool {
        let pass = || {
            let parts = [IoSlice::new(line)];
            let rights = [ControlMessage::ScmRights(fds)];
            let rights = if fds.is_empty() { &[][..] } else { &rights[..] };
            let flags = MsgFlags::MSG_NOSIGNAL;
            sendmsg::<()>(self.qemu.as_raw_fd(), &parts, rights, flags, None).is_ok()
        };
        // A guard's line begins with what ends any other.
        let Ok(message) = serde_json::from_slice::<Value>(line) else { return pass() };
        let name = message["execute"].as_str().unwrap_or_default().to_string();
        let mut commands = self.commands.lock().unwrap();
        let index = commands.len();
        commands.push((message["id"].clone(), name));
        drop(commands);
        self.act((self.script)(Moment::Before, index, &message), &message["id"], pass)
    }

    fn act(&self, act: Act, id: &Value, pass: impl FnOnce() -> bool) -> bool {
        let error = json!({ "class": "GenericError", "desc": "the test refuses" });
        let say = |value: Value| self.answer(format!("{value}\r\n").as_bytes());
        match act {
            Act::Pass => pass(),
            Act::Refuse => say(json!({ "id": id, "error": error })),
            Act::Say(value) => say(value),
            Act::Garble => self.answer(b"\"no answer\n"),
            Act::Swallow => true,
            Act::Close => false,
            Act::Kill => {
                self.kill();
                pass()
            }
        }
    }

    fn answer(&self, line: &[u8]) -> bool {
        // Whom it is for may be gone, and a guard still there.
        drop((&self.client).write_all(line));
        true
    }

    fn kill(&self) {
        let (victim, told) = &*self.victim;
        let patience = Duration::from_secs(10);
        let victim = victim.lock().unwrap();
        let (victim, _) = told.wait_timeout_while(victim, patience, |pid| pid.is_none()).unwrap();
        let pid = Pid::from_raw(victim.expect("somebody to kill") as i32);
        let _ = kill(pid, Signal::SIGKILL);
    }

    fn close(&self) {
        for side in [&self.client, &self.qemu] {
            drop(side.shutdown(Shutdown::Both));
        }
    }
}
