//! Consumer groups whose members are at several pods: one of them divides the shards, and none has two readers, whoever
//! dies.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use weir_core::Core;
use weir_core::catalog::Object;
use weir_core::definition::{Definition, Kind};
use weir_core::groups::{GroupError, GroupEvent, GroupReport};
use weir_core::keyspace::group::GroupPosition;
use weir_core::keyspace::tag;
use weir_core::queue::ConsumerId;
use weir_core::stream::Start;
use weir_env::seed::{Seed, trials};
use weir_storage::{CommitFault, Error, Isolation};

use crate::cluster_support::Pods;
use crate::support::{definition, publish};

const SHARDS: u8 = 6;
const SEEDS: u64 = 6;
const STEPS: u64 = 80;

fn stream_of() -> Definition {
    Definition { group_expiry_ms: 3_600_000, ..definition(Kind::Stream, "s", "a/+", SHARDS) }
}

/// What became of each shard, over all members.
#[derive(Default)]
struct History {
    /// By shard: everything below was acknowledged by somebody.
    acknowledged: BTreeMap<u8, u64>,
    /// By shard: who reads it.
    readers: BTreeMap<u8, u64>,
    stored: BTreeMap<u8, u64>,
}

impl History {
    fn assigned(&mut self, shard: u8, from: u64, to: u64) {
        let acknowledged = self.acknowledged.get(&shard).copied().unwrap_or(0);
        assert!(from <= acknowledged, "shard {shard}: {from} and what is before it was never acknowledged");
        let before = self.readers.insert(shard, to);
        assert!(
            before.is_none_or(|before| before == to),
            "shard {shard} has two readers: {before:?} and {to}"
        );
    }

    fn given_back(&mut self, shard: u8, by: u64) {
        assert_eq!(self.readers.remove(&shard), Some(by), "shard {shard}");
    }

    fn acknowledged(&mut self, shard: u8, position: u64) {
        let known = self.acknowledged.entry(shard).or_default();
        *known = (*known).max(position);
    }

    /// A member is gone with its pod.
    fn gone(&mut self, member: u64) {
        self.readers.retain(|_, reader| *reader != member);
    }

    /// Nothing that is stored goes back.
    async fn look(&mut self, pods: &Pods, stream: &Object) {
        for log in &stream.logs {
            let mut tx = pods.store.begin();
            let row = tx.get(&GroupPosition::key(log, "g"), Isolation::Snapshot).await.unwrap();
            let Some(row) = row else { continue };
            let position = GroupPosition::decode(row).unwrap().offset;
            let before = self.stored.insert(log.shard, position).unwrap_or(0);
            assert!(before <= position, "shard {}: {before} was stored, then {position}", log.shard);
            let acknowledged = self.acknowledged.get(&log.shard).copied().unwrap_or(0);
            assert!(position <= acknowledged, "shard {}: {position} was never acknowledged", log.shard);
        }
    }
}

/// A member that gives back at once what is revoked.
struct Member {
    number: u64,
    pod: weir_core::keyspace::owner::PodId,
    events: mpsc::Receiver<GroupEvent>,
    /// Generation and position by shard.
    shards: BTreeMap<u8, (u64, u64)>,
    is_over: bool,
}

impl Member {
    async fn join(core: &Core, number: u64) -> Self {
        let stream = find(core);
        let (tx, events) = mpsc::channel(4 * usize::from(SHARDS));
        let joined =
            core.groups().join(&stream, "g", ConsumerId(number), format!("c{number}"), &Start::Earliest, tx);
        tokio::time::timeout(Duration::from_secs(60), joined).await.unwrap().unwrap();
        Self { number, pod: core.pod(), events, shards: BTreeMap::new(), is_over: false }
    }

