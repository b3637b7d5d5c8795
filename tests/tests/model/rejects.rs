//! The forged archives: what a reader must read, and one defect each of what it must refuse.

use std::collections::BTreeSet;

use voltar_format::checksum::{commit_hash, crc32c, crc32c_of};
use voltar_format::commit::CommitHead;
use voltar_format::record::RecordHead;
use voltar_format::record::RecordKind::{Commit, Data, Index};

use crate::forge::{Disk, Forge, Spoil, Spot, State, pack};

/// A vector before it is written to a file.
pub struct Vector {
    /// `accept` or `reject`.
    pub folder: &'static str,
    /// Its file's name without the ending.
    pub name: String,
    /// `ok`, `damaged`, `unsupported` or `not-an-archive`.
    pub verdict: &'static str,
    /// What is broken.
    pub requirement: Option<&'static str>,
    /// What is special about it.
    pub reason: String,
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// What its snapshots would hold if nothing were broken.
    pub disks: Vec<Vec<Disk>>,
}

/// Those that are kept as files: the accepted ones but for some that say little more, and of the rejected ones the first for each
/// requirement and all that are not damaged but something else. The others are forged anew by
/// each run.
pub fn kept() -> Vec<Vector> {
    let mut seen = BTreeSet::new();
    let mut vectors = all();
    vectors.retain(|vector| {
        let name = vector.name.as_str();
        let is_large = ["header_compatible_bit", "crash_inside_index_run"].contains(&name)
            || ["crash_inside_commit_first_copy", "zeroes_two_levels"].contains(&name);
        let is_first = seen.insert(vector.requirement) || vector.verdict == "unsupported";
        !is_large && (is_first || vector.folder == "accept")
    });
    vectors
}

/// All vectors.
pub fn all() -> Vec<Vector> {
    let mut all = accepted();
    all.extend(rejected());
    all
}

fn bytes(seed: u8, len: usize) -> Vec<u8> {
    (0..len).map(|at| ((at / 5) as u8).wrapping_mul(29) ^ (at / 4096) as u8 ^ seed).collect()
}

/// A chunk three times, two of zeroes, a short one.
fn first_disk() -> Disk {
    let chunk = bytes(1, 4096);
    let mut content = chunk.repeat(5);
    content[2 * 4096..4 * 4096].fill(0);
    content.extend_from_slice(&bytes(2, 77));
    Disk::of("disk", &content)
}

/// One chunk changed, one more.
fn second_disk() -> Disk {
    let mut content = first_disk().bytes();
    content[4096..4200].fill(9);
    content.extend_from_slice(&bytes(7, 4000));
    Disk::of("disk", &content)
}

fn no_snapshot(spoil: &mut Spoil<'_>) -> Vec<u8> {
    let mut forge = Forge::new(Box::new(spoil));
    std::mem::take(&mut forge.bytes)
}

fn one_snapshot(spoil: &mut Spoil<'_>) -> Vec<u8> {
    let mut forge = Forge::new(Box::new(spoil));
    forge.snapshot(&[first_disk()], &[]);
    std::mem::take(&mut forge.bytes)
}

fn two_snapshots(spoil: &mut Spoil<'_>) -> Vec<u8> {
    let mut forge = Forge::new(Box::new(spoil));
    forge.snapshot(&[first_disk()], &[]);
    forge.snapshot(&[second_disk()], &[]);
    std::mem::take(&mut forge.bytes)
}

fn two_disks() -> Vec<Vec<Disk>> {
    vec![vec![first_disk()], vec![second_disk()]]
}

