//! Servers of network block devices that other projects made. They end with the test.

use std::fs::{self, File};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::data::Scratch;
use crate::device::system;
use crate::skip::skip;

/// Longest that a server may take to listen.
const PATIENCE: Duration = Duration::from_secs(20);

/// A directory for `test`, if the peers are there that tests of NBD talk to.
pub fn scratch(test: &str) -> Option<Scratch> {
    for program in ["nbdkit", "nbdcopy", "qemu-nbd", "qemu-img", "certtool"] {
        if let Err(why) = system(program, &["--version"]) {
            skip(test, &format!("a peer is missing: {why}"));
            return None;
        }
    }
    Some(Scratch::new())
}

/// Where a server listens.
#[derive(Debug)]
enum Address {
    Unix(PathBuf),
    Tcp(u16),
}

/// What a server was asked for, as nbdkit's log filter noted it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// `Read`, `Write`, `Zero`, `Trim`, `Flush`, `Extents`.
    pub kind: String,
    /// Where.
    pub offset: u64,
    /// How many bytes.
    pub count: u64,
}

/// A server that runs in a test's directory; killed when dropped.
#[derive(Debug)]
pub struct Server {
    command: Command,
    address: Address,
    pid: PathBuf,
    log: PathBuf,
    complaints: PathBuf,
    child: Child,
}

impl Server {
    /// An nbdkit with these arguments on a socket `name`. All requests are noted.
    pub fn nbdkit(scratch: &Scratch, name: &str, args: &[&str]) -> Server {
        Server::start(scratch, name, socket(scratch, name), |address| {
            nbdkit(scratch, name, address, args)
        })
    }

    /// The same on a free port of this host.
    pub fn nbdkit_on_tcp(scratch: &Scratch, name: &str, args: &[&str]) -> Server {
        Server::start(scratch, name, free_port(), |address| nbdkit(scratch, name, address, args))
    }

    /// A `qemu-nbd` with these arguments on a socket `name`.
    pub fn qemu_nbd(scratch: &Scratch, name: &str, args: &[&str]) -> Server {
        Server::start(scratch, name, socket(scratch, name), |address| {
            let Address::Unix(path) = address else { panic!("qemu-nbd is asked on sockets only") };
            let mut command = Command::new("qemu-nbd");
            command.arg("--persistent").arg("--socket").arg(path);
            command.arg("--pid-file").arg(pid_file(scratch, name)).args(args);
            command
        })
    }

    fn start(
        scratch: &Scratch,
        name: &str,
        address: Address,
        line: impl FnOnce(&Address) -> Command,
    ) -> Server {
        let complaints = scratch.path(&format!("{name}.stderr"));
        let mut command = line(&address);
        command.current_dir(scratch.dir()).stdin(Stdio::null()).stdout(Stdio::null());
        let pid = pid_file(scratch, name);
        let log = log_file(scratch, name);
        let child = spawn(&mut command, &complaints);
        let mut server = Server { command, address, pid, log, complaints, child };
        server.until_it_listens();
        server
    }

