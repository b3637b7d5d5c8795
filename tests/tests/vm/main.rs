//! Machines that run in QEMU while their disks are backed up.
//!
//! What a guest wrote is known exactly (`voltar_tests::writer`), or is written by the test itself.
//! The machines have no operating system; those that have one are in `tests/guest`.
#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]

mod backups;
mod bitmaps;
mod chains;
mod fleecing;
mod kills;
mod monitors;
mod proxy;
mod rig;
