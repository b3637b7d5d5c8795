//! The arguments as typed: names, help and ranges, nothing else.
//!
//! Parsing is pure. Whatever depends on the machine (which path exists, the environment, the
//! terminal, the time zone) is decided once, when they are resolved.

use std::ffi::{OsStr, OsString};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use voltar_engine::image::format::Format;
use voltar_engine::options::{Changes, Compression, IoEngine, MEMORY_BYTES_MIN};

use crate::size;

/// Reads the command line. The error is clap's: usage, or a request for help or the version.
pub fn parse(argv: &[OsString]) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(argv)
}

/// Block-level backups of volumes: fast, incremental, provable.
#[derive(Debug, Parser)]
#[command(name = "voltar", version, after_long_help = CLI_AFTER, subcommand_required = true)]
#[command(arg_required_else_help = true, max_term_width = 100)]
pub struct Cli {
    /// What to print.
    #[command(flatten)]
    pub output: OutputArgs,
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
}

/// What to print; every command takes these.
#[derive(Args, Clone, Copy, Debug, Default)]
pub struct OutputArgs {
    /// Print one JSON object on standard output and nothing else there
    #[arg(long, global = true, display_order = 900)]
    pub json: bool,
    /// No progress, no notes, no summary; errors and what was asked for still appear
    #[arg(short, long, global = true, conflicts_with = "verbose", display_order = 901)]
    pub quiet: bool,
    /// Name each phase as it starts; print ids and roots in full
    #[arg(short, long, global = true, display_order = 902)]
    pub verbose: bool,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Back up one or more volumes as one snapshot
    #[command(after_long_help = BACKUP_AFTER)]
    Backup(Box<BackupArgs>),
    /// Write volumes of a snapshot to devices or files
    #[command(after_long_help = RESTORE_AFTER)]
    Restore(RestoreArgs),
    /// Prove that an archive is whole
    #[command(after_long_help = VERIFY_AFTER)]
    Verify(VerifyArgs),
    /// List the snapshots, newest last
    #[command(after_long_help = LIST_AFTER)]
    List(ListArgs),
    /// Show one snapshot: volumes, sizes, roots, how changes were found, attached files
    #[command(after_long_help = SHOW_AFTER)]
    Show(ShowArgs),
    /// Print the extents that changed between two snapshots
    #[command(after_long_help = DIFF_AFTER)]
    Diff(DiffArgs),
    /// Print the log as it lies: header, segments, commits, and what follows the last commit
    #[command(after_long_help = INSPECT_AFTER)]
    Inspect(InspectArgs),
    /// List the volumes of this host that can be backed up, and what voltar keeps of them here
    #[command(after_long_help = SOURCES_AFTER)]
    Sources,
    /// Measure what this machine can do, and what `auto` would choose
    #[command(after_long_help = BENCH_AFTER)]
    Bench(BenchArgs),
}

impl Verb {
    /// Whether standard output carries an archive, so that nothing else may go there.
    pub fn writes_archive_to_stdout(&self) -> bool {
        matches!(self, Verb::Backup(args) if is_stdout(&args.archive))
    }
}

/// Whether this argument stands for standard output.
pub fn is_stdout(archive: &OsStr) -> bool {
    archive == "-"
}

/// What every operation on data may be given.
#[derive(Args, Clone, Copy, Debug)]
#[command(next_help_heading = "Resources")]
pub struct ResourceArgs {
    /// How to read and write: io_uring where the kernel grants it, or insist on one
    #[arg(long, value_enum, default_value = "auto")]
    pub io: Io,
    /// Worker threads [default: one per processor]
    #[arg(long, value_name = "N")]
    pub threads: Option<NonZeroUsize>,
    /// Bound on buffers and tables, at least 64M
    #[arg(long, value_name = "SIZE", default_value = "256M", value_parser = memory)]
    pub memory: u64,
}

