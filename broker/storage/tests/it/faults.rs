//! The fault injector does what it is told, and nothing otherwise.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use weir_env::clock::Clock;
use weir_env::seed::Seed;
use weir_storage::{
    CommitFault, Committed, Error, FaultHandle, FaultRates, FaultStore, Isolation, MemoryStore, Result,
    Store, WatchFault,
};

fn faulty() -> (FaultStore, FaultHandle) {
    let store = FaultStore::wrap(Arc::new(MemoryStore::new(Clock::system())), Seed::fixed(5));
    let handle = store.handle();
    (store, handle)
}

async fn put(store: &FaultStore, key: &str) -> Result<Committed> {
    let mut tx = store.begin();
    tx.set(key.as_bytes(), b"x");
    tx.commit().await
}

async fn has(store: &FaultStore, key: &str) -> bool {
    store.begin().get(key.as_bytes(), Isolation::Snapshot).await.unwrap().is_some()
}

/// Commits once with `fault`; the error told, and whether the write is there now and once all has settled.
async fn outcome_of(fault: CommitFault) -> (String, bool, bool) {
    let (store, faults) = faulty();
    faults.fail_next_commit(fault);
    let told = put(&store, "key").await.map_or_else(|error| error.to_string(), |_| "committed".into());
    let now = has(&store, "key").await;
    faults.settle().await;
    let later = has(&store, "key").await;
    put(&store, "another").await.unwrap();
    assert_eq!(faults.injected(), 1);
    (told, now, later)
}

#[tokio::test(start_paused = true)]
async fn each_commit_fault_has_its_outcome() {
    let (settled, open) = (Error::UnknownSettled.to_string(), Error::UnknownOpen.to_string());
    let second = Duration::from_secs(1);
    for (fault, told, now, later) in [
        (CommitFault::SettledCommitted, &settled, true, true),
        (CommitFault::SettledLost, &settled, false, false),
        (CommitFault::OpenCommittedLater(second), &open, false, true),
        (CommitFault::OpenLost, &open, false, false),
        (CommitFault::Stalled(second), &"committed".into(), true, true),
        (CommitFault::Detached(second), &"committed".into(), true, true),
    ] {
        assert_eq!(outcome_of(fault.clone()).await, (told.clone(), now, later), "{fault:?}");
    }
    let size = Error::TooLarge { what: "value", size: 2, limit: 1 };
    for error in
        [Error::Conflict, Error::TooOld, size, Error::Unavailable("".into()), Error::Damaged("".into())]
    {
        let outcome = outcome_of(CommitFault::Refused(error.clone())).await;
        assert_eq!(outcome, (error.to_string(), false, false));
    }
}

#[tokio::test(start_paused = true)]
async fn a_delayed_commit_still_respects_the_fence() {
    let (store, faults) = faulty();
    let mut tx = store.begin();
    tx.get(b"owner", Isolation::Serializable).await.unwrap();
    tx.set(b"late", b"x");
    faults.fail_next_commit(CommitFault::OpenCommittedLater(Duration::from_secs(1)));
    assert!(matches!(tx.commit().await, Err(Error::UnknownOpen)));
    put(&store, "owner").await.unwrap();
    store.handle().settle().await;
    assert!(!has(&store, "late").await);
}

#[tokio::test]
async fn faults_hit_what_they_are_meant_for_until_healed() {
    let (store, faults) = faulty();
    faults.fail_commits_matching(b"queue/", CommitFault::SettledLost);
    assert!(put(&store, "queue/1").await.is_err());
    put(&store, "stream/1").await.unwrap();
    let mut clear = store.begin();
    clear.clear_range(b"a", b"z");
    assert!(clear.commit().await.is_err());
    store.begin().commit().await.unwrap();

    faults.fail_next_read(Error::TooOld);
    assert!(matches!(store.begin().get(b"k", Isolation::Snapshot).await, Err(Error::TooOld)));
    faults.unavailable(true);
    assert!(matches!(store.begin().read_version().await, Err(Error::Unavailable(_))));
    assert!(matches!(put(&store, "stream/2").await, Err(Error::Unavailable(_))));
    assert_eq!(faults.injected(), 5);
    faults.heal();
    put(&store, "queue/1").await.unwrap();
    assert!(!has(&store, "stream/2").await);
}

#[tokio::test(start_paused = true)]
async fn watches_are_lost_or_fire_for_no_reason() {
    let (store, faults) = faulty();
    for fault in [WatchFault::Lost, WatchFault::Spurious] {
        faults.fail_next_watch(fault);
        let mut tx = store.begin();
        let watch = tx.watch(b"key");
        tx.commit().await.unwrap();
        assert_eq!(watch.has_fired(), fault == WatchFault::Spurious);
        put(&store, "key").await.unwrap();
        assert_eq!(watch.has_fired(), fault == WatchFault::Spurious);
    }
}

