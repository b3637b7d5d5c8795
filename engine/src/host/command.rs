//! Runs one of the host's tools to its end.
//!
//! A tool is run in the C locale and in a process group of its own: a Ctrl-C is meant for us, and
//! what we began on the host is ended in order.

use std::ffi::OsStr;
use std::io::{self, BufRead, BufReader, Read};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::{ChildStdout, Command, ExitStatus, Stdio};
use std::thread;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, poll};

use crate::cancel::Cancel;
use crate::error::{Error, ErrorKind, Result};

/// Most bytes of a tool's answer that are read; more is an error.
const ANSWER_LEN_MAX: u64 = 64 << 20;
/// Most bytes of its complaints that are repeated.
const COMPLAINTS_LEN_MAX: u64 = 64 << 10;
/// Most bytes that are taken for one line of an answer.
const LINE_LEN_MAX: u64 = 64 << 10;

/// Where tools are looked for besides `PATH`, which lacks them in some sessions of root.
const SYSTEM_DIRECTORIES: &str = "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin";

/// How often a stop is looked for while a tool has nothing to say, in milliseconds.
const STOP_LOOKED_FOR_MS: u16 = 100;

/// What a tool writes, as it comes; an error as soon as a stop is asked for, even while the tool
/// says nothing.
#[derive(Debug)]
pub struct Output {
    pipe: ChildStdout,
    cancel: Cancel,
}

impl Output {
    /// Reads `pipe` until `cancel` is raised.
    pub fn new(pipe: ChildStdout, cancel: &Cancel) -> Output {
        Output { pipe, cancel: cancel.clone() }
    }
}

