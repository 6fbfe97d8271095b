//! The command line of `weir`: help, configuration, models, and reports of invalid arguments.

use std::process::{Command, Output};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use weir_tests::{Server, models, root, weir};

use crate::Running;

fn run(arguments: &[&str]) -> Result<Output> {
    Ok(Command::new(weir()?).args(arguments).output()?)
}

/// Standard output and standard error as text.
fn outputs(output: &Output) -> (String, String) {
    (String::from_utf8_lossy(&output.stdout).into(), String::from_utf8_lossy(&output.stderr).into())
}

#[test]
fn help_names_every_command() -> Result<()> {
    let output = run(&["--help"])?;
    let (out, _) = outputs(&output);
    assert!(output.status.success());
    for command in ["serve", "run", "stream", "models", "config", "init-config", "test-connection", "status", "metrics"]
    {
        assert!(out.contains(command), "{out}");
        let help = run(&[command, "--help"])?;
        assert!(help.status.success() && outputs(&help).0.contains("Usage:"));
    }
    Ok(())
}

#[test]
fn missing_engine_library_is_reported_in_one_line_at_the_start() -> Result<()> {
    let models = models().display().to_string();
    let dir = tempfile::tempdir()?;
    let set = ["--set", "models.engine=onnxruntime", "--set", "http.listen=127.0.0.1:0"];
    let mut command = Command::new(weir()?);
    command.args(["serve", "--models-dir", &models]).args(set).env("WEIR_ONNXRUNTIME", dir.path());
    let output = command.output()?;
    let (_, err) = outputs(&output);
    assert_eq!(output.status.code(), Some(2), "{err}");
    assert!(err.contains("onnxruntime") && err.contains("there is no libonnxruntime.so"), "{err}");
    assert_eq!(err.lines().count(), 1, "{err}");
    Ok(())
}

#[test]
fn printed_configuration_reads_back() -> Result<()> {
    let (text, _) = outputs(&run(&["config"])?);
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("weir.toml");
    // `[model.NAME]` shows the keys of one model; everything else is the defaults.
    let defaults = text.split("[model.NAME]").next().unwrap_or_default();
    let rest = text.split("[models]").nth(1).unwrap_or_default();
    std::fs::write(&file, format!("{defaults}\n[models]{rest}"))?;
    let read = run(&["config", "--effective", &file.display().to_string()])?;
    assert!(read.status.success(), "{}", outputs(&read).1);
    let plain = run(&["config", "--effective"])?;
    assert_eq!(outputs(&read).0, outputs(&plain).0);
    Ok(())
}

#[test]
fn models_are_listed_checked_and_copied() -> Result<()> {
    let shipped = models().display().to_string();
    let (out, _) = outputs(&run(&["models", "list", "--models-dir", &shipped])?);
    for name in ["embeddings", "entities", "sentiment"] {
        assert!(out.contains(name), "{out}");
    }
    assert!(out.contains("builtin (model_packed.onnx: an encoder of 3 layers, 384 wide, 12 heads) in int8 ("), "{out}");
    let toys = root().join("tests/models").display().to_string();
    let (out, _) = outputs(&run(&["models", "list", "--models-dir", &toys])?);
    assert!(out.contains("tract (not builtin: there is neither model.safetensors nor model_packed.onnx)"), "{out}");
    let architectures = root().join("tests/architectures/modernbert").display().to_string();
    let (out, _) = outputs(&run(&["models", "check", &architectures])?);
    assert!(out.contains("tokenizer.json is missing"), "{out}");
    let dir = tempfile::tempdir()?;
    let mine = dir.path().join("mine").display().to_string();
    let pulled = run(&["models", "pull", &models().join("sentiment").display().to_string(), "--models-dir", &mine])?;
    assert!(pulled.status.success(), "{}", outputs(&pulled).1);
    let checked = run(&["models", "check", "--models-dir", &mine])?;
    let (out, err) = outputs(&checked);
    assert!(checked.status.success(), "{out}{err}");
    assert!(out.contains("works") && out.contains("negative, neutral, positive"), "{out}");
    Ok(())
}

