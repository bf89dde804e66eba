//! What runs while this operator leads: watches, the workers of each kind, a follower for each Broker. Owns these tasks and
//! the channels between them; decides nothing about an object.
//!
//! Each kind has two sets of workers, for objects that are to be and for those that are being deleted. A watch, a follower
//! or a Broker that comes or goes wakes objects by name through bounded channels; who wakes waits.

use std::convert::Infallible;
use std::sync::Arc;

use futures_util::{FutureExt as _, StreamExt as _};
use kube::core::DeserializeGuard;
use kube::core::ResourceExt as _;
use kube::runtime::controller::{Config, applier};
use kube::runtime::reflector::{self, ObjectRef, Store};
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Resource as _};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use weir_operator_api::{Broker, MessageQueue, Stream};

use crate::brokers::{Admin, BrokerId, Followers, Kind, Known, Unknown, Wake};
use crate::context::Context;
use crate::error::Error;
use crate::object::{self, Declares, Urgency};
use crate::tasks::Tasks;

/// Objects that wait to be taken up by the scheduler, which never makes them wait long.
const WOKEN_MAX: usize = 256;

/// A namespace, or all.
pub(crate) type Scope = Option<String>;

/// Where the objects of a kind in one scope are, and how they are woken.
struct Herd<K: Declares> {
    store: Store<DeserializeGuard<K>>,
    living: mpsc::Sender<ObjectRef<DeserializeGuard<K>>>,
    dying: mpsc::Sender<ObjectRef<DeserializeGuard<K>>>,
}

impl<K: Declares> Herd<K> {
    async fn wake(&self, object: &DeserializeGuard<K>) {
        let way = match object.meta().deletion_timestamp {
            None => &self.living,
            Some(_) => &self.dying,
        };
        // The workers are gone only when all ends.
        let _ = way.send(ObjectRef::from_obj(object)).await;
    }

    async fn wake_where(&self, concerned: impl Fn(&K) -> bool) {
        for object in self.store.state() {
            if object.0.as_ref().is_ok_and(&concerned) {
                self.wake(&object).await;
            }
        }
    }
}

/// All objects.
struct Herds {
    queues: Vec<Herd<MessageQueue>>,
    streams: Vec<Herd<Stream>>,
}

impl Wake for Herds {
    async fn wake(&self, kind: Kind, name: &str) {
        match kind {
            Kind::Queue => {
                for herd in &self.queues {
                    herd.wake_where(|object| object.backend() == name).await;
                }
            }
            Kind::Stream => {
                for herd in &self.streams {
                    herd.wake_where(|object| object.backend() == name).await;
                }
            }
        }
    }

    async fn wake_all(&self, broker: &BrokerId) {
        for herd in &self.queues {
            herd.wake_where(|object| may_belong(object, broker)).await;
        }
        for herd in &self.streams {
            herd.wake_where(|object| may_belong(object, broker)).await;
        }
    }
}

/// Whether an object was declared at the Broker, or names it, or has none yet.
fn may_belong(object: &impl Declares, broker: &BrokerId) -> bool {
    let at = object.status().and_then(|status| status.broker_ref.as_ref());
    let is_there = at.is_none_or(|at| at.namespace == broker.namespace && at.name == broker.name);
    is_there || object.broker_ref().is_some_and(|wanted| wanted.name == broker.name)
}

/// Starts everything for the `scopes`. It ends with `cancel`, when the calls that are under way have ended.
pub(crate) fn start(
    context: &Arc<Context>,
    scopes: &[Scope],
    concurrency: u16,
    admin: Arc<dyn Admin>,
    tasks: &Tasks,
) {
    let known = CancellationToken::new();
    let mut herds = Herds { queues: Vec::new(), streams: Vec::new() };
    for scope in scopes {
        herds.queues.push(herd(context, scope, concurrency, &known, tasks));
        herds.streams.push(herd(context, scope, concurrency, &known, tasks));
    }
    let followers = Followers::new(
        context.links.clone(),
        admin,
        Arc::new(herds),
        context.resync,
        context.seed.fork("followers"),
        tasks.clone(),
    );
    let brokers = follow_brokers(context.clone(), scopes.to_vec(), followers, known);
    tasks.spawn_droppable(tasks.cancel().clone(), brokers);
}

/// The Brokers of a scope.
struct Watched {
    scope: Scope,
    store: Store<DeserializeGuard<Broker>>,
    /// They have been listed.
    is_read: bool,
    /// Why they cannot be: this operator may not, or there is no such namespace.
    refused: Option<String>,
}

impl Watched {
    /// Takes note of what comes of the watch; whether something else is known now.
    fn note(&mut self, event: watcher::Result<watcher::Event<DeserializeGuard<Broker>>>) -> bool {
        match event {
            // Within a list, the store is still the old one.
            Ok(watcher::Event::Init | watcher::Event::InitApply(_)) => false,
            Ok(watcher::Event::InitDone) => {
                (self.is_read, self.refused) = (true, None);
                true
            }
            Ok(watcher::Event::Apply(_) | watcher::Event::Delete(_)) => true,
            Err(error) => {
                let namespace = self.scope.as_deref().unwrap_or("all");
                tracing::warn!(namespace, %error, "Brokers cannot be watched");
                let is_refused = matches!(
                    &error,
                    watcher::Error::InitialListFailed(kube::Error::Api(said)) if matches!(said.code, 403 | 404)
                );
                let is_news = is_refused && !self.is_read && self.refused.is_none();
                if is_news {
                    self.refused = Some(error.to_string());
                }
                is_news
            }
        }
    }

    /// Whether it may not be waited for.
    const fn is_settled(&self) -> bool {
        self.is_read || self.refused.is_some()
    }
}

