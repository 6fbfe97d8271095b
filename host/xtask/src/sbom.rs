//! The bill of materials of an archive, as CycloneDX 1.6: every crate that is in the program or in a component inside of it, and the models.
//!
//! It has no time and no serial number, so the same sources have the same bytes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::house::{COMPONENTS, House, PLUGS, SHIPPED_MODELS, WASM_TARGET};
use crate::{build, sh};

/// A crate by its id in cargo's metadata.
type Crates = BTreeMap<String, Value>;

/// Renders the bill of materials of the program for a target triple.
pub(crate) fn render(house: &House, version: &str, target: &str) -> Result<String> {
    let mut crates = Crates::new();
    let mut edges = BTreeMap::<String, BTreeSet<String>>::new();
    let inside: Vec<&str> = COMPONENTS.iter().chain(PLUGS.iter().map(|(plug, _)| plug)).map(|it| it.package).collect();
    add(house, target, &["weir"], &mut crates, &mut edges)?;
    add(house, WASM_TARGET, &inside, &mut crates, &mut edges)?;
    let checksums = checksums(&fs::read_to_string(house.root.join("Cargo.lock")).context("cannot read Cargo.lock")?);
    let root = reference("weir", version);
    let mut components: Vec<Value> =
        crates.values().filter(|it| it["name"] != "weir").map(|it| component(it, &checksums)).collect::<Result<_>>()?;
    for model in build::shipped_models(house)? {
        components.push(model_component(house, &house.root.join(SHIPPED_MODELS), &model, version)?);
    }
    components.sort_by(|a, b| a["bom-ref"].as_str().cmp(&b["bom-ref"].as_str()));
    // The components inside of the program are linked by no edge of cargo.
    for package in inside {
        edges.entry(root.clone()).or_default().insert(reference(package, version));
    }
    let dependencies: Vec<Value> = edges.iter().map(|(of, on)| json!({"ref": of, "dependsOn": on})).collect();
    let document = json!({
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "component": {
                "type": "application",
                "bom-ref": root,
                "name": "weir",
                "version": version,
                "purl": reference("weir", version),
                "properties": [{"name": "weir:target", "value": target}],
            },
        },
        "components": components,
        "dependencies": dependencies,
    });
    Ok(serde_json::to_string_pretty(&document)? + "\n")
}

