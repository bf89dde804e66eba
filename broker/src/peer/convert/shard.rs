//! Messages about virtual shards, to protobuf and back.

use std::sync::Arc;
use std::time::Duration;

use weir_core::cluster::message::ShardMessage;
use weir_core::cluster::message::shard::{
    FromOwner, InFlight, ObjectRef, Refusal, RemoteAppend, RemoteConsumer, ToOwner,
};
use weir_core::controls::Wishes;
use weir_core::keyspace::dedup::DedupId;
use weir_core::keyspace::owner::PodId;
use weir_core::keyspace::segment::{Record, RecordKey};
use weir_core::keyspace::{LogId, PublishId, VirtualShard};
use weir_core::queue::{ConsumerId, Handout, Lost, Verdict};
use weir_core::shard::Extent;
use weir_env::clock::Timestamp;
use weir_proto::peer::v1 as wire;
use weir_proto::peer::v1::shard_message::Message;

use super::{Malformed, answer, id_from_wire, id_to_wire, message, narrow, question};

pub(super) fn to_wire(message: ShardMessage) -> wire::ShardMessage {
    let (vs, message) = match message {
        ShardMessage::RollCall { vs } => (vs, Message::RollCall(wire::RollCall {})),
        ShardMessage::Absent { vs } => (vs, Message::Absent(wire::Absent {})),
        ShardMessage::ToOwner { vs, talk, words } => {
            let words = Some(to_owner_to_wire(words));
            (vs, Message::ToOwner(wire::ToOwner { talk, words }))
        }
        ShardMessage::FromOwner { vs, talk, words } => {
            let words = Some(from_owner_to_wire(words));
            (vs, Message::FromOwner(wire::FromOwner { talk, words }))
        }
    };
    wire::ShardMessage { vs: vs.0.into(), message: Some(message) }
}

pub(super) fn from_wire(message: wire::ShardMessage) -> Result<ShardMessage, Malformed> {
    let vs = VirtualShard(narrow(message.vs, "virtual shard")?);
    Ok(match message.message.ok_or(Malformed("shard message"))? {
        Message::RollCall(wire::RollCall {}) => ShardMessage::RollCall { vs },
        Message::Absent(wire::Absent {}) => ShardMessage::Absent { vs },
        Message::ToOwner(wire::ToOwner { talk, words }) => {
            let words = to_owner_from_wire(words.ok_or(Malformed("words to an owner"))?)?;
            ShardMessage::ToOwner { vs, talk, words }
        }
        Message::FromOwner(wire::FromOwner { talk, words }) => {
            let words = from_owner_from_wire(words.ok_or(Malformed("words from an owner"))?)?;
            ShardMessage::FromOwner { vs, talk, words }
        }
    })
}

fn to_owner_to_wire(words: ToOwner) -> wire::to_owner::Words {
    use wire::to_owner::Words;
    match words {
        ToOwner::Append(append) => Words::Append(append_to_wire(*append)),
        ToOwner::Ask { request, object, log, question } => Words::Ask(wire::Ask {
            request,
            object: object.map(object_to_wire),
            log: log_to_wire(log),
            question: Some(question::to_wire(question)),
        }),
        ToOwner::Attach { request, object, log, consumer, held } => Words::Attach(wire::Attach {
            request,
            object: Some(object_to_wire(object)),
            log: log_to_wire(log),
            consumer: consumer.id.0,
            client_id: consumer.client_id.to_string(),
            since_us: consumer.since.as_micros(),
            acknowledges: consumer.acknowledges,
            held: held.into_iter().map(held_to_wire).collect(),
        }),
        ToOwner::Present => Words::Present(wire::Present {}),
        ToOwner::Parted => Words::Parted(wire::Parted {}),
        ToOwner::Detach { log, consumer, lost } => Words::Detach(wire::Detach {
            log: log_to_wire(log),
            consumer: consumer.0,
            is_vanished: lost == Lost::Vanished,
        }),
        ToOwner::Settle { seq, handout, verdict } => Words::Settle(wire::Settle {
            seq,
            log: log_to_wire(handout.log),
            consumer: handout.consumer.0,
            offset: handout.offset,
            delivery_count: handout.delivery_count,
            verdict: match verdict {
                Verdict::Acknowledged => wire::Verdict::Acknowledged,
                Verdict::Rejected => wire::Verdict::Rejected,
                Verdict::Returned => wire::Verdict::Returned,
            }
            .into(),
        }),
        ToOwner::Credit { log, consumer, room, taken } => {
            Words::Credit(wire::Credit { log: log_to_wire(log), consumer: consumer.0, room, taken })
        }
        ToOwner::Unwatch { log } => Words::Unwatch(a_log(log)),
        ToOwner::Update { object, log } => {
            Words::Update(wire::Update { object: Some(object_to_wire(object)), log: log_to_wire(log) })
        }
    }
}

