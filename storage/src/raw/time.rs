//! Times as the files write them, to nanoseconds since 1970: numbers in a unit, ISO 8601, and the fixed
//! layout of GoodReads.
//!
//! Nothing of a time is cut off, since ratings are sorted by it. What is not exactly of a layout is no time,
//! and neither is what no rating can have: most likely it is in another unit. Dates are of the Gregorian
//! calendar.

use chrono::{Datelike, NaiveDate};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::RawProblem;

const SECONDS_PER_DAY: i64 = 86_400;
/// Nanoseconds in a second.
pub(crate) const NANOS: i64 = 1_000_000_000;
/// First and last second of the years that are believed: 1900 to 2261, whose nanoseconds fit into 64 bits. No
/// rating is of another year, but seconds that are milliseconds are, and dates that stand for none.
const BELIEVED: [i64; 2] = [-2_208_988_800, 9_214_646_399];
/// Nothing of before 1980 was rated in a file: a unit that leads there is not the one that was meant.
const LIKELY: i64 = 315_532_800 * NANOS;
const MONTHS: [&str; 12] =
    ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
const WEEKDAYS: [&str; 7] = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"];

/// What a time is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TimeUnit {
    /// Seconds since 1970, with decimals or without.
    #[default]
    S,
    /// Milliseconds since 1970, with decimals or without.
    Ms,
    /// Microseconds since 1970, with decimals or without.
    Us,
    /// Nanoseconds since 1970, with decimals or without.
    Ns,
    /// ISO 8601 (2011-08-01T20:41:57Z), UTC where it has no offset.
    Iso8601,
}

impl TimeUnit {
    /// Every one, the coarser units first.
    pub(in crate::raw) const ALL: [Self; 5] =
        [Self::S, Self::Ms, Self::Us, Self::Ns, Self::Iso8601];

    /// Its name in a config, words for it, and how its times are written.
    pub(in crate::raw) fn describe(self) -> (&'static str, &'static str, Notation) {
        match self {
            Self::S => ("s", "seconds", Notation::Number(9)),
            Self::Ms => ("ms", "milliseconds", Notation::Number(6)),
            Self::Us => ("us", "microseconds", Notation::Number(3)),
            Self::Ns => ("ns", "nanoseconds", Notation::Number(0)),
            Self::Iso8601 => ("iso8601", "ISO 8601", Notation::Iso8601),
        }
    }

    /// Its name in a config.
    pub fn name(self) -> &'static str {
        self.describe().0
    }

    /// How its times are written.
    pub(in crate::raw) fn notation(self) -> Notation {
        self.describe().2
    }
}

/// How times are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Notation {
    /// A number of which so many decimals make a nanosecond: 9 for seconds, 0 for nanoseconds.
    Number(usize),
    Iso8601,
    Goodreads,
}

/// Who says how times are written, which is where it would have to be changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// The layout.
    Layout,
    /// The mapping's setting of this name.
    Setting(&'static str),
    /// The type of the column.
    Type,
}

