//! What must be true of a run: invariants 1 to 4 of the broker, as far as its clients can tell. That nobody but its owner
//! writes a log (5) is looked at where it is written (`gate`).

use std::collections::{BTreeMap, BTreeSet};

use weir_codec::QoS;
use weir_env::clock::Timestamp;

use super::history::{End, Event, Place};
use super::live;
use super::testators;

/// What publishers know of one message.
#[derive(Debug)]
struct Known {
    qos: QoS,
    topic: String,
    /// When it was sent first, as a position in the history.
    sent: usize,
    /// When it was acknowledged.
    accepted: Option<usize>,
}

/// All that is broken, in words.
pub(super) fn violations(events: &[(Timestamp, Event)], end: &End) -> Vec<String> {
    let known = published(events);
    let mut found = end.unseen.clone();
    if end.unseen.is_empty() {
        found.extend(in_stream(&known, end));
        found.extend(read(events, end));
        found.extend(read_again(events, end));
        found.extend(testators::violations(events, end));
    }
    found.extend(in_queue(&known, events, end));
    found.extend(in_inboxes(&known, events));
    found.extend(live::violations(events));
    found.extend(retained(&known, end));
    found
}

fn published(events: &[(Timestamp, Event)]) -> BTreeMap<&str, Known> {
    let mut known = BTreeMap::new();
    for (position, (_, event)) in events.iter().enumerate() {
        match event {
            Event::Sent(_, message) => {
                let (qos, topic) = (message.qos, message.topic.clone());
                let one = Known { qos, topic, sent: position, accepted: None };
                assert!(known.insert(message.payload.as_str(), one).is_none());
            }
            Event::Answered(_, payload, reason) if !reason.is_error() => {
                known.get_mut(payload.as_str()).unwrap().accepted = Some(position);
            }
            _ => {}
        }
    }
    known
}

fn is_for_all(known: &Known) -> bool {
    known.topic.starts_with("in/")
}

/// Everything accepted is among `found`; what is published at QoS 2 is there once.
fn once<'a>(
    known: &BTreeMap<&str, Known>,
    place: &str,
    found: impl Iterator<Item = &'a str>,
    is_expected: impl Fn(&Known) -> bool,
) -> Vec<String> {
    let mut times: BTreeMap<&str, usize> = BTreeMap::new();
    found.for_each(|payload| *times.entry(payload).or_default() += 1);
    let mut wrong = Vec::new();
    for (payload, one) in known.iter().filter(|(_, one)| is_for_all(one)) {
        let count = times.get(payload).copied().unwrap_or_default();
        if count == 0 && one.accepted.is_some() && is_expected(one) {
            wrong.push(format!("{place}: {payload} was acknowledged and is lost"));
        }
        if count > 1 && one.qos == QoS::ExactlyOnce {
            wrong.push(format!("{place}: {payload} is there {count} times"));
        }
    }
    let foreign = times.keys().filter(|payload| !known.contains_key(**payload));
    wrong.extend(foreign.map(|payload| format!("{place}: nobody has published {payload}")));
    wrong
}

fn in_stream(known: &BTreeMap<&str, Known>, end: &End) -> Vec<String> {
    let mut wrong = once(known, "stream", end.stream.values().map(String::as_str), |_| true);
    let mut next: BTreeMap<u8, u64> = BTreeMap::new();
    for (shard, offset) in end.stream.keys() {
        let expected = next.entry(*shard).or_default();
        if offset != expected {
            wrong.push(format!("stream: shard {shard} has {offset} after {expected}"));
        }
        *expected = offset + 1;
    }
    wrong
}

fn received<'a>(
    events: &'a [(Timestamp, Event)],
    client: &'a str,
) -> impl Iterator<Item = (usize, &'a super::history::Received)> {
    events.iter().enumerate().filter_map(move |(position, (_, event))| match event {
        Event::Received(id, received) if id.starts_with(client) => Some((position, received)),
        _ => None,
    })
}

