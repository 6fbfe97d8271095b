//! A GPU for tests, as a library that each test compiles with rustc: the driver of NVIDIA with some GPUs, and an ONNX Runtime with a provider
//! for them. It passes all calls to the real ONNX Runtime of `FAKE_GPU_ONNXRUNTIME`, without the provider: the processor computes.
//!
//! | variable | |
//! |---|---|
//! | `FAKE_GPU_COUNT` | the number of GPUs; 1 by default |
//! | `FAKE_GPU_START` | the status with which the driver starts; 0 (success) by default |
//! | `FAKE_GPU_LOG` | a file to which each registration of a provider and each run of a model is appended, on a line |
//! | `FAKE_GPU_MODELS_MAX` | the number of models for whose weights it has memory |
//! | `FAKE_GPU_TOKENS_MAX` | the number of tokens for whose run it has memory |
//! | `FAKE_GPU_TOKEN_NS` | the time that a run takes for each token, in addition to that of the processor, ns; 0 by default |
//! | `FAKE_GPU_TOGETHER` | if set, a run of several texts waits, for a minute at most, until two of them are in progress, once |

use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};
use std::io::Write;
use std::ptr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, LazyLock, Mutex};
use std::time::Duration;

/// The functions of ONNX Runtime's interface of version 18, by their places in the table.
const FUNCTIONS: usize = 280;
const CREATE_STATUS: usize = 0;
const CREATE_SESSION_FROM_ARRAY: usize = 8;
const RUN: usize = 9;
const GET_DIMENSIONS_COUNT: usize = 61;
const GET_DIMENSIONS: usize = 62;
const GET_TENSOR_TYPE_AND_SHAPE: usize = 65;
const RELEASE_TENSOR_TYPE_AND_SHAPE_INFO: usize = 99;
const APPEND_TENSORRT: usize = 170;
const CREATE_TENSORRT_OPTIONS: usize = 171;
const UPDATE_TENSORRT_OPTIONS: usize = 172;
const RELEASE_TENSORRT_OPTIONS: usize = 174;
const APPEND_CUDA: usize = 204;
const CREATE_CUDA_OPTIONS: usize = 205;
const UPDATE_CUDA_OPTIONS: usize = 206;
const RELEASE_CUDA_OPTIONS: usize = 208;

/// The code of an error that is none of the others.
const FAIL: c_int = 1;

type Function = *const c_void;
type Status = *mut c_void;

#[repr(C)]
struct Base {
    api: extern "C" fn(u32) -> *const Function,
    version: extern "C" fn() -> *const c_char,
}

unsafe extern "C" {
    fn dlopen(file: *const c_char, flags: c_int) -> *mut c_void;
    fn dlsym(library: *mut c_void, name: *const c_char) -> *mut c_void;
}

/// `RTLD_NOW`
const NOW: c_int = 2;

static API: LazyLock<[usize; FUNCTIONS]> = LazyLock::new(|| {
    let real = unsafe { (real_base().api)(18) };
    std::array::from_fn(|place| unsafe { *real.add(place) } as usize)
});

static FAKE_API: LazyLock<[usize; FUNCTIONS]> = LazyLock::new(|| {
    let mut api = *API;
    api[CREATE_SESSION_FROM_ARRAY] = create_session as *const () as usize;
    api[RUN] = run as *const () as usize;
    api[APPEND_TENSORRT] = append_tensorrt as *const () as usize;
    api[UPDATE_TENSORRT_OPTIONS] = update_tensorrt_options as *const () as usize;
    api[APPEND_CUDA] = append_cuda as *const () as usize;
    api[UPDATE_CUDA_OPTIONS] = update_cuda_options as *const () as usize;
    for [create, release] in
        [[CREATE_TENSORRT_OPTIONS, RELEASE_TENSORRT_OPTIONS], [CREATE_CUDA_OPTIONS, RELEASE_CUDA_OPTIONS]]
    {
        api[create] = create_options as *const () as usize;
        api[release] = release_options as *const () as usize;
    }
    api
});

