//! Child processes: their output as lines to wait for, and an end that cannot be forgotten.
//!
//! A [`Process`] owns its child and kills it when dropped, by its own pid. It must never be used for a
//! process that outlives the test.

use std::fmt;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use parking_lot::Mutex;
use rustix::process::{Pid, Signal};
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::{Child, ChildStdin, Command};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::within;

/// Lines kept of one process; a process that writes more is out of hand and its later lines are dropped.
const LINES_MAX: usize = 2_000_000;
/// The kernel's unit of processor time, which is the same on every machine.
const TICK: Duration = Duration::from_millis(10);
/// Lines of output quoted in an error.
const LINES_QUOTED: usize = 40;

/// `command`, on the processors `cpus` as `taskset` takes them (`0`, `0,1`), or as it is if there are none.
#[must_use]
pub fn on_cpus(cpus: Option<&str>, command: &Command) -> Command {
    match cpus {
        Some(cpus) => run_by(&["taskset", "-c", cpus], command),
        None => run_by(&[], command),
    }
}

/// The same command, run by the program and with the arguments `by`; by itself if there are none.
#[must_use]
pub fn run_by(by: &[&str], command: &Command) -> Command {
    let command = command.as_std();
    let mut wrapped = match by {
        [program, arguments @ ..] => {
            let mut wrapped = Command::new(program);
            wrapped.args(arguments).arg(command.get_program());
            wrapped
        }
        [] => Command::new(command.get_program()),
    };
    wrapped.args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => wrapped.env(name, value),
            None => wrapped.env_remove(name),
        };
    }
    if let Some(folder) = command.get_current_dir() {
        wrapped.current_dir(folder);
    }
    wrapped
}

/// Resident memory of the process `pid` in bytes; an error if it is gone.
pub fn resident_bytes(pid: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("VmRSS")?;
    let kibibytes: u64 = line.trim().trim_end_matches(" kB").trim().parse()?;
    Ok(kibibytes * 1024)
}

/// Processor time of all threads of the process `pid`; an error if it is gone.
pub fn processor_time(pid: u32) -> Result<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name, in parentheses, may hold anything.
    let (_, fields) = stat.rsplit_once(')').context("its name")?;
    let mut fields = fields.split_whitespace().skip(11);
    let mut ticks = || fields.next().context("its time")?.parse::<u32>().context("its time");
    Ok(TICK * (ticks()? + ticks()?))
}

/// A running child process.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    stdin: Option<ChildStdin>,
    log: Arc<Log>,
    /// Where [`Process::next_line`] goes on reading.
    cursor: usize,
    _readers: JoinSet<()>,
}

impl Process {
    /// Starts `command`; `name` appears in errors. Must be called inside a tokio runtime.
    pub fn spawn(name: impl Into<String>, mut command: Command) -> Result<Self> {
        let name = name.into();
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("start {name}: {command:?}"))?;
        let log = Arc::new(Log::new());
        let mut readers = JoinSet::new();
        if let Some(stdout) = child.stdout.take() {
            readers.spawn(read_lines(stdout, log.clone()));
        }
        if let Some(stderr) = child.stderr.take() {
            readers.spawn(read_lines(stderr, log.clone()));
        }
        let stdin = child.stdin.take();
        Ok(Self { name, child, stdin, log, cursor: 0, _readers: readers })
    }

    /// The operating system's id of the process, unless it was already waited for.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// What the process has written so far.
    #[must_use]
    pub fn log(&self) -> Arc<Log> {
        self.log.clone()
    }

    /// The process's standard input, once.
    pub fn take_stdin(&mut self) -> Option<ChildStdin> {
        self.stdin.take()
    }

    /// The next line of output that was not returned yet, or `None` at the end of output. Cancel safe.
    pub async fn next_line(&mut self) -> Option<String> {
        let line = self.log.line(self.cursor).await;
        self.cursor += usize::from(line.is_some());
        line
    }

    /// Sends `signal`; a process that has already ended is not an error.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let Some(pid) = self.pid().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw) else {
            return Ok(());
        };
        match rustix::process::kill_process(pid, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(error).with_context(|| format!("signal {}", self.name)),
        }
    }

    /// How the process ended, if it has.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Waits for the process to end by itself.
    pub async fn wait(&mut self) -> Result<ExitStatus> {
        let status = within(&format!("end of {self}"), async { Ok(self.child.wait().await?) }).await?;
        within(&format!("end of the output of {self}"), async {
            self.log.closed().await;
            Ok(())
        })
        .await?;
        Ok(status)
    }

    /// Waits for the process to end by itself and demands exit code 0.
    pub async fn wait_success(&mut self) -> Result<()> {
        let status = self.wait().await?;
        if !status.success() {
            bail!("{self} ended with {status}");
        }
        Ok(())
    }

    /// Ends the process as a crash would (`SIGKILL`) and waits until it is gone.
    pub async fn kill9(&mut self) -> Result<()> {
        self.signal(Signal::KILL)?;
        self.wait().await.map(drop)
    }
}

/// The name, and the end of the output.
impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}\n{}", self.name, self.log.tail())
    }
}

/// The lines a process has written, standard output and error in order of arrival.
#[derive(Debug)]
pub struct Log {
    lines: Mutex<Vec<String>>,
    /// Counts changes, so that a reader can wait for the next one.
    changes: watch::Sender<u64>,
    open: AtomicUsize,
}

impl Log {
    fn new() -> Self {
        Self { lines: Mutex::default(), changes: watch::Sender::new(0), open: AtomicUsize::new(2) }
    }

    /// Every line so far.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        self.lines.lock().clone()
    }

    /// The last lines, for an error message.
    #[must_use]
    pub fn tail(&self) -> String {
        let lines = self.lines.lock();
        let skipped = lines.len().saturating_sub(LINES_QUOTED);
        lines.iter().skip(skipped).map(|line| format!("    | {line}\n")).collect()
    }

    /// The first line, old or new, that `wanted` maps to a value; `None` if output ended without one.
    pub async fn find<T>(&self, mut wanted: impl FnMut(&str) -> Option<T>) -> Option<T> {
        for n in 0.. {
            if let Some(found) = wanted(&self.line(n).await?) {
                return Some(found);
            }
        }
        None
    }

    async fn line(&self, n: usize) -> Option<String> {
        let mut changes = self.changes.subscribe();
        loop {
            changes.mark_unchanged();
            // Read before the lines: a line pushed just before the end must still be seen.
            let open = self.open.load(Ordering::Acquire) > 0;
            if let Some(line) = self.lines.lock().get(n) {
                return Some(line.clone());
            }
            if !open || changes.changed().await.is_err() {
                return None;
            }
        }
    }

    async fn closed(&self) {
        let mut changes = self.changes.subscribe();
        while self.open.load(Ordering::Acquire) > 0 && changes.changed().await.is_ok() {}
    }

    fn push(&self, line: String) {
        let mut lines = self.lines.lock();
        if lines.len() < LINES_MAX {
            lines.push(line);
        }
        drop(lines);
        self.changes.send_modify(|n| *n += 1);
    }

    fn close_one(&self) {
        self.open.fetch_sub(1, Ordering::AcqRel);
        self.changes.send_modify(|n| *n += 1);
    }
}

async fn read_lines(output: impl AsyncRead + Unpin, log: Arc<Log>) {
    let mut output = BufReader::new(output);
    let mut line = Vec::new();
    while let Ok(1..) = output.read_until(b'\n', &mut line).await {
        log.push(String::from_utf8_lossy(&line).trim_end().to_owned());
        line.clear();
    }
    log.close_one();
}
