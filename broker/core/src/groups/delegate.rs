//! The members that this pod's clients are of the groups of one stream, in a pod of many: a task that says to the
//! coordinator, wherever that is, what they say, and tells them what it answers.
//!
//! It knows who the members are and what they have, and announces them to whoever is the coordinator next. Who gets what
//! is the coordinator's affair. It waits for nothing but words; everything it owns is here.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytestring::ByteString;
use tokio::sync::{mpsc, oneshot};
use weir_env::clock::Instant;

use super::board::Board;
use super::coordinator::Command;
use super::hub::Hub;
use super::joining::{Join, Joined};
use super::listener::Listener;
use super::{GroupError, GroupEvent, GroupReport};
use crate::catalog::Object;
use crate::cluster::links::{Unreachable, UpLinks};
use crate::cluster::message::GroupMessage;
use crate::cluster::message::group::{FromCoordinator, GroupRefusal, Holding, ToCoordinator};
use crate::cluster::message::shard::ObjectRef;
use crate::error::{Error, Result};
use crate::keyspace::owner::PodId;
use crate::queue::ConsumerId;

/// Words that wait to be sent before nothing more is taken.
const OUTBOX_MAX: usize = 1024;
/// Words of coordinators that wait to be heard before who brings them waits.
pub(super) const HEARD_MAX: usize = 1024;
/// How long progress waits to be sent with more of it.
const PROGRESS_DELAY: Duration = Duration::from_millis(100);
/// Wait before a pod is asked again that does not have the coordinator, as it says.
const REFUSED_WAIT: Duration = Duration::from_millis(50);
/// How long a pod counts as the one with the coordinator that says so, before the feed tells the same.
const HINT_TIME: Duration = Duration::from_secs(1);
/// How long an answer is waited for before the talk begins anew.
const SILENCE_TIME: Duration = Duration::from_secs(5);
/// How long an answer is waited for in all.
const ANSWER_TIME: Duration = Duration::from_secs(30);
/// How long it is remembered that a shard was given back, should the coordinator not have heard it.
const GAVE_BACK_TIME: Duration = Duration::from_secs(10);
/// How often it is looked who is gone and what has taken too long.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);
/// Time in which what a member said last arrives, once its channel is closed.
const LAST_WORDS_WAIT: Duration = Duration::from_secs(5);
/// How long what is not sent is waited for at shutdown.
const CLOSE_TIME: Duration = Duration::from_secs(1);

/// Something that a delegate hears.
#[derive(Debug)]
pub(super) enum Heard {
    Words {
        from: PodId,
        talk: u64,
        seq: u64,
        words: FromCoordinator,
    },
    /// A new coordinator wants to know who is a member.
    RollCall {
        from: PodId,
    },
}

/// With whom the groups are talked about.
#[derive(Clone, Copy, Debug)]
struct Talk {
    with: PodId,
    number: u64,
    /// Over which link.
    link: u64,
    /// Number of the next words from there, and to there.
    heard: u64,
    said: u64,
}

#[derive(Debug)]
struct Member {
    group: ByteString,
    client_id: ByteString,
    events: mpsc::Sender<GroupEvent>,
    /// A coordinator has let it in.
    is_in: bool,
    closed_at: Option<Instant>,
}

/// A shard that a member has.
#[derive(Clone, Copy, Debug)]
struct Held {
    member: ConsumerId,
    generation: u64,
    position: u64,
}

/// What has no answer.
#[derive(Debug)]
struct Asked {
    question: ToCoordinator,
    reply: Reply,
    since: Instant,
    /// It was asked in an earlier talk, and may be done.
    is_repeat: bool,
}

#[derive(Debug)]
enum Reply {
    Joined(ConsumerId, oneshot::Sender<Result<Joined>>),
    Groups(oneshot::Sender<Result<Vec<GroupReport>>>),
    Done(oneshot::Sender<std::result::Result<(), GroupError>>),
}

