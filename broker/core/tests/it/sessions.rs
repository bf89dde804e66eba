//! Clients with persistent sessions, their inboxes and retained messages over a store with random faults, in pods
//! that crash at random moments. A run depends on its seed alone.
//!
//! Checked at the end: what was acknowledged to a publisher has reached every subscriber; at QoS 2 once and no
//! more, whatever was repeated; at QoS 1 in order; nothing is left over; a retained message is not older than the
//! last one that was acknowledged.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use bytestring::ByteString;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use weir_core::Error;
use weir_core::inbox::{
    Inbox, InboxAppend, InboxId, InboxItem, InboxMetrics, InboxOptions, InboxTarget, InboxWriter,
};
use weir_core::keyspace::session::{Incarnation, OutgoingPhase};
use weir_core::keyspace::{PublishId, tag};
use weir_core::retained::{Retained, RetainedContext, RetainedMetrics, RetainedOptions};
use weir_core::sessions::{OpenOptions, SessionOp, SessionRef, Sessions};
use weir_env::clock::Clock;
use weir_env::seed::{Seed, trials};
use weir_storage::{FaultHandle, FaultRates, FaultStore, Isolation, RangeQuery, SharedStore};
use weir_topic::TopicFilter;

use crate::support::{in_memory, memory, message};

const SEEDS: u64 = 120;
const LIVES: u64 = 4;
const STEPS: u64 = 60;
const CLIENTS: usize = 3;
const TOPICS: u64 = 3;
const VIRTUAL_SHARDS: u16 = 8;

/// A client's own memory, which outlives pods and connections.
#[derive(Default)]
struct Client {
    incarnation: Option<Incarnation>,
    /// Publishes of others that it must get: by payload, with their number if they are in order.
    owed: BTreeMap<String, Option<u64>>,
    /// What it got, in the order of the first time.
    received: Vec<String>,
    /// How often it got what.
    times: BTreeMap<String, usize>,
    /// QoS 2 publishes it got whose PUBREL has not come.
    unreleased: BTreeSet<u16>,
    /// Its own QoS 2 publish that is under way.
    publishing: Option<Publishing>,
    next_packet_id: u16,
}

/// A QoS 2 publish from the sender's side, until PUBCOMP.
#[derive(Clone)]
struct Publishing {
    packet_id: u16,
    payload: String,
    is_received: bool,
}

/// What a pod holds for a client that is connected.
struct Connection {
    session: SessionRef,
    after: Option<InboxId>,
    /// Deliveries whose handshake is under way.
    outgoing: BTreeMap<u16, (OutgoingPhase, InboxId)>,
    /// The names of the client's publishes.
    incoming: BTreeMap<u16, PublishId>,
}

/// One life of a pod.
struct Pod {
    /// Fails everything once the pod is dead: what its tasks still do has no effect but for commits on their way.
    death: FaultHandle,
    sessions: Sessions,
    inbox: Inbox,
    writer: InboxWriter,
    retained: Retained,
    connections: BTreeMap<usize, Connection>,
}

struct World {
    seed: Seed,
    store: SharedStore,
    faults: FaultHandle,
    rates: FaultRates,
    clock: Clock,
    clients: Vec<Client>,
    published: u64,
    /// By topic: what may be retained now.
    retainable: BTreeMap<String, BTreeSet<String>>,
    trace: String,
}

fn name(client: usize) -> ByteString {
    format!("client-{client}").into()
}

impl World {
    fn new(seed: u64, store: fn() -> (SharedStore, Clock)) -> Self {
        let (store, clock) = store();
        let profiles =
            [FaultRates::calm(), FaultRates::rough(), FaultRates::hostile(), FaultRates::uniform(20)];
        let rates = profiles[usize::try_from(seed % 4).unwrap()];
        let seed = Seed::fixed(seed);
        let store = FaultStore::wrap(store, seed.fork("faults"));
        Self {
            faults: store.handle(),
            store: Arc::new(store),
            rates,
            clock,
            seed: seed.fork("world"),
            clients: (0..CLIENTS).map(|_| Client::default()).collect(),
            published: 0,
            retainable: BTreeMap::new(),
            trace: String::new(),
        }
    }

    fn note(&mut self, what: &str) {
        writeln!(self.trace, "{} {what}", self.clock.wall()).unwrap();
    }

    fn below(&self, bound: u64) -> u64 {
        self.seed.below(bound)
    }

    fn client(&self) -> usize {
        usize::try_from(self.below(CLIENTS as u64)).unwrap()
    }

