//! Consumer groups as connections use them: who has which shard, and what is stored of it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use weir_core::catalog::Object;
use weir_core::definition::{Definition, Kind};
use weir_core::groups::{GroupError, GroupEvent, GroupReport};
use weir_core::queue::ConsumerId;
use weir_core::stream::Start;
use weir_core::{Core, Error};
use weir_env::clock::{Clock, Timestamp};
use weir_env::seed::Seed;
use weir_storage::{FaultRates, FaultStore, SharedStore};

use crate::support::{definition, memory, open, publish};

/// Positions are stored after this time.
const COMMIT: Duration = Duration::from_secs(1);

/// A member that does at once what it is told.
struct Member {
    id: ConsumerId,
    group: &'static str,
    events: mpsc::Receiver<GroupEvent>,
    /// Generation and position by shard.
    shards: BTreeMap<u8, (u64, u64)>,
    ended: bool,
}

impl Member {
    async fn join(core: &Core, stream: &Arc<Object>, group: &'static str, id: u64, start: &Start) -> Self {
        Self::try_join(core, stream, group, id, start).await.unwrap()
    }

    async fn try_join(
        core: &Core,
        stream: &Arc<Object>,
        group: &'static str,
        id: u64,
        start: &Start,
    ) -> weir_core::Result<Self> {
        let (tx, events) = mpsc::channel(4 * stream.logs.len());
        core.groups().join(stream, group, ConsumerId(id), format!("c{id}"), start, tx).await?;
        let mut member = Self { id: ConsumerId(id), group, events, shards: BTreeMap::new(), ended: false };
        member.listen(core, stream).await;
        Ok(member)
    }

    /// Takes what it is told, and gives back what is revoked.
    async fn listen(&mut self, core: &Core, stream: &Arc<Object>) {
        while let Ok(event) = self.events.try_recv() {
            match event {
                GroupEvent::Assigned { shard, generation, from } => {
                    self.shards.insert(shard, (generation, from));
                }
                GroupEvent::Revoked { shard, generation } => {
                    let (held, position) = self.shards.remove(&shard).unwrap();
                    assert_eq!(held, generation);
                    core.groups().release(stream, self.group, shard, generation, position).await.unwrap();
                }
                GroupEvent::Ended => self.ended = true,
            }
        }
    }

    fn acknowledge(&mut self, core: &Core, stream: &Object, shard: u8, position: u64) {
        let held = self.shards.get_mut(&shard).unwrap();
        held.1 = position;
        core.groups().progress(stream, self.group, shard, held.0, position);
    }

    fn positions(&self) -> Vec<(u8, u64)> {
        self.shards.iter().map(|(shard, (_, position))| (*shard, *position)).collect()
    }
}

/// What was told is heard.
async fn settle(core: &Core, stream: &Arc<Object>, members: &mut [&mut Member]) {
    for _ in 0..4 {
        // Whatever was sent before has been handled then.
        core.groups().list(stream).await.unwrap();
        for member in members.iter_mut() {
            member.listen(core, stream).await;
        }
    }
}

fn stream_of(shards: u8) -> Definition {
    Definition { group_expiry_ms: 3_600_000, ..definition(Kind::Stream, "s", "a/+", shards) }
}

async fn with_stream(shards: u8) -> (SharedStore, Clock, Core, Arc<Object>) {
    let (store, clock) = memory();
    let core = open(&store, clock, 1).await;
    core.apply(&[stream_of(shards)]).await.unwrap();
    let stream = find(&core);
    (store, clock, core, stream)
}

fn find(core: &Core) -> Arc<Object> {
    core.catalog().view().find(Kind::Stream, "s").unwrap()
}

fn stored(report: &GroupReport) -> Vec<u64> {
    report.shards.iter().map(|shard| shard.position).collect()
}

