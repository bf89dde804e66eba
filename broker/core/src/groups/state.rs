//! One consumer group: which member has which shard, and how far each shard has been read. No IO and no clock.
//!
//! Every member has as many shards as every other, or one more; who has one keeps it unless that evenness takes it
//! away. A shard goes from one member to another in three steps: the one is told that it is revoked, it answers with the
//! position up to which everything is acknowledged (or does not in time), the other gets it from there on. Each
//! assignment has a generation of its own, and what is said of an older one is refused.

use std::cmp::Reverse;
use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use bytestring::ByteString;
use weir_env::clock::Instant;

use super::GroupEvent;
use crate::cluster::message::group::Holding;
use crate::queue::ConsumerId;

/// Time in which a member answers that a shard is revoked. Connections give up waiting for their client before.
pub(super) const REVOKE_TIMEOUT: Duration = Duration::from_secs(5);

/// What is stored of one shard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Place {
    /// Everything below is acknowledged.
    pub(super) position: u64,
    /// Of the last assignment.
    pub(super) generation: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Held {
    /// By nobody: only while there are no members.
    Free,
    By(ConsumerId),
    /// Revoked, and not answered.
    Leaving {
        by: ConsumerId,
        until: Instant,
        /// The member gets it again, elsewhere in the shard.
        returns: bool,
        /// What the member says moves nothing any more.
        sought: bool,
    },
}

#[derive(Clone, Copy, Debug)]
struct Shard {
    place: Place,
    held: Held,
    /// Who gets it if its turn allows.
    prefers: Option<ConsumerId>,
}

impl Shard {
    /// Whether what `generation` says of it counts.
    fn is_held_as(&self, generation: u64) -> bool {
        let counts = match self.held {
            Held::Free => false,
            Held::By(_) => true,
            Held::Leaving { sought, .. } => !sought,
        };
        counts && self.place.generation == generation
    }

    /// Nobody has it any more. What was said of it counts no more if it was moved meanwhile.
    fn free(&mut self) {
        if matches!(self.held, Held::Leaving { sought: true, .. }) {
            self.place.generation += 1;
        }
        self.held = Held::Free;
    }

    fn holder(&self) -> Option<ConsumerId> {
        match self.held {
            Held::Free => None,
            Held::By(by) | Held::Leaving { by, .. } => Some(by),
        }
    }

    /// Whether it is part of what `member` has and keeps.
    fn counts_for(&self, member: ConsumerId) -> bool {
        match self.held {
            Held::Free => false,
            Held::By(by) => by == member,
            Held::Leaving { by, returns, .. } => by == member && returns,
        }
    }
}

#[derive(Clone, Debug)]
struct Member {
    id: ConsumerId,
    client_id: ByteString,
}

/// How the shards are divided among the members of a group.
#[derive(Debug)]
pub(super) struct Group {
    shards: Vec<Shard>,
    /// In the order in which they joined.
    members: Vec<Member>,
    events: VecDeque<(ConsumerId, GroupEvent)>,
    /// Shards of which something is to be stored.
    dirty: BTreeSet<u8>,
    /// Shards that a member did not give back in time.
    timed_out: u64,
    /// Something of it was acknowledged, or a person has moved it.
    has_moved: bool,
    /// Members that have shards are not all known yet: none is given to anybody.
    is_awaiting: bool,
}

impl Group {
    /// A group without members, whose shards have been read up to `places`.
    pub(super) fn new(places: impl IntoIterator<Item = Place>) -> Self {
        let shard = |place| Shard { place, held: Held::Free, prefers: None };
        Self {
            shards: places.into_iter().map(shard).collect(),
            members: Vec::new(),
            events: VecDeque::new(),
            dirty: BTreeSet::new(),
            timed_out: 0,
            has_moved: false,
            is_awaiting: false,
        }
    }

    /// The same, as stored: of what was acknowledged is known no more than how far it is.
    pub(super) fn restored(places: impl IntoIterator<Item = Place>) -> Self {
        Self { has_moved: true, ..Self::new(places) }
    }

    /// Gives no shard to anybody until [`Self::go_on`]: members of whom a coordinator before this one knew may have it.
    pub(super) fn await_members(&mut self) {
        self.is_awaiting = true;
    }

