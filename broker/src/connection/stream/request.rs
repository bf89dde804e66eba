//! What a stream subscription asks for: its `stream-*` properties, and the place in `$s/<place>/<filter>`.
//!
//! Reads text and refuses what it does not understand; knows no connection and keeps no state.

use std::num::NonZeroU32;

use bytes::Bytes;
use bytestring::ByteString;
use weir_codec::{ReasonCode, UserProperties};
use weir_core::catalog::SHARDS_MAX;
use weir_core::definition::Definition;
use weir_core::key::KEY_BYTES_MAX;
use weir_core::keyspace::session_position::SessionPosition;
use weir_core::stream::{ReadOptions, Start};
use weir_env::clock::Timestamp;
use weir_topic::{Subscription, TopicFilter};

use crate::connection::external::Refusal;

/// Every property begins with it.
const PREFIX: &str = "stream-";
/// What may follow it.
const NAMES: &str = "stream-offset, stream-until, stream-filter, stream-key, stream-rate";
/// What is understood as a place.
const PLACES: &str =
    "earliest, latest, microseconds since 1970, an RFC 3339 time, offset:<n>, <shard>:<n>,...";
/// Most messages per second that can be asked for.
const RATE_MAX: u32 = 1_000_000_000;
/// Characters of a refused value that the client is shown.
const SHOWN_MAX: usize = 64;
/// Where a subscription begins that does not say it.
const LATEST: &str = "latest";

/// What one subscription wants of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::connection) struct StreamRequest {
    /// Where it begins, in the client's words: others seek, the same do not.
    pub(in crate::connection) offset: ByteString,
    /// What they mean.
    pub(super) start: Start,
    /// Where it ends, this message excluded, and the client's words for it.
    pub(super) until: Option<(ByteString, Start)>,
    /// Only messages of these topics.
    pub(super) filter: Option<TopicFilter>,
    /// Only messages with this key.
    pub(super) key: Option<ByteString>,
    /// Messages per second, of all shards together.
    pub(super) rate: Option<NonZeroU32>,
    /// When it asked for the latest of a stream that did not exist.
    pub(in crate::connection) since: Option<Timestamp>,
}

impl Default for StreamRequest {
    fn default() -> Self {
        Self {
            offset: ByteString::from_static(LATEST),
            start: Start::Latest,
            until: None,
            filter: None,
            key: None,
            rate: None,
            since: None,
        }
    }
}

impl StreamRequest {
    /// Reads what a SUBSCRIBE with these properties asks of the stream that `to` names.
    pub(in crate::connection) fn parse(
        to: &Subscription,
        properties: &UserProperties,
    ) -> Result<Self, Refusal> {
        let (group, in_topic) = match to {
            Subscription::Stream { group, .. } => (group.is_some(), None),
            Subscription::StreamByFilter { group, start, .. } => (group.is_some(), Some(start)),
            Subscription::Plain(_)
            | Subscription::Shared { .. }
            | Subscription::Queue { .. }
            | Subscription::QueueByFilter { .. } => return Ok(Self::default()),
        };
        let mut request = Self::default();
        let mut seen: Vec<&str> = Vec::new();
        for (name, value) in properties {
            let Some(what) = name.strip_prefix(PREFIX) else { continue };
            request.set(what, value)?;
            if seen.contains(&what) {
                return Err(refused(format!("{name} is there more than once")));
            }
            seen.push(what);
        }
        if let Some(text) = in_topic {
            let place = parse_start(text).filter(|place| is_written_for_a_topic(text, place));
            let Some(place) = place else {
                let text = shown(text);
                return Err(refused(format!(
                    "`{text}` in $s/<offset>/<filter> is none of: {PLACES}; times end in Z there"
                )));
            };
            if seen.contains(&"offset") && request.offset != *text {
                return Err(refused("stream-offset: the topic says already where to begin".to_owned()));
            }
            (request.offset, request.start) = (text.clone(), place);
        }
        if group && request.until.is_some() {
            return Err(refused("stream-until: a consumer group has no end; leave it out".to_owned()));
        }
        if group && request.key.is_some() {
            let text =
                "stream-key: a consumer group reads every key; leave it out, or subscribe without a group";
            return Err(refused(text.to_owned()));
        }
        Ok(request)
    }

