//! Reports and failures as JSON: one object on one line, harmless even where it is read on a
//! terminal.

use std::io;

use serde::Serialize;
use serde_json::Serializer;
use serde_json::ser::Formatter;

use super::text;

use crate::error::CommandError;
use crate::exit::Exit;

/// A report with the failure beside it, if there is one.
#[derive(Serialize)]
struct Object<'a, T: Serialize> {
    #[serde(flatten)]
    report: &'a T,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<Failure<'a>>,
}

/// A failure alone, or an empty object.
#[derive(Serialize)]
struct Alone<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<Failure<'a>>,
}

/// The error object. `code`, `kind`, `message` and `hint` are a published interface.
#[derive(Serialize)]
struct Failure<'a> {
    code: u8,
    kind: &'a str,
    message: &'a str,
    hint: Option<&'a str>,
    meaning: Option<&'a str>,
    subject: Option<&'a str>,
    range: Option<Range>,
    causes: &'a [String],
}

#[derive(Serialize)]
struct Range {
    offset: u64,
    length: u64,
}

impl<'a> From<&'a CommandError> for Failure<'a> {
    fn from(error: &'a CommandError) -> Self {
        Failure {
            code: error.exit.code(),
            kind: error.kind,
            message: &error.headline,
            hint: error.hint.as_deref(),
            meaning: error.meaning.as_deref(),
            subject: error.subject.as_deref(),
            range: error.range.as_ref().map(|range| Range {
                offset: range.start,
                length: range.end.saturating_sub(range.start),
            }),
            causes: &error.causes,
        }
    }
}

/// A report, with the failure beside it.
pub fn report<T: Serialize>(
    report: &T,
    failure: Option<&CommandError>,
) -> serde_json::Result<String> {
    line(&Object { report, error: failure.map(Failure::from) })
}

/// A failure that achieved nothing.
pub fn failure(failure: Option<&CommandError>) -> serde_json::Result<String> {
    line(&Alone { error: failure.map(Failure::from) })
}

/// A refused command line, from what clap says about it to people.
pub fn usage(text: &str) -> String {
    let message = text.split("\n\n").next().unwrap_or(text);
    let message = message.strip_prefix("error: ").unwrap_or(message);
    let tip = text.lines().find_map(|line| line.trim_start().strip_prefix("tip: "));
    let error = CommandError::usage(
        message.split_whitespace().collect::<Vec<_>>().join(" "),
        tip.unwrap_or("`voltar help` shows the commands, `voltar help COMMAND` their arguments"),
    );
    debug_assert_eq!(error.exit, Exit::Usage);
    // Strings alone always serialise.
    failure(Some(&error)).unwrap_or_default()
}

fn line(object: &impl Serialize) -> serde_json::Result<String> {
    let mut bytes = Vec::new();
    object.serialize(&mut Serializer::with_formatter(&mut bytes, Harmless))?;
    bytes.push(b'\n');
    String::from_utf8(bytes).map_err(serde::ser::Error::custom)
}

/// Writes compact JSON with `\u` escapes for all that could drive a terminal or reorder a line,
/// not just for what JSON demands (FORMAT.md, T-08). Who parses it gets the same text.
struct Harmless;

impl Formatter for Harmless {
    fn write_string_fragment<W: io::Write + ?Sized>(
        &mut self,
        writer: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        let mut rest = fragment;
        while let Some((at, c)) = rest.char_indices().find(|(_, c)| text::is_harmful(*c)) {
            writer.write_all(&rest.as_bytes()[..at])?;
            for unit in c.encode_utf16(&mut [0; 2]) {
                write!(writer, "\\u{unit:04x}")?;
            }
            rest = &rest[at + c.len_utf8()..];
        }
        writer.write_all(rest.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use voltar_engine::error::{Error, ErrorKind};

    use super::*;
    use crate::error::{Act, Scene};

    fn damaged() -> CommandError {
        let error = Error::new(ErrorKind::Damaged, "frame is damaged")
            .on("vm.vlt")
            .at(16..48)
            .because("crc")
            .meaning("m");
        CommandError::engine(&error, &Scene { act: Act::Look, dry_run: false, archive: None })
    }

    #[test]
    fn a_failure_alone() {
        assert_eq!(
            failure(Some(&damaged())).unwrap(),
            "{\"error\":{\"code\":3,\"kind\":\"damaged\",\"message\":\"frame is damaged: vm.vlt\",\
             \"hint\":null,\"meaning\":\"m\",\"subject\":\"vm.vlt\",\
             \"range\":{\"offset\":16,\"length\":32},\"causes\":[\"crc\"]}}\n"
        );
    }

    #[test]
    fn a_failure_beside_what_was_achieved() {
        #[derive(Serialize)]
        struct Fake {
            snapshot: &'static str,
        }
        let fake = Fake { snapshot: "ab" };
        assert_eq!(report(&fake, None).unwrap(), "{\"snapshot\":\"ab\"}\n");
        let text = report(&fake, Some(&damaged())).unwrap();
        assert!(text.starts_with("{\"snapshot\":\"ab\",\"error\":{\"code\":3,"), "{text}");
        assert_eq!(text.matches('\n').count(), 1);
    }

    #[test]
    fn control_characters_are_escaped_by_json() {
        let error = CommandError::new(Exit::Failed, "io", "a\u{1b}[2J\n");
        assert!(failure(Some(&error)).unwrap().contains("a\\u001b[2J\\n"));
    }

    #[test]
    fn what_reorders_lines_or_drives_terminals_is_escaped_and_stays_the_same_text() {
        let text = "vm\u{9b}2J\u{202e}gpj.exe\u{2028}\u{7f} máquina 仮想";
        let error = CommandError::new(Exit::Failed, "io", text);
        let line = failure(Some(&error)).unwrap();
        assert!(line.contains("vm\\u009b2J\\u202egpj.exe\\u2028\\u007f máquina 仮想"), "{line}");
        let object: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(object["error"]["message"], text);
    }

    #[test]
    fn usage_keeps_the_message_and_the_tip() {
        let text = "error: unexpected argument '--foo' found\n\n  tip: did you mean '--for'?\n\n\
                    Usage: voltar\n";
        let object: serde_json::Value = serde_json::from_str(&usage(text)).unwrap();
        assert_eq!(object["error"]["code"], 2);
        assert_eq!(object["error"]["kind"], "usage");
        assert_eq!(object["error"]["message"], "unexpected argument '--foo' found");
        assert_eq!(object["error"]["hint"], "did you mean '--for'?");
    }
}