#[test]
fn models_check_compares_precisions_on_given_texts() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let texts = dir.path().join("texts.txt");
    let lines = [
        "The food was great.",
        "",
        "We waited an hour for nothing.",
        "Angela Merkel spoke in Paris.",
        "It is a train.",
    ];
    std::fs::write(&texts, lines.join("\n"))?;
    let shipped = models().display().to_string();
    let precision = format!("--precision={}", texts.display());
    let output = run(&["models", "check", "--models-dir", &shipped, &precision])?;
    let (out, err) = outputs(&output);
    assert!(output.status.success(), "{out}{err}");
    for model in ["sentiment", "entities", "embeddings"] {
        assert!(out.contains(&format!("{model}: 4 texts, compared with f32")), "{out}");
    }
    let count = |precision: &str, part: &str| {
        out.lines().filter(|line| line.trim_start().starts_with(precision) && line.contains(part)).count()
    };
    // f32 is compared with itself.
    assert_eq!(count("f32 ", "100.00 % of the best labels agree, scores differ by 0.0000 at most"), 1, "{out}");
    assert_eq!(count("f32 ", "100.00 % of the tokens' labels agree"), 1, "{out}");
    assert_eq!(count("f32 ", "cosine 1.00000 at least"), 1, "{out}");
    for precision in ["bf16 ", "int8 "] {
        assert_eq!(count(precision, "agree") + count(precision, "cosine 0.99"), 3, "{out}");
    }
    assert_eq!(count("recommended: models.precision = ", "(auto is "), 3, "{out}");
    let output = run(&["models", "check", "--models-dir", &shipped, "--precision=/nowhere.txt"])?;
    assert!(!output.status.success() && outputs(&output).1.contains("/nowhere.txt cannot be opened"));
    Ok(())
}

#[test]
fn broken_model_is_reported_in_one_line() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("broken");
    std::fs::create_dir(&path)?;
    std::fs::write(path.join("config.json"), "{")?;
    let checked = run(&["models", "check", &path.display().to_string()])?;
    assert_eq!(checked.status.code(), Some(1));
    let (out, _) = outputs(&checked);
    assert!(out.contains("config.json") && out.lines().count() == 1, "{out}");
    assert_eq!(out.matches(&*path.display().to_string()).count(), 1, "{out}");
    let served = run(&["serve", "--listen", "127.0.0.1:0", "--model", &format!("x={}", path.display())])?;
    assert_eq!(served.status.code(), Some(2));
    let (_, err) = outputs(&served);
    assert!(err.contains("model x") && err.contains("config.json") && err.lines().count() == 1, "{err}");
    Ok(())
}

