//! Calls to the server, in time: repeated while that is harmless, and never a commit twice.

use std::error::Error as StdError;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tonic::{Code, Response, Status};
use weir_env::clock::Instant;
use weir_proto::store::v1 as wire;
use weir_proto::store::v1::settle_response::State;
use weir_storage::{Committed, Error, Result};

use super::session::Session;
use super::{Client, Shared};
use crate::convert;

/// Shortest and longest pause before the server is asked again.
const PAUSES: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(500));

/// Growing pauses.
pub(super) struct Backoff(Duration);

impl Default for Backoff {
    fn default() -> Self {
        Self(PAUSES.0)
    }
}

impl Backoff {
    pub(super) async fn pause(&mut self) {
        tokio::time::sleep(self.0).await;
        self.0 = (self.0 * 2).min(PAUSES.1);
    }
}

/// Why a call was not answered.
pub(super) struct Refusal {
    pub(super) error: Error,
    /// The reason alone.
    pub(super) said: String,
    /// Asking again does not help.
    pub(super) is_final: bool,
}

/// What a status says. Answers of the store are in messages, so this is about the way there.
pub(super) fn refusal(address: &str, status: &Status) -> Refusal {
    let unavailable =
        |what: String| Error::Unavailable(format!("the store server at {address} {what}").into());
    let said = text(status);
    let (error, is_final) = match status.code() {
        Code::Unauthenticated | Code::PermissionDenied => {
            (unavailable(format!("does not know this process: {said}")), true)
        }
        Code::Unimplemented => (unavailable(format!("is none, or one of another release: {said}")), true),
        Code::InvalidArgument | Code::OutOfRange | Code::FailedPrecondition => {
            (unavailable(format!("refuses a call: {said}")), true)
        }
        Code::ResourceExhausted => {
            (Error::Busy(format!("the store server at {address}: {said}").into()), true)
        }
        Code::Ok
        | Code::Cancelled
        | Code::Unknown
        | Code::DeadlineExceeded
        | Code::NotFound
        | Code::AlreadyExists
        | Code::Aborted
        | Code::Internal
        | Code::Unavailable
        | Code::DataLoss => (unavailable(format!("can't be reached: {said}")), false),
    };
    Refusal { error, said, is_final }
}

/// What a status says, with its cause.
pub(super) fn text(status: &Status) -> String {
    let mut cause: Option<&(dyn StdError + 'static)> = status.source();
    while let Some(deeper) = cause.and_then(StdError::source) {
        cause = Some(deeper);
    }
    match cause {
        Some(cause) => cause.to_string(),
        None => status.message().to_owned(),
    }
}

impl Shared {
    /// Until when an operation that begins now may take.
    pub(super) fn deadline(&self) -> Instant {
        self.clock.now() + self.timeout
    }

    pub(super) fn silent(&self, problem: Option<&str>) -> Error {
        let (address, timeout) = (&self.address, self.timeout);
        let problem = problem.map(|problem| format!(" ({problem})")).unwrap_or_default();
        // The cause that a server names to TLS often comes too late to be read.
        let unnamed =
            if self.is_unnamed { "; it may want a certificate, of which this process has none" } else { "" };
        Error::Unavailable(
            format!(
                "the store server at {address} has not answered within {timeout:?}{problem}; \
                 `weir store serve` is what should run there{unnamed}"
            )
            .into(),
        )
    }

    /// What a failure in an answer means; nothing if there is none.
    pub(super) fn checked(&self, failure: Option<wire::Failure>) -> Result<()> {
        failure.map_or(Ok(()), |failure| Err(convert::error(failure)))
    }

    /// The answer to a call that may be repeated.
    pub(super) async fn ask<T, F>(&self, call: impl Fn(Client) -> F) -> Result<T>
    where
        F: Future<Output = std::result::Result<Response<T>, Status>>,
    {
        let deadline = self.deadline();
        let mut backoff = Backoff::default();
        let mut problem = None;
        let answered = tokio::time::timeout_at(deadline, async {
            loop {
                match call(self.client.clone()).await {
                    Ok(answer) => return Ok(answer.into_inner()),
                    Err(status) => match refusal(&self.address, &status) {
                        Refusal { error, is_final: true, .. } => return Err(error),
                        Refusal { said, .. } => problem = Some(said),
                    },
                }
                backoff.pause().await;
            }
        });
        match answered.await {
            Ok(answer) => answer,
            Err(_) => Err(self.silent(problem.as_deref())),
        }
    }

    /// Commits what `request` holds; what hangs on a session is filled in here.
    pub(super) async fn commit(
        &self,
        mut request: wire::CommitRequest,
        mut triggers: Vec<(bytes::Bytes, weir_storage::WatchTrigger)>,
    ) -> Result<Committed> {
        let deadline = self.deadline();
        loop {
            let session = self.session(deadline).await?;
            let ticket = session.begin_commit();
            let arming = session.arm(std::mem::take(&mut triggers));
            request.watches.clone_from(&arming.watches);
            request.session = Some(session.name.clone());
            (request.number, request.settled_below) = (ticket.number, ticket.settled_below);
            let call = async { self.client.clone().commit(request.clone()).await };
            let response = match tokio::time::timeout_at(deadline, call).await {
                Ok(Ok(response)) => response.into_inner(),
                Ok(Err(status)) => match refusal(&self.address, &status) {
                    Refusal { error, is_final: true, .. } => return Err(error),
                    Refusal { .. } => return self.settle(&session, ticket.number).await,
                },
                Err(_) => return self.settle(&session, ticket.number).await,
            };
            match convert::committed(response) {
                Ok(committed) => {
                    arming.armed();
                    return Ok(committed);
                }
                // Nothing was done: the server has started again, or has given this client up.
                Err(failure) if convert::is_detached(&failure) => session.over.cancel(),
                Err(failure) => return Err(convert::error(failure)),
            }
        }
    }

    /// How a commit ended whose answer was lost.
    async fn settle(&self, session: &Session, number: u64) -> Result<Committed> {
        let request = wire::SettleRequest { session: Some(session.name.clone()), number };
        let mut backoff = Backoff::default();
        let settled = tokio::time::timeout_at(self.deadline(), async {
            loop {
                match self.client.clone().settle(request.clone()).await.map(Response::into_inner) {
                    Ok(answer) => match (answer.state(), answer.outcome) {
                        (State::Ended, Some(outcome)) => {
                            return convert::committed(outcome).map_err(convert::error);
                        }
                        (State::Never, _) => {
                            return Err(Error::Busy("the connection to the store server was lost".into()));
                        }
                        (State::Forgotten | State::Ended, _) => return Err(Error::UnknownSettled),
                        (State::UnderWay, _) => {}
                        (State::Unspecified, _) => return Err(Error::UnknownOpen),
                    },
                    Err(status) if refusal(&self.address, &status).is_final => {
                        return Err(Error::UnknownOpen);
                    }
                    Err(_) => {}
                }
                backoff.pause().await;
            }
        });
        settled.await.unwrap_or(Err(Error::UnknownOpen))
    }

    pub(super) fn count(counter: &AtomicU64, n: usize) {
        counter.fetch_add(n as u64, Ordering::Relaxed);
    }
}
