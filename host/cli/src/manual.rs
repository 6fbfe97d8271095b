//! `weir config`: every key with its default and meaning.

use std::io::Write;
use std::process::ExitCode;

use crate::arguments::{Manual, Setup};

pub(crate) fn main(arguments: &Manual) -> anyhow::Result<ExitCode> {
    let mut out = std::io::stdout().lock();
    if let Some(file) = &arguments.effective {
        let setup = Setup { config: file.clone(), models_dir: None, components: Vec::new(), keys: Vec::new() };
        serde_json::to_writer_pretty(&mut out, &setup.load(&[])?)?;
        writeln!(out)?;
    } else if arguments.markdown {
        write!(out, "{}", weir_config::table_markdown())?;
    } else {
        writeln!(out, "# Every key, with its default. In the environment http.listen is WEIR_HTTP_LISTEN.")?;
        let mut section = String::new();
        for key in weir_config::keys() {
            let (head, leaf) = key.name.rsplit_once('.').unwrap_or(("", &key.name));
            if head != section {
                section = head.to_string();
                writeln!(out, "\n[{section}]")?;
            }
            writeln!(out, "# {}", key.meaning)?;
            // A key without a default is left out of the file.
            let comment = if key.default.is_empty() { "# " } else { "" };
            writeln!(out, "{comment}{leaf} = {}", if key.default.is_empty() { "…" } else { &key.default })?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
