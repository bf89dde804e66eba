//! The calls of `weir.store.v1`: from the wire to the store and back. Owns nothing.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{Stream, stream};
use tokio::sync::mpsc;
use tonic::{Request, Response, Status, Streaming};
use weir_proto::store::v1 as wire;
use weir_proto::store::v1::settle_response::State;
use weir_proto::store::v1::store_server::Store as StoreCalls;
use weir_storage::{Committed, Error, Isolation, Transaction, Version, Watch, snapshot};

use super::Shared;
use super::sessions::{Known, Outcome, Refused, Session};
use crate::convert;

/// Longest wait for a commit that is under way, of whoever asks how it ended; below the patience of a client.
const SETTLE_WAIT: Duration = Duration::from_secs(1);
/// Watches that are told of in one message.
const FIRED_AT_ONCE: usize = 256;

/// Answers the calls.
pub struct Calls(pub(super) Arc<Shared>);

type Answer<T> = Result<Response<T>, Status>;

impl Shared {
    /// A transaction that reads as of `version`, and the version it reads at.
    async fn reading(&self, version: Option<u64>) -> Result<(Box<dyn Transaction>, Version), Error> {
        Self::count(&self.stats.reads);
        let mut tx = self.store.begin();
        match version {
            Some(version) => {
                tx.set_read_version(Version(version));
                Ok((tx, Version(version)))
            }
            None => {
                let version = self.horizon.check(tx.read_version().await?)?;
                Ok((tx, version))
            }
        }
    }

    async fn get(&self, request: &wire::GetRequest) -> Result<wire::GetResponse, Error> {
        let (mut tx, version) = self.reading(request.version).await?;
        let value = tx.get(&request.key, Isolation::Snapshot).await?;
        Ok(wire::GetResponse { version: version.0, value, failure: None })
    }

    async fn get_range(&self, request: &wire::GetRangeRequest) -> Result<wire::GetRangeResponse, Error> {
        let query = convert::query(request);
        let Some(held) = &request.held else {
            let (mut tx, version) = self.reading(request.version).await?;
            let page = tx.get_range(query, Isolation::Snapshot).await?;
            return Ok(convert::page(version, page));
        };
        Self::count(&self.stats.reads);
        let session = self.sessions.find(held.session.as_ref());
        let snapshot = session.and_then(|session| session.held(held.number));
        let snapshot =
            snapshot.ok_or_else(|| Error::Unavailable("the snapshot is not held any more".into()))?;
        let mut snapshot = snapshot.lock().await;
        let page = snapshot.get_range(query).await?;
        Ok(convert::page(snapshot.version(), page))
    }

    async fn hold(&self, session: &Session) -> Result<(u64, Version), Error> {
        let held = snapshot(&self.store).await?;
        let version = self.horizon.check(held.version())?;
        let too_many = || Error::Busy("too many snapshots are held for this client".into());
        Ok((session.hold(held).ok_or_else(too_many)?, version))
    }

    /// Begins the commit, which goes on whoever waits for it.
    fn begin_commit(
        self: &Arc<Self>,
        session: Arc<Session>,
        request: wire::CommitRequest,
    ) -> Result<Outcome, wire::Failure> {
        let busy = |why: &str| convert::failure(&Error::Busy(why.into()));
        let told_tx = match session.begin_commit(request.number, request.settled_below) {
            Ok(told_tx) => told_tx,
            Err(Refused::Begun(outcome)) => return Ok(outcome),
            Err(Refused::Detached) => return Err(convert::detached()),
            Err(Refused::GivenUp) => return Err(busy("the commit came after it was given up")),
            Err(Refused::TooMany) => {
                Self::count(&self.stats.refused);
                return Err(busy("too many commits of this client are under way"));
            }
        };
        let outcome = told_tx.subscribe();
        let Ok(permit) = Arc::clone(&self.commits).try_acquire_owned() else {
            Self::count(&self.stats.refused);
            let refused = convert::outcome(&Err(Error::Busy("too many commits are under way".into())));
            told_tx.send_replace(Some(refused));
            return Ok(outcome);
        };
        let shared = Arc::clone(self);
        self.tasks.spawn(async move {
            let response = match shared.commit(&request).await {
                Ok((committed, watches)) => {
                    shared.horizon.note(committed.version);
                    for (number, watch) in watches {
                        session.arm(number, watch, &shared.tasks);
                    }
                    convert::outcome(&Ok(committed))
                }
                Err(error) => convert::outcome(&Err(error)),
            };
            told_tx.send_replace(Some(response));
            drop(permit);
        });
        Ok(outcome)
    }