unsafe fn real_base() -> &'static Base {
    let file = std::env::var("FAKE_GPU_ONNXRUNTIME").expect("the path of an ONNX Runtime");
    let file = CString::new(file).expect("a path");
    unsafe {
        let library = dlopen(file.as_ptr(), NOW);
        assert!(!library.is_null(), "the real ONNX Runtime cannot be loaded");
        let base = dlsym(library, c"OrtGetApiBase".as_ptr());
        let base: extern "C" fn() -> *const Base = std::mem::transmute(base);
        &*base()
    }
}

#[unsafe(no_mangle)]
pub extern "C" fn cuInit(_: c_uint) -> c_int {
    number("FAKE_GPU_START").unwrap_or(0) as c_int
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetCount(count: *mut c_int) -> c_int {
    unsafe { *count = number("FAKE_GPU_COUNT").unwrap_or(1) as c_int };
    0
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDriverGetVersion(version: *mut c_int) -> c_int {
    unsafe { *version = 12000 };
    0
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGet(device: *mut c_int, number: c_int) -> c_int {
    unsafe { *device = number };
    0
}

/// The compute capability, 8.8.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetAttribute(value: *mut c_int, _: c_int, _: c_int) -> c_int {
    unsafe { *value = 8 };
    0
}

#[unsafe(no_mangle)]
pub extern "C" fn OrtGetApiBase() -> *const c_void {
    static BASE: Base = Base { api, version };
    (&raw const BASE).cast()
}

extern "C" fn api(_: u32) -> *const Function {
    FAKE_API.as_ptr().cast()
}

extern "C" fn version() -> *const c_char {
    unsafe { (real_base().version)() }
}

fn number(variable: &str) -> Option<usize> {
    std::env::var(variable).ok()?.parse().ok()
}

fn log(line: &str) {
    let Ok(file) = std::env::var("FAKE_GPU_LOG") else { return };
    let mut file = std::fs::OpenOptions::new().append(true).create(true).open(file).expect("a file");
    file.write_all(format!("{line}\n").as_bytes()).expect("a line");
}

fn failure(text: &str) -> Status {
    let create: extern "C" fn(c_int, *const c_char) -> Status = unsafe { std::mem::transmute(API[CREATE_STATUS]) };
    let text = CString::new(text).expect("a message");
    create(FAIL, text.as_ptr())
}

extern "C" fn append_cuda(_: *mut c_void, _: *const c_void) -> Status {
    log("registered cuda");
    ptr::null_mut()
}

extern "C" fn append_tensorrt(_: *mut c_void, _: *const c_void) -> Status {
    log("registered tensorrt");
    ptr::null_mut()
}

unsafe extern "C" fn create_options(options: *mut *mut c_void) -> Status {
    unsafe { *options = ptr::dangling_mut::<c_void>() };
    ptr::null_mut()
}

unsafe extern "C" fn update_cuda_options(
    _: *mut c_void,
    keys: *const *const c_char,
    values: *const *const c_char,
    count: usize,
) -> Status {
    unsafe { log_options("cuda", keys, values, count) }
}

unsafe extern "C" fn update_tensorrt_options(
    _: *mut c_void,
    keys: *const *const c_char,
    values: *const *const c_char,
    count: usize,
) -> Status {
    unsafe { log_options("tensorrt", keys, values, count) }
}

unsafe fn log_options(
    provider: &str,
    keys: *const *const c_char,
    values: *const *const c_char,
    count: usize,
) -> Status {
    let text = |texts: *const *const c_char, place| unsafe { CStr::from_ptr(*texts.add(place)) }.to_string_lossy();
    let options: Vec<String> = (0..count).map(|at| format!("{}={}", text(keys, at), text(values, at))).collect();
    log(&format!("options {provider} {}", options.join(" ")));
    ptr::null_mut()
}

extern "C" fn release_options(_: *mut c_void) {}

type CreateSession =
    unsafe extern "C" fn(*const c_void, *const c_void, usize, *const c_void, *mut *mut c_void) -> Status;

unsafe extern "C" fn create_session(
    environment: *const c_void,
    model: *const c_void,
    bytes: usize,
    options: *const c_void,
    session: *mut *mut c_void,
) -> Status {
    static MODELS: AtomicUsize = AtomicUsize::new(0);
    // The first one is the graph that tries the GPU.
    let before = MODELS.fetch_add(1, Ordering::SeqCst);
    if number("FAKE_GPU_MODELS_MAX").is_some_and(|max| before > max) {
        return failure("CUDA failure 2: out of memory ; GPU=0 ; hostname=test ; expr=cudaMalloc((void**)&p, size);");
    }
    let real: CreateSession = unsafe { std::mem::transmute(API[CREATE_SESSION_FROM_ARRAY]) };
    unsafe { real(environment, model, bytes, options, session) }
}

type Run = unsafe extern "C" fn(
    *mut c_void,
    *const c_void,
    *const *const c_char,
    *const *const c_void,
    usize,
    *const *const c_char,
    usize,
    *mut *mut c_void,
) -> Status;

/// The runs of several texts in progress, and the most so far.
static IN_PROGRESS: Mutex<(usize, usize)> = Mutex::new((0, 0));
static BEGUN: Condvar = Condvar::new();

#[allow(clippy::too_many_arguments)]
unsafe extern "C" fn run(
    session: *mut c_void,
    options: *const c_void,
    input_names: *const *const c_char,
    inputs: *const *const c_void,
    inputs_count: usize,
    output_names: *const *const c_char,
    outputs_count: usize,
    outputs: *mut *mut c_void,
) -> Status {
    let shape = if inputs_count == 0 { Vec::new() } else { unsafe { shape(*inputs) } };
    let [texts, tokens] = match shape[..] {
        [texts, length] => [texts, texts * length],
        _ => [1, 1],
    };
    let progress = (texts > 1).then(Progress::begin);
    if texts > 0 && shape.len() == 2 {
        let most = IN_PROGRESS.lock().expect("no panic").1;
        log(&format!("run texts={texts} tokens={tokens} together={most}"));
    }
    if number("FAKE_GPU_TOKENS_MAX").is_some_and(|max| tokens as usize > max) {
        return failure(
            "Non-zero status code returned while running MatMul node. Status Message: Failed to allocate memory for requested buffer",
        );
    }
    if let Some(nanoseconds) = number("FAKE_GPU_TOKEN_NS") {
        std::thread::sleep(Duration::from_nanos(nanoseconds as u64) * tokens as u32);
    }
    let real: Run = unsafe { std::mem::transmute(API[RUN]) };
    let status =
        unsafe { real(session, options, input_names, inputs, inputs_count, output_names, outputs_count, outputs) };
    drop(progress);
    status
}

unsafe fn shape(value: *const c_void) -> Vec<i64> {
    unsafe {
        let info_of: unsafe extern "C" fn(*const c_void, *mut *mut c_void) -> Status =
            std::mem::transmute(API[GET_TENSOR_TYPE_AND_SHAPE]);
        let rank_of: unsafe extern "C" fn(*const c_void, *mut usize) -> Status =
            std::mem::transmute(API[GET_DIMENSIONS_COUNT]);
        let dimensions_of: unsafe extern "C" fn(*const c_void, *mut i64, usize) -> Status =
            std::mem::transmute(API[GET_DIMENSIONS]);
        let release: unsafe extern "C" fn(*mut c_void) = std::mem::transmute(API[RELEASE_TENSOR_TYPE_AND_SHAPE_INFO]);
        let (mut info, mut rank) = (ptr::null_mut(), 0);
        assert!(info_of(value, &raw mut info).is_null() && rank_of(info, &raw mut rank).is_null());
        let mut dimensions = vec![0; rank];
        assert!(dimensions_of(info, dimensions.as_mut_ptr(), rank).is_null());
        release(info);
        dimensions
    }
}

/// A run of several texts, until it is dropped.
struct Progress;

impl Progress {
    fn begin() -> Self {
        let mut progress = IN_PROGRESS.lock().expect("no panic");
        progress.0 += 1;
        progress.1 = progress.1.max(progress.0);
        BEGUN.notify_all();
        if std::env::var_os("FAKE_GPU_TOGETHER").is_some() {
            let wait = BEGUN.wait_timeout_while(progress, Duration::from_secs(60), |progress| progress.1 < 2);
            drop(wait.expect("no panic"));
        }
        Self
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        IN_PROGRESS.lock().expect("no panic").0 -= 1;
    }
}
