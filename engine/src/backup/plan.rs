//! What to read: sources, parents, and which parts of which volume.

use std::collections::BTreeSet;
use std::fs::File;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use voltar_format::header::Header;
use voltar_format::limits::{ATTACHED_LEN_MAX, BLOCK_LEN, CHUNK_LEN_DEFAULT};
use voltar_format::manifest::{Volume, is_name};
use voltar_format::map::Shape;
use voltar_format::walk::{Cursor, common_chunks};

use crate::archive::manifest::now_ns;
use crate::archive::open::{Archive, Shelf, look};
use crate::archive::resume::settle;
use crate::archive::session::new_header;
use crate::archive::snapshots::Snapshot;
use crate::archive::{Home, format_error};
use crate::device::Device;
use crate::device::file::FileIdentity;
use crate::device::loops::share_bytes;
use crate::device::open::{
    lock, lock_archive, open_archive_stdout, open_archive_writer, sync_directory,
};
use crate::error::{Error, ErrorKind, Result};
use crate::options::{ArchiveHome, BackupRequest, Changes, Context, Dedup, ParentChoice};
use crate::source::{Change, ChangeSource, ChangedExtent, Degraded, Proof, View, check_coverage};

/// Checks what can be known to be wrong before anything is opened, made or changed.
///
/// # Errors
/// Names the volume or the file.
pub fn check_request(request: &BackupRequest) -> Result<()> {
    check_names(request)?;
    check_attached(request)
}

fn check_names(request: &BackupRequest) -> Result<()> {
    let invalid = |message: String| Error::new(ErrorKind::InvalidRequest, message);
    if request.sources.is_empty() {
        return Err(invalid("there is nothing to back up".into()));
    }
    let mut seen = BTreeSet::new();
    for source in &request.sources {
        if !is_name(&source.name) {
            return Err(invalid(format!("volume name {:?}: 1 to 255 bytes", source.name)));
        }
        if !seen.insert(&source.name) {
            return Err(invalid(format!("two volumes are named {:?}", source.name))
                .hint("name them: NAME=PATH"));
        }
    }
    Ok(())
}

/// Where the snapshot goes.
pub enum Target {
    /// An archive in a file (or any other home), locked for us.
    Archive(Box<Archive>),
    /// A pipe, or whatever else standard output is.
    Stdout(File),
    /// A dry run on an archive that does not exist yet.
    Nowhere,
}

/// Sees that the files to attach can be read: a slip shows now, not after hours of reading.
fn check_attached(request: &BackupRequest) -> Result<()> {
    for (_, path) in &request.attach {
        let failed =
            |error| Error::io("cannot read the file to attach", path.display().to_string(), error);
        let metadata = std::fs::metadata(path).map_err(failed)?;
        let kind = metadata.file_type();
        if metadata.len() > ATTACHED_LEN_MAX && kind.is_file() {
            return Err(attached_too_large(path));
        }
        if kind.is_dir() {
            return Err(Error::new(ErrorKind::InvalidRequest, "a directory cannot be attached")
                .on(path.display().to_string())
                .hint("name the files in it, each with `--attach`"));
        }
        // A pipe can be opened once only.
        if kind.is_file() {
            File::open(path).map_err(failed)?;
        }
    }
    Ok(())
}

/// An attached file is longer than [`ATTACHED_LEN_MAX`].
pub fn attached_too_large(path: &Path) -> Error {
    Error::new(ErrorKind::InvalidRequest, "the file to attach is too large")
        .on(path.display().to_string())
        .hint("attached files are small, 64 MiB at most; back it up as a volume instead")
}