fn accepted() -> Vec<Vector> {
    let mut all = Vec::new();
    let mut add = |name: &str, reason: &str, bytes: Vec<u8>, disks: Vec<Vec<Disk>>| {
        all.push(Vector {
            folder: "accept",
            name: name.into(),
            verdict: "ok",
            requirement: None,
            reason: reason.into(),
            bytes,
            disks,
        });
    };
    add("header_only", "an archive without snapshots", Forge::sound().bytes, vec![]);
    let one = |disks: Vec<Disk>, packs: bool, files: &[(&str, &[u8])]| {
        let mut forge = Forge::sound();
        forge.packs = packs;
        forge.snapshot(&disks, files);
        (forge.bytes, vec![disks])
    };
    let short = Disk::of("disk", b"one byte short of sixteen");
    let (image, disks) = one(vec![short], false, &[]);
    add("one_short_chunk", "a volume shorter than a sector", image, disks);
    let (image, disks) = one(vec![Disk::of("disk", &[0; 70_001])], false, &[]);
    add("zeroes_only", "a volume of zeroes is one node", image, disks);
    let large = Disk { size: 300 * 4096 - 5, chunks: vec![State::Zero; 300], ..first_disk() };
    let (image, disks) = one(vec![large], false, &[]);
    add("zeroes_two_levels", "300 chunks of zeroes under a root of level 1", image, disks);
    let mut deep = vec![State::Zero; 600];
    deep[300] = State::Data(bytes(3, 4096));
    let deep = Disk { size: 600 * 4096, chunks: deep, ..first_disk() };
    let (image, disks) = one(vec![deep], false, &[]);
    add("map_two_levels", "one chunk of data under a root of level 1", image, disks);
    let (image, disks) = one(vec![first_disk()], false, &[]);
    add("codec_store", "frames as they are", image, disks);
    let (image, disks) = one(vec![first_disk()], true, &[]);
    add("codec_zstd", "frames packed by zstd", image, disks);
    let several = vec![first_disk(), Disk::of("boot", &bytes(4, 9000)), Disk::of("z", &[0; 1])];
    let files: [(&str, &[u8]); 2] = [("vm.xml", b"<domain/>\n"), ("notes", b"read me")];
    let (image, disks) = one(several, true, &files);
    add("volumes_and_files", "three volumes and two attached files", image, disks);
    let mut partial = bytes(5, 4096);
    partial[512..1024].fill(0);
    let damaged_source = Disk {
        size: 3 * 4096,
        chunks: vec![State::Data(bytes(6, 4096)), State::Partial(partial), State::Unreadable],
        unreadable: vec![(4096 + 512, 512), (8192, 4096)],
        ..first_disk()
    };
    let (image, disks) = one(vec![damaged_source], false, &[]);
    add("source_unreadable", "a partial and an unreadable chunk", image, disks);
    add(
        "two_snapshots",
        "a chain of two commits and two runs",
        two_snapshots(&mut |_, _, _| {}),
        two_disks(),
    );

    let mut forge = Forge::sound();
    forge.snapshot(&[first_disk()], &[]);
    let (frames, manifest) = forge.prepare(&[second_disk()], &[]);
    forge.segment(&frames);
    forge.run();
    forge.merged_run();
    forge.commit(Some(&manifest));
    add("runs_merged", "the last commit lists one run for all items", forge.bytes, two_disks());

    let mut forge = Forge::sound();
    let (frames, manifest) = forge.prepare(&[first_disk()], &[]);
    forge.segment(&frames[..1]);
    forge.segment(&frames[1..]);
    forge.run();
    forge.commit(Some(&manifest));
    add("two_segments", "one snapshot in two segments", forge.bytes, vec![vec![first_disk()]]);

    let mut forge = Forge::sound();
    forge.snapshot(&[first_disk()], &[]);
    forge.commit(None);
    add(
        "commit_without_snapshot",
        "a commit with no manifest",
        forge.bytes,
        vec![vec![first_disk()]],
    );

    let mut forge = Forge::sound();
    let (frames, manifest) = forge.prepare(&[first_disk()], &[]);
    forge.segment(&frames);
    forge.run();
    forge.commit(Some(&manifest));
    let end = forge.bytes.len();
    let (frames, manifest) = forge.prepare(&[second_disk()], &[]);
    forge.segment(&frames);
    let sealed = forge.bytes.len();
    forge.run();
    let indexed = forge.bytes.len();
    forge.commit(Some(&manifest));
    let commit_len = (forge.bytes.len() - indexed) / 2;
    let tails = [
        ("crash_inside_segment", end + 1000, "half a segment behind the last commit"),
        ("crash_after_sealed_segment", sealed, "a sealed segment behind the last commit"),
        ("crash_inside_index_run", sealed + 5000, "half a run behind the last commit"),
        ("crash_after_data_sync", indexed, "all records of a snapshot but its commit"),
        ("crash_inside_commit_first_copy", indexed + commit_len - 1, "a commit short of a byte"),
    ];
    for (name, len, reason) in tails {
        add(name, reason, forge.bytes[..len].to_vec(), vec![vec![first_disk()]]);
    }
    let spotted = |number: usize, at: usize| {
        move |spot: Spot, seen: usize, bytes: &mut Vec<u8>| {
            if spot == Spot::Header && number == 0
                || spot == Spot::CommitHead && number == 1 && seen == 1
            {
                bytes[at] |= 0x80;
            }
        }
    };
    add(
        "header_compatible_bit",
        "an unknown compatible feature",
        two_snapshots(&mut spotted(0, 24)),
        two_disks(),
    );
    add(
        "commit_compatible_bit",
        "the same, taken up later",
        two_snapshots(&mut spotted(1, 8)),
        two_disks(),
    );
    all
}

