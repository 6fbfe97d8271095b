//! Imports between the files of a crate have no circles, except those that ARCHITECTURE.md defends.
//!
//! An import is a path that leads to another file of the crate, in a `use` or in code. A name that a file re-exports belongs to the
//! file that defines it, so that a `mod.rs` with `pub use` imports nothing by that. Calls of methods have no path and are not seen.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use crate::house::House;
use crate::rules::{metadata, sources};

/// An import that closes a circle.
struct Exception {
    krate: &'static str,
    from: &'static str,
    to: &'static str,
    /// Why it stays: words of ARCHITECTURE.md.
    reason: &'static str,
}

const EXCEPTIONS: [Exception; 3] = [
    Exception {
        krate: "host/runtime",
        from: "bindings.rs",
        to: "generation/lm.rs",
        reason: "the macro of wasmtime needs the type of the resource `model`",
    },
    Exception {
        krate: "host/runtime",
        from: "generation/pool.rs",
        to: "generation/call.rs",
        reason: "a call submits generations to pools, and a pool returns one that has failed to its call, which tries the next pool",
    },
    Exception {
        krate: "host/runtime",
        from: "inference/pool/streams.rs",
        to: "inference/pool/mod.rs",
        reason: "a pool makes the streams of its instances, which take items from it and count their outcomes in it",
    },
];

/// A path of code, such as `crate`, `inference`, `queue`.
type Segments = Vec<String>;

/// A file of a crate.
struct SourceFile {
    name: String,
    /// The paths in code and in private `use` declarations.
    paths: Vec<Segments>,
    /// The paths of the names that it re-exports.
    exports: BTreeMap<String, Segments>,
}

/// The files of a crate by their modules.
struct Crate(BTreeMap<Segments, SourceFile>);

impl Crate {
    /// Reads files, each a path in the folder of sources and its text. Files of tests and of other programs are left out.
    fn read(sources: &[(String, String)]) -> Self {
        let files = sources.iter().filter_map(|(name, text)| {
            let mut module: Segments = name.strip_suffix(".rs")?.split('/').map(str::to_owned).collect();
            if module[0] == "bin" || module.iter().any(|part| part == "tests") {
                return None;
            }
            if matches!(module.last()?.as_str(), "mod" | "lib" | "main") {
                module.pop();
            }
            Some((module, SourceFile::read(name, text)))
        });
        Self(files.collect())
    }

    /// The files that each file imports.
    fn imports(&self) -> BTreeMap<&str, BTreeSet<&str>> {
        let imports = self.0.iter().map(|(module, file)| {
            let targets = file.paths.iter().filter_map(|path| self.resolve(module, path, 0));
            (file.name.as_str(), targets.filter(|target| *target != file.name).collect())
        });
        imports.collect()
    }

    /// The file that defines what a path in a module leads to; none if it leads out of the crate.
    fn resolve(&self, module: &[String], path: &[String], depth: usize) -> Option<&str> {
        // The re-exports of real code are a few deep.
        const DEPTH_MAX: usize = 8;
        let path = self.absolute(module, path)?;
        let length = (0..=path.len()).rev().find(|length| self.0.contains_key(&path[..*length]))?;
        let (module, rest) = path.split_at(length);
        let file = &self.0[module];
        match rest.first().and_then(|name| file.exports.get(name)) {
            Some(export) if depth < DEPTH_MAX => self.resolve(module, &[export, &rest[1..]].concat(), depth + 1),
            _ => Some(&file.name),
        }
    }

    /// A path from the root of the crate; none if it begins with another crate or with a name of the file.
    fn absolute(&self, module: &[String], path: &[String]) -> Option<Segments> {
        let first = path.first()?;
        Some(match first.as_str() {
            "crate" => path[1..].to_vec(),
            "self" => [module, &path[1..]].concat(),
            "super" => {
                let up = path.iter().take_while(|segment| *segment == "super").count();
                [&module[..module.len().checked_sub(up)?], &path[up..]].concat()
            }
            _ => {
                let path = [module, path].concat();
                if !self.0.contains_key(&path[..module.len() + 1]) {
                    return None;
                }
                path
            }
        })
    }
}

