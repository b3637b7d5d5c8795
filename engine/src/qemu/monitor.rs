//! QEMU's monitor protocol (`docs/interop/qmp-spec.rst`): a line of JSON each way.

use std::io::{IoSlice, Read, Write};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::error::{Error, ErrorKind, Result};
use crate::host::unix;

/// How long QEMU may take to greet: it serves one client at a time, and lets others wait without a word.
const GREETING: Duration = Duration::from_secs(5);
/// How long a command may take: some wait until what is in flight to a disk is done.
const ANSWER: Duration = Duration::from_secs(60);
/// Longest line that is taken, in bytes: a hundred disks with all their nodes come to less than one MiB.
const LINE_LEN_MAX: usize = 4 << 20;
/// Bytes that are read at a time.
const READ_LEN: usize = 64 << 10;
/// What keeps QEMU alive when voltar is killed with a command under way. Without it QEMU takes no input while it
/// executes one, and its main thread, when it cannot answer, closes the connection itself (`tcp_chr_write`,
/// chardev/char-socket.c) and frees the parser that the monitor's own thread is still in
/// (`monitor_qmp_event`, monitor/qmp.c): seen to crash 7.2. With it that thread closes, and nobody else.
const OUT_OF_BAND: &str = "oob";
/// What QEMU calls its events of a VM that runs on, and of one that stands.
const RESUMED: &str = "RESUME";
const STOPPED: &str = "STOP";

/// A connection to a monitor, ready for commands.
#[derive(Debug)]
pub struct Monitor {
    stream: UnixStream,
    /// The socket's path, for messages.
    label: String,
    /// Bytes of lines that were not yet taken.
    unread: Vec<u8>,
    next_id: u64,
    version: Version,
    /// How often the VM was told to run on, and to stand, by anybody.
    turns: Turns,
    /// Whether QEMU closed the connection.
    is_gone: bool,
}

/// How often a VM was told to run on, and to stand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Turns {
    /// To run on.
    pub resumed: u64,
    /// To stand.
    pub stopped: u64,
}

/// QEMU's version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub struct Version {
    /// 7 of 7.2.22.
    pub major: u32,
    /// 2 of 7.2.22.
    pub minor: u32,
    /// 22 of 7.2.22.
    pub micro: u32,
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// QEMU says no.
    #[error("QEMU refuses {command}: {why}")]
    Refused {
        /// The command.
        command: String,
        /// QEMU's words.
        why: String,
    },
    /// The monitor is not what it should be, or gone.
    #[error("QEMU does not answer {command}")]
    Lost {
        /// The command.
        command: String,
        /// What happened.
        source: std::io::Error,
    },
}

/// One line of QEMU's.
#[derive(Debug, Deserialize)]
struct Line {
    id: Option<Value>,
    #[serde(rename = "return")]
    answer: Option<Value>,
    error: Option<Complaint>,
    event: Option<String>,
    #[serde(rename = "QMP")]
    greeting: Option<Greeting>,
}

#[derive(Debug, Deserialize)]
struct Complaint {
    desc: String,
}

#[derive(Debug, Deserialize)]
struct Greeting {
    version: PackageVersion,
    #[serde(default)]
    capabilities: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct PackageVersion {
    qemu: Version,
}

impl Monitor {
    /// Connects to the monitor that listens at `socket`.
    ///
    /// # Errors
    /// `NotFound` if there is none; `Busy` if it serves somebody else.
    pub fn connect(socket: &Path) -> Result<Monitor> {
        let label = socket.display().to_string();
        let stream = unix::connect(socket, GREETING).map_err(|error| {
            if error.kind() == std::io::ErrorKind::TimedOut {
                return busy(&label);
            }
            Error::io("cannot reach QEMU's monitor", &*label, error)
                .meaning("the VM was not touched")
                .hint("see that the VM runs, and was started with `-qmp unix:PATH,server=on,wait=off`")
        })?;
        Monitor::on(stream, &label)
    }

    /// Begins to talk on a connection; `label` is what messages call it.
    ///
    /// # Errors
    /// As [`connect`](Monitor::connect).
    pub fn on(stream: UnixStream, label: &str) -> Result<Monitor> {
        let label = label.to_owned();
        let version = Version { major: 0, minor: 0, micro: 0 };
        let unread = Vec::new();
        let mut monitor = Monitor {
            stream,
            label,
            unread,
            next_id: 0,
            version,
            turns: Turns::default(),
            is_gone: false,
        };
        let Greeting { version, capabilities } = monitor.greeted()?;
        monitor.version = version.qemu;
        let is_offered = |name: &&str| capabilities.iter().any(|offered| offered == name);
        let enabled: Vec<&str> = [OUT_OF_BAND].into_iter().filter(is_offered).collect();
        monitor
            .call("qmp_capabilities", json!({ "enable": enabled }))
            .map_err(|error| monitor.failed(error))?;
        Ok(monitor)
    }