/// A change of a structure's bytes.
type Change = Box<dyn Fn(&mut Vec<u8>)>;

fn set(at: usize, value: &[u8]) -> Change {
    let value = value.to_vec();
    Box::new(move |bytes| bytes[at..at + value.len()].copy_from_slice(&value))
}

fn flip(at: usize) -> Change {
    Box::new(move |bytes| bytes[at] ^= 1)
}

/// A byte of a frame's payload. Raw: its checksum stays.
fn flip_payload() -> Change {
    Box::new(|bytes| {
        let count = usize::from(u16::from_le_bytes([bytes[6], bytes[7]]));
        bytes[64 + 48 * count] ^= 1;
    })
}

fn flip_last() -> Change {
    Box::new(|bytes| *bytes.last_mut().unwrap() ^= 1)
}

/// A frame's head changed and sealed again; the table does not know.
fn frame_resealed(at: usize, value: u8) -> Change {
    Box::new(move |bytes| {
        bytes[at] = value;
        let count = usize::from(u16::from_le_bytes([bytes[6], bytes[7]]));
        let crc = crc32c_of(&[&bytes[..60], &bytes[64..64 + 48 * count]]);
        bytes[60..64].copy_from_slice(&crc.to_le_bytes());
    })
}

/// A byte of a commit's content changed and the stored-byte checksums made anew; with `hashed`
/// the content hash as well.
fn commit_resealed(at: usize, hashed: bool) -> Change {
    Box::new(move |bytes| {
        bytes[at] ^= 1;
        let body_len = u64::from_le_bytes(bytes[80..88].try_into().unwrap()) as usize;
        if hashed {
            let hash = commit_hash(&bytes[RecordHead::LEN + 32..body_len]);
            bytes[RecordHead::LEN..RecordHead::LEN + 32].copy_from_slice(&hash.0);
        }
        let crc = crc32c(&bytes[RecordHead::LEN..body_len]);
        bytes[88..92].copy_from_slice(&crc.to_le_bytes());
        let crc = crc32c(&bytes[..124]);
        bytes[124..128].copy_from_slice(&crc.to_le_bytes());
    })
}

/// Text of a manifest replaced by text.
fn replace(from: &'static str, to: &'static str) -> Change {
    Box::new(move |bytes| {
        let text = String::from_utf8(bytes.clone()).unwrap();
        assert!(text.contains(from), "{text}");
        *bytes = text.replacen(from, to, 1).into_bytes();
    })
}

/// Name, requirement, verdict, structure, its number, change, reason.
type Row = (&'static str, &'static str, &'static str, Spot, usize, Change, &'static str);

fn rejected() -> Vec<Vector> {
    let mut all: Vec<Vector> = rows()
        .into_iter()
        .map(|(name, requirement, verdict, spot, number, change, reason)| {
            let mut hits = 0;
            let of_commit = [Spot::RecordHead(Commit), Spot::RecordHeadRaw(Commit)].contains(&spot)
                || [Spot::CommitHead, Spot::CommitRaw, Spot::Manifest, Spot::RunEntries]
                    .contains(&spot);
            let of_header =
                [Spot::Header, Spot::HeaderBlock].contains(&spot) && name != "header_magic";
            let make = match () {
                () if of_commit => two_snapshots,
                () if of_header => no_snapshot,
                () => one_snapshot,
            };
            let disks = match () {
                () if of_commit => two_disks(),
                () if of_header => vec![],
                () => vec![vec![first_disk()]],
            };
            let bytes = make(&mut |at, seen, bytes| {
                if at == spot && seen == number {
                    change(bytes);
                    hits += 1;
                }
            });
            assert_eq!(hits, 1, "{name} spoils nothing");
            reject(name, requirement, verdict, reason, bytes, disks)
        })
        .collect();
    all.extend(peculiar());
    all
}

