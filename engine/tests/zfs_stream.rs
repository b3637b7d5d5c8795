//! Streams of ZFS: real ones lead to what the volume held, and everything else is refused by name.
#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]

mod stream_rig;

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use stream_rig::{
    Pieces, Record, SIZE, block, changed, collect, expected, free, free_objects, full, object,
    properties, seal, write,
};
use voltar_engine::source::Piece;
use voltar_engine::source::zfs_stream::{Expected, Refused, VolumeStream};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/zfs_streams")
}

fn kept(name: &str) -> Vec<u8> {
    let packed = fs::read(folder().join(format!("{name}.zst"))).unwrap();
    let mut bytes = Vec::with_capacity(4 << 20);
    zstd_safe::decompress(&mut bytes, &packed).unwrap();
    bytes
}

/// Applies a stream to `image`, which is what the volume held before.
fn apply(stream: &[u8], expected: Expected, image: &mut Vec<u8>) {
    image.resize(expected.size as usize, 0);
    let (mut stream, mut bytes, mut end) = (VolumeStream::new(stream, expected), Vec::new(), 0);
    while let Some(piece) = stream.next(&mut bytes).unwrap() {
        let range = match &piece {
            Piece::Data { offset } => *offset..*offset + bytes.len() as u64,
            Piece::Zero(range) => range.clone(),
        };
        assert!(end <= range.start && range.start < range.end, "{range:?} after {end}");
        end = range.end;
        let place = &mut image[range.start as usize..range.end as usize];
        match piece {
            Piece::Data { .. } => place.copy_from_slice(&bytes),
            Piece::Zero(_) => place.fill(0),
        }
    }
}

#[test]
fn real_streams_lead_to_what_the_volume_held() {
    let list = fs::read_to_string(folder().join("list")).unwrap();
    let (mut image, mut since) = (Vec::new(), 0);
    let mut seen = 0;
    for line in list.lines() {
        let mut words = line.split(' ');
        let name = words.next().unwrap();
        let [to_guid, from_guid, size] =
            std::array::from_fn(|_| words.next().unwrap().parse::<u64>().unwrap());
        if from_guid == 0 {
            image.clear();
        } else {
            assert_eq!(from_guid, since, "{name} goes on from the one before");
        }
        let expected = Expected { to_guid, from_guid: Some(from_guid).filter(|g| *g != 0), size };
        let stream = kept(&format!("{name}.stream"));
        apply(&stream, expected, &mut image);
        assert!(image == kept(&format!("{name}.image")), "{name}");
        each_other_stream_is_refused(&stream, expected);
        since = to_guid;
        seen += 1;
    }
    assert_eq!(seen, 28, "four volumes, seven states each");
}

fn each_other_stream_is_refused(stream: &[u8], expected: Expected) {
    let why = |expected| collect(stream, expected).unwrap_err().why;
    let to_guid = expected.to_guid ^ 1;
    assert!(why(Expected { to_guid, ..expected }).contains("it is of the snapshot with guid"));
    let from_guid = Some(expected.from_guid.map_or(7, |guid| guid ^ 1));
    assert!(why(Expected { from_guid, ..expected }).contains("it holds the changes since guid"));
}

#[test]
fn real_streams_of_other_kinds_are_refused_by_name() {
    let cases = [
        ("compressed", "compressed blocks"),
        ("embedded", "embedded blocks"),
        ("properties", "a bundle of streams"),
        ("raw", "raw blocks"),
        ("files", "not of a volume"),
    ];
    for (name, words) in cases {
        let stream = kept(&format!("{name}.stream"));
        let refused = collect(&stream, expected(None)).unwrap_err();
        assert!(refused.why.contains(words), "{name}: {refused}");
    }
}

/// What a full stream of these records says.
fn read(records: &[Record]) -> Result<Pieces, Refused> {
    collect(&seal(records), expected(None))
}

