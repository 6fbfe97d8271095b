//! Weir's edge: sockets, limits and what must be answered before a component runs.
