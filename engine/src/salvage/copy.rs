//! The first pass: every whole frame of the old log goes into the new archive as it is.

use std::ops::Range;

use voltar_format::frame::{ChunkEntry, Frame, ItemKind};
use voltar_format::limits::FRAME_RAW_LEN_MAX;
use voltar_format::{Id, LogOffset, SessionId};

use super::target::Target;
use crate::archive::blocks::read_what_is_there;
use crate::archive::format_error;
use crate::archive::open::Archive;
use crate::archive::session::Session;
use crate::archive::spans::borders;
use crate::codec::Decoder;
use crate::error::Result;
use crate::pipeline::{self, Feeder, Plan};
use crate::verify::frames::{Batch, Checker, GoodFrame, batches};

/// A part of the old log that holds no commit.
pub(super) struct Stretch {
    /// Its bytes.
    pub range: Range<u64>,
    /// Whether a commit that can be read seals it.
    pub is_committed: bool,
}

/// A session without a commit.
pub(super) struct Orphan {
    /// Where its first frame is in the old log.
    pub start: u64,
    /// Its note.
    pub note: Option<Id>,
    /// Where its frames are in the new log.
    pub copies: Vec<Range<u64>>,
    session: SessionId,
}

/// What the first pass came to.
#[derive(Default)]
pub(super) struct Copied {
    /// Frames found whole.
    pub frames: u64,
    /// Sessions without a commit, in log order.
    pub orphans: Vec<Orphan>,
    /// Stretches of frames without a commit whose session nothing tells.
    pub unnamed: u64,
}

/// Frames as they were read, and which of them are whole.
struct Checked {
    origin: Origin,
    start: u64,
    bytes: Vec<u8>,
    frames: Vec<GoodFrame>,
}

/// Where frames come from. Those of one origin make up one session of the new archive, so that
/// there, too, its note speaks of its frames.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Origin {
    session: Option<SessionId>,
    is_committed: bool,
}

/// Copies what is whole in these stretches of `archive`, in the order of the log.
///
/// # Errors
/// Of writing; `Interrupted`.
pub(super) fn copy(
    archive: &Archive,
    stretches: Vec<Stretch>,
    target: &mut Target<'_>,
) -> Result<Copied> {
    let context = target.context;
    let workers = context.worker_count();
    // An item is up to a MiB twice: as it is stored, and on its way into the new archive.
    let affordable = (context.memory_bytes / 4 / u64::from(2 * FRAME_RAW_LEN_MAX)) as usize;
    let items = (4 * workers).min(affordable).max(2);
    let decoder = Decoder::new()?;
    let mut copier =
        Copier { target, decoder, session: None, copied: Copied::default(), raw: Vec::new() };
    pipeline::run(
        Plan { workers, items },
        |feeder| {
            let mut sequence = 0;
            for stretch in stretches {
                feed(archive, &stretch, feeder, &mut sequence, &context.cancel)?;
            }
            Ok(())
        },
        Checker::new,
        |checker, _, (batch, origin, bytes): (Batch, Origin, Vec<u8>)| {
            let frames = checker.check(&batch, &bytes);
            Ok(Checked { origin, start: batch.read.start, bytes, frames })
        },
        |_, checked| {
            let len = checked.bytes.len() as u64;
            copier.take(&checked)?;
            context.observer.advance(len);
            Ok(())
        },
    )?;
    copier.end_session()?;
    Ok(copier.copied)
}

/// Reads the frames of a stretch.
fn feed(
    archive: &Archive,
    stretch: &Stretch,
    feeder: &Feeder<'_, (Batch, Origin, Vec<u8>)>,
    sequence: &mut u64,
    cancel: &crate::cancel::Cancel,
) -> Result<()> {
    let (start, end) = (LogOffset(stretch.range.start), LogOffset(stretch.range.end));
    for record in borders(&*archive.home, archive.id, start, end) {
        batches(archive, record, &mut |batch| {
            cancel.check()?;
            let permit = feeder.permit()?;
            let bytes = read_what_is_there(&*archive.home, batch.read.start, batch.read.end);
            let origin = Origin { session: batch.session, is_committed: stretch.is_committed };
            feeder.send(*sequence, (batch, origin, bytes), permit)?;
            *sequence += 1;
            Ok(())
        })?;
    }
    Ok(())
}

