//! The table of settings: one entry each, with the three names it goes by.
//!
//! Values arrive as text from every source, so that one parser serves them all and an error reads the same
//! wherever the value was written.

use std::sync::LazyLock;

use clap::{Arg, ArgAction, ArgMatches, Command};

use super::{
    ByteCount, Config, NamePattern, Problem, admin, auth, drain, fdb, limits, listeners, peer, remote, value,
};
use crate::responses::ResponseInformation;

/// One thing that can be set.
pub(super) struct Setting {
    /// Key in the configuration file, with the names of its tables.
    pub(super) key: &'static str,
    /// Flag, without the dashes.
    pub(super) flag: &'static str,
    /// Environment variable.
    pub(super) env: &'static str,
    /// A variable of other tools, read if ours is absent.
    pub(super) env_fallback: Option<&'static str>,
    /// What stands for the value in help.
    pub(super) value_name: &'static str,
    /// A sentence for help.
    pub(super) help: &'static str,
    /// Takes several values: a list in the file, commas in the environment, a repeated flag.
    pub(super) many: bool,
    /// The flag alone means `true`.
    pub(super) switch: bool,
    /// Parses and stores the values.
    pub(super) set: fn(&mut Config, &[String]) -> Result<(), String>,
    /// The value as it would be written.
    pub(super) show: fn(&Config) -> String,
}

/// A setting of which the rest follows from the defaults below.
pub(super) const PLAIN: Setting = Setting {
    key: "",
    flag: "",
    env: "",
    env_fallback: None,
    value_name: "",
    help: "",
    many: false,
    switch: false,
    set: |_, _| Ok(()),
    show: |_| String::new(),
};

