//! `weir:stream/state` for gateway instances: values and leases, over the channel store.

use wasmtime::component::{Accessor, HasSelf};
use weir_events::WriteContext;

use crate::bindings::gateway::weir::stream::events::{Failure, Fence};
use crate::bindings::gateway::weir::stream::state::{Acquisition, Host, HostWithStore};
use crate::components::gateway::state::GatewayState;
use crate::interfaces::convert::{failure, fence, name};
use crate::interfaces::events::store;
use weir_wasi::StoreData;

impl Host for GatewayState {}

impl HostWithStore<StoreData> for HasSelf<GatewayState> {
    async fn put(
        accessor: &Accessor<StoreData, Self>,
        key: String,
        value: Vec<u8>,
        ttl_ms: Option<u64>,
        lease: Option<Fence>,
        user: Option<String>,
    ) -> wasmtime::Result<Result<(), Failure>> {
        let store = store(accessor);
        let put = async {
            let (name, fence) = (name(&key)?, lease.map(fence).transpose()?);
            let write = WriteContext { fence: fence.as_ref(), user: user.as_deref() };
            store.put_as(&name, value, ttl_ms, write).await.map_err(failure)
        };
        Ok(put.await)
    }

    async fn get(
        accessor: &Accessor<StoreData, Self>,
        key: String,
    ) -> wasmtime::Result<Result<Option<Vec<u8>>, Failure>> {
        let store = store(accessor);
        Ok(async { store.get(&name(&key)?).await.map_err(failure) }.await)
    }

    async fn delete(
        accessor: &Accessor<StoreData, Self>,
        key: String,
        lease: Option<Fence>,
    ) -> wasmtime::Result<Result<(), Failure>> {
        let store = store(accessor);
        let delete = async {
            let (name, fence) = (name(&key)?, lease.map(fence).transpose()?);
            store.delete_fenced(&name, fence.as_ref()).await.map_err(failure)
        };
        Ok(delete.await)
    }

    async fn keys(
        accessor: &Accessor<StoreData, Self>,
        kind: String,
        after: String,
        limit: u32,
    ) -> wasmtime::Result<Result<Vec<String>, Failure>> {
        Ok(store(accessor).keys(&kind, &after, limit as usize).await.map_err(failure))
    }

    async fn count(accessor: &Accessor<StoreData, Self>, kind: String) -> wasmtime::Result<Result<u64, Failure>> {
        Ok(store(accessor).count(&kind).await.map(|count| count as u64).map_err(failure))
    }

    async fn acquire(
        accessor: &Accessor<StoreData, Self>,
        key: String,
        owner: String,
        ttl_ms: u64,
    ) -> wasmtime::Result<Result<Acquisition, Failure>> {
        let store = store(accessor);
        let acquired = async { store.acquire(&name(&key)?, &owner, ttl_ms).await.map_err(failure) }.await;
        Ok(acquired.map(|acquired| match acquired {
            weir_events::Acquisition::Acquired(token) => Acquisition::Acquired(token),
            weir_events::Acquisition::Held { remaining_ms } => Acquisition::Held(remaining_ms),
        }))
    }

    async fn renew(
        accessor: &Accessor<StoreData, Self>,
        lease: Fence,
        ttl_ms: u64,
    ) -> wasmtime::Result<Result<(), Failure>> {
        let store = store(accessor);
        Ok(async { store.renew(&fence(lease)?, ttl_ms).await.map_err(failure) }.await)
    }

    async fn release(accessor: &Accessor<StoreData, Self>, lease: Fence) -> wasmtime::Result<Result<(), Failure>> {
        let store = store(accessor);
        Ok(async { store.release(&fence(lease)?).await.map_err(failure) }.await)
    }
}
