//! `cargo xtask typescript`: the TypeScript client and its React hooks, in `clients/typescript`.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::args::Args;
use crate::build;
use crate::files::write_if_changed;
use crate::house::House;
use crate::npm::Project;
use crate::ui::{Step, finish};
use crate::{browser, node, sh};

pub(crate) const USAGE: &str = "\
Regenerates clients/typescript/src/openapi.ts, the types of the client, from components/gateway/openapi.json. Needs Node.js 20 and
npm; the packages are installed under target, in the versions of package-lock.json.

Options:
  --check   fail if it would change
  --test    build the package, test it against `weir serve` and in a browser, lint what would be published, and build
            examples/react";

const CLIENT: &str = "clients/typescript";
const EXAMPLE: &str = "examples/react";
const OPENAPI: &str = "components/gateway/openapi.json";
const TYPES: &str = "src/openapi.ts";
/// The variables of the tests.
pub(crate) const PROGRAM: &str = "WEIR_TEST_PROGRAM";
const GOLDEN: &str = "WEIR_TEST_GOLDEN";
/// The stub of the generate component, and the folder of a model for it.
const GENERATE_STUB: &str = "WEIR_TEST_GENERATE_STUB";
const GENERATE_MODEL: &str = "WEIR_TEST_GENERATE_MODEL";

pub(crate) fn task(house: &House, mut args: Args) -> Result<()> {
    let (checks, tests) = (args.flag("--check"), args.flag("--test"));
    args.finish()?;
    if !node::is_available() {
        bail!("`node` and `npm` are not on the PATH; Node.js 20 or later has both");
    }
    if tests {
        let program = build::program(house)?;
        let browser = if browser::is_available() { Some(browser::browser(house)?) } else { None };
        return test(house, &program, browser.as_deref());
    }
    let types = types(house)?;
    let committed = house.root.join(CLIENT).join(TYPES);
    if checks {
        return check(house, &types);
    }
    let changed = write_if_changed(&committed, types.as_bytes())?;
    println!("{} {}", committed.display(), if changed { "is regenerated" } else { "is up to date" });
    Ok(())
}

/// Fails where the committed types are not those of openapi.json.
fn check(house: &House, types: &str) -> Result<()> {
    let committed =
        fs::read_to_string(house.root.join(CLIENT).join(TYPES)).context("cannot read the types of the client")?;
    if committed != types {
        bail!("{CLIENT}/{TYPES} is stale: `cargo xtask typescript` regenerates it");
    }
    Ok(())
}

/// The types, generated from openapi.json.
fn types(house: &House) -> Result<String> {
    let client = Project::ensure(house, CLIENT)?;
    let output = house.keep().join("web").join("openapi.ts");
    let mut step = Step::begin("typescript", "generates the types of the client from openapi.json");
    let mut generate = client.bin(house, "openapi-typescript");
    generate.arg(house.root.join(OPENAPI)).args(["--default-non-nullable", "false", "-o"]).arg(&output);
    let generated = sh::check(&mut step, &mut generate).map(|_| TYPES.to_owned());
    finish(step, generated)?;
    fs::read_to_string(&output).with_context(|| format!("cannot read {}", output.display()))
}

/// Checks the types, tests the package, and builds the example with it.
pub(crate) fn test(house: &House, program: &Path, browser: Option<&Path>) -> Result<()> {
    check(house, &types(house)?)?;
    let client = Project::ensure(house, CLIENT)?;
    run("typescript", "tests clients/typescript", || {
        let mut test = client.script(house, "test");
        test.env(PROGRAM, program).env(GOLDEN, house.root.join("tests/golden")).envs(generate_stub(house));
        if let Some(browser) = browser {
            test.env(browser::VARIABLE, browser);
        }
        test
    })?;
    run("typescript", "lints the package", || {
        let mut publint = client.bin(house, "publint");
        publint.arg("--strict");
        publint
    })?;
    run("typescript", "checks the types of the package", || {
        let mut types = client.bin(house, "attw");
        types.args(["--profile", "esm-only", "--pack", "."]);
        types
    })?;
    let example = Project::ensure(house, EXAMPLE)?;
    run("typescript", "builds examples/react", || example.script(house, "build"))
}

/// The variables of the tests that generate text. Without the stub, which `cargo xtask test` and `build --guests` build, they are skipped.
pub(crate) fn generate_stub(house: &House) -> Vec<(&'static str, PathBuf)> {
    let stub = house.components().join("generate_stub.wasm");
    if !stub.is_file() {
        return Vec::new();
    }
    vec![(GENERATE_STUB, stub), (GENERATE_MODEL, house.root.join("tests/data/language-model"))]
}

/// Runs a program as a step.
pub(crate) fn run(name: &str, what: &str, command: impl FnOnce() -> std::process::Command) -> Result<()> {
    let mut step = Step::begin(name, what);
    let done = sh::check(&mut step, &mut command()).map(|_| String::new());
    finish(step, done)
}

/// Where the files of the tests' screenshots are kept.
pub(crate) fn screenshots(house: &House) -> Result<PathBuf> {
    let folder = house.target.join("screenshots");
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    Ok(folder)
}
