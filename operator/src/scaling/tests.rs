//! The whole loop: an API server that holds one Broker's Deployment and pods, and a broker that says what they have to do.

use std::collections::BTreeMap;
use std::convert::Infallible;

use http::{Method, Request, Response, StatusCode};
use kube::Client;
use kube::client::Body;
use kube::runtime::events::{Recorder, Reporter};
use parking_lot::RwLock;
use serde_json::Value;
use weir_env::clock::{Clock, Timestamp as At};
use weir_env::seed::Seed;

use super::*;
use crate::brokers::{Admin, AdminError, Known, Links};
use crate::brokers::{Applied, Changes, Declaration, Page, Pending as Answer, Policy, Released};
use crate::leader::Alone;
use crate::metrics::Metrics;

const LOOK: Duration = Duration::from_secs(15);

/// What Kubernetes and the broker have.
#[derive(Default)]
struct World {
    replicas: u64,
    version: u64,
    /// By name: its number, and the annotations.
    pods: BTreeMap<String, (u64, BTreeMap<String, String>)>,
    made: u64,
    /// Pods that are not what was declared last.
    old: usize,
    autoscaler: Option<&'static str>,
    /// Thousandths of a processor that each pod uses.
    cpu_millis: u64,
    status: Value,
    events: Vec<String>,
    status_writes: usize,
    /// All clients, spread evenly over the pods that take them.
    clients: u64,
    draining: Vec<String>,
    drained: bool,
    silent: Option<String>,
    drains: usize,
    resumes: usize,
}

impl World {
    /// What the controllers of Kubernetes do: as many pods as there should be, the cheapest goes first.
    fn settle(&mut self) {
        let count = |world: &Self| u64::try_from(world.pods.len()).unwrap();
        while count(self) < self.replicas {
            self.made += 1;
            self.pods.insert(format!("main-{}", self.made), (self.made, BTreeMap::new()));
        }
        while count(self) > self.replicas {
            let cost = |annotations: &BTreeMap<String, String>| {
                annotations
                    .get("controller.kubernetes.io/pod-deletion-cost")
                    .map_or(0, |cost| cost.parse::<i64>().unwrap())
            };
            let first = self.pods.iter().min_by_key(|(_, (number, marks))| (cost(marks), u64::MAX - number));
            let first = first.unwrap().0.clone();
            self.pods.remove(&first);
            self.draining.retain(|pod| *pod != first);
        }
    }

    fn answer(&mut self, method: &Method, uri: &http::Uri, body: &Value) -> (StatusCode, Value) {
        let path = uri.path();
        match (method.as_str(), path) {
            (_, path) if path.ends_with("/events") || path.contains("/events/") => {
                self.events.push(body["reason"].as_str().unwrap().to_owned());
                (StatusCode::CREATED, body.clone())
            }
            ("GET", "/apis/autoscaling/v2/namespaces/mq/horizontalpodautoscalers") => {
                let item = |kind: &str| {
                    let group = if kind == "Broker" { "weir.dev/v1alpha1" } else { "apps/v1" };
                    let target = json!({ "apiVersion": group, "kind": kind, "name": "main" });
                    json!({ "metadata": { "name": "hpa" }, "spec": { "maxReplicas": 9, "scaleTargetRef": target } })
                };
                let items: Vec<Value> = self.autoscaler.iter().map(|kind| item(kind)).collect();
                (StatusCode::OK, json!({ "metadata": {}, "items": items }))
            }
            (verb, "/apis/apps/v1/namespaces/mq/deployments/main") => {
                if verb == "PATCH" {
                    assert_eq!(body["metadata"]["resourceVersion"], self.version.to_string());
                    self.replicas = body["spec"]["replicas"].as_u64().unwrap();
                    self.version += 1;
                }
                let metadata = json!({ "name": "main", "resourceVersion": self.version.to_string() });
                let spec = json!({ "replicas": self.replicas, "selector": {}, "template": {} });
                let updated = self.pods.len() - self.old;
                let status = json!({ "replicas": self.pods.len(), "updatedReplicas": updated });
                (StatusCode::OK, json!({ "metadata": metadata, "spec": spec, "status": status }))
            }
            ("GET", "/api/v1/namespaces/mq/pods") => {
                assert!(uri.query().unwrap().contains("weir.dev%2Fbroker%3Dmain"), "{uri}");
                let pods = self.pods.iter().map(|(name, (number, annotations))| {
                    json!({
                        "metadata": { "name": name, "annotations": annotations },
                        "status": { "podIP": format!("10.0.0.{number}") },
                    })
                });
                (StatusCode::OK, json!({ "metadata": {}, "items": pods.collect::<Vec<_>>() }))
            }
            ("PATCH", "/apis/weir.dev/v1alpha1/namespaces/mq/brokers/main/status") => {
                self.status = body["status"]["scaling"].clone();
                self.status_writes += 1;
                (StatusCode::OK, serde_json::to_value(broker(&json!({}))).unwrap())
            }
            ("PATCH", path) => {
                let pod = path.strip_prefix("/api/v1/namespaces/mq/pods/").unwrap();
                let annotations = &mut self.pods.get_mut(pod).unwrap().1;
                for (key, value) in body["metadata"]["annotations"].as_object().unwrap() {
                    match value.as_str() {
                        Some(value) => annotations.insert(key.clone(), value.to_owned()),
                        None => annotations.remove(key),
                    };
                }
                (StatusCode::OK, json!({ "metadata": { "name": pod } }))
            }
            (verb, path) => panic!("unexpected request {verb} {path}"),
        }
    }