#[test]
fn invalid_argument_is_reported_in_one_line() -> Result<()> {
    let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
    let address_in_use = listener.local_addr()?.to_string();
    let dir = tempfile::tempdir()?;
    let empty = dir.path().display().to_string();
    let shipped = models().display().to_string();
    for (arguments, part) in [
        (vec!["serve", "--listen", &address_in_use, "--models-dir", &empty], "cannot listen on"),
        (vec!["serve", "--listen", "nonsense", "--models-dir", &empty], "cannot listen on nonsense"),
        (vec!["serve", "--config", "/nowhere.toml"], "/nowhere.toml cannot be read"),
        (vec!["serve", "--model", "nodir"], "expected NAME=VALUE"),
        (vec!["serve", "--component", "other=x.wasm"], "the components are gateway, generate, infer"),
        (vec!["serve", "--component", "gateway=/nowhere.wasm", "--models-dir", &empty], "/nowhere.wasm cannot be read"),
        (vec!["serve", "--models-dir", "/nowhere"], "/nowhere cannot be read"),
        (vec!["serve", "--set", "http.requests_max=0"], "http.requests_max must be at least 1"),
        (vec!["serve", "--set", "log.level=!!"], "log.level"),
        (vec!["models", "pull", "nonsense", "--models-dir", &empty], "nonsense"),
        (vec!["serve", "--listen", &address_in_use, "--models-dir", &empty], "is in use; stop the program"),
        (vec!["serve", "--listen", "70000"], "ports are 0 to 65535"),
        (vec!["serve", "--set", "log.level=loud"], "use error, warn, info, debug, trace or off"),
        (vec!["serve", "--set", "http.request_max=5"], "did you mean `http.requests_max`?"),
        (vec!["serve", "--set", "requests_max=5"], "did you mean `http.requests_max`?"),
        (vec!["serve", "--set", "events.store=dsk"], "did you mean `disk`?"),
        (vec!["serve", "--set", "models.engine=buildin", "--models-dir", &shipped], "did you mean `builtin`?"),
        (vec!["serve", "--component", "gatway=x.wasm"], "did you mean `gateway`?"),
        (
            vec!["run", "--task", "sentiment", "--model", "sentimnt", "--models-dir", &shipped],
            "did you mean `sentiment`?",
        ),
        (
            vec!["serve", "--set", "models.names=[\"nope\"]", "--models-dir", &shipped],
            "it has embeddings, entities, sentiment",
        ),
    ] {
        let output = run(&arguments)?;
        let (_, err) = outputs(&output);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {err}");
        assert!(err.contains(part) && err.lines().count() == 1, "{arguments:?}: {err}");
    }
    Ok(())
}

#[test]
fn documented_alias_in_the_environment_sets_its_key() -> Result<()> {
    for (alias, key) in [("STREAM_MAX_ENTRIES", "events.events_max"), ("STREAM_BLOCK_TIME", "events.redis_block_ms")] {
        let output = Command::new(weir()?).args(["serve", "--listen", "127.0.0.1:0"]).env(alias, "0").output()?;
        let (_, err) = outputs(&output);
        assert_eq!(output.status.code(), Some(2), "{err}");
        assert!(err.contains(&format!("{key} must be at least 1")), "{err}");
    }
    Ok(())
}

#[test]
fn flag_that_is_a_key_of_the_configuration_is_suggested() -> Result<()> {
    let output = run(&["serve", "--requests-max", "5"])?;
    let (_, err) = outputs(&output);
    assert_eq!(output.status.code(), Some(2), "{err}");
    assert!(err.contains("did you mean `--set http.requests_max=VALUE`?"), "{err}");
    Ok(())
}

#[test]
fn misspelled_flag_command_or_value_suggests_the_nearest() -> Result<()> {
    let shipped = weir_tests::models().display().to_string();
    for (arguments, suggestion) in [
        (vec!["serv"], "serve"),
        (vec!["serve", "--lisen", "8081"], "--listen"),
        (vec!["models", "chek"], "check"),
        (vec!["models", "engine", "onnxruntme"], "onnxruntime"),
        (vec!["completions", "bsh"], "bash"),
        (vec!["models", "check", "sentimnt", "--models-dir", &shipped], "did you mean `sentiment`?"),
    ] {
        let output = run(&arguments)?;
        let (out, err) = outputs(&output);
        assert!(!output.status.success(), "{arguments:?}");
        assert!(format!("{out}{err}").contains(suggestion), "{arguments:?}: {out}{err}");
    }
    Ok(())
}

/// The printed configuration is a valid file for `weir serve --config`.
#[tokio::test]
async fn printed_configuration_is_accepted_by_the_server() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("weir.toml");
    std::fs::write(&file, run(&["config"])?.stdout)?;
    weir_tests::Server::start(&["--config", &file.display().to_string()]).await.map(drop)
}

