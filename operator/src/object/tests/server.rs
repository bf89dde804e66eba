//! An API server that holds a few objects, and a Broker that holds queues and streams; both can be told to fail.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use http::{Method, Request, Response, StatusCode};
use kube::Client;
use kube::api::ObjectMeta;
use kube::client::Body;
use kube::core::DeserializeGuard;
use kube::runtime::events::{Recorder, Reporter};
use parking_lot::{Mutex, RwLock};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use weir_env::clock::{Clock, Timestamp};
use weir_env::seed::Seed;
use weir_operator_api::{Broker, MessageQueue, ObjectStatus};

use crate::brokers::{
    Admin, AdminError, Applied, BrokerId, Changes, Declaration, Kind, Link, Links, Outcome, Page, Pending,
    Policy, Refusal, Released, State, Told,
};
use crate::context::Context;
use crate::error::Error;
use crate::leader::{Leadership, wall};
use crate::metrics::Metrics;
use crate::object::{Objects, Urgency, again_after, reconcile};

/// What the API server has and was asked.
#[derive(Debug, Default)]
pub(super) struct Server {
    /// By namespace and name.
    pub(super) objects: BTreeMap<String, Value>,
    pub(super) requests: Vec<String>,
    pub(super) events: Vec<String>,
    /// Answers to the next requests that write an object, instead of doing it.
    pub(super) failures: Vec<StatusCode>,
    pub(super) ending: bool,
    /// It knows fewer fields of a status than the operator writes.
    pub(super) is_old: bool,
}

impl Server {
    fn answer(&mut self, method: &Method, path: &str, body: &Value) -> (StatusCode, Value) {
        if path.contains("/events") {
            self.events.push(body["reason"].as_str().unwrap().to_owned());
            return (StatusCode::CREATED, body.clone());
        }
        let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
        if let ["api", "v1", "namespaces", name] = parts.as_slice() {
            let mut namespace = json!({ "metadata": { "name": name } });
            if self.ending {
                namespace["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
            }
            return (StatusCode::OK, namespace);
        }
        let ["apis", "weir.dev", "v1alpha1", "namespaces", namespace, _, name, subresource @ ..] =
            parts.as_slice()
        else {
            panic!("unexpected request {method} {path}");
        };
        self.requests.push(format!("{method} {}", subresource.first().unwrap_or(&"object")));
        if !self.failures.is_empty() {
            let code = self.failures.remove(0);
            return (code, status(code));
        }
        let key = format!("{namespace}/{name}");
        let Some(object) = self.objects.get_mut(&key) else {
            return (StatusCode::NOT_FOUND, status(StatusCode::NOT_FOUND));
        };
        if *method == Method::GET {
            return (StatusCode::OK, object.clone());
        }
        assert_eq!(*method, Method::PATCH);
        if self.is_old && subresource == ["status"] {
            let mut refusal = status(StatusCode::INTERNAL_SERVER_ERROR);
            refusal["message"] = json!(".status.brokerRef: field not declared in schema");
            return (StatusCode::INTERNAL_SERVER_ERROR, refusal);
        }
        let wanted = &body["metadata"]["resourceVersion"];
        if !wanted.is_null() && *wanted != object["metadata"]["resourceVersion"] {
            return (StatusCode::CONFLICT, status(StatusCode::CONFLICT));
        }
        let uid = &body["metadata"]["uid"];
        if !uid.is_null() && *uid != object["metadata"]["uid"] {
            return (StatusCode::CONFLICT, status(StatusCode::CONFLICT));
        }
        match subresource {
            ["status"] => object["status"] = body["status"].clone(),
            _ => object["metadata"]["finalizers"] = body["metadata"]["finalizers"].clone(),
        }
        let version = object["metadata"]["resourceVersion"].as_str().unwrap().parse::<u64>().unwrap();
        object["metadata"]["resourceVersion"] = json!((version + 1).to_string());
        let answer = object.clone();
        let is_free = object["metadata"]["finalizers"].as_array().is_none_or(Vec::is_empty);
        if is_free && !object["metadata"]["deletionTimestamp"].is_null() {
            self.objects.remove(&key);
        }
        (StatusCode::OK, answer)
    }
}

fn status(code: StatusCode) -> Value {
    let reason = match code {
        StatusCode::NOT_FOUND => "NotFound",
        StatusCode::CONFLICT => "Conflict",
        StatusCode::GONE => "Expired",
        _ => "InternalError",
    };
    json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": reason, "reason": reason, "code": code.as_u16(),
    })
}

/// A queue or stream of the fake Broker.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) owner: String,
    pub(super) spec: String,
    pub(super) uid: String,
    pub(super) generation: i64,
    pub(super) changes: u64,
    pub(super) orphaned: bool,
    pub(super) messages: u32,
}

