use bytes::Bytes;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_util::task::TaskTracker;
use tonic::transport::Channel;
use tonic::{Code, Streaming};
use weir_core::definition::{DeadLetterTarget, Definition, DispatchSettings, Retention};
use weir_core::key::Publisher;
use weir_core::message::{Message, Properties};
use weir_core::metrics::Metrics;
use weir_core::queue::{Consumer, ConsumerId, QueueDelivery, Verdict, Window};
use weir_env::clock::{Clock, Timestamp};
use weir_env::seed::Seed;
use weir_proto::admin::v1::admin_client::AdminClient;
use weir_proto::admin::v1::stream_place::Place as Start;
use weir_storage::{CommitFault, FaultHandle, FaultStore, MemoryStore};
use weir_topic::TopicName;

use super::*;
use crate::config::AdminAccess;

/// An admin API on a port of its own, over a core on a store that fails on request.
struct Bench {
    core: Arc<Core>,
    faults: FaultHandle,
    shutdown: CancellationToken,
    tasks: TaskTracker,
    client: AdminClient<Channel>,
}

fn open_to_all() -> Access {
    Access::read(&AdminAccess::default(), Duration::ZERO).unwrap()
}

impl Bench {
    async fn new(definitions: &[Definition]) -> Self {
        let clock = Clock::system();
        let store = FaultStore::wrap(Arc::new(MemoryStore::new(clock)), Seed::fixed(1));
        let faults = store.handle();
        let core = Core::open(Arc::new(store), clock, &Seed::fixed(2), Metrics::default()).await.unwrap();
        let core = Arc::new(core);
        core.apply(definitions).await.unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (shutdown, tasks) = (CancellationToken::new(), TaskTracker::new());
        let server = serve(listener, Arc::clone(&core), open_to_all(), shutdown.clone());
        tasks.spawn(async { server.await.unwrap() });
        let client = AdminClient::connect(format!("http://{addr}")).await.unwrap();
        Self { core, faults, shutdown, tasks, client }
    }

    async fn publish(&self, topic: &str, payload: &str) {
        let message = Message {
            topic: TopicName::parse(topic.to_owned()).unwrap(),
            payload: Bytes::copy_from_slice(payload.as_bytes()),
            qos: 1,
            retain: false,
            published_at: Clock::system().wall(),
            dead_letter: None,
            expires_at: None,
            properties: Properties { user: vec![("n".into(), "v".into())], ..Properties::default() },
        };
        let targets = self.core.targets(&message.topic);
        assert!(!targets.is_empty(), "no target for {topic}");
        let receipt = self.core.append(&targets, &message, &Publisher::default(), None).await.unwrap();
        assert!(receipt.settled().await.is_empty());
    }

    /// A consumer with room for `window` messages, and what it gets.
    async fn consume(&self, queue: &str, id: u64, window: u32) -> mpsc::Receiver<QueueDelivery> {
        let (deliveries, received) = mpsc::channel(window as usize);
        let consumer = Consumer {
            id: ConsumerId(id),
            client_id: format!("c{id}").into(),
            since: Timestamp::default(),
            window: Arc::new(Window::new(window)),
            connection_window: None,
            deliveries,
        };
        let queue = self.core.catalog().view().find(Kind::Queue, queue).unwrap();
        self.core.attach(&queue, &consumer).await.unwrap();
        received
    }

    async fn read(
        &self,
        request: wire::ReadStreamRequest,
    ) -> Result<Streaming<wire::ReadStreamResponse>, Status> {
        self.client.clone().read_stream(request).await.map(Response::into_inner)
    }

    /// Payloads up to the end.
    async fn payloads(&self, request: wire::ReadStreamRequest) -> Vec<String> {
        let messages: Vec<_> = self.read(request).await.unwrap().try_collect().await.unwrap();
        messages.into_iter().map(|message| String::from_utf8(message.payload.into()).unwrap()).collect()
    }

    async fn stop(self) {
        self.shutdown.cancel();
        self.tasks.close();
        self.tasks.wait().await;
        self.core.close().await;
    }
}

fn definition(kind: Kind, name: &str, filter: &str, shards: u8) -> Definition {
    Definition {
        kind,
        name: name.into(),
        namespace: "city".into(),
        object: format!("{name}-object"),
        topic_filter: Some(filter.into()),
        shards,
        key: None,
        retention: Retention::default(),
        dispatch: DispatchSettings::default(),
        last_value: false,
        queue: weir_core::definition::QueueSettings::default(),
        group_expiry_ms: 0,
        delete_data: true,
    }
}

#[expect(clippy::unnecessary_wraps, reason = "as requests have it")]
fn at(place: Start) -> Option<wire::StreamPlace> {
    Some(wire::StreamPlace { place: Some(place) })
}

fn request(start: Start) -> wire::ReadStreamRequest {
    wire::ReadStreamRequest { name: "s".into(), from: at(start), ..wire::ReadStreamRequest::default() }
}

fn earliest() -> wire::ReadStreamRequest {
    request(Start::Earliest(wire::Earliest {}))
}

