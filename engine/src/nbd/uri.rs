//! Names of exports, as the NBD URI specification has them (`doc/uri.md` of the NBD project, also
//! `nbd_connect_uri(3)` of libnbd): `nbd://HOST[:PORT]/EXPORT`, `nbds://` with TLS, and
//! `nbd+unix:///EXPORT?socket=PATH`, `nbds+unix:///`.
//!
//! What this client does not do is refused by name, never ignored: a word that was meant to
//! protect a connection must not be dropped without a sound.

use std::fmt::{self, Write};
use std::net::Ipv6Addr;
use std::path::{Path, PathBuf};

/// The port of a server that names none.
pub const PORT_DEFAULT: u16 = 10809;

/// Most bytes of an export's name; the protocol's own limit for strings.
pub const EXPORT_LEN_MAX: usize = 4096;

/// Most bytes of a socket's path: `sun_path` with its NUL.
const SOCKET_LEN_MAX: usize = 107;

/// An export and the way to it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Uri {
    /// Where its server listens.
    pub endpoint: Endpoint,
    /// Its name; empty for the server's default.
    pub export: String,
    /// How to speak TLS, if at all.
    pub tls: Option<TlsChoice>,
}

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Endpoint {
    /// On the network.
    Tcp {
        /// A name or an address; an IPv6 address without brackets.
        host: String,
        /// The port.
        port: u16,
    },
    /// On this machine.
    Unix(PathBuf),
}

/// What a URI says of TLS.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct TlsChoice {
    /// A directory of certificates; the system's roots without one.
    pub certificates: Option<PathBuf>,
    /// The name that the server's certificate must bear, if it is not the host's.
    pub hostname: Option<String>,
}