    fn set(&mut self, what: &str, value: &ByteString) -> Result<(), Refusal> {
        let refuse = |allowed: &str| Err(refused(format!("{PREFIX}{what} `{}` is {allowed}", shown(value))));
        let place = || parse_start(value);
        match what {
            "offset" => match place() {
                Some(start) => (self.offset, self.start) = (value.clone(), start),
                None => return refuse(&format!("none of: {PLACES}")),
            },
            "until" => match place() {
                Some(until) => self.until = Some((value.clone(), until)),
                None => return refuse(&format!("none of: {PLACES}")),
            },
            "filter" => match TopicFilter::parse(value.clone()) {
                Ok(filter) if !filter.is_reserved() => self.filter = Some(filter),
                Ok(_) => return refuse("no filter for a stream: what begins with $ is in none"),
                Err(error) => return refuse(&format!("no topic filter: {error}")),
            },
            "key" if value.is_empty() || value.len() > KEY_BYTES_MAX => {
                return refuse(&format!("no key: 1 to {KEY_BYTES_MAX} bytes"));
            }
            "key" => self.key = Some(value.clone()),
            "rate" => match value.parse().ok().filter(|rate: &NonZeroU32| rate.get() <= RATE_MAX) {
                Some(rate) => self.rate = Some(rate),
                None => return refuse(&format!("no whole number of messages per second: 1 to {RATE_MAX}")),
            },
            _ => {
                let name = shown(what);
                return Err(refused(format!("{PREFIX}{name} is not known; there are {NAMES}")));
            }
        }
        Ok(())
    }

    /// Whether a stream that is declared like this can do it.
    pub(in crate::connection) fn check(&self, stream: &Definition) -> Result<(), Refusal> {
        let (name, shards) = (&stream.name, stream.shards);
        let until = self.until.as_ref().map(|(_, until)| ("stream-until", until));
        for (what, place) in [("stream-offset", &self.start)].into_iter().chain(until) {
            match place {
                Start::Offset(_) if shards != 1 => {
                    return Err(refused(format!(
                        "{what}: offset:<n> needs a stream with one shard, and {name} has {shards}; \
                         write <shard>:<n>,..."
                    )));
                }
                Start::Offsets(offsets) => {
                    if let Some((shard, _)) = offsets.iter().find(|(shard, _)| *shard >= shards) {
                        let last = shards.saturating_sub(1);
                        return Err(refused(format!(
                            "{what}: {name} has no shard {shard}; there are 0 to {last}"
                        )));
                    }
                }
                Start::Offset(_) | Start::Earliest | Start::Latest | Start::Time(_) => {}
            }
        }
        if self.key.is_some() && stream.effective_key().is_none() {
            return Err(refused(format!("stream-key: messages of {name} have no key")));
        }
        Ok(())
    }

    /// Whether a subscription that asks for this goes on if it asks for `other`: both mean the same place, in the same
    /// words.
    pub(in crate::connection) fn goes_on_as(&self, other: &Self) -> bool {
        self.offset == other.offset && self.key == other.key
    }

    /// Goes on as `other`, for which it waits since it began to.
    pub(in crate::connection) fn become_as(&mut self, other: Self) {
        *self = Self { since: self.since, ..other };
    }

    /// Whether both ask for the same.
    pub(in crate::connection) fn is_same(&self, other: &Self) -> bool {
        Self { since: None, ..self.clone() } == Self { since: None, ..other.clone() }
    }

    /// Whether both end at the same place, in the same words.
    pub(in crate::connection) fn ends_as(&self, other: &Self) -> bool {
        self.until == other.until
    }

