//! A queue's shard against a simple model: arbitrary appends, consumers that come, go, acknowledge, refuse or
//! stay silent, time that passes, commits, restarts and crashes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use tokio::sync::mpsc;
use weir_env::clock::{Clock, Instant, Timestamp};
use weir_env::seed::Seed;

use super::{
    AsideChange, Consumer, ConsumerId, DirtyQueue, Lag, Limits, Lost, QueueDelivery, QueueShard, Settings,
    StoredQueue, Verdict, Window,
};
use crate::definition::{DispatchSettings, Strategy as Dispatch};
use crate::keyspace::queue::{AckBlock, Attempts, QueueFloor};
use crate::keyspace::segment::{Record, RecordKey};
use crate::keyspace::{LogId, VirtualShard};
use crate::message::tests::full_message;
use crate::metrics::Metrics;

const LOG: LogId = LogId { vs: VirtualShard(0), object: 1, shard: 0, class: 0 };

#[derive(Clone, Debug)]
enum Step {
    Append(u8),
    Attach(u8),
    Detach(u8, bool),
    Settle(u8, u8),
    Wait(u16),
    Commit,
    FailedCommit,
    MoveAside,
    Restart { commit: bool },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (1..20u8).prop_map(Step::Append),
        2 => (1..12u8).prop_map(Step::Attach),
        1 => (any::<u8>(), any::<bool>()).prop_map(|(n, vanished)| Step::Detach(n, vanished)),
        10 => (any::<u8>(), any::<u8>()).prop_map(|(n, verdict)| Step::Settle(n, verdict)),
        2 => (0..8000u16).prop_map(Step::Wait),
        1 => Just(Step::Commit),
        1 => Just(Step::FailedCommit),
        2 => Just(Step::MoveAside),
        1 => any::<bool>().prop_map(|commit| Step::Restart { commit }),
    ]
}

struct TestConsumer {
    consumer: Consumer,
    window: usize,
    deliveries: mpsc::Receiver<QueueDelivery>,
    /// Delivered and not settled, in leases or not.
    unsettled: Vec<u64>,
}

/// What the store would hold.
#[derive(Clone, Debug, Default)]
struct Stored {
    floor: QueueFloor,
    blocks: BTreeMap<u64, AckBlock>,
    attempts: BTreeMap<u64, Attempts>,
    asides: BTreeMap<u64, Arc<Record>>,
    done: BTreeSet<u64>,
}

struct World {
    settings: DispatchSettings,
    shard: QueueShard,
    started: Instant,
    now: Instant,
    log: Vec<Arc<Record>>,
    stored: Stored,
    consumers: BTreeMap<u64, TestConsumer>,
    next_consumer: u64,
    done: BTreeSet<u64>,
    /// Who holds what until when.
    held: BTreeMap<u64, (u64, Instant)>,
    delayed: BTreeMap<u64, Instant>,
    attempts: BTreeMap<u64, u32>,
}

fn restore(stored: &Stored, next: u64, settings: &DispatchSettings) -> QueueShard {
    let stored = StoredQueue {
        counters: stored.floor,
        blocks: stored.blocks.clone(),
        attempts: stored.attempts.clone(),
        next,
    };
    let lag = Lag { offsets: 4, bytes: u64::MAX };
    let settings = Settings {
        dispatch: settings.clone(),
        max_age: None,
        has_dead_letters: false,
        lag,
        limits: Limits::default(),
    };
    QueueShard::restore(LOG, stored, settings, Seed::fixed(1), Metrics::default())
}

impl World {
    fn new(settings: DispatchSettings) -> Self {
        let stored = Stored::default();
        let now = Clock::system().now();
        Self {
            shard: restore(&stored, 0, &settings),
            settings,
            started: now,
            now,
            log: Vec::new(),
            stored,
            consumers: BTreeMap::new(),
            next_consumer: 0,
            done: BTreeSet::new(),
            held: BTreeMap::new(),
            delayed: BTreeMap::new(),
            attempts: BTreeMap::new(),
        }
    }

    fn wall(&self) -> Timestamp {
        Timestamp::default().saturating_add(self.now - self.started)
    }

    fn next(&self) -> u64 {
        self.log.len() as u64
    }

