//! Runs the programs: one prints a label for each of its texts, one the segments of its transcript.

use std::path::PathBuf;
use std::process::Command;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn components() -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from);
    std::env::var_os("WEIR_COMPONENTS_DIR").map_or_else(|| target.join("components"), PathBuf::from)
}

fn printed(command: &mut Command) -> String {
    let output = command.output().expect("the program starts");
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{printed}{}", String::from_utf8_lossy(&output.stderr));
    printed
}

#[test]
fn texts_are_labelled() {
    let mut program = Command::new(env!("CARGO_BIN_EXE_embed-example"));
    let printed = printed(program.arg(components().join("infer.wasm")).arg(root().join("host/nn/models")));
    for part in ["text 0: positive", "text 1: negative", "text 2: neutral", "3 texts delivered"] {
        assert!(printed.contains(part), "{part} is not in {printed}");
    }
}

#[test]
fn transcript_is_annotated() {
    let mut program = Command::new(env!("CARGO_BIN_EXE_session"));
    let printed = printed(program.arg(components().join("session.wasm")));
    assert_eq!(printed, "commitment: I'll check the refund.\nquestion: Which order is it?\n");
}