    fn core<'a>(&self, pods: &'a Pods) -> &'a Core {
        pods.cores.iter().find(|core| core.pod() == self.pod).unwrap()
    }

    async fn listen(&mut self, pods: &Pods, history: &mut History) {
        let core = self.core(pods);
        let stream = find(core);
        while let Ok(event) = self.events.try_recv() {
            match event {
                GroupEvent::Assigned { shard, generation, from } => {
                    history.assigned(shard, from, self.number);
                    self.shards.insert(shard, (generation, from));
                }
                GroupEvent::Revoked { shard, generation } => {
                    let held = self.shards.get(&shard).copied().filter(|(held, _)| *held == generation);
                    let Some((_, position)) = held else { continue };
                    self.shards.remove(&shard);
                    history.given_back(shard, self.number);
                    core.groups().release(&stream, "g", shard, generation, position).await.unwrap();
                }
                GroupEvent::Ended => self.is_over = true,
            }
        }
    }

    fn acknowledge(&mut self, pods: &Pods, history: &mut History, more: u64) {
        let core = self.core(pods);
        let stream = find(core);
        for (shard, (generation, position)) in &mut self.shards {
            *position += more;
            history.acknowledged(*shard, *position);
            core.groups().progress(&stream, "g", *shard, *generation, *position);
        }
    }

    async fn leave(self, pods: &Pods, history: &mut History) {
        let core = self.core(pods);
        history.gone(self.number);
        core.groups().leave(&find(core), "g", ConsumerId(self.number)).await.unwrap();
    }

    fn positions(&self) -> Vec<(u8, u64)> {
        self.shards.iter().map(|(shard, (_, position))| (*shard, *position)).collect()
    }
}

fn find(core: &Core) -> Arc<Object> {
    core.catalog().view().find(Kind::Stream, "s").unwrap()
}

async fn list(core: &Core) -> Vec<GroupReport> {
    let stream = find(core);
    let listed = core.groups().list(&stream);
    tokio::time::timeout(Duration::from_secs(60), listed).await.unwrap().unwrap()
}

/// Until all has been said and heard.
async fn settle(pods: &Pods, members: &mut [Member], history: &mut History, time: Duration) {
    for _ in 0..time.as_millis() / 20 {
        tokio::time::sleep(Duration::from_millis(20)).await;
        for member in members.iter_mut() {
            member.listen(pods, history).await;
        }
    }
}

const SOON: Duration = Duration::from_secs(1);
/// Longer than it takes to notice that a pod is dead.
const LATER: Duration = Duration::from_secs(12);

fn counts(members: &[Member]) -> Vec<usize> {
    members.iter().map(|member| member.shards.len()).collect()
}

async fn three() -> (Pods, Vec<Member>, History) {
    let pods = Pods::open(3, 1, &[stream_of()]).await;
    let (mut members, mut history) = (Vec::new(), History::default());
    for (n, core) in pods.cores.iter().enumerate() {
        // As a broker does, each pod names its consumers by itself; clients have other names.
        members.push(Member::join(core, n as u64 + 1).await);
    }
    settle(&pods, &mut members, &mut history, SOON).await;
    assert_eq!(counts(&members), [2, 2, 2]);
    (pods, members, history)
}

#[tokio::test(start_paused = true)]
async fn shards_are_divided_among_members_of_all_pods() {
    let (pods, mut members, mut history) = three().await;
    members.iter_mut().for_each(|member| member.acknowledge(&pods, &mut history, 3));
    settle(&pods, &mut members, &mut history, SOON * 2).await;
    history.look(&pods, &find(&pods.cores[0])).await;
    assert_eq!(history.stored.values().copied().collect::<Vec<_>>(), [3; 6], "everything is stored");
    for core in &pods.cores {
        let reports = list(core).await;
        assert_eq!((reports.len(), reports[0].members.len()), (1, 3), "any pod says the same");
        assert!(reports[0].shards.iter().all(|shard| shard.position == 3 && shard.member.is_some()));
    }
    members.remove(1).leave(&pods, &mut history).await;
    settle(&pods, &mut members, &mut history, SOON).await;
    assert_eq!(counts(&members), [3, 3]);
    assert!(members.iter().flat_map(Member::positions).all(|(_, position)| position == 3));
    members.push(Member::join(&pods.cores[1], 9).await);
    settle(&pods, &mut members, &mut history, SOON).await;
    assert_eq!(counts(&members), [2, 2, 2]);
}

