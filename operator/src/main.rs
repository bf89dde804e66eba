//! The operator of Weir: turns `MessageQueue`, `Stream` and `Broker` objects into what runs in the cluster.

mod crds;

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
    /// Print the custom resource definitions, or write them to a folder.
    Crds(crds::Args),
}

fn main() -> anyhow::Result<()> {
    match Cli::parse().command {
        Command::Crds(args) => crds::run(&args),
    }
}
