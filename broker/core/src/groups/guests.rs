//! The pods whose clients are members of a stream's groups, as the coordinator sees them: it hears what they say in
//! their talks, answers, and gives no shard to anybody before each has announced what its members have.
//!
//! The state is the coordinator's. How words travel is the affair of the hub.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytestring::ByteString;
use tokio::sync::{oneshot, watch};
use weir_env::clock::Instant;

use super::coordinator::{Coordinator, Done, Seek};
use super::hub::Hub;
use super::joining::{Join, Joined};
use super::listener::{Listener, Voice};
use super::roll::Roll;
use super::term::Term;
use super::{GroupError, GroupReport};
use crate::cluster::View;
use crate::cluster::message::group::{FromCoordinator, GroupRefusal, ToCoordinator};
use crate::error::{Error, Result};
use crate::keyspace::owner::PodId;
use crate::queue::ConsumerId;

/// How often a pod is told that its talk is over, until it begins another one.
const REFUSE_INTERVAL: Duration = Duration::from_secs(1);

/// What became of what a pod has asked for.
pub(super) struct Answered {
    from: PodId,
    voice: Arc<Voice>,
    request: u64,
    answer: Answer,
}

enum Answer {
    Joined(Result<Joined>),
    Groups(Result<Vec<GroupReport>>),
    Done(std::result::Result<(), GroupError>),
}

/// A pod, and the talk with it.
struct Guest {
    talk: u64,
    /// Number of its next words.
    next: u64,
    /// Nothing more is heard in the talk: when its pod is told so again, which may not have heard it.
    over: Option<Instant>,
    voice: Arc<Voice>,
    /// Its members by the ids that they have there: the ids that they have here, and their groups.
    members: BTreeMap<ConsumerId, (ConsumerId, ByteString)>,
    /// Those that are part of this talk.
    announced: BTreeSet<ConsumerId>,
}

/// All pods.
pub(super) struct Guests {
    hub: Arc<Hub>,
    term: Term,
    pods: BTreeMap<PodId, Guest>,
    roll: Roll,
    last_member: u64,
    view: watch::Receiver<Arc<View>>,
    owners: watch::Receiver<u64>,
}

impl Guests {
    pub(super) fn new(hub: Arc<Hub>, term: Term) -> Self {
        let (view, owners) = (hub.cluster().members(), hub.cluster().owners_changed());
        Self { hub, term, pods: BTreeMap::new(), roll: Roll::default(), last_member: 0, view, owners }
    }

    pub(super) fn term(&self) -> Term {
        self.term
    }

    /// Whether this pod has given no sign of life for so long that it may not be the one any more.
    pub(super) fn are_quiet(&self) -> bool {
        self.hub.cluster().is_quiet()
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.roll.poll_timeout()
    }

    /// Whether some have not announced what their members have.
    pub(super) fn are_awaited(&self) -> bool {
        self.roll.is_open()
    }

    /// Takes the number of words that came; false if they count for nothing.
    fn is_heard(&mut self, stream: u32, from: PodId, (talk, seq): (u64, u64), now: Instant) -> bool {
        if !self.view.borrow().contains(from) {
            self.hub.refuse(from, stream, talk);
            return false;
        }
        let hub = &self.hub;
        let guest = self.pods.entry(from).or_insert_with(|| Guest {
            talk,
            next: 0,
            over: None,
            voice: hub.voice(from, stream, talk),
            members: BTreeMap::new(),
            announced: BTreeSet::new(),
        });
        if talk > guest.talk {
            (guest.talk, guest.next, guest.over) = (talk, 0, None);
            guest.voice = hub.voice(from, stream, talk);
            guest.announced.clear();
        }
        if talk < guest.talk || guest.over.is_some() {
            return false;
        }
        if seq != guest.next {
            // Said with the next look.
            guest.over = Some(now);
            return false;
        }
        guest.next += 1;
        true
    }

    /// The id of a member here, and how it is told something.
    fn member(
        &mut self,
        from: PodId,
        member: ConsumerId,
        group: &ByteString,
    ) -> Option<(ConsumerId, Listener)> {
        let guest = self.pods.get_mut(&from)?;
        guest.announced.insert(member);
        let last = &mut self.last_member;
        let (id, _) = guest.members.entry(member).or_insert_with(|| {
            *last += 1;
            (ConsumerId(*last), group.clone())
        });
        Some((*id, Listener::Elsewhere { member, voice: Arc::clone(&guest.voice) }))
    }

    fn forget(&mut self, from: PodId, member: ConsumerId) -> Option<(ConsumerId, ByteString)> {
        let guest = self.pods.get_mut(&from)?;
        guest.announced.remove(&member);
        guest.members.remove(&member)
    }

    /// Members that a pod does not have any more: it has announced all that it has.
    fn take_unannounced(&mut self, from: PodId) -> Vec<(ConsumerId, ByteString)> {
        let Some(guest) = self.pods.get_mut(&from) else { return Vec::new() };
        let gone = guest.members.keys().filter(|member| !guest.announced.contains(member));
        let gone: Vec<ConsumerId> = gone.copied().collect();
        gone.into_iter().filter_map(|member| guest.members.remove(&member)).collect()
    }

