//! Writes to standard output, as an input of the target `extents`, what the kernel says of two files
//! on XFS or btrfs: `record-extents BASE FILE`. The seeds named after file systems were made by it.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;

use voltar_engine::io::filesystem;
use voltar_engine::source::extent_map::Page;
use voltar_engine::source::reflink::copy::FileSystem;
use voltar_engine::source::{Degraded, btrfs_items, fiemap};
use voltar_fuzz::extents::input;

/// Small, so that there is more than one answer.
const ANSWER_LEN: usize = 4096;

fn main() -> io::Result<()> {
    let files: Vec<File> =
        std::env::args_os().skip(1).map(File::open).collect::<io::Result<_>>()?;
    let [base, now] = &files[..] else { return Err(io::Error::other("record-extents BASE FILE")) };
    let kind = FileSystem::of(base).ok_or_else(|| io::Error::other("neither XFS nor btrfs"))?;
    let is_btrfs = kind == FileSystem::Btrfs;
    let input = input(is_btrfs, [recorded(base, is_btrfs)?, recorded(now, is_btrfs)?]);
    io::stdout().write_all(&input)
}

/// A file's length, and the answers that tell of all its extents.
fn recorded(file: &File, is_btrfs: bool) -> io::Result<(u64, Vec<Vec<u8>>)> {
    let metadata = file.metadata()?;
    let (mut answers, mut next) = (Vec::new(), Some(0));
    while let Some(from) = next {
        let mut answer = vec![0; ANSWER_LEN];
        let page = match is_btrfs {
            true => {
                let (inode, kind) = (metadata.ino(), btrfs_items::EXTENT_DATA);
                filesystem::btrfs_items(file, inode, kind, from, &mut answer)?;
                btrfs_items::parse(&answer, inode, from)
            }
            false => {
                filesystem::fiemap(file, from, &mut answer)?;
                fiemap::parse(&answer, from)
            }
        };
        let page: Page = page.map_err(|Degraded(why)| io::Error::other(why))?;
        next = page.next;
        answers.push(answer);
    }
    Ok((metadata.len(), answers))
}
