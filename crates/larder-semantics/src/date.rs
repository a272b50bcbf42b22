//! The dates of HTTP. Names match in any case; apart from that, parsing is as strict as the grammar.
//!
//! # Source
//!
//! [RFC 9110, section 5.6.7](https://www.rfc-editor.org/rfc/rfc9110#section-5.6.7) for the three forms; [RFC 9111,
//! section 4.2](https://www.rfc-editor.org/rfc/rfc9111#section-4.2) for names in any case.

use std::time::{Duration, SystemTime};

/// Parses a date in one of the three forms. It does not check whether the name of the weekday is right.
///
/// A year of two digits is in the range 1977 to 2076.
pub fn parse(text: &str) -> Option<SystemTime> {
    let mut at = Text(text);
    if let Some(date) = fixdate(&mut at) {
        return at.end(date);
    }
    at = Text(text);
    if let Some(date) = rfc850(&mut at) {
        return at.end(date);
    }
    at = Text(text);
    let date = asctime(&mut at)?;
    at.end(date)
}

/// Formats a date for a field. Times before 1970 become 1970, because HTTP has no earlier dates.
pub fn format(time: SystemTime) -> String {
    httpdate::fmt_http_date(time.max(SystemTime::UNIX_EPOCH))
}

#[derive(Clone, Copy)]
struct Date {
    year: i64,
    month: i64,
    day: i64,
    second: i64,
}

/// `Sun, 06 Nov 1994 08:49:37 GMT`
fn fixdate(at: &mut Text<'_>) -> Option<Date> {
    at.one_of(&WEEKDAYS.map(|name| &name[..3]))?;
    at.literal(", ")?;
    let day = at.digits(2)?;
    at.literal(" ")?;
    let month = at.month()?;
    at.literal(" ")?;
    let year = at.digits(4)?;
    at.literal(" ")?;
    let second = at.time()?;
    at.literal(" GMT")?;
    Some(Date { year, month, day, second })
}

/// `Sunday, 06-Nov-94 08:49:37 GMT`
fn rfc850(at: &mut Text<'_>) -> Option<Date> {
    at.one_of(&WEEKDAYS)?;
    at.literal(", ")?;
    let day = at.digits(2)?;
    at.literal("-")?;
    let month = at.month()?;
    at.literal("-")?;
    let year = at.digits(2)?;
    at.literal(" ")?;
    let second = at.time()?;
    at.literal(" GMT")?;
    let century = if year <= LAST_OF_2000S { 2000 } else { 1900 };
    Some(Date { year: century + year, month, day, second })
}

/// `Sun Nov  6 08:49:37 1994`
fn asctime(at: &mut Text<'_>) -> Option<Date> {
    at.one_of(&WEEKDAYS.map(|name| &name[..3]))?;
    at.literal(" ")?;
    let month = at.month()?;
    at.literal(" ")?;
    let day = match at.literal(" ") {
        Some(()) => at.digits(1)?,
        None => at.digits(2)?,
    };
    at.literal(" ")?;
    let second = at.time()?;
    at.literal(" ")?;
    let year = at.digits(4)?;
    Some(Date { year, month, day, second })
}

impl Date {
    fn to_time(self) -> Option<SystemTime> {
        if !(1..=days_in(self.year, self.month)).contains(&self.day) {
            return None;
        }
        let seconds = days_since_1970(self.year, self.month, self.day) * 86_400 + self.second;
        match u64::try_from(seconds) {
            Ok(after) => SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(after)),
            Err(_) => {
                SystemTime::UNIX_EPOCH.checked_sub(Duration::from_secs(seconds.unsigned_abs()))
            }
        }
    }
}

/// The rest of a string that is being parsed.
struct Text<'a>(&'a str);

impl Text<'_> {
    fn end(&self, date: Date) -> Option<SystemTime> {
        if self.0.is_empty() { date.to_time() } else { None }
    }

    /// Consumes a literal in upper or lower case.
    fn literal(&mut self, expected: &str) -> Option<()> {
        let (found, rest) = self.0.split_at_checked(expected.len())?;
        found.eq_ignore_ascii_case(expected).then(|| self.0 = rest)
    }

    fn one_of(&mut self, names: &[&str]) -> Option<usize> {
        names.iter().position(|name| self.literal(name).is_some())
    }

    fn month(&mut self) -> Option<i64> {
        self.one_of(&MONTHS).map(|at| at as i64 + 1)
    }

    fn digits(&mut self, count: usize) -> Option<i64> {
        let (found, rest) = self.0.split_at_checked(count)?;
        if !found.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        self.0 = rest;
        found.parse().ok()
    }

    /// Parses `08:49:37` to seconds of the day. A leap second is allowed.
    fn time(&mut self) -> Option<i64> {
        let hour = self.digits(2)?;
        self.literal(":")?;
        let minute = self.digits(2)?;
        self.literal(":")?;
        let second = self.digits(2)?;
        (hour < 24 && minute < 60 && second <= 60).then_some(hour * 3600 + minute * 60 + second)
    }
}

