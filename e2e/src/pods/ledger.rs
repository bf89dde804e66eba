//! What the clients of a cluster have seen, and what must be true of it. No client, no pod: only facts and rules.
//!
//! A payload is `qos/publisher/number`, each published by one publisher, so that it names its message.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;

use super::foreign::TOPICS;
use super::keepers::Kept;

/// Where a message is stored: shard and offset.
pub(super) type Place = (u64, u64);

/// Problems told of in full; the rest are counted.
const TOLD: usize = 20;

/// One publish, from when it was first sent to when its publisher was told that it is safe.
#[derive(Clone, Copy, Debug)]
pub(super) struct Published {
    pub(super) publisher: usize,
    pub(super) sent: Instant,
    pub(super) acknowledged: Instant,
}

/// Everything seen so far.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    /// Publishes that were acknowledged with success.
    pub(super) published: BTreeMap<String, Published>,
    /// Publishes that were refused at least once and sent again, each with the last reason. Whoever sends a refused
    /// message again may double it, at QoS 2 too.
    pub(super) refused: BTreeMap<String, String>,
    /// Publishes that a library gave up, and that were published again: they may be there twice, too.
    pub(super) given_up: BTreeSet<String>,
    /// Times that a publish was refused.
    pub(super) refusals: u64,
    /// What a consumer of the queue has received.
    pub(super) queue: Places,
    /// Received and not acknowledged: must come again.
    pub(super) owed: BTreeSet<String>,
    /// The sessions that last, by name.
    pub(super) sessions: BTreeMap<String, Session>,
    /// What readers of the stream have received that came back to it after each break, by name.
    pub(super) readers: BTreeMap<String, Places>,
    /// What keepers have had retained, by topic.
    pub(super) kept: BTreeMap<String, Kept>,
    /// What contradicts the promises.
    problems: Vec<String>,
    problems_untold: u64,
}

/// What a session has.
#[derive(Debug, Default)]
pub(super) struct Session {
    /// Of the topics of all publishers only this one; all if there is none.
    topic: Option<u64>,
    /// What it has received, and how often.
    pub(super) received: BTreeMap<String, u64>,
}

impl Session {
    /// Whether the message is for it and has not come.
    fn misses(&self, payload: &str) -> bool {
        let number = || payload.rsplit('/').next()?.parse::<u64>().ok();
        let is_wanted = self.topic.is_none_or(|topic| number().is_some_and(|n| n % TOPICS == topic));
        is_wanted && !self.received.contains_key(payload)
    }
}

/// Which message stands where. A place never holds another message.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Places {
    pub(super) messages: BTreeMap<Place, String>,
    pub(super) seen: BTreeMap<String, BTreeSet<Place>>,
    /// How often a place was delivered that had been before.
    pub(super) again: u64,
}

impl Ledger {
    /// Writes a broken promise down.
    pub(super) fn problem(&mut self, problem: String) {
        if self.problems.len() < TOLD {
            self.problems.push(problem);
        } else {
            self.problems_untold += 1;
        }
    }

    /// Every broken promise.
    pub(super) fn problems(&self) -> Vec<String> {
        let untold = (self.problems_untold > 0).then(|| format!("and {} more", self.problems_untold));
        self.problems.iter().cloned().chain(untold).collect()
    }

    /// A publish was refused.
    pub(super) fn refuse(&mut self, payload: String, reason: String) {
        self.refused.insert(payload, reason);
        self.refusals += 1;
    }

    /// Whether this message may be there only once.
    fn is_once(&self, payload: &str) -> bool {
        let may_double = self.refused.contains_key(payload) || self.given_up.contains(payload);
        payload.starts_with("2/") && !may_double
    }

    /// A message of the queue; one that is kept is not acknowledged, and must come again unless it already has.
    pub(super) fn dequeue(&mut self, place: Option<Place>, payload: &str, keeps: bool) {
        let is_new = !self.queue.seen.contains_key(payload);
        if let Err(problem) = self.queue.note(place, payload) {
            self.problem(format!("queue: {problem}"));
        }
        if keeps && is_new {
            self.owed.insert(payload.to_owned());
        } else if !keeps {
            self.owed.remove(payload);
        }
    }

