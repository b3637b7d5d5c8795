//! What must hold of any archive, whole or hostile: every command comes back with an answer, an
//! archive that verifies restores, and a backup on top changes nothing of what was there.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use voltar_engine::archive::Home;
use voltar_engine::archive::open::Archive;
use voltar_engine::archive::snapshots::Snapshot;
use voltar_engine::backup;
use voltar_engine::cancel::Cancel;
use voltar_engine::device::Device;
use voltar_engine::device::memory::MemoryDevice;
use voltar_engine::diff::diff_archive;
use voltar_engine::error::{Error, ErrorKind};
use voltar_engine::inspect::{list_archive, log_archive, show_archive};
use voltar_engine::observe::{Observer, Phase};
use voltar_engine::options::{
    ArchiveHome, BackupRequest, Changes, Compression, Context, Dedup, Delta, IoEngine, OnDamage,
    OnReadError, ParentChoice, Selector, VerifyRequest,
};
use voltar_engine::report::{BackupReport, VerifyReport};
use voltar_engine::restore::job::Job;
use voltar_engine::restore::volume::{How, Restore};
use voltar_engine::source::View;
use voltar_engine::verify::verify_archive;
use voltar_format::manifest::Volume;

/// Volumes longer than this are not restored: a map may name one chunk 2^48 times.
const RESTORE_MAX: u64 = 64 << 20;
/// Volumes up to this length are compared byte by byte.
const COMPARE_MAX: u64 = 1 << 20;
/// Snapshots that are restored and compared of each archive.
const SNAPSHOTS_MAX: usize = 4;

/// Stops an operation that has reported more steps than any small archive needs: work in
/// proportion to a volume's size is permitted, and a volume may say that it has 2^60 bytes.
struct Watch {
    left: AtomicU64,
    cancel: Cancel,
}

impl Observer for Watch {
    fn phase(&self, _: Phase, _: Option<u64>) {}

    fn advance(&self, _: u64) {
        if self
            .left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1))
            .is_err()
        {
            self.cancel.raise();
        }
    }
}

/// A context with little memory and one thread, which stops after `steps` reports of progress.
pub fn context(steps: u64) -> Context {
    let cancel = Cancel::new();
    let observer = Arc::new(Watch { left: AtomicU64::new(steps), cancel: cancel.clone() });
    Context {
        io: IoEngine::Blocking,
        threads: std::num::NonZeroUsize::new(1),
        memory_bytes: 64 << 20,
        limit_bytes_per_s: None,
        observer,
        cancel,
    }
}

const STEPS: u64 = 20_000;

/// Bytes as the archive's home.
pub fn home(bytes: &[u8]) -> MemoryDevice {
    MemoryDevice::from_bytes(bytes).growing()
}

/// Opens an archive.
pub fn open(home: &MemoryDevice) -> Result<Archive, Error> {
    Archive::open(Arc::new(home.clone()))
}

/// A backup request with these choices.
pub fn request(chunk_len: Option<u32>, compression: Compression) -> BackupRequest {
    BackupRequest {
        sources: Vec::new(),
        archive: ArchiveHome::File("memory".into()),
        parent: ParentChoice::Auto,
        changes: Changes::Auto,
        audit_share: 0.01,
        compression,
        chunk_len,
        attach: Vec::new(),
        tags: BTreeMap::new(),
        dedup: Dedup::On,
        on_read_error: OnReadError::Fail,
        holding: Default::default(),
        dry_run: false,
    }
}

/// Backs up volumes of these names and bytes.
pub fn back_up(
    home: &MemoryDevice,
    volumes: &[(&str, &[u8])],
    request: &BackupRequest,
    context: &Context,
) -> Result<BackupReport, Error> {
    let views: Vec<View> = volumes
        .iter()
        .map(|(name, bytes)| View {
            name: (*name).into(),
            description: "memory".into(),
            device: Arc::new(MemoryDevice::from_bytes(bytes)),
            size: bytes.len() as u64,
            change_source: None,
            degraded: None,
        })
        .collect();
    let home: Arc<dyn Home> = Arc::new(home.clone());
    Ok(backup::run_in(request, &views, home, context)?)
}

/// Verifies the whole archive.
pub fn verify(archive: &Archive, stored: bool) -> Result<VerifyReport, Error> {
    let request = VerifyRequest {
        archive: "memory".into(),
        snapshot: None,
        stored,
        sample_percent: None,
        resume: None,
    };
    Ok(verify_archive(archive, &request, &context(STEPS))?)
}

/// Restores a volume onto a device full of other bytes.
pub fn restore(
    archive: &Archive,
    snapshot: &Snapshot,
    volume: &Volume,
    on_damage: OnDamage,
    delta: Delta,
) -> Result<MemoryDevice, Error> {
    let target = MemoryDevice::new(volume.size);
    let stale = vec![0xee; volume.size.min(COMPARE_MAX) as usize];
    target.write_at(&stale, 0).expect("inside the device");
    let job = Job::new(archive, snapshot, volume, on_damage)?;
    let context = context(STEPS);
    let how = How { delta, ..How::default() };
    Restore::new(&job, &target, how, &context, IoEngine::Blocking).write()?;
    Ok(target)
}

/// Runs everything that reads an archive on `bytes`, then a backup on top.
pub fn exercise(bytes: &[u8]) {
    let home = home(bytes);
    let archive = match open(&home) {
        Ok(archive) => archive,
        Err(_) => return refused(&home, bytes),
    };
    let whole = read_all(&archive);
    let before = contents(&archive, whole);
    drop(archive);
    append(&home, bytes, whole, &before);
}

