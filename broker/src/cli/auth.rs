//! `weir auth`: hashes passwords, checks files of users and rules, and says why a client may or may not do something.

use std::io::{IsTerminal, Read};
use std::net::IpAddr;
use std::path::PathBuf;

use anyhow::{Context, anyhow, bail};
use clap::{Args, Subcommand};
use weir_auth::{Client, Explanation, Request, Rules};
use weir_topic::{Subscription, TopicFilter, TopicName};

use super::output::Output;
use crate::config::{self, Config, Flags, Sources};

/// Longest password, in bytes: MQTT has no room for more.
const PASSWORD_BYTES_MAX: u64 = 65_535;

#[derive(Clone, Debug, Subcommand)]
pub(super) enum AuthCommand {
    /// Hash a password, read from standard input, for the file of users
    Hash {
        /// Print a whole line for this user
        #[arg(short, long, value_name = "NAME")]
        user: Option<String>,
    },
    /// Check the files that say who may do what
    Check {
        #[command(flatten)]
        files: Files,
    },
    /// Say why a client may or may not do something, by the rules in the files
    Explain(ExplainArgs),
}

/// Where the rules are.
#[derive(Clone, Debug, Args)]
pub(super) struct Files {
    /// Configuration file (TOML) [env: WEIR_CONFIG]
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Access rules (TOML), instead of those that the configuration names
    #[arg(long, value_name = "FILE")]
    rules_file: Option<PathBuf>,
}

#[derive(Clone, Debug, Args)]
pub(super) struct ExplainArgs {
    #[command(flatten)]
    files: Files,
    /// User name; absent: an anonymous client
    #[arg(short, long, value_name = "NAME")]
    user: Option<String>,
    /// Client id
    #[arg(short = 'i', long, value_name = "ID", default_value = "")]
    client_id: String,
    /// Address the client comes from
    #[arg(short, long, value_name = "IP")]
    address: Option<IpAddr>,
    /// The client shows a certificate
    #[arg(long)]
    certificate: bool,
    #[command(subcommand)]
    request: RequestArgs,
}

#[derive(Clone, Debug, Subcommand)]
enum RequestArgs {
    /// Connect with the client id, and so have the session of that id
    Connect,
    /// Publish to a topic
    Publish {
        /// Where
        topic: String,
        /// As a retained message
        #[arg(long)]
        retain: bool,
        /// As a will
        #[arg(long)]
        will: bool,
    },
    /// Subscribe to a topic filter, $share/GROUP/FILTER, $queue/NAME or $stream/NAME
    Subscribe {
        /// As in SUBSCRIBE
        filter: String,
    },
    /// Consume a queue or stream
    Consume {
        /// Its name
        name: String,
    },
    /// Create a queue or stream by subscribing to it
    Create {
        /// Its name
        name: String,
        /// What it takes
        filter: String,
    },
}

pub(super) fn run(command: &AuthCommand) -> anyhow::Result<()> {
    let mut output = Output::stdout();
    match command {
        AuthCommand::Hash { user } => output.text(&format!("{}\n", hash(user.as_deref())?))?,
        AuthCommand::Check { files } => {
            let lines = crate::auth::check(&files.load()?.auth)?;
            if lines.is_empty() {
                bail!("nothing says who may do what: set auth.usersFile, auth.rulesFile or others of [auth]");
            }
            output.text(&(lines.join("\n") + "\n"))?;
        }
        AuthCommand::Explain(args) => output.text(&explain(args)?)?,
    }
    Ok(())
}

fn hash(user: Option<&str>) -> anyhow::Result<String> {
    if let Some(name) = user
        && (name.is_empty()
            || name.starts_with('#')
            || name.contains(char::is_control)
            || name.trim() != name)
    {
        bail!("`{name}` is not allowed for --user; allowed: a name without a `#` or blank at its ends");
    }
    if std::io::stdin().is_terminal() {
        eprintln!("password, which will be seen as you type; Enter and Ctrl-D end it:");
    }
    let mut password = String::new();
    std::io::stdin()
        .take(PASSWORD_BYTES_MAX + 2)
        .read_to_string(&mut password)
        .context("read the password")?;
    let password = password.strip_suffix('\n').unwrap_or(&password);
    let password = password.strip_suffix('\r').unwrap_or(password);
    if password.is_empty() || password.contains('\n') {
        bail!("standard input must hold one line, the password");
    }
    if u64::try_from(password.len()).is_ok_and(|length| length > PASSWORD_BYTES_MAX) {
        bail!("the password is longer than {PASSWORD_BYTES_MAX} bytes");
    }
    let hash = weir_auth::hash_password(password.as_bytes()).map_err(anyhow::Error::msg)?;
    Ok(user.map_or_else(|| hash.clone(), |user| format!("{user}:{hash}")))
}

