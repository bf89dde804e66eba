//! Who gets what: the subscriptions of every session, live and persistent, matched against a topic.
//!
//! The table is in memory and owned here; the store's copy of persistent sessions' subscriptions is read into
//! it at the start. Among other pods, it knows what their clients want live (`pods`). It knows neither queues nor streams,
//! which have filters of their own.

mod pods;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use bytestring::ByteString;
use parking_lot::{Mutex, RwLock};
use smallvec::SmallVec;
use weir_codec::{Message, PacketId, QoS, SubscriptionOptions};
use weir_core::cluster::Want;
use weir_core::inbox::{InboxRoom, InboxTarget};
use weir_core::keyspace::PublishId;
use weir_core::keyspace::owner::PodId;
use weir_core::keyspace::session::Incarnation;
use weir_env::seed::HashMap;
use weir_topic::{MatchTrie, Subscription, TopicFilter};

use crate::mailbox::{Letter, Mailbox, Pushed, size_of};
use crate::metrics::{Dropped, Metrics};

pub(crate) use self::pods::{Forwarded, PodTarget, unplaced};

use self::pods::GroupPods;

/// Identifies a session in this process, clean or persistent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct SubscriberId(pub(crate) u64);

/// A session as the router knows it.
#[derive(Debug)]
pub(crate) struct Subscriber {
    pub(crate) id: SubscriberId,
    pub(crate) client_id: ByteString,
    /// Of a persistent session: its QoS 1 and 2 messages go to its inbox.
    pub(crate) incarnation: Option<Incarnation>,
    /// While it is connected.
    mailbox: RwLock<Option<Arc<Mailbox>>>,
    /// QoS 2 publishes of a persistent session that were answered and not released, over all its connections to
    /// this process: at most one for each packet id.
    received: Mutex<BTreeMap<PacketId, PublishId>>,
}

impl Subscriber {
    pub(crate) fn mailbox(&self) -> Option<Arc<Mailbox>> {
        self.mailbox.read().clone()
    }

    pub(crate) fn connect(&self, mailbox: Arc<Mailbox>) {
        *self.mailbox.write() = Some(mailbox);
    }

    /// Forgets the connection, if `mailbox` is still its mailbox.
    pub(crate) fn disconnect(&self, mailbox: &Arc<Mailbox>) {
        let mut connected = self.mailbox.write();
        if connected.as_ref().is_some_and(|current| Arc::ptr_eq(current, mailbox)) {
            *connected = None;
        }
    }

    /// A QoS 2 publish has been delivered to everybody: a repeat must not be.
    pub(crate) fn note_received(&self, packet_id: PacketId, publish: PublishId) {
        self.received.lock().insert(packet_id, publish);
    }

    /// The packet id of a QoS 2 publish is free again.
    pub(crate) fn forget_received(&self, packet_id: PacketId) {
        self.received.lock().remove(&packet_id);
    }

    /// What has been delivered to everybody and not released: from now on another pod knows it.
    pub(crate) fn take_received(&self) -> Vec<(u16, PublishId)> {
        let received = std::mem::take(&mut *self.received.lock());
        received.into_iter().map(|(id, publish)| (id.get(), publish)).collect()
    }

    /// Whether this publish has been delivered to everybody.
    pub(crate) fn has_received(&self, packet_id: PacketId, publish: PublishId) -> bool {
        self.received.lock().get(&packet_id) == Some(&publish)
    }

    /// Whether a message of `qos` is added to its inbox: one of QoS 1 or 2, for a persistent session.
    fn has_inbox_for(&self, qos: QoS, wish: &Wish) -> bool {
        self.incarnation.is_some() && qos.min(wish.options.qos) != QoS::AtMostOnce
    }

    fn is_connected(&self) -> bool {
        self.mailbox.read().is_some()
    }
}

/// How one subscription wants its messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Wish {
    pub(crate) options: SubscriptionOptions,
    pub(crate) identifier: Option<u32>,
}

#[derive(Debug)]
enum Route {
    Direct(Arc<Subscriber>, Wish),
    Group(Arc<Group>),
    /// Clients of another pod.
    Pod(PodId, Want),
}

