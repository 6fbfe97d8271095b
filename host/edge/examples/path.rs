//! Measures the stages of a request from its socket to the engine and back, with the server, its models and a client in
//! one process. `cargo xtask bench path` builds and runs it.
//!
//! ```text
//! path COMPONENTS_DIR MODELS_DIR [--requests N] [--items N] [--texts FILE] [--set KEY=VALUE]...
//! ```
//!
//! Requests are sent one at a time, and the times between the stages are medians. Processor time is that of all threads
//! except the client's; the engine's part of it is listed separately. Then the processor time for each item of a stream
//! is measured, over HTTP and without it (as in `weir run`).
//!
//! Counts are printed beside the times, since they are hardly changed by other load of the machine: allocations, and the
//! lists of values that cross between the host, its components and the socket. The longer the lists, the fewer there are.
#![allow(clippy::print_stdout, reason = "the results are printed")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::error::Error;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use weir_config::Config;
use weir_edge::{Listener, Observer, Server};
use weir_runtime::stages::{self, STAGES, Stage, TRANSFERS};
use weir_runtime::types::{ClassifyOptions, Item, Overflow, Task, WhenFull};
use weir_runtime::{Builtin, Runtime};

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

const MODEL: &str = "sentiment";
/// The name of client threads, whose time is not counted.
const CLIENT: &str = "client";
/// Requests before the measured ones.
const WARM_UP: usize = 100;
/// Outcomes taken at once.
const OUTCOMES_MAX: usize = 64;

/// What the lists of each kind of transfer have.
const LISTS: [&str; TRANSFERS] = [
    "items from the gateway",
    "items to a replica",
    "outcomes from a replica",
    "outcomes to the gateway",
    "bytes of the body",
];

/// Counts the allocations of all threads except the client's.
struct CountingAllocator;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

thread_local! {
    static IS_CLIENT: Cell<bool> = const { Cell::new(false) };
}

// SAFETY: the allocations are those of `System`; counting them allocates nothing.
unsafe impl GlobalAlloc for CountingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if !IS_CLIENT.get() {
            ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        }
        // SAFETY: as for this function.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as for this function.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if !IS_CLIENT.get() {
            ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        }
        // SAFETY: as for this function.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

/// The span between each stage and the previous one; the first span starts when the client sends.
const SPANS: [&str; STAGES + 1] = [
    "socket and HTTP parser, to the edge",
    "checks, admission, wake-up of the instance",
    "gateway component: head, body, JSON; crossing",
    "queue, wake-up of the replica",
    "infer component: crossing, tokens, tensors",
    "engine",
    "infer component: scores; crossing back",
    "wake-up of the gateway instance",
    "gateway component: JSON, head of the response",
    "body and socket, to the client",
];

struct Options {
    config: Config,
    builtin: Builtin,
    requests: usize,
    items: usize,
    texts: Vec<String>,
}

impl Options {
    fn read() -> Result<Self> {
        let mut arguments = std::env::args().skip(1);
        let components = PathBuf::from(arguments.next().ok_or("name the folder of the components")?);
        let models = arguments.next().ok_or("name the folder of the models")?;
        let mut settings = vec![
            ("models.dir".to_owned(), models),
            ("models.names".to_owned(), format!("[{MODEL}]")),
            ("models.replicas".to_owned(), "1".to_owned()),
            ("http.listen".to_owned(), "127.0.0.1:0".to_owned()),
        ];
        let (mut requests, mut items, mut texts) = (2_000, 4_000, None);
        while let Some(argument) = arguments.next() {
            let value = arguments.next().ok_or_else(|| format!("{argument} takes a value"))?;
            match argument.as_str() {
                "--requests" => requests = value.parse()?,
                "--items" => items = value.parse()?,
                "--texts" => texts = Some(std::fs::read_to_string(value)?),
                "--set" => {
                    let (key, value) = value.split_once('=').ok_or("--set takes KEY=VALUE")?;
                    settings.push((key.to_owned(), value.to_owned()));
                }
                _ => return Err(format!("{argument} is not an option").into()),
            }
        }
        let lines = |text: String| text.lines().filter(|line| !line.trim().is_empty()).map(str::to_owned).collect();
        let texts: Vec<String> = texts.map_or_else(default_texts, lines);
        if texts.is_empty() || requests == 0 || items == 0 {
            return Err("there is nothing to send".into());
        }
        let code = |name: &str| -> Result<Option<&'static [u8]>> {
            Ok(Some(Box::leak(std::fs::read(components.join(name))?.into_boxed_slice())))
        };
        let builtin =
            Builtin { gateway: code("gateway.cwasm.zst")?, infer: code("infer.cwasm.zst")?, ..Builtin::default() };
        Ok(Self { config: weir_config::load(None, [], &settings)?, builtin, requests, items, texts })
    }
}

