//! `weir queue` and `weir stream`, against an admin API that says what the test wants.

use parking_lot::Mutex;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;

use tokio::net::TcpListener;
use tokio_util::task::TaskTracker;
use tonic::codegen::tokio_stream::{self, Stream};
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};
use weir_proto::admin::v1::admin_server::{Admin, AdminServer};
use weir_proto::admin::v1::stream_place::Place;
use weir_proto::admin::v1::*;

use super::weir;

/// Of the queue that is described.
const SPEC: &str = r#"{"dedup": {"window": "5m"}, "deletionPolicy": "Retain", "publisherControls": ["delay", "priority"],
    "retryBackoff": {"factor": 2, "initial": "1s", "max": "1m"}}"#;

/// Answers with one queue and one stream, and keeps what was asked of the stream.
#[derive(Clone, Default)]
struct Canned(Arc<Mutex<Vec<ReadStreamRequest>>>, Arc<Mutex<Vec<TrimStreamRequest>>>);

#[tonic::async_trait]
impl Admin for Canned {
    type ReadStreamStream = Pin<Box<dyn Stream<Item = Result<ReadStreamResponse, Status>> + Send>>;
    type BackUpStoreStream = Pin<Box<dyn Stream<Item = Result<BackUpStoreResponse, Status>> + Send>>;

    async fn back_up_store(
        &self,
        _: Request<BackUpStoreRequest>,
    ) -> Result<Response<Self::BackUpStoreStream>, Status> {
        let damaged = BackUpStoreResponse { data: "weir backup 1\nand then nothing of the kind".into() };
        Ok(Response::new(Box::pin(tokio_stream::iter([Ok(damaged)]))))
    }

    async fn describe_pods(
        &self,
        _: Request<DescribePodsRequest>,
    ) -> Result<Response<DescribePodsResponse>, Status> {
        let quiet = Pod { id: "0b".repeat(16), load_age_millis: 4_321, is_self: false, ..pod() };
        Ok(Response::new(DescribePodsResponse { pods: vec![pod(), quiet] }))
    }

    async fn drain_pod(
        &self,
        request: Request<DrainPodRequest>,
    ) -> Result<Response<DrainPodResponse>, Status> {
        let DrainPodRequest { id, rate, grace_millis } = request.into_inner();
        let asked = (rate, grace_millis) == (7, 30_000) && id == pod().id;
        if !asked {
            return Err(Status::failed_precondition("no other pod would take its clients"));
        }
        Ok(Response::new(DrainPodResponse { pod: Some(pod()) }))
    }

    async fn resume_pod(
        &self,
        request: Request<ResumePodRequest>,
    ) -> Result<Response<ResumePodResponse>, Status> {
        let id = request.into_inner().id;
        Ok(Response::new(ResumePodResponse { pod: Some(Pod { id, ..pod() }) }))
    }

    async fn list_queues(
        &self,
        _: Request<ListQueuesRequest>,
    ) -> Result<Response<ListQueuesResponse>, Status> {
        let mut other = queue();
        other.name = "a".into();
        other.topic_filter = String::new();
        other.conditions = vec![];
        other.paused = true;
        Ok(Response::new(ListQueuesResponse { queues: vec![other, queue()] }))
    }

    async fn create_queue(
        &self,
        request: Request<CreateQueueRequest>,
    ) -> Result<Response<CreateQueueResponse>, Status> {
        let CreateQueueRequest { name, namespace, spec } = request.into_inner();
        Err(Status::already_exists(format!("{name} in {namespace} as {spec}")))
    }

    async fn update_queue(
        &self,
        request: Request<UpdateQueueRequest>,
    ) -> Result<Response<UpdateQueueResponse>, Status> {
        Err(Status::failed_precondition(format!("{:?}", request.into_inner())))
    }

    async fn delete_queue(
        &self,
        _: Request<DeleteQueueRequest>,
    ) -> Result<Response<DeleteQueueResponse>, Status> {
        Ok(Response::new(DeleteQueueResponse { retained: true }))
    }

