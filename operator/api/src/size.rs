//! Amounts of storage as Kubernetes writes them: `10Gi`, `500M`, or plain bytes.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::Visitor;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A number of bytes, at most [`ByteSize::MAX`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteSize {
    bytes: u64,
}

/// Text or a number that is not a [`ByteSize`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a size; allowed: {}", ByteSize::ALLOWED)]
pub struct ByteSizeError {
    text: String,
}

const UNITS: [(&str, u64); 12] = [
    ("Ei", 1 << 60),
    ("Pi", 1 << 50),
    ("Ti", 1 << 40),
    ("Gi", 1 << 30),
    ("Mi", 1 << 20),
    ("Ki", 1 << 10),
    ("E", 1_000_000_000_000_000_000),
    ("P", 1_000_000_000_000_000),
    ("T", 1_000_000_000_000),
    ("G", 1_000_000_000),
    ("M", 1_000_000),
    ("k", 1_000),
];

impl ByteSize {
    /// Nothing; for limits, no limit.
    pub const ZERO: Self = Self { bytes: 0 };
    /// The largest size: what a signed 64-bit number holds.
    pub const MAX: Self = Self { bytes: i64::MAX as u64 };
    /// The grammar as a regular expression for the schema.
    pub const PATTERN: &str = "^[0-9]{1,19}([.][0-9]{1,9})?(k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei)?$";
    /// The grammar in words.
    pub const ALLOWED: &str = "bytes, alone or with one of k, M, G, T, P, E, Ki, Mi, Gi, Ti, Pi, Ei, such as 10Gi or 500M, below 8Ei";

    /// `bytes` bytes.
    #[must_use]
    pub const fn from_bytes(bytes: u64) -> Self {
        Self { bytes }
    }

    /// `count` times 2³⁰ bytes.
    #[must_use]
    pub const fn from_gibibytes(count: u16) -> Self {
        Self { bytes: (count as u64) << 30 }
    }

    /// This size in bytes.
    #[must_use]
    pub const fn as_bytes(self) -> u64 {
        self.bytes
    }
}

impl FromStr for ByteSize {
    type Err = ByteSizeError;

    fn from_str(text: &str) -> Result<Self, ByteSizeError> {
        parse_bytes(text)
            .filter(|&bytes| bytes <= Self::MAX.bytes)
            .map(Self::from_bytes)
            .ok_or_else(|| ByteSizeError { text: text.chars().take(64).collect() })
    }
}

/// Fractions of a byte are rounded up, as a Kubernetes quantity is.
fn parse_bytes(text: &str) -> Option<u64> {
    let digits_end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(digits_end);
    let unit = match suffix {
        "" => 1,
        _ => UNITS.iter().find(|(name, _)| *name == suffix)?.1,
    };
    let (whole, fraction) = match number.split_once('.') {
        Some((whole, fraction)) if (1..=9).contains(&fraction.len()) => (whole, fraction),
        Some(_) => return None,
        None => (number, ""),
    };
    if !(1..=19).contains(&whole.len()) {
        return None;
    }
    let scale = 10_u128.pow(u32::try_from(fraction.len()).ok()?);
    let scaled = whole.parse::<u128>().ok()? * scale + format!("0{fraction}").parse::<u128>().ok()?;
    // What overflows here is over the largest size even after the division.
    let bytes = scaled.checked_mul(u128::from(unit))?.div_ceil(scale);
    u64::try_from(bytes).ok()
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = UNITS.iter().find(|(_, unit)| self.bytes >= *unit && self.bytes.is_multiple_of(*unit));
        match unit {
            Some((name, unit)) => write!(f, "{}{name}", self.bytes / unit),
            None => write!(f, "{}", self.bytes),
        }
    }
}

impl Serialize for ByteSize {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(SizeVisitor)
    }
}

struct SizeVisitor;

impl Visitor<'_> for SizeVisitor {
    type Value = ByteSize;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(ByteSize::ALLOWED)
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<ByteSize, E> {
        text.parse().map_err(E::custom)
    }

    fn visit_u64<E: serde::de::Error>(self, bytes: u64) -> Result<ByteSize, E> {
        self.visit_str(&bytes.to_string())
    }

    fn visit_i64<E: serde::de::Error>(self, bytes: i64) -> Result<ByteSize, E> {
        self.visit_str(&bytes.to_string())
    }
}

impl JsonSchema for ByteSize {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "ByteSize".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "x-kubernetes-int-or-string": true, "minimum": 0, "pattern": Self::PATTERN, "maxLength": 32 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_and_prints() {
        for (text, bytes, canonical) in [
            ("0", 0, "0"),
            ("1000", 1000, "1k"),
            ("1025", 1025, "1025"),
            ("10Gi", 10 << 30, "10Gi"),
            ("500M", 500_000_000, "500M"),
            ("1.5Gi", 3 << 29, "1536Mi"),
            ("0.5", 1, "1"),
            ("0.0001k", 1, "1"),
            ("9223372036854775807", i64::MAX as u64, "9223372036854775807"),
        ] {
            let size: ByteSize = text.parse().unwrap();
            assert_eq!(size.as_bytes(), bytes, "{text}");
            assert_eq!(size.to_string(), canonical);
            assert_eq!(canonical.parse(), Ok(size));
        }
    }

    #[test]
    fn refuses() {
        for text in [
            "",
            "Gi",
            "-1",
            "1 Gi",
            "1gi",
            "1Kb",
            "1K",
            ".5Gi",
            "1.",
            "1.2.3",
            "1m",
            "1e3",
            "8Ei",
            "9223372036854775808",
            "99999999999999999999",
            "1.0000000001",
        ] {
            let error = text.parse::<ByteSize>().unwrap_err();
            assert!(error.to_string().contains("is not a size; allowed:"), "{text}: {error}");
        }
    }

    #[test]
    fn reads_numbers_and_text() {
        for (json, bytes) in [("1024", 1024), ("\"1Ki\"", 1024), ("0", 0)] {
            assert_eq!(serde_json::from_str::<ByteSize>(json).unwrap().as_bytes(), bytes);
        }
        for json in ["-1", "1.5", "true", "null"] {
            assert!(serde_json::from_str::<ByteSize>(json).is_err(), "{json}");
        }
    }
}
