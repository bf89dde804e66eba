//! Inboxes over the memory engine: order, blobs, marks, limits, and outcomes that nobody knows.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::*;
use crate::Error;
use crate::keyspace::session::{OutgoingEntry, OutgoingPhase};
use crate::keyspace::{PublishId, tag};
use crate::message::Properties;
use crate::message::tests::full_message;
use crate::sessions::faults::{Bench, Fault};
use crate::sessions::{CloseOptions, OpenOptions, SessionOp, WillAction};

struct InboxBench {
    bench: Bench,
    inbox: Inbox,
    writer: InboxWriter,
    metrics: InboxMetrics,
    notified: Arc<Mutex<Vec<ByteString>>>,
    tracker: TaskTracker,
    stop: CancellationToken,
}

impl InboxBench {
    fn new() -> Self {
        Self::with(InboxOptions { tasks: 2, ..InboxOptions::default() })
    }

    fn with(options: InboxOptions) -> Self {
        let bench = Bench::new();
        let notified = Arc::new(Mutex::new(Vec::new()));
        let (tracker, stop, metrics) =
            (TaskTracker::new(), CancellationToken::new(), InboxMetrics::default());
        let notify = {
            let notified = Arc::clone(&notified);
            Arc::new(move |target: &InboxTarget| notified.lock().push(target.client_id.clone()))
        };
        let writer = InboxWriter::spawn(&bench.sessions, options, &metrics, notify, &tracker, &stop);
        let inbox = Inbox::new(&bench.sessions);
        Self { bench, inbox, writer, metrics, notified, tracker, stop }
    }

    async fn session(&self, client_id: &str) -> SessionRef {
        let options = OpenOptions { clean_start: false, expiry_seconds: u32::MAX, will: None };
        self.bench.sessions.open(&client_id.into(), &options).await.unwrap().session
    }

    async fn sessions(&self, count: usize) -> Vec<SessionRef> {
        let mut sessions = Vec::new();
        for n in 0..count {
            sessions.push(self.session(&format!("c{n:04}")).await);
        }
        sessions
    }

    async fn append(&self, message: &Message, to: &[SessionRef], mark: Option<PublishId>) -> Result<()> {
        let append = InboxAppend {
            message: Arc::new(message.clone()),
            targets: to.iter().map(target).collect(),
            mark,
            noted: None,
        };
        self.writer.append(append).await?.await
    }

    async fn payloads(&self, session: &SessionRef) -> Vec<Bytes> {
        let items = self.inbox.read(session, None, 10_000, usize::MAX).await.unwrap();
        items.into_iter().map(|item| item.message.payload).collect()
    }

    fn usage(&self, session: &SessionRef) -> InboxUsage {
        let counters = &self.bench.sessions.shared.counters;
        counters.usage(&session.client_id, session.incarnation).unwrap()
    }

    async fn remove_all(&self, session: &SessionRef) {
        let items = self.inbox.read(session, None, 10_000, usize::MAX).await.unwrap();
        let ids: Vec<InboxId> = items.iter().map(|item| item.id).collect();
        self.inbox.remove(session, &ids).await.unwrap();
    }

    /// Waits until tasks have counted inboxes and have nothing else to do.
    async fn settle(&self) {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }

    async fn stop(self) {
        self.stop.cancel();
        self.tracker.close();
        self.tracker.wait().await;
        let append = InboxAppend {
            message: Arc::new(message("late")),
            targets: [target(&self.bench_session())].into_iter().collect(),
            mark: None,
            noted: None,
        };
        assert!(matches!(self.writer.append(append).await, Err(Error::Closed)));
    }

    fn bench_session(&self) -> SessionRef {
        let (epoch, incarnation) = (crate::keyspace::session::SessionEpoch(1), Incarnation(1));
        SessionRef { client_id: "x".into(), epoch, incarnation, persistent: true }
    }
}

fn target(session: &SessionRef) -> InboxTarget {
    InboxTarget {
        client_id: session.client_id.clone(),
        incarnation: session.incarnation,
        qos: 1,
        retain: false,
        subscription_ids: [3, 4].into_iter().collect(),
    }
}

fn message(payload: impl Into<Bytes>) -> Message {
    Message { payload: payload.into(), properties: Properties::default(), ..full_message() }
}

fn large(bytes: usize) -> Message {
    message((0..bytes).map(|n| n.to_le_bytes()[0]).collect::<Vec<u8>>())
}

