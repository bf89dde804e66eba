//! Another pod's part in a shard of this one: the task that asks the shard's owner for it.
//!
//! It takes what the pod says in its order, and sends back answers, deliveries and changes as they come. If the shard
//! turns out not to be owned here, or no longer, it says so, and nothing of that talk is answered any more. Consumers
//! of the pod stay attached while its link is down, without credit, until it is no member any more.

use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll};
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use weir_env::clock::Clock;

use super::proxies::Proxies;
use super::{FOREIGN, Remote, asks};
use crate::catalog::Object;
use crate::cluster::links::{Links, Unreachable};
use crate::cluster::message::shard::{
    Answer, FromOwner, InFlight, ObjectRef, Question, Refusal, RemoteAppend, RemoteConsumer, ShardMessage,
    ToOwner,
};
use crate::error::{Error, Result};
use crate::keyspace::owner::PodId;
use crate::keyspace::{LogId, VirtualShard};
use crate::metrics::GaugeShare;
use crate::queue::{ConsumerId, Handout, Held, Lost, QueueDelivery};
use crate::shard::logs::{LogKey, key_of};
use crate::shard::ops::Operation;
use crate::shard::positions::PendingPositions;
use crate::shard::{AppendError, AppendReply, Command, Extent, ShardHandle, Watched};

/// Words that wait to be sent before no more are made.
const OUTBOX_MAX: usize = 1024;
/// Answers to appends sent in one message.
const ANSWERS_MAX: usize = 1024;
/// How long credit may be unused before it is given back.
const CREDIT_TIME: Duration = Duration::from_millis(50);

/// How long a pod has to hear the last words.
const PART_TIME: Duration = Duration::from_millis(500);

/// What a guest is told.
#[derive(Debug)]
pub(super) enum Input {
    Words { talk: u64, words: ToOwner },
    LinkDown,
}

/// State of the task.
pub(super) struct Guest {
    remote: Arc<Remote>,
    clock: Clock,
    pod: PodId,
    vs: VirtualShard,
    shard: ShardHandle,
    input: mpsc::Receiver<Input>,
    talk: u64,
    talks: GaugeShare,
    /// Nothing more is answered in this talk.
    is_over: bool,
    /// The pod has heard so.
    is_parted: bool,
    /// The shard has been owned here in this talk.
    is_owner: bool,
    outbox: VecDeque<FromOwner>,
    appends: FuturesUnordered<Appending>,
    asks: FuturesUnordered<BoxFuture<'static, (u64, Outcome)>>,
    proxies: Proxies,
    deliveries: mpsc::Receiver<QueueDelivery>,
    /// Logs that are watched, each under the number of the latest question.
    watches: BTreeMap<LogKey, u64>,
    extents: FuturesUnordered<BoxFuture<'static, Changed>>,
    /// Newest settlement that is in the owner's line.
    settled: Option<u64>,
    /// Up to which settlement the owner's task has come, once it says so; one at a time. None if it has ended before.
    hearing: FuturesUnordered<BoxFuture<'static, Option<u64>>>,
}

/// An append without an answer.
struct Appending {
    request: u64,
    reply: AppendReply,
}

/// What became of a question.
enum Outcome {
    Answer(std::result::Result<Answer, Refusal>),
    Watched(LogId, Watched),
    NotOwner,
}

/// A change of a log that is watched.
struct Changed {
    request: u64,
    log: LogId,
    extent: Option<watch::Receiver<Extent>>,
}

impl Future for Appending {
    type Output = (u64, std::result::Result<std::result::Result<(), AppendError>, ()>);

    fn poll(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<Self::Output> {
        let request = self.request;
        Pin::new(&mut self.reply).poll(cx).map(|answer| (request, answer.map_err(drop)))
    }
}

impl Guest {
    pub(super) fn new(
        remote: Arc<Remote>,
        clock: Clock,
        (pod, vs): (PodId, VirtualShard),
        shard: ShardHandle,
        input: mpsc::Receiver<Input>,
        talks: GaugeShare,
    ) -> Self {
        let (proxies, deliveries) = Proxies::new();
        Self {
            remote,
            clock,
            pod,
            vs,
            shard,
            input,
            talk: 0,
            talks,
            is_over: true,
            is_parted: true,
            is_owner: false,
            outbox: VecDeque::new(),
            appends: FuturesUnordered::new(),
            asks: FuturesUnordered::new(),
            proxies,
            deliveries,
            watches: BTreeMap::new(),
            extents: FuturesUnordered::new(),
            settled: None,
            hearing: FuturesUnordered::new(),
        }
    }