    fn greeted(&mut self) -> Result<Greeting> {
        let end = Instant::now() + GREETING;
        match self.next_line(end) {
            Ok(Line { greeting: Some(greeting), .. }) => Ok(greeting),
            Ok(_) => Err(Error::new(ErrorKind::Io, "who listens there is not QEMU's monitor")
                .on(&*self.label)
                .hint("name the socket of `-qmp`, not that of `-monitor` or of the guest agent")),
            Err(error) if error.kind() == std::io::ErrorKind::TimedOut => Err(busy(&self.label)),
            Err(error) => Err(Error::io("QEMU's monitor does not greet", &*self.label, error)),
        }
    }

    /// QEMU's version.
    pub fn version(&self) -> Version {
        self.version
    }

    /// The socket's path.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// How often the VM was told to run on, and to stand, since this began to listen, by anybody.
    pub fn turns(&self) -> Turns {
        self.turns
    }

    /// Whether QEMU closed the connection, as it does when it ends.
    pub fn is_gone(&self) -> bool {
        self.is_gone
    }

    /// The connection, for who must say the last word on it.
    ///
    /// # Errors
    /// Of the system.
    pub fn dup(&self) -> std::io::Result<OwnedFd> {
        self.stream.try_clone().map(OwnedFd::from)
    }

    /// The connection's descriptor.
    pub fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// Has QEMU execute `command`.
    ///
    /// # Errors
    /// `Refused` with QEMU's words; `Lost` if there is no answer.
    pub fn call(&mut self, command: &str, arguments: Value) -> Result<Value, Refusal> {
        self.call_with(command, arguments, None)
    }

    /// Asks QEMU what it is not to refuse.
    ///
    /// # Errors
    /// As [`call`](Monitor::call), in words.
    pub fn ask(&mut self, command: &str, arguments: Value) -> Result<Value> {
        self.call(command, arguments).map_err(|refusal| self.failed(refusal))
    }

    /// Has QEMU do what is not to fail.
    ///
    /// # Errors
    /// As [`ask`](Monitor::ask).
    pub fn tell(&mut self, command: &str, arguments: Value) -> Result<()> {
        self.ask(command, arguments).map(drop)
    }

    /// Has QEMU execute `command`, which takes a descriptor along.
    ///
    /// # Errors
    /// As [`call`](Monitor::call).
    pub fn call_with_fd(
        &mut self,
        command: &str,
        arguments: Value,
        fd: BorrowedFd<'_>,
    ) -> Result<Value, Refusal> {
        self.call_with(command, arguments, Some(fd))
    }

    #[allow(clippy::needless_pass_by_value, reason = "callers write it as a literal")]
    fn call_with(
        &mut self,
        command: &str,
        arguments: Value,
        fd: Option<BorrowedFd<'_>>,
    ) -> Result<Value, Refusal> {
        let lost = |source| Refusal::Lost { command: command.to_owned(), source };
        self.next_id += 1;
        let id = self.next_id;
        let line = format!("{}\n", json!({"execute": command, "arguments": arguments, "id": id}));
        let end = Instant::now() + ANSWER;
        if let Err(error) = self.send(line.as_bytes(), fd) {
            self.is_gone |= error.kind() == std::io::ErrorKind::BrokenPipe;
            return Err(lost(error));
        }
        loop {
            let line = self.next_line(end).map_err(lost)?;
            if line.id != Some(id.into()) {
                continue;
            }
            return match (line.answer, line.error) {
                (_, Some(Complaint { desc: why })) => {
                    Err(Refusal::Refused { command: command.to_owned(), why })
                }
                (Some(answer), None) => Ok(answer),
                (None, None) => Err(lost(invalid("an answer without a result"))),
            };
        }
    }

    fn send(&mut self, line: &[u8], fd: Option<BorrowedFd<'_>>) -> std::io::Result<()> {
        self.stream.set_write_timeout(Some(ANSWER))?;
        let Some(fd) = fd else { return self.stream.write_all(line) };
        let fds = [fd.as_raw_fd()];
        let parts = [IoSlice::new(line)];
        let rights = [ControlMessage::ScmRights(&fds)];
        let flags = MsgFlags::MSG_NOSIGNAL;
        let sent = sendmsg::<()>(self.stream.as_raw_fd(), &parts, &rights, flags, None)?;
        self.stream.write_all(&line[sent..])
    }

    /// The next line, its event counted.
    fn next_line(&mut self, end: Instant) -> std::io::Result<Line> {
        loop {
            if let Some(at) = self.unread.iter().position(|byte| *byte == b'\n') {
                let bytes: Vec<u8> = self.unread.drain(..=at).collect();
                let line = parse(&bytes)?;
                self.turns.resumed += u64::from(line.event.as_deref() == Some(RESUMED));
                self.turns.stopped += u64::from(line.event.as_deref() == Some(STOPPED));
                return Ok(line);
            }
            if self.unread.len() > LINE_LEN_MAX {
                return Err(invalid("its line does not end"));
            }
            self.read_more(end)?;
        }
    }

