//! The header of a qcow2 image and its extensions.

use super::super::bytes::{ImageBytes, be32_at, be64_at};
use super::error::{Fault, ImageError};

const MAGIC: u32 = 0x5146_49fb;
const V2_LEN: usize = 72;
const V3_LEN: usize = 104;
const CLUSTER_BITS: (u64, u64) = (9, 21);
const L1_LEN_MAX: u64 = 32 << 20;
const REFCOUNT_TABLE_LEN_MAX: u64 = 8 << 20;
const REFCOUNT_ORDER_MAX: u64 = 6;
const SNAPSHOTS_MAX: u64 = 65536;
/// Longest name of another file, or of a bitmap.
pub(super) const NAME_LEN_MAX: u64 = 1023;
/// QEMU has room for so many bytes.
const FORMAT_LEN_MAX: u64 = 15;
/// Subclusters are a 32nd of a cluster and at least 512 bytes.
const EXTENDED_L2_CLUSTER_BITS_MIN: u32 = 14;

/// Bits of the incompatible features.
mod incompatible {
    pub(super) const DIRTY: u64 = 1 << 0;
    pub(super) const CORRUPT: u64 = 1 << 1;
    pub(super) const DATA_FILE: u64 = 1 << 2;
    pub(super) const COMPRESSION: u64 = 1 << 3;
    pub(super) const EXTENDED_L2: u64 = 1 << 4;
    pub(super) const KNOWN: u64 = DIRTY | CORRUPT | DATA_FILE | COMPRESSION | EXTENDED_L2;
}

/// Bits of the features that a writer which does not know them clears.
mod autoclear {
    pub(super) const BITMAPS: u64 = 1 << 0;
    pub(super) const DATA_FILE_RAW: u64 = 1 << 1;
}

/// Types of header extensions.
mod extension {
    pub(super) const END: u32 = 0;
    pub(super) const BACKING_FORMAT: u32 = 0xe279_2aca;
    pub(super) const FEATURE_NAMES: u32 = 0x6803_f857;
    pub(super) const BITMAPS: u32 = 0x2385_2875;
    pub(super) const DATA_FILE: u32 = 0x4441_5441;
}

/// How clusters are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// Raw deflate.
    Deflate,
    /// Zstandard.
    Zstd,
}

/// What an image is made upon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backing {
    /// The file's name as it stands there.
    pub name: String,
    /// Its format, by QEMU's name; without it QEMU would guess.
    pub format: Option<String>,
}

/// Where the directory of bitmaps is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BitmapDirectory {
    /// Where the header says so.
    pub(super) at: u64,
    pub(super) count: u64,
    pub(super) offset: u64,
    pub(super) len: u64,
}

/// What a header says, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// 2 or 3.
    pub version: u32,
    /// A cluster has two to the power of this many bytes: 9 to 21.
    pub cluster_bits: u32,
    /// The disk's size in bytes.
    pub size: u64,
    /// The incompatible features; none that is not known.
    pub incompatible: u64,
    /// The compatible features, whatever they are.
    pub compatible: u64,
    /// The features that writers clear which do not know them, whatever they are.
    pub autoclear: u64,
    /// How clusters are compressed, if any are.
    pub compression: Compression,
    /// What the image is made upon.
    pub backing: Option<Backing>,
    /// The name of the file that holds its data, if that is another one and its name is there.
    pub data_file: Option<String>,
    /// How many internal snapshots it holds.
    pub snapshot_count: u32,
    pub(super) bitmap_directory: Option<BitmapDirectory>,
}

impl Header {
    /// Reads and checks the header and its extensions.
    ///
    /// # Errors
    /// For everything that is not as the format has it, for encryption, and for features that are
    /// not known.
    pub fn read(image: &(impl ImageBytes + ?Sized)) -> Result<Header, ImageError> {
        let fixed = Fixed::read(image)?;
        // At most 2 MiB: the size of a cluster was checked.
        let mut first = vec![0; fixed.cluster_len() as usize];
        read(image, 0, &mut first)?;
        let extensions = Extensions::read(&fixed, &first)?;
        fixed.check_features(&extensions)?;
        let place = Place { cluster_len: fixed.cluster_len(), image_len: image_len(image)? };
        fixed.check_tables(&place)?;
        let header = Header {
            version: fixed.version,
            cluster_bits: fixed.cluster_bits,
            size: fixed.size,
            incompatible: fixed.incompatible,
            compatible: fixed.compatible,
            autoclear: fixed.autoclear,
            compression: fixed.compression()?,
            backing: fixed.backing(&first, extensions.backing_format)?,
            data_file: extensions.data_file,
            snapshot_count: fixed.snapshot_count,
            bitmap_directory: extensions.bitmap_directory,
        };
        match header.data_file.is_some() && !header.has_data_file() {
            true => Err(damaged(0, Fault::Contradiction("data file's name and the features"))),
            false => Ok(header),
        }
    }

