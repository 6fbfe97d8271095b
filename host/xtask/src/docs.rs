//! `cargo xtask docs`: the book of `docs/`.
//!
//! `links` checks the links of every document, `map` the code map of ARCHITECTURE.md, and `crates` the page with the graph of
//! crates; all are tests, so that `cargo xtask test` needs no mdBook. The commands of the pages are run by
//! `tests/tests/cli/documents.rs`; the generated pages are checked beside the code that they describe.

#[cfg(test)]
mod crates;
#[cfg(test)]
mod links;
#[cfg(test)]
mod map;

use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::args::Args;
use crate::files::on_path;
use crate::house::House;
use crate::ui::{Step, finish};
use crate::{node, sh};

pub(crate) const USAGE: &str = "\
Builds the book of docs/ into target/book with mdBook: the one on the PATH, or else one that `cargo install` builds once under
target. Nothing else needs mdBook; links, generated pages and commands are checked by `cargo xtask test`.

Options:
  --open   open the book in a browser";

const VERSION: &str = "0.5.4";
const MERMAID: &str = "mermaid@11";
/// The file of Mermaid that the book loads (`docs/assets/mermaid-init.js`).
const SCRIPT: &str = "mermaid.min.js";

pub(crate) fn task(house: &House, mut args: Args) -> Result<()> {
    let open = args.flag("--open");
    args.finish()?;
    let program = mdbook(house)?;
    let book = house.target.join("book");
    let mut step = Step::begin("book", "builds docs/ with mdBook");
    let mut command = sh::program(house, program);
    command.arg("build").arg(house.root.join("docs")).arg("--dest-dir").arg(&book);
    if open {
        command.arg("--open");
    }
    let built = sh::check(&mut step, &mut command).map(|_| book.join("index.html").display().to_string());
    finish(step, built)?;
    if !node::is_available() {
        println!("There is no npm here: the diagrams stay text.");
        return Ok(());
    }
    let script = mermaid(house)?;
    std::fs::copy(&script, book.join(SCRIPT)).with_context(|| format!("cannot copy {}", script.display())).map(drop)
}

/// The script that draws the diagrams; fetched once.
fn mermaid(house: &House) -> Result<PathBuf> {
    let folder = house.keep().join("mermaid");
    let script = folder.join("node_modules/mermaid/dist").join(SCRIPT);
    if script.is_file() {
        return Ok(script);
    }
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let mut step = Step::begin("mermaid", "fetches Mermaid under target");
    let mut npm = sh::program(house, "npm");
    npm.args(["install", MERMAID, "--no-package-lock", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix"]);
    let fetched = sh::check(&mut step, npm.arg(&folder)).map(|_| MERMAID.to_owned());
    finish(step, fetched)?;
    Ok(script)
}

/// mdBook; builds it if there is none.
fn mdbook(house: &House) -> Result<PathBuf> {
    if let Some(program) = on_path(&["mdbook"]) {
        return Ok(program);
    }
    let folder = house.keep().join("mdbook");
    let program = folder.join("bin").join("mdbook");
    if program.is_file() {
        return Ok(program);
    }
    let mut step = Step::begin("mdbook", &format!("builds mdBook {VERSION} under target, once"));
    let mut install = sh::cargo(house);
    install.args([
        "install",
        "mdbook",
        "--version",
        VERSION,
        "--locked",
        "--no-default-features",
        "--features",
        "search",
    ]);
    install.arg("--root").arg(&folder).env("CARGO_TARGET_DIR", folder.join("build"));
    let installed = sh::check(&mut step, &mut install).map(|_| VERSION.to_owned());
    finish(step, installed)?;
    // The build folder is not needed any more.
    std::fs::remove_dir_all(folder.join("build"))?;
    Ok(program)
}
