//! A consumer group under members that come, go, vanish and do not answer, under crashes, store faults, seeks, deletion,
//! expiry and retention as they come: against what the outside knows. A run depends on its seed alone; a failing one prints it.
//!
//! Every offset is given to some member, one member at a time has a shard, what was acknowledged does not come again
//! while the broker lives, and after a crash at most what was acknowledged in the last second does.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use weir_core::Core;
use weir_core::catalog::Object;
use weir_core::definition::{Kind, Retention};
use weir_core::groups::{GroupError, GroupEvent};
use weir_core::metrics::Metrics;
use weir_core::queue::ConsumerId;
use weir_core::shard::Extent;
use weir_core::stream::Start;
use weir_env::clock::Clock;
use weir_env::seed::{Seed, trials};
use weir_storage::{FaultHandle, FaultRates, FaultStore, SharedStore};

use crate::support::{definition, in_memory, memory, publish};

const SEEDS: u64 = 150;
const STEPS: u64 = 80;
const MEMBERS_MAX: usize = 5;
const GROUP: &str = "g";
/// After this time with a store that works, what was acknowledged is stored.
const COMMIT: Duration = Duration::from_secs(1);
/// A group without members is forgotten after this time, which all else in a run together does not take.
const EXPIRY: Duration = Duration::from_secs(3600);
/// And somewhat later at most.
const EXPIRY_LATE: Duration = Duration::from_secs(900);

#[derive(Clone, Copy, Debug)]
struct Held {
    generation: u64,
    /// Everything below is acknowledged.
    position: u64,
    /// Everything below was delivered.
    delivered: u64,
    is_revoked: bool,
}

struct Member {
    client: u64,
    events: mpsc::Receiver<GroupEvent>,
    shards: BTreeMap<u8, Held>,
    /// It does not answer that a shard is revoked.
    is_deaf: bool,
}

/// What is known of a shard.
#[derive(Clone, Copy, Debug, Default)]
struct Shard {
    /// Where the group goes on if nothing is lost.
    acknowledged: u64,
    /// The least place where it may go on after a crash.
    stored: u64,
    /// The greatest, if that is more than `acknowledged`: a seek back may not have been stored.
    stored_max: u64,
    /// Everything below was given to some member, or left out on purpose.
    seen: u64,
    /// Somebody had it as this.
    generation: u64,
    /// Where the group was before the last seek: who got the shard shortly before it may hear of it after it.
    before_seek: Option<u64>,
    /// A crash, or a failure, since it was last known where the group is.
    is_unsure: bool,
}

struct World {
    seed: Seed,
    store: SharedStore,
    faults: FaultHandle,
    rates: Option<FaultRates>,
    clock: Clock,
    members: BTreeMap<u64, Member>,
    shards: Vec<Shard>,
    next_id: u64,
    published: u64,
    has_group: bool,
    /// It is to be deleted, and nobody knows whether it is.
    is_deleting: bool,
    trace: String,
}

fn shards_of(stream: &Object) -> impl Iterator<Item = u8> {
    0..u8::try_from(stream.logs.len()).unwrap()
}

impl World {
    fn new(seed: u64, store: fn() -> (SharedStore, Clock)) -> Self {
        let (store, clock) = store();
        let rates = [None, None, Some(FaultRates::calm()), Some(FaultRates::rough())];
        let rates = rates[usize::try_from(seed % 4).unwrap()];
        let seed = Seed::fixed(seed);
        let store = FaultStore::wrap(store, seed.fork("faults"));
        Self {
            faults: store.handle(),
            store: Arc::new(store),
            clock,
            rates,
            members: BTreeMap::new(),
            shards: vec![Shard::default(); 1 + usize::try_from(seed.below(5)).unwrap()],
            next_id: 0,
            published: 0,
            has_group: false,
            is_deleting: false,
            trace: String::new(),
            seed: seed.fork("world"),
        }
    }

    fn note(&mut self, what: &str) {
        writeln!(self.trace, "{} {what}", self.clock.wall()).unwrap();
    }

