//! `voltar bench`

use std::path::Path;

use voltar_engine::bench;
use voltar_engine::options::Context;

use super::Outcome;
use crate::error::{Act, CommandError, Scene};
use crate::render::Finished;

/// Measures this machine.
pub fn run(path: Option<&Path>, context: &Context) -> Outcome {
    let scene = Scene { act: Act::Look, dry_run: false, archive: None };
    let report = bench::run(path, context).map_err(|error| CommandError::engine(&error, &scene))?;
    Ok(Finished::product(report))
}
