//! `cargo xtask build`.

use anyhow::{Result, bail};

use crate::args::Args;
use crate::house::{GUESTS, House, PORTABLE_PARTS};
use crate::{build, portable, setup};

pub(crate) const USAGE: &str = "\
Builds target/components/NAME.wasm, NAME.cwasm.zst (precompiled for this machine, compressed) and target/release/weir, with the bundled
models beside it (target/release/models).

Options:
  --components   stop after the components' .wasm files
  --guests       also build the guest programs of the tests
  --portable     compose the components for other WASI 0.3 hosts, and stop: target/components/weir.wasm (everything inside;
                 models in /models), weir-thin.wasm (asks another weir), weir-open.wasm (infer is left open), and
                 weir-keyvalue.wasm and weir-keyvalue-draft2.wasm (as weir.wasm, with the store in wasi:keyvalue)
  --with-models NAME[,NAME…]
                 with --portable: also weir-with-models.wasm, which contains these models of the shipped ones and needs no
                 folder; needs Python, for the wheel of wasmtime";

pub(crate) fn task(house: &House, mut args: Args) -> Result<()> {
    let only_components = args.flag("--components");
    let guests = args.flag("--guests");
    let is_portable = args.flag("--portable");
    let models = args.value("--with-models")?;
    args.finish()?;
    if models.is_some() && !is_portable {
        bail!("`--with-models` needs `--portable`");
    }
    setup::ensure(house)?;
    let (guests, parts) = (guests.then_some(GUESTS), is_portable.then_some(PORTABLE_PARTS));
    build::components(house, &guests.into_iter().chain(parts).collect::<Vec<_>>())?;
    if is_portable {
        portable::compose(house)?;
    }
    if let Some(models) = models {
        portable::store_models(house, &models.split(',').map(str::to_owned).collect::<Vec<_>>())?;
    }
    if only_components || is_portable {
        return Ok(());
    }
    build::weir(house)
}
