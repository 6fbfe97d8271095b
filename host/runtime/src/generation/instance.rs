//! The instance of the generate component that serves a model: its thread, its store, and its two streams.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures::FutureExt;
use tokio::sync::{Notify, mpsc};
use wasmtime::component::{
    Component, Destination, HasSelf, ResourceTable, Source, StreamConsumer, StreamProducer, StreamReader, StreamResult,
    VecBuffer,
};
use wasmtime::{Store, StoreContextMut};
use wasmtime_wasi::WasiCtx;
use weir_wasi::StoreData;

use super::lm::{InstanceState, ServedModel};
use super::pool::ModelPool;
use crate::bindings::generate::GenerateExportsPre;
use crate::bindings::generate_types::{Command, Event};
use crate::bindings::lm::LmHost;
use crate::components::ended::NotifyOnDrop;
use crate::components::engine::Host;
use crate::components::guest_log::GuestLog;
use crate::components::limits::limits;

/// Creates the instances; cheap to clone.
#[derive(Clone)]
pub(crate) struct GenerateFactory {
    host: Host,
    pre: GenerateExportsPre<StoreData>,
    memory_bytes_max: u64,
    environment: Vec<(String, String)>,
}

impl GenerateFactory {
    /// Links the component once for all models.
    pub(crate) fn new(
        host: &Host,
        component: &Component,
        memory_bytes_max: u64,
        environment: Vec<(String, String)>,
    ) -> wasmtime::Result<Self> {
        let mut linker = weir_wasi::linker(host.engine())?;
        LmHost::add_to_linker::<_, HasSelf<InstanceState>>(&mut linker, StoreData::state)?;
        let pre = GenerateExportsPre::new(linker.instantiate_pre(component)?)?;
        Ok(Self { host: host.clone(), pre, memory_bytes_max, environment })
    }

    /// The instances of a model.
    pub(super) fn instances(&self, model: ServedModel) -> ModelInstances {
        ModelInstances { factory: self.clone(), model }
    }
}

/// Makes the instances of one pool.
pub(super) trait InstanceSource: Send + 'static {
    fn host(&self) -> &Host;
    fn pre(&self) -> &GenerateExportsPre<StoreData>;
    /// A store for a new instance.
    fn store(&self) -> Store<StoreData>;
}

/// Makes the instances of one model.
pub(super) struct ModelInstances {
    factory: GenerateFactory,
    model: ServedModel,
}

impl InstanceSource for ModelInstances {
    fn host(&self) -> &Host {
        &self.factory.host
    }

    fn pre(&self) -> &GenerateExportsPre<StoreData> {
        &self.factory.pre
    }

    fn store(&self) -> Store<StoreData> {
        let model = self.model.clone();
        let mut wasi = WasiCtx::builder();
        wasi.stderr(GuestLog::built_in("generate", &model.name)).envs(&self.factory.environment);
        let state = InstanceState { table: ResourceTable::new(), model };
        let data = StoreData::new(wasi.build(), limits(self.factory.memory_bytes_max), state);
        weir_wasi::store(self.factory.host.engine(), data)
    }
}

/// Delays before another instance is created after one that was never ready; the last one applies to all further
/// failures.
const RESTART_DELAYS_MS: [u64; 6] = [50, 200, 1_000, 3_000, 10_000, 30_000];

/// Starts the thread that runs the instances of a pool.
pub(super) fn start(pool: Arc<ModelPool>, source: impl InstanceSource, hang_timeout: Duration) -> std::io::Result<()> {
    let name = format!("generate-{}", pool.name());
    let run = move || {
        let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => return pool.set_unavailable(format!("its thread cannot be started: {error}")),
        };
        let mut stopping = pool.stopping();
        runtime.block_on(async {
            tokio::select! {
                _ = stopping.wait_for(|stopping| *stopping) => {}
                () = run_instances(&pool, &source, hang_timeout) => {}
            }
        });
        // A step in progress ends between two layers; it is not waited for.
        runtime.shutdown_background();
    };
    std::thread::Builder::new().name(name).spawn(run).map(drop)
}

/// Runs one instance after another, each until it is lost.
async fn run_instances<S: InstanceSource>(pool: &Arc<ModelPool>, source: &S, hang_timeout: Duration) {
    let mut failures = 0;
    loop {
        let run = std::panic::AssertUnwindSafe(run_instance(pool, source, hang_timeout));
        let text = match run.catch_unwind().await {
            Ok(Ok(never)) => match never {},
            Ok(Err(error)) => format!("{error:#}"),
            Err(_) => "the host panicked while it ran".into(),
        };
        tracing::error!(model = pool.name(), error = text, "an instance of the generate component is lost");
        let was_ready = pool.handle_loss(&text);
        failures = if was_ready { 0 } else { failures + 1 };
        let delay = RESTART_DELAYS_MS[failures.min(RESTART_DELAYS_MS.len() - 1)];
        tokio::time::sleep(Duration::from_millis(delay)).await;
    }
}

