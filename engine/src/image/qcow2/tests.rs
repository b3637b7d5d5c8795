//! Headers and bitmaps made by hand, one fault at a time and many at random.
#![expect(clippy::big_endian_bytes, reason = "the numbers of qcow2 are big endian")]
#![expect(clippy::single_range_in_vec_init, reason = "lists of ranges, of one at times")]

use std::cell::Cell;
use std::io;
use std::ops::Range;

use proptest::prelude::*;

use super::super::bytes::ImageBytes;
use super::error::ImageError;
use super::header::{Compression, Header};

const CLUSTER: usize = 4096;
const L1: usize = CLUSTER;
const REFCOUNTS: usize = 2 * CLUSTER;
const DIRECTORY: usize = 3 * CLUSTER;
const TABLE: usize = 4 * CLUSTER;
const BITS: usize = 5 * CLUSTER;
const END: usize = 6 * CLUSTER;
/// Where the extensions begin.
const EXTENSIONS: usize = 112;
/// Where the extension of the bitmaps is, behind its type and length.
const BITMAPS: usize = EXTENSIONS + 8 + 48 + 8;
/// Where the backing file's name is.
const BACKING: usize = 512;
const GRANULARITY: u64 = 1 << 16;
/// Two tables' entries' worth of bits of 64 KiB, and half a bit.
const SIZE: u64 = (8 * CLUSTER as u64 + 100) * GRANULARITY + GRANULARITY / 2;

/// An image with a backing file and a bitmap of two clusters: one of bits, one of ones.
#[derive(Clone)]
struct Image(Vec<u8>);

