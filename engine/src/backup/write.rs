//! The consumer: appends frames, builds maps, and commits.

use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use voltar_format::checksum::chunk_id;
use voltar_format::commit::Commit;
use voltar_format::frame::ItemKind;
use voltar_format::limits::{ATTACHED_LEN_MAX, FRAME_RAW_LEN_MAX};
use voltar_format::manifest::{Attached, Manifest, Note, NoteVolume, Volume};
use voltar_format::map::{BuiltNode, Entry, MapBuilder, Shape, span_of_entry};
use voltar_format::walk::Cursor;
use voltar_format::{Id, LogOffset};

use super::Keeper;
use super::audit::Audit;
use super::plan::{self, Action, Parent, Step, Target, VolumePlan, attached_too_large};
use super::read::{self, READ_LEN};
use super::stream::{self, Streamed};
use super::work::{Counts, NewFrame, Outcome, Payload, Shared, Vectors, Work};
use crate::archive::index::{Fresh, Index, Known};
use crate::archive::items::NODES_PER_FRAME;
use crate::archive::log::LogWriter;
use crate::archive::manifest::{host, merged, now_ns, program};
use crate::archive::open::{Archive, length};
use crate::archive::resume::{adopt, check_foundation, mend_last_commit};
use crate::archive::session::{Session, WRITE_DEPTH};
use crate::archive::store::Store;
use crate::codec::{Encoder, Pace};
use crate::error::{Error, ErrorKind, Failed, Result};
use crate::io::buffer::BufferPool;
use crate::latency::LatencyGuard;
use crate::observe::Phase;
use crate::options::{ArchiveHome, BackupRequest, Changes, Context, Dedup, IoEngine, ParentChoice};
use crate::pipeline::{self, Plan};
use crate::report::{BackupReport, ByteRange, VolumeBackup};
use crate::source::{Change, ChangeStream, Degraded, View};
use crate::words::counted;

/// Runs the backup.
///
/// # Errors
/// See [`super::run`].
pub fn run(
    request: &BackupRequest,
    views: &[View],
    keeper: &dyn Keeper,
    target: &Target,
    engine: IoEngine,
    context: &Context,
    started: Instant,
) -> Result<BackupReport, Failed<BackupReport>> {
    let time_ns = now_ns();
    let mut backup = Backup::begin(request, views, target, engine, context, time_ns)?;
    backup.latency = keeper.latency();
    let written = backup.write_all(views, &keeper.attached());
    let written = written.and_then(|manifest| keeper.check().map(|()| manifest));
    let (outcome, mut report) = match written {
        Ok(manifest) => backup.finish(&manifest),
        Err(error) => (Err(error), backup.give_up()),
    };
    report.elapsed_s = started.elapsed().as_secs_f64();
    report.latency = keeper.latency().map(LatencyGuard::report);
    Failed::unless(outcome, report)
}

/// What an audit found.
enum Verdict {
    /// Nothing that speaks against it; these chunks could not be read.
    Believed(Vec<Range<u64>>),
    /// A lie, or too little to tell.
    Refuted,
}

/// A backup under way.
struct Backup<'a> {
    request: &'a BackupRequest,
    context: &'a Context,
    engine: IoEngine,
    archive: Option<Archive>,
    index: Option<Index>,
    known: Known,
    session: Session,
    plans: Vec<VolumePlan>,
    pool: BufferPool,
    sizes: Sizes,
    report: BackupReport,
    time_ns: i64,
    /// Bytes the audit read of the volume at hand.
    audited_bytes: u64,
    /// Why the map of its parent cannot be read, once that is found.
    parent_lost: OnceLock<String>,
    /// Who spares those who use the source, if there may be any.
    latency: Option<&'a LatencyGuard>,
    /// Whether it was the archive that could not be written.
    sink_failed: bool,
}

/// How much of what, within the memory bound.
#[derive(Clone, Copy)]
struct Sizes {
    workers: usize,
    items: usize,
    read_depth: u32,
}

impl Sizes {
    fn of(context: &Context) -> Sizes {
        let workers = context.worker_count();
        // An item costs a read buffer and an output vector; the session's table, the writer's
        // buffers and the compressors take their share of the bound, too.
        let room = (context.memory_bytes / 4 / (2 * READ_LEN)) as usize;
        let items = (workers * 8 + 16).clamp(8, 96).min(room.max(8));
        // Half of the items may be reads under way; the other half wait for workers, so that these
        // are never idle and the queue before them shows whether they are the bottleneck.
        Sizes { workers, items, read_depth: (items as u32 / 2).clamp(4, 32) }
    }
}