/// One of a shared subscription.
type Member = (Arc<Subscriber>, Wish);

/// The members of a shared subscription.
#[derive(Debug)]
pub(crate) struct Group {
    text: ByteString,
    members: RwLock<Vec<Member>>,
    /// Other pods with members of their own.
    pods: GroupPods,
    turn: AtomicUsize,
}

/// Who gets a message of a shared subscription.
#[derive(Debug)]
enum Chosen {
    Member(Member),
    /// A member at another pod, which that one chooses.
    Pod(PodId),
}

/// What there is to know of members that are not here: which inboxes have room, and who is connected elsewhere.
type Rooms<'a> = (&'a InboxRoom, &'a Elsewhere);

/// A group that has members.
type Groups = HashMap<ByteString, (u64, Arc<Group>)>;

/// The subscriptions of all sessions.
#[derive(Debug)]
pub(crate) struct Router {
    routes: RwLock<MatchTrie<u64, Route>>,
    groups: Mutex<Groups>,
    next_id: AtomicU64,
    inboxes: InboxRoom,
    elsewhere: Elsewhere,
    metrics: Metrics,
}

/// Tells whether the client of a persistent session is connected to another pod; of what is not known it is not.
#[derive(Default)]
pub(crate) struct Elsewhere(Option<Box<IsElsewhere>>);

type IsElsewhere = dyn Fn(&str) -> bool + Send + Sync;

impl Elsewhere {
    pub(crate) fn new(is_elsewhere: impl Fn(&str) -> bool + Send + Sync + 'static) -> Self {
        Self(Some(Box::new(is_elsewhere)))
    }

    fn has(&self, client_id: &str) -> bool {
        self.0.as_ref().is_some_and(|is_elsewhere| is_elsewhere(client_id))
    }
}

impl fmt::Debug for Elsewhere {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Elsewhere").field(&self.0.is_some()).finish()
    }
}

/// One receiver of a message, all of its matching subscriptions taken together.
#[derive(Debug)]
struct Receiver {
    subscriber: Arc<Subscriber>,
    qos: QoS,
    retain: bool,
    identifiers: SmallVec<[u32; 1]>,
    /// The groups that chose it.
    shared: SmallVec<[Arc<Group>; 1]>,
}

/// Everybody a message is for.
#[derive(Debug)]
pub(crate) struct Matched {
    live: Vec<Receiver>,
    /// Inboxes it must be added to before its publisher is told.
    pub(crate) inboxes: SmallVec<[InboxTarget; 2]>,
    /// Other pods whose clients get it live.
    pub(crate) pods: Vec<PodTarget>,
    /// How often it has been handed from pod to pod.
    hops: u8,
}

/// Room for receivers that a thread keeps for its next message.
const SPARE_MAX: usize = 4096;

thread_local! {
    /// Empty, and with room for as many receivers as recent messages had: no message has to make it anew.
    static SPARE: Cell<Vec<Receiver>> = const { Cell::new(Vec::new()) };
}

impl Drop for Matched {
    fn drop(&mut self) {
        let mut spare = std::mem::take(&mut self.live);
        spare.clear();
        if (1..=SPARE_MAX).contains(&spare.capacity()) {
            SPARE.set(spare);
        }
    }
}

impl Matched {
    /// Whether nobody is.
    pub(crate) fn is_empty(&self) -> bool {
        self.live.is_empty() && self.inboxes.is_empty() && self.pods.is_empty()
    }
}

impl Router {
    pub(crate) fn new(metrics: Metrics, inboxes: InboxRoom) -> Self {
        let next_id = AtomicU64::new(1);
        let elsewhere = Elsewhere::default();
        Self { routes: RwLock::default(), groups: Mutex::default(), next_id, inboxes, elsewhere, metrics }
    }

    /// The same among other pods.
    pub(crate) fn among(self, elsewhere: Elsewhere) -> Self {
        Self { elsewhere, ..self }
    }

    /// Tells which inboxes have room.
    pub(crate) fn inboxes(&self) -> &InboxRoom {
        &self.inboxes
    }

