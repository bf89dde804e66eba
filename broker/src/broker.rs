//! What all connections share, and the two paths of a publish: to live subscribers, and into everything that
//! must keep it before its publisher is told.

use std::num::NonZeroU16;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytestring::ByteString;
use futures_util::future::BoxFuture;
use smallvec::SmallVec;
use tokio::sync::{Semaphore, oneshot};
use tokio_util::task::TaskTracker;
use tracing::Instrument;
use weir_codec::{Message as WireMessage, ProtocolVersion, QoS, ReasonCode};
use weir_core::catalog::Object;
use weir_core::inbox::{Completion, Inbox, InboxAppend, InboxTarget, InboxWriter};
use weir_core::key::Publisher;
use weir_core::keyspace::PublishId;
use weir_core::keyspace::session::SessionRoute;
use weir_core::message::Message;
use weir_core::retained::Retained;
use weir_core::sessions::{EndedSession, SessionRef, Sessions};
use weir_core::shard::AppendError;
use weir_core::wills::{DueWill, Wills};
use weir_core::{Core, Error};
use weir_env::clock::{Clock, Instant, Timestamp};
use weir_env::seed::Seed;
use weir_topic::{Subscription, TopicFilter};

use crate::auth::Auth;
use crate::auto_create::AutoCreate;
use crate::clients::Clients;
use crate::cluster::Pods;
use crate::cluster::forward::Forwards;
use crate::cluster::takeover::{AllHeard, Elsewhere};
use crate::config::Limits;
use crate::convert;
use crate::metrics::{Dropped, DurableOutcome, Metrics};
use crate::persistent::{Persistent, Removed};
use crate::pod::drain::Drainage;
use crate::responses::ResponseInformation;
use crate::router::{Matched, Router, Subscriber, SubscriberId, Wish};
use crate::sys::Sys;
use crate::under_way::{UnderWay, UnderWayGuard};

/// How long a 3.1.1 publisher's acknowledgement is withheld while the store is tried again: it cannot be told
/// of a failure other than by closing its connection.
const PATIENCE: Duration = Duration::from_secs(30);
/// First wait before the store is tried again; it doubles.
const RETRY_WAIT: Duration = Duration::from_millis(50);
/// Longest wait before the store is tried again.
const RETRY_WAIT_MAX: Duration = Duration::from_secs(2);
/// Longest time a will that could not be stored is tried again.
const WILL_PATIENCE: Duration = Duration::from_secs(3600);
/// Wait before a will that could not be stored is tried again.
const WILL_RETRY_WAIT: Duration = Duration::from_secs(10);

/// The parts of a running broker. One per process, shared by its connections.
pub(crate) struct Broker {
    pub(crate) core: Arc<Core>,
    pub(crate) auth: Arc<Auth>,
    pub(crate) sessions: Sessions,
    pub(crate) inbox: Inbox,
    pub(crate) inbox_writer: InboxWriter,
    pub(crate) retained: Retained,
    pub(crate) sys: Sys,
    pub(crate) wills: Wills,
    /// One permit for each due will that may be published at the same time.
    pub(crate) due_wills: Arc<Semaphore>,
    pub(crate) router: Router,
    /// Other pods that have live subscribers, if there may be any.
    pub(crate) pods: Option<Pods>,
    pub(crate) under_way: UnderWay,
    pub(crate) clients: Arc<Clients>,
    /// Whether clients are to go to other pods.
    pub(crate) drainage: Drainage,
    pub(crate) persistent: Persistent,
    /// What there is of sessions at other pods, if there may be any.
    pub(crate) elsewhere: Option<Arc<Elsewhere>>,
    pub(crate) metrics: Metrics,
    pub(crate) clock: Clock,
    pub(crate) seed: Seed,
    pub(crate) limits: Limits,
    pub(crate) session_limits: weir_session::Limits,
    pub(crate) auto_create: Arc<AutoCreate>,
    pub(crate) response_information: Option<ResponseInformation>,
    pub(crate) tasks: TaskTracker,
    pub(crate) next_consumer: AtomicU64,
}