    async fn commit(&self, request: &wire::CommitRequest) -> Result<(Committed, Vec<(u64, Watch)>), Error> {
        let mut tx = self.store.begin();
        convert::apply(request, &mut *tx).map_err(|status| Error::Unavailable(status.message().into()))?;
        let watches = request.watches.iter().map(|watch| (watch.number, tx.watch(&watch.key))).collect();
        Ok((tx.commit().await?, watches))
    }
}

/// Waits for the end of a commit.
async fn ended(mut outcome: Outcome) -> wire::CommitResponse {
    let told = outcome.wait_for(Option::is_some).await.ok().and_then(|told| (*told).clone());
    // Its task has panicked, or the runtime goes down.
    told.unwrap_or_else(|| convert::outcome(&Err(Error::UnknownOpen)))
}

/// Ends the session of a call when the call ends.
struct Attached {
    shared: Arc<Shared>,
    session: Arc<Session>,
}

impl Drop for Attached {
    fn drop(&mut self) {
        self.shared.sessions.end(&self.session);
    }
}

impl Attached {
    /// Reads what the client says for as long as it does.
    async fn listen(self, mut said: Streaming<wire::AttachRequest>) {
        loop {
            tokio::select! {
                heard = said.message() => match heard {
                    Ok(Some(request)) => self.session.forget_watches(&request.forgotten),
                    Ok(None) | Err(_) => return,
                },
                () = self.session.over.cancelled() => return,
            }
        }
    }

    /// The next message to the client, until the session is over.
    async fn next(&self, fired_rx: &mut mpsc::Receiver<u64>) -> Option<wire::AttachResponse> {
        let mut fired = Vec::new();
        tokio::select! {
            count = fired_rx.recv_many(&mut fired, FIRED_AT_ONCE) => {
                (count > 0).then_some(wire::AttachResponse { session: None, fired })
            }
            () = self.session.over.cancelled() => None,
        }
    }
}

#[tonic::async_trait]
impl StoreCalls for Calls {
    type AttachStream = Pin<Box<dyn Stream<Item = Result<wire::AttachResponse, Status>> + Send>>;

    async fn attach(&self, request: Request<Streaming<wire::AttachRequest>>) -> Answer<Self::AttachStream> {
        let shared = &self.0;
        if shared.closing.is_cancelled() {
            return Err(Status::unavailable("the store server is going down"));
        }
        let Some((session, fired_rx)) = shared.sessions.open() else {
            Shared::count(&shared.stats.refused);
            return Err(Status::resource_exhausted("the store server has as many clients as there may be"));
        };
        let name = wire::AttachResponse { session: Some(shared.sessions.name(&session)), fired: Vec::new() };
        // Either of the two ends it: whichever notices first.
        let attached = || Attached { shared: Arc::clone(shared), session: Arc::clone(&session) };
        shared.tasks.spawn(attached().listen(request.into_inner()));
        let messages =
            stream::unfold((attached(), fired_rx, Some(name)), |(attached, mut fired_rx, name)| async move {
                let message = match name {
                    Some(name) => name,
                    None => attached.next(&mut fired_rx).await?,
                };
                Some((Ok(message), (attached, fired_rx, None)))
            });
        Ok(Response::new(Box::pin(messages)))
    }

    async fn read_version(&self, _: Request<wire::ReadVersionRequest>) -> Answer<wire::ReadVersionResponse> {
        let answer = match self.0.reading(None).await {
            Ok((_, version)) => wire::ReadVersionResponse { version: version.0, failure: None },
            Err(error) => wire::ReadVersionResponse { version: 0, failure: Some(convert::failure(&error)) },
        };
        Ok(Response::new(answer))
    }

