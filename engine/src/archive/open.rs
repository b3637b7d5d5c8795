//! Opening: from the file's end to the last commit.

use std::sync::Arc;

use voltar_format::commit::Commit;
use voltar_format::header::{Header, HeaderFields, MAGIC};
use voltar_format::limits::{BLOCK_LEN, COMMIT_LEN_MAX};
use voltar_format::record::{RecordHead, RecordKind};
use voltar_format::segment::{FOOTER_MAGIC, Footer};
use voltar_format::{ArchiveId, FormatError, LogOffset, wire};

use super::{Home, format_error, read_exact};
use crate::error::{Error, ErrorKind, Result};

const BLOCK: u64 = BLOCK_LEN as u64;

/// Bytes looked at in one read while searching for the last commit.
const WINDOW_LEN: u64 = 1 << 20;

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
/// Those of reading it.
pub fn look(home: &dyn Home) -> Result<Shelf> {
    let len = length(home)?;
    let mut block = vec![0; BLOCK.min(len) as usize];
    super::read_into(home, LogOffset(0), &mut block)?;
    if len <= BLOCK && wire::is_zero(&block) {
        return Ok(Shelf::Blank);
    }
    if block.starts_with(&MAGIC) || first_record(home, len).is_some() {
        return Ok(Shelf::Archive);
    }
    Ok(Shelf::Foreign)
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
        let mut block = read_exact(&*home, LogOffset(0), BLOCK.min(len) as usize)?;
        if block.len() >= HeaderFields::LEN {
            // A crash may have kept the header's sector and lost the zeroes behind it.
            block.resize(BLOCK_LEN, 0);
        }
        let header = Header::decode(&block);
        let id = match &header {
            Ok(header) => header.archive_id,
            Err(error) if error.unsupported => {
                return Err(format_error(home.label(), error.clone()));
            }
            Err(error) => first_record(&*home, len)
                .ok_or_else(|| format_error(home.label(), error.clone()))?,
        };
        let mut lost = None;
        let last = search_back(&*home, id, len, &mut lost)?;
        Ok(Archive { home, id, header, last, lost })
    }

    /// What messages call it.
    pub fn label(&self) -> &str {
        self.home.label()
    }

    /// What is wrong with a later commit than the last, if there was one.
    pub fn lost_commit(&self) -> Option<FormatError> {
        let problem = "both copies of the last commit are damaged; records behind it name it";
        self.lost
            .map(|at| FormatError::new(voltar_format::Structure::Commit, "F-044", problem).at(at))
    }

    /// Where the committed log ends.
    pub fn end(&self) -> LogOffset {
        self.last.as_ref().map_or(LogOffset(BLOCK), Commit::end)
    }

    /// The commit before `commit`, or `None` for the first.
    ///
    /// # Errors
    /// `Damaged` if both of its copies are, or if it is not the one that `commit` names.
    pub fn previous(&self, commit: &Commit) -> Result<Option<Commit>> {
        if commit.head.previous == LogOffset(0) {
            return Ok(None);
        }
        let previous = read_commit(&*self.home, self.id, commit.head.previous)?;
        match previous.head.content_hash == commit.head.previous_hash {
            true => Ok(Some(previous)),
            false => {
                let error = FormatError::new(
                    voltar_format::Structure::Commit,
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

/// The commit whose first copy starts at `offset`, from whichever copy is whole.
///
/// # Errors
/// The first copy's, if neither is whole.
pub fn read_commit(home: &dyn Home, id: ArchiveId, offset: LogOffset) -> Result<Commit> {
    let first = match read_copy(home, id, offset) {
        Ok(commit) if commit.offset == offset => return Ok(commit),
        Ok(_) => FormatError::new(voltar_format::Structure::Commit, "F-045", "a second copy alone")
            .at(offset),
        Err(Trouble::Engine(error)) => return Err(error),
        Err(Trouble::Format(error)) if error.unsupported => {
            return Err(format_error(home.label(), error));
        }
        Err(Trouble::Format(error)) => error,
    };
    second_copy(home, id, offset)?.ok_or_else(|| format_error(home.label(), first))
}

/// Looks behind a damaged first copy for its second.
fn second_copy(home: &dyn Home, id: ArchiveId, offset: LogOffset) -> Result<Option<Commit>> {
    let end = length(home)?.min(offset.0.saturating_add(COMMIT_LEN_MAX));
    let mut at = offset.0.saturating_add(BLOCK);
    while at.saturating_add(BLOCK) <= end {
        match read_copy(home, id, LogOffset(at)) {
            Ok(commit) if commit.offset == offset => return Ok(Some(commit)),
            Err(Trouble::Engine(error)) => return Err(error),
            _ => at += BLOCK,
        }
    }
    Ok(None)
}

enum Trouble {
    Engine(Error),
    Format(FormatError),
}

impl From<Error> for Trouble {
    fn from(error: Error) -> Trouble {
        Trouble::Engine(error)
    }
}

impl From<FormatError> for Trouble {
    fn from(error: FormatError) -> Trouble {
        Trouble::Format(error)
    }
}

/// The copy of a commit at `offset`.
fn read_copy(home: &dyn Home, id: ArchiveId, offset: LogOffset) -> Result<Commit, Trouble> {
    let block = read_exact(home, offset, BLOCK_LEN)?;
    let (head, kind) = RecordHead::decode_at(&block, offset, Some(id))?;
    if kind != RecordKind::Commit {
        return Ok(Commit::decode_at(&block, offset, Some(id))?);
    }
    let len = Commit::copy_len(&head)?;
    if offset.0.saturating_add(len) > length(home)? {
        let cut = FormatError::new(voltar_format::Structure::Commit, "F-042", "cut short");
        return Err(cut.at(offset).into());
    }
    let copy = read_exact(home, offset, len as usize)?;
    Ok(Commit::decode_at(&copy, offset, Some(id))?)
}

/// Searches back from `len`, the log's end as far as it counts, for the last commit.
///
/// # Errors
/// Of reading; `UnsupportedFormat`.
pub fn find_last_commit(home: &dyn Home, id: ArchiveId, len: u64) -> Result<Option<Commit>> {
    search_back(home, id, len, &mut None)
}

/// As [`find_last_commit`]; notes the commit that a record names and that cannot be read.
fn search_back(
    home: &dyn Home,
    id: ArchiveId,
    len: u64,
    lost: &mut Option<LogOffset>,
) -> Result<Option<Commit>> {
    let mut end = len / BLOCK * BLOCK;
    while end > BLOCK {
        let start = end.saturating_sub(WINDOW_LEN).max(BLOCK);
        let window = read_exact(home, LogOffset(start), (end - start) as usize)?;
        for from in (0..window.len()).step_by(BLOCK_LEN).rev() {
            let at = start + from as u64;
            let block = &window[from..from + BLOCK_LEN];
            if let Some(commit) = commit_near(home, id, LogOffset(at), block, lost)? {
                return Ok(Some(commit));
            }
            if points_to_none(id, LogOffset(at), block) {
                return Ok(None);
            }
        }
        end = start;
    }
    Ok(None)
}

/// The commit that the record at this block is or names, if it is whole.
fn commit_near(
    home: &dyn Home,
    id: ArchiveId,
    at: LogOffset,
    block: &[u8],
    lost: &mut Option<LogOffset>,
) -> Result<Option<Commit>> {
    let named = match RecordHead::decode_at(block, at, Some(id)) {
        Ok((_, RecordKind::Commit)) => {
            return match read_copy(home, id, at) {
                Ok(commit) => Ok(Some(commit)),
                Err(Trouble::Format(error)) if !error.unsupported => Ok(None),
                Err(Trouble::Format(error)) => Err(format_error(home.label(), error)),
                Err(Trouble::Engine(error)) => Err(error),
            };
        }
        Ok((head, _)) => Some(head.last_commit),
        Err(error) if error.unsupported => return Err(format_error(home.label(), error)),
        Err(_) => footer_names(home, id, at, block)?,
    };
    match named {
        None | Some(LogOffset(0)) => Ok(None),
        Some(offset) if offset >= at => Ok(None),
        Some(offset) => match read_commit(home, id, offset) {
            Ok(commit) => Ok(Some(commit)),
            Err(error) if error.kind() == ErrorKind::Damaged => {
                lost.get_or_insert(offset);
                Ok(None)
            }
            Err(error) => Err(error),
        },
    }
}

/// The commit named by the record whose footer ends this block, if there is one.
fn footer_names(
    home: &dyn Home,
    id: ArchiveId,
    at: LogOffset,
    block: &[u8],
) -> Result<Option<LogOffset>> {
    let from = BLOCK_LEN - Footer::LEN;
    if !block.get(from..).is_some_and(|tail| tail.starts_with(&FOOTER_MAGIC)) {
        return Ok(None);
    }
    let Ok((footer, _)) = Footer::decode_at(block, LogOffset(at.0 + BLOCK), Some(id)) else {
        return Ok(None);
    };
    let head = read_exact(home, footer.start, RecordHead::LEN)?;
    let decoded = RecordHead::decode_at(&head, footer.start, Some(id));
    Ok(decoded.ok().map(|(head, _)| head.last_commit))
}

/// Whether a whole record head at this block says that there was no commit before it.
fn points_to_none(id: ArchiveId, at: LogOffset, block: &[u8]) -> bool {
    RecordHead::decode_at(block, at, Some(id))
        .is_ok_and(|(head, kind)| kind != RecordKind::Commit && head.last_commit == LogOffset(0))
}
