//! What a pod wants of a shard that another pod owns: what is in line for it, who consumes it, who reads it.
//!
//! Without IO: it is told what comes and when a talk with an owner begins or ends, and says what is to be sent. All
//! that has no answer when a talk ends is said again in the next one, in the order in which it came, for
//! [`ANSWER_TIME`]. Bounds: records by the bytes that publishers may have in line, questions by [`LINE_MAX`], consumers
//! by their windows, settlements as [`Settles`] says, beyond which no credit is given.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{oneshot, watch};
use weir_env::clock::Instant;

use super::asks::{self, Asked, reference};
use super::credit::{Client, ClientKey, Delivered};
use super::fills::{Fill, advance};
use super::is_foreign;
use super::settles::{Settlement, Settles};
use crate::catalog::Object;
use crate::cluster::message::shard::{Answer, FromOwner, InFlight, Question, Refusal, RemoteAppend, ToOwner};
use crate::error::{Error, Result};
use crate::keyspace::segment::Record;
use crate::keyspace::{LogId, VirtualShard};
use crate::queue::{ConsumerId, Handout, Verdict};
use crate::shard::handed::Carried;
use crate::shard::log::Kept;
use crate::shard::logs::{LogKey, key_of};
use crate::shard::{AppendError, Command, Extent, PendingAppend, Watched};
use crate::stream::{Tail, TailReader, Tails};

/// How long an answer is waited for, over as many owners as there are meanwhile.
pub(super) const ANSWER_TIME: Duration = Duration::from_secs(30);
/// Records and questions without an answer before nothing more is taken on.
pub(super) const LINE_MAX: usize = 16_384;
/// Newcomers among whom nobody looks for those that have their answer.
const NEWCOMERS_LOOK: usize = 64;
/// Words that wait to be sent before nothing more is taken on.
const OUTBOX_MAX: usize = 256;
/// Wait before consumers and readers are announced again whom the owner could not take.
const RETRY_WAIT: Duration = Duration::from_secs(1);

pub(super) type WatchReply = oneshot::Sender<Result<Watched>>;

/// Something without an answer.
#[derive(Debug)]
enum Waiting {
    /// `true` once it was sent.
    Append(PendingAppend, bool),
    Ask(Asked),
    Attach(ClientKey),
    Watch(LogKey),
}

/// A log of a stream that is read here.
#[derive(Debug)]
pub(super) struct WatchedLog {
    pub(super) object: Arc<Object>,
    pub(super) log: LogId,
    pub(super) extent: watch::Sender<Extent>,
    pub(super) tail: Arc<Tail>,
    pub(super) waiting: Vec<WatchReply>,
    /// New messages are being read: what the owner has said last.
    pub(super) filling: Option<Extent>,
}

/// State of the forwarder of one shard.
#[derive(Debug)]
pub(super) struct Forwarding {
    tails: Arc<Tails>,
    /// A talk is under way.
    is_open: bool,
    outbox: VecDeque<ToOwner>,
    requests: u64,
    /// In order.
    line: BTreeMap<u64, (Waiting, Instant)>,
    clients: BTreeMap<ClientKey, Client>,
    pub(super) watches: BTreeMap<LogKey, WatchedLog>,
    settles: Settles,
    retry_at: Option<Instant>,
    /// Whom somebody waits for to be taken on by an owner, oldest first.
    newcomers: VecDeque<(Instant, Newcomer)>,
    /// When there are as many, those that have their answer are taken out.
    newcomers_look: usize,
    /// Consumers whose windows somebody waits for have given room back.
    starved: Vec<ConsumerId>,
    /// New messages of watched logs that are to be read.
    pub(super) fills: Vec<Fill>,
}

#[derive(Clone, Copy, Debug)]
enum Newcomer {
    Client(ClientKey),
    Watch(LogKey),
}

