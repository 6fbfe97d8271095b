//! `cargo xtask web`: the page of the gateway, built from `web/`.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::args::Args;
use crate::build;
use crate::files::write_if_changed;
use crate::house::House;
use crate::npm::Project;
use crate::typescript::{self, PROGRAM, run};
use crate::ui::{Step, finish};
use crate::{browser, node, sh};

pub(crate) const USAGE: &str = "\
Builds components/gateway/page.html, the page that the gateway serves to browsers, from web/. The file is committed: building Weir
needs no Node.js. This command needs Node.js 20 and npm; the packages are installed under target, in the versions of
package-lock.json.

Options:
  --check   fail if it would change
  --test    open each view in a headless Chromium, served by `weir serve`; screenshots are kept in target/screenshots
  --images  with --test: replace the pictures of the page in docs/images by these screenshots";

const WEB: &str = "web";
const CLIENT: &str = "clients/typescript";
const PAGE: &str = "components/gateway/page.html";
/// The screenshots of the tests that documents show as `docs/images/page-NAME.png`.
const IMAGES: [&str; 8] = ["home", "generate", "runs", "run", "channels", "session", "server", "demo"];

pub(crate) fn task(house: &House, mut args: Args) -> Result<()> {
    let (checks, tests, images) = (args.flag("--check"), args.flag("--test"), args.flag("--images"));
    args.finish()?;
    if !node::is_available() {
        bail!("`node` and `npm` are not on the PATH; Node.js 20 or later has both");
    }
    if tests {
        let program = build::program(house)?;
        test(house, &program, &browser::browser(house)?)?;
        return if images { replace_images(house) } else { Ok(()) };
    }
    if images {
        bail!("--images needs --test, which takes the screenshots");
    }
    let page = page(house)?;
    if checks {
        return check(house, &page);
    }
    let changed = write_if_changed(&house.root.join(PAGE), &page)?;
    println!("{PAGE} {}", if changed { "is regenerated" } else { "is up to date" });
    Ok(())
}

/// Copies the screenshots of the light theme that documents show.
fn replace_images(house: &House) -> Result<()> {
    let screenshots = typescript::screenshots(house)?;
    for view in IMAGES {
        let from = screenshots.join(format!("{view}-light.png"));
        let to = house.root.join(format!("docs/images/page-{view}.png"));
        fs::copy(&from, &to).with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))?;
    }
    println!("docs/images has {} pictures of the page", IMAGES.len());
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
        test.envs(typescript::generate_stub(house));
        test
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_picture_of_a_view_is_shown_by_the_guide_and_home_first_by_the_readme() {
        let root = House::find().root;
        let guide = fs::read_to_string(root.join("docs/guides/page.md")).unwrap();
        for view in IMAGES {
            let image = format!("images/page-{view}.png");
            assert!(root.join("docs").join(&image).is_file(), "docs/{image} does not exist");
            assert!(guide.contains(&image), "docs/guides/page.md does not show {image}");
        }
        let readme = fs::read_to_string(root.join("README.md")).unwrap();
        let first = readme.split("![").nth(1).unwrap();
        assert!(first.lines().next().unwrap().ends_with("(docs/images/page-home.png)"), "the first picture: {first}");
    }
}
