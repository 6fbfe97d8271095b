//! x
use crate::args::Args;
use crate::house::House;
use anyhow::Result;
pub(crate) const USAGE: &str = "";
pub(crate) fn task(_house: &House, args: Args) -> Result<()> {
    args.finish()
}
