//! The way to a Broker: whether it answers, how many calls may be under way, the writer token, and its ledger. Owned by
//! [`Links`]; tasks hold it while they use it.
//!
//! A Broker that does not answer is asked by one task only, its follower's; everybody else is told so at once and waits
//! to be woken. Calls of one Broker never take all workers.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use tokio::sync::{Notify, Semaphore};
use weir_env::clock::{Clock, Instant};
use weir_env::seed::HashMap;
use weir_operator_api::Broker;

use super::Admin;
use super::admin::{AdminError, Applied, Declaration, Pending, Policy, Refusal, Released};
use super::find::BrokerId;
use super::ledger::Ledger;
use crate::leader::Leadership;
use crate::metrics::Metrics;

/// For so long a Broker may be away before what it serves is said not to be ready.
pub(crate) const AWAY_GRACE: Duration = Duration::from_secs(30);
/// A worker waits no longer than this for its turn at a Broker: others may need the worker.
const TURN: Duration = Duration::from_millis(100);

/// Whether a Broker answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Health {
    /// It has not been asked yet.
    New,
    /// It does.
    Up,
    /// It does not, why, and whether that has been so for longer than [`AWAY_GRACE`].
    Down { why: String, long: bool },
}

#[derive(Debug)]
enum Circuit {
    New,
    Up,
    Down { why: String, since: Instant },
}

/// The way to one Broker.
pub(crate) struct Link {
    pub(crate) id: BrokerId,
    pub(crate) uid: String,
    broker: RwLock<Arc<Broker>>,
    circuit: Mutex<Circuit>,
    slots: Semaphore,
    writer: tokio::sync::Mutex<Option<u64>>,
    pub(crate) ledger: Mutex<Ledger>,
    /// The follower should ask it now.
    pub(crate) suspected: Notify,
    admin: Arc<dyn Admin>,
    leadership: Arc<dyn Leadership>,
    cluster: String,
    metrics: Arc<Metrics>,
    clock: Clock,
}

impl Link {
    /// The Broker as it is in Kubernetes.
    pub(crate) fn broker(&self) -> Arc<Broker> {
        self.broker.read().clone()
    }

    /// Whether it answers.
    pub(crate) fn health(&self) -> Health {
        match &*self.circuit.lock() {
            Circuit::New => Health::New,
            Circuit::Up => Health::Up,
            Circuit::Down { why, since } => {
                let away = self.clock.now().saturating_duration_since(*since);
                Health::Down { why: why.clone(), long: away >= AWAY_GRACE }
            }
        }
    }

    /// It has answered; whether it did not before.
    pub(crate) fn set_up(&self) -> bool {
        let mut circuit = self.circuit.lock();
        let was_up = matches!(*circuit, Circuit::Up);
        *circuit = Circuit::Up;
        self.metrics.broker_up(&self.id.namespace, &self.id.name, true);
        !was_up
    }

    /// It has not answered; whether it did before, or had not been asked.
    pub(crate) fn set_down(&self, why: &str) -> bool {
        let mut circuit = self.circuit.lock();
        self.metrics.broker_up(&self.id.namespace, &self.id.name, false);
        if matches!(*circuit, Circuit::Down { .. }) {
            return false;
        }
        *circuit = Circuit::Down { why: why.to_owned(), since: self.clock.now() };
        true
    }

    /// Has a queue or stream be what an object declares, and remembers the answer.
    pub(crate) async fn apply(&self, declaration: &Declaration) -> Result<Applied, AdminError> {
        let broker = self.broker();
        let call = |writer| self.admin.apply(&broker, writer, declaration);
        let applied = self.write("apply", call).await?;
        let Declaration { owner, kind, name, .. } = declaration;
        self.ledger.lock().applied(*kind, name, &owner.uid, owner.generation, &applied);
        Ok(applied)
    }

    /// An object declares its queue or stream no more.
    pub(crate) async fn release(
        &self,
        declaration: &Declaration,
        policy: Policy,
    ) -> Result<Released, AdminError> {
        let broker = self.broker();
        let call = |writer| self.admin.release(&broker, writer, declaration, policy);
        let released = self.write("release", call).await?;
        self.ledger.lock().forget(declaration.kind, &declaration.name, &declaration.owner.uid);
        Ok(released)
    }