    async fn get(&self, request: Request<wire::GetRequest>) -> Answer<wire::GetResponse> {
        let failed = |error: Error| wire::GetResponse {
            failure: Some(convert::failure(&error)),
            ..wire::GetResponse::default()
        };
        Ok(Response::new(self.0.get(request.get_ref()).await.unwrap_or_else(failed)))
    }

    async fn get_range(&self, request: Request<wire::GetRangeRequest>) -> Answer<wire::GetRangeResponse> {
        let failed = |error: Error| wire::GetRangeResponse {
            failure: Some(convert::failure(&error)),
            ..wire::GetRangeResponse::default()
        };
        Ok(Response::new(self.0.get_range(request.get_ref()).await.unwrap_or_else(failed)))
    }

    async fn commit(&self, request: Request<wire::CommitRequest>) -> Answer<wire::CommitResponse> {
        let (shared, request) = (&self.0, request.into_inner());
        Shared::count(&shared.stats.commits);
        let begun = match shared.sessions.find(request.session.as_ref()) {
            Some(session) => shared.begin_commit(session, request),
            None => Err(convert::detached()),
        };
        Ok(Response::new(match begun {
            Ok(outcome) => ended(outcome).await,
            Err(failure) => {
                wire::CommitResponse { outcome: Some(wire::commit_response::Outcome::Failure(failure)) }
            }
        }))
    }

    async fn settle(&self, request: Request<wire::SettleRequest>) -> Answer<wire::SettleResponse> {
        let (shared, request) = (&self.0, request.into_inner());
        Shared::count(&shared.stats.settled);
        let known = match shared.sessions.find(request.session.as_ref()) {
            Some(session) => session.settle(request.number, shared.clock.now()),
            None => Known::Forgotten,
        };
        let (state, outcome) = match known {
            Known::Never => (State::Never, None),
            Known::Forgotten => (State::Forgotten, None),
            Known::Begun(outcome) => match tokio::time::timeout(SETTLE_WAIT, ended(outcome)).await {
                Ok(outcome) => (State::Ended, Some(outcome)),
                Err(_) => (State::UnderWay, None),
            },
        };
        Ok(Response::new(wire::SettleResponse { state: state.into(), outcome }))
    }

    async fn hold(&self, request: Request<wire::HoldRequest>) -> Answer<wire::HoldResponse> {
        let failed = |failure| wire::HoldResponse { failure: Some(failure), ..wire::HoldResponse::default() };
        let Some(session) = self.0.sessions.find(request.get_ref().session.as_ref()) else {
            return Ok(Response::new(failed(convert::detached())));
        };
        let answer = match self.0.hold(&session).await {
            Ok((number, version)) => wire::HoldResponse { number, version: version.0, failure: None },
            Err(error) => failed(convert::failure(&error)),
        };
        Ok(Response::new(answer))
    }

    async fn release(&self, request: Request<wire::ReleaseRequest>) -> Answer<wire::ReleaseResponse> {
        if let Some(held) = &request.get_ref().held
            && let Some(session) = self.0.sessions.find(held.session.as_ref())
        {
            session.release(held.number);
        }
        Ok(Response::new(wire::ReleaseResponse {}))
    }

    async fn advance(&self, request: Request<wire::AdvanceRequest>) -> Answer<wire::AdvanceResponse> {
        let shared = &self.0;
        let advanced = match shared.store.advance(Version(request.get_ref().version)).await {
            // A commit beyond it, so that what is given out is near one.
            Ok(()) => shared.horizon.touch(&*shared.store).await,
            Err(error) => Err(error),
        };
        let failure = advanced.err().map(|error| convert::failure(&error));
        Ok(Response::new(wire::AdvanceResponse { failure }))
    }

    async fn describe(&self, _: Request<wire::DescribeRequest>) -> Answer<wire::DescribeResponse> {
        let (facts, failure) = match self.0.store.describe().await {
            Ok(facts) => (facts, None),
            Err(error) => (Vec::new(), Some(convert::failure(&error))),
        };
        let engine = ("engine of the server", self.0.store.engine().to_owned());
        let facts = [engine].into_iter().chain(facts);
        let facts = facts.map(|(name, value)| wire::Fact { name: name.to_owned(), value }).collect();
        Ok(Response::new(wire::DescribeResponse { facts, failure }))
    }
}
