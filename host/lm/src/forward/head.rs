//! The end of a forward pass: logits and sampling.

use std::ops::Range;
use std::sync::PoisonError;

use weir_kernels::{PANEL, rms_norm};

use super::layer::{Pass, multiply};
use super::workspace::{Layout, Local};
use crate::sampling::{Context, sample};
use crate::team::TeamFailure;

/// Rows whose logits are computed together: it bounds the memory.
const LOGIT_ROWS_MAX: usize = 32;

impl Pass<'_> {
    /// Samples after every row of `chunk.samples`.
    pub(super) fn sample(&mut self) -> Result<(), TeamFailure> {
        let chunk = self.chunk;
        for samples in chunk.samples.chunks(LOGIT_ROWS_MAX) {
            let rows = self.sample_rows(samples);
            self.normalize_samples(samples);
            self.member.wait()?;
            multiply(self.workspace(), self.member.index, &rows, &[self.model().weights.head()]);
            self.member.wait()?;
            self.draw(samples, &rows);
        }
        Ok(())
    }

    /// By thread: the range of the samples that are its rows.
    fn sample_rows(&self, samples: &[usize]) -> Vec<Range<usize>> {
        let before = |row: usize| samples.partition_point(|sample| *sample < row);
        self.chunk.rows.iter().map(|rows| before(rows.start)..before(rows.end)).collect()
    }

    /// Quantizes the normalized states of the samples among this thread's rows.
    fn normalize_samples(&mut self, samples: &[usize]) {
        let rows = self.own_rows();
        let (gain, isa) = (&self.model().weights.norm, self.isa);
        let own = samples.iter().filter(|row| rows.contains(row));
        let mut activations = self.workspace().own_activations(self.member.index);
        activations.resize(own.clone().count(), gain.len());
        let Local { row: normalized, states, .. } = &mut *self.local;
        normalized.resize(gain.len(), 0.0);
        for (index, row) in own.enumerate() {
            let state = &states[(row - rows.start) * gain.len()..][..gain.len()];
            rms_norm(isa, state, gain, self.forward.model.parameters.epsilon, normalized);
            activations.quantize_row(isa, index, normalized);
        }
    }

    /// Samples this thread's share.
    fn draw(&mut self, samples: &[usize], rows: &[Range<usize>]) {
        let panels = [self.model().weights.head().panels()];
        let layout = Layout { rows, panels: &panels };
        let products = self.workspace().products();
        let vocabulary = self.model().vocabulary_tokens() as usize;
        let Local { row: logits, scratch, .. } = &mut *self.local;
        for (index, row) in samples.iter().enumerate() {
            if index % self.member.count != self.member.index {
                continue;
            }
            let number = self.chunk.inputs[*row].job;
            let job = &self.forward.jobs[number];
            let Some(job_sample) = &job.sample else { continue };
            logits.resize(panels[0] * PANEL, 0.0);
            layout.gather(&products, 0, index, logits);
            let context = Context {
                isa: self.isa,
                sampler: &job_sample.sampler,
                tokens: &job.tokens,
                prompt: job_sample.prompt,
                index: job_sample.sample.index,
                allowed: job_sample.sample.allowed.as_deref(),
                top: job_sample.sample.top as usize,
            };
            let outcome = sample(context, &mut logits[..vocabulary], scratch);
            let mut outcomes = self.forward.outcomes.lock().unwrap_or_else(PoisonError::into_inner);
            outcomes[number] = Some(outcome);
        }
    }
}
