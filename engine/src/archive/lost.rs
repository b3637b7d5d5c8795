//! What is known of commits that are lost in both copies: where they were, how many, made when,
//! and which snapshots went with them.
//!
//! A commit is numbered, and a snapshot names its parent: those that are left say what is missing
//! between them.

use std::collections::BTreeSet;

use voltar_format::SnapshotId;
use voltar_format::limits::BLOCK_LEN;

use super::chain::{Link, links};
use super::open::Archive;
use crate::error::Result;
use crate::report::{ByteRange, Losses, LostCommits};

/// The commits of `archive` that are lost, and what the others say of them.
///
/// # Errors
/// As [`links`].
pub fn losses(archive: &Archive) -> Result<Losses> {
    Ok(losses_among(archive, &links(archive)?))
}

/// As [`losses`], with the commits at hand.
pub fn losses_among(archive: &Archive, links: &[Link]) -> Losses {
    let mut search = Search::default();
    for link in links {
        search.link(archive, link);
    }
    if let Some(at) = archive.lost {
        // Of the newest one it is known where it began; how many followed it, nobody says.
        search.open_gap(at.0, BLOCK_LEN as u64);
    }
    let unread = archive.unread.map(|at| ByteRange { offset: at.0, length: BLOCK_LEN as u64 });
    Losses { unread, ..search.finish() }
}

/// Goes through the commits, oldest first.
#[derive(Default)]
struct Search {
    found: Losses,
    /// Lost commits since the last one that is whole.
    gap: Option<LostCommits>,
    number: u64,
    /// The snapshot before.
    before: Option<String>,
    present: BTreeSet<SnapshotId>,
    named: BTreeSet<SnapshotId>,
}

impl Search {
    fn link(&mut self, archive: &Archive, link: &Link) {
        let commit = match (&link.lost, link.read(archive)) {
            (None, Ok(commit)) => commit,
            _ => return self.open_gap(link.range.start, link.range.end - link.range.start),
        };
        let number = commit.head.number;
        let between = number.saturating_sub(self.number).saturating_sub(1);
        self.number = number;
        // One without a readable manifest made a snapshot all the same.
        let id = commit.snapshot_id();
        let parent = archive.snapshot_of(commit).ok().flatten().and_then(|it| it.manifest.parent);
        self.present.extend(id);
        self.named.extend(parent);
        if let Some(gap) = self.gap.take() {
            let before = id.map(|id| id.to_hex());
            self.found.lost_commits.push(LostCommits { commits: Some(between), before, ..gap });
        }
        self.before = id.map(|id| id.to_hex()).or(self.before.take());
    }

    fn open_gap(&mut self, offset: u64, length: u64) {
        match &mut self.gap {
            Some(gap) => gap.length = (offset + length).saturating_sub(gap.offset),
            None => {
                let after = self.before.clone();
                let (commits, before) = (None, None);
                self.gap = Some(LostCommits { offset, length, commits, after, before });
            }
        }
    }

    fn finish(mut self) -> Losses {
        self.found.lost_commits.extend(self.gap.take());
        // In an archive that lost no commit, a parent that is not there never was.
        if !self.found.lost_commits.is_empty() {
            let lost = self.named.difference(&self.present);
            self.found.lost_snapshots = lost.map(|id| id.to_hex()).collect();
        }
        self.found
    }
}
