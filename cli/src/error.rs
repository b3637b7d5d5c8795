//! The one place where failures become words: kind, exit code, headline, meaning, hint.
//!
//! The engine says what failed, on which object, and why. What that means for the user's data
//! and what can be done about it depends on the command as well (its [`Scene`]); where the engine
//! knows better, its own words win. Layout is the renderer's business.

use std::error::Error as _;
use std::io;
use std::ops::{Deref, Range};

use voltar_engine::error::{Error, ErrorKind};
use voltar_engine::words::shell_word;

use crate::exit::Exit;

/// What a command was doing to whose data when it failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// Appending to an archive.
    Backup,
    /// Writing an archive to standard output.
    Stream,
    /// Writing targets.
    Restore,
    /// Reading only.
    Look,
}

/// The setting of a failure: the act, and the archive for hints that are commands.
#[derive(Clone, Debug)]
pub struct Scene {
    /// What was being done.
    pub act: Act,
    /// Whether it was only rehearsed.
    pub dry_run: bool,
    /// The archive, if one was named.
    pub archive: Option<String>,
}

/// A failure in the user's terms. Boxed, so that success does not pay for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommandError(Box<Words>);

/// What there is to say about a failure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Words {
    /// The exit code.
    pub exit: Exit,
    /// A stable word for scripts, finer than the exit code.
    pub kind: &'static str,
    /// What failed, with the object's name.
    pub headline: String,
    /// The object, if one is known.
    pub subject: Option<String>,
    /// The byte range of the object, if one is known.
    pub range: Option<Range<u64>>,
    /// Why, outermost first.
    pub causes: Vec<String>,
    /// What it means for the data.
    pub meaning: Option<String>,
    /// A command or a decision.
    pub hint: Option<String>,
}

impl Deref for CommandError {
    type Target = Words;

    fn deref(&self) -> &Words {
        &self.0
    }
}

impl CommandError {
    /// A failure with a headline and nothing else.
    pub fn new(exit: Exit, kind: &'static str, headline: impl Into<String>) -> Self {
        CommandError(Box::new(Words {
            exit,
            kind,
            headline: headline.into(),
            subject: None,
            range: None,
            causes: Vec::new(),
            meaning: None,
            hint: None,
        }))
    }

    /// A command line that makes no sense.
    pub fn usage(headline: impl Into<String>, hint: impl Into<String>) -> Self {
        CommandError::new(Exit::Usage, "usage", headline).hint(hint)
    }

    /// A failed system call of our own, outside the engine.
    pub fn io(headline: impl Into<String>, cause: &io::Error) -> Self {
        let mut error = CommandError::new(Exit::Failed, "io", headline);
        error.0.causes.push(cause.to_string());
        error
    }

    /// The engine's failure in the user's terms.
    pub fn engine(error: &Error, scene: &Scene) -> Self {
        let (exit, kind) = classify(error.kind());
        let subject = error.subject().map(str::to_string);
        let headline = match &subject {
            Some(subject) => format!("{}: {subject}", error.message()),
            None => error.message().to_string(),
        };
        let own_meaning = error.data_meaning().map(str::to_string);
        let own_hint = error.remedy().map(str::to_string);
        CommandError(Box::new(Words {
            exit,
            kind,
            headline,
            subject,
            range: error.range(),
            causes: causes(error),
            meaning: own_meaning.or_else(|| meaning(error.kind(), scene).map(str::to_string)),
            hint: own_hint.or_else(|| hint(error, scene)),
        }))
    }

    /// The hint to look closer at an archive.
    pub fn verify_hint(archive: &str) -> String {
        format!("`voltar verify {}` lists the damage and what it costs", shell_word(archive))
    }

    /// Says what it means for the data.
    pub fn meaning(mut self, meaning: impl Into<String>) -> Self {
        self.0.meaning = Some(meaning.into());
        self
    }

    /// Says what can be done.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.0.hint = Some(hint.into());
        self
    }
}

