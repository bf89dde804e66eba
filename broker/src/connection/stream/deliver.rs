//! What was read of streams on its way into the session.

use weir_codec::{QoS, UserProperties};
use weir_core::catalog::Object;
use weir_core::keyspace::segment::Record;
use weir_session::Delivery;

use super::StreamBatch;
use crate::connection::deliver::{DELIVERIES_PER_TURN, Sent};
use crate::connection::external::{Source, key_property};
use crate::connection::{Connection, Tag};
use crate::convert;

impl Connection {
    /// Gives the session what was read, as far as it and the socket have room. True if it took anything.
    pub(in crate::connection) fn deliver_stream(&mut self) -> bool {
        let Some(mut batch) = self.batch.take().or_else(|| self.stream.try_recv().map(Box::new)) else {
            return false;
        };
        let found = self.externals.iter().position(
            |external| matches!(&external.source, Source::Stream { reader, .. } if *reader == batch.reader),
        );
        // Without one the subscription has ended, and what was read for it is nobody's.
        let Some(at) = found else { return true };
        let mut any = false;
        for _ in 0..DELIVERIES_PER_TURN {
            let qos = self.externals.get(at).map_or(QoS::AtMostOnce, |e| e.qos.min(QoS::AtLeastOnce));
            if !self.can_take(qos) {
                break;
            }
            let Some((offset, record)) = batch.records.pop_front() else { break };
            let Some(delivery) = self.stream_delivery(at, qos, &batch, offset, &record) else { break };
            if let Sent::Dropped(why) = self.send(delivery) {
                self.metrics.messages_dropped.inc(why);
            }
            self.transmit();
            any = true;
        }
        if !batch.records.is_empty() {
            self.batch = Some(batch);
        }
        any
    }

    fn stream_delivery(
        &self,
        at: usize,
        qos: QoS,
        batch: &StreamBatch,
        offset: u64,
        record: &Record,
    ) -> Option<Delivery<Tag>> {
        let external = self.externals.get(at)?;
        let object = external.object()?;
        let v5 = self.version == weir_codec::ProtocolVersion::V5;
        let extra = if v5 { stream_properties(object, batch.log.shard, offset, record) } else { Vec::new() };
        Some(Delivery {
            message: convert::to_wire(&record.message),
            qos,
            retain: false,
            subscription_identifiers: external.identifier.into_iter().collect(),
            extra,
            expires_at: None,
            resumable: false,
            store_release: false,
            tag: Tag::Stream,
        })
    }
}

/// User properties that say where a stream message comes from.
fn stream_properties(object: &Object, shard: u8, offset: u64, record: &Record) -> UserProperties {
    let mut extra: UserProperties = vec![
        ("stream".into(), object.definition.name.clone().into()),
        ("shard".into(), shard.to_string().into()),
        ("offset".into(), offset.to_string().into()),
        ("ts".into(), record.message.published_at.as_micros().to_string().into()),
    ];
    extra.extend(key_property(record));
    extra
}
