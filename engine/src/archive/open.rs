//! Opening: from the file's end to the last commit.

use std::collections::BTreeSet;
use std::sync::Arc;

use voltar_format::commit::Commit;
use voltar_format::header::{Header, HeaderFields, MAGIC};
use voltar_format::limits::{BLOCK_LEN, COMMIT_LEN_MAX};
use voltar_format::record::{FLAG_SECOND_COPY, RecordHead, RecordKind};
use voltar_format::segment::{FOOTER_MAGIC, Footer};
use voltar_format::{ArchiveId, FormatError, LogOffset, Structure, wire};

use super::blocks::{WINDOW_LEN, blocks};
use super::{Home, format_error, read_exact};
use crate::error::{Error, ErrorKind, Result};

const BLOCK: u64 = BLOCK_LEN as u64;

/// Bytes that a search may read, over and above the log itself, of commits that turn out not to be
/// whole. An honest archive with a damage or two needs a few copies' worth; a forged one could ask
/// for megabytes with each of its blocks.
const IN_VAIN_MAX: u64 = 32 * COMMIT_LEN_MAX;

/// An archive whose last commit is known.
#[derive(Clone)]
pub struct Archive {
    /// Where it lives.
    pub home: Arc<dyn Home>,
    /// Its id.
    pub id: ArchiveId,
    /// Its header, or what is wrong with it.
    pub header: Result<Header, FormatError>,
    /// Its last commit; `None` for an archive without snapshots.
    pub last: Option<Commit>,
    /// Where a later commit was that a whole record behind it names and that is damaged in both
    /// copies: it existed, so this is no interrupted run.
    pub lost: Option<LogOffset>,
    /// The last block behind the last commit that cannot be read: it may hide a later commit.
    pub unread: Option<LogOffset>,
}

/// What a file is, before it is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shelf {
    /// An archive, or something damaged that was one.
    Archive,
    /// Nothing yet: empty, or a first block of zeroes that a crash left behind.
    Blank,
    /// Something else.
    Foreign,
}

/// What the file in `home` is.
///
/// # Errors
/// Those of reading it, if neither the header nor a first record shows.
pub fn look(home: &dyn Home) -> Result<Shelf> {
    let len = length(home)?;
    let block = match first_block(home, len) {
        Ok(block) => block,
        Err(_) if first_record(home, len).is_some() => return Ok(Shelf::Archive),
        Err(error) => return Err(error),
    };
    if len <= BLOCK && wire::is_zero(&block) {
        return Ok(Shelf::Blank);
    }
    if block.starts_with(&MAGIC) || first_record(home, len).is_some() {
        return Ok(Shelf::Archive);
    }
    Ok(Shelf::Foreign)
}

/// The first block of a file of `len` bytes, or what there is of it.
fn first_block(home: &dyn Home, len: u64) -> Result<Vec<u8>> {
    blocks(home, 0..BLOCK.min(len)).next().map_or(Ok(Vec::new()), |(_, block)| block)
}

/// The archive's id according to its first record, for when the header is lost.
fn first_record(home: &dyn Home, len: u64) -> Option<ArchiveId> {
    if len < 2 * BLOCK {
        return None;
    }
    let bytes = read_exact(home, LogOffset(BLOCK), RecordHead::LEN).ok()?;
    let (head, _) = RecordHead::decode_at(&bytes, LogOffset(BLOCK), None).ok()?;
    Some(head.archive_id)
}

impl Archive {
    /// Opens the archive in `home`.
    ///
    /// # Errors
    /// `NotAnArchive`; `UnsupportedFormat` naming version or features; `Damaged` if neither the
    /// header nor the first record says which archive this is.
    pub fn open(home: Arc<dyn Home>) -> Result<Archive> {
        match look(&*home)? {
            Shelf::Archive => {}
            Shelf::Blank => {
                return Err(Error::new(
                    ErrorKind::NotAnArchive,
                    "the file is empty, not an archive",
                )
                .on(home.label())
                .hint("a backup into it makes it one"));
            }
            Shelf::Foreign => return Err(foreign(&*home)),
        }
        let len = length(&*home)?;
        let block = first_block(&*home, len);
        let header = decode_header(&block);
        let id = match &header {
            Ok(header) => header.archive_id,
            Err(error) if error.unsupported => {
                return Err(format_error(home.label(), error.clone()));
            }
            Err(error) => match (first_record(&*home, len), block) {
                (Some(id), _) => id,
                (None, Ok(_)) => return Err(format_error(home.label(), error.clone())),
                (None, Err(error)) => return Err(error),
            },
        };
        match Archive::found(home, id, header)? {
            // Nothing says whether the archive is empty.
            (Archive { last: None, .. }, Some(error)) => Err(error),
            (archive, _) => Ok(archive),
        }
    }

