//! QEMU's monitor as tests speak to it: one command at a time, every answer awaited.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// Longest that QEMU may take to listen, or to answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// A connection to a QMP socket.
#[derive(Debug)]
pub struct Qmp {
    from: BufReader<UnixStream>,
    to: UnixStream,
    events: Vec<Value>,
}

impl Qmp {
    /// Connects as soon as QEMU listens there, and is greeted.
    pub fn connect(socket: &Path) -> Qmp {
        let started = Instant::now();
        let to = loop {
            match UnixStream::connect(socket) {
                Ok(stream) => break stream,
                Err(error) if started.elapsed() > PATIENCE => {
                    panic!("{}: {error}", socket.display())
                }
                Err(_) => std::thread::sleep(Duration::from_millis(5)),
            }
        };
        to.set_read_timeout(Some(PATIENCE)).unwrap();
        let from = BufReader::new(to.try_clone().unwrap());
        let mut qmp = Qmp { from, to, events: Vec::new() };
        let greeting = qmp.message().unwrap();
        assert!(greeting["QMP"].is_object(), "{greeting}");
        qmp.execute("qmp_capabilities", json!({}));
        qmp
    }

    /// What a command returns. It must succeed.
    #[track_caller]
    pub fn execute(&mut self, command: &str, arguments: Value) -> Value {
        let shown = format!("{command} {arguments}");
        self.attempt(command, arguments).unwrap_or_else(|why| panic!("{shown}: {why}"))
    }

    /// What a command returns.
    ///
    /// # Errors
    /// What QEMU says against it, or that there is no answer.
    #[allow(clippy::needless_pass_by_value, reason = "callers write it as a literal")]
    pub fn attempt(&mut self, command: &str, arguments: Value) -> Result<Value, String> {
        let line = json!({ "execute": command, "arguments": arguments });
        writeln!(self.to, "{line}").map_err(|error| error.to_string())?;
        loop {
            let mut message = self.message()?;
            if message["event"].is_string() {
                self.events.push(message);
            } else if let Some(why) = message["error"]["desc"].as_str() {
                return Err(why.into());
            } else {
                return Ok(message["return"].take());
            }
        }
    }

    /// What a line of the human monitor prints.
    #[track_caller]
    pub fn human(&mut self, line: &str) -> String {
        let printed = self.execute("human-monitor-command", json!({ "command-line": line }));
        printed.as_str().expect("the human monitor prints text").into()
    }

    /// The events since they were taken last, of those that came with answers.
    pub fn take_events(&mut self) -> Vec<Value> {
        std::mem::take(&mut self.events)
    }

    fn message(&mut self) -> Result<Value, String> {
        let mut line = String::new();
        match self.from.read_line(&mut line) {
            Ok(0) => Err("QEMU is gone".into()),
            Ok(_) => serde_json::from_str(&line).map_err(|error| format!("{error}: {line}")),
            Err(error) => Err(format!("no answer: {error}")),
        }
    }
}
