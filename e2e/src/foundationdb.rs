//! A FoundationDB cluster of one process, on a folder of its own.
//!
//! Its programs are the machine's: there is no package that could be unpacked for these tests alone. What is stored
//! outlives the process, so that it can be killed and started again; it must never be used for anything but tests.

use std::fmt;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;
use tokio::process::Command;
use tokio::time::timeout;

use crate::process::Process;
use crate::tools;

/// What the server may take: little, as tests do.
const MEMORY: [&str; 4] = ["--memory", "2GiB", "--cache-memory", "256MiB"];
/// How long its command line waits for the cluster.
const PATIENCE: Duration = Duration::from_secs(60);

/// A running server; it is killed when this is dropped.
#[derive(Debug)]
pub struct FoundationDb {
    process: Process,
    programs: tools::FoundationDb,
    address: SocketAddr,
    folder: TempDir,
}

impl FoundationDb {
    /// Starts it at a free port of `host` and waits until it takes commits.
    ///
    /// # Errors
    /// If its programs are not there.
    pub async fn start(host: IpAddr) -> Result<Self> {
        let programs = tools::foundationdb()?;
        let folder = tempfile::tempdir()?;
        // Whoever takes the port before the server does makes the start fail, and says so.
        let address = TcpListener::bind((host, 0))?.local_addr()?;
        std::fs::write(cluster_file(folder.path()), format!("weir:tests@{address}\n"))?;
        let process = spawn(&programs, address, folder.path())?;
        let server = Self { process, programs, address, folder };
        server.tell("configure new single ssd").await?;
        Ok(server)
    }

    /// What clients need to find it.
    #[must_use]
    pub fn cluster_file(&self) -> PathBuf {
        cluster_file(self.folder.path())
    }

    /// Its process id, unless it has ended.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.process.pid()
    }

    /// Ends it as a power cut would, and starts it again on what it left.
    pub async fn restart(&mut self) -> Result<()> {
        self.process.kill9().await?;
        self.process = spawn(&self.programs, self.address, self.folder.path())?;
        self.tell("status minimal").await
    }

    async fn tell(&self, command: &str) -> Result<()> {
        let mut cli = Command::new(&self.programs.cli);
        cli.arg("-C")
            .arg(self.cluster_file())
            .args(["--timeout", "60", "--exec", command])
            .kill_on_drop(true);
        let output = timeout(PATIENCE, cli.output()).await.context("an answer of FoundationDB")??;
        let said = String::from_utf8_lossy(&output.stdout);
        ensure!(output.status.success(), "FoundationDB, `{command}`: {said}\n{self}");
        Ok(())
    }
}

impl fmt::Display for FoundationDb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.process.fmt(f)
    }
}

fn cluster_file(folder: &Path) -> PathBuf {
    folder.join("fdb.cluster")
}

fn spawn(programs: &tools::FoundationDb, address: SocketAddr, folder: &Path) -> Result<Process> {
    let mut command = Command::new(&programs.server);
    let address = address.to_string();
    command.arg("-C").arg(cluster_file(folder)).args(["-p", &address, "-l", &address]);
    command.arg("-d").arg(folder.join("data")).arg("-L").arg(folder.join("logs")).args(MEMORY);
    Process::spawn("fdbserver", command)
}
