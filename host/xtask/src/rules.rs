//! The allowed dependencies of each crate, and their features. ARCHITECTURE.md gives the reasons; these tests enforce it.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::house::{HOST_PACKAGES, House};
use crate::sh;

/// The allowed dependencies of a crate, development dependencies excluded.
struct Rule {
    package: &'static str,
    /// The crates of this workspace.
    house: &'static [&'static str],
    /// Crates of others; without a list: all that [`RESERVED`] does not reserve for another crate.
    others: Option<&'static [&'static str]>,
}

const RULES: &[Rule] = &[
    Rule { package: "weir-core", house: &[], others: Some(&["thiserror"]) },
    Rule { package: "weir-expression", house: &["weir-core"], others: Some(&["serde_json", "thiserror"]) },
    Rule { package: "weir-kernels", house: &[], others: Some(&[]) },
    Rule {
        package: "weir-codec",
        house: &["weir-core", "weir-expression"],
        others: Some(&["serde", "serde_json", "thiserror", "schemars"]),
    },
    Rule {
        package: "weir-auth",
        house: &["weir-core", "weir-codec"],
        others: Some(&["base64ct", "ed25519-dalek", "hmac", "p256", "sha2", "subtle", "thiserror"]),
    },
    Rule { package: "weir-guest", house: &[], others: Some(&["wit-bindgen"]) },
    Rule {
        package: "weir-gateway",
        house: &["weir-auth", "weir-core", "weir-codec", "weir-expression", "weir-guest"],
        others: None,
    },
    Rule { package: "weir-infer", house: &["weir-core", "weir-codec", "weir-guest"], others: None },
    Rule { package: "weir-generate", house: &["weir-core", "weir-guest"], others: None },
    Rule { package: "weir-session", house: &["weir-core", "weir-codec"], others: None },
    Rule { package: "weir-adapter", house: &["weir-core", "weir-codec", "weir-guest"], others: None },
    // The host's crate, which has the engine builtin alone when it is compiled for wasm32.
    Rule { package: "weir-nn-component", house: &["weir-nn"], others: Some(&["wit-bindgen"]) },
    // The state machines of the host's store, for the same guarantees.
    Rule { package: "weir-store", house: &["weir-core"], others: Some(&["thiserror", "wit-bindgen"]) },
    Rule { package: "weir-store-memory", house: &["weir-store"], others: Some(&["wit-bindgen"]) },
    Rule { package: "weir-store-keyvalue", house: &["weir-store"], others: Some(&["wit-bindgen"]) },
    Rule { package: "weir-store-keyvalue-draft2", house: &["weir-store"], others: Some(&["wit-bindgen"]) },
    Rule { package: "weir-no-generate", house: &[], others: Some(&["wit-bindgen"]) },
    Rule {
        package: "weir-infer-remote",
        house: &["weir-core", "weir-codec", "weir-guest"],
        others: Some(&["futures", "wit-bindgen"]),
    },
    Rule { package: "weir-upstream", house: &["weir-core", "weir-codec", "weir-guest"], others: None },
    Rule { package: "weir-config", house: &["weir-core"], others: None },
    Rule { package: "weir-nn", house: &["weir-core", "weir-kernels"], others: None },
    // Files and threads, but no async and no engine of WebAssembly: it is tested in the dev profile.
    Rule { package: "weir-lm", house: &["weir-core", "weir-kernels"], others: Some(&["thiserror"]) },
    Rule { package: "weir-events", house: &["weir-core"], others: None },
    // Compiled once for all kinds of instances.
    Rule {
        package: "weir-wasi",
        house: &[],
        others: Some(&["http", "wasmtime", "wasmtime-wasi", "wasmtime-wasi-http"]),
    },
    // Of codec: which routes go to the stateful gateway instance.
    Rule {
        package: "weir-runtime",
        house: &[
            "weir-codec",
            "weir-config",
            "weir-core",
            "weir-events",
            "weir-lm",
            "weir-nn",
            "weir-telemetry",
            "weir-tls",
            "weir-wasi",
        ],
        others: None,
    },
    // Of codec: GRIP, and the rendering of events on a held connection.
    Rule {
        package: "weir-edge",
        house: &[
            "weir-codec",
            "weir-config",
            "weir-core",
            "weir-events",
            "weir-runtime",
            "weir-telemetry",
            "weir-websocket",
        ],
        others: None,
    },
    Rule { package: "weir-telemetry", house: &[], others: None },
    // Compiled once for the host and for adapters.
    Rule { package: "weir-tls", house: &[], others: Some(&["rustls", "tokio", "tokio-rustls", "webpki-roots"]) },
    // Frames and compression, without HTTP.
    Rule {
        package: "weir-websocket",
        house: &[],
        others: Some(&["base64ct", "bytes", "getrandom", "sha1", "thiserror", "tokio", "zlib-rs"]),
    },
    // Of codec: the settings of the adapter component, the rows of CSV, captions. Of events: channels as sources and sinks.
    Rule {
        package: "weir-adapters",
        house: &[
            "weir-codec",
            "weir-config",
            "weir-core",
            "weir-events",
            "weir-telemetry",
            "weir-tls",
            "weir-websocket",
        ],
        others: None,
    },
    // Of codec: captions, lines of inputs, and the definitions of pipelines. Of core: records of adapters, and when a rewritten summary counts.
    Rule {
        package: "weir",
        house: &[
            "weir-adapters",
            "weir-codec",
            "weir-config",
            "weir-core",
            "weir-edge",
            "weir-lm",
            "weir-nn",
            "weir-runtime",
            "weir-telemetry",
        ],
        others: None,
    },
    Rule { package: "weir-tests", house: &["weir-config", "weir-runtime"], others: None },
    // A client of any server, without wasmtime or an engine.
    Rule { package: "weir-bench", house: &[], others: Some(&["anyhow", "clap", "serde", "serde_json", "tokio"]) },
    // Of nn: tensors, with a feature that no build of the workspace enables.
    Rule {
        package: "weir-fuzz",
        house: &["weir-auth", "weir-codec", "weir-core", "weir-expression", "weir-lm", "weir-nn"],
        others: Some(&["serde_json"]),
    },
    Rule { package: "xtask", house: &[], others: None },
    Rule { package: "nn-probe", house: &[], others: None },
    Rule { package: "infer-stub", house: &[], others: None },
    Rule { package: "generate-stub", house: &[], others: None },
    Rule { package: "step-guest", house: &[], others: None },
    Rule { package: "adapter-guest", house: &[], others: None },
    Rule { package: "step-example", house: &[], others: None },
    Rule { package: "weir-python", house: &["weir-config", "weir-core", "weir-edge", "weir-runtime"], others: None },
    Rule { package: "embed-example", house: &["weir-config", "weir-runtime", "weir-wasi"], others: None },
];