impl<'a> Backup<'a> {
    fn begin(
        request: &'a BackupRequest,
        views: &[View],
        target: &Target,
        engine: IoEngine,
        context: &'a Context,
        time_ns: i64,
    ) -> Result<Backup<'a>> {
        let archive = match target {
            Target::Archive(archive) => Some((**archive).clone()),
            Target::Stdout(_) | Target::Nowhere => None,
        };
        let parents = match &archive {
            Some(archive) => plan::parents(archive, &request.parent, views, context)?,
            None => views.iter().map(|_| None).collect(),
        };
        let plans = plan_volumes(request, views, parents.clone());
        // Who was interrupted while it was asked says nothing of a change source.
        context.cancel.check()?;
        let plans = plans?;
        check_limits(request, views, &plans, time_ns)?;
        let fresh = Arc::new(Fresh::default());
        let mut resumed_bytes = 0;
        let (session, index) = match &archive {
            None => (fresh_session(target, time_ns, &fresh)?, None),
            Some(archive) => {
                let (session, index, resumed) =
                    home_session(archive, &fresh, engine, context, request.dry_run)?;
                resumed_bytes = resumed;
                (session, Some(index))
            }
        };
        let known = Known::new(index.clone(), fresh);
        let known = match (request.dedup, &archive) {
            (Dedup::Off, Some(archive)) => known.since(archive.end()),
            _ => known,
        };
        let sizes = Sizes::of(context);
        // Buffers that are being written stay out until somebody appends again: with as many more
        // as there may be writes in flight, the reader never waits for those.
        let buffers = sizes.items + WRITE_DEPTH as usize;
        let pool = BufferPool::new(buffers, READ_LEN as usize)
            .map_err(|error| Error::io("cannot allocate", "read buffers", error))?;
        let parent = parents.iter().flatten().next().map(|parent| parent.snapshot.clone());
        let report = empty_report(request, parent, resumed_bytes);
        Ok(Backup {
            request,
            context,
            engine,
            archive,
            index,
            known,
            session,
            plans,
            pool,
            sizes,
            report,
            time_ns,
            audited_bytes: 0,
            parent_lost: OnceLock::new(),
            latency: None,
            sink_failed: false,
        })
    }

    /// Stores everything and returns the encoded manifest: whatever stops a backup but the commit
    /// itself stops it in here.
    fn write_all(&mut self, views: &[View], owned: &[(String, Vec<u8>)]) -> Result<Vec<u8>> {
        let total = views.iter().map(|view| view.size).sum();
        self.context.observer.phase(Phase::Read, Some(total));
        self.write_note(views)?;
        let mut volumes = Vec::new();
        for (number, view) in views.iter().enumerate() {
            volumes.push(self.write_volume(number, view)?);
        }
        let attached = self.write_attached(owned)?;
        let parent = self.parent_id();
        let manifest =
            Manifest { parent, ..manifest(self.request, self.time_ns, volumes, attached) };
        self.context.cancel.check()?;
        encode(&manifest)
    }

    fn parent_id(&self) -> Option<voltar_format::SnapshotId> {
        self.report.parent.as_deref().and_then(voltar_format::SnapshotId::from_hex)
    }

    /// Says in the log what the volumes of this session are.
    fn write_note(&mut self, views: &[View]) -> Result<()> {
        let bytes = note(views, &self.plans, self.time_ns)?;
        self.store_item(&bytes, ItemKind::Note, 0, 0).map(drop)
    }

    /// Stores one small item in a frame of its own, unless the archive holds it.
    fn store_item(&mut self, bytes: &[u8], kind: ItemKind, volume: u16, index: u64) -> Result<Id> {
        let id = chunk_id(bytes);
        if !self.known.is_new(&id)? {
            return Ok(id);
        }
        self.session
            .append_item(id, bytes, kind, volume, index)
            .inspect_err(|error| self.sink_failed |= ends_writing(error))?;
        Ok(id)
    }

    fn write_volume(&mut self, number: usize, view: &View) -> Result<Volume> {
        self.audited_bytes = 0;
        self.parent_lost = OnceLock::new();
        if let Some(writer) = self.write_stream(number, view)? {
            return self.end_volume(number, view, writer);
        }
        self.check_parent(number, view)?;
        // A fragmented volume has a million of them: they are held once, and go with the volume.
        let steps = self.plans[number].steps.take();
        let plan = VolumePlan { steps, ..self.plans[number].clone() };
        let mut writer = VolumeWriter::new(number as u16, &plan, self.store()?);
        self.pump(number, view, &plan, None, &mut writer)?;
        self.end_volume(number, view, writer)
    }

    /// Ends the volume's map and says what was done.
    fn end_volume(
        &mut self,
        number: usize,
        view: &View,
        mut writer: VolumeWriter,
    ) -> Result<Volume> {
        let mut plan = self.plans[number].clone();
        check_size(view)?;
        let known = self.known_nodes();
        let root = writer
            .finish(&mut self.session, &known)
            .inspect_err(|error| self.sink_failed |= ends_writing(error))?;
        if let Some(why) = self.parent_lost.take() {
            self.warn(format!("volume {:?}: {why}", view.name));
            plan.degraded = Some(why);
        }
        let unreadable = merged(std::mem::take(&mut writer.unreadable));
        self.report.volumes.push(volume_report(
            view,
            &plan,
            &root,
            &writer,
            &unreadable,
            self.audited_bytes,
        ));
        let unreadable = unreadable.iter().map(|range| (range.start, range.end - range.start));
        let (unreadable, new_bytes) = (unreadable.collect(), writer.counts.new);
        Ok(Volume { root, unreadable, new_bytes, ..volume_of(view, &plan) })
    }

    /// Backs the volume up from its change source's stream, if it has one: of what changed since
    /// the parent, or else of all that it holds. `None` if it is to be read from its device.
    fn write_stream(&mut self, number: usize, view: &View) -> Result<Option<VolumeWriter>> {
        let Some(source) = view.change_source.as_ref().filter(|_| self.plans[number].streams)
        else {
            return Ok(None);
        };
        let insisted = matches!(self.request.changes, Changes::Kind(_));
        let parent = self.plans[number].parent.clone();
        if let Some(parent) = parent.filter(|_| self.archive.is_some()) {
            match source.stream(Some((&parent.volume.proof, parent.volume.size))) {
                Ok(stream) => return self.write_streamed(number, view, stream, Some(&parent)),
                Err(Degraded(why)) => self.plans[number].degrade(insisted, view, &**source, why)?,
            }
        }
        match source.stream(None) {
            Ok(stream) => self.write_streamed(number, view, stream, None),
            Err(Degraded(why)) => {
                self.plans[number].degrade(insisted, view, &**source, why).map(|()| None)
            }
        }
    }

    /// Backs the volume up from a stream of changes since `base`, or of all that it holds; `None`
    /// if that was not to be believed.
    fn write_streamed(
        &mut self,
        number: usize,
        view: &View,
        stream: Box<dyn ChangeStream>,
        base: Option<&Parent>,
    ) -> Result<Option<VolumeWriter>> {
        let plan = self.plans[number].clone();
        let unknown = match base {
            Some(parent) => plan::unknown_in_parent(parent, &plan.shape)?,
            None => Vec::new(),
        };
        let (mut said, mut lost) = (OnceLock::new(), OnceLock::new());
        let gaps = if base.is_some() { Change::Unchanged } else { Change::Zero };
        let streamed = Streamed { stream, gaps, unknown: &unknown, said: &said, lost: &lost };
        let mut writer = VolumeWriter::new(number as u16, &plan, self.store()?);
        let pumped = self.pump(number, view, &plan, Some(streamed), &mut writer);
        let kind = view.change_source.as_ref().map_or("stream", |source| source.kind());
        match (pumped, lost.take()) {
            (Ok(()), _) => {}
            // Nothing more is to be written behind a write that failed.
            (Err(error), _) if self.sink_failed => return Err(error),
            (Err(_), Some(why)) => {
                // Who stops a stream makes no liar of it.
                self.context.cancel.check()?;
                self.distrust(number, format!("{kind}: {why}; everything was read"));
                return self.start_over(view);
            }
            (Err(error), None) => {
                self.lose_parent(number, error)?;
                return self.start_over(view);
            }
        }
        if base.is_some() {
            self.plans[number].change_source = kind.into();
        }
        let said = plan::steps_of(&said.take().unwrap_or_default(), &plan.shape, &unknown);
        match self.audit(number, view, &said) {
            Ok(Verdict::Believed(_)) => return Ok(Some(writer)),
            Ok(Verdict::Refuted) => {}
            Err(error) => self.lose_parent(number, error)?,
        }
        self.start_over(view)
    }

    /// Goes on without a parent whose map is damaged, if that is what happened and is borne.
    fn lose_parent(&mut self, number: usize, error: Error) -> Result<()> {
        if !error.is_damage() || !self.bears_lost_parent() || self.sink_failed {
            return Err(error);
        }
        // Only the first reason counts.
        let _ = self.parent_lost.set(read::why_lost(&error));
        let plan = &mut self.plans[number];
        (plan.parent, plan.steps, plan.change_source) = (None, None, "none".into());
        Ok(())
    }

    /// Before a volume is read from its first byte again.
    fn start_over(&self, view: &View) -> Result<Option<VolumeWriter>> {
        self.context.cancel.check()?;
        // Workers claimed chunks that never came to be stored.
        self.known.forget_claims();
        self.context.observer.phase(Phase::Read, Some(view.size));
        Ok(None)
    }

    /// A reader of the parent's map, if there is an archive.
    fn store(&self) -> Result<Option<Store>> {
        match (&self.archive, &self.index) {
            (Some(archive), Some(index)) => {
                Ok(Some(Store::new(Arc::clone(&archive.home), index.clone())?))
            }
            _ => Ok(None),
        }
    }

    /// Runs the pipeline over one volume.
    fn pump(
        &mut self,
        number: usize,
        view: &View,
        plan: &VolumePlan,
        streamed: Option<Streamed<'_>>,
        writer: &mut VolumeWriter,
    ) -> Result<()> {
        let Sizes { workers, items, read_depth } = self.sizes;
        let shared = Shared {
            known: self.known.clone(),
            pace: Pace::new(self.request.compression, workers, items),
            vectors: Vectors::new(items),
            volume: number as u16,
            chunk_len: plan.shape.chunk_len() as usize,
        };
        let source = read::Source {
            device: &*view.device,
            plan,
            pool: &self.pool,
            depth: read_depth,
            engine: self.engine,
            store: self.store()?,
            parent_lost: self.bears_lost_parent().then_some(&self.parent_lost),
            on_read_error: self.request.on_read_error,
            limit_bytes_per_s: self.context.limit_bytes_per_s,
            latency: self.latency,
            observer: &*self.context.observer,
            cancel: self.context.cancel.clone(),
        };
        let (known, anew, lost) = (self.known.clone(), self.known_anew(), &self.parent_lost);
        let session = &mut self.session;
        let (observer, sink_failed) = (&self.context.observer, &mut self.sink_failed);
        pipeline::run(
            Plan { workers, items },
            |feeder| match streamed {
                Some(streamed) => stream::produce(source, streamed, feeder),
                None => read::produce(source, feeder),
            },
            Encoder::new,
            |encoder, gauge, item| super::work::work(&shared, encoder, gauge, item),
            |_, work| {
                let before = writer.position_bytes();
                let known = if lost.get().is_some() { &anew } else { &known };
                writer
                    .take(session, known, &shared.vectors, work)
                    .inspect_err(|error| *sink_failed |= ends_writing(error))?;
                observer.advance(writer.position_bytes() - before);
                Ok(())
            },
        )
    }

    /// Whether a backup goes on without a parent whose map is damaged: not without one that the
    /// user chose.
    fn bears_lost_parent(&self) -> bool {
        !matches!(self.request.parent, ParentChoice::Snapshot(_))
    }

    /// What need not be stored, if nothing that was there before is taken for whole.
    fn known_anew(&self) -> Known {
        let end = self.archive.as_ref().map_or(LogOffset(0), Archive::end);
        self.known.clone().since(end)
    }

    /// What map nodes need not be stored: where the parent's are damaged, its ids lead nowhere,
    /// so the volume gets all nodes of its own from there on.
    fn known_nodes(&self) -> Known {
        match self.parent_lost.get() {
            Some(_) => self.known_anew(),
            None => self.known.clone(),
        }
    }

    fn warn(&mut self, what: String) {
        self.context.observer.notice(&what);
        self.report.warnings.push(what);
    }

    /// Sees that what is to be kept can be read of the parent's map, and that it is true.
    fn check_parent(&mut self, number: usize, view: &View) -> Result<()> {
        match self.rehearse(number).and_then(|()| self.audit_steps(number, view)) {
            Err(error) => self.lose_parent(number, error),
            Ok(()) => Ok(()),
        }
    }

    /// Reads the nodes that keeping chunks will need, before anything else is: in the middle of a
    /// volume it would be too late to read those chunks instead.
    fn rehearse(&self, number: usize) -> Result<()> {
        let plan = &self.plans[number];
        let (Some(steps), Some(parent), Some(mut store)) =
            (&plan.steps, &plan.parent, self.store()?)
        else {
            return Ok(());
        };
        let mut cursor = parent.cursor()?;
        let kept = steps.iter().filter(|step| step.action == Action::Keep);
        for step in kept {
            self.context.cancel.check()?;
            each_kept(&mut cursor, &mut store, &plan.shape, &step.chunks, |_, _| ())?;
        }
        Ok(())
    }

    /// Audits the plan's steps, and has everything read if they are not to be believed.
    fn audit_steps(&mut self, number: usize, view: &View) -> Result<()> {
        let Some(steps) = self.plans[number].steps.take() else { return Ok(()) };
        self.plans[number].steps = match self.audit(number, view, &steps)? {
            // What cannot be read is not known to be as it was. The reader meets it again, and does
            // with it what the request says.
            Verdict::Believed(unreadable) => Some(unreadable.iter().fold(steps, plan::with_read)),
            Verdict::Refuted => None,
        };
        Ok(())
    }

    /// Reads a random sample of what the change source spares us to read; one difference and
    /// nothing it says is believed any more.
    fn audit(&mut self, number: usize, view: &View, steps: &[Step]) -> Result<Verdict> {
        let share = self.request.audit_share.clamp(0.0, 1.0);
        let store = self.store()?;
        let plan = &self.plans[number];
        let audit = Audit::new(plan.shape, plan.parent.as_ref().zip(store), view)?;
        let findings = audit.run(steps, share, &self.context.cancel)?;
        self.audited_bytes += findings.bytes;
        let liar = view.change_source.as_ref().map_or("the change source", |source| source.kind());
        let why = match findings.lie {
            Some((offset, called)) => {
                format!("{liar} called the chunk at {offset:#x} {called}, but it differs")
            }
            None if findings.are_too_few() => format!("too little can be read to audit {liar}"),
            None => return Ok(Verdict::Believed(findings.unreadable)),
        };
        self.distrust(number, format!("{why}; everything was read"));
        Ok(Verdict::Refuted)
    }

    /// Notes that a volume's change source is not believed.
    fn distrust(&mut self, number: usize, why: String) {
        let plan = &mut self.plans[number];
        plan.change_source = "none".into();
        plan.trusts_holes = false;
        plan.degraded = Some(why.clone());
        self.warn(why);
    }

    /// Stores the files that the request names, and those that belong to the volumes unless the request
    /// has one of that name.
    fn write_attached(&mut self, owned: &[(String, Vec<u8>)]) -> Result<Vec<Attached>> {
        let files = self.request.attach.clone();
        let mut attached: Vec<Attached> = Vec::new();
        for (number, (name, path)) in (0u16..).zip(files) {
            attached.push(self.write_file(number, name, &path)?);
        }
        for (name, bytes) in owned {
            if attached.iter().all(|file| file.name != *name) {
                let number = attached.len() as u16;
                attached.push(self.write_bytes(number, name.clone(), bytes)?);
            }
        }
        Ok(attached)
    }

    fn write_bytes(&mut self, number: u16, name: String, bytes: &[u8]) -> Result<Attached> {
        let mut pieces = Vec::new();
        let mut size = 0;
        for piece in bytes.chunks(FRAME_RAW_LEN_MAX as usize) {
            pieces.push(self.store_item(piece, ItemKind::Attached, number, size)?);
            size += piece.len() as u64;
        }
        Ok(Attached { name, size, pieces })
    }

    fn write_file(&mut self, number: u16, name: String, path: &Path) -> Result<Attached> {
        let mut file = AttachedFile::open(path)?;
        let mut pieces = Vec::new();
        let mut size = 0;
        while let Some(piece) = file.next_piece()? {
            pieces.push(self.store_item(piece, ItemKind::Attached, number, size)?);
            size += piece.len() as u64;
        }
        Ok(Attached { name, size, pieces })
    }

    /// Commits, unless it is a dry run.
    fn finish(self, manifest: &[u8]) -> (Result<()>, BackupReport) {
        let Backup { session, mut report, request, context, index, .. } = self;
        if request.dry_run {
            report.stored_bytes = session.appended();
            return (Ok(()), report);
        }
        context.observer.phase(Phase::Commit, None);
        let (commit, stored_bytes) = match session.commit(manifest) {
            Ok(committed) => committed,
            Err(error) => return (Err(error), report),
        };
        let damaged = index.as_ref().map_or(0, Index::damaged_runs);
        if damaged > 0 {
            let met = counted(damaged as u64, "damaged index run was", "damaged index runs were");
            let what = format!(
                "{met} met; what was in there was read from the tables of the segments, and this \
                 snapshot has whole ones"
            );
            context.observer.notice(&what);
            report.warnings.push(what);
        }
        report.snapshot = commit_id(&commit);
        report.stored_bytes = stored_bytes;
        (Ok(()), report)
    }

    /// Leaves the archive as it was; what is sealed stays for the next run to find. The open
    /// segment is sealed, too, unless it was writing that failed.
    fn give_up(self) -> BackupReport {
        let Backup { session, report, sink_failed, .. } = self;
        let stored_bytes = if sink_failed { 0 } else { session.abandon() };
        BackupReport { stored_bytes, ..report }
    }
}

