//! `voltar verify`

use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use voltar_engine::error::Failed;
use voltar_engine::options::{Context, VerifyRequest};
use voltar_engine::report::VerifyReport;
use voltar_engine::verify;
use voltar_engine::words::count;

use super::{Outcome, are_damaged, looking_at, lost, stopped};
use crate::error::CommandError;
use crate::exit::Exit;
use crate::render::Finished;

/// Proves an archive, or what one snapshot needs of it.
pub fn run(request: &VerifyRequest, context: &Context) -> Outcome {
    if let Some(note) = &request.resume {
        make_room(note)?;
    }
    match verify::run(request, context) {
        Ok(report) => {
            let failure = damaged(&report);
            Ok(Finished::summary(report, failure))
        }
        Err(Failed { error, report }) => {
            let failure = CommandError::engine(&error, &looking_at(&request.archive));
            stopped(resumable(failure, request), report.map(|report| *report))
        }
    }
}

/// Makes the directory a note goes to; nobody else's business, hence the mode.
fn make_room(note: &Path) -> Result<(), CommandError> {
    let Some(directory) = note.parent() else {
        return Ok(());
    };
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(|error| {
        let headline =
            format!("cannot make the directory for notes between runs: {}", directory.display());
        CommandError::io(headline, &error).hint("set XDG_STATE_HOME to a directory of your own")
    })
}

/// An interrupted verification with `--resume` has left a note.
fn resumable(error: CommandError, request: &VerifyRequest) -> CommandError {
    match error.exit == Exit::Interrupted && request.resume.is_some() {
        true => error.hint("run the same command again to go on"),
        false => error,
    }
}

fn damaged(report: &VerifyReport) -> Option<CommandError> {
    if report.ok {
        return None;
    }
    let headline = are_damaged(report.damaged.len(), "structure", &report.archive);
    let lost = lost(&report.losses, &report.archive);
    let hint = match (costs_data(report), &lost) {
        (true, _) => {
            "`voltar restore --on-damage zero` restores the rest; a backup with `--dedup off` \
             stores the data again, if the source still has it"
        }
        (false, Some((_, hint))) => hint.as_str(),
        (false, None) => {
            "`voltar restore --on-damage zero` restores the rest; back up to another archive"
        }
    };
    let meaning = match (cost(report), &lost) {
        (cost, None) => cost,
        (cost, Some((lost, _))) => format!("{lost}; {cost}"),
    };
    Some(CommandError::new(Exit::Damaged, "damaged", headline).meaning(meaning).hint(hint))
}

fn costs_data(report: &VerifyReport) -> bool {
    report.damaged.iter().any(|damage| !damage.affects.is_empty())
}

/// What the damage costs the snapshots that are there.
fn cost(report: &VerifyReport) -> String {
    let affected: Vec<_> = report.damaged.iter().flat_map(|damage| &damage.affects).collect();
    if affected.is_empty() {
        return match report.losses.is_empty() {
            true => "no volume of a snapshot is known to lose bytes by it".to_string(),
            false => "no volume of another snapshot is known to lose bytes".to_string(),
        };
    }
    let mut snapshots: Vec<&str> = affected.iter().map(|a| a.snapshot.as_str()).collect();
    snapshots.sort_unstable();
    snapshots.dedup();
    format!(
        "{} in {} cannot be restored; the rest can",
        count(affected.len() as u64, "range"),
        count(snapshots.len() as u64, "snapshot")
    )
}

#[cfg(test)]
mod tests {
    use voltar_engine::report::{Affected, Damage, Losses, LostCommits};

    use super::*;

    fn report(affects: Vec<Affected>) -> VerifyReport {
        let damage = Damage {
            structure: "frame".into(),
            offset: 0,
            length: 1,
            error: "checksum differs".into(),
            affects,
        };
        VerifyReport {
            archive: "x".into(),
            ok: false,
            snapshots: 1,
            segments: 1,
            frames: 1,
            bytes: 1,
            uncommitted_bytes: 0,
            sample: None,
            damaged: vec![damage],
            losses: Losses::default(),
            elapsed_s: 0.0,
        }
    }

    #[test]
    fn damage_is_exit_code_3_and_tells_its_cost() {
        let range = |snapshot: &str| Affected {
            snapshot: snapshot.into(),
            volume: "vm".into(),
            offset: 0,
            length: 1,
        };
        let error = damaged(&report(vec![range("a"), range("b"), range("a")])).unwrap();
        assert_eq!((error.exit.code(), error.kind), (3, "damaged"));
        assert_eq!(error.headline, "one structure is damaged: x");
        let cost = "3 ranges in 2 snapshots cannot be restored; the rest can";
        assert_eq!(error.meaning.as_deref(), Some(cost));
        let one = damaged(&report(vec![range("a")])).unwrap();
        let cost = "1 range in 1 snapshot cannot be restored; the rest can";
        assert_eq!(one.meaning.as_deref(), Some(cost));
        assert!(damaged(&report(Vec::new())).unwrap().meaning.is_some());
        let whole = VerifyReport { ok: true, ..report(Vec::new()) };
        assert!(damaged(&whole).is_none());
    }

    #[test]
    fn a_lost_commit_is_not_harmless() {
        let gap = LostCommits { offset: 0, length: 1, commits: Some(2), after: None, before: None };
        let losses = Losses { lost_commits: vec![gap], ..Losses::default() };
        let error = damaged(&VerifyReport { losses, ..report(Vec::new()) }).unwrap();
        assert_eq!(
            error.meaning.as_deref().unwrap(),
            "2 commits are lost, and with them the snapshots that they made; no volume of another \
             snapshot is known to lose bytes"
        );
        assert!(error.hint.as_deref().unwrap().contains("--salvage"));
    }
}
