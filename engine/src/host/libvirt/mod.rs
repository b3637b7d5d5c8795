//! libvirt, by its own tool: what `virsh` is told, and what its answers mean.

pub mod xml;

use std::path::Path;
use std::time::{Duration, Instant};

use super::command::{Ended, Tool};
use crate::error::{Error, ErrorKind, Result};
use xml::{Checkpoint, Domain};

/// How long a backup job may take to end once it was told to.
const JOB_END: Duration = Duration::from_secs(60);
const NAP: Duration = Duration::from_millis(50);
/// Seconds that a guest agent may take to show that it is there.
const AGENT_PATIENCE_S: u32 = 5;
/// What `virsh` says where there is none to ask.
const NO_AGENT: &str = "guest agent is not configured";
/// What it says where a domain has no backup job.
const NO_BACKUP: [&str; 2] = ["no domain backup job present", "domain is not running"];

/// A connection to the libvirt of this host.
#[derive(Clone, Debug)]
pub struct Libvirt {
    uri: Option<String>,
}

/// Whether a guest's file systems can be brought to rest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Agent {
    /// It answers.
    Ready,
    /// The domain has none.
    None,
    /// It has one, which does not answer; why.
    Silent(String),
}

impl Libvirt {
    /// The libvirt at `uri`, or else the one that `virsh` talks to by itself.
    ///
    /// # Errors
    /// `Unsupported` if there is no `virsh`, or if it is not QEMU on this host that it leads to; if there
    /// is nobody to talk to.
    pub fn connect(uri: Option<&str>) -> Result<Libvirt> {
        let libvirt = Libvirt { uri: uri.map(str::to_owned) };
        let at = libvirt.virsh("uri").answer().map_err(|error| {
            error
                .meaning("no VM was touched")
                .hint("see that libvirt runs (`virsh uri`), or say where: --libvirt-uri URI")
        })?;
        match is_local(at.trim()) {
            true => Ok(libvirt),
            false => Err(Error::new(
                ErrorKind::Unsupported,
                "this is not QEMU on this host, and its disks cannot be read from here",
            )
            .on(at.trim())
            .meaning("no VM was touched")
            .hint(
                "run voltar on the host that runs the VM; or name its libvirt: --libvirt-uri URI",
            )),
        }
    }

    fn virsh(&self, command: &str) -> Tool {
        let tool = Tool::new("virsh").arg("--quiet");
        let tool = match &self.uri {
            Some(uri) => tool.arg("--connect").arg(uri),
            None => tool,
        };
        tool.arg(command)
    }

    fn of(&self, command: &str, domain: &str) -> Tool {
        self.virsh(command).arg("--domain").arg(domain)
    }

    /// The domain of this name or UUID.
    ///
    /// # Errors
    /// `NotFound` if there is none; of the tool.
    pub fn domain(&self, name: &str) -> Result<Domain> {
        let tool = self.of("dumpxml", name);
        let words = tool.words().to_owned();
        let ended = tool.run()?;
        let none = || {
            Error::new(ErrorKind::NotFound, "libvirt has no such domain")
                .on(format!("libvirt:{name}"))
                .hint(
                    "`virsh list --all` lists what it has; --libvirt-uri URI names another libvirt",
                )
        };
        if !ended.status.success() {
            return match ended.complaints.contains("failed to get domain") {
                true => Err(none()),
                false => Err(ended.failure(&words)),
            };
        }
        let domain = understood(&words, xml::domain(&ended.answer))?;
        // `virsh` takes a number for the one that a running domain has at the moment.
        match domain.name == name || domain.uuid.eq_ignore_ascii_case(name) {
            true => Ok(domain),
            false => Err(none()),
        }
    }

    /// What a domain would be started from, without what is secret.
    ///
    /// # Errors
    /// Of the tool.
    pub fn definition(&self, uuid: &str) -> Result<String> {
        self.of("dumpxml", uuid).arg("--inactive").answer()
    }

    /// How long a disk is, in bytes.
    ///
    /// # Errors
    /// Of the tool.
    pub fn size(&self, uuid: &str, target: &str) -> Result<u64> {
        let tool = self.of("domblkinfo", uuid).arg("--device").arg(target);
        let words = tool.words().to_owned();
        let answer = tool.answer()?;
        let capacity = answer.lines().find_map(|line| line.strip_prefix("Capacity:"));
        let bytes = capacity.and_then(|bytes| bytes.trim().parse().ok());
        understood(&words, bytes.ok_or_else(|| format!("there is no capacity in {answer:?}")))
    }

    /// The names of a domain's checkpoints.
    ///
    /// # Errors
    /// Of the tool.
    pub fn checkpoints(&self, uuid: &str) -> Result<Vec<String>> {
        let answer = self.of("checkpoint-list", uuid).arg("--name").answer()?;
        let names = answer.lines().map(str::trim).filter(|name| !name.is_empty());
        Ok(names.map(str::to_owned).collect())
    }

    /// What libvirt keeps of a checkpoint.
    ///
    /// # Errors
    /// Of the tool.
    pub fn checkpoint_xml(&self, uuid: &str, name: &str) -> Result<String> {
        self.of("checkpoint-dumpxml", uuid)
            .arg("--no-domain")
            .arg("--checkpointname")
            .arg(name)
            .answer()
    }

    /// A checkpoint, and of which disks it can tell changes; of none if libvirt does not say.
    ///
    /// # Errors
    /// Of the tool.
    pub fn checkpoint(&self, uuid: &str, name: &str) -> Result<Checkpoint> {
        let dump = || self.of("checkpoint-dumpxml", uuid).arg("--checkpointname").arg(name);
        let sized = dump().arg("--no-domain").arg("--size").run()?;
        let text = match sized.status.success() {
            true => sized.answer,
            false => self.checkpoint_xml(uuid, name)?,
        };
        understood(name, xml::checkpoint(&text))
    }