/// Adds what `packages` need at run time on a platform; build scripts, macros and tests are left out.
fn add(
    house: &House,
    target: &str,
    packages: &[&str],
    crates: &mut Crates,
    edges: &mut BTreeMap<String, BTreeSet<String>>,
) -> Result<()> {
    let mut cargo = sh::cargo(house);
    let metadata =
        sh::stdout_of(cargo.args(["metadata", "--format-version", "1", "--locked", "--filter-platform", target]))?;
    let metadata: Value = serde_json::from_str(&metadata).context("cargo's metadata is no JSON")?;
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let by_id: BTreeMap<String, Value> =
        list(&metadata["packages"]).into_iter().map(|it| (text(&it["id"]).to_owned(), it)).collect();
    let nodes: BTreeMap<String, Value> =
        list(&metadata["resolve"]["nodes"]).into_iter().map(|it| (text(&it["id"]).to_owned(), it)).collect();
    let is_macro = |id: &str| {
        by_id
            .get(id)
            .is_some_and(|it| list(&it["targets"]).iter().any(|it| list(&it["kind"]).contains(&json!("proc-macro"))))
    };
    let mut open: Vec<String> =
        by_id.iter().filter(|(_, it)| packages.contains(&text(&it["name"]))).map(|(id, _)| id.clone()).collect();
    if open.len() < packages.len() {
        bail!("cargo's metadata for {target} has not all of {}", packages.join(", "));
    }
    let mut seen = BTreeSet::new();
    while let Some(id) = open.pop() {
        if !seen.insert(id.clone()) {
            continue;
        }
        let (package, node) = (by_id.get(&id).context("a package")?, nodes.get(&id).context("a node")?);
        let on = edges.entry(reference(text(&package["name"]), text(&package["version"]))).or_default();
        for dependency in list(&node["deps"]) {
            let linked = list(&dependency["dep_kinds"]).iter().any(|kind| kind["kind"].is_null());
            let other = text(&dependency["pkg"]);
            if linked && !is_macro(other) {
                let other = by_id.get(other).context("a dependency")?;
                on.insert(reference(text(&other["name"]), text(&other["version"])));
                open.push(text(&other["id"]).to_owned());
            }
        }
        crates.insert(id, package.clone());
    }
    Ok(())
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// The package URL of a crate, which is also its reference in the document.
fn reference(name: &str, version: &str) -> String {
    format!("pkg:cargo/{name}@{version}")
}

fn component(package: &Value, checksums: &BTreeMap<(String, String), String>) -> Result<Value> {
    let (name, version) = (text(&package["name"]), text(&package["version"]));
    let license = text(&package["license"]).replace('/', " OR ");
    if license.is_empty() {
        bail!("{name} {version} names no licence");
    }
    let mut component = json!({
        "type": "library",
        "bom-ref": reference(name, version),
        "name": name,
        "version": version,
        "purl": reference(name, version),
        "licenses": [{"expression": license}],
    });
    if let Some(checksum) = checksums.get(&(name.to_owned(), version.to_owned())) {
        component["hashes"] = json!([{"alg": "SHA-256", "content": checksum}]);
    }
    Ok(component)
}

fn model_component(house: &House, folder: &Path, model: &str, version: &str) -> Result<Value> {
    let folder = folder.join(model);
    let entries = fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let paths: Vec<_> = entries.filter_map(|entry| Some(entry.ok()?.path())).filter(|path| path.is_file()).collect();
    // A program of the system, since this one is built without optimization.
    let sums = sh::stdout_of(sh::program(house, "sha256sum").args(&paths))?;
    let mut files = Vec::new();
    for (path, line) in paths.iter().zip(sums.lines()) {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let sum = line.split(' ').next().unwrap_or_default();
        files.push(json!({
            "type": "file",
            "bom-ref": format!("model/{model}/{name}"),
            "name": name,
            "hashes": [{"alg": "SHA-256", "content": sum}],
        }));
    }
    files.sort_by(|a, b| a["name"].as_str().cmp(&b["name"].as_str()));
    Ok(json!({
        "type": "machine-learning-model",
        "bom-ref": format!("model/{model}"),
        "name": model,
        "version": version,
        "components": files,
    }))
}

/// The checksums of Cargo.lock by name and version. Cargo writes one key a line.
fn checksums(lock: &str) -> BTreeMap<(String, String), String> {
    lock.split("[[package]]\n")
        .filter_map(|package| {
            let value = |key: &str| {
                let line = package.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(" = \""));
                line.map(|value| value.trim_end_matches('"').to_owned())
            };
            Some(((value("name")?, value("version")?), value("checksum")?))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_are_read_by_name_and_version() {
        let lock = "version = 4\n\n[[package]]\nname = \"a\"\nversion = \"1.0.0\"\nchecksum = \"ab\"\n\n[[package]]\nname = \"weir\"\nversion = \"0.1.0\"\n";
        let sums = checksums(lock);
        assert_eq!(sums, BTreeMap::from([(("a".to_owned(), "1.0.0".to_owned()), "ab".to_owned())]));
    }

    #[test]
    fn bill_has_linked_crates_of_program_and_components_with_licences_and_hashes() {
        let house = House::find();
        let text = render(&house, env!("CARGO_PKG_VERSION"), "x86_64-unknown-linux-gnu").unwrap();
        assert_eq!(text, render(&house, env!("CARGO_PKG_VERSION"), "x86_64-unknown-linux-gnu").unwrap());
        let document: Value = serde_json::from_str(&text).unwrap();
        let components = document["components"].as_array().unwrap();
        let find = |name: &str| components.iter().find(|it| it["name"] == name);
        for name in ["wasmtime", "weir-gateway", "weir-nn", "tokenizers"] {
            let found = find(name).unwrap_or_else(|| panic!("{name} is not in the bill"));
            assert!(found["licenses"][0]["expression"].is_string(), "{found}");
            assert_eq!(found["hashes"][0]["content"].as_str().is_some(), !name.starts_with("weir"), "{found}");
        }
        // Neither what the tests need nor what runs at build time is shipped.
        for name in ["weir-tests", "expect-test", "xtask", "serde_derive", "cc"] {
            assert!(find(name).is_none(), "{name} is in the bill");
        }
        let references: BTreeSet<&str> = components.iter().map(text_of).collect();
        assert_eq!(references.len(), components.len(), "each reference once");
        for edge in document["dependencies"].as_array().unwrap() {
            for on in edge["dependsOn"].as_array().unwrap() {
                assert!(references.contains(on.as_str().unwrap()), "{on} is no component");
            }
        }
    }

    fn text_of(component: &Value) -> &str {
        component["bom-ref"].as_str().unwrap()
    }
}
