//! The other hosts, as programs that are installed under target.

use std::path::PathBuf;
use std::process::Command;

/// The programs, for the variables that the tests read.
#[derive(Debug)]
pub(crate) struct Programs {
    pub(super) wash: PathBuf,
    pub(super) node: PathBuf,
    /// The folder of `node_modules` with jco and its shims.
    pub(super) packages: PathBuf,
    /// A registry of OCI artifacts.
    pub(super) registry: PathBuf,
}

impl Programs {
    /// Sets the variables of the tests.
    pub(crate) fn set(&self, command: &mut Command) {
        command.env("WEIR_TEST_WASH", &self.wash).env("WEIR_TEST_NODE24", &self.node);
        command.env("WEIR_TEST_JCO", &self.packages).env("WEIR_TEST_REGISTRY", &self.registry);
    }
}