#[tokio::test]
async fn port_without_address_listens_on_loopback() -> Result<()> {
    for prefix in ["", ":"] {
        // Another program may bind the port in between; then another port is tried.
        let started = (0..10).find_map(|_| {
            let port = std::net::TcpListener::bind("127.0.0.1:0").ok()?.local_addr().ok()?.port();
            let server = weir_tests::Server::launch(&["--listen", &format!("{prefix}{port}")]).ok()?;
            (server.address() == format!("127.0.0.1:{port}")).then_some(server)
        });
        assert!(started.is_some(), "the server does not listen on `{prefix}PORT`");
    }
    Ok(())
}

#[test]
fn failed_start_leaves_no_file() -> Result<()> {
    let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
    let address_in_use = listener.local_addr()?.to_string();
    let dir = tempfile::tempdir()?;
    let store = format!("events.path={}", dir.path().join("new/store.redb").display());
    let events = format!("events.file={}", dir.path().join("events.ndjson").display());
    let with_store = ["--set", "events.store=disk", "--set", &store, "--set", &events];
    for arguments in [
        vec!["--listen", &address_in_use],
        vec!["--listen", "127.0.0.1:0", "--component", "gateway=/nowhere.wasm"],
        vec!["--listen", "127.0.0.1:0", "--set", "pipelines.dir=/nowhere"],
        vec!["--listen", "127.0.0.1:0", "--model", "x=/nowhere"],
    ] {
        let output = run(&[["serve"].as_slice(), &arguments, &with_store].concat())?;
        let (_, err) = outputs(&output);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {err}");
        let files: Vec<_> = std::fs::read_dir(dir.path())?.flatten().map(|entry| entry.file_name()).collect();
        assert!(files.is_empty(), "{arguments:?} left {files:?}");
    }
    Ok(())
}

/// The warning names the routes that are refused on a public address, and the setting that enables them.
#[tokio::test]
async fn public_address_without_authentication_logs_a_warning() -> Result<()> {
    let server = weir_tests::Server::start(&["--listen", "0.0.0.0:0"]).await?;
    let log = server.log();
    assert!(
        log.contains("sessions, pipelines and executions are refused") && log.contains("auth.mode=required"),
        "{log}"
    );
    let server = weir_tests::Server::start(&[]).await?;
    assert!(!server.log().contains("auth.mode=required"), "{}", server.log());
    Ok(())
}

/// A manifest of Spin with its one component.
fn spin_component(path: &str) -> Result<toml::Table> {
    let manifest: toml::Table = std::fs::read_to_string(root().join(path))?.parse()?;
    assert_eq!(manifest["spin_manifest_version"].as_integer(), Some(2), "{path}");
    assert!(manifest["application"]["name"].is_str(), "{path}");
    let trigger = &manifest["trigger"]["http"][0];
    assert_eq!(trigger["route"].as_str(), Some("/..."), "{path}");
    let component = &manifest["component"][trigger["component"].as_str().unwrap_or_default()];
    assert_eq!(component["build"]["command"].as_str(), Some("cargo xtask build --portable"), "{path}");
    component.as_table().cloned().context("a table")
}

#[test]
fn spin_manifests_name_built_components_and_their_files() -> Result<()> {
    let component = spin_component("spin.toml")?;
    assert_eq!(component["source"].as_str(), Some("target/components/weir.wasm"));
    weir_tests::component("weir.wasm")?;
    let mount = &component["files"][0];
    assert_eq!(
        (mount["source"].as_str(), mount["destination"].as_str()),
        (Some("target/components/models"), Some("/models"))
    );
    // Of the models that ship, each is a folder of real files.
    let built = weir_tests::component("weir.wasm")?.with_file_name("models");
    for name in ["sentiment", "entities", "embeddings"] {
        for entry in std::fs::read_dir(built.join(name))? {
            let entry = entry?;
            assert!(!entry.file_type()?.is_symlink(), "{} is a link", entry.path().display());
        }
    }
    // The variables of the manifest are keys of the configuration in their environment form.
    let (keys, _) = outputs(&run(&["config", "--markdown"])?);
    for name in component["environment"].as_table().into_iter().flat_map(|table| table.keys()) {
        let key = name.trim_start_matches("WEIR_").to_lowercase().replacen('_', ".", 1);
        assert!(keys.contains(&format!("`{key}`")), "{name} is not a key of the configuration");
    }
    let thin = spin_component("deploy/spin/thin.toml")?;
    assert_eq!(thin["source"].as_str(), Some("../../target/components/weir-thin.wasm"));
    weir_tests::component("weir-thin.wasm")?;
    let url = thin["environment"]["WEIR_REMOTE_URL"].as_str().context("the server")?;
    assert_eq!(thin["allowed_outbound_hosts"][0].as_str(), Some(url), "the one server that may be asked");
    Ok(())
}