#[tokio::test(start_paused = true)]
async fn a_group_begins_where_its_first_member_said_and_goes_on_where_it_was() {
    let (store, clock, core, stream) = with_stream(1).await;
    for n in 0..5 {
        publish(&core, clock, "a/b", &n.to_string()).await.unwrap();
    }
    let first = Member::join(&core, &stream, "g", 1, &Start::Latest).await;
    assert_eq!(first.positions(), [(0, 5)]);
    publish(&core, clock, "a/b", "5").await.unwrap();
    // Nothing was acknowledged, and nobody waited for a commit.
    drop(core);
    let core = open(&store, clock, 2).await;
    let stream = find(&core);
    let mut second = Member::join(&core, &stream, "g", 2, &Start::Earliest).await;
    assert_eq!(second.positions(), [(0, 5)], "the start counts for the first join alone");
    second.acknowledge(&core, &stream, 0, 6);
    tokio::time::sleep(COMMIT).await;
    drop(core);
    let core = open(&store, clock, 3).await;
    let stream = find(&core);
    let mut third = Member::join(&core, &stream, "g", 3, &Start::Earliest).await;
    assert_eq!(third.positions(), [(0, 6)], "committed within a second");
    third.acknowledge(&core, &stream, 0, 7);
    core.close().await;
    let core = open(&store, clock, 4).await;
    let fourth = Member::join(&core, &find(&core), "g", 4, &Start::Earliest).await;
    assert_eq!(fourth.positions(), [(0, 7)], "committed by an end in order");
    let other = Member::join(&core, &find(&core), "other", 5, &Start::Offset(2)).await;
    assert_eq!(other.positions(), [(0, 2)], "groups are independent");
    core.close().await;
}

#[tokio::test(start_paused = true)]
async fn starts_become_offsets() {
    let (_store, clock, core, stream) = with_stream(1).await;
    let mut times = Vec::new();
    for n in 0..4 {
        times.push(clock.wall());
        publish(&core, clock, "a/b", &n.to_string()).await.unwrap();
        tokio::time::sleep(COMMIT).await;
    }
    let just_after = Timestamp::from_micros(times[1].as_micros() + 1);
    for (n, (start, expected)) in [
        (Start::Earliest, 0),
        (Start::Latest, 4),
        (Start::Time(times[2]), 2),
        (Start::Time(just_after), 2),
        (Start::Offset(3), 3),
        (Start::Offset(99), 4),
    ]
    .into_iter()
    .enumerate()
    {
        let group = ["a", "b", "c", "d", "e", "f"][n];
        let member = Member::join(&core, &stream, group, n as u64, &start).await;
        assert_eq!(member.positions(), [(0, expected)], "{start:?}");
    }
    core.close().await;
}