/// How volumes are held still while they are read.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Holding still")]
pub struct HoldingArgs {
    /// Hold volumes still by snapshots where their kind has them (`auto`), or read them as they are
    #[arg(long, value_enum, default_value = "auto", value_name = "auto|off")]
    #[arg(hide_possible_values = true)]
    pub snapshot: AutoOff,
    /// Let an image name backing and data files in this folder, too, and not only beside it; repeatable
    #[arg(long, value_name = "DIR")]
    pub allow_backing: Vec<PathBuf>,
    /// Keep a dirty bitmap in the qcow2 image of a VM that does not run, which tells the next backup what
    /// changed; one that is there is renewed without being asked for
    #[arg(long)]
    pub keep_bitmap: bool,
    /// What stays on the host as the base of the next backup: the least that tells what changed
    /// (`auto`: nothing for thick volumes), the `snapshot` whatever the kind, or `none`
    #[arg(long, value_enum, default_value = "auto", value_name = "auto|snapshot|none")]
    #[arg(hide_possible_values = true)]
    pub keep: KeepChoice,
    /// Room for what changes in a thick volume meanwhile [default: a fifth of the volume]
    #[arg(long, value_name = "SIZE", value_parser = size::parse)]
    pub cow_size: Option<u64>,
    /// Run this by the shell before the snapshots are made, to bring applications to rest
    #[arg(long, value_name = "COMMAND")]
    pub freeze: Option<String>,
    /// Run this by the shell when they are made, whatever happened
    #[arg(long, value_name = "COMMAND")]
    pub thaw: Option<String>,
    /// Freeze file systems that this host has mounted from the volumes meanwhile
    #[arg(long, value_enum, default_value = "auto", value_name = "auto|off")]
    #[arg(hide_possible_values = true)]
    pub fs_freeze: AutoOff,
    /// Running VMs.
    #[command(flatten)]
    pub running: RunningArgs,
}

/// Arguments on VMs that run while they are backed up.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Running VMs")]
pub struct RunningArgs {
    /// Where what the guest overwrites meanwhile is kept: a folder on a fast disk of this host
    /// [default: the archive's folder, or /var/tmp]
    #[arg(long, value_name = "DIR")]
    pub fleece: Option<PathBuf>,
    /// Most room for that, of each disk; when it is full the backup fails, never the guest
    /// [default: as much as the disk]
    #[arg(long, value_name = "SIZE", value_parser = size::parse)]
    pub fleece_limit: Option<u64>,
    /// Do not ask the guest agent to freeze the guest's file systems for the instant
    #[arg(long)]
    pub no_freeze: bool,
    /// The guest agent's socket [default: as QEMU tells]
    #[arg(long, value_name = "SOCKET")]
    pub agent: Option<PathBuf>,
    /// libvirt's connection [default: as `virsh` has it]
    #[arg(long, value_name = "URI")]
    pub libvirt_uri: Option<String>,
}

