//! What an operation found and did, as values. Field names are the JSON contract.

use serde::Serialize;

/// What a backup did.
#[derive(Clone, Debug, Serialize)]
pub struct BackupReport {
    /// The new snapshot's id in hexadecimal; `None` for a dry run, or if it failed.
    pub snapshot: Option<String>,
    /// The parent's id, if there is one.
    pub parent: Option<String>,
    /// The archive's path, `-` for standard output.
    pub archive: String,
    /// One entry per volume that was read to its end, in the order asked.
    pub volumes: Vec<VolumeBackup>,
    /// Bytes appended to the archive. Of a backup that failed: bytes that the next run need not
    /// store again; none if it was the archive that could not be written.
    pub stored_bytes: u64,
    /// Stored bytes an interrupted run had sealed, taken over by this one.
    pub resumed_bytes: u64,
    /// Seconds from start to end.
    pub elapsed_s: f64,
    /// How those who use the source were spared, if somebody may have used it meanwhile.
    pub latency: Option<LatencyReport>,
    /// What the user should know.
    pub warnings: Vec<String>,
}

/// What a backup's guard of latencies saw and did.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct LatencyReport {
    /// On average of a moment, nothing was to take longer than so many milliseconds.
    pub bound_ms: f64,
    /// The longest read of the source, in milliseconds.
    pub read_max_ms: f64,
    /// The longest that a guest's writes took on average of a second, in milliseconds; `None` if nobody
    /// tells.
    pub guest_write_max_ms: Option<f64>,
    /// Seconds in which reading was held back.
    pub slowed_s: f64,
}

/// What a backup did with one volume.
#[derive(Clone, Debug, Serialize)]
pub struct VolumeBackup {
    /// The volume's name.
    pub name: String,
    /// Its size in bytes.
    pub size: u64,
    /// Its chunk length in bytes.
    pub chunk_size: u32,
    /// The root of its map in hexadecimal.
    pub root: String,
    /// Who told what changed.
    pub change_source: String,
    /// Why a better change source was not used, if so.
    pub degraded: Option<String>,
    /// Bytes read from the source.
    pub read_bytes: u64,
    /// Bytes of chunks that differ from the parent's (all, without a parent).
    pub changed_bytes: u64,
    /// Bytes of chunks that are zero.
    pub zero_bytes: u64,
    /// Bytes of chunks the archive did not hold.
    pub new_bytes: u64,
    /// Bytes of chunks the archive already held.
    pub reused_bytes: u64,
    /// Bytes of "unchanged" chunks that the audit re-read.
    pub audited_bytes: u64,
    /// Ranges that could not be read.
    pub unreadable: Vec<ByteRange>,
}

/// The volumes of this host that can be held still for a backup.
#[derive(Clone, Debug, Default, Serialize)]
pub struct SourcesReport {
    /// By name.
    pub sources: Vec<SourceSummary>,
    /// What voltar made of volumes that are gone. It stays, for it may be all that is left of them.
    pub strays: Vec<StraySummary>,
    /// Managers of volumes that could not be asked, and why.
    pub warnings: Vec<String>,
}

/// A volume of this host.
#[derive(Clone, Debug, Serialize)]
pub struct SourceSummary {
    /// What `voltar backup` calls it.
    pub source: String,
    /// What it is: `thin`, `thick` or `zvol`.
    pub kind: String,
    /// Its size in bytes.
    pub size: u64,
    /// Who can tell what changes in it; `none`: it is read and compared.
    pub change_source: String,
    /// What is in the way of a backup; `None`: nothing.
    pub trouble: Option<String>,
    /// What voltar keeps of it on this host.
    pub kept: Vec<KeptSummary>,
}

/// Something that voltar keeps on this host.
#[derive(Clone, Debug, Serialize)]
pub struct KeptSummary {
    /// Its name, as its manager has it.
    pub name: String,
    /// What it is: `snapshot`, `bookmark` or `clone`.
    pub kind: String,
}

/// Something that voltar made, of a volume that is not there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct StraySummary {
    /// Its name, as its manager has it.
    pub name: String,
    /// What it is: `snapshot`, `bookmark` or `clone`.
    pub kind: String,
    /// The command that removes it.
    pub remove: String,
}

