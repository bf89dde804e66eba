//! A Broker is reconciled for real, against an API server in memory.

use std::collections::BTreeMap;
use std::convert::Infallible;

use http::{Method, Request, Response, StatusCode};
use kube::client::Body;
use parking_lot::Mutex;

use super::desired::BROKER_LABEL;
use super::*;
use crate::object::tests::server::{self, FakeAdmin, FakeLeadership};

const PLAIN: &str = "/apis/apps/v1/namespaces/messaging/deployments/main";

/// What the API server has, by path, and was asked, events apart.
#[derive(Default)]
struct Server {
    objects: BTreeMap<String, Value>,
    requests: Vec<String>,
    events: Vec<String>,
    /// The next request of this method is answered so.
    failure: Option<(Method, StatusCode)>,
}

impl Server {
    fn answer(&mut self, method: &Method, path: &str, body: Value) -> (StatusCode, Value) {
        if path.contains("/events") {
            let text = |field: &str| body[field].as_str().unwrap().to_owned();
            self.events.push(format!("{} {}", text("reason"), text("note")));
            return (StatusCode::CREATED, body);
        }
        self.requests.push(format!("{method} {}", path.rsplit("/messaging/").next().unwrap()));
        if let Some((_, code)) = self.failure.take_if(|(failing, _)| failing == method) {
            return (code, status(code));
        }
        if *method == Method::POST {
            let path = format!("{path}/{}", body["metadata"]["name"].as_str().unwrap());
            self.objects.insert(path, body.clone());
            return (StatusCode::CREATED, body);
        }
        let is_status = path.ends_with("/status");
        let path = path.trim_end_matches("/status");
        let is_there = self.objects.contains_key(path);
        match (method, is_there) {
            (&Method::GET, true) => (StatusCode::OK, self.objects[path].clone()),
            (&Method::PATCH, true) if is_status => {
                let object = self.objects.get_mut(path).unwrap();
                object["status"] = body["status"].clone();
                (StatusCode::OK, object.clone())
            }
            (&Method::PATCH, _) if !is_status => {
                let object = self.objects.entry(path.to_owned()).or_insert_with(|| json!({}));
                // As a server does, it keeps what it adds itself.
                let generation = object["metadata"]["generation"].as_i64().unwrap_or(0);
                let was = object["status"].clone();
                *object = body;
                object["metadata"]["generation"] = json!(generation + 1);
                object["metadata"]["resourceVersion"] = json!((generation + 1).to_string());
                if !was.is_null() {
                    object["status"] = was;
                }
                (StatusCode::OK, object.clone())
            }
            (&(Method::GET | Method::PATCH), _) => (StatusCode::NOT_FOUND, status(StatusCode::NOT_FOUND)),
            other => panic!("unexpected request {other:?} {path}"),
        }
    }
}

fn status(code: StatusCode) -> Value {
    let reason = match code {
        StatusCode::NOT_FOUND => "NotFound",
        StatusCode::CONFLICT => "Conflict",
        _ => "InternalError",
    };
    json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": reason, "reason": reason, "code": code.as_u16(),
    })
}

/// A cluster with the Broker `messaging/main`.
struct World {
    server: Arc<Mutex<Server>>,
    brokers: Arc<Brokers>,
}

const BROKER: &str = "/apis/weir.dev/v1alpha1/namespaces/messaging/brokers/main";

