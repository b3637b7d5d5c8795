//! Looks at archives without changing them: snapshots in short and whole, attached files, and the
//! log as it lies.

use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use voltar_format::commit::Commit;
use voltar_format::features::{FORMAT_VERSION, feature_names};
use voltar_format::index::check_head_block;
use voltar_format::limits::BLOCK_LEN;
use voltar_format::manifest::Volume;
use voltar_format::record::{RecordHead, RecordKind};
use voltar_format::segment::Footer;
use voltar_format::{FormatError, LogOffset};

use crate::archive::attached;
use crate::archive::chain::{Link, links};
use crate::archive::index::Index;
use crate::archive::lost::losses_among;
use crate::archive::open::Archive;
use crate::archive::snapshots::Snapshot;
use crate::archive::spans::{Span, spans};
use crate::archive::store::Store;
use crate::archive::{format_error, read_exact};
use crate::device::open::open_archive_reader;
use crate::error::{Error, ErrorKind, Result};
use crate::observe::Phase;
use crate::options::{Context, Selector};
use crate::report::{
    AttachedSummary, ByteRange, InspectRecord, InspectReport, ListReport, ShowReport,
    SnapshotSummary, VolumeDetail, VolumeSummary,
};
use crate::words::{count, counted, followed_by_causes};

/// Opens the archive in the file at `path`, to be read.
///
/// # Errors
/// Those of opening the file and of finding the archive in it.
pub fn open(path: &Path, context: &Context) -> Result<Archive> {
    context.observer.phase(Phase::Open, None);
    Archive::open(Arc::new(open_archive_reader(path)?))
}

/// Snapshots, newest last.
///
/// A damaged commit costs its own snapshot only: the others are listed, and what is known of those
/// that are lost stands beside them.
///
/// # Errors
/// Those of opening; `Damaged` naming the commit, if no snapshot can be listed because of it.
pub fn list(archive: &Path, context: &Context) -> Result<ListReport> {
    list_archive(&open(archive, context)?, context)
}

/// As [`list`], of an open archive.
///
/// # Errors
/// As [`list`].
pub fn list_archive(archive: &Archive, context: &Context) -> Result<ListReport> {
    let mut snapshots = Vec::new();
    let mut failure = None;
    let links = links(archive)?;
    for link in &links {
        context.cancel.check()?;
        match summary_at(archive, link) {
            Ok(summary) => snapshots.extend(summary),
            Err(error) => {
                if link.lost.is_none() {
                    context.observer.notice(&lost_words(link));
                }
                failure.get_or_insert(error);
            }
        }
    }
    let losses = losses_among(archive, &links);
    match failure {
        Some(error) if snapshots.is_empty() => Err(error),
        failure => Ok(ListReport {
            archive: archive.label().to_owned(),
            snapshots,
            complete: failure.is_none() && losses.is_empty(),
            losses,
        }),
    }
}

fn summary_at(archive: &Archive, link: &Link) -> Result<Option<SnapshotSummary>> {
    let snapshot = archive.snapshot_of(link.read(archive)?)?;
    Ok(snapshot.as_ref().map(summary))
}

fn lost_words(link: &Link) -> String {
    let at = link.range.start;
    format!("the commit at {at:#x} is damaged: its snapshot is not listed; see `voltar verify`")
}

/// One snapshot.
///
/// # Errors
/// Those of opening; `NotFound` or `Ambiguous`.
pub fn show(archive: &Path, snapshot: &Selector, context: &Context) -> Result<ShowReport> {
    show_archive(&open(archive, context)?, snapshot)
}

/// As [`show`], of an open archive.
///
/// # Errors
/// As [`show`].
pub fn show_archive(archive: &Archive, snapshot: &Selector) -> Result<ShowReport> {
    let snapshot = archive.select(snapshot)?;
    let manifest = &snapshot.manifest;
    let attached = manifest
        .attached
        .iter()
        .map(|file| AttachedSummary { name: file.name.clone(), size: file.size })
        .collect();
    Ok(ShowReport {
        archive: archive.label().to_owned(),
        summary: summary(&snapshot),
        host: manifest.host.clone(),
        program: manifest.program.clone(),
        details: manifest.volumes.iter().map(detail).collect(),
        attached,
    })
}

