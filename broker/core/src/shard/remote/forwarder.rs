//! The task of a virtual shard that another pod owns: it sends what is asked of the shard to the owner there is, over
//! whichever pods that becomes, and hands everything on when this pod is to own it.
//!
//! What is said and kept is in [`Forwarding`]; here is who the owner is, and the waiting.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::sync::{mpsc, oneshot, watch};
use weir_env::clock::Instant;

use super::forwarding::Forwarding;
use super::{Heard, Remote};
use crate::cluster::links::{Links, Unreachable, UpLinks};
use crate::cluster::message::shard::{FromOwner, ShardMessage, ToOwner};
use crate::keyspace::VirtualShard;
use crate::keyspace::owner::PodId;
use crate::metrics::GaugeShare;
use crate::shard::handed::{Carried, Handed};
use crate::shard::seat::is_ours;
use crate::shard::{Command, Context};

/// Commands handled between two looks at everything else.
const COMMANDS_PER_TURN: usize = 256;
/// Wait before a pod is asked again that does not own the shard, as it says.
const NOT_OWNER_WAIT: Duration = Duration::from_millis(50);
/// Wait before a pod is talked to again that could not be reached.
const UNREACHABLE_WAIT: Duration = Duration::from_millis(10);
/// How long a pod counts as the owner that says it is, or is said to be, before the feed tells the same.
const HINT_TIME: Duration = Duration::from_secs(1);
/// How long a pod that is the owner no longer has to say so: its last answers come before.
const LAST_WORDS_TIME: Duration = Duration::from_secs(1);
/// How long what has no answer is waited for at shutdown.
const CLOSE_TIME: Duration = Duration::from_secs(5);

/// State of the task.
pub(crate) struct Forwarder {
    remote: Arc<Remote>,
    context: Context,
    vs: VirtualShard,
    commands: mpsc::Receiver<Command>,
    heard: mpsc::Receiver<Heard>,
    state: Forwarding,
    unheard: GaugeShare,
    waiting: GaugeShare,
    talk: Option<Talk>,
    /// Who is the owner, from more recent news than the feed's.
    hint: Option<(PodId, Instant)>,
    /// Since when another pod is known to be the owner than the one that is talked to.
    moved_at: Option<Instant>,
    /// No talk before.
    wait_until: Option<Instant>,
    closing: Option<oneshot::Sender<()>>,
    /// When it ends though not all is answered.
    close_at: Option<Instant>,
}

/// With whom the shard is talked about.
#[derive(Clone, Copy, Debug)]
struct Talk {
    with: PodId,
    number: u64,
    /// Over which link.
    link: u64,
}

impl Forwarder {
    pub(crate) fn new(
        context: Context,
        remote: Arc<Remote>,
        vs: VirtualShard,
        commands: mpsc::Receiver<Command>,
        carried: Carried,
    ) -> Self {
        let (heard, hint) = remote.listen(vs);
        let now = context.clock.now();
        let unheard = GaugeShare::new(&context.metrics.cluster.settles_waiting);
        let waiting = GaugeShare::new(&context.metrics.cluster.requests_waiting);
        let state = Forwarding::new(Arc::clone(&context.reading.tails), carried, now);
        Self {
            remote,
            context,
            vs,
            commands,
            heard,
            state,
            unheard,
            waiting,
            talk: None,
            hint: hint.map(|pod| (pod, now)),
            moved_at: None,
            wait_until: None,
            closing: None,
            close_at: None,
        }
    }

    /// Runs until this pod is to own the shard, or is closed.
    pub(crate) async fn run(mut self) -> Handed {
        let links = self.remote.links().clone();
        let (mut up, mut owners) = (links.link_events(), self.remote.cluster().owners_changed());
        let mut members = self.remote.cluster().members();
        let mut fills = FuturesUnordered::new();
        loop {
            members.mark_unchanged();
            let now = self.context.clock.now();
            self.follow_owner(&mut up, &mut owners, now);
            let is_ours = is_ours(self.remote.cluster(), self.vs);
            if is_ours && (self.talk.is_none() || self.state.is_idle()) {
                break;
            }
            self.state.handle_timeout(now);
            while let Some(consumer) = self.state.poll_starved() {
                self.remote.kick_sharing(consumer);
            }
            while let Some(fill) = self.state.poll_fill() {
                fills.push(fill.run(Arc::clone(&self.context.store)));
            }
            let is_done = self.state.is_idle() || self.talk.is_none();
            if self.close_at.is_some_and(|at| is_done || at <= now) {
                break;
            }
            self.unheard.set(self.state.unheard());
            self.waiting.set(self.state.waiting());
            let due = self.next_timeout();
            let has_room = self.state.has_room() && self.close_at.is_none();
            let (talk, vs) = (self.talk, self.vs);
            let outbox = self.state.outbox();
            tokio::select! {
                biased;
                heard = self.heard.recv() => {
                    // The sender is kept by `remote` as long as this runs.
                    let Some(heard) = heard else { break };
                    self.handle_heard(heard);
                }
                sent = send_out(&links, vs, talk, outbox), if talk.is_some() && !outbox.is_empty() => {
                    if sent.is_err() {
                        self.end_talk();
                        // The link may count as up until its own task has run, which it cannot while this one does.
                        self.wait_until = Some(self.context.clock.now() + UNREACHABLE_WAIT);
                    }
                }
                Some(filled) = fills.next(), if !fills.is_empty() => self.state.filled(filled),
                changed = up.changed() => if changed.is_err() { break },
                changed = owners.changed() => {
                    if changed.is_err() { break }
                    self.wait_until = None;
                }
                changed = members.changed() => {
                    // An owner that is a member no more leaves its shards to others, perhaps to this pod.
                    if changed.is_err() { break }
                    self.wait_until = None;
                }
                () = self.context.closed.cancelled(), if self.close_at.is_none() => {
                    self.close_at = Some(self.context.clock.now() + CLOSE_TIME);
                }
                command = self.commands.recv(), if has_room => {
                    let Some(command) = command else { break };
                    self.handle_commands(command);
                }
                () = tokio::time::sleep_until(due.unwrap_or(now)), if due.is_some() => {}
            }
        }
        self.remote.listen_no_more(self.vs);
        let (commands, closing) = (self.commands, self.closing);
        Handed { commands, carried: self.state.into_carried(), closing, offer: None }
    }