impl SourceFile {
    fn read(name: &str, text: &str) -> Self {
        let tokens = without_tests(&tokens(text));
        let (mut paths, mut exports) = (Vec::new(), BTreeMap::new());
        // The depths of the open braces, and those of modules among them.
        let (mut depth, mut modules) = (0_usize, Vec::new());
        let mut at = 0;
        while at < tokens.len() {
            // From a module in this file, `super` leads to the file.
            let owned = |path: &[&str]| {
                let inner = path.iter().take_while(|segment| **segment == "super").count().min(modules.len());
                path[inner..].iter().map(|segment| (*segment).to_owned()).collect::<Segments>()
            };
            if tokens[at] == "use" {
                let is_public = at > 0 && is_visibility(&tokens[..at]);
                let mut tree = Vec::new();
                at = use_tree(&tokens, at + 1, &[], &mut tree);
                for (path, bound) in tree {
                    if is_public {
                        exports.insert(bound.to_owned(), owned(&path));
                    } else {
                        paths.push(owned(&path));
                    }
                }
            } else if is_name(tokens[at]) && tokens.get(at + 1) == Some(&"::") && (at == 0 || tokens[at - 1] != "::") {
                let mut path = vec![tokens[at]];
                at += 1;
                while tokens.get(at) == Some(&"::") && tokens.get(at + 1).is_some_and(|token| is_name(token)) {
                    path.push(tokens[at + 1]);
                    at += 2;
                }
                paths.push(owned(&path));
            } else {
                match tokens[at] {
                    "{" => {
                        depth += 1;
                        if at >= 2 && tokens[at - 2] == "mod" {
                            modules.push(depth);
                        }
                    }
                    "}" => {
                        modules.pop_if(|module| *module == depth);
                        depth = depth.saturating_sub(1);
                    }
                    _ => {}
                }
                at += 1;
            }
        }
        Self { name: name.to_owned(), paths, exports }
    }
}

/// Whether tokens end in `pub` or in `pub(…)`.
fn is_visibility(tokens: &[&str]) -> bool {
    match tokens.last() {
        Some(&"pub") => true,
        Some(&")") => {
            let open = tokens.iter().rposition(|token| *token == "(");
            open.is_some_and(|open| open > 0 && tokens[open - 1] == "pub")
        }
        _ => false,
    }
}

fn is_name(token: &str) -> bool {
    token.starts_with(|first: char| first.is_alphabetic() || first == '_')
}

/// Reads a tree of a `use` declaration. Appends its paths, each with the name that it binds; returns the index after the tree.
fn use_tree<'t>(
    tokens: &[&'t str],
    start: usize,
    prefix: &[&'t str],
    paths: &mut Vec<(Vec<&'t str>, &'t str)>,
) -> usize {
    let (mut at, mut path) = (start, prefix.to_vec());
    while let Some(token) = tokens.get(at) {
        at += 1;
        match *token {
            "::" => {}
            "{" => {
                while tokens.get(at).is_some_and(|token| *token != "}") {
                    at = if tokens[at] == "," { at + 1 } else { use_tree(tokens, at, &path, paths) };
                }
                return at + 1;
            }
            // `self` in braces is the path before them.
            "self" if !path.is_empty() => {
                let bound = path[path.len() - 1];
                paths.push((path, bound));
                return at;
            }
            name => {
                path.push(name);
                let (bound, end) = match tokens.get(at) {
                    Some(&"::") => continue,
                    Some(&"as") => (tokens.get(at + 1).copied().unwrap_or(name), at + 2),
                    _ => (name, at),
                };
                paths.push((path, bound));
                return end;
            }
        }
    }
    at
}

/// Tokens without the items below `#[cfg(test)]`.
fn without_tests<'t>(tokens: &[&'t str]) -> Vec<&'t str> {
    const ATTRIBUTE: [&str; 7] = ["#", "[", "cfg", "(", "test", ")", "]"];
    let (mut rest, mut at) = (Vec::new(), 0);
    while at < tokens.len() {
        if !tokens[at..].starts_with(&ATTRIBUTE) {
            rest.push(tokens[at]);
            at += 1;
            continue;
        }
        at += ATTRIBUTE.len();
        let mut depth = 0_usize;
        while let Some(token) = tokens.get(at) {
            at += 1;
            match *token {
                "{" | "(" | "[" => depth += 1,
                "}" | ")" | "]" => depth = depth.saturating_sub(1),
                _ => {}
            }
            if depth == 0 && matches!(*token, "}" | ";") {
                break;
            }
        }
    }
    rest
}

