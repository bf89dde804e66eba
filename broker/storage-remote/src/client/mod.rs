//! The client: a store whose engine is elsewhere. One connection, which is made again when it is lost; over it one
//! session (`link.rs`), and a call for each read and each commit (`calls.rs`).

mod calls;
mod link;
mod session;
mod snapshot;
mod transaction;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use secrecy::ExposeSecret;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Request, Status};
use weir_env::clock::Clock;
use weir_proto::store::v1 as wire;
use weir_proto::store::v1::store_client::StoreClient;
use weir_storage::{Error, Result, Snapshot, Store, StoreStats, Transaction, Version};

use self::link::Link;
use self::snapshot::HeldSnapshot;
use self::transaction::RemoteTransaction;
use crate::{REQUEST_BYTES_MAX, RemoteOptions};

/// After this silence the other side is asked whether it is there, and has as long to answer.
const KEEPALIVE: Duration = Duration::from_secs(2);
/// What may be on its way to one call, and to all.
const WINDOWS_BYTES: (u32, u32) = (2 << 20, 16 << 20);

/// A store that another process serves.
#[derive(Debug)]
pub struct RemoteStore {
    shared: Arc<Shared>,
}

/// What transactions use of their store.
pub(crate) struct Shared {
    client: Client,
    address: String,
    /// TLS is spoken, and no certificate of this process shown.
    is_unnamed: bool,
    timeout: Duration,
    clock: Clock,
    stats: Arc<StoreStats>,
    /// Whether there is a session, as its task says.
    link: watch::Sender<Link>,
    /// Cancelled when the store is closed.
    closed: CancellationToken,
    /// The task of the session and operations under way, for `close` to wait for.
    tasks: TaskTracker,
}

type Client = StoreClient<InterceptedService<Channel, Token>>;

impl RemoteStore {
    /// Opens the store that `options` name and waits for a session with its server, so that one that is not there is
    /// told here. Runs within a tokio runtime whose time is real, which lives as long as the store.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if the options can't be used, if the server does not answer in time, or if it is none.
    pub async fn open(options: &RemoteOptions, clock: Clock) -> Result<Self> {
        let client = client(options)?;
        let shared = Arc::new(Shared {
            client,
            address: options.address.clone(),
            is_unnamed: options.tls.as_ref().is_some_and(|tls| tls.identity.is_none()),
            timeout: options.timeout,
            clock,
            stats: Arc::default(),
            link: watch::Sender::new(Link::default()),
            closed: CancellationToken::new(),
            tasks: TaskTracker::new(),
        });
        let store = Self { shared };
        store.shared.tasks.spawn(link::run(Arc::clone(&store.shared)));
        match store.shared.first_session().await {
            Ok(_) => Ok(store),
            Err(error) => {
                store.close().await;
                Err(error)
            }
        }
    }

    /// What this process has done to the store since it was opened.
    #[must_use]
    pub fn stats(&self) -> Arc<StoreStats> {
        Arc::clone(&self.shared.stats)
    }
}

fn client(options: &RemoteOptions) -> Result<Client> {
    let unusable =
        |what: &str| Error::Unavailable(format!("store server {}: {what}", options.address).into());
    let scheme = if options.tls.is_some() { "https" } else { "http" };
    let mut endpoint = Endpoint::from_shared(format!("{scheme}://{}", options.address))
        .map_err(|_| unusable("the address is not HOST:PORT"))?
        .connect_timeout(options.timeout)
        .tcp_nodelay(true)
        .initial_stream_window_size(WINDOWS_BYTES.0)
        .initial_connection_window_size(WINDOWS_BYTES.1)
        .http2_keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE);
    if let Some(tls) = &options.tls {
        let mut config = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(&tls.authorities));
        if let Some((certificate, key)) = &tls.identity {
            config = config.identity(Identity::from_pem(certificate, key.expose_secret()));
        }
        endpoint = endpoint
            .tls_config(config)
            .map_err(|_| unusable("the authorities or certificate can't be used"))?;
    }
    let token = match &options.token {
        None => None,
        Some(token) => {
            let header = format!("Bearer {}", token.expose_secret());
            let mut header: MetadataValue<Ascii> =
                header.parse().map_err(|_| unusable("the token has characters that can't be sent"))?;
            header.set_sensitive(true);
            Some(header)
        }
    };
    let service = InterceptedService::new(endpoint.connect_lazy(), Token(token));
    Ok(StoreClient::new(service)
        .max_decoding_message_size(REQUEST_BYTES_MAX)
        .max_encoding_message_size(REQUEST_BYTES_MAX))
}

/// What is put before each call.
#[derive(Clone)]
struct Token(Option<MetadataValue<Ascii>>);

impl Interceptor for Token {
    fn call(&mut self, mut request: Request<()>) -> std::result::Result<Request<()>, Status> {
        if let Some(token) = &self.0 {
            request.metadata_mut().insert("authorization", token.clone());
        }
        Ok(request)
    }
}

#[async_trait]
impl Store for RemoteStore {
    fn begin(&self) -> Box<dyn Transaction> {
        Box::new(RemoteTransaction::new(Arc::clone(&self.shared)))
    }

    fn engine(&self) -> &'static str {
        "remote"
    }

    async fn hold(&self) -> Option<Result<Box<dyn Snapshot>>> {
        let held = HeldSnapshot::new(&self.shared).await;
        Some(held.map(|held| Box::new(held) as Box<dyn Snapshot>))
    }

    async fn advance(&self, version: Version) -> Result<()> {
        let _entered = self.shared.enter()?;
        let request = wire::AdvanceRequest { version: version.0 };
        let asked = self.shared.ask(|mut client| async move { client.advance(request).await });
        self.shared.checked(asked.await?.failure)
    }

    /// A server that is away may come back.
    async fn failed(&self) -> Arc<str> {
        std::future::pending().await
    }

    async fn describe(&self) -> Result<Vec<(&'static str, String)>> {
        let _entered = self.shared.enter()?;
        let asked =
            self.shared.ask(|mut client| async move { client.describe(wire::DescribeRequest {}).await });
        let answer = asked.await?;
        self.shared.checked(answer.failure)?;
        let told = answer.facts.into_iter().filter_map(|fact| {
            let name = ["engine of the server", "format"].into_iter().find(|name| *name == fact.name)?;
            Some((name, fact.value))
        });
        Ok([("server", self.shared.address.clone())].into_iter().chain(told).collect())
    }

    async fn close(&self) {
        self.shared.closed.cancel();
        self.shared.tasks.close();
        self.shared.tasks.wait().await;
    }
}

impl Shared {
    /// Fails if the store is closed; else holds up `close` for as long as the token lives.
    fn enter(&self) -> Result<TaskTrackerToken> {
        let token = self.tasks.token();
        match self.closed.is_cancelled() {
            true => Err(Error::Unavailable("the store is closed".into())),
            false => Ok(token),
        }
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("address", &self.address).finish_non_exhaustive()
    }
}