impl Image {
    fn new() -> Image {
        let mut image = Image(vec![0; END]);
        for (at, value) in [
            (0, 0x5146_49fb_u32),
            (4, 3),
            (16, 8),
            (20, 12),
            (36, 2000),
            (56, 1),
            (96, 4),
            (100, EXTENSIONS as u32),
            (EXTENSIONS, 0x6803_f857),
            (EXTENSIONS + 4, 48),
            (BITMAPS - 8, 0x2385_2875),
            (BITMAPS - 4, 24),
            (BITMAPS, 1),
            (BITMAPS + 24, 0xe279_2aca),
            (BITMAPS + 28, 5),
        ] {
            image.put32(at, value);
        }
        for (at, value) in [
            (8, BACKING),
            (24, SIZE as usize),
            (40, L1),
            (48, REFCOUNTS),
            (88, 1),
            (BITMAPS + 8, 32),
            (BITMAPS + 16, DIRECTORY),
            (DIRECTORY, TABLE),
            (TABLE, BITS),
            (TABLE + 8, 1),
        ] {
            image.put64(at, value as u64);
        }
        image.put(BACKING, b"base.raw");
        image.put(BITMAPS + 32, b"qcow2");
        // A name for the incompatible feature 9.
        image.put(EXTENSIONS + 8, b"\x00\x09time travel");
        // Two entries, no flags, type 1, 64 KiB, a name of four bytes.
        image.put(DIRECTORY + 8, &[0, 0, 0, 2, 0, 0, 0, 0, 1, 16, 0, 4, 0, 0, 0, 0]);
        image.put(DIRECTORY + 24, b"day1");
        image.put(BITS, &[0b1000_0101, 0, 0, 0, 0, 0, 0, 0x80, 1]);
        image
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn put32(&mut self, at: usize, value: u32) {
        self.put(at, &value.to_be_bytes());
    }

    fn put64(&mut self, at: usize, value: u64) {
        self.put(at, &value.to_be_bytes());
    }

    fn header(&self) -> Result<Header, ImageError> {
        Header::read(&self.0[..])
    }

    fn with32(at: usize, value: u32) -> Image {
        let mut image = Image::new();
        image.put32(at, value);
        image
    }

    fn with64(at: usize, value: u64) -> Image {
        let mut image = Image::new();
        image.put64(at, value);
        image
    }

    fn with(at: usize, bytes: &[u8]) -> Image {
        let mut image = Image::new();
        image.put(at, bytes);
        image
    }
}

/// All dirty ranges of all bitmaps.
fn dirty(image: &(impl ImageBytes + ?Sized)) -> Result<Vec<Range<u64>>, ImageError> {
    let header = Header::read(image)?;
    let mut ranges = Vec::new();
    for bitmap in header.bitmaps(image)? {
        bitmap.visit_dirty(&header, image, |range| ranges.push(range))?;
    }
    Ok(ranges)
}

fn assert_says(result: Result<impl std::fmt::Debug, ImageError>, words: &str) {
    let error = result.expect_err(words).to_string();
    assert!(error.contains(words), "{error}, not {words}");
}

#[test]
fn a_header_says_what_was_written() {
    let header = Image::new().header().unwrap();
    assert_eq!((header.version, header.cluster_bits, header.size), (3, 12, SIZE));
    assert_eq!((header.cluster_len(), header.compression), (4096, Compression::Deflate));
    let backing = header.backing.as_ref().unwrap();
    assert_eq!((backing.name.as_str(), backing.format.as_deref()), ("base.raw", Some("qcow2")));
    assert!(!header.is_dirty() && !header.is_corrupt() && !header.has_data_file());
    let flags = |bits: u64| Image::with64(72, bits).header().unwrap();
    assert!(flags(1).is_dirty() && flags(2).is_corrupt() && flags(4).has_data_file());
    let mut zstd = Image::with64(72, 1 << 3);
    zstd.put(104, &[1]);
    assert_eq!(zstd.header().unwrap().compression, Compression::Zstd);
}

#[test]
fn version_2_has_no_features() {
    let mut image = Image::with32(4, 2);
    // Its extensions begin where version 3 goes on.
    image.put(72, &[0; 64]);
    let header = image.header().unwrap();
    assert_eq!((header.version, header.incompatible, header.autoclear), (2, 0, 0));
    assert_eq!(header.backing.unwrap().format, None);
    assert_eq!(header.snapshot_count, 0);
}

#[test]
fn numbers_out_of_bounds_are_refused() {
    let end = END as u64;
    for (image, words) in [
        (Image::with32(0, 0), "does not begin"),
        (Image::with32(4, 1), "version 1"),
        (Image::with32(4, 4), "version 4"),
        (Image::with32(20, 8), "number of bits of a cluster's size is 8"),
        (Image::with32(20, 22), "number of bits of a cluster's size is 22"),
        (Image::with32(32, 1), "encrypted (AES)"),
        (Image::with32(32, 2), "encrypted (LUKS)"),
        (Image::with32(32, 3), "kind of encryption is 3"),
        (Image::with32(96, 7), "order of reference counts is 7"),
        (Image::with32(100, 96), "header's length is 96"),
        (Image::with32(100, 108), "header's length is 0x6c, not a multiple"),
        (Image::with32(100, 8192), "header's length is 8192"),
        (Image::with32(36, 4 << 20), "L1 table, 33554432 bytes"),
        (Image::with32(36, (4 << 20) + 1), "length of the L1 table is 4194305"),
        (Image::with32(36, 1), "length of the L1 table is 1, not from"),
        (Image::with64(24, u64::MAX), "length of the L1 table"),
        (Image::with64(40, 0), "L1 table, 16000 bytes from 0x0"),
        (Image::with64(40, 4097), "L1 table is 0x1001, not a multiple"),
        (Image::with64(40, end), "L1 table"),
        (Image::with64(40, u64::MAX - 4095), "L1 table"),
        (Image::with64(48, 0), "reference count table, 4096 bytes from 0x0"),
        (Image::with32(56, 0), "length of the reference count table is 0"),
        (Image::with32(56, 2049), "length of the reference count table is 2049"),
        (Image::with32(60, 65537), "number of snapshots is 65537"),
        (Image::with32(60, 1), "snapshot table"),
        (Image::with64(72, 1 << 5), "feature 5, which"),
        (Image::with64(72, 1 << 9), "feature 9 (\"time travel\")"),
        (Image::with64(72, 1 << 4), "extended L2 entries contradict"),
        (Image::with64(72, 1 << 3), "compression type and the features contradict"),
        (Image::with(104, &[1]), "compression type and the features contradict"),
        (Image::with(104, &[2]), "compression type is 2"),
        (Image::with64(8, 100), "place of the backing file's name is 100"),
        (Image::with64(8, u64::MAX), "place of the backing file's name"),
        (Image::with64(8, 4092), "backing file's name, 8 bytes from 0xffc"),
        (Image::with32(16, 1024), "length of the backing file's name is 1024"),
        (Image::with(BACKING, b"\xff"), "backing file's name is not text"),
        (Image::with(BACKING + 3, b"\0"), "backing file's name is not text"),
        (Image::with32(EXTENSIONS + 4, 4000), "header extension is cut off"),
        (Image::with32(EXTENSIONS + 4, u32::MAX), "header extension is cut off"),
        (Image::with32(BITMAPS + 28, 16), "length of the backing file's format is 16"),
        (Image::with32(BITMAPS - 8, 0xe279_2aca), "length of the backing file's format is 24"),
        (Image::with32(BITMAPS - 8, 0x4441_5441), "data file's name is not text"),
        (Image::with32(BITMAPS - 4, 16), "length of the bitmaps' extension is 16"),
        (Image::with32(BITMAPS + 4, 1), "bitmaps' extension has reserved bits"),
        (Image::with32(EXTENSIONS, 0x4441_5441), "data file's name is not text"),
    ] {
        assert_says(image.header(), words);
    }
    let mut twice = Image::new();
    twice.put32(BITMAPS + 40, 0xe279_2aca);
    twice.put32(BITMAPS + 44, 3);
    twice.put(BITMAPS + 48, b"raw");
    assert_says(twice.header(), "backing file's format is there twice");
    let mut unwanted = Image::new();
    unwanted.put32(BITMAPS + 24, 0x4441_5441);
    assert_says(unwanted.header(), "data file's name and the features contradict");
    for len in [0, 7, 71, 103] {
        let mut short = Image::new();
        short.0.truncate(len);
        assert_says(short.header(), if len < 8 { "does not begin" } else { "header is cut off" });
    }
    let mut short = Image::new();
    short.0.truncate(CLUSTER - 1);
    assert_says(short.header(), "cannot be read at 0x0");
}

#[test]
fn dirty_ranges_are_joined_and_end_with_the_disk() {
    let unit = |bits: Range<u64>| bits.start * GRANULARITY..(bits.end * GRANULARITY).min(SIZE);
    let ones = 8 * CLUSTER as u64;
    let expected = [0..1, 2..3, 7..8, 63..65, ones..ones + 101].map(unit);
    assert_eq!(dirty(&Image::new().0[..]).unwrap(), expected);
    // All bits of the first cluster, in whole words and across the tables' entries.
    let full = Image::with(BITS, &[0xff; CLUSTER]);
    assert_eq!(dirty(&full.0[..]).unwrap(), [0..SIZE]);
    let all_ones = Image::with64(TABLE, 1);
    assert_eq!(dirty(&all_ones.0[..]).unwrap(), [0..SIZE]);
    let mut clean = Image::with64(TABLE, 0);
    clean.put64(TABLE + 8, 0);
    assert_eq!(dirty(&clean.0[..]).unwrap(), []);
    // Bits behind the end mean nothing.
    let mut behind = Image::with64(TABLE, 0);
    behind.put64(TABLE + 8, BITS as u64);
    behind.put(BITS, &[0; 64]);
    behind.put(BITS + 12, &[0b1111_0000]);
    assert_eq!(dirty(&behind.0[..]).unwrap(), [unit(ones + 100..ones + 101)]);
}

#[test]
fn bitmaps_that_tell_nothing_are_refused_by_name() {
    let stale = Image::with64(88, 0);
    assert_says(stale.header().unwrap().bitmaps(&stale.0[..]), "bitmaps are out of date");
    let in_use = Image::with32(DIRECTORY + 12, 1);
    let bitmaps = in_use.header().unwrap().bitmaps(&in_use.0[..]).unwrap();
    assert!(bitmaps[0].in_use && bitmaps[0].name == "day1");
    assert_says(dirty(&in_use.0[..]), "bitmap \"day1\" was not saved");
    let none = Image::with32(BITMAPS - 8, 0x1234_5678);
    assert_eq!(none.header().unwrap().bitmaps(&none.0[..]).unwrap(), []);
}

#[test]
fn directories_and_tables_that_cannot_be_are_refused() {
    for (image, words) in [
        (Image::with32(BITMAPS, 0), "number of bitmaps is 0"),
        (Image::with32(BITMAPS, 65536), "number of bitmaps is 65536"),
        (Image::with32(BITMAPS, 2), "length of the bitmap directory is 32, not from 48"),
        (Image::with64(BITMAPS + 8, 24), "entry of a bitmap is cut off"),
        (Image::with64(BITMAPS + 8, 40), "bitmap directory and its length contradict"),
        (Image::with64(BITMAPS + 8, (64 << 20) + 1), "length of the bitmap directory is 67108865"),
        (Image::with64(BITMAPS + 8, 64 << 20), "bitmap directory, 67108864 bytes"),
        (Image::with64(BITMAPS + 16, 0), "bitmap directory, 32 bytes from 0x0"),
        (Image::with64(BITMAPS + 16, 8), "bitmap directory is 0x8, not a multiple"),
        (Image::with64(DIRECTORY, 0), "table of a bitmap, 16 bytes from 0x0"),
        (Image::with32(DIRECTORY + 8, u32::MAX), "length of a bitmap's table is 4294967295"),
        (Image::with32(DIRECTORY + 8, 1), "length of a bitmap's table is 1, not from 2 to 2"),
        (Image::with32(DIRECTORY + 8, 3), "length of a bitmap's table is 3, not from 2 to 2"),
        (Image::with32(DIRECTORY + 12, 8), "flags of a bitmap has reserved bits: 0x8"),
        (Image::with(DIRECTORY + 16, &[2]), "bitmap \"day1\" is of type 2"),
        (Image::with(DIRECTORY + 17, &[8]), "granularity of a bitmap is 8"),
        (Image::with(DIRECTORY + 17, &[32]), "granularity of a bitmap is 32"),
        (Image::with(DIRECTORY + 18, &[0, 0]), "length of a bitmap's name is 0"),
        (Image::with(DIRECTORY + 18, &[4, 0]), "length of a bitmap's name is 1024"),
        (Image::with(DIRECTORY + 18, &[0, 3]), "padding of a bitmap's entry"),
        (Image::with(DIRECTORY + 18, &[0, 9]), "entry of a bitmap is cut off"),
        (Image::with32(DIRECTORY + 20, u32::MAX), "entry of a bitmap is cut off"),
        (Image::with(DIRECTORY + 20, b"\0\0\0\x04moreday1"), "data of a kind that is not known"),
        (Image::with(DIRECTORY + 24, b"\xff"), "name of a bitmap is not text"),
        (Image::with64(TABLE, 2 | BITS as u64), "entry of a bitmap's table has reserved bits: 0x2"),
        (Image::with64(TABLE, 1 | BITS as u64), "entry of a bitmap's table has reserved bits: 0x1"),
        (Image::with64(TABLE, 1 << 56), "entry of a bitmap's table has reserved bits"),
        (Image::with64(TABLE, END as u64), "cluster of a bitmap, 4096 bytes"),
        (Image::with64(TABLE, 512), "cluster of a bitmap is 0x200, not a multiple"),
    ] {
        assert_says(dirty(&image.0[..]), words);
    }
    let mut twice = Image::with32(BITMAPS, 2);
    twice.put64(BITMAPS + 8, 64);
    let entry = twice.0[DIRECTORY..DIRECTORY + 32].to_vec();
    twice.put(DIRECTORY + 32, &entry);
    assert_says(dirty(&twice.0[..]), "name of a bitmap is there twice");
}

/// A file that says it is as long as it likes, with zeroes behind its bytes.
struct Sparse {
    bytes: Vec<u8>,
    size: u64,
    longest: Cell<usize>,
}

impl ImageBytes for Sparse {
    fn size(&self) -> io::Result<u64> {
        Ok(self.size)
    }

    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        self.longest.set(self.longest.get().max(bytes.len()));
        if offset.checked_add(bytes.len() as u64).is_none_or(|end| end > self.size) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        bytes.fill(0);
        let there = self.bytes.get(offset as usize..).unwrap_or_default();
        let len = there.len().min(bytes.len());
        bytes[..len].copy_from_slice(&there[..len]);
        Ok(())
    }
}

