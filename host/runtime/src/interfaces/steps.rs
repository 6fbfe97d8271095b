//! `weir:stream/steps` for gateway instances, over the steps that are components.

use wasmtime::component::{Accessor, HasSelf};

use crate::bindings::gateway::weir::stream::step_types::{self, Failure};
use crate::bindings::gateway::weir::stream::steps::{Host, HostWithStore, Limits};
use crate::components::gateway::state::GatewayState;
use weir_wasi::StoreData;

impl step_types::Host for GatewayState {}

impl Host for GatewayState {}

impl HostWithStore<StoreData> for HasSelf<GatewayState> {
    async fn run(
        accessor: &Accessor<StoreData, Self>,
        name: String,
        input: String,
        config: String,
        limits: Limits,
    ) -> wasmtime::Result<Result<String, Failure>> {
        let steps = accessor.with(|mut access| access.get().steps.clone());
        Ok(steps.run(name, input, config, limits).await)
    }
}
