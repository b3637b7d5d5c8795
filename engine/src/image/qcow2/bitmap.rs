//! The persistent dirty bitmaps of a qcow2 image.

use std::collections::BTreeSet;
use std::ops::Range;

use super::super::bytes::{ImageBytes, be16_at, be32_at, be64_at, le64_at};
use super::error::{Fault, ImageError};
use super::header::{
    BitmapDirectory, Header, NAME_LEN_MAX, Place, damaged, image_len, in_range, read, reserved,
    text,
};

const COUNT_MAX: u64 = 65535;
const DIRECTORY_LEN_MAX: u64 = 64 << 20;
/// Most bytes of one bitmap's bits; QEMU loads no more.
const BITS_LEN_MAX: u64 = 512 << 20;
const GRANULARITY_BITS: (u64, u64) = (9, 31);
const TYPE_DIRTY: u8 = 1;
/// Bytes of a directory entry before what has no fixed length.
const ENTRY_LEN: usize = 24;
/// Bytes of a table, and of bits, that are read at a time.
const PIECE_LEN: u64 = 64 << 10;

/// Bits of a directory entry's flags.
mod flag {
    pub(super) const IN_USE: u32 = 1 << 0;
    pub(super) const AUTO: u32 = 1 << 1;
    pub(super) const EXTRA_COMPATIBLE: u32 = 1 << 2;
    pub(super) const KNOWN: u32 = IN_USE | AUTO | EXTRA_COMPATIBLE;
}

/// Parts of an entry of a bitmap's table.
mod table_entry {
    pub(super) const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
    pub(super) const ALL_ONES: u64 = 1;
    pub(super) const RESERVED: u64 = !(OFFSET | ALL_ONES);
}

/// A bitmap, as the directory has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bitmap {
    /// Its name, which no other has.
    pub name: String,
    /// A bit stands for two to the power of this many bytes: 9 to 31.
    pub granularity_bits: u32,
    /// Whether it was not saved: it tells nothing.
    pub in_use: bool,
    /// Whether QEMU goes on with it when it opens the image.
    pub auto: bool,
    table_offset: u64,
    table_count: u64,
}

impl Header {
    /// The bitmaps that the image holds.
    ///
    /// # Errors
    /// `StaleBitmaps` if there are some that do not tell what changed; for everything that is not
    /// as the format has it.
    pub fn bitmaps(&self, image: &(impl ImageBytes + ?Sized)) -> Result<Vec<Bitmap>, ImageError> {
        let Some(directory) = self.bitmap_directory else { return Ok(Vec::new()) };
        if !self.has_valid_bitmaps() {
            return Err(ImageError::StaleBitmaps);
        }
        let place = self.place(image)?;
        let BitmapDirectory { at, count, offset, len } = directory;
        in_range(at, "number of bitmaps", count, 1, COUNT_MAX)?;
        let len_min = count * ENTRY_LEN as u64;
        in_range(at + 8, "length of the bitmap directory", len, len_min, DIRECTORY_LEN_MAX)?;
        place.check(at + 16, "bitmap directory", offset, len)?;
        let mut bytes = vec![0; len as usize];
        read_padded(image, &place, offset, &mut bytes)?;
        entries(&bytes, offset, count, &place)
    }

    fn place(&self, image: &(impl ImageBytes + ?Sized)) -> Result<Place, ImageError> {
        Ok(Place { cluster_len: self.cluster_len(), image_len: image_len(image)? })
    }
}

fn entries(
    bytes: &[u8],
    offset: u64,
    count: u64,
    place: &Place,
) -> Result<Vec<Bitmap>, ImageError> {
    let mut bitmaps = Vec::new();
    let mut names = BTreeSet::new();
    let mut at = 0;
    for _ in 0..count {
        let (bitmap, len) = Bitmap::parse(&bytes[at..], offset + at as u64, place)?;
        if !names.insert(bitmap.name.clone()) {
            return Err(damaged(offset + at as u64, Fault::Twice("name of a bitmap")));
        }
        bitmaps.push(bitmap);
        at += len;
    }
    match at == bytes.len() {
        true => Ok(bitmaps),
        false => Err(damaged(
            offset + at as u64,
            Fault::Contradiction("bitmap directory and its length"),
        )),
    }
}

