//! Steps that the operator provides as components; `weir:stream/steps` runs them.

use weir_core::pipelines::{Json, StepFailure};

use crate::platform::{
    bindings::weir::stream::steps::{self, Limits},
    turns,
};

/// Longest message of a failure, in bytes.
const MESSAGE_BYTES_MAX: usize = 1024;

/// Runs a component once. Its output must be JSON of at most `bytes_max` bytes; it is read in a turn of the user.
pub(super) async fn run(
    name: &str,
    input: &Json,
    config: &Json,
    limits: Limits,
    bytes_max: usize,
    user: &str,
) -> Result<Json, StepFailure> {
    let (input, config) = (input.as_str().to_owned(), config.as_str().to_owned());
    match steps::run(name.to_owned(), input, config, limits).await {
        Ok(output) if output.len() > bytes_max => {
            let message = format!("the output of the step has {} bytes, and may have {bytes_max}", output.len());
            Err(StepFailure::last("output_too_large", message))
        }
        Ok(output) => turns::read_json(user, output.as_bytes()).await.map_err(|error| {
            StepFailure::last("step_output", cut(&format!("the output of the step is not JSON: {error}")))
        }),
        Err(failure) => {
            let code = if is_code(&failure.code) { &failure.code } else { "step_failed" };
            let message = cut(&failure.message);
            Err(match failure.retryable {
                true => StepFailure::passing(code, message),
                false => StepFailure::last(code, message),
            })
        }
    }
}

fn is_code(code: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    (1..=64).contains(&code.len()) && code.bytes().all(fits)
}

fn cut(message: &str) -> String {
    message[..message.floor_char_boundary(MESSAGE_BYTES_MAX)].to_owned()
}
