//! From a URI to a connection that can be asked: socket, TLS, handshake.

use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use rustls::{ClientConfig, ClientConnection};

use super::handshake::{Export, Greeting, HandshakeError, Wishes};
use super::protocol::CONTEXT_ALLOCATION;
use super::tls;
use super::uri::{Endpoint, Uri};
use crate::error::{Error, ErrorKind};
use crate::io::sockets::Stream;

/// How long one address may take to answer a call.
const CALL: Duration = Duration::from_secs(10);
/// How long each step of a handshake may take.
const STEP: Duration = Duration::from_secs(30);
/// The same for a connection that is not needed.
const STEP_QUICK: Duration = Duration::from_secs(3);
/// Most bytes that are sealed at a time: what TLS is told to hold.
const SEAL_LEN: usize = 64 << 10;

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// Nobody answers there.
    #[error("nobody answers there")]
    Unreachable(#[source] io::Error),
    /// The system refuses.
    #[error("the system refuses")]
    Io(#[source] io::Error),
    /// Certificates or names are of no use.
    #[error("TLS cannot be set up")]
    Setup(#[from] Error),
    /// TLS cannot begin.
    #[error("TLS cannot begin")]
    Session(#[from] rustls::Error),
    /// The server and the client do not come together.
    #[error(transparent)]
    Handshake(#[from] HandshakeError),
}

impl DialError {
    /// As the engine's error about the server at `uri`.
    pub fn in_words(self, uri: &Uri) -> Error {
        let failed = |error: &DialError| {
            let kind = match error {
                DialError::Handshake(HandshakeError::UnknownExport { .. }) => ErrorKind::NotFound,
                DialError::Unreachable(error) if error.kind() == io::ErrorKind::NotFound => {
                    ErrorKind::NotFound
                }
                _ => ErrorKind::Io,
            };
            Error::new(kind, "cannot connect to the NBD server").on(uri.to_string())
        };
        let hint = match &self {
            DialError::Setup(_) => None,
            DialError::Unreachable(_) => {
                Some("see that the server runs and listens there (`nbdinfo`)")
            }
            DialError::Handshake(HandshakeError::Io(error)) if uri.tls.is_some() => {
                tls::advice(error)
            }
            DialError::Handshake(HandshakeError::UnknownExport { .. }) => {
                Some("`nbdinfo --list` with the URI shows what the server exports")
            }
            DialError::Io(_) | DialError::Session(_) | DialError::Handshake(_) => None,
        };
        let error = match self {
            DialError::Setup(error) => return error,
            other => failed(&other).because(other),
        };
        match hint {
            Some(hint) => error.hint(hint),
            None => error,
        }
    }
}

/// Makes connections to one export.
pub struct Dialler {
    uri: Uri,
    contexts: Vec<String>,
    tls: Option<Arc<ClientConfig>>,
    /// What to do when all connections are lost.
    redial: Redial,
}

/// Whether connections that are lost are made again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Redial {
    /// Yes: the server may come back.
    Allowed,
    /// No: a server that comes back is another one.
    Never,
}

/// A connection behind its handshake.
pub struct Dialled {
    /// The socket.
    pub stream: Stream,
    /// What lies over it.
    pub channel: Channel,
    /// What the server agreed to.
    pub export: Export,
}

impl Dialler {
    /// To the export at `uri`, asking for these contexts.
    ///
    /// # Errors
    /// Of the certificates, if there are to be any.
    pub fn new(uri: Uri, contexts: Vec<String>, redial: Redial) -> Result<Dialler, DialError> {
        let tls = uri.tls.as_ref().map(tls::config).transpose()?;
        Ok(Dialler { uri, contexts, tls, redial })
    }

    /// Whether the server is asked what reads as zeroes. Where it is not, reads are asked for in one piece
    /// (`NBD_CMD_FLAG_DF`), of which a server need not take more than 64 KiB.
    pub fn asks_for_holes(&self) -> bool {
        self.contexts.iter().any(|context| context == CONTEXT_ALLOCATION)
    }

    /// Whether connections that are lost are made again.
    pub fn redial(&self) -> Redial {
        self.redial
    }

    /// Connects.
    ///
    /// # Errors
    /// Why not.
    pub fn dial(&self) -> Result<Dialled, DialError> {
        self.dial_within(STEP)
    }

    /// Connects, unless the server lets it wait.
    ///
    /// # Errors
    /// Why not.
    pub fn dial_quickly(&self) -> Result<Dialled, DialError> {
        self.dial_within(STEP_QUICK)
    }

    fn dial_within(&self, step: Duration) -> Result<Dialled, DialError> {
        let mut stream = self.call().map_err(DialError::Unreachable)?;
        stream.set_timeout(Some(step)).map_err(DialError::Io)?;
        let contexts: Vec<&str> = self.contexts.iter().map(String::as_str).collect();
        let wishes = Wishes { export: &self.uri.export, contexts: &contexts };
        let greeting = Greeting::read(&mut stream)?;
        let Some(config) = &self.tls else {
            let export = greeting.negotiate(&mut stream, &wishes)?;
            return Ok(Dialled { stream, channel: Channel::Plain, export });
        };
        let greeting = greeting.start_tls(&mut stream)?;
        let mut session = ClientConnection::new(Arc::clone(config), tls::server_name(&self.uri)?)?;
        let mut inside = rustls::Stream::new(&mut session, &mut stream);
        let export = greeting.negotiate(&mut inside, &wishes)?;
        session.set_buffer_limit(None);
        Ok(Dialled { stream, channel: Channel::Tls(Box::new(session)), export })
    }

    fn call(&self) -> io::Result<Stream> {
        match &self.uri.endpoint {
            Endpoint::Unix(path) => UnixStream::connect(path).map(Stream::Unix),
            Endpoint::Tcp { host, port } => {
                let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
                for address in (host.as_str(), *port).to_socket_addrs()? {
                    match TcpStream::connect_timeout(&address, CALL) {
                        Ok(stream) => {
                            stream.set_nodelay(true)?;
                            return Ok(Stream::Tcp(stream));
                        }
                        Err(error) => last = error,
                    }
                }
                Err(last)
            }
        }
    }
}

/// What lies between a connection's bytes and those on its socket.
pub enum Channel {
    /// Nothing.
    Plain,
    /// TLS.
    Tls(Box<ClientConnection>),
}

impl Channel {
    /// Whether bytes go as they are.
    pub fn is_plain(&self) -> bool {
        matches!(self, Channel::Plain)
    }

    /// What is to be sent for these bytes.
    pub fn seal(&mut self, bytes: Vec<u8>) -> Vec<u8> {
        let Channel::Tls(session) = self else { return bytes };
        let mut sealed = Vec::with_capacity(bytes.len() + bytes.len() / 256 + 64);
        for piece in bytes.chunks(SEAL_LEN) {
            // A session without a limit takes everything, and a vector does as well.
            let _ = session.writer().write_all(piece);
            drain(session, &mut sealed);
        }
        sealed
    }

    /// What TLS itself has to say.
    pub fn pending(&mut self) -> Option<Vec<u8>> {
        let Channel::Tls(session) = self else { return None };
        let mut sealed = Vec::new();
        drain(session, &mut sealed);
        (!sealed.is_empty()).then_some(sealed)
    }

    /// Takes bytes from the socket and gives those that they stand for to `each`, piece by piece.
    ///
    /// # Errors
    /// If they are not what TLS allows.
    pub fn open(&mut self, mut bytes: &[u8], mut each: impl FnMut(&[u8])) -> io::Result<()> {
        let Channel::Tls(session) = self else {
            each(bytes);
            return Ok(());
        };
        let mut plain = [0; 16 << 10];
        while !bytes.is_empty() {
            // It takes nothing any more once the other side has ended the session.
            if session.read_tls(&mut bytes)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            session.process_new_packets().map_err(io::Error::other)?;
            loop {
                match session.reader().read(&mut plain) {
                    Ok(0) => break,
                    Ok(count) => each(&plain[..count]),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }
}

fn drain(session: &mut ClientConnection, sealed: &mut Vec<u8>) {
    while session.wants_write() {
        // A vector takes everything.
        if session.write_tls(sealed).is_err() {
            return;
        }
    }
}
