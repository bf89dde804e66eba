//! Pods that answer, refuse and are away.

use std::collections::BTreeMap;
use std::pin::Pin;

use serde_json::json;
use tokio::net::TcpListener;
use tokio_util::task::TaskTracker;
use tonic::transport::server::TcpIncoming;
use weir_proto::admin::v1::declarations_server::{Declarations, DeclarationsServer};

use super::*;

/// What a pod does with every call.
#[derive(Clone, Copy, Debug)]
enum Does {
    Answer(u64),
    /// As a broker that says no.
    Refuse,
    /// As a broker whose store is away.
    Fail,
}

struct TestPod {
    does: Does,
    asked: Arc<AtomicUsize>,
}

#[tonic::async_trait]
impl Declarations for TestPod {
    type WatchDeclaredStream =
        Pin<Box<dyn futures_util::Stream<Item = Result<wire::WatchDeclaredResponse, Status>> + Send>>;

    async fn acquire_writer(
        &self,
        _: Request<wire::AcquireWriterRequest>,
    ) -> Result<Response<wire::AcquireWriterResponse>, Status> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        match self.does {
            Does::Answer(writer) => Ok(Response::new(wire::AcquireWriterResponse { writer })),
            Does::Refuse => {
                let mut status = Status::resource_exhausted("too many clusters");
                status.metadata_mut().insert(REASON, "TooMany".parse().unwrap());
                Err(status)
            }
            Does::Fail => Err(Status::unavailable("the store does not answer")),
        }
    }

    async fn apply_object(
        &self,
        _: Request<wire::ApplyObjectRequest>,
    ) -> Result<Response<wire::ApplyObjectResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn release_object(
        &self,
        _: Request<wire::ReleaseObjectRequest>,
    ) -> Result<Response<wire::ReleaseObjectResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn list_declared(
        &self,
        _: Request<wire::ListDeclaredRequest>,
    ) -> Result<Response<wire::ListDeclaredResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn watch_declared(
        &self,
        _: Request<wire::WatchDeclaredRequest>,
    ) -> Result<Response<Self::WatchDeclaredStream>, Status> {
        Err(Status::unimplemented(""))
    }
}

/// Pods of one Broker, at addresses of this machine.
#[derive(Default)]
struct Bench {
    tasks: TaskTracker,
    addresses: BTreeMap<usize, Uri>,
    asked: Vec<Arc<AtomicUsize>>,
}

struct Fixed(Vec<Uri>);

impl Whereabouts for Fixed {
    fn ready(&self, _: &Broker) -> Vec<Door> {
        self.0.iter().map(|address| Door { address: address.clone(), token: None }).collect()
    }
}

impl Bench {
    /// A pod; none: nobody listens at its address.
    async fn pod(&mut self, does: Option<Does>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
        self.addresses.insert(self.asked.len(), address);
        let asked = Arc::new(AtomicUsize::new(0));
        self.asked.push(Arc::clone(&asked));
        let Some(does) = does else { return };
        let server = tonic::transport::Server::builder()
            .add_service(DeclarationsServer::new(TestPod { does, asked }))
            .serve_with_incoming(TcpIncoming::from(listener));
        self.tasks.spawn(server);
    }

    fn remote(&self) -> Remote {
        let fixed = Fixed(self.addresses.values().cloned().collect());
        Remote::new(HashMap::default(), Arc::new(fixed), Clock::system())
    }

    fn asked(&self) -> Vec<usize> {
        self.asked.iter().map(|asked| asked.load(Ordering::Relaxed)).collect()
    }
}

fn broker() -> Broker {
    serde_json::from_value(json!({
        "apiVersion": "weir.dev/v1alpha1", "kind": "Broker",
        "metadata": {"name": "main", "namespace": "messaging"},
        "spec": {"replicas": 1, "store": {"embedded": {"storage": "1Gi"}}},
    }))
    .unwrap()
}

#[tokio::test]
async fn calls_take_turns_and_go_on_to_the_next_pod_if_one_is_away() {
    let mut bench = Bench::default();
    for does in [Some(Does::Answer(7)), None, Some(Does::Fail)] {
        bench.pod(does).await;
    }
    let (remote, broker) = (bench.remote(), broker());
    for _ in 0..12 {
        assert_eq!(remote.acquire_writer(&broker, "eu").await, Ok(7));
    }
    let asked = bench.asked();
    assert_eq!((asked[0], asked[1]), (12, 0));
    assert!(asked[2] <= 1, "a pod that failed is left in peace for a while: {asked:?}");

    let mut both = Bench::default();
    for _ in 0..2 {
        both.pod(Some(Does::Answer(1))).await;
    }
    let remote = both.remote();
    for _ in 0..10 {
        remote.acquire_writer(&broker, "eu").await.unwrap();
    }
    assert_eq!(both.asked(), [5, 5]);
}

#[tokio::test]
async fn a_refusal_is_an_answer() {
    let mut bench = Bench::default();
    for _ in 0..2 {
        bench.pod(Some(Does::Refuse)).await;
    }
    let refused = bench.remote().acquire_writer(&broker(), "eu").await.unwrap_err();
    assert!(matches!(refused, AdminError::Refused { refusal: Refusal::TooMany, .. }), "{refused}");
    assert_eq!(bench.asked().iter().sum::<usize>(), 1);
}

#[tokio::test]
async fn a_broker_without_a_pod_that_answers_is_away() {
    for pods in [&[][..], &[None], &[Some(Does::Fail), None]] {
        let mut bench = Bench::default();
        for does in pods {
            bench.pod(*does).await;
        }
        let away = bench.remote().acquire_writer(&broker(), "eu").await.unwrap_err();
        assert!(matches!(away, AdminError::Unavailable(_)), "{away}");
    }
}