#[test]
fn a_stream_by_hand_is_understood() {
    let want = [(0..4096, 1), (8192..12288, 2), (16384..20480, 0), (24576..SIZE, 0)];
    assert_eq!(read(&full()).unwrap(), want);
    let pieces = collect(&seal(&changed()), expected(Some(7))).unwrap();
    let want = [(4096..8192, 3), (8192..16384, 0), (24576..SIZE, 0)];
    assert_eq!(pieces, want);
}

#[test]
fn a_stream_that_ends_anywhere_is_refused() {
    let stream = seal(&full());
    for len in 0..stream.len() {
        let refused = collect(&stream[..len], expected(None)).unwrap_err();
        assert_eq!(refused.why, "it ends before its end", "at {len}");
    }
    let refused = collect(&[&stream[..], &[0]].concat(), expected(None)).unwrap_err();
    assert_eq!(refused.why, "something follows its end");
}

#[test]
fn a_stream_with_any_bit_flipped_is_refused() {
    let stream = seal(&full());
    for bit in 0..stream.len() * 8 {
        let mut flipped = stream.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        let read = collect(&flipped, expected(None));
        assert!(read.is_err(), "bit {bit} is flipped");
    }
}

#[test]
fn after_an_error_there_is_nothing_but_the_error() {
    let mut stream = seal(&full());
    let last = stream.len() - 1;
    stream[last] ^= 1;
    let mut stream = VolumeStream::new(&stream[..], expected(None));
    let mut bytes = Vec::new();
    let refused = loop {
        match stream.next(&mut bytes) {
            Ok(piece) => assert!(piece.is_some(), "its end is not right"),
            Err(refused) => break refused,
        }
    };
    assert_eq!(refused.why, "its checksum is wrong");
    assert_eq!(stream.next(&mut bytes), Err(refused));
}

#[test]
fn an_input_that_fails_is_not_an_end() {
    struct Failing;
    impl Read for Failing {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::Error::other("the pipe burst"))
        }
    }
    let bytes = seal(&full());
    for len in [0, 400, 4000, bytes.len()] {
        let input = bytes[..len].chain(Failing);
        let mut stream = VolumeStream::new(input, expected(None));
        let mut piece = Ok(Some(Piece::Zero(0..1)));
        while let Ok(Some(_)) = piece {
            piece = stream.next(&mut Vec::new());
        }
        assert_eq!(piece.unwrap_err().why, "it cannot be read: the pipe burst");
    }
}

#[test]
fn records_in_any_other_order_are_refused_or_say_the_same() {
    let (records, want) = (full(), read(&full()).unwrap());
    let mut borne = 0;
    let mut check = |records: &[Record], what: String| {
        if let Ok(pieces) = read(records) {
            assert_eq!(pieces, want, "{what}");
            borne += 1;
        }
    };
    for first in 0..records.len() {
        for second in first + 1..records.len() {
            let mut swapped = records.clone();
            swapped.swap(first, second);
            check(&swapped, format!("{first} and {second} changed places"));
        }
        for place in 0..=records.len() {
            let mut twice = records.clone();
            twice.insert(place, records[first].clone());
            check(&twice, format!("{first} comes again at {place}"));
        }
    }
    // What frees nothing of the volume may come anywhere that its own order allows.
    assert!(borne > 0, "nothing was borne");
}

