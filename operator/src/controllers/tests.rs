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

/// An API server with these queues and one Broker, of which it tells later; what is written to it is counted.
fn api_server(written: Arc<Mutex<usize>>) -> Client {
    let queue = |n: usize| {
        json!({
            "apiVersion": "weir.dev/v1alpha1", "kind": "MessageQueue",
            "metadata": { "name": format!("q{n}"), "namespace": "city", "uid": n.to_string(), "resourceVersion": "1" },
            "spec": { "topicFilter": "a/#" },
        })
    };
    let queues: Vec<Value> = (0..OBJECTS).map(queue).collect();
    let broker = json!({
        "apiVersion": "weir.dev/v1alpha1", "kind": "Broker",
        "metadata": { "name": "main", "namespace": "city", "uid": "b", "resourceVersion": "1" },
        "spec": { "store": { "embedded": { "storage": "1Gi" } } },
    });
    let service = tower::service_fn(move |request: Request<Body>| {
        let (queues, broker, written) = (queues.clone(), broker.clone(), written.clone());
        async move {
            let (path, query) = (request.uri().path(), request.uri().query().unwrap_or_default());
            let answer = match path.rsplit('/').next().unwrap() {
                _ if query.contains("watch=true") => std::future::pending().await,
                "messagequeues" => list("MessageQueue", &queues),
                "streams" => list("Stream", &[]),
                "brokers" => {
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    list("Broker", &[broker])
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
    let context = server::context(api_server(written.clone()), admin.clone(), leadership);
    let tasks = Tasks::default();
    start(&context, &[None], 4, admin, &tasks);
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert!(*written.lock() >= OBJECTS, "{} of {OBJECTS}", written.lock());
    tasks.end().await;
}