/// Whether nothing more is to be written to an archive after this error of using it.
fn ends_writing(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::NoSpace | ErrorKind::Io)
}

fn commit_id(commit: &Commit) -> Option<String> {
    commit.snapshot_id().map(|id| id.to_hex())
}

fn plan_volumes(
    request: &BackupRequest,
    views: &[View],
    parents: Vec<Option<Parent>>,
) -> Result<Vec<VolumePlan>> {
    views.iter().zip(parents).map(|(view, parent)| plan::volume(request, view, parent)).collect()
}

/// A snapshot's description, but for its parent.
fn manifest(
    request: &BackupRequest,
    time_ns: i64,
    volumes: Vec<Volume>,
    attached: Vec<Attached>,
) -> Manifest {
    Manifest {
        time_ns,
        host: host(),
        program: program(),
        parent: None,
        tags: request.tags.clone(),
        volumes,
        attached,
    }
}

/// What is known of a volume before it is read.
fn volume_of(view: &View, plan: &VolumePlan) -> Volume {
    Volume {
        name: view.name.clone(),
        size: view.size,
        chunk_size: plan.shape.chunk_len(),
        root: Id::default(),
        source: view.description.clone(),
        change_source: plan.change_source.clone(),
        proof: plan.proof.clone(),
        degraded: plan.degraded.clone(),
        unreadable: Vec::new(),
        new_bytes: 0,
    }
}

