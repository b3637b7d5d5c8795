//! Requirements of FORMAT.md that the engine checks because bytes alone do not show them.
#![allow(clippy::unwrap_used, reason = "tests assert")]

use std::sync::Arc;

use voltar_engine::archive::index::{Fresh, Index, Place};
use voltar_engine::archive::open::{Archive, read_commit};
use voltar_engine::archive::resume::check_segment;
use voltar_engine::archive::store::{Store, check_id};
use voltar_engine::device::Device;
use voltar_engine::device::memory::MemoryDevice;
use voltar_engine::error::{Error, ErrorKind};
use voltar_format::checksum::{chunk_id, node_id};
use voltar_format::commit::{Commit, NewCommit};
use voltar_format::frame::{self, ChunkEntry, Codec, Frame, ItemKind};
use voltar_format::header::Header;
use voltar_format::record::{RecordHead, RecordKind};
use voltar_format::segment::{Footer, Table};
use voltar_format::{ArchiveId, FormatError, Id, LogOffset, SessionId};

const ARCHIVE: ArchiveId = ArchiveId([7; 16]);
const ITEM: &[u8] = b"an item";

fn frame(id: Id) -> Vec<u8> {
    let entry = ChunkEntry::new(ItemKind::Chunk, id, 0, ITEM.len());
    frame::encode(Codec::Store, &[entry], ITEM)
}

/// An archive of one segment that holds one frame with an item of this id. `change` spoils the
/// table before it is sealed.
fn archive(id: Id, change: impl FnOnce(&mut Table)) -> (Archive, u64) {
    let (session, start) = (SessionId([1; 16]), LogOffset(4096));
    let head = RecordHead::new(RecordKind::Data, ARCHIVE, session, start, 1);
    let frame = frame(id);
    let mut table = Table::default();
    table.push(128, &Frame::decode(&frame).unwrap());
    let table_offset = table.offset_in_segment();
    change(&mut table);
    let mut bytes = Header::new(ARCHIVE, 0).encode().to_vec();
    bytes.extend_from_slice(&head.seal());
    bytes.extend_from_slice(&frame);
    bytes.resize(4096 + table_offset as usize, 0);
    bytes.extend(table.seal(ARCHIVE, LogOffset(4096), 1, table_offset as u32));
    let home = MemoryDevice::new(bytes.len() as u64);
    home.write_at(&bytes, 0).unwrap();
    (Archive::open(Arc::new(home)).unwrap(), bytes.len() as u64)
}

#[track_caller]
fn assert_breaks(error: &Error, requirement: &str) {
    assert_eq!(error.kind(), ErrorKind::Damaged);
    assert_eq!(error.subject(), Some("memory"), "it names the archive");
    let cause = std::error::Error::source(error).unwrap();
    let cause = cause.downcast_ref::<FormatError>().unwrap();
    assert_eq!(cause.requirement, requirement, "{cause}");
}

/// Looks `id` up in an archive whose one frame, said to hold it, holds `stored`.
fn look_up(stored: Id, id: Id) -> Error {
    let (archive, _) = archive(stored, |_| {});
    let fresh = Arc::new(Fresh::default());
    let frame_len = frame(id).len() as u32;
    let place = Place { frame: LogOffset(4224), frame_len, slot: 0, kind: ItemKind::Chunk as u8 };
    fresh.place(&id, place);
    let index = Index::new(Arc::clone(&archive.home), Vec::new());
    let mut store = Store::new(archive.home, index).unwrap().with_fresh(fresh);
    store.item(&id, ItemKind::Chunk).unwrap_err()
}

#[test]
fn f_029_bytes_that_do_not_match_their_id_are_refused() {
    check_id(ITEM, &chunk_id(ITEM), ItemKind::Chunk).unwrap();
    check_id(ITEM, &node_id(ITEM), ItemKind::Node).unwrap();
    let as_node = check_id(ITEM, &chunk_id(ITEM), ItemKind::Node).unwrap_err();
    assert_eq!(as_node.requirement, "F-029");
    assert_breaks(&look_up(Id([3; 32]), Id([3; 32])), "F-029");
}

