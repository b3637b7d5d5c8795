//! Commands that start a machine from its restored disks.
//!
//! What the snapshot tells of the machine comes from the archive and is believed in nothing: what
//! does not fit is left out, and words are quoted for the shell. No file of this host that the
//! archive names gets into a command, but firmware from where systems keep it: a guest could read
//! what it is given.

use std::collections::BTreeSet;
use std::path::{Component, Path};

use serde_json::Value;

use crate::image::format::Format;
use crate::words::{is_harmful, shell_word};

/// The attached file that tells what a machine of QEMU was.
pub const QEMU_FACTS: &str = "qemu.json";
/// The attached file that is a domain of libvirt.
pub const LIBVIRT_DOMAIN: &str = "domain.xml";
/// Longest [`QEMU_FACTS`] that is looked into.
pub const FACTS_LEN_MAX: u64 = 1 << 20;

/// The version of [`QEMU_FACTS`] that is known here.
const FACTS_VERSION: u64 = 1;
/// The program where the facts name none.
const PROGRAM: &str = "qemu-system-x86_64";
/// The machine where the facts name none.
const MACHINE: &str = "q35";
/// The device where the facts name none that is known here.
const DEVICE: &str = "virtio-blk-pci";
/// Most memory and processors that a machine is believed to have had.
const MEMORY_BYTES_MAX: u64 = 64 << 40;
const CPUS_MAX: u64 = 8192;
/// Longest word that is taken from the facts, in bytes.
const WORD_LEN_MAX: usize = 255;
/// Where systems keep what machines boot with.
const FIRMWARE_FOLDER: &str = "/usr/share";

/// Devices for disks: by QEMU's name, the controller that must come before the first of them, and
/// whether they need a serial number.
const DEVICES: [(&str, Option<&str>, bool); 5] = [
    ("virtio-blk-pci", None, false),
    ("scsi-hd", Some("virtio-scsi-pci"), false),
    ("ide-hd", None, false),
    ("nvme", None, true),
    ("usb-storage", Some("qemu-xhci"), false),
];

/// A disk as it was restored.
#[derive(Clone, Copy, Debug)]
pub struct Disk<'a> {
    /// The volume's name.
    pub volume: &'a str,
    /// The file.
    pub path: &'a Path,
    /// What the file is.
    pub format: Format,
}

/// How a machine is started.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Start {
    /// The command, if there is one.
    pub command: Option<String>,
    /// What the user should know of it.
    pub remarks: Vec<String>,
}

