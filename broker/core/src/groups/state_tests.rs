//! A group against a simple model: arbitrary joins, leaves, progress, answers in time, late or never, and seeks.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proptest::prelude::*;
use weir_env::clock::{Clock, Instant};

use super::GroupEvent;
use super::state::{Group, Place, REVOKE_TIMEOUT};
use crate::cluster::message::group::Holding;
use crate::queue::ConsumerId;

#[derive(Clone, Debug)]
enum Step {
    /// A client joins, under a new connection if it is a member already.
    Join(u8),
    Leave(u8),
    /// A member reads on in one of its shards and acknowledges.
    Progress(u8, u8),
    /// A member says something of a shard that it had once.
    Stale(u8),
    /// A member gives back what was revoked.
    Release(u8),
    Wait(u16),
    Seek(u8, u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..8u8).prop_map(Step::Join),
        3 => any::<u8>().prop_map(Step::Leave),
        8 => (any::<u8>(), 1..20u8).prop_map(|(n, by)| Step::Progress(n, by)),
        2 => any::<u8>().prop_map(Step::Stale),
        8 => any::<u8>().prop_map(Step::Release),
        2 => (0..4000u16).prop_map(Step::Wait),
        1 => (any::<u8>(), 0..50u64).prop_map(|(shards, to)| Step::Seek(shards, to)),
    ]
}

/// What a member believes to have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Assignment {
    generation: u64,
    position: u64,
    is_revoked: bool,
}

#[derive(Debug, Default)]
struct Client {
    name: u8,
    shards: BTreeMap<u8, Assignment>,
}

struct World {
    group: Group,
    now: Instant,
    clients: BTreeMap<ConsumerId, Client>,
    next_id: u64,
    /// What every shard has been read up to, by who may say so.
    positions: Vec<u64>,
    /// The newest generation of each shard that somebody was told of.
    generations: Vec<u64>,
    old: Vec<(u8, u64, u64)>,
    seeking: BTreeSet<u8>,
}

impl World {
    fn new(shards: u8) -> Self {
        Self {
            group: Group::new((0..shards).map(|_| Place::default())),
            now: Clock::system().now(),
            clients: BTreeMap::new(),
            next_id: 0,
            positions: vec![0; usize::from(shards)],
            generations: vec![0; usize::from(shards)],
            old: Vec::new(),
            seeking: BTreeSet::new(),
        }
    }

    fn pick(&self, n: u8) -> Option<ConsumerId> {
        let ids: Vec<_> = self.clients.keys().copied().collect();
        (!ids.is_empty()).then(|| ids[usize::from(n) % ids.len()])
    }

    /// Every shard that some member has, and who.
    fn assignments(&self) -> Vec<(ConsumerId, u8, Assignment)> {
        let of = |(id, client): (&ConsumerId, &Client)| {
            let id = *id;
            client.shards.iter().map(move |(n, held)| (id, *n, *held)).collect::<Vec<_>>()
        };
        self.clients.iter().flat_map(of).collect()
    }

    fn run(&mut self, step: &Step) {
        match *step {
            Step::Join(name) => {
                self.next_id += 1;
                let id = ConsumerId(self.next_id);
                self.group.join(id, name.to_string().into(), self.now);
                self.clients.insert(id, Client { name, ..Client::default() });
            }
            Step::Leave(n) => {
                if let Some(id) = self.pick(n) {
                    let client = self.clients.remove(&id).unwrap();
                    self.old
                        .extend(client.shards.iter().map(|(n, held)| (*n, held.generation, held.position)));
                    assert!(self.group.leave(id, self.now));
                    assert!(!self.group.leave(id, self.now));
                }
            }
            Step::Progress(n, by) => self.progress(n, by),
            Step::Stale(n) => {
                if !self.old.is_empty() {
                    let (shard, generation, position) = self.old[usize::from(n) % self.old.len()];
                    assert!(!self.group.progress(shard, generation, position + 1000));
                }
            }
            Step::Release(n) => {
                let revoked: Vec<_> =
                    self.assignments().into_iter().filter(|(_, _, held)| held.is_revoked).collect();
                if !revoked.is_empty() {
                    let (id, shard, held) = revoked[usize::from(n) % revoked.len()];
                    self.clients.get_mut(&id).unwrap().shards.remove(&shard);
                    self.old.push((shard, held.generation, held.position));
                    self.seeking.remove(&shard);
                    self.group.release(shard, held.generation, held.position, self.now);
                }
            }
            Step::Wait(ms) => {
                self.now += Duration::from_millis(u64::from(ms));
                self.time_out();
            }
            Step::Seek(shards, to) => {
                let numbers = self.group.numbers().filter(|n| shards & (1 << (n % 8)) != 0);
                let places: Vec<(u8, u64)> = numbers.map(|n| (n, to)).collect();
                self.group.seek(&places, self.now);
                for (n, to) in places {
                    self.positions[usize::from(n)] = to;
                    if self.assignments().iter().any(|(_, shard, _)| *shard == n) {
                        self.seeking.insert(n);
                    }
                }
            }
        }
        self.listen();
        self.check();
    }

