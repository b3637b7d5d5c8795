//! With TLS, over TCP, with certificates of an authority of the test's own.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use rustls::{ClientConnection, StreamOwned};
use voltar_engine::nbd::handshake::{Export, Greeting, HandshakeError, Wishes};
use voltar_engine::nbd::tls::{advice, config, server_name};
use voltar_engine::nbd::uri::Uri;
use voltar_tests::Scratch;

use crate::server::{Remote, have};

const PROGRAMS: [&str; 2] = ["nbdkit", "certtool"];

/// A directory for each side, as QEMU and libnbd lay them out.
struct Authority {
    scratch: Scratch,
}

impl Authority {
    fn new() -> Authority {
        let authority = Authority { scratch: Scratch::new() };
        let ca = authority.scratch.write(
            "ca.info",
            b"cn = test\nca\ncert_signing_key\ncrl_signing_key\nexpiration_days = 2\n",
        );
        let (key, cert) = (authority.path("ca-key.pem"), authority.path("ca-cert.pem"));
        certtool(&["--generate-privkey", "--key-type=rsa", "--bits=2048"], &[("outfile", &key)]);
        let files = [("load-privkey", &key), ("template", &ca), ("outfile", &cert)];
        certtool(&["--generate-self-signed"], &files.map(|(word, path)| (word, path.as_path())));
        authority
    }

    fn path(&self, name: &str) -> PathBuf {
        self.scratch.path(name)
    }

    /// A directory with the authority's certificate and one for `side`.
    fn issue(&self, side: &str, template: &str) -> PathBuf {
        let folder = self.path(side);
        std::fs::create_dir(&folder).unwrap();
        std::fs::copy(self.path("ca-cert.pem"), folder.join("ca-cert.pem")).unwrap();
        let template = self.scratch.write("info", template.as_bytes());
        let (key, cert) =
            (folder.join(format!("{side}-key.pem")), folder.join(format!("{side}-cert.pem")));
        certtool(&["--generate-privkey", "--key-type=rsa", "--bits=2048"], &[("outfile", &key)]);
        let files = [
            ("load-ca-certificate", self.path("ca-cert.pem")),
            ("load-ca-privkey", self.path("ca-key.pem")),
            ("load-privkey", key),
            ("template", template),
            ("outfile", cert),
        ];
        let files = files.each_ref().map(|(word, path)| (*word, path.as_path()));
        certtool(&["--generate-certificate"], &files);
        folder
    }

    fn server(&self) -> PathBuf {
        let names = "dns_name = vm.example\nip_address = 127.0.0.1\n";
        let uses = "tls_www_server\nsigning_key\nexpiration_days = 2\n";
        self.issue("server", &format!("cn = server\n{names}{uses}"))
    }

    fn client(&self) -> PathBuf {
        self.issue("client", "cn = client\ntls_www_client\nsigning_key\nexpiration_days = 2\n")
    }

    /// Says in `folder` that the server's certificate is void.
    fn revoke_server(&self, folder: &Path) {
        let template = self.scratch.write("crl.info", b"crl_next_update = 2\ncrl_number = 1\n");
        let files = [
            ("load-ca-certificate", self.path("ca-cert.pem")),
            ("load-ca-privkey", self.path("ca-key.pem")),
            ("load-certificate", self.path("server/server-cert.pem")),
            ("template", template),
            ("outfile", folder.join("ca-crl.pem")),
        ];
        let files = files.each_ref().map(|(word, path)| (*word, path.as_path()));
        certtool(&["--generate-crl"], &files);
    }
}

fn certtool(words: &[&str], files: &[(&str, &Path)]) {
    let mut command = Command::new("certtool");
    command.args(words);
    for (word, path) in files {
        command.arg(format!("--{word}")).arg(path);
    }
    let ran = command.stdin(Stdio::null()).output().unwrap();
    let stderr = String::from_utf8_lossy(&ran.stderr);
    assert!(ran.status.success(), "certtool {words:?}: {stderr}");
}

fn nbdkit(certificates: &Path, words: &[&str]) -> Remote {
    let certificates = format!("--tls-certificates={}", certificates.display());
    let words = [&["--tls=require", &certificates], words, &["memory", "size=1M"]].concat();
    Remote::nbdkit(&words)
}

fn uri(port: u16, certificates: &Path, hostname: Option<&str>) -> Uri {
    let hostname = hostname.map(|name| format!("&tls-hostname={name}")).unwrap_or_default();
    let certificates = certificates.display();
    let uri = format!("nbds://127.0.0.1:{port}/?tls-certificates={certificates}{hostname}");
    Uri::parse(&uri).unwrap()
}