    fn figures(&self) -> Vec<Figures> {
        let serving = self.pods.keys().filter(|name| !self.draining.contains(name)).count().max(1);
        let each = self.clients / u64::try_from(serving).unwrap();
        let said = self.pods.iter().filter(|(name, _)| self.silent.as_ref() != Some(*name));
        let said = said.map(|(name, (number, _))| {
            let is_draining = self.draining.contains(name);
            let connections = if is_draining { 0 } else { each };
            Figures {
                id: name.clone(),
                host: format!("10.0.0.{number}"),
                load: Load { connections, cpu_millis: self.cpu_millis, is_draining, ..Load::default() },
                is_drained: is_draining && self.drained,
                age_millis: 100,
            }
        });
        said.collect()
    }
}

struct TestAdmin(Arc<Mutex<World>>);

impl PodAdmin for TestAdmin {
    fn describe<'a>(&'a self, _: &'a Broker) -> pods::Pending<'a, Vec<Figures>> {
        Box::pin(async { Ok(self.0.lock().figures()) })
    }

    fn drain<'a>(&'a self, _: &'a Broker, id: &'a str) -> pods::Pending<'a, ()> {
        let mut world = self.0.lock();
        world.drains += 1;
        world.draining.push(id.to_owned());
        Box::pin(async { Ok(()) })
    }

    fn resume<'a>(&'a self, _: &'a Broker, id: &'a str) -> pods::Pending<'a, ()> {
        let mut world = self.0.lock();
        world.resumes += 1;
        world.draining.retain(|pod| pod != id);
        Box::pin(async { Ok(()) })
    }
}

/// Nobody asks it.
struct NoAdmin;

fn nobody<T>() -> Answer<'static, T> {
    Box::pin(async { Err(AdminError::Unavailable("nobody".to_owned())) })
}

impl Admin for NoAdmin {
    fn acquire_writer<'a>(&'a self, _: &'a Broker, _: &'a str) -> Answer<'a, u64> {
        nobody()
    }

    fn apply<'a>(&'a self, _: &'a Broker, _: u64, _: &'a Declaration) -> Answer<'a, Applied> {
        nobody()
    }

    fn release<'a>(&'a self, _: &'a Broker, _: u64, _: &'a Declaration, _: Policy) -> Answer<'a, Released> {
        nobody()
    }

    fn list<'a>(&'a self, _: &'a Broker, _: &'a str) -> Answer<'a, Page> {
        nobody()
    }

    fn watch<'a>(&'a self, _: &'a Broker) -> Answer<'a, Changes> {
        nobody()
    }
}

