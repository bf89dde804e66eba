//! As KEDA asks, over gRPC; the Broker is a stub that knows a queue and a group.

use std::convert::Infallible;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context as Polled, Poll};

use super::*;
use futures_util::StreamExt as _;
use tokio_util::task::TaskTracker;
use tonic::Code;
use tonic::body::Body;
use tonic::codegen::{BoxFuture, Service, http};
use tonic::server::{Grpc, NamedService, UnaryService};
use tonic_prost::ProstCodec;
use weir_proto::admin::v1::{
    DescribeQueueRequest, DescribeQueueResponse, Group, ListGroupsRequest, ListGroupsResponse, Queue,
};
use weir_proto::externalscaler::external_scaler_client::ExternalScalerClient;

/// A Broker whose queue `jobs` is this deep, and whose group `workers` of the stream `events` that far behind.
#[derive(Clone, Default)]
struct Stub(Arc<AtomicU64>);

impl Stub {
    fn admit<T>(request: &Request<T>) -> Result<(), Status> {
        let shown = request.metadata().get("authorization").map(|value| value.as_bytes());
        if shown == Some(b"Bearer secret") { Ok(()) } else { Err(Status::unauthenticated("who are you")) }
    }
}

impl NamedService for Stub {
    const NAME: &'static str = "weir.admin.v1.Admin";
}

impl UnaryService<DescribeQueueRequest> for Stub {
    type Response = DescribeQueueResponse;
    type Future = BoxFuture<Response<Self::Response>, Status>;

    fn call(&mut self, request: Request<DescribeQueueRequest>) -> Self::Future {
        let depth = self.0.load(Ordering::Relaxed);
        Box::pin(async move {
            Self::admit(&request)?;
            if request.get_ref().name != "jobs" {
                return Err(Status::not_found("there is no such queue"));
            }
            let queue = Some(Queue { name: "jobs".into(), depth, ..Queue::default() });
            Ok(Response::new(DescribeQueueResponse { queue, ..DescribeQueueResponse::default() }))
        })
    }
}

impl UnaryService<ListGroupsRequest> for Stub {
    type Response = ListGroupsResponse;
    type Future = BoxFuture<Response<Self::Response>, Status>;

    fn call(&mut self, request: Request<ListGroupsRequest>) -> Self::Future {
        let lag = self.0.load(Ordering::Relaxed);
        Box::pin(async move {
            Self::admit(&request)?;
            let groups = vec![Group { name: "workers".into(), lag, ..Group::default() }];
            Ok(Response::new(ListGroupsResponse { groups }))
        })
    }
}

impl Service<http::Request<Body>> for Stub {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _: &mut Polled<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let stub = self.clone();
        Box::pin(async move {
            Ok(match request.uri().path() {
                "/weir.admin.v1.Admin/DescribeQueue" => {
                    Grpc::new(ProstCodec::<DescribeQueueResponse, DescribeQueueRequest>::default())
                        .unary(stub, request)
                        .await
                }
                "/weir.admin.v1.Admin/ListGroups" => {
                    Grpc::new(ProstCodec::<ListGroupsResponse, ListGroupsRequest>::default())
                        .unary(stub, request)
                        .await
                }
                other => Status::unimplemented(other.to_owned()).into_http(),
            })
        })
    }
}

/// A stub, the scaler before it, and a client as KEDA has one.
struct Bench {
    stub: Stub,
    keda: ExternalScalerClient<tonic::transport::Channel>,
    cancel: CancellationToken,
    tasks: TaskTracker,
}

impl Bench {
    async fn new() -> Self {
        let (stub, cancel, tasks) = (Stub::default(), CancellationToken::new(), TaskTracker::new());
        let admin = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", admin.local_addr().unwrap());
        let served = Server::builder()
            .add_service(stub.clone())
            .serve_with_incoming_shutdown(TcpIncoming::from(admin), cancel.clone().cancelled_owned());
        tasks.spawn(served);
        let args = Args {
            listen: ([127, 0, 0, 1], 0).into(),
            broker_address: [format!("city/main={url}"), "city/gone=http://127.0.0.1:1".into()]
                .map(|address| crate::run::broker_address(&address).unwrap())
                .into(),
            watch_namespaces: Vec::new(),
            token_file: None,
            log_format: LogFormat::Text,
            log_filter: "info".into(),
        };
        let mut directory = fixed(&args).unwrap();
        directory.token = header("secret\n");
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let brokers = asked(directory);
        tasks.spawn(serve(listener, brokers, Duration::from_millis(20), cancel.clone()));
        let keda = ExternalScalerClient::connect(url).await.unwrap();
        Self { stub, keda, cancel, tasks }
    }

    fn waits(&self, messages: u64) {
        self.stub.0.store(messages, Ordering::Relaxed);
    }

    async fn is_active(&mut self, object: ScaledObjectRef) -> Result<bool, Status> {
        Ok(self.keda.is_active(object).await?.into_inner().result)
    }

    async fn metric(&mut self, object: ScaledObjectRef) -> Result<MetricValue, Status> {
        let request = GetMetricsRequest { scaled_object_ref: Some(object), metric_name: "s0-it".into() };
        Ok(self.keda.get_metrics(request).await?.into_inner().metric_values.remove(0))
    }

