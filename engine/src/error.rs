//! What can go wrong, as values.
//!
//! One public [`Error`]: a small [`ErrorKind`] for control flow and exit codes, the operation,
//! the object and the byte range for diagnosis, and a boxed source for detail. `Display` never
//! repeats its source; whoever prints walks the chain. An operation that is stopped after part of
//! its work says so in a [`Failed`]. This module names no other module.

use std::fmt;
use std::ops::{Deref, Range};

/// The engine's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What kind of failure it is; decides the exit code and the hint, never the wording.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// An operating system call failed.
    Io,
    /// A file, device, snapshot or volume that was named does not exist.
    NotFound,
    /// A name or prefix fits more than one snapshot or volume.
    Ambiguous,
    /// The request contradicts itself or the objects it names.
    InvalidRequest,
    /// The bytes are not a voltar archive.
    NotAnArchive,
    /// The archive needs a format version or a feature this build lacks.
    UnsupportedFormat,
    /// A structure of the archive is damaged.
    Damaged,
    /// Two things that must be equal are not (read-back, audit).
    Mismatch,
    /// The source cannot be backed up as it is (empty, growing, shrinking).
    SourceUnusable,
    /// Sectors of the source failed to read.
    SourceUnreadable,
    /// The guard refused the target; not a byte of it was written.
    TargetRefused,
    /// The target was partly written before the failure.
    TargetPartial,
    /// Another writer holds the archive.
    Busy,
    /// The store is full.
    NoSpace,
    /// The kernel or the device lacks something the caller insisted on.
    Unsupported,
    /// The caller asked to stop.
    Interrupted,
    /// Our own promise was broken; a defect of the program.
    Internal,
}

/// A failure: its kind, what was being done to which object, where, and why.
pub struct Error(Box<Inner>);

struct Inner {
    kind: ErrorKind,
    message: String,
    subject: Option<String>,
    range: Option<Range<u64>>,
    meaning: Option<String>,
    hint: Option<String>,
    source: Option<Box<dyn std::error::Error + Send + Sync + 'static>>,
}

impl Error {
    /// A failure of `kind`; `message` says what failed, without the object's name and without
    /// the text of the source.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Error(Box::new(Inner {
            kind,
            message: message.into(),
            subject: None,
            range: None,
            meaning: None,
            hint: None,
            source: None,
        }))
    }

    /// A failed system call on `subject`. `ENOSPC`, `EDQUOT`, `ENOENT` and a wish to stop choose their
    /// own kinds.
    pub fn io(
        message: impl Into<String>,
        subject: impl Into<String>,
        source: std::io::Error,
    ) -> Self {
        use std::io::ErrorKind as K;
        let kind = match source.kind() {
            K::StorageFull | K::QuotaExceeded | K::FileTooLarge => ErrorKind::NoSpace,
            K::NotFound => ErrorKind::NotFound,
            // One that is no system call's is somebody's wish to stop.
            K::Interrupted if source.raw_os_error().is_none() => ErrorKind::Interrupted,
            _ => ErrorKind::Io,
        };
        Error::new(kind, message).on(subject).because(source)
    }

    /// Names the object (a path, usually).
    pub fn on(mut self, subject: impl Into<String>) -> Self {
        self.0.subject = Some(subject.into());
        self
    }

    /// Names the byte range of the object, in bytes from its start.
    pub fn at(mut self, range: Range<u64>) -> Self {
        self.0.range = Some(range);
        self
    }

    /// Says what the failure means for the user's data.
    pub fn meaning(mut self, meaning: impl Into<String>) -> Self {
        self.0.meaning = Some(meaning.into());
        self
    }

    /// Says what the user can do: a command or a decision.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.0.hint = Some(hint.into());
        self
    }

    /// Attaches the cause.
    pub fn because(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.0.source = Some(source.into());
        self
    }

    /// The same failure as another kind, for example [`ErrorKind::TargetPartial`].
    pub fn as_kind(mut self, kind: ErrorKind) -> Self {
        self.0.kind = kind;
        self
    }

    /// Whether reading the archive failed for its bytes or its medium: who bears damage goes on.
    pub fn is_damage(&self) -> bool {
        matches!(self.kind(), ErrorKind::Damaged | ErrorKind::Io)
    }

    /// The kind, for control flow.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// What failed.
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// The object's name, if one is known.
    pub fn subject(&self) -> Option<&str> {
        self.0.subject.as_deref()
    }

    /// The byte range inside the object, if one is known.
    pub fn range(&self) -> Option<Range<u64>> {
        self.0.range.clone()
    }

    /// What it means for the data, if the engine knows.
    pub fn data_meaning(&self) -> Option<&str> {
        self.0.meaning.as_deref()
    }

    /// What to do, if the engine knows.
    pub fn remedy(&self) -> Option<&str> {
        self.0.hint.as_deref()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inner = &self.0;
        f.write_str(&inner.message)?;
        if let Some(subject) = &inner.subject {
            write!(f, ": {subject}")?;
        }
        if let Some(range) = &inner.range {
            write!(f, " [{:#x}..{:#x}]", range.start, range.end)?;
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {self}", self.0.kind)?;
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source.as_deref().map(|source| source as _)
    }
}

/// What stopped an operation, beside the report of what it had done until then.
#[derive(Debug)]
pub struct Failed<R> {
    /// What stopped it.
    pub error: Error,
    /// What it had done; `None` if it failed before there was anything to do.
    pub report: Option<Box<R>>,
}

impl<R> Failed<R> {
    /// `report` as that of an operation that came to its end, or that was stopped by an error.
    ///
    /// # Errors
    /// `outcome`'s.
    pub fn unless(outcome: Result<()>, report: R) -> Result<R, Failed<R>> {
        match outcome {
            Ok(()) => Ok(report),
            Err(error) => Err(Failed { error, report: Some(Box::new(report)) }),
        }
    }
}

impl<R> From<Error> for Failed<R> {
    fn from(error: Error) -> Self {
        Failed { error, report: None }
    }
}

impl<R> From<Failed<R>> for Error {
    fn from(failed: Failed<R>) -> Self {
        failed.error
    }
}

impl<R> Deref for Failed<R> {
    type Target = Error;

    fn deref(&self) -> &Error {
        &self.error
    }
}

impl<R> fmt::Display for Failed<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl<R: fmt::Debug> std::error::Error for Failed<R> {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.error.source()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_done_stands_beside_what_stopped_it() {
        assert_eq!(Failed::unless(Ok(()), 7).unwrap(), 7);
        let failed = Failed::unless(Err(Error::new(ErrorKind::Busy, "x")), 7).unwrap_err();
        assert_eq!((failed.kind(), failed.report.as_deref()), (ErrorKind::Busy, Some(&7)));
        let early: Failed<u8> = Error::new(ErrorKind::Busy, "x").into();
        assert!(early.report.is_none());
    }

    #[test]
    fn display_names_object_and_range_but_not_the_source() {
        let error = Error::io("cannot read", "/dev/x", std::io::Error::other("boom")).at(16..32);
        assert_eq!(error.to_string(), "cannot read: /dev/x [0x10..0x20]");
        assert_eq!(format!("{error:?}"), "Io: cannot read: /dev/x [0x10..0x20]: boom");
    }

    #[test]
    fn full_store_is_its_own_kind() {
        let full = std::io::Error::from_raw_os_error(28);
        assert_eq!(Error::io("x", "y", full).kind(), ErrorKind::NoSpace);
    }
}
