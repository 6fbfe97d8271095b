//! `cargo xtask conformance`: the whole Autobahn TestSuite against the WebSockets of the server and of feeds.

use std::io::{BufReader, Read as _};
use std::process::Stdio;

use anyhow::{Context, Result, bail, ensure};

use crate::args::Args;
use crate::house::House;
use crate::sh::Process;
use crate::{python, sh};

pub(crate) const USAGE: &str = "\
Runs the 517 cases of the Autobahn TestSuite (the package kosoku) against host/websocket, as server and as client, with and without context
takeover. Each must be OK, or INFORMATIONAL where the specification leaves the behaviour open. It takes about ten minutes for each of the
four; a short part is in `cargo xtask test`.

Options:
  --role ROLE          server or client only
  --compression MODE   message (no context takeover) or connection only
  --case PATTERN       these cases only, such as 9.*";

/// Parallel cases against a server.
const PARALLELISM: &str = "4";

pub(crate) fn task(house: &House, mut args: Args) -> Result<()> {
    let (role, compression, case) = (args.value("--role")?, args.value("--compression")?, args.value("--case")?);
    args.finish()?;
    let one_of = |flag: &str, value: Option<String>, all: [&'static str; 2]| match value {
        None => Ok(all.to_vec()),
        Some(value) => match all.iter().find(|name| **name == value) {
            Some(name) => Ok(vec![*name]),
            None => bail!("{flag} {value}: use {} or {}", all[0], all[1]),
        },
    };
    let roles = one_of("--role", role, ["server", "client"])?;
    let compressions = one_of("--compression", compression, ["message", "connection"])?;
    let python = python::ensure(house)?.python;
    let mut build = sh::cargo(house);
    build.args(["build", "--release", "-p", "weir-websocket", "--example", "conformance"]);
    ensure!(build.status()?.success(), "the peer cannot be built");
    for role in &roles {
        for compression in &compressions {
            println!("{role}, compression by {compression}");
            run(house, &python, role, compression, case.as_deref())?;
        }
    }
    Ok(())
}

fn run(house: &House, python: &std::path::Path, role: &str, compression: &str, case: Option<&str>) -> Result<()> {
    let window_bits = if compression == "message" { "12" } else { "15" };
    let peer = |role: &str, address: &str| {
        let mut command = sh::program(house, house.target.join("release/examples/conformance"));
        command.args([role, address, compression, window_bits]).stdin(Stdio::null());
        command
    };
    let mut suite = sh::program(house, python);
    suite.arg(house.root.join("tests/websocket/conformance.py")).stdin(Stdio::null());
    if role == "server" {
        let mut server = Process(peer(role, "127.0.0.1:0").stdout(Stdio::piped()).spawn()?);
        let address = address(&mut BufReader::new(server.0.stdout.take().context("stdout")?))?;
        let status = suite.args([role, &address, PARALLELISM]).args(case).status()?;
        ensure!(status.success(), "cases of the server fail");
        return Ok(());
    }
    let mut suite = Process(suite.arg(role).args(case).stdout(Stdio::piped()).spawn()?);
    let mut output = BufReader::new(suite.0.stdout.take().context("stdout")?);
    let address = address(&mut output)?;
    ensure!(peer(role, &address).status()?.success(), "the client has failed");
    let mut report = String::new();
    output.read_to_string(&mut report)?;
    print!("{report}");
    ensure!(suite.0.wait()?.success(), "cases of the client fail");
    Ok(())
}

/// The address in the first line of an output.
fn address(output: &mut impl std::io::BufRead) -> Result<String> {
    let mut line = String::new();
    output.read_line(&mut line)?;
    let address = line.trim().strip_prefix("listening on ");
    address.map(str::to_owned).with_context(|| format!("`{line}` is no address"))
}
