//! Parsers and printers of single values. Each says what it allows; none knows which setting it serves.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use weir_core::inbox::InboxOverflow;
use weir_storage_fdb::{FdbOptions, NAME_BYTES_MAX};

use super::{LogFormat, StoreConfig};

/// A number of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteCount(pub u64);

/// A value that has a least and a greatest.
pub(super) trait Quantity: Sized + PartialOrd {
    /// What the value is called in messages, with an article.
    const KIND: &'static str;
    /// What stands for it in help.
    const VALUE_NAME: &'static str;
    fn parse(text: &str) -> Option<Self>;
    fn show(&self) -> String;
    /// What is allowed, for messages.
    fn allowed(range: &RangeInclusive<Self>) -> String {
        format!("{} from {} to {}", Self::KIND, range.start().show(), range.end().show())
    }
}

pub(super) fn within<T: Quantity>(text: &str, range: &RangeInclusive<T>) -> Result<T, String> {
    T::parse(text)
        .filter(|value| range.contains(value))
        .ok_or_else(|| format!("`{text}` is not allowed; allowed: {}", T::allowed(range)))
}

/// A duration such as `30s` or `1h30m`.
pub(crate) fn parse_duration(text: &str) -> Option<Duration> {
    Duration::parse(text)
}

/// A duration in its largest whole unit.
pub(crate) fn show_duration(duration: Duration) -> String {
    duration.show()
}

/// How often something is done, or zero for never.
pub(super) fn interval(text: &str) -> Result<Duration, String> {
    let range = Duration::from_millis(100)..=Duration::from_hours(1);
    match Duration::parse(text) {
        Some(duration) if duration.is_zero() || range.contains(&duration) => Ok(duration),
        _ => {
            Err(format!("`{text}` is not allowed; allowed: 0s, or a duration (ms, s, m, h) from 100ms to 1h"))
        }
    }
}

pub(super) fn boolean(text: &str) -> Result<bool, String> {
    match text {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => Err(format!("`{text}` is not allowed; allowed: true, false")),
    }
}

/// Where messages live.
pub(crate) fn store(text: &str) -> Result<StoreConfig, String> {
    match text.split_once(':') {
        Some(("embedded", dir)) if !dir.is_empty() => Ok(StoreConfig::Embedded(PathBuf::from(dir))),
        Some(("memory", "")) => Ok(StoreConfig::Memory),
        Some(("fdb", file)) if !file.is_empty() => Ok(StoreConfig::Fdb(PathBuf::from(file))),
        Some(("remote", address)) if is_host_and_port(address) => Ok(StoreConfig::Remote(address.to_owned())),
        _ => Err(format!(
            "`{text}` is not allowed; allowed: embedded:DIR, fdb:CLUSTER_FILE, remote:HOST:PORT, memory:"
        )),
    }
}

/// Whether `text` can be where somebody listens, by name or by address.
fn is_host_and_port(text: &str) -> bool {
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || "-._:[]".contains(c);
    text.rsplit_once(':').is_some_and(|(host, port)| {
        !host.is_empty() && host.chars().all(is_allowed) && port.parse::<u16>().is_ok_and(|port| port > 0)
    })
}

pub(super) fn fdb_prefix(text: &str) -> Result<String, String> {
    match FdbOptions::is_name(text) {
        true => Ok(text.to_owned()),
        false => Err(format!(
            "`{text}` is not allowed; allowed: 1 to {NAME_BYTES_MAX} letters, digits, `-`, `_` and `.`"
        )),
    }
}

pub(super) fn address(text: &str) -> Result<SocketAddr, String> {
    socket_addr(text, None)
        .ok_or_else(|| format!("`{text}` is not allowed; allowed: ADDRESS:PORT with an IP address"))
}

pub(super) fn log_format(text: &str) -> Result<LogFormat, String> {
    match text {
        "text" => Ok(LogFormat::Text),
        "json" => Ok(LogFormat::Json),
        _ => Err(format!("`{text}` is not allowed; allowed: text, json")),
    }
}

pub(super) fn log_filter(text: &str) -> Result<String, String> {
    match tracing_subscriber::EnvFilter::try_new(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(error) => Err(format!("`{text}` is not allowed ({error}); allowed: as in `info,weir=debug`")),
    }
}

pub(super) fn otlp_endpoint(text: &str) -> Result<String, String> {
    match text.strip_prefix("http://") {
        Some(rest) if !rest.is_empty() && !rest.contains(char::is_whitespace) => Ok(text.to_owned()),
        _ => Err(format!("`{text}` is not allowed; allowed: http://HOST:PORT (OTLP over gRPC, without TLS)")),
    }
}

/// `localhost` stands for 127.0.0.1; other host names are not resolved, because what they resolve to decides
/// whether a listener is safe.
pub(super) fn socket_addr(text: &str, default_port: Option<u16>) -> Option<SocketAddr> {
    let text = match text.strip_prefix("localhost") {
        Some(rest) if rest.is_empty() || rest.starts_with(':') => format!("{}{rest}", Ipv4Addr::LOCALHOST),
        _ => text.to_owned(),
    };
    if let Ok(addr) = text.parse() {
        return Some(addr);
    }
    let ip: IpAddr = text.trim_start_matches('[').trim_end_matches(']').parse().ok()?;
    default_port.map(|port| SocketAddr::new(ip, port))
}

impl ByteCount {
    /// `n` times 1,024 bytes.
    #[must_use]
    pub const fn kib(n: u64) -> Self {
        Self(n << 10)
    }

    /// `n` times 1,024 KiB.
    #[must_use]
    pub const fn mib(n: u64) -> Self {
        Self(n << 20)
    }

    /// `n` times 1,024 MiB.
    #[must_use]
    pub const fn gib(n: u64) -> Self {
        Self(n << 30)
    }

