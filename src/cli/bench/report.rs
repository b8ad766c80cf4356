//! What is told of a run.

use super::cost::Sample;
use super::door::Reach;
use super::load::{Tally, per_second};
use super::{mix, options};
use crate::cli::args::BenchLoop;
use crate::cli::exit::CliError;
use crate::cli::output::Out;
use serde::Serialize;
use std::collections::BTreeMap;

#[derive(Debug, Serialize)]
pub(super) struct Report {
    operation: &'static str,
    door: &'static str,
    connections: u64,
    /// Each with one request at a time.
    clients: u64,
    key_bytes: u64,
    value_bytes: u64,
    key_space: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    keys_per_request: Option<u64>,
    seconds: f64,
    requests: u64,
    operations: u64,
    ops_per_s: f64,
    latency_us: Latency,
    error_count: u64,
    errors: BTreeMap<String, u64>,
    server: Cost,
    client: Cost,
}

/// Of whole requests.
#[derive(Debug, Serialize)]
struct Latency {
    mean: f64,
    p50: u64,
    p90: u64,
    p99: u64,
    p999: u64,
    max: u64,
}

#[derive(Debug, Serialize)]
struct Cost {
    cpu_us_per_op: Option<f64>,
    cpu_s: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rss_bytes: Option<f64>,
}

impl Report {
    pub(super) fn new(command: &BenchLoop, reach: Reach, tally: &Tally, [before, after]: [&Sample; 2]) -> Self {
        let load = options(command);
        let cost = |from: Option<f64>, to: Option<f64>| from.zip(to).map(|(from, to)| to - from);
        let per_op = |cpu_s: Option<f64>| {
            #[expect(clippy::cast_precision_loss, reason = "a mean for people")]
            cpu_s.filter(|_| tally.operations > 0).map(|cpu_s| cpu_s * 1e6 / tally.operations as f64)
        };
        let server = cost(before.server_cpu_s, after.server_cpu_s);
        let own = cost(before.own_cpu_s, after.own_cpu_s);
        let latency = &tally.latency_us;
        Self {
            operation: match command {
                BenchLoop::Put(_) => "put",
                BenchLoop::Get(_) => "get",
                BenchLoop::Mixed(_) => "mixed",
                BenchLoop::Range(_) => "range",
                BenchLoop::Count(_) => "count",
            },
            door: reach.door.name(),
            connections: reach.connections,
            clients: reach.clients,
            key_bytes: load.key_size,
            value_bytes: load.value_size,
            key_space: load.key_space,
            keys_per_request: match mix(command) {
                super::load::Mix::Txn { keys } | super::load::Mix::Range { keys, .. } => Some(keys),
                _ => None,
            },
            seconds: tally.elapsed.as_secs_f64(),
            requests: tally.requests,
            operations: tally.operations,
            ops_per_s: per_second(tally.operations, tally.elapsed),
            latency_us: Latency {
                mean: latency.mean(),
                p50: latency.value_at_quantile(0.5),
                p90: latency.value_at_quantile(0.9),
                p99: latency.value_at_quantile(0.99),
                p999: latency.value_at_quantile(0.999),
                max: latency.max(),
            },
            error_count: tally.error_count(),
            errors: tally.errors.clone(),
            server: Cost { cpu_us_per_op: per_op(server), cpu_s: server, rss_bytes: after.server_rss_bytes },
            client: Cost { cpu_us_per_op: per_op(own), cpu_s: own, rss_bytes: None },
        }
    }

    pub(super) fn table(&self, out: &mut Out) -> Result<(), CliError> {
        let micros = |us: u64| {
            #[expect(clippy::cast_precision_loss, reason = "milliseconds for people")]
            let ms = us as f64 / 1000.0;
            format!("{ms:.2} ms")
        };
        let per_op = |cost: &Cost| cost.cpu_us_per_op.map_or("unknown".to_owned(), |us| format!("{us:.1} µs"));
        let rss = self.server.rss_bytes.map_or("unknown".to_owned(), |bytes| format!("{:.1} MiB", bytes / 1_048_576.0));
        let header = [
            "OP",
            "CONNS",
            "CLIENTS",
            "OPS",
            "OPS/S",
            "P50",
            "P90",
            "P99",
            "P99.9",
            "MAX",
            "ERRORS",
            "SERVER CPU/OP",
            "SERVER RSS",
            "CLIENT CPU/OP",
        ];
        let latency = &self.latency_us;
        let row = vec![
            self.operation.to_owned(),
            self.connections.to_string(),
            self.clients.to_string(),
            self.operations.to_string(),
            format!("{:.0}", self.ops_per_s),
            micros(latency.p50),
            micros(latency.p90),
            micros(latency.p99),
            micros(latency.p999),
            micros(latency.max),
            self.error_count.to_string(),
            per_op(&self.server),
            rss,
            per_op(&self.client),
        ];
        out.table(&header, vec![row])?;
        for (error, count) in &self.errors {
            out.line(format!("{count} × {error}"))?;
        }
        Ok(())
    }
}