/// A message on its way in.
#[derive(Clone, Debug)]
pub(crate) struct Inbound {
    pub(crate) message: Arc<WireMessage>,
    pub(crate) qos: QoS,
    pub(crate) retain: bool,
    /// Whether one with RETAIN is to replace what is retained at its topic.
    pub(crate) keep: bool,
    /// Message Expiry Interval, seconds.
    pub(crate) expiry: Option<u32>,
    /// Names a QoS 2 publish of a persistent session, and says whether it may have been seen before.
    pub(crate) publish: Option<(PublishId, bool)>,
    /// The packet id under which the publisher's session has noted it.
    pub(crate) noted: Option<u16>,
    /// The session it comes from, for No Local.
    pub(crate) from: Option<SubscriberId>,
    /// The publisher's session, if the message is retained where there are other pods: who has lost it retains nothing.
    pub(crate) holder: Option<Box<SessionRef>>,
    /// Live subscribers get it once it is durable, as that of QoS 2: behind one that is retained.
    pub(crate) is_late: bool,
    /// For keys.
    pub(crate) publisher: Arc<Publisher>,
    /// Of the publisher's connection: says whether it can be told of a failure.
    pub(crate) version: ProtocolVersion,
    /// Whether live subscribers get it: not once more when it is only tried again to store it.
    pub(crate) live: bool,
    /// Catalog id of the queue it left as a dead letter.
    pub(crate) dead_letter: Option<u32>,
}

impl Inbound {
    fn is_live_when_durable(&self) -> bool {
        self.is_late || self.qos == QoS::ExactlyOnce
    }
}

/// What became of a publish.
pub(crate) enum Accepted {
    /// It is done.
    Done(Outcome),
    /// It is in line with so many bytes; the outcome comes when it is durable, or cannot be made so.
    Pending(u64, BoxFuture<'static, Outcome>),
}

/// What a publisher is told, and what is left to do.
pub(crate) struct Outcome {
    pub(crate) reason: ReasonCode,
    /// Whether the topic's retained message is what it should be: none was to be kept, or it was.
    pub(crate) retained: bool,
    /// A message of QoS 2, or [a late one](Inbound::is_late), goes to live subscribers now that it is durable. Whoever
    /// published it hands it over with [`Broker::deliver`], in the order of the publishes [MQTT-4.6.0-5].
    pub(crate) live: Option<Box<Live>>,
    /// Whether a repeat of it is to be delivered could not be stored: it is not answered, and comes again.
    pub(crate) unstored: Option<Box<Error>>,
    /// A queue does not take the message, now or later, and this is why.
    pub(crate) refusal: Option<Box<str>>,
    /// A queue that is full, and of what.
    pub(crate) full: Option<Box<str>>,
}

/// A message and the live subscribers it is for.
pub(crate) struct Live {
    matched: Matched,
    /// For those at other pods.
    forwards: Forwards,
    is_among_pods: bool,
    message: Arc<WireMessage>,
    qos: QoS,
    expires_at: Option<std::time::Instant>,
    span: tracing::Span,
}

impl Live {
    /// Whether its publisher sends it again if that is not told of it, and nobody may get it twice.
    pub(crate) fn is_exactly_once(&self) -> bool {
        self.qos == QoS::ExactlyOnce
    }

    /// Whether it is for other pods, and not in line for each of them.
    pub(crate) const fn is_waiting(&self) -> bool {
        self.forwards.is_waiting()
    }

    /// Whether nobody may get it twice, and other pods have no room for it, or its session [may have
    /// moved](Broker::may_have_moved).
    pub(crate) fn is_to_wait(&self, broker: &Broker, may_have_moved: bool) -> bool {
        self.is_exactly_once() && (!self.forwards.has_room(broker) || may_have_moved && self.is_for_anybody())
    }

    /// Whether it may turn out that it [is to wait](Self::is_to_wait).
    pub(crate) fn may_have_to_wait(&self) -> bool {
        self.is_waiting() || self.is_among_pods && self.is_exactly_once() && self.is_for_anybody()
    }

