//! The bounds within which graphs are loaded and run.

use std::path::PathBuf;

use weir_kernels::Isa;

/// The bounds within which graphs are loaded and run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegistryConfig {
    /// The largest input or output tensor, in bytes.
    pub tensor_bytes_max: usize,
    /// The largest ONNX file with its external data, in bytes.
    pub graph_bytes_max: u64,
    /// The largest graph that a guest may load from bytes; 0 forbids it.
    pub guest_graph_bytes_max: u64,
    /// The most fixed-shape plans of a graph beside its symbolic one; the least recently used is evicted first.
    pub plans_max: usize,
    /// The uses of a shape after which it gets a plan of its own; 0 keeps every shape on the symbolic plan.
    pub plan_after_uses: u32,
    /// ONNX Runtime's library, or a folder with it, for the engine of that name; `None` searches the environment
    /// (`WEIR_ONNXRUNTIME`, `ORT_DYLIB_PATH`), [`library_folders`](crate::library_folders) and the search path of the system's
    /// loader. A process loads it once, with the configuration of the first graph that needs it.
    pub onnxruntime: Option<PathBuf>,
    /// The folder for the engines that TensorRT builds from graphs. With it, TensorRT computes the parts of graphs on GPUs that it
    /// supports, and CUDA the rest; `None`: CUDA alone.
    pub tensorrt: Option<PathBuf>,
    /// The instruction set of the engine `builtin`.
    pub isa: Isa,
    /// The most tensors, contexts, graphs and errors that an instance may hold at once.
    pub resources_max: usize,
    /// The most bytes of tensors that an instance may hold at once.
    pub resource_bytes_max: usize,
}

impl Default for RegistryConfig {
    fn default() -> Self {
        Self {
            tensor_bytes_max: 256 << 20,
            graph_bytes_max: 4 << 30,
            guest_graph_bytes_max: 64 << 20,
            plans_max: 32,
            plan_after_uses: 4,
            onnxruntime: None,
            tensorrt: None,
            isa: Isa::best(),
            resources_max: 10_000,
            resource_bytes_max: 1 << 30,
        }
    }
}
