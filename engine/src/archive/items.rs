//! Frames of a few small items, uncompressed: map nodes, notes, attached files, what a salvage
//! copies.

use voltar_format::Id;
use voltar_format::frame::{ChunkEntry, Codec, ItemKind, head_of, node_index};
use voltar_format::map::BuiltNode;

use super::index::Known;
use super::session::Session;
use crate::error::Result;

/// Map nodes per frame: few, so that reading one node reads little.
pub const NODES_PER_FRAME: usize = 8;

impl Session {
    /// Appends a frame that holds one small item.
    ///
    /// # Errors
    /// Of writing.
    pub fn append_item(
        &mut self,
        id: Id,
        bytes: &[u8],
        kind: ItemKind,
        volume: u16,
        index: u64,
    ) -> Result<()> {
        let entry = ChunkEntry { volume, ..ChunkEntry::new(kind, id, index, bytes.len()) };
        self.append_stored(&[entry], bytes)
    }

    /// Appends a frame with these items, whose bytes are `payload`, uncompressed.
    ///
    /// # Errors
    /// Of writing.
    pub fn append_stored(&mut self, entries: &[ChunkEntry], payload: &[u8]) -> Result<()> {
        self.append_frame(&head_of(Codec::Store, entries, payload), payload)
    }

    /// Appends finished nodes of volume `number`, unless they are known, once there are `enough`.
    ///
    /// # Errors
    /// Of looking them up and of writing.
    pub fn append_nodes(
        &mut self,
        nodes: &mut Vec<BuiltNode>,
        number: u16,
        known: &Known,
        enough: usize,
    ) -> Result<()> {
        while nodes.len() >= enough && !nodes.is_empty() {
            let count = nodes.len().min(NODES_PER_FRAME);
            let mut entries = Vec::new();
            let mut payload = Vec::new();
            for node in nodes.drain(..count) {
                if known.is_new(&node.id)? {
                    payload.extend_from_slice(&node.bytes);
                    entries.push(entry_of(&node, number));
                }
            }
            if !entries.is_empty() {
                self.append_stored(&entries, &payload)?;
            }
        }
        Ok(())
    }
}

fn entry_of(node: &BuiltNode, volume: u16) -> ChunkEntry {
    let index = node_index(node.level, node.number);
    ChunkEntry { volume, ..ChunkEntry::new(ItemKind::Node, node.id, index, node.bytes.len()) }
}
