//! The layers of a chunk, as one thread computes its part of them.

use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use weir_kernels::{Isa, PANEL, PagedAttention, QuantizedMatrix, gated_silu, rms_norm, rotate};

use super::chunk::Chunk;
use super::state::Forward;
use super::workspace::{Layout, Local, Workspace};
use crate::model::{LayerWeights, Model, Parameters};
use crate::team::{Member, TeamFailure};

/// Panels of a gate that are computed before it is applied: their products stay in the cache.
const GATE_PANELS: usize = 2;

/// A thread's part of a chunk.
pub(super) struct Pass<'a> {
    pub(super) forward: &'a Forward,
    pub(super) chunk: &'a Chunk,
    pub(super) member: &'a Member<'a>,
    pub(super) local: &'a mut Local,
    pub(super) isa: Isa,
}

impl<'a> Pass<'a> {
    pub(super) fn new(forward: &'a Forward, chunk: &'a Chunk, member: &'a Member<'a>, local: &'a mut Local) -> Self {
        Self { forward, chunk, member, local, isa: forward.model.isa }
    }

    pub(super) fn model(&self) -> &'a Model {
        &self.forward.model
    }

    fn parameters(&self) -> &'a Parameters {
        &self.model().parameters
    }

    pub(super) fn workspace(&self) -> &'a Workspace {
        &self.forward.workspace
    }

    /// The rows whose states this thread holds.
    pub(super) fn own_rows(&self) -> std::ops::Range<usize> {
        self.chunk.rows[self.member.index].clone()
    }

    /// Reads the embeddings of this thread's rows into their states.
    pub(super) fn embed(&mut self) {
        let width = self.parameters().embedding;
        let embedding = &self.model().weights.embedding;
        let rows = self.own_rows();
        self.local.states.resize(rows.len() * width, 0.0);
        for (input, state) in self.chunk.inputs[rows].iter().zip(self.local.states.chunks_exact_mut(width)) {
            embedding.column(input.token as usize, state);
        }
    }

    /// Computes a layer; false if the pass was cancelled.
    pub(super) fn layer(&mut self, index: usize) -> Result<bool, TeamFailure> {
        let model = self.model();
        let layer = &model.weights.layers[index];
        if index > 0 {
            self.add_products(&model.weights.layers[index - 1].down);
        }
        self.normalize(&layer.attention_norm);
        if self.member.index == 0 && self.forward.cancel.is_cancelled() {
            self.forward.is_cancelled.store(true, Ordering::Release);
        }
        self.member.wait()?;
        // The first thread writes the flag before this barrier and again only after the next one, so that all threads read the same.
        if self.forward.is_cancelled.load(Ordering::Acquire) {
            return Ok(false);
        }
        self.multiply(&layer.projections.each_ref());
        self.member.wait()?;
        self.prepare_queries(layer);
        if self.member.index == 0 {
            self.write_cache(index, layer);
        }
        self.member.wait()?;
        self.attend(index);
        self.member.wait()?;
        self.quantize_attention();
        self.member.wait()?;
        self.multiply(&[&layer.output]);
        self.member.wait()?;
        self.add_products(&layer.output);
        self.normalize(&layer.feed_forward_norm);
        self.member.wait()?;
        self.multiply_gated(layer);
        self.member.wait()?;
        self.quantize_products(&layer.gate);
        self.member.wait()?;
        self.multiply(&[&layer.down]);
        self.member.wait()?;
        Ok(true)
    }

    /// Adds the products of the last layer to the states.
    pub(super) fn finish_layers(&mut self) {
        if let Some(layer) = self.model().weights.layers.last() {
            self.add_products(&layer.down);
        }
    }

    /// Computes the products of all rows with this thread's panels.
    fn multiply(&mut self, matrices: &[&QuantizedMatrix]) {
        multiply(self.workspace(), self.member.index, &self.chunk.rows, matrices);
    }

    /// Adds the products with a matrix to the states.
    fn add_products(&mut self, matrix: &QuantizedMatrix) {
        let panels = [matrix.panels()];
        let layout = Layout { rows: &self.chunk.rows, panels: &panels };
        let products = self.workspace().products();
        let (rows, width) = (self.own_rows(), matrix.columns());
        let Local { row, states, .. } = &mut *self.local;
        row.resize(panels[0] * PANEL, 0.0);
        for (index, state) in rows.zip(states.chunks_exact_mut(width)) {
            layout.gather(&products, 0, index, row);
            state.iter_mut().zip(&*row).for_each(|(state, product)| *state += product);
        }
    }

    /// Quantizes the normalized states.
    fn normalize(&mut self, gain: &[f32]) {
        let Local { row, states, .. } = &mut *self.local;
        let mut activations = self.forward.workspace.own_activations(self.member.index);
        activations.resize(self.chunk.rows[self.member.index].len(), gain.len());
        row.resize(gain.len(), 0.0);
        for (index, state) in states.chunks_exact(gain.len()).enumerate() {
            rms_norm(self.isa, state, gain, self.forward.model.parameters.epsilon, row);
            activations.quantize_row(self.isa, index, row);
        }
    }

    /// Quantizes the products with a matrix.
    fn quantize_products(&mut self, matrix: &QuantizedMatrix) {
        let panels = [matrix.panels()];
        let layout = Layout { rows: &self.chunk.rows, panels: &panels };
        let products = self.workspace().products();
        let rows = self.own_rows();
        let mut activations = self.workspace().own_activations(self.member.index);
        activations.resize(rows.len(), matrix.columns());
        let row = &mut self.local.row;
        row.resize(panels[0] * PANEL, 0.0);
        for (own_index, index) in rows.enumerate() {
            layout.gather(&products, 0, index, row);
            activations.quantize_row(self.isa, own_index, &row[..matrix.columns()]);
        }
    }

    /// Gathers, normalizes and rotates the queries of this thread's rows.
    fn prepare_queries(&mut self, layer: &LayerWeights) {
        let panels = layer.projections.each_ref().map(QuantizedMatrix::panels);
        let layout = Layout { rows: &self.chunk.rows, panels: &panels };
        let products = self.workspace().products();
        let (rows, width) = (self.own_rows(), self.parameters().query_elements());
        let gain = layer.query_key_norms.as_ref().map(|norms| norms[0].as_slice());
        let mut queries = self.workspace().own_queries(self.member.index);
        extend(&mut queries, rows.len() * width);
        for (row, query) in rows.zip(queries.chunks_exact_mut(width)) {
            layout.gather(&products, 0, row, query);
            self.rotate_heads(row, query, gain);
        }
    }

    /// Writes the keys and values of all rows to the cache.
    fn write_cache(&mut self, index: usize, layer: &LayerWeights) {
        let panels = layer.projections.each_ref().map(QuantizedMatrix::panels);
        let layout = Layout { rows: &self.chunk.rows, panels: &panels };
        let products = self.workspace().products();
        let width = self.parameters().kv_elements();
        let gain = layer.query_key_norms.as_ref().map(|norms| norms[1].as_slice());
        let (mut key, mut value) = (std::mem::take(&mut self.local.row), std::mem::take(&mut self.local.other));
        key.resize(width, 0.0);
        value.resize(width, 0.0);
        let mut pages = self.forward.cache[index].write().unwrap_or_else(PoisonError::into_inner);
        for (row, input) in self.chunk.inputs.iter().enumerate() {
            layout.gather(&products, 1, row, &mut key);
            layout.gather(&products, 2, row, &mut value);
            self.rotate_heads(row, &mut key, gain);
            let page = self.forward.jobs[input.job].pages[input.position / weir_kernels::PAGE_TOKENS];
            pages.write(self.isa, page as usize, input.position % weir_kernels::PAGE_TOKENS, &key, &value);
        }
        (self.local.row, self.local.other) = (key, value);
    }

    /// Normalizes the heads of a row, if there is a gain, and rotates them by its position.
    fn rotate_heads(&mut self, row: usize, heads: &mut [f32], gain: Option<&[f32]>) {
        let Parameters { head_size, epsilon, .. } = *self.parameters();
        let pairs = self.model().rotary.pairs();
        let angles = row * pairs..(row + 1) * pairs;
        for head in heads.chunks_exact_mut(head_size) {
            if let Some(gain) = gain {
                let queries = &mut self.local.queries;
                queries.clear();
                queries.extend_from_slice(head);
                rms_norm(self.isa, queries, gain, epsilon, head);
            }
            rotate(self.isa, head, &self.chunk.cosines[angles.clone()], &self.chunk.sines[angles.clone()]);
        }
    }

    /// Computes the blocks of attention that are assigned to this thread.
    fn attend(&mut self, index: usize) {
        let parameters = self.parameters();
        let (group, head_size) = (parameters.group(), parameters.head_size);
        let width = parameters.query_elements();
        let (parts, cache) = (self.workspace().queries(), &self.forward.cache[index]);
        let cache = cache.read().unwrap_or_else(PoisonError::into_inner);
        let mut out = self.workspace().own_attention(self.member.index);
        let Local { queries, lengths, scores, .. } = &mut *self.local;
        for block in self.chunk.blocks.iter().filter(|block| block.thread == self.member.index) {
            let elements = block.rows.len() * group * head_size;
            let end = block.offset + elements;
            extend(&mut out, end);
            queries.clear();
            lengths.clear();
            for row in block.rows.clone() {
                let rows = self.chunk.rows.iter().zip(&parts).find(|(rows, _)| rows.contains(&row));
                let Some((rows, part)) = rows else { continue };
                let heads = (row - rows.start) * width + block.head * group * head_size;
                queries.extend_from_slice(&part[heads..heads + group * head_size]);
                lengths.extend(std::iter::repeat_n(self.chunk.inputs[row].position + 1, group));
            }
            let attention = PagedAttention {
                cache: &cache,
                pages: &self.forward.jobs[block.job].pages,
                head: block.head,
                queries,
                lengths,
                factor: 1.0 / (head_size as f32).sqrt(),
                out: &mut out[block.offset..end],
                scores,
            };
            attention.compute(self.isa);
        }
    }

    /// Quantizes the attention of this thread's rows.
    fn quantize_attention(&mut self) {
        let parameters = self.parameters();
        let width = parameters.query_elements();
        let parts = self.workspace().attention();
        let rows = self.own_rows();
        let mut activations = self.workspace().own_activations(self.member.index);
        activations.resize(rows.len(), width);
        let heads = parameters.group() * parameters.head_size;
        let row = &mut self.local.row;
        row.resize(width, 0.0);
        for (own_index, index) in rows.enumerate() {
            let (run, in_run) = self.chunk.runs[index];
            for (head, out) in row.chunks_exact_mut(heads).enumerate() {
                let block = &self.chunk.blocks[run * parameters.kv_heads + head];
                out.copy_from_slice(&parts[block.thread][block.offset + in_run * heads..][..heads]);
            }
            activations.quantize_row(self.isa, own_index, row);
        }
    }

    /// Computes `silu(gate) * up` of all rows with this thread's panels.
    fn multiply_gated(&mut self, layer: &LayerWeights) {
        let panels = [layer.gate.panels()];
        let layout = Layout { rows: &self.chunk.rows, panels: &panels };
        let thread = self.member.index;
        let activations = self.workspace().activations();
        let mut products = self.workspace().own_products(thread);
        extend(&mut products, layout.elements(thread));
        let [gate, up] = &mut self.local.gates;
        for (others, activations) in activations.iter().enumerate().filter(|(_, part)| part.rows() > 0) {
            let elements = activations.rows() * PANEL;
            let out = &mut products[layout.segment(0, thread, others)];
            let share = layout.share(0, thread);
            for (first, out) in share.clone().step_by(GATE_PANELS).zip(out.chunks_mut(GATE_PANELS * elements)) {
                let panels = first..(first + GATE_PANELS).min(share.end);
                gate.resize(out.len(), 0.0);
                up.resize(out.len(), 0.0);
                layer.gate.multiply(panels.clone(), activations, gate);
                layer.up.multiply(panels, activations, up);
                gated_silu(self.isa, gate, up, out);
            }
        }
    }
}

/// Computes the products of the rows of all threads with a thread's panels of some matrices.
pub(super) fn multiply(
    workspace: &Workspace,
    thread: usize,
    rows: &[std::ops::Range<usize>],
    matrices: &[&QuantizedMatrix],
) {
    let panels: Vec<usize> = matrices.iter().map(|matrix| matrix.panels()).collect();
    let layout = Layout { rows, panels: &panels };
    let activations = workspace.activations();
    let mut products = workspace.own_products(thread);
    extend(&mut products, layout.elements(thread));
    for (index, matrix) in matrices.iter().enumerate() {
        for (others, activations) in activations.iter().enumerate().filter(|(_, part)| part.rows() > 0) {
            let out = &mut products[layout.segment(index, thread, others)];
            matrix.multiply(layout.share(index, thread), activations, out);
        }
    }
}

/// Extends a buffer to at least this length. It never shrinks, so that new elements are initialized only once.
fn extend(buffer: &mut Vec<f32>, elements: usize) {
    if buffer.len() < elements {
        buffer.resize(elements, 0.0);
    }
}