    /// Makes a call that needs a writer token. One that is stale is replaced if this operator leads still: the store may
    /// have been made anew.
    async fn write<'c, T>(
        &self,
        what: &'static str,
        call: impl Fn(u64) -> Pending<'c, T> + Send,
    ) -> Result<T, AdminError> {
        if let Health::Down { why, .. } = self.health() {
            return Err(AdminError::Unavailable(why));
        }
        let Ok(Ok(_turn)) = tokio::time::timeout(TURN, self.slots.acquire()).await else {
            return Err(AdminError::Busy);
        };
        let writer = self.writer(None).await?;
        let mut answer = call(writer).await;
        if let Err(AdminError::Refused { refusal: Refusal::StaleWriter, .. }) = answer {
            let writer = self.writer(Some(writer)).await?;
            answer = call(writer).await;
        }
        self.note(what, answer)
    }

    /// The writer token; another one than `stale`.
    async fn writer(&self, stale: Option<u64>) -> Result<u64, AdminError> {
        let mut writer = self.writer.lock().await;
        if let Some(held) = *writer
            && Some(held) != stale
        {
            return Ok(held);
        }
        *writer = None;
        if !self.leadership.confirm().await {
            let message = "another operator leads, or it is not known who does".to_owned();
            return Err(AdminError::Unavailable(message));
        }
        let broker = self.broker();
        let acquired = self.admin.acquire_writer(&broker, &self.cluster).await;
        let acquired = self.note("acquire_writer", acquired)?;
        tracing::info!(broker = %self.id, writer = acquired, "writes to the Broker");
        *writer = Some(acquired);
        Ok(acquired)
    }

    /// Counts an answer, and has a Broker that does not answer looked at.
    pub(crate) fn note<T>(&self, what: &'static str, answer: Result<T, AdminError>) -> Result<T, AdminError> {
        self.metrics.called(what, answer.as_ref().err().map_or("ok", AdminError::label));
        if let Err(AdminError::Unavailable(why)) = &answer
            && self.set_down(why)
        {
            tracing::warn!(broker = %self.id, why, "the Broker does not answer");
            self.suspected.notify_one();
        }
        answer
    }
}

/// What is new about a Broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum News {
    /// Nothing that matters.
    None,
    /// Its spec was changed.
    Edited,
    /// It is there.
    Made,
}

/// All Brokers that exist.
pub(crate) struct Links {
    links: RwLock<HashMap<BrokerId, Arc<Link>>>,
    admin: Arc<dyn Admin>,
    leadership: Arc<dyn Leadership>,
    cluster: String,
    slots: usize,
    metrics: Arc<Metrics>,
    clock: Clock,
}

impl Links {
    /// None yet. Each will have up to `slots` calls under way.
    pub(crate) fn new(
        admin: Arc<dyn Admin>,
        leadership: Arc<dyn Leadership>,
        cluster: String,
        slots: usize,
        metrics: Arc<Metrics>,
        clock: Clock,
    ) -> Self {
        Self { links: RwLock::default(), admin, leadership, cluster, slots, metrics, clock }
    }

    /// The way to `broker`, and what is new about that.
    pub(crate) fn open(&self, broker: &Arc<Broker>) -> (Arc<Link>, News) {
        let id = BrokerId::of(broker);
        let uid = broker.metadata.uid.clone().unwrap_or_default();
        let mut links = self.links.write();
        if let Some(link) = links.get(&id)
            && link.uid == uid
        {
            let before = std::mem::replace(&mut *link.broker.write(), broker.clone());
            let news = match before.metadata.generation == broker.metadata.generation {
                true => News::None,
                false => News::Edited,
            };
            return (link.clone(), news);
        }
        let link = Arc::new(Link {
            id: id.clone(),
            uid,
            broker: RwLock::new(broker.clone()),
            circuit: Mutex::new(Circuit::New),
            slots: Semaphore::new(self.slots),
            writer: tokio::sync::Mutex::default(),
            ledger: Mutex::default(),
            suspected: Notify::new(),
            admin: self.admin.clone(),
            leadership: self.leadership.clone(),
            cluster: self.cluster.clone(),
            metrics: self.metrics.clone(),
            clock: self.clock,
        });
        links.insert(id, link.clone());
        (link, News::Made)
    }

    /// The Broker is gone.
    pub(crate) fn close(&self, id: &BrokerId) {
        self.links.write().remove(id);
        self.metrics.broker_gone(&id.namespace, &id.name);
    }

    /// The way to the Broker `id`.
    pub(crate) fn get(&self, id: &BrokerId) -> Option<Arc<Link>> {
        self.links.read().get(id).cloned()
    }

    /// Those that there are.
    pub(crate) fn ids(&self) -> Vec<BrokerId> {
        self.links.read().keys().cloned().collect()
    }
}
