//! The end of a connection: everything it holds is given back, and its session is put away.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytestring::ByteString;
use smallvec::SmallVec;
use weir_codec::{QoS, ReasonCode};
use weir_core::keyspace::session::{OutgoingEntry, OutgoingPhase};
use weir_core::keyspace::session_position::SessionPosition;
use weir_core::queue::Lost;
use weir_core::sessions::{CloseOptions, SessionOp, SessionRef, WillAction};
use weir_session::{CloseCause, Closed, Delivery, Outgoing};

use super::external::External;
use super::handshake::write_all;
use super::pending::Pending;
use super::subscribe::parsed;
use super::wire::Wire;
use super::{Connection, FAREWELL_TIMEOUT, Tag, close_label, packet_id};
use crate::broker::Broker;
use crate::clients::Place;
use crate::mailbox::Letter;
use crate::metrics;

/// How long the end of a connection is tried to be stored.
const CLOSE_PATIENCE: Duration = Duration::from_mins(10);
/// First wait before it is tried again; it doubles.
const CLOSE_RETRY_WAIT: Duration = Duration::from_millis(100);
/// Longest wait before it is tried again.
const CLOSE_RETRY_WAIT_MAX: Duration = Duration::from_secs(5);
/// How long the end of a connection waits for what it has published to be durable and delivered.
pub(super) const LATE_TIME_MAX: Duration = Duration::from_millis(400);
/// How long other members of its groups are given to make room for what a client leaves.
pub(super) const HAND_ON_PATIENCE: Duration = Duration::from_secs(1);
/// How long a client that is sent away may take to end its connection too.
const LINGER_MAX: Duration = Duration::from_secs(1);

/// Positions in streams stored with the end of a connection, each of at most some kilobytes: of the rest it is tried
/// once.
const POSITIONS_AT_CLOSE: usize = 200;

/// QoS 2 publishes of which it is stored with the end of a connection that they were answered. A repeat of the rest is
/// delivered again to live subscribers, as after a crash.
const ANSWERED_AT_CLOSE: usize = 1_000;

/// What is left of a connection while its end is stored.
struct Leaving {
    broker: Arc<Broker>,
    stored: SessionRef,
    options: CloseOptions,
    place: Place,
    wire: Wire,
    /// The client, which may be sending still, is to read why it ends, and the last answers.
    lingers: bool,
    /// How long it is tried.
    patience: Duration,
}

impl Connection {
    pub(super) async fn finish(mut self: Box<Self>, closed: Closed) -> metrics::Closed {
        self.transmit();
        // Putting the session away may take long: what was to be sent and answered does not wait for that.
        let pending = std::mem::take(&mut self.pending);
        let late = self.is_late.then_some(pending);
        self.retained.clear();
        if let Some(state) = self.inbox.known() {
            state.items = VecDeque::new();
        }
        if closed.cause != CloseCause::Lost {
            // The client may be gone, or not read: then the last packets are lost with the connection.
            let _ = tokio::time::timeout(FAREWELL_TIMEOUT, write_all(&mut self.wire)).await;
            self.settle_written().await;
            self.wire.close();
        }
        if let Some(late) = late {
            // A client that has said farewell may have no other answer to wait for; and who has lost the session retains
            // nothing any more.
            let _ = tokio::time::timeout(LATE_TIME_MAX, deliver_late(Arc::clone(&self.broker), late)).await;
        }
        let to_store = self.inbox.known().map(|state| (state.writing.take(), std::mem::take(&mut state.ops)));
        let (writing, mut ops) = to_store.unwrap_or_default();
        if let Some(writing) = writing
            && let Err(error) = writing.await
        {
            tracing::debug!(%error, "acknowledgements of the last moment not stored");
            self.touch_positions();
        }
        ops.extend(self.moved_positions());
        let positions = split_positions(&mut ops);
        if !ops.is_empty()
            && let Err(error) = self.broker.sessions.update(&self.stored, &ops).await
        {
            tracing::debug!(%error, "acknowledgements of the last moment not stored");
        }
        self.release_queues(&closed).await;
        self.subscriber.disconnect(&self.mailbox);
        self.interests = None;
        let label = if self.pace.is_shed() { metrics::Closed::TooSlow } else { close_label(closed.cause) };
        let leaving = self.leave(closed, positions).await;
        put_away(leaving).await;
        label
    }