/// Opens or creates the archive and takes its lock.
///
/// # Errors
/// `Busy` if another writer holds it; `NotAnArchive` and the like for what is there.
pub fn open_target(
    request: &BackupRequest,
    sources: &[FileIdentity],
    context: &Context,
) -> Result<Target> {
    context.cancel.check()?;
    let ArchiveHome::File(path) = &request.archive else {
        return match request.dry_run {
            true => Ok(Target::Nowhere),
            false => stdout(sources).map(Target::Stdout),
        };
    };
    if request.dry_run && !path.exists() {
        return Ok(Target::Nowhere);
    }
    let device = open_archive_writer(path)?;
    refuse_source(device.identity(), sources, device.label())?;
    lock_archive(&device)?;
    open_home(Arc::new(device), request.dry_run, || sync_directory(path))
}

/// Standard output, which the shell may have opened on a source.
fn stdout(sources: &[FileIdentity]) -> Result<File> {
    let file = open_archive_stdout()?;
    let label = "standard output";
    let identity =
        FileIdentity::of(&file).map_err(|error| Error::io("cannot ask", label, error))?;
    refuse_source(&identity, sources, label)?;
    let metadata = file.metadata().map_err(|error| Error::io("cannot ask", label, error))?;
    if metadata.is_file() {
        lock(&file, label)?;
    }
    // An archive starts with the file's first byte: behind something else nobody would find it.
    if metadata.is_file() && metadata.len() > 0 {
        return Err(Error::new(ErrorKind::InvalidRequest, "the file holds something already")
            .on(label)
            .meaning("nothing was written")
            .hint(
                "to add to an archive, name it instead of `-`; for a new one, use another file",
            ));
    }
    Ok(file)
}

/// Refuses an archive that would overwrite what it is made from.
fn refuse_source(archive: &FileIdentity, sources: &[FileIdentity], label: &str) -> Result<()> {
    match sources.iter().any(|source| share_bytes(source, archive)) {
        true => Err(Error::new(ErrorKind::InvalidRequest, "the archive is the source itself")
            .on(label)
            .meaning("nothing was written")
            .hint("choose another place for the archive")),
        false => Ok(()),
    }
}

/// Opens the archive in `home`, or makes it one: before the header is written `keep_name` makes the
/// file's name durable, whoever created it (W-03).
///
/// # Errors
/// `NotAnArchive` and the like; of writing the header.
pub fn open_home(
    home: Arc<dyn Home>,
    dry_run: bool,
    keep_name: impl FnOnce() -> Result<()>,
) -> Result<Target> {
    settle(&home)?;
    if look(&*home)? != Shelf::Blank {
        let archive = Archive::open(home)?;
        // W-06: readers do without the header, a writer has nothing to build on.
        return match &archive.header {
            Ok(_) => Ok(Target::Archive(Box::new(archive))),
            Err(error) => Err(format_error(archive.label(), error.clone())),
        };
    }
    if dry_run {
        return Ok(Target::Nowhere);
    }
    keep_name()?;
    let header = new_header(now_ns());
    write_header(&*home, &header)?;
    let id = header.archive_id;
    let archive = Archive { home, id, header: Ok(header), last: None, lost: None, unread: None };
    Ok(Target::Archive(Box::new(archive)))
}

fn write_header(home: &dyn Home, header: &Header) -> Result<()> {
    let failed = |error| Error::io("cannot begin the archive", home.label(), error);
    home.write_at(&header.encode(), 0).map_err(failed)?;
    home.set_len(BLOCK_LEN as u64).map_err(failed)?;
    home.sync().map_err(failed)
}

/// What a volume is compared with.
#[derive(Clone, Debug)]
pub struct Parent {
    /// The snapshot's id, in hexadecimal.
    pub snapshot: String,
    /// The volume as it was.
    pub volume: Volume,
}

impl Parent {
    /// At the start of the volume's map.
    ///
    /// # Errors
    /// `Damaged` if the volume has no shape.
    pub fn cursor(&self) -> Result<Cursor> {
        Ok(Cursor::new(self.shape()?, self.volume.root))
    }

