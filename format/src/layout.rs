//! Every structure's layout in one table: for the document, `voltar inspect` and the test that
//! notices when a byte moves.

use crate::commit::{CommitHead, RunEntry};
use crate::frame::{ChunkEntry, FrameHead};
use crate::header::HeaderFields;
use crate::index::{IndexEntry, PageHead, RunHead};
use crate::map::NodeHead;
use crate::record::RecordHead;
use crate::segment::{Footer, FrameEntry, TableHead};
use crate::wire::StructLayout;

/// All structures of the format, in the order of FORMAT.md.
pub const STRUCTURES: &[StructLayout] = &[
    HeaderFields::LAYOUT,
    RecordHead::LAYOUT,
    FrameHead::LAYOUT,
    ChunkEntry::LAYOUT,
    TableHead::LAYOUT,
    FrameEntry::LAYOUT,
    Footer::LAYOUT,
    NodeHead::LAYOUT,
    RunHead::LAYOUT,
    PageHead::LAYOUT,
    IndexEntry::LAYOUT,
    CommitHead::LAYOUT,
    RunEntry::LAYOUT,
];

/// The table as text, one line a field.
pub fn describe() -> String {
    let mut text = String::new();
    for structure in STRUCTURES {
        text.push_str(&format!("{} {}\n", structure.name, structure.len));
        for field in structure.fields {
            let (offset, len) = (field.offset, field.len);
            text.push_str(&format!("  {offset:>3} {len:>3} {} {}\n", field.name, field.kind));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    /// The bytes of released archives depend on this file: a change here is a new format version.
    #[test]
    fn layout_is_what_it_was() {
        assert_eq!(super::describe(), include_str!("../layout.txt"));
    }
}
