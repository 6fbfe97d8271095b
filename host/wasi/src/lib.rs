//! WASI for component instances: the data of a store, and linkers for it.
//!
//! All kinds of instances have one type of store data, [`StoreData`]. wasmtime's bindings of WASI are generic over this
//! type, so each further type would compile all of WASI again; here they are compiled once, in a crate that seldom
//! changes. What only one kind of instance has is its state, [`StoreData::state`].

use std::any::{Any, type_name};

use wasmtime::component::{Linker, ResourceTable};
use wasmtime::{Engine, ResourceLimiter, Store};
use wasmtime_wasi::{WasiCtx, WasiCtxView, WasiView};
use wasmtime_wasi_http::{Error, RequestOptions, WasiBody, WasiHttpCtx, WasiHttpCtxView, WasiHttpHooks, WasiHttpView};

/// The data of a component instance's store.
pub struct StoreData {
    table: ResourceTable,
    wasi: WasiCtx,
    http: WasiHttpCtx,
    requests: Box<dyn WasiHttpHooks>,
    limiter: Box<dyn ResourceLimiter + Send + Sync>,
    state: Box<dyn Any + Send>,
}

impl StoreData {
    /// The data of an instance that sends no HTTP requests. `state` is what only its kind of instance has.
    pub fn new(wasi: WasiCtx, limiter: impl ResourceLimiter + Sync + 'static, state: impl Any + Send) -> Self {
        Self {
            table: ResourceTable::new(),
            wasi,
            http: WasiHttpCtx::new(),
            requests: Box::new(NoRequests),
            limiter: Box::new(limiter),
            state: Box::new(state),
        }
    }

    /// Lets `requests` send the HTTP requests of the instance.
    #[must_use]
    pub fn with_requests(mut self, requests: impl WasiHttpHooks + 'static) -> Self {
        self.requests = Box::new(requests);
        self
    }

    /// The state of the instance.
    ///
    /// # Panics
    ///
    /// If the store was created with a state of another type than its linker is for: a fault of the host.
    pub fn state<S: Any>(&mut self) -> &mut S {
        match self.state.downcast_mut() {
            Some(state) => state,
            None => panic!("the state of the store is not {}", type_name::<S>()),
        }
    }
}

impl WasiView for StoreData {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView { ctx: &mut self.wasi, table: &mut self.table }
    }
}

impl WasiHttpView for StoreData {
    fn http(&mut self) -> WasiHttpCtxView<'_> {
        WasiHttpCtxView { ctx: &mut self.http, table: &mut self.table, hooks: &mut *self.requests }
    }
}

/// A store for one instance. A guest in it yields to the host at every tick of the engine's epoch.
pub fn store(engine: &Engine, data: StoreData) -> Store<StoreData> {
    let mut store = Store::new(engine, data);
    store.limiter(|data| &mut *data.limiter);
    store.set_epoch_deadline(1);
    store.epoch_deadline_async_yield_and_update(1);
    store
}

/// A linker with WASI 0.2 and 0.3, without HTTP.
///
/// # Errors
///
/// Those of wasmtime, if two interfaces have one name: a fault of the host.
pub fn linker(engine: &Engine) -> wasmtime::Result<Linker<StoreData>> {
    let mut linker = Linker::new(engine);
    wasmtime_wasi::p2::add_to_linker_async(&mut linker)?;
    wasmtime_wasi::p3::add_to_linker(&mut linker)?;
    Ok(linker)
}

/// A linker with WASI 0.2, 0.3 and `wasi:http` 0.3.
///
/// # Errors
///
/// As for [`linker`].
pub fn linker_with_http(engine: &Engine) -> wasmtime::Result<Linker<StoreData>> {
    let mut linker = linker(engine)?;
    wasmtime_wasi_http::p3::add_to_linker(&mut linker)?;
    Ok(linker)
}

/// Denies every request.
struct NoRequests;

type SendResult = (http::Response<WasiBody>, Box<dyn Future<Output = Result<(), Error>> + Send>);

impl WasiHttpHooks for NoRequests {
    fn send_request(
        &mut self,
        _: http::Request<WasiBody>,
        _: Option<RequestOptions>,
        _: Box<dyn Future<Output = Result<(), Error>> + Send>,
    ) -> Box<dyn Future<Output = Result<SendResult, Error>> + Send> {
        Box::new(std::future::ready(Err(Error::HttpRequestDenied)))
    }
}
