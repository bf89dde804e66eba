//! A place in a stream as people write it: what `--offset`, `--until` and the like take.

use anyhow::anyhow;
use weir_env::clock::{Clock, Timestamp};

/// Where something begins or ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Earliest,
    Latest,
    Offset(u64),
    Time(Timestamp),
}

pub(super) fn place(text: &str) -> Result<Place, String> {
    let number = text.strip_prefix("offset:").unwrap_or(text);
    match text {
        "earliest" => return Ok(Place::Earliest),
        "latest" => return Ok(Place::Latest),
        _ => {}
    }
    if let Ok(offset) = number.parse() {
        return Ok(Place::Offset(offset));
    }
    if let Some(back) = crate::config::parse_duration(text) {
        let back = u64::try_from(back.as_micros()).unwrap_or(u64::MAX);
        let now = Clock::system().wall().as_micros();
        return Ok(Place::Time(Timestamp::from_micros(now.saturating_sub(back))));
    }
    timestamp(text).map(Place::Time).map_err(|_| {
        "allowed: earliest, latest, an offset, a time such as 2026-01-31T12:00:00Z, a duration such as 10m".to_owned()
    })
}

fn timestamp(text: &str) -> anyhow::Result<Timestamp> {
    let micros = text.parse::<jiff::Timestamp>()?.as_microsecond();
    Ok(Timestamp::from_micros(u64::try_from(micros).map_err(|_| anyhow!("before 1970"))?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_to_start() {
        assert_eq!(place("earliest"), Ok(Place::Earliest));
        assert_eq!(place("latest"), Ok(Place::Latest));
        assert_eq!(place("17"), Ok(Place::Offset(17)));
        assert_eq!(place("offset:17"), Ok(Place::Offset(17)));
        assert_eq!(
            place("2023-11-14T22:13:20Z"),
            Ok(Place::Time(Timestamp::from_micros(1_700_000_000_000_000)))
        );
        let Ok(Place::Time(back)) = place("10m") else { panic!("a duration back") };
        assert!(back < Clock::system().wall());
        for text in ["", "-1", "yesterday", "2023-11-14", "1960-01-01T00:00:00Z", "offset:x"] {
            assert!(place(text).is_err(), "{text}");
        }
    }
}
