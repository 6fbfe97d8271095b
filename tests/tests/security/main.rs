//! Security: access control, bounds of clients, shares of users, and the files of the operator.

mod access;
mod bounds;
mod connections;
mod fairness;
mod hostile;
mod http2;
mod operator_files;
mod shares;