/// Crates that only some may use: the beginning of a name, and the crates that may.
const RESERVED: &[(&str, &[&str])] = &[
    ("wasmtime", &["embed-example", "weir-nn", "weir-runtime", "weir-wasi"]),
    ("tract", &["weir-nn"]),
    ("ort", &["weir-nn"]),
    (
        "tokio",
        &[
            "embed-example",
            "weir",
            "weir-adapters",
            "weir-edge",
            "weir-events",
            "weir-python",
            "weir-runtime",
            "weir-telemetry",
            "weir-tests",
            "weir-tls",
            "weir-websocket",
        ],
    ),
    ("rustls", &["weir-tests", "weir-tls"]),
    ("redb", &["weir-events"]),
    ("redis", &["weir-adapters", "weir-events"]),
    ("rdkafka", &["weir-adapters", "weir-tests"]),
    ("ring", &["weir-adapters", "weir-tests"]),
    ("hyper", &["weir-adapters", "weir-edge", "weir-runtime", "weir-telemetry"]),
    (
        "wit-bindgen",
        &[
            "weir-adapter",
            "weir-gateway",
            "weir-generate",
            "weir-guest",
            "weir-infer",
            "weir-infer-remote",
            "weir-nn-component",
            "weir-no-generate",
            "weir-session",
            "weir-store",
            "weir-store-memory",
            "weir-store-keyvalue",
            "weir-store-keyvalue-draft2",
            "weir-upstream",
            "nn-probe",
            "infer-stub",
            "generate-stub",
            "step-guest",
            "adapter-guest",
            "step-example",
        ],
    ),
    ("wasip3", &["weir-gateway"]),
    ("spin-sdk", &["weir-gateway"]),
    ("tokenizers", &["weir-generate", "weir-infer"]),
    ("minijinja", &["weir-generate"]),
    ("llguidance", &["weir-generate"]),
    ("pyo3", &["weir-python"]),
    ("anyhow", &["embed-example", "weir", "weir-tests", "xtask"]),
];

