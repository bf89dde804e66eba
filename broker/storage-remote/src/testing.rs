//! A store for the tests of other crates, behind a server in this process, if `WEIR_TEST_STORE` is `remote`.
//!
//! Knows nothing of what it is used for. The runtime of servers and connections lives as long as the process.

use std::sync::{Arc, OnceLock};

use futures_util::stream;
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Runtime};
use tokio_util::task::TaskTracker;
use tonic::transport::Server;
use weir_env::clock::Clock;
use weir_env::seed::Seed;
use weir_storage::{MemoryStore, SharedStore};

use crate::{RemoteOptions, RemoteStore, Served};

/// Says which store tests have.
const VARIABLE: &str = "WEIR_TEST_STORE";

/// An empty store in memory behind a server of its own, if tests ask for it.
///
/// # Panics
/// If there is no such store, or no port of loopback is free.
#[must_use]
pub fn store() -> Option<SharedStore> {
    match std::env::var(VARIABLE).as_deref() {
        Err(_) => None,
        Ok("remote") => {
            // Tests ask within runtimes of theirs, which may not be blocked.
            let open = || runtime().block_on(serve());
            Some(std::thread::scope(|scope| scope.spawn(open).join().expect("no panic")))
        }
        Ok(other) => panic!("{VARIABLE} is remote, not {other}"),
    }
}

fn runtime() -> &'static Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    let build = || Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    RUNTIME.get_or_init(build)
}

async fn serve() -> SharedStore {
    let (store, seed) = (Arc::new(MemoryStore::new(Clock::system())), Seed::from_entropy());
    let served = Served::new(store, Clock::system(), &seed).await.expect("a store in memory");
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a free port");
    let address = listener.local_addr().expect("a socket that listens");
    let incoming = stream::unfold(listener, |listener| async move {
        let accepted = listener.accept().await;
        let accepted = accepted.and_then(|(socket, _)| socket.set_nodelay(true).map(|()| socket));
        Some((accepted, listener))
    });
    // For as long as the process: nobody waits for it.
    TaskTracker::new().spawn(async move {
        let mut server = Server::builder();
        let serving = server.add_service(served.calls()).serve_with_incoming(incoming);
        serving.await.expect("a server in memory does not fail");
    });
    let options = RemoteOptions::new(address.to_string());
    let opened = RemoteStore::open(&options, Clock::system()).await;
    Arc::new(opened.expect("a server on this machine"))
}
