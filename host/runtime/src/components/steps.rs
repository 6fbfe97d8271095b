//! Steps of pipelines that are components of the operator: they export `weir:stream/step`.
//!
//! Every call has an instance, a store and a task of its own, so that a call that traps, loops or exhausts its memory
//! affects no other. A step has clocks, random numbers and standard error; it has no files, no sockets, no environment
//! and no arguments. Code is compiled on the first call, and again when the file has changed: running calls finish with
//! the code that they started with, and while the file is not a valid component, the previous code is used.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::{Mutex, Semaphore};
use tokio_util::task::AbortOnDropHandle;
use wasmtime::ResourceLimiter;
use wasmtime::component::{Accessor, Component, Linker};
use wasmtime_wasi::WasiCtx;
use weir_wasi::StoreData;

use crate::bindings::gateway::weir::stream::step_types::Failure;
use crate::bindings::gateway::weir::stream::steps::Limits;
use crate::bindings::step::StepComponentPre;
use crate::components::engine::Host;
use crate::components::guest_log::GuestLog;

/// How often a file is checked for a change, at most.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// Longest output, bytes; the gateway has a smaller bound of its own.
const OUTPUT_BYTES_MAX: usize = 16 << 20;
/// Longest component file, bytes.
const FILE_BYTES_MAX: u64 = 64 << 20;
/// Most elements in each table of an instance.
const TABLE_ELEMENTS_MAX: usize = 100_000;

/// The steps, and the bounds of a call.
#[derive(Debug, Clone)]
pub(crate) struct StepsConfig {
    pub(crate) files: BTreeMap<String, PathBuf>,
    pub(crate) memory_bytes_max: u64,
    pub(crate) deadline_ms_max: u64,
    pub(crate) calls_max: usize,
}

/// The steps. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Steps(Arc<Inner>);

struct Inner {
    host: Host,
    linker: Linker<StoreData>,
    config: StepsConfig,
    compiled: BTreeMap<String, Mutex<CachedStep>>,
    /// One permit for each concurrent call.
    permits: Arc<Semaphore>,
}

/// The code of a step, and the state of its file at the last check.
#[derive(Default)]
struct CachedStep {
    checked: Option<Instant>,
    /// Modification time and length, bytes.
    stamp: Option<(SystemTime, u64)>,
    code: Option<StepComponentPre<StoreData>>,
}

impl Steps {
    pub(crate) fn new(host: &Host, config: StepsConfig) -> wasmtime::Result<Self> {
        let linker = weir_wasi::linker(host.engine())?;
        for (name, path) in &config.files {
            // Only a warning: the file is read on the first call, and may be added before that.
            if let Err(reason) = inspect(path) {
                let step = name.as_str();
                tracing::warn!(step, path = %path.display(), reason, "a file of pipelines.steps cannot be used; put a component there");
            }
        }
        let compiled = config.files.keys().map(|name| (name.clone(), Mutex::default())).collect();
        let permits = Arc::new(Semaphore::new(config.calls_max));
        Ok(Self(Arc::new(Inner { host: host.clone(), linker, config, compiled, permits })))
    }

    /// Runs a step once. Dropping the future ends the call.
    pub(crate) async fn run(
        &self,
        name: String,
        input: String,
        config: String,
        limits: Limits,
    ) -> Result<String, Failure> {
        let inner = self.0.clone();
        let Some(compiled) = inner.compiled.get(&name) else {
            return Err(permanent("unknown_step", format!("this server has no component `{name}`")));
        };
        let start = Instant::now();
        let deadline = Duration::from_millis(limits.deadline_ms.min(inner.config.deadline_ms_max));
        let deadline_error =
            || transient("step_deadline", format!("the component did not end within {} ms", deadline.as_millis()));
        let permit = tokio::time::timeout(deadline, inner.permits.clone().acquire_owned())
            .await
            .map_err(|_| deadline_error())?;
        let code = inner.code(&name, compiled).await?;
        // At least half of the deadline is left after compiling.
        let remaining = deadline.saturating_sub(start.elapsed()).max(deadline / 2);
        let memory_bytes_max = limits.memory_bytes_max.min(inner.config.memory_bytes_max);
        let denied = Arc::new(AtomicBool::new(false));
        let log = GuestLog::step(&name);
        let call = call(inner.clone(), code, memory_bytes_max, denied.clone(), log, (input, config));
        let host = inner.host.clone();
        let task = AbortOnDropHandle::new(tokio::spawn(async move {
            let _permit = permit;
            tokio::time::timeout(remaining, host.run_guest(call)).await
        }));
        let outcome = match task.await {
            Ok(Err(_)) => ("deadline", Err(deadline_error())),
            Ok(Ok(Ok(Ok(output)))) if output.len() > OUTPUT_BYTES_MAX => {
                let message = format!("the output has {} bytes, and may have {OUTPUT_BYTES_MAX}", output.len());
                ("failed", Err(permanent("step_output", message)))
            }
            Ok(Ok(Ok(Ok(output)))) => ("completed", Ok(output)),
            Ok(Ok(Ok(Err(failure)))) => ("failed", Err(failure)),
            Ok(Ok(Err(_))) if denied.load(Ordering::Relaxed) => {
                let message = format!("the component needs more than {memory_bytes_max} bytes of memory");
                ("memory", Err(permanent("step_memory", message)))
            }
            Ok(Ok(Err(error))) => {
                tracing::warn!(step = name, error = format!("{error:#}"), "a component has trapped");
                ("trapped", Err(transient("step_trapped", "the component has trapped".to_owned())))
            }
            Err(error) => {
                tracing::error!(step = name, %error, "a call of a component is lost");
                ("trapped", Err(transient("step_trapped", "the call is lost".to_owned())))
            }
        };
        metrics::counter!("weir_step_calls_total", "step" => name, "outcome" => outcome.0).increment(1);
        outcome.1
    }
}

