//! What every transaction of a local engine sees: the views of the last five seconds, the version to read
//! at, the watches. The [`Sequencer`](super::Sequencer) alone advances it.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::watch;
use weir_env::clock::{Clock, Instant};

use super::held::Holds;
use super::watches::Watches;
use super::{View, WriteSet};
use crate::limits::LIFETIME;
use crate::{Error, Result, StoreStats, Version, WatchTrigger};

/// [`LIFETIME`] in versions.
#[expect(clippy::cast_possible_truncation, reason = "five seconds in microseconds")]
pub(super) const LIFETIME_VERSIONS: u64 = LIFETIME.as_micros() as u64;

/// How often a watch is tried to be armed between two commits, before it fires for no reason.
const ARM_ATTEMPTS: usize = 16;

#[derive(Debug)]
pub(crate) struct Shared<V> {
    history: Mutex<History<V>>,
    watches: Mutex<Watches>,
    holds: Mutex<Holds<V>>,
    /// Why nothing can be committed any more.
    failure: watch::Sender<Option<Arc<str>>>,
    pub(crate) clock: Clock,
    pub(crate) stats: Arc<StoreStats>,
}

#[derive(Debug)]
struct History<V> {
    /// Each version with changes and the view from it on, oldest first. Empty once closed.
    views: VecDeque<(Version, V)>,
    /// No version above this one was handed out.
    issued: u64,
    /// The version of the commit that is being applied.
    in_flight: Option<u64>,
    /// When the clock of versions showed which version.
    base: (Instant, u64),
}

impl<V: View> Shared<V> {
    /// A history that begins with `view`, left by the commit `version` of an earlier life.
    pub(crate) fn new(version: Version, view: V, clock: Clock, stats: Arc<StoreStats>) -> Arc<Self> {
        let history = History {
            views: VecDeque::from([(version, view)]),
            issued: version.0,
            in_flight: None,
            base: (clock.now(), version.0),
        };
        let (history, watches, holds) = (Mutex::new(history), Mutex::default(), Mutex::default());
        let failure = watch::Sender::new(None);
        Arc::new(Self { history, watches, holds, failure, clock, stats })
    }

    /// A version that includes every commit reported so far.
    pub(super) fn read_version(&self) -> Result<Version> {
        let mut history = self.history.lock();
        if history.views.is_empty() {
            return Err(closed());
        }
        let now = history.now(self.clock.now());
        history.issued = now;
        // Also while nobody writes: a view keeps old values from being compacted away.
        let retired = history.retire();
        drop(history);
        drop(retired);
        Ok(Version(now))
    }

    /// The store as it was at `version`.
    pub(super) fn view_at(&self, version: Version) -> Result<V> {
        let history = self.history.lock();
        if history.views.is_empty() {
            return Err(closed());
        }
        let now = history.now(self.clock.now());
        if version.0 > now {
            return Err(Error::Unavailable("the read version lies in the future".into()));
        }
        let index = history.views.partition_point(|(from, _)| *from <= version);
        match index.checked_sub(1) {
            Some(index) if version.0 + LIFETIME_VERSIONS >= now => Ok(history.views[index].1.clone()),
            _ => Err(Error::TooOld),
        }
    }

    fn newest_view(&self) -> Result<(Version, V)> {
        self.history.lock().views.back().cloned().ok_or_else(closed)
    }

    fn newest_version(&self) -> Option<Version> {
        self.history.lock().views.back().map(|(version, _)| *version)
    }

    /// The version of the next commit, which was asked for at `now`.
    pub(super) fn begin_commit(&self, now: Instant) -> Version {
        let mut history = self.history.lock();
        let version = history.now(now).max(history.issued + 1);
        history.in_flight = Some(version);
        Version(version)
    }

    /// Ends a commit that changes nothing, and lets go of views that are too old: on a full disk no other does.
    pub(super) fn abort_commit(&self) {
        let retired = {
            let mut history = self.history.lock();
            history.issued = history.in_flight.take().unwrap_or_default().max(history.issued);
            history.retire()
        };
        drop(retired);
    }

    /// Makes the commit `version` visible, lets go of views that are too old, and fires watches.
    pub(super) fn publish(&self, version: Version, view: V, changes: &WriteSet) {
        let retired = {
            let mut history = self.history.lock();
            if history.views.is_empty() {
                return;
            }
            history.views.push_back((version, view));
            history.issued = history.issued.max(version.0);
            history.in_flight = None;
            history.retire()
        };
        drop(retired);
        let fired = self.watches.lock().take(changes);
        drop(fired);
    }

    /// Arms a watch of `key` if it still has the value `expected`; fires it otherwise. Reads the disk.
    pub(super) fn arm(&self, key: Bytes, expected: Option<Bytes>, trigger: WatchTrigger) {
        for _ in 0..ARM_ATTEMPTS {
            let read = self.newest_view().and_then(|(version, view)| Ok((version, view.get(&key)?)));
            let Ok((version, current)) = read else { break };
            if current != expected {
                break;
            }
            // Not held over the read, as every commit waits for it. A commit that is not seen here takes its watches
            // after this.
            let mut watches = self.watches.lock();
            if self.newest_version() == Some(version) {
                return watches.arm(key, trigger);
            }
        }
        trigger.fire();
    }

    /// Keeps the newest view readable until [`Shared::release`]; its number, and the version it is read at.
    pub(super) fn hold(&self) -> Result<(u64, Version)> {
        let version = self.read_version()?;
        // Under the lock: closing the store takes what is here after it has ended reads.
        let mut holds = self.holds.lock();
        let view = self.view_at(version)?;
        Ok((holds.add(version, view), version))
    }

