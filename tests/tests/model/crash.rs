//! The crash table of FORMAT.md, section 7.3: one test for each row, of the same name.
//!
//! A backup is recorded write by write. Then the medium is brought to every moment of it, cut at
//! every sector of every write (a process that was killed), and to what a loss of power may leave
//! at that moment (any subset of the sectors that were not synced). From each of these images a
//! reader must see exactly the snapshots that the row says, all of them whole, and the next backup
//! must succeed and use every record that was sealed.

use std::sync::Arc;
use std::sync::OnceLock;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use voltar_engine::archive::open::{Archive, Shelf, look};
use voltar_engine::cancel::Cancel;
use voltar_engine::device::memory::MemoryDevice;
use voltar_engine::error::ErrorKind;
use voltar_engine::inspect;
use voltar_engine::options::{BackupRequest, Compression, Context};

use crate::recorder::{Moment, Recorder, SECTOR_LEN, Step, dark_at, killed_at};
use crate::rig::{
    Seed, back_up, back_up_as, blank, context, disk, disk_like, holding, noise, open, read_volume,
    request, snapshots, verify,
};

/// The rows of the table, in its order.
const ROWS: [&str; 11] = [
    "crash_before_header_sync",
    "crash_after_header_sync",
    "crash_inside_segment",
    "crash_after_sealed_segment",
    "crash_inside_index_run",
    "crash_before_data_sync",
    "crash_after_data_sync",
    "crash_inside_commit_first_copy",
    "crash_inside_commit_second_copy",
    "crash_before_commit_sync",
    "crash_after_commit_sync",
];

#[test]
fn every_row_of_the_crash_table_has_its_test() {
    let document = include_str!("../../../format/FORMAT.md");
    let table = document.split("### 7.3").nth(1).unwrap().split("\n## ").next().unwrap();
    let rows: Vec<&str> = table
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split('`').next())
        .filter(|name| name.starts_with("crash_"))
        .collect();
    assert_eq!(rows, ROWS);
    for row in rows {
        let test = format!("#[test]\nfn {row}() {{");
        assert!(include_str!("crash.rs").contains(&test), "{row} has no test");
    }
}

#[test]
fn crash_before_header_sync() {
    check_row("crash_before_header_sync", 24);
}

#[test]
fn crash_after_header_sync() {
    check_row("crash_after_header_sync", 1);
}

#[test]
fn crash_inside_segment() {
    check_row("crash_inside_segment", 1);
}

#[test]
fn crash_after_sealed_segment() {
    check_row("crash_after_sealed_segment", 8);
}

#[test]
fn crash_inside_index_run() {
    check_row("crash_inside_index_run", 1);
}

#[test]
fn crash_before_data_sync() {
    check_row("crash_before_data_sync", 24);
}

#[test]
fn crash_after_data_sync() {
    check_row("crash_after_data_sync", 1);
}

#[test]
fn crash_inside_commit_first_copy() {
    check_row("crash_inside_commit_first_copy", 2);
}

#[test]
fn crash_inside_commit_second_copy() {
    check_row("crash_inside_commit_second_copy", 2);
}

#[test]
fn crash_before_commit_sync() {
    check_row("crash_before_commit_sync", 24);
}

#[test]
fn crash_after_commit_sync() {
    check_row("crash_after_commit_sync", 1);
}

/// No moment is forgotten: the rows share out all of them.
#[test]
fn every_moment_of_a_backup_belongs_to_a_row() {
    let mut all = 0;
    for recorded in recordings() {
        let moments = recorded.moments();
        for row in ROWS {
            let has_header = recorded.start.is_empty() || !row.contains("header");
            let count = moments.iter().filter(|moment| recorded.row(**moment) == row).count();
            assert_eq!(count > 0, has_header, "{}: {count} moments of {row}", recorded.name);
        }
        all += moments.len();
    }
    println!("{all} moments");
    assert!(all > 200, "{all} moments");
}

