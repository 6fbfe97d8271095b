//! `weir.wasm` under `wash dev` of wasmCloud, with the configuration of the repository.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use weir_tests::{Server, component, conformance, free_port, models, root, tool};

/// Time in which `wash` compiles the component, which takes a minute on a busy machine.
const COMPILATION_MAX: Duration = Duration::from_secs(300);

/// The command; its folders of settings and caches are below the home folder.
fn wash(home: &Path) -> Result<Command> {
    let mut command = Command::new(tool("WEIR_TEST_WASH")?);
    command.arg("--non-interactive").env("HOME", home).env("NO_COLOR", "1").current_dir(home);
    Ok(command)
}

#[tokio::test]
async fn weir_wasm_under_wash_dev_passes_the_conformance_cases() -> Result<()> {
    // A component has no bf16 instructions, so embeddings are compared with those of a processor without them.
    let reference = Server::start(&["--set", "models.isa=portable"]).await?;
    let project = tempfile::tempdir()?;
    let shipped = std::fs::read_to_string(root().join(".wash/config.yaml"))?;
    // The configuration names files below the repository and a fixed port.
    let mut config = shipped.clone();
    let component = component("weir.wasm")?;
    for (from, to) in [
        ("target/components/weir.wasm", component.display().to_string()),
        ("target/components/models", models().display().to_string()),
        ("127.0.0.1:8000", format!("127.0.0.1:{}", free_port()?)),
    ] {
        assert_eq!(shipped.matches(from).count(), 1, "{from} in .wash/config.yaml");
        config = config.replace(from, &to);
    }
    std::fs::create_dir(project.path().join(".wash"))?;
    std::fs::write(project.path().join(".wash/config.yaml"), config)?;
    let mut command = wash(project.path())?;
    command.arg("-C").arg(project.path()).arg("dev");
    let server = Server::spawn_within(command, "requests address=http://", COMPILATION_MAX)?;
    server.ready().await?;
    conformance::check("`wash dev` of wasmCloud 2.10", &server, &reference).await
}

#[tokio::test]
async fn component_is_pushed_to_a_registry_and_pulled_from_it() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let config = folder.path().join("config.yml");
    let data = folder.path().join("data");
    let address = format!("127.0.0.1:{}", free_port()?);
    let settings = format!(
        "version: 0.1\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: \"{address}\"}}\n",
        data.display()
    );
    std::fs::write(&config, settings)?;
    let mut command = Command::new(tool("WEIR_TEST_REGISTRY")?);
    command.arg("serve").arg(&config);
    let registry = Server::spawn(command, "msg=\"listening on ")?;
    let (artifact, pulled) = (format!("{address}/weir/thin:0.1.0"), folder.path().join("pulled.wasm"));
    let pushed = component("weir-thin.wasm")?;
    for (verb, file) in [("push", &pushed), ("pull", &pulled)] {
        let output = wash(folder.path())?.args(["oci", verb, "--insecure", &artifact]).arg(file).output()?;
        ensure!(output.status.success(), "{verb}: {output:?}\n{}", registry.log());
    }
    ensure!(std::fs::read(&pushed)? == std::fs::read(&pulled)?, "the pulled component differs");
    // The media types of the Wasm OCI artifact layout, which other tools read.
    let accept = "application/vnd.oci.image.manifest.v1+json";
    let manifest = reqwest::Client::new().get(format!("http://{address}/v2/weir/thin/manifests/0.1.0"));
    let manifest: Value = manifest.header("accept", accept).send().await?.json().await?;
    assert_eq!(manifest["config"]["mediaType"], "application/vnd.wasm.config.v0+json", "{manifest}");
    let layers = manifest["layers"].as_array().context("layers")?;
    assert_eq!((layers.len(), &layers[0]["mediaType"]), (1, &Value::from("application/wasm")), "{manifest}");
    Ok(())
}