/// What cargo knows about the workspace.
pub(crate) fn metadata() -> Value {
    let mut cargo = sh::cargo(&House::find());
    cargo.args(["metadata", "--no-deps", "--format-version", "1"]);
    serde_json::from_str(&sh::stdout_of(&mut cargo).unwrap()).unwrap()
}

#[test]
fn crates_use_only_allowed_dependencies() {
    let metadata = metadata();
    let packages = metadata["packages"].as_array().unwrap();
    let workspace: Vec<&str> = packages.iter().map(|package| package["name"].as_str().unwrap()).collect();
    let mut broken = Vec::new();
    for package in packages {
        let name = package["name"].as_str().unwrap();
        let Some(rule) = RULES.iter().find(|rule| rule.package == name) else {
            broken.push(format!("{name} has no rule in host/xtask/src/rules.rs"));
            continue;
        };
        for dependency in package["dependencies"].as_array().unwrap() {
            let used = dependency["name"].as_str().unwrap();
            if dependency["kind"] != "dev" && !allowed(rule, used, &workspace) {
                broken.push(format!("{name} may not use {used}"));
            }
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
    let stale: Vec<&str> = RULES.iter().map(|rule| rule.package).filter(|name| !workspace.contains(name)).collect();
    assert!(stale.is_empty(), "rules for crates that do not exist: {stale:?}");
}

fn allowed(rule: &Rule, used: &str, workspace: &[&str]) -> bool {
    if workspace.contains(&used) {
        return rule.house.contains(&used);
    }
    match rule.others {
        Some(others) => others.contains(&used),
        None => RESERVED
            .iter()
            .filter(|(start, _)| used == *start || used.starts_with(&format!("{start}-")))
            .all(|(_, users)| users.contains(&rule.package)),
    }
}

#[test]
fn rules_forbid_other_dependencies() {
    let rule = |name: &str| RULES.iter().find(|rule| rule.package == name).unwrap();
    let workspace: Vec<&str> = RULES.iter().map(|rule| rule.package).collect();
    for (package, used) in [
        ("weir-core", "serde"),
        ("weir-codec", "tokio"),
        ("weir-gateway", "weir-infer"),
        ("weir-infer", "tokio-util"),
        ("weir-edge", "wasmtime-wasi"),
        ("weir-edge", "weir-nn"),
        ("weir-nn", "weir-config"),
        ("weir-events", "weir-config"),
        ("weir-edge", "redis"),
    ] {
        assert!(!allowed(rule(package), used, &workspace), "{package} uses {used}");
    }
    for (package, used) in [("weir-core", "thiserror"), ("weir-runtime", "wasmtime"), ("weir-infer", "wasm-encoder")] {
        assert!(allowed(rule(package), used, &workspace), "{package} uses {used}");
    }
}

/// A development dependency may enable more features of a crate that the host uses too. Then `cargo test` compiles that crate, and
/// all that depend on it, a second time; this happened with wasmtime.
#[test]
fn build_and_tests_enable_the_same_features() {
    let features = |edges: &str| -> BTreeSet<String> {
        let mut cargo = sh::cargo(&House::find());
        cargo.args(["tree", "--prefix", "none", "--format", "{p} [{f}]", "--edges", edges]);
        for package in HOST_PACKAGES {
            cargo.args(["-p", package]);
        }
        let listed = sh::stdout_of(&mut cargo).unwrap();
        listed.lines().map(|line| line.trim_end_matches(" (*)").to_owned()).collect()
    };
    let (build, test) = (features("normal,build"), features("normal,build,dev"));
    assert!(build.len() > 100, "cargo tree listed {} crates", build.len());
    let only_build: Vec<&String> = build.difference(&test).collect();
    assert!(
        only_build.is_empty(),
        "tests ask more features of these crates; ask for them in tests/Cargo.toml too:\n{only_build:#?}"
    );
}

/// The files of a folder that end in `.rs`, by their paths within it.
pub(crate) fn sources(folder: &std::path::Path) -> Vec<(String, String)> {
    let (mut folders, mut sources) = (vec![folder.to_path_buf()], Vec::new());
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(&next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let name = path.strip_prefix(folder).unwrap().to_string_lossy().replace('\\', "/");
                sources.push((name, std::fs::read_to_string(&path).unwrap()));
            }
        }
    }
    assert!(!sources.is_empty(), "no sources in {}", folder.display());
    sources
}

