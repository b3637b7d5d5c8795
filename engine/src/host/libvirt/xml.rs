//! The XML of libvirt's that is needed: domains, checkpoints and backups are read, checkpoints and backups
//! written (`formatdomain`, `formatcheckpoint` and `formatbackup` of libvirt's documentation).

use std::path::{Path, PathBuf};

use roxmltree::{Document, Node};

/// Longest name of a disk's target: names of files are made of it.
const TARGET_LEN_MAX: usize = 64;
/// What the dirty bitmap of a disk is called in its export.
pub const BITMAP: &str = "dirty";

/// A domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Domain {
    /// Its name.
    pub name: String,
    /// Its UUID, as libvirt writes it.
    pub uuid: String,
    /// Whether it runs, or is paused.
    pub is_active: bool,
    /// Its disks, in its order.
    pub disks: Vec<Disk>,
    /// As whom its QEMU runs: user and group, if libvirt says so.
    pub owner: Option<(u32, u32)>,
    /// The file of its NVRAM.
    pub nvram: Option<PathBuf>,
}

/// A disk of a domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk {
    /// What the domain calls it.
    pub target: String,
    /// The format of its image.
    pub format: String,
    /// The file or device that it is in, if it is in one.
    pub path: Option<PathBuf>,
    /// What its image is made upon, from the nearest down: files and devices, and nothing where libvirt names
    /// neither.
    pub below: Vec<String>,
    /// Whether it is a disk with something in it that the guest can write to.
    pub is_writable: bool,
}

impl Disk {
    /// Whether libvirt can record what changes in it.
    pub fn is_recordable(&self) -> bool {
        self.format == "qcow2"
    }
}

/// A checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// Its name.
    pub name: String,
    /// The targets of the disks whose changes it is to tell.
    pub disks: Vec<String>,
    /// Those of which it can: their bitmaps are there and whole, as far as libvirt was asked.
    pub told: Vec<String>,
}

/// A disk in a backup that is to begin.
#[derive(Clone, Debug)]
pub struct BackupDisk<'a> {
    /// Its target.
    pub target: &'a str,
    /// The checkpoint since which changes are told.
    pub since: Option<&'a str>,
    /// The name of its export.
    pub export: String,
    /// The file that takes what the guest overwrites.
    pub scratch: PathBuf,
}

/// Reads a domain.
///
/// # Errors
/// In words.
pub fn domain(text: &str) -> Result<Domain, String> {
    let document = parse(text)?;
    let domain = root(&document, "domain")?;
    let uuid = text_of(domain, "uuid").ok_or("the domain has no UUID")?;
    if uuid.len() != 36 || !uuid.chars().all(|c| c.is_ascii_hexdigit() || c == '-') {
        return Err(format!("{uuid:?} is no UUID"));
    }
    let devices = child(domain, "devices").ok_or("the domain has no devices")?;
    let disks = children(devices, "disk").map(disk).collect::<Result<_, _>>()?;
    Ok(Domain {
        name: text_of(domain, "name").ok_or("the domain has no name")?.to_owned(),
        uuid: uuid.to_owned(),
        is_active: domain.has_attribute("id"),
        disks,
        owner: owner(domain),
        nvram: child(domain, "os").and_then(|os| text_of(os, "nvram")).map(PathBuf::from),
    })
}

fn disk(node: Node<'_, '_>) -> Result<Disk, String> {
    let attribute = |of: &str, name: &str| child(node, of).and_then(|node| node.attribute(name));
    let target = attribute("target", "dev").ok_or("a disk of the domain has no target")?;
    if !is_target(target) {
        return Err(format!("{target:?} is no name of a disk"));
    }
    let device = node.attribute("device").unwrap_or("disk");
    let has_medium = child(node, "source").is_some_and(|source| source.attributes().len() > 0);
    let path = attribute("source", "file").or_else(|| attribute("source", "dev"));
    Ok(Disk {
        target: target.to_owned(),
        format: attribute("driver", "type").unwrap_or("raw").to_owned(),
        path: path.map(PathBuf::from),
        below: below(node),
        is_writable: matches!(device, "disk" | "lun")
            && has_medium
            && child(node, "readonly").is_none(),
    })
}

