//! Sessions over the memory engine: fences, clean starts, expiry, and outcomes that nobody knows.

use std::time::Duration;

use bytestring::ByteString;
use weir_env::clock::Timestamp;
use weir_storage::Store as _;
use weir_topic::TopicName;

use super::faults::{Bench, Fault};
use super::{
    CloseOptions, Closed, OpenOptions, Opened, SessionOp, SessionRef, Sessions, WillAction, check_fence,
};
use crate::Error;
use crate::inbox::{Inbox, InboxId};
use crate::keyspace::session::{
    Incarnation, IncomingPublish, OutgoingEntry, OutgoingPhase, StoredSubscription,
};
use crate::keyspace::session_position::{SessionPosition, ShardPosition};
use crate::keyspace::timer::{Timer, TimerId, TimerKind};
use crate::keyspace::{PublishId, VirtualShard, tag};
use crate::message::tests::full_message;
use crate::wills::{DueWill, StoredWill, Wills};

const NEVER: u32 = u32::MAX;

fn options(clean_start: bool, expiry_seconds: u32) -> OpenOptions {
    OpenOptions { clean_start, expiry_seconds, will: None }
}

fn will(topic: &str, delay_seconds: u32) -> StoredWill {
    let message = crate::message::Message { topic: TopicName::parse(topic).unwrap(), ..full_message() };
    StoredWill { message, delay_seconds, expiry_seconds: Some(5) }
}

fn with_will(expiry_seconds: u32, delay_seconds: u32) -> OpenOptions {
    OpenOptions { will: Some(will("gone", delay_seconds)), ..options(false, expiry_seconds) }
}

async fn open(sessions: &Sessions, options: &OpenOptions) -> Opened {
    sessions.open(&"c".into(), options).await.unwrap()
}

/// The session goes on, with these publishes that are not finished.
fn keep(outgoing: Vec<OutgoingEntry>) -> CloseOptions {
    let will = WillAction::Cancel;
    CloseOptions { expiry_seconds: NEVER, will, outgoing, positions: Vec::new(), answered: Vec::new() }
}

async fn close(sessions: &Sessions, session: &SessionRef, expiry_seconds: u32, will: WillAction) -> Closed {
    sessions
        .close(
            session,
            &CloseOptions {
                expiry_seconds,
                will,
                outgoing: Vec::new(),
                positions: Vec::new(),
                answered: Vec::new(),
            },
        )
        .await
        .unwrap()
}

fn subscription(qos: u8) -> StoredSubscription {
    StoredSubscription { qos, subscription_id: Some(7), ..StoredSubscription::default() }
}

async fn routes(sessions: &Sessions) -> Vec<(ByteString, ByteString)> {
    let mut after = None;
    let mut routes = Vec::new();
    loop {
        let page = sessions.load_routes(after).await.unwrap();
        routes.extend(page.routes.into_iter().map(|route| (route.client_id, route.filter)));
        after = page.next;
        if after.is_none() {
            routes.sort();
            return routes;
        }
    }
}

/// Nothing of the client is left, once the inboxes of ended sessions are cleared.
async fn assert_empty(bench: &Bench) {
    tokio::time::advance(Duration::from_secs(120)).await;
    Inbox::new(&bench.sessions).sweep(bench.clock.wall()).await.unwrap();
    for tag in [tag::SESSION, tag::SESSION_ROUTE, tag::WILL, tag::TIMER, tag::INBOX_BLOB, tag::INBOX_MARK] {
        assert_eq!(bench.store.keys(tag).await, Vec::<bytes::Bytes>::new(), "table {}", char::from(tag));
    }
}

