//! Messages that are given up: those that leave for the dead letters, and the wait while they cannot.
//!
//! A dying message is not delivered any more and still counts in the depth; it is done once it is at its target. Does
//! not know what the target is: the owner takes what is to be sent, and tells what became of it. Bounds:
//! [`DYING_MAX`] messages and [`DYING_BYTES_MAX`], beyond which nothing new is handed out.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::metrics::gauge::Gauge;
use weir_env::clock::Instant;

use super::shard::QueueShard;
use super::{DeadReason, End};
use crate::keyspace::segment::Record;
use crate::shard::{DeadLetter, Sent};

/// Messages of one shard that may wait for their way to the dead letters.
pub(super) const DYING_MAX: usize = 10_000;
/// Bytes of them.
pub(super) const DYING_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Messages sent at once.
const SEND_MAX: usize = 256;
/// Bytes sent at once, beside the first message.
const SEND_BYTES_MAX: usize = 1024 * 1024;
/// First wait after a target that could not be reached; it doubles.
const RETRY_WAIT: Duration = Duration::from_secs(1);
/// Longest wait before a target is tried again.
const RETRY_WAIT_MAX: Duration = Duration::from_secs(30);

/// A message on its way to the dead letters.
#[derive(Debug)]
struct DyingMessage {
    record: Arc<Record>,
    reason: DeadReason,
    /// Whether an owner before this one may have sent it.
    known_before: bool,
    is_sent: bool,
    /// Not sent before the batch that gives it up is committed.
    is_held: bool,
}

/// All of one shard.
#[derive(Debug)]
pub(super) struct Dying {
    messages: BTreeMap<u64, DyingMessage>,
    /// In memory.
    bytes: usize,
    /// What they count against the limits of the queue.
    cost: u64,
    /// Some are under way.
    sending: bool,
    wait: Duration,
    retry_at: Option<Instant>,
    blocked: Option<Arc<str>>,
    waiting: Gauge,
}

impl Dying {
    pub(super) fn new(waiting: Gauge) -> Self {
        Self {
            messages: BTreeMap::new(),
            bytes: 0,
            cost: 0,
            sending: false,
            wait: RETRY_WAIT,
            retry_at: None,
            blocked: None,
            waiting,
        }
    }

    pub(super) fn contains(&self, offset: u64) -> bool {
        self.messages.contains_key(&offset)
    }

    pub(super) fn len(&self) -> usize {
        self.messages.len()
    }

    /// Whether no more may be added by handing out.
    pub(super) fn is_full(&self) -> bool {
        self.messages.len() >= DYING_MAX || self.bytes >= DYING_BYTES_MAX
    }

    /// What those before `end` count.
    pub(super) fn cost_below(&self, end: u64) -> u64 {
        self.messages.range(..end).map(|(_, message)| message.record.cost()).sum()
    }

    /// When the target is to be tried again.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.retry_at.filter(|_| !self.sending && !self.messages.is_empty())
    }

    fn insert(&mut self, offset: u64, message: DyingMessage) {
        self.bytes += message.record.message.size();
        self.cost += message.record.cost();
        if self.messages.insert(offset, message).is_none() {
            self.waiting.inc();
        }
    }

    fn remove(&mut self, offset: u64) -> Option<DyingMessage> {
        let message = self.messages.remove(&offset)?;
        self.bytes = self.bytes.saturating_sub(message.record.message.size());
        self.cost = self.cost.saturating_sub(message.record.cost());
        self.waiting.dec();
        if self.messages.is_empty() {
            self.relax();
        }
        Some(message)
    }

    /// The target is tried at once with the next message.
    fn relax(&mut self) {
        (self.wait, self.retry_at, self.blocked) = (RETRY_WAIT, None, None);
    }
}

impl Drop for Dying {
    fn drop(&mut self) {
        self.waiting.dec_by(i64::try_from(self.messages.len()).unwrap_or(i64::MAX));
    }
}

impl QueueShard {
    /// Gives a message up: it leaves for the dead letters if the queue has a target, unless it came from some; else it
    /// is dropped, and counted.
    pub(super) fn give_up(&mut self, offset: u64, record: &Arc<Record>, reason: DeadReason) {
        if !self.is_mortal(record) {
            self.finish(offset, record.cost(), reason.end());
        } else if !self.is_over(offset) {
            self.hold_dying(offset, record, reason);
            self.release_dying(offset);
            // It is not delivered any more: its key need not wait until it has left.
            self.free_key(offset);
        }
    }

    /// Whether a message leaves for the dead letters when it is given up.
    pub(super) fn is_mortal(&self, record: &Record) -> bool {
        self.has_dead_letters && record.message.dead_letter.is_none()
    }