/// State of the task.
pub(super) struct Delegate {
    hub: Arc<Hub>,
    stream: Arc<Object>,
    commands: mpsc::Receiver<Command>,
    board: Arc<Board>,
    heard: mpsc::Receiver<Heard>,
    members: BTreeMap<ConsumerId, Member>,
    /// By group and shard.
    held: BTreeMap<(ByteString, u8), Held>,
    gave_back: VecDeque<(Instant, ByteString, Holding)>,
    asked: BTreeMap<u64, Asked>,
    last_request: u64,
    talk: Option<Talk>,
    outbox: VecDeque<ToCoordinator>,
    /// Who has the coordinator, from more recent news than the feed's.
    hint: Option<(PodId, Instant)>,
    /// No talk before.
    wait_until: Option<Instant>,
    heard_at: Instant,
    progress_at: Option<Instant>,
    sweep_at: Instant,
    closing: Option<(Instant, oneshot::Sender<()>)>,
}

impl Delegate {
    pub(super) fn new(
        hub: Arc<Hub>,
        stream: Arc<Object>,
        commands: mpsc::Receiver<Command>,
        board: Arc<Board>,
        now: Instant,
    ) -> Self {
        let (heard_tx, heard) = mpsc::channel(HEARD_MAX);
        hub.listen(stream.id, heard_tx);
        Self {
            hub,
            stream,
            commands,
            board,
            heard,
            members: BTreeMap::new(),
            held: BTreeMap::new(),
            gave_back: VecDeque::new(),
            asked: BTreeMap::new(),
            last_request: 0,
            talk: None,
            outbox: VecDeque::new(),
            hint: None,
            wait_until: None,
            heard_at: now,
            progress_at: None,
            sweep_at: now + SWEEP_INTERVAL,
            closing: None,
        }
    }

    /// Runs until the stream is deleted, or this pod shuts down.
    pub(super) async fn run(mut self) {
        let (hub, board) = (Arc::clone(&self.hub), Arc::clone(&self.board));
        let mut up = hub.links().link_events();
        let (mut owners, mut pods) = (hub.cluster().owners_changed(), hub.cluster().members());
        let mut waiting = hub.words_waiting();
        loop {
            let now = hub.now();
            owners.mark_unchanged();
            pods.mark_unchanged();
            self.handle_timeouts(now);
            self.follow_owner(&up.borrow_and_update().clone(), now);
            if self.closing.as_ref().is_some_and(|(by, _)| self.outbox.is_empty() || *by <= now) {
                break;
            }
            waiting.set(self.outbox.len());
            let due = self.next_timeout();
            let has_room = self.outbox.len() < OUTBOX_MAX && self.closing.is_none();
            let is_waiting = self.progress_at.is_some();
            let (talk, outbox) = (&mut self.talk, &mut self.outbox);
            tokio::select! {
                biased;
                Some(heard) = self.heard.recv() => self.handle_heard(heard, now),
                sent = send_out(&hub, &self.stream, talk, outbox), if talk.is_some() && !outbox.is_empty() => {
                    if sent.is_err() {
                        self.end_talk();
                        self.wait_until = Some(now + REFUSED_WAIT);
                    }
                }
                command = self.commands.recv(), if has_room => match command {
                    Some(Command::Forget { reply }) => {
                        self.forget();
                        let _ = reply.send(());
                        break;
                    }
                    Some(command) => self.handle(command),
                    None => break,
                },
                () = board.told(), if !is_waiting => self.progress_at = Some(now + PROGRESS_DELAY),
                _ = owners.changed() => {}
                _ = pods.changed() => {}
                _ = up.changed() => {}
                () = tokio::time::sleep_until(due) => {}
            }
        }
        hub.listen_no_more(self.stream.id);
        if let Some((_, reply)) = self.closing {
            let _ = reply.send(());
        }
    }

    fn next_timeout(&self) -> Instant {
        let hint = self.hint.map(|(_, since)| since + HINT_TIME);
        let closing = self.closing.as_ref().map(|(by, _)| *by);
        let due = [self.progress_at, self.wait_until, hint, closing].into_iter().flatten();
        due.fold(self.sweep_at, Instant::min)
    }

    fn handle_timeouts(&mut self, now: Instant) {
        self.hint = self.hint.filter(|(_, since)| *since + HINT_TIME > now);
        self.wait_until = self.wait_until.filter(|until| *until > now);
        if self.progress_at.is_some_and(|at| at <= now) {
            self.take_progress();
        }
        if self.sweep_at <= now {
            self.sweep_at = now + SWEEP_INTERVAL;
            self.sweep(now);
        }
    }

