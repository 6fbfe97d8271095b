//! Weir's configuration: one struct tree from file, environment and flags.
