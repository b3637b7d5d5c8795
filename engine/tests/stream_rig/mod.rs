//! Streams by hand: records with fields that can be set to anything, sealed with right checksums.

use std::ops::Range;

use voltar_engine::source::Piece;
use voltar_engine::source::zfs_stream::{Expected, Refused, VolumeStream};

/// The snapshot that all streams here are of, and the volume's size in it.
pub const GUID: u64 = 0x5EED;
pub const SIZE: u64 = 65536;

const LEN: usize = 312;
const SUM_AT: usize = LEN - 32;
const BLOCK_LEN: usize = 4096;

/// A record with its payload, not yet sealed.
pub type Record = Vec<u8>;

fn record(kind: u8, fields: &[(usize, u64)], payload: &[u8]) -> Record {
    let mut record = vec![0; LEN];
    record[0] = kind;
    for (at, value) in fields {
        record[*at..at + 8].copy_from_slice(&value.to_le_bytes());
    }
    record.extend(payload);
    record
}

pub fn begin(from_guid: u64) -> Record {
    let fields = [(8, 0x2_F5BA_CBAC), (16, 1), (32, 3 | 12 << 32), (40, GUID), (48, from_guid)];
    record(0, &fields, &[])
}

pub fn object(object: u64, kind: u64) -> Record {
    record(1, &[(8, object), (16, kind), (24, BLOCK_LEN as u64), (40, GUID)], &[])
}

pub fn free_objects(first: u64, count: u64) -> Record {
    record(2, &[(8, first), (16, count), (24, GUID)], &[])
}

pub fn write(object: u64, kind: u64, offset: u64, payload: &[u8]) -> Record {
    let len = payload.len() as u64;
    record(3, &[(8, object), (16, kind), (24, offset), (32, len), (40, GUID)], payload)
}

pub fn free(object: u64, offset: u64, len: u64) -> Record {
    record(4, &[(8, object), (16, offset), (24, len), (32, GUID)], &[])
}

pub fn end() -> Record {
    record(5, &[(40, GUID)], &[])
}

/// The block that has a volume's size.
pub fn properties(size: u64) -> Vec<u8> {
    let mut block = vec![0; 512];
    block[..8].copy_from_slice(&(1_u64 << 63 | 3).to_le_bytes());
    block[128..136].copy_from_slice(&size.to_le_bytes());
    block[142..146].copy_from_slice(b"size");
    block
}

/// A block of the volume.
pub fn block(fill: u8) -> Vec<u8> {
    vec![fill; BLOCK_LEN]
}

/// A whole volume: two blocks of data, a hole of its own, and a tail of nothing.
pub fn full() -> Vec<Record> {
    vec![
        begin(0),
        object(1, 23),
        free(1, 24576, u64::MAX),
        write(1, 23, 0, &block(1)),
        write(1, 23, 8192, &block(2)),
        free(1, 16384, 4096),
        object(2, 24),
        free(2, 512, u64::MAX),
        write(2, 24, 0, &properties(SIZE)),
        free(2, 512, 1024),
        free_objects(3, 29),
        end(),
    ]
}

/// What became of it since the snapshot with guid 7.
pub fn changed() -> Vec<Record> {
    vec![
        begin(7),
        object(1, 23),
        free(1, 24576, u64::MAX),
        write(1, 23, 4096, &block(3)),
        free(1, 8192, 8192),
        free_objects(0, 1),
        end(),
    ]
}

/// The stream of these records, with every checksum as it must be.
pub fn seal(records: &[Record]) -> Vec<u8> {
    let (mut stream, mut sum) = (Vec::new(), [0; 4]);
    for record in records {
        let mut record = record.clone();
        if record[0] == 5 {
            put_sum(&mut record[8..40], sum);
        }
        if record[0] != 0 {
            sum = fletcher(sum, &record[..SUM_AT]);
            put_sum(&mut record[SUM_AT..LEN], sum);
            sum = fletcher(sum, &record[SUM_AT..]);
        } else {
            sum = fletcher(sum, &record);
        }
        stream.extend(record);
    }
    stream
}

fn fletcher(mut sum: [u64; 4], bytes: &[u8]) -> [u64; 4] {
    for word in bytes.chunks(4) {
        sum[0] = sum[0].wrapping_add(u64::from(u32::from_le_bytes(word.try_into().unwrap())));
        for n in 1..4 {
            sum[n] = sum[n].wrapping_add(sum[n - 1]);
        }
    }
    sum
}

fn put_sum(place: &mut [u8], sum: [u64; 4]) {
    for (place, word) in place.chunks_mut(8).zip(sum) {
        place.copy_from_slice(&word.to_le_bytes());
    }
}

/// The stream that is asked for.
pub fn expected(from_guid: Option<u64>) -> Expected {
    Expected { to_guid: GUID, from_guid, size: SIZE }
}

/// Ranges, and the byte that each holds throughout.
pub type Pieces = Vec<(Range<u64>, u8)>;

/// All that a stream says, once its end is proven.
pub fn collect(stream: &[u8], expected: Expected) -> Result<Pieces, Refused> {
    let (mut stream, mut bytes, mut pieces) = (VolumeStream::new(stream, expected), vec![], vec![]);
    while let Some(piece) = stream.next(&mut bytes)? {
        pieces.push(match piece {
            Piece::Data { offset } => (offset..offset + bytes.len() as u64, fill(&bytes)),
            Piece::Zero(range) => (range, 0),
        });
    }
    Ok(pieces)
}

/// The byte that all of these are: the streams by hand have no other blocks, before damage.
fn fill(bytes: &[u8]) -> u8 {
    bytes.iter().copied().reduce(|fill, byte| if byte == fill { fill } else { 0xEE }).unwrap_or(0)
}