    /// Runs until the pod is gone, or this one shuts down.
    pub(super) async fn run(mut self, stop: CancellationToken) {
        let links = self.remote.links().clone();
        let mut owners = self.remote.cluster().owners_changed();
        let starving = self.proxies.starving();
        let mut credit_due = tokio::time::interval(CREDIT_TIME);
        credit_due.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            self.hear().await;
            self.talks.set(usize::from(!self.is_over));
            let has_room = self.outbox.len() < OUTBOX_MAX && !self.is_over;
            let (pod, vs, talk) = (self.pod, self.vs, self.talk);
            let has_credit = has_room && self.proxies.have_credit();
            let outbox = &mut self.outbox;
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                input = self.input.recv() => match input {
                    Some(input) => self.handle_input(input).await,
                    None => break,
                },
                sent = send_out(&links, pod, vs, talk, outbox), if !outbox.is_empty() => {
                    if sent.is_err() {
                        self.end_talk();
                    }
                }
                changed = owners.changed() => {
                    if changed.is_err() { break }
                    let owner = self.remote.cluster().owner_of(vs);
                    let is_owner = owner == Some(self.remote.cluster().me());
                    if self.is_owner && !is_owner && owner.is_some() {
                        self.not_owner();
                    }
                    self.is_owner |= is_owner;
                }
                Some((request, answer)) = self.appends.next(), if has_room && !self.appends.is_empty() => {
                    self.finish_appends(request, answer);
                }
                Some((request, outcome)) = self.asks.next(), if has_room && !self.asks.is_empty() => {
                    self.finish_ask(request, outcome);
                }
                Some(heard) = self.hearing.next(), if has_room && !self.hearing.is_empty() => {
                    if let Some(seq) = heard {
                        self.say(FromOwner::SettledTo(seq));
                    }
                }
                Some(delivery) = self.deliveries.recv(), if has_room => {
                    self.proxies.deliver(delivery, &mut self.outbox);
                }
                Some(changed) = self.extents.next(), if has_room && !self.extents.is_empty() => {
                    self.finish_watch(changed);
                }
                () = starving.notified(), if has_room => self.proxies.ask_for_credit(&mut self.outbox),
                _ = credit_due.tick(), if has_credit => self.proxies.give_unused_back(&mut self.outbox),
            }
        }
        self.leave(&links).await;
    }

    /// Asks the owner's task to say when it has come to what is settled: what is still in its line when it ends is lost, and
    /// the pod must say it to the next owner, which else would deliver those messages again.
    async fn hear(&mut self) {
        if !self.hearing.is_empty() {
            return;
        }
        let Some(seq) = self.settled.take() else { return };
        let (reply, heard) = oneshot::channel();
        if self.tell(Command::Settled { reply }).await.is_err() {
            self.not_owner();
            return;
        }
        self.hearing.push(heard.map(move |heard| heard.ok().map(|()| seq)).boxed());
    }

    /// Its consumers leave, and its pod is told to ask another.
    async fn leave(mut self, links: &Links) {
        self.not_owner();
        for (log, consumer) in self.proxies.take_older_than(u64::MAX) {
            // Fails at shutdown only.
            let _ = self.tell(Command::Detach { log, consumer, lost: Lost::Left }).await;
        }
        // Its last answers are to arrive before the link ends.
        let _ = timeout(PART_TIME, self.part(links)).await;
    }

    /// Says what is left to be said, and waits until the pod has heard it.
    async fn part(&mut self, links: &Links) -> std::result::Result<(), Unreachable> {
        send_out(links, self.pod, self.vs, self.talk, &mut self.outbox).await?;
        while !self.is_parted {
            match self.input.recv().await {
                Some(Input::Words { talk, words: ToOwner::Parted }) if talk == self.talk => break,
                Some(Input::Words { .. }) => {}
                Some(Input::LinkDown) | None => return Err(Unreachable),
            }
        }
        Ok(())
    }

    fn say(&mut self, words: FromOwner) {
        if !self.is_over {
            self.outbox.push_back(words);
        }
    }

    /// Nothing more is said or answered in the talk there was.
    fn end_talk(&mut self) {
        (self.is_over, self.is_owner, self.settled) = (true, false, None);
        self.outbox.clear();
        self.appends.clear();
        self.asks.clear();
        self.hearing.clear();
        self.watches.clear();
        self.extents.clear();
        self.proxies.end_talk();
    }

    /// The shard is another's: the pod is to ask that.
    fn not_owner(&mut self) {
        if self.is_over {
            return;
        }
        // What is done stays so: the owner had no more in flight when it lost the shard.
        let mut answers = Vec::new();
        while let Some((request, answer)) = self.appends.next().now_or_never().flatten() {
            match answer.map(|answer| answer.map_err(asks::append_refusal)) {
                Ok(Ok(())) => answers.push((request, Ok(()))),
                Ok(Err(Some(refusal))) => answers.push((request, Err(refusal))),
                Ok(Err(None)) | Err(()) => {}
            }
        }
        let mut outbox = std::mem::take(&mut self.outbox);
        if !answers.is_empty() {
            outbox.push_back(FromOwner::Appended(answers));
        }
        while let Some((request, outcome)) = self.asks.next().now_or_never().flatten() {
            if let Outcome::Answer(answer) = outcome {
                outbox.push_back(FromOwner::Answer { request, answer });
            }
        }
        self.end_talk();
        let owner = self.remote.cluster().owner_of(self.vs);
        outbox.push_back(FromOwner::NotOwner { owner });
        self.outbox = outbox;
    }

    /// Has the owner's task do something, if it is one.
    async fn tell(&mut self, command: Command) -> Result<()> {
        self.shard.send(Command::Foreign(Box::new(command))).await
    }

    async fn handle_input(&mut self, input: Input) {
        let Input::Words { talk, words } = input else {
            self.end_talk();
            return;
        };
        if talk == self.talk && matches!(words, ToOwner::Parted) {
            self.is_parted = true;
            return;
        }
        if talk > self.talk {
            self.end_talk();
            (self.talk, self.is_over, self.is_parted) = (talk, false, false);
            self.is_owner = self.remote.cluster().owner_of(self.vs) == Some(self.remote.cluster().me());
        }
        if talk < self.talk || self.is_over {
            return;
        }
        if self.handle_words(words).await.is_err() {
            // The task has ended.
            self.not_owner();
        }
    }

    async fn handle_words(&mut self, words: ToOwner) -> Result<()> {
        match words {
            ToOwner::Append(append) => self.append(*append).await,
            ToOwner::Ask { request, object, log, question } => self.ask(request, object, log, question).await,
            ToOwner::Attach { request, object, log, consumer, held } => {
                self.attach(request, object, log, consumer, held).await
            }
            ToOwner::Present => {
                for (log, consumer) in self.proxies.take_older_than(self.talk) {
                    self.tell(Command::Detach { log, consumer, lost: Lost::Left }).await?;
                }
                self.tell(Command::Present { pod: self.pod }).await
            }
            ToOwner::Detach { log, consumer, lost } => match self.proxies.detach(&log, consumer) {
                Some(consumer) => self.tell(Command::Detach { log, consumer, lost }).await,
                None => Ok(()),
            },
            ToOwner::Settle { seq, handout, verdict } => {
                // An acknowledgement counts whoever says it.
                let nobody = ConsumerId(FOREIGN);
                let consumer = self.proxies.id(&handout.log, handout.consumer).unwrap_or(nobody);
                let handout = Handout { consumer, ..handout };
                self.tell(Command::Settle { handout, verdict }).await?;
                self.settled = Some(seq);
                Ok(())
            }
            ToOwner::Credit { log, consumer, room, taken } => {
                match self.proxies.give_credit(&log, consumer, room, taken) {
                    Some(consumer) => self.tell(Command::Kick { log, consumer }).await,
                    None => Ok(()),
                }
            }
            ToOwner::Parted => Ok(()),
            ToOwner::Unwatch { log } => {
                self.watches.remove(&key_of(&log));
                Ok(())
            }
            ToOwner::Update { object, log } => match self.find(object, &log).await {
                Ok(object) => self.tell(Command::Update { object, log }).await,
                // It is gone already.
                Err(_) => Ok(()),
            },
        }
    }

    /// The queue or stream of `log`, which must be on this shard.
    async fn find(&mut self, object: ObjectRef, log: &LogId) -> Result<Arc<Object>> {
        let found = self.remote.objects.find(object).await?;
        let is_its = log.vs == self.vs && found.logs.contains(&log.of_class(0));
        if is_its { Ok(found) } else { Err(Error::Closed) }
    }

    async fn append(&mut self, append: RemoteAppend) -> Result<()> {
        let RemoteAppend { request, object, log, record, publish, wishes } = append;
        let object = match self.find(object, &log).await {
            Ok(object) => object,
            Err(error) => {
                let answer = Err(refusal_of(&error));
                self.say(FromOwner::Appended(vec![(request, answer)]));
                return Ok(());
            }
        };
        let reply = self.shard.append_foreign(object, log, record, publish, wishes).await?;
        self.appends.push(Appending { request, reply });
        Ok(())
    }

    fn finish_appends(
        &mut self,
        request: u64,
        answer: std::result::Result<std::result::Result<(), AppendError>, ()>,
    ) {
        let mut answers = Vec::new();
        let mut next = Some((request, answer));
        let mut is_lost = false;
        while let Some((request, answer)) = next {
            match answer {
                Ok(Ok(())) => {
                    self.is_owner = true;
                    answers.push((request, Ok(())));
                }
                Ok(Err(error)) => match asks::append_refusal(error) {
                    Some(refusal) => answers.push((request, Err(refusal))),
                    None => is_lost = true,
                },
                Err(()) => is_lost = true,
            }
            if answers.len() >= ANSWERS_MAX {
                break;
            }
            next = self.appends.next().now_or_never().flatten();
        }
        if !answers.is_empty() {
            self.say(FromOwner::Appended(answers));
        }
        if is_lost {
            self.not_owner();
        }
    }

    async fn attach(
        &mut self,
        request: u64,
        object: ObjectRef,
        log: LogId,
        consumer: RemoteConsumer,
        held: Vec<InFlight>,
    ) -> Result<()> {
        let object = match self.find(object, &log).await {
            Ok(object) => object,
            Err(error) => {
                self.say(FromOwner::Answer { request, answer: Err(refusal_of(&error)) });
                return Ok(());
            }
        };
        let now = self.clock.now();
        let held = held.into_iter().map(|message| Held {
            class: message.class,
            offset: message.offset,
            delivery_count: message.delivery_count,
            at: now.checked_sub(message.age).unwrap_or(now),
        });
        let id = self.remote.next_proxy();
        let (consumer, replaces) = self.proxies.attach(id, log, consumer, self.talk);
        let (reply, answer) = oneshot::channel();
        let held = held.collect();
        self.tell(Command::Resume { object, log, consumer, held, replaces, reply }).await?;
        self.asks.push(Box::pin(async move { (request, outcome(answer.await, |()| Answer::Done)) }));
        Ok(())
    }

    async fn ask(
        &mut self,
        request: u64,
        object: Option<ObjectRef>,
        log: LogId,
        question: Question,
    ) -> Result<()> {
        let object = match object {
            Some(object) => match self.find(object, &log).await {
                Ok(object) => Some(object),
                Err(error) => {
                    self.say(FromOwner::Answer { request, answer: Err(refusal_of(&error)) });
                    return Ok(());
                }
            },
            None => None,
        };
        let Some((command, answer)) = command_of(object, log, self.vs, question) else {
            let refusal = Refusal::Failed("the question is not complete".to_owned());
            self.say(FromOwner::Answer { request, answer: Err(refusal) });
            return Ok(());
        };
        self.tell(command).await?;
        self.asks.push(Box::pin(async move { (request, answer.await) }));
        Ok(())
    }

    fn finish_ask(&mut self, request: u64, outcome: Outcome) {
        let answer = match outcome {
            Outcome::NotOwner => return self.not_owner(),
            Outcome::Answer(answer) => answer,
            Outcome::Watched(log, Watched { mut extent, .. }) => {
                let now = *extent.borrow_and_update();
                self.watches.insert(key_of(&log), request);
                self.watch(request, log, extent);
                Ok(Answer::Extent(now))
            }
        };
        self.is_owner |= answer.is_ok();
        self.say(FromOwner::Answer { request, answer });
    }

    fn watch(&mut self, request: u64, log: LogId, mut extent: watch::Receiver<Extent>) {
        self.extents.push(Box::pin(async move {
            let is_there = extent.changed().await.is_ok();
            Changed { request, log, extent: is_there.then_some(extent) }
        }));
    }

    fn finish_watch(&mut self, changed: Changed) {
        let Changed { request, log, extent } = changed;
        // Another question has taken its place, or nobody wants to know any more.
        if self.watches.get(&key_of(&log)) != Some(&request) {
            return;
        }
        match extent {
            Some(mut extent) => {
                let now = *extent.borrow_and_update();
                self.watch(request, log, extent);
                self.say(FromOwner::Extent { log, extent: now });
            }
            None => {
                self.watches.remove(&key_of(&log));
                self.say(FromOwner::Gone { log });
            }
        }
    }
}