/// Why a URI is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UriError {
    /// No scheme of an NBD URI.
    #[error(
        "not an NBD URI; write nbd://HOST[:PORT]/EXPORT, nbds://HOST[:PORT]/EXPORT (TLS), or \
         nbd+unix:///EXPORT?socket=PATH"
    )]
    Scheme,
    /// A scheme that this client does not speak.
    #[error("{scheme}:// is not supported; {instead}")]
    Transport {
        /// The scheme.
        scheme: &'static str,
        /// What to do.
        instead: &'static str,
    },
    /// A user in the authority.
    #[error(
        "a user name is not supported: it serves TLS with pre-shared keys, which this client lacks; \
         write the host alone and use certificates (tls-certificates=DIR)"
    )]
    User,
    /// No host, or none that can be one.
    #[error("{0:?} is not a host; write a name, an IPv4 address, or an IPv6 address in brackets")]
    Host(String),
    /// A port that is none.
    #[error("{0:?} is not a port; write a number from 1 to 65535")]
    Port(String),
    /// A Unix socket and a host.
    #[error("a Unix socket has no host; write nbd+unix:///EXPORT?socket=PATH, with three slashes")]
    HostOfSocket,
    /// A percent sign without two hexadecimal digits.
    #[error("{0:?} has a % without two hexadecimal digits; write %25 for a percent sign")]
    Percent(String),
    /// Text that is not UTF-8, or that holds a NUL.
    #[error("{0:?} is not text (UTF-8 without NUL) once its %XX are decoded")]
    Text(String),
    /// A character that a URI cannot hold.
    #[error("{0:?} cannot stand in a URI; write it as %XX, byte by byte")]
    Character(char),
    /// A name that is too long for the protocol.
    #[error("the export's name has {0} bytes; an NBD server takes at most {EXPORT_LEN_MAX}")]
    ExportLen(usize),
    /// A path that is too long for a socket.
    #[error("the socket's path has {0} bytes; the kernel takes at most {SOCKET_LEN_MAX}")]
    SocketLen(usize),
    /// `#...` behind the rest.
    #[error("a fragment (#...) means nothing here; write %23 for a # in a name")]
    Fragment,
    /// A word of the query that is known and refused.
    #[error("{word} is not supported: {why}")]
    Refused {
        /// The word.
        word: &'static str,
        /// Why, and what to do.
        why: &'static str,
    },
    /// A word of the query that is not known.
    #[error("{0:?} is unknown; after ? stand socket=, tls-certificates= and tls-hostname=")]
    Unknown(String),
    /// A word of the query without a value.
    #[error("{0} has no value; write {0}=VALUE")]
    Empty(&'static str),
    /// A word of the query that stands twice.
    #[error("{0} stands twice; keep one")]
    Twice(&'static str),
    /// A Unix socket without a path.
    #[error("the socket is missing; write nbd+unix:///EXPORT?socket=PATH")]
    NoSocket,
    /// A socket of a server on the network.
    #[error("socket= needs nbd+unix:// or nbds+unix://")]
    SocketOfHost,
    /// TLS's words without TLS.
    #[error("{word} needs TLS; write {scheme}:// for it")]
    TlsWord {
        /// The word.
        word: &'static str,
        /// The scheme with TLS.
        scheme: &'static str,
    },
}

impl Uri {
    /// The export that `text` names.
    ///
    /// # Errors
    /// What is wrong with it and what to write instead.
    pub fn parse(text: &str) -> Result<Uri, UriError> {
        let (scheme, rest) = text.split_once("://").ok_or(UriError::Scheme)?;
        let scheme = Scheme::parse(scheme)?;
        check_characters(rest)?;
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = rest.find('/').map_or((rest, ""), |at| rest.split_at(at));
        let words = Words::parse(query)?;
        let export = decode(path.strip_prefix('/').unwrap_or(path))?;
        if export.len() > EXPORT_LEN_MAX {
            return Err(UriError::ExportLen(export.len()));
        }
        let tls = words.tls(scheme)?;
        let endpoint = match scheme.unix {
            true => unix(authority, words.socket.as_deref())?,
            false => tcp(authority, words.socket.as_deref())?,
        };
        Ok(Uri { endpoint, export, tls })
    }
}

/// What stands before `://`.
#[derive(Clone, Copy)]
struct Scheme {
    unix: bool,
    tls: bool,
}

impl Scheme {
    fn parse(scheme: &str) -> Result<Scheme, UriError> {
        let refused = |scheme, instead| Err(UriError::Transport { scheme, instead });
        let vsock = "reach the server over TCP or a Unix socket";
        let ssh = "forward the server's socket (ssh -L LOCAL:REMOTE HOST) and write nbd+unix:///";
        match scheme.to_ascii_lowercase().as_str() {
            "nbd" => Ok(Scheme { unix: false, tls: false }),
            "nbds" => Ok(Scheme { unix: false, tls: true }),
            "nbd+unix" => Ok(Scheme { unix: true, tls: false }),
            "nbds+unix" => Ok(Scheme { unix: true, tls: true }),
            "nbd+vsock" => refused("nbd+vsock", vsock),
            "nbds+vsock" => refused("nbds+vsock", vsock),
            "nbd+ssh" => refused("nbd+ssh", ssh),
            "nbds+ssh" => refused("nbds+ssh", ssh),
            _ => Err(UriError::Scheme),
        }
    }

    fn name(self) -> &'static str {
        match (self.unix, self.tls) {
            (false, false) => "nbd",
            (false, true) => "nbds",
            (true, false) => "nbd+unix",
            (true, true) => "nbds+unix",
        }
    }
}

/// What stands after `?`.
#[derive(Default)]
struct Words {
    socket: Option<String>,
    certificates: Option<String>,
    hostname: Option<String>,
}

impl Words {
    fn parse(query: &str) -> Result<Words, UriError> {
        let mut words = Words::default();
        for word in query.split('&').filter(|word| !word.is_empty()) {
            let (name, value) = word.split_once('=').unwrap_or((word, ""));
            words.take(&decode(name)?, value)?;
        }
        Ok(words)
    }

