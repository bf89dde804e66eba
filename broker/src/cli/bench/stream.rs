//! A stream: filled, then replayed from its beginning and from its middle by any number of readers, read as it grows,
//! and appended to while others catch up.

use std::num::{NonZeroU16, NonZeroU32};

use anyhow::{Context, ensure};
use clap::{Args, ValueEnum};
use weir_codec::{ProtocolVersion, QoS};
use weir_topic::TopicName;

use super::plan::{From, Plan, PublisherPlan, Rate, SubscriberPlan};
use super::{CommonArgs, DURATION_MAX, LoadArgs, SIZE_MAX, SIZE_MIN, args, connections, numbered, rate};

/// Connections of a part at most.
const READERS_MAX: u64 = 10_000;

#[derive(Clone, Debug, Args)]
pub(in super::super) struct StreamArgs {
    /// Name of the stream; {} stands for the number of the stream
    stream: String,
    /// A topic that the stream's filter matches; {} stands for the number of the publisher, or of the stream
    #[arg(short, long)]
    topic: String,
    /// What to do, in the order given
    #[arg(
        long,
        value_enum,
        value_name = "PART",
        value_delimiter = ',',
        default_value = "fill,replay,middle"
    )]
    parts: Vec<Part>,
    /// Streams, each with its topic: names and topic need {}. Publishers publish to them in turn
    #[arg(long, value_name = "N", default_value = "1")]
    streams: NonZeroU32,
    /// Messages to fill with, over all streams
    #[arg(short, long, value_name = "N", default_value_t = 100_000,
        value_parser = clap::value_parser!(u64).range(2..=100_000_000))]
    messages: u64,
    /// Publishers, at QoS 1
    #[arg(short, long, value_name = "N", default_value_t = 4, value_parser = connections())]
    publishers: u32,
    /// Readers of each stream; several numbers, with commas between them, read once for each
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "1", value_parser = readers())]
    readers: Vec<u32>,
    /// Quality of service of the readers
    #[arg(short, long, default_value = "0", value_parser = args::qos)]
    qos: QoS,
    /// Messages per second over all publishers, where the parts tail and beside publish
    #[arg(short, long, default_value = "1000", value_parser = rate)]
    rate: Rate,
    /// Bytes of payload
    #[arg(short, long, value_name = "BYTES", default_value_t = 100,
        value_parser = clap::value_parser!(u32).range(i64::from(SIZE_MIN)..=i64::from(SIZE_MAX)))]
    size: u32,
    #[command(flatten)]
    pub(super) common: CommonArgs,
}

/// What can be done with a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Publish the messages, as fast as can be
    Fill,
    /// Read all of them, from earliest
    Replay,
    /// Read the second half, from the time at which it was published; needs fill
    Middle,
    /// Publish at the rate, to readers that have read everything before
    Tail,
    /// Publish at the rate while readers read from earliest
    Beside,
}

impl StreamArgs {
    pub(super) fn plans(&self) -> anyhow::Result<Vec<Plan>> {
        ensure!(self.common.broker.version == ProtocolVersion::V5, "stream needs MQTT 5 for its readers");
        let most = self.readers.iter().copied().max().unwrap_or(0);
        ensure!(
            u64::from(most) * u64::from(self.streams.get()) <= READERS_MAX,
            "{most} readers of each of {} streams are more than {READERS_MAX}",
            self.streams
        );
        ensure!(
            self.streams.get() == 1 || (self.stream.contains("{}") && self.topic.contains("{}")),
            "several streams need {{}} in the name and in the topic"
        );
        let filled = self.parts.contains(&Part::Fill);
        ensure!(
            filled || !self.parts.contains(&Part::Middle),
            "the part middle needs the part fill before it"
        );
        let mut plans = Vec::new();
        for part in &self.parts {
            match part {
                Part::Fill => plans.extend(self.fill()?),
                Part::Replay => plans.extend(self.replays(From::Earliest, self.messages, !filled)),
                Part::Middle => {
                    let second = self.messages - self.messages / 2;
                    plans.extend(self.replays(From::Middle, second, false));
                }
                Part::Tail => plans.extend(self.beside(From::Latest, 0)?),
                Part::Beside => {
                    plans.extend(self.beside(From::Earliest, if filled { self.messages } else { 0 })?);
                }
            }
        }
        Ok(plans)
    }

    /// Two halves: the time between them is the middle.
    fn fill(&self) -> anyhow::Result<Vec<Plan>> {
        let load = LoadArgs { rate: Rate::Max, size: self.size, window: NonZeroU16::MAX };
        let first = self.messages / 2;
        let mut plans = Vec::new();
        for (half, messages) in [("first", first), ("second", self.messages - first)] {
            let mut plan = load.fill(&self.stream, messages, self.publishers, &self.topic)?;
            plan.title.push_str(&format!(", {half} half"));
            plan.is_middle = half == "second";
            self.share_topics(&mut plan.publishers)?;
            plans.push(plan);
        }
        Ok(plans)
    }

    /// Gives each publisher its share of the topics, if there are several streams.
    fn share_topics(&self, publishers: &mut [PublisherPlan]) -> anyhow::Result<()> {
        let streams = self.streams.get();
        if streams == 1 {
            return Ok(());
        }
        let topic = numbered(&self.topic);
        TopicName::parse(topic(0)).with_context(|| format!("topic `{}`", topic(0)))?;
        let all = publishers.len();
        for (publisher, n) in publishers.iter_mut().zip(0..) {
            // With fewer streams than publishers, some share one.
            publisher.topics = (n % streams..streams).step_by(all).map(&topic).collect();
        }
        Ok(())
    }