impl Forwarding {
    pub(super) fn new(tails: Arc<Tails>, carried: Carried, now: Instant) -> Self {
        let mut forwarding = Self {
            tails,
            is_open: false,
            outbox: VecDeque::new(),
            requests: 0,
            line: BTreeMap::new(),
            clients: BTreeMap::new(),
            watches: BTreeMap::new(),
            settles: Settles::default(),
            retry_at: None,
            newcomers: VecDeque::new(),
            newcomers_look: NEWCOMERS_LOOK,
            starved: Vec::new(),
            fills: Vec::new(),
        };
        for (key, kept) in carried.kept {
            forwarding.take_kept(key, kept, now);
        }
        for command in carried.commands {
            forwarding.handle_command(command, now);
        }
        forwarding
    }

    fn take_kept(&mut self, key: LogKey, kept: Kept, now: Instant) {
        let Kept { object, id, extent, tail, consumers, acknowledged } = kept;
        // Those of other pods announce themselves to the owner.
        for (consumer, held) in consumers.into_iter().filter(|(consumer, _)| !is_foreign(consumer.id)) {
            let client = Client::new(Arc::clone(&object), id, consumer, &held, None);
            self.clients.insert(client.key(), client);
        }
        for handout in acknowledged {
            self.settle(handout, Verdict::Acknowledged, now);
        }
        if extent.receiver_count() > 0 {
            let waiting = Vec::new();
            let watched = WatchedLog { object, log: id, extent, tail, waiting, filling: None };
            self.watches.insert(key, watched);
        }
    }

    /// What this pod, about to own the shard, has to go on with.
    pub(super) fn into_carried(mut self) -> Carried {
        let mut carried = Carried::default();
        for client in self.clients.values_mut() {
            let _ = client.end_talk();
        }
        for (_, (waiting, _)) in std::mem::take(&mut self.line) {
            let command = match waiting {
                Waiting::Append(pending, was_sent) => Some(Command::Append(said_before(pending, was_sent))),
                Waiting::Ask(asked) => asked.into_command(),
                Waiting::Attach(_) | Waiting::Watch(_) => None,
            };
            carried.commands.extend(command);
        }
        for (key, watched) in self.watches {
            let WatchedLog { object, log, extent, tail, waiting, filling } = watched;
            if let Some(newest) = filling {
                advance(&extent, newest);
            }
            for reply in waiting {
                let watch = Command::Watch { object: Arc::clone(&object), log, reply };
                carried.commands.push_back(watch);
            }
            let kept =
                Kept { object, id: log, extent, tail, consumers: Vec::new(), acknowledged: Vec::new() };
            carried.kept.insert(key, kept);
        }
        for ((key, _), mut client) in self.clients {
            let held = client.held();
            let (object, log, consumer) = (client.object, client.log, client.consumer);
            if let Some(reply) = client.reply.take() {
                carried.commands.push_back(Command::Attach { object, log, consumer, reply });
                continue;
            }
            let kept = carried.kept.entry(key).or_insert_with(|| Kept::new(object, log, &self.tails));
            kept.consumers.push((consumer, held));
        }
        // After those who hold the messages are attached again.
        for Settlement { handout, verdict, .. } in self.settles.iter().copied() {
            carried.commands.push_back(Command::Settle { handout, verdict });
        }
        carried
    }

    /// Whether more may be asked of it now.
    pub(super) fn has_room(&self) -> bool {
        self.line.len() < LINE_MAX && self.newcomers.len() < LINE_MAX && self.outbox.len() < OUTBOX_MAX
    }

    /// Whether nobody waits for an answer.
    pub(super) fn is_idle(&self) -> bool {
        self.line.is_empty() && self.settles.len() == 0
    }

    /// Records and questions without an answer.
    pub(super) fn waiting(&self) -> usize {
        self.line.len()
    }

    /// Settlements that the owner has not heard of yet.
    pub(super) fn unheard(&self) -> usize {
        self.settles.len()
    }

    /// What is to be said, in order. Whoever sends it takes it out.
    pub(super) fn outbox(&mut self) -> &mut VecDeque<ToOwner> {
        &mut self.outbox
    }

    /// Consumers that others wait for, who have room again.
    pub(super) fn poll_starved(&mut self) -> Option<ConsumerId> {
        self.starved.pop()
    }

