//! What the command line is resolved against: files, environment, terminal, time zone.
//!
//! Behind a trait so that the rules of resolving are tested without touching any of it.

use std::ffi::OsString;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use jiff::tz::TimeZone;

/// The few things resolving may ask.
pub trait World {
    /// Whether something bears exactly this name; a dangling link does.
    fn exists(&self, path: &Path) -> bool;
    /// Whether it is a directory, perhaps behind a link.
    fn is_directory(&self, path: &Path) -> bool;
    /// The path without links and dots, or made absolute where that fails.
    fn canonical(&self, path: &Path) -> PathBuf;
    /// An environment variable.
    fn env(&self, name: &str) -> Option<OsString>;
    /// Whether the effective user is root.
    fn is_root(&self) -> bool;
    /// Whether standard output is a terminal.
    fn stdout_is_terminal(&self) -> bool;
    /// The time zone in which the user writes dates.
    fn zone(&self) -> TimeZone;
}

/// The machine we run on.
#[derive(Clone, Copy, Debug)]
pub struct Machine;

impl World for Machine {
    fn exists(&self, path: &Path) -> bool {
        path.symlink_metadata().is_ok()
    }

    fn is_directory(&self, path: &Path) -> bool {
        path.is_dir()
    }

    fn canonical(&self, path: &Path) -> PathBuf {
        path.canonicalize()
            .or_else(|_| std::path::absolute(path))
            .unwrap_or_else(|_| path.to_path_buf())
    }

    fn env(&self, name: &str) -> Option<OsString> {
        std::env::var_os(name).filter(|value| !value.is_empty())
    }

    fn is_root(&self) -> bool {
        // The owner of /proc/self would mislead for a binary with file capabilities.
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        effective_uid(&status) == Some(0)
    }

    fn stdout_is_terminal(&self) -> bool {
        std::io::stdout().is_terminal()
    }

    fn zone(&self) -> TimeZone {
        TimeZone::system()
    }
}

/// The second field of the `Uid:` line: real, effective, saved, file system.
fn effective_uid(status: &str) -> Option<u32> {
    let uids = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    uids.split_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn effective_user_is_the_second_field() {
        assert_eq!(effective_uid("Name:\tvoltar\nUid:\t1000\t0\t0\t0\n"), Some(0));
        assert_eq!(effective_uid("Name:\tvoltar\n"), None);
    }
}