    fn apply(&mut self, step: &Step) {
        match *step {
            Step::Append(count) => self.append(usize::from(count)),
            Step::Attach(window) => self.attach(usize::from(window)),
            Step::Detach(n, vanished) => self.detach(n, vanished),
            Step::Settle(n, verdict) => self.settle(n, verdict),
            Step::Wait(millis) => self.wait(Duration::from_millis(u64::from(millis))),
            Step::Commit => self.commit(0),
            Step::FailedCommit => self.fail_commit(),
            Step::MoveAside => self.move_aside(),
            Step::Restart { commit } => self.restart(commit),
        }
        self.pump();
        self.check();
    }

    /// What the owner writes along with records of `cost`.
    fn commit(&mut self, cost: u64) {
        let DirtyQueue { mut floor, blocks, attempts, asides } = self.shard.take_dirty();
        floor.bytes += cost;
        self.stored.floor = floor;
        for (block, bits) in blocks {
            match bits {
                Some(bits) => drop(self.stored.blocks.insert(block, bits)),
                None => drop(self.stored.blocks.remove(&block)),
            }
        }
        for (offset, count) in attempts {
            match count {
                Some(count) => drop(self.stored.attempts.insert(offset, count)),
                None => drop(self.stored.attempts.remove(&offset)),
            }
        }
        for (offset, change) in asides {
            match change {
                AsideChange::Moved(record) => drop(self.stored.asides.insert(offset, record)),
                AsideChange::Ended { blob } => {
                    assert!(!blob);
                    self.stored.asides.remove(&offset);
                }
            }
        }
        self.stored.done.clone_from(&self.done);
        self.shard.written();
    }

    /// A commit that fails.
    fn fail_commit(&mut self) {
        let dirty = self.shard.take_dirty();
        self.shard.restore_dirty(&dirty);
    }

    /// What the owner does when it looks where the log can be cut, time and again.
    fn move_aside(&mut self) {
        self.shard.check_lag(0);
        while let Some(from) = self.shard.wants_stragglers() {
            let at = usize::try_from(from).unwrap();
            let records = self.log[at..].iter().take(7).map(|record| (**record).clone());
            self.shard.move_aside((from..).zip(records).collect());
            assert!(self.shard.floor() > from);
            self.commit(0);
            self.shard.check_lag(0);
        }
        let floor = self.shard.floor();
        let lag = self.done.range(floor..).count() as u64;
        let span = self.done.last().map_or(0, |last| last.saturating_sub(floor));
        assert!(lag <= 4 || span > 2 * lag, "{lag} done messages of {span} above the floor");
    }

    fn append(&mut self, count: usize) {
        let base = self.next();
        let records: Vec<Arc<Record>> = (0..count)
            .map(|_| {
                let message = crate::message::Message { expires_at: None, ..full_message() };
                Arc::new(Record {
                    message,
                    key: RecordKey::None,
                    blob_len: None,
                    span: tracing::Span::none(),
                })
            })
            .collect();
        self.commit(records.iter().map(|record| record.cost()).sum());
        self.log.extend(records.iter().cloned());
        self.shard.appended(base, records.into_iter());
    }

    fn attach(&mut self, window: usize) {
        if self.consumers.len() >= 4 {
            return;
        }
        let (tx, deliveries) = mpsc::channel(window);
        let id = self.next_consumer;
        self.next_consumer += 1;
        let consumer = Consumer {
            id: ConsumerId(id),
            client_id: format!("c{id}").into(),
            since: Timestamp::default(),
            window: Arc::new(Window::new(u32::try_from(window).unwrap())),
            connection_window: None,
            deliveries: tx,
        };
        self.shard.attach(consumer.clone());
        self.consumers.insert(id, TestConsumer { consumer, window, deliveries, unsettled: Vec::new() });
    }

    fn detach(&mut self, n: u8, vanished: bool) {
        let Some(id) = self.consumers.keys().nth(usize::from(n) % self.consumers.len().max(1)).copied()
        else {
            return;
        };
        self.consumers.remove(&id);
        let lost = if vanished { Lost::Vanished } else { Lost::Left };
        self.shard.detach(ConsumerId(id), lost);
        let held: Vec<u64> = self.held.iter().filter(|(_, held)| held.0 == id).map(|(n, _)| *n).collect();
        for offset in held {
            self.held.remove(&offset);
            if vanished {
                self.count_attempt(offset);
            }
        }
    }

