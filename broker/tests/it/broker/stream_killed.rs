//! The real process, on the embedded store, killed under readers of a stream: a session and a consumer group go on
//! where they were.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use weir_codec::{Ack, Connect, Packet, ProtocolVersion, Publish, ReasonCode, encode};
use weir_env::seed::Seed;

use super::client::{
    AtLeastOnce, Client, V5, V311, clean, number, open_at, persistent, publish, receive_maximum, text,
};
use super::{DEADLINE, value_in};

const KILLS: u64 = 3;
/// Messages that the readers have acknowledged, and the store knows it, before the rest of a round.
const SETTLED: u64 = 20;
/// At most so many are published until the kill.
const LOAD_MAX: u64 = 150;
/// Messages of a reader in flight: all of a round.
const WINDOW: u16 = 500;

const MANIFEST: &str = "
apiVersion: weir.dev/v1alpha1
kind: Stream
metadata: { name: log }
spec:
  topicFilter: log/#
  shards: 1
";

/// `weir serve` on a folder.
struct Process {
    child: Child,
    mqtt: SocketAddr,
    http: SocketAddr,
    log: Option<std::thread::JoinHandle<()>>,
}

impl Process {
    async fn start(dir: &Path) -> Self {
        let store = format!("embedded:{}", dir.join("store").display());
        let any = "127.0.0.1:0";
        let mut child = Command::new(env!("CARGO_BIN_EXE_weir"))
            .args(["serve", "--store", &store, "--http", any, "--admin", any])
            .args(["--listen", "mqtt://127.0.0.1:0", "--manifests", dir.join("manifests").to_str().unwrap()])
            // Variables would change what is tested.
            .env_clear()
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
        let ready = tokio::task::spawn_blocking(move || {
            let head: Vec<String> = lines.by_ref().take_while(|line| !line.ends_with(" ready")).collect();
            // Read on, so that the process is never held up by what it says.
            (head, std::thread::spawn(move || lines.for_each(drop)))
        });
        let Ok(ready) = tokio::time::timeout(DEADLINE, ready).await else {
            let _ = child.kill();
            panic!("the broker is not ready");
        };
        let (head, log) = ready.unwrap();
        let at = |scheme: &str| {
            let url = head.iter().find_map(|line| line.split_once(&format!("url={scheme}://")));
            let Some((_, addr)) = url else { panic!("no {scheme} in {head:#?}") };
            addr.trim().parse().unwrap()
        };
        Self { child, mqtt: at("mqtt"), http: at("http"), log: Some(log) }
    }

    async fn connect(&self, connect: Connect) -> (Client, bool) {
        let mut client = open_at(self.mqtt, connect.version).await;
        client.send(Packet::Connect(Box::new(connect))).await;
        match client.recv().await {
            Packet::ConnAck(connack) => {
                assert_eq!(connack.code, ReasonCode::Success, "{connack:?}");
                (client, connack.session_present)
            }
            other => panic!("not a CONNACK: {other:?}"),
        }
    }

    async fn written(&self, record: &str) -> f64 {
        let mut stream = TcpStream::connect(self.http).await.unwrap();
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: weir\r\nConnection: close\r\n\r\n").await.unwrap();
        let mut text = String::new();
        tokio::time::timeout(DEADLINE, stream.read_to_string(&mut text)).await.unwrap().unwrap();
        let name = format!("weir_store_written_keys_total{{record=\"{record}\"}}");
        value_in(&text, &name).unwrap_or_default()
    }

