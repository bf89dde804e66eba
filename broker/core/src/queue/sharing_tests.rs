//! How messages are shared out among consumers, and what waits for its key.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::mpsc;
use weir_env::clock::{Clock, Instant, Timestamp};
use weir_env::seed::Seed;

use super::keys::{HELD_BACK_BYTES_MAX, HELD_BACK_MAX};
use super::shard::{READY_BYTES_MAX, RETRY_BYTES_MAX, RETRY_MAX};
use super::{Consumer, ConsumerId, QueueDelivery, QueueShard, Settings, StoredQueue, Verdict, Window};
use crate::definition::{DispatchSettings, Ordering, Strategy};
use crate::keyspace::segment::{Record, RecordKey};
use crate::keyspace::{LogId, VirtualShard};
use crate::message::Message;
use crate::message::tests::full_message;
use crate::metrics::Metrics;

struct Receiver {
    consumer: Consumer,
    deliveries: mpsc::Receiver<QueueDelivery>,
    held: Vec<QueueDelivery>,
    /// Everything it ever got.
    got: usize,
}

/// A queue of some shards, whose messages are in memory.
struct Queue {
    shards: Vec<QueueShard>,
    receivers: Vec<Receiver>,
    appended: Vec<u64>,
    /// Of what is appended.
    payload: Bytes,
    metrics: Metrics,
    now: Instant,
}

impl Queue {
    fn new(shards: u8, settings: &Settings) -> Self {
        let metrics = Metrics::default();
        let log = |shard| LogId { vs: VirtualShard(u16::from(shard)), object: 1, shard, class: 0 };
        let restore = |shard| {
            let (stored, seed) = (StoredQueue::default(), Seed::fixed(u64::from(shard)));
            QueueShard::restore(log(shard), stored, settings.clone(), seed, metrics.clone())
        };
        Self {
            shards: (0..shards).map(restore).collect(),
            receivers: Vec::new(),
            appended: vec![0; usize::from(shards)],
            payload: Bytes::from_static(b"payload"),
            metrics: metrics.clone(),
            now: Clock::system().now(),
        }
    }

    fn of(shards: u8, strategy: Strategy) -> Self {
        let dispatch = DispatchSettings { strategy, ..DispatchSettings::default() };
        Self::new(shards, &Settings { dispatch, ..Settings::default() })
    }

    fn attach(&mut self, window: u32) -> usize {
        let (tx, deliveries) = mpsc::channel(1000);
        let consumer = Consumer {
            id: ConsumerId(self.receivers.len() as u64),
            client_id: "c".into(),
            since: Timestamp::default(),
            window: Arc::new(Window::new(window)),
            connection_window: None,
            deliveries: tx,
        };
        self.shards.iter_mut().for_each(|shard| shard.attach(consumer.clone()));
        self.receivers.push(Receiver { consumer, deliveries, held: Vec::new(), got: 0 });
        self.receivers.len() - 1
    }

    fn append(&mut self, shard: usize, keys: impl IntoIterator<Item = Option<u8>>) {
        let payload = self.payload.clone();
        let message = Message { expires_at: None, payload, ..full_message() };
        let record = |key: Option<u8>| Record {
            message: message.clone(),
            key: key.map_or(RecordKey::None, |key| RecordKey::Bytes(vec![key].into())),
            blob_len: None,
            span: tracing::Span::none(),
        };
        let records: Vec<_> = keys.into_iter().map(record).map(Arc::new).collect();
        let base = self.appended[shard];
        self.appended[shard] += records.len() as u64;
        self.shards[shard].appended(base, records.into_iter());
    }

    /// Hands out, and takes what was delivered.
    fn pump(&mut self) {
        for shard in &mut self.shards {
            shard.dispatch(self.now, Timestamp::default());
        }
        for receiver in &mut self.receivers {
            while let Ok(delivery) = receiver.deliveries.try_recv() {
                receiver.held.push(delivery);
                receiver.got += 1;
            }
        }
    }

    /// A consumer settles the message it has held longest.
    fn settle(&mut self, receiver: usize, verdict: Verdict) {
        let Receiver { consumer, held, .. } = &mut self.receivers[receiver];
        let handout = held.remove(0).handout();
        let id = handout.consumer;
        let starved = consumer.give_back();
        let shard = &mut self.shards[usize::from(handout.log.shard)];
        shard.settle(handout, verdict, self.now, Timestamp::default());
        if starved {
            self.shards.iter_mut().for_each(|shard| shard.kick(id));
        }
    }