#[tokio::test(start_paused = true)]
async fn shards_without_timers_take_no_read() {
    let bench = Bench::new();
    let wall = bench.clock.wall();
    let (now, later) = (Timestamp::from_micros(5), Timestamp::from_micros(6));
    let due = async |kind| {
        let before = bench.store.ranges_read();
        let due = bench.sessions.shared.due_timers(kind, now, 10).await.unwrap();
        let due: Vec<_> = due.into_iter().map(|(shard, id, _)| (shard.0, id.seq)).collect();
        (due, bench.store.ranges_read() - before)
    };
    assert!(wall > now);
    assert_eq!(due(TimerKind::SessionEnd).await, (vec![], 1));

    let mut tx = bench.store.begin();
    let end = Timer::SessionEnd("c".into());
    let drain = Timer::InboxDrain("c".into(), Incarnation(1));
    let timers = [
        (0, &drain, now, 1),
        (3, &end, now, 2),
        (3, &end, now, 3),
        (3, &end, later, 4),
        (5, &end, later, 5),
        (5, &drain, now, 6),
        (7, &end, now, 7),
    ];
    for (shard, timer, due, seq) in timers {
        tx.set(&Timer::key(VirtualShard(shard), timer.kind(), TimerId { due, seq }), &timer.encode());
    }
    tx.commit().await.unwrap();
    // Looks from 0, 1, 3, 4, 5, 6 and 7; two of them find something due, which is then read.
    assert_eq!(due(TimerKind::SessionEnd).await, (vec![(3, 2), (3, 3), (7, 7)], 7 + 2));
    assert_eq!(due(TimerKind::InboxDrain).await.0, vec![(0, 1), (5, 6)]);
    assert_eq!(due(TimerKind::Will).await.0, vec![]);
}

#[test]
fn futures_can_be_spawned() {
    fn check(_: &(impl Send + ?Sized)) {}
    fn all(sessions: &Sessions, session: &SessionRef, close: &CloseOptions, will: &DueWill) {
        check(&sessions.open(&session.client_id, &options(true, 0)));
        check(&sessions.close(session, close));
        check(&sessions.subscribe(session, &[]));
        check(&sessions.unsubscribe(session, &[]));
        check(&sessions.update(session, &[]));
        check(&sessions.expire_due(Timestamp::MAX));
        check(&sessions.close_orphans(|_| true));
        check(&sessions.load_routes(None));
        check(&Wills::new(sessions).done(will));
        check(&Inbox::new(sessions).read(session, None, 1, 1));
    }
    let _ = all;
}

