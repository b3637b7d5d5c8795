//! Damaged archives that go on serving: what is stored twice, what tables still say, and what a
//! backup heals.
#![allow(clippy::unwrap_used, reason = "tests assert")]

mod verify_rig;

use std::collections::BTreeMap;
use std::sync::Arc;

use verify_rig::{Shelf, pattern};

use voltar_engine::archive::Home;
use voltar_engine::archive::index::{Hint, Index};
use voltar_engine::archive::open::Archive;
use voltar_engine::backup;
use voltar_engine::device::Device;
use voltar_engine::device::hostile::{FaultPlan, HostileDevice};
use voltar_engine::device::memory::MemoryDevice;
use voltar_engine::error::{Error, ErrorKind};
use voltar_engine::options::{
    ArchiveHome, BackupRequest, Changes, Compression, Context, Dedup, IoEngine, OnDamage,
    OnReadError, ParentChoice, Selector, VerifyRequest,
};
use voltar_engine::report::{BackupReport, VerifyReport};
use voltar_engine::restore::job::Job;
use voltar_engine::restore::volume::{How, Restore};
use voltar_engine::source::memory::MemoryChanges;
use voltar_engine::source::{ChangeSource, View};
use voltar_engine::verify::verify_archive;
use voltar_format::Id;
use voltar_format::checksum::{chunk_id, crc32c};
use voltar_format::frame::{Codec, Frame, head_of};

const CHUNK: usize = 4096;

fn request() -> BackupRequest {
    BackupRequest {
        sources: Vec::new(),
        archive: ArchiveHome::Stdout,
        parent: ParentChoice::Auto,
        changes: Changes::Auto,
        audit_share: 0.0,
        compression: Compression::Zstd(1),
        chunk_len: Some(CHUNK as u32),
        attach: Vec::new(),
        tags: BTreeMap::new(),
        dedup: Dedup::On,
        on_read_error: OnReadError::Fail,
        holding: Default::default(),
        dry_run: false,
    }
}

fn context() -> Context {
    let threads = std::num::NonZeroUsize::new(2);
    Context { memory_bytes: 64 << 20, threads, io: IoEngine::Blocking, ..Context::default() }
}

/// No two chunks alike.
fn content(chunks: usize, seed: u8) -> Vec<u8> {
    let chunk = |number: usize| [&(number as u64).to_le_bytes()[..], &[seed; CHUNK - 8]].concat();
    (0..chunks).flat_map(chunk).collect()
}

fn try_back_up(
    home: &MemoryDevice,
    bytes: &[u8],
    changes: Option<Arc<dyn ChangeSource>>,
    request: &BackupRequest,
) -> Result<BackupReport, Error> {
    let view = View {
        name: "vm".into(),
        description: "memory".into(),
        device: Arc::new(MemoryDevice::from_bytes(bytes)),
        size: bytes.len() as u64,
        change_source: changes,
        degraded: None,
    };
    let home: Arc<dyn Home> = Arc::new(home.clone());
    Ok(backup::run_in(request, &[view], home, &context())?)
}

fn back_up(home: &MemoryDevice, bytes: &[u8], request: &BackupRequest) -> BackupReport {
    try_back_up(home, bytes, None, request).unwrap()
}

fn archive_of(snapshots: &[Vec<u8>]) -> MemoryDevice {
    let home = MemoryDevice::new(0).growing();
    snapshots.iter().for_each(|bytes| drop(back_up(&home, bytes, &request())));
    home
}

fn archive(home: &MemoryDevice) -> Archive {
    Archive::open(Arc::new(home.clone())).unwrap()
}

fn try_restore(home: &MemoryDevice, back: u64) -> Result<Vec<u8>, Error> {
    let archive = archive(home);
    let snapshot = archive.select(&Selector::Latest(back))?;
    let volume = &snapshot.manifest.volumes[0];
    let job = Job::new(&archive, &snapshot, volume, OnDamage::Fail)?;
    let target = MemoryDevice::new(volume.size);
    let context = context();
    let restore = Restore::new(&job, &target, How::default(), &context, IoEngine::Blocking);
    restore.write()?;
    restore.prove()?;
    Ok(target.bytes())
}