/// A Broker in memory.
#[derive(Debug)]
pub(super) struct FakeBroker {
    pub(super) entries: BTreeMap<(Kind, String), Entry>,
    pub(super) calls: Vec<String>,
    pub(super) writer: u64,
    pub(super) is_away: bool,
    /// Calls wait until this is cancelled, but for those of a follower.
    pub(super) hangs: Option<CancellationToken>,
    pub(super) state: State,
}

#[derive(Debug, Default)]
pub(crate) struct FakeAdmin(pub(super) Mutex<BTreeMap<String, FakeBroker>>);

impl FakeAdmin {
    /// Adds the Broker of this namespace and name, which answers.
    pub(crate) fn add(&self, broker: &str) {
        let fake = FakeBroker {
            entries: BTreeMap::new(),
            calls: Vec::new(),
            writer: 0,
            is_away: false,
            hangs: None,
            state: State::Ready,
        };
        self.0.lock().insert(broker.to_owned(), fake);
    }

    /// From now on the Broker takes declarations and answers none.
    pub(crate) fn hang(&self, broker: &str) {
        self.0.lock().get_mut(broker).unwrap().hangs = Some(CancellationToken::new());
    }

    /// What the Broker was asked.
    pub(crate) fn calls(&self, broker: &str) -> Vec<String> {
        self.0.lock()[broker].calls.clone()
    }

    fn call<T>(
        &self,
        broker: &Broker,
        what: String,
        answer: impl FnOnce(&mut FakeBroker) -> Result<T, AdminError> + Send + 'static,
    ) -> Pending<'_, T>
    where
        T: Send + 'static,
    {
        let name = BrokerId::of(broker).to_string();
        Box::pin(async move {
            let hangs = {
                let mut brokers = self.0.lock();
                let broker = brokers.get_mut(&name).unwrap();
                let is_followers = ["watch", "list"].contains(&what.as_str());
                broker.calls.push(what);
                broker.hangs.clone().filter(|_| !is_followers)
            };
            if let Some(end) = hangs {
                end.cancelled().await;
                return Err(AdminError::Unavailable("deadline".to_owned()));
            }
            let mut brokers = self.0.lock();
            let broker = brokers.get_mut(&name).unwrap();
            if broker.is_away {
                return Err(AdminError::Unavailable("connection refused".to_owned()));
            }
            answer(broker)
        })
    }
}

fn refused<T>(refusal: Refusal, message: &str) -> Result<T, AdminError> {
    Err(AdminError::Refused { refusal, message: message.to_owned() })
}

impl FakeBroker {
    fn apply(&mut self, writer: u64, declaration: Declaration) -> Result<Applied, AdminError> {
        if writer != self.writer {
            return refused(Refusal::StaleWriter, "stale");
        }
        let Declaration { owner, kind, name, spec } = declaration;
        let owner_name = format!("{}/{}/{}", owner.cluster, owner.namespace, owner.object);
        let new = Entry {
            owner: owner_name.clone(),
            spec: spec.clone(),
            uid: owner.uid,
            generation: owner.generation,
            changes: 1,
            orphaned: false,
            messages: 0,
        };
        let (outcome, drifted) = match self.entries.get(&(kind, name.clone())) {
            None => (Outcome::Created, false),
            Some(old) if old.owner != owner_name && !old.orphaned => {
                return refused(Refusal::NameConflict, &format!("declared by {}", old.owner));
            }
            Some(old) if shards(&old.spec) != shards(&spec) => {
                return refused(Refusal::ImmutableMismatch, "shards is stored as another number");
            }
            Some(old) if old.orphaned => (Outcome::Adopted, false),
            Some(old) if old.spec == spec => (Outcome::Unchanged, false),
            Some(old) => (Outcome::Updated, old.uid == new.uid && old.generation == new.generation),
        };
        let old = self.entries.get(&(kind, name.clone()));
        let (changes, messages) = old.map_or((1, 0), |old| (old.changes + 1, old.messages));
        self.entries.insert((kind, name), Entry { changes, messages, ..new });
        let state = self.state.clone();
        Ok(Applied { outcome, drifted, changed: Vec::new(), generation: changes, hash: spec, state })
    }

    fn release(
        &mut self,
        writer: u64,
        declaration: &Declaration,
        policy: Policy,
    ) -> Result<Released, AdminError> {
        if writer != self.writer {
            return refused(Refusal::StaleWriter, "stale");
        }
        let key = (declaration.kind, declaration.name.clone());
        let owner = &declaration.owner;
        let owner = format!("{}/{}/{}", owner.cluster, owner.namespace, owner.object);
        let Some(entry) = self.entries.get_mut(&key) else { return Ok(Released::Missing) };
        if entry.owner != owner {
            return Ok(Released::NotOwned);
        }
        match policy {
            Policy::Retain => {
                entry.orphaned = true;
                Ok(Released::Kept)
            }
            Policy::Delete => {
                self.entries.remove(&key);
                Ok(Released::Deleted)
            }
        }
    }
}

