//! Sockets that listen, over TCP and on this machine.

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use socket2::{Domain, SockAddr, Type};
use tokio::net::{TcpListener, UnixListener};

use super::PeerAddr;
use crate::config::{ListenAt, Listener};
use crate::transport::Socket;

/// Connections that the operating system may hold before they are accepted.
const BACKLOG: i32 = 4096;

/// A socket that listens.
#[derive(Debug)]
pub(super) enum Listening {
    Tcp(TcpListener),
    Unix { listener: UnixListener, _file: SocketFile },
}

/// The file of a Unix socket, removed when dropped unless it is another's by then.
#[derive(Debug)]
pub(super) struct SocketFile {
    path: PathBuf,
    inode: u64,
}

impl Listening {
    /// Binds `listener`, one of `all`.
    pub(super) fn bind(listener: &Listener, all: &[Listener]) -> anyhow::Result<Self> {
        match &listener.at {
            ListenAt::Ip(addr) => {
                // A socket of its own takes IPv4 there.
                let both = !all.iter().any(
                    |other| matches!(&other.at, ListenAt::Ip(at) if at.is_ipv4() && at.port() == addr.port()),
                );
                bind_tcp(*addr, both || addr.port() == 0).map(Self::Tcp).with_context(|| {
                    format!(
                        "listen on {listener}: is another broker running? `--listen` takes another address"
                    )
                })
            }
            ListenAt::Unix(path) => {
                bind_unix(path, listener.socket_mode).with_context(|| format!("listen on {listener}"))
            }
        }
    }

    /// The next connection. Cancel-safe.
    pub(super) async fn accept(&self) -> io::Result<(Socket, PeerAddr)> {
        match self {
            Self::Tcp(listener) => {
                let (stream, addr) = listener.accept().await?;
                // Latency matters more than full segments: writes are gathered before they get here.
                let _ = stream.set_nodelay(true);
                Ok((stream.into(), addr.into()))
            }
            Self::Unix { listener, .. } => {
                let (stream, _) = listener.accept().await?;
                Ok((stream.into(), PeerAddr::Local))
            }
        }
    }

    /// Its address, with the port that was taken.
    pub(super) fn addr(&self) -> io::Result<Option<SocketAddr>> {
        match self {
            Self::Tcp(listener) => listener.local_addr().map(Some),
            Self::Unix { .. } => Ok(None),
        }
    }
}

/// A listening socket at `addr`; `[::]` takes IPv4 as well if `both`.
pub(super) fn bind_tcp(addr: SocketAddr, both: bool) -> io::Result<TcpListener> {
    let socket = socket2::Socket::new(Domain::for_address(addr), Type::STREAM.nonblocking().cloexec(), None)?;
    socket.set_reuse_address(true)?;
    if let SocketAddr::V6(addr) = addr {
        // Whatever the system's default is.
        let unspecified = addr.ip().is_unspecified();
        socket.set_only_v6(!(unspecified && both))?;
    }
    socket.bind(&addr.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

fn bind_unix(path: &Path, mode: u32) -> anyhow::Result<Listening> {
    remove_stale(path)?;
    let address = SockAddr::unix(path).context("the path of a socket is 107 bytes at most")?;
    let socket = socket2::Socket::new(Domain::UNIX, Type::STREAM.nonblocking().cloexec(), None)?;
    socket.bind(&address)?;
    // Nobody can connect before it listens.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
    let inode = std::fs::symlink_metadata(path)?.ino();
    socket.listen(BACKLOG)?;
    let _file = SocketFile { path: path.to_path_buf(), inode };
    Ok(Listening::Unix { listener: UnixListener::from_std(socket.into())?, _file })
}

/// Removes what a process left that is gone.
fn remove_stale(path: &Path) -> anyhow::Result<()> {
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error.into()),
        Ok(found) if !found.file_type().is_socket() => {
            bail!("there is a file that is no socket: remove it or take another path");
        }
        Ok(_) => {}
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Ok(_) => bail!("another process listens there: stop it or take another path"),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            tracing::info!(path = %path.display(), "socket of a process that is gone removed");
            std::fs::remove_file(path).context("remove the socket of a process that is gone")
        }
        Err(error) => Err(error).context("find out whether another process listens there"),
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let is_ours = std::fs::symlink_metadata(&self.path).is_ok_and(|found| found.ino() == self.inode);
        if is_ours && let Err(error) = std::fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "socket not removed");
        }
    }
}

/// The URL of a listener, with the port that was taken.
pub(super) fn shown(listener: &Listener, addr: Option<SocketAddr>) -> String {
    let mut listener = listener.clone();
    if let Some(addr) = addr {
        listener.at = ListenAt::Ip(addr);
    }
    listener.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn unspecified_takes_both_unless_told_otherwise() {
        let any = SocketAddr::from((std::net::Ipv6Addr::UNSPECIFIED, 0));
        for both in [true, false] {
            let listener = match bind_tcp(any, both) {
                Ok(listener) => listener,
                // A machine without IPv6.
                Err(error) if error.kind() == io::ErrorKind::Unsupported => return,
                Err(error) => panic!("{error}"),
            };
            let port = listener.local_addr().unwrap().port();
            let connected = tokio::net::TcpStream::connect(("127.0.0.1", port)).await;
            assert_eq!(connected.is_ok(), both);
        }
    }

    #[tokio::test]
    async fn the_socket_of_a_dead_process_is_replaced_and_a_live_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        // Dropping a listener does not remove its file: as after a crash.
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let bound = bind_unix(&path, 0o600).unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let error = bind_unix(&path, 0o600).expect_err("is in use");
        assert!(error.to_string().contains("another process listens there"), "{error}");
        drop(bound);
        assert!(!path.exists());
        std::fs::write(&path, "").unwrap();
        let error = bind_unix(&path, 0o600).expect_err("is a file");
        assert!(error.to_string().contains("no socket"), "{error}");
        assert!(path.exists());
    }
}
