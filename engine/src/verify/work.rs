//! What workers do: checksums, agreement with the table, padding, and (end to end) decoding and
//! hashing of every item.

use std::ops::Range;
use std::sync::Arc;

use voltar_format::frame::Frame;
use voltar_format::limits::FRAME_RAW_LEN_MAX;
use voltar_format::segment::check_frame_entry;
use voltar_format::wire::is_zero;
use voltar_format::{FormatError, LogOffset, Structure};

use super::findings::{Finding, Loss};
use super::plan::{Frames, Job, PlannedFrame};
use super::read::Loaded;
use super::run::check_pages;
use crate::archive::open::Archive;
use crate::archive::read_exact;
use crate::archive::store::check_id;
use crate::codec::Decoder;
use crate::error::Result;
use crate::io::buffer::Buffer;

/// Pages of an index run, checked each by itself.
pub(super) struct Pages {
    /// The first one's number.
    pub first: u64,
    /// Where they lie.
    pub range: Range<u64>,
    /// Their bytes; zeroes where they could not be read.
    pub bytes: PageBytes,
    /// What is wrong with which of them.
    pub bad: Vec<(u64, FormatError)>,
}

/// Bytes from a read, or put together after one failed.
pub(super) enum PageBytes {
    /// As read.
    Read(Buffer),
    /// Read in pieces.
    Pieced(Vec<u8>),
}

impl std::ops::Deref for PageBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            PageBytes::Read(buffer) => buffer,
            PageBytes::Pieced(bytes) => bytes,
        }
    }
}

/// A job after the workers.
pub(super) enum Checked {
    /// Frames.
    Frames {
        /// How many.
        count: u64,
        /// Their bytes with padding.
        bytes: u64,
        /// What is wrong with them.
        found: Vec<Finding>,
    },
    /// Pages.
    Pages(Pages),
    /// Nothing for workers.
    Other(Job),
}

/// A worker's state.
pub(super) struct Worker<'a> {
    archive: &'a Archive,
    /// For end to end: the decoder and room for one frame.
    decoding: Option<(Decoder, Vec<u8>)>,
}