    fn next_timeout(&self) -> Option<Instant> {
        let hint = self.hint.map(|(_, since)| since + HINT_TIME);
        let moved = self.moved_at.map(|at| at + LAST_WORDS_TIME);
        [self.state.poll_timeout(), self.wait_until, hint, moved, self.close_at].into_iter().flatten().min()
    }

    /// Talks to the owner there is now, if it can be reached, and to nobody else.
    fn follow_owner(
        &mut self,
        up: &mut watch::Receiver<UpLinks>,
        owners: &mut watch::Receiver<u64>,
        now: Instant,
    ) {
        owners.mark_unchanged();
        let up = Arc::clone(&up.borrow_and_update());
        self.hint = self.hint.filter(|(_, since)| *since + HINT_TIME > now);
        self.wait_until = self.wait_until.filter(|until| *until > now);
        let is_ours = is_ours(self.remote.cluster(), self.vs);
        let owner = self.hint.map(|(pod, _)| pod).or_else(|| self.remote.owner(self.vs));
        if let Some(talk) = self.talk {
            let is_another = is_ours || owner.is_some_and(|owner| owner != talk.with);
            self.moved_at = is_another.then(|| self.moved_at.unwrap_or(now));
            let is_over = self.moved_at.is_some_and(|at| at + LAST_WORDS_TIME <= now);
            if is_over || up.get(&talk.with) != Some(&talk.link) {
                self.end_talk();
            }
        }
        if self.talk.is_none()
            && !is_ours
            && self.wait_until.is_none()
            && let Some(with) = owner
            && let Some(link) = up.get(&with)
        {
            self.talk = Some(Talk { with, number: self.remote.next_talk(), link: *link });
            self.state.open(now);
        }
    }

    fn end_talk(&mut self) {
        (self.talk, self.moved_at) = (None, None);
        self.state.close();
    }

    fn handle_commands(&mut self, first: Command) {
        // The turn may have begun long ago.
        let now = self.context.clock.now();
        let mut next = Some(first);
        for _ in 0..COMMANDS_PER_TURN {
            match next {
                Some(Command::Close { reply }) => {
                    (self.closing, self.close_at) = (Some(reply), Some(now + CLOSE_TIME));
                }
                Some(command) => self.state.handle_command(command, now),
                None => break,
            }
            if !self.state.has_room() || self.close_at.is_some() {
                break;
            }
            next = self.commands.try_recv().ok();
        }
    }

    fn handle_heard(&mut self, heard: Heard) {
        let now = self.context.clock.now();
        match heard {
            Heard::RollCall { from } => {
                self.hint = Some((from, now));
                self.wait_until = None;
                // It has taken the shard over because of what it was asked; any other hears of it from the next talk.
                if self.talk.is_some_and(|talk| talk.with == from) {
                    self.state.announce_all(now);
                }
            }
            Heard::Words { from, talk, words } => {
                if self.talk.is_none_or(|now| (now.with, now.number) != (from, talk)) {
                    return;
                }
                let owner = match &words {
                    FromOwner::NotOwner { owner } => *owner,
                    _ => None,
                };
                if self.state.handle_words(words, now) {
                    self.end_talk();
                    // It may wait for that before it shuts down, though not for long.
                    let (vs, words) = (self.vs, ToOwner::Parted);
                    let _ = self.remote.links().try_send(from, ShardMessage::ToOwner { vs, talk, words });
                    self.hint = owner.filter(|owner| *owner != from).map(|owner| (owner, now));
                    self.wait_until = Some(now + NOT_OWNER_WAIT);
                }
            }
        }
    }
}

/// Sends what is in `outbox`; cancelled, what was not sent is still there.
async fn send_out(
    links: &Links,
    vs: VirtualShard,
    talk: Option<Talk>,
    outbox: &mut VecDeque<ToOwner>,
) -> Result<(), Unreachable> {
    let Some(Talk { with, number, .. }) = talk else { return Err(Unreachable) };
    while let Some(words) = outbox.front() {
        let words = words.clone();
        links.send(with, ShardMessage::ToOwner { vs, talk: number, words }).await?;
        outbox.pop_front();
    }
    Ok(())
}
