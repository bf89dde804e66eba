//! What was read of streams on its way into the session.

use bytes::Bytes;
use smallvec::SmallVec;
use weir_codec::{Message, MessageProperties, QoS, UserProperties};
use weir_core::keyspace::segment::Record;
use weir_session::Delivery;
use weir_topic::TopicName;

use super::{Part, PlaceId, Reading, StreamBatch};
use crate::connection::deliver::{DELIVERIES_PER_TURN, Sent};
use crate::connection::external::{Source, key_property};
use crate::connection::{Connection, Tag};
use crate::convert;
use crate::metrics::Dropped;

impl Connection {
    /// Gives the session what was read, as far as it and the socket have room. True if it took anything.
    pub(in crate::connection) fn deliver_stream(&mut self) -> bool {
        let unacknowledged = self.deliver_lane(false);
        self.deliver_lane(true) || unacknowledged
    }

    fn deliver_lane(&mut self, acknowledged: bool) -> bool {
        let Some(mut batch) = self.streams.lane(acknowledged).take() else { return false };
        let found = self.externals.iter().position(
            |external| matches!(&external.source, Source::Stream(reading) if reading.reader == batch.reader),
        );
        // Without one the subscription has ended, or is read in another way, and what was read for it is nobody's.
        let Some(at) = found else { return true };
        let (any, is_done) = self.deliver_batch(at, &mut batch);
        if !is_done {
            self.streams.lane(acknowledged).put_back(batch);
        }
        self.follow_positions(at);
        any
    }

    /// Whether anything of a batch was taken, and whether nothing is left of it.
    fn deliver_batch(&mut self, at: usize, batch: &mut StreamBatch) -> (bool, bool) {
        let qos = self.externals.get(at).map_or(QoS::AtMostOnce, |e| e.qos.min(QoS::AtLeastOnce));
        let (shard, generation) = match &batch.part {
            Part::Records { shard, generation, .. } | Part::Frames { shard, generation, .. } => {
                (*shard, *generation)
            }
            Part::End => return self.deliver_end(at, qos),
            Part::Lost => {
                if let Some(reading) = self.reading(at) {
                    reading.is_lost = true;
                }
                self.put_off(at, "its reader could not go on".to_owned());
                return (true, true);
            }
        };
        if !self.reading(at).is_some_and(|reading| reading.wants(shard, generation)) {
            return (true, true);
        }
        let (records, next) = match &mut batch.part {
            Part::Records { records, next, .. } => (records, next),
            Part::Frames { frames, next, .. } => {
                if !self.can_take(QoS::AtMostOnce) {
                    return (false, false);
                }
                self.wire.put_frames(frames);
                self.metrics.messages_dropped.add(Dropped::TooLarge, frames.too_large);
                if let Some(reading) = self.reading(at) {
                    reading.positions.passed(shard, *next);
                }
                return (true, true);
            }
            Part::End | Part::Lost => return (false, true),
        };
        let mut any = false;
        for _ in 0..DELIVERIES_PER_TURN {
            if !records.is_empty() && !self.can_take(qos) {
                return (any, false);
            }
            let Some((offset, record)) = records.front().map(|(offset, record)| (*offset, record)) else {
                if let Some(reading) = self.reading(at) {
                    reading.positions.passed(shard, *next);
                }
                return (true, true);
            };
            let Some(delivery) = self.stream_delivery(at, qos, shard, offset, record) else {
                return (any, true);
            };
            let sent = self.send(delivery);
            let Some(reading) = self.reading(at) else { return (any, true) };
            match sent {
                Sent::Yes if qos != QoS::AtMostOnce => reading.positions.sent(shard, offset),
                Sent::Yes => reading.positions.passed(shard, offset + 1),
                Sent::Dropped(why) => {
                    reading.positions.passed(shard, offset + 1);
                    self.metrics.messages_dropped.inc(why);
                }
                Sent::Later => return (any, false),
            }
            records.pop_front();
            self.transmit();
            any = true;
        }
        (any, false)
    }

    /// Tells the client that there is no more.
    fn deliver_end(&mut self, at: usize, qos: QoS) -> (bool, bool) {
        if !self.can_take(qos) {
            return (false, false);
        }
        let Some(delivery) = self.end_delivery(at, qos) else { return (false, true) };
        match self.send(delivery) {
            Sent::Yes if qos != QoS::AtMostOnce => {}
            Sent::Yes | Sent::Dropped(_) => self.note_end(at),
            Sent::Later => return (false, false),
        }
        self.transmit();
        (true, true)
    }

