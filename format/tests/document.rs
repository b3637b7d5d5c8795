//! Holds `FORMAT.md` to the code: tables of fields, numbers, names, contexts, requirement ids and
//! the worked dump.
#![allow(clippy::unwrap_used, reason = "a document that cannot be parsed fails its test")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use voltar_format::checksum;
use voltar_format::features::{COMPATIBLE, FORMAT_VERSION, Feature, INCOMPATIBLE};
use voltar_format::frame::{self, ChunkEntry, Codec, ItemKind};
use voltar_format::header::Header;
use voltar_format::layout::STRUCTURES;
use voltar_format::record::RecordKind;
use voltar_format::{ArchiveId, index, limits, map};

const DOCUMENT: &str = include_str!("../FORMAT.md");
const THIS_FILE: &str = "document.rs";

/// The cells of a table's row, without the backticks around them; `None` for any other line.
fn cells(line: &str) -> Option<Vec<&str>> {
    let row = line.strip_prefix('|')?.trim_end().strip_suffix('|')?;
    let trimmed = row.split('|').map(|cell| cell.trim().trim_matches('`'));
    Some(trimmed.collect())
}

/// The rows of all tables whose header line starts with these cells, header and rule left out.
fn tables(header: &[&str]) -> Vec<Vec<&'static str>> {
    let mut rows = Vec::new();
    let mut inside = false;
    for line in DOCUMENT.lines() {
        match cells(line) {
            None => inside = false,
            Some(row) if row.starts_with(header) => inside = true,
            Some(row) if inside && !row[0].starts_with('-') => rows.push(row),
            Some(_) => {}
        }
    }
    rows
}

/// The Rust files below a folder, which is named as seen from the crate.
fn sources(folder: &str) -> Vec<(PathBuf, String)> {
    // Where cargo runs the test, not where it built it: copies may share a target folder.
    let package = std::env::var_os("CARGO_MANIFEST_DIR").unwrap();
    let mut files = Vec::new();
    collect(&Path::new(&package).join(folder), &mut files);
    files.sort();
    let read = |path: PathBuf| {
        let text = fs::read_to_string(&path).unwrap();
        (path, text)
    };
    files.into_iter().map(read).collect()
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    // A folder that is not there has no files: not every member has tests of its own.
    for entry in fs::read_dir(folder).into_iter().flatten() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => collect(&path, files),
            false if path.extension().is_some_and(|ext| ext == "rs") => files.push(path),
            false => {}
        }
    }
}

/// The numbers behind each `prefix` in `text`, where exactly `digits` digits follow it.
fn numbers(text: &str, prefix: &str, digits: usize) -> Vec<u32> {
    text.match_indices(prefix)
        .filter_map(|(at, _)| {
            let rest = &text[at + prefix.len()..];
            let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
            (end == digits).then(|| rest[..end].parse().unwrap())
        })
        .collect()
}

/// The ids in a test's name: `f_020_…`, `f_010_f_011_…`, and ranges `f_020_to_f_026_…`.
fn ids_in_test_names(text: &str, known: &BTreeSet<u32>) -> BTreeSet<u32> {
    let mut ids = BTreeSet::new();
    for line in text.lines() {
        let Some(name) = line.trim_start().strip_prefix("fn f_") else {
            continue;
        };
        let name = format!("f_{name}");
        ids.extend(numbers(&name, "f_", 3));
        for (at, _) in name.match_indices("_to_f_") {
            let first: u32 = name[at - 3..at].parse().unwrap();
            let last: u32 = name[at + 6..at + 9].parse().unwrap();
            ids.extend(known.range(first..=last));
        }
    }
    ids
}

fn as_ids(numbers: impl IntoIterator<Item = u32>) -> Vec<String> {
    let id = |number| format!("F-{number:03}");
    numbers.into_iter().map(id).collect()
}

#[test]
fn tables_of_fields_equal_the_code() {
    let mut documented: BTreeMap<&str, (usize, Vec<Vec<&str>>)> = BTreeMap::new();
    let mut order = Vec::new();
    let mut lines = DOCUMENT.lines();
    while let Some(line) = lines.next() {
        let Some(rest) = line.strip_prefix("**Fields** of `") else {
            continue;
        };
        let (name, rest) = rest.split_once("`, ").unwrap();
        let len = rest.strip_suffix(" bytes:").unwrap().parse().unwrap();
        let rows = lines.by_ref().skip(1).map_while(cells).skip(2).collect();
        assert!(documented.insert(name, (len, rows)).is_none(), "{name} twice");
        order.push(name);
    }
    let names: Vec<&str> = STRUCTURES.iter().map(|structure| structure.name).collect();
    assert_eq!(order.len(), names.len(), "{order:?} against {names:?}");
    for structure in STRUCTURES {
        let (len, rows) = &documented[structure.name];
        assert_eq!(*len, structure.len, "{}", structure.name);
        let expected: Vec<Vec<String>> = structure
            .fields
            .iter()
            .map(|f| {
                let (offset, len) = (f.offset.to_string(), f.len.to_string());
                vec![offset, len, f.name.into(), f.kind.into()]
            })
            .collect();
        let found: Vec<Vec<String>> = rows
            .iter()
            .map(|row| row[..4].iter().map(|cell| (*cell).to_owned()).collect())
            .collect();
        assert_eq!(found, expected, "{}", structure.name);
    }
}