/// What cannot be opened cannot be written to, and stays as it is.
fn refused(home: &MemoryDevice, bytes: &[u8]) {
    let blank = bytes.len() <= 4096 && bytes.iter().all(|byte| *byte == 0);
    let outcome =
        back_up(home, &[("disk", &[7; 5000])], &request(None, Compression::Store), &context(STEPS));
    assert_eq!(outcome.is_ok(), blank, "only what is blank becomes an archive: {outcome:?}");
    if !blank {
        assert!(home.bytes() == bytes, "a refused file was changed");
    }
}

/// Whether the archive proved whole; then everything else must have worked.
fn read_all(archive: &Archive) -> bool {
    let full = verify(archive, false);
    let stored = verify(archive, true);
    let list = list_archive(archive, &context(STEPS));
    let log = log_archive(archive, &context(STEPS));
    let whole = full.as_ref().is_ok_and(|report| report.ok);
    if whole {
        let stored = stored.as_ref().expect("what verifies in full verifies");
        assert!(stored.ok, "whole, but not its stored bytes: {:?}", stored.damaged);
        let list = list.as_ref().expect("what verifies can be listed");
        log.as_ref().expect("what verifies can be inspected");
        let seen = full.as_ref().map_or(0, |report| report.snapshots);
        assert_eq!(list.snapshots.len() as u64, seen, "verify and list count alike");
    }
    for (number, summary) in list.iter().flat_map(|list| &list.snapshots).rev().enumerate() {
        if number >= SNAPSHOTS_MAX {
            break;
        }
        let selector = Selector::IdPrefix(summary.id.clone());
        let shown = show_archive(archive, &selector);
        assert!(shown.is_ok() || !whole, "{shown:?}");
        let older = Selector::Latest(number as u64 + 1);
        let newer = Selector::Latest(number as u64);
        let _ = diff_archive(archive, &older, &newer, None, &context(STEPS));
    }
    whole
}

/// A snapshot's volume and the bytes it restores to, or that it does not.
type Restored = (String, String, Option<Vec<u8>>);

/// What the newest snapshots restore to.
fn contents(archive: &Archive, whole: bool) -> Vec<Restored> {
    let mut restored = Vec::new();
    for snapshot in archive.snapshots().take(SNAPSHOTS_MAX).flatten() {
        for volume in snapshot.manifest.volumes.iter().take(SNAPSHOTS_MAX) {
            if volume.size > RESTORE_MAX {
                continue;
            }
            let outcome = restore(archive, &snapshot, volume, OnDamage::Fail, Delta::Off);
            if let Err(error) = &outcome {
                let stopped = error.kind() == ErrorKind::Interrupted;
                assert!(!whole || stopped, "it verified, but: {error:?}");
                if !stopped {
                    let _ = restore(archive, &snapshot, volume, OnDamage::Zero, Delta::On);
                }
            }
            let bytes = outcome.ok().filter(|_| volume.size <= COMPARE_MAX);
            let id = snapshot.id.to_hex();
            restored.push((id, volume.name.clone(), bytes.map(|device| device.bytes())));
        }
    }
    restored
}

/// Backs up into the archive: what was committed stays, and what a whole archive is given comes
/// back.
fn append(home: &MemoryDevice, bytes: &[u8], whole: bool, before: &[Restored]) {
    let last = open(home).ok().and_then(|archive| archive.last);
    let (committed, end) = last.map_or((4096, 4096), |last| (last.offset.0, last.end().0));
    let source = source();
    let volumes: [(&str, &[u8]); 1] = [("disk", &source)];
    let outcome = back_up(home, &volumes, &request(None, Compression::Zstd(1)), &context(STEPS));
    let now = home.bytes();
    let has_tail = end < bytes.len() as u64;
    let committed = (committed as usize).min(bytes.len());
    assert!(now[..committed] == bytes[..committed], "what was committed was changed");
    let report = match outcome {
        Ok(report) => report,
        Err(error) => {
            return assert!(!whole || is_permitted(&error), "it verified, but: {error:?}");
        }
    };
    let archive = open(home).expect("the backup succeeded");
    let snapshot = archive.select(&Selector::Latest(0)).expect("the backup succeeded");
    assert_eq!(Some(snapshot.id.to_hex()), report.snapshot);
    // A writer adopts what is sealed behind the last commit by its checksums (W-07), not by its ids:
    // who forges a tail can make the next snapshot a damaged one. Only the older ones are safe then.
    if whole && !has_tail {
        let volume = &snapshot.manifest.volumes[0];
        let target = restore(&archive, &snapshot, volume, OnDamage::Fail, Delta::Off);
        let target = target.expect("a backup into a whole archive restores");
        assert!(target.bytes() == source, "it restores to something else");
        let report = verify(&archive, false).expect("a whole archive verifies");
        assert!(report.ok, "no longer whole: {:?}", report.damaged);
    }
    let after: BTreeMap<(String, String), Option<Vec<u8>>> = contents(&archive, false)
        .into_iter()
        .map(|(id, name, bytes)| ((id, name), bytes))
        .collect();
    for (id, name, bytes) in before {
        if let (Some(bytes), Some(Some(now))) = (bytes, after.get(&(id.clone(), name.clone()))) {
            assert!(bytes == now, "snapshot {id} restores to something else than before");
        }
    }
}

/// What a writer may refuse though a reader proved it whole: what it does not understand, and
/// numbers that have come to their end.
fn is_permitted(error: &Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::Unsupported | ErrorKind::UnsupportedFormat | ErrorKind::InvalidRequest
    )
}

/// A volume that shares chunks with those of forged archives.
pub fn source() -> Vec<u8> {
    let mut bytes = crate::whole::content(9 * 4096 + 17, 1);
    bytes[8192..20000].fill(0);
    bytes
}
