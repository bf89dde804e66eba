//! Requests of workers that pull messages of streams over MQTT, and their answers: JSON, both.
//!
//! A request is a PUBLISH to `$weir/stream/<name>/fetch`. What it means is worked out here, and what it is answered; who
//! may ask, and the way of the answer, is the connection's affair. Keeps nothing.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Map, Value, json};
use weir_core::keyspace::segment::Record;
use weir_core::stream::{FETCH_BYTES_MAX, FETCH_MESSAGES_MAX, Fetch, Fetched, ReadOptions, Start};
use weir_topic::{ObjectName, TopicFilter, TopicName};

use crate::connection::parse_start;
use crate::json::set_bytes;

/// What topics of requests begin with; nothing is published to them or subscribed.
pub(crate) const REQUESTS: &str = "$weir/";

/// Messages of an answer, if the request does not say.
const MESSAGES_DEFAULT: usize = 100;
/// Bytes of messages of an answer, if the request does not say.
const BYTES_DEFAULT: u64 = 256 * 1024;
/// Longest time that a request may wait for a message.
const WAIT_MAX: Duration = Duration::from_secs(30);
/// Bytes of a place in an answer: shard, offset, punctuation.
const PLACE_BYTES: usize = 30;

/// Why a request is not answered with messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// `bad-request`, `not-found`, `too-large` or `unavailable`.
    pub(crate) code: &'static str,
    pub(crate) message: String,
}

