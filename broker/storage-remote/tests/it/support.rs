//! Servers on free ports of loopback, and a wire to them that can be cut and held up.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::stream;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tonic::transport::Server as Transport;
use weir_env::clock::Clock;
use weir_env::seed::Seed;
use weir_storage::{EmbeddedOptions, EmbeddedStore, MemoryStore, SharedStore};
use weir_storage_remote::{RemoteOptions, RemoteStore, Served};

/// A server in this process, with a runtime of its own, so that it can be cut off at any moment. Its store stays.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    pub(crate) served: Served,
    runtime: Option<Runtime>,
    /// Of its store, to be removed with it.
    dir: Option<TempDir>,
}

impl Server {
    pub(crate) async fn memory() -> Self {
        Self::start(Arc::new(MemoryStore::new(Clock::system())), any()).await
    }

    pub(crate) async fn embedded() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = embedded(dir.path());
        let mut server = Self::start(store, any()).await;
        server.dir = Some(dir);
        server
    }

    pub(crate) async fn start(store: SharedStore, address: SocketAddr) -> Self {
        let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let starting = runtime.spawn(async move {
            let served = Served::new(store, Clock::system(), &Seed::from_entropy()).await.unwrap();
            (served, TcpListener::bind(address).await.unwrap())
        });
        let (served, listener) = starting.await.unwrap();
        let address = listener.local_addr().unwrap();
        let calls = served.calls();
        runtime.spawn(async move {
            let incoming = stream::unfold(listener, |listener| async move {
                let accepted = listener.accept().await.and_then(|(socket, _)| {
                    socket.set_nodelay(true)?;
                    Ok(socket)
                });
                Some((accepted, listener))
            });
            Transport::builder().add_service(calls).serve_with_incoming(incoming).await.unwrap();
        });
        Self { address, served, runtime: Some(runtime), dir: None }
    }

    pub(crate) async fn client(&self) -> SharedStore {
        client(self.address).await
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
        drop(self.dir.take());
    }
}

pub(crate) fn any() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

pub(crate) fn embedded(dir: &Path) -> SharedStore {
    Arc::new(EmbeddedStore::open(dir, &EmbeddedOptions::default(), Clock::system()).unwrap())
}

pub(crate) async fn client(address: SocketAddr) -> SharedStore {
    client_that_waits(address, Duration::from_secs(5)).await
}

pub(crate) async fn client_that_waits(address: SocketAddr, timeout: Duration) -> SharedStore {
    let options = RemoteOptions { timeout, ..RemoteOptions::new(address.to_string()) };
    Arc::new(RemoteStore::open(&options, Clock::system()).await.unwrap())
}

/// What a [`Wire`] does with bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flow {
    Both,
    /// What the client sends is held up, and lost when the wire is cut.
    NothingToServer,
    /// What the server sends is.
    NothingToClient,
}

/// Stands between a client and a server.
pub(crate) struct Wire {
    pub(crate) address: SocketAddr,
    state_tx: watch::Sender<(Flow, u64)>,
    /// Bytes that have been held up.
    held_up: Arc<AtomicUsize>,
    _tasks: JoinSet<()>,
}

impl Wire {
    pub(crate) async fn to(server: SocketAddr) -> Self {
        let listener = TcpListener::bind(any()).await.unwrap();
        let address = listener.local_addr().unwrap();
        let state_tx = watch::Sender::new((Flow::Both, 0));
        let state = state_tx.subscribe();
        let (mut tasks, held_up) = (JoinSet::new(), Arc::new(AtomicUsize::new(0)));
        let counter = Arc::clone(&held_up);
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((socket, _)) = listener.accept().await {
                connections.spawn(carry(socket, server, state.clone(), Arc::clone(&counter)));
            }
        });
        Self { address, state_tx, held_up, _tasks: tasks }
    }

    /// Waits until more is held up than the pings by which both sides see that the other is there.
    pub(crate) async fn holds_up_a_call(&self) {
        while self.held_up.load(Ordering::Relaxed) < 64 {
            tokio::task::yield_now().await;
        }
    }

    pub(crate) fn set(&self, flow: Flow) {
        self.state_tx.send_modify(|state| state.0 = flow);
    }

    /// Ends every connection there is.
    pub(crate) fn cut(&self) {
        self.state_tx.send_modify(|state| state.1 += 1);
    }
}

type State = watch::Receiver<(Flow, u64)>;

async fn carry(client: TcpStream, server: SocketAddr, state: State, held_up: Arc<AtomicUsize>) {
    let Ok(server) = TcpStream::connect(server).await else { return };
    let cuts = state.borrow().1;
    let (mut cut, (from_client, to_client), (from_server, to_server)) =
        (state.clone(), client.into_split(), server.into_split());
    tokio::select! {
        // First: what was held up is lost, though both ways are open again by now.
        biased;
        _ = cut.wait_for(|state| state.1 > cuts) => {}
        () = pump(from_client, to_server, Flow::NothingToServer, state.clone(), &held_up) => {}
        () = pump(from_server, to_client, Flow::NothingToClient, state, &held_up) => {}
    }
}

async fn pump(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    held_up_by: Flow,
    mut state: State,
    held_up: &AtomicUsize,
) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        if state.borrow().0 == held_up_by {
            held_up.fetch_add(read, Ordering::Relaxed);
        }
        if state.wait_for(|state| state.0 != held_up_by).await.is_err()
            || to.write_all(&buffer[..read]).await.is_err()
        {
            return;
        }
    }
}
