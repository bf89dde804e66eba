//! The task of one client: it drives the session with what the socket, the broker and the clock have to say,
//! and turns what the session asks for into calls on the broker.
//!
//! Bounds: the read buffer holds one packet; the write buffer little more than [`wire::WRITE_HIGH_WATER`];
//! publishes that wait to become durable are bounded by their bytes, by the session's Receive Maximum, and those
//! of QoS 0 by [`PENDING_MAX`]; the mailbox, queue windows and stream channels have bounds of their own.

mod attach;
mod auth;
mod close;
mod creation;
mod deliver;
mod events;
mod eviction;
mod external;
mod fetch;
mod handshake;
mod inbox;
mod inlet;
mod intake;
mod output;
mod pace;
mod pending;
mod publish;
mod queue_slot;
mod scanned;
mod still;
mod stream;
mod subscribe;
mod wait;
mod waiting;
mod wire;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytestring::ByteString;
use smallvec::SmallVec;
use tokio_util::sync::CancellationToken;
use weir_codec::{Decoder, Packet, PacketId, PacketType, ProtocolVersion, ReasonCode};
use weir_core::groups::GroupEvent;
use weir_core::key::Publisher;
use weir_core::keyspace::PublishId;
use weir_core::keyspace::inbox::InboxId;
use weir_core::queue::{Handout, QueueDelivery, Window};
use weir_core::sessions::SessionRef;
use weir_env::clock::Instant;
use weir_env::seed::{HashMap, HashSet};
use weir_session::{CloseCause, Closed, PublishToken, Session};

use crate::broker::{Broker, Outcome};
use crate::clients::Place;
use crate::cluster::interest::Held;
use crate::cluster::takeover::AllHeard;
use crate::listen::{Entry, Peer};
use crate::mailbox::{Eviction, Mailbox};
use crate::metrics::{self, Metrics};
use crate::pod::drain::Farewell;
use crate::router::{Group, Subscriber};
use crate::transport::Stream;
use external::External;
use fetch::Fetches;
use inbox::Inbox;
use inlet::Inlet;
use pace::Pace;
use pending::Pending;
use queue_slot::QueueSlot;
use stream::{Lanes, PlaceId, Timers};
use wait::{Catalog, Socket, Turn, Wants};
use wire::Wire;

pub(crate) use stream::request::parse_start;

/// Publishes that may wait to become durable before the client is not read: bounds QoS 0, which no Receive
/// Maximum does.
const PENDING_MAX: usize = 4096;
/// Packets decoded before their events are handled.
const PACKETS_PER_TURN: usize = 128;
/// Time the last packets may take to be written.
const FAREWELL_TIMEOUT: Duration = Duration::from_secs(2);
/// Time that publishes under way may take to be answered when the broker shuts down.
const DRAIN_MAX: Duration = Duration::from_secs(2);
/// Times that deliveries are made and written before the client is read again.
const TURNS_PER_PUMP: usize = 16;
/// Wait before publishes that are held up by what is under way are looked at again.
const HELD_UP_WAIT: Duration = Duration::from_millis(20);
/// Quiet time after which empty buffers are let go.
const IDLE_AFTER: Duration = Duration::from_secs(5);

/// What a delivery is, for when it is acknowledged.
#[derive(Clone, Debug)]
enum Tag {
    /// A live message; its span ends with it.
    Live {
        /// The shared subscriptions that chose this client for it.
        shared: SmallVec<[Arc<Group>; 1]>,
        _span: tracing::Span,
    },
    Inbox(InboxId),
    /// Its span ends with the acknowledgement.
    Queue {
        handout: Handout,
        _span: tracing::Span,
    },
    Stream {
        place: PlaceId,
        /// Shard and offset; without them it says that there is no more.
        at: Option<(u8, u64)>,
    },
}

/// Who waits for the answer to a publish: nobody at QoS 0.
type Asker = Option<(PublishToken, PacketId)>;

/// Who waits for the answer to a publish, and what it is.
type Answer = (Asker, Outcome);

