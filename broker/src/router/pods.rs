//! What clients of other pods want live, among the routes: where a message is to be forwarded, and what one that has been
//! forwarded is for here. How it gets there is not known here.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytestring::ByteString;
use parking_lot::RwLock;
use smallvec::SmallVec;
use weir_codec::{Message, QoS};
use weir_core::cluster::{InterestKey, Want};
use weir_core::keyspace::owner::PodId;
use weir_topic::TopicFilter;

use super::{
    Elsewhere, Group, Matched, Member, Receiver, Route, Router, SPARE, Subscriber, Wish, merge, split,
};
use crate::mailbox::Letter;

/// Another pod whose clients get a message live.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct PodTarget {
    pub(crate) pod: PodId,
    /// The shared subscriptions of which one of its members gets it.
    pub(crate) groups: Vec<ByteString>,
}

/// Has `pod` get a message, for one of its members if that is because of a group.
pub(super) fn add(pods: &mut Vec<PodTarget>, pod: PodId, group: Option<&ByteString>) {
    let groups = group.cloned();
    match pods.iter_mut().find(|target| target.pod == pod) {
        Some(target) => target.groups.extend(groups),
        None => pods.push(PodTarget { pod, groups: groups.into_iter().collect() }),
    }
}

/// For whom a message is that another pod has forwarded.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Forwarded<'a> {
    /// Who must not get it back under No Local.
    pub(crate) publisher: Option<&'a str>,
    /// The shared subscriptions that are to have a member chosen here.
    pub(crate) groups: &'a [ByteString],
    /// How often these have been handed from pod to pod. Other subscribers get it the first time alone.
    pub(crate) hops: u8,
}

/// Other pods with members of a group.
#[derive(Debug, Default)]
pub(super) struct GroupPods {
    /// There are some: without a lock, for whoever runs alone.
    is_any: AtomicBool,
    by_pod: RwLock<Vec<(PodId, Want)>>,
}

impl GroupPods {
    fn set(&self, pod: PodId, want: Want) {
        let mut by_pod = self.by_pod.write();
        by_pod.retain(|(other, _)| *other != pod);
        if !want.is_none() {
            by_pod.push((pod, want));
        }
        self.is_any.store(!by_pod.is_empty(), Ordering::Relaxed);
    }

    pub(super) fn is_empty(&self) -> bool {
        !self.is_any.load(Ordering::Relaxed)
    }

    /// The pod whose turn it is, if it is not that of a member `here`: each pod has as many as members.
    pub(super) fn in_turn(&self, turn: usize, qos: QoS, here: impl FnOnce() -> usize) -> Option<PodId> {
        let by_pod = self.by_pod.read();
        let weight = |want: &Want| usize::try_from(want.weight(qos.as_u8())).unwrap_or(usize::MAX);
        let weights = by_pod.iter().map(|(pod, want)| (*pod, weight(want)));
        let here = here();
        let total = weights.clone().fold(here, |total, (_, weight)| total.saturating_add(weight));
        let mut at = turn.checked_rem(total)?.checked_sub(here)?;
        for (pod, weight) in weights {
            match at.checked_sub(weight) {
                None => return Some(pod),
                Some(rest) => at = rest,
            }
        }
        None
    }
}

impl Router {
    /// A name among the routes for another pod.
    pub(crate) fn pod_key(&self) -> u64 {
        self.next_id.fetch_add(1, Ordering::Relaxed)
    }

    /// Clients of `pod`, which has the name `key` among the routes, want this from now on.
    pub(crate) fn set_interest(&self, key: u64, pod: PodId, of: &InterestKey, want: Want) {
        // What another version of Weir takes for a filter is none here.
        let Ok(filter) = TopicFilter::parse(of.filter.clone()) else { return };
        let Some(group) = &of.group else {
            let mut routes = self.routes.write();
            if want.is_none() {
                routes.remove(&filter, &key);
            } else {
                routes.insert(&filter, key, Route::Pod(pod, want));
            }
            return;
        };
        let text = ByteString::from(format!("$share/{group}/{filter}", filter = of.filter));
        let mut groups = self.groups.lock();
        if !want.is_none() {
            self.group(&mut groups, &text, &filter).pods.set(pod, want);
            return;
        }
        let Some((id, group)) = groups.get(&text) else { return };
        group.pods.set(pod, want);
        if group.pods.is_empty() && group.is_empty() {
            self.routes.write().remove(&filter, id);
            groups.remove(&text);
        }
    }

