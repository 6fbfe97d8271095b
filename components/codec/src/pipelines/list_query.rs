//! The query of `GET /executions`: filters, limit and position.

use weir_core::pipelines::State;

use super::execution::ExecutionSummary;
use crate::{
    inference::query::decode,
    json::field::{FieldError, FieldReason, RequestError, one_of, unknown},
};

/// The default number of executions in a list.
pub const LIMIT_DEFAULT: usize = 100;
/// Maximum number of executions in a list.
pub const LIMIT_MAX: usize = 500;
/// Number of executions that a query searches: the newest of a user.
pub const SCANNED_MAX: usize = 1000;

const FIELDS: [&str; 4] = ["state", "pipeline", "limit", "after"];

/// The parameters of a list of executions, the newest first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListQuery {
    /// Only executions in this state.
    pub state: Option<State>,
    /// Only executions of this pipeline.
    pub pipeline: Option<String>,
    /// Maximum number of executions, 1 to [`LIMIT_MAX`].
    pub limit: usize,
    /// Only executions that began before the execution with this id.
    pub after: Option<String>,
}

impl ListQuery {
    /// Reads a query without its question mark. `ticket` is ignored.
    ///
    /// # Errors
    ///
    /// A parameter is unknown, appears twice, or has an invalid value.
    pub fn read(query: &str) -> Result<Self, RequestError> {
        let mut values: [Option<String>; 4] = [const { None }; 4];
        let mut errors = Vec::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let name = decode(name);
            match FIELDS.iter().position(|field| *field == name) {
                Some(at) if values[at].is_none() => values[at] = Some(decode(value).into_owned()),
                Some(at) => errors.push(not_allowed(FIELDS[at], format!("`{name}` must be given once"))),
                None if name == "ticket" => {}
                None => errors.push(unknown(name.into_owned(), &FIELDS)),
            }
        }
        let [state, pipeline, limit, after] = values;
        let state = state.and_then(|name| {
            let state = State::from_name(&name);
            if state.is_none() {
                let names = ["running", "compensating", "completed", "failed", "cancelled"];
                errors.push(not_allowed("state", format!("`state` {}", one_of(&name, &names))));
            }
            state
        });
        let limit = match limit.map(|text| text.parse::<usize>()) {
            None => LIMIT_DEFAULT,
            Some(Ok(limit)) if (1..=LIMIT_MAX).contains(&limit) => limit,
            Some(_) => {
                errors.push(not_allowed("limit", format!("`limit` must be a whole number from 1 to {LIMIT_MAX}")));
                LIMIT_DEFAULT
            }
        };
        if errors.is_empty() { Ok(Self { state, pipeline, limit, after }) } else { Err(RequestError::Invalid(errors)) }
    }

    /// Selects from executions that are sorted, the newest first.
    pub fn select(&self, all: Vec<ExecutionSummary>) -> Vec<ExecutionSummary> {
        let begin = match &self.after {
            None => 0,
            Some(id) => all.iter().position(|one| *one.execution_id == **id).map_or(all.len(), |at| at + 1),
        };
        let matches = |one: &ExecutionSummary| {
            self.state.is_none_or(|state| one.state == state)
                && self.pipeline.as_deref().is_none_or(|pipeline| *one.pipeline == *pipeline)
        };
        all.into_iter().skip(begin).filter(matches).take(self.limit).collect()
    }
}

fn not_allowed(field: &'static str, message: String) -> FieldError {
    FieldError::new(field, FieldReason::NotAllowed, message)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn summary(id: &str, pipeline: &str, state: State) -> ExecutionSummary {
        ExecutionSummary { execution_id: id.into(), pipeline: pipeline.into(), state, began_unix_ns: 0, errors: 0 }
    }

    fn selected(query: &str) -> String {
        let all = vec![
            summary("e", "p", State::Running),
            summary("d", "p", State::Failed),
            summary("c", "q", State::Failed),
            summary("b", "p", State::Completed),
            summary("a", "p", State::Failed),
        ];
        let selected = ListQuery::read(query).unwrap().select(all);
        selected.iter().map(|one| &*one.execution_id).collect()
    }

    #[test]
    fn list_has_the_executions_that_match_the_query() {
        for (query, want) in [
            ("", "edcba"),
            ("state=failed", "dca"),
            ("pipeline=p&limit=2", "ed"),
            ("state=failed&pipeline=p&after=d", "a"),
            ("after=a", ""),
            ("after=nosuch", ""),
            ("ticket=x", "edcba"),
        ] {
            assert_eq!(selected(query), want, "{query}");
        }
    }

    #[test]
    fn invalid_query_is_refused_with_the_field() {
        for (query, message) in [
            ("state=asleep", "`state` must be one of"),
            ("state=failled", "(did you mean `failed`?)"),
            ("limit=0", "`limit` must be a whole number from 1 to 500"),
            ("limit=501", "`limit` must be"),
            ("limit=x", "`limit` must be"),
            ("state=failed&state=failed", "`state` must be given once"),
            (
                "sate=failed",
                "`sate` is not known here (did you mean `state`?); there are state, pipeline, limit, after",
            ),
        ] {
            let error = ListQuery::read(query).unwrap_err().to_string();
            assert!(error.contains(message), "{query}: {error}");
        }
    }

    proptest! {
        #[test]
        fn any_query_is_read_or_refused(query in "\\PC{0,60}") {
            let _ = ListQuery::read(&query);
        }
    }
}
