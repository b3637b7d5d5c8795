//! Devices and data that benchmarks share.

pub mod generated;