/// The command that starts a machine of QEMU with `disks`, by what was attached as
/// [`QEMU_FACTS`].
pub fn qemu(facts: &[u8], disks: &[Disk<'_>]) -> Start {
    let facts: Value = serde_json::from_slice(facts).unwrap_or_default();
    if facts["version"].as_u64() != Some(FACTS_VERSION) {
        let remark = format!(
            "{QEMU_FACTS} is not of version {FACTS_VERSION}: no command to start the \
                     machine can be made of it"
        );
        return Start { command: None, remarks: vec![remark] };
    }
    let Some(disks) = disks.iter().map(Drive::new).collect::<Option<Vec<_>>>() else {
        return Start { command: None, remarks: vec![unprintable()] };
    };
    let mut remarks = Vec::new();
    let mut words = machine(&facts, &mut remarks);
    words.extend(drives(&facts, &disks, &mut remarks));
    let words: Vec<String> = words.iter().map(|word| shell_word(word)).collect();
    Start { command: Some(words.join(" ")), remarks }
}

/// The command that tells libvirt of the domain in the file `definition`, and what is to be changed
/// in it before.
pub fn libvirt(definition: &Path, disks: &[Disk<'_>]) -> Start {
    let Some(path) = file_word(definition) else {
        return Start { command: None, remarks: vec![unprintable()] };
    };
    let files: Vec<String> = disks
        .iter()
        .map(|disk| format!("{} is {} ({})", disk.volume, disk.path.display(), disk.format))
        .collect();
    let remark = format!(
        "{path} names the disks where they were: before it is defined, let each <source file=...> \
         in it name the restored one, by its whole path, and its <driver type=...> the format: {}",
        files.join(", ")
    );
    Start { command: Some(format!("virsh define {}", shell_word(&path))), remarks: vec![remark] }
}

fn unprintable() -> String {
    "no command to start the machine is shown: the folder's path cannot be printed as it is".into()
}

/// The path as a word that QEMU and libvirt take for a file, if it can be printed. What has a colon
/// before its first slash QEMU would take for a protocol.
fn file_word(path: &Path) -> Option<String> {
    let text = path.to_str().filter(|text| !text.contains(is_harmful))?;
    Some(match text.starts_with('/') {
        true => text.to_owned(),
        false => format!("./{text}"),
    })
}

/// The program and the options that are not about disks.
fn machine(facts: &Value, remarks: &mut Vec<String>) -> Vec<String> {
    let program = plain(facts, "program").filter(|name| name.starts_with("qemu-system-"));
    let machine = plain(facts, "machine");
    if machine.is_none() {
        remarks.push(format!("the machine's type is not known: it starts as {MACHINE}"));
    }
    let mut words = vec![program.unwrap_or(PROGRAM).to_owned()];
    let mut option = |name: &str, value: String| words.extend([name.to_owned(), value]);
    option("-machine", machine.unwrap_or(MACHINE).to_owned());
    // The second where the first cannot be had.
    option("-accel", "kvm".to_owned());
    option("-accel", "tcg".to_owned());
    if let Some(bytes) = number(facts, "memory_bytes", MEMORY_BYTES_MAX) {
        option("-m", format!("{}M", bytes.div_ceil(1 << 20)));
    }
    if let Some(cpus) = number(facts, "cpus", CPUS_MAX) {
        option("-smp", cpus.to_string());
    }
    if let Some(name) = word(facts, "name") {
        option("-name", format!("guest={}", value(name)));
    }
    if let Some(uuid) = word(facts, "uuid").filter(|text| is_uuid(text)) {
        option("-uuid", uuid.to_owned());
    }
    match word(facts, "firmware") {
        Some(path) if is_firmware(Path::new(path)) => {
            option("-drive", format!("if=pflash,format=raw,readonly=on,file={}", value(path)));
        }
        Some(path) => remarks.push(format!(
            "the machine had its firmware in {path}: if that is needed, add it to the command"
        )),
        None => {}
    }
    words
}

/// A disk with the name that QEMU is to have for it.
struct Drive<'a> {
    disk: &'a Disk<'a>,
    path: String,
}

impl<'a> Drive<'a> {
    fn new(disk: &'a Disk<'a>) -> Option<Drive<'a>> {
        Some(Drive { disk, path: file_word(disk.path)? })
    }
}

/// The options for the disks: those that the facts know in their order, then the others.
fn drives(facts: &Value, disks: &[Drive<'_>], remarks: &mut Vec<String>) -> Vec<String> {
    let known = facts["disks"].as_array().map(Vec::as_slice).unwrap_or_default();
    let place = |drive: &&Drive<'_>| {
        let is_its = |fact: &Value| fact["volume"].as_str() == Some(drive.disk.volume);
        known.iter().position(is_its).unwrap_or(known.len())
    };
    let mut ordered: Vec<&Drive<'_>> = disks.iter().collect();
    ordered.sort_by_key(place);
    let names_are_ids = disks.iter().all(|drive| is_id(drive.disk.volume));
    let mut controllers = BTreeSet::new();
    let mut words = Vec::new();
    for (number, drive) in ordered.iter().enumerate() {
        let volume = drive.disk.volume;
        let id = match names_are_ids {
            true => volume.to_owned(),
            false => format!("disk{number}"),
        };
        let driver = known.get(place(drive)).and_then(|fact| fact["driver"].as_str());
        let device = DEVICES.iter().find(|(name, ..)| Some(*name) == driver);
        let (name, controller, needs_serial) = device.copied().unwrap_or((DEVICE, None, false));
        if device.is_none() {
            remarks.push(format!(
                "volume {volume:?} was attached as no device that is known here: it is {DEVICE} in \
                 the command"
            ));
        }
        if let Some(controller) = controller.filter(|name| controllers.insert(*name)) {
            words.extend(["-device".to_owned(), controller.to_owned()]);
        }
        let serial = if needs_serial { format!(",serial={id}") } else { String::new() };
        let (file, format) = (value(&drive.path), drive.disk.format);
        words.extend([
            "-drive".to_owned(),
            format!("file={file},format={format},if=none,id={id}"),
            "-device".to_owned(),
            format!("{name},drive={id}{serial}"),
        ]);
    }
    words
}

