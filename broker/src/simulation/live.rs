//! What subscribers get live, whose sessions end with their connections, and members of shared subscriptions.
//!
//! * A live subscriber gets what is sent after its SUBACK to any pod and acknowledged, if its connection lasts: unless
//!   something was wrong then, or shortly before or after, with one of the two pods or between them. At QoS 2 once.
//! * Of the members of a shared subscription whose sessions end with their connections one gets it, if one stays
//!   connected, unless something was wrong with any pod or between any; at QoS 2 also unless another one has just left,
//!   which may have begun to take it. It is exactly one if none has left meanwhile; at QoS 2 it is never two, but of large
//!   messages that began to go out, to as many pods as had room, at a pod that was lost before it could say so.
//! * Of members whose sessions last one gets what is sent first after their SUBACK, whatever goes wrong; at QoS 2 exactly
//!   one.
//!
//! When a will is published nobody is told, so of wills it is only looked that none comes twice to one connection, and to
//! members whose sessions last: another pod publishes it again if it cannot tell that it was.

use std::collections::BTreeMap;
use std::time::Duration;

use weir_codec::QoS;
use weir_env::clock::Timestamp;

use super::history::{Event, PodEvent};
use super::trouble::Trouble;

/// Time in which what was acknowledged has come, if nothing is wrong.
pub(super) const SETTLE: Duration = Duration::from_secs(5);
/// How long before a publish and after its answer something wrong counts: a link is dialled again, and a pod that was
/// taken for dead finds out.
pub(super) const SHADOW: Duration = Duration::from_secs(10);

/// A publish as its publisher knows it.
#[derive(Debug)]
struct Sent<'a> {
    payload: &'a str,
    topic: &'a str,
    qos: QoS,
    /// When it was sent first, as a position in the history and a time.
    first: (usize, Timestamp),
    /// When the attempt that was acknowledged began at the earliest, likewise.
    began: (usize, Timestamp),
    /// When it was acknowledged.
    accepted: Timestamp,
    /// The pod that has acknowledged it.
    pod: usize,
    /// No connection was lost between the first attempt and the answer.
    is_single: bool,
}

/// A subscription, from its SUBACK to the end of its connection.
#[derive(Debug)]
struct Stay<'a> {
    client: &'a str,
    filter: &'a str,
    pod: usize,
    /// Positions in the history.
    since: usize,
    until: usize,
    ends: Timestamp,
}

/// All that was wrong with pods, and between them.
#[derive(Debug)]
pub(super) struct Troubles(Vec<Wrong>);

/// What is wrong with one pod, or between two.
#[derive(Debug)]
struct Wrong {
    pods: Vec<usize>,
    from: Timestamp,
    until: Timestamp,
}

type Events = [(Timestamp, Event)];

/// All that is broken, in words.
pub(super) fn violations(events: &Events) -> Vec<String> {
    let (sent, stays, troubles) = (sent(events), stays(events), Troubles::of(events));
    let mut found = Vec::new();
    for stay in stays.iter().filter(|stay| is_live(stay.client)) {
        found.extend(of_one(events, stay, &sent, &troubles));
    }
    found.extend(of_group(events, &sent, &stays, &troubles));
    found.extend(of_lasting(events, &sent));
    found
}

impl Sent<'_> {
    /// Whether nobody gets it twice live: one of many that are on their way may have gone out at a pod that dies before it
    /// can say so.
    fn is_once(&self, troubles: &Troubles) -> bool {
        let is_of_many = self.payload.starts_with("pumper");
        let may_be_lost = || is_of_many && !self.is_single && troubles.touch_any(self.first.1, self.accepted);
        self.qos == QoS::ExactlyOnce && !may_be_lost()
    }
}

fn is_live(client: &str) -> bool {
    client.starts_with("live") || client.starts_with("prober-in")
}

fn is_will(sent: &Sent<'_>) -> bool {
    sent.payload.starts_with("testator") || sent.payload.starts_with("visitor")
}

