//! Links between pods over gRPC, on loopback.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::future::BoxFuture;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use weir_core::cluster::links::{LinkOptions, Links, PEER_BYTES_MIN, PeerHandler, TrySendError, Unreachable};
use weir_core::cluster::message::live::Forward;
use weir_core::cluster::message::{FeedMessage, Lane, LiveMessage, PeerMessage, SessionMessage};
use weir_core::cluster::network::{Network, Peer};
use weir_core::message::{Message, Properties};
use weir_core::metrics::PeerMetrics;
use weir_env::clock::{Clock, Timestamp};
use weir_env::seed::Seed;
use weir_storage::Version;
use weir_topic::TopicName;

use super::*;
use crate::config::PeerConfig;

const CLUSTER: [u8; 16] = [7; 16];
const WAIT: Duration = Duration::from_secs(30);

/// Passes on what it is told, and can be held up.
struct Recorder {
    told_tx: mpsc::Sender<(PodId, String)>,
    is_held: watch::Receiver<bool>,
    is_up: AtomicBool,
}

impl PeerHandler for Recorder {
    fn handle(&self, from: PodId, message: PeerMessage) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            let mut is_held = self.is_held.clone();
            is_held.wait_for(|is_held| !is_held).await.unwrap();
            assert!(self.is_up.load(Ordering::Relaxed), "no link is up");
            let text = match message {
                PeerMessage::Live(LiveMessage::Forward(forward)) => {
                    format!("live {}", forward.message.payload.len())
                }
                PeerMessage::Session(SessionMessage::Kicked { request, .. }) => format!("kicked {request}"),
                other => format!("{other:?}"),
            };
            self.told_tx.send((from, text)).await.unwrap();
        })
    }

    fn link_up(&self, _pod: PodId) {
        self.is_up.store(true, Ordering::Relaxed);
    }
}

struct Pod {
    id: PodId,
    address: SocketAddr,
    links: Links,
    told_rx: mpsc::Receiver<(PodId, String)>,
    held_tx: watch::Sender<bool>,
    server: JoinSet<()>,
}

async fn pod_at(number: u8, address: SocketAddr, cluster: [u8; 16], config: &PeerConfig) -> Pod {
    let listener = TcpListener::bind(address).await.unwrap();
    let address = listener.local_addr().unwrap();
    let security = Security::read(config, Duration::from_millis(20)).unwrap();
    let network = Arc::new(GrpcNetwork::new(&security, TaskTracker::new()));
    let id = PodId([number; 16]);
    let options = LinkOptions { peer_bytes: PEER_BYTES_MIN, ..LinkOptions::default() };
    let (seed, metrics) = (Seed::fixed(number.into()), PeerMetrics::default());
    let links = Links::new(Identity { pod: id, cluster }, network, Clock::system(), &seed, &metrics, options);
    let (told_tx, told_rx) = mpsc::channel(10_000);
    let (held_tx, is_held) = watch::channel(false);
    for lane in Lane::ALL {
        let (told_tx, is_held) = (told_tx.clone(), is_held.clone());
        // Only one lane is held up.
        let is_held = if lane == Lane::Live { is_held } else { watch::channel(false).1 };
        links.handle_with(lane, Arc::new(Recorder { told_tx, is_held, is_up: AtomicBool::new(false) }));
    }
    let mut server = JoinSet::new();
    let serving = PeerServer::new(listener, security).run(links.clone(), CancellationToken::new());
    server.spawn(async { serving.await.unwrap() });
    Pod { id, address, links, told_rx, held_tx, server }
}

async fn pod(number: u8) -> Pod {
    pod_at(number, SocketAddr::from(([127, 0, 0, 1], 0)), CLUSTER, &PeerConfig::default()).await
}

impl Pod {
    fn peer(&self) -> Peer {
        Peer { pod: self.id, address: self.address.to_string() }
    }

    async fn until_link(&self, other: PodId, up: bool) {
        let mut events = self.links.link_events();
        let waiting = events.wait_for(|links| links.contains_key(&other) == up);
        let waited = tokio::time::timeout(WAIT, waiting).await;
        assert!(waited.is_ok(), "the link did not change to up: {up}");
    }

