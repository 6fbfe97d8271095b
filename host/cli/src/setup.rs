//! The flags of every command that runs models, and the configuration that they give.

use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::Args;
use weir_config::Config;

/// An alias of `WEIR_CONFIG`.
const CONFIG_FILE_ALIAS: &str = "STREAMING_CONFIG_FILE";

/// The arguments of every command that runs models.
#[derive(Debug, Args)]
pub(crate) struct Setup {
    /// Configuration file (TOML); `weir config` lists its keys
    #[arg(long, value_name = "FILE", env = "WEIR_CONFIG")]
    pub(crate) config: Option<PathBuf>,
    /// Folder whose subfolders are models [default: the folder `models` beside the program]
    #[arg(long, value_name = "DIR")]
    pub(crate) models_dir: Option<PathBuf>,
    /// Use a component file in place of the built-in `gateway`, `generate` or `infer`; can be repeated
    #[arg(long = "component", value_name = "NAME=FILE")]
    pub(crate) components: Vec<String>,
    /// Set any key of the configuration, as in `--set http.requests_max=64`; can be repeated
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub(crate) keys: Vec<String>,
}

impl Setup {
    /// The configuration: defaults, file, environment, then these flags and `more`.
    pub(crate) fn load(&self, more: &[(&str, String)]) -> anyhow::Result<Config> {
        let mut overrides: Vec<(String, String)> = Vec::new();
        for pair in &self.keys {
            overrides.push(key_value("--set", pair)?);
        }
        for pair in &self.components {
            let (name, file) = key_value("--component", pair)?;
            const COMPONENTS: [&str; 3] = ["gateway", "generate", "infer"];
            if !COMPONENTS.contains(&name.as_str()) {
                let suggestion = weir_config::suggest(&name, COMPONENTS.into_iter());
                let suggestion =
                    suggestion.map(|suggestion| format!("; did you mean `{suggestion}`?")).unwrap_or_default();
                bail!("--component {pair}: the components are {}{suggestion}", COMPONENTS.join(", "));
            }
            overrides.push((format!("{name}.component"), file));
        }
        if let Some(dir) = &self.models_dir {
            overrides.push(("models.dir".into(), dir.display().to_string()));
        }
        overrides.extend(more.iter().map(|(key, value)| (key.to_string(), value.clone())));
        let environment =
            std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
        let alias = || std::env::var_os(CONFIG_FILE_ALIAS).filter(|file| !file.is_empty()).map(PathBuf::from);
        let file = self.config.clone().or_else(alias);
        let mut config = weir_config::load(file.as_deref(), environment, &overrides)?;
        if config.models.dir.as_os_str().is_empty() {
            config.models.dir = beside_program().unwrap_or_default();
        }
        Ok(config)
    }
}

/// The folder `models` beside the program, if there is one.
pub(crate) fn beside_program() -> Option<PathBuf> {
    let program = std::env::current_exe().ok()?;
    let dir = program.parent()?.join("models");
    dir.is_dir().then_some(dir)
}

/// The parts of `NAME=VALUE`, the value of a flag.
pub(crate) fn key_value(flag: &str, pair: &str) -> anyhow::Result<(String, String)> {
    let (key, value) = pair.split_once('=').with_context(|| format!("{flag} {pair}: expected NAME=VALUE"))?;
    if key.is_empty() {
        bail!("{flag} {pair}: the name is empty");
    }
    Ok((key.to_string(), value.to_string()))
}