fn to_owner_from_wire(words: wire::to_owner::Words) -> Result<ToOwner, Malformed> {
    use wire::to_owner::Words;
    Ok(match words {
        Words::Append(append) => ToOwner::Append(Box::new(append_from_wire(append)?)),
        Words::Ask(wire::Ask { request, object, log, question }) => ToOwner::Ask {
            request,
            object: object.map(object_from_wire),
            log: log_from_wire(log)?,
            question: question::from_wire(question.ok_or(Malformed("question"))?)?,
        },
        Words::Attach(attach) => ToOwner::Attach {
            request: attach.request,
            object: object_from_wire(attach.object.ok_or(Malformed("object"))?),
            log: log_from_wire(attach.log)?,
            consumer: RemoteConsumer {
                id: ConsumerId(attach.consumer),
                client_id: attach.client_id.into(),
                since: Timestamp::from_micros(attach.since_us),
                acknowledges: attach.acknowledges,
            },
            held: attach.held.into_iter().map(held_from_wire).collect::<Result<_, _>>()?,
        },
        Words::Present(wire::Present {}) => ToOwner::Present,
        Words::Parted(wire::Parted {}) => ToOwner::Parted,
        Words::Detach(wire::Detach { log, consumer, is_vanished }) => ToOwner::Detach {
            log: log_from_wire(log)?,
            consumer: ConsumerId(consumer),
            lost: if is_vanished { Lost::Vanished } else { Lost::Left },
        },
        Words::Settle(settle) => {
            let verdict = match settle.verdict() {
                wire::Verdict::Acknowledged => Verdict::Acknowledged,
                wire::Verdict::Rejected => Verdict::Rejected,
                wire::Verdict::Returned => Verdict::Returned,
                wire::Verdict::Unspecified => return Err(Malformed("verdict")),
            };
            let (consumer, offset, delivery_count) =
                (ConsumerId(settle.consumer), settle.offset, settle.delivery_count);
            let handout = Handout { log: log_from_wire(settle.log)?, consumer, offset, delivery_count };
            ToOwner::Settle { seq: settle.seq, handout, verdict }
        }
        Words::Credit(wire::Credit { log, consumer, room, taken }) => {
            ToOwner::Credit { log: log_from_wire(log)?, consumer: ConsumerId(consumer), room, taken }
        }
        Words::Unwatch(log) => ToOwner::Unwatch { log: log_from_wire(Some(log))? },
        Words::Update(wire::Update { object, log }) => ToOwner::Update {
            object: object_from_wire(object.ok_or(Malformed("object"))?),
            log: log_from_wire(log)?,
        },
    })
}

