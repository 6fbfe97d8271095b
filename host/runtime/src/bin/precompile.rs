//! Compiles a component ahead of time: `weir-precompile IN.wasm OUT.cwasm.zst`. The build embeds the result in `weir`.

use std::error::Error;
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    let [input, output] = arguments.as_slice() else {
        eprintln!("usage: weir-precompile IN.wasm OUT.cwasm.zst");
        return ExitCode::from(2);
    };
    match weir_runtime::components::code::precompile(input.as_ref(), output.as_ref()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprint!("weir-precompile: {error}");
            let mut cause = error.source();
            while let Some(error) = cause {
                eprint!(": {error}");
                cause = error.source();
            }
            eprintln!();
            ExitCode::FAILURE
        }
    }
}