    async fn describe_queue(
        &self,
        request: Request<DescribeQueueRequest>,
    ) -> Result<Response<DescribeQueueResponse>, Status> {
        let name = request.into_inner().name;
        if name != "traffic" {
            return Err(Status::not_found(format!("there is no queue `{name}`")));
        }
        Ok(Response::new(DescribeQueueResponse {
            queue: Some(queue()),
            settings: Some(QueueSettings {
                key: "message.topic".into(),
                last_value: false,
                ack_timeout_millis: 30_000,
                max_deliveries: 16,
                max_inflight_per_consumer: 1000,
                dispatch_strategy: "leastInflight".into(),
                retention_age_millis: 604_800_000,
                retention_bytes: 10 << 30,
                retention_messages: 0,
                overflow: "RejectPublish".into(),
                dead_letter: String::new(),
            }),
            shards: vec![
                QueueShard {
                    shard: 0,
                    floor: 10,
                    next_offset: 1234,
                    depth: 1200,
                    bytes: 120_000,
                    in_flight: 7,
                    delayed: 5,
                    leaving: 2,
                },
                QueueShard { shard: 1, ..QueueShard::default() },
            ],
            consumers: vec![QueueConsumer {
                id: "worker-1\u{1b}[2J".into(),
                in_flight: 7,
                window: 1000,
                delivered: 41,
                acknowledged: 33,
                rejected: 1,
                since_micros: 1_700_000_000_000_000,
                ack_p50_micros: 750,
                ack_p99_micros: 12_000,
            }],
            warnings: vec!["no dead letters are kept".into()],
            spec: SPEC.into(),
        }))
    }

    async fn peek_queue(
        &self,
        request: Request<PeekQueueRequest>,
    ) -> Result<Response<PeekQueueResponse>, Status> {
        let request = request.into_inner();
        let at = |offset| Some(QueuePosition { shard: 1, priority: 0, offset });
        // The second page begins where the first has ended.
        let Some(from) = request.from else {
            let held = PeekedMessage {
                position: at(4),
                state: MessageState::InFlight.into(),
                consumer: "worker-1".into(),
                left_millis: 12_000,
                failed_deliveries: 2,
                ts_micros: 1_700_000_000_000_000,
                topic: "sensor/1/data".into(),
                key: Some("k".into()),
                payload: "{\"t\": 20".into(),
                payload_len: 300,
                user_properties: vec![UserProperty { name: "n".into(), value: "v\u{1b}[2J".into() }],
                ..PeekedMessage::default()
            };
            return Ok(Response::new(PeekQueueResponse { messages: vec![held], next: at(5) }));
        };
        let ready = PeekedMessage {
            position: Some(from),
            state: MessageState::Ready.into(),
            ts_micros: 1_700_000_001_000_000,
            topic: request.topic_filter,
            payload: vec![0xff, 0x00].into(),
            payload_len: 2,
            ..PeekedMessage::default()
        };
        Ok(Response::new(PeekQueueResponse { messages: vec![ready], next: None }))
    }

    async fn purge_queue(
        &self,
        request: Request<PurgeQueueRequest>,
    ) -> Result<Response<PurgeQueueResponse>, Status> {
        let request = request.into_inner();
        let next = request.from.is_none().then(QueuePosition::default);
        let purged = if request.state() == MessageState::Waiting { 3 } else { 20 };
        Ok(Response::new(PurgeQueueResponse { purged, next }))
    }

    async fn redrive_queue(
        &self,
        request: Request<RedriveQueueRequest>,
    ) -> Result<Response<RedriveQueueResponse>, Status> {
        let request = request.into_inner();
        let mut response = RedriveQueueResponse { moved: 2, busy: 1, homeless: 1, ..Default::default() };
        if request.to == "full" {
            response.failure = "full is full: retention.maxMessages has reached its limit".into();
        } else if request.from.is_none() {
            response.next = Some(QueuePosition::default());
        }
        Ok(Response::new(response))
    }

    async fn pause_queue(
        &self,
        _: Request<PauseQueueRequest>,
    ) -> Result<Response<PauseQueueResponse>, Status> {
        let mut queue = queue();
        queue.paused = true;
        Ok(Response::new(PauseQueueResponse { queue: Some(queue) }))
    }