    /// All members that have shards are known.
    pub(super) fn go_on(&mut self, now: Instant) {
        self.is_awaiting = false;
        self.balance(now);
    }

    /// A member says what it has: to a coordinator that is new, or with which it could not talk for a while. What is its
    /// own stays so, and it is told again what it may not have heard; what another has got since is taken from it.
    pub(super) fn announce(&mut self, id: ConsumerId, client_id: ByteString, held: &[Holding], now: Instant) {
        if !self.has_member(id) {
            self.add(id, client_id);
        }
        for n in self.numbers() {
            let said = held.iter().find(|held| held.shard == n);
            self.reconcile(n, id, said);
        }
        self.balance(now);
    }

    /// Makes what is known of shard `n` and what member `id` says that it has of it the same.
    fn reconcile(&mut self, n: u8, id: ConsumerId, said: Option<&Holding>) {
        let shard = &mut self.shards[usize::from(n)];
        let Place { position, generation } = shard.place;
        let said_generation = said.map(|said| said.generation);
        match shard.held {
            Held::By(by) if by == id && said_generation != Some(generation) => {
                self.events.push_back((id, GroupEvent::Assigned { shard: n, generation, from: position }));
            }
            Held::Leaving { by, .. } if by == id => {
                if said_generation == Some(generation) {
                    self.events.push_back((id, GroupEvent::Revoked { shard: n, generation }));
                } else {
                    shard.free();
                }
                self.dirty.insert(n);
            }
            Held::Free | Held::By(_) | Held::Leaving { .. } => {}
        }
        let Some(said) = said else { return };
        let shard = &mut self.shards[usize::from(n)];
        let is_newer = said.generation > generation;
        if is_newer || (said.generation == generation && shard.held == Held::Free) {
            let before = shard.holder().filter(|before| *before != id);
            // An assignment that the store does not know yet began where the one before had come to.
            let position = if is_newer { said.position } else { position.max(said.position) };
            shard.place = Place { position, generation: said.generation };
            (shard.held, shard.prefers) = (Held::By(id), None);
            self.dirty.insert(n);
            if let Some(before) = before {
                self.events.push_back((before, GroupEvent::Revoked { shard: n, generation }));
            }
        } else if said.generation < generation {
            let generation = said.generation;
            self.events.push_back((id, GroupEvent::Revoked { shard: n, generation }));
        } else if shard.holder() == Some(id) {
            self.progress(n, said.generation, said.position);
        }
    }

    /// A shard was given back a moment ago, which may not be known here.
    pub(super) fn gave_back(&mut self, said: &Holding) {
        let Some(shard) = self.shards.get_mut(usize::from(said.shard)) else { return };
        let Place { position, generation } = shard.place;
        let is_newer = said.generation > generation;
        if shard.held == Held::Free
            && (is_newer || (said.generation == generation && said.position > position))
        {
            shard.place = Place { position: said.position, generation: said.generation };
            self.dirty.insert(said.shard);
        }
    }

    /// A member more. One of the same client is gone: its connection is about to find out.
    pub(super) fn join(&mut self, id: ConsumerId, client_id: ByteString, now: Instant) {
        self.add(id, client_id);
        self.balance(now);
    }

    fn add(&mut self, id: ConsumerId, client_id: ByteString) {
        let before = self.members.iter().find(|member| member.client_id == client_id);
        if let Some(before) = before.map(|member| member.id) {
            self.remove(before, Some(id));
            self.events.push_back((before, GroupEvent::Ended));
        }
        self.members.push(Member { id, client_id });
    }

    /// A member less: its shards go to others at once. False if it is none.
    pub(super) fn leave(&mut self, id: ConsumerId, now: Instant) -> bool {
        let was_member = self.remove(id, None);
        self.balance(now);
        was_member
    }

    fn remove(&mut self, id: ConsumerId, heir: Option<ConsumerId>) -> bool {
        let count = self.members.len();
        self.members.retain(|member| member.id != id);
        self.events.retain(|(to, _)| *to != id);
        for n in self.numbers() {
            let shard = &mut self.shards[usize::from(n)];
            if shard.holder() == Some(id) {
                shard.free();
                shard.prefers = heir;
                self.dirty.insert(n);
            }
        }
        self.members.len() < count
    }