impl Read for Output {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        loop {
            if self.cancel.is_raised() {
                // Not `Interrupted`, which readers take for an invitation to try again.
                return Err(io::Error::other("a stop was asked for"));
            }
            let mut polled = [PollFd::new(self.pipe.as_fd(), PollFlags::POLLIN)];
            match poll(&mut polled, STOP_LOOKED_FOR_MS) {
                Ok(0) | Err(Errno::EINTR) => {}
                Ok(_) => return self.pipe.read(bytes),
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

/// A tool with its arguments, not yet run.
#[derive(Debug)]
pub struct Tool {
    command: Command,
    words: String,
}

/// How a tool ended.
#[derive(Debug)]
pub struct Ended {
    /// Its status.
    pub status: ExitStatus,
    /// What it wrote to standard output.
    pub answer: String,
    /// What it wrote to standard error, without blanks around it.
    pub complaints: String,
}

impl Tool {
    /// The tool of this name.
    pub fn new(name: &str) -> Tool {
        let mut command = Command::new(name);
        command.stdin(Stdio::null()).env("LC_ALL", "C").env("PATH", SYSTEM_DIRECTORIES);
        command.process_group(0);
        Tool { command, words: name.to_owned() }
    }

    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Tool {
        self.words.push(' ');
        self.words.push_str(&arg.as_ref().to_string_lossy());
        self.command.arg(arg);
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<S: AsRef<OsStr>>(self, args: impl IntoIterator<Item = S>) -> Tool {
        args.into_iter().fold(self, Tool::arg)
    }

    /// What it is, as one would type it.
    pub fn words(&self) -> &str {
        &self.words
    }

    /// The command, for who reads its output as it comes.
    pub fn into_command(self) -> Command {
        self.command
    }

    /// Runs it to its end, whatever the end.
    ///
    /// # Errors
    /// `Unsupported` if there is no such tool; if it cannot be started, or says too much.
    pub fn run(self) -> Result<Ended> {
        self.run_to(|answer| read(answer, ANSWER_LEN_MAX, false))
    }

    /// Runs it and hands on each line of its answer as it comes; of a line, so many bytes as are ever
    /// looked at. Stops when `cancel` is raised.
    ///
    /// # Errors
    /// As [`answer`](Tool::answer).
    pub fn each_line(self, cancel: &Cancel, mut each: impl FnMut(&str)) -> Result<()> {
        let words = self.words.clone();
        let ended = self.run_to(|answer| {
            let Some(answer) = answer else { return Ok(String::new()) };
            let mut answer = BufReader::new(Output::new(answer, cancel));
            let mut line = Vec::new();
            while answer.by_ref().take(LINE_LEN_MAX).read_until(b'\n', &mut line)? > 0 {
                each(&String::from_utf8_lossy(&line));
                line.clear();
            }
            Ok(String::new())
        })?;
        match ended.status.success() {
            true => Ok(()),
            false => Err(ended.failure(&words)),
        }
    }

    /// Runs it while `take` takes what it writes to standard output.
    fn run_to(
        mut self,
        take: impl FnOnce(Option<ChildStdout>) -> io::Result<String>,
    ) -> Result<Ended> {
        let failed = |words: &str, error: io::Error| match error.kind() {
            io::ErrorKind::NotFound => missing(words),
            _ => Error::io("cannot run", words, error),
        };
        let child = self.command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let mut child = child.map_err(|error| failed(&self.words, error))?;
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        // Both are read at once: a tool that fills one pipe would wait for ever while we wait for
        // the other.
        let (answer, complaints) = thread::scope(|scope| {
            let complaints = scope.spawn(|| read(stderr, COMPLAINTS_LEN_MAX, true));
            let answer = take(stdout);
            (answer, complaints.join().unwrap_or_else(|_| Err(io::Error::other("a panic"))))
        });
        if answer.is_err() {
            // Nobody listens any more; one that says nothing would not notice.
            let _ = child.kill();
        }
        let status = child.wait().map_err(|error| failed(&self.words, error))?;
        Ok(Ended {
            status,
            answer: answer.map_err(|error| failed(&self.words, error))?,
            complaints: complaints.map_err(|error| failed(&self.words, error))?.trim().to_owned(),
        })
    }

    /// Runs it and returns what it wrote to standard output.
    ///
    /// # Errors
    /// As [`run`](Tool::run); if it fails, with its own words.
    pub fn answer(self) -> Result<String> {
        let words = self.words.clone();
        let ended = self.run()?;
        match ended.status.success() {
            true => Ok(ended.answer),
            false => Err(ended.failure(&words)),
        }
    }
}

impl Ended {
    /// That the tool of these `words` failed.
    pub fn failure(&self, words: &str) -> Error {
        let because = match self.complaints.is_empty() {
            true => self.status.to_string(),
            false => format!("{} ({})", self.complaints.replace('\n', "; "), self.status),
        };
        Error::new(ErrorKind::Io, "a tool failed").on(words).because(because)
    }
}

fn missing(words: &str) -> Error {
    let tool = words.split(' ').next().unwrap_or_default();
    Error::new(ErrorKind::Unsupported, "there is no such tool on this host")
        .on(tool)
        .hint("install it, or name the volume's device and use --snapshot off")
}

/// Reads a pipe to its end; at most `len_max` bytes of it are kept, and more is an error unless
/// the rest may be `dropped`.
fn read(pipe: Option<impl Read>, len_max: u64, dropped: bool) -> io::Result<String> {
    let Some(mut pipe) = pipe else { return Ok(String::new()) };
    let mut bytes = Vec::new();
    pipe.by_ref().take(len_max).read_to_end(&mut bytes)?;
    let more = io::copy(&mut pipe, &mut io::sink())?;
    match more > 0 && !dropped {
        true => Err(io::Error::other(format!("it wrote more than {len_max} bytes"))),
        false => Ok(String::from_utf8_lossy(&bytes).into_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tool_answers_or_fails_in_its_own_words() {
        let answer = Tool::new("sh").args(["-c", "printf '%s' \"$LC_ALL\""]).answer().unwrap();
        assert_eq!(answer, "C");
        let error = Tool::new("sh").args(["-c", "echo no such volume >&2; exit 5"]).answer();
        let error = error.unwrap_err();
        let source = std::error::Error::source(&error).unwrap().to_string();
        assert_eq!(source, "no such volume (exit status: 5)");
    }

    #[test]
    fn a_missing_tool_is_named() {
        let error = Tool::new("voltar-no-such-tool").arg("x").answer().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert_eq!(error.subject(), Some("voltar-no-such-tool"));
    }

    #[test]
    fn lines_come_one_by_one_whatever_their_length() {
        let script = "printf 'one\\n\\n'; head -c 70000 /dev/zero; printf '\\nlast'";
        let mut lens = Vec::new();
        let tool = Tool::new("sh").args(["-c", script]);
        tool.each_line(&Cancel::new(), |line| lens.push(line.len())).unwrap();
        assert_eq!(lens, [4, 1, 65536, 70000 - 65536 + 1, 4]);
        let error = Tool::new("sh").args(["-c", "echo why >&2; exit 5"]);
        let error = error.each_line(&Cancel::new(), |_| unreachable!()).unwrap_err();
        assert_eq!(std::error::Error::source(&error).unwrap().to_string(), "why (exit status: 5)");
    }

    #[test]
    fn a_tool_that_stalls_does_not_keep_who_wants_to_stop() {
        let mut tool = Command::new("sh");
        tool.args(["-c", "echo begun; exec sleep 1000"]).stdout(Stdio::piped());
        let mut tool = tool.spawn().unwrap();
        let cancel = Cancel::new();
        let mut output = Output::new(tool.stdout.take().unwrap(), &cancel);
        let mut bytes = [0; 6];
        output.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"begun\n");
        let error = thread::scope(|scope| {
            let reading = scope.spawn(|| output.read(&mut bytes).unwrap_err());
            thread::sleep(std::time::Duration::from_millis(50));
            assert!(!reading.is_finished());
            cancel.raise();
            reading.join().unwrap()
        });
        assert_eq!(error.kind(), io::ErrorKind::Other);
        tool.kill().unwrap();
        tool.wait().unwrap();
    }

    #[test]
    fn both_pipes_are_emptied() {
        let script = "head -c 300000 /dev/zero >&2; head -c 300000 /dev/zero; exit 3";
        let ended = Tool::new("sh").args(["-c", script]).run().unwrap();
        assert_eq!((ended.answer.len(), ended.status.code()), (300_000, Some(3)));
        assert!(ended.complaints.len() as u64 <= COMPLAINTS_LEN_MAX);
    }
}
