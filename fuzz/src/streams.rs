//! Streams of `zfs send`: as the bytes stand, and with their checksums repaired. What is handed out
//! lies within the volume and in order, and nothing but the whole stream is borne.

use voltar_engine::source::Piece;
use voltar_engine::source::zfs_stream::{Expected, Refused, VolumeStream};

use crate::wire::{put, u32_at, u64_at};

const RECORD_LEN: usize = 312;
const SUM_AT: usize = RECORD_LEN - 32;

/// The volume's size, 8 bytes, and a stream of it.
pub fn zfs(data: &[u8]) {
    let size = u64_at(data, 0);
    let stream = data.get(8..).unwrap_or_default();
    check(stream, size);
    let mut repaired = stream.to_vec();
    repair(&mut repaired);
    check(&repaired, size);
}

fn check(stream: &[u8], size: u64) {
    // The guids that it says itself: what is behind them is to be reached.
    let from_guid = Some(u64_at(stream, 48)).filter(|guid| *guid != 0);
    let expected = Expected { to_guid: u64_at(stream, 40), from_guid, size };
    if read(stream, expected).is_err() {
        return;
    }
    read(&stream[..stream.len() - 1], expected).expect_err("it is cut off");
    read(&[stream, &[0]].concat(), expected).expect_err("something follows");
    let mut flipped = stream.to_vec();
    let bit = (u64_at(stream, 24) % (stream.len() as u64 * 8)) as usize;
    flipped[bit / 8] ^= 1 << (bit % 8);
    read(&flipped, expected).expect_err("a bit is flipped");
}

fn read(stream: &[u8], expected: Expected) -> Result<(), Refused> {
    let (mut stream, mut bytes, mut end) = (VolumeStream::new(stream, expected), Vec::new(), 0);
    loop {
        let range = match stream.next(&mut bytes) {
            Ok(Some(Piece::Data { offset })) => offset..offset + bytes.len() as u64,
            Ok(Some(Piece::Zero(range))) => range,
            Ok(None) => {
                assert_eq!(stream.next(&mut bytes), Ok(None));
                return Ok(());
            }
            Err(refused) => {
                assert_eq!(stream.next(&mut bytes), Err(refused.clone()));
                return Err(refused);
            }
        };
        assert!(end <= range.start && range.start < range.end && range.end <= expected.size);
        end = range.end;
    }
}

/// Recomputes the checksums, front to back, as far as the records can be told apart.
fn repair(stream: &mut [u8]) {
    let (mut at, mut sum) = (0, [0; 4]);
    while let Some(record) = stream.get_mut(at..at + RECORD_LEN) {
        let payload_len = match u32_at(record, 0) {
            1 => u64::from(u32_at(record, 28)).next_multiple_of(8),
            3 => u64_at(record, 32),
            _ => 0,
        };
        if u32_at(record, 0) == 5 {
            put_sum(record, 8, sum);
        }
        if at > 0 {
            sum = fletcher(sum, &record[..SUM_AT]);
            put_sum(record, SUM_AT, sum);
            sum = fletcher(sum, &record[SUM_AT..]);
        } else {
            sum = fletcher(sum, record);
        }
        at += RECORD_LEN;
        let payload =
            usize::try_from(payload_len).ok().and_then(|len| stream.get(at..at.checked_add(len)?));
        let Some(payload) = payload else { return };
        sum = fletcher(sum, payload);
        at += payload.len();
    }
}

fn fletcher(mut sum: [u64; 4], bytes: &[u8]) -> [u64; 4] {
    for word in (0..bytes.len()).step_by(4) {
        sum[0] = sum[0].wrapping_add(u32_at(bytes, word).into());
        for n in 1..4 {
            sum[n] = sum[n].wrapping_add(sum[n - 1]);
        }
    }
    sum
}

fn put_sum(record: &mut [u8], at: usize, sum: [u64; 4]) {
    sum.iter().enumerate().for_each(|(n, word)| put(record, at + 8 * n, &word.to_le_bytes()));
}