    fn take(&mut self, name: &str, value: &str) -> Result<(), UriError> {
        let psk = "this client has no pre-shared keys; use certificates (tls-certificates=DIR)";
        let verify = "the server's certificate is always verified; name the directory of its CA \
                      (tls-certificates=DIR) and the name it bears (tls-hostname=NAME)";
        let (name, place) = match name {
            SOCKET => (SOCKET, &mut self.socket),
            CERTIFICATES => (CERTIFICATES, &mut self.certificates),
            HOSTNAME => (HOSTNAME, &mut self.hostname),
            "tls-psk-file" => {
                return Err(UriError::Refused { word: "tls-psk-file", why: psk });
            }
            "tls-username" => {
                return Err(UriError::Refused { word: "tls-username", why: psk });
            }
            "tls-verify-peer" => {
                return Err(UriError::Refused { word: "tls-verify-peer", why: verify });
            }
            other => return Err(UriError::Unknown(other.into())),
        };
        let value = decode(value)?;
        match (value.is_empty(), place) {
            (true, _) => Err(UriError::Empty(name)),
            (false, Some(_)) => Err(UriError::Twice(name)),
            (false, place) => {
                *place = Some(value);
                Ok(())
            }
        }
    }

    fn tls(&self, scheme: Scheme) -> Result<Option<TlsChoice>, UriError> {
        if scheme.tls {
            let certificates = self.certificates.as_ref().map(PathBuf::from);
            return Ok(Some(TlsChoice { certificates, hostname: self.hostname.clone() }));
        }
        let scheme = Scheme { tls: true, ..scheme }.name();
        match (&self.certificates, &self.hostname) {
            (Some(_), _) => Err(UriError::TlsWord { word: CERTIFICATES, scheme }),
            (_, Some(_)) => Err(UriError::TlsWord { word: HOSTNAME, scheme }),
            (None, None) => Ok(None),
        }
    }
}

const SOCKET: &str = "socket";
const CERTIFICATES: &str = "tls-certificates";
const HOSTNAME: &str = "tls-hostname";

fn unix(authority: &str, socket: Option<&str>) -> Result<Endpoint, UriError> {
    match authority {
        "" => {}
        _ if authority.contains('@') => return Err(UriError::User),
        _ => return Err(UriError::HostOfSocket),
    }
    let socket = socket.ok_or(UriError::NoSocket)?;
    match socket.len() {
        ..=SOCKET_LEN_MAX => Ok(Endpoint::Unix(socket.into())),
        len => Err(UriError::SocketLen(len)),
    }
}

fn tcp(authority: &str, socket: Option<&str>) -> Result<Endpoint, UriError> {
    if socket.is_some() {
        return Err(UriError::SocketOfHost);
    }
    if authority.contains('@') {
        return Err(UriError::User);
    }
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => bracketed(rest, authority)?,
        None => {
            let (host, port) = authority.split_once(':').unwrap_or((authority, ""));
            (name_of_host(host)?, port)
        }
    };
    Ok(Endpoint::Tcp { host, port: parse_port(port)? })
}

/// The address and the port behind `[`.
fn bracketed<'a>(rest: &'a str, whole: &str) -> Result<(String, &'a str), UriError> {
    let fault = || UriError::Host(whole.into());
    let (address, behind) = rest.split_once(']').ok_or_else(fault)?;
    address.parse::<Ipv6Addr>().map_err(|_| fault())?;
    match behind.strip_prefix(':') {
        Some(port) => Ok((address.into(), port)),
        None if behind.is_empty() => Ok((address.into(), "")),
        None => Err(fault()),
    }
}

fn name_of_host(text: &str) -> Result<String, UriError> {
    let host = decode(text)?;
    match is_name_of_host(&host) {
        true => Ok(host),
        false => Err(UriError::Host(text.into())),
    }
}

