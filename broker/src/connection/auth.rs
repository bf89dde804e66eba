//! Who the client is and what it may do: at CONNECT, when it proves itself anew, when rules change, when its proof ends.
//! The answers come from [`crate::auth`]; here they become packets and ends of connections.

use std::task::{Context, Poll};

use bytes::Bytes;
use bytestring::ByteString;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use weir_codec::{Auth as AuthPacket, Connect, Decoder, Packet, PacketType, ReasonCode};
use weir_session::Transmit;
use weir_topic::{Subscription, TopicFilter, TopicName};

use super::Connection;
use super::external::{Refusal, resolve};
use super::handshake::write_all;
use super::subscribe::parsed;
use super::wire::Wire;
use crate::auth::{Claim, ClientAccess, Denied, Exchange, Identity, Proved, Refused, Step};
use crate::broker::Broker;
use crate::metrics::{AuthRefusal, Closed, Forbidden};

/// Steps that an exchange may take.
const STEPS_MAX: u8 = 16;

/// A client that may come in.
pub(super) struct Admitted {
    /// `None`: everybody may everything.
    pub(super) auth: Option<Box<ClientAuth>>,
    pub(super) user: Option<ByteString>,
    /// Authentication Data for CONNACK.
    pub(super) data: Option<Bytes>,
}

/// Why a client does not come in.
pub(super) enum NotAdmitted {
    /// Tell it so.
    Refused(Refused),
    /// There is nobody to tell.
    Ended(Closed),
}

/// What a connection keeps of who its client is.
pub(super) struct ClientAuth {
    access: Box<ClientAccess>,
    /// Named in CONNECT.
    method: Option<ByteString>,
    /// What a new exchange begins with.
    claim: Claim,
    /// Topic of the will, and whether it is retained.
    will: Option<(TopicName, bool)>,
    /// A re-authentication that waits for the client.
    exchange: Option<Box<dyn Exchange>>,
    /// One whose next step is being worked out.
    step: Option<BoxFuture<'static, (Box<dyn Exchange>, Step)>>,
    steps: u8,
    /// The wait for other rules and for the end of the proof: kept, since every turn of the connection asks.
    awaited: Option<BoxFuture<'static, AuthEvent>>,
    /// A refused publish has been logged; the others would fill the log.
    logged: bool,
}

/// Something that concerns who the client is.
pub(super) enum AuthEvent {
    Stepped(Box<dyn Exchange>, Step),
    Changed,
    Expired,
}

/// Finds out whether the client of `connect` may come in.
pub(super) async fn admit(
    broker: &Broker,
    wire: &mut Wire,
    decoder: &mut Decoder,
    connect: &Connect,
    client_id: &ByteString,
) -> Result<Admitted, NotAdmitted> {
    let result = judge(broker, wire, decoder, connect, client_id).await;
    if let Err(NotAdmitted::Refused(refused)) = &result {
        broker.metrics.auth_refusals.inc(refused.label);
        tracing::info!(
            client = %client_id, peer = %wire.peer(), user = connect.username.as_deref().unwrap_or_default(),
            reason = %refused.reason, text = refused.text, "client is not let in"
        );
    }
    result
}