/// Several segments of full length: what is sealed is kept, however the rest looks.
#[test]
fn crash_in_the_second_of_two_long_segments() {
    let bytes = noise(7, 40 << 20);
    let request =
        BackupRequest { compression: Compression::Store, chunk_len: Some(64 << 10), ..request() };
    let recorder = Recorder::new(blank());
    back_up_as(&recorder, &[disk(&bytes)], &request).unwrap();
    let recorded = Recorded::new("long", Vec::new(), Vec::new(), &recorder, bytes.clone());
    let records = &recorded.records;
    let (first, second) = (records[0], records[1]);
    assert!(first.end - first.start > 30 << 20 && second.is_data, "{records:?}");
    let at = (first.end + second.end) / 2;
    let moment = recorded.moment_at(at);
    let image = killed_at(&recorded.start, &recorded.steps, moment);
    let home = holding(&image);
    let report = back_up_as(&home, &[disk(&bytes)], &request).unwrap();
    assert_eq!(report.resumed_bytes, first.end - first.start);
    let stored = report.stored_bytes;
    assert!(stored < (40 << 20) - (first.end - first.start) + (1 << 20), "{stored} bytes stored");
    let archive = open(&home).unwrap();
    assert!(verify(&archive).unwrap().ok);
    let volume = &snapshots(&archive).unwrap()[0].manifest.volumes[0];
    assert!(read_volume(&archive, volume).unwrap() == bytes);
}

/// A run that was stopped seals what it has; the next one goes on from there, also twice in a row.
#[test]
fn interrupted_runs_pass_their_work_on() {
    let home = blank();
    back_up(&home, &[disk(&noise(1, 50_000))]).unwrap();
    let before = open(&home).unwrap().end().0;
    let volumes = [noise(2, 300_000), noise(3, 300_000)];
    for _ in 0..2 {
        // The second volume cannot be read: the first one's work is done by then.
        let bad = Arc::new(MemoryDevice::from_bytes(&volumes[1]));
        let mut view = crate::rig::view_of("second", bad.clone());
        view.size += 1;
        let first = crate::rig::view_of("first", Arc::new(MemoryDevice::from_bytes(&volumes[0])));
        let error = back_up(&home, &[first, view]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::SourceUnusable, "{error:?}");
        assert_eq!(open(&home).unwrap().end().0, before);
    }
    let views = ["first", "second"]
        .iter()
        .zip(&volumes)
        .map(|(name, bytes)| crate::rig::view_of(name, Arc::new(MemoryDevice::from_bytes(bytes))))
        .collect::<Vec<_>>();
    let report = back_up(&home, &views).unwrap();
    assert!(report.resumed_bytes > 300_000, "{report:?}");
    assert_eq!((report.volumes[0].new_bytes, report.volumes[1].new_bytes), (0, 300_000));
    assert!(report.stored_bytes < 360_000, "{report:?}");
    let archive = open(&home).unwrap();
    let found = verify(&archive).unwrap();
    assert!(found.ok, "{:?}", found.damaged);
    let newest = snapshots(&archive).unwrap().pop().unwrap();
    for (volume, bytes) in newest.manifest.volumes.iter().zip(&volumes) {
        assert!(read_volume(&archive, volume).unwrap() == *bytes);
    }
}

/// A record of the log.
#[derive(Clone, Copy, Debug)]
struct Span {
    is_data: bool,
    start: u64,
    end: u64,
}

/// A backup, write by write.
struct Recorded {
    name: &'static str,
    /// The archive before, with what an earlier crash left.
    start: Vec<u8>,
    /// The contents of the snapshots in it, oldest first.
    before: Vec<Vec<u8>>,
    steps: Vec<Step>,
    /// What the new snapshot holds.
    after: Vec<u8>,
    /// The segments and index runs behind the last commit before, adopted ones included.
    records: Vec<Span>,
    /// Bytes of one copy of the commit.
    commit_len: usize,
    header_sync: Option<usize>,
    commit: usize,
}

impl Recorded {
    fn new(
        name: &'static str,
        start: Vec<u8>,
        before: Vec<Vec<u8>>,
        recorder: &Recorder,
        after: Vec<u8>,
    ) -> Recorded {
        let steps = recorder.steps();
        let archive = open(&holding(&recorder.bytes())).unwrap();
        let commit = archive.last.clone().unwrap();
        let log_start = commit.head.log_start.0;
        let log = inspect::log_archive(&archive, &context()).unwrap();
        let records = log
            .records
            .iter()
            .filter(|record| record.offset >= log_start && record.offset < commit.offset.0)
            .filter(|record| record.kind != "header")
            .map(|record| Span {
                is_data: record.kind == "data",
                start: record.offset,
                end: record.offset + record.length,
            })
            .collect::<Vec<_>>();
        assert!(records.len() >= 2, "{records:?}");
        let syncs: Vec<usize> =
            (0..steps.len()).filter(|number| steps[*number] == Step::Sync).collect();
        let [.., data_sync, commit_sync] = syncs[..] else { panic!("{} syncs", syncs.len()) };
        assert_eq!(commit_sync, steps.len() - 1, "nothing happens behind the last sync");
        assert_eq!(data_sync + 2, commit_sync, "the commit is one write");
        let header_sync = start.is_empty().then(|| syncs[0]);
        Recorded {
            name,
            start,
            before,
            steps,
            after,
            records,
            commit_len: commit.len as usize,
            header_sync,
            commit: data_sync + 1,
        }
    }