/// An item has one type on each side of a boundary, and only codec knows JSON. `weir-expression` interprets JSON, and `weir-infer` reads
/// the JSON files of models.
#[test]
fn guests_leave_json_to_codec() {
    let house = House::find();
    for folder in ["core", "kernels", "auth", "gateway", "session", "adapter", "store", "infer-remote"] {
        for (name, text) in sources(&house.root.join("components").join(folder).join("src")) {
            let code = text.split("#[cfg(test)]").next().unwrap();
            assert!(!code.contains("serde_json"), "components/{folder}/src/{name} uses serde_json");
        }
    }
}

/// A plain `cargo test` builds the native crates: all but those that become components, the guest programs and the fuzz targets.
#[test]
fn default_members_are_the_native_crates() {
    let metadata = metadata();
    let ids = |list: &str| -> BTreeSet<String> {
        metadata[list].as_array().unwrap().iter().map(|id| id.as_str().unwrap().to_owned()).collect()
    };
    let mut expected = ids("workspace_members");
    for package in metadata["packages"].as_array().unwrap() {
        let is_component =
            package["targets"].as_array().unwrap().iter().any(|target| {
                target["crate_types"].as_array().unwrap().iter().any(|crate_type| crate_type == "cdylib")
            });
        if is_component || package["name"] == "weir-fuzz" {
            expected.remove(package["id"].as_str().unwrap());
        }
    }
    assert_eq!(ids("workspace_default_members"), expected);
}

/// The form of `Debug` is for developers: it shows names of Rust types and Rust's escapes. A line of code outside of tests formats it only
/// where the form is turned into words.
#[test]
fn messages_have_no_debug_forms() {
    const CONVERSIONS: [&str; 3] = ["wording.rs", "platform/wording.rs", "logs/line.rs"];
    let root = House::find().root;
    for folder in ["host", "components"] {
        for (name, text) in sources(&root.join(folder)) {
            let is_ours = name.split('/').nth(1) == Some("src") && !name.starts_with("xtask/");
            let is_test = name.contains("/tests/") || name.ends_with("/tests.rs");
            if !is_ours || is_test || CONVERSIONS.iter().any(|file| name.ends_with(file)) {
                continue;
            }
            // Tests that need a feature are `all(test, …)`.
            let code = text.split("#[cfg(test)]").next().and_then(|code| code.split("#[cfg(all(test,").next()).unwrap();
            let lines = code.lines().filter(|line| !line.trim_start().starts_with("//"));
            // In a format string, and as a field of a log line.
            let is_debug = |line: &&str| {
                let fields = ["= ?", "(?", ", ?"];
                line.contains(":?}")
                    || line.contains(":#?}")
                    || (line.contains("tracing::") && fields.iter().any(|field| line.contains(field)))
            };
            let debug: Vec<_> = lines.filter(is_debug).collect();
            assert!(debug.is_empty(), "{folder}/{name} formats with `Debug`:\n{}", debug.join("\n"));
        }
    }
}

