//! Verifies archives: proves one whole, offline, every byte from the first to the last commit's
//! end.
//!
//! ```text
//! plan ── what lies where, small checks ─► read ─► work ─► tally ── in log order
//!                                                            │
//!                         findings ◄───────────── reach ◄────┘ what each snapshot refers to
//! ```
//!
//! The *data pass* goes through the log front to back. The scout ([`plan`]) follows the commits,
//! finds the records between them and checks heads, tables, footers and commits; frames and index
//! pages go through the pipeline. The *walk* ([`reach`]) then follows every map of every snapshot
//! to the places its ids lead to, and names what each damage costs.

mod findings;
pub(crate) mod frames;
mod note;
mod plan;
mod reach;
mod read;
mod record;
mod run;
mod salvage;
mod select;
mod tally;
mod work;

use std::sync::Arc;
use std::time::Instant;

use crate::archive::lost::losses;
use crate::archive::open::{Archive, length};
use crate::archive::snapshots::Snapshot;
use crate::device::open::open_archive_reader;
use crate::error::{Error, ErrorKind, Failed, Result};
use crate::observe::Phase;
use crate::options::{Context, VerifyRequest};
use crate::report::{Sample, VerifyReport};

use note::NoteFile;
use tally::Tally;

/// Proves an archive whole. Damage is in the report (`ok == false`, exit 3), not an error.
///
/// # Errors
/// Those of opening; `NotFound` for a snapshot; `Interrupted`; of writing the resume file. The
/// report beside the error has what was found until then, and what it costs as far as that is known.
pub fn run(
    request: &VerifyRequest,
    context: &Context,
) -> Result<VerifyReport, Failed<VerifyReport>> {
    context.observer.phase(Phase::Open, None);
    let device = open_archive_reader(&request.archive)?;
    verify_archive(&Archive::open(Arc::new(device))?, request, context)
}

/// As [`run`], of an open archive; the request's path is not looked at.
///
/// # Errors
/// As [`run`].
pub fn verify_archive(
    archive: &Archive,
    request: &VerifyRequest,
    context: &Context,
) -> Result<VerifyReport, Failed<VerifyReport>> {
    let started = Instant::now();
    check(request)?;
    let snapshot =
        request.snapshot.as_ref().map(|selector| archive.select(selector)).transpose()?;
    let file_len = length(&*archive.home)?;
    let losses = losses(archive)?;
    let note =
        request.resume.clone().map(|path| NoteFile::open(path, archive, request)).transpose()?;
    let mut tally = Tally::new(note, context);
    let outcome = prove(archive, request, context, &mut tally, snapshot.as_ref());
    let report = VerifyReport {
        archive: archive.label().to_owned(),
        ok: outcome.is_ok() && tally.findings.is_empty(),
        snapshots: snapshot.map_or(tally.snapshots, |_| 1),
        segments: tally.segments,
        frames: tally.frames,
        bytes: tally.bytes,
        uncommitted_bytes: file_len.saturating_sub(archive.end().0),
        sample: request.sample_percent.map(|percent| Sample {
            percent,
            segments: tally.data_segments.1,
            of: tally.data_segments.0,
        }),
        damaged: tally.findings.into_damages(),
        losses,
        elapsed_s: started.elapsed().as_secs_f64(),
    };
    Failed::unless(outcome, report)
}

/// The data pass, and the walk where it has something to tell. What is found is in the tally.
fn prove(
    archive: &Archive,
    request: &VerifyRequest,
    context: &Context,
    tally: &mut Tally<'_>,
    snapshot: Option<&Snapshot>,
) -> Result<()> {
    match snapshot {
        None => {
            let rest = archive.end().0.saturating_sub(tally.begin());
            context.observer.phase(Phase::Verify, Some(rest));
            let scout = plan::Scout::new(archive, request, tally.begin());
            read::pass(archive, request, context, tally, |send| scout.run(send))?;
        }
        Some(snapshot) => {
            context.observer.phase(Phase::Verify, None);
            select::pass(archive, request, context, tally, snapshot)?;
        }
    }
    if !request.stored || !tally.findings.is_empty() {
        reach::walk(archive, context, tally, snapshot)?;
    }
    tally.close_note()
}

fn check(request: &VerifyRequest) -> Result<()> {
    let of_the_whole = request.resume.is_some() || request.sample_percent.is_some();
    if request.snapshot.is_some() && of_the_whole {
        // What it needs is not in the log's order, and read anew each time.
        let message = "what one snapshot needs is not sampled, and not gone on with";
        return Err(Error::new(ErrorKind::InvalidRequest, message)
            .hint("verify the whole archive, or leave out what goes by the log"));
    }
    match request.sample_percent {
        Some(percent) if !(0.0..=100.0).contains(&percent) => {
            let message = format!("a sample of {percent} percent");
            Err(Error::new(ErrorKind::InvalidRequest, message).hint("give 0 to 100"))
        }
        _ => Ok(()),
    }
}
