//! The metadata of a dm-thin pool, read by ourselves: which blocks of a thin device are mapped,
//! and which of two devices' blocks are not the same.
//!
//! Layout (little endian, blocks of 4096 bytes): Linux, `drivers/md/dm-thin-metadata.c` and
//! `drivers/md/persistent-data/dm-btree-internal.h`. A superblock names two trees: one from device
//! ids to the roots of the devices' own trees, which lead from thin blocks to data blocks, and one
//! from device ids to their details. Trees are copied on write, so two devices that share a block
//! of metadata share all mappings below it: the diff does not even read such a subtree, and costs
//! what the change costs.
//!
//! All of it is hostile until checked: a checksum tells damage, not malice. Every block says where
//! it belongs, keys ascend within the range that the parent gives, and leaves lie at one depth; so
//! no block is visited twice in one tree and every walk ends. A fault is an error that names the
//! block, never a shorter list.

use std::cmp::Ordering;
use std::io;
use std::ops::Range;

use voltar_format::checksum::crc32c;

/// Bytes of a block of metadata.
pub const BLOCK_LEN: usize = 4096;

/// A block of metadata.
pub type Block = [u8; BLOCK_LEN];

/// Most blocks that a pool's metadata can have (`THIN_METADATA_MAX_SECTORS`).
const BLOCKS_MAX: u64 = 255 << 14;

/// Most nodes above a leaf. Nodes have dozens of entries at the least, so that a fraction of it
/// leads to all blocks there can be.
const HEIGHT_MAX: u32 = 16;

/// Device ids have 24 bits.
const DEVICE_ID_MAX: u64 = (1 << 24) - 1;

/// What tells the checksums of a superblock and of a node apart.
const SUPERBLOCK_SALT: u32 = 160_774;
const NODE_SALT: u32 = 121_107;

const MAGIC: u64 = 27_022_010;
const VERSION: u32 = 2;
/// What older `thin_restore` and `thin_repair` write: laid out as version 2, and the kernel takes it.
const VERSION_OF_TOOLS: u32 = 1;
const FLAG_NEEDS_CHECK: u32 = 1;
const FLAG_INTERNAL: u32 = 1;
const FLAG_LEAF: u32 = 2;
const NODE_HEAD_LEN: usize = 32;
/// Bytes of the values of each tree's leaves, and of internal nodes.
const MAPPING_LEN: usize = 8;
const ROOT_LEN: usize = 8;
const DETAILS_LEN: usize = 24;
const POINTER_LEN: usize = 8;
const SECTOR_LEN: u64 = 512;
/// Data blocks are multiples of this many sectors, up to so many.
const DATA_BLOCK_SECTORS: (u32, u32) = (128, 2_097_152);

/// Where blocks of metadata are read from.
pub trait MetadataBlocks {
    /// Fills `bytes` with block `number`.
    ///
    /// # Errors
    /// The medium's; `UnexpectedEof` behind its end.
    fn read(&self, number: u64, bytes: &mut Block) -> io::Result<()>;
}

/// Why a pool's metadata cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum MetadataError {
    /// A block could not be read.
    #[error("block {block} of the pool's metadata cannot be read")]
    Unreadable {
        /// Its number.
        block: u64,
        /// Why.
        source: io::Error,
    },
    /// A block is not what it must be.
    #[error("block {block} of the pool's metadata is damaged: {fault}")]
    Damaged {
        /// Its number.
        block: u64,
        /// What is wrong with it.
        fault: Fault,
    },
    /// The kernel has found damage.
    #[error("the pool's metadata is marked as in need of a check (thin_check)")]
    NeedsCheck,
    /// A newer kernel's.
    #[error("the pool's metadata has version {version} and features {features:#x}, unknown here")]
    Unsupported {
        /// Its version.
        version: u32,
        /// Its bits of what a reader must know.
        features: u32,
    },
    /// The trees say something else than the device's details.
    #[error("thin device {device} maps {found} blocks, but its details say {expected}")]
    Count {
        /// The device's id.
        device: u32,
        /// What the details say.
        expected: u64,
        /// What the trees say.
        found: i128,
    },
}

/// What is wrong with a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// Its bytes are not those that were written.
    #[error("its checksum is {found:#010x}, not {computed:#010x}")]
    Checksum {
        /// What it carries.
        found: u32,
        /// What its bytes have.
        computed: u32,
    },
    /// It was written for another place.
    #[error("it says that it is block {0}")]
    Misplaced(u64),
    /// It is no superblock.
    #[error("it has the magic number {0:#x}, not that of a thin pool")]
    Magic(u64),
    /// Its sizes of blocks are none.
    #[error("it has data blocks of {data} sectors and metadata blocks of {metadata}")]
    BlockLen {
        /// Sectors of a data block.
        data: u32,
        /// Sectors of a metadata block.
        metadata: u32,
    },
    /// It is no node.
    #[error("it is a node of the unknown kind {0}")]
    Kind(u32),
    /// Its numbers of entries and its sizes do not fit together.
    #[error("its numbers of entries do not fit it")]
    Shape,
    /// Its keys do not ascend, or leave the range that its parent gives.
    #[error("its key {0} is out of order or out of its parent's range")]
    Key(u64),
    /// The tree is deeper than any, or its leaves lie at different depths.
    #[error("it lies deeper in its tree than it can")]
    Height,
    /// A device that one tree knows and the other does not.
    #[error("its trees disagree on whether there is a device {0}")]
    Device(u32),
}