fn broker(scaling: &Value) -> Broker {
    let mut all = json!({ "maxReplicas": 9, "connectionsPerPod": 100 });
    for (field, value) in scaling.as_object().unwrap() {
        all[field] = value.clone();
    }
    serde_json::from_value(json!({
        "apiVersion": "weir.dev/v1alpha1", "kind": "Broker", "metadata": { "name": "main", "namespace": "mq" },
        "spec": {
            "store": { "remote": { "address": "a:1" } }, "scaling": all, "resources": { "requests": { "cpu": "1" } },
        },
    }))
    .unwrap()
}

struct Bench {
    world: Arc<Mutex<World>>,
    clock: Clock,
    scaler: Scaler,
}

impl Bench {
    fn new(replicas: u64, clients: u64, scaling: &Value) -> Self {
        let mut world = World { replicas, clients, ..World::default() };
        world.settle();
        let world = Arc::new(Mutex::new(world));
        let clock = Clock::simulated(At::from_micros(1_000_000_000_000_000));
        let scaler = scaler(&world, clock, scaling);
        Self { world, clock, scaler }
    }

    /// An operator that knows nothing of what was.
    fn restart(&mut self, scaling: &Value) {
        self.scaler = scaler(&self.world, self.clock, scaling);
    }

    async fn looks(&self, times: u32) {
        for _ in 0..times {
            self.scaler.look_at_all().await;
            self.world.lock().settle();
            tokio::time::advance(LOOK).await;
        }
    }

    /// Looks until there are so many pods, or for an hour.
    async fn until(&self, replicas: u64) {
        for _ in 0..240 {
            if self.world.lock().replicas == replicas {
                return;
            }
            self.looks(1).await;
        }
        panic!("{:?}", self.state());
    }

    fn state(&self) -> (u64, String) {
        let replicas = self.world.lock().replicas;
        (replicas, self.reason())
    }

    fn drains(&self) -> usize {
        self.world.lock().drains
    }

    fn reason(&self) -> String {
        self.world.lock().status["reason"].as_str().unwrap_or_default().to_owned()
    }
}

fn scaler(world: &Arc<Mutex<World>>, clock: Clock, scaling: &Value) -> Scaler {
    let server = world.clone();
    let service = tower::service_fn(move |request: Request<Body>| {
        let server = server.clone();
        async move {
            let (parts, body) = request.into_parts();
            let body = body.collect_bytes().await.unwrap();
            let body = serde_json::from_slice(&body).unwrap_or_default();
            let (code, answer) = server.lock().answer(&parts.method, &parts.uri, &body);
            let answer = Body::from(answer.to_string().into_bytes());
            Ok::<_, Infallible>(Response::builder().status(code).body(answer).unwrap())
        }
    });
    let client = Client::new(service, "mq");
    let metrics = Arc::new(Metrics::new());
    let links = Links::new(Arc::new(NoAdmin), Arc::new(Alone), "eu".to_owned(), 1, metrics.clone(), clock);
    let context = Context {
        recorder: Recorder::new(
            client.clone(),
            Reporter { controller: "weir-operator".into(), instance: None },
        ),
        client,
        metrics,
        links: Arc::new(links),
        known: RwLock::new(Known { brokers: Arc::new([Arc::new(broker(scaling))]), ..Known::default() }),
        cluster: "eu".to_owned(),
        resync: Duration::from_secs(300),
        clock,
        seed: Seed::fixed(1),
    };
    Scaler { context: Arc::new(context), admin: Arc::new(TestAdmin(world.clone())), kept: Mutex::default() }
}

