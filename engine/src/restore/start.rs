//! Commands that start a machine from its restored disks.
//!
//! What the snapshot tells of the machine comes from the archive and is believed in nothing: what
//! does not fit is left out and told, and words are quoted for the shell. No file of this host that
//! the archive names gets into a command, but firmware from where systems keep it: a guest could read
//! what it is given. Nor is one named in a remark, for who reads it to add.

use std::collections::BTreeSet;
use std::path::{Component, Path};

use roxmltree::{Document, Node};
use serde_json::Value;

use crate::image::format::Format;
use crate::words::{is_harmful, shell_word};

/// The attached file that tells what a machine of QEMU was.
pub const QEMU_FACTS: &str = "qemu.json";
/// The attached file that is a domain of libvirt.
pub const LIBVIRT_DOMAIN: &str = "domain.xml";
/// Longest [`QEMU_FACTS`] or [`LIBVIRT_DOMAIN`] that is looked into, in bytes.
pub const FACTS_LEN_MAX: u64 = 1 << 20;

/// The version of [`QEMU_FACTS`] that is known here.
const FACTS_VERSION: u64 = 1;
/// How the names of QEMU's programs begin.
const PROGRAM_PREFIX: &str = "qemu-system-";
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
/// Elements of a domain that name programs to run, and files and devices of the host to open.
const POWERS: [&str; 6] = ["emulator", "hostdev", "filesystem", "kernel", "loader", "nvram"];
/// How the name space begins whose elements hand words to QEMU as they are.
const QEMU_NAMESPACE: &str = "http://libvirt.org/schemas/domain/qemu/";

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

