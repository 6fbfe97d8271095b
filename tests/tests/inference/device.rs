//! Models on GPUs, without a GPU: `tests/gpu/fake_gpu.rs` takes the places of the driver of NVIDIA and of ONNX Runtime's provider, and the
//! processor computes. Everything else is what runs on a GPU.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tempfile::TempDir;
use weir_tests::client::{classify, post};
use weir_tests::texts::Random;
use weir_tests::{Server, models, ndjson, onnxruntime, root, until, weir};

/// A folder with the library `libcuda.so.1`, which is also an ONNX Runtime, and with the log of what is called in it.
struct FakeGpu(TempDir);

impl FakeGpu {
    fn build() -> Result<Self> {
        let gpu = Self(tempfile::tempdir()?);
        let compiler = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
        let mut compile = Command::new(compiler);
        compile.args(["--edition", "2024", "--crate-type", "cdylib", "-o"]).arg(gpu.library());
        let output = compile.arg(root().join("tests/gpu/fake_gpu.rs")).current_dir(gpu.0.path()).output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(gpu)
    }

    fn library(&self) -> PathBuf {
        self.0.path().join("libcuda.so.1")
    }

    /// `weir` with these arguments on a machine with this GPU.
    fn weir(&self, arguments: &[&str]) -> Result<Command> {
        let mut command = weir_command(arguments)?;
        command.env("LD_LIBRARY_PATH", self.0.path()).env("WEIR_ONNXRUNTIME", self.library());
        command.env("FAKE_GPU_ONNXRUNTIME", onnxruntime()?).env("FAKE_GPU_LOG", self.0.path().join("log"));
        Ok(command)
    }

    /// The lines of the log that begin with a word.
    fn logged(&self, word: &str) -> Result<Vec<String>> {
        let log = std::fs::read_to_string(self.0.path().join("log"))?;
        Ok(log.lines().filter(|line| line.split(' ').next() == Some(word)).map(str::to_owned).collect())
    }

    /// The runs of models.
    fn runs(&self) -> Result<Vec<Run>> {
        self.logged("run")?.iter().map(|line| Run::parse(line)).collect()
    }
}

struct Run {
    texts: usize,
    tokens: usize,
    /// The most runs in progress at once until then.
    together: usize,
}

impl Run {
    fn parse(line: &str) -> Result<Self> {
        let number = |name: &str| {
            let value = line.split(' ').find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
            value.and_then(|value| value.parse().ok()).with_context(|| format!("{name} in `{line}`"))
        };
        Ok(Self { texts: number("texts")?, tokens: number("tokens")?, together: number("together")? })
    }
}

fn weir_command(arguments: &[&str]) -> Result<Command> {
    let mut command = Command::new(weir()?);
    command.args(arguments).arg("--models-dir").arg(models());
    Ok(command)
}

/// A folder for `LD_LIBRARY_PATH` whose driver is not a library, as on a machine without one.
fn no_driver() -> Result<TempDir> {
    let folder = tempfile::tempdir()?;
    std::fs::write(folder.path().join("libcuda.so.1"), "")?;
    Ok(folder)
}

/// The results of `weir run` for texts, in their order.
fn run(mut command: Command, texts: &[String]) -> Result<Vec<Value>> {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let mut input = child.stdin.take().context("its input")?;
    let lines = texts.join("\n");
    let writing = std::thread::spawn(move || input.write_all(lines.as_bytes()));
    let output = child.wait_with_output()?;
    writing.join().map_err(|_| anyhow::anyhow!("a panic"))??;
    let mut results = ndjson(std::str::from_utf8(&output.stdout)?)?;
    ensure!(results.len() == texts.len(), "{} results: {}", results.len(), String::from_utf8_lossy(&output.stderr));
    results.sort_by_key(|result| result["index"].as_u64());
    Ok(results)
}

/// Why tract does not compute on the GPU: it is not built for that, or CUDA is missing.
const TRACT: &str = if cfg!(feature = "cuda") {
    "cuda:0: the engine tract cannot load libcudart.so.12: install CUDA 12"
} else {
    "cuda:0: the engine tract computes on GPUs only in a weir that was built with its feature cuda"
};

const SENTIMENT: [&str; 4] = ["run", "--task", "sentiment", "-q"];