#[tokio::test(start_paused = true)]
async fn a_clean_session_without_state_writes_nothing() {
    let bench = Bench::new();
    for clean_start in [true, false] {
        let opened = open(&bench.sessions, &options(clean_start, 0)).await;
        assert!(!opened.present && !opened.session.persistent);
        bench.sessions.subscribe(&opened.session, &[("a".into(), subscription(1))]).await.unwrap();
        bench.sessions.store_incoming(&opened.session, 1, PublishId([1; 16])).await.unwrap();
        close(&bench.sessions, &opened.session, 0, WillAction::Fire).await;
    }
    assert_eq!(bench.store.commits(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_session_comes_back_as_it_was_left() {
    let bench = Bench::new();
    let sessions = &bench.sessions;
    let first = open(sessions, &options(false, NEVER)).await;
    assert!(!first.present && first.session.persistent);
    let session = first.session;
    let subscriptions = [("a/+".into(), subscription(1)), ("b".into(), subscription(2))];
    sessions.subscribe(&session, &subscriptions).await.unwrap();
    sessions.unsubscribe(&session, &["b".into(), "never".into()]).await.unwrap();
    let (kept, gone) = (InboxId([2; 12]), InboxId([4; 12]));
    sessions
        .update(
            &session,
            &[
                SessionOp::StoreIncoming(1, PublishId([1; 16])),
                SessionOp::StoreIncoming(2, PublishId([2; 16])),
                SessionOp::StoreIncoming(3, PublishId([3; 16])),
                SessionOp::StoreIncoming(4, PublishId([4; 16])),
                SessionOp::StoreAnswered(4, PublishId([4; 16])),
                SessionOp::StoreAnswered(2, PublishId([9; 16])),
                SessionOp::ClearIncoming(1),
                SessionOp::StoreAnswered(1, PublishId([1; 16])),
                SessionOp::StoreOutgoing(3, kept),
                SessionOp::StoreOutgoing(4, gone),
                SessionOp::Release(4, gone),
                SessionOp::StoreOutgoing(5, gone),
                SessionOp::ClearOutgoing(5),
            ],
        )
        .await
        .unwrap();
    let unacknowledged = OutgoingEntry { packet_id: 9, phase: OutgoingPhase::Published, inbox_id: kept };
    let outgoing = vec![unacknowledged];
    let options = CloseOptions { answered: vec![(3, PublishId([3; 16]))], ..keep(outgoing) };
    sessions.close(&session, &options).await.unwrap();

    let again = open(sessions, &self::options(false, 60)).await;
    assert!(again.present && again.replaced.is_none());
    assert_eq!(again.session.incarnation, session.incarnation);
    assert!(again.session.epoch > session.epoch);
    assert_eq!(again.subscriptions, subscriptions[..1]);
    let incoming = |id, is_answered| IncomingPublish { id: PublishId([id; 16]), is_answered };
    assert_eq!(again.incoming, [(2, incoming(2, false)), (3, incoming(3, true)), (4, incoming(4, true))]);
    let published = |packet_id, phase, inbox_id| OutgoingEntry { packet_id, phase, inbox_id };
    let expected = [
        published(3, OutgoingPhase::Published, kept),
        published(4, OutgoingPhase::Released, gone),
        unacknowledged,
    ];
    assert_eq!(again.outgoing, expected);
    assert_eq!(routes(sessions).await, [("c".into(), "a/+".into())]);

    let ended = sessions.end(&again.session).await.unwrap().unwrap();
    assert_eq!(ended.filters, ["a/+"]);
    assert_empty(&bench).await;
}

fn position(stream: u32, position: u64) -> SessionPosition {
    let shards = vec![ShardPosition { shard: 0, position, end: None }];
    SessionPosition { stream, ended: false, shards }
}

#[tokio::test(start_paused = true)]
async fn a_position_lives_as_long_as_its_subscription() {
    let bench = Bench::new();
    let sessions = &bench.sessions;
    let mut session = open(sessions, &options(false, NEVER)).await.session;
    let subscriptions: Vec<(ByteString, _)> =
        ["kept", "left", "sought"].map(|filter| (filter.into(), subscription(1))).into();
    sessions.subscribe(&session, &subscriptions).await.unwrap();
    let store = async |session: &SessionRef, at| {
        let op = |(filter, _): &(ByteString, _)| {
            SessionOp::StorePosition(Box::new((filter.clone(), position(1, at))))
        };
        let ops: Vec<_> = subscriptions.iter().map(op).collect();
        sessions.update(session, &ops).await
    };
    store(&session, 7).await.unwrap();
    sessions.subscribe_anew(&session, &subscriptions, &["sought".into()]).await.unwrap();
    sessions.unsubscribe(&session, &["left".into()]).await.unwrap();
    for _ in 0..2 {
        close(sessions, &session, NEVER, WillAction::Cancel).await;
        let again = open(sessions, &options(false, NEVER)).await;
        assert_eq!(again.positions, [("kept".into(), position(1, 7))]);
        let old = std::mem::replace(&mut session, again.session);
        assert!(matches!(store(&old, 8).await, Err(Error::Fenced)));
    }
    let clean = open(sessions, &options(true, NEVER)).await;
    assert_eq!(clean.positions, []);
    sessions.end(&clean.session).await.unwrap();
    assert_empty(&bench).await;
}

#[tokio::test(start_paused = true)]
async fn positions_are_stored_with_the_end_of_the_connection() {
    let keep = |at: u64, expiry_seconds| CloseOptions {
        expiry_seconds,
        positions: vec![("a".into(), position(1, at))],
        ..keep(Vec::new())
    };
    for fault in [Fault::None, Fault::Unavailable, Fault::UnknownCommitted, Fault::UnknownLost] {
        let bench = Bench::new();
        let sessions = &bench.sessions;
        let session = open(sessions, &options(false, NEVER)).await.session;
        sessions.subscribe(&session, &[("a".into(), subscription(1))]).await.unwrap();
        bench.store.expect([fault]);
        let closed = sessions.close(&session, &keep(7, NEVER)).await;
        assert_eq!(closed.is_err(), fault == Fault::Unavailable, "{fault:?}");
        if closed.is_err() {
            sessions.close(&session, &keep(7, NEVER)).await.unwrap();
        }
        let again = open(sessions, &options(false, NEVER)).await;
        assert_eq!(again.positions, [("a".into(), position(1, 7))], "{fault:?}");
        // Of an earlier connection, and of a session that ends, nothing is stored.
        assert!(matches!(sessions.close(&session, &keep(8, NEVER)).await, Err(Error::Fenced)));
        assert_eq!(open(sessions, &options(false, NEVER)).await.positions, again.positions);
        let last = open(sessions, &options(false, NEVER)).await.session;
        sessions.close(&last, &keep(9, 0)).await.unwrap();
        assert_empty(&bench).await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_older_connection_is_fenced_off_and_changes_nothing() {
    let bench = Bench::new();
    let other_pod = bench.other_pod(2);
    let old = open(&bench.sessions, &options(false, NEVER)).await.session;
    let new = open(&other_pod, &options(false, NEVER)).await;
    assert!(new.present);
    let sessions = &bench.sessions;
    let before = bench.store.keys(tag::SESSION).await;
    let fenced = |outcome: Result<(), Error>| assert!(matches!(outcome, Err(Error::Fenced)), "{outcome:?}");
    fenced(sessions.subscribe(&old, &[("a".into(), subscription(1))]).await.map(drop));
    fenced(sessions.unsubscribe(&old, &["a".into()]).await.map(drop));
    fenced(sessions.store_incoming(&old, 1, PublishId([1; 16])).await);
    fenced(sessions.update(&old, &[SessionOp::StoreOutgoing(1, InboxId([0; 12]))]).await);
    fenced(Inbox::new(sessions).remove(&old, &[InboxId([0; 12])]).await);
    fenced(sessions.end(&old).await.map(drop));
    assert_eq!(bench.store.keys(tag::SESSION).await, before);
    other_pod.subscribe(&new.session, &[("a".into(), subscription(1))]).await.unwrap();

    // Also when the session is over and another one has begun with the same epochs.
    other_pod.end(&new.session).await.unwrap();
    fenced(sessions.subscribe(&old, &[("a".into(), subscription(1))]).await.map(drop));
    let fresh = open(&other_pod, &options(false, NEVER)).await.session;
    assert_eq!(fresh.epoch, old.epoch);
    fenced(sessions.subscribe(&old, &[("a".into(), subscription(1))]).await.map(drop));
}

#[tokio::test(start_paused = true)]
async fn a_takeover_sees_what_the_old_connection_wrote_at_the_last_moment() {
    let keys = Bench::new().sessions.shared.keys("c");
    let entry = OutgoingEntry { packet_id: 1, phase: OutgoingPhase::Published, inbox_id: InboxId([0; 12]) };
    let rows = [
        (keys.subscription("late"), subscription(1).encode()),
        (keys.outgoing(1), entry.encode()),
        (keys.incoming(1), IncomingPublish { id: PublishId([1; 16]), is_answered: false }.encode()),
    ];
    for (key, value) in rows {
        let bench = Bench::new();
        let old = open(&bench.sessions, &options(false, NEVER)).await.session;
        let mut tx = bench.sessions.shared.store.begin();
        check_fence(&mut *tx, &keys, &old, false).await.unwrap();
        tx.set(&key, &value);
        bench.store.hold(tx);
        // It commits after the takeover has read and before that commits.
        bench.store.expect([Fault::ReleaseFirst]);
        let taken = open(&bench.other_pod(2), &options(false, NEVER)).await;
        assert!(bench.store.is_through());
        assert_eq!(taken.subscriptions.len() + taken.outgoing.len() + taken.incoming.len(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_takeover_shuts_out_what_the_old_connection_writes_later() {
    let bench = Bench::new();
    let old = open(&bench.sessions, &options(false, NEVER)).await.session;
    let keys = bench.sessions.shared.keys("c");
    let mut tx = bench.sessions.shared.store.begin();
    check_fence(&mut *tx, &keys, &old, false).await.unwrap();
    tx.set(&keys.subscription("late"), &subscription(1).encode());
    bench.store.hold(tx);
    let taken = open(&bench.other_pod(2), &options(false, NEVER)).await;
    assert_eq!(taken.subscriptions, []);
    nothing_comes_late(&bench).await;
}

#[tokio::test(start_paused = true)]
async fn a_clean_start_wipes_however_much_there_is() {
    let bench = Bench::new();
    let sessions = &bench.sessions;
    let old = open(sessions, &options(false, NEVER)).await.session;
    // More than one transaction removes.
    let many: Vec<_> = (0..2_500).map(|n| (format!("a/{n}").into(), subscription(1))).collect();
    sessions.subscribe(&old, &many).await.unwrap();
    assert_eq!(routes(sessions).await.len(), many.len());
    let new = open(sessions, &options(true, NEVER)).await;
    assert!(!new.present && new.subscriptions.is_empty());
    assert_ne!(new.session.incarnation, old.incarnation);
    let replaced = new.replaced.unwrap();
    assert_eq!((replaced.incarnation, replaced.filters.len()), (old.incarnation, many.len()));
    assert_eq!(routes(sessions).await, []);
    sessions.end(&new.session).await.unwrap();
    assert_empty(&bench).await;
}

#[tokio::test(start_paused = true)]
async fn a_session_half_wiped_is_never_opened_and_goes_with_its_timer() {
    for (reopen, by_another) in [(true, true), (true, false), (false, true), (false, false)] {
        let bench = Bench::new();
        let sessions = &bench.sessions;
        let old = open(sessions, &options(false, NEVER)).await.session;
        let many: Vec<_> = (0..1_500).map(|n| (format!("a/{n}").into(), subscription(1))).collect();
        sessions.subscribe(&old, &many).await.unwrap();
        bench.store.expect([Fault::None, Fault::Unavailable]);
        assert!(sessions.open(&"c".into(), &options(true, NEVER)).await.is_err());
        assert_eq!(routes(sessions).await.len(), 500);
        // Another pod has not seen what is gone already.
        let (finishing, filters) =
            if by_another { (bench.other_pod(2), 500) } else { (sessions.clone(), 1_500) };
        if reopen {
            let opened = open(&finishing, &options(false, NEVER)).await;
            assert!(!opened.present);
            assert_eq!(opened.replaced.unwrap().filters.len(), filters);
            finishing.end(&opened.session).await.unwrap();
        } else {
            let ended = finishing.expire_due(bench.clock.wall()).await.unwrap();
            assert_eq!(ended[0].filters.len(), filters);
        }
        assert_empty(&bench).await;
    }
}

// Conformance v5: 3.1.2-23, 4.1.0-1, 4.1.0-2
#[tokio::test(start_paused = true)]
async fn a_session_ends_when_its_time_is_over_unless_the_client_is_back() {
    let bench = Bench::new();
    let sessions = &bench.sessions;
    let session = open(sessions, &options(false, 60)).await.session;
    sessions.subscribe(&session, &[("a".into(), subscription(1))]).await.unwrap();
    assert!(close(sessions, &session, 60, WillAction::Cancel).await.ended.is_none());

    tokio::time::advance(Duration::from_secs(59)).await;
    assert_eq!(sessions.expire_due(bench.clock.wall()).await.unwrap(), []);
    let back = open(sessions, &options(false, 60)).await;
    assert!(back.present);
    tokio::time::advance(Duration::from_secs(600)).await;
    assert_eq!(sessions.expire_due(bench.clock.wall()).await.unwrap(), []);
    close(sessions, &back.session, 60, WillAction::Cancel).await;

    tokio::time::advance(Duration::from_secs(60)).await;
    let ended = sessions.expire_due(bench.clock.wall()).await.unwrap();
    assert_eq!(ended.len(), 1);
    assert_eq!((ended[0].incarnation, &ended[0].filters[..]), (session.incarnation, &["a".into()][..]));
    assert_eq!(sessions.expire_due(bench.clock.wall()).await.unwrap(), []);
    assert_empty(&bench).await;
}

#[tokio::test(start_paused = true)]
async fn a_session_whose_time_is_over_is_not_opened_before_the_timer_is_handled() {
    let bench = Bench::new();
    let session = open(&bench.sessions, &options(false, 60)).await.session;
    close(&bench.sessions, &session, 60, WillAction::Cancel).await;
    tokio::time::advance(Duration::from_secs(61)).await;
    let opened = open(&bench.sessions, &options(false, 60)).await;
    assert!(!opened.present);
    assert_eq!(opened.replaced.unwrap().incarnation, session.incarnation);
    assert_eq!(bench.sessions.expire_due(bench.clock.wall()).await.unwrap(), []);
}

#[tokio::test(start_paused = true)]
async fn an_unknown_outcome_is_repeated_without_a_trace() {
    for fault in [Fault::UnknownCommitted, Fault::UnknownLost, Fault::UnknownOpen] {
        let bench = Bench::new();
        let sessions = &bench.sessions;
        bench.store.expect([fault]);
        let first = open(sessions, &with_will(NEVER, 0)).await;
        assert!(!first.present, "{fault:?}: it is new, however often it was tried");
        nothing_comes_late(&bench).await;
        assert_eq!(Wills::new(sessions).due(bench.clock.wall(), 256).await.unwrap(), [], "{fault:?}");

        bench.store.expect([fault]);
        sessions.subscribe(&first.session, &[("a".into(), subscription(1))]).await.unwrap();
        nothing_comes_late(&bench).await;
        bench.store.expect([fault]);
        sessions.update(&first.session, &[SessionOp::StoreOutgoing(1, InboxId([0; 12]))]).await.unwrap();
        nothing_comes_late(&bench).await;
        bench.store.expect([fault]);
        close(sessions, &first.session, NEVER, WillAction::Cancel).await;
        nothing_comes_late(&bench).await;

        bench.store.expect([fault]);
        let second = open(sessions, &options(false, NEVER)).await;
        assert!(second.present);
        assert_eq!((second.subscriptions.len(), second.outgoing.len()), (1, 1));
        nothing_comes_late(&bench).await;
        bench.store.expect([fault]);
        let third = open(sessions, &options(true, 60)).await;
        assert!(!third.present);
        assert_eq!(third.replaced.unwrap().filters, ["a"], "{fault:?}");
        nothing_comes_late(&bench).await;
        close(sessions, &third.session, 60, WillAction::Cancel).await;
        tokio::time::advance(Duration::from_secs(60)).await;
        bench.store.expect([fault]);
        assert_eq!(sessions.expire_due(bench.clock.wall()).await.unwrap().len(), 1, "{fault:?}");
        nothing_comes_late(&bench).await;
        assert_empty(&bench).await;
    }
}

/// The fault has happened, and a commit that is still in flight cannot happen any more.
async fn nothing_comes_late(bench: &Bench) {
    assert!(bench.store.is_through());
    for outcome in bench.store.release().await {
        assert!(matches!(outcome, Err(weir_storage::Error::Conflict)), "{outcome:?}");
    }
}

// Conformance v5: 3.1.2-7, 3.1.2-10
#[tokio::test(start_paused = true)]
async fn a_will_is_cancelled_or_handed_out_until_it_is_done() {
    let bench = Bench::new();
    let (sessions, wills) = (&bench.sessions, Wills::new(&bench.sessions));
    for expiry in [0, NEVER] {
        let session = open(sessions, &with_will(expiry, 0)).await.session;
        assert_eq!(session.persistent, expiry > 0);
        assert_eq!(close(sessions, &session, expiry, WillAction::Cancel).await.will, None);

        let session = open(sessions, &with_will(expiry, 0)).await.session;
        let due = close(sessions, &session, expiry, WillAction::Fire).await.will.unwrap();
        assert_eq!(due.will, will("gone", 0));
        // The broker dies before it says that it is done.
        assert_eq!(wills.due(bench.clock.wall(), 256).await.unwrap(), []);
        tokio::time::advance(Duration::from_secs(30)).await;
        let again = wills.due(bench.clock.wall(), 256).await.unwrap();
        assert_eq!(again, [DueWill { is_first: false, ..due.clone() }]);
        assert!(due.is_first);
        assert_eq!(wills.due(bench.clock.wall(), 256).await.unwrap(), []);
        // It cannot publish it now.
        let later = bench.clock.wall().saturating_add(Duration::from_secs(100));
        wills.retry_at(&again[0], later, true).await.unwrap();
        tokio::time::advance(Duration::from_secs(99)).await;
        assert_eq!(wills.due(bench.clock.wall(), 256).await.unwrap(), []);
        tokio::time::advance(Duration::from_secs(1)).await;
        let last = wills.due(bench.clock.wall(), 256).await.unwrap();
        assert_eq!(last, [DueWill { retained: true, ..again[0].clone() }]);
        wills.done(&again[0]).await.unwrap();
        if expiry > 0 {
            let session = open(sessions, &options(true, 0)).await.session;
            close(sessions, &session, 0, WillAction::Cancel).await;
        }
        assert_empty(&bench).await;
        assert_eq!(wills.due(bench.clock.wall(), 256).await.unwrap(), []);
    }
}

// Conformance v5: 3.1.2-8
#[tokio::test(start_paused = true)]
async fn a_delayed_will_waits_for_the_delay_or_the_end_of_the_session() {
    // Delay, expiry, and when it is due.
    for (delay, expiry, due) in [(10, 60, 10), (60, 10, 10), (10, NEVER, 10), (10, 0, 0)] {
        let bench = Bench::new();
        let wills = Wills::new(&bench.sessions);
        let session = open(&bench.sessions, &with_will(expiry, delay)).await.session;
        let at_once = close(&bench.sessions, &session, expiry, WillAction::Fire).await.will;
        assert_eq!(at_once.is_some(), due == 0);
        if due > 0 {
            tokio::time::advance(Duration::from_secs(due - 1)).await;
            assert_eq!(wills.due(bench.clock.wall(), 256).await.unwrap(), []);
            tokio::time::advance(Duration::from_secs(1)).await;
            assert_eq!(wills.due(bench.clock.wall(), 256).await.unwrap().len(), 1, "{delay} {expiry}");
        }
    }
}

// Conformance v5: 3.1.3-9
#[tokio::test(start_paused = true)]
async fn a_new_connection_cancels_a_waiting_will_and_a_clean_start_brings_it_forward() {
    for (clean_start, due) in [(false, 0), (true, 1)] {
        let bench = Bench::new();
        let wills = Wills::new(&bench.sessions);
        let session = open(&bench.sessions, &with_will(60, 10)).await.session;
        close(&bench.sessions, &session, 60, WillAction::Fire).await;
        let session = open(&bench.sessions, &options(clean_start, 60)).await.session;
        assert_eq!(wills.due(bench.clock.wall(), 256).await.unwrap().len(), due);
        tokio::time::advance(Duration::from_secs(20)).await;
        assert_eq!(wills.due(bench.clock.wall(), 256).await.unwrap().len(), 0);
        bench.sessions.end(&session).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_takeover_sees_to_the_will_of_the_connection_it_fences_off() {
    // Delay of the old will, clean start of the new connection, wills due at once.
    for (delay, clean_start, due) in [(0, false, 1), (0, true, 1), (10, false, 0), (10, true, 1)] {
        let bench = Bench::new();
        let other_pod = bench.other_pod(2);
        let old = open(&bench.sessions, &with_will(60, delay)).await.session;
        let new = OpenOptions { clean_start, ..with_will(60, 0) };
        let new = open(&other_pod, &new).await.session;
        let late = CloseOptions {
            expiry_seconds: 60,
            will: WillAction::Fire,
            outgoing: Vec::new(),
            positions: Vec::new(),
            answered: Vec::new(),
        };
        assert!(matches!(bench.sessions.close(&old, &late).await, Err(Error::Fenced)));
        let wills = Wills::new(&other_pod);
        let handed_out = wills.due(bench.clock.wall(), 256).await.unwrap();
        assert_eq!(handed_out.len(), due, "{delay} {clean_start}");
        assert!(handed_out.iter().all(|will| will.id.pod == [1; 16]));
        // The new connection's own will is untouched.
        assert!(close(&other_pod, &new, 60, WillAction::Fire).await.will.is_some());
    }
}

#[tokio::test(start_paused = true)]
async fn connections_of_a_dead_pod_are_closed_by_another() {
    let bench = Bench::new();
    let (living, third) = (bench.other_pod(2), bench.other_pod(3));
    for n in 0..120 {
        let client_id = ByteString::from(format!("c{n}"));
        let kind = [with_will(30, 0), with_will(0, 0), options(false, 30)];
        let on = if n % 12 == 0 { &living } else { &bench.sessions };
        on.open(&client_id, &kind[n % 3]).await.unwrap();
    }
    let closed = third.close_orphans(|pod| *pod == [1; 16]).await.unwrap();
    assert_eq!(closed, 110);
    assert_eq!(third.close_orphans(|pod| *pod == [1; 16]).await.unwrap(), 0);
    let wills = Wills::new(&third);
    let due = wills.due(bench.clock.wall(), 256).await.unwrap();
    assert_eq!(due.len(), 70);
    for will in &due {
        wills.done(will).await.unwrap();
    }
    tokio::time::advance(Duration::from_secs(31)).await;
    let ended = third.expire_due(bench.clock.wall()).await.unwrap().len();
    assert_eq!(ended, 70, "clean sessions have ended with their pod");
    assert_eq!(bench.store.keys(tag::WILL).await.len(), 20, "of the pod that lives");
}

#[tokio::test(start_paused = true)]
async fn a_will_that_another_pod_has_in_hand_is_the_same_publish_here() {
    let bench = Bench::new();
    let other = bench.other_pod(2);
    let session = open(&bench.sessions, &with_will(60, 0)).await.session;
    assert_eq!(other.close_orphans(|pod| *pod == [1; 16]).await.unwrap(), 1);
    let theirs = Wills::new(&other).due(bench.clock.wall(), 256).await.unwrap().remove(0);
    tokio::time::advance(Duration::from_secs(5)).await;
    // Its own pod lives after all, and ends the connection now.
    let ours = close(&bench.sessions, &session, 60, WillAction::Fire).await.will.unwrap();
    assert_eq!(ours.publish_id(), theirs.publish_id());
    assert!(theirs.is_first && !ours.is_first, "it goes live once");
    Wills::new(&other).done(&theirs).await.unwrap();
    Wills::new(&bench.sessions).done(&ours).await.unwrap();
    assert_eq!(bench.store.keys(tag::WILL).await.len(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_will_that_another_pod_has_published_meanwhile_is_not_handed_out_here() {
    for fault in [Fault::UnknownCommitted, Fault::UnknownLost] {
        let bench = Bench::new();
        let other = bench.other_pod(2);
        let session = open(&bench.sessions, &with_will(60, 0)).await.session;
        bench.store.expect([fault]);
        let ours = close(&bench.sessions, &session, 60, WillAction::Fire);
        let theirs = async {
            let wills = Wills::new(&other);
            other.close_orphans(|pod| *pod == [1; 16]).await.unwrap();
            for due in wills.due(bench.clock.wall(), 256).await.unwrap() {
                wills.done(&due).await.unwrap();
            }
        };
        let (ours, ()) = tokio::join!(ours, theirs);
        // If it was handed out here after all, the other pod has found nothing that was due.
        assert_eq!(ours.will.is_some(), fault == Fault::UnknownCommitted, "{fault:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_large_will_comes_back_whole() {
    let bench = Bench::new();
    let mut large = will("gone", 0);
    large.message.payload = (0..200_000u32).map(|n| n.to_le_bytes()[0]).collect::<Vec<u8>>().into();
    let options = OpenOptions { will: Some(large.clone()), ..options(true, 0) };
    let session = open(&bench.sessions, &options).await.session;
    let due = close(&bench.sessions, &session, 0, WillAction::Fire).await.will.unwrap();
    assert_eq!(due.will, large);
    Wills::new(&bench.sessions).done(&due).await.unwrap();
    assert_empty(&bench).await;
}
