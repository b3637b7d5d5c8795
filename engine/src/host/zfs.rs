//! ZFS by its command-line tools: what a volume has, and what is done with it.
//!
//! Names come from ZFS itself or were checked by whoever asks, so that none is taken for an option.
//! Tools print for scripts (`-H`: tabs, no heading; `-p`: exact numbers).

use std::fs::File;
use std::io::{Read, Seek};
use std::process::{Child, ChildStdout, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};

use super::command::Tool;
use crate::cancel::Cancel;
use crate::error::{Error, ErrorKind, Result};
use crate::words::with_causes;

/// The user property that says by which run a snapshot or clone was made.
pub const RUN_PROPERTY: &str = "voltar:run";

/// How long something may be in use that nobody of ours uses: udev looks into new devices.
const PATIENCE: Duration = Duration::from_secs(15);
/// How often it is tried again.
const NAP: Duration = Duration::from_millis(100);
/// Bytes between `zfs send` and us: what a pipe has for everybody at most.
const PIPE_LEN: i32 = 1 << 20;
/// Most bytes of its complaints that are repeated.
const COMPLAINTS_LEN_MAX: u64 = 4 << 10;

/// What a data set is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A zvol.
    Volume,
    /// A snapshot of one.
    Snapshot,
    /// What remains of a snapshot: enough to send changes since.
    Bookmark,
    /// A file system.
    Filesystem,
}

/// A volume, one of its snapshots or one of its bookmarks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dataset {
    /// Its full name.
    pub name: String,
    /// What it is.
    pub kind: Kind,
    /// Its identity; a bookmark has that of its snapshot.
    pub guid: u64,
    /// The pool's transaction group in which it was made; a bookmark has that of its snapshot.
    pub create_txg: u64,
    /// Bytes of a snapshot that its volume did not have at the snapshot before.
    pub written: Option<u64>,
    /// Size of a volume or snapshot in bytes.
    pub size: Option<u64>,
    /// Length of a volume's blocks in bytes.
    pub block_len: Option<u64>,
    /// Whether it is encrypted and the key is not there.
    pub is_locked: bool,
    /// What was cloned from a snapshot.
    pub clones: Vec<String>,
    /// The run that made it, if one of ours did.
    pub run: Option<String>,
}

const COLUMNS: &str =
    "name,type,guid,createtxg,written,volsize,volblocksize,keystatus,clones,voltar:run";

impl Dataset {
    /// From a line of `zfs list -Hp -o COLUMNS`.
    fn parse(line: &str) -> Option<Dataset> {
        let fields: Vec<&str> = line.split('\t').collect();
        let [name, kind, guid, create_txg, written, size, block_len, key, clones, run] = fields[..]
        else {
            return None;
        };
        let some =
            |field: &str| Some(field.to_owned()).filter(|field| !["-", ""].contains(&&**field));
        Some(Dataset {
            name: name.to_owned(),
            kind: match kind {
                "volume" => Kind::Volume,
                "snapshot" => Kind::Snapshot,
                "bookmark" => Kind::Bookmark,
                "filesystem" => Kind::Filesystem,
                _ => return None,
            },
            guid: guid.parse().ok()?,
            create_txg: create_txg.parse().ok()?,
            written: written.parse().ok(),
            size: size.parse().ok(),
            block_len: block_len.parse().ok(),
            is_locked: key == "unavailable",
            clones: some(clones)
                .iter()
                .flat_map(|names| names.split(','))
                .map(Into::into)
                .collect(),
            run: some(run),
        })
    }
}

