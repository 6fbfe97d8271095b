//! Paths: every path of the repository that a document names exists. The code map of ARCHITECTURE.md: every crate of
//! `components/` and `host/` has a section, which names every folder of its sources.

use std::fs;
use std::path::{Path, PathBuf};

use super::links::markdown_files;
use crate::house::House;

/// The folders at the root that paths of the document begin with.
const ROOTS: [&str; 12] = [
    "clients/",
    "components/",
    "demo/",
    "deploy/",
    "docs/",
    "examples/",
    "fuzz/",
    "host/",
    "tests/",
    "web/",
    "wit/",
    ".ci/",
];

/// The code spans of a Markdown text; fenced blocks have none.
fn code_spans(markdown: &str) -> Vec<&str> {
    let prose = markdown.split("```").step_by(2);
    prose.flat_map(|text| text.split('`').skip(1).step_by(2)).collect()
}

/// The names of the folders in a folder, sorted; none where there is none.
fn folders(path: &Path) -> Vec<String> {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    let mut names: Vec<String> =
        entries.filter(|it| it.path().is_dir()).filter_map(|it| it.file_name().into_string().ok()).collect();
    names.sort();
    names
}

#[test]
fn paths_in_the_documents_exist() {
    let root = House::find().root;
    let mut documents: Vec<PathBuf> =
        ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md"].iter().map(|name| root.join(name)).collect();
    markdown_files(&root.join("docs"), &mut documents);
    let (mut paths, mut missing) = (0, Vec::new());
    for document in documents {
        let text = fs::read_to_string(&document).unwrap();
        let prose: String = text.split("```").step_by(2).collect();
        let words = prose.split(|it: char| it.is_whitespace() || "`()[]<>,;:\"".contains(it));
        for word in words.filter(|word| ROOTS.iter().any(|start| word.starts_with(start))) {
            // Words such as `docs/decisions/NNN-title.md` name a form.
            if word.contains(['*', '{', '…', '#']) || word.contains("NNN") || word.contains("NAME") {
                continue;
            }
            paths += 1;
            if !root.join(word.trim_end_matches('.')).exists() {
                missing.push(format!("{}: {word}", document.strip_prefix(&root).unwrap().display()));
            }
        }
    }
    assert!(paths > 60, "{paths} paths");
    assert!(missing.is_empty(), "documents name what does not exist:\n{}", missing.join("\n"));
}

#[test]
fn each_crate_has_a_section_with_its_folders() {
    let root = House::find().root;
    let document = fs::read_to_string(root.join("ARCHITECTURE.md")).unwrap();
    let mut missing = Vec::new();
    for group in ["components", "host"] {
        for name in folders(&root.join(group)) {
            let path = format!("{group}/{name}");
            if !root.join(&path).join("Cargo.toml").is_file() {
                continue;
            }
            let Some((_, section)) = document.split_once(&format!("\n### `{path}`\n")) else {
                missing.push(path);
                continue;
            };
            let section = section.split("\n### ").next().unwrap_or_default();
            let spans = code_spans(section);
            // A folder of programs says nothing about the design.
            for folder in folders(&root.join(&path).join("src")).into_iter().filter(|folder| folder != "bin") {
                if !spans.iter().any(|span| span.split('/').any(|part| part == folder)) {
                    missing.push(format!("{path}/src/{folder}"));
                }
            }
        }
    }
    assert!(missing.is_empty(), "the code map of ARCHITECTURE.md lacks {missing:?}");
}
