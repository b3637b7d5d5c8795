//! The one slot that a thin pool has for a snapshot of its metadata, which all tools share.
//!
//! Two runs of voltar take turns by a lock. A run that is killed leaves the slot taken; so that the
//! next one may free it, and no other tool's, a note is left before the slot is taken: the pool,
//! the pool's transaction, and, once it is known, the block that the metadata snapshot lies in. A
//! slot that somebody else holds is left alone.

use std::cell::RefCell;
use std::fmt;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use super::Degraded;
use super::thin_metadata::{BLOCK_LEN, Block, Metadata, MetadataBlocks};
use crate::cancel::Cancel;
use crate::device::file::{Access, FileDevice};
use crate::device::medium::MediumReader;
use crate::error::Error;
use crate::host::dm::{self, PoolStatus};
use crate::host::lock::Lock;
use crate::host::lvm;
use crate::words::with_causes;

/// How long another run of ours may hold the slot: it reads what it needs and goes.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long those who only look what a device is (udev's `blkid`) may have the metadata open.
const PROBES: Duration = Duration::from_secs(1);
const NAP: Duration = Duration::from_millis(20);

/// A thin pool.
#[derive(Clone, Debug)]
pub struct Pool {
    /// Its volume group.
    pub group: String,
    /// Its name.
    pub name: String,
    /// Its identity.
    pub uuid: String,
}

impl Pool {
    /// The mapping that takes messages.
    fn mapping(&self) -> String {
        format!("{}-tpool", dm::name_of(&self.group, &self.name))
    }

    /// The name of the volume that holds its metadata.
    fn metadata(&self) -> String {
        format!("{}_tmeta", self.name)
    }

    /// The mapping of that.
    fn metadata_mapping(&self) -> String {
        dm::name_of(&self.group, &self.metadata())
    }

    /// A digest of where its metadata lies.
    ///
    /// # Errors
    /// `Degraded` if LVM does not say.
    pub fn metadata_layout(&self) -> Result<String, Degraded> {
        lvm::layout(&self.group, &self.metadata())
            .map_err(|error| degraded("LVM does not say where the pool's metadata lies", &error))
    }

    fn status(&self) -> Result<PoolStatus, Degraded> {
        let status = dm::status(&self.mapping()).and_then(|target| PoolStatus::of(&target));
        status.map_err(|error| degraded("the thin pool cannot be asked for its state", &error))
    }

    /// Takes the slot, has `read` read the metadata, and gives the slot back.
    ///
    /// # Errors
    /// `Degraded` if the slot is not to be had, the pool is in a state in which nothing it says is
    /// to be trusted, or `read` says so.
    pub fn read<T>(
        &self,
        state: &Path,
        cancel: &Cancel,
        read: impl FnOnce(&Metadata<'_>) -> Result<T, Degraded>,
    ) -> Result<T, Degraded> {
        let mut slot = Slot::take(self, state, cancel)?;
        let outcome = slot.open(cancel).and_then(|blocks| {
            let metadata = Metadata::open(&blocks, slot.root).map_err(unreadable)?;
            read(&metadata)
        });
        slot.release().map_err(|error| {
            degraded("the snapshot of the pool's metadata could not be released", &error)
        })?;
        outcome
    }
}

/// What was found wrong, with its causes, for people.
pub fn degraded(what: &str, error: &dyn std::error::Error) -> Degraded {
    Degraded(format!("{what}: {}", with_causes(error)))
}

/// That the metadata is not to be used.
pub fn unreadable(error: impl std::error::Error + 'static) -> Degraded {
    degraded("the thin pool's metadata cannot be used", &error)
}

/// What stands in the note. Without a root, the run was killed between leaving it and learning
/// where the metadata snapshot lies.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Note {
    pool: String,
    transaction_id: u64,
    root: Option<u64>,
}

impl Note {
    fn read(text: &str) -> Option<Note> {
        let mut words = text.split(' ');
        let note = Note {
            pool: words.next()?.to_owned(),
            transaction_id: words.next()?.parse().ok()?,
            root: match words.next()? {
                "-" => None,
                root => Some(root.parse().ok()?),
            },
        };
        words.next().is_none().then_some(note)
    }
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} ", self.pool, self.transaction_id)?;
        match self.root {
            Some(root) => write!(f, "{root}"),
            None => f.write_str("-"),
        }
    }
}

/// The slot, taken. It is given back when dropped, whatever happened.
struct Slot<'a> {
    pool: &'a Pool,
    lock: Lock,
    root: u64,
    is_held: bool,
}