fn shards(spec: &str) -> Value {
    serde_json::from_str::<Value>(spec).unwrap()["shards"].clone()
}

impl Admin for FakeAdmin {
    fn acquire_writer<'a>(&'a self, broker: &'a Broker, _: &'a str) -> Pending<'a, u64> {
        self.call(broker, "acquire".to_owned(), |broker| {
            broker.writer += 1;
            Ok(broker.writer)
        })
    }

    fn apply<'a>(
        &'a self,
        broker: &'a Broker,
        writer: u64,
        declaration: &'a Declaration,
    ) -> Pending<'a, Applied> {
        let declaration = declaration.clone();
        let what = format!("apply {}", declaration.name);
        self.call(broker, what, move |broker| broker.apply(writer, declaration))
    }

    fn release<'a>(
        &'a self,
        broker: &'a Broker,
        writer: u64,
        declaration: &'a Declaration,
        policy: Policy,
    ) -> Pending<'a, Released> {
        let declaration = declaration.clone();
        let what = format!("release {}", declaration.name);
        self.call(broker, what, move |broker| broker.release(writer, &declaration, policy))
    }

    fn list<'a>(&'a self, broker: &'a Broker, _: &'a str) -> Pending<'a, Page> {
        self.call(broker, "list".to_owned(), |_| Ok(Page::default()))
    }

    fn watch<'a>(&'a self, broker: &'a Broker) -> Pending<'a, Changes> {
        self.call(broker, "watch".to_owned(), |_| {
            let began = stream::iter([Ok(Told::Reload)]);
            Ok(Box::pin(began.chain(stream::pending())) as Changes)
        })
    }
}

/// Leads, or not.
#[derive(Debug)]
pub(crate) struct FakeLeadership(pub(crate) Mutex<bool>);

impl Leadership for FakeLeadership {
    fn confirm(&self) -> Pin<Box<dyn Future<Output = bool> + Send + '_>> {
        let leads = *self.0.lock();
        Box::pin(std::future::ready(leads))
    }
}

/// What controllers share, with an API server and Brokers that are not real.
pub(crate) fn context(
    client: Client,
    admin: Arc<FakeAdmin>,
    leadership: Arc<FakeLeadership>,
) -> Arc<Context> {
    let metrics = Arc::new(Metrics::new());
    let clock = Clock::simulated(Timestamp::from_micros(1_700_000_000_000_000));
    let links = Links::new(admin, leadership, "default".to_owned(), 2, metrics.clone(), clock);
    let reporter = Reporter { controller: "weir-operator".to_owned(), instance: Some("test".to_owned()) };
    Arc::new(Context {
        recorder: Recorder::new(client.clone(), reporter),
        client,
        metrics,
        links: Arc::new(links),
        known: RwLock::default(),
        cluster: "default".to_owned(),
        resync: Duration::from_secs(300),
        clock,
        seed: Seed::fixed(1),
    })
}

/// A cluster in memory: the Broker `city/main`, and MessageQueues of the namespace `city`.
pub(super) struct World {
    pub(super) server: Arc<Mutex<Server>>,
    pub(super) admin: Arc<FakeAdmin>,
    pub(super) leadership: Arc<FakeLeadership>,
    pub(super) context: Arc<Context>,
    objects: Arc<Objects<MessageQueue>>,
}

impl World {
    /// With the Broker `city/main`, which answers.
    pub(super) fn new() -> Self {
        let mut world = Self::empty();
        world.add_broker("main");
        world
    }