#[tokio::test(start_paused = true)]
async fn members_divide_the_shards_and_take_over_from_each_other() {
    let (_store, _, core, stream) = with_stream(4).await;
    let mut a = Member::join(&core, &stream, "g", 1, &Start::Earliest).await;
    (0..4).for_each(|shard| a.acknowledge(&core, &stream, shard, 10 + u64::from(shard)));
    let mut b = Member::join(&core, &stream, "g", 2, &Start::Earliest).await;
    assert!(b.shards.is_empty(), "nothing before it was given back");
    settle(&core, &stream, &mut [&mut a, &mut b]).await;
    assert_eq!(a.positions(), [(0, 10), (1, 11)]);
    assert_eq!(b.positions(), [(2, 12), (3, 13)], "acknowledged messages do not come again");
    b.acknowledge(&core, &stream, 2, 20);
    core.groups().leave(&stream, "g", b.id).await.unwrap();
    settle(&core, &stream, &mut [&mut a]).await;
    assert_eq!(a.positions(), [(0, 10), (1, 11), (2, 20), (3, 13)]);
    core.groups().progress(&stream, "g", 3, b.shards[&3].0, 1000);
    let report = core.groups().list(&stream).await.unwrap().remove(0);
    assert_eq!(stored(&report), [10, 11, 20, 13], "who has left has no say");
    assert_eq!(report.members, ["c1"]);
    core.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_member_that_does_not_answer_or_has_vanished_loses_its_shards() {
    let (_store, _, core, stream) = with_stream(2).await;
    let silent = Member::join(&core, &stream, "g", 1, &Start::Earliest).await;
    let mut b = Member::join(&core, &stream, "g", 2, &Start::Earliest).await;
    tokio::time::sleep(Duration::from_secs(6)).await;
    b.listen(&core, &stream).await;
    assert_eq!(b.shards.len(), 1);
    // Its connection is gone without a word.
    drop(silent);
    tokio::time::sleep(Duration::from_secs(66)).await;
    b.listen(&core, &stream).await;
    assert_eq!(b.shards.len(), 2);
    core.close().await;
}

#[tokio::test(start_paused = true)]
async fn last_words_count_though_the_member_is_gone_when_they_are_heard() {
    let (_store, _, core, stream) = with_stream(4).await;
    let a = Member::join(&core, &stream, "g", 1, &Start::Earliest).await;
    let b = Member::join(&core, &stream, "g", 2, &Start::Earliest).await;
    // Nothing of this is heard before their channels are closed: what is given back is for one that is gone.
    for (shard, position) in [(3, 7), (2, 8)] {
        core.groups().release(&stream, "g", shard, a.shards[&shard].0, position).await.unwrap();
    }
    core.groups().progress(&stream, "g", 1, a.shards[&1].0, 9);
    core.groups().leave(&stream, "g", a.id).await.unwrap();
    drop((a, b));
    let mut c = Member::join(&core, &stream, "g", 3, &Start::Earliest).await;
    tokio::time::sleep(Duration::from_secs(6)).await;
    c.listen(&core, &stream).await;
    assert_eq!(c.positions(), [(0, 0), (1, 9), (2, 8), (3, 7)]);
    core.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_member_that_does_not_listen_is_gone() {
    let (_store, _, core, stream) = with_stream(4).await;
    let (tx, mut events) = mpsc::channel(3);
    core.groups().join(&stream, "g", ConsumerId(1), "c1", &Start::Earliest, tx).await.unwrap();
    assert!(core.groups().list(&stream).await.unwrap()[0].members.is_empty());
    let mut told = Vec::new();
    while let Some(event) = events.recv().await {
        told.push(event);
    }
    assert_eq!(told.len(), 3, "its channel ends");
    core.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_newer_connection_of_a_client_takes_the_place_of_the_older() {
    let (_store, _, core, stream) = with_stream(2).await;
    let mut old = Member::join(&core, &stream, "g", 1, &Start::Earliest).await;
    old.acknowledge(&core, &stream, 0, 3);
    let (tx, events) = mpsc::channel(8);
    core.groups().join(&stream, "g", ConsumerId(9), "c1", &Start::Earliest, tx).await.unwrap();
    let mut new = Member { id: ConsumerId(9), group: "g", events, shards: BTreeMap::new(), ended: false };
    settle(&core, &stream, &mut [&mut old, &mut new]).await;
    assert!(old.ended && !new.ended);
    assert_eq!(new.positions(), [(0, 3), (1, 0)]);
    core.groups().leave(&stream, "g", old.id).await.unwrap();
    assert_eq!(core.groups().list(&stream).await.unwrap()[0].members, ["c1"]);
    core.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_group_seeks_while_it_reads_and_while_nobody_does() {
    let (store, clock, core, stream) = with_stream(2).await;
    for n in 0..20 {
        publish(&core, clock, &format!("a/{n}"), "m").await.unwrap();
    }
    let mut a = Member::join(&core, &stream, "g", 1, &Start::Latest).await;
    let before = a.shards.clone();
    let seek = async |start: &Start, dry| core.groups().seek(&stream, "g", start, dry).await;
    assert_eq!(seek(&Start::Earliest, true).await.unwrap(), [(0, 0), (1, 0)]);
    settle(&core, &stream, &mut [&mut a]).await;
    assert_eq!(a.shards, before, "a dry run changes nothing");
    assert_eq!(seek(&Start::Offset(2), false).await.unwrap(), [(0, 2), (1, 2)]);
    // What was under way when it was told is of no account.
    core.groups().progress(&stream, "g", 0, before[&0].0, before[&0].1 + 1);
    settle(&core, &stream, &mut [&mut a]).await;
    assert_eq!(a.positions(), [(0, 2), (1, 2)]);
    assert!(a.shards[&0].0 > before[&0].0);
    assert_eq!(seek(&Start::Offsets(vec![(1, 3)]), false).await.unwrap(), [(1, 3)]);
    settle(&core, &stream, &mut [&mut a]).await;
    assert_eq!(a.positions(), [(0, 2), (1, 3)], "the others stay");
    core.groups().leave(&stream, "g", a.id).await.unwrap();
    seek(&Start::Offset(4), false).await.unwrap();
    drop(core);
    let core = open(&store, clock, 2).await;
    let b = Member::join(&core, &find(&core), "g", 2, &Start::Latest).await;
    assert_eq!(b.positions(), [(0, 4), (1, 4)], "a seek is stored before it is answered");
    let missing = core.groups().seek(&find(&core), "other", &Start::Earliest, false).await;
    assert!(matches!(missing, Err(GroupError::Missing)));
    core.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_report_says_how_far_a_group_is_behind() {
    let (_store, clock, core, stream) = with_stream(1).await;
    let mut a = Member::join(&core, &stream, "g", 1, &Start::Earliest).await;
    let mut times = Vec::new();
    for n in 0..5 {
        times.push(clock.wall());
        publish(&core, clock, "a/b", &n.to_string()).await.unwrap();
        tokio::time::sleep(COMMIT).await;
    }
    a.acknowledge(&core, &stream, 0, 3);
    let report = core.groups().list(&stream).await.unwrap().remove(0);
    let shard = &report.shards[0];
    assert_eq!((shard.position, shard.end, shard.lag, shard.oldest), (3, 5, 2, Some(times[3])));
    assert_eq!(shard.member.as_deref(), Some("c1"));
    a.acknowledge(&core, &stream, 0, 5);
    let report = core.groups().list(&stream).await.unwrap().remove(0);
    assert_eq!((report.shards[0].lag, report.shards[0].oldest), (0, None));
    core.close().await;
}

#[tokio::test(start_paused = true)]
async fn groups_and_members_beyond_the_bounds_are_refused() {
    let (_store, _, core, stream) = with_stream(1).await;
    core.groups().limit(2, 2);
    let join = async |group, id| Member::try_join(&core, &stream, group, id, &Start::Earliest).await;
    let _kept = (join("a", 1).await.unwrap(), join("b", 2).await.unwrap(), join("a", 3).await.unwrap());
    assert!(matches!(join("c", 4).await, Err(Error::Full("limits.streamGroups"))));
    assert!(matches!(join("a", 5).await, Err(Error::Full("limits.streamGroupMembers"))));
    let again = join("a", 1).await;
    assert!(again.is_ok(), "the place of its own older connection");
    assert!(matches!(core.groups().delete(&stream, "b", false).await, Err(GroupError::InUse(1))));
    core.groups().delete(&stream, "b", true).await.unwrap();
    assert!(matches!(core.groups().delete(&stream, "b", true).await, Err(GroupError::Missing)));
    assert!(join("c", 6).await.is_ok());
    core.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_group_that_was_never_used_ends_with_its_last_member_or_makes_room() {
    let (_store, clock, core, stream) = with_stream(2).await;
    publish(&core, clock, "a/b", "m").await.unwrap();
    core.groups().limit(3, 10);
    let join = async |group, id| Member::try_join(&core, &stream, group, id, &Start::Earliest).await;
    let names = async || -> Vec<String> {
        let groups = core.groups().list(&stream).await.unwrap();
        groups.iter().map(|group| group.name.to_string()).collect()
    };
    // Others are in it, then nobody is.
    let (a, b) = (join("g", 1).await.unwrap(), join("g", 2).await.unwrap());
    core.groups().leave_for_good(&stream, "g", a.id).await.unwrap();
    assert_eq!(names().await, ["g"]);
    core.groups().leave_for_good(&stream, "g", b.id).await.unwrap();
    assert_eq!(names().await, [""; 0]);
    // One who comes back goes on where the group began; so does who left for good before it.
    let (a, b) = (join("away", 3).await.unwrap(), join("away", 4).await.unwrap());
    core.groups().leave(&stream, "away", a.id).await.unwrap();
    core.groups().leave_for_good(&stream, "away", b.id).await.unwrap();
    // What was acknowledged is kept, and so is where a person has moved it.
    let mut c = join("used", 5).await.unwrap();
    let shard = *c.shards.keys().next().unwrap();
    c.acknowledge(&core, &stream, shard, 1);
    core.groups().leave_for_good(&stream, "used", c.id).await.unwrap();
    let d = join("moved", 6).await.unwrap();
    core.groups().seek(&stream, "moved", &Start::Latest, false).await.unwrap();
    core.groups().leave_for_good(&stream, "moved", d.id).await.unwrap();
    assert_eq!(names().await, ["away", "moved", "used"]);
    // There may be no more than three: the one that nobody has used gives way, and then none.
    let mut e = join("new", 7).await.unwrap();
    assert_eq!(names().await, ["moved", "new", "used"]);
    assert!(matches!(join("more", 8).await, Err(Error::Full("limits.streamGroups"))), "it has a member");
    e.acknowledge(&core, &stream, shard, 1);
    core.groups().leave(&stream, "new", e.id).await.unwrap();
    assert!(matches!(join("more", 8).await, Err(Error::Full("limits.streamGroups"))), "it was used");
    core.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_group_is_forgotten_after_its_time_without_members_and_not_before() {
    let (store, clock, core, stream) = with_stream(1).await;
    publish(&core, clock, "a/b", "m").await.unwrap();
    let mut a = Member::join(&core, &stream, "used", 1, &Start::Earliest).await;
    a.acknowledge(&core, &stream, 0, 1);
    let b = Member::join(&core, &stream, "left", 2, &Start::Earliest).await;
    core.groups().leave(&stream, "left", b.id).await.unwrap();
    let names = async |core: &Core| -> Vec<String> {
        let groups = core.groups().list(&find(core)).await.unwrap();
        groups.iter().map(|group| group.name.to_string()).collect()
    };
    tokio::time::sleep(Duration::from_secs(3500)).await;
    assert_eq!(names(&core).await, ["left", "used"]);
    tokio::time::sleep(Duration::from_secs(200)).await;
    assert_eq!(names(&core).await, ["used"]);
    // The group had members until the crash, though its position had not moved for long.
    tokio::time::sleep(Duration::from_secs(7000)).await;
    drop(core);
    let core = open(&store, clock, 2).await;
    core.take_up_groups().await.unwrap();
    tokio::time::sleep(Duration::from_secs(1800)).await;
    assert_eq!(names(&core).await, ["used"]);
    tokio::time::sleep(Duration::from_secs(1800)).await;
    assert!(names(&core).await.is_empty(), "also without anybody who asks");
    drop(core);
    let core = open(&store, clock, 3).await;
    assert!(names(&core).await.is_empty());
    let again = Member::join(&core, &find(&core), "used", 3, &Start::Earliest).await;
    assert_eq!(again.positions(), [(0, 0)]);
    core.close().await;
}

#[tokio::test(start_paused = true)]
async fn late_words_of_a_member_of_a_deleted_group_mean_nothing_to_the_next_of_its_name() {
    let (_store, _, core, stream) = with_stream(1).await;
    let mut old = Member::join(&core, &stream, "g", 1, &Start::Earliest).await;
    core.groups().delete(&stream, "g", true).await.unwrap();
    tokio::time::sleep(Duration::from_millis(1)).await;
    let new = Member::join(&core, &stream, "g", 2, &Start::Earliest).await;
    assert_eq!(new.positions(), [(0, 0)]);
    old.acknowledge(&core, &stream, 0, 5_000);
    tokio::time::sleep(COMMIT).await;
    assert_eq!(stored(&core.groups().list(&stream).await.unwrap()[0]), [0]);
    core.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_seek_to_no_place_is_answered() {
    let (_store, _, core, stream) = with_stream(2).await;
    let _member = Member::join(&core, &stream, "g", 1, &Start::Earliest).await;
    let (groups, nowhere) = (core.groups(), Start::Offsets(Vec::new()));
    let seek = groups.seek(&stream, "g", &nowhere, false);
    let moved = tokio::time::timeout(Duration::from_secs(60), seek).await.expect("an answer");
    assert_eq!(moved.unwrap(), []);
    core.close().await;
}

#[tokio::test(start_paused = true)]
async fn with_its_stream_a_group_ends() {
    let (_store, _, core, _) = with_stream(2).await;
    core.apply(&[Definition { delete_data: true, ..stream_of(2) }]).await.unwrap();
    let stream = find(&core);
    let mut a = Member::join(&core, &stream, "g", 1, &Start::Offset(0)).await;
    a.acknowledge(&core, &stream, 0, 3);
    core.apply(&[]).await.unwrap();
    a.listen(&core, &stream).await;
    assert!(a.ended);
    core.apply(&[stream_of(2)]).await.unwrap();
    assert!(core.groups().list(&find(&core)).await.unwrap().is_empty());
    core.close().await;
}

#[tokio::test(start_paused = true)]
async fn who_no_longer_waits_for_its_join_is_no_member() {
    let (_store, _, core, stream) = with_stream(1).await;
    let (tx, _events) = mpsc::channel(4);
    let groups = core.groups();
    let join = groups.join(&stream, "g", ConsumerId(1), "c1", &Start::Earliest, tx);
    assert!(tokio::time::timeout(Duration::ZERO, join).await.is_err());
    let b = Member::join(&core, &stream, "g", 2, &Start::Earliest).await;
    assert_eq!(b.shards.len(), 1);
    core.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_store_in_trouble_delays_positions_and_loses_none() {
    let (store, clock) = memory();
    let faulty = FaultStore::wrap(store, Seed::fixed(7));
    let faults = faulty.handle();
    let store: SharedStore = Arc::new(faulty);
    let core = open(&store, clock, 1).await;
    core.apply(&[stream_of(2)]).await.unwrap();
    let stream = find(&core);
    let mut a = Member::join(&core, &stream, "g", 1, &Start::Earliest).await;
    faults.set_rates(FaultRates::hostile());
    for n in 1..50 {
        a.acknowledge(&core, &stream, 0, n);
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    faults.heal();
    faults.settle().await;
    tokio::time::sleep(Duration::from_secs(10)).await;
    drop(core);
    let core = open(&store, clock, 2).await;
    let b = Member::join(&core, &find(&core), "g", 2, &Start::Earliest).await;
    assert_eq!(b.positions(), [(0, 49), (1, 0)]);
    core.close().await;
}
