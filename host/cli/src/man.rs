//! `weir man`: manual pages, generated from the definition of the command line.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::CommandFactory;
use clap_mangen::Man;
use serde_json::json;

use crate::arguments::{Arguments, ManPages};

pub(crate) fn main(arguments: &ManPages) -> anyhow::Result<ExitCode> {
    // Without the subcommand `help`, which would have a page for each command.
    let mut command = Arguments::command().disable_help_subcommand(true);
    command.build();
    let mut out = std::io::stdout().lock();
    match &arguments.folder {
        Some(folder) => {
            std::fs::create_dir_all(folder).with_context(|| format!("{} cannot be created", folder.display()))?;
            let mut pages = Vec::new();
            write_pages(&command, "weir", folder, &mut pages)?;
            for Page { command, file } in pages.iter().filter(|_| arguments.json) {
                writeln!(out, "{}", json!({ "command": command, "path": file.display().to_string() }))?;
            }
        }
        None => {
            // Rendered first, so that a closed output is reported by this write.
            let mut page = Vec::new();
            Man::new(command).render(&mut page)?;
            match arguments.json {
                true => {
                    let text = String::from_utf8_lossy(&page);
                    writeln!(out, "{}", json!({ "command": "weir", "text": text }))?;
                }
                false => out.write_all(&page)?,
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// A page that was written.
struct Page {
    /// The command, such as `weir models list`.
    command: String,
    file: PathBuf,
}

/// Writes the page of a command, and those of its subcommands.
fn write_pages(command: &clap::Command, path: &str, folder: &Path, pages: &mut Vec<Page>) -> anyhow::Result<()> {
    let name = path.replace(' ', "-");
    let mut page = Vec::new();
    // Without `build`, a subcommand has its own name only.
    Man::new(command.clone().display_name(name.clone())).title(name.to_uppercase()).render(&mut page)?;
    let file = folder.join(format!("{name}.1"));
    std::fs::write(&file, page).with_context(|| format!("{} cannot be written", file.display()))?;
    pages.push(Page { command: path.to_owned(), file });
    command.get_subcommands().try_for_each(|sub| write_pages(sub, &format!("{path} {}", sub.get_name()), folder, pages))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_command_has_a_page() {
        let folder = tempfile::tempdir().unwrap();
        let folder_argument = Some(folder.path().join("man1"));
        assert_eq!(main(&ManPages { folder: folder_argument, json: false }).unwrap(), ExitCode::SUCCESS);
        let read = |name: &str| std::fs::read_to_string(folder.path().join("man1").join(name)).unwrap();
        assert!(read("weir.1").contains("weir\\-serve(1)"));
        assert!(read("weir-serve.1").contains("\\-\\-listen"));
        let run = read("weir-pipelines-run.1");
        assert!(run.contains("weir\\-pipelines\\-run") && run.contains("\\-\\-follow"), "{run}");
        let mut count = 0;
        fn commands(command: &clap::Command) -> usize {
            1 + command.get_subcommands().map(commands).sum::<usize>()
        }
        for entry in std::fs::read_dir(folder.path().join("man1")).unwrap() {
            assert!(entry.unwrap().file_name().to_str().unwrap().ends_with(".1"));
            count += 1;
        }
        assert_eq!(count, commands(&Arguments::command()));
    }
}