    fn count_attempt(&mut self, offset: u64) -> bool {
        let attempts = self.attempts.entry(offset).or_default();
        *attempts += 1;
        let exhausted = self.settings.max_deliveries != 0 && *attempts >= self.settings.max_deliveries;
        if exhausted {
            self.done.insert(offset);
        }
        exhausted
    }

    fn fail(&mut self, offset: u64) {
        self.held.remove(&offset);
        if !self.count_attempt(offset) {
            let due = self.now + self.settings.backoff(self.attempts[&offset]);
            self.delayed.insert(offset, due);
        }
    }

    fn settle(&mut self, n: u8, verdict: u8) {
        let all: Vec<(u64, u64)> = self
            .consumers
            .iter()
            .flat_map(|(id, consumer)| consumer.unsettled.iter().map(|offset| (*id, *offset)))
            .collect();
        let Some((id, offset)) = all.get(usize::from(n) % all.len().max(1)).copied() else { return };
        let verdict = match verdict % 8 {
            0 => Verdict::Rejected,
            1 => Verdict::Returned,
            _ => Verdict::Acknowledged,
        };
        let consumer = self.consumers.get_mut(&id).unwrap();
        let at = consumer.unsettled.iter().position(|held| *held == offset).unwrap();
        consumer.unsettled.remove(at);
        if consumer.consumer.give_back() {
            self.shard.kick();
        }
        self.shard.settle(ConsumerId(id), offset, verdict, self.now, self.wall());
        let is_held = self.held.get(&offset).is_some_and(|held| held.0 == id);
        match verdict {
            Verdict::Acknowledged => {
                self.done.insert(offset);
                self.held.remove(&offset);
                self.delayed.remove(&offset);
            }
            Verdict::Rejected if is_held => self.fail(offset),
            Verdict::Returned if is_held => drop(self.held.remove(&offset)),
            Verdict::Rejected | Verdict::Returned => {}
        }
    }

    fn wait(&mut self, time: Duration) {
        self.now += time;
        if self.shard.poll_timeout().is_some_and(|at| at <= self.now) {
            self.shard.handle_timeout(self.now, self.wall());
        }
        let late: Vec<u64> =
            self.held.iter().filter(|(_, held)| held.1 <= self.now).map(|(offset, _)| *offset).collect();
        late.into_iter().for_each(|offset| self.fail(offset));
        self.delayed.retain(|_, due| *due > self.now);
    }

    fn restart(&mut self, commit: bool) {
        if commit {
            self.commit(0);
        }
        self.shard = restore(&self.stored, self.next(), &self.settings);
        self.consumers.clear();
        self.held.clear();
        self.done.clone_from(&self.stored.done);
        self.attempts =
            self.stored.attempts.iter().map(|(offset, stored)| (*offset, stored.failed)).collect();
        let due = |stored: &Attempts| self.started + Duration::from_micros(stored.not_before.as_micros());
        let stored = self.stored.attempts.iter().map(|(offset, attempts)| (*offset, due(attempts)));
        self.delayed = stored.filter(|(_, due)| *due > self.now).collect();
    }

    /// Does what the owner does after each turn, and takes what was delivered.
    fn pump(&mut self) {
        loop {
            self.shard.dispatch(self.now, self.wall());
            if let Some(from) = self.shard.wants_asides() {
                let rows =
                    self.stored.asides.range(from..).take(3).map(|(n, record)| (*n, Arc::clone(record)));
                let rows: Vec<(u64, Arc<Record>)> = rows.collect();
                let end = rows.last().map_or(u64::MAX, |(last, _)| last + 1);
                let missing = self.shard.asides_loaded(from, end, rows, self.now, self.wall());
                assert_eq!(missing, [0; 0]);
                continue;
            }
            let Some(from) = self.shard.wants_records() else { break };
            let at = usize::try_from(from).unwrap();
            let records: Vec<(u64, Arc<Record>)> =
                (from..).zip(self.log[at..].iter().take(7).cloned()).collect();
            let end = from + records.len() as u64;
            self.shard.loaded(from, end, records, self.now, self.wall());
        }
        let deadline = self.now + self.settings.ack_timeout();
        for (id, consumer) in &mut self.consumers {
            while let Ok(delivery) = consumer.deliveries.try_recv() {
                let offset = delivery.offset;
                assert!(!self.done.contains(&offset), "{offset} was delivered although done");
                assert!(
                    !self.delayed.contains_key(&offset),
                    "{offset} was delivered before its backoff was over"
                );
                let other = self.held.insert(offset, (*id, deadline));
                assert_eq!(other, None, "{offset} was delivered while leased");
                let attempts = self.attempts.get(&offset).copied().unwrap_or(0);
                assert_eq!(delivery.delivery_count, attempts + 1);
                assert_eq!(delivery.record, self.log[usize::try_from(offset).unwrap()]);
                consumer.unsettled.push(offset);
                assert!(consumer.unsettled.len() <= consumer.window, "beyond the window of {id}");
            }
        }
    }

