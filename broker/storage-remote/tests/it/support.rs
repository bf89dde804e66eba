//! Servers on free ports of loopback.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use futures_util::stream;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tonic::transport::Server as Transport;
use weir_env::clock::Clock;
use weir_env::seed::Seed;
use weir_storage::{EmbeddedOptions, EmbeddedStore, MemoryStore, SharedStore};
use weir_storage_remote::{RemoteOptions, RemoteStore, Served};

/// A server in this process.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    /// Cut off when dropped.
    _serving: JoinSet<()>,
    _dir: Option<TempDir>,
}

impl Server {
    pub(crate) async fn memory() -> Self {
        Self::start(Arc::new(MemoryStore::new(Clock::system())), any(), None).await
    }

    pub(crate) async fn embedded() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = embedded(dir.path());
        Self::start(store, any(), Some(dir)).await
    }

    pub(crate) async fn start(store: SharedStore, address: SocketAddr, dir: Option<TempDir>) -> Self {
        let served = Served::new(Arc::clone(&store), Clock::system(), &Seed::from_entropy()).await.unwrap();
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let incoming = stream::unfold(listener, |listener| async move {
            let accepted = listener.accept().await.and_then(|(socket, _)| {
                socket.set_nodelay(true)?;
                Ok(socket)
            });
            Some((accepted, listener))
        });
        let serving = Transport::builder().add_service(served.calls()).serve_with_incoming(incoming);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move { serving.await.unwrap() });
        Self { address, _serving: tasks, _dir: dir }
    }

    pub(crate) fn options(&self) -> RemoteOptions {
        RemoteOptions::new(self.address.to_string())
    }

    pub(crate) async fn client(&self) -> SharedStore {
        Arc::new(RemoteStore::open(&self.options(), Clock::system()).await.unwrap())
    }
}

pub(crate) fn any() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

pub(crate) fn embedded(dir: &Path) -> SharedStore {
    Arc::new(EmbeddedStore::open(dir, &EmbeddedOptions::default(), Clock::system()).unwrap())
}