    /// Everybody here who gets a forwarded message live. What inboxes are to have, the pod that has forwarded it sees to.
    /// Returns also the groups that have nobody for it here.
    pub(crate) fn matches_forwarded(
        &self,
        message: &Message,
        qos: QoS,
        retain: bool,
        forwarded: Forwarded<'_>,
    ) -> (Matched, Vec<Arc<Group>>) {
        let Forwarded { publisher, groups, hops } = forwarded;
        let (mut receivers, mut unplaced) = (SPARE.take(), Vec::new());
        let mut add = |subscriber: &Arc<Subscriber>, wish: &Wish, shared: Option<&Arc<Group>>| {
            if wish.options.no_local && publisher == Some(&*subscriber.client_id) {
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
            Route::Direct(subscriber, wish) if hops == 0 => add(subscriber, wish, None),
            Route::Group(group) if groups.contains(&group.text) => match group.choose_live(message, qos) {
                Some((subscriber, wish)) => add(&subscriber, &wish, Some(group)),
                None => unplaced.push(Arc::clone(group)),
            },
            Route::Direct(..) | Route::Group(_) | Route::Pod(..) => {}
        });
        merge(&mut receivers);
        let mut matched = split(receivers);
        matched.inboxes.clear();
        matched.hops = hops;
        (matched, unplaced)
    }
}

impl Group {
    /// `$share/GROUP/FILTER`.
    pub(crate) fn text(&self) -> &ByteString {
        &self.text
    }

    /// A pod with members of the group; whether there are any is known without a lock.
    pub(crate) fn other_pod(&self, qos: QoS) -> Option<PodId> {
        if self.pods.is_empty() {
            return None;
        }
        self.pods.in_turn(self.turn(), qos, || 0)
    }

    /// How many members that are connected can have a message of `qos` from here: live, or elsewhere by their inboxes.
    pub(super) fn weight(&self, qos: QoS, elsewhere: &Elsewhere) -> usize {
        let takes_it = |(member, wish): &&Member| {
            member.is_connected() || (member.has_inbox_for(qos, wish) && elsewhere.has(&member.client_id))
        };
        self.members.read().iter().filter(takes_it).count()
    }

    /// The next member that gets a message of `qos` live, one with room if there is one.
    fn choose_live(&self, message: &Message, qos: QoS) -> Option<Member> {
        let turn = self.turn();
        let is_live = |(member, wish): &Member| member.is_connected() && !member.has_inbox_for(qos, wish);
        let has_room = |member: &Member| member.0.mailbox().is_some_and(|mail| mail.has_room_for(message));
        self.next(turn, |member| is_live(member) && has_room(member)).or_else(|| self.next(turn, is_live))
    }
}

/// A message that is to go to another member of `group` than those here.
pub(crate) fn unplaced(
    group: &Arc<Group>,
    message: &Arc<Message>,
    (qos, retain): (QoS, bool),
    expires_at: Option<std::time::Instant>,
    hops: u8,
) -> Letter {
    Letter {
        message: Arc::clone(message),
        qos,
        retain,
        subscription_identifiers: SmallVec::new(),
        expires_at,
        shared: SmallVec::from_iter([Arc::clone(group)]),
        hops,
        span: tracing::Span::none(),
    }
}

#[cfg(test)]
mod tests {
    use weir_codec::SubscriptionOptions;
    use weir_core::inbox::InboxRoom;
    use weir_core::keyspace::session::Incarnation;
    use weir_topic::{Subscription, TopicName};

    use super::*;
    use crate::mailbox::Mailbox;
    use crate::metrics::Metrics;

    const B: PodId = PodId([2; 16]);
    const C: PodId = PodId([3; 16]);

    fn router() -> Router {
        let mut registry = prometheus_client::registry::Registry::default();
        Router::new(Metrics::register(&mut registry), InboxRoom::default())
    }

