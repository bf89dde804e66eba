//! Where other pods come in, and the way to them, as the configuration says. Opened before the pod is a member, so that
//! what it tells the others is true.

use std::sync::Arc;

use anyhow::Context;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use weir_core::cluster::links::{LinkOptions, Links};
use weir_core::cluster::{ClusterOptions, PodInfo};
use weir_core::core::PeerNetwork;
use weir_env::clock::Clock;

use super::network::GrpcNetwork;
use super::security::Security;
use super::server::PeerServer;
use crate::config::Config;
use crate::listen;
use crate::pod;
use crate::server::Peering;

/// The address is taken; nobody is served yet.
pub(crate) struct Entrance {
    /// Where other pods find it.
    advertised: String,
    network: GrpcNetwork,
    links: LinkOptions,
    server: PeerServer,
}

impl Entrance {
    /// Reads certificates and token and takes the address; none if this pod is alone. What comes from other pods is
    /// brought by tasks of `tasks`, which end with their links.
    ///
    /// # Errors
    /// If a file cannot be read, or the address is in use.
    pub(crate) fn open(config: &Config, tasks: &TaskTracker) -> anyhow::Result<Option<Self>> {
        let Some(listen) = config.peer.listen else { return Ok(None) };
        let security = Security::read(&config.peer, config.auth.reload_interval);
        let security = security.context("protect the way to other pods")?;
        let listener =
            listen::bind(listen).with_context(|| format!("listen for other pods on grpc://{listen}"))?;
        let address = listener.local_addr()?;
        let advertised = config.peer.advertised(address);
        tracing::info!(url = %format!("grpc://{address}"), advertised, "listening for other pods");
        let network = GrpcNetwork::new(&security, tasks.clone());
        let peer_bytes = usize::try_from(config.limits.peer_bytes.0).unwrap_or(usize::MAX);
        let links = LinkOptions { peer_bytes, ..LinkOptions::default() };
        let server = PeerServer::new(listener, security);
        Ok(Some(Self { advertised, network, links, server }))
    }

    /// How this pod takes part in the cluster, and its way to the others.
    fn part_in_cluster(&self, config: &Config, clock: Clock) -> (ClusterOptions, PeerNetwork) {
        let info = PodInfo { peer: self.advertised.as_str().into(), ..pod::info(config, clock) };
        let network = PeerNetwork { network: Arc::new(self.network.clone()), links: self.links };
        (ClusterOptions::new(info), network)
    }

    /// The same, and what brings other pods here once there are links: tasks of `tasks`, until `stop`.
    pub(crate) fn peering(
        self,
        config: &Config,
        clock: Clock,
        (tasks, stop): (&TaskTracker, &CancellationToken),
    ) -> Peering {
        let (options, network) = self.part_in_cluster(config, clock);
        let (tasks, stop) = (tasks.clone(), stop.child_token());
        let attach = move |links: &Links| drop(tasks.spawn(self.serve(links.clone(), stop)));
        Peering { options, network, attach: Box::new(attach) }
    }

    /// Gives `links` what other pods dial, until `stop`.
    async fn serve(self, links: Links, stop: CancellationToken) {
        if let Err(error) = self.server.run(links, stop).await {
            tracing::error!(
                error = %format!("{error:#}"),
                "other pods cannot reach this one until it is started again"
            );
        }
    }
}