#[track_caller]
fn assert_restores(home: &MemoryDevice, back: u64, bytes: &[u8]) {
    assert!(try_restore(home, back).unwrap() == bytes, "latest~{back} differs");
}

fn verify(home: &MemoryDevice) -> VerifyReport {
    verify_snapshot(home, None)
}

/// Verifies what one snapshot needs, or everything.
fn verify_snapshot(home: &MemoryDevice, snapshot: Option<Selector>) -> VerifyReport {
    let request = VerifyRequest {
        archive: "memory".into(),
        snapshot,
        stored: false,
        sample_percent: None,
        resume: None,
    };
    verify_archive(&archive(home), &request, &context()).unwrap()
}

fn flip(home: &MemoryDevice, at: u64) {
    let mut byte = [0];
    home.read_at(&mut byte, at).unwrap();
    home.write_at(&[byte[0] ^ 0x10], at).unwrap();
}

/// Damages the payload of the frame that holds the item.
fn damage_frame_of(home: &MemoryDevice, id: &Id) -> u64 {
    let entry = Index::of(&archive(home)).find(id).unwrap().unwrap();
    flip(home, entry.frame.0 + u64::from(entry.frame_len) - 5);
    entry.frame.0
}

/// The pages of the newest run: filters and slots.
fn pages(home: &MemoryDevice) -> Vec<u64> {
    let run = archive(home).last.unwrap().runs.last().unwrap().clone();
    (1..=run.page_count).map(|page| run.offset.0 + page * 4096).collect()
}

#[test]
fn any_damaged_page_of_an_index_costs_no_snapshot() {
    let volumes = [content(700, 1), content(700, 2)];
    let whole = archive_of(&volumes);
    let third = content(700, 3);
    assert!(pages(&whole).len() > 4);
    for page in pages(&whole) {
        let home = whole.deep_clone();
        flip(&home, page + 1000);
        assert_restores(&home, 0, &volumes[1]);
        assert_restores(&home, 1, &volumes[0]);

        let verdict = verify(&home);
        assert!(!verdict.ok);
        let damage = &verdict.damaged[..];
        assert!(damage.iter().all(|one| one.structure == "index"), "{damage:#?}");
        assert!(damage.iter().all(|one| one.affects.is_empty()), "{damage:#?}");

        // What the archive holds is still known, as far as it is asked.
        let alone = BackupRequest { parent: ParentChoice::None, ..request() };
        let again = back_up(&home, &volumes[1], &alone);
        assert_eq!(again.volumes[0].new_bytes, 0);
        assert!(again.warnings.iter().any(|what| what.contains("index")), "{again:?}");
        assert_restores(&home, 0, &volumes[1]);
        // The new snapshot's runs are whole again, and nothing is to be said any more.
        let quiet = back_up(&home, &third, &request());
        assert_eq!(quiet.warnings, Vec::<String>::new());
        for (back, bytes) in [(0, &third), (1, &volumes[1]), (2, &volumes[1]), (3, &volumes[0])] {
            assert_restores(&home, back, bytes);
        }
    }
}

#[test]
fn an_index_that_is_lost_altogether_is_read_back_from_tables() {
    let volumes: Vec<_> = (1..=9).map(|seed| content(300, seed)).collect();
    let home = archive_of(&volumes);
    for run in archive(&home).last.unwrap().runs {
        // Its footer stays: a writer builds on nothing that does not end with one.
        home.write_at(&vec![0; run.len as usize - 4096], run.offset.0).unwrap();
    }
    for (back, bytes) in (0..).zip(volumes.iter().rev()) {
        assert_restores(&home, back, bytes);
    }
    let again = back_up(&home, &volumes[4], &request());
    assert_eq!((again.volumes[0].new_bytes, again.warnings.len()), (0, 1), "{again:?}");
    assert_restores(&home, 0, &volumes[4]);
    assert_restores(&home, 9, &volumes[0]);
}