/// The head of a pool's metadata, live or held still.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Superblock {
    /// Its place: 0, or that of the metadata snapshot.
    pub block: u64,
    /// The pool's clock: it counts snapshots.
    pub time: u32,
    /// The number that user space set last.
    pub transaction_id: u64,
    /// Bytes of a data block.
    pub data_block_len: u64,
    mapping_root: u64,
    details_root: u64,
}

impl Superblock {
    fn decode(bytes: &Block, block: u64) -> Result<Self, MetadataError> {
        check_block(bytes, block, SUPERBLOCK_SALT)?;
        let damaged = |fault| MetadataError::Damaged { block, fault };
        if u64_at(bytes, 32) != MAGIC {
            return Err(damaged(Fault::Magic(u64_at(bytes, 32))));
        }
        let (version, features) = (u32_at(bytes, 40), u32_at(bytes, 360));
        if ![VERSION, VERSION_OF_TOOLS].contains(&version) || features != 0 {
            return Err(MetadataError::Unsupported { version, features });
        }
        if u32_at(bytes, 4) & FLAG_NEEDS_CHECK != 0 {
            return Err(MetadataError::NeedsCheck);
        }
        let (data, metadata) = (u32_at(bytes, 336), u32_at(bytes, 340));
        let (unit, max) = DATA_BLOCK_SECTORS;
        let is_whole = data.is_multiple_of(unit) && (unit..=max).contains(&data);
        if !is_whole || u64::from(metadata) * SECTOR_LEN != BLOCK_LEN as u64 {
            return Err(damaged(Fault::BlockLen { data, metadata }));
        }
        Ok(Superblock {
            block,
            time: u32_at(bytes, 44),
            transaction_id: u64_at(bytes, 48),
            data_block_len: u64::from(data) * SECTOR_LEN,
            mapping_root: u64_at(bytes, 320),
            details_root: u64_at(bytes, 328),
        })
    }
}

/// A thin device, as the metadata knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ThinDevice {
    /// Its id in the pool.
    pub id: u32,
    /// How many of its blocks are mapped.
    pub mapped_blocks: u64,
    /// The pool's transaction id when it was made.
    pub transaction_id: u64,
    /// The pool's clock when it was made.
    pub creation_time: u32,
    root: u64,
}

/// A thin block and the data block that holds its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// Block of the thin device.
    pub thin: u64,
    /// Block of the pool's data.
    pub data: u64,
}

/// In which way a range of thin blocks is not the same in two devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Difference {
    /// Mapped in both, to other data blocks.
    Remapped,
    /// Mapped in the new one only.
    Mapped,
    /// Mapped in the old one only: in the new one it reads as zeroes.
    Unmapped,
}

/// A pool's metadata. It must not change while it is read: a metadata snapshot, or that of a pool
/// that is not active.
pub struct Metadata<'a> {
    blocks: &'a dyn MetadataBlocks,
    superblock: Superblock,
}

impl<'a> Metadata<'a> {
    /// Reads the superblock at `root`: the root of a metadata snapshot, or 0.
    ///
    /// # Errors
    /// If it is none, or of a pool that is not to be trusted.
    pub fn open(blocks: &'a dyn MetadataBlocks, root: u64) -> Result<Self, MetadataError> {
        let bytes = read_block(blocks, root)?;
        Ok(Metadata { blocks, superblock: Superblock::decode(&bytes, root)? })
    }

    /// Its head.
    pub fn superblock(&self) -> &Superblock {
        &self.superblock
    }

    /// The device with this id, if there is one.
    ///
    /// # Errors
    /// For every fault on the way to it.
    pub fn device(&self, id: u32) -> Result<Option<ThinDevice>, MetadataError> {
        let Superblock { block, mapping_root, details_root, .. } = self.superblock;
        let root = self.look_up::<ROOT_LEN>(mapping_root, id)?;
        let details = self.look_up::<DETAILS_LEN>(details_root, id)?;
        match (root, details) {
            (Some(root), Some(details)) => Ok(Some(ThinDevice {
                id,
                mapped_blocks: u64_at(&details, 0),
                transaction_id: u64_at(&details, 8),
                creation_time: u32_at(&details, 16),
                root: u64::from_le_bytes(root),
            })),
            (None, None) => Ok(None),
            _ => Err(MetadataError::Damaged { block, fault: Fault::Device(id) }),
        }
    }

    /// The mappings of `device`, ascending. What was said before an error is worth nothing.
    ///
    /// # Errors
    /// For every fault of its tree.
    pub fn mappings(
        &self,
        device: &ThinDevice,
        mut say: impl FnMut(Mapping),
    ) -> Result<(), MetadataError> {
        let mut walk = self.walk(device)?;
        let mut found = 0;
        while let Some(place) = walk.place {
            match place {
                Place::Subtree(_) => walk.descend()?,
                Place::Mapping(mapping) => {
                    say(mapping);
                    found += 1;
                    walk.pass();
                }
            }
        }
        check_count(device, found)
    }

