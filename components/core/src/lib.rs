//! Weir's pure state machines: no IO, no clock, no randomness.