    /// The view held under this number.
    pub(super) fn held_view(&self, id: u64) -> Result<V> {
        self.holds.lock().view(id)
    }

    /// Lets go of a view.
    pub(super) fn release(&self, id: u64) {
        let released = self.holds.lock().remove(id);
        drop(released);
    }

    /// The oldest version that may still be read, given that transactions need none before `version`.
    pub(super) fn oldest_needed(&self, version: Version) -> Version {
        self.holds.lock().oldest().map_or(version, |held| held.min(version))
    }

    /// Makes every later version greater than `version`. Transactions that have begun may be too old afterwards.
    pub(crate) fn advance(&self, version: Version) -> Result<()> {
        if version > Version::MAX {
            let why = format!("version {} is greater than any of a store", version.0);
            return Err(Error::Unavailable(why.into()));
        }
        let mut history = self.history.lock();
        let now = self.clock.now();
        if history.now(now) <= version.0 {
            history.issued = version.0 + 1;
            history.base = (now, history.issued);
        }
        Ok(())
    }

    /// Says that nothing can be committed any more.
    pub(super) fn fail(&self, why: Arc<str>) {
        self.failure.send_replace(Some(why));
    }

    /// Waits until nothing can be committed any more, and says why.
    pub(crate) async fn failed(&self) -> Arc<str> {
        failure_in(&self.failure).await
    }

    /// Ends reads and fires every watch.
    pub(crate) fn close(&self) {
        let views = std::mem::take(&mut self.history.lock().views);
        drop(views);
        let held = self.holds.lock().take_all();
        drop(held);
        let fired = self.watches.lock().take_all();
        drop(fired);
    }
}

impl<V> History<V> {
    /// Takes out the views that are too old to be read.
    fn retire(&mut self) -> Vec<(Version, V)> {
        let oldest = self.issued.saturating_sub(LIFETIME_VERSIONS);
        let in_force = self.views.partition_point(|(from, _)| from.0 <= oldest);
        self.views.drain(..in_force.saturating_sub(1)).collect()
    }

    /// What the clock of versions shows at `now`.
    fn now(&self, now: Instant) -> u64 {
        if let Some(version) = self.in_flight {
            return version - 1;
        }
        let passed = now.saturating_duration_since(self.base.0).as_micros();
        let by_clock = u64::try_from(passed).unwrap_or(u64::MAX).saturating_add(self.base.1);
        by_clock.max(self.issued)
    }
}

/// Waits until there is a failure.
pub(crate) async fn failure_in(failure: &watch::Sender<Option<Arc<str>>>) -> Arc<str> {
    let mut failure_rx = failure.subscribe();
    let why = failure_rx.wait_for(Option::is_some).await.ok().and_then(|why| (*why).clone());
    match why {
        Some(why) => why,
        // Cannot be: the sender is borrowed for as long as this waits.
        None => std::future::pending().await,
    }
}

/// What every operation on a closed store returns.
pub(crate) fn closed() -> Error {
    Error::Unavailable("the store is closed".into())
}

#[cfg(test)]
mod tests {
    use std::ops::ControlFlow;
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;
    use crate::Watch;
    use crate::local::KeyRange;

    /// While it is read, another key is committed `commits` times.
    #[derive(Clone, Debug)]
    struct Busy(Arc<Commits>);

    #[derive(Debug)]
    struct Commits {
        shared: OnceLock<Arc<Shared<Busy>>>,
        left: AtomicU64,
        /// What is committed.
        key: &'static str,
    }

    impl View for Busy {
        fn get(&self, _: &[u8]) -> Result<Option<Bytes>> {
            let (shared, left) = (self.0.shared.get().unwrap(), self.0.left.load(Ordering::Relaxed));
            if left > 0 {
                self.0.left.store(left - 1, Ordering::Relaxed);
                shared.publish(shared.begin_commit(shared.clock.now()), self.clone(), &written(self.0.key));
            }
            Ok(None)
        }

        fn scan(
            &self,
            _: &KeyRange,
            _: bool,
            _: &mut dyn FnMut(Bytes, Bytes) -> ControlFlow<()>,
        ) -> Result<()> {
            Ok(())
        }
    }

    fn written(key: &'static str) -> WriteSet {
        let mut changes = WriteSet::default();
        changes.set(Bytes::from(key), Bytes::new());
        changes
    }

    /// Arms a watch of `a`, and tells whether it fires at once and whether it does when `a` is written.
    fn armed(commits: u64, key: &'static str) -> (bool, bool) {
        let view = Busy(Arc::new(Commits { shared: OnceLock::new(), left: AtomicU64::new(commits), key }));
        let shared = Shared::new(Version(1), view.clone(), Clock::system(), Arc::default());
        view.0.shared.set(Arc::clone(&shared)).unwrap();
        let (trigger, watch) = Watch::new();
        shared.arm(Bytes::from("a"), None, trigger);
        let at_once = watch.has_fired();
        shared.publish(shared.begin_commit(shared.clock.now()), view, &written("a"));
        (at_once, watch.has_fired())
    }

    /// No commit waits for the read.
    #[test]
    fn a_watch_is_armed_while_commits_go_on() {
        assert_eq!(armed(0, "b"), (false, true));
        assert_eq!(armed(3, "b"), (false, true));
        assert_eq!(armed(1_000, "b"), (true, true), "not for ever");
    }
}
