//! `weir` on the command line: help, configuration, models.

use std::process::{Command, Output};

use anyhow::Result;
use weir_tests::{models, root, weir};

fn call(arguments: &[&str]) -> Result<Output> {
    Ok(Command::new(weir()?).args(arguments).output()?)
}

fn said(output: &Output) -> (String, String) {
    (String::from_utf8_lossy(&output.stdout).into(), String::from_utf8_lossy(&output.stderr).into())
}

#[test]
fn help_names_every_command() -> Result<()> {
    let output = call(&["--help"])?;
    let (out, _) = said(&output);
    assert!(output.status.success());
    for command in ["serve", "run", "models", "config"] {
        assert!(out.contains(command), "{out}");
        let help = call(&[command, "--help"])?;
        assert!(help.status.success() && said(&help).0.contains("Usage:"));
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
    let (_, err) = said(&output);
    assert_eq!(output.status.code(), Some(2), "{err}");
    assert!(err.contains("onnxruntime") && err.contains("there is no libonnxruntime.so"), "{err}");
    assert_eq!(err.lines().count(), 1, "{err}");
    Ok(())
}

#[test]
fn printed_configuration_reads_back() -> Result<()> {
    let (text, _) = said(&call(&["config"])?);
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("weir.toml");
    // `[model.NAME]` shows the keys of one model; everything else is the defaults.
    let defaults = text.split("[model.NAME]").next().unwrap_or_default();
    let rest = text.split("[models]").nth(1).unwrap_or_default();
    std::fs::write(&file, format!("{defaults}\n[models]{rest}"))?;
    let read = call(&["config", "--effective", &file.display().to_string()])?;
    assert!(read.status.success(), "{}", said(&read).1);
    let plain = call(&["config", "--effective"])?;
    assert_eq!(said(&read).0, said(&plain).0);
    Ok(())
}

#[test]
fn models_are_listed_checked_and_copied() -> Result<()> {
    let shipped = models().display().to_string();
    let (out, _) = said(&call(&["models", "list", "--models-dir", &shipped])?);
    for name in ["embeddings", "entities", "sentiment"] {
        assert!(out.contains(name), "{out}");
    }
    assert!(out.contains("builtin (model_packed.onnx: an encoder of 3 layers, 384 wide, 12 heads) in int8 ("), "{out}");
    let toys = root().join("tests/models").display().to_string();
    let (out, _) = said(&call(&["models", "list", "--models-dir", &toys])?);
    assert!(out.contains("tract (not builtin: there is neither model.safetensors nor model_packed.onnx)"), "{out}");
    let architectures = root().join("tests/architectures/modernbert").display().to_string();
    let (out, _) = said(&call(&["models", "check", &architectures])?);
    assert!(out.contains("tokenizer.json is missing"), "{out}");
    let dir = tempfile::tempdir()?;
    let mine = dir.path().join("mine").display().to_string();
    let pulled = call(&["models", "pull", &models().join("sentiment").display().to_string(), "--models-dir", &mine])?;
    assert!(pulled.status.success(), "{}", said(&pulled).1);
    let checked = call(&["models", "check", "--models-dir", &mine])?;
    let (out, err) = said(&checked);
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
    let output = call(&["models", "check", "--models-dir", &shipped, &precision])?;
    let (out, err) = said(&output);
    assert!(output.status.success(), "{out}{err}");
    for model in ["sentiment", "entities", "embeddings"] {
        assert!(out.contains(&format!("{model}: 4 texts, compared with f32")), "{out}");
    }
    let of = |precision: &str, part: &str| {
        out.lines().filter(|line| line.trim_start().starts_with(precision) && line.contains(part)).count()
    };
    // f32 agrees with itself.
    assert_eq!(of("f32 ", "100.00 % of the best labels agree, scores differ by 0.0000 at most"), 1, "{out}");
    assert_eq!(of("f32 ", "100.00 % of the tokens' labels agree"), 1, "{out}");
    assert_eq!(of("f32 ", "cosine 1.00000 at least"), 1, "{out}");
    for precision in ["bf16 ", "int8 "] {
        assert_eq!(of(precision, "agree") + of(precision, "cosine 0.99"), 3, "{out}");
    }
    assert_eq!(of("recommended: models.precision = ", "(auto is "), 3, "{out}");
    let output = call(&["models", "check", "--models-dir", &shipped, "--precision=/nowhere.txt"])?;
    assert!(!output.status.success() && said(&output).1.contains("/nowhere.txt cannot be opened"));
    Ok(())
}

#[test]
fn broken_model_is_reported_in_one_line() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("broken");
    std::fs::create_dir(&path)?;
    std::fs::write(path.join("config.json"), "{")?;
    let checked = call(&["models", "check", &path.display().to_string()])?;
    assert_eq!(checked.status.code(), Some(1));
    let (out, _) = said(&checked);
    assert!(out.contains("config.json") && out.lines().count() == 1, "{out}");
    let served = call(&["serve", "--listen", "127.0.0.1:0", "--model", &format!("x={}", path.display())])?;
    assert_eq!(served.status.code(), Some(2));
    let (_, err) = said(&served);
    assert!(err.contains("model x") && err.contains("config.json") && err.lines().count() == 1, "{err}");
    Ok(())
}

