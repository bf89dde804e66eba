//! The broker under test: the real binary in its own process and store folder.
//!
//! [`Weir`] is one process; [`Setup`] is what survives it: the store, the manifests and the arguments, so
//! that a test can start a broker again on what an earlier one left.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;
use tempfile::TempDir;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tokio::sync::OnceCell;

use crate::certificates::{Certificates, Signed};
use crate::endpoint::{Endpoint, Transport};
use crate::process::{Log, Process, on_cpus, resident_bytes, run_by};
use crate::{http, tools, within};

/// How long building the broker may take when nothing of it is built.
const BUILD: Duration = Duration::from_secs(1800);

/// What a broker is started with and leaves behind.
#[derive(Debug)]
pub struct Setup {
    folder: TempDir,
    store: Store,
    arguments: Vec<String>,
    /// Instead of the one that is built for the tests.
    binary: Option<PathBuf>,
    /// The processors it may use; all if there are none.
    cpus: Option<String>,
    certificates: Option<Arc<Certificates>>,
    /// Where it listens.
    host: IpAddr,
    /// The network namespace it runs in, as `ip netns` knows it, if not in this one.
    namespace: Option<String>,
}

/// Where the broker keeps its data.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Store {
    Memory,
    Embedded,
    /// Served by a [`StoreServer`] there.
    Remote(SocketAddr),
    /// In the FoundationDB cluster of this file, below this prefix.
    FoundationDb {
        file: PathBuf,
        prefix: String,
    },
}

impl Setup {
    /// A broker that forgets everything when it ends.
    pub fn memory() -> Result<Self> {
        Self::new(Store::Memory)
    }

    /// A broker on an embedded store of its own.
    pub fn embedded() -> Result<Self> {
        Self::new(Store::Embedded)
    }

    /// A broker on the store that is served at `address`.
    pub fn remote(address: SocketAddr) -> Result<Self> {
        Self::new(Store::Remote(address))
    }

    /// A broker on the FoundationDB cluster that `file` names, where it is the installation `prefix`.
    pub fn foundationdb(file: &Path, prefix: &str) -> Result<Self> {
        Self::new(Store::FoundationDb { file: file.to_owned(), prefix: prefix.to_owned() })
    }

