//! Counters and durations of requests, by operation and class of status: handles are made once, so
//! that an observation is a few atomic additions.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};
use std::time::Duration;

const SECONDS: [f64; 13] = [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 5.0];
const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    operation: &'static str,
    status: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DurationLabels {
    operation: &'static str,
}

/// One entry per operation, in the order given to `new`.
#[derive(Debug, Clone)]
pub struct HttpMetrics {
    operations: Vec<OperationMetrics>,
    panics: Counter,
}

#[derive(Debug, Clone)]
struct OperationMetrics {
    by_class: [Counter; 5],
    duration: Histogram,
}

impl HttpMetrics {
    /// Registers `tenure_http_…`. The operations are the label's only values.
    #[must_use]
    pub fn new(registry: &mut Registry, operations: &[&'static str]) -> Self {
        let registry = registry.sub_registry_with_prefix("tenure_http");
        let requests = Family::<RequestLabels, Counter>::default();
        let durations = Family::<DurationLabels, Histogram>::new_with_constructor(|| Histogram::new(SECONDS));
        let panics = Counter::default();
        let operations = operations
            .iter()
            .map(|&operation| OperationMetrics {
                by_class: CLASSES.map(|status| requests.get_or_create(&RequestLabels { operation, status }).clone()),
                duration: durations.get_or_create(&DurationLabels { operation }).clone(),
            })
            .collect();
        registry.register("requests", "Requests answered, by operation and class of status", requests);
        registry.register_with_unit(
            "request_duration",
            "Time from a request's head to its answer's head; blocking reads include their wait",
            Unit::Seconds,
            durations,
        );
        registry.register("panics", "Requests whose handler panicked", panics.clone());
        Self { operations, panics }
    }

    /// Out of range indexes and statuses are not counted.
    pub fn observe(&self, operation: usize, status: u16, took: Duration) {
        if let Some(metrics) = self.operations.get(operation) {
            if let Some(counter) =
                usize::from(status / 100).checked_sub(1).and_then(|class| metrics.by_class.get(class))
            {
                counter.inc();
            }
            metrics.duration.observe(took.as_secs_f64());
        }
    }

    pub fn panicked(&self) {
        self.panics.inc();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn observations_land_in_their_operation_and_class() {
        let mut registry = Registry::default();
        let metrics = HttpMetrics::new(&mut registry, &["kvGet", "kvPut"]);
        metrics.observe(1, 412, Duration::from_micros(300));
        metrics.observe(1, 99, Duration::ZERO);
        metrics.observe(7, 200, Duration::ZERO);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        assert!(text.contains("tenure_http_requests_total{operation=\"kvPut\",status=\"4xx\"} 1"), "{text}");
        assert!(text.contains("tenure_http_requests_total{operation=\"kvGet\",status=\"2xx\"} 0"), "{text}");
        assert!(
            text.contains("tenure_http_request_duration_seconds_bucket{le=\"0.0005\",operation=\"kvPut\"} 2"),
            "{text}"
        );
    }
}