    fn readers(&self, readers: u32, from: From) -> Vec<SubscriberPlan> {
        let name = numbered(&self.stream);
        let reader = |n: u32| SubscriberPlan {
            from: Some(from),
            at_start: from != From::Latest,
            ..SubscriberPlan::new(&format!("$stream/{}", name(n)), self.qos)
        };
        (0..self.streams.get()).flat_map(|n| std::iter::repeat_n(reader(n), readers as usize)).collect()
    }

    /// A replay for each number of readers. They end when they are done, whatever the duration.
    fn replays(&self, from: From, messages: u64, any_run: bool) -> Vec<Plan> {
        let of = |&readers: &u32| Plan {
            title: format!("replay {}: {readers} readers, QoS {}, {from}", self.stream, self.qos.as_u8()),
            subscribers: self.readers(readers, from),
            copies: u64::from(readers),
            stored: messages,
            any_run,
            duration: DURATION_MAX,
            ends_in_silence: true,
            ..Plan::default()
        };
        self.readers.iter().filter(|readers| **readers > 0).map(of).collect()
    }

    /// Publishing at the rate beside each number of readers, of which none is one.
    fn beside(&self, from: From, stored: u64) -> anyhow::Result<Vec<Plan>> {
        let load = LoadArgs { rate: self.rate, size: self.size, window: NonZeroU16::MAX };
        let mut plans = Vec::new();
        for &readers in &self.readers {
            let mut publishers = load.publishers(self.publishers, QoS::AtLeastOnce, numbered(&self.topic))?;
            self.share_topics(&mut publishers)?;
            plans.push(Plan {
                title: format!(
                    "append {}: {} publishers, {}, {readers} readers, {from}",
                    self.stream,
                    self.publishers,
                    load.describe(QoS::AtLeastOnce)
                ),
                publishers,
                subscribers: self.readers(readers, from),
                copies: u64::from(readers),
                stored: if readers > 0 { stored } else { 0 },
                duration: self.common.duration,
                ..Plan::default()
            });
        }
        Ok(plans)
    }
}

fn readers() -> clap::builder::RangedI64ValueParser<u32> {
    clap::value_parser!(u32).range(0..=1_000)
}

#[cfg(test)]
mod tests {
    use clap::{Args as _, FromArgMatches as _};

    use super::*;

    fn plans(arguments: &[&str]) -> anyhow::Result<Vec<Plan>> {
        let command = StreamArgs::augment_args(clap::Command::new("stream"));
        let matches = command.try_get_matches_from([&["stream"], arguments].concat())?;
        StreamArgs::from_arg_matches(&matches)?.plans()
    }

    #[test]
    fn parts_become_plans_for_each_number_of_readers() {
        let parts = "fill,replay,middle,tail,beside";
        let plans = plans(&["s", "-t", "a/{}", "-m", "101", "--readers", "0,2", "--parts", parts]).unwrap();
        let all: Vec<_> = plans
            .iter()
            .map(|plan| (plan.publishers.len(), plan.subscribers.len(), plan.copies, plan.stored))
            .collect();
        let (none, two) = (|| (4, 0, 0, 0), |stored| (4, 2, 2, stored));
        let fill = (4, 0, 0, 0);
        assert_eq!(all, [fill, fill, (0, 2, 2, 101), (0, 2, 2, 51), none(), two(0), none(), two(101)]);
        let counts = |plan: &Plan| plan.publishers.iter().map(|publisher| publisher.count).sum::<u64>();
        assert_eq!((counts(&plans[0]), counts(&plans[1])), (50, 51));
        assert_eq!([plans[0].is_middle, plans[1].is_middle], [false, true]);
        let from = |plan: &Plan| plan.subscribers[0].from.map(|from| (from, plan.subscribers[0].at_start));
        let froms = [2, 3, 5, 7].map(|n| from(&plans[n]));
        let expected =
            [(From::Earliest, true), (From::Middle, true), (From::Latest, false), (From::Earliest, true)];
        assert_eq!(froms, expected.map(Some));
    }

    #[test]
    fn several_streams_have_their_own_topics_and_readers() {
        let plans =
            plans(&["s-{}", "-t", "a/{}", "--streams", "5", "-p", "2", "--parts", "fill,tail"]).unwrap();
        let topics: Vec<_> = plans[0].publishers.iter().map(|publisher| publisher.topics.clone()).collect();
        assert_eq!(topics, [vec!["a/0", "a/2", "a/4"], vec!["a/1", "a/3"]]);
        let read: Vec<_> = plans[2].subscribers.iter().map(|reader| reader.filter.as_str()).collect();
        assert_eq!(read, ["$stream/s-0", "$stream/s-1", "$stream/s-2", "$stream/s-3", "$stream/s-4"]);
        assert_eq!(plans[2].copies, 1);
    }

    #[test]
    fn what_cannot_be_done_is_refused() {
        let refused = |arguments: &[&str]| plans(arguments).unwrap_err().to_string();
        assert!(refused(&["s", "-t", "a", "--parts", "middle"]).contains("needs the part fill"));
        assert!(refused(&["s", "-t", "a", "--streams", "2"]).contains("need {}"));
        let many = ["s{}", "-t", "{}", "--streams", "1000", "--readers", "11"];
        assert!(refused(&many).contains("more than 10000"));
    }
}
