//! Pods as others describe them, and how one is asked to drain.

use std::time::Duration;

use weir_core::cluster::{DrainOrder, DrainState, PodLoad};
use weir_core::definition::Kind;
use weir_core::pods::{Asked, PodReport};

use crate::cluster_support::Pods;
use crate::support::{definition, in_memory, open};

const ORDER: DrainOrder = DrainOrder { rate: 500, grace: Duration::from_secs(20) };

fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

#[tokio::test(start_paused = true)]
async fn any_pod_answers_for_all_and_tells_how_old_the_answer_is() {
    let pods = Pods::open(2, 1, &[definition(Kind::Stream, "s", "s/#", 8)]).await;
    let (a, b) = (&pods.cores[0], &pods.cores[1]);
    let load = PodLoad { connections: 7, publishes: 1500, state: DrainState::Serving, ..PodLoad::default() };
    b.report_load(load);
    tokio::time::sleep(seconds(1)).await;
    let of_b = |by: &weir_core::Core| -> PodReport {
        by.pods().into_iter().find(|report| report.id == b.pod()).unwrap()
    };
    let (seen, own) = (of_b(a), of_b(b));
    assert_eq!((seen.load.connections, seen.load.publishes), (7, 1500));
    assert_eq!((seen.load, seen.info.peer.as_ref()), (own.load, "pod-1"));
    assert!(own.is_self && !seen.is_self);
    assert!(seen.age < seconds(1), "{:?}", seen.age);
    // It hangs, and nobody has declared it dead yet.
    b.cluster().unwrap().stop().await;
    tokio::time::sleep(seconds(3)).await;
    let silent = of_b(a);
    assert_eq!(silent.load, seen.load);
    assert!(silent.age >= seconds(2), "{:?}", silent.age);
}

#[tokio::test(start_paused = true)]
async fn a_pod_is_asked_to_drain_by_another_and_gets_its_shards_back_when_it_is_to_stay() {
    let pods = Pods::open(2, 2, &[definition(Kind::Stream, "s", "s/#", 16)]).await;
    let (a, b) = (&pods.cores[0], &pods.cores[1]);
    let object = pods.find(0, Kind::Stream, "s");
    let owned_by_b = || (0..16).filter(|shard| pods.owner(&object, *shard) == 1).count();
    let before = owned_by_b();
    assert!(before > 0 && before < 16);
    assert_eq!(a.drain_pod(b.pod(), Some(ORDER)).await.unwrap(), Asked::Done);
    b.cluster()
        .unwrap()
        .members()
        .wait_for(|view| view.member(b.pod()).unwrap().order.is_some())
        .await
        .unwrap();
    b.hand_over_rest().await.unwrap();
    tokio::time::sleep(seconds(1)).await;
    assert_eq!(owned_by_b(), 0);
    let report = a.pods().into_iter().find(|report| report.id == b.pod()).unwrap();
    assert!(report.is_draining);
    // Nobody would stay.
    assert_eq!(b.drain_pod(a.pod(), Some(ORDER)).await.unwrap(), Asked::Last);
    // To be drained otherwise is no obstacle.
    let slower = DrainOrder { rate: 1, ..ORDER };
    assert_eq!(a.drain_pod(b.pod(), Some(slower)).await.unwrap(), Asked::Done);
    for _ in 0..2 {
        assert_eq!(a.drain_pod(b.pod(), None).await.unwrap(), Asked::Done);
    }
    pods.settle().await;
    assert_eq!(owned_by_b(), before);
    let stranger = weir_core::keyspace::owner::PodId([9; 16]);
    assert_eq!(a.drain_pod(stranger, Some(ORDER)).await.unwrap(), Asked::Unknown);
}

#[tokio::test(start_paused = true)]
async fn of_two_pods_that_ask_each_other_to_drain_one_stays() {
    let pods = Pods::open(2, 3, &[definition(Kind::Stream, "s", "s/#", 1)]).await;
    let (a, b) = (&pods.cores[0], &pods.cores[1]);
    let (by_a, by_b) = tokio::join!(a.drain_pod(b.pod(), Some(ORDER)), b.drain_pod(a.pod(), Some(ORDER)));
    let asked = [by_a.unwrap(), by_b.unwrap()];
    assert!(asked.contains(&Asked::Done) && asked.contains(&Asked::Last), "{asked:?}");
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_is_alone_describes_itself_and_is_not_drained() {
    let (store, clock) = in_memory();
    let core = open(&store, clock, 1).await;
    core.report_load(PodLoad { connections: 3, ..PodLoad::default() });
    let [report] = &core.pods()[..] else { panic!("one pod") };
    assert!(report.is_self && report.load.connections == 3 && report.load.shards > 0);
    assert_eq!(core.drain_pod(core.pod(), Some(ORDER)).await.unwrap(), Asked::Last);
    assert_eq!(core.drain_pod(core.pod(), None).await.unwrap(), Asked::Done);
}
