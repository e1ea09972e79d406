//! Times as the files write them, to seconds since 1970: ISO 8601, and the fixed layout of GoodReads.
//!
//! Both are parsed strictly: what is not exactly of the layout is no time. Dates are of the Gregorian
//! calendar, years 1 to 9999.

const SECONDS_PER_DAY: i64 = 86_400;
const MONTHS: [&str; 12] =
    ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
const WEEKDAYS: [&str; 7] = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"];

/// `2011-08-01`, `2011-08-01T13:41:57`, with a space for the `T`, with a fraction of the second
/// (cut off), with `Z`, `+hh:mm`, `+hhmm` or `+hh`. Without an offset the time is UTC.
pub(super) fn iso8601(text: &str) -> Option<i64> {
    let day = date(text.get(..10)?)?;
    let rest = text.get(10..)?;
    if rest.is_empty() {
        return Some(day);
    }
    let rest = rest.strip_prefix(['T', ' '])?;
    let (clock, zone) = rest.split_at(rest.find(['Z', '+', '-']).unwrap_or(rest.len()));
    let (whole, fraction) = clock.split_once('.').unwrap_or((clock, "0"));
    if fraction.is_empty() || !digits(fraction) {
        return None;
    }
    let offset = match zone {
        "" | "Z" => 0,
        _ => offset(zone)?,
    };
    Some(day + clock_seconds(whole)? - offset)
}

/// `Mon Aug 01 13:41:57 -0700 2011`.
pub(super) fn goodreads(text: &str) -> Option<i64> {
    let mut parts = text.split(' ');
    let [weekday, month, day, clock, zone, year] = std::array::from_fn(|_| parts.next());
    if parts.next().is_some() || !WEEKDAYS.contains(&weekday?) {
        return None;
    }
    let month = MONTHS.iter().position(|name| Some(*name) == month)? as i64 + 1;
    let day = days(number(year?, 4)?, month, number(day?, 2)?)? * SECONDS_PER_DAY;
    Some(day + clock_seconds(clock?)? - offset(zone?)?)
}

/// `yyyy-mm-dd`, as its first second.
fn date(text: &str) -> Option<i64> {
    let mut parts = text.split('-');
    let [year, month, day] = std::array::from_fn(|_| parts.next());
    let days = days(number(year?, 4)?, number(month?, 2)?, number(day?, 2)?)?;
    parts.next().is_none().then_some(days * SECONDS_PER_DAY)
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

/// Days from 1970-01-01 to a date that exists.
fn days(year: i64, month: i64, day: i64) -> Option<i64> {
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let length = match month {
        1 | 3 | 5 | 7 | 8 | 10 | 12 => 31,
        4 | 6 | 9 | 11 => 30,
        2 => 28 + i64::from(leap),
        _ => return None,
    };
    if year < 1 || !(1..=length).contains(&day) {
        return None;
    }
    // Years that begin in March have their leap day at the end.
    let year = if month <= 2 { year - 1 } else { year };
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    Some(year * 365 + year / 4 - year / 100 + year / 400 + day_of_year - 719_468)
}

/// A time as `2011-08-01T20:41:57Z`; years outside 0 to 9999 have their sign and all their digits.
pub(crate) fn utc(seconds: i64) -> String {
    let (day, second) = (seconds.div_euclid(SECONDS_PER_DAY), seconds.rem_euclid(SECONDS_PER_DAY));
    // Eras of 400 years begin on the first of March of the year 0.
    let (era, day) = ((day + 719_468).div_euclid(146_097), (day + 719_468).rem_euclid(146_097));
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year + era * 400 + i64::from(month <= 2);
    let (hour, minute) = (second / 3600, second / 60 % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{:02}Z", second % 60)
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

    #[test]
    fn iso_times_are_seconds_since_1970() {
        let cases = [
            ("1970-01-01", 0),
            ("1970-01-01T00:00:00Z", 0),
            ("2011-08-01T20:41:57Z", 1_312_231_317),
            ("2011-08-01 13:41:57-07:00", 1_312_231_317),
            ("2011-08-01T13:41:57.999-0700", 1_312_231_317),
            ("2011-08-01T13:41-07", 1_312_231_260),
            ("2000-02-29", 951_782_400),
            ("1969-12-31T23:59:59", -1),
            ("0001-01-01", -62_135_596_800),
            ("9999-12-31T23:59:59Z", 253_402_300_799),
        ];
        for (text, seconds) in cases {
            assert_eq!(iso8601(text), Some(seconds), "{text}");
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
            "2011-08-01T10:00:00+",
            "2011-08-01x10:00:00",
            "2011-08-01T10:00:00+7:00",
            "2011-08-01T10:00:00ZZ",
            "+011-08-01",
            "2011-08-01T10:00:00:00",
            "\u{661}011-08-01",
            "2011-08-0\u{661}",
        ] {
            assert_eq!(iso8601(text), None, "{text}");
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
    fn goodreads_times_are_seconds_since_1970() {
        assert_eq!(goodreads("Mon Aug 01 13:41:57 -0700 2011"), Some(1_312_231_317));
        assert_eq!(goodreads("Thu Jan 01 00:00:00 +0000 1970"), Some(0));
        assert_eq!(goodreads("Sat Feb 29 12:00:00 +0530 2020"), Some(1_582_957_800));
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
            assert_eq!(goodreads(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "\\PC{0,40}", iso in "[0-9T:+Z. -]{0,30}", good in "[A-Za-z0-9:+ -]{0,34}") {
            for text in [&text, &iso, &good] {
                let _ = (iso8601(text), goodreads(text));
            }
        }

        #[test]
        fn times_are_written_as_they_are_read(seconds in -62_135_596_800_i64..=253_402_300_799) {
            prop_assert_eq!(iso8601(&utc(seconds)), Some(seconds));
        }

        #[test]
        fn any_time_is_written(seconds in any::<i64>()) {
            prop_assert!(utc(seconds).ends_with('Z'));
        }
    }
}