async fn judge(
    broker: &Broker,
    wire: &mut Wire,
    decoder: &mut Decoder,
    connect: &Connect,
    client_id: &ByteString,
) -> Result<Admitted, NotAdmitted> {
    let claim = Claim {
        client_id: connect.client_id.to_string().into(),
        // A copy: the received buffer holds the password too.
        username: connect.username.as_ref().map(|name| name.to_string().into()),
        address: wire.peer().ip(),
    };
    let method = connect.authentication_method.as_ref().map(|method| ByteString::from(method.to_string()));
    let mut data = None;
    let identity = match &method {
        None => broker.auth.authenticate(connect, wire.peer()).await.map_err(NotAdmitted::Refused)?,
        Some(method) => {
            let proved = exchange(broker, wire, decoder, connect, (method, &claim)).await?;
            data.clone_from(&proved.data);
            Identity::from(&proved)
        }
    };
    let user = if broker.auth.authenticates() { identity.user.clone() } else { claim.username.clone() };
    let (address, certificate) = (wire.peer().ip(), wire.peer().certificate.is_some());
    let access =
        broker.auth.access(identity, client_id, address, certificate).map_err(NotAdmitted::Refused)?;
    let Some(access) = access else { return Ok(Admitted { auth: None, user, data }) };
    let will = connect.will.as_ref().map(|will| (will.message.topic.to_string(), will.retain));
    let will = will.and_then(|(topic, retain)| Some((TopicName::parse(topic).ok()?, retain)));
    let auth = ClientAuth {
        access,
        method,
        claim,
        will,
        exchange: None,
        step: None,
        steps: 0,
        awaited: None,
        logged: false,
    };
    // Before the client takes over the session of its client id.
    if let Err(denied) = auth.access.connect().and_then(|()| auth.may_leave_will()) {
        broker.metrics.forbidden.inc(denied.what);
        return Err(NotAdmitted::Refused(Refused::not_allowed(denied.text())));
    }
    Ok(Admitted { auth: Some(Box::new(auth)), user, data })
}

/// An enhanced authentication from CONNECT to its end.
async fn exchange(
    broker: &Broker,
    wire: &mut Wire,
    decoder: &mut Decoder,
    connect: &Connect,
    (method, claim): (&ByteString, &Claim),
) -> Result<Proved, NotAdmitted> {
    broker.auth.admit(claim.address, None).map_err(NotAdmitted::Refused)?;
    let begun = broker.auth.begin(method, claim.clone());
    let mut exchange = begun.ok_or(NotAdmitted::Refused(Refused::UNKNOWN_METHOD))?;
    let give_up_at = broker.clock.now() + broker.limits.connect_timeout;
    let mut data = connect.authentication_data.clone();
    for _ in 0..STEPS_MAX {
        let step = tokio::time::timeout_at(give_up_at, exchange.step(data.take())).await;
        match step.map_err(|_| NotAdmitted::Ended(Closed::ConnectTimeout))? {
            Step::Continue(ask) => {
                let asked =
                    tokio::time::timeout_at(give_up_at, ask_for_more(wire, decoder, connect, ask)).await;
                match asked.map_err(|_| NotAdmitted::Ended(Closed::ConnectTimeout))? {
                    Ok(more) => data = more,
                    Err(why) => {
                        if matches!(why, NotAdmitted::Refused(_)) {
                            broker.auth.failed(claim.address, None).await;
                        }
                        return Err(why);
                    }
                }
            }
            Step::Success(proved) => return Ok(proved),
            Step::Failure(why) => {
                tracing::info!(peer = %wire.peer(), method = &**method, why, "authentication failed");
                broker.auth.failed(claim.address, None).await;
                return Err(NotAdmitted::Refused(Refused::NOT_PROVED));
            }
        }
    }
    broker.auth.failed(claim.address, None).await;
    Err(NotAdmitted::Refused(Refused::NOT_PROVED))
}

/// Sends AUTH and waits for the client's. Between CONNECT and CONNACK nothing else may come [MQTT-3.1.2-30].
async fn ask_for_more(
    wire: &mut Wire,
    decoder: &mut Decoder,
    connect: &Connect,
    data: Bytes,
) -> Result<Option<Bytes>, NotAdmitted> {
    let lost = |_| NotAdmitted::Ended(Closed::ConnectionLost);
    let ask = AuthPacket {
        reason: ReasonCode::ContinueAuthentication,
        authentication_method: connect.authentication_method.clone(),
        authentication_data: Some(data),
        ..AuthPacket::default()
    };
    let transmit = Transmit::Packet(Packet::Auth(Box::new(ask)));
    wire.put(&transmit, connect.version).map_err(|_| NotAdmitted::Ended(Closed::Internal))?;
    write_all(wire).await.map_err(lost)?;
    loop {
        match decoder.decode(&mut wire.input) {
            Ok(Some(Packet::Auth(auth)))
                if auth.reason == ReasonCode::ContinueAuthentication
                    && auth.authentication_method == connect.authentication_method =>
            {
                wire.count_received(PacketType::Auth);
                return Ok(auth.authentication_data);
            }
            Ok(Some(Packet::Disconnect(_))) => {
                return Err(NotAdmitted::Ended(Closed::Disconnect));
            }
            Ok(Some(_)) | Err(_) => return Err(NotAdmitted::Refused(Refused::OUT_OF_TURN)),
            Ok(None) => {}
        }
        wire.ready(true).await.map_err(lost)?;
        if !wire.fill(decoder.frame_bytes_needed()).map_err(lost)? {
            return Err(NotAdmitted::Ended(Closed::ConnectionLost));
        }
    }
}

