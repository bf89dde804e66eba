//! Consumers of queues whose shards other pods own.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use weir_core::Core;
use weir_core::catalog::Object;
use weir_core::definition::{Definition, Kind};
use weir_core::keyspace::tag;
use weir_core::queue::{QueueDelivery, Verdict};
use weir_storage::CommitFault;

use crate::cluster_support::Pods;
use crate::support::{TestConsumer, definition, publish, text};

fn queue(shards: u8) -> Definition {
    definition(Kind::Queue, "q", "a/#", shards)
}

/// What a consumer has been given by now.
fn given(consumer: &mut TestConsumer) -> Vec<QueueDelivery> {
    std::iter::from_fn(|| consumer.deliveries.try_recv().ok()).collect()
}

async fn depth(core: &Core, queue: &Arc<Object>) -> u64 {
    let reports = core.describe(queue).await.unwrap();
    reports.into_iter().map(|report| report.queue.unwrap().depth).sum()
}

async fn a_moment() {
    tokio::time::sleep(Duration::from_millis(300)).await;
}

#[tokio::test(start_paused = true)]
async fn a_consumer_on_another_pod_gets_and_acknowledges_messages() {
    let pods = Pods::open(3, 21, &[queue(1)]).await;
    let queue = pods.find(0, Kind::Queue, "q");
    let at = pods.other(&queue, 0);
    let core = &pods.cores[at];
    let mut consumer = TestConsumer::attach(core, &queue, 1, 5).await;
    for n in 0..40 {
        publish(core, pods.clock, "a/b", &n.to_string()).await.unwrap();
    }
    let mut seen = Vec::new();
    while seen.len() < 40 {
        a_moment().await;
        let deliveries = given(&mut consumer);
        assert!(!deliveries.is_empty() && deliveries.len() <= 5, "a window of five");
        assert!(consumer.consumer.window.free() >= 0);
        for delivery in deliveries {
            seen.push(text(&delivery));
            consumer.ack(core, &delivery).await;
        }
    }
    a_moment().await;
    assert_eq!(seen, (0..40).map(|n| n.to_string()).collect::<Vec<_>>());
    for (pod, core) in pods.cores.iter().enumerate() {
        assert_eq!(depth(core, &pods.find(pod, Kind::Queue, "q")).await, 0);
    }
    core.detach(&queue, consumer.consumer.id, weir_core::queue::Lost::Left).await.unwrap();
    a_moment().await;
    assert_eq!(consumer.consumer.window.free(), 5, "all credit has come back");
}

#[tokio::test(start_paused = true)]
async fn a_message_that_is_refused_comes_again_to_another_pod() {
    let pods = Pods::open(3, 22, &[queue(1)]).await;
    let queue = pods.find(0, Kind::Queue, "q");
    let owner = pods.owner(&queue, 0);
    let [one, two] = [1, 2].map(|n| (owner + n) % 3);
    let mut first = TestConsumer::attach(&pods.cores[one], &queue, 1, 5).await;
    publish(&pods.cores[owner], pods.clock, "a/b", "m").await.unwrap();
    let delivery = first.next().await;
    let mut second = TestConsumer::attach(&pods.cores[two], &queue, 1, 5).await;
    first.settle(&pods.cores[one], &delivery, Verdict::Rejected).await;
    let delivery = second.next().await;
    assert_eq!((text(&delivery).as_str(), delivery.delivery_count), ("m", 2));
    second.ack(&pods.cores[two], &delivery).await;
    a_moment().await;
    assert_eq!(depth(&pods.cores[one], &queue).await, 0);
}