    /// The shape of the volume as it was.
    ///
    /// # Errors
    /// `Damaged` if it has none.
    pub fn shape(&self) -> Result<Shape> {
        self.volume.shape().map_err(|error| {
            Error::new(ErrorKind::Damaged, "the parent's volume has no shape").because(error)
        })
    }
}

/// Finds the parents of all views.
///
/// # Errors
/// If a named snapshot does not exist or lacks a volume.
pub fn parents(
    archive: &Archive,
    choice: &ParentChoice,
    views: &[View],
    context: &Context,
) -> Result<Vec<Option<Parent>>> {
    match choice {
        ParentChoice::None => Ok(views.iter().map(|_| None).collect()),
        ParentChoice::Auto => Ok(newest_of_each(archive, views, context)),
        ParentChoice::Snapshot(selector) => {
            let snapshot = archive.select(selector)?;
            views.iter().map(|view| named_parent(archive, &snapshot, view).map(Some)).collect()
        }
    }
}

fn named_parent(archive: &Archive, snapshot: &Snapshot, view: &View) -> Result<Parent> {
    let volume = snapshot.manifest.volume(&view.name).ok_or_else(|| {
        let message = format!("snapshot {} holds no volume {:?}", snapshot.id, view.name);
        Error::new(ErrorKind::NotFound, message)
            .on(archive.label())
            .hint("choose another parent, or use --parent auto")
    })?;
    Ok(Parent { snapshot: snapshot.id.to_hex(), volume: volume.clone() })
}

fn newest_of_each(archive: &Archive, views: &[View], context: &Context) -> Vec<Option<Parent>> {
    let mut parents: Vec<Option<Parent>> = views.iter().map(|_| None).collect();
    for snapshot in archive.snapshots() {
        let snapshot = match snapshot {
            Ok(snapshot) => snapshot,
            Err(error) => {
                // What is damaged there does not keep today's backup from being made.
                context.observer.notice(&format!("older snapshots cannot be read: {error}"));
                break;
            }
        };
        for (parent, view) in parents.iter_mut().zip(views) {
            if let (None, Some(volume)) = (&parent, snapshot.manifest.volume(&view.name)) {
                let id = snapshot.id.to_hex();
                *parent = Some(Parent { snapshot: id, volume: volume.clone() });
            }
        }
        if parents.iter().all(Option::is_some) {
            break;
        }
    }
    parents
}

/// What is to be done with a range of chunks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// The chunks.
    pub chunks: Range<u64>,
    /// What to do.
    pub action: Action,
}

/// What to do with chunks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Read them.
    Read,
    /// They are zero.
    Zero,
    /// They are as in the parent.
    Keep,
}

/// How a volume is backed up.
#[derive(Clone, Debug)]
pub struct VolumePlan {
    /// Its shape.
    pub shape: Shape,
    /// What it is compared with: same chunk length, readable shape.
    pub parent: Option<Parent>,
    /// Gapless steps from the first chunk to the last, if a change source said so; `None`: read
    /// everything that is no hole.
    pub steps: Option<Vec<Step>>,
    /// Whether what the device calls a hole is taken for one: not where it is a liar who says so.
    pub trusts_holes: bool,
    /// Whether the change source is to be asked for a stream when the volume's turn comes.
    pub streams: bool,
    /// Who told what changed.
    pub change_source: String,
    /// The proof for the next backup.
    pub proof: Proof,
    /// Why not better.
    pub degraded: Option<String>,
}

