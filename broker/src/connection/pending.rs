//! Publishes of one client that are becoming durable, answered in their order. Costs nothing until there is one: most
//! connections never publish what must be kept.
//!
//! Bounded by whoever reads the client: it asks for the length first.

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesOrdered;

use super::Answer;

/// Answers to come.
#[derive(Debug, Default)]
pub(super) struct Pending(Option<Box<FuturesOrdered<BoxFuture<'static, Answer>>>>);

impl Pending {
    /// Adds one behind the others.
    pub(super) fn push_back(&mut self, answer: BoxFuture<'static, Answer>) {
        self.0.get_or_insert_default().push_back(answer);
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.0.as_ref().map_or(0, |answers| answers.len())
    }

    /// Whether there is none.
    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The first answer, when it is known; waits for ever if there is none to come. Cancel-safe.
    pub(super) async fn next(&mut self) -> Answer {
        if let Some(answers) = &mut self.0
            && let Some(answer) = answers.next().await
        {
            return answer;
        }
        std::future::pending().await
    }

    /// Lets go of what is empty.
    pub(super) fn compact(&mut self) {
        if self.is_empty() {
            self.0 = None;
        }
    }
}