/// Arguments of `backup`.
#[derive(Args, Debug)]
pub struct BackupArgs {
    /// What to back up: [NAME=]PATH of a block device, a file or an image (qcow2:PATH, vmdk:, vhdx:, vdi:
    /// and raw: say what it is), lvm:GROUP/VOLUME, zfs:POOL/VOLUME, the URI of an NBD export
    /// (nbd://HOST/EXPORT, nbd+unix:///EXPORT?socket=PATH), or a VM that runs: libvirt:DOMAIN, all disks that
    /// its guest can write to, or libvirt:DOMAIN/DISK; without libvirt qemu:SOCKET or qemu:SOCKET/DISK, the
    /// socket of QEMU's monitor (QMP)
    #[arg(required = true, value_name = "SOURCE")]
    pub sources: Vec<OsString>,
    /// Where to: a file, created if missing, or `-` for standard output
    #[arg(required = true, value_name = "ARCHIVE")]
    pub archive: OsString,
    /// Compare with this snapshot: `auto` (per volume, the newest with its name), `none`, or SNAPSHOT
    #[arg(long, value_name = "SNAPSHOT|auto|none", default_value = "auto")]
    pub parent: String,
    /// Who is asked what changed: `auto`, `full` (read and compare all that holds data), or one kind
    #[arg(long, value_name = "auto|full|KIND", default_value = "auto", value_parser = changes)]
    pub changes: Changes,
    /// Share of "unchanged" chunks that are read again and compared
    #[arg(long, value_name = "PERCENT", default_value = "0.1", value_parser = percent)]
    pub audit: f64,
    /// How to compress: `auto` (whatever makes the whole fastest), `store`, or `zstd:LEVEL`
    #[arg(long, value_name = "auto|store|zstd:LEVEL", default_value = "auto")]
    #[arg(value_parser = compression)]
    pub compression: Compression,
    /// Unit of change: a power of two, 4K to 1M [default: as the parent, or 64K]
    #[arg(long, value_name = "SIZE", value_parser = chunk_len)]
    pub chunk_size: Option<u32>,
    /// Store a small file with the snapshot, such as a VM's configuration; repeatable
    #[arg(long, value_name = "[NAME=]FILE")]
    pub attach: Vec<OsString>,
    /// Label the snapshot; repeatable
    #[arg(long, value_name = "KEY=VALUE", value_parser = tag)]
    pub tag: Vec<(String, String)>,
    /// Refer to what the archive holds already (`on`), or read and store everything again (`off`):
    /// heals a damaged archive as far as the source still has the data
    #[arg(long, value_enum, default_value = "on", value_name = "on|off")]
    #[arg(hide_possible_values = true)]
    pub dedup: OnOff,
    /// What to do about sectors that cannot be read: fail, or record them and go on
    #[arg(long, value_enum, default_value = "fail", value_name = "fail|record")]
    #[arg(hide_possible_values = true)]
    pub on_read_error: ReadErrors,
    /// Holding still.
    #[command(flatten)]
    pub holding: HoldingArgs,
    /// Bound on the rate of reading, per second: `100M`
    #[arg(long, value_name = "RATE", value_parser = size::parse_rate, help_heading = "Resources")]
    pub limit: Option<u64>,
    /// Slow down while reads of a volume in use, or the writes of its guest, take longer than so many
    /// milliseconds on average, to 20 MiB/s at most, and leave the processors to others first (nice 15);
    /// `off`: never
    #[arg(long, value_name = "MS|off", default_value = "50", value_parser = max_latency)]
    #[arg(help_heading = "Resources")]
    pub max_latency: MaxLatency,
    /// Do everything but write to the archive; snapshots are made, and taken away again
    #[arg(long)]
    pub dry_run: bool,
    /// Resources.
    #[command(flatten)]
    pub resources: ResourceArgs,
}

/// Arguments of `restore`.
#[derive(Args, Debug)]
pub struct RestoreArgs {
    /// What to restore
    #[arg(value_name = "ARCHIVE[@SNAPSHOT]")]
    pub archive: OsString,
    /// Where to: a block device, a file, lvm:GROUP/VOLUME or zfs:POOL/VOLUME, created if missing, a new
    /// image (NAME.qcow2 or qcow2:PATH), or the URI of an NBD export; NAME= tells several apart. DIR/
    /// takes all volumes and attached files
    #[arg(required = true, value_name = "[NAME=]TARGET")]
    pub targets: Vec<OsString>,
    /// Which volume of the snapshot goes to the one TARGET, or alone into DIR/
    #[arg(long, value_name = "NAME")]
    pub volume: Option<String>,
    /// Allow a target that holds data, and attached files in the place of others
    #[arg(long)]
    pub overwrite: bool,
    /// Compare first and write only what differs; `auto` samples the target to decide
    #[arg(long, value_enum, default_value = "auto", value_name = "auto|on|off")]
    #[arg(hide_possible_values = true)]
    pub delta: DeltaChoice,
    /// Read the target again afterwards and prove it
    #[arg(long)]
    pub read_back: bool,
    /// Release the target's space first, where the device can (`auto`), once all maps are read and all
    /// chunks found, but before their bytes are proven: what was there is gone even if the restore
    /// fails then. Never taken for zero
    #[arg(long, value_enum, default_value = "off", value_name = "auto|off")]
    #[arg(hide_possible_values = true)]
    pub discard: AutoOff,
    /// What to do about chunks the archive cannot give: fail, or write zeroes there and report
    #[arg(long, value_enum, default_value = "fail", value_name = "fail|zero")]
    #[arg(hide_possible_values = true)]
    pub on_damage: Damage,
    /// Thin pool for a new logical volume, or `none` [default: as it was, if there is such a pool]
    #[arg(long, value_name = "POOL|none", help_heading = "New volumes")]
    pub thin_pool: Option<String>,
    /// Block length of a new zvol [default: as it was, or else the pool's default]
    #[arg(long, value_name = "SIZE", value_parser = volume_block_len, help_heading = "New volumes")]
    pub volblocksize: Option<u32>,
    /// Cluster length of a new qcow2 image: a power of two, 4K to 2M [default: 64K]
    #[arg(long, value_name = "SIZE", value_parser = cluster_len, help_heading = "New volumes")]
    pub cluster_size: Option<u64>,
    /// What volumes become in DIR/ [default: raw]
    #[arg(long, value_enum, value_name = "raw|qcow2", help_heading = "New volumes")]
    #[arg(hide_possible_values = true)]
    pub format: Option<ImageFormat>,
    /// Bound on the rate of writing, per second: `100M`
    #[arg(long, value_name = "RATE", value_parser = size::parse_rate, help_heading = "Resources")]
    pub limit: Option<u64>,
    /// Check everything, write nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Resources.
    #[command(flatten)]
    pub resources: ResourceArgs,
}