#[test]
fn a_lost_run_and_a_lost_table_leave_the_frames() {
    let bytes = content(600, 1);
    let home = archive_of(std::slice::from_ref(&bytes));
    pages(&home).into_iter().for_each(|page| flip(&home, page + 30));
    // The footer of the first segment, in the block before the run.
    let run = archive(&home).last.unwrap().runs[0].clone();
    flip(&home, run.offset.0 - 100);
    assert_restores(&home, 0, &bytes);
}

#[test]
fn a_lost_run_and_a_lost_border_leave_the_frames_of_both_segments() {
    let mut shelf = Shelf::new();
    let bytes = pattern(60 * CHUNK, 1);
    let segments = shelf.two_segments(&bytes, 20 * CHUNK);
    pages(&shelf.device).into_iter().for_each(|page| flip(&shelf.device, page + 30));
    shelf.lose_borders(&segments);
    assert_restores(&shelf.device, 0, &bytes);
}

#[test]
fn a_backup_without_deduplication_heals_what_is_damaged() {
    let (old, mut new) = (content(700, 1), content(700, 1));
    new[5 * CHUNK + 100] ^= 1;
    let home = archive_of(&[old.clone(), new.clone()]);
    let frame = damage_frame_of(&home, &chunk_id(&old[8 * CHUNK..9 * CHUNK]));
    assert_eq!(try_restore(&home, 0).unwrap_err().kind(), ErrorKind::Damaged);
    assert_eq!(try_restore(&home, 1).unwrap_err().kind(), ErrorKind::Damaged);
    let costs = verify(&home);
    assert!(!costs.damaged[0].affects.is_empty());
    // An ordinary backup trusts what it refers to.
    assert_eq!(back_up(&home, &new, &request()).volumes[0].new_bytes, 0);
    assert_eq!(try_restore(&home, 0).unwrap_err().kind(), ErrorKind::Damaged);

    let off = BackupRequest { dedup: Dedup::Off, ..request() };
    let report = back_up(&home, &new, &off);
    let volume = &report.volumes[0];
    assert_eq!((volume.new_bytes, volume.changed_bytes), (new.len() as u64, 0));
    assert_restores(&home, 0, &new);
    assert_restores(&home, 1, &new);
    assert_restores(&home, 2, &new);
    // All but chunk 5 is the same in the first, so it lies in the new place, too; chunk 5 itself
    // lay in the damaged frame.
    assert_eq!(try_restore(&home, 3).unwrap_err().kind(), ErrorKind::Damaged);
    let after = verify(&home);
    assert_eq!(after.damaged.len(), 1, "{:#?}", after.damaged);
    assert_eq!(after.damaged[0].offset, frame);
    let affects = &after.damaged[0].affects;
    assert_eq!(affects.len(), 1, "{affects:#?}");
    assert_eq!((affects[0].offset, affects[0].length), (5 * CHUNK as u64, CHUNK as u64));
    // Healed: the next ones deduplicate against the new places.
    let next = back_up(&home, &old, &off);
    assert_eq!(next.volumes[0].new_bytes, old.len() as u64);
    (0..5).for_each(|back| drop(try_restore(&home, back).unwrap()));
    assert!(verify(&home).damaged.iter().all(|damage| damage.affects.is_empty()));
}

#[test]
fn without_deduplication_a_session_stores_a_chunk_once() {
    let one = content(1, 1);
    let bytes = one.repeat(300);
    let home = archive_of(std::slice::from_ref(&bytes));
    let off = BackupRequest { dedup: Dedup::Off, ..request() };
    assert_eq!(back_up(&home, &bytes, &off).volumes[0].new_bytes, CHUNK as u64);
}

#[test]
fn a_damaged_place_is_no_loss_while_there_is_another() {
    let bytes = content(300, 1);
    let home = archive_of(std::slice::from_ref(&bytes));
    let off = BackupRequest { dedup: Dedup::Off, ..request() };
    back_up(&home, &bytes, &off);
    // The newest place, which is asked first.
    damage_frame_of(&home, &chunk_id(&bytes[..CHUNK]));
    assert_restores(&home, 0, &bytes);
    assert_restores(&home, 1, &bytes);
    let verdict = verify(&home);
    assert_eq!((verdict.ok, verdict.damaged.len()), (false, 1));
    assert!(verdict.damaged[0].affects.is_empty(), "{:#?}", verdict.damaged);
}

