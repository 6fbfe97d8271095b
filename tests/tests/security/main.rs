//! Security: who may see what, what clients may hold, what users share, and the files of the operator.

mod access;
mod bounds;
mod connections;
mod fairness;
mod hostile;
mod operator_files;
mod shares;
