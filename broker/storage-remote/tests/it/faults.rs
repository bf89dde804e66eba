//! Connections that are cut, servers that are killed, silent, or start again: what clients are told is true.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use tokio::task::JoinSet;
use weir_env::clock::Clock;
use weir_env::seed::Seed;
use weir_storage::{
    CommitFault, Committed, ConflictKind, Error, FaultStore, Isolation, MemoryStore, RangeQuery, Result,
    SharedStore, snapshot,
};
use weir_storage_remote::{RemoteOptions, RemoteStore, WATCHES_MAX};

use crate::support::{Flow, Server, Wire, any, client, client_that_waits, embedded};

/// Longest wait for anything that is expected.
const WAIT: Duration = Duration::from_secs(30);
/// Of a client whose server is to be silent.
const IMPATIENT: Duration = Duration::from_millis(500);

async fn put(store: &SharedStore, key: &[u8], value: &[u8]) -> Result<Committed> {
    let mut tx = store.begin();
    tx.set(key, value);
    tx.commit().await
}

async fn get(store: &SharedStore, key: &[u8]) -> Result<Option<Bytes>> {
    store.begin().get(key, Isolation::Snapshot).await
}

/// Tries until it works.
async fn get_at_last(store: &SharedStore, key: &[u8]) -> Option<Bytes> {
    let read = async {
        loop {
            if let Ok(value) = get(store, key).await {
                return value;
            }
        }
    };
    tokio::time::timeout(WAIT, read).await.expect("the server answers again")
}

