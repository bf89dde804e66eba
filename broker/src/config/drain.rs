//! The part of the configuration about how clients go when a pod leaves its cluster, and where to.

use std::time::Duration;

use super::settings::{PLAIN, Setting, one};
use super::value::{self, Quantity};

/// How clients go elsewhere, and what this pod says of where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DrainConfig {
    /// Clients sent away in a second.
    pub rate: u32,
    /// Time after which all that are left are sent away at once.
    pub grace: Duration,
    /// Where clients find this pod that others send to it; `None`: they are not told.
    pub server_reference: Option<String>,
    /// Where it runs.
    pub zone: Option<String>,
}

impl Default for DrainConfig {
    fn default() -> Self {
        Self { rate: 500, grace: Duration::from_secs(20), server_reference: None, zone: None }
    }
}

/// Longest text that a pod says of itself, in bytes.
const TEXT_BYTES_MAX: usize = 253;

/// A text without spaces, as others are to have it.
fn word(text: &str) -> Result<String, String> {
    let is_allowed = text.chars().all(|c| c.is_ascii_graphic());
    if is_allowed && !text.is_empty() && text.len() <= TEXT_BYTES_MAX {
        return Ok(text.to_owned());
    }
    Err(format!(
        "`{text}` is not allowed; allowed: 1 to {TEXT_BYTES_MAX} visible ASCII characters, no spaces"
    ))
}

pub(super) const SETTINGS: &[Setting] = &[
    Setting {
        key: "drain.rate",
        flag: "drain-rate",
        env: "WEIR_DRAIN_RATE",
        value_name: <u32 as Quantity>::VALUE_NAME,
        help: "Clients sent to other pods in a second when this one drains or stops",
        set: |config, values| {
            config.drain.rate = value::within(one(values)?, &(1..=1_000_000))?;
            Ok(())
        },
        show: |config| config.drain.rate.show(),
        ..PLAIN
    },
    Setting {
        key: "drain.grace",
        flag: "drain-grace",
        env: "WEIR_DRAIN_GRACE",
        value_name: <Duration as Quantity>::VALUE_NAME,
        help: "Time after which all clients that are left are sent to other pods at once",
        set: |config, values| {
            let range = Duration::from_millis(100)..=Duration::from_hours(1);
            config.drain.grace = value::within(one(values)?, &range)?;
            Ok(())
        },
        show: |config| config.drain.grace.show(),
        ..PLAIN
    },
    Setting {
        key: "serverReference",
        flag: "server-reference",
        env: "WEIR_SERVER_REFERENCE",
        value_name: "HOST:PORT",
        help: "Where MQTT 5 clients find this pod that others send to it; absent: they are not told where to go",
        set: |config, values| {
            config.drain.server_reference = Some(word(one(values)?)?);
            Ok(())
        },
        show: |config| config.drain.server_reference.clone().unwrap_or_default(),
        ..PLAIN
    },
    Setting {
        key: "zone",
        flag: "zone",
        env: "WEIR_ZONE",
        value_name: "NAME",
        help: "Where this pod runs, as `weir pod list` shows it",
        set: |config, values| {
            config.drain.zone = Some(word(one(values)?)?);
            Ok(())
        },
        show: |config| config.drain.zone.clone().unwrap_or_default(),
        ..PLAIN
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_pod_says_of_itself_is_one_word() {
        for text in ["eu-west-1a", "mqtts://broker-2.example.org:8883", "[::1]:1883"] {
            assert_eq!(word(text), Ok(text.to_owned()));
        }
        for text in ["", "a b", "a\nb", "\u{e9}", &"x".repeat(254)] {
            assert!(word(text).is_err(), "{text:?}");
        }
    }
}