/// Creates an instance and runs it until it is lost.
async fn run_instance<S: InstanceSource>(
    pool: &Arc<ModelPool>,
    source: &S,
    hang_timeout: Duration,
) -> wasmtime::Result<std::convert::Infallible> {
    let mut store = source.store();
    let component = source.host().run_guest(source.pre().instantiate_async(&mut store)).await?;
    let ended = Arc::new(Notify::new());
    let (commands, sink) =
        (CommandSource(pool.connect()), EventSink { pool: pool.clone(), _ended: NotifyOnDrop(ended.clone()) });
    let run = store.run_concurrent(async |accessor| -> wasmtime::Result<()> {
        let generate = component.weir_stream_generate();
        let models = generate.call_models(accessor).await?;
        pool.set_info(models).map_err(wasmtime::Error::msg)?;
        let commands = accessor.with(|mut access| StreamReader::new(&mut access, commands))?;
        let events = generate.call_run(accessor, commands).await?;
        accessor.with(|mut access| events.pipe(&mut access, sink))?;
        pool.set_ready();
        ended.notified().await;
        Ok(())
    });
    // The hang is detected outside of the store, since a guest that never yields blocks every future inside of it.
    tokio::select! {
        result = source.host().run_guest(run) => result??,
        () = hang(pool, hang_timeout) => {
            let text = format!("it computed nothing for {} ms though it had requests", hang_timeout.as_millis());
            return Err(wasmtime::Error::msg(text));
        }
    }
    Err(wasmtime::Error::msg("the generate component ended its stream"))
}

/// Resolves when the instance has had requests and made no progress for `timeout`.
async fn hang(pool: &ModelPool, timeout: Duration) {
    let interval = (timeout / 8).clamp(Duration::from_millis(10), Duration::from_secs(1));
    let (mut previous, mut since) = (pool.progress(), Instant::now());
    loop {
        tokio::time::sleep(interval).await;
        let progress = pool.progress();
        if progress != previous || !pool.is_busy() {
            (previous, since) = (progress, Instant::now());
        } else if since.elapsed() >= timeout {
            return;
        }
    }
}

/// Most commands written to an instance at once.
const TRANSFER_MAX: usize = 64;

/// Writes the commands of all callers to an instance.
struct CommandSource(mpsc::UnboundedReceiver<Command>);

impl<D> StreamProducer<D> for CommandSource {
    type Item = Command;
    type Buffer = VecBuffer<Command>;

    fn poll_produce<'a>(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut store: StoreContextMut<'a, D>,
        mut destination: Destination<'a, Command, VecBuffer<Command>>,
        finish: bool,
    ) -> Poll<wasmtime::Result<StreamResult>> {
        let room = destination.remaining(&mut store).unwrap_or(TRANSFER_MAX).min(TRANSFER_MAX);
        if room == 0 {
            return Poll::Ready(Ok(StreamResult::Completed));
        }
        let mut commands = Vec::with_capacity(room);
        match self.0.poll_recv_many(cx, &mut commands, room) {
            Poll::Ready(0) => Poll::Ready(Ok(StreamResult::Dropped)),
            Poll::Ready(_) => {
                destination.set_buffer(commands.into());
                Poll::Ready(Ok(StreamResult::Completed))
            }
            Poll::Pending if finish => Poll::Ready(Ok(StreamResult::Cancelled)),
            Poll::Pending => Poll::Pending,
        }
    }
}

/// Sends the events of an instance to their callers.
struct EventSink {
    pool: Arc<ModelPool>,
    _ended: NotifyOnDrop,
}

impl<D> StreamConsumer<D> for EventSink {
    type Item = Event;

    fn poll_consume(
        self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
        mut store: StoreContextMut<D>,
        mut source: Source<'_, Event>,
        _finish: bool,
    ) -> Poll<wasmtime::Result<StreamResult>> {
        let mut events = Vec::with_capacity(source.remaining(&mut store));
        source.read(&mut store, &mut events)?;
        self.pool.count_progress();
        self.pool.deliver(events);
        Poll::Ready(Ok(StreamResult::Completed))
    }
}
