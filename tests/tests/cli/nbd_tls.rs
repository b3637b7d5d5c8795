//! NBD over TLS: who is trusted, who is refused, and that nothing goes in the clear instead.

use std::path::Path;

use voltar_tests::command::words;
use voltar_tests::data::{assert_same, disk};
use voltar_tests::device::system;
use voltar_tests::nbd::{self, Server};
use voltar_tests::{Ran, Scratch, Voltar};

/// An authority with the directories of certificates that it gave out.
struct Authority<'a> {
    scratch: &'a Scratch,
    name: &'a str,
}

impl<'a> Authority<'a> {
    /// That calls itself `title`.
    fn new(scratch: &'a Scratch, name: &'a str, title: &str) -> Authority<'a> {
        let authority = Authority { scratch, name };
        authority.certtool(
            &["--generate-privkey", "--key-type=rsa", "--bits=2048", "--outfile", "KEY"],
            "key",
        );
        let template = format!("cn = {title}\nca\ncert_signing_key\nexpiration_days = 2\n");
        scratch.write("template", template.as_bytes());
        authority.certtool(
            &[
                "--generate-self-signed",
                "--load-privkey",
                "KEY",
                "--template",
                "template",
                "--outfile",
                "CERT",
            ],
            "certificate",
        );
        authority
    }

    fn path(&self, file: &str) -> String {
        self.scratch.path(&format!("{}-{file}", self.name)).to_str().unwrap().to_owned()
    }

    /// Runs certtool; `KEY` and `CERT` are the authority's.
    fn certtool(&self, args: &[&str], what: &str) {
        let (key, cert) = (self.path("key.pem"), self.path("cert.pem"));
        let template = self.scratch.path("template");
        let args: Vec<&str> = args
            .iter()
            .map(|arg| match *arg {
                "KEY" => key.as_str(),
                "CERT" => cert.as_str(),
                "template" => template.to_str().unwrap(),
                arg => arg,
            })
            .collect();
        system("certtool", &args).unwrap_or_else(|why| panic!("{what}: {why}"));
    }

    /// A directory with a certificate for a `server` or a `client`, besides the authority's own.
    fn directory(&self, name: &str, role: &str, template: &str) -> String {
        let directory = self.scratch.path(name);
        std::fs::create_dir_all(&directory).unwrap();
        std::fs::copy(self.path("cert.pem"), directory.join("ca-cert.pem")).unwrap();
        let file = |kind: &str| path(&directory, &format!("{role}-{kind}.pem"));
        let (key, cert) = (file("key"), file("cert"));
        self.certtool(
            &["--generate-privkey", "--key-type=rsa", "--bits=2048", "--outfile", &key],
            "key",
        );
        let usage = "tls_www_server\ntls_www_client\nsigning_key\nexpiration_days = 2\n";
        self.scratch.write("template", format!("cn = {role}\n{template}\n{usage}").as_bytes());
        self.certtool(
            &[
                "--generate-certificate",
                "--load-privkey",
                &key,
                "--load-ca-certificate",
                "CERT",
                "--load-ca-privkey",
                "KEY",
                "--template",
                "template",
                "--outfile",
                &cert,
            ],
            "certificate",
        );
        directory.to_str().unwrap().to_owned()
    }

    /// A directory with nothing but the authority's own certificate.
    fn trust(&self, name: &str) -> String {
        let directory = self.scratch.path(name);
        std::fs::create_dir_all(&directory).unwrap();
        std::fs::copy(self.path("cert.pem"), directory.join("ca-cert.pem")).unwrap();
        directory.to_str().unwrap().to_owned()
    }
}

fn path(directory: &Path, name: &str) -> String {
    directory.join(name).to_str().unwrap().to_owned()
}

fn voltar(scratch: &Scratch, line: &str) -> Voltar {
    Voltar::new(scratch).args(words(line))
}

/// A server with `source` that speaks TLS, if these arguments say so.
fn server(scratch: &Scratch, name: &str, tls: &[&str]) -> Server {
    Server::nbdkit_on_tcp(scratch, name, &[tls, &["file", "source"]].concat())
}

/// A backup that must fail, with these words; not a byte of data was asked for.
#[track_caller]
fn refused(scratch: &Scratch, server: &Server, uri: &str, words: &str) -> Ran {
    server.forget_requests();
    let ran = voltar(scratch, &format!("backup disk={uri} refused.voltar")).run().expect(1);
    assert!(ran.stderr.contains(words), "not {words:?}: {}", ran.stderr);
    assert_eq!(server.requests(), [], "data went over a connection that was refused");
    ran
}

