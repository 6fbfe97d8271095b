//! Small models with random weights, written as GGUF files.

#![allow(dead_code, reason = "each test program uses a part")]

pub(crate) mod reference;

use std::io::Write;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use weir_lm::gguf::TensorType;

/// Builds a GGUF file.
#[derive(Clone, Debug, Default)]
pub(crate) struct GgufFile {
    metadata: Vec<u8>,
    keys: u64,
    tensors: Vec<(String, Vec<u64>, TensorType, Vec<u8>)>,
}

fn text(bytes: &mut Vec<u8>, text: &str) {
    bytes.extend((text.len() as u64).to_le_bytes());
    bytes.extend(text.as_bytes());
}

impl GgufFile {
    fn key(&mut self, key: &str, ty: u32) {
        self.keys += 1;
        text(&mut self.metadata, key);
        self.metadata.extend(ty.to_le_bytes());
    }

    pub(crate) fn integer(&mut self, key: &str, value: u32) {
        self.key(key, 4);
        self.metadata.extend(value.to_le_bytes());
    }

    pub(crate) fn number(&mut self, key: &str, value: f32) {
        self.key(key, 6);
        self.metadata.extend(value.to_le_bytes());
    }

    pub(crate) fn text(&mut self, key: &str, value: &str) {
        self.key(key, 8);
        text(&mut self.metadata, value);
    }

    pub(crate) fn texts(&mut self, key: &str, values: &[String]) {
        self.key(key, 9);
        self.metadata.extend(8_u32.to_le_bytes());
        self.metadata.extend((values.len() as u64).to_le_bytes());
        values.iter().for_each(|value| text(&mut self.metadata, value));
    }

    pub(crate) fn integers(&mut self, key: &str, values: &[i32]) {
        self.key(key, 9);
        self.metadata.extend(5_u32.to_le_bytes());
        self.metadata.extend((values.len() as u64).to_le_bytes());
        values.iter().for_each(|value| self.metadata.extend(value.to_le_bytes()));
    }

    pub(crate) fn tensor(&mut self, name: &str, dimensions: &[u64], ty: TensorType, bytes: Vec<u8>) {
        self.tensors.push((name.to_owned(), dimensions.to_vec(), ty, bytes));
    }

    /// The file with a tensor stored as another type, in `bytes` of zeros.
    pub(crate) fn with_tensor(mut self, name: &str, ty: TensorType, bytes: usize) -> Self {
        let tensor = self.tensors.iter_mut().find(|tensor| tensor.0 == name).unwrap();
        (tensor.2, tensor.3) = (ty, vec![0; bytes]);
        self
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut bytes = b"GGUF\x03\0\0\0".to_vec();
        bytes.extend((self.tensors.len() as u64).to_le_bytes());
        bytes.extend(self.keys.to_le_bytes());
        bytes.extend(&self.metadata);
        let mut offset = 0_u64;
        for (name, dimensions, ty, data) in &self.tensors {
            text(&mut bytes, name);
            bytes.extend((dimensions.len() as u32).to_le_bytes());
            dimensions.iter().for_each(|dimension| bytes.extend(dimension.to_le_bytes()));
            bytes.extend(ty.id.to_le_bytes());
            bytes.extend(offset.to_le_bytes());
            offset = (offset + data.len() as u64).next_multiple_of(32);
        }
        for (_, _, _, data) in &self.tensors {
            bytes.resize(bytes.len().next_multiple_of(32), 0);
            bytes.extend(data);
        }
        bytes
    }

    /// Writes the content to a new temporary file.
    pub(crate) fn write(&self) -> TestFile {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("weir-lm-{}-{}.gguf", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        std::fs::File::create(&path).unwrap().write_all(&self.bytes()).unwrap();
        TestFile(path)
    }
}

/// A file that is removed when it is dropped.
#[derive(Debug)]
pub(crate) struct TestFile(pub(crate) PathBuf);

impl Drop for TestFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Numbers that look random and are the same in every run.
#[derive(Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 >> 11
    }

    pub(crate) fn below(&mut self, bound: usize) -> usize {
        self.next() as usize % bound
    }

    /// A number from -1 to 1.
    pub(crate) fn number(&mut self) -> f32 {
        (self.next() >> 29) as f32 / (1 << 23) as f32 - 1.0
    }
}

