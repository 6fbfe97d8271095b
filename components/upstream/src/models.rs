//! The models of a server: the names that requests use, and the server's own.

/// The models of a server.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ModelNames {
    /// Names, and with `*` as the last character the beginnings of names.
    names: Vec<String>,
    /// Names of requests, and the server's names for them.
    aliases: Vec<(String, String)>,
}

impl ModelNames {
    /// Reads names that are separated by spaces, and aliases of the form `NAME=MODEL`.
    pub fn read(names: &str, aliases: &str) -> Self {
        let alias = |pair: &str| pair.split_once('=').map(|(name, model)| (name.to_owned(), model.to_owned()));
        Self {
            names: names.split_whitespace().map(str::to_owned).collect(),
            aliases: aliases.split_whitespace().filter_map(alias).collect(),
        }
    }

    /// The server's name for a model of a request; none if it has no such model. An alias comes before a name.
    pub fn resolve(&self, name: &str) -> Option<String> {
        if let Some((_, model)) = self.aliases.iter().find(|(alias, _)| alias == name) {
            return Some(model.clone());
        }
        let matches = |pattern: &String| match pattern.strip_suffix('*') {
            Some(beginning) => name.starts_with(beginning),
            None => pattern == name,
        };
        self.names.iter().any(matches).then(|| name.to_owned())
    }

    /// All names, in order and each once.
    pub fn list(&self) -> Vec<String> {
        let aliases = self.aliases.iter().map(|(alias, _)| alias);
        let names: std::collections::BTreeSet<&String> = aliases.chain(&self.names).collect();
        names.into_iter().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_wildcards_and_aliases_are_resolved() {
        let models = ModelNames::read("gpt-* exact", "small=gpt-4o-mini exact=other broken");
        let resolve = |name: &str| models.resolve(name);
        assert_eq!(resolve("gpt-4o").as_deref(), Some("gpt-4o"));
        assert_eq!(resolve("gpt-").as_deref(), Some("gpt-"));
        assert_eq!(resolve("small").as_deref(), Some("gpt-4o-mini"));
        assert_eq!(resolve("exact").as_deref(), Some("other"), "the alias comes first");
        for name in ["gpt", "exact2", "", "broken"] {
            assert_eq!(resolve(name), None, "{name}");
        }
        assert_eq!(models.list(), ["exact", "gpt-*", "small"]);
        assert_eq!(ModelNames::read("*", "").resolve("anything").as_deref(), Some("anything"));
    }
}