    fn message(topic: &str) -> Message {
        let topic = TopicName::parse(topic.to_owned()).unwrap();
        Message { topic, payload: Default::default(), properties: Default::default() }
    }

    fn want(router: &Router, pod: PodId, group: Option<&str>, filter: &str, live: u32, qos0: u32) {
        let of = InterestKey { group: group.map(Into::into), filter: filter.into() };
        router.set_interest(u64::from(pod.0[0]) << 32, pod, &of, Want { live, qos0 });
    }

    fn client(router: &Router, id: &str, incarnation: Option<u64>) -> (Arc<Subscriber>, Arc<Mailbox>) {
        let subscriber = router.subscriber(id.into(), incarnation.map(Incarnation));
        let mailbox = Arc::new(Mailbox::new(1 << 20));
        subscriber.connect(Arc::clone(&mailbox));
        (subscriber, mailbox)
    }

    fn subscribe(router: &Router, subscriber: &Arc<Subscriber>, to: &str, options: SubscriptionOptions) {
        let text = ByteString::from(to);
        let to = Subscription::parse(text.clone()).unwrap();
        router.subscribe(subscriber, &text, &to, Wish { options, identifier: None });
    }

    fn qos(qos: QoS) -> SubscriptionOptions {
        SubscriptionOptions { qos, ..SubscriptionOptions::default() }
    }

    /// To which pods a publish goes, and for which groups.
    fn targets(router: &Router, topic: &str, qos: QoS) -> Vec<(PodId, Vec<String>)> {
        let mut matched = router.matches(&message(topic), qos, false, None);
        let mut pods: Vec<_> = std::mem::take(&mut matched.pods)
            .into_iter()
            .map(|to| (to.pod, to.groups.iter().map(ToString::to_string).collect()))
            .collect();
        pods.sort();
        pods
    }

    #[test]
    fn a_publish_goes_once_to_each_pod_that_wants_it() {
        let router = router();
        want(&router, B, None, "a/#", 1, 0);
        want(&router, B, None, "a/+", 1, 0);
        want(&router, C, None, "a/b", 0, 1);
        assert_eq!(targets(&router, "a/b", QoS::AtMostOnce), [(B, vec![]), (C, vec![])]);
        assert_eq!(targets(&router, "a/b", QoS::AtLeastOnce), [(B, vec![])], "inboxes take it");
        assert_eq!(targets(&router, "b", QoS::AtMostOnce), []);
        want(&router, B, None, "a/#", 0, 0);
        want(&router, B, None, "a/+", 0, 0);
        want(&router, C, None, "a/b", 0, 0);
        assert_eq!(targets(&router, "a/b", QoS::AtMostOnce), []);
        assert!(router.routes.read().is_empty());
    }

    #[test]
    fn a_group_gives_each_pod_as_much_as_it_has_members() {
        let router = router();
        let (here, mailbox) = client(&router, "here", None);
        subscribe(&router, &here, "$share/g/t", qos(QoS::AtLeastOnce));
        want(&router, B, Some("g"), "t", 2, 0);
        want(&router, C, Some("g"), "t", 1, 4);
        let count = |at: QoS, n: usize| {
            let all: Vec<_> = (0..n).flat_map(|_| targets(&router, "t", at)).collect();
            let of = |pod| all.iter().filter(|(to, groups)| *to == pod && groups == &["$share/g/t"]).count();
            (n - all.len(), of(B), of(C))
        };
        assert_eq!(count(QoS::AtLeastOnce, 40), (10, 20, 10));
        assert_eq!(count(QoS::AtMostOnce, 80), (10, 20, 50));
        here.disconnect(&mailbox);
        assert_eq!(count(QoS::AtLeastOnce, 30), (0, 20, 10), "who is away and has no inbox gets nothing");
        want(&router, B, Some("g"), "t", 0, 0);
        want(&router, C, Some("g"), "t", 0, 0);
        let text = ByteString::from_static("$share/g/t");
        assert!(router.unsubscribe(here.id, &text, &Subscription::parse(text.clone()).unwrap()));
        want(&router, B, Some("g"), "t", 1, 0);
        assert_eq!(count(QoS::AtMostOnce, 1), (0, 1, 0), "nobody here");
        want(&router, B, Some("g"), "t", 0, 0);
        assert!(router.routes.read().is_empty() && router.groups.lock().is_empty());
    }