fn list(options: &[&str], names: &[&str]) -> Result<Vec<Dataset>> {
    let tool = Tool::new("zfs").args(["list", "-Hp", "-o", COLUMNS]).args(options).args(names);
    let words = tool.words().to_owned();
    let ended = tool.run()?;
    if ended.complaints.contains("does not exist") {
        return Err(Error::new(ErrorKind::NotFound, "there is no such volume")
            .on(format!("zfs:{}", names.join(" ")))
            .because(ended.complaints)
            .hint("`zfs list -t volume` lists the volumes"));
    }
    if !ended.status.success() {
        return Err(ended.failure(&words));
    }
    let parse = |line: &str| {
        Dataset::parse(line).ok_or_else(|| {
            Error::new(ErrorKind::Unsupported, "this answer of a tool is not understood")
                .on(words.clone())
                .because(format!("{line:?}"))
        })
    };
    ended.answer.lines().map(parse).collect()
}

/// A data set of the name `volume`, its snapshots and its bookmarks, itself first.
///
/// # Errors
/// `NotFound` if there is none of that name; of the tool.
pub fn family(volume: &str) -> Result<Vec<Dataset>> {
    list(&["-t", "all", "-d", "1"], &[volume])
}

/// All volumes of this host, their snapshots and their bookmarks.
///
/// # Errors
/// Of the tool.
pub fn all() -> Result<Vec<Dataset>> {
    list(&["-t", "volume,snapshot,bookmark"], &[])
}

/// Just these.
///
/// # Errors
/// `NotFound` if one is missing; of the tool.
pub fn datasets(names: &[&str]) -> Result<Vec<Dataset>> {
    list(&["-t", "all"], names)
}

/// The identity of the pool of this name.
///
/// # Errors
/// Of the tool.
pub fn pool_guid(pool: &str) -> Result<u64> {
    let answer = Tool::new("zpool").args(["get", "-Hp", "-o", "value", "guid", pool]).answer()?;
    answer.trim().parse().map_err(|_| {
        Error::new(ErrorKind::Unsupported, "the guid of a pool is not understood")
            .on(pool)
            .because(format!("{answer:?}"))
    })
}

/// What a pool's history says of a volume since one of its snapshots: whether something was received
/// into it. That can take back what it held at the snapshot (`zfs receive -F`), and leaves bookmarks,
/// while blocks that come back are as old as they were: no stream since the bookmark has them.
#[derive(Debug)]
struct History<'a> {
    volume: &'a str,
    snapshot_txg: u64,
    /// Whether the record of the snapshot was met: the oldest records give way to new ones.
    reaches_back: bool,
    is_received: bool,
    /// Whether something was received into some volume of the pool.
    is_any_received: bool,
    is_any_renamed: bool,
}

impl<'a> History<'a> {
    fn new(volume: &'a str, snapshot_txg: u64) -> History<'a> {
        History {
            volume,
            snapshot_txg,
            reaches_back: false,
            is_received: false,
            is_any_received: false,
            is_any_renamed: false,
        }
    }

    /// A line of `zpool history -i`: `DATE [txg:N] WHAT`. What is received is a clone first, which
    /// then changes places with the volume (`dsl_dataset_clone_swap_sync_impl`).
    fn take(&mut self, line: &str) {
        let Some((_, record)) = line.split_once(" [txg:") else { return };
        let Some((txg, what)) = record.split_once("] ") else { return };
        let Ok(txg) = txg.parse::<u64>() else { return };
        if txg < self.snapshot_txg {
            return;
        }
        if txg == self.snapshot_txg && what.starts_with("snapshot ") {
            self.reaches_back = true;
        }
        if let Some(clone) = what.strip_prefix("clone swap ") {
            self.is_any_received = true;
            // `VOLUME/%recv`; whatever else it is may be of any volume.
            self.is_received |= clone.split_once("/%").is_none_or(|(name, _)| name == self.volume);
        }
        self.is_any_renamed |= what.starts_with("rename ");
    }

    fn verdict(&self) -> Result<(), &'static str> {
        match self {
            History { reaches_back: false, .. } => {
                Err("the pool's history does not reach back to \
                 the last backup, so something may have been received into the volume since")
            }
            History { is_received: true, .. } => Err(
                "something was received into the volume, or it was rolled back, since the last backup",
            ),
            History { is_any_received: true, is_any_renamed: true, .. } => {
                Err("volumes of the pool were received and renamed since the last backup")
            }
            _ => Ok(()),
        }
    }
}

