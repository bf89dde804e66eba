//! A place in a stream as people write it: what `--offset`, `--until`, `--before` and the like take.

use anyhow::anyhow;
use weir_env::clock::{Clock, Timestamp};
use weir_proto::admin::v1 as wire;
use weir_proto::admin::v1::stream_place;

/// What people may write.
const ALLOWED: &str = "earliest, latest, an offset (17 or offset:17), an offset for each of some shards (0:17,1:4), a time \
                       such as 2026-01-31T12:00:00Z, a duration back from now such as 10m";

/// Where something begins or ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Earliest,
    Latest,
    Offset(u64),
    /// Shards and offsets.
    Offsets(Vec<(u32, u64)>),
    Time(Timestamp),
}

impl Place {
    /// As the admin API has it.
    pub(super) fn wire(&self) -> wire::StreamPlace {
        use stream_place::Place as Wire;
        wire::StreamPlace {
            place: Some(match self {
                Self::Earliest => Wire::Earliest(wire::Earliest {}),
                Self::Latest => Wire::Latest(wire::Latest {}),
                Self::Offset(offset) => Wire::Offset(*offset),
                Self::Offsets(offsets) => {
                    let shard =
                        |(shard, offset): &(u32, u64)| wire::ShardOffset { shard: *shard, offset: *offset };
                    Wire::Offsets(wire::ShardOffsets { shards: offsets.iter().map(shard).collect() })
                }
                Self::Time(at) => Wire::TimestampMicros(at.as_micros()),
            }),
        }
    }
}

/// Reads a place.
pub(super) fn place(text: &str) -> Result<Place, String> {
    match text {
        "earliest" => return Ok(Place::Earliest),
        "latest" => return Ok(Place::Latest),
        _ => {}
    }
    if let Ok(offset) = text.strip_prefix("offset:").unwrap_or(text).parse() {
        return Ok(Place::Offset(offset));
    }
    if let Some(offsets) = offsets(text) {
        return Ok(Place::Offsets(offsets));
    }
    if let Some(back) = crate::config::parse_duration(text) {
        let back = u64::try_from(back.as_micros()).unwrap_or(u64::MAX);
        let now = Clock::system().wall().as_micros();
        return Ok(Place::Time(Timestamp::from_micros(now.saturating_sub(back))));
    }
    timestamp(text).map(Place::Time).map_err(|_| format!("allowed: {ALLOWED}"))
}

/// `<shard>:<offset>`, by commas.
fn offsets(text: &str) -> Option<Vec<(u32, u64)>> {
    let offset = |one: &str| {
        let (shard, offset) = one.trim().split_once(':')?;
        Some((shard.parse().ok()?, offset.parse().ok()?))
    };
    text.split(',').map(offset).collect()
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
        assert_eq!(place("3:17"), Ok(Place::Offsets(vec![(3, 17)])));
        assert_eq!(place("0:1, 2:3"), Ok(Place::Offsets(vec![(0, 1), (2, 3)])));
        assert_eq!(
            place("2023-11-14T22:13:20Z"),
            Ok(Place::Time(Timestamp::from_micros(1_700_000_000_000_000)))
        );
        let Ok(Place::Time(back)) = place("10m") else { panic!("a duration back") };
        assert!(back < Clock::system().wall());
        for text in ["", "-1", "yesterday", "2023-11-14", "1960-01-01T00:00:00Z", "offset:x", "0:1,", "0:1,2"]
        {
            assert!(place(text).is_err(), "{text}");
        }
    }
}
