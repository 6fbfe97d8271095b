//! `cargo xtask web`: the page of the gateway, built from `web/`.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::args::Args;
use crate::build::{self, finish};
use crate::files::write_if_changed;
use crate::house::House;
use crate::npm::Project;
use crate::typescript::{self, PROGRAM, run};
use crate::ui::Step;
use crate::{browser, node, sh};

pub(crate) const USAGE: &str = "\
Builds components/gateway/page.html, the page that the gateway serves to browsers, from web/. The file is committed: building Weir
needs no Node.js. This command needs Node.js 20 and npm; the packages are installed under target, in the versions of
package-lock.json.

Options:
  --check   fail if it would change
  --test    open each view in a headless Chromium, served by `weir serve`; screenshots are kept in target/screenshots";

const WEB: &str = "web";
const CLIENT: &str = "clients/typescript";
const PAGE: &str = "components/gateway/page.html";

pub(crate) fn task(house: &House, mut args: Args) -> Result<()> {
    let (checks, tests) = (args.flag("--check"), args.flag("--test"));
    args.finish()?;
    if !node::is_available() {
        bail!("`node` and `npm` are not on the PATH; Node.js 20 or later has both");
    }
    if tests {
        let program = build::program(house)?;
        return test(house, &program, &browser::browser(house)?);
    }
    let page = page(house)?;
    if checks {
        return check(house, &page);
    }
    let changed = write_if_changed(&house.root.join(PAGE), &page)?;
    println!("{PAGE} {}", if changed { "is regenerated" } else { "is up to date" });
    Ok(())
}

/// Fails where the committed page is not the one of the sources.
fn check(house: &House, page: &[u8]) -> Result<()> {
    let committed = fs::read(house.root.join(PAGE)).with_context(|| format!("cannot read {PAGE}"))?;
    if committed != page {
        bail!("{PAGE} is stale: `cargo xtask web` regenerates it");
    }
    Ok(())
}

/// The page, built from the sources.
fn page(house: &House) -> Result<Vec<u8>> {
    // The page has the client in it, as sources.
    Project::ensure(house, CLIENT)?;
    let web = Project::ensure(house, WEB)?;
    run("web", "checks the types of web/", || web.script(house, "check"))?;
    let output = house.keep().join("web").join("page.html");
    let mut step = Step::begin("web", "builds the page");
    let built = sh::check(&mut step, web.node(house).arg("build.mjs").arg(&output)).map(|_| PAGE.to_owned());
    finish(step, built)?;
    fs::read(&output).with_context(|| format!("cannot read {}", output.display()))
}

/// Checks the page, and opens its views in a browser.
pub(crate) fn test(house: &House, program: &Path, browser: &Path) -> Result<()> {
    check(house, &page(house)?)?;
    let web = Project::ensure(house, WEB)?;
    let screenshots = typescript::screenshots(house)?;
    run("web", "tests the page in a browser", || {
        let mut test = web.script(house, "test");
        test.env(PROGRAM, program).env(browser::VARIABLE, browser).env("WEIR_TEST_SCREENSHOTS", &screenshots);
        test
    })
}
