//! Which pods are called, and what calls bring.

use std::collections::VecDeque;

use kube::client::Body;
use serde_json::{Value, json};
use weir_env::clock::Timestamp;

use super::*;

fn pod(name: &str, ip: &str, ready: &str) -> Pod {
    serde_json::from_value(json!({
        "metadata": { "name": name, "namespace": "messaging", "labels": { BROKER_LABEL: "main" } },
        "status": { "podIP": ip, "conditions": [{ "type": "Ready", "status": ready }] },
    }))
    .unwrap()
}

fn pods(all: Vec<Pod>, secret: Option<Secret>) -> Pods {
    pods_with(answering(Vec::new()), Clock::system(), all, secret)
}

/// An API server with these answers, one after the other.
fn answering(script: Vec<(u16, Value)>) -> Client {
    let script = Arc::new(Mutex::new(VecDeque::from(script)));
    let service = tower::service_fn(move |request: http::Request<Body>| {
        assert_eq!(request.uri().path(), "/api/v1/namespaces/messaging/secrets/p");
        let (status, answer) = script.lock().pop_front().unwrap();
        let body = Body::from(answer.to_string().into_bytes());
        std::future::ready(http::Response::builder().status(status).body(body))
    });
    Client::new(service, "default")
}

fn pods_with(client: Client, clock: Clock, all: Vec<Pod>, secret: Option<Secret>) -> Pods {
    let (pods, mut writer) = reflector::store();
    all.into_iter().for_each(|pod| writer.apply_watcher_event(&watcher::Event::Apply(pod)));
    let (secrets, mut writer) = reflector::store();
    secret.into_iter().for_each(|secret| writer.apply_watcher_event(&watcher::Event::Apply(secret)));
    Pods { client, clock, certificates: Mutex::default(), pods: vec![pods], secrets: vec![secrets] }
}

fn broker(name: &str) -> Broker {
    let spec = json!({ "store": { "remote": { "address": "a:1" } } });
    serde_json::from_value(json!({
        "apiVersion": "weir.dev/v1alpha1", "kind": "Broker",
        "metadata": { "name": name, "namespace": "messaging" }, "spec": spec,
    }))
    .unwrap()
}

#[tokio::test]
async fn only_ready_pods_that_stay_are_asked() {
    let mut going = pod("d", "10.0.0.4", "True");
    going.metadata.deletion_timestamp = Some(serde_json::from_value(json!("2026-01-01T00:00:00Z")).unwrap());
    let all = vec![
        pod("a", "10.0.0.1", "True"),
        pod("b", "fd00::2", "True"),
        pod("c", "10.0.0.3", "False"),
        going,
        pod("e", "", "True"),
    ];
    let pods = pods(all, None);
    let asked: Vec<String> =
        pods.ready(&broker("main")).iter().map(|door| door.address.to_string()).collect();
    assert_eq!(asked, ["http://10.0.0.1:8081/", "http://[fd00::2]:8081/"]);
    assert!(pods.ready(&broker("other")).is_empty());
}

#[tokio::test]
async fn calls_bring_the_token_of_the_broker() {
    let secret: Secret = serde_json::from_value(json!({
        "metadata": { "name": "main-internal", "namespace": "messaging" }, "data": { "token": "YWJj" },
    }))
    .unwrap();
    let pods = pods(vec![pod("a", "10.0.0.1", "True")], Some(secret));
    let door = pods.ready(&broker("main")).remove(0);
    assert!(format!("{door:?}").contains("Sensitive"), "tokens are not shown");
    assert_eq!(door.token.unwrap().to_str().unwrap(), "Bearer abc");
}

#[tokio::test]
async fn a_pod_is_called_as_it_was_started() {
    let mut secured = pod("b", "10.0.0.2", "True");
    secured.spec = serde_json::from_value(json!({
        "containers": [], "volumes": [{ "name": "admin-tls", "secret": { "secretName": "main-pods" } }],
    }))
    .unwrap();
    let pods = pods(vec![pod("a", "10.0.0.1", "True"), secured], None);
    let doors = pods.ready(&broker("main")).into_iter();
    let called: Vec<_> = doors.map(|door| (door.address.to_string(), door.certificates)).collect();
    let secured = ("https://10.0.0.2:8081/".to_owned(), Some("main-pods".to_owned()));
    assert_eq!(called, [("http://10.0.0.1:8081/".to_owned(), None), secured]);
}

#[tokio::test(start_paused = true)]
async fn certificates_are_read_again_and_the_last_ones_stay_while_that_fails() {
    let clock = Clock::simulated(Timestamp::default());
    let secret = |data: Value| json!({ "metadata": { "name": "p" }, "data": data });
    let failure = |code: u16, reason: &str| {
        let status = json!({ "apiVersion": "v1", "kind": "Status", "status": "Failure", "reason": reason, "code": code });
        (code, status)
    };
    let script = vec![
        failure(404, "NotFound"),
        (200, secret(json!({ "tls.crt": "YQ==", "tls.key": "YQ==" }))),
        (200, secret(json!({ "tls.crt": "YQ==", "tls.key": "YQ==", "ca.crt": "YQ==" }))),
        failure(500, "InternalError"),
        (200, secret(json!({ "tls.crt": "Yg==", "tls.key": "Yg==", "ca.crt": "Yg==" }))),
    ];
    let pods = pods_with(answering(script), clock, Vec::new(), None);
    let read = || pods.certificates("messaging", "p");
    let missing = read().await.unwrap_err();
    assert!(missing.message().ends_with("messaging/p of spec.adminTls is missing: make it"), "{missing}");
    let incomplete = read().await.unwrap_err();
    assert!(incomplete.message().ends_with("has no key ca.crt: add it"), "{incomplete}");
    let first = read().await.unwrap();
    assert_eq!(format!("{first:?}"), "Certificates { .. }", "keys are not shown");
    assert_eq!(read().await.unwrap(), first, "without a request");
    tokio::time::sleep(KNOWN).await;
    assert_eq!(read().await.unwrap(), first, "though it cannot be read");
    assert_ne!(read().await.unwrap(), first);
}

#[tokio::test(start_paused = true)]
async fn a_read_of_certificates_that_nobody_answers_ends() {
    let silent = tower::service_fn(|_: http::Request<Body>| {
        std::future::pending::<Result<http::Response<Body>, std::convert::Infallible>>()
    });
    let clock = Clock::simulated(Timestamp::default());
    let pods = pods_with(Client::new(silent, "default"), clock, Vec::new(), None);
    let error = pods.certificates("messaging", "p").await.unwrap_err();
    assert!(error.message().contains("could not be read within 5s"), "{error}");
}

#[tokio::test]
async fn certificates_that_are_kept_in_mind_are_bounded() {
    let pods = pods(Vec::new(), None);
    let read = Arc::new(Certificates { certificate: Vec::new(), key: Vec::new(), authorities: Vec::new() });
    for n in 0..=CERTIFICATES_MAX {
        pods.remember(("messaging".to_owned(), n.to_string()), Arc::clone(&read));
    }
    assert_eq!(pods.certificates.lock().len(), CERTIFICATES_MAX);
}