    fn got(&self) -> Vec<usize> {
        self.receivers.iter().map(|receiver| receiver.got).collect()
    }

    fn held(&self, receiver: usize) -> Vec<u64> {
        self.receivers[receiver].held.iter().map(|delivery| delivery.offset).collect()
    }
}

const STRATEGIES: [Strategy; 3] = [Strategy::Random, Strategy::RoundRobin, Strategy::LeastInflight];

#[test]
fn consumers_get_even_shares_over_several_shards() {
    for strategy in STRATEGIES {
        for consumers in [1, 2, 8, 64] {
            let mut queue = Queue::of(4, strategy);
            (0..consumers).for_each(|_| {
                queue.attach(100);
            });
            let messages = 64 * consumers;
            // One message at a time, as a quiet queue gets them: nobody is ever short of room.
            for n in 0..messages {
                queue.append(n % 4, [None]);
                queue.pump();
            }
            let got = queue.got();
            let (least, most) = (got.iter().min().unwrap(), got.iter().max().unwrap());
            assert_eq!(got.iter().sum::<usize>(), messages);
            match strategy {
                // 64 draws each on average: three standard deviations are 24.
                Strategy::Random => assert!(*least >= 34 && *most <= 100, "{consumers}: {got:?}"),
                Strategy::RoundRobin | Strategy::LeastInflight => {
                    assert!(most - least <= 4, "{strategy:?} {consumers}: {got:?}");
                }
            }
        }
    }
}

#[test]
fn the_least_busy_over_all_shards_comes_first() {
    let mut queue = Queue::of(2, Strategy::LeastInflight);
    let (first, second) = (queue.attach(10), queue.attach(10));
    queue.append(0, [None; 6]);
    queue.pump();
    assert_eq!(queue.got(), [3, 3]);
    (0..3).for_each(|_| queue.settle(second, Verdict::Acknowledged));
    // The other shard has handed out nothing, and knows who is busy all the same.
    queue.append(1, [None; 3]);
    queue.pump();
    assert_eq!((queue.receivers[first].got, queue.receivers[second].got), (3, 6));
}

#[test]
fn nobody_is_given_more_than_there_is_room_for_and_a_late_joiner_gets_its_share() {
    for strategy in STRATEGIES {
        let mut queue = Queue::of(2, strategy);
        let first = queue.attach(10);
        queue.append(0, [None; 100]);
        queue.append(1, [None; 100]);
        queue.pump();
        assert_eq!(queue.got(), [10], "a backlog does not pile up behind the first");
        let second = queue.attach(10);
        queue.pump();
        assert_eq!(queue.got(), [10, 10], "the second has its window full at once");
        for _ in 0..50 {
            queue.settle(first, Verdict::Acknowledged);
            queue.settle(second, Verdict::Acknowledged);
            queue.pump();
        }
        assert_eq!(queue.got(), [60, 60]);
    }
}

fn ordered() -> Settings {
    Settings { ordering: Ordering::Key, ..Settings::default() }
}

#[test]
fn a_refused_message_keeps_its_key_busy_and_others_flow() {
    let mut queue = Queue::new(1, &ordered());
    let receiver = queue.attach(10);
    queue.append(0, [Some(1), Some(1), Some(2), None, None, Some(2)]);
    queue.pump();
    assert_eq!(queue.held(receiver), [0, 2, 3, 4], "one of each key, and all without");
    queue.settle(receiver, Verdict::Rejected);
    queue.settle(receiver, Verdict::Acknowledged);
    queue.pump();
    assert_eq!(queue.held(receiver), [3, 4, 5], "0 waits for its backoff, and 1 behind it");
    queue.now += DispatchSettings::default().backoff(1);
    let now = queue.now;
    queue.shards[0].handle_timeout(now, Timestamp::default());
    queue.pump();
    assert_eq!(queue.held(receiver), [3, 4, 5, 0]);
    (0..4).for_each(|_| queue.settle(receiver, Verdict::Acknowledged));
    queue.pump();
    assert_eq!(queue.held(receiver), [1]);
    assert_eq!(queue.metrics.key_waits.get(), 2);
}

