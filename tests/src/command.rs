//! Runs the program as a user does, with a time limit and an environment of its own.

use std::ffi::{OsStr, OsString};
use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::data::Scratch;

/// Longest that one run may take, unless told otherwise.
const PATIENCE: Duration = Duration::from_secs(180);

/// The project's directory.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ is in the project").into()
}

/// The program under test: `VOLTAR_BIN`, or the release build, made once if it is missing.
pub fn program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        if let Some(program) = std::env::var_os("VOLTAR_BIN") {
            return std::path::absolute(program).expect("VOLTAR_BIN is a path");
        }
        let target = std::env::var_os("CARGO_TARGET_DIR")
            .map_or_else(|| root().join("target"), |target| root().join(target));
        let program = target.join("release/voltar");
        if !program.exists() {
            build();
        }
        program
    })
}

fn build() {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let built = Command::new(cargo)
        .args(["build", "--release", "-p", "voltar"])
        .current_dir(root())
        .status()
        .expect("cargo runs");
    assert!(built.success(), "the program does not build");
}

/// Whether we may make loop devices and mounts.
pub fn is_root() -> bool {
    nix::unistd::Uid::effective().is_root()
}

/// A run to come.
#[derive(Debug)]
pub struct Voltar {
    command: Command,
    line: String,
    patience: Duration,
}

impl Voltar {
    /// In `scratch`, where notes between runs are kept as well.
    pub fn new(scratch: &Scratch) -> Voltar {
        Voltar::through(scratch, &[])
    }

    /// Started by another program, which gets the path of ours as its last argument.
    pub fn through(scratch: &Scratch, wrapper: &[&OsStr]) -> Voltar {
        let mut words = wrapper.to_vec();
        words.push(program().as_os_str());
        Voltar::instead(scratch, &words)
    }

    /// Another program line, in the same surroundings; for a copy of ours.
    pub fn instead(scratch: &Scratch, words: &[impl AsRef<OsStr>]) -> Voltar {
        let mut command = Command::new(&words[0]);
        command
            .args(&words[1..])
            .current_dir(scratch.dir())
            .env("XDG_STATE_HOME", scratch.path("state"))
            .env("TZ", "UTC")
            .env_remove("NO_COLOR")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        Voltar { command, line: "voltar".into(), patience: PATIENCE }
    }

    /// One argument.
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Voltar {
        self.line = format!("{} {}", self.line, arg.as_ref().to_string_lossy());
        self.command.arg(arg);
        self
    }

    /// Arguments.
    pub fn args<A: AsRef<OsStr>>(self, args: impl IntoIterator<Item = A>) -> Voltar {
        args.into_iter().fold(self, Voltar::arg)
    }

    /// A variable of its environment.
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Voltar {
        self.command.env(name, value);
        self
    }

    /// No such variable in its environment.
    pub fn without(mut self, name: &str) -> Voltar {
        self.command.env_remove(name);
        self
    }

    /// How long it may take, if a minute is too short.
    pub fn patience(mut self, patience: Duration) -> Voltar {
        self.patience = patience;
        self
    }

    /// Where standard output goes.
    pub fn stdout(mut self, to: impl Into<Stdio>) -> Voltar {
        self.command.stdout(to);
        self
    }

    /// Starts it.
    pub fn start(mut self) -> Running {
        let mut child = self.command.spawn().unwrap_or_else(|e| panic!("{}: {e}", self.line));
        let stdout = child.stdout.take().map(drain);
        let stderr = child.stderr.take().map(drain);
        let (line, end) = (self.line, Instant::now() + self.patience);
        Running { child, stdout, stderr, line, end }
    }

    /// Runs it to its end.
    pub fn run(self) -> Ran {
        self.start().wait()
    }

    /// Runs it; it must succeed.
    #[track_caller]
    pub fn ok(self) -> Ran {
        self.run().expect(0)
    }

    /// Runs it with `--json`; it must succeed.
    #[track_caller]
    pub fn json(self) -> Value {
        self.arg("--json").ok().json()
    }
}

fn drain(mut from: impl Read + Send + 'static) -> JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        // What is cut off by a kill is not our concern.
        drop(from.read_to_end(&mut bytes));
        bytes
    })
}

/// A run under way; killed if the test gives it up.
#[derive(Debug)]
pub struct Running {
    child: Child,
    stdout: Option<JoinHandle<Vec<u8>>>,
    stderr: Option<JoinHandle<Vec<u8>>>,
    line: String,
    end: Instant,
}

impl Running {
    /// Sends a signal. The process may be over: that is the test's to find out.
    pub fn signal(&self, signal: Signal) {
        let _ = kill(Pid::from_raw(self.child.id() as i32), signal);
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether it is over.
    pub fn is_over(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// Waits until `reached`, as long as it runs; whether it was.
    pub fn until(&mut self, reached: impl Fn() -> bool) -> bool {
        while !reached() {
            if self.is_over() {
                return reached();
            }
            assert!(Instant::now() < self.end, "{}: no end", self.line);
            std::thread::sleep(Duration::from_millis(2));
        }
        true
    }

    /// Waits for its end.
    pub fn wait(mut self) -> Ran {
        let status = self.status();
        let bytes = |pipe: Option<JoinHandle<Vec<u8>>>| {
            pipe.map(|pipe| pipe.join().unwrap()).unwrap_or_default()
        };
        let stdout = bytes(self.stdout.take());
        let stderr = String::from_utf8(bytes(self.stderr.take())).expect("stderr is UTF-8");
        Ran { status, stdout, stderr, line: self.line.clone() }
    }

    fn status(&mut self) -> ExitStatus {
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            if Instant::now() > self.end {
                drop(self.child.kill());
                drop(self.child.wait());
                let stderr = self.stderr.take().map(|pipe| pipe.join().unwrap());
                let stderr = stderr.unwrap_or_default();
                panic!("{}: no end\n{}", self.line, String::from_utf8_lossy(&stderr));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !matches!(self.child.try_wait(), Ok(Some(_))) {
            drop(self.child.kill());
            drop(self.child.wait());
        }
    }
}

/// How a run ended and what it printed.
#[derive(Debug)]
pub struct Ran {
    status: ExitStatus,
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: String,
    line: String,
}

impl Ran {
    /// The exit code; `None` after a signal.
    pub fn code(&self) -> Option<i32> {
        self.status.code()
    }

    /// The signal that ended it.
    pub fn signal(&self) -> Option<i32> {
        self.status.signal()
    }

    /// It must have ended with `code`.
    #[track_caller]
    pub fn expect(self, code: i32) -> Ran {
        assert_eq!(self.code(), Some(code), "{}\n{}{}", self.line, self.text(), self.stderr);
        self
    }

    /// Standard output as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// The one JSON object on standard output.
    #[track_caller]
    pub fn json(&self) -> Value {
        object(&self.text()).unwrap_or_else(|why| panic!("{}: {why}", self.line))
    }
}

/// The one JSON object that `text` is.
pub fn object(text: &str) -> Result<Value, String> {
    match serde_json::from_str::<Value>(text) {
        Ok(value) if value.is_object() && text.ends_with('\n') => Ok(value),
        Ok(_) => Err(format!("not an object on a line of its own: {text:?}")),
        Err(error) => Err(format!("{error}: {text:?}")),
    }
}

/// Splits a command line at spaces; for lines that tests write.
pub fn words(line: &str) -> Vec<OsString> {
    line.split_whitespace().map(OsString::from).collect()
}
