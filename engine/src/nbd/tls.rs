//! TLS settings of a connection to an NBD server.
//!
//! The directory of certificates is laid out as QEMU's and libnbd's: `ca-cert.pem` (then trusted
//! alone, instead of the system's authorities), `ca-crl.pem`, and `client-cert.pem` with
//! `client-key.pem`. The server is always verified. A file that is there is used or refused, never
//! passed over: each was put there to be obeyed.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, ServerName};
use rustls::{CertificateError, ClientConfig, RootCertStore};

use super::uri::{Endpoint, TlsChoice, Uri};
use crate::error::{Error, ErrorKind, Result};

/// Most bytes of a file of certificates or keys; the system's bundle has a quarter of it.
const FILE_LEN_MAX: u64 = 1 << 20;

const CA_CERT: &str = "ca-cert.pem";
const CA_CRL: &str = "ca-crl.pem";
const CLIENT_CERT: &str = "client-cert.pem";
const CLIENT_KEY: &str = "client-key.pem";

/// Where systems keep the authorities they trust, in one file.
const SYSTEM_BUNDLES: [&str; 4] = [
    // Debian, Ubuntu, Arch, Alpine
    "/etc/ssl/certs/ca-certificates.crt",
    // Fedora and its kin
    "/etc/pki/tls/certs/ca-bundle.crt",
    // SUSE
    "/etc/ssl/ca-bundle.pem",
    // BSD's and LibreSSL's name, by which others have it as well
    "/etc/ssl/cert.pem",
];

/// What a file must be, and what to do if it is not.
const WANT_CERTIFICATES: &str = "write the certificates as PEM (-----BEGIN CERTIFICATE-----)";
const WANT_KEY: &str = "write the key as PEM, not encrypted (-----BEGIN PRIVATE KEY-----)";
const WANT_PAIR: &str = "put a certificate there and the key it was made for: RSA, Ed25519, or EC on P-256 or \
     P-384; an EC key of certtool may need `openssl pkey -in client-key.pem -out NEW` first";
const WANT_CLIENT: &str = "the server may want a client's certificate of an authority that it trusts: put \
     client-cert.pem and client-key.pem into the directory that tls-certificates=DIR names";
const WANT_CRL: &str = "write the list as PEM (-----BEGIN X509 CRL-----), or remove the file";

/// The settings for connections as `choice` wants them.
///
/// # Errors
/// A file that is missing, unreadable, too large or not what its name says; no authorities.
pub fn config(choice: &TlsChoice) -> Result<Arc<ClientConfig>> {
    let files = Files::read(choice.certificates.as_deref())?;
    let provider = Arc::new(ring::default_provider());
    let verifier = files.verifier(&provider)?;
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| Error::new(ErrorKind::Internal, "TLS cannot be set up").because(e))?
        .with_webpki_verifier(verifier);
    let config = match files.client {
        None => builder.with_no_client_auth(),
        Some(client) => {
            builder.with_client_auth_cert(client.chain, client.key).map_err(|error| {
                Error::new(ErrorKind::InvalidRequest, "a client's certificate and key do not fit")
                    .on(client.subject)
                    .hint(WANT_PAIR)
                    .because(error)
            })?
        }
    };
    Ok(Arc::new(config))
}

/// The name that the certificate of the server of `uri` must bear: the one that the URI gives, or
/// its host; `localhost` for a Unix socket.
///
/// # Errors
/// Neither a DNS name nor an address.
pub fn server_name(uri: &Uri) -> Result<ServerName<'static>> {
    let given = uri.tls.as_ref().and_then(|tls| tls.hostname.as_deref());
    let name = match (given, &uri.endpoint) {
        (Some(name), _) => name,
        (None, Endpoint::Tcp { host, .. }) => host,
        (None, Endpoint::Unix(_)) => "localhost",
    };
    ServerName::try_from(name.to_owned()).map_err(|error| {
        Error::new(ErrorKind::InvalidRequest, "no certificate can bear the server's name")
            .on(name)
            .hint("name what its certificate bears with tls-hostname=NAME, in ASCII")
            .because(error)
    })
}

/// What to do about a stream of TLS that failed so.
pub fn advice(error: &io::Error) -> Option<&'static str> {
    let cause = error.get_ref().and_then(|cause| cause.downcast_ref::<rustls::Error>());
    match cause {
        Some(rustls::Error::InvalidCertificate(error)) => advice_on_certificate(error),
        Some(rustls::Error::AlertReceived(_)) => Some(WANT_CLIENT),
        Some(_) => None,
        // Not all servers say why before they hang up, and what they say may be lost with them.
        None => hung_up(error.kind()).then_some(WANT_CLIENT),
    }
}

fn hung_up(kind: io::ErrorKind) -> bool {
    use io::ErrorKind as K;
    matches!(kind, K::UnexpectedEof | K::ConnectionReset | K::BrokenPipe)
}