#[track_caller]
fn refused<T>(answer: Result<T, Status>, code: Code, text: &str) {
    let Err(status) = answer else { panic!("not refused") };
    assert_eq!(status.code(), code, "{status:?}");
    assert!(status.message().contains(text), "{status:?}");
}

fn named<T>(name: &str, make: impl Fn(String) -> T) -> T {
    make(name.to_owned())
}

#[tokio::test]
async fn queues_are_listed_and_described() {
    let mut keyed = definition(Kind::Queue, "b", "b/+", 4);
    keyed.key = Some("message.topic".into());
    keyed.retention = Retention { max_age_ms: 1, max_bytes: 8, max_messages: 1000 };
    let bench = Bench::new(&[keyed, definition(Kind::Queue, "a", "a", 1)]).await;
    for n in 0..10 {
        bench.publish("a", &n.to_string()).await;
    }
    let mut received = bench.consume("a", 7, 3).await;
    for _ in 0..3 {
        received.recv().await.unwrap();
    }
    let mut client = bench.client.clone();
    let list = client.list_queues(wire::ListQueuesRequest {}).await.unwrap().into_inner().queues;
    let shown: Vec<_> = list.iter().map(|q| (q.name.as_str(), q.shards, q.depth, q.in_flight)).collect();
    assert_eq!(shown, [("a", 1, 10, 3), ("b", 4, 0, 0)]);
    assert_eq!((list[0].topic_filter.as_str(), list[0].consumers, list[1].consumers), ("a", 1, 0));
    assert!(list[0].bytes > 0 && list[0].conditions[0].status == "True", "{list:?}");
    let declaration = list[0].declaration.clone().unwrap();
    assert_eq!((declaration.namespace.as_str(), declaration.object.as_str()), ("city", "a-object"));
    assert_eq!(declaration.generation, 1);

    let describe = |name| named(name, |name| wire::DescribeQueueRequest { name });
    let a = client.describe_queue(describe("a")).await.unwrap().into_inner();
    assert_eq!(
        a.queue.as_ref().map(|q| (&q.name, q.depth, q.bytes)),
        list.first().map(|q| (&q.name, q.depth, q.bytes))
    );
    let shard = wire::QueueShard {
        shard: 0,
        floor: 0,
        next_offset: 10,
        depth: 10,
        bytes: list[0].bytes,
        in_flight: 3,
        delayed: 0,
        leaving: 0,
    };
    let spec: serde_json::Value = serde_json::from_str(&a.spec).unwrap();
    assert_eq!(spec["retryBackoff"]["max"], "1m");
    assert_eq!(a.shards, [shard]);
    let consumer = wire::QueueConsumer {
        id: "c7".into(),
        in_flight: 3,
        window: 3,
        delivered: 3,
        ..wire::QueueConsumer::default()
    };
    assert_eq!(a.consumers, [consumer]);
    assert!(list[0].oldest_ts_micros > 0 && list[1].oldest_ts_micros == 0, "{list:?}");
    assert_eq!(list[0].totals.map(|totals| (totals.delivered, totals.redelivered)), Some((3, 0)));
    assert!(a.warnings[0].contains("after 16 deliveries"), "{:?}", a.warnings);
    let b = client.describe_queue(describe("b")).await.unwrap().into_inner();
    let settings = b.settings.unwrap();
    assert_eq!(
        (settings.key.as_str(), settings.dispatch_strategy.as_str()),
        ("message.topic", "leastInflight")
    );
    assert_eq!((settings.ack_timeout_millis, settings.retention_messages), (30_000, 1000));
    assert_eq!((settings.retention_age_millis, settings.retention_bytes), (1, 8));
    assert_eq!(b.shards.iter().map(|shard| shard.shard).collect::<Vec<_>>(), [0, 1, 2, 3]);
    bench.stop().await;
}

#[tokio::test]
async fn a_queue_whose_dead_letters_cannot_leave_is_not_ready_and_says_what_to_do() {
    let mut q = definition(Kind::Queue, "q", "q", 1);
    q.dispatch.max_deliveries = 1;
    q.queue.dead_letter = Some(DeadLetterTarget::Object("dead".into()));
    let bench = Bench::new(&[q]).await;
    bench.publish("q", "x").await;
    let delivery = bench.consume("q", 1, 10).await.recv().await.unwrap();
    bench.core.settle(delivery.handout(), Verdict::Rejected).await.unwrap();
    let mut client = bench.client.clone();
    let blocked = async {
        loop {
            let request = wire::DescribeQueueRequest { name: "q".into() };
            let queue = client.describe_queue(request).await.unwrap().into_inner().queue.unwrap();
            if queue.conditions[0].status != "True" {
                return queue;
            }
            tokio::task::yield_now().await;
        }
    };
    let queue = tokio::time::timeout(Duration::from_secs(30), blocked).await.expect("blocked");
    let condition = &queue.conditions[0];
    assert_eq!((condition.reason.as_str(), queue.depth), ("DeadLetterBlocked", 1));
    let says =
        "dead letters cannot leave (1 wait): there is no other queue `dead` in namespace `city`: create it";
    assert!(condition.message.starts_with(says), "{}", condition.message);
    bench.stop().await;
}

