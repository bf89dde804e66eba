//! From the first byte to the CONNACK: who is there, may it come in, and what did it leave behind.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use bytestring::ByteString;
use tokio_util::sync::CancellationToken;
use weir_codec::{
    ConnAck, Connect, Decoder, DecoderConfig, Packet, ProtocolVersion, QoS, ReasonCode, Role, encoded_len,
};
use weir_core::key::Publisher;
use weir_core::keyspace::inbox::InboxId;
use weir_core::keyspace::session::OutgoingPhase;
use weir_core::queue::Window;
use weir_core::sessions::{OpenOptions, Opened, SessionOp};
use weir_core::wills::StoredWill;
use weir_env::seed::{HashMap, HashSet};
use weir_session::{Delivery, Outgoing, Restored, Session, Told, Transmit};

use super::auth::{self, Admitted, ClientAuth, NotAdmitted};
use super::external::QUEUE_CHANNEL;
use super::inbox::{Inbox, InboxState};
use super::inlet::Inlet;
use super::pace::Pace;
use super::pending::Pending;
use super::queue_slot::QueueSlot;
use super::stream::{Lanes, Timers};
use super::wire::Wire;
use super::{Connection, FAREWELL_TIMEOUT, Incoming, Tag};
use crate::auth::ClientAccess;
use crate::broker::{Broker, reason_of};
use crate::convert;
use crate::mailbox::{Eviction, Mailbox};
use crate::metrics::{self, Closed, Dropped};
use crate::slots::Slot;

/// Longest client identifier, in bytes: it is part of keys.
const CLIENT_ID_BYTES_MAX: usize = 256;
/// Largest CONNECT, and AUTH until it is answered, in bytes: whoever sends one is nobody yet, and each of
/// `limits.maxConnections` sockets may hold this much for `limits.connectTimeout`. User name, password and the payload
/// of a will, of at most 64 KiB each, fit with room for the rest.
const CONNECT_BYTES_MAX: u32 = 256 * 1024;
/// Rows of the inbox looked at in one go for what was in flight.
const RESTORE_PAGE: usize = 256;
/// Bytes of them.
const RESTORE_BYTES: usize = 4 * 1024 * 1024;

