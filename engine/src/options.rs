//! What a caller may choose, with the defaults and the permitted ranges.

use std::collections::BTreeMap;
use std::fmt;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::cancel::Cancel;
use crate::image::files::Allowed;
use crate::image::format::Format;
use crate::nbd::Uri;
use crate::observe::{Observer, Silent};

pub use crate::io::IoEngine;

/// What every operation is given: resources, who watches, and how to stop it.
#[derive(Clone)]
pub struct Context {
    /// The I/O engine.
    pub io: IoEngine,
    /// Worker threads; `None` is one per processor.
    pub threads: Option<NonZeroUsize>,
    /// Bound on buffers and tables, in bytes; default 256 MiB, at least 64 MiB.
    pub memory_bytes: u64,
    /// Bound on the rate of source (backup) or target (restore) bytes per second.
    pub limit_bytes_per_s: Option<u64>,
    /// Who watches.
    pub observer: Arc<dyn Observer>,
    /// How to stop it.
    pub cancel: Cancel,
}

/// Default of [`Context::memory_bytes`].
pub const MEMORY_BYTES_DEFAULT: u64 = 256 << 20;
/// Least value of [`Context::memory_bytes`].
pub const MEMORY_BYTES_MIN: u64 = 64 << 20;

impl Default for Context {
    fn default() -> Self {
        Context {
            io: IoEngine::Auto,
            threads: None,
            memory_bytes: MEMORY_BYTES_DEFAULT,
            limit_bytes_per_s: None,
            observer: Arc::new(Silent),
            cancel: Cancel::new(),
        }
    }
}

impl Context {
    /// The number of worker threads to start.
    pub fn worker_count(&self) -> usize {
        self.threads
            .or_else(|| std::thread::available_parallelism().ok())
            .map_or(1, NonZeroUsize::get)
    }
}

/// How to compress new chunks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Compression {
    /// Move the level so that the whole is fastest.
    #[default]
    Auto,
    /// Do not compress.
    Store,
    /// zstd at this level, -131072..=22.
    Zstd(i32),
}

/// Which snapshot is meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selector {
    /// The newest but `n`.
    Latest(u64),
    /// Lower-case hexadecimal prefix of an id, unique in the archive.
    IdPrefix(String),
    /// The newest whose time lies in this range of nanoseconds since 1970-01-01 UTC.
    TimeRange(std::ops::Range<i64>),
}

/// Which snapshot new chunks are compared with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ParentChoice {
    /// Per volume, the newest snapshot that holds a volume of the same name.
    #[default]
    Auto,
    /// None: still deduplicated, but no change source and no comparison by position.
    None,
    /// This one; an error if it lacks one of the volumes.
    Snapshot(Selector),
}

/// Who is asked what changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Changes {
    /// The best source the volume has.
    #[default]
    Auto,
    /// Nobody: read everything and compare.
    Full,
    /// The change source of this kind, or fail.
    Kind(String),
}

/// What to do about sectors of the source that fail to read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnReadError {
    /// Fail the backup, naming the range.
    #[default]
    Fail,
    /// Record the range in the snapshot and go on.
    Record,
}

/// Whether what the archive holds already is stored again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Dedup {
    /// No: it is referred to.
    #[default]
    On,
    /// Yes: everything is read, and stored once in this session. Where the archive is damaged,
    /// the new place serves all snapshots that share the data.
    Off,
}

/// Where a volume is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A block device or file. What is recognised as a logical volume or a zvol is treated as one.
    Path(PathBuf),
    /// A logical volume of LVM.
    Lvm {
        /// Its volume group.
        group: String,
        /// Its name there.
        volume: String,
    },
    /// A zvol: the dataset's name, pool first.
    Zfs(String),
    /// An export of an NBD server.
    Nbd(Uri),
    /// A file of this format, whatever its name or its header say.
    Image {
        /// The format.
        format: Format,
        /// The file.
        path: PathBuf,
    },
    /// Disks of a VM that runs in QEMU.
    Qemu {
        /// The socket of its monitor (QMP).
        monitor: PathBuf,
        /// One of its disks; `None`: all that the guest can write to, each a volume of its own.
        disk: Option<String>,
    },
    /// Disks of a VM that runs under libvirt.
    Libvirt {
        /// The domain: its name or its UUID.
        domain: String,
        /// The target of one of its disks; `None`: all that the guest can write to, each a volume of
        /// its own.
        disk: Option<String>,
    },
}

impl Place {
    /// The disk of a running VM that it names, if it names one.
    pub fn disk(&self) -> Option<&str> {
        match self {
            Place::Qemu { disk, .. } | Place::Libvirt { disk, .. } => disk.as_deref(),
            Place::Path(_)
            | Place::Lvm { .. }
            | Place::Zfs(_)
            | Place::Nbd(_)
            | Place::Image { .. } => None,
        }
    }

