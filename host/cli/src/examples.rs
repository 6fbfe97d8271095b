//! The examples in the help of commands.

pub(crate) const WEIR: &str = "\
Exit status: 0 for success, 1 if an input, a model or an execution failed, 2 if the command could not be run.
Each command has --json: JSON on each line, also of the failure that ends it.

Examples:
  weir serve
  weir run --task sentiment reviews.txt
  weir pipelines check pipelines";

pub(crate) const SERVE: &str = "\
Examples:
  weir serve
  weir serve --listen 0.0.0.0:8080 --set auth.mode=required --set auth.dir=keys
  weir serve --model reviews=models/reviews --set pipelines.dir=pipelines
  weir serve --config weir.toml --set events.store=disk
  weir serve --listen 127.0.0.1:0 --json";

pub(crate) const RUN: &str = "\
Examples:
  weir run --task sentiment reviews.txt
  weir run --task entities --aggregation simple - < articles.txt
  weir run --task summary --quiet article.txt
  weir run --task transcript call.vtt
  weir run --task sentiment --json reviews.txt > labels.ndjson";

pub(crate) const MODELS: &str = "\
Examples:
  weir models list --json
  weir models check sentiment
  weir models pull hf:ORG/NAME --models-dir models";

pub(crate) const CONFIG: &str = "\
Examples:
  weir config > weir.toml
  weir config --json
  weir config --effective weir.toml";

pub(crate) const PIPELINES: &str = "\
Examples:
  weir pipelines check pipelines
  weir pipelines list --url http://127.0.0.1:8080
  weir pipelines run review --text \"What a lovely day.\"
  weir pipelines run review --input order.json --follow";

pub(crate) const MAN: &str = "\
Examples:
  weir man | man -l -
  weir man share/man/man1";

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    use crate::arguments::Arguments;

    /// The words of a command as a shell splits them, without its redirections.
    fn words(line: &str) -> Vec<String> {
        let mut words = vec![String::new()];
        let mut is_quoted = false;
        for character in line.chars() {
            match character {
                '"' => is_quoted = !is_quoted,
                ' ' if !is_quoted => words.push(String::new()),
                other => words[..].last_mut().unwrap().push(other),
            }
        }
        words.into_iter().take_while(|word| !["<", ">", "|"].contains(&word.as_str())).collect()
    }

    fn examples(command: &clap::Command) -> Vec<String> {
        let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
        let own = help.lines().filter(|line| line.starts_with("  weir ")).map(|line| line.trim().to_owned());
        own.chain(command.get_subcommands().flat_map(examples)).collect()
    }

    /// The commands without subcommands that lack an argument.
    fn commands_without(command: &clap::Command, argument: &str) -> Vec<String> {
        if command.get_subcommands().next().is_none() {
            let has = command.get_arguments().any(|one| one.get_long() == Some(argument));
            return if has { Vec::new() } else { vec![command.get_name().to_owned()] };
        }
        command.get_subcommands().flat_map(|sub| commands_without(sub, argument)).collect()
    }

    #[test]
    fn every_command_has_json() {
        assert_eq!(commands_without(&Arguments::command(), "json"), Vec::<String>::new());
        assert!(commands_without(&Arguments::command(), "watch").len() > 10);
    }

    #[test]
    fn examples_of_the_help_are_valid_commands() {
        let examples = examples(&Arguments::command());
        assert!(examples.len() > 15, "{examples:?}");
        for example in &examples {
            let words = words(example);
            assert!(
                Arguments::try_parse_from(&words).is_ok(),
                "{example}: {:?}",
                Arguments::try_parse_from(&words).err()
            );
        }
        for command in ["serve", "run", "models", "config", "pipelines", "man"] {
            let starts = |example: &String| example.starts_with(&format!("weir {command}"));
            assert!(examples.iter().any(starts), "weir {command} has no example");
        }
    }
}