#[tokio::test]
async fn streams_are_listed_and_described() {
    let bench = Bench::new(&[definition(Kind::Stream, "s", "s/+", 2)]).await;
    let before = Clock::system().wall().as_micros();
    for n in 0..20 {
        bench.publish(&format!("s/{n}"), "payload").await;
    }
    let mut client = bench.client.clone();
    let list = client.list_streams(wire::ListStreamsRequest {}).await.unwrap().into_inner().streams;
    let shown: Vec<_> = list.iter().map(|s| (s.name.as_str(), s.shards, s.messages, s.readers)).collect();
    assert_eq!(shown, [("s", 2, 20, 0)]);
    assert!(list[0].bytes > 0);

    let mut follower = bench.read(wire::ReadStreamRequest { follow: true, ..earliest() }).await.unwrap();
    follower.message().await.unwrap().unwrap();
    let request = wire::DescribeStreamRequest { name: "s".into() };
    let s = client.describe_stream(request.clone()).await.unwrap().into_inner();
    assert_eq!(s.stream.unwrap().readers, 1);
    assert_eq!((s.readers.len(), s.readers[0].id.as_str()), (1, ""), "it has no name");
    assert_eq!(s.readers[0].next.len(), 2);
    assert!(s.spec.contains("\"topicFilter\":\"s/+\""), "{}", s.spec);
    assert_eq!(s.shards.iter().map(|shard| shard.next_offset - shard.start_offset).sum::<u64>(), 20);
    for shard in &s.shards {
        assert!(shard.next_offset > 0, "twenty topics on one of two shards");
        let times = (shard.first_ts_micros, shard.last_ts_micros);
        assert!(before <= times.0 && times.0 < times.1 && times.1 <= Clock::system().wall().as_micros());
    }

    let settings = s.settings.unwrap();
    assert_eq!((settings.key.as_str(), settings.retention_messages, settings.last_value), ("", 0, false));
    bench.stop().await;
}

#[tokio::test]
async fn names_that_are_not_there_and_names_that_are_none() {
    let bench =
        Bench::new(&[definition(Kind::Queue, "q", "q", 1), definition(Kind::Stream, "s", "s", 1)]).await;
    let mut client = bench.client.clone();
    let queue = |name| named(name, |name| wire::DescribeQueueRequest { name });
    let stream = |name| named(name, |name| wire::DescribeStreamRequest { name });
    let hint = "there is no queue `s`; `weir queue list` shows what there is";
    refused(client.describe_queue(queue("s")).await, Code::NotFound, hint);
    refused(
        client.describe_stream(stream("q")).await,
        Code::NotFound,
        "there is no stream `q`; `weir stream list`",
    );
    refused(
        bench.read(named("q", |name| wire::ReadStreamRequest { name, ..earliest() })).await,
        Code::NotFound,
        "`q`",
    );
    let long = "x".repeat(129);
    for name in ["", "-a", "a b", "a/b", "$queue", &long] {
        refused(client.describe_queue(queue(name)).await, Code::InvalidArgument, "not the name of a queue: ");
        refused(
            client.describe_stream(stream(name)).await,
            Code::InvalidArgument,
            "not the name of a stream: ",
        );
    }
    let huge = "x".repeat(REQUEST_BYTES_MAX + 1);
    assert!(client.describe_queue(queue(&huge)).await.is_err());
    bench.stop().await;
}