fn summary(snapshot: &Snapshot) -> SnapshotSummary {
    let manifest = &snapshot.manifest;
    let volumes = manifest.volumes.iter().map(volume_summary);
    let commit = &snapshot.commit;
    SnapshotSummary {
        id: snapshot.id.to_hex(),
        time: rfc3339(manifest.time_ns),
        time_ns: manifest.time_ns,
        parent: manifest.parent.map(|parent| parent.to_hex()),
        volumes: volumes.collect(),
        tags: manifest.tags.clone(),
        stored_bytes: commit.end().0.saturating_sub(commit.head.log_start.0),
    }
}

/// One volume in short.
pub(crate) fn volume_summary(volume: &Volume) -> VolumeSummary {
    VolumeSummary { name: volume.name.clone(), size: volume.size, root: volume.root.to_hex() }
}

fn detail(volume: &Volume) -> VolumeDetail {
    let unreadable = volume.unreadable.iter();
    VolumeDetail {
        name: volume.name.clone(),
        size: volume.size,
        chunk_size: volume.chunk_size,
        root: volume.root.to_hex(),
        source: volume.source.clone(),
        change_source: volume.change_source.clone(),
        proof: volume.proof.clone(),
        degraded: volume.degraded.clone(),
        unreadable: unreadable.map(|&(offset, length)| ByteRange { offset, length }).collect(),
    }
}

/// The bytes of an attached file of a snapshot, written to `out`.
///
/// # Errors
/// As [`show`]; `NotFound` if the snapshot has no such file; `Damaged`; those of writing.
pub fn attached(
    archive: &Path,
    snapshot: &Selector,
    name: &str,
    out: &mut dyn Write,
    context: &Context,
) -> Result<()> {
    attached_in_archive(&open(archive, context)?, snapshot, name, out, context)
}

/// As [`attached`], of an open archive.
///
/// # Errors
/// As [`attached`].
pub fn attached_in_archive(
    archive: &Archive,
    snapshot: &Selector,
    name: &str,
    out: &mut dyn Write,
    context: &Context,
) -> Result<()> {
    let snapshot = archive.select(snapshot)?;
    let file = snapshot.manifest.attached.iter().find(|file| file.name == name);
    let file = file.ok_or_else(|| no_such_file(archive, &snapshot, name))?;
    let mut store = newest_store(archive)?;
    let failed = |error| Error::io("cannot write", name, error);
    attached::read(archive, &mut store, file, &context.cancel, &mut |bytes| {
        out.write_all(bytes).map_err(failed)
    })?;
    out.flush().map_err(failed)
}

/// A store over all that the archive holds.
pub(crate) fn newest_store(archive: &Archive) -> Result<Store> {
    Store::new(Arc::clone(&archive.home), Index::of(archive))
}

fn no_such_file(archive: &Archive, snapshot: &Snapshot, name: &str) -> Error {
    let id = snapshot.id;
    Error::new(ErrorKind::NotFound, format!("snapshot {id} has no attached file {name:?}"))
        .on(archive.label())
        .hint("`voltar show` names the files a snapshot has")
}

/// The log as it lies.
///
/// # Errors
/// Those of opening and reading; damage is in the records.
pub fn log(archive: &Path, context: &Context) -> Result<InspectReport> {
    log_archive(&open(archive, context)?, context)
}

/// As [`log`], of an open archive.
///
/// # Errors
/// As [`log`].
pub fn log_archive(archive: &Archive, context: &Context) -> Result<InspectReport> {
    let file_len = archive
        .home
        .len()
        .map_err(|error| Error::io("cannot ask the length of", archive.label(), error))?;
    let mut records = vec![header_record(archive)];
    for link in links(archive)? {
        let (start, end) = (LogOffset(link.log_start), LogOffset(link.range.start));
        for span in spans(&*archive.home, archive.id, start, end)? {
            context.cancel.check()?;
            records.push(span_record(archive, &span));
        }
        records.push(commit_record(archive, &link));
    }
    let end = archive.end().0;
    let uncommitted_bytes = file_len.saturating_sub(end);
    let lost = archive.lost_commit();
    if uncommitted_bytes > 0 {
        records.push(tail_record(end, uncommitted_bytes, lost.is_some()));
    }
    records.extend(lost.map(|(at, error)| lost_record(at, &error)));
    let header = archive.header.as_ref().ok();
    let features = header.map(|header| feature_names(header.incompatible, header.compatible));
    Ok(InspectReport {
        archive: archive.label().to_owned(),
        file_len,
        archive_id: archive.id.to_hex(),
        format_version: header.map_or(FORMAT_VERSION, |header| header.version),
        features: features.unwrap_or_default(),
        created: header.map_or_else(String::new, |header| rfc3339(header.created_ns)),
        records,
        uncommitted_bytes,
    })
}

