//! What a pod has to ask of a shard elsewhere is bounded.

use tokio::sync::mpsc;
use weir_env::clock::{Clock, Timestamp};

use super::*;
use crate::definition::tests::queue;
use crate::keyspace::catalog::Origin;
use crate::metrics::ReadMetrics;
use crate::queue::{Consumer, Lost, Window};

const LOG: LogId = LogId { vs: VirtualShard(0), object: 1, shard: 0, class: 0 };

fn forwarding(now: Instant) -> Forwarding {
    Forwarding::new(Arc::new(Tails::new(0, ReadMetrics::default())), Carried::default(), now)
}

fn ask(forwarding: &mut Forwarding, now: Instant) -> oneshot::Receiver<()> {
    let (reply, answer) = oneshot::channel();
    forwarding.handle_command(Command::Settled { reply }, now);
    answer
}

fn object() -> Arc<Object> {
    Arc::new(Object {
        id: LOG.object,
        paused: false,
        generation: 1,
        origin: Origin::Manifest,
        definition: queue("q"),
        filter: None,
        key: None,
        logs: vec![LOG],
    })
}

fn attach(
    forwarding: &mut Forwarding,
    object: &Arc<Object>,
    id: u64,
    now: Instant,
) -> oneshot::Receiver<Result<()>> {
    let (reply, answer) = oneshot::channel();
    let consumer = Consumer {
        id: ConsumerId(id),
        client_id: "c".into(),
        since: Timestamp::default(),
        window: Arc::new(Window::new(1)),
        connection_window: None,
        deliveries: mpsc::channel(1).0,
    };
    let object = Arc::clone(object);
    forwarding.handle_command(Command::Attach { object, log: LOG, consumer, reply }, now);
    answer
}

fn detach(forwarding: &mut Forwarding, id: u64, now: Instant) {
    let detach = Command::Detach { log: LOG, consumer: ConsumerId(id), lost: Lost::Left };
    forwarding.handle_command(detach, now);
}

fn watch(
    forwarding: &mut Forwarding,
    object: &Arc<Object>,
    now: Instant,
) -> oneshot::Receiver<Result<Watched>> {
    let (reply, answer) = oneshot::channel();
    let object = Arc::clone(object);
    forwarding.handle_command(Command::Watch { object, log: LOG, reply }, now);
    answer
}

/// The owner answers what was asked last.
fn answer(forwarding: &mut Forwarding, answer: Answer, now: Instant) {
    let Some(ToOwner::Attach { request, .. } | ToOwner::Ask { request, .. }) = forwarding.outbox().pop_back()
    else {
        panic!("nothing was asked");
    };
    assert!(!forwarding.handle_words(FromOwner::Answer { request, answer: Ok(answer) }, now));
}

#[test]
fn without_an_answer_no_more_is_taken_on_than_there_may_be() {
    let now = Clock::system().now();
    let mut forwarding = forwarding(now);
    let mut answers = Vec::new();
    while forwarding.has_room() {
        answers.push(ask(&mut forwarding, now));
    }
    assert_eq!((forwarding.waiting(), answers.len()), (LINE_MAX, LINE_MAX));
    forwarding.handle_timeout(now + ANSWER_TIME);
    assert!(forwarding.has_room() && forwarding.is_idle());
    assert!(answers.iter_mut().all(|answer| answer.try_recv().is_err()), "nobody was told that it is done");
}

#[test]
fn words_that_are_not_sent_are_bounded() {
    let now = Clock::system().now();
    let mut forwarding = forwarding(now);
    forwarding.open(now);
    while forwarding.has_room() {
        drop(ask(&mut forwarding, now));
    }
    assert_eq!(forwarding.outbox().len(), OUTBOX_MAX);
    forwarding.outbox().clear();
    assert!(forwarding.has_room());
}

#[test]
fn who_was_taken_on_leaves_room_for_others() {
    let now = Clock::system().now();
    let mut forwarding = forwarding(now);
    let object = object();
    forwarding.open(now);
    for id in (0..).take(LINE_MAX + 1) {
        assert!(forwarding.has_room(), "after {id}");
        let mut attached = attach(&mut forwarding, &object, id, now);
        answer(&mut forwarding, Answer::Done, now);
        assert!(attached.try_recv().unwrap().is_ok());
        let mut watched = watch(&mut forwarding, &object, now);
        answer(&mut forwarding, Answer::Extent(Extent::default()), now);
        assert!(watched.try_recv().unwrap().is_ok());
        detach(&mut forwarding, id, now);
        forwarding.outbox().clear();
    }
    // Nor does it take any who goes before there is an owner.
    forwarding.close();
    for id in (0..).take(LINE_MAX + 1) {
        drop(attach(&mut forwarding, &object, id, now));
        detach(&mut forwarding, id, now);
    }
    assert!(forwarding.has_room());
}

#[test]
fn whom_nobody_takes_on_is_bounded() {
    let now = Clock::system().now();
    let mut forwarding = forwarding(now);
    let object = object();
    let (mut attached, mut watched) = (Vec::new(), Vec::new());
    for id in 0.. {
        if !forwarding.has_room() {
            break;
        }
        attached.push(attach(&mut forwarding, &object, id, now));
        // All of them of one log.
        if forwarding.has_room() {
            watched.push(watch(&mut forwarding, &object, now));
        }
    }
    assert_eq!(attached.len() + watched.len(), LINE_MAX);
    assert_eq!(forwarding.poll_timeout(), Some(now + ANSWER_TIME));
    forwarding.handle_timeout(now + ANSWER_TIME);
    assert!(forwarding.has_room());
    assert_eq!(forwarding.poll_timeout(), None);
    assert!(attached.iter_mut().all(|reply| matches!(reply.try_recv(), Ok(Err(Error::NoOwner)))));
    assert!(watched.iter_mut().all(|reply| matches!(reply.try_recv(), Ok(Err(Error::NoOwner)))));
}