/// Checks that a command fails at its start, with one line that has a part. A line of the log may precede it.
fn check_refusal(output: &Output, part: &str) -> Result<()> {
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(2), "{part}: {error}");
    let lines: Vec<&str> = error.lines().filter(|line| !line.contains("INFO  ONNX Runtime loaded")).collect();
    ensure!(lines.len() == 1 && lines[0].starts_with("weir: ") && lines[0].contains(part), "{part}: {error}");
    Ok(())
}

#[test]
fn device_that_cannot_be_used_ends_the_start_with_one_sentence() -> Result<()> {
    let gpu = FakeGpu::build()?;
    let serve = |sets: &[&str]| {
        let sets: Vec<&str> = sets.iter().flat_map(|set| ["--set", set]).collect();
        gpu.weir(&[&["serve", "--listen", "127.0.0.1:0"], &sets[..]].concat())
    };
    let cuda = || serve(&["models.device=cuda"]);
    let no_driver = no_driver()?;
    let missing = "the NVIDIA driver cannot be loaded";
    check_refusal(&cuda()?.env("LD_LIBRARY_PATH", no_driver.path()).output()?, missing)?;
    check_refusal(&cuda()?.env("FAKE_GPU_COUNT", "0").output()?, "cuda:0: the NVIDIA driver finds no GPU")?;
    check_refusal(&cuda()?.env("FAKE_GPU_START", "100").output()?, "cuda:0: the NVIDIA driver finds no GPU")?;
    check_refusal(&cuda()?.env("FAKE_GPU_START", "803").output()?, "have different versions: restart the machine")?;
    check_refusal(&cuda()?.env("FAKE_GPU_START", "999").output()?, "cannot be started (error 999): `nvidia-smi`")?;
    let third = serve(&["models.device=cuda:3"])?.env("FAKE_GPU_COUNT", "2").output()?;
    check_refusal(&third, "cuda:3: the machine has 2 GPUs, cuda:0 to cuda:1")?;
    // The ONNX Runtime of the tests is the one for processors.
    let without = cuda()?.env("WEIR_ONNXRUNTIME", onnxruntime()?).output()?;
    check_refusal(&without, "was built without support for GPUs: name the library of the package onnxruntime-gpu")?;
    let nowhere = cuda()?.env("WEIR_ONNXRUNTIME", no_driver.path()).output()?;
    check_refusal(&nowhere, "there is no libonnxruntime.so")?;
    for (set, part) in [
        ("models.engine=builtin", "cuda:0: the engine builtin computes on the CPU alone: set models.engine to"),
        ("models.engine=tract", TRACT),
        ("models.precision=int8", "models on GPUs have no int8: set models.precision to"),
    ] {
        check_refusal(&serve(&["models.device=cuda", set])?.output()?, part)?;
    }
    check_refusal(&serve(&["models.device=gpu"])?.output()?, "did you mean `cuda`?")?;
    let in_environment = serve(&[])?.env("WEIR_MODELS_DEVICE", "cuda:x").output()?;
    check_refusal(&in_environment, "there is no device named \"cuda:x\"")
}

#[tokio::test]
async fn auto_serves_on_the_cpu_and_says_why_once() -> Result<()> {
    let no_driver = no_driver()?;
    let mut command = weir_command(&["serve", "--listen", "127.0.0.1:0", "--set", "models.device=auto"])?;
    command.env("LD_LIBRARY_PATH", no_driver.path());
    let server = Server::spawn(command, "listening on http://")?;
    server.ready().await?;
    ensure!(classify(&server, &["What a night!"]).await?.len() == 1);
    let log = server.log();
    let warnings: Vec<&str> = log.lines().filter(|line| line.contains("the CPU computes")).collect();
    ensure!(warnings.len() == 1 && warnings[0].contains("the NVIDIA driver cannot be loaded"), "{log}");
    ensure!(log.contains("engine=builtin device=cpu") && !log.contains("device=cuda"), "{log}");
    Ok(())
}

#[test]
fn auto_computes_on_a_gpu_that_works_as_onnx_runtime_does_on_the_cpu() -> Result<()> {
    let gpu = FakeGpu::build()?;
    let mut random = Random(5);
    let texts: Vec<String> = (0..40).map(|index| random.text(1 + index)).collect();
    let results = run(gpu.weir(&[&SENTIMENT[..], &["--set", "models.device=auto"]].concat())?, &texts)?;
    ensure!(gpu.logged("registered")?.len() == 2, "the GPU was tried, and the model loaded on it");
    let mut on_cpu = weir_command(&[&SENTIMENT[..], &["--set", "models.engine=onnxruntime"]].concat())?;
    on_cpu.env("WEIR_ONNXRUNTIME", onnxruntime()?);
    for (one, other) in results.iter().zip(&run(on_cpu, &texts)?) {
        let score = |line: &Value| line["score"].as_f64().context("a score");
        ensure!(one["label"] == other["label"] && (score(one)? - score(other)?).abs() < 1e-4, "{one} and {other}");
    }
    Ok(())
}

