//! Volumes of ZFS: held still by a snapshot, read by its stream, and by a clone's device where the
//! stream leaves something out.
//!
//! A snapshot has no device unless the user's volume is told to show them. So a clone is made
//! beside the volume, whose properties stay as they are. Between backups a bookmark stays: it costs
//! nothing, and changes can be sent since.
//!
//! What is ours says so: snapshots and clones by a property, and all by a name that has the volume's
//! guid in it, so that nothing is taken for ours that came here with a copy of another volume, or
//! that somebody took over under another name.

use std::fs::File;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use nix::libc;

use super::hold::{Capture, Held, Hold, Wanted, tell};
use super::zfs_stream::{Expected, VolumeStream};
use super::{ChangeSource, ChangeStream, ChangedExtent, Degraded, Piece, Proof, View};
use crate::cancel::Cancel;
use crate::device::file::{FileDevice, FileIdentity};
use crate::device::open::open_source;
use crate::error::{Error, ErrorKind, Result};
use crate::host::command::Output;
use crate::host::lock::Lock;
use crate::host::zfs::{self, Dataset, Kind, Sender};
use crate::io::ioctl;
use crate::observe::Observer;
use crate::options::{Holding, Keep, Place};
use crate::words::with_causes;

/// How long a clone's device may take to appear.
const DEVICE_PATIENCE: Duration = Duration::from_secs(15);
/// How long another run may be at its end.
const LOCK_PATIENCE: Duration = Duration::from_secs(5);
/// How often either is looked for.
const NAP: Duration = Duration::from_millis(20);

/// What its changes are called.
pub const KIND: &str = "zfs";

/// Key of the proof: the volume's block length, for who creates one like it.
pub const BLOCK_LEN: &str = "volblocksize";

/// Key of the proof: how many snapshots the volume had besides.
const OTHERS: &str = "other_snapshots";
/// Key of the proof: the guid of an older snapshot that holds the same bytes.
const SAME_AS: &str = "same_as";

/// What the names of all that is made begin with.
const MARK: &str = "voltar-";

/// The volume whose device `path` is; `None` if it is something else, or a snapshot's.
pub fn volume_at(path: &Path) -> Option<String> {
    let metadata = std::fs::metadata(path).ok()?;
    let is_zvol = metadata.file_type().is_block_device()
        && is_driven_by_zfs(libc::major(metadata.rdev()))
        && !is_partition(metadata.rdev());
    let name = is_zvol.then(|| File::open(path).and_then(|file| ioctl::zvol_name(&file)))?.ok()?;
    (!name.contains('@')).then_some(name)
}

fn is_driven_by_zfs(major: libc::c_uint) -> bool {
    let drivers = std::fs::read_to_string("/proc/devices").unwrap_or_default();
    let mut drivers = drivers.lines().filter_map(|line| line.trim().split_once(' '));
    drivers.any(|(number, name)| name.trim() == "zvol" && number.parse() == Ok(major))
}

fn is_partition(number: u64) -> bool {
    let (major, minor) = (libc::major(number), libc::minor(number));
    Path::new(&format!("/sys/dev/block/{major}:{minor}/partition")).exists()
}

/// Where the device of the volume with this name is.
pub fn device_path(volume: &str) -> PathBuf {
    // udev writes blanks so.
    Path::new("/dev/zvol").join(volume.replace(' ', "+"))
}

/// Looks at the volumes, locks them, and takes away what killed runs left of devices.
///
/// # Errors
/// `NotFound`, `Busy`; `SourceUnusable` if a volume is locked; of the tools.
pub fn prepare(
    wanted: Vec<Wanted>,
    holding: &Holding,
    observer: &dyn Observer,
    cancel: &Cancel,
) -> Result<Box<dyn Capture>> {
    let run = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let run = run.as_millis().to_string();
    let mut volumes: Vec<Volume> = Vec::new();
    for wish in wanted {
        let name = dataset_of(&wish.place)?;
        if volumes.iter().any(|other| other.name == name) {
            return Err(Error::new(ErrorKind::InvalidRequest, "a volume is named twice")
                .on(wish.place.to_string())
                .hint("name each volume once"));
        }
        volumes.push(Volume::look(wish, name, holding, observer, cancel)?);
    }
    Ok(Box::new(Zvols { volumes, run, keep: holding.keep }))
}