/// Appends frames to sessions of the new archive.
struct Copier<'a, 't> {
    target: &'a mut Target<'t>,
    decoder: Decoder,
    raw: Vec<u8>,
    /// The session under way, what it is a copy of, and where it began.
    session: Option<(Session, Origin, u64)>,
    copied: Copied,
}

impl Copier<'_, '_> {
    fn take(&mut self, checked: &Checked) -> Result<()> {
        for frame in &checked.frames {
            self.copied.frames += 1;
            let at = checked.start + frame.range.start as u64;
            self.begin_session(checked.origin, at, frame)?;
            let Some(bytes) = checked.bytes.get(frame.range.clone()) else { continue };
            let wanted = self.wanted(checked.origin, frame)?;
            self.append(bytes, frame, &wanted)?;
        }
        Ok(())
    }

    /// Goes over to a new session where frames of another origin begin.
    fn begin_session(&mut self, origin: Origin, at: u64, frame: &GoodFrame) -> Result<()> {
        if self.session.as_ref().is_some_and(|(_, standing, _)| *standing == origin) {
            return Ok(());
        }
        self.end_session()?;
        let session = self.target.session()?;
        self.session = Some((session, origin, self.target.archive.end().0));
        match origin {
            Origin { is_committed: false, session: Some(session) } => {
                if self.copied.orphans.last().is_none_or(|last| last.session != session) {
                    let (note, copies) = (note_in(frame), Vec::new());
                    self.copied.orphans.push(Orphan { start: at, note, copies, session });
                }
            }
            Origin { is_committed: false, session: None } => self.copied.unnamed += 1,
            Origin { is_committed: true, .. } => {}
        }
        Ok(())
    }

    fn end_session(&mut self) -> Result<()> {
        let Some((session, origin, start)) = self.session.take() else { return Ok(()) };
        self.target.commit(session, &[])?;
        let end = self.target.archive.last.as_ref().map_or(start, |commit| commit.offset.0);
        if let Origin { is_committed: false, session: Some(session) } = origin
            && let Some(orphan) = self.copied.orphans.last_mut().filter(|o| o.session == session)
        {
            orphan.copies.push(start..end);
        }
        Ok(())
    }

    /// Which items are to be stored: those that are whole and new. Of a session without a commit
    /// all that are whole, because where they stand is known from there alone.
    fn wanted(&self, origin: Origin, frame: &GoodFrame) -> Result<Vec<bool>> {
        let is_orphan = !origin.is_committed && origin.session.is_some();
        let items = frame.entries.iter().zip(&frame.whole);
        let wanted = items.map(|(entry, whole)| {
            // Asking claims the id: of a damaged item a whole copy may follow.
            let is_new = || self.target.known.is_new(&entry.id);
            Ok(*whole && (is_new()? || is_orphan))
        });
        wanted.collect()
    }

    /// Appends a frame as it is, or those of its items that are wanted.
    fn append(&mut self, bytes: &[u8], frame: &GoodFrame, wanted: &[bool]) -> Result<()> {
        let Some((session, ..)) = &mut self.session else { return Ok(()) };
        if wanted.iter().all(|wanted| *wanted) {
            let (head, payload) = bytes.split_at(frame.head_len);
            return session.append_frame(head, payload);
        }
        if !wanted.contains(&true) {
            return Ok(());
        }
        let failed = |error| format_error("a frame that was whole", error);
        let decoded = Frame::decode(bytes).map_err(failed)?;
        self.raw.resize(FRAME_RAW_LEN_MAX as usize, 0);
        let mut rest: &[u8] = self.decoder.decode(&decoded, &mut self.raw).map_err(failed)?;
        let mut payload = Vec::new();
        let mut entries: Vec<ChunkEntry> = Vec::new();
        for (entry, wanted) in frame.entries.iter().zip(wanted) {
            // Checking the frame showed that the lengths add up.
            let (item, behind) = rest.split_at_checked(entry.raw_len as usize).unwrap_or_default();
            rest = behind;
            if *wanted {
                payload.extend_from_slice(item);
                entries.push(entry.clone());
            }
        }
        session.append_stored(&entries, &payload)
    }
}

/// The note that a session's first frame begins with.
fn note_in(frame: &GoodFrame) -> Option<Id> {
    let (entry, whole) = frame.entries.first().zip(frame.whole.first())?;
    (*whole && entry.item_kind() == Some(ItemKind::Note)).then_some(entry.id)
}
