//! `voltar list`

use std::path::Path;

use voltar_engine::inspect;
use voltar_engine::options::Context;
use voltar_engine::report::ListReport;

use super::{Outcome, looking_at, lost};
use crate::error::CommandError;
use crate::exit::Exit;
use crate::render::Finished;

/// Lists the snapshots.
pub fn run(archive: &Path, context: &Context) -> Outcome {
    let report = inspect::list(archive, context)
        .map_err(|error| CommandError::engine(&error, &looking_at(archive)))?;
    let failure = incomplete(&report);
    Ok(Finished::product(report).failing(failure))
}

/// A list that lacks snapshots is a list, but nobody shall take it for a whole one.
fn incomplete(report: &ListReport) -> Option<CommandError> {
    if report.complete {
        return None;
    }
    let headline = format!("snapshots are missing from the list: {}", report.archive);
    let (meaning, hint) = lost(&report.losses, &report.archive).unwrap_or_else(|| {
        let meaning = "the description of a snapshot is damaged".to_string();
        (meaning, CommandError::verify_hint(&report.archive))
    });
    Some(CommandError::new(Exit::Damaged, "damaged", headline).meaning(meaning).hint(hint))
}
