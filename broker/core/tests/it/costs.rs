//! What queues and streams write to the store, byte by byte: the goals of the keyspace as figures.

use std::sync::Arc;
use std::time::Duration;

use weir_core::Core;
use weir_core::definition::{Definition, Kind};
use weir_core::key::Publisher;
use weir_core::keyspace::record::RecordKind;
use weir_env::clock::Clock;
use weir_env::seed::Seed;
use weir_storage::{Cost, Meter, MeteredStore, Outcome, SharedStore};

use crate::support::{TestConsumer, definition, memory, message, open};

const TOPIC: &str = "sensor/7/data";

struct Metered {
    core: Core,
    clock: Clock,
    meter: Arc<Meter>,
}

impl Metered {
    async fn start(definition: Definition) -> Self {
        let (store, clock) = memory();
        let meter = Arc::new(Meter::new(RecordKind::ALL.len(), RecordKind::index_of));
        let store: SharedStore = Arc::new(MeteredStore::new(store, Arc::clone(&meter)));
        let core = open(&store, clock, 1).await;
        core.apply(&[definition]).await.unwrap();
        let metered = Self { core, clock, meter };
        // Takes the shard over.
        metered.publish(1, 16).await;
        metered
    }

    /// Publishes `n` messages of `size` bytes, which the shard may gather as it likes.
    async fn publish(&self, n: usize, size: usize) {
        let message = message(self.clock, TOPIC, &"x".repeat(size));
        let targets = self.core.targets(&message.topic);
        let mut receipts = Vec::new();
        for _ in 0..n {
            receipts.push(self.core.append(&targets, &message, &Publisher::default(), None).await.unwrap());
        }
        for receipt in receipts {
            assert!(receipt.settled().await.is_empty());
        }
    }

    fn cost(&self, kind: RecordKind) -> Cost {
        self.meter.cost(kind as usize)
    }

    /// Bytes written so far, of all kinds.
    fn written(&self) -> u64 {
        RecordKind::ALL.iter().map(|kind| self.cost(*kind).bytes_written).sum()
    }

    fn commits(&self) -> u64 {
        self.meter.transactions(Outcome::Committed)
    }
}

fn per(bytes: u64, n: u64) -> f64 {
    f64::from(u32::try_from(bytes).unwrap()) / f64::from(u32::try_from(n).unwrap())
}

#[tokio::test(start_paused = true)]
async fn an_append_writes_its_bytes_to_the_records_that_hold_them() {
    let metered = Metered::start(definition(Kind::Stream, "s", "sensor/+/data", 1)).await;
    let kinds = [RecordKind::Segment, RecordKind::TimeIndex, RecordKind::LogState];
    let before = kinds.map(|kind| metered.cost(kind));
    let (all_before, commits) = (metered.written(), metered.commits());
    metered.publish(1, 1000).await;
    let [segment, index, state] = kinds.map(|kind| metered.cost(kind));
    assert_eq!(metered.commits() - commits, 1);
    for (after, before) in [segment, index, state].iter().zip(&before) {
        assert_eq!(after.keys_written - before.keys_written, 1);
    }
    let [segment, index, state] = [segment, index, state].map(|cost| cost.bytes_written);
    let overhead = segment - before[0].bytes_written - 1000 - TOPIC.len() as u64;
    assert!((40..70).contains(&overhead), "key, header and record: {overhead} bytes");
    // By `docs/keyspace.md`: a key of 25 bytes and two of value; 9 and 65.
    assert!((27..33).contains(&(index - before[1].bytes_written)));
    assert_eq!(state - before[2].bytes_written, 74);
    let counted = segment + index + state - before.iter().map(|cost| cost.bytes_written).sum::<u64>();
    assert_eq!(metered.written() - all_before, counted, "and nothing else was written");
    let cleared = RecordKind::ALL.iter().map(|kind| metered.cost(*kind)).map(|cost| cost.keys_cleared);
    assert_eq!(cleared.sum::<u64>(), 0);
    metered.core.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_stream_writes_less_than_48_bytes_over_what_it_keeps() {
    for size in [16, 100, 300] {
        let metered = Metered::start(definition(Kind::Stream, "s", "sensor/+/data", 1)).await;
        let (before, segments) = (metered.written(), metered.cost(RecordKind::Segment).keys_written);
        let n = 6_400;
        metered.publish(n, size).await;
        let segments = metered.cost(RecordKind::Segment).keys_written - segments;
        let n = n as u64;
        assert!(n / segments >= 64, "{} messages of {size} bytes a segment", n / segments);
        let kept = n * (size + TOPIC.len()) as u64;
        let overhead = per(metered.written() - before - kept, n);
        assert!(overhead < 48.0, "{overhead} bytes a message of {size} bytes");
        metered.core.close().await;
    }
}

/// Acknowledges `n` messages of a queue, a hundred a commit, in the order that `order` makes of the deliveries in the
/// consumer's hands; bytes written for each.
async fn ack(order: fn(&mut Vec<weir_core::queue::QueueDelivery>)) -> f64 {
    const ACKS: usize = 4_000;
    const WINDOW: usize = 1_000;
    const COMMIT: usize = 100;
    let metered = Metered::start(definition(Kind::Queue, "q", "sensor/+/data", 1)).await;
    let queue = metered.core.catalog().view().find(Kind::Queue, "q").unwrap();
    metered.publish(ACKS, 100).await;
    let mut consumer = TestConsumer::attach(&metered.core, &queue, 1, u32::try_from(WINDOW).unwrap()).await;
    let mut held = Vec::new();
    let (mut acked, mut commits) = (0, 0);
    let (written, mut last) = (metered.written(), metered.commits());
    while acked < ACKS {
        while held.len() < WINDOW.min(ACKS - acked) {
            held.push(consumer.next().await);
        }
        order(&mut held);
        for delivery in held.drain(..COMMIT) {
            consumer.ack(&metered.core, &delivery).await;
        }
        acked += COMMIT;
        // Acknowledgements wait a few milliseconds for others.
        tokio::time::sleep(Duration::from_millis(20)).await;
        commits += u64::from(metered.commits() > last);
        last = metered.commits();
    }
    assert_eq!(commits, (ACKS / COMMIT) as u64, "one commit for each hundred");
    let written = metered.written() - written;
    metered.core.close().await;
    per(written, ACKS as u64)
}

#[tokio::test(start_paused = true)]
async fn an_ack_in_order_writes_less_than_a_byte() {
    let bytes = ack(|_| {}).await;
    assert!(bytes < 1.0, "{bytes} bytes an acknowledgement");
}

#[tokio::test(start_paused = true)]
async fn an_ack_in_random_order_writes_less_than_40_bytes() {
    let bytes = ack(|held| {
        let seed = Seed::fixed(held.len() as u64);
        for n in (1..held.len()).rev() {
            let other = usize::try_from(seed.next_u64() % (n as u64 + 1)).unwrap();
            held.swap(n, other);
        }
    })
    .await;
    assert!((1.0..40.0).contains(&bytes), "{bytes} bytes an acknowledgement");
}
