//! `voltar inspect`

use std::path::Path;

use voltar_engine::options::Context;
use voltar_engine::report::{InspectReport, SalvageReport};
use voltar_engine::{inspect, salvage};

use super::{Outcome, are_damaged, looking_at};
use crate::error::CommandError;
use crate::exit::Exit;
use crate::render::Finished;
use crate::resolve::SalvageTask;

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

/// Copies what can be read of an archive into a new one.
pub fn salvage(task: &SalvageTask, context: &Context) -> Outcome {
    let report = salvage::run(&task.archive, &task.new, context)
        .map_err(|error| CommandError::engine(&error, &looking_at(&task.archive)))?;
    let failure = incomplete(&report);
    Ok(Finished::summary(report, failure))
}

fn incomplete(report: &SalvageReport) -> Option<CommandError> {
    if report.complete {
        return None;
    }
    let headline = format!("not everything could be salvaged: {}", report.archive);
    let meaning = "what was found is in the new archive; what is missing there reads as zero";
    Some(
        CommandError::new(Exit::Damaged, "damaged", headline)
            .meaning(meaning)
            .hint("the report names what is missing; `--json` has it in full"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_exit_code_3() {
        let report = |complete| SalvageReport {
            archive: "old".into(),
            new_archive: "new".into(),
            complete,
            frames: 1,
            snapshots: Vec::new(),
            lost_commits: Vec::new(),
            unnamed: 0,
            elapsed_s: 0.0,
        };
        assert!(incomplete(&report(true)).is_none());
        let error = incomplete(&report(false)).unwrap();
        assert_eq!((error.exit.code(), error.kind), (3, "damaged"));
        assert_eq!(error.headline, "not everything could be salvaged: old");
    }
}