/// Arguments of `verify`.
#[derive(Args, Debug)]
pub struct VerifyArgs {
    /// What to verify: the whole archive, or what one snapshot needs
    #[arg(value_name = "ARCHIVE[@SNAPSHOT]")]
    pub archive: OsString,
    /// Stored bytes only: checksums without decompression, fast, no key
    #[arg(long)]
    pub stored: bool,
    /// Read only this share of the data segments, at least one, picked at random; of whole archives
    #[arg(long, value_name = "PERCENT", value_parser = sample)]
    pub sample: Option<f64>,
    /// Go on where an interrupted `verify --resume` of the same archive stopped; of whole archives
    #[arg(long)]
    pub resume: bool,
    /// Resources.
    #[command(flatten)]
    pub resources: ResourceArgs,
}

/// Arguments of `list`.
#[derive(Args, Debug)]
pub struct ListArgs {
    /// The archive
    pub archive: PathBuf,
}

/// Arguments of `show`.
#[derive(Args, Debug)]
pub struct ShowArgs {
    /// Which snapshot; the newest unless told
    #[arg(value_name = "ARCHIVE[@SNAPSHOT]")]
    pub archive: OsString,
    /// Write the bytes of this attached file to standard output, and nothing else
    #[arg(long, value_name = "NAME")]
    pub attached: Option<String>,
}

/// Arguments of `diff`.
#[derive(Args, Debug)]
pub struct DiffArgs {
    /// The archive
    pub archive: PathBuf,
    /// The older snapshot
    #[arg(value_name = "OLD")]
    pub old: String,
    /// The newer snapshot
    #[arg(value_name = "NEW")]
    pub new: String,
    /// Only this volume [default: all that both hold]
    #[arg(long, value_name = "NAME")]
    pub volume: Option<String>,
}

/// Arguments of `inspect`.
#[derive(Args, Debug)]
pub struct InspectArgs {
    /// The archive
    pub archive: PathBuf,
    /// Copy what can still be read of a damaged archive into this new one, and say what is missing
    #[arg(long, value_name = "NEW")]
    pub salvage: Option<PathBuf>,
}

/// Arguments of `bench`.
#[derive(Args, Debug)]
pub struct BenchArgs {
    /// A file or device to read, or a directory to write a temporary file in
    pub path: Option<PathBuf>,
    /// Resources.
    #[command(flatten)]
    pub resources: ResourceArgs,
}

/// `--io`.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Io {
    /// io_uring where the kernel grants it, plain reads and writes elsewhere
    Auto,
    /// io_uring, or fail saying why it is unavailable
    Uring,
    /// Plain reads and writes
    Blocking,
}

impl From<Io> for IoEngine {
    fn from(io: Io) -> IoEngine {
        match io {
            Io::Auto => IoEngine::Auto,
            Io::Uring => IoEngine::Uring,
            Io::Blocking => IoEngine::Blocking,
        }
    }
}

/// `--on-read-error`.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum ReadErrors {
    /// Fail the backup, naming the range
    Fail,
    /// Record the range and go on
    Record,
}

/// `--dedup`.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum OnOff {
    /// Refer to what the archive holds
    On,
    /// Store everything again
    Off,
}

/// `--snapshot`, `--fs-freeze`, `--discard`.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum AutoOff {
    /// Where it can be done
    Auto,
    /// Never
    Off,
}