fn dataset_of(place: &Place) -> Result<String> {
    let name = match place {
        Place::Zfs(name) => Some(name.clone()),
        Place::Path(path) => volume_at(path),
        Place::Lvm { .. }
        | Place::Nbd(_)
        | Place::Image { .. }
        | Place::Qemu { .. }
        | Place::Libvirt { .. } => None,
    };
    name.ok_or_else(|| {
        Error::new(ErrorKind::NotFound, "this is no volume of ZFS any more").on(place.to_string())
    })
}

/// A volume that is to be held still.
#[derive(Debug)]
struct Volume {
    wish: Wanted,
    /// The data set's name.
    name: String,
    guid: u64,
    pool_guid: u64,
    block_len: Option<u64>,
    /// What changes can be told since.
    bases: Vec<Dataset>,
    /// What is ours of these.
    ours: Vec<Dataset>,
    lock: Lock,
    cancel: Cancel,
    is_taken: bool,
    is_cloned: bool,
}

impl Volume {
    fn look(
        wish: Wanted,
        name: String,
        holding: &Holding,
        observer: &dyn Observer,
        cancel: &Cancel,
    ) -> Result<Volume> {
        let label = wish.place.to_string();
        let Some(state) = &holding.state_dir else {
            return Err(Error::new(ErrorKind::Unsupported, "there is no place for a lock on it")
                .on(label)
                .hint("name a state directory, or use --snapshot off"));
        };
        let lock = Lock::take(state, &format!("zfs {name}"), LOCK_PATIENCE, cancel)?;
        let family = zfs::family(&name)?;
        let volume = match family.split_first() {
            Some((first, _)) if first.kind == Kind::Volume => first.clone(),
            _ => {
                return Err(Error::new(ErrorKind::InvalidRequest, "this is no volume")
                    .on(label)
                    .hint("`zfs list -t volume` lists the volumes"));
            }
        };
        if made_of(&volume).is_some() {
            let message = "this is a clone that voltar made, which goes with the next backup";
            return Err(Error::new(ErrorKind::InvalidRequest, message).on(label).hint(format!(
                "back up the volume that it is a clone of, or make it yours: zfs inherit {} {name}",
                zfs::RUN_PROPERTY
            )));
        }
        if volume.is_locked {
            return Err(Error::new(
                ErrorKind::SourceUnusable,
                "the volume is encrypted and locked",
            )
            .on(label)
            .meaning("without its key nothing of it can be read")
            .hint(format!("load the key first: zfs load-key {name}")));
        }
        let pool = name.split('/').next().unwrap_or_default();
        let ours: Vec<Dataset> =
            family.iter().filter(|it| is_ours(it, volume.guid)).cloned().collect();
        // What cannot go is in nobody's way.
        tell(observer, clear_clones(&ours));
        let is_base = |it: &Dataset| it.kind == Kind::Bookmark || is_ours(it, volume.guid);
        Ok(Volume {
            guid: volume.guid,
            pool_guid: zfs::pool_guid(pool)?,
            block_len: volume.block_len,
            bases: family.into_iter().filter(is_base).collect(),
            ours,
            lock,
            cancel: cancel.clone(),
            is_taken: false,
            is_cloned: false,
            wish,
            name,
        })
    }

    /// What is made in this run is called so, behind the volume's name.
    fn tag(&self, run: &str) -> String {
        format!("{MARK}{run}-{:016x}", self.guid)
    }

    fn snapshot(&self, run: &str) -> String {
        format!("{}@{}", self.name, self.tag(run))
    }

    fn clone_name(&self, run: &str) -> String {
        format!("{}-{}", self.name, self.tag(run))
    }

    /// Asks what the snapshot is, and makes its device.
    fn open(&mut self, run: &str) -> Result<Opened> {
        let (snapshot, clone) = (self.snapshot(run), self.clone_name(run));
        let label = self.wish.place.to_string();
        let snapshots = zfs::family(&self.name)?.into_iter().filter(|it| it.kind == Kind::Snapshot);
        let (found, others): (Vec<_>, Vec<_>) = snapshots.partition(|it| it.name == snapshot);
        let snapshot = found.into_iter().find(|it| it.size.is_some()).ok_or_else(|| {
            Error::new(ErrorKind::Internal, "the snapshot of a volume is none").on(&label)
        })?;
        self.is_cloned = true;
        zfs::clone(&snapshot.name, &clone, run)?;
        let device = device_of(&clone, snapshot.size)?;
        Ok(Opened { snapshot, others, device })
    }

