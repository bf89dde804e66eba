//! How often a broker syncs while it is loaded: the proof that what it confirms is durable.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::Command;

use super::Comparison;
use super::report::{Cell, Pace, Syncs};

/// Calls that make a write durable.
const CALLS: &str = "fsync,fdatasync,sync_file_range,msync";
/// How long the tracer may take to write its table.
const TRACER: Duration = Duration::from_secs(20);
/// Time in which the tracer attaches to every thread.
const ATTACH: Duration = Duration::from_millis(700);

impl Comparison {
    /// One publisher with one publish in flight, so that no sync can serve several; slower than without the tracer.
    pub(super) async fn syncs(&mut self) -> Result<()> {
        let cell = Cell { publishers: 1, size: 100, window: 1 };
        for contestant in self.contestants.clone() {
            if self.is_over()? {
                return Ok(());
            }
            let outcome = async {
                let at = self.broker(contestant).await?;
                let pid = self.running[at].pid()?;
                let mut tracer = Command::new("strace");
                tracer.args(["-f", "-c", "-U", "calls,name", "-e", &format!("trace={CALLS}"), "-p"]);
                tracer.arg(pid.to_string()).stdin(Stdio::null()).stdout(Stdio::null());
                tracer.stderr(Stdio::piped()).kill_on_drop(true);
                let tracer = tracer.spawn().context("start strace")?;
                let tracer_pid = tracer.id().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
                tokio::time::sleep(ATTACH).await;
                let sample = self.measured(contestant, cell, Pace::Max, self.options.duration).await?;
                kill_process(tracer_pid.context("the tracer")?, Signal::INT)?;
                let output = tokio::time::timeout(TRACER, tracer.wait_with_output()).await??;
                let table = String::from_utf8_lossy(&output.stderr).into_owned();
                let calls = calls(&table);
                ensure!(!calls.is_empty(), "strace saw no calls: {table}");
                Ok(Syncs { calls, messages: sample.received })
            };
            let outcome: Result<Syncs> = outcome.await;
            if outcome.is_err() {
                self.end(contestant);
            }
            self.results.add_syncs(contestant, outcome)?;
        }
        Ok(())
    }
}

/// Reads strace's table: how often each call was made.
fn calls(table: &str) -> Vec<(String, u64)> {
    let row = |line: &str| {
        let mut words = line.split_whitespace();
        let (calls, name) = (words.next()?.parse().ok()?, words.next()?);
        CALLS.split(',').any(|call| call == name).then(|| (name.to_owned(), calls))
    };
    table.lines().filter_map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::calls;

    #[test]
    fn the_tracers_table_is_read() {
        let table = "strace: Process 7 attached\n     calls syscall\n--------- --------\n       12 fdatasync\n        \
                     3 fsync\n--------- --------\n       15 total\n";
        assert_eq!(calls(table), [("fdatasync".to_owned(), 12), ("fsync".to_owned(), 3)]);
        assert!(calls("").is_empty());
    }
}