/// Whether nothing was received into a volume since its snapshot of that transaction group.
///
/// # Errors
/// Says what was, or that it cannot be told.
pub fn check_not_received(volume: &str, snapshot_txg: u64, cancel: &Cancel) -> Result<(), String> {
    let pool = volume.split('/').next().unwrap_or_default();
    let mut history = History::new(volume, snapshot_txg);
    let tool = Tool::new("zpool").args(["history", "-i", pool]);
    tool.each_line(cancel, |line| history.take(line)).map_err(|error| with_causes(&error))?;
    history.verdict().map_err(str::to_owned)
}

/// Makes snapshots of these names, all of one pool, at one instant: all or none.
///
/// # Errors
/// Of the tool.
pub fn snapshot(names: &[&str], run: &str) -> Result<()> {
    let property = format!("{RUN_PROPERTY}={run}");
    Tool::new("zfs").args(["snapshot", "-o", &property]).args(names).answer().map(drop)
}

/// Makes a volume of a snapshot, to be read from its device.
///
/// # Errors
/// Of the tool.
pub fn clone(snapshot: &str, name: &str, run: &str) -> Result<()> {
    let property = format!("{RUN_PROPERTY}={run}");
    let tool = Tool::new("zfs").args(["clone", "-o", "volmode=dev", "-o", "readonly=on"]);
    tool.args(["-o", &property, snapshot, name]).answer().map(drop)
}

/// Remembers a snapshot.
///
/// # Errors
/// Of the tool.
pub fn bookmark(snapshot: &str, name: &str) -> Result<()> {
    Tool::new("zfs").args(["bookmark", snapshot, name]).answer().map(drop)
}

/// Takes it away; nothing else goes with it. What is gone already is no error.
///
/// # Errors
/// Of the tool, once it was in use for long enough.
pub fn destroy(name: &str) -> Result<()> {
    let end = Instant::now() + PATIENCE;
    loop {
        let tool = Tool::new("zfs").args(["destroy", name]);
        let words = tool.words().to_owned();
        let ended = tool.run()?;
        if ended.status.success() || is_gone(&ended.complaints) {
            return Ok(());
        }
        if !ended.complaints.contains("busy") || Instant::now() >= end {
            return Err(ended.failure(&words));
        }
        thread::sleep(NAP);
    }
}

fn is_gone(complaints: &str) -> bool {
    ["does not exist", "could not find any snapshots to destroy"]
        .iter()
        .any(|words| complaints.contains(words))
}

/// A running `zfs send`. It ends when this is dropped.
#[derive(Debug)]
pub struct Sender {
    child: Child,
    complaints: File,
}

impl Sender {
    /// Sends a snapshot, whole or what changed since a bookmark or snapshot, with blocks as long as
    /// they are.
    ///
    /// # Errors
    /// Of starting it.
    pub fn start(snapshot: &str, since: Option<&str>) -> Result<(Sender, ChildStdout)> {
        let tool = Tool::new("zfs").args(["send", "-L"]);
        let tool = since.iter().fold(tool, |tool, base| tool.args(["-i", base]));
        let tool = tool.arg(snapshot);
        let words = tool.words().to_owned();
        let failed = |error| Error::io("cannot run", words.clone(), error);
        // A file, not a pipe: nobody reads it while the stream is read.
        let complaints = memfd_create(c"complaints", MFdFlags::MFD_CLOEXEC)
            .map(File::from)
            .map_err(|errno| failed(errno.into()))?;
        let stderr = complaints.try_clone().map_err(failed)?;
        let mut command = tool.into_command();
        let mut child = command.stdout(Stdio::piped()).stderr(stderr).spawn().map_err(failed)?;
        let stdout = child.stdout.take();
        let sender = Sender { child, complaints };
        let stdout = stdout.ok_or_else(|| failed(std::io::Error::other("it has no output")))?;
        // Without it the two wait for one another more often, and that is all.
        let _ = fcntl(&stdout, FcntlArg::F_SETPIPE_SZ(PIPE_LEN));
        Ok((sender, stdout))
    }

