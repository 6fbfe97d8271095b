//! The keys of pipelines.

use std::collections::BTreeMap;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Pipelines and their executions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Pipelines {
    /// Folder of pipelines, a file `NAME.json` for each; one that changes is read again within a second. Empty: there are none.
    pub dir: PathBuf,
    /// Executions that go on at once; one more is answered 503 with `Retry-After`.
    pub executions_max: u32,
    /// Executions of one user that go on at once; one more is answered 429 with `Retry-After`.
    pub user_executions_max: u32,
    /// Input of an execution, bytes of JSON; a longer one is answered 413.
    pub input_bytes_max: u64,
    /// Output of a step, bytes of JSON, at most 250000; a step with a longer one has failed.
    pub output_bytes_max: u64,
    /// Outputs of all steps of an execution together, bytes of JSON; they are in every checkpoint.
    pub outputs_bytes_max: u64,
    /// How long an execution that has ended can be asked for, and an `Idempotency-Key` is known, ms.
    pub ttl_ms: u64,
    /// Whom `http` steps may call: `HOST` (the scheme's own port) or `HOST:PORT`.
    pub http_allow: Vec<String>,
    /// Components that are steps, `NAME=FILE.wasm`: a step of the kind `component` names one as its `path`. A file that changes
    /// is taken for the calls that begin after.
    pub steps: Vec<String>,
    /// Memory of a component in one call, bytes, whatever its step says.
    pub step_memory_bytes_max: u64,
    /// Time for one call of a component, ms, whatever its step says.
    pub step_deadline_ms_max: u64,
    /// Calls of components at once; one more waits.
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
    /// The files of the components, by name; a sentence about an item that is none.
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
