//! Snapshots by name: the chain of commits, and what a selector means.

use voltar_format::SnapshotId;
use voltar_format::commit::Commit;
use voltar_format::manifest::Manifest;

use super::chain::links;
use super::format_error;
use super::open::Archive;
use crate::error::{Error, ErrorKind, Result};
use crate::options::Selector;
use crate::words::count;

/// A snapshot and the commit that made it.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// Its id.
    pub id: SnapshotId,
    /// What it is.
    pub manifest: Manifest,
    /// The commit.
    pub commit: Commit,
}

/// The commits of an archive, newest first.
pub struct Commits<'a> {
    archive: &'a Archive,
    next: Option<Result<Commit>>,
}

impl Archive {
    /// The commits, newest first. Ends after the first error.
    pub fn commits(&self) -> Commits<'_> {
        Commits { archive: self, next: self.last.clone().map(Ok) }
    }

    /// The snapshots, newest first. Ends after the first error.
    pub fn snapshots(&self) -> impl Iterator<Item = Result<Snapshot>> + '_ {
        self.commits().filter_map(|commit| match commit {
            Ok(commit) => self.snapshot_of(commit).transpose(),
            Err(error) => Some(Err(error)),
        })
    }

    /// The snapshot a commit made, if it made one.
    ///
    /// # Errors
    /// `Damaged` if its manifest breaks the format.
    pub fn snapshot_of(&self, commit: Commit) -> Result<Option<Snapshot>> {
        let Some(id) = commit.snapshot_id() else { return Ok(None) };
        let manifest = Manifest::decode(&commit.manifest)
            .map_err(|error| format_error(self.label(), error.at(commit.offset)))?;
        Ok(Some(Snapshot { id, manifest, commit }))
    }

    /// The snapshot a selector means.
    ///
    /// # Errors
    /// `NotFound`, or `Ambiguous` for an id prefix that fits several.
    pub fn select(&self, selector: &Selector) -> Result<Snapshot> {
        match selector {
            Selector::Latest(back) => self.counted_back(*back),
            Selector::TimeRange(range) => self
                .find(|snapshot| range.contains(&snapshot.manifest.time_ns))?
                .ok_or_else(|| self.no_such_snapshot("no snapshot was made at that time")),
            Selector::IdPrefix(prefix) => self.find_by_id(prefix)?.ok_or_else(|| {
                self.no_such_snapshot(format!("no snapshot has an id that starts with {prefix}"))
            }),
        }
    }

    /// The snapshot so many before the newest. A commit that is lost, or may be, cannot be counted
    /// past: nobody knows which snapshot would be meant.
    fn counted_back(&self, back: u64) -> Result<Snapshot> {
        if let Some((_, error)) = self.lost_commit() {
            let newest = match self.lost {
                Some(_) => "the newest snapshot is lost",
                None => "a newer snapshot may be hidden there",
            };
            return Err(format_error(self.label(), error)
                .hint(format!("{newest}; `voltar list` shows the others: name one by its id")));
        }
        let mut passed = 0;
        for snapshot in self.snapshots() {
            let snapshot = snapshot?;
            if passed == back {
                return Ok(snapshot);
            }
            passed += 1;
        }
        Err(self.no_such_snapshot(match passed {
            0 => "the archive holds no snapshot".to_owned(),
            passed => format!("the archive holds only {}", count(passed, "snapshot")),
        }))
    }

    /// The newest snapshot that fits. What lies behind a damaged commit is found, too.
    fn find(&self, mut fits: impl FnMut(&Snapshot) -> bool) -> Result<Option<Snapshot>> {
        self.each_still_there(|snapshot| Ok(fits(&snapshot).then_some(snapshot)))
    }

    /// Calls `visit` for each snapshot, newest first, until it returns one. A commit that is lost
    /// in both copies is passed over; if nothing is found then, its loss is the answer.
    fn each_still_there(
        &self,
        mut visit: impl FnMut(Snapshot) -> Result<Option<Snapshot>>,
    ) -> Result<Option<Snapshot>> {
        let mut seen_from = u64::MAX;
        let mut damage = None;
        for snapshot in self.snapshots() {
            match snapshot {
                Ok(snapshot) => {
                    seen_from = snapshot.commit.offset.0;
                    if let Some(found) = visit(snapshot)? {
                        return Ok(Some(found));
                    }
                }
                Err(error) if matches!(error.kind(), ErrorKind::Damaged | ErrorKind::Io) => {
                    damage = Some(error);
                }
                Err(error) => return Err(error),
            }
        }
        let Some(damage) = damage else { return Ok(None) };
        for link in links(self)?.iter().rev() {
            if link.lost.is_some() || link.range.start >= seen_from {
                continue;
            }
            if let Some(snapshot) = self.snapshot_of(link.read(self)?)?
                && let Some(found) = visit(snapshot)?
            {
                return Ok(Some(found));
            }
        }
        Err(damage)
    }

    fn find_by_id(&self, prefix: &str) -> Result<Option<Snapshot>> {
        let mut found: Option<Snapshot> = None;
        let searched = self.each_still_there(|snapshot| {
            if !snapshot.id.to_hex().starts_with(prefix) {
                return Ok(None);
            }
            if found.as_ref().is_some_and(|found| found.id != snapshot.id) {
                let message = format!("several snapshots have ids that start with {prefix}");
                return Err(Error::new(ErrorKind::Ambiguous, message)
                    .on(self.label())
                    .hint("give more digits; `voltar list` shows the ids"));
            }
            found.get_or_insert(snapshot);
            Ok(None)
        });
        match (found, searched) {
            (_, Err(error)) if error.kind() == ErrorKind::Ambiguous => Err(error),
            (Some(found), _) => Ok(Some(found)),
            (None, searched) => searched,
        }
    }

    fn no_such_snapshot(&self, message: impl Into<String>) -> Error {
        Error::new(ErrorKind::NotFound, message)
            .on(self.label())
            .hint("`voltar list` shows what it holds")
    }
}

impl Iterator for Commits<'_> {
    type Item = Result<Commit>;

    fn next(&mut self) -> Option<Result<Commit>> {
        let commit = self.next.take()?;
        if let Ok(commit) = &commit {
            self.next = self.archive.previous(commit).transpose();
        }
        Some(commit)
    }
}