    async fn resume_queue(
        &self,
        _: Request<ResumeQueueRequest>,
    ) -> Result<Response<ResumeQueueResponse>, Status> {
        Ok(Response::new(ResumeQueueResponse { queue: Some(queue()) }))
    }

    async fn trim_stream(
        &self,
        request: Request<TrimStreamRequest>,
    ) -> Result<Response<TrimStreamResponse>, Status> {
        let request = request.into_inner();
        self.1.lock().push(request);
        let shard = TrimmedShard { shard: 0, start_offset: 17, next_offset: 40, removed: 17 };
        Ok(Response::new(TrimStreamResponse {
            shards: vec![shard, TrimmedShard { shard: 1, removed: 3, ..shard }],
        }))
    }

    async fn fetch_stream(
        &self,
        _: Request<FetchStreamRequest>,
    ) -> Result<Response<FetchStreamResponse>, Status> {
        Ok(Response::new(FetchStreamResponse::default()))
    }

    async fn list_groups(
        &self,
        request: Request<ListGroupsRequest>,
    ) -> Result<Response<ListGroupsResponse>, Status> {
        assert_eq!(request.into_inner().stream, "telemetry");
        let shard = GroupShard {
            shard: 2,
            position: 3,
            end: 5,
            lag: 2,
            lag_millis: 61_234,
            member: "worker-1".into(),
            generation: 4,
            committed_micros: 1_700_000_000_000_000,
        };
        let group = Group {
            name: "workers".into(),
            members: vec!["worker-1".into()],
            lag: 2,
            lag_millis: 61_234,
            shards: vec![shard],
        };
        Ok(Response::new(ListGroupsResponse { groups: vec![group] }))
    }

    async fn seek_group(&self, _: Request<SeekGroupRequest>) -> Result<Response<SeekGroupResponse>, Status> {
        Err(Status::unimplemented("not asked for"))
    }

    async fn delete_group(
        &self,
        _: Request<DeleteGroupRequest>,
    ) -> Result<Response<DeleteGroupResponse>, Status> {
        Err(Status::unimplemented("not asked for"))
    }

    async fn create_stream(
        &self,
        request: Request<CreateStreamRequest>,
    ) -> Result<Response<CreateStreamResponse>, Status> {
        let CreateStreamRequest { name, namespace, spec } = request.into_inner();
        Err(Status::already_exists(format!("{name} in {namespace} as {spec}")))
    }

    async fn update_stream(
        &self,
        request: Request<UpdateStreamRequest>,
    ) -> Result<Response<UpdateStreamResponse>, Status> {
        Err(Status::failed_precondition(format!("{:?}", request.into_inner())))
    }

    async fn delete_stream(
        &self,
        _: Request<DeleteStreamRequest>,
    ) -> Result<Response<DeleteStreamResponse>, Status> {
        Ok(Response::new(DeleteStreamResponse { retained: true }))
    }

    async fn list_streams(
        &self,
        _: Request<ListStreamsRequest>,
    ) -> Result<Response<ListStreamsResponse>, Status> {
        Ok(Response::new(ListStreamsResponse { streams: vec![stream()] }))
    }

    async fn describe_stream(
        &self,
        _: Request<DescribeStreamRequest>,
    ) -> Result<Response<DescribeStreamResponse>, Status> {
        Ok(Response::new(DescribeStreamResponse {
            stream: Some(stream()),
            settings: Some(StreamSettings::default()),
            shards: vec![StreamShard {
                shard: 0,
                start_offset: 0,
                next_offset: 3,
                bytes: 2048,
                first_ts_micros: 1_700_000_000_000_000,
                last_ts_micros: 1_700_000_001_000_000,
            }],
            readers: vec![
                StreamReader {
                    id: "dashboard\u{1b}[2J".into(),
                    next: vec![ShardOffset { shard: 0, offset: 3 }, ShardOffset { shard: 1, offset: 12 }],
                    since_micros: 1_700_000_000_000_000,
                    read: 15,
                },
                StreamReader::default(),
            ],
            warnings: vec![],
            spec: r#"{"groups": {"expireAfter": "168h"}, "deletionPolicy": "Retain"}"#.into(),
            id: 7,
        }))
    }

