//! The models of a server: their names in requests, and the server's names for them.

/// The models of a server.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ModelNames {
    /// Names; one that ends in `*` stands for all names with the same beginning.
    names: Vec<String>,
    /// Names in requests, and the server's names for them.
    aliases: Vec<(String, String)>,
}

impl ModelNames {
    /// Reads names and aliases of the form `NAME=MODEL`, both separated by spaces. Aliases of another form are ignored.
    pub fn read(names: &str, aliases: &str) -> Self {
        let alias = |pair: &str| pair.split_once('=').map(|(name, model)| (name.to_owned(), model.to_owned()));
        Self {
            names: names.split_whitespace().map(str::to_owned).collect(),
            aliases: aliases.split_whitespace().filter_map(alias).collect(),
        }
    }

    /// The server's name for the model of a request; `None` if it has no such model. An alias takes precedence over a name.
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

    /// All names, sorted and without duplicates.
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