    /// Lets go of members that are gone without a word, and of questions that nobody answers.
    fn sweep(&mut self, now: Instant) {
        while self.gave_back.front().is_some_and(|(at, ..)| *at + GAVE_BACK_TIME <= now) {
            self.gave_back.pop_front();
        }
        let mut gone = Vec::new();
        for (id, member) in self.members.iter_mut().filter(|(_, member)| member.events.is_closed()) {
            if *member.closed_at.get_or_insert(now) + LAST_WORDS_WAIT <= now {
                gone.push(*id);
            }
        }
        gone.into_iter().for_each(|member| self.leave(member, false));
        let late = self.asked.iter().filter(|(_, asked)| asked.since + ANSWER_TIME <= now);
        for request in late.map(|(request, _)| *request).collect::<Vec<_>>() {
            self.answer(request, Err(Error::NoOwner));
        }
        if !self.asked.is_empty() && self.talk.is_some() && self.heard_at + SILENCE_TIME <= now {
            self.end_talk();
        }
    }

    /// Talks to whoever has the coordinator now, if it can be reached and there is something to say.
    fn follow_owner(&mut self, up: &UpLinks, now: Instant) {
        let Some(first) = self.stream.logs.first() else { return };
        let cluster = self.hub.cluster();
        let me = cluster.me();
        let whom = self.hint.map(|(pod, _)| pod).or_else(|| cluster.whom_to_ask(first.vs));
        let link_of = |pod: PodId| if pod == me { Some(0) } else { up.get(&pod).copied() };
        if let Some(talk) = self.talk
            && (whom.is_some_and(|whom| whom != talk.with) || link_of(talk.with) != Some(talk.link))
        {
            self.end_talk();
        }
        if self.talk.is_none()
            && self.wait_until.is_none()
            && self.has_something()
            && let Some(with) = whom
            && let Some(link) = link_of(with)
        {
            self.talk = Some(Talk { with, number: self.hub.next_talk(), link, heard: 0, said: 0 });
            self.heard_at = now;
            self.announce();
        }
    }

    fn has_something(&self) -> bool {
        !self.members.is_empty() || !self.asked.is_empty() || !self.gave_back.is_empty()
    }

    fn end_talk(&mut self) {
        self.talk = None;
        self.outbox.clear();
        self.asked.values_mut().for_each(|asked| asked.is_repeat = true);
    }

    /// Begins a talk: says who is a member, what each has, and what has no answer.
    fn announce(&mut self) {
        self.take_progress();
        self.outbox.clear();
        for (id, member) in self.members.iter().filter(|(_, member)| member.is_in) {
            let of_its =
                self.held.iter().filter(|((group, _), held)| held.member == *id && *group == member.group);
            let held = of_its.map(|((_, shard), held)| held.at(*shard)).collect();
            let (group, client_id) = (member.group.clone(), member.client_id.clone());
            self.outbox.push_back(ToCoordinator::Announce { group, member: *id, client_id, held });
        }
        let gave_back = self.gave_back.iter().map(|(_, group, held)| (group.clone(), *held));
        self.outbox.extend(gave_back.map(|(group, held)| ToCoordinator::GaveBack { group, held }));
        self.outbox.push_back(ToCoordinator::Present);
        self.outbox.extend(self.asked.values().map(|asked| asked.question.clone()));
    }

    fn say(&mut self, words: ToCoordinator) {
        // Without a talk, the next one begins with what is so then.
        if self.talk.is_some() {
            self.outbox.push_back(words);
        }
    }

    fn take_progress(&mut self) {
        self.progress_at = None;
        for (group, shards) in self.board.take() {
            for (shard, (generation, position)) in shards {
                let held = self.held.get_mut(&(group.clone(), shard));
                if let Some(held) = held.filter(|held| held.generation == generation) {
                    held.position = held.position.max(position);
                }
                let held = Holding { shard, generation, position };
                self.say(ToCoordinator::Progress { group: group.clone(), held });
            }
        }
    }

    fn handle(&mut self, command: Command) {
        self.take_progress();
        match command {
            Command::Join(join) => self.join(join),
            Command::Release { group, shard, generation, position } => {
                self.release(group, Holding { shard, generation, position });
            }
            Command::Leave { member, for_good, .. } => self.leave(member, for_good),
            Command::List { reply } => {
                self.ask(Reply::Groups(reply), |request| ToCoordinator::List { request });
            }
            Command::Seek { group, places, reply } => {
                self.ask(Reply::Done(reply), |request| ToCoordinator::Seek { request, group, places });
            }
            Command::Delete { group, force, reply } => {
                self.ask(Reply::Done(reply), |request| ToCoordinator::Delete { request, group, force });
            }
            Command::Update { stream } => {
                if stream.generation > self.stream.generation {
                    self.stream = stream;
                }
            }
            Command::Close { reply } => self.closing = Some((self.hub.now() + CLOSE_TIME, reply)),
            // Those are a coordinator's, and the loop's.
            Command::Words { .. } | Command::Absent { .. } | Command::Wake | Command::Forget { .. } => {}
        }
    }