fn encode(manifest: &Manifest) -> Result<Vec<u8>> {
    manifest.encode().map_err(|error| {
        Error::new(ErrorKind::InvalidRequest, "the snapshot's description is too large")
            .because(error)
    })
}

fn note(views: &[View], plans: &[VolumePlan], time_ns: i64) -> Result<Vec<u8>> {
    let volumes = views.iter().zip(plans).map(|(view, plan)| NoteVolume {
        name: view.name.clone(),
        size: view.size,
        chunk_size: plan.shape.chunk_len(),
    });
    let volumes = volumes.collect();
    let note = Note { time_ns, host: host(), program: program(), volumes };
    let bytes = serde_json::to_vec(&note)
        .map_err(|error| Error::new(ErrorKind::Internal, "cannot encode a note").because(error))?;
    match bytes.len() <= FRAME_RAW_LEN_MAX as usize {
        true => Ok(bytes),
        false => Err(Error::new(ErrorKind::InvalidRequest, "the volumes' names are too long")
            .hint("back up fewer volumes at once")),
    }
}

/// Checks what can be known of the snapshot's description before hours of reading (W-19): all but
/// the pieces of attached files and what will be unreadable.
fn check_limits(
    request: &BackupRequest,
    views: &[View],
    plans: &[VolumePlan],
    time_ns: i64,
) -> Result<()> {
    let volumes = views.iter().zip(plans).map(|(view, plan)| volume_of(view, plan)).collect();
    let names = request.attach.iter().map(|(name, _)| name.clone());
    let attached = names.map(|name| Attached { name, size: 0, pieces: Vec::new() }).collect();
    encode(&manifest(request, time_ns, volumes, attached))?;
    note(views, plans, time_ns).map(drop)
}