/// A range of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct ByteRange {
    /// First byte.
    pub offset: u64,
    /// How many.
    pub length: u64,
}

/// What a restore did.
#[derive(Clone, Debug, Serialize)]
pub struct RestoreReport {
    /// The snapshot's id.
    pub snapshot: String,
    /// One entry per volume that was begun, in the order asked.
    pub volumes: Vec<VolumeRestore>,
    /// The folder that takes all of it, if one does.
    pub directory: Option<String>,
    /// One entry per attached file that came into the folder, or would.
    pub attached: Vec<AttachedRestore>,
    /// Commands for a POSIX shell that start the machine from what is in the folder, if the
    /// snapshot tells what it was.
    pub start: Vec<String>,
    /// Whether the target was read again and proven equal.
    pub read_back: bool,
    /// Seconds from start to end.
    pub elapsed_s: f64,
    /// What the user should know.
    pub warnings: Vec<String>,
}

/// What a restore did with one volume.
#[derive(Clone, Debug, Serialize)]
pub struct VolumeRestore {
    /// The volume's name.
    pub name: String,
    /// The target's path.
    pub target: String,
    /// The volume's size in bytes.
    pub size: u64,
    /// Whether all of it was brought back; of a volume that is not, the figures say how far.
    pub complete: bool,
    /// Bytes written as data.
    pub written_bytes: u64,
    /// Bytes zeroed.
    pub zeroed_bytes: u64,
    /// Bytes proven equal and not written.
    pub kept_bytes: u64,
    /// The root of the volume's map.
    pub root: String,
    /// How zero ranges were made.
    pub zero_method: String,
    /// Ranges the source could not give when the backup was made; zero on the target.
    pub unreadable: Vec<ByteRange>,
    /// The first 4096 ranges that the archive could not give; zero on the target.
    pub damaged: Vec<ByteRange>,
    /// How many more there are.
    pub damaged_unlisted: u64,
    /// Bytes in all of them.
    pub damaged_bytes: u64,
}

/// What a restore did with one attached file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AttachedRestore {
    /// Its name in the snapshot.
    pub name: String,
    /// Its path.
    pub path: String,
    /// Its size in bytes.
    pub bytes: u64,
    /// Whether it is there as the snapshot has it; if not, the archive could not give it.
    pub complete: bool,
}

/// What a verification found.
#[derive(Clone, Debug, Serialize)]
pub struct VerifyReport {
    /// The archive's path.
    pub archive: String,
    /// Whether everything was looked at that was to be, and is whole.
    pub ok: bool,
    /// Snapshots looked at.
    pub snapshots: u64,
    /// Segments looked at.
    pub segments: u64,
    /// Frames looked at.
    pub frames: u64,
    /// Stored bytes looked at.
    pub bytes: u64,
    /// Bytes behind the last commit: an interrupted run's, not part of any snapshot.
    pub uncommitted_bytes: u64,
    /// What was picked to be read, if not all was.
    pub sample: Option<Sample>,
    /// Everything that is damaged.
    pub damaged: Vec<Damage>,
    /// Commits that are lost, and the snapshots they made with them.
    #[serde(flatten)]
    pub losses: Losses,
    /// Seconds from start to end.
    pub elapsed_s: f64,
}

/// How much of an archive a verification picked to look at.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Sample {
    /// The percentage that was asked for.
    pub percent: f64,
    /// Data segments that were picked.
    pub segments: u64,
    /// Data segments that there were to pick from.
    pub of: u64,
}

/// Commits of an archive that cannot be read any more, and what is known of their snapshots.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Losses {
    /// Where they were, in the order of the log.
    pub lost_commits: Vec<LostCommits>,
    /// Ids of snapshots that are gone, as far as others name them as parents.
    pub lost_snapshots: Vec<String>,
    /// A place behind the last commit that cannot be read: it may hide a later one.
    pub unread: Option<ByteRange>,
}

impl Losses {
    /// Whether no commit is lost, as far as can be told.
    pub fn is_empty(&self) -> bool {
        self.lost_commits.is_empty() && self.unread.is_none()
    }
}

