//! The new archive: one session after the other, and what its index holds.

use std::sync::Arc;

use voltar_format::Id;
use voltar_format::frame::ItemKind;

use crate::archive::Home;
use crate::archive::index::{Fresh, Index, Known};
use crate::archive::open::Archive;
use crate::archive::resume::adopt;
use crate::archive::session::{Session, WRITE_DEPTH};
use crate::archive::store::{Store, place_of};
use crate::backup::plan::{self, open_home};
use crate::error::{Error, ErrorKind, Result};
use crate::io_engine;
use crate::options::{Context, IoEngine};
use crate::verify::frames::entry_in_frame;

/// An archive that is being made.
pub(super) struct Target<'a> {
    /// As its last commit left it.
    pub archive: Archive,
    /// What is in its runs.
    pub index: Index,
    /// What need not be stored again.
    pub known: Known,
    /// What to do it with.
    pub context: &'a Context,
    fresh: Arc<Fresh>,
    engine: IoEngine,
}

impl<'a> Target<'a> {
    /// Makes an empty archive in `home`, whose name `keep_name` makes durable before.
    ///
    /// # Errors
    /// Of writing it; `Internal` if `home` holds an archive.
    pub fn new(
        home: Arc<dyn Home>,
        keep_name: impl FnOnce() -> Result<()>,
        context: &'a Context,
    ) -> Result<Target<'a>> {
        let engine = io_engine::choose(context)?;
        let archive = match open_home(home, false, keep_name)? {
            plan::Target::Archive(archive) if archive.last.is_none() => *archive,
            _ => return Err(Error::new(ErrorKind::Internal, "the new archive is not empty")),
        };
        let index = Index::new(Arc::clone(&archive.home), Vec::new());
        let fresh = Arc::default();
        let known = Known::new(Some(index.clone()), Arc::clone(&fresh));
        Ok(Target { archive, index, known, context, fresh, engine })
    }

    /// What messages call it.
    pub fn label(&self) -> &str {
        self.archive.label()
    }

    /// Begins a session behind the last commit.
    ///
    /// # Errors
    /// If I/O cannot be set up.
    pub fn session(&self) -> Result<Session> {
        // Nothing lies there to be adopted; what comes back is where the log goes on.
        let beginning = adopt(&self.archive, &self.index, &self.fresh, self.context)?;
        let (index, fresh) = (self.index.clone(), Arc::clone(&self.fresh));
        let (engine, depth) = (self.engine, WRITE_DEPTH);
        Session::in_home(&self.archive, index, fresh, beginning, engine, depth, false)
    }

    /// Ends a session, with a snapshot or (no bytes of a manifest) without.
    ///
    /// # Errors
    /// Of writing.
    pub fn commit(&mut self, session: Session, manifest: &[u8]) -> Result<()> {
        let (commit, _) = session.commit(manifest)?;
        self.index.set_runs(commit.runs.clone());
        self.archive.last = Some(commit);
        Ok(())
    }

    /// A reader of its items.
    ///
    /// # Errors
    /// Out of memory.
    pub fn store(&self) -> Result<Store> {
        Store::new(Arc::clone(&self.archive.home), self.index.clone())
    }

    /// Bytes of a committed item, if it is there and of this kind; all but nodes are of one kind
    ///
    ///
    /// # Errors
    /// Of reading the index.
    pub fn len_of(&self, id: &Id, kind: ItemKind) -> Result<Option<u32>> {
        let place = self.index.find(id)?.map(|entry| place_of(&entry));
        let entry = place.and_then(|place| entry_in_frame(&self.archive, &place));
        let is_node = |kind: ItemKind| kind == ItemKind::Node;
        let fits = entry.filter(|entry| entry.item_kind().map(is_node) == Some(is_node(kind)));
        Ok(fits.map(|entry| entry.raw_len))
    }
}