    async fn start(&mut self) -> Pod {
        let seed = Seed::fixed(self.seed.next_u64());
        let store = FaultStore::wrap(Arc::clone(&self.store), seed.fork("death"));
        let (death, store): (_, SharedStore) = (store.handle(), Arc::new(store));
        let (tracker, stop) = (TaskTracker::new(), CancellationToken::new());
        let sessions = Sessions::new(Arc::clone(&store), self.clock, &seed, seed.next_id(), VIRTUAL_SHARDS);
        let options = InboxOptions { tasks: 2, ..InboxOptions::default() };
        let writer = InboxWriter::spawn(
            &sessions,
            options,
            &InboxMetrics::default(),
            Arc::new(|_| {}),
            &tracker,
            &stop,
        );
        let retained = loop {
            let context = RetainedContext {
                store: Arc::clone(&store),
                clock: self.clock,
                seed: seed.clone(),
                virtual_shards: VIRTUAL_SHARDS,
                cluster: None,
            };
            let (options, metrics) = (RetainedOptions::default(), RetainedMetrics::default());
            match Retained::spawn(context, options, &metrics, &tracker, &stop).await {
                Ok(retained) => break retained,
                Err(error) => self.note(&format!("start: {error}")),
            }
        };
        let inbox = Inbox::new(&sessions);
        Pod { death, sessions, inbox, writer, retained, connections: BTreeMap::new() }
    }

    /// Waits as long as a client would.
    async fn patiently<T>(
        &self,
        work: impl Future<Output = weir_core::Result<T>>,
    ) -> Option<weir_core::Result<T>> {
        let patience = Duration::from_millis(50 + self.below(15_000));
        tokio::time::timeout(patience, work).await.ok()
    }

    /// Connects a client, and takes up what was under way.
    async fn connect(&mut self, pod: &mut Pod, client: usize) {
        let options = OpenOptions { clean_start: false, expiry_seconds: u32::MAX, will: None };
        let (sessions, name) = (pod.sessions.clone(), name(client));
        let opened = match self.patiently(sessions.open(&name, &options)).await {
            Some(Ok(opened)) => opened,
            other => return self.note(&format!("{name} is not let in: {other:?}")),
        };
        let known = self.clients[client].incarnation.replace(opened.session.incarnation);
        assert!(
            known.is_none_or(|known| known == opened.session.incarnation),
            "the session of {name} was lost"
        );
        let mut outgoing = BTreeMap::new();
        for entry in &opened.outgoing {
            outgoing.insert(entry.packet_id, (entry.phase, entry.inbox_id));
        }
        let incoming =
            opened.incoming.into_iter().map(|(packet_id, publish)| (packet_id, publish.id)).collect();
        let connection = Connection { session: opened.session, after: None, outgoing, incoming };
        pod.connections.insert(client, connection);
        self.note(&format!("{name} connects"));
    }

    /// The sessions that a publish is for: all.
    fn targets(&self, qos: u8) -> Vec<(usize, InboxTarget)> {
        let known = self.clients.iter().enumerate();
        let of = |(client, incarnation)| {
            let target = InboxTarget {
                client_id: name(client),
                incarnation,
                qos,
                retain: false,
                subscription_ids: [].into_iter().collect(),
            };
            (client, target)
        };
        known.filter_map(|(client, state)| Some(of((client, state.incarnation?)))).collect()
    }

    async fn append(
        &self,
        pod: &Pod,
        topic: &str,
        payload: &str,
        targets: &[(usize, InboxTarget)],
        mark: Option<PublishId>,
    ) -> Option<weir_core::Result<()>> {
        let append = InboxAppend {
            message: Arc::new(message(self.clock, topic, payload)),
            targets: targets.iter().map(|(_, target)| target.clone()).collect(),
            mark,
            noted: None,
        };
        self.patiently(async { pod.writer.append(append).await?.await }).await
    }

    fn owe(&mut self, targets: &[(usize, InboxTarget)], payload: &str, number: Option<u64>) {
        for (client, _) in targets {
            self.clients[*client].owed.insert(payload.to_owned(), number);
        }
    }