fn fresh_session(target: &Target, time_ns: i64, fresh: &Arc<Fresh>) -> Result<Session> {
    let (log, label) = match target {
        Target::Stdout(file) => {
            let file = file
                .try_clone()
                .map_err(|error| Error::io("cannot open", "standard output", error))?;
            (LogWriter::to_stream(file), "standard output")
        }
        _ => (LogWriter::to_nowhere(voltar_format::LogOffset(0)), "a dry run"),
    };
    Session::in_stream(log, label, time_ns, Arc::clone(fresh))
}

/// Adopts what an interrupted run sealed, cuts off the rest, and begins behind it.
fn home_session(
    archive: &Archive,
    fresh: &Arc<Fresh>,
    engine: IoEngine,
    context: &Context,
    dry_run: bool,
) -> Result<(Session, Index, u64)> {
    check_foundation(archive)?;
    let index = Index::of(archive);
    let end = archive.end().0;
    let len = length(&*archive.home)?;
    if len > end {
        context.observer.phase(Phase::Resume, Some(len - end));
    }
    if !dry_run && mend_last_commit(archive)? {
        context
            .observer
            .notice("the last commit had lost one of its two copies; it was written again");
    }
    let beginning = adopt(archive, &index, fresh, context)?;
    let resumed = beginning.position.0 - end;
    if resumed > 0 {
        let text = format!("an interrupted run left {resumed} bytes of sealed work; using them");
        context.observer.notice(&text);
    }
    if len != beginning.position.0 && !dry_run {
        // Synced before anything is written there: else a second crash might bring back what the
        // first one left, behind records that it does not know of.
        let cut = archive.home.set_len(beginning.position.0).and_then(|()| archive.home.sync());
        cut.map_err(|error| {
            Error::io("cannot cut off what an interrupted run left in", archive.label(), error)
        })?;
    }
    let session = Session::in_home(
        archive,
        index.clone(),
        Arc::clone(fresh),
        beginning,
        engine,
        WRITE_DEPTH,
        dry_run,
    )?;
    Ok((session, index, resumed))
}