    fn check(&self) {
        let depth = self.next() - self.done.len() as u64;
        assert_eq!(self.shard.depth(), depth);
        assert_eq!(self.shard.inflight(), self.held.len());
        let asides: BTreeSet<u64> = self.shard.asides().collect();
        let gone = |offset: &u64| self.done.contains(offset) || asides.contains(offset);
        let floor = (0..self.next()).find(|offset| !gone(offset)).unwrap_or(self.next());
        assert_eq!(self.shard.floor(), floor);
        assert!(asides.is_disjoint(&self.done) && asides.iter().all(|offset| *offset < floor));
        let bytes: u64 =
            (0..).zip(&self.log).filter(|(n, _)| !self.done.contains(n)).map(|(_, r)| r.cost()).sum();
        assert_eq!(self.shard.bytes(), bytes);
        let is_free = |offset: &u64| {
            !self.done.contains(offset)
                && !self.held.contains_key(offset)
                && !self.delayed.contains_key(offset)
        };
        let has_room = self.consumers.values().any(|consumer| consumer.unsettled.len() < consumer.window);
        let waits = (0..self.next()).find(is_free);
        assert!(!has_room || waits.is_none(), "{waits:?} waits although a consumer has room");
        let due = self.held.values().map(|held| held.1).chain(self.delayed.values().copied()).min();
        assert!(due.is_none() || self.shard.poll_timeout() <= due, "a time-out would be missed");
        let counted: BTreeMap<u64, u32> =
            self.shard.consumers().map(|(id, unsettled)| (id.0, unsettled)).collect();
        let unsettled = |c: &TestConsumer| u32::try_from(c.unsettled.len()).unwrap();
        let expected: BTreeMap<u64, u32> = self.consumers.iter().map(|(id, c)| (*id, unsettled(c))).collect();
        assert_eq!(counted, expected);
    }

    /// Everything that is left is delivered to a consumer that acknowledges.
    fn drain(&mut self) {
        self.consumers.keys().copied().collect::<Vec<_>>().iter().for_each(|_| self.detach(0, false));
        self.attach(5);
        let mut rounds = 0;
        while self.done.len() as u64 != self.next() {
            self.wait(Duration::from_secs(20));
            self.pump();
            while self.consumers.values().any(|consumer| !consumer.unsettled.is_empty()) {
                self.settle(0, 7);
                self.pump();
            }
            self.check();
            rounds += 1;
            assert!(rounds < 1000, "a message is never delivered");
        }
        self.commit(0);
        assert_eq!((self.shard.depth(), self.shard.bytes()), (0, 0));
        assert!(self.stored.asides.is_empty(), "messages aside that are done stay behind");
        assert!(self.stored.attempts.is_empty(), "attempts of messages that are done stay behind");
    }
}

fn check(steps: &[Step], strategy: Dispatch, max_deliveries: u32) {
    let settings = DispatchSettings {
        strategy,
        max_deliveries,
        ack_timeout_ms: 10_000,
        backoff_initial_ms: 500,
        backoff_max_ms: 4000,
        ..DispatchSettings::default()
    };
    let mut world = World::new(settings);
    steps.iter().for_each(|step| world.apply(step));
    world.drain();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn agrees_with_a_simple_model(
        steps in prop::collection::vec(step(), 1..120),
        strategy in prop_oneof![Just(Dispatch::LeastInflight), Just(Dispatch::RoundRobin), Just(Dispatch::Random)],
        max_deliveries in prop_oneof![Just(0u32), Just(3u32)],
    ) {
        check(&steps, strategy, max_deliveries);
    }
}
