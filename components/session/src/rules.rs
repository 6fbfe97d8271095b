//! Rules that sessions of the same configuration share: making them costs more than a session.

use std::{cell::RefCell, sync::Arc};

use weir_codec::{json::field::RequestError, transcripts::config::SessionRequest};
use weir_core::transcripts::SessionRules;

/// Most configurations in the cache.
const ENTRIES_MAX: usize = 16;

/// The rules of recent configurations, the most recently used last.
#[derive(Debug, Default)]
pub struct RulesCache {
    entries: RefCell<Vec<(String, SessionRequest, Arc<SessionRules>)>>,
}

impl RulesCache {
    /// A configuration from its JSON, and its rules.
    ///
    /// # Errors
    ///
    /// [`RequestError`]: the configuration is not JSON, or a field is wrong.
    pub fn get(&self, config: &str) -> Result<(SessionRequest, Arc<SessionRules>), RequestError> {
        let mut entries = self.entries.borrow_mut();
        if let Some(at) = entries.iter().position(|(known, ..)| known == config) {
            let found = entries.remove(at);
            entries.push(found.clone());
            return Ok((found.1, found.2));
        }
        let ask = SessionRequest::from_json(config.as_bytes())?;
        let rules = SessionRules::new(ask.config.clone()).expect("a configuration that was read was checked");
        if entries.len() >= ENTRIES_MAX {
            entries.remove(0);
        }
        entries.push((config.to_owned(), ask.clone(), rules.clone()));
        Ok((ask, rules))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_shared_and_bounded() {
        let cache = RulesCache::default();
        let (_, first) = cache.get("{}").unwrap();
        assert!(Arc::ptr_eq(&first, &cache.get("{}").unwrap().1));
        for gap in 1..=ENTRIES_MAX {
            cache.get(&format!("{{\"max_gap_sec\":{gap}}}")).unwrap();
        }
        assert_eq!(cache.entries.borrow().len(), ENTRIES_MAX);
        assert!(!Arc::ptr_eq(&first, &cache.get("{}").unwrap().1));
        assert!(cache.get("{\"gap\":1}").is_err());
    }
}
