//! Reads SNAPSHOT: `latest`, `latest~N`, a date/time prefix in local time, or an id prefix.
//!
//! What holds a dash after four digits is a date; what is hexadecimal otherwise is an id. So
//! `2026-11` is a month and `2026` an id that starts with these digits.
//!
//! In the hour that a clock set back repeats, a minute means its first pass; an offset
//! (`2026-10-25T01:30+00:00`) tells the passes apart.

use std::ops::Range;

use jiff::civil::DateTime;
use jiff::tz::{Offset, TimeZone};
use jiff::{SignedDuration, Span, Timestamp};
use voltar_engine::options::Selector;

use crate::error::CommandError;

/// Hexadecimal digits of a whole id.
const ID_DIGITS_MAX: usize = 64;

/// Reads a snapshot's name; dates without an offset are in `zone`.
pub fn parse(text: &str, zone: &TimeZone) -> Result<Selector, CommandError> {
    if let Some(rest) = text.strip_prefix("latest") {
        return latest(rest).ok_or_else(|| unknown(text));
    }
    if text.as_bytes().get(4) == Some(&b'-') {
        let range = time_range(text, zone).ok_or_else(|| unknown(text))?;
        return Ok(Selector::TimeRange(range));
    }
    let is_id = (1..=ID_DIGITS_MAX).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    match is_id {
        true => Ok(Selector::IdPrefix(text.to_ascii_lowercase())),
        false => Err(unknown(text)),
    }
}

/// The refusal of something that cannot name a snapshot.
pub fn unknown(text: &str) -> CommandError {
    CommandError::usage(
        format!("this cannot name a snapshot: `{text}`"),
        "write an id, latest, latest~N, or a date such as 2026-11-21 or 2026-11-21T01:30",
    )
}

fn latest(rest: &str) -> Option<Selector> {
    match rest.strip_prefix('~') {
        None => rest.is_empty().then_some(Selector::Latest(0)),
        Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => {
            digits.parse().ok().map(Selector::Latest)
        }
        Some(_) => None,
    }
}

/// The nanoseconds since 1970 that a date/time prefix covers.
fn time_range(text: &str, zone: &TimeZone) -> Option<Range<i64>> {
    let (date, clock) = match text.split_once(['T', 't', ' ']) {
        None => (text, None),
        Some((date, clock)) => (date, Some(clock)),
    };
    match clock {
        None => date_range(date, zone),
        Some(clock) => clock_range(date, clock, zone),
    }
}

fn date_range(date: &str, zone: &TimeZone) -> Option<Range<i64>> {
    let mut parts = date.split('-');
    let year = number(parts.next()?, 4)?;
    let month = number(parts.next()?, 2)?;
    let day = parts.next().map_or(Some(None), |day| number(day, 2).map(Some))?;
    if parts.next().is_some() {
        return None;
    }
    let step = match day {
        Some(_) => Span::new().days(1),
        None => Span::new().months(1),
    };
    let start = DateTime::new(year, narrow(month)?, narrow(day.unwrap_or(1))?, 0, 0, 0, 0).ok()?;
    local_range(start, start.checked_add(step).ok()?, zone)
}

fn clock_range(date: &str, clock: &str, zone: &TimeZone) -> Option<Range<i64>> {
    let midnight = date.parse::<jiff::civil::Date>().ok()?.at(0, 0, 0, 0);
    let (clock, zone) = split_offset(clock, zone)?;
    let (whole, fraction) = match clock.split_once('.') {
        None => (clock, None),
        Some((whole, fraction)) => (whole, Some(fraction)),
    };
    let mut parts = whole.split(':');
    let hour = number(parts.next()?, 2)?;
    let minute = parts.next().map_or(Some(None), |text| number(text, 2).map(Some))?;
    let second = parts.next().map_or(Some(None), |text| number(text, 2).map(Some))?;
    if parts.next().is_some() || (fraction.is_some() && second.is_none()) {
        return None;
    }
    let (nanoseconds, step) = match (minute, second, fraction) {
        (_, Some(_), Some(digits)) => fraction_of_second(digits)?,
        (_, Some(_), None) => (0, SignedDuration::from_secs(1)),
        (Some(_), None, _) => (0, SignedDuration::from_mins(1)),
        (None, None, _) => (0, SignedDuration::from_hours(1)),
    };
    let start = midnight
        .with()
        .hour(narrow(hour)?)
        .minute(narrow(minute.unwrap_or(0))?)
        .second(narrow(second.unwrap_or(0))?)
        .subsec_nanosecond(nanoseconds)
        .build()
        .ok()?;
    local_range(start, start.checked_add(step).ok()?, &zone)
}

/// `01:30Z`, `01:30+01:00`: the clock and the zone it is in.
fn split_offset<'a>(clock: &'a str, zone: &TimeZone) -> Option<(&'a str, TimeZone)> {
    if let Some(clock) = clock.strip_suffix(['Z', 'z']) {
        return Some((clock, TimeZone::UTC));
    }
    let Some(at) = clock.find(['+', '-']) else {
        return Some((clock, zone.clone()));
    };
    let (clock, offset) = clock.split_at(at);
    let sign = if offset.starts_with('-') { -1 } else { 1 };
    let (hours, minutes) = offset.get(1..)?.split_once(':')?;
    let seconds = i32::from(number(hours, 2)?) * 3600 + i32::from(number(minutes, 2)?) * 60;
    let offset = Offset::from_seconds(sign * seconds).ok()?;
    Some((clock, TimeZone::fixed(offset)))
}

