//! The `voltar` command: parse, resolve, run, say how it ended.
//!
//! This crate owns words: arguments, help, reports, errors, exit codes. It knows no bytes of the
//! archive format and does no work on volumes; the engine does. Arguments are read in two steps
//! ([`args`] purely, [`resolve`] once against the world), one file turns errors into words
//! ([`error`]), and nothing outside [`render`] prints.

mod args;
mod commands;
mod error;
mod exit;
mod outcome;
mod render;
mod resolve;
mod signal;
mod size;
mod world;

use std::ffi::OsString;
use std::process::ExitCode;

use exit::Exit;
use render::Console;

fn main() -> ExitCode {
    let argv: Vec<OsString> = std::env::args_os().collect();
    let exit = match args::parse(&argv) {
        Ok(cli) => run(cli),
        Err(refusal) => render::usage(&refusal, &argv),
    };
    exit.into()
}

fn run(cli: args::Cli) -> Exit {
    let console = Console::new(cli.output, cli.verb.writes_archive_to_stdout());
    let outcome =
        resolve::resolve(cli, &world::Machine).and_then(|job| commands::run(&job, &console));
    console.conclude(outcome)
}
