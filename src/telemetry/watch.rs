//! How far watch streams lag, as it is at the moment of a scrape.

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;
use std::fmt::{self, Debug};

#[derive(Debug, Clone, Copy, Default)]
pub struct WatchLag {
    /// Of the stream that is furthest behind.
    pub slowest_revisions: u64,
    /// Streams that are served from history now.
    pub catching_up: u64,
    /// Handed to streams and not yet taken by their readers.
    pub buffered_bytes: u64,
}

/// Registers the names once per registry; `lag` is asked at each scrape.
pub fn register<F>(registry: &mut Registry, lag: F)
where
    F: Fn() -> WatchLag + Send + Sync + 'static,
{
    registry.register_collector(Box::new(LagCollector(Box::new(lag))));
}

struct LagCollector(Box<dyn Fn() -> WatchLag + Send + Sync>);

impl Debug for LagCollector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LagCollector")
    }
}

impl Collector for LagCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let lag = (self.0)();
        let rows = [
            ("tenure_watch_lag_revisions", "Revisions that the slowest watch stream is behind", lag.slowest_revisions),
            ("tenure_watch_catching_up", "Watch streams that are served from history now", lag.catching_up),
            (
                "tenure_watch_buffered_bytes",
                "Bytes that readers of watch streams have not taken yet",
                lag.buffered_bytes,
            ),
        ];
        for (name, help, value) in rows {
            let metric = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
            metric.encode(encoder.encode_descriptor(name, help, None, metric.metric_type())?)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scrape_asks_for_the_lag_of_now() {
        let mut registry = Registry::default();
        register(&mut registry, || WatchLag { slowest_revisions: 7, catching_up: 2, buffered_bytes: 4096 });
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        for line in ["tenure_watch_lag_revisions 7", "tenure_watch_catching_up 2", "tenure_watch_buffered_bytes 4096"] {
            assert!(text.lines().any(|found| found == line), "{line} is missing in\n{text}");
        }
    }
}