    /// The archive `id` as a search from the file's end finds it, and why the block in `unread`
    /// cannot be read.
    ///
    /// # Errors
    /// `UnsupportedFormat`; `Damaged` for an archive made to exhaust the search.
    pub fn found(
        home: Arc<dyn Home>,
        id: ArchiveId,
        header: Result<Header, FormatError>,
    ) -> Result<(Archive, Option<Error>)> {
        let mut search = Search::new(&*home, id);
        let last = search.last_commit(length(&*home)?)?;
        let lost = search.lost;
        let end = last.as_ref().map_or(LogOffset(BLOCK), Commit::end);
        let (unread, error) = search.unread.filter(|(at, _)| *at >= end).unzip();
        Ok((Archive { home, id, header, last, lost, unread }, error))
    }

    /// What messages call it.
    pub fn label(&self) -> &str {
        self.home.label()
    }

    /// Where a later commit than the last was, or may be, and what is wrong there.
    pub fn lost_commit(&self) -> Option<(LogOffset, FormatError)> {
        let lost = "both copies of the last commit are damaged; records behind it name it";
        let unread = "a block behind the last commit cannot be read and may hide a later one";
        let (at, requirement, problem) = match (self.lost, self.unread) {
            (Some(at), _) => (at, "F-044", lost),
            (None, Some(at)) => (at, "F-042", unread),
            (None, None) => return None,
        };
        Some((at, FormatError::new(Structure::Commit, requirement, problem).at(at)))
    }

    /// Where the committed log ends.
    pub fn end(&self) -> LogOffset {
        self.last.as_ref().map_or(LogOffset(BLOCK), Commit::end)
    }

    /// The commit before `commit`, or `None` for the first.
    ///
    /// # Errors
    /// `Damaged` if both of its copies are, or if it is not the one that `commit` names; `Io`.
    pub fn previous(&self, commit: &Commit) -> Result<Option<Commit>> {
        if commit.head.previous == LogOffset(0) {
            return Ok(None);
        }
        let head = &commit.head;
        let previous = read_commit(&*self.home, self.id, head.previous, head.previous_len)?;
        match previous.head.content_hash == commit.head.previous_hash {
            true => Ok(Some(previous)),
            false => {
                let error = FormatError::new(
                    Structure::Commit,
                    "F-043",
                    "it is not the commit that its successor names",
                );
                Err(format_error(self.label(), error.at(previous.offset)))
            }
        }
    }
}

fn foreign(home: &dyn Home) -> Error {
    Error::new(ErrorKind::NotAnArchive, "this is not a voltar archive")
        .on(home.label())
        .meaning("the file was left as it is")
        .hint("name another file")
}

/// The length of the file.
///
/// # Errors
/// The system's.
pub fn length(home: &dyn Home) -> Result<u64> {
    home.len().map_err(|error| Error::io("cannot ask the length of", home.label(), error))
}

/// The archive's header.
///
/// # Errors
/// What is wrong with it.
pub fn read_header(home: &dyn Home) -> Result<Header, FormatError> {
    decode_header(&length(home).and_then(|len| first_block(home, len)))
}

/// The header in the first block.
fn decode_header(block: &Result<Vec<u8>>) -> Result<Header, FormatError> {
    let Ok(block) = block else {
        let problem = "its block cannot be read";
        return Err(FormatError::new(Structure::Header, "F-001", problem).at(LogOffset(0)));
    };
    let mut block = block.clone();
    if block.len() >= HeaderFields::LEN {
        // A crash may have kept the header's sector and lost the zeroes behind it.
        block.resize(BLOCK_LEN, 0);
    }
    Header::decode(&block)
}