#[test]
fn provider_is_that_of_the_model_and_its_precision() -> Result<()> {
    let gpu = FakeGpu::build()?;
    let texts = ["What a night!".to_owned()];
    let device = ["--set", "models.device=cuda:1"];
    let mut command = gpu.weir(&[&SENTIMENT[..], &device].concat())?;
    command.env("FAKE_GPU_COUNT", "2");
    run(command, &texts)?;
    let mut command = gpu.weir(&[&SENTIMENT[..], &device, &["--set", "models.precision=f32"]].concat())?;
    command.env("FAKE_GPU_COUNT", "2");
    run(command, &texts)?;
    let options = gpu.logged("options")?;
    ensure!(options.len() == 4 && options.iter().all(|options| options.contains("device_id=1")), "{options:?}");
    ensure!(options[3].contains("use_tf32=false") && !options[1].contains("use_tf32"), "{options:?}");
    Ok(())
}

/// The options of each provider, and the registrations, in their order: TensorRT computes what it supports, and CUDA the rest.
#[test]
fn tensorrt_is_registered_before_cuda_with_its_folder() -> Result<()> {
    let gpu = FakeGpu::build()?;
    let folder = gpu.0.path().join("engines");
    let set = format!("models.tensorrt={}", folder.display());
    let device = ["--set", "models.device=cuda:1", "--set", &set];
    let mut command = gpu.weir(&[&SENTIMENT[..], &device].concat())?;
    command.env("FAKE_GPU_COUNT", "2");
    run(command, &["What a night!".to_owned()])?;
    // The check of the GPU, and the model.
    ensure!(gpu.logged("registered")? == ["registered tensorrt", "registered cuda"].repeat(2));
    let options = gpu.logged("options")?;
    let tensorrt: Vec<Vec<&str>> =
        options.iter().filter_map(|line| Some(line.strip_prefix("options tensorrt ")?.split(' ').collect())).collect();
    ensure!(options.len() == 4 && tensorrt.len() == 2, "{options:?}");
    for option in [
        "device_id=1",
        "trt_engine_cache_enable=true",
        &format!("trt_engine_cache_path={}", folder.display()),
        "trt_timing_cache_enable=true",
        &format!("trt_timing_cache_path={}", folder.display()),
    ] {
        ensure!(tensorrt.iter().all(|options| options.contains(&option)), "{option} in {tensorrt:?}");
    }
    // The graph of the check has no open dimensions.
    let shapes = "trt_profile_max_shapes=input_ids:128x512,attention_mask:128x512";
    ensure!(!options[0].contains("shapes") && tensorrt[1].contains(&shapes), "{tensorrt:?}");
    ensure!(folder.is_dir(), "the folder was not created");
    Ok(())
}

#[tokio::test]
async fn device_of_one_model_is_not_that_of_the_others() -> Result<()> {
    let gpu = FakeGpu::build()?;
    let path = format!("model.sentiment.path={}", models().join("sentiment").display());
    let sets = [&path, "model.sentiment.device=cuda", "models.names=[sentiment, entities]", "steps.summary="];
    let sets: Vec<&str> = sets.into_iter().flat_map(|set| ["--set", set]).collect();
    let command = gpu.weir(&[&["serve", "--listen", "127.0.0.1:0"], &sets[..]].concat())?;
    let server = Server::spawn(command, "listening on http://")?;
    server.ready().await?;
    let log = server.log();
    for (model, engine, device) in [("sentiment", "onnxruntime", "cuda:0"), ("entities", "builtin", "cpu")] {
        let loaded: Vec<&str> =
            log.lines().filter(|line| line.contains(&format!("graph loaded name={model} "))).collect();
        let parts = [format!("engine={engine} "), format!("device={device} ")];
        let is_expected = |line: &&str| parts.iter().all(|part| line.contains(part));
        ensure!(!loaded.is_empty() && loaded.iter().all(is_expected), "{model}: {log}");
    }
    classify(&server, &["What a night!"]).await?;
    let on_gpu = gpu.runs()?.len();
    ensure!(on_gpu > 0, "sentiment was not computed on the GPU");
    let (status, entities) = post(&server, "/v1/tokens", &json!({"inputs": ["Maria lives in Rome."]})).await?;
    ensure!(status == 200 && entities.to_string().contains("Rome"), "{status} {entities}");
    ensure!(gpu.runs()?.len() == on_gpu, "entities was computed on the GPU");
    Ok(())
}

