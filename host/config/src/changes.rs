//! The settings that are not those of a fresh configuration, for pages of the server's state.

use serde_json::Value;

use crate::Config;
use crate::manual::is_choice;
use crate::variables::leaves;

/// A setting that differs from its default.
#[derive(Debug, Clone, PartialEq)]
pub struct ChangedSetting {
    /// The key, or the name of a table: `http.requests_max`, `model.reviews`, `adapter.orders`.
    pub key: String,
    /// The value, if it is a number, a switch or a choice. Texts, paths, addresses and lists may hold secrets or names of
    /// the operator's systems: they have none.
    pub value: Option<Value>,
}

/// The settings of a configuration that differ from their defaults, ordered by key, then its tables.
pub fn changed_settings(config: &Config) -> Vec<ChangedSetting> {
    let (values, defaults) = (value_of(config), value_of(&Config::default()));
    let at =
        |values: &Value, key: &str| key.split('.').try_fold(values.clone(), |value, part| value.get(part).cloned());
    let mut changed: Vec<ChangedSetting> = Vec::new();
    for key in leaves() {
        let value = at(&values, &key);
        if value == at(&defaults, &key) {
            continue;
        }
        let value = value.filter(|value| match value {
            Value::Bool(_) | Value::Number(_) => true,
            Value::String(_) => is_choice(&key),
            _ => false,
        });
        changed.push(ChangedSetting { key, value });
    }
    let models = config.model.keys().map(|name| format!("model.{name}"));
    let adapters = config.adapter.iter().map(|adapter| format!("adapter.{}", adapter.name));
    let upstreams = config.upstream.iter().map(|upstream| format!("upstream.{}", upstream.name));
    changed.extend(models.chain(adapters).chain(upstreams).map(|key| ChangedSetting { key, value: None }));
    changed
}

fn value_of(config: &Config) -> Value {
    serde_json::to_value(config).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{AuthMode, Model, Upstream};

    #[test]
    fn changed_numbers_and_choices_have_their_values() {
        assert_eq!(changed_settings(&Config::default()), []);
        let mut config = Config::default();
        config.http.requests_max = 77;
        config.auth.mode = AuthMode::Required;
        config.auth.dir = "/srv/keys".into();
        config.model.insert("reviews".into(), Model { path: "/srv/reviews".into(), ..Model::default() });
        config.upstream.push(Upstream { name: "hub".into(), ..Upstream::default() });
        let changed = changed_settings(&config);
        let text: Vec<String> = changed
            .iter()
            .map(|setting| match &setting.value {
                Some(value) => format!("{} = {value}", setting.key),
                None => setting.key.clone(),
            })
            .collect();
        assert_eq!(
            text,
            ["auth.dir", "auth.mode = \"required\"", "http.requests_max = 77", "model.reviews", "upstream.hub"]
        );
    }

    #[test]
    fn no_text_is_shown() {
        // A configuration in which every text that is no choice holds a secret.
        let mut values = value_of(&Config::default());
        let mut changed_count = 0;
        for (key, _, _) in crate::variables(&Config::default()) {
            let mut value = &mut values;
            for part in key.split('.') {
                value = &mut value[part];
            }
            let secret = match value {
                Value::String(_) if !is_choice(&key) => Value::from("redis://user:secret@host"),
                Value::Array(_) => Value::from(vec!["secret"]),
                _ => continue,
            };
            *value = secret;
            changed_count += 1;
        }
        let config: Config = serde_json::from_value(values).unwrap();
        let changed = changed_settings(&config);
        assert_eq!(changed.len(), changed_count);
        assert!(changed_count > 15, "{changed_count}");
        assert!(changed.iter().all(|setting| setting.value.is_none()), "{changed:?}");
    }
}