fn from_owner_to_wire(words: FromOwner) -> wire::from_owner::Words {
    use wire::from_owner::Words;
    match words {
        FromOwner::Appended(answers) => {
            let answers = answers.into_iter().map(|(request, answer)| wire::AppendAnswer {
                request,
                refusal: answer.err().map(refusal_to_wire),
            });
            Words::Appended(wire::Appended { answers: answers.collect() })
        }
        FromOwner::Answer { request, answer } => {
            Words::Answered(wire::Answered { request, answer: Some(answer::to_wire(answer)) })
        }
        FromOwner::NotOwner { owner } => {
            Words::NotOwner(wire::NotOwner { owner: owner.map(|pod| id_to_wire(pod.0)) })
        }
        FromOwner::Deliver { log, consumer, offset, delivery_count, record } => {
            Words::Deliver(wire::Deliver {
                log: log_to_wire(log),
                consumer: consumer.0,
                offset,
                delivery_count,
                record: Some(record_to_wire(&record)),
            })
        }
        FromOwner::Wanted { log, consumer } => {
            Words::Wanted(wire::Wanted { log: log_to_wire(log), consumer: consumer.0 })
        }
        FromOwner::Unused { log, consumer, room } => {
            Words::Unused(wire::Unused { log: log_to_wire(log), consumer: consumer.0, room })
        }
        FromOwner::SettledTo(seq) => Words::SettledTo(seq),
        FromOwner::Extent { log, extent } => {
            Words::Extent(wire::LogExtent { log: log_to_wire(log), extent: Some(extent_to_wire(extent)) })
        }
        FromOwner::Gone { log } => Words::Gone(a_log(log)),
    }
}

fn from_owner_from_wire(words: wire::from_owner::Words) -> Result<FromOwner, Malformed> {
    use wire::from_owner::Words;
    Ok(match words {
        Words::Appended(wire::Appended { answers }) => {
            let answers = answers.into_iter().map(|answer| {
                let refusal = answer.refusal.map(refusal_from_wire).transpose()?;
                Ok((answer.request, refusal.map_or(Ok(()), Err)))
            });
            FromOwner::Appended(answers.collect::<Result<_, _>>()?)
        }
        Words::Answered(wire::Answered { request, answer }) => {
            FromOwner::Answer { request, answer: answer::from_wire(answer.ok_or(Malformed("answer"))?)? }
        }
        Words::NotOwner(wire::NotOwner { owner }) => {
            let owner = owner.map(|owner| id_from_wire(&owner, "owner")).transpose()?;
            FromOwner::NotOwner { owner: owner.map(PodId) }
        }
        Words::Deliver(deliver) => FromOwner::Deliver {
            log: log_from_wire(deliver.log)?,
            consumer: ConsumerId(deliver.consumer),
            offset: deliver.offset,
            delivery_count: deliver.delivery_count,
            record: Arc::new(record_from_wire(deliver.record)?),
        },
        Words::Wanted(wire::Wanted { log, consumer }) => {
            FromOwner::Wanted { log: log_from_wire(log)?, consumer: ConsumerId(consumer) }
        }
        Words::Unused(wire::Unused { log, consumer, room }) => {
            FromOwner::Unused { log: log_from_wire(log)?, consumer: ConsumerId(consumer), room }
        }
        Words::SettledTo(seq) => FromOwner::SettledTo(seq),
        Words::Extent(wire::LogExtent { log, extent }) => {
            FromOwner::Extent { log: log_from_wire(log)?, extent: extent_from_wire(extent)? }
        }
        Words::Gone(log) => FromOwner::Gone { log: log_from_wire(Some(log))? },
    })
}

fn append_to_wire(append: RemoteAppend) -> wire::Append {
    let RemoteAppend { request, object, log, record, publish, wishes } = append;
    wire::Append {
        request,
        object: Some(object_to_wire(object)),
        log: log_to_wire(log),
        record: Some(record_to_wire(&record)),
        publish: publish.map(|(id, _)| id_to_wire(id.0)),
        is_repeat: publish.is_some_and(|(_, is_repeat)| is_repeat),
        delay_ms: millis(wishes.delay),
        priority: wishes.priority.into(),
        dedup: wishes.dedup.map(|id| id_to_wire(id.0)),
    }
}