    async fn end(self) {
        self.cancel.cancel();
        self.tasks.close();
        drop(self.keda);
        self.tasks.wait().await;
    }
}

fn asked(fixed: Fixed) -> Brokers {
    Brokers::new(fixed.directory(), HashMap::default(), Arc::new(fixed), Clock::system())
}

fn object(metadata: &[(&str, &str)]) -> ScaledObjectRef {
    let text = |text: &&str| (*text).to_owned();
    ScaledObjectRef {
        name: "workers".into(),
        namespace: "city".into(),
        scaler_metadata: metadata.iter().map(|(key, value)| (text(key), text(value))).collect(),
    }
}

#[tokio::test]
async fn a_queue_is_as_deep_as_its_broker_says() {
    let mut bench = Bench::new().await;
    let jobs = object(&[("broker", "main"), ("queue", "jobs"), ("target", "20"), ("activation", "5")]);
    let specs = bench.keda.get_metric_spec(jobs.clone()).await.unwrap().into_inner().metric_specs;
    let expected =
        MetricSpec { metric_name: "weir-queue-jobs".into(), target_size: 20, target_size_float: 20.0 };
    assert_eq!(specs, [expected]);
    for (messages, active) in [(0, false), (5, false), (6, true), (1234, true)] {
        bench.waits(messages);
        assert_eq!(bench.is_active(jobs.clone()).await.unwrap(), active, "{messages}");
        let metric = bench.metric(jobs.clone()).await.unwrap();
        assert_eq!(metric.metric_name, "s0-it");
        assert_eq!((metric.metric_value, metric.metric_value_float), (messages as i64, messages as f64));
    }
    bench.end().await;
}

#[tokio::test]
async fn a_group_counts_by_its_lag_and_a_new_one_gets_its_first_member() {
    let mut bench = Bench::new().await;
    let old = object(&[("broker", "main"), ("stream", "events"), ("group", "workers")]);
    assert!(!bench.is_active(old.clone()).await.unwrap());
    bench.waits(77);
    assert!(bench.is_active(old.clone()).await.unwrap());
    assert_eq!(bench.metric(old).await.unwrap().metric_value, 77);
    let new = object(&[("broker", "main"), ("stream", "events"), ("group", "new"), ("activation", "10")]);
    assert!(bench.is_active(new.clone()).await.unwrap());
    assert_eq!(bench.metric(new).await.unwrap().metric_value, 1);
    bench.end().await;
}

#[tokio::test]
async fn errors_say_whose_they_are() {
    let mut bench = Bench::new().await;
    for (metadata, code, part) in [
        (vec![("broker", "main")], Code::InvalidArgument, "metadata.queue"),
        (
            vec![("broker", "main"), ("queue", "none")],
            Code::NotFound,
            "Broker city/main: there is no such queue",
        ),
        (
            vec![("broker", "other"), ("queue", "jobs")],
            Code::NotFound,
            "Broker city/other: there is no such Broker",
        ),
        (vec![("broker", "gone"), ("queue", "jobs")], Code::Unavailable, "Broker city/gone"),
    ] {
        let error = bench.is_active(object(&metadata)).await.unwrap_err();
        assert!(error.code() == code && error.message().contains(part), "{error}");
        let error = bench.metric(object(&metadata)).await.unwrap_err();
        assert!(error.code() == code && error.message().contains(part), "{error}");
    }
    let none = GetMetricsRequest::default();
    assert_eq!(bench.keda.get_metrics(none).await.unwrap_err().code(), Code::InvalidArgument);
    let huge = "x".repeat(REQUEST_BYTES_MAX + 1);
    assert!(bench.is_active(object(&[("broker", &huge)])).await.is_err());
    bench.end().await;
}

#[tokio::test]
async fn a_stream_tells_what_is_and_then_what_changes() {
    let mut bench = Bench::new().await;
    let jobs = object(&[("broker", "main"), ("queue", "jobs")]);
    let mut told = bench.keda.stream_is_active(jobs).await.unwrap().into_inner();
    assert!(!told.next().await.unwrap().unwrap().result);
    bench.waits(1);
    assert!(told.next().await.unwrap().unwrap().result);
    // Streams end with the process, so that it need not wait for them.
    bench.cancel.cancel();
    assert!(told.next().await.is_none_or(|ended| ended.is_err()));
    bench.end().await;
}

#[tokio::test]
async fn streams_are_bounded() {
    let cancel = CancellationToken::new();
    let fixed = Fixed { addresses: HashMap::default(), token: None };
    let scaler =
        Scaler { brokers: Arc::new(asked(fixed)), streams: Arc::new(Semaphore::new(1)), look: LOOK, cancel };
    let jobs = || Request::new(object(&[("broker", "main"), ("queue", "jobs")]));
    let first = scaler.stream_is_active(jobs()).await.unwrap();
    let Err(refused) = scaler.stream_is_active(jobs()).await else { panic!("there is no room") };
    assert_eq!(refused.code(), Code::ResourceExhausted);
    drop(first);
    assert!(scaler.stream_is_active(jobs()).await.is_ok());
}