#[tokio::test(start_paused = true)]
async fn a_member_whose_pod_dies_while_its_group_is_made_gets_no_shard() {
    let (mut pods, faults) = Pods::over_faults(3, 1, &[stream_of()]).await;
    let other = pods.other(&find(&pods.cores[0]), 0);
    let dying = pods.cores.remove(other);
    faults.fail_commits_matching(&[tag::GROUP], CommitFault::Stalled(LATER));
    let stream = find(&dying);
    let (tx, _events) = mpsc::channel(4 * usize::from(SHARDS));
    let joining = dying.groups().join(&stream, "g", ConsumerId(1), "dying", &Start::Earliest, tx);
    // Asked for, and being stored.
    assert!(tokio::time::timeout(SOON, joining).await.is_err());
    pods.network.kill(dying.pod());
    dying.cluster().unwrap().stop().await;
    tokio::time::sleep(SOON).await;
    assert_eq!(pods.cores[0].cluster().unwrap().view().pods.len(), 2);
    faults.heal();
    faults.release_stalled();
    let mut members = vec![Member::join(&pods.cores[0], 2).await];
    settle(&pods, &mut members, &mut History::default(), LATER).await;
    assert_eq!(counts(&members), [usize::from(SHARDS)]);
}

#[tokio::test(start_paused = true)]
async fn groups_are_moved_and_deleted_from_any_pod() {
    let (pods, mut members, mut history) = three().await;
    for n in 0..60 {
        publish(&pods.cores[0], pods.clock, &format!("a/{n}"), "m").await.unwrap();
    }
    members.iter_mut().for_each(|member| member.acknowledge(&pods, &mut history, 5));
    settle(&pods, &mut members, &mut history, SOON * 2).await;
    for (pod, to) in [(0, 1), (1, 2), (2, 3)] {
        let core = &pods.cores[pod];
        let places: Vec<(u8, u64)> = (0..SHARDS).map(|shard| (shard, to)).collect();
        // What members say of what they read before moves nothing.
        let (stream, start) = (find(core), Start::Offsets(places.clone()));
        let seek = core.groups().seek(&stream, "g", &start, false);
        let (sought, ()) = tokio::join!(seek, settle(&pods, &mut members, &mut history, SOON * 2));
        assert_eq!(sought.unwrap(), places, "pod {pod}");
        let at: Vec<(u8, u64)> = {
            let mut at: Vec<_> = members.iter().flat_map(Member::positions).collect();
            at.sort_unstable();
            at
        };
        assert_eq!(at, places, "pod {pod}");
        let missing = core.groups().seek(&find(core), "other", &Start::Earliest, false).await;
        assert!(matches!(missing, Err(GroupError::Missing)), "{missing:?}");
        let in_use = core.groups().delete(&find(core), "g", false).await;
        assert!(matches!(in_use, Err(GroupError::InUse(3))), "{in_use:?}");
    }
    let other = pods.other(&find(&pods.cores[0]), 0);
    pods.cores[other].groups().delete(&find(&pods.cores[other]), "g", true).await.unwrap();
    settle(&pods, &mut members, &mut history, SOON).await;
    assert!(members.iter().all(|member| member.is_over), "members of all pods hear it");
    for core in &pods.cores {
        assert_eq!(list(core).await, []);
    }
}

#[tokio::test(start_paused = true)]
async fn members_keep_what_they_have_when_the_coordinator_dies_and_a_dead_pods_go_to_others() {
    let (mut pods, mut members, mut history) = three().await;
    members.iter_mut().for_each(|member| member.acknowledge(&pods, &mut history, 4));
    settle(&pods, &mut members, &mut history, SOON * 2).await;
    // What was said last may not have reached it.
    members.iter_mut().for_each(|member| member.acknowledge(&pods, &mut history, 1));
    let coordinator = pods.owner(&find(&pods.cores[0]), 0);
    let kept: Vec<_> = members
        .iter()
        .enumerate()
        .filter(|(n, _)| *n != coordinator)
        .map(|(_, m)| m.shards.clone())
        .collect();
    std::mem::forget(pods.kill(coordinator).await);
    history.gone(members.remove(coordinator).number);
    settle(&pods, &mut members, &mut history, LATER).await;
    for (before, member) in kept.iter().zip(&members) {
        assert!(before.iter().all(|held| member.shards.get(held.0) == Some(held.1)), "it keeps what it had");
    }
    assert_eq!(counts(&members), [3, 3], "what the dead pod's member had goes to others");
    members.iter_mut().for_each(|member| member.acknowledge(&pods, &mut history, 1));
    settle(&pods, &mut members, &mut history, SOON * 2).await;
    history.look(&pods, &find(&pods.cores[0])).await;
    let held: BTreeMap<u8, u64> = members.iter().flat_map(Member::positions).collect();
    assert_eq!(history.stored, held, "and what it acknowledges is stored");
    // A pod that is not the coordinator's dies.
    let other = pods.other(&find(&pods.cores[0]), 0);
    std::mem::forget(pods.kill(other).await);
    history.gone(members.remove(other).number);
    settle(&pods, &mut members, &mut history, LATER).await;
    assert_eq!(counts(&members), [6]);
}

