//! `weir metrics`: the metrics of a running server, in columns.

use std::io::Write as _;
use std::process::ExitCode;

use clap::Args;
use serde::Serialize;
use weir_telemetry::exposition::{Sample, samples};

use super::{ServerAddress, Watch, block_on};

/// `weir metrics`.
#[derive(Debug, Args)]
pub(crate) struct Metrics {
    #[command(flatten)]
    server: ServerAddress,
    #[command(flatten)]
    watch: Watch,
    /// Only metrics whose name contains this text
    #[arg(long, value_name = "TEXT")]
    filter: Option<String>,
    /// Print one JSON array of names, labels and values
    #[arg(long)]
    json: bool,
}

/// A sample as JSON.
#[derive(Serialize)]
struct JsonSample<'a> {
    name: &'a str,
    /// The labels with their values as they are written, without the braces.
    #[serde(skip_serializing_if = "str::is_empty")]
    labels: &'a str,
    value: f64,
}

impl<'a> JsonSample<'a> {
    fn of(sample: &Sample<'a>) -> Self {
        Self { name: sample.name, labels: sample.label_text, value: sample.value }
    }
}

pub(crate) fn main(arguments: &Metrics) -> anyhow::Result<ExitCode> {
    block_on(arguments.watch.repeat(async || {
        let response = arguments.server.get("/metrics").await?;
        let (url, status) = (&arguments.server.url, response.status);
        anyhow::ensure!(status != 401 && status != 403, "{url} answers {status}: give a token with --token-file");
        anyhow::ensure!(status == 200, "{url} answers {status}");
        let filter = arguments.filter.as_deref().unwrap_or_default();
        let samples: Vec<Sample<'_>> = samples(&response.body).filter(|sample| sample.name.contains(filter)).collect();
        let mut out = std::io::stdout().lock();
        arguments.watch.begin(&mut out, arguments.json)?;
        if arguments.json {
            let samples: Vec<JsonSample<'_>> = samples.iter().map(JsonSample::of).collect();
            writeln!(out, "{}", serde_json::to_string(&samples)?)?;
        } else {
            write!(out, "{}", columns(&samples))?;
            if arguments.watch.watch {
                writeln!(out)?;
            }
        }
        out.flush()?;
        Ok(true)
    }))?;
    Ok(ExitCode::SUCCESS)
}

/// Names with their labels, and values, in two columns.
fn columns(samples: &[Sample<'_>]) -> String {
    let series = |sample: &Sample<'_>| match sample.label_text {
        "" => sample.name.to_owned(),
        labels => format!("{} {labels}", sample.name),
    };
    let width = samples.iter().map(|sample| series(sample).chars().count()).max().unwrap_or(0);
    samples.iter().map(|sample| format!("{:<width$}  {}\n", series(sample), sample.value)).collect()
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    #[test]
    fn samples_are_shown_in_columns() {
        let text = "a_total{model=\"x\"} 12\nlonger_name 0.5\n";
        expect![[r#"
            a_total model="x"  12
            longer_name        0.5
        "#]]
        .assert_eq(&columns(&samples(text).collect::<Vec<_>>()));
    }
}
