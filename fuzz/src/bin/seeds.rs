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
use voltar_fuzz::nbd::{LENGTHS, OFFSET, PARTS};
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
    nbd_links(&seed)?;
    nbd_handshakes(&seed)?;
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

/// A number as NBD has it.
macro_rules! big {
    ($($number:expr),*) => { [$(&$number.to_be_bytes()[..]),*].concat() };
}

/// What an honest server answers to the requests of the target, in each form of replies.
fn nbd_links(seed: Seed<'_>) -> std::io::Result<()> {
    let (others, cut) = (6u64..=9, 37);
    let data = |len: usize| vec![0x5a; len];
    let mut simple = Vec::new();
    for (cookie, len) in (1u64..).zip(LENGTHS) {
        simple.extend([big!(0x6744_6698u32, 0u32, cookie), data(len)].concat());
    }
    for (cookie, (_, len)) in (11u64..).zip(PARTS) {
        simple.extend([big!(0x6744_6698u32, 0u32, cookie), data(len)].concat());
    }
    simple.extend(others.clone().flat_map(|cookie| big!(0x6744_6698u32, 5u32, cookie)));
    seed("nbd_link", "simple", &[&[255], &simple[..]].concat())?;
    for (name, is_extended) in [("structured", false), ("extended", true)] {
        let chunk_of = |offset: u64, cookie: u64, flags: u16, kind: u16, body: &[u8]| {
            let len = body.len();
            let head = match is_extended {
                true => big!(0x6e8a_278cu32, flags, kind, cookie, offset, len as u64),
                false => big!(0x668e_33efu32, flags, kind, cookie, len as u32),
            };
            [&head, body].concat()
        };
        let chunk = |cookie, flags, kind, body: &[u8]| chunk_of(OFFSET, cookie, flags, kind, body);
        let mut bytes = Vec::new();
        for (cookie, (offset, len)) in (11u64..).zip(PARTS) {
            let body = [big!(offset), data(len)].concat();
            bytes.extend(chunk_of(offset, cookie, 1, 1, &body));
        }
        for (cookie, len) in (1u64..).zip(LENGTHS) {
            let rest = len - len / 2;
            bytes.extend(chunk(cookie, 0, 1, &[big!(OFFSET), data(rest)].concat()));
            if len > 1 {
                let hole = big!(OFFSET + rest as u64, (len / 2) as u32);
                bytes.extend(chunk(cookie, 0, 2, &hole));
            }
            bytes.extend(chunk(cookie, 1, 0, &[]));
        }
        for cookie in [4u64, 5] {
            let body = match is_extended {
                true => big!(1u32, 2u32, 65536u64, 0u64, 1u64 << 40, 3u64),
                false => big!(1u32, 65536u32, 0u32, 1u32 << 20, 3u32),
            };
            bytes.extend(chunk(cookie, 1, if is_extended { 6 } else { 5 }, &body));
        }
        let error = [big!(28u32, 4u16), b"full".to_vec()].concat();
        bytes.extend(chunk(6, 1, 0x8001, &error));
        bytes.extend(chunk(7, 1, 0x8002, &[&error[..], &big!(OFFSET)].concat()));
        bytes.extend([8, 9].into_iter().flat_map(|cookie| chunk(cookie, 1, 0, &[])));
        seed("nbd_link", name, &[&[255], &bytes[..]].concat())?;
        seed(
            "nbd_link",
            &format!("{name}-in-pieces"),
            &[&[6], &bytes[..bytes.len() - cut]].concat(),
        )?;
    }
    Ok(())
}

/// Handshakes with honest servers, up to the transmission.
fn nbd_handshakes(seed: Seed<'_>) -> std::io::Result<()> {
    const REFUSED: u32 = (1 << 31) + 1;
    let greeting = [&b"NBDMAGICIHAVEOPT"[..], &big!(3u16)].concat();
    let answer = |option: u32, kind: u32, body: &[u8]| {
        [&big!(0x0003_e889_0455_65a9u64, option, kind, body.len() as u32), body].concat()
    };
    let context = |id: u32, name: &str| answer(10, 4, &[&big!(id), name.as_bytes()].concat());
    let contexts =
        [context(1, "base:allocation"), context(2, "qemu:dirty-bitmap:day"), answer(10, 1, &[])];
    let go = [
        answer(7, 3, &big!(0u16, 1u64 << 30, 0x1edu16)),
        answer(7, 3, &big!(3u16, 512u32, 4096u32, 32u32 << 20)),
        answer(7, 1, &[]),
    ];
    let (contexts, go) = (contexts.concat(), go.concat());
    let extended = [&answer(11, 1, &[])[..], &contexts, &go].concat();
    let structured = [&answer(11, REFUSED, &[])[..], &answer(8, 1, &[]), &contexts, &go].concat();
    let no_forms = [answer(11, REFUSED, &[]), answer(8, REFUSED, b"not here")].concat();
    let old = [&no_forms[..], &answer(7, REFUSED, &[]), &big!(1u64 << 20, 5u16)].concat();
    let unknown = [&no_forms[..], &answer(7, (1 << 31) + 6, b"no such")].concat();
    let names = [answer(3, 2, b"\0\0\0\x04disk"), answer(3, 2, b"\0\0\0\0ours"), answer(3, 1, &[])];
    let names = names.concat();
    let table: [(&str, u8, &[&[u8]]); 6] = [
        ("extended", 0, &[&extended]),
        ("structured", 0, &[&structured]),
        ("without-go", 0, &[&old]),
        ("unknown-export", 0, &[&unknown, &names]),
        ("tls", 1, &[&answer(5, 1, &[]), &structured]),
        ("list", 2, &[&names]),
    ];
    for (name, wanted, parts) in table {
        seed("nbd_handshake", name, &[&[wanted], &greeting[..], &parts.concat()].concat())?;
    }
    Ok(())
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