/// Words of a pod about the groups of a stream that wait to be sent.
const WORDS_WAITING_MAX: i64 = 1024;

#[tokio::test(start_paused = true)]
async fn who_asks_for_more_than_a_pod_can_send_waits() {
    let mut pods = Pods::open(1, 1, &[stream_of()]).await;
    // Room for few words on a link.
    pods.links.peer_bytes = 64 * 1024;
    while pods.owner(&find(&pods.cores[0]), 0) == pods.cores.len() - 1 {
        pods.join().await;
        pods.settle().await;
    }
    let (asks, waiting) =
        (pods.cores.len() - 1, pods.metrics.last().unwrap().cluster.group_words_waiting.clone());
    let core = &pods.cores[asks];
    assert_eq!(list(core).await, []);
    let coordinator = pods.owner(&find(core), 0);
    pods.network.block(core.pod(), pods.cores[coordinator].pod());
    let stream = find(core);
    let name = "g".repeat(200);
    let questions =
        futures_util::future::join_all((0..6_000).map(|_| core.groups().delete(&stream, &name, false)));
    let healed = async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert_eq!(waiting.get(), WORDS_WAITING_MAX);
        pods.network.heal();
    };
    let (answers, ()) = tokio::join!(questions, healed);
    for answer in answers {
        // One that was asked again may have been done before.
        assert!(matches!(answer, Err(GroupError::Missing) | Ok(())), "{answer:?}");
    }
    tokio::time::sleep(SOON).await;
    assert_eq!(waiting.get(), 0);
}

/// What was divided last is only in memory, at a pod that the new coordinator cannot reach.
#[tokio::test(start_paused = true)]
async fn a_group_that_is_moved_before_all_have_announced_their_members_stays_where_it_was_moved_to() {
    let (mut pods, faults) = Pods::over_faults(4, 1, &[stream_of()]).await;
    for n in 0..60 {
        publish(&pods.cores[0], pods.clock, &format!("a/{n}"), "m").await.unwrap();
    }
    let stream = find(&pods.cores[0]);
    let coordinator = pods.owner(&stream, 0);
    let far = pods.other(&stream, 0);
    let (mut members, mut history) = (Vec::new(), History::default());
    // Of the shards that the far one gets when the other leaves, the owner of the first dies.
    for pod in [coordinator, far] {
        members.push(Member::join(&pods.cores[pod], pod as u64 + 1).await);
        settle(&pods, &mut members, &mut history, SOON * 2).await;
    }
    faults.fail_commits_matching(&[tag::GROUP], CommitFault::Refused(Error::Busy("for a while".into())));
    members.remove(0).leave(&pods, &mut history).await;
    settle(&pods, &mut members, &mut history, SOON).await;
    assert_eq!(counts(&members), [usize::from(SHARDS)]);
    members[0].acknowledge(&pods, &mut history, 5);
    let gone = pods.kill(coordinator).await;
    let others: Vec<&Core> = pods.cores.iter().filter(|core| core.pod() != members[0].pod).collect();
    let cut = |core: &&Core| pods.network.partition(core.pod(), members[0].pod);
    // Both may become the coordinator. The other one can be reached by it, and reaches all.
    others.iter().for_each(cut);
    settle(&pods, &mut members, &mut history, LATER).await;
    faults.heal();
    let owner = pods.cores[pods.owner(&stream, 0)].pod();
    let from = *others.iter().find(|core| core.pod() != owner).unwrap();
    assert_ne!(owner, members[0].pod);
    pods.network.heal();
    pods.network.partition(owner, members[0].pod);
    let places: Vec<(u8, u64)> = (0..SHARDS).map(|shard| (shard, 1)).collect();
    let start = Start::Offsets(places.clone());
    let seek = from.groups().seek(&stream, "g", &start, false);
    let (sought, ()) = tokio::join!(seek, async {
        settle(&pods, &mut members, &mut history, SOON * 4).await;
        pods.network.heal();
        settle(&pods, &mut members, &mut history, LATER).await;
    });
    assert_eq!(sought.unwrap(), places);
    assert_eq!(members[0].positions(), places);
    std::mem::forget(gone);
}

