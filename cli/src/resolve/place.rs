//! What a word on the command line names: a path, a named path, an archive with a snapshot.
//!
//! One rule goes before all others: a path that exists as it is typed is that path.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use voltar_engine::nbd::Uri;
use voltar_engine::nbd::uri::Endpoint;
use voltar_engine::options::{Place, Selector};

use super::selector;
use crate::error::CommandError;
use crate::world::World;

/// Longest name of a volume or an attached file, in bytes.
const NAME_LEN_MAX: usize = 255;

/// URI kinds that other tools or a later voltar give a meaning to; never taken for file names.
const URI_KINDS: [&str; 14] = [
    "nbd", "nbds", "nbd+unix", "rbd", "qcow2", "qemu", "qmp", "libvirt", "s3", "sftp", "ssh",
    "http", "https", "file",
];

/// `[NAME=]PATH`, taken apart.
#[derive(Debug, PartialEq, Eq)]
pub struct Named {
    /// The name, if one was given.
    pub name: Option<String>,
    /// The path.
    pub path: PathBuf,
}

impl Named {
    /// The name given, or else the last part of the path.
    pub fn with_default_name(self) -> Result<(String, PathBuf), CommandError> {
        let name = match self.name {
            Some(name) => name,
            None => default_name(&self.path)?,
        };
        Ok((name, self.path))
    }
}

/// Reads `[NAME=]PATH`. The first `=` divides, unless the whole exists or a `/` comes before it.
pub fn named(word: &OsStr, world: &dyn World) -> Result<Named, CommandError> {
    let whole = || local(word, world).map(|path| Named { name: None, path });
    if world.exists(Path::new(word)) {
        return whole();
    }
    match split_name(word) {
        None => whole(),
        Some((name, path)) => {
            Ok(Named { name: Some(checked_name(name, word)?), path: local(path, world)? })
        }
    }
}

/// Reads `[NAME=]SOURCE`: a path, `lvm:GROUP/VOLUME`, `zfs:POOL/VOLUME`, the URI of an NBD export,
/// `qemu:SOCKET[/DISK]` or `libvirt:DOMAIN[/DISK]`, with the volume's name.
pub fn source(word: &OsStr, world: &dyn World) -> Result<(String, Place), CommandError> {
    let (name, place) = target(word, world)?;
    let name = match (name, &place) {
        (Some(name), _) => name,
        (None, Place::Path(path)) => default_name(path)?,
        (None, Place::Lvm { volume, .. }) => volume.clone(),
        (None, Place::Zfs(dataset)) => default_name(Path::new(dataset))?,
        (None, Place::Nbd(uri)) => name_of_export(uri)?,
        (None, Place::Image { path, .. }) => default_name(path)?,
        (None, Place::Qemu { monitor, disk: None }) => default_name(&monitor.with_extension(""))?,
        (None, Place::Qemu { monitor, disk: Some(disk) }) => {
            format!("{}-{disk}", default_name(&monitor.with_extension(""))?)
        }
        (None, Place::Libvirt { domain, disk: None }) => domain.clone(),
        (None, Place::Libvirt { domain, disk: Some(disk) }) => format!("{domain}-{disk}"),
    };
    Ok((name, place))
}

/// Reads `[NAME=]TARGET`: a path, `lvm:GROUP/VOLUME`, `zfs:POOL/VOLUME` or the URI of an NBD export,
/// with the name if there is one.
pub fn target(word: &OsStr, world: &dyn World) -> Result<(Option<String>, Place), CommandError> {
    let (name, rest) = match split_name(word) {
        Some((name, rest)) if !world.exists(Path::new(word)) => (Some(name), rest),
        _ => (None, word),
    };
    match volume(rest, world)? {
        Some(place) => Ok((name.map(|name| checked_name(name, word)).transpose()?, place)),
        None => named(word, world).map(|named| (named.name, Place::Path(named.path))),
    }
}