/// What is known of Brokers.
fn known_of(scopes: &[Watched]) -> Known {
    let (mut brokers, mut unknown) = (Vec::new(), Vec::new());
    for Watched { scope, store, is_read, refused } in scopes {
        for broker in store.state() {
            match &broker.0 {
                Ok(broker) => brokers.push(Arc::new(broker.clone())),
                Err(invalid) => {
                    let (namespace, name) = (broker.namespace().unwrap_or_default(), broker.name_any());
                    tracing::warn!(namespace, name, error = invalid.error, "a Broker cannot be read");
                    let why = format!(
                        "this operator cannot read the Broker {namespace}/{name}: {}; mend it, or run the operator of \
                         the version that it was written for",
                        invalid.error
                    );
                    unknown.push(Unknown { namespace, name: Some(name), why });
                }
            }
        }
        if let (false, Some(namespace)) = (*is_read, scope) {
            let why = format!(
                "this operator cannot list the Brokers of the namespace {namespace}: {}; give it that right, or take the \
                 namespace out of those that it watches",
                refused.as_deref().unwrap_or("the API server has not answered yet")
            );
            unknown.push(Unknown { namespace: namespace.clone(), name: None, why });
        }
    }
    Known { brokers: brokers.into(), unknown: unknown.into() }
}

/// Watches the Brokers and has them followed. Cancels `known` when all that exist have been seen, but for those of namespaces
/// in which they cannot be listed.
async fn follow_brokers(
    context: Arc<Context>,
    scopes: Vec<Scope>,
    mut followers: Followers<Herds>,
    known: CancellationToken,
) {
    let mut watched = Vec::new();
    let mut watches = futures_util::stream::SelectAll::new();
    for (n, scope) in scopes.into_iter().enumerate() {
        let api: Api<DeserializeGuard<Broker>> = match &scope {
            Some(namespace) => Api::namespaced(context.client.clone(), namespace),
            None => Api::all(context.client.clone()),
        };
        let (store, writer) = reflector::store();
        let watch = watcher(api, watcher::Config::default()).default_backoff().reflect(writer);
        watched.push(Watched { scope, store, is_read: false, refused: None });
        watches.push(watch.map(move |event| (n, event)).boxed());
    }
    while let Some((n, event)) = watches.next().await {
        let is_news = watched[n].note(event);
        // While none can be listed, it is the API server that is not there.
        let is_known = watched.iter().all(Watched::is_settled) && watched.iter().any(|scope| scope.is_read);
        if !is_news || !is_known {
            continue;
        }
        let all = known_of(&watched);
        context.metrics.brokers_unknown(all.unknown.len());
        *context.known.write() = all.clone();
        // Before any is followed: who wakes waits for the workers.
        known.cancel();
        followers.set(&all.brokers).await;
    }
}

/// Starts the watch and the workers of a kind in one scope; the workers wait until the Brokers are `known`.
fn herd<K: Declares>(
    context: &Arc<Context>,
    scope: &Scope,
    concurrency: u16,
    known: &CancellationToken,
    tasks: &Tasks,
) -> Herd<K> {
    let api: Api<DeserializeGuard<K>> = match scope {
        Some(namespace) => Api::namespaced(context.client.clone(), namespace),
        None => Api::all(context.client.clone()),
    };
    let (store, writer) = reflector::store();
    let (living, living_rx) = mpsc::channel(WOKEN_MAX);
    let (dying, dying_rx) = mpsc::channel(WOKEN_MAX);
    let herd = Herd { store: store.clone(), living, dying };

    let watch = watcher(api, watcher::Config::default()).default_backoff().reflect(writer).touched_objects();
    let waker = Herd { store: store.clone(), living: herd.living.clone(), dying: herd.dying.clone() };
    tasks.spawn_droppable(tasks.cancel().clone(), async move {
        let mut watch = watch.boxed();
        while let Some(object) = watch.next().await {
            match object {
                Ok(object) => waker.wake(&object).await,
                Err(error) => tracing::warn!(kind = K::KIND.object(), %error, "objects cannot be watched"),
            }
        }
    });
    let objects = Arc::new(object::Objects::new(context.clone()));
    for (urgency, woken) in [(Urgency::Living, living_rx), (Urgency::Dying, dying_rx)] {
        let cancel = tasks.cancel().clone();
        let workers = work(objects.clone(), store.clone(), woken, urgency, concurrency, cancel.clone());
        let known = known.clone();
        tasks.spawn(async move {
            tokio::select! {
                () = cancel.cancelled() => return,
                () = known.cancelled() => {}
            }
            workers.await;
        });
    }
    herd
}

/// Works on what is woken until `cancel`, and then ends what is under way.
async fn work<K: Declares>(
    objects: Arc<object::Objects<K>>,
    store: Store<DeserializeGuard<K>>,
    mut woken: mpsc::Receiver<ObjectRef<DeserializeGuard<K>>>,
    urgency: Urgency,
    concurrency: u16,
    cancel: CancellationToken,
) {
    let woken = futures_util::stream::poll_fn(move |task| woken.poll_recv(task))
        .map(Ok::<_, Infallible>)
        .take_until(cancel.cancelled_owned());
    let reconcile = move |object, objects: Arc<object::Objects<K>>| {
        object::reconcile::<K>(object, objects, urgency).boxed()
    };
    let again = |object: Arc<DeserializeGuard<K>>, error: &Error, objects: Arc<object::Objects<K>>| {
        object::again_after(&object, error, &objects)
    };
    let config = Config::default().concurrency(concurrency);
    applier(reconcile, again, objects, store, woken, config)
        .for_each(|ended| {
            if let Err(error) = ended {
                tracing::debug!(%error, "reconciliation ended early");
            }
            std::future::ready(())
        })
        .await;
}

#[cfg(test)]
mod tests;