fn reject(
    name: &str,
    requirement: &'static str,
    verdict: &'static str,
    reason: &str,
    bytes: Vec<u8>,
    disks: Vec<Vec<Disk>>,
) -> Vector {
    let (folder, name, reason) = ("reject", name.to_owned(), reason.to_owned());
    Vector { folder, name, verdict, requirement: Some(requirement), reason, bytes, disks }
}

const CONTENT: usize = RecordHead::LEN;

fn rows() -> Vec<Row> {
    let damaged = "damaged";
    let mut rows: Vec<Row> = vec![
        ("header_magic", "F-001", damaged, Spot::Header, 0, flip(1), "another magic"),
        ("header_crc", "F-002", damaged, Spot::HeaderBlock, 0, flip(509), "a wrong checksum"),
        (
            "header_version_newer",
            "F-003",
            "unsupported",
            Spot::Header,
            0,
            set(8, &[2]),
            "version 2",
        ),
        ("header_version_zero", "F-003", "unsupported", Spot::Header, 0, set(8, &[0]), "version 0"),
        (
            "header_incompatible_bit",
            "F-004",
            "unsupported",
            Spot::Header,
            0,
            set(16, &[1]),
            "it says encryption",
        ),
        (
            "header_incompatible_bit_unknown",
            "F-004",
            "unsupported",
            Spot::Header,
            0,
            set(23, &[128]),
            "bit 63",
        ),
        ("header_reserved_a", "F-005", damaged, Spot::Header, 0, flip(10), "not zero"),
        ("header_reserved_b", "F-005", damaged, Spot::Header, 0, flip(507), "not zero"),
        ("header_rest_of_block", "F-005", damaged, Spot::HeaderBlock, 0, flip(4095), "not zero"),
        ("header_block_len", "F-006", damaged, Spot::Header, 0, set(56, &[0, 2]), "blocks of 512"),
        (
            "commit_incompatible_bit",
            "F-004",
            "unsupported",
            Spot::CommitHead,
            1,
            set(0, &[2]),
            "it says compaction",
        ),
    ];
    for (kind, name, number) in [(Data, "segment", 0), (Index, "run", 0), (Commit, "commit", 2)] {
        let head = Spot::RecordHead(kind);
        let raw = Spot::RecordHeadRaw(kind);
        let all: [(&str, &str, Spot, Change); 8] = [
            ("magic", "F-010", raw, flip(0)),
            ("crc", "F-011", raw, flip(125)),
            ("flags", "F-012", head, set(9, &[0x80])),
            ("reserved_a", "F-012", head, flip(15)),
            ("reserved_b", "F-012", head, flip(123)),
            ("offset", "F-013", head, flip(33)),
            ("archive", "F-014", head, flip(16)),
            ("kind_zero", "F-015", head, set(8, &[0])),
        ];
        for (field, requirement, spot, change) in all {
            let verdict = if field == "kind_zero" { "unsupported" } else { damaged };
            // A kind nobody knows is not passed over; in one copy of a commit the other serves.
            if field == "kind_zero" && kind != Data {
                continue;
            }
            let name = leak(&format!("{name}_head_{field}"));
            rows.push((name, requirement, verdict, spot, number, change, "in a record head"));
        }
    }
    rows.extend(frame_rows());
    rows.extend(table_rows());
    rows.extend(commit_rows());
    rows.extend(index_rows());
    rows.extend(node_rows());
    rows
}

fn leak(text: &str) -> &'static str {
    Box::leak(text.to_owned().into_boxed_str())
}

