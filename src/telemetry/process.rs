//! The process as the operating system sees it: memory, processor time, file descriptors, under the
//! names every Prometheus client library uses. Read from `/proc` at each scrape; where there is no
//! `/proc`, the metrics are simply absent.

use super::sampled::gauge;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::registry::Registry;
use std::fs;

/// Ticks per second of `/proc/…/stat`: Linux fixes it at 100 for user space.
const CLOCK_TICKS: f64 = 100.0;

#[derive(Debug)]
struct ProcessCollector;

/// Registers the metrics to be written after those registered before.
pub fn register(registry: &mut Registry) {
    registry.sub_registry_with_labels(std::iter::empty()).register_collector(Box::new(ProcessCollector));
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct Usage {
    cpu_seconds: f64,
    threads: u64,
    resident_bytes: u64,
    virtual_bytes: u64,
}

impl Collector for ProcessCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        if let Some(usage) = usage() {
            counter(&mut encoder, "process_cpu_seconds", "User and system time spent", usage.cpu_seconds)?;
            gauge(&mut encoder, "process_resident_memory_bytes", "Resident memory", usage.resident_bytes)?;
            gauge(&mut encoder, "process_virtual_memory_bytes", "Virtual memory", usage.virtual_bytes)?;
            gauge(&mut encoder, "process_threads", "Threads", usage.threads)?;
        }
        if let Some(open) = open_files() {
            gauge(&mut encoder, "process_open_fds", "Open file descriptors", open)?;
        }
        if let Some(max) = fs::read_to_string("/proc/self/limits").ok().and_then(|limits| files_max(&limits)) {
            gauge(&mut encoder, "process_max_fds", "File descriptors allowed", max)?;
        }
        Ok(())
    }
}

fn counter(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: f64) -> Result<(), std::fmt::Error> {
    let metric = ConstCounter::new(value);
    metric.encode(encoder.encode_descriptor(name, help, None, metric.metric_type())?)
}

fn usage() -> Option<Usage> {
    parse_stat(&fs::read_to_string("/proc/self/stat").ok()?)
}

/// Resident memory of this process, if the system tells.
#[must_use]
pub fn resident_bytes() -> Option<u64> {
    usage().map(|usage| usage.resident_bytes)
}

fn open_files() -> Option<u64> {
    // The directory is open while it is read, which is one more than without us.
    Some((fs::read_dir("/proc/self/fd").ok()?.count() as u64).saturating_sub(1))
}

fn files_max(limits: &str) -> Option<u64> {
    let line = limits.lines().find(|line| line.starts_with("Max open files"))?;
    line.split_whitespace().nth(3)?.parse().ok()
}

/// The fields of `proc(5)`'s stat behind the command name, which may itself hold spaces and brackets.
fn parse_stat(stat: &str) -> Option<Usage> {
    let (_, rest) = stat.rsplit_once(')')?;
    // Field 3 (state) is at 0 here.
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
    let ticks = u32::try_from(field(14)?.checked_add(field(15)?)?).unwrap_or(u32::MAX);
    let page_bytes = u64::try_from(rustix::param::page_size()).ok()?;
    Some(Usage {
        cpu_seconds: f64::from(ticks) / CLOCK_TICKS,
        threads: field(20)?,
        virtual_bytes: field(23)?,
        resident_bytes: field(24)?.checked_mul(page_bytes)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_name_with_brackets_does_not_shift_the_fields() {
        let stat = "7 (a) b (c)) S 1 2 3 4 5 6 7 8 9 10 150 50 13 14 15 16 9 18 19 4096 3 22";
        let usage = parse_stat(stat).unwrap();
        assert_eq!((usage.cpu_seconds, usage.threads, usage.virtual_bytes), (2.0, 9, 4096));
        assert_eq!(usage.resident_bytes, 3 * rustix::param::page_size() as u64);
        assert_eq!(parse_stat("7 (a) S 1 2"), None);
    }

    #[test]
    fn the_limit_of_open_files_is_found() {
        let limits = "Limit  Soft Limit  Hard Limit  Units\nMax open files            1024                 4096                 files\n";
        assert_eq!(files_max(limits), Some(1024));
    }
}
