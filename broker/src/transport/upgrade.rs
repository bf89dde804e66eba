//! The HTTP request that turns a connection into a WebSocket of MQTT, and its answer.

use std::fmt::Write;
use std::io;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::{Buf, BytesMut};
use tokio::io::Interest;
use tungstenite::error::ProtocolError;
use tungstenite::handshake::derive_accept_key;
use tungstenite::handshake::machine::TryParse;
use tungstenite::handshake::server::{Request, create_response};
use tungstenite::http::{HeaderMap, Response, StatusCode};
use weir_env::seed::Seed;

use super::Stream;

/// Longest head of a request or answer.
const HEAD_BYTES_MAX: usize = 8 << 10;
/// Sub-protocols that are MQTT, the first of which is the specification's [MQTT-6.0.0-3].
const PROTOCOLS: [&str; 2] = ["mqtt", "mqttv3.1"];
const PROTOCOL_HEADER: &str = "sec-websocket-protocol";

/// Why a connection is no WebSocket.
#[derive(Debug, thiserror::Error)]
pub enum UpgradeError {
    /// The connection is lost or ended.
    #[error("connection lost during the WebSocket handshake")]
    Io(#[from] io::Error),
    /// The other end does not do what it must.
    #[error("no WebSocket of MQTT: {0}")]
    Refused(String),
}

/// A request that is answered with an error.
struct Refusal(StatusCode, &'static str);

const WRONG_METHOD: Refusal = Refusal(StatusCode::METHOD_NOT_ALLOWED, "only GET can be upgraded");

/// Reads a request and answers it; what came after it.
pub(super) async fn accept(
    stream: &mut Stream,
    (paths, origins): (&[String], &[String]),
    mut input: BytesMut,
) -> Result<BytesMut, UpgradeError> {
    let request = loop {
        match parse(&input) {
            Ok(Some((length, request))) => {
                input.advance(length);
                break request;
            }
            Ok(None) if input.len() <= HEAD_BYTES_MAX => fill(stream, &mut input).await?,
            Ok(None) => {
                return refuse(
                    stream,
                    &Refusal(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "head too long"),
                )
                .await;
            }
            Err(refusal) => return refuse(stream, &refusal).await,
        }
    };
    match judge(&request, paths, origins) {
        Ok(response) => {
            write_all(stream, response.as_bytes()).await?;
            Ok(input)
        }
        Err(refusal) => refuse(stream, &refusal).await,
    }
}

/// A request and its length, if all of it is there.
fn parse(input: &[u8]) -> Result<Option<(usize, Request)>, Refusal> {
    Request::try_parse(input).map_err(|error| match error {
        tungstenite::Error::Protocol(ProtocolError::WrongHttpMethod) => WRONG_METHOD,
        _ => Refusal(StatusCode::BAD_REQUEST, "no HTTP/1.1 request"),
    })
}

/// The answer to a request that is granted.
fn judge(request: &Request, paths: &[String], origins: &[String]) -> Result<String, Refusal> {
    if !paths.iter().any(|path| path == request.uri().path()) {
        return Err(Refusal(StatusCode::NOT_FOUND, "no MQTT at this path"));
    }
    if !may_ask(request.headers(), origins) {
        let why = "pages of this web site may not connect; `origins` of the listener lists those that may";
        return Err(Refusal(StatusCode::FORBIDDEN, why));
    }
    let response = create_response(request).map_err(|error| match error {
        tungstenite::Error::Protocol(ProtocolError::WrongHttpMethod) => WRONG_METHOD,
        tungstenite::Error::Protocol(
            ProtocolError::MissingConnectionUpgradeHeader
            | ProtocolError::MissingUpgradeWebSocketHeader
            | ProtocolError::MissingSecWebSocketVersionHeader,
        ) => Refusal(StatusCode::UPGRADE_REQUIRED, "this is a WebSocket, version 13"),
        _ => Refusal(StatusCode::BAD_REQUEST, "no valid WebSocket request"),
    })?;
    let Some(protocol) = PROTOCOLS.into_iter().find(|ours| offers(request.headers(), ours)) else {
        return Err(Refusal(StatusCode::BAD_REQUEST, "offer the WebSocket sub-protocol `mqtt`"));
    };
    let key =
        response.headers().get("sec-websocket-accept").and_then(|key| key.to_str().ok()).unwrap_or_default();
    Ok(format!(
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Accept: {key}\r\nSec-WebSocket-Protocol: {protocol}\r\n\r\n"
    ))
}

/// Whether the page that asks may: browsers let any page open a WebSocket to anywhere, and say whose page it is
/// [RFC 6455, 10.2]. Whoever says nothing is no browser.
fn may_ask(headers: &HeaderMap, origins: &[String]) -> bool {
    let host = headers.get("host").and_then(|host| host.to_str().ok()).unwrap_or_default();
    headers.get_all("origin").iter().all(|origin| {
        let origin = origin.to_str().unwrap_or_default();
        let authority = origin.split_once("://").map_or("", |(_, authority)| authority);
        (!authority.is_empty() && authority.eq_ignore_ascii_case(host))
            || origins.iter().any(|known| known == "*" || known.eq_ignore_ascii_case(origin))
    })
}

/// Whether `protocol` is in a list of sub-protocols, which may be several headers.
fn offers(headers: &HeaderMap, protocol: &str) -> bool {
    let lists = headers.get_all(PROTOCOL_HEADER).iter().filter_map(|value| value.to_str().ok());
    lists.flat_map(|list| list.split(',')).any(|offered| offered.trim() == protocol)
}

async fn refuse(stream: &mut Stream, Refusal(status, why): &Refusal) -> Result<BytesMut, UpgradeError> {
    let mut response = format!("HTTP/1.1 {status}\r\nConnection: close\r\nContent-Type: text/plain\r\n");
    // Writing to a string does not fail.
    let _ = match *status {
        StatusCode::METHOD_NOT_ALLOWED => write!(response, "Allow: GET\r\n"),
        StatusCode::UPGRADE_REQUIRED => {
            write!(response, "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n")
        }
        _ => Ok(()),
    };
    let _ = write!(response, "Content-Length: {}\r\n\r\n{why}\n", why.len() + 1);
    write_all(stream, response.as_bytes()).await?;
    stream.shutdown().await;
    Err(UpgradeError::Refused((*why).to_owned()))
}

/// Sends a request and reads the answer; what came after it.
pub(super) async fn connect(
    stream: &mut Stream,
    (host, path): (&str, &str),
    seed: &Seed,
    mut input: BytesMut,
) -> Result<BytesMut, UpgradeError> {
    let key = STANDARD.encode(seed.next_id());
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\nSec-WebSocket-Protocol: mqtt\r\n\r\n"
    );
    write_all(stream, request.as_bytes()).await?;
    let refused = |why: &str| Err(UpgradeError::Refused(why.to_owned()));
    let response = loop {
        match Response::<Option<Vec<u8>>>::try_parse(&input) {
            Ok(Some((length, response))) => {
                input.advance(length);
                break response;
            }
            Ok(None) if input.len() <= HEAD_BYTES_MAX => fill(stream, &mut input).await?,
            Ok(None) => return refused("the answer of the server is too long"),
            Err(_) => return refused("the server does not speak HTTP/1.1"),
        }
    };
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        let said = String::from_utf8_lossy(&input);
        let said = said.lines().next().map(|line| format!(": {line}")).unwrap_or_default();
        return refused(&format!("the server answers {}{said}", response.status()));
    }
    let accepted = response.headers().get("sec-websocket-accept");
    if accepted.is_none_or(|accepted| accepted != derive_accept_key(key.as_bytes()).as_str()) {
        return refused("the answer is to another request");
    }
    if !offers(response.headers(), PROTOCOLS[0]) {
        return refused("the server does not take the sub-protocol `mqtt`");
    }
    Ok(input)
}

