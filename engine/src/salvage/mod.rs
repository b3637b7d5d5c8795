//! Salvages archives: copies what can still be read into a new archive, and names what cannot.
//!
//! ```text
//! copy ── every whole frame, session by session ──► new archive
//!   │ notes and places of sessions without a commit      │ its index says what there is
//!   ▼                                                    ▼
//! snapshot ── oldest to newest ── maps ── what is found is kept, the rest is unreadable
//!                                   └ positions ── where items say they belonged
//! ```
//!
//! The old archive's index is not used and its maps are not trusted to be complete: an item is
//! there if a frame that holds it was copied. Since the new archive's index does the look-ups, the
//! memory this takes does not depend on the size of either. The old archive is only read.

mod copy;
mod maps;
mod positions;
mod snapshot;
mod target;

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use voltar_format::limits::BLOCK_LEN;
use voltar_format::record::{RecordHead, RecordKind};
use voltar_format::segment::Footer;
use voltar_format::{ArchiveId, LogOffset, wire};

use crate::archive::blocks::blocks;
use crate::archive::chain::{Link, links};
use crate::archive::open::{Archive, length, read_header};
use crate::archive::{Home, read_into};
use crate::device::Device;
use crate::device::file::FileDevice;
use crate::device::open::{
    AS_MASKED, create_target_file, lock_archive, open_archive_reader, sync_directory,
};
use crate::error::{Error, ErrorKind, Result};
use crate::observe::Phase;
use crate::options::Context;
use crate::report::{ByteRange, SalvageReport, SalvagedSnapshot};

use copy::{Copied, Orphan, Stretch};
use snapshot::Snapshots;
use target::Target;

const BLOCK: u64 = BLOCK_LEN as u64;

/// Copies what can be read of `archive` into `new`, a file that does not exist yet. What is
/// missing is in the report (`complete == false`, exit 3), not an error.
///
/// # Errors
/// Of opening; `Io` if `new` exists or cannot be written; `Interrupted`. `new` is removed then.
/// `Busy` if another writer got hold of `new`, which is its then.
pub fn run(archive: &Path, new: &Path, context: &Context) -> Result<SalvageReport> {
    context.observer.phase(Phase::Open, None);
    let archive = open(Arc::new(open_archive_reader(archive)?), context)?;
    // Here, too, so that the lock is held until a file of no use is removed.
    let home = Arc::new(create(new)?);
    let keep_name = || sync_directory(new);
    salvage_into(&archive, Arc::clone(&home) as _, keep_name, context).inspect_err(|_| {
        // It was created above; the error says more than this one would.
        let _ = std::fs::remove_file(new);
    })
}

/// Creates the file of the new archive, which is ours alone as long as it is open.
fn create(new: &Path) -> Result<FileDevice> {
    let home = create_target_file(new, 0, AS_MASKED)?;
    lock_archive(&home)?;
    match length(&home)? {
        0 => Ok(home),
        // It was locked, written and released since it was created.
        _ => Err(Error::new(ErrorKind::Busy, "another writer has begun an archive there")
            .on(home.label())
            .meaning("nothing was changed")
            .hint("name another file")),
    }
}

/// As [`run`], from an open archive into an empty home without a name.
///
/// # Errors
/// As [`run`].
pub fn salvage_archive(
    archive: &Archive,
    home: Arc<dyn Home>,
    context: &Context,
) -> Result<SalvageReport> {
    salvage_into(archive, home, || Ok(()), context)
}

fn salvage_into(
    archive: &Archive,
    home: Arc<dyn Home>,
    keep_name: impl FnOnce() -> Result<()>,
    context: &Context,
) -> Result<SalvageReport> {
    let started = Instant::now();
    let links = links(archive)?;
    let mut target = Target::new(home, keep_name, context)?;
    let end = length(&*archive.home)? / BLOCK * BLOCK;
    context.observer.phase(Phase::Verify, Some(end));
    let copied = copy::copy(archive, stretches(&links, end), &mut target)?;
    context.observer.phase(Phase::Walk, None);
    let unfinished = unfinished_from(archive, end);
    let snapshots = make_snapshots(archive, &links, &copied, unfinished, &mut target)?;
    let lost_commits = lost_commits(archive, &links);
    let unnamed = copied.unnamed + snapshots.unnamed;
    let complete = lost_commits.is_empty() && copied.unnamed == 0 && !snapshots.lacks;
    Ok(SalvageReport {
        archive: archive.label().to_owned(),
        new_archive: target.label().to_owned(),
        complete,
        frames: copied.frames,
        snapshots: snapshots.made,
        lost_commits,
        unnamed,
        elapsed_s: started.elapsed().as_secs_f64(),
    })
}

/// Opens an archive that may have lost whatever says which one it is, but for one record head.
///
/// # Errors
/// As [`Archive::open`], if no record head is whole.
pub fn open(home: Arc<dyn Home>, context: &Context) -> Result<Archive> {
    let error = match Archive::open(Arc::clone(&home)) {
        Ok(archive) => return Ok(archive),
        Err(error) => error,
    };
    if !matches!(error.kind(), ErrorKind::Damaged | ErrorKind::NotAnArchive | ErrorKind::Io) {
        return Err(error);
    }
    let header = read_header(&*home);
    let id = match &header {
        Ok(header) => header.archive_id,
        Err(_) => any_record(&*home, context)?.ok_or(error)?,
    };
    Ok(Archive::found(home, id, header)?.0)
}

