//! `docs/explanation/crates.md`: the dependencies between crates, from the metadata of cargo.
//! `UPDATE_EXPECT=1 cargo test -p xtask` regenerates it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use expect_test::expect_file;
use serde_json::Value;

use crate::house::House;
use crate::sh;

const PAGE: &str = "\
# Graph of crates

<!-- Generated from the metadata of cargo: UPDATE_EXPECT=1 cargo test -p xtask -->

An arrow leads from a crate to one that it depends on. The picture omits arrows that follow from others, and both picture and table
omit dependencies of tests only. Crates of the host do not
depend on the components `gateway`, `infer`, `session`, `generate` and `adapter`, which are loaded as WebAssembly. `host/xtask/src/rules.rs` lists
the allowed dependencies.

";

/// The folders whose crates the picture shows, and their titles.
const GROUPS: [(&str, &str); 2] =
    [("components", "components (WebAssembly, or libraries of it)"), ("host", "host (native)")];

/// Whether a crate depends on another, directly or through others.
fn reaches(direct: &BTreeMap<&str, BTreeSet<&str>>, from: &str, to: &str) -> bool {
    direct.get(from).is_some_and(|used| used.contains(to) || used.iter().any(|next| reaches(direct, next, to)))
}

#[test]
fn page_has_the_graph_of_crates() {
    let house = House::find();
    let mut cargo = sh::cargo(&house);
    cargo.args(["metadata", "--no-deps", "--format-version", "1"]);
    let metadata: Value = serde_json::from_str(&sh::stdout_of(&mut cargo).unwrap()).unwrap();
    // The folder of a crate in its group, and the crates that it depends on.
    let mut crates: Vec<(&str, String, Vec<&str>)> = Vec::new();
    for package in metadata["packages"].as_array().unwrap() {
        let folder = package["manifest_path"].as_str().unwrap();
        let folder = folder.strip_prefix(house.root.to_str().unwrap()).unwrap().trim_start_matches('/');
        let folder = folder.trim_end_matches("/Cargo.toml").to_owned();
        let used = package["dependencies"].as_array().unwrap().iter();
        let used = used.filter(|it| it["kind"] != "dev" && !it["path"].is_null());
        crates.push((package["name"].as_str().unwrap(), folder, used.map(|it| it["name"].as_str().unwrap()).collect()));
    }
    crates.sort();
    let is_in_a_group = |name: &str| {
        let folder = crates.iter().find(|it| it.0 == name).map(|it| it.1.as_str());
        folder.is_some_and(|folder| GROUPS.iter().any(|(group, _)| folder.starts_with(&format!("{group}/"))))
    };
    let mut page = format!("{PAGE}```mermaid\ngraph TD\n");
    for (group, title) in GROUPS {
        writeln!(page, "  subgraph {group} [\"{title}\"]").unwrap();
        for (name, folder, _) in crates.iter().filter(|it| it.1.starts_with(&format!("{group}/"))) {
            writeln!(page, "    {name}[\"{}\"]", &folder[group.len() + 1..]).unwrap();
        }
        page.push_str("  end\n");
    }
    let direct: BTreeMap<&str, BTreeSet<&str>> =
        crates.iter().map(|(name, _, used)| (*name, used.iter().copied().collect())).collect();
    for (name, _, _) in crates.iter().filter(|it| is_in_a_group(it.0)) {
        let used = &direct[name];
        for target in used.iter().filter(|target| is_in_a_group(target)) {
            if !used.iter().any(|between| between != target && reaches(&direct, between, target)) {
                writeln!(page, "  {name} --> {target}").unwrap();
            }
        }
    }
    page.push_str("```\n\n| crate | folder | depends on |\n|---|---|---|\n");
    for (name, folder, used) in crates.iter().filter(|it| is_in_a_group(it.0)) {
        let mut used: Vec<String> = used.iter().map(|used| format!("`{used}`")).collect();
        used.sort();
        used.dedup();
        writeln!(page, "| `{name}` | `{folder}` | {} |", used.join(", ")).unwrap();
    }
    expect_file!["../../../../docs/explanation/crates.md"].assert_eq(&page);
}
