//! Checks that the models of the configured steps are served, for `/readyz`.

use crate::inference::models::Model;

/// Maximum number of models that a message names.
const NAMES_MAX: usize = 20;

/// The models that the configuration names for the steps. A step whose model is empty is switched off.
#[derive(Debug, Clone, Copy)]
pub struct StepModels<'a> {
    /// `steps.sentiment`
    pub sentiment: &'a str,
    /// `steps.summary`
    pub summary: &'a str,
    /// `steps.entities`
    pub entities: &'a str,
}

impl StepModels<'_> {
    /// A message for each step whose model is not served or is of the wrong kind.
    pub fn unmet(self, models: &[Model]) -> Vec<String> {
        let steps = [
            ("steps.sentiment", self.sentiment, "text-classification"),
            ("steps.summary", self.summary, "feature-extraction"),
            ("steps.entities", self.entities, "token-classification"),
        ];
        let enabled = steps.into_iter().filter(|(_, name, _)| !name.is_empty());
        enabled.filter_map(|(key, name, kind)| unmet(key, name, kind, models)).collect()
    }
}

fn unmet(key: &str, name: &str, kind: &str, models: &[Model]) -> Option<String> {
    let problem = match models.iter().find(|model| model.name == name) {
        Some(model) if model.kind == kind => return None,
        Some(model) => format!("is a {} model", model.kind),
        None => "is not served".to_owned(),
    };
    let suitable: Vec<&str> =
        models.iter().filter(|model| model.kind == kind).map(|model| model.name.as_str()).collect();
    let served = match suitable.as_slice() {
        [] => "none".to_owned(),
        names => names[..names.len().min(NAMES_MAX)].join(", "),
    };
    Some(format!(
        "{key} is `{name}`, which {problem}: set it to a {kind} model that is served ({served}), or to \"\" to switch the \
         step off"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(name: &str, kind: &'static str) -> Model {
        Model { name: name.to_owned(), kind, labels: Vec::new(), tokens_max: 512, ready: true, reason: None }
    }

    fn unmet(sentiment: &str, summary: &str, entities: &str, models: &[Model]) -> Vec<String> {
        StepModels { sentiment, summary, entities }.unmet(models)
    }

    #[test]
    fn served_models_of_the_right_kind_meet_every_step() {
        let models =
            [model("a", "text-classification"), model("b", "feature-extraction"), model("c", "token-classification")];
        assert!(unmet("a", "b", "c", &models).is_empty());
        assert!(unmet("", "", "", &[]).is_empty());
    }

    #[test]
    fn missing_models_and_models_of_another_kind_are_named() {
        let models = [model("a", "text-classification"), model("b", "feature-extraction")];
        assert_eq!(
            unmet("b", "nope", "", &models),
            [
                "steps.sentiment is `b`, which is a feature-extraction model: set it to a text-classification model that is \
                 served (a), or to \"\" to switch the step off",
                "steps.summary is `nope`, which is not served: set it to a feature-extraction model that is served (b), or \
                 to \"\" to switch the step off"
            ]
        );
        let missing = unmet("sentiment", "embeddings", "entities", &[]);
        assert_eq!(missing.len(), 3);
        assert!(missing[2].contains("`entities`, which is not served") && missing[2].contains("(none)"), "{missing:?}");
    }
}