#[test]
fn magic_bytes_equal_the_code() {
    let magics: [(&str, &[u8]); 7] = [
        ("HeaderFields", &voltar_format::header::MAGIC),
        ("RecordHead", &voltar_format::record::RECORD_MAGIC),
        ("FrameHead", &voltar_format::frame::FRAME_MAGIC),
        ("TableHead", &voltar_format::segment::TABLE_MAGIC),
        ("Footer", &voltar_format::segment::FOOTER_MAGIC),
        ("NodeHead", &map::NODE_MAGIC),
        ("PageHead", &index::PAGE_MAGIC),
    ];
    for (name, magic) in magics {
        let start = DOCUMENT.find(&format!("**Fields** of `{name}`")).unwrap();
        let row = DOCUMENT[start..].lines().filter_map(cells).find(|row| row[2] == "magic");
        let hex: Vec<String> = magic.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(row.unwrap()[4], hex.join(" "), "{name}");
    }
}

#[test]
fn limits_equal_the_code() {
    macro_rules! constants {
        ($module:ident: $($name:ident)*) => {
            [$((stringify!($name), u64::try_from($module::$name).unwrap())),*]
        };
    }
    let code: BTreeMap<&str, u64> = constants!(limits:
        BLOCK_LEN FRAME_ALIGN CHUNK_LEN_MIN CHUNK_LEN_MAX CHUNK_LEN_DEFAULT FRAME_RAW_LEN_MAX
        FRAME_CHUNKS_MAX FRAME_STORED_LEN_MAX SEGMENT_LEN_TARGET SEGMENT_LEN_MAX SEGMENT_CHUNKS_MAX
        MAP_FANOUT MAP_LEVEL_MAX VOLUME_LEN_MAX RUNS_MAX MANIFEST_LEN_MAX VOLUMES_MAX NAME_LEN_MAX
        ATTACHED_LEN_MAX ATTACHED_MAX UNREADABLE_MAX COMMIT_LEN_MAX RUN_ENTRIES_MAX)
    .into();
    let parse = |rows: Vec<Vec<&'static str>>| -> BTreeMap<&str, u64> {
        rows.into_iter().map(|row| (row[0], row[1].parse().unwrap())).collect()
    };
    assert_eq!(parse(tables(&["Limit", "Value"])), code);
    let declared: BTreeSet<&str> = include_str!("../src/limits.rs")
        .lines()
        .filter_map(|line| line.strip_prefix("pub const "))
        .filter_map(|rest| rest.split(':').next())
        .collect();
    assert_eq!(declared, code.into_keys().collect());

    let numbers: BTreeMap<&str, u64> = [
        ("NODE_LEN_MAX", map::NODE_LEN_MAX as u64),
        ("PAGE_ENTRIES", index::PAGE_ENTRIES as u64),
        ("BUCKET_FILL", index::BUCKET_FILL),
        ("GROUP_SLOTS", index::GROUP_SLOTS),
        ("FILTER_BLOCK_LEN", index::FILTER_BLOCK_LEN as u64),
        ("FILTER_PROBES", index::FILTER_PROBES.into()),
    ]
    .into();
    assert_eq!(parse(tables(&["Number", "Value"])), numbers);
}

#[test]
fn versions_features_and_kinds_equal_the_code() {
    assert!(DOCUMENT.contains(&format!("\nFormat version {FORMAT_VERSION}.\n")));
    let newest = tables(&["Version", "Change"]).pop().unwrap();
    assert_eq!(newest[0], FORMAT_VERSION.to_string());
    let feature = |mask: &str, feature: &Feature| {
        [mask.to_owned(), feature.bit.to_string(), feature.name.to_owned()]
    };
    let incompatible = INCOMPATIBLE.iter().map(|f| feature("incompatible", f));
    let expected: Vec<[String; 3]> =
        incompatible.chain(COMPATIBLE.iter().map(|f| feature("compatible", f))).collect();
    let found: Vec<[String; 3]> = tables(&["Mask", "Bit", "Name"])
        .into_iter()
        .map(|row| [row[0].into(), row[1].into(), row[2].into()])
        .collect();
    assert_eq!(found, expected);
    // The kinds as the cards have them: "1 data segment, 2 index run, 3 commit" and so on.
    let kinds = [RecordKind::Data, RecordKind::Index, RecordKind::Commit].map(|kind| kind as u8);
    assert_eq!(kinds, [1, 2, 3]);
    assert_eq!([Codec::Store, Codec::Zstd].map(|codec| codec as u8), [1, 2]);
    let items = [ItemKind::Chunk, ItemKind::Node, ItemKind::Attached, ItemKind::Note];
    assert_eq!(items.map(|kind| kind as u8), [1, 2, 3, 4]);
    for number in [0, 4, 255] {
        assert_eq!(RecordKind::from_number(number), None);
    }
    assert_eq!((Codec::from_number(0), Codec::from_number(3)), (None, None));
    assert_eq!((ItemKind::from_number(0), ItemKind::from_number(5)), (None, None));
}