    /// Takes away what was made in this run and not handed out.
    fn undo(&mut self, run: &str) -> Result<()> {
        if self.is_cloned {
            zfs::destroy(&self.clone_name(run))?;
            self.is_cloned = false;
        }
        if self.is_taken {
            zfs::destroy(&self.snapshot(run))?;
            self.is_taken = false;
        }
        Ok(())
    }
}

/// Whether a run of ours made this snapshot or bookmark of the volume with this guid.
pub fn is_ours(dataset: &Dataset, volume_guid: u64) -> bool {
    matches!(dataset.kind, Kind::Snapshot | Kind::Bookmark)
        && made_of(dataset) == Some(format!("{volume_guid:016x}"))
}

/// Whether a run of ours made this clone of a snapshot of `volume`.
pub fn is_clone_of(dataset: &Dataset, volume: &Dataset) -> bool {
    dataset.kind == Kind::Volume && made_of(dataset) == Some(format!("{:016x}", volume.guid))
}

/// If a run of ours made it: the guid of the volume that it was made of, as the name has it.
pub fn made_of(dataset: &Dataset) -> Option<String> {
    let sign = match dataset.kind {
        Kind::Snapshot => "@",
        Kind::Bookmark => "#",
        Kind::Volume => "-",
        Kind::Filesystem => return None,
    };
    let (_, tag) = dataset.name.rsplit_once(&format!("{sign}{MARK}"))?;
    let (run, guid) = tag.split_once('-')?;
    let says_so = match dataset.kind {
        // It has no properties.
        Kind::Bookmark => !run.is_empty() && run.bytes().all(|byte| byte.is_ascii_digit()),
        _ => dataset.run.as_deref() == Some(run),
    };
    let is_guid = guid.len() == 16 && guid.bytes().all(|byte| byte.is_ascii_hexdigit());
    (says_so && is_guid).then(|| guid.to_owned())
}

/// Takes away the clones that killed runs left of their snapshots.
fn clear_clones(ours: &[Dataset]) -> Result<()> {
    let mut outcome = Ok(());
    for snapshot in ours {
        let names: Vec<&str> = snapshot.clones.iter().map(String::as_str).collect();
        if names.is_empty() {
            continue;
        }
        // What the user made of it, or took over and gave a name of his own, is his.
        let is_ours = |clone: &Dataset| {
            clone.kind == Kind::Volume
                && clone.run == snapshot.run
                && made_of(clone) == made_of(snapshot)
        };
        let made = zfs::datasets(&names)?.into_iter().filter(is_ours);
        outcome = made.map(|clone| zfs::destroy(&clone.name)).fold(outcome, Result::and);
    }
    outcome
}

/// A snapshot and the device of its clone.
struct Opened {
    snapshot: Dataset,
    /// The volume's other snapshots.
    others: Vec<Dataset>,
    device: FileDevice,
}

/// The device of a volume of so many bytes that was made a moment ago, once it is there: its name in
/// `/dev` may come, go and come again while udev looks at it.
fn device_of(volume: &str, size: Option<u64>) -> Result<FileDevice> {
    let path = device_path(volume);
    let end = Instant::now() + DEVICE_PATIENCE;
    loop {
        let is_late = Instant::now() >= end;
        match open_source(&path) {
            Ok(device) if is_device_of(&device, volume, size) => return Ok(device),
            Err(error)
                if !matches!(error.kind(), ErrorKind::NotFound | ErrorKind::SourceUnusable) =>
            {
                return Err(error);
            }
            _ if is_late => break,
            _ => thread::sleep(NAP),
        }
    }
    Err(Error::new(ErrorKind::SourceUnusable, "a volume of ZFS has no device")
        .on(path.display().to_string())
        .because(format!("it did not appear within {} s", DEVICE_PATIENCE.as_secs()))
        .hint("is udev running, with the rules of ZFS?"))
}

/// Waits for the device of a volume of so many bytes that was made a moment ago.
///
/// # Errors
/// If it does not come.
pub fn wait_for_device(volume: &str, size: u64) -> Result<()> {
    device_of(volume, Some(size)).map(drop)
}