/// Plans one volume.
///
/// # Errors
/// If size or chunk length are out of range, or a change source that was insisted on cannot serve.
pub fn volume(request: &BackupRequest, view: &View, parent: Option<Parent>) -> Result<VolumePlan> {
    let parent_chunk_len = parent.as_ref().map(|parent| parent.volume.chunk_size);
    let chunk_len = request.chunk_len.or(parent_chunk_len).unwrap_or(CHUNK_LEN_DEFAULT);
    let shape = Shape::new(view.size, chunk_len).ok_or_else(|| {
        let message = format!("{} bytes in chunks of {chunk_len} cannot be a volume", view.size);
        Error::new(ErrorKind::InvalidRequest, message)
            .on(&view.description)
            .hint("a volume has 1 byte to 1 EiB, a chunk is a power of two from 4K to 1M")
    })?;
    let kept_parent = parent.filter(|parent| parent.volume.chunk_size == chunk_len);
    let degraded = match parent_chunk_len {
        Some(other) if other != chunk_len => {
            Some(format!("the parent's chunk length is {other}, not {chunk_len}"))
        }
        _ => view.degraded.clone(),
    };
    let mut plan = VolumePlan {
        shape,
        parent: kept_parent,
        steps: None,
        trusts_holes: true,
        streams: false,
        change_source: "none".into(),
        proof: Proof::new(),
        degraded,
    };
    ask_change_source(request, view, &mut plan)?;
    Ok(plan)
}

/// Refuses volumes that do not have the change source that was insisted on.
///
/// # Errors
/// `Unsupported`, naming the volume.
pub fn check_kinds(request: &BackupRequest, views: &[View]) -> Result<()> {
    let Changes::Kind(wanted) = &request.changes else { return Ok(()) };
    for view in views {
        let why = match &view.change_source {
            Some(source) if source.kind() == wanted => continue,
            Some(source) => format!("its change source is {:?}", source.kind()),
            None => view.degraded.clone().unwrap_or("nobody knows what changes in it".into()),
        };
        let message = format!("it has no change source of kind {wanted:?}");
        return Err(Error::new(ErrorKind::Unsupported, message)
            .on(&view.description)
            .because(why)
            .hint("use --changes auto"));
    }
    Ok(())
}

fn ask_change_source(request: &BackupRequest, view: &View, plan: &mut VolumePlan) -> Result<()> {
    let Some(source) = &view.change_source else { return Ok(()) };
    // Whoever asks nobody today leaves a base all the same.
    plan.proof = source.proof();
    ask_since_parent(request, view, &**source, plan)?;
    if plan.steps.is_none() && !plan.streams {
        ask_what_is_mapped(view, &**source, plan);
    }
    Ok(())
}

fn ask_since_parent(
    request: &BackupRequest,
    view: &View,
    source: &dyn ChangeSource,
    plan: &mut VolumePlan,
) -> Result<()> {
    let insisted = match &request.changes {
        Changes::Full => return Ok(()),
        Changes::Auto => false,
        Changes::Kind(_) => true,
    };
    if request.dedup == Dedup::Off {
        let message = "a change source spares reading what is to be stored again";
        return match insisted {
            true => Err(Error::new(ErrorKind::InvalidRequest, message)
                .on(&view.description)
                .hint("with deduplication off, use --changes auto or full")),
            false => Ok(()),
        };
    }
    if source.streams() {
        plan.streams = true;
        return Ok(());
    }
    let Some(parent) = plan.parent.clone() else { return Ok(()) };
    match ask_for_changes(source, view, &parent, &plan.shape)? {
        Ok(steps) => {
            plan.steps = Some(steps);
            plan.change_source = source.kind().into();
            Ok(())
        }
        Err(Degraded(why)) => plan.degrade(insisted, view, source, why),
    }
}

/// Spares reading what holds no data, if the source knows. Like all that it says this is audited.
fn ask_what_is_mapped(view: &View, source: &dyn ChangeSource, plan: &mut VolumePlan) {
    let said = source.mapped().and_then(|mapped| {
        mapped.map(|extents| check_coverage(&extents, view.size).map(|()| extents)).transpose()
    });
    match said {
        Ok(mapped) => plan.steps = mapped.map(|extents| steps_of(&extents, &plan.shape, &[])),
        // The first reason is why it came to this.
        Err(Degraded(why)) => {
            plan.degraded.get_or_insert_with(|| format!("{}: {why}", source.kind()));
        }
    }
}