impl World {
    fn new(spec: Value) -> Self {
        let server = Arc::new(Mutex::new(Server::default()));
        let backend = server.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let server = backend.clone();
            async move {
                let (parts, body) = request.into_parts();
                let body = body.collect_bytes().await.unwrap();
                let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
                let (code, answer) = server.lock().answer(&parts.method, parts.uri.path(), body);
                let answer = Body::from(serde_json::to_vec(&answer).unwrap());
                Ok::<_, Infallible>(Response::builder().status(code).body(answer).unwrap())
            }
        });
        let client = Client::new(service, "messaging");
        let leadership = Arc::new(FakeLeadership(Mutex::new(true)));
        let context = server::context(client, Arc::new(FakeAdmin::default()), leadership);
        let broker = json!({
            "apiVersion": "weir.dev/v1alpha1", "kind": "Broker", "spec": spec,
            "metadata": { "name": "main", "namespace": "messaging", "uid": "u1", "generation": 1 },
        });
        server.lock().objects.insert(BROKER.to_owned(), broker);
        let backoffs = Backoffs::new(RETRY.0, RETRY.1, context.clock, context.seed.fork("brokers"));
        Self { server, brokers: Arc::new(Brokers { context, image: "weir:0.1.0".to_owned(), backoffs }) }
    }

    /// With a store server, and so with all that pods with peers need.
    fn plain() -> Self {
        Self::new(json!({ "replicas": 2, "store": { "remote": { "address": "store:4600" } } }))
    }

    fn broker(&self) -> Arc<DeserializeGuard<Broker>> {
        Arc::new(serde_json::from_value(self.server.lock().objects[BROKER].clone()).unwrap())
    }

    fn status(&self) -> BrokerStatus {
        serde_json::from_value(self.server.lock().objects[BROKER]["status"].clone()).unwrap()
    }

    /// One reconciliation of the Broker as it is, as the controller does it.
    async fn reconcile(&self) -> (Result<(), String>, Action) {
        let broker = self.broker();
        match reconcile(broker.clone(), self.brokers.clone()).await {
            Ok(action) => (Ok(()), action),
            Err(error) => (Err(error.label().to_owned()), again(broker, &error, self.brokers.clone())),
        }
    }

    fn put(&self, path: &str, object: Value) {
        self.server.lock().objects.insert(path.to_owned(), object);
    }

    fn object(&self, path: &str) -> Option<Value> {
        self.server.lock().objects.get(path).cloned()
    }

    fn change(&self, path: &str, change: impl FnOnce(&mut Value)) {
        change(self.server.lock().objects.get_mut(path).unwrap());
    }

    fn requests(&self) -> Vec<String> {
        std::mem::take(&mut self.server.lock().requests)
    }

    fn events(&self) -> Vec<String> {
        std::mem::take(&mut self.server.lock().events)
    }

    /// Statuses of `Ready`, `Reconciling` and `Stalled`, and the reason and message of the first.
    fn conditions(&self) -> (String, String, String) {
        let status = self.status();
        let of = |type_: &str| status.conditions.iter().find(|c| c.type_ == type_).unwrap().clone();
        let flags = ["Ready", "Reconciling", "Stalled"].map(|type_| of(type_).status).join(" ");
        (flags, of("Ready").reason, of("Ready").message)
    }
}

fn writes(requests: &[String]) -> Vec<&str> {
    requests.iter().filter(|request| !request.starts_with("GET")).map(String::as_str).collect()
}

#[tokio::test]
async fn objects_are_made_once_and_then_looked_at_only() {
    let world = World::plain();
    let (ended, action) = world.reconcile().await;
    assert_eq!(ended, Ok(()));
    assert!(is_at_leisure(&action), "{action:?}");
    let made = world.requests();
    assert_eq!(
        writes(&made),
        [
            "POST secrets",
            "PATCH serviceaccounts/main",
            "PATCH configmaps/main-config",
            "PATCH services/main",
            "PATCH services/main-admin",
            "PATCH poddisruptionbudgets/main",
            "PATCH networkpolicies/main",
            "PATCH deployments/main",
            "PATCH brokers/main/status",
        ]
    );
    assert_eq!(
        world.events(),
        [
            "Created ServiceAccount main",
            "Created ConfigMap main-config",
            "Created Service main",
            "Created Service main-admin",
            "Created PodDisruptionBudget main",
            "Created NetworkPolicy main",
            "Created Deployment main",
        ]
    );
    assert_eq!(world.conditions().0, "False True False");
    // Each is read once; nothing is written, and so nothing wakes the controller again.
    assert_eq!(world.reconcile().await.0, Ok(()));
    let asked = world.requests();
    assert_eq!(writes(&asked), Vec::<&str>::new());
    assert_eq!(asked.len(), 8, "{asked:?}");
    assert_eq!(world.events(), Vec::<String>::new());
}