    fn new(store: Store) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        std::fs::create_dir(folder.path().join("manifests"))?;
        Ok(Self {
            folder,
            store,
            arguments: Vec::new(),
            binary: None,
            cpus: None,
            certificates: None,
            host: Ipv4Addr::LOCALHOST.into(),
            namespace: None,
        })
    }

    /// The folder of manifests.
    #[must_use]
    pub fn manifests(&self) -> PathBuf {
        self.folder.path().join("manifests")
    }

    /// Writes the manifest `name` in one step, as tools do that people use: the broker never sees half of it.
    pub fn manifest(&self, name: &str, yaml: &str) -> Result<()> {
        let half = self.folder.path().join("manifest.part");
        std::fs::write(&half, yaml)?;
        std::fs::rename(half, self.manifests().join(name)).context("write a manifest")
    }

    /// The same setup with a manifest.
    pub fn with_manifest(self, name: &str, yaml: &str) -> Result<Self> {
        self.manifest(name, yaml)?;
        Ok(self)
    }

    /// The same with more arguments of `weir serve`.
    #[must_use]
    pub fn with_arguments(mut self, arguments: &[&str]) -> Self {
        self.arguments.extend(arguments.iter().map(|&argument| argument.to_owned()));
        self
    }

    /// The same with a binary of one's own.
    #[must_use]
    pub fn with_binary(self, binary: &Path) -> Self {
        Self { binary: Some(binary.to_owned()), ..self }
    }

    /// The same in a network namespace, where it listens at `host` instead of loopback, for anybody.
    #[must_use]
    pub fn in_namespace(self, namespace: String, host: IpAddr) -> Self {
        let setup = Self { namespace: Some(namespace), host, ..self };
        setup.with_arguments(&["--allow-anonymous"])
    }

    /// The same on the processors `cpus`, as `taskset` takes them.
    #[must_use]
    pub fn on_cpus(self, cpus: Option<&str>) -> Self {
        Self { cpus: cpus.map(str::to_owned), ..self }
    }

    /// The same with a listener for each transport beside TCP, and certificates for those that need them.
    pub fn with_every_transport(mut self) -> Result<Self> {
        let certificates = Certificates::make(self.folder.path())?;
        for transport in Transport::ALL.into_iter().filter(|transport| *transport != Transport::Tcp) {
            self.arguments.extend(["--listen".to_owned(), format!("{}://127.0.0.1:0", transport.scheme())]);
        }
        let Signed { certificate, key } = &certificates.server;
        let files = [("--tls-cert", certificate), ("--tls-key", key)];
        for (flag, file) in files {
            self.arguments.extend([flag.to_owned(), file.display().to_string()]);
        }
        self.certificates = Some(Arc::new(certificates));
        Ok(self)
    }

    /// The same, where clients that come over TLS have to show their certificate.
    pub fn with_client_certificates(self) -> Result<Self> {
        let setup = self.with_every_transport()?;
        let certificates = setup.certificates.as_deref().context("certificates")?;
        let authority = certificates.authority.display().to_string();
        Ok(setup.with_arguments(&["--tls-client-ca", &authority]))
    }

    /// The same with one user, whom `weir auth hash` makes a line for; nobody else may connect.
    pub async fn with_user(self, user: &str, password: &str) -> Result<Self> {
        let mut command = Command::new(binary().await?);
        command.args(["auth", "hash", "--user", user]);
        let mut process = Process::spawn("weir auth hash", command)?;
        process.take_stdin().context("its input")?.write_all(password.as_bytes()).await?;
        process.wait_success().await?;
        let users = self.folder.path().join("users");
        std::fs::write(&users, process.log().lines().join("\n"))?;
        Ok(self.with_arguments(&["--auth-users-file", &users.display().to_string()]))
    }

    /// The command that starts the broker, listening on free loopback ports.
    pub async fn command(&self) -> Result<Command> {
        let mut command = match &self.binary {
            Some(binary) => Command::new(binary),
            None => Command::new(binary().await?),
        };
        let store = match &self.store {
            Store::Memory => "memory:".to_owned(),
            Store::Embedded => format!("embedded:{}", self.folder.path().join("store").display()),
            Store::Remote(address) => format!("remote:{address}"),
            Store::FoundationDb { file, .. } => format!("fdb:{}", file.display()),
        };
        let host = self.host;
        command.args(["serve", "--store", &store, "--listen", &format!("mqtt://{host}:0")]);
        command.args(["--http", &format!("{host}:0"), "--admin", "127.0.0.1:0"]);
        command.arg("--manifests").arg(self.manifests()).args(&self.arguments);
        if let Store::FoundationDb { prefix, .. } = &self.store {
            command.args(["--fdb-prefix", prefix]);
        }
        by_arguments_alone(&mut command);
        command.current_dir(self.folder.path());
        let command = on_cpus(self.cpus.as_deref(), &command);
        Ok(match &self.namespace {
            Some(namespace) => run_by(&["ip", "netns", "exec", namespace], &command),
            None => command,
        })
    }

    /// Starts the broker and waits until it is ready.
    pub async fn start(&self) -> Result<Weir> {
        let mut process = Process::spawn("weir", self.command().await?)?;
        match within("weir to be ready", ready(&process.log())).await {
            Ok((mqtt, http)) => Ok(Weir { process, mqtt, http, certificates: self.certificates.clone() }),
            Err(error) => {
                process.kill9().await?;
                Err(error.context(format!("start {process}")))
            }
        }
    }

    /// Starts the broker where it must refuse to run; returns how it ended and what it said.
    pub async fn start_refused(&self) -> Result<(ExitStatus, String)> {
        let mut process = Process::spawn("weir", self.command().await?)?;
        let status = process.wait().await?;
        ensure!(!status.success(), "weir ended well instead of refusing: {process}");
        Ok((status, process.log().lines().join("\n")))
    }
}

/// A running broker; it is killed when this is dropped.
#[derive(Debug)]
pub struct Weir {
    process: Process,
    mqtt: SocketAddr,
    http: SocketAddr,
    certificates: Option<Arc<Certificates>>,
}

