//! A queue's shard against a simple model: arbitrary appends, consumers that come, go, acknowledge, refuse or
//! stay silent, time that passes, commits, restarts and crashes, with and without order within keys.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use tokio::sync::mpsc;
use weir_env::clock::{Clock, Instant, Timestamp};
use weir_env::seed::Seed;

use super::{
    AsideChange, Consumer, ConsumerId, DirtyQueue, Handout, Lag, Lost, QueueDelivery, QueueShard, Replaced,
    Settings, StoredQueue, Verdict, Window,
};
use crate::definition::{DispatchSettings, Ordering, Strategy as Dispatch};
use crate::keyspace::queue::{AckBlock, Attempts, QueueFloor};
use crate::keyspace::segment::{Record, RecordKey};
use crate::keyspace::{LogId, VirtualShard};
use crate::message::tests::full_message;
use crate::metrics::Metrics;

const LOG: LogId = LogId { vs: VirtualShard(0), object: 1, shard: 0, class: 0 };

#[derive(Clone, Debug)]
enum Step {
    /// As many messages, of a key or of none, with or without dispatch going on while they are being committed.
    Append(u8, Option<u8>, bool),
    FailedAppend(u8, Option<u8>),
    Attach(u8),
    Detach(u8, bool),
    Settle(u8, u8),
    Wait(u16),
    Commit,
    FailedCommit,
    /// With or without a failed commit at first.
    MoveAside(bool),
    Restart {
        commit: bool,
    },
    /// Another declaration.
    Update {
        ordering: Ordering,
        window: u8,
    },
}

fn key() -> impl Strategy<Value = Option<u8>> {
    prop::option::weighted(0.9, 0..5u8)
}

fn ordering() -> impl Strategy<Value = Ordering> {
    prop_oneof![Just(Ordering::None), Just(Ordering::Key)]
}

/// `updates`: how often the declaration changes.
fn step(updates: u32) -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (1..8u8, key(), any::<bool>()).prop_map(|(n, key, meanwhile)| Step::Append(n, key, meanwhile)),
        2 => (1..20u8, key()).prop_map(|(n, key)| Step::FailedAppend(n, key)),
        2 => (1..12u8).prop_map(Step::Attach),
        1 => (any::<u8>(), any::<bool>()).prop_map(|(n, vanished)| Step::Detach(n, vanished)),
        10 => (any::<u8>(), any::<u8>()).prop_map(|(n, verdict)| Step::Settle(n, verdict)),
        2 => (0..8000u16).prop_map(Step::Wait),
        1 => Just(Step::Commit),
        1 => Just(Step::FailedCommit),
        3 => any::<bool>().prop_map(Step::MoveAside),
        1 => any::<bool>().prop_map(|commit| Step::Restart { commit }),
        updates.max(1) => (ordering(), 1..12u8).prop_map(move |(ordering, window)| {
            if updates == 0 { Step::Commit } else { Step::Update { ordering, window } }
        }),
    ]
}

struct TestConsumer {
    consumer: Consumer,
    window: usize,
    deliveries: mpsc::Receiver<QueueDelivery>,
    /// Delivered and not settled, in leases or not.
    unsettled: Vec<Handout>,
}

/// What the store would hold.
#[derive(Clone, Debug, Default)]
struct Stored {
    floor: QueueFloor,
    blocks: BTreeMap<u64, AckBlock>,
    attempts: BTreeMap<u64, Attempts>,
    asides: BTreeMap<u64, Arc<Record>>,
    done: BTreeSet<u64>,
    superseded: u64,
    replaced: BTreeSet<u64>,
}

struct World {
    /// In flight, and to end as they come back.
    replaced: BTreeSet<u64>,
    superseded: u64,
    settings: Settings,
    shard: QueueShard,
    started: Instant,
    now: Instant,
    log: Vec<Arc<Record>>,
    stored: Stored,
    consumers: BTreeMap<u64, TestConsumer>,
    next_consumer: u64,
    done: BTreeSet<u64>,
    /// Who holds what until when.
    held: BTreeMap<u64, (Handout, Instant)>,
    delayed: BTreeMap<u64, Instant>,
    attempts: BTreeMap<u64, u32>,
    /// What was stored before was there when the queue did not keep order.
    ordered_from: u64,
}

