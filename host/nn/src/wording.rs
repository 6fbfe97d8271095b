//! The forms of names and dimensions in messages.

use std::fmt;

pub(crate) use weir_core::wording::{json_types, listed, quoted};

/// The name of a case of an enum of the WIT or of an engine, which implement only `Debug`, in lower case.
pub(crate) fn case_name(case: &dyn fmt::Debug) -> String {
    format!("{case:?}").rsplit("::").next().unwrap_or_default().to_lowercase()
}
