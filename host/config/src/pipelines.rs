//! The keys of pipelines.

use std::collections::BTreeMap;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Pipelines and their executions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Pipelines {
    /// Folder of pipelines, a file `NAME.json` for each; a changed file is read again within a second. Empty: no
    /// pipelines.
    pub dir: PathBuf,
    /// Running executions; further ones are answered 503 with `Retry-After`.
    pub executions_max: u32,
    /// Running executions of one user; further ones are answered 429 with `Retry-After`. Without authentication
    /// `executions_max` is the only bound.
    pub user_executions_max: u32,
    /// Most bytes in the input of an execution (JSON); a longer one is answered 413.
    pub input_bytes_max: u64,
    /// Most bytes in the output of a step (JSON), at most 250000; a step with a longer output fails.
    pub output_bytes_max: u64,
    /// Most bytes in the outputs of all steps of an execution together (JSON); they are in every checkpoint.
    pub outputs_bytes_max: u64,
    /// How long an ended execution can be read, and an `Idempotency-Key` is remembered, ms.
    pub ttl_ms: u64,
    /// Authorities that `http` steps may call: `HOST` (with the default port of the scheme) or `HOST:PORT`.
    pub http_allow: Vec<String>,
    /// Components that are steps, `NAME=FILE.wasm`: a step of the kind `component` names one as its `path`. A changed
    /// file applies to calls that begin afterwards.
    pub steps: Vec<String>,
    /// Most memory of a component in one call, bytes; a step can set less.
    pub step_memory_bytes_max: u64,
    /// Longest time of one call of a component, ms; a step can set less.
    pub step_deadline_ms_max: u64,
    /// Calls of components at once; further ones wait.
    pub step_calls_max: u32,
}

impl Default for Pipelines {
    fn default() -> Self {
        Self {
            dir: PathBuf::new(),
            executions_max: 256,
            user_executions_max: 64,
            input_bytes_max: 256 << 10,
            output_bytes_max: 192 << 10,
            outputs_bytes_max: 1 << 20,
            ttl_ms: 3_600_000,
            http_allow: Vec::new(),
            steps: Vec::new(),
            step_memory_bytes_max: 256 << 20,
            step_deadline_ms_max: 60_000,
            step_calls_max: 16,
        }
    }
}

impl Pipelines {
    /// The files of the components, by name.
    ///
    /// # Errors
    ///
    /// A message about an invalid item.
    pub fn named_steps(&self) -> Result<BTreeMap<String, PathBuf>, String> {
        let mut named = BTreeMap::new();
        for item in &self.steps {
            let pair = item.split_once('=').filter(|(name, file)| !name.is_empty() && !file.is_empty());
            let (name, file) =
                pair.ok_or_else(|| format!("pipelines.steps must have items NAME=FILE.wasm, not `{item}`"))?;
            if named.insert(name.to_owned(), file.into()).is_some() {
                return Err(format!("pipelines.steps names `{name}` twice"));
            }
        }
        Ok(named)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_have_a_name_and_a_file() {
        let named = |items: &[&str]| {
            let steps = items.iter().map(|item| (*item).to_owned()).collect();
            Pipelines { steps, ..Pipelines::default() }.named_steps()
        };
        assert_eq!(named(&["a=x.wasm", "b=/y=z.wasm"]).unwrap()["b"], PathBuf::from("/y=z.wasm"));
        for items in [&["a"] as &[&str], &["=x"], &["a="], &["a=x", "a=y"]] {
            assert!(named(items).unwrap_err().starts_with("pipelines.steps"), "{items:?}");
        }
    }
}
