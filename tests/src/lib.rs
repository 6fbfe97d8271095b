//! End-to-end tests: real sockets, built components, real models.
