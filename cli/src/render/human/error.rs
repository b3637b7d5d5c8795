//! Failures: what, where, why, what it means for the data, what to do.

use super::text;
use crate::error::CommandError;

/// A failure as text: `error: ...`, indented details, `hint: ...`.
pub fn error(failure: &CommandError) -> String {
    let mut lines = vec![format!("error: {}", text::clean(&failure.headline))];
    if let Some(range) = &failure.range {
        lines.push(match range.end.saturating_sub(range.start) {
            0 => format!("  at byte {:#x}", range.start),
            length => format!("  bytes {}", text::range(range.start, length)),
        });
    }
    lines.extend(failure.causes.iter().map(|cause| format!("  caused by: {}", text::clean(cause))));
    lines.extend(failure.meaning.iter().map(|meaning| format!("  {}", text::clean(meaning))));
    lines.extend(failure.hint.iter().map(|hint| format!("hint: {}", text::clean(hint))));
    lines.push(String::new());
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use std::io;

    use voltar_engine::error::{Error, ErrorKind};

    use super::*;
    use crate::error::{Act, Scene};

    fn told(kind: ErrorKind, act: Act) -> String {
        let scene = Scene { act, dry_run: false, archive: Some("vm.vlt".into()) };
        error(&CommandError::engine(&Error::new(kind, "WHAT").on("OBJECT"), &scene))
    }

    /// One line per kind, so that a change of wording shows in review.
    #[test]
    fn every_kind_reads_well() {
        use Act::{Backup, Look, Restore, Stream};
        for (kind, act, meaning, hint) in [
            (ErrorKind::Io, Backup, "nothing was committed; the archive is as it was", ""),
            (
                ErrorKind::NotFound,
                Backup,
                "nothing was committed; the archive is as it was",
                "check the path; it is SOURCE... ARCHIVE",
            ),
            (ErrorKind::NotFound, Restore, "", "`voltar list vm.vlt` shows what the archive holds"),
            (ErrorKind::Ambiguous, Look, "", "`voltar list vm.vlt` shows the ids"),
            (ErrorKind::InvalidRequest, Restore, "", ""),
            (
                ErrorKind::NotAnArchive,
                Backup,
                "nothing was committed; the archive is as it was",
                "arguments read from, then to: is this path the archive?",
            ),
            (
                ErrorKind::UnsupportedFormat,
                Look,
                "",
                "a newer voltar wrote it; read it with that version",
            ),
            (
                ErrorKind::Damaged,
                Restore,
                "",
                "`voltar verify vm.vlt` lists the damage and what it costs; `--on-damage zero` \
                 restores all the rest",
            ),
            (
                ErrorKind::Damaged,
                Look,
                "a part of the archive cannot be relied on; nothing was changed",
                "`voltar verify vm.vlt` lists the damage and what it costs",
            ),
            (
                ErrorKind::Mismatch,
                Restore,
                "",
                "run it again; if it fails again, suspect the target's device",
            ),
            (
                ErrorKind::SourceUnusable,
                Backup,
                "nothing was committed; the archive is as it was",
                "back up a snapshot of the volume (LVM, ZFS), or stop what writes to it",
            ),
            (
                ErrorKind::SourceUnreadable,
                Stream,
                "what went to standard output is not a complete archive; discard it",
                "`--on-read-error record` backs up the rest and records what cannot be read",
            ),
            (
                ErrorKind::TargetRefused,
                Restore,
                "",
                "choose another target, or release this one; `--overwrite` only allows one that \
                 holds data",
            ),
            (
                ErrorKind::TargetPartial,
                Restore,
                "",
                "run the same command again to finish the work",
            ),
            (
                ErrorKind::Busy,
                Backup,
                "nothing was committed; the archive is as it was",
                "wait until the other writer ends, then run the same command again",
            ),
            (
                ErrorKind::NoSpace,
                Backup,
                "nothing was committed; the archive is as it was",
                "free some space and run the same command again; work already sealed is not \
                 repeated",
            ),
            (
                ErrorKind::Unsupported,
                Restore,
                "",
                "leave the choice to voltar (`auto`), or use another machine",
            ),
            (
                ErrorKind::Interrupted,
                Backup,
                "the archive is as it was; the work done is kept for the next run",
                "run the same command again to go on",
            ),
            (ErrorKind::Interrupted, Restore, "", "run the same command again to finish the work"),
            (ErrorKind::Interrupted, Look, "nothing was changed", ""),
            (
                ErrorKind::Internal,
                Look,
                "nothing was changed; this is a defect of voltar",
                "please report it, with the command line and this message",
            ),
        ] {
            let mut expected = "error: WHAT: OBJECT\n".to_string();
            if !meaning.is_empty() {
                expected.push_str(&format!("  {meaning}\n"));
            }
            if !hint.is_empty() {
                expected.push_str(&format!("hint: {hint}\n"));
            }
            assert_eq!(told(kind, act), expected, "{kind:?} {act:?}");
        }
    }

    #[test]
    fn all_parts_in_order() {
        let cause = io::Error::from_raw_os_error(5);
        let failure = Error::io("cannot read", "/dev/sda\x1b[2J", cause).at(0x1000..0x3000);
        let scene = Scene { act: Act::Backup, dry_run: false, archive: None };
        assert_eq!(
            error(&CommandError::engine(&failure.hint("do this"), &scene)),
            "error: cannot read: /dev/sda\\x1b[2J\n\
             \x20 bytes 0x1000..0x3000 (8 KiB)\n\
             \x20 caused by: Input/output error (os error 5)\n\
             \x20 nothing was committed; the archive is as it was\n\
             hint: do this\n"
        );
    }
}