fn frame_rows() -> Vec<Row> {
    let damaged = "damaged";
    vec![
        ("frame_magic", "F-020", damaged, Spot::FrameHead, 1, flip(0), "another magic"),
        ("frame_flags", "F-021", damaged, Spot::FrameHead, 1, flip(5), "a reserved flag"),
        ("frame_nonce", "F-021", damaged, Spot::FrameHead, 1, flip(24), "not zero"),
        ("frame_reserved", "F-021", damaged, Spot::FrameHead, 1, flip(59), "not zero"),
        (
            "frame_stored_len",
            "F-021",
            damaged,
            Spot::FrameRaw,
            1,
            frame_resealed(8, 1),
            "its lengths do not add up",
        ),
        ("frame_head_crc", "F-022", damaged, Spot::FrameRaw, 1, flip(61), "a wrong checksum"),
        ("frame_entry_crc", "F-022", damaged, Spot::FrameRaw, 1, flip(64), "an id changed"),
        (
            "frame_payload_crc",
            "F-023",
            damaged,
            Spot::FrameRaw,
            1,
            flip_payload(),
            "a byte changed",
        ),
        (
            "frame_codec_unknown",
            "F-024",
            damaged,
            Spot::FrameRaw,
            1,
            frame_resealed(4, 3),
            "codec 3",
        ),
        ("frame_codec_zero", "F-024", damaged, Spot::FrameRaw, 1, frame_resealed(4, 0), "codec 0"),
        (
            "frame_other",
            "F-032",
            damaged,
            Spot::FrameRaw,
            1,
            frame_resealed(96, 9),
            "whole, but not the table's",
        ),
        ("frame_padding", "F-034", damaged, Spot::FrameRaw, 0, flip_last(), "not zero"),
        (
            "item_len",
            "F-025",
            damaged,
            Spot::FrameRaw,
            1,
            frame_resealed(64 + 40, 1),
            "lengths do not add up",
        ),
        (
            "item_kind_unknown",
            "F-026",
            damaged,
            Spot::FrameRaw,
            1,
            frame_resealed(64 + 46, 5),
            "kind 5",
        ),
        (
            "item_kind_zero",
            "F-026",
            damaged,
            Spot::FrameRaw,
            1,
            frame_resealed(64 + 46, 0),
            "kind 0",
        ),
        (
            "item_reserved",
            "F-026",
            damaged,
            Spot::FrameRaw,
            1,
            frame_resealed(64 + 47, 1),
            "not zero",
        ),
        ("chunk_id", "F-029", damaged, Spot::Payload, 1, flip(5), "other bytes than its id says"),
        ("node_id", "F-029", damaged, Spot::Payload, 2, flip(3), "other bytes than its id says"),
    ]
}

fn table_rows() -> Vec<Row> {
    let damaged = "damaged";
    let mut rows: Vec<Row> = vec![
        ("table_magic", "F-030", damaged, Spot::TableHead, 0, flip(0), "another magic"),
        ("table_crc", "F-030", damaged, Spot::TableRaw, 0, flip(60), "a wrong checksum"),
        ("table_reserved_a", "F-030", damaged, Spot::TableHead, 0, flip(4), "not zero"),
        ("table_reserved_b", "F-030", damaged, Spot::TableHead, 0, flip(59), "not zero"),
        (
            "table_chunk_count",
            "F-030",
            damaged,
            Spot::TableHead,
            0,
            set(12, &33025u32.to_le_bytes()),
            "one more than permitted",
        ),
        ("table_entries_crc", "F-031", damaged, Spot::TableRaw, 0, flip(64), "a byte changed"),
        (
            "table_frame_offset",
            "F-032",
            damaged,
            Spot::TableEntries,
            0,
            flip(0),
            "it does not follow",
        ),
        ("table_frame_codec", "F-032", damaged, Spot::TableEntries, 0, set(26, &[7]), "codec 7"),
        ("table_frame_reserved", "F-032", damaged, Spot::TableEntries, 0, flip(31), "not zero"),
        (
            "table_frame_crc",
            "F-032",
            damaged,
            Spot::TableEntries,
            0,
            flip(20),
            "another frame's checksum",
        ),
        ("table_padding", "F-034", damaged, Spot::TablePadding, 0, flip_last(), "not zero"),
        ("run_padding", "F-034", damaged, Spot::RunPadding, 0, flip(0), "not zero"),
        (
            "segment_footer_body_hash",
            "F-035",
            damaged,
            Spot::Footer(Data),
            0,
            flip(64),
            "another hash",
        ),
        (
            "run_footer_body_hash",
            "F-035",
            damaged,
            Spot::Footer(Index),
            0,
            flip(64),
            "another hash",
        ),
    ];
    let fields: [(&str, usize); 13] = [
        ("magic", 0),
        ("kind", 8),
        ("reserved_a", 15),
        ("archive", 16),
        ("start", 33),
        ("len", 41),
        ("sequence", 48),
        ("table_offset", 56),
        ("table_len", 60),
        ("frame_count", 96),
        ("chunk_count", 100),
        ("reserved_b", 123),
        ("crc", 124),
    ];
    for (kind, structure) in [(Data, "segment"), (Index, "run")] {
        for (field, at) in fields {
            let spot = if field == "crc" { Spot::FooterRaw(kind) } else { Spot::Footer(kind) };
            let name = leak(&format!("{structure}_footer_{field}"));
            // Where no table is, the table is what is missing.
            let no_table = kind == Data && field == "table_offset";
            let requirement = if no_table { "F-030" } else { "F-033" };
            rows.push((name, requirement, damaged, spot, 0, flip(at), "in a footer"));
        }
    }
    rows
}