/// Places of the image where something is.
fn place() -> impl Strategy<Value = usize> {
    prop_oneof![
        4 => 0..BITMAPS + 48,
        1 => BACKING..BACKING + 8,
        3 => DIRECTORY..DIRECTORY + 32,
        2 => TABLE..TABLE + 16,
        1 => BITS..BITS + 16,
        1 => 0..END,
    ]
}

proptest! {
    #[test]
    fn any_change_is_read_within_bounds_or_refused(
        changes in proptest::collection::vec((place(), any::<u8>()), 0..8),
        size in prop_oneof![Just(END as u64), 0..END as u64 * 2, Just(1 << 50), Just(u64::MAX)],
    ) {
        let mut bytes = Image::new().0;
        for (at, byte) in changes {
            bytes[at] = byte;
        }
        let image = Sparse { bytes, size, longest: Cell::new(0) };
        let Ok(header) = Header::read(&image) else { return Ok(()) };
        prop_assert!(image.longest.get() <= 2 << 20);
        let bitmaps = header.bitmaps(&image).unwrap_or_default();
        prop_assert!(image.longest.get() <= 64 << 20);
        for bitmap in bitmaps {
            let mut end = None;
            let visited = bitmap.visit_dirty(&header, &image, |range| {
                assert!(end.is_none_or(|end| end < range.start), "none touches another");
                assert!(range.start < range.end && range.end <= header.size, "within the disk");
                end = Some(range.end);
            });
            drop(visited);
        }
    }
}