    fn ask(&mut self, reply: Reply, question: impl FnOnce(u64) -> ToCoordinator) {
        self.last_request += 1;
        let (request, since) = (self.last_request, self.hub.now());
        if self.asked.is_empty() {
            self.heard_at = since;
        }
        let question = question(request);
        self.say(question.clone());
        self.asked.insert(request, Asked { question, reply, since, is_repeat: false });
    }

    fn join(&mut self, join: Join) {
        let Join { stream, group, member, client_id, events, places, reply } = join;
        // Here every member is in this process.
        let Listener::Here(events) = events else { return };
        if stream.generation > self.stream.generation {
            self.stream = stream;
        }
        let known = Member {
            group: group.clone(),
            client_id: client_id.clone(),
            events,
            is_in: false,
            closed_at: None,
        };
        self.members.insert(member, known);
        self.ask(Reply::Joined(member, reply), |request| ToCoordinator::Join {
            request,
            group,
            member,
            client_id,
            places,
        });
    }

    fn release(&mut self, group: ByteString, held: Holding) {
        let key = (group, held.shard);
        if self.held.get(&key).is_some_and(|known| known.generation == held.generation) {
            self.held.remove(&key);
        }
        let group = key.0;
        self.gave_back.push_back((self.hub.now(), group.clone(), held));
        self.say(ToCoordinator::Release { group, held });
    }

    fn leave(&mut self, id: ConsumerId, for_good: bool) {
        let Some(member) = self.members.remove(&id) else { return };
        let group = member.group;
        self.drop_held(id, &group);
        self.say(ToCoordinator::Leave { group, member: id, for_good });
    }

    /// What a member has is nobody's here any more.
    fn drop_held(&mut self, id: ConsumerId, group: &ByteString) {
        let now = self.hub.now();
        let gave_back = &mut self.gave_back;
        self.held.retain(|(of, shard), held| {
            let is_its = held.member == id && of == group;
            if is_its {
                gave_back.push_back((now, of.clone(), held.at(*shard)));
            }
            !is_its
        });
    }

    /// The stream is deleted.
    fn forget(&mut self) {
        for member in std::mem::take(&mut self.members).into_values() {
            // Who does not listen learns it from the end of its channel.
            let _ = member.events.try_send(GroupEvent::Ended);
        }
    }

    fn handle_heard(&mut self, heard: Heard, now: Instant) {
        let (from, number, seq, words) = match heard {
            Heard::Words { from, talk, seq, words } => (from, talk, seq, words),
            Heard::RollCall { from } => {
                self.hint = Some((from, now));
                self.wait_until = None;
                self.end_talk();
                if !self.has_something() {
                    // Nobody is announced, and that is all.
                    self.hub.is_absent_here(from, self.stream.id);
                }
                return;
            }
        };
        let Some(talk) = self.talk.as_mut().filter(|talk| (talk.with, talk.number) == (from, number)) else {
            return;
        };
        let is_refused = words == FromCoordinator::NotCoordinator;
        if is_refused || seq != talk.heard {
            self.end_talk();
            self.hint = None;
            self.wait_until = Some(now + REFUSED_WAIT);
            self.hub.cluster().feed().wake();
            return;
        }
        talk.heard += 1;
        self.heard_at = now;
        match words {
            FromCoordinator::Joined { request } => self.answer(request, Ok(Answer::Joined(Joined::Member))),
            FromCoordinator::NeedsPlaces { request } => {
                self.answer(request, Ok(Answer::Joined(Joined::NeedsPlaces)));
            }
            FromCoordinator::Groups { request, reports } => self.answer(request, Ok(Answer::Groups(reports))),
            FromCoordinator::Done { request } => self.answer(request, Ok(Answer::Done)),
            FromCoordinator::Refused { request, refusal } => self.refused(request, refusal),
            FromCoordinator::Event { member, event } => self.tell(member, event),
            FromCoordinator::NotCoordinator => {}
        }
    }