#[tokio::test]
async fn a_read_begins_and_ends_where_it_is_told() {
    let bench = Bench::new(&[definition(Kind::Stream, "s", "s/+", 1)]).await;
    let mut times = Vec::new();
    for n in 0..5 {
        times.push(Clock::system().wall().as_micros());
        bench.publish("s/a", &n.to_string()).await;
    }
    let all: Vec<_> = bench.read(earliest()).await.unwrap().try_collect().await.unwrap();
    let first: &wire::ReadStreamResponse = &all[0];
    assert_eq!((first.shard, first.offset, first.topic.as_str()), (0, 0, "s/a"));
    assert_eq!(first.user_properties, [wire::UserProperty { name: "n".into(), value: "v".into() }]);
    assert_eq!(first.key, None);
    assert!(first.ts_micros >= times[0]);
    assert_eq!(all.iter().map(|message| message.offset).collect::<Vec<_>>(), [0, 1, 2, 3, 4]);

    assert_eq!(bench.payloads(request(Start::Offset(3))).await, ["3", "4"]);
    assert_eq!(bench.payloads(request(Start::TimestampMicros(times[4]))).await, ["4"]);
    let later = Clock::system().wall().as_micros() + 3_600_000_000;
    assert!(bench.payloads(request(Start::TimestampMicros(later))).await.is_empty(), "an hour from now");
    assert!(bench.payloads(request(Start::Latest(wire::Latest {}))).await.is_empty());
    assert!(bench.payloads(wire::ReadStreamRequest { from: None, ..earliest() }).await.is_empty());
    assert!(bench.payloads(request(Start::Offset(99))).await.is_empty());
    let limited = |follow| wire::ReadStreamRequest { limit: 2, follow, ..earliest() };
    assert_eq!(bench.payloads(limited(false)).await, ["0", "1"]);
    assert_eq!(bench.payloads(limited(true)).await, ["0", "1"]);
    let shard = |shard| wire::ReadStreamRequest { shard: Some(shard), ..earliest() };
    assert_eq!(bench.payloads(shard(0)).await.len(), 5);
    refused(bench.read(shard(1)).await, Code::InvalidArgument, "stream `s` has no shard 1; allowed: 0 to 0");
    let until = |place| wire::ReadStreamRequest { until: at(place), follow: true, ..earliest() };
    assert_eq!(bench.payloads(until(Start::Offset(2))).await, ["0", "1"]);
    assert_eq!(bench.payloads(until(Start::Latest(wire::Latest {}))).await.len(), 5);
    bench.publish("s/b", "b").await;
    let filter = |filter: &str| wire::ReadStreamRequest { topic_filter: filter.into(), ..earliest() };
    assert_eq!(bench.payloads(filter("+/b")).await, ["b"]);
    refused(bench.read(filter("a/#/b")).await, Code::InvalidArgument, "`a/#/b` is not a topic filter");
    let keyed = wire::ReadStreamRequest { key: Some("k".into()), ..earliest() };
    assert!(bench.payloads(keyed).await.is_empty(), "no message has a key");
    bench.stop().await;
}

#[tokio::test]
async fn no_message_is_left_out_between_fetches() {
    let bench = Bench::new(&[definition(Kind::Stream, "s", "s/+", 1)]).await;
    let mut client = bench.client.clone();
    for n in 0..40 {
        bench.publish("s/a", &"x".repeat([10, 30_000, 300, 45_000][n % 4])).await;
    }
    let mut next = 0;
    while next < 40 {
        let request = wire::FetchStreamRequest {
            name: "s".into(),
            from: at(Start::Offset(next)),
            max_bytes: 40_000,
            ..wire::FetchStreamRequest::default()
        };
        let answer = client.fetch_stream(request).await.unwrap().into_inner();
        for message in answer.messages {
            assert_eq!(message.offset, next);
            next += 1;
        }
        assert_eq!(answer.next, [wire::ShardOffset { shard: 0, offset: next }]);
    }
    bench.stop().await;
}

#[tokio::test]
async fn a_stream_is_trimmed_and_fetched() {
    let bench = Bench::new(&[definition(Kind::Stream, "s", "s/+", 1)]).await;
    let mut client = bench.client.clone();
    for n in 0..6 {
        bench.publish("s/a", &n.to_string()).await;
    }
    let trim = |place, dry_run| wire::TrimStreamRequest {
        name: "s".into(),
        before: place,
        dry_run,
        ..wire::TrimStreamRequest::default()
    };
    let removed = |answer: Response<wire::TrimStreamResponse>| answer.into_inner().shards[0].removed;
    assert_eq!(removed(client.trim_stream(trim(at(Start::Offset(2)), true)).await.unwrap()), 2);
    assert_eq!(removed(client.trim_stream(trim(at(Start::Offset(2)), false)).await.unwrap()), 2);
    refused(client.trim_stream(trim(None, false)).await, Code::InvalidArgument, "where to trim is missing");
    assert_eq!(bench.payloads(earliest()).await, ["2", "3", "4", "5"]);

    let fetch = |place| wire::FetchStreamRequest {
        name: "s".into(),
        from: at(place),
        max_messages: 3,
        ..wire::FetchStreamRequest::default()
    };
    let answer = client.fetch_stream(fetch(Start::Earliest(wire::Earliest {}))).await.unwrap().into_inner();
    let payloads: Vec<_> = answer.messages.iter().map(|message| message.payload.clone()).collect();
    assert_eq!(payloads, ["2", "3", "4"]);
    let place = |offset| [wire::ShardOffset { shard: 0, offset }];
    assert_eq!((&answer.next[..], &answer.end[..]), (&place(5)[..], &place(6)[..]));
    let on = Start::Offsets(wire::ShardOffsets { shards: answer.next });
    assert_eq!(client.fetch_stream(fetch(on)).await.unwrap().into_inner().messages.len(), 1);
    let twice = wire::ShardOffsets { shards: [place(1), place(2)].concat() };
    refused(client.fetch_stream(fetch(Start::Offsets(twice))).await, Code::InvalidArgument, "named twice");
    for (request, why) in [
        (
            wire::FetchStreamRequest { max_messages: 99_999, ..fetch(Start::Offset(0)) },
            "`max_messages`; allowed: 0 to",
        ),
        (
            wire::FetchStreamRequest { max_bytes: u32::MAX, ..fetch(Start::Offset(0)) },
            "`max_bytes`; allowed: 0 to",
        ),
        (wire::FetchStreamRequest { wait_millis: 60_000, ..fetch(Start::Offset(0)) }, "allowed: 0 to 5000"),
    ] {
        refused(client.fetch_stream(request).await, Code::InvalidArgument, why);
    }
    bench.stop().await;
}