/// As a process that was stopped: its tasks go on when all is over.
#[tokio::test(start_paused = true)]
async fn a_coordinator_that_was_stopped_divides_nothing_and_stores_nothing_when_it_comes_back() {
    let (mut pods, mut members, mut history) = three().await;
    members.iter_mut().for_each(|member| member.acknowledge(&pods, &mut history, 4));
    settle(&pods, &mut members, &mut history, SOON * 2).await;
    let coordinator = pods.owner(&find(&pods.cores[0]), 0);
    let stale = pods.kill(coordinator).await;
    let mut of_stale = members.remove(coordinator);
    let before = of_stale.shards.clone();
    history.gone(of_stale.number);
    settle(&pods, &mut members, &mut history, LATER).await;
    assert_eq!(counts(&members), [3, 3]);
    members.iter_mut().for_each(|member| member.acknowledge(&pods, &mut history, 2));
    settle(&pods, &mut members, &mut history, SOON * 2).await;
    history.look(&pods, &find(&pods.cores[0])).await;
    // It still takes itself for the coordinator, and its member for one who has shards.
    let stream = find(&stale);
    for (shard, (generation, position)) in &before {
        stale.groups().progress(&stream, "g", *shard, *generation, position + 1_000);
    }
    let (tx, mut events) = mpsc::channel(4 * usize::from(SHARDS));
    let joining = stale.groups().join(&stream, "g", ConsumerId(77), "late".to_owned(), &Start::Earliest, tx);
    let late = tokio::time::timeout(LATER, joining).await;
    settle(&pods, &mut members, &mut history, LATER).await;
    while let Ok(event) = of_stale.events.try_recv() {
        assert!(!matches!(event, GroupEvent::Assigned { .. }), "{event:?}");
    }
    if let Ok(Ok(_)) = late {
        while let Ok(event) = events.try_recv() {
            assert!(!matches!(event, GroupEvent::Assigned { .. }), "{event:?}");
        }
    }
    // Nobody acknowledged those: `look` would tell.
    history.look(&pods, &find(&pods.cores[0])).await;
    let held: BTreeMap<u8, u64> = members.iter().flat_map(Member::positions).collect();
    assert_eq!(history.stored, held);
    std::mem::forget(stale);
}

#[tokio::test(start_paused = true)]
async fn a_member_whose_pod_was_stopped_moves_no_position_of_shards_that_others_have() {
    let (mut pods, mut members, mut history) = three().await;
    members.iter_mut().for_each(|member| member.acknowledge(&pods, &mut history, 4));
    settle(&pods, &mut members, &mut history, SOON * 2).await;
    let away = pods.other(&find(&pods.cores[0]), 0);
    let stale = pods.kill(away).await;
    let of_stale = members.remove(away);
    history.gone(of_stale.number);
    settle(&pods, &mut members, &mut history, LATER).await;
    assert_eq!(counts(&members), [3, 3]);
    let stream = find(&stale);
    for (shard, (generation, position)) in &of_stale.shards {
        stale.groups().progress(&stream, "g", *shard, *generation, position + 1_000);
        let given_back = stale.groups().release(&stream, "g", *shard, *generation, position + 1_000);
        // Nobody need answer.
        let _ = tokio::time::timeout(SOON, given_back).await;
    }
    settle(&pods, &mut members, &mut history, LATER).await;
    members.iter_mut().for_each(|member| member.acknowledge(&pods, &mut history, 1));
    settle(&pods, &mut members, &mut history, SOON * 2).await;
    history.look(&pods, &find(&pods.cores[0])).await;
    let held: BTreeMap<u8, u64> = members.iter().flat_map(Member::positions).collect();
    assert_eq!((held.len(), &history.stored), (usize::from(SHARDS), &held));
    assert_eq!(counts(&members), [3, 3]);
    std::mem::forget(stale);
}