fn commit_rows() -> Vec<Row> {
    let damaged = "damaged";
    let end = CONTENT + CommitHead::LEN;
    vec![
        (
            "commit_content_hash",
            "F-040",
            damaged,
            Spot::CommitRaw,
            2,
            commit_resealed(end + 4, false),
            "one copy's content is another",
        ),
        (
            "commit_body_crc",
            "F-041",
            damaged,
            Spot::CommitRaw,
            2,
            flip(end + 4),
            "a byte of one copy",
        ),
        (
            "commit_second_body_crc",
            "F-041",
            damaged,
            Spot::CommitRaw,
            3,
            flip(end + 4),
            "a byte of the second copy",
        ),
        ("commit_reserved", "F-042", damaged, Spot::CommitHead, 0, flip(159), "not zero"),
        ("commit_manifest_len", "F-042", damaged, Spot::CommitHead, 0, flip(120), "one byte off"),
        (
            "commit_run_count",
            "F-042",
            damaged,
            Spot::CommitHead,
            0,
            set(116, &4097u32.to_le_bytes()),
            "one more than permitted",
        ),
        (
            "commit_number",
            "F-043",
            damaged,
            Spot::CommitHead,
            0,
            set(16, &[2]),
            "the first is number 2",
        ),
        (
            "commit_previous",
            "F-043",
            damaged,
            Spot::CommitHead,
            0,
            set(25, &[0x10]),
            "the first names one before",
        ),
        (
            "commit_log_start",
            "F-043",
            damaged,
            Spot::CommitHead,
            0,
            set(73, &[0x20]),
            "not where the one before ends",
        ),
        (
            "commit_previous_hash",
            "F-043",
            damaged,
            Spot::CommitHead,
            1,
            flip(40),
            "another hash than its predecessor's",
        ),
        ("commit_log_hash", "R-12", damaged, Spot::CommitHead, 0, flip(80), "another hash"),
        (
            "commit_segment_count",
            "R-12",
            damaged,
            Spot::CommitHead,
            0,
            flip(112),
            "one segment off",
        ),
        (
            "commit_second_copy",
            "F-045",
            damaged,
            Spot::CommitRaw,
            3,
            commit_resealed(end + 100, true),
            "whole, but it says something else",
        ),
        (
            "commit_run_len",
            "F-046",
            damaged,
            Spot::RunEntries,
            0,
            flip(9),
            "its length is not its pages'",
        ),
        (
            "commit_run_offset",
            "F-046",
            damaged,
            Spot::RunEntries,
            0,
            set(0, &[0; 8]),
            "before the log",
        ),
        (
            "commit_run_body_hash",
            "F-046",
            damaged,
            Spot::RunEntries,
            0,
            flip(48),
            "another hash than the run's",
        ),
        ("commit_padding", "F-047", damaged, Spot::CommitRaw, 2, flip_last(), "not zero"),
        ("manifest_json", "F-050", damaged, Spot::Manifest, 0, set(0, b"["), "not an object"),
        (
            "manifest_member_missing",
            "F-050",
            damaged,
            Spot::Manifest,
            0,
            replace("\"host\"", "\"hsot\""),
            "no host",
        ),
        ("manifest_no_volume", "F-051", damaged, Spot::Manifest, 0, no_volume(), "no volume"),
        (
            "manifest_name_empty",
            "F-051",
            damaged,
            Spot::Manifest,
            0,
            replace("\"name\":\"disk\"", "\"name\":\"\""),
            "a name of no bytes",
        ),
        (
            "manifest_chunk_size",
            "F-052",
            damaged,
            Spot::Manifest,
            0,
            replace("\"chunk_size\":4096", "\"chunk_size\":4097"),
            "no power of two",
        ),
        (
            "manifest_size_zero",
            "F-052",
            damaged,
            Spot::Manifest,
            0,
            replace("\"size\":20557", "\"size\":0"),
            "no bytes",
        ),
    ]
}

fn no_volume() -> Change {
    Box::new(|bytes| {
        let mut value: serde_json::Value = serde_json::from_slice(bytes).unwrap();
        value["volumes"] = serde_json::Value::Array(Vec::new());
        *bytes = serde_json::to_vec(&value).unwrap();
    })
}

