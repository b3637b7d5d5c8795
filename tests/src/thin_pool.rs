//! Metadata of thin pools in files, made by `thin_restore`, and what `thin_delta` says of it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use voltar_engine::source::thin_metadata::{BLOCK_LEN, Block, Difference, MetadataBlocks};

/// Ranges of thin blocks and in which way they differ.
pub type Differences = Vec<(Range<u64>, Difference)>;

/// A thin device: thin block to data block.
pub type Map = BTreeMap<u64, u64>;

/// The blocks of metadata in a file.
#[derive(Debug)]
pub struct MetadataFile(pub File);

impl MetadataBlocks for MetadataFile {
    fn read(&self, number: u64, bytes: &mut Block) -> io::Result<()> {
        self.0.read_exact_at(bytes, number * BLOCK_LEN as u64)
    }
}

/// Makes metadata of a pool with these devices (ids from 1 on), in blocks of 64 KiB, in a file of
/// `blocks` blocks at `path`; `xml` is a file for the way there.
///
/// # Panics
/// If the tool fails.
pub fn restore(devices: &[Map], path: &Path, blocks: u64, xml: &Path) {
    let data_blocks = devices.iter().flat_map(Map::values).max().map_or(1, |last| last + 1);
    let mut text = format!(
        "<superblock uuid=\"\" time=\"1\" transaction=\"2\" data_block_size=\"128\" \
         nr_data_blocks=\"{data_blocks}\">\n"
    );
    for (id, map) in (1..).zip(devices) {
        let _ = writeln!(
            text,
            "<device dev_id=\"{id}\" mapped_blocks=\"{}\" transaction=\"{id}\" \
             creation_time=\"{id}\" snap_time=\"1\">",
            map.len()
        );
        for (thin, data) in runs(map) {
            let (begin, length) = (thin.start, thin.end - thin.start);
            let _ = match length {
                1 => writeln!(
                    text,
                    "<single_mapping origin_block=\"{begin}\" data_block=\"{data}\" time=\"0\"/>"
                ),
                _ => writeln!(
                    text,
                    "<range_mapping origin_begin=\"{begin}\" data_begin=\"{data}\" \
                     length=\"{length}\" time=\"0\"/>"
                ),
            };
        }
        text.push_str("</device>\n");
    }
    text.push_str("</superblock>\n");
    std::fs::write(xml, text).unwrap();
    File::create(path).and_then(|file| file.set_len(blocks * BLOCK_LEN as u64)).unwrap();
    run(Command::new("thin_restore").arg("-i").arg(xml).arg("-o").arg(path));
}

/// Mappings that follow one another on both sides.
fn runs(map: &Map) -> Vec<(Range<u64>, u64)> {
    let mut runs: Vec<(Range<u64>, u64)> = Vec::new();
    for (&thin, &data) in map {
        match runs.last_mut() {
            Some((range, begin)) if range.end == thin && *begin + (thin - range.start) == data => {
                range.end += 1;
            }
            _ => runs.push((thin..thin + 1, data)),
        }
    }
    runs
}

/// What `thin_delta` says of two devices: ascending, each range as long as can be.
///
/// # Panics
/// If the tool fails, or says something else than was expected.
pub fn delta(path: &Path, old: u32, new: u32) -> Differences {
    let answer = run(Command::new("thin_delta")
        .args(["--thin1", &old.to_string(), "--thin2", &new.to_string()])
        .arg(path));
    let mut differences = Vec::new();
    for line in answer.lines() {
        let Some(element) = line.trim().strip_prefix('<') else { continue };
        let difference = match element.split(' ').next() {
            Some("different") => Difference::Remapped,
            Some("right_only") => Difference::Mapped,
            Some("left_only") => Difference::Unmapped,
            _ => continue,
        };
        let begin = attribute(element, "begin");
        push(&mut differences, begin..begin + attribute(element, "length"), difference);
    }
    differences
}

/// Adds a range, to the last one if it continues that.
pub fn push(differences: &mut Differences, range: Range<u64>, difference: Difference) {
    match differences.last_mut() {
        Some((last, same)) if *same == difference && last.end == range.start => {
            last.end = range.end;
        }
        _ => differences.push((range, difference)),
    }
}

fn attribute(element: &str, name: &str) -> u64 {
    let (_, rest) = element.split_once(&format!("{name}=\"")).expect(element);
    rest.split('"').next().and_then(|number| number.parse().ok()).expect(element)
}

fn run(command: &mut Command) -> String {
    let output = command.output().expect("the thin provisioning tools are installed");
    let complaints = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}\n{complaints}", output.status);
    String::from_utf8(output.stdout).expect("an answer in ASCII")
}
