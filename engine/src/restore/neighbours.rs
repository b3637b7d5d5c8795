//! Hints where chunks are: what else lies in a frame that the index named.
//!
//! Chunks that follow one another in a volume mostly lie in one frame. Reading that frame's
//! entries once is cheaper than looking each of its chunks up, which costs two or more pages of
//! the index in random order: at 4 KiB chunks look-ups would hold a restore up. A hint is not
//! checked here; whoever decodes the frame finds the id in it or calls it damaged.

use std::collections::HashMap;

use voltar_format::Id;
use voltar_format::frame::{ChunkEntry, Frame, FrameHead, ItemKind};
use voltar_format::limits::{FRAME_CHUNKS_MAX, FRAME_RAW_LEN_MAX};

use crate::archive::index::Place;
use crate::device::Device;

/// Most hints held: a few frames of the shortest chunks, about 400 KiB.
const HINTS_MAX: usize = 4096;

/// What reading a frame's entries costs, in look-ups it must save.
const PRICE: i32 = 2;
/// Most look-ups that may be saved up: how long a change for the worse goes unnoticed.
const SAVINGS_MAX: i32 = 64;
/// Where reading entries does not pay, it is tried again after so many look-ups.
const PATIENCE: i32 = 64;

/// The chunks of the frames last named.
pub struct Neighbours {
    places: HashMap<Id, Place>,
    /// Look-ups saved less what saving them cost; below zero, how long to wait.
    savings: i32,
    bytes: Vec<u8>,
}

impl Neighbours {
    /// None yet, of a volume with chunks of `chunk_len` bytes.
    pub fn new(chunk_len: u32) -> Neighbours {
        let entries = (FRAME_RAW_LEN_MAX / chunk_len.max(1)).clamp(1, FRAME_CHUNKS_MAX.into());
        let len = FrameHead::LEN + ChunkEntry::LEN * entries as usize;
        Neighbours { places: HashMap::new(), savings: 8 * PRICE, bytes: vec![0; len] }
    }

    /// Where the chunk may be.
    pub fn find(&mut self, id: &Id) -> Option<Place> {
        let place = self.places.get(id).copied()?;
        self.savings = (self.savings + 1).min(SAVINGS_MAX);
        Some(place)
    }

    /// Learns what else is in the frame at `place`, if that has paid so far.
    pub fn learn(&mut self, home: &dyn Device, place: &Place) {
        if self.savings < 0 {
            self.savings += 1;
            return;
        }
        self.savings -= PRICE;
        if self.savings < 0 {
            self.savings = -PATIENCE;
        }
        if self.places.len() > HINTS_MAX {
            self.places.clear();
        }
        // A frame that cannot be read is no hint; whoever needs it will say so.
        let Ok(len) = home.read_at(&mut self.bytes, place.frame.0) else {
            return;
        };
        let bytes = &self.bytes[..len.min(place.frame_len as usize)];
        let Ok(head) = Frame::decode_head(bytes) else {
            return;
        };
        let entries = bytes.get(FrameHead::LEN..).unwrap_or(&[]).chunks_exact(ChunkEntry::LEN);
        for (slot, entry) in (0..head.chunk_count).zip(entries) {
            match ChunkEntry::decode(entry) {
                Ok(entry) if entry.kind == ItemKind::Chunk as u8 => {
                    self.places.insert(entry.id, Place { slot, kind: entry.kind, ..*place });
                }
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::memory::MemoryDevice;
    use voltar_format::LogOffset;
    use voltar_format::checksum::chunk_id;
    use voltar_format::frame::{self, Codec};

    fn home_with_frame(items: &[&[u8]]) -> (MemoryDevice, Place) {
        let entry = |item: &&[u8]| ChunkEntry::new(ItemKind::Chunk, chunk_id(item), 0, item.len());
        let entries: Vec<_> = items.iter().map(entry).collect();
        let bytes = frame::encode(Codec::Store, &entries, &items.concat());
        let frame_len = bytes.len() as u32;
        let place = Place { frame: LogOffset(64), frame_len, slot: 0, kind: ItemKind::Chunk as u8 };
        (MemoryDevice::from_bytes(&[&[0; 64][..], &bytes].concat()), place)
    }

    #[test]
    fn the_other_chunks_of_a_frame_are_found() {
        let (home, place) = home_with_frame(&[b"one", b"two", b"three"]);
        let mut neighbours = Neighbours::new(4096);
        assert_eq!(neighbours.find(&chunk_id(b"two")), None);
        neighbours.learn(&home, &place);
        assert_eq!(neighbours.find(&chunk_id(b"three")), Some(Place { slot: 2, ..place }));
    }

    #[test]
    fn what_does_not_pay_is_given_up_and_tried_again() {
        let (home, place) = home_with_frame(&[b"one"]);
        let home = home.with_log();
        let mut neighbours = Neighbours::new(4096);
        (0..1000).for_each(|_| neighbours.learn(&home, &place));
        let reads = home.ops().len();
        assert!((10..40).contains(&reads), "{reads} reads");
    }

    #[test]
    fn a_damaged_frame_is_no_hint() {
        let (home, place) = home_with_frame(&[b"one", b"two"]);
        let mut neighbours = Neighbours::new(4096);
        for frame in [0, 65, 1 << 40, u64::MAX] {
            neighbours.learn(&home, &Place { frame: LogOffset(frame), ..place });
        }
        neighbours.learn(&home, &Place { frame_len: 70, ..place });
        assert!(neighbours.places.is_empty());
    }
}