/// Reads CONNECT, answers it, and builds the connection.
pub(super) async fn accept(
    broker: Arc<Broker>,
    mut wire: Wire,
    slot: &mut Slot,
    shutdown: &CancellationToken,
) -> Result<Connection, Closed> {
    let max_packet_size = broker.session_limits.maximum_packet_size.get();
    let connect_size = max_packet_size.min(CONNECT_BYTES_MAX);
    let mut decoder = Decoder::new(DecoderConfig { max_packet_size: connect_size, role: Role::Server });
    let timeout = broker.limits.connect_timeout;
    let connect = tokio::select! {
        connect = tokio::time::timeout(timeout, read_connect(&broker, &mut wire, &mut decoder)) => {
            connect.map_err(|_| Closed::ConnectTimeout)??
        }
        () = shutdown.cancelled() => return Err(Closed::Shutdown),
    };
    let version = connect.version;
    wire.packet_size_max = connect.maximum_packet_size.map_or(u32::MAX, std::num::NonZero::get);
    if let Err((reason, text)) = check(&connect) {
        let peer = wire.peer();
        tracing::info!(client = %connect.client_id, %peer, %reason, text, "connection refused");
        refuse(&mut wire, version, reason, Some(text.into())).await;
        return Err(Closed::Refused);
    }
    let assigned = connect.client_id.is_empty().then(|| assign_id(&broker));
    // A copy: the received buffer holds the password too.
    let client_id: ByteString = assigned.clone().unwrap_or_else(|| connect.client_id.to_string().into());
    let admitted = tokio::select! {
        admitted = auth::admit(&broker, &mut wire, &mut decoder, &connect, &client_id) => admitted,
        () = shutdown.cancelled() => return Err(Closed::Shutdown),
    };
    let Admitted { auth, user, data } = match admitted {
        Ok(admitted) => admitted,
        Err(NotAdmitted::Refused(refused)) => {
            refuse(&mut wire, version, refused.reason, Some(refused.text.into())).await;
            return Err(Closed::Refused);
        }
        Err(NotAdmitted::Ended(ended)) => return Err(ended),
    };
    if broker.drainage.is_on() {
        return Err(refuse_for_drain(&broker, &mut wire, version).await);
    }
    // Until here it was nobody, and its AUTH packets were as small as its CONNECT.
    decoder.set_max_packet_size(max_packet_size);
    let mailbox = Arc::new(Mailbox::new(
        usize::try_from(broker.limits.outbox_bytes_per_client.0).unwrap_or(usize::MAX),
    ));
    // Whoever takes over its own session takes over its old connection's slot as well.
    let mut settled = slot.try_settle();
    if !settled && !broker.clients.is_connected(&client_id) {
        return Err(refuse_for_room(&mut wire, version, &client_id).await);
    }
    let Some(mut place) = broker.clients.admit(&client_id, &mailbox).await else {
        if mailbox.eviction() == Some(Eviction::Elsewhere) {
            return Err(refuse_for_drain(&broker, &mut wire, version).await);
        }
        refuse(&mut wire, version, ReasonCode::SessionTakenOver, None).await;
        return Err(Closed::TakenOver);
    };
    settled = settled || slot.settle().await;
    if !settled {
        return Err(refuse_for_room(&mut wire, version, &client_id).await);
    }
    if broker.is_quiet() {
        let text = "this broker has lost touch with the store; connect to another one";
        tracing::info!(client = %client_id, text, "connection refused");
        refuse(&mut wire, version, ReasonCode::ServerUnavailable, Some(text.into())).await;
        return Err(Closed::Refused);
    }
    let options = OpenOptions {
        clean_start: connect.clean_start,
        expiry_seconds: connect.session_expiry().min(broker.session_limits.session_expiry_maximum),
        will: connect.will.as_ref().map(|will| stored_will(will, &broker)),
    };
    if options.expiry_seconds > 0 && !has_room_for(&broker, &client_id) {
        let text = "there are as many sessions as limits.maxSessions allows";
        tracing::info!(client = %client_id, text, "connection refused");
        refuse(&mut wire, version, ReasonCode::QuotaExceeded, Some(text.into())).await;
        return Err(Closed::Refused);
    }
    let opened = match broker.open_session(&client_id, &options, &mailbox).await {
        Ok((opened, hold)) => {
            place.keep(hold);
            opened
        }
        Err(error) => {
            tracing::warn!(client = %client_id, %error, "session could not be opened");
            let text = "the session could not be opened; connect again".into();
            refuse(&mut wire, version, reason_of(&error), Some(text)).await;
            return Err(Closed::Internal);
        }
    };
    if let Some(replaced) = &opened.replaced {
        broker.forget(replaced);
    }
    let publisher = Publisher { client_id: client_id.clone(), username: user };
    let parts = Parts { broker, wire, decoder, mailbox, place, publisher, auth, data };
    match parts.build(&connect, assigned, opened).await {
        Ok(connection) => Ok(connection),
        Err((mut wire, error)) => {
            tracing::warn!(client = %client_id, %error, "session could not be restored");
            refuse(&mut wire, version, reason_of(&error), None).await;
            Err(Closed::Internal)
        }
    }
}

async fn refuse_for_room(wire: &mut Wire, version: ProtocolVersion, client_id: &ByteString) -> Closed {
    let text = "there are as many connections as limits.maxConnections allows";
    tracing::info!(client = %client_id, text, "connection refused");
    refuse(wire, version, ReasonCode::QuotaExceeded, Some(text.into())).await;
    Closed::TooManyConnections
}

/// There are other pods, and this one is to have no clients.
async fn refuse_for_drain(broker: &Broker, wire: &mut Wire, version: ProtocolVersion) -> Closed {
    let server_reference = broker.farewell().server_reference;
    let code = ReasonCode::UseAnotherServer;
    refuse_with(wire, version, ConnAck { code, server_reference, ..ConnAck::default() }).await;
    Closed::Moved
}