/// The archive that the first whole record head in a file belongs to.
fn any_record(home: &dyn Home, context: &Context) -> Result<Option<ArchiveId>> {
    let end = length(home)? / BLOCK * BLOCK;
    let mut head = [0; RecordHead::LEN];
    for at in (BLOCK..end).step_by(BLOCK_LEN).map(LogOffset) {
        context.cancel.check()?;
        // What cannot be read is no head.
        let read = read_into(home, at, &mut head);
        if let (Ok(()), Ok((head, _))) = (read, RecordHead::decode_at(&head, at, None)) {
            return Ok(Some(head.archive_id));
        }
    }
    Ok(None)
}

/// The log between the commits, and what follows the last.
fn stretches(links: &[Link], end: u64) -> Vec<Stretch> {
    let between = links.iter().map(|link| Stretch {
        range: link.log_start..link.range.start,
        is_committed: link.lost.is_none(),
    });
    let behind = links.last().map_or(BLOCK, |link| link.range.end);
    // Nothing says whether a session behind the last commit lost its commit or never had one.
    let tail = Stretch { range: behind..end.max(behind), is_committed: false };
    between.chain([tail]).collect()
}

/// What was made of snapshots and of sessions without a commit, in the order of the log.
#[derive(Default)]
struct Made {
    made: Vec<SalvagedSnapshot>,
    unnamed: u64,
    /// Whether something of what was committed, or may have been, is missing.
    lacks: bool,
}

fn make_snapshots(
    archive: &Archive,
    links: &[Link],
    copied: &Copied,
    unfinished: Option<u64>,
    target: &mut Target<'_>,
) -> Result<Made> {
    enum Event<'a> {
        Commit(&'a Link),
        Orphan(&'a Orphan),
    }
    let commits = links.iter().map(|link| (link.range.start, Event::Commit(link)));
    let orphans = copied.orphans.iter().map(|orphan| (orphan.start, Event::Orphan(orphan)));
    let mut events: Vec<_> = commits.chain(orphans).collect();
    events.sort_by_key(|(at, _)| *at);
    let mut snapshots = Snapshots::new(target)?;
    let mut made = Made::default();
    for (_, event) in events {
        match event {
            Event::Commit(link) if link.lost.is_some() => {}
            Event::Commit(link) => match archive.snapshot_of(link.read(archive)?) {
                Ok(Some(snapshot)) => {
                    let snapshot = snapshots.committed(target, &snapshot)?;
                    made.lacks |= !is_whole(&snapshot);
                    made.made.push(snapshot);
                }
                Ok(None) => {}
                Err(_) => {
                    made.lacks = true;
                    made.unnamed += 1;
                }
            },
            Event::Orphan(orphan) => {
                // A snapshot without its commit never is whole: its tags, its attached files and
                // what of it could not be read at the source are lost.
                made.lacks |= unfinished.is_none_or(|from| orphan.start < from);
                match snapshots.orphan(target, orphan)? {
                    Some(snapshot) => made.made.push(snapshot),
                    None => made.unnamed += 1,
                }
            }
        }
    }
    Ok(made)
}

fn is_whole(snapshot: &SalvagedSnapshot) -> bool {
    snapshot.missing_files.is_empty()
        && snapshot.volumes.iter().all(|volume| volume.missing.is_empty())
}

/// Where the log of an unfinished backup begins, if what follows the last commit is one and no part
/// of the archive (R-05). It is if it ends in a data segment: with the last byte of a sealed one, or
/// inside one that is open. A commit that was lost stood behind an index run.
fn unfinished_from(archive: &Archive, end: u64) -> Option<u64> {
    let from = archive.end().0;
    if archive.lost.is_some() || archive.unread.is_some() {
        return None;
    }
    let mut ends = None;
    for (at, block) in blocks(&*archive.home, from..end).rev() {
        let block = block.ok()?;
        let next = LogOffset(at.0 + BLOCK);
        if next.0 == end && wire::is_zero(&block) {
            return None;
        }
        if let Ok((footer, _)) = Footer::decode_at(&block, next, Some(archive.id)) {
            ends = ends.or(Some((footer.start, next.0)));
        }
        if let Ok((_, kind)) = RecordHead::decode_at(&block, at, Some(archive.id)) {
            let is_last = ends.is_none_or(|(start, sealed)| start == at && sealed == end);
            return (kind == RecordKind::Data && is_last).then_some(from);
        }
    }
    None
}

fn lost_commits(archive: &Archive, links: &[Link]) -> Vec<ByteRange> {
    let chained = links.iter().filter(|link| link.lost.is_some()).map(|link| &link.range);
    let mut lost: Vec<ByteRange> = chained
        .map(|range| ByteRange { offset: range.start, length: range.end - range.start })
        .collect();
    // Of the last one it is known where it began, or what may hide it.
    let last = archive.lost_commit().map(|(at, _)| ByteRange { offset: at.0, length: BLOCK });
    lost.extend(last);
    lost
}
