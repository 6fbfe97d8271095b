//! `cargo xtask bench fanout`: thousands of subscribers, compared with nginx and nchan, by `weir-bench fanout` (tests/bench).

use anyhow::Result;

use super::programs;
use crate::args::Args;
use crate::house::House;
use crate::nginx;

/// Builds `weir` and the load generator, fetches nginx, and runs the measurement.
pub(super) fn task(house: &House, args: Args) -> Result<()> {
    let (mut args, more) = args.split();
    let (quick, as_built) = (args.flag("--quick"), args.flag("--as-built"));
    args.finish()?;
    let program = programs::build_programs(house, as_built)?;
    let nginx = nginx::folder(house)?;
    let mut words = vec!["fanout".to_owned()];
    for (name, path) in [
        ("--root", house.root.clone()),
        ("--weir", house.weir()),
        ("--work", house.target.join("bench")),
        ("--to", house.root.join("tests/bench")),
        ("--nginx", nginx),
    ] {
        words.extend([name.to_owned(), path.display().to_string()]);
    }
    if quick {
        words.push("--quick".to_owned());
    }
    words.extend(more);
    super::compare::start(house, &program, &words)
}