fn index_rows() -> Vec<Row> {
    let damaged = "damaged";
    vec![
        ("page_magic", "F-060", damaged, Spot::Page, 1, flip(0), "another magic"),
        ("page_crc", "F-060", damaged, Spot::PageRaw, 1, flip(4), "a wrong checksum"),
        ("page_number", "F-061", damaged, Spot::Page, 1, flip(8), "another page's number"),
        (
            "page_kind",
            "F-061",
            damaged,
            Spot::Page,
            0,
            set(14, &[0]),
            "the first page is no filter",
        ),
        ("page_order", "F-062", damaged, Spot::Page, 1, swap_entries(), "two entries out of order"),
        ("page_flags", "F-064", damaged, Spot::Page, 1, set(14, &[4]), "a reserved flag"),
        ("page_rest", "F-064", damaged, Spot::Page, 1, flip_last(), "not zero behind the entries"),
        (
            "page_filter_reserved",
            "F-064",
            damaged,
            Spot::Page,
            0,
            flip(16),
            "not zero before the filters",
        ),
        ("page_count", "F-064", damaged, Spot::Page, 1, set(12, &[86]), "one more than permitted"),
        (
            "page_overflow",
            "F-064",
            damaged,
            Spot::Page,
            1,
            set(14, &[1]),
            "a page that is not full overflows",
        ),
        ("run_head_reserved", "F-064", damaged, Spot::RunHead, 0, flip(63), "not zero"),
        ("run_head_rest", "F-064", damaged, Spot::RunHead, 0, flip_last(), "not zero"),
        (
            "run_head_buckets",
            "F-064",
            damaged,
            Spot::RunHead,
            0,
            set(8, &[2]),
            "other buckets than the commit says",
        ),
        (
            "filter_empty",
            "F-065",
            damaged,
            Spot::Page,
            0,
            Box::new(|page| page[64..].fill(0)),
            "it lets no id through",
        ),
        ("entry_reserved", "F-066", damaged, Spot::Page, 1, flip(16 + 47), "not zero"),
        ("entry_kind", "F-066", damaged, Spot::Page, 1, set(16 + 46, &[5]), "kind 5"),
        (
            "entry_slot",
            "F-068",
            damaged,
            Spot::Page,
            1,
            flip(16 + 48 + 44),
            "another item of the frame",
        ),
        ("entry_frame", "F-066", damaged, Spot::Page, 1, flip(16 + 32), "not at a multiple of 64"),
        (
            "entry_frame_len",
            "F-066",
            damaged,
            Spot::Page,
            1,
            set(16 + 40, &1_060_929u32.to_le_bytes()),
            "one more than permitted",
        ),
    ]
}

/// The last of six children is gone, with its tag and its id.
fn one_child_less() -> Change {
    Box::new(|node| {
        node[6] -= 1;
        node[8] -= 1;
        node[16 + 5] = 0;
        node.truncate(node.len() - 32);
    })
}

fn swap_entries() -> Change {
    Box::new(|page| {
        let (first, second) = (page[16..64].to_vec(), page[64..112].to_vec());
        page[16..64].copy_from_slice(&second);
        page[64..112].copy_from_slice(&first);
    })
}

fn node_rows() -> Vec<Row> {
    let damaged = "damaged";
    vec![
        ("node_magic", "F-070", damaged, Spot::Node, 0, flip(0), "another magic"),
        ("node_reserved_a", "F-070", damaged, Spot::Node, 0, flip(5), "not zero"),
        ("node_reserved_b", "F-070", damaged, Spot::Node, 0, flip(15), "not zero"),
        (
            "node_level",
            "F-071",
            damaged,
            Spot::Node,
            0,
            set(4, &[1]),
            "level 1 where the shape has 0",
        ),
        (
            "node_level_limit",
            "F-071",
            damaged,
            Spot::Node,
            0,
            set(4, &[7]),
            "one more than permitted",
        ),
        (
            "node_count",
            "F-072",
            damaged,
            Spot::Node,
            0,
            one_child_less(),
            "a child less than the shape has",
        ),
        ("node_id_count", "F-072", damaged, Spot::Node, 0, set(8, &[7]), "more ids than children"),
        ("node_tag_unknown", "F-073", damaged, Spot::Node, 0, set(16, &[5]), "tag 5"),
        ("node_tag_zero", "F-073", damaged, Spot::Node, 0, set(16, &[0]), "tag 0"),
        ("node_padding", "F-074", damaged, Spot::Node, 0, flip(16 + 7), "not zero behind the tags"),
        (
            "node_len",
            "F-074",
            damaged,
            Spot::Node,
            0,
            Box::new(|node| node.push(0)),
            "a byte too long",
        ),
        (
            "node_id_unused",
            "F-074",
            damaged,
            Spot::Node,
            0,
            set(16, &[2]),
            "an id that no child has",
        ),
    ]
}