#[tokio::test(start_paused = true)]
async fn more_load_brings_pods_at_once_and_less_has_them_go_one_by_one() {
    let bench = Bench::new(2, 450, &json!({}));
    bench.looks(1).await;
    assert_eq!(bench.state(), (5, "ScalingUp".to_owned()));
    bench.looks(2).await;
    assert_eq!(bench.reason(), "Steady");
    bench.world.lock().clients = 150;
    bench.world.lock().drained = true;
    for replicas in [4, 3, 2] {
        bench.until(replicas).await;
        bench.looks(1).await;
    }
    bench.looks(50).await;
    let world = bench.world.lock();
    assert_eq!((world.replicas, world.drains, world.resumes), (2, 3, 0));
    let events =
        ["ScaledUp", "ScalingDown", "ScaledDown", "ScalingDown", "ScaledDown", "ScalingDown", "ScaledDown"];
    assert_eq!(world.events, events, "each decision once");
    assert!(world.status_writes < 20, "{}", world.status_writes);
}

#[tokio::test(start_paused = true)]
async fn a_pod_goes_only_once_it_is_drained_also_if_the_operator_starts_anew() {
    let mut bench = Bench::new(3, 50, &json!({}));
    while bench.world.lock().draining.is_empty() {
        bench.looks(1).await;
    }
    let victim = bench.world.lock().draining[0].clone();
    bench.looks(5).await;
    assert_eq!(bench.state(), (3, "Draining".to_owned()));
    bench.restart(&json!({}));
    bench.looks(2).await;
    assert_eq!(bench.world.lock().replicas, 3);
    bench.world.lock().drained = true;
    bench.looks(1).await;
    let world = bench.world.lock();
    assert_eq!(world.replicas, 2);
    assert!(!world.pods.contains_key(&victim), "{victim} was to go");
    assert_eq!((world.drains, world.resumes), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_drain_is_called_off_when_pods_are_needed_or_it_never_ends() {
    for (clients, replicas) in [(290, 3), (900, 7)] {
        let bench = Bench::new(3, 50, &json!({}));
        while bench.world.lock().draining.is_empty() {
            bench.looks(1).await;
        }
        bench.world.lock().clients = clients;
        bench.looks(1).await;
        let world = bench.world.lock();
        assert_eq!((world.replicas, world.resumes, world.draining.len()), (replicas, 1, 0));
        assert!(world.pods.values().all(|(_, marks)| marks.is_empty()), "{:?}", world.pods);
    }
    let bench = Bench::new(3, 50, &json!({}));
    while bench.world.lock().resumes == 0 {
        bench.looks(1).await;
        assert_eq!(bench.world.lock().replicas, 3);
    }
    assert_eq!(bench.reason(), "DrainCalledOff");
}

#[tokio::test(start_paused = true)]
async fn others_that_move_the_pods_are_left_to_it() {
    for (kind, scaling) in [(Some("Deployment"), json!({})), (None, json!({ "connectionsPerPod": null }))] {
        let bench = Bench::new(2, 900, &scaling);
        bench.world.lock().autoscaler = kind;
        bench.looks(3).await;
        let expected = if kind.is_some() { "LeftToAutoscaler" } else { "NoTargets" };
        assert_eq!(bench.state(), (2, expected.to_owned()));
        assert_eq!(bench.world.lock().status_writes, 1);
    }
    // One that moves something else of that name moves nothing here, and one of the Broker finds no number to move.
    for kind in ["StatefulSet", "Broker"] {
        let bench = Bench::new(2, 900, &json!({}));
        bench.world.lock().autoscaler = Some(kind);
        bench.looks(1).await;
        assert_eq!(bench.world.lock().replicas, 6, "{kind}");
        let message = bench.world.lock().status["message"].to_string();
        assert_eq!(message.contains("does nothing beside spec.scaling"), kind == "Broker", "{message}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_is_drained_stays_when_the_load_is_to_move_pods_no_more() {
    let bench = Bench::new(3, 50, &json!({}));
    while bench.world.lock().draining.is_empty() {
        bench.looks(1).await;
    }
    let mut left = broker(&json!({}));
    (left.spec.scaling, left.spec.replicas) = (None, Some(3));
    bench.scaler.context.known.write().brokers = Arc::new([Arc::new(left)]);
    bench.looks(3).await;
    let world = bench.world.lock();
    assert_eq!((world.replicas, world.resumes, world.draining.len()), (3, 1, 0));
    assert!(world.pods.values().all(|(_, marks)| marks.is_empty()), "{:?}", world.pods);
    assert!(world.status.is_null(), "{}", world.status);
}

#[tokio::test(start_paused = true)]
async fn pods_above_the_most_there_may_be_go_one_by_one_without_a_wait() {
    for scaling in [json!({ "maxReplicas": 2 }), json!({ "maxReplicas": 2, "connectionsPerPod": null })] {
        let bench = Bench::new(4, 900, &scaling);
        bench.looks(3).await;
        assert_eq!((bench.state(), bench.drains()), ((4, "Draining".to_owned()), 1), "{scaling}");
        bench.world.lock().drained = true;
        bench.looks(8).await;
        let world = bench.world.lock();
        assert_eq!((world.replicas, world.drains, world.resumes), (2, 2, 0), "{scaling}");
        assert_eq!(world.events, ["ScalingDown", "ScaledDown", "ScalingDown", "ScaledDown"], "{scaling}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_drained_pod_that_is_only_not_taken_yet_is_not_called_back() {
    for scaling in [json!({ "maxReplicas": 2 }), json!({ "maxReplicas": 2, "connectionsPerPod": null })] {
        let bench = Bench::new(3, 190, &scaling);
        bench.world.lock().drained = true;
        bench.scaler.look_at_all().await;
        // Kubernetes is slow to take it.
        for _ in 0..3 {
            bench.scaler.look_at_all().await;
            let world = bench.world.lock();
            assert_eq!((world.replicas, world.pods.len(), world.resumes), (2, 3, 0), "{scaling}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn nobody_goes_while_pods_are_replaced() {
    let bench = Bench::new(3, 50, &json!({}));
    bench.world.lock().old = 1;
    bench.looks(100).await;
    assert_eq!((bench.state(), bench.drains()), ((3, "Waiting".to_owned()), 0));
    bench.world.lock().old = 0;
    bench.looks(1).await;
    assert_eq!(bench.drains(), 1);
    // A replacement that begins meanwhile holds the drained pod until it is over.
    bench.world.lock().old = 1;
    bench.world.lock().drained = true;
    bench.looks(5).await;
    assert_eq!(bench.state(), (3, "Draining".to_owned()));
    bench.world.lock().old = 0;
    bench.looks(1).await;
    assert_eq!(bench.world.lock().replicas, 2);
}

#[tokio::test(start_paused = true)]
async fn nobody_goes_while_a_pod_is_silent() {
    let bench = Bench::new(3, 50, &json!({}));
    bench.world.lock().silent = Some("main-2".to_owned());
    bench.looks(100).await;
    assert_eq!((bench.state(), bench.drains()), ((3, "FiguresMissing".to_owned()), 0));
    bench.world.lock().silent = None;
    bench.looks(5).await;
    assert_eq!(bench.drains(), 0, "fewer have to do for a while first");
}

#[tokio::test(start_paused = true)]
async fn processor_time_counts_in_percent_of_what_is_requested() {
    let scaling = json!({ "connectionsPerPod": null, "cpuPercent": 50 });
    let bench = Bench::new(2, 0, &scaling);
    bench.world.lock().cpu_millis = 500;
    bench.looks(100).await;
    assert_eq!((bench.state(), bench.drains()), ((2, "Steady".to_owned()), 0));
    bench.world.lock().cpu_millis = 1000;
    bench.looks(1).await;
    assert_eq!(bench.world.lock().replicas, 4);
}

#[tokio::test(start_paused = true)]
async fn load_that_goes_up_and_down_does_not_make_pods_come_and_go() {
    let bench = Bench::new(2, 150, &json!({}));
    bench.world.lock().drained = true;
    for look in 0..400 {
        bench.world.lock().clients = if look % 8 < 4 { 400 } else { 150 };
        bench.looks(1).await;
    }
    let world = bench.world.lock();
    assert_eq!((world.replicas, world.drains), (4, 0), "{:?}", world.events);
}