fn is_device_of(device: &FileDevice, volume: &str, size: Option<u64>) -> bool {
    let name = ioctl::zvol_name(device.file());
    let len = ioctl::block_device_len(device.file());
    matches!((name, len), (Ok(name), Ok(len)) if name == volume && Some(len) == size)
}

/// All volumes of ZFS in a request.
struct Zvols {
    volumes: Vec<Volume>,
    run: String,
    keep: Keep,
}

impl Capture for Zvols {
    fn freezes(&self) -> Vec<u64> {
        let number = |volume: &Volume| std::fs::metadata(device_path(&volume.name)).ok();
        self.volumes.iter().filter_map(number).map(|data| data.rdev()).collect()
    }

    fn take(&mut self) -> Result<()> {
        let run = &self.run;
        let pool = |volume: &Volume| volume.pool_guid;
        self.volumes.sort_by_key(pool);
        for volumes in self.volumes.chunk_by_mut(|left, right| pool(left) == pool(right)) {
            let names: Vec<String> = volumes.iter().map(|volume| volume.snapshot(run)).collect();
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            volumes.iter_mut().for_each(|volume| volume.is_taken = true);
            zfs::snapshot(&names, run)?;
        }
        Ok(())
    }

    fn open(&mut self) -> Result<Vec<(usize, Held)>> {
        let run = self.run.clone();
        let open = |volume: &mut Volume| volume.open(&run);
        let opened = self.volumes.iter_mut().map(open).collect::<Result<Vec<_>>>()?;
        let volumes = std::mem::take(&mut self.volumes);
        let hold = |(volume, opened): (Volume, Opened)| {
            (volume.wish.number, held(volume, opened, &run, self.keep))
        };
        Ok(volumes.into_iter().zip(opened).map(hold).collect())
    }

    fn abandon(&mut self) -> Result<()> {
        let run = &self.run;
        let outcomes: Vec<Result<()>> =
            self.volumes.iter_mut().map(|volume| volume.undo(run)).collect();
        outcomes.into_iter().collect()
    }
}

/// A volume whose snapshot and device are there.
fn held(volume: Volume, opened: Opened, run: &str, keep: Keep) -> Held {
    let Opened { snapshot, others, device } = opened;
    let source = ZfsChanges {
        volume: volume.name.clone(),
        proof: proof_of(&volume, &snapshot, &others),
        others,
        snapshot: snapshot.clone(),
        bases: volume.bases.clone(),
        cancel: volume.cancel.clone(),
    };
    let device = Arc::new(device);
    let origin = File::open(device_path(&volume.name));
    let origin = origin.and_then(|file| FileIdentity::of(&file)).ok();
    let identities = [Some(device.identity().clone()), origin].into_iter().flatten().collect();
    let view = View {
        name: volume.wish.name.clone(),
        description: volume.wish.place.to_string(),
        size: snapshot.size.unwrap_or(0),
        device,
        change_source: Some(Arc::new(source)),
        degraded: None,
    };
    let hold = ZvolHold {
        clone: volume.clone_name(run),
        bookmark: format!("{}#{}", volume.name, volume.tag(run)),
        snapshot: snapshot.name,
        older: volume.ours,
        keep,
        _lock: volume.lock,
    };
    Held { view, identities, hold: Some(Box::new(hold)) }
}

fn proof_of(volume: &Volume, snapshot: &Dataset, others: &[Dataset]) -> Proof {
    let number = |number: u64| number.to_string();
    let before = others.iter().filter(|other| other.create_txg < snapshot.create_txg);
    let before = before.max_by_key(|other| other.create_txg);
    let same_as = before.filter(|_| snapshot.written == Some(0)).map(|other| other.guid);
    let fields = [
        ("pool_guid", Some(number(volume.pool_guid))),
        ("volume_guid", Some(number(volume.guid))),
        ("snapshot_guid", Some(number(snapshot.guid))),
        ("name", Some(volume.name.clone())),
        ("volsize", snapshot.size.map(number)),
        (OTHERS, Some(others.len().to_string())),
        (SAME_AS, same_as.map(number)),
        (BLOCK_LEN, volume.block_len.map(number)),
    ];
    fields.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?))).collect()
}

