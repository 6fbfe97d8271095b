//! The components in Node.js 24, as modules that jco makes: the example of the session component, and `weir.wasm`.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
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
    let mut command = Command::new(&project.node);
    command.args(["--experimental-wasm-jspi", "session.mjs"]);
    let printed = project.run_in(folder, command)?;
    let lines: Vec<Value> = printed.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let intents: Vec<&Value> =
        lines[0].as_array().context("annotations")?.iter().map(|annotation| &annotation["intent"]).collect();
    assert_eq!(intents, ["commitment", "general"], "{printed}");
    let bodies: Vec<&Value> = lines[1..].iter().map(|output| &output["body"]["tag"]).collect();
    assert_eq!(bodies, ["partial", "partial", "partial", "final", "summary"], "{printed}");
    assert_eq!(lines[4]["body"]["val"]["segment"]["text"], "I'll check the refund. Thank you", "{printed}");
    Ok(())
}

/// The package is packed, and installed from its tarball, with those of the packages that it depends on, in an empty folder.
#[test]
fn session_package_is_installed_and_imported_by_its_name() -> Result<()> {
    let project = Project::new("session")?;
    std::fs::copy(root().join("LICENSE"), project.path().join("LICENSE"))?;
    let installed = tempfile::tempdir()?;
    let mut npm = project.npm(&["pack", "."]);
    npm.arg("--pack-destination").arg(installed.path());
    for package in std::fs::read_dir(project.path().join("node_modules/@bytecodealliance"))? {
        let package = package?;
        let name = package.file_name();
        if name == "preview2-shim" || name.to_string_lossy().starts_with("jco-node-fs") {
            npm.arg(package.path());
        }
    }
    project.run(npm)?;
    let mut npm = project.npm(&["install"]);
    for tarball in std::fs::read_dir(installed.path())? {
        npm.arg(tarball?.path());
    }
    project.run_in(installed.path(), npm)?;
    let package = installed.path().join("node_modules/weir-session");
    for file in ["LICENSE", "session/session.core.wasm", "session/session.d.ts"] {
        ensure!(package.join(file).is_file(), "the package has no {file}");
    }
    ensure!(!package.join("serve.mjs").exists(), "the package has the example of the server");
    std::fs::copy(project.path().join("session.mjs"), installed.path().join("session.mjs"))?;
    check_session(&project, installed.path())
}

/// A case that jco does not pass ends the process, so each case has a server of its own.
#[tokio::test]
async fn weir_wasm_in_node_passes_the_conformance_cases_of_its_row() -> Result<()> {
    let reference = Server::start(&["--set", "models.isa=portable"]).await?;
    let project = Project::new("weir")?;
    // No probe: a client that closes its connection right after a response may end the process.
    conformance::check_each("Node.js 24 with jco 1.35", &reference, async || project.serve()).await
}
