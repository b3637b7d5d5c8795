//! How an operation tells its caller what it is doing. The engine never prints.

/// The phases an operation goes through, in the words a user reads.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Opening the archive and finding its last commit.
    Open,
    /// Checking what an interrupted run left behind.
    Resume,
    /// Reading the source.
    Read,
    /// Writing index and commit, and waiting for the disk.
    Commit,
    /// Comparing what the target holds with the snapshot.
    Compare,
    /// Writing the target.
    Write,
    /// Reading the target again.
    ReadBack,
    /// Reading the archive's stored bytes.
    Verify,
    /// Walking maps and following references.
    Walk,
}

/// Receives progress and notices. Called from engine threads; must not block for long.
pub trait Observer: Send + Sync {
    /// A phase starts; `total` is its work in bytes, if known.
    fn phase(&self, phase: Phase, total: Option<u64>) {
        let _ = (phase, total);
    }

    /// `bytes` more of the current phase's work are done.
    fn advance(&self, bytes: u64) {
        let _ = bytes;
    }

    /// Something the user should know though the operation goes on. Who shows it shows the same text
    /// once: several devices may have the same to say.
    fn notice(&self, text: &str) {
        let _ = text;
    }
}

/// An observer that ignores everything.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Observer for Silent {}