type Answering = BoxFuture<'static, Outcome>;

/// The command that asks `question`, and its answer to come.
fn command_of(
    object: Option<Arc<Object>>,
    log: LogId,
    vs: VirtualShard,
    question: Question,
) -> Option<(Command, Answering)> {
    if let Question::Settled = question {
        let (reply, answer) = oneshot::channel();
        let answer = answer.map(|answer| outcome(answer.map(Ok), |()| Answer::Done));
        return Some((Command::Settled { reply }, Box::pin(answer)));
    }
    if let Question::Delete = question {
        let ask = asking(|reply| Command::Delete { log, reply }, |()| Answer::Done);
        return (log.vs == vs).then_some(ask);
    }
    let object = object?;
    let report = |report| Answer::Report(Box::new(report));
    let asked = match question {
        Question::Settled | Question::Delete => return None,
        Question::Describe => asking(|reply| Command::Describe { object, log, reply }, report),
        Question::Classes => asking(|reply| Command::Classes { object, log, reply }, Answer::Logs),
        Question::Trim(below) => asking(|reply| Command::Trim { object, log, below, reply }, Answer::Extent),
        Question::Positions(rows) => {
            let positions = |reply| Command::Positions(PendingPositions { object, log, rows, reply });
            asking(positions, |()| Answer::Done)
        }
        Question::Watch => {
            let (reply, answer) = oneshot::channel();
            let answer = answer.map(move |answer| match answer {
                Ok(Ok(watched)) => Outcome::Watched(log, watched),
                Ok(Err(error)) => outcome(Ok(Err(error)), |()| Answer::Done),
                Err(_) => Outcome::NotOwner,
            });
            (Command::Watch { object, log, reply }, Box::pin(answer) as Answering)
        }
        Question::States(offsets) => {
            let step = |reply| operate(object, log, Operation::States { offsets, reply });
            asking(step, Answer::States)
        }
        Question::PurgeBelow(end) => {
            let step = |reply| operate(object, log, Operation::PurgeBelow { end, reply });
            asking(step, |(count, more)| Answer::Purged(count, more))
        }
        Question::Purge(costs, filter) => {
            let step = |reply| operate(object, log, Operation::Purge { costs, filter, reply });
            asking(step, Answer::Count)
        }
        Question::TakeOut(records) => {
            let step = |reply| operate(object, log, Operation::TakeOut { records, reply });
            asking(step, Answer::Offsets)
        }
        Question::Moved(results) => {
            let step = |reply| operate(object, log, Operation::Moved { results, reply });
            asking(step, Answer::Count)
        }
    };
    Some(asked)
}

