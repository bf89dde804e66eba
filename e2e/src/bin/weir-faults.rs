//! `weir-faults`: kills, stops, terminates and cuts off pods of a cluster under load, and checks what the clients saw.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use clap::{Parser, ValueEnum};
use weir_e2e::pods::network::{self, Way};
use weir_e2e::pods::{self, Fault, Library, Options, Store};

/// Strikes pods of a cluster on this machine under load, and checks that no promise to a client is broken
#[derive(Debug, Parser)]
#[command(name = "weir-faults")]
struct Arguments {
    /// What is done to the pods, one after the other
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        default_value = "kill,short-pause,pause,long-pause,terminate,cut,cut-in,cut-out"
    )]
    faults: Vec<FaultName>,
    /// How often all of it
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u16).range(1..=10_000))]
    rounds: u16,
    /// Pods; one is alone, and knows nothing of others
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=16))]
    pods: u16,
    /// Where they keep their data: served (a `weir store serve` is started), fdb (a FoundationDB server is started) or
    /// fdb:FILE (the FoundationDB cluster of this file, in a prefix of their own)
    #[arg(long, value_parser = store, default_value = "served")]
    store: Store,
    /// Milliseconds from one publish of a publisher to its next
    #[arg(long, value_name = "MILLIS", default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    pace: u64,
    /// Shards of which is measured how long they are without service, by publishers at each pod
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u8).range(..=64))]
    shards: u8,
    /// Whose clients take part: own (always there), and those by libraries that others wrote, in MQTT 3.1.1 and 5
    #[arg(long, value_enum, value_delimiter = ',', default_value = "own")]
    clients: Vec<ClientName>,
    /// A folder for the logs of all pods
    #[arg(long, value_name = "DIR")]
    logs: Option<PathBuf>,
    /// It runs in a network namespace of its own
    #[arg(long, hide = true)]
    inside: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum ClientName {
    /// Weir's own wire code, MQTT 5
    Own,
    /// rumqttc
    Rumqttc,
    /// Eclipse paho for Python; installed if it is not there
    Paho,
    /// MQTT.js; installed if it is not there
    #[value(name = "mqtt.js")]
    NpmMqtt,
}

impl ClientName {
    fn library(self) -> Option<Library> {
        match self {
            Self::Own => None,
            Self::Rumqttc => Some(Library::Rumqttc),
            Self::Paho => Some(Library::Paho),
            Self::NpmMqtt => Some(Library::NpmMqtt),
        }
    }
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum FaultName {
    /// kill -9
    Kill,
    /// SIGSTOP for 0.5 TTL
    ShortPause,
    /// SIGSTOP for 1.5 TTL
    Pause,
    /// SIGSTOP for 3 TTL
    LongPause,
    /// SIGTERM
    Terminate,
    /// Cut off from the network for 1.5 TTL, both ways; needs root
    Cut,
    /// Nothing reaches it for 1.5 TTL; needs root
    CutIn,
    /// Nothing that it sends arrives for 1.5 TTL; needs root
    CutOut,
    /// kill -9 of the store's server, which is started again
    StoreRestart,
}

impl From<FaultName> for Fault {
    fn from(name: FaultName) -> Self {
        match name {
            FaultName::Kill => Self::Kill,
            FaultName::ShortPause => Self::ShortPause,
            FaultName::Pause => Self::Pause,
            FaultName::LongPause => Self::LongPause,
            FaultName::Terminate => Self::Terminate,
            FaultName::Cut => Self::Cut(Way::Both),
            FaultName::CutIn => Self::Cut(Way::In),
            FaultName::CutOut => Self::Cut(Way::Out),
            FaultName::StoreRestart => Self::StoreRestart,
        }
    }
}

/// The store that `text` names.
fn store(text: &str) -> Result<Store> {
    Ok(match text.split_once(':') {
        None if text == "served" => Store::Served,
        None if text == "fdb" => Store::FoundationDb,
        Some(("fdb", file)) if !file.is_empty() => Store::FoundationDbAt(file.into()),
        _ => bail!("one of served, fdb and fdb:FILE"),
    })
}

#[tokio::main]
async fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    let mut faults: Vec<Fault> = arguments.faults.into_iter().map(Fault::from).collect();
    let libraries: Vec<Library> = arguments.clients.into_iter().filter_map(ClientName::library).collect();
    for library in &libraries {
        // Here, where there is a network to install it from.
        library.prepare().await?;
    }
    let is_cut = |fault: &Fault| matches!(fault, Fault::Cut(_));
    if !arguments.inside && faults.iter().any(is_cut) {
        let Some(why) = network::refusal().await else {
            let again = std::env::args_os().skip(1).chain(["--inside".into()]);
            let status = network::run_inside(again).await?;
            return Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        };
        writeln!(std::io::stdout(), "cut off from the network: not run: {why}")?;
        faults.retain(|fault| !is_cut(fault));
        ensure!(!faults.is_empty(), "no fault is left");
    }
    let report = pods::run(&Options {
        pods: arguments.pods.into(),
        store: arguments.store,
        shards: arguments.shards.into(),
        libraries,
        faults,
        rounds: arguments.rounds.into(),
        pace: Duration::from_millis(arguments.pace),
        logs: arguments.logs,
    })
    .await?;
    writeln!(std::io::stdout(), "{report}")?;
    report.check()?;
    Ok(ExitCode::SUCCESS)
}