    /// Where `new` is not the same as `old`, as ascending ranges of thin blocks, each as long as
    /// can be; what is unmapped in both is the same. What was said before an error is worth
    /// nothing.
    ///
    /// # Errors
    /// For every fault of the parts of the trees that are not shared.
    pub fn diff(
        &self,
        old: &ThinDevice,
        new: &ThinDevice,
        say: impl FnMut(Range<u64>, Difference),
    ) -> Result<(), MetadataError> {
        let (mut before, mut now) = (self.walk(old)?, self.walk(new)?);
        let mut runs = Runs { open: None, growth: 0, say };
        while let Some(step) = Step::at(before.place, now.place) {
            match step {
                Step::Descend(side) => {
                    if side != Side::New {
                        before.descend()?;
                    }
                    if side != Side::Old {
                        now.descend()?;
                    }
                }
                Step::Pass(side, difference) => {
                    if let Some((thin, difference)) = difference {
                        runs.push(thin, difference);
                    }
                    if side != Side::New {
                        before.pass();
                    }
                    if side != Side::Old {
                        now.pass();
                    }
                }
            }
        }
        check_count(new, i128::from(old.mapped_blocks) + runs.finish())
    }

    fn walk(&self, device: &ThinDevice) -> Result<Walk<'a>, MetadataError> {
        // Bytes of a volume are counted in 64 bits; blocks beyond are none.
        let last = u64::MAX / self.superblock.data_block_len - 1;
        let keys = Keys { first: 0, last };
        let height = self.height(device.root, keys)?;
        let root = Place::Subtree(Subtree { block: device.root, height, keys });
        Ok(Walk { blocks: self.blocks, path: Vec::new(), place: Some(root) })
    }

    /// How many nodes lie above the leaves, on the way to the first of them.
    fn height(&self, root: u64, keys: Keys) -> Result<u32, MetadataError> {
        let mut node = Node::read(self.blocks, root, keys, MAPPING_LEN)?;
        for height in 0..=HEIGHT_MAX {
            if node.is_leaf {
                return Ok(height);
            }
            let (child, keys) = node.child(0);
            node = Node::read(self.blocks, child, keys, MAPPING_LEN)?;
        }
        Err(node.fault(Fault::Height))
    }

    /// What the tree of `root` has for a device.
    fn look_up<const LEN: usize>(
        &self,
        root: u64,
        device: u32,
    ) -> Result<Option<[u8; LEN]>, MetadataError> {
        let key = u64::from(device);
        let keys = Keys { first: 0, last: DEVICE_ID_MAX };
        let mut node = Node::read(self.blocks, root, keys, LEN)?;
        for _ in 0..=HEIGHT_MAX {
            // The last entry whose key is not greater.
            let Some(index) = node.count_up_to(key).checked_sub(1) else { return Ok(None) };
            if node.is_leaf {
                return Ok((node.key(index) == key).then(|| node.value(index)));
            }
            let (child, keys) = node.child(index);
            node = Node::read(self.blocks, child, keys, LEN)?;
        }
        Err(node.fault(Fault::Height))
    }
}

/// The keys that a subtree may have, both ends included.
#[derive(Clone, Copy, Debug)]
struct Keys {
    first: u64,
    last: u64,
}

/// A node of a tree, checked.
struct Node {
    bytes: Box<Block>,
    block: u64,
    keys: Keys,
    is_leaf: bool,
    count: usize,
    /// Entries that it has room for; values begin behind so many keys.
    max: usize,
}

impl Node {
    /// Reads the node at `block` of a tree whose leaves have values of `leaf_value_len` bytes.
    fn read(
        blocks: &dyn MetadataBlocks,
        block: u64,
        keys: Keys,
        leaf_value_len: usize,
    ) -> Result<Node, MetadataError> {
        let bytes = read_block(blocks, block)?;
        check_block(&bytes, block, NODE_SALT)?;
        let damaged = |fault| MetadataError::Damaged { block, fault };
        let (is_leaf, value_len) = match u32_at(&bytes[..], 4) {
            FLAG_LEAF => (true, leaf_value_len),
            FLAG_INTERNAL => (false, POINTER_LEN),
            kind => return Err(damaged(Fault::Kind(kind))),
        };
        let (count, max) = (u32_at(&bytes[..], 16) as usize, u32_at(&bytes[..], 20) as usize);
        let fits = NODE_HEAD_LEN.saturating_add(max.saturating_mul(8 + value_len)) <= BLOCK_LEN;
        let is_shaped =
            u32_at(&bytes[..], 24) as usize == value_len && max.is_multiple_of(3) && fits;
        if !is_shaped || count > max || (count == 0 && !is_leaf) {
            return Err(damaged(Fault::Shape));
        }
        let node = Node { bytes, block, keys, is_leaf, count, max };
        node.check_keys()?;
        Ok(node)
    }

    fn check_keys(&self) -> Result<(), MetadataError> {
        let mut least = Some(self.keys.first);
        for index in 0..self.count {
            let key = self.key(index);
            if least.is_none_or(|least| key < least) || key > self.keys.last {
                return Err(self.fault(Fault::Key(key)));
            }
            least = key.checked_add(1);
        }
        Ok(())
    }

    fn key(&self, index: usize) -> u64 {
        u64_at(&self.bytes[..], NODE_HEAD_LEN + 8 * index)
    }