/// The files that a disk's image is made upon; of a running domain libvirt tells all of them.
fn below(disk: Node<'_, '_>) -> Vec<String> {
    let mut files = Vec::new();
    let mut next = child(disk, "backingStore");
    loop {
        let Some(store) = next else {
            // The last one of all is an empty element.
            files.push(String::new());
            return files;
        };
        let Some(source) = child(store, "source") else { return files };
        let file = source.attribute("file").or_else(|| source.attribute("dev"));
        files.push(file.unwrap_or_default().to_owned());
        next = child(store, "backingStore");
    }
}

fn is_target(name: &str) -> bool {
    let is_valid = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    (1..=TARGET_LEN_MAX).contains(&name.len()) && name.chars().all(is_valid)
}

/// As whom QEMU runs: `<seclabel model='dac'><label>+64055:+64055</label>`.
fn owner(domain: Node<'_, '_>) -> Option<(u32, u32)> {
    let label = children(domain, "seclabel").find(|node| node.attribute("model") == Some("dac"))?;
    let (user, group) = text_of(label, "label")?.split_once(':')?;
    let number = |word: &str| word.strip_prefix('+').unwrap_or(word).parse().ok();
    Some((number(user)?, number(group)?))
}

/// Reads a checkpoint.
///
/// # Errors
/// In words.
pub fn checkpoint(text: &str) -> Result<Checkpoint, String> {
    let document = parse(text)?;
    let checkpoint = root(&document, "domaincheckpoint")?;
    let name = text_of(checkpoint, "name").ok_or("a checkpoint has no name")?;
    let disks = child(checkpoint, "disks").into_iter().flat_map(|disks| children(disks, "disk"));
    let (mut recorded, mut told) = (Vec::new(), Vec::new());
    for disk in disks.filter(|disk| disk.attribute("checkpoint") == Some("bitmap")) {
        let target = disk.attribute("name").map(str::to_owned);
        // libvirt leaves the size out where a bitmap is missing, or not to be trusted.
        told.extend(target.clone().filter(|_| disk.has_attribute("size")));
        recorded.extend(target);
    }
    Ok(Checkpoint { name: name.to_owned(), disks: recorded, told })
}

/// Reads the names of a backup's exports.
///
/// # Errors
/// In words.
pub fn exports(text: &str) -> Result<Vec<String>, String> {
    let document = parse(text)?;
    let backup = root(&document, "domainbackup")?;
    let disks = child(backup, "disks").into_iter().flat_map(|disks| children(disks, "disk"));
    let read = disks.filter(|disk| disk.attribute("backup") == Some("yes"));
    Ok(read.map(|disk| disk.attribute("exportname").unwrap_or_default().to_owned()).collect())
}

/// Writes a checkpoint of some of a domain's disks.
pub fn new_checkpoint(name: &str, domain: &Domain, recorded: &[&str]) -> String {
    let disks = domain.disks.iter().map(|disk| {
        let kind = if recorded.contains(&&*disk.target) { "bitmap" } else { "no" };
        format!("<disk name='{}' checkpoint='{kind}'/>", escaped(&disk.target))
    });
    let disks: String = disks.collect();
    let name = escaped(name);
    format!("<domaincheckpoint><name>{name}</name><disks>{disks}</disks></domaincheckpoint>\n")
}

/// Writes a backup of some of a domain's disks, served on `socket`.
pub fn new_backup(domain: &Domain, socket: &Path, read: &[BackupDisk<'_>]) -> String {
    let disks = domain.disks.iter().map(|disk| {
        match read.iter().find(|read| read.target == disk.target) {
            Some(read) => backup_disk(read),
            // One that is not named would be taken.
            None => format!("<disk name='{}' backup='no'/>", escaped(&disk.target)),
        }
    });
    let disks: String = disks.collect();
    let socket = escaped(&socket.to_string_lossy());
    format!(
        "<domainbackup mode='pull'><server transport='unix' socket='{socket}'/>\
         <disks>{disks}</disks></domainbackup>\n"
    )
}

fn backup_disk(disk: &BackupDisk<'_>) -> String {
    let mode = match disk.since {
        Some(since) => format!(
            "backupmode='incremental' incremental='{}' exportbitmap='{BITMAP}'",
            escaped(since)
        ),
        None => "backupmode='full'".into(),
    };
    let (target, export) = (escaped(disk.target), escaped(&disk.export));
    let scratch = escaped(&disk.scratch.to_string_lossy());
    format!(
        "<disk name='{target}' backup='yes' type='file' {mode} exportname='{export}'>\
         <driver type='qcow2'/><scratch file='{scratch}'/></disk>"
    )
}

/// Text as it stands in an attribute or an element.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '\'' => escaped.push_str("&apos;"),
            '"' => escaped.push_str("&quot;"),
            c => escaped.push(c),
        }
    }
    escaped
}

