//! Adapter components: they read the records of a driver and write results. Each call has an instance, a store and a
//! task of its own, so that a trap ends only the adapter that trapped.

use std::path::Path;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::{Either, select};
use tokio::sync::{Notify, mpsc};
use tokio_util::task::AbortOnDropHandle;
use wasmtime::StoreContextMut;
use wasmtime::component::{
    Accessor, Component, Destination, HasSelf, Source, StreamConsumer, StreamProducer, StreamReader, StreamResult,
    VecBuffer,
};
use wasmtime_wasi::WasiCtx;
use weir_core::adapter as core;
use weir_wasi::StoreData;

use crate::bindings::adapter::AdapterExportsPre;
use crate::bindings::adapter::exports::weir::stream::adapter as wire;
use crate::bindings::gateway::weir::stream::infer;
use crate::components::code::{self, ComponentError};
use crate::components::ended::NotifyOnDrop;
use crate::components::engine::Host;
use crate::components::guest_log::GuestLog;
use crate::components::heartbeat::{beat, silence};
use crate::components::limits::limits;
use crate::inference::call::CallOpener;
use crate::start::{Builtin, component_source};

/// Most lists of records, and of results, that wait for their reader. A list is one message, since each message wakes its reader.
const LISTS_MAX: usize = 4;
/// Most results of a list.
const RESULTS_MAX: usize = 256;

/// Opens calls of adapter components; cheap to clone.
#[derive(Clone)]
pub struct Adapters {
    host: Host,
    calls: CallOpener,
    builtin: Option<&'static [u8]>,
    memory_bytes_max: u64,
    hang_timeout: Duration,
}

/// Why a call of an adapter component cannot start.
#[derive(Debug, thiserror::Error)]
pub enum AdapterError {
    /// The component cannot be used.
    #[error(transparent)]
    Component(#[from] ComponentError),
    /// The component imports an interface that this host does not provide, or lacks an export.
    #[error("the adapter component does not fit this host: {0:#}")]
    Link(wasmtime::Error),
    /// The component refuses its configuration.
    #[error("the configuration of the adapter is invalid: {0}")]
    Config(String),
    /// The instance ended before it accepted or refused its configuration.
    #[error("the adapter component has ended: {0}")]
    Ended(String),
}

/// A linked adapter component, from which instances are created; cheap to clone.
#[derive(Clone)]
pub struct AdapterComponent {
    pre: AdapterExportsPre<StoreData>,
    adapters: Adapters,
}

/// A call of an adapter component.
pub struct AdapterCall {
    /// The sender of records; dropping it ends the stream of records.
    pub records: mpsc::Sender<Vec<core::SourceRecord>>,
    /// The results. The stream ends when every record is complete, or when the instance is lost.
    pub results: mpsc::Receiver<Vec<core::ResultRecord>>,
    /// Dropping it ends the instance.
    pub instance: AdapterInstance,
}

/// The instance of a call.
pub struct AdapterInstance(AbortOnDropHandle<Result<(), String>>);

impl AdapterInstance {
    /// Waits until the instance has ended, which it does after its results. Returns why the results ended early; `None`
    /// if the component ended them.
    pub async fn ended(self) -> Option<String> {
        match self.0.await {
            Ok(ended) => ended.err(),
            Err(error) => Some(error.to_string()),
        }
    }
}

impl Adapters {
    /// An instance is lost when it does not yield to the host for `hang_timeout`.
    pub(crate) fn new(
        host: &Host,
        calls: &CallOpener,
        builtin: Builtin,
        memory_bytes_max: u64,
        hang_timeout: Duration,
    ) -> Self {
        Self { host: host.clone(), calls: calls.clone(), builtin: builtin.adapter, memory_bytes_max, hang_timeout }
    }

    /// Loads and links the component of a file, or the built-in one if the path is empty.
    ///
    /// # Errors
    ///
    /// [`AdapterError::Component`], [`AdapterError::Link`]
    pub fn load(&self, file: &Path) -> Result<AdapterComponent, AdapterError> {
        let source = component_source("adapter", file, self.builtin)?;
        let component = code::load(self.host.engine(), &source)?;
        let pre = self.link(&component).map_err(AdapterError::Link)?;
        Ok(AdapterComponent { pre, adapters: self.clone() })
    }