    fn reading(&mut self, at: usize) -> Option<&mut Reading> {
        match &mut self.externals.get_mut(at)?.source {
            Source::Stream(reading) => Some(reading),
            Source::Missing | Source::Queue { .. } => None,
        }
    }

    fn note_end(&mut self, at: usize) {
        if let Some(reading) = self.reading(at) {
            reading.ended = true;
            reading.positions.touch();
        }
    }

    /// A message of a stream was acknowledged, or, without `at`, that there is no more.
    pub(in crate::connection) fn note_read(&mut self, place: PlaceId, at: Option<(u8, u64)>) {
        let is_its = |source: &Source| matches!(source, Source::Stream(reading) if reading.place == place);
        let Some(external) = self.externals.iter().position(|external| is_its(&external.source)) else {
            return;
        };
        match (at, self.reading(external)) {
            (Some((shard, offset)), Some(reading)) => reading.positions.acknowledged(shard, offset),
            (None, _) => self.note_end(external),
            (Some(_), None) => {}
        }
        self.follow_positions(external);
    }

    /// Positions may have moved, which the store or the group is to know before long.
    fn follow_positions(&mut self, at: usize) {
        let persistent = self.stored.persistent;
        let Some(reading) = self.reading(at) else { return };
        let (has_moved, is_member) = (reading.positions.has_moved(), reading.member.is_some());
        if has_moved && (persistent || is_member) {
            self.schedule_positions();
        }
        if is_member {
            self.schedule_release(at);
        }
    }

    fn stream_delivery(
        &self,
        at: usize,
        qos: QoS,
        shard: u8,
        offset: u64,
        record: &Record,
    ) -> Option<Delivery<Tag>> {
        let external = self.externals.get(at)?;
        let Source::Stream(reading) = &external.source else { return None };
        let v5 = self.version == weir_codec::ProtocolVersion::V5;
        Some(Delivery {
            message: convert::to_wire(&record.message),
            qos,
            retain: false,
            subscription_identifiers: external.identifier.into_iter().collect(),
            extra: if v5 {
                stream_properties(&reading.object.definition.name, shard, offset, record)
            } else {
                Vec::new()
            },
            expires_at: None,
            resumable: false,
            store_release: false,
            tag: Tag::Stream { place: reading.place, at: Some((shard, offset)) },
        })
    }

    /// The closing message of a bounded replay.
    fn end_delivery(&self, at: usize, qos: QoS) -> Option<Delivery<Tag>> {
        let external = self.externals.get(at)?;
        let Source::Stream(reading) = &external.source else { return None };
        let name = &reading.object.definition.name;
        let topic = TopicName::parse(format!("$stream/{name}")).ok()?;
        let message = Message { topic, payload: Bytes::new(), properties: MessageProperties::default() };
        let mut subscription_identifiers = SmallVec::new();
        subscription_identifiers.extend(external.identifier);
        Some(Delivery {
            message: message.into(),
            qos,
            retain: false,
            subscription_identifiers,
            extra: vec![("stream-end".into(), "true".into()), ("stream".into(), name.clone().into())],
            expires_at: None,
            resumable: false,
            store_release: false,
            tag: Tag::Stream { place: reading.place, at: None },
        })
    }
}

/// User properties that say where a stream message comes from.
pub(super) fn stream_properties(stream: &str, shard: u8, offset: u64, record: &Record) -> UserProperties {
    let published_at = record.message.published_at;
    let mut extra: UserProperties = vec![
        ("stream".into(), stream.to_owned().into()),
        ("shard".into(), shard.to_string().into()),
        ("offset".into(), offset.to_string().into()),
        ("ts".into(), published_at.as_micros().to_string().into()),
    ];
    extra.extend(key_property(record));
    if let Some(expires_at) = record.message.expires_at {
        // It began to run a moment before the message was stored.
        let seconds = expires_at.saturating_since(published_at).as_millis().div_ceil(1000);
        extra.push(("message-expiry".into(), seconds.to_string().into()));
    }
    extra
}