#[tokio::test(start_paused = true)]
async fn nobody_gets_a_shard_of_a_pod_that_only_cannot_be_reached() {
    let (pods, mut members, mut history) = three().await;
    members.iter_mut().for_each(|member| member.acknowledge(&pods, &mut history, 2));
    let coordinator = pods.owner(&find(&pods.cores[0]), 0);
    let other = pods.other(&find(&pods.cores[0]), 0);
    let held = members[other].shards.clone();
    pods.network.partition(pods.cores[coordinator].pod(), pods.cores[other].pod());
    settle(&pods, &mut members, &mut history, LATER).await;
    members[other].acknowledge(&pods, &mut history, 7);
    assert_eq!(counts(&members), [2, 2, 2]);
    pods.network.heal();
    settle(&pods, &mut members, &mut history, LATER).await;
    history.look(&pods, &find(&pods.cores[0])).await;
    for (shard, (generation, position)) in held {
        assert_eq!(members[other].shards.get(&shard), Some(&(generation, position + 7)));
        assert_eq!(history.stored.get(&shard), Some(&(position + 7)), "what it said meanwhile was not lost");
    }
}

#[tokio::test(start_paused = true)]
async fn no_shard_has_two_readers_and_no_position_goes_back_whatever_happens_to_pods() {
    for trial in trials(SEEDS) {
        let number = trial.seed();
        let seed = Seed::fixed(number);
        let mut pods = Pods::open(3, 500 + number, &[stream_of()]).await;
        let (mut members, mut history) = (Vec::<Member>::new(), History::default());
        let mut last = 0;
        for _ in 0..STEPS {
            let pod = usize::try_from(seed.below(pods.cores.len() as u64)).unwrap();
            match seed.below(24) {
                0..=4 if members.len() < 8 => {
                    last += 1;
                    members.push(Member::join(&pods.cores[pod], last).await);
                }
                5 | 6 if members.len() > 1 => {
                    let at = usize::try_from(seed.below(members.len() as u64)).unwrap();
                    members.remove(at).leave(&pods, &mut history).await;
                }
                7 if pods.cores.len() > 2 => {
                    let dead = pods.cores[pod].pod();
                    members.iter().filter(|member| member.pod == dead).for_each(|m| history.gone(m.number));
                    members.retain(|member| member.pod != dead);
                    std::mem::forget(pods.kill(pod).await);
                }
                8 if pods.cores.len() > 2 => {
                    // It leaves, and its members before it.
                    let leaving = pods.cores[pod].pod();
                    while let Some(at) = members.iter().position(|member| member.pod == leaving) {
                        members.remove(at).leave(&pods, &mut history).await;
                    }
                    let core = pods.cores.remove(pod);
                    core.close().await;
                    pods.network.kill(leaving);
                }
                9 if pods.cores.len() < 4 => _ = pods.join().await,
                10 | 11 => {
                    let other = (pod + 1) % pods.cores.len();
                    pods.network.cut(pods.cores[pod].pod(), pods.cores[other].pod());
                }
                _ => members.iter_mut().for_each(|member| {
                    let more = seed.below(4);
                    member.acknowledge(&pods, &mut history, more);
                }),
            }
            let time = Duration::from_millis(seed.below(400));
            settle(&pods, &mut members, &mut history, time).await;
            let any = find(&pods.cores[0]);
            history.look(&pods, &any).await;
        }
        last += 1;
        members.push(Member::join(&pods.cores[0], last).await);
        settle(&pods, &mut members, &mut history, LATER * 2).await;
        members.iter_mut().for_each(|member| member.acknowledge(&pods, &mut history, 1));
        settle(&pods, &mut members, &mut history, SOON * 3).await;
        history.look(&pods, &find(&pods.cores[0])).await;
        let held: BTreeMap<u8, u64> = members.iter().flat_map(Member::positions).collect();
        assert_eq!(held.len(), usize::from(SHARDS), "seed {number}: every shard is read");
        assert_eq!(history.stored, held, "seed {number}");
        let (few, many) = (counts(&members).into_iter().min(), counts(&members).into_iter().max());
        assert!(many.unwrap() - few.unwrap() <= 1, "seed {number}: {:?}", counts(&members));
    }
}