async fn in_time<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(WAIT, future).await.unwrap_or_else(|_| panic!("{what}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_whose_answer_is_lost_is_known_all_the_same() {
    let inner = FaultStore::wrap(Arc::new(MemoryStore::new(Clock::system())), Seed::fixed(1));
    let faults = inner.handle();
    let server = Server::start(Arc::new(inner), any()).await;
    let wire = Wire::to(server.address).await;
    let store = client(wire.address).await;
    faults.fail_next_commit(CommitFault::Stalled(WAIT));
    let commit = put(&store, b"key", b"1");
    let cut = async {
        while faults.injected() == 0 {
            tokio::task::yield_now().await;
        }
        wire.cut();
        while server.served.stats().settled.load(Ordering::Relaxed) == 0 {
            tokio::task::yield_now().await;
        }
        faults.release_stalled();
    };
    let (committed, ()) = in_time("both end", async { tokio::join!(commit, cut) }).await;
    let committed = committed.unwrap();
    assert_eq!(get(&store, b"key").await.unwrap().as_deref(), Some(&b"1"[..]));
    assert!(store.begin().read_version().await.unwrap() >= committed.version);
    store.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_that_did_not_arrive_never_happens() {
    let server = Server::memory().await;
    let wire = Wire::to(server.address).await;
    let store = client(wire.address).await;
    put(&store, b"key", b"before").await.unwrap();
    let before = server.served.stats().commits.load(Ordering::Relaxed);
    wire.set(Flow::NothingToServer);
    let commit = put(&store, b"key", b"lost");
    let cut = async {
        wire.holds_up_a_call().await;
        wire.cut();
        wire.set(Flow::Both);
    };
    let (outcome, ()) = in_time("both end", async { tokio::join!(commit, cut) }).await;
    assert!(matches!(outcome, Err(Error::Busy(_))), "{outcome:?}");
    assert_eq!(server.served.stats().commits.load(Ordering::Relaxed), before);
    assert_eq!(get(&store, b"key").await.unwrap().as_deref(), Some(&b"before"[..]));
    store.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_server_leaves_a_commit_open_and_reads_unavailable() {
    let server = Server::memory().await;
    let wire = Wire::to(server.address).await;
    let store = client_that_waits(wire.address, IMPATIENT).await;
    for flow in [Flow::NothingToServer, Flow::NothingToClient] {
        put(&store, b"key", b"before").await.unwrap();
        wire.set(flow);
        let outcome = in_time("a commit ends", put(&store, b"key", b"after")).await;
        assert!(matches!(outcome, Err(Error::UnknownOpen)), "{flow:?}: {outcome:?}");
        let read = in_time("a read ends", get(&store, b"key")).await;
        let error = read.unwrap_err();
        assert!(matches!(error, Error::Unavailable(_)), "{flow:?}: {error:?}");
        assert!(error.to_string().contains(&wire.address.to_string()), "{error}");
        wire.set(Flow::Both);
        wire.cut();
        get_at_last(&store, b"key").await.expect("either of the two");
        // A session has to be there again too.
        in_time("commits go on", async { while put(&store, b"key", b"x").await.is_err() {} }).await;
    }
    store.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watches_fire_when_the_connection_is_lost_and_later_ones_work() {
    let server = Server::memory().await;
    let wire = Wire::to(server.address).await;
    let store = client(wire.address).await;
    let watch = async || {
        let mut tx = store.begin();
        let watch = tx.watch(b"key");
        tx.commit().await.map(|_| watch)
    };
    let mut lost = watch().await.unwrap();
    wire.cut();
    in_time("the watch fires", lost.changed()).await;
    let mut armed = in_time("the session comes back", async {
        loop {
            if let Ok(watch) = watch().await {
                return watch;
            }
        }
    })
    .await;
    put(&store, b"key", b"1").await.unwrap();
    in_time("the watch fires", armed.changed()).await;
    store.close().await;
}

/// Writers of keys of their own, over servers that are cut off and start again: what was acknowledged is there, and
/// what was refused is not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn servers_that_are_killed_lose_nothing_and_keep_nothing_they_refused() {
    const WRITERS: u8 = 4;
    const LIVES: usize = 5;
    let dir = tempfile::tempdir().unwrap();
    let inner = embedded(dir.path());
    let mut server = Server::start(Arc::clone(&inner), any()).await;
    let address = server.address;
    let store = client(address).await;
    let (stop_tx, stop_rx) = tokio::sync::watch::channel(false);
    let mut writers = JoinSet::new();
    for writer in 0..WRITERS {
        let (store, stop_rx) = (Arc::clone(&store), stop_rx.clone());
        writers.spawn(async move {
            let mut outcomes = Vec::new();
            for number in 0u32.. {
                if *stop_rx.borrow() {
                    break;
                }
                let key = [&[writer][..], &number.to_be_bytes()].concat();
                let outcome = put(&store, &key, b"x").await;
                outcomes.push((key, outcome));
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            outcomes
        });
    }
    let mut inner = Some(inner);
    for _ in 0..LIVES {
        let commits = server.served.stats().commits.load(Ordering::Relaxed);
        while server.served.stats().commits.load(Ordering::Relaxed) < commits + 50 {
            tokio::task::yield_now().await;
        }
        drop(server);
        if let Some(closing) = inner.take() {
            closing.close().await;
        }
        let opened = embedded(dir.path());
        server = Server::start(Arc::clone(&opened), address).await;
        inner = Some(opened);
    }
    stop_tx.send_replace(true);
    let outcomes: Vec<_> = in_time("writers end", writers.join_all()).await.into_iter().flatten().collect();
    let (mut acknowledged, mut refused, mut unknown) = (0, 0, 0);
    for (key, outcome) in outcomes {
        let is_there = get_at_last(&store, &key).await.is_some();
        match outcome {
            Ok(_) => {
                assert!(is_there, "{key:?} was acknowledged");
                acknowledged += 1;
            }
            Err(Error::UnknownSettled | Error::UnknownOpen) => unknown += 1,
            Err(error) => {
                assert!(!is_there, "{key:?} was refused: {error}");
                refused += 1;
            }
        }
    }
    assert!(acknowledged > 200, "{acknowledged} acknowledged, {refused} refused, {unknown} unknown");
    store.close().await;
}

/// A version of an earlier life stands for nothing in the next one, although the clock of versions comes by it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn versions_of_an_earlier_life_are_too_old() {
    let dir = tempfile::tempdir().unwrap();
    let inner = embedded(dir.path());
    let server = Server::start(Arc::clone(&inner), any()).await;
    let (address, store) = (server.address, server.client().await);
    put(&store, b"owner", b"first").await.unwrap();
    let seen = store.begin().read_version().await.unwrap();
    drop(server);
    inner.close().await;
    let server = Server::start(embedded(dir.path()), address).await;
    get_at_last(&store, b"owner").await.unwrap();
    put(&store, b"owner", b"second").await.unwrap();
    assert!(store.begin().read_version().await.unwrap() > seen);
    let mut tx = store.begin();
    tx.set_read_version(seen);
    assert!(matches!(tx.get(b"owner", Isolation::Snapshot).await, Err(Error::TooOld)));
    let mut append = store.begin();
    append.set_read_version(seen);
    append.add_conflict_key(b"owner", ConflictKind::Read);
    append.set(b"row", b"x");
    let outcome = append.commit().await;
    assert!(matches!(outcome, Err(Error::Conflict | Error::TooOld)), "{outcome:?}");
    store.close().await;
    drop(server);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_watch_too_many_is_not_armed_and_those_let_go_make_room() {
    let server = Server::memory().await;
    let store = server.client().await;
    let mut held = Vec::new();
    for part in 0..4u32 {
        let mut tx = store.begin();
        held.extend((0..2_501u32).map(|n| tx.watch(&(part * 2_501 + n).to_be_bytes())));
        tx.commit().await.unwrap();
    }
    let armed = |count: usize| {
        let served = server.served.clone();
        async move {
            while served.sessions() != (1, count) {
                tokio::task::yield_now().await;
            }
        }
    };
    in_time("only so many are armed", armed(WATCHES_MAX)).await;
    drop(held);
    in_time("they are let go", armed(0)).await;
    store.close().await;
    in_time("the session ends", async {
        while server.served.sessions() != (0, 0) {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_is_read_beyond_the_lifetime_of_transactions() {
    let server = Server::memory().await;
    let store = server.client().await;
    let mut tx = store.begin();
    (0..40u8).for_each(|n| tx.set(&[n], &vec![n; 80_000]));
    tx.commit().await.unwrap();
    let mut held = snapshot(&store).await.unwrap();
    let mut tx = store.begin();
    tx.clear_range(b"", &[20]);
    tx.set(b"later", b"x");
    tx.commit().await.unwrap();
    tokio::time::sleep(weir_storage::limits::LIFETIME + Duration::from_secs(1)).await;
    // Of more than one answer of the server.
    let page = held.get_range(RangeQuery::prefix("")).await.unwrap();
    assert_eq!((page.pairs.len(), page.more), (40, false));
    assert!(page.pairs.iter().all(|(key, value)| value.len() == 80_000 && value[0] == key[0]));

    let others = [snapshot(&store).await, snapshot(&store).await, snapshot(&store).await];
    assert!(others.iter().all(Result::is_ok));
    assert!(matches!(snapshot(&store).await, Err(Error::Busy(_))), "one too many");
    drop(held);
    in_time("there is room again", async { while snapshot(&store).await.is_err() {} }).await;
    drop(others);
    store.close().await;
}

#[tokio::test]
async fn a_start_without_a_server_says_where_and_why() {
    // Bound, and nobody listens.
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind(any()).unwrap();
    let address = socket.local_addr().unwrap().to_string();
    let options = RemoteOptions { timeout: IMPATIENT, ..RemoteOptions::new(&*address) };
    let error = in_time("it ends", RemoteStore::open(&options, Clock::system())).await.unwrap_err();
    let text = error.to_string();
    for part in [&*address, "refused", "weir store serve"] {
        assert!(text.contains(part), "{text}");
    }
    let options = RemoteOptions::new("no address");
    let error = RemoteStore::open(&options, Clock::system()).await.unwrap_err();
    assert!(error.to_string().contains("HOST:PORT"), "{error}");
}