    /// The path of a file or device that is named by one, and the format that the user says it has.
    pub fn path(&self) -> Option<(&Path, Option<Format>)> {
        match self {
            Place::Path(path) => Some((path, None)),
            Place::Image { format, path } => Some((path, Some(*format))),
            Place::Lvm { .. }
            | Place::Zfs(_)
            | Place::Nbd(_)
            | Place::Qemu { .. }
            | Place::Libvirt { .. } => None,
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Path(path) => path.display().fmt(f),
            Place::Lvm { group, volume } => write!(f, "lvm:{group}/{volume}"),
            Place::Zfs(dataset) => write!(f, "zfs:{dataset}"),
            Place::Nbd(uri) => uri.fmt(f),
            Place::Image { format, path } => write!(f, "{format}:{}", path.display()),
            Place::Qemu { monitor, disk: None } => write!(f, "qemu:{}", monitor.display()),
            Place::Qemu { monitor, disk: Some(disk) } => {
                write!(f, "qemu:{}/{disk}", monitor.display())
            }
            Place::Libvirt { domain, disk: None } => write!(f, "libvirt:{domain}"),
            Place::Libvirt { domain, disk: Some(disk) } => write!(f, "libvirt:{domain}/{disk}"),
        }
    }
}

/// One volume to back up.
#[derive(Clone, Debug)]
pub struct SourceRequest {
    /// The volume's name in the archive; unique within the snapshot, 1..=255 bytes. Of a whole VM,
    /// what its disks' names begin with: `NAME-DISK`.
    pub name: String,
    /// Where it is.
    pub place: Place,
}

/// Whether a volume is held still while it is read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SnapshotUse {
    /// By a snapshot, where the volume's kind has them.
    #[default]
    Auto,
    /// No: it is read as it is, and who writes to it meanwhile gets a backup of a moving disk.
    Off,
}

/// What stays on the host between backups, as the base of the next one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Keep {
    /// The least that tells what changed: a snapshot of a thin volume, a bookmark of a zvol, a
    /// reflink copy of a file; nothing of a thick volume, whose snapshots slow it down.
    #[default]
    Auto,
    /// The snapshot, whatever the kind.
    Snapshot,
    /// Nothing.
    Nothing,
}

/// Default of [`Holding::latency_bound`].
pub const LATENCY_BOUND_DEFAULT: Duration = Duration::from_millis(50);

/// How volumes are held still while they are read, and what remains of that.
#[derive(Clone, Debug)]
pub struct Holding {
    /// Whether snapshots are made.
    pub snapshot: SnapshotUse,
    /// What is kept of them.
    pub keep: Keep,
    /// Bytes for the changes that happen to a thick volume meanwhile; `None`: a share of it.
    pub cow_bytes: Option<u64>,
    /// A command that brings applications to rest before the snapshots are made.
    pub freeze: Option<String>,
    /// A command that lets them go on; it runs on every path.
    pub thaw: Option<String>,
    /// Whether file systems that this host has mounted from the volumes are frozen meanwhile.
    pub freeze_mounted: bool,
    /// Whether the agent of a running VM's guest is asked to freeze its file systems meanwhile.
    pub freeze_guest: bool,
    /// The socket of that agent; `None`: as QEMU tells.
    pub agent: Option<PathBuf>,
    /// libvirt's connection; `None`: the one that `virsh` takes by itself.
    pub libvirt_uri: Option<String>,
    /// Where files are made that take what a running VM overwrites meanwhile.
    pub fleece_dir: PathBuf,
    /// Most bytes of each of them; `None`: as much as its disk has.
    pub fleece_bytes: Option<u64>,
    /// Whether a dirty bitmap is kept in a qcow2 image that nobody uses, even if there is none yet.
    pub image_bitmaps: bool,
    /// How long reads of a volume in use, or its guest's writes, may take on average before the backup
    /// slows down; `None`: it never does.
    pub latency_bound: Option<Duration>,
    /// Where files may lie that images name: backing files and the like.
    pub image_files: Allowed,
    /// Where locks and notes on what is held are kept; without it nothing that would have to be
    /// found again after a crash is made.
    pub state_dir: Option<PathBuf>,
}

impl Default for Holding {
    fn default() -> Holding {
        Holding {
            snapshot: SnapshotUse::Auto,
            keep: Keep::Auto,
            cow_bytes: None,
            freeze: None,
            thaw: None,
            freeze_mounted: true,
            freeze_guest: true,
            agent: None,
            libvirt_uri: None,
            fleece_dir: PathBuf::from("/var/tmp"),
            fleece_bytes: None,
            image_bitmaps: false,
            latency_bound: Some(LATENCY_BOUND_DEFAULT),
            image_files: Allowed::ImageFolder,
            state_dir: None,
        }
    }
}

