//! `weir pod drain` and `weir pod resume`.

use std::time::Duration;

use clap::Args;
use weir_proto::admin::v1 as wire;

use super::find;
use super::list::pod_json;
use crate::cli::admin::AdminArgs;
use crate::cli::output::{Format, Output, harmless};
use crate::config::parse_duration;

#[derive(Clone, Debug, Args)]
pub(in crate::cli) struct DrainArgs {
    /// Id of the pod, or how it begins; absent: the one that is asked
    id: Option<String>,
    /// Clients sent away in a second; absent: as the pod is configured
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    rate: Option<u32>,
    /// Time after which all that are left are sent away at once, as in 30s; absent: as the pod is configured
    #[arg(long, value_name = "DURATION", value_parser = grace)]
    grace: Option<Duration>,
    #[command(flatten)]
    admin: AdminArgs,
}

fn grace(text: &str) -> Result<Duration, String> {
    let range = Duration::from_millis(1)..=Duration::from_hours(24);
    let allowed = "a duration (ms, s, m, h) up to 24h";
    parse_duration(text).filter(|it| range.contains(it)).ok_or_else(|| format!("allowed: {allowed}"))
}

pub(super) async fn run(args: &DrainArgs) -> anyhow::Result<()> {
    let pod = find(&args.admin, args.id.as_deref()).await?;
    let mut client = args.admin.connect().await?;
    let request = wire::DrainPodRequest {
        id: pod.id,
        rate: args.rate.unwrap_or_default(),
        grace_millis: args.grace.map_or(0, |it| u64::try_from(it.as_millis()).unwrap_or(u64::MAX)),
    };
    let pod = args.admin.answer(client.drain_pod(request)).await?.pod.unwrap_or_default();
    let clients = pod.load.unwrap_or_default().connections;
    let said = format!("{} drains; it has {clients} clients\n", harmless(&pod.id));
    print(&args.admin, &pod, &said)
}

pub(super) async fn resume(admin: &AdminArgs, id: Option<&str>) -> anyhow::Result<()> {
    let pod = find(admin, id).await?;
    let mut client = admin.connect().await?;
    let request = wire::ResumePodRequest { id: pod.id };
    let pod = admin.answer(client.resume_pod(request)).await?.pod.unwrap_or_default();
    print(admin, &pod, &format!("{} takes clients again\n", harmless(&pod.id)))
}

fn print(admin: &AdminArgs, pod: &wire::Pod, said: &str) -> anyhow::Result<()> {
    let mut output = Output::stdout();
    match admin.output {
        Format::Json => output.json(&pod_json(pod))?,
        Format::Text => output.text(said)?,
    }
    Ok(())
}