    /// A talk with an owner begins.
    pub(super) fn open(&mut self, now: Instant) {
        self.close();
        self.is_open = true;
        self.announce_all(now);
        let keys: Vec<LogKey> = self.watches.keys().copied().collect();
        for key in keys {
            self.ask_to_watch(key, now);
        }
        for (request, (waiting, _)) in &mut self.line {
            let words = match waiting {
                Waiting::Append(pending, was_sent) => {
                    append_of(*request, pending, std::mem::replace(was_sent, true))
                }
                Waiting::Ask(asked) => ask_of(*request, asked),
                // They have just been said.
                Waiting::Attach(_) | Waiting::Watch(_) => continue,
            };
            self.outbox.push_back(words);
        }
    }

    /// Says who consumes and what they hold.
    pub(super) fn announce_all(&mut self, now: Instant) {
        self.end_credit();
        let keys: Vec<ClientKey> = self.clients.keys().copied().collect();
        for key in keys {
            self.announce(key, now);
        }
        for Settlement { seq, handout, verdict, .. } in self.settles.iter().copied() {
            self.outbox.push_back(ToOwner::Settle { seq, handout, verdict });
        }
        self.outbox.push_back(ToOwner::Present);
    }

    fn end_credit(&mut self) {
        for client in self.clients.values_mut() {
            if client.end_talk() {
                self.starved.push(client.consumer.id);
            }
        }
    }

    /// The talk has ended.
    pub(super) fn close(&mut self) {
        self.is_open = false;
        self.outbox.clear();
        self.line.retain(|_, (waiting, _)| matches!(waiting, Waiting::Append(..) | Waiting::Ask(_)));
        self.end_credit();
    }

    pub(super) fn say(&mut self, words: ToOwner) {
        if self.is_open {
            self.outbox.push_back(words);
        }
    }

    fn wait_for(&mut self, waiting: Waiting, now: Instant) -> u64 {
        self.requests += 1;
        self.line.insert(self.requests, (waiting, now));
        self.requests
    }

    fn announce(&mut self, key: ClientKey, now: Instant) {
        if !self.is_open {
            return;
        }
        let request = self.wait_for(Waiting::Attach(key), now);
        let Some(client) = self.clients.get(&key) else { return };
        let mut held = client.in_flight(now);
        // What it has settled is not known to be heard: nobody else may have it before it is.
        let settles = self.settles.iter().filter(|Settlement { handout, .. }| {
            handout.consumer == client.consumer.id && key_of(&handout.log.of_class(0)) == key.0
        });
        held.extend(settles.map(|Settlement { handout, at, .. }| InFlight {
            class: handout.log.class,
            offset: handout.offset,
            delivery_count: handout.delivery_count,
            age: now.saturating_duration_since(*at),
        }));
        let (object, log, consumer) = (reference(&client.object), client.log, client.introduction());
        self.outbox.push_back(ToOwner::Attach { request, object, log, consumer, held });
    }

    fn ask_to_watch(&mut self, key: LogKey, now: Instant) {
        if !self.is_open {
            return;
        }
        let Some(watched) = self.watches.get(&key) else { return };
        let (object, log) = (Some(reference(&watched.object)), watched.log);
        let request = self.wait_for(Waiting::Watch(key), now);
        self.outbox.push_back(ToOwner::Ask { request, object, log, question: Question::Watch });
    }