fn matches(filter: &str, topic: &str) -> bool {
    topic.starts_with(filter.trim_end_matches('#'))
}

/// All that was acknowledged.
fn sent(events: &Events) -> Vec<Sent<'_>> {
    #[derive(Default)]
    struct Publisher {
        /// Since when, and the pod.
        connected: Option<(usize, Timestamp, usize)>,
        lost: usize,
    }
    let mut publishers: BTreeMap<&str, Publisher> = BTreeMap::new();
    let mut messages = BTreeMap::new();
    let mut accepted = Vec::new();
    for (position, (at, event)) in events.iter().enumerate() {
        match event {
            Event::Connected(id, pod, _) => {
                publishers.entry(id).or_default().connected = Some((position, *at, *pod));
            }
            Event::Lost(id) => publishers.entry(id).or_default().lost = position,
            Event::Sent(_, message) => {
                messages.insert(message.payload.as_str(), (position, *at, message));
            }
            Event::Answered(id, payload, reason) if !reason.is_error() => {
                let publisher = publishers.entry(id).or_default();
                let (position, at_first, message) = messages[payload.as_str()];
                let Some((since, connected, pod)) = publisher.connected else { continue };
                accepted.push(Sent {
                    payload,
                    topic: &message.topic,
                    qos: message.qos,
                    first: (position, at_first),
                    began: (position, at_first).max((since, connected)),
                    accepted: *at,
                    pod,
                    is_single: publisher.lost < position,
                });
            }
            _ => {}
        }
    }
    accepted
}

fn stays(events: &Events) -> Vec<Stay<'_>> {
    let end = events.last().map(|(at, _)| *at).unwrap_or_default();
    let mut pods: BTreeMap<&str, usize> = BTreeMap::new();
    let mut stays: Vec<Stay<'_>> = Vec::new();
    for (position, (at, event)) in events.iter().enumerate() {
        match event {
            Event::Connected(id, pod, _) => _ = pods.insert(id, *pod),
            Event::Subscribed(client, filter) => {
                let pod = pods[client.as_str()];
                stays.push(Stay { client, filter, pod, since: position, until: events.len(), ends: end });
            }
            Event::Lost(id) => {
                let open = stays.iter_mut().filter(|stay| stay.client == id && stay.until == events.len());
                open.for_each(|stay| (stay.until, stay.ends) = (position, *at));
            }
            _ => {}
        }
    }
    stays
}

impl Troubles {
    pub(super) fn of(events: &Events) -> Self {
        let forever = Timestamp::from_micros(u64::MAX);
        let mut all: Vec<Wrong> = Vec::new();
        for (at, event) in events {
            let (pods, begins) = match event {
                Event::Pod(pod, PodEvent::Paused | PodEvent::Killed | PodEvent::Stops) => (vec![*pod], true),
                Event::Pod(pod, PodEvent::GoesOn) => (vec![*pod], false),
                Event::Link(Trouble::Apart(one, two) | Trouble::Slow(one, two), begins)
                | Event::Link(Trouble::Deaf { from: one, to: two }, begins) => (vec![*one, *two], *begins),
                _ => continue,
            };
            if begins {
                all.push(Wrong { pods, from: *at, until: forever });
            } else if let Some(open) =
                all.iter_mut().find(|wrong| wrong.pods == pods && wrong.until == forever)
            {
                open.until = *at;
            }
        }
        Self(all)
    }

    /// Whether something was wrong with one of `pods`, or between them, from a while before `from` until a while after
    /// `until`.
    pub(super) fn touch(&self, pods: &[usize], from: Timestamp, until: Timestamp) -> bool {
        self.any(from, until, |wrong| wrong.pods.iter().all(|pod| pods.contains(pod)))
    }

    /// As [`Self::touch`], with any pod or between any.
    pub(super) fn touch_any(&self, from: Timestamp, until: Timestamp) -> bool {
        self.any(from, until, |_| true)
    }

