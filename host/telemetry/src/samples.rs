//! The metrics of this process, from their text in the exposition format of Prometheus.

use std::collections::BTreeMap;

use crate::exposition::Sample;

/// The kind of a metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Counter,
    Gauge,
    Histogram,
}

/// The labels of a series.
pub(crate) type Labels = Vec<(String, String)>;

/// A metric with its series.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Metric {
    pub(crate) name: String,
    pub(crate) help: String,
    pub(crate) kind: Kind,
    /// Of counters and gauges.
    pub(crate) values: Vec<(Labels, f64)>,
    pub(crate) histograms: Vec<(Labels, Histogram)>,
}

/// A series of a histogram.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Histogram {
    /// Upper bounds, without infinity.
    pub(crate) bounds: Vec<f64>,
    /// Values up to each bound, and all.
    pub(crate) cumulative_counts: Vec<u64>,
    pub(crate) sum: f64,
    pub(crate) count: u64,
}

/// Reads all metrics. Lines that are not understood, and metrics of other kinds, are left out.
pub(crate) fn parse(text: &str) -> Vec<Metric> {
    let mut helps = BTreeMap::new();
    let mut metrics: Vec<Metric> = Vec::new();
    for line in text.lines() {
        if let Some((name, help)) = line.strip_prefix("# HELP ").and_then(|rest| rest.split_once(' ')) {
            helps.insert(name, help);
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
            let kind = match kind {
                "counter" => Kind::Counter,
                "gauge" => Kind::Gauge,
                "histogram" => Kind::Histogram,
                _ => continue,
            };
            let help = helps.get(name).map_or_else(String::new, |help| (*help).to_owned());
            metrics.push(Metric { name: name.to_owned(), help, kind, values: Vec::new(), histograms: Vec::new() });
        } else if let Some((sample, labels)) = Sample::read(line).and_then(|sample| Some((sample, sample.labels()?))) {
            // Samples follow the line with their type.
            if let Some(metric) = metrics.last_mut() {
                let owned = labels.into_iter().map(|(name, value)| (name.to_owned(), value.into_owned()));
                metric.add(sample.name, owned.collect(), sample.value);
            }
        }
    }
    metrics.retain(|metric| !metric.values.is_empty() || !metric.histograms.is_empty());
    metrics
}

impl Metric {
    fn add(&mut self, name: &str, mut labels: Labels, value: f64) {
        let Some(series) = name.strip_prefix(self.name.as_str()) else { return };
        if self.kind != Kind::Histogram {
            if series.is_empty() {
                self.values.push((labels, value));
            }
            return;
        }
        let bound = labels.iter().position(|(name, _)| name == "le").map(|at| labels.remove(at).1);
        let at = match self.histograms.iter().position(|(other, _)| *other == labels) {
            Some(at) => at,
            None => {
                self.histograms.push((labels, Histogram::default()));
                self.histograms.len() - 1
            }
        };
        let histogram = &mut self.histograms[at].1;
        match (series, bound) {
            ("_bucket", Some(bound)) => {
                histogram.cumulative_counts.push(value as u64);
                if let Some(bound) = bound.parse().ok().filter(|bound: &f64| bound.is_finite()) {
                    histogram.bounds.push(bound);
                }
            }
            ("_sum", None) => histogram.sum = value,
            ("_count", None) => histogram.count = value as u64,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_metric_is_read() {
        let text = "# HELP weir_requests_total requests answered\n# TYPE weir_requests_total counter\n\
                    weir_requests_total{method=\"GET\",path=\"a \\\"b\\\", c\\\\\"} 3\nweir_requests_total 4\n\n\
                    # TYPE weir_open gauge\nweir_open -1.5\n# TYPE weir_empty gauge\n# TYPE weir_summary summary\n\
                    # TYPE weir_seconds histogram\nweir_seconds_bucket{le=\"0.1\"} 1\nweir_seconds_bucket{le=\"1\"} 3\n\
                    weir_seconds_bucket{le=\"+Inf\"} 4\nweir_seconds_sum 5.5\nweir_seconds_count 4\nbroken\n";
        let metrics = parse(text);
        let names: Vec<&str> = metrics.iter().map(|metric| metric.name.as_str()).collect();
        assert_eq!(names, ["weir_requests_total", "weir_open", "weir_seconds"]);
        assert_eq!(metrics[0].help, "requests answered");
        let labels = vec![("method".to_owned(), "GET".to_owned()), ("path".to_owned(), "a \"b\", c\\".to_owned())];
        assert_eq!(metrics[0].values, [(labels, 3.0), (Vec::new(), 4.0)]);
        assert_eq!(metrics[1].values, [(Vec::new(), -1.5)]);
        let histogram = Histogram { bounds: vec![0.1, 1.0], cumulative_counts: vec![1, 3, 4], sum: 5.5, count: 4 };
        assert_eq!(metrics[2].histograms, [(Vec::new(), histogram)]);
    }
}
