//! Sessions whose end was begun and given up.

use std::time::Duration;

use bytestring::ByteString;

use super::faults::{Bench, Fault};
use super::{CloseOptions, OpenOptions, SessionRef, WillAction, read_fence};
use crate::Error;
use crate::keyspace::session::{Fence, SessionEpoch, StoredSubscription};
use crate::message::tests::full_message;
use crate::wills::StoredWill;

const NEVER: u32 = u32::MAX;

fn keep() -> OpenOptions {
    OpenOptions { clean_start: false, expiry_seconds: NEVER, will: None }
}

fn end(will: WillAction) -> CloseOptions {
    CloseOptions {
        expiry_seconds: 0,
        will,
        outgoing: Vec::new(),
        positions: Vec::new(),
        answered: Vec::new(),
    }
}

/// A persistent session with two subscriptions.
async fn session(bench: &Bench, options: &OpenOptions) -> SessionRef {
    let session = bench.sessions.open(&"c".into(), options).await.unwrap().session;
    let subscriptions = ["a", "b"].map(|filter| (ByteString::from(filter), StoredSubscription::default()));
    bench.sessions.subscribe(&session, &subscriptions).await.unwrap();
    session
}

/// The filters of the sessions that turn out to have ended, once whoever tried has given up.
async fn settled(bench: &Bench) -> Vec<Vec<ByteString>> {
    assert_eq!(bench.sessions.settle_doubts().await.unwrap(), [], "somebody may be at it");
    tokio::time::advance(Duration::from_secs(15)).await;
    let ended = bench.sessions.settle_doubts().await.unwrap();
    assert_eq!(bench.sessions.settle_doubts().await.unwrap(), []);
    ended.into_iter().map(|ended| ended.filters).collect()
}

#[tokio::test(start_paused = true)]
async fn an_end_that_was_given_up_and_has_happened_is_told() {
    let bench = Bench::new();
    let session = session(&bench, &keep()).await;
    bench.store.expect([Fault::UnknownOpen, Fault::Unavailable]);
    assert!(matches!(bench.sessions.end(&session).await, Err(Error::Store(_))));
    assert!(bench.store.release().await.iter().all(Result::is_ok));
    // Its connection asks again, and cannot know that it was itself.
    assert!(matches!(bench.sessions.end(&session).await, Err(Error::Fenced)));
    assert_eq!(settled(&bench).await, [["a", "b"]]);
}

#[tokio::test(start_paused = true)]
async fn an_end_that_was_given_up_and_has_not_happened_is_none_and_stays_so() {
    let bench = Bench::new();
    let session = session(&bench, &keep()).await;
    bench.store.expect([Fault::UnknownOpen, Fault::Unavailable]);
    assert!(bench.sessions.end(&session).await.is_err());
    assert_eq!(settled(&bench).await, Vec::<Vec<ByteString>>::new());
    assert!(bench.store.release().await.iter().all(Result::is_err), "it was shut out");
    let ended = bench.sessions.end(&session).await.unwrap().unwrap();
    assert_eq!(ended.filters, ["a", "b"]);
    assert_eq!(settled(&bench).await, Vec::<Vec<ByteString>>::new());
}

#[tokio::test(start_paused = true)]
async fn a_session_replaced_by_a_connect_that_failed_is_told() {
    let bench = Bench::new();
    session(&bench, &keep()).await;
    bench.store.expect([Fault::UnknownOpen, Fault::Unavailable]);
    let clean = OpenOptions { clean_start: true, ..keep() };
    assert!(bench.sessions.open(&"c".into(), &clean).await.is_err());
    assert!(bench.store.release().await.iter().all(Result::is_ok));
    // The next connect does not find it any more.
    let opened = bench.sessions.open(&"c".into(), &clean).await.unwrap();
    assert_ne!(opened.replaced.unwrap().filters, ["a", "b"]);
    assert_eq!(settled(&bench).await, [["a", "b"]]);
}

#[tokio::test(start_paused = true)]
async fn a_session_that_expired_in_a_sweep_that_failed_is_told() {
    let bench = Bench::new();
    let session = session(&bench, &keep()).await;
    let options = CloseOptions { expiry_seconds: 1, ..end(WillAction::Cancel) };
    bench.sessions.close(&session, &options).await.unwrap();
    tokio::time::advance(Duration::from_secs(1)).await;
    bench.store.expect([Fault::UnknownOpen, Fault::Unavailable]);
    assert!(bench.sessions.expire_due(bench.clock.wall()).await.is_err());
    assert!(bench.store.release().await.iter().all(Result::is_ok));
    assert_eq!(bench.sessions.expire_due(bench.clock.wall()).await.unwrap(), []);
    assert_eq!(settled(&bench).await, [["a", "b"]]);
}

#[tokio::test(start_paused = true)]
async fn a_session_that_was_taken_over_while_its_end_was_repeated_lives_and_has_its_will() {
    for (epochs, ends) in [(0, true), (1, false)] {
        let bench = Bench::new();
        let will = StoredWill { message: full_message(), delay_seconds: 0, expiry_seconds: None };
        let session = session(&bench, &OpenOptions { will: Some(will), ..keep() }).await;
        let keys = bench.sessions.shared.keys("c");
        let mut tx = bench.sessions.shared.store.begin();
        let fence = read_fence(&mut *tx, &keys).await.unwrap().unwrap();
        let mut tx = bench.sessions.shared.store.begin();
        let epoch = SessionEpoch(fence.epoch.0 + epochs);
        tx.set(&keys.fence(), &Fence { epoch, ..fence }.encode());
        bench.store.hold(tx);
        bench.store.expect([Fault::UnknownLost, Fault::ReleaseFirst]);
        let closed = bench.sessions.close(&session, &end(WillAction::Fire)).await;
        assert!(bench.store.is_through());
        match closed {
            Ok(closed) => assert!(ends && closed.ended.is_some() && closed.will.is_some()),
            Err(error) => assert!(!ends && matches!(error, Error::Fenced), "{error:?}"),
        }
    }
}