    fn is_for_anybody(&self) -> bool {
        self.is_waiting() || !self.matched.is_empty()
    }

    /// Bytes it takes while it waits.
    pub(crate) fn size(&self) -> usize {
        crate::mailbox::size_of(&self.message)
    }
}

/// A publish that has begun.
pub(crate) enum Begun {
    /// It is as far as it goes without waiting.
    Accepted(Accepted),
    /// It is to be put in line.
    Enqueue(BoxFuture<'static, Accepted>),
}

/// What there is to a publish beside live subscribers.
struct Found {
    reason: ReasonCode,
    inboxes: SmallVec<[InboxTarget; 2]>,
    targets: SmallVec<[Arc<Object>; 2]>,
    retained: Option<(Arc<Message>, Completion)>,
}

/// What is waited for before a publisher is told.
struct Durable {
    broker: Arc<Broker>,
    message: Arc<Message>,
    inbound: Inbound,
    live: Option<Box<Live>>,
    appends: weir_core::core::Receipt,
    inbox: Option<Box<(InboxAppend, Completion)>>,
    retained: Option<Completion>,
    under_way: UnderWayGuard,
}

/// Why nobody gets a message whose publisher cannot be told: a queue refuses it, or the store failed.
fn dropped_because(refused: bool) -> Dropped {
    if refused { Dropped::QueueRefused } else { Dropped::StoreFailed }
}

/// What has not become durable yet.
#[derive(Default)]
struct Failures {
    appends: SmallVec<[(Arc<Object>, AppendError); 1]>,
    inbox: Option<Box<(InboxAppend, Error)>>,
    retained: Option<Error>,
}

impl Broker {
    /// Takes a message: gives it to live subscribers and puts it in line for whatever must keep it. Waits only
    /// while too much is in line already.
    pub(crate) async fn publish(self: &Arc<Self>, inbound: Inbound) -> Accepted {
        match self.begin_publish(inbound) {
            Begun::Accepted(accepted) => accepted,
            Begun::Enqueue(enqueue) => enqueue.await,
        }
    }

    /// The part of [`Self::publish`] that never waits, and all of it for a message that nothing must keep.
    pub(crate) fn begin_publish(self: &Arc<Self>, inbound: Inbound) -> Begun {
        let span = tracing::debug_span!(
            "publish",
            topic = inbound.message.topic.as_str(),
            qos = inbound.qos.as_u8(),
            client = %inbound.publisher.client_id
        );
        if !inbound.retain || !inbound.keep {
            return self.forward(inbound, None, span);
        }
        // In line before anybody gets it: who subscribes in between finds it retained.
        let broker = Arc::clone(self);
        Begun::Enqueue(Box::pin(async move {
            let retained = match broker.retain(&inbound).await {
                Ok(retained) => retained,
                Err(error) => return refused(&error),
            };
            match broker.forward(inbound, Some(retained), span) {
                Begun::Accepted(accepted) => accepted,
                Begun::Enqueue(enqueue) => enqueue.await,
            }
        }))
    }

    /// Gives a message to everybody it is for. `retained` is how it is kept and when it is, if it is retained.
    fn forward(
        self: &Arc<Self>,
        inbound: Inbound,
        retained: Option<(Arc<Message>, Completion)>,
        span: tracing::Span,
    ) -> Begun {
        let message = &inbound.message;
        let mut matched = self.router.matches(message, inbound.qos, inbound.retain, inbound.from);
        let targets = self.core.targets(&message.topic);
        let reason = if matched.is_empty() { ReasonCode::NoMatchingSubscribers } else { ReasonCode::Success };
        let inboxes = std::mem::take(&mut matched.inboxes);
        let pods = std::mem::take(&mut matched.pods);
        let live = inbound.live.then(|| {
            let forwards = self.forwards(pods, &inbound);
            self.live(matched, forwards, &inbound, &span)
        });
        let live = match live {
            Some(mut live) if !inbound.is_live_when_durable() => {
                self.deliver(&mut live);
                live.forwards.is_waiting().then(|| Box::new(live))
            }
            live => live.map(Box::new),
        };
        let found = Found { reason, inboxes, targets, retained };
        match live {
            Some(live) if !inbound.is_live_when_durable() => {
                let broker = Arc::clone(self);
                Begun::Enqueue(Box::pin(async move {
                    match broker.forward_later(inbound, live, found, span).await {
                        Begun::Accepted(accepted) => accepted,
                        Begun::Enqueue(enqueue) => enqueue.await,
                    }
                }))
            }
            live => self.keep(inbound, live, found, span),
        }
    }