fn empty_report(
    request: &BackupRequest,
    parent: Option<String>,
    resumed_bytes: u64,
) -> BackupReport {
    let archive = match &request.archive {
        ArchiveHome::File(path) => path.display().to_string(),
        ArchiveHome::Stdout => "-".into(),
    };
    BackupReport {
        snapshot: None,
        parent,
        archive,
        volumes: Vec::new(),
        stored_bytes: 0,
        resumed_bytes,
        elapsed_s: 0.0,
        latency: None,
        warnings: Vec::new(),
    }
}

fn volume_report(
    view: &View,
    plan: &VolumePlan,
    root: &Id,
    writer: &VolumeWriter,
    unreadable: &[Range<u64>],
    audited_bytes: u64,
) -> VolumeBackup {
    let Counts { read, changed, zero, new, reused } = writer.counts;
    VolumeBackup {
        name: view.name.clone(),
        size: view.size,
        chunk_size: plan.shape.chunk_len(),
        root: root.to_hex(),
        change_source: plan.change_source.clone(),
        degraded: plan.degraded.clone(),
        read_bytes: read,
        changed_bytes: changed,
        zero_bytes: zero,
        new_bytes: new,
        reused_bytes: reused,
        audited_bytes,
        unreadable: unreadable
            .iter()
            .map(|range| ByteRange { offset: range.start, length: range.end - range.start })
            .collect(),
    }
}