fn parse(text: &str) -> Result<Document<'_>, String> {
    Document::parse(text).map_err(|error| format!("libvirt's XML is not understood: {error}"))
}

fn root<'a>(document: &'a Document<'_>, name: &str) -> Result<Node<'a, 'a>, String> {
    let root = document.root_element();
    match root.has_tag_name(name) {
        true => Ok(root),
        false => Err(format!("libvirt answers <{}>, and not <{name}>", root.tag_name().name())),
    }
}

fn children<'a, 'i>(of: Node<'a, 'i>, name: &str) -> impl Iterator<Item = Node<'a, 'i>> {
    of.children().filter(move |node| node.has_tag_name(name))
}

fn child<'a, 'i>(of: Node<'a, 'i>, name: &str) -> Option<Node<'a, 'i>> {
    children(of, name).next()
}

fn text_of<'a>(of: Node<'a, '_>, name: &str) -> Option<&'a str> {
    child(of, name)?.text().map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOMAIN: &str = "<domain type='qemu' id='1'><name>a &amp; b</name>
        <uuid>75ee902e-3b77-40ce-b561-7af490a33d58</uuid>
        <os><type>hvm</type><nvram>/var/lib/a.fd</nvram></os>
        <devices>
          <disk type='file' device='disk'><driver name='qemu' type='qcow2'/>
            <source file='/a.qcow2' index='2'/><backingStore/><target dev='vda' bus='virtio'/></disk>
          <disk type='block' device='disk'><driver name='qemu' type='raw'/>
            <source dev='/dev/vg/b'/><target dev='vdb'/></disk>
          <disk type='file' device='disk'><source file='/c'/><target dev='vdc'/><readonly/></disk>
          <disk type='file' device='cdrom'><target dev='sda'/></disk>
        </devices>
        <seclabel type='dynamic' model='apparmor'><label>x</label></seclabel>
        <seclabel type='dynamic' model='dac'><label>+64055:+109</label></seclabel></domain>";

    #[test]
    fn a_domain_is_read() {
        let domain = domain(DOMAIN).unwrap();
        assert_eq!((&*domain.name, domain.is_active), ("a & b", true));
        assert_eq!(domain.owner, Some((64055, 109)));
        assert_eq!(domain.nvram.as_deref(), Some(Path::new("/var/lib/a.fd")));
        let disks = domain.disks.iter();
        let disks: Vec<_> =
            disks.map(|disk| (&*disk.target, &*disk.format, disk.is_writable)).collect();
        let expected = [
            ("vda", "qcow2", true),
            ("vdb", "raw", true),
            ("vdc", "raw", false),
            ("sda", "raw", false),
        ];
        assert_eq!(disks, expected);
    }

    #[test]
    fn what_is_no_domain_is_refused() {
        let table = [
            ("", "not understood"),
            ("<domainbackup/>", "<domainbackup>"),
            ("<domain><name>a</name></domain>", "UUID"),
            ("<domain><uuid>../../../../../../../../../../../../x</uuid></domain>", "no UUID"),
            (&DOMAIN.replace("'vda'", "'../vda'"), "no name of a disk"),
            (&DOMAIN.replace("dev='vdb'", ""), "no target"),
        ];
        for (text, why) in table {
            let error = domain(text).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn what_is_written_is_read_again() {
        let domain = domain(DOMAIN).unwrap();
        let written = new_checkpoint("a<'b", &domain, &["vda"]);
        let read = checkpoint(&written).unwrap();
        assert_eq!(
            read,
            Checkpoint { name: "a<'b".into(), disks: vec!["vda".into()], told: vec![] }
        );
        let disk = |target, since| BackupDisk {
            target,
            since,
            export: format!("'{target}"),
            scratch: "/x".into(),
        };
        let read = [disk("vda", Some("a")), disk("vdb", None)];
        let written = new_backup(&domain, Path::new("/s&t"), &read);
        assert_eq!(exports(&written).unwrap(), ["'vda", "'vdb"]);
        assert!(written.contains("<disk name='vdc' backup='no'/>"), "{written}");
        assert!(written.contains("incremental='a'"), "{written}");
    }
}