/// A snapshot is verified where it will be read: in the places that are left.
#[test]
fn all_places_of_a_chunk_count_for_a_single_snapshot() {
    let bytes = content(300, 1);
    let home = archive_of(std::slice::from_ref(&bytes));
    let off = BackupRequest { dedup: Dedup::Off, ..request() };
    let id = chunk_id(&bytes[..CHUNK]);
    let older = damage_frame_of(&home, &id);
    back_up(&home, &bytes, &off);
    let newer = damage_frame_of(&home, &id);
    let verdict = verify_snapshot(&home, Some(Selector::Latest(0)));
    let damaged: Vec<u64> = verdict.damaged.iter().map(|damage| damage.offset).collect();
    assert_eq!(damaged, [older, newer], "{:#?}", verdict.damaged);
    assert!(
        verdict.damaged.iter().any(|damage| damage.affects.iter().any(|lost| lost.offset == 0)),
        "{:#?}",
        verdict.damaged
    );
    assert_eq!(try_restore(&home, 0).unwrap_err().kind(), ErrorKind::Damaged);
}

/// Gives the item in `slot` of the frame that holds `id` other bytes, with right checksums: a
/// memory error during the backup.
fn forge_item_beside(home: &MemoryDevice, id: &Id, slot: usize) -> u64 {
    let entry = Index::of(&archive(home)).find(id).unwrap().unwrap();
    let mut bytes = vec![0; entry.frame_len as usize];
    home.read_at(&mut bytes, entry.frame.0).unwrap();
    let frame = Frame::decode(&bytes).unwrap();
    assert_eq!(frame.codec, Codec::Store);
    let mut payload = frame.payload.to_vec();
    payload[slot * CHUNK + 9] ^= 1;
    let forged = [head_of(Codec::Store, &frame.entries, &payload), payload].concat();
    home.write_at(&forged, entry.frame.0).unwrap();
    entry.frame.0
}

/// A second place of a chunk is looked at in a pass of its own, which meets the damage beside it
/// once more: it is no news.
#[test]
fn damage_that_a_second_pass_meets_again_is_counted_once() {
    let bytes = content(200, 1);
    let stored = BackupRequest { compression: Compression::Store, ..request() };
    let home = MemoryDevice::new(0).growing();
    back_up(&home, &bytes, &stored);
    let id = chunk_id(&bytes[..CHUNK]);
    let older = forge_item_beside(&home, &id, 100);
    back_up(&home, &bytes[..8 * CHUNK], &BackupRequest { dedup: Dedup::Off, ..stored });
    let newer = damage_frame_of(&home, &id);
    let verdict = verify_snapshot(&home, Some(Selector::Latest(1)));
    let damaged: Vec<u64> = verdict.damaged.iter().map(|damage| damage.offset).collect();
    assert_eq!(damaged, [older, newer]);
    let lost = verdict.damaged.iter().flat_map(|damage| &damage.affects);
    let lost: Vec<_> = lost.map(|lost| (lost.offset, lost.length)).collect();
    assert_eq!(lost, [(100 * CHUNK as u64, CHUNK as u64)]);
    assert!(verdict.frames < 10, "{} frames", verdict.frames);
}

/// A walk meets items in the order in which they were stored: nearly all in one run.
#[test]
fn what_was_stored_together_is_found_with_one_read() {
    let snapshots: Vec<Vec<u8>> = (1..6).map(|seed| content(40, seed)).collect();
    let home = archive_of(&snapshots);
    let runs = archive(&home).last.unwrap().runs;
    assert_eq!(runs.len(), snapshots.len());
    let counted = HostileDevice::new(home, FaultPlan::default());
    let index = Index::new(Arc::new(counted.clone()), runs);
    let reads = || counted.counts().0;
    for bytes in &snapshots {
        let mut hint = Hint::default();
        for (number, chunk) in bytes.chunks(CHUNK).enumerate() {
            let before = reads();
            let near = index.find_near(&chunk_id(chunk), &mut hint).unwrap().unwrap();
            let cost = reads() - before;
            assert!(number == 0 || cost == 1, "chunk {number}: {cost} reads");
            assert_eq!(index.find(&chunk_id(chunk)).unwrap(), Some(near));
        }
        assert_eq!(index.find_near(&chunk_id(b"nowhere"), &mut hint).unwrap(), None);
    }
}