fn advice_on_certificate(error: &CertificateError) -> Option<&'static str> {
    use CertificateError as C;
    match error {
        // An authority of the same name with another key signs differently.
        C::UnknownIssuer | C::BadSignature => Some(
            "put the certificate of the server's authority into ca-cert.pem of the directory that \
             tls-certificates=DIR names",
        ),
        C::NotValidForName | C::NotValidForNameContext { .. } => Some(
            "name what the certificate bears as a subject alternative name with \
             tls-hostname=NAME; a common name alone does not count",
        ),
        C::Expired | C::ExpiredContext { .. } => {
            Some("renew the server's certificate, or set this machine's clock right")
        }
        C::ExpiredRevocationList | C::ExpiredRevocationListContext { .. } => {
            Some("renew ca-crl.pem in the directory that tls-certificates=DIR names")
        }
        _ => None,
    }
}

/// What the files say.
struct Files {
    roots: RootCertStore,
    revoked: Vec<CertificateRevocationListDer<'static>>,
    client: Option<Client>,
}

/// Who we are to the server.
struct Client {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    subject: String,
}

impl Files {
    fn read(directory: Option<&Path>) -> Result<Files> {
        let Some(directory) = directory else {
            return Ok(Files { roots: system_roots()?, revoked: Vec::new(), client: None });
        };
        let file = |name| PemFile::read(&directory.join(name));
        let (ca, crl) = (file(CA_CERT)?, file(CA_CRL)?);
        let (cert, key) = (file(CLIENT_CERT)?, file(CLIENT_KEY)?);
        if [&ca, &crl, &cert, &key].iter().all(|file| file.is_none()) {
            return Err(Error::new(ErrorKind::NotFound, "no certificates are in the directory")
                .on(directory.display().to_string())
                .hint("name the directory that holds ca-cert.pem with tls-certificates=DIR"));
        }
        Ok(Files {
            roots: ca.map_or_else(system_roots, |ca| ca.roots())?,
            revoked: crl.map_or(Ok(Vec::new()), |crl| crl.all(WANT_CRL))?,
            client: client(cert, key, directory)?,
        })
    }

    fn verifier(&self, provider: &Arc<CryptoProvider>) -> Result<Arc<WebPkiServerVerifier>> {
        let (roots, provider) = (Arc::new(self.roots.clone()), Arc::clone(provider));
        // A list speaks for its own authority, for as long as it says.
        WebPkiServerVerifier::builder_with_provider(roots, provider)
            .with_crls(self.revoked.iter().cloned())
            .allow_unknown_revocation_status()
            .enforce_revocation_expiration()
            .build()
            .map_err(|error| {
                Error::new(
                    ErrorKind::InvalidRequest,
                    "the list of revoked certificates is unusable",
                )
                .on(CA_CRL)
                .hint(WANT_CRL)
                .because(error)
            })
    }
}

/// A file that is there.
struct PemFile {
    path: String,
    bytes: Vec<u8>,
}

impl PemFile {
    /// The file at `path`; `None` if there is none.
    fn read(path: &Path) -> Result<Option<PemFile>> {
        let bytes = read(path)?;
        Ok(bytes.map(|bytes| PemFile { path: path.display().to_string(), bytes }))
    }

    fn unusable(&self, hint: &str) -> Error {
        let message = "a file of certificates or keys is not what its name says";
        Error::new(ErrorKind::InvalidRequest, message).on(&self.path).hint(hint)
    }

    /// All of the kind that it holds, one at the least.
    fn all<T: PemObject>(&self, hint: &str) -> Result<Vec<T>> {
        let all: std::result::Result<Vec<T>, _> = T::pem_slice_iter(&self.bytes).collect();
        match all {
            Ok(all) if all.is_empty() => Err(self.unusable(hint)),
            Ok(all) => Ok(all),
            Err(error) => Err(self.unusable(hint).because(error)),
        }
    }

    fn roots(&self) -> Result<RootCertStore> {
        let mut roots = RootCertStore::empty();
        for certificate in self.all::<CertificateDer<'static>>(WANT_CERTIFICATES)? {
            roots.add(certificate).map_err(|e| self.unusable(WANT_CERTIFICATES).because(e))?;
        }
        Ok(roots)
    }
}

fn client(cert: Option<PemFile>, key: Option<PemFile>, directory: &Path) -> Result<Option<Client>> {
    let (cert, key) = match (cert, key) {
        (None, None) => return Ok(None),
        (Some(cert), Some(key)) => (cert, key),
        (cert, _) => {
            let missing = if cert.is_some() { CLIENT_KEY } else { CLIENT_CERT };
            let message = "a client's certificate needs its key and the key its certificate";
            return Err(Error::new(ErrorKind::NotFound, message)
                .on(directory.join(missing).display().to_string())
                .hint("put the missing file there, or take the other one away"));
        }
    };
    let chain = cert.all(WANT_CERTIFICATES)?;
    let key = PrivateKeyDer::from_pem_slice(&key.bytes)
        .map_err(|error| key.unusable(WANT_KEY).because(error))?;
    Ok(Some(Client { chain, key, subject: cert.path }))
}

