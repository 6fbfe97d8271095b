//! `weir:stream/infer` by another `weir`, over `wasi:http`: instances without models, which ask one with models.
//!
//! A call of `run` opens one request for each model and set of options, a stream of lines in both directions, and closes it with the call.
//! A text that is longer than a line may be has a request of its own, and so has a summary (`POST /process-stream`). What goes wrong is a
//! failure of the items that it concerns: the server cannot be reached, is silent, refuses, ends early, or sends what is no answer.
//!
//! - `settings`: the server's address.
//! - `plan`: items as requests; the types of the WIT as codec's.
//! - `link`: one request. `exchange`: one request of HTTP.
//! - `service`: the calls.
//!
//! Two things differ from a component with models. The tokens of an item are not counted. And `overflow.split` without a stride, which reads
//! sentence by sentence, is asked for as windows that overlap by 32 tokens, because the HTTP interface has no such option.
//!
//! | variable | default | |
//! |---|---|---|
//! | `WEIR_REMOTE_URL` | | the server, `http://HOST:PORT`, and perhaps a path before those of the interface |
//! | `WEIR_REMOTE_TOKEN` | | a token or an API key, sent as `Authorization: Bearer` |
//! | `WEIR_REMOTE_TIMEOUT_MS` | 30000 | how long the server may be silent while it owes an answer |

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

mod exchange;
mod link;
mod notify;
mod plan;
mod service;
mod settings;
mod wording;