    /// Waits until a message is in line for all other pods it is for, before it is for whatever must keep it.
    async fn forward_later(
        self: &Arc<Self>,
        inbound: Inbound,
        mut live: Box<Live>,
        found: Found,
        span: tracing::Span,
    ) -> Begun {
        live.forwards.wait(self).await;
        self.keep(inbound, None, found, span)
    }

    /// Puts a message in line for whatever must keep it.
    fn keep(
        self: &Arc<Self>,
        inbound: Inbound,
        live: Option<Box<Live>>,
        found: Found,
        span: tracing::Span,
    ) -> Begun {
        let Found { reason, inboxes, targets, retained } = found;
        if targets.is_empty() && inboxes.is_empty() && retained.is_none() {
            return Begun::Accepted(Accepted::Done(Outcome {
                reason,
                retained: true,
                live,
                unstored: None,
                refusal: None,
                full: None,
            }));
        }
        let (kept, retained) = match retained {
            Some((kept, completion)) => (kept, Some(completion)),
            None => (self.kept(&inbound), None),
        };
        let (broker, parent) = (Arc::clone(self), span.clone());
        let enqueue = async move {
            match broker.enqueue(inbound, kept, inboxes, live, retained, &targets).await {
                Ok(durable) => {
                    let commit = tracing::debug_span!(parent: &parent, "commit");
                    Accepted::Pending(
                        durable.under_way.bytes(),
                        Box::pin(Box::new(durable).settle().instrument(commit)),
                    )
                }
                Err(error) => refused(&error),
            }
        };
        Begun::Enqueue(Box::pin(enqueue.instrument(span)))
    }

    /// A message as it is kept.
    pub(crate) fn kept(&self, inbound: &Inbound) -> Arc<Message> {
        let Inbound { message, qos, retain, expiry, dead_letter, .. } = inbound;
        let kept = convert::to_core(message, *qos, *retain, *expiry, self.clock.wall());
        Arc::new(Message { dead_letter: *dead_letter, ..kept })
    }

    async fn retain(&self, inbound: &Inbound) -> Result<(Arc<Message>, Completion), Error> {
        let kept = self.kept(inbound);
        let completion = self.retain_message(inbound, &kept).await?;
        Ok((kept, completion))
    }

    async fn retain_message(&self, inbound: &Inbound, kept: &Arc<Message>) -> Result<Completion, Error> {
        match &inbound.holder {
            Some(holder) => self.retained.set_by(Arc::clone(kept), holder).await,
            None => self.retained.set(Arc::clone(kept)).await,
        }
    }

    async fn enqueue(
        self: &Arc<Self>,
        inbound: Inbound,
        message: Arc<Message>,
        inboxes: SmallVec<[InboxTarget; 2]>,
        live: Option<Box<Live>>,
        retained: Option<Completion>,
        targets: &[Arc<Object>],
    ) -> Result<Durable, Error> {
        let under_way = self.under_way.enter(message.size());
        let appends = self.core.append(targets, &message, &inbound.publisher, inbound.publish).await?;
        let inbox = if inboxes.is_empty() {
            None
        } else {
            let mark = inbound.publish.map(|(id, _)| id);
            let noted = inbound.noted.map(|packet_id| (inbound.publisher.client_id.clone(), packet_id));
            let append = InboxAppend { message: Arc::clone(&message), targets: inboxes, mark, noted };
            let completion = self.inbox_writer.append(append.clone()).await?;
            Some(Box::new((append, completion)))
        };
        Ok(Durable { broker: Arc::clone(self), message, inbound, live, appends, inbox, retained, under_way })
    }