    fn value<const LEN: usize>(&self, index: usize) -> [u8; LEN] {
        array_at(&self.bytes[..], NODE_HEAD_LEN + 8 * self.max + LEN * index)
    }

    /// A child of an internal node, and the keys that it may have.
    fn child(&self, index: usize) -> (u64, Keys) {
        let next = (index + 1 < self.count).then(|| self.key(index + 1) - 1);
        let keys = Keys { first: self.key(index), last: next.unwrap_or(self.keys.last) };
        (u64::from_le_bytes(self.value(index)), keys)
    }

    /// How many keys are not greater than `key`.
    fn count_up_to(&self, key: u64) -> usize {
        (0..self.count).take_while(|index| self.key(*index) <= key).count()
    }

    fn fault(&self, fault: Fault) -> MetadataError {
        MetadataError::Damaged { block: self.block, fault }
    }
}

/// A part of a tree that was not read yet.
#[derive(Clone, Copy, Debug)]
struct Subtree {
    block: u64,
    /// Nodes between its root and its leaves.
    height: u32,
    keys: Keys,
}

/// Where a walk stands.
#[derive(Clone, Copy, Debug)]
enum Place {
    Subtree(Subtree),
    Mapping(Mapping),
}

/// A node on a walk's way down.
struct Frame {
    node: Node,
    height: u32,
    /// Which of its entries is the place, or leads to it.
    index: usize,
}

impl Frame {
    /// What its entry is; `None` behind the last.
    fn place(&self) -> Option<Place> {
        let Frame { node, height, index } = self;
        if *index >= node.count {
            return None;
        }
        if node.is_leaf {
            // The low bits are the pool's clock when the block was mapped.
            let data = u64::from_le_bytes(node.value(*index)) >> 24;
            return Some(Place::Mapping(Mapping { thin: node.key(*index), data }));
        }
        let (block, keys) = node.child(*index);
        Some(Place::Subtree(Subtree { block, height: height - 1, keys }))
    }
}

/// A walk through a device's mappings in order, which may leave out whole subtrees. It holds one
/// node for each height.
struct Walk<'a> {
    blocks: &'a dyn MetadataBlocks,
    /// From the root down.
    path: Vec<Frame>,
    /// `None` at the end.
    place: Option<Place>,
}

impl Walk<'_> {
    /// Goes to the first entry of the subtree that it stands at.
    fn descend(&mut self) -> Result<(), MetadataError> {
        let Some(Place::Subtree(Subtree { block, height, keys })) = self.place else {
            return Ok(());
        };
        let node = Node::read(self.blocks, block, keys, MAPPING_LEN)?;
        if node.is_leaf != (height == 0) {
            return Err(node.fault(Fault::Height));
        }
        if node.count == 0 && !self.path.is_empty() {
            return Err(node.fault(Fault::Shape));
        }
        self.path.push(Frame { node, height, index: 0 });
        self.settle();
        Ok(())
    }

    /// Leaves behind what it stands at.
    fn pass(&mut self) {
        if let Some(frame) = self.path.last_mut() {
            frame.index += 1;
        }
        self.settle();
    }

    /// Finds the place that the path leads to, up again from nodes that are done.
    fn settle(&mut self) {
        self.place = None;
        while let Some(frame) = self.path.last_mut() {
            self.place = frame.place();
            if self.place.is_some() {
                return;
            }
            self.path.pop();
            if let Some(parent) = self.path.last_mut() {
                parent.index += 1;
            }
        }
    }
}

/// Which of two walks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Old,
    New,
    Both,
}

/// What a diff does next.
#[derive(Clone, Copy, Debug)]
enum Step {
    Descend(Side),
    /// Leaves the place behind, which is a difference or is not.
    Pass(Side, Option<(u64, Difference)>),
}

impl Step {
    /// The next step of two walks; `None` at the end of both.
    fn at(old: Option<Place>, new: Option<Place>) -> Option<Step> {
        use Place::{Mapping as M, Subtree as S};
        let unmapped = |thin| Step::Pass(Side::Old, Some((thin, Difference::Unmapped)));
        let mapped = |thin| Step::Pass(Side::New, Some((thin, Difference::Mapped)));
        Some(match (old, new) {
            (None, None) => return None,
            (Some(S(old)), Some(S(new))) => Step::at_subtrees(&old, &new),
            (Some(M(old)), Some(S(new))) if old.thin < new.keys.first => unmapped(old.thin),
            (Some(S(old)), Some(M(new))) if new.thin < old.keys.first => mapped(new.thin),
            (Some(S(_)), _) => Step::Descend(Side::Old),
            (_, Some(S(_))) => Step::Descend(Side::New),
            (Some(M(old)), None) => unmapped(old.thin),
            (None, Some(M(new))) => mapped(new.thin),
            (Some(M(old)), Some(M(new))) => match old.thin.cmp(&new.thin) {
                Ordering::Less => unmapped(old.thin),
                Ordering::Greater => mapped(new.thin),
                Ordering::Equal => {
                    let differ = old.data != new.data;
                    Step::Pass(Side::Both, differ.then_some((new.thin, Difference::Remapped)))
                }
            },
        })
    }