#[tokio::test]
async fn shards_are_read_apart_and_together() {
    let mut keyed = definition(Kind::Stream, "s", "s/+", 3);
    keyed.key = Some("message.topic".into());
    let bench = Bench::new(&[keyed]).await;
    for n in 0..30 {
        bench.publish(&format!("s/{}", n % 10), &n.to_string()).await;
    }
    let all: Vec<_> = bench.read(earliest()).await.unwrap().try_collect().await.unwrap();
    assert_eq!(all.len(), 30);
    let mut apart = 0;
    for shard in 0..3 {
        let of_shard: Vec<&wire::ReadStreamResponse> = all.iter().filter(|m| m.shard == shard).collect();
        assert!(of_shard.iter().zip(0..).all(|(message, offset)| message.offset == offset), "{of_shard:?}");
        assert!(of_shard.iter().all(|message| message.key.as_deref() == Some(message.topic.as_bytes())));
        let only = wire::ReadStreamRequest { shard: Some(shard), ..earliest() };
        let only: Vec<_> = bench.read(only).await.unwrap().try_collect().await.unwrap();
        assert_eq!(only.iter().collect::<Vec<_>>(), of_shard);
        apart += only.len();
    }
    assert_eq!(apart, 30);
    let offset = request(Start::Offset(1));
    refused(bench.read(offset.clone()).await, Code::InvalidArgument, "3 shards with offsets of their own");
    let skipped = wire::ReadStreamRequest { shard: Some(0), ..offset };
    let rest: Vec<_> = bench.read(skipped).await.unwrap().try_collect().await.unwrap();
    assert!(rest.iter().all(|message| message.offset > 0) && !rest.is_empty());
    bench.stop().await;
}

#[tokio::test]
async fn a_follower_gets_what_comes_and_ends_at_shutdown() {
    let bench = Bench::new(&[definition(Kind::Stream, "s", "s/+", 2)]).await;
    let latest = request(Start::Latest(wire::Latest {}));
    let mut follower = bench.read(wire::ReadStreamRequest { follow: true, ..latest }).await.unwrap();
    for n in 0..10 {
        bench.publish(&format!("s/{n}"), &n.to_string()).await;
        let message = follower.message().await.unwrap().unwrap();
        assert_eq!((message.topic, message.payload), (format!("s/{n}"), n.to_string().into()));
    }
    bench.shutdown.cancel();
    refused(follower.message().await, Code::Unavailable, "shutting down");
    bench.stop().await;
}

#[tokio::test]
async fn a_read_that_does_not_follow_ends_where_the_stream_ended_at_its_start() {
    let bench = Bench::new(&[definition(Kind::Stream, "s", "s", 1)]).await;
    let service = Service::new(Arc::clone(&bench.core), CancellationToken::new());
    bench.publish("s", "before").await;
    let messages = service.read_stream(Request::new(earliest())).await.unwrap().into_inner();
    bench.publish("s", "after").await;
    let messages: Vec<_> = messages.try_collect().await.unwrap();
    assert_eq!(messages.iter().map(|message| &message.payload[..]).collect::<Vec<_>>(), [b"before"]);
    bench.stop().await;
}

#[tokio::test]
async fn a_client_that_takes_nothing_does_not_hold_up_the_shutdown() {
    let bench = Bench::new(&[definition(Kind::Stream, "s", "s/+", 1)]).await;
    // More than the windows of a client that does not read.
    let payload = "x".repeat(1_000_000);
    for _ in 0..20 {
        bench.publish("s/a", &payload).await;
    }
    let follower = bench.read(wire::ReadStreamRequest { follow: true, ..earliest() }).await.unwrap();
    bench.shutdown.cancel();
    bench.tasks.close();
    bench.tasks.wait().await;
    drop(follower);
    bench.core.close().await;
}

#[tokio::test]
async fn a_follower_of_a_deleted_stream_is_told() {
    let bench = Bench::new(&[definition(Kind::Stream, "s", "s/+", 2)]).await;
    bench.publish("s/a", "1").await;
    let mut follower = bench.read(wire::ReadStreamRequest { follow: true, ..earliest() }).await.unwrap();
    assert_eq!(follower.message().await.unwrap().unwrap().payload, "1");
    bench.core.apply(&[]).await.unwrap();
    refused(follower.message().await, Code::NotFound, "stream `s` was deleted");
    bench.stop().await;
}

