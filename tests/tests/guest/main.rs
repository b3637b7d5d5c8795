//! What needs device mapper, LVM or ZFS: scripts that run in the test guest (`tests/guest`), and
//! what is worked out here from what they leave.
#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]

mod boot;
mod faults;
mod live;
mod lvm;
mod power_loss;
mod volumes;

/// The helper of the guest's scripts.
const SECTORS: &str = env!("CARGO_BIN_EXE_sectors");