/// Sentences of about a dozen tokens.
fn default_texts() -> Vec<String> {
    const SUBJECTS: [&str; 6] =
        ["The waiter", "My neighbour", "Our guide", "The doctor", "This old train", "The last song"];
    const VERBS: [&str; 5] =
        ["was late again", "told us a long story", "made everybody laugh", "never came", "was better than before"];
    const ENDINGS: [&str; 5] =
        ["and we loved it.", "and nobody cared.", "on a rainy day.", "for the second time.", "in the old town."];
    let sentence =
        |number: usize| format!("{} {} {}", SUBJECTS[number % 6], VERBS[number / 6 % 5], ENDINGS[number / 30 % 5]);
    (0..150).map(sentence).collect()
}

fn main() -> Result<()> {
    let options = Options::read()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let result = runtime.block_on(measure(options));
    runtime.shutdown_background();
    result
}

async fn measure(options: Options) -> Result<()> {
    let Options { config, builtin, requests, items, texts } = options;
    stages::record();
    let observer = Observer::install()?;
    let listener = Listener::bind(&config.http.listen).await?;
    let address = listener.address();
    let runtime = Arc::new(Runtime::serve(&config, builtin).await?);
    let server = Server::new(&config, listener, runtime.clone(), observer)?;
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let server_task = tokio::spawn(server.serve(async move { drop(stopped.await) }));
    runtime.settled(MODEL).await?;

    let texts = Arc::new(texts);
    run_on_client({
        let texts = texts.clone();
        move || one_at_a_time(address, requests, &texts)
    })
    .await?;
    run_on_client({
        let texts = texts.clone();
        move || stream(address, items, &texts)
    })
    .await?;
    without_http(&runtime, items, &texts).await?;
    drop(stop);
    server_task.await?;
    Ok(())
}

/// Runs a task on a client thread, whose time is not counted.
async fn run_on_client(task: impl FnOnce() -> Result<()> + Send + 'static) -> Result<()> {
    let (sender, receiver) = tokio::sync::oneshot::channel();
    let run = move || {
        IS_CLIENT.set(true);
        drop(sender.send(task()));
    };
    std::thread::Builder::new().name(CLIENT.to_owned()).spawn(run)?;
    receiver.await?
}

/// The processor time of the process by the name of its threads, and how often they waited.
#[derive(Default)]
struct Usage {
    us: BTreeMap<String, f64>,
    waits: u64,
    engine_us: f64,
    allocations: u64,
    lists: [u64; TRANSFERS],
}

impl Usage {
    fn now() -> Self {
        let mut usage = Self {
            engine_us: stages::engine_ns() as f64 / 1e3,
            allocations: ALLOCATIONS.load(Ordering::Relaxed),
            lists: stages::transfer_counts(),
            ..Self::default()
        };
        for task in std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten() {
            let file = |name: &str| std::fs::read_to_string(task.path().join(name)).unwrap_or_default();
            let name = file("comm").trim().to_owned();
            if name == CLIENT {
                continue;
            }
            let ns = file("schedstat").split(' ').next().and_then(|ns| ns.parse::<f64>().ok()).unwrap_or_default();
            *usage.us.entry(name).or_default() += ns / 1e3;
            let status = file("status");
            let waits = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
            usage.waits += waits.and_then(|waits| waits.trim().parse::<u64>().ok()).unwrap_or_default();
        }
        usage
    }

