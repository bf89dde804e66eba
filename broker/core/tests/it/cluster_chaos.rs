//! Queues and streams while pods die, leave and come, and links break: what was acknowledged is there, and what was
//! consumed is consumed once it was acknowledged.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use weir_core::core::Receipt;
use weir_core::definition::Kind;
use weir_core::key::Publisher;
use weir_core::stream::Start;
use weir_env::seed::{Seed, trials};

use crate::cluster_support::Pods;
use crate::support::{TestConsumer, definition, message, read, reader, text};

/// Each takes seconds: `WEIR_TEST_SEEDS=0..50` runs more.
const SEEDS: u64 = 4;
const STEPS: u64 = 60;

#[tokio::test(start_paused = true)]
async fn nothing_acknowledged_is_lost_whatever_happens_to_pods_and_links() {
    for trial in trials(SEEDS) {
        Run::new(trial.seed()).await.go().await;
    }
}

struct Run {
    number: u64,
    seed: Seed,
    pods: Pods,
    /// By payload.
    receipts: Vec<(String, Receipt)>,
    consumers: BTreeMap<usize, TestConsumer>,
    /// Messages of the queue that a consumer was given, and how often.
    given: BTreeMap<String, u32>,
    /// Pods that have died with messages of theirs, or of their clients, under way.
    disturbed: bool,
    next_consumer: u64,
}

impl Run {
    async fn new(number: u64) -> Self {
        let definitions = [definition(Kind::Queue, "q", "a/#", 4), definition(Kind::Stream, "s", "a/#", 4)];
        let pods = Pods::open(3, 100 + number, &definitions).await;
        Self {
            number,
            seed: Seed::fixed(number),
            pods,
            receipts: Vec::new(),
            consumers: BTreeMap::new(),
            given: BTreeMap::new(),
            disturbed: false,
            next_consumer: 0,
        }
    }

    async fn go(mut self) {
        for pod in 0..3 {
            self.attach(pod).await;
        }
        for step in 0..STEPS {
            for n in 0..4 {
                self.publish(&format!("{step} {n}")).await;
            }
            match self.seed.below(12) {
                0 => self.cut(),
                1 if self.pods.cores.len() > 2 => self.kill().await,
                2 if self.pods.cores.len() < 4 => {
                    let pod = self.pods.join().await;
                    self.attach(pod).await;
                }
                _ => {}
            }
            tokio::time::sleep(Duration::from_millis(self.seed.below(300))).await;
            self.consume().await;
        }
        let mut acknowledged = BTreeSet::new();
        for (payload, receipt) in std::mem::take(&mut self.receipts) {
            let failures = tokio::time::timeout(Duration::from_secs(120), receipt.settled()).await.unwrap();
            if failures.is_empty() {
                acknowledged.insert(payload);
            }
        }
        // Longer than what a dead pod's consumers held is theirs.
        for _ in 0..60 {
            tokio::time::sleep(Duration::from_secs(1)).await;
            self.consume().await;
        }
        let number = self.number;
        let consumed: BTreeSet<String> = self.given.keys().cloned().collect();
        let lost: Vec<&String> = acknowledged.difference(&consumed).collect();
        assert!(lost.is_empty(), "seed {number}: never consumed: {lost:?}");
        if !self.disturbed {
            assert!(self.given.values().all(|count| *count == 1), "seed {number}: {:?}", self.given);
        }
        let core = &self.pods.cores[0];
        let queue = self.pods.find(0, Kind::Queue, "q");
        let depth: u64 = core
            .describe(&queue)
            .await
            .unwrap_or_else(|error| panic!("seed {number}: {error}"))
            .into_iter()
            .map(|log| log.queue.unwrap().depth)
            .sum();
        assert_eq!(depth, 0, "seed {number}");
        let stream = self.pods.find(0, Kind::Stream, "s");
        let reports = core.describe(&stream).await.unwrap();
        let count: u64 = reports.iter().map(|log| log.extent.next).sum();
        let mut reading = reader(core, &stream, Start::Earliest).await;
        let stored = read(&mut reading, usize::try_from(count).unwrap()).await;
        let stored: BTreeSet<String> = stored.into_iter().map(|(_, payload)| payload).collect();
        assert!(acknowledged.is_subset(&stored), "seed {number}: lost in the stream");
    }

    async fn attach(&mut self, pod: usize) {
        self.next_consumer += 1;
        let queue = self.pods.find(pod, Kind::Queue, "q");
        let id = self.next_consumer;
        let consumer = TestConsumer::try_attach(&self.pods.cores[pod], &queue, id, 5).await;
        let consumer = consumer.unwrap_or_else(|error| panic!("seed {} pod {pod}: {error}", self.number));
        self.consumers.insert(pod, consumer);
    }

    async fn publish(&mut self, payload: &str) {
        let pod = usize::try_from(self.seed.below(self.pods.cores.len() as u64)).unwrap();
        let core = &self.pods.cores[pod];
        let message = message(self.pods.clock, &format!("a/{}", self.seed.below(16)), payload);
        let targets = core.targets(&message.topic);
        assert_eq!(targets.len(), 2);
        let receipt = core.append(&targets, &message, &Publisher::default(), None).await.unwrap();
        self.receipts.push((payload.to_owned(), receipt));
    }

    async fn consume(&mut self) {
        for (pod, consumer) in &mut self.consumers {
            while let Ok(delivery) = consumer.deliveries.try_recv() {
                *self.given.entry(text(&delivery)).or_default() += 1;
                consumer.ack(&self.pods.cores[*pod], &delivery).await;
            }
        }
    }

    fn cut(&self) {
        let cores = &self.pods.cores;
        let one = usize::try_from(self.seed.below(cores.len() as u64)).unwrap();
        self.pods.network.cut(cores[one].pod(), cores[(one + 1) % cores.len()].pod());
    }

    async fn kill(&mut self) {
        self.disturbed = true;
        let pod = usize::try_from(self.seed.below(self.pods.cores.len() as u64)).unwrap();
        self.consumers.remove(&pod);
        // What its own clients had published is nobody's any more; what others wait for is.
        let dead = self.pods.kill(pod).await;
        std::mem::forget(dead);
        let consumers = std::mem::take(&mut self.consumers);
        self.consumers = consumers
            .into_iter()
            .map(|(at, consumer)| (if at > pod { at - 1 } else { at }, consumer))
            .collect();
    }
}
