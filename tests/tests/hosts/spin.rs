//! The composed components under Spin. No package registry has Spin: `cargo xtask hosts spin --bin PATH` runs these tests with a given one.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use tempfile::TempDir;
use weir_tests::client::post;
use weir_tests::conformance::{self, Case, publish_and_resume};
use weir_tests::follow::Follower;
use weir_tests::{Server, component, copy_tree, free_port, root, tool};

use crate::composed::plug;

/// Time in which Spin compiles a component.
const COMPILATION_MAX: Duration = Duration::from_secs(300);
/// The flags of docs/guides/spin.md.
const FLAGS: [&str; 6] = [
    "--max-instance-reuse-count",
    "100000",
    "--max-instance-concurrent-reuse-count",
    "1000",
    "--idle-instance-timeout",
    "3600s",
];

/// Starts the application whose manifest is in a folder, which Spin stores its data in.
fn up(folder: &Path) -> Result<Server> {
    let mut command = Command::new(tool("WEIR_TEST_SPIN")?);
    command.arg("up").arg("--from").arg(folder.join("spin.toml"));
    command.arg("--listen").arg(format!("127.0.0.1:{}", free_port()?)).args(FLAGS);
    command.args(["--env", "WEIR_AUTH_LOOPBACK=true"]).current_dir(folder);
    Ok(Server::spawn_within(command, "Serving http://", COMPILATION_MAX)?.with_processes())
}

/// A folder with a manifest of the repository in which texts are replaced, each of them once.
fn project(manifest: &str, replaced: &[(&str, String)]) -> Result<TempDir> {
    let mut text = fs::read_to_string(root().join(manifest))?;
    for (from, to) in replaced {
        ensure!(text.matches(from).count() == 1, "{manifest} has not `{from}` once");
        text = text.replace(from, to);
    }
    let folder = tempfile::tempdir()?;
    fs::write(folder.path().join("spin.toml"), text)?;
    Ok(folder)
}

/// `spin.toml` with another component. Files have to lie in the folder of the manifest, so it has copies of the models.
fn project_of(name: &str, more: &str) -> Result<TempDir> {
    let component = component(name)?;
    let build = "[component.weir.build]";
    let replaced = [
        ("target/components/weir.wasm", component.display().to_string()),
        ("target/components/models", "models".to_owned()),
        (build, format!("{more}\n{build}")),
    ];
    let folder = project("spin.toml", &replaced)?;
    copy_tree(&component.with_file_name("models"), &folder.path().join("models"))?;
    Ok(folder)
}

/// A component has no bf16 instructions, so embeddings are compared with those of a processor without them.
async fn reference() -> Result<Server> {
    Server::start(&["--set", "models.isa=portable"]).await
}

#[tokio::test]
async fn weir_wasm_under_spin_passes_every_case() -> Result<()> {
    let reference = reference().await?;
    let folder = project_of("weir.wasm", "")?;
    let server = up(folder.path())?;
    server.ready().await?;
    conformance::check("Spin 4.1", &server, &reference).await
}

#[tokio::test]
async fn thin_component_under_spin_asks_another_server() -> Result<()> {
    let models = Server::start(&[]).await?;
    let mut manifest = fs::read_to_string(root().join("deploy/spin/thin.toml"))?;
    ensure!(manifest.matches("http://127.0.0.1:8080").count() == 2, "the server is named here and there");
    manifest = manifest.replace("http://127.0.0.1:8080", &models.url(""));
    let source = component("weir-thin.wasm")?;
    let folder = tempfile::tempdir()?;
    let manifest = manifest.replace("../../target/components/weir-thin.wasm", &source.display().to_string());
    fs::write(folder.path().join("spin.toml"), manifest)?;
    let server = up(folder.path())?;
    server.ready().await?;
    for case in [Case::Scores, Case::Entities, Case::Embeddings, Case::Process, Case::Duplex] {
        conformance::run(case, &server, &models).await.with_context(|| format!("{case:?}\n{}", server.log()))?;
    }
    Ok(())
}

/// The composition of docs/guides/spin.md, which Spin makes itself.
#[tokio::test]
async fn open_component_is_composed_by_spin_with_an_inference_component() -> Result<()> {
    let reference = reference().await?;
    let infer = plug(&fs::read(component("infer.wasm")?)?, &[&fs::read(component("nn.wasm")?)?])?;
    let dependency = "[component.weir.dependencies]\n\"weir:stream/infer@0.1.0\" = { path = \"my-infer.wasm\", \
                      inherit_configuration = true }\n";
    let page = fs::read_to_string(root().join("docs/guides/spin.md"))?;
    ensure!(page.contains(dependency), "docs/guides/spin.md composes it in another way");
    let folder = project_of("weir-open.wasm", dependency)?;
    fs::write(folder.path().join("my-infer.wasm"), infer)?;
    let server = up(folder.path())?;
    server.ready().await?;
    for case in [Case::Scores, Case::Process, Case::Duplex, Case::Channels] {
        conformance::run(case, &server, &reference).await.with_context(|| format!("{case:?}\n{}", server.log()))?;
    }
    Ok(())
}

#[tokio::test]
async fn channels_in_a_key_value_store_survive_restarts_of_spin() -> Result<()> {
    let stores = "key_value_stores = [\"default\"]\n";
    let page = fs::read_to_string(root().join("docs/guides/spin.md"))?;
    ensure!(page.contains(stores), "docs/guides/spin.md names another store");
    let folder = project_of("weir-keyvalue-draft2.wasm", stores)?;
    let publish = async |server: &Server| {
        let body = json!({"step": "s", "progress": 1});
        let (status, answer) = post(server, "/stream/publish/workflow/w2", &body).await?;
        ensure!(status == 200, "{status} {answer}");
        Ok(answer["id"].as_str().context("an id")?.to_owned())
    };
    let server = up(folder.path())?;
    server.wait_for_probe("/livez").await?;
    publish_and_resume(&server, "w1").await?;
    let last = publish(&server).await?;
    drop(server);

    let server = up(folder.path())?;
    server.wait_for_probe("/livez").await?;
    let next = publish(&server).await?;
    let mut whole = Follower::open(&server, "/stream/workflow/w2", None).await?;
    let (first, second) = (whole.next_stored_event().await?, whole.next_stored_event().await?);
    ensure!((first.id == last, second.id == next) == (true, true), "{first:?} {second:?}");
    ensure!((first.seq()?, second.seq()?) == (1, 2), "{first:?} {second:?}");
    Ok(())
}