fn restore(stored: &Stored, next: u64, settings: &Settings) -> QueueShard {
    let stored = StoredQueue {
        counters: stored.floor,
        blocks: stored.blocks.clone(),
        attempts: stored.attempts.clone(),
        next,
    };
    QueueShard::restore(LOG, stored, settings.clone(), Seed::fixed(1), Metrics::default())
}

impl World {
    fn new(settings: Settings) -> Self {
        let stored = Stored::default();
        let now = Clock::system().now();
        Self {
            shard: restore(&stored, 0, &settings),
            replaced: BTreeSet::new(),
            superseded: 0,
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
            ordered_from: 0,
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
            Step::Append(count, key, meanwhile) => self.append(usize::from(count), key, meanwhile),
            Step::FailedAppend(count, key) => self.fail_append(usize::from(count), key),
            Step::Attach(window) => self.attach(usize::from(window)),
            Step::Detach(n, vanished) => self.detach(n, vanished),
            Step::Settle(n, verdict) => self.settle(n, verdict),
            Step::Wait(millis) => self.wait(Duration::from_millis(u64::from(millis))),
            Step::Commit => self.commit(),
            Step::FailedCommit => self.fail_commit(),
            Step::MoveAside(fails) => self.move_aside(fails),
            Step::Restart { commit } => self.restart(commit),
            Step::Update { ordering, window } => self.update(ordering, u32::from(window)),
        }
        self.pump();
        self.check();
    }

    /// Another declaration for a shard that is running.
    fn update(&mut self, ordering: Ordering, window: u32) {
        if self.settings.ordering == Ordering::None {
            self.ordered_from = self.next();
        }
        self.settings.ordering = ordering;
        self.shard.update(self.settings.clone(), self.now);
        for consumer in self.consumers.values_mut() {
            // Its connection does this.
            let _ = consumer.consumer.window.resize(window);
            consumer.window = window as usize;
        }
    }

    /// What the owner writes.
    fn commit(&mut self) {
        let dirty = self.shard.take_dirty();
        self.write(dirty);
        self.stored.done.clone_from(&self.done);
        self.stored.superseded = self.superseded;
        self.stored.replaced.clone_from(&self.replaced);
        self.shard.written();
    }