/// What of a run is on the host, and what is to remain.
struct ZvolHold {
    clone: String,
    snapshot: String,
    /// What the snapshot is remembered by.
    bookmark: String,
    /// What earlier runs left.
    older: Vec<Dataset>,
    keep: Keep,
    /// Until it is dropped nobody else works on the volume.
    _lock: Lock,
}

impl Hold for ZvolHold {
    fn keep(&mut self) -> Result<()> {
        zfs::destroy(&self.clone)?;
        if self.keep == Keep::Auto {
            zfs::bookmark(&self.snapshot, &self.bookmark)?;
        }
        if self.keep != Keep::Snapshot {
            zfs::destroy(&self.snapshot)?;
        }
        // One that cannot go (a clone of the user's stands on it) does not keep the others.
        let destroy = |older: &Dataset| zfs::destroy(&older.name);
        self.older.iter().map(destroy).fold(Ok(()), Result::and)
    }

    fn release(&mut self) -> Result<()> {
        // What earlier runs left may be the base of this archive or of another: `keep` knows more.
        zfs::destroy(&self.clone)?;
        zfs::destroy(&self.snapshot)
    }
}

/// What changed in a volume, by `zfs send`.
struct ZfsChanges {
    /// The volume's name.
    volume: String,
    snapshot: Dataset,
    /// The volume's other snapshots.
    others: Vec<Dataset>,
    proof: Proof,
    /// Bookmarks of the volume and snapshots of ours, as they were before this one.
    bases: Vec<Dataset>,
    cancel: Cancel,
}

impl ZfsChanges {
    /// What `proof` is of, if it is here.
    fn base(&self, proof: &Proof) -> Result<&Dataset, Degraded> {
        let guid = proof.get("snapshot_guid").and_then(|text| text.parse::<u64>().ok());
        let guid =
            guid.ok_or_else(|| Degraded("the parent was made from no ZFS snapshot".into()))?;
        for (key, what) in [("pool_guid", "pool"), ("volume_guid", "volume")] {
            if proof.get(key) != self.proof.get(key) {
                return Err(Degraded(format!("the parent was made from another {what}")));
            }
        }
        self.bases.iter().find(|base| base.guid == guid).ok_or_else(|| {
            Degraded(format!(
                "the parent's snapshot (guid {guid}) is gone, and nothing here remembers it"
            ))
        })
    }

    /// Whether the volume came from what the bookmark `base` remembers by being written to, and not
    /// by receiving something older: see [`zfs::check_not_received`]. Only a snapshot that is older
    /// than the base can come back, so where there was none, or one that held the same and is still
    /// there, no more is asked.
    fn check_descent(&self, base: &Dataset, proof: &Proof) -> Result<(), Degraded> {
        let same_as = proof.get(SAME_AS).and_then(|guid| guid.parse::<u64>().ok());
        let is_there = |guid| self.others.iter().any(|other| other.guid == guid);
        if base.kind != Kind::Bookmark
            || proof.get(OTHERS).is_some_and(|others| others == "0")
            || same_as.is_some_and(is_there)
        {
            return Ok(());
        }
        zfs::check_not_received(&self.volume, base.create_txg, &self.cancel).map_err(|why| {
            Degraded(format!(
                "{why}: changes cannot be told since a bookmark (--keep snapshot can)"
            ))
        })
    }
}

impl ChangeSource for ZfsChanges {
    fn kind(&self) -> &'static str {
        KIND
    }

    fn proof(&self) -> Proof {
        self.proof.clone()
    }

    fn changes(&self, _base: &Proof, _base_size: u64) -> Result<Vec<ChangedExtent>, Degraded> {
        Err(Degraded("changes of a ZFS volume come with their bytes only".into()))
    }

    fn streams(&self) -> bool {
        true
    }

    fn stream(&self, base: Option<(&Proof, u64)>) -> Result<Box<dyn ChangeStream>, Degraded> {
        let base = match base {
            Some((proof, _)) => {
                let base = self.base(proof)?;
                self.check_descent(base, proof)?;
                Some(base)
            }
            None => None,
        };
        let started = Sender::start(&self.snapshot.name, base.map(|base| base.name.as_str()));
        let (sender, pipe) = started.map_err(|error| Degraded(with_causes(&error)))?;
        let output = Output::new(pipe, &self.cancel);
        let expected = Expected {
            to_guid: self.snapshot.guid,
            from_guid: base.map(|base| base.guid),
            size: self.snapshot.size.unwrap_or(0),
        };
        Ok(Box::new(SentStream { stream: VolumeStream::new(output, expected), sender }))
    }
}