/// A text of the facts that is neither empty nor unreasonable.
fn word<'v>(facts: &'v Value, field: &str) -> Option<&'v str> {
    let is_fit =
        |text: &&str| (1..=WORD_LEN_MAX).contains(&text.len()) && !text.contains(is_harmful);
    facts[field].as_str().filter(is_fit)
}

/// As [`word`], of the characters that names of programs and machines have.
fn plain<'v>(facts: &'v Value, field: &str) -> Option<&'v str> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    word(facts, field).filter(|text| text.chars().all(is_plain))
}

fn number(facts: &Value, field: &str, max: u64) -> Option<u64> {
    facts[field].as_u64().filter(|number| (1..=max).contains(number))
}

fn is_uuid(text: &str) -> bool {
    let groups: Vec<&str> = text.split('-').collect();
    let is_hex = |group: &&str| group.bytes().all(|byte| byte.is_ascii_hexdigit());
    groups.iter().map(|group| group.len()).eq([8, 4, 4, 4, 12]) && groups.iter().all(is_hex)
}

fn is_firmware(path: &Path) -> bool {
    let is_plain = |part: Component<'_>| matches!(part, Component::RootDir | Component::Normal(_));
    path.starts_with(FIRMWARE_FOLDER) && path.components().all(is_plain)
}

/// What QEMU takes for the name of a drive.
fn is_id(text: &str) -> bool {
    let is_valid = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
    text.starts_with(|c: char| c.is_ascii_alphabetic()) && text.chars().all(is_valid)
}

