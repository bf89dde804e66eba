//! A process whose output goes to a file, as logs of a cluster do, and that ends with its owner.

use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal};
use tokio::process::{Child, Command};

/// Lines of the log quoted in an error.
const LINES_QUOTED: usize = 30;

/// A running process; it is killed when this is dropped.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    pid: Option<Pid>,
    log: PathBuf,
}

impl Daemon {
    /// Starts `command`; what it writes is appended to the file `log`.
    pub fn start(mut command: Command, log: PathBuf) -> Result<Self> {
        if let Some(folder) = log.parent() {
            std::fs::create_dir_all(folder)?;
        }
        let out = OpenOptions::new().create(true).append(true).open(&log)?;
        command.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out).kill_on_drop(true);
        let child = command.spawn().with_context(|| format!("start {:?}", command.as_std().get_program()))?;
        let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
        Ok(Self { child, pid, log })
    }

    /// Its process id, also after its end.
    #[must_use]
    pub fn pid(&self) -> Option<Pid> {
        self.pid
    }

    /// Sends `signal`; a process that has already ended is not an error.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        // Once it was waited for, the id may be another's.
        let Some(pid) = self.pid.filter(|_| self.child.id().is_some()) else {
            return Ok(());
        };
        match rustix::process::kill_process(pid, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Waits for its end. Cancel safe.
    pub async fn wait(&mut self) -> Result<ExitStatus> {
        Ok(self.child.wait().await?)
    }

    /// The last lines that it wrote.
    #[must_use]
    pub fn tail(&self) -> String {
        tail(&self.log)
    }
}

/// The last lines of the file `log`.
#[must_use]
pub fn tail(log: &Path) -> String {
    let bytes = std::fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    let quoted = lines.iter().skip(lines.len().saturating_sub(LINES_QUOTED));
    std::iter::once(format!("{}:\n", log.display()))
        .chain(quoted.map(|line| format!("    | {line}\n")))
        .collect()
}
