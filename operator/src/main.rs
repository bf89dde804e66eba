//! The operator of Weir: turns `MessageQueue`, `Stream` and `Broker` objects into what runs in the cluster.

mod apply;
mod backoff;
mod broker;
mod brokers;
mod conditions;
mod context;
mod controllers;
mod crds;
mod error;
mod http;
mod keda;
mod leader;
mod metrics;
mod object;
mod probe;
mod run;
mod scaling;
mod tasks;
mod telemetry;

use clap::{Parser, Subcommand};

/// Kubernetes operator of Weir.
#[derive(Debug, Parser)]
#[command(name = "weir-operator", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the operator.
    Run(Box<run::Args>),
    /// Print the custom resource definitions, or write them to a folder.
    Crds(crds::Args),
    /// Apply Brokers, queues and streams from files.
    Apply(apply::Args),
    /// Ask an HTTP address until it answers well.
    Probe(probe::Args),
    /// Tell KEDA how much there is to consume, so that it scales consumers.
    Keda(keda::Args),
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    match Cli::parse().command {
        Command::Run(args) => run::run(*args).await,
        Command::Crds(args) => crds::run(&args),
        Command::Apply(args) => apply::run(&args).await,
        Command::Probe(args) => probe::run(&args).await,
        Command::Keda(args) => keda::run(args).await,
    }
}
