//! Pods that answer, refuse and are away.

use std::collections::BTreeMap;
use std::pin::Pin;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use serde_json::json;
use tokio::net::TcpListener;
use tokio_util::task::TaskTracker;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Certificate, Identity, ServerTlsConfig};
use weir_proto::admin::v1::declarations_server::{Declarations, DeclarationsServer};

use super::*;
use crate::brokers::pods::Reading;

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

struct Fixed {
    addresses: Vec<Uri>,
    /// With which calls are to be made now; none: without TLS.
    certificates: Mutex<Option<Arc<Certificates>>>,
}

impl Whereabouts for Fixed {
    fn ready(&self, _: &Broker) -> Vec<Door> {
        let secret = self.certificates.lock().as_ref().map(|_| "pods".to_owned());
        let door =
            |address: &Uri| Door { address: address.clone(), token: None, certificates: secret.clone() };
        self.addresses.iter().map(door).collect()
    }

    fn certificates<'a>(&'a self, namespace: &'a str, secret: &'a str) -> Reading<'a> {
        assert_eq!((namespace, secret), ("messaging", "pods"));
        Box::pin(std::future::ready(Ok(self.certificates.lock().clone().unwrap())))
    }
}

impl Bench {
    /// A pod; none: nobody listens at its address.
    async fn pod(&mut self, does: Option<Does>) {
        self.pod_with(does, None).await;
    }

    async fn pod_with(&mut self, does: Option<Does>, tls: Option<ServerTlsConfig>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let scheme = if tls.is_some() { "https" } else { "http" };
        let address = format!("{scheme}://{}", listener.local_addr().unwrap()).parse().unwrap();
        self.addresses.insert(self.asked.len(), address);
        let asked = Arc::new(AtomicUsize::new(0));
        self.asked.push(Arc::clone(&asked));
        let Some(does) = does else { return };
        let mut server = tonic::transport::Server::builder();
        if let Some(tls) = tls {
            server = server.tls_config(tls).unwrap();
        }
        let server = server
            .add_service(DeclarationsServer::new(TestPod { does, asked }))
            .serve_with_incoming(TcpIncoming::from(listener));
        self.tasks.spawn(server);
    }

    fn remote(&self) -> Remote {
        self.remote_with(None).0
    }

    fn remote_with(&self, certificates: Option<Certificates>) -> (Remote, Arc<Fixed>) {
        let addresses = self.addresses.values().cloned().collect();
        let fixed = Arc::new(Fixed { addresses, certificates: Mutex::new(certificates.map(Arc::new)) });
        let pods: Arc<dyn Whereabouts> = fixed.clone();
        (Remote::new(HashMap::default(), pods, Clock::system()), fixed)
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

/// PEM of a certificate for `name`, of its key, and of the authority of this test that has signed it.
fn signed(name: &str) -> [String; 3] {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let authority = params.self_signed(&key).unwrap().pem();
    let issuer = rcgen::Issuer::new(params, key);
    let key = rcgen::KeyPair::generate().unwrap();
    let params = rcgen::CertificateParams::new([name.to_owned()]).unwrap();
    let certificate = params.signed_by(&key, &issuer).unwrap().pem();
    [certificate, key.serialize_pem(), authority]
}

fn certificates(files: &[String; 3]) -> Certificates {
    let file = |(name, text): (&str, &String)| (name.to_owned(), ByteString(text.clone().into_bytes()));
    let data = ["tls.crt", "tls.key", "ca.crt"].into_iter().zip(files).map(file).collect();
    Certificates::of(&Secret { data: Some(data), ..Secret::default() }).unwrap()
}

/// As a pod that shows its certificate, and wants to see one of the same authority.
fn server([certificate, key, authority]: &[String; 3]) -> ServerTlsConfig {
    let identity = Identity::from_pem(certificate, key);
    ServerTlsConfig::new().identity(identity).client_ca_root(Certificate::from_pem(authority))
}

#[tokio::test]
async fn pods_and_callers_prove_themselves_to_each_other() {
    const NAME: &str = "main.messaging.weir.internal";
    let [own, old, others] = [NAME, NAME, "other"].map(signed);
    let mut bench = Bench::default();
    bench.pod_with(Some(Does::Answer(7)), Some(server(&own))).await;
    let (remote, fixed) = bench.remote_with(Some(certificates(&old)));
    let refused = remote.acquire_writer(&broker(), "eu").await.unwrap_err().to_string();
    assert!(refused.contains("invalid peer certificate"), "another authority's: {refused}");
    // The pods were renewed, and now the caller has read it.
    *fixed.certificates.lock() = Some(Arc::new(certificates(&own)));
    assert_eq!(remote.acquire_writer(&broker(), "eu").await, Ok(7));
    assert_eq!(bench.asked(), [1]);

    let ([_, _, trusted], [certificate, key, _]) = (own, old);
    *fixed.certificates.lock() = Some(Arc::new(certificates(&[certificate, key, trusted])));
    assert!(remote.acquire_writer(&broker(), "eu").await.is_err(), "the caller has another authority's");
    assert_eq!(bench.asked(), [1], "the call did not come through");

    let mut bench = Bench::default();
    bench.pod_with(Some(Does::Answer(7)), Some(server(&others))).await;
    let (remote, fixed) = bench.remote_with(Some(certificates(&others)));
    let refused = remote.acquire_writer(&broker(), "eu").await.unwrap_err().to_string();
    assert!(refused.contains("not valid for name"), "{refused}");
    let [certificate, _, authority] = others;
    *fixed.certificates.lock() = Some(Arc::new(certificates(&[certificate, "no key".to_owned(), authority])));
    let refused = remote.acquire_writer(&broker(), "eu").await.unwrap_err().to_string();
    assert!(refused.contains("messaging/pods of spec.adminTls is no good"), "{refused}");
}