    #[test]
    fn a_member_with_an_inbox_that_is_connected_elsewhere_has_its_turn() {
        let away = Arc::new(AtomicBool::new(false));
        let is_away = Arc::clone(&away);
        let elsewhere = Elsewhere::new(move |client| client == "inbox" && !is_away.load(Ordering::Relaxed));
        let router = router().among(elsewhere);
        let (here, mailbox) = client(&router, "here", None);
        subscribe(&router, &here, "$share/g/t", qos(QoS::AtLeastOnce));
        let inbox = router.subscriber("inbox".into(), Some(Incarnation(1)));
        subscribe(&router, &inbox, "$share/g/t", qos(QoS::AtLeastOnce));
        let count = |n: usize| {
            let (mut live, mut inboxes, mut pods) = (0, 0, 0);
            for _ in 0..n {
                let mut matched = router.matches(&message("t"), QoS::AtLeastOnce, false, None);
                live += matched.live.len();
                inboxes += matched.inboxes.len();
                pods += std::mem::take(&mut matched.pods).len();
            }
            (live, inboxes, pods)
        };
        assert_eq!(count(20), (10, 10, 0));
        want(&router, B, Some("g"), "t", 2, 1);
        assert_eq!(count(40), (10, 10, 20), "as many as members");
        away.store(true, Ordering::Relaxed);
        assert_eq!(count(30), (10, 0, 20), "who is away waits until nobody else is there");
        here.disconnect(&mailbox);
        assert_eq!(count(10), (0, 0, 10));
        want(&router, B, Some("g"), "t", 0, 0);
        assert_eq!(count(10), (0, 10, 0));
    }

    #[test]
    fn what_is_forwarded_goes_to_live_subscribers_here_and_no_further() {
        let router = router();
        want(&router, C, None, "t", 1, 0);
        let (plain, _m) = client(&router, "plain", None);
        subscribe(&router, &plain, "t", qos(QoS::AtLeastOnce));
        let (own, _n) = client(&router, "own", None);
        subscribe(&router, &own, "t", SubscriptionOptions { no_local: true, ..qos(QoS::AtLeastOnce) });
        let (inbox, _o) = client(&router, "inbox", Some(1));
        subscribe(&router, &inbox, "t", qos(QoS::AtLeastOnce));
        let (member, _p) = client(&router, "member", None);
        subscribe(&router, &member, "$share/g/t", qos(QoS::AtLeastOnce));
        let (absent, mailbox) = client(&router, "absent", None);
        subscribe(&router, &absent, "$share/h/t", qos(QoS::AtLeastOnce));
        absent.disconnect(&mailbox);
        let receivers = |at, groups: &[&str], hops| {
            let groups: Vec<ByteString> = groups.iter().map(|group| ByteString::from(*group)).collect();
            let forwarded = Forwarded { publisher: Some("own"), groups: &groups, hops };
            let (mut matched, left) = router.matches_forwarded(&message("t"), at, false, forwarded);
            assert!(matched.pods.is_empty() && matched.inboxes.is_empty());
            let names =
                std::mem::take(&mut matched.live).into_iter().map(|to| to.subscriber.client_id.to_string());
            let mut names: Vec<_> = names.collect();
            names.sort();
            let left: Vec<_> = left.iter().map(|group| group.text().to_string()).collect();
            (names.join(" "), left.join(" "))
        };
        let of = |names: &str, left: &str| (names.to_owned(), left.to_owned());
        assert_eq!(receivers(QoS::AtLeastOnce, &[], 0), of("plain", ""), "groups are chosen by who forwards");
        assert_eq!(receivers(QoS::AtMostOnce, &[], 0), of("inbox plain", ""));
        assert_eq!(receivers(QoS::AtLeastOnce, &["$share/g/t"], 0), of("member plain", ""));
        let both = ["$share/g/t", "$share/h/t", "$share/x/t"];
        assert_eq!(receivers(QoS::AtLeastOnce, &both, 1), of("member", "$share/h/t"));
    }
}
