//! One structure at a time: as the bytes stand, and with their checksums repaired. What decodes
//! must encode to the same bytes.

use std::cell::RefCell;

use voltar_engine::codec::{Decoder, Encoder, Level};
use voltar_format::commit::{Commit, NewCommit};
use voltar_format::frame::{Codec, Frame, encode_head, head_len};
use voltar_format::header::Header;
use voltar_format::index::{
    Found, IndexEntry, OrderCheck, Page, bucket_of, buckets_for, build_run, check_filter,
    check_foot_block, check_head_block, filter_page_of, is_filter_slot, page_of_slot,
};
use voltar_format::limits::{BLOCK_LEN, FRAME_RAW_LEN_MAX, SEGMENT_LEN_MAX};
use voltar_format::manifest::{Manifest, Note};
use voltar_format::map::{Node, Shape, span_of_entry};
use voltar_format::record::{FLAG_SECOND_COPY, RecordHead, RecordKind};
use voltar_format::segment::{Footer, Table, check_frame_entry, check_tail};
use voltar_format::wire::is_zero;
use voltar_format::{ArchiveId, Id, LogOffset};

use crate::repair;
use crate::wire::{u16_at, u64_at};

/// Runs `check` on the bytes and on a repaired copy of them.
fn both(data: &[u8], repair: impl FnOnce(&mut [u8]), check: impl Fn(&[u8])) {
    check(data);
    let mut repaired = data.to_vec();
    repair(&mut repaired);
    check(&repaired);
}

/// The archive's first block.
pub fn header(data: &[u8]) {
    let mut block = data.to_vec();
    block.resize(block.len().max(BLOCK_LEN), 0);
    both(&block, repair::header, |bytes| {
        if let Ok(header) = Header::decode(bytes) {
            assert_eq!(header.encode()[..], bytes[..BLOCK_LEN]);
        }
    });
    let _ = Header::decode(data);
}

/// The head of a record, read where it says it belongs.
pub fn record(data: &[u8]) {
    both(
        data,
        |bytes| repair::record(bytes, 0),
        |bytes| {
            let at = LogOffset(u64_at(bytes, 32));
            if let Ok((head, kind)) = RecordHead::decode_at(bytes, at, None) {
                assert_eq!(head.clone().seal()[..], bytes[..RecordHead::LEN]);
                assert_eq!(at.0 % BLOCK_LEN as u64, 0);
                RecordHead::decode_at(bytes, LogOffset(at.0 ^ 4096), None).expect_err("misplaced");
                if kind == RecordKind::Index {
                    let _ = check_head_block(bytes, &head);
                }
            }
        },
    );
}

thread_local! {
    static DECODER: RefCell<Decoder> = RefCell::new(Decoder::new().expect("memory"));
    static ENCODER: RefCell<Encoder> = RefCell::new(Encoder::new().expect("memory"));
}

/// A frame with its payload.
pub fn frame(data: &[u8]) {
    both(
        data,
        |bytes| {
            repair::frame(bytes, 0);
        },
        |bytes| {
            if let Ok(frame) = Frame::decode(bytes) {
                whole_frame(bytes, &frame);
            }
        },
    );
}

fn whole_frame(bytes: &[u8], frame: &Frame<'_>) {
    let head = &frame.head;
    let head_bytes = &bytes[..head_len(head.chunk_count)];
    let parts = Frame::decode_parts(head_bytes, frame.payload).expect("the same in two parts");
    assert_eq!((&parts.head, parts.payload), (&frame.head, frame.payload));
    let mut again = vec![0; head_bytes.len()];
    encode_head(frame.codec, &frame.entries, head.payload_len, head.payload_crc, &mut again);
    assert_eq!(again, head_bytes);
    let mut table = Table::default();
    table.push(RecordHead::LEN as u32, frame);
    check_frame_entry(&table.frames[0], frame).expect("the entry was made from this frame");

    let mut out = vec![0; FRAME_RAW_LEN_MAX as usize];
    let sum_is_right = frame.check_payload().is_ok();
    let raw =
        DECODER.with_borrow_mut(|decoder| decoder.decode(frame, &mut out).map(|b| b.to_vec()));
    let Ok(raw) = raw else {
        assert!(frame.codec == Codec::Zstd, "a stored payload decodes");
        return;
    };
    assert_eq!(raw.len(), head.raw_len as usize);
    assert_eq!(raw.len(), frame.entries.iter().map(|entry| entry.raw_len as usize).sum::<usize>());
    if sum_is_right {
        packed_again(frame, &raw);
    }
}