/// The name of an export, or else of who serves it.
fn name_of_export(uri: &Uri) -> Result<String, CommandError> {
    match (&uri.endpoint, &*uri.export) {
        (Endpoint::Tcp { host, .. }, "") => default_name(Path::new(host)),
        (Endpoint::Unix(socket), "") => default_name(&socket.with_extension("")),
        (_, export) => default_name(Path::new(export)),
    }
}

/// A volume that is named by its manager's names or by a URI; `None` for a path.
pub fn volume(word: &OsStr, world: &dyn World) -> Result<Option<Place>, CommandError> {
    let Some((kind, rest)) = split_first(word, b':') else { return Ok(None) };
    let (Some(kind), Some(rest)) = (kind.to_str(), rest.to_str()) else { return Ok(None) };
    if world.exists(Path::new(word)) {
        return Ok(None);
    }
    let wrong = |shape: &str| {
        Err(CommandError::usage(
            format!("this does not name a volume: {}", lossy(word)),
            format!("write {shape}; for a file of this name write ./{}", lossy(word)),
        ))
    };
    match kind {
        "nbd" | "nbds" | "nbd+unix" | "nbds+unix" if rest.starts_with("//") => {
            let uri = Uri::parse(&lossy(word)).map_err(|error| {
                let message = format!("this does not name an export: {}", lossy(word));
                CommandError::usage(message, error.to_string())
            })?;
            Ok(Some(Place::Nbd(uri)))
        }
        "raw" | "qcow2" | "vmdk" | "vhdx" | "vdi" => match (kind.parse(), rest) {
            (Ok(format), path) if !path.is_empty() => {
                Ok(Some(Place::Image { format, path: path.into() }))
            }
            _ => wrong("FORMAT:PATH"),
        },
        "qemu" if rest.is_empty() => {
            wrong("qemu:SOCKET or qemu:SOCKET/DISK, the socket of its monitor (QMP)")
        }
        "qemu" => Ok(Some(running(Path::new(rest), world))),
        "libvirt" => match rest.split('/').collect::<Vec<_>>()[..] {
            [domain] if !domain.is_empty() => {
                Ok(Some(Place::Libvirt { domain: domain.into(), disk: None }))
            }
            [domain, disk] if !domain.is_empty() && !disk.is_empty() => {
                Ok(Some(Place::Libvirt { domain: domain.into(), disk: Some(disk.into()) }))
            }
            _ => wrong("libvirt:DOMAIN or libvirt:DOMAIN/DISK"),
        },
        "lvm" => match rest.split('/').collect::<Vec<_>>()[..] {
            [group, volume] if is_lvm_name(group) && is_lvm_name(volume) => {
                Ok(Some(Place::Lvm { group: group.into(), volume: volume.into() }))
            }
            _ => wrong("lvm:GROUP/VOLUME"),
        },
        "zfs" if is_dataset(rest) => Ok(Some(Place::Zfs(rest.into()))),
        "zfs" => wrong("zfs:POOL/VOLUME"),
        _ => Ok(None),
    }
}

/// The monitor of a VM, or one disk of it: what does not exist below something that does.
fn running(path: &Path, world: &dyn World) -> Place {
    let disk = path.file_name().and_then(OsStr::to_str).map(str::to_owned);
    match (path.parent(), disk) {
        (Some(monitor), Some(disk))
            if !world.exists(path) && world.exists(monitor) && !world.is_directory(monitor) =>
        {
            Place::Qemu { monitor: monitor.into(), disk: Some(disk) }
        }
        _ => Place::Qemu { monitor: path.into(), disk: None },
    }
}

/// What LVM takes for a name (`lvm(8)`, "VALID NAMES").
fn is_lvm_name(name: &str) -> bool {
    let is_valid = |c: char| c.is_ascii_alphanumeric() || "+_.-".contains(c);
    !name.is_empty()
        && name.chars().all(is_valid)
        && !name.starts_with('-')
        && name != "."
        && name != ".."
}

/// What ZFS takes for the name of a volume (`zfs(8)`): a pool and at least one name more.
fn is_dataset(name: &str) -> bool {
    let is_valid = |c: char| c.is_ascii_alphanumeric() || "-_.: ".contains(c);
    let is_part =
        |part: &str| !part.is_empty() && part.chars().all(is_valid) && !part.starts_with('-');
    name.contains('/') && name.split('/').all(is_part)
}