    /// Something is asked of the shard.
    pub(super) fn handle_command(&mut self, command: Command, now: Instant) {
        match command {
            Command::Append(pending) => {
                // Those of other pods go to the owner by themselves.
                if !pending.is_foreign {
                    self.append(pending, now);
                }
            }
            Command::Attach { object, log, consumer, reply } => {
                let client = Client::new(object, log, consumer, &[], Some(reply));
                let key = client.key();
                self.clients.insert(key, client);
                self.note_newcomer(Newcomer::Client(key), now);
                self.announce(key, now);
            }
            Command::Detach { log, consumer, lost } => {
                let key = (key_of(&log.of_class(0)), consumer);
                if let Some(mut client) = self.clients.remove(&key) {
                    if client.end_talk() {
                        self.starved.push(consumer);
                    }
                    self.say(ToOwner::Detach { log, consumer, lost });
                }
            }
            Command::Settle { handout, verdict } => self.settle(handout, verdict, now),
            Command::Kick { log, consumer } => self.give_credit((key_of(&log.of_class(0)), consumer)),
            Command::Update { object, log } => self.update(&object, log),
            Command::Watch { object, log, reply } => {
                let key = key_of(&log);
                let watched = self.watches.entry(key).or_insert_with(|| WatchedLog {
                    object,
                    log,
                    extent: watch::Sender::new(Extent::default()),
                    tail: Tail::new(&self.tails),
                    waiting: Vec::new(),
                    filling: None,
                });
                watched.waiting.push(reply);
                self.note_newcomer(Newcomer::Watch(key), now);
                // Always anew: whoever asks must see all that was acknowledged before.
                self.ask_to_watch(key, now);
            }
            Command::Settled { reply } => {
                // Any log of the shard will do: it is not looked at.
                let log = LogId { vs: VirtualShard(0), object: 0, shard: 0, class: 0 };
                self.ask(Asked::settled(log, reply), now);
            }
            // What comes from another pod is not sent on: that pod hears that it is to ask another.
            Command::Foreign(_)
            | Command::Resume { .. }
            | Command::Present { .. }
            | Command::HandOver { .. }
            | Command::Close { .. } => {}
            other => {
                if let Some(asked) = Asked::of(other) {
                    self.ask(asked, now);
                }
            }
        }
    }

    fn append(&mut self, pending: PendingAppend, now: Instant) {
        let request = self.wait_for(Waiting::Append(pending, false), now);
        if let (true, Some((Waiting::Append(pending, was_sent), _))) =
            (self.is_open, self.line.get_mut(&request))
        {
            let words = append_of(request, pending, std::mem::replace(was_sent, true));
            self.outbox.push_back(words);
        }
    }

    fn ask(&mut self, asked: Asked, now: Instant) {
        let words = ask_of(self.requests + 1, &asked);
        self.wait_for(Waiting::Ask(asked), now);
        self.say(words);
    }

    fn settle(&mut self, handout: Handout, verdict: Verdict, now: Instant) {
        let key = (key_of(&handout.log.of_class(0)), handout.consumer);
        if let Some(client) = self.clients.get_mut(&key) {
            client.settled(&handout);
        }
        let seq = self.settles.add(handout, verdict, now);
        self.say(ToOwner::Settle { seq, handout, verdict });
        self.give_credit(key);
    }

    fn give_credit(&mut self, key: ClientKey) {
        if self.settles.is_full() {
            return;
        }
        if let Some(words) = self.clients.get_mut(&key).and_then(Client::next_credit) {
            self.say(words);
        }
    }

    fn update(&mut self, object: &Arc<Object>, log: LogId) {
        let key = key_of(&log);
        for client in self.clients.values_mut().filter(|client| client.key().0 == key) {
            client.object = Arc::clone(object);
        }
        if let Some(watched) = self.watches.get_mut(&key) {
            watched.object = Arc::clone(object);
        }
        self.say(ToOwner::Update { object: reference(object), log });
    }

