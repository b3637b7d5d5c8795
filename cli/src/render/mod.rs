//! Everything that is printed goes through here; nothing else in the crate prints.
//!
//! Reports go to standard output, progress, notes and errors to standard error. When standard
//! output carries an archive, reports go to standard error too. A reader that closes the pipe is
//! no failure: the rest is not printed, and the command ends as it would have.

mod human;
mod json;
mod progress;
mod table;
mod text;

use std::ffi::OsString;
use std::io::{self, BufWriter, IsTerminal, Stdout, Write};
use std::sync::Arc;

use jiff::tz::TimeZone;
use serde::Serialize;

use crate::args::OutputArgs;
use crate::error::CommandError;
use crate::exit::Exit;

pub use human::{Human, View};
pub use progress::Progress;
use progress::Surface;

/// A report of any command, ready to be printed either way.
trait Report {
    fn json(&self, failure: Option<&CommandError>) -> serde_json::Result<String>;
    fn human(&self, view: &View) -> String;
}

impl<T: Serialize + Human> Report for T {
    fn json(&self, failure: Option<&CommandError>) -> serde_json::Result<String> {
        json::report(self, failure)
    }

    fn human(&self, view: &View) -> String {
        Human::human(self, view)
    }
}

/// A command that ran to its end, perhaps with a failure beside what it achieved.
pub struct Finished {
    report: Option<Box<dyn Report>>,
    is_product: bool,
    failure: Option<CommandError>,
}

impl Finished {
    /// A report that is what the user asked for, printed even with `--quiet`.
    pub fn product(report: impl Serialize + Human + 'static) -> Self {
        Finished { is_product: true, ..Finished::summary(report, None) }
    }

    /// A report on work whose result lies elsewhere; `--quiet` leaves it out if all went well.
    pub fn summary(
        report: impl Serialize + Human + 'static,
        failure: Option<CommandError>,
    ) -> Self {
        Finished { report: Some(Box::new(report)), failure, ..Finished::silent() }
    }

    /// Nothing to print.
    pub fn silent() -> Self {
        Finished { report: None, is_product: false, failure: None }
    }

    /// With a failure beside it.
    pub fn failing(mut self, failure: Option<CommandError>) -> Self {
        self.failure = failure;
        self
    }
}

/// What is printed, and where.
pub struct Console {
    output: OutputArgs,
    /// Whether standard output carries an archive.
    stdout_is_taken: bool,
    view: View,
    progress: Arc<Progress>,
}

impl Console {
    /// A console for these wishes.
    pub fn new(output: OutputArgs, stdout_is_taken: bool) -> Self {
        // With the JSON object on standard error, it shall be alone there.
        let is_mute = output.quiet || (output.json && stdout_is_taken);
        let surface = match (is_mute, io::stderr().is_terminal()) {
            (true, _) => Surface::Mute,
            (false, true) => Surface::bar(),
            (false, false) => Surface::Lines,
        };
        Console {
            output,
            stdout_is_taken,
            view: View { verbose: output.verbose, zone: TimeZone::system() },
            progress: Arc::new(Progress::start(surface, output.verbose)),
        }
    }

    /// The observer to hand to the engine.
    pub fn progress(&self) -> Arc<Progress> {
        Arc::clone(&self.progress)
    }

    /// Prints how the command ended and names its exit code.
    pub fn conclude(&self, outcome: Result<Finished, CommandError>) -> Exit {
        self.progress.finish();
        let finished = outcome.unwrap_or_else(|failure| Finished::silent().failing(Some(failure)));
        let printed = self.print(&finished);
        if let Some(failure) = &finished.failure {
            self.error(failure);
        }
        match (printed, &finished.failure) {
            (_, Some(failure)) => failure.exit,
            (Ok(()), None) => Exit::Done,
            (Err(lost), None) => {
                self.error(&lost);
                lost.exit
            }
        }
    }

    fn print(&self, finished: &Finished) -> Result<(), CommandError> {
        let text = match self.output.json {
            true => Some(object(finished)?),
            false => self.prose(finished),
        };
        match text {
            None => Ok(()),
            Some(text) if self.stdout_is_taken => {
                stderr(&text);
                Ok(())
            }
            Some(text) => stdout(&text),
        }
    }

