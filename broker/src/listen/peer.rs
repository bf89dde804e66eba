//! Who is at the other end of a connection, as far as its transport knows. Nothing here comes from CONNECT, and
//! nothing here says what the peer may do.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use bytestring::ByteString;

use super::Listener;

/// The other end of a connection.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Where it came in.
    pub listener: Arc<Listener>,
    /// Its address; behind a proxy that says so, the one before the proxy.
    pub addr: PeerAddr,
    /// What its TLS certificate says, if it showed one that is trusted.
    pub certificate: Option<Box<Certificate>>,
}

/// Where a peer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerAddr {
    /// On the network. IPv4 addresses are IPv4 addresses, also on a socket for both.
    Ip(SocketAddr),
    /// On this machine, through a Unix socket, or on that of a proxy that says so.
    Local,
}

/// What a trusted client certificate says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Certificate {
    /// The common name of its subject.
    pub name: Option<ByteString>,
}

impl Peer {
    /// The common name of its certificate.
    pub fn certificate_name(&self) -> Option<&ByteString> {
        self.certificate.as_ref()?.name.as_ref()
    }

    /// Its IP address, if it came over the network.
    pub fn ip(&self) -> Option<IpAddr> {
        match self.addr {
            PeerAddr::Ip(addr) => Some(addr.ip()),
            PeerAddr::Local => None,
        }
    }
}

impl From<SocketAddr> for PeerAddr {
    fn from(addr: SocketAddr) -> Self {
        Self::Ip(SocketAddr::new(addr.ip().to_canonical(), addr.port()))
    }
}

/// For logs.
impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} on {}", self.addr, self.listener.name)?;
        match self.certificate_name() {
            Some(name) => write!(f, " as {name:?}"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for PeerAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(addr) => addr.fmt(f),
            Self::Local => f.write_str("local"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mapped_addresses_are_ipv4() {
        let shown = |text: &str| PeerAddr::from(text.parse::<SocketAddr>().unwrap()).to_string();
        assert_eq!(shown("[::ffff:10.1.2.3]:7"), "10.1.2.3:7");
        assert_eq!(shown("[::1]:7"), "[::1]:7");
    }
}
