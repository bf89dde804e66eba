//! Consumer groups of streams whose members are at several pods, whole brokers over one store in this process.

use std::collections::BTreeSet;

use weir_codec::{Connect, ReasonCode};
use weir_core::cluster::testing::MemoryNetwork;
use weir_core::definition::{Definition, Kind};
use weir_env::clock::Clock;
use weir_env::seed::Seed;

use super::client::{AtLeastOnce, Client, V5, V311, persistent, text};
use super::{DEADLINE, TestBroker, memory, stream};

const GROUP: &str = "$share/g/$stream/log";

async fn two() -> [TestBroker; 2] {
    let (store, network) = (memory(), MemoryNetwork::new(Clock::system(), &Seed::fixed(1)));
    let first = TestBroker::start_pod(&store, &network).await;
    first.declare(&[Definition { shards: 4, ..stream("log", "log/#") }]).await;
    let pods = [first, TestBroker::start_pod(&store, &network).await];
    for pod in &pods {
        let mut up = pod.core.links().unwrap().link_events();
        let all = up.wait_for(|up| up.len() == 1);
        assert!(tokio::time::timeout(DEADLINE, all).await.is_ok(), "links are not up");
    }
    pods
}

async fn join(broker: &TestBroker, connect: Connect) -> Client {
    let mut member = broker.connect(connect).await;
    member.read_with(GROUP, AtLeastOnce, &[]).await;
    member
}

/// Waits until a pod says that members have so many shards each, in the order of their names.
async fn until_divided(pod: &TestBroker, wanted: &[usize]) {
    let divided = async {
        loop {
            let stream = pod.core.catalog().view().find(Kind::Stream, "log").unwrap();
            let groups = pod.core.groups().list(&stream).await.unwrap();
            let counts: Vec<usize> = groups.first().map_or_else(Vec::new, |group| {
                let mut members = group.members.clone();
                members.sort();
                let of = |member| {
                    group.shards.iter().filter(|shard| shard.member.as_ref() == Some(member)).count()
                };
                members.iter().map(of).collect()
            });
            if counts == wanted {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    assert!(tokio::time::timeout(DEADLINE, divided).await.is_ok(), "shards are not divided as {wanted:?}");
}

/// Takes messages as they come until all of `wanted` are there; how many each has got, and how many came twice.
async fn drain(members: &mut [&mut Client], wanted: std::ops::Range<u32>) -> (Vec<usize>, usize) {
    let mut missing: BTreeSet<u32> = wanted.collect();
    let (mut counts, mut repeats) = (vec![0; members.len()], 0);
    while !missing.is_empty() {
        let next = members.iter_mut().map(|member| Box::pin(member.message()));
        let (message, which, _) = futures_util::future::select_all(next).await;
        members[which].puback(&message, ReasonCode::Success).await;
        counts[which] += 1;
        repeats += usize::from(!missing.remove(&text(&message).parse().unwrap()));
    }
    (counts, repeats)
}

async fn publish(pod: &TestBroker, numbers: std::ops::Range<u32>) {
    let mut publisher = pod.clean("").await;
    for n in numbers {
        assert!(!publisher.publish(&format!("log/{n}"), &n.to_string()).await.is_error());
    }
}

#[tokio::test]
async fn each_message_goes_to_one_member_whichever_pods_they_are_at() {
    let pods = two().await;
    let mut one = join(&pods[0], persistent("a", V5)).await;
    let mut two = join(&pods[1], persistent("b", V311)).await;
    until_divided(&pods[0], &[2, 2]).await;
    until_divided(&pods[1], &[2, 2]).await;
    publish(&pods[1], 0..40).await;
    let (counts, repeats) = drain(&mut [&mut one, &mut two], 0..40).await;
    assert!(counts.iter().all(|count| *count > 0) && repeats == 0, "{counts:?}, {repeats}");
    // One leaves, and the other goes on with what it had.
    drop(two);
    until_divided(&pods[0], &[4]).await;
    publish(&pods[0], 40..60).await;
    let (_, repeats) = drain(&mut [&mut one], 40..60).await;
    assert_eq!(repeats, 0);
    // It comes back at the other pod.
    let mut two = join(&pods[0], persistent("b", V5)).await;
    until_divided(&pods[1], &[2, 2]).await;
    publish(&pods[0], 60..80).await;
    let (counts, repeats) = drain(&mut [&mut one, &mut two], 60..80).await;
    assert!(counts.iter().all(|count| *count > 0) && repeats == 0, "{counts:?}, {repeats}");
}
