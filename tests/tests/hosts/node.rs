//! The components as modules that jco makes: the example of the session component in Node.js 24 and in Chromium, and `weir.wasm` in Node.js.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use weir_tests::browser::{Browser, File, page_report};
use weir_tests::documents::blocks;
use weir_tests::{Server, component, conformance, models, root, tool};

/// Time for jco to make a module, and for an example to end.
const PATIENCE: Duration = Duration::from_secs(120);

/// A folder with the programs of `examples/node`, one module made by jco, and the installed packages.
struct Project {
    folder: tempfile::TempDir,
    node: PathBuf,
}

impl Project {
    fn new(name: &str) -> Result<Self> {
        let (packages, node) = (tool("WEIR_TEST_JCO")?, tool("WEIR_TEST_NODE24")?);
        let folder = tempfile::tempdir()?;
        for file in ["package.json", "serve.mjs", "session.mjs"] {
            std::fs::copy(root().join("examples/node").join(file), folder.path().join(file))?;
        }
        std::os::unix::fs::symlink(packages.join("node_modules"), folder.path().join("node_modules"))?;
        let project = Self { folder, node };
        let mut jco = Command::new(&project.node);
        jco.arg(packages.join("node_modules/@bytecodealliance/jco/dist/jco.js")).arg("transpile");
        jco.arg(component(&format!("{name}.wasm"))?).args(["-o", name, "--async-mode", "jspi", "--quiet"]);
        project.run(jco)?;
        Ok(project)
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Runs a program in the folder to its end; returns its output.
    fn run(&self, command: Command) -> Result<String> {
        self.run_in(self.path(), command)
    }

    fn run_in(&self, folder: &Path, mut command: Command) -> Result<String> {
        let output = self.path().join("output");
        let file = std::fs::File::create(&output)?;
        command.current_dir(folder).stdin(Stdio::null()).stderr(file.try_clone()?).stdout(file);
        let mut child = command.spawn().with_context(|| format!("cannot start {command:?}"))?;
        let began = Instant::now();
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break status;
            }
            if began.elapsed() > PATIENCE {
                child.kill()?;
                child.wait()?;
            }
            std::thread::sleep(Duration::from_millis(50));
        };
        let output = std::fs::read_to_string(output)?;
        ensure!(status.success(), "{command:?} ended with {status}:\n{output}");
        Ok(output)
    }

    /// The npm that comes with Node.js 24, without the registry and without what earlier runs have fetched.
    fn npm(&self, arguments: &[&str]) -> Command {
        let mut npm = Command::new(&self.node);
        npm.arg(self.node.with_file_name("../lib/node_modules/npm/bin/npm-cli.js")).args(arguments);
        npm.args(["--offline", "--ignore-scripts", "--no-audit", "--no-fund", "--silent", "--cache"]);
        npm.arg(self.path().join("cache"));
        npm
    }

    /// Packs the package, and installs it from its tarball, with those of the packages that it depends on, in an empty folder.
    fn install(&self) -> Result<tempfile::TempDir> {
        std::fs::copy(root().join("LICENSE"), self.path().join("LICENSE"))?;
        let installed = tempfile::tempdir()?;
        let mut npm = self.npm(&["pack", "."]);
        npm.arg("--pack-destination").arg(installed.path());
        for package in std::fs::read_dir(self.path().join("node_modules/@bytecodealliance"))? {
            let package = package?;
            let name = package.file_name();
            if name == "preview2-shim" || name.to_string_lossy().starts_with("jco-node-fs") {
                npm.arg(package.path());
            }
        }
        self.run(npm)?;
        let mut npm = self.npm(&["install"]);
        for tarball in std::fs::read_dir(installed.path())? {
            npm.arg(tarball?.path());
        }
        self.run_in(installed.path(), npm)?;
        std::fs::copy(self.path().join("session.mjs"), installed.path().join("session.mjs"))?;
        Ok(installed)
    }

    /// What the example of the session component prints in a folder.
    fn print_session(&self, folder: &Path) -> Result<String> {
        let mut command = Command::new(&self.node);
        command.args(["--experimental-wasm-jspi", "session.mjs"]);
        self.run_in(folder, command)
    }

    fn serve(&self) -> Result<Server> {
        let mut command = Command::new(&self.node);
        command.args(["--experimental-wasm-jspi", "serve.mjs"]).arg(models()).arg("127.0.0.1:0");
        command.env("WEIR_AUTH_LOOPBACK", "true").current_dir(self.path());
        Server::spawn(command, "Serving HTTP on http://")
    }
}

