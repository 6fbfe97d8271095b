//! `cargo xtask kafka-tls`: the tests of Kafka with TLS and SCRAM, with a `weir` that has OpenSSL.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};

use crate::args::Args;
use crate::files::on_path;
use crate::house::{GUESTS, House};
use crate::ui::{Step, finish};
use crate::{build, python, setup, sh};

pub(crate) const USAGE: &str = "\
Builds `weir` with the feature kafka-tls into target/xtask/kafka-tls, and tests TLS and SCRAM of Kafka with it. OpenSSL and librdkafka are
built from source once, which takes minutes and needs perl; so it is not a part of `cargo xtask test`.";

/// The variable in which tests find the program.
const VARIABLE: &str = "WEIR_TEST_KAFKA_TLS";
/// A part of the names of the end-to-end tests that need it.
pub(crate) const TESTS: &str = "kafka_tls::";
/// What the build of OpenSSL needs.
const PERL: &str = "perl";

pub(crate) fn task(house: &House, args: Args) -> Result<()> {
    args.finish()?;
    ensure!(on_path(&[PERL]).is_some(), "`{PERL}` is not on the PATH; the build of OpenSSL needs it");
    setup::ensure(house)?;
    build::components(house, &[GUESTS])?;
    build::weir(house)?;
    let program = build_with_tls(house);
    // The other program is in its place again, also after a failure.
    build::weir(house)?;
    let (program, python) = (program?, python::ensure(house)?);
    let mut tests = build::host_cargo(house, "test");
    tests.args(["--test", "adapters", "--", TESTS]).env("WEIR_COMPONENTS_DIR", house.components());
    tests.env("WEIR_TEST_PYTHON", &python.python).env(VARIABLE, &program);
    ensure!(tests.status().context("cannot start the tests")?.success(), "the tests of Kafka with TLS fail");
    Ok(())
}

/// Builds `weir` with the feature, in the target folder of the other one, so that only what depends on it is built; copies it to its own
/// folder.
fn build_with_tls(house: &House) -> Result<PathBuf> {
    let folder = house.keep().join("kafka-tls");
    let program = folder.join("weir");
    let mut step = Step::begin("kafka-tls", "builds weir with OpenSSL");
    let mut command = build::host_cargo(house, "build");
    command.args(["--features", "weir/kafka-tls", "--bin", "weir"]);
    let built = sh::check(&mut step, &mut command).and_then(|_| {
        fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
        // A process may still run the file: its content is not replaced.
        if program.exists() {
            fs::remove_file(&program).with_context(|| format!("cannot remove {}", program.display()))?;
        }
        fs::copy(house.weir(), &program).with_context(|| format!("cannot write {}", program.display()))?;
        Ok("target/xtask/kafka-tls/weir".to_owned())
    });
    finish(step, built)?;
    Ok(program)
}