    fn progress(&mut self, n: u8, by: u8) {
        let held = self.assignments();
        if held.is_empty() {
            return;
        }
        let (id, shard, mut held) = held[usize::from(n) % held.len()];
        held.position += u64::from(by);
        let counts = self.group.progress(shard, held.generation, held.position);
        assert_eq!(counts, !self.seeking.contains(&shard));
        if counts {
            let position = &mut self.positions[usize::from(shard)];
            *position = held.position.max(*position);
        }
        self.clients.get_mut(&id).unwrap().shards.insert(shard, held);
    }

    /// Who was told to give back a shard at least [`REVOKE_TIMEOUT`] ago has lost it.
    fn time_out(&mut self) {
        let Some(first) = self.group.poll_timeout() else { return };
        assert!(first <= self.now + REVOKE_TIMEOUT);
        self.group.handle_timeout(self.now);
        assert!(self.group.poll_timeout().is_none_or(|at| at > self.now));
    }

    fn listen(&mut self) {
        while let Some((id, event)) = self.group.poll_event() {
            let client = self.clients.get_mut(&id).expect("only members are told");
            match event {
                GroupEvent::Assigned { shard, generation, from } => {
                    let newest = &mut self.generations[usize::from(shard)];
                    assert!(generation > *newest, "a generation is never given twice");
                    *newest = generation;
                    assert_eq!(from, self.positions[usize::from(shard)], "reading goes on where it was");
                    let assigned = Assignment { generation, position: from, is_revoked: false };
                    let before = client.shards.insert(shard, assigned);
                    if let Some(before) = before {
                        assert!(before.is_revoked, "it had it already");
                    }
                    self.seeking.remove(&shard);
                    // Whoever had it has lost it, by leaving, by answering or by not answering.
                    for (id, n, held) in self.assignments() {
                        if n == shard && held.generation < generation {
                            assert!(held.is_revoked, "{id:?} and another have shard {n}");
                            self.clients.get_mut(&id).unwrap().shards.remove(&n);
                            self.old.push((n, held.generation, held.position));
                        }
                    }
                }
                GroupEvent::Revoked { shard, generation } => {
                    let held = client.shards.get_mut(&shard).expect("only what it has is revoked");
                    assert!(held.generation == generation && !held.is_revoked);
                    held.is_revoked = true;
                }
                GroupEvent::Ended => {
                    let client = self.clients.remove(&id).unwrap();
                    assert!(self.clients.values().any(|other| other.name == client.name), "replaced");
                    self.old
                        .extend(client.shards.iter().map(|(n, held)| (*n, held.generation, held.position)));
                }
            }
        }
    }

    fn check(&mut self) {
        let held = self.assignments();
        let mut holders: BTreeMap<u8, usize> = BTreeMap::new();
        held.iter().for_each(|(_, n, _)| *holders.entry(*n).or_default() += 1);
        assert!(holders.values().all(|count| *count == 1), "two members on a shard: {held:?}");
        for n in self.group.numbers() {
            assert_eq!(self.group.place(n).0.position, self.positions[usize::from(n)], "shard {n}");
            assert!(self.clients.is_empty() || holders.contains_key(&n), "nobody has shard {n}");
        }
        if held.iter().any(|(_, _, held)| held.is_revoked) || self.clients.is_empty() {
            return;
        }
        let counts: Vec<usize> = self.clients.values().map(|client| client.shards.len()).collect();
        let (fewest, most) = (counts.iter().min().unwrap(), counts.iter().max().unwrap());
        assert!(most - fewest <= 1, "uneven: {counts:?}");
    }

    /// Members that answer at once.
    fn settle(&mut self) {
        for _ in 0..1000 {
            let Some((_, n, _)) = self.assignments().into_iter().find(|(_, _, held)| held.is_revoked) else {
                return;
            };
            let place =
                self.assignments().iter().filter(|(_, _, held)| held.is_revoked).position(|it| it.1 == n);
            self.run(&Step::Release(u8::try_from(place.unwrap()).unwrap()));
        }
        panic!("shards are passed on for ever");
    }

    fn has(&self) -> BTreeMap<u8, BTreeSet<u8>> {
        self.clients.values().map(|client| (client.name, client.shards.keys().copied().collect())).collect()
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]

