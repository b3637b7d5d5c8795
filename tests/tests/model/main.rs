//! The engine against plain byte vectors: random scripts, every moment of a crash, devices on
//! their worst days, and archives that were put aside.
//!
//! `VOLTAR_SEED=n` runs one seed of a test, `VOLTAR_SOAK=seconds` adds seeds of the moment for as
//! long.
#![allow(clippy::unwrap_used, reason = "tests assert; their inputs are their own")]

mod crash;
mod forge;
mod golden;
mod hostile;
mod opening;
mod readers;
mod recorder;
mod rejects;
mod rig;
mod salvage;
mod script;
mod thin_pools;