    /// Everything below `position` is acknowledged. False if whoever says so does not have the shard any more.
    pub(super) fn progress(&mut self, n: u8, generation: u64, position: u64) -> bool {
        let Some(shard) = self.shards.get_mut(usize::from(n)) else { return false };
        if !shard.is_held_as(generation) {
            return false;
        }
        if position > shard.place.position {
            shard.place.position = position;
            self.dirty.insert(n);
            self.has_moved = true;
        }
        true
    }

    /// A member gives back a shard that was revoked.
    pub(super) fn release(&mut self, n: u8, generation: u64, position: u64, now: Instant) {
        self.progress(n, generation, position);
        let Some(shard) = self.shards.get_mut(usize::from(n)) else { return };
        if matches!(shard.held, Held::Leaving { .. }) && shard.place.generation == generation {
            shard.free();
            self.dirty.insert(n);
            self.balance(now);
        }
    }

    /// Reading goes on at `places`, whatever has been read. Members that have the shards give them back and get them
    /// again; what they say until then moves nothing.
    pub(super) fn seek(&mut self, places: &[(u8, u64)], now: Instant) {
        self.has_moved = true;
        for (n, position) in places {
            let Some(shard) = self.shards.get_mut(usize::from(*n)) else { continue };
            shard.place.position = *position;
            self.dirty.insert(*n);
            match &mut shard.held {
                // What a member said that had it before counts no more.
                Held::Free => shard.place.generation += 1,
                Held::By(by) => {
                    let by = *by;
                    let until = now + REVOKE_TIMEOUT;
                    shard.held = Held::Leaving { by, until, returns: true, sought: true };
                    shard.prefers = Some(by);
                    let generation = shard.place.generation;
                    self.events.push_back((by, GroupEvent::Revoked { shard: *n, generation }));
                }
                // Revoked already: on its way to whom it was, but elsewhere.
                Held::Leaving { sought, .. } => *sought = true,
            }
        }
        self.balance(now);
    }

