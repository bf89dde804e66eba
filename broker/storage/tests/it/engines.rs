//! Every engine passes the conformance suite.

use std::sync::Arc;

use weir_env::clock::Clock;
use weir_env::seed::Seed;
use weir_storage::conformance::Fixture;
use weir_storage::{EmbeddedOptions, EmbeddedStore, FaultStore, MemoryStore, conformance};

async fn memory_store() -> Fixture {
    Fixture::new(Arc::new(MemoryStore::new(Clock::system())), ()).histories(200)
}

async fn embedded_store() -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    let store = EmbeddedStore::open(dir.path(), &EmbeddedOptions::default(), Clock::system()).unwrap();
    Fixture::new(Arc::new(store), dir)
}

async fn store_without_faults() -> Fixture {
    let inner = Arc::new(MemoryStore::new(Clock::system()));
    Fixture::new(Arc::new(FaultStore::wrap(inner, Seed::fixed(1))), ())
}

conformance!(memory, [#[tokio::test(start_paused = true)]], memory_store());
conformance!(embedded, [#[tokio::test(start_paused = true)]], embedded_store());
conformance!(without_faults, [#[tokio::test(start_paused = true)]], store_without_faults());
conformance!(
    embedded_on_threads,
    [#[tokio::test(flavor = "multi_thread", worker_threads = 2)]],
    embedded_store()
);