fn days_in(year: i64, month: i64) -> i64 {
    match month {
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Counts years that begin in March, so that the leap day is the last day.
fn days_since_1970(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    year * 365 + year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400) + day_of_year
        - DAYS_BEFORE_1970
}

/// Days from 1 March of the year 0.
const DAYS_BEFORE_1970: i64 = 719_468;
const LAST_OF_2000S: i64 = 76;
const WEEKDAYS: [&str; 7] =
    ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"];
const MONTHS: [&str; 12] =
    ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_three_forms_are_read_and_nothing_looser() {
        let expected = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
        // The columns are the string, whether it is a date, and the section.
        let rows = [
            ("Sun, 06 Nov 1994 08:49:37 GMT", true, "RFC 9110 5.6.7"),
            ("Sunday, 06-Nov-94 08:49:37 GMT", true, "RFC 9110 5.6.7: obsolete, rfc850"),
            ("Sun Nov  6 08:49:37 1994", true, "RFC 9110 5.6.7: obsolete, asctime"),
            ("Sun Nov 06 08:49:37 1994", true, "RFC 9110 5.6.7: two digits"),
            ("sUN, 06 nOV 1994 08:49:37 gmt", true, "RFC 9111 4.2: any case"),
            ("Mon, 06 Nov 1994 08:49:37 GMT", true, "the weekday is not checked"),
            ("Sun, 06 Nov 1994 08:49:37 UTC", false, "RFC 9110 5.6.7: GMT"),
            ("Sun, 06 Nov 1994 08:49:37 AEST", false, "RFC 9111 4.2: other zones"),
            ("Sun, 06 Nov 1994 08:49:37", false, "RFC 9110 5.6.7"),
            ("Sun 06 Nov 1994 08:49:37 GMT", false, "RFC 9110 5.6.7: the comma"),
            ("Sun, 6 Nov 1994 08:49:37 GMT", false, "RFC 9110 5.6.7: two digits"),
            ("Sun, 06 Nov 94 08:49:37 GMT", false, "RFC 9110 5.6.7: four digits"),
            ("Sun, 06-Nov-1994 08:49:37 GMT", false, "RFC 9110 5.6.7"),
            ("Sun, 06 Nov 1994 8:49:37 GMT", false, "RFC 9110 5.6.7: two digits"),
            ("Sun, 06 Nov 1994 08.49.37 GMT", false, "RFC 9110 5.6.7"),
            ("Sun,  06 Nov 1994 08:49:37 GMT", false, "RFC 9110 5.6.7: one blank"),
            ("Sun, 31 Feb 1994 08:49:37 GMT", false, "no such day"),
            ("Sun, 06 Nov 1994 24:00:00 GMT", false, "no such hour"),
            ("784111777", false, "RFC 9110 5.6.7"),
            ("0", false, "RFC 9111 5.3"),
        ];
        for (text, is_date, section) in rows {
            assert_eq!(parse(text), is_date.then_some(expected), "{text} ({section})");
        }
    }

    #[test]
    fn dates_before_1970_and_far_away_are_dates() {
        assert!(parse("Mon, 01 Jan 1900 00:00:00 GMT").unwrap() < SystemTime::UNIX_EPOCH);
        assert!(parse("Fri, 31 Dec 9999 23:59:59 GMT").is_some());
        let [last, first] =
            ["Monday, 01-Jan-76 00:00:00 GMT", "Monday, 01-Jan-77 00:00:00 GMT"].map(parse);
        assert!(last > first);
    }

    #[test]
    fn each_month_has_its_days() {
        // The columns are the year, the month and its last day.
        let rows = [
            (1900, "Feb", 28),
            (1996, "Feb", 29),
            (2000, "Feb", 29),
            (2001, "Feb", 28),
            (2001, "Jan", 31),
            (2001, "Mar", 31),
            (2001, "Apr", 30),
            (2001, "May", 31),
            (2001, "Jun", 30),
            (2001, "Jul", 31),
            (2001, "Aug", 31),
            (2001, "Sep", 30),
            (2001, "Oct", 31),
            (2001, "Nov", 30),
            (2001, "Dec", 31),
        ];
        for (year, month, last) in rows {
            for (day, is_date) in [(0, false), (1, true), (last, true), (last + 1, false)] {
                let text = format!("Sun, {day:02} {month} {year} 00:00:00 GMT");
                assert_eq!(parse(&text).is_some(), is_date, "{text}");
            }
        }
    }

    #[test]
    fn times_of_day_end_at_a_leap_second() {
        for (time, is_time) in [
            ("23:59:59", true),
            ("23:59:60", true),
            ("23:59:61", false),
            ("23:60:00", false),
            ("24:00:00", false),
        ] {
            assert_eq!(parse(&format!("Sun, 06 Nov 1994 {time} GMT")).is_some(), is_time, "{time}");
        }
    }

    proptest! {
        #[test]
        fn every_formatted_date_parses_to_itself(seconds in 0_u64..250_000_000_000) {
            let time = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
            prop_assert_eq!(parse(&format(time)), Some(time));
        }

        #[test]
        fn parsing_any_string_does_not_panic(text in "\\PC{0,40}") {
            parse(&text);
        }
    }
}
