//! Looking at messages, purging them, moving dead letters back.

use std::sync::Arc;
use std::time::Duration;

use weir_core::Core;
use weir_core::catalog::Object;
use weir_core::definition::{DeadLetterTarget, Definition, Kind};
use weir_core::keyspace::PublishId;
use weir_core::operations::{
    PEEK_BYTES_MAX, PEEK_MESSAGES_MAX, PEEK_PAYLOAD_MAX, Peek, PeekedMessage, Position, Purge, Redrive,
};
use weir_core::queue::{MessageState, StateFilter, Verdict};
use weir_core::shard::QueueReport;
use weir_topic::TopicFilter;

use crate::support::{TestConsumer, definition, memory, message, open, publish, text};

const ALL: Purge = Purge { from: None, before: None, filter: StateFilter::Any };

fn find(core: &Core, name: &str) -> Arc<Object> {
    core.catalog().view().find(Kind::Queue, name).unwrap()
}

async fn report(core: &Core, name: &str) -> QueueReport {
    core.describe(&find(core, name)).await.unwrap().remove(0).queue.unwrap()
}

fn look(count: usize) -> Peek {
    Peek { count, payload_max: 100, ..Peek::default() }
}

fn payload(message: &PeekedMessage) -> &str {
    std::str::from_utf8(&message.record.message.payload).unwrap()
}

async fn payloads(core: &Core, peek: &Peek) -> Vec<String> {
    let peeked = core.peek(&find(core, "q"), peek).await.unwrap();
    peeked.messages.iter().map(|message| payload(message).to_owned()).collect()
}

#[tokio::test(start_paused = true)]
async fn messages_are_shown_where_they_are_and_stay() {
    let (store, clock) = memory();
    let core = open(&store, clock, 1).await;
    core.apply(&[definition(Kind::Queue, "q", "a/+", 1)]).await.unwrap();
    let queue = find(&core, "q");
    for n in 0..6 {
        publish(&core, clock, &format!("a/{}", n % 2), &n.to_string()).await.unwrap();
    }
    let mut consumer = TestConsumer::attach(&core, &queue, 1, 3).await;
    let first = consumer.next().await;
    consumer.ack(&core, &first).await;
    let second = consumer.next().await;
    consumer.settle(&core, &second, Verdict::Rejected).await;
    let peeked = core.peek(&queue, &look(10)).await.unwrap();
    let shown: Vec<_> = peeked.messages.iter().map(|m| (m.offset, payload(m), m.failed)).collect();
    assert_eq!(shown, [(1, "1", 1), (2, "2", 0), (3, "3", 0), (4, "4", 0), (5, "5", 0)]);
    assert_eq!(peeked.next, None);
    assert!(
        matches!(peeked.messages[0].state, MessageState::Waiting { left } if left <= Duration::from_secs(1))
    );
    let held = MessageState::InFlight { client_id: "c1".into(), left: Duration::from_secs(30) };
    assert_eq!((&peeked.messages[1].state, &peeked.messages[4].state), (&held, &MessageState::Ready));

    let topic = Some(TopicFilter::parse("a/1".to_owned()).unwrap());
    assert_eq!(payloads(&core, &Peek { topic, ..look(10) }).await, ["1", "3", "5"]);
    let two = core.peek(&queue, &look(2)).await.unwrap();
    assert_eq!(two.next, Some(Position { offset: 3, ..Position::default() }));
    assert_eq!(payloads(&core, &Peek { from: two.next, ..look(10) }).await, ["3", "4", "5"]);
    let none = Peek { key: Some("x".into()), ..look(10) };
    assert!(payloads(&core, &none).await.is_empty());
    assert_eq!(report(&core, "q").await.depth, 5, "nothing was consumed");
    core.close().await;
}

