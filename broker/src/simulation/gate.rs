//! The way of one pod to the store that all share: it takes its time, can be held up for as long as the pod is paused,
//! and ends for good when the pod is killed. Looks at what goes through: a log is written by its owner alone, what is in
//! flight in a session by the pod that it is live on, what only members write by a member, and no shard is taken from a
//! member but by itself.
//!
//! Knows keys of logs, owners, sessions and members, and nothing of what the pod does with them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::watch;
use weir_core::keyspace::log_state::LogState;
use weir_core::keyspace::owner::{Epoch, Owner, PodId};
use weir_core::keyspace::pod::{Heartbeat, Pod};
use weir_core::keyspace::session::Fence;
use weir_core::keyspace::{LogId, VirtualShard, tag};
use weir_env::seed::Seed;
use weir_storage::{
    Committed, ConflictKind, Isolation, RangePage, RangeQuery, Result, SharedStore, Store, Transaction,
    Version, Watch,
};

/// Longest time that an operation takes on its way to the store.
const LATENCY_MAX: Duration = Duration::from_millis(3);
/// Longest time that a commit of a pod that is dead or paused stays on its way: almost as long as a transaction lives.
const LATE_MAX: Duration = Duration::from_millis(4_900);

/// Which pod of the run is called what in the store, if it owns anything. Clones share it.
#[derive(Clone, Debug, Default)]
pub(super) struct Writers(Arc<Mutex<BTreeMap<PodId, usize>>>);

/// A store as one pod has it.
#[derive(Clone, Debug)]
pub(super) struct Gate {
    inner: SharedStore,
    state: Arc<State>,
}

#[derive(Debug)]
struct State {
    /// Which pod of the run it is.
    pod: usize,
    seed: Seed,
    writers: Writers,
    passage: watch::Sender<Passage>,
    /// What the store calls it, if it is one of many.
    me: OnceLock<PodId>,
    /// Commits that were sent off.
    sent: watch::Sender<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Passage {
    Open,
    /// Until the pod goes on.
    Held,
    /// Nothing goes through any more, and nobody is told.
    Closed,
}

impl Gate {
    pub(super) fn new(inner: SharedStore, pod: usize, seed: Seed, writers: Writers) -> Self {
        let passage = watch::Sender::new(Passage::Open);
        let (me, sent) = (OnceLock::new(), watch::Sender::new(0));
        Self { inner, state: Arc::new(State { pod, seed, writers, passage, me, sent }) }
    }

    /// Until the pod has sent off a commit, which is on its way then.
    pub(super) async fn commit_sent(&self) {
        // Cannot fail: the sender is in `self`.
        let _ = self.state.sent.subscribe().changed().await;
    }

    /// The pod is dead. Each commit that is on its way happens or not.
    pub(super) fn close_for_good(&self) {
        self.state.passage.send_replace(Passage::Closed);
    }

    pub(super) fn is_held(&self) -> bool {
        *self.state.passage.borrow() == Passage::Held
    }

    /// Holds everything up, or lets it go on.
    pub(super) fn hold_up(&self, held: bool) {
        self.state.passage.send_if_modified(|passage| {
            let next = if held { Passage::Held } else { Passage::Open };
            let changes = *passage != Passage::Closed && *passage != next;
            if changes {
                *passage = next;
            }
            changes
        });
    }
}

impl State {
    /// The way there. For ever, if the pod is dead.
    async fn pass(&self) {
        self.travel(LATENCY_MAX).await;
        self.open().await;
    }

    /// Whether the store calls this pod so.
    fn is_called(&self, pod: PodId) -> bool {
        *self.writers.0.lock().entry(pod).or_insert(self.pod) == self.pod
    }

    async fn open(&self) {
        let mut passage = self.passage.subscribe();
        // Cannot fail: the sender is in `self`.
        let _ = passage.wait_for(|passage| *passage == Passage::Open).await;
    }

    /// As [`State::pass`], of what is sent off now: the death of the pod does not always stop it, and it may be long on
    /// its way then.
    async fn send(&self) {
        let was_open = *self.passage.borrow() == Passage::Open;
        let survives = was_open && self.seed.below(2) == 0;
        self.sent.send_modify(|sent| *sent += 1);
        self.travel(LATENCY_MAX).await;
        if !survives {
            self.open().await;
        } else if *self.passage.borrow() != Passage::Open && self.seed.below(2) == 0 {
            self.travel(LATE_MAX).await;
        }
    }

