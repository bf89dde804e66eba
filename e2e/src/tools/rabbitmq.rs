//! RabbitMQ and the Erlang it runs on, from the Debian packages of a newer suite.
//!
//! Erlang's programs start each other by name and with the machine's own loader, under which those of a newer suite
//! do not run. So they are started by scripts of the same names, each of which calls the unpacked loader.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use tokio::process::Command;

use super::debian::{self, Whole};

/// The programs of Erlang that a server needs.
const ERLANG_PROGRAMS: [&str; 5] = ["beam.smp", "epmd", "erl_child_setup", "erlexec", "inet_gethost"];
const RABBITMQ_LIB: &str = "usr/lib/rabbitmq/lib";
const ERLANG_LIB: &str = "usr/lib/erlang";

/// The RabbitMQ server, unpacked.
#[derive(Clone, Debug)]
pub struct RabbitMq {
    /// Its version, such as `4.3.6`.
    pub version: String,
    /// Erlang's home.
    erlang: PathBuf,
    /// Erlang's own programs, of [`ERLANG_PROGRAMS`]: name and command line.
    programs: Vec<(&'static str, String)>,
    /// The server's home.
    home: PathBuf,
}

impl RabbitMq {
    /// Where the server's plugins are, itself among them.
    #[must_use]
    pub fn plugins(&self) -> PathBuf {
        self.home.join("plugins")
    }

    /// The server's home.
    #[must_use]
    pub fn home(&self) -> &Path {
        &self.home
    }

    /// Writes the scripts that start Erlang's programs into `folder`; [`RabbitMq::program`] runs them.
    pub fn write_programs(&self, folder: &Path) -> Result<()> {
        let mut scripts: Vec<(&str, String)> = self.programs.clone();
        scripts.push(("erl", "\"$BINDIR/erlexec\"".to_owned()));
        for (name, command) in scripts {
            let script = folder.join(name);
            std::fs::write(&script, format!("#!/bin/sh\nexec {command} \"$@\"\n"))?;
            std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755))?;
        }
        Ok(())
    }

    /// One of Erlang's programs, `erl` included, by the scripts in `folder`.
    #[must_use]
    pub fn program(&self, folder: &Path, name: &str) -> Command {
        let mut command = Command::new(folder.join(name));
        command.env("ROOTDIR", &self.erlang).env("BINDIR", folder);
        command.env("EMU", "beam").env("PROGNAME", "erl").env("ERL_LIBS", self.plugins());
        command
    }
}

pub(super) async fn find() -> Result<RabbitMq> {
    let whole = debian::unpack_whole("rabbitmq-4", &["rabbitmq-server=4.*"]).await?;
    let server = folder(&whole, RABBITMQ_LIB, "rabbitmq_server-")?;
    let runtime = folder(&whole, ERLANG_LIB, "erts-")?;
    let mut programs = Vec::new();
    for name in ERLANG_PROGRAMS {
        let program = format!("{ERLANG_LIB}/{runtime}/bin/{name}");
        ensure!(whole.root().join(&program).is_file(), "Erlang has no {name}");
        programs.push((name, whole.program(&program)?.shell()));
    }
    let version = server.rsplit('-').next().context("its version")?.to_owned();
    let home = whole.root().join(RABBITMQ_LIB).join(server);
    Ok(RabbitMq { version, erlang: whole.root().join(ERLANG_LIB), programs, home })
}

/// The name in `path` that begins with `start`.
fn folder(whole: &Whole, path: &str, start: &str) -> Result<String> {
    let names = std::fs::read_dir(whole.root().join(path))?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    names.into_iter().find(|name| name.starts_with(start)).with_context(|| format!("{start}* in {path}"))
}