#[test]
fn f_036_a_table_that_speaks_of_other_frames_ends_the_adoption() {
    let (whole, end) = archive(chunk_id(ITEM), |_| {});
    assert!(check_segment(&whole, LogOffset(4096), end).is_ok());
    let (spoiled, end) = archive(chunk_id(ITEM), |table| table.chunks[0].index = 9);
    let error = check_segment(&spoiled, LogOffset(4096), end).err().unwrap();
    assert_breaks(&error, "F-036");
}

#[test]
fn f_036_a_footer_of_another_kind_ends_the_adoption() {
    let (archive, end) = archive(chunk_id(ITEM), |_| {});
    let at = end - Footer::LEN as u64;
    let mut bytes = [0; Footer::LEN];
    archive.home.read_at(&mut bytes, at).unwrap();
    let (footer, _) = Footer::decode_at(&bytes, LogOffset(end), Some(ARCHIVE)).unwrap();
    archive.home.write_at(&Footer { kind: 77, ..footer }.seal(), at).unwrap();
    let error = check_segment(&archive, LogOffset(4096), end).err().unwrap();
    assert_breaks(&error, "F-036");
}

/// Where [`commit`] stands, and how long a copy of it is.
const FIRST: LogOffset = LogOffset(4096);
const COPY_LEN: u64 = 4096;

/// An archive of one commit that seals nothing.
fn commit(incompatible: u64) -> (MemoryDevice, Commit) {
    let (bytes, commit) = NewCommit {
        archive_id: ARCHIVE,
        session: SessionId([1; 16]),
        offset: FIRST,
        sequence: 1,
        previous_record: LogOffset(0),
        incompatible,
        compatible: 0,
        previous: None,
        log_hash: Id::default(),
        segment_count: 0,
        runs: &[],
        manifest: b"",
    }
    .encode();
    assert_eq!(bytes.len() as u64, 2 * COPY_LEN);
    let header = Header::new(ARCHIVE, 0).encode();
    (MemoryDevice::from_bytes(&[&header[..], &bytes].concat()), commit)
}

/// Spoils the body of the copy at `offset`; its record head stays whole.
fn spoil(home: &MemoryDevice, offset: u64) {
    home.write_at(&[0xff], offset + RecordHead::LEN as u64).unwrap();
}

#[test]
fn r_04_one_copy_of_a_commit_suffices_to_go_back() {
    for copy in [FIRST.0, FIRST.0 + COPY_LEN] {
        let (home, whole) = commit(0);
        spoil(&home, copy);
        assert_eq!(read_commit(&home, ARCHIVE, FIRST, COPY_LEN).unwrap(), whole);
    }
    // Of two that are damaged the first is the one to speak of.
    let (home, _) = commit(0);
    spoil(&home, FIRST.0);
    spoil(&home, FIRST.0 + COPY_LEN);
    let error = read_commit(&home, ARCHIVE, FIRST, COPY_LEN).unwrap_err();
    assert_breaks(&error, "F-041");
    assert_eq!(error.range(), Some(FIRST.0..FIRST.0));
}

#[test]
fn f_004_a_feature_that_only_the_second_copy_still_shows_is_refused() {
    let (home, _) = commit(1);
    spoil(&home, FIRST.0);
    let error = read_commit(&home, ARCHIVE, FIRST, COPY_LEN).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::UnsupportedFormat);
}

#[test]
fn f_045_a_pointer_to_a_second_copy_leads_to_no_commit() {
    let (home, whole) = commit(0);
    assert_eq!(read_commit(&home, ARCHIVE, FIRST, COPY_LEN).unwrap(), whole);
    let second = LogOffset(FIRST.0 + COPY_LEN);
    assert_breaks(&read_commit(&home, ARCHIVE, second, COPY_LEN).unwrap_err(), "F-045");
}

#[test]
fn f_067_an_id_in_no_run_is_named() {
    let (archive, _) = archive(chunk_id(ITEM), |_| {});
    let index = Index::new(Arc::clone(&archive.home), Vec::new());
    let mut store = Store::new(archive.home, index).unwrap();
    assert_breaks(&store.item(&chunk_id(ITEM), ItemKind::Chunk).unwrap_err(), "F-067");
}

#[test]
fn f_068_a_frame_that_does_not_hold_the_id_is_named() {
    assert_breaks(&look_up(Id([3; 32]), chunk_id(ITEM)), "F-068");
}