/// Whether it is looked at again, and not soon.
fn is_at_leisure(action: &Action) -> bool {
    ![Action::await_change(), Action::requeue(MISSING)].contains(action)
}

#[tokio::test]
async fn what_somebody_changes_is_set_back_by_one_write() {
    let world = World::plain();
    world.reconcile().await.0.unwrap();
    world.requests();
    world.events();
    world.change(PLAIN, |deployment| deployment["spec"]["replicas"] = json!(7));
    world.reconcile().await.0.unwrap();
    assert_eq!(writes(&world.requests()), ["PATCH deployments/main"]);
    assert_eq!(world.events(), ["Updated Deployment main"]);
    assert_eq!(world.object(PLAIN).unwrap()["spec"]["replicas"], json!(2));
    // What is gone is made.
    world.server.lock().objects.remove("/api/v1/namespaces/messaging/services/main");
    world.reconcile().await.0.unwrap();
    assert_eq!(writes(&world.requests()), ["PATCH services/main"]);
    assert_eq!(world.events(), ["Created Service main"]);
}

#[tokio::test]
async fn what_is_declared_no_more_goes() {
    let world = World::plain();
    world.change(BROKER, |broker| broker["spec"]["pods"] = json!({ "nodeSelector": { "disk": "fast" } }));
    world.reconcile().await.0.unwrap();
    let selector =
        |world: &World| world.object(PLAIN).unwrap()["spec"]["template"]["spec"]["nodeSelector"].clone();
    assert_eq!(selector(&world), json!({ "disk": "fast" }));
    world.requests();
    world.change(BROKER, |broker| _ = broker["spec"].as_object_mut().unwrap().remove("pods"));
    world.reconcile().await.0.unwrap();
    assert_eq!(writes(&world.requests()), ["PATCH deployments/main"]);
    assert_eq!(selector(&world), Value::Null);
}

#[tokio::test]
async fn what_the_api_server_refuses_is_said_of_the_broker() {
    for (code, expected) in [
        (StatusCode::UNPROCESSABLE_ENTITY, ("False False True", "ApplyFailed")),
        (StatusCode::FORBIDDEN, ("False True False", "ApplyFailed")),
    ] {
        let world = World::plain();
        world.server.lock().failure = Some((Method::PATCH, code));
        let (ended, again) = world.reconcile().await;
        assert_eq!(ended, Err("kube_error".to_owned()));
        assert_ne!(again, Action::await_change(), "it is tried again");
        let (flags, reason, message) = world.conditions();
        assert_eq!((flags.as_str(), reason.as_str()), expected);
        assert!(message.starts_with("the API server refuses the "), "{message}");
    }
}

#[tokio::test]
async fn a_broker_that_cannot_be_read_says_so_and_holds_up_no_other() {
    let world = World::plain();
    world.reconcile().await.0.unwrap();
    world.change(BROKER, |broker| broker["spec"]["replicas"] = json!("two"));
    world.requests();
    assert_eq!(world.reconcile().await, (Ok(()), Action::await_change()));
    let (flags, reason, message) = world.conditions();
    assert_eq!((flags.as_str(), reason.as_str()), ("False False True", "Invalid"));
    assert!(message.starts_with("edit the Broker: "), "{message}");
    assert_eq!(world.requests(), ["GET brokers/main", "PATCH brokers/main/status"]);
    assert_eq!(world.reconcile().await, (Ok(()), Action::await_change()));
    assert_eq!(world.requests(), ["GET brokers/main"], "said already");
}

#[tokio::test]
async fn the_token_is_made_once() {
    let world = World::plain();
    let path = "/api/v1/namespaces/messaging/secrets/main-internal";
    world.reconcile().await.0.unwrap();
    let first = world.object(path).unwrap();
    assert_eq!(first["metadata"]["ownerReferences"][0]["uid"], "u1");
    world.reconcile().await.0.unwrap();
    assert_eq!(world.object(path).unwrap(), first);
    // Another has made it between the look and the write: whose it is, is looked at again.
    world.server.lock().objects.remove(path);
    world.server.lock().failure = Some((Method::POST, StatusCode::CONFLICT));
    assert_eq!(world.reconcile().await.0, Err("conflict".to_owned()));
}