    /// Every step, and every sector of every write, and some places inside of sectors.
    fn moments(&self) -> Vec<Moment> {
        let mut moments = Vec::new();
        for (step, what) in self.steps.iter().enumerate() {
            moments.push(Moment { step, bytes: 0 });
            for bytes in (SECTOR_LEN..what.len()).step_by(SECTOR_LEN) {
                moments.push(Moment { step, bytes });
            }
            // The header is one sector: whole or not at all.
            if matches!(what, Step::Write(0, _)) {
                continue;
            }
            for bytes in [1, what.len() / 2 + 1, what.len().saturating_sub(1)] {
                if bytes > 0 && bytes < what.len() && bytes % SECTOR_LEN != 0 {
                    moments.push(Moment { step, bytes });
                }
            }
        }
        moments.push(Moment { step: self.steps.len(), bytes: 0 });
        moments
    }

    /// The moment at which the log was written to `at`.
    fn moment_at(&self, at: u64) -> Moment {
        let found = self.steps.iter().enumerate().find_map(|(step, what)| match what {
            Step::Write(offset, bytes) if (*offset..offset + bytes.len() as u64).contains(&at) => {
                Some(Moment { step, bytes: (at - offset) as usize })
            }
            _ => None,
        });
        found.unwrap()
    }

    /// How far the log was written at a moment.
    fn written(&self, moment: Moment) -> u64 {
        let done = self.steps[..moment.step].iter().filter_map(|step| match step {
            Step::Write(offset, bytes) => Some(offset + bytes.len() as u64),
            _ => None,
        });
        let now = match self.steps.get(moment.step) {
            Some(Step::Write(offset, _)) if moment.bytes > 0 => offset + moment.bytes as u64,
            _ => 0,
        };
        let adopted = self.start.len() as u64;
        done.chain([now, adopted]).max().unwrap_or(0)
    }

    /// The row of the table that a moment belongs to.
    fn row(&self, moment: Moment) -> &'static str {
        let Moment { step, bytes } = moment;
        if self.header_sync.is_some_and(|sync| step <= sync) {
            return "crash_before_header_sync";
        }
        if self.header_sync.is_some_and(|sync| step == sync + 1 && bytes == 0) {
            return "crash_after_header_sync";
        }
        if step > self.commit + 1 {
            return "crash_after_commit_sync";
        }
        if step == self.commit + 1 {
            return "crash_before_commit_sync";
        }
        if step == self.commit {
            return match bytes {
                0 => "crash_after_data_sync",
                bytes if bytes < self.commit_len => "crash_inside_commit_first_copy",
                _ => "crash_inside_commit_second_copy",
            };
        }
        let at = self.written(moment);
        let last = self.records[self.records.len() - 1];
        if at >= last.end {
            return "crash_before_data_sync";
        }
        match self.records.iter().find(|record| at < record.end) {
            Some(record) if at == record.start && at > self.records[0].start => {
                "crash_after_sealed_segment"
            }
            Some(record) if !record.is_data => "crash_inside_index_run",
            _ => "crash_inside_segment",
        }
    }

    /// Bytes of whole records that follow the last commit in an image that was written in order.
    fn sealed_len(&self, image: &[u8]) -> u64 {
        let whole = self.records.iter().take_while(|record| record.end <= image.len() as u64);
        whole.map(|record| record.end - record.start).sum()
    }
}

/// A first backup, an incremental one, and one behind an earlier crash.
fn recordings() -> &'static [Recorded] {
    static ALL: OnceLock<Vec<Recorded>> = OnceLock::new();
    ALL.get_or_init(|| vec![record_first(), record_incremental(), record_after_a_crash()])
}

fn small_disk(seed: u64) -> Vec<u8> {
    disk_like(&mut StdRng::seed_from_u64(seed), 40_007)
}

fn record_first() -> Recorded {
    let recorder = Recorder::new(blank());
    back_up(&recorder, &[disk(&small_disk(1))]).unwrap();
    Recorded::new("first", Vec::new(), Vec::new(), &recorder, small_disk(1))
}

fn record_incremental() -> Recorded {
    let home = blank();
    let mut bytes = small_disk(1);
    back_up(&home, &[disk(&bytes)]).unwrap();
    let before = bytes.clone();
    bytes[5000..9000].copy_from_slice(&noise(2, 4000));
    bytes.extend_from_slice(&noise(3, 9001));
    let recorder = Recorder::new(home.deep_clone());
    back_up(&recorder, &[disk(&bytes)]).unwrap();
    Recorded::new("incremental", home.bytes(), vec![before], &recorder, bytes)
}

