//! Graphs that are damaged or made up: the engine `builtin` refuses them without a panic, because a component that has it
//! (`components/nn`) cannot catch one.

#![allow(clippy::unwrap_used, reason = "in a test a failure is a panic")]

use std::path::{Path, PathBuf};

use proptest::prelude::*;
use weir_nn::{Engine, LoadError, Registry, RegistryConfig};

fn shipped(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models").join(name)
}

/// The error of a graph; a panic is caught natively, and its text says so.
fn check(result: Result<(), LoadError>) -> Result<(), TestCaseError> {
    match result {
        Ok(()) => Ok(()),
        Err(error) => {
            let text = error.to_string();
            prop_assert!(!text.contains("cannot make sense of it"), "a panic: {}", text);
            Ok(())
        }
    }
}

fn load(content: &[u8]) -> Result<(), LoadError> {
    Registry::new(RegistryConfig::default()).load_bytes(content, Engine::Builtin).map(drop)
}

/// Loads a graph with the external data of a shipped model beside it.
fn load_beside(model: &str, content: &[u8]) -> Result<(), LoadError> {
    let folder = tempfile::tempdir().unwrap();
    for file in ["model.onnx.data", "word_embeddings.i8"] {
        std::os::unix::fs::symlink(shipped(model).join(file).canonicalize().unwrap(), folder.path().join(file))
            .unwrap();
    }
    let file = folder.path().join("model_packed.onnx");
    std::fs::write(&file, content).unwrap();
    Registry::new(RegistryConfig::default()).insert_dir("g", &file, Engine::Builtin).map(drop)
}

fn graph(model: &str) -> Vec<u8> {
    std::fs::read(shipped(model).join("model_packed.onnx")).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn arbitrary_bytes_are_refused(content in proptest::collection::vec(any::<u8>(), 0..200)) {
        check(load(&content))?;
    }

    #[test]
    fn changed_bytes_of_a_graph_are_no_panic(
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        cut in 0usize..64,
    ) {
        let mut content = graph("sentiment");
        for (index, byte) in changes {
            let index = index.index(content.len());
            content[index] = byte;
        }
        content.truncate(content.len() - cut);
        check(load_beside("sentiment", &content))?;
    }
}

/// Sizes in the graph that no longer agree with its data: every dimension of every tensor in turn would take long, so digits that stand for
/// places in the data are changed where they are text.
#[test]
fn changed_places_of_weights_are_no_panic() {
    let content = graph("sentiment");
    let keys: Vec<usize> = [b"offset".as_slice(), b"length"]
        .iter()
        .flat_map(|key| {
            let places = content.windows(key.len()).enumerate();
            places.filter(|(_, window)| window == key).map(|(at, _)| at + key.len() + 2).collect::<Vec<_>>()
        })
        .collect();
    assert!(keys.len() > 20, "{} places of weights", keys.len());
    for at in keys.into_iter().step_by(7) {
        for digit in [b'0', b'9', b'x'] {
            let mut changed = content.clone();
            changed[at] = digit;
            check(load_beside("sentiment", &changed)).unwrap();
        }
    }
}

#[test]
fn graph_from_bytes_with_external_data_is_refused() {
    let error = load(&graph("sentiment")).unwrap_err();
    assert!(error.to_string().contains("external data"), "{error}");
}