/// `25` is 250 ms, and covers the 10 ms from there.
fn fraction_of_second(digits: &str) -> Option<(i32, SignedDuration)> {
    let count = u32::try_from(digits.len()).ok().filter(|count| (1..=9).contains(count))?;
    if !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let unit = 10i32.pow(9 - count);
    let value: i32 = digits.parse().ok()?;
    Some((value * unit, SignedDuration::from_nanos(i64::from(unit))))
}

fn local_range(start: DateTime, end: DateTime, zone: &TimeZone) -> Option<Range<i64>> {
    Some(nanoseconds(start, zone)?..nanoseconds(end, zone)?)
}

fn nanoseconds(local: DateTime, zone: &TimeZone) -> Option<i64> {
    let timestamp: Timestamp = zone.to_timestamp(local).ok()?;
    i64::try_from(timestamp.as_nanosecond()).ok()
}

/// Exactly so many digits.
fn number(text: &str, digits: usize) -> Option<i16> {
    let is_number = text.len() == digits && text.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| text.parse().ok()).flatten()
}

fn narrow(value: i16) -> Option<i8> {
    i8::try_from(value).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: i64 = 1_000_000_000;

    fn utc(text: &str) -> Result<Selector, CommandError> {
        parse(text, &TimeZone::UTC)
    }

    fn range(text: &str, zone: &TimeZone) -> (String, i64) {
        let Ok(Selector::TimeRange(range)) = parse(text, zone) else { panic!("{text}") };
        let start = Timestamp::from_nanosecond(i128::from(range.start)).unwrap();
        (start.to_string(), (range.end - range.start) / SECOND)
    }

    #[test]
    fn latest_counts_back() {
        assert_eq!(utc("latest"), Ok(Selector::Latest(0)));
        assert_eq!(utc("latest~3"), Ok(Selector::Latest(3)));
        for text in ["latest~", "latest~x", "latest~-1", "latest3", "latest~+1"] {
            assert!(utc(text).is_err(), "{text}");
        }
    }

    #[test]
    fn ids_are_hexadecimal_and_lower_case() {
        assert_eq!(utc("9F3A"), Ok(Selector::IdPrefix("9f3a".into())));
        assert_eq!(utc("2026"), Ok(Selector::IdPrefix("2026".into())));
        assert_eq!(utc("20261121"), Ok(Selector::IdPrefix("20261121".into())));
        for text in ["", "xyz", "12 34", &"a".repeat(65)] {
            assert!(utc(text).is_err(), "{text}");
        }
    }

    #[test]
    fn date_prefixes_cover_their_unit() {
        let zone = TimeZone::UTC;
        for (text, start, seconds) in [
            ("2026-11", "2026-11-01T00:00:00Z", 30 * 86_400),
            ("2026-12", "2026-12-01T00:00:00Z", 31 * 86_400),
            ("2026-11-21", "2026-11-21T00:00:00Z", 86_400),
            ("2026-11-21T01", "2026-11-21T01:00:00Z", 3600),
            ("2026-11-21T01:30", "2026-11-21T01:30:00Z", 60),
            ("2026-11-21 01:30", "2026-11-21T01:30:00Z", 60),
            ("2026-11-21T01:30:05", "2026-11-21T01:30:05Z", 1),
            ("2026-11-21T01:30:05Z", "2026-11-21T01:30:05Z", 1),
            ("2026-11-21T01:30+01:00", "2026-11-21T00:30:00Z", 60),
            ("2026-11-21T01:30-05:00", "2026-11-21T06:30:00Z", 60),
        ] {
            assert_eq!(range(text, &zone), (start.to_string(), seconds), "{text}");
        }
    }

    #[test]
    fn a_whole_timestamp_from_json_is_one_nanosecond() {
        let Ok(Selector::TimeRange(range)) = utc("2026-11-21T01:30:05.123456789Z") else {
            panic!()
        };
        assert_eq!(range.end - range.start, 1);
        assert_eq!(range.start % SECOND, 123_456_789);
        let Ok(Selector::TimeRange(range)) = utc("2026-11-21T01:30:05.12Z") else { panic!() };
        assert_eq!((range.start % SECOND, range.end - range.start), (120_000_000, 10_000_000));
    }

    #[test]
    fn dates_are_local() {
        let zone = TimeZone::fixed(jiff::tz::offset(2));
        let local = range("2026-11-21", &zone);
        assert_eq!(local, ("2026-11-20T22:00:00Z".to_string(), 86_400));
    }

    #[test]
    fn days_on_which_clocks_change_are_whole() {
        let Ok(zone) = TimeZone::posix("WET0WEST,M3.5.0/1,M10.5.0") else { panic!() };
        assert_eq!(range("2026-03-29", &zone).1, 23 * 3600);
        assert_eq!(range("2026-10-25", &zone).1, 25 * 3600);
        assert_eq!(range("2026-10-25T01", &zone).1, 2 * 3600, "both passes of the hour");
        assert_eq!(range("2026-10-25T01:30", &zone), ("2026-10-25T00:30:00Z".to_string(), 60));
    }

    #[test]
    fn bad_dates_are_refused() {
        for text in [
            "2026-",
            "2026-13",
            "2026-1",
            "2026-02-30",
            "2026-11-21T",
            "2026-11-21T25",
            "2026-11-21T01:60",
            "2026-11-21T01:30.5",
            "2026-11-21T01:30:05.",
            "2026-11-21T1:30",
            "2026-11T01",
            "2026-11-21T01:30:05:07",
            "2026-11-21-01",
            "9999-12-31",
            "20é6-11",
        ] {
            assert!(utc(text).is_err(), "{text}");
        }
    }
}
