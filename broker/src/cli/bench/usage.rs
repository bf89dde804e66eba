//! What processes of this machine have used, as Linux counts it. Elsewhere nothing is known.

use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};

/// The kernel's unit of processor time, which is the same on every machine.
const TICK: Duration = Duration::from_millis(10);

/// Which processes to look at.
#[derive(Clone, Copy, Debug)]
pub(super) struct Processes {
    pub(super) broker: Option<u32>,
}

/// A reading of both.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Reading {
    load: Usage,
    broker: Usage,
}

/// What came of a run.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Used {
    /// Processor time of the load generator, and of the broker.
    pub(super) load_cpu: Option<Duration>,
    pub(super) broker_cpu: Option<Duration>,
    /// Resident memory of the broker, before and after.
    pub(super) broker_memory: Option<(u64, u64)>,
    /// The same at its highest, as often as it was looked at.
    pub(super) broker_memory_highest: Option<u64>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Usage {
    cpu: Option<Duration>,
    resident_bytes: Option<u64>,
}

impl Processes {
    pub(super) fn read(self) -> Reading {
        let broker = self.broker.map(|pid| Usage::read(&pid.to_string())).unwrap_or_default();
        Reading { load: Usage::read("self"), broker }
    }
}

impl Processes {
    /// Resident memory of the broker.
    pub(super) fn broker_memory(self) -> Option<u64> {
        self.broker.and_then(|pid| resident_bytes_of(&pid.to_string()))
    }
}

impl Reading {
    /// What was used since `earlier`.
    pub(super) fn since(&self, earlier: &Self) -> Used {
        let cpu = |now: Usage, then: Usage| Some(now.cpu?.saturating_sub(then.cpu?));
        Used {
            load_cpu: cpu(self.load, earlier.load),
            broker_cpu: cpu(self.broker, earlier.broker),
            broker_memory: earlier.broker.resident_bytes.zip(self.broker.resident_bytes),
            broker_memory_highest: None,
        }
    }
}

impl Used {
    /// The same where memory was also looked at in between.
    pub(super) fn with_highest(self, between: Option<u64>) -> Self {
        let ends = self.broker_memory.map(|(before, after)| before.max(after));
        Self { broker_memory_highest: ends.max(between), ..self }
    }

    pub(super) fn document(&self) -> Value {
        let nanos =
            |time: Option<Duration>| time.map(|time| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
        json!({
            "loadCpuNanos": nanos(self.load_cpu),
            "brokerCpuNanos": nanos(self.broker_cpu),
            "brokerResidentBytesBefore": self.broker_memory.map(|(before, _)| before),
            "brokerResidentBytesAfter": self.broker_memory.map(|(_, after)| after),
            "brokerResidentBytesPeak": self.broker_memory_highest,
        })
    }
}

impl Usage {
    fn read(process: &str) -> Self {
        Self {
            cpu: file_of(process, "stat").as_deref().and_then(cpu),
            resident_bytes: resident_bytes_of(process),
        }
    }
}

fn resident_bytes_of(process: &str) -> Option<u64> {
    resident_bytes(&file_of(process, "status")?)
}

fn file_of(process: &str, file: &str) -> Option<String> {
    std::fs::read_to_string(PathBuf::from("/proc").join(process).join(file)).ok()
}

/// Processor time of all threads, from `/proc/PID/stat`.
fn cpu(stat: &str) -> Option<Duration> {
    // The name, in parentheses, may hold anything.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let mut ticks = || fields.next()?.parse::<u32>().ok();
    Some(TICK * ticks()?.checked_add(ticks()?)?)
}

/// Resident memory, from `/proc/PID/status`.
fn resident_bytes(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_files_are_read() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194560 1 2 3 4 250 50 9 9 20 0 5 0 100 1000 1000";
        assert_eq!(cpu(stat), Some(Duration::from_secs(3)));
        assert_eq!(cpu("7 (a) S 1"), None);
        assert_eq!(resident_bytes("Name:\ta\nVmRSS:\t    2048 kB\nVmData: 1 kB\n"), Some(2 << 20));
        assert_eq!(resident_bytes("Name:\ta\n"), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_process_uses_memory_and_what_is_not_there_is_not_made_up() {
        let me = Processes { broker: Some(std::process::id()) };
        let before = me.read();
        let used = me.read().since(&before);
        assert!(used.load_cpu.is_some() && used.broker_cpu.is_some());
        let highest = used.with_highest(me.broker_memory()).broker_memory_highest.unwrap();
        assert!(used.broker_memory.unwrap().1 > 0);
        assert!(highest >= used.broker_memory.unwrap().0.max(used.broker_memory.unwrap().1));
        assert_eq!(used.with_highest(Some(u64::MAX)).broker_memory_highest, Some(u64::MAX));
        let nobody = Processes { broker: None };
        assert!(nobody.read().since(&nobody.read()).broker_memory.is_none());
    }
}
