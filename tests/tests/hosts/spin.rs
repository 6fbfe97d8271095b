//! `weir.wasm` under Spin. No package registry has Spin: `cargo xtask hosts spin --bin PATH` runs this with a given one.

use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};
use weir_tests::{Server, component, conformance, free_port, root, tool};

#[tokio::test]
async fn weir_wasm_under_spin_passes_the_conformance_cases() -> Result<()> {
    let reference = Server::start(&["--set", "models.isa=portable"]).await?;
    let spin = tool("WEIR_TEST_SPIN")?;
    let built = component("weir.wasm")?;
    let folder = tempfile::tempdir()?;
    let shipped = std::fs::read_to_string(root().join("spin.toml"))?;
    let manifest = folder.path().join("spin.toml");
    let built_folder = built.parent().unwrap_or(&built).display().to_string();
    ensure!(shipped.matches("\"target/components").count() == 2, "spin.toml names files elsewhere");
    std::fs::write(&manifest, shipped.replace("\"target/components", &format!("\"{built_folder}")))?;
    let mut command = Command::new(spin);
    command.arg("up").arg("--from").arg(&manifest).arg("--listen").arg(format!("127.0.0.1:{}", free_port()?));
    // The flags of docs/guides/spin.md.
    command.args(["--max-instance-reuse-count", "100000", "--max-instance-concurrent-reuse-count", "1000"]);
    command.args(["--idle-instance-timeout", "3600s", "--env", "WEIR_AUTH_LOOPBACK=true"]);
    command.current_dir(folder.path());
    let server = Server::spawn_within(command, "Serving http://", Duration::from_secs(300))?;
    server.ready().await?;
    // It has no row in the table, which has what every run of the tests shows.
    conformance::check_host(&conformance::Host { name: "Spin", fails: &[], unsteady: &[] }, &server, &reference).await
}