    fn read_more(&mut self, end: Instant) -> std::io::Result<()> {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(std::io::ErrorKind::TimedOut.into());
        }
        self.stream.set_read_timeout(Some(left))?;
        let mut bytes = [0; READ_LEN];
        match self.stream.read(&mut bytes) {
            Ok(0) => {
                self.is_gone = true;
                Err(std::io::ErrorKind::UnexpectedEof.into())
            }
            Ok(count) => {
                self.unread.extend_from_slice(&bytes[..count]);
                Ok(())
            }
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => Ok(()),
            // What a time limit on a socket ends with.
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                Err(std::io::ErrorKind::TimedOut.into())
            }
            Err(error) => Err(error),
        }
    }

    /// A command's failure, in words.
    pub fn failed(&self, refusal: Refusal) -> Error {
        let what = match &refusal {
            Refusal::Refused { .. } => "QEMU does not do what a backup needs",
            Refusal::Lost { .. } => "QEMU's monitor was lost",
        };
        Error::new(ErrorKind::Io, what).on(&*self.label).because(refusal)
    }
}

fn busy(label: &str) -> Error {
    Error::new(ErrorKind::Busy, "QEMU's monitor serves somebody else, or hangs")
        .on(label)
        .meaning("the VM was not touched")
        .hint("give the VM a second monitor (another `-qmp`) for its backups")
}

fn parse(bytes: &[u8]) -> std::io::Result<Line> {
    serde_json::from_slice(bytes)
        .map_err(|error| invalid(&format!("its line is no answer: {error}")))
}

fn invalid(why: &str) -> std::io::Error {
    std::io::Error::new(std::io::ErrorKind::InvalidData, why)
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.micro)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GREETING_LINE: &str = r#"{"QMP": {"version": {"qemu": {"micro": 1, "minor": 2, "major": 8}}, "capabilities": []}}"#;

    /// A monitor whose QEMU says these lines, whatever it is told, and ends.
    fn says(lines: &[&str]) -> (Result<Monitor>, UnixStream) {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all((lines.join("\n") + "\n").as_bytes()).unwrap();
        theirs.shutdown(std::net::Shutdown::Write).unwrap();
        (Monitor::on(ours, "x"), theirs)
    }

    #[test]
    fn answers_are_told_from_events_and_from_those_of_others() {
        let (monitor, _qemu) = says(&[
            GREETING_LINE,
            r#"{"return": {}, "id": 1}"#,
            r#"{"event": "RESUME", "timestamp": {"seconds": 1, "microseconds": 2}}"#,
            r#"{"return": 7, "id": "voltar-rescue"}"#,
            r#"{"error": {"class": "GenericError", "desc": "JSON parse error"}}"#,
            r#"{"return": [2], "id": 2}"#,
            r#"{"error": {"class": "GenericError", "desc": "no such node"}, "id": 3}"#,
            r#"{"id": 4}"#,
        ]);
        let mut monitor = monitor.unwrap();
        assert_eq!(monitor.version().to_string(), "8.2.1");
        assert_eq!(monitor.call("a", json!({})).unwrap(), json!([2]));
        assert_eq!(monitor.turns(), Turns { resumed: 1, stopped: 0 });
        let refused = monitor.call("b", json!({})).unwrap_err();
        assert_eq!(refused.to_string(), "QEMU refuses b: no such node");
        assert!(matches!(monitor.call("c", json!({})), Err(Refusal::Lost { .. })));
        assert!(matches!(monitor.call("d", json!({})), Err(Refusal::Lost { .. })), "it is gone");
    }

    #[test]
    fn what_a_monitor_does_not_offer_is_not_enabled() {
        for (offered, enabled) in [("[]", json!([])), (r#"["new", "oob"]"#, json!(["oob"]))] {
            let greeting = GREETING_LINE.replace("[]", offered);
            let (monitor, qemu) = says(&[&greeting, r#"{"return": {}, "id": 1}"#]);
            monitor.unwrap();
            let mut said = String::new();
            std::io::BufRead::read_line(&mut std::io::BufReader::new(qemu), &mut said).unwrap();
            let said: Value = serde_json::from_str(&said).unwrap();
            assert_eq!(said["execute"], "qmp_capabilities");
            assert_eq!(said["arguments"]["enable"], enabled);
        }
    }

    #[test]
    fn whoever_is_no_monitor_is_told_so() {
        for lines in [&["SSH-2.0"][..], &[r#"{"return": {}}"#], &["[]"], &[""]] {
            assert!(says(lines).0.is_err(), "{lines:?}");
        }
    }

    #[test]
    fn a_line_without_an_end_is_not_kept_for_ever() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let writer = std::thread::spawn(move || {
            let piece = vec![b'x'; 1 << 20];
            let mut written = 0;
            while theirs.write_all(&piece).is_ok() {
                written += piece.len();
            }
            written
        });
        let error = Monitor::on(ours, "x").unwrap_err();
        assert!(format!("{error:?}").contains("does not end"), "{error:?}");
        assert!(writer.join().unwrap() < 2 * LINE_LEN_MAX);
    }
}
