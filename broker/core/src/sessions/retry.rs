//! Repeats transactions until their outcome is known. Knows outcomes, not records.
//!
//! Everything written with it is idempotent as long as nobody else has written meanwhile, so that an attempt
//! that may have committed is simply repeated. An attempt that may *still* commit is shut out by the repeat,
//! which must write a key that the first one read: see [`Retry::is_repeat`].

use std::time::Duration;

use weir_env::clock::{Clock, Instant};
use weir_storage::{Committed, Error as StoreError, Transaction};

use crate::{Error, Result};

/// Time after which the last error is returned.
const TIME_MAX: Duration = Duration::from_secs(10);
/// Longest pause between two attempts.
const PAUSE_MAX: Duration = Duration::from_millis(64);

/// One operation's attempts.
#[derive(Debug)]
pub(crate) struct Retry {
    clock: Clock,
    deadline: Instant,
    pause: Duration,
    is_repeat: bool,
}

impl Retry {
    pub(crate) fn new(clock: Clock) -> Self {
        Self { clock, deadline: clock.now() + TIME_MAX, pause: Duration::ZERO, is_repeat: false }
    }

    /// Whether an earlier attempt may have committed, or may still commit.
    pub(crate) const fn is_repeat(&self) -> bool {
        self.is_repeat
    }

    /// Commits `transaction` if `outcome` is a success. `None`: try again from the start.
    pub(crate) async fn commit<T>(
        &mut self,
        transaction: Box<dyn Transaction>,
        outcome: Result<T>,
    ) -> Option<Result<(T, Committed)>> {
        let error = match outcome {
            Ok(value) => match transaction.commit().await {
                Ok(committed) => return Some(Ok((value, committed))),
                Err(error) => error,
            },
            Err(Error::Store(error)) => error,
            Err(error) => return Some(Err(error)),
        };
        let again = match &error {
            StoreError::Conflict | StoreError::TooOld | StoreError::Busy(_) => true,
            StoreError::UnknownSettled | StoreError::UnknownOpen => {
                self.is_repeat = true;
                true
            }
            StoreError::TooLarge { .. } | StoreError::Unavailable(_) | StoreError::Damaged(_) => false,
        };
        if !again || self.clock.now() >= self.deadline {
            return Some(Err(error.into()));
        }
        tracing::trace!(%error, pause = ?self.pause, "transaction is repeated");
        if self.pause.is_zero() {
            tokio::task::yield_now().await;
        } else {
            tokio::time::sleep(self.pause).await;
        }
        self.pause = (self.pause * 2).clamp(Duration::from_millis(1), PAUSE_MAX);
        None
    }
}