/// Objects of others with a name that a Broker needs.
#[tokio::test]
async fn what_others_have_made_is_not_overwritten() {
    let paths = [
        "/api/v1/namespaces/messaging/secrets/main-internal",
        "/api/v1/namespaces/messaging/serviceaccounts/main",
        "/api/v1/namespaces/messaging/configmaps/main-config",
        "/api/v1/namespaces/messaging/services/main",
        "/apis/networking.k8s.io/v1/namespaces/messaging/networkpolicies/main",
        PLAIN,
    ];
    let owner = |kind: &str, group: &str, name: &str, uid: &str| json!([{ "apiVersion": group, "kind": kind, "name": name, "uid": uid, "controller": true }]);
    let ours = json!({ BROKER_LABEL: "main", "app.kubernetes.io/managed-by": "weir-operator" });
    for path in paths {
        for (labels, owners, flags, told) in [
            (json!({}), json!([]), "False False True", "was not made for this Broker"),
            (json!({ BROKER_LABEL: "main" }), json!([]), "False False True", "was not made for this Broker"),
            (
                ours.clone(),
                owner("Release", "example.com/v1", "main", "x"),
                "False False True",
                "the Release main",
            ),
            (
                ours.clone(),
                owner("Broker", "weir.dev/v1alpha1", "other", "x"),
                "False False True",
                "the Broker other",
            ),
            (
                ours.clone(),
                owner("Broker", "weir.dev/v1alpha1", "main", "u0"),
                "False True False",
                "an earlier Broker",
            ),
        ] {
            let world = World::plain();
            let name = path.rsplit('/').next().unwrap();
            let metadata = json!({
                "name": name, "namespace": "messaging", "labels": labels, "ownerReferences": owners,
            });
            let foreign = json!({ "metadata": metadata });
            world.put(path, foreign.clone());
            let (ended, action) = world.reconcile().await;
            assert_eq!((ended, action), (Ok(()), Action::requeue(MISSING)), "{path}");
            assert_eq!(world.object(path).unwrap(), foreign);
            let (is, reason, message) = world.conditions();
            assert_eq!((is.as_str(), reason.as_str()), (flags, "NameTaken"), "{path}");
            assert!(message.contains(told) && message.contains(&format!("messaging/{name}")), "{message}");
            world.requests();
            world.reconcile().await.0.unwrap();
            assert_eq!(writes(&world.requests()), Vec::<&str>::new(), "said once");
        }
    }
}

#[tokio::test]
async fn what_an_earlier_broker_left_is_taken_over() {
    let world = World::plain();
    let labels = json!({ BROKER_LABEL: "main", "app.kubernetes.io/managed-by": "weir-operator" });
    let metadata = json!({ "name": "main", "namespace": "messaging", "labels": labels });
    world.put(PLAIN, json!({ "metadata": metadata }));
    world.reconcile().await.0.unwrap();
    assert_eq!(world.object(PLAIN).unwrap()["metadata"]["ownerReferences"][0]["uid"], "u1");
    assert_eq!(world.events().last().map(String::as_str), Some("Updated Deployment main"));
}

#[tokio::test]
async fn failures_are_tried_again_later_and_later() {
    let world = World::plain();
    let mut waits = Vec::new();
    for (method, code, label) in [
        (Method::GET, StatusCode::INTERNAL_SERVER_ERROR, "kube_error"),
        (Method::PATCH, StatusCode::CONFLICT, "conflict"),
        (Method::POST, StatusCode::SERVICE_UNAVAILABLE, "kube_error"),
        (Method::PATCH, StatusCode::INTERNAL_SERVER_ERROR, "kube_error"),
    ] {
        world.server.lock().objects.retain(|path, _| path == BROKER);
        world.server.lock().failure = Some((method.clone(), code));
        let (ended, action) = world.reconcile().await;
        assert_eq!(ended, Err(label.to_owned()), "{method} {code}");
        waits.push(action);
    }
    let due = |failures| crate::backoff::delay(RETRY.0, RETRY.1, failures);
    assert!(due(1) < due(4) && due(40) == RETRY.1);
    assert_eq!(waits.iter().filter(|wait| **wait == Action::await_change()).count(), 0);
    // It goes on where it stopped, and forgets that it failed.
    world.reconcile().await.0.unwrap();
    assert!(world.object(PLAIN).is_some());
}