/// Where an archive is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ArchiveHome {
    /// One file.
    File(PathBuf),
    /// Standard output: one fresh archive, written front to back.
    Stdout,
}

/// A backup to make.
#[derive(Clone, Debug)]
pub struct BackupRequest {
    /// The volumes of the snapshot, at least one.
    pub sources: Vec<SourceRequest>,
    /// Where to write; created if missing.
    pub archive: ArchiveHome,
    /// What to compare with.
    pub parent: ParentChoice,
    /// Who is asked what changed.
    pub changes: Changes,
    /// Share of "unchanged" chunks that are re-read and compared, 0.0..=1.0.
    pub audit_share: f64,
    /// How to compress.
    pub compression: Compression,
    /// Chunk length in bytes: a power of two, 4 KiB..=1 MiB. `None`: as the parent, or 64 KiB.
    pub chunk_len: Option<u32>,
    /// Small files to store with the snapshot: name and path.
    pub attach: Vec<(String, PathBuf)>,
    /// Free key/value pairs.
    pub tags: BTreeMap<String, String>,
    /// Whether to refer to what the archive holds, or to store it again.
    pub dedup: Dedup,
    /// What to do about unreadable sectors.
    pub on_read_error: OnReadError,
    /// How the volumes are held still.
    pub holding: Holding,
    /// Do everything but write to the archive.
    pub dry_run: bool,
}

/// Whether a restore compares before it writes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Delta {
    /// When a sample of the target looks like an older copy of the volume.
    #[default]
    Auto,
    /// Always compare first.
    On,
    /// Never: write everything.
    Off,
}

/// What a restore does about chunks the archive can no longer give.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnDamage {
    /// Fail, naming the ranges.
    #[default]
    Fail,
    /// Write zeroes there, go on, and report.
    Zero,
}

/// Where one volume goes.
#[derive(Clone, Debug)]
pub struct TargetRequest {
    /// The volume's name; `None` when the snapshot has only one.
    pub name: Option<String>,
    /// Where it goes. A logical volume or a zvol that does not exist is created.
    pub place: Place,
}

/// Where what is restored goes.
#[derive(Clone, Debug)]
pub enum Targets {
    /// One volume to each, at least one.
    Each(Vec<TargetRequest>),
    /// Volumes and attached files into one folder.
    Folder(FolderRequest),
}

/// A folder that takes a whole snapshot.
#[derive(Clone, Debug)]
pub struct FolderRequest {
    /// Where it is. It is created if missing, for its owner alone; the folders above it are not.
    pub path: PathBuf,
    /// The volume that is wanted; `None`: all of them.
    pub volume: Option<String>,
    /// What volumes become: raw or qcow2.
    pub format: Format,
}

/// How volumes that do not exist are created.
#[derive(Clone, Debug, Default)]
pub struct NewVolumes {
    /// The thin pool of a logical volume; `none` makes a thick one. `None`: the pool it was backed
    /// up from, if the group has one of that name.
    pub thin_pool: Option<String>,
    /// Block length of a zvol in bytes; `None`: as it was, or else the pool's default.
    pub zvol_block_len: Option<u64>,
    /// Cluster length of a qcow2 image in bytes; `None`: QEMU's choice, 64 KiB.
    pub cluster_len: Option<u64>,
}

/// A restore to do.
#[derive(Clone, Debug)]
pub struct RestoreRequest {
    /// The archive's file.
    pub archive: PathBuf,
    /// Which snapshot.
    pub snapshot: Selector,
    /// Where its volumes go.
    pub targets: Targets,
    /// Allow a target that holds data.
    pub overwrite: bool,
    /// Compare first and write only what differs.
    pub delta: Delta,
    /// Read the target again and prove it.
    pub read_back: bool,
    /// Release unused space of the target first; never trusted to zero anything.
    pub discard: bool,
    /// What to do about damage.
    pub on_damage: OnDamage,
    /// Check everything, write nothing.
    pub dry_run: bool,
    /// How volumes that do not exist are created.
    pub new_volumes: NewVolumes,
    /// A directory for the notes that make a restore resumable; without one it is not.
    pub state_dir: Option<PathBuf>,
}

/// A verification to do.
#[derive(Clone, Debug)]
pub struct VerifyRequest {
    /// The archive's file.
    pub archive: PathBuf,
    /// Only what this snapshot needs; `None` is the whole archive.
    pub snapshot: Option<Selector>,
    /// Stored bytes only: checksums, no decompression.
    pub stored: bool,
    /// Percentage of segments to read, 0.0..=100.0; `None` is all.
    pub sample_percent: Option<f64>,
    /// A file that remembers how far a verification came, to go on from there.
    pub resume: Option<PathBuf>,
}