/// Every message has come to a consumer, was told done, and none has been there twice.
fn in_queue(known: &BTreeMap<&str, Known>, events: &[(Timestamp, Event)], end: &End) -> Vec<String> {
    let mut places: BTreeMap<Place, &str> = BTreeMap::new();
    let mut wrong = Vec::new();
    for (_, received) in received(events, "consumer") {
        let at = received.at.expect("a message of a queue says where it is from");
        let first = *places.entry(at).or_insert(received.payload.as_str());
        if first != received.payload {
            wrong.push(format!("queue: {first} and {} are both at {at:?}", received.payload));
        }
    }
    wrong.extend(once(known, "queue", places.values().copied(), |_| true));
    let done: BTreeSet<&str> = events
        .iter()
        .filter_map(|(_, event)| match event {
            Event::Settled(id, payload, reason) if id.starts_with("consumer") && !reason.is_error() => {
                Some(payload.as_str())
            }
            _ => None,
        })
        .collect();
    let undone = places.values().filter(|payload| !done.contains(**payload));
    wrong.extend(undone.map(|payload| format!("queue: {payload} has ended, and nobody acknowledged it")));
    for (shard, [accepted, depth, acknowledged, ended]) in end.queue.iter().enumerate() {
        if depth + ended != *accepted || *depth != 0 || acknowledged != ended {
            wrong.push(format!(
                "queue: shard {shard} accepted {accepted}, holds {depth}, {acknowledged} of {ended} ended acknowledged"
            ));
        }
    }
    let accepted: u64 = end.queue.iter().map(|[accepted, ..]| accepted).sum();
    if accepted != places.len() as u64 {
        wrong.push(format!("queue: accepted {accepted} messages, and {} have come", places.len()));
    }
    wrong
}

/// Subscribers with a session get all that was sent after their SUBACK.
fn in_inboxes(known: &BTreeMap<&str, Known>, events: &[(Timestamp, Event)]) -> Vec<String> {
    let mut wrong = Vec::new();
    for id in ["inbox-1", "inbox-2"] {
        let is_it = |event: &Event| matches!(event, Event::Subscribed(client, _) if client == id);
        let since = events.iter().position(|(_, event)| is_it(event));
        let Some(since) = since else { continue };
        let payloads = received(events, id).map(|(_, received)| received.payload.as_str());
        let mut of_one = once(known, id, payloads, |one| one.sent > since);
        if id == "inbox-1" {
            // At QoS 1 some may come twice.
            of_one.retain(|what| !what.ends_with(" times"));
        }
        wrong.extend(of_one);
    }
    wrong
}

/// What readers have read is what is there; one with a session has read all, and so have the members of a group together.
fn read(events: &[(Timestamp, Event)], end: &End) -> Vec<String> {
    let mut wrong = Vec::new();
    for (_, received) in received(events, "reader").chain(received(events, "member")) {
        let at = received.at.expect("a message of a stream says where it is from");
        if end.stream.get(&at) != Some(&received.payload) {
            wrong.push(format!("stream: {at:?} was {} when it was read", received.payload));
        }
    }
    for who in ["reader-lasting", "member"] {
        let seen: BTreeSet<Place> = received(events, who).filter_map(|(_, one)| one.at).collect();
        let missing = end.stream.keys().filter(|at| !seen.contains(at));
        wrong.extend(missing.map(|at| format!("stream: {at:?} was never read by {who}")));
    }
    wrong
}

/// Whenever a group was moved to the beginning, its members have read everything since.
fn read_again(events: &[(Timestamp, Event)], end: &End) -> Vec<String> {
    let mut wrong = Vec::new();
    for (_, moved) in events {
        let Event::Moved(n) = moved else { continue };
        // Some of it may be read before it is told that the group was moved.
        let since = events.iter().position(|(_, event)| *event == Event::Moves(*n)).unwrap();
        let seen: BTreeSet<Place> =
            received(&events[since..], "member").filter_map(|(_, one)| one.at).collect();
        let missing = end.stream.keys().filter(|at| !seen.contains(at));
        wrong.extend(missing.map(|at| format!("stream: {at:?} was not read again after move {n}")));
    }
    wrong
}

/// The last that was acknowledged on a topic is retained, or one that came later.
fn retained(known: &BTreeMap<&str, Known>, end: &End) -> Vec<String> {
    let mut last: BTreeMap<&str, (usize, &str)> = BTreeMap::new();
    for (payload, one) in known.iter().filter(|(_, one)| one.topic.starts_with("keep/")) {
        if let Some(accepted) = one.accepted {
            let newest = last.entry(&one.topic).or_insert((accepted, payload));
            *newest = (*newest).max((accepted, payload));
        }
    }
    last.into_iter()
        .filter_map(|(topic, (accepted, payload))| {
            let kept = end.retained.get(topic).map(String::as_str);
            let is_late = kept.is_some_and(|kept| known.get(kept).is_some_and(|one| one.sent > accepted));
            (kept != Some(payload) && !is_late)
                .then(|| format!("{topic}: {payload} was acknowledged last, and {kept:?} is retained"))
        })
        .collect()
}
