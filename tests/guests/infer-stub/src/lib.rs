//! A stand-in for the infer component with canned answers, for composing with the gateway.
