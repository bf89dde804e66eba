//! Links over a network in memory, on paused time.

use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use tokio::sync::Notify;
use weir_env::clock::Timestamp;

use super::*;
use crate::cluster::message::live::Forward;
use crate::cluster::message::{LiveMessage, SessionMessage};
use crate::cluster::testing::{MemoryNetwork, SILENCE};
use crate::message::Message;

const CLUSTER: [u8; 16] = [7; 16];
const OPTIONS: LinkOptions = LinkOptions {
    peer_bytes: PEER_BYTES_MIN,
    ping: Duration::from_secs(1),
    backoff_min: Duration::from_millis(50),
    backoff_max: Duration::from_secs(2),
};

/// What a handler was told, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Told {
    Up,
    Session(u64),
    Live(usize),
    Down,
}

/// Writes down what it is told, and can be held up.
#[derive(Default)]
struct Recorder {
    told: Mutex<Vec<(PodId, Told)>>,
    news: Notify,
    held: AtomicBool,
    released: Notify,
}

impl Recorder {
    fn tell(&self, pod: PodId, told: Told) {
        self.told.lock().push((pod, told));
        self.news.notify_one();
    }

    /// Waits until `wanted` of what it was told is true.
    async fn until(&self, wanted: impl Fn(&[(PodId, Told)]) -> bool) {
        let waiting = async {
            while !wanted(&self.told.lock()) {
                self.news.notified().await;
            }
        };
        let waited = tokio::time::timeout(Duration::from_secs(60), waiting).await;
        assert!(waited.is_ok(), "told only {:?}", self.told.lock());
    }

    fn release(&self) {
        self.held.store(false, Ordering::Relaxed);
        self.released.notify_one();
    }
}

impl PeerHandler for Recorder {
    fn handle(&self, from: PodId, message: PeerMessage) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            while self.held.load(Ordering::Relaxed) {
                self.released.notified().await;
            }
            let told = match message {
                PeerMessage::Session(SessionMessage::Kicked { request, .. }) => Told::Session(request),
                PeerMessage::Live(LiveMessage::Forward(forward)) => Told::Live(forward.message.payload.len()),
                other => panic!("not sent here: {other:?}"),
            };
            self.tell(from, told);
        })
    }

    fn link_up(&self, pod: PodId) {
        self.tell(pod, Told::Up);
    }

    fn link_down(&self, pod: PodId) {
        self.tell(pod, Told::Down);
    }
}

struct Pod {
    id: PodId,
    links: Links,
    session: Arc<Recorder>,
    live: Arc<Recorder>,
    metrics: PeerMetrics,
}

fn pod_id(number: u8) -> PodId {
    PodId([number; 16])
}

fn peers(numbers: &[u8]) -> Vec<Peer> {
    numbers.iter().map(|number| Peer { pod: pod_id(*number), address: String::new() }).collect()
}

fn pod_of(network: &MemoryNetwork, number: u8, cluster: [u8; 16]) -> Pod {
    let (id, metrics) = (pod_id(number), PeerMetrics::default());
    let identity = Identity { pod: id, cluster };
    let network_of = Arc::new(network.clone());
    let seed = Seed::fixed(number.into());
    let links = Links::new(identity, network_of, Clock::system(), &seed, &metrics, OPTIONS);
    let (session, live) = (Arc::<Recorder>::default(), Arc::<Recorder>::default());
    links.handle_with(Lane::Session, Arc::clone(&session) as _);
    links.handle_with(Lane::Live, Arc::clone(&live) as _);
    network.attach(&links);
    Pod { id, links, session, live, metrics }
}

impl Pod {
    /// Waits for a link to `other`, or for its end.
    async fn until_link(&self, other: &Self, up: bool) {
        let mut events = self.links.link_events();
        let waiting = events.wait_for(|links| links.contains_key(&other.id) == up);
        let waited = tokio::time::timeout(Duration::from_secs(60), waiting).await;
        assert!(waited.is_ok(), "the link did not change to up: {up}");
    }
}

/// A network with `count` pods that know each other, and the links up.
async fn connected(count: u8) -> (MemoryNetwork, Vec<Pod>) {
    let network = MemoryNetwork::new(Clock::system(), &Seed::fixed(1));
    let numbers: Vec<u8> = (1..=count).collect();
    let pods: Vec<_> = numbers.iter().map(|number| pod_of(&network, *number, CLUSTER)).collect();
    for pod in &pods {
        pod.links.set_peers(&peers(&numbers));
    }
    for one in &pods {
        for other in pods.iter().filter(|other| other.id != one.id) {
            one.until_link(other, true).await;
        }
    }
    (network, pods)
}

fn number(request: u64) -> SessionMessage {
    SessionMessage::Kicked { request, received: Vec::new() }
}

