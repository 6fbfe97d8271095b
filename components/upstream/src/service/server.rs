//! The server of the component, and the state of the requests to it.

use std::cell::RefCell;

use weir_core::generation::upstream::Upstream;

use crate::{bindings::wasi::clocks::monotonic_clock, settings::Settings};

/// The server, and the state of the requests to it.
pub(super) struct Server {
    pub(super) settings: Settings,
    pub(super) upstream: RefCell<Upstream>,
}

impl Server {
    pub(super) fn open() -> Result<Self, String> {
        let settings =
            Settings::read(|name| std::env::var(name).ok()).inspect_err(|error| eprintln!("error: {error}"))?;
        let upstream = RefCell::new(Upstream::new(settings.config.clone(), monotonic_clock::now()));
        Ok(Self { settings, upstream })
    }
}
