//! The forward pass: every thread runs [`Forward::compute`], phase by phase.
//!
//! A phase is split by rows, by panels of a matrix, or by heads of attention, and ends at a barrier. Each thread writes to its own part
//! of a buffer and reads all parts in the next phase. Results do not depend on the split: each element is computed by one thread, in an
//! order that only its row determines.

mod chunk;
mod head;
mod job;
mod layer;
mod state;
mod workspace;

pub(crate) use crate::forward::job::{Job, JobSample};
use crate::forward::layer::Pass;
pub(crate) use crate::forward::state::Forward;
pub(crate) use crate::forward::workspace::Workspace;
use crate::team::{Member, TeamFailure};

impl Forward {
    /// Computes this thread's part of every phase.
    pub(crate) fn compute(&self, member: &Member<'_>) -> Result<(), TeamFailure> {
        let mut local = self.workspace.local(member.index);
        for chunk in &self.chunks {
            let mut pass = Pass::new(self, chunk, member, &mut local);
            pass.embed();
            for layer in 0..self.model.weights.layers.len() {
                if !pass.layer(layer)? {
                    return Ok(());
                }
            }
            pass.finish_layers();
            pass.sample()?;
        }
        Ok(())
    }
}