/// The command that starts a machine of QEMU with `disks`, by the `facts` that were attached and are
/// in `file` now; `None` where they are longer than [`FACTS_LEN_MAX`].
pub fn qemu(file: &Path, facts: Option<&[u8]>, disks: &[Disk<'_>]) -> Start {
    let drives = disks.iter().map(Drive::new).collect::<Option<Vec<_>>>();
    let (Some(path), Some(disks)) = (file_word(file), drives) else {
        return no_command(unprintable());
    };
    let file = shell_word(&path);
    let Some(facts) = facts else {
        return no_command(format!(
            "{file} is longer than {FACTS_LEN_MAX} bytes: it is not looked into, and no command to \
             start the machine is made of it"
        ));
    };
    let facts: Value = serde_json::from_slice(facts).unwrap_or_default();
    if facts["version"].as_u64() != Some(FACTS_VERSION) {
        return no_command(format!(
            "{file} is not of version {FACTS_VERSION}: no command to start the machine can be made \
             of it"
        ));
    }
    let mut facts = Facts { file, facts, remarks: Vec::new() };
    let mut words = machine(&mut facts);
    words.extend(drive_words(&mut facts, &disks));
    let words: Vec<String> = words.iter().map(|word| shell_word(word)).collect();
    Start { command: Some(words.join(" ")), remarks: facts.remarks }
}

/// The command that tells libvirt of the domain in the file `definition`, which holds `xml` (`None`
/// where that is longer than [`FACTS_LEN_MAX`]), and what is to be read and changed in it before.
pub fn libvirt(definition: &Path, xml: Option<&[u8]>, disks: &[Disk<'_>]) -> Start {
    let Some(path) = file_word(definition) else {
        return no_command(unprintable());
    };
    let path = shell_word(&path);
    let files: Vec<String> = disks
        .iter()
        .map(|disk| {
            let file = disk.path.to_string_lossy();
            format!("{} is {} ({})", shell_word(disk.volume), shell_word(&file), disk.format)
        })
        .collect();
    let reading = format!(
        "{path} decides what runs on this host, and with what rights: read all of it before it is \
         defined. {}",
        powers(xml)
    );
    let sources = format!(
        "{path} names the disks where they were: before it is defined, let each <source file=...> \
         in it name the restored one, by its whole path, and its <driver type=...> the format: {}",
        files.join(", ")
    );
    Start { command: Some(format!("virsh define {path}")), remarks: vec![reading, sources] }
}

/// A sentence on what a domain has that decides what runs. Nothing of its text is repeated.
fn powers(xml: Option<&[u8]>) -> String {
    let Some(xml) = xml else {
        return format!("It is longer than {FACTS_LEN_MAX} bytes, and was not looked into");
    };
    let text = std::str::from_utf8(xml).ok();
    let Some(document) = text.and_then(|text| Document::parse(text).ok()) else {
        return "It is no XML that is understood here, and was not looked into".to_owned();
    };
    let has = |is_it: &dyn Fn(Node<'_, '_>) -> bool| {
        document.descendants().any(|node| node.is_element() && is_it(node))
    };
    let is_called = |name: &&&str| has(&|node| node.tag_name().name() == **name);
    let is_qemus = |node: Node<'_, '_>| {
        let namespace = node.tag_name().namespace();
        namespace.is_some_and(|namespace| namespace.starts_with(QEMU_NAMESPACE))
    };
    let mut found: Vec<String> =
        POWERS.iter().filter(is_called).map(|name| format!("<{name}>")).collect();
    if has(&is_qemus) {
        found.push("elements that hand words to QEMU as they are (<qemu:commandline>, ...)".into());
    }
    match found.is_empty() {
        true => "None of the elements is in it that voltar looks for, which is no proof".to_owned(),
        false => format!("Look first at these, which are in it: {}", found.join(", ")),
    }
}

fn no_command(remark: String) -> Start {
    Start { command: None, remarks: vec![remark] }
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

/// What is known of a machine, and what the user should know of that.
struct Facts {
    /// The file they are in, as a shell takes it.
    file: String,
    facts: Value,
    remarks: Vec<String>,
}

impl Facts {
    /// A text that is neither empty nor unreasonable.
    fn word(&self, field: &str) -> Option<&str> {
        self.facts[field].as_str().filter(|text| is_word(text))
    }

    fn number(&self, field: &str, max: u64) -> Option<u64> {
        self.facts[field].as_u64().filter(|number| (1..=max).contains(number))
    }

    /// The program: in the facts it is what the machine was started as, which has a path or not.
    fn program(&self) -> Option<&str> {
        let name = self.facts["program"].as_str()?.rsplit('/').next()?;
        let rest = name.strip_prefix(PROGRAM_PREFIX)?;
        let is_plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        let is_its = is_word(name) && !rest.is_empty() && rest.chars().all(is_plain);
        is_its.then_some(name)
    }

    /// The machine's type, of the characters that those have.
    fn machine(&self) -> Option<&str> {
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        self.word("machine").filter(|text| text.chars().all(is_plain))
    }

    /// Whether there is something that [`machine`] is to make an option of.
    fn has(&self, field: &str) -> bool {
        !self.facts[field].is_null()
    }

    fn remark(&mut self, text: String) {
        self.remarks.push(text);
    }
}

/// The program and the options that are not about disks.
fn machine(facts: &mut Facts) -> Vec<String> {
    let mut words = vec![facts.program().unwrap_or(PROGRAM).to_owned()];
    let mut option = |name: &str, value: String| words.extend([name.to_owned(), value]);
    if facts.program().is_none() {
        facts.remark(format!(
            "{} names no program of QEMU's that is known here: it is {PROGRAM} in the command",
            facts.file
        ));
    }
    if facts.machine().is_none() {
        facts.remark(format!("the machine's type is not known: it starts as {MACHINE}"));
    }
    option("-machine", facts.machine().unwrap_or(MACHINE).to_owned());
    // The second where the first cannot be had.
    option("-accel", "kvm".to_owned());
    option("-accel", "tcg".to_owned());
    let memory = facts.number("memory_bytes", MEMORY_BYTES_MAX);
    let memory = memory.map(|bytes| format!("{}M", bytes.div_ceil(1 << 20)));
    let cpus = facts.number("cpus", CPUS_MAX).map(|cpus| cpus.to_string());
    let name = facts.word("name").map(|name| format!("guest={}", value(name)));
    let uuid = facts.word("uuid").filter(|text| is_uuid(text)).map(str::to_owned);
    for (field, name, value) in [
        ("memory_bytes", "-m", memory),
        ("cpus", "-smp", cpus),
        ("name", "-name", name),
        ("uuid", "-uuid", uuid),
    ] {
        match value {
            Some(value) => option(name, value),
            None if facts.has(field) => facts.remark(format!(
                "what {} has as `{field}` does not fit: the command has no {name}",
                facts.file
            )),
            None => {}
        }
    }
    match facts.word("firmware").filter(|path| is_firmware(Path::new(path))) {
        Some(path) => {
            option("-drive", format!("if=pflash,format=raw,readonly=on,file={}", value(path)));
        }
        None if facts.has("firmware") => facts.remark(format!(
            "{} names firmware that is not among the host's own ({FIRMWARE_FOLDER}/...): the \
             command has none; look at it in the file",
            facts.file
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
fn drive_words(facts: &mut Facts, disks: &[Drive<'_>]) -> Vec<String> {
    let known = facts.facts["disks"].as_array().map(Vec::as_slice).unwrap_or_default();
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
            facts.remarks.push(format!(
                "volume {} was attached as no device that is known here: it is {DEVICE} in the \
                 command",
                shell_word(volume)
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

/// Whether a text is neither empty nor unreasonable.
fn is_word(text: &str) -> bool {
    (1..=WORD_LEN_MAX).contains(&text.len()) && !text.contains(is_harmful)
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
        qemu(Path::new("d/qemu.json"), Some(facts.to_string().as_bytes()), disks)
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
        assert_eq!(start.remarks.len(), 4, "{:?}", start.remarks);
        let file = Path::new("d/qemu.json");
        for facts in ["", "[]", "null", "{\"version\":2}", "{\"version\":\"1\"}"] {
            let start = qemu(file, Some(facts.as_bytes()), &[]);
            assert_eq!((start.command, start.remarks.len()), (None, 1), "{facts}");
        }
        let start = qemu(file, None, &[]);
        assert_eq!(start.command, None);
        assert!(start.remarks[0].starts_with("./d/qemu.json is longer than 1048576 bytes"));
    }

    #[test]
    fn the_program_is_a_name_of_qemus_wherever_it_was() {
        for (program, is, remarks) in [
            ("/usr/bin/qemu-system-aarch64", "qemu-system-aarch64", 0),
            ("qemu-system-x86_64", "qemu-system-x86_64", 0),
            ("../qemu-system-ppc64", "qemu-system-ppc64", 0),
            ("/usr/libexec/qemu-kvm", PROGRAM, 1),
            ("/usr/bin/qemu-system-", PROGRAM, 1),
            ("/usr/bin/qemu-system-x86_64/", PROGRAM, 1),
            ("/usr/bin/qemu-system-X;reboot", PROGRAM, 1),
            ("qemu-system-x86_64 -S", PROGRAM, 1),
            ("", PROGRAM, 1),
        ] {
            let mut facts = facts();
            facts["program"] = json!(program);
            let start = start(&facts, &[disk("vd0", "/d")]);
            let command = start.command.unwrap();
            assert!(command.starts_with(&format!("{is} -machine ")), "{program}: {command}");
            assert_eq!(start.remarks.len(), remarks, "{program}: {:?}", start.remarks);
        }
    }

    #[test]
    fn lies_do_not_get_into_the_command() {
        let honest = start(&facts(), &[disk("vd0", "/d")]).command.unwrap();
        for (field, lie, without) in [
            ("program", json!("/bin/sh"), ""),
            ("program", json!(7), ""),
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
            ("firmware", json!("/usr/share/x\nreboot"), ""),
            ("firmware", json!(["/etc/shadow"]), ""),
            (
                "disks",
                json!([{"volume": "vd0", "driver": "virtio-blk-pci", "file": "/dev/sda"}]),
                "",
            ),
        ] {
            let mut facts = facts();
            facts[field] = lie.clone();
            let start = start(&facts, &[disk("vd0", "/d")]);
            assert_eq!(start.command.unwrap(), honest.replace(without, ""), "{field}: {lie}");
            // Told, and not repeated.
            let told = start.remarks.iter().any(|it| it.contains("./d/qemu.json"));
            assert_eq!(told, field != "disks", "{field}: {lie}: {:?}", start.remarks);
            let text = start.remarks.concat();
            assert!(!text.contains("reboot") && !text.contains("shadow"), "{text}");
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
        let disks = [disk("a b", "nbd:x/a.raw"), disk("vd0", "v")];
        let command = start(&facts(), &disks).command.unwrap();
        assert!(command.contains("file=./v,format=raw,if=none,id=disk0 "), "{command}");
        assert!(command.contains("file=./nbd:x/a.raw,format=raw,if=none,id=disk1 "), "{command}");
        assert_eq!(start(&facts(), &[disk("a", "a\nb")]).command, None);
    }

    #[test]
    fn a_domain_is_defined_once_its_sources_are_right() {
        let disks = [disk("vda", "a b/vda.raw"), disk("b is /etc/shadow,", "a b/b.raw")];
        let start = libvirt(Path::new("a b/domain.xml"), Some(b"<domain/>"), &disks);
        assert_eq!(start.command.unwrap(), "virsh define './a b/domain.xml'");
        let files = "vda is 'a b/vda.raw' (raw), 'b is /etc/shadow,' is 'a b/b.raw' (raw)";
        assert!(start.remarks[1].ends_with(files), "{:?}", start.remarks);
    }

    #[test]
    fn a_domain_is_to_be_read_before_it_is_defined() {
        let remark = |xml: Option<&[u8]>| {
            let start = libvirt(Path::new("d/domain.xml"), xml, &[]);
            assert!(start.command.is_some());
            let all = "./d/domain.xml decides what runs on this host, and with what rights: read \
                       all of it before it is defined. ";
            let rest = start.remarks[0].strip_prefix(all).map(str::to_owned);
            rest.unwrap_or_else(|| panic!("{:?}", start.remarks))
        };
        let harmless = "<domain><name>emulator</name><os><type>hvm</type></os></domain>";
        assert!(remark(Some(harmless.as_bytes())).starts_with("None of the elements"));
        let powers = "<domain xmlns:q='http://libvirt.org/schemas/domain/qemu/1.0'>\
                      <os><nvram>/etc/shadow</nvram><loader/><kernel/></os><devices><hostdev/>\
                      <filesystem/><filesystem/><emulator>/bin/sh</emulator></devices>\
                      <q:commandline><q:arg value='reboot'/></q:commandline></domain>";
        assert_eq!(
            remark(Some(powers.as_bytes())),
            "Look first at these, which are in it: <emulator>, <hostdev>, <filesystem>, <kernel>, \
             <loader>, <nvram>, elements that hand words to QEMU as they are (<qemu:commandline>, \
             ...)"
        );
        // What cannot be looked into is told to be so: no XML, a document type, too long.
        for xml in [&b"\xff"[..], b"", b"<domain>", b"<!DOCTYPE d [<!ENTITY e 'x'>]><d>&e;</d>"] {
            assert!(remark(Some(xml)).contains("was not looked into"), "{xml:?}");
        }
        assert!(remark(None).contains("longer than 1048576 bytes"));
        // As deep as one of this length can be.
        let deep = "<a>".repeat(FACTS_LEN_MAX as usize / 3);
        assert!(remark(Some(deep.as_bytes())).contains("was not looked into"));
        let half = FACTS_LEN_MAX as usize / 7;
        let deep = format!("{}{}", "<a>".repeat(half), "</a>".repeat(half));
        remark(Some(deep.as_bytes()));
    }
}
