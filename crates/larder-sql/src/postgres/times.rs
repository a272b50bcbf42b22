//! Times and dates.

use time::{
    Date, OffsetDateTime, PrimitiveDateTime, Time,
    format_description::{BorrowedFormatItem, well_known::Rfc3339},
    macros::{date, format_description},
};

/// Writes a time as in RFC 3339, with a `Z` if its zone is known. RFC 3339 has no years before Christ or after 9999, so
/// such a time is written as the server writes it: `0044-03-15 12:00:00 BC`, `12000-01-01 00:00:00+00`.
pub(super) fn timestamp(micros: i64, in_utc: bool) -> String {
    match micros {
        i64::MAX => return "infinity".to_owned(),
        i64::MIN => return "-infinity".to_owned(),
        _ => {}
    }
    let (days, time) = (micros.div_euclid(DAY), time_text(micros.rem_euclid(DAY)));
    let (date, era) = calendar(days);
    if era.is_empty() && date.len() == "2000-01-01".len() {
        return format!("{date}T{time}{}", if in_utc { "Z" } else { "" });
    }
    format!("{date} {time}{}{era}", if in_utc { "+00" } else { "" })
}

/// A time of day, from `00:00:00` to `24:00:00`.
pub(super) fn time_text(micros: i64) -> String {
    let (seconds, rest) = (micros / 1_000_000, micros % 1_000_000);
    let time = format!("{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60);
    match rest {
        0 => time,
        rest => format!("{time}.{}", format!("{rest:06}").trim_end_matches('0')),
    }
}

pub(super) fn date_text(days: i32) -> String {
    match days {
        i32::MAX => return "infinity".to_owned(),
        i32::MIN => return "-infinity".to_owned(),
        _ => {}
    }
    let (date, era) = calendar(days.into());
    date + era
}

/// Converts a number of days since [`EPOCH`] to a date in the proleptic Gregorian calendar. Also returns the suffix
/// ` BC` for a year before the year 1, and an empty suffix otherwise. It works for any year, because the server has dates up to the year 5,874,897, which calendar
/// libraries do not support.
///
/// Source: Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms", `civil_from_days`.
fn calendar(days: i64) -> (String, &'static str) {
    // Counts from 1 March of the year 0, in eras of 400 years.
    let days = days + DAYS_BEFORE_EPOCH;
    let (era, day) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year + era * 400 + i64::from(month <= 2);
    // The server has no year 0.
    let (year, era) = if year > 0 { (year, "") } else { (1 - year, " BC") };
    (format!("{year:04}-{month:02}-{day:02}"), era)
}

/// Writes a time of day with its zone, in seconds west of Greenwich.
pub(super) fn zoned_time(micros: i64, west: i32) -> String {
    let (sign, zone) = if west <= 0 { ('+', -west) } else { ('-', west) };
    let (hours, minutes, seconds) = (zone / 3600, zone / 60 % 60, zone % 60);
    let seconds = if seconds == 0 { String::new() } else { format!(":{seconds:02}") };
    format!("{}{sign}{hours:02}:{minutes:02}{seconds}", time_text(micros))
}

/// Writes an interval as in ISO 8601: `P1Y2M3DT4H5M6.5S`.
pub(super) fn interval(months: i32, days: i32, micros: i64) -> String {
    let mut text = "P".to_owned();
    let mut add = |number: i64, unit: char| {
        if number != 0 {
            text += &format!("{number}{unit}");
        }
    };
    add((months / 12).into(), 'Y');
    add((months % 12).into(), 'M');
    add(days.into(), 'D');
    if micros != 0 {
        text.push('T');
        let mut add = |number: i64, unit: char| {
            if number != 0 {
                text += &format!("{number}{unit}");
            }
        };
        add(micros / (60 * MINUTE), 'H');
        add(micros / MINUTE % 60, 'M');
        let rest = micros % MINUTE;
        if rest != 0 {
            let (sign, rest) = (if rest < 0 { "-" } else { "" }, rest.abs());
            let (seconds, fraction) = (rest / 1_000_000, rest % 1_000_000);
            let fraction = match fraction {
                0 => String::new(),
                fraction => format!(".{fraction:06}").trim_end_matches('0').to_owned(),
            };
            text += &format!("{sign}{seconds}{fraction}S");
        }
    }
    if text == "P" { "PT0S".to_owned() } else { text }
}

/// Reads a time with its zone, as in RFC 3339, in microseconds from the epoch of the server.
pub(super) fn micros_of_zoned(text: &str) -> Option<i64> {
    if let Some(endless) = endless(text) {
        return Some(if endless { i64::MAX } else { i64::MIN });
    }
    let at = OffsetDateTime::parse(text, &Rfc3339).ok()?;
    i64::try_from((at - EPOCH.midnight().assume_utc()).whole_microseconds()).ok()
}

/// Reads a time without a zone: `2024-02-29T10:00:00` or with a blank in place of the `T`.
pub(super) fn micros_of(text: &str) -> Option<i64> {
    if let Some(endless) = endless(text) {
        return Some(if endless { i64::MAX } else { i64::MIN });
    }
    let (day, time) = text.split_once(['T', ' '])?;
    let at = PrimitiveDateTime::new(parsed_date(day)?, parsed_time(time)?);
    i64::try_from((at - EPOCH.midnight()).whole_microseconds()).ok()
}

/// Reads a time of day, `hh:mm:ss` or `hh:mm`, in microseconds.
pub(super) fn micros_of_day(text: &str) -> Option<i64> {
    if text == "24:00:00" {
        return Some(DAY);
    }
    i64::try_from((parsed_time(text)? - Time::MIDNIGHT).whole_microseconds()).ok()
}

/// Reads a date, `2024-02-29`, in days from the epoch of the server.
pub(super) fn days_of(text: &str) -> Option<i32> {
    if let Some(endless) = endless(text) {
        return Some(if endless { i32::MAX } else { i32::MIN });
    }
    i32::try_from((parsed_date(text)? - EPOCH).whole_days()).ok()
}

fn endless(text: &str) -> Option<bool> {
    match text {
        "infinity" => Some(true),
        "-infinity" => Some(false),
        _ => None,
    }
}

fn parsed_date(text: &str) -> Option<Date> {
    const FORMAT: &[BorrowedFormatItem<'_>] = format_description!("[year]-[month]-[day]");
    Date::parse(text, FORMAT).ok()
}

fn parsed_time(text: &str) -> Option<Time> {
    const FORMAT: &[BorrowedFormatItem<'_>] = format_description!(
        version = 2,
        "[hour]:[minute][optional [:[second][optional [.[subsecond]]]]]"
    );
    Time::parse(text, FORMAT).ok()
}

/// The day from which the server counts.
const EPOCH: Date = date!(2000 - 01 - 01);
/// The days from 1 March of the year 0 to [`EPOCH`].
const DAYS_BEFORE_EPOCH: i64 = 730_425;
/// The length of a day in microseconds.
const DAY: i64 = 86_400_000_000;
const MINUTE: i64 = 60_000_000;

#[cfg(test)]
mod tests {
    use time::Duration;

    use super::*;

    #[test]
    fn times_are_written_as_in_rfc_3339_or_as_the_server_does() {
        let ides = (date!(-0043 - 03 - 15) - EPOCH).whole_days() * DAY;
        let rows = [
            (0, "2000-01-01T00:00:00", "2000-01-01T00:00:00Z"),
            (-1, "1999-12-31T23:59:59.999999", "1999-12-31T23:59:59.999999Z"),
            (817_780_215_500_000, "2025-11-30T01:10:15.5", "2025-11-30T01:10:15.5Z"),
            (i64::MAX, "infinity", "infinity"),
            (i64::MIN, "-infinity", "-infinity"),
            (ides, "0044-03-15 00:00:00 BC", "0044-03-15 00:00:00+00 BC"),
            (315_569_520_000_000_000, "12000-01-01 00:00:00", "12000-01-01 00:00:00+00"),
        ];
        for (micros, expected, in_utc) in rows {
            assert_eq!(timestamp(micros, false), expected);
            assert_eq!(timestamp(micros, true), in_utc);
        }
        assert_eq!(date_text(-1), "1999-12-31");
        assert_eq!(time_text(DAY), "24:00:00");
        // Compares every day of some centuries with the calendar of a library.
        for days in -400_000..400_000 {
            let date = EPOCH + Duration::days(days);
            assert_eq!(calendar(days), (date.to_string(), ""));
        }
    }

    #[test]
    fn times_are_read_as_they_are_written() {
        for micros in [0, -1, 817_780_215_500_000, 1_000_000, i64::MAX, i64::MIN] {
            assert_eq!(micros_of(&timestamp(micros, false)), Some(micros));
            assert_eq!(micros_of_zoned(&timestamp(micros, true)), Some(micros));
        }
        for days in [0, -1, 9_000, i32::MAX, i32::MIN] {
            assert_eq!(days_of(&date_text(days)), Some(days));
        }
        for micros in [0, 1, DAY - 1, DAY] {
            assert_eq!(micros_of_day(&time_text(micros)), Some(micros));
        }
        assert_eq!(micros_of("2000-01-01 00:00:01"), Some(1_000_000));
        assert_eq!(micros_of_day("10:30"), Some(37_800_000_000));
        for text in ["", "2024-02-30", "29.2.2024", "today", "25:00"] {
            assert_eq!((days_of(text), micros_of(text), micros_of_day(text)), (None, None, None));
        }
    }

    #[test]
    fn intervals_are_written_as_in_iso_8601() {
        let rows = [
            ((0, 0, 0), "PT0S"),
            ((14, 3, 14_706_500_000), "P1Y2M3DT4H5M6.5S"),
            ((0, -1, -500_000), "P-1DT-0.5S"),
            ((1, 0, 0), "P1M"),
            ((0, 0, 3_600_000_000), "PT1H"),
        ];
        for ((months, days, micros), expected) in rows {
            assert_eq!(interval(months, days, micros), expected);
        }
        assert_eq!(zoned_time(37_800_000_000, -3600), "10:30:00+01:00");
        assert_eq!(zoned_time(0, 19_800), "00:00:00-05:30");
    }
}