    /// When [`Self::handle_timeout`] has something to do.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let until = |shard: &Shard| match shard.held {
            Held::Free | Held::By(_) => None,
            Held::Leaving { until, .. } => Some(until),
        };
        self.shards.iter().filter_map(until).min()
    }

    /// Takes shards from members that did not give them back in time.
    pub(super) fn handle_timeout(&mut self, now: Instant) {
        let mut is_changed = false;
        for n in self.numbers() {
            let shard = &mut self.shards[usize::from(n)];
            if matches!(shard.held, Held::Leaving { until, .. } if until <= now) {
                shard.free();
                self.dirty.insert(n);
                self.timed_out += 1;
                is_changed = true;
            }
        }
        if is_changed {
            self.balance(now);
        }
    }

    /// What a member is to be told next.
    pub(super) fn poll_event(&mut self) -> Option<(ConsumerId, GroupEvent)> {
        self.events.pop_front()
    }

    /// Shards of which something is to be stored, by this call no more.
    pub(super) fn take_dirty(&mut self) -> BTreeSet<u8> {
        std::mem::take(&mut self.dirty)
    }

    /// How many shards members did not give back in time since the last call.
    pub(super) fn take_timed_out(&mut self) -> u64 {
        std::mem::take(&mut self.timed_out)
    }

    /// What is to be stored of shard `n`, and the client that has it.
    pub(super) fn place(&self, n: u8) -> (Place, Option<&ByteString>) {
        let Some(shard) = self.shards.get(usize::from(n)) else { return (Place::default(), None) };
        let client = |id| self.members.iter().find(|member| member.id == id).map(|member| &member.client_id);
        let mut place = shard.place;
        if matches!(shard.held, Held::Leaving { sought: true, .. }) {
            // As when it is given back: to the next coordinator, too, what is said of the place before counts no more.
            place.generation += 1;
        }
        (place, shard.holder().and_then(client))
    }

    /// Numbers of the shards.
    pub(super) fn numbers(&self) -> impl DoubleEndedIterator<Item = u8> + use<> {
        0..u8::try_from(self.shards.len()).unwrap_or(u8::MAX)
    }

    /// Client ids of the members, in the order in which they joined.
    pub(super) fn clients(&self) -> impl Iterator<Item = &ByteString> {
        self.members.iter().map(|member| &member.client_id)
    }

    pub(super) fn has_member(&self, id: ConsumerId) -> bool {
        self.members.iter().any(|member| member.id == id)
    }

    pub(super) fn has_client(&self, client_id: &ByteString) -> bool {
        self.clients().any(|client| client == client_id)
    }

    /// Whether its positions are worth keeping: they are not those that it began with, or may be others.
    pub(super) const fn has_moved(&self) -> bool {
        self.has_moved
    }

    pub(super) fn member_count(&self) -> usize {
        self.members.len()
    }

    /// Takes what is too much from members, and gives what is free to those that have too little.
    fn balance(&mut self, now: Instant) {
        if self.members.is_empty() || self.is_awaiting {
            return;
        }
        let mut shares = self.shares();
        for share in &mut shares {
            self.revoke(share, now);
        }
        let free: Vec<u8> = self.numbers().filter(|n| self.is_free(*n)).collect();
        // First whoever had one gets it again.
        for n in &free {
            let prefers = self.shards[usize::from(*n)].prefers;
            let share = shares.iter_mut().find(|share| prefers == Some(share.id) && share.lacks() > 0);
            if let Some(share) = share {
                self.assign(*n, share);
            }
        }
        for n in free {
            if self.is_free(n)
                && let Some(share) = shares.iter_mut().filter(|share| share.lacks() > 0).min_by_key(|share| {
                    // Of those that lack as much, the first that joined: it is the first in the list.
                    Reverse(share.lacks())
                })
            {
                self.assign(n, share);
            }
        }
    }

    /// What every member has, and is to have.
    fn shares(&self) -> Vec<Share> {
        let (shards, members) = (self.shards.len(), self.members.len().max(1));
        let has = |id| self.shards.iter().filter(|shard| shard.counts_for(id)).count();
        let share = |member: &Member| Share { id: member.id, has: has(member.id), quota: shards / members };
        let mut shares: Vec<Share> = self.members.iter().map(share).collect();
        // What cannot be divided stays with those that have it; the others have it in the order of joining.
        let mut order: Vec<usize> = (0..shares.len()).collect();
        order.sort_by_key(|at| Reverse(shares[*at].has));
        for at in order.into_iter().take(shards % members) {
            shares[at].quota += 1;
        }
        shares
    }

    fn is_free(&self, n: u8) -> bool {
        self.shards[usize::from(n)].held == Held::Free
    }

    fn revoke(&mut self, share: &mut Share, now: Instant) {
        for n in self.numbers().rev() {
            if share.has <= share.quota {
                return;
            }
            let shard = &mut self.shards[usize::from(n)];
            match &mut shard.held {
                Held::By(by) if *by == share.id => {
                    let until = now + REVOKE_TIMEOUT;
                    shard.held = Held::Leaving { by: share.id, until, returns: false, sought: false };
                    let generation = shard.place.generation;
                    self.events.push_back((share.id, GroupEvent::Revoked { shard: n, generation }));
                }
                Held::Leaving { by, returns, .. } if *by == share.id && *returns => *returns = false,
                Held::Free | Held::By(_) | Held::Leaving { .. } => continue,
            }
            shard.prefers = None;
            share.has -= 1;
        }
    }

    fn assign(&mut self, n: u8, share: &mut Share) {
        let shard = &mut self.shards[usize::from(n)];
        shard.place.generation += 1;
        (shard.held, shard.prefers) = (Held::By(share.id), None);
        share.has += 1;
        let Place { position, generation } = shard.place;
        self.events.push_back((share.id, GroupEvent::Assigned { shard: n, generation, from: position }));
        self.dirty.insert(n);
    }
}

/// What a member has, and is to have.
#[derive(Clone, Copy, Debug)]
struct Share {
    id: ConsumerId,
    has: usize,
    quota: usize,
}

impl Share {
    const fn lacks(&self) -> usize {
        self.quota.saturating_sub(self.has)
    }
}