#[tokio::test]
async fn a_store_that_fails_is_told_and_comes_back() {
    let bench =
        Bench::new(&[definition(Kind::Queue, "q", "q", 1), definition(Kind::Stream, "s", "s", 1)]).await;
    let mut client = bench.client.clone();
    bench.faults.unavailable(true);
    let retry = "store unavailable";
    refused(client.list_queues(wire::ListQueuesRequest {}).await, Code::Unavailable, retry);
    let describe = wire::DescribeQueueRequest { name: "q".into() };
    refused(client.describe_queue(describe.clone()).await, Code::Unavailable, "queue `q`: ");
    refused(bench.read(earliest()).await, Code::Unavailable, "stream `s`: ");
    bench.faults.unavailable(false);
    client.describe_queue(describe).await.unwrap();
    bench.publish("s", "1").await;
    assert_eq!(bench.payloads(earliest()).await, ["1"]);

    bench.faults.unavailable(true);
    let mut messages = bench.read(earliest()).await.unwrap();
    refused(messages.message().await, Code::Unavailable, retry);
    bench.faults.heal();
    bench.stop().await;
}

#[tokio::test]
async fn reads_are_limited_and_a_dropped_one_gives_its_place_back() {
    let bench = Bench::new(&[definition(Kind::Stream, "s", "s", 1)]).await;
    let service = Service::new(Arc::clone(&bench.core), CancellationToken::new());
    let follow = || Request::new(wire::ReadStreamRequest { follow: true, ..earliest() });
    let mut reads = Vec::new();
    for _ in 0..READS_MAX {
        reads.push(service.read_stream(follow()).await.unwrap());
    }
    let one_more = service.read_stream(follow()).await.map(|_| ());
    refused(one_more, Code::ResourceExhausted, "32 reads of streams are under way");
    reads.pop();
    assert!(service.read_stream(follow()).await.is_ok());
    bench.stop().await;
}

#[tokio::test]
async fn connections_are_limited_and_a_closed_one_gives_its_place_back() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let mut incoming = std::pin::pin!(connections::incoming(listener, connections::CONNECTIONS_MAX, None));
    let (mut clients, mut accepted) = (Vec::new(), Vec::new());
    for _ in 0..connections::CONNECTIONS_MAX {
        clients.push(TcpStream::connect(addr).await.unwrap());
        accepted.push(incoming.next().await.unwrap().unwrap());
    }
    clients.push(TcpStream::connect(addr).await.unwrap());
    let turns = async {
        for _ in 0..1000 {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        biased;
        _ = incoming.next() => panic!("one more than {} was accepted", connections::CONNECTIONS_MAX),
        () = turns => {}
    }
    accepted.pop();
    incoming.next().await.unwrap().unwrap();
}

#[tokio::test]
async fn a_damaged_queue_does_not_hide_the_others() {
    let mut bench =
        Bench::new(&[definition(Kind::Queue, "a", "a", 1), definition(Kind::Queue, "b", "b", 1)]).await;
    bench.publish("b", "1").await;
    let a = bench.core.catalog().view().find(Kind::Queue, "a").unwrap();
    let key = weir_core::keyspace::log_state::LogState::key(&a.logs[0]);
    let mut tx = bench.core.store().begin();
    tx.set(&key, b"\xff");
    tx.commit().await.unwrap();
    let list = bench.client.list_queues(wire::ListQueuesRequest {}).await.unwrap().into_inner().queues;
    let ready =
        |queue: &wire::Queue| (queue.conditions[0].status.clone(), queue.conditions[0].reason.clone());
    assert_eq!(ready(&list[0]), ("False".to_owned(), "Damaged".to_owned()));
    assert_eq!((ready(&list[1]).0.as_str(), list[1].depth), ("True", 1));
    let describe = wire::DescribeQueueRequest { name: "a".into() };
    refused(bench.client.describe_queue(describe).await, Code::DataLoss, "restore the store");
    bench.stop().await;
}

/// A service over a core that keeps two megabytes, which no reader reads ahead.
async fn with_something_to_back_up() -> Service {
    let clock = Clock::system();
    let store = Arc::new(MemoryStore::new(clock));
    let core = Core::open(store, clock, &Seed::fixed(2), Metrics::default()).await.unwrap();
    for batch in 0..4 {
        let mut tx = core.store().begin();
        (0..10_u8).for_each(|n| tx.set(&[b'?', batch, n], &[n; 50_000]));
        tx.commit().await.unwrap();
    }
    Service::new(Arc::new(core), CancellationToken::new())
}

async fn back_up(service: &Service) -> Result<<Service as Admin>::BackUpStoreStream, Status> {
    service.back_up_store(Request::new(wire::BackUpStoreRequest {})).await.map(Response::into_inner)
}

/// What comes of a backup: its bytes, and why it ended before its end.
async fn outcome(mut parts: <Service as Admin>::BackUpStoreStream) -> (Vec<u8>, Option<Status>) {
    let mut bytes = Vec::new();
    while let Some(part) = parts.next().await {
        match part {
            Ok(part) => bytes.extend_from_slice(&part.data),
            Err(status) => return (bytes, Some(status)),
        }
    }
    (bytes, None)
}