/// `--keep`.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum KeepChoice {
    /// The least that tells what changed
    Auto,
    /// The snapshot
    Snapshot,
    /// Nothing
    None,
}

/// `--delta`.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum DeltaChoice {
    /// When a sample of the target looks like an older copy
    Auto,
    /// Always
    On,
    /// Never
    Off,
}

/// `--format`.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum ImageFormat {
    /// The disk's bytes as they are
    Raw,
    /// QEMU's own, sparse
    Qcow2,
}

impl From<ImageFormat> for Format {
    fn from(format: ImageFormat) -> Format {
        match format {
            ImageFormat::Raw => Format::Raw,
            ImageFormat::Qcow2 => Format::Qcow2,
        }
    }
}

/// `--on-damage`.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Damage {
    /// Fail, naming the ranges
    Fail,
    /// Write zeroes there and report
    Zero,
}

fn memory(text: &str) -> Result<u64, String> {
    match size::parse(text)? {
        bytes if bytes < MEMORY_BYTES_MIN => {
            Err(format!("at least {} are needed", size::human(MEMORY_BYTES_MIN)))
        }
        bytes => Ok(bytes),
    }
}

fn cluster_len(text: &str) -> Result<u64, String> {
    let bytes = size::parse(text)?;
    Some(bytes)
        .filter(|len| len.is_power_of_two() && (4 << 10..=2 << 20).contains(len))
        .ok_or_else(|| "a cluster is a power of two from 4K to 2M".to_string())
}

fn volume_block_len(text: &str) -> Result<u32, String> {
    let bytes = size::parse(text)?;
    u32::try_from(bytes)
        .ok()
        .filter(|len| len.is_power_of_two() && (512..=16 << 20).contains(len))
        .ok_or_else(|| "a block is a power of two from 512 to 16M".to_string())
}

fn chunk_len(text: &str) -> Result<u32, String> {
    let bytes = size::parse(text)?;
    u32::try_from(bytes)
        .ok()
        .filter(|len| len.is_power_of_two() && (4 << 10..=1 << 20).contains(len))
        .ok_or_else(|| "a chunk is a power of two from 4K to 1M".to_string())
}

fn compression(text: &str) -> Result<Compression, String> {
    const RANGE: std::ops::RangeInclusive<i32> = -131_072..=22;
    match text {
        "auto" => Ok(Compression::Auto),
        "store" => Ok(Compression::Store),
        _ => text
            .strip_prefix("zstd:")
            .and_then(|level| level.parse().ok())
            .filter(|level| RANGE.contains(level))
            .map(Compression::Zstd)
            .ok_or_else(|| {
                format!("write auto, store or zstd:LEVEL with {} to {}", RANGE.start(), RANGE.end())
            }),
    }
}

fn changes(text: &str) -> Result<Changes, String> {
    let is_word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    match text {
        "auto" => Ok(Changes::Auto),
        "full" => Ok(Changes::Full),
        kind if !kind.is_empty() && kind.chars().all(is_word) => Ok(Changes::Kind(kind.into())),
        _ => Err("write auto, full or the kind of a change source, such as dm-thin".to_string()),
    }
}

fn percent(text: &str) -> Result<f64, String> {
    text.strip_suffix('%')
        .unwrap_or(text)
        .parse()
        .ok()
        .filter(|value| (0.0..=100.0).contains(value))
        .ok_or_else(|| "a percentage lies between 0 and 100".to_string())
}

/// A bound on latencies, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MaxLatency(pub Option<Duration>);

fn max_latency(text: &str) -> Result<MaxLatency, String> {
    match (text, text.strip_suffix("ms").unwrap_or(text).parse()) {
        ("off", _) => Ok(MaxLatency(None)),
        (_, Ok(ms @ 1..=60_000)) => Ok(MaxLatency(Some(Duration::from_millis(ms)))),
        _ => Err("a latency is 1 to 60000 milliseconds, or `off`".to_string()),
    }
}

fn sample(text: &str) -> Result<f64, String> {
    match percent(text)? {
        0.0 => Err("a sample of nothing proves nothing".to_string()),
        value => Ok(value),
    }
}

fn tag(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_string(), value.to_string())),
        _ => Err("a tag is KEY=VALUE".to_string()),
    }
}

