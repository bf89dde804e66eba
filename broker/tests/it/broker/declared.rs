//! Queues and streams as an operator declares them: over gRPC, at any pod, with what people see of it.

use std::sync::Arc;

use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};
use weir_core::cluster::testing::MemoryNetwork;
use weir_env::clock::Clock;
use weir_env::seed::Seed;
use weir_proto::admin::v1 as wire;
use weir_proto::admin::v1::declarations_client::DeclarationsClient;
use weir_proto::admin::v1::watch_declared_response::Event;
use weir_storage::{MemoryStore, SharedStore};

use super::client::AtLeastOnce;
use super::{DEADLINE, TestBroker};
use crate::cli::{Finished, weir};

/// The operator of the cluster `eu`.
struct Operator {
    client: DeclarationsClient<Channel>,
    writer: u64,
}

fn owner(object: &str, generation: u64) -> Option<wire::ObjectOwner> {
    Some(wire::ObjectOwner {
        cluster: "eu".into(),
        namespace: "city".into(),
        object: object.into(),
        uid: format!("uid of {object}"),
        generation,
    })
}

impl Operator {
    async fn of(broker: &TestBroker) -> Self {
        let mut client = Self::connect(broker).await;
        let request = wire::AcquireWriterRequest { cluster: "eu".into() };
        let writer = client.acquire_writer(request).await.unwrap().into_inner().writer;
        Self { client, writer }
    }

    /// The same, by another pod.
    async fn at(&self, broker: &TestBroker) -> Self {
        Self { client: Self::connect(broker).await, writer: self.writer }
    }

    async fn connect(broker: &TestBroker) -> DeclarationsClient<Channel> {
        DeclarationsClient::connect(format!("http://{}", broker.admin)).await.unwrap()
    }

    fn request(&self, object: &str, generation: u64, spec: &str) -> wire::ApplyObjectRequest {
        wire::ApplyObjectRequest {
            writer: self.writer,
            owner: owner(object, generation),
            kind: wire::ObjectKind::Queue.into(),
            name: object.into(),
            spec: spec.into(),
        }
    }

    async fn apply(
        &mut self,
        object: &str,
        generation: u64,
        spec: &str,
    ) -> Result<wire::ApplyObjectResponse, Status> {
        let request = self.request(object, generation, spec);
        self.client.apply_object(request).await.map(tonic::Response::into_inner)
    }

    async fn release(&mut self, object: &str, policy: wire::DeletionPolicy) -> wire::ReleaseOutcome {
        let request = wire::ReleaseObjectRequest {
            writer: self.writer,
            owner: owner(object, 9),
            kind: wire::ObjectKind::Queue.into(),
            name: object.into(),
            policy: policy.into(),
        };
        self.client.release_object(request).await.unwrap().into_inner().outcome()
    }

    async fn watch(&mut self) -> Streaming<wire::WatchDeclaredResponse> {
        let mut events =
            self.client.watch_declared(wire::WatchDeclaredRequest {}).await.unwrap().into_inner();
        assert!(matches!(next(&mut events).await, Event::Reload(_)));
        events
    }
}

async fn next(events: &mut Streaming<wire::WatchDeclaredResponse>) -> Event {
    let event = tokio::time::timeout(DEADLINE, events.message()).await.expect("an event in time");
    event.unwrap().unwrap().event.unwrap()
}

/// Its reason, its field and its owner.
fn refusal(status: &Status) -> [Option<&str>; 3] {
    let text = |key| status.metadata().get(key).and_then(|value| value.to_str().ok());
    [text("weir-reason"), text("weir-field"), text("weir-owner")]
}

async fn run(broker: &TestBroker, args: &[&str]) -> Finished {
    let admin = broker.admin.to_string();
    weir(&[args, &["--admin", &admin]].concat(), "").await
}