fn record(kind: &str, offset: u64, length: u64) -> InspectRecord {
    InspectRecord {
        kind: kind.to_owned(),
        offset,
        length,
        sequence: 0,
        items: 0,
        note: String::new(),
        error: None,
    }
}

fn header_record(archive: &Archive) -> InspectRecord {
    let base = record("header", 0, BLOCK_LEN as u64);
    match &archive.header {
        Ok(header) => {
            let note = format!("archive {}, made {}", archive.id, rfc3339(header.created_ns));
            InspectRecord { note, ..base }
        }
        Err(error) => InspectRecord { error: Some(error.to_string()), ..base },
    }
}

fn tail_record(end: u64, length: u64, is_behind_loss: bool) -> InspectRecord {
    let note = match is_behind_loss {
        false => {
            "left by an unfinished backup, part of no snapshot; the next backup takes over what \
             is sealed and writes over the rest"
        }
        true => "behind the last commit that can be read; no backup writes here",
    };
    InspectRecord { note: note.to_owned(), ..record("tail", end, length) }
}

/// The commit in the tail that was lost, or that may have been.
fn lost_record(at: LogOffset, error: &FormatError) -> InspectRecord {
    let error = Some(error.to_string());
    InspectRecord { error, ..record("commit", at.0, BLOCK_LEN as u64) }
}

fn span_record(archive: &Archive, span: &Span) -> InspectRecord {
    let start = LogOffset(span.range.start);
    let len = (BLOCK_LEN as u64).min(span.range.end - span.range.start);
    let first = match read_exact(&*archive.home, start, len as usize) {
        Ok(first) => first,
        Err(error) => {
            let kind = span.footer.as_ref().map_or("unknown", |(_, kind)| kind.name());
            let base = record(kind, span.range.start, span.range.end - span.range.start);
            return InspectRecord { error: Some(chain_words(&error)), ..base };
        }
    };
    let head = RecordHead::decode_at(&first, start, Some(archive.id));
    let kind = match (&head, &span.footer) {
        (_, Ok((_, kind))) | (Ok((_, kind)), Err(_)) => kind.name(),
        (Err(_), Err(_)) => "unknown",
    };
    let base = record(kind, span.range.start, span.range.end - span.range.start);
    match (&head, &span.footer) {
        (Ok((head, _)), Ok((footer, kind))) => {
            let (items, note, error) = contents(*kind, head, footer, &first);
            InspectRecord { sequence: head.sequence, items, note, error, ..base }
        }
        (Err(error), _) | (_, Err(error)) => {
            let sequence = head.as_ref().map_or(0, |(head, _)| head.sequence);
            InspectRecord { sequence, error: Some(error.to_string()), ..base }
        }
    }
}

/// Items, note and error of a record with a whole head and a whole footer.
fn contents(
    kind: RecordKind,
    head: &RecordHead,
    footer: &Footer,
    first: &[u8],
) -> (u64, String, Option<String>) {
    if kind == RecordKind::Data {
        let frames = u64::from(footer.frame_count);
        let items = count(footer.chunk_count.into(), "item");
        return (frames, format!("{items} in {}", count(frames, "frame")), None);
    }
    if kind == RecordKind::Other {
        return (0, "of a kind this version passes over".into(), None);
    }
    match check_head_block(first, head) {
        Ok(head) => {
            let entries = counted(head.entry_count, "entry", "entries");
            let note = format!("{entries} in {}", count(head.buckets, "bucket"));
            (head.entry_count, note, None)
        }
        Err(error) => (0, String::new(), Some(error.to_string())),
    }
}

fn commit_record(archive: &Archive, link: &Link) -> InspectRecord {
    let base = record("commit", link.range.start, link.range.end - link.range.start);
    match link.read(archive) {
        Ok(commit) => InspectRecord {
            sequence: commit.sequence,
            items: commit.runs.len() as u64,
            note: commit_words(archive, &commit),
            error: second_copy_error(archive, &commit),
            ..base
        },
        Err(error) => InspectRecord { error: Some(chain_words(&error)), ..base },
    }
}