    fn link(&self, component: &Component) -> wasmtime::Result<AdapterExportsPre<StoreData>> {
        let mut linker = weir_wasi::linker(self.host.engine())?;
        infer::add_to_linker::<_, HasSelf<AdapterState>>(&mut linker, StoreData::state)?;
        AdapterExportsPre::new(linker.instantiate_pre(component)?)
    }
}

impl AdapterComponent {
    /// Starts an instance with a configuration, for the adapter `name`.
    ///
    /// # Errors
    ///
    /// [`AdapterError::Config`], [`AdapterError::Ended`]
    pub async fn open(&self, name: &str, config: String) -> Result<AdapterCall, AdapterError> {
        let (records, from_driver) = mpsc::channel(LISTS_MAX);
        let (to_driver, results) = mpsc::channel(LISTS_MAX);
        let (start_sender, start) = tokio::sync::oneshot::channel();
        let run = run(self.clone(), name.to_owned(), config, from_driver, to_driver, start_sender);
        let task = AbortOnDropHandle::new(tokio::spawn(async move { run.await.map_err(|error| format!("{error:#}")) }));
        match start.await {
            Ok(Ok(())) => Ok(AdapterCall { records, results, instance: AdapterInstance(task) }),
            Ok(Err(reason)) => Err(AdapterError::Config(reason)),
            Err(_) => {
                let reason = match task.await {
                    Ok(ended) => ended.err().unwrap_or_else(|| "it gave no answer".to_owned()),
                    Err(error) => error.to_string(),
                };
                Err(AdapterError::Ended(reason))
            }
        }
    }
}

/// One instance from its start to its end.
async fn run(
    component: AdapterComponent,
    name: String,
    config: String,
    records: mpsc::Receiver<Vec<core::SourceRecord>>,
    results: mpsc::Sender<Vec<core::ResultRecord>>,
    start_sender: tokio::sync::oneshot::Sender<Result<(), String>>,
) -> wasmtime::Result<()> {
    let adapters = &component.adapters;
    let mut wasi = WasiCtx::builder();
    wasi.stderr(GuestLog::adapter(&name));
    let state = AdapterState { calls: adapters.calls.clone() };
    let data = StoreData::new(wasi.build(), limits(adapters.memory_bytes_max), state);
    let mut store = weir_wasi::store(adapters.host.engine(), data);
    let host = &adapters.host;
    let instance = host.run_guest(component.pre.instantiate_async(&mut store)).await?;
    let ended = Arc::new(Notify::new());
    let call = async |accessor: &Accessor<StoreData>| {
        let records = accessor.with(|access| StreamReader::new(access, Records(records)))?;
        let result = instance.weir_stream_adapter().call_run(accessor, config, records).await?;
        let outcomes = match result {
            Ok(outcomes) => outcomes,
            Err(wire::StartFailure::InvalidConfig(reason)) => {
                let _ = start_sender.send(Err(reason));
                return wasmtime::Result::Ok(());
            }
        };
        let consumer = Results { results: Some(results), pending: None, _ended: NotifyOnDrop(ended.clone()) };
        accessor.with(|mut access| outcomes.pipe(&mut access, consumer))?;
        // The caller may have dropped its future.
        let _ = start_sender.send(Ok(()));
        ended.notified().await;
        Ok(())
    };
    let heartbeats = AtomicU64::new(0);
    let run = store.run_concurrent(async |accessor: &Accessor<StoreData>| {
        let call = pin!(call(accessor));
        match select(call, pin!(beat(&heartbeats, adapters.hang_timeout))).await {
            Either::Left((result, _)) => result,
            Either::Right((never, _)) => match never {},
        }
    });
    tokio::select! {
        result = host.run_guest(run) => result?,
        () = silence(&heartbeats, adapters.hang_timeout) => {
            let waited_ms = adapters.hang_timeout.as_millis();
            Err(wasmtime::format_err!("it has computed for {waited_ms} ms without yielding"))
        }
    }
}

/// The state of an adapter instance.
pub(crate) struct AdapterState {
    pub(crate) calls: CallOpener,
}

/// Writes the records of a driver to the instance.
struct Records(mpsc::Receiver<Vec<core::SourceRecord>>);

impl<D> StreamProducer<D> for Records {
    type Item = wire::SourceRecord;
    type Buffer = VecBuffer<wire::SourceRecord>;