/// The commit whose first copy starts at `offset`, from whichever copy is whole. `len` is the
/// length of one copy as its successor has it.
///
/// # Errors
/// The first copy's, if neither is whole; `UnsupportedFormat`.
pub fn read_commit(home: &dyn Home, id: ArchiveId, offset: LogOffset, len: u64) -> Result<Commit> {
    let first = match read_copy(home, id, offset) {
        Ok(commit) if commit.offset == offset => return Ok(commit),
        Ok(_) => {
            let alone = FormatError::new(Structure::Commit, "F-045", "a second copy alone");
            format_error(home.label(), alone.at(offset))
        }
        Err(error) if is_unsupported(&error) => return Err(error),
        Err(error) => error,
    };
    match read_copy(home, id, LogOffset(offset.0.saturating_add(len))) {
        Ok(commit) if commit.offset == offset => Ok(commit),
        Err(error) if is_unsupported(&error) => Err(error),
        _ => Err(first),
    }
}

/// The copy of a commit at `offset`.
fn read_copy(home: &dyn Home, id: ArchiveId, offset: LogOffset) -> Result<Commit> {
    let refused = |error| format_error(home.label(), error);
    let block = read_exact(home, offset, BLOCK_LEN)?;
    let (head, kind) = RecordHead::decode_at(&block, offset, Some(id)).map_err(refused)?;
    let len = match kind {
        RecordKind::Commit => Commit::copy_len(&head).map_err(refused)?,
        RecordKind::Data | RecordKind::Index | RecordKind::Other => BLOCK,
    };
    if offset.0.saturating_add(len) > length(home)? {
        let cut = FormatError::new(Structure::Commit, "F-042", "cut short");
        return Err(refused(cut.at(offset)));
    }
    let copy = read_exact(home, offset, len as usize)?;
    Commit::decode_at(&copy, offset, Some(id)).map_err(refused)
}

fn is_unsupported(error: &Error) -> bool {
    error.kind() == ErrorKind::UnsupportedFormat
}

/// Searches back from `len`, the log's end as far as it counts, for the last commit.
///
/// # Errors
/// `UnsupportedFormat`; `Damaged` for an archive made to exhaust the search.
pub fn find_last_commit(home: &dyn Home, id: ArchiveId, len: u64) -> Result<Option<Commit>> {
    Search::new(home, id).last_commit(len)
}

/// A search for the last commit.
struct Search<'a> {
    home: &'a dyn Home,
    id: ArchiveId,
    /// The first commit met that a record names and that is not whole.
    lost: Option<LogOffset>,
    /// The first block met that cannot be read, and why.
    unread: Option<(LogOffset, Error)>,
    /// Places that records name and where no commit is whole: all records behind one commit name
    /// the same. Patience keeps them few.
    failed: BTreeSet<LogOffset>,
    /// Bytes that may still be read in vain; see [`IN_VAIN_MAX`].
    patience: u64,
}

