//! [`Timestamp`]: a moment in UTC to the microsecond, and its two written forms.

use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A moment, in microseconds since the Unix epoch.
///
/// On the wire it is RFC 3339 in UTC with `Z` and six digits of fraction
/// (`2026-11-23T18:17:36.320458Z`); in the database it is what Python's
/// `datetime.isoformat()` writes (`2026-11-23T18:17:36.320458+00:00`, without the
/// fraction when it is zero).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(i64);

const MICROS_PER_SECOND: i64 = 1_000_000;
const SECONDS_PER_DAY: i64 = 86_400;

impl Timestamp {
    /// The time now, by the system's clock. A clock before 1970 reads as 1970.
    #[must_use]
    pub fn now() -> Self {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self(i64::try_from(since_epoch.as_micros()).unwrap_or(i64::MAX))
    }

    /// Reads ISO 8601 with an explicit offset, or `Z`; `None` if it is neither.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        // Listings read many, and nearly all have one of the two shapes that are written.
        parse_written(text.as_bytes()).map(Self).or_else(|| {
            text.parse::<jiff::Timestamp>().ok().map(|time| Self(time.as_microsecond()))
        })
    }

    /// The form in the database; see the type.
    #[must_use]
    pub fn to_database(self) -> String {
        let mut text = self.to_string();
        text.pop();
        if self.0.rem_euclid(MICROS_PER_SECOND) == 0 {
            text.truncate(text.len() - ".000000".len());
        }
        text.push_str("+00:00");
        text
    }

    /// The wire form of a year that has four digits, `None` for any other.
    fn wire_form(self) -> Option<[u8; WIRE_SHAPE.len()]> {
        let seconds = self.0.div_euclid(MICROS_PER_SECOND);
        let (year, month, day) = date_of_day(seconds.div_euclid(SECONDS_PER_DAY));
        if !(0..=9999).contains(&year) {
            return None;
        }
        let time = seconds.rem_euclid(SECONDS_PER_DAY);
        let mut text = *WIRE_SHAPE;
        write_digits(&mut text[0..4], year);
        write_digits(&mut text[5..7], month);
        write_digits(&mut text[8..10], day);
        write_digits(&mut text[11..13], time / 3600);
        write_digits(&mut text[14..16], time / 60 % 60);
        write_digits(&mut text[17..19], time % 60);
        write_digits(&mut text[20..26], self.0.rem_euclid(MICROS_PER_SECOND));
        Some(text)
    }
}

const WIRE_SHAPE: &[u8; 27] = b"0000-00-00T00:00:00.000000Z";

fn write_digits(place: &mut [u8], mut number: i64) {
    for digit in place.iter_mut().rev() {
        *digit =
            b'0' + u8::try_from(number % 10).expect("a remainder of 10 of what is not negative");
        number /= 10;
    }
}

/// Reads `YYYY-MM-DDTHH:MM:SS`, with a fraction of six digits or none, in UTC: `Z` or
/// `+00:00`. `None` for everything else, also for what only jiff knows to be wrong.
fn parse_written(text: &[u8]) -> Option<i64> {
    let (moment, zone) = text.split_at_checked(19)?;
    let (micros, zone) = match zone {
        [b'.', fraction @ ..] => {
            let (digits, zone) = fraction.split_at_checked(6)?;
            (read_digits(digits)?, zone)
        }
        zone => (0, zone),
    };
    if !matches!(zone, b"Z" | b"+00:00") {
        return None;
    }
    let [y1, y2, y3, y4, b'-', m1, m2, b'-', d1, d2, b'T', h1, h2, b':', n1, n2, b':', s1, s2] =
        *moment
    else {
        return None;
    };
    let year = read_digits(&[y1, y2, y3, y4])?;
    let month = read_digits(&[m1, m2])?;
    let day = read_digits(&[d1, d2])?;
    let (hour, minute, second) =
        (read_digits(&[h1, h2])?, read_digits(&[n1, n2])?, read_digits(&[s1, s2])?);
    if hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    let days = day_of_date(year, month, day);
    if date_of_day(days) != (year, month, day) {
        return None;
    }
    let seconds = days * SECONDS_PER_DAY + hour * 3600 + minute * 60 + second;
    Some(seconds * MICROS_PER_SECOND + micros)
}

fn read_digits(digits: &[u8]) -> Option<i64> {
    digits.iter().try_fold(0, |number, digit| {
        digit.is_ascii_digit().then(|| number * 10 + i64::from(digit - b'0'))
    })
}

/// Years of 400 repeat; these are counted from March, so that the leap day is a year's
/// last. Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms", `days_from_civil`
/// and `civil_from_days`: <https://howardhinnant.github.io/date_algorithms.html>.
const DAYS_PER_ERA: i64 = 146_097;
/// From 0000-03-01 to 1970-01-01.
const DAYS_TO_EPOCH: i64 = 719_468;

