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
mod sources;
mod verify;

use std::borrow::Cow;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use voltar_engine::report::{ByteRange, Losses, LostCommits};

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

/// A line for each place where commits are lost, and for each snapshot known to be.
fn losses(losses: &Losses, view: &View) -> String {
    let commits = losses.lost_commits.iter().map(|lost| lost_commits(lost, view));
    let snapshots = losses.lost_snapshots.iter();
    let snapshots = snapshots.map(|id| format!("lost snapshot {}\n", view.id(id)));
    let unread = losses.unread.as_ref().map(|unread| {
        let range = text::range(unread.offset, unread.length);
        format!("unreadable at {range}, behind the last commit: later ones may be hidden there\n")
    });
    commits.chain(snapshots).chain(unread).collect()
}

fn lost_commits(lost: &LostCommits, view: &View) -> String {
    let what = match lost.commits {
        Some(count) => text::count(count, "commit"),
        None => "the newest commit".to_string(),
    };
    let side = |word: &str, id: &Option<String>| {
        id.as_ref().map(|id| format!(", {word} snapshot {}", view.id(id))).unwrap_or_default()
    };
    format!(
        "{what} lost at {}{}{}\n",
        text::range(lost.offset, lost.length),
        side("after", &lost.after),
        side("before", &lost.before),
    )
}

#[cfg(test)]
mod tests {
    use super::fake::{ID, view};
    use super::*;

    #[test]
    fn what_is_lost_is_told_with_what_is_around_it() {
        let middle = LostCommits {
            offset: 0x1000,
            length: 0x2000,
            commits: Some(1),
            after: None,
            before: Some(ID.into()),
        };
        let newest = LostCommits {
            offset: 0x9000,
            length: 0x1000,
            commits: None,
            after: Some(ID.into()),
            before: None,
        };
        let lost = Losses {
            lost_commits: vec![middle, newest],
            lost_snapshots: vec![ID.into()],
            unread: Some(ByteRange { offset: 0xc000, length: 0x1000 }),
        };
        assert_eq!(
            losses(&lost, &view()),
            "1 commit lost at 0x1000..0x3000 (8 KiB), before snapshot 0123456789ab\n\
             the newest commit lost at 0x9000..0xa000 (4 KiB), after snapshot 0123456789ab\n\
             lost snapshot 0123456789ab\n\
             unreadable at 0xc000..0xd000 (4 KiB), behind the last commit: later ones may be hidden \
             there\n"
        );
    }
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