impl Bitmap {
    /// The entry that `bytes` begins with, which is at `at`, and its length.
    fn parse(bytes: &[u8], at: u64, place: &Place) -> Result<(Bitmap, usize), ImageError> {
        let cut = || damaged(at, Fault::Cut("entry of a bitmap"));
        let fixed = bytes.get(..ENTRY_LEN).ok_or_else(cut)?;
        let (flags, kind, granularity_bits) = (be32_at(fixed, 12), fixed[16], fixed[17]);
        let (name_len, extra_len) = (usize::from(be16_at(fixed, 18)), be32_at(fixed, 20) as usize);
        in_range(at + 18, "length of a bitmap's name", name_len as u64, 1, NAME_LEN_MAX)?;
        let name_at = ENTRY_LEN + extra_len;
        let len = (name_at + name_len).next_multiple_of(8);
        let whole = bytes.get(..len).ok_or_else(cut)?;
        let (name, padding) = whole[name_at..].split_at(name_len);
        let name = text(at + name_at as u64, "name of a bitmap", name)?;
        let padding = padding.iter().fold(0, |bits, byte| bits | u64::from(*byte));
        reserved(at, "padding of a bitmap's entry", padding)?;
        reserved(at + 12, "flags of a bitmap", (flags & !flag::KNOWN).into())?;
        if kind != TYPE_DIRTY {
            return Err(ImageError::BitmapType { name, kind });
        }
        if extra_len > 0 && flags & flag::EXTRA_COMPATIBLE == 0 {
            return Err(ImageError::BitmapExtra(name));
        }
        let (min, max) = GRANULARITY_BITS;
        in_range(at + 17, "granularity of a bitmap", granularity_bits.into(), min, max)?;
        let bitmap = Bitmap {
            name,
            granularity_bits: granularity_bits.into(),
            in_use: flags & flag::IN_USE != 0,
            auto: flags & flag::AUTO != 0,
            table_offset: be64_at(fixed, 0),
            table_count: be32_at(fixed, 8).into(),
        };
        bitmap.check_table(at, place)?;
        Ok((bitmap, len))
    }

    fn check_table(&self, at: u64, place: &Place) -> Result<(), ImageError> {
        let max = BITS_LEN_MAX / place.cluster_len;
        in_range(at + 8, "length of a bitmap's table", self.table_count, 0, max)?;
        match self.table_count {
            0 => Ok(()),
            count => place.check(at, "table of a bitmap", self.table_offset, count * 8),
        }
    }

    /// How many bytes a bit stands for.
    pub fn granularity(&self) -> u64 {
        1 << self.granularity_bits
    }

    /// Tells `visit` the ranges of bytes that are dirty: ascending, none touching another, none
    /// behind the disk's end. They may be many; memory does not grow with them here.
    ///
    /// # Errors
    /// `BitmapInUse` if it tells nothing; for everything that is not as the format has it. What was
    /// visited before an error is not the whole.
    pub fn visit_dirty(
        &self,
        header: &Header,
        image: &(impl ImageBytes + ?Sized),
        visit: impl FnMut(Range<u64>),
    ) -> Result<(), ImageError> {
        if self.in_use {
            return Err(ImageError::BitmapInUse(self.name.clone()));
        }
        let place = header.place(image)?;
        let bit_count = header.size.div_ceil(self.granularity());
        let cluster_bits = 8 * place.cluster_len;
        let needed = bit_count.div_ceil(cluster_bits);
        let at = self.table_offset;
        in_range(at, "length of a bitmap's table", self.table_count, needed, needed)?;
        let unit = self.granularity();
        let mut runs = Runs { unit, size: header.size, start: None, visit };
        let mut piece = [0; PIECE_LEN as usize];
        let mut clusters =
            ClusterBits { image, place: &place, buffer: &mut [0; PIECE_LEN as usize] };
        for from in (0..needed).step_by(PIECE_LEN as usize / 8) {
            let count = (needed - from).min(PIECE_LEN / 8);
            let table = &mut piece[..8 * count as usize];
            read_padded(image, &place, at + 8 * from, table)?;
            for (number, entry) in (from..).zip(table.chunks_exact(8)) {
                let start = number * cluster_bits;
                let bits = start..(start + cluster_bits).min(bit_count);
                clusters.add(at + 8 * number, be64_at(entry, 0), bits, &mut runs)?;
            }
        }
        runs.end(bit_count);
        Ok(())
    }
}