const CLI_AFTER: &str = "\
Arguments read like cp: from, then to.

SNAPSHOT is one of
  latest, latest~N       the newest (the default), or the newest but N
  2026-11, 2026-11-21, 2026-11-21T01:30
                         the newest within that month, day or minute, in local time;
                         an offset or Z after a time of day overrides the zone
  9f3a41                 an id, or a prefix of one that is unique in the archive
A run of digits without a dash, such as 2026, is an id. In ARCHIVE@SNAPSHOT the last @ divides;
a path holding @ that exists as it is typed is that path.

Sizes are powers of 1024: 64K, 8G, 1T.

Exit codes:
  0    done
  1    failed; nothing committed, the archive is as it was
  2    usage
  3    archive damaged, or a mismatch was proven
  4    done, but parts of the source could not be read (they are recorded)
  5    target refused; not a byte of it was written
  6    target partly written; running the same command again finishes the work
  7    archive busy (another writer holds it)
  130  interrupted; the archive is as it was, the work done is kept for the next run
Take any other code for a failure.

Examples:
  voltar backup /dev/vg/vm7 vm7.vlt
  voltar list vm7.vlt
  voltar restore vm7.vlt@latest~1 /dev/vg/vm7-old
  voltar verify vm7.vlt";

const BACKUP_AFTER: &str = "\
A volume's name in the archive is the last part of its path unless NAME= says otherwise. A path
that exists as it is typed is a path, even if it holds `=`; a NAME holds no `/`.

Interrupted or failed, the archive is as it was; the next run does not store again what this one
had sealed. With ARCHIVE `-` the archive goes to standard output, everything else (with --json,
the JSON object and nothing but it) to standard error.

Examples:
  voltar backup /dev/vg/vm7 /backup/vm7.vlt
  voltar backup root=/dev/vg/vm7-root data=/dev/vg/vm7-data vm7.vlt --attach vm7.xml
  voltar backup disk.img disk.vlt --compression zstd:3 --tag reason=before-upgrade
  voltar backup disk.img disk.vlt --parent none --changes full
  voltar backup /dev/vg/vm7 - | ssh store 'cat > vm7.vlt'";

const RESTORE_AFTER: &str = "\
Before the first byte is written the target is checked: it is refused when it is mounted, in use,
too small or the archive's own device, and, without --overwrite, when it holds data (exit code 5,
not a byte written). Interrupted (130) or failed midway (6), the same command again finishes.

The notes that make this possible are kept in $XDG_STATE_HOME/voltar, else /var/lib/voltar for
root and ~/.local/state/voltar for others. Without them a restore that was interrupted needs
--overwrite to go on.

A TARGET that ends in / or is a directory, DIR/, takes every volume of the snapshot as
DIR/NAME.raw or, with --format qcow2, as DIR/NAME.qcow2, and every attached file as DIR/NAME (only
you may read it). Of names, a dot at the start, slashes, percent signs and control characters are
percent-encoded. The commands that start the machine again are printed, if the snapshot holds
qemu.json or domain.xml: read them before you run them. DIR is made if it is missing.

Examples:
  voltar restore vm7.vlt /dev/vg/vm7-new
  voltar restore vm7.vlt@2026-11-21 disk.img --read-back
  voltar restore vm7.vlt --volume data /dev/vg/data --overwrite --delta on
  voltar restore vm7.vlt@latest~1 root=/dev/vg/root data=/dev/vg/data
  voltar restore vm7.vlt@2026-11-21 vm7/ --format qcow2";

const VERIFY_AFTER: &str = "\
End to end, every stored byte is read, decompressed and hashed, and every snapshot's map is
followed to its chunks. Damage is listed with the snapshots, volumes and ranges it costs, and the
exit code is 3.

Examples:
  voltar verify vm7.vlt
  voltar verify vm7.vlt@latest
  voltar verify vm7.vlt --stored --sample 10
  voltar verify vm7.vlt --resume";

const LIST_AFTER: &str = "\
Examples:
  voltar list vm7.vlt
  voltar list vm7.vlt --json | jq -r '.snapshots[].id'";

const SOURCES_AFTER: &str = "\
Examples:
  voltar sources
  voltar sources --json | jq -r '.sources[] | select(.trouble == null).source'";