    /// How to read the stream of this id in the catalog, for a subscription that was `left` there, or in another.
    pub(super) fn options(&self, stream: u32, left: Option<&SessionPosition>) -> ReadOptions {
        let here = left.filter(|left| left.stream == stream);
        let start = match (here, &self.start) {
            (Some(here), _) => Start::Offsets(here.shards.iter().map(|at| (at.shard, at.position)).collect()),
            // The stream is younger than the subscription.
            (None, Start::Latest) if left.is_some() => Start::Earliest,
            (None, Start::Latest) => self.since.map_or(Start::Latest, Start::Time),
            (None, start) => start.clone(),
        };
        let ends: Vec<(u8, u64)> =
            here.iter().flat_map(|here| &here.shards).filter_map(|at| Some((at.shard, at.end?))).collect();
        let until = if ends.is_empty() {
            self.until.as_ref().map(|(_, until)| until.clone())
        } else {
            Some(Start::Offsets(ends))
        };
        let key = self.key.as_ref().map(|key| key.as_bytes().clone());
        ReadOptions { start, until, filter: self.filter.clone(), key, ..ReadOptions::default() }
    }

    /// What is stored with the subscription.
    pub(in crate::connection) fn encode(&self) -> Bytes {
        let rate = self.rate.map(|rate| rate.to_string());
        let since = self.since.map(|since| since.as_micros().to_string());
        let others = [
            ("until", self.until.as_ref().map(|(text, _)| &**text)),
            ("filter", self.filter.as_ref().map(TopicFilter::as_str)),
            ("key", self.key.as_deref()),
            ("rate", rate.as_deref()),
            ("since", since.as_deref()),
        ];
        // No property value holds the character zero [MQTT-1.5.4-2].
        let mut text = if *self.offset == *LATEST { String::new() } else { self.offset.to_string() };
        for (name, value) in others {
            if let Some(value) = value {
                text.extend(["\0", name, "\0", value]);
            }
        }
        text.into()
    }

    /// What was stored with a subscription to `to`.
    pub(in crate::connection) fn of_stored(to: &Subscription, extra: &Bytes) -> Self {
        let stored = Self::decode(extra);
        // A place in the topic is told by that.
        match Self::parse(to, &UserProperties::new()) {
            Ok(told) if matches!(to, Subscription::StreamByFilter { .. }) => {
                Self { offset: told.offset, start: told.start, ..stored }
            }
            Ok(_) | Err(_) => stored,
        }
    }

    /// What was stored; whatever is damaged or from another version counts as not said.
    fn decode(extra: &Bytes) -> Self {
        let mut request = Self::default();
        let mut parts = std::str::from_utf8(extra).unwrap_or_default().split('\0').map(ByteString::from);
        if let Some(offset) = parts.next().filter(|offset| !offset.is_empty()) {
            let _ = request.set("offset", &offset);
        }
        while let (Some(name), Some(value)) = (parts.next(), parts.next()) {
            if name == "since" {
                request.since = value.parse().ok().map(Timestamp::from_micros);
            } else {
                let _ = request.set(&name, &value);
            }
        }
        request
    }
}

/// Reads `earliest`, `latest`, `<µs>`, an RFC 3339 time, `offset:<n>` or `<shard>:<n>,...`, no shard twice.
pub(crate) fn parse_start(text: &str) -> Option<Start> {
    match text {
        "earliest" => return Some(Start::Earliest),
        "latest" => return Some(Start::Latest),
        _ => {}
    }
    if let Some(offset) = text.strip_prefix("offset:") {
        return number(offset).map(Start::Offset);
    }
    if let Some(micros) = number(text) {
        return Some(Start::Time(Timestamp::from_micros(micros)));
    }
    if let Some(offsets) = parse_offsets(text) {
        return Some(Start::Offsets(offsets));
    }
    let at: jiff::Timestamp = text.parse().ok()?;
    u64::try_from(at.as_microsecond()).ok().map(|micros| Start::Time(Timestamp::from_micros(micros)))
}

