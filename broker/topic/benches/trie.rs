//! The match trie with a million subscriptions: time per match, and memory per subscription.
//!
//! `cargo bench -p weir-topic --bench trie`. Before the benchmarks it prints, per mix of filters, the growth of
//! resident memory per subscription and the distribution of single matches over random topics; the clock's
//! own cost, some 25 ns, is in those.
#![expect(clippy::print_stdout, reason = "the figures are the purpose")]

use std::sync::LazyLock;
use std::time::Duration;

use divan::{AllocProfiler, Bencher, black_box};
use weir_env::clock::Clock;
use weir_env::seed::Seed;
use weir_topic::{MatchTrie, TopicFilter, TopicName};

#[global_allocator]
static ALLOCATOR: AllocProfiler = AllocProfiler::system();

type Trie = MatchTrie<u64, u64>;

const SUBSCRIPTIONS: u64 = 1_000_000;

/// What the subscriptions look like.
#[derive(Clone, Copy, Debug)]
enum Mix {
    /// One filter without wildcard per device.
    Exact,
    /// A million devices: half without wildcard, a quarter `.../#`, a quarter with two `+`.
    Mixed,
    /// A hundred thousand devices: two subscriptions without wildcard and eight with, all of which match.
    TenMatches,
}

const MIXES: [Mix; 3] = [Mix::Exact, Mix::Mixed, Mix::TenMatches];

impl Mix {
    const fn devices(self) -> u64 {
        match self {
            Self::Exact | Self::Mixed => SUBSCRIPTIONS,
            Self::TenMatches => SUBSCRIPTIONS / 10,
        }
    }

    /// The filter of subscription `n`.
    fn filter(self, n: u64) -> TopicFilter {
        let device = n % self.devices();
        let topic = topic(device);
        let fleet = fleet(device);
        let text = match (self, n / self.devices(), n % 4) {
            (Self::Exact, ..) | (Self::Mixed, _, 0 | 1) | (Self::TenMatches, 0 | 1, _) => topic,
            (Self::Mixed, _, 2) => format!("fleet/{fleet}/device/{device:09}/#"),
            (Self::Mixed, ..) => format!("fleet/+/device/{device:09}/+"),
            (_, 2, _) => format!("fleet/{fleet}/device/{device:09}/+"),
            (_, 3, _) => format!("fleet/{fleet}/device/{device:09}/#"),
            (_, 4, _) => format!("fleet/+/device/{device:09}/command"),
            (_, 5, _) => format!("fleet/+/device/{device:09}/#"),
            (_, 6, _) => format!("+/{fleet}/device/{device:09}/command"),
            (_, 7, _) => format!("fleet/{fleet}/+/{device:09}/command"),
            (_, 8, _) => format!("{topic}/#"),
            _ => format!("+/+/device/{device:09}/#"),
        };
        TopicFilter::parse(text).expect("valid filter")
    }

    fn build(self) -> Trie {
        let mut trie = Trie::new();
        for n in 0..SUBSCRIPTIONS {
            trie.insert(&self.filter(n), n, n);
        }
        assert_eq!(trie.len() as u64, SUBSCRIPTIONS);
        trie
    }

    fn trie(self) -> &'static Trie {
        static TRIES: [LazyLock<Trie>; 3] = [
            LazyLock::new(|| Mix::Exact.build()),
            LazyLock::new(|| Mix::Mixed.build()),
            LazyLock::new(|| Mix::TenMatches.build()),
        ];
        &TRIES[self as usize]
    }

    /// Random topics that somebody subscribed to.
    fn topics(self) -> Vec<TopicName> {
        let seed = Seed::fixed(1);
        let random = (0..200_000).map(|_| topic(seed.below(self.devices())));
        random.map(|text| TopicName::parse(text).expect("valid name")).collect()
    }
}

fn fleet(device: u64) -> u64 {
    device / 1_000
}

fn topic(device: u64) -> String {
    format!("fleet/{}/device/{device:09}/command", fleet(device))
}

fn matches(trie: &Trie, topic: &TopicName) -> u64 {
    let mut found = 0;
    trie.for_each_match(topic, |&key, _| {
        black_box(key);
        found += 1;
    });
    found
}

#[divan::bench(args = MIXES, sample_count = 20_000, sample_size = 1)]
fn match_among_a_million(bencher: Bencher<'_, '_>, mix: Mix) {
    let (trie, topics) = (mix.trie(), mix.topics());
    let mut next = topics.iter().cycle();
    bencher
        .with_inputs(move || next.next().expect("endless"))
        .bench_local_values(|topic| matches(trie, topic));
}

#[divan::bench(args = MIXES, sample_count = 20_000, sample_size = 1)]
fn remove_and_insert_among_a_million(bencher: Bencher<'_, '_>, mix: Mix) {
    let mut trie = mix.build();
    let seed = Seed::fixed(2);
    bencher
        .with_inputs(move || {
            let n = seed.below(SUBSCRIPTIONS);
            (mix.filter(n), n)
        })
        .bench_local_values(|(filter, n)| {
            let value = trie.remove(&filter, &n).expect("subscribed");
            trie.insert(&filter, n, value)
        });
}

#[divan::bench(args = MIXES, sample_count = 3, sample_size = 1)]
fn insert_a_million(mix: Mix) -> Trie {
    mix.build()
}

/// Resident memory of this process in bytes; zero where there is no `/proc`.
fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kibibytes = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok());
    kibibytes.unwrap_or(0) * 1024
}

/// Before anything else runs, so that no memory freed by it is used again.
fn report_memory(mix: Mix) {
    let before = resident_bytes();
    let trie = mix.trie();
    let bytes = resident_bytes().saturating_sub(before);
    println!("{mix:?}: {} B per subscription; {trie:?}", bytes / SUBSCRIPTIONS);
}

fn report_times(mix: Mix) {
    let (trie, clock, topics) = (mix.trie(), Clock::system(), mix.topics());
    let mut found = 0;
    let mut times: Vec<Duration> = (topics.iter())
        .map(|topic| {
            let start = clock.now();
            found += matches(trie, topic);
            clock.now() - start
        })
        .collect();
    times.sort_unstable();
    let percentile = |percent: usize| times[(times.len() - 1) * percent / 100];
    println!(
        "{mix:?}: {} matches per topic; p50 {:?}, p99 {:?}",
        found / topics.len() as u64,
        percentile(50),
        percentile(99),
    );
}

fn main() {
    MIXES.into_iter().for_each(report_memory);
    MIXES.into_iter().for_each(report_times);
    divan::main();
}
