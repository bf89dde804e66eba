//! Dialling other pods.

use std::fmt;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use futures_util::{StreamExt, stream};
use tokio_util::task::TaskTracker;
use tonic::transport::Endpoint;
use tonic::{Code, Request, Status};
use weir_core::cluster::network::{Broken, Identity, Network, Peer, Pipe};
use weir_proto::peer::v1 as wire;
use weir_proto::peer::v1::peer_client::PeerClient;
use weir_proto::peer::v1::{link_request, link_response};

use super::security::{ClientTls, Security, Token};
use super::{
    FRAME_BYTES_MAX, HELLO_WAIT, KEEPALIVE, KEEPALIVE_WAIT, WINDOWS_BYTES, bring, check, hello, in_words,
    outgoing,
};

/// Connects to other pods over gRPC. Cheap to clone.
#[derive(Clone)]
pub(crate) struct GrpcNetwork(Arc<Dialler>);

struct Dialler {
    tls: Option<ClientTls>,
    token: Token,
    tasks: TaskTracker,
}

impl fmt::Debug for GrpcNetwork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GrpcNetwork").finish_non_exhaustive()
    }
}

impl GrpcNetwork {
    /// Shows what `security` says. Its tasks end with the links.
    pub(crate) fn new(security: &Security, tasks: TaskTracker) -> Self {
        Self(Arc::new(Dialler { tls: security.tls.clone(), token: security.token(), tasks }))
    }
}

impl Network for GrpcNetwork {
    fn connect(&self, me: &Identity, peer: &Peer) -> BoxFuture<'static, Result<Pipe, Broken>> {
        let (dialler, me, peer) = (Arc::clone(&self.0), *me, peer.clone());
        Box::pin(async move {
            let refused = |why: String| Broken(format!("{}: {why}", peer.address));
            let dialling = dialler.dial(&me, &peer);
            let dialled = tokio::time::timeout(HELLO_WAIT.saturating_mul(2), dialling).await;
            dialled.unwrap_or_else(|_| Err("no answer".to_owned())).map_err(refused)
        })
    }
}

impl Dialler {
    async fn dial(&self, me: &Identity, peer: &Peer) -> Result<Pipe, String> {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        let endpoint = Endpoint::from_shared(format!("{scheme}://{}", peer.address))
            .map_err(|_| {
                "no address that can be dialled; it comes from peerAdvertise of that pod".to_owned()
            })?
            .connect_timeout(HELLO_WAIT)
            .tcp_nodelay(true)
            .initial_stream_window_size(WINDOWS_BYTES.0)
            .initial_connection_window_size(WINDOWS_BYTES.1)
            .http2_keep_alive_interval(KEEPALIVE)
            .keep_alive_timeout(KEEPALIVE_WAIT)
            .keep_alive_while_idle(true);
        let endpoint = match &self.tls {
            Some(tls) => {
                let tls = tls.clone();
                let read = tokio::task::spawn_blocking(move || tls.read()).await;
                let tls = read.map_err(|error| in_full(&error))?.map_err(|error| format!("{error:#}"))?;
                endpoint.tls_config(tls).map_err(|error| in_full(&error))?
            }
            None => endpoint,
        };
        let channel = endpoint.connect().await.map_err(|error| in_full(&error))?;
        let mut client = PeerClient::new(channel)
            .max_decoding_message_size(FRAME_BYTES_MAX)
            .max_encoding_message_size(FRAME_BYTES_MAX);

        let (pipe, end) = Pipe::new();
        let hello = packet(link_request::Packet::Hello(hello(me, peer.pod)));
        let frames = outgoing(end.frames_rx, |frame| packet(link_request::Packet::Frame(frame)));
        let mut request = Request::new(stream::iter([hello]).chain(frames));
        if let Some(token) = self.token.header()? {
            request.metadata_mut().insert("authorization", token);
        }
        let response = client.link(request).await.map_err(|status| refusal(&status))?;
        let mut incoming = response.into_inner();
        let first = incoming.message().await.map_err(|status| refusal(&status))?;
        let said = match first.and_then(|response| response.packet) {
            Some(link_response::Packet::Hello(hello)) => Some(hello),
            Some(link_response::Packet::Frame(_)) | None => None,
        };
        let found = check(said, me).map_err(|refusal| refusal.to_string())?;
        if found != peer.pod {
            return Err(format!("pod {found} answers instead of {}", peer.pod));
        }
        self.tasks.spawn(bring(incoming, frame_of, end.frames_tx));
        Ok(pipe)
    }
}

fn packet(packet: link_request::Packet) -> wire::LinkRequest {
    wire::LinkRequest { packet: Some(packet) }
}

fn frame_of(response: wire::LinkResponse) -> Option<wire::Frame> {
    match response.packet? {
        link_response::Packet::Frame(frame) => Some(frame),
        link_response::Packet::Hello(_) => None,
    }
}

/// Why the other pod does not want to talk.
fn refusal(status: &Status) -> String {
    match status.code() {
        Code::Unauthenticated => {
            "it refuses this pod's token: all pods of a cluster need the same in peerTokenFile".to_owned()
        }
        _ => format!("it refuses this pod: {}", in_words(status)),
    }
}

/// An error and what it comes from.
fn in_full(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}
