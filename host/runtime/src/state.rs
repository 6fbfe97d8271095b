//! What is kept between events, as gateway instances see it: `weir:stream/state` over [`weir_events::Store`].

use wasmtime::component::{Accessor, HasSelf};

use crate::bindings::gateway::weir::stream::events::Failure;
use crate::bindings::gateway::weir::stream::state::{Host, HostWithStore};
use crate::events::{failure, name, no_name, store};
use crate::gateway::GatewayState;

impl Host for GatewayState {}

impl HostWithStore<GatewayState> for HasSelf<GatewayState> {
    async fn put(
        accessor: &Accessor<GatewayState, Self>,
        key: String,
        value: Vec<u8>,
        ttl_ms: Option<u64>,
    ) -> wasmtime::Result<Result<(), Failure>> {
        let store = store(accessor);
        let Some(name) = name(&key) else { return Ok(Err(no_name(&key))) };
        Ok(store.put(&name, value, ttl_ms).await.map_err(failure))
    }

    async fn get(
        accessor: &Accessor<GatewayState, Self>,
        key: String,
    ) -> wasmtime::Result<Result<Option<Vec<u8>>, Failure>> {
        let store = store(accessor);
        let Some(name) = name(&key) else { return Ok(Err(no_name(&key))) };
        Ok(store.get(&name).await.map_err(failure))
    }

    async fn delete(accessor: &Accessor<GatewayState, Self>, key: String) -> wasmtime::Result<Result<(), Failure>> {
        let store = store(accessor);
        let Some(name) = name(&key) else { return Ok(Err(no_name(&key))) };
        Ok(store.delete(&name).await.map_err(failure))
    }

    async fn keys(
        accessor: &Accessor<GatewayState, Self>,
        kind: String,
        after: String,
        limit: u32,
    ) -> wasmtime::Result<Result<Vec<String>, Failure>> {
        Ok(store(accessor).keys(&kind, &after, limit as usize).await.map_err(failure))
    }
}
