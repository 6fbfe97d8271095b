//! `weir:stream/infer` by another `weir`, over `wasi:http`: for instances without models.
//!
//! A call of `run` opens one request for each model and set of options, a stream of lines in both directions, and closes it with the call.
//! A text that is longer than the longest line has a request of its own, and so has a summary (`POST /process-stream`). A request that fails
//! (the server cannot be reached, is silent, refuses, ends early, or sends an invalid response) fails the items that it contains.
//!
//! - `settings`: the server's address.
//! - `plan`: requests for items. `convert`: conversions between the types of WIT and those of codec and core.
//! - `request`: one request with its items. `exchange`: one HTTP request.
//! - `service`: the calls; `call`: the state that the requests of a call share.
//!
//! Two things differ from a component with models: summaries have no count of tokens, and `overflow.split` without a stride, which reads
//! sentence by sentence, is requested as windows that overlap by 32 tokens, because the HTTP interface has no such option.
//!
//! | variable | default | |
//! |---|---|---|
//! | `WEIR_REMOTE_URL` | | the server, `http://HOST:PORT`, optionally with a prefix of the paths |
//! | `WEIR_REMOTE_TOKEN` | | a token or an API key, sent as `Authorization: Bearer` |
//! | `WEIR_REMOTE_TIMEOUT_MS` | 30000 | the longest time without data of the server while a result is outstanding |

mod bindings {
    #![allow(missing_docs, clippy::all, unreachable_pub)]
    wit_bindgen::generate!({
        inline: "
            package weir:infer-remote;
            world infer-remote {
                import wasi:clocks/monotonic-clock@0.3.0;
                import wasi:clocks/system-clock@0.3.0;
                import wasi:http/types@0.3.0;
                import wasi:http/client@0.3.0;
                export weir:%stream/infer@0.1.0;
            }
        ",
        path: "../../wit",
        world: "weir:infer-remote/infer-remote",
        generate_all,
        with: {
            "weir:stream/types@0.1.0/label-score": weir_codec::inference::output::LabelScore,
        },
    });
}

mod call;
mod convert;
mod exchange;
mod plan;
mod request;
mod service;
mod settings;
mod wording;