/// The exit code and the stable word of each kind; both are a published interface.
fn classify(kind: ErrorKind) -> (Exit, &'static str) {
    match kind {
        ErrorKind::Io => (Exit::Failed, "io"),
        ErrorKind::NotFound => (Exit::Failed, "not-found"),
        ErrorKind::Ambiguous => (Exit::Failed, "ambiguous"),
        ErrorKind::InvalidRequest => (Exit::Failed, "invalid-request"),
        ErrorKind::NotAnArchive => (Exit::Failed, "not-an-archive"),
        ErrorKind::UnsupportedFormat => (Exit::Failed, "unsupported-format"),
        ErrorKind::Damaged => (Exit::Damaged, "damaged"),
        ErrorKind::Mismatch => (Exit::Damaged, "mismatch"),
        ErrorKind::SourceUnusable => (Exit::Failed, "source-unusable"),
        ErrorKind::SourceUnreadable => (Exit::Failed, "source-unreadable"),
        ErrorKind::TargetRefused => (Exit::TargetRefused, "target-refused"),
        ErrorKind::TargetPartial => (Exit::TargetPartial, "target-partial"),
        ErrorKind::Busy => (Exit::Busy, "busy"),
        ErrorKind::NoSpace => (Exit::Failed, "no-space"),
        ErrorKind::Unsupported => (Exit::Failed, "unsupported"),
        ErrorKind::Interrupted => (Exit::Interrupted, "interrupted"),
        ErrorKind::Internal => (Exit::Failed, "internal"),
        // Unknown means failure.
        _ => (Exit::Failed, "other"),
    }
}

/// What a failure of this kind means for the data, where the engine did not say.
fn meaning(kind: ErrorKind, scene: &Scene) -> Option<&'static str> {
    match scene.act {
        Act::Backup | Act::Stream | Act::Restore if scene.dry_run => {
            Some("nothing was written: it was a dry run")
        }
        Act::Backup if kind == ErrorKind::Interrupted => {
            Some("the archive is as it was; the work done is kept for the next run")
        }
        Act::Backup => Some("nothing was committed; the archive is as it was"),
        Act::Stream => Some("what went to standard output is not a complete archive; discard it"),
        // The engine knows what became of the target.
        Act::Restore => None,
        Act::Look => look_meaning(kind),
    }
}

fn look_meaning(kind: ErrorKind) -> Option<&'static str> {
    match kind {
        ErrorKind::Damaged | ErrorKind::Mismatch => {
            Some("a part of the archive cannot be relied on; nothing was changed")
        }
        ErrorKind::Interrupted => Some("nothing was changed"),
        ErrorKind::Internal => Some("nothing was changed; this is a defect of voltar"),
        _ => None,
    }
}

/// What can be done about it, where the engine did not say.
fn hint(error: &Error, scene: &Scene) -> Option<String> {
    let archive = scene.archive.as_deref();
    let text = match error.kind() {
        ErrorKind::NotFound => return not_found_hint(error, scene),
        ErrorKind::Ambiguous => return archive.map(|a| format!("{} shows the ids", list(a))),
        ErrorKind::Io => return io_hint(error),
        ErrorKind::Damaged => return damaged_hint(scene),
        ErrorKind::Mismatch => mismatch_hint(scene.act),
        ErrorKind::NoSpace => no_space_hint(scene.act),
        ErrorKind::Interrupted | ErrorKind::TargetPartial => interrupted_hint(scene.act)?,
        ErrorKind::InvalidRequest => return None,
        ErrorKind::NotAnArchive => "arguments read from, then to: is this path the archive?",
        ErrorKind::UnsupportedFormat => "a newer voltar wrote it; read it with that version",
        ErrorKind::SourceUnusable => {
            "back up a snapshot of the volume (LVM, ZFS), or stop what writes to it"
        }
        ErrorKind::SourceUnreadable => {
            "`--on-read-error record` backs up the rest and records what cannot be read"
        }
        ErrorKind::TargetRefused if scene.act != Act::Restore => "write to another archive",
        ErrorKind::TargetRefused => {
            "choose another target, or release this one; `--overwrite` only allows one that holds \
             data"
        }
        ErrorKind::Busy => "wait until the other writer ends, then run the same command again",
        ErrorKind::Unsupported => "leave the choice to voltar (`auto`), or use another machine",
        ErrorKind::Internal => "please report it, with the command line and this message",
        _ => return None,
    };
    Some(text.to_string())
}

