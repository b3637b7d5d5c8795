//! `voltar inspect`

use std::path::Path;

use voltar_engine::inspect;
use voltar_engine::options::Context;
use voltar_engine::report::InspectReport;

use super::{Outcome, are_damaged, looking_at};
use crate::error::CommandError;
use crate::exit::Exit;
use crate::render::Finished;

/// Shows the log as it lies.
pub fn run(archive: &Path, context: &Context) -> Outcome {
    let report = inspect::log(archive, context)
        .map_err(|error| CommandError::engine(&error, &looking_at(archive)))?;
    let failure = damaged(&report, archive);
    Ok(Finished::product(report).failing(failure))
}

fn damaged(report: &InspectReport, archive: &Path) -> Option<CommandError> {
    // What follows the last commit is no part of any snapshot, whatever state it is in.
    let is_damaged = |kind: &str, error: &Option<String>| kind != "tail" && error.is_some();
    let count = report.records.iter().filter(|r| is_damaged(&r.kind, &r.error)).count();
    if count == 0 {
        return None;
    }
    let headline = are_damaged(count, "record", &report.archive);
    let hint = CommandError::verify_hint(&archive.display().to_string());
    Some(CommandError::new(Exit::Damaged, "damaged", headline).hint(hint))
}
