//! What the run cost: the members' processor time and memory from their metrics, and our own.

use crate::client::{Client, Method, Request};

/// Ticks per second of `/proc/…/stat`: Linux fixes it at 100 for user space.
const TICKS_PER_S: f64 = 100.0;

#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Sample {
    /// Summed over the members; `None` if one did not tell.
    pub(super) server_cpu_s: Option<f64>,
    pub(super) server_rss_bytes: Option<f64>,
    pub(super) own_cpu_s: Option<f64>,
}

pub(super) async fn sample(client: &Client) -> Sample {
    let request = Request::new(Method::Get, "/metrics");
    let (mut cpu, mut rss) = (Some(0.0), Some(0.0));
    for endpoint in client.endpoints() {
        let text = client.send_to(endpoint, &request).await.map(|answer| answer.body).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let add = |sum: Option<f64>, name: &str| Some(sum? + metric(&text, name)?);
        cpu = add(cpu, "process_cpu_seconds_total");
        rss = add(rss, "process_resident_memory_bytes");
    }
    Sample { server_cpu_s: cpu, server_rss_bytes: rss, own_cpu_s: own_cpu() }
}

/// A metric without labels in Prometheus text.
fn metric(text: &str, name: &str) -> Option<f64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.split(' ').next()?.parse().ok())
}

fn own_cpu() -> Option<f64> {
    cpu_of(&std::fs::read_to_string("/proc/self/stat").ok()?)
}

/// The program's name, in parentheses, may hold anything: fields count from its end.
fn cpu_of(stat: &str) -> Option<f64> {
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    let user: f64 = fields.nth(11)?.parse().ok()?;
    let system: f64 = fields.next()?.parse().ok()?;
    Some((user + system) / TICKS_PER_S)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_read_by_their_whole_name() {
        let text = "# TYPE process_cpu_seconds counter\nprocess_cpu_seconds_total_x 9\nprocess_cpu_seconds_total 1.25\nprocess_resident_memory_bytes 2048 123\n";
        assert_eq!(metric(text, "process_cpu_seconds_total"), Some(1.25));
        assert_eq!(metric(text, "process_resident_memory_bytes"), Some(2048.0));
        assert_eq!(metric(text, "process_threads"), None);
    }

    #[test]
    fn processor_time_is_fields_14_and_15() {
        let stat = "42 (a) b) S 1 2 3 4 5 6 7 8 9 10 150 50 0 0 20 0 1";
        assert_eq!(cpu_of(stat), Some(2.0));
        assert!(own_cpu().is_some());
    }
}