    async fn release_queues(&mut self, closed: &Closed) {
        let lost = match closed.cause {
            CloseCause::Client(_) => Lost::Left,
            cause if is_sent_away(cause) => Lost::Left,
            CloseCause::Protocol(_) | CloseCause::KeepAlive | CloseCause::Server(_) | CloseCause::Lost => {
                Lost::Vanished
            }
        };
        let ends = !self.stored.persistent || closed.session_expiry == 0;
        for External { mut source, .. } in std::mem::take(&mut self.externals) {
            if ends {
                source.leave_for_good();
            }
            self.release(source, lost).await;
        }
    }

    /// Gives back what the client had of live messages. What is left is for [`put_away`], which may take long: nothing
    /// else of the connection outlives this.
    async fn leave(
        self: Box<Self>,
        closed: Closed,
        positions: Vec<(ByteString, SessionPosition)>,
    ) -> Leaving {
        let Self {
            broker,
            session,
            stored,
            subscriber,
            subscriptions,
            incoming,
            mailbox,
            place,
            wire,
            mut auth,
            ..
        } = *self;
        // A broker that stops has no time.
        let stops = broker.clients.is_draining();
        let left = session.into_state().outgoing;
        let outgoing = left.iter().filter_map(outgoing_entry).collect();
        // A will must not outlive the right to it.
        let fires = closed.publish_will && auth.as_mut().is_none_or(|auth| auth.still_may_leave_will());
        if closed.publish_will && !fires {
            tracing::info!(client = %stored.client_id, "the will is not allowed any more and not published");
            broker.metrics.forbidden.inc(metrics::Forbidden::Will);
        }
        let will = if fires { WillAction::Fire } else { WillAction::Cancel };
        let lingers = is_sent_away(closed.cause);
        let answered = incoming.iter().filter_map(|(id, noted)| {
            let is_answered = subscriber.has_received(packet_id(*id)?, noted.publish);
            is_answered.then_some((*id, noted.publish))
        });
        let answered = answered.take(ANSWERED_AT_CLOSE).collect();
        let expiry_seconds = closed.session_expiry;
        let options = CloseOptions { expiry_seconds, will, outgoing, positions, answered };
        if !stored.persistent {
            for (text, from) in subscriptions.iter().filter_map(parsed) {
                broker.router.unsubscribe(subscriber.id, text, &from);
            }
            // The session ends here, and with it this client's place in its groups.
            let unfinished = left.into_iter().filter_map(unfinished);
            let waiting = mailbox.close().into_iter().filter(|letter| !letter.shared.is_empty());
            let patience = if stops { Duration::ZERO } else { HAND_ON_PATIENCE };
            broker.hand_on(unfinished.chain(waiting), patience).await;
        }
        let patience = if stops { Duration::ZERO } else { CLOSE_PATIENCE };
        Leaving { broker, stored, options, place, wire, lingers, patience }
    }
}

/// Whether the client has done nothing wrong and is only to go: to another pod, or because this one stops. No others are let in
/// then, so that such connections may stay a little longer.
fn is_sent_away(cause: CloseCause) -> bool {
    matches!(
        cause,
        CloseCause::Server(
            ReasonCode::ServerShuttingDown | ReasonCode::UseAnotherServer | ReasonCode::ServerMoved
        )
    )
}

/// Delivers what waits to be durable, in its order. What is of QoS 2 comes again.
async fn deliver_late(broker: Arc<Broker>, mut pending: Pending) {
    while !pending.is_empty() {
        let next = std::future::poll_fn(|context| match pending.poll_next(context) {
            Some(answer) => Poll::Ready(answer),
            None => Poll::Pending,
        });
        let (_, outcome) = next.await;
        if let Some(mut live) = outcome.live.filter(|live| !live.is_exactly_once()) {
            broker.deliver_all(&mut live).await;
        }
    }
}