/// Reads `ARCHIVE[@SNAPSHOT]`. The last `@` divides, unless the whole exists.
pub fn archive_and_snapshot(
    word: &OsStr,
    world: &dyn World,
) -> Result<(PathBuf, Option<Selector>), CommandError> {
    let split = match world.exists(Path::new(word)) {
        true => None,
        false => split_last(word, b'@'),
    };
    match split {
        None => Ok((local(word, world)?, None)),
        Some((archive, snapshot)) => {
            let archive = local(archive, world)?;
            let text = snapshot.to_str().ok_or_else(|| selector::unknown(&lossy(snapshot)))?;
            Ok((archive, Some(selector::parse(text, &world.zone())?)))
        }
    }
}

/// A path on this machine; URIs are of no kind this version knows.
pub fn local(word: &OsStr, world: &dyn World) -> Result<PathBuf, CommandError> {
    if word.is_empty() {
        return Err(CommandError::usage("a path is empty", "is a shell variable unset?"));
    }
    match uri_kind(word) {
        Some(kind) if !world.exists(Path::new(word)) => Err(CommandError::usage(
            format!("`{kind}:` is a kind of place this version cannot reach: {}", lossy(word)),
            format!(
                "name a block device or a file; for a file of this name write ./{}",
                lossy(word)
            ),
        )),
        _ => Ok(PathBuf::from(word)),
    }
}

/// `kind` of `kind:rest`, if the kind is known or `//` follows.
fn uri_kind(word: &OsStr) -> Option<&str> {
    let (kind, rest) = split_first(word, b':')?;
    let kind = kind.to_str()?;
    let is_scheme = kind.starts_with(|c: char| c.is_ascii_alphabetic())
        && kind.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c));
    let is_uri = URI_KINDS.contains(&kind) || rest.as_bytes().starts_with(b"//");
    (is_scheme && is_uri).then_some(kind)
}

/// The two sides of the first `=`, if what comes before it can be a name.
fn split_name(word: &OsStr) -> Option<(&OsStr, &OsStr)> {
    split_first(word, b'=').filter(|(name, _)| !name.as_bytes().contains(&b'/'))
}

fn checked_name(name: &OsStr, word: &OsStr) -> Result<String, CommandError> {
    match name.to_str() {
        Some(text) if !text.is_empty() && text.len() <= NAME_LEN_MAX => Ok(text.to_string()),
        _ => Err(CommandError::usage(
            format!("this name cannot be used: {}", lossy(word)),
            format!("a name is 1 to {NAME_LEN_MAX} bytes of UTF-8; for a file called so write ./"),
        )),
    }
}

fn default_name(path: &Path) -> Result<String, CommandError> {
    path.file_name()
        .and_then(OsStr::to_str)
        .filter(|name| name.len() <= NAME_LEN_MAX)
        .map(str::to_string)
        .ok_or_else(|| {
            CommandError::usage(
                format!("no name can be taken from the path {}", path.display()),
                "give it one: NAME=PATH",
            )
        })
}

fn split_first(word: &OsStr, mark: u8) -> Option<(&OsStr, &OsStr)> {
    let at = word.as_bytes().iter().position(|byte| *byte == mark)?;
    Some(split_around(word, at))
}

fn split_last(word: &OsStr, mark: u8) -> Option<(&OsStr, &OsStr)> {
    let at = word.as_bytes().iter().rposition(|byte| *byte == mark)?;
    Some(split_around(word, at))
}

fn split_around(word: &OsStr, at: usize) -> (&OsStr, &OsStr) {
    let (before, after) = word.as_bytes().split_at(at);
    (OsStr::from_bytes(before), OsStr::from_bytes(after.get(1..).unwrap_or_default()))
}

