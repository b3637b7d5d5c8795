//! The program as its users meet it: contracts, flows, bad input, signals, devices, and the rules
//! that hold the sources together. One binary, so that it is linked once.
#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]

mod architecture;
mod bad_input;
mod clock;
mod contracts;
mod devices;
mod faults;
mod flow;
mod folder;
mod freeze;
mod image_bitmaps;
mod images;
mod interfaces;
mod json;
mod kills;
mod libvirt;
mod nbd;
mod nbd_faults;
mod nbd_tls;
mod no_ring;
mod partial;
mod readme;
mod reflink;
mod reflink_backups;
mod reports;
mod signals;
mod syscalls;
mod together;

use std::collections::BTreeSet;
use std::path::Path;

/// A file that no `mod` names is a test that nobody runs.
#[test]
fn no_file_of_this_folder_is_forgotten() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cli");
    let files: BTreeSet<String> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name != "main.rs")
        .collect();
    let named: BTreeSet<String> = include_str!("main.rs")
        .lines()
        .filter_map(|line| line.strip_prefix("mod ")?.strip_suffix(';'))
        .map(|name| format!("{name}.rs"))
        .collect();
    assert_eq!(files, named);
}