    fn write(&mut self, dirty: DirtyQueue) {
        let DirtyQueue { floor, blocks, attempts, asides } = dirty;
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
                AsideChange::Ended(ended) => {
                    assert!(!ended.blob);
                    self.stored.asides.remove(&offset);
                }
            }
        }
        let flagged = self.stored.attempts.iter().filter(|(_, attempts)| attempts.aside.is_some());
        let flagged: Vec<u64> = flagged.map(|(offset, _)| *offset).collect();
        let rows: Vec<u64> = self.stored.asides.keys().copied().collect();
        assert_eq!(rows, flagged, "each message aside has both rows");
    }

    /// A commit that fails.
    fn fail_commit(&mut self) {
        let dirty = self.shard.take_dirty();
        self.shard.restore_dirty(&dirty);
    }

    /// What the owner does when it looks where the log can be cut, time and again.
    fn move_aside(&mut self, fails: bool) {
        self.shard.check_lag(0);
        while let Some(from) = self.shard.wants_stragglers() {
            let at = usize::try_from(from).unwrap();
            let records = self.log[at..].iter().take(7).map(|record| (**record).clone());
            self.shard.move_aside((from..).zip(records).collect());
            assert!(self.shard.floor() > from);
            if fails {
                self.fail_commit();
            }
            self.commit();
            self.shard.check_lag(0);
        }
        let floor = self.shard.floor();
        let lag = self.done.range(floor..).count() as u64;
        let span = self.done.last().map_or(0, |last| last.saturating_sub(floor));
        assert!(lag <= 4 || span > 2 * lag, "{lag} done messages of {span} above the floor");
    }

    /// Records from `base` on, and what the shard makes of them: some have one of a few keys, some have none.
    fn plan(&self, count: usize, key: Option<u8>) -> (Vec<Arc<Record>>, Option<Replaced>) {
        let mut replaced = self.shard.replacing();
        let mut records = Vec::new();
        for offset in (self.next()..).take(count) {
            let key = match (offset * offset).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 60 {
                _ if !self.settings.last_value => {
                    key.map_or(RecordKey::None, |key| RecordKey::Bytes(vec![key].into()))
                }
                0 => RecordKey::None,
                // One key often, six rarely.
                1..10 => RecordKey::Topic,
                n => RecordKey::Bytes(vec![u8::try_from(n).unwrap()].into()),
            };
            let message = crate::message::Message { expires_at: None, ..full_message() };
            let record = Record { message, key, blob_len: None, span: tracing::Span::none() };
            if let Some(replaced) = &mut replaced {
                let freed = self.shard.makes_room(replaced, &record).unwrap();
                self.shard.replace(replaced, offset, &record);
                let keyless = Record { key: RecordKey::None, ..record.clone() };
                assert_eq!(self.shard.makes_room(replaced, &keyless), Ok(freed));
            }
            records.push(Arc::new(record));
        }
        (records, replaced)
    }

    /// What `records` replace by the model: what ends with them, and what is in flight.
    fn replaced_by(&self, records: &[Arc<Record>]) -> (Vec<u64>, Vec<u64>) {
        let mut all = self.log.clone();
        let (mut ends, mut held) = (Vec::new(), Vec::new());
        for record in records.iter().filter(|_| self.settings.last_value) {
            let is_older = |offset: &u64| {
                let key = all[usize::try_from(*offset).unwrap()].key_bytes();
                let is_gone = self.done.contains(offset) || self.replaced.contains(offset);
                key.is_some() && key == record.key_bytes() && !is_gone && !ends.contains(offset)
            };
            let older = (0..all.len() as u64).rev().find(is_older).filter(|offset| !held.contains(offset));
            match older {
                Some(older) if self.held.contains_key(&older) => held.push(older),
                Some(older) => ends.push(older),
                None => {}
            }
            all.push(Arc::clone(record));
        }
        (ends, held)
    }

    fn append(&mut self, count: usize, key: Option<u8>, meanwhile: bool) {
        let base = self.next();
        let (records, replaced) = self.plan(count, key);
        let (ends, held) = self.replaced_by(&records);
        let cost = records.iter().map(|record| record.cost()).sum();
        let dirty = self.shard.take_dirty_with(replaced.as_ref(), cost, base + count as u64);
        self.stored.done = self.done.iter().chain(&ends).copied().collect();
        self.stored.replaced = self.replaced.iter().chain(&held).copied().collect();
        self.stored.superseded = self.superseded + ends.len() as u64;
        if meanwhile {
            self.pump();
        }
        self.write(dirty);
        self.shard.written();
        self.log.extend(records.iter().cloned());
        self.shard.appended(base, records.into_iter());
        if let Some(replaced) = &replaced {
            self.shard.replaced(replaced);
        }
        assert!(meanwhile || !self.shard.is_dirty(), "all is in the store");
        for offset in ends.into_iter().chain(held) {
            self.replaced.insert(offset);
            if !self.held.contains_key(&offset) {
                self.supersede(offset);
            }
        }
    }

    fn fail_append(&mut self, count: usize, key: Option<u8>) {
        let (records, replaced) = self.plan(count, key);
        let cost = records.iter().map(|record| record.cost()).sum();
        let dirty = self.shard.take_dirty_with(replaced.as_ref(), cost, self.next() + count as u64);
        self.pump();
        self.shard.restore_dirty(&dirty);
    }

    /// Ends a message that was replaced. False if it was not.
    fn supersede(&mut self, offset: u64) -> bool {
        let replaced = self.replaced.remove(&offset);
        if replaced {
            self.done.insert(offset);
            self.delayed.remove(&offset);
            self.superseded += 1;
        }
        replaced
    }

    fn attach(&mut self, window: usize) {
        if self.consumers.len() >= 4 {
            return;
        }
        let (tx, deliveries) = mpsc::channel(20);
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
        let held: Vec<u64> =
            self.held.iter().filter(|(_, held)| held.0.consumer.0 == id).map(|(n, _)| *n).collect();
        for offset in held {
            self.held.remove(&offset);
            if !self.supersede(offset) && vanished {
                self.count_attempt(offset);
            }
        }
    }

    fn count_attempt(&mut self, offset: u64) -> bool {
        let attempts = self.attempts.entry(offset).or_default();
        *attempts += 1;
        let exhausted =
            self.settings.dispatch.max_deliveries != 0 && *attempts >= self.settings.dispatch.max_deliveries;
        if exhausted {
            self.done.insert(offset);
        }
        exhausted
    }

    fn fail(&mut self, offset: u64) {
        self.held.remove(&offset);
        if !self.supersede(offset) && !self.count_attempt(offset) {
            let due = self.now + self.settings.dispatch.backoff(self.attempts[&offset]);
            self.delayed.insert(offset, due);
        }
    }

    fn settle(&mut self, n: u8, verdict: u8) {
        let all: Vec<(u64, Handout)> = self
            .consumers
            .iter()
            .flat_map(|(id, consumer)| consumer.unsettled.iter().map(|handout| (*id, *handout)))
            .collect();
        let Some((id, handout)) = all.get(usize::from(n) % all.len().max(1)).copied() else { return };
        let verdict = match verdict % 8 {
            0 => Verdict::Rejected,
            1 => Verdict::Returned,
            _ => Verdict::Acknowledged,
        };
        let consumer = self.consumers.get_mut(&id).unwrap();
        let at = consumer.unsettled.iter().position(|held| *held == handout).unwrap();
        consumer.unsettled.remove(at);
        if consumer.consumer.give_back() {
            self.shard.kick(ConsumerId(id));
        }
        self.shard.settle(handout, verdict, self.now, self.wall());
        let offset = handout.offset;
        let is_held = self.held.get(&offset).is_some_and(|held| held.0 == handout);
        match verdict {
            Verdict::Acknowledged => {
                self.done.insert(offset);
                self.held.remove(&offset);
                self.delayed.remove(&offset);
                self.replaced.remove(&offset);
            }
            Verdict::Rejected if is_held => self.fail(offset),
            Verdict::Returned if is_held => {
                self.held.remove(&offset);
                self.supersede(offset);
            }
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
            self.commit();
        }
        self.shard = restore(&self.stored, self.next(), &self.settings);
        if self.settings.last_value {
            for (offset, record) in &self.stored.asides {
                self.shard.restore_last_value(*offset, record);
            }
            for (offset, record) in (0..).zip(&self.log).filter(|(n, _)| *n >= self.stored.floor.floor) {
                self.shard.restore_last_value(offset, record);
            }
        }
        self.consumers.clear();
        self.held.clear();
        self.done.clone_from(&self.stored.done);
        self.superseded = self.stored.superseded;
        self.replaced = &self.stored.replaced - &self.done;
        self.replaced.clone().into_iter().for_each(|offset| assert!(self.supersede(offset)));
        self.attempts =
            self.stored.attempts.iter().map(|(offset, stored)| (*offset, stored.failed)).collect();
        let due = |stored: &Attempts| self.started + Duration::from_micros(stored.not_before.as_micros());
        let stored = self.stored.attempts.iter().map(|(offset, attempts)| (*offset, due(attempts)));
        let waits = |(offset, due): &(u64, Instant)| *due > self.now && !self.done.contains(offset);
        self.delayed = stored.filter(waits).collect();
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
        let deadline = self.now + self.settings.dispatch.ack_timeout();
        let mut delivered = Vec::new();
        for (id, consumer) in &mut self.consumers {
            while let Ok(delivery) = consumer.deliveries.try_recv() {
                let offset = delivery.offset;
                assert!(!self.done.contains(&offset), "{offset} was delivered although done");
                assert!(
                    !self.delayed.contains_key(&offset),
                    "{offset} was delivered before its backoff was over"
                );
                let other = self.held.insert(offset, (delivery.handout(), deadline));
                assert_eq!(other, None, "{offset} was delivered while leased");
                let attempts = self.attempts.get(&offset).copied().unwrap_or(0);
                assert_eq!(delivery.delivery_count, attempts + 1);
                assert_eq!(delivery.record, self.log[usize::try_from(offset).unwrap()]);
                assert!(consumer.unsettled.len() < consumer.window, "beyond the window of {id}");
                consumer.unsettled.push(delivery.handout());
                delivered.push(offset);
            }
        }
        if self.settings.ordering == Ordering::Key {
            delivered.into_iter().for_each(|offset| self.check_order(offset));
        }
    }

    /// The other messages of the same key that are not done.
    fn same_key(&self, offset: u64) -> impl Iterator<Item = u64> {
        let key = self.log[usize::try_from(offset).unwrap()].key_bytes();
        let same = move |(_, record): &(u64, &Arc<Record>)| key.is_some() && record.key_bytes() == key;
        let others = (0..).zip(&self.log).filter(same).map(|(other, _)| other);
        others.filter(move |other| *other != offset && !self.done.contains(other))
    }

    /// A message that was handed out just now is the first of its key and the only one.
    fn check_order(&self, offset: u64) {
        for other in self.same_key(offset) {
            let may_be_late = other < self.ordered_from;
            assert!(
                may_be_late || other > offset,
                "{offset} was delivered before {other} of its key was done"
            );
            assert!(
                !self.held.contains_key(&other),
                "{offset} was delivered while {other} of its key was leased"
            );
        }
    }

    /// Whether a message of the same key is leased or waits for its backoff, and order is kept.
    fn has_to_wait(&self, offset: u64) -> bool {
        self.settings.ordering == Ordering::Key
            && self
                .same_key(offset)
                .any(|other| self.held.contains_key(&other) || self.delayed.contains_key(&other))
    }

    fn check(&self) {
        assert_eq!(self.shard.counters().superseded, self.superseded);
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
        let waits = (0..self.next()).find(|offset| is_free(offset) && !self.has_to_wait(*offset));
        assert!(!has_room || waits.is_none(), "{waits:?} waits although a consumer has room");
        // What was not read again since a restart waits in the store.
        let delayed = self.delayed.iter().filter(|(offset, _)| self.shard.delayed_until.contains_key(offset));
        let due = self.held.values().map(|held| held.1).chain(delayed.map(|(_, due)| *due)).min();
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
        self.commit();
        assert_eq!((self.shard.depth(), self.shard.bytes()), (0, 0));
        assert!(self.stored.asides.is_empty(), "messages aside that are done stay behind");
        assert!(self.stored.attempts.is_empty(), "attempts of messages that are done stay behind");
    }
}

fn check(steps: &[Step], ordering: Ordering, strategy: Dispatch, max_deliveries: u32, last_value: bool) {
    let dispatch = DispatchSettings {
        strategy,
        max_deliveries,
        ack_timeout_ms: 10_000,
        backoff_initial_ms: 500,
        backoff_max_ms: 4000,
        ..DispatchSettings::default()
    };
    let lag = Lag { offsets: 4, bytes: u64::MAX };
    let mut world = World::new(Settings { dispatch, ordering, lag, last_value, ..Settings::default() });
    steps.iter().for_each(|step| world.apply(step));
    world.drain();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]

    #[test]
    fn agrees_with_a_simple_model(
        steps in prop_oneof![prop::collection::vec(step(0), 1..120), prop::collection::vec(step(3), 1..120)],
        ordering in ordering(),
        strategy in prop_oneof![Just(Dispatch::LeastInflight), Just(Dispatch::RoundRobin), Just(Dispatch::Random)],
        max_deliveries in prop_oneof![Just(0u32), Just(3u32)],
        last_value in any::<bool>(),
    ) {
        check(&steps, ordering, strategy, max_deliveries, last_value);
    }
}
