//! Lengths of time as people write them in manifests: `30s`, `1h30m`, `500ms`.
//!
//! The grammar is the part of Go's that Kubernetes users meet: whole numbers with `h`, `m`, `s` or `ms`.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A length of time with a resolution of one millisecond, at most [`KubeDuration::MAX`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KubeDuration {
    millis: u64,
}

/// Text that is not a [`KubeDuration`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a duration; allowed: {}", KubeDuration::ALLOWED)]
pub struct DurationError {
    text: String,
}

impl KubeDuration {
    /// No time at all; for most limits, no limit.
    pub const ZERO: Self = Self { millis: 0 };
    /// One hundred years: what may be added to any time of today without overflow.
    pub const MAX: Self = Self::from_hours(876_000);
    /// The grammar as a regular expression for the schema.
    pub const PATTERN: &str = "^([0-9]{1,10}(ms|s|m|h)){1,4}$";
    /// The grammar in words.
    pub const ALLOWED: &str =
        "whole numbers with the units h, m, s or ms, such as 30s, 1h30m or 168h, up to 876000h";

    /// `millis` thousandths of a second, cut off at [`KubeDuration::MAX`] once parsed again.
    #[must_use]
    pub const fn from_millis(millis: u64) -> Self {
        Self { millis }
    }

    /// `secs` seconds.
    #[must_use]
    pub const fn from_secs(secs: u32) -> Self {
        Self { millis: secs as u64 * 1000 }
    }

    /// `hours` hours.
    #[must_use]
    pub const fn from_hours(hours: u32) -> Self {
        Self { millis: hours as u64 * 3_600_000 }
    }

    /// The same as the standard library's type.
    #[must_use]
    pub const fn as_duration(self) -> Duration {
        Duration::from_millis(self.millis)
    }

    /// Whether this is [`KubeDuration::ZERO`].
    #[must_use]
    pub const fn is_zero(self) -> bool {
        self.millis == 0
    }
}

impl From<KubeDuration> for Duration {
    fn from(duration: KubeDuration) -> Self {
        duration.as_duration()
    }
}

impl FromStr for KubeDuration {
    type Err = DurationError;

    fn from_str(text: &str) -> Result<Self, DurationError> {
        parse_millis(text)
            .filter(|&millis| millis <= Self::MAX.millis)
            .map(Self::from_millis)
            .ok_or_else(|| DurationError { text: text.chars().take(64).collect() })
    }
}

fn parse_millis(text: &str) -> Option<u64> {
    let mut rest = text;
    let mut total = 0_u64;
    for terms in 1.. {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        if !(1..=10).contains(&digits) || terms > 4 {
            return None;
        }
        let (number, tail) = rest.split_at(digits);
        let unit = tail.bytes().take_while(u8::is_ascii_lowercase).count();
        let (unit, tail) = tail.split_at(unit);
        let unit_millis = match unit {
            "ms" => 1,
            "s" => 1000,
            "m" => 60_000,
            "h" => 3_600_000,
            _ => return None,
        };
        total = total.checked_add(number.parse::<u64>().ok()?.checked_mul(unit_millis)?)?;
        if tail.is_empty() {
            break;
        }
        rest = tail;
    }
    Some(total)
}

impl fmt::Display for KubeDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_zero() {
            return f.write_str("0s");
        }
        let mut rest = self.millis;
        for (unit, unit_millis) in [("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)] {
            if rest >= unit_millis {
                write!(f, "{}{unit}", rest / unit_millis)?;
                rest %= unit_millis;
            }
        }
        Ok(())
    }
}

impl Serialize for KubeDuration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for KubeDuration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

impl JsonSchema for KubeDuration {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "KubeDuration".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "pattern": Self::PATTERN, "maxLength": 48 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_and_prints() {
        for (text, millis, canonical) in [
            ("30s", 30_000, "30s"),
            ("168h", 604_800_000, "168h"),
            ("1h30m", 5_400_000, "1h30m"),
            ("90m", 5_400_000, "1h30m"),
            ("500ms", 500, "500ms"),
            ("1s500ms", 1500, "1s500ms"),
            ("0s", 0, "0s"),
            ("168h0m0s", 604_800_000, "168h"),
            ("876000h", 3_153_600_000_000, "876000h"),
        ] {
            let parsed: KubeDuration = text.parse().unwrap();
            assert_eq!(parsed.as_duration(), Duration::from_millis(millis), "{text}");
            assert_eq!(parsed.to_string(), canonical);
            assert_eq!(canonical.parse(), Ok(parsed));
        }
    }

    #[test]
    fn refuses() {
        for text in [
            "",
            "30",
            "s",
            "-1s",
            "1.5h",
            "30 s",
            "1d",
            "30S",
            "1h ",
            "876001h",
            "99999999999s",
            "9999999999h",
            "1s1s1s1s1s",
            "１s",
        ] {
            let error = text.parse::<KubeDuration>().unwrap_err();
            assert!(error.to_string().contains("is not a duration; allowed:"), "{text}: {error}");
        }
    }
}