/// The source must still be as long as it was: a growing one was not backed up whole.
fn check_size(view: &View) -> Result<()> {
    let now = view
        .device
        .len()
        .map_err(|error| Error::io("cannot ask the size of", view.device.label(), error))?;
    match now == view.size {
        true => Ok(()),
        false => {
            let message = format!("the source changed its size from {} to {now}", view.size);
            Err(Error::new(ErrorKind::SourceUnusable, message)
                .on(view.device.label())
                .meaning("nothing was committed; the archive's snapshots are as they were")
                .hint("back up a snapshot of it, or stop what resizes it"))
        }
    }
}

/// A file to attach, read piece by piece: what it may be long is a share of all memory allowed.
struct AttachedFile<'a> {
    path: &'a Path,
    file: std::io::Take<File>,
    piece: Vec<u8>,
}

impl<'a> AttachedFile<'a> {
    fn open(path: &'a Path) -> Result<AttachedFile<'a>> {
        let file = File::open(path).map_err(|error| Self::failed(path, error))?;
        Ok(AttachedFile { path, file: file.take(ATTACHED_LEN_MAX + 1), piece: Vec::new() })
    }

    fn next_piece(&mut self) -> Result<Option<&[u8]>> {
        self.piece.clear();
        let mut piece = self.file.by_ref().take(FRAME_RAW_LEN_MAX.into());
        piece.read_to_end(&mut self.piece).map_err(|error| Self::failed(self.path, error))?;
        match self.file.limit() {
            // It grew meanwhile, or is a pipe.
            0 => Err(attached_too_large(self.path)),
            _ => Ok(Some(&self.piece[..]).filter(|piece| !piece.is_empty())),
        }
    }

    fn failed(path: &Path, error: std::io::Error) -> Error {
        Error::io("cannot read the file to attach", path.display().to_string(), error)
    }
}

/// Builds one volume's map in order.
struct VolumeWriter {
    number: u16,
    shape: Shape,
    builder: MapBuilder,
    parent: Option<(Cursor, Store)>,
    nodes: Vec<BuiltNode>,
    counts: Counts,
    unreadable: Vec<Range<u64>>,
}

impl VolumeWriter {
    fn new(number: u16, plan: &VolumePlan, store: Option<Store>) -> VolumeWriter {
        let parent = plan.parent.as_ref().zip(store);
        let parent = parent.and_then(|(parent, store)| Some((parent.cursor().ok()?, store)));
        VolumeWriter {
            number,
            shape: plan.shape,
            builder: MapBuilder::new(plan.shape),
            parent,
            nodes: Vec::new(),
            counts: Counts::default(),
            unreadable: Vec::new(),
        }
    }

