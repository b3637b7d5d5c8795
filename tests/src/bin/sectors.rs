//! Fills devices with sectors that say who they are, and compares devices sector by sector; for
//! scripts in the test guest.
//!
//! `sectors steps DEVICE DEVICE` writes to two devices by turns, a step after the other (see
//! `voltar_tests::writer`), syncs each write, and prints each step that is done, until it is ended.
//! `sectors write DEVICE VOLUME GENERATION [FIRST COUNT]` writes sectors of 512 bytes, all of the
//! device unless told otherwise, and syncs. `sectors compare GOT WANT` compares as much as WANT
//! has.

use std::env;
use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::process::ExitCode;

use nix::fcntl::OFlag;
use voltar_tests::sectors::{SECTOR_LEN, compare, stamped};
use voltar_tests::writer;

/// Bytes in memory at a time; many sectors.
const PIECE_LEN: usize = 1 << 20;

fn main() -> ExitCode {
    let args: Vec<String> = env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("sectors {}: {why}", args.join(" "));
            ExitCode::FAILURE
        }
    }
}

fn run(args: &[&str]) -> Result<(), String> {
    match *args {
        ["write", device, volume, generation] => {
            let sectors = length(&open(device)?)? / SECTOR_LEN as u64;
            write(device, number(volume)?, number(generation)?, 0, sectors)
        }
        ["write", device, volume, generation, first, count] => {
            write(device, number(volume)?, number(generation)?, number(first)?, number(count)?)
        }
        ["compare", got, want] => compare_devices(got, want),
        ["steps", first, second] => steps([first, second]),
        _ => Err("usage: write DEVICE VOLUME GENERATION [FIRST COUNT] | compare GOT WANT | \
                  steps DEVICE DEVICE"
            .into()),
    }
}

fn number(word: &str) -> Result<u64, String> {
    word.parse().map_err(|error| format!("{word}: {error}"))
}

fn open(path: &str) -> Result<File, String> {
    File::open(path).map_err(|error| format!("{path}: {error}"))
}

/// Of a device too, whose metadata says 0.
fn length(mut file: &File) -> Result<u64, String> {
    file.seek(SeekFrom::End(0)).map_err(|error| error.to_string())
}

fn write(device: &str, volume: u64, generation: u64, first: u64, count: u64) -> Result<(), String> {
    let place = |error| format!("{device}: {error}");
    // A device that is missing is no reason to make a file.
    let file = File::options().write(true).open(Path::new(device)).map_err(place)?;
    let step = (PIECE_LEN / SECTOR_LEN) as u64;
    let mut at = first;
    while at < first + count {
        let sectors = step.min(first + count - at);
        let bytes = stamped(volume, at, generation, sectors as usize * SECTOR_LEN);
        file.write_all_at(&bytes, at * SECTOR_LEN as u64).map_err(place)?;
        at += sectors;
    }
    file.sync_all().map_err(place)
}

fn steps(devices: [&str; 2]) -> Result<(), String> {
    let place = |error: std::io::Error| format!("{devices:?}: {error}");
    // One request each, so that no instant sees a part of one.
    let flags = (OFlag::O_DIRECT | OFlag::O_DSYNC).bits();
    let open = |device| {
        let mut options = File::options();
        options.read(true).write(true).custom_flags(flags).open(device).map_err(place)
    };
    let files = [open(devices[0])?, open(devices[1])?];
    let lens = [length(&files[0])?, length(&files[1])?];
    for step in 1.. {
        for (disk, file) in files.iter().enumerate() {
            let (at, bytes) = writer::write(lens, disk, step);
            let mut room = vec![0; bytes.len() + SECTOR_LEN];
            let start = room.as_ptr().align_offset(SECTOR_LEN);
            let aligned = &mut room[start..start + bytes.len()];
            aligned.copy_from_slice(&bytes);
            file.write_all_at(aligned, at).map_err(place)?;
        }
        println!("step {step}");
    }
    Ok(())
}

fn compare_devices(got: &str, want: &str) -> Result<(), String> {
    let (got_file, want_file) = (open(got)?, open(want)?);
    let len = length(&want_file)?;
    if length(&got_file)? < len {
        return Err(format!("{got} is shorter than {want}"));
    }
    let mut at = 0;
    while at < len {
        let piece = (len - at).min(PIECE_LEN as u64) as usize;
        let read = |file: &File| {
            let mut bytes = vec![0; piece];
            file.read_exact_at(&mut bytes, at).map(|()| bytes)
        };
        let bytes = |file, name| read(file).map_err(|error| format!("{name}: {error}"));
        compare(&bytes(&got_file, got)?, &bytes(&want_file, want)?)
            .map_err(|why| format!("from byte {at} on: {why}"))?;
        at += piece as u64;
    }
    Ok(())
}
