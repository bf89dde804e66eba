//! The suite of every engine, through a server.

use weir_storage::conformance;
use weir_storage::conformance::Fixture;

use crate::support::Server;

async fn over_memory() -> Fixture {
    let server = Server::memory().await;
    let store = server.client().await;
    Fixture::new(store, server)
}

async fn over_embedded() -> Fixture {
    let server = Server::embedded().await;
    let store = server.client().await;
    Fixture::new(store, server).histories(5)
}

conformance!(memory, [#[tokio::test(flavor = "multi_thread", worker_threads = 2)]], over_memory());
conformance!(embedded, [#[tokio::test(flavor = "multi_thread", worker_threads = 2)]], over_embedded());
