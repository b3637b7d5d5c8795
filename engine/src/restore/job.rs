//! One volume's restore as all stages see it: what, how, and how far it is.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use voltar_format::manifest::Volume;
use voltar_format::map::{Node, Shape, span_of_node};
use voltar_format::walk::{Cursor, NodeSource};
use voltar_format::{ChunkIndex, Id};

use super::lost::Lost;
use crate::archive::format_error;
use crate::archive::index::Index;
use crate::archive::open::Archive;
use crate::archive::snapshots::Snapshot;
use crate::archive::store::Store;
use crate::device::{Extents, Zero, ZeroMethod, medium};
use crate::error::{Error, ErrorKind, Result};
use crate::options::OnDamage;

/// What a volume is written to.
pub trait Target: Zero + Extents {}

impl<T: Zero + Extents + ?Sized> Target for T {}

/// One volume of a snapshot, to be brought back.
#[derive(Clone)]
pub struct Job {
    /// The archive.
    pub archive: Archive,
    /// Its index, as of the snapshot.
    pub index: Index,
    /// The volume.
    pub volume: Volume,
    /// The shape of its map.
    pub shape: Shape,
    /// What to do about damage.
    pub on_damage: OnDamage,
}

impl Job {
    /// The job of restoring `volume` of `snapshot`.
    ///
    /// # Errors
    /// `Damaged` if the volume has no valid shape.
    pub fn new(
        archive: &Archive,
        snapshot: &Snapshot,
        volume: &Volume,
        on_damage: OnDamage,
    ) -> Result<Job> {
        let shape = volume.shape().map_err(|error| format_error(archive.label(), error))?;
        // The snapshot's own runs hold all it needs, whatever became of those after it; those
        // after it know what was stored again.
        let index = Index::of_commit(archive, &snapshot.commit);
        let (archive, volume) = (archive.clone(), volume.clone());
        Ok(Job { archive, index, volume, shape, on_damage })
    }

    /// At the start of the volume's map.
    pub fn cursor(&self) -> Cursor {
        Cursor::new(self.shape, self.volume.root)
    }

    /// Where the map's nodes come from; damaged ones are told to `lost`, if damage is borne and
    /// somebody wants to know.
    ///
    /// # Errors
    /// Out of memory.
    pub fn nodes<'a>(&'a self, lost: Option<&'a Lost>) -> Result<Nodes<'a>> {
        let store = Store::new(self.archive.home.clone(), self.index.clone())?;
        Ok(Nodes { job: self, store, lost })
    }

    /// The bytes of these chunks.
    pub fn bytes_of(&self, chunks: &Range<u64>) -> Range<u64> {
        let start = self.shape.chunk_range(ChunkIndex(chunks.start)).start;
        let end = match chunks.end >= self.shape.chunk_count() {
            true => self.shape.size(),
            false => self.shape.chunk_range(ChunkIndex(chunks.end)).start,
        };
        start..end.max(start)
    }

    /// Whether `error` is damage that is borne.
    pub fn bears(&self, error: &Error) -> bool {
        self.on_damage == OnDamage::Zero && error.is_damage() && self.is_there(error)
    }

    /// Whether the archive is still there after `error`. One that went away in the middle holds
    /// nothing that is lost.
    fn is_there(&self, error: &Error) -> bool {
        let home = &*self.archive.home;
        // Of a block device that is gone there is nothing left, and every read is cut short.
        let is_whole = home.len().is_ok_and(|len| len >= self.archive.end().0);
        let last = self.archive.last.as_ref().map_or(0, |commit| commit.offset.0);
        // Not one place: it may be the one that is bad. These two were read when the archive was
        // opened, so that the page cache would have them.
        let answers = || [0, last].iter().any(|at| medium::read_block(home, *at).is_ok());
        is_whole && (error.kind() != ErrorKind::Io || answers())
    }

