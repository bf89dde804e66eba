//! `weir queue pause` and `weir queue resume`.

use weir_proto::admin::v1 as wire;

use super::list::queue_json;
use crate::cli::admin::AdminArgs;
use crate::cli::output::{Format, Output, harmless};

pub(super) async fn run(admin: &AdminArgs, name: &str, pause: bool) -> anyhow::Result<()> {
    let mut client = admin.connect().await?;
    let name = name.to_owned();
    let queue = if pause {
        admin.answer(client.pause_queue(wire::PauseQueueRequest { name })).await?.queue
    } else {
        admin.answer(client.resume_queue(wire::ResumeQueueRequest { name })).await?.queue
    };
    let queue = queue.unwrap_or_default();
    let mut output = Output::stdout();
    match admin.output {
        Format::Json => output.json(&queue_json(&queue))?,
        Format::Text => output.text(&said(&queue))?,
    }
    Ok(())
}

fn said(queue: &wire::Queue) -> String {
    let name = harmless(&queue.name);
    match (queue.paused, queue.in_flight) {
        (true, 0) => format!("{name} is paused\n"),
        (true, n) => {
            format!("{name} is paused; consumers still hold {n} messages, which they may acknowledge\n")
        }
        (false, _) => format!("{name} delivers\n"),
    }
}