async fn read_connect(broker: &Broker, wire: &mut Wire, decoder: &mut Decoder) -> Result<Connect, Closed> {
    wire.establish().await?;
    loop {
        match decoder.decode(&mut wire.input) {
            Ok(Some(Packet::Connect(connect))) => {
                broker.metrics.packets_received.inc(weir_codec::PacketType::Connect);
                return Ok(*connect);
            }
            // The decoder lets no other packet come first.
            Ok(Some(_)) => return Err(Closed::ProtocolError),
            Ok(None) => {}
            Err(error) => {
                tracing::info!(peer = %wire.peer(), %error, "no valid CONNECT");
                broker.metrics.protocol_errors.inc(metrics::ProtocolError::of(error.reason()));
                // Only 5.0 answers a CONNECT that breaks the format [MQTT 3.1.1, 3.1.4-1].
                let unsupported = error.reason() == ReasonCode::UnsupportedProtocolVersion;
                if let Some(version) = error.version.filter(|version| version.is_v5() || unsupported) {
                    refuse(wire, version, error.reason(), None).await;
                }
                return Err(Closed::ProtocolError);
            }
        }
        wire.ready(true).await.map_err(|_| Closed::ConnectionLost)?;
        if !wire.fill(decoder.frame_bytes_needed()).map_err(|_| Closed::ConnectionLost)? {
            return Err(Closed::ConnectionLost);
        }
    }
}

fn check(connect: &Connect) -> Result<(), (ReasonCode, &'static str)> {
    if connect.client_id.len() > CLIENT_ID_BYTES_MAX {
        return Err((ReasonCode::ClientIdentifierNotValid, "client identifier is longer than 256 bytes"));
    }
    if connect.client_id.is_empty() && connect.version == ProtocolVersion::V31 {
        return Err((ReasonCode::ClientIdentifierNotValid, "MQTT 3.1 has no empty client identifier"));
    }
    if connect.client_id.is_empty() && !connect.version.is_v5() && !connect.clean_start {
        let text = "an empty client identifier needs clean session [MQTT-3.1.3-8]";
        return Err((ReasonCode::ClientIdentifierNotValid, text));
    }
    if connect.will.as_ref().is_some_and(|will| weir_topic::is_publish_forbidden(&will.message.topic)) {
        return Err((
            ReasonCode::TopicNameInvalid,
            "will topic: topics below $queue, $q, $stream, $s and $SYS are not published to",
        ));
    }
    if connect.will.as_ref().is_some_and(|will| !convert::is_as_it_says(&will.message)) {
        return Err((ReasonCode::PayloadFormatInvalid, "will: the payload is said to be UTF-8 and is not"));
    }
    Ok(())
}

/// Whether a session of `client_id` may outlive its connection: there is one already, or not too many others.
/// CONNECTs handled at the same time do not see each other's sessions.
fn has_room_for(broker: &Broker, client_id: &ByteString) -> bool {
    broker.metrics.sessions.get() < i64::from(broker.limits.max_sessions)
        || broker.persistent.contains(client_id)
}

fn assign_id(broker: &Broker) -> ByteString {
    use std::fmt::Write;
    let mut id = String::from("weir-");
    for byte in broker.seed.next_id() {
        // Writing to a string does not fail.
        let _ = write!(id, "{byte:02x}");
    }
    id.into()
}

fn stored_will(will: &weir_codec::Will, broker: &Broker) -> StoredWill {
    StoredWill {
        message: convert::to_core(&will.message, will.qos, will.retain, None, broker.clock.wall()),
        delay_seconds: will.delay_interval,
        expiry_seconds: will.message_expiry_interval,
    }
}

/// Answers a CONNECT with a refusal and waits until it is written.
async fn refuse(wire: &mut Wire, version: ProtocolVersion, code: ReasonCode, text: Option<ByteString>) {
    // CONNACK has no word for these.
    let code = match code {
        ReasonCode::ServerShuttingDown => ReasonCode::ServerUnavailable,
        ReasonCode::SessionTakenOver => ReasonCode::ServerBusy,
        other => other,
    };
    refuse_with(wire, version, ConnAck { code, reason_string: text, ..ConnAck::default() }).await;
}

