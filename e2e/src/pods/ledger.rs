//! What the clients of a cluster have seen, and what must be true of it. No client, no pod: only facts and rules.
//!
//! A payload is `qos/publisher/number`, each published by one publisher, so that it names its message.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;
use weir_codec::ReasonCode;

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
    pub(super) refused: BTreeMap<String, ReasonCode>,
    /// Times that a publish was refused.
    pub(super) refusals: u64,
    /// What a consumer of the queue has received.
    pub(super) queue: Places,
    /// Received and not acknowledged: must come again.
    pub(super) owed: BTreeSet<String>,
    /// What the session has received, and how often.
    pub(super) session: BTreeMap<String, u64>,
    /// What contradicts the promises.
    problems: Vec<String>,
    problems_untold: u64,
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
    pub(super) fn refuse(&mut self, payload: String, reason: ReasonCode) {
        self.refused.insert(payload, reason);
        self.refusals += 1;
    }

    /// Whether this message may be there only once.
    fn is_once(&self, payload: &str) -> bool {
        payload.starts_with("2/") && !self.refused.contains_key(payload)
    }

    /// A message of the queue.
    pub(super) fn dequeue(&mut self, place: Place, payload: &str, keeps: bool) {
        if let Err(problem) = self.queue.note(place, payload) {
            self.problem(format!("queue: {problem}"));
        }
        if keeps {
            self.owed.insert(payload.to_owned());
        } else {
            self.owed.remove(payload);
        }
    }

    /// A message of the session that the client had not.
    pub(super) fn receive(&mut self, payload: &str) {
        let times = self.session.entry(payload.to_owned()).or_default();
        *times += 1;
        let again = *times > 1;
        if again && self.is_once(payload) {
            self.problem(format!("session: `{payload}` at QoS 2 was delivered twice"));
        }
    }

    /// Whether all that was acknowledged has come out of the queue and to the session.
    pub(super) fn has_arrived(&self) -> bool {
        let seen =
            |payload: &str| self.queue.seen.contains_key(payload) && self.session.contains_key(payload);
        self.owed.is_empty() && self.missing(seen).is_empty()
    }

    /// Acknowledged, and not seen by whom `seen` asks.
    pub(super) fn missing(&self, seen: impl Fn(&str) -> bool) -> Vec<&str> {
        self.published.keys().map(String::as_str).filter(|payload| !seen(payload)).collect()
    }

    /// Nothing that was acknowledged is missing, nothing at QoS 2 is there twice, and what was read twice reads the same.
    pub(super) fn audit(&mut self, first: &Places, second: &Places) {
        let lost = [
            ("queue", self.missing(|payload| self.queue.seen.contains_key(payload))),
            ("session", self.missing(|payload| self.session.contains_key(payload))),
            ("stream", self.missing(|payload| first.seen.contains_key(payload))),
        ];
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
        for (what, places) in [("queue", &self.queue), ("stream", first)] {
            let twice = places.seen.iter().filter(|(payload, at)| at.len() > 1 && self.is_once(payload));
            problems
                .extend(twice.map(|(payload, at)| format!("{what}: `{payload}` at QoS 2 stands at {at:?}")));
        }
        for problem in problems {
            self.problem(problem);
        }
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
    /// Writes down that `payload` stands at `place`.
    pub(super) fn note(&mut self, place: Place, payload: &str) -> Result<(), String> {
        match self.messages.get(&place) {
            None => {
                self.messages.insert(place, payload.to_owned());
            }
            Some(before) if before == payload => self.again += 1,
            Some(before) => return Err(format!("at {place:?} first `{before}`, then `{payload}`")),
        }
        self.seen.entry(payload.to_owned()).or_default().insert(place);
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
            places.note(*place, payload).unwrap();
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
            ledger.dequeue(place, payload, false);
            ledger.receive(payload);
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
        let broken: [(Break, &str); 6] = [
            (|ledger| ledger.queue = Places::default(), "queue: 3 acknowledged messages are missing"),
            (
                |ledger| assert_eq!(ledger.session.remove("1/0/0"), Some(1)),
                "session: 1 acknowledged messages are missing",
            ),
            (|ledger| ledger.receive("2/1/0"), "`2/1/0` at QoS 2 was delivered twice"),
            (|ledger| ledger.dequeue((1, 1), "2/1/1", false), "queue: `2/1/1` at QoS 2 stands at"),
            (|ledger| ledger.dequeue((1, 0), "1/0/0", false), "at (1, 0) first `2/1/1`, then `1/0/0`"),
            (|ledger| ledger.dequeue((0, 0), "1/0/0", true), "never delivered again"),
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
    fn what_may_come_again_is_no_problem() {
        let (mut ledger, stored) = good();
        ledger.receive("1/0/0");
        ledger.dequeue((0, 0), "1/0/0", true);
        ledger.dequeue((0, 0), "1/0/0", false);
        ledger.dequeue((1, 1), "1/0/0", false);
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
