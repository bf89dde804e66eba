//! The order of commits: checks a batch of transactions for conflicts, gives it one version, has it made
//! durable, and only then makes it visible and reports it.
//!
//! Whoever owns the [`Sequencer`] is the one committer of its store. It blocks for as long as its engine's
//! writer does, so an engine with a disk gives it a thread.

use std::sync::Arc;

use weir_env::clock::Instant;

use super::resolver::{RANGES_MAX, Resolver, Verdict};
use super::shared::LIFETIME_VERSIONS;
use super::{KeyRange, Shared, WriteSet, Writer};
use crate::pending::Mutation;
use crate::{Committed, Error, Result, StoreStats, Version, Versionstamp};

/// What a transaction wants committed.
#[derive(Debug)]
pub(crate) struct CommitRequest {
    /// What `reads` were read at.
    pub(super) read_version: Version,
    pub(super) reads: Vec<KeyRange>,
    pub(super) write_conflicts: Vec<KeyRange>,
    pub(super) writes: WriteSet,
    /// Applied after `writes`.
    pub(super) stamped: Vec<Mutation>,
    /// By the caller's clock: the committer's thread does not see a paused one.
    pub(super) asked_at: Instant,
}

impl CommitRequest {
    /// Bytes of keys and values to write.
    pub(crate) fn bytes(&self) -> usize {
        self.writes.bytes() + self.stamped.iter().map(Mutation::bytes).sum::<usize>()
    }
}

/// The committer of one store.
#[derive(Debug)]
pub(crate) struct Sequencer<W: Writer> {
    shared: Arc<Shared<W::View>>,
    writer: W,
    resolver: Resolver,
    /// Why nothing can be committed any more.
    broken: Option<Arc<str>>,
}

impl<W: Writer> Sequencer<W> {
    /// Continues after the commit `version` of the store's previous life.
    pub(crate) const fn new(shared: Arc<Shared<W::View>>, writer: W, version: Version) -> Self {
        Self { shared, writer, resolver: Resolver::new(version, RANGES_MAX), broken: None }
    }

    /// Commits a batch, at most 65,536 transactions, in the order given. Each is judged alone; those that
    /// pass become durable together. The answers come in the same order.
    pub(crate) fn commit(&mut self, requests: Vec<CommitRequest>) -> Vec<Result<Committed>> {
        if let Some(why) = &self.broken {
            return requests.iter().map(|_| Err(Error::Unavailable(Arc::clone(why)))).collect();
        }
        let Some(now) = requests.iter().map(|request| request.asked_at).max() else {
            return Vec::new();
        };
        let version = self.shared.begin_commit(now);
        self.resolver.forget_before(Version(version.0.saturating_sub(LIFETIME_VERSIONS)));

        let (mut batch, mut passed) = (WriteSet::default(), 0);
        let mut answers = Vec::with_capacity(requests.len());
        for request in requests {
            let answer = self.admit(request, version, passed, &mut batch);
            passed += u16::from(answer.is_ok());
            answers.push(answer);
        }
        if passed == 0 {
            self.shared.abort_commit();
        } else if let Err(error) = self.apply(version, &batch, passed) {
            for answer in answers.iter_mut().filter(|answer| answer.is_ok()) {
                // The bytes may have reached the disk, and would be there after a restart.
                *answer = Err(error.clone());
            }
        }
        answers
    }

    /// Judges one transaction and adds its writes to the batch.
    fn admit(
        &mut self,
        request: CommitRequest,
        version: Version,
        order: u16,
        batch: &mut WriteSet,
    ) -> Result<Committed> {
        let stats = &self.shared.stats;
        match self.resolver.check(request.read_version, &request.reads) {
            Verdict::Commit => {}
            Verdict::Conflict => {
                StoreStats::add(&stats.conflicts, 1);
                return Err(Error::Conflict);
            }
            Verdict::TooOld => {
                StoreStats::add(&stats.too_old, 1);
                return Err(Error::TooOld);
            }
        }
        let stamp = Versionstamp::new(version, order);
        let mut writes = request.writes;
        for mutation in request.stamped {
            mutation.apply_stamped(stamp, &mut writes);
        }
        for (key, _) in writes.keys() {
            self.resolver.note(version, KeyRange::key(key));
        }
        for range in writes.cleared().chain(request.write_conflicts) {
            self.resolver.note(version, range);
        }
        if batch.is_empty() {
            *batch = writes;
        } else {
            batch.extend(&writes);
        }
        Ok(Committed { version, versionstamp: Some(stamp) })
    }

    fn apply(&mut self, version: Version, batch: &WriteSet, passed: u16) -> Result<()> {
        match self.writer.apply(version, batch) {
            Ok(view) => {
                self.shared.publish(version, view, batch);
                self.writer.retire(Version(version.0.saturating_sub(2 * LIFETIME_VERSIONS)));
                let stats = &self.shared.stats;
                StoreStats::add(&stats.commits, usize::from(passed));
                StoreStats::add(&stats.batches, 1);
                StoreStats::add(&stats.bytes, batch.bytes());
                Ok(())
            }
            Err(error) => {
                tracing::error!(%error, "a commit failed: the store takes no more of them");
                self.shared.abort_commit();
                self.broken = Some(format!("an earlier commit failed ({error}); restart to recover").into());
                self.shared.fail(format!("a commit to the store failed: {error}").into());
                Err(Error::UnknownOpen)
            }
        }
    }
}