    /// A client called `name` has a session with this topic of all publishers, and reads the stream.
    pub(super) fn enroll(&mut self, name: &str, topic: u64) {
        let session = Session { topic: Some(topic), ..Session::default() };
        self.sessions.insert(name.to_owned(), session);
        self.readers.insert(name.to_owned(), Places::default());
    }

    /// A message of the session `name` at QoS 1.
    pub(super) fn receive_at_least_once(&mut self, name: &str, payload: &str) -> u64 {
        let session = self.sessions.entry(name.to_owned()).or_default();
        let times = session.received.entry(payload.to_owned()).or_default();
        *times += 1;
        *times
    }

    /// A message of the session `name` that the client had not.
    pub(super) fn receive(&mut self, name: &str, payload: &str) {
        if self.receive_at_least_once(name, payload) > 1 && self.is_once(payload) {
            self.problem(format!("session of {name}: `{payload}` at QoS 2 was delivered twice"));
        }
    }

    /// A message of the stream that the reader `name` has received.
    pub(super) fn read(&mut self, name: &str, place: Option<Place>, payload: &str) {
        let reader = self.readers.entry(name.to_owned()).or_default();
        if let Err(problem) = reader.note(place, payload) {
            self.problem(format!("stream, read by {name}: {problem}"));
        }
    }

    /// Whether all that was acknowledged has come out of the queue and to the session.
    pub(super) fn has_arrived(&self) -> bool {
        let seen = |payload: &str| {
            self.queue.seen.contains_key(payload)
                && !self.sessions.values().any(|session| session.misses(payload))
                && self.readers.values().all(|reader| reader.seen.contains_key(payload))
        };
        self.owed.is_empty() && self.published.keys().all(|payload| seen(payload))
    }

    /// Acknowledged, and not seen by whom `seen` asks.
    pub(super) fn missing(&self, seen: impl Fn(&str) -> bool) -> Vec<&str> {
        self.published.keys().map(String::as_str).filter(|payload| !seen(payload)).collect()
    }

    /// Nothing that was acknowledged is missing, nothing at QoS 2 is there twice, and what was read twice reads the same.
    pub(super) fn audit(&mut self, first: &Places, second: &Places) {
        let mut lost = vec![
            ("queue".to_owned(), self.missing(|payload| self.queue.seen.contains_key(payload))),
            ("stream".to_owned(), self.missing(|payload| first.seen.contains_key(payload))),
        ];
        for (name, session) in &self.sessions {
            lost.push((format!("session of {name}"), self.missing(|payload| !session.misses(payload))));
        }
        for (name, reader) in &self.readers {
            let missing = self.missing(|payload| reader.seen.contains_key(payload));
            lost.push((format!("stream, read by {name}"), missing));
        }
        let mut problems: Vec<String> = lost
            .iter()
            .filter(|(_, missing)| !missing.is_empty())
            .map(|(what, missing)| {
                let some = &missing[..missing.len().min(10)];
                format!("{what}: {} acknowledged messages are missing, such as {some:?}", missing.len())
            })
            .collect();
        if !self.owed.is_empty() {
            problems
                .push(format!("queue: never delivered again without an acknowledgement: {:?}", self.owed));
        }
        problems.extend(first.gaps().into_iter().map(|gap| format!("stream: {gap}")));
        if first.messages != second.messages {
            problems.push(format!(
                "stream: two reads differ: {} messages, then {}",
                first.messages.len(),
                second.messages.len()
            ));
        }
        for (name, reader) in &self.readers {
            let other =
                reader.messages.iter().find(|(place, payload)| first.messages.get(place) != Some(payload));
            problems.extend(other.map(|(place, payload)| {
                format!(
                    "stream, read by {name}: `{payload}` at {place:?}, where {:?} stands",
                    first.messages.get(place)
                )
            }));
        }
        for (what, places) in [("queue", &self.queue), ("stream", first)] {
            let twice = places.seen.iter().filter(|(payload, at)| at.len() > 1 && self.is_once(payload));
            problems
                .extend(twice.map(|(payload, at)| format!("{what}: `{payload}` at QoS 2 stands at {at:?}")));
        }
        for problem in problems {
            self.problem(problem);
        }
    }

