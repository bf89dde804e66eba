//! The network of one pod: an address of its own, in a namespace of its own, on the bridge of all pods.

use std::net::Ipv4Addr;

use anyhow::{Context, Result};

use super::shell;

/// The address before the first pod's; the bridge has 10.244.0.1.
const FIRST: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 0);

/// A pod's network; [`Network::remove`] ends it.
#[derive(Debug)]
pub(super) struct Network {
    /// Its name for `ip netns`.
    pub(super) name: String,
    /// The pod's address.
    pub(super) address: Ipv4Addr,
}

impl Network {
    /// Makes the network of the `n`-th pod.
    pub(super) async fn make(n: u32) -> Result<Self> {
        let address = Ipv4Addr::from(u32::from(FIRST).saturating_add(n));
        let name = format!("pod{n}");
        shell(&format!(
            "ip netns add {name}; ip link add v{n} type veth peer name eth0 netns {name}\n\
             ip link set v{n} master pods up\n\
             ip -n {name} link set lo up; ip -n {name} link set eth0 up\n\
             ip -n {name} addr add {address}/16 dev eth0; ip -n {name} route add default via {node}",
            node = super::super::NODE,
        ))
        .await
        .with_context(|| format!("the network of pod {address}"))?;
        Ok(Self { name, address })
    }

    pub(super) async fn remove(self) -> Result<()> {
        shell(&format!("ip netns delete {}", self.name)).await
    }
}