impl Notation {
    /// What its times are, in words.
    fn describe(self) -> &'static str {
        match self {
            Self::Number(9) => "seconds since 1970",
            Self::Number(6) => "milliseconds since 1970",
            Self::Number(3) => "microseconds since 1970",
            Self::Number(_) => "nanoseconds since 1970",
            Self::Iso8601 => "times like 2011-08-01T20:41:57Z",
            Self::Goodreads => "times like \"Mon Aug 01 13:41:57 -0700 2011\"",
        }
    }

    /// Nanoseconds since 1970.
    fn parse(self, text: &str) -> Option<i128> {
        match self {
            Self::Number(decimals) => number_with(text, decimals),
            Self::Iso8601 => iso8601(text),
            Self::Goodreads => goodreads(text),
        }
    }

    /// The time of a rating, in nanoseconds since 1970.
    pub(super) fn read(self, text: &str, source: Source) -> Result<i64, RawProblem> {
        if text.is_empty() {
            return Err(RawProblem::Missing { found: "".into(), advice: "" });
        }
        let time = self.parse(text);
        let found = time.and_then(believed).filter(|time| !self.is_too_fine(text, *time));
        found.ok_or_else(|| self.problem(text, source, time))
    }

    /// Whether a number is read in too fine a unit: it leads to the years before anything was rated in a file,
    /// and a coarser one to a later year.
    fn is_too_fine(self, text: &str, time: i64) -> bool {
        matches!(self, Self::Number(decimals) if decimals < 9)
            && (0..LIKELY).contains(&time)
            && self.fitting(text).is_some()
    }

    /// How a text would have to be read to be a likely time: the name of the setting, words for it, the time.
    fn fitting(self, text: &str) -> Option<(&'static str, &'static str, String)> {
        TimeUnit::ALL.iter().find_map(|unit| {
            let (name, words, notation) = unit.describe();
            let time = notation.parse(text).and_then(believed).filter(|time| *time >= LIKELY)?;
            Some((name, words, utc(time.div_euclid(NANOS))))
        })
    }

    /// What is wrong with a time, and how it would have to be read.
    #[cold]
    fn problem(self, text: &str, source: Source, time: Option<i128>) -> RawProblem {
        let advice = match (source, self.fitting(text)) {
            (_, None) => String::new(),
            (Source::Setting(_), Some((name, words, utc))) => {
                format!("; as {words} it is {utc}: data.columns.time_unit = \"{name}\"")
            }
            (Source::Layout, Some((_, words, utc))) => {
                format!("; as {words} it is {utc}, but this layout has {}", self.describe())
            }
            (Source::Type, Some((_, words, utc))) => {
                format!("; as {words} it is {utc}: write it with another type")
            }
        };
        let (found, expected) = (text.into(), self.describe());
        let whose = match source {
            Source::Setting(name) => format!("data.columns.time_unit = \"{name}\" wants"),
            Source::Layout | Source::Type => "this layout has".to_owned(),
        };
        match time {
            None => {
                let wanted = format!("{whose} {expected}{advice}").into();
                RawProblem::NotATime { found, expected, wanted }
            }
            Some(time) => {
                let seconds = time.div_euclid(i128::from(NANOS));
                let day = seconds.div_euclid(i128::from(SECONDS_PER_DAY));
                let [year, ..] = date_of(i64::try_from(day).unwrap_or(i64::MAX / 2));
                let why = match believed(time) {
                    Some(_) => "which is before there were files of ratings",
                    None => "and ratings are from 1900 to 2261",
                };
                RawProblem::FarTime { found, year, advice: format!("{why}{advice}").into() }
            }
        }
    }
}

/// A time that a rating may have.
fn believed(nanos: i128) -> Option<i64> {
    let [first, last] = BELIEVED.map(|second| second * NANOS);
    i64::try_from(nanos).ok().filter(|nanos| (first..last + NANOS).contains(nanos))
}

/// A number with as many decimals as make a nanosecond, or fewer.
fn number_with(text: &str, decimals: usize) -> Option<i128> {
    let unit = 10_i128.pow(decimals as u32);
    if let Ok(whole) = text.parse::<i64>() {
        return Some(i128::from(whole) * unit);
    }
    let (whole, rest) = text.split_once('.')?;
    let (sign, whole) = whole.strip_prefix('-').map_or((1, whole), |whole| (-1, whole));
    if !digits(whole) {
        return None;
    }
    let whole: i64 = whole.parse().ok()?;
    Some(sign * (i128::from(whole) * unit + i128::from(fraction(rest, decimals)?)))
}

/// What follows the point, as that many decimals; none where it has more that are not 0.
fn fraction(text: &str, decimals: usize) -> Option<i64> {
    if text.is_empty() || !digits(text) {
        return None;
    }
    let text = text.trim_end_matches('0');
    let missing = decimals.checked_sub(text.len())?;
    let value: i64 = if text.is_empty() { 0 } else { text.parse().ok()? };
    Some(value * 10_i64.pow(missing as u32))
}

/// Nanoseconds as seconds, with as many decimals as they have.
pub(super) fn as_seconds(nanos: i128) -> String {
    let nanos_per_second = i128::from(NANOS);
    let (whole, rest) = (nanos / nanos_per_second, nanos % nanos_per_second);
    if rest == 0 {
        return whole.to_string();
    }
    let sign = if nanos < 0 { "-" } else { "" };
    let text = format!("{sign}{}.{:09}", whole.unsigned_abs(), rest.unsigned_abs());
    text.trim_end_matches('0').to_owned()
}