    /// Equal blocks are equal subtrees. Of others, the one that could hold the other is opened, so
    /// that the two walks come to stand at what they share.
    fn at_subtrees(old: &Subtree, new: &Subtree) -> Step {
        if old.block == new.block && old.height == new.height {
            return Step::Pass(Side::Both, None);
        }
        let by_place = new.keys.first.cmp(&old.keys.first);
        Step::Descend(match old.height.cmp(&new.height).then(by_place) {
            Ordering::Greater => Side::Old,
            Ordering::Less => Side::New,
            Ordering::Equal => Side::Both,
        })
    }
}

/// Joins differences of neighbouring blocks.
struct Runs<F> {
    open: Option<(Range<u64>, Difference)>,
    /// How many more blocks the new device maps.
    growth: i128,
    say: F,
}

impl<F: FnMut(Range<u64>, Difference)> Runs<F> {
    fn push(&mut self, thin: u64, difference: Difference) {
        self.growth += match difference {
            Difference::Remapped => 0,
            Difference::Mapped => 1,
            Difference::Unmapped => -1,
        };
        match &mut self.open {
            Some((range, kind)) if range.end == thin && *kind == difference => range.end += 1,
            open => {
                if let Some((range, kind)) = open.replace((thin..thin + 1, difference)) {
                    (self.say)(range, kind);
                }
            }
        }
    }

    /// Says the last one; how many more blocks the new device maps.
    fn finish(mut self) -> i128 {
        if let Some((range, kind)) = self.open.take() {
            (self.say)(range, kind);
        }
        self.growth
    }
}

fn check_count(device: &ThinDevice, found: i128) -> Result<(), MetadataError> {
    let ThinDevice { id, mapped_blocks, .. } = *device;
    match found == i128::from(mapped_blocks) {
        true => Ok(()),
        false => Err(MetadataError::Count { device: id, expected: mapped_blocks, found }),
    }
}

fn read_block(blocks: &dyn MetadataBlocks, block: u64) -> Result<Box<Block>, MetadataError> {
    let mut bytes = Box::new([0; BLOCK_LEN]);
    let read = match block < BLOCKS_MAX {
        true => blocks.read(block, &mut bytes),
        false => Err(io::ErrorKind::UnexpectedEof.into()),
    };
    match read {
        Ok(()) => Ok(bytes),
        Err(source) => Err(MetadataError::Unreadable { block, source }),
    }
}

/// Whether the block has the bytes that were written, and was written for its place.
fn check_block(bytes: &Block, block: u64, salt: u32) -> Result<(), MetadataError> {
    let damaged = |fault| Err(MetadataError::Damaged { block, fault });
    let (found, computed) = (u32_at(bytes, 0), checksum(bytes, salt));
    if found != computed {
        return damaged(Fault::Checksum { found, computed });
    }
    match u64_at(bytes, 8) {
        place if place == block => Ok(()),
        place => damaged(Fault::Misplaced(place)),
    }
}

/// A block's checksum: a CRC-32C without its last inversion.
fn checksum(bytes: &Block, salt: u32) -> u32 {
    !crc32c(&bytes[4..]) ^ salt
}

/// The number at `at` of what a kernel wrote; it has to be there.
pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(array_at(bytes, at))
}

/// As [`u32_at`].
pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(array_at(bytes, at))
}

fn array_at<const LEN: usize>(bytes: &[u8], at: usize) -> [u8; LEN] {
    let mut array = [0; LEN];
    array.copy_from_slice(&bytes[at..at + LEN]);
    array
}

#[cfg(test)]
pub(super) mod tests {
    use std::cell::Cell;
    use std::collections::{BTreeMap, HashMap};

    use proptest::collection::btree_map;
    use proptest::prelude::*;

    use super::*;

    pub type Map = BTreeMap<u64, u64>;

    /// Room for entries in each node: the least that leads to deep trees.
    const MAX: usize = 6;

    /// How entries are shared out among nodes.
    #[derive(Clone, Copy, Debug)]
    pub enum Cut {
        /// So many to a node, whatever their keys.
        Count(usize),
        /// By a multiple of the key, so that nodes begin at the same keys in every tree.
        Key(u64),
    }

    /// Builds metadata. Nodes with the same entries are one node, as copying on write has it.
    #[derive(Clone, Default)]
    pub struct Forge {
        blocks: Vec<Block>,
        known: HashMap<Vec<u8>, u64>,
        /// What a reader has read.
        reads: Cell<u64>,
    }

    impl MetadataBlocks for Forge {
        fn read(&self, number: u64, bytes: &mut Block) -> io::Result<()> {
            self.reads.set(self.reads.get() + 1);
            let block = self.blocks.get(number as usize).ok_or(io::ErrorKind::UnexpectedEof)?;
            *bytes = *block;
            Ok(())
        }
    }

    impl Forge {
        fn new() -> Forge {
            Forge { blocks: vec![[0; BLOCK_LEN]], ..Forge::default() }
        }

