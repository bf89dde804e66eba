//! A door that stays while pods come and go: what a load balancer is to clients that know one address.
//!
//! Each connection goes to the next pod. It knows bytes, and nothing of what they mean; whoever gets no answer has to
//! notice that, as with any load balancer.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use anyhow::Result;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::super::clients::{Field, PATIENCE};

/// Opens a door of its own for one client, whose first connection is to the pod `first`. It is kept open by `tasks`.
pub(super) async fn open(field: &Arc<Field>, first: usize, tasks: &mut JoinSet<()>) -> Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let address = listener.local_addr()?;
    tasks.spawn(stand(Arc::clone(field), listener, first));
    Ok(address)
}

async fn stand(field: Arc<Field>, listener: TcpListener, first: usize) {
    let mut connections = JoinSet::new();
    for attempt in first.. {
        let Ok((client, _)) = listener.accept().await else { return };
        while connections.try_join_next().is_some() {}
        let door = field.door(attempt);
        connections.spawn(async move {
            let Some(door) = door else { return };
            if let Ok(Ok(pod)) = timeout(PATIENCE, TcpStream::connect(door)).await {
                join(client, pod).await;
            }
        });
    }
}

async fn join(mut client: TcpStream, mut pod: TcpStream) {
    if client.set_nodelay(true).is_ok() && pod.set_nodelay(true).is_ok() {
        // How it ended is for the two to find out.
        let _ = copy_bidirectional(&mut client, &mut pod).await;
    }
}
