//! Servers that end with the test.

use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use voltar_tests::skip;

/// Longest that a server may take to listen or to answer.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// Whether all `programs` are here; says which are not on behalf of the test `name`.
pub fn have(name: &str, programs: &[&str]) -> bool {
    let missing: Vec<&str> =
        programs.iter().copied().filter(|program| !is_there(program)).collect();
    if !missing.is_empty() {
        skip(name, &format!("not installed: {}", missing.join(", ")));
    }
    missing.is_empty()
}

fn is_there(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(program).is_file())
}

/// A server under way; killed when dropped.
#[derive(Debug)]
pub struct Server {
    child: Child,
    line: String,
}

impl Server {
    fn start(program: &str, args: &[&str]) -> Server {
        let child = Command::new(program)
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap_or_else(|error| panic!("{program}: {error}"));
        Server { child, line: format!("{program} {args:?}") }
    }

    /// Tries until it works; the server may not be over before.
    fn reach<T>(&mut self, attempt: impl Fn() -> std::io::Result<T>) -> T {
        let started = Instant::now();
        loop {
            match attempt() {
                Ok(reached) => return reached,
                Err(error) => {
                    let over = self.child.try_wait().unwrap();
                    assert!(over.is_none(), "{}: {over:?}", self.line);
                    assert!(started.elapsed() < PATIENCE, "{}: {error}", self.line);
                    std::thread::sleep(Duration::from_millis(5));
                }
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// A server on a Unix socket.
pub struct Local {
    server: Server,
    socket: PathBuf,
}

impl Local {
    /// nbdkit; `args` name its plugin.
    pub fn nbdkit(folder: &Path, args: &[&str]) -> Local {
        Local::start(folder, "nbdkit", &["--foreground", "--exit-with-parent", "--unix"], args)
    }

    /// qemu-nbd, for as long as it is let.
    pub fn qemu_nbd(folder: &Path, args: &[&str]) -> Local {
        Local::start(folder, "qemu-nbd", &["--persistent", "--shared=4", "--socket"], args)
    }

    fn start(folder: &Path, program: &str, words: &[&str], args: &[&str]) -> Local {
        let socket = folder.join("nbd.sock");
        let path = [socket.to_str().expect("paths of tests are text")];
        let server = Server::start(program, &[words, &path, args].concat());
        Local { server, socket }
    }

    /// A new connection, which waits for an answer as long as tests do.
    pub fn connect(&mut self) -> UnixStream {
        let stream = self.server.reach(|| UnixStream::connect(&self.socket));
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream
    }
}

/// A server on 127.0.0.1.
pub struct Remote {
    server: Server,
    /// Its port.
    pub port: u16,
}

impl Remote {
    /// nbdkit; `args` name its plugin.
    pub fn nbdkit(args: &[&str]) -> Remote {
        // Free a moment ago; who takes it in between makes nbdkit, and the test, fail by name.
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let listen = ["--foreground", "--exit-with-parent", "--ipaddr=127.0.0.1"];
        let at = format!("--port={port}");
        let line = [&listen[..], &[at.as_str()], args].concat();
        Remote { server: Server::start("nbdkit", &line), port }
    }

    /// A new connection, which waits for an answer as long as tests do.
    pub fn connect(&mut self) -> TcpStream {
        let stream = self.server.reach(|| TcpStream::connect(("127.0.0.1", self.port)));
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream
    }
}
