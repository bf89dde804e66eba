//! This process as the operating system sees it: how many files it may open, and what it uses, for `/metrics`.
//!
//! Where the system does not say (it is Linux that does), a metric is absent.

use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// What Linux counts processor time of processes in, whatever the kernel's own clock.
const TICK_MILLIS: u64 = 10;

/// Lets this process open as many files as it may: each client is one. Says how many that is.
pub(crate) fn raise_file_limit() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, ..limit };
    let files = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => raised.current,
        Err(error) => {
            tracing::warn!(%error, "the limit on open files stays as it is");
            limit.current
        }
    };
    match files {
        Some(files) => tracing::info!(files, "open files are limited: each client takes one"),
        None => tracing::info!("open files are not limited"),
    }
}

/// Adds what the process uses to `registry`, read when it is asked for.
pub(crate) fn register(registry: &mut Registry) {
    registry.register_collector(Box::new(Process));
}

#[derive(Debug)]
struct Process;

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let mut gauge = |name: &str, help: &str, unit: Option<&Unit>, value: Option<u64>| {
            let Some(value) = value.and_then(|value| i64::try_from(value).ok()) else { return Ok(()) };
            let gauge = ConstGauge::new(value);
            let metric = encoder.encode_descriptor(name, help, unit, gauge.metric_type())?;
            gauge.encode(metric)
        };
        gauge("process_resident_memory", "Memory in use", Some(&Unit::Bytes), resident_bytes())?;
        gauge("process_open_fds", "Files open, sockets included", None, open_files())?;
        gauge("process_max_fds", "Files that may be open", None, getrlimit(Resource::Nofile).current)?;
        let Some(time) = processor_time() else { return Ok(()) };
        let counter = ConstCounter::new(time.as_secs_f64());
        let unit = Some(&Unit::Seconds);
        let metric =
            encoder.encode_descriptor("process_cpu", "Processor time taken", unit, counter.metric_type())?;
        counter.encode(metric)
    }
}

/// Processor time of all threads since the process started.
pub(crate) fn processor_time() -> Option<Duration> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // The name may hold anything, and ends with the last parenthesis; the two times are the 12th and 13th field after it.
    let (_, fields) = stat.rsplit_once(')')?;
    let mut times = fields.split_ascii_whitespace().skip(11);
    let ticks = times.next()?.parse::<u64>().ok()?.checked_add(times.next()?.parse().ok()?)?;
    ticks.checked_mul(TICK_MILLIS).map(Duration::from_millis)
}

/// Resident memory.
fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

fn open_files() -> Option<u64> {
    Some(std::fs::read_dir("/proc/self/fd").ok()?.count() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processor_time_grows_with_work() {
        if cfg!(target_os = "linux") {
            let before = processor_time().unwrap();
            let mut n = 0_u64;
            while processor_time().unwrap() <= before {
                n = std::hint::black_box(n).wrapping_add(1);
            }
        }
    }

    #[test]
    fn what_the_process_uses_is_told() {
        let mut registry = Registry::default();
        register(&mut registry);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        if cfg!(target_os = "linux") {
            for name in ["process_resident_memory_bytes", "process_open_fds", "process_max_fds"] {
                let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
                let value: u64 = line.unwrap_or_else(|| panic!("no {name} in {text}")).parse().unwrap();
                assert!(value > 3, "{name} {value}");
            }
        }
    }
}