    /// For sizes of buffers: the largest `usize` if it does not fit.
    #[must_use]
    pub fn as_usize(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }

    /// For sizes on the wire: the largest `u32` if it does not fit.
    #[must_use]
    pub fn as_u32(self) -> u32 {
        u32::try_from(self.0).unwrap_or(u32::MAX)
    }
}

const BYTE_UNITS: [(&str, u64); 3] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];

impl fmt::Display for ByteCount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match BYTE_UNITS.iter().find(|(_, unit)| self.0 >= *unit && self.0.is_multiple_of(*unit)) {
            Some((name, unit)) => write!(f, "{}{name}", self.0 / unit),
            None => write!(f, "{}B", self.0),
        }
    }
}

impl Quantity for ByteCount {
    const KIND: &'static str = "a size (B, KiB, MiB, GiB)";
    const VALUE_NAME: &'static str = "SIZE";

    fn parse(text: &str) -> Option<Self> {
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = text.split_at(digits);
        let unit = match unit {
            "" | "B" => 1,
            // The short forms are those of Kubernetes quantities.
            "Ki" | "KiB" => 1 << 10,
            "Mi" | "MiB" => 1 << 20,
            "Gi" | "GiB" => 1 << 30,
            _ => return None,
        };
        number.parse::<u64>().ok()?.checked_mul(unit).map(Self)
    }

    fn show(&self) -> String {
        self.to_string()
    }
}

const TIME_UNITS: [(&str, u64); 4] = [("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

impl Quantity for Duration {
    const KIND: &'static str = "a duration (ms, s, m, h)";
    const VALUE_NAME: &'static str = "DURATION";

    /// One or more numbers with a unit, as in `1h30m`.
    fn parse(text: &str) -> Option<Self> {
        let mut rest = text;
        let mut millis = 0_u64;
        while !rest.is_empty() {
            let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
            let (number, tail) = rest.split_at(digits);
            let letters = tail.bytes().take_while(u8::is_ascii_alphabetic).count();
            let (name, tail) = tail.split_at(letters);
            let (_, unit) = TIME_UNITS.iter().find(|(unit, _)| *unit == name)?;
            millis = millis.checked_add(number.parse::<u64>().ok()?.checked_mul(*unit)?)?;
            rest = tail;
        }
        (!text.is_empty()).then(|| Self::from_millis(millis))
    }

    fn show(&self) -> String {
        let millis = u64::try_from(self.as_millis()).unwrap_or(u64::MAX);
        match TIME_UNITS.iter().find(|(_, unit)| millis >= *unit && millis.is_multiple_of(*unit)) {
            Some((name, unit)) => format!("{}{name}", millis / unit),
            None => "0s".to_owned(),
        }
    }
}

const OVERFLOW_RULES: [(&str, InboxOverflow); 3] = [
    ("dropNewest", InboxOverflow::DropNewest),
    ("dropOldest", InboxOverflow::DropOldest),
    ("rejectPublish", InboxOverflow::RejectPublish),
];

impl Quantity for InboxOverflow {
    const KIND: &'static str = "a rule";
    const VALUE_NAME: &'static str = "RULE";

    fn parse(text: &str) -> Option<Self> {
        OVERFLOW_RULES.iter().find(|(name, _)| *name == text).map(|(_, rule)| *rule)
    }

    fn show(&self) -> String {
        OVERFLOW_RULES
            .iter()
            .find(|(_, rule)| rule == self)
            .map(|(name, _)| *name)
            .unwrap_or_default()
            .to_owned()
    }

    fn allowed(_: &RangeInclusive<Self>) -> String {
        OVERFLOW_RULES.map(|(name, _)| name).join(", ")
    }
}

macro_rules! count {
    ($($integer:ty),+) => {$(
        impl Quantity for $integer {
            const KIND: &'static str = "a number";
            const VALUE_NAME: &'static str = "N";

            fn parse(text: &str) -> Option<Self> {
                text.parse().ok()
            }

            fn show(&self) -> String {
                self.to_string()
            }
        }
    )+};
}

count!(u16, u32, u64);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_durations_print_as_they_are_written() {
        for text in ["1B", "1000B", "1KiB", "64KiB", "1MiB", "1025KiB", "2GiB"] {
            assert_eq!(ByteCount::parse(text).expect("parses").show(), text);
        }
        for text in ["1ms", "1500ms", "30s", "5m", "168h"] {
            assert_eq!(Duration::parse(text).expect("parses").show(), text);
        }
        assert_eq!(Duration::parse("1h30m"), Some(Duration::from_mins(90)));
        assert_eq!(ByteCount::parse("16Mi"), Some(ByteCount::mib(16)));
    }

    #[test]
    fn nonsense_is_refused_without_overflow() {
        for text in
            ["", "KiB", "-1", "1.5MiB", "1 MiB", "99999999999999999999", "18446744073709551615GiB", "1kb"]
        {
            assert_eq!(ByteCount::parse(text), None, "{text}");
        }
        for text in ["", "s", "30", "1d", "30 s", "18446744073709551615h", "1h-3m", "é"] {
            assert_eq!(Duration::parse(text), None, "{text}");
        }
    }

    #[test]
    fn addresses() {
        let addr = |text, port| socket_addr(text, port).map(|addr| addr.to_string());
        assert_eq!(addr("localhost:0", None).as_deref(), Some("127.0.0.1:0"));
        assert_eq!(addr("[::1]", Some(1883)).as_deref(), Some("[::1]:1883"));
        assert_eq!(addr("10.0.0.1", Some(1883)).as_deref(), Some("10.0.0.1:1883"));
        assert_eq!(addr("10.0.0.1", None), None);
        assert_eq!(addr("localhost.example.org:1", None), None);
    }
}