    fn live(&self, matched: Matched, forwards: Forwards, inbound: &Inbound, span: &tracing::Span) -> Live {
        let expires_at = inbound
            .expiry
            .and_then(|seconds| convert::deadline(self.clock.now(), Duration::from_secs(u64::from(seconds))));
        let (message, qos) = (Arc::clone(&inbound.message), inbound.qos);
        let is_among_pods = self.pods.is_some();
        Live { matched, forwards, is_among_pods, message, qos, expires_at, span: span.clone() }
    }

    /// Gives a message to live subscribers, to those at other pods as far as there is room.
    pub(crate) fn deliver(self: &Arc<Self>, live: &mut Live) {
        live.forwards.send(self, live.qos);
        self.deliver_to(&live.matched, &live.message, live.expires_at, &live.span);
    }

    /// As [`Broker::deliver`], and waits until it is in line for all other pods.
    pub(crate) async fn deliver_all(self: &Arc<Self>, live: &mut Live) {
        self.deliver(live);
        live.forwards.wait(self).await;
    }

    /// Puts in line for other pods what [`Broker::deliver`] has left, whoever waits for it: the receiver hears when it is.
    pub(crate) fn deliver_rest(self: &Arc<Self>, mut live: Box<Live>) -> oneshot::Receiver<()> {
        let (sent, is_sent) = oneshot::channel();
        let (broker, under_way) = (Arc::clone(self), self.under_way.enter(live.size()));
        self.tasks.spawn(async move {
            live.forwards.wait(&broker).await;
            drop(under_way);
            // The publisher may be gone.
            let _ = sent.send(());
        });
        is_sent
    }

    /// Whether another pod may have taken over the session of a connection, with what it had noted, and not been able to ask
    /// this one what has gone out. `heard` is from before that was noted.
    pub(crate) fn may_have_moved(&self, heard: Option<&AllHeard>) -> bool {
        let elsewhere = self.elsewhere.as_ref();
        elsewhere.is_some_and(|elsewhere| heard.is_none_or(|then| !elsewhere.has_heard_all_since(then)))
    }

    /// Delivers a message that [is to wait](Live::is_to_wait), to all at once when there is room everywhere: else it might begin
    /// to go out, and again by way of another pod. Its client may have come there by then, unheard of here. So it goes only
    /// if its session, where it is noted, is still that of this connection and says that no repeat of it goes.
    pub(crate) fn deliver_put_off(
        self: &Arc<Self>,
        mut live: Box<Live>,
        noted: Option<(SessionRef, u16, PublishId)>,
    ) -> oneshot::Receiver<Result<(), Error>> {
        let (sent, is_sent) = oneshot::channel();
        let (broker, under_way) = (Arc::clone(self), self.under_way.enter(live.size()));
        self.tasks.spawn(async move {
            live.forwards.await_room(&broker).await;
            let stored = match noted {
                Some((session, id, publish)) => broker.sessions.store_answered(&session, id, publish).await,
                None => Ok(()),
            };
            if stored.is_ok() {
                broker.deliver_all(&mut live).await;
            }
            drop(under_way);
            // The publisher may be gone.
            let _ = sent.send(stored);
        });
        is_sent
    }

    /// Gives a message to those of `matched` that are connected, and what a group's member is no longer there for to
    /// another member.
    pub(crate) fn deliver_to(
        self: &Arc<Self>,
        matched: &Matched,
        message: &Arc<WireMessage>,
        expires_at: Option<std::time::Instant>,
        span: &tracing::Span,
    ) {
        let left = self.router.deliver(matched, message, expires_at, span);
        self.hand_on_later(left);
    }

