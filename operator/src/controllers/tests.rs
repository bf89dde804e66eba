//! Watches and workers, against an API server in memory.

use std::time::Duration;

use http::{Request, Response};
use kube::Client;
use kube::client::Body;
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::*;
use crate::object::tests::server::{self, FakeAdmin, FakeLeadership};

/// More than wait for the workers at once, fewer than twice as many.
const OBJECTS: usize = WOKEN_MAX * 3 / 4;

fn list(kind: &str, items: &[Value]) -> Value {
    json!({
        "apiVersion": "weir.dev/v1alpha1", "kind": format!("{kind}List"),
        "metadata": { "resourceVersion": "1" }, "items": items,
    })
}

fn queue(name: &str, broker: &str) -> Value {
    json!({
        "apiVersion": "weir.dev/v1alpha1", "kind": "MessageQueue",
        "metadata": {
            "name": name, "namespace": "city", "uid": name, "resourceVersion": "1", "finalizers": ["weir.dev/release"],
        },
        "spec": { "topicFilter": "a/#", "brokerRef": { "name": broker } },
    })
}

/// An API server with these queues and Brokers, of which it tells later; what is written to it is counted.
fn api_server(queues: Vec<Value>, brokers: &[&str], written: Arc<Mutex<usize>>) -> Client {
    let broker = |name: &&str| {
        json!({
            "apiVersion": "weir.dev/v1alpha1", "kind": "Broker",
            "metadata": { "name": name, "namespace": "city", "uid": name, "resourceVersion": "1" },
            "spec": if *name == "unreadable" { json!(7) } else { json!({ "store": { "embedded": { "storage": "1Gi" } } }) },
        })
    };
    let brokers: Vec<Value> = brokers.iter().map(broker).collect();
    let service = tower::service_fn(move |request: Request<Body>| {
        let (queues, brokers, written) = (queues.clone(), brokers.clone(), written.clone());
        async move {
            let (path, query) = (request.uri().path(), request.uri().query().unwrap_or_default());
            let answer = match path.rsplit('/').next().unwrap() {
                _ if query.contains("watch=true") => std::future::pending().await,
                _ if path.contains("/namespaces/forbidden/") => {
                    let no = json!({ "kind": "Status", "status": "Failure", "code": 403, "message": "no", "reason": "Forbidden" });
                    let answer = Response::builder().status(403);
                    return answer.body(Body::from(no.to_string().into_bytes()));
                }
                "messagequeues" => list("MessageQueue", &queues),
                "streams" => list("Stream", &[]),
                "brokers" => {
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    list("Broker", &brokers)
                }
                _ => {
                    *written.lock() += 1;
                    queues[0].clone()
                }
            };
            Response::builder().body(Body::from(answer.to_string().into_bytes()))
        }
    });
    Client::new(service, "default")
}

#[tokio::test(start_paused = true)]
async fn objects_that_were_there_before_their_broker_was_known_are_worked_on() {
    let written = Arc::new(Mutex::new(0));
    let leadership = Arc::new(FakeLeadership(Mutex::new(true)));
    let admin = Arc::new(FakeAdmin::default());
    admin.add("city/main");
    let queues = (0..OBJECTS).map(|n| queue(&format!("q{n}"), "main")).collect();
    let client = api_server(queues, &["main"], written.clone());
    let context = server::context(client, admin.clone(), leadership);
    let tasks = Tasks::default();
    start(&context, &[None], 4, admin, &tasks);
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert!(*written.lock() >= OBJECTS, "{} of {OBJECTS}", written.lock());
    tasks.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_namespace_that_may_not_be_read_and_a_broker_that_cannot_be_hold_up_no_others() {
    let admin = Arc::new(FakeAdmin::default());
    admin.add("city/main");
    let leadership = Arc::new(FakeLeadership(Mutex::new(true)));
    let mut dying = queue("dying", "unreadable");
    dying["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    let written = Arc::new(Mutex::new(0));
    let queues = vec![queue("living", "main"), dying];
    let client = api_server(queues, &["main", "unreadable"], written);
    let context = server::context(client, admin.clone(), leadership);
    let tasks = Tasks::default();
    let scopes = ["city", "forbidden"].map(|namespace| Some(namespace.to_owned()));
    start(&context, &scopes, 4, admin.clone(), &tasks);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(admin.calls("city/main").contains(&"apply living".to_owned()), "{:?}", admin.calls("city/main"));
    let known = context.known();
    let unknown: Vec<_> =
        known.unknown.iter().map(|one| (one.namespace.as_str(), one.name.as_deref())).collect();
    assert_eq!(unknown, [("city", Some("unreadable")), ("forbidden", None)]);
    assert!(context.metrics.encode().contains("weir_operator_brokers_unknown 2\n"));
    tasks.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_broker_that_hangs_leaves_workers_for_others_and_for_what_is_deleted() {
    const WORKERS: u16 = 4;
    let mut queues: Vec<Value> = (0..OBJECTS).map(|n| queue(&format!("q{n}"), "main")).collect();
    let mut dying = queue("dying", "other");
    dying["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    queues.extend((0..OBJECTS).map(|n| {
        let mut stuck = queue(&format!("stuck{n}"), "main");
        stuck["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        stuck
    }));
    queues.extend([queue("living", "other"), dying]);

    let admin = Arc::new(FakeAdmin::default());
    admin.add("city/main");
    admin.add("city/other");
    let leadership = Arc::new(FakeLeadership(Mutex::new(true)));
    let client = api_server(queues, &["main", "other"], Arc::default());
    let context = server::context(client, admin.clone(), leadership);
    let tasks = Tasks::default();
    admin.hang("city/main");
    start(&context, &[None], WORKERS, admin.clone(), &tasks);
    tokio::time::sleep(Duration::from_secs(60)).await;
    let (calls, hung) = (admin.calls("city/other"), admin.calls("city/main"));
    assert!(calls.contains(&"apply living".to_owned()), "{calls:?}");
    assert!(calls.contains(&"release dying".to_owned()), "{calls:?}");
    assert!(hung.len() < 10, "all but a few of its objects wait: {hung:?}");
    tasks.cancel().cancel();
}