    /// A session that can subscribe.
    pub(crate) fn subscriber(
        &self,
        client_id: ByteString,
        incarnation: Option<Incarnation>,
    ) -> Arc<Subscriber> {
        let id = SubscriberId(self.next_id.fetch_add(1, Ordering::Relaxed));
        let received = Mutex::default();
        Arc::new(Subscriber { id, client_id, incarnation, mailbox: RwLock::new(None), received })
    }

    /// Adds or replaces a subscription to a plain or shared filter. True if it is new.
    pub(crate) fn subscribe(
        &self,
        subscriber: &Arc<Subscriber>,
        text: &ByteString,
        to: &Subscription,
        wish: Wish,
    ) -> bool {
        let new = match to {
            Subscription::Plain(filter) => {
                let route = Route::Direct(Arc::clone(subscriber), wish);
                self.routes.write().insert(filter, subscriber.id.0, route).is_none()
            }
            Subscription::Shared { filter, .. } => self.join(subscriber, text, filter, wish),
            Subscription::Queue { .. }
            | Subscription::QueueByFilter { .. }
            | Subscription::Stream { .. }
            | Subscription::StreamByFilter { .. } => return false,
        };
        if new {
            self.metrics.subscriptions.inc();
            if matches!(to, Subscription::Shared { .. }) {
                self.metrics.shared_subscriptions.inc();
            }
        }
        new
    }

    fn join(
        &self,
        subscriber: &Arc<Subscriber>,
        text: &ByteString,
        filter: &TopicFilter,
        wish: Wish,
    ) -> bool {
        let mut groups = self.groups.lock();
        let group = self.group(&mut groups, text, filter);
        let mut members = group.members.write();
        if let Some(member) = members.iter_mut().find(|(member, _)| member.id == subscriber.id) {
            member.1 = wish;
            return false;
        }
        members.push((Arc::clone(subscriber), wish));
        true
    }