impl Inner {
    /// The current code of a step, compiled if necessary.
    async fn code(&self, name: &str, compiled: &Mutex<CachedStep>) -> Result<StepComponentPre<StoreData>, Failure> {
        let unavailable = || transient("step_unavailable", format!("the component `{name}` cannot be used now"));
        // Locked during the compilation: concurrent calls wait for the same one.
        let mut compiled = compiled.lock().await;
        let is_fresh = compiled.checked.is_some_and(|checked| checked.elapsed() < CHECK_INTERVAL);
        if !is_fresh {
            compiled.checked = Some(Instant::now());
            let path = self.config.files.get(name).ok_or_else(unavailable)?;
            let stamp = tokio::fs::metadata(path).await.and_then(|meta| Ok((meta.modified()?, meta.len())));
            match stamp {
                Ok(stamp) if compiled.stamp == Some(stamp) => {}
                Ok(stamp) => match self.compile(path.clone(), stamp.1).await {
                    Ok(code) => {
                        tracing::info!(step = name, path = %path.display(), "a component is compiled");
                        (compiled.stamp, compiled.code) = (Some(stamp), Some(code));
                    }
                    // The file may be incomplete: the next check tries again.
                    Err(error) => {
                        let error = format!("{error:#}");
                        tracing::warn!(step = name, path = %path.display(), error, "a component cannot be used");
                    }
                },
                Err(error) => tracing::warn!(step = name, path = %path.display(), %error, "a component cannot be read"),
            }
        }
        compiled.code.clone().ok_or_else(unavailable)
    }

    /// Compiles a file on a blocking thread.
    async fn compile(&self, path: PathBuf, bytes: u64) -> wasmtime::Result<StepComponentPre<StoreData>> {
        if bytes > FILE_BYTES_MAX {
            wasmtime::bail!("the file has {bytes} bytes, and may have {FILE_BYTES_MAX}");
        }
        let (engine, linker) = (self.host.engine().clone(), self.linker.clone());
        let compile = move || {
            let component = Component::new(&engine, read(&path)?)?;
            StepComponentPre::new(linker.instantiate_pre(&component)?)
        };
        tokio::task::spawn_blocking(compile).await?
    }
}

/// Checks the size and the first bytes of a file.
fn inspect(path: &Path) -> Result<(), String> {
    /// The magic number, the version and the layer of a component in the binary format.
    const COMPONENT: [u8; 8] = *b"\0asm\x0d\0\x01\0";
    let mut file = std::fs::File::open(path).map_err(|error| error.to_string())?;
    let metadata = file.metadata().map_err(|error| error.to_string())?;
    if !metadata.is_file() {
        return Err("it is not a file".to_owned());
    }
    if metadata.len() > FILE_BYTES_MAX {
        return Err(format!("it has {} bytes, and may have at most {FILE_BYTES_MAX}", metadata.len()));
    }
    let mut begin = [0; COMPONENT.len()];
    match file.read_exact(&mut begin) {
        Ok(()) if begin == COMPONENT => Ok(()),
        Ok(()) if begin.starts_with(b"\0asm") => Err("it is a core module, not a component".to_owned()),
        Ok(()) | Err(_) => Err("it is not a WebAssembly component".to_owned()),
    }
}

fn read(path: &Path) -> wasmtime::Result<Vec<u8>> {
    Ok(std::fs::read(path)?)
}

/// One call, in an instance of its own. Guests yield at every tick of the engine's clock, even in an endless loop.
async fn call(
    inner: Arc<Inner>,
    code: StepComponentPre<StoreData>,
    memory_bytes_max: u64,
    denied: Arc<AtomicBool>,
    log: GuestLog,
    (input, config): (String, String),
) -> wasmtime::Result<Result<String, Failure>> {
    let memory_bytes_max = usize::try_from(memory_bytes_max).unwrap_or(usize::MAX);
    let mut wasi = WasiCtx::builder();
    wasi.stderr(log);
    let limits = Limiter { memory_bytes_max, memory_bytes: 0, denied };
    let mut store = weir_wasi::store(inner.host.engine(), StoreData::new(wasi.build(), limits, ()));
    let instance = code.instantiate_async(&mut store).await?;
    let run =
        async |accessor: &Accessor<StoreData>| instance.weir_stream_step().call_run(accessor, input, config).await;
    let result = store.run_concurrent(run).await??;
    Ok(result.map_err(|failure| Failure { code: failure.code, message: failure.message, retryable: failure.retryable }))
}

/// Bounds the memory of an instance, the sum of all its linear memories, and records whether growth was denied.
struct Limiter {
    memory_bytes_max: usize,
    memory_bytes: usize,
    denied: Arc<AtomicBool>,
}

impl ResourceLimiter for Limiter {
    fn memory_growing(&mut self, current: usize, desired: usize, _: Option<usize>) -> wasmtime::Result<bool> {
        let after = self.memory_bytes.saturating_add(desired.saturating_sub(current));
        if after > self.memory_bytes_max {
            self.denied.store(true, Ordering::Relaxed);
            return Ok(false);
        }
        self.memory_bytes = after;
        Ok(true)
    }

    fn table_growing(&mut self, _: usize, desired: usize, _: Option<usize>) -> wasmtime::Result<bool> {
        Ok(desired <= TABLE_ELEMENTS_MAX)
    }
}

fn permanent(code: &str, message: String) -> Failure {
    Failure { code: code.to_owned(), message, retryable: false }
}

fn transient(code: &str, message: String) -> Failure {
    Failure { retryable: true, ..permanent(code, message) }
}