    /// Waits for its end, which was read.
    ///
    /// # Errors
    /// In its words, if it failed.
    pub fn finish(&mut self) -> Result<(), String> {
        let status = self.child.wait().map_err(|error| error.to_string())?;
        match status.success() {
            true => Ok(()),
            false => Err(format!("{} ({status})", self.complaints())),
        }
    }

    /// What it complained of so far.
    pub fn complaints(&mut self) -> String {
        let mut bytes = Vec::new();
        let read = self
            .complaints
            .rewind()
            .and_then(|()| (&self.complaints).take(COMPLAINTS_LEN_MAX).read_to_end(&mut bytes));
        match read {
            Ok(_) => String::from_utf8_lossy(&bytes).trim().replace('\n', "; "),
            Err(error) => error.to_string(),
        }
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        // It has ended already, or what it sends is of no use any more.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_history_tells_of_what_was_received() {
        let told = |lines: &[&str]| {
            let mut history = History::new("tank/a vol", 57);
            lines.iter().for_each(|line| history.take(line));
            history.verdict()
        };
        let snapshot = "2026-11-21.18:00:01 [txg:57] snapshot tank/a vol@voltar-1-ab (141) ";
        let swap =
            |txg: u64, name: &str| format!("2026-11-21.18:00:02 [txg:{txg}] clone swap {name}");
        let ours = swap(60, "tank/a vol/%recv (150) parent=a vol");
        let others = swap(61, "tank/b/%recv (151) parent=b");
        let rename = "2026-11-21.18:00:03 [txg:62] rename tank/c (54) -> tank/d";
        assert_eq!(told(&[snapshot, &others]), Ok(()));
        assert_eq!(told(&[&swap(56, "tank/a vol/%recv (99)"), snapshot, rename]), Ok(()));
        assert_eq!(told(&["2026-11-21.18:00:00 zfs receive -F tank/a vol", snapshot]), Ok(()));
        assert!(told(&[snapshot, &others, &ours]).unwrap_err().contains("into the volume, or"));
        assert!(told(&[snapshot, &swap(60, "")]).unwrap_err().contains("into the volume, or"));
        assert!(told(&[snapshot, &others, rename]).unwrap_err().contains("renamed"));
        assert!(told(&[&others]).unwrap_err().contains("does not reach back"));
        assert!(told(&[]).unwrap_err().contains("does not reach back"));
    }

    #[test]
    fn lines_of_zfs_list_are_understood() {
        let line =
            "tank/v@a\tsnapshot\t5714688977164748035\t57\t0\t1048576\t-\t-\ttank/c,tank/d\t17";
        let snapshot = Dataset::parse(line).unwrap();
        assert_eq!((snapshot.kind, snapshot.guid), (Kind::Snapshot, 5_714_688_977_164_748_035));
        assert_eq!((snapshot.size, snapshot.block_len), (Some(1 << 20), None));
        assert_eq!((snapshot.create_txg, snapshot.written), (57, Some(0)));
        assert_eq!(snapshot.clones, ["tank/c", "tank/d"]);
        assert_eq!(snapshot.run.as_deref(), Some("17"));
        let line = "tank/a vol\tvolume\t8\t5\t4096\t1048576\t16384\tunavailable\t-\t-";
        let volume = Dataset::parse(line).unwrap();
        assert!(volume.is_locked && volume.run.is_none() && volume.clones.is_empty());
        for line in [
            "",
            "tank\tvolume\t8",
            "tank\tpond\t8\t5\t-\t-\t-\t-\t-\t-",
            "a\tvolume\t-\t5\t-\t-\t-\t-\t-\t-",
            "a\tvolume\t8\t-\t-\t-\t-\t-\t-\t-",
        ] {
            assert_eq!(Dataset::parse(line), None, "{line}");
        }
    }
}