/// Takes the positions in streams, the newest last, out of what is to be stored: they are stored with the end of the
/// connection, which is tried until it is. Those that would make that too large stay.
fn split_positions(ops: &mut Vec<SessionOp>) -> Vec<(ByteString, SessionPosition)> {
    let is_position = |op: &mut SessionOp| matches!(op, SessionOp::StorePosition(_));
    let mut positions: Vec<_> = ops.extract_if(.., is_position).collect();
    let rest = positions.len().saturating_sub(POSITIONS_AT_CLOSE);
    ops.extend(positions.drain(..rest));
    let position = |op| if let SessionOp::StorePosition(of) = op { Some(*of) } else { None };
    positions.into_iter().filter_map(position).collect()
}

/// Stores the end of a connection, and publishes its will if that is due. A store in trouble is asked again:
/// nobody else would do it before the client comes back or the broker starts anew.
async fn put_away(leaving: Leaving) {
    let Leaving { broker, stored, options, place, wire, lingers, patience } = leaving;
    let give_up_at = broker.clock.now() + patience;
    let mut place = Some(place);
    let mut wire = Some(wire);
    let mut wait = CLOSE_RETRY_WAIT;
    loop {
        match broker.sessions.close(&stored, &options).await {
            Ok(result) => {
                if let Some(ended) = &result.ended {
                    broker.forget(ended);
                }
                let mut wire = wire.take().filter(|_| lingers);
                if let Some(wire) = &mut wire {
                    wire.shutdown().await;
                }
                if let Some(will) = result.will {
                    broker.publish_will(will).await;
                }
                drop(place.take());
                if let Some(wire) = wire {
                    let _ = tokio::time::timeout(LINGER_MAX, wire.linger()).await;
                }
                return;
            }
            Err(weir_core::Error::Fenced) => {
                tracing::debug!(client = %stored.client_id, "session continues elsewhere");
                return;
            }
            Err(error) => {
                tracing::warn!(client = %stored.client_id, %error, "end of session not stored");
            }
        }
        if broker.clock.now() >= give_up_at {
            return;
        }
        // The client need not wait for the store to see its connection closed [MQTT 3.1.1, 4.8.0-2], nor its next
        // connection for this one, which it fences off.
        drop(wire.take());
        drop(place.take());
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(CLOSE_RETRY_WAIT_MAX);
    }
}

fn outgoing_entry(outgoing: &Outgoing<Tag>) -> Option<OutgoingEntry> {
    let (packet_id, tag, phase) = match outgoing {
        Outgoing::Published { packet_id, delivery } => (packet_id, &delivery.tag, OutgoingPhase::Published),
        Outgoing::Released { packet_id, tag } => (packet_id, tag, OutgoingPhase::Released),
    };
    match tag {
        Tag::Inbox(id) => Some(OutgoingEntry { packet_id: packet_id.get(), phase, inbox_id: *id }),
        Tag::Live { .. } | Tag::Queue { .. } | Tag::Stream { .. } => None,
    }
}

/// A shared message of QoS 1 that was not acknowledged. One of QoS 2 whose delivery has begun goes to nobody else
/// [MQTT-4.8.2-5].
fn unfinished(outgoing: Outgoing<Tag>) -> Option<Letter> {
    let Outgoing::Published { delivery, .. } = outgoing else { return None };
    let Delivery {
        message, qos: QoS::AtLeastOnce, retain, expires_at, tag: Tag::Live { shared, _span }, ..
    } = delivery
    else {
        return None;
    };
    let qos = QoS::AtLeastOnce;
    let subscription_identifiers = SmallVec::new();
    let letter =
        Letter { message, qos, retain, subscription_identifiers, expires_at, shared, hops: 0, span: _span };
    Some(letter).filter(|letter| !letter.shared.is_empty())
}