    async fn hears(&mut self, from: PodId, text: &str) {
        let told = tokio::time::timeout(WAIT, self.told_rx.recv()).await;
        assert_eq!(told.unwrap().unwrap(), (from, text.to_owned()));
    }

    /// Why `to` refuses this pod.
    async fn refused_by(&self, to: &Peer, config: &PeerConfig, cluster: [u8; 16]) -> String {
        let security = Security::read(config, Duration::ZERO).unwrap();
        let network = GrpcNetwork::new(&security, TaskTracker::new());
        network.connect(&Identity { pod: self.id, cluster }, to).await.err().unwrap().0
    }

    /// Ends it as a process ends that is killed.
    async fn kill(mut self) {
        self.server.shutdown().await;
        self.links.close().await;
    }
}

async fn connected(one: &Pod, other: &Pod) {
    one.links.set_peers(&[other.peer()]);
    other.links.set_peers(&[one.peer()]);
    one.until_link(other.id, true).await;
    other.until_link(one.id, true).await;
}

fn payload(bytes: usize) -> LiveMessage {
    let message = Message {
        topic: TopicName::parse("t").unwrap(),
        payload: Bytes::from(vec![0; bytes]),
        qos: 0,
        retain: false,
        published_at: Timestamp::default(),
        expires_at: None,
        dead_letter: None,
        properties: Properties::default(),
    };
    LiveMessage::Forward(Forward { message: Arc::new(message), publisher: None, groups: Vec::new(), hops: 0 })
}

fn kicked(request: u64) -> SessionMessage {
    SessionMessage::Kicked { request, received: Vec::new() }
}

#[tokio::test]
async fn messages_arrive_in_order_both_ways_and_large_ones_too() {
    let (mut one, mut two) = (pod(1).await, pod(2).await);
    connected(&one, &two).await;
    for n in 0..2_000 {
        one.links.send(two.id, kicked(n)).await.unwrap();
        two.links.send(one.id, kicked(n)).await.unwrap();
    }
    for n in 0..2_000 {
        two.hears(one.id, &format!("kicked {n}")).await;
        one.hears(two.id, &format!("kicked {n}")).await;
    }
    for bytes in [17 << 20, 1] {
        one.links.send(two.id, payload(bytes)).await.unwrap();
        two.hears(one.id, &format!("live {bytes}")).await;
    }
    one.links.send(two.id, FeedMessage::Applied(Version(9))).await.unwrap();
    two.hears(one.id, "Feed(Applied(Version(9)))").await;
}

#[tokio::test]
async fn a_slow_pod_costs_only_what_is_for_it() {
    let (one, mut slow, mut other) = (pod(1).await, pod(2).await, pod(3).await);
    one.links.set_peers(&[slow.peer(), other.peer()]);
    for pod in [&slow, &other] {
        pod.links.set_peers(&[one.peer()]);
        one.until_link(pod.id, true).await;
    }
    slow.held_tx.send_replace(true);
    let mut sent = 0;
    while one.links.try_send(slow.id, payload(10_000)).is_ok() || {
        // What is in line moves on as long as the other side takes it.
        tokio::time::timeout(Duration::from_millis(500), one.links.send(slow.id, payload(10_000)))
            .await
            .is_ok()
    } {
        sent += 10_000;
        assert!(sent < 2 * PEER_BYTES_MIN, "it grows");
    }
    assert_eq!(one.links.try_send(slow.id, payload(10_000)), Err(TrySendError::Full));
    one.links.try_send(slow.id, kicked(1)).unwrap();
    slow.hears(one.id, "kicked 1").await;
    one.links.try_send(other.id, payload(5)).unwrap();
    other.hears(one.id, "live 5").await;
    slow.held_tx.send_replace(false);
    one.links.send(slow.id, payload(10_000)).await.unwrap();
    for _ in 0..=sent / 10_000 {
        slow.hears(one.id, "live 10000").await;
    }
}