fn not_found_hint(error: &Error, scene: &Scene) -> Option<String> {
    match (&scene.archive, scene.act) {
        (_, Act::Backup | Act::Stream) => Some("check the path; it is SOURCE... ARCHIVE".into()),
        (Some(archive), _) if error.subject() != Some(archive) => {
            Some(format!("{} shows what the archive holds", list(archive)))
        }
        _ => Some("check the path".into()),
    }
}

fn io_hint(error: &Error) -> Option<String> {
    let cause = error.source()?.downcast_ref::<io::Error>()?;
    match cause.kind() {
        io::ErrorKind::PermissionDenied => {
            Some("run it as root, or as a user who may open the device or file".into())
        }
        io::ErrorKind::BrokenPipe => Some("what reads the pipe ended early; see there".into()),
        _ => None,
    }
}

fn damaged_hint(scene: &Scene) -> Option<String> {
    let archive = scene.archive.as_deref()?;
    let verify = CommandError::verify_hint(archive);
    match scene.act {
        Act::Restore => Some(format!("{verify}; `--on-damage zero` restores all the rest")),
        _ => Some(verify),
    }
}

fn mismatch_hint(act: Act) -> &'static str {
    match act {
        Act::Backup | Act::Stream => "`--changes full` trusts no change source; suspect the source",
        Act::Restore => "run it again; if it fails again, suspect the target's device",
        Act::Look => "copy the archive elsewhere and verify the copy; suspect the device",
    }
}

fn no_space_hint(act: Act) -> &'static str {
    match act {
        Act::Backup | Act::Stream => {
            "free some space and run the same command again; work already sealed is not repeated"
        }
        Act::Restore => "free some space, or choose a larger target",
        Act::Look => "free some space",
    }
}

fn interrupted_hint(act: Act) -> Option<&'static str> {
    match act {
        Act::Backup => Some("run the same command again to go on"),
        Act::Restore => Some("run the same command again to finish the work"),
        Act::Stream | Act::Look => None,
    }
}

fn list(archive: &str) -> String {
    format!("`voltar list {}`", shell_word(archive))
}

/// The chain of sources, outermost first, without repetitions.
fn causes(error: &Error) -> Vec<String> {
    let mut causes: Vec<String> = Vec::new();
    let mut next = error.source();
    while let Some(cause) = next {
        let text = cause.to_string();
        if causes.last() != Some(&text) {
            causes.push(text);
        }
        next = cause.source();
    }
    causes
}

#[cfg(test)]
mod tests {
    use super::*;

    const KINDS: [(ErrorKind, u8, &str); 17] = [
        (ErrorKind::Io, 1, "io"),
        (ErrorKind::NotFound, 1, "not-found"),
        (ErrorKind::Ambiguous, 1, "ambiguous"),
        (ErrorKind::InvalidRequest, 1, "invalid-request"),
        (ErrorKind::NotAnArchive, 1, "not-an-archive"),
        (ErrorKind::UnsupportedFormat, 1, "unsupported-format"),
        (ErrorKind::Damaged, 3, "damaged"),
        (ErrorKind::Mismatch, 3, "mismatch"),
        (ErrorKind::SourceUnusable, 1, "source-unusable"),
        (ErrorKind::SourceUnreadable, 1, "source-unreadable"),
        (ErrorKind::TargetRefused, 5, "target-refused"),
        (ErrorKind::TargetPartial, 6, "target-partial"),
        (ErrorKind::Busy, 7, "busy"),
        (ErrorKind::NoSpace, 1, "no-space"),
        (ErrorKind::Unsupported, 1, "unsupported"),
        (ErrorKind::Interrupted, 130, "interrupted"),
        (ErrorKind::Internal, 1, "internal"),
    ];