/// A value in a list of QEMU's options: a comma would end it.
fn value(text: &str) -> String {
    text.replace(',', ",,")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn disk<'a>(volume: &'a str, path: &'a str) -> Disk<'a> {
        Disk { volume, path: Path::new(path), format: Format::Raw }
    }

    fn start(facts: &Value, disks: &[Disk<'_>]) -> Start {
        qemu(facts.to_string().as_bytes(), disks)
    }

    fn facts() -> Value {
        json!({
            "version": 1, "qemu": "7.2.22", "name": "web", "program": "qemu-system-x86_64",
            "uuid": "01234567-89ab-cdef-0123-456789abcdef",
            "machine": "pc-q35-7.2", "memory_bytes": 1 << 30, "cpus": 2, "firmware": null,
            "disks": [
                {"volume": "vd0", "driver": "virtio-blk-pci"},
                {"volume": "sda", "driver": "scsi-hd"},
                {"volume": "sdb", "driver": "scsi-hd"},
                {"volume": "n", "driver": "nvme"}
            ],
            "command_line": ["rm", "-rf", "/"]
        })
    }

    #[test]
    fn a_machine_starts_as_it_was_with_its_disks_in_their_order() {
        let disks = ["n", "sdb", "vd0", "sda"].map(|name| disk(name, "out/x.raw"));
        let start = start(&facts(), &disks);
        let drive = |id| format!("-drive file=./out/x.raw,format=raw,if=none,id={id}");
        let want = [
            "qemu-system-x86_64 -machine pc-q35-7.2 -accel kvm -accel tcg -m 1024M -smp 2",
            "-name guest=web -uuid 01234567-89ab-cdef-0123-456789abcdef",
            &drive("vd0"),
            "-device virtio-blk-pci,drive=vd0 -device virtio-scsi-pci",
            &drive("sda"),
            "-device scsi-hd,drive=sda",
            &drive("sdb"),
            "-device scsi-hd,drive=sdb",
            &drive("n"),
            "-device nvme,drive=n,serial=n",
        ];
        assert_eq!(start.command, Some(want.join(" ")));
        assert_eq!(start.remarks, [""; 0]);
    }

    #[test]
    fn what_is_not_known_is_left_out_or_told() {
        let facts = json!({"version": 1, "disks": [{"volume": "a", "driver": "floppy"}]});
        let start = start(&facts, &[disk("a", "/d/a,b c.raw"), disk("b", "/d/b.raw")]);
        assert_eq!(
            start.command.unwrap(),
            "qemu-system-x86_64 -machine q35 -accel kvm -accel tcg \
             -drive 'file=/d/a,,b c.raw,format=raw,if=none,id=a' -device virtio-blk-pci,drive=a \
             -drive file=/d/b.raw,format=raw,if=none,id=b -device virtio-blk-pci,drive=b"
        );
        assert_eq!(start.remarks.len(), 3, "{:?}", start.remarks);
        for facts in ["", "[]", "null", "{\"version\":2}", "{\"version\":\"1\"}"] {
            let start = qemu(facts.as_bytes(), &[]);
            assert_eq!((start.command, start.remarks.len()), (None, 1), "{facts}");
        }
    }

    #[test]
    fn lies_do_not_get_into_the_command() {
        let honest = start(&facts(), &[disk("vd0", "/d")]).command.unwrap();
        for (field, lie, without) in [
            ("program", json!("/bin/sh"), ""),
            ("program", json!("qemu-system-x86_64;reboot"), ""),
            ("memory_bytes", json!(0), "-m 1024M "),
            ("memory_bytes", json!(u64::MAX), "-m 1024M "),
            ("memory_bytes", json!("1M; reboot"), "-m 1024M "),
            ("cpus", json!(-1), "-smp 2 "),
            ("name", json!("a\nreboot"), "-name guest=web "),
            ("uuid", json!("0-0-0-0-0"), "-uuid 01234567-89ab-cdef-0123-456789abcdef "),
            ("firmware", json!("/etc/shadow"), ""),
            ("firmware", json!("/usr/share/../../etc/shadow"), ""),
            ("firmware", json!("usr/share/x"), ""),
            (
                "disks",
                json!([{"volume": "vd0", "driver": "virtio-blk-pci", "file": "/dev/sda"}]),
                "",
            ),
        ] {
            let mut facts = facts();
            facts[field] = lie.clone();
            let command = start(&facts, &[disk("vd0", "/d")]).command.unwrap();
            assert_eq!(command, honest.replace(without, ""), "{field}: {lie}");
        }
        let mut facts = facts();
        facts["name"] = json!("it's,file=/dev/sda $(reboot)");
        let command = start(&facts, &[disk("vd0", "/d")]).command.unwrap();
        assert!(command.contains(r"-name 'guest=it'\''s,,file=/dev/sda $(reboot)'"), "{command}");
        facts["firmware"] = json!("/usr/share/OVMF/OVMF_CODE.fd");
        let command = start(&facts, &[disk("vd0", "/d")]).command.unwrap();
        assert!(command.contains("readonly=on,file=/usr/share/OVMF/OVMF_CODE.fd "), "{command}");
    }

    #[test]
    fn names_that_are_no_ids_are_numbered_and_paths_are_paths() {
        let start = start(&facts(), &[disk("a b", "nbd:x/a.raw"), disk("vd0", "v")]);
        let command = start.command.unwrap();
        assert!(command.contains("file=./v,format=raw,if=none,id=disk0 "), "{command}");
        assert!(command.contains("file=./nbd:x/a.raw,format=raw,if=none,id=disk1 "), "{command}");
        assert_eq!(qemu(facts().to_string().as_bytes(), &[disk("a", "a\nb")]).command, None);
    }

    #[test]
    fn a_domain_is_defined_once_its_sources_are_right() {
        let start = libvirt(Path::new("a b/domain.xml"), &[disk("vda", "a b/vda.raw")]);
        assert_eq!(start.command.unwrap(), "virsh define './a b/domain.xml'");
        assert!(start.remarks[0].ends_with("vda is a b/vda.raw (raw)"), "{:?}", start.remarks);
    }
}
