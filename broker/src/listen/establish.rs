//! From an accepted socket to the first byte of MQTT: PROXY header, TLS and WebSocket, as the listener says. Whoever
//! fails at this costs a counter and, now and then, a line in the log.

use std::fmt;

use bytes::BytesMut;

use super::{Listener, Peer, PeerAddr, proxy, tls};
use crate::metrics::Closed;
use crate::transport::{Stream, UpgradeError};

/// Does what the listener of `peer` asks for, and learns who the peer is. What has been read of MQTT is added to
/// `input`. The caller bounds the time. Not cancel-safe.
///
/// # Errors
/// If the connection is to be closed: why.
pub(crate) async fn establish(
    stream: &mut Stream,
    peer: &mut Peer,
    input: &mut BytesMut,
) -> Result<(), Closed> {
    let listener = std::sync::Arc::clone(&peer.listener);
    if listener.is_plain() {
        return Ok(());
    }
    if listener.proxy_protocol {
        if !listener.trusts_proxy(&peer.addr) {
            listener.metrics.proxies_refused.inc();
            return Err(failed(&listener, &peer.addr, &proxy::ProxyError::NotTrusted));
        }
        match proxy::read(stream.socket()).await {
            Ok(Some(addr)) => peer.addr = addr,
            Ok(None) => {}
            Err(error) => return Err(failed(&listener, &peer.addr, &error)),
        }
    }
    if let Some(server) = &listener.tls {
        let connection = server.connection().map_err(|error| failed(&listener, &peer.addr, &error))?;
        if let Err(error) = stream.start_tls(connection, input).await {
            listener.metrics.tls_failures.inc();
            return Err(failed(&listener, &peer.addr, &error));
        }
        peer.certificate = stream.tls().and_then(tls::identity);
    }
    if listener.is_websocket
        && let Err(error) = stream.accept_websocket((&listener.paths, &listener.origins), input).await
    {
        let error: &(dyn std::error::Error + 'static) = match &error {
            UpgradeError::Io(error) => error,
            UpgradeError::Refused(_) => &error,
        };
        return Err(failed(&listener, &peer.addr, error));
    }
    Ok(())
}

fn failed(listener: &Listener, peer: &PeerAddr, error: &dyn fmt::Display) -> Closed {
    if let Some(unlogged) = listener.log.permit(listener.clock.now()) {
        let listener = &*listener.name;
        tracing::info!(listener, %peer, %error, unlogged, "connection failed before its first byte of MQTT");
    }
    Closed::TransportError
}