    fn position_bytes(&self) -> u64 {
        let position = self.builder.position();
        position.saturating_mul(self.shape.chunk_len().into()).min(self.shape.size())
    }

    /// Takes what the workers made of the next item.
    fn take(
        &mut self,
        session: &mut Session,
        known: &Known,
        vectors: &Vectors,
        work: Work,
    ) -> Result<()> {
        let Work { result, frame, counts, unreadable } = work;
        if let Some(frame) = frame {
            append(session, frame, vectors)?;
        }
        self.add(counts);
        self.unreadable.extend(unreadable);
        match result {
            Outcome::Entries(entries) => {
                for entry in entries {
                    self.builder.push(entry, &mut self.nodes);
                }
            }
            Outcome::Zero(count) => self.push_zero(count),
            Outcome::Keep(chunks) => self.keep(chunks)?,
        }
        self.store_nodes(session, known, NODES_PER_FRAME)
    }

    fn add(&mut self, counts: Counts) {
        self.counts.read += counts.read;
        self.counts.changed += counts.changed;
        self.counts.zero += counts.zero;
        self.counts.new += counts.new;
        self.counts.reused += counts.reused;
    }

    fn push_zero(&mut self, count: u64) {
        let before = self.position_bytes();
        self.builder.push_run(Entry::Zero, count, &mut self.nodes);
        self.counts.zero += self.position_bytes() - before;
    }

    /// Copies the parent's entries, whole subtrees where they fit.
    fn keep(&mut self, chunks: Range<u64>) -> Result<()> {
        let Some((cursor, store)) = &mut self.parent else {
            return Err(Error::new(ErrorKind::Internal, "chunks are to be kept without a parent"));
        };
        debug_assert_eq!(self.builder.position(), chunks.start);
        let (builder, nodes) = (&mut self.builder, &mut self.nodes);
        each_kept(cursor, store, &self.shape, &chunks, |level, entry| {
            builder.push_at(level, entry, nodes);
        })
    }

    /// Stores finished nodes once there are enough of them.
    fn store_nodes(&mut self, session: &mut Session, known: &Known, enough: usize) -> Result<()> {
        session.append_nodes(&mut self.nodes, self.number, known, enough)
    }

    /// Ends the map and returns its root.
    fn finish(&mut self, session: &mut Session, known: &Known) -> Result<Id> {
        let builder = std::mem::replace(&mut self.builder, MapBuilder::new(self.shape));
        let root = builder.finish(&mut self.nodes);
        self.store_nodes(session, known, 1)?;
        Ok(root)
    }
}

/// Calls `take` with the parent's entries for these chunks, on the highest levels possible.
fn each_kept(
    cursor: &mut Cursor,
    store: &mut Store,
    ours: &Shape,
    chunks: &Range<u64>,
    mut take: impl FnMut(u8, Entry),
) -> Result<()> {
    let mut at = chunks.start;
    while at < chunks.end {
        let level = kept_level(ours, cursor.shape(), at..chunks.end);
        let standing = cursor.entry_at(store, level, at)?;
        debug_assert!(standing.level >= level && at.is_multiple_of(span_of_entry(level)));
        take(level, standing.entry);
        at = at.saturating_add(span_of_entry(level));
    }
    Ok(())
}

/// The highest level at which an entry of the parent's map stands for the same chunks in ours,
/// the first of `chunks` on.
fn kept_level(ours: &Shape, parents: &Shape, chunks: Range<u64>) -> u8 {
    let level = ours.aligned_level(chunks.clone()).min(parents.root_level());
    // Where the sizes differ, an entry that reaches the end of one volume covers other chunks in
    // the other: only a full one means the same in both.
    let is_full = |level: &u8| chunks.start.saturating_add(span_of_entry(*level)) <= chunks.end;
    match ours == parents {
        true => level,
        false => (0..=level).rev().find(is_full).unwrap_or(0),
    }
}

/// Appends a frame and gives its vector back.
fn append(session: &mut Session, frame: NewFrame, vectors: &Vectors) -> Result<()> {
    match frame.payload {
        Payload::Raw(buffer, len) => session.append_frame_of(&frame.head, buffer, len),
        Payload::Encoded(vector, len) => {
            session.append_frame(&frame.head, &vector[..len])?;
            vectors.give(vector);
            Ok(())
        }
    }
}