/// What a resolver may be asked for: letters of any script, digits, and what joins them.
fn is_name_of_host(host: &str) -> bool {
    let good = |c: char| c.is_alphanumeric() || matches!(c, '-' | '.' | '_');
    !host.is_empty() && host.len() <= 253 && host.chars().all(good)
}

fn parse_port(text: &str) -> Result<u16, UriError> {
    if text.is_empty() {
        return Ok(PORT_DEFAULT);
    }
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    let port = text.parse().ok().filter(|&port: &u16| digits && port != 0);
    port.ok_or_else(|| UriError::Port(text.into()))
}

/// Characters that no URI holds, and the fragment that ours have no use for. What is beyond ASCII
/// is borne, as people write it.
fn check_characters(text: &str) -> Result<(), UriError> {
    match text.chars().find(|&c| c == '#' || c.is_control() || c == ' ') {
        None => Ok(()),
        Some('#') => Err(UriError::Fragment),
        Some(c) => Err(UriError::Character(c)),
    }
}

/// Text with its `%XX` as bytes.
fn decode(text: &str) -> Result<String, UriError> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        let byte = match byte {
            b'%' => hex(&mut rest).ok_or_else(|| UriError::Percent(text.into()))?,
            byte => byte,
        };
        bytes.push(byte);
    }
    match String::from_utf8(bytes) {
        Ok(decoded) if !decoded.contains('\0') => Ok(decoded),
        _ => Err(UriError::Text(text.into())),
    }
}

fn hex(digits: &mut impl Iterator<Item = u8>) -> Option<u8> {
    let mut digit = || char::from(digits.next()?).to_digit(16);
    let (high, low) = (digit()?, digit()?);
    Some((high << 4 | low) as u8)
}

impl fmt::Display for Uri {
    /// A URI that names the same.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unix = matches!(self.endpoint, Endpoint::Unix(_));
        write!(f, "{}://", Scheme { unix, tls: self.tls.is_some() }.name())?;
        match &self.endpoint {
            Endpoint::Tcp { host, port } => write_authority(f, host, *port)?,
            Endpoint::Unix(_) => {}
        }
        // Without a name the slash is needed by nobody but a socket's reader, who expects three.
        if unix || !self.export.is_empty() {
            f.write_char('/')?;
        }
        write_encoded(f, &self.export)?;
        self.write_query(f)
    }
}

impl Uri {
    fn write_query(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let socket = match &self.endpoint {
            Endpoint::Unix(path) => Some(words_of(path)),
            Endpoint::Tcp { .. } => None,
        };
        let certificates = self.tls.as_ref().and_then(|tls| tls.certificates.as_deref());
        let hostname = self.tls.as_ref().and_then(|tls| tls.hostname.clone());
        let words =
            [(SOCKET, socket), (CERTIFICATES, certificates.map(words_of)), (HOSTNAME, hostname)];
        let mut mark = '?';
        for (word, value) in words {
            let Some(value) = value else { continue };
            write!(f, "{mark}{word}=")?;
            write_encoded(f, &value)?;
            mark = '&';
        }
        Ok(())
    }
}