#[test]
fn contexts_equal_the_code() {
    let contexts: Vec<&str> = tables(&["Use", "Context"])
        .into_iter()
        .filter_map(|row| row[1].strip_prefix('"')?.strip_suffix('"'))
        .collect();
    let derived = |context: &str| {
        let mut hasher = blake3::Hasher::new_derive_key(context);
        hasher.update(b"bytes that stand for any");
        *hasher.finalize().as_bytes()
    };
    let bytes = b"bytes that stand for any";
    assert_eq!(checksum::chunk_id(bytes).0, *blake3::hash(bytes).as_bytes());
    assert_eq!(contexts.len(), 5);
    assert_eq!(checksum::node_id(bytes).0, derived(contexts[0]));
    assert_eq!(checksum::body_hash(&[bytes]).0, derived(contexts[1]));
    let mut log = blake3::Hasher::new_derive_key(contexts[2]);
    let hashes = [checksum::chunk_id(b"1"), checksum::chunk_id(b"2")];
    hashes.iter().for_each(|hash| {
        log.update(&hash.0);
    });
    assert_eq!(checksum::log_hash(&hashes).0, *log.finalize().as_bytes());
    assert_eq!(checksum::commit_hash(bytes).0, derived(contexts[3]));
    assert_eq!(checksum::snapshot_id(bytes).0[..], derived(contexts[4])[..16]);
}

#[test]
fn glossary_words_are_type_names() {
    let all: String = sources("src").into_iter().map(|(_, text)| text).collect();
    let rows = tables(&["Word", "Type"]);
    assert!(rows.len() > 20);
    for row in rows {
        let name = row[1];
        let is_declared = ["struct", "enum"].iter().any(|word| {
            all.match_indices(&format!("pub {word} {name}"))
                .any(|(at, found)| !all[at + found.len()..].starts_with(char::is_alphanumeric))
        }) || all.contains(&format!("    {name}, ")); // made by the macro `identifier!`
        assert!(is_declared, "{name} of the glossary is no type of the crate");
    }
}

/// Where requirements are checked: this crate, and the engine for those that need more than bytes.
const CHECKED_IN: [&str; 2] = ["src", "../engine/src"];
/// Where they are tested besides the test modules in these folders.
const TESTED_IN: [&str; 3] = ["tests", "../engine/tests", "../tests/tests"];

/// A file's text without its test module, and the test module.
fn halves(text: &str) -> (&str, &str) {
    text.split_once("#[cfg(test)]\nmod tests").unwrap_or((text, ""))
}

#[test]
fn requirements_are_defined_once_used_and_tested() {
    let defined = numbers(DOCUMENT, "**F-", 3);
    let document: BTreeSet<u32> = numbers(DOCUMENT, "F-", 3).into_iter().collect();
    let unique: BTreeSet<u32> = defined.iter().copied().collect();
    assert_eq!(defined.len(), unique.len(), "an id is defined twice");

    let checking: Vec<(PathBuf, String)> = CHECKED_IN.into_iter().flat_map(sources).collect();
    assert!(checking.iter().any(|(path, _)| path.ends_with("engine/src/codec.rs")));
    let testing: Vec<(PathBuf, String)> = TESTED_IN.into_iter().flat_map(sources).collect();
    let whole_files = testing.iter().filter(|(path, _)| !path.ends_with(THIS_FILE));
    let tests: Vec<&str> = (checking.iter().map(|(_, text)| halves(text).1))
        .chain(whole_files.map(|(_, text)| text.as_str()))
        .collect();
    let mut code = BTreeSet::new();
    for (_, text) in &checking {
        code.extend(numbers(halves(text).0, "F-", 3));
    }
    let mut mentioned = code.clone();
    let mut tested = BTreeSet::new();
    for text in tests {
        mentioned.extend(numbers(text, "F-", 3));
        tested.extend(numbers(text, "\"F-", 3));
        tested.extend(ids_in_test_names(text, &unique));
    }
    mentioned.extend(&tested);
    let orphans = |a: &BTreeSet<u32>, b: &BTreeSet<u32>| as_ids(a.difference(b).copied());
    let none: Vec<String> = Vec::new();
    assert_eq!(orphans(&mentioned, &unique), none, "in the code, not defined in FORMAT.md");
    assert_eq!(orphans(&document, &unique), none, "mentioned in FORMAT.md, not defined there");
    assert_eq!(orphans(&unique, &code), none, "in FORMAT.md, not in the code");
    assert_eq!(orphans(&unique, &tested), none, "in FORMAT.md, in no test");
}