    fn prose(&self, finished: &Finished) -> Option<String> {
        let is_wanted = finished.is_product || finished.failure.is_some() || !self.output.quiet;
        finished.report.as_ref().filter(|_| is_wanted).map(|report| report.human(&self.view))
    }

    /// Prints a failure for people, unless a JSON object is to be alone.
    fn error(&self, failure: &CommandError) {
        let is_json_alone = self.output.json && (self.output.quiet || self.stdout_is_taken);
        if !is_json_alone {
            stderr(&human::error(failure));
        }
    }
}

/// The JSON object of a finished command.
fn object(finished: &Finished) -> Result<String, CommandError> {
    let failure = finished.failure.as_ref();
    let object = match &finished.report {
        Some(report) => report.json(failure),
        None => json::failure(failure),
    };
    object.map_err(|error| {
        CommandError::new(Exit::Failed, "internal", format!("cannot write the report: {error}"))
            .meaning("the command had finished; only its report is lost")
    })
}

/// Prints what clap has to say: help and version as asked for, or a refusal.
pub fn usage(refusal: &clap::Error, argv: &[OsString]) -> Exit {
    if refusal.exit_code() == 0 {
        let text = match io::stdout().is_terminal() {
            true => refusal.render().ansi().to_string(),
            false => refusal.render().to_string(),
        };
        return stdout(&text).map_or(Exit::Failed, |()| Exit::Done);
    }
    let options = || argv.iter().skip(1).take_while(|word| *word != "--");
    if options().any(|word| word == "--json") {
        let object = json::usage(&refusal.render().to_string());
        match argv.iter().any(|word| word == "-") {
            // Standard output was to carry an archive; what reads it takes no JSON.
            true => return stderr_then(&object, Exit::Usage),
            // The exit code tells all, should nobody read this.
            false => drop(stdout(&object)),
        }
    }
    // Colours are escapes; they are left out where the arguments themselves could be some.
    let is_harmless = argv.iter().all(|word| !word.to_string_lossy().contains(text::is_harmful));
    let text = match io::stderr().is_terminal() && is_harmless {
        true => refusal.render().ansi().to_string(),
        false => text::clean_lines(&refusal.render().to_string()),
    };
    stderr_then(&text, Exit::Usage)
}

fn stderr_then(text: &str, exit: Exit) -> Exit {
    stderr(text);
    exit
}

/// Prints to standard output. A closed pipe is no failure.
fn stdout(text: &str) -> Result<(), CommandError> {
    let mut out = StandardOutput::new();
    let written = out.write_all(text.as_bytes());
    match out.finish()? {
        Pipe::Closed => Ok(()),
        Pipe::Open => written.map_err(|error| lost(&error)),
    }
}

/// Prints to standard error in one call, so that lines of several threads do not mix. Where
/// standard error is gone there is nobody left to tell.
fn stderr(text: &str) {
    drop(io::stderr().lock().write_all(text.as_bytes()));
}

fn lost(error: &io::Error) -> CommandError {
    CommandError::io("cannot write to standard output", error)
        .meaning("the command had finished; only what it printed is lost")
}

/// Whether somebody still reads standard output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pipe {
    /// As far as we know.
    Open,
    /// The reader closed it.
    Closed,
}

/// Standard output for bytes; remembers whether the reader went away.
pub struct StandardOutput {
    out: BufWriter<Stdout>,
    pipe: Pipe,
}

impl StandardOutput {
    /// Buffered standard output.
    pub fn new() -> Self {
        StandardOutput { out: BufWriter::new(io::stdout()), pipe: Pipe::Open }
    }

    /// Writes what is left and says whether anybody was there to read it.
    pub fn finish(mut self) -> Result<Pipe, CommandError> {
        match self.flush() {
            Err(error) if self.pipe == Pipe::Open => Err(lost(&error)),
            _ => Ok(self.pipe),
        }
    }

    fn watch<T>(&mut self, outcome: io::Result<T>) -> io::Result<T> {
        if outcome.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::BrokenPipe) {
            self.pipe = Pipe::Closed;
        }
        outcome
    }
}

impl Write for StandardOutput {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let outcome = self.out.write(bytes);
        self.watch(outcome)
    }

    fn flush(&mut self) -> io::Result<()> {
        let outcome = self.out.flush();
        self.watch(outcome)
    }
}