    /// Publishes a will, and forgets it once it is durable.
    pub(crate) async fn publish_will(self: &Arc<Self>, due: DueWill) {
        let now = self.clock.wall();
        let message = &due.will.message;
        let publisher = Publisher { client_id: due.id.client_id.clone(), username: None };
        let inbound = Inbound {
            message: convert::to_wire(message),
            qos: convert::qos(message.qos),
            retain: message.retain,
            keep: !due.retained && (due.is_first || !self.has_newer(message, due.first_due).await),
            expiry: due.will.expiry_seconds,
            // Targets that took it at an earlier attempt do not take it again.
            publish: Some((due.publish_id(), true)),
            noted: None,
            from: None,
            holder: None,
            is_late: self.pods.is_some() && message.retain,
            publisher: Arc::new(publisher),
            version: ProtocolVersion::V5,
            live: due.is_first,
            dead_letter: None,
        };
        let Outcome { reason, retained, live, refusal, .. } = match self.publish(inbound).await {
            Accepted::Done(outcome) => outcome,
            Accepted::Pending(_, outcome) => outcome.await,
        };
        if let Some(mut live) = live {
            self.deliver_all(&mut live).await;
        }
        let given_up = refusal.is_some() || now.saturating_since(due.first_due) >= WILL_PATIENCE;
        let result = if reason.is_error() && !given_up {
            // Tried again, it must not replace what is published meanwhile.
            let retained = retained || due.retained;
            self.wills.retry_at(&due, now.saturating_add(WILL_RETRY_WAIT), retained).await
        } else {
            if reason.is_error() {
                self.metrics.messages_dropped.inc(dropped_because(refusal.is_some()));
                let why = refusal.as_deref().unwrap_or("could not be stored for an hour");
                tracing::warn!(topic = %message.topic, %reason, why, "will dropped");
            }
            self.wills.done(&due).await
        };
        if let Err(error) = result {
            tracing::warn!(%error, "will stays due: the store did not take its end");
        }
    }

    /// Whether a message retained at the topic of `will` was published after `first_due`. One that is removed leaves
    /// no trace.
    async fn has_newer(&self, will: &Message, first_due: Timestamp) -> bool {
        let Some(filter) = TopicFilter::parse(will.topic.as_str()).ok().filter(|_| will.retain) else {
            return false;
        };
        let page = self.retained.matching(&filter, None, 1, 1).await;
        // If the store does not answer, it does not take the will either.
        page.is_ok_and(|page| page.messages.iter().any(|message| message.published_at > first_due))
    }

    /// The session of `client_id` as the router knows it, made if need be.
    pub(crate) fn persistent_subscriber(
        &self,
        client_id: &ByteString,
        incarnation: weir_core::keyspace::session::Incarnation,
    ) -> Arc<Subscriber> {
        self.persistent.get_or_insert_with(client_id, incarnation, || {
            self.router.subscriber(client_id.clone(), Some(incarnation))
        })
    }

    /// Forgets a session that has ended.
    pub(crate) fn forget(&self, ended: &EndedSession) {
        let Some(Removed { subscriber, filters }) =
            self.persistent.remove(&ended.client_id, ended.incarnation)
        else {
            return;
        };
        for filter in ended.filters.iter().chain(&filters) {
            if let Ok(from) = Subscription::parse(filter.clone()) {
                self.router.unsubscribe(subscriber.id, filter, &from);
            }
        }
    }

    /// Reads the subscriptions of all persistent sessions into the router; `reading` is larger with each time.
    pub(crate) async fn load_routes(&self, reading: u64) -> Result<usize, Error> {
        let mut count = 0;
        let mut cursor = None;
        loop {
            let page = self.sessions.load_routes(cursor).await?;
            for route in page.routes {
                let Ok(to) = Subscription::parse(route.filter.clone()) else { continue };
                let subscriber = self.persistent_subscriber(&route.client_id, route.incarnation);
                self.router.subscribe(&subscriber, &route.filter, &to, wish_of(&route.subscription));
                if self.elsewhere.is_some() {
                    let SessionRoute { client_id, incarnation, filter, .. } = &route;
                    self.persistent.note_filter(client_id, *incarnation, filter, reading);
                }
                count += 1;
            }
            cursor = page.next;
            if cursor.is_none() {
                return Ok(count);
            }
        }
    }