/// The start of this one holds sealed work, a run, and a torn piece of a commit.
fn record_after_a_crash() -> Recorded {
    let earlier = record_incremental();
    let moment = Moment { step: earlier.commit, bytes: earlier.commit_len / 2 };
    let start = killed_at(&earlier.start, &earlier.steps, moment);
    let mut bytes = earlier.after.clone();
    bytes[20_000..30_000].copy_from_slice(&noise(4, 10_000));
    let recorder = Recorder::new(holding(&start));
    let report = back_up(&recorder, &[disk(&bytes)]).unwrap();
    assert!(report.resumed_bytes > 0);
    Recorded::new("after a crash", start, earlier.before, &recorder, bytes)
}

/// Checks every moment of a row in order, and `torn` losses of power at each.
fn check_row(row: &'static str, torn: u64) {
    let (mut killed, mut dark) = (0, 0);
    for (number, recorded) in (0u64..).zip(recordings()) {
        for moment in recorded.moments() {
            if recorded.row(moment) != row {
                continue;
            }
            killed += 1;
            check_killed(recorded, row, moment);
            let soak = std::env::var("VOLTAR_SOAK").is_ok();
            for toss in 0..if soak { torn * 20 } else { torn } {
                dark += 1;
                let value =
                    number << 56 | (moment.step as u64) << 40 | (moment.bytes as u64) << 8 | toss;
                check_dark(recorded, row, moment, value);
            }
        }
    }
    assert!(killed > 0 && dark > 0, "no moment belongs to {row}");
    println!("{row}: {killed} kills, {dark} losses of power");
}

fn check_killed(recorded: &Recorded, row: &str, moment: Moment) {
    let what = format!("{}, {row}, killed at {moment:?}", recorded.name);
    let image = killed_at(&recorded.start, &recorded.steps, moment);
    let committed =
        ["crash_inside_commit_second_copy", "crash_before_commit_sync", "crash_after_commit_sync"]
            .contains(&row);
    let seen = check_reader(recorded, &image, &what);
    assert_eq!(seen == recorded.before.len() + 1, committed, "{what}: {seen} snapshots");
    let sealed = if committed { 0 } else { recorded.sealed_len(&image) };
    check_next(recorded, &image, seen, Some(sealed), &what);
}

fn check_dark(recorded: &Recorded, row: &str, moment: Moment, seed: u64) {
    let _seed = Seed { name: "crash", value: seed };
    let what = format!("{}, {row}, power lost at {moment:?}, seed {seed:#x}", recorded.name);
    let mut rng = StdRng::seed_from_u64(seed);
    let share = *[0.1, 0.5, 0.9, 0.99].get(rng.random_range(0..4)).unwrap();
    let image = dark_at(&recorded.start, &recorded.steps, moment, share, &mut rng);
    let seen = check_reader(recorded, &image, &what);
    let promised = row == "crash_after_commit_sync";
    let possible = promised
        || ["crash_inside_commit_first_copy", "crash_inside_commit_second_copy"].contains(&row)
        || row == "crash_before_commit_sync";
    let is_new = seen == recorded.before.len() + 1;
    assert!(is_new || !promised, "{what}: what was reported is gone");
    assert!(!is_new || possible, "{what}: a snapshot nobody committed");
    // What was synced before the commit is all there, whatever became of the commit.
    let all = recorded.records.iter().map(|record| record.end - record.start).sum();
    let sealed = match row {
        "crash_after_data_sync" => Some(all),
        _ if possible && !is_new => Some(all),
        _ if is_new => Some(0),
        _ => None,
    };
    check_next(recorded, &image, seen, sealed, &what);
}

/// What a reader sees of an image: all snapshots that were there, perhaps the new one; whole.
/// Returns how many.
fn check_reader(recorded: &Recorded, image: &[u8], what: &str) -> usize {
    let home = holding(image);
    if look(&home).unwrap() == Shelf::Blank {
        assert!(recorded.start.is_empty(), "{what}: the archive is gone");
        return 0;
    }
    let archive = open(&home).unwrap_or_else(|error| panic!("{what}: {error:?}"));
    let seen = check_contents(recorded, &archive, what);
    if let Some(commit) = &archive.last {
        let found = verify(&archive).unwrap_or_else(|error| panic!("{what}: {error:?}"));
        // The one thing that may be wrong: a copy of the commit that was being written.
        let copies = commit.offset.0..commit.end().0;
        let is_new = seen == recorded.before.len() + 1;
        for damage in &found.damaged {
            let in_copy = copies.contains(&damage.offset) && damage.affects.is_empty();
            assert!(is_new && in_copy, "{what}: {damage:?}");
        }
    }
    assert!(home.bytes() == image, "{what}: a reader changed the archive");
    seen
}