fn packed_again(frame: &Frame<'_>, raw: &[u8]) {
    let mut packed = vec![0; raw.len()];
    let len = ENCODER
        .with_borrow_mut(|encoder| encoder.encode(raw, Level::Zstd(1), &mut packed))
        .expect("compressing fails for no data");
    let Some(len) = len else { return };
    let payload = &packed[..len];
    let mut bytes = vec![0; head_len(frame.head.chunk_count)];
    let crc = voltar_format::checksum::crc32c(payload);
    encode_head(Codec::Zstd, &frame.entries, len as u32, crc, &mut bytes);
    bytes.extend_from_slice(payload);
    let frame = Frame::decode(&bytes).expect("our own frame");
    frame.check_payload().expect("our own payload");
    let mut out = vec![0; raw.len()];
    let back =
        DECODER.with_borrow_mut(|decoder| decoder.decode(&frame, &mut out).map(|b| b.to_vec()));
    assert_eq!(back.expect("our own compression"), raw);
}

/// A segment from its table to its end.
pub fn table(data: &[u8]) {
    both(
        data,
        |bytes| {
            repair::table(bytes, 0);
            let end = bytes.len() / BLOCK_LEN * BLOCK_LEN;
            if let Some(at) = end.checked_sub(Footer::LEN) {
                repair::footer(bytes, at);
            }
        },
        |bytes| {
            let table = Table::decode(bytes);
            if let Ok(table) = &table {
                sealed_again(bytes, table);
            }
            tail(bytes, table.ok().as_ref());
        },
    );
}

fn sealed_again(bytes: &[u8], table: &Table) {
    let len = Table::encoded_len(bytes).expect("it decoded");
    let frames: usize = table.iter().map(|(_, chunks)| chunks.len()).sum();
    assert_eq!(frames, table.chunks.len());
    let (id, start) = (ArchiveId([3; 16]), LogOffset(BLOCK_LEN as u64));
    let offset = table.offset_in_segment();
    let sealed = table.seal(id, start, 1, offset as u32);
    assert_eq!(sealed[..len], bytes[..len], "a table has one form");
    let segment_len = offset + sealed.len() as u64;
    if segment_len <= SEGMENT_LEN_MAX {
        let end = LogOffset(start.0 + segment_len);
        let (footer, _) = Footer::decode_at(&sealed, end, Some(id)).expect("our own footer");
        check_tail(&sealed, &footer, table).expect("our own tail");
    }
}

fn tail(bytes: &[u8], table: Option<&Table>) {
    let bytes = &bytes[..bytes.len() / BLOCK_LEN * BLOCK_LEN];
    let Some(at) = bytes.len().checked_sub(Footer::LEN) else { return };
    let claimed = u64_at(bytes, at + 32).checked_add(u64_at(bytes, at + 40));
    let Some(end) = claimed else { return };
    let Ok((footer, kind)) = Footer::decode_at(bytes, LogOffset(end), None) else { return };
    assert_eq!(footer.clone().seal()[..], bytes[at..]);
    assert!(footer.len >= BLOCK_LEN as u64 && footer.start.0 + footer.len == end);
    match (kind, table) {
        (RecordKind::Data, Some(table)) if check_tail(bytes, &footer, table).is_ok() => {
            assert!(is_zero(&bytes[footer.table_len as usize..at]));
        }
        (RecordKind::Index, _) => {
            let _ = check_foot_block(bytes);
        }
        _ => {}
    }
}