const SHOW_AFTER: &str = "\
Examples:
  voltar show vm7.vlt
  voltar show vm7.vlt@2026-11 --verbose
  voltar show vm7.vlt --attached vm7.xml > vm7.xml";

const DIFF_AFTER: &str = "\
Extents are sorted and merged; their kind is what the newer snapshot holds there. With --json the
object is {volume, old_size, new_size, chunk_size, extents} when one volume is compared, else
{archive, old, new, volumes} with one such object per volume. Volumes that one of the snapshots
holds alone are in only_old and only_new.

Examples:
  voltar diff vm7.vlt latest~1 latest
  voltar diff vm7.vlt 2026-11-20 2026-11-21 --volume data --json";

const INSPECT_AFTER: &str = "\
With --salvage every frame that is whole is copied into NEW, which must not exist, and snapshots are
made of them: the same ones where nothing is missing, else with what is missing marked unreadable
and the tag salvaged=incomplete. What a backup left whose commit is lost gets the tag
salvaged=no-commit: it may never have been finished, and what was zero or stored before is missing
where no map says so. The archive itself is only read. The exit code is 0 if nothing that was
committed is missing; what an unfinished backup left, or a file that was cut short, is not.

Examples:
  voltar inspect vm7.vlt
  voltar inspect vm7.vlt --salvage rescued.vlt
  voltar inspect vm7.vlt --json | jq '.records[] | select(.error)'";

const BENCH_AFTER: &str = "\
Without PATH only processors and memory are measured.

Examples:
  voltar bench
  voltar bench /dev/vg/vm7
  voltar bench /backup";

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn parsed(line: &str) -> Result<Cli, clap::Error> {
        parse(&line.split(' ').map(OsString::from).collect::<Vec<_>>())
    }

    fn backup(line: &str) -> BackupArgs {
        match parsed(line).unwrap().verb {
            Verb::Backup(args) => *args,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn definitions_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_has_examples() {
        for verb in Cli::command().get_subcommands() {
            let after = verb.get_after_long_help().map(ToString::to_string).unwrap_or_default();
            assert!(after.contains("Examples:\n"), "{}", verb.get_name());
        }
    }

    #[test]
    fn last_positional_of_backup_is_the_archive() {
        let args = backup("voltar backup a b c --tag k=v=w --tag l= --attach x --attach y=z");
        assert_eq!(args.sources, ["a", "b"]);
        assert_eq!(args.archive, "c");
        assert_eq!(args.tag, [("k".into(), "v=w".into()), ("l".into(), String::new())]);
        assert_eq!(args.attach, ["x", "y=z"]);
    }

    #[test]
    fn defaults_are_the_contract() {
        let args = backup("voltar backup a -");
        assert!(is_stdout(&args.archive));
        assert_eq!((args.parent.as_str(), args.changes), ("auto", Changes::Auto));
        assert_eq!((args.audit, args.compression), (0.1, Compression::Auto));
        assert_eq!(args.resources.memory, 256 << 20);
    }

    #[test]
    fn values_out_of_range_are_usage_errors() {
        for flags in [
            "--chunk-size 2K",
            "--chunk-size 2M",
            "--chunk-size 96K",
            "--memory 32M",
            "--threads 0",
            "--audit 101",
            "--audit -1",
            "--compression zstd:23",
            "--compression gzip",
            "--changes Full",
            "--tag novalue",
            "--limit 0",
            "--io fast",
            "--quiet --verbose",
        ] {
            let error = parsed(&format!("voltar backup a b {flags}")).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{flags}");
        }
        assert!(parsed("voltar verify a --sample 0").is_err());
        assert!(parsed("voltar backup onlyone").is_err());
    }

    #[test]
    fn output_flags_stand_before_or_after_the_verb() {
        assert!(parsed("voltar --json list a").unwrap().output.json);
        assert!(parsed("voltar list a --json").unwrap().output.json);
    }

    #[test]
    fn planned_names_stay_free() {
        let planned =
            ["prune", "compact", "copy", "export", "import", "serve", "mount", "drill", "repair"];
        for name in planned.into_iter().chain(["key", "run", "completions", "man"]) {
            assert!(parsed(&format!("voltar {name}")).is_err(), "{name}");
        }
    }
}