    /// The group with this text, made if need be.
    fn group<'a>(&self, groups: &'a mut Groups, text: &ByteString, filter: &TopicFilter) -> &'a Arc<Group> {
        let (_, group) = groups.entry(text.clone()).or_insert_with(|| {
            let id = self.next_id.fetch_add(1, Ordering::Relaxed);
            let group = Arc::new(Group::new(text.clone()));
            self.routes.write().insert(filter, id, Route::Group(Arc::clone(&group)));
            (id, group)
        });
        group
    }

    /// Removes a subscription. False if there was none.
    pub(crate) fn unsubscribe(
        &self,
        subscriber: SubscriberId,
        text: &ByteString,
        from: &Subscription,
    ) -> bool {
        let removed = match from {
            Subscription::Plain(filter) => self.routes.write().remove(filter, &subscriber.0).is_some(),
            Subscription::Shared { filter, .. } => self.leave(subscriber, text, filter),
            Subscription::Queue { .. }
            | Subscription::QueueByFilter { .. }
            | Subscription::Stream { .. }
            | Subscription::StreamByFilter { .. } => return false,
        };
        if removed {
            self.metrics.subscriptions.dec();
            if matches!(from, Subscription::Shared { .. }) {
                self.metrics.shared_subscriptions.dec();
            }
        }
        removed
    }

    fn leave(&self, subscriber: SubscriberId, text: &ByteString, filter: &TopicFilter) -> bool {
        let mut groups = self.groups.lock();
        let Some((id, group)) = groups.get(text) else { return false };
        let mut members = group.members.write();
        let before = members.len();
        members.retain(|(member, _)| member.id != subscriber);
        let removed = members.len() != before;
        let empty = members.is_empty() && group.pods.is_empty();
        // Whoever matches holds the routes and wants the members: let go of these first.
        drop(members);
        if empty {
            self.routes.write().remove(filter, id);
            groups.remove(text);
        }
        removed
    }

    /// Everybody a message published to `message.topic` is for. `publisher` is who must not get it back under
    /// No Local.
    pub(crate) fn matches(
        &self,
        message: &Message,
        qos: QoS,
        retain: bool,
        publisher: Option<SubscriberId>,
    ) -> Matched {
        let (mut receivers, mut pods) = (SPARE.take(), Vec::new());
        let mut add = |subscriber: &Arc<Subscriber>, wish: &Wish, shared: Option<&Arc<Group>>| {
            if wish.options.no_local && publisher == Some(subscriber.id) {
                return;
            }
            receivers.push(Receiver {
                subscriber: Arc::clone(subscriber),
                qos: qos.min(wish.options.qos),
                retain: retain && wish.options.retain_as_published,
                identifiers: wish.identifier.into_iter().collect(),
                shared: shared.into_iter().cloned().collect(),
            });
        };
        self.routes.read().for_each_match(&message.topic, |_, route| match route {
            Route::Direct(subscriber, wish) => add(subscriber, wish, None),
            Route::Group(group) => match group.choose(message, qos, (&self.inboxes, &self.elsewhere)) {
                Some(Chosen::Member((subscriber, wish))) => add(&subscriber, &wish, Some(group)),
                Some(Chosen::Pod(pod)) => pods::add(&mut pods, pod, Some(&group.text)),
                None => {}
            },
            Route::Pod(pod, want) if want.weight(qos.as_u8()) > 0 => pods::add(&mut pods, *pod, None),
            Route::Pod(..) => {}
        });
        merge(&mut receivers);
        let mut matched = split(receivers);
        matched.pods = pods;
        matched
    }

    /// Puts a live message into the mailboxes of its receivers. Returns it for each group whose member has left since.
    pub(crate) fn deliver(
        &self,
        matched: &Matched,
        message: &Arc<Message>,
        expires_at: Option<std::time::Instant>,
        span: &tracing::Span,
    ) -> Vec<Letter> {
        let mut left = Vec::new();
        for receiver in &matched.live {
            let mailbox = receiver.subscriber.mailbox();
            if mailbox.is_none() && receiver.shared.is_empty() {
                continue;
            }
            let letter = Letter {
                message: Arc::clone(message),
                qos: receiver.qos,
                retain: receiver.retain,
                subscription_identifiers: receiver.identifiers.clone(),
                expires_at,
                shared: receiver.shared.clone(),
                hops: matched.hops,
                span: span.clone(),
            };
            match mailbox {
                Some(mailbox) => left.extend(self.push(&mailbox, letter)),
                None => left.push(letter),
            }
        }
        left
    }

    /// The next member of `group` that has room for a message of `qos`.
    pub(crate) fn heir(&self, group: &Group, message: &Message, qos: QoS) -> Option<Member> {
        group.with_room(group.turn(), message, qos, (&self.inboxes, &self.elsewhere))
    }

    /// Offers a message to a session; true if it is connected and has room.
    pub(crate) fn offer(&self, subscriber: &Subscriber, letter: Letter) -> bool {
        subscriber.mailbox().is_some_and(|mailbox| mailbox.offer(letter))
    }

    /// Adds a message to a mailbox. Returns it if another member of a group is to have it.
    fn push(&self, mailbox: &Mailbox, letter: Letter) -> Option<Letter> {
        let shared = (!letter.shared.is_empty()).then(|| letter.clone());
        let dropped = &self.metrics.messages_dropped;
        match mailbox.push(letter) {
            Pushed::Added { dropped: 0 } => {}
            Pushed::Added { dropped: n } => dropped.add(Dropped::OutboxFull, n),
            Pushed::Refused => dropped.inc(Dropped::OutboxFull),
            Pushed::Shed { dropped: n } => dropped.add(Dropped::ClientShed, n),
            Pushed::Gone => return shared,
        }
        None
    }
}

impl Group {
    fn new(text: ByteString) -> Self {
        Self { text, members: RwLock::default(), pods: GroupPods::default(), turn: AtomicUsize::new(0) }
    }

    /// The next member in turn: one with room for `message`, else one with whom it can wait, else one that is
    /// connected. Other pods have their turns, as many as members that get it live there.
    fn choose(&self, message: &Message, qos: QoS, rooms: Rooms<'_>) -> Option<Chosen> {
        let turn = self.turn();
        if !self.pods.is_empty()
            && let Some(pod) = self.pods.in_turn(turn, qos, || self.weight(qos, rooms.1))
        {
            return Some(Chosen::Pod(pod));
        }
        self.with_room(turn, message, qos, rooms)
            .or_else(|| self.next(turn, |(member, wish)| member.has_inbox_for(qos, wish)))
            .or_else(|| self.next(turn, |(member, _)| member.is_connected()))
            .map(Chosen::Member)
    }