        fn node(&mut self, flags: u32, entries: &[(u64, Vec<u8>)], value_len: usize) -> u64 {
            let mut body = Vec::new();
            for (key, value) in entries {
                body.extend_from_slice(&key.to_le_bytes());
                body.extend_from_slice(value);
            }
            body.push(flags as u8);
            let number = self.blocks.len() as u64;
            let known = *self.known.entry(body).or_insert(number);
            if known < number {
                return known;
            }
            let mut bytes = [0; BLOCK_LEN];
            put(&mut bytes, 4, &flags.to_le_bytes());
            put(&mut bytes, 16, &(entries.len() as u32).to_le_bytes());
            put(&mut bytes, 20, &(MAX as u32).to_le_bytes());
            put(&mut bytes, 24, &(value_len as u32).to_le_bytes());
            for (index, (key, value)) in entries.iter().enumerate() {
                put(&mut bytes, 32 + 8 * index, &key.to_le_bytes());
                put(&mut bytes, 32 + 8 * MAX + value_len * index, value);
            }
            self.blocks.push(bytes);
            self.seal(number, NODE_SALT);
            number
        }

        fn tree(&mut self, entries: &[(u64, Vec<u8>)], value_len: usize, cut: Cut) -> u64 {
            let mut level = self.level(FLAG_LEAF, entries, value_len, cut);
            let mut span = cut;
            while level.len() > 1 {
                span = match span {
                    Cut::Key(keys) => Cut::Key(keys * MAX as u64),
                    count => count,
                };
                level = self.level(FLAG_INTERNAL, &level, POINTER_LEN, span);
            }
            match level.first() {
                Some((_, root)) => u64::from_le_bytes(root[..].try_into().unwrap()),
                None => self.node(FLAG_LEAF, &[], value_len),
            }
        }

        /// Nodes for all entries, as entries of the level above.
        fn level(
            &mut self,
            flags: u32,
            entries: &[(u64, Vec<u8>)],
            value_len: usize,
            cut: Cut,
        ) -> Vec<(u64, Vec<u8>)> {
            let mut nodes: Vec<&[(u64, Vec<u8>)]> = Vec::new();
            match cut {
                Cut::Count(count) => nodes.extend(entries.chunks(count)),
                Cut::Key(keys) => nodes.extend(entries.chunk_by(|a, b| a.0 / keys == b.0 / keys)),
            }
            let mut level = Vec::new();
            for node in nodes {
                let number = self.node(flags, node, value_len);
                level.push((node[0].0, number.to_le_bytes().to_vec()));
            }
            level
        }

        /// A pool of these devices, numbered from 1.
        pub fn pool(devices: &[(&Map, Cut)]) -> Forge {
            let mut forge = Forge::new();
            let (mut roots, mut details) = (Vec::new(), Vec::new());
            for (id, (map, cut)) in (1_u64..).zip(devices) {
                // The clock differs, and is nobody's business.
                let value = |(thin, data): (&u64, &u64)| {
                    (*thin, ((data << 24) | (thin % 3)).to_le_bytes().to_vec())
                };
                let entries: Vec<_> = map.iter().map(value).collect();
                let root = forge.tree(&entries, MAPPING_LEN, *cut);
                roots.push((id, root.to_le_bytes().to_vec()));
                let mut known = vec![0; DETAILS_LEN];
                put(&mut known, 0, &(map.len() as u64).to_le_bytes());
                put(&mut known, 8, &(70 + id).to_le_bytes());
                put(&mut known, 16, &(40 + id as u32).to_le_bytes());
                details.push((id, known));
            }
            let roots = forge.tree(&roots, ROOT_LEN, Cut::Count(2));
            let details = forge.tree(&details, DETAILS_LEN, Cut::Count(2));
            forge.superblock(roots, details);
            forge
        }

        fn superblock(&mut self, roots: u64, details: u64) {
            let bytes = &mut self.blocks[0];
            put(bytes, 32, &MAGIC.to_le_bytes());
            put(bytes, 40, &VERSION.to_le_bytes());
            put(bytes, 44, &9_u32.to_le_bytes());
            put(bytes, 48, &77_u64.to_le_bytes());
            put(bytes, 320, &roots.to_le_bytes());
            put(bytes, 328, &details.to_le_bytes());
            put(bytes, 336, &128_u32.to_le_bytes());
            put(bytes, 340, &8_u32.to_le_bytes());
            self.seal(0, SUPERBLOCK_SALT);
        }

        fn seal(&mut self, number: u64, salt: u32) {
            let bytes = &mut self.blocks[number as usize];
            put(bytes, 8, &number.to_le_bytes());
            let sum = checksum(bytes, salt);
            put(bytes, 0, &sum.to_le_bytes());
        }
    }

    fn put(bytes: &mut [u8], at: usize, what: &[u8]) {
        bytes[at..at + what.len()].copy_from_slice(what);
    }

    fn known(forge: &Forge, id: u32) -> Result<ThinDevice, MetadataError> {
        Ok(Metadata::open(forge, 0)?.device(id)?.expect("the device was forged"))
    }

    fn read_all(forge: &Forge, id: u32) -> Result<Map, MetadataError> {
        let mut map = Map::new();
        let device = known(forge, id)?;
        Metadata::open(forge, 0)?.mappings(&device, |mapping| {
            assert!(map.insert(mapping.thin, mapping.data).is_none());
        })?;
        Ok(map)
    }

    type Ranges = Vec<(Range<u64>, Difference)>;

    fn diff(forge: &Forge, old: u32, new: u32) -> Result<Ranges, MetadataError> {
        let mut ranges = Ranges::new();
        let (old, new) = (known(forge, old)?, known(forge, new)?);
        Metadata::open(forge, 0)?.diff(&old, &new, |range, how| ranges.push((range, how)))?;
        Ok(ranges)
    }