    /// Bytes of a cluster.
    pub fn cluster_len(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// Whether reference counts may be wrong. They do not matter to a reader.
    pub fn is_dirty(&self) -> bool {
        self.incompatible & incompatible::DIRTY != 0
    }

    /// Whether QEMU found a structure damaged, and lets nobody write since.
    pub fn is_corrupt(&self) -> bool {
        self.incompatible & incompatible::CORRUPT != 0
    }

    /// Whether its data lies in another file.
    pub fn has_data_file(&self) -> bool {
        self.incompatible & incompatible::DATA_FILE != 0
    }

    /// Whether that other file is the disk's bytes as they are.
    pub fn has_raw_data_file(&self) -> bool {
        self.has_data_file() && self.autoclear & autoclear::DATA_FILE_RAW != 0
    }

    /// Whether clusters are divided into subclusters.
    pub fn has_extended_l2(&self) -> bool {
        self.incompatible & incompatible::EXTENDED_L2 != 0
    }

    /// Whether the last writer kept the bitmaps.
    pub(super) fn has_valid_bitmaps(&self) -> bool {
        self.autoclear & autoclear::BITMAPS != 0
    }
}

/// The part of the header that is at fixed places.
struct Fixed {
    version: u32,
    backing_offset: u64,
    backing_len: u64,
    cluster_bits: u32,
    size: u64,
    l1_count: u64,
    l1_offset: u64,
    refcount_table_offset: u64,
    refcount_table_clusters: u64,
    snapshot_count: u32,
    snapshots_offset: u64,
    incompatible: u64,
    compatible: u64,
    autoclear: u64,
    header_len: u64,
    compression_type: u8,
}

impl Fixed {
    fn read(image: &(impl ImageBytes + ?Sized)) -> Result<Fixed, ImageError> {
        let mut bytes = [0; V3_LEN + 8];
        let there = image_len(image)?.min(bytes.len() as u64) as usize;
        read(image, 0, &mut bytes[..there])?;
        if there < 8 || be32_at(&bytes, 0) != MAGIC {
            return Err(ImageError::Magic);
        }
        let version = be32_at(&bytes, 4);
        let least_len = match version {
            2 => V2_LEN,
            3 => V3_LEN,
            version => return Err(ImageError::Version(version)),
        };
        if there < least_len {
            return Err(damaged(there as u64, Fault::Cut("header")));
        }
        if version == 2 {
            bytes[V2_LEN..].fill(0);
        }
        let fixed = Fixed::of(&bytes, version);
        fixed.check(be32_at(&bytes, 32), be32_at(&bytes, 96))?;
        Ok(fixed)
    }

    fn of(bytes: &[u8; V3_LEN + 8], version: u32) -> Fixed {
        let header_len = if version == 2 { V2_LEN as u64 } else { be32_at(bytes, 100).into() };
        let has_type = header_len > V3_LEN as u64;
        Fixed {
            version,
            backing_offset: be64_at(bytes, 8),
            backing_len: be32_at(bytes, 16).into(),
            cluster_bits: be32_at(bytes, 20),
            size: be64_at(bytes, 24),
            l1_count: be32_at(bytes, 36).into(),
            l1_offset: be64_at(bytes, 40),
            refcount_table_offset: be64_at(bytes, 48),
            refcount_table_clusters: be32_at(bytes, 56).into(),
            snapshot_count: be32_at(bytes, 60),
            snapshots_offset: be64_at(bytes, 64),
            incompatible: be64_at(bytes, 72),
            compatible: be64_at(bytes, 80),
            autoclear: be64_at(bytes, 88),
            header_len,
            compression_type: if has_type { bytes[V3_LEN] } else { 0 },
        }
    }

    /// Checks what needs no more than these numbers.
    fn check(&self, encryption: u32, refcount_order: u32) -> Result<(), ImageError> {
        let (min, max) = CLUSTER_BITS;
        in_range(20, "number of bits of a cluster's size", self.cluster_bits.into(), min, max)?;
        match encryption {
            0 => {}
            1 => return Err(ImageError::Encrypted { method: "AES" }),
            2 => return Err(ImageError::Encrypted { method: "LUKS" }),
            other => in_range(32, "kind of encryption", other.into(), 0, 2)?,
        }
        if self.version == 3 {
            in_range(
                96,
                "order of reference counts",
                refcount_order.into(),
                0,
                REFCOUNT_ORDER_MAX,
            )?;
            let max = self.cluster_len();
            in_range(100, "header's length", self.header_len, V3_LEN as u64, max)?;
            aligned(100, "header's length", self.header_len, 8)?;
        }
        Ok(())
    }

