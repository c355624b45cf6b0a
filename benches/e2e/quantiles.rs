//! Durations collected one by one, and their quantiles as fields of JSON.

use std::time::Duration;

/// Room for so many at once, so that none waits for memory in an ordinary run.
const ROOM: usize = 1 << 20;

pub struct Quantiles(Vec<u64>);

impl Quantiles {
    pub fn new() -> Self {
        Self(Vec::with_capacity(ROOM))
    }

    pub fn push(&mut self, duration: Duration) {
        self.0.push(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX));
    }

    pub fn append(&mut self, mut other: Self) {
        self.0.append(&mut other.0);
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// `"count": …, "p50": …` and so on; microseconds, zero if there is nothing.
    pub fn json(mut self) -> String {
        self.0.sort_unstable();
        let micros = |quantile: f64| match self.0.len() {
            0 => 0.0,
            len => self.0[((len - 1) as f64 * quantile).round() as usize] as f64 / 1000.0,
        };
        let named = [("min", 0.0), ("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p999", 0.999), ("max", 1.0)];
        let fields = named.map(|(name, quantile)| format!("\"{name}\": {:.2}", micros(quantile)));
        format!("\"count\": {}, {}", self.0.len(), fields.join(", "))
    }
}