    /// A consumer id that nobody else has.
    pub(crate) fn consumer_id(&self) -> weir_core::queue::ConsumerId {
        weir_core::queue::ConsumerId(self.next_consumer.fetch_add(1, Ordering::Relaxed))
    }
}

/// How a stored subscription wants its messages.
pub(crate) fn wish_of(stored: &weir_core::keyspace::session::StoredSubscription) -> Wish {
    let retain_handling = match stored.retain_handling {
        1 => weir_codec::RetainHandling::OnNewSubscription,
        2 => weir_codec::RetainHandling::Never,
        _ => weir_codec::RetainHandling::OnSubscribe,
    };
    Wish {
        options: weir_codec::SubscriptionOptions {
            qos: convert::qos(stored.qos),
            no_local: stored.no_local,
            retain_as_published: stored.retain_as_published,
            retain_handling,
        },
        identifier: stored.subscription_id,
    }
}

/// What sessions are granted under `limits`.
pub(crate) fn session_limits(limits: &Limits) -> weir_session::Limits {
    let defaults = weir_session::Limits::default();
    weir_session::Limits {
        receive_maximum: NonZeroU16::new(limits.receive_maximum).unwrap_or(NonZeroU16::MIN),
        maximum_packet_size: u32::try_from(limits.max_packet_size.0)
            .ok()
            .and_then(std::num::NonZeroU32::new)
            .unwrap_or(defaults.maximum_packet_size),
        topic_alias_maximum: limits.topic_alias_maximum,
        keep_alive_maximum: NonZeroU16::new(whole_seconds(limits.keep_alive_max)),
        session_expiry_maximum: u32::try_from(limits.session_expiry_max.as_secs()).unwrap_or(u32::MAX),
        ..defaults
    }
}

/// The broker stops, and takes no more.
fn refused(error: &Error) -> Accepted {
    tracing::debug!(%error, "publish refused");
    let reason = ReasonCode::ServerShuttingDown;
    let (live, refusal, full) = (None, None, None);
    Accepted::Done(Outcome { reason, retained: false, live, unstored: None, refusal, full })
}

/// Seconds, the last one perhaps not over; what is beyond the largest counts as that.
fn whole_seconds(duration: Duration) -> u16 {
    u16::try_from(duration.as_millis().div_ceil(1000)).unwrap_or(u16::MAX)
}

impl Durable {
    /// What a publish costs while it waits is mostly this future: what only a failure needs is in boxes of its own.
    async fn settle(mut self: Box<Self>) -> Outcome {
        let started = self.broker.clock.now();
        let mut failures =
            Failures { appends: std::mem::take(&mut self.appends).settled().await, ..Failures::default() };
        if let Some((append, completion)) = self.inbox.take().map(|inbox| *inbox) {
            failures.inbox = completion.await.err().map(|error| Box::new((append, error)));
        }
        if let Some(completion) = self.retained.take() {
            failures.retained = completion.await.err();
        }
        let is_patient = !self.inbound.version.is_v5() && self.inbound.qos != QoS::AtMostOnce;
        if is_patient && failures.reason().is_some() {
            failures = Box::pin(self.try_again(failures, started)).await;
        }
        self.outcome(&failures, started)
    }

    async fn try_again(&self, mut failures: Failures, started: Instant) -> Failures {
        let mut wait = RETRY_WAIT;
        // Who has lost the session will not get it back.
        while failures.reason().is_some()
            && !failures.is_fenced()
            && self.broker.clock.now() - started < PATIENCE
        {
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(RETRY_WAIT_MAX);
            failures = failures.retry(&self.broker, &self.message, &self.inbound).await;
        }
        failures
    }

