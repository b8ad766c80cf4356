//! Gauges whose values are asked for at each scrape, so that nobody has to keep them up to date. It
//! must not know what they measure.

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;
use std::fmt::{self, Debug};

/// Name, help and value.
pub(super) type Row = (&'static str, &'static str, u64);

/// Registers the rows' names once per registry; `sample` is asked at each scrape.
pub(super) fn register<const N: usize>(registry: &mut Registry, sample: impl Fn() -> [Row; N] + Send + Sync + 'static) {
    registry.register_collector(Box::new(Sampled(sample)));
}

struct Sampled<F>(F);

impl<F> Debug for Sampled<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sampled")
    }
}

impl<F, const N: usize> Collector for Sampled<F>
where
    F: Fn() -> [Row; N] + Send + Sync + 'static,
{
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        for (name, help, value) in (self.0)() {
            gauge(&mut encoder, name, help, value)?;
        }
        Ok(())
    }
}

/// Writes one gauge into a scrape.
pub(super) fn gauge(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: u64) -> Result<(), fmt::Error> {
    let metric = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
    metric.encode(encoder.encode_descriptor(name, help, None, metric.metric_type())?)
}
