//! Being dialled by other pods.

use std::net::SocketAddr;
use std::pin::Pin;

use anyhow::Context;
use futures_util::{Stream, StreamExt, stream};
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Server;
use tonic::{Request, Response, Status, Streaming};
use weir_core::cluster::links::Links;
use weir_core::cluster::network::{Broken, Pipe};
use weir_proto::peer::v1 as wire;
use weir_proto::peer::v1::peer_server::{self, Peer};
use weir_proto::peer::v1::{link_request, link_response};

use super::security::Security;
use super::{
    FRAME_BYTES_MAX, HELLO_WAIT, KEEPALIVE, KEEPALIVE_WAIT, Refusal, WINDOWS_BYTES, bring, check, hello,
    outgoing,
};
use crate::admin::connections;

/// Connections of other pods there may be.
const CONNECTIONS_MAX: usize = 1024;
/// Calls that one connection may have under way: a link, and another one that takes its place.
const CALLS_PER_CONNECTION_MAX: u32 = 4;

/// Where other pods come in.
pub(crate) struct PeerServer {
    listener: TcpListener,
    security: Security,
}

impl PeerServer {
    /// Serves on `listener` once [`PeerServer::run`] is called.
    pub(crate) fn new(listener: TcpListener, security: Security) -> Self {
        Self { listener, security }
    }

    /// Gives `links` what other pods dial, until `stop`.
    ///
    /// # Errors
    /// If the server fails. Errors of one connection end that connection.
    pub(crate) async fn run(self, links: Links, stop: CancellationToken) -> anyhow::Result<()> {
        let Self { listener, security: Security { access, .. } } = self;
        let tasks = TaskTracker::new();
        let service = Service { links, tasks: tasks.clone(), last_refused: Mutex::default() };
        let service = peer_server::PeerServer::new(service)
            .max_decoding_message_size(FRAME_BYTES_MAX)
            .max_encoding_message_size(FRAME_BYTES_MAX);
        let followed = access.follow();
        let server = Server::builder()
            .max_concurrent_streams(CALLS_PER_CONNECTION_MAX)
            .initial_stream_window_size(WINDOWS_BYTES.0)
            .initial_connection_window_size(WINDOWS_BYTES.1)
            .http2_keepalive_interval(Some(KEEPALIVE))
            .http2_keepalive_timeout(Some(KEEPALIVE_WAIT))
            .add_service(InterceptedService::new(service, access.guard))
            .serve_with_incoming(connections::incoming(listener, CONNECTIONS_MAX, access.tls));
        let served = tokio::select! {
            served = server => served.context("serve other pods"),
            () = followed => Ok(()),
            () = stop.cancelled() => Ok(()),
        };
        // Their connections are gone.
        tasks.close();
        tasks.wait().await;
        served
    }
}

/// Answers the calls.
struct Service {
    links: Links,
    tasks: TaskTracker,
    /// A pod tries again and again: the log has the same refusal once.
    last_refused: Mutex<Option<String>>,
}

impl Service {
    fn refuse(&self, why: &Refusal, address: Option<SocketAddr>) -> Status {
        let why = why.to_string();
        let mut last = self.last_refused.lock();
        if last.as_ref() == Some(&why) {
            tracing::debug!(?address, why, "a pod is refused again");
        } else {
            tracing::warn!(?address, why, "a pod is refused");
            *last = Some(why.clone());
        }
        Status::failed_precondition(why)
    }
}

#[tonic::async_trait]
impl Peer for Service {
    type LinkStream = Pin<Box<dyn Stream<Item = Result<wire::LinkResponse, Status>> + Send>>;

    async fn link(
        &self,
        request: Request<Streaming<wire::LinkRequest>>,
    ) -> Result<Response<Self::LinkStream>, Status> {
        let address = request.remote_addr();
        let mut incoming = request.into_inner();
        let first = tokio::time::timeout(HELLO_WAIT, incoming.message()).await;
        let first = first.map_err(|_| Status::deadline_exceeded("no hello"))??;
        let said = match first.and_then(|request| request.packet) {
            Some(link_request::Packet::Hello(hello)) => Some(hello),
            Some(link_request::Packet::Frame(_)) | None => None,
        };
        let me = self.links.me();
        let from = check(said, &me).map_err(|refusal| self.refuse(&refusal, address))?;
        let (pipe, end) = Pipe::new();
        // The first words, before whatever the link says.
        let hello = packet(link_response::Packet::Hello(hello(&me, from)));
        self.links.accept(from, pipe).map_err(|Broken(why)| {
            // As a rule this pod has not heard of it yet.
            tracing::debug!(%from, why, "a pod is to try again");
            Status::unavailable(why)
        })?;
        self.last_refused.lock().take();
        self.tasks.spawn(bring(incoming, frame_of, end.frames_tx));
        let frames = outgoing(end.frames_rx, |frame| packet(link_response::Packet::Frame(frame)));
        let packets = stream::iter([hello]).chain(frames).map(Ok);
        Ok(Response::new(Box::pin(packets)))
    }
}

fn packet(packet: link_response::Packet) -> wire::LinkResponse {
    wire::LinkResponse { packet: Some(packet) }
}

fn frame_of(request: wire::LinkRequest) -> Option<wire::Frame> {
    match request.packet? {
        link_request::Packet::Frame(frame) => Some(frame),
        link_request::Packet::Hello(_) => None,
    }
}