fn parse_offsets(text: &str) -> Option<Vec<(u8, u64)>> {
    let mut offsets: Vec<(u8, u64)> = Vec::new();
    for part in text.split(',') {
        let (shard, offset) = part.split_once(':')?;
        let shard = u8::try_from(number(shard)?).ok().filter(|shard| *shard < SHARDS_MAX)?;
        if offsets.iter().any(|(other, _)| *other == shard) {
            return None;
        }
        offsets.push((shard, number(offset)?));
    }
    Some(offsets)
}

/// Digits alone: no sign, no space.
fn number(text: &str) -> Option<u64> {
    if text.bytes().all(|byte| byte.is_ascii_digit()) { text.parse().ok() } else { None }
}

/// Offsets from UTC have characters that topics may not have.
fn is_written_for_a_topic(text: &str, place: &Start) -> bool {
    !matches!(place, Start::Time(_)) || text.ends_with('Z') || number(text).is_some()
}

/// The beginning of what a client wrote.
fn shown(text: &str) -> &str {
    text.char_indices().nth(SHOWN_MAX).map_or(text, |(at, _)| &text[..at])
}

fn refused(text: String) -> Refusal {
    Refusal { reason: ReasonCode::ImplementationSpecificError, text }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIME: Start = Start::Time(Timestamp::from_micros(1_700_000_000_000_000));

    fn parse(to: &str, properties: &[(&str, &str)]) -> Result<StreamRequest, String> {
        let to = Subscription::parse(to.to_owned()).unwrap();
        let own = |text: &str| ByteString::from(text.to_owned());
        let properties = properties.iter().map(|(name, value)| (own(name), own(value))).collect();
        StreamRequest::parse(&to, &properties).map_err(|refusal| {
            assert_eq!(refusal.reason, ReasonCode::ImplementationSpecificError);
            refusal.text
        })
    }

    #[test]
    fn places() {
        for (text, expected) in [
            ("earliest", Some(Start::Earliest)),
            ("latest", Some(Start::Latest)),
            ("offset:17", Some(Start::Offset(17))),
            ("1700000000000000", Some(TIME)),
            ("2023-11-14T22:13:20Z", Some(TIME)),
            ("2023-11-15T00:13:20+02:00", Some(TIME)),
            ("0:1", Some(Start::Offsets(vec![(0, 1)]))),
            ("3:1,0:18446744073709551615", Some(Start::Offsets(vec![(3, 1), (0, u64::MAX)]))),
            ("63:0", Some(Start::Offsets(vec![(63, 0)]))),
            ("64:0", None),
            ("0:1,0:2", None),
            ("0:1,", None),
            (",", None),
            ("0:", None),
            (":0", None),
            ("0:-1", None),
            ("0:+1", None),
            ("", None),
            ("yesterday", None),
            ("Earliest", None),
            ("offset:-1", None),
            ("offset:+1", None),
            ("offset:", None),
            ("99999999999999999999999", None),
            ("1900-01-01T00:00:00Z", None),
            ("2023-11-14T22:13:20", None),
        ] {
            assert_eq!(parse_start(text), expected, "{text}");
        }
    }

    #[test]
    fn properties_are_understood() {
        let plain = parse("$stream/log", &[("other", "x"), ("Stream-offset", "x")]).unwrap();
        assert_eq!(plain, StreamRequest::default());
        let properties = [
            ("stream-offset", "2023-11-14T22:13:20Z"),
            ("stream-until", "0:7"),
            ("stream-filter", "a/+"),
            ("stream-key", "k"),
            ("stream-rate", "1000"),
        ];
        let request = parse("$stream/log/a/#", &properties).unwrap();
        let expected = StreamRequest {
            offset: "2023-11-14T22:13:20Z".into(),
            start: TIME,
            until: Some(("0:7".into(), Start::Offsets(vec![(0, 7)]))),
            filter: Some(TopicFilter::parse("a/+").unwrap()),
            key: Some("k".into()),
            rate: NonZeroU32::new(1000),
            since: None,
        };
        assert_eq!(request, expected);
        // They say nothing about what is no stream.
        for other in ["t", "$queue/log", "$share/g/t", "$q/t"] {
            assert_eq!(parse(other, &[("stream-typo", "")]), Ok(StreamRequest::default()));
        }
        for (to, offset, start) in [
            ("$s/earliest/a/#", "earliest", Start::Earliest),
            ("$s/0:5,1:9/a", "0:5,1:9", Start::Offsets(vec![(0, 5), (1, 9)])),
            ("$s/2023-11-14T22:13:20Z/a", "2023-11-14T22:13:20Z", TIME),
            ("$share/g/$s/offset:3/a", "offset:3", Start::Offset(3)),
            ("$share/g/$stream/log", "latest", Start::Latest),
        ] {
            let request = parse(to, &[("stream-rate", "5")]).unwrap();
            assert_eq!((&*request.offset, request.start), (offset, start), "{to}");
        }
        assert!(parse("$s/earliest/a", &[("stream-offset", "earliest")]).is_ok());
    }

    #[test]
    fn what_is_not_understood_is_refused_with_its_name() {
        let long = "x".repeat(KEY_BYTES_MAX + 1);
        for (to, properties, texts) in [
            (
                "$stream/log",
                &[("stream-offset", "yesterday")][..],
                &["stream-offset", "yesterday", "earliest"][..],
            ),
            ("$stream/log", &[("stream-until", "")], &["stream-until", "offset:<n>"]),
            ("$stream/log", &[("stream-filter", "a/#/b")], &["stream-filter", "a/#/b"]),
            ("$stream/log", &[("stream-filter", "$SYS/#")], &["stream-filter", "$"]),
            ("$stream/log", &[("stream-key", "")], &["stream-key", "1024"]),
            ("$stream/log", &[("stream-key", &long)], &["stream-key"]),
            ("$stream/log", &[("stream-rate", "0")], &["stream-rate", "1 to"]),
            ("$stream/log", &[("stream-rate", "1.5")], &["stream-rate"]),
            ("$stream/log", &[("stream-rate", "4294967295")], &["stream-rate"]),
            ("$stream/log", &[("stream-typo", "1")], &["stream-typo", "stream-until"]),
            ("$stream/log", &[("stream-", "1")], &["not known"]),
            ("$stream/log", &[("stream-rate", "1"), ("stream-rate", "1")], &["stream-rate", "once"]),
            ("$share/g/$stream/log", &[("stream-until", "latest")], &["stream-until", "group"]),
            ("$share/g/$s/latest/a", &[("stream-key", "k")], &["stream-key", "group"]),
            ("$s/sometime/a", &[], &["sometime", "earliest"]),
            ("$s/2023-11-15T00:13:20-02:00/a", &[], &["end in Z"]),
            ("$s/earliest/a", &[("stream-offset", "latest")], &["stream-offset"]),
        ] {
            let refused = parse(to, properties).unwrap_err();
            assert!(texts.iter().all(|text| refused.contains(text)), "{to} {properties:?}: {refused}");
            assert!(refused.len() < 400, "{refused}");
        }
    }

    #[test]
    fn what_is_stored_comes_back() {
        for (offset, others) in [
            ("latest", &[][..]),
            ("earliest", &[]),
            ("latest", &[("stream-key", "k\n,:")]),
            ("3:1,0:2", &[("stream-until", "latest"), ("stream-filter", "a/#"), ("stream-rate", "7")]),
        ] {
            let mut properties = others.to_vec();
            properties.push(("stream-offset", offset));
            let mut request = parse("$stream/log", &properties).unwrap();
            for since in [None, Some(Timestamp::from_micros(5))] {
                request.since = since;
                assert_eq!(StreamRequest::decode(&request.encode()), request);
            }
        }
        assert_eq!(StreamRequest::default().encode(), Bytes::new());
        assert_eq!(StreamRequest::decode(&Bytes::from_static(b"\xff")), StreamRequest::default());
        let damaged = StreamRequest::decode(&Bytes::from_static(b"earliest\0rate\0x\0typo\0x\0key"));
        assert_eq!(damaged, parse("$stream/log", &[("stream-offset", "earliest")]).unwrap());
    }
}