/// The authorities that this system trusts.
fn system_roots() -> Result<RootCertStore> {
    for path in SYSTEM_BUNDLES {
        let Some(file) = PemFile::read(Path::new(path))? else { continue };
        let mut roots = RootCertStore::empty();
        // Bundles hold oddities that no connection will ever need.
        roots.add_parsable_certificates(file.all::<CertificateDer<'static>>(WANT_CERTIFICATES)?);
        if !roots.is_empty() {
            return Ok(roots);
        }
    }
    Err(Error::new(ErrorKind::NotFound, "this system has no certificates of authorities")
        .hint("install ca-certificates, or name a directory with tls-certificates=DIR"))
}

/// The bytes of a file; `None` if there is none.
fn read(path: &Path) -> Result<Option<Vec<u8>>> {
    let subject = path.display().to_string();
    let failed = |error| {
        Error::io("a file of certificates or keys cannot be read", &subject, error)
            .hint("make it readable to the user who runs this, or name another directory")
    };
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file.map_err(failed)?,
    };
    let mut bytes = Vec::new();
    file.take(FILE_LEN_MAX + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > FILE_LEN_MAX {
        let message = "a file of certificates or keys is larger than 1 MiB";
        return Err(Error::new(ErrorKind::InvalidRequest, message)
            .on(subject)
            .hint("keep in it only what this connection needs"));
    }
    Ok(Some(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choice(directory: &Path) -> TlsChoice {
        TlsChoice { certificates: Some(directory.into()), hostname: None }
    }

    /// What is said of a directory with these files.
    #[track_caller]
    fn refused(files: &[(&str, &[u8])]) -> Error {
        let directory = tempfile::tempdir().unwrap();
        for (name, bytes) in files {
            std::fs::write(directory.path().join(name), bytes).unwrap();
        }
        config(&choice(directory.path())).unwrap_err()
    }

    #[track_caller]
    fn assert_names(error: &Error, kind: ErrorKind, file: &str) {
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.subject().unwrap().ends_with(file), "{:?}", error.subject());
        assert!(error.remedy().is_some());
    }

    #[test]
    fn a_file_that_is_no_pem_is_refused_by_its_name() {
        for bytes in [&b""[..], b"hello", b"\0\xff", b"-----BEGIN CERTIFICATE-----\n"] {
            assert_names(&refused(&[(CA_CERT, bytes)]), ErrorKind::InvalidRequest, CA_CERT);
        }
        let hollow = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        assert_names(&refused(&[(CA_CERT, hollow)]), ErrorKind::InvalidRequest, CA_CERT);
        let key = b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
        assert_names(&refused(&[(CA_CERT, key)]), ErrorKind::InvalidRequest, CA_CERT);
    }

    #[test]
    fn a_file_of_any_size_costs_a_bounded_read() {
        let large = vec![b'x'; FILE_LEN_MAX as usize + 1];
        let error = refused(&[(CA_CERT, &large)]);
        assert_names(&error, ErrorKind::InvalidRequest, CA_CERT);
        assert!(error.message().contains("larger than 1 MiB"));
        let endless = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/dev/zero", endless.path().join(CA_CERT)).unwrap();
        let error = config(&choice(endless.path())).unwrap_err();
        assert!(error.message().contains("larger than 1 MiB"));
    }

    #[test]
    fn a_directory_without_certificates_is_refused() {
        let error = refused(&[("server-cert.pem", b"")]);
        assert_eq!(error.kind(), ErrorKind::NotFound);
        let error = config(&choice(Path::new("/nonexistent"))).unwrap_err();
        assert_eq!((error.kind(), error.subject()), (ErrorKind::NotFound, Some("/nonexistent")));
    }

    #[test]
    fn a_file_that_cannot_be_read_is_not_passed_over() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join(CA_CRL)).unwrap();
        let error = config(&choice(directory.path())).unwrap_err();
        assert_names(&error, ErrorKind::Io, CA_CRL);
    }

    #[test]
    fn the_servers_name_is_the_uris() {
        let table = [
            ("nbds://host.example/", "host.example"),
            ("nbds://192.0.2.1/", "192.0.2.1"),
            ("nbds://[2001:db8::1]/", "2001:db8::1"),
            ("nbds://host/?tls-hostname=vm.example", "vm.example"),
            ("nbds+unix:///?socket=s", "localhost"),
            ("nbds+unix:///?socket=s&tls-hostname=vm", "vm"),
        ];
        for (uri, name) in table {
            let found = server_name(&Uri::parse(uri).unwrap()).unwrap();
            assert_eq!(found.to_str(), name, "{uri}");
        }
        let error = server_name(&Uri::parse("nbds://gr%C3%BCn/").unwrap()).unwrap_err();
        assert_eq!((error.kind(), error.subject()), (ErrorKind::InvalidRequest, Some("grün")));
    }
}
