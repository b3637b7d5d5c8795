//! Every reading command on an archive of which one read fails, or of which a sector cannot be read,
//! whichever it is: the answer is the one a whole archive gives, or it says what it lacks, or it is
//! an error; within seconds.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::errno::Errno;
use serde::Serialize;
use serde_json::Value;
use voltar_engine::device::Device;
use voltar_engine::device::hostile::{Fault, FaultPlan, HostileDevice, Which};
use voltar_engine::device::memory::MemoryDevice;
use voltar_engine::error::{ErrorKind, Result};
use voltar_engine::observe::Observer;
use voltar_engine::options::{Context, IoEngine, OnDamage, Selector, VerifyRequest};
use voltar_engine::restore::job::Job;
use voltar_engine::restore::volume::{How, Restore};
use voltar_engine::{diff, inspect, verify};

use crate::rig::{back_up, blank, context, disk, noise, open, within};

/// What no operation may take longer than.
const SECONDS: u64 = 20;

/// What reads an archive.
#[derive(Clone, Copy, Debug)]
enum Reader {
    List,
    Show,
    Diff,
    Log,
    Verify,
    VerifyStored,
    VerifyOne,
    Restore,
}

const READERS: [Reader; 8] = [
    Reader::List,
    Reader::Show,
    Reader::Diff,
    Reader::Log,
    Reader::Verify,
    Reader::VerifyStored,
    Reader::VerifyOne,
    Reader::Restore,
];

/// Counts what the user is told on the way.
#[derive(Default)]
struct Hearing(AtomicU64);

impl Observer for Hearing {
    fn notice(&self, _text: &str) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// A reader's answer.
#[derive(Debug, PartialEq)]
struct Answer {
    report: Value,
    /// Whether it says that something is missing or damaged.
    complains: bool,
}

impl Reader {
    fn run(self, home: &HostileDevice) -> Result<Answer> {
        let hearing = Arc::new(Hearing::default());
        let context = Context { observer: hearing.clone(), ..context() };
        let archive = open(home)?;
        let (old, new) = (Selector::Latest(1), Selector::Latest(0));
        let report = match self {
            Reader::List => value(inspect::list_archive(&archive, &context)?),
            Reader::Show => value(inspect::show_archive(&archive, &new)?),
            Reader::Diff => value(diff::diff_archive(&archive, &old, &new, None, &context)?),
            Reader::Log => value(inspect::log_archive(&archive, &context)?),
            Reader::Verify | Reader::VerifyStored | Reader::VerifyOne => {
                let request = VerifyRequest {
                    archive: "memory".into(),
                    snapshot: matches!(self, Reader::VerifyOne).then_some(new),
                    stored: matches!(self, Reader::VerifyStored),
                    sample_percent: None,
                    resume: None,
                };
                value(verify::verify_archive(&archive, &request, &context)?)
            }
            Reader::Restore => {
                let snapshot = archive.select(&new)?;
                let volume = &snapshot.manifest.volumes[0];
                let job = Job::new(&archive, &snapshot, volume, OnDamage::Fail)?;
                let target = MemoryDevice::new(volume.size);
                let engine = IoEngine::Blocking;
                Restore::new(&job, &target, How::default(), &context, engine).write()?;
                value(target.bytes())
            }
        };
        let damaged = |record: &Value| !record["error"].is_null();
        let complains = hearing.0.load(Ordering::Relaxed) > 0
            || report["ok"] == false
            || report["complete"] == false
            || report["records"].as_array().is_some_and(|records| records.iter().any(damaged));
        Ok(Answer { report, complains })
    }
}

/// A report without what differs from run to run.
fn value(report: impl Serialize) -> Value {
    let mut value = serde_json::to_value(report).unwrap();
    if let Some(fields) = value.as_object_mut() {
        fields.remove("elapsed_s");
    }
    value
}

#[test]
fn every_read_of_every_reader_fails_once() {
    let home = blank();
    let first = noise(1, 60_013);
    let second = [&noise(2, 9_000)[..], &first[9_000..]].concat();
    back_up(&home, &[disk(&first)]).unwrap();
    back_up(&home, &[disk(&second)]).unwrap();
    for reader in READERS {
        let calm = HostileDevice::new(home.deep_clone(), FaultPlan::default());
        let expected = reader.run(&calm).unwrap();
        assert!(!expected.complains, "{reader:?}");
        let (reads, _, _) = calm.counts();
        let errnos = [Errno::EIO, Errno::EAGAIN];
        let once = (0..reads).flat_map(|nth| errnos.map(|errno| fails(nth, errno as i32)));
        let bad = (0..calm.len().unwrap()).step_by(1024).map(bad_sector);
        let (mut failed, mut told, mut overcome) = (0, 0, 0);
        for fault in once.chain(bad) {
            let what = format!("{reader:?}: {fault:?}");
            let plan = FaultPlan { faults: vec![fault], ..FaultPlan::default() };
            let archive = HostileDevice::new(home.deep_clone(), plan);
            match within(SECONDS, &what, move || reader.run(&archive)) {
                Ok(answer) if answer.complains => told += 1,
                Ok(answer) => {
                    assert!(answer == expected, "{what}: another answer, without a word");
                    overcome += 1;
                }
                Err(error) => {
                    let kinds = [ErrorKind::Io, ErrorKind::Damaged, ErrorKind::NotFound];
                    assert!(kinds.contains(&error.kind()), "{what}: {error:?}");
                    failed += 1;
                }
            }
        }
        println!("{reader:?}: {reads} reads; {failed} failed, {told} told, {overcome} overcome");
        println!("figure: {} operations of readers failed", failed + told + overcome);
        // Commits are written twice: nothing that happens once costs what is in them alone.
        let is_in_commits = matches!(reader, Reader::List | Reader::Show);
        assert_eq!(failed + told == 0, is_in_commits, "{reader:?}");
    }
}

#[test]
fn an_older_snapshot_is_never_taken_for_the_newest() {
    let home = blank();
    back_up(&home, &[disk(&noise(1, 60_013))]).unwrap();
    back_up(&home, &[disk(&noise(2, 60_013))]).unwrap();
    let newest = open(&home).unwrap().last.unwrap();
    for (behind, name) in [(Vec::new(), "at the end"), (vec![7; 12_288], "before a torn tail")] {
        let home = home.deep_clone();
        let end = newest.end().0;
        home.write_at(&behind, end).unwrap();
        let fault = Fault::BadRange { range: newest.offset.0..end, errno: Errno::EIO as i32 };
        let plan = FaultPlan { faults: vec![fault], ..FaultPlan::default() };
        for reader in READERS {
            let what = format!("{reader:?}, {name}");
            match reader.run(&HostileDevice::new(home.deep_clone(), plan.clone())) {
                Ok(answer) => assert!(answer.complains, "{what}: {answer:?}"),
                Err(error) => assert_eq!(error.kind(), ErrorKind::Damaged, "{what}: {error:?}"),
            }
        }
    }
}

fn fails(nth: u64, errno: i32) -> Fault {
    Fault::Fail { which: Which::Reads, nth, errno }
}

fn bad_sector(at: u64) -> Fault {
    Fault::BadRange { range: at..at + 512, errno: Errno::EIO as i32 }
}
