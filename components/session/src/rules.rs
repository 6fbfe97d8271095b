//! Rules that sessions of the same configuration share: making them costs more than a session.

use std::{cell::RefCell, sync::Arc};

use weir_codec::{json::field::RequestError, transcripts::config::SessionAsk};
use weir_core::transcripts::SessionRules;

/// Configurations that are kept.
const KEPT_MAX: usize = 16;

/// The rules of late, the most recently used last.
#[derive(Debug, Default)]
pub struct Shared {
    kept: RefCell<Vec<(String, SessionAsk, Arc<SessionRules>)>>,
}

impl Shared {
    /// What a configuration says, and its rules.
    ///
    /// # Errors
    ///
    /// [`RequestError`]: the configuration is not JSON, or a field is wrong.
    pub fn of(&self, config: &str) -> Result<(SessionAsk, Arc<SessionRules>), RequestError> {
        let mut kept = self.kept.borrow_mut();
        if let Some(at) = kept.iter().position(|(known, ..)| known == config) {
            let found = kept.remove(at);
            kept.push(found.clone());
            return Ok((found.1, found.2));
        }
        let ask = SessionAsk::from_json(config.as_bytes())?;
        let rules = SessionRules::new(ask.config.clone()).expect("a configuration that was read was checked");
        if kept.len() >= KEPT_MAX {
            kept.remove(0);
        }
        kept.push((config.to_owned(), ask.clone(), rules.clone()));
        Ok((ask, rules))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_shared_and_bounded() {
        let shared = Shared::default();
        let (_, first) = shared.of("{}").unwrap();
        assert!(Arc::ptr_eq(&first, &shared.of("{}").unwrap().1));
        for gap in 1..=KEPT_MAX {
            shared.of(&format!("{{\"max_gap_sec\":{gap}}}")).unwrap();
        }
        assert_eq!(shared.kept.borrow().len(), KEPT_MAX);
        assert!(!Arc::ptr_eq(&first, &shared.of("{}").unwrap().1));
        assert!(shared.of("{\"gap\":1}").is_err());
    }
}
