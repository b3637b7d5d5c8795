//! Boots restored disks: a machine that starts by the command that voltar printed, with the test
//! guest's kernel, from a disk that holds the guest's root.

use std::path::PathBuf;
use std::process::Command;

use crate::command::root;
use crate::guest::{Turn, printed_by};

/// Seconds that a machine may take; ten times what it takes on an idle one.
const SECONDS_MAX: u32 = 300;

/// The raw disk that holds the guest's root, a file system without partitions; not to be changed.
/// `None` if `test` was skipped because there can be no guest here.
pub fn root_image(test: &str) -> Option<PathBuf> {
    let mut build = Command::new(root().join("tests/guest/build.sh"));
    let folder = printed_by(test, &mut build)?;
    Some(PathBuf::from(folder.trim_end()).join("root.img"))
}

/// Starts a machine by `command`, a line for the shell, and runs `script` by bash in it; `drive` is
/// what the command calls the drive that holds the guest's root. Returns what the script printed, or
/// `None` if `test` was skipped because there can be no guest here.
///
/// # Panics
/// If the machine does not come up from that disk, or the script fails.
pub fn boot(test: &str, command: &str, drive: &str, script: &str) -> Option<String> {
    let device = format!(",drive={drive}");
    assert_eq!(command.matches(&device).count(), 1, "{command} has one device on {drive}");
    // How the guest finds its root among its disks.
    let command = command.replace(&device, &format!("{device},serial=root"));
    // Machines for tests run within others, whose processors cannot always run a third.
    let command = command.replace(" -accel kvm", "");
    let _turn = Turn::wait();
    let mut run = Command::new(root().join("tests/guest/run.sh"));
    run.args(["-t", &SECONDS_MAX.to_string(), "-m", &command]).arg(script);
    printed_by(test, &mut run)
}