#[tokio::test]
async fn one_backup_is_made_at_a_time_and_a_dropped_one_gives_its_place_back() {
    let service = with_something_to_back_up().await;
    let first = back_up(&service).await.unwrap();
    refused(back_up(&service).await.map(drop), Code::ResourceExhausted, "a backup is under way");
    drop(first);
    service.tasks.close();
    service.tasks.wait().await;
    let (bytes, why) = outcome(back_up(&service).await.unwrap()).await;
    assert!(why.is_none(), "{why:?}");
    let reader = weir_storage::backup::BackupReader::open(&bytes[..]).unwrap();
    let (about, extent) = reader.verify().unwrap();
    assert!(about.program.starts_with("weir ") && extent.bytes > 2_000_000, "{about:?} {extent:?}");
}

#[tokio::test(start_paused = true)]
async fn a_backup_of_which_nothing_is_taken_is_given_up() {
    let service = with_something_to_back_up().await;
    let parts = back_up(&service).await.unwrap();
    service.tasks.close();
    tokio::time::timeout(backup::PART_WAIT * 2, service.tasks.wait()).await.unwrap();
    let (bytes, why) = outcome(parts).await;
    refused(why.map_or(Ok(()), Err), Code::DeadlineExceeded, "nothing of the backup was taken");
    assert!(weir_storage::backup::BackupReader::open(&bytes[..]).unwrap().verify().is_err());
    assert!(back_up(&service).await.is_ok(), "another one has its place");
}

#[tokio::test]
async fn a_shutdown_ends_a_backup() {
    let service = with_something_to_back_up().await;
    let parts = back_up(&service).await.unwrap();
    service.shutdown.cancel();
    service.tasks.close();
    service.tasks.wait().await;
    let (_, why) = outcome(parts).await;
    refused(why.map_or(Ok(()), Err), Code::Unavailable, "shutting down");
}

#[tokio::test]
async fn messages_of_a_queue_are_shown_and_purged() {
    let bench = Bench::new(&[definition(Kind::Queue, "a", "a", 1)]).await;
    for n in 0..5 {
        bench.publish("a", &n.to_string()).await;
    }
    let _received = bench.consume("a", 7, 2).await;
    let mut client = bench.client.clone();
    let peek = wire::PeekQueueRequest { name: "a".into(), limit: 3, payload_bytes: 10, ..Default::default() };
    let shown = client.peek_queue(peek.clone()).await.unwrap().into_inner();
    let states: Vec<_> = shown.messages.iter().map(|m| (m.state(), m.consumer.as_str())).collect();
    let held = (wire::MessageState::InFlight, "c7");
    assert_eq!(states, [held, held, (wire::MessageState::Ready, "")]);
    assert_eq!((shown.messages[2].payload.as_ref(), shown.messages[2].payload_len), (&b"2"[..], 1));
    assert_eq!(shown.next, Some(wire::QueuePosition { offset: 3, ..Default::default() }));
    let wrong = |change: fn(&mut wire::PeekQueueRequest)| {
        let mut request = peek.clone();
        change(&mut request);
        request
    };
    for (request, code, text) in [
        (wrong(|r| r.limit = 0), Code::InvalidArgument, "allowed: 1 to 1000"),
        (wrong(|r| r.payload_bytes = 70_000), Code::InvalidArgument, "allowed: up to 65536"),
        (wrong(|r| r.shard = Some(1)), Code::InvalidArgument, "has shards 0 to 0"),
        (wrong(|r| r.topic_filter = "a/#/b".into()), Code::InvalidArgument, "is not a topic filter"),
        (wrong(|r| r.name = "b".into()), Code::NotFound, "there is no queue `b`"),
    ] {
        refused(client.peek_queue(request).await, code, text);
    }
    let old =
        wire::PurgeQueueRequest { name: "a".into(), older_than_micros: 3_600_000_000, ..Default::default() };
    assert_eq!(client.purge_queue(old).await.unwrap().into_inner().purged, 0);
    let ready = wire::PurgeQueueRequest {
        name: "a".into(),
        state: wire::MessageState::Ready.into(),
        ..Default::default()
    };
    assert_eq!(client.purge_queue(ready.clone()).await.unwrap().into_inner().purged, 3);
    let leaving = wire::PurgeQueueRequest { state: wire::MessageState::Leaving.into(), ..ready };
    refused(client.purge_queue(leaving).await, Code::InvalidArgument, "dead letters cannot be purged");
    let all = wire::PurgeQueueRequest { name: "a".into(), ..Default::default() };
    assert_eq!(client.purge_queue(all).await.unwrap().into_inner().purged, 2);
    let list = client.list_queues(wire::ListQueuesRequest {}).await.unwrap().into_inner().queues;
    assert_eq!((list[0].depth, list[0].totals.unwrap().purged), (0, 5));
    bench.stop().await;
}