/// A date (`2011-08-01`, `2011/08/01`, `20110801`), alone or followed by `T` or a blank and the time of day
/// (`13:41`, `13:41:57`, `134157`, seconds with a fraction), which may be followed by `Z`, `UTC`, `+hh:mm`,
/// `+hhmm` or `+hh`, after a blank or without. Without an offset the time is UTC.
fn iso8601(text: &str) -> Option<i128> {
    let (day, rest) = date(text)?;
    if rest.is_empty() {
        return Some(i128::from(day) * i128::from(NANOS));
    }
    let rest = rest.strip_prefix(['T', 't', ' '])?;
    let ends = |c: char| !c.is_ascii_digit() && !matches!(c, ':' | '.' | ',');
    let (clock, zone) = rest.split_at(rest.find(ends).unwrap_or(rest.len()));
    let (clock, nanos) = match clock.split_once(['.', ',']) {
        None => (clock, 0),
        // A fraction is one of seconds, which must be there.
        Some((clock, rest)) if clock.len() >= 6 => (clock, fraction(rest, 9)?),
        Some(_) => return None,
    };
    let seconds = if clock.contains(':') { clock_seconds(clock)? } else { compact_seconds(clock)? };
    let offset = match zone.strip_prefix(' ').unwrap_or(zone) {
        "" if zone.is_empty() => 0,
        "Z" | "z" | "UTC" => 0,
        zone => offset(zone)?,
    };
    Some(i128::from(day + seconds - offset) * i128::from(NANOS) + i128::from(nanos))
}

/// `Mon Aug 01 13:41:57 -0700 2011`.
fn goodreads(text: &str) -> Option<i128> {
    let mut parts = text.split(' ');
    let [weekday, month, day, clock, zone, year] = std::array::from_fn(|_| parts.next());
    if parts.next().is_some() || !WEEKDAYS.contains(&weekday?) {
        return None;
    }
    let month = MONTHS.iter().position(|name| Some(*name) == month)? as i64 + 1;
    let day = first_second(number(year?, 4)?, month, number(day?, 2)?)?;
    let seconds = day + clock_seconds(clock?)? - offset(zone?)?;
    Some(i128::from(seconds) * i128::from(NANOS))
}

/// `yyyy-mm-dd`, `yyyy/mm/dd` or `yyyymmdd`, as its first second; and what follows.
fn date(text: &str) -> Option<(i64, &str)> {
    let between = text.get(4..5)?;
    let (month, day, end) = if matches!(between, "-" | "/") { (5, 8, 10) } else { (4, 6, 8) };
    if end == 10 && text.get(7..8) != Some(between) {
        return None;
    }
    let part = |from: usize, len: usize| number(text.get(from..from + len)?, len);
    Some((first_second(part(0, 4)?, part(month, 2)?, part(day, 2)?)?, text.get(end..)?))
}

/// `hh:mm` or `hh:mm:ss`; a leap second counts as the first second of the next minute.
fn clock_seconds(text: &str) -> Option<i64> {
    let mut parts = text.split(':');
    let [hour, minute, second] = std::array::from_fn(|_| parts.next());
    let (hour, minute) = (number(hour?, 2)?, number(minute?, 2)?);
    let second = second.map_or(Some(0), |s| number(s, 2))?;
    let valid = hour < 24 && minute < 60 && second <= 60 && parts.next().is_none();
    valid.then_some(hour * 3600 + minute * 60 + second)
}

/// `hhmm` or `hhmmss`.
fn compact_seconds(text: &str) -> Option<i64> {
    let part = |from: usize| text.get(from..from + 2);
    match text.len() {
        4 => clock_seconds(&format!("{}:{}", part(0)?, part(2)?)),
        6 => clock_seconds(&format!("{}:{}:{}", part(0)?, part(2)?, part(4)?)),
        _ => None,
    }
}

/// `+hh:mm`, `+hhmm` or `+hh`, in seconds east of UTC.
fn offset(text: &str) -> Option<i64> {
    let sign = match text.chars().next()? {
        '+' => 1,
        '-' => -1,
        _ => return None,
    };
    let text = text.get(1..)?;
    let (hours, minutes) = match text.len() {
        2 => (text, "00"),
        4 => text.split_at(2),
        _ => text.split_once(':')?,
    };
    let (hours, minutes) = (number(hours, 2)?, number(minutes, 2)?);
    (hours < 24 && minutes < 60).then_some(sign * (hours * 3600 + minutes * 60))
}

