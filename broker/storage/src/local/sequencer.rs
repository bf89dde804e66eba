//! The order of commits: checks a batch of transactions for conflicts, gives it one version, has it made
//! durable, and only then makes it visible and reports it.
//!
//! Whoever owns the [`Sequencer`] is the one committer of its store. It blocks for as long as its engine's
//! writer does, so an engine with a disk gives it a thread.

use std::sync::Arc;

use weir_env::clock::Instant;

use super::resolver::{RANGES_MAX, Resolver, Verdict};
use super::shared::LIFETIME_VERSIONS;
use super::{ApplyError, KeyRange, Room, Shared, WriteSet, Writer};
use crate::pending::Mutation;
use crate::{Committed, Error, Result, StoreStats, Version, Versionstamp};

/// What a transaction that clears something may write when there is little room on the disk.
const FREEING_BYTES_MAX: usize = 16 << 10;

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

    /// How many keys are set or cleared and ranges cleared, at most.
    pub(crate) fn changes(&self) -> usize {
        self.writes.keys().count() + self.writes.cleared().count() + self.stamped.len()
    }

    /// A request that only writes.
    #[cfg(test)]
    pub(crate) fn of(writes: WriteSet) -> Self {
        Self {
            read_version: Version(1),
            reads: Vec::new(),
            write_conflicts: Vec::new(),
            writes,
            stamped: Vec::new(),
            asked_at: weir_env::clock::Clock::system().now(),
        }
    }

    /// Whether the disk has more room after this.
    fn frees(&self) -> bool {
        let mut keys = self.writes.keys();
        let clears = self.writes.cleared().next().is_some() || keys.any(|(_, value)| value.is_none());
        clears && self.bytes() <= FREEING_BYTES_MAX
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
    pub(crate) fn new(shared: Arc<Shared<W::View>>, writer: W, version: Version) -> Self {
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
        let room = self.writer.room();
        for request in requests {
            let answer =
                self.fits(&request, &room).and_then(|()| self.admit(request, version, passed, &mut batch));
            passed += u16::from(answer.is_ok());
            answers.push(answer);
        }
        // Keys that a later one of the batch clears with a range are noted as part of that.
        self.resolver.note_keys(version, &batch);
        if passed == 0 {
            match self.writer.moved() {
                Some(view) => self.shared.publish(version, view, &batch),
                None => self.shared.abort_commit(),
            }
        } else if let Err(error) = self.apply(version, &batch, passed) {
            for answer in answers.iter_mut().filter(|answer| answer.is_ok()) {
                *answer = Err(error.clone());
            }
        }
        answers
    }

    fn fits(&self, request: &CommitRequest, room: &Room) -> Result<()> {
        let error = match room {
            Room::Plenty => return Ok(()),
            Room::OnlyFreeing(_) if request.frees() => return Ok(()),
            Room::OnlyFreeing(error) | Room::Nothing(error) => error,
        };
        StoreStats::add(&self.shared.stats.refused_full, 1);
        Err(error.clone())
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
        match self.resolver.check(request.read_version, &request.reads, batch) {
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
        for range in writes.cleared().chain(request.write_conflicts) {
            self.resolver.note(version, range);
        }
        if batch.is_empty() {
            *batch = writes;
        } else {
            batch.extend(writes);
        }
        Ok(Committed { version, versionstamp: Some(stamp) })
    }

    fn apply(&mut self, version: Version, batch: &WriteSet, passed: u16) -> Result<()> {
        match self.writer.apply(version, batch) {
            Ok(view) => {
                self.shared.publish(version, view, batch);
                let oldest = Version(version.0.saturating_sub(2 * LIFETIME_VERSIONS));
                self.writer.retire(self.shared.oldest_needed(oldest));
                let stats = &self.shared.stats;
                StoreStats::add(&stats.commits, usize::from(passed));
                StoreStats::add(&stats.batches, 1);
                StoreStats::add(&stats.bytes, batch.bytes());
                Ok(())
            }
            // What was noted for conflicts stays: it costs a needless retry.
            Err(ApplyError::Refused(error)) => {
                self.shared.abort_commit();
                StoreStats::add(&self.shared.stats.refused_full, passed.into());
                Err(error)
            }
            Err(ApplyError::Failed(error)) => {
                tracing::error!(%error, "a commit failed: the store takes no more of them");
                self.shared.abort_commit();
                self.broken = Some(format!("an earlier commit failed ({error}); restart to recover").into());
                self.shared.fail(format!("a commit to the store failed: {error}").into());
                // The bytes may have reached the disk, and would be there after a restart.
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

    #[derive(Debug, Default)]
    struct Disk {
        /// Batches fail.
        is_broken: bool,
        /// Batches are refused.
        is_full: bool,
        /// Only what frees room is taken.
        is_short: bool,
        batches: usize,
    }

    fn full() -> Error {
        Error::Unavailable("disk full".into())
    }

    impl Writer for Disk {
        type View = Nothing;

        fn apply(&mut self, _: Version, _: &WriteSet) -> Result<Nothing, ApplyError> {
            self.batches += 1;
            match self {
                Self { is_broken: true, .. } => Err(ApplyError::Failed(full())),
                Self { is_full: true, .. } => Err(ApplyError::Refused(full())),
                _ => Ok(Nothing),
            }
        }

        fn room(&mut self) -> Room {
            if self.is_short { Room::OnlyFreeing(full()) } else { Room::Plenty }
        }

        fn retire(&mut self, _: Version) {}
    }

    fn sequencer(is_broken: bool) -> Sequencer<Disk> {
        let shared = Shared::new(Version(1), Nothing, Clock::system(), Arc::default());
        Sequencer::new(shared, Disk { is_broken, ..Disk::default() }, Version(1))
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
        sequencer.writer.is_broken = false;
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
    fn a_full_disk_refuses_and_is_forgotten_when_there_is_room() {
        let mut sequencer = sequencer(false);
        let watch = armed(&sequencer, "a");
        sequencer.writer.is_full = true;
        let answers = sequencer.commit(vec![request(None, "a"), request(None, "b")]);
        assert!(
            matches!(answers[..], [Err(Error::Unavailable(_)), Err(Error::Unavailable(_))]),
            "{answers:?}"
        );
        assert!(!watch.has_fired());
        assert_eq!(sequencer.shared.failed().now_or_never(), None);
        sequencer.writer.is_full = false;
        assert!(sequencer.commit(vec![request(None, "a")])[0].is_ok());
        assert!(watch.has_fired());
        assert_eq!(sequencer.shared.stats.refused_full.load(std::sync::atomic::Ordering::Relaxed), 2);
    }

    #[test]
    fn with_little_room_only_what_clears_and_writes_little_is_taken() {
        let mut sequencer = sequencer(false);
        sequencer.writer.is_short = true;
        let clearing = |value: usize| {
            let mut request = request(None, "state");
            request.writes.set(Bytes::from("state"), vec![0; value].into());
            request.writes.clear_range(KeyRange::key(b"old"));
            request
        };
        let mut clear = request(None, "a");
        clear.writes.clear(Bytes::from("a"));
        let answers = sequencer.commit(vec![request(None, "a"), clearing(1_000), clearing(17_000), clear]);
        assert!(
            matches!(answers[..], [Err(Error::Unavailable(_)), Ok(_), Err(Error::Unavailable(_)), Ok(_)]),
            "{answers:?}"
        );
        assert_eq!(sequencer.writer.batches, 1);
    }

    #[test]
    fn a_failed_write_is_told_to_who_waits_for_it() {
        let mut sequencer = sequencer(false);
        let shared = Arc::clone(&sequencer.shared);
        sequencer.commit(vec![request(None, "a"), request(Some("a"), "b")]);
        assert_eq!(shared.failed().now_or_never(), None);
        sequencer.writer.is_broken = true;
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