impl Weir {
    /// Where it listens for MQTT.
    #[must_use]
    pub fn mqtt(&self) -> SocketAddr {
        self.mqtt
    }

    /// Its process id, unless it has ended.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.process.pid()
    }

    /// The way to it by `transport`.
    pub async fn endpoint(&self, transport: Transport) -> Result<Endpoint> {
        let log = self.log();
        let address = within("weir to say where it listens", listening(&log, transport.scheme())).await?;
        let certificates = self.certificates.clone().filter(|_| transport.is_tls());
        Ok(Endpoint { transport, certificates, ..Endpoint::from(address) })
    }

    /// Where it answers HTTP.
    #[must_use]
    pub fn http(&self) -> SocketAddr {
        self.http
    }

    /// What it logged.
    #[must_use]
    pub fn log(&self) -> Arc<Log> {
        self.process.log()
    }

    /// Waits for a line of the log, old or new, that contains all of `parts`, and returns it.
    pub async fn logged(&self, parts: &[&str]) -> Result<String> {
        let log = self.log();
        let wanted = |line: &str| parts.iter().all(|part| line.contains(part)).then(|| line.to_owned());
        let found = within(&format!("weir to log {parts:?}"), async { Ok(log.find(wanted).await) }).await;
        found.with_context(|| self.to_string())?.with_context(|| format!("{parts:?} in the log of {self}"))
    }

    /// Ends the broker as a power cut would.
    pub async fn kill9(&mut self) -> Result<()> {
        self.process.kill9().await?;
        self.no_panic()
    }

    /// Ends the broker as an operator would, and demands that it exits with 0.
    pub async fn terminate(mut self) -> Result<()> {
        self.process.signal(Signal::TERM)?;
        self.process.wait_success().await?;
        self.no_panic()
    }

    /// Sends `signal`; a broker that has already ended is not an error.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        self.process.signal(signal)
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        self.process.ended()
    }

    /// Waits for the broker to end by itself.
    pub async fn wait(&mut self) -> Result<ExitStatus> {
        self.process.wait().await
    }

    /// Fails if the broker's log tells of a panic.
    pub fn no_panic(&self) -> Result<()> {
        if let Some(line) = self.log().lines().iter().find(|line| line.contains("panicked")) {
            bail!("the broker panicked: {line}\n{self}");
        }
        Ok(())
    }

    /// Resident memory in bytes; an error if the process is gone.
    pub fn resident_bytes(&self) -> Result<u64> {
        resident_bytes(self.pid().context("a running broker")?)
    }
}

impl fmt::Display for Weir {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.process.fmt(f)
    }
}

/// A running `weir store serve` on a folder of its own; it is killed when this is dropped.
#[derive(Debug)]
pub struct StoreServer {
    process: Process,
    address: SocketAddr,
    arguments: Vec<String>,
    folder: TempDir,
}

impl StoreServer {
    /// Starts it on an embedded store and a free loopback port.
    pub async fn start() -> Result<Self> {
        Self::start_at(Ipv4Addr::LOCALHOST.into(), &[]).await
    }

    /// The same at a free port of `host`, with more arguments of `weir store serve`.
    pub async fn start_at(host: IpAddr, arguments: &[&str]) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let arguments: Vec<String> = arguments.iter().map(|&argument| argument.to_owned()).collect();
        let (process, address) = serve(folder.path(), SocketAddr::new(host, 0), &arguments).await?;
        Ok(Self { process, address, arguments, folder })
    }

    /// Ends it as a power cut would, and starts it again at the same place on what it left.
    pub async fn restart(&mut self) -> Result<()> {
        self.process.kill9().await?;
        (self.process, _) = serve(self.folder.path(), self.address, &self.arguments).await?;
        Ok(())
    }

    /// Its process id, unless it has ended.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.process.pid()
    }

    /// Where brokers reach it.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

