//! Weir alone, with its own load generator: what a backlog costs and how consumers share it, and what many topics
//! cost a queue.

use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;
use tokio::process::Command;

use super::peers::weir_setup;
use super::report::{Drain, Fill};
use super::{BROKER_CPU, Comparison};
use crate::load::json_of;
use crate::load::wire::QUEUE;

/// Consumers that work a backlog off, one number after the other.
const CONSUMERS: &str = "1,2,8,64";
/// The smaller backlog that memory is compared with: this part of the other.
const SMALL: u64 = 10;
/// Filling and draining a backlog four times takes no longer.
const BACKLOG_MAX: Duration = Duration::from_secs(400);
/// The topics that one queue is fed by.
const TOPICS: u32 = 10_000;

impl Comparison {
    /// Two backlogs, each on a broker of its own, so that their memory can be compared.
    pub(super) async fn backlog(&mut self) -> Result<()> {
        let messages = self.options.backlog;
        for (messages, consumers) in [(messages / SMALL, "1"), (messages, CONSUMERS)] {
            if self.is_over()? {
                return Ok(());
            }
            let outcome = self.worked_off(messages, consumers).await;
            self.results.add_backlog(messages, outcome)?;
        }
        Ok(())
    }

    async fn worked_off(&self, messages: u64, consumers: &str) -> Result<(Fill, Vec<Drain>)> {
        let setup = weir_setup(&self.weir, Some(BROKER_CPU))?;
        let broker = setup.start().await?;
        let messages = messages.to_string();
        let topic = format!("{QUEUE}/1/data");
        let options = ["-t", &topic, "-m", &messages, "-c", consumers, "-p", "16", "-s", "100"];
        let pid = broker.pid().context("a running broker")?;
        let report = self.bench("backlog", &options, broker.mqtt(), pid, BACKLOG_MAX).await?;
        broker.no_panic()?;
        let runs = report["runs"].as_array().context("runs in the report")?;
        let fill = Fill::read(runs.first().context("a fill in the report")?)?;
        let drains = runs.iter().skip(1).step_by(2).map(Drain::read).collect::<Result<Vec<_>>>()?;
        Ok((fill, drains))
    }

    /// Messages per second of one queue whose messages come on one topic, and on many, in turns.
    pub(super) async fn topics(&mut self) -> Result<()> {
        let setup = weir_setup(&self.weir, Some(BROKER_CPU))?;
        let broker = setup.start().await?;
        let duration = format!("{}ms", self.options.duration.as_millis());
        // The first two runs warm up.
        for repeat in 0..=2 * self.options.repeats.max(2) {
            for topics in [1, TOPICS] {
                if self.is_over()? {
                    return Ok(());
                }
                let (topic, number) = (format!("{QUEUE}/{{}}/data"), topics.to_string());
                let options = ["-t", &topic, "--topics", &number, "-p", "16", "-d", &duration, "-r", "max"];
                let pid = broker.pid().context("a running broker")?;
                let longest = self.options.duration + super::SLACK;
                let report = self.bench("queue", &options, broker.mqtt(), pid, longest).await;
                if repeat > 0 {
                    let rate = report.and_then(|report| Ok(Drain::read(&report["runs"][0])?.per_second));
                    self.results.add_topics(topics, rate)?;
                }
            }
        }
        broker.no_panic()
    }

    /// Runs a scenario of `weir bench` on the queue.
    async fn bench(
        &self,
        scenario: &str,
        options: &[&str],
        address: std::net::SocketAddr,
        pid: u32,
        longest: Duration,
    ) -> Result<Value> {
        let mut command = Command::new(&self.weir);
        command.args(["bench", scenario, QUEUE]).args(options);
        command.args(["--output", "json", "--deadline", "30s", "--broker-pid", &pid.to_string()]);
        command.args(["--url", &format!("mqtt://{address}")]);
        json_of(command, longest).await
    }
}
