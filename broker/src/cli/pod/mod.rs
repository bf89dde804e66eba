//! `weir pod`: the pods that work on one store, what each has to do, and having one drained.
//!
//! One file per command. Knows a broker from outside only: its admin API.

mod describe;
mod drain;
mod list;

use anyhow::{anyhow, bail};
use clap::Subcommand;
use weir_proto::admin::v1 as wire;

use super::admin::AdminArgs;

/// A sign of life this old is told: a pod that lives gives several a second.
const SILENT_MILLIS: u64 = 2_000;

#[derive(Clone, Debug, Subcommand)]
pub(super) enum PodCommand {
    /// List the pods that work on the store, and what each has to do
    List {
        #[command(flatten)]
        admin: AdminArgs,
    },
    /// Describe one pod
    Describe {
        /// Id of the pod, or how it begins; absent: the one that is asked
        id: Option<String>,
        #[command(flatten)]
        admin: AdminArgs,
    },
    /// Send the clients of a pod to the others and let no new ones in, until it is resumed
    Drain(drain::DrainArgs),
    /// Let a pod that drains, or is drained, take clients again
    Resume {
        /// Id of the pod, or how it begins; absent: the one that is asked
        id: Option<String>,
        #[command(flatten)]
        admin: AdminArgs,
    },
}

pub(super) async fn run(command: &PodCommand) -> anyhow::Result<()> {
    match command {
        PodCommand::List { admin } => list::run(admin).await,
        PodCommand::Describe { id, admin } => describe::run(admin, id.as_deref()).await,
        PodCommand::Drain(args) => drain::run(args).await,
        PodCommand::Resume { id, admin } => drain::resume(admin, id.as_deref()).await,
    }
}

async fn all(admin: &AdminArgs) -> anyhow::Result<Vec<wire::Pod>> {
    let mut client = admin.connect().await?;
    Ok(admin.answer(client.describe_pods(wire::DescribePodsRequest {})).await?.pods)
}

/// The pod whose id begins so, or the one that was asked.
async fn find(admin: &AdminArgs, id: Option<&str>) -> anyhow::Result<wire::Pod> {
    let pods = all(admin).await?;
    let is_meant = |pod: &wire::Pod| id.map_or(pod.is_self, |id| pod.id.starts_with(id));
    let mut meant = pods.into_iter().filter(is_meant);
    let id = id.unwrap_or_default();
    let first = meant.next().ok_or_else(|| anyhow!("there is no pod `{id}`; `weir pod list` shows them"))?;
    if meant.next().is_some() {
        bail!("`{id}` is how several ids begin; `weir pod list` shows them");
    }
    Ok(first)
}

fn state(pod: &wire::Pod) -> String {
    let state = match pod.state() {
        wire::PodState::Unspecified => "-",
        wire::PodState::Serving => "serving",
        wire::PodState::Draining => "draining",
        wire::PodState::Drained => "drained",
    };
    match pod.load_age_millis {
        age if age < SILENT_MILLIS => state.to_owned(),
        age => format!("{state}, silent for {} s", age / 1000),
    }
}
