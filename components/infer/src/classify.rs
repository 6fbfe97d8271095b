//! From logits to scored labels, as in the text-classification pipeline of transformers 4.57.

use crate::types::{Activation, Failure, LabelScore};

/// The scores of `labels` from their `logits`: the `top_k` best or all, best first, equal scores in the order of the
/// labels.
///
/// # Errors
///
/// [`Failure::Engine`] if the number of logits differs from that of the labels, or a score is not finite.
pub fn label_scores(
    logits: &[f32],
    labels: &[String],
    activation: Activation,
    top_k: Option<u32>,
) -> Result<Vec<LabelScore>, Failure> {
    if logits.len() != labels.len() {
        let (logits, labels) = (logits.len(), labels.len());
        return Err(Failure::Engine(format!("the graph gives {logits} logits and the configuration {labels} labels")));
    }
    let scores = match activation {
        Activation::Softmax => softmax(logits),
        Activation::Sigmoid => logits.iter().map(|&x| 1.0 / (1.0 + (-x).exp())).collect(),
        Activation::Identity => logits.to_vec(),
    };
    if scores.iter().any(|score| !score.is_finite()) {
        return Err(Failure::Engine("the model gave a score that is not a number".to_owned()));
    }
    let mut scored: Vec<LabelScore> =
        labels.iter().zip(scores).map(|(label, score)| LabelScore { label: label.clone(), score }).collect();
    // The sort is stable, and the scores are finite.
    scored.sort_by(|a, b| b.score.partial_cmp(&a.score).unwrap_or(std::cmp::Ordering::Equal));
    scored.truncate(top_k.map_or(usize::MAX, |top_k| top_k as usize));
    Ok(scored)
}

/// `exp(x - max) / sum`, in f32.
pub fn softmax(logits: &[f32]) -> Vec<f32> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let exp: Vec<f32> = logits.iter().map(|&x| (x - max).exp()).collect();
    let sum: f32 = exp.iter().sum();
    exp.into_iter().map(|x| x / sum).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(names: &[&str]) -> Vec<String> {
        names.iter().map(|&name| name.to_owned()).collect()
    }

    fn names(scored: &[LabelScore]) -> Vec<&str> {
        scored.iter().map(|scored| scored.label.as_str()).collect()
    }

    #[test]
    fn equal_scores_keep_the_order_of_the_labels() {
        let scored =
            label_scores(&[1.0, 2.0, 2.0, 1.0], &labels(&["a", "b", "c", "d"]), Activation::Softmax, None).unwrap();
        assert_eq!(names(&scored), ["b", "c", "a", "d"]);
    }

    #[test]
    fn negative_zero_equals_zero() {
        let scored = label_scores(&[-0.0, 0.0], &labels(&["a", "b"]), Activation::Identity, None).unwrap();
        assert_eq!(names(&scored), ["a", "b"]);
    }

    #[test]
    fn top_k_selects_the_best() {
        let scored = label_scores(&[0.0, 3.0, 1.0], &labels(&["a", "b", "c"]), Activation::Sigmoid, Some(2)).unwrap();
        assert_eq!(names(&scored), ["b", "c"]);
        assert!((scored[0].score - 0.952_574_1).abs() < 1e-6);
    }

    #[test]
    fn non_finite_logit_is_an_engine_failure() {
        for bad in [f32::NAN, f32::INFINITY] {
            let result = label_scores(&[bad, 0.0], &labels(&["a", "b"]), Activation::Softmax, None);
            assert!(matches!(result, Err(Failure::Engine(_))), "{result:?}");
        }
        assert!(label_scores(&[0.0], &labels(&["a", "b"]), Activation::Softmax, None).is_err());
    }
}