/// A QoS 2 publish of a persistent session whose id is stored.
#[derive(Clone, Debug)]
struct Incoming {
    publish: PublishId,
    /// It may have been appended already.
    tried: bool,
    /// From an earlier connection, and neither answered there as far as we know nor published again here.
    left: bool,
    /// From before it was stored; none for those of earlier connections.
    all_heard: Option<AllHeard>,
}

/// A queue delivery in the output.
#[derive(Clone, Copy, Debug)]
struct Unwritten {
    /// Where in the output it ends.
    end: u64,
    handout: Handout,
    /// The client acknowledges it; otherwise it counts as acknowledged once it is written.
    acknowledged: bool,
}

/// The task's state.
struct Connection {
    broker: Arc<Broker>,
    wire: Wire,
    decoder: Decoder,
    session: Session<Tag>,
    version: ProtocolVersion,
    /// See [`weir_codec::Connect::bridge`].
    bridge: bool,
    stored: SessionRef,
    subscriber: Arc<Subscriber>,
    /// `None`: everybody may everything, for ever.
    auth: Option<Box<auth::ClientAuth>>,
    publisher: Arc<Publisher>,
    mailbox: Arc<Mailbox>,
    place: Place,
    /// Plain and shared subscriptions: only their texts, which are small and say everything.
    subscriptions: HashSet<ByteString>,
    /// With other pods: what they are told of each of them.
    interests: Option<Box<HashMap<ByteString, Held>>>,
    externals: Vec<External>,
    catalog: Option<Catalog>,
    /// Publishes that are becoming durable, in the order in which they came: so are they answered and delivered.
    pending: Pending,
    /// Some of them go to live subscribers only when they are durable, whatever their quality of service: with other pods
    /// what is retained, and what comes behind it.
    is_late: bool,
    /// Publish ids of QoS 2 publishes under way, stored with the session.
    incoming: HashMap<u16, Incoming>,
    window: Arc<Window>,
    queue: Inlet<QueueDelivery>,
    /// Queue messages taken from the channel for which the session had no room.
    held: VecDeque<QueueDelivery>,
    /// Queue deliveries that the socket has not taken yet, in the order of the output.
    unwritten: VecDeque<Unwritten>,
    /// Keeps the last slot for queues now and then.
    queue_slot: QueueSlot,
    streams: Lanes,
    /// When something is to be done for streams.
    timers: Timers,
    retained: VecDeque<subscribe::RetainedScan>,
    /// Requests under way, which end with the connection.
    fetches: Fetches,
    inbox: Inbox,
    /// Which source of deliveries is asked first.
    turn: u8,
    /// What has been read may hold packets that have not been decoded.
    undecoded: bool,
    /// The client sends no more.
    input_ended: bool,
    /// The broker shuts down, or the client is to go elsewhere: when this connection ends, whatever is under way.
    drain_until: Option<Instant>,
    closed: Option<Closed>,
    /// Watches whether the client takes what is written to it.
    pace: Pace,
    metrics: Metrics,
}

/// What a turn leaves to be done.
struct Todo {
    /// Something has been read.
    undecoded: bool,
    eviction: Option<Eviction>,
    catalog: bool,
    group: Option<(PlaceId, GroupEvent)>,
    timer: bool,
}

/// Serves one client from its first byte to its last.
///
/// A task is as large as its largest state, for as long as it lives. So what is rare is boxed, here and below, and the
/// arguments go into the box of the handshake at once.
pub(crate) fn serve(
    broker: Arc<Broker>,
    stream: Stream,
    peer: Peer,
    mut entry: Entry,
    shutdown: CancellationToken,
) -> impl Future<Output = ()> + Send {
    let metrics = broker.metrics.clone();
    let wire = Wire::new(stream, peer, metrics.clone());
    let handshake = Box::pin(async move {
        match handshake::accept(broker, wire, &mut entry.slot, &shutdown).await {
            Ok(connection) => Ok((Box::new(connection), entry)),
            Err(ended) => Err((ended, entry)),
        }
    });
    async move {
        let (connection, entry) = match handshake.await {
            Ok(accepted) => accepted,
            Err((ended, entry)) => return entry.ended(&metrics, ended),
        };
        let persistent = i64::from(connection.stored.persistent);
        metrics.connections.inc();
        metrics.sessions_connected.inc_by(persistent);
        let ended = Box::pin(connection.run()).await;
        metrics.sessions_connected.dec_by(persistent);
        metrics.connections.dec();
        entry.ended(&metrics, ended);
    }
}

