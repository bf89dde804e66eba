//! The `weir` command: its subcommands and how they fail.
//!
//! Results go to standard output, everything else to standard error. Exit code 0 is success, 1 failure, 2 a command
//! line that is not understood. Except for `serve` and `store serve`, commands know a broker only from outside: over MQTT and the admin
//! API. `store` also opens the store itself.

mod admin;
mod args;
mod auth;
mod bench;
mod output;
mod pod;
mod publish;
mod queue;
mod serve;
mod spec;
mod store;
mod stream;
mod subscribe;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use weir_env::seed::Seed;

pub use args::BrokerArgs;

/// The command line of `weir`.
#[derive(Debug, Parser)]
#[command(name = "weir", version, about = "MQTT broker, durable queue and replayable stream store")]
#[command(disable_help_subcommand = true, infer_subcommands = false)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a broker
    Serve(Box<serve::ServeArgs>),
    /// Publish messages
    Pub(publish::PublishArgs),
    /// Subscribe and print messages, also of queues ($queue/NAME) and streams ($stream/NAME)
    Sub(subscribe::SubscribeArgs),
    /// Look at queues and their messages, purge, pause and redrive them
    #[command(subcommand)]
    Queue(queue::QueueCommand),
    /// Look at streams and read them, make, change and trim them
    #[command(subcommand)]
    Stream(stream::StreamCommand),
    /// Look at the pods that work on one store, and send the clients of one to the others
    #[command(subcommand)]
    Pod(pod::PodCommand),
    /// Hash passwords, check access rules and explain their decisions
    #[command(subcommand)]
    Auth(auth::AuthCommand),
    /// Check, back up and restore what a broker keeps, and serve it to several
    #[command(subcommand)]
    Store(store::StoreCommand),
    /// Measure throughput and latency of a broker
    #[command(subcommand)]
    Bench(bench::Scenario),
}

/// Runs the command that the process was started with.
#[must_use]
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    Seed::from_entropy().install_for_hashing();
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        // The reader of a pipe has what it wanted.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("weir: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<()> {
    // Servers and load generators want all cores, the others one thread.
    let mut runtime = match cli.command {
        Command::Serve(_) => tokio::runtime::Builder::new_multi_thread(),
        Command::Store(ref command) if command.is_server() => tokio::runtime::Builder::new_multi_thread(),
        _ => tokio::runtime::Builder::new_current_thread(),
    };
    let runtime = runtime.enable_all().build()?;
    match cli.command {
        Command::Serve(args) => runtime.block_on(serve::run(&args)),
        Command::Pub(args) => runtime.block_on(publish::run(&args)),
        Command::Sub(args) => runtime.block_on(subscribe::run(&args)),
        Command::Queue(command) => runtime.block_on(queue::run(&command)),
        Command::Stream(command) => runtime.block_on(stream::run(&command)),
        Command::Pod(command) => runtime.block_on(pod::run(&command)),
        Command::Auth(command) => auth::run(&command),
        Command::Store(command) => runtime.block_on(store::run(&command)),
        Command::Bench(scenario) => bench::run(&scenario),
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<output::WriteError>())
        .any(|error| error.0.kind() == std::io::ErrorKind::BrokenPipe)
}