#[tokio::test]
async fn a_paused_queue_says_so_and_a_queue_is_not_redriven_to_itself() {
    let bench = Bench::new(&[definition(Kind::Queue, "a", "a", 1)]).await;
    let mut client = bench.client.clone();
    let named = || "a".to_owned();
    let paused = client.pause_queue(wire::PauseQueueRequest { name: named() }).await.unwrap().into_inner();
    assert!(paused.queue.as_ref().is_some_and(|queue| queue.paused));
    assert_eq!(paused.queue.unwrap().conditions[1].r#type, "Paused");
    bench.publish("a", "m").await;
    let mut received = bench.consume("a", 7, 2).await;
    let resumed = client.resume_queue(wire::ResumeQueueRequest { name: named() }).await.unwrap().into_inner();
    assert!(resumed.queue.is_some_and(|queue| !queue.paused && queue.in_flight == 0));
    assert_eq!(received.recv().await.unwrap().offset, 0);
    let itself = wire::RedriveQueueRequest { name: named(), to: named(), ..Default::default() };
    refused(client.redrive_queue(itself).await, Code::InvalidArgument, "cannot be moved to itself");
    let none = wire::RedriveQueueRequest { name: named(), ..Default::default() };
    let none = client.redrive_queue(none).await.unwrap().into_inner();
    assert_eq!((none.moved, none.homeless), (0, 1), "it is no dead letter");
    refused(
        client.pause_queue(wire::PauseQueueRequest { name: "b".into() }).await,
        Code::NotFound,
        "no queue",
    );
    bench.stop().await;
}

#[tokio::test]
async fn looks_purges_and_redrives_are_limited_together() {
    let service = with_something_to_back_up().await;
    service.core.apply(&[definition(Kind::Queue, "a", "a", 1)]).await.unwrap();
    let permits: Vec<_> = (0..OPERATIONS_MAX).map(|_| service.operation().unwrap()).collect();
    let name = || "a".to_owned();
    let peek = wire::PeekQueueRequest { name: name(), limit: 1, ..Default::default() };
    let purge = wire::PurgeQueueRequest { name: name(), ..Default::default() };
    let redrive = wire::RedriveQueueRequest { name: name(), ..Default::default() };
    let full = "8 looks at queues, purges and redrives are under way; try again";
    refused(service.peek_queue(Request::new(peek.clone())).await, Code::ResourceExhausted, full);
    refused(service.purge_queue(Request::new(purge)).await, Code::ResourceExhausted, full);
    refused(service.redrive_queue(Request::new(redrive)).await, Code::ResourceExhausted, full);
    drop(permits);
    for _ in 0..=OPERATIONS_MAX {
        service.peek_queue(Request::new(peek.clone())).await.unwrap();
    }
}

/// Whoever asked for a pause may have gone before it was stored.
#[tokio::test]
async fn a_pause_takes_effect_when_its_caller_has_gone() {
    let bench = Bench::new(&[definition(Kind::Queue, "a", "a", 1)]).await;
    let service = Service::new(Arc::clone(&bench.core), CancellationToken::new());
    let mut received = bench.consume("a", 7, 2).await;
    bench.faults.fail_next_commit(CommitFault::Detached(Duration::from_millis(1)));
    let mut call = Box::pin(service.pause_queue(Request::new(wire::PauseQueueRequest { name: "a".into() })));
    assert!(futures_util::poll!(&mut call).is_pending());
    drop(call);
    service.tasks.close();
    service.tasks.wait().await;
    bench.faults.settle().await;
    assert!(service.find(Kind::Queue, "a").unwrap().paused);
    bench.publish("a", "m").await;
    let describe = Request::new(wire::DescribeQueueRequest { name: "a".into() });
    let shown = service.describe_queue(describe).await.unwrap().into_inner();
    assert_eq!((shown.shards[0].depth, shown.shards[0].in_flight), (1, 0));
    assert!(received.try_recv().is_err());
    bench.stop().await;
}

#[tokio::test]
async fn a_pod_that_is_alone_describes_itself_and_cannot_be_drained() {
    let mut bench = Bench::new(&[]).await;
    let pods = bench.client.describe_pods(wire::DescribePodsRequest {}).await.unwrap().into_inner().pods;
    let [pod] = &pods[..] else { panic!("one pod: {pods:?}") };
    assert!(pod.is_self && pod.id == bench.core.pod().to_string());
    assert_eq!(pod.state(), wire::PodState::Serving);
    let drain = |id: &str, grace_millis| wire::DrainPodRequest { id: id.into(), rate: 0, grace_millis };
    for (request, code) in [
        (drain("", 0), Code::FailedPrecondition),
        (drain(&pod.id, 0), Code::FailedPrecondition),
        (drain("nobody", 0), Code::NotFound),
        (drain(&"00".repeat(16), 0), Code::NotFound),
        (drain("", u64::MAX), Code::InvalidArgument),
    ] {
        let refused = bench.client.drain_pod(request.clone()).await.unwrap_err();
        assert_eq!(refused.code(), code, "{request:?}: {refused}");
    }
    let resumed = bench.client.resume_pod(wire::ResumePodRequest { id: String::new() }).await.unwrap();
    assert_eq!(resumed.into_inner().pod.unwrap().state(), wire::PodState::Serving);
    bench.stop().await;
}
