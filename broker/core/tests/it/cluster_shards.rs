//! Queues and streams over several pods: what one pod asks for is done by the one that owns the shard.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use weir_core::Core;
use weir_core::cluster::network::Peer;
use weir_core::core::Receipt;
use weir_core::definition::Kind;
use weir_core::key::Publisher;
use weir_core::keyspace::{PublishId, placement_hash};
use weir_core::operations::{Peek, Purge};
use weir_core::queue::StateFilter;
use weir_core::shard::{APPEND_BYTES_MAX, AppendError};
use weir_core::stream::Start;
use weir_env::clock::Clock;
use weir_storage::FaultRates;

use crate::cluster_support::Pods;
use crate::support::{definition, message, publish, read, reader};

async fn put(core: &Core, clock: Clock, topic: &str, payload: &str) -> Receipt {
    let message = message(clock, topic, payload);
    let targets = core.targets(&message.topic);
    core.append(&targets, &message, &Publisher::default(), None).await.unwrap()
}

/// Payloads of a stream as a pod reads them, by shard in order.
async fn all(
    core: &Core,
    stream: &std::sync::Arc<weir_core::catalog::Object>,
    count: usize,
) -> Vec<(u64, String)> {
    let mut reader = reader(core, stream, Start::Earliest).await;
    tokio::time::timeout(Duration::from_secs(60), read(&mut reader, count)).await.unwrap()
}

/// The numbers of the messages of each publisher, in the order in which they were read.
fn by_publisher(read: &[(u64, String)]) -> BTreeMap<String, Vec<u32>> {
    let mut numbers: BTreeMap<String, Vec<u32>> = BTreeMap::new();
    for (_, payload) in read {
        let (publisher, number) = payload.split_once(' ').unwrap();
        numbers.entry(publisher.to_owned()).or_default().push(number.parse().unwrap());
    }
    numbers
}