#[tokio::test]
async fn a_pod_that_is_killed_is_noticed_and_another_takes_its_place() {
    // The one that dials is killed, then the one that is dialled.
    for (number, killed_number) in [(2, 1), (1, 2)] {
        let (mut one, killed) = (pod(number).await, pod(killed_number).await);
        connected(&one, &killed).await;
        let (killed_id, address) = (killed.id, killed.address);
        killed.kill().await;
        one.until_link(killed_id, false).await;
        assert_eq!(one.links.send(killed_id, kicked(1)).await, Err(Unreachable));

        // The next process has the address, and an id of its own.
        let next = pod_at(killed_number + 10, address, CLUSTER, &PeerConfig::default()).await;
        let known = Peer { pod: PodId([killed_number; 16]), ..next.peer() };
        let error = one.refused_by(&known, &PeerConfig::default(), CLUSTER).await;
        assert!(error.contains("this is pod 0") && error.contains("which was here before"), "{error}");
        connected(&one, &next).await;
        next.links.send(one.id, kicked(2)).await.unwrap();
        one.hears(next.id, "kicked 2").await;
    }
}

#[tokio::test]
async fn strangers_are_refused_with_a_reason() {
    let dir = tempfile::tempdir().unwrap();
    let token = |name: &str| {
        std::fs::write(dir.path().join(name), format!("a long enough token: {name}\n")).unwrap();
        PeerConfig { token_file: Some(dir.path().join(name)), ..PeerConfig::default() }
    };
    let (right, wrong) = (token("right"), token("wrong"));
    let anywhere = SocketAddr::from(([127, 0, 0, 1], 0));
    let one = pod_at(1, anywhere, CLUSTER, &right).await;
    let two = pod_at(2, anywhere, CLUSTER, &right).await;
    let unknown = one.refused_by(&two.peer(), &right, CLUSTER).await;
    assert!(unknown.contains("is no member here yet"), "{unknown}");
    connected(&one, &two).await;
    for (config, cluster, reason) in [
        (&right, [8; 16], "it works on another keyspace"),
        (&wrong, CLUSTER, "refuses this pod's token"),
        (&PeerConfig::default(), CLUSTER, "refuses this pod's token"),
    ] {
        let error = one.refused_by(&two.peer(), config, cluster).await;
        assert!(error.contains(reason), "{error}");
    }
    let nobody = Peer { address: "127.0.0.1:1".to_owned(), ..two.peer() };
    let error = one.refused_by(&nobody, &right, CLUSTER).await;
    assert!(error.contains("127.0.0.1:1"), "{error}");
    assert!(one.links.is_up(two.id), "the link there was stays");
}

#[test]
fn hellos_are_checked() {
    let me = Identity { pod: PodId([2; 16]), cluster: CLUSTER };
    let other = Identity { pod: PodId([1; 16]), cluster: CLUSTER };
    let good = hello(&other, me.pod);
    assert_eq!(check(Some(good.clone()), &me), Ok(other.pod));
    let future = wire::Hello { protocol: 9, protocol_oldest: 8, pod: Bytes::new(), ..good.clone() };
    assert_eq!(check(Some(future), &me), Err(Refusal::Protocol { oldest: 8, newest: 9 }));
    let compatible = wire::Hello { protocol: 9, protocol_oldest: 1, ..good.clone() };
    assert_eq!(check(Some(compatible), &me), Ok(other.pod));
    let short = wire::Hello { pod: Bytes::from_static(b"x"), ..good.clone() };
    assert_eq!(check(Some(short), &me), Err(Refusal::Malformed(Malformed("pod"))));
    let elsewhere = hello(&Identity { cluster: [0; 16], ..other }, me.pod);
    assert_eq!(check(Some(elsewhere), &me), Err(Refusal::Cluster));
    let meant = PodId([3; 16]);
    assert_eq!(check(Some(hello(&other, meant)), &me), Err(Refusal::NotMe { me: me.pod, meant }));
    assert_eq!(check(None, &me), Err(Refusal::Malformed(Malformed("hello"))));
}

/// Passes bytes both ways until told to hold them back, without closing anything.
async fn proxy(to: SocketAddr, is_stalled: watch::Receiver<bool>) -> (SocketAddr, JoinSet<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut carried = JoinSet::new();
        while let Ok((mut client, _)) = listener.accept().await {
            let mut is_stalled = is_stalled.clone();
            carried.spawn(async move {
                let mut server = TcpStream::connect(to).await.unwrap();
                let stalled = async { drop(is_stalled.wait_for(|stalled| *stalled).await) };
                tokio::select! {
                    _ = tokio::io::copy_bidirectional(&mut client, &mut server) => {}
                    () = stalled => std::future::pending().await,
                }
            });
        }
    });
    (address, tasks)
}