    /// What a diff must say, block by block.
    fn expected(old: &Map, new: &Map) -> Ranges {
        let mut ranges = Ranges::new();
        let mut all: Vec<u64> = old.keys().chain(new.keys()).copied().collect();
        all.sort_unstable();
        all.dedup();
        for thin in all {
            let how = match (old.get(&thin), new.get(&thin)) {
                (Some(a), Some(b)) if a == b => continue,
                (Some(_), Some(_)) => Difference::Remapped,
                (None, _) => Difference::Mapped,
                (_, None) => Difference::Unmapped,
            };
            match ranges.last_mut() {
                Some((range, last)) if range.end == thin && *last == how => range.end += 1,
                _ => ranges.push((thin..thin + 1, how)),
            }
        }
        ranges
    }

    fn cuts() -> impl Strategy<Value = Cut> {
        prop_oneof![(1..=MAX).prop_map(Cut::Count), (1..=MAX as u64).prop_map(Cut::Key)]
            // One entry to a node makes a tower, not a tree.
            .prop_map(|cut| if let Cut::Count(1) = cut { Cut::Count(2) } else { cut })
    }

    /// A map, and one that came of it by a few changes.
    fn histories() -> impl Strategy<Value = (Map, Map)> {
        let changes = btree_map(0..300_u64, prop::option::of(1000..2000_u64), 0..20);
        (btree_map(0..300_u64, 0..1000_u64, 0..200), changes).prop_map(|(old, changes)| {
            let mut new = old.clone();
            for (thin, data) in changes {
                match data {
                    Some(data) => drop(new.insert(thin, data)),
                    None => drop(new.remove(&thin)),
                }
            }
            (old, new)
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn maps_and_their_difference_come_back((old, new) in histories(), a in cuts(), b in cuts()) {
            let forge = Forge::pool(&[(&old, a), (&new, b)]);
            prop_assert_eq!(&read_all(&forge, 1).unwrap(), &old);
            prop_assert_eq!(&read_all(&forge, 2).unwrap(), &new);
            prop_assert_eq!(diff(&forge, 1, 2).unwrap(), expected(&old, &new));
            prop_assert_eq!(diff(&forge, 2, 1).unwrap(), expected(&new, &old));
        }
    }

    fn map_of(len: u64) -> Map {
        (0..len).map(|thin| (3 * thin, 5000 - thin)).collect()
    }

    #[test]
    fn what_two_devices_share_is_not_read() {
        let old = map_of(1000);
        let mut new = old.clone();
        new.insert(1500, 1);
        let cut = Cut::Key(12);
        let forge = Forge::pool(&[(&old, cut), (&new, cut), (&old, cut)]);
        let cost = |new: u32| {
            let before = forge.reads.get();
            diff(&forge, 1, new).unwrap();
            forge.reads.get() - before
        };
        // Twice the superblock and both ways to a device, and the height of both trees.
        let nothing = cost(3);
        assert!(nothing < 30, "{nothing} reads");
        // One way down in both.
        assert!(cost(2) <= nothing + 2 * 5, "{} reads", cost(2));
        assert!(forge.blocks.len() > 250);
    }

    #[test]
    fn a_device_is_known_by_all_of_its_details() {
        let maps: Vec<Map> = (0..9).map(map_of).collect();
        let devices: Vec<_> = maps.iter().map(|map| (map, Cut::Count(3))).collect();
        let forge = Forge::pool(&devices);
        let metadata = Metadata::open(&forge, 0).unwrap();
        assert_eq!(metadata.superblock().data_block_len, 65536);
        assert_eq!((metadata.superblock().time, metadata.superblock().transaction_id), (9, 77));
        let device = metadata.device(4).unwrap().unwrap();
        assert_eq!((device.mapped_blocks, device.transaction_id), (3, 74));
        assert_eq!(device.creation_time, 44);
        for stranger in [0, 10, u32::MAX] {
            assert_eq!(metadata.device(stranger).unwrap(), None);
        }
    }

    /// Every bit of every block, one after the other: an error, or the same as before.
    #[test]
    fn a_flipped_bit_is_an_error_or_changes_nothing() {
        let (old, mut new) = (map_of(20), map_of(20));
        new.insert(7, 1);
        let mut forge = Forge::pool(&[(&old, Cut::Count(4)), (&new, Cut::Count(5))]);
        let right = (read_all(&forge, 2).unwrap(), diff(&forge, 1, 2).unwrap());
        let mut errors = 0;
        for block in 0..forge.blocks.len() {
            for bit in (0..8 * BLOCK_LEN).filter(|bit| bit / 8 < 160 || bit % 31 == 0) {
                forge.blocks[block][bit / 8] ^= 1 << (bit % 8);
                match (read_all(&forge, 2), diff(&forge, 1, 2)) {
                    (Ok(map), Ok(ranges)) => assert_eq!((map, ranges), right),
                    _ => errors += 1,
                }
                forge.blocks[block][bit / 8] ^= 1 << (bit % 8);
            }
        }
        // Of each block that is on the way, each bit.
        assert!(errors > 10_000, "{errors} errors");
    }

    /// What a checksum does not tell: blocks that were written wrong.
    #[test]
    fn what_cannot_be_is_refused_by_name() {
        let map = map_of(30);
        let forge = Forge::pool(&[(&map, Cut::Count(3))]);
        let root = known(&forge, 1).unwrap().root;
        let with = |block: u64, at: usize, bytes: &[u8]| {
            let mut forge = forge.clone();
            put(&mut forge.blocks[block as usize], at, bytes);
            forge.seal(block, if block == 0 { SUPERBLOCK_SALT } else { NODE_SALT });
            read_all(&forge, 1).unwrap_err().to_string()
        };
        let says = |error: String, words: &str| assert!(error.contains(words), "{error}");
        let head = |at, value: u32| with(0, at, &value.to_le_bytes());
        says(with(0, 32, &[1; 8]), "magic number 0x101010101010101");
        says(head(4, FLAG_NEEDS_CHECK), "in need of a check");
        says(head(40, 3), "version 3");
        says(head(360, 2), "features 0x2");
        for sectors in [0, 64, 129, 2_097_152 + 128] {
            says(head(336, sectors), &format!("data blocks of {sectors} sectors"));
        }
        says(head(340, 16), "metadata blocks of 16");
        says(with(0, 320, &[0xff; 8]), "cannot be read");
        says(with(0, 320, &0_u64.to_le_bytes()), "checksum");

        let node = |at, value: u32| with(root, at, &value.to_le_bytes());
        let damaged = format!("block {root} of the pool's metadata is damaged");
        says(node(4, 3), &damaged);
        says(node(4, 3), "unknown kind 3");
        // A root that says it is a leaf holds other keys than the details count.
        says(node(4, FLAG_LEAF), ", but its details say 30");
        for (at, value) in [(16, 0), (16, 7), (20, 7), (20, u32::MAX), (20, 255), (24, 24)] {
            says(node(at, value), "numbers of entries");
        }
        // Its own root as its child, a child twice, one before another, none there.
        let child = NODE_HEAD_LEN + 8 * MAX;
        let first = u64_at(&forge.blocks[root as usize], child).to_le_bytes();
        says(with(root, child, &root.to_le_bytes()), "out of its parent's range");
        says(with(root, child + 8, &root.to_le_bytes()), "key 0 is out of order");
        says(with(root, child + 8, &first), "key 0 is out of order");
        says(with(root, child + 8, &u64::MAX.to_le_bytes()), "cannot be read");
        says(with(root, NODE_HEAD_LEN + 8, &[0; 8]), "key 0 is out of order");
        says(with(root, NODE_HEAD_LEN + 8, &[0xff; 8]), "out of its parent's range");
    }

    #[test]
    fn a_tree_of_one_depth_only() {
        // A tower of nodes with one entry each.
        let mut forge = Forge::pool(&[(&map_of(9), Cut::Count(3)), (&map_of(2), Cut::Count(3))]);
        let mut below = known(&forge, 2).unwrap().root;
        let mut heights = Vec::new();
        for _ in 0..=HEIGHT_MAX {
            heights.push(below);
            let entry = (0, below.to_le_bytes().to_vec());
            below = forge.node(FLAG_INTERNAL, &[entry], POINTER_LEN);
        }
        let of = |root| ThinDevice { root, ..known(&forge, 2).unwrap() };
        let read = |root| Metadata::open(&forge, 0).unwrap().mappings(&of(root), drop);
        read(heights[HEIGHT_MAX as usize]).unwrap();
        assert!(read(below).unwrap_err().to_string().contains("deeper"));
        // A leaf where the other children have leaves below.
        let mut forge = forge.clone();
        let deep =
            forge.node(FLAG_INTERNAL, &[(0, heights[0].to_le_bytes().to_vec())], POINTER_LEN);
        let leaf = forge.node(FLAG_LEAF, &[(9, vec![0; 8])], MAPPING_LEN);
        let entries = [(0, deep.to_le_bytes().to_vec()), (9, leaf.to_le_bytes().to_vec())];
        let root = forge.node(FLAG_INTERNAL, &entries, POINTER_LEN);
        let error = Metadata::open(&forge, 0).unwrap().mappings(&of(root), drop).unwrap_err();
        assert!(error.to_string().contains("deeper"), "{error}");
    }

    #[test]
    fn a_device_without_details_is_damage() {
        let mut forge = Forge::pool(&[(&map_of(3), Cut::Count(3))]);
        let empty = forge.node(FLAG_LEAF, &[], DETAILS_LEN);
        put(&mut forge.blocks[0], 328, &empty.to_le_bytes());
        forge.seal(0, SUPERBLOCK_SALT);
        let error = Metadata::open(&forge, 0).unwrap().device(1).unwrap_err();
        assert!(error.to_string().contains("disagree"), "{error}");
    }

    #[test]
    fn a_pool_of_nothing_has_nothing() {
        let forge = Forge::pool(&[(&Map::new(), Cut::Count(3)), (&map_of(2), Cut::Count(3))]);
        assert_eq!(read_all(&forge, 1).unwrap(), Map::new());
        assert_eq!(diff(&forge, 1, 1).unwrap(), []);
        assert_eq!(diff(&forge, 2, 1).unwrap().len(), 2);
    }
}