#[tokio::test(start_paused = true)]
async fn messages_of_every_pod_are_stored_once_and_in_order() {
    const COUNT: u32 = 50;
    let pods = Pods::open(3, 1, &[definition(Kind::Stream, "s", "a/#", 8)]).await;
    let mut receipts = Vec::new();
    for n in 0..COUNT {
        for (pod, core) in pods.cores.iter().enumerate() {
            for topic in 0..8 {
                let payload = format!("{pod}/{topic} {n}");
                receipts.push(put(core, pods.clock, &format!("a/{topic}"), &payload).await);
            }
        }
    }
    for receipt in receipts {
        assert!(receipt.settled().await.is_empty());
    }
    let expected: Vec<u32> = (0..COUNT).collect();
    for pod in 0..3 {
        let stream = pods.find(pod, Kind::Stream, "s");
        let numbers = by_publisher(&all(&pods.cores[pod], &stream, 24 * COUNT as usize).await);
        assert_eq!(numbers.len(), 24);
        assert!(numbers.values().all(|numbers| *numbers == expected), "{numbers:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_publish_that_comes_after_its_repeat_through_another_pod_is_stored_once() {
    let pods = Pods::open(3, 1, &[definition(Kind::Stream, "s", "a/#", 1)]).await;
    let vs = pods.find(0, Kind::Stream, "s").logs[0].vs;
    assert!(put(&pods.cores[0], pods.clock, "a/b", "first").await.settled().await.is_empty());
    let owner = pods.cores[0].cluster().unwrap().owner_of(vs);
    assert!(owner.is_some());
    let (owner, others): (Vec<&Core>, Vec<&Core>) =
        pods.cores.iter().partition(|core| Some(core.pod()) == owner);
    let id = PublishId::new(pods.clock.wall(), [7; 16]);
    for (core, is_repeat) in [(others[0], true), (others[1], false), (owner[0], false)] {
        let message = message(pods.clock, "a/b", "once");
        let targets = core.targets(&message.topic);
        let receipt =
            core.append(&targets, &message, &Publisher::default(), Some((id, is_repeat))).await.unwrap();
        assert!(receipt.settled().await.is_empty());
    }
    let stream = pods.find(1, Kind::Stream, "s");
    assert_eq!(pods.cores[1].describe(&stream).await.unwrap()[0].extent.next, 2);
}

/// Whether an owner has them already is looked up for many at a time, however slow the store answers.
#[tokio::test(start_paused = true)]
async fn publishes_that_may_be_repeats_do_not_wait_for_each_other() {
    const COUNT: u16 = 200;
    let (pods, faults) = Pods::over_faults(2, 1, &[definition(Kind::Stream, "s", "a/#", 1)]).await;
    let stream = pods.find(0, Kind::Stream, "s");
    let core = &pods.cores[pods.other(&stream, 0)];
    assert!(put(core, pods.clock, "a/b", "first").await.settled().await.is_empty());
    let slow_max = Duration::from_millis(20);
    faults.set_rates(FaultRates { read_slow: 1_000_000, slow_max, ..FaultRates::NONE });
    let began = pods.clock.now();
    let mut receipts = Vec::new();
    // Each comes twice, and nobody knows of the first when the second comes.
    for n in (0..COUNT).flat_map(|n| [n, n]) {
        let mut name = [0; 16];
        name[8..10].copy_from_slice(&n.to_be_bytes());
        let id = PublishId::new(pods.clock.wall(), name);
        let message = message(pods.clock, "a/b", &format!("once {n}"));
        let targets = core.targets(&message.topic);
        let publish = Some((id, false));
        receipts.push(core.append(&targets, &message, &Publisher::default(), publish).await.unwrap());
    }
    for receipt in receipts {
        assert!(receipt.settled().await.is_empty());
    }
    let took = pods.clock.now() - began;
    assert!(took < slow_max * u32::from(COUNT) / 4, "{took:?}");
    faults.heal();
    assert_eq!(core.describe(&stream).await.unwrap()[0].extent.next, u64::from(COUNT) + 1);
}

/// Nor do those that have waited for an owner, once this pod is it.
#[tokio::test(start_paused = true)]
async fn publishes_that_have_waited_for_an_owner_do_not_wait_for_each_other() {
    const COUNT: u16 = 400;
    let (mut pods, faults) = Pods::over_faults(2, 1, &[definition(Kind::Stream, "s", "a/#", 1)]).await;
    let stream = pods.find(0, Kind::Stream, "s");
    let (vs, owner, other) = (stream.logs[0].vs, pods.owner(&stream, 0), pods.other(&stream, 0));
    assert!(put(&pods.cores[other], pods.clock, "a/b", "first").await.settled().await.is_empty());
    let _dead = pods.kill(owner).await;
    let core = &pods.cores[0];
    let slow_max = Duration::from_millis(20);
    faults.set_rates(FaultRates { read_slow: 1_000_000, slow_max, ..FaultRates::NONE });
    let mut receipts = Vec::new();
    for n in 0..COUNT {
        let mut name = [0; 16];
        name[8..10].copy_from_slice(&n.to_be_bytes());
        let id = PublishId::new(pods.clock.wall(), name);
        let message = message(pods.clock, "a/b", &format!("p {n}"));
        let targets = core.targets(&message.topic);
        let publish = Some((id, false));
        receipts.push(core.append(&targets, &message, &Publisher::default(), publish).await.unwrap());
    }
    let cluster = core.cluster().unwrap();
    let mut owners = cluster.owners_changed();
    while cluster.owner_of(vs) != Some(core.pod()) {
        owners.changed().await.unwrap();
    }
    let began = pods.clock.now();
    for receipt in receipts {
        assert!(receipt.settled().await.is_empty());
    }
    let took = pods.clock.now() - began;
    assert!(took < slow_max * u32::from(COUNT) / 8, "{took:?}");
    faults.heal();
    let numbers = by_publisher(&all(core, &stream, usize::from(COUNT) + 1).await[1..]);
    assert!(numbers["p"].iter().copied().eq(0..u32::from(COUNT)), "in order: {numbers:?}");
}

#[tokio::test(start_paused = true)]
async fn nothing_acknowledged_is_lost_with_the_owner() {
    for seed in 0..5 {
        let mut pods = Pods::open(3, seed, &[definition(Kind::Stream, "s", "a/#", 1)]).await;
        let stream = pods.find(0, Kind::Stream, "s");
        let owner = pods.owner(&stream, 0);
        let from = pods.other(&stream, 0);
        let mut receipts = Vec::new();
        for n in 0..400 {
            receipts.push((n, put(&pods.cores[from], pods.clock, "a/b", &format!("p {n}")).await));
            if n % 20 == 0 {
                tokio::time::sleep(Duration::from_micros(300)).await;
            }
            if n == 200 {
                let dead = pods.network.clone();
                dead.kill(pods.cores[owner].pod());
            }
        }
        let dead = pods.cores[owner].pod();
        let _dead = pods.kill(owner).await;
        let mut acknowledged = Vec::new();
        for (n, receipt) in receipts {
            if receipt.settled().await.is_empty() {
                acknowledged.push(n);
            }
        }
        assert_eq!(acknowledged.len(), 400, "seed {seed}: all are sent again to the next owner");
        assert_ne!(pods.cores[pods.owner(&stream, 0)].pod(), dead);
        let read = all(&pods.cores[0], &stream, 400).await;
        let mut numbers = by_publisher(&read).remove("p").unwrap();
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers, acknowledged, "seed {seed}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_owner_that_leaves_fails_no_publish_and_repeats_none() {
    let mut pods = Pods::open(3, 7, &[definition(Kind::Stream, "s", "a/#", 4)]).await;
    let stream = pods.find(0, Kind::Stream, "s");
    let leaver = pods.owner(&stream, 0);
    let leaver = pods.cores.remove(leaver);
    let (leave, left) = tokio::sync::oneshot::channel();
    let publishing = async {
        let (mut leave, mut receipts) = (Some(leave), Vec::new());
        for n in 0..300 {
            for (pod, core) in pods.cores.iter().enumerate() {
                receipts.push(put(core, pods.clock, "a/b", &format!("{pod} {n}")).await);
            }
            if n % 10 == 0 {
                tokio::time::sleep(Duration::from_micros(200)).await;
            }
            if n == 100 {
                leave.take().unwrap().send(()).unwrap();
            }
        }
        for receipt in receipts {
            assert!(receipt.settled().await.is_empty());
        }
    };
    let leaving = async {
        left.await.unwrap();
        leaver.close().await;
    };
    tokio::join!(publishing, leaving);
    let numbers = by_publisher(&all(&pods.cores[0], &stream, 600).await);
    for (publisher, numbers) in numbers {
        let odd = numbers.windows(2).find(|two| two[1] != two[0] + 1);
        assert_eq!((numbers.len(), odd), (300, None), "publisher {publisher}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_reader_follows_the_tail_over_a_failover() {
    let mut pods = Pods::open(3, 11, &[definition(Kind::Stream, "s", "a/#", 1)]).await;
    let stream = pods.find(0, Kind::Stream, "s");
    let (owner, at) = (pods.owner(&stream, 0), pods.other(&stream, 0));
    let mut reading = reader(&pods.cores[at], &stream, Start::Latest).await;
    for n in 0..20 {
        publish(&pods.cores[at], pods.clock, "a/b", &n.to_string()).await.unwrap();
    }
    let mut seen = read(&mut reading, 20).await;
    let third = (0..3).find(|pod| ![owner, at].contains(pod)).unwrap();
    let third = pods.cores[third].pod();
    let _dead = pods.kill(owner).await;
    let third = pods.cores.iter().position(|core| core.pod() == third).unwrap();
    for n in 20..40 {
        publish(&pods.cores[third], pods.clock, "a/b", &n.to_string()).await.unwrap();
    }
    seen.extend(tokio::time::timeout(Duration::from_secs(20), read(&mut reading, 20)).await.unwrap());
    let expected: Vec<(u64, String)> = (0..40).map(|n| (n, n.to_string())).collect();
    assert_eq!(seen, expected);
}

#[tokio::test(start_paused = true)]
async fn an_owner_that_does_not_answer_stops_its_publishers_and_no_others() {
    const SIZE: usize = 64 * 1024;
    let definitions = [definition(Kind::Stream, "s", "a/#", 1), definition(Kind::Stream, "t", "b/#", 8)];
    let pods = Pods::open(2, 13, &definitions).await;
    let (stream, other) = (pods.find(0, Kind::Stream, "s"), pods.find(0, Kind::Stream, "t"));
    let (owner, from) = (pods.owner(&stream, 0), pods.other(&stream, 0));
    let core = &pods.cores[from];
    publish(core, pods.clock, "a/b", "first").await.unwrap();
    pods.network.partition(core.pod(), pods.cores[owner].pod());
    let payload = "x".repeat(SIZE);
    let mut receipts = Vec::new();
    // Shorter than what breaks the connection.
    while let Ok(receipt) =
        tokio::time::timeout(Duration::from_millis(100), put(core, pods.clock, "a/b", &payload)).await
    {
        receipts.push(receipt);
        assert!(receipts.len() * SIZE <= APPEND_BYTES_MAX, "it is bounded by bytes");
    }
    assert!(receipts.len() * SIZE > APPEND_BYTES_MAX / 2, "{} in line", receipts.len());
    let own = (0..8).find(|shard| pods.owner(&other, *shard) == from).unwrap();
    let is_own = |topic: &String| placement_hash(topic.as_bytes()) % 8 == own as u64;
    let topic = (0..).map(|n| format!("b/{n}")).find(is_own).unwrap();
    publish(core, pods.clock, &topic, "m").await.unwrap();
    pods.network.heal();
    for receipt in receipts {
        assert!(receipt.settled().await.is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn a_link_that_ends_while_something_is_to_be_said_holds_nobody_up() {
    let pods = Pods::open(2, 7, &[definition(Kind::Stream, "s", "a/#", 8)]).await;
    let [publisher, other] = [&pods.cores[0], &pods.cores[1]];
    for topic in 0..8 {
        put(publisher, pods.clock, &format!("a/{topic}"), "before").await.settled().await;
    }
    let mut receipts = Vec::new();
    for topic in 0..8 {
        receipts.push(put(publisher, pods.clock, &format!("a/{topic}"), "meanwhile").await);
    }
    // Shards are to hear of it before the task of the link does.
    publisher.links().unwrap().set_peers(&[]);
    tokio::time::sleep(Duration::from_millis(100)).await;
    publisher.links().unwrap().set_peers(&[Peer { pod: other.pod(), address: "pod-1".to_owned() }]);
    for receipt in receipts {
        assert!(receipt.settled().await.is_empty());
    }
    assert_eq!(all(other, &pods.find(1, Kind::Stream, "s"), 16).await.len(), 16);
}

#[tokio::test(start_paused = true)]
async fn a_publish_that_reaches_no_owner_fails_after_its_time() {
    let pods = Pods::open(2, 14, &[definition(Kind::Stream, "s", "a/#", 1)]).await;
    let stream = pods.find(0, Kind::Stream, "s");
    let (owner, from) = (pods.owner(&stream, 0), pods.other(&stream, 0));
    publish(&pods.cores[from], pods.clock, "a/b", "first").await.unwrap();
    // Both live, as the store knows.
    pods.network.partition(pods.cores[from].pod(), pods.cores[owner].pod());
    let begin = pods.clock.now();
    let error = publish(&pods.cores[from], pods.clock, "a/b", "m").await.unwrap_err();
    let took = pods.clock.now() - begin;
    assert!(matches!(error, AppendError::Failed(weir_core::Error::NoOwner)), "{error}");
    assert!((Duration::from_secs(30)..Duration::from_secs(31)).contains(&took), "{took:?}");
    pods.network.heal();
    pods.settle().await;
    publish(&pods.cores[from], pods.clock, "a/b", "again").await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_people_do_to_a_queue_or_stream_they_do_from_any_pod() {
    let definitions = [definition(Kind::Queue, "q", "a/#", 4), definition(Kind::Stream, "s", "b/#", 1)];
    let pods = Pods::open(3, 15, &definitions).await;
    for n in 0..20 {
        publish(&pods.cores[0], pods.clock, &format!("a/{n}"), &n.to_string()).await.unwrap();
        publish(&pods.cores[0], pods.clock, "b/x", &n.to_string()).await.unwrap();
    }
    for (pod, core) in pods.cores.iter().enumerate() {
        let queue = pods.find(pod, Kind::Queue, "q");
        let peek = Peek { count: 100, payload_max: 10, ..Peek::default() };
        let peeked = core.peek(&queue, &peek).await.unwrap();
        assert_eq!((peeked.messages.len(), peeked.next), (20, None));
        let reports = core.describe(&queue).await.unwrap();
        let depth: u64 = reports.into_iter().map(|report| report.queue.unwrap().depth).sum();
        assert_eq!(depth, 20, "pod {pod}");
    }
    let stream = pods.find(1, Kind::Stream, "s");
    let away = pods.other(&stream, 0);
    let trimmed = pods.cores[away].trim(&stream, &Start::Offset(5), None, false).await.unwrap();
    assert_eq!(trimmed.len(), 1);
    assert_eq!(all(&pods.cores[0], &stream, 15).await[0], (5, "5".to_owned()));
    let queue = pods.find(2, Kind::Queue, "q");
    let purge = Purge { from: None, before: None, filter: StateFilter::Any };
    assert_eq!(pods.cores[2].purge(&queue, &purge).await.unwrap().purged, 20);
}

#[tokio::test(start_paused = true)]
async fn an_owner_answers_also_after_a_long_time_without_questions() {
    let pods = Pods::open(2, 16, &[definition(Kind::Stream, "s", "a/#", 1)]).await;
    let from = pods.other(&pods.find(0, Kind::Stream, "s"), 0);
    publish(&pods.cores[from], pods.clock, "a/b", "first").await.unwrap();
    tokio::time::sleep(Duration::from_secs(70)).await;
    publish(&pods.cores[from], pods.clock, "a/b", "second").await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_is_asked_of_a_pod_that_dies_is_answered_by_the_next_owner() {
    for seed in 0..4 {
        let mut pods = Pods::open(3, 40 + seed, &[definition(Kind::Stream, "s", "a/#", 8)]).await;
        let stream = pods.find(0, Kind::Stream, "s");
        for core in &pods.cores {
            core.describe(&stream).await.unwrap();
        }
        let dead = pods.kill(pods.owner(&stream, 0)).await;
        for core in &pods.cores {
            // Long before anybody gives up.
            let described = tokio::time::timeout(Duration::from_secs(15), core.describe(&stream)).await;
            assert_eq!(described.unwrap().unwrap().len(), 8, "seed {seed}");
        }
        std::mem::forget(dead);
    }
}

#[tokio::test(start_paused = true)]
async fn readers_of_one_pod_cost_one_read_of_what_another_has_stored() {
    const READERS: usize = 20;
    const COUNT: usize = 50;
    let pods = Pods::open(2, 6, &[definition(Kind::Stream, "s", "a/#", 1)]).await;
    let stream = pods.find(0, Kind::Stream, "s");
    let (owner, other) = (pods.owner(&stream, 0), pods.other(&stream, 0));
    let stream = pods.find(other, Kind::Stream, "s");
    let mut readers = Vec::new();
    for _ in 0..READERS {
        readers.push(reader(&pods.cores[other], &stream, Start::Latest).await);
    }
    let metrics = &pods.metrics[other].reading;
    let missed = metrics.tail_misses.get();
    for n in 0..COUNT {
        let payload = n.to_string();
        assert!(put(&pods.cores[owner], pods.clock, "a/b", &payload).await.settled().await.is_empty());
        for reader in &mut readers {
            let read = tokio::time::timeout(Duration::from_secs(10), read(reader, 1)).await.unwrap();
            assert_eq!(read, [(n as u64, payload.clone())]);
        }
    }
    let (fills, misses) = (metrics.tail_fills.get(), metrics.tail_misses.get() - missed);
    assert!(fills > 0 && fills <= COUNT as u64, "{fills} reads for {COUNT} messages");
    assert!(misses <= READERS as u64, "{misses} reads of {READERS} readers by themselves");
}

#[tokio::test(start_paused = true)]
async fn a_pod_talks_once_with_each_shard_it_asks() {
    let mut pods = Pods::open(2, 6, &[definition(Kind::Stream, "s", "a/#", 8)]).await;
    let stream = pods.find(0, Kind::Stream, "s");
    for _ in 0..3 {
        for n in 0..100 {
            publish(&pods.cores[0], pods.clock, &format!("a/{n}"), "x").await.unwrap();
        }
        let owned: BTreeSet<u16> = (0..8)
            .filter(|shard| pods.owner(&stream, *shard) == 1)
            .map(|shard| stream.logs[shard].vs.0)
            .collect();
        assert!(!owned.is_empty());
        assert_eq!(pods.metrics[1].cluster.talks.get(), owned.len() as i64);
    }
    std::mem::forget(pods.kill(0).await);
    tokio::time::sleep(Duration::from_secs(12)).await;
    assert_eq!(pods.metrics[1].cluster.talks.get(), 0);
}