/// Compares all snapshots of `archive` with what they should hold.
fn check_contents(recorded: &Recorded, archive: &Archive, what: &str) -> usize {
    let all = snapshots(archive).unwrap_or_else(|error| panic!("{what}: {error:?}"));
    let expected = recorded.before.iter().chain([&recorded.after, &recorded.after]);
    assert!(all.len() >= recorded.before.len(), "{what}: {} snapshots", all.len());
    assert!(all.len() <= recorded.before.len() + 2, "{what}: {} snapshots", all.len());
    for (snapshot, bytes) in all.iter().zip(expected) {
        let read = read_volume(archive, &snapshot.manifest.volumes[0]);
        let read = read.unwrap_or_else(|error| panic!("{what}: {error:?}"));
        assert!(read == *bytes, "{what}: snapshot {} reads back wrong", snapshot.id);
    }
    all.len()
}

/// The next backup takes over what was sealed, and all is well.
fn check_next(recorded: &Recorded, image: &[u8], seen: usize, sealed: Option<u64>, what: &str) {
    let home = holding(image);
    let end = match look(&home).unwrap() {
        Shelf::Blank => 0,
        _ => open(&home).unwrap().end().0,
    };
    let report = back_up(&home, &[disk(&recorded.after)]);
    let report = report.unwrap_or_else(|error| panic!("{what}: {error:?}"));
    if let Some(sealed) = sealed {
        assert_eq!(report.resumed_bytes, sealed, "{what}: sealed work");
        let all: u64 = recorded.records.iter().map(|record| record.end - record.start).sum();
        if sealed == all || seen > recorded.before.len() {
            assert_eq!(report.volumes[0].new_bytes, 0, "{what}: data were stored again");
        }
    }
    let archive = open(&home).unwrap();
    assert_eq!(check_contents(recorded, &archive, what), seen + 1, "{what}");
    let found = verify(&archive).unwrap_or_else(|error| panic!("{what}: {error:?}"));
    assert!(found.ok, "{what}: after the next backup: {:?}", found.damaged);
    assert_eq!(found.uncommitted_bytes, 0, "{what}");
    let committed = end as usize;
    let bytes = home.bytes();
    let kept = committed.min(image.len());
    if seen == recorded.before.len() {
        assert!(bytes[..kept] == image[..kept], "{what}: committed bytes were changed");
    }
}

/// An earlier crash left sealed runs that were merged, and the next runs are merged with them.
#[test]
fn an_index_adopted_twice_is_merged_once() {
    let home = blank();
    for seed in 0..7 {
        back_up(&home, &[disk(&noise(seed, 30_000))]).unwrap();
    }
    let recorder = Recorder::new(home.deep_clone());
    back_up(&recorder, &[disk(&noise(9, 30_000))]).unwrap();
    let recorded = Recorded::new("merged", home.bytes(), Vec::new(), &recorder, noise(9, 30_000));
    assert!(recorded.records.iter().filter(|record| !record.is_data).count() >= 2);
    let moment = Moment { step: recorded.commit, bytes: 0 };
    let crashed = holding(&killed_at(&recorded.start, &recorded.steps, moment));
    for seed in 10..30 {
        back_up(&crashed, &[disk(&noise(seed, 30_000))]).unwrap();
        let found = verify(&open(&crashed).unwrap()).unwrap();
        assert!(found.ok, "{:?}", found.damaged);
    }
}

/// A crash that is cancelled between volumes leaves no trace in the snapshots.
#[test]
fn a_cancelled_backup_is_a_crash_without_loss() {
    let home = blank();
    back_up(&home, &[disk(&small_disk(5))]).unwrap();
    let before = home.bytes();
    let cancelled = Context { cancel: Cancel::new(), ..context() };
    cancelled.cancel.raise();
    let outcome = voltar_engine::backup::run_in(
        &request(),
        &[disk(&small_disk(6))],
        Arc::new(home.clone()),
        &cancelled,
    );
    assert_eq!(outcome.unwrap_err().kind(), ErrorKind::Interrupted);
    assert!(home.bytes()[..before.len()] == before);
    let archive = open(&home).unwrap();
    assert_eq!(snapshots(&archive).unwrap().len(), 1);
    assert!(verify(&archive).unwrap().ok);
}