#[tokio::test(start_paused = true)]
async fn messages_of_a_topic_come_in_the_order_in_which_they_were_given() {
    let it = InboxBench::new();
    let session = it.session("c").await;
    let mut completions = Vec::new();
    for n in 0..3_000u32 {
        let append = InboxAppend {
            message: Arc::new(message(n.to_string())),
            targets: [target(&session)].into_iter().collect(),
            mark: None,
            noted: None,
        };
        completions.push(it.writer.append(append).await.unwrap());
    }
    for completion in completions {
        completion.await.unwrap();
    }
    assert!(it.metrics.batches.get() < 100, "{} transactions", it.metrics.batches.get());
    assert_eq!(it.notified.lock().len(), 3_000);
    let expected: Vec<Bytes> = (0..3_000u32).map(|n| n.to_string().into()).collect();
    assert_eq!(it.payloads(&session).await, expected);

    // In pages, and what comes later comes behind.
    let mut read: Vec<InboxItem> = Vec::new();
    loop {
        let page = it.inbox.read(&session, read.last().map(|item| item.id), 700, 20_000).await.unwrap();
        assert!(page.len() <= 700);
        if page.is_empty() {
            break;
        }
        read.extend(page);
    }
    assert_eq!(read.len(), 3_000);
    assert_eq!((read[0].qos, read[0].retain, &read[0].subscription_ids[..]), (1, false, &[3, 4][..]));
    it.append(&message("last"), std::slice::from_ref(&session), None).await.unwrap();
    let rest = it.inbox.read(&session, read.last().map(|item| item.id), 10, 1_000).await.unwrap();
    assert_eq!(rest.iter().map(|item| &item.message.payload).collect::<Vec<_>>(), ["last"]);

    it.inbox.remove(&session, &[read[1].id]).await.unwrap();
    assert_eq!(it.payloads(&session).await[..2], ["0", "2"]);
    it.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_late_row_of_an_earlier_session_is_never_read_and_is_cleared() {
    let it = InboxBench::new();
    let old = it.session("c").await;
    it.append(&message("early"), std::slice::from_ref(&old), None).await.unwrap();
    let options = OpenOptions { clean_start: true, expiry_seconds: u32::MAX, will: None };
    let new = it.bench.sessions.open(&"c".into(), &options).await.unwrap().session;
    it.append(&message("late"), &[old], None).await.unwrap();
    it.append(&large(5_000), &[new.clone(), it.session("d").await], None).await.unwrap();
    assert_eq!(it.payloads(&new).await.len(), 1);

    let rows = it.bench.store.keys(tag::SESSION).await.len();
    assert_eq!(it.inbox.sweep(it.bench.clock.wall()).await.unwrap(), 0, "somebody may still be writing");
    tokio::time::advance(Duration::from_secs(60)).await;
    assert_eq!(it.inbox.sweep(it.bench.clock.wall()).await.unwrap(), 2);
    assert_eq!(it.bench.store.keys(tag::SESSION).await.len(), rows - 2);
    assert_eq!(it.payloads(&new).await.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn the_last_who_clears_a_shared_message_clears_its_chunks() {
    let it = InboxBench::new();
    // Shared in one transaction; large, with one and with several inboxes.
    for (bytes, count, blobs) in
        [(500, 3, 0), (60_000, 1, 0), (5_000, 3, 1), (70_000, 1, 1), (1_000_000, 3, 12)]
    {
        let sessions = it.sessions(count).await;
        let message = large(bytes);
        it.append(&message, &sessions, None).await.unwrap();
        let chunks = it.bench.store.keys(tag::INBOX_BLOB).await.len();
        assert_eq!(chunks, if blobs == 0 { 0 } else { blobs + count }, "{bytes} bytes");
        for session in &sessions {
            assert_eq!(it.payloads(session).await, std::slice::from_ref(&message.payload));
        }
        for (nth, session) in sessions.iter().enumerate() {
            it.remove_all(session).await;
            let left = it.bench.store.keys(tag::INBOX_BLOB).await.len();
            let expected = if blobs == 0 || nth + 1 == count { 0 } else { blobs + count - nth - 1 };
            assert_eq!(left, expected, "{bytes} bytes after {}", nth + 1);
        }
    }
    assert_eq!(it.bench.store.keys(tag::TIMER).await, Vec::<Bytes>::new(), "no hold is left");
}

#[tokio::test(start_paused = true)]
async fn of_two_who_clear_the_last_references_at_once_one_sees_the_other() {
    let it = InboxBench::new();
    let sessions = it.sessions(2).await;
    it.append(&large(5_000), &sessions, None).await.unwrap();
    let shared = &*it.bench.sessions.shared;
    let mut in_flight = Vec::new();
    for session in &sessions {
        let id = it.inbox.read(session, None, 1, 1).await.unwrap()[0].id;
        let mut tx = shared.store.begin();
        remove_row(shared, &mut *tx, &shared.keys(&session.client_id), session, &id).await.unwrap();
        in_flight.push(tx);
    }
    let mut outcomes = Vec::new();
    for tx in in_flight {
        outcomes.push(tx.commit().await);
    }
    assert!(outcomes[0].is_ok());
    assert!(matches!(outcomes[1], Err(weir_storage::Error::Conflict)), "{outcomes:?}");
    it.remove_all(&sessions[1]).await;
    assert_eq!(it.bench.store.keys(tag::INBOX_BLOB).await, Vec::<Bytes>::new());
}

#[tokio::test(start_paused = true)]
async fn the_end_of_a_session_lets_go_of_shared_messages() {
    let it = InboxBench::new();
    let sessions = it.sessions(3).await;
    it.append(&large(5_000), &sessions, None).await.unwrap();
    it.remove_all(&sessions[0]).await;
    it.bench.sessions.end(&sessions[1]).await.unwrap();
    let options = CloseOptions {
        expiry_seconds: 10,
        will: WillAction::Fire,
        outgoing: Vec::new(),
        positions: Vec::new(),
        answered: Vec::new(),
    };
    it.bench.sessions.close(&sessions[2], &options).await.unwrap();
    tokio::time::advance(Duration::from_secs(10)).await;
    assert_eq!(it.bench.sessions.expire_due(it.bench.clock.wall()).await.unwrap().len(), 1);
    assert!(!it.bench.store.keys(tag::INBOX_BLOB).await.is_empty());
    tokio::time::advance(Duration::from_secs(60)).await;
    assert_eq!(it.inbox.sweep(it.bench.clock.wall()).await.unwrap(), 2);
    assert_eq!(it.bench.store.keys(tag::INBOX_BLOB).await, Vec::<Bytes>::new());
    it.remove_all(&sessions[0]).await;
}

#[tokio::test(start_paused = true)]
async fn a_pubrec_that_is_stored_with_the_end_of_its_connection_takes_the_message_off_the_inbox() {
    let it = InboxBench::new();
    let session = it.session("c").await;
    for payload in [1, 2] {
        it.append(&large(payload), std::slice::from_ref(&session), None).await.unwrap();
    }
    it.settle().await;
    let ids: Vec<InboxId> =
        it.inbox.read(&session, None, 10, usize::MAX).await.unwrap().iter().map(|item| item.id).collect();
    let entry = |n: u16| OutgoingEntry {
        packet_id: n,
        phase: [OutgoingPhase::Released, OutgoingPhase::Published][usize::from(n)],
        inbox_id: ids[usize::from(n)],
    };
    let stored = [SessionOp::StoreOutgoing(0, ids[0]), SessionOp::StoreOutgoing(1, ids[1])];
    it.bench.sessions.update(&session, &stored).await.unwrap();
    let options = CloseOptions {
        expiry_seconds: 10,
        will: WillAction::Cancel,
        outgoing: vec![entry(0), entry(1)],
        positions: Vec::new(),
        answered: Vec::new(),
    };
    it.bench.sessions.close(&session, &options).await.unwrap();
    assert_eq!(it.payloads(&session).await, [large(2).payload]);
    assert_eq!(it.usage(&session).messages, 1);
}

#[tokio::test(start_paused = true)]
async fn more_inboxes_than_fit_into_a_transaction_all_get_the_message_once() {
    for payload in [100, 900, 5_000] {
        let it = InboxBench::new();
        let sessions = it.sessions(6_000).await;
        let before = it.bench.store.commits();
        it.append(&large(payload), &sessions, Some(PublishId([1; 16]))).await.unwrap();
        assert!(it.bench.store.commits() - before > 1);
        it.append(&large(payload), &sessions, Some(PublishId([1; 16]))).await.unwrap();
        for session in sessions.iter().step_by(97) {
            assert_eq!(it.payloads(session).await, [large(payload).payload]);
        }
        for session in &sessions {
            it.remove_all(session).await;
        }
        assert_eq!(it.bench.store.keys(tag::INBOX_BLOB).await, Vec::<Bytes>::new());
    }
}

#[tokio::test(start_paused = true)]
async fn a_marked_message_is_never_added_twice() {
    for (bytes, count) in [(10, 1), (5_000, 3), (100_000, 1), (100, 4_500)] {
        for fault in [Fault::UnknownCommitted, Fault::UnknownLost, Fault::UnknownOpen] {
            let it = InboxBench::new();
            let sessions = it.sessions(count).await;
            it.bench.store.expect([fault, Fault::None, fault, fault]);
            it.append(&large(bytes), &sessions, Some(PublishId([1; 16]))).await.unwrap();
            for outcome in it.bench.store.release().await {
                let is_blob = bytes == 100_000 && outcome.is_ok(); // Chunks may be written twice.
                let is_late =
                    matches!(outcome, Err(weir_storage::Error::Conflict | weir_storage::Error::TooOld));
                assert!(is_blob || is_late, "{outcome:?}");
            }
            for session in sessions.iter().step_by(79) {
                assert_eq!(it.payloads(session).await.len(), 1, "{bytes} bytes, {fault:?}");
            }
            // The client repeats the publish after its connection broke.
            it.append(&large(bytes), &sessions, Some(PublishId([1; 16]))).await.unwrap();
            for session in sessions.iter().step_by(79) {
                assert_eq!(it.payloads(session).await, [large(bytes).payload]);
            }
            // PUBREL: the mark is not needed any more.
            let session = &sessions[0];
            it.bench.sessions.store_incoming(session, 5, PublishId([1; 16])).await.unwrap();
            it.bench.sessions.clear_incoming(session, 5).await.unwrap();
            assert_eq!(it.bench.store.keys(tag::INBOX_MARK).await, Vec::<Bytes>::new());
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_publish_that_failed_half_way_goes_on_where_it_stopped() {
    let it = InboxBench::new();
    let sessions = it.sessions(6_000).await;
    it.bench.store.expect([Fault::None, Fault::Unavailable]);
    let outcome = it.append(&large(500), &sessions, Some(PublishId([1; 16]))).await;
    assert!(matches!(outcome, Err(Error::Store(weir_storage::Error::Unavailable(_)))), "{outcome:?}");
    assert_eq!(it.metrics.failed.get(), 1);
    assert_eq!(it.payloads(&sessions[0]).await.len(), 1);
    assert_eq!(it.payloads(&sessions[5_999]).await.len(), 0);
    it.append(&large(500), &sessions, Some(PublishId([1; 16]))).await.unwrap();
    for session in &sessions {
        assert_eq!(it.payloads(session).await.len(), 1, "{}", session.client_id);
    }
}

#[tokio::test(start_paused = true)]
async fn an_unmarked_message_is_never_lost_to_an_unknown_outcome() {
    for bytes in [10, 5_000] {
        for fault in [Fault::UnknownCommitted, Fault::UnknownLost] {
            let it = InboxBench::new();
            let sessions = it.sessions(2).await;
            it.bench.store.expect([fault]);
            it.append(&large(bytes), &sessions, None).await.unwrap();
            for session in &sessions {
                assert_eq!(it.payloads(session).await[0], large(bytes).payload);
                it.remove_all(session).await;
                assert_eq!(it.payloads(session).await.len(), 0);
            }
            assert_eq!(it.bench.store.keys(tag::INBOX_BLOB).await, Vec::<Bytes>::new());
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_blob_whose_writer_failed_is_swept() {
    let it = InboxBench::new();
    let session = it.session("c").await;
    it.bench.store.expect([Fault::None, Fault::Unavailable]);
    assert!(it.append(&large(200_000), &[session], None).await.is_err());
    assert_eq!(it.bench.store.keys(tag::INBOX_BLOB).await.len(), 4);
    tokio::time::advance(Duration::from_secs(3_599)).await;
    assert_eq!(it.inbox.sweep(it.bench.clock.wall()).await.unwrap(), 0);
    tokio::time::advance(Duration::from_secs(1)).await;
    assert_eq!(it.inbox.sweep(it.bench.clock.wall()).await.unwrap(), 1);
    assert_eq!(it.bench.store.keys(tag::INBOX_BLOB).await, Vec::<Bytes>::new());
    assert_eq!(it.bench.store.keys(tag::TIMER).await, Vec::<Bytes>::new());
}

#[tokio::test(start_paused = true)]
async fn a_full_inbox_drops_the_newest_and_nobody_elses() {
    let limits = InboxLimits { messages_max: 5, bytes_max: 1_000_000, ..InboxLimits::default() };
    let it = InboxBench::with(InboxOptions { limits, ..InboxOptions::default() });
    let sessions = it.sessions(2).await;
    for n in 0..7 {
        it.append(&message(n.to_string()), &sessions[..1], None).await.unwrap();
    }
    it.append(&message("both"), &sessions, None).await.unwrap();
    assert_eq!(it.payloads(&sessions[0]).await, ["0", "1", "2", "3", "4"]);
    assert_eq!(it.payloads(&sessions[1]).await, ["both"]);
    assert_eq!(it.metrics.dropped_full.get(), 3);
    it.remove_all(&sessions[0]).await;
    it.append(&message("again"), &sessions[..1], None).await.unwrap();
    assert_eq!(it.payloads(&sessions[0]).await, ["again"]);
    let wide = large(999_999);
    it.append(&wide, &sessions[..1], None).await.unwrap();
    assert_eq!(it.metrics.dropped_full.get(), 4);
}

fn bounded(messages_max: u64, overflow: InboxOverflow) -> InboxOptions {
    let limits = InboxLimits { messages_max, bytes_max: 1_000_000, overflow };
    InboxOptions { limits, ..InboxOptions::default() }
}

#[tokio::test(start_paused = true)]
async fn a_full_inbox_drops_the_oldest_if_it_is_to() {
    let it = InboxBench::with(bounded(3, InboxOverflow::DropOldest));
    let sessions = it.sessions(2).await;
    for n in 0..5 {
        it.append(&message(n.to_string()), &sessions[..1], None).await.unwrap();
    }
    it.append(&message("both"), &sessions, None).await.unwrap();
    assert_eq!(it.payloads(&sessions[0]).await, ["3", "4", "both"]);
    assert_eq!(it.payloads(&sessions[1]).await, ["both"]);
    assert_eq!(it.metrics.dropped_full.get(), 3);
    // Many at once, some of them large: what is shared stays for the other.
    for n in 0..10 {
        it.append(&large(90_000 + n), &sessions, None).await.unwrap();
    }
    assert_eq!((it.payloads(&sessions[0]).await.len(), it.payloads(&sessions[1]).await.len()), (3, 3));
    assert_eq!(it.metrics.dropped_full.get(), 3 + 10 + 8);
    // One that is larger than all an inbox may hold goes too.
    it.append(&large(1_000_001), &sessions[..1], None).await.unwrap();
    assert_eq!(it.payloads(&sessions[0]).await.len(), 0);
    it.remove_all(&sessions[1]).await;
    assert_eq!(it.bench.store.keys(tag::INBOX_BLOB).await, Vec::<Bytes>::new());
    it.append(&message("again"), &sessions, None).await.unwrap();
    assert_eq!(it.payloads(&sessions[0]).await, ["again"]);
}

#[tokio::test(start_paused = true)]
async fn a_full_inbox_refuses_the_publish_if_it_is_to() {
    let it = InboxBench::with(bounded(2, InboxOverflow::RejectPublish));
    let sessions = it.sessions(2).await;
    it.append(&message("0"), &sessions, None).await.unwrap();
    it.append(&message("1"), &sessions[..1], None).await.unwrap();
    for mark in [None, Some(PublishId([1; 16]))] {
        let refused = it.append(&message("2"), &sessions, mark).await;
        assert!(matches!(refused, Err(Error::Full(_))), "{refused:?}");
    }
    assert_eq!(it.metrics.refused_full.get(), 2);
    assert_eq!(it.payloads(&sessions[1]).await, ["0"], "all or none");
    // The same publish again, when there is room.
    it.remove_all(&sessions[0]).await;
    it.append(&message("2"), &sessions, Some(PublishId([1; 16]))).await.unwrap();
    assert_eq!(it.payloads(&sessions[0]).await, ["2"]);
    assert_eq!(it.payloads(&sessions[1]).await, ["0", "2"]);
    assert_eq!(it.metrics.dropped_full.get(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_repeat_of_what_a_full_inbox_has_is_a_success_and_counts_once() {
    let mark = Some(PublishId([1; 16]));
    for overflow in [InboxOverflow::RejectPublish, InboxOverflow::DropNewest, InboxOverflow::DropOldest] {
        let it = InboxBench::with(bounded(2, overflow));
        let sessions = it.sessions(2).await;
        it.append(&message("0"), &sessions, mark).await.unwrap();
        let before = it.usage(&sessions[0]);
        it.append(&message("0"), &sessions, mark).await.unwrap();
        assert_eq!(it.usage(&sessions[0]), before, "{overflow:?}");
        it.append(&message("1"), &sessions[..1], None).await.unwrap();
        it.append(&message("0"), &sessions, mark).await.unwrap();
        assert_eq!(it.payloads(&sessions[0]).await, ["0", "1"], "{overflow:?}");
        assert_eq!(it.usage(&sessions[0]).messages, 2);
        assert_eq!((it.metrics.refused_full.get(), it.metrics.dropped_full.get()), (0, 0), "{overflow:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_oldest_are_dropped_and_counted_once_whatever_the_outcome() {
    for fault in [Fault::UnknownCommitted, Fault::UnknownLost, Fault::UnknownOpen] {
        let it = InboxBench::with(bounded(3, InboxOverflow::DropOldest));
        let sessions = it.sessions(1).await;
        for n in 0..3 {
            it.append(&message(n.to_string()), &sessions, None).await.unwrap();
        }
        it.bench.store.expect([Fault::None, fault]);
        it.append(&message("3"), &sessions, None).await.unwrap();
        assert!(it.bench.store.is_through());
        let late = it.bench.store.release().await;
        assert!(late.iter().all(std::result::Result::is_err), "{fault:?}");
        assert_eq!(it.payloads(&sessions[0]).await, ["1", "2", "3"], "{fault:?}");
        assert_eq!((it.usage(&sessions[0]).messages, it.metrics.dropped_full.get()), (3, 1), "{fault:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_inbox_filled_by_an_earlier_process_is_counted() {
    let it = InboxBench::new();
    let sessions = it.sessions(1).await;
    for n in 0..10 {
        it.append(&message(n.to_string()), &sessions, None).await.unwrap();
    }
    let next = it.bench.other_pod(2);
    let limits = InboxLimits { messages_max: 11, bytes_max: 1_000_000, ..InboxLimits::default() };
    let options = InboxOptions { limits, ..InboxOptions::default() };
    let metrics = InboxMetrics::default();
    let writer = InboxWriter::spawn(&next, options, &metrics, Arc::new(|_| {}), &it.tracker, &it.stop);
    for n in 0..3 {
        let append = InboxAppend {
            message: Arc::new(message("more")),
            targets: sessions.iter().map(target).collect(),
            mark: None,
            noted: None,
        };
        writer.append(append).await.unwrap().await.unwrap();
        it.settle().await;
        assert_eq!(metrics.dropped_full.get() > 0, n > 0, "{n}");
    }
}

#[tokio::test(start_paused = true)]
async fn who_adds_more_than_the_pending_bytes_waits() {
    let options = InboxOptions { pending_bytes_max: 1_000, ..InboxOptions::default() };
    let it = InboxBench::with(options);
    let sessions = it.sessions(1).await;
    let append = |bytes| InboxAppend {
        message: Arc::new(large(bytes)),
        targets: sessions.iter().map(target).collect(),
        mark: None,
        noted: None,
    };
    // Larger than all that may be pending: alone it gets through.
    it.writer.append(append(100_000)).await.unwrap().await.unwrap();
    let first = it.writer.append(append(500)).await.unwrap();
    let mut second = Box::pin(it.writer.append(append(500)));
    let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
    assert!(second.as_mut().poll(&mut cx).is_pending());
    first.await.unwrap();
    second.await.unwrap().await.unwrap();
    assert_eq!(it.payloads(&sessions[0]).await.len(), 3);
}

#[tokio::test(start_paused = true)]
async fn old_marks_are_swept() {
    let it = InboxBench::new();
    let sessions = it.sessions(1).await;
    it.append(&message("1"), &sessions, Some(PublishId([1; 16]))).await.unwrap();
    tokio::time::advance(Duration::from_secs(100)).await;
    let between = it.bench.clock.wall();
    it.append(&message("2"), &sessions, Some(PublishId([2; 16]))).await.unwrap();
    assert_eq!(it.inbox.sweep_marks(between).await.unwrap(), 1);
    assert_eq!(it.inbox.sweep_marks(between).await.unwrap(), 0);
    it.append(&message("2"), &sessions, Some(PublishId([2; 16]))).await.unwrap();
    assert_eq!(it.payloads(&sessions[0]).await, ["1", "2"]);
}