    /// A QoS 1 publish of somebody to all sessions. It is not repeated.
    async fn publish_once(&mut self, pod: &Pod) {
        self.published += 1;
        let (number, payload) = (self.published, format!("one-{}", self.published));
        let sizes = [0, 0, 0, 0, 0, 0, 3_000, 130_000];
        let large = "-".repeat(sizes[usize::try_from(self.below(8)).unwrap()]);
        let (payload, targets) = (payload + &large, self.targets(1));
        let outcome = self.append(pod, "q1", &payload, &targets, None).await;
        self.note(&format!("one-{number}: {outcome:?}"));
        if matches!(outcome, Some(Ok(()))) {
            self.owe(&targets, &payload, Some(number));
        }
    }

    /// A QoS 2 publish of a client that is connected, or one step on with the one that is under way. Whatever
    /// fails ends the connection.
    async fn publish_exactly_once(&mut self, pod: &mut Pod, client: usize) {
        let Some(mut connection) = pod.connections.remove(&client) else { return };
        let state = &mut self.clients[client];
        let publishing = if let Some(publishing) = &state.publishing {
            publishing.clone()
        } else {
            self.published += 1;
            state.next_packet_id = state.next_packet_id % 4 + 1;
            let payload = format!("two-{}", self.published);
            let publishing = Publishing { packet_id: state.next_packet_id, payload, is_received: false };
            state.publishing.insert(publishing).clone()
        };
        if self.hand_over(pod, client, &mut connection, &publishing).await {
            pod.connections.insert(client, connection);
        } else {
            self.note(&format!("client-{client} loses its connection with {}", publishing.payload));
        }
    }

    /// PUBLISH until PUBREC, or PUBREL until PUBCOMP; whether the connection goes on.
    async fn hand_over(
        &mut self,
        pod: &Pod,
        client: usize,
        connection: &mut Connection,
        publishing: &Publishing,
    ) -> bool {
        let packet_id = publishing.packet_id;
        if publishing.is_received {
            let clear = pod.sessions.clear_incoming(&connection.session, packet_id);
            let is_done = matches!(self.patiently(clear).await, Some(Ok(())));
            if is_done {
                connection.incoming.remove(&packet_id);
                self.clients[client].publishing = None;
                self.note(&format!("{} is complete", publishing.payload));
            }
            return is_done;
        }
        let id = match connection.incoming.get(&packet_id) {
            Some(id) => *id,
            None => {
                let id = PublishId(self.seed.next_id());
                let store = pod.sessions.store_incoming(&connection.session, packet_id, id);
                let Some(Ok(())) = self.patiently(store).await else { return false };
                connection.incoming.insert(packet_id, id);
                id
            }
        };
        let targets = self.targets(2);
        let outcome = self.append(pod, "q2", &publishing.payload, &targets, Some(id)).await;
        self.note(&format!("{}: {outcome:?}", publishing.payload));
        let Some(Ok(())) = outcome else { return false };
        self.owe(&targets, &publishing.payload, None);
        if self.below(5) == 0 {
            return false;
        }
        if let Some(publishing) = &mut self.clients[client].publishing {
            publishing.is_received = true;
        }
        true
    }

    /// Lets a connected client have what waits for it, and answers for it. Whatever fails ends the connection.
    async fn deliver(&mut self, pod: &mut Pod, client: usize) {
        let Some(mut connection) = pod.connections.remove(&client) else { return };
        let (sessions, inbox) = (pod.sessions.clone(), pod.inbox.clone());
        match self.deliver_all(&sessions, &inbox, client, &mut connection).await {
            Ok(true) => drop(pod.connections.insert(client, connection)),
            Ok(false) => self.note(&format!("client-{client} goes away")),
            Err(error) => {
                assert!(!matches!(error, Error::Fenced), "nobody else has opened the session");
                self.note(&format!("client-{client} is cut off: {error}"));
            }
        }
    }