#[tokio::test]
async fn a_queue_that_an_object_declares_is_there_and_stays_as_declared() {
    let broker = TestBroker::start().await;
    let mut operator = Operator::of(&broker).await;
    let spec =
        r#"{"topicFilter": "sensor/#", "brokerRef": {"name": "main"}, "retention": {"maxMessages": 100}}"#;
    let made = operator.apply("traffic", 1, spec).await.unwrap();
    assert_eq!((made.outcome(), made.drifted), (wire::ApplyOutcome::Created, false));
    assert_eq!(made.conditions[0].status, "True");
    let mut consumer = broker.subscriber("c", "$queue/traffic", AtLeastOnce).await;
    broker.publish("sensor/1", &["0"]).await;
    assert_eq!(consumer.take_texts(1).await, ["0"]);

    // People see whose it is, and are told where to go.
    let shown = run(&broker, &["queue", "describe", "traffic"]).await.output();
    assert!(shown.contains("city/traffic of the Kubernetes cluster eu"), "{shown}");
    let refused = run(&broker, &["queue", "delete", "traffic"]).await.failure();
    let expected =
        ["city/traffic", "`eu`", "kubectl -n city delete messagequeues.weir.dev traffic", "--force"];
    assert!(expected.iter().all(|part| refused.contains(part)), "{refused}");
    let refused = run(&broker, &["queue", "update", "traffic", "--max-messages", "7"]).await.failure();
    assert!(refused.contains("change or delete that one"), "{refused}");
    let forced = ["queue", "update", "traffic", "--max-messages", "7", "--ack-timeout", "3s", "--force"];
    run(&broker, &forced).await.output();
    let repaired = operator.apply("traffic", 1, spec).await.unwrap();
    assert_eq!((repaired.outcome(), repaired.drifted), (wire::ApplyOutcome::Updated, true));
    assert_eq!(repaired.changed, ["spec.ackTimeout", "spec.retention.maxMessages"]);
    assert_eq!(repaired.hash, made.hash);
    run(&broker, &["queue", "delete", "traffic", "--force", "--messages", "retain"]).await.output();
    let again = operator.apply("traffic", 1, spec).await.unwrap();
    assert_eq!((again.outcome(), again.drifted), (wire::ApplyOutcome::Adopted, true));
    let same = operator.apply("traffic", 1, spec).await.unwrap();
    assert_eq!((same.outcome(), same.generation), (wire::ApplyOutcome::Unchanged, again.generation));

    assert_eq!(
        operator.release("traffic", wire::DeletionPolicy::Retain).await,
        wire::ReleaseOutcome::Released
    );
    assert_eq!(
        operator.release("traffic", wire::DeletionPolicy::Delete).await,
        wire::ReleaseOutcome::Deleted
    );
    assert_eq!(
        operator.release("traffic", wire::DeletionPolicy::Delete).await,
        wire::ReleaseOutcome::Missing
    );
}