#[tokio::test(start_paused = true)]
async fn of_a_large_payload_the_beginning_is_shown() {
    let (store, clock) = memory();
    let core = open(&store, clock, 1).await;
    core.apply(&[definition(Kind::Queue, "q", "a", 1)]).await.unwrap();
    publish(&core, clock, "a", &"x".repeat(200_000)).await.unwrap();
    publish(&core, clock, "a", &"y".repeat(1000)).await.unwrap();
    let peeked = core.peek(&find(&core, "q"), &look(10)).await.unwrap();
    let shown: Vec<_> = peeked.messages.iter().map(|m| (payload(m).to_owned(), m.payload_len)).collect();
    assert_eq!(shown, [("x".repeat(100), 200_000), ("y".repeat(100), 1000)]);
    core.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_look_shows_no_more_bytes_than_an_answer_holds_and_goes_on() {
    let (store, clock) = memory();
    let core = open(&store, clock, 1).await;
    core.apply(&[definition(Kind::Queue, "q", "a", 1)]).await.unwrap();
    let payload = "x".repeat(PEEK_PAYLOAD_MAX);
    let fit = PEEK_BYTES_MAX / PEEK_PAYLOAD_MAX;
    for _ in 0..fit + 10 {
        publish(&core, clock, "a", &payload).await.unwrap();
    }
    let peek = Peek { count: PEEK_MESSAGES_MAX, payload_max: PEEK_PAYLOAD_MAX, ..Peek::default() };
    let first = core.peek(&find(&core, "q"), &peek).await.unwrap();
    assert!((fit - 2..fit).contains(&first.messages.len()), "{}", first.messages.len());
    let rest = core.peek(&find(&core, "q"), &Peek { from: first.next, ..peek }).await.unwrap();
    assert_eq!(rest.messages[0].offset, first.messages.len() as u64);
    assert_eq!((first.messages.len() + rest.messages.len(), rest.next), (fit + 10, None));
    core.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_purge_ends_everything_and_counts_it() {
    let (store, clock) = memory();
    let core = open(&store, clock, 1).await;
    core.apply(&[definition(Kind::Queue, "q", "a", 1)]).await.unwrap();
    let queue = find(&core, "q");
    for n in 0..50 {
        publish(&core, clock, "a", &n.to_string()).await.unwrap();
    }
    let mut consumer = TestConsumer::attach(&core, &queue, 1, 4).await;
    let (first, held) = (consumer.next().await, consumer.next().await);
    consumer.ack(&core, &first).await;
    let refused = consumer.next().await;
    consumer.settle(&core, &refused, Verdict::Rejected).await;
    let purged = core.purge(&queue, &ALL).await.unwrap();
    assert_eq!((purged.purged, purged.next), (49, None));
    consumer.ack(&core, &held).await;
    let now = report(&core, "q").await;
    assert_eq!((now.depth, now.bytes, now.inflight, now.waiting), (0, 0, 0, 0));
    assert_eq!(
        (now.counters.purged, now.counters.acknowledged),
        (49, 1),
        "a late acknowledgement counts no more"
    );
    assert_eq!(core.purge(&queue, &ALL).await.unwrap().purged, 0);

    publish(&core, clock, "a", "after").await.unwrap();
    let delivery = loop {
        let delivery = consumer.next().await;
        if delivery.offset == 50 {
            break delivery;
        }
        // It was on its way when the purge came.
        consumer.settle(&core, &delivery, Verdict::Returned).await;
    };
    assert_eq!(text(&delivery), "after");
    tokio::time::sleep(Duration::from_secs(1)).await;
    core.close().await;
    drop(core);
    let core = open(&store, clock, 2).await;
    let now = report(&core, "q").await;
    assert_eq!((now.depth, now.counters.purged), (1, 49), "it is so after a restart");
    core.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_purge_takes_what_is_old_or_in_a_state() {
    let (store, clock) = memory();
    let core = open(&store, clock, 1).await;
    core.apply(&[definition(Kind::Queue, "q", "a", 1)]).await.unwrap();
    let queue = find(&core, "q");
    for n in 0..10 {
        publish(&core, clock, "a", &n.to_string()).await.unwrap();
        tokio::time::sleep(Duration::from_secs(60)).await;
    }
    let consumer = TestConsumer::attach(&core, &queue, 1, 5).await;
    let before = Some(weir_env::clock::Timestamp::from_micros(clock.wall().as_micros() - 450_000_000));
    let filter = StateFilter::InFlight;
    let some = core.purge(&queue, &Purge { before, filter, ..ALL }).await.unwrap();
    assert_eq!((some.purged, some.next), (3, None), "three of those in flight are old enough");
    assert_eq!(payloads(&core, &look(20)).await, ["3", "4", "5", "6", "7", "8", "9"]);
    let ready = core.purge(&queue, &Purge { filter: StateFilter::Ready, ..ALL }).await.unwrap();
    assert_eq!(ready.purged, 5);
    assert_eq!(payloads(&core, &look(20)).await, ["3", "4"]);
    let rest = core.peek(&queue, &look(20)).await.unwrap();
    let cost: u64 = rest.messages.iter().map(|message| message.record.cost()).sum();
    assert_eq!(report(&core, "q").await.bytes, cost, "bytes are exact");
    drop(consumer);
    core.close().await;
}

/// Queue `q`, whose dead letters go to `dead` after one attempt, with `count` messages there.
async fn with_letters(core: &Core, clock: weir_env::clock::Clock, count: usize) {
    let mut q = definition(Kind::Queue, "q", "a", 2);
    q.dispatch.max_deliveries = 1;
    q.queue.dead_letter = Some(DeadLetterTarget::Object("dead".into()));
    let dead = Definition { topic_filter: None, ..definition(Kind::Queue, "dead", "unused", 1) };
    core.apply(&[q, dead]).await.unwrap();
    for n in 0..count {
        publish(core, clock, "a", &n.to_string()).await.unwrap();
    }
    let mut consumer = TestConsumer::attach(core, &find(core, "q"), 1, 10).await;
    for _ in 0..count {
        let delivery = consumer.next().await;
        consumer.settle(core, &delivery, Verdict::Rejected).await;
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(report(core, "dead").await.depth, count as u64);
    core.detach(&find(core, "q"), consumer.consumer.id, weir_core::queue::Lost::Left).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn dead_letters_go_back_as_they_were_and_may_come_again() {
    let (store, clock) = memory();
    let core = open(&store, clock, 1).await;
    with_letters(&core, clock, 5).await;
    let dead = find(&core, "dead");
    let mut reader = TestConsumer::attach(&core, &dead, 9, 1).await;
    let held = reader.next().await;
    let two = core.redrive(&dead, &Redrive { count: 2, ..Redrive::default() }).await.unwrap();
    assert_eq!((two.moved, two.busy, two.homeless, two.failure.clone()), (2, 1, 0, None));
    let rest = core.redrive(&dead, &Redrive { from: two.next, ..Redrive::default() }).await.unwrap();
    assert_eq!((rest.moved, rest.busy, rest.next), (2, 0, None));
    let left = report(&core, "dead").await;
    assert_eq!((left.depth, left.counters.redriven, left.inflight), (1, 4, 1));

    let mut consumer = TestConsumer::attach(&core, &find(&core, "q"), 2, 10).await;
    for _ in 0..4 {
        let delivery = consumer.next().await;
        let message = &delivery.record.message;
        assert_eq!((message.topic.as_str(), message.dead_letter, delivery.delivery_count), ("a", None, 1));
        assert!(message.properties.user.is_empty(), "{:?}", message.properties);
        consumer.settle(&core, &delivery, Verdict::Rejected).await;
    }
    consumer.nothing().await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(report(&core, "dead").await.depth, 5, "they are dead letters again");
    reader.ack(&core, &held).await;
    core.close().await;
}

/// More than are moved at once.
#[tokio::test(start_paused = true)]
async fn many_dead_letters_go_back_step_by_step() {
    let (store, clock) = memory();
    let core = open(&store, clock, 1).await;
    with_letters(&core, clock, 300).await;
    let done = core.redrive(&find(&core, "dead"), &Redrive::default()).await.unwrap();
    assert_eq!((done.moved, done.next, report(&core, "dead").await.depth), (300, None, 0));
    core.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_redrive_that_broke_off_repeats_nothing() {
    let (store, clock) = memory();
    let core = open(&store, clock, 1).await;
    with_letters(&core, clock, 3).await;
    let dead = find(&core, "dead");
    // The first step was done for the second letter, and its end was not told.
    let letter = core.peek(&dead, &look(10)).await.unwrap().messages.remove(1);
    let id = PublishId::of_dead_letter(&letter.log, letter.offset);
    let mut original = message(clock, "a", payload(&letter));
    original.properties.user.clear();
    let receipt =
        core.append(&[find(&core, "q")], &original, &Default::default(), Some((id, false))).await.unwrap();
    assert!(receipt.settled().await.is_empty());
    let done = core.redrive(&dead, &Redrive::default()).await.unwrap();
    assert_eq!((done.moved, report(&core, "dead").await.depth), (3, 0));
    let shards = core.describe(&find(&core, "q")).await.unwrap();
    assert_eq!(shards.iter().map(|shard| shard.queue.as_ref().unwrap().depth).sum::<u64>(), 3);
    core.close().await;
}

#[tokio::test(start_paused = true)]
async fn only_dead_letters_that_have_a_home_and_room_are_moved() {
    let (store, clock) = memory();
    let core = open(&store, clock, 1).await;
    with_letters(&core, clock, 2).await;
    let dead = find(&core, "dead");
    let own = message(clock, "x", "own");
    let receipt = core.append(std::slice::from_ref(&dead), &own, &Default::default(), None).await.unwrap();
    assert!(receipt.settled().await.is_empty());
    let other = Redrive { only: Some("other".into()), ..Redrive::default() };
    let none = core.redrive(&dead, &other).await.unwrap();
    assert_eq!((none.moved, none.homeless), (0, 0));
    let mut full = definition(Kind::Queue, "full", "full", 1);
    full.retention.max_messages = 1;
    let mut all: Vec<Definition> =
        core.catalog().view().all(Kind::Queue).map(|queue| queue.definition.clone()).collect();
    all.push(full);
    core.apply(&all).await.unwrap();
    let to = Some(find(&core, "full"));
    let some = core.redrive(&dead, &Redrive { to, ..Redrive::default() }).await.unwrap();
    assert_eq!(some.moved, 1);
    assert!(some.failure.as_ref().is_some_and(|why| why.contains("full is full")), "{:?}", some.failure);
    assert_eq!(some.next.map(|next| next.offset), Some(0));
    let home = core.redrive(&dead, &Redrive::default()).await.unwrap();
    assert_eq!((home.moved, home.homeless), (1, 1), "{home:?}");
    assert_eq!(report(&core, "dead").await.depth, 1, "what is no dead letter stays");
    core.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_pause_holds_over_restarts_and_new_declarations() {
    let (store, clock) = memory();
    let core = open(&store, clock, 1).await;
    let mut declared = definition(Kind::Queue, "q", "a", 1);
    core.apply(std::slice::from_ref(&declared)).await.unwrap();
    publish(&core, clock, "a", "held").await.unwrap();
    let mut consumer = TestConsumer::attach(&core, &find(&core, "q"), 1, 10).await;
    let held = consumer.next().await;
    assert!(core.pause("q", true).await.unwrap().paused);
    publish(&core, clock, "a", "later").await.unwrap();
    consumer.nothing().await;
    consumer.ack(&core, &held).await;
    declared.dispatch.max_deliveries = 3;
    core.apply(std::slice::from_ref(&declared)).await.unwrap();
    consumer.nothing().await;
    let now = report(&core, "q").await;
    assert_eq!((now.depth, now.inflight, now.counters.acknowledged), (1, 0, 1));
    core.close().await;
    drop(core);

    let core = open(&store, clock, 2).await;
    assert!(find(&core, "q").paused);
    let mut consumer = TestConsumer::attach(&core, &find(&core, "q"), 2, 10).await;
    consumer.nothing().await;
    let generation = find(&core, "q").generation;
    assert_eq!(core.pause("q", true).await.unwrap().generation, generation, "nothing changed");
    core.pause("q", false).await.unwrap();
    assert_eq!(text(&consumer.next().await), "later");
    assert!(core.pause("none", true).await.is_err());
    core.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_queue_made_again_is_not_paused_although_the_one_before_was() {
    let (store, clock) = memory();
    let core = open(&store, clock, 1).await;
    let declared = definition(Kind::Queue, "q", "a", 1);
    core.apply(std::slice::from_ref(&declared)).await.unwrap();
    publish(&core, clock, "a", "kept").await.unwrap();
    core.pause("q", true).await.unwrap();
    core.apply(&[]).await.unwrap();
    core.apply(std::slice::from_ref(&declared)).await.unwrap();
    assert!(!find(&core, "q").paused);
    let mut consumer = TestConsumer::attach(&core, &find(&core, "q"), 1, 10).await;
    assert_eq!(text(&consumer.next().await), "kept");
    core.close().await;
}