    async fn read_stream(
        &self,
        request: Request<ReadStreamRequest>,
    ) -> Result<Response<Self::ReadStreamStream>, Status> {
        self.0.lock().push(request.into_inner());
        let messages = [("one", Some("k".into())), ("two", None)].into_iter().zip(0..).map(
            |((payload, key), offset)| {
                Ok(ReadStreamResponse {
                    shard: 2,
                    offset,
                    ts_micros: 1_700_000_000_000_000,
                    topic: "vehicle/1/telemetry".into(),
                    key,
                    payload: payload.into(),
                    user_properties: vec![UserProperty { name: "n".into(), value: "v".into() }],
                })
            },
        );
        Ok(Response::new(Box::pin(tokio_stream::iter(messages.collect::<Vec<_>>()))))
    }
}

fn declaration(object: &str) -> Option<Declaration> {
    Some(Declaration {
        namespace: "city".into(),
        object: object.into(),
        source: "manifests/city.yaml:3".into(),
        created_micros: 1_700_000_000_000_000,
        generation: 2,
        origin: "manifest".into(),
        cluster: String::new(),
    })
}

fn ready() -> Vec<Condition> {
    vec![Condition {
        r#type: "Ready".into(),
        status: "True".into(),
        reason: "Serving".into(),
        message: String::new(),
    }]
}

fn pod() -> Pod {
    let load = PodLoad {
        connections: 1_200,
        subscriptions: 3_400,
        shards: 341,
        connect_rate: 0.5,
        publish_rate: 1_234.5,
        deliver_rate: 2_000.0,
        append_rate: 100.0,
        bytes_in_rate: 2_048.0,
        bytes_out_rate: 1_048_576.0,
        shed: 56,
        cpu_millis: 730.0,
    };
    Pod {
        id: "0a".repeat(16),
        peer_address: "10.0.0.7:8082".into(),
        admin_address: "10.0.0.7:8081".into(),
        server_reference: "a.example.org:1883".into(),
        zone: "z1".into(),
        version: "1.2.3".into(),
        started_micros: 1_700_000_000_000_000,
        state: PodState::Draining.into(),
        is_self: true,
        load: Some(load),
        load_age_millis: 120,
    }
}

fn queue() -> Queue {
    Queue {
        name: "traffic".into(),
        topic_filter: "sensor/+/data".into(),
        shards: 2,
        ordering: Ordering::Key.into(),
        depth: 1200,
        in_flight: 7,
        consumers: 1,
        bytes: 120_000,
        declaration: declaration("traffic"),
        conditions: ready(),
        paused: false,
        waiting: 3,
        oldest_ts_micros: 1_700_000_000_000_000,
        rates: Some(QueueRates { published: 120.4, delivered: 60.0, redelivered: 0.5, acknowledged: 59.9 }),
        totals: Some(QueueTotals { acknowledged: 34, redelivered: 2, expired: 1, ..QueueTotals::default() }),
    }
}

fn stream() -> weir_proto::admin::v1::Stream {
    weir_proto::admin::v1::Stream {
        name: "telemetry".into(),
        topic_filter: "vehicle/+/telemetry".into(),
        shards: 1,
        messages: 3,
        bytes: 2048,
        readers: 2,
        declaration: declaration("telemetry"),
        conditions: ready(),
        oldest_ts_micros: 1_700_000_000_000_000,
        rates: Some(StreamRates { published: 120.4, read: 0.5 }),
    }
}

struct Server {
    addr: SocketAddr,
    asked: Canned,
    _tasks: TaskTracker,
}

async fn start() -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let (asked, tasks) = (Canned::default(), TaskTracker::new());
    let service = AdminServer::new(asked.clone());
    tasks.spawn(
        tonic::transport::Server::builder()
            .add_service(service)
            .serve_with_incoming(TcpIncoming::from(listener)),
    );
    Server { addr, asked, _tasks: tasks }
}

impl Server {
    async fn weir(&self, args: &[&str]) -> super::Finished {
        let addr = self.addr.to_string();
        weir(&[args, &["--admin", &addr]].concat(), "").await
    }
}

