//! What the owner of a shard answers, to protobuf and back.

use std::time::Duration;

use weir_core::cluster::message::shard::{Answer, Refusal};
use weir_core::keyspace::queue::QueueFloor;
use weir_core::queue::{AckLatency, ConsumerId, ConsumerReport, MessageState, Rates};
use weir_core::shard::{LogReport, QueueReport};
use weir_env::clock::Timestamp;
use weir_proto::peer::v1 as wire;
use weir_proto::peer::v1::answered::Answer as Wire;

use super::Malformed;
use super::shard::{
    a_log, extent_from_wire, extent_to_wire, log_from_wire, millis, refusal_from_wire, refusal_to_wire,
};

pub(super) fn to_wire(answer: Result<Answer, Refusal>) -> Wire {
    let answer = match answer {
        Ok(answer) => answer,
        Err(refusal) => return Wire::Refusal(refusal_to_wire(refusal)),
    };
    match answer {
        Answer::Done => Wire::Done(wire::Done {}),
        Answer::Extent(extent) => Wire::Extent(extent_to_wire(extent)),
        Answer::Report(report) => Wire::Report(report_to_wire(*report)),
        Answer::Logs(logs) => Wire::Logs(wire::Logs { logs: logs.into_iter().map(a_log).collect() }),
        Answer::States(states) => {
            Wire::States(wire::States { states: states.into_iter().map(state_to_wire).collect() })
        }
        Answer::Purged(count, more) => Wire::Purged(wire::Purged { count, more }),
        Answer::Count(count) => Wire::Count(count),
        Answer::Offsets(offsets) => Wire::Offsets(wire::Offsets { offsets }),
    }
}

pub(super) fn from_wire(answer: Wire) -> Result<Result<Answer, Refusal>, Malformed> {
    Ok(Ok(match answer {
        Wire::Refusal(refusal) => return Ok(Err(refusal_from_wire(refusal)?)),
        Wire::Done(wire::Done {}) => Answer::Done,
        Wire::Extent(extent) => Answer::Extent(extent_from_wire(Some(extent))?),
        Wire::Report(report) => Answer::Report(Box::new(report_from_wire(report)?)),
        Wire::Logs(wire::Logs { logs }) => {
            let logs = logs.into_iter().map(|log| log_from_wire(Some(log)));
            Answer::Logs(logs.collect::<Result<_, _>>()?)
        }
        Wire::States(wire::States { states }) => {
            Answer::States(states.into_iter().map(state_from_wire).collect::<Result<_, _>>()?)
        }
        Wire::Purged(wire::Purged { count, more }) => Answer::Purged(count, more),
        Wire::Count(count) => Answer::Count(count),
        Wire::Offsets(wire::Offsets { offsets }) => Answer::Offsets(offsets),
    }))
}

fn state_to_wire((offset, state, failed): (u64, MessageState, u32)) -> wire::State {
    use wire::state::State;
    let state = match state {
        MessageState::Ready => State::Ready(wire::Ready {}),
        MessageState::InFlight { client_id, left } => {
            State::Held(wire::HeldBy { client_id, left_ms: millis(left) })
        }
        MessageState::Waiting { left } => State::WaitingMs(millis(left)),
        MessageState::Leaving => State::Leaving(wire::Leaving {}),
    };
    wire::State { offset, failed, state: Some(state) }
}

fn state_from_wire(message: wire::State) -> Result<(u64, MessageState, u32), Malformed> {
    use wire::state::State;
    let state = match message.state.ok_or(Malformed("state of a message"))? {
        State::Ready(wire::Ready {}) => MessageState::Ready,
        State::Held(wire::HeldBy { client_id, left_ms }) => {
            MessageState::InFlight { client_id, left: Duration::from_millis(left_ms) }
        }
        State::WaitingMs(left) => MessageState::Waiting { left: Duration::from_millis(left) },
        State::Leaving(wire::Leaving {}) => MessageState::Leaving,
    };
    Ok((message.offset, state, message.failed))
}