    /// As [`QueueShard::give_up`], of a message that is not to leave before it is released.
    pub(super) fn hold_dying(&mut self, offset: u64, record: &Arc<Record>, reason: DeadReason) {
        let known_before = offset < self.restored_next;
        let record = Arc::clone(record);
        self.dying
            .insert(offset, DyingMessage { record, reason, known_before, is_sent: false, is_held: true });
    }

    /// Lets a dying message leave. False if it is none.
    pub(super) fn release_dying(&mut self, offset: u64) -> bool {
        let message = self.dying.messages.get_mut(&offset);
        message.map(|message| message.is_held = false).is_some()
    }

    /// It is no dying message any more. False if it was none.
    pub(super) fn forget_dying(&mut self, offset: u64) -> bool {
        self.dying.remove(offset).is_some()
    }

    /// Whether a message is done, or about to be.
    pub(super) fn is_over(&self, offset: u64) -> bool {
        self.is_done(offset) || self.dying.contains(offset)
    }

    /// A late acknowledgement of a dying message counts while no owner has sent it: returns what it cost then.
    pub(super) fn revive(&mut self, offset: u64) -> Option<u64> {
        let message = self.dying.messages.get(&offset)?;
        if message.is_sent || message.known_before || message.is_held {
            return None;
        }
        self.dying.remove(offset).map(|message| message.record.cost())
    }

    /// Messages and bytes of the shard that count against the limits of the queue: not those that are about to leave.
    #[must_use]
    pub fn limited(&self) -> (u64, u64) {
        let (messages, bytes) = self.limited_here();
        (messages + self.elsewhere.0, bytes + self.elsewhere.1)
    }

    /// [`QueueShard::limited`] without those of other priorities.
    pub(crate) fn limited_here(&self) -> (u64, u64) {
        let dying = self.dying.len() as u64;
        (self.depth().saturating_sub(dying), self.bytes().saturating_sub(self.dying.cost))
    }

    /// Messages on their way to the dead letters.
    #[must_use]
    pub fn dying(&self) -> usize {
        self.dying.len()
    }

    /// Why dead letters cannot leave, if they cannot.
    #[must_use]
    pub fn dead_letter_blocked(&self) -> Option<Arc<str>> {
        self.dying.blocked.clone()
    }

    /// What is to be sent to the dead letters now. Nothing more until [`QueueShard::dead_lettered`] tells what became
    /// of it.
    pub(crate) fn take_dying(&mut self, now: Instant) -> Vec<DeadLetter> {
        if self.dying.sending || self.dying.retry_at.is_some_and(|at| at > now) {
            return Vec::new();
        }
        let mut bytes = 0;
        let mut letters = Vec::new();
        for (offset, message) in self.dying.messages.iter_mut().filter(|(_, message)| !message.is_held) {
            if letters.len() >= SEND_MAX || bytes >= SEND_BYTES_MAX {
                break;
            }
            bytes += message.record.message.size();
            let attempts = self.attempts.get(offset).map_or(0, |attempts| attempts.failed);
            letters.push(DeadLetter {
                offset: *offset,
                record: Arc::clone(&message.record),
                reason: message.reason,
                attempts,
                is_first: !message.is_sent,
            });
            message.is_sent = true;
        }
        self.dying.sending = !letters.is_empty();
        letters
    }

    /// What became of messages that were sent: done, or tried again after a wait.
    pub(crate) fn dead_lettered(&mut self, sent: Sent, now: Instant) {
        self.dying.sending = false;
        let mut blocked = None;
        for (offset, result) in sent {
            match result {
                Ok(()) => {
                    if let Some(message) = self.dying.remove(offset) {
                        self.finish(offset, message.record.cost(), End::DeadLettered);
                    }
                }
                Err(why) => blocked = blocked.or(Some(why)),
            }
        }
        if blocked.is_none() {
            self.dying.relax();
        } else {
            self.metrics.dead_letter_failures.inc();
            self.dying.retry_at = Some(now + self.dying.wait);
            self.dying.wait = (self.dying.wait * 2).min(RETRY_WAIT_MAX);
            self.dying.blocked = blocked;
        }
        self.drop_dying();
    }

    /// Takes over whether there is a dead-letter target; another one is tried at once.
    pub(super) fn set_dead_letters(&mut self, has_dead_letters: bool) {
        self.has_dead_letters = has_dead_letters;
        self.dying.relax();
        self.drop_dying();
    }

    /// Without a target, what would leave for the dead letters is dropped.
    fn drop_dying(&mut self) {
        if self.has_dead_letters || self.dying.sending {
            return;
        }
        let free = self.dying.messages.iter().filter(|(_, message)| !message.is_held);
        let all: Vec<u64> = free.map(|(offset, _)| *offset).collect();
        for offset in all {
            let Some(message) = self.dying.remove(offset) else { continue };
            self.finish(offset, message.record.cost(), message.reason.end());
        }
    }
}