    #[test]
    fn shards_are_divided_and_positions_kept(
        shards in 1..12u8,
        steps in prop::collection::vec(step(), 1..80),
    ) {
        let mut world = World::new(shards);
        steps.iter().for_each(|step| world.run(step));
        world.settle();
        world.check();
        prop_assert!(world.group.poll_timeout().is_none());
    }

    #[test]
    fn nobody_loses_more_than_evenness_takes(shards in 1..20u8, joins in 1..12u8, leaves in prop::collection::vec(any::<u8>(), 0..8)) {
        let mut world = World::new(shards);
        for name in 0..joins {
            let before = world.has();
            world.run(&Step::Join(name));
            world.settle();
            let moved: usize = before.iter().map(|(name, had)| had.difference(&world.has()[name]).count()).sum();
            prop_assert_eq!(moved, if before.is_empty() { 0 } else { world.has()[&name].len() });
        }
        for leave in leaves {
            let before = world.has();
            world.run(&Step::Leave(leave));
            for (name, has) in world.has() {
                prop_assert!(has.is_superset(&before[&name]), "who stays keeps all it had");
            }
        }
    }
}

#[test]
fn standby_members_take_over_in_the_order_of_joining() {
    let mut world = World::new(2);
    (0..4).for_each(|name| world.run(&Step::Join(name)));
    world.settle();
    let numbers =
        |world: &World| world.has().into_iter().map(|(name, has)| (name, has.len())).collect::<Vec<_>>();
    assert_eq!(numbers(&world), [(0, 1), (1, 1), (2, 0), (3, 0)]);
    world.run(&Step::Leave(0));
    assert_eq!(numbers(&world), [(1, 1), (2, 1), (3, 0)]);
    world.run(&Step::Leave(0));
    assert_eq!(numbers(&world), [(2, 1), (3, 1)]);
}

#[test]
fn a_client_that_comes_back_has_what_it_had() {
    let mut world = World::new(6);
    (0..3).for_each(|name| world.run(&Step::Join(name)));
    world.settle();
    let before = world.has();
    world.run(&Step::Join(1));
    world.settle();
    assert_eq!(world.has(), before);
}

#[test]
fn a_member_that_does_not_answer_loses_the_shard_and_its_say() {
    let mut world = World::new(2);
    world.run(&Step::Join(0));
    world.run(&Step::Progress(1, 5));
    world.run(&Step::Join(1));
    assert!(world.has()[&1].is_empty());
    world.run(&Step::Wait(4999));
    assert!(world.has()[&1].is_empty());
    world.run(&Step::Wait(1));
    assert_eq!(world.has()[&1], BTreeSet::from([1]));
    assert_eq!(world.group.take_timed_out(), 1);
    world.run(&Step::Stale(0));
    assert_eq!(world.positions, [0, 5]);
}

#[test]
fn what_is_to_be_stored_is_what_changed() {
    let mut world = World::new(3);
    world.run(&Step::Join(0));
    assert_eq!(world.group.take_dirty(), BTreeSet::from([0, 1, 2]));
    world.run(&Step::Progress(1, 5));
    assert_eq!(world.group.take_dirty(), BTreeSet::from([1]));
    assert!(world.group.take_dirty().is_empty());
    assert!(world.group.progress(1, 1, 5), "it may say so again");
    assert!(world.group.take_dirty().is_empty(), "nothing new");
    world.run(&Step::Seek(4, 1));
    assert_eq!(world.group.take_dirty(), BTreeSet::from([2]));
    world.settle();
    assert_eq!(world.has()[&0], BTreeSet::from([0, 1, 2]), "whoever had it has it again");
    assert_eq!(world.positions, [0, 5, 1]);
}

#[test]
fn a_shard_that_was_moved_stays_so_for_the_next_coordinator_though_its_member_has_not_given_it_back() {
    let (id, now) = (ConsumerId(1), Clock::system().now());
    let mut group = Group::new([Place { position: 0, generation: 4 }]);
    group.join(id, "c".into(), now);
    assert!(group.progress(0, 5, 9));
    group.seek(&[(0, 2)], now);
    let (stored, _) = group.place(0);

    let mut next = Group::restored([stored]);
    next.await_members();
    next.announce(id, "c".into(), &[Holding { shard: 0, generation: 5, position: 9 }], now);
    next.gave_back(&Holding { shard: 0, generation: 5, position: 9 });
    next.go_on(now);
    let told: Vec<GroupEvent> = std::iter::from_fn(|| next.poll_event()).map(|(_, event)| event).collect();
    let again = GroupEvent::Assigned { shard: 0, generation: 7, from: 2 };
    assert_eq!(told, [GroupEvent::Revoked { shard: 0, generation: 5 }, again]);
}