/// What became of a thousand commits and as many reads under these rates.
async fn random_outcomes(rates: FaultRates) -> Vec<String> {
    let (store, faults) = faulty();
    faults.set_rates(rates);
    let (clock, mut outcomes) = (Clock::system(), Vec::new());
    let started = clock.now();
    for n in 0..1_000 {
        let written = put(&store, &n.to_string()).await.map(drop);
        let read = store.begin().get(b"key", Isolation::Snapshot).await.map(drop);
        for (what, outcome) in [("commit", written), ("read", read)] {
            let told = outcome.map_or_else(|error| error.to_string(), |()| "ok".into());
            outcomes.push(format!("{what}: {told} at {:?}", started.elapsed()));
        }
    }
    faults.heal();
    store.close().await;
    outcomes
}

#[tokio::test(start_paused = true)]
async fn the_same_seed_gives_the_same_faults_of_every_kind() {
    let rates = FaultRates::uniform(40);
    let first = random_outcomes(rates).await;
    assert_eq!(first, random_outcomes(rates).await);
    let busy = Error::Busy("injected by a test".into());
    for error in [Error::Conflict, Error::TooOld, busy, Error::UnknownSettled, Error::UnknownOpen] {
        assert!(first.iter().any(|told| told.starts_with(&format!("commit: {error}"))), "{error}");
    }
    assert!(first.iter().any(|told| told.starts_with("read: transaction too old")));
    let failed = first.iter().filter(|told| !told.contains(": ok")).count();
    assert!((200..1_200).contains(&failed), "{failed} of 2000");
}

#[tokio::test(start_paused = true)]
async fn the_profiles_get_worse_one_after_the_other() {
    let mut failed = Vec::new();
    for rates in [FaultRates::NONE, FaultRates::calm(), FaultRates::rough(), FaultRates::hostile()] {
        let outcomes = random_outcomes(rates).await;
        failed.push(outcomes.iter().filter(|told| !told.contains(": ok")).count());
    }
    assert!(failed[0] == 0 && failed.is_sorted_by(|a, b| a < b), "{failed:?}");
    assert!(failed[3] > 300, "{failed:?}");
}

#[tokio::test(start_paused = true)]
async fn a_commit_that_nobody_waits_for_happens_only_if_it_was_on_its_way() {
    let second = Duration::from_secs(1);
    for (fault, happens) in [(CommitFault::Stalled(second), false), (CommitFault::Detached(second), true)] {
        let (store, faults) = faulty();
        faults.fail_next_commit(fault);
        let mut put = Box::pin(put(&store, "key"));
        assert!((&mut put).now_or_never().is_none());
        drop(put);
        faults.settle().await;
        tokio::time::sleep(2 * second).await;
        assert_eq!(has(&store, "key").await, happens);
    }
}

#[tokio::test(start_paused = true)]
async fn commits_that_are_held_up_are_overtaken() {
    let (store, faults) = faulty();
    faults.fail_next_commit(CommitFault::Detached(Duration::from_secs(2)));
    faults.fail_next_commit(CommitFault::Detached(Duration::from_secs(1)));
    let (first, second) = tokio::join!(put(&store, "first"), put(&store, "second"));
    assert!(first.unwrap().version > second.unwrap().version);
}

#[tokio::test]
async fn a_store_that_fails_for_good_says_so_and_is_not_healed() {
    let (store, faults) = faulty();
    put(&store, "before").await.unwrap();
    assert_eq!(store.failed().now_or_never(), None);
    let waiting = store.failed();
    faults.fail_for_good("the disk is gone");
    faults.heal();
    assert_eq!(&*waiting.await, "the disk is gone");
    let told = put(&store, "after").await.unwrap_err();
    assert!(matches!(&told, Error::Unavailable(why) if **why == *"the disk is gone"), "{told}");
    assert!(has(&store, "before").await, "reads go on");
    let outer = FaultStore::wrap(Arc::new(store), Seed::fixed(6));
    assert_eq!(outer.failed().now_or_never().as_deref(), Some("the disk is gone"), "told on");
}

#[tokio::test(start_paused = true)]
async fn a_stalled_commit_can_be_released_and_fails_if_all_do_by_then() {
    let hour = Duration::from_secs(3600);
    let stalls = [CommitFault::Stalled(hour), CommitFault::Detached(hour)];
    for (is_dead, stall) in
        [false, true].into_iter().flat_map(|dead| stalls.clone().map(|stall| (dead, stall)))
    {
        let (store, faults) = faulty();
        faults.fail_next_commit(stall);
        let clock = Clock::system();
        let started = clock.now();
        let mut put = Box::pin(put(&store, "key"));
        assert!((&mut put).now_or_never().is_none());
        assert_eq!(faults.injected(), 1);
        if is_dead {
            faults.fail_for_good("the disk is gone");
        }
        faults.release_stalled();
        assert_eq!(put.await.is_err(), is_dead);
        assert_eq!(has(&store, "key").await, !is_dead);
        assert_eq!(clock.now(), started, "not in its own time");
    }
}
