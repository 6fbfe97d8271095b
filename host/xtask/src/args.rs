//! The command line: a command, its flags, and an error for anything else.

use anyhow::{Result, anyhow, bail};

/// The arguments after `cargo xtask COMMAND`. Each command takes its flags and then calls [`Args::finish`].
#[derive(Debug)]
pub(crate) struct Args {
    command: &'static str,
    rest: Vec<String>,
}

impl Args {
    pub(crate) fn new(command: &'static str, rest: impl IntoIterator<Item = String>) -> Self {
        Self { command, rest: rest.into_iter().collect() }
    }

    /// Takes `--name`; returns whether it was given.
    pub(crate) fn flag(&mut self, name: &str) -> bool {
        let before = self.rest.len();
        self.rest.retain(|arg| arg != name);
        self.rest.len() != before
    }

    /// Takes a word if it is the first argument.
    pub(crate) fn word(&mut self, word: &str) -> bool {
        let first = self.rest.first().is_some_and(|arg| arg == word);
        if first {
            self.rest.remove(0);
        }
        first
    }

    /// Takes the value of `--name VALUE` or `--name=VALUE`.
    pub(crate) fn value(&mut self, name: &str) -> Result<Option<String>> {
        let prefix = format!("{name}=");
        if let Some(index) = self.rest.iter().position(|arg| arg.starts_with(&prefix)) {
            return Ok(Some(self.rest.remove(index)[prefix.len()..].to_owned()));
        }
        let Some(index) = self.rest.iter().position(|arg| arg == name) else { return Ok(None) };
        if index + 1 == self.rest.len() {
            bail!("`{name}` needs a value");
        }
        self.rest.remove(index);
        Ok(Some(self.rest.remove(index)))
    }

    /// The arguments before `--`, and those after it, which are for another program.
    pub(crate) fn split(mut self) -> (Self, Vec<String>) {
        let Some(index) = self.rest.iter().position(|arg| arg == "--") else { return (self, Vec::new()) };
        let more = self.rest.split_off(index).split_off(1);
        (self, more)
    }

    /// Takes the remaining arguments, for another program.
    pub(crate) fn take_rest(&mut self) -> Vec<String> {
        std::mem::take(&mut self.rest)
    }

    /// Refuses remaining arguments.
    pub(crate) fn finish(self) -> Result<()> {
        match self.rest.first() {
            None => Ok(()),
            Some(arg) => {
                let what = if arg.starts_with('-') { "flag" } else { "argument" };
                let command = self.command;
                Err(anyhow!("unknown {what} `{arg}`: `cargo xtask {command} --help` lists what {command} takes"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(line: &str) -> Args {
        Args::new("build", line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn flags_and_values_are_accepted_once() {
        let mut given = args("--components --toolchain debian");
        assert!(given.flag("--components"));
        assert!(!given.flag("--components"));
        assert_eq!(given.value("--toolchain").unwrap().as_deref(), Some("debian"));
        given.finish().unwrap();
        assert_eq!(args("--n=3").value("--n").unwrap().as_deref(), Some("3"));
        let mut given = args("fanout --quick fanout");
        assert!(given.word("fanout") && !given.word("fanout") && given.flag("--quick") && given.word("fanout"));
        let (ours, theirs) = args("--quick -- --minutes 5").split();
        ours.finish().unwrap_err();
        assert_eq!(theirs, ["--minutes", "5"]);
        args("-- --quick").split().0.finish().unwrap();
    }

    #[test]
    fn unknown_flag_is_an_error_of_one_sentence() {
        let error = args("--fast").finish().unwrap_err().to_string();
        assert_eq!(error, "unknown flag `--fast`: `cargo xtask build --help` lists what build takes");
        assert_eq!(args("--n").value("--n").unwrap_err().to_string(), "`--n` needs a value");
    }
}