#[test]
fn exports_are_read_and_written_over_tls() {
    let test = "exports_are_read_and_written_over_tls";
    let Some(scratch) = nbd::scratch(test) else { return };
    let bytes = disk(31, 8 << 20);
    scratch.write("source", &bytes);
    scratch.write("target", &vec![0; 8 << 20]);
    let authority = Authority::new(&scratch, "ours", "An authority");
    let names = "dns_name = localhost\nip_address = 127.0.0.1";
    let serves = authority.directory("serves", "server", names);
    let client = authority.directory("client", "client", "");
    let trusts = authority.trust("trusts");
    let certificates = format!("--tls-certificates={serves}");
    let tls = ["--tls=require", &certificates];
    for io in ["uring", "blocking"] {
        let server = server(&scratch, &format!("tcp-{io}"), &tls);
        let uri = server.uri_with("nbds", "", &format!("tls-certificates={trusts}"));
        let archive = format!("{io}.voltar");
        voltar(&scratch, &format!("backup disk={uri} {archive} --io {io}")).ok();
        assert!(!server.requests_for("Read").is_empty());
        voltar(&scratch, &format!("restore {archive} out --overwrite")).ok();
        assert_same(&scratch.read("out"), &bytes, io);
    }
    // Over a socket, with a certificate of our own that the server insists on.
    let args = [&tls[..], &["--tls-verify-peer", "file", "target"]].concat();
    let server = Server::nbdkit(&scratch, "socket", &args);
    let uri = server.uri_with("nbds", "", &format!("tls-certificates={client}"));
    voltar(&scratch, &format!("restore uring.voltar {uri} --read-back")).ok();
    let nameless = server.uri_with("nbds", "", &format!("tls-certificates={trusts}"));
    let ran = refused(&scratch, &server, &nameless, "cannot connect to the NBD server");
    assert!(ran.stderr.contains("client-cert.pem"), "no advice: {}", ran.stderr);
    drop(server);
    assert_same(&scratch.read("target"), &bytes, "the target");
}

#[test]
fn a_server_that_is_not_proven_to_be_itself_is_refused() {
    let test = "a_server_that_is_not_proven_to_be_itself_is_refused";
    let Some(scratch) = nbd::scratch(test) else { return };
    scratch.write("source", &disk(32, 1 << 20));
    let ours = Authority::new(&scratch, "ours", "An authority");
    let theirs = Authority::new(&scratch, "theirs", "Another authority");
    let namesake = Authority::new(&scratch, "namesake", "An authority");
    let serves = ours.directory("serves", "server", "dns_name = vm.example");
    let certificates = format!("--tls-certificates={serves}");
    let server = server(&scratch, "server", &["--tls=require", &certificates]);
    let uri = |query: &str| server.uri_with("nbds", "", query);
    let trusts = ours.trust("trusts");
    for elsewhere in [theirs.trust("elsewhere"), namesake.trust("seemingly")] {
        let wrong = uri(&format!("tls-certificates={elsewhere}&tls-hostname=vm.example"));
        let ran = refused(&scratch, &server, &wrong, "invalid peer certificate");
        assert!(ran.stderr.contains("ca-cert.pem"), "no advice: {}", ran.stderr);
    }
    let wrong = uri(&format!("tls-certificates={trusts}"));
    let ran = refused(&scratch, &server, &wrong, "invalid peer certificate");
    assert!(ran.stderr.contains("tls-hostname=NAME"), "no advice: {}", ran.stderr);
    // The system trusts no authority of ours.
    let wrong = uri("tls-hostname=vm.example");
    voltar(&scratch, &format!("backup disk={wrong} refused.voltar")).run().expect(1);
    assert_eq!(server.requests(), []);

    let right = uri(&format!("tls-certificates={trusts}&tls-hostname=vm.example"));
    voltar(&scratch, &format!("backup disk={right} a.voltar")).ok();
}

#[test]
fn tls_is_neither_left_out_nor_taken_on_silently() {
    let test = "tls_is_neither_left_out_nor_taken_on_silently";
    let Some(scratch) = nbd::scratch(test) else { return };
    scratch.write("source", &disk(33, 1 << 20));
    let authority = Authority::new(&scratch, "ours", "An authority");
    let serves = authority.directory("serves", "server", "dns_name = localhost");
    let trusts = authority.trust("trusts");
    let certificates = format!("--tls-certificates={serves}");
    let secret = server(&scratch, "secret", &["--tls=require", &certificates]);
    let ran = refused(&scratch, &secret, &secret.uri(), "the server wants TLS");
    assert!(ran.stderr.contains("nbds://"), "{}", ran.stderr);
    let open = server(&scratch, "open", &[]);
    let query = format!("tls-certificates={trusts}");
    let uri = open.uri_with("nbds", "", &query);
    let ran = refused(&scratch, &open, &uri, "the server refuses TLS");
    assert!(ran.stderr.contains("without it nothing was sent"), "{}", ran.stderr);
    let missing = open.uri_with("nbds", "", "tls-certificates=nowhere");
    refused(&scratch, &open, &missing, "no certificates are in the directory");
}