    fn pick(&self) -> Option<u64> {
        let ids: Vec<u64> = self.members.keys().copied().collect();
        (!ids.is_empty()).then(|| ids[usize::try_from(self.seed.below(ids.len() as u64)).unwrap()])
    }

    async fn open(&mut self) -> (Core, Arc<Object>) {
        loop {
            let seed = Seed::fixed(self.seed.next_u64());
            match Core::open(Arc::clone(&self.store), self.clock, &seed, Metrics::default()).await {
                Ok(core) => {
                    let stream = core.catalog().view().find(Kind::Stream, "s");
                    return (core, stream.unwrap());
                }
                Err(error) => self.note(&format!("open: {error}")),
            }
        }
    }

    async fn extents(&mut self, core: &Core, stream: &Arc<Object>) -> Vec<Extent> {
        loop {
            match core.describe(stream).await {
                Ok(reports) => return reports.iter().map(|report| report.extent).collect(),
                Err(error) => {
                    self.note(&format!("describe: {error}"));
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
    }

    async fn join(&mut self, core: &Core, stream: &Arc<Object>) {
        self.next_id += 1;
        let (id, client) = (self.next_id, self.seed.below(6));
        let ends = self.extents(core, stream).await;
        let (tx, events) = mpsc::channel(4 * stream.logs.len());
        let start = if self.seed.below(2) == 0 { Start::Earliest } else { Start::Latest };
        let join = core.groups().join(stream, GROUP, ConsumerId(id), format!("c{client}"), &start, tx);
        let joined = join.await;
        self.note(&format!("c{client} joins as {id}: {joined:?}"));
        if joined.is_err() {
            return;
        }
        if !self.has_group {
            self.has_group = true;
            for (shard, extent) in self.shards.iter_mut().zip(ends) {
                let at = if start == Start::Earliest { extent.start } else { extent.next };
                *shard = Shard { acknowledged: at, stored: at, seen: at, ..Shard::default() };
            }
        }
        let older: Vec<u64> =
            self.members.iter().filter(|(_, older)| older.client == client).map(|(id, _)| *id).collect();
        for id in older {
            let mut member = self.members.remove(&id).unwrap();
            let mut last = None;
            while let Ok(event) = member.events.try_recv() {
                last = Some(event);
            }
            assert_eq!(last, Some(GroupEvent::Ended), "{id} has been replaced");
        }
        let is_deaf = self.seed.below(4) == 0;
        self.members.insert(id, Member { client, events, shards: BTreeMap::new(), is_deaf });
    }

    /// Every member hears what it is told, and answers if it does.
    async fn listen(&mut self, core: &Core, stream: &Arc<Object>) {
        let ids: Vec<u64> = self.members.keys().copied().collect();
        for id in ids {
            while let Some(event) = self.members.get_mut(&id).and_then(|member| member.events.try_recv().ok())
            {
                self.note(&format!("{id} hears {event:?}"));
                match event {
                    GroupEvent::Assigned { shard, generation, from } => {
                        self.assigned(id, shard, generation, from);
                    }
                    GroupEvent::Revoked { shard, generation } => {
                        let member = self.members.get_mut(&id).unwrap();
                        let held = member.shards.get_mut(&shard).unwrap();
                        assert_eq!(held.generation, generation);
                        held.is_revoked = true;
                        if !member.is_deaf {
                            let Held { mut position, delivered, .. } = member.shards.remove(&shard).unwrap();
                            let known = &mut self.shards[usize::from(shard)];
                            if known.before_seek.is_none() {
                                // What came since it last said something.
                                position += self.seed.below(delivered - position + 1);
                                known.acknowledged = position;
                            }
                            let groups = core.groups();
                            groups.release(stream, GROUP, shard, generation, position).await.unwrap();
                        }
                    }
                    GroupEvent::Ended => panic!("{id} ended for no reason"),
                }
            }
        }
    }

    fn assigned(&mut self, id: u64, n: u8, generation: u64, from: u64) {
        for (other, member) in &mut self.members {
            if let Some(held) = member.shards.get(&n) {
                assert!(held.is_revoked && held.generation < generation, "{other} and {id} have shard {n}");
                member.shards.remove(&n);
            }
        }
        let shard = &mut self.shards[usize::from(n)];
        assert!(generation > shard.generation, "generation {generation} was given twice");
        if shard.is_unsure {
            let may_be = shard.stored.min(shard.acknowledged)..=shard.acknowledged.max(shard.stored_max);
            assert!(may_be.contains(&from), "shard {n} goes on at {from}: {shard:?}");
            (shard.acknowledged, shard.is_unsure) = (from, false);
        } else if shard.before_seek != Some(from) {
            assert_eq!(from, shard.acknowledged, "shard {n} goes on elsewhere: {shard:?}");
        }
        shard.generation = generation;
        assert!(from <= shard.seen, "{} to {from} of shard {n} are left out", shard.seen);
        let held = Held { generation, position: from, delivered: from, is_revoked: false };
        self.members.get_mut(&id).unwrap().shards.insert(n, held);
    }

    /// A member gets some messages and acknowledges some of what it has.
    async fn consume(&mut self, core: &Core, stream: &Arc<Object>) {
        let extents = self.extents(core, stream).await;
        self.listen(core, stream).await;
        let Some(id) = self.pick() else { return };
        let member = self.members.get_mut(&id).unwrap();
        for (n, held) in member.shards.iter_mut().filter(|(_, held)| !held.is_revoked) {
            let (shard, extent) = (&mut self.shards[usize::from(*n)], extents[usize::from(*n)]);
            // Retention may have been faster.
            let from = held.delivered.max(extent.start);
            held.delivered = extent.next.min(from + self.seed.below(6)).max(from);
            shard.seen = shard.seen.max(held.delivered);
            let acknowledged = held.position + self.seed.below(held.delivered - held.position + 1);
            if acknowledged > held.position {
                held.position = acknowledged;
                shard.acknowledged = acknowledged;
                core.groups().progress(stream, GROUP, *n, held.generation, acknowledged);
            }
        }
    }

    async fn leave(&mut self, core: &Core, stream: &Arc<Object>) {
        let Some(id) = self.pick() else { return };
        let member = self.members.remove(&id).unwrap();
        // Without a word it is missed later.
        let says_so = self.seed.below(3) > 0;
        self.note(&format!("{id} leaves, says so: {says_so}"));
        if says_so {
            core.groups().leave(stream, GROUP, ConsumerId(id)).await.unwrap();
        }
        drop(member);
    }

    async fn seek(&mut self, core: &Core, stream: &Arc<Object>) {
        let start = match self.seed.below(3) {
            0 => Start::Earliest,
            1 => Start::Latest,
            _ => Start::Offset(self.seed.below(self.published + 1)),
        };
        let sought = core.groups().seek(stream, GROUP, &start, false).await;
        self.note(&format!("seek {start:?}: {sought:?}"));
        let places = match sought {
            Ok(places) => places,
            Err(GroupError::Missing) => return assert!(!self.has_group),
            Err(_) => {
                // It may be in effect, here or in the store, or may not.
                let extents = self.extents(core, stream).await;
                for (shard, extent) in self.shards.iter_mut().zip(extents) {
                    let is_unsure = true;
                    let end = extent.next;
                    let stored_max = end;
                    *shard =
                        Shard { acknowledged: end, stored: 0, stored_max, seen: end, is_unsure, ..*shard };
                }
                self.listen(core, stream).await;
                return self.look(core, stream).await;
            }
        };
        for (n, place) in places {
            let shard = &mut self.shards[usize::from(n)];
            shard.before_seek = Some(shard.acknowledged);
            (shard.acknowledged, shard.stored, shard.stored_max) = (place, place, place);
            shard.is_unsure = false;
            shard.seen = shard.seen.max(place);
        }
        self.listen(core, stream).await;
        self.shards.iter_mut().for_each(|shard| shard.before_seek = None);
    }

    /// Somebody deletes the group.
    async fn delete(&mut self, core: &Core, stream: &Arc<Object>) {
        self.listen(core, stream).await;
        let mut force = self.seed.below(2) == 0;
        loop {
            let deleted = core.groups().delete(stream, GROUP, force).await;
            self.note(&format!("delete, force {force}: {deleted:?}"));
            match deleted {
                Ok(()) => {
                    assert!(force || self.members.is_empty());
                    break;
                }
                Err(GroupError::Missing) => {
                    assert!(!self.has_group || self.is_deleting);
                    break;
                }
                Err(GroupError::InUse(_)) => {
                    assert!(!force);
                    return;
                }
                // It may be in effect, here or in the store: it is to be in both.
                Err(GroupError::Failed(_)) => {
                    self.faults.heal();
                    self.faults.settle().await;
                    tokio::time::sleep(COMMIT * 5).await;
                    (force, self.is_deleting) = (true, true);
                }
            }
        }
        (self.has_group, self.is_deleting) = (false, false);
        self.faults.set_rates(self.rates.unwrap_or_default());
        for (id, mut member) in std::mem::take(&mut self.members) {
            let mut last = None;
            while let Ok(event) = member.events.try_recv() {
                last = Some(event);
            }
            assert_eq!(last, Some(GroupEvent::Ended), "{id} is a member of nothing");
        }
    }

    /// Time goes by: a group without members is forgotten, one that has some is not.
    async fn idle(&mut self, core: &Core, stream: &Arc<Object>) {
        // Those that left without a word are missed by then.
        for _ in 0..3 {
            self.settle(core, stream).await;
        }
        self.faults.heal();
        // Whoever has not been asked for anything does not know of it.
        core.groups().list(stream).await.unwrap();
        tokio::time::sleep(EXPIRY + EXPIRY_LATE).await;
        self.listen(core, stream).await;
        let reports = core.groups().list(stream).await.unwrap();
        let is_there = reports.iter().any(|report| report.name == GROUP);
        self.note(&format!("idle, members {}, there {is_there}", self.members.len()));
        assert_eq!(is_there, self.has_group && !self.members.is_empty());
        self.has_group = is_there;
        self.faults.set_rates(self.rates.unwrap_or_default());
    }

    /// The store works for a while: what was acknowledged is in it.
    async fn settle(&mut self, core: &Core, stream: &Arc<Object>) {
        self.faults.heal();
        self.faults.settle().await;
        for _ in 0..30 {
            tokio::time::sleep(COMMIT).await;
            self.listen(core, stream).await;
        }
        self.note("settled");
        for shard in self.shards.iter_mut().filter(|shard| !shard.is_unsure) {
            (shard.stored, shard.stored_max) = (shard.acknowledged, shard.acknowledged);
        }
        self.faults.set_rates(self.rates.unwrap_or_default());
    }

    /// What the group says of itself is the truth from now on.
    async fn look(&mut self, core: &Core, stream: &Arc<Object>) {
        self.faults.heal();
        self.faults.settle().await;
        let report =
            core.groups().list(stream).await.unwrap().into_iter().find(|report| report.name == GROUP);
        for place in report.into_iter().flat_map(|report| report.shards) {
            let shard = &mut self.shards[usize::from(place.shard)];
            (shard.acknowledged, shard.is_unsure) = (place.position, false);
        }
        self.faults.set_rates(self.rates.unwrap_or_default());
    }

    async fn end(&mut self, core: Core) -> (Core, Arc<Object>) {
        let in_order = self.rates.is_none() && self.seed.below(2) == 0;
        self.note(if in_order { "end" } else { "crash" });
        self.members.clear();
        // Members know no more than one coordinator.
        self.shards.iter_mut().for_each(|shard| shard.generation = 0);
        if in_order {
            core.close().await;
            for shard in self.shards.iter_mut().filter(|shard| !shard.is_unsure) {
                (shard.stored, shard.stored_max) = (shard.acknowledged, shard.acknowledged);
            }
        } else {
            drop(core);
            self.shards.iter_mut().for_each(|shard| shard.is_unsure = true);
        }
        self.open().await
    }

    async fn run(&mut self) {
        let (store, clock) = (Arc::clone(&self.store), self.clock);
        let core = crate::support::open(&store, clock, 1).await;
        let shards = u8::try_from(self.shards.len()).unwrap();
        let mut s = definition(Kind::Stream, "s", "a/+", shards);
        s.group_expiry_ms = u64::try_from(EXPIRY.as_millis()).unwrap();
        if self.seed.below(3) == 0 {
            s.retention = Retention { max_messages: 8 * u64::from(shards), ..Retention::default() };
        }
        core.apply(&[s]).await.unwrap();
        drop(core);
        self.faults.set_rates(self.rates.unwrap_or_default());
        let (mut core, mut stream) = self.open().await;
        for _ in 0..STEPS {
            match self.seed.below(22) {
                0..=4 => {
                    self.published += 1;
                    let topic = format!("a/{}", self.seed.below(20));
                    let told = publish(&core, clock, &topic, "m").await;
                    self.note(&format!("publish: {told:?}"));
                }
                5..=7 if self.members.len() < MEMBERS_MAX => self.join(&core, &stream).await,
                8 | 9 => self.leave(&core, &stream).await,
                10 => self.seek(&core, &stream).await,
                11 => self.settle(&core, &stream).await,
                12 => (core, stream) = self.end(core).await,
                13 | 14 => {
                    tokio::time::sleep(Duration::from_millis(self.seed.below(1000))).await;
                }
                20 if self.seed.below(3) == 0 => self.delete(&core, &stream).await,
                21 if self.seed.below(5) == 0 => self.idle(&core, &stream).await,
                _ => self.consume(&core, &stream).await,
            }
            self.listen(&core, &stream).await;
        }
        self.finish(&core, &stream).await;
        core.close().await;
    }

    /// One member alone gets all that is left.
    async fn finish(&mut self, core: &Core, stream: &Arc<Object>) {
        self.faults.heal();
        self.faults.settle().await;
        self.rates = None;
        let ids: Vec<u64> = self.members.keys().copied().collect();
        for id in ids {
            core.groups().leave(stream, GROUP, ConsumerId(id)).await.unwrap();
            self.members.remove(&id);
        }
        self.join(core, stream).await;
        // Those that left without a word are missed by then.
        for _ in 0..80 {
            tokio::time::sleep(COMMIT).await;
            self.listen(core, stream).await;
        }
        let member = self.members.values().next().unwrap();
        assert!(shards_of(stream).all(|n| member.shards.contains_key(&n)), "{:?}", member.shards);
        let extents = self.extents(core, stream).await;
        let report = core.groups().list(stream).await.unwrap().remove(0);
        for (shard, extent) in report.shards.iter().zip(extents) {
            assert_eq!(shard.position, self.shards[usize::from(shard.shard)].acknowledged);
            assert_eq!(shard.lag, extent.next - shard.position.max(extent.start));
        }
    }
}

fn simulate(seed: u64, store: fn() -> (SharedStore, Clock)) -> String {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    // On the time of the runtime.
    let mut world = runtime.block_on(async { World::new(seed, store) });
    let run = std::panic::AssertUnwindSafe(|| runtime.block_on(world.run()));
    if let Err(panic) = std::panic::catch_unwind(run) {
        eprintln!("{}", world.trace);
        std::panic::resume_unwind(panic);
    }
    world.trace
}

#[test]
fn every_offset_is_given_to_one_member_and_what_is_acknowledged_stays_so() {
    for trial in trials(SEEDS) {
        simulate(trial.seed(), memory);
    }
}

#[test]
fn the_same_seed_is_the_same_run() {
    for seed in [1, 2, 3] {
        let trace = simulate(seed, in_memory);
        assert!(trace.lines().count() > 50, "{trace}");
        assert_eq!(trace, simulate(seed, in_memory));
    }
}
