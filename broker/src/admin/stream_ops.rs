//! What the admin API lets people do to a stream: trim it, and fetch messages of it; and what places in a stream mean.
//!
//! Turns wire messages into requests to the core and back. Owns nothing.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tonic::Status;
use weir_core::catalog::Object;
use weir_core::definition::Kind;
use weir_core::stream::{FETCH_BYTES_MAX, FETCH_MESSAGES_MAX, Fetch, ReadOptions, Start};
use weir_env::clock::Timestamp;
use weir_proto::admin::v1 as wire;
use weir_proto::admin::v1::stream_place::Place;
use weir_topic::TopicFilter;

use super::Service;
use super::convert::status;
use super::read::message;

/// What a fetch gives that does not say how much it wants.
const FETCH_MESSAGES_DEFAULT: u32 = 100;
const FETCH_BYTES_DEFAULT: u32 = 256 * 1024;
/// Longest wait for a message, below the time in which a call is answered.
const FETCH_WAIT_MAX: Duration = Duration::from_secs(5);

impl Service {
    pub(super) async fn trim(
        &self,
        request: wire::TrimStreamRequest,
    ) -> Result<wire::TrimStreamResponse, Status> {
        let stream = self.find(Kind::Stream, &request.name)?;
        let shard = shard_of(&stream, request.shard)?;
        let before = request.before.and_then(|before| before.place).ok_or_else(|| {
            Status::invalid_argument("where to trim is missing; allowed for `before`: a place in the stream")
        })?;
        let before = start_at(&stream, shard, before)?;
        let (name, dry_run) = (request.name, request.dry_run);
        let object = Arc::clone(&stream);
        let trim =
            |core: Arc<weir_core::Core>| async move { core.trim(&object, &before, shard, dry_run).await };
        let trimmed = self.to_the_end(trim).await?.map_err(|error| status(&error, &stream))?;
        if !dry_run {
            let removed: u64 = trimmed.iter().map(|shard| shard.removed).sum();
            tracing::info!(stream = name, removed, "stream was trimmed");
        }
        let shards = trimmed.into_iter().map(|trimmed| wire::TrimmedShard {
            shard: trimmed.shard.into(),
            start_offset: trimmed.extent.start,
            next_offset: trimmed.extent.next,
            removed: trimmed.removed,
        });
        Ok(wire::TrimStreamResponse { shards: shards.collect() })
    }

    pub(super) async fn fetch(
        &self,
        request: wire::FetchStreamRequest,
    ) -> Result<wire::FetchStreamResponse, Status> {
        let stream = self.find(Kind::Stream, &request.name)?;
        let fetch = fetch_of(&stream, request)?;
        let fetched = self.core.fetch(&stream, &fetch).await.map_err(|error| status(&error, &stream))?;
        let messages = fetched.messages.iter();
        Ok(wire::FetchStreamResponse {
            messages: messages
                .map(|(shard, offset, record)| message(u32::from(*shard), *offset, record))
                .collect(),
            next: shard_offsets(&fetched.next),
            end: shard_offsets(&fetched.ends),
        })
    }
}

fn shard_offsets(offsets: &BTreeMap<u8, u64>) -> Vec<wire::ShardOffset> {
    let offset = |(shard, offset): (&u8, &u64)| wire::ShardOffset { shard: (*shard).into(), offset: *offset };
    offsets.iter().map(offset).collect()
}

/// What `request` asks for, if `stream` has that.
fn fetch_of(stream: &Object, request: wire::FetchStreamRequest) -> Result<Fetch, Status> {
    let number = |what: &str, asked: u32, max: u64, default: u32| match asked {
        0 => Ok(u64::from(default)),
        asked if u64::from(asked) <= max => Ok(u64::from(asked)),
        asked => {
            Err(Status::invalid_argument(format!("{asked} is not allowed for `{what}`; allowed: 0 to {max}")))
        }
    };
    let messages_max = FETCH_MESSAGES_MAX as u64;
    let wait_max = u64::try_from(FETCH_WAIT_MAX.as_millis()).unwrap_or(u64::MAX);
    let messages = number("max_messages", request.max_messages, messages_max, FETCH_MESSAGES_DEFAULT)?;
    let bytes = number("max_bytes", request.max_bytes, FETCH_BYTES_MAX, FETCH_BYTES_DEFAULT)?;
    let wait = number("wait_millis", request.wait_millis, wait_max, 0)?;
    let shard = shard_of(stream, request.shard)?;
    let start = match request.from.and_then(|from| from.place) {
        Some(place) => start_at(stream, shard, place)?,
        None => Start::Latest,
    };
    Ok(Fetch {
        options: ReadOptions {
            start,
            shard,
            filter: filter_of(&request.topic_filter)?,
            key: request.key,
            ..ReadOptions::default()
        },
        max_messages: usize::try_from(messages).unwrap_or(FETCH_MESSAGES_MAX),
        max_bytes: bytes,
        wait: Duration::from_millis(wait),
    })
}

/// The topic filter that a call names, if it names one.
pub(super) fn filter_of(filter: &str) -> Result<Option<TopicFilter>, Status> {
    if filter.is_empty() {
        return Ok(None);
    }
    let parsed = TopicFilter::parse(filter.to_owned());
    let bad = |error| Status::invalid_argument(format!("`{filter}` is not a topic filter: {error}"));
    parsed.map(Some).map_err(bad)
}

/// The shard that a call names, if it names one.
pub(super) fn shard_of(stream: &Object, shard: Option<u32>) -> Result<Option<u8>, Status> {
    let Some(asked) = shard else { return Ok(None) };
    match u8::try_from(asked) {
        Ok(shard) if usize::from(shard) < stream.logs.len() => Ok(Some(shard)),
        _ => {
            let (name, last) = (&stream.definition.name, stream.logs.len().saturating_sub(1));
            let problem = format!("stream `{name}` has no shard {asked}; allowed: 0 to {last}");
            Err(Status::invalid_argument(problem))
        }
    }
}

/// The place in `stream` that a call names, which speaks of `shard` alone or of all.
pub(super) fn start_at(stream: &Object, shard: Option<u8>, place: Place) -> Result<Start, Status> {
    Ok(match place {
        Place::Earliest(wire::Earliest {}) => Start::Earliest,
        Place::Latest(wire::Latest {}) => Start::Latest,
        Place::TimestampMicros(micros) => Start::Time(Timestamp::from_micros(micros)),
        Place::Offset(offset) if shard.is_some() || stream.logs.len() == 1 => Start::Offset(offset),
        Place::Offset(_) => {
            let (name, count) = (&stream.definition.name, stream.logs.len());
            let problem =
                format!("stream `{name}` has {count} shards with offsets of their own; name a shard too");
            return Err(Status::invalid_argument(problem));
        }
        Place::Offsets(offsets) => {
            let mut found = BTreeMap::new();
            for wire::ShardOffset { shard, offset } in offsets.shards {
                if let Some(of) = shard_of(stream, Some(shard))?
                    && found.insert(of, offset).is_some()
                {
                    let problem = format!("shard {shard} is named twice; allowed: one offset for each");
                    return Err(Status::invalid_argument(problem));
                }
            }
            Start::Offsets(found.into_iter().collect())
        }
    })
}