    /// Deletes a checkpoint; `forget`: what libvirt keeps of it only, where its bitmap is gone.
    ///
    /// # Errors
    /// Of the tool.
    pub fn delete_checkpoint(&self, uuid: &str, name: &str, forget: bool) -> Result<()> {
        let tool = self.of("checkpoint-delete", uuid).arg("--checkpointname").arg(name);
        let tool = if forget { tool.arg("--metadata") } else { tool };
        tool.answer().map(drop)
    }

    /// Begins a backup, and a checkpoint at the same instant.
    ///
    /// # Errors
    /// In libvirt's words; there is neither then.
    pub fn begin(&self, uuid: &str, backup: &Path, checkpoint: Option<&Path>) -> Result<()> {
        let tool = self.of("backup-begin", uuid).arg("--backupxml").arg(backup);
        let tool = match checkpoint {
            Some(checkpoint) => tool.arg("--checkpointxml").arg(checkpoint),
            None => tool,
        };
        tool.answer().map(drop)
    }

    /// What a domain is busy with, in libvirt's words.
    ///
    /// # Errors
    /// Of the tool.
    pub fn job(&self, uuid: &str) -> Result<Option<String>> {
        let answer = self.of("domjobinfo", uuid).answer()?;
        let value = |key: &str| {
            let mut lines = answer.lines().filter_map(|line| line.strip_prefix(key));
            lines.next().map(|value| value.trim().to_owned())
        };
        let kind = value("Job type:");
        let kind =
            understood(uuid, kind.ok_or_else(|| format!("there is no job type in {answer:?}")))?;
        Ok((kind != "None").then(|| value("Operation:").unwrap_or(kind)))
    }

    /// The names of the exports of a domain's backup, if there is one under way.
    ///
    /// # Errors
    /// Of the tool.
    pub fn exports(&self, uuid: &str) -> Result<Option<Vec<String>>> {
        let tool = self.of("backup-dumpxml", uuid);
        let words = tool.words().to_owned();
        let Ended { status, answer, complaints } = tool.run()?;
        match status.success() {
            true => understood(&words, xml::exports(&answer)).map(Some),
            false if NO_BACKUP.iter().any(|words| complaints.contains(words)) => Ok(None),
            false => Err(Ended { status, answer, complaints }.failure(&words)),
        }
    }

    /// Ends a domain's backup, and waits until it is over.
    ///
    /// # Errors
    /// Of the tool; `Io` if it goes on.
    pub fn abort(&self, uuid: &str) -> Result<()> {
        let aborted = self.of("domjobabort", uuid).answer();
        let end = Instant::now() + JOB_END;
        while self.exports(uuid)?.is_some() {
            if let Err(error) = aborted {
                return Err(error);
            }
            if Instant::now() > end {
                return Err(Error::new(ErrorKind::Io, "libvirt does not end its backup job")
                    .on(uuid)
                    .hint("run `virsh domjobabort` with this UUID"));
            }
            std::thread::sleep(NAP);
        }
        Ok(())
    }

    /// Whether the guest's agent is there.
    ///
    /// # Errors
    /// Of running the tool.
    pub fn agent(&self, uuid: &str) -> Result<Agent> {
        let tool = self.of("qemu-agent-command", uuid).arg("--timeout");
        let ping = r#"{"execute":"guest-ping"}"#;
        let ended = tool.arg(AGENT_PATIENCE_S.to_string()).arg(ping).run()?;
        Ok(match ended.status.success() {
            true => Agent::Ready,
            false if ended.complaints.contains(NO_AGENT) => Agent::None,
            false => Agent::Silent(ended.complaints.replace('\n', "; ")),
        })
    }

    /// What a shell runs to have the guest's file systems rest, and to have them go on.
    pub fn freeze_and_thaw(&self, uuid: &str) -> (String, String) {
        let uri = self.uri.iter().map(|uri| format!(" --connect {}", quoted(uri)));
        let uri: String = uri.collect();
        let words =
            |command: &str| format!("virsh --quiet{uri} {command} --domain {uuid} >/dev/null");
        (words("domfsfreeze"), words("domfsthaw"))
    }
}

/// Whether a canonical URI leads to QEMU on this host: it names no host, and no way to another one.
fn is_local(uri: &str) -> bool {
    ["qemu:///", "qemu+unix:///"].iter().any(|start| uri.starts_with(start))
}

/// A word as a shell takes it.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

fn understood<T>(words: &str, read: Result<T, String>) -> Result<T> {
    read.map_err(|why| {
        Error::new(ErrorKind::Unsupported, "libvirt's answer is not understood")
            .on(words)
            .because(why)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_qemu_on_this_host_is_local() {
        for uri in ["qemu:///system", "qemu:///session", "qemu+unix:///system?socket=/x"] {
            assert!(is_local(uri), "{uri}");
        }
        for uri in ["qemu+ssh://host/system", "qemu+tcp:///system", "test:///default", "xen:///"] {
            assert!(!is_local(uri), "{uri}");
        }
    }

    #[test]
    fn a_shell_takes_words_as_they_are() {
        let word = "qemu+unix:///system?socket=/a b/it's $(x)";
        let (freeze, _) = Libvirt { uri: Some(word.into()) }.freeze_and_thaw("u");
        let script = freeze.replacen("virsh", "printf '%s\\n'", 1).replace(">/dev/null", "");
        let said = Tool::new("sh").args(["-c", &script]).answer().unwrap();
        assert_eq!(said, format!("--quiet\n--connect\n{word}\ndomfsfreeze\n--domain\nu\n"));
    }
}