fn operate(object: Arc<Object>, log: LogId, operation: Operation) -> Command {
    Command::Operate { object, log, operation }
}

fn asking<T: Send + 'static>(
    make: impl FnOnce(oneshot::Sender<Result<T>>) -> Command,
    answer: impl FnOnce(T) -> Answer + Send + 'static,
) -> (Command, Answering) {
    let (reply, answered) = oneshot::channel();
    (make(reply), Box::pin(answered.map(|answered| outcome(answered, answer))))
}

fn outcome<T>(
    answered: std::result::Result<Result<T>, oneshot::error::RecvError>,
    answer: impl FnOnce(T) -> Answer,
) -> Outcome {
    match answered {
        Ok(Ok(answered)) => Outcome::Answer(Ok(answer(answered))),
        Ok(Err(error)) => match asks::refusal(&error) {
            Some(refusal) => Outcome::Answer(Err(refusal)),
            None => Outcome::NotOwner,
        },
        // Its task has dropped it: it does not own the shard.
        Err(_) => Outcome::NotOwner,
    }
}

fn refusal_of(error: &Error) -> Refusal {
    asks::refusal(error).unwrap_or(Refusal::Closed)
}

/// Sends what is in `outbox`; cancelled, what was not sent is still there.
async fn send_out(
    links: &Links,
    pod: PodId,
    vs: VirtualShard,
    talk: u64,
    outbox: &mut VecDeque<FromOwner>,
) -> std::result::Result<(), Unreachable> {
    while let Some(words) = outbox.front() {
        let words = words.clone();
        links.send(pod, ShardMessage::FromOwner { vs, talk, words }).await?;
        outbox.pop_front();
    }
    Ok(())
}