#[test]
fn session_component_in_node_annotates_texts_and_streams() -> Result<()> {
    let project = Project::new("session")?;
    for file in ["session/session.d.ts", "session/interfaces/weir-stream-session.d.ts"] {
        let types = std::fs::read_to_string(project.path().join(file))?;
        ensure!(types.contains("session"), "{file}: {types}");
    }
    let types = std::fs::read_to_string(project.path().join("session/interfaces/weir-stream-session.d.ts"))?;
    ensure!(
        types.contains("run(start: Start, inputs: AsyncIterable<Input>): Promise<AsyncIterable<Output>>"),
        "{types}"
    );
    check_session(&project, project.path())
}

/// Runs the example of the session component in a folder.
fn check_session(project: &Project, folder: &Path) -> Result<()> {
    let printed = project.print_session(folder)?;
    let lines: Vec<Value> = printed.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let intents: Vec<&Value> =
        lines[0].as_array().context("annotations")?.iter().map(|annotation| &annotation["intent"]).collect();
    assert_eq!(intents, ["commitment", "general"], "{printed}");
    let bodies: Vec<&Value> = lines[1..].iter().map(|output| &output["body"]["tag"]).collect();
    assert_eq!(bodies, ["partial", "partial", "partial", "final", "summary"], "{printed}");
    assert_eq!(lines[4]["body"]["val"]["segment"]["text"], "I'll check the refund. Thank you", "{printed}");
    Ok(())
}

#[test]
fn session_package_is_installed_and_imported_by_its_name() -> Result<()> {
    let project = Project::new("session")?;
    let installed = project.install()?;
    let package = installed.path().join("node_modules/weir-session");
    for file in ["LICENSE", "session/session.core.wasm", "session/session.d.ts"] {
        ensure!(package.join(file).is_file(), "the package has no {file}");
    }
    ensure!(!package.join("serve.mjs").exists(), "the package has the example of the server");
    check_session(&project, installed.path())
}

/// The page has the import map of the guide. It runs the example, and a stream whose chunks wait for the outputs of the ones before.
#[tokio::test]
async fn session_component_in_chromium_annotates_texts_and_streams() -> Result<()> {
    let project = Project::new("session")?;
    let installed = project.install()?;
    let page = format!(
        "<!doctype html>\n<title>session</title>\n{}\n<script type=\"module\" src=\"reader.mjs\"></script>\n",
        import_map_of_the_guide()?
    );
    std::fs::write(installed.path().join("index.html"), page)?;
    std::fs::copy(root().join("tests/readers/session.mjs"), installed.path().join("reader.mjs"))?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let folder = installed.path().to_owned();
    let _browser = Browser::open(&format!("http://{}/index.html", listener.local_addr()?))?;
    let report = page_report(&listener, move |path| file_of(&folder, path)).await?;

    assert_eq!(report["error"], Value::Null, "{report}");
    let printed = project.print_session(installed.path())?;
    assert_eq!(report["printed"], json!(printed.lines().collect::<Vec<_>>()));
    let order = ["chunk", "partial", "chunk", "partial", "chunk", "partial", "end", "final", "summary"];
    assert_eq!(report["order"], json!(order));
    Ok(())
}

/// The block of the guide that a page needs.
fn import_map_of_the_guide() -> Result<String> {
    let guide = root().join("docs/guides/node.md");
    let mut blocks = blocks(&std::fs::read_to_string(guide)?).into_iter();
    let block = blocks.find(|block| block.language == "html").context("the guide has no import map")?;
    Ok(block.text)
}

/// A file of a folder, with the type that a browser requires of its name's ending.
fn file_of(folder: &Path, path: &str) -> Option<File> {
    let media_type = match path.rsplit_once('.')?.1 {
        "html" => "text/html; charset=utf-8",
        "js" | "mjs" => "text/javascript",
        "wasm" => "application/wasm",
        _ => return None,
    };
    let bytes = std::fs::read(folder.join(path.strip_prefix('/')?)).ok()?;
    Some(File { media_type, bytes })
}

/// A case that jco does not pass ends the process, so each case has a server of its own.
#[tokio::test]
async fn weir_wasm_in_node_passes_the_conformance_cases_of_its_row() -> Result<()> {
    let reference = Server::start(&["--set", "models.isa=portable"]).await?;
    let project = Project::new("weir")?;
    // No probe: a client that closes its connection right after a response may end the process.
    conformance::check_each("Node.js 24 with jco 1.35", &reference, async || project.serve()).await
}
