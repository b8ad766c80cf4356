//! How far watch streams lag, as it is at the moment of a scrape.

use super::sampled;
use prometheus_client::registry::Registry;

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
    sampled::register(registry, move || {
        let lag = lag();
        [
            ("tenure_watch_lag_revisions", "Revisions that the slowest watch stream is behind", lag.slowest_revisions),
            ("tenure_watch_catching_up", "Watch streams that are served from history now", lag.catching_up),
            (
                "tenure_watch_buffered_bytes",
                "Bytes that readers of watch streams have not taken yet",
                lag.buffered_bytes,
            ),
        ]
    });
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
