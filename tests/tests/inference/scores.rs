//! The scores of the shipped models on held-out data, through `weir run`. The data is not part of the repository: `WEIR_DATA` names its
//! folder, and `cargo xtask test` skips this test without it.

use std::process::Command;

use anyhow::{Result, ensure};
use weir_tests::{models, tool, weir};

#[test]
fn shipped_models_reach_their_goals() -> Result<()> {
    let data = tool("WEIR_DATA")?;
    let output = Command::new(tool("WEIR_TEST_PYTHON")?)
        .arg(models().join("score.py"))
        .arg("--data")
        .arg(data)
        .arg("--weir")
        .arg(weir()?)
        .output()?;
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    println!("{text}");
    ensure!(output.status.success(), "{text}");
    Ok(())
}