/// Days from 1970-01-01 to this date, in the proleptic Gregorian calendar. A month or day
/// out of range gives the day of another date.
fn day_of_date(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * DAYS_PER_ERA + day_of_era - DAYS_TO_EPOCH
}

/// The year, month and day of a day counted from 1970-01-01.
fn date_of_day(day: i64) -> (i64, i64, i64) {
    let day = day + DAYS_TO_EPOCH;
    let era = day.div_euclid(DAYS_PER_ERA);
    let day_of_era = day.rem_euclid(DAYS_PER_ERA);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    (year, month, day)
}

/// The form on the wire; see the type.
impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(text) = self.wire_form() {
            return f.write_str(str::from_utf8(&text).map_err(|_| fmt::Error)?);
        }
        let time = jiff::Timestamp::from_microsecond(self.0).map_err(|_| fmt::Error)?;
        write!(f, "{time:.6}")
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.wire_form() {
            Some(text) => serializer
                .serialize_str(str::from_utf8(&text).expect("digits and ASCII punctuation")),
            None => serializer.collect_str(self),
        }
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        Self::parse(&text).ok_or_else(|| serde::de::Error::custom("not an RFC 3339 timestamp"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_are_the_contracts() {
        let time = Timestamp::parse("2026-11-23T18:17:36.320458+00:00").expect("Python's form");
        assert_eq!(time.to_string(), "2026-11-23T18:17:36.320458Z");
        assert_eq!(time.to_database(), "2026-11-23T18:17:36.320458+00:00");

        let whole = Timestamp::parse("2026-11-23T18:17:36+00:00").expect("no fraction");
        assert_eq!(whole.to_string(), "2026-11-23T18:17:36.000000Z");
        assert_eq!(whole.to_database(), "2026-11-23T18:17:36+00:00");

        let elsewhere = Timestamp::parse("2026-11-23T20:17:36.5+02:00").expect("another offset");
        assert_eq!(elsewhere.to_database(), "2026-11-23T18:17:36.500000+00:00");
        assert_eq!(Timestamp::parse("2026-11-23T18:17:36"), None, "no offset");
        assert_eq!(Timestamp::parse("yesterday"), None);
    }

    /// Moments of all kinds: around each day's ends over 1,200 years, and far off.
    fn moments() -> impl Iterator<Item = i64> {
        let day = SECONDS_PER_DAY * MICROS_PER_SECOND;
        let near = (-220_000..220_000).flat_map(move |n| {
            let odd = (n * 7_919_319_797i64).rem_euclid(day);
            [n * day - 1, n * day, n * day + odd]
        });
        // 0000-01-01 to 9999-12-30, and the first and last that jiff has.
        let far = [-62_167_219_200, -62_167_219_201, 253_402_207_200, -377_705_023_201]
            .map(|seconds| seconds * MICROS_PER_SECOND);
        near.chain(far)
    }

    #[test]
    fn the_short_ways_agree_with_jiff() {
        for micros in moments() {
            let time = Timestamp(micros);
            let jiff = jiff::Timestamp::from_microsecond(micros).expect("in jiff's range");
            let text = format!("{jiff:.6}");
            assert_eq!(time.to_string(), text);
            assert_eq!(Timestamp::parse(&text), Some(time));
            assert_eq!(Timestamp::parse(&time.to_database()), Some(time));
        }
    }

    #[test]
    fn dates_and_times_that_are_none_are_refused() {
        for (good, bad) in [
            ("2024-02-29T00:00:00Z", "2023-02-29T00:00:00Z"),
            ("2000-02-29T00:00:00Z", "1900-02-29T00:00:00Z"),
            ("2024-04-30T23:59:59Z", "2024-04-31T23:59:59Z"),
            ("2024-12-31T23:00:00Z", "2024-13-01T23:00:00Z"),
            ("2024-01-01T23:00:00Z", "2024-00-01T23:00:00Z"),
            ("2024-01-01T00:59:00Z", "2024-01-00T00:59:00Z"),
            ("2024-01-01T23:59:59Z", "2024-01-01T24:00:00Z"),
            ("2024-01-01T23:59:59Z", "2024-01-01T23:60:00Z"),
            ("2024-01-01T23:59:59.000000Z", "2024-01-01T23:59:61.000000Z"),
            ("2024-01-01T23:59:59.123456+00:00", "2024-01-01T23:59:59.12345x+00:00"),
            ("2024-01-01T23:59:59+00:00", "2024-01-01T23:59:59+00:0"),
        ] {
            assert!(Timestamp::parse(good).is_some(), "{good}");
            assert_eq!(Timestamp::parse(bad), None, "{bad}");
        }
    }
}