fn append_from_wire(append: wire::Append) -> Result<RemoteAppend, Malformed> {
    let publish = append.publish.map(|id| id_from_wire(&id, "publish id")).transpose()?;
    let dedup = append.dedup.map(|id| id_from_wire(&id, "dedup id")).transpose()?;
    Ok(RemoteAppend {
        request: append.request,
        object: object_from_wire(append.object.ok_or(Malformed("object"))?),
        log: log_from_wire(append.log)?,
        record: Arc::new(record_from_wire(append.record)?),
        publish: publish.map(|id| (PublishId(id), append.is_repeat)),
        wishes: Wishes {
            delay: Duration::from_millis(append.delay_ms),
            priority: narrow(append.priority, "priority")?,
            priority_ignored: false,
            dedup: dedup.map(DedupId),
        },
    })
}

pub(super) fn refusal_to_wire(refusal: Refusal) -> wire::Refusal {
    use wire::refusal::Refusal as Wire;
    let refusal = match refusal {
        Refusal::Full { name, what } => Wire::Full(wire::Full { name, what }),
        Refusal::Closed => Wire::Closed(wire::Closed {}),
        Refusal::Failed(text) => Wire::Failed(text),
    };
    wire::Refusal { refusal: Some(refusal) }
}

pub(super) fn refusal_from_wire(refusal: wire::Refusal) -> Result<Refusal, Malformed> {
    use wire::refusal::Refusal as Wire;
    Ok(match refusal.refusal.ok_or(Malformed("refusal"))? {
        Wire::Full(wire::Full { name, what }) => Refusal::Full { name, what },
        Wire::Closed(wire::Closed {}) => Refusal::Closed,
        Wire::Failed(text) => Refusal::Failed(text),
    })
}

pub(super) fn record_to_wire(record: &Record) -> wire::Record {
    let key = match &record.key {
        RecordKey::None => None,
        RecordKey::Topic => Some(wire::record::Key::Topic(wire::KeyIsTopic {})),
        RecordKey::Bytes(key) => Some(wire::record::Key::Bytes(key.clone())),
    };
    wire::Record { message: Some(message::to_wire(&record.message)), key, blob_len: record.blob_len }
}

pub(super) fn record_from_wire(record: Option<wire::Record>) -> Result<Record, Malformed> {
    let record = record.ok_or(Malformed("record"))?;
    let key = match record.key {
        None => RecordKey::None,
        Some(wire::record::Key::Topic(wire::KeyIsTopic {})) => RecordKey::Topic,
        Some(wire::record::Key::Bytes(key)) => RecordKey::Bytes(key),
    };
    let message = message::from_wire(record.message)?;
    Ok(Record { message, key, blob_len: record.blob_len, span: tracing::Span::none() })
}

pub(super) fn a_log(log: LogId) -> wire::LogId {
    wire::LogId { vs: log.vs.0.into(), object: log.object, shard: log.shard.into(), class: log.class.into() }
}

pub(super) fn log_to_wire(log: LogId) -> Option<wire::LogId> {
    Some(a_log(log))
}

pub(super) fn log_from_wire(log: Option<wire::LogId>) -> Result<LogId, Malformed> {
    let log = log.ok_or(Malformed("log"))?;
    Ok(LogId {
        vs: VirtualShard(narrow(log.vs, "virtual shard of a log")?),
        object: log.object,
        shard: narrow(log.shard, "shard of a log")?,
        class: narrow(log.class, "class of a log")?,
    })
}

pub(super) fn object_to_wire(object: ObjectRef) -> wire::ObjectRef {
    wire::ObjectRef { id: object.id, generation: object.generation }
}

pub(super) fn object_from_wire(object: wire::ObjectRef) -> ObjectRef {
    ObjectRef { id: object.id, generation: object.generation }
}

fn held_to_wire(held: InFlight) -> wire::InFlight {
    wire::InFlight {
        class: held.class.into(),
        offset: held.offset,
        delivery_count: held.delivery_count,
        age_ms: millis(held.age),
    }
}

fn held_from_wire(held: wire::InFlight) -> Result<InFlight, Malformed> {
    Ok(InFlight {
        class: narrow(held.class, "class of a message")?,
        offset: held.offset,
        delivery_count: held.delivery_count,
        age: Duration::from_millis(held.age_ms),
    })
}