impl ClientAuth {
    /// What has happened, if anything has.
    pub(super) fn poll_event(&mut self, context: &mut Context<'_>) -> Option<AuthEvent> {
        if let Some(step) = &mut self.step
            && let Poll::Ready((exchange, step)) = step.poll_unpin(context)
        {
            return Some(AuthEvent::Stepped(exchange, step));
        }
        let Self { access, awaited, .. } = self;
        let event = awaited.get_or_insert_with(|| Box::pin(changed_or_expired(access))).poll_unpin(context);
        match event {
            Poll::Ready(event) => {
                *awaited = None;
                Some(event)
            }
            Poll::Pending => None,
        }
    }

    fn may_leave_will(&self) -> Result<(), Denied> {
        self.will.as_ref().map_or(Ok(()), |(topic, retain)| self.access.will(topic, *retain))
    }

    /// Whether the will, which is due, may still be published.
    pub(super) fn still_may_leave_will(&mut self) -> bool {
        if !self.access.refresh() {
            return false;
        }
        self.may_leave_will().is_ok()
    }

    pub(super) fn access(&self) -> &ClientAccess {
        &self.access
    }
}

/// Waits for other rules than `access` has taken up, and for the end of the client's proof.
fn changed_or_expired(access: &ClientAccess) -> impl Future<Output = AuthEvent> + Send + use<> {
    let (mut changes, expires_at) = (access.changes(), access.expires_at());
    async move {
        let expired = async {
            match expires_at {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = expired => AuthEvent::Expired,
            // The sender lives as long as the broker.
            Ok(()) = changes.changed() => AuthEvent::Changed,
            else => std::future::pending().await,
        }
    }
}

impl Connection {
    pub(super) fn handle_auth_event(&mut self, event: AuthEvent) {
        match event {
            AuthEvent::Stepped(exchange, step) => self.handle_step(exchange, step),
            AuthEvent::Changed => {
                self.recheck();
            }
            AuthEvent::Expired => {
                self.banish("the token has expired: re-authenticate in time, or connect with a fresh one");
            }
        }
    }

    /// AUTH of the client, whose turn it is.
    pub(super) fn handle_auth(&mut self, begins: bool, data: Option<Bytes>) {
        let Some(auth) = &mut self.auth else { return self.banish("authentication failed") };
        let known = if begins {
            auth.steps = 0;
            let method = auth.method.as_deref().unwrap_or_default();
            auth.access.auth().begin(method, auth.claim.clone())
        } else {
            auth.exchange.take()
        };
        let Some(mut exchange) = known.filter(|_| auth.steps < STEPS_MAX) else {
            return self.banish("authentication failed");
        };
        auth.steps += 1;
        auth.step = Some(Box::pin(async move {
            let step = exchange.step(data).await;
            (exchange, step)
        }));
    }

    fn handle_step(&mut self, exchange: Box<dyn Exchange>, step: Step) {
        let Some(auth) = &mut self.auth else { return };
        auth.step = None;
        match step {
            Step::Continue(data) => {
                auth.exchange = Some(exchange);
                self.session.handle_auth_continued(data);
            }
            Step::Success(proved) if Some(&proved.user) == auth.access.identity().user.as_ref() => {
                auth.access.renew(Identity::from(&proved));
                auth.awaited = None;
                self.session.handle_authenticated(proved.data);
            }
            Step::Success(_) => {
                self.metrics.auth_refusals.inc(AuthRefusal::BadCredentials);
                self.banish("re-authenticated as another user: connect anew for that");
            }
            Step::Failure(why) => {
                tracing::info!(client = %self.stored.client_id, why, "re-authentication failed");
                self.metrics.auth_refusals.inc(AuthRefusal::BadCredentials);
                auth.access.auth().count_failure(auth.claim.address, None);
                self.banish("re-authentication failed");
            }
        }
    }

    /// Takes up other rules if there are any. What the client has and may not have any more, ends its connection: it
    /// learns of it, and its session goes on without.
    /// False if the connection ends for that.
    pub(super) fn refresh_access(&mut self) -> bool {
        !self.auth.as_ref().is_some_and(|auth| auth.access.is_outdated()) || self.recheck()
    }

    fn recheck(&mut self) -> bool {
        let Some(auth) = &mut self.auth else { return true };
        if !auth.access.refresh() {
            self.banish("the user is gone or has another password: connect anew");
            return false;
        }
        if let Err(denied) = auth.access.connect() {
            self.metrics.forbidden.inc(denied.what);
            self.banish("access rules have changed: not allowed to connect with this client id any more");
            return false;
        }
        let plain = self.subscriptions.iter().filter_map(parsed);
        let lost = plain.filter(|(_, to)| self.may_have(to).is_err()).map(|(text, _)| text);
        let others = self.externals.iter().filter(|external| self.may_have(&external.to).is_err());
        if let Some(text) = lost.chain(others.map(|external| &external.text)).next() {
            let text = format!("access rules have changed: not allowed to subscribe to {text} any more");
            self.metrics.forbidden.inc(Forbidden::Subscribe);
            self.banish(text);
            return false;
        }
        true
    }

    /// Ends the connection of a client that may not stay.
    pub(super) fn banish(&mut self, text: impl Into<ByteString>) {
        let text = text.into();
        tracing::info!(client = %self.stored.client_id, text = &*text, "client must go");
        self.session.close(ReasonCode::NotAuthorized, Some(text));
    }

    /// Whether the client may publish there.
    pub(super) fn may_publish(&self, topic: &TopicName, retain: bool) -> Result<(), Denied> {
        self.auth.as_ref().map_or(Ok(()), |auth| auth.access.publish(topic, retain))
    }

    /// Logs a publish that was refused: the first of a connection for everybody, the others for who looks closely.
    pub(super) fn log_refused(&mut self, topic: &TopicName, denied: &Denied) {
        self.metrics.forbidden.inc(denied.what);
        let Some(auth) = &mut self.auth else { return };
        let (client, rule) = (&self.stored.client_id, denied.line);
        if std::mem::replace(&mut auth.logged, true) {
            tracing::debug!(%client, %topic, rule, "publish is not allowed");
        } else {
            tracing::info!(%client, %topic, rule, "publish is not allowed; others of this connection at level debug");
        }
    }

    /// Whether the client may have a subscription, to what it names now.
    pub(super) fn may_have(&self, to: &Subscription) -> Result<(), Denied> {
        let Some(auth) = &self.auth else { return Ok(()) };
        auth.access.subscribe(to)?;
        // One that does not exist yet is looked at when it appears.
        match resolve(&self.broker.core.catalog().view(), to) {
            Ok(Some(object)) => auth.access.attach(&object),
            Ok(None) | Err(_) => Ok(()),
        }
    }

    /// [`Connection::may_have`], as the answer to a SUBSCRIBE.
    pub(super) fn check_allowed(&self, text: &ByteString, to: &Subscription) -> Result<(), Refusal> {
        self.may_have(to).map_err(|denied| {
            self.metrics.forbidden.inc(denied.what);
            tracing::debug!(client = %self.stored.client_id, filter = %text, rule = denied.line, "not allowed");
            Refusal { reason: ReasonCode::NotAuthorized, text: format!("{text}: {}", denied.text()) }
        })
    }

    /// Whether the client may make a queue or stream of this name by subscribing to it.
    pub(super) fn may_create(&self, name: &str, filter: &TopicFilter) -> Result<(), Denied> {
        self.auth.as_ref().map_or(Ok(()), |auth| auth.access.create(name, filter))
    }
}