/// Reads some.
async fn fill(stream: &mut Stream, input: &mut BytesMut) -> io::Result<()> {
    loop {
        stream.ready(Interest::READABLE).await?;
        input.reserve(1024);
        match stream.try_read_buf(input) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}

async fn write_all(stream: &mut Stream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() || stream.pending() > 0 {
        if !bytes.is_empty() {
            match stream.try_write(bytes) {
                Ok(written) => bytes = &bytes[written..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        stream.try_flush()?;
        if !bytes.is_empty() || stream.pending() > 0 {
            stream.ready(Interest::WRITABLE).await?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "GET /mqtt HTTP/1.1\r\nHost: h\r\nConnection: keep-alive, Upgrade\r\nUpgrade: WebSocket\r\n\
                        Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
                        Sec-WebSocket-Protocol: mqttv3.1, mqtt\r\n\r\n";

    fn judged(head: &str) -> Result<String, u16> {
        judged_with(head, &[])
    }

    fn judged_with(head: &str, origins: &[String]) -> Result<String, u16> {
        let paths = ["/mqtt".to_owned()];
        let judged = parse(head.as_bytes()).and_then(|parsed| judge(&parsed.unwrap().1, &paths, origins));
        judged.map_err(|Refusal(status, _)| status.as_u16())
    }

    #[test]
    fn requests() {
        let granted = judged(GOOD).unwrap();
        assert!(granted.contains("Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"), "{granted}");
        assert!(granted.contains("Sec-WebSocket-Protocol: mqtt\r\n"), "{granted}");
        let old = judged(&GOOD.replace("mqttv3.1, mqtt", "mqttv3.1")).unwrap();
        assert!(old.contains("Sec-WebSocket-Protocol: mqttv3.1\r\n"), "{old}");
        for (from, to, status) in [
            ("GET /mqtt", "GET /other", 404),
            ("GET", "POST", 405),
            ("Upgrade: WebSocket\r\n", "", 426),
            ("Version: 13", "Version: 8", 426),
            ("dGhlIHNhbXBsZSBub25jZQ==", "short", 400),
            ("mqttv3.1, mqtt", "amqp", 400),
            ("Sec-WebSocket-Protocol: mqttv3.1, mqtt\r\n", "", 400),
        ] {
            assert_eq!(judged(&GOOD.replace(from, to)), Err(status), "{to}");
        }
        assert!(judged(&GOOD.replace("/mqtt ", "/mqtt?token=1 ")).is_ok(), "a query is not part of the path");
    }

    #[test]
    fn pages_of_other_web_sites_are_refused() {
        let asks = |origin: &str, known: &str| {
            let head = GOOD.replace("Host: h", &format!("Host: 127.0.0.1:8083\r\nOrigin: {origin}"));
            let known: Vec<String> = known.split_whitespace().map(str::to_owned).collect();
            judged_with(&head, &known).map(|_| ())
        };
        for origin in ["https://evil.example", "null", "http://127.0.0.1:8084", "http://127.0.0.1", "", "://"]
        {
            assert_eq!(asks(origin, ""), Err(403), "{origin}");
            assert_eq!(asks(origin, "https://good.example"), Err(403), "{origin}");
            assert_eq!(asks(origin, "*"), Ok(()), "{origin}");
        }
        assert_eq!(asks("http://127.0.0.1:8083", ""), Ok(()), "its own page");
        assert_eq!(asks("https://Good.example", "https://a.example https://good.example"), Ok(()));
        assert_eq!(asks("http://127.0.0.1:8083\r\nOrigin: https://evil.example", ""), Err(403), "both");
    }
}