#[tokio::test]
async fn refusals_have_a_word_for_programs_and_say_what_to_do() {
    let broker = TestBroker::start().await;
    let mut operator = Operator::of(&broker).await;
    operator.apply("traffic", 3, r#"{"topicFilter": "a", "shards": 2}"#).await.unwrap();
    run(&broker, &["queue", "create", "own", "--filter", "b"]).await.output();
    let mut check =
        async |change: &dyn Fn(&mut wire::ApplyObjectRequest), code, expected: [&str; 3], says: &str| {
            let mut request = operator.request("traffic", 3, r#"{"topicFilter": "a", "shards": 2}"#);
            change(&mut request);
            let status = operator.client.apply_object(request).await.unwrap_err();
            let found = refusal(&status).map(Option::unwrap_or_default);
            assert_eq!((status.code(), found), (code, expected), "{}", status.message());
            assert!(status.message().contains(says), "{}", status.message());
        };
    let other = |request: &mut wire::ApplyObjectRequest| {
        request.owner = owner("other", 1);
        request.spec = r#"{"topicFilter": "a", "shards": 2, "queueName": "traffic"}"#.into();
    };
    let conflict = ["NameConflict", "metadata.name", "eu/city/traffic"];
    check(&other, Code::AlreadyExists, conflict, "`weir queue describe traffic` shows it").await;
    let of_a_person = |request: &mut wire::ApplyObjectRequest| {
        request.owner = owner("own", 1);
        request.name = "own".into();
    };
    check(&of_a_person, Code::AlreadyExists, ["NameConflict", "metadata.name", "default/own"], "admin API")
        .await;
    let shards = |request: &mut wire::ApplyObjectRequest| {
        request.spec = r#"{"topicFilter": "a", "shards": 4}"#.into();
    };
    let immutable = ["ImmutableMismatch", "spec.shards", ""];
    check(&shards, Code::FailedPrecondition, immutable, "shards cannot change from 2 to 4").await;
    let filter = |request: &mut wire::ApplyObjectRequest| request.spec = r#"{"topicFilter": "a/#/b"}"#.into();
    check(&filter, Code::InvalidArgument, ["Invalid", "spec.topicFilter", ""], "spec.topicFilter").await;
    let unknown = |request: &mut wire::ApplyObjectRequest| request.spec = r#"{"shard": 4}"#.into();
    check(&unknown, Code::InvalidArgument, ["Invalid", "spec.shard", ""], "unknown field").await;
    let older = |request: &mut wire::ApplyObjectRequest| request.owner = owner("traffic", 2);
    check(&older, Code::FailedPrecondition, ["StaleGeneration", "", ""], "generation 3").await;
    let writer = |request: &mut wire::ApplyObjectRequest| request.writer = 0;
    check(&writer, Code::FailedPrecondition, ["StaleWriter", "", ""], "the newest is 1").await;
    let name = |request: &mut wire::ApplyObjectRequest| request.name = "x".into();
    check(&name, Code::InvalidArgument, ["Invalid", "name", ""], "`traffic`").await;
    let cluster = |request: &mut wire::ApplyObjectRequest| {
        request.owner = Some(wire::ObjectOwner { cluster: "E/U".into(), ..owner("traffic", 3).unwrap() });
    };
    check(&cluster, Code::InvalidArgument, ["Invalid", "owner.cluster", ""], "such as `default`").await;
    let kind = |request: &mut wire::ApplyObjectRequest| request.kind = 7;
    check(&kind, Code::InvalidArgument, ["Invalid", "kind", ""], "allowed").await;

    // A second operator takes over: the first one may do nothing any more.
    let newer = Operator::of(&broker).await;
    let status = operator.apply("traffic", 4, r#"{"topicFilter": "a", "shards": 2}"#).await.unwrap_err();
    assert_eq!(refusal(&status)[0], Some("StaleWriter"), "{}", status.message());
    assert!(newer.writer > operator.writer);
    let ran = run(&broker, &["queue", "delete", "own", "--messages", "delete"]).await;
    assert_eq!(ran.code, 0);
}

#[tokio::test]
async fn pages_show_all_and_a_watch_is_bounded() {
    let broker = TestBroker::start().await;
    let mut operator = Operator::of(&broker).await;
    let mut hashes = Vec::new();
    for n in 0..5 {
        let made = operator.apply(&format!("q{n}"), 1, r#"{"topicFilter": "a"}"#).await.unwrap();
        hashes.push(made.hash);
    }
    run(&broker, &["stream", "create", "own", "--filter", "b"]).await.output();
    let (mut page, mut seen) = (String::new(), Vec::new());
    loop {
        let request =
            wire::ListDeclaredRequest { page_size: 2, page, with_conditions: true, ..Default::default() };
        let answer = operator.client.list_declared(request).await.unwrap().into_inner();
        assert!(answer.objects.len() <= 2);
        seen.extend(answer.objects);
        page = answer.next_page;
        if page.is_empty() {
            break;
        }
    }
    let names: Vec<&str> = seen.iter().map(|object| object.name.as_str()).collect();
    assert_eq!(names, ["q0", "q1", "q2", "q3", "q4", "own"]);
    assert_eq!(seen[..5].iter().map(|object| object.hash.clone()).collect::<Vec<_>>(), hashes);
    assert_eq!((seen[1].owner.clone(), seen[1].origin.as_str()), (owner("q1", 1), "operator"));
    assert!(seen.iter().all(|object| object.conditions[0].reason == "Serving"));
    let request = wire::ListDeclaredRequest { cluster: "eu".into(), ..Default::default() };
    let own = operator.client.list_declared(request).await.unwrap().into_inner();
    assert_eq!((own.objects.len(), own.next_page.as_str()), (5, ""));
    assert!(own.objects.iter().all(|object| object.conditions.is_empty()));
    let request = wire::ListDeclaredRequest { page: "elsewhere".into(), ..Default::default() };
    let refused = operator.client.list_declared(request).await.unwrap_err();
    assert_eq!(refusal(&refused)[0], Some("Invalid"));

    let mut watches = Vec::new();
    for _ in 0..16 {
        watches.push(operator.watch().await);
    }
    let refused = operator.client.watch_declared(wire::WatchDeclaredRequest {}).await.unwrap_err();
    assert_eq!((refused.code(), refusal(&refused)[0]), (Code::ResourceExhausted, Some("TooMany")));
    broker.stop().await;
    let ended = watches[0].message().await.unwrap_err();
    assert_eq!(ended.code(), Code::Unavailable);
}

#[tokio::test]
async fn what_is_applied_at_one_pod_is_watched_at_another() {
    let store: SharedStore = Arc::new(MemoryStore::new(Clock::system()));
    let network = MemoryNetwork::new(Clock::system(), &Seed::fixed(1));
    let mut pods = Vec::new();
    for _ in 0..3 {
        pods.push(TestBroker::start_pod(&store, &network).await);
    }
    let mut first = Operator::of(&pods[0]).await;
    let mut second = first.at(&pods[1]).await;
    let mut events = second.watch().await;
    let made = first.apply("traffic", 1, r#"{"topicFilter": "a"}"#).await.unwrap();
    let Event::Changed(seen) = next(&mut events).await else { panic!("not a change") };
    assert_eq!((seen.name.as_str(), &seen.hash, seen.owner), ("traffic", &made.hash, owner("traffic", 1)));
    // Any pod takes the next change; a third one carries it out for its clients.
    let changed = r#"{"topicFilter": "a", "maxDeliveries": 3}"#;
    let made = first.at(&pods[2]).await.apply("traffic", 2, changed).await.unwrap();
    let Event::Changed(seen) = next(&mut events).await else { panic!("not a change") };
    assert_eq!(seen.hash, made.hash);
    let mut consumer = pods[0].subscriber("c", "$queue/traffic", AtLeastOnce).await;
    pods[1].publish("a", &["0"]).await;
    assert_eq!(consumer.take_texts(1).await, ["0"]);
    let released = first.release("traffic", wire::DeletionPolicy::Delete).await;
    assert_eq!(released, wire::ReleaseOutcome::Deleted);
    let Event::Gone(seen) = next(&mut events).await else { panic!("still there") };
    assert_eq!((seen.kind(), seen.name.as_str()), (wire::ObjectKind::Queue, "traffic"));
}