/// The names, `::` and punctuation of code, without comments and literals.
fn tokens(code: &str) -> Vec<&str> {
    let (mut tokens, mut rest) = (Vec::new(), code);
    while let Some(first) = rest.chars().next() {
        let length = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            rest.find("*/").map_or(rest.len(), |end| end + 2)
        } else if first == '"' {
            string_length(rest)
        } else if first == '\'' {
            quote_length(rest)
        } else if first.is_alphanumeric() || first == '_' {
            let length = rest.find(|it: char| !it.is_alphanumeric() && it != '_').unwrap_or(rest.len());
            let (name, after) = rest.split_at(length);
            match raw_string_length(after).filter(|_| matches!(name, "r" | "br" | "cr")) {
                Some(literal) => length + literal,
                None => {
                    tokens.push(name);
                    length
                }
            }
        } else {
            let length = if rest.starts_with("::") { 2 } else { first.len_utf8() };
            if !first.is_whitespace() {
                tokens.push(&rest[..length]);
            }
            length
        };
        rest = &rest[length..];
    }
    tokens
}

/// The length of a string literal that a text begins with.
fn string_length(text: &str) -> usize {
    // The opening quote does not end it.
    let mut is_escaped = true;
    for (at, it) in text.char_indices() {
        match it {
            _ if is_escaped => is_escaped = false,
            '\\' => is_escaped = true,
            '"' => return at + 1,
            _ => {}
        }
    }
    text.len()
}

/// The length of the rest of a raw string literal, after its `r`; none if it is not one.
fn raw_string_length(text: &str) -> Option<usize> {
    let hashes = text.len() - text.trim_start_matches('#').len();
    let content = text[hashes..].strip_prefix('"')?;
    let end = format!("\"{}", "#".repeat(hashes));
    Some(hashes + 1 + content.find(&end)? + end.len())
}

/// The length of a character literal that a text begins with, or 1 for a lifetime.
fn quote_length(text: &str) -> usize {
    let mut chars = text.char_indices().skip(1);
    match chars.next() {
        // The character after the backslash may be a quote.
        Some((_, '\\')) => text.get(3..).and_then(|after| after.find('\'')).map_or(1, |end| end + 4),
        Some(_) => chars.next().filter(|(_, it)| *it == '\'').map_or(1, |(at, _)| at + 1),
        None => 1,
    }
}

/// The imports that are part of circles, or lead from one circle to another.
fn circles<'t>(imports: &BTreeMap<&'t str, BTreeSet<&'t str>>) -> Vec<(&'t str, &'t str)> {
    let mut files: BTreeSet<&str> = imports.keys().copied().collect();
    loop {
        let imported: BTreeSet<&str> = files.iter().flat_map(|file| &imports[file]).copied().collect();
        let inner: BTreeSet<&str> = files
            .iter()
            .copied()
            .filter(|file| imported.contains(file) && imports[file].iter().any(|target| files.contains(target)))
            .collect();
        if inner.len() == files.len() {
            break;
        }
        files = inner;
    }
    let arrows = files.iter().flat_map(|file| imports[file].iter().map(move |target| (*file, *target)));
    arrows.filter(|(_, target)| files.contains(target)).collect()
}

