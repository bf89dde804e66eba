//! What a pod has to ask of a shard elsewhere is bounded.

use weir_env::clock::Clock;

use super::*;
use crate::metrics::ReadMetrics;

fn forwarding(now: Instant) -> Forwarding {
    Forwarding::new(Arc::new(Tails::new(0, ReadMetrics::default())), Carried::default(), now)
}

fn ask(forwarding: &mut Forwarding, now: Instant) -> oneshot::Receiver<()> {
    let (reply, answer) = oneshot::channel();
    forwarding.handle_command(Command::Settled { reply }, now);
    answer
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