    /// Members of pods that are gone.
    fn take_gone(&mut self) -> Vec<(ConsumerId, ByteString)> {
        let view = self.view.borrow_and_update().clone();
        self.owners.mark_unchanged();
        self.roll.keep(|pod| view.contains(pod));
        let gone: Vec<PodId> = self.pods.keys().filter(|pod| !view.contains(**pod)).copied().collect();
        let gone = gone.into_iter().filter_map(|pod| self.pods.remove(&pod));
        gone.flat_map(|guest| guest.members.into_values()).collect()
    }

    fn voice(&self, from: PodId) -> Option<Arc<Voice>> {
        self.pods.get(&from).map(|guest| Arc::clone(&guest.voice))
    }

    /// Asks pods that have not announced their members, and tells those whose talk is over to begin anew, if it is time.
    fn call(&mut self, stream: u32, now: Instant) {
        for pod in self.roll.due(now) {
            self.hub.call_roll(pod, stream);
        }
        for (pod, guest) in &mut self.pods {
            if guest.voice.is_over() {
                guest.over.get_or_insert(now);
            }
            if guest.over.is_some_and(|at| at <= now) {
                guest.over = Some(now + REFUSE_INTERVAL);
                self.hub.refuse(*pod, stream, guest.talk);
            }
        }
    }
}

/// Waits until the cluster has changed. Cancel-safe.
pub(super) async fn changed(guests: &mut Option<Guests>) {
    let Some(guests) = guests else { return std::future::pending().await };
    // At the end of the cluster this process ends as well.
    let ended = tokio::select! {
        changed = guests.view.changed() => changed.is_err(),
        changed = guests.owners.changed() => changed.is_err(),
    };
    if ended {
        std::future::pending().await
    }
}

impl Coordinator {
    /// Follows the pods there are; false if another pod, or another coordinator of this one, is to do so from now on.
    pub(super) fn follow_cluster(&mut self, now: Instant) -> bool {
        let Some(guests) = &mut self.guests else { return true };
        if !guests.term.is_current(guests.hub.cluster()) {
            return false;
        }
        let gone = guests.take_gone();
        guests.call(self.stream.id, now);
        for (member, group) in gone {
            self.leave(&group, member, false);
        }
        self.go_on_if_all_are_present(now);
        true
    }

    /// Has all pods announce their members: what is stored is read.
    pub(super) fn call_roll(&mut self) {
        let now = self.now();
        let Some(guests) = &mut self.guests else { return };
        guests.roll = Roll::begun(guests.view.borrow().pods.iter().map(|pod| pod.id), now);
        guests.call(self.stream.id, now);
        self.metrics.groups.roll_calls.inc();
    }

    /// A pod has announced its members, or has none.
    pub(super) fn is_present(&mut self, from: PodId) {
        let now = self.now();
        if let Some(guests) = &mut self.guests {
            guests.roll.answered(from);
        }
        self.go_on_if_all_are_present(now);
    }

    fn go_on_if_all_are_present(&mut self, now: Instant) {
        let Some(guests) = &mut self.guests else { return };
        if !guests.roll.take_complete() {
            return;
        }
        let names: Vec<ByteString> = self.groups.keys().cloned().collect();
        for name in names {
            if let Some(running) = self.groups.get_mut(&name) {
                running.group.go_on(now);
            }
            self.tell(&name);
        }
        for Seek { group, places, reply } in std::mem::take(&mut self.seeks) {
            self.seek(&group, places, reply);
        }
    }

    /// Has a pod say again later what it has said.
    pub(super) fn refuse_words(&mut self, from: PodId, talk: u64) {
        let now = self.now();
        let Some(guests) = &mut self.guests else { return };
        if let Some(guest) = guests.pods.get_mut(&from) {
            guest.over = guest.over.or((guest.talk == talk).then_some(now + REFUSE_INTERVAL));
        }
        guests.hub.refuse(from, self.stream.id, talk);
    }