#[test]
fn batches_of_a_slow_gpu_become_smaller_by_the_time_that_it_takes() -> Result<()> {
    /// With a bound of 500 ms, 125 tokens.
    const TOKEN_NS: u32 = 4_000_000;
    const LEARNING_RUNS: usize = 12;
    let mut random = Random(8);
    let texts: Vec<String> = (0..300).map(|_| random.text(12)).collect();
    let runs = |token_ns: u32| {
        let gpu = FakeGpu::build()?;
        // The first batch of each replica, whose cost is not known yet, has a few hundred tokens.
        let set = ["infer.batch_time_ms_max=500", "infer.max_batch_size=24", "models.device=cuda"];
        let set: Vec<&str> = set.into_iter().flat_map(|set| ["--set", set]).collect();
        let mut command = gpu.weir(&[&SENTIMENT[..], &set].concat())?;
        command.env("FAKE_GPU_TOKEN_NS", token_ns.to_string());
        run(command, &texts)?;
        gpu.runs()
    };
    let tokens = |runs: Vec<Run>| runs.into_iter().map(|run| run.tokens).collect::<Vec<usize>>();
    let (slow, fast) = (tokens(runs(TOKEN_NS)?), tokens(runs(0)?));
    // Until both replicas have learned their cost.
    let largest = |tokens: &[usize]| tokens.iter().skip(LEARNING_RUNS).max().copied();
    let (slow, fast) = (largest(&slow), largest(&fast));
    ensure!(slow.is_some_and(|tokens| tokens < 200), "a batch of the slow GPU has {slow:?} tokens");
    ensure!(fast.is_some_and(|tokens| tokens > 300), "the largest batch of the fast GPU has {fast:?} tokens");
    Ok(())
}

#[test]
fn batches_of_a_gpu_are_larger_and_two_are_in_progress() -> Result<()> {
    let gpu = FakeGpu::build()?;
    let mut random = Random(6);
    let texts: Vec<String> = (0..3000).map(|_| random.text(12)).collect();
    let call = ["--set", "infer.call_items_max=1000", "--set", "models.engine=onnxruntime"];
    let mut command = gpu.weir(&[&SENTIMENT[..], &call, &["--set", "models.device=cuda"]].concat())?;
    command.env("FAKE_GPU_TOGETHER", "1");
    run(command, &texts)?;
    let runs = gpu.runs()?;
    let most = |runs: &[Run]| runs.iter().map(|run| run.tokens).max().unwrap_or(0);
    let texts_computed: usize = runs.iter().map(|run| run.texts).sum();
    ensure!(texts_computed >= texts.len(), "{texts_computed} texts were computed");
    ensure!(most(&runs) > 1000, "the largest batch has {} tokens", most(&runs));
    ensure!(runs.iter().any(|run| run.together == 2), "no two batches were in progress at once");
    ensure!(gpu.logged("registered")?.len() == 2, "the GPU was tried, and the weights are on it once for all runs");
    // On the processor the same engine has small batches.
    let on_cpu = FakeGpu::build()?;
    run(on_cpu.weir(&[&SENTIMENT[..], &call].concat())?, &texts[..300])?;
    ensure!(most(&on_cpu.runs()?) <= 128, "the largest batch has {} tokens", most(&on_cpu.runs()?));
    Ok(())
}