#[tokio::test]
async fn nothing_is_made_of_what_cannot_be_or_goes() {
    let both = World::new(json!({
        "replicas": 1, "store": { "remote": { "address": "a:1" }, "embedded": { "storage": "1Gi" } },
    }));
    assert_eq!(both.reconcile().await, (Ok(()), Action::await_change()));
    assert_eq!(both.requests(), ["GET deployments/main", "PATCH brokers/main/status"]);
    assert_eq!((both.conditions().0.as_str(), both.conditions().1.as_str()), ("False False True", "Invalid"));

    let edited = World::plain();
    edited.reconcile().await.0.unwrap();
    edited.change(PLAIN, |deployment| deployment["status"] = json!({ "replicas": 2, "readyReplicas": 2 }));
    edited.change(BROKER, |broker| broker["spec"]["store"]["embedded"] = json!({ "storage": "1Gi" }));
    assert_eq!(edited.reconcile().await, (Ok(()), Action::await_change()));
    assert_eq!(edited.conditions().1, "Invalid");
    let status = &edited.object(BROKER).unwrap()["status"];
    assert_eq!((&status["replicas"], &status["readyReplicas"]), (&json!(2), &json!(2)), "its pods go on");

    let dying = World::plain();
    dying.change(BROKER, |broker| broker["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z"));
    assert_eq!(dying.reconcile().await, (Ok(()), Action::await_change()));
    assert_eq!(dying.requests(), Vec::<String>::new());
}

#[tokio::test]
async fn a_secret_that_is_missing_is_named_and_looked_for() {
    let token =
        json!({ "address": "store:4600", "tokenSecretRef": { "name": "store-token", "key": "token" } });
    let world = World::new(json!({ "store": { "remote": token } }));
    assert_eq!(world.reconcile().await, (Ok(()), Action::requeue(MISSING)));
    let (flags, reason, message) = world.conditions();
    assert_eq!((flags.as_str(), reason.as_str()), ("False True False", "ReferenceMissing"));
    assert!(message.contains("messaging/store-token"), "{message}");
    let path = "/api/v1/namespaces/messaging/secrets/store-token";
    world.put(path, json!({ "metadata": { "name": "store-token" }, "data": { "other": "eA==" } }));
    world.reconcile().await.0.unwrap();
    assert!(world.conditions().2.contains("has no key token"));
    world.put(path, json!({ "metadata": { "name": "store-token" }, "data": { "token": "eA==" } }));
    let action = world.reconcile().await.1;
    assert!(is_at_leisure(&action), "{action:?}");
    assert_ne!(world.conditions().1, "ReferenceMissing");
}

#[tokio::test]
async fn each_key_of_the_certificates_of_pods_is_looked_for() {
    let remote = json!({ "remote": { "address": "store:4600" } });
    let world = World::new(json!({ "store": remote, "peerTls": { "secretRef": { "name": "pods" } } }));
    let path = "/api/v1/namespaces/messaging/secrets/pods";
    let mut data = json!({});
    world.reconcile().await.0.unwrap();
    assert!(world.conditions().2.contains("messaging/pods with the key tls.crt"));
    for (key, next) in [("tls.crt", Some("tls.key")), ("tls.key", Some("ca.crt")), ("ca.crt", None)] {
        data[key] = json!("eA==");
        world.put(path, json!({ "metadata": { "name": "pods" }, "data": data }));
        world.reconcile().await.0.unwrap();
        let (_, reason, message) = world.conditions();
        match next {
            Some(next) => assert!(message.contains(&format!("has no key {next}")), "{message}"),
            None => assert_eq!(reason, "Starting"),
        }
    }
}