impl<'a> Worker<'a> {
    /// A worker; `full` decodes and hashes too.
    ///
    /// # Errors
    /// Out of memory.
    pub fn new(archive: &'a Archive, full: bool) -> Result<Worker<'a>> {
        let decoding = match full {
            true => Some((Decoder::new()?, vec![0; FRAME_RAW_LEN_MAX as usize])),
            false => None,
        };
        Ok(Worker { archive, decoding })
    }

    /// Does the work of a job.
    pub fn check(&mut self, loaded: Loaded) -> Checked {
        let Loaded { job, bytes } = loaded;
        match (job, bytes) {
            (Job::Frames { of, which, read }, Some(bytes)) => {
                self.frames(&of, which, read.start, bytes.ok().as_deref())
            }
            (Job::Pages { first, read }, Some(bytes)) => {
                Checked::Pages(self.pages(first, read, bytes.ok()))
            }
            (job, _) => Checked::Other(job),
        }
    }

    fn frames(
        &mut self,
        of: &Arc<Frames>,
        which: Range<usize>,
        start: u64,
        bytes: Option<&[u8]>,
    ) -> Checked {
        let mut found = Vec::new();
        let frames = of.frames.get(which).unwrap_or(&[]);
        for frame in frames {
            let from = (frame.start - start) as usize;
            let len = (frame.end - frame.start) as usize;
            match bytes.and_then(|bytes| bytes.get(from..from + len)) {
                Some(bytes) => self.frame(of, frame, bytes, &mut found),
                // The read failed or was short: what of it is really lost shows frame by frame.
                None => match read_exact(&*self.archive.home, LogOffset(frame.start), len) {
                    Ok(bytes) => self.frame(of, frame, &bytes, &mut found),
                    Err(error) => {
                        let range = frame.start..frame.end;
                        found.push(Finding::unread("frame", range, &error, Loss::Range));
                    }
                },
            }
        }
        let bytes = frames.iter().map(|frame| frame.end - frame.start).sum();
        Checked::Frames { count: frames.len() as u64, bytes, found }
    }

    fn frame(&mut self, of: &Frames, plan: &PlannedFrame, bytes: &[u8], found: &mut Vec<Finding>) {
        let range = plan.start..plan.end;
        let frame = match check_stored(of, plan, bytes) {
            Ok(frame) => frame,
            Err(error) => {
                let error = error.at(LogOffset(plan.start));
                return found.push(Finding::of(&error, range, Loss::Range));
            }
        };
        let padding = bytes.get(frame.head.stored_len as usize..).unwrap_or(&[]);
        if !is_zero(padding) {
            let problem = "the padding behind it is not zero";
            let error = FormatError::new(Structure::Frame, "F-034", problem);
            let at = plan.start + u64::from(frame.head.stored_len)..plan.end;
            found.push(Finding::of(&error.at(LogOffset(plan.start)), at, Loss::Nothing));
        }
        if let Some((decoder, raw)) = &mut self.decoding {
            check_items(decoder, raw, &frame, &range, found);
        }
    }

    fn pages(&self, first: u64, range: Range<u64>, read: Option<Buffer>) -> Pages {
        let len = (range.end - range.start) as usize;
        let bytes = match read {
            Some(buffer) if buffer.len() == len => PageBytes::Read(buffer),
            _ => PageBytes::Pieced(self.pages_one_by_one(&range)),
        };
        let bad = check_pages(first, &bytes);
        Pages { first, range, bytes, bad }
    }

    fn pages_one_by_one(&self, range: &Range<u64>) -> Vec<u8> {
        let mut bytes = vec![0; (range.end - range.start) as usize];
        let at = (range.start..).step_by(voltar_format::limits::BLOCK_LEN);
        for (block, at) in bytes.chunks_mut(voltar_format::limits::BLOCK_LEN).zip(at) {
            if crate::archive::read_into(&*self.archive.home, LogOffset(at), block).is_err() {
                block.fill(0);
            }
        }
        bytes
    }
}

/// Checks a frame as it is stored.
pub(super) fn check_stored<'b>(
    of: &Frames,
    plan: &PlannedFrame,
    bytes: &'b [u8],
) -> Result<Frame<'b>, FormatError> {
    let frame = Frame::decode(bytes)?;
    if let Some(entry) = &plan.entry {
        check_frame_entry(entry, &frame)?;
        if of.items.get(plan.items.clone()) != Some(frame.entries.as_slice()) {
            let problem = "its items are not those its segment's table speaks of";
            return Err(FormatError::new(Structure::Frame, "F-032", problem));
        }
    }
    frame.check_payload()?;
    Ok(frame)
}

/// Decodes a frame and checks each of its items against its id.
pub(super) fn check_items(
    decoder: &mut Decoder,
    raw: &mut [u8],
    frame: &Frame<'_>,
    range: &Range<u64>,
    found: &mut Vec<Finding>,
) {
    let at = LogOffset(range.start);
    let mut rest: &[u8] = match decoder.decode(frame, raw) {
        Ok(decoded) => decoded,
        Err(error) => return found.push(Finding::of(&error.at(at), range.clone(), Loss::Range)),
    };
    for (slot, entry) in (0u16..).zip(&frame.entries) {
        // Decoding the head checked that the lengths add up.
        let (item, behind) = rest.split_at_checked(entry.raw_len as usize).unwrap_or((rest, &[]));
        rest = behind;
        let Some(kind) = entry.item_kind() else { continue };
        if let Err(error) = check_id(item, &entry.id, kind) {
            found.push(Finding::of(&error.at(at), range.clone(), Loss::Item(slot)));
        }
    }
}