    /// The owner says something in the talk under way. True if it does not own the shard.
    pub(super) fn handle_words(&mut self, words: FromOwner, now: Instant) -> bool {
        match words {
            FromOwner::NotOwner { .. } => return true,
            FromOwner::Appended(answers) => {
                for (request, answer) in answers {
                    if let Some((Waiting::Append(pending, _), _)) = self.line.remove(&request) {
                        pending.answer(answer.map_err(asks::append_error_of));
                    }
                }
            }
            FromOwner::Answer { request, answer } => self.handle_answer(request, answer, now),
            FromOwner::Deliver { log, consumer, offset, delivery_count, record } => {
                self.deliver(Handout { log, consumer, offset, delivery_count }, record, now);
            }
            FromOwner::Wanted { log, consumer } => {
                let key = (key_of(&log.of_class(0)), consumer);
                if let Some(client) = self.clients.get_mut(&key) {
                    client.want();
                    self.give_credit(key);
                }
            }
            FromOwner::Unused { log, consumer, room } => {
                let key = (key_of(&log.of_class(0)), consumer);
                if self.clients.get_mut(&key).is_some_and(|client| client.take_back(room)) {
                    self.starved.push(consumer);
                }
            }
            FromOwner::SettledTo(seq) => {
                if self.settles.heard(seq) {
                    let keys: Vec<ClientKey> = self.clients.keys().copied().collect();
                    keys.into_iter().for_each(|key| self.give_credit(key));
                }
            }
            FromOwner::Extent { log, extent } => self.follow_extent(key_of(&log), extent),
            FromOwner::Gone { log } => {
                self.watches.remove(&key_of(&log));
            }
        }
        false
    }

    fn deliver(&mut self, handout: Handout, record: Arc<Record>, now: Instant) {
        let Handout { log, consumer, offset, delivery_count } = handout;
        let key = (key_of(&log.of_class(0)), consumer);
        let delivered = self
            .clients
            .get_mut(&key)
            .map_or(Delivered::No, |client| client.deliver(log, offset, delivery_count, record, now));
        if delivered == Delivered::No {
            self.settle(handout, Verdict::Returned, now);
        }
    }

    fn handle_answer(&mut self, request: u64, answer: std::result::Result<Answer, Refusal>, now: Instant) {
        let Some((waiting, _)) = self.line.remove(&request) else { return };
        let answer = answer.map_err(asks::error_of);
        match waiting {
            Waiting::Append(pending, _) => {
                pending.answer(answer.map(drop).map_err(AppendError::Failed));
            }
            Waiting::Ask(asked) => asked.reply.send(answer),
            Waiting::Attach(key) => self.attached(key, answer.map(drop), now),
            Waiting::Watch(key) => self.watched(key, answer, now),
        }
    }

    fn attached(&mut self, key: ClientKey, result: Result<()>, now: Instant) {
        let Some(client) = self.clients.get_mut(&key) else { return };
        client.is_attached = result.is_ok();
        match (client.reply.take(), result) {
            (Some(reply), Ok(())) => _ = reply.send(Ok(())),
            (Some(reply), Err(error)) => {
                let _ = reply.send(Err(error));
                self.clients.remove(&key);
            }
            (None, Ok(())) => {}
            // It is no more: its consumers hear of that from the catalog.
            (None, Err(Error::Closed)) => _ = self.clients.remove(&key),
            (None, Err(_)) => self.retry_at = Some(now + RETRY_WAIT),
        }
        self.give_credit(key);
        self.forget_answered();
    }

    fn watched(&mut self, key: LogKey, answer: Result<Answer>, now: Instant) {
        self.tell_watched(key, answer, now);
        self.forget_answered();
    }

    fn tell_watched(&mut self, key: LogKey, answer: Result<Answer>, now: Instant) {
        let Some(watched) = self.watches.get_mut(&key) else { return };
        let error = match answer {
            Ok(Answer::Extent(extent)) => {
                advance(&watched.extent, extent);
                for reply in watched.waiting.drain(..) {
                    let (extent, tail) = (watched.extent.subscribe(), TailReader::new(&watched.tail));
                    let _ = reply.send(Ok(Watched { extent, tail }));
                }
                return;
            }
            Ok(_) => Error::Remote("another answer than was asked for".into()),
            Err(error) => error,
        };
        for reply in watched.waiting.drain(..) {
            let _ = reply.send(Err(error.clone()));
        }
        if matches!(error, Error::Closed) || watched.extent.receiver_count() == 0 {
            self.watches.remove(&key);
        } else {
            self.retry_at = Some(now + RETRY_WAIT);
        }
    }

