//! One thread's part of a chunk's layers.

use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use weir_kernels::{Isa, PANEL, PagedAttention, QuantizedMatrix, gated_silu, rms_norm, rotate};

use super::Forward;
use super::chunk::Chunk;
use super::workspace::{Layout, Local, Workspace};
use crate::model::{LayerWeights, Model, Parameters};
use crate::team::{Broken, Member};

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

    /// The rows that this thread keeps the states of.
    pub(super) fn own_rows(&self) -> std::ops::Range<usize> {
        self.chunk.rows[self.member.index].clone()
    }

    /// The states of the tokens.
    pub(super) fn embed(&mut self) {
        let width = self.parameters().embedding;
        let embedding = &self.model().weights.embedding;
        let rows = self.own_rows();
        self.local.states.resize(rows.len() * width, 0.0);
        for (place, state) in self.chunk.places[rows].iter().zip(self.local.states.chunks_exact_mut(width)) {
            embedding.column(place.token as usize, state);
        }
    }

    /// Computes a layer; false if the pass was cancelled.
    pub(super) fn layer(&mut self, index: usize) -> Result<bool, Broken> {
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
        // All threads read what the first one wrote before the barrier, and it writes again only after the next one.
        if self.forward.is_cancelled.load(Ordering::Acquire) {
            return Ok(false);
        }
        self.multiply(&layer.projections.each_ref());
        self.member.wait()?;
        self.place_queries(layer);
        if self.member.index == 0 {
            self.place_keys(index, layer);
        }
        self.member.wait()?;
        self.attend(index);
        self.member.wait()?;
        self.lower_attention();
        self.member.wait()?;
        self.multiply(&[&layer.output]);
        self.member.wait()?;
        self.add_products(&layer.output);
        self.normalize(&layer.feed_forward_norm);
        self.member.wait()?;
        self.multiply_gated(layer);
        self.member.wait()?;
        self.lower_products(&layer.gate);
        self.member.wait()?;
        self.multiply(&[&layer.down]);
        self.member.wait()?;
        Ok(true)
    }

    /// Adds what the last layer computed.
    pub(super) fn finish_layers(&mut self) {
        if let Some(layer) = self.model().weights.layers.last() {
            self.add_products(&layer.down);
        }
    }

    /// The products of all rows and this thread's panels.
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
    fn lower_products(&mut self, matrix: &QuantizedMatrix) {
        let panels = [matrix.panels()];
        let layout = Layout { rows: &self.chunk.rows, panels: &panels };
        let products = self.workspace().products();
        let rows = self.own_rows();
        let mut activations = self.workspace().own_activations(self.member.index);
        activations.resize(rows.len(), matrix.columns());
        let row = &mut self.local.row;
        row.resize(panels[0] * PANEL, 0.0);
        for (place, index) in rows.enumerate() {
            layout.gather(&products, 0, index, row);
            activations.quantize_row(self.isa, place, &row[..matrix.columns()]);
        }
    }

    /// The queries of this thread's rows, normalized and rotated.
    fn place_queries(&mut self, layer: &LayerWeights) {
        let panels = layer.projections.each_ref().map(QuantizedMatrix::panels);
        let layout = Layout { rows: &self.chunk.rows, panels: &panels };
        let products = self.workspace().products();
        let (rows, width) = (self.own_rows(), self.parameters().query_elements());
        let gain = layer.query_key_norms.as_ref().map(|norms| norms[0].as_slice());
        let mut queries = self.workspace().own_queries(self.member.index);
        extend(&mut queries, rows.len() * width);
        for (row, query) in rows.zip(queries.chunks_exact_mut(width)) {
            layout.gather(&products, 0, row, query);
            self.place(row, query, gain);
        }
    }

    /// The keys and values of all rows, written to the cache.
    fn place_keys(&mut self, index: usize, layer: &LayerWeights) {
        let panels = layer.projections.each_ref().map(QuantizedMatrix::panels);
        let layout = Layout { rows: &self.chunk.rows, panels: &panels };
        let products = self.workspace().products();
        let width = self.parameters().kv_elements();
        let gain = layer.query_key_norms.as_ref().map(|norms| norms[1].as_slice());
        let (mut key, mut value) = (std::mem::take(&mut self.local.row), std::mem::take(&mut self.local.other));
        key.resize(width, 0.0);
        value.resize(width, 0.0);
        let mut pages = self.forward.cache[index].write().unwrap_or_else(PoisonError::into_inner);
        for (row, place) in self.chunk.places.iter().enumerate() {
            layout.gather(&products, 1, row, &mut key);
            layout.gather(&products, 2, row, &mut value);
            self.place(row, &mut key, gain);
            let page = self.forward.jobs[place.job].pages[place.position / weir_kernels::PAGE_TOKENS];
            pages.write(self.isa, page as usize, place.position % weir_kernels::PAGE_TOKENS, &key, &value);
        }
        (self.local.row, self.local.other) = (key, value);
    }

    /// Normalizes the heads of a row, and rotates them by its position.
    fn place(&mut self, row: usize, heads: &mut [f32], gain: Option<&[f32]>) {
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

    /// The attention that is given to this thread.
    fn attend(&mut self, index: usize) {
        let parameters = self.parameters();
        let (group, head_size) = (parameters.group(), parameters.head_size);
        let width = parameters.query_elements();
        let (parts, cache) = (self.workspace().queries(), &self.forward.cache[index]);
        let cache = cache.read().unwrap_or_else(PoisonError::into_inner);
        let mut out = self.workspace().own_attention(self.member.index);
        let Local { queries, lengths, scores, .. } = &mut *self.local;
        for item in self.chunk.items.iter().filter(|item| item.thread == self.member.index) {
            let elements = item.rows.len() * group * head_size;
            let end = item.offset + elements;
            extend(&mut out, end);
            queries.clear();
            lengths.clear();
            for row in item.rows.clone() {
                let rows = self.chunk.rows.iter().zip(&parts).find(|(rows, _)| rows.contains(&row));
                let Some((rows, part)) = rows else { continue };
                let heads = (row - rows.start) * width + item.head * group * head_size;
                queries.extend_from_slice(&part[heads..heads + group * head_size]);
                lengths.extend(std::iter::repeat_n(self.chunk.places[row].position + 1, group));
            }
            let attention = PagedAttention {
                cache: &cache,
                pages: &self.forward.jobs[item.job].pages,
                head: item.head,
                queries,
                lengths,
                factor: 1.0 / (head_size as f32).sqrt(),
                out: &mut out[item.offset..end],
                scores,
            };
            attention.compute(self.isa);
        }
    }

    /// Quantizes the attention of this thread's rows.
    fn lower_attention(&mut self) {
        let parameters = self.parameters();
        let width = parameters.query_elements();
        let parts = self.workspace().attention();
        let rows = self.own_rows();
        let mut activations = self.workspace().own_activations(self.member.index);
        activations.resize(rows.len(), width);
        let heads = parameters.group() * parameters.head_size;
        let row = &mut self.local.row;
        row.resize(width, 0.0);
        for (place, index) in rows.enumerate() {
            let (run, in_run) = self.chunk.runs[index];
            for (head, out) in row.chunks_exact_mut(heads).enumerate() {
                let item = &self.chunk.items[run * parameters.kv_heads + head];
                out.copy_from_slice(&parts[item.thread][item.offset + in_run * heads..][..heads]);
            }
            activations.quantize_row(self.isa, place, row);
        }
    }

    /// `silu(gate) * up` of all rows and this thread's panels.
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

/// The products of the rows of all threads and a thread's panels of some matrices.
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

/// Makes a buffer at least this long. It is never made shorter: what is filled once need not be filled again.
fn extend(buffer: &mut Vec<f32>, elements: usize) {
    if buffer.len() < elements {
        buffer.resize(elements, 0.0);
    }
}