    /// Prints the usage since an earlier time, divided by `count`.
    fn print_since(&self, earlier: &Self, count: usize, unit: &str) {
        let each = |now: f64, before: f64| (now - before) / count as f64;
        let by_thread: Vec<(f64, &str)> = self
            .us
            .iter()
            .map(|(name, us)| (each(*us, earlier.us.get(name).copied().unwrap_or_default()), name.as_str()))
            .collect();
        let total: f64 = by_thread.iter().map(|(us, _)| us).sum();
        let engine = each(self.engine_us, earlier.engine_us);
        println!(
            "  processor time {unit}: {total:.1} us, engine {engine:.1}, outside of the engine {:.1}",
            total - engine
        );
        let lines = by_thread.iter().filter(|(us, _)| *us >= 0.05).map(|(us, name)| format!("{name} {us:.1}"));
        println!("  by thread: {}", lines.collect::<Vec<_>>().join(", "));
        println!("  waits of threads {unit}: {:.2}", each(self.waits as f64, earlier.waits as f64));
        println!("  allocations {unit}: {:.1}", each(self.allocations as f64, earlier.allocations as f64));
        let lists = self.lists.iter().zip(earlier.lists).map(|(now, before)| each(*now as f64, before as f64));
        let lists = LISTS.iter().zip(lists).map(|(name, count)| format!("{name} {count:.2}"));
        println!("  lists {unit}: {}", lists.collect::<Vec<_>>().join(", "));
    }
}

fn one_at_a_time(address: SocketAddr, requests: usize, texts: &[String]) -> Result<()> {
    let mut client = Client::connect(address)?;
    let mut spans = vec![Vec::with_capacity(requests); SPANS.len()];
    let mut totals = Vec::with_capacity(requests);
    let mut before = Usage::default();
    for number in 0..WARM_UP + requests {
        if number == WARM_UP {
            before = Usage::now();
        }
        let body = format!("{{\"inputs\":[{}]}}", quoted(&texts[number % texts.len()]));
        let sent = stages::now_ns();
        client.post("/v1/classify", &body)?;
        let received = stages::now_ns();
        if number < WARM_UP {
            continue;
        }
        totals.push((received - sent) as f64 / 1e3);
        let mut last = sent;
        for (span, at) in spans.iter_mut().zip(stages::marks_ns().into_iter().chain([received])) {
            span.push((at as f64 - last as f64) / 1e3);
            last = at;
        }
    }
    let after = Usage::now();
    let total = median(&mut totals);
    println!("one request at a time, {requests} requests of one text: p50 {total:.0} us");
    let engine = median(&mut spans[Stage::ComputeEnd as usize].clone());
    for (name, span) in SPANS.iter().zip(&mut spans) {
        println!("  {:>8.1} us  {name}", median(span));
    }
    println!("  added to the engine's {engine:.0} us: {:.0} us", total - engine);
    after.print_since(&before, requests, "a request");
    let mut idle = Vec::with_capacity(requests);
    let before = Usage::now();
    for _ in 0..requests {
        let sent = stages::now_ns();
        client.get("/livez")?;
        idle.push((stages::now_ns() - sent) as f64 / 1e3);
    }
    println!("one request at a time, /livez: p50 {:.0} us", median(&mut idle));
    Usage::now().print_since(&before, requests, "a request");
    Ok(())
}

