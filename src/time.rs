//! [`Timestamp`]: a moment in UTC, to the microsecond.

use std::borrow::Cow;
use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A moment in UTC, to the microsecond.
///
/// It has two written forms. The wire form (`Display` and serde) is RFC 3339 with `Z` and six
/// digits of fraction: `2026-11-23T18:17:36.320458Z`. The database form
/// ([`to_database`](Self::to_database)) is what Python's `datetime.isoformat()` writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(jiff::Timestamp);

impl Timestamp {
    /// The current time of the system's clock.
    #[must_use]
    pub fn now() -> Self {
        Self::truncated(jiff::Timestamp::now())
    }

    /// Parses ISO 8601 with an explicit offset or `Z`; `None` for anything else. Digits
    /// beyond the microsecond are dropped.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        text.parse().ok().map(Self::truncated)
    }

    /// The form in the database: `2026-11-23T18:17:36.320458+00:00`, without the fraction
    /// when it is zero.
    #[must_use]
    pub fn to_database(self) -> String {
        let wire = self.to_string();
        let time = wire.trim_end_matches('Z');
        format!("{}+00:00", time.strip_suffix(".000000").unwrap_or(time))
    }

    /// The whole seconds from `earlier` to this time; 0 if there are none.
    #[must_use]
    pub fn seconds_since(self, earlier: Self) -> u64 {
        u64::try_from(self.0.duration_since(earlier.0).as_secs()).unwrap_or(0)
    }

    fn truncated(time: jiff::Timestamp) -> Self {
        let time = jiff::Timestamp::from_microsecond(time.as_microsecond());
        Self(time.expect("truncating does not leave the range of a timestamp"))
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.6}", self.0)
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Cow::<'de, str>::deserialize(deserializer)?;
        Self::parse(&text).ok_or_else(|| serde::de::Error::custom("not an RFC 3339 timestamp"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_follow_the_contract() {
        let time = Timestamp::parse("2026-11-23T18:17:36.320458+00:00").expect("Python's form");
        assert_eq!(time.to_string(), "2026-11-23T18:17:36.320458Z");
        assert_eq!(time.to_database(), "2026-11-23T18:17:36.320458+00:00");

        let whole = Timestamp::parse("2026-11-23T18:17:36+00:00").expect("no fraction");
        assert_eq!(whole.to_string(), "2026-11-23T18:17:36.000000Z");
        assert_eq!(whole.to_database(), "2026-11-23T18:17:36+00:00");

        let elsewhere = Timestamp::parse("2026-11-23T20:17:36.5+02:00").expect("another offset");
        assert_eq!(elsewhere.to_database(), "2026-11-23T18:17:36.500000+00:00");
        let precise = Timestamp::parse("2026-11-23T18:17:36.123456789Z").expect("nanoseconds");
        assert_eq!(precise.to_string(), "2026-11-23T18:17:36.123456Z");
        let now = Timestamp::now();
        assert_eq!(Timestamp::parse(&now.to_database()), Some(now));
    }

    #[test]
    fn anything_else_is_rejected() {
        for text in ["yesterday", "2026-11-23T18:17:36", "2023-02-29T00:00:00Z", "2024-01-01"] {
            assert_eq!(Timestamp::parse(text), None, "{text}");
        }
    }
}