#[test]
fn batches_for_which_the_memory_does_not_suffice_become_smaller() -> Result<()> {
    /// More than the longest text but one.
    const TOKENS_MAX: usize = 300;
    let gpu = FakeGpu::build()?;
    let mut random = Random(7);
    let mut texts: Vec<String> = (0..2000).map(|_| random.text(12)).collect();
    texts[1000] = random.text(450);
    let set = ["--set", "infer.call_items_max=1000", "--set", "models.device=cuda"];
    let mut command = gpu.weir(&[&SENTIMENT[..], &set].concat())?;
    command.env("FAKE_GPU_TOKENS_MAX", TOKENS_MAX.to_string());
    let results = run(command, &texts)?;
    let failed: Vec<&Value> = results.iter().filter(|result| result.get("error").is_some()).collect();
    ensure!(failed.len() == 1 && failed[0]["index"] == 1000, "{failed:?}");
    ensure!(failed[0].to_string().contains("the memory of cuda:0 is too small for this batch"), "{}", failed[0]);
    let runs = gpu.runs()?;
    let too_large = runs.iter().filter(|run| run.texts > 1 && run.tokens > TOKENS_MAX).count();
    // Each of the two replicas halves its first batch, of at most 4096 tokens, until its parts fit: 1, 2, 4 and 8 of them are too large.
    // Without a smaller bound afterwards, all seven batches of the texts would be.
    ensure!((1..=2 * 15).contains(&too_large), "{too_large} of {} runs were too large", runs.len());
    Ok(())
}

#[tokio::test]
async fn model_that_does_not_fit_into_the_memory_is_not_ready_and_its_error_says_why() -> Result<()> {
    let gpu = FakeGpu::build()?;
    let set = ["--set", "models.device=cuda", "--set", "models.names=[sentiment]"];
    let steps = ["--set", "steps.entities=", "--set", "steps.summary="];
    let mut command = gpu.weir(&[&["serve", "--listen", "127.0.0.1:0"], &set[..], &steps].concat())?;
    command.env("FAKE_GPU_MODELS_MAX", "0");
    let server = Server::spawn(command, "listening on http://")?;
    let reason = "cuda:0: its memory is too small for";
    until("the reason is logged", || async { Ok(server.log().contains(reason)) }).await?;
    let readiness = || async { anyhow::Ok(reqwest::get(server.url("/readyz")).await?) };
    until("the reason is in /readyz", || async { Ok(readiness().await?.text().await?.contains(reason)) }).await?;
    let readiness = readiness().await?;
    ensure!(readiness.status() == 503);
    let body = readiness.text().await?;
    let problem: Value = serde_json::from_str(&body)?;
    let detail = "not ready: sentiment (loading the graph failed (runtime-error): cuda:0: its memory is too small for model.onnx: serve \
                  fewer models on it, or stop other programs that use it)";
    ensure!(problem["detail"] == detail, "{body}");
    ensure!(problem["models"][0]["name"] == "sentiment" && problem["models"][0]["reason"].is_string(), "{body}");
    // A path would tell a client about the machine.
    ensure!(!body.contains(models().to_str().context("UTF-8")?), "{body}");
    let listed: Value = reqwest::get(server.url("/v1/models")).await?.json().await?;
    ensure!(listed["models"][0]["reason"] == problem["models"][0]["reason"], "{listed}");
    let (status, problem) = post(&server, "/v1/classify", &json!({"inputs": ["What a night!"]})).await?;
    ensure!(status == 503 && problem.to_string().contains(reason), "{status}: {problem}");
    Ok(())
}

#[test]
fn check_of_models_shows_the_device() -> Result<()> {
    let gpu = FakeGpu::build()?;
    let check = |device: &str, json: bool| -> Result<String> {
        let mut arguments = vec!["models", "check", "sentiment", "--device", device];
        arguments.extend(json.then_some("--json"));
        let mut command = gpu.weir(&arguments)?;
        let output = if device == "auto" { command.env("FAKE_GPU_COUNT", "0") } else { &mut command }.output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8(output.stdout)?)
    };
    let on_gpu = check("cuda", false)?;
    ensure!(on_gpu.contains("with onnxruntime (the engine for GPUs) on cuda:0"), "{on_gpu}");
    let report: Value = serde_json::from_str(&check("cuda", true)?)?;
    ensure!(report["device"] == "cuda:0" && report["fallback"].is_null(), "{report}");
    let fallback = weir_command(&["models", "check", "sentiment", "--device", "auto", "--engine", "tract"])?
        .env("LD_LIBRARY_PATH", no_driver()?.path())
        .output()?;
    let fallback = String::from_utf8(fallback.stdout)?;
    let reason = if cfg!(feature = "cuda") { "the NVIDIA driver cannot be loaded" } else { TRACT };
    ensure!(fallback.contains("with tract") && fallback.contains(reason), "{fallback}");
    let fallback = check("auto", false)?;
    ensure!(
        fallback.contains("with builtin") && fallback.contains("not on a GPU: cuda:0: the NVIDIA driver finds no GPU"),
        "{fallback}"
    );
    Ok(())
}
