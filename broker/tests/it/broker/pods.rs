//! Several processes on one store: they find each other, notice when one is gone, and let in no strangers.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use super::store_server::StoreProcess;
use super::{DEADLINE, TestBroker, config, memory, value_in};

const UP: &str = "weir_peers_up";

/// `weir serve` on a store that is served.
struct Pod {
    child: Child,
    http: SocketAddr,
    log: Arc<Mutex<Vec<String>>>,
}

impl Pod {
    async fn start(store: &StoreProcess, args: &[&str]) -> Self {
        let any = "127.0.0.1:0";
        let mut child = Command::new(env!("CARGO_BIN_EXE_weir"))
            .args(["serve", "--store", &format!("remote:{}", store.addr), "--listen", "mqtt://127.0.0.1:0"])
            .args(["--http", any, "--admin", any, "--peer", any])
            .args(args)
            // Variables would change what is tested.
            .env_clear()
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (http_tx, mut http_rx) = mpsc::channel(1);
        let log = Arc::<Mutex<Vec<String>>>::default();
        let (lines, written) = (BufReader::new(child.stderr.take().unwrap()).lines(), Arc::clone(&log));
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let url = line.split_once("url=http://").and_then(|(_, url)| url.split_whitespace().next());
                if let Some(address) = url.and_then(|url| url.parse().ok()) {
                    let _ = http_tx.try_send(address);
                }
                written.lock().push(line);
            }
        });
        let Ok(Some(http)) = tokio::time::timeout(DEADLINE, http_rx.recv()).await else {
            let _ = child.kill();
            panic!("the pod does not start: {:#?}", log.lock());
        };
        Self { child, http, log }
    }

    async fn metrics(&self) -> String {
        let mut stream = TcpStream::connect(self.http).await.unwrap();
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: weir\r\nConnection: close\r\n\r\n").await.unwrap();
        let mut text = String::new();
        tokio::time::timeout(DEADLINE, stream.read_to_string(&mut text)).await.unwrap().unwrap();
        text
    }

    /// Waits until it has links to so many pods.
    async fn until_up(&self, links: f64) {
        self.until("links", async || value_in(&self.metrics().await, UP) == Some(links)).await;
    }

    async fn until(&self, what: &str, is_so: impl AsyncFn() -> bool) {
        let waiting = async {
            while !is_so().await {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let waited = tokio::time::timeout(DEADLINE, waiting).await;
        assert!(waited.is_ok(), "not in time: {what}: {:#?}", self.log.lock());
    }

    /// As by `kill -9`.
    fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        self.kill();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn processes_find_each_other_and_notice_who_is_killed() {
    let dir = tempfile::tempdir().unwrap();
    let store = StoreProcess::start(dir.path(), "127.0.0.1:0", &[]).await;
    let (one, mut two) = (Pod::start(&store, &[]).await, Pod::start(&store, &[]).await);
    one.until_up(1.0).await;
    two.until_up(1.0).await;
    let metrics = one.metrics().await;
    for name in ["weir_peer_sent_bytes_total{", "weir_peer_round_trip_seconds{", "weir_peer_links_total{"] {
        assert!(metrics.contains(name), "no {name} in {metrics}");
    }

    two.kill();
    one.until_up(0.0).await;
    let three = Pod::start(&store, &[]).await;
    three.until_up(1.0).await;
    one.until_up(1.0).await;
    // Who is gone has no series any more.
    one.until("series", async || one.metrics().await.matches("weir_peer_links_total{").count() == 1).await;
}

/// Whichever of the two dials.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_with_another_token_is_told_apart_by_both() {
    let dir = tempfile::tempdir().unwrap();
    let store = StoreProcess::start(&dir.path().join("store"), "127.0.0.1:0", &[]).await;
    let token = |name: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, format!("the token of {name}, long enough\n")).unwrap();
        path
    };
    let (ours, theirs) = (token("ours"), token("theirs"));
    let args = |path: &'static str, file: &Path| [path.to_owned(), file.to_str().unwrap().to_owned()];
    let (ours, theirs) = (args("--peer-token-file", &ours), args("--peer-token-file", &theirs));
    let one = Pod::start(&store, &[&ours[0], &ours[1]]).await;
    let two = Pod::start(&store, &[&theirs[0], &theirs[1]]).await;
    // The one that dials says why it is refused, the other one whom it refuses.
    let (dialled, refused) = ("it refuses this pod's token", "without the right token");
    for pod in [&one, &two] {
        let has_said =
            async || pod.log.lock().iter().any(|line| line.contains(dialled) || line.contains(refused));
        pod.until("a refusal", has_said).await;
    }
    let all = [one.log.lock().concat(), two.log.lock().concat()].concat();
    assert!(all.contains(dialled) && all.contains(refused), "{all}");
    assert_eq!(value_in(&one.metrics().await, UP), Some(0.0));
    assert_eq!(value_in(&two.metrics().await, UP), Some(0.0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_stops_in_order_leaves_no_broken_link() {
    let store = memory();
    let pod = || {
        let mut config = config();
        config.peer.listen = Some(SocketAddr::from(([127, 0, 0, 1], 0)));
        config
    };
    let (one, two) =
        (TestBroker::start_with(pod(), &store).await, TestBroker::start_with(pod(), &store).await);
    one.metric_reaches(UP, 1.0).await;
    two.metric_reaches(UP, 1.0).await;
    two.stop().await;
    let gone = async {
        while one.metric(UP).await != 0.0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(DEADLINE, gone).await.expect("the link ends");
    one.stop().await;
}
