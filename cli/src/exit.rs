//! The exit codes, a published interface: scripts branch on them, so they never change meaning.

use std::process::ExitCode;

/// How the command ended, as its caller sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done.
    Done = 0,
    /// Failed; nothing committed, the archive is as it was.
    Failed = 1,
    /// The command line makes no sense; nothing was tried.
    Usage = 2,
    /// The archive is damaged, or a mismatch was proven.
    Damaged = 3,
    /// Done, but parts of the source could not be read; they are recorded.
    SourceIncomplete = 4,
    /// The target was refused; not a byte of it was written.
    TargetRefused = 5,
    /// The target is partly written; the same command again finishes the work.
    TargetPartial = 6,
    /// Another writer holds the archive.
    Busy = 7,
    /// Interrupted; the archive is as it was.
    Interrupted = 130,
}

impl Exit {
    /// The number the process exits with.
    pub fn code(self) -> u8 {
        self as u8
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(exit.code())
    }
}
