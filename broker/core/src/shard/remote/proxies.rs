//! Consumers on another pod, as the owner of a shard here knows them: each has as much room as its pod gives credit for.
//!
//! Without IO; the guest of that pod owns them, and is the receiver of what is delivered to them.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::{Notify, mpsc};
use weir_env::seed::HashMap;

use super::credit::ClientKey;
use crate::cluster::message::shard::{FromOwner, RemoteConsumer};
use crate::keyspace::LogId;
use crate::queue::{Consumer, ConsumerId, QueueDelivery, Window};
use crate::shard::logs::key_of;

/// Deliveries on their way to one pod. A shard that finds no place keeps its messages.
const DELIVERIES_MAX: usize = 65_536;

/// The consumers of one pod at one shard.
#[derive(Debug)]
pub(super) struct Proxies {
    by_client: BTreeMap<ClientKey, Proxy>,
    by_id: HashMap<ConsumerId, ClientKey>,
    deliveries_tx: mpsc::Sender<QueueDelivery>,
    starving: Arc<Notify>,
}

#[derive(Debug)]
struct Proxy {
    id: ConsumerId,
    log: LogId,
    window: Arc<Window>,
    /// Of one that acknowledges.
    connection: Option<Arc<Window>>,
    /// The talk in which it was announced.
    talk: u64,
    /// Its pod has been asked for credit.
    is_asked: bool,
    /// Messages came since its credit was last looked at.
    is_used: bool,
    credit: u32,
}

impl Proxies {
    /// None as yet, and what is delivered to them.
    pub(super) fn new() -> (Self, mpsc::Receiver<QueueDelivery>) {
        let (deliveries_tx, deliveries_rx) = mpsc::channel(DELIVERIES_MAX);
        let (by_client, by_id) = (BTreeMap::new(), HashMap::default());
        (Self { by_client, by_id, deliveries_tx, starving: Arc::default() }, deliveries_rx)
    }

    /// Told when one of them has no room for a message.
    pub(super) fn starving(&self) -> Arc<Notify> {
        Arc::clone(&self.starving)
    }

    /// A consumer is announced, which is `id` here from now on: as a shard knows it, and what it was here before.
    pub(super) fn attach(
        &mut self,
        id: ConsumerId,
        log: LogId,
        remote: RemoteConsumer,
        talk: u64,
    ) -> (Consumer, Option<ConsumerId>) {
        let key = (key_of(&log.of_class(0)), remote.id);
        let window = Arc::new(Window::remote(self.starving()));
        // Only its being there counts: its pod knows the room.
        let connection = remote.acknowledges.then(|| Arc::new(Window::new(u32::MAX)));
        let consumer = Consumer {
            id,
            client_id: remote.client_id,
            since: remote.since,
            window: Arc::clone(&window),
            connection_window: connection.clone(),
            deliveries: self.deliveries_tx.clone(),
        };
        let proxy = Proxy { id, log, window, connection, talk, is_asked: false, is_used: false, credit: 0 };
        let before = self.by_client.insert(key, proxy).map(|before| before.id);
        if let Some(before) = before {
            self.by_id.remove(&before);
        }
        self.by_id.insert(id, key);
        (consumer, before)
    }

    /// What a consumer is called here.
    pub(super) fn id(&self, log: &LogId, consumer: ConsumerId) -> Option<ConsumerId> {
        self.by_client.get(&(key_of(&log.of_class(0)), consumer)).map(|proxy| proxy.id)
    }

    /// A consumer leaves: what it was called.
    pub(super) fn detach(&mut self, log: &LogId, consumer: ConsumerId) -> Option<ConsumerId> {
        let proxy = self.by_client.remove(&(key_of(&log.of_class(0)), consumer))?;
        self.by_id.remove(&proxy.id);
        Some(proxy.id)
    }

    /// Takes out those that were not announced in `talk`.
    pub(super) fn take_older_than(&mut self, talk: u64) -> Vec<(LogId, ConsumerId)> {
        let old = self.by_client.extract_if(.., |_, proxy| proxy.talk < talk);
        let old: Vec<(LogId, ConsumerId)> = old.map(|(_, proxy)| (proxy.log, proxy.id)).collect();
        for (_, id) in &old {
            self.by_id.remove(id);
        }
        old
    }

    /// Nothing more may be delivered: all credit is void.
    pub(super) fn end_talk(&mut self) {
        for proxy in self.by_client.values_mut() {
            let _ = proxy.window.take_all();
            (proxy.is_asked, proxy.is_used) = (false, false);
        }
    }

    /// A consumer has room for more. What it is called, for its shard to be told.
    pub(super) fn give_credit(
        &mut self,
        log: &LogId,
        consumer: ConsumerId,
        room: u32,
        taken: u32,
    ) -> Option<ConsumerId> {
        let proxy = self.by_client.get_mut(&(key_of(&log.of_class(0)), consumer))?;
        proxy.window.grant(room, taken);
        (proxy.is_asked, proxy.is_used, proxy.credit) = (false, true, room);
        Some(proxy.id)
    }

    /// Whether some have credit.
    pub(super) fn have_credit(&self) -> bool {
        self.by_client.values().any(|proxy| proxy.window.free() > 0)
    }

    /// A message as its consumer's pod is to hear of it, if the consumer is still one; and whether more credit is wanted.
    pub(super) fn deliver(&mut self, delivery: QueueDelivery, out: &mut impl Extend<FromOwner>) {
        let QueueDelivery { consumer, log, offset, delivery_count, record, .. } = delivery;
        let Some(key) = self.by_id.get(&consumer).copied() else { return };
        let Some(proxy) = self.by_client.get_mut(&key) else { return };
        if let Some(connection) = &proxy.connection {
            let _ = connection.give_back();
        }
        proxy.is_used = true;
        let consumer = key.1;
        out.extend([FromOwner::Deliver { log, consumer, offset, delivery_count, record }]);
        // Before it runs out: the answer takes its time.
        if proxy.window.free() <= i64::from(proxy.credit / 2) {
            ask(proxy, consumer, out);
        }
    }

    /// Some have no room for a message: asks for credit.
    pub(super) fn ask_for_credit(&mut self, out: &mut impl Extend<FromOwner>) {
        for ((_, consumer), proxy) in &mut self.by_client {
            if proxy.window.was_starved() {
                ask(proxy, *consumer, out);
            }
        }
    }

    /// Gives credit back that nothing came to use for a while.
    pub(super) fn give_unused_back(&mut self, out: &mut impl Extend<FromOwner>) {
        for ((_, consumer), proxy) in &mut self.by_client {
            if !std::mem::replace(&mut proxy.is_used, false) {
                let room = proxy.window.take_all();
                if room > 0 {
                    out.extend([FromOwner::Unused { log: proxy.log, consumer: *consumer, room }]);
                }
            }
        }
    }
}

fn ask(proxy: &mut Proxy, consumer: ConsumerId, out: &mut impl Extend<FromOwner>) {
    if !std::mem::replace(&mut proxy.is_asked, true) {
        out.extend([FromOwner::Wanted { log: proxy.log, consumer }]);
    }
}