/// One copy of a commit, read where it says it belongs.
pub fn commit(data: &[u8]) {
    let mut padded = data.to_vec();
    padded.resize(data.len().next_multiple_of(BLOCK_LEN), 0);
    both(&padded, repair::commit_copy, |bytes| {
        let at = LogOffset(u64_at(bytes, 32));
        let Ok(commit) = Commit::decode_at(bytes, at, None) else { return };
        assert!(commit.offset <= at && commit.head.log_start <= at);
        let (record, _) = RecordHead::decode(bytes).map(|head| (head, ())).expect("it decoded");
        assert_eq!(commit.runs.len(), commit.head.run_count as usize);
        let copy = &bytes[..commit.len as usize];
        if let Some((twin_at, twin)) = Commit::twin(copy) {
            let twin = Commit::decode_at(&twin, twin_at, Some(record.archive_id));
            assert_eq!(twin.expect("the other copy"), commit);
        }
        encoded_again(copy, &commit, &record);
        if let Some(manifest) = commit.snapshot_id().map(|_| &commit.manifest) {
            manifest_bytes(manifest);
        }
    });
}

fn encoded_again(copy: &[u8], commit: &Commit, record: &RecordHead) {
    let head = &commit.head;
    let before = (head.previous != LogOffset(0)).then(|| Commit {
        head: voltar_format::commit::CommitHead {
            number: head.number - 1,
            content_hash: head.previous_hash,
            ..head.clone()
        },
        offset: head.previous,
        len: head.previous_len,
        ..commit.clone()
    });
    let last = before.as_ref().map_or(LogOffset(0), |before| before.offset);
    if record.last_commit != last || head.number == u64::MAX {
        return;
    }
    let again = NewCommit {
        archive_id: record.archive_id,
        session: record.session,
        offset: commit.offset,
        sequence: record.sequence,
        previous_record: record.previous,
        incompatible: head.incompatible,
        compatible: head.compatible,
        previous: before.as_ref(),
        log_hash: head.log_hash,
        segment_count: head.segment_count,
        runs: &commit.runs,
        manifest: &commit.manifest,
    };
    let (bytes, decoded) = again.encode();
    assert_eq!(decoded, *commit);
    let second = record.flags & FLAG_SECOND_COPY != 0;
    let from = if second { commit.len as usize } else { 0 };
    assert_eq!(bytes[from..from + commit.len as usize], *copy, "a commit has one form");
}

/// A manifest.
pub fn manifest(data: &[u8]) {
    manifest_bytes(data);
}

fn manifest_bytes(data: &[u8]) {
    let Ok(manifest) = Manifest::decode(data) else { return };
    let bytes = match manifest.encode() {
        Ok(bytes) => bytes,
        // A text that uses every short form may grow over the limit when written in full.
        Err(error) => return assert_eq!(error.requirement, "F-051"),
    };
    assert_eq!(Manifest::decode(&bytes).expect("our own manifest"), manifest);
    for volume in &manifest.volumes {
        assert_eq!(manifest.volume(&volume.name), Some(volume));
        let shape = volume.shape().expect("decoding checked it");
        assert!(shape.chunk_count() >= 1 && shape.child_count(shape.root_level(), 0) >= 1);
    }
}

/// A session's note.
pub fn note(data: &[u8]) {
    let Ok(note) = serde_json::from_slice::<Note>(data) else { return };
    let bytes = serde_json::to_vec(&note).expect("a note is JSON");
    assert_eq!(serde_json::from_slice::<Note>(&bytes).expect("our own note"), note);
}

