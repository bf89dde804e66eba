//! The task that keeps a session with the server: it attaches, passes on which watches have fired, and attaches again
//! when the session has ended.

use std::sync::Arc;
use std::time::Duration;

use futures_util::stream;
use tokio::sync::mpsc;
use tonic::Streaming;
use weir_env::clock::Instant;
use weir_proto::store::v1 as wire;
use weir_storage::{Error, Result};

use super::Shared;
use super::calls::{Backoff, Refusal, refusal, text};
use super::session::Session;

/// How often the server is told of watches that nobody holds any more.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

/// Whether there is a session.
#[derive(Clone, Default)]
pub(super) struct Link {
    session: Option<Arc<Session>>,
    /// Why there is none.
    problem: Option<Arc<str>>,
    /// It is of the kind that a person must mend.
    is_refused: bool,
}

/// Keeps a session until the store is closed.
pub(super) async fn run(shared: Arc<Shared>) {
    let kept = async {
        let mut backoff = Backoff::default();
        loop {
            match attach(&shared).await {
                Ok((session, up_tx, down)) => {
                    backoff = Backoff::default();
                    tracing::debug!(server = shared.address, "attached to the store server");
                    let link = Link { session: Some(Arc::clone(&session)), ..Link::default() };
                    shared.link.send_replace(link);
                    let _end = End(&session);
                    let problem = follow(&session, &up_tx, down).await;
                    tracing::warn!(
                        server = shared.address,
                        problem,
                        "the session with the store server has ended"
                    );
                    shared.link.send_replace(Link { problem: Some(problem.into()), ..Link::default() });
                }
                Err(Refusal { error: Error::Unavailable(problem), is_final: true, .. }) => {
                    let link = Link { session: None, problem: Some(problem), is_refused: true };
                    shared.link.send_replace(link);
                }
                Err(Refusal { said, .. }) => {
                    let problem = Some(said.into());
                    shared.link.send_replace(Link { session: None, problem, is_refused: false });
                }
            }
            backoff.pause().await;
        }
    };
    tokio::select! {
        () = kept => {}
        () = shared.closed.cancelled() => {}
    }
    let link = shared.link.send_replace(Link::default());
    if let Some(session) = link.session {
        session.end();
    }
}

/// Ends a session whatever ends this task.
struct End<'a>(&'a Session);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.end();
    }
}

type Attached = (Arc<Session>, mpsc::Sender<wire::AttachRequest>, Streaming<wire::AttachResponse>);

async fn attach(shared: &Shared) -> std::result::Result<Attached, Refusal> {
    let (up_tx, up_rx) = mpsc::channel(1);
    let said = stream::unfold(up_rx, |mut up_rx| async move {
        let said: wire::AttachRequest = up_rx.recv().await?;
        Some((said, up_rx))
    });
    let mut client = shared.client.clone();
    let attached = async {
        let mut down = client.attach(said).await?.into_inner();
        Ok((down.message().await?, down))
    };
    let silent = |why: &str| Refusal { error: shared.silent(None), said: why.to_owned(), is_final: false };
    let attached = tokio::time::timeout(shared.timeout, attached);
    let attached = attached.await.map_err(|_| silent("it says nothing"))?;
    let (first, down) = attached.map_err(|status| refusal(&shared.address, &status))?;
    let Some(name) = first.and_then(|first| first.session) else {
        return Err(silent("it has ended the session at once"));
    };
    Ok((Arc::new(Session::new(name)), up_tx, down))
}

/// Passes on what the server says, until the session ends; why it did.
async fn follow(
    session: &Session,
    up_tx: &mpsc::Sender<wire::AttachRequest>,
    mut down: Streaming<wire::AttachResponse>,
) -> String {
    let mut sweep = tokio::time::interval(SWEEP_INTERVAL);
    loop {
        tokio::select! {
            said = down.message() => match said {
                Ok(Some(said)) => session.fire(&said.fired),
                Ok(None) => return "the server has ended it".to_owned(),
                Err(status) => return text(&status),
            },
            _ = sweep.tick() => if let Ok(permit) = up_tx.try_reserve() {
                let forgotten = session.take_orphans();
                if !forgotten.is_empty() {
                    permit.send(wire::AttachRequest { forgotten });
                }
            },
            () = session.over.cancelled() => return "the server does not know it any more".to_owned(),
        }
    }
}

impl Shared {
    /// The session, once there is one.
    pub(super) async fn session(&self, deadline: Instant) -> Result<Arc<Session>> {
        self.session_until(deadline, |_| false).await
    }

    /// The first session. What a person must mend is told at once.
    pub(super) async fn first_session(&self) -> Result<Arc<Session>> {
        self.session_until(self.deadline(), |link| link.is_refused).await
    }

    async fn session_until(
        &self,
        deadline: Instant,
        is_hopeless: impl Fn(&Link) -> bool,
    ) -> Result<Arc<Session>> {
        let mut link_rx = self.link.subscribe();
        let usable = |link: &Link| link.session.as_ref().is_some_and(|session| !session.over.is_cancelled());
        let waited = async {
            let found = link_rx.wait_for(|link| usable(link) || is_hopeless(link)).await;
            found.map(|link| (*link).clone()).unwrap_or_default()
        };
        let link = tokio::select! {
            link = tokio::time::timeout_at(deadline, waited) => {
                link.unwrap_or_else(|_| Link { session: None, ..self.link.borrow().clone() })
            }
            () = self.closed.cancelled() => return Err(Error::Unavailable("the store is closed".into())),
        };
        match link {
            Link { session: Some(session), .. } => Ok(session),
            Link { problem: Some(problem), is_refused: true, .. } => Err(Error::Unavailable(problem)),
            Link { problem, .. } => Err(self.silent(problem.as_deref())),
        }
    }
}
