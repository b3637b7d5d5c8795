//! What is wrong with bytes: which structure, which requirement, where.

use std::fmt;

use crate::units::LogOffset;

/// The structures of the format, as messages call them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Structure {
    /// The archive's first block.
    Header,
    /// The head of a record.
    Record,
    /// A data segment as a whole.
    Segment,
    /// A frame.
    Frame,
    /// A segment's table.
    Table,
    /// A segment's footer.
    Footer,
    /// An index run or one of its pages.
    Index,
    /// A commit record.
    Commit,
    /// A snapshot's manifest.
    Manifest,
    /// A map node.
    Map,
    /// A chunk.
    Chunk,
}

impl Structure {
    /// The structure's name in messages and in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Structure::Header => "header",
            Structure::Record => "record",
            Structure::Segment => "segment",
            Structure::Frame => "frame",
            Structure::Table => "table",
            Structure::Footer => "footer",
            Structure::Index => "index",
            Structure::Commit => "commit",
            Structure::Manifest => "manifest",
            Structure::Map => "map",
            Structure::Chunk => "chunk",
        }
    }
}

/// Bytes that break a requirement of the format.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FormatError {
    /// The structure.
    pub structure: Structure,
    /// The requirement of FORMAT.md that is broken, `F-…`.
    pub requirement: &'static str,
    /// What is wrong, with the values found and expected.
    pub problem: String,
    /// Where the structure starts, once known.
    pub offset: Option<LogOffset>,
    /// Whether the archive needs something this reader lacks, rather than being damaged.
    pub unsupported: bool,
}

impl FormatError {
    /// A broken requirement.
    pub fn new(
        structure: Structure,
        requirement: &'static str,
        problem: impl Into<String>,
    ) -> FormatError {
        FormatError {
            structure,
            requirement,
            problem: problem.into(),
            offset: None,
            unsupported: false,
        }
    }

    /// A version or feature this reader does not know.
    pub fn unsupported(
        structure: Structure,
        requirement: &'static str,
        problem: impl Into<String>,
    ) -> FormatError {
        FormatError { unsupported: true, ..FormatError::new(structure, requirement, problem) }
    }

    /// Says where the structure starts.
    pub fn at(mut self, offset: LogOffset) -> FormatError {
        self.offset.get_or_insert(offset);
        self
    }
}

impl fmt::Display for FormatError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.structure.name())?;
        if let Some(offset) = self.offset {
            write!(f, " at {offset}")?;
        }
        write!(f, ": {} ({})", self.problem, self.requirement)
    }
}

impl std::error::Error for FormatError {}

/// The format's result.
pub type Result<T, E = FormatError> = std::result::Result<T, E>;

/// `Err` naming the requirement unless `holds`.
pub(crate) fn require(
    holds: bool,
    structure: Structure,
    requirement: &'static str,
    problem: impl FnOnce() -> String,
) -> Result<()> {
    match holds {
        true => Ok(()),
        false => Err(FormatError::new(structure, requirement, problem())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_say_which_structure_where_and_what() {
        let error = FormatError::new(Structure::Commit, "F-040", "its hash is wrong");
        assert_eq!(error.to_string(), "commit: its hash is wrong (F-040)");
        let placed = error.at(LogOffset(4096)).at(LogOffset(0));
        assert_eq!(placed.to_string(), "commit at 0x1000: its hash is wrong (F-040)");
    }
}
