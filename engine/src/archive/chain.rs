//! All commits of an archive, oldest first, damaged ones included.
//!
//! Each commit names the one before. Where that one is damaged in both copies, the records before
//! it still name the one before them, so that its own loss hides no other.

use std::ops::Range;

use voltar_format::commit::Commit;
use voltar_format::limits::BLOCK_LEN;
use voltar_format::{FormatError, LogOffset, Structure};

use super::format_error;
use super::open::{Archive, find_last_commit, read_commit};
use crate::error::{Error, Result};

/// A place in the log where a commit is or was.
#[derive(Debug)]
pub struct Link {
    /// Its bytes, both copies.
    pub range: Range<u64>,
    /// Where the records that it seals begin: the end of the commit before.
    pub log_start: u64,
    /// Why neither copy can be used, if so.
    pub lost: Option<Box<Error>>,
}

impl Link {
    /// The commit.
    ///
    /// # Errors
    /// `Damaged` if both copies are.
    pub fn read(&self, archive: &Archive) -> Result<Commit> {
        let len = (self.range.end - self.range.start) / 2;
        read_commit(&*archive.home, archive.id, LogOffset(self.range.start), len)
    }
}

/// The commits, oldest first: nothing before the last commit lies outside of the intervals from
/// `log_start` to the commit's end.
///
/// # Errors
/// Of reading while searching for what a damaged commit hides.
pub fn links(archive: &Archive) -> Result<Vec<Link>> {
    let mut links = Vec::new();
    let mut next = archive.last.clone();
    while let Some(commit) = next.take() {
        let (previous, log_start) = match previous(archive, &commit) {
            Before::Nothing => (None, BLOCK_LEN as u64),
            Before::Commit(previous) => {
                let end = previous.end().0;
                (Some(*previous), end)
            }
            Before::Lost(range, error) => {
                let end = range.end;
                links.push(link(&commit, end));
                let before = find_last_commit(&*archive.home, archive.id, range.start)?
                    .filter(|before| before.end().0 <= range.start);
                let log_start = before.as_ref().map_or(BLOCK_LEN as u64, |before| before.end().0);
                links.push(Link { range, log_start, lost: Some(error) });
                next = before;
                continue;
            }
        };
        links.push(link(&commit, log_start));
        next = previous;
    }
    links.reverse();
    Ok(links)
}

fn link(commit: &Commit, log_start: u64) -> Link {
    Link { range: commit.offset.0..commit.end().0, log_start, lost: None }
}

enum Before {
    Nothing,
    Commit(Box<Commit>),
    Lost(Range<u64>, Box<Error>),
}

/// What is before `commit`. A commit that is whole, but not the one that is named, counts: what
/// it says can be checked, and whoever proves the chain compares the hashes.
fn previous(archive: &Archive, commit: &Commit) -> Before {
    let at = commit.head.previous;
    if at == LogOffset(0) {
        return Before::Nothing;
    }
    let block = BLOCK_LEN as u64;
    let is_place = at.0.is_multiple_of(block) && at.0 >= block && at < commit.offset;
    if !is_place {
        return Before::Nothing;
    }
    let lost = |error: Error| {
        let end =
            commit.head.log_start.0.next_multiple_of(block).clamp(at.0 + block, commit.offset.0);
        Before::Lost(at.0..end, Box::new(error))
    };
    match read_commit(&*archive.home, archive.id, at, commit.head.previous_len) {
        Ok(previous) if previous.end() <= commit.offset => Before::Commit(Box::new(previous)),
        Ok(_) => {
            let overlap =
                FormatError::new(Structure::Commit, "F-043", "it reaches into its successor")
                    .at(at);
            lost(format_error(archive.label(), overlap))
        }
        Err(error) => lost(error),
    }
}