const GENERAL: &[Setting] = &[
    Setting {
        key: "store",
        flag: "store",
        env: "WEIR_STORE",
        value_name: "STORE",
        help: "Where messages live: embedded:DIR (durable, on this machine), fdb:CLUSTER_FILE (FoundationDB), remote:HOST:PORT (of `weir store serve`) or memory: (gone at exit)",
        set: |config, values| {
            config.store = value::store(one(values)?)?;
            Ok(())
        },
        show: |config| config.store.to_string(),
        ..PLAIN
    },
    listeners::LISTEN,
    Setting {
        key: "http",
        flag: "http",
        env: "WEIR_HTTP",
        value_name: "ADDRESS",
        help: "Serves /healthz, /readyz and /metrics",
        set: |config, values| {
            config.http = value::address(one(values)?)?;
            Ok(())
        },
        show: |config| config.http.to_string(),
        ..PLAIN
    },
    Setting {
        key: "admin",
        flag: "admin",
        env: "WEIR_ADMIN",
        value_name: "ADDRESS",
        help: "Serves the admin API (gRPC) that `weir queue` and `weir stream` use",
        set: |config, values| {
            config.admin = value::address(one(values)?)?;
            Ok(())
        },
        show: |config| config.admin.to_string(),
        ..PLAIN
    },
    Setting {
        key: "manifests",
        flag: "manifests",
        env: "WEIR_MANIFESTS",
        value_name: "DIR",
        help: "Folder of MessageQueue and Stream YAML to apply and follow",
        set: |config, values| {
            config.manifests = Some(one(values)?.into());
            Ok(())
        },
        show: |config| config.manifests.as_ref().map(|dir| dir.display().to_string()).unwrap_or_default(),
        ..PLAIN
    },
    Setting {
        key: "allowAnonymous",
        flag: "allow-anonymous",
        env: "WEIR_ALLOW_ANONYMOUS",
        value_name: "BOOL",
        help: "Let anyone connect, also from other machines",
        switch: true,
        set: |config, values| {
            config.allow_anonymous = value::boolean(one(values)?)?;
            Ok(())
        },
        show: |config| config.allow_anonymous.to_string(),
        ..PLAIN
    },
    Setting {
        key: "waitForQueue",
        flag: "wait-for-queue",
        env: "WEIR_WAIT_FOR_QUEUE",
        value_name: "BOOL",
        help: "Grant subscriptions to queues and streams that do not exist yet",
        switch: true,
        set: |config, values| {
            config.wait_for_queue = value::boolean(one(values)?)?;
            Ok(())
        },
        show: |config| config.wait_for_queue.to_string(),
        ..PLAIN
    },
    Setting {
        key: "autoCreate.queues",
        flag: "auto-create-queues",
        env: "WEIR_AUTO_CREATE_QUEUES",
        value_name: "PATTERN",
        help: "Names of queues that a subscription creates, as in auto-*; repeatable",
        many: true,
        set: |config, values| {
            config.auto_create_queues = patterns(values)?;
            Ok(())
        },
        show: |config| shown(&config.auto_create_queues),
        ..PLAIN
    },
    Setting {
        key: "autoCreate.streams",
        flag: "auto-create-streams",
        env: "WEIR_AUTO_CREATE_STREAMS",
        value_name: "PATTERN",
        help: "Names of streams that a subscription creates, as in auto-*; repeatable",
        many: true,
        set: |config, values| {
            config.auto_create_streams = patterns(values)?;
            Ok(())
        },
        show: |config| shown(&config.auto_create_streams),
        ..PLAIN
    },
    Setting {
        key: "storeReserve",
        flag: "store-reserve",
        env: "WEIR_STORE_RESERVE",
        value_name: "SIZE",
        help: "Free disk space below which the embedded store refuses all but what frees some; below a quarter, all",
        set: |config, values| {
            let range = ByteCount(0)..=ByteCount::gib(1024);
            config.store_reserve = value::within(one(values)?, &range)?;
            Ok(())
        },
        show: |config| config.store_reserve.to_string(),
        ..PLAIN
    },
    Setting {
        key: "responseInformation",
        flag: "response-information",
        env: "WEIR_RESPONSE_INFORMATION",
        value_name: "TOPIC",
        help: "Where MQTT 5 clients that ask are told to have their responses sent, as in responses/%c; %c is the client \
               id, %u the user name",
        set: |config, values| {
            config.response_information = Some(ResponseInformation::parse(one(values)?)?);
            Ok(())
        },
        show: |config| {
            config.response_information.as_ref().map(|it| it.pattern().to_owned()).unwrap_or_default()
        },
        ..PLAIN
    },
    Setting {
        key: "sys.interval",
        flag: "sys-interval",
        env: "WEIR_SYS_INTERVAL",
        value_name: "DURATION",
        help: "How often the broker's figures are published under $SYS/broker, as in 10s; 0s: never",
        set: |config, values| {
            config.sys_interval = value::interval(one(values)?)?;
            Ok(())
        },
        show: |config| value::show_duration(config.sys_interval),
        ..PLAIN
    },
    Setting {
        key: "log.format",
        flag: "log-format",
        env: "WEIR_LOG_FORMAT",
        value_name: "FORMAT",
        help: "text or json",
        set: |config, values| {
            config.log.format = value::log_format(one(values)?)?;
            Ok(())
        },
        show: |config| config.log.format.to_string(),
        ..PLAIN
    },
    Setting {
        key: "log.filter",
        flag: "log-filter",
        env: "WEIR_LOG_FILTER",
        value_name: "FILTER",
        help: "Levels by module, as in info,weir=debug",
        set: |config, values| {
            config.log.filter = value::log_filter(one(values)?)?;
            Ok(())
        },
        show: |config| config.log.filter.clone(),
        ..PLAIN
    },
    Setting {
        key: "otlpEndpoint",
        flag: "otlp-endpoint",
        env: "WEIR_OTLP_ENDPOINT",
        env_fallback: Some("OTEL_EXPORTER_OTLP_ENDPOINT"),
        value_name: "URL",
        help: "Send spans there (OTLP over gRPC), as http://HOST:PORT",
        set: |config, values| {
            config.otlp_endpoint = Some(value::otlp_endpoint(one(values)?)?);
            Ok(())
        },
        show: |config| config.otlp_endpoint.clone().unwrap_or_default(),
        ..PLAIN
    },
];