#[test]
fn files_import_each_other_without_circles() {
    let root = House::find().root;
    let document = fs::read_to_string(root.join("ARCHITECTURE.md")).unwrap();
    let document = document.split_whitespace().collect::<Vec<_>>().join(" ");
    for exception in &EXCEPTIONS {
        assert!(document.contains(exception.reason), "ARCHITECTURE.md does not say: {}", exception.reason);
    }
    let mut faults = Vec::new();
    let crates: Vec<String> = metadata()["packages"]
        .as_array()
        .unwrap()
        .iter()
        .map(|package| {
            let folder = Path::new(package["manifest_path"].as_str().unwrap()).parent().unwrap();
            folder.strip_prefix(&root).unwrap().to_str().unwrap().to_owned()
        })
        .collect();
    for krate in &crates {
        let files = Crate::read(&sources(&root.join(krate).join("src")));
        let mut imports = files.imports();
        for Exception { from, to, .. } in EXCEPTIONS.iter().filter(|exception| exception.krate == *krate) {
            if !circles(&imports).contains(&(from, to)) {
                faults.push(format!("{krate}: {from} → {to} is excepted and closes no circle"));
            }
            imports.get_mut(from).unwrap().remove(to);
        }
        faults.extend(circles(&imports).into_iter().map(|(from, to)| format!("{krate}: {from} → {to}")));
    }
    assert!(faults.is_empty(), "imports in circles:\n{}", faults.join("\n"));
}

/// The imports of a crate that are in circles.
fn circles_of(files: &[(&str, &str)]) -> Vec<String> {
    let sources: Vec<_> = files.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect();
    let files = Crate::read(&sources);
    circles(&files.imports()).into_iter().map(|(from, to)| format!("{from} → {to}")).collect()
}

#[test]
fn circle_through_a_re_export_is_found() {
    let files = [
        ("lib.rs", "mod a; mod b; mod c; pub use self::a::{inner::{A as Name, Other}, self};"),
        ("a/mod.rs", "pub(crate) mod inner;"),
        ("a/inner.rs", "use super::super::{c, b::{self, B}}; pub struct A<'a>(B<'a>, c::C);"),
        ("b.rs", "fn b() { let a = crate::Name::new('\\'', 'x', r#\"\"#); }"),
        ("c.rs", "pub struct C;"),
    ];
    assert_eq!(circles_of(&files), ["a/inner.rs → b.rs", "b.rs → a/inner.rs"]);
}

#[test]
fn longer_circle_is_found() {
    let files = [
        ("lib.rs", "mod a; mod b; mod c; mod d;"),
        ("a.rs", "use crate::b::B;"),
        ("b.rs", "fn f() { crate::c::f(crate::d::f()); }"),
        ("c.rs", "pub(crate) fn f(a: super::a::A) {}"),
        ("d.rs", "pub(crate) fn f() {}"),
    ];
    assert_eq!(circles_of(&files), ["a.rs → b.rs", "b.rs → c.rs", "c.rs → a.rs"]);
}

#[test]
fn parent_and_child_that_import_each_other_are_a_circle() {
    let files = [
        ("lib.rs", "mod parent;"),
        ("parent/mod.rs", "mod child; pub struct Parent; pub fn f() { child::f(Parent) }"),
        ("parent/child.rs", "use super::Parent; pub fn f(parent: Parent) {}"),
    ];
    assert_eq!(circles_of(&files), ["parent/child.rs → parent/mod.rs", "parent/mod.rs → parent/child.rs"]);
}

#[test]
fn super_in_a_module_of_a_file_is_the_file() {
    let files = [
        ("lib.rs", "mod a; mod b; pub struct L;"),
        (
            "a.rs",
            "use crate::b::B; pub struct A; mod inner { struct I(super::A); mod deeper { struct D(super::super::A); } } fn f() {}",
        ),
        ("b.rs", "mod inner { use super::super::a::A; } fn f(l: super::L) {}"),
    ];
    assert_eq!(circles_of(&files), ["a.rs → b.rs", "b.rs → a.rs"]);
}

#[test]
fn comments_literals_tests_and_other_crates_are_not_imports() {
    let files = [
        ("lib.rs", "mod a; mod b; mod tests;"),
        ("a.rs", "use crate::b::B; use b::C; use std::a;"),
        (
            "b.rs",
            "// use crate::a::A;\n/* crate::a::A */ fn b() { let s = \"\\\" crate::a::A\"; let r = r#\"\" crate::a::A\"#; }
            #[cfg(test)]
            #[allow(dead_code)]
            pub(crate) fn test(a: [crate::a::A; 2]) -> crate::a::A { crate::a::f() }
            #[cfg(test)]
            mod tests { use crate::a::A; }",
        ),
        ("tests.rs", "use crate::a::A;"),
        ("bin/program.rs", "use crate::a::A;"),
    ];
    assert!(circles_of(&files).is_empty());
}