/// The f16 of a number, rounded toward zero; zero for a subnormal one.
fn f16(value: f32) -> [u8; 2] {
    if value.abs() < 6.2e-5 {
        return [0; 2];
    }
    let bits = value.to_bits();
    let half = ((bits >> 16 & 0x8000) as u16) | (((bits & 0x7fff_ffff) - (112 << 23)) >> 13) as u16;
    half.to_le_bytes()
}

/// Random weights of about `size` in magnitude.
pub(crate) fn weights(ty: TensorType, elements: usize, size: f32, random: &mut Random) -> Vec<u8> {
    let mut bytes = Vec::new();
    let scale = |random: &mut Random, steps: f32| f16(size / steps * (0.75 + random.number() / 4.0));
    for _ in 0..elements / ty.block_elements as usize {
        match ty {
            TensorType::F32 => bytes.extend((size * random.number()).to_le_bytes()),
            TensorType::BF16 => bytes.extend(&(size * random.number()).to_le_bytes()[2..]),
            TensorType::F16 => bytes.extend(f16(size * (0.01 + random.number().abs()) * random.number().signum())),
            ty => {
                let start = bytes.len();
                bytes.extend((0..ty.block_bytes).map(|_| random.next() as u8));
                let block = &mut bytes[start..];
                let mut put = |offset: usize, value: [u8; 2]| block[offset..offset + 2].copy_from_slice(&value);
                match ty {
                    TensorType::Q4_0 => put(0, scale(random, 8.0)),
                    TensorType::Q5_0 => put(0, scale(random, 16.0)),
                    TensorType::Q8_0 => put(0, scale(random, 128.0)),
                    TensorType::Q4_1 | TensorType::Q5_1 => {
                        let steps = if ty == TensorType::Q4_1 { 7.5 } else { 15.5 };
                        put(0, scale(random, steps));
                        put(2, f16(-size * (0.75 + random.number() / 4.0)));
                    }
                    TensorType::Q4_K | TensorType::Q5_K => {
                        let steps = if ty == TensorType::Q4_K { 7.5 } else { 15.5 };
                        put(0, scale(random, steps * 32.0));
                        put(2, scale(random, 32.0));
                    }
                    TensorType::Q6_K => put(208, scale(random, 32.0 * 64.0)),
                    ty => panic!("no weights of {}", ty.name),
                }
            }
        }
    }
    bytes
}

/// The parameters of a small model.
#[derive(Clone, Debug)]
pub(crate) struct Small {
    pub(crate) architecture: &'static str,
    pub(crate) ty: TensorType,
    pub(crate) embedding: usize,
    pub(crate) feed_forward: usize,
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_size: usize,
    pub(crate) layers: usize,
    pub(crate) tokens: usize,
    pub(crate) context: u32,
    pub(crate) has_head: bool,
    pub(crate) has_divisors: bool,
}

impl Small {
    pub(crate) fn new(architecture: &'static str, ty: TensorType) -> Self {
        // Rows of superblocks.
        let large = ty.block_elements > 32;
        Self {
            architecture,
            ty,
            embedding: if large { 256 } else { 96 },
            feed_forward: if large { 512 } else { 160 },
            heads: if large { 16 } else { 6 },
            kv_heads: 2,
            head_size: 16,
            layers: 2,
            tokens: 67,
            context: 200,
            has_head: false,
            has_divisors: false,
        }
    }