fn lossy(word: &OsStr) -> String {
    OsString::from_vec(word.as_bytes().to_vec()).to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resolve::fake::Fake;

    fn with(files: &[&'static str]) -> Fake {
        Fake { files: files.to_vec(), ..Fake::default() }
    }

    fn split(word: &str, world: &Fake) -> (String, Option<Selector>) {
        let (path, selector) = archive_and_snapshot(OsStr::new(word), world).unwrap();
        (path.display().to_string(), selector)
    }

    fn named_as(word: &str, world: &Fake) -> (Option<String>, String) {
        let named = named(OsStr::new(word), world).unwrap();
        (named.name, named.path.display().to_string())
    }

    #[test]
    fn last_at_divides() {
        let world = with(&[]);
        assert_eq!(split("a.vlt", &world), ("a.vlt".into(), None));
        assert_eq!(split("a.vlt@latest", &world), ("a.vlt".into(), Some(Selector::Latest(0))));
        assert_eq!(
            split("u@host.vlt@ab12", &world),
            ("u@host.vlt".into(), Some(Selector::IdPrefix("ab12".into())))
        );
    }

    #[test]
    fn an_existing_path_with_at_is_that_path() {
        let world = with(&["u@ab12", "u@host"]);
        assert_eq!(split("u@ab12", &world), ("u@ab12".into(), None));
        assert_eq!(split("u@host@latest", &world), ("u@host".into(), Some(Selector::Latest(0))));
    }

    #[test]
    fn a_bad_snapshot_or_an_empty_archive_is_usage() {
        for word in ["a@", "a@nothing", "@latest", ""] {
            let error = archive_and_snapshot(OsStr::new(word), &with(&[])).unwrap_err();
            assert_eq!(error.exit.code(), 2, "{word}");
        }
    }

    #[test]
    fn names_divide_at_the_first_equals_sign() {
        let world = with(&[]);
        assert_eq!(named_as("vm=/dev/a", &world), (Some("vm".into()), "/dev/a".into()));
        assert_eq!(named_as("vm=a=b", &world), (Some("vm".into()), "a=b".into()));
        assert_eq!(named_as("./vm=a", &world), (None, "./vm=a".into()));
        assert_eq!(named_as("/dev/a", &world), (None, "/dev/a".into()));
    }

    #[test]
    fn an_existing_path_with_equals_is_that_path() {
        let world = with(&["vm=a"]);
        assert_eq!(named_as("vm=a", &world), (None, "vm=a".into()));
    }

    #[test]
    fn names_are_checked() {
        let long = format!("{}=x", "n".repeat(256));
        for word in ["=x", "vm=", long.as_str()] {
            assert!(named(OsStr::new(word), &with(&[])).is_err(), "{word}");
        }
        let not_utf8 = OsStr::from_bytes(b"\xff=x");
        assert!(named(not_utf8, &with(&[])).is_err());
        let named = named(OsStr::new("/"), &with(&[])).unwrap();
        assert!(named.with_default_name().is_err());
    }

    #[test]
    fn uris_name_the_kind_that_is_missing() {
        for (word, kind) in [
            ("rbd:pool/image", "`rbd:`"),
            ("name=qcow2:x", "`qcow2:`"),
            ("nbd://host/export", "`nbd:`"),
            ("foo+bar://x", "`foo+bar:`"),
        ] {
            let error = named(OsStr::new(word), &with(&[])).unwrap_err();
            assert_eq!(error.exit.code(), 2);
            assert!(error.headline.starts_with(kind), "{}", error.headline);
        }
    }

    #[test]
    fn volumes_are_named_by_their_managers_names() {
        let named =
            |word: &str| source(OsStr::new(word), &with(&[])).map_err(|error| error.exit.code());
        let lvm =
            |group: &str, volume: &str| Place::Lvm { group: group.into(), volume: volume.into() };
        assert_eq!(named("lvm:vg/data"), Ok(("data".into(), lvm("vg", "data"))));
        assert_eq!(named("vm-7=lvm:vg/data"), Ok(("vm-7".into(), lvm("vg", "data"))));
        assert_eq!(named("zfs:tank/vm/7"), Ok(("7".into(), Place::Zfs("tank/vm/7".into()))));
        assert_eq!(named("/dev/vg/data"), Ok(("data".into(), Place::Path("/dev/vg/data".into()))));
        for word in
            ["lvm:vg", "lvm:vg/a/b", "lvm:vg/-x", "lvm:/x", "zfs:tank", "zfs:tank/", "zfs:a/b@c"]
        {
            assert_eq!(named(word), Err(2), "{word}");
        }
        let file = source(OsStr::new("lvm:vg/data"), &with(&["lvm:vg/data"])).unwrap();
        assert_eq!(file.1, Place::Path("lvm:vg/data".into()));
    }

    #[test]
    fn exports_are_named_by_uris() {
        let named =
            |word: &str| source(OsStr::new(word), &with(&[])).map_err(|error| error.exit.code());
        let table = [
            ("nbd://host/vm/disk", "disk", "nbd://host/vm/disk"),
            ("nbds://host:1234", "host", "nbds://host:1234"),
            ("sda=nbd+unix:///?socket=/run/x.sock", "sda", "nbd+unix:///?socket=/run/x.sock"),
            ("nbd+unix:///?socket=/run/x.sock", "x", "nbd+unix:///?socket=/run/x.sock"),
            ("nbds+unix:///d?socket=s", "d", "nbds+unix:///d?socket=s"),
        ];
        for (word, name, uri) in table {
            let place = Place::Nbd(Uri::parse(uri).unwrap());
            assert_eq!(named(word), Ok((name.into(), place)), "{word}");
        }
        for word in ["nbd://", "nbd+unix:///", "a=nbd+vsock://1/", "nbd://host/?tls-psk-file=x"] {
            assert_eq!(named(word), Err(2), "{word}");
        }
        let file = source(OsStr::new("nbd://x"), &with(&["nbd://x"])).unwrap();
        assert_eq!(file.1, Place::Path("nbd://x".into()));
    }

    #[test]
    fn running_vms_are_named_by_their_monitors() {
        let world = with(&["/run/vm.qmp", "/run/a/b"]);
        let table = [
            ("qemu:/run/vm.qmp", "vm", "/run/vm.qmp", None),
            ("qemu:/run/vm.qmp/sda", "vm-sda", "/run/vm.qmp", Some("sda")),
            ("web=qemu:/run/vm.qmp/sda", "web", "/run/vm.qmp", Some("sda")),
            // Nobody is there: it is named as it is typed.
            ("qemu:/run/typo.qmp", "typo", "/run/typo.qmp", None),
            ("qemu:vm.qmp", "vm", "vm.qmp", None),
        ];
        for (word, name, monitor, disk) in table {
            let place = Place::Qemu { monitor: monitor.into(), disk: disk.map(str::to_owned) };
            let read = source(OsStr::new(word), &world).unwrap();
            assert_eq!(read, (name.to_owned(), place), "{word}");
        }
        assert!(source(OsStr::new("qemu:"), &world).is_err());
    }

    #[test]
    fn domains_are_named_by_libvirts_names() {
        let named =
            |word: &str| source(OsStr::new(word), &with(&[])).map_err(|error| error.exit.code());
        let place = |domain: &str, disk: Option<&str>| Place::Libvirt {
            domain: domain.into(),
            disk: disk.map(str::to_owned),
        };
        assert_eq!(named("libvirt:web 1"), Ok(("web 1".into(), place("web 1", None))));
        assert_eq!(named("libvirt:web/vda"), Ok(("web-vda".into(), place("web", Some("vda")))));
        assert_eq!(named("x=libvirt:web/vda"), Ok(("x".into(), place("web", Some("vda")))));
        for word in ["libvirt:", "libvirt:/vda", "libvirt:web/", "libvirt:web/a/b"] {
            assert_eq!(named(word), Err(2), "{word}");
        }
    }

    #[test]
    fn colons_in_paths_are_no_uris() {
        for word in ["/dev/disk/by-path/pci-0000:00:1f.2-ata-1", "./nbd:x", "disk:1", "2026:x"] {
            assert!(named(OsStr::new(word), &with(&[])).is_ok(), "{word}");
        }
        assert!(named(OsStr::new("nbd:x"), &with(&["nbd:x"])).is_ok());
    }
}
