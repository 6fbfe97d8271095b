//! An encoder that is ready to compute.

use super::network::{AnyEncoder, Readout};
use crate::engine::GraphInfo;

pub(super) struct EncoderModel {
    pub(super) info: GraphInfo,
    pub(super) encoder: AnyEncoder,
    pub(super) readout: Readout,
    /// The index of the input with the token types; `None` when all are 0.
    pub(super) types_input: Option<usize>,
}