    pub(crate) fn file(&self) -> GgufFile {
        let mut file = GgufFile::default();
        let mut random = Random::new(7);
        let name = |key: &str| format!("{}.{key}", self.architecture);
        file.text("general.architecture", self.architecture);
        for (key, value) in [
            ("block_count", self.layers),
            ("context_length", self.context as usize),
            ("embedding_length", self.embedding),
            ("feed_forward_length", self.feed_forward),
            ("attention.head_count", self.heads),
            ("attention.head_count_kv", self.kv_heads),
            ("attention.key_length", self.head_size),
            ("attention.value_length", self.head_size),
        ] {
            file.integer(&name(key), value as u32);
        }
        file.number(&name("attention.layer_norm_rms_epsilon"), 1e-5);
        file.number(&name("rope.freq_base"), 10_000.0);
        file.text("tokenizer.ggml.model", "gpt2");
        let mut tokens: Vec<String> = (0..self.tokens).map(|token| format!("t{token}")).collect();
        tokens[1] = "<|im_end|>".to_owned();
        let kinds: Vec<i32> = (0..self.tokens).map(|token| if token < 2 { 3 } else { 1 }).collect();
        file.texts("tokenizer.ggml.tokens", &tokens);
        file.integers("tokenizer.ggml.token_type", &kinds);
        file.texts("tokenizer.ggml.merges", &["t 2".to_owned()]);
        file.integer("tokenizer.ggml.bos_token_id", 0);
        file.text("tokenizer.chat_template", "{{ messages }}");

        let mut matrix = |file: &mut GgufFile, name: String, inner: usize, columns: usize, size: f32| {
            let bytes = weights(self.ty, inner * columns, size, &mut random);
            file.tensor(&format!("{name}.weight"), &[inner as u64, columns as u64], self.ty, bytes);
        };
        let (embedding, queries, keys) = (self.embedding, self.heads * self.head_size, self.kv_heads * self.head_size);
        matrix(&mut file, "token_embd".to_owned(), embedding, self.tokens, 1.0);
        if self.has_head {
            matrix(&mut file, "output".to_owned(), embedding, self.tokens, 0.5);
        }
        for layer in 0..self.layers {
            let name = |part: &str| format!("blk.{layer}.{part}");
            let size = 1.7 / (embedding as f32).sqrt();
            matrix(&mut file, name("attn_q"), embedding, queries, 2.0 * size);
            matrix(&mut file, name("attn_k"), embedding, keys, 2.0 * size);
            matrix(&mut file, name("attn_v"), embedding, keys, size);
            matrix(&mut file, name("attn_output"), queries, embedding, size);
            matrix(&mut file, name("ffn_gate"), embedding, self.feed_forward, size);
            matrix(&mut file, name("ffn_up"), embedding, self.feed_forward, size);
            matrix(&mut file, name("ffn_down"), self.feed_forward, embedding, size);
        }
        let mut vector = |file: &mut GgufFile, name: String, elements: usize, middle: f32| {
            let bytes = (0..elements).flat_map(|_| (middle + random.number() / 4.0).to_le_bytes()).collect();
            file.tensor(&name, &[elements as u64], TensorType::F32, bytes);
        };
        vector(&mut file, "output_norm.weight".to_owned(), embedding, 1.0);
        if self.has_divisors {
            vector(&mut file, "rope_freqs.weight".to_owned(), self.head_size / 2, 2.0);
        }
        for layer in 0..self.layers {
            let name = |part: &str| format!("blk.{layer}.{part}");
            vector(&mut file, name("attn_norm.weight"), embedding, 1.0);
            vector(&mut file, name("ffn_norm.weight"), embedding, 1.0);
            if self.architecture == "qwen2" {
                vector(&mut file, name("attn_q.bias"), queries, 0.0);
                vector(&mut file, name("attn_k.bias"), keys, 0.0);
                vector(&mut file, name("attn_v.bias"), keys, 0.0);
            }
            if self.architecture == "qwen3" {
                vector(&mut file, name("attn_q_norm.weight"), self.head_size, 1.0);
                vector(&mut file, name("attn_k_norm.weight"), self.head_size, 1.0);
            }
        }
        file
    }
}
