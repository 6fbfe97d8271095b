//! `Retry-After` as other services send it (RFC 9110, section 10.2.3): a number of seconds, or an HTTP date.

const MS_PER_S: u64 = 1000;
const S_PER_DAY: u64 = 86_400;
const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

/// The time to wait, in milliseconds from now; `now_unix_ms` is in milliseconds since 1970. 0 for a date in the past, `None` for a value
/// in neither form. A time beyond the range of the result saturates; callers have bounds of their own.
pub fn retry_after_ms(value: &str, now_unix_ms: u64) -> Option<u32> {
    let value = value.trim();
    let wait_ms = match !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit()) {
        // Parsing fails only for a number that is too large.
        true => value.parse::<u64>().unwrap_or(u64::MAX).saturating_mul(MS_PER_S),
        false => date_unix_s(value, now_unix_ms / MS_PER_S)?.saturating_mul(MS_PER_S).saturating_sub(now_unix_ms),
    };
    Some(u32::try_from(wait_ms).unwrap_or(u32::MAX))
}

/// An HTTP date (RFC 9110, section 5.6.7) in its three forms, in seconds since 1970. The day of the week is not compared.
fn date_unix_s(text: &str, now_s: u64) -> Option<u64> {
    let words: Vec<&str> = text.split_ascii_whitespace().collect();
    let (day, month, year, time) = match *words.as_slice() {
        // Sun, 06 Nov 1994 08:49:37 GMT
        [weekday, day, month, year, time, "GMT"] if weekday.ends_with(',') && year.len() == 4 => {
            (day, month, number(year)?, time)
        }
        // Sunday, 06-Nov-94 08:49:37 GMT
        [weekday, date, time, "GMT"] if weekday.ends_with(',') => {
            let mut parts = date.split('-');
            let (day, month, year) = (parts.next()?, parts.next()?, parts.next()?);
            if parts.next().is_some() || year.len() != 2 {
                return None;
            }
            (day, month, full_year(number(year)?, now_s), time)
        }
        // Sun Nov  6 08:49:37 1994
        [_, month, day, time, year] if year.len() == 4 => (day, month, number(year)?, time),
        _ => return None,
    };
    let month = MONTHS.iter().position(|name| *name == month)? as u64 + 1;
    let day = number(day).filter(|day| (1..=31).contains(day))?;
    let mut parts = time.split(':');
    let mut part = |max: u64| parts.next().filter(|part| part.len() == 2).and_then(number).filter(|part| *part <= max);
    // A leap second is the second 60.
    let (hour, minute, second) = (part(23)?, part(59)?, part(60)?);
    if parts.next().is_some() || year < 1970 {
        return None;
    }
    Some(days_since_1970(year, month, day) * S_PER_DAY + hour * 3600 + minute * 60 + second)
}

/// The full year of two digits: at most 50 years in the future (RFC 9110, section 5.6.7).
fn full_year(digits: u64, now_s: u64) -> u64 {
    let this_year = 1970 + now_s / (S_PER_DAY * 146_097 / 400);
    let year = this_year - this_year % 100 + digits;
    if year > this_year + 50 { year - 100 } else { year }
}

fn number(text: &str) -> Option<u64> {
    if text.bytes().all(|byte| byte.is_ascii_digit()) { text.parse().ok() } else { None }
}

/// The number of days from 1970-01-01 to a Gregorian date. Years begin with March here, so that the leap day is the last.
fn days_since_1970(year: u64, month: u64, day: u64) -> u64 {
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let day_of_year = (153 * month + 2) / 5 + day - 1;
    (365 * year + year / 4 - year / 100 + year / 400 + day_of_year).saturating_sub(719_468)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::http::timestamp::rfc3339;

    const NOW_MS: u64 = 784_111_777_000;

    #[test]
    fn seconds_and_dates_are_read() {
        for (value, want) in [
            ("0", Some(0)),
            (" 120 ", Some(120_000)),
            ("4294967295", Some(u32::MAX)),
            ("99999999999999999999999", Some(u32::MAX)),
            ("Sun, 06 Nov 1994 08:49:37 GMT", Some(0)),
            ("Sun, 06 Nov 1994 08:49:39 GMT", Some(2000)),
            ("Sunday, 06-Nov-94 08:49:40 GMT", Some(3000)),
            ("Sun Nov  6 08:49:41 1994", Some(4000)),
            ("Sun, 06 Nov 1994 08:50:60 GMT", Some(83_000)),
            ("Thu, 01 Jan 1970 00:00:00 GMT", Some(0)),
            ("Fri, 31 Dec 9999 23:59:59 GMT", Some(u32::MAX)),
            ("", None),
            ("-1", None),
            ("1.5", None),
            ("soon", None),
            ("Sun, 06 Nov 1994 08:49:37", None),
            ("Sun, 06 Nov 1994 8:49:37 GMT", None),
            ("Sun, 06 Nov 1994 24:00:00 GMT", None),
            ("Sun, 32 Nov 1994 08:49:37 GMT", None),
            ("Sun, 06 Foo 1994 08:49:37 GMT", None),
            ("Sun, 06 Nov 1994 08:49:37 +0100", None),
        ] {
            assert_eq!(retry_after_ms(value, NOW_MS), want, "{value:?}");
        }
    }

    #[test]
    fn year_of_two_digits_is_at_most_50_years_ahead() {
        let s = |year| days_since_1970(year, 7, 1) * S_PER_DAY;
        assert_eq!((full_year(76, s(2026)), full_year(77, s(2026)), full_year(0, s(1999))), (2076, 1977, 1900));
    }

    proptest! {
        #[test]
        fn date_reads_back(unix_s in 0u64..253_402_300_799) {
            let text = rfc3339(unix_s * 1000);
            let (date, time) = (&text[..10], &text[11..19]);
            let month = MONTHS[date[5..7].parse::<usize>().unwrap() - 1];
            let http = format!("Mon, {} {month} {} {time} GMT", &date[8..10], &date[..4]);
            prop_assert_eq!(date_unix_s(&http, 0), Some(unix_s));
        }

        #[test]
        fn arbitrary_text_is_parsed_or_refused(value in "\\PC{0,40}", now: u64) {
            let _ = retry_after_ms(&value, now);
        }
    }
}
