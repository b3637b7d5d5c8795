//! A libvirt of a test's own: the host's daemon program with folders of its own, so that a libvirt that the host
//! may run is left alone. It and its VMs end with the test.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::command::{Voltar, is_root};
use crate::data::Scratch;
use crate::device::system;
use crate::skip::skip;

/// Longest that the daemon may take to answer.
const PATIENCE: Duration = Duration::from_secs(30);
/// How the connection is called.
const URI: &str = "qemu:///system";

/// Starts the daemon in a mount namespace of its own, in which libvirt's folders are those of the test. Its
/// own PID file lies beside those folders, where the daemons of two tests would meet.
const START: &str = r#"
set -e
for folder in etc run/ var/lib/ var/log/ var/cache/; do
    own="$1/libvirt-$(echo "$folder" | tr -d /)"
    case $folder in etc) folder=/etc/libvirt;; *) folder=/${folder}libvirt;; esac
    mkdir -p "$own" "$folder"
    mount --bind "$own" "$folder"
done
cat >/etc/libvirt/qemu.conf <<'END'
user = "root"
group = "root"
security_driver = "none"
cgroup_controllers = []
namespaces = []
dynamic_ownership = 0
remember_owner = 0
stdio_handler = "file"
END
cat >/etc/libvirt/libvirtd.conf <<'END'
auth_unix_rw = "none"
unix_sock_group = "root"
END
exec libvirtd --pid-file "$1/libvirtd.pid"
"#;

/// The daemon, running.
#[derive(Debug)]
pub struct Libvirt {
    daemon: Child,
    namespace: PathBuf,
    folder: PathBuf,
    domains: Vec<String>,
}

impl Libvirt {
    /// One for `test`, if this machine can.
    pub fn start(test: &str, scratch: &Scratch) -> Option<Libvirt> {
        if !is_root() {
            skip(test, "only root can give a libvirt folders of its own");
            return None;
        }
        for program in ["libvirtd", "virsh", "unshare", "nsenter", "qemu-img", "qemu-system-x86_64"]
        {
            if let Err(why) = system(program, &["--version"]) {
                skip(test, &format!("a peer is missing: {why}"));
                return None;
            }
        }
        let log = File::create(scratch.path("libvirtd.log")).unwrap();
        let daemon = Command::new("unshare")
            .args(["--mount", "--propagation", "private", "sh", "-c", START, "libvirt"])
            .arg(scratch.dir())
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let namespace = PathBuf::from(format!("/proc/{}/ns/mnt", daemon.id()));
        let folder = scratch.dir().to_owned();
        let mut libvirt = Libvirt { daemon, namespace, folder, domains: Vec::new() };
        let started = Instant::now();
        while !libvirt.folder.join("libvirt-run/libvirt-sock").exists()
            || libvirt.try_virsh(&["version"]).is_err()
        {
            let is_over = libvirt.daemon.try_wait().unwrap().is_some();
            let said = || fs::read_to_string(scratch.path("libvirtd.log")).unwrap_or_default();
            assert!(!is_over && started.elapsed() < PATIENCE, "libvirtd: {}", said());
            std::thread::sleep(Duration::from_millis(50));
        }
        Some(libvirt)
    }

    /// What a program is started by to be where this libvirt is.
    fn wrapper(&self) -> [String; 3] {
        let folder = self.folder.display();
        let namespace = self.namespace.display();
        ["nsenter".into(), format!("--mount={namespace}"), format!("--wd={folder}")]
    }

    /// voltar, to which this is the host's libvirt.
    pub fn voltar(&self, scratch: &Scratch) -> Voltar {
        let wrapper = self.wrapper();
        Voltar::through(scratch, &wrapper.each_ref().map(OsStr::new))
            .env("LIBVIRT_DEFAULT_URI", URI)
    }

    /// What `virsh` answers.
    ///
    /// # Errors
    /// Its words.
    pub fn try_virsh(&self, words: &[&str]) -> Result<String, String> {
        let [program, namespace, folder] = self.wrapper();
        let start = [&*namespace, &*folder, "virsh", "--quiet", "--connect", URI];
        let words: Vec<&str> = start.into_iter().chain(words.iter().copied()).collect();
        system(&program, &words)
    }

    /// The same, which must succeed.
    #[track_caller]
    pub fn virsh(&self, words: &[&str]) -> String {
        self.try_virsh(words).unwrap_or_else(|why| panic!("virsh {words:?}: {why}"))
    }

    /// Defines and starts a domain with these disks, as target, format and file of the test's folder, and
    /// with nothing to boot.
    pub fn run(&mut self, name: &str, disks: &[(&str, &str, &str)]) {
        let disk = |(target, format, file): &(&str, &str, &str)| {
            let path = self.folder.join(file);
            format!(
                "<disk type='file' device='disk'><driver name='qemu' type='{format}'/>\
                 <source file='{}'/><target dev='{target}' bus='virtio'/></disk>",
                path.display()
            )
        };
        let disks: String = disks.iter().map(disk).collect();
        let xml = format!(
            "<domain type='qemu'><name>{name}</name><memory unit='MiB'>32</memory><vcpu>1</vcpu>\
             <os><type arch='x86_64' machine='pc'>hvm</type></os><devices>{disks}</devices></domain>"
        );
        let path = self.folder.join("domain.xml");
        fs::write(&path, xml).unwrap();
        self.virsh(&["define", path.to_str().unwrap()]);
        self.virsh(&["start", name]);
        self.domains.push(name.to_owned());
    }

    /// Has a domain's QEMU do this to its disk number `disk`, below the guest's device: a line of `qemu-io`.
    #[track_caller]
    pub fn io(&self, domain: &str, disk: usize, line: &str) {
        let device = format!("/machine/peripheral/virtio-disk{disk}/virtio-backend");
        let command = format!("qemu-io -d {device} \"{line}\"");
        let said = self.virsh(&["qemu-monitor-command", domain, "--hmp", &command]);
        let is_done = said.contains("bytes at offset") || said.trim().is_empty();
        assert!(is_done && !said.contains("failed"), "{line}: {said}");
    }

    /// The names of a domain's checkpoints.
    pub fn checkpoints(&self, domain: &str) -> Vec<String> {
        let said = self.virsh(&["checkpoint-list", domain, "--name"]);
        let names = said.lines().map(str::trim).filter(|name| !name.is_empty());
        names.map(str::to_owned).collect()
    }
}

impl Drop for Libvirt {
    fn drop(&mut self) {
        for domain in &self.domains {
            // Some are off.
            drop(self.try_virsh(&["destroy", domain]));
        }
        drop(self.daemon.kill());
        drop(self.daemon.wait());
    }
}