    /// The next member with room: one that is connected, here or by its inbox elsewhere, else one with whom it can wait.
    fn with_room(&self, turn: usize, message: &Message, qos: QoS, rooms: Rooms<'_>) -> Option<Member> {
        let (inboxes, elsewhere) = rooms;
        let inbox_has_room = |member: &Subscriber| {
            let bytes = size_of(message) as u64;
            member.incarnation.is_some_and(|session| inboxes.has_room(&member.client_id, session, bytes))
        };
        let takes_it = |(member, wish): &Member| match (member.mailbox(), member.has_inbox_for(qos, wish)) {
            (Some(mail), false) => mail.has_room_for(message),
            (Some(mail), true) => mail.has_room_for(message) && inbox_has_room(member),
            (None, true) => elsewhere.has(&member.client_id) && inbox_has_room(member),
            (None, false) => false,
        };
        self.next(turn, takes_it)
            // Somebody who is away gets it only if it can wait in an inbox.
            .or_else(|| {
                self.next(turn, |(member, wish)| member.has_inbox_for(qos, wish) && inbox_has_room(member))
            })
    }

    fn turn(&self) -> usize {
        self.turn.fetch_add(1, Ordering::Relaxed)
    }

    /// The first from `turn` on.
    fn next(&self, turn: usize, is_it: impl Fn(&Member) -> bool) -> Option<Member> {
        let members = self.members.read();
        let (before, from) = members.split_at_checked(turn.checked_rem(members.len())?)?;
        from.iter().chain(before).find(|member| is_it(member)).cloned()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.members.read().is_empty()
    }
}

/// One receiver per session, with the highest QoS and all identifiers of its subscriptions [MQTT-3.3.4-2].
fn merge(receivers: &mut Vec<Receiver>) {
    receivers.sort_unstable_by_key(|receiver| receiver.subscriber.id);
    receivers.dedup_by(|next, first| {
        let same = next.subscriber.id == first.subscriber.id;
        if same {
            first.qos = first.qos.max(next.qos);
            first.retain |= next.retain;
            first.identifiers.extend(next.identifiers.drain(..));
            first.shared.extend(next.shared.drain(..));
        }
        same
    });
}