/// All ids in bold, in the order of the document.
fn definitions() -> Vec<&'static str> {
    DOCUMENT
        .match_indices("**")
        .filter_map(|(at, _)| DOCUMENT[at + 2..].split_once("**"))
        .map(|(id, _)| id)
        .filter(|id| is_id(id))
        .collect()
}

fn is_id(text: &str) -> bool {
    let number = ["F-", "W-", "R-", "T-"].iter().find_map(|letter| text.strip_prefix(letter));
    number.is_some_and(|number| !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()))
}

#[test]
fn index_lists_every_definition() {
    let index: Vec<&str> = tables(&["Id", "Section"]).into_iter().map(|row| row[0]).collect();
    let mut definitions = definitions();
    assert!(definitions.len() > 80);
    definitions.sort_unstable();
    let mut sorted = index.clone();
    sorted.sort_unstable();
    assert_eq!(sorted, definitions);
    // Sections: the nearest numbered heading above the definition.
    for row in tables(&["Id", "Section"]) {
        let at = DOCUMENT.find(&format!("**{}**", row[0])).unwrap();
        let heading = DOCUMENT[..at].lines().rfind(|line| {
            line.strip_prefix("##").is_some_and(|line| {
                line.trim_start_matches('#').trim_start().starts_with(|c: char| c.is_ascii_digit())
            })
        });
        let number = heading.unwrap().split_whitespace().nth(1).unwrap();
        assert_eq!(number, row[1], "section of {}", row[0]);
    }
}

#[test]
fn every_must_belongs_to_a_requirement() {
    let body = DOCUMENT.split_once("\n## 5 ").unwrap().1;
    let mut block = String::new();
    let mut fenced = false;
    let check = |block: &str| {
        let is_named = definitions().iter().any(|id| block.contains(&format!("**{id}**")));
        assert!(!block.contains("MUST") || is_named, "a MUST without an id:\n{block}");
    };
    for line in body.lines() {
        fenced ^= line.starts_with("```");
        let item = line.trim_start().starts_with("- ") || line.starts_with('|');
        if line.is_empty() || item || fenced {
            check(&block);
            block.clear();
        }
        block.push_str(line);
        block.push('\n');
    }
    check(&block);
}

/// `bytes` as the document prints them, `from` being the offset of the first.
fn dump(bytes: &[u8], from: usize) -> String {
    let mut text = String::new();
    for (line, offset) in bytes.chunks(16).zip((from..).step_by(16)) {
        let hex: Vec<String> = line.iter().map(|byte| format!("{byte:02x}")).collect();
        let plain: String = line
            .iter()
            .map(|byte| match byte {
                0x20..=0x7e => char::from(*byte),
                _ => '.',
            })
            .collect();
        let (left, right) = hex.split_at(hex.len().min(8));
        text.push_str(&format!("{offset:04x}  {}  {}  {plain}\n", left.join(" "), right.join(" ")));
    }
    text
}

fn printed(name: &str) -> &'static str {
    let fence = format!("```hexdump {name}\n");
    let from = DOCUMENT.find(&fence).unwrap() + fence.len();
    let len = DOCUMENT[from..].find("```").unwrap();
    &DOCUMENT[from..from + len]
}

fn example_frame() -> Vec<u8> {
    let chunk = b"voltar: go back\n";
    let entry = ChunkEntry::new(ItemKind::Chunk, checksum::chunk_id(chunk), 3, chunk.len());
    frame::encode(Codec::Store, &[entry], chunk)
}

#[test]
fn worked_dump_equals_the_encoders() {
    let id = std::array::from_fn(|at| at as u8);
    let header = Header::new(ArchiveId(id), 1_700_000_000_000_000_000).encode();
    let cases = [
        ("header", dump(&header[..64], 0)),
        ("header-crc", dump(&header[496..512], 496)),
        ("frame", dump(&example_frame(), 0)),
    ];
    let wrong: Vec<String> = cases
        .iter()
        .filter(|(name, expected)| printed(name) != expected)
        .map(|(name, expected)| format!("```hexdump {name}\n{expected}```"))
        .collect();
    assert!(wrong.is_empty(), "dumps should be:\n{}", wrong.join("\n"));
}
