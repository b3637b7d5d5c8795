//! `voltar sources`

use voltar_engine::options::Context;
use voltar_engine::sources;

use super::Outcome;
use crate::error::{Act, CommandError, Scene};
use crate::render::Finished;

/// Lists the volumes of this host.
pub fn run(context: &Context) -> Outcome {
    let scene = Scene { act: Act::Look, dry_run: false, archive: None };
    let report = sources::list(context).map_err(|error| CommandError::engine(&error, &scene))?;
    Ok(Finished::product(report))
}
