//! The consumers of this pod at a shard that another pod owns: what they hold, and for how much more they have given
//! the owner credit.
//!
//! Credit is room that was taken in the consumer's windows beforehand, so that all owners together never give it more
//! than it has room for. It is given when the owner says that it has something, and comes back when nothing came to use
//! it. Without IO; the forwarder owns it.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::oneshot;
use weir_env::clock::Instant;

use crate::catalog::Object;
use crate::cluster::message::shard::{InFlight, RemoteConsumer, ToOwner};
use crate::error::Result;
use crate::keyspace::LogId;
use crate::keyspace::segment::Record;
use crate::queue::{Consumer, ConsumerId, Handout, Held, QueueDelivery};
use crate::shard::logs::{LogKey, key_of};

/// Credit given in one go, at first and at most: it doubles while it is used up.
const CREDIT_MIN: u32 = 16;
const CREDIT_MAX: u32 = 256;

/// A consumer of one log.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) object: Arc<Object>,
    pub(super) log: LogId,
    pub(super) consumer: Consumer,
    /// Room taken in its windows for messages that the owner may send.
    granted: u32,
    /// What it is given next.
    grant: u32,
    /// The owner has something for it.
    is_wanted: bool,
    /// The owner knows it.
    pub(super) is_attached: bool,
    /// Who waits for it to be attached for the first time.
    pub(super) reply: Option<oneshot::Sender<Result<()>>>,
    /// By class and offset.
    held: BTreeMap<(u8, u64), (u32, Instant)>,
}

/// What became of a message that was to be delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Delivered {
    Yes,
    /// There is nobody, or no room: it goes back.
    No,
}

/// Names a consumer of a log.
pub(super) type ClientKey = (LogKey, ConsumerId);

impl Client {
    pub(super) fn new(
        object: Arc<Object>,
        log: LogId,
        consumer: Consumer,
        held: &[Held],
        reply: Option<oneshot::Sender<Result<()>>>,
    ) -> Self {
        let held = held.iter().map(|held| ((held.class, held.offset), (held.delivery_count, held.at)));
        Self {
            object,
            log,
            consumer,
            granted: 0,
            grant: CREDIT_MIN,
            is_wanted: false,
            is_attached: false,
            reply,
            held: held.collect(),
        }
    }

    pub(super) fn key(&self) -> ClientKey {
        (key_of(&self.log.of_class(0)), self.consumer.id)
    }

    /// As an owner has to know it.
    pub(super) fn introduction(&self) -> RemoteConsumer {
        let Consumer { id, client_id, since, connection_window, .. } = &self.consumer;
        let acknowledges = connection_window.is_some();
        RemoteConsumer { id: *id, client_id: client_id.clone(), since: *since, acknowledges }
    }

    /// What it holds.
    pub(super) fn held(&self) -> Vec<Held> {
        let held = self.held.iter();
        held.map(|((class, offset), (delivery_count, at))| Held {
            class: *class,
            offset: *offset,
            delivery_count: *delivery_count,
            at: *at,
        })
        .collect()
    }

    /// What it holds, for another pod, whose clock is not ours.
    pub(super) fn in_flight(&self, now: Instant) -> Vec<InFlight> {
        let age = |at: Instant| now.saturating_duration_since(at);
        let held = self.held().into_iter();
        held.map(|Held { class, offset, delivery_count, at }| InFlight {
            class,
            offset,
            delivery_count,
            age: age(at),
        })
        .collect()
    }

    /// A message came for it, on credit.
    pub(super) fn deliver(
        &mut self,
        log: LogId,
        offset: u64,
        delivery_count: u32,
        record: Arc<Record>,
        now: Instant,
    ) -> Delivered {
        if self.granted == 0 {
            // An owner that goes beyond its credit must not make the window overflow.
            return Delivered::No;
        }
        self.granted -= 1;
        let Consumer { id, connection_window, deliveries, .. } = &self.consumer;
        let acknowledged = connection_window.is_some();
        let delivery = QueueDelivery { consumer: *id, acknowledged, log, offset, delivery_count, record };
        match deliveries.try_send(delivery) {
            Ok(()) => {
                self.held.insert((log.class, offset), (delivery_count, now));
                Delivered::Yes
            }
            Err(TrySendError::Closed(_) | TrySendError::Full(_)) => {
                // Its connection is gone and says so in a moment.
                self.consumer.put_back();
                Delivered::No
            }
        }
    }

    /// It has said something of a message.
    pub(super) fn settled(&mut self, handout: &Handout) {
        let key = (handout.log.class, handout.offset);
        if self.held.get(&key).is_some_and(|(count, _)| *count == handout.delivery_count) {
            self.held.remove(&key);
        }
    }

    /// The owner has something for it.
    pub(super) fn want(&mut self) {
        self.is_wanted = true;
    }

    /// Credit for it, if the owner waits for some and there is room.
    pub(super) fn next_credit(&mut self) -> Option<ToOwner> {
        if !self.is_wanted || !self.is_attached {
            return None;
        }
        let mut room = 0;
        while room < self.grant && self.consumer.try_take() {
            room += 1;
        }
        if room == 0 {
            // Whoever gives room back says so.
            return None;
        }
        self.is_wanted = false;
        self.granted += room;
        self.grant = (self.grant * 2).min(CREDIT_MAX);
        let taken = u32::try_from(self.consumer.window.taken().max(0)).unwrap_or(u32::MAX);
        Some(ToOwner::Credit { log: self.log, consumer: self.consumer.id, room, taken })
    }

    /// The owner gives `room` back. True if somebody waits for it.
    #[must_use]
    pub(super) fn take_back(&mut self, room: u32) -> bool {
        let room = room.min(self.granted);
        self.granted -= room;
        self.grant = CREDIT_MIN;
        (0..room).fold(false, |starved, _| self.consumer.give_back() || starved)
    }

    /// The talk with the owner has ended, and with it all credit. True if somebody waits for it.
    #[must_use]
    pub(super) fn end_talk(&mut self) -> bool {
        (self.is_attached, self.is_wanted) = (false, false);
        self.take_back(self.granted)
    }
}