/// A test fails without the program that it needs, by `tool` of weir-tests; `cargo xtask test` leaves out those whose program cannot be had.
/// A test that ended early instead would count as passed.
#[test]
fn end_to_end_tests_fail_without_their_programs() {
    let root = House::find().root.join("tests");
    for (name, text) in sources(&root.join("src")).into_iter().chain(sources(&root.join("tests"))) {
        // A number of repetitions has a default.
        let reads = |line: &&str| line.contains("std::env::var") && !line.contains("WEIR_TEST_KILLS");
        let is_of_tests = |line: &&str| line.contains("WEIR_TEST_") || line.contains("WEIR_DATA");
        let lines: Vec<&str> = text.lines().filter(reads).filter(is_of_tests).collect();
        assert!(lines.is_empty(), "{name} does not read it by `tool`: {lines:?}");
    }
}

/// The test programs of weir-tests have the modules and tests that [`crate::checks`] leaves out without their programs.
#[test]
fn tests_that_are_left_out_exist() {
    let sources = sources(&House::find().root.join("tests/tests"));
    let others = [crate::lm::TESTS, crate::lm::SERVER_TESTS, crate::kafka::TEST, crate::kafka_tls::TESTS];
    for part in crate::nats::TESTS.into_iter().chain(others) {
        let is_there = match part.strip_suffix("::") {
            Some(module) => sources.iter().any(|(name, _)| name.ends_with(&format!("/{module}.rs"))),
            None => sources.iter().any(|(_, text)| text.contains(&format!("fn {part}("))),
        };
        assert!(is_there, "no end-to-end test {part}");
    }
}

/// The files of a crate that contain a text.
fn files_with(krate: &str, text: &str) -> Vec<String> {
    let sources = sources(&House::find().root.join(krate).join("src"));
    let mut files: Vec<String> =
        sources.into_iter().filter(|(_, source)| source.contains(text)).map(|(name, _)| name).collect();
    files.sort();
    files
}

/// One file calls inference, and one file at each boundary knows both sides of a type. Guests map WIT records of the same form as core's
/// onto core's types (`with` of `wit_bindgen::generate!`).
#[test]
fn each_boundary_has_one_conversion_module() {
    for (krate, text, file) in [
        ("components/gateway", "infer::run(", "inference/client.rs"),
        ("components/gateway", "wire::Failure::", "inference/convert.rs"),
        ("components/gateway", "generate::run(", "generation/client.rs"),
        ("components/gateway", "wire::Prompt::", "generation/convert.rs"),
        ("components/gateway", "session::KeywordMatch", "transcripts/convert.rs"),
        ("components/session", "KeywordMatch {", "convert.rs"),
        ("components/upstream", "wire::Prompt::", "convert.rs"),
        ("components/upstream", "types::Failure::", "convert.rs"),
        ("components/adapter", "wire::Failure::", "convert.rs"),
        ("components/infer-remote", "wire::Failure::", "convert.rs"),
        // Events and state of the host, and failures of items.
        ("host/runtime", "channels::Delivery::", "interfaces/convert.rs"),
        ("host/runtime", "Error::ShareExceeded", "interfaces/convert.rs"),
        ("host/runtime", "core::Failure::", "interfaces/convert.rs"),
    ] {
        assert_eq!(files_with(krate, text), [file], "{text} in {krate}");
    }
}
