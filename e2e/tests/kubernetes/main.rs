//! Weir on the real components of Kubernetes, as its users see it: by `kubectl` and by MQTT clients.
//!
//! Each test has a cluster of its own in a sandbox. They run when the control plane was built
//! (`cargo run -p weir-e2e --bin weir-kubernetes -- build`), and say on the standard error whether they do.

mod broker;
mod certificates;
mod chart;
mod definitions;
mod faults;
mod operator;
mod pods;
mod scaling;

use std::time::Duration;

use anyhow::Result;
use weir_e2e::kubernetes::{Cluster, Programs, sandbox};

/// How long a test of the usual kind may take.
const LIMIT: Duration = Duration::from_mins(5);

/// Runs `scenario` on a cluster of its own that knows Weir's resources. If it fails, says what the cluster is like.
fn on_kubernetes(test: &str, scenario: impl AsyncFnOnce(&mut Cluster) -> Result<()>) -> Result<()> {
    on_bare_kubernetes(test, async |cluster| {
        cluster.define().await?;
        scenario(cluster).await
    })
}

/// The same on a cluster that knows nothing of Weir.
fn on_bare_kubernetes(test: &str, scenario: impl AsyncFnOnce(&mut Cluster) -> Result<()>) -> Result<()> {
    sandbox::run(test, LIMIT, async |programs: Programs| {
        let mut cluster = Cluster::start(&test.replace("::", "-"), programs).await?;
        let result = scenario(&mut cluster).await;
        if result.is_err() {
            eprintln!("{}", cluster.state().await);
        }
        result
    })
}
