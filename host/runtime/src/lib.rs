//! Weir's native host: engine, component instances, replicas and the stream that joins them.