#[test]
fn invalid_argument_is_reported_in_one_line() -> Result<()> {
    let held = std::net::TcpListener::bind("127.0.0.1:0")?;
    let taken = held.local_addr()?.to_string();
    let dir = tempfile::tempdir()?;
    let empty = dir.path().display().to_string();
    let shipped = models().display().to_string();
    for (arguments, part) in [
        (vec!["serve", "--listen", &taken, "--models-dir", &empty], "cannot listen on"),
        (vec!["serve", "--listen", "nonsense", "--models-dir", &empty], "cannot listen on nonsense"),
        (vec!["serve", "--config", "/nowhere.toml"], "/nowhere.toml cannot be read"),
        (vec!["serve", "--model", "nodir"], "expected NAME=VALUE"),
        (vec!["serve", "--component", "other=x.wasm"], "the components are gateway, generate, infer"),
        (vec!["serve", "--component", "gateway=/nowhere.wasm", "--models-dir", &empty], "/nowhere.wasm cannot be read"),
        (vec!["serve", "--models-dir", "/nowhere"], "/nowhere cannot be read"),
        (vec!["serve", "--set", "http.requests_max=0"], "http.requests_max must be at least 1"),
        (vec!["serve", "--set", "log.level=!!"], "log.level"),
        (vec!["models", "pull", "nonsense", "--models-dir", &empty], "nonsense"),
        (vec!["serve", "--listen", &taken, "--models-dir", &empty], "is in use; stop the program"),
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
        let output = call(&arguments)?;
        let (_, err) = said(&output);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {err}");
        assert!(err.contains(part) && err.lines().count() == 1, "{arguments:?}: {err}");
    }
    Ok(())
}

#[test]
fn flag_that_is_a_key_of_the_configuration_is_suggested() -> Result<()> {
    let output = call(&["serve", "--requests-max", "5"])?;
    let (_, err) = said(&output);
    assert_eq!(output.status.code(), Some(2), "{err}");
    assert!(err.contains("did you mean `--set http.requests_max=VALUE`?"), "{err}");
    Ok(())
}

#[test]
fn misspelled_flag_command_or_value_suggests_the_nearest() -> Result<()> {
    let shipped = weir_tests::models().display().to_string();
    for (arguments, meant) in [
        (vec!["serv"], "serve"),
        (vec!["serve", "--lisen", "8081"], "--listen"),
        (vec!["models", "chek"], "check"),
        (vec!["models", "engine", "onnxruntme"], "onnxruntime"),
        (vec!["completions", "bsh"], "bash"),
        (vec!["models", "check", "sentimnt", "--models-dir", &shipped], "did you mean `sentiment`?"),
    ] {
        let output = call(&arguments)?;
        let (out, err) = said(&output);
        assert!(!output.status.success(), "{arguments:?}");
        assert!(format!("{out}{err}").contains(meant), "{arguments:?}: {out}{err}");
    }
    Ok(())
}

