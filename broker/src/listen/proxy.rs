//! The header of the PROXY protocol, version 2: a load balancer says whose connection it passes on.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::PeerAddr;
use crate::transport::Socket;

const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
const HEAD: usize = 16;
/// Longest of what follows the head: the addresses of two Unix sockets, and room for extensions.
const BODY_MAX: usize = 4096;

/// Why there is no header.
#[derive(Debug, thiserror::Error)]
pub(super) enum ProxyError {
    #[error("connection lost before the PROXY header")]
    Io(#[from] io::Error),
    #[error("connection ended before the PROXY header")]
    Ended,
    #[error("PROXY protocol version 1; let the load balancer send version 2")]
    Version1,
    #[error("no PROXY header; connect through the load balancer, or turn proxyProtocol off")]
    Missing,
    #[error("no proxy that proxyFrom of the listener names")]
    NotTrusted,
    #[error("PROXY header that is not understood: {0}")]
    Malformed(&'static str),
}

/// Reads the header and nothing more. The address of the client, or `None` if the proxy speaks for itself.
pub(super) async fn read(socket: &Socket) -> Result<Option<PeerAddr>, ProxyError> {
    let mut head = [0; HEAD];
    if !socket.read_exact(&mut head, check_signature).await? {
        return Err(ProxyError::Ended);
    }
    let length = usize::from(u16::from_be_bytes([head[14], head[15]]));
    if length > BODY_MAX {
        return Err(ProxyError::Malformed("longer than 4,096 bytes"));
    }
    let mut body = vec![0; length];
    if !socket.read_exact(&mut body, |_| Ok::<_, ProxyError>(())).await? {
        return Err(ProxyError::Ended);
    }
    parse(head[12], head[13], &body)
}

/// Refuses what is no header as soon as it shows: whoever sends something else may wait for an answer.
fn check_signature(head: &[u8]) -> Result<(), ProxyError> {
    let known = head.len().min(SIGNATURE.len());
    if head[..known] == SIGNATURE[..known] {
        Ok(())
    } else if head.starts_with(b"PROXY") || b"PROXY".starts_with(head) {
        if head.len() < b"PROXY".len() { Ok(()) } else { Err(ProxyError::Version1) }
    } else {
        Err(ProxyError::Missing)
    }
}

/// The source address; what follows the addresses is skipped.
fn parse(version_command: u8, family: u8, body: &[u8]) -> Result<Option<PeerAddr>, ProxyError> {
    let short = ProxyError::Malformed("too short for its addresses");
    match version_command {
        0x20 => return Ok(None),
        0x21 => {}
        _ => return Err(ProxyError::Malformed("unknown version or command")),
    }
    let port = |at: usize| body.get(at..at + 2).map(|port| u16::from_be_bytes([port[0], port[1]]));
    let addr = match family {
        0x00 => return Ok(None),
        0x11 if body.len() >= 12 => {
            let ip = body.first_chunk::<4>().map(|ip| IpAddr::from(Ipv4Addr::from(*ip)));
            ip.zip(port(8))
        }
        0x21 if body.len() >= 36 => {
            let ip = body.first_chunk::<16>().map(|ip| IpAddr::from(Ipv6Addr::from(*ip)));
            ip.zip(port(32))
        }
        0x31 if body.len() >= 216 => return Ok(Some(PeerAddr::Local)),
        0x11 | 0x21 | 0x31 => None,
        _ => return Err(ProxyError::Malformed("not a stream of IPv4, IPv6 or a Unix socket")),
    };
    addr.map(|(ip, port)| Some(SocketAddr::new(ip, port).into())).ok_or(short)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        let v4 = [10, 0, 0, 1, 10, 0, 0, 2, 0x30, 0x39, 0x07, 0x5b, 0x04, 0, 1, 9];
        let shown =
            |family, body: &[u8]| parse(0x21, family, body).map(|addr| addr.map(|addr| addr.to_string()));
        assert_eq!(shown(0x11, &v4).unwrap().as_deref(), Some("10.0.0.1:12345"));
        let mut v6 = [0; 36];
        v6[15] = 1;
        v6[33] = 7;
        assert_eq!(shown(0x21, &v6).unwrap().as_deref(), Some("[::1]:7"));
        assert_eq!(shown(0x31, &[0; 216]).unwrap().as_deref(), Some("local"));
        assert_eq!(shown(0x00, &[]).unwrap(), None);
        assert_eq!(parse(0x20, 0x11, &v4).unwrap(), None, "the proxy itself");
        for (command, family, length) in [
            (0x21, 0x11, 11),
            (0x21, 0x21, 35),
            (0x21, 0x31, 215),
            (0x21, 0x12, 12),
            (0x11, 0x11, 12),
            (0x22, 0x11, 12),
        ] {
            assert!(parse(command, family, &vec![0; length]).is_err(), "{command:x} {family:x} {length}");
        }
    }

    #[test]
    fn any_bytes_are_an_answer() {
        let seed = weir_env::seed::Seed::fixed(1);
        let bytes =
            |bound| -> Vec<u8> { (0..seed.below(bound)).map(|_| seed.next_u64().to_le_bytes()[0]).collect() };
        for n in 0..20_000_u64 {
            let [known, family, ..] = seed.next_u64().to_le_bytes();
            // Mostly what gets past the first two bytes.
            let version = if known < 200 { 0x21 } else { known };
            let family = if n % 4 == 0 { family } else { [0x11, 0x21, 0x31][usize::from(family % 3)] };
            let body = bytes(300);
            let long_enough = match family {
                0x11 => body.len() >= 12,
                0x21 => body.len() >= 36,
                0x31 => body.len() >= 216,
                _ => family == 0,
            };
            let expected = version == 0x20 || (version == 0x21 && long_enough);
            assert_eq!(
                parse(version, family, &body).is_ok(),
                expected,
                "{version:x} {family:x} {}",
                body.len()
            );
            let _ = check_signature(&bytes(20));
        }
    }

    #[test]
    fn what_is_no_header_shows_early() {
        for length in 0..=12 {
            assert!(check_signature(&SIGNATURE[..length]).is_ok());
        }
        assert!(check_signature(b"PRO").is_ok());
        assert!(matches!(check_signature(b"PROXY "), Err(ProxyError::Version1)));
        assert!(matches!(check_signature(&[0x10, 0x0e]), Err(ProxyError::Missing)));
        assert!(matches!(check_signature(b"\r\n\r\n\0\r\nQUIX"), Err(ProxyError::Missing)));
    }
}