pub(super) fn extent_to_wire(extent: Extent) -> wire::Extent {
    wire::Extent { start: extent.start, next: extent.next }
}

pub(super) fn extent_from_wire(extent: Option<wire::Extent>) -> Result<Extent, Malformed> {
    let wire::Extent { start, next } = extent.ok_or(Malformed("extent"))?;
    Ok(Extent { start, next })
}

pub(super) fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use weir_core::cluster::message::PeerMessage;
    use weir_core::cluster::message::shard::{Answer, Question};
    use weir_core::keyspace::group::GroupPosition;
    use weir_core::message::{Message, Properties};
    use weir_core::queue::{ConsumerReport, MessageState, StateFilter};
    use weir_core::shard::{LogReport, QueueReport};
    use weir_topic::TopicName;

    use super::super::tests::through;
    use super::*;

    const LOG: LogId = LogId { vs: VirtualShard(300), object: 7, shard: 3, class: 9 };
    const OBJECT: ObjectRef = ObjectRef { id: 7, generation: u64::MAX };
    const CONSUMER: ConsumerId = ConsumerId(u64::MAX - 1);

    fn record() -> Arc<Record> {
        let message = Message {
            topic: TopicName::parse("a/b").unwrap(),
            payload: Bytes::from_static(b"\x00payload"),
            qos: 1,
            retain: true,
            published_at: Timestamp::from_micros(5),
            expires_at: Some(Timestamp::from_micros(6)),
            dead_letter: Some(4),
            properties: Properties { user: vec![("k".into(), "v".into())], ..Properties::default() },
        };
        let key = RecordKey::Bytes(Bytes::from_static(b"key"));
        Arc::new(Record { message, key, blob_len: Some(9), span: tracing::Span::none() })
    }

    fn to_owner(words: ToOwner) {
        check(ShardMessage::ToOwner { vs: VirtualShard(300), talk: 8, words });
    }

    fn from_owner(words: FromOwner) {
        check(ShardMessage::FromOwner { vs: VirtualShard(300), talk: 8, words });
    }

    /// Their text has every field.
    fn check(sent: ShardMessage) {
        let text = format!("{sent:?}");
        let PeerMessage::Shard(came) = through(sent) else { panic!("another kind") };
        assert_eq!(format!("{came:?}"), text);
    }

    #[test]
    fn what_is_said_to_an_owner_comes_out_as_it_went_in() {
        let wishes = Wishes {
            delay: Duration::from_millis(1500),
            priority: 3,
            priority_ignored: false,
            dedup: Some(DedupId([6; 16])),
        };
        let append = |publish, wishes| {
            let (request, object, log, record) = (1, OBJECT, LOG, record());
            ToOwner::Append(Box::new(RemoteAppend { request, object, log, record, publish, wishes }))
        };
        to_owner(append(Some((PublishId([5; 16]), true)), wishes));
        to_owner(append(None, Wishes::default()));
        let held = vec![InFlight { class: 2, offset: 3, delivery_count: 4, age: Duration::from_secs(5) }];
        let (id, client_id, since) = (CONSUMER, "c".into(), Timestamp::from_micros(3));
        let consumer = RemoteConsumer { id, client_id, since, acknowledges: true };
        to_owner(ToOwner::Attach { request: 2, object: OBJECT, log: LOG, consumer, held });
        to_owner(ToOwner::Present);
        to_owner(ToOwner::Parted);
        to_owner(ToOwner::Unwatch { log: LOG });
        to_owner(ToOwner::Update { object: OBJECT, log: LOG });
        to_owner(ToOwner::Credit { log: LOG, consumer: CONSUMER, room: 4, taken: 6 });
        for lost in [Lost::Left, Lost::Vanished] {
            to_owner(ToOwner::Detach { log: LOG, consumer: CONSUMER, lost });
        }
        for verdict in [Verdict::Acknowledged, Verdict::Rejected, Verdict::Returned] {
            let handout = Handout { log: LOG, consumer: CONSUMER, offset: 7, delivery_count: 2 };
            to_owner(ToOwner::Settle { seq: 9, handout, verdict });
        }
        let position = GroupPosition { offset: 3, generation: 4, ..GroupPosition::default() };
        for question in [
            Question::Describe,
            Question::Watch,
            Question::Settled,
            Question::Classes,
            Question::Delete,
            Question::Trim(5),
            Question::Positions(vec![("g".into(), Some(position)), ("h".into(), None)]),
            Question::States(vec![1, 2]),
            Question::PurgeBelow(6),
            Question::Purge(vec![(1, 2)], StateFilter::Waiting),
            Question::TakeOut(vec![(3, record())]),
            Question::Moved(vec![(1, true), (2, false)]),
        ] {
            to_owner(ToOwner::Ask { request: 3, object: Some(OBJECT), log: LOG, question });
        }
        for filter in [StateFilter::Any, StateFilter::Ready, StateFilter::InFlight] {
            let question = Question::Purge(Vec::new(), filter);
            to_owner(ToOwner::Ask { request: 3, object: None, log: LOG, question });
        }
    }

    #[test]
    fn what_an_owner_says_comes_out_as_it_went_in() {
        let full = Refusal::Full { name: "q".into(), what: "retention.maxBytes".into() };
        let refusals = [full, Refusal::Closed, Refusal::Failed("why".into())];
        let answers = refusals.iter().cloned().map(Err).chain([Ok(())]);
        from_owner(FromOwner::Appended((1..).zip(answers).collect()));
        from_owner(FromOwner::NotOwner { owner: Some(PodId([7; 16])) });
        from_owner(FromOwner::NotOwner { owner: None });
        let (log, consumer, extent) = (LOG, CONSUMER, Extent { start: 3, next: 5 });
        from_owner(FromOwner::Deliver { log, consumer, offset: 4, delivery_count: 2, record: record() });
        from_owner(FromOwner::Wanted { log, consumer });
        from_owner(FromOwner::Unused { log, consumer, room: 3 });
        from_owner(FromOwner::SettledTo(u64::MAX));
        from_owner(FromOwner::Extent { log, extent });
        from_owner(FromOwner::Gone { log });
        let held = MessageState::InFlight { client_id: "c".into(), left: Duration::from_millis(7) };
        let waiting = MessageState::Waiting { left: Duration::from_millis(8) };
        let states = [MessageState::Ready, held, waiting, MessageState::Leaving];
        let mut latency = weir_core::queue::AckLatency::of_counts([1, 2, 3]);
        latency.merge(&latency.clone());
        let consumers = vec![ConsumerReport {
            id: CONSUMER,
            client_id: "c".into(),
            since: Timestamp::from_micros(4),
            inflight: 2,
            free: -3,
            delivered: 4,
            acknowledged: 5,
            rejected: 6,
            latency,
        }];
        let queue = QueueReport {
            floor: 1,
            depth: 2,
            dead_letter_blocked: Some("full".into()),
            oldest: Some(Timestamp::from_micros(9)),
            consumers,
            ..QueueReport::default()
        };
        let report = LogReport { extent, bytes: 4, readers: 2, queue: Some(queue), ..LogReport::default() };
        for answer in [
            Answer::Done,
            Answer::Extent(extent),
            Answer::Report(Box::new(report)),
            Answer::Report(Box::default()),
            Answer::Logs(vec![LOG]),
            Answer::States((1..).zip(states).map(|(offset, state)| (offset, state, 3)).collect()),
            Answer::Purged(4, true),
            Answer::Count(5),
            Answer::Offsets(vec![6, 7]),
        ] {
            from_owner(FromOwner::Answer { request: 1, answer: Ok(answer) });
        }
        for refusal in refusals {
            from_owner(FromOwner::Answer { request: 1, answer: Err(refusal) });
        }
    }
}