/// Fewer pods is for the scaling, which drains them one by one.
#[tokio::test]
async fn pods_that_are_too_many_stay_and_those_that_lack_are_made() {
    for (there, expected) in [(None, 2), (Some(1), 2), (Some(3), 3), (Some(9), 9)] {
        let scaling = json!({ "minReplicas": 2, "maxReplicas": 4, "connectionsPerPod": 10 });
        let world =
            World::new(json!({ "scaling": scaling, "store": { "remote": { "address": "store:4600" } } }));
        if let Some(there) = there {
            world.reconcile().await.0.unwrap();
            world.change(PLAIN, |deployment| deployment["spec"]["replicas"] = json!(there));
        }
        world.reconcile().await.0.unwrap();
        assert_eq!(world.object(PLAIN).unwrap()["spec"]["replicas"], expected, "{there:?}");
    }
}

/// What the Deployment says, and what is said of the Broker.
#[tokio::test]
async fn the_status_follows_the_deployment() {
    let failed = json!([{ "type": "ReplicaFailure", "status": "True", "message": "quota" }]);
    let stuck = json!([{ "type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded" }]);
    for (wanted, status, flags, reason, told) in [
        (2, json!({}), "False True False", "Starting", "has changed"),
        (2, json!({ "observedGeneration": 0 }), "False True False", "Starting", "has changed"),
        (0, json!({ "observedGeneration": 1 }), "False True False", "ScaledToZero", "spec.replicas"),
        (
            2,
            json!({ "observedGeneration": 1, "conditions": failed }),
            "False True False",
            "PodsNotReady",
            "quota",
        ),
        (
            2,
            json!({ "observedGeneration": 1, "replicas": 2, "updatedReplicas": 2, "conditions": stuck }),
            "False True False",
            "PodsNotReady",
            "ProgressDeadlineExceeded",
        ),
        (
            2,
            json!({ "observedGeneration": 1, "replicas": 3, "updatedReplicas": 1, "readyReplicas": 2 }),
            "False True False",
            "RollingOut",
            "1 of 2",
        ),
        (
            2,
            json!({ "observedGeneration": 1, "replicas": 2, "updatedReplicas": 2, "readyReplicas": 1 }),
            "False True False",
            "PodsNotReady",
            "nothing says who may connect",
        ),
        (
            2,
            json!({ "observedGeneration": 1, "replicas": 2, "updatedReplicas": 2, "readyReplicas": 2 }),
            "True False False",
            "Ready",
            "2 of 2 pods",
        ),
    ] {
        let spec = json!({ "replicas": wanted, "store": { "remote": { "address": "store:4600" } } });
        let world = World::new(spec);
        world.reconcile().await.0.unwrap();
        world.change(PLAIN, |deployment| deployment["status"] = status.clone());
        world.reconcile().await.0.unwrap();
        let (is, word, message) = world.conditions();
        assert_eq!((is.as_str(), word.as_str()), (flags, reason), "{status}");
        assert!(message.contains(told), "{status}: {message}");
        let said = world.status();
        let ready = status["readyReplicas"].as_i64().unwrap_or(0);
        assert_eq!(said.pods.as_deref(), Some(format!("{ready}/{wanted}").as_str()));
        assert_eq!(said.observed_generation, Some(1));
        world.requests();
        world.reconcile().await.0.unwrap();
        assert_eq!(writes(&world.requests()), Vec::<&str>::new(), "{status}: said once");
    }
}

#[test]
fn what_others_add_is_left_alone_and_what_they_change_is_not() {
    let wanted = json!({ "spec": { "replicas": 2, "list": [{ "name": "a" }], "none": null } });
    for (is, expected) in [
        (json!({ "spec": { "replicas": 2, "list": [{ "name": "a", "protocol": "TCP" }], "more": 1 } }), true),
        (json!({ "spec": { "replicas": 3, "list": [{ "name": "a" }] } }), false),
        (json!({ "spec": { "replicas": 2, "list": [{ "name": "a" }, { "name": "b" }] } }), false),
        (json!({ "spec": { "replicas": 2 } }), false),
        (json!({ "spec": { "replicas": 2, "list": [{ "name": "a" }], "none": 1 } }), false),
    ] {
        assert_eq!(holds(&is, &wanted), expected, "{is}");
    }
}