/// Whoever can write the file can make an index with right checksums.
#[test]
fn an_index_that_lies_about_slots_makes_no_wrong_byte() {
    let bytes = content(2, 1);
    let home = archive_of(std::slice::from_ref(&bytes));
    back_up(&home, &bytes, &BackupRequest { dedup: Dedup::Off, ..request() });
    let (first, mut lies) = (chunk_id(&bytes[..CHUNK]), 0);
    for at in pages(&home) {
        let mut page = vec![0; 4096];
        home.read_at(&mut page, at).unwrap();
        let count = usize::from(u16::from_le_bytes([page[12], page[13]]));
        for entry in page[16..].chunks_exact_mut(48).take(count) {
            if entry[..32] == first.0 {
                entry[44] ^= 1;
                lies += 1;
            }
        }
        page[4..8].fill(0);
        let crc = crc32c(&page);
        page[4..8].copy_from_slice(&crc.to_le_bytes());
        home.write_at(&page, at).unwrap();
    }
    assert_eq!(lies, 1);
    match try_restore(&home, 0) {
        Ok(restored) => assert!(restored == bytes),
        Err(error) => assert_eq!(error.kind(), ErrorKind::Damaged),
    }
}

/// The root of the newest snapshot's map.
fn root(home: &MemoryDevice) -> Id {
    let archive = archive(home);
    let snapshot = archive.select(&Selector::Latest(0)).unwrap();
    snapshot.manifest.volumes[0].root
}

#[test]
fn a_damaged_map_of_the_parent_is_done_without() {
    let bytes = content(700, 1);
    for with_changes in [false, true] {
        let changes = || {
            let changes = MemoryChanges::new("disk-1", bytes.len() as u64);
            with_changes.then(|| Arc::new(changes) as Arc<dyn ChangeSource>)
        };
        let home = MemoryDevice::new(0).growing();
        try_back_up(&home, &bytes, changes(), &request()).unwrap();
        damage_frame_of(&home, &root(&home));
        assert_eq!(try_restore(&home, 0).unwrap_err().kind(), ErrorKind::Damaged);

        let chosen = ParentChoice::Snapshot(Selector::Latest(0));
        let chosen = BackupRequest { parent: chosen, ..request() };
        let error = try_back_up(&home, &bytes, changes(), &chosen).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Damaged);

        let report = try_back_up(&home, &bytes, changes(), &request()).unwrap();
        let volume = &report.volumes[0];
        assert!(volume.degraded.as_ref().unwrap().contains("map is damaged"), "{volume:?}");
        assert_eq!((report.warnings.len(), volume.new_bytes), (1, 0));
        assert_eq!(volume.change_source, "none");
        // Its nodes are stored again, so that the older one is whole, too.
        assert_restores(&home, 0, &bytes);
        assert_restores(&home, 1, &bytes);
    }
}

#[test]
fn f_068_an_entry_leads_to_a_frame_before_its_run() {
    let bytes = content(3, 1);
    let home = archive_of(std::slice::from_ref(&bytes));
    let archive = archive(&home);
    let id = chunk_id(&bytes[..CHUNK]);
    let run = archive.last.as_ref().unwrap().runs[0].clone();
    let index = |offset| {
        let run = voltar_format::commit::RunEntry { offset, ..run.clone() };
        Index::new(archive.home.clone(), vec![run])
    };
    assert!(index(run.offset).find(&id).unwrap().is_some());
    // The same run where its frames are behind it.
    let mut pages = vec![0; run.len as usize];
    home.read_at(&mut pages, run.offset.0).unwrap();
    home.write_at(&pages, 4096).unwrap();
    let error = index(voltar_format::LogOffset(4096)).find(&id).unwrap_err();
    assert!(format!("{error:?}").contains("F-068"), "{error:?}");
}
