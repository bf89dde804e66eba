//! What the admin API lets people do to a queue: look at its messages, purge it, move dead letters back, pause it.
//!
//! Turns wire messages into requests to the core and back. Owns nothing.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::SemaphorePermit;
use tonic::Status;
use weir_core::Core;
use weir_core::definition::Kind;
use weir_core::operations::{
    PEEK_MESSAGES_MAX, PEEK_PAYLOAD_MAX, Peek, PeekedMessage, Position, Purge, Redrive,
};
use weir_core::queue::{MessageState, StateFilter};
use weir_env::clock::Timestamp;
use weir_proto::admin::v1 as wire;
use weir_topic::TopicFilter;

use super::changes::refused;
use super::convert::{self, status};
use super::{OPERATIONS_MAX, Service};

impl Service {
    pub(super) async fn peek(
        &self,
        request: wire::PeekQueueRequest,
    ) -> Result<wire::PeekQueueResponse, Status> {
        let queue = self.find(Kind::Queue, &request.name)?;
        let count = u32::from(queue.definition.shards);
        if request.shard.is_some_and(|shard| shard >= count) {
            let problem = format!("queue `{}` has shards 0 to {}", request.name, count.saturating_sub(1));
            return Err(Status::invalid_argument(problem));
        }
        let limit = usize::try_from(request.limit).unwrap_or(usize::MAX);
        if !(1..=PEEK_MESSAGES_MAX).contains(&limit) {
            let problem = format!("{limit} messages are not allowed; allowed: 1 to {PEEK_MESSAGES_MAX}");
            return Err(Status::invalid_argument(problem));
        }
        let payload_max = usize::try_from(request.payload_bytes).unwrap_or(usize::MAX);
        if payload_max > PEEK_PAYLOAD_MAX {
            let problem =
                format!("{payload_max} bytes of payload are not allowed; allowed: up to {PEEK_PAYLOAD_MAX}");
            return Err(Status::invalid_argument(problem));
        }
        let topic = match request.topic_filter.as_str() {
            "" => None,
            filter => Some(TopicFilter::parse(filter.to_owned()).map_err(|error| {
                Status::invalid_argument(format!("`{filter}` is not a topic filter: {error}"))
            })?),
        };
        let peek = Peek {
            from: request.from.map(position).transpose()?,
            shard: request.shard.and_then(|shard| u8::try_from(shard).ok()),
            topic,
            key: request.key,
            count: limit,
            payload_max,
        };
        let _permit = self.operation()?;
        let peeked = self.core.peek(&queue, &peek).await.map_err(|error| status(&error, &queue))?;
        Ok(wire::PeekQueueResponse {
            messages: peeked.messages.into_iter().map(peeked_message).collect(),
            next: peeked.next.map(wire_position),
        })
    }

    pub(super) async fn purge(
        &self,
        request: wire::PurgeQueueRequest,
    ) -> Result<wire::PurgeQueueResponse, Status> {
        let filter = match request.state() {
            wire::MessageState::Unspecified => StateFilter::Any,
            wire::MessageState::Ready => StateFilter::Ready,
            wire::MessageState::InFlight => StateFilter::InFlight,
            wire::MessageState::Waiting => StateFilter::Waiting,
            wire::MessageState::Leaving => {
                let problem = "messages on their way to the dead letters cannot be purged; purge those there";
                return Err(Status::invalid_argument(problem));
            }
        };
        let queue = self.find(Kind::Queue, &request.name)?;
        let since = self.core.clock().wall().as_micros().saturating_sub(request.older_than_micros);
        let purge = Purge {
            from: request.from.map(position).transpose()?,
            before: (request.older_than_micros != 0).then(|| Timestamp::from_micros(since)),
            filter,
        };
        let _permit = self.operation()?;
        let purged = self.core.purge(&queue, &purge).await.map_err(|error| status(&error, &queue))?;
        tracing::info!(queue = request.name, purged = purged.purged, "messages were purged");
        Ok(wire::PurgeQueueResponse { purged: purged.purged, next: purged.next.map(wire_position) })
    }