/// Sorts receivers into those that get the message from memory and those that get it from their inbox.
fn split(mut receivers: Vec<Receiver>) -> Matched {
    let mut inboxes = SmallVec::new();
    receivers.retain(|receiver| match receiver.subscriber.incarnation {
        Some(incarnation) if receiver.qos != QoS::AtMostOnce => {
            inboxes.push(InboxTarget {
                client_id: receiver.subscriber.client_id.clone(),
                incarnation,
                qos: receiver.qos.as_u8(),
                retain: receiver.retain,
                subscription_ids: receiver.identifiers.iter().copied().collect(),
            });
            false
        }
        _ => receiver.subscriber.is_connected(),
    });
    Matched { live: receivers, inboxes, pods: Vec::new(), hops: 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wish(qos: QoS, identifier: Option<u32>) -> Wish {
        Wish { options: SubscriptionOptions { qos, ..SubscriptionOptions::default() }, identifier }
    }

    fn message(topic: &str) -> Message {
        let topic = weir_topic::TopicName::parse(topic.to_owned()).unwrap();
        Message { topic, payload: Default::default(), properties: Default::default() }
    }

    struct Fixture {
        router: Router,
        registry: prometheus_client::registry::Registry,
    }

    impl Fixture {
        fn new() -> Self {
            let mut registry = prometheus_client::registry::Registry::default();
            let metrics = Metrics::register(&mut registry);
            Self { router: Router::new(metrics, InboxRoom::default()), registry }
        }

        fn connected(&self, name: &str, incarnation: Option<u64>) -> (Arc<Subscriber>, Arc<Mailbox>) {
            let incarnation = incarnation.map(Incarnation);
            let subscriber = self.router.subscriber(name.to_owned().into(), incarnation);
            let mailbox = Arc::new(Mailbox::new(1 << 20));
            subscriber.connect(Arc::clone(&mailbox));
            (subscriber, mailbox)
        }

        fn subscribe(&self, subscriber: &Arc<Subscriber>, filter: &str, wish: Wish) -> bool {
            let text = ByteString::from(filter.to_owned());
            let to = Subscription::parse(text.clone()).unwrap();
            self.router.subscribe(subscriber, &text, &to, wish)
        }

        fn publish(&self, topic: &str, publisher: Option<SubscriberId>) -> Matched {
            let message = Arc::new(message(topic));
            let matched = self.router.matches(&message, QoS::AtLeastOnce, false, publisher);
            assert!(self.router.deliver(&matched, &message, None, &tracing::Span::none()).is_empty());
            matched
        }
    }

    #[test]
    fn overlapping_subscriptions_are_one_delivery() {
        let fixture = Fixture::new();
        let (client, mailbox) = fixture.connected("c", None);
        assert!(fixture.subscribe(&client, "a/+", wish(QoS::AtMostOnce, Some(1))));
        assert!(fixture.subscribe(&client, "a/#", wish(QoS::AtLeastOnce, Some(2))));
        assert!(!fixture.subscribe(&client, "a/#", wish(QoS::AtLeastOnce, Some(3))));
        fixture.publish("a/b", None);
        let letter = mailbox.pop().unwrap();
        let mut identifiers = letter.subscription_identifiers.to_vec();
        identifiers.sort_unstable();
        assert_eq!((letter.qos, identifiers), (QoS::AtLeastOnce, vec![1, 3]));
        assert!(mailbox.pop().is_none());
        assert!(!fixture.registry_text().is_empty());
    }

    #[test]
    fn no_local_spares_the_publisher_alone() {
        let fixture = Fixture::new();
        let (client, mailbox) = fixture.connected("c", None);
        let mut quiet = wish(QoS::AtLeastOnce, None);
        quiet.options.no_local = true;
        fixture.subscribe(&client, "a", quiet);
        assert!(fixture.publish("a", Some(client.id)).is_empty());
        fixture.publish("a", None);
        assert!(mailbox.pop().is_some());
    }

    #[test]
    fn a_shared_subscription_takes_turns_and_skips_who_is_away() {
        let fixture = Fixture::new();
        let (a, a_mail) = fixture.connected("a", None);
        let (b, b_mail) = fixture.connected("b", None);
        for client in [&a, &b] {
            assert!(fixture.subscribe(client, "$share/g/t", wish(QoS::AtMostOnce, None)));
        }
        (0..4).for_each(|_| drop(fixture.publish("t", None)));
        let count = |mailbox: &Mailbox| std::iter::from_fn(|| mailbox.pop()).count();
        assert_eq!((count(&a_mail), count(&b_mail)), (2, 2));
        a.disconnect(&a_mail);
        (0..4).for_each(|_| drop(fixture.publish("t", None)));
        assert_eq!(count(&b_mail), 4);
        let text = ByteString::from_static("$share/g/t");
        let from = Subscription::parse(text.clone()).unwrap();
        assert!(fixture.router.unsubscribe(a.id, &text, &from));
        assert!(fixture.router.unsubscribe(b.id, &text, &from));
        assert!(!fixture.router.unsubscribe(b.id, &text, &from));
        assert!(fixture.publish("t", None).is_empty());
        assert!(fixture.router.routes.read().is_empty());
    }

    #[test]
    fn persistent_sessions_get_qos_1_from_their_inbox_connected_or_not() {
        let fixture = Fixture::new();
        let (client, mailbox) = fixture.connected("c", Some(7));
        fixture.subscribe(&client, "t", wish(QoS::ExactlyOnce, None));
        let matched = fixture.publish("t", None);
        assert_eq!((matched.inboxes.len(), matched.inboxes[0].qos), (1, 1));
        assert!(mailbox.pop().is_none());
        client.disconnect(&mailbox);
        assert_eq!(fixture.publish("t", None).inboxes.len(), 1);
    }

    impl Fixture {
        fn registry_text(&self) -> String {
            let mut text = String::new();
            prometheus_client::encoding::text::encode(&mut text, &self.registry).unwrap();
            text
        }
    }
}