/// Those that need another archive than the usual one.
fn peculiar() -> Vec<Vector> {
    let mut all = Vec::new();
    let sound = Forge::sound().bytes;
    all.push(reject(
        "file_other",
        "F-001",
        "not-an-archive",
        "a text",
        b"This is no archive, and it never was one.\n".repeat(200),
        vec![],
    ));
    let cut = sound[..511].to_vec();
    all.push(reject("header_cut", "F-001", "damaged", "511 bytes", cut, vec![]));

    let mut forge = Forge::sound();
    let (frames, manifest) = forge.prepare(&[first_disk()], &[]);
    forge.segment(&frames);
    forge.unknown(false, b"what is this");
    forge.run();
    forge.commit(Some(&manifest));
    let (reason, disks) = ("a record of kind 77 without IGNORABLE", vec![vec![first_disk()]]);
    all.push(reject("record_kind_unknown", "F-015", "unsupported", reason, forge.bytes, disks));

    // 130 items in three buckets; run head and commit say two.
    let files: Vec<(String, Vec<u8>)> =
        (0..130u8).map(|number| (format!("file {number}"), vec![number; 9])).collect();
    let files: Vec<(&str, &[u8])> =
        files.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice())).collect();
    let mut forge = Forge::new(Box::new(|spot, _, bytes| match spot {
        Spot::RunHead => bytes[8] -= 1,
        Spot::RunEntries => bytes[24] -= 1,
        _ => {}
    }));
    forge.snapshot(&[first_disk()], &files);
    let reason = "entries in slots where no look-up finds them";
    let (bytes, disks) = (std::mem::take(&mut forge.bytes), vec![vec![first_disk()]]);
    drop(forge);
    all.push(reject("run_buckets", "F-063", "damaged", reason, bytes, disks));

    let mut states = vec![State::Zero; 300];
    states[1] = State::Data(vec![8; 4096]);
    let disk = Disk { size: 300 * 4096, chunks: states, ..first_disk() };
    let mut forge = Forge::new(Box::new(|spot, number, bytes| {
        // The node of level 0 says of its only chunk of data that it is zero.
        if spot == Spot::Node && number == 0 {
            bytes[8..10].fill(0);
            bytes[17] = 2;
            bytes.truncate(16 + 256);
        }
    }));
    let (frames, mut manifest) = forge.prepare(std::slice::from_ref(&disk), &[]);
    let root = frames.last().unwrap().last().unwrap().clone();
    let (frames, root) = crate::forge::renamed(&forge, frames, &root);
    manifest.volumes[0].root = root;
    forge.segment(&frames);
    forge.run();
    forge.commit(Some(&manifest));
    let bytes = std::mem::take(&mut forge.bytes);
    drop(forge);
    let reason = "a node below the root that is zero throughout";
    all.push(reject("node_not_canonical", "F-075", "damaged", reason, bytes, vec![]));

    // A packed payload of another length than its head says.
    let mut forge = Forge::new(Box::new(|spot, number, bytes| {
        if spot == Spot::Payload && number == 1 {
            *bytes = pack(&[7; 1000]);
        }
    }));
    forge.packs = true;
    forge.snapshot(&[first_disk()], &[]);
    let bytes = std::mem::take(&mut forge.bytes);
    drop(forge);
    let disks = vec![vec![first_disk()]];
    all.push(reject(
        "frame_decoded_len",
        "F-028",
        "damaged",
        "it decodes to fewer bytes",
        bytes,
        disks,
    ));

    let mut forge = Forge::sound();
    let (frames, manifest) = forge.prepare(&[first_disk()], &[]);
    forge.segment(&frames);
    forge.forget_a_chunk();
    forge.run();
    forge.commit(Some(&manifest));
    let reason = "no run holds one of its chunks";
    let disks = vec![vec![first_disk()]];
    all.push(reject("run_entry_missing", "F-067", "damaged", reason, forge.bytes, disks));
    all
}