/// A stream with who sends it. The stream's end of the pipe goes first, so that the sender is not
/// kept waiting when both are dropped.
struct SentStream {
    stream: VolumeStream<Output>,
    sender: Sender,
}

impl ChangeStream for SentStream {
    fn next(&mut self, bytes: &mut Vec<u8>) -> Result<Option<Piece>, Degraded> {
        match self.stream.next(bytes) {
            Ok(Some(piece)) => Ok(Some(piece)),
            Ok(None) => {
                let ended = self.sender.finish();
                ended.map(|()| None).map_err(|why| Degraded(format!("`zfs send` failed: {why}")))
            }
            Err(refused) => {
                let complaints = self.sender.complaints();
                Err(Degraded(match complaints.is_empty() {
                    true => refused.to_string(),
                    false => format!("{refused}; `zfs send` says: {complaints}"),
                }))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dataset(name: &str, kind: Kind, run: Option<&str>) -> Dataset {
        Dataset {
            name: name.into(),
            kind,
            guid: 1,
            create_txg: 1,
            written: None,
            size: None,
            block_len: None,
            is_locked: false,
            clones: Vec::new(),
            run: run.map(Into::into),
        }
    }

    #[test]
    fn only_what_says_so_twice_is_ours() {
        let tag = "voltar-17-00000000000000ab";
        let snapshot = format!("tank/v@{tag}");
        let ours = |name: &str, kind, run| is_ours(&dataset(name, kind, run), 0xAB);
        assert!(ours(&snapshot, Kind::Snapshot, Some("17")));
        assert!(!ours(&snapshot, Kind::Snapshot, None), "without the property");
        assert!(!ours(&snapshot, Kind::Snapshot, Some("18")), "of another run");
        assert!(!ours("tank/v@voltar-17-00000000000000ac", Kind::Snapshot, Some("17")));
        assert!(!ours("tank/v@voltar-17", Kind::Snapshot, Some("17")));
        assert!(ours(&format!("tank/v#{tag}"), Kind::Bookmark, None));
        assert!(!ours("tank/v#voltar-old-00000000000000ab", Kind::Bookmark, None));
        assert!(!ours("tank/v#mine", Kind::Bookmark, None));
        assert!(!ours(&format!("tank/{tag}"), Kind::Volume, Some("17")));
        let volume = Dataset { guid: 0xAB, ..dataset("tank/v", Kind::Volume, None) };
        let is_clone = |name: String, run| is_clone_of(&dataset(&name, Kind::Volume, run), &volume);
        assert!(is_clone(format!("tank/v-{tag}"), Some("17")));
        assert!(!is_clone(format!("tank/v-{tag}"), None), "the user's of that name");
        assert!(is_clone(format!("tank/w-{tag}"), Some("17")), "the volume was renamed");
        assert!(!is_clone("tank/rescue".into(), Some("17")), "taken over by the user");
    }

    #[test]
    fn a_base_is_found_by_identity_alone() {
        let proof = |pool: &str, volume: &str, snapshot: &str| {
            let fields =
                [("pool_guid", pool), ("volume_guid", volume), ("snapshot_guid", snapshot)];
            fields.map(|(key, value)| (key.to_owned(), value.to_owned())).into()
        };
        let source = ZfsChanges {
            volume: "tank/new".into(),
            others: Vec::new(),
            snapshot: dataset("tank/new@now", Kind::Snapshot, None),
            proof: proof("5", "6", "7"),
            bases: vec![dataset("tank/new#whatever", Kind::Bookmark, None)],
            cancel: Cancel::new(),
        };
        assert_eq!(source.base(&proof("5", "6", "1")).unwrap().name, "tank/new#whatever");
        let why = |proof: Proof| source.base(&proof).unwrap_err().0;
        assert!(why(proof("5", "6", "2")).contains("(guid 2) is gone"));
        assert!(why(proof("4", "6", "1")).contains("another pool"));
        assert!(why(proof("5", "9", "1")).contains("another volume"));
        assert!(why(Proof::new()).contains("no ZFS snapshot"));
    }
}