/// What the source says of the changes since the parent, as steps.
fn ask_for_changes(
    source: &dyn ChangeSource,
    view: &View,
    parent: &Parent,
    shape: &Shape,
) -> Result<Result<Vec<Step>, Degraded>> {
    let said = source
        .changes(&parent.volume.proof, parent.volume.size)
        .and_then(|extents| check_coverage(&extents, view.size).map(|()| extents));
    Ok(match said {
        Ok(extents) => Ok(steps_of(&extents, shape, &unknown_in_parent(parent, shape)?)),
        Err(degraded) => Err(degraded),
    })
}

/// What was said of byte ranges, as steps; see [`steps`].
pub fn steps_of(extents: &[ChangedExtent], shape: &Shape, unknown: &[Range<u64>]) -> Vec<Step> {
    let changes = extents.iter().map(|extent| (extent.range.clone(), extent.change));
    steps(shape, changes, unknown)
}

impl VolumePlan {
    /// Notes that the change source does not serve, unless it was insisted on.
    ///
    /// # Errors
    /// `Unsupported` if it was.
    pub fn degrade(
        &mut self,
        insisted: bool,
        view: &View,
        source: &dyn ChangeSource,
        why: String,
    ) -> Result<()> {
        if insisted {
            return Err(Error::new(ErrorKind::Unsupported, why)
                .on(&view.description)
                .hint("use --changes auto to read everything instead"));
        }
        self.degraded = Some(format!("{}: {why}", source.kind()));
        Ok(())
    }
}

/// Byte ranges of which nothing can be kept, whatever the source says: those the parent could not
/// read, and everything from the last chunk that both sizes share.
///
/// # Errors
/// `Damaged` if the parent's volume has no shape.
pub fn unknown_in_parent(parent: &Parent, shape: &Shape) -> Result<Vec<Range<u64>>> {
    let old = parent.shape()?;
    let common = common_chunks(&old, shape).saturating_mul(u64::from(shape.chunk_len()));
    let unreadable = parent.volume.unreadable.iter();
    let mut ranges: Vec<Range<u64>> =
        unreadable.map(|(offset, len)| *offset..offset.saturating_add(*len)).collect();
    if common < shape.size() {
        ranges.push(common..shape.size());
    }
    Ok(ranges)
}

/// Rounds byte ranges to chunks: a chunk is kept only if all of it is unchanged, zero only if all
/// of it is zero, and read otherwise. What was to be kept of `unknown` ranges is read.
fn steps(
    shape: &Shape,
    changes: impl Iterator<Item = (Range<u64>, Change)>,
    unknown: &[Range<u64>],
) -> Vec<Step> {
    let len = u64::from(shape.chunk_len());
    let mut steps: Vec<Step> = Vec::new();
    let mut next = 0;
    for (range, change) in changes {
        let whole_start = range.start.div_ceil(len).max(next);
        let whole_end =
            if range.end == shape.size() { shape.chunk_count() } else { range.end / len };
        let action = match change {
            Change::Changed => Action::Read,
            Change::Unchanged => Action::Keep,
            Change::Zero => Action::Zero,
        };
        if whole_start < whole_end {
            push_step(&mut steps, next..whole_start, Action::Read);
            push_step(&mut steps, whole_start..whole_end, action);
            next = whole_end;
        }
    }
    push_step(&mut steps, next..shape.chunk_count(), Action::Read);
    for range in unknown {
        let chunks = range.start / len..range.end.div_ceil(len).min(shape.chunk_count());
        steps = read_instead(steps, &chunks, |action| action == Action::Keep);
    }
    steps
}

fn push_step(steps: &mut Vec<Step>, chunks: Range<u64>, action: Action) {
    if chunks.is_empty() {
        return;
    }
    match steps.last_mut() {
        Some(last) if last.action == action => last.chunks.end = chunks.end,
        _ => steps.push(Step { chunks, action }),
    }
}