    fn poll_produce<'a>(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut store: StoreContextMut<'a, D>,
        mut destination: Destination<'a, wire::SourceRecord, VecBuffer<wire::SourceRecord>>,
        finish: bool,
    ) -> Poll<wasmtime::Result<StreamResult>> {
        if destination.remaining(&mut store) == Some(0) {
            return Poll::Ready(Ok(StreamResult::Completed));
        }
        match self.0.poll_recv(cx) {
            Poll::Ready(None) => Poll::Ready(Ok(StreamResult::Dropped)),
            // What the instance does not read at once remains in the buffer.
            Poll::Ready(Some(records)) => {
                destination.set_buffer(records.into_iter().map(source_record).collect::<Vec<_>>().into());
                Poll::Ready(Ok(StreamResult::Completed))
            }
            Poll::Pending if finish => Poll::Ready(Ok(StreamResult::Cancelled)),
            Poll::Pending => Poll::Pending,
        }
    }
}

/// Sends the results of the instance to the driver.
struct Results {
    results: Option<mpsc::Sender<Vec<core::ResultRecord>>>,
    pending: Option<Pending>,
    _ended: NotifyOnDrop,
}

/// A future that resolves when there is room for a list of results.
type Pending = Pin<Box<dyn Future<Output = Result<mpsc::OwnedPermit<Vec<core::ResultRecord>>, ()>> + Send>>;

impl<D> StreamConsumer<D> for Results {
    type Item = wire::ResultRecord;

    fn poll_consume(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut store: StoreContextMut<D>,
        mut source: Source<'_, wire::ResultRecord>,
        finish: bool,
    ) -> Poll<wasmtime::Result<StreamResult>> {
        let offered = source.remaining(&mut store);
        if offered == 0 {
            return Poll::Ready(Ok(StreamResult::Completed));
        }
        let Some(results) = self.results.clone() else { return Poll::Ready(Ok(StreamResult::Dropped)) };
        // A permit is acquired before results are read: results without room stay with the instance.
        let pending = self.pending.get_or_insert_with(|| {
            let results = results.clone();
            Box::pin(async move { results.reserve_owned().await.map_err(|_| ()) })
        });
        let permit = match pending.as_mut().poll(cx) {
            Poll::Ready(Ok(permit)) => permit,
            Poll::Ready(Err(())) => {
                self.results = None;
                return Poll::Ready(Ok(StreamResult::Dropped));
            }
            Poll::Pending if finish => {
                self.pending = None;
                return Poll::Ready(Ok(StreamResult::Cancelled));
            }
            Poll::Pending => return Poll::Pending,
        };
        self.pending = None;
        let mut read = Vec::with_capacity(offered.min(RESULTS_MAX));
        source.read(&mut store, &mut read)?;
        permit.send(read.into_iter().map(result_record).collect());
        Poll::Ready(Ok(StreamResult::Completed))
    }
}

fn source_record(record: core::SourceRecord) -> wire::SourceRecord {
    let core::SourceRecord { payload, key, headers, origin, position } = record;
    let header = |core::Header { name, value }| wire::Header { name, value };
    wire::SourceRecord {
        payload,
        key,
        headers: headers.into_iter().map(header).collect(),
        origin,
        position: wire::Position { partition: position.partition, offset: position.offset },
    }
}

fn result_record(record: wire::ResultRecord) -> core::ResultRecord {
    let wire::ResultRecord { payload, key, headers, destination, origin, completes } = record;
    let header = |wire::Header { name, value }| core::Header { name, value };
    let position = |position: wire::Position| core::Position { partition: position.partition, offset: position.offset };
    core::ResultRecord {
        payload,
        key,
        headers: headers.into_iter().map(header).collect(),
        destination: match destination {
            wire::Destination::Output => core::Destination::Output,
            wire::Destination::Error => core::Destination::Error,
            wire::Destination::None => core::Destination::None,
        },
        origin,
        completes: completes.into_iter().map(position).collect(),
    }
}