    /// `error`, which is not borne, as the reason why these bytes of the volume cannot be had.
    pub fn lost(&self, range: &Range<u64>, error: Error) -> Error {
        // All damage would have been borne.
        let is_gone = self.on_damage == OnDamage::Zero || !self.is_there(&error);
        let (kind, hint) = match is_gone {
            true => (
                ErrorKind::Io,
                "the archive cannot be read any more: attach it again, then run the same command \
                 again",
            ),
            false => (
                error.kind(),
                "`voltar verify` lists all damage; `--on-damage zero` restores the rest",
            ),
        };
        let (start, end, name) = (range.start, range.end, &self.volume.name);
        let message = format!("cannot restore bytes {start:#x}..{end:#x} of volume {name:?}");
        let lost = Error::new(kind, message).on(self.archive.label()).hint(hint);
        match error.range() {
            Some(place) => lost.at(place).because(error),
            None => lost.because(error),
        }
    }
}

/// The map's nodes. Where damage is borne, a node that cannot be had is one of zeroes, and the
/// bytes it covers are lost.
pub struct Nodes<'a> {
    job: &'a Job,
    store: Store,
    lost: Option<&'a Lost>,
}

impl NodeSource for Nodes<'_> {
    type Error = Error;

    fn node(&mut self, id: &Id, shape: &Shape, level: u8, number: u64) -> Result<Node> {
        match self.store.node(id, shape, level, number) {
            Err(error) if self.job.bears(&error) => {
                self.lost.iter().for_each(|lost| lost.add(covered(shape, level, number)));
                let children = shape.child_count(level, number);
                Ok(Node { level, entries: vec![voltar_format::map::Entry::Zero; children] })
            }
            Err(error) if error.is_damage() => {
                let bytes = self.job.bytes_of(&covered(shape, level, number));
                Err(self.job.lost(&bytes, error))
            }
            other => other,
        }
    }
}

/// The chunks of the volume that node `number` at `level` covers.
fn covered(shape: &Shape, level: u8, number: u64) -> Range<u64> {
    let (span, count) = (span_of_node(level), shape.chunk_count());
    let start = number.saturating_mul(span).min(count);
    start..start.saturating_add(span).min(count)
}

/// What has been done to the target so far; told by all stages.
#[derive(Debug)]
pub struct Tally {
    /// Bytes written as data.
    pub written: AtomicU64,
    /// Bytes zeroed.
    pub zeroed: AtomicU64,
    /// Bytes proven equal and left alone.
    pub kept: AtomicU64,
    /// What the archive could not give.
    pub lost: Lost,
    touched: AtomicBool,
    methods: Mutex<BTreeSet<&'static str>>,
}

impl Tally {
    /// Of a restore that lost nothing yet, nor did anything.
    pub fn new(lost: Lost) -> Tally {
        let (written, zeroed, kept) = Default::default();
        let (touched, methods) = Default::default();
        Tally { written, zeroed, kept, lost, touched, methods }
    }

    /// Notes that the target's bytes are about to change.
    pub fn touch(&self) {
        self.touched.store(true, Ordering::Release);
    }

    /// Whether any of the target's bytes may have changed.
    pub fn is_touched(&self) -> bool {
        self.touched.load(Ordering::Acquire)
    }

    /// Counts bytes that read as zeroes now, thanks to `method`; `None` if they did all along,
    /// because the target was created as a hole.
    pub fn zeroed(&self, bytes: u64, method: Option<ZeroMethod>) {
        self.zeroed.fetch_add(bytes, Ordering::Relaxed);
        let mut methods = self.methods.lock().unwrap_or_else(PoisonError::into_inner);
        methods.insert(match method {
            None => "hole",
            Some(ZeroMethod::PunchHole) => "punch-hole",
            Some(ZeroMethod::ZeroRange) => "zero-range",
            Some(ZeroMethod::Write) => "write",
        });
    }

    /// How zeroes were made: names, joined.
    pub fn zero_method(&self) -> String {
        let methods = self.methods.lock().unwrap_or_else(PoisonError::into_inner);
        methods.iter().copied().collect::<Vec<_>>().join(", ")
    }
}