    fn scene(act: Act) -> Scene {
        Scene { act, dry_run: false, archive: Some("vm 7.vlt".into()) }
    }

    #[test]
    fn every_kind_has_its_exit_code_and_word() {
        for (kind, code, word) in KINDS {
            let error = CommandError::engine(&Error::new(kind, "x"), &scene(Act::Backup));
            assert_eq!((error.exit.code(), error.kind), (code, word));
        }
    }

    #[test]
    fn whatever_may_touch_data_says_what_became_of_it() {
        for act in [Act::Backup, Act::Stream] {
            for (kind, _, _) in KINDS {
                let error = CommandError::engine(&Error::new(kind, "x"), &scene(act));
                assert!(error.meaning.is_some(), "{act:?} {kind:?}");
            }
        }
    }

    #[test]
    fn a_rehearsal_writes_nothing() {
        let scene = Scene { dry_run: true, ..scene(Act::Restore) };
        let error = CommandError::engine(&Error::new(ErrorKind::Io, "x"), &scene);
        assert_eq!(error.meaning.as_deref(), Some("nothing was written: it was a dry run"));
    }

    #[test]
    fn interruption_is_told_per_act() {
        let error = Error::new(ErrorKind::Interrupted, "interrupted");
        let backup = CommandError::engine(&error, &scene(Act::Backup));
        assert_eq!(
            backup.meaning.as_deref().unwrap(),
            "the archive is as it was; the work done is kept for the next run"
        );
        let restore = CommandError::engine(&error, &scene(Act::Restore));
        assert_eq!(
            restore.hint.as_deref().unwrap(),
            "run the same command again to finish the work"
        );
    }

    #[test]
    fn the_engines_own_words_win() {
        let error = Error::new(ErrorKind::TargetRefused, "refusing to restore: it is mounted")
            .on("/dev/sdb")
            .meaning("the engine's meaning")
            .hint("the engine's hint");
        let error = CommandError::engine(&error, &scene(Act::Restore));
        assert_eq!(error.headline, "refusing to restore: it is mounted: /dev/sdb");
        assert_eq!(error.meaning.as_deref(), Some("the engine's meaning"));
        assert_eq!(error.hint.as_deref(), Some("the engine's hint"));
    }

    #[test]
    fn hints_can_be_pasted() {
        let error = Error::new(ErrorKind::NotFound, "no such snapshot").on("abc");
        let error = CommandError::engine(&error, &scene(Act::Look));
        assert_eq!(
            error.hint.as_deref().unwrap(),
            "`voltar list 'vm 7.vlt'` shows what the archive holds"
        );
    }

    #[test]
    fn a_missing_archive_is_not_to_be_listed() {
        let error = Error::new(ErrorKind::NotFound, "cannot open").on("vm 7.vlt");
        let error = CommandError::engine(&error, &scene(Act::Look));
        assert_eq!(error.hint.as_deref(), Some("check the path"));
    }

    #[test]
    fn causes_come_in_order_and_once() {
        let inner = Error::io("cannot read", "/dev/x", io::Error::other("boom"));
        let outer = Error::new(ErrorKind::Io, "backup failed").because(inner);
        let error = CommandError::engine(&outer, &scene(Act::Backup));
        assert_eq!(error.causes, ["cannot read: /dev/x", "boom"]);
    }

    #[test]
    fn missing_permission_has_a_hint() {
        let denied = io::Error::from(io::ErrorKind::PermissionDenied);
        let error = Error::io("cannot open", "/dev/sda", denied);
        let error = CommandError::engine(&error, &scene(Act::Backup));
        assert!(error.hint.as_deref().unwrap().starts_with("run it as root"));
    }
}
