//! Compares servers: the scores of the same texts, requested one at a time and all at once.

use std::collections::BTreeMap;
use std::rc::Rc;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::{Load, send_request};

/// A text's scores by label.
pub(crate) type Scores = BTreeMap<String, f64>;

/// The scores of the first `count` texts: one at a time, then all at once (to detect batches that mix up texts).
pub(crate) async fn run(load: Rc<Load>, count: usize, labels: &[String]) -> Result<[Vec<Scores>; 2]> {
    let count = count.min(load.texts.len());
    let mut alone = Vec::new();
    for text in 0..count {
        alone.push(one(&load, text, labels).await?);
    }
    let local = tokio::task::LocalSet::new();
    let labels: Rc<[String]> = labels.into();
    let together = local
        .run_until(async {
            let tasks: Vec<_> = (0..count)
                .map(|text| {
                    let (load, labels) = (load.clone(), labels.clone());
                    tokio::task::spawn_local(async move { one(&load, text, &labels).await })
                })
                .collect();
            let mut responses = Vec::new();
            for task in tasks {
                responses.push(task.await.context("a task ended badly")??);
            }
            Ok::<_, anyhow::Error>(responses)
        })
        .await?;
    Ok([alone, together])
}

async fn one(load: &Load, text: usize, labels: &[String]) -> Result<Scores> {
    let mut body = Vec::new();
    let status = send_request(&mut None, &load.target, &load.requests[text], &mut body, || ()).await?;
    let response = String::from_utf8_lossy(&body);
    if status != 200 {
        bail!("status {status}: {response}");
    }
    let value = serde_json::from_slice(&body).with_context(|| format!("not JSON: {response}"))?;
    scores(&value, labels).with_context(|| format!("no scores in {response}"))
}

/// Reads `{"outputs": [[{"label", "score"}…]]}` and `{"label", "scores": […]}`, the latter in the order of `labels`.
fn scores(value: &Value, labels: &[String]) -> Option<Scores> {
    if let Some(list) = value["scores"].as_array() {
        let numbers = list.iter().map(Value::as_f64).collect::<Option<Vec<f64>>>()?;
        return (numbers.len() == labels.len()).then(|| labels.iter().cloned().zip(numbers).collect());
    }
    let first = &value["outputs"][0];
    let pairs = if first.is_array() { first.as_array()? } else { value["outputs"].as_array()? };
    let pair = |one: &Value| Some((one["label"].as_str()?.to_owned(), one["score"].as_f64()?));
    pairs.iter().map(pair).collect::<Option<Scores>>().filter(|scores| !scores.is_empty())
}

/// The largest gap between two servers' scores, over the labels that both gave; infinite when a text has none in common.
pub(crate) fn difference(ours: &[Scores], theirs: &[Scores]) -> f64 {
    if ours.len() != theirs.len() {
        return f64::INFINITY;
    }
    let of_text = |(a, b): (&Scores, &Scores)| {
        let gaps: Vec<f64> = a.iter().filter_map(|(label, score)| Some((score - b.get(label)?).abs())).collect();
        if gaps.is_empty() { f64::INFINITY } else { gaps.into_iter().fold(0.0, f64::max) }
    };
    ours.iter().zip(theirs).map(of_text).fold(0.0, f64::max)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn each_response_format_is_read() {
        let labels = ["negative".to_owned(), "positive".to_owned()];
        let peer = scores(&json!({"label": "positive", "scores": [0.25, 0.75]}), &labels).unwrap();
        let pair = |label: &str, score: f64| json!({"label": label, "score": score});
        let both = [pair("positive", 0.75), pair("negative", 0.25)];
        assert_eq!(scores(&json!({"outputs": [both]}), &labels).unwrap(), peer);
        assert_eq!(scores(&json!({"outputs": both}), &labels).unwrap(), peer);
        assert!(scores(&json!({"outputs": []}), &labels).is_none());
        assert!(scores(&json!({"scores": [1.0]}), &labels).is_none());
    }

    #[test]
    fn differences_are_reported() {
        let of = |score: f64| vec![Scores::from([("a".to_owned(), score)])];
        assert!((difference(&of(0.5), &of(0.75)) - 0.25).abs() < 1e-12);
        assert_eq!(difference(&of(0.5), &[Scores::from([("b".to_owned(), 0.5)])]), f64::INFINITY);
        assert_eq!(difference(&of(0.5), &[]), f64::INFINITY);
    }
}