fn report_to_wire(report: LogReport) -> wire::LogReport {
    wire::LogReport {
        extent: Some(extent_to_wire(report.extent)),
        bytes: report.bytes,
        messages: report.messages,
        last_ts_us: report.last_ts_micros,
        readers: report.readers as u64,
        oldest_us: report.oldest.map(|at| at.as_micros()),
        queue: report.queue.map(queue_to_wire),
    }
}

fn report_from_wire(report: wire::LogReport) -> Result<LogReport, Malformed> {
    Ok(LogReport {
        extent: extent_from_wire(report.extent)?,
        bytes: report.bytes,
        messages: report.messages,
        last_ts_micros: report.last_ts_us,
        readers: usize::try_from(report.readers).map_err(|_| Malformed("readers"))?,
        oldest: report.oldest_us.map(Timestamp::from_micros),
        queue: report.queue.map(queue_from_wire).transpose()?,
    })
}

fn queue_to_wire(queue: QueueReport) -> wire::QueueReport {
    let Rates { published, delivered, redelivered, acknowledged } = queue.rates;
    wire::QueueReport {
        floor: queue.floor,
        depth: queue.depth,
        bytes: queue.bytes,
        delayed: queue.delayed,
        inflight: queue.inflight,
        aside: queue.aside,
        counters: queue.counters.encode().into(),
        dying: queue.dying,
        dead_letter_blocked: queue.dead_letter_blocked.map(|why| why.to_string()),
        waiting: queue.waiting,
        oldest_us: queue.oldest.map(|at| at.as_micros()),
        delivered: queue.delivered,
        redelivered: queue.redelivered,
        rates: Some(wire::Rates { published, delivered, redelivered, acknowledged }),
        consumers: queue.consumers.into_iter().map(consumer_to_wire).collect(),
    }
}

fn queue_from_wire(queue: wire::QueueReport) -> Result<QueueReport, Malformed> {
    let rates = queue.rates.unwrap_or_default();
    let wire::Rates { published, delivered, redelivered, acknowledged } = rates;
    Ok(QueueReport {
        floor: queue.floor,
        depth: queue.depth,
        bytes: queue.bytes,
        delayed: queue.delayed,
        inflight: queue.inflight,
        aside: queue.aside,
        counters: QueueFloor::decode(queue.counters).map_err(|_| Malformed("counters of a queue"))?,
        dying: queue.dying,
        dead_letter_blocked: queue.dead_letter_blocked.map(Into::into),
        waiting: queue.waiting,
        oldest: queue.oldest_us.map(Timestamp::from_micros),
        delivered: queue.delivered,
        redelivered: queue.redelivered,
        rates: Rates { published, delivered, redelivered, acknowledged },
        consumers: queue.consumers.into_iter().map(consumer_from_wire).collect(),
    })
}

fn consumer_to_wire(consumer: ConsumerReport) -> wire::ConsumerReport {
    wire::ConsumerReport {
        id: consumer.id.0,
        client_id: consumer.client_id,
        since_us: consumer.since.as_micros(),
        inflight: consumer.inflight,
        free: consumer.free,
        delivered: consumer.delivered,
        acknowledged: consumer.acknowledged,
        rejected: consumer.rejected,
        latency: consumer.latency.counts().map(u32::from).collect(),
    }
}

fn consumer_from_wire(consumer: wire::ConsumerReport) -> ConsumerReport {
    let counts = consumer.latency.into_iter().map(|count| u16::try_from(count).unwrap_or(u16::MAX));
    ConsumerReport {
        id: ConsumerId(consumer.id),
        client_id: consumer.client_id,
        since: Timestamp::from_micros(consumer.since_us),
        inflight: consumer.inflight,
        free: consumer.free,
        delivered: consumer.delivered,
        acknowledged: consumer.acknowledged,
        rejected: consumer.rejected,
        latency: AckLatency::of_counts(counts),
    }
}