#[test]
fn what_is_not_known_is_refused_by_name() {
    let [begin, object, data, zero] = [0, 1, 3, 5];
    let cases: [(usize, usize, &[u8], &str); 29] = [
        (begin, 0, &[1], "does not begin like one"),
        (begin, 4, &[8], "its first record has a payload of 8 bytes"),
        (begin, 8, &[0], "does not begin like one (magic 0x2f5bacb00)"),
        (begin, 8, &[0, 0, 0, 2, 0xF5, 0xBA, 0xCB, 0xAC], "the other byte order"),
        (begin, 16, &[2], "a bundle of streams"),
        (begin, 16, &[1 | 1 << 2], "it needs deduplicated blocks"),
        (begin, 19, &[1 << 2], "it needs raw blocks (`zfs send -w`)"),
        (begin, 22, &[1], "it needs a feature that is not known (bit 46)"),
        (begin, 32, &[2], "a data set of type 2"),
        (begin, 36, &[0x1F], "flags that are not known (0x1f)"),
        (object, 16, &[24], "no volume has an object 1 of type 24"),
        (object, 24, &[1, 1], "a block has 257 bytes"),
        (object, 36, &[8], "its objects are raw"),
        (object, 30, &[1], "a bonus buffer of 65536 bytes"),
        (object, 40, &[99], "the snapshot with guid 24163, not 24301"),
        (data, 16, &[19], "a block of the volume is of type 19"),
        (data, 24, &[1], "1 bytes are no whole number of sectors"),
        (data, 32, &[1], "a block has 4097 bytes"),
        (data, 35, &[2], "a block has 33558528 bytes"),
        (data, 49, &[2], "flags that are not known (0x2)"),
        (data, 50, &[15], "a block is compressed (kind 15)"),
        (data, 40, &[99], "the snapshot with guid 24163, not 24301"),
        (zero, 0, &[0], "its checksum is wrong"),
        (zero, 0, &[6], "WRITE_BYREF"),
        (zero, 0, &[7], "SPILL"),
        (zero, 0, &[8], "WRITE_EMBEDDED"),
        (zero, 0, &[9], "OBJECT_RANGE"),
        (zero, 0, &[10], "REDACT"),
        (zero, 0, &[11], "records of type 11 are not known"),
    ];
    for (number, at, bytes, words) in cases {
        let mut records = full();
        records[number][at..at + bytes.len()].copy_from_slice(bytes);
        let refused = read(&records).unwrap_err();
        assert!(refused.why.contains(words), "{words}: {refused}");
    }
}

#[test]
fn what_no_volume_has_is_refused_by_name() {
    let mut table = properties(SIZE);
    table[0] = 1;
    let cases: [(usize, Record, &str); 9] = [
        (6, object(3, 44), "no volume has an object 3 of type 44"),
        (
            6,
            write(2, 24, 0, &properties(SIZE)),
            "a record of object 2 comes among those of object 1",
        ),
        (8, write(2, 24, 0, &properties(4096)), "the volume has 4096 bytes in it, and 65536"),
        (8, write(2, 24, 0, &table), "of a kind that is not known"),
        (8, write(2, 24, 0, &[0; 512]), "of a kind that is not known"),
        (8, write(2, 24, 512, &properties(SIZE)), "more than one block"),
        (8, free(2, 0, 512), "it takes the volume's properties away"),
        (8, free(2, 512, 512), "does not say how large that is"),
        (10, free_objects(2, 1), "it frees the objects that a volume consists of"),
    ];
    for (number, record, words) in cases {
        let mut records = full();
        records[number] = record;
        let refused = read(&records).unwrap_err();
        assert!(refused.why.contains(words), "{words}: {refused}");
    }
}

#[test]
fn a_block_behind_the_last_one_is_refused_and_what_exceeds_the_size_is_cut_off() {
    let mut records = full();
    records.insert(6, write(1, 23, 24576, &block(4)));
    let refused = read(&records).unwrap_err();
    assert!(refused.why.contains("lies behind the volume's last one"), "{refused}");

    records.remove(6);
    records[8] = write(2, 24, 0, &properties(10240));
    let shorter = Expected { size: 10240, ..expected(None) };
    let pieces = collect(&seal(&records), shorter).unwrap();
    assert_eq!(pieces, [(0..4096, 1), (8192..10240, 2)]);
}

#[test]
fn what_a_record_promises_takes_no_memory() {
    let mut records = full();
    records.remove(2);
    records[2] = write(1, 23, 0, &[]);
    records[2][32..40].copy_from_slice(&(16_u64 << 20).to_le_bytes());
    let bytes = seal(&records[..3]);
    let mut buffer = Vec::new();
    let mut stream = VolumeStream::new(&bytes[..], expected(None));
    assert_eq!(stream.next(&mut buffer).unwrap_err().why, "it ends before its end");
    assert!(buffer.capacity() < 1 << 20, "{} bytes", buffer.capacity());
}