fn words_of(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

fn write_authority(f: &mut fmt::Formatter<'_>, host: &str, port: u16) -> fmt::Result {
    match host.contains(':') {
        true => write!(f, "[{host}]")?,
        false => write_encoded(f, host)?,
    }
    match port {
        PORT_DEFAULT => Ok(()),
        port => write!(f, ":{port}"),
    }
}

/// Slashes and colons stay: they split neither a path nor a query's value.
fn write_encoded(f: &mut fmt::Formatter<'_>, text: &str) -> fmt::Result {
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => f.write_char(byte.into())?,
            b'-' | b'.' | b'_' | b'~' | b'/' | b':' => f.write_char(byte.into())?,
            byte => write!(f, "%{byte:02X}")?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tcp(host: &str, port: u16, export: &str) -> Uri {
        let endpoint = Endpoint::Tcp { host: host.into(), port };
        Uri { endpoint, export: export.into(), tls: None }
    }

    fn unix(socket: &str, export: &str) -> Uri {
        Uri { endpoint: Endpoint::Unix(socket.into()), export: export.into(), tls: None }
    }

    fn tls(uri: Uri, certificates: Option<&str>, hostname: Option<&str>) -> Uri {
        let tls = TlsChoice {
            certificates: certificates.map(PathBuf::from),
            hostname: hostname.map(String::from),
        };
        Uri { tls: Some(tls), ..uri }
    }

    #[test]
    fn what_names_an_export() {
        let table = [
            ("nbd://host", tcp("host", 10809, "")),
            ("nbd://host/", tcp("host", 10809, "")),
            ("NBD://host:/", tcp("host", 10809, "")),
            ("nbd://host:1/disk", tcp("host", 1, "disk")),
            ("nbd://192.0.2.7:65535/a/b", tcp("192.0.2.7", 65535, "a/b")),
            ("nbd://[2001:db8::1]/x", tcp("2001:db8::1", 10809, "x")),
            ("nbd://[::1]:99//x", tcp("::1", 99, "/x")),
            ("nbd://host/a%20b%2Fc%3f", tcp("host", 10809, "a b/c?")),
            ("nbd://host/a+b", tcp("host", 10809, "a+b")),
            ("nbd://host/gr%C3%BCn", tcp("host", 10809, "grün")),
            ("nbd://host/grün?", tcp("host", 10809, "grün")),
            ("nbds://host/x", tls(tcp("host", 10809, "x"), None, None)),
            (
                "nbds://host/x?tls-certificates=/etc/pki&tls-hostname=vm.example",
                tls(tcp("host", 10809, "x"), Some("/etc/pki"), Some("vm.example")),
            ),
            ("nbd+unix:///?socket=/run/s", unix("/run/s", "")),
            ("nbd+unix://?socket=s", unix("s", "")),
            ("nbd+unix:///a/b?socket=/run/a%26b", unix("/run/a&b", "a/b")),
            ("nbd+unix:////a?&socket=/run/a=b&", unix("/run/a=b", "/a")),
            ("nbds+unix:///a?socket=s", tls(unix("s", "a"), None, None)),
        ];
        for (text, uri) in table {
            assert_eq!(Uri::parse(text), Ok(uri.clone()), "{text}");
            assert_eq!(Uri::parse(&uri.to_string()), Ok(uri), "{text}");
        }
    }

    #[test]
    fn what_is_refused_and_how() {
        let long = format!("nbd://h/{}", "x".repeat(4097));
        let long_socket = format!("nbd+unix:///?socket=/{}", "s".repeat(107));
        let table = [
            ("", "not an NBD URI"),
            ("/dev/sda", "not an NBD URI"),
            ("http://host/", "not an NBD URI"),
            ("nbd:host", "not an NBD URI"),
            ("nbd+vsock://2/", "nbd+vsock:// is not supported; reach"),
            ("nbds+vsock://2/", "nbds+vsock:// is not supported; reach"),
            ("nbd+ssh://host/", "nbd+ssh:// is not supported; forward"),
            ("nbds+ssh://host/", "nbds+ssh:// is not supported; forward"),
            ("nbd://", "\"\" is not a host"),
            ("nbd:///x", "\"\" is not a host"),
            ("nbd://a:b:1", "\"b:1\" is not a port"),
            ("nbd://a!b", "\"a!b\" is not a host"),
            ("nbd://a%2Fb", "\"a%2Fb\" is not a host"),
            ("nbd://[::1", "\"[::1\" is not a host"),
            ("nbd://[::g]", "\"[::g]\" is not a host"),
            ("nbd://[::1]x", "\"[::1]x\" is not a host"),
            ("nbd://host:0", "\"0\" is not a port"),
            ("nbd://host:+1", "\"+1\" is not a port"),
            ("nbd://host:65536", "\"65536\" is not a port"),
            ("nbds://alice@host/", "a user name is not supported"),
            ("nbds+unix://alice@/?socket=s", "a user name is not supported"),
            ("nbd+unix://host/?socket=s", "with three slashes"),
            ("nbd+unix:///x", "the socket is missing"),
            ("nbd+unix:///x?socket=", "socket has no value"),
            ("nbd+unix:///x?socket", "socket has no value"),
            ("nbd+unix:///?socket=a&socket=b", "socket stands twice"),
            (&long_socket, "the socket's path has 108 bytes"),
            ("nbd://host/?socket=s", "socket= needs nbd+unix://"),
            ("nbd://host/?tls-hostname=x", "tls-hostname needs TLS; write nbds://"),
            ("nbd+unix:///?socket=s&tls-certificates=x", "write nbds+unix://"),
            ("nbds://host/?tls-psk-file=x", "tls-psk-file is not supported: this client has no"),
            ("nbds://host/?tls-username=x", "tls-username is not supported: this client has no"),
            ("nbds://host/?tls-verify-peer=false", "certificate is always verified"),
            ("nbd://host/?sokcet=s", "\"sokcet\" is unknown"),
            ("nbd://host/?Socket=s", "\"Socket\" is unknown"),
            ("nbd://host/100%", "write %25 for a percent sign"),
            ("nbd://host/%+1", "write %25 for a percent sign"),
            ("nbd://host/%00", "is not text"),
            ("nbd://host/%FF", "is not text"),
            ("nbd://host/a b", "' ' cannot stand in a URI"),
            ("nbd://host/a\nb", "'\\n' cannot stand in a URI"),
            ("nbd://host/a#b", "write %23"),
            (&long, "the export's name has 4097 bytes"),
        ];
        for (text, words) in table {
            let error = Uri::parse(text).expect_err(text).to_string();
            assert!(error.contains(words), "{text}: {error}");
        }
    }

    #[test]
    fn it_is_written_as_people_write_it() {
        assert_eq!(tcp("h", 10809, "").to_string(), "nbd://h");
        assert_eq!(tcp("::1", 5, "a/b c").to_string(), "nbd://[::1]:5/a/b%20c");
        let socket = tls(unix("/run/s&t", ""), Some("/etc/pki"), Some("vm"));
        let written = "nbds+unix:///?socket=/run/s%26t&tls-certificates=/etc/pki&tls-hostname=vm";
        assert_eq!(socket.to_string(), written);
    }

    fn endpoint() -> impl Strategy<Value = Endpoint> {
        let host = prop_oneof!["[a-z0-9._-]{1,20}", any::<Ipv6Addr>().prop_map(|a| a.to_string())];
        let socket = "[^\0]{1,20}".prop_map(|path| Endpoint::Unix(path.into()));
        prop_oneof![(host, 1u16..).prop_map(|(host, port)| Endpoint::Tcp { host, port }), socket]
    }

    fn tls_choice() -> impl Strategy<Value = TlsChoice> {
        let word = || prop::option::of("[^\0]{1,20}");
        (word(), word()).prop_map(|(certificates, hostname)| {
            let certificates = certificates.map(PathBuf::from);
            TlsChoice { certificates, hostname }
        })
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_again(
            endpoint in endpoint(), export in "[^\0]{0,40}", tls in prop::option::of(tls_choice()),
        ) {
            let uri = Uri { endpoint, export, tls };
            prop_assert_eq!(Uri::parse(&uri.to_string()), Ok(uri));
        }

        #[test]
        fn any_text_is_read_or_refused(text in "(nbds?(\\+unix)?://)?\\PC{0,40}") {
            if let Ok(uri) = Uri::parse(&text) {
                prop_assert_eq!(Uri::parse(&uri.to_string()), Ok(uri));
            }
        }
    }
}