fn commit_words(archive: &Archive, commit: &Commit) -> String {
    let number = commit.head.number;
    let records = count(commit.head.segment_count.into(), "record");
    let runs = count(commit.runs.len() as u64, "index run");
    let base = format!("commit {number}, {records}, {runs}");
    match archive.snapshot_of(commit.clone()) {
        Ok(Some(snapshot)) => {
            let time = rfc3339(snapshot.manifest.time_ns);
            let volumes = snapshot.manifest.volumes.len() as u64;
            format!("{base}; snapshot {} of {time}, {}", snapshot.id, count(volumes, "volume"))
        }
        Ok(None) => format!("{base}; no snapshot"),
        Err(error) => format!("{base}; {}", chain_words(&error)),
    }
}

/// What is wrong with the copies of a commit of which at least one is whole.
fn second_copy_error(archive: &Archive, commit: &Commit) -> Option<String> {
    let copies = [("first", commit.offset), ("second", LogOffset(commit.offset.0 + commit.len))];
    copies.into_iter().find_map(|(which, at)| {
        let error = copy_error(archive, commit, at)?;
        Some(format!("its {which} copy: {error}"))
    })
}

/// What is wrong with the copy of `commit` at `at`.
fn copy_error(archive: &Archive, commit: &Commit, at: LogOffset) -> Option<String> {
    let bytes = match read_exact(&*archive.home, at, commit.len as usize) {
        Ok(bytes) => bytes,
        Err(error) => return Some(chain_words(&error)),
    };
    match Commit::decode_at(&bytes, at, Some(archive.id)) {
        Ok(copy) if copy == *commit => None,
        Ok(_) => {
            let structure = voltar_format::Structure::Commit;
            let problem = "the copies differ";
            Some(FormatError::new(structure, "F-045", problem).at(at).to_string())
        }
        Err(error) => Some(format_words(archive, error)),
    }
}

fn format_words(archive: &Archive, error: FormatError) -> String {
    chain_words(&format_error(archive.label(), error))
}

/// An error's message and causes in one line, without what it is about.
pub(crate) fn chain_words(error: &Error) -> String {
    followed_by_causes(error.message().to_owned(), error)
}

const NS_PER_S: i64 = 1_000_000_000;
const S_PER_DAY: i64 = 86_400;

/// A time in nanoseconds since 1970-01-01 UTC as RFC 3339, to the second.
pub fn rfc3339(time_ns: i64) -> String {
    let seconds = time_ns.div_euclid(NS_PER_S);
    let (year, month, day) = civil_from_days(seconds.div_euclid(S_PER_DAY));
    let second = seconds.rem_euclid(S_PER_DAY);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

/// Year, month and day of a number of days since 1970-01-01, in the proleptic Gregorian calendar.
///
/// Counts in eras of 400 years that begin on 1 March, so that the leap day is a year's last.
fn civil_from_days(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_read_as_rfc_3339() {
        let at = |seconds: i64| rfc3339(seconds * NS_PER_S);
        assert_eq!(at(0), "1970-01-01T00:00:00Z");
        assert_eq!(at(-1), "1969-12-31T23:59:59Z");
        assert_eq!(at(951_782_399), "2000-02-28T23:59:59Z");
        assert_eq!(at(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(at(4_107_542_400), "2100-03-01T00:00:00Z");
        assert_eq!(at(1_795_219_200), "2026-11-21T00:00:00Z");
        assert_eq!(rfc3339(i64::MAX), "2262-04-11T23:47:16Z");
        assert_eq!(rfc3339(i64::MIN), "1677-09-21T00:12:43Z");
        assert_eq!(rfc3339(999_999_999), "1970-01-01T00:00:00Z");
    }

    #[test]
    fn days_of_four_centuries_follow_one_another() {
        let mut expected = (1970, 1, 1);
        for days in 0..146_097 {
            assert_eq!(civil_from_days(days), expected);
            expected = day_after(expected);
        }
    }

    fn day_after((year, month, day): (i64, i64, i64)) -> (i64, i64, i64) {
        let is_leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
        let last = match month {
            2 => 28 + i64::from(is_leap),
            4 | 6 | 9 | 11 => 30,
            _ => 31,
        };
        match (month, day == last) {
            (12, true) => (year + 1, 1, 1),
            (_, true) => (year, month + 1, 1),
            _ => (year, month, day + 1),
        }
    }
}