    fn cluster_len(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// Where the extensions end at the latest.
    fn extensions_end(&self) -> u64 {
        if self.backing_offset == 0 { self.cluster_len() } else { self.backing_offset }
    }

    fn check_features(&self, extensions: &Extensions) -> Result<(), ImageError> {
        let unknown = self.incompatible & !incompatible::KNOWN;
        if unknown != 0 {
            let bit = unknown.trailing_zeros();
            return Err(ImageError::Feature { bit, name: extensions.feature_name(bit) });
        }
        let is_extended = self.incompatible & incompatible::EXTENDED_L2 != 0;
        match is_extended && self.cluster_bits < EXTENDED_L2_CLUSTER_BITS_MIN {
            true => {
                Err(damaged(20, Fault::Contradiction("cluster size and the extended L2 entries")))
            }
            false => Ok(()),
        }
    }

    fn compression(&self) -> Result<Compression, ImageError> {
        let has_bit = self.incompatible & incompatible::COMPRESSION != 0;
        match (self.compression_type, has_bit) {
            (0, false) => Ok(Compression::Deflate),
            (1, true) => Ok(Compression::Zstd),
            (0 | 1, _) => {
                Err(damaged(104, Fault::Contradiction("compression type and the features")))
            }
            (other, _) => {
                in_range(104, "compression type", other.into(), 0, 1)?;
                Ok(Compression::Deflate)
            }
        }
    }

    fn check_tables(&self, place: &Place) -> Result<(), ImageError> {
        let is_extended = self.incompatible & incompatible::EXTENDED_L2 != 0;
        let l2_entry_len = if is_extended { 16 } else { 8 };
        // An L1 entry stands for a cluster of L2 entries: at most 2^39 bytes.
        let reach = self.cluster_len() / l2_entry_len * self.cluster_len();
        in_range(
            36,
            "length of the L1 table",
            self.l1_count,
            self.size.div_ceil(reach),
            L1_LEN_MAX / 8,
        )?;
        if self.l1_count > 0 {
            place.check(40, "L1 table", self.l1_offset, self.l1_count * 8)?;
        }
        let clusters_max = (REFCOUNT_TABLE_LEN_MAX / self.cluster_len()).max(1);
        let clusters = self.refcount_table_clusters;
        in_range(56, "length of the reference count table", clusters, 1, clusters_max)?;
        let table_len = clusters * self.cluster_len();
        place.check(48, "reference count table", self.refcount_table_offset, table_len)?;
        in_range(60, "number of snapshots", self.snapshot_count.into(), 0, SNAPSHOTS_MAX)?;
        match self.snapshot_count {
            0 => Ok(()),
            _ => place.check(64, "snapshot table", self.snapshots_offset, 1),
        }
    }

    fn backing(&self, first: &[u8], format: Option<String>) -> Result<Option<Backing>, ImageError> {
        if self.backing_offset == 0 || self.backing_len == 0 {
            return Ok(None);
        }
        in_range(16, "length of the backing file's name", self.backing_len, 1, NAME_LEN_MAX)?;
        let end = self.backing_offset.checked_add(self.backing_len);
        let inside = end.filter(|end| *end <= first.len() as u64);
        let Some(end) = inside.filter(|_| self.backing_offset >= self.header_len) else {
            let (start, len) = (self.backing_offset, self.backing_len);
            return Err(damaged(8, Fault::Place { what: "backing file's name", start, len }));
        };
        let name = &first[self.backing_offset as usize..end as usize];
        let name = text(self.backing_offset, "backing file's name", name)?;
        Ok(Some(Backing { name, format }))
    }
}

/// What is behind the fixed part.
#[derive(Default)]
struct Extensions {
    backing_format: Option<String>,
    data_file: Option<String>,
    bitmap_directory: Option<BitmapDirectory>,
    feature_names: Option<Vec<u8>>,
}

impl Extensions {
    fn read(fixed: &Fixed, first: &[u8]) -> Result<Extensions, ImageError> {
        let end = fixed.extensions_end();
        in_range(8, "place of the backing file's name", end, fixed.header_len, first.len() as u64)?;
        let mut extensions = Extensions::default();
        let mut at = fixed.header_len as usize;
        // Fewer bytes than a type and a length are padding.
        while at + 8 <= end as usize {
            let (kind, len) = (be32_at(first, at), be32_at(first, at + 4));
            if kind == extension::END {
                break;
            }
            let data = first[at + 8..end as usize].get(..len as usize);
            let data = data.ok_or_else(|| damaged(at as u64, Fault::Cut("header extension")))?;
            extensions.add(at as u64 + 8, kind, data)?;
            at += 8 + data.len().next_multiple_of(8);
        }
        Ok(extensions)
    }