    async fn travel(&self, max: Duration) {
        let micros = self.seed.below(u64::try_from(max.as_micros()).unwrap());
        tokio::time::sleep(Duration::from_micros(micros)).await;
    }
}

#[async_trait]
impl Store for Gate {
    fn begin(&self) -> Box<dyn Transaction> {
        let (inner, state) = (self.inner.begin(), Arc::clone(&self.state));
        Box::new(GateTransaction {
            store: Arc::clone(&self.inner),
            inner,
            state,
            written: Written::default(),
        })
    }

    fn engine(&self) -> &'static str {
        self.inner.engine()
    }

    async fn failed(&self) -> Arc<str> {
        self.inner.failed().await
    }

    async fn close(&self) {}
}

#[derive(Debug)]
struct GateTransaction {
    store: SharedStore,
    inner: Box<dyn Transaction>,
    state: Arc<State>,
    written: Written,
}

/// What a transaction writes that only some may write.
#[derive(Debug, Default)]
struct Written {
    /// States of logs.
    logs: Vec<(VirtualShard, Epoch)>,
    /// Fences of sessions in which it writes what is in flight.
    sessions: BTreeSet<Vec<u8>>,
    /// Owners of shards.
    owners: Vec<(VirtualShard, Owner)>,
    /// Something that only a member writes.
    of_members: Option<&'static str>,
}

impl Written {
    fn note(&mut self, state: &State, key: &[u8], value: &[u8]) {
        let (whole, value) = (Bytes::copy_from_slice(key), || Bytes::copy_from_slice(value));
        match key.first() {
            Some(&tag::LOG_STATE) => {
                let epoch = LogState::decode(value()).unwrap().epoch;
                self.logs.push((LogId::of_key(&whole).unwrap().vs, epoch));
            }
            Some(&tag::OWNER) => {
                let vs = VirtualShard(u16::from_be_bytes([key[1], key[2]]));
                self.owners.push((vs, Owner::decode(value()).unwrap()));
            }
            Some(&tag::HEARTBEAT) => {
                let me = *state.me.get_or_init(|| Heartbeat::of_key(&whole).unwrap());
                assert!(state.is_called(me), "a sign of life of another pod");
                self.of_members = Some("a sign of life");
            }
            Some(&tag::INTEREST) => self.of_members = Some("what its clients want"),
            Some(&tag::RETAINED) => self.of_members = Some("what is retained"),
            _ => self.sessions.extend(fence_of(key)),
        }
    }

    /// Looks at what is committed in version `at`.
    async fn check(&self, store: &SharedStore, state: &State, at: Version) {
        for (vs, epoch) in &self.logs {
            check_owner(store, state, *vs, *epoch, at).await;
        }
        for fence in &self.sessions {
            check_session(store, state, fence, at).await;
        }
        // Alone a pod is no member of anything.
        let Some(me) = state.me.get() else { return };
        if let Some(what) = self.of_members {
            let pod = state.pod;
            assert!(
                is_member(store, *me, at).await,
                "pod {pod} is no member any more, and has written {what}"
            );
        }
        for (vs, owner) in &self.owners {
            check_takeover(store, *me, *vs, *owner, at).await;
        }
    }
}

/// The key of the fence of a session, if `key` is of a packet id in use in it.
fn fence_of(key: &[u8]) -> Option<Vec<u8>> {
    let (begin, rest) = key.split_at_checked(5)?;
    let length = usize::from(u16::from_be_bytes([begin[3], begin[4]]));
    let is_in_flight = begin[0] == tag::SESSION && matches!(rest.get(length), Some(b'd' | b'o'));
    is_in_flight.then(|| [begin, &rest[..length], b"e"].concat())
}

#[async_trait]
impl Transaction for GateTransaction {
    async fn read_version(&mut self) -> Result<Version> {
        self.state.pass().await;
        self.inner.read_version().await
    }

    fn set_read_version(&mut self, version: Version) {
        self.inner.set_read_version(version);
    }