#[test]
fn what_waits_for_its_key_is_bounded() {
    let mut queue = Queue::new(1, &ordered());
    let receiver = queue.attach(10);
    for _ in 0..HELD_BACK_MAX {
        queue.append(0, [Some(1)]);
        queue.pump();
    }
    queue.append(0, [Some(1), Some(1), Some(2)]);
    queue.pump();
    assert_eq!(queue.held(receiver), [0], "the last one waits for those before it");
    assert_eq!(queue.metrics.key_lookahead_full.get(), 1);
    queue.settle(receiver, Verdict::Acknowledged);
    queue.pump();
    let last = HELD_BACK_MAX as u64 + 2;
    assert_eq!(queue.held(receiver), [1, last], "there is place for the last of the key");
}

#[test]
fn the_bytes_of_what_waits_for_its_key_are_bounded() {
    let mut queue = Queue::new(1, &ordered());
    let receiver = queue.attach(10);
    queue.payload = vec![0; HELD_BACK_BYTES_MAX / 8].into();
    for key in [1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 2] {
        queue.append(0, [Some(key)]);
        queue.pump();
    }
    assert_eq!(queue.held(receiver), [0]);
    queue.settle(receiver, Verdict::Acknowledged);
    queue.pump();
    assert_eq!(queue.held(receiver), [1, 10]);
}

#[test]
fn a_queue_that_stops_keeping_order_hands_out_what_waited() {
    let mut queue = Queue::new(1, &ordered());
    let receiver = queue.attach(10);
    queue.append(0, [Some(1); 3]);
    queue.pump();
    assert_eq!(queue.held(receiver), [0]);
    let now = queue.now;
    queue.shards[0].update(Settings::default(), now);
    queue.pump();
    assert_eq!(queue.held(receiver), [0, 1, 2]);
}

#[test]
fn bytes_that_wait_for_a_retry_are_bounded_and_new_messages_come_after_them() {
    let mut queue = Queue::of(1, Strategy::RoundRobin);
    let consumer = queue.attach(100);
    queue.payload = vec![0; RETRY_BYTES_MAX / 8].into();
    for n in 0..8 {
        queue.append(0, [None]);
        queue.pump();
        assert_eq!(queue.receivers[consumer].got, n + 1);
        queue.settle(consumer, Verdict::Rejected);
    }
    queue.append(0, [None]);
    queue.pump();
    assert_eq!(queue.receivers[consumer].got, 8, "no more before some of these are due");
    queue.now += std::time::Duration::from_secs(3600);
    let now = queue.now;
    queue.shards[0].handle_timeout(now, Timestamp::default());
    queue.pump();
    assert_eq!(queue.receivers[consumer].got, 17, "all of these, and then the new one");
}

#[test]
fn what_waits_for_a_retry_is_bounded() {
    const WINDOW: usize = 100;
    let mut queue = Queue::new(1, &Settings::default());
    let receiver = queue.attach(100);
    for _ in 0..RETRY_MAX / WINDOW {
        queue.append(0, [None; WINDOW]);
        queue.pump();
        assert_eq!(queue.held(receiver).len(), WINDOW);
        (0..WINDOW).for_each(|_| queue.settle(receiver, Verdict::Rejected));
    }
    queue.append(0, [None; WINDOW]);
    queue.pump();
    assert!(queue.held(receiver).is_empty(), "the new ones wait until there are fewer");
    queue.now += DispatchSettings::default().backoff(1);
    let now = queue.now;
    queue.shards[0].handle_timeout(now, Timestamp::default());
    queue.pump();
    assert_eq!(queue.held(receiver), (0..WINDOW as u64).collect::<Vec<_>>());
}

#[test]
fn what_is_ready_in_memory_is_bounded() {
    const PAYLOAD: usize = 64 * 1024;
    let mut queue = Queue::new(1, &Settings::default());
    let receiver = queue.attach(1);
    queue.payload = vec![0; PAYLOAD].into();
    for _ in 0..3 * READY_BYTES_MAX / PAYLOAD {
        queue.append(0, [None]);
        queue.pump();
    }
    assert_eq!(queue.held(receiver), [0]);
    let ready = queue.shards[0].ready_bytes;
    assert!((READY_BYTES_MAX / 2..READY_BYTES_MAX + 2 * PAYLOAD).contains(&ready), "{ready}");
}