    fn add(&mut self, at: u64, kind: u32, data: &[u8]) -> Result<(), ImageError> {
        let len = data.len() as u64;
        match kind {
            extension::BACKING_FORMAT => {
                let what = "backing file's format";
                in_range(at, "length of the backing file's format", len, 1, FORMAT_LEN_MAX)?;
                once(at, what, &mut self.backing_format, text(at, what, data)?)
            }
            extension::DATA_FILE => {
                let what = "data file's name";
                in_range(at, "length of the data file's name", len, 1, NAME_LEN_MAX)?;
                once(at, what, &mut self.data_file, text(at, what, data)?)
            }
            extension::BITMAPS => {
                let what = "bitmaps' extension";
                in_range(at, "length of the bitmaps' extension", len, 24, 24)?;
                reserved(at + 4, what, be32_at(data, 4).into())?;
                let directory = BitmapDirectory {
                    at,
                    count: be32_at(data, 0).into(),
                    len: be64_at(data, 8),
                    offset: be64_at(data, 16),
                };
                once(at, what, &mut self.bitmap_directory, directory)
            }
            extension::FEATURE_NAMES => {
                once(at, "table of feature names", &mut self.feature_names, data.to_vec())
            }
            _ => Ok(()),
        }
    }

    /// What the image calls an incompatible feature.
    fn feature_name(&self, bit: u32) -> Option<String> {
        let mut entries = self.feature_names.as_deref()?.chunks_exact(48);
        let entry = entries.find(|entry| entry[0] == 0 && u32::from(entry[1]) == bit)?;
        let name = entry[2..].split(|byte| *byte == 0).next()?;
        Some(String::from_utf8_lossy(name).into_owned())
    }
}

/// Where structures may be: in whole clusters behind the first.
pub(super) struct Place {
    pub(super) cluster_len: u64,
    pub(super) image_len: u64,
}

impl Place {
    /// Checks where the structure is that the number at `at` points to.
    pub(super) fn check(
        &self,
        at: u64,
        what: &'static str,
        start: u64,
        len: u64,
    ) -> Result<(), ImageError> {
        aligned(at, what, start, self.cluster_len)?;
        // The last cluster may be short: a reader takes what is missing as zeroes.
        let end = start.checked_add(len);
        let limit = self.image_len.div_ceil(self.cluster_len).saturating_mul(self.cluster_len);
        let is_inside = end.is_some_and(|end| end <= limit) && start < self.image_len;
        match is_inside && start >= self.cluster_len {
            true => Ok(()),
            false => Err(damaged(at, Fault::Place { what, start, len })),
        }
    }
}

pub(super) fn damaged(offset: u64, fault: Fault) -> ImageError {
    ImageError::Damaged { offset, fault }
}

pub(super) fn in_range(
    at: u64,
    what: &'static str,
    value: u64,
    min: u64,
    max: u64,
) -> Result<(), ImageError> {
    match (min..=max).contains(&value) {
        true => Ok(()),
        false => Err(damaged(at, Fault::Range { what, value, min, max })),
    }
}

fn aligned(at: u64, what: &'static str, value: u64, unit: u64) -> Result<(), ImageError> {
    match value.is_multiple_of(unit) {
        true => Ok(()),
        false => Err(damaged(at, Fault::Misaligned { what, value, unit })),
    }
}

pub(super) fn reserved(at: u64, what: &'static str, bits: u64) -> Result<(), ImageError> {
    match bits {
        0 => Ok(()),
        bits => Err(damaged(at, Fault::Reserved { what, bits })),
    }
}

pub(super) fn text(at: u64, what: &'static str, bytes: &[u8]) -> Result<String, ImageError> {
    let text = std::str::from_utf8(bytes).ok().filter(|text| !text.contains('\0'));
    text.map(str::to_owned).ok_or_else(|| damaged(at, Fault::Text(what)))
}

fn once<T>(at: u64, what: &'static str, slot: &mut Option<T>, value: T) -> Result<(), ImageError> {
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => Err(damaged(at, Fault::Twice(what))),
    }
}

pub(super) fn image_len(image: &(impl ImageBytes + ?Sized)) -> Result<u64, ImageError> {
    image.size().map_err(|source| ImageError::Unreadable { offset: 0, source })
}

pub(super) fn read(
    image: &(impl ImageBytes + ?Sized),
    offset: u64,
    bytes: &mut [u8],
) -> Result<(), ImageError> {
    image.read_at(offset, bytes).map_err(|source| ImageError::Unreadable { offset, source })
}