    fn until_it_listens(&mut self) {
        let started = Instant::now();
        while fs::read(&self.pid).unwrap_or_default().is_empty() {
            let is_over = self.child.try_wait().unwrap().is_some();
            let is_late = started.elapsed() > PATIENCE;
            assert!(!is_over && !is_late, "{:?}: {}", self.command, self.complaints());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// What it complained about.
    pub fn complaints(&self) -> String {
        fs::read_to_string(&self.complaints).unwrap_or_default()
    }

    /// The default export.
    pub fn uri(&self) -> String {
        self.uri_of("")
    }

    /// An export, by its name as a URI has it.
    pub fn uri_of(&self, export: &str) -> String {
        self.uri_with("nbd", export, "")
    }

    /// An export, with `nbd` or `nbds` and more words of the query.
    pub fn uri_with(&self, scheme: &str, export: &str, query: &str) -> String {
        match &self.address {
            Address::Unix(path) => {
                let more = if query.is_empty() { "" } else { "&" };
                format!("{scheme}+unix:///{export}?socket={}{more}{query}", path.display())
            }
            Address::Tcp(port) => {
                let more = if query.is_empty() { "" } else { "?" };
                format!("{scheme}://127.0.0.1:{port}/{export}{more}{query}")
            }
        }
    }

    /// Ends it with `kill -9`.
    pub fn kill(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
        drop(fs::remove_file(&self.pid));
        if let Address::Unix(path) = &self.address {
            drop(fs::remove_file(path));
        }
    }

    /// Starts it once more, after it was killed.
    pub fn start_again(&mut self) {
        self.child = spawn(&mut self.command, &self.complaints);
        self.until_it_listens();
    }

    /// What it was asked for, since it was made to forget last.
    pub fn requests(&self) -> Vec<Request> {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        log.lines().filter_map(request).collect()
    }

    /// What it was asked for of one kind.
    pub fn requests_for(&self, kind: &str) -> Vec<Request> {
        self.requests().into_iter().filter(|request| request.kind == kind).collect()
    }

    /// Makes it forget what it was asked for.
    pub fn forget_requests(&self) {
        File::create(&self.log).unwrap();
    }

    /// The bytes of its default export, as `nbdcopy` reads them.
    pub fn contents(&self) -> Vec<u8> {
        let copy = self.complaints.with_extension("copy");
        system("nbdcopy", &[&self.uri(), copy.to_str().unwrap()]).unwrap();
        let bytes = fs::read(&copy).unwrap();
        fs::remove_file(&copy).unwrap();
        bytes
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

fn spawn(command: &mut Command, complaints: &Path) -> Child {
    let complaints = File::options().create(true).append(true).open(complaints).unwrap();
    command.stderr(complaints).spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"))
}

fn socket(scratch: &Scratch, name: &str) -> Address {
    Address::Unix(scratch.path(&format!("{name}.sock")))
}

/// Nobody else takes a port that was just free, as long as there are others.
fn free_port() -> Address {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    Address::Tcp(listener.local_addr().unwrap().port())
}

fn pid_file(scratch: &Scratch, name: &str) -> PathBuf {
    scratch.path(&format!("{name}.pid"))
}

fn log_file(scratch: &Scratch, name: &str) -> PathBuf {
    scratch.path(&format!("{name}.log"))
}

fn nbdkit(scratch: &Scratch, name: &str, address: &Address, args: &[&str]) -> Command {
    let mut command = Command::new("nbdkit");
    command.args(["--foreground", "--exit-with-parent", "--filter=log"]);
    match address {
        Address::Unix(path) => command.arg("--unix").arg(path),
        Address::Tcp(port) => command.args(["--ipaddr", "127.0.0.1", "--port", &port.to_string()]),
    };
    command.arg("--pidfile").arg(pid_file(scratch, name)).args(args);
    command.arg(format!("logfile={}", log_file(scratch, name).display())).arg("logappend=true");
    command
}

/// The request that a line of the log tells: `... connection=1 Read id=1 offset=0x0 count=0x200 ...`.
fn request(line: &str) -> Option<Request> {
    let mut words = line.split_whitespace().skip_while(|word| !word.starts_with("connection="));
    let kind = words.nth(1)?;
    let mut request = Request { kind: kind.into(), offset: 0, count: 0 };
    if !words.next()?.starts_with("id=") || kind.starts_with("...") {
        return None;
    }
    let number = |text: &str| u64::from_str_radix(text, 16).ok();
    for word in words {
        if let Some(offset) = word.strip_prefix("offset=0x") {
            request.offset = number(offset)?;
        } else if let Some(count) = word.strip_prefix("count=0x") {
            request.count = number(count)?;
        }
    }
    Some(request)
}