impl Connection {
    async fn run(mut self: Box<Self>) -> metrics::Closed {
        let mut idle_at = Some(self.broker.clock.now() + IDLE_AFTER);
        let sleep = tokio::time::sleep(IDLE_AFTER);
        tokio::pin!(sleep);
        // What it publishes waits, which has been counted.
        let mut waits = false;
        loop {
            if self.is_still() {
                Box::pin(self.keep_still()).await;
            }
            let more = self.pump().await;
            if let Some(closed) = self.closed {
                return Box::pin(self.finish(closed)).await;
            }
            if self.broker.clients.is_draining() {
                self.begin_drain();
            }
            if self.drained() {
                let Farewell { reason, server_reference } = self.broker.farewell();
                self.session.close_for(reason, server_reference);
                continue;
            }
            // What has been read waits while too much is under way.
            let held_up = (self.undecoded && self.wants_read()).then(|| self.held_up_by(0)).flatten();
            if let Some(by) = held_up
                && !std::mem::replace(&mut waits, true)
            {
                self.metrics.publish_waits.inc(by);
            }
            let held_up = held_up.is_some();
            if self.undecoded && self.wants_read() && !held_up {
                waits = false;
                self.handle_input().await;
                continue;
            }
            if self.input_ended && !self.undecoded {
                self.session.handle_lost();
                continue;
            }
            let wants = self.wants(held_up, idle_at);
            // There is more to deliver, or much was read: the others have their turn. A fast publisher would fill the
            // mailbox of a reader that is as fast, and is not asked.
            let more = self.wire.has_read_its_share() || more;
            let todo = {
                let turn = if more {
                    self.look(wants, sleep.as_mut()).await
                } else {
                    self.wait(wants, sleep.as_mut()).await
                };
                if turn.is_busy() || more {
                    idle_at = Some(self.broker.clock.now() + IDLE_AFTER);
                }
                self.handle_turn(turn, wants)
            };
            if todo.undecoded {
                self.handle_input().await;
            }
            if let Some(eviction) = todo.eviction {
                Box::pin(self.handle_eviction(eviction)).await;
            }
            if todo.catalog {
                Box::pin(self.refresh_externals()).await;
            }
            if let Some((place, event)) = todo.group {
                Box::pin(self.handle_group_event(place, event)).await;
            }
            if todo.timer && Box::pin(self.handle_time(wants, idle_at)).await {
                idle_at = None;
            }
        }
    }

    /// What there is to wait for.
    fn wants(&self, held_up: bool, idle_at: Option<Instant>) -> Wants {
        let timeout = self.session.poll_timeout().map(Instant::from);
        let again_at = held_up.then(|| self.broker.clock.now() + HELD_UP_WAIT);
        let (slow_at, kept_until) = (self.pace.poll_timeout(), self.queue_slot.poll_timeout());
        let wakes =
            [timeout, idle_at, self.drain_until, slow_at, kept_until, again_at, self.timers.poll_timeout()];
        Wants {
            read: self.wants_read() && !self.undecoded && !self.input_ended,
            queue: self.held.is_empty() && self.has_room(),
            stream: self.has_room(),
            until: wakes.into_iter().flatten().min(),
        }
    }

    /// Takes note of what has happened, and of what is to be done about it that may have to wait.
    fn handle_turn(&mut self, turn: Turn, wants: Wants) -> Todo {
        for (asker, outcome) in turn.answers {
            self.answer(asker, outcome);
        }
        self.held.extend(turn.delivery);
        if let Some(result) = turn.written {
            self.handle_written(result);
        }
        if let Some(event) = turn.auth {
            self.handle_auth_event(event);
        }
        let eviction = if turn.mail { self.handle_mail() } else { None };
        let undecoded = match turn.socket {
            Some(Socket::Readable) => wants.read && self.fill(),
            Some(Socket::Lost) => {
                self.session.handle_lost();
                false
            }
            // Writing happens in `pump`, which follows.
            Some(Socket::Writable) | None => false,
        };
        Todo { undecoded, eviction, catalog: turn.catalog, group: turn.group, timer: turn.timer }
    }