fn stream(address: SocketAddr, items: usize, texts: &[String]) -> Result<()> {
    let mut body = String::new();
    for number in 0..items {
        body.push_str(&format!("{{\"text\":{}}}\n", quoted(&texts[number % texts.len()])));
    }
    let (before, start) = (Usage::now(), Instant::now());
    let mut socket = TcpStream::connect(address)?;
    let head = format!(
        "POST /v1/classify HTTP/1.1\r\nhost: {address}\r\ncontent-type: application/x-ndjson\r\naccept: application/x-ndjson\r\n\
         content-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    );
    let mut request_socket = socket.try_clone()?;
    let writer = std::thread::Builder::new().name(CLIENT.to_owned()).spawn(move || {
        IS_CLIENT.set(true);
        request_socket.write_all(head.as_bytes())?;
        request_socket.write_all(body.as_bytes())
    })?;
    let mut response = String::new();
    socket.read_to_string(&mut response)?;
    let seconds = start.elapsed().as_secs_f64();
    let after = Usage::now();
    writer.join().map_err(|_| "the writer panicked")??;
    let results = response.matches("\"label\"").count();
    if !response.starts_with("HTTP/1.1 200") || results < items {
        return Err(format!("the stream has {results} results: {}", &response[..response.len().min(500)]).into());
    }
    println!("one stream of {items} texts: {:.0} texts/s", items as f64 / seconds);
    after.print_since(&before, items, "an item");
    Ok(())
}

async fn without_http(runtime: &Runtime, items: usize, texts: &[String]) -> Result<()> {
    let (before, start) = (Usage::now(), Instant::now());
    let (sender, mut outcomes) = runtime.call().open();
    let item = |id: u64| Item {
        id,
        model: MODEL.to_owned(),
        text: texts[id as usize % texts.len()].clone(),
        text_pair: None,
        overflow: Overflow::Truncate,
        deadline_ms: None,
        when_full: WhenFull::Wait,
        traceparent: None,
        task: Task::Classify(ClassifyOptions { top_k: Some(1), activation: None }),
    };
    let feed = async move {
        for id in 0..items as u64 {
            sender.send(item(id)).await?;
        }
        Ok::<(), Box<dyn Error + Send + Sync>>(())
    };
    let read = async {
        let mut count = 0;
        loop {
            let list = outcomes.recv_many(OUTCOMES_MAX).await;
            if list.is_empty() {
                return Ok(count);
            }
            count += list.iter().filter(|outcome| outcome.result.is_ok()).count();
        }
    };
    let ((), count): ((), usize) = tokio::try_join!(feed, read)?;
    let seconds = start.elapsed().as_secs_f64();
    if count != items {
        return Err(format!("{count} of {items} items have a result").into());
    }
    println!("without HTTP, {items} texts: {:.0} texts/s", items as f64 / seconds);
    Usage::now().print_since(&before, items, "an item");
    Ok(())
}

/// A client with one persistent connection.
struct Client {
    reader: BufReader<TcpStream>,
    writer: TcpStream,
}

impl Client {
    fn connect(address: SocketAddr) -> Result<Self> {
        let writer = TcpStream::connect(address)?;
        writer.set_nodelay(true)?;
        Ok(Self { reader: BufReader::new(writer.try_clone()?), writer })
    }

    fn post(&mut self, path: &str, body: &str) -> Result<()> {
        let length = body.len();
        self.exchange(format!(
            "POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
        ))
    }

    fn get(&mut self, path: &str) -> Result<()> {
        self.exchange(format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n"))
    }

    fn exchange(&mut self, request: String) -> Result<()> {
        self.writer.write_all(request.as_bytes())?;
        let (mut length, mut status) = (0, String::new());
        loop {
            let mut line = String::new();
            if self.reader.read_line(&mut line)? == 0 {
                return Err("the server has closed the connection".into());
            }
            if status.is_empty() {
                status.clone_from(&line);
            }
            if let Some((name, value)) = line.split_once(':')
                && name.eq_ignore_ascii_case("content-length")
            {
                length = value.trim().parse()?;
            }
            if line == "\r\n" {
                break;
            }
        }
        let mut body = vec![0; length];
        self.reader.read_exact(&mut body)?;
        if !status.contains(" 200 ") {
            return Err(format!("{status}{}", String::from_utf8_lossy(&body)).into());
        }
        Ok(())
    }
}

/// A text as a JSON string.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}