impl<'a> Search<'a> {
    fn new(home: &'a dyn Home, id: ArchiveId) -> Search<'a> {
        let patience = IN_VAIN_MAX;
        Search { home, id, lost: None, unread: None, failed: BTreeSet::new(), patience }
    }

    fn last_commit(&mut self, len: u64) -> Result<Option<Commit>> {
        for (at, block) in blocks(self.home, BLOCK..len / BLOCK * BLOCK).rev() {
            let block = match block {
                Ok(block) => block,
                Err(error) => {
                    self.unread.get_or_insert((at, error));
                    continue;
                }
            };
            if let Some(commit) = self.commit_near(at, &block)? {
                return Ok(Some(commit));
            }
            if points_to_none(self.id, at, &block) {
                return Ok(None);
            }
        }
        Ok(None)
    }

    /// The commit that the record at this block is or names, if it is whole.
    fn commit_near(&mut self, at: LogOffset, block: &[u8]) -> Result<Option<Commit>> {
        let named = match RecordHead::decode_at(block, at, Some(self.id)) {
            Ok((head, RecordKind::Commit)) => return self.copy(&head),
            Ok((head, _)) => Some(head.last_commit),
            Err(error) if error.unsupported => return Err(self.refused(error)),
            Err(_) => self.footer_names(at, block),
        };
        match named.filter(|offset| *offset != LogOffset(0) && *offset < at) {
            Some(offset) => self.named(offset),
            None => Ok(None),
        }
    }

    /// The commit that the record whose footer ends this block names, if there is one.
    fn footer_names(&self, at: LogOffset, block: &[u8]) -> Option<LogOffset> {
        let footer = block.get(BLOCK_LEN - Footer::LEN..)?;
        if !footer.starts_with(&FOOTER_MAGIC) {
            return None;
        }
        let end = LogOffset(at.0 + BLOCK);
        let (footer, _) = Footer::decode_at(block, end, Some(self.id)).ok()?;
        let head = read_exact(self.home, footer.start, RecordHead::LEN).ok()?;
        let (head, _) = RecordHead::decode_at(&head, footer.start, Some(self.id)).ok()?;
        Some(head.last_commit)
    }

    /// The commit whose first copy a record says is at `offset`.
    fn named(&mut self, offset: LogOffset) -> Result<Option<Commit>> {
        if self.failed.contains(&offset) {
            return Ok(None);
        }
        let found = match self.head_at(offset)? {
            Some(head) => self.copy(&head)?.filter(|commit| commit.offset == offset),
            None => None,
        };
        let found = match found {
            None => self.second_copy(offset)?,
            found => found,
        };
        if found.is_none() {
            self.lost.get_or_insert(offset);
            self.failed.insert(offset);
        }
        Ok(found)
    }

    /// Looks behind a damaged first copy for its second, up to the next record.
    fn second_copy(&mut self, offset: LogOffset) -> Result<Option<Commit>> {
        let len = length(self.home)?;
        let end = len.min(offset.0.saturating_add(COMMIT_LEN_MAX + BLOCK)) / BLOCK * BLOCK;
        // However few blocks are looked at, a window is read.
        self.waste(WINDOW_LEN)?;
        for (at, block) in blocks(self.home, offset.0.saturating_add(BLOCK)..end) {
            self.waste(BLOCK)?;
            let Ok(block) = block else { continue };
            let head = match RecordHead::decode_at(&block, at, Some(self.id)) {
                Ok((head, RecordKind::Commit)) => head,
                Ok(_) => return Ok(None),
                Err(error) if error.unsupported => return Err(self.refused(error)),
                Err(_) => continue,
            };
            let is_twin = head.flags & FLAG_SECOND_COPY != 0
                && Commit::copy_len(&head).is_ok_and(|len| offset.0 + len == at.0);
            if is_twin {
                return self.copy(&head);
            }
        }
        Ok(None)
    }

    /// The head of the commit at `offset`, if one is there.
    fn head_at(&self, offset: LogOffset) -> Result<Option<RecordHead>> {
        let Ok(bytes) = read_exact(self.home, offset, RecordHead::LEN) else { return Ok(None) };
        match RecordHead::decode_at(&bytes, offset, Some(self.id)) {
            Ok((head, RecordKind::Commit)) => Ok(Some(head)),
            Err(error) if error.unsupported => Err(self.refused(error)),
            _ => Ok(None),
        }
    }

    /// The copy of a commit that has this head, if it is whole.
    fn copy(&mut self, head: &RecordHead) -> Result<Option<Commit>> {
        match read_copy(self.home, self.id, head.offset) {
            Ok(commit) => Ok(Some(commit)),
            Err(error) if is_unsupported(&error) => Err(error),
            Err(_) => {
                self.waste(Commit::copy_len(head).unwrap_or(BLOCK))?;
                Ok(None)
            }
        }
    }

    /// Counts bytes that were read in vain.
    fn waste(&mut self, len: u64) -> Result<()> {
        self.patience = self.patience.checked_sub(len).ok_or_else(|| {
            Error::new(ErrorKind::Damaged, "too many commits at the archive's end are damaged")
                .on(self.home.label())
                .meaning("none of them is whole; earlier snapshots may be")
        })?;
        Ok(())
    }

    fn refused(&self, error: FormatError) -> Error {
        format_error(self.home.label(), error)
    }
}

/// Whether a whole record head at this block says that there was no commit before it.
fn points_to_none(id: ArchiveId, at: LogOffset, block: &[u8]) -> bool {
    RecordHead::decode_at(block, at, Some(id))
        .is_ok_and(|(head, kind)| kind != RecordKind::Commit && head.last_commit == LogOffset(0))
}