fn negotiate(server: &mut Remote, uri: &Uri) -> Result<Export, HandshakeError> {
    let config = config(uri.tls.as_ref().unwrap()).unwrap();
    let mut stream = server.connect();
    let greeting = Greeting::read(&mut stream)?.start_tls(&mut stream)?;
    let session = ClientConnection::new(config, server_name(uri).unwrap()).unwrap();
    let mut stream = StreamOwned::new(session, stream);
    greeting.negotiate(&mut stream, &Wishes { export: &uri.export, contexts: &["base:allocation"] })
}

/// What a user is told of a TLS layer that refuses.
#[track_caller]
fn advised(outcome: Result<Export, HandshakeError>) -> &'static str {
    let error = match outcome.unwrap_err() {
        HandshakeError::Io(error) => error,
        error => panic!("{error}"),
    };
    advice(&error).unwrap_or_else(|| panic!("no advice: {error:?}"))
}

#[test]
fn both_sides_prove_who_they_are() {
    if !have("both_sides_prove_who_they_are", &PROGRAMS) {
        return;
    }
    let authority = Authority::new();
    let (theirs, ours) = (authority.server(), authority.client());
    let mut server = nbdkit(&theirs, &["--tls-verify-peer"]);
    for hostname in [None, Some("vm.example")] {
        let named = uri(server.port, &ours, hostname);
        let export = negotiate(&mut server, &named).unwrap();
        assert_eq!((export.size, export.contexts.len()), (1 << 20, 1));
    }
    let stranger = authority.path("stranger");
    std::fs::create_dir(&stranger).unwrap();
    std::fs::copy(ours.join("ca-cert.pem"), stranger.join("ca-cert.pem")).unwrap();
    let without = uri(server.port, &stranger, None);
    assert!(advised(negotiate(&mut server, &without)).contains("client-cert.pem"));
}

#[test]
fn a_server_that_cannot_be_trusted_is_refused() {
    if !have("a_server_that_cannot_be_trusted_is_refused", &PROGRAMS) {
        return;
    }
    let (authority, other) = (Authority::new(), Authority::new());
    let (theirs, ours) = (authority.server(), authority.client());
    let mut server = nbdkit(&theirs, &[]);
    let port = server.port;
    negotiate(&mut server, &uri(port, &ours, None)).unwrap();
    let wrong_name = uri(port, &ours, Some("other.example"));
    assert!(advised(negotiate(&mut server, &wrong_name)).contains("tls-hostname=NAME"));
    let wrong_authority = uri(port, &other.client(), None);
    assert!(advised(negotiate(&mut server, &wrong_authority)).contains("ca-cert.pem"));

    authority.revoke_server(&ours);
    let error = negotiate(&mut server, &uri(port, &ours, None)).unwrap_err();
    let HandshakeError::Io(error) = error else { panic!("{error}") };
    assert!(error.to_string().contains("Revoked"), "{error}");
}

#[test]
fn tls_is_asked_for_and_never_done_without() {
    if !have("tls_is_asked_for_and_never_done_without", &PROGRAMS) {
        return;
    }
    let authority = Authority::new();
    let mut server = nbdkit(&authority.server(), &[]);
    let mut stream = server.connect();
    let wishes = Wishes { export: "", contexts: &[] };
    let error = Greeting::read(&mut stream).unwrap().negotiate(&mut stream, &wishes).unwrap_err();
    assert!(matches!(error, HandshakeError::TlsRequired { .. }), "{error}");

    let mut plain = Remote::nbdkit(&["memory", "size=1M"]);
    let mut stream = plain.connect();
    let error = Greeting::read(&mut stream).unwrap().start_tls(&mut stream).unwrap_err();
    assert!(matches!(error, HandshakeError::TlsRefused { .. }), "{error}");
}

#[test]
fn a_key_of_another_is_refused() {
    if !have("a_key_of_another_is_refused", &PROGRAMS) {
        return;
    }
    let authority = Authority::new();
    let (theirs, ours) = (authority.server(), authority.client());
    let choice = |folder: &Path| {
        let uri = format!("nbds://h/?tls-certificates={}", folder.display());
        Uri::parse(&uri).unwrap().tls.unwrap()
    };
    assert_eq!(Arc::strong_count(&config(&choice(&ours)).unwrap()), 1);
    std::fs::copy(theirs.join("server-key.pem"), ours.join("client-key.pem")).unwrap();
    let error = config(&choice(&ours)).unwrap_err();
    assert!(error.subject().unwrap().ends_with("client-cert.pem"), "{error}");
    std::fs::remove_file(ours.join("client-key.pem")).unwrap();
    let error = config(&choice(&ours)).unwrap_err();
    assert!(error.subject().unwrap().ends_with("client-key.pem"), "{error}");
}
