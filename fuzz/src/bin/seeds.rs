//! Writes the seed corpora that are missing: `seeds [DIRECTORY]`, by default `seeds` beside the
//! manifest. What is there is left as it is.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use voltar_engine::options::Compression;
use voltar_format::limits::BLOCK_LEN;
use voltar_format::manifest::{Note, NoteVolume};
use voltar_fuzz::checks::{back_up, context, home, request};
use voltar_fuzz::whole::{BASE, INTERRUPTED, content};
use voltar_fuzz::wire::{u16_at, u32_at, u64_at};

fn main() -> std::io::Result<()> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds");
    let root = std::env::args_os().nth(1).map_or(here, PathBuf::from);
    let known = RefCell::new(BTreeSet::new());
    let seed = |target: &str, name: &str, bytes: &[u8]| -> std::io::Result<()> {
        let path = root.join(target).join(name);
        let is_new = known.borrow_mut().insert((target.to_owned(), bytes.to_vec()));
        if path.exists() || !is_new {
            return Ok(());
        }
        fs::create_dir_all(root.join(target))?;
        println!("{}: {} bytes", path.display(), bytes.len());
        fs::write(path, bytes)
    };
    structures(&BASE, "forged", &seed)?;
    archives(&seed)?;
    zfs_streams(&seed)?;
    for (target, count) in [("repaired", 4u8), ("forged", 4), ("resume", 4), ("model", 4)] {
        for number in 0..count {
            seed(target, &format!("script-{number}"), &script(number))?;
        }
    }
    Ok(())
}

type Seed<'a> = &'a dyn Fn(&str, &str, &[u8]) -> std::io::Result<()>;

/// Bytes that make a script take all turns.
fn script(number: u8) -> Vec<u8> {
    let step = |at: u32| at.wrapping_mul(2_654_435_761).rotate_left(u32::from(number) * 5) >> 24;
    (0..200 + u32::from(number) * 100).map(|at| step(at + 1000 * u32::from(number)) as u8).collect()
}

/// Streams of real volumes, as long as an input may be, and those that are refused.
fn zfs_streams(seed: Seed<'_>) -> std::io::Result<()> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../engine/tests/zfs_streams");
    for line in fs::read_to_string(folder.join("list"))?.lines() {
        let mut words = line.split(' ');
        let name = words.next().unwrap_or_default();
        let size = words.next_back().and_then(|word| word.parse::<u64>().ok()).unwrap_or_default();
        let mut bytes = Vec::with_capacity(2 << 20);
        let packed = fs::read(folder.join(format!("{name}.stream.zst")))?;
        zstd_safe::decompress(&mut bytes, &packed).map_err(|_| std::io::ErrorKind::InvalidData)?;
        if bytes.len() <= INPUT_LEN_MAX {
            seed("zfs_stream", name, &[&size.to_le_bytes(), &bytes[..]].concat())?;
        }
    }
    Ok(())
}

/// Longer ones are not worth their time: `smoke.sh` lets none grow longer than this either.
const INPUT_LEN_MAX: usize = 60_000;

/// Archives as the program writes them.
fn archives(seed: Seed<'_>) -> std::io::Result<()> {
    seed("archive", "empty", &[])?;
    seed("archive", "three", &BASE)?;
    seed("archive", "interrupted", &INTERRUPTED.0)?;
    let home = home(&[]);
    let mut disk = content(70_000, 3);
    for (number, compression) in [Compression::Zstd(1), Compression::Store].into_iter().enumerate()
    {
        let volumes: [(&str, &[u8]); 2] = [("disk", &disk), ("other", &[0; 5000])];
        back_up(&home, &volumes, &request(Some(4096), compression), &context(u64::MAX))
            .map_err(std::io::Error::other)?;
        if number == 0 {
            seed("archive", "backup-1", &home.bytes())?;
        }
        disk[40_000..50_000].fill(0);
    }
    let bytes = home.bytes();
    seed("archive", "backup-2", &bytes)?;
    seed("archive", "cut", &bytes[..bytes.len() - BLOCK_LEN])?;
    structures(&bytes, "backup", seed)
}

/// The structures of an archive, one by one.
fn structures(bytes: &[u8], from: &str, seed: Seed<'_>) -> std::io::Result<()> {
    seed("header", from, &bytes[..512])?;
    for at in (0..bytes.len()).step_by(64) {
        let rest = &bytes[at..];
        let name = format!("{from}-{at:x}");
        if rest.starts_with(b"VOLTREC\x01") {
            seed("record", &name, &rest[..128])?;
            match rest[8] {
                2 => pages(rest, &name, seed)?,
                3 => {
                    let len = (u64_at(rest, 80) as usize).next_multiple_of(BLOCK_LEN);
                    seed("commit", &name, &rest[..len])?;
                    let from = 128 + 192 + u32_at(rest, 128 + 148) as usize * 80;
                    let manifest_len = u32_at(rest, 128 + 152) as usize;
                    seed("manifest", &name, &rest[from..from + manifest_len])?;
                }
                _ => {}
            }
        } else if rest.starts_with(b"VFRM") {
            seed("frame", &name, &rest[..u32_at(rest, 8) as usize])?;
            items(rest, &name, seed)?;
        } else if rest.starts_with(b"VTAB") {
            let end = (at + 64).next_multiple_of(BLOCK_LEN) - at;
            let end = (0..).map(|n| end + n * BLOCK_LEN).find(|end| is_footer(rest, *end));
            seed("table", &name, &rest[..end.unwrap_or(64)])?;
        }
    }
    Ok(())
}

fn is_footer(bytes: &[u8], end: usize) -> bool {
    end > bytes.len() || bytes[end - 128..].starts_with(b"VOLTEND\x01")
}

fn pages(run: &[u8], name: &str, seed: Seed<'_>) -> std::io::Result<()> {
    let pages = run.chunks(BLOCK_LEN).skip(1).take_while(|page| page.starts_with(b"VIDX"));
    let buckets = (u64_at(run, 136) as u16).to_le_bytes();
    seed("page", name, &[&buckets, pages.collect::<Vec<_>>().concat().as_slice()].concat())
}

/// Nodes and notes of a stored frame.
fn items(frame: &[u8], name: &str, seed: Seed<'_>) -> std::io::Result<()> {
    if frame[4] != 1 {
        return Ok(());
    }
    let count = usize::from(u16_at(frame, 6));
    let mut at = 64 + 48 * count;
    for item in 0..count {
        let entry = 64 + 48 * item;
        let len = u32_at(frame, entry + 40) as usize;
        let target = match frame[entry + 46] {
            2 => Some("node"),
            4 => Some("note"),
            _ => None,
        };
        if let Some(target) = target {
            seed(target, &format!("{name}-{item}"), &frame[at..at + len])?;
        }
        at += len;
    }
    let volumes = vec![NoteVolume { name: "disk".into(), size: 1 << 60, chunk_size: 65536 }];
    let note = Note { time_ns: -1, host: "ä".into(), program: String::new(), volumes };
    seed("note", "odd", &serde_json::to_vec(&note).map_err(std::io::Error::other)?)
}
