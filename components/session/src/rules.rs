//! A cache of rules, which sessions with the same configuration share: compiling rules costs more than creating a
//! session.

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
            let entry = entries.remove(at);
            entries.push(entry.clone());
            return Ok((entry.1, entry.2));
        }
        let request = SessionRequest::from_json(config.as_bytes())?;
        let rules = SessionRules::new(request.config.clone()).expect("parsing validates the configuration");
        if entries.len() >= ENTRIES_MAX {
            entries.remove(0);
        }
        entries.push((config.to_owned(), request.clone(), rules.clone()));
        Ok((request, rules))
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