/// A map node.
pub fn node(data: &[u8]) {
    let Ok(node) = Node::decode_any(data) else { return };
    assert_eq!(node.encode(), data, "a node has one form");
    let count = node.entries.len() as u64;
    for chunk_len in [4096, 65536, 1 << 20] {
        let whole = count.saturating_mul(span_of_entry(node.level));
        for chunks in [whole, whole.saturating_add(1), whole.saturating_mul(256)] {
            let size = chunks.saturating_mul(chunk_len.into());
            let Some(shape) = Shape::new(size, chunk_len) else { continue };
            for number in [0, 1, u64::MAX] {
                if let Ok(same) = Node::decode(data, &shape, node.level, number) {
                    assert_eq!(same, node);
                    assert_eq!(shape.child_count(node.level, number), node.entries.len());
                }
            }
        }
    }
}

/// Pages of an index run: two bytes of buckets, then pages.
pub fn pages(data: &[u8]) {
    let buckets = u64::from(u16_at(data, 0)).max(1);
    let rest = data.get(2..).unwrap_or(&[]);
    let repair_all = |bytes: &mut [u8]| bytes.chunks_exact_mut(BLOCK_LEN).for_each(repair::page);
    both(rest, repair_all, |bytes| run_of(bytes, buckets));
}

fn run_of(bytes: &[u8], buckets: u64) {
    let pages: Vec<_> = bytes
        .chunks_exact(BLOCK_LEN)
        .zip(0..)
        .map_while(|(bytes, number)| Page::decode(bytes, number).ok())
        .collect();
    let mut order = OrderCheck::new(buckets);
    let mut entries = Vec::new();
    let mut in_order = true;
    let mut slot = 0;
    for (number, page) in (0..).zip(&pages) {
        assert_eq!(page.is_filter(), is_filter_slot(number));
        if page.is_filter() {
            continue;
        }
        assert_eq!(page_of_slot(slot), number);
        let alone = page.entries();
        if let Ok(alone) = &alone {
            for entry in alone {
                assert_eq!(page.find(&entry.id), Ok(Found::Here(entry.clone())));
                let filter = &pages[filter_page_of(slot) as usize];
                let _ = check_filter(filter, &entry.id, buckets);
            }
        }
        let _ = page.find(&Id([0xff; 32]));
        match order.page(slot, page) {
            Ok(found) => {
                assert_eq!(Ok(&found), alone.as_ref());
                entries.extend(found);
            }
            Err(_) => in_order = false,
        }
        slot += 1;
    }
    let _ = order.finish();
    if in_order {
        built_again(&entries);
    }
}

fn built_again(entries: &[IndexEntry]) {
    if entries.is_empty() {
        return;
    }
    let buckets = buckets_for(entries.len() as u64);
    let (bytes, built) = build_run(entries);
    assert_eq!(built.entry_count, entries.len() as u64);
    assert_eq!(built.page_count as usize * BLOCK_LEN, bytes.len());
    let page = |number: u64| {
        let at = number as usize * BLOCK_LEN;
        Page::decode(&bytes[at..at + BLOCK_LEN], number).expect("our own page")
    };
    let mut order = OrderCheck::new(buckets);
    let mut found = Vec::new();
    for slot in 0..u64::MAX {
        if page_of_slot(slot) >= built.page_count {
            break;
        }
        found.extend(order.page(slot, &page(page_of_slot(slot))).expect("our own order"));
    }
    order.finish().expect("our own end");
    assert_eq!(found, entries);
    for entry in entries {
        let bucket = bucket_of(&entry.id, buckets);
        check_filter(&page(filter_page_of(bucket)), &entry.id, buckets).expect("our own filter");
        let mut slot = bucket;
        loop {
            match page(page_of_slot(slot)).find(&entry.id).expect("our own entries") {
                Found::Here(here) => break assert_eq!(here, *entry),
                Found::Next => slot += 1,
                Found::Absent => panic!("{} is not where a look-up looks", entry.id),
            }
        }
    }
}