/// Commits lost in one place, all of their copies.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LostCommits {
    /// Where the first began, in bytes.
    pub offset: u64,
    /// How far it is to the end of the last; one block where that is not known.
    pub length: u64,
    /// How many there were, by the numbers of those around them; not known of the newest.
    pub commits: Option<u64>,
    /// The snapshot before them, if there is one.
    pub after: Option<String>,
    /// The snapshot behind them, if there is one.
    pub before: Option<String>,
}

/// One damaged place.
#[derive(Clone, Debug, Serialize)]
pub struct Damage {
    /// Which structure: `header`, `segment`, `frame`, `table`, `index`, `commit`, `map`, `chunk`.
    pub structure: String,
    /// Where in the archive, in bytes.
    pub offset: u64,
    /// How long.
    pub length: u64,
    /// What is wrong.
    pub error: String,
    /// What it costs.
    pub affects: Vec<Affected>,
}

/// A range of a volume of a snapshot that a damage makes unrestorable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Affected {
    /// The snapshot's id.
    pub snapshot: String,
    /// The volume's name.
    pub volume: String,
    /// First byte in the volume.
    pub offset: u64,
    /// How many bytes.
    pub length: u64,
}

/// What an archive holds.
#[derive(Clone, Debug, Serialize)]
pub struct ListReport {
    /// The archive's path.
    pub archive: String,
    /// Its snapshots, newest last.
    pub snapshots: Vec<SnapshotSummary>,
    /// Whether these are all there were, as far as the commits tell.
    pub complete: bool,
    /// Commits that are lost, and the snapshots they made with them.
    #[serde(flatten)]
    pub losses: Losses,
}

/// One snapshot, in short.
#[derive(Clone, Debug, Serialize)]
pub struct SnapshotSummary {
    /// Its id.
    pub id: String,
    /// When it was made: RFC 3339 in UTC.
    pub time: String,
    /// Nanoseconds since 1970-01-01 UTC.
    pub time_ns: i64,
    /// Its parent's id, if it has one.
    pub parent: Option<String>,
    /// Its volumes.
    pub volumes: Vec<VolumeSummary>,
    /// Its tags.
    pub tags: std::collections::BTreeMap<String, String>,
    /// Bytes its commit added to the archive.
    pub stored_bytes: u64,
}

/// One volume of a snapshot, in short.
#[derive(Clone, Debug, Serialize)]
pub struct VolumeSummary {
    /// Its name.
    pub name: String,
    /// Its size in bytes.
    pub size: u64,
    /// The root of its map.
    pub root: String,
}

/// One snapshot, whole.
#[derive(Clone, Debug, Serialize)]
pub struct ShowReport {
    /// The archive's path.
    pub archive: String,
    /// The summary's fields.
    #[serde(flatten)]
    pub summary: SnapshotSummary,
    /// The host it was made on.
    pub host: String,
    /// The program that made it.
    pub program: String,
    /// Its volumes with all details.
    pub details: Vec<VolumeDetail>,
    /// Its attached files: name and size.
    pub attached: Vec<AttachedSummary>,
}

/// One volume of a snapshot, whole.
#[derive(Clone, Debug, Serialize)]
pub struct VolumeDetail {
    /// Its name.
    pub name: String,
    /// Its size in bytes.
    pub size: u64,
    /// Its chunk length in bytes.
    pub chunk_size: u32,
    /// The root of its map.
    pub root: String,
    /// What it was read from.
    pub source: String,
    /// Who told what changed.
    pub change_source: String,
    /// The proof, as recorded.
    pub proof: std::collections::BTreeMap<String, String>,
    /// Why a better change source was not used.
    pub degraded: Option<String>,
    /// Ranges that could not be read.
    pub unreadable: Vec<ByteRange>,
}

/// One attached file.
#[derive(Clone, Debug, Serialize)]
pub struct AttachedSummary {
    /// Its name.
    pub name: String,
    /// Its size in bytes.
    pub size: u64,
}

/// What differs between two snapshots.
#[derive(Clone, Debug, Serialize)]
pub struct DiffReport {
    /// One entry per volume that both hold.
    pub volumes: Vec<VolumeDiff>,
    /// Volumes that only the older snapshot holds.
    pub only_old: Vec<VolumeSummary>,
    /// Volumes that only the newer snapshot holds.
    pub only_new: Vec<VolumeSummary>,
}

