//! What the kernel writes of LVM's volumes: the metadata of thin pools and the tables of thick
//! snapshots, as the bytes stand and with the checksums of all blocks repaired. What is said is
//! within bounds and in order, and takes bounded work.

use std::cell::Cell;
use std::io;

use voltar_engine::source::cow_table::{CowStore, CowTable};
use voltar_engine::source::thin_metadata::{BLOCK_LEN, Block, Metadata, MetadataBlocks};

use crate::wire::{put, u64_at};

/// What tells the checksums of a superblock and of a node apart (`dm-thin-metadata.c`,
/// `dm-btree-spine.c`).
const SALTS: [u32; 2] = [160_774, 121_107];

/// A pool's metadata; the first block that there is is the superblock.
pub fn thin(data: &[u8]) {
    let mut blocks: Vec<Block> = data.chunks(BLOCK_LEN).map(block_of).collect();
    walk(&Blocks::new(&blocks));
    for (number, block) in blocks.iter_mut().enumerate() {
        repair(block, number as u64);
    }
    walk(&Blocks::new(&blocks));
}

fn block_of(bytes: &[u8]) -> Block {
    let mut block = [0; BLOCK_LEN];
    block[..bytes.len()].copy_from_slice(bytes);
    block
}

/// Gives a block its number and its checksum. Fuzzing would not find either.
fn repair(block: &mut Block, number: u64) {
    put(block, 8, &number.to_le_bytes());
    let salt = SALTS[usize::from(number > 0)];
    let sum = crc32c(&block[4..]) ^ u32::MAX ^ salt;
    put(block, 0, &sum.to_le_bytes());
}

fn crc32c(bytes: &[u8]) -> u32 {
    let step = |crc: u32, byte: &u8| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 }
        })
    };
    !bytes.iter().fold(u32::MAX, step)
}

struct Blocks<'a> {
    blocks: &'a [Block],
    reads: Cell<usize>,
}

impl<'a> Blocks<'a> {
    fn new(blocks: &'a [Block]) -> Blocks<'a> {
        Blocks { blocks, reads: Cell::new(0) }
    }
}

impl MetadataBlocks for Blocks<'_> {
    fn read(&self, number: u64, bytes: &mut Block) -> io::Result<()> {
        self.reads.set(self.reads.get() + 1);
        let block = usize::try_from(number).ok().and_then(|number| self.blocks.get(number));
        *bytes = *block.ok_or(io::ErrorKind::UnexpectedEof)?;
        Ok(())
    }
}

fn walk(blocks: &Blocks<'_>) {
    let Ok(metadata) = Metadata::open(blocks, 0) else { return };
    let devices: Vec<_> = (0..4).filter_map(|id| metadata.device(id).ok().flatten()).collect();
    for device in &devices {
        let (mut last, mut count) = (None, 0u64);
        let whole = metadata.mappings(device, |mapping| {
            assert!(last.is_none_or(|last| last < mapping.thin), "ascending");
            last = Some(mapping.thin);
            count += 1;
        });
        if whole.is_ok() {
            assert_eq!(count, device.mapped_blocks);
        }
        for other in &devices {
            let mut end = 0;
            let same = metadata.diff(other, device, |range, _| {
                assert!(end <= range.start && range.start < range.end, "ascending");
                end = range.end;
                assert!(other.id != device.id, "a device is the same as itself");
            });
            drop(same);
        }
    }
    // Shared nodes may be read again for each pair, but never without end.
    assert!(blocks.reads.get() <= 1 << 16, "{} reads", blocks.reads.get());
}

/// The origin's size, 8 bytes, and the store of a thick snapshot.
pub fn cow(data: &[u8]) {
    let size = u64_at(data, 0);
    let Ok(table) = CowTable::read(&Store(data.get(8..).unwrap_or_default()), size) else { return };
    let mut end = None;
    for range in table.ranges() {
        assert!(end.is_none_or(|end| end < range.start), "none touches another");
        assert!(range.start < range.end && range.end <= size, "within the origin");
        end = Some(range.end);
    }
}

struct Store<'a>(&'a [u8]);

impl CowStore for Store<'_> {
    fn size(&self) -> u64 {
        self.0.len() as u64
    }

    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        let rest = usize::try_from(offset).ok().and_then(|offset| self.0.get(offset..));
        let piece = rest.and_then(|rest| rest.get(..bytes.len()));
        bytes.copy_from_slice(piece.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}
