//! Which other pods are dead: their counters as this pod sees them, on its own clock. Without IO.
//!
//! A counter that has not changed for the pod's TTL says so, or one that has not changed for a while since the link to
//! the pod broke. That is only a suspicion: the transaction that declares a pod dead reads its counter again.

use std::time::Duration;

use weir_env::clock::Instant;
use weir_env::seed::HashMap;
use weir_storage::Version;

use crate::keyspace::load::PodLoad;
use crate::keyspace::owner::PodId;
use crate::keyspace::pod::Heartbeat;

/// What is known of the signs of life of other pods.
#[derive(Debug)]
pub(super) struct Pods {
    /// After a link broke, as long without a sign of life is death.
    suspect_after: Duration,
    lives: HashMap<PodId, Life>,
    /// When the links to pods broke.
    suspected: HashMap<PodId, Instant>,
}

#[derive(Debug)]
struct Life {
    counter: u64,
    ttl: Duration,
    /// When the counter was first seen.
    since: Instant,
    applied: Version,
    load: PodLoad,
    /// When the pod was seen to say so; what is found at the first look may be old.
    said: Instant,
}

impl Pods {
    pub(super) fn new(suspect_after: Duration) -> Self {
        Self { suspect_after, lives: HashMap::default(), suspected: HashMap::default() }
    }

    /// Only `is_member` pods count.
    pub(super) fn retain(&mut self, is_member: impl Fn(PodId) -> bool) {
        self.lives.retain(|pod, _| is_member(*pod));
        self.suspected.retain(|pod, _| is_member(*pod));
    }

    /// The sign of life of `pod` as it is in the store `now`.
    pub(super) fn observe(&mut self, pod: PodId, beat: &Heartbeat, now: Instant) {
        let ttl = Duration::from_millis(u64::from(beat.ttl_ms));
        let Heartbeat { counter, .. } = *beat;
        let applied = version_of(beat);
        let new = Life { counter, ttl, since: now, applied, load: beat.load, said: now };
        let life = self.lives.entry(pod).or_insert(new);
        if life.counter != counter {
            (life.counter, life.since, life.load, life.said) = (counter, now, beat.load, now);
        }
        (life.ttl, life.applied) = (ttl, life.applied.max(applied));
    }

    /// The link to `pod` broke, or is there again. Its signs of life may not have been looked at yet.
    pub(super) fn suspect(&mut self, pod: PodId, broke: Option<Instant>) {
        match broke {
            Some(at) => _ = self.suspected.insert(pod, at),
            None => _ = self.suspected.remove(&pod),
        }
    }

    /// This pod was not well itself: what it did not see until `now` says nothing of others.
    pub(super) fn begin_again(&mut self, now: Instant) {
        for life in self.lives.values_mut() {
            life.since = now;
        }
    }

    /// `pod` says that it has applied all changes up to `version`.
    pub(super) fn has_applied(&mut self, pod: PodId, version: Version) {
        if let Some(life) = self.lives.get_mut(&pod) {
            life.applied = life.applied.max(version);
        }
    }

    /// Up to which version all of `pods` have applied all changes, as far as is known.
    pub(super) fn all_have_applied(&self, pods: impl Iterator<Item = PodId>) -> Version {
        let applied = |pod| self.lives.get(&pod).map(|life| life.applied).unwrap_or_default();
        pods.map(applied).min().unwrap_or(Version(u64::MAX))
    }

    /// What `pod` has said last of its load, and how long ago as seen at `now`.
    pub(super) fn load_of(&self, pod: PodId, now: Instant) -> Option<(PodLoad, Duration)> {
        self.lives.get(&pod).map(|life| (life.load, now.saturating_duration_since(life.said)))
    }

