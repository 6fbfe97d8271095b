//! Links: every link of a document leads to a file of the repository and, with `#`, to a heading of it; the pages of the book lead to
//! pages of the book, and its table of contents has all of them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Component, Path, PathBuf};

use crate::house::House;

/// A document: its links with their lines, and the anchors of its headings.
#[derive(Debug, Default)]
struct Document {
    links: Vec<(usize, String)>,
    anchors: BTreeSet<String>,
}

/// Reads the links and headings of a Markdown text; fenced blocks and code spans have none.
fn read(markdown: &str) -> Document {
    let mut document = Document::default();
    let mut fenced = false;
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for (number, line) in (1..).zip(markdown.lines()) {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
            continue;
        }
        if fenced {
            continue;
        }
        let heading = line.trim_start_matches('#');
        if heading.len() < line.len() && heading.starts_with(' ') {
            let slug = slug(heading);
            let count = counts.entry(slug.clone()).or_default();
            document.anchors.insert(if *count == 0 { slug } else { format!("{slug}-{count}") });
            *count += 1;
        }
        // Every other part of a line is a code span.
        let text: String = line.split('`').step_by(2).collect::<Vec<_>>().join("`");
        for after in text.split("](").skip(1) {
            let target = after.split(')').next().unwrap_or_default();
            document.links.push((number, target.to_owned()));
        }
    }
    document
}

/// The anchor of a heading, as GitHub and mdBook make it.
fn slug(heading: &str) -> String {
    let text = heading.trim().to_lowercase();
    let chars = text.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    chars.map(|c| if c == ' ' { '-' } else { c }).collect()
}

/// Every Markdown file below a folder; the folders of npm are left out.
pub(super) fn markdown_files(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.ends_with("node_modules") {
            continue;
        }
        if path.is_dir() {
            markdown_files(&path, files);
        } else if path.extension().is_some_and(|end| end == "md") {
            files.push(path);
        }
    }
}

/// A path without `.` and `..`.
fn normal(path: &Path) -> PathBuf {
    let mut normal = PathBuf::new();
    for part in path.components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir => {
                normal.pop();
            }
            part => normal.push(part),
        }
    }
    normal
}

#[test]
fn links_resolve() {
    let root = House::find().root;
    let book = root.join("docs");
    let mut files: Vec<PathBuf> = fs::read_dir(&root).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|end| end == "md"));
    for folder in ["docs", "demo", "examples", "clients"] {
        markdown_files(&root.join(folder), &mut files);
    }
    let texts = files.into_iter().map(|path| (path.clone(), read(&fs::read_to_string(&path).unwrap())));
    let documents: BTreeMap<PathBuf, Document> = texts.collect();
    assert!(documents.len() > 20, "{} documents", documents.len());
    let mut broken = Vec::new();
    for (path, document) in &documents {
        for (line, link) in &document.links {
            if ["https://", "http://", "mailto:"].iter().any(|scheme| link.starts_with(scheme)) {
                continue;
            }
            let (file, anchor) = link.split_once('#').map_or((link.as_str(), None), |(file, it)| (file, Some(it)));
            let target = match file {
                "" => path.clone(),
                _ => normal(&path.parent().unwrap().join(file)),
            };
            let known = documents.get(&target);
            let fault = if !target.exists() {
                "no such file"
            } else if anchor.is_some_and(|anchor| known.is_none_or(|it| !it.anchors.contains(anchor))) {
                "no such heading"
            } else if path.starts_with(&book) && !target.starts_with(&book) {
                "a page of the book leads out of the book"
            } else {
                continue;
            };
            broken.push(format!("{}:{line}: {link}: {fault}", path.strip_prefix(&root).unwrap().display()));
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn contents_of_the_book_name_every_page_once() {
    let book = House::find().root.join("docs");
    let contents = read(&fs::read_to_string(book.join("SUMMARY.md")).unwrap());
    let mut named: Vec<PathBuf> = contents.links.iter().map(|(_, link)| book.join(link)).collect();
    named.sort();
    let mut pages = Vec::new();
    markdown_files(&book, &mut pages);
    pages.retain(|page| !page.ends_with("SUMMARY.md"));
    pages.sort();
    assert_eq!(named, pages, "docs/SUMMARY.md against the pages of docs/");
}

/// Mermaid ends a statement at a semicolon, also in the text of a message.
#[test]
fn diagrams_have_no_semicolons() {
    let mut pages = Vec::new();
    markdown_files(&House::find().root.join("docs"), &mut pages);
    let mut diagrams = 0;
    for page in pages {
        let text = fs::read_to_string(&page).unwrap();
        for diagram in text.split("```mermaid\n").skip(1) {
            let diagram = diagram.split("```").next().unwrap();
            assert!(!diagram.contains(';'), "{}: a diagram has a semicolon:\n{diagram}", page.display());
            diagrams += 1;
        }
    }
    assert!(diagrams >= 5, "{diagrams} diagrams");
}

#[test]
fn links_and_headings_are_read() {
    let document =
        read("# A `b`: c_d\n## a b c_d\n[x](y.md#z) `[not](a)`\n```\n[not](b)\n# not\n```\n[v](w)\n### x\n### x\n");
    assert_eq!(document.links, [(3, "y.md#z".to_owned()), (8, "w".to_owned())]);
    assert_eq!(document.anchors.iter().map(String::as_str).collect::<Vec<_>>(), ["a-b-c_d", "a-b-c_d-1", "x", "x-1"]);
}