fn payload(bytes: usize) -> LiveMessage {
    let message = Message {
        topic: weir_topic::TopicName::parse("t").unwrap(),
        payload: Bytes::from(vec![0; bytes]),
        qos: 0,
        retain: false,
        published_at: Timestamp::default(),
        expires_at: None,
        dead_letter: None,
        properties: crate::message::Properties::default(),
    };
    LiveMessage::Forward(Forward { message: Arc::new(message), publisher: None, groups: Vec::new(), hops: 0 })
}

#[tokio::test(start_paused = true)]
async fn messages_arrive_in_order_both_ways() {
    let (network, pods) = connected(3).await;
    network.set_delay(Duration::from_millis(1)..Duration::from_millis(9));
    for n in 0..5_000 {
        for (from, to) in [(0, 1), (1, 0), (2, 0)] {
            pods[from].links.send(pods[to].id, number(n)).await.unwrap();
        }
    }
    for (from, to) in [(0, 1), (1, 0), (2, 0)] {
        let sent: Vec<_> = std::iter::once(Told::Up).chain((0..5_000).map(Told::Session)).collect();
        let of_sender = |told: &[(PodId, Told)]| -> Vec<Told> {
            told.iter().filter(|(pod, _)| *pod == pods[from].id).map(|(_, told)| told.clone()).collect()
        };
        pods[to].session.until(|told| of_sender(told).len() == sent.len()).await;
        assert_eq!(of_sender(&pods[to].session.told.lock()), sent);
    }
    let series = pods[0].metrics.of(pods[1].id);
    assert_eq!(series.lanes[Lane::Session.index()].sent_messages.get(), 5_000);
    assert_eq!(series.lanes[Lane::Session.index()].received_messages.get(), 5_000);
    assert_eq!(series.lanes[Lane::Session.index()].queued_bytes.get(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_slow_lane_fills_up_and_holds_up_no_other() {
    let (_network, pods) = connected(3).await;
    let [one, slow, other] = [&pods[0], &pods[1], &pods[2]];
    slow.live.held.store(true, Ordering::Relaxed);
    let lane_bytes = u64::from(OPTIONS.lane_bytes(Lane::Live));
    let mut taken = 0;
    while let Ok(sent) =
        tokio::time::timeout(Duration::from_secs(5), one.links.send(slow.id, payload(10_000))).await
    {
        sent.unwrap();
        taken += 10_000;
        assert!(taken < 3 * lane_bytes, "it grows");
    }
    // What one side holds in line and the other has not handled.
    assert!(taken > 2 * lane_bytes - 50_000, "{taken} of {lane_bytes} twice");
    assert_eq!(one.links.try_send(slow.id, payload(10_000)), Err(TrySendError::Full));
    let series = one.metrics.of(slow.id);
    let queued = series.lanes[Lane::Live.index()].queued_bytes.get();
    assert!((1..=i64::try_from(lane_bytes).unwrap()).contains(&queued), "{queued}");
    assert_eq!(series.lanes[Lane::Live.index()].refusals.get(), 1);
    assert!(series.lanes[Lane::Live.index()].waits.get() > 0);

    one.links.try_send(slow.id, number(1)).unwrap();
    one.links.try_send(other.id, payload(5)).unwrap();
    slow.session.until(|told| told.contains(&(one.id, Told::Session(1)))).await;
    other.live.until(|told| told.contains(&(one.id, Told::Live(5)))).await;

    slow.live.release();
    one.links.send(slow.id, payload(6)).await.unwrap();
    slow.live.until(|told| told.last() == Some(&(one.id, Told::Live(6)))).await;
    assert_eq!(series.lanes[Lane::Live.index()].queued_bytes.get(), 0);
}

#[tokio::test(start_paused = true)]
async fn what_is_in_line_arrives_before_the_links_end() {
    let (network, pods) = connected(2).await;
    network.set_delay(Duration::from_millis(50)..Duration::from_millis(60));
    let [one, other] = [&pods[0], &pods[1]];
    for n in 1..=200 {
        one.links.try_send(other.id, payload(n)).unwrap();
    }
    one.links.close().await;
    other.live.until(|told| told.last() == Some(&(one.id, Told::Down))).await;
    let told = other.live.told.lock();
    let came = told.iter().filter(|(_, told)| matches!(told, Told::Live(_))).count();
    assert_eq!(came, 200);
}

#[tokio::test(start_paused = true)]
async fn a_message_larger_than_its_lane_goes_through() {
    let (_network, pods) = connected(2).await;
    for bytes in [2 * PEER_BYTES_MIN, 3 * PEER_BYTES_MIN, 1] {
        pods[0].links.send(pods[1].id, payload(bytes)).await.unwrap();
    }
    pods[1].live.until(|told| told.last() == Some(&(pods[0].id, Told::Live(1)))).await;
    assert_eq!(pods[1].live.told.lock().len(), 4);
}

#[tokio::test(start_paused = true)]
async fn a_cut_is_told_and_the_link_comes_back() {
    let (network, pods) = connected(2).await;
    let [one, two] = [&pods[0], &pods[1]];
    let links_before = one.links.link_events().borrow().clone();
    two.live.held.store(true, Ordering::Relaxed);
    // One that waits for room when the link breaks.
    while one.links.try_send(two.id, payload(100_000)).is_ok() {
        tokio::task::yield_now().await;
    }
    let waiting = one.links.send(two.id, payload(100_000));
    let cutting = async {
        tokio::time::sleep(Duration::from_millis(1)).await;
        network.partition(one.id, two.id);
        network.cut(one.id, two.id);
    };
    let (sent, ()) = tokio::join!(waiting, cutting);
    assert_eq!(sent, Err(Unreachable));
    one.until_link(two, false).await;
    assert_eq!(one.links.try_send(two.id, number(0)), Err(TrySendError::Unreachable));
    assert_eq!(one.links.send(two.id, number(0)).await, Err(Unreachable));

    two.live.release();
    network.heal();
    one.until_link(two, true).await;
    assert_ne!(*one.links.link_events().borrow(), links_before, "another number");
    one.links.send(two.id, payload(1)).await.unwrap();
    two.live.until(|told| told.last() == Some(&(one.id, Told::Live(1)))).await;
    let told: Vec<_> = two.live.told.lock().iter().map(|(_, told)| told.clone()).collect();
    let down = told.iter().position(|told| *told == Told::Down).unwrap();
    assert!(told[1..down].iter().all(|told| *told == Told::Live(100_000)), "{told:?}");
    assert_eq!(told[down..], [Told::Down, Told::Up, Told::Live(1)]);
    assert_eq!(one.metrics.of(two.id).links.get(), 2);
}

#[tokio::test(start_paused = true)]
async fn pods_that_hear_nothing_of_each_other_lose_their_link() {
    for both_ways in [false, true] {
        let (network, pods) = connected(2).await;
        if both_ways {
            network.partition(pods[0].id, pods[1].id);
        } else {
            network.block(pods[1].id, pods[0].id);
        }
        let clock = Clock::system();
        let since = clock.now();
        pods[0].until_link(&pods[1], false).await;
        pods[1].until_link(&pods[0], false).await;
        assert!(clock.now() - since <= SILENCE + OPTIONS.ping, "both ways: {both_ways}");
        tokio::time::sleep(Duration::from_secs(20)).await;
        assert!(!pods[0].links.is_up(pods[1].id), "both ways: {both_ways}");
        network.heal();
        pods[1].until_link(&pods[0], true).await;
    }
}

#[tokio::test(start_paused = true)]
async fn only_members_have_links() {
    let network = MemoryNetwork::new(Clock::system(), &Seed::fixed(1));
    let (one, two) = (pod_of(&network, 1, CLUSTER), pod_of(&network, 2, CLUSTER));
    let stranger = pod_of(&network, 3, [8; 16]);
    for pod in [&one, &stranger] {
        pod.links.set_peers(&peers(&[1, 2, 3]));
    }
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(one.links.link_events().borrow().len(), 0, "the others know nothing of it");
    two.links.set_peers(&peers(&[1, 2, 3]));
    one.until_link(&two, true).await;
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert!(!one.links.is_up(stranger.id), "it is of another cluster");

    let series = two.metrics.of(one.id);
    assert!(series.round_trip.get() >= 0.0);
    drop(series);
    one.links.set_peers(&peers(&[1]));
    one.session.until(|told| told.last() == Some(&(two.id, Told::Down))).await;
    two.until_link(&one, false).await;
    assert_eq!(two.links.send(one.id, number(1)).await, Err(Unreachable));
}

#[tokio::test(start_paused = true)]
async fn a_killed_pod_is_reached_no_more_and_closing_ends_all() {
    let (network, pods) = connected(3).await;
    network.kill(pods[1].id);
    for other in [0, 2] {
        pods[other].until_link(&pods[1], false).await;
    }
    pods[0].links.send(pods[2].id, number(1)).await.unwrap();
    pods[2].session.until(|told| told.last() == Some(&(pods[0].id, Told::Session(1)))).await;
    pods[0].links.close().await;
    assert_eq!(pods[0].session.told.lock().last(), Some(&(pods[2].id, Told::Down)));
    pods[2].until_link(&pods[0], false).await;
    pods[0].links.set_peers(&peers(&[2, 3]));
    assert_eq!(pods[0].links.send(pods[2].id, number(2)).await, Err(Unreachable));
}