    /// Who seems dead, as seen at `now`, and the counter that says so.
    pub(super) fn dead(&self, now: Instant) -> Vec<(PodId, u64)> {
        let is_dead = |(pod, life): &(&PodId, &Life)| {
            let silent = |since: Instant| now.saturating_duration_since(since);
            let broke = self.suspected.get(pod);
            silent(life.since) >= life.ttl
                || broke.is_some_and(|broke| silent(life.since.max(*broke)) >= self.suspect_after)
        };
        let mut dead: Vec<_> =
            self.lives.iter().filter(is_dead).map(|(pod, life)| (*pod, life.counter)).collect();
        dead.sort_unstable();
        dead
    }
}

/// The version up to which the pod of `beat` has applied all changes.
fn version_of(beat: &Heartbeat) -> Version {
    let bytes = beat.applied.0.first_chunk().copied().unwrap_or_default();
    Version(u64::from_be_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use weir_env::clock::Clock;
    use weir_storage::Versionstamp;

    use super::*;

    const POD: PodId = PodId([1; 16]);

    fn beat(counter: u64) -> Heartbeat {
        let applied = Versionstamp::new(Version(counter), u16::MAX);
        let load = PodLoad { connections: counter, ..PodLoad::default() };
        Heartbeat { counter, ttl_ms: 5000, applied, load }
    }

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    #[tokio::test(start_paused = true)]
    async fn silence_is_death_after_the_ttl_or_soon_after_the_link_broke() {
        let start = Clock::system().now();
        let mut pods = Pods::new(ms(600));
        pods.observe(POD, &beat(1), start);
        pods.observe(POD, &beat(1), start + ms(4900));
        let said = pods.load_of(POD, start + ms(4999));
        assert_eq!(said.map(|(load, age)| (load.connections, age)), Some((1, ms(4999))));
        assert_eq!(pods.dead(start + ms(4999)), []);
        assert_eq!(pods.dead(start + ms(5000)), [(POD, 1)]);
        pods.observe(POD, &beat(2), start + ms(5000));
        assert_eq!(pods.dead(start + ms(9999)), []);
        // The link breaks long after the last change that was seen.
        pods.suspect(POD, Some(start + ms(6000)));
        assert_eq!(pods.dead(start + ms(6599)), []);
        assert_eq!(pods.dead(start + ms(6600)), [(POD, 2)]);
        // It beats on: as long as it does it lives.
        pods.observe(POD, &beat(3), start + ms(6600));
        assert_eq!(pods.dead(start + ms(7199)), []);
        assert_eq!(pods.dead(start + ms(7200)), [(POD, 3)]);
        pods.suspect(POD, None);
        assert_eq!(pods.dead(start + ms(7200)), []);
        assert_eq!(pods.dead(start + ms(11_600)), [(POD, 3)]);
        pods.begin_again(start + ms(11_600));
        assert_eq!(pods.dead(start + ms(16_599)), []);
        pods.retain(|_| false);
        assert_eq!(pods.dead(start + ms(99_999)), []);
        // The link breaks before a sign of life is looked at.
        pods.suspect(POD, Some(start + ms(20_000)));
        pods.observe(POD, &beat(4), start + ms(20_100));
        assert_eq!((pods.dead(start + ms(20_699)), pods.dead(start + ms(20_700))), (vec![], vec![(POD, 4)]));
    }

    #[tokio::test(start_paused = true)]
    async fn what_pods_have_applied_only_grows() {
        let now = Clock::system().now();
        let mut pods = Pods::new(ms(600));
        let other = PodId([2; 16]);
        let all = |pods: &Pods, of: &[PodId]| pods.all_have_applied(of.iter().copied()).0;
        assert_eq!(all(&pods, &[POD]), 0, "nothing is known of it");
        pods.observe(POD, &beat(5), now);
        assert_eq!((all(&pods, &[POD]), all(&pods, &[POD, other])), (5, 0));
        pods.has_applied(POD, Version(8));
        pods.observe(POD, &beat(6), now);
        pods.observe(other, &beat(9), now);
        assert_eq!((all(&pods, &[POD, other]), all(&pods, &[other])), (8, 9));
        assert_eq!(all(&pods, &[]), u64::MAX, "nobody is to be waited for");
    }
}