    /// The time may have come for something. True if the connection is idle from here on.
    async fn handle_time(&mut self, wants: Wants, idle_at: Option<Instant>) -> bool {
        let now = self.broker.clock.now();
        let is_due = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        self.queue_slot.handle_timeout(now);
        if is_due(self.timers.poll_timeout()) {
            self.handle_stream_timers(now).await;
        }
        if is_due(self.pace.poll_timeout()) {
            self.shed("limits.slowClientTimeout");
        } else if is_due(self.session.poll_timeout().map(Instant::from)) {
            self.handle_timeout(wants.read).await;
        } else if is_due(idle_at) {
            self.wire.compact();
            self.session.compact();
            self.pending.compact();
            self.mailbox.compact();
            return true;
        }
        false
    }

    /// Takes note of what the mailbox says; what it holds is delivered by `pump`, which follows. If the connection is
    /// to end, why.
    fn handle_mail(&mut self) -> Option<Eviction> {
        if self.mailbox.take_inbox_changed() && self.stored.persistent {
            self.inbox.state().more = true;
        }
        self.mailbox.eviction()
    }

    /// Ends the connection of a client that reads too slowly, by this limit.
    fn shed(&mut self, limit: &'static str) {
        if !self.session.is_closed() {
            tracing::info!(client = %self.stored.client_id, limit, "client reads too slowly");
            self.pace.shed();
            let text = format!("reads too slowly: {limit}");
            self.session.close(ReasonCode::QuotaExceeded, Some(text.into()));
        }
    }

    /// The keep-alive has run out, unless the client's packets wait for us.
    async fn handle_timeout(&mut self, read: bool) {
        if read {
            if self.fill() {
                self.handle_input().await;
            }
        } else {
            self.session.handle_read_paused(self.broker.clock.now().into_std());
        }
        self.session.handle_timeout(self.broker.clock.now().into_std());
    }

    /// Reads no more: the connection ends once the client's publishes have their answers.
    fn begin_drain(&mut self) {
        let now = self.broker.clock.now();
        self.drain_until.get_or_insert(now + DRAIN_MAX);
    }

    /// Whether the client is to go and its publishes have their answers, or have had their time.
    fn drained(&self) -> bool {
        let settled = |until| self.pending.is_empty() || until <= self.broker.clock.now();
        self.drain_until.is_some_and(settled) && !self.session.is_closed()
    }

    /// Whether the client may send more.
    fn wants_read(&self) -> bool {
        self.session.wants_read()
            && !self.session.is_closed()
            && self.pending.len() < PENDING_MAX
            && self.drain_until.is_none()
            && self.wire.backlog() < 4 * wire::WRITE_HIGH_WATER
    }

    /// Of whom too much is under way, if the next packet adds to it; `decoded` bytes have been decoded since anything
    /// was counted. All other packets are read: what is acknowledged makes room.
    fn held_up_by(&self, decoded: usize) -> Option<metrics::PublishWait> {
        let is_publish = |byte: &u8| byte >> 4 == PacketType::Publish as u8;
        let next = self.wire.input.first().is_some_and(is_publish);
        next.then(|| self.broker.under_way.must_wait(self.pending.bytes(), decoded as u64)).flatten()
    }

    /// Whether more deliveries may be prepared.
    fn has_room(&self) -> bool {
        self.wire.backlog() < wire::WRITE_HIGH_WATER && !self.session.is_closed()
    }

    /// Reads what there is. True if it is to be decoded at once.
    fn fill(&mut self) -> bool {
        let filled = matches!(self.wire.fill(self.decoder.frame_bytes_needed()), Ok(true));
        if !filled {
            // What has been read comes first.
            self.input_ended = true;
            self.undecoded = true;
        }
        filled
    }