    /// Tells a member what concerns it. One that does not listen is gone.
    fn tell(&mut self, id: ConsumerId, event: GroupEvent) {
        let Some(member) = self.members.get_mut(&id) else { return };
        if let GroupEvent::Assigned { shard, generation, from } = event {
            member.is_in = true;
            let held = Held { member: id, generation, position: from };
            self.held.insert((member.group.clone(), shard), held);
        }
        let is_full = matches!(member.events.try_send(event), Err(mpsc::error::TrySendError::Full(_)));
        if is_full || event == GroupEvent::Ended {
            self.leave(id, false);
        }
    }

    fn refused(&mut self, request: u64, refusal: GroupRefusal) {
        let error = match refusal {
            GroupRefusal::Missing | GroupRefusal::InUse(_) => {
                let Some(Asked { question, reply, is_repeat, .. }) = self.asked.remove(&request) else {
                    return;
                };
                let Reply::Done(reply) = reply else { return };
                let is_done = is_repeat && matches!(question, ToCoordinator::Delete { .. });
                let _ = reply.send(match refusal {
                    // It was deleted by the same question, the answer to which was lost.
                    GroupRefusal::Missing if is_done => Ok(()),
                    GroupRefusal::InUse(members) => {
                        Err(GroupError::InUse(usize::try_from(members).unwrap_or(usize::MAX)))
                    }
                    _ => Err(GroupError::Missing),
                });
                return;
            }
            GroupRefusal::Full(what) if what == MEMBERS => Error::Full(MEMBERS),
            GroupRefusal::Full(_) => Error::Full(GROUPS),
            GroupRefusal::Closed => Error::Closed,
            GroupRefusal::Failed(why) => Error::Remote(why.into()),
        };
        self.answer(request, Err(error));
    }

    fn answer(&mut self, request: u64, answer: Result<Answer>) {
        let Some(asked) = self.asked.remove(&request) else { return };
        match (asked.reply, answer) {
            (Reply::Joined(id, reply), Ok(Answer::Joined(joined))) => {
                if joined == Joined::Member {
                    if let Some(member) = self.members.get_mut(&id) {
                        member.is_in = true;
                    }
                } else {
                    self.members.remove(&id);
                }
                if reply.send(Ok(joined)).is_err() {
                    self.leave(id, false);
                }
            }
            (Reply::Joined(id, reply), Err(error)) => {
                // It may have been let in, in a talk that broke.
                self.leave(id, false);
                let _ = reply.send(Err(error));
            }
            (Reply::Groups(reply), Ok(Answer::Groups(reports))) => _ = reply.send(Ok(reports)),
            (Reply::Groups(reply), Err(error)) => _ = reply.send(Err(error)),
            (Reply::Done(reply), Ok(Answer::Done)) => _ = reply.send(Ok(())),
            (Reply::Done(reply), Err(error)) => _ = reply.send(Err(error.into())),
            // A coordinator answers what it is asked; of another answer the end of the channel tells.
            (Reply::Joined(..) | Reply::Groups(_) | Reply::Done(_), Ok(_)) => {}
        }
    }
}

/// The limits that a coordinator may name.
const MEMBERS: &str = "limits.streamGroupMembers";
const GROUPS: &str = "limits.streamGroups";

enum Answer {
    Joined(Joined),
    Groups(Vec<GroupReport>),
    Done,
}

impl Held {
    const fn at(&self, shard: u8) -> Holding {
        Holding { shard, generation: self.generation, position: self.position }
    }
}

/// Sends what is in `outbox`; cancelled, what was not sent is still there.
async fn send_out(
    hub: &Hub,
    stream: &Object,
    talk: &mut Option<Talk>,
    outbox: &mut VecDeque<ToCoordinator>,
) -> std::result::Result<(), Unreachable> {
    let Some(talk) = talk else { return Err(Unreachable) };
    let stream = ObjectRef { id: stream.id, generation: stream.generation };
    while let Some(words) = outbox.front() {
        let words = words.clone();
        let seq = talk.said;
        hub.send(talk.with, GroupMessage::ToCoordinator { stream, talk: talk.number, seq, words }).await?;
        // Not cancelled before the next wait: what was sent is taken out.
        talk.said += 1;
        outbox.pop_front();
    }
    Ok(())
}