    async fn deliver_all(
        &mut self,
        sessions: &Sessions,
        inbox: &Inbox,
        client: usize,
        connection: &mut Connection,
    ) -> weir_core::Result<bool> {
        let session = connection.session.clone();
        for (packet_id, (phase, id)) in connection.outgoing.clone() {
            if phase == OutgoingPhase::Published {
                let items = inbox.read(&session, None, 10_000, usize::MAX).await?;
                let item = items.into_iter().find(|item| item.id == id);
                let item = item.expect("a message stays until its PUBREC");
                self.receive_twice_at_most(client, packet_id, &item);
                sessions.update(&session, &[SessionOp::Release(packet_id, id)]).await?;
                connection.outgoing.insert(packet_id, (OutgoingPhase::Released, id));
            }
            self.clients[client].unreleased.remove(&packet_id);
            if self.below(6) == 0 {
                return Ok(false);
            }
            sessions.update(&session, &[SessionOp::ClearOutgoing(packet_id)]).await?;
            connection.outgoing.remove(&packet_id);
        }
        let limit = 1 + usize::try_from(self.below(20)).unwrap();
        for item in inbox.read(&session, connection.after, limit, usize::MAX).await? {
            connection.after = Some(item.id);
            if item.qos == 1 {
                self.receive(client, &item);
                if self.below(10) == 0 {
                    return Ok(false);
                }
                inbox.remove(&session, &[item.id]).await?;
                continue;
            }
            let packet_id = (1..).find(|id| !connection.outgoing.contains_key(id)).expect("few are in use");
            sessions.update(&session, &[SessionOp::StoreOutgoing(packet_id, item.id)]).await?;
            connection.outgoing.insert(packet_id, (OutgoingPhase::Published, item.id));
            if self.below(10) == 0 {
                return Ok(false);
            }
            self.receive_twice_at_most(client, packet_id, &item);
            if self.below(10) == 0 {
                return Ok(false);
            }
            sessions.update(&session, &[SessionOp::Release(packet_id, item.id)]).await?;
            connection.outgoing.insert(packet_id, (OutgoingPhase::Released, item.id));
        }
        Ok(true)
    }

    fn receive(&mut self, client: usize, item: &InboxItem) {
        let payload = String::from_utf8(item.message.payload.to_vec()).unwrap();
        let state = &mut self.clients[client];
        if *state.times.entry(payload.clone()).and_modify(|times| *times += 1).or_insert(1) == 1 {
            state.received.push(payload);
        }
    }

    /// A QoS 2 publish, which the client knows by its packet id if it comes again.
    fn receive_twice_at_most(&mut self, client: usize, packet_id: u16, item: &InboxItem) {
        if self.clients[client].unreleased.insert(packet_id) {
            self.receive(client, item);
        }
    }

    /// One more retained message of a topic that nobody else publishes to meanwhile.
    async fn retain(&mut self, pod: &Pod) {
        let topic = format!("kept/{}", self.below(TOPICS));
        self.published += 1;
        let large = if self.below(8) == 0 { "-".repeat(100_000) } else { String::new() };
        let payload = if self.below(8) == 0 { String::new() } else { format!("{}{large}", self.published) };
        let possible =
            self.retainable.entry(topic.clone()).or_insert_with(|| BTreeSet::from([String::new()]));
        possible.insert(payload.clone());
        let message = Arc::new(message(self.clock, &topic, &payload));
        let outcome = self.patiently(async { pod.retained.set(message).await?.await }).await;
        self.note(&format!("{topic} = {}: {outcome:?}", payload.len()));
        if matches!(outcome, Some(Ok(()))) {
            self.retainable.insert(topic, BTreeSet::from([payload]));
        }
    }

    /// One life, from the start of a pod to its crash.
    async fn live(&mut self) {
        self.faults.set_rates(self.rates);
        let mut pod = self.start().await;
        for _ in 0..self.below(STEPS) {
            let client = self.client();
            match self.below(12) {
                0..=2 => self.publish_once(&pod).await,
                3..=5 => self.publish_exactly_once(&mut pod, client).await,
                6..=8 => self.deliver(&mut pod, client).await,
                9 => self.retain(&pod).await,
                10 => drop(pod.connections.remove(&client)),
                _ => tokio::time::sleep(Duration::from_millis(self.below(500))).await,
            }
            if !pod.connections.contains_key(&client) {
                self.connect(&mut pod, client).await;
            }
        }
        pod.death.unavailable(true);
        self.note("crash");
    }