#[test]
fn start_of_the_server_is_printed_as_json() -> Result<()> {
    let models = models().display().to_string();
    let server = Running::start(&["serve", "--json", "--listen", "0", "--models-dir", &models], "")?;
    let mut start: Value = serde_json::from_str(&server.line()?)?;
    let address = start["address"].take();
    let url = format!("http://{}", address.as_str().context("an address")?);
    assert_eq!(
        start,
        json!({
            "address": null, "url": url, "page": format!("{url}/"), "models": ["embeddings", "entities", "sentiment"],
            "store": "memory", "stored_data": "in memory until the end of this process (events.store)",
        })
    );
    Ok(())
}

#[tokio::test]
async fn watched_status_is_printed_again_with_the_changed_settings() -> Result<()> {
    let secret = "events.file=/tmp/weir-secret-name.ndjson";
    let server = Server::start_stub(&["--set", "http.requests_max=77", "--set", secret]).await?;
    let watch = ["status", "--watch", "--interval", "0.05", "--url", &server.url("")];
    let status = Running::start(&watch, "")?;
    let mut settings = 0;
    while settings < 3 {
        if let Some(list) = status.line()?.strip_prefix("settings   ") {
            assert!(list.contains("events.file, ") && list.contains("http.requests_max=77"), "{list}");
            settings += 1;
        }
    }
    let stats: Value = reqwest::get(server.url("/v1/stats")).await?.json().await?;
    assert!(!stats.to_string().contains("weir-secret-name"), "{stats}");
    let json = Running::start(&[&watch[..], &["--json"]].concat(), "")?;
    for _ in 0..2 {
        let status: Value = serde_json::from_str(&json.line()?)?;
        assert_eq!(status["stats"]["configuration"], stats["configuration"]);
    }
    Ok(())
}

#[test]
fn totals_of_run_and_stream_are_printed_as_json() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("reviews.ndjson");
    std::fs::write(&file, "{\"text\": \"A fine day.\"}\n{\"txt\": 1}\n")?;
    let (file, models) = (file.display().to_string(), models().display().to_string());
    for (command, expected) in [
        (["run", "--task", "sentiment"].as_slice(), json!({"lines": 2, "failed": 1})),
        (&["stream", "file"], json!({"records": 2, "errors": 1})),
    ] {
        let output = run(&[command, &["--json", "--models-dir", &models, &file]].concat())?;
        let (out, err) = outputs(&output);
        assert_eq!(output.status.code(), Some(1), "{err}");
        assert_eq!(out.lines().count(), 2, "{out}");
        let totals: Value = serde_json::from_str(err.lines().last().context("a line")?).with_context(|| err.clone())?;
        for (name, value) in expected.as_object().context("an object")? {
            assert_eq!(&totals[name], value, "{command:?}: {err}");
        }
        assert!(totals["elapsed_ms"].as_f64().is_some_and(|elapsed| elapsed > 0.0), "{err}");
    }
    Ok(())
}

#[test]
fn failure_of_a_stream_is_reported_once() -> Result<()> {
    let models = models().display().to_string();
    let output = run(&["stream", "http", "--url", "nonsense", "--quiet", "--models-dir", &models])?;
    let (_, err) = outputs(&output);
    assert_eq!(output.status.code(), Some(2), "{err}");
    assert_eq!(err, "weir: `nonsense` must be a URL such as https://host:port/path\n");
    Ok(())
}