/// What differs between two states of one volume.
#[derive(Clone, Debug, Serialize)]
pub struct VolumeDiff {
    /// The volume's name.
    pub volume: String,
    /// Its size in bytes in the older snapshot.
    pub old_size: u64,
    /// Its size in bytes in the newer snapshot. What lies behind it there is no extent.
    pub new_size: u64,
    /// The chunk length, the granularity of the extents.
    pub chunk_size: u32,
    /// What changed, sorted and merged.
    pub extents: Vec<DiffExtent>,
}

/// One changed extent, as it is in the newer snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct DiffExtent {
    /// First byte.
    pub offset: u64,
    /// How many.
    pub length: u64,
    /// What the newer snapshot has there: `data` or `zero`.
    pub kind: &'static str,
}

/// The log as it lies.
#[derive(Clone, Debug, Serialize)]
pub struct InspectReport {
    /// The archive's path.
    pub archive: String,
    /// Bytes in the file.
    pub file_len: u64,
    /// The archive's id.
    pub archive_id: String,
    /// The format version.
    pub format_version: u16,
    /// Names of the features in use.
    pub features: Vec<String>,
    /// When it was made: RFC 3339 in UTC.
    pub created: String,
    /// The records in order.
    pub records: Vec<InspectRecord>,
    /// Bytes behind the last commit.
    pub uncommitted_bytes: u64,
}

/// One record of the log.
#[derive(Clone, Debug, Serialize)]
pub struct InspectRecord {
    /// `header`, `data`, `index`, `commit`, or `tail` for what follows the last commit.
    pub kind: String,
    /// Where it starts.
    pub offset: u64,
    /// How long it is.
    pub length: u64,
    /// Its sequence number.
    pub sequence: u64,
    /// Frames (data), entries (index), or runs (commit).
    pub items: u64,
    /// What it holds, in words.
    pub note: String,
    /// What is wrong with it, if anything is.
    pub error: Option<String>,
}

/// What a salvage made of an archive.
#[derive(Clone, Debug, Serialize)]
pub struct SalvageReport {
    /// The archive's path.
    pub archive: String,
    /// The new archive's path.
    pub new_archive: String,
    /// Whether nothing that was committed is missing, as far as can be known. What an unfinished
    /// backup left is no part of the archive; a file that was cut short looks like that.
    pub complete: bool,
    /// Frames that were found whole.
    pub frames: u64,
    /// What was made of the snapshots, in the order of the log.
    pub snapshots: Vec<SalvagedSnapshot>,
    /// Places where a commit is known to have been and cannot be read, and a block behind the last
    /// commit that cannot be read and may have held one.
    pub lost_commits: Vec<ByteRange>,
    /// Parts of the log without a commit, and commits without a readable manifest, of which nobody
    /// knows which volumes they hold. Their items serve wherever something names them.
    pub unnamed: u64,
    /// How long it took.
    pub elapsed_s: f64,
}

/// One snapshot, or one session without a commit, in a salvage.
#[derive(Clone, Debug, Serialize)]
pub struct SalvagedSnapshot {
    /// Its id in the new archive; none if nothing of it was found.
    pub id: Option<String>,
    /// Its id in the old archive; none if its commit is lost.
    pub original: Option<String>,
    /// Whether its commit is whole. If not, it was put together by what its session noted and
    /// where its items say they belonged; it may never have been finished.
    pub committed: bool,
    /// When it was made: RFC 3339 in UTC.
    pub time: String,
    /// Nanoseconds since 1970-01-01 UTC.
    pub time_ns: i64,
    /// Its volumes.
    pub volumes: Vec<SalvagedVolume>,
    /// Attached files of which a piece is missing; they are not in the new archive.
    pub missing_files: Vec<String>,
}

/// One volume in a salvage.
#[derive(Clone, Debug, Serialize)]
pub struct SalvagedVolume {
    /// Its name.
    pub name: String,
    /// Its size in bytes.
    pub size: u64,
    /// What could not be found. Of a session without a commit: also what may have been zero, or
    /// in the archive before. Neighbouring ranges are merged to stay below 4096.
    pub missing: Vec<ByteRange>,
}