/// `weir config > weir.toml; weir serve --config weir.toml`.
#[tokio::test]
async fn printed_configuration_is_accepted_by_the_server() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("weir.toml");
    std::fs::write(&file, call(&["config"])?.stdout)?;
    weir_tests::Server::start(&["--config", &file.display().to_string()]).await.map(drop)
}

#[tokio::test]
async fn port_without_address_listens_on_loopback() -> Result<()> {
    for prefix in ["", ":"] {
        // Another program may take the port between the two: then the next one is tried.
        let started = (0..10).find_map(|_| {
            let port = std::net::TcpListener::bind("127.0.0.1:0").ok()?.local_addr().ok()?.port();
            let server = weir_tests::Server::launch(&["--listen", &format!("{prefix}{port}")]).ok()?;
            (server.address() == format!("127.0.0.1:{port}")).then_some(server)
        });
        assert!(started.is_some(), "`{prefix}PORT` is not listened on");
    }
    Ok(())
}

#[test]
fn failed_start_leaves_no_file() -> Result<()> {
    let held = std::net::TcpListener::bind("127.0.0.1:0")?;
    let taken = held.local_addr()?.to_string();
    let dir = tempfile::tempdir()?;
    let store = format!("events.path={}", dir.path().join("new/store.redb").display());
    let events = format!("events.file={}", dir.path().join("events.ndjson").display());
    let with_store = ["--set", "events.store=disk", "--set", &store, "--set", &events];
    for arguments in [
        vec!["--listen", &taken],
        vec!["--listen", "127.0.0.1:0", "--component", "gateway=/nowhere.wasm"],
        vec!["--listen", "127.0.0.1:0", "--set", "pipelines.dir=/nowhere"],
        vec!["--listen", "127.0.0.1:0", "--model", "x=/nowhere"],
    ] {
        let output = call(&[["serve"].as_slice(), &arguments, &with_store].concat())?;
        let (_, err) = said(&output);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {err}");
        let left: Vec<_> = std::fs::read_dir(dir.path())?.flatten().map(|entry| entry.file_name()).collect();
        assert!(left.is_empty(), "{arguments:?} left {left:?}");
    }
    Ok(())
}

/// What a server on an address that others can reach refuses is said at the start, with the remedy.
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

#[test]
fn spin_manifest_names_the_component_and_its_build() -> Result<()> {
    let manifest = std::fs::read_to_string(root().join("spin.toml"))?;
    let manifest: toml::Table = manifest.parse()?;
    assert_eq!(manifest["spin_manifest_version"].as_integer(), Some(2));
    assert!(manifest["application"]["name"].is_str());
    let trigger = &manifest["trigger"]["http"][0];
    assert_eq!(trigger["route"].as_str(), Some("/..."));
    let component = &manifest["component"][trigger["component"].as_str().unwrap_or_default()];
    assert_eq!(component["source"].as_str(), Some("target/components/gateway.wasm"));
    assert_eq!(component["build"]["command"].as_str(), Some("cargo xtask build --components"));
    // What the manifest sets is what the native host sets: the keys of the configuration, in the environment's form.
    let (keys, _) = said(&call(&["config", "--markdown"])?);
    for name in component["environment"].as_table().into_iter().flat_map(|table| table.keys()) {
        let key = name.trim_start_matches("WEIR_").to_lowercase().replacen('_', ".", 1);
        assert!(keys.contains(&format!("`{key}`")), "{name} is no key of the configuration");
    }
    Ok(())
}