/// Reads the bits that table entries lead to.
struct ClusterBits<'a, I: ?Sized> {
    image: &'a I,
    place: &'a Place,
    buffer: &'a mut [u8; PIECE_LEN as usize],
}

impl<I: ImageBytes + ?Sized> ClusterBits<'_, I> {
    /// Adds the bits `bits` of the bitmap, which the table entry at `at` is for.
    fn add(
        &mut self,
        at: u64,
        entry: u64,
        bits: Range<u64>,
        runs: &mut Runs<impl FnMut(Range<u64>)>,
    ) -> Result<(), ImageError> {
        reserved(at, "entry of a bitmap's table", entry & table_entry::RESERVED)?;
        let offset = entry & table_entry::OFFSET;
        let is_all_ones = entry & table_entry::ALL_ONES != 0;
        if offset == 0 {
            runs.add(bits, is_all_ones);
            return Ok(());
        }
        reserved(at, "entry of a bitmap's table", entry & table_entry::ALL_ONES)?;
        self.place.check(at, "cluster of a bitmap", offset, self.place.cluster_len)?;
        let mut read_bits = 0;
        while bits.start + read_bits < bits.end {
            let from = bits.start + read_bits;
            let count = (bits.end - from).min(8 * PIECE_LEN);
            // Whole words: clusters are made of them.
            let piece = &mut self.buffer[..8 * count.div_ceil(64) as usize];
            read_padded(self.image, self.place, offset + read_bits / 8, piece)?;
            runs.add_words(from..from + count, piece);
            read_bits += count;
        }
        Ok(())
    }
}

/// Joins bits to ranges of bytes.
struct Runs<V> {
    unit: u64,
    size: u64,
    /// The first bit of the run that goes on.
    start: Option<u64>,
    visit: V,
}

impl<V: FnMut(Range<u64>)> Runs<V> {
    /// The next bits, the lowest of a byte first.
    fn add_words(&mut self, bits: Range<u64>, bytes: &[u8]) {
        for (word, from) in bytes.chunks_exact(8).zip(bits.clone().step_by(64)) {
            let to = (from + 64).min(bits.end);
            match le64_at(word, 0) {
                0 => self.add(from..to, false),
                u64::MAX => self.add(from..to, true),
                word => {
                    for bit in from..to {
                        self.add(bit..bit + 1, word >> (bit - from) & 1 == 1);
                    }
                }
            }
        }
    }

    /// The next bits, which are all the same.
    fn add(&mut self, bits: Range<u64>, is_set: bool) {
        match is_set {
            true => _ = self.start.get_or_insert(bits.start),
            false => self.end(bits.start),
        }
    }

    /// Ends the run that goes on, if one does.
    fn end(&mut self, bit: u64) {
        if let Some(start) = self.start.take() {
            (self.visit)(start * self.unit..bit.saturating_mul(self.unit).min(self.size));
        }
    }
}

/// Reads where there is room for a structure; what a short last cluster lacks is zero.
fn read_padded(
    image: &(impl ImageBytes + ?Sized),
    place: &Place,
    offset: u64,
    bytes: &mut [u8],
) -> Result<(), ImageError> {
    let there = place.image_len.saturating_sub(offset).min(bytes.len() as u64) as usize;
    bytes[there..].fill(0);
    read(image, offset, &mut bytes[..there])
}