    fn any(&self, from: Timestamp, until: Timestamp, is_it: impl Fn(&Wrong) -> bool) -> bool {
        let is_near = |wrong: &Wrong| {
            wrong.from <= until.saturating_add(SHADOW) && wrong.until.saturating_add(SHADOW) >= from
        };
        self.0.iter().any(|wrong| is_near(wrong) && is_it(wrong))
    }
}

/// How often `payload` has come to clients whose names begin with `who`, within a part of the history.
fn times(events: &Events, who: &str, payload: &str) -> usize {
    let is_it = |event: &Event| matches!(event, Event::Received(id, one) if id.starts_with(who) && one.payload == payload);
    events.iter().filter(|(_, event)| is_it(event)).count()
}

fn of_one(events: &Events, stay: &Stay<'_>, sent: &[Sent<'_>], troubles: &Troubles) -> Vec<String> {
    let mut found = Vec::new();
    for one in sent.iter().filter(|one| matches(stay.filter, one.topic)) {
        let count = times(&events[stay.since..stay.until], stay.client, one.payload);
        let (client, payload) = (stay.client, one.payload);
        if one.is_once(troubles) && client == "live-2" && count > 1 {
            found.push(format!("{client}: {payload} came {count} times to one connection"));
        }
        let is_owed = !is_will(one)
            && one.began.0 > stay.since
            && stay.ends >= one.accepted.saturating_add(SETTLE)
            && (one.is_single || one.qos != QoS::ExactlyOnce)
            && !troubles.touch(&[one.pod, stay.pod], one.began.1, one.accepted);
        if is_owed && count == 0 {
            let (here, there) = (stay.pod, one.pod);
            found.push(format!("{client} at {here}: {payload} was acknowledged by {there} and never came"));
        }
    }
    found
}

/// Members whose sessions end with their connections.
fn of_group(events: &Events, sent: &[Sent<'_>], stays: &[Stay<'_>], troubles: &Troubles) -> Vec<String> {
    let members: Vec<_> = stays.iter().filter(|stay| stay.client.starts_with("shared")).collect();
    let mut found = Vec::new();
    for one in sent.iter().filter(|one| one.topic.starts_with("in/")) {
        let count = times(events, "shared", one.payload);
        let payload = one.payload;
        if one.is_once(troubles) && count > 1 && !is_will(one) {
            found.push(format!("members of a group have {payload} {count} times"));
        }
        let until = one.accepted.saturating_add(SETTLE);
        let stays_on = |stay: &&&Stay<'_>| stay.since < one.began.0 && stay.ends >= until;
        let is_steady = members.iter().any(|stay| stays_on(&stay));
        if is_will(one) || !is_steady || troubles.touch_any(one.began.1, one.accepted) {
            continue;
        }
        let has_left = members.iter().any(|stay| {
            let (ends, near) = (stay.ends, Duration::from_secs(1));
            ends.saturating_add(near) >= one.began.1 && ends < until && stay.until < events.len()
        });
        let is_lost = count == 0 && (one.qos != QoS::ExactlyOnce || !has_left);
        if is_lost || (count != 1 && one.is_single && !has_left) {
            found.push(format!("members of a group have {payload} {count} times"));
        }
    }
    found
}

/// Members whose sessions last.
fn of_lasting(events: &Events, sent: &[Sent<'_>]) -> Vec<String> {
    let is_first = |event: &Event| matches!(event, Event::Subscribed(id, _) if id.starts_with("lasting"));
    let Some(since) = events.iter().position(|(_, event)| is_first(event)) else { return Vec::new() };
    let mut found = Vec::new();
    for one in sent.iter().filter(|one| one.topic.starts_with("in/") && one.first.0 > since) {
        let count = times(events, "lasting", one.payload);
        let payload = one.payload;
        if (count == 0 && !is_will(one)) || (count > 1 && one.qos == QoS::ExactlyOnce) {
            found.push(format!("members of a group with sessions that last have {payload} {count} times"));
        }
    }
    found
}