impl<W: Writer> Drop for Sequencer<W> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.shared.fail("the task that commits to the store panicked".into());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::ops::ControlFlow;

    use bytes::Bytes;
    use futures_util::FutureExt;
    use weir_env::clock::Clock;

    use super::*;
    use crate::local::View;
    use crate::{Watch, WatchTrigger};

    /// A store that keeps nothing, on a disk that can be made to fail.
    #[derive(Clone, Debug)]
    struct Nothing;

    impl View for Nothing {
        fn get(&self, _: &[u8]) -> Result<Option<Bytes>> {
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

    #[derive(Debug)]
    struct Disk {
        is_full: bool,
        batches: usize,
    }

    impl Writer for Disk {
        type View = Nothing;

        fn apply(&mut self, _: Version, _: &WriteSet) -> Result<Nothing> {
            self.batches += 1;
            if self.is_full { Err(Error::Unavailable("disk full".into())) } else { Ok(Nothing) }
        }

        fn retire(&mut self, _: Version) {}
    }

    fn sequencer(is_full: bool) -> Sequencer<Disk> {
        let shared = Shared::new(Version(1), Nothing, Clock::system(), Arc::default());
        Sequencer::new(shared, Disk { is_full, batches: 0 }, Version(1))
    }

    /// A transaction that read `read` at version 1 and writes `write`.
    fn request(read: Option<&'static str>, write: &'static str) -> CommitRequest {
        let mut writes = WriteSet::default();
        writes.set(Bytes::from(write), Bytes::new());
        CommitRequest {
            read_version: Version(1),
            reads: read.map(|key| KeyRange::key(key.as_bytes())).into_iter().collect(),
            write_conflicts: Vec::new(),
            writes,
            stamped: Vec::new(),
            asked_at: Clock::system().now(),
        }
    }

    fn armed(sequencer: &Sequencer<Disk>, key: &'static str) -> Watch {
        let (trigger, watch): (WatchTrigger, _) = Watch::new();
        sequencer.shared.arm(Bytes::from(key), None, trigger);
        watch
    }

    #[test]
    fn a_batch_is_judged_in_order_and_written_once() {
        let mut sequencer = sequencer(false);
        let watch = armed(&sequencer, "a");
        let answers =
            sequencer.commit(vec![request(None, "a"), request(Some("a"), "b"), request(Some("b"), "c")]);
        let stamps: Vec<_> =
            answers.iter().map(|answer| answer.as_ref().ok().and_then(|c| c.versionstamp)).collect();
        let version = answers[0].as_ref().map(|c| c.version).unwrap();
        assert_eq!(stamps, [Some(Versionstamp::new(version, 0)), None, Some(Versionstamp::new(version, 1))]);
        assert!(matches!(answers[1], Err(Error::Conflict)));
        assert_eq!(sequencer.writer.batches, 1);
        assert!(watch.has_fired());

        let refused = sequencer.commit(vec![request(Some("c"), "d")]);
        assert!(matches!(refused[..], [Err(Error::Conflict)]));
        assert_eq!(sequencer.writer.batches, 1, "nothing to write");
    }

    #[test]
    fn after_a_failed_write_nothing_is_reported_as_committed() {
        let mut sequencer = sequencer(true);
        let watch = armed(&sequencer, "a");
        let answers = sequencer.commit(vec![request(None, "a"), request(Some("a"), "b"), request(None, "c")]);
        assert!(matches!(
            answers[..],
            [Err(Error::UnknownOpen), Err(Error::Conflict), Err(Error::UnknownOpen)]
        ));
        // Even if the disk is well again.
        sequencer.writer.is_full = false;
        let answers = sequencer.commit(vec![request(None, "a")]);
        assert!(
            matches!(&answers[..], [Err(Error::Unavailable(why))] if why.contains("disk full") && why.contains("restart")),
            "{answers:?}"
        );
        assert_eq!(sequencer.writer.batches, 1);
        assert!(!watch.has_fired());
        let version = sequencer.shared.read_version().unwrap();
        assert!(sequencer.shared.view_at(version).is_ok(), "reads go on");
    }

    #[test]
    fn a_failed_write_is_told_to_who_waits_for_it() {
        let mut sequencer = sequencer(false);
        let shared = Arc::clone(&sequencer.shared);
        sequencer.commit(vec![request(None, "a"), request(Some("a"), "b")]);
        assert_eq!(shared.failed().now_or_never(), None);
        sequencer.writer.is_full = true;
        sequencer.commit(vec![request(None, "a")]);
        let why = shared.failed().now_or_never().unwrap();
        assert!(why.contains("disk full"), "{why}");
    }

    #[test]
    fn a_panic_is_told_to_who_waits_for_a_failure() {
        let sequencer = sequencer(false);
        let shared = Arc::clone(&sequencer.shared);
        let panicking = std::thread::spawn(move || {
            let _sequencer = sequencer;
            panic!("on purpose");
        });
        assert!(panicking.join().is_err());
        assert!(shared.failed().now_or_never().unwrap().contains("panicked"));
    }
}