/// The first second of a date, if that exists.
fn first_second(year: i64, month: i64, day: i64) -> Option<i64> {
    let [month, day] = [month, day].map(|number| u32::try_from(number).unwrap_or(0));
    let date =
        NaiveDate::from_ymd_opt(i32::try_from(year).ok().filter(|year| *year >= 1)?, month, day)?;
    Some(i64::from(date.to_epoch_days()) * SECONDS_PER_DAY)
}

/// A time as `2011-08-01T20:41:57Z`; years outside 0 to 9999 have their sign and all their digits.
pub(crate) fn utc(seconds: i64) -> String {
    let (day, second) = (seconds.div_euclid(SECONDS_PER_DAY), seconds.rem_euclid(SECONDS_PER_DAY));
    let [year, month, day] = date_of(day);
    let (hour, minute) = (second / 3600, second / 60 % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{:02}Z", second % 60)
}

/// A time in nanoseconds as [`utc`] has it, with as many decimals of the second as it has.
pub(super) fn moment(nanos: i128) -> String {
    let per_second = i128::from(NANOS);
    let (seconds, rest) = (nanos.div_euclid(per_second), nanos.rem_euclid(per_second));
    let text = utc(i64::try_from(seconds).unwrap_or(i64::MAX / 2));
    if rest == 0 {
        return text;
    }
    let fraction = format!("{rest:09}");
    format!("{}.{}Z", text.trim_end_matches('Z'), fraction.trim_end_matches('0'))
}

/// A day, so many from 1970-01-01, as `2011-08-01`.
pub(super) fn day(days: i64) -> String {
    let [year, month, day] = date_of(days);
    format!("{year:04}-{month:02}-{day:02}")
}

/// Year, month and day so many days from 1970-01-01.
fn date_of(day: i64) -> [i64; 3] {
    // The calendar repeats itself every 400 years, and only so many are dates of the library.
    const CYCLE: i64 = 146_097;
    let date = NaiveDate::from_epoch_days(day.rem_euclid(CYCLE) as i32).unwrap_or_default();
    let year = i64::from(date.year()) + 400 * day.div_euclid(CYCLE);
    [year, date.month().into(), date.day().into()]
}

/// A number of exactly `len` digits.
fn number(text: &str, len: usize) -> Option<i64> {
    if text.len() == len && digits(text) { text.parse().ok() } else { None }
}

fn digits(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Seconds and nanoseconds of an ISO time.
    fn iso(text: &str) -> Option<(i64, i64)> {
        let nanos = iso8601(text)?;
        let second = i128::from(NANOS);
        Some((nanos.div_euclid(second) as i64, nanos.rem_euclid(second) as i64))
    }

    #[test]
    fn iso_times_are_times_since_1970() {
        let cases = [
            ("1970-01-01", 0, 0),
            ("1970-01-01T00:00:00Z", 0, 0),
            ("2011-08-01T20:41:57Z", 1_312_231_317, 0),
            ("2011-08-01 13:41:57-07:00", 1_312_231_317, 0),
            ("2011-08-01T13:41:57.999-0700", 1_312_231_317, 999_000_000),
            ("2011-08-01T20:41:57.123456789Z", 1_312_231_317, 123_456_789),
            ("2011-08-01T20:41:57.120000000000", 1_312_231_317, 120_000_000),
            ("2011-08-01 20:41:57,25", 1_312_231_317, 250_000_000),
            ("2011-08-01T13:41-07", 1_312_231_260, 0),
            ("2000-02-29", 951_782_400, 0),
            ("1969-12-31T23:59:59", -1, 0),
            ("1969-12-31T23:59:59.75", -1, 750_000_000),
            ("0001-01-01", -62_135_596_800, 0),
            ("9999-12-31T23:59:59Z", 253_402_300_799, 0),
            // As warehouses export them.
            ("2011-08-01 20:41:57 UTC", 1_312_231_317, 0),
            ("2011-08-01 20:41:57.5UTC", 1_312_231_317, 500_000_000),
            ("2011-08-01 13:41:57.000 -0700", 1_312_231_317, 0),
            ("2011-08-01 13:41:57 -07:00", 1_312_231_317, 0),
            ("2011-08-01t20:41:57z", 1_312_231_317, 0),
            ("20110801T204157Z", 1_312_231_317, 0),
            ("20110801T2041", 1_312_231_260, 0),
            ("20110801", 1_312_156_800, 0),
            ("2011/08/01", 1_312_156_800, 0),
            ("2011/08/01 20:41:57", 1_312_231_317, 0),
        ];
        for (text, seconds, nanos) in cases {
            assert_eq!(iso(text), Some((seconds, nanos)), "{text}");
        }
    }

    #[test]
    fn what_is_no_iso_time_is_refused() {
        for text in [
            "",
            "2011",
            "2011-8-1",
            "2011-02-29",
            "1900-02-29",
            "2011-13-01",
            "2011-00-01",
            "2011-01-32",
            "0000-01-01",
            "2011-08-01T",
            "2011-08-01T24:00:00",
            "2011-08-01T10:60",
            "2011-08-01T1:2:3",
            "2011-08-01T10:00:00.",
            "2011-08-01T10:00:00.x",
            "2011-08-01T10:00.5",
            "2011-08-01T1000.5",
            "2011-08-01T10:00:00.0000000001",
            "2011-08-01T10:00:00+",
            "2011-08-01x10:00:00",
            "2011-08-01T10:00:00+7:00",
            "2011-08-01T10:00:00ZZ",
            "2011-08-01T10:00:00 ",
            "2011-08-01T10:00:00  UTC",
            "2011-08-01T10:00:00 CET",
            "2011-08-01T100",
            "2011-08/01",
            "2011/08-01",
            "01/08/2011",
            "08-01-2011",
            "2011.08.01",
            "1312231317",
            "+011-08-01",
            "2011-08-01T10:00:00:00",
            "\u{661}011-08-01",
            "2011-08-0\u{661}",
        ] {
            assert_eq!(iso(text), None, "{text}");
        }
    }

    #[test]
    fn numbers_keep_every_decimal() {
        let read = |decimals, text| number_with(text, decimals);
        assert_eq!(read(9, "1600004773"), Some(1_600_004_773_000_000_000));
        assert_eq!(read(9, "1600004773.0"), Some(1_600_004_773_000_000_000));
        assert_eq!(read(9, "1600004773.25"), Some(1_600_004_773_250_000_000));
        assert_eq!(read(9, "-0.000000001"), Some(-1));
        assert_eq!(read(9, "-1.5"), Some(-1_500_000_000));
        assert_eq!(read(6, "1600004773001"), Some(1_600_004_773_001_000_000));
        assert_eq!(read(6, "1.5"), Some(1_500_000));
        assert_eq!(read(3, "7.001"), Some(7_001));
        assert_eq!(read(0, "7"), Some(7));
        assert_eq!(read(0, "7.00"), Some(7));
        for text in
            ["", ".", "1.", ".5", "-.5", "- 1", "1.5.0", "1e9", "1.0000000001", "1 ", "--1.0"]
        {
            assert_eq!(read(9, text), None, "{text}");
        }
        assert_eq!((read(6, "1.0000001"), read(0, "7.5")), (None, None));
    }

    #[test]
    fn times_that_no_rating_has_are_refused_with_the_unit_that_fits() {
        let problem = |notation: Notation, text: &str| {
            notation.read(text, Source::Setting("x")).unwrap_err().to_string()
        };
        let seconds = Notation::Number(9);
        for (text, unit) in [
            ("1600086400400", "ms"),
            ("1600086400400.5", "ms"),
            ("1600086400400123", "us"),
            ("1600086400400123456", "ns"),
        ] {
            let said = problem(seconds, text);
            let expected =
                format!("it is 2020-09-14T12:26:40Z: data.columns.time_unit = \"{unit}\"");
            assert!(said.contains(&expected), "{said}");
        }
        assert!(problem(seconds, "1600086400400").contains("in the year 52674"));
        assert!(problem(seconds, "2020-09-14").contains("time_unit = \"iso8601\""));
        assert!(problem(Notation::Iso8601, "1600086400").contains("time_unit = \"s\""));
        assert!(problem(Notation::Number(6), "1600086400400123").contains("time_unit = \"us\""));
        let early = problem(Notation::Number(6), "1600086400");
        let expected = "1600086400 is in the year 1970, which is before there were files of ratings; as \
                        seconds it is 2020-09-14T12:26:40Z: data.columns.time_unit = \"s\"";
        assert_eq!(early, expected);
        // Numbers that are no time in any unit only say the order.
        assert_eq!(Notation::Number(6).read("7", Source::Setting("ms")).unwrap(), 7_000_000);
        // No unit is of any help.
        for text in ["0001-01-01", "1899-12-30", "9999-12-31", "2262-01-01"] {
            let said = problem(Notation::Iso8601, text);
            assert!(said.ends_with("from 1900 to 2261"), "{said}");
        }
        assert!(problem(seconds, "9223372036854775807").contains("in the year 292277026596"));
        let whose = Notation::Number(9).read("1600086400400", Source::Layout).unwrap_err();
        assert!(whose.to_string().ends_with("but this layout has seconds since 1970"), "{whose}");
        for text in ["1900-01-01", "1969-12-31T23:59:59.999999999", "2261-12-31T23:59:59.999999999"]
        {
            let time = Notation::Iso8601.read(text, Source::Layout).unwrap();
            assert_eq!(Some(i128::from(time)), iso8601(text), "{text}");
        }
    }

    #[test]
    fn times_are_written_in_utc() {
        assert_eq!(utc(0), "1970-01-01T00:00:00Z");
        assert_eq!(utc(1_312_231_317), "2011-08-01T20:41:57Z");
        assert_eq!(utc(951_782_399), "2000-02-28T23:59:59Z");
        assert_eq!(utc(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(utc(-1), "1969-12-31T23:59:59Z");
    }

    #[test]
    fn goodreads_times_are_times_since_1970() {
        let read = |text| goodreads(text).map(|nanos| nanos / i128::from(NANOS));
        assert_eq!(read("Mon Aug 01 13:41:57 -0700 2011"), Some(1_312_231_317));
        assert_eq!(read("Thu Jan 01 00:00:00 +0000 1970"), Some(0));
        assert_eq!(read("Sat Feb 29 12:00:00 +0530 2020"), Some(1_582_957_800));
        for text in [
            "",
            "Mon Aug 01 13:41:57 2011",
            "Mon Aug 1 13:41:57 -0700 2011",
            "Mon Foo 01 13:41:57 -0700 2011",
            "Moo Aug 01 13:41:57 -0700 2011",
            "Mon Feb 30 13:41:57 -0700 2011",
            "Mon Aug 01 25:41:57 -0700 2011",
            "Mon Aug 01 13:41:57 0700 2011",
            "Mon Aug 01 13:41:57 -0700 2011 ",
            "Mon  Aug 01 13:41:57 -0700 2011",
            "2011-08-01T13:41:57",
        ] {
            assert_eq!(read(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(
            text in "\\PC{0,40}",
            iso in "[0-9T:+Z./ UTC-]{0,30}",
            good in "[A-Za-z0-9:+ -]{0,34}",
            number in "-?[0-9]{0,22}[.]?[0-9]{0,12}",
        ) {
            for text in [&text, &iso, &good, &number] {
                for notation in TimeUnit::ALL.map(TimeUnit::notation).into_iter().chain([Notation::Goodreads]) {
                    for source in [Source::Layout, Source::Setting("s"), Source::Type] {
                        if let Err(problem) = notation.read(text, source) {
                            prop_assert!(!problem.to_string().is_empty());
                        }
                    }
                }
            }
        }

        #[test]
        fn times_are_written_as_they_are_read(seconds in -62_135_596_800_i64..=253_402_300_799) {
            prop_assert_eq!(iso(&utc(seconds)), Some((seconds, 0)));
        }

        #[test]
        fn any_time_is_written(seconds in any::<i64>()) {
            prop_assert!(utc(seconds).ends_with('Z'));
        }

        #[test]
        fn seconds_with_decimals_come_back(nanos in any::<i64>()) {
            let nanos = i128::from(nanos);
            prop_assert_eq!(number_with(&as_seconds(nanos), 9), Some(nanos));
        }
    }
}
