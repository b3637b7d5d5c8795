//! Reports and failures as text for people, one file a report.
//!
//! Whatever comes from an archive, a device or the kernel passes through [`text::clean`] first.

mod backup;
mod bench;
mod diff;
mod error;
mod inspect;
mod list;
mod restore;
mod salvage;
mod show;
mod verify;

use std::borrow::Cow;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use voltar_engine::report::ByteRange;

use super::{table, text};
use crate::size;

pub use error::error;

/// How people want to see things.
pub struct View {
    /// Ids and roots in full, and the rarer figures.
    pub verbose: bool,
    /// The zone of printed times.
    pub zone: TimeZone,
}

/// What can be shown to people.
pub trait Human {
    /// The text, each line ended.
    fn human(&self, view: &View) -> String;
}

impl View {
    /// An id, as long as wanted.
    fn id<'a>(&self, id: &'a str) -> Cow<'a, str> {
        match self.verbose {
            true => text::clean(id),
            false => text::short_id(id),
        }
    }

    /// A moment in local time; the engine's own text where it is out of range.
    fn time<'a>(&self, time_ns: i64, otherwise: &'a str) -> Cow<'a, str> {
        match Timestamp::from_nanosecond(i128::from(time_ns)) {
            Ok(time) => {
                let local = time.to_zoned(self.zone.clone());
                local.strftime("%Y-%m-%d %H:%M:%S").to_string().into()
            }
            Err(_) => text::clean(otherwise),
        }
    }
}

/// A size as a table cell.
fn size_cell<'a>(bytes: u64) -> Cow<'a, str> {
    size::human(bytes).into()
}

/// Ranges under a line of their own, indented.
fn ranges(title: &str, volume: &str, ranges: &[ByteRange]) -> String {
    if ranges.is_empty() {
        return String::new();
    }
    let lines: String = ranges
        .iter()
        .map(|range| format!("  {}\n", text::range(range.offset, range.length)))
        .collect();
    format!("{title} {}:\n{lines}", text::clean(volume))
}

#[cfg(test)]
pub(super) mod fake {
    //! The views of the tests, and pieces of reports.

    use super::View;
    use jiff::tz::TimeZone;

    pub const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    pub fn view() -> View {
        View { verbose: false, zone: TimeZone::fixed(jiff::tz::offset(1)) }
    }

    pub fn verbose() -> View {
        View { verbose: true, ..view() }
    }
}