    /// Without Brokers.
    pub(super) fn empty() -> Self {
        let server = Arc::new(Mutex::new(Server::default()));
        let backend = server.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let server = backend.clone();
            async move {
                let (parts, body) = request.into_parts();
                let body = body.collect_bytes().await.unwrap();
                let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
                let (code, answer) = server.lock().answer(&parts.method, parts.uri.path(), &body);
                let answer = Body::from(serde_json::to_vec(&answer).unwrap());
                Ok::<_, Infallible>(Response::builder().status(code).body(answer).unwrap())
            }
        });
        let client = Client::new(service, "city");
        let admin = Arc::new(FakeAdmin::default());
        let leadership = Arc::new(FakeLeadership(Mutex::new(true)));
        let context = context(client, admin.clone(), leadership.clone());
        let objects = Arc::new(Objects::new(context.clone()));
        Self { server, admin, leadership, context, objects }
    }

    /// Adds the Broker `city/<name>`, which answers.
    pub(super) fn add_broker(&mut self, name: &str) -> Arc<Link> {
        let broker = json!({
            "apiVersion": "weir.dev/v1alpha1",
            "kind": "Broker",
            "metadata": { "name": name, "namespace": "city", "uid": format!("broker-{name}"), "generation": 1 },
            "spec": { "store": { "embedded": { "storage": "1Gi" } } },
        });
        let broker: Arc<Broker> = Arc::new(serde_json::from_value(broker).unwrap());
        self.admin.add(&format!("city/{name}"));
        let mut brokers = self.context.brokers().to_vec();
        brokers.push(broker.clone());
        self.context.known.write().brokers = brokers.into();
        let (link, _) = self.context.links.open(&broker);
        link.set_up();
        link
    }

    /// The Broker object is deleted.
    pub(super) fn remove_brokers(&self) {
        for id in self.context.links.ids() {
            self.context.links.close(&id);
        }
        self.context.known.write().brokers = Arc::new([]);
    }

    /// What the Broker `main` has.
    pub(super) fn at_broker<T>(&self, look: impl FnOnce(&mut FakeBroker) -> T) -> T {
        look(self.admin.0.lock().get_mut("city/main").unwrap())
    }

    /// A person applies a MessageQueue.
    pub(super) fn apply(&self, name: &str, spec: Value) {
        let mut server = self.server.lock();
        let uid = format!("uid-{name}-{}", server.requests.len());
        let object = server.objects.entry(format!("city/{name}")).or_insert_with(|| {
            json!({
                "apiVersion": "weir.dev/v1alpha1",
                "kind": "MessageQueue",
                "metadata": {
                    "name": name, "namespace": "city", "uid": uid, "generation": 0, "resourceVersion": "1",
                },
            })
        });
        object["spec"] = spec;
        let generation = object["metadata"]["generation"].as_i64().unwrap();
        object["metadata"]["generation"] = json!(generation + 1);
    }

    /// A person sets an annotation.
    pub(super) fn annotate(&self, name: &str, annotation: &str) {
        let mut server = self.server.lock();
        let object = server.objects.get_mut(&format!("city/{name}")).unwrap();
        object["metadata"]["annotations"][annotation] = json!("true");
    }

    /// A person deletes it.
    pub(super) fn delete(&self, name: &str) {
        let mut server = self.server.lock();
        let object = server.objects.get_mut(&format!("city/{name}")).unwrap();
        object["metadata"]["deletionTimestamp"] = json!(wall(self.context.clock).to_string());
    }

    /// The object as the API server has it.
    pub(super) fn get(&self, name: &str) -> Option<DeserializeGuard<MessageQueue>> {
        let object = self.server.lock().objects.get(&format!("city/{name}")).cloned()?;
        Some(serde_json::from_value(object).unwrap())
    }

    /// What is said of it.
    pub(super) fn status(&self, name: &str) -> ObjectStatus {
        let object = self.server.lock().objects[&format!("city/{name}")].clone();
        serde_json::from_value(object["status"].clone()).unwrap_or_default()
    }

    /// Its condition `Ready`: status and reason.
    pub(super) fn ready(&self, name: &str) -> (String, String) {
        let conditions = self.status(name).conditions;
        let ready = conditions.iter().find(|condition| condition.type_ == "Ready").unwrap();
        (ready.status.clone(), ready.reason.clone())
    }

    /// Whether the condition holds.
    pub(super) fn holds(&self, name: &str, type_: &str) -> bool {
        let conditions = self.status(name).conditions;
        conditions.iter().any(|condition| condition.type_ == type_ && condition.status == "True")
    }

    /// One reconciliation of the object as it is now.
    pub(super) async fn reconcile(&self, name: &str) -> Result<(), Error> {
        let Some(object) = self.get(name) else { return Ok(()) };
        self.reconcile_object(object).await
    }

    /// One reconciliation of an object as it was seen.
    pub(super) async fn reconcile_object(&self, object: DeserializeGuard<MessageQueue>) -> Result<(), Error> {
        let metadata: &ObjectMeta = kube::Resource::meta(&object);
        let urgency = if metadata.deletion_timestamp.is_some() { Urgency::Dying } else { Urgency::Living };
        let object = Arc::new(object);
        let ended = reconcile(object.clone(), self.objects.clone(), urgency).await;
        if let Err(error) = &ended {
            again_after(&object, error, &self.objects);
        }
        ended.map(drop)
    }

    /// What the API server was asked since the last time, events apart.
    pub(super) fn requests(&self) -> Vec<String> {
        std::mem::take(&mut self.server.lock().requests)
    }

    /// The events since the last time.
    pub(super) fn events(&self) -> Vec<String> {
        std::mem::take(&mut self.server.lock().events)
    }

    /// The calls of the Broker `main` since the last time.
    pub(super) fn calls(&self) -> Vec<String> {
        self.at_broker(|broker| std::mem::take(&mut broker.calls))
    }
}