impl Files {
    fn load(&self) -> anyhow::Result<Config> {
        let env = |name: &str| std::env::var(name).ok();
        let named = env("WEIR_CONFIG").filter(|path| !path.is_empty()).map(PathBuf::from);
        let file = self.config.clone().or(named);
        let mut config =
            config::load(&Sources { file: file.as_deref(), env: &env, flags: &Flags::default() })?;
        if let Some(path) = &self.rules_file {
            config.auth.rules_file = Some(path.clone());
            config.auth.rules_in = None;
        }
        Ok(config)
    }
}

fn explain(args: &ExplainArgs) -> anyhow::Result<String> {
    let config = args.files.load()?;
    let Some(rules) = crate::auth::load_rules(&config.auth)? else {
        return Ok("allowed: there are no rules, so whoever comes in may do everything\n".to_owned());
    };
    let client = Client {
        user: args.user.as_deref(),
        client_id: &args.client_id,
        address: args.address,
        certificate: args.certificate,
    };
    match &args.request {
        RequestArgs::Connect => Ok(rules.explain(&client, &Request::Connect).to_string()),
        RequestArgs::Publish { topic, retain, will } => {
            let topic = TopicName::parse(topic.clone()).map_err(|error| anyhow!("`{topic}`: {error}"))?;
            if weir_topic::is_publish_forbidden(&topic) {
                return Ok(format!("denied: nobody publishes to `{topic}`, whatever rules say\n"));
            }
            Ok(rules
                .explain(&client, &Request::Publish { topic: &topic, retain: *retain, will: *will })
                .to_string())
        }
        RequestArgs::Subscribe { filter } => subscribe(&rules, &client, filter),
        RequestArgs::Consume { name } => Ok(rules.explain(&client, &Request::Consume { name }).to_string()),
        RequestArgs::Create { name, filter } => {
            let filter =
                TopicFilter::parse(filter.clone()).map_err(|error| anyhow!("`{filter}`: {error}"))?;
            Ok(rules.explain(&client, &Request::Create { name, filter: &filter }).to_string())
        }
    }
}

/// A subscription may ask two things: the name of a queue or stream, and what it takes.
fn subscribe(rules: &Rules, client: &Client<'_>, text: &str) -> anyhow::Result<String> {
    let to = Subscription::parse(text.to_owned()).map_err(|error| anyhow!("`{text}`: {error}"))?;
    let (name, filter) = match &to {
        Subscription::Plain(filter) | Subscription::Shared { filter, .. } => (None, Some(filter)),
        Subscription::QueueByFilter { filter } | Subscription::StreamByFilter { filter, .. } => {
            (None, Some(filter))
        }
        Subscription::Queue { name, filter } | Subscription::Stream { name, filter, .. } => {
            (Some(name), filter.as_ref())
        }
    };
    let mut said = Vec::new();
    let mut ask = |request: &Request<'_>| {
        let explanation: Explanation<'_> = rules.explain(client, request);
        said.push(explanation.to_string());
        explanation.decision.is_allowed()
    };
    let allowed = name.is_none_or(|name| ask(&Request::Consume { name: name.as_str() }))
        && filter.is_none_or(|filter| ask(&Request::Subscribe { filter }));
    if allowed && name.is_some() && filter.is_none() {
        said.push("it must also be allowed to subscribe to the filter of the queue or stream\n".to_owned());
    } else if allowed && name.is_none() && text.starts_with('$') && !text.starts_with("$share/") {
        said.push("it must also be allowed to consume the queue or stream that has this filter\n".to_owned());
    }
    Ok(said.concat())
}
