//! The clients from npm with which the tests read events.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::files::{Key, Stamp, on_path};
use crate::house::House;
use crate::sh;
use crate::ui::{Step, finish};

/// The variable that tests read the folder of `node_modules` from.
pub(crate) const VARIABLE: &str = "WEIR_TEST_NPM";
/// The tests that need Node.js or its packages.
pub(crate) const TESTS: [&str; 12] = [
    "sse_clients_with_cut_connections_get_every_event_once",
    "websocket_follows_many_channels_and_resumes",
    "websocket_path_names_the_first_channel",
    "websocket_of_a_session_accepts_chunks_and_sends_events",
    "request_that_is_no_websocket_handshake_is_refused",
    "unsubscribing_sends_the_throttled_progress_first",
    "websocket_that_is_cut_or_drained_is_released",
    "javascript_example_labels_lines",
    "javascript_example_follows_to_the_end_of_a_channel",
    "openai_and_anthropic_for_javascript_understand_streams",
    "ai_sdk_understands_responses_chats_and_its_own_stream",
    "javascript_blocks_have_a_program_that_runs_them",
];

const PACKAGES: &str = "tests/readers/package.json";

/// Whether this machine has Node.js and npm.
pub(crate) fn is_available() -> bool {
    ["node", "npm"].iter().all(|name| on_path(&[*name]).is_some())
}

/// Installs the packages of tests/readers in their pinned versions, unless they are installed.
pub(crate) fn ensure(house: &House) -> Result<PathBuf> {
    let folder = house.keep().join("npm");
    let packages = house.root.join(PACKAGES);
    let stamp = Stamp::new(house, "npm", Key::default().file(&packages)?);
    if stamp.fresh() && folder.join("node_modules").is_dir() {
        return Ok(folder);
    }
    let mut step = Step::begin("npm", &format!("installs {PACKAGES} under target"));
    let mut install = || {
        fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
        fs::copy(&packages, folder.join("package.json")).context("cannot copy package.json")?;
        let mut npm = sh::program(house, "npm");
        npm.args(["install", "--no-package-lock", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix"]);
        sh::check(&mut step, npm.arg(&folder))?;
        stamp.set()?;
        Ok("eventsource, eventsource-parser, ws, openai, anthropic, ai".to_owned())
    };
    let installed = install();
    finish(step, installed)?;
    Ok(folder)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;

    /// Calls that start Node.js, in the test files that name its packages or `has_node`.
    const CALLS: [&str; 4] = ["node(", "Socket::", "read(reader", "has_node("];

    /// Adds the names of the test functions below a folder that start Node.js.
    fn add_tests(folder: &Path, names: &mut BTreeSet<String>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                add_tests(&path, names);
            } else if path.extension().is_some_and(|end| end == "rs") {
                let source = fs::read_to_string(&path).unwrap();
                if ![VARIABLE, "has_node"].iter().any(|word| source.contains(word)) {
                    continue;
                }
                for function in source.split("test]\n").skip(1) {
                    let name = function.split(['(', '<']).next().unwrap().split_whitespace().last().unwrap();
                    let body = function.split("\n}\n").next().unwrap();
                    if CALLS.iter().any(|call| body.contains(call)) {
                        names.insert(name.to_owned());
                    }
                }
            }
        }
    }

    #[test]
    fn tests_that_run_node_are_listed() {
        let mut names = BTreeSet::new();
        add_tests(&House::find().root.join("tests/tests"), &mut names);
        assert_eq!(names, TESTS.iter().map(|test| (*test).to_owned()).collect());
    }
}