    /// Everything that is left is done, with a store that has recovered; then the books must balance.
    async fn settle_and_check(&mut self) {
        self.faults.heal();
        self.faults.settle().await;
        // What a dead pod asked of a slow store still takes its course.
        tokio::time::sleep(Duration::from_secs(60)).await;
        let mut pod = self.start().await;
        for client in 0..CLIENTS {
            while self.clients[client].publishing.is_some() {
                self.connect(&mut pod, client).await;
                self.publish_exactly_once(&mut pod, client).await;
            }
        }
        for client in 0..CLIENTS {
            let mut rounds = 0;
            while !self.is_drained(&pod, client).await {
                if !pod.connections.contains_key(&client) {
                    self.connect(&mut pod, client).await;
                }
                self.deliver(&mut pod, client).await;
                rounds += 1;
                assert!(rounds < 10_000, "client-{client} never gets all: {}", self.trace);
            }
            let state = &self.clients[client];
            for payload in state.owed.keys() {
                let times = state.times.get(payload).copied().unwrap_or(0);
                let is_right = if payload.starts_with("two") { times == 1 } else { times >= 1 };
                assert!(is_right, "client-{client} got {:.20} {times} times", payload);
            }
            let twice = state.times.iter().find(|(payload, times)| payload.starts_with("two") && **times > 1);
            assert_eq!(twice, None, "client-{client}");
            let order =
                state.received.iter().filter_map(|payload| state.owed.get(payload).copied().flatten());
            assert!(order.is_sorted(), "client-{client} got {:?}", state.received);
        }
        // What was begun and not finished is swept an hour later.
        tokio::time::sleep(Duration::from_secs(3_600)).await;
        while pod.inbox.sweep(self.clock.wall()).await.unwrap() > 0 {}
        pod.retained.sweep(self.clock.wall()).await.unwrap();
        self.check_retained(&pod).await;
        self.check_remains().await;
        let received: usize = self.clients.iter().map(|client| client.received.len()).sum();
        self.note(&format!("{} published, {received} received", self.published));
    }

    /// Whether nothing waits for a client that is connected.
    async fn is_drained(&self, pod: &Pod, client: usize) -> bool {
        let Some(connection) = pod.connections.get(&client) else { return false };
        let left = pod.inbox.read(&connection.session, None, 1, 1).await.unwrap();
        connection.outgoing.is_empty() && left.is_empty()
    }

    async fn check_retained(&self, pod: &Pod) {
        let filter = TopicFilter::parse("kept/#".to_owned()).unwrap();
        let page = pod.retained.matching(&filter, None, 100, usize::MAX).await.unwrap();
        let mut kept: BTreeMap<String, String> = BTreeMap::new();
        for message in &page.messages {
            let payload = String::from_utf8(message.payload.to_vec()).unwrap();
            kept.insert(message.topic.as_str().to_owned(), payload);
        }
        for (topic, possible) in &self.retainable {
            let found = kept.get(topic).cloned().unwrap_or_default();
            let last: Vec<&str> =
                possible.iter().map(|payload| payload.get(..8).unwrap_or(payload)).collect();
            assert!(possible.contains(&found), "{topic} keeps {found:.8}, and {last:?} came last");
        }
        assert_eq!(pod.retained.usage().messages, kept.len() as u64, "what is kept is counted");
    }

    /// No message, packet id, mark, timer or payload is left but what is retained.
    async fn check_remains(&self) {
        let mut tx = self.store.begin();
        let mut left = BTreeMap::new();
        for tag in [tag::INBOX_MARK, tag::INBOX_BLOB, tag::TIMER, tag::RETAINED_BLOB, tag::SESSION] {
            let page = tx.get_range(RangeQuery::prefix([tag]), Isolation::Snapshot).await.unwrap();
            left.insert(char::from(tag), page.pairs.into_iter().map(|(key, _)| key).collect::<Vec<_>>());
        }
        let sessions = left.remove(&char::from(tag::SESSION)).unwrap();
        assert_eq!(sessions.len(), 2 * CLIENTS, "a fence and a state of each: {sessions:?}");
        // Two chunks of each large message.
        let chunks = left.remove(&char::from(tag::RETAINED_BLOB)).unwrap();
        assert!(chunks.len() <= 2 * usize::try_from(TOPICS).unwrap(), "{chunks:?}");
        assert!(left.values().all(Vec::is_empty), "{left:?}");
    }
}

async fn run(seed: u64, store: fn() -> (SharedStore, Clock)) -> String {
    let mut world = World::new(seed, store);
    let mut first = world.start().await;
    for client in 0..CLIENTS {
        world.connect(&mut first, client).await;
    }
    for _ in 0..LIVES {
        world.live().await;
    }
    world.settle_and_check().await;
    world.trace
}

fn simulate(seed: u64, store: fn() -> (SharedStore, Clock)) -> String {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(run(seed, store))
}

#[test]
fn nothing_acknowledged_is_lost_or_doubled_in_any_crash() {
    for trial in trials(SEEDS) {
        simulate(trial.seed(), memory);
    }
}

#[test]
fn the_same_seed_is_the_same_run() {
    for seed in [1, 2] {
        let trace = simulate(seed, in_memory);
        assert!(trace.lines().count() > 50, "{trace}");
        assert_eq!(trace, simulate(seed, in_memory));
    }
}