    pub(super) async fn redrive(
        &self,
        request: wire::RedriveQueueRequest,
    ) -> Result<wire::RedriveQueueResponse, Status> {
        let queue = self.find(Kind::Queue, &request.name)?;
        let to = match request.to.as_str() {
            "" => None,
            to if to == request.name => {
                let problem = format!("queue `{to}` cannot be moved to itself: name another one, or none");
                return Err(Status::invalid_argument(problem));
            }
            to => Some(self.find(Kind::Queue, to)?),
        };
        let redrive = Redrive {
            from: request.from.map(position).transpose()?,
            only: (!request.left_queue.is_empty()).then_some(request.left_queue),
            to,
            count: request.limit,
        };
        let _permit = self.operation()?;
        let done = self.core.redrive(&queue, &redrive).await.map_err(|error| status(&error, &queue))?;
        tracing::info!(queue = request.name, moved = done.moved, "dead letters were moved back");
        Ok(wire::RedriveQueueResponse {
            moved: done.moved,
            busy: done.busy,
            homeless: done.homeless,
            failure: done.failure.unwrap_or_default(),
            next: done.next.map(wire_position),
        })
    }

    /// Pauses or resumes a queue, and describes it.
    pub(super) async fn pause(&self, name: &str, paused: bool) -> Result<wire::Queue, Status> {
        let name = self.find(Kind::Queue, name)?.definition.name.clone();
        let pause = |core: Arc<Core>| async move {
            let queue = core.pause(&name, paused).await?;
            tracing::info!(queue = name, paused, origin = "admin", "queue was paused or resumed");
            Ok(queue)
        };
        let queue = self.to_the_end(pause).await?.map_err(|error| refused(&error))?;
        let reports = self.reports(&queue).await.map_err(|error| status(&error, &queue))?;
        Ok(convert::queue(&queue, &reports))
    }

    /// Leave for a look, a purge or a redrive: each holds messages in memory.
    pub(super) fn operation(&self) -> Result<SemaphorePermit<'_>, Status> {
        self.operations.try_acquire().map_err(|_| {
            let problem = format!("{OPERATIONS_MAX} looks at queues, purges and redrives are under way");
            Status::resource_exhausted(format!("{problem}; try again when one has ended"))
        })
    }
}

fn position(position: wire::QueuePosition) -> Result<Position, Status> {
    let narrow =
        |n: u32| u8::try_from(n).map_err(|_| Status::invalid_argument(format!("no shard or class {n}")));
    Ok(Position {
        shard: narrow(position.shard)?,
        class: narrow(position.priority)?,
        offset: position.offset,
    })
}

fn wire_position(position: Position) -> wire::QueuePosition {
    wire::QueuePosition {
        shard: position.shard.into(),
        priority: position.class.into(),
        offset: position.offset,
    }
}

fn peeked_message(peeked: PeekedMessage) -> wire::PeekedMessage {
    let millis = |left: std::time::Duration| u64::try_from(left.as_millis()).unwrap_or(u64::MAX);
    let (state, consumer, left_millis) = match peeked.state {
        MessageState::Ready => (wire::MessageState::Ready, String::new(), 0),
        MessageState::InFlight { client_id, left } => (wire::MessageState::InFlight, client_id, millis(left)),
        MessageState::Waiting { left } => (wire::MessageState::Waiting, String::new(), millis(left)),
        MessageState::Leaving => (wire::MessageState::Leaving, String::new(), 0),
    };
    let (log, message) = (peeked.log, &peeked.record.message);
    let user = message.properties.user.iter();
    wire::PeekedMessage {
        position: Some(wire_position(Position { shard: log.shard, class: log.class, offset: peeked.offset })),
        state: state.into(),
        consumer,
        left_millis,
        failed_deliveries: peeked.failed,
        ts_micros: message.published_at.as_micros(),
        expires_micros: message.expires_at.map_or(0, Timestamp::as_micros),
        topic: message.topic.as_str().to_owned(),
        key: peeked.record.key_bytes().map(Bytes::copy_from_slice),
        payload: message.payload.clone(),
        payload_len: peeked.payload_len,
        user_properties: user
            .map(|(name, value)| wire::UserProperty { name: name.to_string(), value: value.to_string() })
            .collect(),
    }
}
