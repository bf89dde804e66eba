//! `weir pod describe`: one pod with all that is known of it.

use weir_proto::admin::v1 as wire;

use super::list::{pod_json, whole};
use super::{find, state};
use crate::cli::admin::AdminArgs;
use crate::cli::output::{Format, Output, Table, bytes, harmless, millis, rate, time};

pub(super) async fn run(admin: &AdminArgs, id: Option<&str>) -> anyhow::Result<()> {
    let pod = find(admin, id).await?;
    let mut output = Output::stdout();
    match admin.output {
        Format::Json => output.json(&pod_json(&pod))?,
        Format::Text => output.text(&description(&pod))?,
    }
    Ok(())
}

pub(super) fn description(pod: &wire::Pod) -> String {
    let load = pod.load.unwrap_or_default();
    let or_dash = |text: &str| if text.is_empty() { "-".to_owned() } else { harmless(text) };
    let mut table = Table::new(&["POD", &pod.id]);
    let mut row = |name: &str, value: String| table.row(vec![name.to_owned(), value]);
    row("state", state(pod));
    row("version", harmless(&pod.version));
    row("zone", or_dash(&pod.zone));
    row("started", time(pod.started_micros));
    row("for other pods", or_dash(&pod.peer_address));
    row("admin API", or_dash(&pod.admin_address));
    row("server reference", or_dash(&pod.server_reference));
    row("sign of life", format!("{} ago", millis(pod.load_age_millis)));
    row("connections", load.connections.to_string());
    row("subscriptions", load.subscriptions.to_string());
    row("virtual shards", load.shards.to_string());
    row("sent elsewhere", load.shed.to_string());
    row("connects/s", rate(load.connect_rate));
    row("published/s", rate(load.publish_rate));
    row("delivered/s", rate(load.deliver_rate));
    row("appended/s", rate(load.append_rate));
    row("bytes in/s", bytes(whole(load.bytes_in_rate)));
    row("bytes out/s", bytes(whole(load.bytes_out_rate)));
    row("CPU", format!("{}m", whole(load.cpu_millis)));
    table.to_string()
}
