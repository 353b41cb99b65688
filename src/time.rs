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
        text.parse::<jiff::Timestamp>().ok().map(|time| Self(time.as_microsecond()))
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
}

/// The form on the wire; see the type.
impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = jiff::Timestamp::from_microsecond(self.0).map_err(|_| fmt::Error)?;
        write!(f, "{time:.6}")
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
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
}