#[tokio::test]
async fn lists_and_descriptions() {
    let server = start().await;
    let mut text = String::new();
    for args in [
        &["queue", "list"][..],
        &["queue", "describe", "traffic"],
        &["queue", "consumers", "traffic"],
        &["stream", "list"],
        &["stream", "describe", "telemetry"],
    ] {
        text.push_str(&format!("$ weir {}\n{}\n", args.join(" "), server.weir(args).await.output()));
    }
    insta::assert_snapshot!(text);
}

#[tokio::test]
async fn pods_are_listed_and_drained() {
    let server = start().await;
    let mut text = String::new();
    for args in [
        &["pod", "list"][..],
        &["pod", "describe"],
        &["pod", "describe", "0b", "-o", "json"],
        &["pod", "drain", "--rate", "7", "--grace", "30s"],
        &["pod", "resume", "0b"],
    ] {
        text.push_str(&format!("$ weir {}\n{}\n", args.join(" "), server.weir(args).await.output()));
    }
    for args in [&["pod", "drain", "0b"][..], &["pod", "drain", "0"], &["pod", "describe", "x"]] {
        text.push_str(&format!("$ weir {}\n{}\n", args.join(" "), server.weir(args).await.failure()));
    }
    insta::assert_snapshot!(text);
}

#[tokio::test]
async fn what_is_done_to_a_queue_is_said() {
    let server = start().await;
    let mut text = String::new();
    for args in [
        &["queue", "peek", "traffic", "--topic", "sensor/#"][..],
        &["queue", "peek", "traffic", "--topic", "sensor/#", "-o", "json"],
        &["queue", "peek", "traffic", "-n", "1"],
        &["queue", "purge", "traffic"],
        &["queue", "purge", "traffic", "--state", "waiting", "--older-than", "1h", "-o", "json"],
        &["queue", "redrive", "dead"],
        &["queue", "redrive", "dead", "--queue", "traffic", "-n", "2"],
        &["queue", "pause", "traffic"],
        &["queue", "resume", "traffic"],
    ] {
        text.push_str(&format!("$ weir {}\n{}\n", args.join(" "), server.weir(args).await.output()));
    }
    insta::assert_snapshot!(text);
    let failure = server.weir(&["queue", "redrive", "dead", "--to", "full"]).await.failure();
    assert_eq!(
        failure,
        "weir: not all were moved: full is full: retention.maxMessages has reached its limit\n"
    );
    let failure = server.weir(&["queue", "peek", "traffic", "--from", "back"]).await.failure();
    assert_eq!(
        failure,
        "weir: `back` is not allowed for --from; allowed: front, a place as it is printed (0:12 or 0:p5:12), or an offset\n"
    );
}

#[tokio::test]
async fn json_holds_the_same() {
    let server = start().await;
    let mut documents = Vec::new();
    for args in [
        &["queue", "list", "-o", "json"][..],
        &["queue", "describe", "traffic", "-o", "json"],
        &["stream", "list", "-o", "json"],
        &["stream", "describe", "telemetry", "-o", "json"],
    ] {
        let document: serde_json::Value = serde_json::from_str(&server.weir(args).await.output()).unwrap();
        documents.push(document);
    }
    insta::assert_snapshot!(format!("{:#}", serde_json::Value::from(documents)));
}