/// Turns `chunks` into chunks to be read.
pub fn with_read(steps: Vec<Step>, chunks: &Range<u64>) -> Vec<Step> {
    read_instead(steps, chunks, |action| action != Action::Read)
}

/// Turns those of `chunks` for which something else was planned into chunks to be read.
fn read_instead(steps: Vec<Step>, chunks: &Range<u64>, of: impl Fn(Action) -> bool) -> Vec<Step> {
    let mut changed = Vec::with_capacity(steps.len() + 2);
    for Step { chunks: step, action } in steps {
        let cut =
            step.start.max(chunks.start).min(step.end)..step.end.min(chunks.end).max(step.start);
        if cut.is_empty() || !of(action) {
            push_step(&mut changed, step, action);
            continue;
        }
        push_step(&mut changed, step.start..cut.start, action);
        push_step(&mut changed, cut.clone(), Action::Read);
        push_step(&mut changed, cut.end..step.end, action);
    }
    changed
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::memory::MemoryDevice;

    #[test]
    fn the_name_is_made_durable_before_the_header_is_written() {
        let home = MemoryDevice::new(0).growing();
        let named = std::cell::Cell::new(0);
        let open = |dry_run| {
            let keep_name = || {
                named.set(named.get() + 1);
                match home.bytes().is_empty() {
                    true => Ok(()),
                    false => Err(Error::new(ErrorKind::Internal, "too late")),
                }
            };
            open_home(Arc::new(home.clone()), dry_run, keep_name).map(drop)
        };
        open(true).unwrap();
        assert_eq!(named.get(), 0);
        open(false).unwrap();
        assert_eq!(named.get(), 1);
        open(false).unwrap();
        assert_eq!(named.get(), 1, "an archive has its name");
    }

    fn plan(changes: &[(Range<u64>, Change)], unknown: &[Range<u64>]) -> Vec<(u64, u64, Action)> {
        let shape = Shape::new(10 * 4096 - 1, 4096).unwrap();
        steps(&shape, changes.iter().cloned(), unknown)
            .into_iter()
            .map(|step| (step.chunks.start, step.chunks.end, step.action))
            .collect()
    }

    #[test]
    fn chunks_covered_only_in_part_are_read() {
        use Action::*;
        let size = 10 * 4096 - 1;
        assert_eq!(plan(&[(0..size, Change::Unchanged)], &[]), [(0, 10, Keep)]);
        assert_eq!(
            plan(&[(0..100, Change::Changed), (100..size, Change::Unchanged)], &[]),
            [(0, 1, Read), (1, 10, Keep)]
        );
        assert_eq!(
            plan(
                &[
                    (0..5000, Change::Unchanged),
                    (5000..5001, Change::Changed),
                    (5001..size, Change::Zero)
                ],
                &[]
            ),
            [(0, 1, Keep), (1, 2, Read), (2, 10, Zero)]
        );
        // Two different kinds inside one chunk: neither holds for the chunk.
        assert_eq!(
            plan(&[(0..6000, Change::Unchanged), (6000..size, Change::Zero)], &[]),
            [(0, 1, Keep), (1, 2, Read), (2, 10, Zero)]
        );
    }

    #[test]
    fn what_the_parent_does_not_know_is_read() {
        use Action::*;
        let size = 10 * 4096 - 1;
        let all = [(0..size, Change::Unchanged)];
        assert_eq!(
            plan(&all, &[4096..4097, 9 * 4096..size]),
            [(0, 1, Keep), (1, 2, Read), (2, 9, Keep), (9, 10, Read)]
        );
        assert_eq!(plan(&all, std::slice::from_ref(&(0..size))), [(0, 10, Read)]);
        // What is zero now is so whatever the parent knows.
        let grown = [(0..8192, Change::Unchanged), (8192..size, Change::Zero)];
        let behind = 4096..size;
        assert_eq!(plan(&grown, &[behind]), [(0, 1, Keep), (1, 2, Read), (2, 10, Zero)]);
    }
}