/// Settings given on a command line, as text.
#[derive(Clone, Debug, Default)]
pub struct Flags(Vec<(&'static str, Vec<String>)>);

/// All settings, in the order of `--help`.
pub(super) fn all() -> impl Iterator<Item = &'static Setting> {
    GENERAL
        .iter()
        .chain(fdb::SETTINGS)
        .chain(remote::SETTINGS)
        .chain(listeners::TLS)
        .chain(admin::SETTINGS)
        .chain(peer::SETTINGS)
        .chain(drain::SETTINGS)
        .chain(auth::SETTINGS)
        .chain(limits::SETTINGS)
}

fn patterns(values: &[String]) -> Result<Vec<NamePattern>, String> {
    values.iter().map(|text| NamePattern::parse(text)).collect()
}

fn shown(patterns: &[NamePattern]) -> String {
    patterns.iter().map(NamePattern::as_str).collect::<Vec<_>>().join(",")
}

/// The only value, for settings that take one.
pub(super) fn one(values: &[String]) -> Result<&str, String> {
    match values {
        [value] => Ok(value),
        _ => Err(format!("{} values are not allowed; allowed: one", values.len())),
    }
}

pub(super) fn apply_env(
    config: &mut Config,
    env: &dyn Fn(&str) -> Option<String>,
    problems: &mut Vec<Problem>,
) {
    for setting in all() {
        let found = [Some(setting.env), setting.env_fallback].into_iter().flatten().find_map(|name| {
            let text = env(name).filter(|text| !text.is_empty())?;
            Some((name, text))
        });
        if let Some((name, text)) = found {
            let values = if setting.many {
                text.split(',').map(|part| part.trim().to_owned()).collect()
            } else {
                vec![text]
            };
            setting.apply(config, &values, &format!("environment variable {name}"), problems);
        }
    }
}

pub(super) fn apply_flags(config: &mut Config, flags: &Flags, problems: &mut Vec<Problem>) {
    for (flag, values) in &flags.0 {
        if let Some(setting) = all().find(|setting| setting.flag == *flag) {
            setting.apply(config, values, &format!("--{flag}"), problems);
        }
    }
}

impl Setting {
    pub(super) fn apply(
        &self,
        config: &mut Config,
        values: &[String],
        origin: &str,
        problems: &mut Vec<Problem>,
    ) {
        if let Err(message) = (self.set)(config, values) {
            problems.push(Problem { origin: Some(origin.to_owned()), message });
        }
    }

    fn help_text(&self, defaults: &Config) -> String {
        let default = match (self.show)(defaults) {
            none if none.is_empty() => String::new(),
            default => format!("[default: {default}] "),
        };
        let fallback = self.env_fallback.map(|name| format!(", {name}")).unwrap_or_default();
        format!("{} {default}[env: {}{fallback}] [key: {}]", self.help.trim(), self.env, self.key)
    }

    fn heading(&self) -> Option<&'static str> {
        if self.key.starts_with("limits.") {
            Some("Limits")
        } else if self.key.starts_with("fdb.") {
            Some("FoundationDB")
        } else if self.key.starts_with("tls.") {
            Some("TLS")
        } else if self.key.starts_with("admin") && self.key != "admin" {
            Some("Admin API")
        } else if self.key.starts_with("peer") {
            Some("Other pods of a cluster")
        } else if self.key.starts_with("auth.") {
            Some("Who may do what")
        } else if self.key.starts_with("log.") || self.key == "otlpEndpoint" {
            Some("Logs and traces")
        } else {
            None
        }
    }

    fn arg(&self, defaults: &Config) -> Arg {
        let arg = Arg::new(self.flag)
            .long(self.flag)
            .value_name(self.value_name)
            .help(self.help_text(defaults))
            .help_heading(self.heading())
            .action(if self.many { ArgAction::Append } else { ArgAction::Set });
        if self.switch { arg.num_args(0..=1).require_equals(true).default_missing_value("true") } else { arg }
    }
}

impl clap::FromArgMatches for Flags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let given = all().filter_map(|setting| {
            let values = matches.get_many::<String>(setting.flag)?;
            Some((setting.flag, values.cloned().collect()))
        });
        Ok(Self(given.collect()))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl clap::Args for Flags {
    fn augment_args(command: Command) -> Command {
        static DEFAULTS: LazyLock<Config> = LazyLock::new(Config::default);
        all().fold(command, |command, setting| command.arg(setting.arg(&DEFAULTS)))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}