    /// What is retained in the end is the last that was acknowledged on each topic, or what was sent behind it.
    pub(super) fn audit_retained(&mut self, found: &BTreeMap<String, u64>) {
        let wrong = self.kept.iter().filter(|(topic, kept)| kept.is_wrong(found.get(*topic).copied()));
        let problems: Vec<String> = wrong
            .map(|(topic, kept)| {
                let Kept { sent, acknowledged } = kept;
                let found = found.get(topic);
                format!(
                    "{topic}: {acknowledged} was acknowledged last, {sent} sent, and {found:?} is retained"
                )
            })
            .collect();
        problems.into_iter().for_each(|problem| self.problem(problem));
    }

    /// For each publisher whether, and when after `from`, the next publish was acknowledged, and how long the
    /// slowest publish that was open between `from` and `until` waited of that time.
    pub(super) fn without_service(&self, publishers: usize, from: Instant, until: Instant) -> Vec<Outage> {
        let mut outages = vec![Outage::default(); publishers];
        for Published { publisher, sent, acknowledged } in self.published.values().copied() {
            let Some(outage) = outages.get_mut(publisher).filter(|_| acknowledged >= from && sent < until)
            else {
                continue;
            };
            let after = acknowledged - from;
            outage.next = Some(outage.next.map_or(after, |next| next.min(after)));
            outage.slowest = outage.slowest.max(acknowledged - sent.max(from));
        }
        outages
    }
}

/// What a fault was to a publisher.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Outage {
    /// From the fault to its next acknowledgement.
    pub(super) next: Option<Duration>,
    /// The longest that one of its publishes waited.
    pub(super) slowest: Duration,
}

impl Places {
    /// Writes down that `payload` is there, and stands at `place` if that is known.
    pub(super) fn note(&mut self, place: Option<Place>, payload: &str) -> Result<(), String> {
        let places = self.seen.entry(payload.to_owned()).or_default();
        let Some(place) = place else { return Ok(()) };
        match self.messages.get(&place) {
            None => {
                self.messages.insert(place, payload.to_owned());
            }
            Some(before) if before == payload => self.again += 1,
            Some(before) => return Err(format!("at {place:?} first `{before}`, then `{payload}`")),
        }
        places.insert(place);
        Ok(())
    }

