//! Frames for whoever copies them instead of counting them: where those of a record lie, and
//! whether one is whole.

use std::ops::Range;
use std::sync::Arc;

use voltar_format::SessionId;
use voltar_format::frame::{self, ChunkEntry, Frame};
use voltar_format::limits::FRAME_RAW_LEN_MAX;
use voltar_format::record::RecordKind;

use super::findings::Loss;
use super::plan::{Frames, Job, send_frames};
use super::record::Record;
use super::salvage::salvage;
use super::work::{check_items, check_stored};
use crate::archive::open::Archive;
use crate::codec::Decoder;
use crate::error::Result;

pub(crate) use super::reach::entry_in_frame;

/// Frames of one record that are read at once.
pub(crate) struct Batch {
    of: Arc<Frames>,
    which: Range<usize>,
    /// What to read for them.
    pub read: Range<u64>,
    /// The session that wrote them; known where the record's head is whole and nothing damaged
    /// lies between it and them, or a whole table names them. Bytes of a guest may look like
    /// frames: what is found behind damage is what its ids say, but not where it belonged.
    pub session: Option<SessionId>,
}

/// A frame of which at least one item is whole.
pub(crate) struct GoodFrame {
    /// Its bytes in what was read, without padding.
    pub range: Range<usize>,
    /// Bytes of its head and entries.
    pub head_len: usize,
    /// Its items.
    pub entries: Vec<ChunkEntry>,
    /// Which of them have the bytes that their ids say.
    pub whole: Vec<bool>,
}

/// Calls `each` for all frames of the record in `range`, in log order, whatever state it is in.
///
/// # Errors
/// Of `each`.
pub(crate) fn batches(
    archive: &Archive,
    range: Range<u64>,
    each: &mut dyn FnMut(Batch) -> Result<()>,
) -> Result<()> {
    let record = Record::look(archive, range.clone(), &mut |_| Ok(()))?;
    if record.kind() != RecordKind::Data {
        return Ok(());
    }
    let mut session = record.head.as_ref().map(|head| head.session);
    if let Some(table) = record.table(archive) {
        return send_frames(Frames::of(range.start, table), &mut |job| batch(job, session, each));
    }
    salvage(archive, record.inside(), &mut |job| {
        // Behind a lost border another record's session begins.
        if matches!(job, Job::Found(_)) {
            session = None;
        }
        batch(job, session, each)
    })
}

fn batch(
    job: Job,
    session: Option<SessionId>,
    each: &mut dyn FnMut(Batch) -> Result<()>,
) -> Result<()> {
    match job {
        Job::Frames { of, which, read } => each(Batch { of, which, read, session }),
        _ => Ok(()),
    }
}

/// Checks frames end to end, one after the other.
pub(crate) struct Checker {
    decoder: Decoder,
    raw: Vec<u8>,
}

impl Checker {
    /// With room for one frame.
    ///
    /// # Errors
    /// Out of memory.
    pub fn new() -> Result<Checker> {
        Ok(Checker { decoder: Decoder::new()?, raw: vec![0; FRAME_RAW_LEN_MAX as usize] })
    }

    /// The frames of `batch` that are good for something; `bytes` is what was read for it.
    pub fn check(&mut self, batch: &Batch, bytes: &[u8]) -> Vec<GoodFrame> {
        let frames = batch.of.frames.get(batch.which.clone()).unwrap_or(&[]);
        let good = frames.iter().filter_map(|plan| {
            let from = usize::try_from(plan.start.checked_sub(batch.read.start)?).ok()?;
            let len = usize::try_from(plan.end.checked_sub(plan.start)?).ok()?;
            let frame = check_stored(&batch.of, plan, bytes.get(from..from + len)?).ok()?;
            let whole = self.whole_items(&frame, plan.start)?;
            let range = from..from + frame.head.stored_len as usize;
            let head_len = frame::head_len(frame.head.chunk_count);
            Some(GoodFrame { range, head_len, entries: frame.entries, whole })
        });
        good.collect()
    }

    /// Which items of a frame are what their ids say, if any are.
    fn whole_items(&mut self, frame: &Frame<'_>, start: u64) -> Option<Vec<bool>> {
        let mut found = Vec::new();
        let range = start..start + u64::from(frame.head.stored_len);
        check_items(&mut self.decoder, &mut self.raw, frame, &range, &mut found);
        let mut whole = vec![true; frame.entries.len()];
        for finding in found {
            match finding.loss {
                Loss::Item(slot) => whole.get_mut(usize::from(slot)).map(|item| *item = false),
                Loss::Range | Loss::Nothing => return None,
            };
        }
        whole.contains(&true).then_some(whole)
    }
}
