//! A backlog: a queue is filled while nobody consumes, then worked off, once for each number of consumers.

use std::num::NonZeroU16;

use clap::Args;
use weir_codec::QoS;

use super::plan::{Plan, Rate, SubscriberPlan};
use super::{CommonArgs, DURATION_MAX, LoadArgs, SIZE_MAX, SIZE_MIN, connections};

#[derive(Clone, Debug, Args)]
pub(in super::super) struct BacklogArgs {
    /// Name of the queue
    queue: String,
    /// A topic that the queue's filter matches; {} stands for the number of the publisher
    #[arg(short, long)]
    topic: String,
    /// Messages of the backlog
    #[arg(short, long, value_name = "N", default_value_t = 1_000_000,
        value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    messages: u64,
    /// Publishers that fill the queue, at QoS 1
    #[arg(short, long, value_name = "N", default_value_t = 4, value_parser = connections())]
    publishers: u32,
    /// Consumers; several numbers, with commas between them, fill and work off once for each
    #[arg(short = 'c', long, value_name = "N", value_delimiter = ',', default_value = "1,2,8,64",
        value_parser = connections())]
    consumers: Vec<u32>,
    /// Bytes of payload
    #[arg(short, long, value_name = "BYTES", default_value_t = 100,
        value_parser = clap::value_parser!(u32).range(i64::from(SIZE_MIN)..=i64::from(SIZE_MAX)))]
    size: u32,
    #[command(flatten)]
    pub(super) common: CommonArgs,
}

impl BacklogArgs {
    /// A filling and a working off for each number of consumers. They end when they are done, whatever the duration.
    pub(super) fn plans(&self) -> anyhow::Result<Vec<Plan>> {
        let load = LoadArgs { rate: Rate::Max, size: self.size, window: NonZeroU16::MAX };
        let mut plans = Vec::new();
        for &consumers in &self.consumers {
            plans.push(load.fill(&self.queue, self.messages, self.publishers, &self.topic)?);
            let consumer = SubscriberPlan {
                at_start: true,
                ..SubscriberPlan::new(&format!("$queue/{}", self.queue), QoS::AtLeastOnce)
            };
            plans.push(Plan {
                title: format!("work off {}: {consumers} consumers", self.queue),
                subscribers: vec![consumer; consumers as usize],
                copies: 1,
                stored: self.messages,
                duration: DURATION_MAX,
                ends_in_silence: true,
                ..Plan::default()
            });
        }
        Ok(plans)
    }
}