    /// Offsets that are not there, although later ones are.
    fn gaps(&self) -> Vec<String> {
        let mut next: BTreeMap<u64, u64> = BTreeMap::new();
        let mut gaps = Vec::new();
        for &(shard, offset) in self.messages.keys() {
            let expected = next.entry(shard).or_default();
            if offset != *expected {
                gaps.push(format!("shard {shard}: offset {offset} where {expected} was due"));
            }
            *expected = offset + 1;
        }
        gaps
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(entries: &[(Place, &str)]) -> Places {
        let mut places = Places::default();
        for (place, payload) in entries {
            places.note(Some(*place), payload).unwrap();
        }
        places
    }

    /// A ledger of messages that all went well, and the stream that holds them.
    fn good() -> (Ledger, [(Place, &'static str); 3]) {
        let stored = [((0, 0), "1/0/0"), ((0, 1), "2/1/0"), ((1, 0), "2/1/1")];
        let mut ledger = Ledger::default();
        let now = weir_env::clock::Clock::system().now();
        for (place, payload) in stored {
            let published = Published { publisher: 0, sent: now, acknowledged: now + Duration::from_secs(1) };
            ledger.published.insert(payload.to_owned(), published);
            ledger.dequeue(Some(place), payload, false);
            ledger.receive("s", payload);
            ledger.read("r", Some(place), payload);
        }
        (ledger, stored)
    }

    fn found(mut ledger: Ledger, first: &[(Place, &str)], second: &[(Place, &str)]) -> String {
        ledger.audit(&places(first), &places(second));
        ledger.problems().join("; ")
    }

    #[test]
    fn what_went_well_has_no_problem() {
        let (ledger, stored) = good();
        assert_eq!(found(ledger, &stored, &stored), "");
    }

    #[test]
    fn every_broken_promise_is_found() {
        type Break = fn(&mut Ledger);
        let broken: [(Break, &str); 10] = [
            (|ledger| ledger.queue = Places::default(), "queue: 3 acknowledged messages are missing"),
            (
                |ledger| {
                    ledger
                        .sessions
                        .values_mut()
                        .for_each(|session| session.received.retain(|p, _| p != "1/0/0"))
                },
                "session of s: 1 acknowledged messages are missing",
            ),
            (|ledger| ledger.receive("s", "2/1/0"), "`2/1/0` at QoS 2 was delivered twice"),
            (|ledger| ledger.dequeue(Some((1, 1)), "2/1/1", false), "queue: `2/1/1` at QoS 2 stands at"),
            (|ledger| ledger.dequeue(Some((1, 0)), "1/0/0", false), "at (1, 0) first `2/1/1`, then `1/0/0`"),
            (
                |ledger| {
                    ledger.queue = Places::default();
                    ledger.dequeue(Some((0, 0)), "1/0/0", true);
                },
                "never delivered again",
            ),
            (
                |ledger| ledger.enroll("t", 1),
                "session of t: 1 acknowledged messages are missing, such as [\"2/1/1\"]",
            ),
            (|ledger| ledger.enroll("t", 2), "stream, read by t: 3 acknowledged messages are missing"),
            (|ledger| ledger.read("r", Some((0, 0)), "2/1/1"), "read by r: at (0, 0) first `1/0/0`"),
            (
                |ledger| ledger.read("r", Some((0, 2)), "2/1/1"),
                "read by r: `2/1/1` at (0, 2), where None stands",
            ),
        ];
        for (break_it, expected) in broken {
            let (mut ledger, stored) = good();
            break_it(&mut ledger);
            let problems = found(ledger, &stored, &stored);
            assert!(problems.contains(expected), "{expected}: {problems}");
        }
        let (ledger, stored) = good();
        assert!(found(ledger, &stored[1..], &stored[1..]).contains("shard 0: offset 1 where 0 was due"));
        let (ledger, stored) = good();
        assert!(found(ledger, &stored, &stored[1..]).contains("two reads differ"));
        let (ledger, stored) = good();
        let twice = [&stored[..], &[((1, 1), "2/1/0")]].concat();
        assert!(found(ledger, &twice, &twice).contains("stream: `2/1/0` at QoS 2 stands at"));
    }

    #[test]
    fn the_last_that_was_acknowledged_is_retained_or_one_behind_it() {
        let topic = "kept/0".to_owned();
        for (found, is_wrong) in
            [(None, true), (Some(6), true), (Some(7), false), (Some(8), false), (Some(9), true)]
        {
            let mut ledger = Ledger::default();
            ledger.kept.insert(topic.clone(), Kept { sent: 8, acknowledged: 7 });
            ledger.audit_retained(&found.into_iter().map(|found| (topic.clone(), found)).collect());
            assert_eq!(!ledger.problems().is_empty(), is_wrong, "{found:?}");
        }
    }

    #[test]
    fn what_may_come_again_is_no_problem() {
        let (mut ledger, stored) = good();
        ledger.receive("s", "1/0/0");
        ledger.receive_at_least_once("s", "2/1/0");
        ledger.dequeue(Some((0, 0)), "1/0/0", true);
        ledger.dequeue(Some((0, 0)), "1/0/0", false);
        ledger.dequeue(Some((1, 1)), "1/0/0", false);
        ledger.given_up.insert("2/1/1".to_owned());
        ledger.receive("s", "2/1/1");
        ledger.dequeue(None, "2/1/0", false);
        ledger.read("r", None, "2/1/0");
        assert_eq!(found(ledger, &stored, &stored), "");
    }

    #[test]
    fn time_without_service_begins_with_the_fault() {
        let (mut ledger, _) = good();
        let start = ledger.published["1/0/0"].sent;
        let at = |millis| start + Duration::from_millis(millis);
        let published = [(100, 150), (200, 900), (950, 960), (5_000, 9_000)];
        ledger.published = (0..)
            .zip(published)
            .map(|(n, (sent, acknowledged))| {
                let (sent, acknowledged) = (at(sent), at(acknowledged));
                (format!("1/0/{n}"), Published { publisher: 0, sent, acknowledged })
            })
            .collect();
        let outages = ledger.without_service(2, at(400), at(2_000));
        assert_eq!(outages[0].next, Some(Duration::from_millis(500)));
        assert_eq!(outages[0].slowest, Duration::from_millis(500));
        assert!(outages[1].next.is_none());
    }
}
