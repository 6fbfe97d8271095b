//! `weir config`: prints every key with its default and meaning.

use std::io::Write;
use std::process::ExitCode;

use serde_json::json;

use crate::arguments::Manual;
use crate::setup::Setup;

pub(crate) fn main(arguments: &Manual) -> anyhow::Result<ExitCode> {
    let mut out = std::io::stdout().lock();
    if let Some(file) = &arguments.effective {
        let setup = Setup { config: file.clone(), models_dir: None, components: Vec::new(), keys: Vec::new() };
        let config = setup.load(&[])?;
        let text = if arguments.json { serde_json::to_string(&config) } else { serde_json::to_string_pretty(&config) };
        writeln!(out, "{}", text?)?;
    } else if arguments.json {
        for weir_config::Key { name, variable, default, meaning } in weir_config::keys() {
            let key = json!({ "name": name, "variable": variable, "default": default, "meaning": meaning });
            writeln!(out, "{key}")?;
        }
    } else if arguments.markdown {
        write!(out, "{}", weir_config::table_markdown())?;
    } else {
        write!(out, "{}", weir_config::template())?;
    }
    Ok(ExitCode::SUCCESS)
}