    fn note_newcomer(&mut self, newcomer: Newcomer, now: Instant) {
        self.forget_answered();
        self.newcomers.push_back((now, newcomer));
    }

    /// Takes those out that have their answer, or are gone, once there are many.
    fn forget_answered(&mut self) {
        if self.newcomers.len() < self.newcomers_look {
            return;
        }
        let (clients, watches) = (&self.clients, &self.watches);
        self.newcomers.retain(|(_, newcomer)| match newcomer {
            Newcomer::Client(key) => clients.get(key).is_some_and(|client| client.reply.is_some()),
            Newcomer::Watch(key) => watches.get(key).is_some_and(|watched| !watched.waiting.is_empty()),
        });
        self.newcomers_look = (self.newcomers.len() * 2).clamp(NEWCOMERS_LOOK, LINE_MAX);
    }

    /// Nobody took them on in time.
    fn refuse_newcomers(&mut self, now: Instant) {
        while let Some((_, newcomer)) = self.newcomers.pop_front_if(|(since, _)| *since + ANSWER_TIME <= now)
        {
            match newcomer {
                Newcomer::Client(key) => {
                    if self.clients.get(&key).is_some_and(|client| client.reply.is_some()) {
                        self.attached(key, Err(Error::NoOwner), now);
                    }
                }
                Newcomer::Watch(key) => {
                    if self.watches.get(&key).is_some_and(|watched| !watched.waiting.is_empty()) {
                        self.watched(key, Err(Error::NoOwner), now);
                    }
                }
            }
        }
    }

    /// When [`Forwarding::handle_timeout`] has something to do.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let overdue = self.line.first_key_value().map(|(_, (_, since))| *since + ANSWER_TIME);
        let newcomer = self.newcomers.front().map(|(since, _)| *since + ANSWER_TIME);
        [overdue, newcomer, self.retry_at].into_iter().flatten().min()
    }

    /// Gives up what has waited too long, and announces again whom the owner could not take.
    pub(super) fn handle_timeout(&mut self, now: Instant) {
        while let Some(entry) = self.line.first_entry() {
            if entry.get().1 + ANSWER_TIME > now {
                break;
            }
            match entry.remove().0 {
                Waiting::Append(pending, _) => {
                    pending.answer(Err(AppendError::Failed(Error::NoOwner)));
                }
                Waiting::Ask(asked) => asked.reply.send(Err(Error::NoOwner)),
                Waiting::Attach(key) => self.attached(key, Err(Error::NoOwner), now),
                Waiting::Watch(key) => self.watched(key, Err(Error::NoOwner), now),
            }
        }
        self.refuse_newcomers(now);
        if self.retry_at.is_some_and(|at| at <= now) {
            self.retry_at = None;
            let is_out = |client: &&Client| !client.is_attached;
            let keys: Vec<ClientKey> = self.clients.values().filter(is_out).map(Client::key).collect();
            keys.into_iter().for_each(|key| self.announce(key, now));
            let keys: Vec<LogKey> = self.watches.keys().copied().collect();
            keys.into_iter().for_each(|key| self.ask_to_watch(key, now));
        }
    }
}

/// A record that another owner may have stored: only by its name can it be told.
fn said_before(mut pending: PendingAppend, was_sent: bool) -> PendingAppend {
    if let (true, Some((_, is_repeat))) = (was_sent, &mut pending.publish) {
        *is_repeat = true;
    }
    pending
}

fn append_of(request: u64, pending: &PendingAppend, was_sent: bool) -> ToOwner {
    ToOwner::Append(Box::new(RemoteAppend {
        request,
        object: reference(&pending.object),
        log: pending.log,
        record: Arc::clone(&pending.record),
        publish: pending.publish.map(|(id, is_repeat)| (id, is_repeat || was_sent)),
        wishes: pending.wishes,
    }))
}

fn ask_of(request: u64, asked: &Asked) -> ToOwner {
    let object = asked.object.as_deref().map(reference);
    ToOwner::Ask { request, object, log: asked.log, question: asked.question.clone() }
}

#[cfg(test)]
mod tests;