impl<'a> Slot<'a> {
    fn take(pool: &'a Pool, state: &Path, cancel: &Cancel) -> Result<Slot<'a>, Degraded> {
        let name = format!("thin-pool {}", pool.uuid);
        let lock = Lock::take(state, &name, PATIENCE, cancel)
            .map_err(|error| degraded("the pool's metadata is in use", &error))?;
        let mut slot = Slot { pool, lock, root: 0, is_held: false };
        let status = slot.trusted_status()?;
        if let Some(root) = status.held_root {
            slot.free_after_a_kill(root, cancel)?;
        }
        let note =
            Note { pool: pool.uuid.clone(), transaction_id: status.transaction_id, root: None };
        slot.leave(&note)?;
        // From here on it is given back, even if its root is never learnt.
        let reserved = dm::message(&pool.mapping(), "reserve_metadata_snap");
        if let Err(error) = reserved {
            slot.leave_nothing()?;
            return Err(degraded("no snapshot of the pool's metadata can be taken", &error));
        }
        slot.is_held = true;
        let Some(root) = slot.trusted_status()?.held_root else {
            return Err(Degraded("the snapshot of the pool's metadata is gone again".into()));
        };
        slot.root = root;
        slot.leave(&Note { root: Some(root), ..note })?;
        Ok(slot)
    }

    /// The state of a pool that can be trusted.
    fn trusted_status(&self) -> Result<PoolStatus, Degraded> {
        let status = self.pool.status()?;
        match status.trouble {
            Some(trouble) => Err(Degraded(trouble.to_owned())),
            None => Ok(status),
        }
    }

    /// Frees the slot if the run that took it was one of ours, and was killed: nobody else of ours
    /// has it, for we have the lock.
    fn free_after_a_kill(&mut self, root: u64, cancel: &Cancel) -> Result<(), Degraded> {
        let note = self.lock.note().map_err(|error| degraded("a note cannot be read", &error))?;
        let note = note.as_deref().and_then(Note::read);
        let is_ours = match &note {
            // A block that was freed may be another tool's by now; but whoever compares snapshots
            // makes one first, which is a transaction, and reads what it holds.
            Some(note) if note.pool == self.pool.uuid => {
                note.root.is_none_or(|noted| noted == root)
                    && self.transaction_of(root, cancel) == Some(note.transaction_id)
                    && !self.is_read(cancel)
            }
            _ => false,
        };
        if !is_ours {
            return Err(Degraded(format!(
                "another tool holds the pool's only snapshot of its metadata (block {root}); if \
                 none does: dmsetup message {} 0 release_metadata_snap",
                self.pool.mapping()
            )));
        }
        self.is_held = true;
        self.release().map_err(|error| {
            degraded("the metadata snapshot of a killed run cannot be released", &error)
        })
    }

    fn transaction_of(&self, root: u64, cancel: &Cancel) -> Option<u64> {
        let blocks = self.open(cancel).ok()?;
        Some(Metadata::open(&blocks, root).ok()?.superblock().transaction_id)
    }

    /// Whether anybody goes on reading the metadata; who cannot tell takes it so.
    fn is_read(&self, cancel: &Cancel) -> bool {
        let mapping = self.pool.metadata_mapping();
        let end = Instant::now() + PROBES;
        loop {
            // The pool itself has it open.
            if dm::open_count(&mapping).is_ok_and(|count| count <= 1) {
                return false;
            }
            if Instant::now() > end || cancel.is_raised() {
                return true;
            }
            std::thread::sleep(NAP);
        }
    }

    fn open(&self, cancel: &Cancel) -> Result<MetadataDevice, Degraded> {
        let path = dm::path_of(&self.pool.metadata_mapping());
        let open = || {
            let device = FileDevice::open(&path, Access::Read)?;
            let reader = RefCell::new(MediumReader::new(&device)?);
            io::Result::Ok(MetadataDevice { reader, cancel: cancel.clone() })
        };
        open().map_err(|error| degraded("the pool's metadata cannot be opened", &error))
    }

    fn leave(&mut self, note: &Note) -> Result<(), Degraded> {
        self.lock
            .leave(&note.to_string())
            .map_err(|error| degraded("a note on the pool's metadata cannot be left", &error))
    }

    fn leave_nothing(&mut self) -> Result<(), Degraded> {
        self.lock.leave("").map_err(|error| degraded("a note cannot be taken back", &error))
    }

    fn release(&mut self) -> Result<(), Error> {
        if self.is_held {
            dm::message(&self.pool.mapping(), "release_metadata_snap")?;
            self.is_held = false;
            self.lock.leave("")?;
        }
        Ok(())
    }
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        // On the way out of a failure, which says more; the note stays for the next run.
        let _ = self.release();
    }
}

/// The blocks of a pool's metadata, past the page cache, which knows nothing of what the kernel
/// writes there.
struct MetadataDevice {
    reader: RefCell<MediumReader>,
    cancel: Cancel,
}

impl MetadataBlocks for MetadataDevice {
    fn read(&self, number: u64, bytes: &mut Block) -> io::Result<()> {
        if self.cancel.is_raised() {
            return Err(io::Error::other("interrupted"));
        }
        self.reader.borrow_mut().read_at(number * BLOCK_LEN as u64, bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_comes_back_and_a_torn_one_is_none() {
        for root in [None, Some(17)] {
            let note = Note { pool: "abc-def".into(), transaction_id: 3, root };
            assert_eq!(Note::read(&note.to_string()), Some(note));
        }
        for torn in ["", "abc", "abc 3", "abc x 4", "abc 3 4 5", "abc 3 "] {
            assert_eq!(Note::read(torn), None, "{torn:?}");
        }
    }
}
