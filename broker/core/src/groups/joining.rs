//! Who becomes a member of a group, and what comes of a group that nobody needs: groups are made by their first member,
//! and those that were never used do not stay for long. The state is the coordinator's.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytestring::ByteString;
use tokio::sync::oneshot;

use super::coordinator::Coordinator;
use super::listener::Listener;
use super::positions::Then;
use super::state::{Group, Place};
use crate::catalog::Object;
use crate::error::{Error, Result};
use crate::queue::ConsumerId;

/// What became of a wish to join.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Joined {
    Member,
    /// There is no such group: where does it begin?
    NeedsPlaces,
}

/// A wish to join.
#[derive(Debug)]
pub(super) struct Join {
    pub(super) stream: Arc<Object>,
    pub(super) group: ByteString,
    pub(super) member: ConsumerId,
    pub(super) client_id: ByteString,
    pub(super) events: Listener,
    /// Where each shard begins if there is no such group yet.
    pub(super) places: Option<Vec<u64>>,
    pub(super) reply: oneshot::Sender<Result<Joined>>,
}

/// A group that is being stored for the first time.
#[derive(Debug)]
pub(super) struct Creating {
    pub(super) places: Vec<u64>,
    waiting: Vec<Join>,
}

impl Coordinator {
    pub(super) fn join(&mut self, join: Join) {
        self.follow(Arc::clone(&join.stream));
        let name = join.group.clone();
        let members_max = self.bounds.members.load(Ordering::Relaxed);
        if let Some(error) = self.damaged.get(&name) {
            let _ = join.reply.send(Err(Error::Record(*error)));
        } else if let Some(running) = self.groups.get(&name) {
            let rejoins = running.group.has_client(&join.client_id);
            if running.group.member_count() >= members_max && !rejoins {
                self.refuse_full(join, "limits.streamGroupMembers");
            } else {
                self.admit(join);
            }
        } else if let Some(creating) = self.creating.get_mut(&name) {
            if creating.waiting.len() >= members_max {
                self.refuse_full(join, "limits.streamGroupMembers");
            } else {
                creating.waiting.push(join);
            }
        } else if !self.has_room(join.places.is_some()) {
            self.refuse_full(join, "limits.streamGroups");
        } else if let Some(places) = join.places.clone() {
            self.creating.insert(name.clone(), Creating { places, waiting: vec![join] });
            self.unwritten.mark_then(self.numbers(), &name, Then::Create);
            self.write_by(self.now());
        } else {
            let _ = join.reply.send(Ok(Joined::NeedsPlaces));
        }
    }

    /// Whether there may be a group more. Of those that nobody uses and nobody has used, the one that was left first
    /// makes room if it `is_needed`: whoever may consume the stream can make groups, and must not keep others from it.
    fn has_room(&mut self, is_needed: bool) -> bool {
        let known = self.groups.len() + self.creating.len() + self.damaged.len();
        if known < self.bounds.groups.load(Ordering::Relaxed) {
            return true;
        }
        let unused = self.groups.iter().filter(|(_, running)| running.is_unused());
        let Some(name) = unused.min_by_key(|(_, running)| running.used_at).map(|(name, _)| name.clone())
        else {
            return false;
        };
        if is_needed {
            self.expire(&name, "nothing of it was acknowledged, and it made room for another");
        }
        true
    }

    fn refuse_full(&mut self, join: Join, what: &'static str) {
        self.metrics.groups.refused.inc();
        let _ = join.reply.send(Err(Error::Full(what)));
    }

    /// Makes a member of a group that exists of who asks for it, and still wants it.
    fn admit(&mut self, join: Join) {
        let now = self.now();
        let Join { group: name, member, client_id, events, reply, .. } = join;
        let Some(running) = self.groups.get_mut(&name) else { return };
        running.events.insert(member, events);
        if running.group.has_member(member) {
            // It has asked before, and did not hear the answer.
            let _ = reply.send(Ok(Joined::Member));
            return;
        }
        running.group.join(member, client_id, now);
        running.share.set_members(running.group.member_count());
        self.tell(&name);
        if reply.send(Ok(Joined::Member)).is_err() {
            self.leave(&name, member, false);
        }
    }

    /// A member leaves. If it does `for_good`, and the group has nothing to be kept for, that ends with it.
    pub(super) fn leave(&mut self, name: &ByteString, member: ConsumerId, for_good: bool) {
        let (now, wall) = (self.now(), self.wall());
        if let Some(creating) = self.creating.get_mut(name) {
            // Nobody would be there to give back what it got.
            creating.waiting.retain(|join| join.member != member);
        }
        let Some(running) = self.groups.get_mut(name) else { return };
        let was_awaited = running.is_awaited;
        if running.lose(member, now, wall) {
            running.is_awaited = was_awaited || !for_good;
            running.share.set_members(running.group.member_count());
        }
        let is_over = for_good && running.is_unused() && !running.is_awaited;
        self.tell(name);
        if is_over {
            self.expire(name, "its last member has left for good, and nothing of it was acknowledged");
        }
    }

    /// Takes a group out of memory and out of the store, because nobody needs it.
    pub(super) fn expire(&mut self, name: &ByteString, why: &str) {
        let stream = &self.stream.definition.name;
        tracing::info!(stream, group = %name, why, "consumer group is forgotten");
        self.metrics.groups.expired.inc();
        self.end(name);
        self.numbers().into_iter().for_each(|shard| self.unwritten.mark(shard, name));
        self.write_by(self.now());
    }

    pub(super) fn finish_creation(&mut self, name: &ByteString, result: Result<()>) {
        let Some(Creating { places, waiting }) = self.creating.remove(name) else { return };
        match result {
            Ok(()) => {
                let wall = self.wall();
                let committed = vec![wall; places.len()];
                // Above all generations of one that had its name before: what is still said of that counts for nothing.
                let generation = wall.as_micros();
                let places = places.into_iter().map(|position| Place { position, generation });
                let running = self.running(name, Group::new(places), committed);
                self.groups.insert(name.clone(), running);
                waiting.into_iter().for_each(|join| self.admit(join));
            }
            Err(error) => {
                // What was written of it is cleared.
                self.numbers().into_iter().for_each(|shard| self.unwritten.mark(shard, name));
                for join in waiting {
                    let _ = join.reply.send(Err(error.clone()));
                }
            }
        }
    }
}