async fn refuse_with(wire: &mut Wire, version: ProtocolVersion, connack: ConnAck) {
    let bare = ConnAck { code: connack.code, ..ConnAck::default() };
    let packet = |connack| Some(Packet::ConnAck(Box::new(connack)));
    let fits = |packet: &Packet| encoded_len(packet, version) <= wire.packet_size_max as usize;
    // Without the text if it is that [MQTT-3.2.2-19], and not at all if nothing fits [MQTT-3.1.2-24].
    let packet = packet(connack).filter(fits).or_else(|| packet(bare)).filter(fits);
    let Some(packet) = packet else { return };
    if wire.put(&Transmit::Packet(packet), version).is_ok() {
        // The client may be gone; then nobody misses the answer.
        let _ = tokio::time::timeout(FAREWELL_TIMEOUT, write_all(wire)).await;
        wire.close();
    }
}

/// Writes everything that waits.
pub(super) async fn write_all(wire: &mut Wire) -> std::io::Result<()> {
    wire.flush()?;
    while wire.backlog() > 0 {
        wire.ready(false).await?;
        wire.flush()?;
    }
    Ok(())
}

/// What a connection is built of once its session is open.
struct Parts {
    broker: Arc<Broker>,
    wire: Wire,
    decoder: Decoder,
    mailbox: Arc<Mailbox>,
    place: crate::clients::Place,
    publisher: Publisher,
    auth: Option<Box<ClientAuth>>,
    /// Authentication Data for CONNACK.
    data: Option<Bytes>,
}

impl Parts {
    async fn build(
        self,
        connect: &Connect,
        assigned: Option<ByteString>,
        opened: Opened,
    ) -> Result<Connection, (Wire, weir_core::Error)> {
        let Self { broker, wire, decoder, mailbox, place, publisher, auth, data } = self;
        let client_id = publisher.client_id.clone();
        let (mut restored, restored_inbox) =
            match restore(&broker, auth.as_deref().map(ClientAuth::access), &opened).await {
                Ok(restored) => restored,
                Err(error) => return Err((wire, error)),
            };
        let subscriber = if opened.session.persistent {
            broker.persistent_subscriber(&client_id, opened.session.incarnation)
        } else {
            broker.router.subscriber(client_id, None)
        };
        let mut incoming = HashMap::default();
        for (id, publish) in &opened.incoming {
            let Some(packet_id) = super::packet_id(*id) else { continue };
            if publish.is_answered {
                subscriber.note_received(packet_id, publish.id);
            }
            let is_answered = subscriber.has_received(packet_id, publish.id);
            restored.incoming_qos2.extend(is_answered.then_some(packet_id));
            let noted = Incoming { publish: publish.id, tried: true, left: !is_answered, all_heard: None };
            incoming.insert(*id, noted);
        }
        let now = broker.clock.now().into_std();
        let limits = &broker.session_limits;
        let response_information = broker
            .response_information
            .as_ref()
            .and_then(|information| information.of(&publisher.client_id, publisher.username.as_deref()));
        let session = Session::accept_telling(
            connect,
            assigned,
            Told { authentication_data: data, response_information },
            limits,
            opened.present.then_some(restored),
            now,
        );
        subscriber.connect(Arc::clone(&mailbox));
        let window = connection_window(connect, &broker, session.inflight());
        let inbox = if opened.session.persistent { Inbox::from(restored_inbox) } else { Inbox::default() };
        let mut connection = Connection {
            metrics: broker.metrics.clone(),
            auth,
            session,
            version: connect.version,
            bridge: connect.bridge,
            stored: opened.session,
            subscriber,
            publisher: Arc::new(publisher),
            mailbox,
            place,
            subscriptions: HashSet::default(),
            interests: None,
            externals: Vec::new(),
            catalog: None,
            pending: Pending::default(),
            is_late: false,
            incoming,
            window: Arc::new(window),
            queue: Inlet::new(QUEUE_CHANNEL),
            held: VecDeque::new(),
            unwritten: VecDeque::new(),
            queue_slot: QueueSlot::default(),
            streams: Lanes::new(),
            timers: Timers::default(),
            retained: VecDeque::new(),
            inbox,
            turn: 0,
            undecoded: true,
            input_ended: false,
            drain_until: None,
            fetches: None,
            closed: None,
            pace: Pace::default(),
            broker,
            wire,
            decoder,
        };
        connection.resubscribe(opened.subscriptions, opened.positions).await;
        Ok(connection)
    }
}