    /// Decodes some of what has been read, and handles what it asks for.
    async fn handle_input(&mut self) {
        let now = self.broker.clock.now().into_std();
        self.undecoded = true;
        let read = self.wire.input.len();
        for _ in 0..PACKETS_PER_TURN {
            if !self.wants_read() || self.held_up_by(read - self.wire.input.len()).is_some() {
                break;
            }
            match self.decoder.decode(&mut self.wire.input) {
                Ok(Some(packet)) => {
                    self.metrics.packets_received.inc(packet.packet_type());
                    if let Packet::PubRel(ack) = &packet
                        && self.is_left(ack.packet_id)
                        && !Box::pin(self.release_left(ack.packet_id)).await
                    {
                        break;
                    }
                    if let Err(error) = self.session.handle_packet(packet, now) {
                        tracing::info!(client = %self.stored.client_id, %error, "client broke the protocol");
                        self.metrics.protocol_errors.inc(metrics::ProtocolError::of(error.reason));
                    }
                }
                Ok(None) => {
                    self.undecoded = false;
                    break;
                }
                Err(error) => {
                    tracing::info!(client = %self.stored.client_id, %error, "client sent no valid packet");
                    self.metrics.protocol_errors.inc(metrics::ProtocolError::of(error.reason()));
                    self.session.handle_malformed(error.reason(), error.to_string());
                }
            }
        }
        self.handle_events().await;
    }

    /// Moves deliveries into the session, packets out of it, and bytes into the socket, as far as all go. True if
    /// there is more that could go at once: a fast reader must not keep this task from everything else.
    async fn pump(&mut self) -> bool {
        for _ in 0..TURNS_PER_PUMP {
            self.handle_events().await;
            self.transmit();
            let had_room = self.has_room();
            // Others may hand it out by now, although this pod still has things to say if it ends.
            let delivered = !self.broker.is_quiet() && self.deliver().await;
            self.transmit();
            // What was waited for may have taken long.
            if self.is_still() {
                return false;
            }
            if self.wire.flush().is_err() {
                self.session.handle_lost();
            }
            if !self.unwritten.is_empty() {
                Box::pin(self.settle_written()).await;
            }
            let (end, written) = self.wire.positions();
            self.pace.observe(end, written, self.broker.limits.slow_client_timeout, self.broker.clock);
            self.start_write();
            if self.session.is_closed() {
                self.handle_events().await;
                return false;
            }
            // A socket that took nothing, or sources that had nothing: wait for either.
            if !delivered && (had_room || self.wire.backlog() > 0) {
                return false;
            }
        }
        true
    }

    fn transmit(&mut self) {
        while let Some(transmit) = self.session.poll_transmit() {
            if let Err(error) = self.wire.put(&transmit, self.version) {
                tracing::error!(client = %self.stored.client_id, %error, "encode packet");
                self.session.handle_lost();
                return;
            }
        }
    }
}

/// A packet id as the store has it.
fn packet_id(id: u16) -> Option<PacketId> {
    PacketId::new(id)
}

fn close_label(cause: CloseCause) -> metrics::Closed {
    match cause {
        CloseCause::Client(_) => metrics::Closed::Disconnect,
        CloseCause::Protocol(_) => metrics::Closed::ProtocolError,
        CloseCause::KeepAlive => metrics::Closed::KeepAliveTimeout,
        CloseCause::Server(ReasonCode::SessionTakenOver) => metrics::Closed::TakenOver,
        CloseCause::Server(ReasonCode::ServerShuttingDown) => metrics::Closed::Shutdown,
        CloseCause::Server(ReasonCode::UseAnotherServer | ReasonCode::ServerMoved) => metrics::Closed::Moved,
        CloseCause::Server(ReasonCode::NotAuthorized) => metrics::Closed::NotAuthorized,
        CloseCause::Server(_) => metrics::Closed::Internal,
        CloseCause::Lost => metrics::Closed::ConnectionLost,
    }
}
