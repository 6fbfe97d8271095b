//! `docs/reference/cli.md`, generated from the definition of the command line with
//! `UPDATE_EXPECT=1 cargo test --release -p weir`.

use std::fmt::Write as _;

use clap::{Arg, Command, CommandFactory};
use expect_test::expect_file;

use crate::arguments::Arguments;

const PAGE: &str = "\
# Command line

<!-- Generated from the definition of the command line: UPDATE_EXPECT=1 cargo test --release -p weir -->

`weir COMMAND --help` prints the same. The exit status is 0 on success, 1 if an input or a model failed, and 2 if the command could not be
run; errors are one sentence on standard error. With `--json`, which every command has, each line is JSON, also the error
that ends the command, an object with the member `error`.

";

/// A text for a cell of a table.
fn cell(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ").replace('|', "\\|")
}

/// The notation of an argument: `--model NAME=DIR`, `-q, --quiet`, `FILE`.
fn notation(argument: &Arg) -> String {
    let takes = argument.get_action().takes_values();
    let names: Vec<&str> = argument.get_value_names().into_iter().flatten().map(|name| name.as_str()).collect();
    let value = if takes { names.join(" ") } else { String::new() };
    let short = argument.get_short().map(|short| format!("-{short}"));
    let long = argument.get_long().map(|long| format!("--{long}"));
    let flags: Vec<String> = short.into_iter().chain(long).collect();
    format!("{} {value}", flags.join(", ")).trim().replace('|', "\\|")
}

/// The description of an argument, with its values and its default.
fn meaning(argument: &Arg) -> String {
    let mut text = cell(&argument.get_help().map(ToString::to_string).unwrap_or_default());
    let values = argument.get_possible_values();
    if argument.get_action().takes_values() && !values.is_empty() {
        let values: Vec<String> = values.iter().map(|value| format!("`{}`", value.get_name())).collect();
        text.push_str(&format!("; one of {}", values.join(", ")));
    }
    let defaults: Vec<_> = argument.get_default_values().iter().map(|value| value.to_string_lossy()).collect();
    if argument.get_action().takes_values() && !defaults.is_empty() {
        text.push_str(&format!(" [default: {}]", defaults.join(" ")));
    }
    if let Some(variable) = argument.get_env() {
        text.push_str(&format!(" [variable: `{}`]", variable.to_string_lossy()));
    }
    text
}

fn command(page: &mut String, path: &str, command: &Command) {
    let about = command.get_long_about().or(command.get_about()).map(ToString::to_string).unwrap_or_default();
    let level = "#".repeat(path.split(' ').count());
    writeln!(page, "{level} {path}\n\n{}.\n", about.trim_end_matches('.')).unwrap();
    let arguments: Vec<&Arg> = command.get_arguments().filter(|argument| !argument.is_hide_set()).collect();
    if !arguments.is_empty() {
        page.push_str("| argument | |\n|---|---|\n");
        for argument in &arguments {
            writeln!(page, "| `{}` | {} |", notation(argument), meaning(argument)).unwrap();
        }
        page.push('\n');
    }
    if let Some(examples) = command.get_after_help() {
        let lines: Vec<String> = examples.to_string().lines().filter(|line| *line != "Examples:").map(cell).collect();
        writeln!(page, "Examples:\n\n```text\n{}\n```\n", lines.join("\n")).unwrap();
    }
    for argument in arguments {
        let values = argument.get_possible_values();
        if values.iter().any(|value| value.get_help().is_some()) {
            writeln!(page, "Values of `{}`:\n", notation(argument)).unwrap();
            for value in values {
                let help = value.get_help().map(ToString::to_string).unwrap_or_default();
                writeln!(page, "- `{}`: {}", value.get_name(), cell(&help)).unwrap();
            }
            page.push('\n');
        }
    }
    for sub in command.get_subcommands() {
        self::command(page, &format!("{path} {}", sub.get_name()), sub);
    }
}

#[test]
fn reference_page_has_every_command_and_flag() {
    let mut page = PAGE.to_owned();
    for sub in Arguments::command().get_subcommands() {
        command(&mut page, &format!("weir {}", sub.get_name()), sub);
    }
    page.truncate(page.trim_end().len());
    page.push('\n');
    expect_file!["../../../docs/reference/cli.md"].assert_eq(&page);
}
