//! Reading a stream for a client of the admin API: as fast as the client takes it, one batch in memory.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::{Stream, StreamExt, TryStreamExt, stream};
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use weir_core::catalog::Object;
use weir_core::keyspace::LogId;
use weir_core::keyspace::segment::Record;
use weir_core::shard::read_segments;
use weir_core::stream::{ReadOptions, ReadPermit, Start, StreamReader, oldest_row};
use weir_core::{Core, Error};
use weir_env::clock::Timestamp;
use weir_proto::admin::v1 as wire;

use super::convert::{Reports, shutting_down, status};
use super::stream_ops::{filter_of, shard_of, start_at};

/// Shards whose oldest message is looked up at the same time.
const LOOKED_UP_AT_ONCE: usize = 8;

/// A read of some shards of a stream.
pub(super) struct Reading {
    core: Arc<Core>,
    object: Arc<Object>,
    shutdown: CancellationToken,
    reader: StreamReader,
    /// Read and not yet sent, all of one shard.
    batch: VecDeque<(u64, Arc<Record>)>,
    batch_shard: u32,
    permit: Option<ReadPermit>,
    /// Messages until the end, if there is a limit.
    left: Option<u64>,
}

impl Reading {
    /// Begins the read of `object` that `request` asks for.
    ///
    /// # Errors
    /// If the request does not fit the stream, or the core fails.
    pub(super) async fn open(
        core: Arc<Core>,
        object: Arc<Object>,
        request: &wire::ReadStreamRequest,
        shutdown: CancellationToken,
    ) -> Result<Self, Status> {
        let shard = shard_of(&object, request.shard)?;
        let at = |place: &Option<wire::StreamPlace>| {
            let place = place.as_ref().and_then(|place| place.place.clone());
            place.map(|place| start_at(&object, shard, place)).transpose()
        };
        let options = ReadOptions {
            start: at(&request.from)?.unwrap_or_default(),
            // Unless it follows, it ends where each shard ends as it begins.
            until: at(&request.until)?.or((!request.follow).then_some(Start::Latest)),
            filter: filter_of(&request.topic_filter)?,
            key: request.key.clone(),
            shard,
            ..ReadOptions::default()
        };
        let reader = core.reader(&object, &options).await.map_err(|error| status(&error, &object))?;
        Ok(Self {
            core,
            object,
            shutdown,
            reader,
            batch: VecDeque::new(),
            batch_shard: 0,
            permit: None,
            left: (request.limit != 0).then_some(request.limit),
        })
    }

    /// The messages, read as they are taken; an error is the last. Holds `permit` until dropped.
    pub(super) fn messages(
        self,
        permit: OwnedSemaphorePermit,
    ) -> impl Stream<Item = Result<wire::ReadStreamResponse, Status>> {
        stream::unfold(Some((self, permit)), |state| async {
            let (mut reading, permit) = state?;
            match reading.next_or_shutdown().await {
                Ok(message) => message.map(|message| (Ok(message), Some((reading, permit)))),
                Err(status) => Some((Err(status), None)),
            }
        })
    }

    async fn next_or_shutdown(&mut self) -> Result<Option<wire::ReadStreamResponse>, Status> {
        let shutdown = self.shutdown.clone();
        tokio::select! {
            next = self.next() => next.map_err(|error| self.explain(&error)),
            () = shutdown.cancelled() => Err(shutting_down()),
        }
    }

    /// The next message; `None` at the end.
    async fn next(&mut self) -> Result<Option<wire::ReadStreamResponse>, Error> {
        loop {
            if self.left == Some(0) {
                return Ok(None);
            }
            if let Some((offset, record)) = self.batch.pop_front() {
                self.left = self.left.map(|left| left.saturating_sub(1));
                return Ok(Some(message(self.batch_shard, offset, &record)));
            }
            if self.reader.is_ended() {
                return Ok(None);
            }
            let batch = self.reader.next().await?;
            self.batch_shard = batch.log.shard.into();
            (self.batch, self.permit) = (batch.records.into(), batch.permit);
        }
    }

    /// What an error means. A shard's owner is gone at shutdown, with its stream, or after a failure.
    fn explain(&self, error: &Error) -> Status {
        if !matches!(error, Error::Closed) || self.shutdown.is_cancelled() {
            return status(error, &self.object);
        }
        let definition = &self.object.definition;
        let found = self.core.catalog().view().find(definition.kind, &definition.name);
        if found.is_some_and(|found| found.id == self.object.id) {
            let positions = self.reader.positions();
            let place = |(shard, offset): &(u8, u64)| format!("offset {offset} of shard {shard}");
            let places = positions.iter().map(place).collect::<Vec<_>>().join(", ");
            return Status::unavailable(format!("the owner of a shard failed; read on from {places}"));
        }
        Status::not_found(format!("stream `{}` was deleted", definition.name))
    }
}

pub(super) fn message(shard: u32, offset: u64, record: &Record) -> wire::ReadStreamResponse {
    let message = &record.message;
    let properties = message.properties.user.iter();
    wire::ReadStreamResponse {
        shard,
        offset,
        ts_micros: message.published_at.as_micros(),
        topic: message.topic.as_str().to_owned(),
        key: record.key_bytes().map(Bytes::copy_from_slice),
        payload: message.payload.clone(),
        user_properties: properties
            .map(|(name, value)| wire::UserProperty { name: name.to_string(), value: value.to_string() })
            .collect(),
    }
}

/// The time of the oldest message of each shard; zero where there is none.
///
/// # Errors
/// If the store fails or a segment is damaged.
pub(super) async fn oldest(core: &Core, object: &Object, reports: &Reports) -> Result<Vec<Timestamp>, Error> {
    let starts = reports.shards.iter().map(|report| report.extent.start);
    let shards: Vec<(LogId, u64)> = object.logs.iter().copied().zip(starts).collect();
    let lookups = shards.into_iter().map(|(log, start)| async move {
        if object.definition.last_value {
            return Ok(oldest_row(core.store(), &log, start).await?.unwrap_or_default());
        }
        for mut segment in read_segments(core.store(), &log, start, 1).await? {
            while let Some((offset, record)) = segment.next_record()? {
                if offset >= start {
                    return Ok(record.message.published_at);
                }
            }
        }
        Ok(Timestamp::default())
    });
    stream::iter(lookups).buffered(LOOKED_UP_AT_ONCE).try_collect().await
}