    /// Takes what a pod says.
    pub(super) fn hear(&mut self, from: PodId, talk: u64, seq: u64, words: ToCoordinator) {
        let now = self.now();
        let Some(guests) = &mut self.guests else { return };
        if !guests.is_heard(self.stream.id, from, (talk, seq), now) {
            return;
        }
        match words {
            ToCoordinator::Announce { .. } | ToCoordinator::GaveBack { .. } | ToCoordinator::Present => {
                self.hear_of_members(from, words, now);
            }
            ToCoordinator::Progress { group, held } => {
                self.board.tell(&group, held.shard, held.generation, held.position);
            }
            ToCoordinator::Release { group, held } => {
                if let Some(running) = self.groups.get_mut(&group) {
                    running.group.release(held.shard, held.generation, held.position, now);
                }
                self.tell(&group);
            }
            ToCoordinator::Leave { group, member, for_good } => {
                let known = self.guests.as_mut().and_then(|guests| guests.forget(from, member));
                if let Some((id, _)) = known {
                    self.leave(&group, id, for_good);
                }
            }
            ToCoordinator::Join { request, group, member, client_id, places } => {
                let known = self.guests.as_mut().and_then(|guests| guests.member(from, member, &group));
                let Some((id, events)) = known else { return };
                let (reply, answer) = oneshot::channel();
                let stream = Arc::clone(&self.stream);
                self.answer_with(from, request, async move {
                    Answer::Joined(answer.await.unwrap_or(Err(Error::Closed)))
                });
                self.join(Join { stream, group, member: id, client_id, events, places, reply });
            }
            ToCoordinator::List { request } => {
                let reports = Ok(self.reports());
                self.answer_with(from, request, async move { Answer::Groups(reports) });
            }
            ToCoordinator::Seek { request, group, places } => {
                let (reply, answer) = oneshot::channel();
                self.answer_with(from, request, done(answer));
                self.seek(&group, places, reply);
            }
            ToCoordinator::Delete { request, group, force } => {
                let (reply, answer) = oneshot::channel();
                self.answer_with(from, request, done(answer));
                self.delete(&group, force, reply);
            }
        }
    }

    fn hear_of_members(&mut self, from: PodId, words: ToCoordinator, now: Instant) {
        match words {
            ToCoordinator::Announce { group, member, client_id, held } => {
                let known = self.guests.as_mut().and_then(|guests| guests.member(from, member, &group));
                let Some((id, listener)) = known else { return };
                if let Some(running) = self.groups.get_mut(&group) {
                    running.events.insert(id, listener);
                    running.group.announce(id, client_id, &held, now);
                    self.tell(&group);
                } else {
                    // It may join anew. Cannot fail: its pod hears it, or announces it again.
                    let _ = listener.try_send(super::GroupEvent::Ended);
                }
            }
            ToCoordinator::GaveBack { group, held } => {
                if let Some(running) = self.groups.get_mut(&group) {
                    running.group.gave_back(&held);
                }
                self.tell(&group);
            }
            ToCoordinator::Present => {
                let gone = self.guests.as_mut().map(|guests| guests.take_unannounced(from));
                for (id, group) in gone.into_iter().flatten() {
                    self.leave(&group, id, false);
                }
                self.is_present(from);
            }
            _ => {}
        }
    }

    fn answer_with(
        &mut self,
        from: PodId,
        request: u64,
        answer: impl Future<Output = Answer> + Send + 'static,
    ) {
        let Some(voice) = self.guests.as_ref().and_then(|guests| guests.voice(from)) else { return };
        self.work.push(Box::pin(async move {
            Done::Answered(Answered { from, voice, request, answer: answer.await })
        }));
    }

    /// Tells a pod what became of what it has asked for.
    pub(super) fn answered(&mut self, answered: Answered) {
        let Answered { from, voice, request, answer } = answered;
        let words = match answer {
            Answer::Joined(Err(Error::Fenced)) | Answer::Done(Err(GroupError::Failed(Error::Fenced))) => {
                // The next coordinator does it.
                return self.end_talk(from, &voice);
            }
            Answer::Joined(Ok(Joined::Member)) => FromCoordinator::Joined { request },
            Answer::Joined(Ok(Joined::NeedsPlaces)) => FromCoordinator::NeedsPlaces { request },
            Answer::Groups(Ok(reports)) => FromCoordinator::Groups { request, reports },
            Answer::Done(Ok(())) => FromCoordinator::Done { request },
            Answer::Joined(Err(error)) | Answer::Groups(Err(error)) => {
                FromCoordinator::Refused { request, refusal: refusal_of(&error) }
            }
            Answer::Done(Err(error)) => {
                let refusal = match error {
                    GroupError::Missing => GroupRefusal::Missing,
                    GroupError::InUse(members) => GroupRefusal::InUse(members as u64),
                    GroupError::Failed(error) => refusal_of(&error),
                };
                FromCoordinator::Refused { request, refusal }
            }
        };
        voice.say(words);
    }

    fn end_talk(&mut self, from: PodId, voice: &Arc<Voice>) {
        let guest = self.guests.as_ref().and_then(|guests| guests.pods.get(&from));
        let talk = guest.filter(|guest| Arc::ptr_eq(&guest.voice, voice)).map(|guest| guest.talk);
        if let Some(talk) = talk {
            self.refuse_words(from, talk);
        }
    }
}

async fn done(answer: oneshot::Receiver<std::result::Result<(), GroupError>>) -> Answer {
    Answer::Done(answer.await.unwrap_or(Err(GroupError::Failed(Error::Closed))))
}

fn refusal_of(error: &Error) -> GroupRefusal {
    match error {
        Error::Full(what) => GroupRefusal::Full((*what).to_owned()),
        Error::Closed => GroupRefusal::Closed,
        error => GroupRefusal::Failed(error.to_string()),
    }
}