    /// Ends it with SIGKILL.
    fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(log) = self.log.take() {
            let _ = log.join();
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// One who reads the stream over all lives of the broker.
struct Reader {
    id: &'static str,
    version: ProtocolVersion,
    to: &'static str,
    /// What its position is stored as.
    record: &'static str,
    /// All that was received.
    seen: BTreeSet<u64>,
    /// The offset of each, where the version tells it.
    places: BTreeMap<u64, u64>,
    /// Below this nothing is to come again: it was acknowledged, and that was stored.
    settled: u64,
    /// What came last in this life.
    last: Option<u64>,
}

impl Reader {
    fn new(id: &'static str, version: ProtocolVersion, to: &'static str, record: &'static str) -> Self {
        Self {
            id,
            version,
            to,
            record,
            seen: BTreeSet::new(),
            places: BTreeMap::new(),
            settled: 0,
            last: None,
        }
    }

    async fn connect(&mut self, process: &Process, is_first: bool) -> Client {
        let connect = receive_maximum(persistent(self.id, self.version), WINDOW);
        let connect = if self.version == V5 { connect } else { persistent(self.id, self.version) };
        let (mut client, is_resumed) = process.connect(connect).await;
        assert_eq!(is_resumed, !is_first, "{}", self.id);
        if is_first && self.version == V5 {
            client.read_with(self.to, AtLeastOnce, &[("stream-offset", "earliest")]).await;
        } else if is_first {
            client.subscribe(self.to, AtLeastOnce).await;
        }
        self.last = None;
        client
    }

    /// Looks at what has come: in its order, without a gap but for what may never have been stored, and nothing that was
    /// settled.
    fn note(&mut self, message: &Publish, unsure: &BTreeSet<u64>) -> u64 {
        let n: u64 = text(message).parse().unwrap();
        assert!(n >= self.settled, "{}: {n} comes again, {} are settled", self.id, self.settled);
        assert!(self.last.is_none_or(|last| last < n), "{}: {n} after {:?}", self.id, self.last);
        let is_there = |before: &u64| match self.last {
            Some(last) => *before <= last,
            None => self.seen.contains(before),
        };
        let missing: Vec<u64> =
            (0..n).filter(|before| !is_there(before) && !unsure.contains(before)).collect();
        assert!(missing.is_empty(), "{}: {missing:?} before {n}", self.id);
        if self.version == V5 {
            let place = number(message, "offset");
            assert_eq!(*self.places.entry(n).or_insert(place), place, "{}: {n} is elsewhere", self.id);
        }
        self.last = Some(n);
        self.seen.insert(n);
        n
    }

    /// Takes all up to `last`, the first of this life. Acknowledged in the order in which they are returned, the position
    /// moves once.
    async fn catch_up(&mut self, client: &mut Client, last: u64, unsure: &BTreeSet<u64>) -> Vec<Publish> {
        let mut held = Vec::new();
        while self.last.is_none_or(|seen| seen < last) {
            let message = client.message().await;
            self.note(&message, unsure);
            held.push(message);
        }
        held.reverse();
        held
    }

    /// Acknowledges these, the first of them last, and waits until something is stored of that.
    async fn settle(&mut self, client: &mut Client, process: &Process, held: &[Publish]) {
        let before = process.written(self.record).await;
        for message in held {
            client.puback(message, ReasonCode::Success).await;
        }
        let stored = async {
            while process.written(self.record).await <= before {
                tokio::task::yield_now().await;
            }
        };
        assert!(tokio::time::timeout(DEADLINE, stored).await.is_ok(), "{} is not stored", self.record);
    }

    /// Takes and acknowledges until the broker is gone.
    async fn take_until_gone(&mut self, mut client: Client, unsure: &BTreeSet<u64>) {
        while let Some(packet) = client.try_recv().await {
            if let Packet::Publish(message) = packet {
                self.note(&message, unsure);
                let ack = Ack {
                    packet_id: message.header.packet_id.unwrap(),
                    reason: ReasonCode::Success,
                    properties: None,
                };
                send(&mut client, &Packet::PubAck(ack), self.version).await;
            }
        }
    }
}

/// Sends what need not arrive any more.
async fn send(client: &mut Client, packet: &Packet, version: ProtocolVersion) {
    let mut bytes = BytesMut::new();
    encode(packet, version, &mut bytes).unwrap();
    client.send_bytes(&bytes).await;
}

/// Publishes `from` and so on one by one, at most `count`, while the broker is there; the first that is not acknowledged.
async fn publish_from(client: &mut Client, from: u64, count: u64) -> u64 {
    for n in from..from + count {
        let message = publish(AtLeastOnce, 1, "log/1", &n.to_string());
        send(client, &Packet::Publish(Box::new(message)), V5).await;
        match client.try_recv().await {
            Some(Packet::PubAck(ack)) => assert!(!ack.reason.is_error(), "{ack:?}"),
            Some(other) => panic!("not a PUBACK: {other:?}"),
            None => return n,
        }
    }
    from + count
}

#[tokio::test]
async fn nothing_acknowledged_is_missing_and_what_is_settled_does_not_come_again() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("manifests")).unwrap();
    std::fs::write(dir.path().join("manifests/log.yaml"), MANIFEST).unwrap();
    let seed = Seed::from_entropy();
    let mut readers = [
        Reader::new("five", V5, "$stream/log", "session_position"),
        Reader::new("old", V311, "$s/earliest/log/#", "session_position"),
        Reader::new("member", V5, "$share/g/$stream/log", "group_position"),
    ];
    // Numbers that were used, and those of them of which the publisher was not told that they are stored.
    let (mut used, mut unsure) = (0, BTreeSet::new());
    for round in 0..=KILLS {
        let mut process = Process::start(dir.path()).await;
        let mut clients = Vec::new();
        for reader in &mut readers {
            clients.push(reader.connect(&process, round == 0).await);
        }
        let (mut publisher, _) = process.connect(clean("publisher", V5)).await;
        let told = publish_from(&mut publisher, used, SETTLED).await;
        assert_eq!(told, used + SETTLED);
        used = told;
        for (reader, client) in readers.iter_mut().zip(&mut clients) {
            let held = reader.catch_up(client, used - 1, &unsure).await;
            reader.settle(client, &process, &held).await;
            // In the first of all, what is stored may be where it began.
            reader.settled = if round == 0 { 0 } else { used };
        }
        if round == KILLS {
            break;
        }
        let kill_after = seed.below(LOAD_MAX);
        unsure.insert(used + kill_after);
        let load = async {
            let told = publish_from(&mut publisher, used, kill_after).await;
            assert_eq!(told, used + kill_after);
            // Readers have some of that, perhaps not all, and the publisher goes on.
            let message = publish(AtLeastOnce, 1, "log/1", &told.to_string());
            send(&mut publisher, &Packet::Publish(Box::new(message)), V5).await;
            process.kill();
        };
        let [five, old, member] = &mut readers;
        let [five_client, old_client, member_client] = clients.try_into().ok().unwrap();
        tokio::join!(
            load,
            five.take_until_gone(five_client, &unsure),
            old.take_until_gone(old_client, &unsure),
            member.take_until_gone(member_client, &unsure)
        );
        used += kill_after + 1;
    }
    for reader in readers {
        let missing = (0..used).filter(|n| !reader.seen.contains(n) && !unsure.contains(n));
        assert_eq!(missing.count(), 0, "{}", reader.id);
    }
}