#[tokio::test(start_paused = true)]
async fn a_small_window_is_shared_by_shards_on_all_pods() {
    let pods = Pods::open(3, 23, &[queue(8)]).await;
    let queue = pods.find(0, Kind::Queue, "q");
    let core = &pods.cores[0];
    let mut consumer = TestConsumer::attach(core, &queue, 1, 3).await;
    for n in 0..80 {
        publish(core, pods.clock, &format!("a/{n}"), &n.to_string()).await.unwrap();
    }
    let mut seen = BTreeSet::new();
    let mut held = Vec::new();
    while seen.len() < 80 {
        let delivery = consumer.next_within(Duration::from_secs(20)).await;
        seen.insert(text(&delivery));
        held.push(delivery);
        held.extend(given(&mut consumer));
        assert!(held.len() <= 3, "{} in flight", held.len());
        for delivery in held.drain(..) {
            seen.insert(text(&delivery));
            consumer.ack(core, &delivery).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_consumers_hold_stays_theirs_over_a_failover() {
    for seed in 0..5 {
        let mut pods = Pods::open(3, 30 + seed, &[queue(1)]).await;
        let queue = pods.find(0, Kind::Queue, "q");
        let owner = pods.owner(&queue, 0);
        let [one, two] = [1, 2].map(|n| (owner + n) % 3);
        let mut first = TestConsumer::attach(&pods.cores[one], &queue, 1, 3).await;
        let mut second = TestConsumer::attach(&pods.cores[two], &queue, 2, 2).await;
        for n in 0..9 {
            publish(&pods.cores[one], pods.clock, "a/b", &n.to_string()).await.unwrap();
        }
        a_moment().await;
        let (mine, others) = (given(&mut first), given(&mut second));
        assert_eq!((mine.len(), others.len()), (3, 2));
        let (one, two) = (pods.cores[one].pod(), pods.cores[two].pod());
        let _dead = pods.kill(owner).await;
        pods.settle().await;
        let at = |pod| pods.cores.iter().position(|core| core.pod() == pod).unwrap();
        let (one, two) = (&pods.cores[at(one)], &pods.cores[at(two)]);
        assert!(given(&mut first).is_empty() && given(&mut second).is_empty(), "all windows are full");
        // The second makes room: it gets others, not those that the first holds.
        let mut seen: BTreeMap<u64, u32> = BTreeMap::new();
        for delivery in &others {
            *seen.entry(delivery.offset).or_default() += 1;
            second.ack(two, delivery).await;
        }
        for _ in 0..2 {
            a_moment().await;
            for delivery in given(&mut second) {
                *seen.entry(delivery.offset).or_default() += 1;
                second.ack(two, &delivery).await;
            }
        }
        for delivery in &mine {
            *seen.entry(delivery.offset).or_default() += 1;
            first.ack(one, delivery).await;
        }
        a_moment().await;
        assert_eq!(seen, (0..9).map(|n| (n, 1)).collect(), "seed {seed}");
        assert_eq!(depth(one, &queue).await, 0, "seed {seed}: acknowledgements count after the failover");
    }
}

/// The owner takes nothing more from its line once it is to give the shard up, though its last commit is still under way.
#[tokio::test(start_paused = true)]
async fn what_is_acknowledged_while_the_owner_gives_the_shard_up_does_not_come_again() {
    let (mut pods, faults) = Pods::over_faults(3, 31, &[queue(1)]).await;
    let queue = pods.find(0, Kind::Queue, "q");
    let owner = pods.owner(&queue, 0);
    let leaver = pods.cores.remove(owner);
    let mut consumers = Vec::new();
    for (n, core) in (1..).zip(&pods.cores) {
        consumers.push(TestConsumer::attach(core, &queue, n, 4).await);
    }
    for n in 0..8 {
        publish(&pods.cores[0], pods.clock, "a/b", &n.to_string()).await.unwrap();
    }
    a_moment().await;
    let held: Vec<Vec<QueueDelivery>> = consumers.iter_mut().map(given).collect();
    assert_eq!(held.iter().map(Vec::len).collect::<Vec<_>>(), [4, 4]);

    faults.fail_commits_matching(&[tag::SEGMENT], CommitFault::Stalled(Duration::from_secs(60)));
    let last = publish(&leaver, pods.clock, "a/b", "last");
    let leaving = async {
        a_moment().await;
        leaver.close().await;
    };
    let acknowledging = async {
        a_moment().await;
        a_moment().await;
        for (core, (consumer, held)) in pods.cores.iter().zip(consumers.iter().zip(&held)) {
            for delivery in held {
                consumer.ack(core, delivery).await;
            }
        }
        a_moment().await;
        faults.heal();
        faults.release_stalled();
    };
    let (stored, (), ()) = tokio::join!(last, leaving, acknowledging);
    stored.unwrap();
    pods.settle().await;
    let again: Vec<String> = consumers.iter_mut().flat_map(given).map(|delivery| text(&delivery)).collect();
    assert_eq!(again, ["last"]);
    assert_eq!(depth(&pods.cores[0], &queue).await, 1);
}

#[tokio::test(start_paused = true)]
async fn what_a_consumer_holds_comes_again_once_its_time_is_over() {
    let mut pods = Pods::open(3, 40, &[queue(1)]).await;
    let queue = pods.find(0, Kind::Queue, "q");
    let owner = pods.owner(&queue, 0);
    let [one, two] = [1, 2].map(|n| (owner + n) % 3);
    let mut first = TestConsumer::attach(&pods.cores[one], &queue, 1, 3).await;
    publish(&pods.cores[one], pods.clock, "a/b", "m").await.unwrap();
    let delivery = first.next().await;
    let mut second = TestConsumer::attach(&pods.cores[two], &queue, 2, 2).await;
    let begin = pods.clock.now();
    let two = pods.cores[two].pod();
    let _dead = pods.kill(owner).await;
    let again = second.next_within(Duration::from_secs(60)).await;
    let took = pods.clock.now() - begin;
    assert_eq!((again.offset, again.delivery_count), (delivery.offset, 2));
    assert!((Duration::from_secs(29)..Duration::from_secs(35)).contains(&took), "{took:?}");
    let two = pods.cores.iter().find(|core| core.pod() == two).unwrap();
    second.ack(two, &again).await;
}

#[tokio::test(start_paused = true)]
async fn a_broken_link_costs_no_message_and_repeats_none_that_is_held() {
    let pods = Pods::open(2, 50, &[queue(1)]).await;
    let queue = pods.find(0, Kind::Queue, "q");
    let (owner, at) = (pods.owner(&queue, 0), pods.other(&queue, 0));
    let mut far = TestConsumer::attach(&pods.cores[at], &queue, 1, 4).await;
    let mut near = TestConsumer::attach(&pods.cores[owner], &queue, 2, 4).await;
    let mut seen: BTreeMap<u64, u32> = BTreeMap::new();
    for round in 0..20 {
        for n in 0..4 {
            publish(&pods.cores[owner], pods.clock, "a/b", &format!("{round} {n}")).await.unwrap();
        }
        pods.network.cut(pods.cores[at].pod(), pods.cores[owner].pod());
        a_moment().await;
        for (consumer, pod) in [(&mut far, at), (&mut near, owner)] {
            for delivery in given(consumer) {
                *seen.entry(delivery.offset).or_default() += 1;
                consumer.ack(&pods.cores[pod], &delivery).await;
            }
        }
        pods.network.cut(pods.cores[at].pod(), pods.cores[owner].pod());
    }
    for _ in 0..5 {
        a_moment().await;
        for (consumer, pod) in [(&mut far, at), (&mut near, owner)] {
            for delivery in given(consumer) {
                *seen.entry(delivery.offset).or_default() += 1;
                consumer.ack(&pods.cores[pod], &delivery).await;
            }
        }
    }
    a_moment().await;
    assert_eq!(depth(&pods.cores[owner], &queue).await, 0);
    assert_eq!(seen, (0..80).map(|n| (n, 1)).collect());
}