#[tokio::test]
async fn a_connection_without_a_sign_of_life_breaks_on_both_sides() {
    let (one, two) = (pod(1).await, pod(2).await);
    let (stall_tx, is_stalled) = watch::channel(false);
    let (address, _proxy) = proxy(two.address, is_stalled).await;
    one.links.set_peers(&[Peer { pod: two.id, address: address.to_string() }]);
    two.links.set_peers(&[one.peer()]);
    one.until_link(two.id, true).await;
    two.until_link(one.id, true).await;
    stall_tx.send_replace(true);
    one.until_link(two.id, false).await;
    two.until_link(one.id, false).await;
}

/// Writes a certificate for 127.0.0.1, its key, and the authority.
fn certificates(dir: &Path, name: &str) -> PeerConfig {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut authority = rcgen::CertificateParams::new(Vec::new()).unwrap();
    authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let authority_certificate = authority.self_signed(&key).unwrap();
    let issuer = rcgen::Issuer::new(authority, key);
    let key = rcgen::KeyPair::generate().unwrap();
    let params = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned(), "pods.test".to_owned()]).unwrap();
    let certificate = params.signed_by(&key, &issuer).unwrap();
    let write = |kind: &str, text: String| {
        let path = dir.join(format!("{name}-{kind}.pem"));
        std::fs::write(&path, text).unwrap();
        Some(path)
    };
    PeerConfig {
        certificate_file: write("certificate", certificate.pem()),
        key_file: write("key", key.serialize_pem()),
        ca_file: write("authority", authority_certificate.pem()),
        ..PeerConfig::default()
    }
}

#[tokio::test]
async fn certificates_of_common_authorities_open_and_others_do_not() {
    let dir = tempfile::tempdir().unwrap();
    let (ours, theirs) = (certificates(dir.path(), "ours"), certificates(dir.path(), "theirs"));
    let anywhere = SocketAddr::from(([127, 0, 0, 1], 0));
    let one = pod_at(1, anywhere, CLUSTER, &ours).await;
    let mut two = pod_at(2, anywhere, CLUSTER, &ours).await;
    connected(&one, &two).await;
    one.links.send(two.id, kicked(1)).await.unwrap();
    two.hears(one.id, "kicked 1").await;
    // Nobody's but ours, as a client that trusts our authority.
    let stranger = PeerConfig { ca_file: ours.ca_file.clone(), ..theirs.clone() };
    let other_name = PeerConfig { server_name: Some("other.test".to_owned()), ..ours.clone() };
    for config in [theirs, stranger, PeerConfig::default(), other_name] {
        one.refused_by(&two.peer(), &config, CLUSTER).await;
    }
    let named = PeerConfig { server_name: Some("pods.test".to_owned()), ..ours };
    let security = Security::read(&named, Duration::ZERO).unwrap();
    let me = one.links.me();
    assert!(GrpcNetwork::new(&security, TaskTracker::new()).connect(&me, &two.peer()).await.is_ok());
}

#[tokio::test]
async fn certificates_that_change_count_without_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let config = certificates(dir.path(), "ours");
    let anywhere = SocketAddr::from(([127, 0, 0, 1], 0));
    let two = pod_at(2, anywhere, CLUSTER, &config).await;
    let security = Security::read(&config, Duration::ZERO).unwrap();
    let network = GrpcNetwork::new(&security, TaskTracker::new());
    let me = Identity { pod: PodId([1; 16]), cluster: CLUSTER };
    two.links.set_peers(&[Peer { pod: me.pod, address: "127.0.0.1:1".to_owned() }]);
    assert!(network.connect(&me, &two.peer()).await.is_ok());
    // Another authority, and certificates of it.
    certificates(dir.path(), "ours");
    let followed = async {
        while network.connect(&me, &two.peer()).await.is_err() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    assert!(tokio::time::timeout(WAIT, followed).await.is_ok(), "the new certificates in time");
}
