//! Security: who may see what, what clients may hold, and the files of the operator.

mod access;
mod bounds;
mod connections;
mod hostile;
mod operator_files;
mod shares;