/// Serves the embedded store in `folder` at `address`, and says where that is.
async fn serve(folder: &Path, address: SocketAddr, arguments: &[String]) -> Result<(Process, SocketAddr)> {
    let store = format!("embedded:{}", folder.join("store").display());
    let mut command = Command::new(binary().await?);
    command.args(["store", "serve", "--store", &store, "--listen", &address.to_string()]).args(arguments);
    by_arguments_alone(&mut command);
    command.current_dir(folder);
    let process = Process::spawn("weir store serve", command)?;
    let log = process.log();
    let address = within("the store server to say where it listens", listening(&log, "grpc")).await;
    let address = address.with_context(|| process.to_string())?;
    Ok((process, address))
}

impl fmt::Display for StoreServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.process.fmt(f)
    }
}

/// Nothing of the caller's environment may configure Weir; panics must say where they came from.
fn by_arguments_alone(command: &mut Command) {
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("WEIR_") {
            command.env_remove(name);
        }
    }
    command.env("RUST_BACKTRACE", "1");
}

/// Reads the addresses from the log and waits until `/readyz` says 200.
async fn ready(log: &Log) -> Result<(SocketAddr, SocketAddr)> {
    let mqtt = listening(log, "mqtt").await?;
    let http = listening(log, "http").await?;
    let mut pause = Duration::from_millis(1);
    while !matches!(http::get(http, "/readyz").await, Ok((200, _))) {
        // Readiness can only be asked for, not waited for.
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(100));
    }
    Ok((mqtt, http))
}

/// The address in the log line that says on which `scheme://` the broker is listening.
async fn listening(log: &Log, scheme: &str) -> Result<SocketAddr> {
    let url = format!("url={scheme}://");
    let address = |line: &str| {
        let (_, address) = line.split_once(&url).filter(|_| line.contains("listening"))?;
        Some(address.split_whitespace().next()?.to_owned())
    };
    let address =
        log.find(address).await.with_context(|| format!("no log line says where it listens on {scheme}"))?;
    address.parse().with_context(|| format!("the address `{address}`"))
}

/// The broker's binary: `WEIR_BIN`, or built by the cargo that runs this test, with its profile, into its
/// target folder.
pub async fn binary() -> Result<&'static Path> {
    static BINARY: OnceCell<PathBuf> = OnceCell::const_new();
    let built = async {
        match std::env::var_os("WEIR_BIN") {
            // Started elsewhere.
            Some(binary) => {
                std::fs::canonicalize(&binary).with_context(|| format!("WEIR_BIN, {}", binary.display()))
            }
            None => build().await,
        }
    };
    BINARY.get_or_try_init(|| built).await.map(PathBuf::as_path).context("the broker's binary")
}

/// The binary that people run: optimised, built by cargo unless it is up to date.
pub async fn release_binary() -> Result<PathBuf> {
    let target = tools::target_dir()?;
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args(["build", "--release", "--package", "weir", "--bin", "weir", "--manifest-path"]);
    command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("../Cargo.toml"));
    command.arg("--target-dir").arg(&target).stdin(Stdio::null()).kill_on_drop(true);
    let status = tokio::time::timeout(BUILD, command.status()).await.context("build weir in time")??;
    ensure!(status.success(), "build weir: cargo ended with {status}");
    Ok(target.join("release").join("weir"))
}

/// What the binary calls itself, with its version.
pub async fn version(binary: &Path) -> Result<String> {
    let output = Command::new(binary).arg("--version").output().await;
    let output = output.with_context(|| format!("run {}", binary.display()))?;
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

async fn build() -> Result<PathBuf> {
    let target = tools::target_dir()?;
    let profile = std::env::current_exe()?
        .strip_prefix(&target)?
        .components()
        .next()
        .context("a profile's folder")?
        .as_os_str()
        .to_string_lossy()
        .into_owned();
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("../Cargo.toml");
    // `cargo test --workspace` has built the broker for its own tests; `cargo build` would build it, and all it
    // depends on, once more with other features.
    command
        .args(["test", "--no-run", "--quiet", "--workspace", "--test", "it", "--manifest-path"])
        .arg(manifest);
    command.arg("--profile").arg(if profile == "debug" { "test" } else { &profile });
    command.arg("--target-dir").arg(&target);
    command.stdin(Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(BUILD, command.output()).await.context("build weir in time")??;
    ensure!(output.status.success(), "build weir: {}", String::from_utf8_lossy(&output.stderr));
    Ok(target.join(profile).join("weir"))
}