/// The stream that a topic of a request names.
pub(crate) fn stream_of(topic: &TopicName) -> Option<ObjectName> {
    let name = topic.as_str().strip_prefix(REQUESTS)?.strip_prefix("stream/")?.strip_suffix("/fetch")?;
    ObjectName::parse(name.to_owned()).ok()
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct Request {
    shard: Option<u8>,
    offset: Value,
    max_messages: usize,
    max_bytes: u64,
    wait_ms: u64,
    filter: Option<String>,
    key: Option<String>,
}

impl Default for Request {
    fn default() -> Self {
        Self {
            shard: None,
            offset: Value::Null,
            max_messages: MESSAGES_DEFAULT,
            max_bytes: BYTES_DEFAULT,
            wait_ms: 0,
            filter: None,
            key: None,
        }
    }
}

/// What `payload` asks for of a stream of so many shards; an empty one asks for all defaults.
///
/// # Errors
/// What is wrong, and what is allowed.
pub(crate) fn request(payload: &[u8], shards: usize) -> Result<Fetch, Refusal> {
    let request = if payload.is_empty() {
        Request::default()
    } else {
        let fields: serde_json::Result<Map<String, Value>> = serde_json::from_slice(payload);
        let request = fields.and_then(|fields| serde_json::from_value(Value::Object(fields)));
        request.map_err(|error| bad(&format!("the request: {error}")))?
    };
    let shard = request.shard.map(usize::from);
    if shard.is_some_and(|shard| shard >= shards) {
        return Err(bad(&format!("shard: there is none of this number; allowed: 0 to {}", shards - 1)));
    }
    if !(1..=FETCH_MESSAGES_MAX).contains(&request.max_messages) {
        return Err(bad(&format!("maxMessages: allowed: 1 to {FETCH_MESSAGES_MAX}")));
    }
    if !(1..=FETCH_BYTES_MAX).contains(&request.max_bytes) {
        return Err(bad(&format!("maxBytes: allowed: 1 to {FETCH_BYTES_MAX}")));
    }
    let wait = Duration::from_millis(request.wait_ms);
    if wait > WAIT_MAX {
        return Err(bad(&format!("waitMs: allowed: 0 to {}", WAIT_MAX.as_millis())));
    }
    let start = place(&request.offset, shards)?;
    if matches!(start, Start::Offset(_)) && shard.is_none() && shards > 1 {
        return Err(bad(&format!(
            "offset: the stream has {shards} shards with offsets of their own; name a shard too, or an offset for each"
        )));
    }
    let filter = request.filter.map(TopicFilter::parse).transpose();
    let filter = filter.map_err(|error| bad(&format!("filter: not a topic filter: {error}")))?;
    Ok(Fetch {
        options: ReadOptions {
            start,
            shard: request.shard,
            filter,
            key: request.key.map(Into::into),
            ..ReadOptions::default()
        },
        max_messages: request.max_messages,
        max_bytes: request.max_bytes,
        wait,
    })
}

/// Where to begin: an offset, a text as of `stream-offset`, or what `next` of an answer was.
fn place(place: &Value, shards: usize) -> Result<Start, Refusal> {
    let refused = || {
        bad(
            "offset: allowed: earliest, latest, an offset, a time such as 2026-01-31T12:00:00Z, microseconds since 1970 \
             as a text, or an object with an offset for each of some shards, such as `next` of an answer",
        )
    };
    match place {
        Value::Null => Ok(Start::Latest),
        Value::Number(offset) => offset.as_u64().map(Start::Offset).ok_or_else(refused),
        Value::String(text) => parse_start(text).ok_or_else(refused),
        Value::Object(places) => {
            let mut offsets = BTreeMap::new();
            for (shard, offset) in places {
                let shard: u8 = shard.parse().map_err(|_| refused())?;
                if usize::from(shard) >= shards {
                    let last = shards.saturating_sub(1);
                    return Err(bad(&format!("offset: there is no shard {shard}; allowed: 0 to {last}")));
                }
                offsets.insert(shard, offset.as_u64().ok_or_else(refused)?);
            }
            Ok(Start::Offsets(offsets.into_iter().collect()))
        }
        Value::Bool(_) | Value::Array(_) => Err(refused()),
    }
}

fn bad(message: &str) -> Refusal {
    Refusal { code: "bad-request", message: message.to_owned() }
}

/// The answer to a fetch of the stream called `name`, in `bytes_max` at most. What does not fit comes with the next one.
///
/// # Errors
/// If not one message fits.
pub(crate) fn answer(name: &str, fetched: &Fetched, bytes_max: usize) -> Result<String, Refusal> {
    let places = fetched.next.len() + fetched.ends.len();
    let mut room = bytes_max.saturating_sub(name.len() + 64 + places * PLACE_BYTES);
    let mut messages = String::new();
    let mut next = fetched.next.clone();
    let mut left = fetched.messages.iter();
    for (n, (shard, offset, record)) in left.by_ref().enumerate() {
        let text = message(*shard, *offset, record).to_string();
        if text.len() >= room {
            if n == 0 {
                let after = offset.saturating_add(1);
                let message = format!(
                    "the message at offset {offset} of shard {shard} needs {} bytes of an answer, which has room for \
                     {room}; allow larger packets, or go on behind it: {{\"{shard}\": {after}}}",
                    text.len()
                );
                return Err(Refusal { code: "too-large", message });
            }
            for (shard, offset, _) in fetched.messages.get(n..).unwrap_or_default().iter().rev() {
                next.insert(*shard, *offset);
            }
            break;
        }
        room -= text.len() + 1;
        if n > 0 {
            messages.push(',');
        }
        messages.push_str(&text);
    }
    let (name, next, ends) = (json!(name), places_json(&next), places_json(&fetched.ends));
    Ok(format!("{{\"stream\":{name},\"messages\":[{messages}],\"next\":{next},\"end\":{ends}}}"))
}

/// An answer that says why there are no messages.
pub(crate) fn refusal(refusal: &Refusal) -> String {
    json!({"error": {"code": refusal.code, "message": refusal.message}}).to_string()
}

fn places_json(places: &BTreeMap<u8, u64>) -> Value {
    places.iter().map(|(shard, offset)| (shard.to_string(), Value::from(*offset))).collect()
}

fn message(shard: u8, offset: u64, record: &Record) -> Value {
    let message = &record.message;
    let user = &message.properties.user;
    let properties: Value = user.iter().map(|(name, value)| json!([&**name, &**value])).collect();
    let mut object = json!({
        "shard": shard,
        "offset": offset,
        "ts": message.published_at.as_micros(),
        "topic": message.topic.as_str(),
        "properties": properties,
    });
    set_bytes(&mut object, "payload", &message.payload);
    if let Some(key) = record.key_bytes() {
        set_bytes(&mut object, "key", key);
    }
    if let Some(content_type) = &message.properties.content_type {
        object["contentType"] = (**content_type).into();
    }
    object
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use weir_core::keyspace::segment::RecordKey;
    use weir_core::message::{Message, Properties};
    use weir_env::clock::Timestamp;

    use super::*;

    #[test]
    fn topics_of_requests() {
        let stream = |topic: &str| stream_of(&TopicName::parse(topic.to_owned()).unwrap());
        assert_eq!(stream("$weir/stream/a.b/fetch").unwrap().as_str(), "a.b");
        for topic in
            ["$weir/stream//fetch", "$weir/stream/a/b/fetch", "$weir/queue/a/fetch", "weir/stream/a/fetch"]
        {
            assert_eq!(stream(topic), None, "{topic}");
        }
    }

    #[test]
    fn what_a_request_asks_for() {
        let asked = |text: &str, shards| request(text.as_bytes(), shards).unwrap();
        let fetch = asked("", 3);
        assert_eq!((fetch.max_messages, fetch.max_bytes, fetch.wait), (100, 256 * 1024, Duration::ZERO));
        assert_eq!(fetch.options, ReadOptions::default());
        let fetch = asked(
            r#"{"shard": 2, "offset": 17, "maxMessages": 5, "maxBytes": 9, "waitMs": 250, "filter": "a/+", "key": "k"}"#,
            3,
        );
        assert_eq!((fetch.max_messages, fetch.max_bytes, fetch.wait), (5, 9, Duration::from_millis(250)));
        assert_eq!((fetch.options.shard, &fetch.options.start), (Some(2), &Start::Offset(17)));
        assert_eq!(fetch.options.key.as_deref(), Some(&b"k"[..]));
        for (text, start) in [
            (r#"{"offset": "earliest"}"#, Start::Earliest),
            (r#"{"offset": "latest"}"#, Start::Latest),
            (r#"{"offset": "1700000000000000"}"#, Start::Time(Timestamp::from_micros(1_700_000_000_000_000))),
            (
                r#"{"offset": "2023-11-14T22:13:20Z"}"#,
                Start::Time(Timestamp::from_micros(1_700_000_000_000_000)),
            ),
            (r#"{"offset": {"2": 5, "0": 1}}"#, Start::Offsets(vec![(0, 1), (2, 5)])),
        ] {
            assert_eq!(asked(text, 3).options.start, start, "{text}");
        }
        for (text, why) in [
            ("[]", "the request: "),
            ("{\"offset\": 1", "the request: "),
            (r#"{"ofset": 1}"#, "unknown field `ofset`"),
            (r#"{"shard": 3}"#, "shard: there is none of this number; allowed: 0 to 2"),
            (r#"{"offset": 1}"#, "offset: the stream has 3 shards"),
            (r#"{"offset": -1, "shard": 0}"#, "offset: allowed: "),
            (r#"{"offset": "soon"}"#, "offset: allowed: "),
            (r#"{"offset": {"3": 1}}"#, "offset: there is no shard 3"),
            (r#"{"offset": [1]}"#, "offset: allowed: "),
            (r#"{"maxMessages": 0}"#, "maxMessages: allowed: 1 to "),
            (r#"{"maxBytes": 99999999999}"#, "maxBytes: allowed: 1 to "),
            (r#"{"waitMs": 60000}"#, "waitMs: allowed: 0 to 30000"),
            (r#"{"filter": "a/#/b"}"#, "filter: not a topic filter"),
        ] {
            let refused = request(text.as_bytes(), 3).unwrap_err();
            assert_eq!(refused.code, "bad-request");
            assert!(refused.message.contains(why), "{text}: {}", refused.message);
        }
    }

    fn fetched(payloads: &[(u8, u64, &[u8])]) -> Fetched {
        let record = |payload: &[u8]| {
            let message = Message {
                topic: TopicName::parse("t").unwrap(),
                payload: payload.to_vec().into(),
                qos: 1,
                retain: false,
                published_at: Timestamp::from_micros(7),
                dead_letter: None,
                expires_at: None,
                properties: Properties { user: vec![("n".into(), "v".into())], ..Properties::default() },
            };
            let key = RecordKey::Bytes("k".into());
            Arc::new(Record { message, key, blob_len: None, span: tracing::Span::none() })
        };
        let messages: Vec<_> = payloads.iter().map(|(s, o, payload)| (*s, *o, record(payload))).collect();
        let next = payloads.iter().map(|(shard, offset, _)| (*shard, offset + 1)).collect();
        Fetched { messages, next, ends: [(0, 90), (1, 91)].into(), permit: None }
    }

    #[test]
    fn an_answer_has_text_or_base64_and_what_fits() {
        let fetched = fetched(&[(0, 5, b"one"), (0, 6, &[0xff, 0]), (1, 3, b"three")]);
        let whole: Value = serde_json::from_str(&answer("s", &fetched, 10_000).unwrap()).unwrap();
        let expected = json!({
            "stream": "s",
            "messages": [
                {"shard": 0, "offset": 5, "ts": 7, "topic": "t", "key": "k", "payload": "one", "properties": [["n", "v"]]},
                {"shard": 0, "offset": 6, "ts": 7, "topic": "t", "key": "k", "payloadBase64": "/wA=", "properties": [["n", "v"]]},
                {"shard": 1, "offset": 3, "ts": 7, "topic": "t", "key": "k", "payload": "three", "properties": [["n", "v"]]},
            ],
            "next": {"0": 7, "1": 4},
            "end": {"0": 90, "1": 91},
        });
        assert_eq!(whole, expected);
        for bytes_max in 200..700 {
            match answer("s", &fetched, bytes_max) {
                Ok(text) => {
                    assert!(text.len() <= bytes_max, "{} of {bytes_max}", text.len());
                    let part: Value = serde_json::from_str(&text).unwrap();
                    let next = match part["messages"].as_array().unwrap().len() {
                        1 => json!({"0": 6, "1": 3}),
                        2 => json!({"0": 7, "1": 3}),
                        _ => json!({"0": 7, "1": 4}),
                    };
                    assert_eq!(part["next"], next);
                }
                Err(refused) => {
                    assert_eq!(refused.code, "too-large");
                    assert!(refused.message.contains("{\"0\": 6}"), "{}", refused.message);
                    assert!(bytes_max < 350, "{bytes_max}");
                }
            }
        }
    }
}
