//! `voltar list`

use std::path::Path;

use voltar_engine::inspect;
use voltar_engine::options::Context;

use super::{Outcome, looking_at};
use crate::error::CommandError;
use crate::render::Finished;

/// Lists the snapshots.
pub fn run(archive: &Path, context: &Context) -> Outcome {
    let report = inspect::list(archive, context)
        .map_err(|error| CommandError::engine(&error, &looking_at(archive)))?;
    Ok(Finished::product(report))
}
