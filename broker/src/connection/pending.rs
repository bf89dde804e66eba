//! Publishes of one client that are becoming durable, answered in their order. Costs nothing until there is one: most
//! connections never publish what must be kept.
//!
//! Bounded by whoever reads the client: it asks for the length and the bytes first.

use std::collections::VecDeque;
use std::task::{Context, Poll};

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesOrdered;

use super::Answer;
use crate::under_way::UnderWayGuard;

/// Answers to come.
#[derive(Debug, Default)]
pub(super) struct Pending(Option<Box<Line>>);

#[derive(Debug, Default)]
struct Line {
    answers: FuturesOrdered<BoxFuture<'static, Answer>>,
    /// What each of them counts for, and what counts it over all clients if it does not do so itself.
    sizes: VecDeque<(u64, Option<UnderWayGuard>)>,
    bytes: u64,
}

impl Pending {
    /// Adds one that counts for `bytes` behind the others.
    pub(super) fn push_back(&mut self, bytes: u64, answer: BoxFuture<'static, Answer>) {
        self.push(bytes, None, answer);
    }

    /// Adds one whose answer is known: `under_way` counts it until its turn comes.
    pub(super) fn push_answered(&mut self, under_way: UnderWayGuard, answer: Answer) {
        self.push(under_way.bytes(), Some(under_way), Box::pin(std::future::ready(answer)));
    }

    /// Adds one that counts for `bytes` before the others.
    pub(super) fn push_front(&mut self, bytes: u64, answer: BoxFuture<'static, Answer>) {
        let line = self.0.get_or_insert_default();
        line.answers.push_front(answer);
        line.sizes.push_front((bytes, None));
        line.bytes += bytes;
    }

    fn push(&mut self, bytes: u64, under_way: Option<UnderWayGuard>, answer: BoxFuture<'static, Answer>) {
        let line = self.0.get_or_insert_default();
        line.answers.push_back(answer);
        line.sizes.push_back((bytes, under_way));
        line.bytes += bytes;
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.0.as_ref().map_or(0, |line| line.answers.len())
    }

    /// Whether there is none.
    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What they count for together.
    pub(super) fn bytes(&self) -> u64 {
        self.0.as_ref().map_or(0, |line| line.bytes)
    }

    /// The first answer, if it is known; `context` is woken when it is.
    pub(super) fn poll_next(&mut self, context: &mut Context<'_>) -> Option<Answer> {
        let line = self.0.as_mut()?;
        let Poll::Ready(Some(answer)) = line.answers.poll_next_unpin(context) else { return None };
        line.bytes -= line.sizes.pop_front().map_or(0, |(bytes, _)| bytes);
        Some(answer)
    }

    /// Lets go of what is empty.
    pub(super) fn compact(&mut self) {
        if self.is_empty() {
            self.0 = None;
        }
    }
}