    async fn get(&mut self, key: &[u8], isolation: Isolation) -> Result<Option<Bytes>> {
        self.state.pass().await;
        self.inner.get(key, isolation).await
    }

    async fn get_range(&mut self, query: RangeQuery, isolation: Isolation) -> Result<RangePage> {
        self.state.pass().await;
        self.inner.get_range(query, isolation).await
    }

    fn set(&mut self, key: &[u8], value: &[u8]) {
        self.written.note(&self.state, key, value);
        self.inner.set(key, value);
    }

    fn clear(&mut self, key: &[u8]) {
        self.inner.clear(key);
    }

    fn clear_range(&mut self, begin: &[u8], end: &[u8]) {
        self.inner.clear_range(begin, end);
    }

    fn set_versionstamped_key(&mut self, key: &[u8], offset: usize, value: &[u8]) {
        self.inner.set_versionstamped_key(key, offset, value);
    }

    fn set_versionstamped_value(&mut self, key: &[u8], value: &[u8], offset: usize) {
        self.inner.set_versionstamped_value(key, value, offset);
    }

    fn add_conflict_range(&mut self, begin: &[u8], end: &[u8], kind: ConflictKind) {
        self.inner.add_conflict_range(begin, end, kind);
    }

    fn watch(&mut self, key: &[u8]) -> Watch {
        self.inner.watch(key)
    }

    async fn commit(self: Box<Self>) -> Result<Committed> {
        let Self { store, inner, state, written } = *self;
        state.send().await;
        let outcome = inner.commit().await;
        if let Ok(committed) = &outcome {
            written.check(&store, &state, committed.version).await;
        }
        // Who is dead or paused hears of it later, or never.
        state.open().await;
        outcome
    }
}

/// Whoever wrote a log on `vs` was its owner at that moment. A batch that was begun in `epoch` may be written in a later
/// one of the same pod.
async fn check_owner(store: &SharedStore, state: &State, vs: VirtualShard, epoch: Epoch, at: Version) {
    let mut tx = store.begin();
    tx.set_read_version(at);
    let owner = tx.get(&Owner::key(vs), Isolation::Snapshot).await.unwrap();
    let owner = owner.map(|value| Owner::decode(value).unwrap());
    let Some(Owner { epoch: in_force, pod }) = owner else { panic!("{vs:?} is written and has no owner") };
    assert!(epoch <= in_force, "pod {} wrote a log on {vs:?} in {epoch:?}, before its time", state.pod);
    assert!(state.is_called(pod), "a log on {vs:?} was written by another pod than its owner");
}

/// Whoever wrote what is in flight in a session had its connection at that moment.
async fn check_session(store: &SharedStore, state: &State, fence: &[u8], at: Version) {
    let mut tx = store.begin();
    tx.set_read_version(at);
    let live = tx.get(fence, Isolation::Snapshot).await.unwrap();
    let live = live.map(|value| Fence::decode(value).unwrap());
    let Some(Fence { pod, .. }) = live else { panic!("a session that is not there is written") };
    assert!(state.is_called(PodId(pod)), "a session was written by another pod than it is live on");
}

async fn is_member(store: &SharedStore, pod: PodId, at: Version) -> bool {
    let mut tx = store.begin();
    tx.set_read_version(at);
    tx.get(&Pod::key(pod), Isolation::Snapshot).await.unwrap().is_some()
}

/// Whoever owns a shard from now on is a member, and had it from nobody who is one, but for the pod `me` that has written
/// it: that gives away what is its own.
async fn check_takeover(store: &SharedStore, me: PodId, vs: VirtualShard, owner: Owner, at: Version) {
    assert!(is_member(store, owner.pod, at).await, "{vs:?} goes to a pod that is no member any more");
    let mut tx = store.begin();
    tx.set_read_version(Version(at.0 - 1));
    let before = tx.get(&Owner::key(vs), Isolation::Snapshot).await.unwrap();
    let Some(before) = before.map(|value| Owner::decode(value).unwrap()) else { return };
    assert_eq!(owner.epoch.0, before.epoch.0 + 1, "{vs:?} has skipped an epoch, or repeated one");
    let is_taken = before.pod != me && is_member(store, before.pod, at).await;
    assert!(!is_taken, "{vs:?} was taken from a pod that lives");
}
