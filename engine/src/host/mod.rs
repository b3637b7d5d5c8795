//! The host's own tools, run and read; and what is kept about them between runs.

pub mod command;
pub mod dm;
pub mod freeze;
pub mod libvirt;
pub mod lock;
pub mod lvm;
pub mod priority;
pub mod unix;
pub mod zfs;