#[tokio::test]
async fn tail_prints_messages() {
    let server = start().await;
    let text = server.weir(&["stream", "tail", "telemetry", "--offset", "earliest"]).await.output();
    assert_eq!(
        text,
        "2023-11-14T22:13:20Z 2:0 vehicle/1/telemetry one\n\
         2023-11-14T22:13:20Z 2:1 vehicle/1/telemetry two\n"
    );
    let text =
        server.weir(&["stream", "tail", "telemetry", "-o", "json", "-n2", "--shard", "2"]).await.output();
    let first: serde_json::Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
    let expected = serde_json::json!({
        "shard": 2, "offset": 0, "ts": 1_700_000_000_000_000_u64, "topic": "vehicle/1/telemetry",
        "key": "k", "payload": "one", "properties": [["n", "v"]],
    });
    assert_eq!(first, expected);
    server.weir(&["stream", "tail", "telemetry", "--offset", "2023-11-14T22:13:20Z", "-f"]).await.output();
    server.weir(&["stream", "tail", "telemetry", "--offset", "17"]).await.output();

    let args = ["--offset", "0:4,2:9", "--until", "latest", "--filter", "vehicle/#", "--message-key", "k"];
    server.weir(&[&["stream", "tail", "telemetry"][..], &args].concat()).await.output();

    let at = |place| Some(StreamPlace { place: Some(place) });
    let request = |place, follow| ReadStreamRequest {
        name: "telemetry".into(),
        from: at(place),
        follow,
        ..ReadStreamRequest::default()
    };
    let asked = server.asked.0.lock().clone();
    assert_eq!(asked[0], request(Place::Earliest(Earliest {}), false));
    let latest = request(Place::Latest(Latest {}), true);
    assert_eq!(asked[1], ReadStreamRequest { shard: Some(2), limit: 2, ..latest });
    assert_eq!(asked[2], request(Place::TimestampMicros(1_700_000_000_000_000), true));
    assert_eq!(asked[3], request(Place::Offset(17), false));
    let shards = vec![ShardOffset { shard: 0, offset: 4 }, ShardOffset { shard: 2, offset: 9 }];
    let some = ReadStreamRequest {
        until: at(Place::Latest(Latest {})),
        topic_filter: "vehicle/#".into(),
        key: Some("k".into()),
        ..request(Place::Offsets(ShardOffsets { shards }), false)
    };
    assert_eq!(asked[4], some);
}

#[tokio::test]
async fn a_trim_says_what_went() {
    let server = start().await;
    let text = server.weir(&["stream", "trim", "telemetry", "--before", "offset:17"]).await.output();
    assert_eq!(
        text,
        "SHARD  START  NEXT  REMOVED\n    0     17    40       17\n    1     17    40        3\nremoved 20\n"
    );
    let args = ["stream", "trim", "telemetry", "--before", "latest", "--shard", "1", "--dry-run"];
    assert!(server.weir(&args).await.output().ends_with("would remove 20\n"));
    let json = server.weir(&[&args[..], &["-o", "json"]].concat()).await.output();
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!((&json["removed"], &json["dryRun"]), (&20.into(), &true.into()));
    let asked = server.asked.1.lock().clone();
    let place = |n: usize| asked[n].before.clone().and_then(|before| before.place);
    assert_eq!((place(0), asked[0].shard, asked[0].dry_run), (Some(Place::Offset(17)), None, false));
    assert_eq!((place(1), asked[1].shard, asked[1].dry_run), (Some(Place::Latest(Latest {})), Some(1), true));
    let failure = server.weir(&["stream", "trim", "telemetry", "--before", "soon"]).await;
    assert!(
        failure.code == 2 && failure.stderr.contains("allowed: earliest, latest, an offset"),
        "{failure:?}"
    );
}

#[tokio::test]
async fn the_address_may_be_as_the_log_of_the_broker_says_it() {
    let server = start().await;
    let list = server.weir(&["queue", "list"]).await.output();
    for scheme in ["grpc", "http"] {
        for end in ["", "/"] {
            let url = format!("{scheme}://{}{end}", server.addr);
            assert_eq!(weir(&["queue", "list", "--admin", &url], "").await.output(), list, "{url}");
        }
    }
    for wrong in [format!("mqtt://{}", server.addr), format!("grpc://{}/x", server.addr), "grpc://".into()] {
        let failure = weir(&["queue", "list", "--admin", &wrong], "").await.failure();
        assert!(failure.starts_with(&format!("weir: `{wrong}` is not allowed for --admin")), "{failure}");
    }
}

#[tokio::test]
async fn what_is_not_there_is_said() {
    let server = start().await;
    let failure = server.weir(&["queue", "describe", "nope"]).await.failure();
    assert_eq!(failure, "weir: there is no queue `nope`\n");

    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap().to_string();
    drop(listener);
    let failure = weir(&["stream", "list", "--admin", &addr], "").await.failure();
    assert!(failure.starts_with(&format!("weir: no broker answers at {addr} (")), "{failure}");
    assert!(failure.ends_with("start one with `weir serve`\n"), "{failure}");
}