    fn outcome(self, failures: &Failures, started: Instant) -> Outcome {
        let Self { broker, inbound, live, .. } = self;
        let reason = failures.reason();
        let took = broker.clock.now() - started;
        broker.metrics.publish_commit_seconds.observe(took.as_secs_f64());
        let outcome = match reason {
            None => DurableOutcome::Committed,
            Some(ReasonCode::QuotaExceeded) => DurableOutcome::QuotaExceeded,
            Some(_) => DurableOutcome::Failed,
        };
        broker.metrics.durable_publishes.inc(outcome);
        if reason.is_some() && inbound.qos == QoS::AtMostOnce {
            broker.metrics.messages_dropped.inc(dropped_because(failures.refusal().is_some()));
        }
        // Of QoS 2, it comes again. Who gets what is late does not depend on who keeps it.
        let goes = reason.is_none() || inbound.qos != QoS::ExactlyOnce && !failures.is_fenced();
        Outcome {
            live: live.filter(|_| goes),
            unstored: None,
            retained: failures.retained.is_none(),
            reason: reason.unwrap_or(ReasonCode::Success),
            refusal: failures.refusal(),
            full: failures.full(),
        }
    }
}

impl Failures {
    /// The worst of them.
    fn reason(&self) -> Option<ReasonCode> {
        let appends = self.appends.iter().map(|(_, error)| match error {
            AppendError::Full { .. } => ReasonCode::QuotaExceeded,
            AppendError::Invalid { .. } => ReasonCode::ImplementationSpecificError,
            AppendError::Failed(error) => reason_of(error),
        });
        let others = [self.inbox.as_deref().map(|(_, error)| error), self.retained.as_ref()];
        let all: SmallVec<[ReasonCode; 4]> =
            appends.chain(others.into_iter().flatten().map(reason_of)).collect();
        all.iter().copied().find(|reason| *reason != ReasonCode::QuotaExceeded).or(all.first().copied())
    }

    /// Whether it is not retained because its publisher has connected elsewhere, or this pod is gone.
    fn is_fenced(&self) -> bool {
        matches!(self.retained, Some(Error::Fenced))
    }

    /// Why a queue will never take the message.
    fn refusal(&self) -> Option<Box<str>> {
        let mut errors = self.appends.iter().map(|(_, error)| error);
        let invalid = errors.find(|error| matches!(error, AppendError::Invalid { .. }));
        invalid.map(|error| error.to_string().into())
    }

    /// Which queue has no room, and why.
    fn full(&self) -> Option<Box<str>> {
        let mut errors = self.appends.iter().map(|(_, error)| error);
        let full = errors.find(|error| matches!(error, AppendError::Full { .. }));
        full.map(|error| error.to_string().into())
    }

    /// Tries what failed once more.
    async fn retry(self, broker: &Arc<Broker>, message: &Arc<Message>, inbound: &Inbound) -> Self {
        let mut left = Self::default();
        let targets: SmallVec<[Arc<Object>; 1]> = self.appends.iter().map(|(o, _)| Arc::clone(o)).collect();
        // What was refused was certainly not stored, or its mark tells; a repeat asks for the mark.
        let publish = inbound.publish.map(|(id, _)| (id, true));
        match broker.core.append(&targets, message, &inbound.publisher, publish).await {
            Ok(receipt) => left.appends = receipt.settled().await,
            Err(error) => {
                let failed = targets.into_iter().map(|o| (o, AppendError::Failed(error.clone())));
                left.appends = failed.collect();
            }
        }
        if let Some((append, _)) = self.inbox.map(|inbox| *inbox) {
            let result = match broker.inbox_writer.append(append.clone()).await {
                Ok(completion) => completion.await,
                Err(error) => Err(error),
            };
            left.inbox = result.err().map(|error| Box::new((append, error)));
        }
        if self.retained.is_some() {
            left.retained = match broker.retain_message(inbound, message).await {
                Ok(completion) => completion.await.err(),
                Err(error) => Some(error),
            };
        }
        left
    }
}

/// What a publisher is told of an error.
pub(crate) fn reason_of(error: &Error) -> ReasonCode {
    match error {
        Error::Full(_) => ReasonCode::QuotaExceeded,
        Error::Closed => ReasonCode::ServerShuttingDown,
        Error::Store(_)
        | Error::Record(_)
        | Error::Damaged(_)
        | Error::Fenced
        | Error::NotOwner(_)
        | Error::Remote(_)
        | Error::NoOwner => ReasonCode::ImplementationSpecificError,
    }
}
