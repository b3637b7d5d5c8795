//! The guest agent (`docs/interop/qemu-ga-ref`): brings the guest's file systems to rest.

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::host::unix;

/// How long an agent may take to show that it is there.
const PRESENCE: Duration = Duration::from_secs(3);
/// How long file systems may take to come to rest, or to go on.
const ANSWER: Duration = Duration::from_secs(30);
/// Longest answer that is taken, in bytes.
const ANSWER_LEN_MAX: usize = 1 << 20;
/// What ends whatever was half said before (`guest-sync-delimited`).
const SENTINEL: u8 = 0xff;

/// A channel to an agent that answers.
#[derive(Debug)]
pub struct Agent {
    stream: UnixStream,
    unread: Vec<u8>,
}

impl Agent {
    /// The agent behind `socket`.
    ///
    /// # Errors
    /// In words, why there is none to talk to.
    pub fn connect(socket: &Path) -> Result<Agent, String> {
        let said = |error: std::io::Error| match error.kind() {
            std::io::ErrorKind::TimedOut => "it serves somebody else, or hangs".to_owned(),
            _ => format!("it cannot be reached: {error}"),
        };
        let stream = unix::connect(socket, PRESENCE).map_err(said)?;
        stream.set_write_timeout(Some(PRESENCE)).map_err(said)?;
        let mut agent = Agent { stream, unread: Vec::new() };
        agent.synchronise(PRESENCE)?;
        Ok(agent)
    }

    /// Passes over what was left: answers to an earlier client, or late ones to us.
    fn synchronise(&mut self, patience: Duration) -> Result<(), String> {
        let id = rand::random::<u32>();
        let line = json!({"execute": "guest-sync-delimited", "arguments": {"id": id}});
        // The agent complains of the sentinel, in an answer of its own: here it is passed over as well.
        let sent = self.stream.write_all(&[SENTINEL]).and_then(|()| self.send(&line));
        sent.map_err(|error| error.to_string())?;
        let end = Instant::now() + patience;
        loop {
            match self.answer(end) {
                Ok(answer) if answer["return"] == id => return Ok(()),
                Ok(_) => {}
                Err(error) => return Err(format!("it does not answer: {error}")),
            }
        }
    }

    /// The connection, for who must say the last word on it.
    ///
    /// # Errors
    /// Of the system.
    pub fn dup(&self) -> std::io::Result<OwnedFd> {
        self.stream.try_clone().map(OwnedFd::from)
    }

    /// Freezes all file systems that can be; returns how many.
    ///
    /// # Errors
    /// In words.
    pub fn freeze(&mut self) -> Result<u64, String> {
        self.call("guest-fsfreeze-freeze")
    }

    /// Thaws them. A freeze that is not yet answered is waited for first, so that no answer is taken for
    /// another's.
    ///
    /// # Errors
    /// In words.
    pub fn thaw(&mut self) -> Result<u64, String> {
        self.synchronise(2 * ANSWER)?;
        self.call("guest-fsfreeze-thaw")
    }

    fn call(&mut self, command: &str) -> Result<u64, String> {
        self.send(&json!({"execute": command})).map_err(|error| error.to_string())?;
        let answer = self.answer(Instant::now() + ANSWER).map_err(|error| error.to_string())?;
        match (answer["return"].as_u64(), answer["error"]["desc"].as_str()) {
            (Some(count), _) => Ok(count),
            (None, why) => Err(why.unwrap_or("it answers nonsense").to_owned()),
        }
    }

    fn send(&mut self, line: &Value) -> std::io::Result<()> {
        self.stream.write_all(format!("{line}\n").as_bytes())
    }

    fn answer(&mut self, end: Instant) -> std::io::Result<Value> {
        loop {
            if let Some(at) = self.unread.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.unread.drain(..=at).collect();
                let line: Vec<u8> = line.into_iter().filter(|byte| *byte != SENTINEL).collect();
                match serde_json::from_slice(&line) {
                    Ok(value) => return Ok(value),
                    // The end of something that an earlier client was told.
                    Err(_) => continue,
                }
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() || self.unread.len() > ANSWER_LEN_MAX {
                return Err(std::io::ErrorKind::TimedOut.into());
            }
            self.stream.set_read_timeout(Some(left))?;
            let mut bytes = [0; 4096];
            match self.stream.read(&mut bytes)? {
                0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
                count => self.unread.extend_from_slice(&bytes[..count]),
            }
        }
    }
}
