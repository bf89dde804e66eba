//! Brokers on a store that another process serves: `weir store serve`, killed under load, and asked by strangers.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use weir::config::{RemoteConfig, StoreConfig};
use weir_codec::ReasonCode;
use weir_env::clock::Clock;
use weir_storage::SharedStore;
use weir_storage_remote::{RemoteOptions, RemoteStore};

use super::client::{AtLeastOnce, V5, V311, clean, publish, text};
use super::{DEADLINE, TestBroker, config, queue};
use crate::authority::Authority;
use crate::cli::weir;

/// `weir store serve` on a folder.
pub(super) struct StoreProcess {
    child: Child,
    pub(super) addr: SocketAddr,
    log: Option<std::thread::JoinHandle<Vec<String>>>,
}

impl StoreProcess {
    pub(super) async fn start(dir: &Path, listen: &str, args: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_weir"))
            .args(["store", "serve", "--store", &format!("embedded:{}", dir.display()), "--listen", listen])
            .args(args)
            // Variables would change what is tested.
            .env_clear()
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
        let listening = tokio::task::spawn_blocking(move || {
            let addr = lines.by_ref().find_map(|line| {
                let (_, url) = line.split_once("url=grpc://")?;
                url.split_whitespace().next()?.parse().ok()
            });
            // Read on, so that the process is never held up by what it says.
            (addr, std::thread::spawn(move || lines.collect()))
        });
        let Ok(listening) = tokio::time::timeout(DEADLINE, listening).await else {
            let _ = child.kill();
            panic!("the store server does not listen");
        };
        let (addr, log) = listening.unwrap();
        Self { child, addr: addr.expect("it says where it listens"), log: Some(log) }
    }

    async fn client(&self) -> SharedStore {
        let options = RemoteOptions::new(self.addr.to_string());
        Arc::new(RemoteStore::open(&options, Clock::system()).await.unwrap())
    }

    fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(log) = self.log.take() {
            let _ = log.join();
        }
    }
}

impl Drop for StoreProcess {
    fn drop(&mut self) {
        self.kill();
    }
}

/// What was acknowledged, before the kill or after, is delivered, and the publishers of either version go on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acknowledged_messages_outlive_a_store_server_that_is_killed() {
    const MESSAGES: u16 = 40;
    let dir = tempfile::tempdir().unwrap();
    let mut server = StoreProcess::start(dir.path(), "127.0.0.1:0", &[]).await;
    let addr = server.addr.to_string();
    let store = server.client().await;
    let broker = TestBroker::start_on(&store).await;
    broker.declare(&[queue("work", "job/#")]).await;
    let mut acknowledged = BTreeSet::new();
    for version in [V5, V311] {
        let mut publisher = broker.connect(clean("p", version)).await;
        for n in 1..=MESSAGES {
            let payload = format!("{version:?} {n}");
            publisher.post(publish(AtLeastOnce, n, "job/1", &payload)).await;
            if n % 16 == 0 {
                server.kill();
                server = StoreProcess::start(dir.path(), &addr, &[]).await;
            }
            while publisher.pubacked(n).await != ReasonCode::Success {
                publisher.post(publish(AtLeastOnce, n, "job/1", &payload)).await;
            }
            acknowledged.insert(payload);
        }
        publisher.disconnect().await;
    }
    let mut consumer = broker.clean("c").await;
    consumer.subscribe("$queue/work", AtLeastOnce).await;
    let mut delivered = BTreeSet::new();
    while !acknowledged.is_subset(&delivered) {
        // An attempt that was told to have failed may have happened: then there are two.
        delivered.insert(text(&consumer.take().await).to_owned());
    }
    consumer.disconnect().await;
    broker.stop().await;
    store.close().await;
}

/// The same secrets as for the admin API: certificates of both sides, and a token.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_server_knows_its_brokers_by_certificate_and_token() {
    let (authority, dir) = (Authority::new(), tempfile::tempdir().unwrap());
    let (own, broker) = (authority.sign("server", "localhost"), authority.sign("broker", "broker"));
    let token = authority.dir().join("token");
    std::fs::write(&token, "0123456789abcdef\n").unwrap();
    let path = |path: &Path| path.to_str().unwrap().to_owned();
    let (cert, key, ca, token_file) = (path(&own.cert), path(&own.key), path(&authority.pem), path(&token));
    let args = ["--certificate-file", &*cert, "--key-file", &key, "--client-ca-file", &ca];
    let args = [&args[..], &["--token-file", &token_file]].concat();
    let server = StoreProcess::start(dir.path(), "127.0.0.1:0", &args).await;

    let store = StoreConfig::Remote(format!("localhost:{}", server.addr.port()));
    let remote = |token_file: Option<PathBuf>, shows: bool| RemoteConfig {
        token_file,
        ca_file: Some(authority.pem.clone()),
        certificate_file: shows.then(|| broker.cert.clone()),
        key_file: shows.then(|| broker.key.clone()),
        timeout: std::time::Duration::from_secs(2),
    };
    let open = async |remote: RemoteConfig| {
        let config = weir::config::Config { store: store.clone(), remote, ..config() };
        weir::store::open(&config, Clock::system()).await.map_err(|error| format!("{error:#}"))
    };
    let opened = open(remote(Some(token.clone()), true)).await.unwrap();
    opened.begin().read_version().await.unwrap();
    opened.close().await;
    let error = open(remote(None, true)).await.unwrap_err();
    assert!(error.contains("does not know this process") && error.contains("token"), "{error}");
    let error = open(remote(Some(token), false)).await.unwrap_err();
    assert!(error.contains("has not answered") && error.contains("ertificate"), "{error}");
}

#[tokio::test]
async fn a_store_that_anybody_could_change_is_not_served() {
    let failure =
        weir(&["store", "serve", "--store", "memory:", "--listen", "0.0.0.0:0"], "").await.failure();
    assert!(
        failure.contains("reachable from other machines") && failure.contains("--token-file"),
        "{failure}"
    );
    let failure = weir(&["store", "serve", "--store", "remote:127.0.0.1:9"], "").await.failure();
    assert!(failure.contains("brokers use this one directly"), "{failure}");
}

/// SIGTERM: what is under way is answered, and the process ends with success.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_server_stops_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = StoreProcess::start(dir.path(), "127.0.0.1:0", &["--http", "127.0.0.1:0"]).await;
    let store = server.client().await;
    let mut tx = store.begin();
    tx.set(b"key", b"value");
    let mut watch = tx.watch(b"key");
    tx.commit().await.unwrap();
    let pid = server.child.id().to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    tokio::time::timeout(DEADLINE, watch.changed()).await.expect("the watch fires as the session ends");
    let ended = tokio::task::spawn_blocking(move || server.child.wait().unwrap()).await.unwrap();
    assert!(ended.success(), "{ended:?}");
    store.close().await;
}