/// Room for deliveries of which `inflight` are under way already, more perhaps than the client takes now.
fn connection_window(connect: &Connect, broker: &Broker, inflight: usize) -> Window {
    let maximum = broker.session_limits.inflight_maximum;
    let size = connect.receive_maximum.unwrap_or(maximum).min(maximum);
    let window = Window::new(u32::from(size.get()));
    (0..inflight).for_each(|_| window.take_anyway());
    window
}

/// Deliveries that were in flight when the last connection ended, and what is known of the inbox they come from.
async fn restore(
    broker: &Broker,
    access: Option<&ClientAccess>,
    opened: &Opened,
) -> weir_core::Result<(Restored<Tag>, InboxState)> {
    // Publishes to us that were not answered come again with their stored publish id: only those that were are
    // added by the caller.
    let mut restored = Restored::default();
    let recorded = opened.outgoing.iter().map(|entry| (entry.packet_id, entry.phase)).collect();
    let mut inbox = InboxState { more: true, recorded, ..InboxState::default() };
    let mut missing: HashMap<InboxId, u16> = HashMap::default();
    for entry in &opened.outgoing {
        if entry.phase == OutgoingPhase::Published {
            missing.insert(entry.inbox_id, entry.packet_id);
        }
    }
    let mut found = HashMap::default();
    let mut after = None;
    while !missing.is_empty() {
        let items = broker.inbox.read(&opened.session, after, RESTORE_PAGE, RESTORE_BYTES).await?;
        let Some(last) = items.last() else { break };
        after = Some(last.id);
        for item in items {
            if missing.remove(&item.id).is_some() {
                found.insert(item.id, item);
            }
        }
    }
    // In the order of the first time, which packet ids do not tell [MQTT-4.6.0-1].
    let mut outgoing: Vec<_> = opened.outgoing.iter().collect();
    outgoing.sort_unstable_by_key(|entry| entry.inbox_id);
    for entry in outgoing {
        let Some(packet_id) = super::packet_id(entry.packet_id) else { continue };
        let tag = Tag::Inbox(entry.inbox_id);
        match entry.phase {
            OutgoingPhase::Released => restored.outgoing.push(Outgoing::Released { packet_id, tag }),
            OutgoingPhase::Published => {
                let Some(item) = found.remove(&entry.inbox_id) else { continue };
                inbox.restored.insert(entry.inbox_id);
                if access.is_some_and(|access| access.receive_from(&item.message.topic).is_err()) {
                    broker.metrics.messages_dropped.inc(Dropped::NotAuthorized);
                    if convert::qos(item.qos) == QoS::ExactlyOnce {
                        // Without the message, and so that the packet id is not taken for its when it is used again.
                        inbox.ops.push(SessionOp::Release(entry.packet_id, entry.inbox_id));
                        inbox.recorded.insert(entry.packet_id, OutgoingPhase::Released);
                        restored.outgoing.push(Outgoing::Released { packet_id, tag });
                    } else {
                        inbox.recorded.remove(&entry.packet_id);
                        inbox.ops.push(SessionOp::Remove(entry.inbox_id));
                        inbox.ops.push(SessionOp::ClearOutgoing(entry.packet_id));
                    }
                    continue;
                }
                let delivery = inbox_delivery(broker, item);
                restored.outgoing.push(Outgoing::Published { packet_id, delivery });
            }
        }
    }
    Ok((restored, inbox))
}

/// A message of the inbox as the session takes it.
pub(super) fn inbox_delivery(broker: &Broker, item: weir_core::inbox::InboxItem) -> Delivery<Tag> {
    let qos = convert::qos(item.qos);
    Delivery {
        message: convert::to_wire(&item.message),
        qos,
        retain: item.retain,
        subscription_identifiers: item.subscription_ids.iter().copied().collect(),
        extra: Vec::new(),
        expires_at: convert::expires_at(broker.clock, item.message.expires_at),
        resumable: true,
        store_release: qos == QoS::ExactlyOnce,
        tag: Tag::Inbox(item.id),
    }
}
